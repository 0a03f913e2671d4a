//go:build !unix

package qmp

import (
	"fmt"
	"net"
	"os"
)

// notYet is false: elsewhere nothing is known about why a connection failed.
func notYet(error) bool { return false }

func send(conn net.Conn, data []byte, file *os.File) (int, error) {
	if file != nil {
		return 0, fmt.Errorf("%w: it needs a unix socket", errFile)
	}
	return conn.Write(data)
}
