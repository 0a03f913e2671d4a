package machine

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/evtpm/evtpm/attest"
	"github.com/evtpm/evtpm/attest/evidence"
	"github.com/evtpm/evtpm/launch"
	"github.com/evtpm/evtpm/launch/launchtest"
	"github.com/evtpm/evtpm/launch/process"
)

// TestL23_LinesAreBounded: a peer that sends a line without end, or nothing, is
// not listened to for ever.
func TestL23_LinesAreBounded(t *testing.T) {
	ours, theirs := net.Pipe()
	defer ours.Close()
	defer theirs.Close()
	go func() {
		for {
			if _, err := theirs.Write(bytes.Repeat([]byte("x"), 4096)); err != nil {
				return
			}
		}
	}()
	var r request
	if err := newLineConn(ours).receive(&r, maxRequest); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("an endless line: %v", err)
	}
}

func TestErrorsOnTheWire(t *testing.T) {
	in := &PhaseError{Phase: PhaseBoot, Class: attest.ClassTimeout, Err: errors.New("no end within 2s")}
	var pe *PhaseError
	if err := toWire(in).error(); !errors.As(err, &pe) || pe.Phase != PhaseBoot || pe.ExitCode() != 10 || err.Error() != in.Error() {
		t.Errorf("found %#v", err)
	}
	if err := toWire(errors.New("x")).error(); classOf(err) != attest.ClassLaunch || err.Error() != "x" {
		t.Errorf("found %#v", err)
	}
}

func TestParseAgentAddress(t *testing.T) {
	for _, good := range []string{"unix:/run/agent.sock", "unix:rel", "tcp:localhost:7600", "tcp:[::1]:7600", "vsock:42:7600"} {
		a, err := ParseAgentAddress(good)
		if err != nil || a.String() != good {
			t.Errorf("%q: %v, %v", good, a, err)
		}
	}
	for _, bad := range []string{"", "unix", "unix:", "tcp:localhost", "tcp::1", "tcp:h:", "vsock:1", "vsock:a:b", "vsock:1:2:3", "vsock:-1:2", "vsock:4294967296:1", "http://x", "udp:h:1"} {
		if a, err := ParseAgentAddress(bad); err == nil {
			t.Errorf("%q: accepted as %v", bad, a)
		}
	}
}

func FuzzAgentAddress(f *testing.F) {
	for _, s := range []string{"unix:/a", "tcp:[::1]:7600", "vsock:42:7600", "vsock:42"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		a, err := ParseAgentAddress(text)
		if err == nil && a.String() != text {
			t.Errorf("%q became %q", text, a)
		}
	})
}

// TestAgentDialWaits: the agent's address is tried until it is there, or the
// context ends.
func TestAgentDialWaits(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	go func() {
		time.Sleep(30 * time.Millisecond)
		ln, err := net.Listen("unix", path)
		if err != nil {
			return
		}
		defer ln.Close()
		c, err := ln.Accept()
		if err == nil {
			io.WriteString(c, "x")
			c.Close()
		}
	}()
	c, err := (AgentAddress{Network: "unix", Address: path}).dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(c); err != nil || string(b) != "x" {
		t.Errorf("found %q, %v", b, err)
	}
}

// agentsAt serves one connection to path after another, as agents in turn.
func agentsAt(t *testing.T, path string, agents ...func(net.Conn)) {
	t.Helper()
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for _, agent := range agents {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			agent(c)
			c.Close()
		}
	}()
}

func TestGreetConnectsAgain(t *testing.T) {
	t.Parallel()
	hangUp := func(net.Conn) {}
	halfway := func(c net.Conn) { io.WriteString(c, "evtp") }
	// Nothing comes through, whatever is asked, until the other end has closed.
	silent := func(c net.Conn) { io.Copy(io.Discard, c) }
	reset := func(c net.Conn) {
		// What is unread where a socket is closed resets the other end.
		c.SetReadDeadline(time.Now().Add(5 * time.Second))
		c.Read(make([]byte, 1))
	}
	hello := func(c net.Conn) {
		evidence.WriteFrame(c, evidence.FrameHello, []byte(`{"agent_version":"test","boot_id":"b","sources":[]}`))
		io.Copy(io.Discard, c)
	}
	address := AgentAddress{Network: "unix", Address: filepath.Join(t.TempDir(), "s")}
	agentsAt(t, address.Address, hangUp, halfway, reset, silent, hello)
	conn, h, err := address.Greet(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if h.AgentVersion != "test" {
		t.Errorf("found %+v", h)
	}
	conn.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the connection is %v", err)
	}
}

