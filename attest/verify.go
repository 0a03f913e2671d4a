package attest

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/evtpm/evtpm/attest/evidence"
	"github.com/evtpm/evtpm/measure"
)

// BindingAzureHCL is Azure's paravisor: REPORT_DATA begins with the SHA-256 of
// runtime data that holds the AK. It comes from Azure's own evidence, see
// [ParseHCL], and has no EK.
const BindingAzureHCL = "azure-hcl"

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

// Expect holds what a bare report is compared with; empty fields are not judged.
type Expect struct {
	// Measurements are the accepted launch digests.
	Measurements []measure.Digest
	// ReportData is 64 bytes.
	ReportData []byte
}

// VerifyReport judges a bare report, as it came, with the certificate table that
// came with it, if any.
func VerifyReport(ctx context.Context, report, certTable []byte, want Expect, o Options) (*Verdict, error) {
	if n := len(want.ReportData); n != 0 && n != 64 {
		return nil, fmt.Errorf("verify: expected report data has %d bytes, expected 64", n)
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
	v, err := newVerifier(o)
	if err != nil {
		return nil, err
	}
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
	golden *measure.Golden // nil for a bare report
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
	if n := len(o.ChipID); n != 0 && n != 64 {
		return nil, fmt.Errorf("verify: the pinned chip id has %d bytes, expected 64", n)
	}
	if n := len(o.ChipID); n != 0 && allZero(o.ChipID) {
		return nil, errors.New("verify: the pinned chip id is all zeros, which names no chip")
	}
	v.roots = rootSet{sim: o.SimRoots}
	v.verdict = &Verdict{Schema: VerdictSchema, Time: v.now.UTC()}
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
		v.verdict.Checks = append(v.verdict.Checks, c)
	}
	v.verdict.Result = ResultTrusted
	if len(v.verdict.Failures()) > 0 {
		v.verdict.Result = ResultRefused
	}
	return v.verdict
}

// report makes the checks that a report and its certificates allow.
func (v *verifier) report(ctx context.Context, raw, certTable []byte) {
	r, err := ParseReport(raw)
	switch {
	case errors.Is(err, ErrReportLength):
		v.block(fail(CheckReportLength, ReasonReportLength, fmt.Sprintf("%d bytes", ReportSize), fmt.Sprintf("%d bytes", len(raw))))
		return
	case err != nil:
		v.put(pass(CheckReportLength, fmt.Sprintf("%d bytes", len(raw))))
		v.block(fail(CheckReportVersion, ReasonReportVersion, fmt.Sprintf("version %d to %d", minReportVersion, maxReportVersion), oneLine(err)))
		return
	}
	v.parsed = r
	v.put(
		pass(CheckReportLength, fmt.Sprintf("%d bytes", len(raw))),
		pass(CheckReportVersion, fmt.Sprint(r.Version)),
		checkReportReserved(r),
		checkReportAlgorithm(r),
		checkReportSigner(r),
	)
	v.reportPolicy(r)
	v.authenticity(ctx, r, certTable)
}

// reportPolicy makes the checks of a report that need no certificate.
func (v *verifier) reportPolicy(r *Report) {
	p := v.policy
	v.put(
		checkPolicyVersion(r, p),
		checkPolicySigner(r, p),
		checkProvisional(r, p),
		checkFirmware(r, p),
		checkMitigations(r, p),
		checkGuestPolicyForm(r),
		checkGuestPolicy(r, p),
		checkGuestDebug(r, p),
		checkGuestMigration(r, p),
		checkGuestABI(r, p),
		checkGuestGolden(r, v.golden),
		checkSMT(r),
		checkPlatformInfo(r, p),
		checkAliasCheck(r, p),
		checkHostData(r, v.golden, p),
		checkVMPL(r, p, v.vtpm),
	)
	v.put(checkIDBlock(r, v.golden, p)...)
}

// authenticity makes the checks of signature, certificates and product.
func (v *verifier) authenticity(ctx context.Context, r *Report, certTable []byte) {
	c, check := v.certificates(ctx, r, certTable)
	if check.Status == Failed {
		v.block(check)
		return
	}
	v.put(check)
	v.put(checkCertificateTime(c, v.now))
	leaf, err := parseLeaf(c.leaf)
	if err != nil {
		v.block(fail(CheckLeaf, ReasonLeafMalformed, "AMD's extensions and a P-384 key", oneLine(err)))
		v.chain(c, nil)
		return
	}
	v.put(pass(CheckLeaf, fmt.Sprintf("%s for %s", leaf.Kind, leaf.ProductName)))
	v.chain(c, leaf)
	v.put(
		checkReportSignature(r, leaf),
		checkSignerKind(r, leaf),
		checkChip(r, leaf, v.o.ChipID, v.policy),
	)
	v.put(v.checkRevocation(c, v.gatherCRLs(ctx, c, leaf))...)
	product, check := checkProduct(r, leaf, c, v.policy)
	if product.Name == "" {
		v.block(check)
		return
	}
	if check.Status == Passed {
		v.verdict.Product = product.Name
	}
	v.put(check, checkPolicyProduct(product, v.policy), checkChipBinding(r, leaf, product, v.policy))
	v.levels(r, leaf, product)
}

