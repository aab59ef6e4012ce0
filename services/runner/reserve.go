package runner

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"
)

const (
	// reserveFile holds room on the disk, and nothing else.
	reserveFile = "reserve"
	// reserveBytes is how much, reserveStep how much is given at a time: more than any file system's block.
	reserveBytes = 2 << 20
	reserveStep  = 64 << 10
	// reserveLast is for what is acknowledged alone.
	reserveLast = 512 << 10
	// refillEvery is the least time between two tries to fill it again.
	refillEvery = 200 * time.Millisecond
)

// reserve is room on the disk for the journals, which gives other room back: what is published has to be written down before, and of what is in
// the log it has to be written down that it is, before the spool lets go of it. On a disk that the spools have filled that would wait for
// ever. As long as the reserve is not whole the disk counts as full for the spools, or they would take what it is to have again.
type reserve struct {
	mu    sync.Mutex
	file  *os.File
	left  int64
	tried time.Time
}

// openReserve makes it. A disk that has no room for it now gets it later.
func openReserve(folder string) (*reserve, error) {
	f, err := os.OpenFile(filepath.Join(folder, reserveFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("make the reserve of room on the disk: %w", err)
	}
	info, err := f.Stat()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make the reserve of room on the disk: %w", err), f.Close())
	}
	r := &reserve{file: f, left: info.Size()}
	r.refill()
	return r, nil
}

// give gives the disk a part of it; false when nothing is left for that purpose. last is for what is acknowledged.
func (r *reserve) give(last bool) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.left == 0 || r.left <= reserveLast && !last {
		return false
	}
	less := max(0, r.left-reserveStep)
	if err := r.file.Truncate(less); err != nil {
		return false
	}
	r.left = less
	return true
}

// refill takes back what was given, when the disk has room. It is called often and seldom does anything.
func (r *reserve) refill() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fill()
}

// isWhole reports whether nothing of it is given away, after it has tried to take it back.
func (r *reserve) isWhole() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fill()
	return r.left >= reserveBytes
}

func (r *reserve) fill() {
	if r.left >= reserveBytes || time.Since(r.tried) < refillEvery {
		return
	}
	r.tried = time.Now()
	block := make([]byte, reserveStep)
	for r.left < reserveBytes {
		n, err := r.file.WriteAt(block[:min(reserveStep, reserveBytes-r.left)], r.left)
		r.left += int64(n)
		if err != nil { // What there was room for stays.
			return
		}
	}
}

func (r *reserve) close() error { return r.file.Close() }
