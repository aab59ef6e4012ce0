package files

import (
	"context"
	"fmt"

	"verbatim.dev/projections/clickhouse"
	"verbatim.dev/services/artifact"
)

// flush writes parts of what the archive has more than there are parts of. A failed one is tried again; nothing depends on it.
func (r *Recorder) flush(a *attempt) {
	a.writing.Lock()
	defer a.writing.Unlock()
	a.begun()
	err := r.parts(r.life, a)
	if err != nil {
		a.parted = nil
		r.outage.failed(r.life, a, err)
	}
	a.flushed(err != nil)
}

func (r *Recorder) parts(ctx context.Context, a *attempt) error {
	if last, _ := a.end(); last >= 0 {
		return nil // Its artifacts are made.
	}
	if gone, err := r.deleted(ctx, a); gone || err != nil {
		return err
	}
	if a.parted == nil {
		parted, err := r.partEnds(ctx, a)
		if err != nil {
			return err
		}
		a.parted = parted
	}
	for _, stream := range artifact.Streams {
		p := &parts{recorder: r, name: artifact.Attempt{Execution: a.name.ID, Number: a.name.Number}, stream: stream}
		at, err := p.write(ctx, a.parted[stream])
		if err != nil {
			return err
		}
		a.parted[stream] = at
	}
	_, err := r.deleted(ctx, a)
	return err
}

// partEnds is up to where the parts in the store reach.
func (r *Recorder) partEnds(ctx context.Context, a *attempt) (map[string]uint64, error) {
	name := artifact.Attempt{Execution: a.name.ID, Number: a.name.Number}
	ends := map[string]uint64{}
	for _, stream := range artifact.Streams {
		key, err := name.PartKey(stream, 0)
		if err != nil {
			return nil, err
		}
		err = r.Store.List(ctx, key[:len(key)-20], func(o artifact.Object) error {
			if offset, ok := artifact.ParsePart(o.Key); ok {
				ends[stream] = max(ends[stream], offset+o.Size)
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return ends, nil
}

// parts writes the parts of one stream.
type parts struct {
	recorder *Recorder
	name     artifact.Attempt
	stream   string

	w    *artifact.Writer // Nil: between two parts.
	size uint64
}

// write writes what the archive has from an offset on and returns where that ends. A part has no holes.
func (p *parts) write(ctx context.Context, at uint64) (uint64, error) {
	defer func() {
		if p.w != nil {
			p.w.Abort()
		}
	}()
	for c, err := range p.recorder.Archive.Output(ctx, p.name.Execution, p.name.Number, p.stream, at, 0) {
		if err == nil && p.w != nil && c.Offset != at {
			err = p.close()
		}
		if err == nil && p.w == nil {
			err = p.open(ctx, c)
		}
		if err == nil {
			_, err = p.w.Write(c.Data)
		}
		if err != nil {
			return 0, err
		}
		at = c.Offset + uint64(len(c.Data))
		if p.size += uint64(len(c.Data)); p.size >= p.recorder.PartBytes {
			if err := p.close(); err != nil {
				return 0, err
			}
		}
	}
	return at, p.close()
}

func (p *parts) open(ctx context.Context, c clickhouse.Chunk) error {
	key, err := p.name.PartKey(p.stream, c.Offset)
	if err != nil {
		return err
	}
	if p.w, err = p.recorder.Store.Create(ctx, key, p.recorder.PartBytes); err != nil {
		return fmt.Errorf("begin a part: %w", err)
	}
	p.size = 0
	return nil
}

func (p *parts) close() error {
	if p.w == nil {
		return nil
	}
	w := p.w
	p.w = nil
	p.recorder.metrics.parts.Inc()
	return w.Close()
}
