// Package protocol is what the runner's supervisor and its worker say to each other over one Unix socket pair.
//
// The worker asks, the supervisor answers each request once, with its number; and the supervisor says Exited by itself. A
// message is a length (uint32, little endian) and a JSON body, sent by one sendmsg(2), which also carries the
// descriptors: the kernel delivers them with the first byte (unix(7)), so with the length.
//
//	worker                               supervisor
//	Start{attempt, folder, command} ──►  opens its pipes                   ──► Piped{attempt} + stdout, stderr
//	                                     starts it, once for ever          ──► Started + stdout, stderr, stdin, document
//	                                     it runs here already              ──► the same, again
//	                                     it was started by one that ended  ──► Gone
//	                                     its document was cut (below)      ──► error EMFILE, nothing is reserved
//	Signal{attempt, signal}         ──►  signals the group                 ──► ok or error
//	StdinDone{attempt}              ──►  closes its copy of the pipe
//	Reap{attempt}                   ──►  reaps; keeps its copies of stdout and stderr, and the exit
//	Release{attempt}                ──►  reaps, closes its copies, forgets
//	Ready{}                         ──►  the worker takes work
//	                                     the process ended                 ──► Exited{attempt, exit}
//
// Who has no descriptor free for the files of a message gets it without them, as Cut. A worker that gets Started so asks again.
//
// The end of the socket is the end of the other side: of the worker, and the supervisor starts another one; of
// the supervisor, and the worker finishes what it has and ends.
package protocol

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
)

// Kind is what a message is.
type Kind string

// The kinds.
const (
	Start     Kind = "start"
	Piped     Kind = "piped" // Said by itself, before the process is there.
	Started   Kind = "started"
	Gone      Kind = "gone"
	Signal    Kind = "signal"
	StdinDone Kind = "stdin_done"
	Reap      Kind = "reap"
	Release   Kind = "release"
	Ready     Kind = "ready"
	Exited    Kind = "exited"
	Done      Kind = "done" // The answer where there is nothing to say.
)

// Message is one message. Which fields are set follows from Kind.
type Message struct {
	Kind Kind `json:"kind"`
	// Number names a request and its answer; 0 is for Exited.
	Number  uint64 `json:"number,omitempty"`
	Attempt string `json:"attempt,omitempty"`
	// Folder is the attempt's, absolute: there the supervisor writes down what must outlive it.
	Folder  string         `json:"folder,omitempty"`
	Command *Command       `json:"command,omitempty"`
	Signal  syscall.Signal `json:"signal,omitempty"`
	Record  *Record        `json:"record,omitempty"`
	Exit    *Exit          `json:"exit,omitempty"`
	Error   string         `json:"error,omitempty"`
	Errno   syscall.Errno  `json:"errno,omitempty"`
	// Files travel beside the message and belong to who receives it.
	Files []*os.File `json:"-"`
	// Cut is set by Receive when not all files came, since this process has no descriptor free for them; then Files is empty.
	Cut bool `json:"-"`
}

// Command is what to start. A document for the process's standard input comes as the only file.
type Command struct {
	Argv        []string          `json:"argv"`
	Environment map[string]string `json:"environment,omitempty"`
	Directory   string            `json:"directory"`
	// Limits is a Limits message in Protobuf, empty for none.
	Limits []byte `json:"limits,omitempty"`
}

// Record says how a start went. It is written to StartingFile.
type Record struct {
	PID       int       `json:"pid,omitempty"`
	StartedAt time.Time `json:"started_at,omitzero"`
	// Boot is the kernel's boot id, which with PID and StartedAt names the process for ever.
	Boot string `json:"boot,omitempty"`
	// Ticks is when the kernel started it, in its clock ticks since boot (proc_pid_stat(5), field 22). Unlike StartedAt nothing can
	// change it.
	Ticks uint64 `json:"ticks,omitempty"`
	// Groups are the folders of its control group.
	Groups []string `json:"groups,omitempty"`
	// Failure says why there is no process.
	Failure *Failure `json:"failure,omitempty"`
}

// Failure is why a process could not be started.
type Failure struct {
	Reason  executionv1.StartFailureReason `json:"reason"`
	Errno   syscall.Errno                  `json:"errno,omitempty"`
	Message string                         `json:"message"`
}

// Exit says how a process ended. It is written to ExitFile.
type Exit struct {
	Code       int            `json:"code"`
	Signal     syscall.Signal `json:"signal,omitempty"`
	CoreDumped bool           `json:"core_dumped,omitempty"`
	EndedAt    time.Time      `json:"ended_at"`
	// Usage is a ResourceUsage in Protobuf.
	Usage []byte `json:"usage,omitempty"`
	// OOMKills is how many processes of its control group the kernel killed for memory, OOMEvidence where that was read.
	OOMKills    uint64 `json:"oom_kills,omitempty"`
	OOMEvidence string `json:"oom_evidence,omitempty"`
	// WaitError is set when the status could not be had; then only EndedAt, when that was seen, means something.
	WaitError string        `json:"wait_error,omitempty"`
	Errno     syscall.Errno `json:"errno,omitempty"`
}

// The supervisor's files in an attempt's folder. StartingFile exists from before fork(2): who finds it does not
// start the attempt, whatever else is there.
const (
	StartingFile = "starting"
	ExitFile     = "exit"
)

