package attest_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/evtpm/evtpm/attest"
	"github.com/evtpm/evtpm/attest/attesttest"
	"github.com/evtpm/evtpm/attest/evidence"
)

// Faults on the verifier's own side of a challenge, and what a guest's agent may
// do without being at fault.

// TestRandomSourceRunsDry: without randomness there is no credential: none is
// sent, and the verdict says what was missing.
func TestRandomSourceRunsDry(t *testing.T) {
	m := genoa()
	const nonce, secret, seed = attest.NonceSize, 32, 32
	for name, c := range map[string]struct {
		bytes int
		why   string
	}{
		"no secret":                {nonce, "make a secret"},
		"half a secret":            {nonce + secret/2, "make a secret"},
		"no seed":                  {nonce + secret, "make a credential"},
		"half a seed":              {nonce + secret + seed/2, "make a credential"},
		"no salt to encrypt it":    {nonce + secret + seed, "make a credential"},
		"half a salt to do so":     {nonce + secret + seed + seed/2, "make a credential"},
		"a byte less than is used": {nonce + secret + seed + seed - 1, "make a credential"},
	} {
		t.Run(name, func(t *testing.T) {
			ours, theirs := net.Pipe()
			defer ours.Close()
			// The agent hangs up when it has given its evidence: a credential that
			// is sent all the same finds nobody, and the challenge fails.
			go func() {
				defer theirs.Close()
				giveEvidence(theirs, m)
			}()
			s, err := attest.Challenge(t.Context(), ours, attest.ChallengeOptions{Rand: bytes.NewReader(make([]byte, c.bytes))})
			if err != nil {
				t.Fatal(err)
			}
			v := judgeSession(t, m, s, s.Evidence)
			if v.Trusted() {
				t.Error("trusted")
			}
			if got := check(t, v, attest.CheckAKResident); got.Status != attest.Failed || !strings.Contains(got.Found, c.why) {
				t.Errorf("%+v, expected %q", got, c.why)
			}
		})
	}
}

// giveEvidence plays an agent up to its evidence.
func giveEvidence(c net.Conn, m *attesttest.Machine) {
	c.Write(hello)
	_, b, err := evidence.ReadFrame(c, 0)
	var ch evidence.Challenge
	if err != nil || json.Unmarshal(b, &ch) != nil {
		return
	}
	c.Write(frame(evidence.FrameEvidence, m.Answer(ch)))
}

// lateDeadlines is a connection whose deadlines come late: the context ends, and
// sets its own, before the nth that is not its own is set.
type lateDeadlines struct {
	net.Conn
	cancel func()
	nth    int
	ended  chan struct{}
	last   time.Time
}

func (c *lateDeadlines) SetDeadline(t time.Time) error {
	if t.Equal(time.Unix(1, 0)) {
		select {
		case <-c.ended:
		default:
			c.last = t
			defer close(c.ended)
			return c.Conn.SetDeadline(t)
		}
	} else if c.nth--; c.nth == 0 {
		c.cancel()
		select {
		case <-c.ended:
		case <-time.After(20 * time.Second):
			return errors.New("the end of the context sets no deadline")
		}
	}
	c.last = t
	return c.Conn.SetDeadline(t)
}

// TestContextThatEndsBeforeADeadline: a deadline that replaces that of a context's
// end does not keep the challenge going, and is not left behind either.
func TestContextThatEndsBeforeADeadline(t *testing.T) {
	m := genoa()
	reason := errors.New("nobody wants to know any more")
	for nth := 1; nth <= steps; nth++ {
		ctx, cancel := context.WithCancelCause(t.Context())
		ours, theirs := net.Pipe()
		go m.Serve(theirs, m.TPM)
		c := &lateDeadlines{Conn: ours, cancel: func() { cancel(reason) }, nth: nth, ended: make(chan struct{})}
		if _, err := attest.Challenge(ctx, c, attest.ChallengeOptions{}); !errors.Is(err, reason) {
			t.Errorf("deadline %d: error is %v", nth, err)
		}
		if !c.last.Equal(time.Unix(1, 0)) {
			t.Errorf("deadline %d: deadline is %v", nth, c.last)
		}
		ours.Close()
		cancel(nil)
	}
}

// steps is how many deadlines a challenge has: one for the first byte of Hello, and
// one each for Hello, Challenge, Evidence, Activate and Activated.
const steps = 6

// refusedDeadline is a connection that refuses the nth deadline only.
type refusedDeadline struct {
	net.Conn
	nth int
}

var errNoDeadline = errors.New("deadlines are not for this connection")

func (c *refusedDeadline) SetDeadline(t time.Time) error {
	if c.nth--; c.nth == 0 {
		return errNoDeadline
	}
	return c.Conn.SetDeadline(t)
}

// TestNoDeadline: a step whose time cannot be bounded is not taken.
func TestNoDeadline(t *testing.T) {
	m := genoa()
	for nth := 1; nth <= steps; nth++ {
		ours, theirs := net.Pipe()
		go m.Serve(theirs, m.TPM)
		if _, err := attest.Challenge(t.Context(), &refusedDeadline{ours, nth}, attest.ChallengeOptions{}); !errors.Is(err, errNoDeadline) {
			t.Errorf("deadline %d: error is %v", nth, err)
		}
		ours.Close()
	}
}

// TestAgentThatGreetsAgain: an agent that was asked for Hello while the guest
// booted says it as often; its answers count all the same.
func TestAgentThatGreetsAgain(t *testing.T) {
	m := genoa()
	for _, times := range []int{1, 3000} {
		s := play(t, m, func(c net.Conn) error {
			return m.Serve(&greeter{Conn: c, times: times}, m.TPM)
		})
		want(t, judgeSession(t, m, s, s.Evidence))
	}
}

// greeter greets again before each frame but the first, which is a greeting.
type greeter struct {
	net.Conn
	times   int
	greeted bool
}

func (g *greeter) Write(b []byte) (int, error) {
	if g.greeted {
		for range g.times {
			if _, err := g.Conn.Write(hello); err != nil {
				return 0, err
			}
		}
	}
	g.greeted = true
	return g.Conn.Write(b)
}

// TestAgentErrorIsCut: 500 bytes of an agent's message are shown, and where there
// are more, that there are.
func TestAgentErrorIsCut(t *testing.T) {
	const says = "the guest's agent says "
	for n, expected := range map[int]string{
		0:   `""`,
		500: `"` + strings.Repeat("x", 500) + `"`,
		501: `"` + strings.Repeat("x", 500) + `..."`,
	} {
		e := &attest.AgentError{Message: strings.Repeat("x", n)}
		if got := e.Error(); got != says+expected {
			t.Errorf("%d bytes: %s", n, got)
		}
	}
}
