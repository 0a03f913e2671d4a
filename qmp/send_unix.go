//go:build unix

package qmp

import (
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
)

// notYet says whether a connection attempt failed because QEMU does not listen
// yet, or has a full queue.
func notYet(err error) bool {
	return errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.EAGAIN)
}

// send writes data whole, with file's descriptor beside its first byte. It
// returns how many bytes were written.
func send(conn net.Conn, data []byte, file *os.File) (int, error) {
	if file == nil {
		return conn.Write(data)
	}
	unix, ok := conn.(*net.UnixConn)
	if !ok {
		return 0, fmt.Errorf("%w: it needs a unix socket", errFile)
	}
	// Not file.Fd: it would make the file blocking.
	raw, err := file.SyscallConn()
	if err != nil {
		return 0, fmt.Errorf("%w: %w", errFile, err)
	}
	var n int
	var sendErr error
	if err := raw.Control(func(fd uintptr) {
		n, _, sendErr = unix.WriteMsgUnix(data, syscall.UnixRights(int(fd)), nil)
	}); err != nil {
		return 0, fmt.Errorf("%w: %w", errFile, err)
	}
	if sendErr != nil || n == len(data) {
		return n, sendErr
	}
	m, err := conn.Write(data[n:])
	return n + m, err
}
