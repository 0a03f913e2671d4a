package attest

import (
	"bytes"
	"crypto/sha512"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/evtpm/evtpm/attest/evidence"
)

// NonceSize is the length of a challenge's nonce (AMD 58019: an SVSM attestation
// nonce is 64 bytes).
const NonceSize = 64

// ekPrefix is a TPMT_PUBLIC of the TCG's template for an RSA-2048 EK (TCG EK
// Credential Profile, template L-1) up to the modulus: RSA, SHA-256, attributes
// 0x000300B2, PolicySecret(endorsement), AES-128-CFB, no scheme, 2048 bits,
// exponent 0, modulus of 256 bytes.
var ekPrefix = []byte{
	0x00, 0x01, 0x00, 0x0B, 0x00, 0x03, 0x00, 0xB2,
	0x00, 0x20, 0x83, 0x71, 0x97, 0x67, 0x44, 0x84, 0xB3, 0xF8,
	0x1A, 0x90, 0xCC, 0x8D, 0x46, 0xA5, 0xD7, 0x24,
	0xFD, 0x52, 0xD7, 0x6E, 0x06, 0x52, 0x0B, 0x64,
	0xF2, 0xA1, 0xDA, 0x1B, 0x33, 0x14, 0x69, 0xAA,
	0x00, 0x06, 0x00, 0x80, 0x00, 0x43, 0x00, 0x10,
	0x08, 0x00, 0x00, 0x00, 0x00, 0x00, 0x01, 0x00,
}

// akAttributes must be set in an AK, akForbidden must not.
const (
	akAttributes = attrFixedTPM | attrFixedParent | attrSensitiveDataOrigin | attrRestricted | attrSign
	akForbidden  = attrDecrypt | attrEncryptedDup | attrX509Sign
)

// checkNonce judges the nonce of evidence, and takes that of a live challenge:
// only the first verification of a challenge gets it.
func checkNonce(ev *evidence.Evidence, live *Session) Check {
	if len(ev.Nonce) != NonceSize || allZero(ev.Nonce) {
		return fail(CheckNonce, ReasonNonceForm, fmt.Sprintf("%d random bytes", NonceSize), fmt.Sprintf("%d bytes %x", len(ev.Nonce), clip(ev.Nonce, NonceSize)))
	}
	if live == nil {
		return pass(CheckNonce, fmt.Sprintf("%x", ev.Nonce)).with("only a live challenge can show that it was fresh")
	}
	if !bytes.Equal(ev.Nonce, live.nonce) {
		return fail(CheckNonce, ReasonNonceForeign, fmt.Sprintf("%x", live.nonce), fmt.Sprintf("%x", ev.Nonce))
	}
	if !live.take() {
		return fail(CheckNonce, ReasonNonceUsed, "a challenge that was not judged before", "one that was")
	}
	return pass(CheckNonce, fmt.Sprintf("%x", ev.Nonce))
}

// clip cuts b to n bytes.
func clip(b []byte, n int) []byte {
	if len(b) > n {
		return b[:n]
	}
	return b
}

// checkBinding judges how the evidence binds the vTPM.
func checkBinding(ev *evidence.Evidence, live *Session, p *Policy) Check {
	if !slices.Contains(p.VTPM.Bindings, ev.Binding) {
		return fail(CheckBinding, ReasonBinding, strings.Join(p.VTPM.Bindings, ", "), fmt.Sprintf("%q", ev.Binding))
	}
	if live != nil && live.binding != "" && live.binding != ev.Binding {
		return fail(CheckBinding, ReasonBindingForeign, live.binding, ev.Binding)
	}
	return pass(CheckBinding, ev.Binding)
}

