package importer

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
)

// MaxResultBytes bounds a result file.
const MaxResultBytes = 1 << 20

// Names are the files of a folder. An absent one says nothing.
type Names struct {
	Stdout, Stderr, Result string
}

// DefaultNames are what most workers write.
var DefaultNames = Names{Stdout: "stdout.log", Stderr: "stderr.log", Result: "result.json"}

func (n Names) validate() error {
	seen := map[string]bool{}
	for _, name := range []string{n.Stdout, n.Stderr, n.Result} {
		if name == "" || !filepath.IsLocal(name) {
			return fmt.Errorf("%q is no name of a file in a folder", name)
		}
		if seen[name] {
			return fmt.Errorf("%q is named twice", name)
		}
		seen[name] = true
	}
	return nil
}

var streams = [2]struct {
	name   string
	stream executionv1.Stream
}{
	{"stdout", executionv1.Stream_STREAM_STDOUT}, {"stderr", executionv1.Stream_STREAM_STDERR},
}

// file is one stream's file; nil when there is none.
type file struct {
	name, path string
	size       uint64
	modified   time.Time
	sha256     [sha256.Size]byte
}

// Folder is what a worker left, read once: what it holds is known, and its execution's id with it.
type Folder struct {
	// Path is absolute.
	Path string
	// Host is this machine's name.
	Host string
	// Execution is the id the folder's content has, a UUIDv7.
	Execution string

	files      [2]*file
	resultName string // Empty when there is no result.
	resultText []byte
	result     result
	began      time.Time // The earliest time that anything tells of.
	last       time.Time // When a file was written last.
}

// Open reads a folder's result and digests its output. tell, if not nil, is called with the bytes read since the last call. It fails when there is
// neither output nor result, when a file cannot be read, and when it is none.
func Open(ctx context.Context, path string, names Names, tell func(uint64)) (*Folder, error) {
	if err := names.validate(); err != nil {
		return nil, err
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("folder: %w", err)
	}
	if info, err := os.Stat(path); err != nil {
		return nil, fmt.Errorf("folder: %w", err)
	} else if !info.IsDir() {
		return nil, fmt.Errorf("%s is no folder; name the one that holds %s", path, names.Stdout)
	}
	f := &Folder{Path: path}
	if f.Host, err = os.Hostname(); err != nil {
		return nil, fmt.Errorf("name of this machine: %w", err)
	}
	identity := sha256.New()
	part(identity, []byte(f.Host), []byte(f.Path))
	for i, name := range []string{names.Stdout, names.Stderr} {
		if f.files[i], err = digest(ctx, path, name, tell); err != nil {
			return nil, err
		}
		if g := f.files[i]; g != nil {
			f.saw(g.modified)
			part(identity, []byte(streams[i].name), g.sha256[:])
		}
	}
	modified, err := f.readResult(path, names.Result)
	if err != nil {
		return nil, err
	}
	if f.resultName != "" {
		f.saw(modified)
		part(identity, []byte("result"), f.resultText)
	}
	if f.files[0] == nil && f.files[1] == nil && f.resultName == "" {
		return nil, fmt.Errorf("%s holds neither %s nor %s nor %s", path, names.Stdout, names.Stderr, names.Result)
	}
	for _, t := range []time.Time{f.result.Ended, f.result.Started} {
		if !t.IsZero() {
			f.began = t
		}
	}
	f.Execution = executionID(f.began, identity.Sum(nil))
	return f, nil
}

func (f *Folder) saw(t time.Time) {
	if f.began.IsZero() || t.Before(f.began) {
		f.began = t
	}
	if t.After(f.last) {
		f.last = t
	}
}

// part writes byte strings so that no two lists of them are the same bytes.
func part(h hash.Hash, parts ...[]byte) {
	var n [8]byte
	for _, p := range parts {
		binary.BigEndian.PutUint64(n[:], uint64(len(p)))
		h.Write(n[:])
		h.Write(p)
	}
}

// executionID is a UUIDv7 of a time and of 74 bits of a digest.
func executionID(t time.Time, sum []byte) string {
	var id uuid.UUID
	copy(id[:], sum)
	if t = sane(t); t.IsZero() {
		t = time.Unix(946684800, 0) // A file's time may be anything; an id's is in 2000 or later.
	}
	var ms [8]byte
	binary.BigEndian.PutUint64(ms[:], uint64(t.UnixMilli()))
	copy(id[:6], ms[2:])
	id[6] = id[6]&0x0f | 0x70
	id[8] = id[8]&0x3f | 0x80
	return id.String()
}

// open opens a regular file; nil when there is none of that name.
func open(folder, name string) (*os.File, fs.FileInfo, error) {
	path := filepath.Join(folder, name)
	info, err := os.Stat(path) // Before it is opened: opening a pipe waits for its writer.
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if _, err := os.Lstat(path); err == nil {
			return nil, nil, fmt.Errorf("%s is a link to nowhere", path)
		}
		return nil, nil, nil
	case err != nil:
		return nil, nil, err
	case !info.Mode().IsRegular():
		return nil, nil, fmt.Errorf("%s is no regular file", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, err
	}
	if info, err = f.Stat(); err != nil {
		return nil, nil, errors.Join(err, f.Close())
	}
	return f, info, nil
}

func digest(ctx context.Context, folder, name string, tell func(uint64)) (*file, error) {
	in, info, err := open(folder, name)
	if in == nil {
		return nil, err
	}
	defer in.Close()
	h := sha256.New()
	n, err := io.Copy(io.MultiWriter(h, teller{tell}), reader{ctx, in})
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", in.Name(), err)
	}
	f := &file{name: name, path: in.Name(), size: uint64(n), modified: info.ModTime().UTC()}
	h.Sum(f.sha256[:0])
	return f, nil
}

// reader ends with its context.
type reader struct {
	ctx context.Context //nolint:containedctx // It lives as long as one read of a file.
	io.Reader
}

func (r reader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.Reader.Read(p)
}

type teller struct{ tell func(uint64) }

func (t teller) Write(p []byte) (int, error) {
	if t.tell != nil {
		t.tell(uint64(len(p)))
	}
	return len(p), nil
}

func (f *Folder) readResult(folder, name string) (time.Time, error) {
	in, info, err := open(folder, name)
	if in == nil {
		return time.Time{}, err
	}
	defer in.Close()
	text, err := io.ReadAll(io.LimitReader(in, MaxResultBytes+1))
	switch {
	case err != nil:
		return time.Time{}, fmt.Errorf("read %s: %w", in.Name(), err)
	case len(text) > MaxResultBytes:
		return time.Time{}, fmt.Errorf("%s has %d bytes, a result may have %d: name the right file with --result", in.Name(), info.Size(), MaxResultBytes)
	}
	f.resultName, f.resultText, f.result = name, text, readResult(text)
	return info.ModTime().UTC(), nil
}

// Below lists every folder in root, itself too, that holds one of the files that give output, in order.
func Below(root string, names Names) ([]string, error) {
	var found []string
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		for _, name := range []string{names.Stdout, names.Stderr} {
			if !d.IsDir() && strings.HasSuffix(path, string(filepath.Separator)+name) {
				found = append(found, strings.TrimSuffix(path, string(filepath.Separator)+name))
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("look through %s: %w", root, err)
	}
	slices.Sort(found)
	return slices.Compact(found), nil
}
