package spool_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/services/runner/spool"
)

// fullDiskVariable makes the test binary play a worker on a disk of its own. It names the play and the place.
const fullDiskVariable = "VERBATIM_TEST_FULL_DISK"

// plays are what happens there.
var plays = map[string]func(dir string) error{
	"publish": func(dir string) error { return fullDisk(dir, os.Pipe) },
	"copy":    func(dir string) error { return fullDisk(dir, socket) }, // splice(2) takes a pipe only.
	"held":    heldOnAFullDisk,
	"little":  littleIsPublished,
}

func socket() (read, write *os.File, err error) {
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	return os.NewFile(uintptr(ends[0]), "read"), os.NewFile(uintptr(ends[1]), "write"), err
}

// A disk that is really full makes the process wait, and nothing is lost: what is published makes room again. The
// disk is a small tmpfs in a mount namespace of a child, and is gone with it.
func TestAFullDiskMakesTheProcessWait(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"publish", "copy"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			play(t, name)
		})
	}
}

// The disk is full when the time to read a pipe that somebody holds is over, and has room later: what the pipe has is kept, and the reading
// ends.
func TestAHeldPipeEndsWhenTheDiskHasRoomAgain(t *testing.T) {
	t.Parallel()
	play(t, "held")
}

// What is published is less than is given back at once, and nothing more comes that would make it enough: on a full disk it is given back
// all the same.
func TestAFullDiskGetsBackWhatLittleIsPublished(t *testing.T) {
	t.Parallel()
	play(t, "little")
}

