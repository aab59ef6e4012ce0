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
	"math/rand/v2"
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
	"google.golang.org/protobuf/types/known/durationpb"

	"verbatim.dev/events"
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
		ID: "r1", DataDir: data, Supervisor: client, Slots: 200, Grace: time.Second,
		Logger: slog.New(slog.NewTextHandler(os.Stderr, nil)),
		Committed: func(_ context.Context, l journal.Launch) (bool, error) {
			answer, err := work.call(wire{Kind: "committed", UUID: l.Execution})
			return answer.OK, err
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

// The worker is killed again and again, at random moments, while processes write known bytes to both streams. As long as
// there are kills to come, a new execution takes the place of each that is over.
func TestKillLoop(t *testing.T) {
	const running, kills, size = 16, 30, 400_000
	s := newStage(t, "")
	want := make(map[string]int)
	var open []string
	begin := func() string {
		i := len(want) % 90
		spec := child(fmt.Sprintf("slow-noise:%d:%d", size, i))
		spec.Stdin = noise(byte(i), 100_000+i)
		id := s.start(t, spec)
		want[id] = i
		return id
	}
	for range running {
		open = append(open, begin())
	}
	last := 0
	for kill := range kills {
		var pid int
		eventually(t, "another worker is there", func() bool {
			pid = s.worker()
			return pid != 0 && pid != last
		})
		if kill%3 == 0 { // In the middle of its start, perhaps.
			<-time.After(time.Duration(rand.IntN(200)) * time.Millisecond)
		} else { // At work, however slow the machine is.
			facts := s.log.count() + 1 + rand.IntN(40)
			eventually(t, "the worker publishes", func() bool { return s.log.count() >= facts })
		}
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatalf("worker is gone already: %v", err)
		}
		last = pid
		for i, id := range open {
			if s.sealed(id) {
				open[i] = begin()
			}
		}
	}
	for id, i := range want {
		s.wants(t, id, i, size)
	}
	t.Logf("%d kills over %d attempts", kills, len(want))
}

// count is how many facts were published, resends too.
func (l *log) count() (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, ids := range l.calls {
		n += len(ids)
	}
	return n
}

// wants checks one attempt of the kill loop.
func (s *stage) wants(t *testing.T, id string, code, size int) {
	t.Helper()
	story := s.log.tell(t, id)
	if got := one[*executionv1.ProcessExited](t, story).GetExitCode(); got != int32(code) {
		t.Errorf("%s: exit code %d, want %d", id, got, code)
	}
	for seed, stream := range map[byte]executionv1.Stream{1: stdout, 2: stderr} {
		if !bytes.Equal(story.output[stream], noise(seed, size)) {
			t.Errorf("%s: %s has %d bytes, not the ones that were written", id, stream, len(story.output[stream]))
		}
	}
	if n := len(all[*executionv1.ProcessStarted](story)); n != 1 {
		t.Errorf("%s: started %d times", id, n)
	}
	if n := len(all[*executionv1.StdinWriteFailed](story)); n != 0 {
		t.Errorf("%s: stdin was not taken whole", id)
	}
	s.same(t, id)
}

func (s *stage) sealed(id string) bool {
	facts := s.log.of(id)
	return len(facts) > 0 && facts[len(facts)-1].Type == events.TypeOutputSealed
}

// same checks that what came twice is the same fact, byte for byte.
func (s *stage) same(t *testing.T, id string) {
	t.Helper()
	seen := make(map[string]events.Event)
	for _, e := range s.log.of(id) {
		if first, again := seen[e.ID]; again && (!bytes.Equal(first.Payload, e.Payload) || first.Type != e.Type || !first.Time.Equal(e.Time)) {
			t.Errorf("%s came twice and differs:\n%v\n%v", e.ID, first, e)
		}
		seen[e.ID] = e
	}
}

