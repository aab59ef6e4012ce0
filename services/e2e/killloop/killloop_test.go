package main

import (
	"bytes"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestMain(m *testing.M) {
	if code, played := play(os.Args); played {
		os.Exit(code)
	}
	os.Exit(m.Run())
}

// The short loops. They run one after the other: each is many processes that are started all the time.
func TestKill(t *testing.T) {
	for _, p := range []plan{
		{mode: "worker", executions: 20, kills: 20, running: 8},
		{mode: "broker", executions: 8, kills: 6, running: 6, brokerEvery: 4 * time.Second},
		{mode: "supervisor", executions: 6, kills: 3, running: 4},
		{mode: "up", executions: 6, kills: 2, running: 4},
		{mode: "artifacts", executions: 16, kills: 6, running: 8},
		{mode: "sinks", executions: 20, kills: 8, running: 8, brokerEvery: 5 * time.Second},
	} {
		t.Run(p.mode, func(t *testing.T) {
			p.bytes, p.lasting, p.shortest, p.longest, p.dir = 200_000, 3*time.Second, 20*time.Millisecond, 4*time.Second, t.TempDir()
			if err := p.run(t.Context(), t.Output()); err != nil {
				t.Error(err)
				for _, name := range []string{"up", "runner", "recorder", "projector"} {
					log, _ := os.ReadFile(p.dir + "/" + name + ".log")
					t.Logf("%s.log:\n%s", name, log[max(0, len(log)-10_000):])
				}
			}
		})
	}
}

// What a process says of itself is what it wrote.
func TestNoiseCounts(t *testing.T) {
	t.Parallel()
	progress, err := os.Create(t.TempDir() + "/progress")
	if err != nil {
		t.Fatal(err)
	}
	defer progress.Close()
	var out bytes.Buffer
	data := noise(7, 1, 10_000)
	if err := trickle(&out, data, 0, progress, 8); err != nil {
		t.Fatal(err)
	}
	written, started := readProgress(progress.Name())
	if !started || written != [2]uint64{0, 10_000} || !bytes.Equal(out.Bytes(), data) {
		t.Errorf("%v, %v, and %d bytes", started, written, out.Len())
	}
	if bytes.Equal(noise(7, 1, 100), noise(7, 2, 100)) || bytes.Equal(noise(7, 1, 100), noise(8, 1, 100)) {
		t.Error("streams or executions have the same bytes")
	}
}

// The checks find what they are there to find.
func TestBrokenPromisesAreSeen(t *testing.T) {
	t.Parallel()
	want := noise(1, 1, 1000)
	changed := bytes.Clone(want)
	changed[500]++
	for name, c := range map[string]struct {
		got     []byte
		written uint64
		cut     bool
		says    []string
	}{
		"one byte differs": {changed, 1000, false, []string{"not the first ones"}},
		"a chunk twice":    {append(bytes.Clone(want[:600]), want[500:]...), 1000, false, []string{"not the first ones"}},
		"the end lacks":    {want[:900], 1000, false, []string{"wrote 1000 bytes, 900 are there", "900 bytes of 1000"}},
		"cut, and lost":    {want[:900], 901, true, []string{"wrote 901 bytes, 900 are there"}},
		"cut":              {want[:900], 900, true, nil},
	} {
		v := &verdict{loop: &loop{}, started: &started{cut: c.cut}}
		v.output("stdout", c.got, want, c.written)
		var said []string
		for _, b := range v.broken {
			if !strings.Contains(b, "the row's") { // There is no row here.
				said = append(said, b)
			}
		}
		if len(said) != len(c.says) {
			t.Errorf("%s: %s", name, cmp.Diff(c.says, said))
			continue
		}
		for i, text := range c.says {
			if !strings.Contains(said[i], text) {
				t.Errorf("%s: %q does not say %q", name, said[i], text)
			}
		}
	}
}
