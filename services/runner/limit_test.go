package runner_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/services/runner"
	"verbatim.dev/services/runner/mask"
)

// limited is what becomes of output: its masked form, head and tail of that, and how many runs were masked.
func limited(t *testing.T, output []byte, head, tail int) (masked, published []byte, ranges int) {
	t.Helper()
	m, _, err := mask.New([]mask.Secret{{Name: "TOKEN", Value: []byte(secretValue)}})
	if err != nil {
		t.Fatal(err)
	}
	stream := m.Stream(0)
	masked, found := stream.Write(output)
	rest, more := stream.Close()
	masked = append(masked, rest...)
	last := uint64(0)
	for _, r := range append(found, more...) {
		if r.Start != last || ranges == 0 {
			ranges++
		}
		last = r.End
	}
	if len(masked) <= head+tail {
		return masked, masked, ranges
	}
	return masked, slices.Concat(masked[:head], masked[len(masked)-tail:]), ranges
}

// wantLimited compares a story with what the process wrote.
func wantLimited(t *testing.T, s story, stream executionv1.Stream, output []byte, head, tail int) {
	t.Helper()
	masked, published, ranges := limited(t, output, head, tail)
	if !bytes.Equal(s.output[stream], published) {
		t.Errorf("%s: %d bytes are published, want %d others", stream, len(s.output[stream]), len(published))
	}
	seal, digest := s.seals[stream], sha256.Sum256(masked)
	if seal.GetCapturedBytes() != uint64(len(output)) || !bytes.Equal(seal.GetSha256(), digest[:]) || seal.GetMaskedRanges() != uint64(ranges) {
		t.Errorf("%s: %d bytes captured, %d ranges masked, want %d and %d; digest %x, want %x", stream, seal.GetCapturedBytes(), seal.GetMaskedRanges(), len(output), ranges, seal.GetSha256(), digest)
	}
	var elided []*executionv1.ByteRange
	if len(output) > head+tail {
		elided = []*executionv1.ByteRange{{Start: uint64(head), End: uint64(len(output) - tail)}}
	}
	if fmt.Sprint(seal.GetElided()) != fmt.Sprint(elided) {
		t.Errorf("%s: elided %v, want %v", stream, seal.GetElided(), elided)
	}
}

// Long streams take no more of the disk than the limit, and everything is told of them.
func TestLongOutputTakesLittleDisk(t *testing.T) {
	t.Parallel()
	const size, head, tail = 40_000_000, 300_000, 500_000
	// A log that is slow for some seconds lets more wait, up to this.
	f := newRunner(t, func(c *runner.Config) { c.SpoolBytes = 8 << 20 })
	spec := child(fmt.Sprintf("noise:%d", size))
	spec.OutputLimit = &executionv1.OutputLimit{HeadBytes: head, TailBytes: tail}
	id := f.start(t, spec)
	var most int64
	eventually(t, "the attempt is over", func() bool {
		files, _ := filepath.Glob(f.data + "/attempts/*/std*")
		for _, name := range files {
			var s syscall.Stat_t
			if syscall.Stat(name, &s) == nil {
				most = max(most, s.Blocks*512)
			}
		}
		return len(f.Running()) == 0
	})
	s := f.log.tell(t, id)
	for stream, seed := range map[executionv1.Stream]byte{stdout: 1, stderr: 2} {
		output, seal := noise(seed, size), s.seals[stream]
		digest := sha256.Sum256(output)
		if !bytes.Equal(s.output[stream], slices.Concat(output[:head], output[size-tail:])) || seal.GetCapturedBytes() != size || !bytes.Equal(seal.GetSha256(), digest[:]) {
			t.Errorf("%s: %d bytes are published, the seal is %v", stream, len(s.output[stream]), seal)
		}
	}
	if most == 0 || most > head+tail+10<<20 {
		t.Errorf("a stream of %d bytes took %d bytes of the disk", size, most)
	}
}

// Workers are killed while streams are cut in the middle and masked: the seal says the same as if nobody had been.
func TestKillLoopWithLimitAndSecrets(t *testing.T) {
	const attempts, kills, size, head, tail = 8, 15, 6_000_000, 200_000, 400_000
	s := newStage(t, "")
	var key string
	eventually(t, "the worker has a key", func() bool {
		text, _ := os.ReadFile(s.data + "/key.pub")
		key = strings.TrimSpace(string(text))
		return key != ""
	})
	var ids []string
	for range attempts {
		spec := child(fmt.Sprintf("slow-secrets:%d", size))
		spec.OutputLimit = &executionv1.OutputLimit{HeadBytes: head, TailBytes: tail}
		spec.Secrets = sealedFor(t, key, map[string]string{"TOKEN": secretValue})
		ids = append(ids, s.start(t, spec))
	}
	last := 0
	for range kills {
		var pid int
		eventually(t, "another worker is there", func() bool {
			pid = s.worker()
			return pid != 0 && pid != last
		})
		<-time.After(time.Duration(100+rand.IntN(700)) * time.Millisecond)
		_ = syscall.Kill(pid, syscall.SIGKILL)
		last = pid
	}
	for _, id := range ids {
		story := s.log.tell(t, id)
		wantLimited(t, story, stdout, noiseWithSecrets(1, size), head, tail)
		wantLimited(t, story, stderr, noiseWithSecrets(2, size), head, tail)
		s.same(t, id)
	}
}
