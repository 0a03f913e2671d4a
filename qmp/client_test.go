package qmp

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"
)

const hello = `{"QMP": {"version": {"qemu": {"micro": 2, "minor": 0, "major": 10}, "package": "test"}, "capabilities": ["oob"]}}` + "\r\n"

// fake is a QEMU whose side of the connection is a function.
func fake(t testing.TB, serve func(t testing.TB, conn net.Conn, commands <-chan map[string]any)) net.Conn {
	ours, theirs := net.Pipe()
	commands := make(chan map[string]any, 64)
	go func() {
		defer close(commands)
		dec := json.NewDecoder(theirs)
		for {
			var c map[string]any
			if dec.Decode(&c) != nil {
				return
			}
			commands <- c
		}
	}()
	go serve(t, theirs, commands)
	t.Cleanup(func() { theirs.Close() })
	return ours
}

// negotiate plays the greeting and the capabilities reply.
func negotiate(conn net.Conn, commands <-chan map[string]any) {
	io.WriteString(conn, hello)
	c := <-commands
	fmt.Fprintf(conn, `{"return": {}, "id": %q}`+"\r\n", c["id"])
}

func connect(t testing.TB, serve func(t testing.TB, conn net.Conn, commands <-chan map[string]any)) *Client {
	t.Helper()
	c, err := NewClient(t.Context(), fake(t, serve))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func within(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func TestL02_GreetingNeverComes(t *testing.T) {
	conn := fake(t, func(testing.TB, net.Conn, <-chan map[string]any) {})
	_, err := NewClient(within(t, 50*time.Millisecond), conn)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("found %v, expected a deadline", err)
	}
}

func TestL03_CapabilitiesNeverAnswered(t *testing.T) {
	conn := fake(t, func(_ testing.TB, conn net.Conn, _ <-chan map[string]any) { io.WriteString(conn, hello) })
	_, err := NewClient(within(t, 50*time.Millisecond), conn)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("found %v, expected a deadline", err)
	}
}

func TestL03_ReplyNeverComes(t *testing.T) {
	c := connect(t, func(_ testing.TB, conn net.Conn, cmds <-chan map[string]any) { negotiate(conn, cmds) })
	err := c.Cont(within(t, 50*time.Millisecond))
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("found %v, expected a deadline", err)
	}
	if c.Err() != nil {
		t.Fatalf("the connection ended: %v", c.Err())
	}
}

func TestL04_ListensLate(t *testing.T) {
	path := t.TempDir() + "/q.sock"
	go func() {
		time.Sleep(80 * time.Millisecond)
		ln, err := net.Listen("unix", path)
		if err != nil {
			return
		}
		defer ln.Close()
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		io.WriteString(conn, hello)
		line, _ := bufio.NewReader(conn).ReadString('\n')
		var cmd map[string]any
		json.Unmarshal([]byte(line), &cmd)
		fmt.Fprintf(conn, `{"return": {}, "id": %q}`+"\n", cmd["id"])
		io.Copy(io.Discard, conn)
	}()
	c, err := Dial(within(t, 5*time.Second), "unix", path)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}

func TestL01_DialEndsWithContext(t *testing.T) {
	died := errors.New("qemu exited")
	ctx, cancel := context.WithCancelCause(t.Context())
	time.AfterFunc(50*time.Millisecond, func() { cancel(died) })
	_, err := Dial(ctx, "unix", t.TempDir()+"/none.sock")
	if !errors.Is(err, died) {
		t.Fatalf("found %v, expected the cause of the context", err)
	}
}

// TestL05_Garbage: whatever comes in place of the greeting or a reply ends the
// connection with an error, and the calls under way with it.
func TestL05_Garbage(t *testing.T) {
	for name, text := range map[string]string{
		"malformed":     "{]\n",
		"not an object": "17\n",
		"NUL":           "\x00\x00\n",
		"half then EOF": `{"QMP": {"ver`,
		"invalid UTF-8": "\xff\xfe{}\n",
		"empty object":  "{}\n",
		"version type":  `{"QMP": {"version": "ten"}}` + "\n",
		"huge number":   `{"QMP": {"version": {"qemu": {"major": 99999999999999999999}}}}` + "\n",
	} {
		t.Run("greeting/"+name, func(t *testing.T) {
			conn := fake(t, func(_ testing.TB, conn net.Conn, _ <-chan map[string]any) {
				io.WriteString(conn, text)
				conn.Close()
			})
			if _, err := NewClient(within(t, 5*time.Second), conn); err == nil {
				t.Fatal("accepted")
			}
		})
		if name == "not an object" || name == "empty object" || strings.HasPrefix(text, `{"QMP": {"version"`) {
			continue
		}
		t.Run("reply/"+name, func(t *testing.T) {
			c := connect(t, func(_ testing.TB, conn net.Conn, cmds <-chan map[string]any) {
				negotiate(conn, cmds)
				<-cmds
				io.WriteString(conn, text)
				conn.Close()
			})
			err := c.Cont(within(t, 5*time.Second))
			if !errors.Is(err, ErrClosed) {
				t.Fatalf("found %v, expected ErrClosed", err)
			}
		})
	}
}

