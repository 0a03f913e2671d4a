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
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

const hello = `{"QMP": {"version": {"qemu": {"micro": 2, "minor": 0, "major": 10}, "package": "test"}, "capabilities": ["oob"]}}` + "\r\n"

// fake is a QEMU whose side of the connection is a function.
func fake(t testing.TB, serve func(t testing.TB, conn net.Conn, commands <-chan map[string]any)) net.Conn {
	ours, theirs := net.Pipe()
	go serve(t, theirs, readCommands(theirs))
	t.Cleanup(func() { theirs.Close() })
	return ours
}

// readCommands parses what the client sends.
func readCommands(conn net.Conn) <-chan map[string]any {
	commands := make(chan map[string]any, 64)
	go func() {
		defer close(commands)
		lines := bufio.NewScanner(conn)
		for lines.Scan() {
			commands <- parseCommand(lines.Bytes())
		}
	}()
	return commands
}

func parseCommand(line []byte) (c map[string]any) {
	json.Unmarshal(line, &c)
	return c
}

// respond answers the command of an id.
func respond(conn net.Conn, id any, result string) {
	fmt.Fprintf(conn, `{"return": %s, "id": %q}`+"\r\n", result, id)
}

// negotiate plays the greeting and the capabilities reply.
func negotiate(conn net.Conn, commands <-chan map[string]any) {
	io.WriteString(conn, hello)
	c := <-commands
	respond(conn, c["id"], "{}")
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

// TestL02_NoDeadlineGiven: a context without a deadline does not wait for ever.
func TestL02_NoDeadlineGiven(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		defer theirs.Close()
		begin := time.Now()
		_, err := NewClient(context.Background(), ours)
		if took := time.Since(begin); !errors.Is(err, context.DeadlineExceeded) || took != HandshakeTimeout {
			t.Fatalf("found %v after %v, expected a deadline after %v", err, took, HandshakeTimeout)
		}
	})
}

// TestL02_LongDeadlineGiven: a QEMU that first fills huge pages takes long, and
// the caller may wait as long as it likes.
func TestL02_LongDeadlineGiven(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		defer theirs.Close()
		ctx, cancel := context.WithTimeout(context.Background(), 10*HandshakeTimeout)
		defer cancel()
		begin := time.Now()
		if _, err := NewClient(ctx, ours); !errors.Is(err, context.DeadlineExceeded) || time.Since(begin) != 10*HandshakeTimeout {
			t.Fatalf("found %v after %v, expected a deadline after %v", err, time.Since(begin), 10*HandshakeTimeout)
		}
	})
}

func TestL03_CapabilitiesNeverAnswered(t *testing.T) {
	conn := fake(t, func(_ testing.TB, conn net.Conn, _ <-chan map[string]any) { io.WriteString(conn, hello) })
	_, err := NewClient(within(t, 50*time.Millisecond), conn)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("found %v, expected a deadline", err)
	}
}

// TestL03_NothingReadsCommands: a QEMU that does not even read holds up neither
// the call that writes nor those behind it, and a command of which nothing was
// sent leaves the connection as it was.
func TestL03_NothingReadsCommands(t *testing.T) {
	ours, theirs := net.Pipe()
	defer theirs.Close()
	go func() {
		io.WriteString(theirs, hello)
		line, _ := bufio.NewReader(theirs).ReadString('\n')
		var c map[string]any
		json.Unmarshal([]byte(line), &c)
		respond(theirs, c["id"], "{}")
	}()
	c, err := NewClient(within(t, 5*time.Second), ours)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	errs := make(chan error, 2)
	long, cancel := context.WithCancel(t.Context())
	go func() { errs <- c.Cont(long) }()
	time.Sleep(20 * time.Millisecond)
	if err := c.Stop(within(t, 50*time.Millisecond)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("behind a blocked command: found %v, expected a deadline", err)
	}
	cancel()
	if err := <-errs; !errors.Is(err, context.Canceled) {
		t.Errorf("the blocked command: found %v, expected its context's end", err)
	}
	if c.Err() != nil {
		t.Fatalf("nothing was sent, and the connection ended: %v", c.Err())
	}
	go func() { errs <- c.Cont(within(t, 5*time.Second)) }()
	var next struct{ Execute, ID string }
	if err := json.NewDecoder(theirs).Decode(&next); err != nil || next.Execute != "cont" {
		t.Fatalf("the next command: %+v, %v", next, err)
	}
	respond(theirs, next.ID, "{}")
	if err := <-errs; err != nil {
		t.Fatal(err)
	}
}

