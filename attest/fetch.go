package attest

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
)

// fetchVCEK fetches the VCEK certificate for a report. Its product must be known
// from the CPUID, its signing key be a VCEK, and its chip not masked.
func fetchVCEK(ctx context.Context, g Getter, r *Report) (*x509.Certificate, error) {
	switch {
	case r.SignerInfo.SigningKey() != SigningKeyVCEK:
		return nil, errors.New("a VLEK certificate cannot be fetched: the host's provider has it")
	case allZero(r.ChipID[:]):
		return nil, errors.New("CHIP_ID is masked, so that there is nothing to ask for")
	case r.CPUID == nil:
		return nil, fmt.Errorf("a report of version %d does not name its product", r.Version)
	}
	product, ok := r.CPUID.Product()
	if !ok {
		return nil, fmt.Errorf("CPUID %s is no known product", r.CPUID)
	}
	tcb, err := product.TCB.Split(r.ReportedTCB)
	if err != nil {
		return nil, err
	}
	der, err := g.Get(ctx, VCEKURL(product, r.ChipID, tcb))
	if err != nil {
		return nil, err
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("the answer is no certificate: %w", err)
	}
	return c, nil
}
