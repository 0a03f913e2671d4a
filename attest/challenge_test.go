package attest_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/evtpm/evtpm/attest"
	"github.com/evtpm/evtpm/attest/attesttest"
	"github.com/evtpm/evtpm/attest/evidence"
)

// frame is a frame's bytes.
func frame(t evidence.FrameType, v any) []byte {
	payload, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	var b bytes.Buffer
	if err := evidence.WriteFrame(&b, t, payload); err != nil {
		panic(err)
	}
	return b.Bytes()
}

var hello = frame(evidence.FrameHello, evidence.Hello{AgentVersion: "test"})

// faulty challenges an agent that fails in some way; the error comes at once.
func faulty(t *testing.T, o attest.ChallengeOptions, agent func(net.Conn)) error {
	t.Helper()
	ours, theirs := net.Pipe()
	defer ours.Close()
	go func() {
		agent(theirs)
		theirs.Close()
	}()
	start := time.Now()
	_, err := attest.Challenge(t.Context(), ours, o)
	if err == nil {
		t.Fatal("no error")
	}
	if took := time.Since(start); took > 20*time.Second {
		t.Errorf("took %v", took)
	}
	return err
}

var short = attest.ChallengeOptions{HelloTimeout: 200 * time.Millisecond, StepTimeout: 200 * time.Millisecond}

func TestV32_AgentThatFails(t *testing.T) {
	hugeLength := func() []byte {
		b := bytes.Clone(hello)
		binary.BigEndian.PutUint32(b[8:], 0xFFFFFFFF)
		return b
	}()
	timeout := func(err error) bool {
		var n net.Error
		return errors.As(err, &n) && n.Timeout()
	}
	malformed := func(err error) bool { return errors.Is(err, evidence.ErrFrame) }
	closed := func(err error) bool {
		return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.ErrClosedPipe)
	}
	anyError := func(error) bool { return true }
	ownError := func(err error) bool { return !isAgentError(err) }
	challengeTaken := func(c net.Conn) {
		c.Write(hello)
		evidence.ReadFrame(c, 0)
	}
	for name, c := range map[string]struct {
		agent func(net.Conn)
		is    func(error) bool
		hangs bool
	}{
		"says nothing":           {func(c net.Conn) { time.Sleep(2 * time.Second) }, timeout, true},
		"hangs up":               {func(c net.Conn) {}, closed, false},
		"garbage":                {func(c net.Conn) { c.Write(bytes.Repeat([]byte{0xA5}, 100)) }, malformed, false},
		"four gigabytes":         {func(c net.Conn) { c.Write(hugeLength) }, malformed, false},
		"one byte a time":        {func(c net.Conn) { drip(c, hello) }, timeout, true},
		"half a frame":           {func(c net.Conn) { c.Write(hello[:20]) }, closed, false},
		"never says hello":       {func(c net.Conn) { flood(c, frame(evidence.FrameEvidence, nil)) }, malformed, false},
		"hello is no JSON":       {func(c net.Conn) { writeFrame(c, evidence.FrameHello, []byte("{")) }, anyError, false},
		"hello says more":        {func(c net.Conn) { writeFrame(c, evidence.FrameHello, []byte(`{"verified":true}`)) }, anyError, false},
		"takes no challenge":     {func(c net.Conn) { c.Write(hello); time.Sleep(2 * time.Second) }, timeout, true},
		"gives no evidence":      {func(c net.Conn) { challengeTaken(c); time.Sleep(2 * time.Second) }, timeout, true},
		"evidence drips":         {func(c net.Conn) { challengeTaken(c); drip(c, frame(evidence.FrameEvidence, genoa().Evidence())) }, timeout, true},
		"evidence is no JSON":    {func(c net.Conn) { challengeTaken(c); writeFrame(c, evidence.FrameEvidence, []byte("x")) }, anyError, false},
		"greets without end":     {func(c net.Conn) { challengeTaken(c); flood(c, hello) }, malformed, false},
		"answers with a verdict": {func(c net.Conn) { challengeTaken(c); writeFrame(c, 77, []byte(`{"verified":true}`)) }, malformed, false},
		"error frame is no JSON": {func(c net.Conn) { challengeTaken(c); writeFrame(c, evidence.FrameError, []byte("x")) }, ownError, false},
		"says that it cannot": {func(c net.Conn) {
			challengeTaken(c)
			c.Write(frame(evidence.FrameError, evidence.Failure{Message: "no TPM\x1b[2J"}))
		}, isAgentError, false},
		"talks for too long": {func(c net.Conn) {
			challengeTaken(c)
			c.Write(frame(evidence.FrameError, evidence.Failure{Message: strings.Repeat("x", 1<<20)}))
		}, isAgentError, false},
		"takes no credential": {func(c net.Conn) {
			challengeTaken(c)
			c.Write(frame(evidence.FrameEvidence, genoa().Evidence()))
			time.Sleep(2 * time.Second)
		}, timeout, true},
		"answers no credential": {func(c net.Conn) {
			challengeTaken(c)
			c.Write(frame(evidence.FrameEvidence, genoa().Evidence()))
			c.Write(frame(evidence.FrameActivated, evidence.Activated{CertInfo: make([]byte, 32)}))
		}, timeout, true},
		"no answer to credential": {func(c net.Conn) {
			challengeTaken(c)
			c.Write(frame(evidence.FrameEvidence, genoa().Evidence()))
			evidence.ReadFrame(c, 0)
			time.Sleep(2 * time.Second)
		}, timeout, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			// Time-outs are waited for, and nothing else is in a hurry.
			o := attest.ChallengeOptions{}
			if c.hangs {
				o = short
			}
			err := faulty(t, o, c.agent)
			if !c.is(err) {
				t.Errorf("error is %v", err)
			}
			if s := err.Error(); strings.Contains(s, "\x1b") || len(s) > 2000 {
				t.Errorf("the error shows what the guest sent: %d bytes", len(s))
			}
		})
	}
}

