package runner

import (
	"cmp"
	"crypto/sha256"
	"encoding"
	"fmt"
	"hash"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/services/runner/journal"
	"verbatim.dev/services/runner/spool"
)

// past is what the journal says of an attempt.
type past struct {
	launch  *journal.Launch
	claimed bool
	acked   uint64
	// recorded holds the facts and chunks, in order.
	recorded []journal.Entry
	// names of the facts that were recorded.
	names map[string]bool

	// begun is the last TerminationStarted, begunAt when the first was; killed says that KILL was sent.
	begun   *executionv1.TerminationStarted
	begunAt time.Time
	killed  bool
	// ending is a signal of which no fact says whether it was sent.
	ending *ending

	// sealed is the first seal, sealedAt when it was; over says that there was another one.
	sealed   *executionv1.OutputSealed
	sealedAt time.Time
	over     bool
	late     bool // A pipe was held at the first seal.

	streams [2]streamPast
}

// streamPast is how far a stream got.
type streamPast struct {
	mark spool.Mark
	// digest is of what was published, whole of everything; nil as long as that is the same.
	digest, whole hash.Hash
	masked        journal.Masked
	elided        []*executionv1.ByteRange
	// unread says that an OutputReadFailed was recorded.
	unread bool
	lost   []*executionv1.ByteRange
	// held: another process has the pipe. beyond: bytes behind the last captured one that were thrown away.
	held   bool
	beyond uint64
}

func newPast() past {
	p := past{names: make(map[string]bool)}
	for i := range p.streams {
		p.streams[i].digest = sha256.New()
	}
	return p
}

// of is the part of a stream.
func (p *past) of(id executionv1.Stream) *streamPast {
	if id == executionv1.Stream_STREAM_STDERR {
		return &p.streams[1]
	}
	return &p.streams[0]
}

// fold reads a journal.
func fold(entries []journal.Entry) (past, error) {
	p := newPast()
	for _, e := range entries {
		if err := p.add(e); err != nil {
			return p, err
		}
	}
	for _, e := range p.recorded {
		if c := e.Chunk; c != nil && c.Sequence <= p.acked {
			p.of(c.Stream).mark.Acked = c.End()
		}
	}
	return p, nil
}

func (p *past) add(e journal.Entry) error {
	switch {
	case e.Launch != nil:
		p.launch = e.Launch
	case e.Claimed:
		p.claimed = true
	case e.Acked > 0:
		p.acked = e.Acked
	case e.Chunk != nil:
		p.recorded = append(p.recorded, e)
		return p.of(e.Chunk.Stream).addChunk(*e.Chunk)
	case e.Elided != nil:
		return p.of(e.Elided.Stream).addElided(*e.Elided)
	case e.Ended != nil:
		s := p.of(e.Ended.Stream)
		s.mark.End = &spool.End{Captured: e.Ended.Captured, Held: e.Ended.Held, Broken: e.Ended.Broken}
		s.held, s.beyond = e.Ended.Held, e.Ended.Beyond
	case e.Lost != nil:
		s := p.of(e.Lost.Stream)
		s.lose(e.Lost.Start, e.Lost.End)
		s.mark.Cut = max(s.mark.Cut, e.Lost.End)
	case e.Ending != nil:
		return p.addEnding(*e.Ending)
	case e.Fact != nil:
		p.recorded = append(p.recorded, e)
		p.names[e.Fact.Name] = true
		return p.addFact(*e.Fact)
	}
	return nil
}

func (s *streamPast) addChunk(c journal.Chunk) (err error) {
	s.mark.Cut, s.masked = c.End(), c.Masked
	if s.digest, err = resumed(c.Digest); err == nil && len(c.Whole) > 0 {
		s.whole, err = resumed(c.Whole)
	}
	return err
}

func (s *streamPast) addElided(e journal.Elided) (err error) {
	s.mark.Cut, s.masked = e.End, e.Masked
	s.elide(e.Start, e.End)
	s.whole, err = resumed(e.Whole)
	return err
}

// elide lists a range of the stream that is not published. It returns where the whole range begins that this one belongs to.
func (s *streamPast) elide(start, end uint64) uint64 {
	for _, r := range s.elided {
		if r.GetStart() == start || r.GetEnd() == start {
			r.End = end
			return r.GetStart()
		}
	}
	s.elided = append(s.elided, &executionv1.ByteRange{Start: start, End: end})
	return start
}

// lose lists a range of the stream that cannot be had; one that is listed already changes nothing.
func (s *streamPast) lose(start, end uint64) {
	at, _ := slices.BinarySearchFunc(s.lost, start, func(r *executionv1.ByteRange, start uint64) int { return cmp.Compare(r.GetEnd(), start) })
	behind := at
	for ; behind < len(s.lost) && s.lost[behind].GetStart() <= end; behind++ {
		start, end = min(start, s.lost[behind].GetStart()), max(end, s.lost[behind].GetEnd())
	}
	s.lost = slices.Replace(s.lost, at, behind, &executionv1.ByteRange{Start: start, End: end})
}

