package main

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"

	"verbatim.dev/services/e2e/rig"
)

// broker is what the loop uses as a broker: an embedded one in a process of its own, or somebody's.
type broker struct {
	addr    string
	restart func(ctx context.Context) error
	stop    func()
}

func (p plan) startBroker() (*broker, error) {
	if p.broker != "" {
		return &broker{addr: p.broker, stop: func() {}, restart: func(ctx context.Context) error {
			if out, err := exec.CommandContext(ctx, "bash", "-c", p.brokerRestart).CombinedOutput(); err != nil {
				return fmt.Errorf("restart broker: %w: %s", err, out)
			}
			return nil
		}}, nil
	}
	b, err := rig.StartBroker(filepath.Join(p.dir, "broker"))
	if err != nil {
		return nil, err
	}
	return &broker{addr: b.Addr, stop: b.Kill, restart: func(context.Context) error { return b.Restart() }}, nil
}
