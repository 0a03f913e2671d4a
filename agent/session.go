package agent

import (
	"context"
	"errors"
	"fmt"

	"github.com/evtpm/evtpm/attest/evidence"
	"github.com/evtpm/evtpm/strictjson"
)

// nonceSize is the only length of nonce that the SVSM takes (AMD 58019, chapter
// 7), and so the only one in a challenge.
const nonceSize = 64

// failureError is an error that the peer is told of; the connection goes on.
type failureError struct{ err error }

func (e *failureError) Error() string { return e.err.Error() }
func (e *failureError) Unwrap() error { return e.err }

func failure(format string, args ...any) error {
	return &failureError{fmt.Errorf(format, args...)}
}

// session is the state of one connection.
type session struct {
	agent *Agent
	// activates says that evidence was given since the last activation: a
	// credential is for the AK of that evidence.
	activates bool
}

// answer handles one request and returns the answer's frame.
func (s *session) answer(ctx context.Context, t evidence.FrameType, payload []byte) (evidence.FrameType, any, error) {
	switch t {
	case evidence.FrameChallenge:
		var c evidence.Challenge
		if err := strictjson.Unmarshal(payload, &c, maxRequest, "challenge"); err != nil {
			return 0, nil, failure("%w", err)
		}
		ev, err := s.agent.evidence(ctx, &c)
		if err != nil {
			return 0, nil, failure("challenge: %w", err)
		}
		s.activates = true
		return evidence.FrameEvidence, ev, nil

	case evidence.FrameActivate:
		var m evidence.Activate
		if err := strictjson.Unmarshal(payload, &m, maxRequest, "activate"); err != nil {
			return 0, nil, failure("%w", err)
		}
		if !s.activates {
			return 0, nil, failure("activate: found no evidence since the last activation, expected a challenge first")
		}
		s.activates = false
		info, err := s.agent.activate(ctx, &m)
		if err != nil {
			return 0, nil, failure("activate: %w", err)
		}
		return evidence.FrameActivated, evidence.Activated{CertInfo: info}, nil
	}
	return 0, nil, failure("frame type %d: expected a challenge (%d) or an activation (%d)",
		t, evidence.FrameChallenge, evidence.FrameActivate)
}

// checkChallenge says what in a challenge cannot be answered by anyone.
func checkChallenge(c *evidence.Challenge) error {
	var errs []error
	if len(c.Nonce) != nonceSize {
		errs = append(errs, fmt.Errorf("nonce: found %d bytes, expected %d", len(c.Nonce), nonceSize))
	}
	switch c.Binding {
	case "", evidence.BindingSVSM, evidence.BindingSVSMServices, evidence.BindingNV:
	default:
		errs = append(errs, fmt.Errorf("binding: found %q, expected %q, %q or %q",
			c.Binding, evidence.BindingSVSM, evidence.BindingSVSMServices, evidence.BindingNV))
	}
	if _, err := bankAlg(c.PCRBank); err != nil {
		errs = append(errs, err)
	}
	if err := checkPCRs(c.PCRs); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// evidence answers a challenge.
func (a *Agent) evidence(ctx context.Context, c *evidence.Challenge) (*evidence.Evidence, error) {
	if err := checkChallenge(c); err != nil {
		return nil, err
	}
	if err := a.take(ctx); err != nil {
		return nil, err
	}
	defer a.release()

	ev := &evidence.Evidence{Schema: evidence.Schema, Nonce: c.Nonce, PCRBank: c.PCRBank}
	att, binding, err := attest(ctx, a.o.Sources, c.Binding, c.Nonce)
	if err != nil {
		return nil, err
	}
	ev.Binding = binding
	ev.Report, ev.Certificates = att.Report, att.Certificates
	ev.Manifest, ev.ManifestVersion = att.Manifest, att.ManifestVersion

	if err := a.tpm.fill(ev, c); err != nil {
		return nil, err
	}
	if a.o.EventLog != nil {
		if ev.EventLog, err = a.o.EventLog(); err != nil {
			return nil, fmt.Errorf("event log: %w", err)
		}
		if len(ev.EventLog) > maxEventLog {
			return nil, fmt.Errorf("event log: found more than %d bytes", maxEventLog)
		}
	}
	if ev.BootID, err = a.o.BootID(); err != nil {
		return nil, fmt.Errorf("boot id: %w", err)
	}
	return ev, nil
}

// activate answers an activation.
func (a *Agent) activate(ctx context.Context, m *evidence.Activate) ([]byte, error) {
	if err := a.take(ctx); err != nil {
		return nil, err
	}
	defer a.release()
	return a.tpm.activate(m.CredentialBlob, m.Secret)
}
