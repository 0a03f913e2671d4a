package launch

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/digitalocean/go-libvirt"

	"github.com/evtpm/evtpm/attest"
)

// A fakeLibvirtd is a libvirt daemon at the one seam that a connection is: it
// answers a few calls, with what a test wants.
type fakeLibvirtd struct {
	version uint64
	// answer replaces the answer to a procedure: bytes that are sent as they are.
	answer map[uint32][]byte
	// refuse has a procedure refused with this text.
	refuse map[uint32]string
	// silent procedures are never answered, and cut ones end the connection.
	silent, cut map[uint32]bool
}

// Procedures (src/remote/remote_protocol.x).
const (
	rpcOpen       = 1
	rpcAuthList   = 66
	rpcLibVersion = 157
)

// rpcReply encodes an answer; status 1 is an error.
func rpcReply(call []byte, status uint32, payload []byte) []byte {
	be := binary.BigEndian
	out := make([]byte, minRPCMessage, minRPCMessage+len(payload))
	be.PutUint32(out, uint32(minRPCMessage+len(payload)))
	copy(out[4:16], call[4:16]) // program, version, procedure
	be.PutUint32(out[16:], 1)   // a reply
	copy(out[20:24], call[20:24])
	be.PutUint32(out[24:], status)
	return append(out, payload...)
}

// rpcError is libvirt's remote_error as go-libvirt reads it.
func rpcError(code libvirt.ErrorNumber, text string) []byte {
	be := binary.BigEndian
	out := be.AppendUint32(nil, uint32(code))
	out = be.AppendUint32(out, 10) // domain
	out = be.AppendUint32(out, 1)  // a message is there
	out = be.AppendUint32(out, uint32(len(text)))
	out = append(out, text...)
	out = append(out, make([]byte, (4-len(text)%4)%4)...)
	return be.AppendUint32(out, 2) // level
}

func (f *fakeLibvirtd) serve(c net.Conn) {
	defer c.Close()
	for {
		head := make([]byte, rpcLengthSize)
		if _, err := io.ReadFull(c, head); err != nil {
			return
		}
		call := append(head, make([]byte, binary.BigEndian.Uint32(head)-rpcLengthSize)...)
		if _, err := io.ReadFull(c, call[rpcLengthSize:]); err != nil {
			return
		}
		proc := binary.BigEndian.Uint32(call[12:])
		var reply []byte
		switch {
		case f.silent[proc]:
			continue
		case f.cut[proc]:
			return
		case f.answer[proc] != nil:
			reply = f.answer[proc]
		case f.refuse[proc] != "":
			reply = rpcReply(call, 1, rpcError(libvirt.ErrOperationDenied, f.refuse[proc]))
		case proc == rpcAuthList:
			reply = rpcReply(call, 0, binary.BigEndian.AppendUint32(nil, 0))
		case proc == rpcLibVersion:
			reply = rpcReply(call, 0, binary.BigEndian.AppendUint64(nil, f.version))
		default:
			reply = rpcReply(call, 0, nil)
		}
		if _, err := c.Write(reply); err != nil {
			return
		}
	}
}

// listen has it listen as the daemon of a session, and returns the runtime
// directory.
func (f *fakeLibvirtd) listen(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "lv") // t.TempDir's paths are too long
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Mkdir(filepath.Join(dir, "libvirt"), 0o700); err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("unix", filepath.Join(dir, "libvirt/libvirt-sock"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go f.serve(c)
		}
	}()
	return dir
}