func play(t *testing.T, name string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := exec.CommandContext(t.Context(), self)
	c.Env = append(os.Environ(), fullDiskVariable+"="+name+":"+t.TempDir())
	c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	if os.Getuid() != 0 {
		c.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		c.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		c.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

func playFullDisk(what string) int {
	name, dir, _ := strings.Cut(what, ":")
	err := mountSmall(dir)
	if err == nil {
		err = plays[name](dir)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

const diskBytes = 4 << 20

func mountSmall(dir string) error {
	// Else the mount would be seen outside.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("disk", dir, "tmpfs", 0, fmt.Sprintf("size=%d", diskBytes)); err != nil {
		return fmt.Errorf("mount a small disk: %w", err)
	}
	return nil
}

// empty is a stream that is at its end.
func empty() (*os.File, error) {
	read, write, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	return read, write.Close()
}

// readBoth reads both streams, and has room for the end of whoever writes.
func readBoth(s *spool.Spool) (ended chan error) {
	ended = make(chan error, 3)
	for _, id := range []executionv1.Stream{stdout, stderr} {
		go func() { ended <- s.Read(context.Background(), id) }()
	}
	return ended
}

func littleIsPublished(dir string) error {
	c := config()
	c.ChunkBytes = 64 << 10
	s, err := spool.Open(c, dir, spool.Mark{}, spool.Mark{})
	if err != nil {
		return err
	}
	defer s.Close()
	read, write, err := os.Pipe()
	if err != nil {
		return err
	}
	none, err := empty()
	if err != nil {
		return err
	}
	s.Attach(read, none)
	ended := readBoth(s)
	const first, second = 12 * 64 << 10, 6 * 64 << 10
	if _, err := write.Write(make([]byte, first)); err != nil {
		return err
	}
	for at := 0; at < first; {
		chunk, err := s.Next(context.Background())
		if err != nil {
			return err
		}
		at += chunk.Length
		s.Trim(stdout, uint64(at))
	}
	if err := os.WriteFile(dir+"/filler", make([]byte, diskBytes), 0o600); !errors.Is(err, syscall.ENOSPC) {
		return fmt.Errorf("fill the disk: %w", err)
	}
	go func() {
		_, err := write.Write(make([]byte, second))
		ended <- errors.Join(err, write.Close())
	}()
	for range 3 {
		select {
		case err := <-ended:
			if err != nil {
				return err
			}
		case <-time.After(patience / 4):
			return fmt.Errorf("the reading stands still at %d bytes", s.Captured(stdout))
		}
	}
	if n := s.Captured(stdout); n != first+second {
		return fmt.Errorf("%d bytes are captured", n)
	}
	return nil
}

func heldOnAFullDisk(dir string) error {
	s, err := spool.Open(config(), dir, spool.Mark{}, spool.Mark{})
	if err != nil {
		return err
	}
	defer s.Close()
	read, write, err := os.Pipe()
	if err != nil {
		return err
	}
	defer write.Close() // It is held until the end.
	none, err := empty()
	if err != nil {
		return err
	}
	filler := dir + "/filler"
	if err := os.WriteFile(filler, make([]byte, diskBytes+1), 0o600); !errors.Is(err, syscall.ENOSPC) {
		return fmt.Errorf("fill the disk: %w", err)
	}
	if _, err := write.Write(make([]byte, 1000)); err != nil {
		return err
	}
	s.Attach(read, none)
	s.Stop(time.Now().Add(300 * time.Millisecond)) // The first try finds a full disk before that, another one after that.
	ended := readBoth(s)
	<-time.After(time.Second)
	if n := s.Captured(stdout); n != 0 {
		return fmt.Errorf("%d bytes were captured with no room for them", n)
	}
	if err := os.Remove(filler); err != nil {
		return err
	}
	held := 0
	for range 2 {
		select {
		case err := <-ended:
			if errors.Is(err, spool.ErrHeld) {
				held++
			} else if err != nil {
				return err
			}
		case <-time.After(patience / 4):
			return errors.New("the reading does not end")
		}
	}
	if n := s.Captured(stdout); held != 1 || n != 1000 {
		return fmt.Errorf("%d bytes are captured, and %d pipes are held", n, held)
	}
	return nil
}

func fullDisk(dir string, pipe func() (read, write *os.File, err error)) error {
	const total = 24 << 20
	var complaint bytes.Buffer
	c := config()
	c.ChunkBytes, c.Logger = 64<<10, slog.New(slog.NewTextHandler(&complaint, nil))
	s, err := spool.Open(c, dir, spool.Mark{}, spool.Mark{})
	if err != nil {
		return err
	}
	defer s.Close()
	read, write, err := pipe()
	if err != nil {
		return err
	}
	none, err := empty()
	if err != nil {
		return err
	}
	s.Attach(read, none)
	ended := readBoth(s)
	data := make([]byte, total)
	_, _ = rand.NewChaCha8([32]byte{3}).Read(data)
	go func() {
		_, err := write.Write(data)
		ended <- errors.Join(err, write.Close())
	}()
	// Nobody publishes until the disk has been full for a while.
	var fs unix.Statfs_t
	for deadline := time.Now().Add(patience); ; <-time.After(10 * time.Millisecond) {
		if err := unix.Statfs(dir, &fs); err != nil {
			return err
		}
		if fs.Bavail == 0 {
			break
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the disk does not fill up: %d blocks are free", fs.Bavail)
		}
	}
	full := s.Captured(stdout)
	<-time.After(500 * time.Millisecond) // Longer than the disk is left alone for.
	if n := s.Captured(stdout); n != full {
		return fmt.Errorf("%d bytes were captured with no room for them", n-full)
	}
	var out collected
	for {
		chunk, err := s.Next(context.Background())
		if errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return err
		}
		part, err := s.Load(chunk)
		if err != nil || chunk.Offset != uint64(len(out[0])) {
			return fmt.Errorf("chunk at %d after %d bytes: %w", chunk.Offset, len(out[0]), err)
		}
		out[0] = append(out[0], part...)
		s.Trim(stdout, chunk.Offset+uint64(chunk.Length))
	}
	for range 3 {
		if err := <-ended; err != nil {
			return err
		}
	}
	if !bytes.Equal(out[0], data) {
		return fmt.Errorf("%d bytes came out, not those that were written", len(out[0]))
	}
	if !strings.Contains(complaint.String(), "no room for the spool") {
		return fmt.Errorf("nobody said that the disk was full: %q", complaint.String())
	}
	return nil
}
