package spool_test

import (
	"context"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"verbatim.dev/services/runner/spool"
)

// A pipe that was found full is made larger; the others stay as they are, since the kernel counts what all of a user's pipes may hold.
func TestAFullPipeBecomesLarger(t *testing.T) {
	t.Parallel()
	holds := func(f *os.File) (n int) {
		t.Helper()
		raw, err := f.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		if controlErr := raw.Control(func(fd uintptr) { n, err = unix.FcntlInt(fd, unix.F_GETPIPE_SZ, 0) }); controlErr != nil || err != nil {
			t.Fatal(controlErr, err)
		}
		return n
	}
	p := newProcess(t)
	defer p.close()
	before := holds(p.read[0])
	if _, err := p.write[0].Write(make([]byte, before)); err != nil {
		t.Fatal(err)
	}
	if _, err := p.write[1].Write(make([]byte, before/2)); err != nil {
		t.Fatal(err)
	}
	x := open(t, config(), t.TempDir(), p, [2]spool.Mark{})
	var out collected
	for len(out[0])+len(out[1]) < before+before/2 {
		chunk, err := x.Next(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		out.take(t, x.Spool, chunk, before)
		x.Trim(chunk.Stream, chunk.Offset+uint64(chunk.Length))
	}
	if now := holds(p.read[0]); now <= before {
		t.Errorf("it holds %d bytes, as before", now)
	}
	if now := holds(p.read[1]); now != before {
		t.Errorf("one that was never full holds %d bytes instead of %d", now, before)
	}
	p.close()
	x.end(t, nil)
	x.Close()
}
