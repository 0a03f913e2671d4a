package attest

import (
	"bytes"
	"context"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
)

// A chain is leaf, intermediate and root, as found; nothing in it is verified
// until [chain.verify].
type chain struct {
	leaf, intermediate, root *x509.Certificate
	// leafs is how many leaf certificates there were to choose from.
	leafs int
}

// maxCandidates bounds how many certificates of a role are tried, each at the
// price of a signature verification.
const maxCandidates = 16

// CertificateRole says what a certificate is, by its form alone: "leaf", or
// "root" and "intermediate" for a CA, self-issued or not.
func CertificateRole(c *x509.Certificate) string {
	switch {
	case !c.IsCA:
		return "leaf"
	case string(c.RawIssuer) == string(c.RawSubject):
		return "root"
	}
	return "intermediate"
}

// candidates sorts certificates by role, keeping order, dropping repeated CA
// certificates.
func candidates(lists ...[]*x509.Certificate) (leafs, intermediates, roots []*x509.Certificate) {
	add := func(to *[]*x509.Certificate, c *x509.Certificate) {
		if !slices.ContainsFunc(*to, c.Equal) {
			*to = append(*to, c)
		}
	}
	for _, list := range lists {
		for _, c := range list {
			switch CertificateRole(c) {
			case "leaf":
				leafs = append(leafs, c)
			case "root":
				add(&roots, c)
			default:
				add(&intermediates, c)
			}
		}
	}
	return leafs, intermediates, roots
}

// pickLeaf chooses the leaf for a report: the one whose key signed it, else the
// one that is for its chip and TCB, or the only one that there is. A report that
// no leaf signed thus still gets a verdict that says so. Of several that hold the same key, as a chip's
// certificates of different dates do, one that is valid now is chosen.
//
// A verifier's bundle may hold a certificate for each of its machines, so the
// order in which they are tried is that of likeness; what bounds the time is how
// many are tried.
func pickLeaf(r *Report, leafs []*x509.Certificate, now time.Time) *x509.Certificate {
	if len(leafs) < 2 {
		if len(leafs) == 0 {
			return nil
		}
		return leafs[0]
	}
	if own := ownLeaf(r, leafs); own != nil {
		// No choice: whether it signed the report, its check says.
		return own
	}
	type candidate struct {
		cert     *x509.Certificate
		likeness int
	}
	list := make([]candidate, len(leafs))
	for i, c := range leafs {
		list[i] = candidate{c, likeness(c, r, now)}
	}
	slices.SortStableFunc(list, func(a, b candidate) int { return b.likeness - a.likeness })
	list = slices.CompactFunc(list, func(a, b candidate) bool { return a.cert.Equal(b.cert) })
	for _, c := range list[:min(len(list), maxCandidates)] {
		if l, err := parseLeaf(c.cert); err == nil && verifySignature(r, l.key) == nil {
			return c.cert
		}
	}
	if list[0].likeness|likenessValid != likenessAll {
		return nil
	}
	return list[0].cert
}

// ownLeaf is the only certificate that is for a report's kind of key, chip and
// TCB; nil if there are none or several.
func ownLeaf(r *Report, leafs []*x509.Certificate) (own *x509.Certificate) {
	chip := r.ChipID[:hwidSizeTurin]
	for _, c := range leafs {
		// Most of a fleet's are of other chips, and quickly told.
		if r.SignerInfo.SigningKey() == SigningKeyVCEK && !bytes.Contains(c.Raw, chip) || !mayBeLeafOf(r, c) {
			continue
		}
		if own != nil && !own.Equal(c) {
			return nil
		}
		own = c
	}
	return own
}

// likenessAll is the likeness when everything agrees; likenessValid what a
// certificate that is valid now adds.
const (
	likenessBits  = 4
	likenessAll   = 1<<likenessBits - 1
	likenessValid = 1 << 0
)

// likeness says how much of what a report and its leaf certificate share agrees:
// the kind of key, the chip, the TCB; and, least of all, whether the certificate
// is valid now. It reads no more of the certificate than it needs: whether its
// form is right, [parseLeaf] says.
func likeness(c *x509.Certificate, r *Report, now time.Time) int {
	var tcb TCB
	var fmc uint8
	var hwid []byte
	kind, layout := "", TCBLayoutMilan
	for _, e := range c.Extensions {
		var level uint8
		if n := len(e.Value); n > 0 {
			level = e.Value[n-1] // of an INTEGER of 0 to 255
		}
		switch amdExtension(e.Id) {
		case [2]int{3, 1}:
			tcb.Bootloader = level
		case [2]int{3, 2}:
			tcb.TEE = level
		case [2]int{3, 3}:
			tcb.SNP = level
		case [2]int{3, 8}:
			tcb.Microcode = level
		case [2]int{3, 9}:
			fmc, layout = level, TCBLayoutTurin
		case [2]int{4, 0}:
			kind = "vcek"
			hwid, _ = parseHWID(e.Value)
		case [2]int{5, 0}:
			kind = "vlek"
		}
	}
	n := 0
	for i, agrees := range [likenessBits]bool{
		validAt(c, now),
		layout.Join(tcb)|RawTCB(fmc) == r.ReportedTCB, // Join takes a nil FMC for zero
		kind == "vlek" || len(hwid) > 0 && bytes.HasPrefix(r.ChipID[:], hwid),
		kind == signingKeyName(r.SignerInfo.SigningKey()),
	} {
		if agrees {
			n |= 1 << i
		}
	}
	return n
}

