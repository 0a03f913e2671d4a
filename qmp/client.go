package qmp

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// MaxMessage bounds one message from QEMU: 16 MiB, eighty times the longest
	// that QEMU 11.1 sends.
	MaxMessage = 16 << 20

	// HandshakeTimeout bounds the greeting and the capabilities negotiation when
	// the context has no deadline.
	HandshakeTimeout = 10 * time.Second

	// eventQueue is how many events wait for a reader before the oldest goes, and
	// maxEvent how long one may be: together they bound the queue's memory to
	// 16 MiB. QEMU's own events are shorter than 1 KiB.
	eventQueue = 256
	maxEvent   = 64 << 10
)

// ErrClosed is wrapped by the errors of calls on a client whose connection has
// ended.
var ErrClosed = errors.New("qmp: connection closed")

// errFile is wrapped by errors about a file that cannot go along with a command:
// nothing was sent.
var errFile = errors.New("file not passed")

// An Error is QEMU's own answer that a command failed.
type Error struct {
	// Command that failed.
	Command string
	// Class is QEMU's error class: "GenericError", "CommandNotFound",
	// "DeviceNotActive", "DeviceNotFound", "KVMMissingCap". QEMU sends one always;
	// empty when something else answered.
	Class string
	// Desc is QEMU's description, for people.
	Desc string
}

func (e *Error) Error() string {
	desc, class := e.Desc, e.Class
	if desc == "" {
		desc = "failed without a description"
	}
	if class == "" {
		class = "no class"
	}
	return fmt.Sprintf("qmp: %s: %s (%s)", e.Command, desc, class)
}

// An Event is something that QEMU says unasked.
type Event struct {
	Name string
	// Data is the event's data as JSON; nil when it has none.
	Data json.RawMessage
	// Time is QEMU's own, of the host's clock.
	Time time.Time
}

// Version is QEMU's version.
type Version struct {
	Major, Minor, Micro int
	// Package is the distributor's version, such as "Debian 1:10.0.2+ds-2".
	Package string
}

// String returns major.minor.micro.
func (v Version) String() string { return fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Micro) }

// A Client is one QMP connection. Its methods may be called concurrently.
type Client struct {
	Commands // through this connection

	conn     net.Conn
	greeting Version

	events  chan Event
	dropped atomic.Uint64

	writing chan struct{} // holds a value while one command is written

	mu      sync.Mutex
	nextID  uint64
	pending map[string]chan reply
	err     error // why the connection ended; nil while it lives

	done chan struct{} // closed when the reader has ended
}

type reply struct {
	result json.RawMessage
	err    *wireError
}

type wireError struct {
	Class string `json:"class"`
	Desc  string `json:"desc"`
}

// wireVersion is a version as QEMU says it.
type wireVersion struct {
	QEMU struct {
		Major int `json:"major"`
		Minor int `json:"minor"`
		Micro int `json:"micro"`
	} `json:"qemu"`
	Package string `json:"package"`
}

func (w wireVersion) version() Version {
	return Version{Major: w.QEMU.Major, Minor: w.QEMU.Minor, Micro: w.QEMU.Micro, Package: w.Package}
}

// message is any message from QEMU.
type message struct {
	QMP *struct {
		Version wireVersion `json:"version"`
	} `json:"QMP"`
	ID        json.RawMessage `json:"id"`
	Return    json.RawMessage `json:"return"`
	Error     *wireError      `json:"error"`
	Event     string          `json:"event"`
	Data      json.RawMessage `json:"data"`
	Timestamp struct {
		Seconds      int64 `json:"seconds"`
		Microseconds int64 `json:"microseconds"`
	} `json:"timestamp"`
}

// Dial connects to the monitor at addr ("unix" or "tcp") and negotiates. It
// tries again while nothing listens there yet, until ctx ends: QEMU makes its
// socket some time after it starts. When the process dies there is nothing to
// wait for: cancel ctx with a cause ([context.WithCancelCause]), which the error
// then wraps.
func Dial(ctx context.Context, network, addr string) (*Client, error) {
	var dialer net.Dialer
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		conn, err := dialer.DialContext(ctx, network, addr)
		if err == nil {
			return NewClient(ctx, conn)
		}
		if ctx.Err() != nil {
			return nil, fmt.Errorf("qmp: connect to %s: %w", addr, context.Cause(ctx))
		}
		if !notYet(err) {
			return nil, fmt.Errorf("qmp: connect: %w", err)
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("qmp: connect to %s: %w (last: %w)", addr, context.Cause(ctx), err)
		case <-time.After(wait):
		}
	}
}