func TestL05_SplitAndJoinedMessages(t *testing.T) {
	c := connect(t, func(_ testing.TB, conn net.Conn, cmds <-chan map[string]any) {
		negotiate(conn, cmds)
		a := <-cmds
		text := fmt.Sprintf(`{"event": "A", "timestamp": {"seconds": 1, "microseconds": 2}}`+"\n\r\n"+`{"return": {"status": "paused"}, "id": %q}`+"\n", a["id"])
		for _, r := range []byte(text) {
			conn.Write([]byte{r})
		}
		b := <-cmds
		fmt.Fprintf(conn, `{"event": "B"}`+"\n"+`{"return": {"status": "running"}, "id": %q}`+"\n", b["id"])
	})
	for _, want := range []string{"paused", "running"} {
		s, err := c.QueryStatus(within(t, 5*time.Second))
		if err != nil || s.Status != want {
			t.Fatalf("found %v, %v, expected %s", s, err, want)
		}
	}
	if e := <-c.Events(); e.Name != "A" || e.Time.UnixMicro() != 1000002 {
		t.Fatalf("found event %+v", e)
	}
	if e := <-c.Events(); e.Name != "B" {
		t.Fatalf("found event %+v", e)
	}
}

// TestL06_EndlessLine: a line without an end is given up at the cap.
func TestL06_EndlessLine(t *testing.T) {
	sent := 0
	conn := fake(t, func(_ testing.TB, conn net.Conn, cmds <-chan map[string]any) {
		negotiate(conn, cmds)
		<-cmds
		chunk := []byte(strings.Repeat("x", 1<<20))
		for range 1024 {
			n, err := conn.Write(chunk)
			sent += n
			if err != nil {
				return
			}
		}
	})
	c, err := NewClient(t.Context(), conn)
	if err != nil {
		t.Fatal(err)
	}
	err = c.Cont(within(t, 20*time.Second))
	if !errors.Is(err, ErrTooLong) || !errors.Is(err, ErrClosed) {
		t.Fatalf("found %v, expected ErrTooLong", err)
	}
	c.Close()
}

func TestL07_EventFlood(t *testing.T) {
	const flood = 1_000_000
	c := connect(t, func(_ testing.TB, conn net.Conn, cmds <-chan map[string]any) {
		negotiate(conn, cmds)
		cmd := <-cmds
		w := bufio.NewWriterSize(conn, 1<<20)
		for range flood {
			w.WriteString(`{"event":"RTC_CHANGE"}` + "\n")
		}
		fmt.Fprintf(w, `{"return": {}, "id": %q}`+"\n", cmd["id"])
		w.Flush()
	})
	if err := c.Cont(within(t, 60*time.Second)); err != nil {
		t.Fatal(err)
	}
	if got := c.Dropped(); got != flood-eventQueue {
		t.Fatalf("dropped %d events, expected %d", got, flood-eventQueue)
	}
}

// TestL08_Ids: a reply goes to the call it names, and to no other.
func TestL08_Ids(t *testing.T) {
	c := connect(t, func(_ testing.TB, conn net.Conn, cmds <-chan map[string]any) {
		negotiate(conn, cmds)
		first := <-cmds // gives up before its answer comes
		cmd := <-cmds
		for _, id := range []string{`"nobody"`, `17`, `null`, `{"a": 1}`, fmt.Sprintf("%q", first["id"])} {
			fmt.Fprintf(conn, `{"return": {"status": "wrong"}, "id": %s}`+"\n", id)
		}
		fmt.Fprint(conn, `{"return": {"status": "wrong"}}`+"\n", `{"error": {"class": "GenericError", "desc": "wrong"}}`+"\n")
		fmt.Fprintf(conn, `{"id": %q}`+"\n", cmd["id"])
		for range 2 {
			fmt.Fprintf(conn, `{"return": {"status": "right"}, "id": %q}`+"\n", cmd["id"])
		}
		cmd = <-cmds
		fmt.Fprintf(conn, `{"return": {"status": "next"}, "id": %q}`+"\n", cmd["id"])
	})
	if _, err := c.QueryStatus(within(t, 30*time.Millisecond)); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("found %v, expected a deadline", err)
	}
	for _, want := range []string{"right", "next"} {
		s, err := c.QueryStatus(within(t, 5*time.Second))
		if err != nil || s.Status != want {
			t.Fatalf("found %v, %v, expected %q", s, err, want)
		}
	}
}

