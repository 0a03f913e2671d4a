//go:build unix

package inputfile

import (
	"net"
	"path/filepath"
	"syscall"
	"testing"
)

// specialFiles makes or names files of other kinds, and what the error says.
func specialFiles(t *testing.T, dir string) map[string]string {
	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	// Not "socket": an error of the open, which must not be tried, has the name in it.
	socket := filepath.Join(dir, "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return map[string]string{fifo: "named pipe", socket: "socket", "/dev/zero": "device"}
}
