package runner_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"verbatim.dev/events"
	"verbatim.dev/events/codec"
	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/services/runner"
)

// noise is known output: the first n bytes of a generator.
func noise(seed byte, n int) []byte {
	data := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(data)
	return data
}

// playReserve is nil where there are no mount namespaces, and then nobody asks for it.
var playReserve func(dir string) error

// playChild is the process under test. Whatever it cannot do, it says on stderr with exit code 99.
func playChild(role string) int {
	name, argument, _ := strings.Cut(role, ":")
	switch name {
	case "reserve": // See TestWhatGivesRoomDoesNotWaitForRoom.
		if err := playReserve(argument); err != nil {
			return complain(err)
		}
		return 0
	case "noise": // Known output on both streams at once.
		var n int
		if _, err := fmt.Sscan(argument, &n); err != nil {
			return complain(err)
		}
		var both sync.WaitGroup
		for seed, f := range map[byte]*os.File{1: os.Stdout, 2: os.Stderr} {
			both.Go(func() {
				if _, err := f.Write(noise(seed, n)); err != nil {
					panic(err)
				}
			})
		}
		both.Wait()
		return 7
	case "line": // One endless line.
		var n int
		if _, err := fmt.Sscan(argument, &n); err != nil {
			return complain(err)
		}
		block := strings.Repeat("x", 1<<20)
		for ; n > 0; n-- {
			if _, err := io.WriteString(os.Stdout, block); err != nil {
				return complain(err)
			}
		}
		return 0
	case "slow-noise": // Known output on both streams, in small pieces with pauses, after reading all of stdin.
		return playSlowNoise(argument)
	case "slow-secrets": // Noise with a secret in it again and again, in pieces that tear it apart.
		_, _ = io.Copy(io.Discard, os.Stdin)
		var n int
		if _, err := fmt.Sscan(argument, &n); err != nil {
			return complain(err)
		}
		return writeSlowly(func(seed byte) []byte { return noiseWithSecrets(seed, n) })
	case "supervisor":
		return playSupervisor()
	case "worker":
		return playWorker(argument)
	case "blocked":
		return playBlocked(argument)
	case "blocking": // Are the three streams in blocking mode, as programs expect?
		for fd := range 3 {
			flags, _, errno := syscall.Syscall(syscall.SYS_FCNTL, uintptr(fd), syscall.F_GETFL, 0)
			if errno != 0 || flags&syscall.O_NONBLOCK != 0 {
				fmt.Printf("%d: flags %o, %v\n", fd, flags, errno)
			}
		}
		return 0
	case "group":
		sid, _, _ := syscall.Syscall(syscall.SYS_GETSID, 0, 0, 0)
		fmt.Print(os.Getpid() == syscall.Getpgrp(), os.Getpid() == int(sid))
		return 0
	case "ignore-term":
		signal.Ignore(syscall.SIGTERM)
		fmt.Println("ready")
		select {}
	case "runner-without-sigchld":
		return playRunner(shell(`echo all of it; echo and this >&2; exit 3`), func() error {
			signal.Ignore(syscall.SIGCHLD)
			return nil
		})
	case "runner-with-inherited":
		return playRunner(shell(`exec ls /proc/self/fd`), func() error {
			_, err := syscall.Dup(2) // Not closed on exec, like one that was left open by whoever started the runner.
			return err
		})
	case "runner-without-descriptors":
		return playRunner(shell(`echo never`), func() error {
			spare, err := os.Open(os.DevNull)
			if err != nil {
				return err
			}
			defer spare.Close()
			// Five more than are open now: enough for the journal and the spool, too few for three pipes.
			most := uint64(spare.Fd()) + 5
			return syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: most, Max: most})
		})
	default:
		return complain(fmt.Errorf("unknown role %q", role))
	}
}

func complain(err error) int {
	fmt.Fprintln(os.Stderr, err)
	return 99
}

