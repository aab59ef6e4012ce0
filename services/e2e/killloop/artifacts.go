package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"verbatim.dev/services/artifact"
)

// bucket is where artifacts go: an S3-compatible server that is killed too, or a folder.
type bucket struct {
	url     string
	store   *artifact.Store
	program string // versitygw; empty: there is no server.
	addr    string
	dir     string
	run     *exec.Cmd
}

const (
	bucketName   = "artifacts"
	bucketAccess = "kill-loop"
	bucketSecret = "kill-loop-secret"
)

// startBucket starts what takes the artifacts.
func (p plan) startBucket(ctx context.Context) (b *bucket, err error) {
	b = &bucket{program: p.s3, dir: filepath.Join(p.dir, "bucket")}
	b.url = "file://" + b.dir
	if b.program != "" {
		for _, name := range []string{"meta", "data/" + bucketName} {
			if err := os.MkdirAll(filepath.Join(b.dir, name), 0o700); err != nil {
				return nil, err
			}
		}
		if b.addr, err = freeAddress(ctx); err != nil {
			return nil, err
		}
		err = errors.Join(os.Setenv("AWS_ACCESS_KEY_ID", bucketAccess), os.Setenv("AWS_SECRET_ACCESS_KEY", bucketSecret))
		if err == nil {
			err = b.start(ctx)
		}
		if err != nil {
			return nil, err
		}
		b.url = "s3://" + bucketName + "?region=us-east-1&use_path_style=true&endpoint=http://" + b.addr
	}
	b.store, err = artifact.Open(ctx, b.url)
	return b, err
}

func (b *bucket) start(ctx context.Context) error {
	b.run = exec.CommandContext(context.WithoutCancel(ctx), b.program, "--port", b.addr, "--quiet",
		"posix", "--sidecar", filepath.Join(b.dir, "meta"), filepath.Join(b.dir, "data"))
	b.run.Env = append(os.Environ(), "ROOT_ACCESS_KEY="+bucketAccess, "ROOT_SECRET_KEY="+bucketSecret)
	if err := b.run.Start(); err != nil {
		return fmt.Errorf("start versitygw: %w", err)
	}
	return poll(ctx, func() error {
		c, err := (&net.Dialer{}).DialContext(ctx, "tcp", b.addr)
		if err == nil {
			err = c.Close()
		}
		return err
	})
}

func (b *bucket) kill() {
	if b.run != nil {
		_ = b.run.Process.Kill()
		_ = b.run.Wait() // It was killed.
		b.run = nil
	}
}

// restartBucket kills the server, lets the recorder be killed and started while it is away, and starts it again.
func (l *loop) restartBucket(ctx context.Context) error {
	l.bucket.kill()
	l.count("s3")
	if err := l.killSink(ctx); err != nil {
		return err
	}
	if err := pause(ctx, 2*time.Second); err != nil {
		return err
	}
	return l.bucket.start(ctx)
}

// files checks that what is in the files is what was written, and that it was said once.
func (v *verdict) files(ctx context.Context, stdout, stderr []byte) error {
	err := poll(ctx, func() error { // The last kill may have been a moment ago.
		row, err := v.loop.api.Get(ctx, v.id)
		if err == nil && (row.StdoutLog == nil || row.StderrLog == nil) {
			err = errors.New("its artifacts are not recorded")
		}
		v.row = row
		return err
	})
	if err != nil {
		v.bad("%v", err)
		return nil
	}
	said := 0
	for fact, err := range v.loop.api.Events(ctx, v.id) {
		if err != nil {
			return err
		}
		if fact.Name == "OutputRecorded" {
			said++
		}
	}
	if said != 1 {
		v.bad("%d facts OutputRecorded", said)
	}
	for stream, want := range map[string][]byte{"stdout": stdout, "stderr": stderr} {
		key, err := artifact.Attempt{Execution: v.id, Number: 1}.Key(stream, artifact.Plain)
		if err != nil {
			return err
		}
		got, err := v.loop.bucket.read(ctx, key)
		if err != nil {
			v.bad("%s: %v", stream, err)
			continue
		}
		v.bytes += uint64(len(got))
		if !bytes.Equal(got, want) {
			v.bad("%s: the file has %d bytes, %d were written, or they differ", stream, len(got), len(want))
		}
		match, size := v.row.StdoutLogMatch, v.row.StdoutLogBytes
		if stream == "stderr" {
			match, size = v.row.StderrLogMatch, v.row.StderrLogBytes
		}
		if match == nil || !*match || size == nil || *size != uint64(len(want)) {
			v.bad("%s: the row says of its file: match %v, size %v", stream, match, size)
		}
	}
	return nil
}

func (b *bucket) read(ctx context.Context, key string) ([]byte, error) {
	r, err := b.store.Read(ctx, key, 0, -1)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

// leftInBucket lists the objects that are no artifacts: parts, and what a killed writer left. They are removed after OutputRecorded, so
// they may be there for a moment.
func (l *loop) leftInBucket(ctx context.Context) (left []string) {
	_ = poll(ctx, func() error {
		left = nil
		err := l.bucket.store.List(ctx, "", func(o artifact.Object) error {
			if !strings.HasSuffix(o.Key, ".log") {
				left = append(left, "left in the bucket: "+o.Key)
			}
			return nil
		})
		if err == nil && len(left) > 0 {
			err = errors.New("something is left")
		}
		return err
	})
	return left
}
