package telemetry_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"verbatim.dev/services/internal/telemetry"
)

// Another process's metrics come with a label beside one's own, and a process that is not there is a value and no error.
func TestAnotherProcessesMetrics(t *testing.T) {
	t.Parallel()
	name := filepath.Join(t.TempDir(), "address")
	theirs := prometheus.NewRegistry()
	count := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "things_total", Help: "Things."}, []string{"kind"})
	theirs.MustRegister(count)
	count.WithLabelValues("a").Add(3)
	mine := prometheus.NewRegistry()
	own := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "things_total", Help: "Things."}, []string{"kind"})
	mine.MustRegister(own)
	own.WithLabelValues("a").Add(1)
	both := prometheus.Gatherers{mine, telemetry.Remote{Process: "runner", AddressFile: name}}
	values := func() (n int, up float64) {
		t.Helper()
		families, err := both.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range families {
			switch f.GetName() {
			case "things_total":
				n = len(f.GetMetric())
			case "verbatim_process_up":
				up = f.GetMetric()[0].GetGauge().GetValue()
			}
		}
		return n, up
	}
	if n, up := values(); n != 1 || up != 0 {
		t.Errorf("without an address: %d values, up is %v", n, up)
	}
	s := telemetry.NewServer("127.0.0.1:0", &telemetry.Checks{}, theirs)
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(s.Addr()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if n, up := values(); n != 2 || up != 1 {
		t.Errorf("with the process there: %d values, up is %v", n, up)
	}
	if problems, err := testutil.GatherAndLint(both); err != nil || len(problems) > 0 {
		t.Errorf("%v, %v", problems, err)
	}
	if err := s.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n, up := values(); n != 1 || up != 0 {
		t.Errorf("after its end: %d values, up is %v", n, up)
	}
	if err := os.WriteFile(name, []byte("192.0.2.1:9\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, up := values(); up != 0 {
		t.Error("an address that is not on this machine was asked")
	}
}
