package runner_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
	"verbatim.dev/services/runner"
	"verbatim.dev/services/runner/cgroup"
	"verbatim.dev/services/runner/journal"
	"verbatim.dev/services/runner/protocol"
	"verbatim.dev/services/runner/supervisor"
)

// The kill tests run a supervisor and its workers as processes of their own: the test binary again. The log is here: a
// worker reaches it through a socket in the data folder, publishes there, and gets its work from there. Work stays
// queued until it was claimed, and what is claimed is remembered, as the broker does it.

// wire is a message between a worker and the log.
type wire struct {
	Kind    string // publish, next, claim, committed
	Topic   string
	UUID    string
	Payload []byte
	Meta    map[string]string
	Batch   []wire
	Offset  int64
	OK      bool
}

func writeWire(c io.Writer, w wire) error {
	body, err := json.Marshal(w)
	if err != nil {
		return err
	}
	_, err = c.Write(append(binary.LittleEndian.AppendUint32(nil, uint32(len(body))), body...))
	return err
}

func readWire(c io.Reader) (w wire, err error) {
	var header [4]byte
	if _, err := io.ReadFull(c, header[:]); err != nil {
		return w, err
	}
	body := make([]byte, binary.LittleEndian.Uint32(header[:]))
	if _, err := io.ReadFull(c, body); err != nil {
		return w, err
	}
	return w, json.Unmarshal(body, &w)
}

func toWire(m *message.Message) wire {
	return wire{UUID: m.UUID, Payload: m.Payload, Meta: m.Metadata}
}

func (w wire) message() *message.Message {
	m := message.NewMessage(w.UUID, w.Payload)
	m.Metadata = w.Meta
	return m
}

// remoteLog is the worker's end.
type remoteLog struct {
	mu   sync.Mutex
	conn net.Conn
}

func (r *remoteLog) call(w wire) (wire, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := writeWire(r.conn, w); err != nil {
		return wire{}, err
	}
	return readWire(r.conn)
}

func (r *remoteLog) PublishContext(_ context.Context, topic string, msgs ...*message.Message) error {
	w := wire{Kind: "publish", Topic: topic}
	for _, m := range msgs {
		w.Batch = append(w.Batch, toWire(m))
	}
	answer, err := r.call(w)
	if err == nil && !answer.OK {
		err = errors.New("refused")
	}
	return err
}

// playWorker is a worker: it recovers, takes work until TERM, and stops.
func playWorker(data string) int {
	dial := func() *remoteLog {
		c, err := net.Dial("unix", data+"/log.sock")
		if err != nil {
			panic(err)
		}
		return &remoteLog{conn: c}
	}
	conn, err := protocol.New(os.NewFile(supervisor.WorkerSocket, "socket"))
	if err != nil {
		return complain(err)
	}
	client := supervisor.NewClient(conn)
	facts, work := dial(), dial()
	pauseAt := os.Getenv(pauseVariable)
	pause := func(point string) { // The test kills us here.
		if _, err := os.Stat(data + "/" + point); pauseAt == point && err != nil {
			_ = os.WriteFile(data+"/"+point, nil, 0o600)
			select {}
		}
	}
	claim := func(_ context.Context, m *message.Message) error {
		pause("before-commit")
		var offset int64
		_, _ = fmt.Sscan(m.Metadata["offset"], &offset)
		answer, err := work.call(wire{Kind: "claim", Offset: offset})
		if err == nil && !answer.OK {
			err = errors.New("claim refused")
		}
		pause("after-commit")
		return err
	}
	c := runner.Config{
		ID: "r1", DataDir: data, Supervisor: client, Slots: 200, Grace: time.Second, DrainTime: time.Second,
		Logger: slog.New(slog.NewTextHandler(os.Stderr, nil)),
		Committed: func(_ context.Context, l journal.Launch) (runner.Whose, error) {
			answer, err := work.call(wire{Kind: "committed", UUID: l.Execution})
			if answer.OK {
				return runner.Mine, err
			}
			return runner.Nobodys, err
		},
	}
	var r *runner.Runner
	for {
		r, err = runner.New(c, facts, claim)
		if !errors.Is(err, runner.ErrLocked) {
			break
		}
		<-time.After(10 * time.Millisecond)
	}
	if err != nil {
		return complain(err)
	}
	if err := r.Recover(context.Background()); err != nil {
		return complain(err)
	}
	if err := client.Ready(); err != nil {
		return complain(err)
	}
	return serveWorker(r, client, work)
}

func serveWorker(r *runner.Runner, client *supervisor.Client, work *remoteLog) int {
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	for {
		select {
		case <-client.Gone():
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			defer cancel()
			if err := r.Stop(ctx); err != nil {
				return complain(err)
			}
			return 0
		case <-term:
			if err := r.Stop(context.Background()); err != nil {
				return complain(err)
			}
			return 0
		default:
		}
		next, err := work.call(wire{Kind: "next"})
		if err != nil {
			return complain(err)
		}
		if !next.OK {
			<-time.After(2 * time.Millisecond)
			continue
		}
		m := next.message()
		m.Metadata["offset"] = fmt.Sprint(next.Offset)
		_ = r.Handle(m) // An error leaves it in the queue.
	}
}

// queue is the work topic of the tests.
type queue struct {
	mu    sync.Mutex
	work  []wire
	done  int // Claimed: below it nothing is given out again.
	names []string
}

