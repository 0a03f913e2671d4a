package attest

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// maxCRL bounds a CRL in bytes. AMD's have under 1 KiB.
const maxCRL = 1 << 20

// CRL extensions (RFC 5280, section 5.2).
const (
	extDeltaCRL     = "2.5.29.27"
	extIssuingPoint = "2.5.29.28"
)

// ParseCRL reads a CRL in DER and holds it to RFC 5280's profile of a complete
// CRL: version 2 with nextUpdate, no delta, no partial scope, no critical
// extension that is unknown.
func ParseCRL(der []byte) (*x509.RevocationList, error) {
	if len(der) > maxCRL {
		return nil, fmt.Errorf("CRL: found %d bytes, expected at most %d", len(der), maxCRL)
	}
	l, err := x509.ParseRevocationList(der)
	if err != nil {
		return nil, fmt.Errorf("CRL: %w", err)
	}
	if len(l.Raw) != len(der) {
		return nil, fmt.Errorf("CRL: %d bytes behind it", len(der)-len(l.Raw))
	}
	var errs []error
	if l.NextUpdate.Before(l.ThisUpdate) {
		errs = append(errs, errors.New("CRL: nextUpdate is missing, or before thisUpdate"))
	}
	for _, e := range l.Extensions {
		switch id := e.Id.String(); {
		case id == extDeltaCRL:
			errs = append(errs, errors.New("CRL: it is a delta CRL"))
		case id == extIssuingPoint:
			errs = append(errs, errors.New("CRL: it covers only a part (issuing distribution point)"))
		case e.Critical:
			errs = append(errs, fmt.Errorf("CRL: critical extension %s is unknown", id))
		}
	}
	for _, r := range l.RevokedCertificateEntries {
		for _, e := range r.Extensions {
			if e.Critical {
				errs = append(errs, fmt.Errorf("CRL: entry %x has the unknown critical extension %s", r.SerialNumber, e.Id))
			}
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return l, nil
}

// revocation is what is known about revocation for a chain.
type revocation struct {
	lists  []*x509.RevocationList // issued by the root's name
	others []string               // issuers of those that are another root's
	err    error                  // why no more could be had
	ours   bool                   // one is current and not the host's choice
}

// gatherCRLs collects the CRLs of a chain's root: those given, that of the
// certificate table, and, when a getter is there and none of those given is
// current, the key distribution service's. That of the table is no reason not to
// ask: the host may keep to the last one before a revocation.
func (v *verifier) gatherCRLs(ctx context.Context, c chain, leaf *Leaf) revocation {
	var r revocation
	add := func(l *x509.RevocationList) (current bool) {
		if string(l.RawIssuer) != string(c.root.RawSubject) {
			r.others = append(r.others, l.Issuer.CommonName)
			return false
		}
		r.lists = append(r.lists, l)
		return !v.now.Before(l.ThisUpdate) && !v.now.After(l.NextUpdate)
	}
	for _, l := range v.o.CRLs {
		r.ours = add(l) || r.ours
	}
	for _, der := range v.tableCRLs {
		l, err := ParseCRL(der)
		if err != nil {
			r.err = err
			continue
		}
		add(l)
	}
	if v.o.Getter == nil || r.ours || v.policy.Revocation == RevocationIfGiven || v.roots.sim != nil {
		return r
	}
	der, err := v.o.Getter.Get(ctx, CRLURL(leaf.Kind, c.line()))
	if err != nil {
		r.err = err
		return r
	}
	l, err := ParseCRL(der)
	if err != nil {
		r.err = err
		return r
	}
	r.ours = add(l)
	return r
}

// checkRevocation judges the CRLs, then the chain against them. A serial number
// on any CRL that the root signed counts, even when that CRL has expired.
func (v *verifier) checkRevocation(c chain, r revocation) []Check {
	if v.roots.sim != nil {
		note := "a simulated platform has no CRL"
		return []Check{skip(CheckCRL, note), skip(CheckRevocation, note)}
	}
	if len(r.lists) == 0 {
		return v.withoutCRL(r)
	}
	var good *x509.RevocationList
	var worst Check
	var signed []*x509.RevocationList
	for _, l := range r.lists {
		judged := v.judgeCRL(l, c.root)
		if judged.Reason != string(ReasonCRLSignature) {
			signed = append(signed, l)
		}
		if judged.Status == Passed && (good == nil || l.ThisUpdate.After(good.ThisUpdate)) {
			good = l
		} else {
			worst = judged
		}
	}
	crl := worst
	if good != nil {
		crl = v.judgeCRL(good, c.root)
	}
	if revoked := revokedSerials(c, signed); revoked != "" {
		return []Check{crl, fail(CheckRevocation, ReasonRevoked, "no certificate of the chain", revoked)}
	}
	if good == nil {
		return []Check{crl, notMade(CheckRevocation, crl)}
	}
	if !r.ours {
		v.warn("revocation was judged by the CRL of the host's certificate table alone, which may be older than a revocation")
	}
	return []Check{crl, pass(CheckRevocation, fmt.Sprintf("%d certificates revoked, none of the chain", len(good.RevokedCertificateEntries)))}
}

// withoutCRL is the outcome when there is no CRL of the root.
func (v *verifier) withoutCRL(r revocation) []Check {
	others := ""
	if len(r.others) > 0 {
		slices.Sort(r.others)
		others = "those given are of " + strings.Join(slices.Compact(r.others), ", ")
	}
	required := v.policy.Revocation == RevocationRequired || v.policy.Revocation == RevocationWhenOnline && v.o.Getter != nil
	if !required && r.err == nil {
		note := "no CRL was given, and the policy does not ask for one"
		if others != "" {
			note = "no CRL of the root was given, and the policy does not ask for one: " + others
		}
		if v.policy.Revocation == RevocationWhenOnline {
			v.warn("revocation was not checked: no CRL of the root was given and the verification is offline")
		}
		return []Check{skip(CheckCRL, note), skip(CheckRevocation, note)}
	}
	found := "none"
	reason := ReasonCRLUnavailable
	if r.err != nil {
		found = oneLine(r.err)
		if strings.HasPrefix(found, "CRL: ") {
			reason = ReasonCRLMalformed
		}
	}
	c := fail(CheckCRL, reason, "a CRL of the root", found).with(others)
	return []Check{c, notMade(CheckRevocation, c)}
}

// listSignedBy verifies a CRL's signature in bounded time.
func listSignedBy(l *x509.RevocationList, root *x509.Certificate) error {
	if err := checkIssuerKey(root); err != nil {
		return err
	}
	return l.CheckSignatureFrom(root)
}

// judgeCRL verifies one CRL.
func (v *verifier) judgeCRL(l *x509.RevocationList, root *x509.Certificate) Check {
	window := fmt.Sprintf("%s to %s", l.ThisUpdate.UTC().Format(time.RFC3339), l.NextUpdate.UTC().Format(time.RFC3339))
	at := v.now.UTC().Format(time.RFC3339)
	age := v.now.Sub(l.ThisUpdate)
	limit := time.Duration(v.policy.CRLMaxAgeDays) * 24 * time.Hour
	switch err := listSignedBy(l, root); {
	case err != nil:
		return fail(CheckCRL, ReasonCRLSignature, "a signature by "+root.Subject.CommonName, err.Error())
	case v.now.Before(l.ThisUpdate):
		return fail(CheckCRL, ReasonCRLNotYetValid, window, at)
	case v.now.After(l.NextUpdate):
		return fail(CheckCRL, ReasonCRLExpired, window, at)
	case limit > 0 && age > limit:
		return fail(CheckCRL, ReasonCRLTooOld, fmt.Sprintf("at most %d days", v.policy.CRLMaxAgeDays), fmt.Sprintf("%d days", int(age.Hours()/24)))
	}
	return pass(CheckCRL, window)
}

// revokedSerials lists the certificates of a chain that a CRL of the root names:
// those that the root issued, itself included.
func revokedSerials(c chain, lists []*x509.RevocationList) string {
	var out []string
	for _, l := range lists {
		for _, e := range l.RevokedCertificateEntries {
			for _, x := range []*x509.Certificate{c.root, c.intermediate} {
				if e.SerialNumber.Cmp(x.SerialNumber) == 0 {
					out = append(out, fmt.Sprintf("%s (serial %#x) on %s", x.Subject.CommonName, x.SerialNumber, e.RevocationTime.UTC().Format(time.DateOnly)))
				}
			}
		}
	}
	return strings.Join(out, ", ")
}
