package attest

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/evtpm/evtpm/attest/evidence"
	"github.com/evtpm/evtpm/measure"
)

// Options say how to judge. The zero value judges offline, now, by the default
// policy, and trusts AMD's roots.
type Options struct {
	// Now is the time that validity is judged at; zero means time.Now.
	Now time.Time
	// Policy; nil means DefaultPolicy.
	Policy *Policy
	// SimRoots are the roots of simulated platforms to trust. When it is not
	// nil, only reports of those platforms are accepted: AMD's roots are not
	// trusted in the same verification.
	SimRoots []*x509.Certificate
	// Certificates complete the chain: leaf, ASK, ARK. They are not trusted by
	// standing here.
	Certificates []*x509.Certificate
	// CRLs are judged in full before they are used.
	CRLs []*x509.RevocationList
	// Getter fetches what is missing from the Key Distribution Service; nil
	// means offline.
	Getter Getter
	// Live is the challenge that the evidence answers; nil means saved evidence,
	// about which some things cannot be known.
	Live *Session
	// Registry remembers EKs; nil means that reuse is not judged.
	Registry Registry
	// ChipID pins the chip: the 64 bytes of the launch host's CHIP_ID. Nil means
	// that it is not pinned.
	ChipID []byte
	// Cache remembers chains that verified; nil means that each report's chain
	// is verified anew.
	Cache *ChainCache
}

// Verify judges whole evidence against golden values. The error is for misuse of
// the call alone; whatever is wrong with the evidence is in the verdict, which
// lists every check, all failures at once. The verdict depends on nothing but
// the arguments.
func Verify(ctx context.Context, ev *evidence.Evidence, golden *measure.Golden, o Options) (*Verdict, error) {
	if ev == nil || golden == nil {
		return nil, errors.New("verify: evidence and golden values must be given")
	}
	if err := golden.Validate(); err != nil {
		return nil, fmt.Errorf("verify: golden values: %w", err)
	}
	v, err := newVerifier(o)
	if err != nil {
		return nil, err
	}
	v.verdict.Binding = ev.Binding
	v.verdict.Live = o.Live != nil
	v.golden = golden
	v.vtpm = true
	v.evidence(ctx, ev)
	return v.finish(), nil
}

// Expect holds what a bare report is compared with; nil fields are not judged.
type Expect struct {
	// Golden values, of which all is judged that a report alone can show: the
	// platform, the launch digest, the guest policy, HOST_DATA, the ID block.
	Golden *measure.Golden
	// Measurements are the accepted launch digests, where there are no golden
	// values.
	Measurements []measure.Digest
	// ReportData is 64 bytes.
	ReportData []byte
}

// VerifyReport judges a bare report, as it came, with the certificate table that
// came with it, if any.
func VerifyReport(ctx context.Context, report, certTable []byte, want Expect, o Options) (*Verdict, error) {
	if n := len(want.ReportData); want.ReportData != nil && n != 64 {
		return nil, fmt.Errorf("verify: expected report data has %d bytes, expected 64", n)
	}
	if want.Measurements != nil && len(want.Measurements) == 0 {
		return nil, errors.New("verify: the list of expected measurements is empty")
	}
	if len(want.ReportData) > 0 && allZero(want.ReportData) {
		return nil, errors.New("verify: expected report data is all zeros, which binds a report to nothing")
	}
	if slices.ContainsFunc(want.Measurements, measure.Digest.IsZero) {
		return nil, errors.New("verify: an expected measurement is all zeros, which no launch has")
	}
	if o.Live != nil || o.Registry != nil {
		return nil, errors.New("verify: a bare report has neither challenge nor EK")
	}
	if want.Golden != nil {
		if len(want.Measurements) > 0 {
			return nil, errors.New("verify: measurements are expected beside golden values, which have their own")
		}
		if err := want.Golden.Validate(); err != nil {
			return nil, fmt.Errorf("verify: golden values: %w", err)
		}
		want.Measurements = want.Golden.LaunchDigests
	}
	v, err := newVerifier(o)
	if err != nil {
		return nil, err
	}
	v.golden = want.Golden
	v.report(ctx, report, certTable)
	if v.parsed != nil {
		v.bare(want)
	}
	return v.finish(), nil
}

