//go:build unix

package qmp

import (
	"errors"
	"net"
	"os"
	"syscall"
)

// notYet says whether a connection attempt failed because QEMU does not listen
// yet, or serves another client.
func notYet(err error) bool {
	return errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.EAGAIN)
}

// send writes data whole, with file's descriptor beside its first byte.
func send(conn net.Conn, data []byte, file *os.File) error {
	if file != nil {
		unix, ok := conn.(*net.UnixConn)
		if !ok {
			return errors.New("passing a file needs a unix socket")
		}
		n, _, err := unix.WriteMsgUnix(data, syscall.UnixRights(int(file.Fd())), nil)
		if err != nil {
			return err
		}
		data = data[n:]
	}
	if len(data) == 0 {
		return nil
	}
	_, err := conn.Write(data)
	return err
}