// checkManifest reads the manifest that the binding calls for. The keys are
// those that the SVSM vouches for; nil for a binding without a manifest.
func checkManifest(ev *evidence.Evidence, p *Policy) ([]*tpmPublic, Check) {
	if ev.Binding == evidence.BindingNV {
		if len(ev.Manifest) > 0 || ev.ManifestVersion != 0 {
			return nil, fail(CheckManifest, ReasonManifestExtra, "no manifest", fmt.Sprintf("%d bytes, version %d", len(ev.Manifest), ev.ManifestVersion))
		}
		return nil, skip(CheckManifest, "the report in the NV index binds the EK itself")
	}
	if len(ev.Manifest) == 0 {
		return nil, fail(CheckManifest, ReasonManifestNone, "the SVSM's manifest", "none")
	}
	accepted := p.VTPM.ManifestVersions
	if len(accepted) == 0 {
		accepted = []uint32{0}
	}
	if !slices.Contains(accepted, ev.ManifestVersion) {
		return nil, fail(CheckManifest, ReasonManifestVer, "version "+strings.Trim(fmt.Sprint(accepted), "[]"), fmt.Sprintf("version %d", ev.ManifestVersion))
	}
	own, err := vtpmManifest(ev.Manifest, ev.Binding == evidence.BindingSVSMServices)
	if errors.Is(err, errNoVTPM) {
		return nil, fail(CheckManifest, ReasonManifestNoVTPM, "service "+GUIDServiceVTPM.String(), oneLine(err))
	}
	var keys []*tpmPublic
	if err == nil {
		keys, err = parseVTPMManifest(own, ev.ManifestVersion)
	}
	if err != nil {
		return nil, fail(CheckManifest, ReasonManifest, fmt.Sprintf("a manifest of version %d", ev.ManifestVersion), oneLine(err))
	}
	return keys, pass(CheckManifest, fmt.Sprintf("version %d, %d bytes", ev.ManifestVersion, len(ev.Manifest)))
}

// checkEK reads the EK and compares it with the template. The EK is valid even
// if only the template differs.
func checkEK(ev *evidence.Evidence) (*tpmPublic, Check) {
	ek, err := parsePublic2B(ev.EKPublic)
	if err != nil {
		return nil, fail(CheckEK, ReasonEKMalformed, "one TPM2B_PUBLIC", oneLine(err))
	}
	const want = "the TCG's RSA-2048 EK template (L-1)"
	if !bytes.HasPrefix(ek.raw, ekPrefix) {
		return ek, fail(CheckEK, ReasonEKTemplate, want, describePublic(ek))
	}
	if _, err := ek.key(); err != nil {
		return ek, fail(CheckEK, ReasonEKTemplate, want, oneLine(err))
	}
	return ek, pass(CheckEK, describePublic(ek))
}

// describePublic says in a line what kind of key a public area describes.
func describePublic(p *tpmPublic) string {
	kind := fmt.Sprintf("RSA-%d, exponent %d", p.bits, p.exponent)
	if p.kind == algECC {
		kind = fmt.Sprintf("ECC curve %#04x", p.curve)
	}
	return fmt.Sprintf("%s, attributes %#08x, name %x", kind, p.attributes, p.name())
}

// checkEKBound compares the EK with the manifest's keys.
func checkEKBound(ek *tpmPublic, ev *evidence.Evidence, keys []*tpmPublic) Check {
	if ev.Binding == evidence.BindingNV {
		return skip(CheckEKBound, "REPORT_DATA covers the EK itself")
	}
	for _, k := range keys {
		if bytes.Equal(k.raw, ek.raw) {
			return pass(CheckEKBound, fmt.Sprintf("%x", ek.name()))
		}
	}
	var want []string
	for _, k := range keys {
		want = append(want, fmt.Sprintf("%x", k.name()))
	}
	return fail(CheckEKBound, ReasonEKMismatch, strings.Join(want, " or "), fmt.Sprintf("%x", ek.name()))
}

// reportData is what REPORT_DATA must be for a binding.
func reportData(ev *evidence.Evidence) [64]byte {
	if ev.Binding == evidence.BindingNV {
		return sha512.Sum512(ev.EKPublic)
	}
	return sha512.Sum512(append(bytes.Clone(ev.Nonce), ev.Manifest...))
}

// checkReportData compares REPORT_DATA with what it must be, all 64 bytes.
func checkReportData(r *Report, want []byte, note string) Check {
	return equalField(CheckReportData, ReasonReportData, want, r.ReportData[:]).with(note)
}