func isAgentError(err error) bool {
	var a *attest.AgentError
	return errors.As(err, &a)
}

func writeFrame(c net.Conn, t evidence.FrameType, payload []byte) {
	evidence.WriteFrame(c, t, payload)
}

// drip writes one byte at a time.
func drip(c net.Conn, b []byte) {
	for i := range b {
		if _, err := c.Write(b[i : i+1]); err != nil {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// flood writes the same frame again and again.
func flood(c net.Conn, b []byte) {
	for {
		if _, err := c.Write(b); err != nil {
			return
		}
	}
}

func TestChallengeEndsWithItsContext(t *testing.T) {
	ours, theirs := net.Pipe()
	defer theirs.Close()
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	start := time.Now()
	if _, err := attest.Challenge(ctx, ours, attest.ChallengeOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("error is %v", err)
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("took %v", took)
	}
}

// TestChallengeAfterAnother: an agent greets again, and frames of an earlier
// conversation lie in the port.
func TestChallengeAfterAnother(t *testing.T) {
	m := genoa()
	ours, theirs := net.Pipe()
	go func() {
		theirs.Write(frame(evidence.FrameActivated, evidence.Activated{}))
		theirs.Write(frame(evidence.FrameError, evidence.Failure{Message: "old"}))
		m.Serve(theirs, m.TPM)
	}()
	s, err := attest.Challenge(t.Context(), ours, attest.ChallengeOptions{})
	if err != nil {
		t.Fatal(err)
	}
	want(t, judgeSession(t, m, s, s.Evidence))
	if s.Hello.BootID != m.BootID {
		t.Errorf("boot id is %q", s.Hello.BootID)
	}
	// The connection has no deadline left, and can be used again.
	ours.SetDeadline(time.Now().Add(5 * time.Second))
	go m.Serve(theirs, m.TPM)
	if _, err := attest.Challenge(t.Context(), ours, attest.ChallengeOptions{}); err != nil {
		t.Error(err)
	}
}

func TestChallengeOptionsRefused(t *testing.T) {
	// Nobody is there: options that are taken come to another error.
	ours, theirs := net.Pipe()
	theirs.Close()
	for name, o := range map[string]attest.ChallengeOptions{
		"bank":            {PCRBank: "sha1"},
		"no PCRs":         {PCRs: []int{}},
		"PCR 24":          {PCRs: []int{0, 24}},
		"PCR -1":          {PCRs: []int{-1, 0}},
		"descending":      {PCRs: []int{1, 0}},
		"twice":           {PCRs: []int{0, 0}},
		"no nonce":        {Rand: strings.NewReader("short")},
		"no nonce at all": {Rand: strings.NewReader("")},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := attest.Challenge(t.Context(), ours, o); err == nil || strings.HasPrefix(err.Error(), "wait for") {
				t.Errorf("error is %v", err)
			}
		})
	}
}

// TestKeysUnfitForACredential: no credential can be made; the verdict says so.
func TestKeysUnfitForACredential(t *testing.T) {
	for name, edit := range map[string]func(*evidence.Evidence){
		"EK garbage":   func(ev *evidence.Evidence) { ev.EKPublic = []byte("EK") },
		"EK empty":     func(ev *evidence.Evidence) { ev.EKPublic = nil },
		"EK is the AK": func(ev *evidence.Evidence) { ev.EKPublic = ev.AKPublic },
		"EK even":      func(ev *evidence.Evidence) { ev.EKPublic[len(ev.EKPublic)-1] &^= 1 },
		"EK 2047 bits": func(ev *evidence.Evidence) { ev.EKPublic[len(ev.EKPublic)-256] &^= 0x80 },
		// A key that may leave its TPM can open credentials elsewhere.
		"EK not fixedTPM": func(ev *evidence.Evidence) { ev.EKPublic[9] &^= 2 },
		"AK garbage":      func(ev *evidence.Evidence) { ev.AKPublic = []byte("AK") },
		"AK SHA-1":        func(ev *evidence.Evidence) { ev.AKPublic[5] = 4 },
	} {
		t.Run(name, func(t *testing.T) {
			m := withEvidence(edit)
			s := play(t, m, func(c net.Conn) error {
				var ch evidence.Challenge
				if err := evidence.WriteFrame(c, evidence.FrameHello, []byte("{}")); err != nil {
					return err
				}
				_, b, err := evidence.ReadFrame(c, 0)
				if err := errors.Join(err, json.Unmarshal(b, &ch)); err != nil {
					return err
				}
				_, err = c.Write(frame(evidence.FrameEvidence, m.Answer(ch)))
				return err
			})
			v := judgeSession(t, m, s, s.Evidence)
			if v.Trusted() {
				t.Error("trusted")
			}
			if c := check(t, v, attest.CheckAKResident); c.Status != attest.Failed || strings.Contains(c.Found, "came back") {
				t.Errorf("%+v", c)
			}
		})
	}
}

// TestNonces: every challenge has a nonce of its own.
func TestNonces(t *testing.T) {
	m := genoa()
	seen := map[string]bool{}
	for range 4 {
		s := challenge(t, m, m.TPM, attest.ChallengeOptions{})
		if n := string(s.Evidence.Nonce); len(n) != 64 || seen[n] {
			t.Errorf("nonce %x", n)
		} else {
			seen[n] = true
		}
	}
	fixed := func() io.Reader { return bytes.NewReader(bytes.Repeat([]byte{7}, 4096)) }
	s := challenge(t, m, m.TPM, attest.ChallengeOptions{Rand: fixed()})
	if !bytes.Equal(s.Evidence.Nonce, bytes.Repeat([]byte{7}, 64)) {
		t.Errorf("nonce %x is not from the given source", s.Evidence.Nonce)
	}
}

func TestMisuse(t *testing.T) {
	m := genoa()
	ev, g := m.Evidence(), m.Golden()
	if _, err := attest.Verify(t.Context(), nil, g, options(m)); err == nil {
		t.Error("no error without evidence")
	}
	if _, err := attest.Verify(t.Context(), ev, nil, options(m)); err == nil {
		t.Error("no error without golden values")
	}
	o := options(m)
	o.SimRoots = o.SimRoots[:0]
	if _, err := attest.Verify(t.Context(), ev, g, o); err == nil {
		t.Error("no error for an empty list of simulated roots")
	}
	o = options(m)
	o.Policy = &attest.Policy{}
	if _, err := attest.Verify(t.Context(), ev, g, o); err == nil {
		t.Error("no error for an empty policy")
	}
	g.Platform = "tdx"
	if _, err := attest.Verify(t.Context(), ev, g, options(m)); err == nil {
		t.Error("no error for golden values of another platform")
	}
	report := m.SignedReport([64]byte{1})
	o = options(m)
	o.Registry = registry(t)
	if _, err := attest.VerifyReport(t.Context(), report, nil, attest.Expect{}, o); err == nil {
		t.Error("no error for a registry beside a bare report")
	}
	o = options(m)
	o.Live = challenge(t, m, m.TPM, attest.ChallengeOptions{})
	if _, err := attest.VerifyReport(t.Context(), report, nil, attest.Expect{}, o); err == nil {
		t.Error("no error for a challenge beside a bare report")
	}
}

// TestDeterminism: the same evidence at the same time under the same policy gives
// the same verdict, byte for byte.
func TestDeterminism(t *testing.T) {
	m := withEvidence(func(ev *evidence.Evidence) { ev.Manifest[3] ^= 1; ev.Certificates[30] ^= 1 })
	ev := m.Evidence()
	var first []byte
	for range 8 {
		v, err := attest.Verify(t.Context(), ev, m.Golden(), options(m))
		if err != nil {
			t.Fatal(err)
		}
		text, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		if first == nil {
			first = text
		}
		if !bytes.Equal(first, text) {
			t.Fatalf("verdicts differ:\n%s\n%s", first, text)
		}
	}
}

// TestVerdictListsEveryCheck: a verdict has every check once, in the order of the
// table, whatever fails; and a bare report's has none of the vTPM's.
func TestVerdictListsEveryCheck(t *testing.T) {
	names := func(v *attest.Verdict) string {
		var out []string
		for _, c := range v.Checks {
			out = append(out, c.Name)
		}
		return strings.Join(out, " ")
	}
	var whole, bareOnes []string
	for _, c := range attest.Checks() {
		whole = append(whole, string(c.Name))
		if !c.VTPM {
			bareOnes = append(bareOnes, string(c.Name))
		}
	}
	good := genoa()
	for name, m := range map[string]*attesttest.Machine{
		"good":      good,
		"no report": withEvidence(func(ev *evidence.Evidence) { ev.Report = nil }),
		"nothing":   withEvidence(func(ev *evidence.Evidence) { *ev = evidence.Evidence{} }),
		"no leaf":   withEvidence(func(ev *evidence.Evidence) { ev.Certificates = nil }),
	} {
		v := judge(t, m)
		if names(v) != strings.Join(whole, " ") {
			t.Errorf("%s: checks are %s", name, names(v))
		}
		if name != "good" && v.Trusted() {
			t.Errorf("%s: trusted", name)
		}
	}
	v := bare(t, good, good.SignedReport([64]byte{1}), attest.Expect{}, nil)
	if names(v) != strings.Join(bareOnes, " ") {
		t.Errorf("bare report: checks are %s", names(v))
	}
}

// TestCheckTable: names and reasons are unique, and each is explained.
func TestCheckTable(t *testing.T) {
	seen := map[attest.CheckName]bool{}
	for _, c := range attest.Checks() {
		if seen[c.Name] || c.Meaning == "" || c.Class <= attest.ClassMisuse || c.Class > attest.ClassVTPM {
			t.Errorf("%+v", c)
		}
		seen[c.Name] = true
		reasons := map[attest.Reason]bool{}
		for _, r := range c.Reasons {
			if reasons[r.Reason] || r.Meaning == "" {
				t.Errorf("%s: %+v", c.Name, r)
			}
			reasons[r.Reason] = true
		}
	}
}

// recorder notes the deadlines that a connection is given.
type recorder struct {
	net.Conn
	last *atomic.Pointer[time.Time]
}

func (r recorder) SetDeadline(t time.Time) error {
	r.last.Store(&t)
	return r.Conn.SetDeadline(t)
}

// A connection is given back without a deadline, however the challenge ended;
// where the context ended, with one that is over.
func TestDeadlineAfterChallenge(t *testing.T) {
	m := genoa()
	var last atomic.Pointer[time.Time]
	ours, theirs := net.Pipe()
	go m.Serve(theirs, m.TPM)
	if _, err := attest.Challenge(t.Context(), recorder{ours, &last}, attest.ChallengeOptions{}); err != nil || !last.Load().IsZero() {
		t.Errorf("deadline is %v, %v", last.Load(), err)
	}
	ours, theirs = net.Pipe()
	theirs.Close()
	if _, err := attest.Challenge(t.Context(), recorder{ours, &last}, attest.ChallengeOptions{}); err == nil || !last.Load().IsZero() {
		t.Errorf("deadline is %v, %v", last.Load(), err)
	}
	ours, theirs = net.Pipe()
	defer theirs.Close()
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(20*time.Millisecond, cancel)
	if _, err := attest.Challenge(ctx, recorder{ours, &last}, attest.ChallengeOptions{}); err == nil || !last.Load().Equal(time.Unix(1, 0)) {
		t.Errorf("deadline is %v, %v", last.Load(), err)
	}
}

// Where a conversation failed is said.
func TestWhereAChallengeFailed(t *testing.T) {
	for part, agent := range map[string]func(net.Conn){
		"wait for the guest's agent": func(net.Conn) {},
		"send the challenge":         func(c net.Conn) { c.Write(hello) },
		"ask for evidence":           func(c net.Conn) { c.Write(hello); evidence.ReadFrame(c, 0) },
	} {
		if err := faulty(t, attest.ChallengeOptions{}, agent); !strings.HasPrefix(err.Error(), part) {
			t.Errorf("error is %v, expected %q", err, part)
		}
	}
}

// TestL22_AgentThatJudges: evidence is bytes; an agent's own verdict has no place
// in it, and an agent that says no more than that has not answered.
func TestL22_AgentThatJudges(t *testing.T) {
	m := genoa()
	for name, answer := range map[string]func(evidence.Challenge) []byte{
		"a verdict beside evidence": func(ch evidence.Challenge) []byte {
			b, err := json.Marshal(m.Answer(ch))
			if err != nil {
				panic(err)
			}
			return append(b[:len(b)-1], `,"verified":true}`...)
		},
		"a verdict alone": func(evidence.Challenge) []byte { return []byte(`{"result":"trusted"}`) },
	} {
		err := faulty(t, attest.ChallengeOptions{}, func(c net.Conn) {
			c.Write(hello)
			_, b, err := evidence.ReadFrame(c, 0)
			var ch evidence.Challenge
			if err != nil || json.Unmarshal(b, &ch) != nil {
				return
			}
			evidence.WriteFrame(c, evidence.FrameEvidence, answer(ch))
		})
		if !strings.HasPrefix(err.Error(), "ask for evidence: ") || errors.Is(err, io.EOF) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
