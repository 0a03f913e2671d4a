package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/evtpm/evtpm/attest/evidence"
)

// A Source gives the SNP report that stands behind the vTPM.
type Source interface {
	// Bindings lists the evidence bindings that the source can answer now, best
	// first; none when it is not there.
	Bindings() []string

	// Attest gets a report for one of the bindings and a nonce of 64 bytes. A
	// binding without a nonce (evidence.BindingNV) ignores it.
	Attest(ctx context.Context, binding string, nonce []byte) (*Attestation, error)
}

// Attestation is what a source gives: bytes, as received.
type Attestation struct {
	Report          []byte
	Manifest        []byte // empty for evidence.BindingNV
	ManifestVersion uint32
	Certificates    []byte // may be empty
}

// Bounds on what a source may return; see SNP ABI 56860 (a report has 1184
// bytes) and AMD 58019, chapter 7 (certificates have at most 16 KiB).
const (
	maxReport       = 4 << 10
	maxManifest     = 64 << 10
	maxCertificates = 64 << 10
)

// bindings lists what the sources can answer, without repetition, best first.
func bindings(sources []Source) []string {
	out := []string{}
	for _, s := range sources {
		for _, b := range s.Bindings() {
			if !slices.Contains(out, b) {
				out = append(out, b)
			}
		}
	}
	return out
}

// A certifier is a source that can also ask the host for the certificates of the
// chip, by a report of the guest's own. They are the host's word, as every
// certificate that comes with evidence.
type certifier interface {
	certificates(ctx context.Context) ([]byte, error)
}

// addCertificates fills in certificates that did not come with the report. A
// verifier can find them elsewhere: that none are there is no error.
func addCertificates(ctx context.Context, sources []Source, a *Attestation) {
	for _, s := range sources {
		c, ok := s.(certifier)
		if !ok || len(a.Certificates) > 0 || len(s.Bindings()) == 0 {
			continue
		}
		if table, err := c.certificates(ctx); err == nil && len(table) <= maxCertificates {
			a.Certificates = table
		}
	}
}

// attest asks the sources in order for the binding, or for the best that any
// of them has when it is empty, and returns the first answer and its binding.
func attest(ctx context.Context, sources []Source, binding string, nonce []byte) (*Attestation, string, error) {
	var errs []error
	for _, s := range sources {
		for _, b := range s.Bindings() {
			if binding != "" && b != binding {
				continue
			}
			att, err := s.Attest(ctx, b, nonce)
			if err == nil {
				err = checkSizes(att)
			}
			if err == nil {
				addCertificates(ctx, sources, att)
				return att, b, nil
			}
			errs = append(errs, fmt.Errorf("binding %s: %w", b, err))
		}
	}
	if len(errs) > 0 {
		return nil, "", errors.Join(errs...)
	}
	if binding == "" {
		return nil, "", errors.New("this guest has no source of attestation reports: " +
			"no SVSM in configfs-tsm, no simulated SVSM's port, no report in NV index 0x01C00002")
	}
	return nil, "", fmt.Errorf("binding %q: this guest can answer %q", binding, bindings(sources))
}

func checkSizes(a *Attestation) error {
	var errs []error
	for _, f := range []struct {
		name     string
		len, max int
	}{
		{"report", len(a.Report), maxReport},
		{"manifest", len(a.Manifest), maxManifest},
		{"certificates", len(a.Certificates), maxCertificates},
	} {
		if f.len > f.max {
			errs = append(errs, fmt.Errorf("%s: found %d bytes, expected at most %d", f.name, f.len, f.max))
		}
	}
	return errors.Join(errs...)
}

// vtpmService is the GUID of the SVSM's vTPM service (AMD 58019, section 8.4)
// as text and in wire order.
const vtpmService = "c476f1eb-0123-45a5-9641-b4e7dde5bfe3"

var vtpmServiceWire = [16]byte{
	0xeb, 0xf1, 0x76, 0xc4, 0x23, 0x01, 0xa5, 0x45, 0x96, 0x41, 0xb4, 0xe7, 0xdd, 0xe5, 0xbf, 0xe3,
}

// svsmBindings are those that an SVSM's attestation protocol answers.
func svsmBindings() []string {
	return []string{evidence.BindingSVSM, evidence.BindingSVSMServices}
}
