package attest

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/evtpm/evtpm/attest/evidence"
	"github.com/evtpm/evtpm/strictjson"
	"github.com/google/go-tpm/tpm2"
)

// ChallengeOptions say what to ask a guest for.
type ChallengeOptions struct {
	// Binding is one of evidence's Binding constants; empty leaves the choice to
	// the guest.
	Binding string
	// PCRBank is "sha256" or "sha384"; empty means sha256.
	PCRBank string
	// PCRs is the selection, ascending; nil means 0 to 23.
	PCRs []int
	// Rand is the source of nonce and secrets; nil means crypto/rand.
	Rand io.Reader
	// Hello is what [Greet] returned of the same connection; nil greets first.
	Hello *evidence.Hello
	// HelloTimeout bounds the wait for the guest's Hello, which comes when the
	// agent has started. Zero means a minute.
	HelloTimeout time.Duration
	// StepTimeout bounds each later answer. Zero means 30 seconds.
	StepTimeout time.Duration
}

// secretSize is the length of a credential's secret.
const secretSize = 32

const (
	// maxStrayFrames bounds the frames of an earlier conversation that are passed
	// over before Hello.
	maxStrayFrames = 8
	// maxHellos bounds the Hellos that are passed over after it: one for each time
	// that it was asked for while the guest booted, which in a day is not as often.
	maxHellos = 4096
)

// A Session is a challenge that was made and answered. It is judged by [Verify],
// once.
type Session struct {
	Hello    evidence.Hello
	Evidence *evidence.Evidence

	nonce   []byte
	binding string
	bank    string
	pcrs    []int

	// ek and ak are what the credential was made for; secret is in it; answer is
	// what came back, failure why nothing did.
	ek, ak, secret, answer []byte
	failure                error

	taken atomic.Bool
}

// take gives the session to its first caller.
func (s *Session) take() bool { return s.taken.CompareAndSwap(false, true) }

// made reports whether the credential was made for the evidence's EK and AK.
func (s *Session) made(ev *evidence.Evidence) bool {
	return bytes.Equal(s.ek, ev.EKPublic) && bytes.Equal(s.ak, ev.AKPublic)
}

// activated returns nil if the guest's TPM gave the secret back.
func (s *Session) activated() error {
	if s.failure != nil {
		return s.failure
	}
	if len(s.secret) != secretSize || subtle.ConstantTimeCompare(s.secret, s.answer) != 1 {
		return errors.New("the secret that came back is another")
	}
	return nil
}

// Challenge makes one challenge over a connection to the guest's agent: it waits
// for Hello, sends a fresh nonce, takes the evidence, makes a credential for its
// EK and AK, and takes what the TPM made of it. An error means that the
// conversation failed (network, time, malformed frames, an agent that cannot
// answer); what the answers are worth is for [Verify] to say. The connection is
// left open, without a deadline; where the context ended, with one that is over.
func Challenge(ctx context.Context, conn net.Conn, o ChallengeOptions) (*Session, error) {
	s, err := newSession(o)
	if err != nil {
		return nil, err
	}
	p, done := newPeer(ctx, conn)
	defer done()
	hello := o.Hello
	if hello == nil {
		if hello, err = p.greet(orElse(o.HelloTimeout, time.Minute)); err != nil {
			return nil, fmt.Errorf("wait for the guest's agent: %w", err)
		}
	}
	s.Hello = *hello
	step := orElse(o.StepTimeout, 30*time.Second)
	ask := evidence.Challenge{Nonce: s.nonce, Binding: s.binding, PCRBank: s.bank, PCRs: s.pcrs}
	if err := p.send(step, evidence.FrameChallenge, ask); err != nil {
		return nil, fmt.Errorf("send the challenge: %w", err)
	}
	payload, err := p.receive(step, evidence.FrameEvidence)
	if err == nil {
		s.Evidence, err = evidence.Parse(payload)
	}
	if err != nil {
		return nil, fmt.Errorf("ask for evidence: %w", err)
	}
	if err := s.activate(p, step, orElse[io.Reader](o.Rand, rand.Reader)); err != nil {
		return nil, fmt.Errorf("activate the credential: %w", err)
	}
	return s, nil
}

func newSession(o ChallengeOptions) (*Session, error) {
	s := &Session{nonce: make([]byte, NonceSize), binding: o.Binding, bank: orElse(o.PCRBank, "sha256"), pcrs: slices.Clone(o.PCRs)}
	if _, _, _, ok := bankHash(s.bank); !ok {
		return nil, fmt.Errorf("PCR bank is %q, expected sha256 or sha384", s.bank)
	}
	if o.PCRs == nil {
		for i := range pcrCount {
			s.pcrs = append(s.pcrs, i)
		}
	}
	if len(s.pcrs) == 0 || s.pcrs[0] < 0 || s.pcrs[len(s.pcrs)-1] >= pcrCount || !slices.IsSorted(s.pcrs) || len(slices.Compact(slices.Clone(s.pcrs))) != len(s.pcrs) {
		return nil, fmt.Errorf("PCRs are %v, expected numbers of 0 to %d, ascending", o.PCRs, pcrCount-1)
	}
	if _, err := io.ReadFull(orElse[io.Reader](o.Rand, rand.Reader), s.nonce); err != nil {
		return nil, fmt.Errorf("make a nonce: %w", err)
	}
	return s, nil
}

// orElse is v, or what its zero value means.
func orElse[T comparable](v, zero T) T {
	var none T
	if v == none {
		return zero
	}
	return v
}

