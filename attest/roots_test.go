package attest

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/pem"
	"testing"

	"github.com/google/go-sev-guest/verify/trust"
)

// TestAMDCertificates holds AMD's certificates against those that go-sev-guest
// carries: the same, none more, and every pinned root among them.
func TestAMDCertificates(t *testing.T) {
	theirs := make(map[string]bool)
	for _, bundle := range [][]byte{
		trust.AskArkMilanVcekBytes, trust.AskArkMilanVlekBytes,
		trust.AskArkGenoaVcekBytes, trust.AskArkGenoaVlekBytes,
		trust.AskArkTurinVcekBytes, trust.AskArkTurinVlekBytes,
	} {
		for block, rest := pem.Decode(bundle); block != nil; block, rest = pem.Decode(rest) {
			theirs[string(block.Bytes)] = true
		}
	}
	ours := AMDCertificates()
	roots := make(map[string]bool)
	for _, c := range ours {
		if !theirs[string(c.Raw)] {
			t.Errorf("%s: found a certificate that go-sev-guest does not have", c.Subject)
		}
		if bytes.Equal(c.RawIssuer, c.RawSubject) {
			sum := sha256.Sum256(c.Raw)
			roots[hex.EncodeToString(sum[:])] = true
			if !IsAMDRoot(c) {
				t.Errorf("%s: found a root that is not pinned", c.Subject)
			}
		}
	}
	if len(ours) != len(theirs) {
		t.Errorf("found %d certificates, expected %d", len(ours), len(theirs))
	}
	for product, pin := range pinnedARKs {
		if !roots[pin] {
			t.Errorf("%s: the pinned root is not among the certificates", product)
		}
	}
}