// A kill between writing down the claim and the commit, and between the commit and the start: started exactly once.
func TestKilledWhileClaiming(t *testing.T) {
	for _, point := range []string{"before-commit", "after-commit"} {
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			s := newStage(t, point)
			marks := filepath.Join(t.TempDir(), "starts")
			id := s.start(t, shell("echo x >>"+marks+"; echo done"))
			eventually(t, "the worker is at the point", func() bool {
				_, err := os.Stat(s.data + "/" + point)
				return err == nil
			})
			if err := syscall.Kill(s.worker(), syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			story := s.log.tell(t, id)
			if text, err := os.ReadFile(marks); err != nil || string(text) != "x\n" {
				t.Errorf("starts: %q, %v", text, err)
			}
			if got := string(story.output[stdout]); got != "done\n" {
				t.Errorf("stdout %q", got)
			}
		})
	}
}

// The process ends while there is no worker: the next one says how.
func TestExitWhileWorkerIsDead(t *testing.T) {
	s := newStage(t, "")
	fifo := mkfifo(t)
	id := s.start(t, shell(`echo up; read x <`+fifo+`; echo last words; exit 9`))
	s.log.awaitOutput(t, id, stdout, "up")
	worker := s.worker()
	// Stopped, so that it takes nothing in; killed when the process is over.
	if err := syscall.Kill(worker, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	writeFIFO(t, fifo, "go\n")
	eventually(t, "the exit is written down", func() bool {
		found, _ := filepath.Glob(s.data + "/attempts/*/exit")
		return len(found) == 1
	})
	if err := syscall.Kill(worker, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	story := s.log.tell(t, id)
	if got := string(story.output[stdout]); got != "up\nlast words\n" || one[*executionv1.ProcessExited](t, story).GetExitCode() != 9 {
		t.Errorf("stdout %q", got)
	}
}

// A termination goes on where the killed worker left it: one TERM, then KILL.
func TestKilledBetweenTermAndKill(t *testing.T) {
	s := newStage(t, "")
	spec := child("ignore-term")
	spec.Timeout, spec.Grace = durationpb.New(time.Second), durationpb.New(2*time.Second)
	id := s.start(t, spec)
	s.log.awaitType(t, id, events.TypeTerminationStarted)
	if err := syscall.Kill(s.worker(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	story := s.log.tell(t, id)
	if got := signals(story); strings.Join(got, " ") != "TERM KILL" {
		t.Errorf("signals %v", got)
	}
}

// The supervisor is killed: what was written is there, and the exit status is said to be unknown. A new
// supervisor takes work again. With the worker killed beside it, the same comes from the disk.
func TestSupervisorKilled(t *testing.T) {
	for _, both := range []bool{false, true} {
		t.Run(fmt.Sprintf("worker too %v", both), func(t *testing.T) {
			t.Parallel()
			s := newStage(t, "")
			id := s.start(t, shell(`echo up; echo err >&2; exec sleep 600`))
			s.log.awaitOutput(t, id, stdout, "up")
			s.log.awaitOutput(t, id, stderr, "err")
			worker := s.worker()
			if both {
				_ = syscall.Kill(s.main.Process.Pid, syscall.SIGSTOP) // So that it does not start another one.
				_ = syscall.Kill(worker, syscall.SIGKILL)
			}
			_ = s.main.Process.Kill()
			<-s.ended
			s.startSupervisor(t, "")
			story := s.log.tell(t, id)
			if cause := one[*executionv1.WaitFailed](t, story).GetCause(); !strings.Contains(cause, "supervisor ended") {
				t.Errorf("cause %q", cause)
			}
			if out, err := string(story.output[stdout]), string(story.output[stderr]); out != "up\n" || err != "err\n" {
				t.Errorf("stdout %q, stderr %q", out, err)
			}
			next := s.start(t, shell(`echo again`))
			if got := string(s.log.tell(t, next).output[stdout]); got != "again\n" {
				t.Errorf("stdout %q", got)
			}
			pid := int(one[*executionv1.ProcessStarted](t, story).GetPid())
			eventually(t, "the process is gone", func() bool { return !alive(pid) })
			if both {
				if got := signals(story); strings.Join(got, " ") != "TERM" {
					t.Errorf("signals %v", got)
				}
			}
		})
	}
}

// Orphans of processes are reaped by the supervisor, and nothing else is.
func TestOrphansAreReaped(t *testing.T) {
	s := newStage(t, "")
	var ids []string
	for range 40 {
		ids = append(ids, s.start(t, shell(`for i in 1 2 3 4 5; do (sleep 0.2 >/dev/null 2>&1 &) ; done; exit 4`)))
	}
	for _, id := range ids {
		if got := one[*executionv1.ProcessExited](t, s.log.tell(t, id)).GetExitCode(); got != 4 {
			t.Errorf("exit code %d", got)
		}
	}
	eventually(t, "only the worker is left", func() bool {
		tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", s.main.Process.Pid))
		n := 0
		for _, task := range tasks {
			text, _ := os.ReadFile(task)
			n += len(strings.Fields(string(text)))
		}
		return n == 1
	})
}

// Supervisor and worker are killed together while processes run that write nothing and do not mind a TERM, one with its leader gone:
// the next runner ends them and their groups, says each signal, and touches nobody else.
func TestNobodyIsLeftToRunUnseen(t *testing.T) {
	t.Parallel()
	s := newStage(t, "")
	stubborn := shell(`trap "" TERM; (trap "" TERM; echo $$; sleep 600 >/dev/null 2>&1 & wait) & echo ready; while :; do sleep 0.1; done`)
	stubborn.Grace = durationpb.New(300 * time.Millisecond)
	id := s.start(t, stubborn)
	headless := s.start(t, shell(`sleep 600 & echo ready; wait`))
	s.log.awaitOutput(t, id, stdout, "ready")
	s.log.awaitOutput(t, headless, stdout, "ready")
	other := exec.Command("sleep", "600") // Somebody else's.
	other.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := other.Process.Kill(); err != nil {
			t.Errorf("a process of somebody else is gone: %v", err)
		}
		_ = other.Wait()
	}()
	worker := s.worker()
	_ = syscall.Kill(s.main.Process.Pid, syscall.SIGSTOP)
	_ = syscall.Kill(worker, syscall.SIGKILL)
	_ = s.main.Process.Kill()
	<-s.ended
	var group []int
	for _, attempt := range []string{id, headless} {
		group = append(group, members("VERBATIM_EXECUTION_ID="+attempt)...)
	}
	if len(group) < 4 {
		t.Fatalf("only %v run", group)
	}
	for _, pid := range members("VERBATIM_EXECUTION_ID=" + headless) {
		if own, err := syscall.Getpgid(pid); err == nil && own == pid {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	s.startSupervisor(t, "")
	story := s.log.tell(t, id)
	if got := signals(story); strings.Join(got, " ") != "TERM KILL" {
		t.Errorf("signals %v", got)
	}
	if got := signals(s.log.tell(t, headless)); strings.Join(got, " ") != "TERM" {
		t.Errorf("without its leader: signals %v", got)
	}
	if cause := one[*executionv1.WaitFailed](t, story).GetCause(); !strings.Contains(cause, "supervisor ended") {
		t.Errorf("cause %q", cause)
	}
	for _, pid := range group {
		eventually(t, fmt.Sprintf("process %d is gone", pid), func() bool { return !alive(pid) })
	}
}

// members are the processes with a variable in their environment.
func members(variable string) []int {
	var list []int
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		environ, _ := os.ReadFile("/proc/" + e.Name() + "/environ")
		if bytes.Contains(append([]byte{0}, environ...), append(append([]byte{0}, variable...), 0)) {
			n := 0
			_, _ = fmt.Sscan(e.Name(), &n)
			list = append(list, n)
		}
	}
	return list
}
