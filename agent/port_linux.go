package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// portPoll is how often an unconnected port is looked at: a virtio-serial port
// tells nobody that the host has come.
const portPoll = 20 * time.Millisecond

// ListenPort opens a virtio-serial port and presents it as a listener: a
// connection begins when the host side is there and ends when it leaves. There
// is at most one at a time.
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
	c := &portConn{File: f, addr: portAddr(device), close: f.Close}
	for {
		connected, err := hostConnected(f)
		if err == nil && connected {
			err = drain(f)
			if err == nil {
				return c, nil
			}
		}
		if err != nil {
			f.Close()
			return nil, err
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, ctx.Err()
		case <-time.After(portPoll):
		}
	}
}

func openPort(device string) (*os.File, error) {
	// Non-blocking, so that deadlines work.
	return os.OpenFile(device, os.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
}

// hostConnected says whether the host side of a port is open: the driver
// reports a hang-up otherwise.
func hostConnected(f *os.File) (connected bool, err error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return false, err
	}
	ctlErr := raw.Control(func(fd uintptr) {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN | unix.POLLOUT}}
		if _, err = unix.Poll(p, 0); errors.Is(err, unix.EINTR) {
			err = nil
			return
		}
		connected = p[0].Revents&(unix.POLLHUP|unix.POLLERR|unix.POLLNVAL) == 0
	})
	return connected, errors.Join(ctlErr, err)
}

// drain drops what lies unread in a port, at most the largest frame's worth.
func drain(f *os.File) error {
	if err := f.SetReadDeadline(time.Now().Add(time.Millisecond)); err != nil {
		return err
	}
	buf := make([]byte, 32<<10)
	for range 128 {
		if n, err := f.Read(buf); n == 0 || err != nil {
			break
		}
	}
	return f.SetReadDeadline(time.Time{})
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
			break
		}
		select {
		case <-time.After(portPoll):
		case <-l.done:
			return nil, net.ErrClosed
		}
	}
	var once sync.Once
	return &portConn{File: l.f, addr: l.addr, close: func() error {
		once.Do(func() {
			// The device stays open. Wake a reader or writer of this connection;
			// the pause keeps a host that sends garbage from spinning us.
			_ = l.f.SetDeadline(time.Unix(1, 0))
			time.Sleep(portPoll)
			_ = drain(l.f)
			_ = l.f.SetDeadline(time.Time{})
			<-l.turn
		})
		return nil
	}}, nil
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

// portConn is one connection over a port.
type portConn struct {
	*os.File
	addr  portAddr
	close func() error
}

func (c *portConn) Close() error         { return c.close() }
func (c *portConn) LocalAddr() net.Addr  { return c.addr }
func (c *portConn) RemoteAddr() net.Addr { return c.addr }

type portAddr string

func (a portAddr) Network() string { return "virtio-serial" }
func (a portAddr) String() string  { return string(a) }