// NewClient negotiates on conn, which it owns from then on, also when it fails.
// The greeting and the negotiation must come before ctx ends, or within
// [HandshakeTimeout] when ctx has no deadline. A QEMU that already serves a
// client accepts a second one, and greets it only when the first is gone.
func NewClient(ctx context.Context, conn net.Conn) (*Client, error) {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, HandshakeTimeout)
		defer cancel()
	}
	// A connection that takes no deadline is broken, and ends what waits by itself.
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })
	r := newReader(conn)
	greeting, err := readGreeting(r)
	if !stop() {
		err = context.Cause(ctx)
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("qmp: greeting: %w", err)
	}
	c := newClient(conn, greeting)
	go c.read(r)
	if err := c.Execute(ctx, "qmp_capabilities", nil, nil); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

func newClient(conn net.Conn, greeting Version) *Client {
	c := &Client{
		conn:     conn,
		greeting: greeting,
		events:   make(chan Event, eventQueue),
		writing:  make(chan struct{}, 1),
		pending:  map[string]chan reply{},
		done:     make(chan struct{}),
	}
	c.Commands = Commands{c}
	return c
}

func readGreeting(r *bufio.Reader) (Version, error) {
	line, err := readMessage(r)
	if errors.Is(err, io.EOF) {
		return Version{}, fmt.Errorf("%w by QEMU", ErrClosed)
	}
	if err != nil {
		return Version{}, err
	}
	var m message
	if err := json.Unmarshal(line, &m); err != nil {
		return Version{}, fmt.Errorf("found %.80q: %w", line, err)
	}
	if m.QMP == nil {
		return Version{}, fmt.Errorf("found %.80q, expected an object with member QMP", line)
	}
	return m.QMP.Version.version(), nil
}

// Version is what the greeting said of QEMU's version.
func (c *Client) Version() Version { return c.greeting }

// Events returns the events as they come. The queue holds 256; when nobody
// reads, the oldest are dropped and counted: whoever must not miss one looks at
// [Client.Dropped] too. The channel is closed when the connection ends, after
// the events that were still queued. All callers share it.
func (c *Client) Events() <-chan Event { return c.events }

// Dropped is how many events were dropped because nobody read them in time.
func (c *Client) Dropped() uint64 { return c.dropped.Load() }

// Done is closed when the connection has ended; Err then says why.
func (c *Client) Done() <-chan struct{} { return c.done }

// Err says why the connection ended; nil while it lives.
func (c *Client) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Close ends the connection and every call under way. It may be called twice.
func (c *Client) Close() error {
	c.end(ErrClosed)
	<-c.done
	return nil
}

// end records why the connection ended, once, and closes it.
func (c *Client) end(err error) {
	c.mu.Lock()
	if c.err == nil {
		c.err = err
	}
	c.mu.Unlock()
	c.conn.Close()
}

// Execute runs a command. args, when not nil, is encoded as its arguments; the
// result is decoded into out, when not nil. A refusal by QEMU is an *[Error].
// When ctx ends first, the command may still take effect; its reply is ignored.
func (c *Client) Execute(ctx context.Context, command string, args, out any) error {
	return c.execute(ctx, command, args, out, nil)
}

// ExecuteWithFile is Execute with a file descriptor that QEMU receives along
// with the command (getfd, add-fd). It needs a unix socket.
func (c *Client) ExecuteWithFile(ctx context.Context, command string, args, out any, file *os.File) error {
	return c.execute(ctx, command, args, out, file)
}

func (c *Client) execute(ctx context.Context, command string, args, out any, file *os.File) error {
	id, answer, err := c.enlist()
	if err != nil {
		return fmt.Errorf("qmp: %s: %w", command, err)
	}
	defer c.delist(id)
	request, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
		ID        string `json:"id"`
	}{command, args, id})
	if err != nil {
		return fmt.Errorf("qmp: %s: arguments: %w", command, err)
	}
	if err := c.write(ctx, append(request, '\n'), file); err != nil {
		return fmt.Errorf("qmp: %s: %w", command, err)
	}
	select {
	case r := <-answer:
		return r.decode(command, out)
	case <-ctx.Done():
		return fmt.Errorf("qmp: %s: %w", command, context.Cause(ctx))
	case <-c.done:
	}
	// The reply may have come together with the end of the connection.
	select {
	case r := <-answer:
		return r.decode(command, out)
	default:
		return fmt.Errorf("qmp: %s: %w", command, c.Err())
	}
}

