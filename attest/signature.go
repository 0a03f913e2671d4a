package attest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha512"
	"errors"
	"fmt"
	"strings"
)

// errSignatureRange and errSignature say how a report's signature fails.
var (
	errSignatureRange = errors.New("R or S is zero, or not below the order of P-384")
	errSignature      = errors.New("the signature does not verify")
)

// verifySignature verifies a report's ECDSA P-384 signature over the bytes as
// received (SNP ABI 56860, "Signature").
func verifySignature(r *Report, key *ecdsa.PublicKey) error {
	rr, ss := r.signature()
	n := elliptic.P384().Params().N
	if rr.Sign() == 0 || ss.Sign() == 0 || rr.Cmp(n) >= 0 || ss.Cmp(n) >= 0 {
		return errSignatureRange
	}
	digest := sha512.Sum384(r.signed())
	if !ecdsa.Verify(key, digest[:], rr, ss) {
		return errSignature
	}
	return nil
}

// checkReportReserved judges reserved bytes.
func checkReportReserved(r *Report) Check {
	ranges := r.nonZero()
	if len(ranges) == 0 {
		return pass(CheckReportReserved, "")
	}
	var found []string
	for _, b := range ranges {
		found = append(found, fmt.Sprintf("%#03x to %#03x", b.from, b.to-1))
	}
	return fail(CheckReportReserved, ReasonReservedNotZero, "zeros", "set bytes in "+strings.Join(found, ", "))
}

// checkReportAlgorithm judges SIGNATURE_ALGO.
func checkReportAlgorithm(r *Report) Check {
	if r.SignatureAlgo != SignatureAlgoECDSA {
		return fail(CheckReportAlgorithm, ReasonSignatureAlgorithm, "1 (ECDSA P-384 with SHA-384)", fmt.Sprint(r.SignatureAlgo))
	}
	return pass(CheckReportAlgorithm, "ECDSA P-384 with SHA-384")
}

// checkReportSigner judges SIGNER_INFO.
func checkReportSigner(r *Report) Check {
	s := r.SignerInfo
	found := fmt.Sprintf("%#x", uint32(s))
	switch k := s.SigningKey(); {
	case s.reserved() != 0:
		return fail(CheckReportSigner, ReasonSignerInfo, "bits 31:5 zero", found)
	case k == SigningKeyNone || s.MaskChipKey():
		return fail(CheckReportSigner, ReasonNotSigned, "a signing key", found)
	case k != SigningKeyVCEK && k != SigningKeyVLEK:
		return fail(CheckReportSigner, ReasonSignerInfo, "SIGNING_KEY 0 (VCEK) or 1 (VLEK)", fmt.Sprint(k))
	default:
		return pass(CheckReportSigner, signingKeyName(k))
	}
}

// checkReportSignature verifies the report's signature.
func checkReportSignature(r *Report, leaf *Leaf) Check {
	switch err := verifySignature(r, leaf.key); {
	case errors.Is(err, errSignatureRange):
		return fail(CheckReportSignature, ReasonSignatureRange, "1 to n-1", err.Error())
	case err != nil:
		return fail(CheckReportSignature, ReasonSignatureInvalid, "a signature by "+leaf.Certificate.Subject.CommonName, err.Error())
	}
	return pass(CheckReportSignature, leaf.Certificate.Subject.CommonName)
}
