package attest

import (
	"context"

	"github.com/evtpm/evtpm/attest/evidence"
)

// BindingAzureHCL is Azure's paravisor: REPORT_DATA begins with the SHA-256 of
// runtime data that holds the AK. It comes from Azure's own evidence, see
// [ParseHCL], and has no EK.
const BindingAzureHCL = "azure-hcl"

// evidence makes the checks of whole evidence.
func (v *verifier) evidence(ctx context.Context, ev *evidence.Evidence) {
	// One more than there are cannot be in ascending order: a longer list is
	// refused all the same, and costs nothing.
	if n := pcrCount + 1; len(ev.PCRs) > n {
		short := *ev
		short.PCRs, ev = ev.PCRs[:n], &short
	}
	v.report(ctx, ev.Report, ev.Certificates)
	if v.parsed != nil {
		v.put(checkMeasurement(v.parsed, v.golden.LaunchDigests, "the golden values list no launch digest"))
	}
	v.put(checkBinding(ev, v.o.Live, v.policy))
	var ek, ak *tpmPublic
	if ev.Binding == BindingAzureHCL {
		ak = v.hclEvidence(ev)
	} else {
		ek, ak = v.svsmEvidence(ev)
	}
	quote := v.quote(ev, ak)
	v.put(checkEventLog(ev, v.policy)...)
	v.put(checkPCRGolden(ev, v.golden)...)
	v.lifecycle(ctx, ev, ek, quote)
}

// svsmEvidence makes the checks of nonce, manifest, EK and AK; a key is nil if it
// cannot be used further.
func (v *verifier) svsmEvidence(ev *evidence.Evidence) (ek, ak *tpmPublic) {
	if v.parsed != nil {
		want := reportData(ev)
		v.put(checkReportData(v.parsed, want[:], reportDataFormula(ev.Binding)))
	}
	v.put(checkNonce(ev, v.o.Live))
	keys, manifest := checkManifest(ev, v.policy)
	v.put(manifest)
	ek, check := checkEK(ev)
	v.put(check)
	switch {
	case ek == nil:
		v.put(notMade(CheckEKBound, check))
	case manifest.Status == Failed:
		v.put(notMade(CheckEKBound, manifest))
	default:
		v.put(checkEKBound(ek, ev, keys))
	}
	ak, check = checkAK(ev)
	v.put(check)
	if ak == nil {
		v.put(notMade(CheckAKResident, check))
	} else {
		check = checkAKResident(ev, v.o.Live, ak, keys)
		v.put(check)
		if check.Status == NotApplicable {
			v.warn("saved evidence does not show that the AK is in the vTPM: quote and PCRs are the guest's word; only a live challenge (evtpm attest) shows it")
		}
	}
	return ek, ak
}

// quote makes the checks of the quote; it is nil if it could not be read.
func (v *verifier) quote(ev *evidence.Evidence, ak *tpmPublic) *tpmQuote {
	q, check := checkQuoteForm(ev)
	v.put(check)
	var sig *tpmSignature
	signature := notMade(CheckQuoteSignature, v.checks[CheckAK])
	if ak != nil {
		sig, signature = checkQuoteSignature(ev, ak)
	}
	v.put(signature)
	if q == nil {
		v.put(notMade(CheckQuoteNonce, check), notMade(CheckPCRSelection, check), notMade(CheckPCRDigest, check))
		return nil
	}
	v.put(checkQuoteNonce(q, ev), checkPCRSelection(q, ev, v.o.Live))
	if sig == nil {
		v.put(notMade(CheckPCRDigest, signature))
	} else {
		v.put(checkPCRDigest(q, ev, sig))
	}
	if !q.safe {
		v.warn("the TPM says that its clock may have gone backwards (safe is 0)")
	}
	return q
}

// lifecycle compares the evidence with what the registry remembers, and lets it
// remember this launch if everything else is in order. It comes last.
func (v *verifier) lifecycle(ctx context.Context, ev *evidence.Evidence, ek *tpmPublic, q *tpmQuote) {
	if v.o.Registry == nil {
		const note = "no registry was given"
		v.put(skip(CheckQuoteClock, note), skip(CheckLifecycle, note))
		return
	}
	if ev.Binding == BindingAzureHCL {
		const note = "a registry keeps EKs, and this evidence has none"
		v.put(skip(CheckQuoteClock, note), skip(CheckLifecycle, note))
		return
	}
	var cause Check
	switch {
	case v.parsed == nil:
		cause = *v.blocker
	case ek == nil:
		cause = v.checks[CheckEK]
	default: // which has passed where there is a quote
		cause = v.checks[CheckQuoteForm]
	}
	if cause.Status == Failed {
		v.put(notMade(CheckQuoteClock, cause), notMade(CheckLifecycle, cause))
		return
	}
	s := sightingOf(v.parsed, ek, q, ev, v.now)
	err := v.o.Registry.Observe(ctx, s, func(earlier []Sighting) bool {
		v.put(checkClock(s, earlier), checkLifecycle(s, earlier))
		return !v.failed()
	})
	if err != nil {
		c := fail(CheckLifecycle, ReasonRegistry, "a registry that can be read and written", oneLine(err))
		v.put(c, notMade(CheckQuoteClock, c))
	}
}
