package events_test

import (
	"strings"
	"testing"
	"time"

	"verbatim.dev/events"
	"verbatim.dev/events/eventstest"
	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
)

func TestExecutionIDCarriesItsTime(t *testing.T) {
	t.Parallel()
	before := time.Now().Truncate(time.Millisecond)
	id, err := events.NewExecutionID()
	if err != nil {
		t.Fatal(err)
	}
	made, err := events.ParseExecutionID(id)
	if err != nil {
		t.Fatal(err)
	}
	if made.Before(before) || made.After(time.Now()) {
		t.Errorf("id %s says it was made at %s", id, made)
	}
}

func TestExecutionIDsFromOutsideAreChecked(t *testing.T) {
	t.Parallel()
	for _, id := range []string{
		"", "x", "../../x", strings.Repeat("0", 100),
		"019366E0-7C00-7000-8000-0000000000AB",   // Upper case: another text for the same id.
		"{019366e0-7c00-7000-8000-0000000000ab}", // Braces, likewise.
		"019366e07c007000800000000000000ab",
		"9f1e1c5e-7c00-4000-8000-0000000000ab", // Version 4.
		"019366e0-7c00-7000-0000-0000000000ab", // Another variant.
		"ffffffff-ffff-7000-8000-0000000000ab", // Year 10889: no table partition can hold it.
	} {
		if _, err := events.ParseExecutionID(id); err == nil {
			t.Errorf("%q was taken", id)
		}
	}
}

func TestIDIsKnownBeforeSending(t *testing.T) {
	t.Parallel()
	p := events.Producer{Name: "runner", Source: "/verbatim/runner/r1"}
	e, err := p.Event(eventstest.ExecutionID, 2, 7, eventstest.Time, &executionv1.WaitFailed{Cause: "x"})
	if err != nil {
		t.Fatal(err)
	}
	if want := eventstest.ExecutionID + "/2/runner/7"; e.ID != want {
		t.Errorf("id is %s, want %s", e.ID, want)
	}
}

func TestSealsThatDoNotAddUpAreRefused(t *testing.T) {
	t.Parallel()
	seal := func(captured, published uint64, elided, lost []*executionv1.ByteRange) error {
		_, err := events.Producer{Name: "runner", Source: "/s"}.Event(eventstest.ExecutionID, 1, 1, eventstest.Time, &executionv1.OutputSealed{
			Streams: []*executionv1.StreamSeal{{Stream: 1, CapturedBytes: captured, PublishedBytes: published, Elided: elided, Lost: lost}},
		})
		return err
	}
	r := func(start, end uint64) *executionv1.ByteRange { return &executionv1.ByteRange{Start: start, End: end} }
	if err := seal(10, 4, []*executionv1.ByteRange{r(2, 5)}, []*executionv1.ByteRange{r(5, 8)}); err != nil {
		t.Error(err)
	}
	for name, err := range map[string]error{
		"more published than captured": seal(10, 11, nil, nil),
		"ranges missing":               seal(10, 4, nil, nil),
		"range past the end":           seal(10, 8, []*executionv1.ByteRange{r(9, 11)}, nil),
		"empty range":                  seal(10, 10, []*executionv1.ByteRange{r(3, 3)}, nil),
		"backwards":                    seal(10, 6, []*executionv1.ByteRange{r(6, 8), r(0, 2)}, nil),
		"sum wraps":                    seal(10, 1<<64-1, []*executionv1.ByteRange{r(0, 10)}, []*executionv1.ByteRange{r(0, 1)}),
	} {
		if err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}
