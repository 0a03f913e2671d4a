//go:build unix

package qmp

import (
	"context"
	"errors"
	"net"
	"os"
	"syscall"
	"testing"
	"time"
)

// serveOne answers the negotiation of the first client that ln accepts.
func serveOne(t *testing.T, ln net.Listener) {
	conn, err := ln.Accept()
	if err != nil {
		return
	}
	negotiate(conn, readCommands(conn))
	<-t.Context().Done()
	conn.Close()
}

// TestL04_ListensLate: QEMU makes its socket some time after it starts.
func TestL04_ListensLate(t *testing.T) {
	path := t.TempDir() + "/q.sock"
	time.AfterFunc(80*time.Millisecond, func() {
		if ln, err := net.Listen("unix", path); err == nil {
			t.Cleanup(func() { ln.Close() })
			serveOne(t, ln)
		}
	})
	c, err := Dial(within(t, 5*time.Second), "unix", path)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}

// TestL04_StaleSocket: nobody listens on the socket that an earlier process left
// (ECONNREFUSED), until QEMU replaces it.
func TestL04_StaleSocket(t *testing.T) {
	path := t.TempDir() + "/q.sock"
	stale, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	stale.(*net.UnixListener).SetUnlinkOnClose(false)
	stale.Close()
	time.AfterFunc(80*time.Millisecond, func() {
		os.Remove(path)
		if ln, err := net.Listen("unix", path); err == nil {
			t.Cleanup(func() { ln.Close() })
			serveOne(t, ln)
		}
	})
	c, err := Dial(within(t, 5*time.Second), "unix", path)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}

// TestL04_QueueFull: QEMU listens with a queue of one, and clients that gave up
// fill it (EAGAIN), until QEMU takes them off.
func TestL04_QueueFull(t *testing.T) {
	path := t.TempDir() + "/q.sock"
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	file := os.NewFile(uintptr(fd), path)
	defer file.Close()
	if err := errors.Join(syscall.Bind(fd, &syscall.SockaddrUnix{Name: path}), syscall.Listen(fd, 1)); err != nil {
		t.Fatal(err)
	}
	ln, err := net.FileListener(file)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	queued := 0
	for ; ; queued++ {
		conn, err := net.Dial("unix", path)
		if err != nil {
			break
		}
		conn.Close()
	}
	time.AfterFunc(80*time.Millisecond, func() {
		for range queued {
			if conn, err := ln.Accept(); err == nil {
				conn.Close()
			}
		}
		serveOne(t, ln)
	})
	c, err := Dial(within(t, 5*time.Second), "unix", path)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}

// TestL04_ErrorThatStays: what will not go away by waiting is not waited for.
func TestL04_ErrorThatStays(t *testing.T) {
	long := make([]byte, 200)
	for i := range long {
		long[i] = 'x'
	}
	begin := time.Now()
	if _, err := Dial(within(t, 5*time.Second), "unix", "/"+string(long)); err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("found %v, expected an error about the path", err)
	}
	if took := time.Since(begin); took > 2*time.Second {
		t.Errorf("took %v", took)
	}
}

// TestExecuteWithFile: the descriptor arrives with the command, and stays usable
// here.
func TestExecuteWithFile(t *testing.T) {
	path := t.TempDir() + "/q.sock"
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	received := make(chan string, 1)
	go func() {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		cmds := make(chan map[string]any)
		go negotiate(conn, cmds)
		buf, oob := make([]byte, 4096), make([]byte, 64)
		unix := conn.(*net.UnixConn)
		n, _, _, _, _ := unix.ReadMsgUnix(buf, oob)
		cmds <- parseCommand(buf[:n])
		n, oobn, _, _, _ := unix.ReadMsgUnix(buf, oob)
		id := parseCommand(buf[:n])["id"]
		messages, err := syscall.ParseSocketControlMessage(oob[:oobn])
		if err != nil || len(messages) != 1 {
			received <- "no control message"
			return
		}
		fds, err := syscall.ParseUnixRights(&messages[0])
		if err != nil || len(fds) != 1 {
			received <- "no descriptor"
			return
		}
		file := os.NewFile(uintptr(fds[0]), "received")
		defer file.Close()
		n, _ = file.ReadAt(buf, 0)
		received <- string(buf[:n])
		respond(conn, id, "{}")
		conn.Read(buf)
	}()
	c, err := Dial(within(t, 5*time.Second), "unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	file, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	file.WriteString("contents")
	if err := c.ExecuteWithFile(within(t, 5*time.Second), "getfd", nil, nil, file); err != nil {
		t.Fatal(err)
	}
	if got := <-received; got != "contents" {
		t.Errorf("found %q through the descriptor, expected the file's contents", got)
	}
	if _, err := file.Stat(); err != nil {
		t.Error(err)
	}
	file.Close()
	if err := c.ExecuteWithFile(within(t, 5*time.Second), "getfd", nil, nil, file); !errors.Is(err, errFile) {
		t.Errorf("found %v, expected an error about a closed file", err)
	}
	if c.Err() != nil {
		t.Errorf("the connection was harmed: %v", c.Err())
	}
}

func TestExecuteWithFileNeedsUnixSocket(t *testing.T) {
	c := connect(t, func(_ testing.TB, conn net.Conn, cmds <-chan map[string]any) {
		negotiate(conn, cmds)
		respond(conn, (<-cmds)["id"], "{}")
	})
	file, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := c.ExecuteWithFile(within(t, 5*time.Second), "getfd", nil, nil, file); err == nil {
		t.Error("accepted on a pipe")
	}
	if err := c.Cont(within(t, 5*time.Second)); err != nil {
		t.Errorf("the connection was harmed: %v", err)
	}
}
