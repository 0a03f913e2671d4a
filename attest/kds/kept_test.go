package kds_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/evtpm/evtpm/attest"
	"github.com/evtpm/evtpm/attest/attesttest"
	"github.com/evtpm/evtpm/attest/kds"
)

func TestKept(t *testing.T) {
	m := attesttest.NewMachine(attesttest.Genoa)
	report := m.SignedReport([64]byte{1})
	r, err := attest.ParseReport(report)
	if err != nil {
		t.Fatal(err)
	}
	url, err := attest.ReportURL(r)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if _, err := kds.Kept(t.Context(), dir, report); !errors.Is(err, kds.ErrUnavailable) {
		t.Errorf("an empty cache: %v", err)
	}
	leaf := m.LeafCertificate()
	if err := (&kds.Cache{Dir: dir}).Put(url, leaf.Raw); err != nil {
		t.Fatal(err)
	}
	if x, err := kds.Kept(t.Context(), dir, report); err != nil || !x.Equal(leaf) {
		t.Errorf("found %v, %v, expected what was kept", x, err)
	}
	masked := bytes.Clone(report)
	clear(masked[0x1A0 : 0x1A0+64]) // CHIP_ID
	another := bytes.Clone(report)
	another[0x1A0] ^= 1
	for says, report := range map[string][]byte{"wrong length": report[:600], "CHIP_ID is masked": masked, "not in the cache": another} {
		if _, err := kds.Kept(t.Context(), dir, report); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("found %v, expected %q", err, says)
		}
	}
}
