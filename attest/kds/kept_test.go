package kds_test

import (
	"bytes"
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
	if x := kds.Kept(t.Context(), dir, report); x != nil {
		t.Errorf("an empty cache has %v", x.Subject)
	}
	leaf := m.LeafCertificate()
	if err := (&kds.Cache{Dir: dir}).Put(url, leaf.Raw); err != nil {
		t.Fatal(err)
	}
	if x := kds.Kept(t.Context(), dir, report); x == nil || !x.Equal(leaf) {
		t.Errorf("found %v, expected what was kept", x)
	}
	masked := bytes.Clone(report)
	clear(masked[0x1A0 : 0x1A0+64]) // CHIP_ID
	another := bytes.Clone(report)
	another[0x1A0] ^= 1
	for name, report := range map[string][]byte{"no report": nil, "half a report": report[:600], "a masked chip": masked, "another chip": another} {
		if x := kds.Kept(t.Context(), dir, report); x != nil {
			t.Errorf("%s: found %v", name, x.Subject)
		}
	}
}