// Bounds of a message.
const (
	maxBody  = 64 << 20
	maxFiles = 4
)

// Conn is one end. Send is safe for concurrent use; Receive is for one goroutine.
type Conn struct {
	socket *net.UnixConn
	send   sync.Mutex
}

// Pair returns both ends: one as a connection, one as a file to hand to another process.
func Pair() (*Conn, *os.File, error) {
	syscall.ForkLock.RLock()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err == nil {
		unix.CloseOnExec(fds[0])
		unix.CloseOnExec(fds[1])
	}
	syscall.ForkLock.RUnlock()
	if err != nil {
		return nil, nil, fmt.Errorf("make socket pair: %w", err)
	}
	theirs := os.NewFile(uintptr(fds[1]), "socket")
	ours, err := New(os.NewFile(uintptr(fds[0]), "socket"))
	if err != nil {
		_ = theirs.Close()
		return nil, nil, err
	}
	return ours, theirs, nil
}

// New takes over one end.
func New(f *os.File) (*Conn, error) {
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("take over socket: %w", err)
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		return nil, errors.Join(errors.New("descriptor is no Unix socket"), c.Close())
	}
	return &Conn{socket: u}, nil
}

// File returns another descriptor of this end, to hand on.
func (c *Conn) File() (*os.File, error) { return c.socket.File() }

// Close closes this end.
func (c *Conn) Close() error { return c.socket.Close() }

// Send sends a message. The files stay the caller's.
func (c *Conn) Send(m Message) error {
	body, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode message: %w", err)
	}
	if len(body) > maxBody || len(m.Files) > maxFiles {
		return fmt.Errorf("message of %d bytes and %d files is too large", len(body), len(m.Files))
	}
	frame := append(binary.LittleEndian.AppendUint32(make([]byte, 0, 4+len(body)), uint32(len(body))), body...)
	var rights []byte
	if len(m.Files) > 0 {
		fds := make([]int, len(m.Files))
		for i, f := range m.Files {
			raw, err := f.SyscallConn()
			if err != nil {
				return fmt.Errorf("send file: %w", err)
			}
			// The file outlives this call, so its number stays what it is. Fd() would make it blocking.
			if err := raw.Control(func(fd uintptr) { fds[i] = int(fd) }); err != nil {
				return fmt.Errorf("send file: %w", err)
			}
		}
		rights = unix.UnixRights(fds...)
	}
	c.send.Lock()
	defer c.send.Unlock()
	n, _, err := c.socket.WriteMsgUnix(frame, rights, nil)
	if err == nil && n < len(frame) {
		_, err = c.socket.Write(frame[n:])
	}
	if err != nil {
		return fmt.Errorf("send message: %w", err)
	}
	return nil
}

// Receive returns the next message, or io.EOF when the other side has ended. One whose files cannot all be taken comes without any, as Cut.
func (c *Conn) Receive() (Message, error) {
	var m Message
	header, rights := make([]byte, 4), make([]byte, unix.CmsgSpace(4*maxFiles))
	n, oobn, flags, _, err := c.socket.ReadMsgUnix(header, rights)
	if err == nil && n == 0 {
		err = io.EOF
	}
	if err != nil {
		return m, ended(err)
	}
	files, err := take(rights[:oobn])
	// The kernel gives as many as there is room for (unix(7)), which may be none, and says that it was not all.
	cut := flags&unix.MSG_CTRUNC != 0
	if cut || err != nil {
		CloseAll(files)
		files = nil
	}
	if err != nil {
		return m, err
	}
	fail := func(err error) (Message, error) {
		CloseAll(files)
		return Message{}, ended(err)
	}
	if _, err := io.ReadFull(c.socket, header[n:]); err != nil {
		return fail(err)
	}
	length := binary.LittleEndian.Uint32(header)
	if length > maxBody {
		return fail(fmt.Errorf("message of %d bytes is too large", length))
	}
	body := make([]byte, length)
	if _, err := io.ReadFull(c.socket, body); err != nil {
		return fail(err)
	}
	if err := json.Unmarshal(body, &m); err != nil {
		return fail(fmt.Errorf("decode message: %w", err))
	}
	m.Files, m.Cut = files, cut
	return m, nil
}

// ended makes one error of every way in which the other side can be gone.
func ended(err error) error {
	if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, io.EOF) {
		return io.EOF
	}
	return fmt.Errorf("receive message: %w", err)
}

// take returns all files that came, also beside an error.
func take(rights []byte) (files []*os.File, err error) {
	for len(rights) > 0 {
		header, data, rest, parseErr := unix.ParseOneSocketControlMessage(rights)
		if parseErr != nil {
			return files, errors.Join(err, fmt.Errorf("receive files: %w", parseErr))
		}
		rights = rest
		fds, parseErr := unix.ParseUnixRights(&unix.SocketControlMessage{Header: header, Data: data})
		if parseErr != nil {
			err = errors.Join(err, fmt.Errorf("receive files: %w", parseErr))
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			files = append(files, os.NewFile(uintptr(fd), "received"))
		}
	}
	return files, err
}

// CloseAll closes files; nil ones are passed over.
func CloseAll(files []*os.File) {
	for _, f := range files {
		if f != nil {
			_ = f.Close()
		}
	}
}