// chain judges the chain, and which platform it stands for.
func (v *verifier) chain(c chain, leaf *Leaf) {
	check := checkChain(c, leaf, v.roots, v.o.Cache)
	v.put(check)
	if check.Status == Failed {
		v.put(notMade(CheckPlatform, check))
		return
	}
	v.verdict.Platform = v.roots.platform()
	v.put(checkPlatform(v.roots.platform(), v.golden))
}

// checkPlatform compares the root's kind with the golden values'.
func checkPlatform(platform string, g *measure.Golden) Check {
	if g == nil {
		return pass(CheckPlatform, platform)
	}
	if g.Platform != platform {
		return fail(CheckPlatform, ReasonPlatformMismatch, g.Platform, platform)
	}
	return pass(CheckPlatform, platform)
}

// levels makes the checks of the four TCB versions.
func (v *verifier) levels(r *Report, leaf *Leaf, product Product) {
	tcbs, faults := r.split(product.TCB)
	v.put(checkTCBForm(faults), checkTCBOrder(tcbs, v.policy), checkTCBBinding(tcbs.Reported, leaf))
	v.put(checkFloors(tcbs, r, v.policy)...)
	v.floorWarnings(r)
}

// floorWarnings notes the date of the floors, and warns of old ones and of
// products that floors cannot mend.
func (v *verifier) floorWarnings(r *Report) {
	t := v.policy.TCB.Floors.Table
	if t == nil {
		return
	}
	v.verdict.FloorsDate = t.Date
	if days := v.policy.TCB.MaxAgeDays; days > 0 {
		// Validate has seen to the date.
		if age, _ := t.age(v.now); age > time.Duration(days)*24*time.Hour {
			v.warn("the table of TCB floors is of %s, more than %d days old", t.Date, days)
		}
	}
	if r.CPUID != nil {
		if f := t.Find(*r.CPUID); f != nil && f.Warning != "" && v.roots.sim == nil {
			v.warn("%s: %s", f.Name, f.Warning)
		}
	}
}

// certificates finds the chain: in the table that came with the report, in the
// options, among the embedded roots, and last in the Key Distribution Service.
func (v *verifier) certificates(ctx context.Context, r *Report, table []byte) (chain, Check) {
	entries, err := ParseCertTable(table)
	if err != nil {
		return chain{}, fail(CheckCertificates, ReasonCertificateTable, "a certificate table", oneLine(err))
	}
	var fromTable []*x509.Certificate
	for _, e := range entries {
		switch e.GUID {
		case GUIDVCEK, GUIDVLEK, GUIDASK, GUIDARK:
			c, err := tableCertificate(e.Data)
			if err != nil {
				return chain{}, fail(CheckCertificates, ReasonCertificateTable, "a certificate", e.GUID.String()+": "+oneLine(err))
			}
			fromTable = append(fromTable, c)
		case GUIDCRL:
			v.tableCRLs = append(v.tableCRLs, e.Data)
		}
	}
	c := assemble(r, v.now, fromTable, v.o.Certificates, v.roots.certificates())
	source := ""
	if v.o.Getter != nil && v.roots.sim == nil && (c.leaf == nil || !mayBeLeafOf(r, c.leaf)) {
		fetched, err := fetchVCEK(ctx, v.o.Getter, r)
		switch {
		case err == nil:
			c = assemble(r, v.now, []*x509.Certificate{fetched}, fromTable, v.o.Certificates, v.roots.certificates())
			source = ", VCEK from " + KDSHost
		case c.leaf == nil:
			return chain{}, fail(CheckCertificates, ReasonCertificatesUnavailable, "VCEK from "+KDSHost, oneLine(err))
		}
	}
	if missing := c.missing(); missing != "" {
		return chain{}, fail(CheckCertificates, ReasonCertificatesUnavailable, "VCEK or VLEK, ASK and ARK", "no "+missing).
			with("give the certificates, or allow fetching them")
	}
	return c, pass(CheckCertificates, c.leaf.Subject.CommonName+" under "+c.root.Subject.CommonName+source)
}

// bare makes the checks of a bare report that depend on expectations.
func (v *verifier) bare(want Expect) {
	r := v.parsed
	v.put(checkMeasurement(r, want.Measurements, "no measurement is expected: what runs in the guest was not judged"))
	if len(want.ReportData) == 0 {
		v.put(skip(CheckReportData, "no report data is expected: the report may be old or another's").found(fmt.Sprintf("%x", r.ReportData)))
	} else {
		v.put(checkReportData(r, want.ReportData, ""))
	}
	if len(want.Measurements) == 0 {
		v.warn("the measurement was not judged: none was given to compare with")
	}
}

// checkMeasurement looks the measurement up among the accepted launch digests.
func checkMeasurement(r *Report, accepted []measure.Digest, whenNone string) Check {
	found := measure.Digest(r.Measurement).String()
	if len(accepted) == 0 {
		return skip(CheckMeasurement, whenNone).found(found)
	}
	want := ""
	for _, d := range accepted {
		if d == measure.Digest(r.Measurement) {
			return pass(CheckMeasurement, found)
		}
		if want != "" {
			want += " or "
		}
		want += d.String()
	}
	return fail(CheckMeasurement, ReasonMeasurement, want, found).with("evtpm explain says which input differs")
}

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
		v.put(checkAKResident(ev, v.o.Live, ak, keys))
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
	case q == nil:
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
