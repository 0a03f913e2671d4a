package attest

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/evtpm/evtpm/measure"
)

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
	if r.Policy.Bit(PolicyDebug) && v.checks[CheckGuestDebug].Status != Failed {
		v.warn("the guest policy lets the host debug the guest: it can read and write the guest's memory")
	}
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
		checkPolicyCSP(leaf, v.policy),
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
	if want.Golden != nil && want.Golden.PCRs != nil {
		v.warn("the golden PCRs were not judged: a bare report has no vTPM")
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
