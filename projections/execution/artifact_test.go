package execution

import (
	"crypto/sha256"
	"slices"
	"strings"
	"testing"

	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
)

func TestFiles(t *testing.T) {
	t.Parallel()
	sum := sha256.Sum256([]byte("hello"))
	file := func(uri string, check executionv1.DigestCheck) *executionv1.OutputRecorded {
		return &executionv1.OutputRecorded{Artifacts: []*executionv1.Artifact{
			{Stream: executionv1.Stream_STREAM_STDOUT, Uri: uri, SizeBytes: 5, Sha256: sum[:], DigestCheck: check},
			{Stream: executionv1.Stream_STREAM_STDOUT, Uri: "file:///second"},
			{Stream: 9, Uri: "file:///unknown"},
		}}
	}
	r := Fold(testID, tell(t).in(1, file("file:///old", 0)).all)
	if r.StdoutLogMatch != nil || r.StdoutLog == nil || *r.StdoutLog != "file:///old" || r.StderrLog != nil {
		t.Errorf("nothing was compared: %v %v %v", r.StdoutLogMatch, r.StdoutLog, r.StderrLog)
	}
	r = Fold(testID, tell(t).in(1, file("file:///old", executionv1.DigestCheck_DIGEST_CHECK_MISMATCH), file("file:///new", executionv1.DigestCheck_DIGEST_CHECK_MATCH)).all)
	if *r.StdoutLog != "file:///new" || *r.StdoutLogBytes != 5 || !strings.HasPrefix(*r.StdoutLogSHA256, "2cf24dba") || !*r.StdoutLogMatch || len(r.Contradictions) > 0 {
		t.Errorf("%v %v %v %v %q", *r.StdoutLog, *r.StdoutLogBytes, *r.StdoutLogSHA256, *r.StdoutLogMatch, r.Contradictions)
	}
	r = Fold(testID, tell(t).in(1, file("file:///old", executionv1.DigestCheck_DIGEST_CHECK_MISMATCH)).all)
	if r.StdoutLogMatch == nil || *r.StdoutLogMatch || !slices.Contains(r.Contradictions, "attempt 1: the file that stdout is recorded in has not the bytes that the seal states") {
		t.Errorf("a mismatch is no contradiction: %q", r.Contradictions)
	}
	r = Fold(testID, tell(t).in(1, file("file:///"+strings.Repeat("x", maxURIBytes), 0)).all)
	if r.StdoutLog == nil || *r.StdoutLog != "file:///second" {
		t.Errorf("a URI of any length is taken: %.80v", r.StdoutLog)
	}
}
