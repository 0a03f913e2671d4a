package machine

import (
	"bytes"
	"crypto/x509"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/evtpm/evtpm/attest"
	"github.com/evtpm/evtpm/attest/evidence"
	"github.com/evtpm/evtpm/launch"
)

// On hardware, reports are held against the chip that /dev/sev names, which a
// launch must know before the guest runs; a spec can do without.
func TestHardwarePinsTheChip(t *testing.T) {
	device := filepath.Join(t.TempDir(), "sev")
	if err := os.WriteFile(device, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	id := bytes.Repeat([]byte{0xA5}, 64)
	answer := func(*os.File) ([]byte, error) { return id, nil }
	silent := func(*os.File) ([]byte, error) { return nil, errors.New("GET_ID: no") }
	for name, c := range map[string]struct {
		h    hardware
		want []byte
		says string
		err  string
	}{
		"pinned":    {hardware{pin: true, device: device, ask: answer}, id, "this host's chip a5a5a5a5a5a5a5a5...", ""},
		"any":       {hardware{device: device, ask: silent}, nil, "", ""},
		"no answer": {hardware{pin: true, device: device, ask: silent}, nil, "", "this host's chip, which reports are held against: GET_ID: no; attestation.chip: any does without"},
		"no device": {hardware{pin: true, device: device + "x", ask: answer}, nil, "", "no such file"},
	} {
		t.Run(name, func(t *testing.T) {
			message, err := c.h.measure(t.Context())
			if (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) || !strings.Contains(message, c.says) || (message == "") != (c.says == "") {
				t.Fatalf("found %q, %v", message, err)
			}
			var classed *classedError
			if err != nil && (!errors.As(err, &classed) || classed.class != attest.ClassHostNotCapable) {
				t.Errorf("%v has another class", err)
			}
			var o attest.Options
			if err := c.h.trust(&o); err != nil || !bytes.Equal(o.ChipID, c.want) {
				t.Errorf("chip %x, %v, expected %x", o.ChipID, err, c.want)
			}
		})
	}
}

// TestJudgeBy: what the spec says of certificates reaches the verification.
func TestJudgeBy(t *testing.T) {
	root := attest.AMDCertificates()[0]
	session := &attest.Session{Evidence: new(evidence.Evidence)}
	for name, c := range map[string]struct {
		spec    launch.Attestation
		bundle  *attest.Bundle
		fetches bool
		given   []*x509.Certificate
	}{
		"nothing": {},
		"fetch":   {spec: launch.Attestation{Fetch: true}, fetches: true},
		"bundle":  {bundle: &attest.Bundle{Certificates: []*x509.Certificate{root}}, given: []*x509.Certificate{root}},
	} {
		t.Run(name, func(t *testing.T) {
			s := &supervisor{job: &job{StateDir: t.TempDir()}, platform: new(hardware), bundle: c.bundle, plan: &launch.Plan{Spec: &launch.Spec{Attestation: c.spec}}}
			o, err := s.judgeBy(t.Context(), session)
			if err != nil || (o.Getter != nil) != c.fetches || len(o.Certificates) != len(c.given) || o.Registry == nil || o.Live != session {
				t.Errorf("found %+v, %v", o, err)
			}
		})
	}
}