// mayBeLeafOf reports whether a leaf certificate is for a report's kind of key,
// chip and TCB, so that no other certificate would do better.
func mayBeLeafOf(r *Report, c *x509.Certificate) bool {
	return likeness(c, r, c.NotBefore) == likenessAll
}

// validAt reports whether a time is within a certificate's validity.
func validAt(c *x509.Certificate, now time.Time) bool {
	return !now.Before(c.NotBefore) && !now.After(c.NotAfter)
}

// pickIssuer chooses the issuer of a certificate among candidates: the one with
// the issuer's name, or, of several, the one whose key signed it, valid now if
// there is one. Whether it did, the chain's verification says.
func pickIssuer(c *x509.Certificate, from []*x509.Certificate, now time.Time) *x509.Certificate {
	var named []*x509.Certificate
	for _, p := range from {
		if string(p.RawSubject) == string(c.RawIssuer) && len(named) < maxCandidates {
			named = append(named, p)
		}
	}
	if len(named) < 2 {
		if len(named) == 0 {
			return nil
		}
		return named[0]
	}
	outdated := func(c *x509.Certificate) int {
		if validAt(c, now) {
			return 0
		}
		return 1
	}
	slices.SortStableFunc(named, func(a, b *x509.Certificate) int { return outdated(a) - outdated(b) })
	for _, p := range named {
		if signedBy(c, p) == nil {
			return p
		}
	}
	return named[0]
}

// maxIssuerBits bounds the RSA keys that signatures are verified with: AMD's have
// 4096 bits. One that fills a certificate table's entry would take seconds.
const maxIssuerBits = 8192

// checkIssuerKey refuses a key that takes long to verify with.
func checkIssuerKey(parent *x509.Certificate) error {
	key, ok := parent.PublicKey.(*rsa.PublicKey)
	if !ok {
		return fmt.Errorf("the issuer's key is %v, expected RSA", parent.PublicKeyAlgorithm)
	}
	if n := key.N.BitLen(); n > maxIssuerBits {
		return fmt.Errorf("the issuer's key has %d bits, expected at most %d", n, maxIssuerBits)
	}
	return nil
}

// signedBy verifies a certificate's signature in bounded time.
func signedBy(child, parent *x509.Certificate) error {
	if err := checkIssuerKey(parent); err != nil {
		return err
	}
	return child.CheckSignatureFrom(parent)
}

// assemble finds leaf, intermediate and root among certificates, in the order
// of the lists. A certificate that is missing is nil.
func assemble(r *Report, now time.Time, lists ...[]*x509.Certificate) chain {
	leafs, intermediates, roots := candidates(lists...)
	c := chain{leaf: pickLeaf(r, leafs, now), leafs: len(leafs)}
	if c.leaf == nil {
		return c
	}
	if c.intermediate = pickIssuer(c.leaf, intermediates, now); c.intermediate == nil {
		return c
	}
	c.root = pickIssuer(c.intermediate, roots, now)
	return c
}

// missing names the first certificate that a chain lacks; what lies above it
// cannot be known.
func (c chain) missing() string {
	switch {
	case c.leafs > 0 && c.leaf == nil:
		return fmt.Sprintf("VCEK or VLEK of this chip and TCB among %d", c.leafs)
	case c.leaf == nil:
		return "VCEK or VLEK"
	case c.intermediate == nil:
		return "intermediate (ASK) of " + c.leaf.Subject.CommonName
	case c.root == nil:
		return "root (ARK) of " + c.intermediate.Subject.CommonName
	}
	return ""
}

// A ChainCache remembers chains that verified, so that many reports under one
// leaf cost one chain verification. It remembers signatures only: validity in
// time, pins and revocation are judged each time. The zero value is ready; it
// may be used by several goroutines.
type ChainCache struct {
	mu   sync.Mutex
	good map[[32]byte]bool
}

// maxCachedChains bounds a ChainCache.
const maxCachedChains = 4096