// reportDataFormula says in words what a binding hashes.
func reportDataFormula(binding string) string {
	if binding == evidence.BindingNV {
		return "SHA-512(EK as TPM2B_PUBLIC)"
	}
	return "SHA-512(nonce || manifest)"
}

// checkVMPL judges the VMPL. A vTPM is bound by a report from VMPL 0 only: the
// guest can ask for one at its own VMPL with any REPORT_DATA.
func checkVMPL(r *Report, p *Policy, vtpm bool) Check {
	found := fmt.Sprint(r.VMPL)
	switch {
	case r.VMPL == VMPLHost:
		return fail(CheckVMPL, ReasonVMPLHost, "0", "none: the host asked for the report")
	case r.VMPL > 3:
		return fail(CheckVMPL, ReasonVMPLMalformed, "0 to 3", found)
	case vtpm && r.VMPL != 0:
		return fail(CheckVMPL, ReasonVMPLNotZero, "0", found)
	case !vtpm && !slices.Contains(p.VMPL, r.VMPL):
		return fail(CheckVMPL, ReasonVMPL, strings.Trim(fmt.Sprint(p.VMPL), "[]"), found)
	}
	return pass(CheckVMPL, found)
}

// checkAK reads the AK and judges its attributes and algorithms. The AK is nil
// if no signature can be verified with it.
func checkAK(ev *evidence.Evidence) (*tpmPublic, Check) {
	ak, err := parsePublic2B(ev.AKPublic)
	if err != nil {
		return nil, fail(CheckAK, ReasonAKMalformed, "one TPM2B_PUBLIC", oneLine(err))
	}
	if missing, extra := akAttributes&^ak.attributes, akForbidden&ak.attributes; missing != 0 || extra != 0 {
		return ak, fail(CheckAK, ReasonAKAttributes, "fixedTPM, fixedParent, sensitiveDataOrigin, restricted and sign; no decrypt",
			fmt.Sprintf("attributes %#08x: %#x missing, %#x not allowed", ak.attributes, missing, extra))
	}
	if _, err := ak.key(); err != nil {
		return nil, fail(CheckAK, ReasonAKAlgorithm, "RSA of 2048 bits or more, P-256 or P-384", oneLine(err))
	}
	if _, ok := tpmHash(ak.nameAlg); !ok || ak.symmetric != algNull {
		return ak, fail(CheckAK, ReasonAKAlgorithm, "a name by SHA-256 or more, no symmetric algorithm",
			fmt.Sprintf("name algorithm %#04x, symmetric algorithm %#04x", ak.nameAlg, ak.symmetric))
	}
	// A restricted signing key has a scheme of its own; without one it has no hash.
	if _, ok := tpmHash(ak.schemeHash); !ok || (ak.scheme == algECDSA) != (ak.kind == algECC) {
		return ak, fail(CheckAK, ReasonAKAlgorithm, "a scheme with SHA-256 or more", fmt.Sprintf("scheme %#04x, hash %#04x", ak.scheme, ak.schemeHash))
	}
	return ak, pass(CheckAK, describePublic(ak))
}

// checkAKResident judges whether AK and EK are in one TPM: by a live challenge's
// credential, or because the SVSM lists both in its manifest.
func checkAKResident(ev *evidence.Evidence, live *Session, ak *tpmPublic, keys []*tpmPublic) Check {
	for _, k := range keys {
		if bytes.Equal(k.raw, ak.raw) {
			return pass(CheckAKResident, "the SVSM's manifest lists the AK")
		}
	}
	if live == nil {
		return skip(CheckAKResident, "only a live challenge can show this")
	}
	if !live.made(ev) {
		return fail(CheckAKResident, ReasonEvidenceMixed, "the EK and AK that the credential was made for", "others")
	}
	if err := live.activated(); err != nil {
		return fail(CheckAKResident, ReasonAKNotResident, "the secret of the credential", oneLine(err))
	}
	return pass(CheckAKResident, "the TPM opened a credential made for this EK and AK")
}
