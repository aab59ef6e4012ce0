package journal

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
)

// Entry is one line of the journal: exactly one field is set.
type Entry struct {
	Launch  *Launch `json:"launch,omitempty"`
	Claimed bool    `json:"claimed,omitempty"`
	Fact    *Fact   `json:"fact,omitempty"`
	Chunk   *Chunk  `json:"chunk,omitempty"`
	Elided  *Elided `json:"elided,omitempty"`
	Ended   *Ended  `json:"ended,omitempty"`
	Lost    *Lost   `json:"lost,omitempty"`
	Ending  *Ending `json:"ending,omitempty"`
	Acked   uint64  `json:"acked,omitempty"`
}

// Launch is the Prepared event as it came.
type Launch struct {
	Execution   string `json:"execution"`
	Attempt     uint32 `json:"attempt"`
	Traceparent string `json:"traceparent,omitempty"`
	// Payload is the Prepared message in Protobuf.
	Payload []byte `json:"payload"`
	// Partition and Offset say where it lies in the work topic. Placed is false when that is not known.
	Placed    bool      `json:"placed,omitempty"`
	Partition int       `json:"partition"`
	Offset    int64     `json:"offset"`
	At        time.Time `json:"at"`
}

// Fact is a numbered fact that carries no output.
type Fact struct {
	Sequence uint64    `json:"sequence"`
	Name     string    `json:"name"` // Of the Protobuf message.
	At       time.Time `json:"at"`
	Payload  []byte    `json:"payload"`
}

// Chunk is a numbered fact whose bytes lie in the spool.
type Chunk struct {
	Sequence uint64             `json:"sequence"`
	Stream   executionv1.Stream `json:"stream"`
	Offset   uint64             `json:"offset"`
	Length   int                `json:"length"`
	At       time.Time          `json:"at"`
	CRC      uint32             `json:"crc"`
	// Digest is the state of the SHA-256 of what was published of the stream, after the chunk, as crypto/sha256 marshals it. Whole
	// is that of everything, absent as long as they are the same.
	Digest []byte `json:"digest"`
	Whole  []byte `json:"whole,omitempty"`
	Masked Masked `json:"masked,omitzero"`
}

// Masked counts what was masked of a stream up to a place in it.
type Masked struct {
	Ranges uint64 `json:"ranges"`
	Bytes  uint64 `json:"bytes"`
	// End is where the last range ended: one that begins there goes on with it.
	End uint64 `json:"end"`
}

// Elided says that a stream's bytes [Start, End) were counted and are not published. One with the Start of an earlier one replaces it.
type Elided struct {
	Stream executionv1.Stream `json:"stream"`
	Start  uint64             `json:"start"`
	End    uint64             `json:"end"`
	// Whole is the state of the SHA-256 of everything up to End.
	Whole  []byte `json:"whole"`
	Masked Masked `json:"masked,omitzero"`
}

// Ended says that a stream ends here, for good. A later one of the same stream replaces it.
type Ended struct {
	Stream   executionv1.Stream `json:"stream"`
	Captured uint64             `json:"captured"`
	Held     bool               `json:"held,omitempty"`
	// Broken: it ends here because it could not be kept. Beyond is how many bytes were thrown away since, to about a MiB.
	Broken bool   `json:"broken,omitempty"`
	Beyond uint64 `json:"beyond,omitempty"`
}

// Lost says that a stream's bytes [Start, End) could not be kept.
type Lost struct {
	Stream executionv1.Stream `json:"stream"`
	Start  uint64             `json:"start"`
	End    uint64             `json:"end"`
}

// Ending says that a signal is about to be sent. When it was, the fact that says so follows; when nobody was there to get it, an
// Ending without a signal.
type Ending struct {
	Signal int       `json:"signal,omitempty"`
	At     time.Time `json:"at,omitzero"`
	// Payload is the TerminationStarted message in Protobuf, without the signal.
	Payload []byte `json:"payload,omitempty"`
}