// TestL03_CommandCutShort: QEMU would read the next command as the rest of one
// that was cut short, so there is no next command.
func TestL03_CommandCutShort(t *testing.T) {
	ours, theirs := net.Pipe()
	defer theirs.Close()
	go func() {
		io.WriteString(theirs, hello)
		line, _ := bufio.NewReader(theirs).ReadString('\n')
		var c map[string]any
		json.Unmarshal([]byte(line), &c)
		respond(theirs, c["id"], "{}")
		theirs.Read(make([]byte, 3))
	}()
	c, err := NewClient(within(t, 5*time.Second), ours)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.Cont(within(t, 50*time.Millisecond)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("found %v, expected a deadline", err)
	}
	if err := c.Stop(within(t, 5*time.Second)); !errors.Is(err, ErrClosed) {
		t.Errorf("found %v, expected ErrClosed", err)
	}
}

// TestContextEndsBesideOtherCalls: a context that ends while its command is
// written must not cut the next one short.
func TestContextEndsBesideOtherCalls(t *testing.T) {
	c := connect(t, func(_ testing.TB, conn net.Conn, cmds <-chan map[string]any) {
		negotiate(conn, cmds)
		for cmd := range cmds {
			respond(conn, cmd["id"], "{}")
		}
	})
	for range 2000 {
		ctx, cancel := context.WithCancel(t.Context())
		go cancel()
		c.Cont(ctx)
		if err := c.Stop(within(t, 5*time.Second)); err != nil {
			t.Fatal(err)
		}
	}
}