// playSlowNoise takes about ten seconds, and reads its stdin all the time. It ends with the code it was given, or with 98 when stdin
// is not the noise of that seed.
func playSlowNoise(argument string) int {
	var n, code int
	if _, err := fmt.Sscanf(argument, "%d:%d", &n, &code); err != nil {
		return complain(err)
	}
	input := make(chan []byte, 1)
	go func() {
		data, _ := io.ReadAll(os.Stdin)
		input <- data
	}()
	writeSlowly(func(seed byte) []byte { return noise(seed, n) })
	if !bytes.Equal(<-input, noise(byte(code), 100_000+code)) {
		return 98
	}
	return code
}

// writeSlowly writes both streams in 200 pieces.
func writeSlowly(output func(seed byte) []byte) int {
	var both sync.WaitGroup
	for seed, f := range map[byte]*os.File{1: os.Stdout, 2: os.Stderr} {
		both.Go(func() {
			data := output(seed)
			for step := len(data) / 200; len(data) > 0; data = data[min(len(data), step):] {
				if _, err := f.Write(data[:min(len(data), step)]); err != nil {
					os.Exit(97)
				}
				<-time.After(time.Duration(rand.IntN(100)) * time.Millisecond)
			}
		})
	}
	both.Wait()
	return 0
}

const secretValue = "correct horse battery staple"

// noiseWithSecrets is noise in which a secret stands about every hundred bytes, sometimes twice in a row.
func noiseWithSecrets(seed byte, n int) []byte {
	data := noise(seed, n)
	for at := int(seed); at+len(secretValue) <= n; {
		at += copy(data[at:], secretValue) + int(data[at+len(secretValue)-1]&1)*(int(data[(at+57)%n])%150)
	}
	return data
}

// playBlocked writes noise, and writes to a file how many bytes it got rid of whenever nothing moved for half a second.
func playBlocked(argument string) int {
	size, report, _ := strings.Cut(argument, ":")
	n, err := strconv.Atoi(size)
	if err != nil {
		return complain(err)
	}
	if err := syscall.SetNonblock(1, true); err != nil {
		return complain(err)
	}
	out := os.NewFile(1, "stdout")
	for data, done := noise(1, n), 0; done < n; {
		_ = out.SetWriteDeadline(time.Now().Add(500 * time.Millisecond))
		k, err := out.Write(data[done:min(done+4096, n)])
		done += k
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			if err := os.WriteFile(report+".new", []byte(strconv.Itoa(done)), 0o600); err != nil {
				return complain(err)
			}
			if err := os.Rename(report+".new", report); err != nil {
				return complain(err)
			}
		case err != nil:
			return complain(err)
		}
	}
	return 0
}

// playRunner runs a runner in a process of which something was changed, gives it one spec, and prints the facts.
func playRunner(spec *executionv1.Prepared, change func() error) int {
	data, err := os.MkdirTemp("", "verbatim-runner-test-")
	if err != nil {
		return complain(err)
	}
	defer os.RemoveAll(data)
	l := newLog()
	r, err := runner.New(runner.Config{ID: "r1", DataDir: data}, l, func(context.Context, *message.Message) error { return nil })
	if err != nil {
		return complain(err)
	}
	if err := change(); err != nil {
		return complain(err)
	}
	id, err := events.NewExecutionID()
	if err != nil {
		return complain(err)
	}
	e, err := events.Producer{Name: "preparer", Source: "/verbatim/preparer"}.Event(id, 1, 1, time.Now(), spec)
	if err != nil {
		return complain(err)
	}
	m, err := codec.ToMessage(e)
	if err != nil {
		return complain(err)
	}
	m.Metadata["ce_traceparent"] = traceparent
	if err := r.Handle(m); err != nil {
		return complain(err)
	}
	for deadline := time.Now().Add(patience); len(r.Running()) > 0 && time.Now().Before(deadline); {
		<-time.After(time.Millisecond)
	}
	if err := r.Stop(context.Background()); err != nil {
		return complain(err)
	}
	for _, e := range l.of(id) {
		line, err := json.Marshal(frame{Type: e.Type, Payload: e.Payload})
		if err != nil {
			return complain(err)
		}
		fmt.Println(string(line))
	}
	return 0
}

// frame carries an event over a pipe.
type frame struct {
	Type    string
	Payload []byte
}
