package wiring_test

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"verbatim.dev/events"
	"verbatim.dev/events/kafka"
	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/services/internal/wiring"
	"verbatim.dev/services/runner"
)

// An upload is found among those of others and records that are no parts; what is not there, or never will be, is said at once.
func TestAnUploadsPartsAreReadFromWhereTheyLie(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	publish := func(ms ...*message.Message) {
		t.Helper()
		if err := r.pub.PublishContext(t.Context(), events.TopicStdin, ms...); err != nil {
			t.Fatal(err)
		}
	}
	admin, err := kafka.NewAdmin(r.base.Kafka)
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close()
	end := func(partition int) int64 {
		t.Helper()
		ends, err := admin.EndOffsets(t.Context(), events.TopicStdin)
		if err != nil {
			t.Fatal(err)
		}
		return ends[partition]
	}
	partitions := wiring.Topics(events.TopicStdin)[0].Partitions
	mine := newID(t)
	partition := kafka.PartitionFor([]byte(mine), partitions)
	other := newID(t)
	for kafka.PartitionFor([]byte(other), partitions) != partition {
		other = newID(t)
	}
	part := func(id string, sequence uint64, offset int, text string) *message.Message {
		return r.message(id, 0, sequence, &executionv1.StdinPart{Offset: uint64(offset), Data: []byte(text)})
	}
	garbage := message.NewMessage("x", []byte("no event"))
	garbage.Metadata.Set("ce_partitionkey", mine)

	publish(part(other, 1, 0, "before"))
	start := end(partition)
	publish(part(mine, 1, 0, "one "), part(other, 2, 6, "between"), garbage)
	publish(part(mine, 1, 0, "one "), part(mine, 2, 4, "two"))
	upload := &executionv1.StdinUpload{Upload: mine, StartOffset: start, EndOffset: end(partition), SizeBytes: 7}
	publish(part(mine, 3, 7, "too much"))

	read := wiring.Upload(r.base)
	fetch := func(u *executionv1.StdinUpload) (string, error) {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		var got bytes.Buffer
		err := read(ctx, u, func(offset uint64, data []byte) error {
			if int(offset) == got.Len() {
				got.Write(data)
			}
			return nil
		})
		return got.String(), err
	}
	if got, err := fetch(upload); err != nil || got != "one two" {
		t.Errorf("%q, %v", got, err)
	}
	// It says to be longer than it is, or to end where the log does not reach yet: nobody waits for that.
	upload.EndOffset, upload.SizeBytes = 1<<40, 1000
	if got, err := fetch(upload); err != nil || got != "one twotoo much" {
		t.Errorf("%q, %v", got, err)
	}
	upload.StartOffset = 1 << 39
	if got, err := fetch(upload); got != "" || (err != nil && !errors.Is(err, runner.ErrUploadGone)) {
		t.Errorf("%q, %v", got, err)
	}
	upload.StartOffset = -1
	if _, err := fetch(upload); !errors.Is(err, runner.ErrUploadGone) {
		t.Errorf("%v", err)
	}
	// What take does not want ends it.
	upload.StartOffset = start
	refused := errors.New("disk full")
	if err := read(t.Context(), upload, func(uint64, []byte) error { return refused }); !errors.Is(err, refused) {
		t.Errorf("%v", err)
	}
}

func newID(t *testing.T) string {
	t.Helper()
	id, err := events.NewExecutionID()
	if err != nil {
		t.Fatal(err)
	}
	return id
}
