// Package artifact is the store of artifacts: the files that attempts' output is kept in. It is a folder or a bucket, named by a URL:
//
//	file:///var/lib/verbatim/artifacts
//	s3://bucket?region=eu-central-1&prefix=verbatim/        also with &endpoint=https://…&use_path_style=true
//	azblob://container?prefix=verbatim/
//	gs://bucket?prefix=verbatim/                            in builds with -tags gcs
//
// Credentials come from the environment and from where the provider's own tools look for them, never from the URL; none is ever logged.
//
// Objects are whole or not there. One that is replaced is the old one until the new one is whole.
package artifact

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v5"
	"gocloud.dev/blob"
	"gocloud.dev/blob/fileblob"
	"gocloud.dev/gcerrors"
)

// schemes are those of the providers in this build, beside file.
var schemes = map[string]bool{"s3": true, "azblob": true}

// Store is a folder or a bucket. It is safe for concurrent use.
type Store struct {
	bucket *blob.Bucket
	// base is the URL that keys are appended to; it holds no options.
	base string
	// folder is set for a file store.
	folder string
}

// ErrAway says that a store cannot be reached at the moment. Whether its URL is right is not known.
var ErrAway = errors.New("artifact store does not answer")

// ErrNotFound says that there is no such object.
var ErrNotFound = errors.New("no such artifact")

// checkTime bounds the question whether a store can be written.
const checkTime = 8 * time.Second

// checkTries is how often it is asked when somebody else's request is in the way, with pauses that begin at half a second.
const checkTries = 5

// Open opens the store of a URL. Close it in the end.
func Open(ctx context.Context, address string) (*Store, error) {
	u, err := parse(address)
	if err != nil {
		return nil, err
	}
	prefix := u.Query().Get("prefix")
	if u.Scheme == "file" {
		return openFolder(u, prefix)
	}
	// The provider's error would repeat the URL.
	bucket, err := blob.OpenBucket(ctx, address)
	if err != nil {
		return nil, fmt.Errorf("artifacts: open %s://%s: %s", u.Scheme, u.Host, strings.ReplaceAll(err.Error(), address, u.Scheme+"://"+u.Host))
	}
	return &Store{bucket: bucket, base: u.Scheme + "://" + u.Host + "/" + prefix}, nil
}

// Validate says what is wrong with a URL, as far as that can be seen without asking.
func Validate(address string) error {
	_, err := parse(address)
	return err
}

func parse(address string) (*url.URL, error) {
	u, err := url.Parse(address)
	if err != nil || u.Scheme == "" {
		return nil, errors.New("artifacts: this is no URL of a store; like file:///var/lib/verbatim/artifacts or s3://bucket?region=eu-central-1")
	}
	prefix := u.Query().Get("prefix")
	switch {
	case u.User != nil:
		return nil, errors.New("artifacts: the URL holds a user; credentials come from the environment")
	case prefix != "" && (!strings.HasSuffix(prefix, "/") || strings.HasPrefix(prefix, "/") || slices.Contains(strings.Split(prefix, "/"), "..")):
		return nil, errors.New("artifacts: prefix must be like verbatim/output/")
	case u.Scheme == "file":
		if u.Host != "" || !filepath.IsAbs(u.Path) {
			return nil, errors.New("artifacts: a folder's URL is file:// and an absolute path: file:///var/lib/verbatim/artifacts")
		}
		for name := range u.Query() {
			if name != "prefix" {
				return nil, fmt.Errorf("artifacts: file:// takes no %q", name)
			}
		}
	case u.Scheme == "gs" && !schemes["gs"]:
		return nil, errors.New(`artifacts: gs:// is in builds with "-tags gcs" only; Google's S3-compatible interface works with s3://bucket?endpoint=https://storage.googleapis.com`)
	case !schemes[u.Scheme]:
		return nil, fmt.Errorf("artifacts: %q is no kind of store that is known: file, s3, azblob, gs", u.Scheme)
	case u.Host == "" || strings.Trim(u.Path, "/") != "":
		return nil, fmt.Errorf("artifacts: the URL of a bucket is %s://BUCKET?prefix=FOLDER/, without a path", u.Scheme)
	}
	if endpoint, err := url.Parse(u.Query().Get("endpoint")); err != nil || endpoint.User != nil {
		return nil, errors.New("artifacts: endpoint must be a URL without a user")
	}
	return u, nil
}

func openFolder(u *url.URL, prefix string) (*Store, error) {
	folder := filepath.Join(u.Path, filepath.FromSlash(prefix))
	// The folder is this service's own, and so are its temporary files: a rename must not cross file systems.
	bucket, err := fileblob.OpenBucket(folder, &fileblob.Options{CreateDir: true, DirFileMode: 0o700, NoTempDir: true, Metadata: fileblob.MetadataDontWrite})
	if err != nil {
		return nil, fmt.Errorf("artifacts: open folder %s: %w", folder, err)
	}
	return &Store{bucket: bucket, base: "file://" + (&url.URL{Path: filepath.ToSlash(folder)}).EscapedPath() + "/", folder: folder}, nil
}

// probe is the object that Check writes and removes. It has one name, so that a process that is killed in between leaves nothing that the next
// one does not remove.
const probe = "verbatim-probe"