func (r reply) decode(command string, out any) error {
	if r.err != nil {
		return &Error{Command: command, Class: r.err.Class, Desc: r.err.Desc}
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(r.result, out); err != nil {
		return fmt.Errorf("qmp: %s: result: %w", command, err)
	}
	return nil
}

// DecodeReply decodes a reply to a command that went another way than through a
// Client. As with [Client.Execute], out may be nil and a refusal is an *[Error].
func DecodeReply(command string, line []byte, out any) error {
	var m message
	if err := json.Unmarshal(line, &m); err != nil {
		return fmt.Errorf("qmp: %s: reply %.80q: %w", command, line, err)
	}
	if m.Return == nil && m.Error == nil {
		return fmt.Errorf("qmp: %s: found %.80q, expected a reply", command, line)
	}
	return reply{result: m.Return, err: m.Error}.decode(command, out)
}

// enlist makes an id and the channel its reply will come on.
func (c *Client) enlist() (string, chan reply, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return "", nil, c.err
	}
	c.nextID++
	id := "evtpm-" + strconv.FormatUint(c.nextID, 10)
	answer := make(chan reply, 1)
	c.pending[id] = answer
	return id, answer, nil
}

func (c *Client) delist(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.pending, id)
}

// write sends one command whole. A command that was cut short would make QEMU
// read the next one as its rest, so the connection ends with it; one of which
// nothing was sent does no harm.
func (c *Client) write(ctx context.Context, data []byte, file *os.File) error {
	select {
	case c.writing <- struct{}{}:
		defer func() { <-c.writing }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	interrupted := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(interrupted)
		_ = c.conn.SetWriteDeadline(time.Unix(1, 0)) // as in NewClient
	})
	n, err := send(c.conn, data, file)
	if !stop() {
		// The deadline must not hit the next command.
		<-interrupted
		_ = c.conn.SetWriteDeadline(time.Time{})
	}
	switch {
	case err == nil, errors.Is(err, errFile):
		return err
	case ctx.Err() == nil || !errors.Is(err, os.ErrDeadlineExceeded):
		c.end(fmt.Errorf("%w: %w", ErrClosed, err))
		return c.Err()
	case n > 0:
		c.end(fmt.Errorf("%w: a command was cut short: %w", ErrClosed, context.Cause(ctx)))
	}
	return context.Cause(ctx)
}

// read takes every message until the connection ends.
func (c *Client) read(r *bufio.Reader) {
	defer close(c.done)
	defer close(c.events)
	for {
		line, err := readMessage(r)
		if errors.Is(err, io.EOF) {
			c.end(fmt.Errorf("%w by QEMU", ErrClosed))
			return
		}
		if err != nil {
			c.end(fmt.Errorf("%w: %w", ErrClosed, err))
			return
		}
		var m message
		if err := json.Unmarshal(line, &m); err != nil {
			c.end(fmt.Errorf("%w: message %.80q from QEMU: %w", ErrClosed, line, err))
			return
		}
		if m.Event != "" {
			if len(line) > maxEvent {
				c.end(fmt.Errorf("%w: event: %w: over %d bytes", ErrClosed, ErrTooLong, maxEvent))
				return
			}
			c.publish(Event{Name: m.Event, Data: m.Data, Time: time.Unix(m.Timestamp.Seconds, m.Timestamp.Microseconds*1000)})
			continue
		}
		c.answer(&m)
	}
}

// answer hands a reply to the call that waits for it. Replies to calls that gave
// up, replies without an id and second replies are ignored.
func (c *Client) answer(m *message) {
	var id string
	if json.Unmarshal(m.ID, &id) != nil || (m.Return == nil && m.Error == nil) {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if ch, ok := c.pending[id]; ok {
		delete(c.pending, id)
		ch <- reply{result: m.Return, err: m.Error}
	}
}

// publish queues an event, at the cost of the oldest when the queue is full.
func (c *Client) publish(e Event) {
	for {
		select {
		case c.events <- e:
			return
		default:
		}
		select {
		case <-c.events:
			c.dropped.Add(1)
		default:
		}
	}
}