func (c chain) key() [32]byte {
	h := sha256.New()
	for _, x := range []*x509.Certificate{c.leaf, c.intermediate, c.root} {
		sum := sha256.Sum256(x.Raw)
		h.Write(sum[:])
	}
	return [32]byte(h.Sum(nil))
}

// signatures verifies that root signed intermediate, and intermediate leaf; with
// a cache, once.
func (c chain) signatures(cache *ChainCache) error {
	if cache == nil {
		return c.verifySignatures()
	}
	key := c.key()
	cache.mu.Lock()
	known := cache.good[key]
	cache.mu.Unlock()
	if known {
		return nil
	}
	if err := c.verifySignatures(); err != nil {
		return err
	}
	cache.mu.Lock()
	defer cache.mu.Unlock()
	if cache.good == nil || len(cache.good) >= maxCachedChains {
		cache.good = map[[32]byte]bool{}
	}
	cache.good[key] = true
	return nil
}

// verifySignatures verifies what lies below the root, which is pinned byte for
// byte. That names fit, [pickIssuer] has seen to.
func (c chain) verifySignatures() error {
	var errs []error
	link := func(name string, child, parent *x509.Certificate) {
		if child.SignatureAlgorithm != x509.SHA384WithRSAPSS {
			errs = append(errs, fmt.Errorf("%s: signature algorithm is %v, expected %v", name, child.SignatureAlgorithm, x509.SHA384WithRSAPSS))
			return
		}
		if err := signedBy(child, parent); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
		}
	}
	link("intermediate", c.intermediate, c.root)
	link("leaf", c.leaf, c.intermediate)
	if unknown := c.intermediate.UnhandledCriticalExtensions; len(unknown) > 0 {
		errs = append(errs, fmt.Errorf("intermediate: critical extension %v is unknown", unknown[0]))
	}
	return errors.Join(errs...)
}

// line is the product line that the root's name says: "Milan" of "ARK-Milan".
func (c chain) line() string {
	line, ok := strings.CutPrefix(c.root.Subject.CommonName, "ARK-")
	if !ok {
		return ""
	}
	return line
}

// roleFaults compares the names in a chain with the roles that they must have
// for a kind of leaf.
func (c chain) roleFaults(kind string) string {
	line := c.line()
	wantLeaf, wantMid := cnVCEK, "SEV-"+line
	if kind == "vlek" {
		wantLeaf, wantMid = cnVLEK, "SEV-VLEK-"+line
	}
	var out []string
	if line == "" {
		out = append(out, fmt.Sprintf("root is %q, expected an ARK", c.root.Subject.CommonName))
	}
	if cn := c.intermediate.Subject.CommonName; cn != wantMid {
		out = append(out, fmt.Sprintf("intermediate is %q, expected %q", cn, wantMid))
	}
	if cn := c.leaf.Subject.CommonName; cn != wantLeaf {
		out = append(out, fmt.Sprintf("leaf is %q, expected %q", cn, wantLeaf))
	}
	return strings.Join(out, ", ")
}

// checkChain verifies signatures, roles and the pin.
func checkChain(c chain, leaf *Leaf, roots rootSet, cache *ChainCache) Check {
	if !roots.pinned(c.root) {
		note := "AMD's roots are pinned; a simulated platform's root is trusted only when it is named"
		if roots.sim != nil {
			note = "only the simulated roots that were given are trusted in this verification, AMD's are not"
		}
		sum := sha256.Sum256(c.root.Raw)
		return fail(CheckChain, ReasonARKUntrusted, "a pinned root",
			fmt.Sprintf("%q, sha256 %x", c.root.Subject.CommonName, sum)).with(note)
	}
	if err := c.signatures(cache); err != nil {
		return fail(CheckChain, ReasonChainBroken, "root, intermediate and leaf that sign each other", oneLine(err))
	}
	if leaf != nil {
		if faults := c.roleFaults(leaf.Kind); faults != "" {
			return fail(CheckChain, ReasonChainRole, "", faults)
		}
	}
	return pass(CheckChain, fmt.Sprintf("%s, %s, %s", c.root.Subject.CommonName, c.intermediate.Subject.CommonName, c.leaf.Subject.CommonName))
}

// The oldest and newest times at which a clock is believed when certificates
// seem out of their validity: SNP's first root dates from October 2020.
var (
	plausibleFrom = time.Date(2020, 10, 1, 0, 0, 0, 0, time.UTC)
	plausibleTo   = time.Date(2060, 1, 1, 0, 0, 0, 0, time.UTC)
)

