package attest_test

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/evtpm/evtpm/attest"
	"github.com/evtpm/evtpm/measure"
)

// What golden PCRs were compared with is shown PCR by PCR.
func TestGoldenPCRsInWords(t *testing.T) {
	m := genoa()
	verdict := func(p *measure.GoldenPCRs) *attest.Verdict {
		g := m.Golden()
		g.PCRs = p
		v, err := attest.Verify(t.Context(), m.Evidence(), g, options(m))
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	value := func(b byte) measure.GoldenPCRValue {
		return measure.GoldenPCRValue{Value: bytes.Repeat([]byte{b}, 32)}
	}
	hex := func(b byte) string { return strings.Repeat(fmt.Sprintf("%02x", b), 32) }
	is := func(pcr int) measure.GoldenPCRValue { return measure.GoldenPCRValue{Value: m.TPM.PCRs[pcr]} }

	v := verdict(&measure.GoldenPCRs{Bank: "sha256", Values: []measure.GoldenPCR{
		{PCR: 0, AnyOf: []measure.GoldenPCRValue{value(1), value(2)}}, {PCR: 4, AnyOf: []measure.GoldenPCRValue{is(4)}}, {PCR: 9, AnyOf: []measure.GoldenPCRValue{value(3)}},
	}})
	c := check(t, v, attest.CheckPCRGolden)
	if c.Reason != string(attest.ReasonPCRGolden) || c.Expected != "0: "+hex(1)+" or "+hex(2)+"\n9: "+hex(3) || c.Found != fmt.Sprintf("0: %x\n9: %x", m.TPM.PCRs[0], m.TPM.PCRs[9]) {
		t.Errorf("%+v", c)
	}
	if c := check(t, v, attest.CheckPCRUnjudged); c.Status != attest.NotApplicable {
		t.Errorf("%+v", c)
	}
	v = verdict(&measure.GoldenPCRs{Bank: "sha256", Values: []measure.GoldenPCR{{PCR: 4, AnyOf: []measure.GoldenPCRValue{value(7), is(4)}}, {PCR: 9, AnyOf: []measure.GoldenPCRValue{is(9)}}}})
	if c := check(t, v, attest.CheckPCRGolden); c.Status != attest.Passed || c.Found != "sha256: 4, 9" {
		t.Errorf("%+v", c)
	}
	if c := check(t, v, attest.CheckPCRUnjudged); c.Note != "shown, not judged: no golden values" || strings.Contains(c.Found, "\n4: ") || !strings.Contains(c.Found, "\n5: ") {
		t.Errorf("%+v", c)
	}
	// Another bank.
	v = verdict(&measure.GoldenPCRs{Bank: "sha384", Values: []measure.GoldenPCR{{PCR: 4, AnyOf: []measure.GoldenPCRValue{{Value: make([]byte, 48)}}}}})
	if c := check(t, v, attest.CheckPCRGolden); c.Reason != string(attest.ReasonPCRMissing) || c.Expected != "bank sha384" || c.Found != "sha256" {
		t.Errorf("%+v", c)
	}
	if c := check(t, v, attest.CheckPCRUnjudged); c.Status != attest.NotApplicable {
		t.Errorf("%+v", c)
	}
	// All of them.
	var all []measure.GoldenPCR
	for i := range 24 {
		all = append(all, measure.GoldenPCR{PCR: i, AnyOf: []measure.GoldenPCRValue{is(i)}})
	}
	v = verdict(&measure.GoldenPCRs{Bank: "sha256", Values: all})
	if c := check(t, v, attest.CheckPCRUnjudged); c.Note != "every quoted PCR has golden values" || c.Found != "" {
		t.Errorf("%+v", c)
	}
}

// memory is a registry that remembers what it is given, related or not.
type memory []attest.Sighting

func (r memory) Observe(_ context.Context, s attest.Sighting, judge func([]attest.Sighting) bool) error {
	for i := range r {
		if r[i].EK == nil {
			r[i].EK = s.EK
		}
		if r[i].ReportID == nil {
			r[i].ReportID = s.ReportID
		}
	}
	judge(r)
	return nil
}

// Only what is of the same EK or boot is held against evidence.
func TestSightingsOfOthers(t *testing.T) {
	other := []byte{1}
	reused := is(attest.CheckLifecycle, attest.ReasonEKReused)
	changed := is(attest.CheckLifecycle, attest.ReasonReportID)
	const boot = "6a4b6f0c-8a52-4d6f-9c4e-2f6a3c1d0e5b" // the machine's
	for name, c := range map[string]struct {
		seen   attest.Sighting // nil fields are the machine's own
		bootID string
		want   []string
	}{
		"nothing of it":               {attest.Sighting{EK: other, ReportID: other, BootID: "x", Clock: 1 << 40, ResetCount: 99}, boot, nil},
		"another EK in this boot":     {attest.Sighting{EK: other, ReportID: other, BootID: boot}, boot, []string{changed}},
		"no boot ids":                 {attest.Sighting{EK: other, ReportID: other}, "", nil},
		"this launch, in this boot":   {attest.Sighting{BootID: boot}, boot, nil},
		"this launch, other EK":       {attest.Sighting{EK: other, BootID: boot}, boot, nil},
		"another launch, later clock": {attest.Sighting{ReportID: other, Clock: 1 << 40}, boot, []string{reused}},
	} {
		t.Run(name, func(t *testing.T) {
			m := genoa()
			m.BootID = c.bootID
			m.TPM.Clock.ResetCount = 1
			if c.seen.ReportID == nil {
				c.seen.ResetCount = 1
			}
			o := options(m)
			o.Registry = memory{c.seen}
			want(t, verify(t, m, o), c.want...)
		})
	}
}