// Check finds out whether the store can be written. ErrAway in its error says that the store cannot be reached; everything else
// is for its operator to put right. It takes at most 8 s.
func (s *Store) Check(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, checkTime)
	defer cancel()
	_, err := backoff.Retry(ctx, func() (struct{}, error) {
		err := s.ask(ctx)
		if err != nil && !conflict(err) {
			err = backoff.Permanent(err)
		}
		return struct{}{}, err
	}, backoff.WithMaxTries(checkTries))
	switch {
	case err == nil:
		return nil
	case away(err):
		return fmt.Errorf("artifacts: %w: %s: %w", ErrAway, s.base, err)
	}
	return fmt.Errorf("artifacts: %s cannot be written: %w (does it exist, and may this service write there?)", s.base, err)
}

// ask writes the probe and removes it. Somebody else may do the same in this moment.
func (s *Store) ask(ctx context.Context) error {
	if err := s.bucket.WriteAll(ctx, probe, []byte("verbatim"), &blob.WriterOptions{ContentType: "text/plain"}); err != nil {
		return err
	}
	return s.Delete(ctx, probe)
}

// conflict says that somebody else's request was in the way: a server whose objects are files removes a prefix with the last object in it, while
// another one is being written there.
func conflict(err error) bool {
	var server interface{ HTTPStatusCode() int }
	return errors.As(err, &server) && server.HTTPStatusCode() == http.StatusConflict
}

// away tells an outage from a mistake.
func away(err error) bool {
	var dns *net.DNSError
	if errors.As(err, &dns) && dns.IsNotFound {
		return false
	}
	var network net.Error
	var server interface{ HTTPStatusCode() int }
	return errors.Is(err, context.DeadlineExceeded) || errors.As(err, &network) || errors.As(err, &server) && server.HTTPStatusCode() >= 500
}

// URI names an object to people and to other programs.
func (s *Store) URI(key string) string { return s.base + key }

// Close releases the store.
func (s *Store) Close() error { return s.bucket.Close() }

// Object is one that is there.
type Object struct {
	Key  string
	Size uint64
}

// List calls f for the objects whose keys have a prefix, in the order of their keys, until it fails. f must not
// keep the store from being listed: no object is made below the prefix meanwhile.
func (s *Store) List(ctx context.Context, prefix string, f func(Object) error) error {
	for page := s.bucket.List(&blob.ListOptions{Prefix: prefix}); ; {
		o, err := page.Next(ctx)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			err = f(Object{o.Key, uint64(max(0, o.Size))})
		}
		if err != nil {
			return fmt.Errorf("list artifacts %s: %w", prefix, err)
		}
	}
}

// Days are the days (UTC) of which there may be artifacts, in their order.
func (s *Store) Days(ctx context.Context) (days []time.Time, err error) {
	for page := s.bucket.List(&blob.ListOptions{Delimiter: "/"}); ; {
		o, err := page.Next(ctx)
		if errors.Is(err, io.EOF) {
			return days, nil
		}
		if err != nil {
			return nil, fmt.Errorf("list the days of artifacts: %w", err)
		}
		if d, ok := day(strings.TrimSuffix(o.Key, "/")); ok && o.IsDir {
			days = append(days, d)
		}
	}
}

// ListDay calls f for the objects of a day as List does, and leaves out what is not of this package's naming.
func (s *Store) ListDay(ctx context.Context, day time.Time, f func(Object) error) error {
	return s.List(ctx, day.Format(time.DateOnly)+"/", func(o Object) error {
		if d, ours := DayOf(o.Key); !ours || !d.Equal(day) {
			return nil
		}
		return f(o)
	})
}

// Delete removes objects; one that is not there is removed already.
func (s *Store) Delete(ctx context.Context, keys ...string) error {
	for _, key := range keys {
		if err := s.bucket.Delete(ctx, key); err != nil && gcerrors.Code(err) != gcerrors.NotFound {
			return fmt.Errorf("delete artifact %s: %w", key, err)
		}
	}
	if s.folder != "" {
		s.prune(keys)
	}
	return nil
}

// prune removes the folders that became empty.
func (s *Store) prune(keys []string) {
	for _, key := range keys {
		for dir := filepath.Dir(filepath.FromSlash(key)); dir != "."; dir = filepath.Dir(dir) {
			if os.Remove(filepath.Join(s.folder, dir)) != nil {
				break // Something is in it.
			}
		}
	}
}

// Size is that of an object; ErrNotFound when there is none.
func (s *Store) Size(ctx context.Context, key string) (uint64, error) {
	a, err := s.bucket.Attributes(ctx, key)
	if err != nil {
		return 0, notFound(key, err)
	}
	return uint64(max(0, a.Size)), nil
}

// Read opens an object from an offset on; ErrNotFound when there is none. length is how much of it may be read; -1: all.
func (s *Store) Read(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	r, err := s.bucket.NewRangeReader(ctx, key, offset, length, nil)
	if err != nil {
		return nil, notFound(key, err)
	}
	return r, nil
}

func notFound(key string, err error) error {
	if gcerrors.Code(err) == gcerrors.NotFound {
		return fmt.Errorf("%w: %s", ErrNotFound, key)
	}
	return fmt.Errorf("read artifact %s: %w", key, err)
}
