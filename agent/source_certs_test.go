package agent

import (
	"bytes"
	"context"
	"testing"

	"github.com/evtpm/evtpm/attest/evidence"
)

// bare is a source whose reports come without certificates, as those in the NV
// index do.
type bare struct{}

func (bare) Bindings() []string { return []string{evidence.BindingNV} }
func (bare) Attest(context.Context, string, []byte) (*Attestation, error) {
	return &Attestation{Report: []byte("report")}, nil
}

// host is a source that the host's certificates can be asked of.
type host struct{ bindings []string }

func (h host) Bindings() []string { return h.bindings }
func (host) Attest(context.Context, string, []byte) (*Attestation, error) {
	panic("another binding was asked for")
}
func (host) certificates(context.Context) ([]byte, error) { return []byte("table"), nil }

func TestCertificatesAreAskedOfTheHost(t *testing.T) {
	a, _, err := attest(t.Context(), []Source{host{[]string{evidence.BindingSVSM}}, bare{}}, evidence.BindingNV, nil)
	if err != nil || !bytes.Equal(a.Certificates, []byte("table")) {
		t.Fatalf("found %+v, %v, expected the host's table", a, err)
	}
	// A source that is not there is not asked.
	a, _, err = attest(t.Context(), []Source{host{}, bare{}}, evidence.BindingNV, nil)
	if err != nil || a.Certificates != nil {
		t.Fatalf("found %+v, %v, expected no certificates", a, err)
	}
}