// activate makes a credential for the evidence's keys and takes the TPM's answer.
// That keys are unfit, or that the agent says its TPM refused, is an outcome, not
// an error.
func (s *Session) activate(p *peer, step time.Duration, random io.Reader) error {
	s.ek, s.ak = s.Evidence.EKPublic, s.Evidence.AKPublic
	message := s.credential(random)
	if message == nil {
		return nil
	}
	if err := p.send(step, evidence.FrameActivate, message); err != nil {
		return err
	}
	var reply evidence.Activated
	err := p.expect(step, evidence.FrameActivated, &reply)
	var refused *AgentError
	if errors.As(err, &refused) {
		s.failure = refused
		return nil
	}
	s.answer = reply.CertInfo
	return err
}

// credential makes a credential, or notes why there can be none.
func (s *Session) credential(random io.Reader) *evidence.Activate {
	message, err := s.makeCredential(random)
	s.failure = err
	return message
}

// makeCredential is TPM2_MakeCredential for the evidence's EK and the Name of
// its AK, which is computed here and not taken from the guest.
func (s *Session) makeCredential(random io.Reader) (*evidence.Activate, error) {
	ek, err := parsePublic2B(s.ek)
	if err != nil {
		return nil, fmt.Errorf("EK: %w", err)
	}
	if !bytes.HasPrefix(ek.raw, ekPrefix) {
		return nil, errors.New("EK: not the TCG's RSA-2048 EK template")
	}
	if _, err := ek.key(); err != nil {
		return nil, fmt.Errorf("EK: %w", err)
	}
	ak, err := parsePublic2B(s.ak)
	if err != nil {
		return nil, fmt.Errorf("AK: %w", err)
	}
	name := ak.name()
	if name == nil {
		return nil, fmt.Errorf("AK: name algorithm %#04x", ak.nameAlg)
	}
	// The prefix says that all but the modulus is the template's.
	public := tpm2.RSAEKTemplate
	public.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: ek.modulus})
	encapsulation, err := tpm2.ImportEncapsulationKey(&public)
	if err != nil {
		return nil, fmt.Errorf("EK: %w", err)
	}
	s.secret = make([]byte, secretSize)
	if _, err := io.ReadFull(random, s.secret); err != nil {
		return nil, fmt.Errorf("make a secret: %w", err)
	}
	blob, encrypted, err := tpm2.CreateCredential(random, encapsulation, name, s.secret)
	if err != nil {
		return nil, fmt.Errorf("make a credential: %w", err)
	}
	return &evidence.Activate{CredentialBlob: sized2B(blob), Secret: sized2B(encrypted)}, nil
}

// sized2B puts a TPM2B's size before its contents.
func sized2B(b []byte) []byte {
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...)
}

// An AgentError is an agent's own account of why it could not answer.
type AgentError struct{ Message string }

// Error quotes the message, which came from a guest.
func (e *AgentError) Error() string {
	const enough = 500
	m := e.Message
	if len(m) > enough {
		m = m[:enough] + "..."
	}
	return "the guest's agent says " + strconv.Quote(m)
}

// peer is the guest's end of a conversation.
type peer struct {
	ctx  context.Context
	conn net.Conn
}

// newPeer ends what is done over a connection with ctx. done leaves the connection
// without a deadline; where ctx has ended, with one that is over.
func newPeer(ctx context.Context, conn net.Conn) (p *peer, done func()) {
	over := time.Unix(1, 0)
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(over) })
	return &peer{ctx: ctx, conn: conn}, func() {
		var left time.Time
		if !stop() {
			left = over
		}
		_ = conn.SetDeadline(left)
	}
}

// deadline sets the time by which a whole frame must be through. The context may
// have ended just before, and its own deadline have been replaced by this one.
func (p *peer) deadline(timeout time.Duration) error {
	return p.because(p.conn.SetDeadline(time.Now().Add(timeout)))
}

func (p *peer) send(timeout time.Duration, t evidence.FrameType, v any) error {
	payload, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if err := p.deadline(timeout); err != nil {
		return err
	}
	return p.because(evidence.WriteFrame(p.conn, t, payload))
}

// receive reads frames until one of the wanted type. An agent that was asked for
// Hello before it listened says it as often when it does.
func (p *peer) receive(timeout time.Duration, want evidence.FrameType) ([]byte, error) {
	if err := p.deadline(timeout); err != nil {
		return nil, err
	}
	for range maxHellos {
		t, payload, err := evidence.ReadFrame(p.conn, 0)
		switch {
		case err != nil:
			return nil, p.because(err)
		case t == want:
			return payload, nil
		case t == evidence.FrameHello:
			continue
		case t == evidence.FrameError:
			var f evidence.Failure
			if err := strictjson.Unmarshal(payload, &f, evidence.MaxPayload, "error frame"); err != nil {
				return nil, err
			}
			return nil, &AgentError{Message: f.Message}
		default:
			return nil, fmt.Errorf("%w: found a frame of type %d, expected %d", evidence.ErrFrame, t, want)
		}
	}
	return nil, fmt.Errorf("%w: found %d frames, none of type %d", evidence.ErrFrame, maxHellos, want)
}

func (p *peer) expect(timeout time.Duration, want evidence.FrameType, v any) error {
	payload, err := p.receive(timeout, want)
	if err != nil {
		return err
	}
	return strictjson.Unmarshal(payload, v, evidence.MaxPayload, fmt.Sprintf("frame of type %d", want))
}

// because is the outcome of a step: where the context has ended, its end,
// whatever came of the step.
func (p *peer) because(err error) error {
	if p.ctx.Err() != nil {
		return context.Cause(p.ctx)
	}
	return err
}