func TestGreetGivesUp(t *testing.T) {
	over := errors.New("over")
	hangUps := slices.Repeat([]func(net.Conn){func(net.Conn) {}}, 100)
	for name, c := range map[string]struct {
		agents []func(net.Conn)
		want   error
	}{
		"another protocol": {[]func(net.Conn){func(c net.Conn) { io.WriteString(c, "SSH-2.0-OpenSSH_9.2p1") }}, evidence.ErrFrame},
		"hangs up":         {hangUps, over},
		"says nothing":     {[]func(net.Conn){func(c net.Conn) { io.Copy(io.Discard, c) }}, over},
		"nobody":           {nil, over},
	} {
		t.Run(name, func(t *testing.T) {
			address := AgentAddress{Network: "unix", Address: filepath.Join(t.TempDir(), "s")}
			if c.agents != nil {
				agentsAt(t, address.Address, c.agents...)
			}
			ctx, cancel := context.WithTimeoutCause(t.Context(), 300*time.Millisecond, over)
			defer cancel()
			conn, h, err := address.Greet(ctx)
			if conn != nil || h != nil || !errors.Is(err, c.want) || errors.Is(err, fs.ErrNotExist) {
				t.Errorf("found %v, %v, %v; expected %v", conn, h, err, c.want)
			}
		})
	}
}

// TestOutboxNeverWaits: a launcher that does not read is cut off, and holds up
// nothing.
func TestOutboxNeverWaits(t *testing.T) {
	ours, theirs, err := process.SocketPair("test")
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	o := newOutbox(newLineConn(ours))
	began := time.Now()
	big := reply{Event: &Event{Message: strings.Repeat("x", 4096)}}
	for range 5000 {
		o.put(big)
	}
	if took := time.Since(began); took > time.Second {
		t.Errorf("put waited: %v", took)
	}
	done := make(chan struct{})
	go func() {
		o.close()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(2 * writeTimeout):
		t.Error("close waits for ever")
	}
}

// TestOutboxSendsEverything: what was put before close arrives.
func TestOutboxSendsEverything(t *testing.T) {
	ours, file, err := process.SocketPair("test")
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := connOf(file)
	if err != nil {
		t.Fatal(err)
	}
	o := newOutbox(newLineConn(ours))
	for range 100 {
		o.put(reply{Event: &Event{Message: "x"}})
	}
	o.put(reply{Error: &wireError{Message: "last"}})
	go o.close()
	n := 0
	for {
		var r reply
		if err := theirs.receive(&r, maxReply); err != nil {
			t.Fatalf("after %d: %v", n, err)
		}
		if r.Error != nil {
			break
		}
		n++
	}
	if n != 100 {
		t.Errorf("found %d events, expected 100", n)
	}
}

// TestRecordHasNoUnknownFields: what a supervisor writes, ps reads.
func TestRecordRoundTrip(t *testing.T) {
	now := time.Now().UTC().Round(time.Second)
	in := Record{
		Schema: RecordSchema, Name: "m", Platform: "sim", State: StateTrusted, Reason: "r", Running: true, Grace: launch.Duration(time.Second), Phase: PhaseVerdict, Class: 6,
		Created: now, Updated: now, Supervisor: process.Process{PID: 1, Start: 2}, Processes: []process.Process{{Name: "qemu", PID: 3, Start: 4}},
		Boots: 1, LaunchDigest: "00", Agent: "unix:/a", Timings: []Timing{{Phase: PhaseBoot, Elapsed: 1.5}},
		Verdict: &VerdictSummary{Result: "trusted", Reasons: []string{"a"}, Time: now},
	}
	data, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	launchtest.Write(t, filepath.Join(dir, fileMachine), data)
	out, err := readRecord(dir, "m")
	if err != nil {
		t.Fatal(err)
	}
	again, err := json.Marshal(out)
	if err != nil || !bytes.Equal(data, again) {
		t.Errorf("found\n%s\nexpected\n%s", again, data)
	}
}

// TestSupervisorAlone: started by hand, or by something else than a launch, the
// supervisor ends with an error.
func TestSupervisorAlone(t *testing.T) {
	for name, job := range map[string]string{"nothing": "", "garbage": "\x00\xff\n", "another version": `{"schema":"evtpm.job/v2"}` + "\n", "no plan": `{"schema":"evtpm.job/v1","plan":{}}` + "\n"} {
		ours, file, err := process.SocketPair("test")
		if err != nil {
			t.Fatal(err)
		}
		theirs, err := connOf(file)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(ours, job); err != nil {
			t.Fatal(err)
		}
		go func() {
			_, _ = io.Copy(io.Discard, ours)
			ours.Close()
		}()
		ours.(*net.UnixConn).CloseWrite()
		h := testHome(t)
		c, err := h.claim("m")
		if err != nil {
			t.Fatal(err)
		}
		if s, err := takeJob(theirs, func(int) (*os.File, error) { return c.lock, nil }); err == nil {
			t.Errorf("%s: accepted: %+v", name, s)
		}
		if names, err := h.names(); err != nil || len(names) > 0 {
			t.Errorf("%s: folders %v are left, %v", name, names, err)
		}
		theirs.Close()
	}
}