func TestEndedContextSendsNothing(t *testing.T) {
	sent := make(chan any, 1)
	c := connect(t, func(_ testing.TB, conn net.Conn, cmds <-chan map[string]any) {
		negotiate(conn, cmds)
		sent <- (<-cmds)["execute"]
	})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for range 50 {
		if err := c.Cont(ctx); !errors.Is(err, context.Canceled) {
			t.Fatalf("found %v, expected the context's end", err)
		}
	}
	c.Stop(within(t, 50*time.Millisecond))
	if first := <-sent; first != "stop" {
		t.Fatalf("found command %v, expected none before stop", first)
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
		"two in a line": `{"event": "A"}{"event": "B"}` + "\n",
		"deep":          strings.Repeat("[", 1<<20) + "\n",
		"closed":        "",
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
	sent := make(chan int, 1)
	conn := fake(t, func(_ testing.TB, conn net.Conn, cmds <-chan map[string]any) {
		negotiate(conn, cmds)
		<-cmds
		total := 0
		defer func() { sent <- total }()
		chunk := []byte(strings.Repeat("x", 1<<20))
		for range 1024 {
			n, err := conn.Write(chunk)
			total += n
			if err != nil {
				return
			}
		}
	})
	c, err := NewClient(t.Context(), conn)
	if err != nil {
		t.Fatal(err)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	err = c.Cont(within(t, 20*time.Second))
	runtime.ReadMemStats(&after)
	if !errors.Is(err, ErrTooLong) || !errors.Is(err, ErrClosed) {
		t.Fatalf("found %v, expected ErrTooLong", err)
	}
	c.Close()
	if n := <-sent; n > MaxMessage+2<<20 {
		t.Errorf("%d bytes were read, expected not much more than %d", n, MaxMessage)
	}
	// All that was allocated on the way, not what was held at once.
	if n := after.TotalAlloc - before.TotalAlloc; n > 8*MaxMessage {
		t.Errorf("%d bytes were allocated", n)
	}
}

// TestL07_HugeEvent: the queue's memory is bounded, not only its length.
func TestL07_HugeEvent(t *testing.T) {
	c := connect(t, func(_ testing.TB, conn net.Conn, cmds <-chan map[string]any) {
		negotiate(conn, cmds)
		cmd := <-cmds
		fmt.Fprintf(conn, `{"event": "A", "data": {"x": %q}}`+"\n", strings.Repeat("x", maxEvent/2))
		respond(conn, cmd["id"], "{}")
		<-cmds
		fmt.Fprintf(conn, `{"event": "B", "data": {"x": %q}}`+"\n", strings.Repeat("x", maxEvent))
	})
	if err := c.Cont(within(t, 5*time.Second)); err != nil {
		t.Fatal(err)
	}
	if err := c.Cont(within(t, 5*time.Second)); !errors.Is(err, ErrTooLong) {
		t.Fatalf("found %v, expected ErrTooLong", err)
	}
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

// TestL08_NothingIsKept: a call that gave up leaves no entry behind, and a reply
// given twice to a call that has not looked yet does not hold up the reader.
func TestL08_NothingIsKept(t *testing.T) {
	c := connect(t, func(_ testing.TB, conn net.Conn, cmds <-chan map[string]any) { negotiate(conn, cmds) })
	c.Cont(within(t, time.Millisecond))
	if n := len(c.pending); n != 0 {
		t.Errorf("%d calls wait, expected none", n)
	}
	id, answer, err := c.enlist()
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for _, text := range []string{`{"n": 1}`, `{"n": 2}`} {
			c.answer(&message{ID: json.RawMessage(strconv.Quote(id)), Return: json.RawMessage(text)})
		}
	}()
	select {
	case <-done:
	case <-time.After(5 * time.Second):
		t.Fatal("the second reply holds up the reader")
	}
	if r := <-answer; string(r.result) != `{"n": 1}` {
		t.Errorf("found %s, expected the first reply", r.result)
	}
}

func TestErrorKeepsItsClass(t *testing.T) {
	c := connect(t, func(_ testing.TB, conn net.Conn, cmds <-chan map[string]any) {
		negotiate(conn, cmds)
		cmd := <-cmds
		fmt.Fprintf(conn, `{"error": {"class": "CommandNotFound", "desc": "no such command"}, "id": %q}`+"\n", cmd["id"])
		cmd = <-cmds
		fmt.Fprintf(conn, `{"error": {}, "id": %q}`+"\n", cmd["id"])
		cmd = <-cmds
		fmt.Fprintf(conn, `{"return": "text", "id": %q}`+"\n", cmd["id"])
	})
	var e *Error
	if err := c.Execute(t.Context(), "nosuch", nil, nil); !errors.As(err, &e) || e.Class != "CommandNotFound" || e.Command != "nosuch" {
		t.Fatalf("found %v", err)
	}
	if err := c.Execute(t.Context(), "nosuch", nil, nil); !errors.As(err, &e) {
		t.Fatalf("an error without class: found %v, expected an *Error", err)
	}
	if _, err := c.QueryStatus(t.Context()); err == nil || errors.As(err, &e) || c.Err() != nil {
		t.Fatalf("a result of another type: found %v, connection %v", err, c.Err())
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
		if err := <-errs; !errors.Is(err, ErrClosed) || !strings.Contains(err.Error(), "closed by QEMU") {
			t.Fatalf("found %v, expected ErrClosed by QEMU", err)
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
	// Clients whose negotiation fails leave nothing either.
	for range 100 {
		conn := fake(t, func(_ testing.TB, conn net.Conn, _ <-chan map[string]any) { io.WriteString(conn, hello) })
		if _, err := NewClient(within(t, time.Millisecond), conn); err == nil {
			t.Fatal("accepted")
		}
	}
	noMoreGoroutines(t, before)
}

// noMoreGoroutines waits until there are no more goroutines than before.
func noMoreGoroutines(t *testing.T, before int) {
	t.Helper()
	for range 100 {
		if runtime.NumGoroutine() <= before {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatalf("%d goroutines, expected at most %d", runtime.NumGoroutine(), before)
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
	if err := m.Connect(); err != nil {
		t.Fatal(err)
	}
	if err := m.Disconnect(); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Run([]byte(`{"execute": "stop"}`)); !errors.Is(err, ErrClosed) {
		t.Fatalf("after Disconnect: found %v, expected ErrClosed", err)
	}
}

// TestMonitorEventsEndWithTheConnection: also when nobody reads them.
func TestMonitorEventsEndWithTheConnection(t *testing.T) {
	before := runtime.NumGoroutine()
	c := connect(t, func(_ testing.TB, conn net.Conn, cmds <-chan map[string]any) {
		negotiate(conn, cmds)
		io.WriteString(conn, strings.Repeat(`{"event": "STOP"}`+"\n", 5))
	})
	if _, err := c.Monitor().Events(context.Background()); err != nil {
		t.Fatal(err)
	}
	for c.Dropped() == 0 && len(c.Events()) < 4 {
		time.Sleep(time.Millisecond)
	}
	c.Close()
	noMoreGoroutines(t, before)
}

// FuzzMessages feeds anything as QEMU's side: no panic, no hang, an error at the
// end, and the same outcome however the bytes are cut.
func FuzzMessages(f *testing.F) {
	f.Add([]byte(hello+`{"return": {}, "id": "evtpm-1"}`+"\n"+`{"event": "STOP"}`+"\n"), uint16(7))
	f.Add([]byte(hello+`{"error": {"class": "GenericError"}, "id": "evtpm-1"}`), uint16(1))
	f.Add([]byte(hello+`{"return": {}, "id": "evtpm-1"}`+"\n"+`{"return": {"status": "running"}, "id": "evtpm-2"}`+"\n{]\n"), uint16(80))
	f.Add([]byte("{\n{}\n\x00"), uint16(2))
	f.Fuzz(func(t *testing.T, data []byte, piece uint16) {
		whole, pieces := feed(t, data, len(data)+1), feed(t, data, int(piece)+1)
		if whole != pieces {
			t.Errorf("in one write %+v, in pieces of %d %+v", whole, int(piece)+1, pieces)
		}
	})
}

// outcome is what a client made of a stream of bytes.
type outcome struct {
	greeting string
	end      string
	events   uint64
	replies  [2]string
}

// feed plays data to a client that waits for two replies, in pieces.
func feed(t *testing.T, data []byte, piece int) (o outcome) {
	r := newReader(&piecewise{data, piece})
	greeting, err := readGreeting(r)
	if err != nil {
		return outcome{greeting: err.Error()}
	}
	conn, _ := net.Pipe()
	c := newClient(conn, greeting)
	var answers [2]chan reply
	for i := range answers {
		_, answers[i], _ = c.enlist()
	}
	c.read(r)
	<-c.Done()
	if !errors.Is(c.Err(), ErrClosed) {
		t.Fatalf("found %v, expected ErrClosed", c.Err())
	}
	o = outcome{greeting: greeting.String(), end: c.Err().Error(), events: c.Dropped() + uint64(len(c.Events()))}
	for i, a := range answers {
		select {
		case r := <-a:
			var s Status
			o.replies[i] = fmt.Sprint(r.decode("query-status", &s), s)
		default:
		}
	}
	return o
}

// piecewise reads at most n bytes at a time.
type piecewise struct {
	data []byte
	n    int
}

func (p *piecewise) Read(b []byte) (int, error) {
	if len(p.data) == 0 {
		return 0, io.EOF
	}
	n := copy(b[:min(len(b), p.n)], p.data)
	p.data = p.data[n:]
	return n, nil
}