// isLost reports whether a byte is listed as lost.
func (s *streamPast) isLost(at uint64) bool {
	return slices.ContainsFunc(s.lost, func(r *executionv1.ByteRange) bool { return r.GetStart() <= at && at < r.GetEnd() })
}

// add counts published or elided bytes.
func (s *streamPast) add(data []byte, published bool) {
	if !published && s.whole == nil {
		s.whole, _ = resumed(stateOf(s.digest)) // What crypto/sha256 wrote it can read.
	}
	if published {
		s.digest.Write(data)
	}
	if s.whole != nil {
		s.whole.Write(data)
	}
}

// sum is the digest of everything.
func (s *streamPast) sum() []byte {
	if s.whole != nil {
		return s.whole.Sum(nil)
	}
	return s.digest.Sum(nil)
}

// stateOf is a digest's state, nil for none.
func stateOf(h hash.Hash) []byte {
	if h == nil {
		return nil
	}
	state, _ := h.(encoding.BinaryMarshaler).MarshalBinary() // It never fails for SHA-256.
	return state
}

// resumed is a digest from its state.
func resumed(state []byte) (hash.Hash, error) {
	h := sha256.New()
	return h, h.(encoding.BinaryUnmarshaler).UnmarshalBinary(state)
}

func (p *past) addFact(f journal.Fact) error {
	fact, err := decodeFact(f)
	if err != nil {
		return err
	}
	switch d := fact.(type) {
	case *executionv1.OutputReadFailed:
		p.of(d.GetStream()).unread = true
	case *executionv1.OutputSealed:
		p.addSeal(f.At, d)
	case *executionv1.TerminationStarted:
		if p.begun == nil {
			p.begunAt = f.At
		}
		p.begun, p.ending = d, nil
		for _, s := range d.GetSignals() {
			p.killed = p.killed || s.GetSignal().GetName() == "KILL"
		}
	}
	return nil
}

// nameOf is a fact's name, without its package.
func nameOf(fact proto.Message) string { return string(fact.ProtoReflect().Descriptor().Name()) }

func decodeFact(f journal.Fact) (proto.Message, error) {
	full := (&executionv1.ProcessStarted{}).ProtoReflect().Descriptor().FullName().Parent().Append(protoreflect.Name(f.Name))
	t, err := protoregistry.GlobalTypes.FindMessageByName(full)
	if err != nil {
		return nil, fmt.Errorf("fact %d in the journal: %w", f.Sequence, err)
	}
	fact := t.New().Interface()
	if err := proto.Unmarshal(f.Payload, fact); err != nil {
		return nil, fmt.Errorf("fact %d in the journal: %w", f.Sequence, err)
	}
	return fact, nil
}

// folderName is where an attempt lives below the folder of attempts, and its working directory below theirs.
func folderName(execution string, attempt uint32) string {
	return execution + "-" + strconv.FormatUint(uint64(attempt), 10)
}

// ended is the list of attempts that are over, as a file: a Prepared that comes again after a restart is known by it. A line
// is an attempt's key and when it was over, in seconds since 1970.
type ended struct {
	path string
	torn atomic.Bool // The last line may have no end.
}

// load gives every entry that is not too old, oldest first, and writes the file anew without the others.
func (e *ended) load(age time.Duration, limit int, give func(key string, at time.Time)) error {
	data, err := os.ReadFile(e.path)
	if err != nil && !os.IsNotExist(err) {
		return fmt.Errorf("read list of ended attempts: %w", err)
	}
	lines := strings.Split(strings.TrimSuffix(string(data), "\n"), "\n")
	lines = lines[max(0, len(lines)-limit):]
	var kept strings.Builder
	for _, line := range lines {
		key, seconds, _ := strings.Cut(line, " ")
		n, err := strconv.ParseInt(seconds, 10, 64)
		if at := time.Unix(n, 0); err == nil && time.Since(at) < age { // A torn line is no line.
			give(key, at)
			kept.WriteString(line + "\n")
		}
	}
	if err := journal.WriteFile(e.path, []byte(kept.String())); err != nil {
		return fmt.Errorf("write list of ended attempts: %w", err)
	}
	return nil
}

// add appends an attempt.
func (e *ended) add(key string, at time.Time) error {
	f, err := os.OpenFile(e.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	line := key + " " + strconv.FormatInt(at.Unix(), 10) + "\n"
	if e.torn.Load() {
		line = "\n" + line
	}
	_, err = f.WriteString(line)
	e.torn.Store(err != nil)
	return err
}

// removeFolder removes an attempt's folder so that no half of it is ever taken for an attempt: the journal goes last.
func removeFolder(folder string) error {
	entries, err := os.ReadDir(folder)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() != journalFile {
			if err := os.RemoveAll(filepath.Join(folder, e.Name())); err != nil {
				return err
			}
		}
	}
	return os.RemoveAll(folder)
}

const journalFile = "journal"
