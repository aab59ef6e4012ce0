package journal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
)

// compactBytes is the size from which a journal is compacted, when it has doubled since the last time.
const compactBytes = 4 << 20

// Compact writes the journal anew without what later entries have made pointless, when it has grown enough for that to be worth
// while. What is kept says the same as what was there: every entry that is no chunk, elided or acked one; of the chunks those
// that are not acknowledged, and for each stream the last one and the last acknowledged one; the last elided entry of each range, the last
// ended one of each stream, the last acked one.
//
// The new file takes the old one's place by rename, after it was synced, so a kill leaves one or the other. After an error the old one
// goes on being used.
func (j *Journal) Compact() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.size < max(compactBytes, 2*j.compacted) {
		return nil
	}
	if err := j.compact(); err != nil {
		j.compacted = j.size // Not at once again.
		return fmt.Errorf("compact journal: %w", err)
	}
	j.compacted = j.size
	return nil
}

func (j *Journal) compact() error {
	var k keeper
	if err := j.each(func(e Entry, _ []byte) error {
		k.see(e)
		return nil
	}); err != nil {
		return err
	}
	path := j.path
	f, err := os.OpenFile(path+".new", os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	n, size := 0, int64(0)
	err = j.each(func(e Entry, frame []byte) error {
		n++
		if !k.keeps(e, n) {
			return nil
		}
		written, err := f.Write(frame)
		size += int64(written)
		return err
	})
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		return errors.Join(err, f.Close(), os.Remove(path+".new"))
	}
	old := j.file
	j.file, j.size = f, size
	return errors.Join(old.Close(), SyncFolder(filepath.Dir(path)))
}

// each reads the whole journal, frame by frame.
func (j *Journal) each(take func(e Entry, frame []byte) error) error {
	var frame []byte
	for at := int64(0); at < j.size; at += int64(len(frame)) {
		var header [8]byte
		if _, err := j.file.ReadAt(header[:], at); err != nil {
			return fmt.Errorf("read at %d: %w", at, err)
		}
		size := 8 + int(binary.LittleEndian.Uint32(header[:]))
		if size > maxBody+8 {
			return fmt.Errorf("read at %d: a frame of %d bytes", at, size)
		}
		if cap(frame) < size {
			frame = make([]byte, size)
		}
		frame = frame[:size]
		if _, err := j.file.ReadAt(frame, at); err != nil {
			return fmt.Errorf("read at %d: %w", at, err)
		}
		e, n, err := decode(frame)
		if err != nil || n != size {
			return fmt.Errorf("frame at %d is not whole (%w)", at, errors.Join(err, io.ErrUnexpectedEOF))
		}
		if err := take(e, frame); err != nil {
			return err
		}
	}
	return nil
}

// keeper knows which entries say something that no later one says. Entries are numbered from 1.
type keeper struct {
	n     int
	acked uint64
	// last is the last acked entry; chunks and ackedChunks are each stream's last ones.
	last        int
	chunks      map[executionv1.Stream]int
	pending     []chunkAt
	ackedChunks map[executionv1.Stream]int
	elided      map[rangeOf]int
	ended       map[executionv1.Stream]int
}

type chunkAt struct {
	n        int
	sequence uint64
	stream   executionv1.Stream
}

type rangeOf struct {
	stream executionv1.Stream
	start  uint64
}

func (k *keeper) see(e Entry) {
	if k.n++; k.n == 1 {
		k.chunks, k.ackedChunks, k.elided = map[executionv1.Stream]int{}, map[executionv1.Stream]int{}, map[rangeOf]int{}
		k.ended = map[executionv1.Stream]int{}
	}
	switch {
	case e.Acked > 0:
		k.acked, k.last = e.Acked, k.n
		rest := k.pending[:0]
		for _, c := range k.pending {
			if c.sequence <= k.acked {
				k.ackedChunks[c.stream] = c.n
			} else {
				rest = append(rest, c)
			}
		}
		k.pending = rest
	case e.Chunk != nil:
		k.chunks[e.Chunk.Stream] = k.n
		k.pending = append(k.pending, chunkAt{k.n, e.Chunk.Sequence, e.Chunk.Stream})
	case e.Elided != nil:
		k.elided[rangeOf{e.Elided.Stream, e.Elided.Start}] = k.n
	case e.Ended != nil:
		k.ended[e.Ended.Stream] = k.n
	}
}

func (k *keeper) keeps(e Entry, n int) bool {
	switch {
	case e.Acked > 0:
		return n == k.last
	case e.Chunk != nil:
		return e.Chunk.Sequence > k.acked || n == k.chunks[e.Chunk.Stream] || n == k.ackedChunks[e.Chunk.Stream]
	case e.Elided != nil:
		return n == k.elided[rangeOf{e.Elided.Stream, e.Elided.Start}]
	case e.Ended != nil:
		return n == k.ended[e.Ended.Stream]
	}
	return true
}