func (q *queue) add(m *message.Message, execution string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.work = append(q.work, toWire(m))
	q.names = append(q.names, execution)
}

func (q *queue) answer(w wire) wire {
	q.mu.Lock()
	defer q.mu.Unlock()
	switch w.Kind {
	case "next":
		if q.done == len(q.work) {
			return wire{}
		}
		next := q.work[q.done]
		next.Meta = map[string]string{}
		for k, v := range q.work[q.done].Meta {
			next.Meta[k] = v
		}
		next.OK, next.Offset = true, int64(q.done)
		return next
	case "claim":
		q.done = max(q.done, int(w.Offset)+1)
		return wire{OK: true}
	case "committed":
		for i, name := range q.names {
			if name == w.UUID {
				return wire{OK: q.done > i}
			}
		}
	}
	return wire{}
}

// stage is a supervisor with its log.
type stage struct {
	data  string
	log   *log
	queue *queue
	main  *exec.Cmd
	ended chan struct{}
}

const (
	pauseVariable = "VERBATIM_TEST_PAUSE"
	dataVariable  = "VERBATIM_TEST_DATA"
)

func newStage(t *testing.T, pauseAt string) *stage {
	t.Helper()
	// The path of a Unix socket is short (108 bytes, unix(7)).
	data, err := os.MkdirTemp("", "vk") //nolint:usetesting // The name would be too long.
	if err != nil {
		t.Fatal(err)
	}
	s := &stage{data: data, log: newLog(), queue: &queue{}}
	l, err := net.Listen("unix", data+"/log.sock")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() { s.accept(l, &serving) })
	s.startSupervisor(t, pauseAt)
	t.Cleanup(func() {
		s.stop(t)
		_ = l.Close()
		serving.Wait()
		_ = os.RemoveAll(data)
	})
	return s
}

func (s *stage) accept(l net.Listener, serving *sync.WaitGroup) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		serving.Go(func() {
			defer c.Close()
			for {
				w, err := readWire(c)
				if err != nil {
					return
				}
				answer := wire{}
				if w.Kind == "publish" {
					var batch []*message.Message
					for _, b := range w.Batch {
						batch = append(batch, b.message())
					}
					answer.OK = s.log.PublishContext(context.Background(), w.Topic, batch...) == nil
				} else {
					answer = s.queue.answer(w)
				}
				if writeWire(c, answer) != nil {
					return
				}
			}
		})
	}
}

func (s *stage) startSupervisor(t *testing.T, pauseAt string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	log, err := os.OpenFile(filepath.Join(s.data, "stderr"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	c := exec.Command(self)
	c.Env = append(os.Environ(), childVariable+"=supervisor", dataVariable+"="+s.data, pauseVariable+"="+pauseAt)
	c.Stderr = log
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		_ = c.Wait()
		close(ended)
	}()
	s.main, s.ended = c, ended
}

func (s *stage) stop(t *testing.T) {
	_ = s.main.Process.Signal(syscall.SIGTERM)
	select {
	case <-s.ended:
	case <-time.After(patience):
		t.Error("the supervisor does not stop")
		_ = s.main.Process.Kill()
		<-s.ended
	}
	if t.Failed() {
		text, _ := os.ReadFile(filepath.Join(s.data, "stderr"))
		t.Logf("%s", text[max(0, len(text)-8000):])
	}
}

// worker is the number of the worker that runs now, 0 when there is none.
func (s *stage) worker() int {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", s.main.Process.Pid, s.main.Process.Pid))
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", s.main.Process.Pid))
	for _, task := range tasks {
		more, _ := os.ReadFile(task)
		text = append(append(text, ' '), more...)
	}
	for _, pid := range strings.Fields(string(text)) {
		env, _ := os.ReadFile("/proc/" + pid + "/environ")
		if bytes.Contains(env, []byte(childVariable+"=worker")) {
			n := 0
			_, _ = fmt.Sscan(pid, &n)
			return n
		}
	}
	return 0
}

func (s *stage) start(t *testing.T, spec *executionv1.Prepared) string {
	t.Helper()
	m, id := prepared(t, spec)
	s.queue.add(m, id)
	return id
}

func playSupervisor() int {
	data := os.Getenv(dataVariable)
	self, err := os.Executable()
	if err != nil {
		return complain(err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	renew, signals := make(chan struct{}), make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGUSR2)
	go func() {
		for range signals {
			renew <- struct{}{}
		}
	}()
	var handedOn *os.File
	if fd, err := strconv.Atoi(os.Getenv(supervisor.StateVariable)); err == nil {
		handedOn = os.NewFile(uintptr(fd), "state")
		_ = os.Unsetenv(supervisor.StateVariable)
	}
	var environment []string
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, childVariable+"=") {
			environment = append(environment, v)
		}
	}
	err = supervisor.Run(ctx, supervisor.Config{
		Program: self, Worker: []string{"worker"}, Environment: append(environment, childVariable+"=worker:"+data),
		Stderr: os.Stderr, StopTime: 20 * time.Second, Logger: slog.New(slog.NewTextHandler(os.Stderr, nil)),
		Renew: renew, State: handedOn, Groups: cgroup.Open("r1", data, slog.New(slog.DiscardHandler)),
	})
	if err != nil {
		return complain(err)
	}
	return 0
}
