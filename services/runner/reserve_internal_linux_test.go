package runner

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"verbatim.dev/services/runner/journal"
)

// PlayReserve fills a small disk of its own and lets an attempt write down what is acknowledged. It is for a child in a mount namespace.
func PlayReserve(dir string) error {
	const diskBytes = 16 << 20
	// Else the mount would be seen outside.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("disk", dir, "tmpfs", 0, fmt.Sprintf("size=%d", diskBytes)); err != nil {
		return fmt.Errorf("mount a small disk: %w", err)
	}
	r, err := openReserve(dir)
	if err != nil {
		return err
	}
	defer r.close()
	j, _, err := journal.Open(filepath.Join(dir, "journal"))
	if err != nil {
		return err
	}
	defer j.Close()
	life, over := context.WithTimeout(context.Background(), 30*time.Second)
	defer over()
	a := &attempt{runner: &Runner{life: life, reserve: r}, journal: j, log: slog.New(slog.DiscardHandler)}
	filler := filepath.Join(dir, "filler")
	if err := os.WriteFile(filler, make([]byte, diskBytes), 0o600); !errors.Is(err, syscall.ENOSPC) {
		return fmt.Errorf("fill the disk: %w", err)
	}
	const entries = 5000 // More than one step of the reserve holds.
	for i := range uint64(entries) {
		a.append(journal.Entry{Acked: i + 1})
	}
	if life.Err() != nil {
		return errors.New("what is acknowledged waits for the disk")
	}
	if r.left >= reserveBytes-reserveStep || r.left == 0 || r.isWhole() {
		return fmt.Errorf("%d bytes of the reserve are left", r.left)
	}
	for r.give(false) {
	}
	if r.left != reserveLast || !r.give(true) {
		return fmt.Errorf("%d bytes of the reserve are left for what is acknowledged", r.left)
	}
	if err := os.Remove(filler); err != nil {
		return err
	}
	r.tried = time.Time{}
	if !r.isWhole() {
		return fmt.Errorf("%d bytes of the reserve are there again", r.left)
	}
	var stat unix.Stat_t
	if err := unix.Stat(filepath.Join(dir, reserveFile), &stat); err != nil || stat.Blocks*512 < reserveBytes {
		return fmt.Errorf("the reserve has %d bytes on the disk: %w", stat.Blocks*512, err)
	}
	return nil
}
