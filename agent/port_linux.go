package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// portPoll is how often an unconnected port is looked at.
	portPoll = 20 * time.Millisecond

	// portPause is how long a port whose stream is broken is left alone.
	portPause = 30 * time.Millisecond

	// portBuffer is larger than one buffer of the driver, which is a page.
	portBuffer = 32 << 10
)

// ListenPort opens a virtio-serial port and presents it as a listener: a
// connection begins when the host side is there and ends when it is seen to have
// left. There is at most one connection at a time, and a process can listen on one
// port.
//
// The driver shows only the present state: a host that leaves and comes back at
// once may not be seen to have left, and goes on with the connection. It has to
// ask for Hello.
func ListenPort(device string) (net.Listener, error) {
	f, err := openPort(device)
	if err != nil {
		return nil, err
	}
	return &portListener{f: f, addr: portAddr(device), turn: make(chan struct{}, 1), done: make(chan struct{})}, nil
}

// DialPort opens a virtio-serial port for one exchange that the guest begins.
// What an earlier exchange left unread is dropped.
func DialPort(ctx context.Context, device string) (net.Conn, error) {
	f, err := openPort(device)
	if err != nil {
		return nil, err
	}
	for {
		connected, err := hostConnected(f)
		if err == nil && connected {
			err = drain(f)
			if err == nil {
				return &dialedPort{File: f, addr: portAddr(device)}, nil
			}
		}
		if err == nil {
			err = sleep(ctx, portPoll)
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("virtio-serial port %s: %w", device, err), f.Close())
		}
	}
}

func openPort(device string) (*os.File, error) {
	// Non-blocking, so that deadlines work.
	return os.OpenFile(device, os.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
}

// control runs f on the file's descriptor.
func control(file *os.File, f func(fd int) error) error {
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	err = raw.Control(func(fd uintptr) { inner = f(int(fd)) })
	return errors.Join(err, inner)
}

// hostConnected says whether the host side of a port is open: the driver
// reports a hang-up otherwise.
func hostConnected(f *os.File) (bool, error) {
	var events int16
	err := control(f, func(fd int) error {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN | unix.POLLOUT}}
		_, err := unix.Poll(p, 0)
		events = p[0].Revents
		if errors.Is(err, unix.EINTR) {
			err = nil
		}
		return err
	})
	return events&(unix.POLLHUP|unix.POLLERR|unix.POLLNVAL) == 0, err
}

// drain drops what lies unread in a port, at most the largest frame's worth.
func drain(f *os.File) error {
	if err := f.SetReadDeadline(time.Now().Add(time.Millisecond)); err != nil {
		return err
	}
	buf := make([]byte, portBuffer)
	for range evidenceBuffers {
		if n, err := f.Read(buf); n == 0 || err != nil {
			break
		}
	}
	return f.SetReadDeadline(time.Time{})
}

// evidenceBuffers is how many of the driver's buffers the largest frame fills.
const evidenceBuffers = 2<<20/4096 + 1

// sleep waits, unless the context ends first.
func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

type portListener struct {
	f    *os.File
	addr portAddr
	turn chan struct{} // holds a token while a connection lives

	once sync.Once
	done chan struct{}
}

// Accept waits for the end of the last connection, then for the host.
func (l *portListener) Accept() (net.Conn, error) {
	select {
	case l.turn <- struct{}{}:
	case <-l.done:
		return nil, net.ErrClosed
	}
	for {
		connected, err := hostConnected(l.f)
		if err != nil {
			return nil, fmt.Errorf("virtio-serial port %s: %w", l.addr, err)
		}
		if connected {
			return &portConn{l: l}, nil
		}
		select {
		case <-time.After(portPoll):
		case <-l.done:
			return nil, net.ErrClosed
		}
	}
}

func (l *portListener) Close() error {
	var err error
	l.once.Do(func() {
		close(l.done)
		err = l.f.Close()
	})
	return err
}

func (l *portListener) Addr() net.Addr { return l.addr }

// portConn is one connection over a port that is listened on.
type portConn struct {
	l      *portListener
	left   atomic.Bool // the host was seen to have left
	closed sync.Once
}

func (c *portConn) Read(b []byte) (int, error) {
	n, err := c.l.f.Read(b)
	if errors.Is(err, io.EOF) {
		c.left.Store(true)
	}
	return n, err
}

func (c *portConn) Write(b []byte) (int, error) { return c.l.f.Write(b) }

// Close ends the connection; the device stays open.
func (c *portConn) Close() error {
	c.closed.Do(func() {
		// Reading ends; so does writing to a host that takes nothing.
		_ = c.l.f.SetDeadline(time.Unix(1, 0))
		// Where the host has left, what lies in the port is from whoever came
		// next. Where it has not, the rest of a broken stream lies there. The
		// pause keeps a host that sends garbage from spinning us.
		if !c.left.Load() {
			time.Sleep(portPause)
			_ = drain(c.l.f)
		}
		_ = c.l.f.SetDeadline(time.Time{})
		<-c.l.turn
	})
	return nil
}

func (c *portConn) SetReadDeadline(t time.Time) error  { return c.l.f.SetReadDeadline(t) }
func (c *portConn) SetWriteDeadline(t time.Time) error { return c.l.f.SetWriteDeadline(t) }
func (c *portConn) SetDeadline(t time.Time) error      { return c.l.f.SetDeadline(t) }
func (c *portConn) LocalAddr() net.Addr                { return c.l.addr }
func (c *portConn) RemoteAddr() net.Addr               { return c.l.addr }

// dialedPort is one connection over a port that the guest opened for it.
type dialedPort struct {
	*os.File
	addr portAddr
}

func (c *dialedPort) LocalAddr() net.Addr  { return c.addr }
func (c *dialedPort) RemoteAddr() net.Addr { return c.addr }

type portAddr string

func (a portAddr) Network() string { return "virtio-serial" }
func (a portAddr) String() string  { return string(a) }
