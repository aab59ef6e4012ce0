package telemetry

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"google.golang.org/protobuf/proto"
)

// maxScrapeBytes bounds what is read of another process's metrics. A runner's are 15 KiB.
const maxScrapeBytes = 4 << 20

// Remote gathers the metrics of another process of this machine, so that who scrapes this one gets both. Each of them gets the
// label process; verbatim_process_up says whether it answered. It is safe for concurrent use.
type Remote struct {
	// Process is the label's value.
	Process string
	// AddressFile holds the host:port, on loopback, where the process serves /metrics. It is read each time: the process may have been
	// started again meanwhile.
	AddressFile string
}

var _ prometheus.Gatherer = Remote{}

// Gather implements prometheus.Gatherer. A process that does not answer is a value and no error.
func (r Remote) Gather() ([]*dto.MetricFamily, error) {
	families, err := r.scrape()
	up := 1.0
	if err != nil {
		families, up = nil, 0
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			m.Label = append(m.GetLabel(), r.label())
			slices.SortFunc(m.Label, func(a, b *dto.LabelPair) int { return strings.Compare(a.GetName(), b.GetName()) })
		}
	}
	return append(families, &dto.MetricFamily{
		Name: proto.String("verbatim_process_up"), Help: proto.String("Whether another process whose metrics these are answered."),
		Type: dto.MetricType_GAUGE.Enum(), Metric: []*dto.Metric{{Label: []*dto.LabelPair{r.label()}, Gauge: &dto.Gauge{Value: &up}}},
	}), nil
}

func (r Remote) label() *dto.LabelPair {
	return &dto.LabelPair{Name: proto.String("process"), Value: &r.Process}
}

func (r Remote) scrape() ([]*dto.MetricFamily, error) {
	text, err := os.ReadFile(r.AddressFile)
	if err != nil {
		return nil, err
	}
	address := strings.TrimSpace(string(text))
	if err := onLoopback(address); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), checkTime)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/metrics", nil)
	if err != nil {
		return nil, err
	}
	// A connection of its own: the process may be another one next time.
	request.Close = true
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("metrics of %s: %s", r.Process, answer.Status)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	byName, err := parser.TextToMetricFamilies(io.LimitReader(answer.Body, maxScrapeBytes))
	if err != nil {
		return nil, err
	}
	families := make([]*dto.MetricFamily, 0, len(byName))
	for _, f := range byName {
		families = append(families, f)
	}
	slices.SortFunc(families, func(a, b *dto.MetricFamily) int { return strings.Compare(a.GetName(), b.GetName()) })
	return families, nil
}

// onLoopback wants an address to be on this machine.
func onLoopback(address string) error {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("health address %q: %w", address, err)
	}
	if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return fmt.Errorf("health address %q is not on loopback; it has no access control, so put a proxy before it", address)
	}
	return nil
}
