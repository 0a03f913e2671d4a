package agent

import (
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// ListenVsock listens on a vsock port for connections from the host or, where
// the hypervisor routes them, from other guests.
func ListenVsock(port uint32) (net.Listener, error) {
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("vsock: %w", err)
	}
	sa := &unix.SockaddrVM{CID: unix.VMADDR_CID_ANY, Port: port}
	if err := errors.Join(unix.Bind(fd, sa), unix.Listen(fd, maxConns)); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("vsock port %d: %w", port, err)
	}
	return &vsockListener{File: os.NewFile(uintptr(fd), "vsock"), addr: vsockAddr{unix.VMADDR_CID_ANY, port}}, nil
}

type vsockListener struct {
	*os.File
	addr vsockAddr
}

// Accept waits through the runtime's poller, so that Close ends it.
func (l *vsockListener) Accept() (net.Conn, error) {
	raw, err := l.SyscallConn()
	if err != nil {
		return nil, err
	}
	var conn *vsockConn
	var acceptErr error
	err = raw.Read(func(fd uintptr) bool {
		n, sa, err := unix.Accept4(int(fd), unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
		switch {
		case errors.Is(err, syscall.EAGAIN):
			return false
		case err != nil:
			acceptErr = err
			return true
		}
		conn = &vsockConn{File: os.NewFile(uintptr(n), "vsock"), local: l.addr}
		if vm, ok := sa.(*unix.SockaddrVM); ok {
			conn.remote = vsockAddr{vm.CID, vm.Port}
		}
		return true
	})
	if err = errors.Join(err, acceptErr); err != nil {
		return nil, err
	}
	return conn, nil
}

func (l *vsockListener) Addr() net.Addr { return l.addr }

type vsockConn struct {
	*os.File
	local, remote vsockAddr
}

func (c *vsockConn) LocalAddr() net.Addr  { return c.local }
func (c *vsockConn) RemoteAddr() net.Addr { return c.remote }

// vsockAddr is a context identifier and a port.
type vsockAddr struct{ cid, port uint32 }

func (a vsockAddr) Network() string { return "vsock" }
func (a vsockAddr) String() string  { return fmt.Sprintf("%d:%d", a.cid, a.port) }
