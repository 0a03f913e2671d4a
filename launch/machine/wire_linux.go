package machine

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"github.com/evtpm/evtpm/attest"
	"github.com/evtpm/evtpm/launch"
)

// The supervisor is spoken to in lines of JSON: over a socket pair by the
// process that launched it, over control.sock by any later one. A request is one
// line; its answer is any number of lines, the last of which says how it ended.

// Bounds of the conversation.
const (
	maxRequest   = 8 << 10
	maxReply     = 16 << 20 // evidence, its event log in base64, a verdict
	writeTimeout = 5 * time.Second
)

// Operations that a supervisor is asked for.
const (
	opStatus  = "status"  // answers a record
	opAttest  = "attest"  // answers an outcome
	opStop    = "stop"    // ends the VM, with time for the guest to shut down
	opConsole = "console" // from the answer on the connection is the console's
	opRelease = "release" // of the launcher alone: the machine is on its own from now on
)

// A request is what a supervisor is asked.
type request struct {
	Op string `json:"op"`
	// Grace is what a guest is given to shut down, for opStop.
	Grace launch.Duration `json:"grace,omitempty"`
}

// A reply is one line of an answer. One field is set.
type reply struct {
	Event   *Event     `json:"event,omitempty"`
	Record  *Record    `json:"record,omitempty"`
	Outcome *Outcome   `json:"outcome,omitempty"`
	Error   *wireError `json:"error,omitempty"`
	Done    bool       `json:"done,omitempty"`
}

// wireError is an error on its way between processes.
type wireError struct {
	Phase   Phase        `json:"phase,omitempty"`
	Class   attest.Class `json:"class"`
	Message string       `json:"message"`
}

func toWire(err error) *wireError {
	w := &wireError{Class: attest.ClassLaunch, Message: err.Error()}
	var pe *PhaseError
	if errors.As(err, &pe) {
		w.Phase, w.Class, w.Message = pe.Phase, pe.Class, pe.Err.Error()
	}
	return w
}

func (w *wireError) error() error {
	err := errors.New(w.Message)
	if w.Phase == "" {
		return &classedError{class: w.Class, err: err}
	}
	return &PhaseError{Phase: w.Phase, Class: w.Class, Err: err}
}

// classedError is an error with an exit code, outside of any phase.
type classedError struct {
	class attest.Class
	err   error
}

func (e *classedError) Error() string { return e.err.Error() }
func (e *classedError) Unwrap() error { return e.err }

// ExitCode is the class as a number.
func (e *classedError) ExitCode() int { return int(e.class) }

// A lineConn exchanges lines of JSON.
type lineConn struct {
	net.Conn
	r *bufio.Reader

	writing sync.Mutex
}

func newLineConn(c net.Conn) *lineConn { return &lineConn{Conn: c, r: bufio.NewReader(c)} }

// send writes one line.
func (c *lineConn) send(v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	c.writing.Lock()
	defer c.writing.Unlock()
	if err := c.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return err
	}
	_, err = c.Write(append(data, '\n'))
	return err
}

// receive reads one line of at most max bytes.
func (c *lineConn) receive(v any, max int) error {
	var line []byte
	for {
		part, err := c.r.ReadSlice('\n')
		line = append(line, part...)
		if len(line) > max {
			return fmt.Errorf("a line of more than %d bytes", max)
		}
		if err == nil {
			return json.Unmarshal(line, v)
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return err
		}
	}
}

// Read reads what follows the lines.
func (c *lineConn) Read(p []byte) (int, error) { return c.r.Read(p) }

// connOf makes a connection of a socket that another process handed over. It
// takes the file.
func connOf(f *os.File) (*lineConn, error) {
	c, err := net.FileConn(f)
	f.Close()
	if err != nil {
		return nil, err
	}
	return newLineConn(c), nil
}