// checkCertificateTime judges validity of every certificate at now.
func checkCertificateTime(c chain, now time.Time) Check {
	at := now.UTC().Format(time.RFC3339)
	for _, x := range []*x509.Certificate{c.root, c.intermediate, c.leaf} {
		var reason Reason
		switch {
		case now.Before(x.NotBefore):
			reason = ReasonCertificateNotYetValid
		case now.After(x.NotAfter):
			reason = ReasonCertificateExpired
		default:
			continue
		}
		want := fmt.Sprintf("%s: %s to %s", x.Subject.CommonName, x.NotBefore.UTC().Format(time.RFC3339), x.NotAfter.UTC().Format(time.RFC3339))
		if now.Before(plausibleFrom) || now.After(plausibleTo) {
			return fail(CheckCertificateTime, ReasonClockImplausible, want, at).with("the verifier's clock looks wrong")
		}
		return fail(CheckCertificateTime, reason, want, at)
	}
	return pass(CheckCertificateTime, at)
}

// checkSignerKind compares SIGNER_INFO with the leaf's kind.
func checkSignerKind(r *Report, leaf *Leaf) Check {
	if want := signingKeyName(r.SignerInfo.SigningKey()); want != leaf.Kind {
		return fail(CheckSignerKind, ReasonSignerKind, want+" (SIGNER_INFO)", leaf.Kind+" (certificate)")
	}
	return pass(CheckSignerKind, leaf.Kind)
}

// checkProduct finds the report's product, and compares report, leaf and chain.
// The product is valid even if the check failed, where there is one.
func checkProduct(r *Report, leaf *Leaf, c chain, p *Policy) (Product, Check) {
	var product Product
	var known bool
	if r.CPUID != nil {
		if product, known = r.CPUID.Product(); !known {
			return Product{}, fail(CheckProduct, ReasonProductUnknown, "the CPUID of a known product", r.CPUID.String())
		}
	} else {
		if product, known = productOfLine(leaf.Line()); !known {
			return Product{}, fail(CheckProduct, ReasonProductUnknown, "a known product in the certificate", fmt.Sprintf("%q", leaf.ProductName))
		}
		// Before version 3 a report does not say which layout its TCB versions
		// have. Only Milan's and Genoa's firmware wrote version 2 by default.
		if product.TCB != TCBLayoutMilan && !slices.Contains(p.Products, product.Name) {
			return product, fail(CheckProduct, ReasonProductAmbiguous, "a report of version 3 or more, or the product pinned by the policy", product.Name+", version 2")
		}
	}
	if leaf.Line() != product.Line || c.line() != product.Line {
		found := fmt.Sprintf("leaf %q, chain %q", leaf.ProductName, c.line())
		return product, fail(CheckProduct, ReasonProductMismatch, product.Line, found)
	}
	if r.CPUID != nil {
		return product, pass(CheckProduct, fmt.Sprintf("%s (%s)", product.Name, r.CPUID))
	}
	return product, pass(CheckProduct, product.Name)
}

// checkChipBinding compares CHIP_ID with the VCEK certificate's hwID.
func checkChipBinding(r *Report, leaf *Leaf, product Product, p *Policy) Check {
	if leaf.Kind != "vcek" {
		return skip(CheckChipBinding, "a VLEK certificate names no chip")
	}
	if allZero(r.ChipID[:]) {
		if p.AllowMaskedChipID {
			return skip(CheckChipBinding, "CHIP_ID is masked, which the policy allows")
		}
		return fail(CheckChipBinding, ReasonChipIDMasked, fmt.Sprintf("%x", leaf.HWID), "zeros")
	}
	if len(leaf.HWID) < hwidSize && product.TCB != TCBLayoutTurin {
		return fail(CheckChipBinding, ReasonChipIDMismatch, fmt.Sprintf("a hwID of %d bytes", hwidSize), fmt.Sprintf("%d bytes", len(leaf.HWID)))
	}
	if got := r.ChipID[:len(leaf.HWID)]; string(got) != string(leaf.HWID) {
		return fail(CheckChipBinding, ReasonChipIDMismatch, fmt.Sprintf("%x", leaf.HWID), fmt.Sprintf("%x", got))
	}
	return pass(CheckChipBinding, fmt.Sprintf("%x", leaf.HWID))
}

// checkTCBBinding compares REPORTED_TCB with the leaf's levels.
func checkTCBBinding(reported TCB, leaf *Leaf) Check {
	if (reported.FMC == nil) != (leaf.TCB.FMC == nil) {
		return fail(CheckTCBBinding, ReasonTCBBinding, leaf.TCB.String(), reported.String()).with("the certificate is for the other layout of TCB versions")
	}
	if reported.differs(leaf.TCB) != "" {
		return fail(CheckTCBBinding, ReasonTCBBinding, leaf.TCB.String(), reported.String())
	}
	return pass(CheckTCBBinding, reported.String())
}

// A Getter fetches certificates and CRLs. The URLs are those of AMD's Key
// Distribution Service. Implementations bound time and size.
type Getter interface {
	Get(ctx context.Context, url string) ([]byte, error)
}

// oneLine puts an error that spans lines on one.
func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }
