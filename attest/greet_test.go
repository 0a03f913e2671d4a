package attest_test

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/evtpm/evtpm/attest"
	"github.com/evtpm/evtpm/attest/evidence"
)

// greeting has an agent play its part, and returns what Greet made of it.
func greeting(t *testing.T, agent func(net.Conn)) (*evidence.Hello, error) {
	t.Helper()
	ours, theirs := net.Pipe()
	defer ours.Close()
	played := make(chan struct{})
	go func() {
		defer close(played)
		agent(theirs)
	}()
	defer func() { <-played }()
	defer theirs.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	return attest.Greet(ctx, ours)
}

// asked waits until Hello is asked for.
func asked(t *testing.T, c net.Conn) {
	if ft, payload, err := evidence.ReadFrame(c, 0); err != nil || ft != evidence.FrameHello || len(payload) != 0 {
		t.Errorf("found frame type %d, %q, %v; expected to be asked for Hello", ft, payload, err)
	}
}

// An agent that did not see who came greets when it is asked, be it that it heard
// only the second time.
func TestGreetAsks(t *testing.T) {
	for name, agent := range map[string]func(net.Conn){
		"greets":   func(c net.Conn) { c.Write(hello) },
		"is asked": func(c net.Conn) { asked(t, c); c.Write(hello) },
		"is asked again": func(c net.Conn) {
			asked(t, c)
			asked(t, c)
			c.Write(hello)
		},
		// Neither end reads what the other writes: one has to give up.
		"takes no question": func(c net.Conn) { time.Sleep(120 * time.Millisecond); c.Write(hello) },
		"answers others first": func(c net.Conn) {
			for range 7 {
				c.Write(frame(evidence.FrameActivated, evidence.Activated{}))
			}
			asked(t, c)
			c.Write(hello)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if h, err := greeting(t, agent); err != nil || h.AgentVersion != "test" {
				t.Errorf("found %+v, %v", h, err)
			}
		})
	}
}

func TestGreetRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		agent func(net.Conn)
		want  error
		text  string
	}{
		"hangs up":                {func(c net.Conn) { c.Close() }, io.EOF, ""},
		"hangs up when asked":     {func(c net.Conn) { asked(t, c); c.Close() }, nil, ""},
		"hangs up within a frame": {func(c net.Conn) { c.Write(hello[:30]); c.Close() }, io.ErrUnexpectedEOF, ""},
		"another protocol":        {func(c net.Conn) { c.Write([]byte("SSH-2.0-OpenSSH_9.2p1")) }, evidence.ErrFrame, "magic"},
		"says anything but hello": {func(c net.Conn) { flood(c, frame(evidence.FrameEvidence, nil)) }, evidence.ErrFrame, "found 8 frames, none of type 1"},
		"no JSON":                 {func(c net.Conn) { writeFrame(c, evidence.FrameHello, []byte("{")) }, nil, "hello"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h, err := greeting(t, c.agent)
			if h != nil || err == nil || c.want != nil && !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) {
				t.Errorf("found %+v, %v; expected %v, %q", h, err, c.want, c.text)
			}
		})
	}
}

// Greet waits as long as its context, and says how that ended.
func TestGreetEndsWithItsContext(t *testing.T) {
	ours, theirs := net.Pipe()
	defer theirs.Close()
	reason := errors.New("the guest was reset")
	ctx, cancel := context.WithCancelCause(t.Context())
	time.AfterFunc(200*time.Millisecond, func() { cancel(reason) })
	if _, err := attest.Greet(ctx, ours); !errors.Is(err, reason) {
		t.Errorf("found %v, expected %v", err, reason)
	}
}

// Who has greeted is not greeted again; who has not, asks for no longer than
// HelloTimeout.
func TestChallengeAfterGreeting(t *testing.T) {
	m := genoa()
	ours, theirs := net.Pipe()
	go m.Serve(theirs, m.TPM)
	h, err := attest.Greet(t.Context(), ours)
	if err != nil {
		t.Fatal(err)
	}
	s, err := attest.Challenge(t.Context(), ours, attest.ChallengeOptions{Hello: h})
	if err != nil {
		t.Fatal(err)
	}
	want(t, judgeSession(t, m, s, s.Evidence))
	if s.Hello.BootID != m.BootID {
		t.Errorf("boot id is %q", s.Hello.BootID)
	}

	ours, theirs = net.Pipe()
	go io.Copy(io.Discard, theirs)
	if _, err := attest.Challenge(t.Context(), ours, attest.ChallengeOptions{HelloTimeout: 300 * time.Millisecond}); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("found %v, expected a time-out", err)
	}
}

// askTimes notes when something is written.
type askTimes struct {
	net.Conn
	times *[]time.Duration
	began time.Time
}

func (c askTimes) Write(b []byte) (int, error) {
	*c.times = append(*c.times, time.Since(c.began))
	return len(b), nil
}

// The pauses between questions grow: a guest that boots for minutes is not
// swamped.
func TestGreetAsksLessAndLess(t *testing.T) {
	var times []time.Duration
	ours, theirs := net.Pipe()
	defer theirs.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, err := attest.Greet(ctx, askTimes{ours, &times, time.Now()}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("found %v", err)
	}
	// 50 and 550 ms, or later.
	if len(times) == 0 || len(times) > 2 || !slices.IsSorted(times) {
		t.Errorf("asked after %v", times)
	}
}

// A question whose time cannot be bounded is not asked.
func TestNoDeadlineToAsk(t *testing.T) {
	ours, theirs := net.Pipe()
	defer theirs.Close()
	if _, err := attest.Greet(t.Context(), &refusedDeadline{ours, 2}); !errors.Is(err, errNoDeadline) {
		t.Errorf("found %v", err)
	}
}

// refusedWrite is a connection that cannot be written to.
type refusedWrite struct{ net.Conn }

var errNoWrite = errors.New("nothing can be written")

func (refusedWrite) Write([]byte) (int, error) { return 0, errNoWrite }

// A connection that cannot be written to is not waited on.
func TestGreetCannotAsk(t *testing.T) {
	ours, theirs := net.Pipe()
	defer theirs.Close()
	if _, err := attest.Greet(t.Context(), refusedWrite{ours}); !errors.Is(err, errNoWrite) {
		t.Errorf("found %v", err)
	}
}
