//go:build !unix

package qmp

import (
	"errors"
	"net"
	"os"
)

// notYet is false: elsewhere nothing is known about why a connection failed.
func notYet(error) bool { return false }

func send(conn net.Conn, data []byte, file *os.File) error {
	if file != nil {
		return errors.New("passing a file needs a unix socket")
	}
	_, err := conn.Write(data)
	return err
}