func TestErrorKeepsItsClass(t *testing.T) {
	c := connect(t, func(_ testing.TB, conn net.Conn, cmds <-chan map[string]any) {
		negotiate(conn, cmds)
		cmd := <-cmds
		fmt.Fprintf(conn, `{"error": {"class": "CommandNotFound", "desc": "no such command"}, "id": %q}`+"\n", cmd["id"])
		cmd = <-cmds
		fmt.Fprintf(conn, `{"error": {}, "id": %q}`+"\n", cmd["id"])
	})
	var e *Error
	if err := c.Execute(t.Context(), "nosuch", nil, nil); !errors.As(err, &e) || e.Class != "CommandNotFound" || e.Command != "nosuch" {
		t.Fatalf("found %v", err)
	}
	if err := c.Execute(t.Context(), "nosuch", nil, nil); !errors.As(err, &e) {
		t.Fatalf("an error without class: found %v, expected an *Error", err)
	}
}

func TestConnectionLossEndsCalls(t *testing.T) {
	c := connect(t, func(_ testing.TB, conn net.Conn, cmds <-chan map[string]any) {
		negotiate(conn, cmds)
		for range 3 {
			<-cmds
		}
		conn.Close()
	})
	errs := make(chan error)
	for range 3 {
		go func() { errs <- c.Cont(context.Background()) }()
	}
	for range 3 {
		if err := <-errs; !errors.Is(err, ErrClosed) {
			t.Fatalf("found %v, expected ErrClosed", err)
		}
	}
	if err := c.Cont(t.Context()); !errors.Is(err, ErrClosed) {
		t.Fatalf("after the end: found %v, expected ErrClosed", err)
	}
	if _, ok := <-c.Events(); ok {
		t.Fatal("events go on after the end")
	}
}

func TestL31_NoGoroutineLeft(t *testing.T) {
	before := runtime.NumGoroutine()
	for range 100 {
		c, err := NewClient(t.Context(), fake(t, func(_ testing.TB, conn net.Conn, cmds <-chan map[string]any) { negotiate(conn, cmds) }))
		if err != nil {
			t.Fatal(err)
		}
		c.Cont(within(t, time.Millisecond))
		c.Close()
		c.Close()
	}
	for range 100 {
		if runtime.NumGoroutine() <= before+2 {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatalf("%d goroutines, %d before", runtime.NumGoroutine(), before)
}

func TestMonitorInterface(t *testing.T) {
	c := connect(t, func(_ testing.TB, conn net.Conn, cmds <-chan map[string]any) {
		negotiate(conn, cmds)
		cmd := <-cmds
		fmt.Fprintf(conn, `{"event": "STOP", "data": {"a": 1}}`+"\n"+`{"return": {"got": %q}, "id": %q}`+"\n", cmd["arguments"].(map[string]any)["x"], cmd["id"])
	})
	m := c.Monitor()
	ctx, cancel := context.WithCancel(t.Context())
	events, err := m.Events(ctx)
	if err != nil {
		t.Fatal(err)
	}
	out, err := m.Run([]byte(`{"execute": "echo", "arguments": {"x": "y"}}`))
	if err != nil || string(out) != `{"return":{"got":"y"}}` {
		t.Fatalf("found %s, %v", out, err)
	}
	if e := <-events; e.Event != "STOP" || e.Data["a"] != 1.0 {
		t.Fatalf("found %+v", e)
	}
	cancel()
	if _, ok := <-events; ok {
		t.Fatal("events after the context ended")
	}
	if _, err := m.Run([]byte("no json")); err == nil {
		t.Fatal("a command that is no JSON was accepted")
	}
}

// FuzzMessages feeds anything as QEMU's side: no panic, no hang, bounded memory.
func FuzzMessages(f *testing.F) {
	f.Add([]byte(hello + `{"return": {}, "id": "evtpm-1"}` + "\n" + `{"event": "STOP"}` + "\n"))
	f.Add([]byte(hello + `{"error": {"class": "GenericError"}, "id": "evtpm-1"}`))
	f.Add([]byte("{\n{}\n\x00"))
	f.Fuzz(func(t *testing.T, data []byte) {
		ours, theirs := net.Pipe()
		go io.Copy(io.Discard, theirs)
		go func() {
			theirs.Write(data)
			theirs.Close()
		}()
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		c, err := NewClient(ctx, ours)
		if ctx.Err() != nil {
			t.Fatal("hangs")
		}
		if err != nil {
			return
		}
		c.QueryStatus(ctx)
		<-c.Done()
		c.Close()
		if ctx.Err() != nil {
			t.Fatal("hangs")
		}
	})
}
