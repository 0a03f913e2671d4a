package attest

import (
	"errors"
	"fmt"
	"net/url"
)

// KDSHost is AMD's Key Distribution Service (AMD 57230).
const KDSHost = "kdsintf.amd.com"

// VCEKURL is where the Key Distribution Service has the VCEK certificate of a
// chip at a TCB: 64 bytes of chip id, 8 on Turin and later, where the FMC's
// level is asked for too.
func VCEKURL(product Product, chipID [64]byte, t TCB) string {
	id := chipID[:]
	q := url.Values{}
	level := func(name string, v uint8) { q.Set(name, fmt.Sprintf("%02d", v)) }
	if product.TCB == TCBLayoutTurin {
		id = chipID[:hwidSizeTurin]
		level("fmcSPL", t.fmc())
	}
	level("blSPL", t.Bootloader)
	level("teeSPL", t.TEE)
	level("snpSPL", t.SNP)
	level("ucodeSPL", t.Microcode)
	return fmt.Sprintf("https://%s/vcek/v1/%s/%x?%s", KDSHost, product.Line, id, q.Encode())
}

// CertChainURL is where the Key Distribution Service has the ASK and ARK (or,
// for kind "vlek", ASVK and ARK) of a product line, in PEM.
func CertChainURL(kind, line string) string {
	return fmt.Sprintf("https://%s/%s/v1/%s/cert_chain", KDSHost, kind, line)
}

// CRLURL is where the Key Distribution Service has the CRL of a product line's
// root, in DER.
func CRLURL(kind, line string) string {
	return fmt.Sprintf("https://%s/%s/v1/%s/crl", KDSHost, kind, line)
}

// ReportURL is where the Key Distribution Service has the VCEK certificate for a
// report. There is none for a report that a VLEK signed, that masks its chip, or
// that does not name its product.
func ReportURL(r *Report) (string, error) {
	switch {
	case r.SignerInfo.SigningKey() != SigningKeyVCEK:
		return "", errors.New("a VLEK certificate cannot be fetched: the host's provider has it")
	case allZero(r.ChipID[:]):
		return "", errors.New("CHIP_ID is masked, so that there is nothing to ask for")
	case r.CPUID == nil:
		return "", fmt.Errorf("a report of version %d does not name its product", r.Version)
	}
	product, ok := r.CPUID.Product()
	if !ok {
		return "", fmt.Errorf("CPUID %s is no known product", r.CPUID)
	}
	tcb, err := product.TCB.Split(r.ReportedTCB)
	if err != nil {
		return "", err
	}
	return VCEKURL(product, r.ChipID, tcb), nil
}
