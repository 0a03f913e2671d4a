package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// portPoll is how often an unconnected port is looked at.
	portPoll = 20 * time.Millisecond

	// portSettle is how long the driver's signals are given to arrive after
	// what they tell of.
	portSettle = 30 * time.Millisecond

	// portLooks is how often a change of the host's side is looked at before it
	// is believed.
	portLooks = 10

	// portBuffer is larger than one buffer of the driver, which is a page.
	portBuffer = 32 << 10
)

// ListenPort opens a virtio-serial port and presents it as a listener: a
// connection begins when the host side is there and ends when it leaves. There
// is at most one connection at a time, and a process can listen on one port.
//
// A host that leaves and comes back at once must not be missed, for it waits to
// be greeted, and the driver shows only the present state. But it sends SIGIO
// for every change of that state, and for every buffer that arrives: a signal
// more than there were buffers is a change.
func ListenPort(device string) (net.Listener, error) {
	f, err := openPort(device)
	if err != nil {
		return nil, err
	}
	l := &portListener{
		f: f, addr: portAddr(device), turn: make(chan struct{}, 1), done: make(chan struct{}),
		sigio: make(chan os.Signal, 16),
	}
	signal.Notify(l.sigio, unix.SIGIO)
	if err := askForSignals(f); err != nil {
		signal.Stop(l.sigio)
		return nil, errors.Join(fmt.Errorf("virtio-serial port %s: %w", device, err), f.Close())
	}
	go l.watch()
	return l, nil
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

// askForSignals makes the driver send SIGIO to this process.
func askForSignals(f *os.File) error {
	return control(f, func(fd int) error {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETOWN, os.Getpid()); err != nil {
			return err
		}
		flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
		if err != nil {
			return err
		}
		_, err = unix.FcntlInt(uintptr(fd), unix.F_SETFL, flags|unix.O_ASYNC)
		return err
	})
}

// state looks at a port without waiting.
func state(f *os.File) (events int16, err error) {
	err = control(f, func(fd int) error {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN | unix.POLLOUT}}
		_, err := unix.Poll(p, 0)
		events = p[0].Revents
		if errors.Is(err, unix.EINTR) {
			err = nil
		}
		return err
	})
	return events, err
}

// hostConnected says whether the host side of a port is open: the driver
// reports a hang-up otherwise.
func hostConnected(f *os.File) (bool, error) {
	events, err := state(f)
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
	f     *os.File
	addr  portAddr
	sigio chan os.Signal
	turn  chan struct{} // holds a token while a connection lives

	once sync.Once
	done chan struct{}

	mu               sync.Mutex
	conn             *portConn // the connection that lives, or nil
	signals, buffers int       // since the last connection began
}

// Accept waits for the end of the last connection, then for the host.
func (l *portListener) Accept() (net.Conn, error) {
	select {
	case l.turn <- struct{}{}:
	case <-l.done:
		return nil, net.ErrClosed
	}
	for waited := false; ; waited = true {
		connected, err := hostConnected(l.f)
		if err != nil {
			return nil, fmt.Errorf("virtio-serial port %s: %w", l.addr, err)
		}
		if connected && waited {
			// The signal that tells of this arrival is not one of the next.
			time.Sleep(portSettle)
		}
		if connected {
			break
		}
		select {
		case <-time.After(portPoll):
		case <-l.done:
			return nil, net.ErrClosed
		}
	}
	c := &portConn{l: l}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.conn, l.signals, l.buffers = c, 0, 0
	return c, nil
}

// watch ends a connection whose host side was closed and opened again.
func (l *portListener) watch() {
	defer signal.Stop(l.sigio)
	for {
		select {
		case <-l.done:
			return
		case <-l.sigio:
		}
		l.mu.Lock()
		l.signals++
		l.mu.Unlock()
		time.Sleep(portSettle)
		if !l.changed() {
			continue
		}
		l.mu.Lock()
		if l.conn != nil {
			l.conn.leave()
		}
		l.mu.Unlock()
	}
}

// changed says whether there were more signals than buffers. A reader may have
// taken a buffer and not counted it yet, on a busy machine for a while: taking
// that for a change would lose what the buffer held. So it is looked at again
// before it is believed.
func (l *portListener) changed() bool {
	for range portLooks {
		events, err := state(l.f)
		if err != nil || events&(unix.POLLIN|unix.POLLHUP) == unix.POLLIN {
			return false // closed, or there is data that the signal told of
		}
		l.mu.Lock()
		more := l.signals > l.buffers
		l.mu.Unlock()
		if !more {
			return false
		}
		time.Sleep(portSettle)
	}
	return true
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
	unread []byte // read from the driver ahead of the reader
	closed sync.Once

	mu   sync.Mutex
	left bool
}

// leave ends the connection from the host's side.
func (c *portConn) leave() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.left = true
	_ = c.l.f.SetReadDeadline(time.Unix(1, 0))
}

func (c *portConn) hasLeft() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.left
}

// Read reads whole buffers of the driver, so that they can be counted.
func (c *portConn) Read(b []byte) (int, error) {
	if len(c.unread) == 0 {
		buf := make([]byte, portBuffer)
		n, err := c.l.f.Read(buf)
		if n > 0 {
			c.l.mu.Lock()
			c.l.buffers++
			c.l.mu.Unlock()
		}
		if c.hasLeft() {
			return 0, io.EOF
		}
		if err != nil {
			return 0, err
		}
		c.unread = buf[:n]
	}
	n := copy(b, c.unread)
	c.unread = c.unread[n:]
	return n, nil
}

func (c *portConn) Write(b []byte) (int, error) { return c.l.f.Write(b) }

// Close ends the connection; the device stays open.
func (c *portConn) Close() error {
	c.closed.Do(func() {
		c.leave()
		// Whoever comes now is greeted, and waits for it: what lies here is not
		// theirs. The pause also keeps a host that sends garbage from spinning us.
		time.Sleep(portSettle)
		_ = drain(c.l.f)
		c.l.mu.Lock()
		c.l.conn = nil
		c.l.mu.Unlock()
		_ = c.l.f.SetDeadline(time.Time{})
		<-c.l.turn
	})
	return nil
}

func (c *portConn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.left {
		return nil
	}
	return c.l.f.SetReadDeadline(t)
}

func (c *portConn) SetWriteDeadline(t time.Time) error { return c.l.f.SetWriteDeadline(t) }

func (c *portConn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

func (c *portConn) LocalAddr() net.Addr  { return c.l.addr }
func (c *portConn) RemoteAddr() net.Addr { return c.l.addr }

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
