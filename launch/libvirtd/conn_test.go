package libvirtd

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/digitalocean/go-libvirt"

	"github.com/evtpm/evtpm/launch/libvirtd/libvirtdtest"
)

// TestL26LibvirtCalls: a call ends with its connection, however that ends, and
// says why.
func TestL26LibvirtCalls(t *testing.T) {
	open := func() *Conn {
		ours, theirs := net.Pipe()
		go (&libvirtdtest.Daemon{Silent: map[uint32]bool{libvirtdtest.ProcLibVersion: true}}).Serve(theirs)
		c, err := NewConn(t.Context(), ours, "qemu:///session")
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	version := func(ctx context.Context, c *Conn) error {
		return c.Call(ctx, "version", func(l *libvirt.Libvirt) error {
			_, err := l.ConnectGetLibVersion()
			return err
		})
	}
	c := open()
	go func() {
		time.Sleep(20 * time.Millisecond)
		c.Close()
	}()
	if err := version(t.Context(), c); !errors.Is(err, ErrGone) {
		t.Errorf("found %v, expected the connection's end", err)
	}
	if err := version(t.Context(), c); !errors.Is(err, ErrGone) {
		t.Errorf("a later call: found %v, expected the connection's end", err)
	}
	c = open()
	stopped := errors.New("stopped")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(stopped)
	if err := version(ctx, c); !errors.Is(err, stopped) {
		t.Errorf("found %v, expected the context's cause", err)
	}
	select {
	case <-c.Ended():
	case <-time.After(30 * time.Second):
		t.Error("the connection lives on after a call that was given up")
	}
	c = open()
	if err := c.Call(t.Context(), "panic", func(*libvirt.Libvirt) error { panic("no") }); err == nil || !strings.Contains(err.Error(), "found an answer that is none: no") {
		t.Errorf("found %v, expected an error about the answer", err)
	}
	c.Close()
}

// FuzzRPC: whatever a daemon sends, messages beyond their bounds end the
// connection, and all others pass as they are.
func FuzzRPC(f *testing.F) {
	f.Add([]byte{0, 0, 0, 28}, 1)
	f.Add(append([]byte{0, 0, 0, 30}, make([]byte, 26)...), 3)
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0}, 2)
	f.Add([]byte{0, 0, 0, 0}, 4)
	f.Fuzz(func(t *testing.T, data []byte, chunk int) {
		c := &rpcConn{Conn: &chunkConn{data: data, chunk: chunk&15 + 1}, ended: make(chan struct{})}
		got, err := io.ReadAll(c)
		if err == nil && string(got) != string(data) {
			t.Errorf("passed %x of %x", got, data)
		}
		if left := data[len(got):]; err != nil && len(left) == 0 {
			t.Errorf("failed with %v after all of %x", err, data)
		}
	})
}

// chunkConn is a connection that data comes from in pieces.
type chunkConn struct {
	net.Conn
	data  []byte
	chunk int
}

func (c *chunkConn) Read(p []byte) (int, error) {
	if len(c.data) == 0 {
		return 0, io.EOF
	}
	n := copy(p[:min(len(p), c.chunk)], c.data)
	c.data = c.data[n:]
	return n, nil
}

func (*chunkConn) Close() error { return nil }
