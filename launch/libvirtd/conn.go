package libvirtd

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/digitalocean/go-libvirt"
)

// callTimeout bounds a call to libvirt whose context has no earlier deadline.
const callTimeout = 10 * time.Second

// Bounds of a message of libvirt's RPC (src/rpc/virnetprotocol.x): its length,
// itself included, and its header.
const (
	rpcLengthSize = 4
	minRPCMessage = rpcLengthSize + 24
	maxRPCMessage = 32<<20 + rpcLengthSize // VIR_NET_MESSAGE_MAX
)

var (
	ErrGone   = errors.New("the connection to libvirt has ended")
	errSilent = fmt.Errorf("libvirt does not answer: %w", context.DeadlineExceeded)
)

// A Conn is a connection to libvirt. go-libvirt knows no deadlines: a call
// that comes to its own has the connection closed under it, and no other call is
// of use then.
type Conn struct {
	l    *libvirt.Libvirt
	conn *rpcConn
}

// NewConn opens a driver, "qemu:///session", over a connection to the
// daemon, which it owns from then on, also when it fails.
func NewConn(ctx context.Context, conn net.Conn, uri string) (*Conn, error) {
	c := &Conn{conn: &rpcConn{Conn: conn, ended: make(chan struct{})}}
	c.l = libvirt.NewWithDialer(connected{c.conn})
	err := c.Call(ctx, "open "+uri, func(l *libvirt.Libvirt) error { return l.ConnectToURI(libvirt.ConnectURI(uri)) })
	if err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// Call makes calls, and returns when they are done, when ctx ends, or when the
// connection does. A refusal by libvirt wraps a libvirt.Error.
func (c *Conn) Call(ctx context.Context, what string, do func(*libvirt.Libvirt) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, callTimeout, errSilent)
	defer cancel()
	return c.CallWithin(ctx, what, do)
}

// CallWithin is call with no other deadline than ctx has.
func (c *Conn) CallWithin(ctx context.Context, what string, do func(*libvirt.Libvirt) error) error {
	done := make(chan error, 1)
	go func() {
		// What go-libvirt makes of an answer that is none must not end this process.
		defer func() {
			if r := recover(); r != nil {
				done <- fmt.Errorf("found an answer that is none: %v", r)
			}
		}()
		done <- do(c.l)
	}()
	var err error
	select {
	case err = <-done:
	case <-ctx.Done():
		err = context.Cause(ctx)
		c.conn.end(err)
	case <-c.conn.ended:
		// The answer may have come together with the end.
		select {
		case err = <-done:
		case <-time.After(100 * time.Millisecond):
			err = ErrGone
		}
	}
	if err == nil {
		return nil
	}
	var refused libvirt.Error
	switch {
	case errors.As(err, &refused), ctx.Err() != nil && errors.Is(err, context.Cause(ctx)):
	case errors.Is(err, libvirt.ErrInterrupted), errors.Is(err, syscall.EINVAL), errors.Is(err, ErrGone):
		err = c.Gone()
	}
	return fmt.Errorf("libvirt: %s: %w", what, err)
}

// Gone says why the connection has ended.
func (c *Conn) Gone() error {
	switch why := c.conn.why(); {
	case why == nil:
		return ErrGone
	case errors.Is(why, context.DeadlineExceeded):
		return why // an earlier call's
	default:
		return fmt.Errorf("%w: %w", ErrGone, why)
	}
}

// Ended is closed when the connection has ended.
func (c *Conn) Ended() <-chan struct{} { return c.conn.ended }

// Close ends the connection, and calls under way. libvirt destroys what it was to
// destroy with the connection. It may be called twice.
func (c *Conn) Close() { c.conn.Close() }

// connected is a dialer of go-libvirt's that has dialed.
type connected struct{ conn net.Conn }

// Dial implements socket.Dialer.
func (c connected) Dial() (net.Conn, error) { return c.conn, nil }

// An rpcConn holds messages to their bounds, which go-libvirt takes as they are,
// and notices the connection's end.
type rpcConn struct {
	net.Conn
	left   uint32 // of the message under way
	length []byte // of the next one, as far as it has come

	once  sync.Once
	ended chan struct{}
	mu    sync.Mutex
	err   error
}

// Read implements net.Conn, for one reader.
func (c *rpcConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	for rest := p[:n]; len(rest) > 0; {
		if c.left > 0 {
			skip := min(len(rest), int(c.left))
			c.left -= uint32(skip)
			rest = rest[skip:]
			continue
		}
		take := min(len(rest), rpcLengthSize-len(c.length))
		c.length = append(c.length, rest[:take]...)
		rest = rest[take:]
		if len(c.length) == rpcLengthSize {
			length := binary.BigEndian.Uint32(c.length)
			if length < minRPCMessage || length > maxRPCMessage {
				c.end(fmt.Errorf("found a message of %d bytes, expected %d to %d", length, minRPCMessage, maxRPCMessage))
				return 0, net.ErrClosed
			}
			c.left, c.length = length-rpcLengthSize, c.length[:0]
		}
	}
	if err != nil {
		c.end(nil)
	}
	return n, err
}

func (c *rpcConn) end(why error) {
	c.once.Do(func() {
		c.mu.Lock()
		c.err = why
		c.mu.Unlock()
		close(c.ended)
		c.Conn.Close()
	})
}

// why says what was wrong; nil for a plain end.
func (c *rpcConn) why() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Close implements net.Conn.
func (c *rpcConn) Close() error {
	c.end(nil)
	return nil
}

// Version is a version as people write it.
func Version(n uint64) string {
	return fmt.Sprintf("%d.%d.%d", n/1_000_000, n/1000%1000, n%1000)
}