// End is the offset after the chunk's last byte.
func (c Chunk) End() uint64 { return c.Offset + uint64(c.Length) }

// maxBody bounds a frame: a launch spec in base64 and some room. A longer length is a torn frame.
const maxBody = 64 << 20

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Checksum is the CRC-32C that frames and chunks carry.
func Checksum(data []byte) uint32 { return crc32.Checksum(data, castagnoli) }

// Journal is an open journal. It is safe for concurrent use.
type Journal struct {
	mu   sync.Mutex
	path string
	file *os.File
	size int64
	// compacted is the size after the last compaction.
	compacted int64
}

// Open opens or makes the journal, and returns what it holds. A torn tail is cut off.
func Open(path string) (*Journal, []Entry, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, nil, fmt.Errorf("open journal: %w", err)
	}
	j := &Journal{file: f, path: path}
	entries, err := j.read()
	if err != nil {
		_ = f.Close()
		return nil, nil, fmt.Errorf("read journal %s: %w", path, err)
	}
	return j, entries, nil
}

func (j *Journal) read() ([]Entry, error) {
	data, err := io.ReadAll(j.file)
	if err != nil {
		return nil, err
	}
	var entries []Entry
	for {
		e, n, err := decode(data[j.size:])
		if err != nil {
			return nil, err
		}
		if n == 0 {
			break
		}
		entries = append(entries, e)
		j.size += int64(n)
	}
	return entries, j.file.Truncate(j.size)
}

// decode takes one frame; 0 bytes when there is no whole one. An error means a frame that is whole and makes no sense, which
// no kill can cause.
func decode(data []byte) (e Entry, n int, err error) {
	if len(data) < 8 {
		return e, 0, nil
	}
	length := binary.LittleEndian.Uint32(data)
	if length == 0 || length > maxBody || uint64(len(data)-8) < uint64(length) {
		return e, 0, nil
	}
	body := data[8 : 8+length]
	if Checksum(body) != binary.LittleEndian.Uint32(data[4:]) {
		return e, 0, nil
	}
	if err := json.Unmarshal(body, &e); err != nil {
		return e, 0, fmt.Errorf("decode entry: %w", err)
	}
	return e, 8 + int(length), nil
}

// Append adds an entry, whole or not at all: after an error (a full disk, say) the same entry may be appended again.
func (j *Journal) Append(e Entry) error {
	body, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("encode journal entry: %w", err)
	}
	if len(body) > maxBody {
		return fmt.Errorf("journal entry has %d bytes, the limit is %d", len(body), maxBody)
	}
	frame := make([]byte, 8, 8+len(body))
	binary.LittleEndian.PutUint32(frame, uint32(len(body)))
	binary.LittleEndian.PutUint32(frame[4:], Checksum(body))
	frame = append(frame, body...)
	j.mu.Lock()
	defer j.mu.Unlock()
	if _, err := j.file.WriteAt(frame, j.size); err != nil {
		return errors.Join(fmt.Errorf("append to journal: %w", err), j.file.Truncate(j.size))
	}
	j.size += int64(len(frame))
	return nil
}

// Sync puts the journal on the disk. The name of a new journal also needs SyncFolder.
func (j *Journal) Sync() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := j.file.Sync(); err != nil {
		return fmt.Errorf("sync journal: %w", err)
	}
	return nil
}

// Close closes the file.
func (j *Journal) Close() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.file.Close()
}

// WriteFile is WriteAside, and the folder synced: after a crash the file is there.
func WriteFile(path string, data []byte) error {
	if err := WriteAside(path, data); err != nil {
		return err
	}
	return SyncFolder(filepath.Dir(path))
}

// WriteAside makes a file that is there whole or not at all, whatever is killed, a machine that loses its power included: written aside,
// synced, renamed. Its name is not on the disk yet.
func WriteAside(path string, data []byte) error {
	f, err := os.OpenFile(path+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// SyncFolder puts a folder's list of names on the disk.
func SyncFolder(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