// TestL26LibvirtConnect: what a daemon can do wrong when a launch connects to it,
// and whose fault each is.
func TestL26LibvirtConnect(t *testing.T) {
	longest := make([]byte, 4)
	binary.BigEndian.PutUint32(longest, maxRPCMessage+1)
	shortest := make([]byte, 4)
	binary.BigEndian.PutUint32(shortest, minRPCMessage-1)
	for name, c := range map[string]struct {
		platform string
		daemon   fakeLibvirtd
		class    attest.Class // 0: none
		says     string
	}{
		"sim":           {PlatformSim, fakeLibvirtd{version: 9_000_000}, 0, ""},
		"snp":           {PlatformSNP, fakeLibvirtd{version: 10_005_000}, 0, ""},
		"old for sim":   {PlatformSim, fakeLibvirtd{version: 8_999_999}, 9, "found libvirt 8.999.999, expected 9.0.0 or later for platform sim"},
		"old for snp":   {PlatformSNP, fakeLibvirtd{version: 10_004_000}, 9, "found libvirt 10.4.0, expected 10.5.0 or later for platform snp"},
		"not allowed":   {PlatformSim, fakeLibvirtd{refuse: map[uint32]string{rpcOpen: "access denied"}}, 9, "access denied; see whether this works: virsh -c qemu:///session version"},
		"hangs up":      {PlatformSim, fakeLibvirtd{cut: map[uint32]bool{rpcOpen: true}}, 8, "the connection to libvirt has ended"},
		"hangs up soon": {PlatformSim, fakeLibvirtd{cut: map[uint32]bool{rpcAuthList: true}}, 8, "the connection to libvirt has ended"},
		"silent":        {PlatformSim, fakeLibvirtd{silent: map[uint32]bool{rpcLibVersion: true}}, 10, "version: no end within"},
		"too long":      {PlatformSim, fakeLibvirtd{answer: map[uint32][]byte{rpcLibVersion: longest}}, 8, "found a message of 33554437 bytes, expected 28 to 33554436"},
		"too short":     {PlatformSim, fakeLibvirtd{answer: map[uint32][]byte{rpcOpen: shortest}}, 8, "found a message of 27 bytes"},
		"garbage":       {PlatformSim, fakeLibvirtd{answer: map[uint32][]byte{rpcOpen: []byte("HTTP/1.1 200 OK\r\n\r\n")}}, 8, "found a message of 1213486160 bytes"},
		"half":          {PlatformSim, fakeLibvirtd{answer: map[uint32][]byte{rpcLibVersion: {0, 0, 0, 36, 0x20}}}, 10, "no end within"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, spec := planDir(t, "platform: "+c.platform, "backend: libvirt", "libvirt: {uri: 'qemu:///session'}")
			s := &supervisor{job: &job{RuntimeDir: c.daemon.listen(t)}, plan: &Plan{Spec: spec}}
			v := newLibvirtVM(s)
			place, err := parseLibvirtURI(spec.Libvirt.URI)
			if err != nil {
				t.Fatal(err)
			}
			limit := 30 * time.Second
			if c.class == 10 {
				limit = 200 * time.Millisecond
			}
			ctx, cancel := context.WithTimeoutCause(t.Context(), limit, &timeoutError{limit})
			defer cancel()
			_, err = v.connect(ctx, place)
			if v.conn != nil {
				defer v.conn.close()
			}
			var pe *PhaseError
			switch {
			case c.class == 0:
				if err != nil {
					t.Error(err)
				}
			case err == nil || !errors.As(s.failedIn(ctx, PhaseStart, err), &pe) || pe.Class != c.class || !strings.Contains(err.Error(), c.says):
				t.Errorf("found class %v: %v, expected %v: %s", pe, err, c.class, c.says)
			}
		})
	}
}

// TestL26LibvirtCalls: a call ends with its connection, however that ends, and
// says why.
func TestL26LibvirtCalls(t *testing.T) {
	open := func() *libvirtConn {
		ours, theirs := net.Pipe()
		go (&fakeLibvirtd{silent: map[uint32]bool{rpcLibVersion: true}}).serve(theirs)
		c, err := newLibvirtConn(t.Context(), ours, "qemu:///session")
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	version := func(ctx context.Context, c *libvirtConn) error {
		return c.call(ctx, "version", func(l *libvirt.Libvirt) error {
			_, err := l.ConnectGetLibVersion()
			return err
		})
	}
	c := open()
	go func() {
		time.Sleep(20 * time.Millisecond)
		c.close()
	}()
	if err := version(t.Context(), c); !errors.Is(err, errLibvirtGone) {
		t.Errorf("found %v, expected the connection's end", err)
	}
	if err := version(t.Context(), c); !errors.Is(err, errLibvirtGone) {
		t.Errorf("a later call: found %v, expected the connection's end", err)
	}
	c = open()
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errStopped)
	if err := version(ctx, c); !errors.Is(err, errStopped) {
		t.Errorf("found %v, expected the context's cause", err)
	}
	select {
	case <-c.ended():
	case <-time.After(30 * time.Second):
		t.Error("the connection lives on after a call that was given up")
	}
	c = open()
	if err := c.call(t.Context(), "panic", func(*libvirt.Libvirt) error { panic("no") }); err == nil || !strings.Contains(err.Error(), "found an answer that is none: no") {
		t.Errorf("found %v, expected an error about the answer", err)
	}
	c.close()
}

// TestLibvirtRefusals: what cannot be launched through a libvirt is said at once.
func TestLibvirtRefusals(t *testing.T) {
	for name, c := range map[string]struct {
		lines []string
		euid  int
		want  []string
	}{
		"qemu":            {[]string{"platform: sim"}, 0, nil},
		"session":         {[]string{"platform: sim", "backend: libvirt"}, 1000, nil},
		"session of root": {[]string{"platform: sim", "backend: libvirt"}, 0, []string{"qemu:///session for root, expected qemu:///system"}},
		"system of root":  {[]string{"platform: sim", "backend: libvirt", "libvirt: {uri: 'qemu:///system'}"}, 0, nil},
		"remote sim":      {[]string{"platform: sim", "backend: libvirt", "libvirt: {uri: 'qemu+ssh://h/system'}"}, 0, []string{"with platform sim", "expected tcp"}},
		"remote": {[]string{"platform: snp", "backend: libvirt", "libvirt: {uri: 'qemu+ssh://h/system'}", "networks: [{type: user}]",
			"agent: {transport: tcp, address: 'h:7600'}"}, 0, nil},
		"remote by port": {[]string{"platform: snp", "backend: libvirt", "libvirt: {uri: 'qemu+ssh://h/system'}"}, 0, []string{"agent.transport virtio-serial, expected tcp"}},
	} {
		_, spec := planDir(t, c.lines...)
		err := checkLibvirtLaunch(spec, c.euid)
		if (err == nil) != (c.want == nil) {
			t.Errorf("%s: found %v, expected %q", name, err, c.want)
		}
		for _, want := range c.want {
			if err != nil && !strings.Contains(err.Error(), want) {
				t.Errorf("%s: found %v, expected %s", name, err, want)
			}
		}
	}
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
