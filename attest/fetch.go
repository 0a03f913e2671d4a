package attest

import (
	"context"
	"crypto/x509"
	"fmt"
)

// fetchVCEK fetches the VCEK certificate for a report.
func fetchVCEK(ctx context.Context, g Getter, r *Report) (*x509.Certificate, error) {
	url, err := ReportURL(r)
	if err != nil {
		return nil, err
	}
	der, err := g.Get(ctx, url)
	if err != nil {
		return nil, err
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("the answer is no certificate: %w", err)
	}
	return c, nil
}
