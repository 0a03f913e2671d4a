package machine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"time"

	"github.com/evtpm/evtpm/attest"
	"github.com/evtpm/evtpm/attest/evidence"
	"github.com/evtpm/evtpm/attest/kds"
	"github.com/evtpm/evtpm/launch"
)

// agentAddress is where the guest's agent is reached.
func (s *supervisor) agentAddress() AgentAddress {
	a := s.plan.Spec.Agent
	switch a.Transport {
	case launch.TransportTCP:
		return AgentAddress{Network: "tcp", Address: a.Address}
	case launch.TransportVsock:
		return AgentAddress{Network: "vsock", Address: fmt.Sprintf("%d:%d", s.plan.Spec.Vsock.CID, a.Port)}
	}
	return AgentAddress{Network: "unix", Address: filepath.Join(s.claim.dir, sockAgent)}
}

// firstAttestation waits for the guest's agent, challenges it and judges its
// evidence. boot ends when the guest is reset or gone.
func (s *supervisor) firstAttestation(boot context.Context) (*Outcome, error) {
	t := s.plan.Spec.Timeouts

	s.enter(PhaseBoot)
	ctx, cancel := s.within(boot, time.Duration(t.Boot))
	defer cancel()
	if err := s.takeTurn(ctx); err != nil {
		return nil, s.failedIn(ctx, PhaseBoot, err)
	}
	defer s.endTurn()
	conn, hello, err := s.agentAddress().Greet(ctx)
	if err != nil {
		return nil, s.failedIn(ctx, PhaseBoot, err)
	}
	defer conn.Close()
	s.done(PhaseBoot, "the agent answered")
	cancel()

	s.enter(PhaseAttest)
	s.update(func(r *Record) {
		if r.Boots == 1 {
			r.State = StateAttesting
		}
	})
	ctx, cancel = s.within(boot, time.Duration(t.Attest))
	defer cancel()
	session, err := s.challenge(ctx, conn, hello)
	if err != nil {
		return nil, s.failedIn(ctx, PhaseAttest, err)
	}
	s.done(PhaseAttest, fmt.Sprintf("evidence by binding %s", session.Evidence.Binding))
	s.enter(PhaseVerdict)
	a, err := s.judge(ctx, boot, session)
	if err != nil {
		return nil, s.failedIn(ctx, PhaseVerdict, err)
	}
	s.done(PhaseVerdict, a.Verdict.Result)
	return a, nil
}

// takeTurn waits until nobody else speaks to the agent.
func (s *supervisor) takeTurn(ctx context.Context) error {
	select {
	case s.attesting <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("another attestation is under way: %w", context.Cause(ctx))
	}
}

func (s *supervisor) endTurn() { <-s.attesting }

// attestAgain makes a new challenge to a running guest.
func (s *supervisor) attestAgain(ctx context.Context) (*Outcome, error) {
	if err := s.takeTurn(ctx); err != nil {
		return nil, s.failedIn(ctx, PhaseAttest, err)
	}
	defer s.endTurn()
	s.mu.Lock()
	boot := s.boot
	s.mu.Unlock()
	if boot == nil {
		return nil, s.failed(PhaseAttest, errors.New("the VM does not run yet"))
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(boot, func() { cancel(context.Cause(boot)) })()
	t := s.plan.Spec.Timeouts
	// After a reset the guest has to boot first.
	bctx, stop := s.within(ctx, time.Duration(t.Boot))
	defer stop()
	conn, hello, err := s.agentAddress().Greet(bctx)
	if err != nil {
		return nil, s.failedIn(bctx, PhaseBoot, err)
	}
	defer conn.Close()
	actx, stop := s.within(ctx, time.Duration(t.Attest))
	defer stop()
	session, err := s.challenge(actx, conn, hello)
	if err != nil {
		return nil, s.failedIn(actx, PhaseAttest, err)
	}
	a, err := s.judge(actx, boot, session)
	if err != nil {
		return nil, s.failedIn(actx, PhaseVerdict, err)
	}
	return a, nil
}

// challenge asks for evidence.
func (s *supervisor) challenge(ctx context.Context, conn net.Conn, hello *evidence.Hello) (*attest.Session, error) {
	spec := s.plan.Spec
	// ctx has the deadline, and says what it was.
	limit := 2 * time.Duration(spec.Timeouts.Attest)
	return attest.Challenge(ctx, conn, attest.ChallengeOptions{
		Binding:     spec.VTPM.Binding,
		PCRBank:     spec.VTPM.PCRBank,
		PCRs:        spec.Attestation.PCRs,
		Hello:       hello,
		StepTimeout: limit,
	})
}

// judgeBy says what the evidence of a live challenge is judged by: what the spec
// names, and what the cache keeps.
func (s *supervisor) judgeBy(ctx context.Context, session *attest.Session) (attest.Options, error) {
	o := attest.Options{
		Policy:   s.policy,
		Live:     session,
		Registry: attest.NewFileRegistry(filepath.Join(s.job.StateDir, registryFile)),
	}
	cache := filepath.Join(s.job.StateDir, kds.Folder)
	if s.plan.Spec.Attestation.Fetch {
		o.Getter = &kds.Cache{Dir: cache, Next: kds.New(kds.Options{})}
	}
	if s.bundle != nil {
		o.Certificates, o.CRLs = slices.Clone(s.bundle.Certificates), s.bundle.CRLs
	}
	if x, err := kds.Kept(ctx, cache, session.Evidence.Report); err == nil {
		o.Certificates = append(o.Certificates, x)
	}
	return o, s.platform.trust(&o)
}

// judge verifies the evidence of a live challenge, and makes the verdict the
// machine's, unless the boot that it is about has ended meanwhile.
func (s *supervisor) judge(ctx, boot context.Context, session *attest.Session) (*Outcome, error) {
	o, err := s.judgeBy(ctx, session)
	if err != nil {
		return nil, err
	}
	verdict, err := attest.Verify(ctx, session.Evidence, s.plan.Golden, o)
	if err != nil {
		return nil, err
	}
	raw, err := json.MarshalIndent(session.Evidence, "", "  ")
	if err != nil {
		return nil, err
	}
	judged, err := json.MarshalIndent(verdict, "", "  ")
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	if boot.Err() != nil {
		s.mu.Unlock()
		return nil, fmt.Errorf("attestation dropped: %w", context.Cause(boot))
	}
	s.record.Verdict = summarize(verdict)
	s.record.State, s.record.Reason = StateTrusted, ""
	if !verdict.Trusted() {
		s.record.State, s.record.Reason = StateRefused, "attestation refused"
	}
	s.mu.Unlock()
	a := &Outcome{Verdict: verdict, Evidence: raw}
	s.emit(Event{Kind: EventVerdict, State: s.snapshot().State, Class: verdict.Class(), Message: verdict.Result})
	for _, f := range []struct {
		name string
		data []byte
	}{{fileEvidence, raw}, {fileVerdict, judged}} {
		if err := s.claim.writeFile(f.name, append(f.data, '\n')); err != nil {
			return nil, fmt.Errorf("records: %w", err)
		}
	}
	if err := s.write(); err != nil {
		return nil, err
	}
	return a, nil
}

// registryFile is the registry of EKs, in the state directory.
const registryFile = "seen-eks.json"