// A verifier makes the checks of one verification.
type verifier struct {
	o      Options
	now    time.Time
	policy *Policy
	roots  rootSet
	golden *measure.Golden // nil for a bare report without
	vtpm   bool            // whole evidence

	parsed    *Report
	tableCRLs [][]byte

	checks  map[CheckName]Check
	blocker *Check // the failure that keeps later checks from being made
	verdict *Verdict
}

func newVerifier(o Options) (*verifier, error) {
	v := &verifier{o: o, now: o.Now, policy: o.Policy, checks: map[CheckName]Check{}}
	if v.now.IsZero() {
		v.now = time.Now()
	}
	if v.policy == nil {
		v.policy = sharedDefault()
	} else if err := v.policy.Validate(); err != nil {
		return nil, fmt.Errorf("verify: policy: %w", err)
	}
	if o.SimRoots != nil && len(o.SimRoots) == 0 {
		return nil, errors.New("verify: the list of simulated roots is empty")
	}
	if n := len(o.ChipID); o.ChipID != nil && n != 64 {
		return nil, fmt.Errorf("verify: the pinned chip id has %d bytes, expected 64", n)
	}
	if o.ChipID != nil && allZero(o.ChipID) {
		return nil, errors.New("verify: the pinned chip id is all zeros, which names no chip")
	}
	v.roots = rootSet{sim: o.SimRoots}
	v.verdict = &Verdict{Schema: VerdictSchema, Time: v.now.UTC()}
	if v.policy.checksNothing() {
		v.warn("the policy asks for nothing beyond a genuine report: old firmware, and guests that the host can read, pass")
	}
	return v, nil
}

// put adds checks. A failed check is never replaced by another outcome.
func (v *verifier) put(checks ...Check) {
	for _, c := range checks {
		if name := CheckName(c.Name); v.checks[name].Status != Failed {
			v.checks[name] = c
		}
	}
}

// block puts a failed check that keeps others from being made.
func (v *verifier) block(c Check) {
	v.put(c)
	v.blocker = &c
}

func (v *verifier) warn(format string, args ...any) {
	v.verdict.Warnings = append(v.verdict.Warnings, fmt.Sprintf(format, args...))
}

// notMade is the failed check of something that an earlier failure made
// impossible. It has that failure's class: the exit code must say what is really
// wrong.
func notMade(name CheckName, cause Check) Check {
	return Check{Name: string(name), Status: Failed, Reason: string(ReasonNotMade), Class: cause.Class,
		Note: "not possible, since " + cause.Name + " failed: " + cause.Reason}
}

// failed reports whether any check has failed so far.
func (v *verifier) failed() bool {
	for _, c := range v.checks {
		if c.Status == Failed {
			return true
		}
	}
	return false
}

// maxText bounds a text in a verdict. What does not fit is a hostile guest's: PCR
// values of a megabyte, say.
const maxText = 64 << 10

// clipText cuts a text that is too long, and says so.
func clipText(s string) string {
	if len(s) <= maxText {
		return s
	}
	return strings.ToValidUTF8(s[:maxText], "") + fmt.Sprintf("... (%d bytes)", len(s))
}

// finish orders the checks. One that nobody made is failed: a verdict is never
// trusted for want of a check.
func (v *verifier) finish() *Verdict {
	for _, info := range checkTable {
		if info.VTPM && !v.vtpm {
			continue
		}
		c, ok := v.checks[info.Name]
		if !ok {
			cause := Check{Name: "an internal step", Reason: "skipped", Class: info.Class}
			if v.blocker != nil {
				cause = *v.blocker
			}
			c = notMade(info.Name, cause)
		}
		c.Expected, c.Found = clipText(c.Expected), clipText(c.Found)
		v.verdict.Checks = append(v.verdict.Checks, c)
	}
	v.verdict.Binding = clipText(v.verdict.Binding)
	v.verdict.Result = ResultTrusted
	if len(v.verdict.Failures()) > 0 {
		v.verdict.Result = ResultRefused
	}
	return v.verdict
}
