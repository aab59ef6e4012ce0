package cli

import (
	"fmt"
	"io"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"verbatim.dev/services/internal/telemetry"
)

// progress tells how far something is that may take long: a bar on a terminal, else a line every few seconds. Nothing is said
// within the first two.
type progress struct {
	out         io.Writer
	what, unit  string
	began, said time.Time
	first       uint64
	begun       bool

	bars *mpb.Progress
	bar  *mpb.Bar
}

const quietTime, lineEvery = 2 * time.Second, 10 * time.Second

func newProgress(out io.Writer, what, unit string) *progress {
	return &progress{out: out, what: what, unit: unit, began: time.Now()}
}

// set says what is done, of so many; 0 when that is not known.
func (p *progress) set(done, total uint64) {
	if !p.begun {
		p.begun, p.first = true, done
	}
	now := time.Now()
	switch {
	case now.Sub(p.began) < quietTime:
	case telemetry.IsTerminal(p.out) && total > 0:
		p.draw(done, total)
	case now.Sub(p.said) >= lineEvery:
		p.said = now
		rate := float64(done-p.first) / now.Sub(p.began).Seconds()
		text := fmt.Sprintf("%s: %d %s", p.what, done, p.unit)
		if total > 0 {
			text = fmt.Sprintf("%s: %d of %d %s", p.what, done, total, p.unit)
			if rate > 0 {
				left := time.Duration(float64(total-min(done, total)) / rate * float64(time.Second))
				text += fmt.Sprintf(", %s left", left.Round(time.Second))
			}
		}
		fmt.Fprintf(p.out, "%s, %.0f/s\n", text, rate)
	}
}

func (p *progress) draw(done, total uint64) {
	if p.bar == nil {
		p.bars = mpb.New(mpb.WithOutput(p.out), mpb.WithWidth(40))
		p.bar = p.bars.AddBar(int64(total),
			mpb.PrependDecorators(decor.Name(p.what+" ")),
			mpb.AppendDecorators(
				decor.Percentage(decor.WC{W: 5}),
				decor.AverageSpeed(0, "  %.0f "+p.unit+"/s", decor.WC{W: 18}),
				decor.AverageETA(decor.ET_STYLE_GO, decor.WC{W: 10}), decor.Name(" left"),
			))
	}
	p.bar.SetTotal(int64(max(total, done)), false)
	p.bar.SetCurrent(int64(done))
}

// done ends it.
func (p *progress) done() {
	if p.bar != nil {
		p.bar.SetTotal(-1, true)
		p.bars.Wait()
	}
}
