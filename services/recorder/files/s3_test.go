package files_test

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"
	"time"

	"verbatim.dev/services/artifact"
	"verbatim.dev/services/artifact/s3test"
	"verbatim.dev/services/recorder/files"
)

// The server is killed while parts are written, is away when the output is sealed, and is killed once more while the artifacts may be on
// their way: nothing is lost, and OutputRecorded is published once.
func TestS3StoppedInBetween(t *testing.T) {
	server := s3test.New(t)
	server.Start()
	b := newBench(t, func(c *files.Config) {
		c.Store = open(t, server.URL(s3test.Bucket))
		c.PartBytes, c.PartDelay = 1<<20, 20*time.Millisecond
	})
	want := make([]byte, 12<<20)
	for i := range want {
		want[i] = byte(rand.Uint32())
	}
	const chunk = 256 << 10
	parted := func() error {
		if metric(t, b.registry, "verbatim_recorder_artifact_parts_total") == 0 {
			return fmt.Errorf("no part was written")
		}
		return nil
	}
	for at := 0; at < len(want); at += chunk {
		b.handle(out(stdout, uint64(at), string(want[at:at+chunk])))
		if at == len(want)/2 {
			eventually(t, parted)
			server.Kill()
		}
	}
	end := b.put("/verbatim/runner/r", seal(string(want)))
	done := make(chan error)
	go func() { done <- b.recorder.Handle(end) }()
	eventually(t, func() error {
		if metric(t, b.registry, "verbatim_recorder_artifact_failures_total") == 0 {
			return fmt.Errorf("nothing failed")
		}
		return nil
	})
	server.Start()
	time.Sleep(time.Duration(rand.IntN(300)) * time.Millisecond) // Any moment may be that of a kill.
	server.Kill()
	server.Start()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	wantCheck(t, b.last(1, stdout), match, uint64(len(want)))
	name := artifact.Attempt{Execution: b.id, Number: 1}
	key, err := name.Key("stdout", artifact.Plain)
	if err != nil {
		t.Fatal(err)
	}
	r, err := b.config.Store.Read(t.Context(), key, 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	got, err := io.ReadAll(r)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes of %d, or others: %v", len(got), len(want), err)
	}
	folder, err := name.Folder()
	if err != nil {
		t.Fatal(err)
	}
	var keys []string
	err = b.config.Store.List(t.Context(), folder, func(o artifact.Object) error { keys = append(keys, o.Key); return nil })
	if err != nil || len(keys) != 2 {
		t.Errorf("there are %q, want the two artifacts: %v", keys, err)
	}
}
