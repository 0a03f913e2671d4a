package attest_test

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"

	"github.com/evtpm/evtpm/attest"
	"github.com/evtpm/evtpm/attest/attesttest"
)

// Every bound of a services manifest, and what is just above.
func TestServicesManifestBounds(t *testing.T) {
	le := binary.LittleEndian
	service := func(i, n int) attesttest.TableEntry {
		return attesttest.TableEntry{GUID: [16]byte{byte(i), 1}, Data: make([]byte, n)}
	}
	many := func(n int) []byte {
		var list []attesttest.TableEntry
		for i := range n {
			list = append(list, service(i, 3))
		}
		return attesttest.Services(list...)
	}
	two := attesttest.Services(service(0, 8), service(1, 8))
	const data = 24 + 2*24
	edit := func(f func([]byte)) []byte {
		b := bytes.Clone(two)
		f(b)
		return b
	}
	for name, c := range map[string]struct {
		manifest []byte
		services int
		what     string // of the error; empty if it is good
	}{
		"two":            {two, 2, ""},
		"none":           {many(0), 0, ""},
		"a byte short":   {many(0)[:23], 0, "found 23 bytes, expected 24 to 65536"},
		"three bytes":    {many(0)[:3], 0, "found 3 bytes, expected 24 to 65536"},
		"most services":  {many(64), 64, ""},
		"one more":       {many(65), 0, "65 services, expected at most 64"},
		"most bytes":     {attesttest.Services(service(0, 64<<10-48)), 1, ""},
		"a byte more":    {attesttest.Services(service(0, 64<<10-47)), 0, "found 65537 bytes"},
		"entries behind": {edit(func(b []byte) { le.PutUint32(b[20:], 4) }), 0, "4 services do not fit 88 bytes"},
		"all in the first": {edit(func(b []byte) {
			le.PutUint32(b[24+20:], 16)
		}), 0, "no gap and no overlap"},
		"order of data": {edit(func(b []byte) {
			le.PutUint32(b[24+16:], data+8)
			le.PutUint32(b[48+16:], data)
			le.PutUint32(b[48+20:], 16)
		}), 0, "no gap and no overlap"},
		"beyond the end": {edit(func(b []byte) { le.PutUint32(b[48+20:], 9) }), 0, "ends at 89 of 88 bytes"},
		"bytes behind":   {edit(func(b []byte) { le.PutUint32(b[48+20:], 7) }), 0, "1 bytes behind the last service"},
		"empty service":  {attesttest.Services(service(0, 0), service(1, 1)), 2, ""},
	} {
		list, err := attest.ParseServices(c.manifest)
		if (err == nil) != (c.what == "") || err != nil && !strings.Contains(err.Error(), c.what) || len(list) != c.services {
			t.Errorf("%s: %d services, %v", name, len(list), err)
		}
	}
}

// What is wrong with the vTPM's own manifest is said.
func TestManifestInWords(t *testing.T) {
	ek, ak := keysOf(genoa())
	for what, c := range map[string]struct {
		version  uint32
		manifest []byte
	}{
		"found 65537 bytes, expected at most 65536": {0, make([]byte, 64<<10+1)},
		"says version 0, the evidence 1":            {1, manifest1(0, 2, ek, ak)},
		"0 keys, expected 1 to 16":                  {1, manifest1(1, 0)},
		"17 keys, expected 1 to 16":                 {1, manifest1(1, 17, bytesTimes(ek, 17)...)},
		"key 1: ":                                   {1, manifest1(1, 2, ek, ak[:len(ak)-1])},
	} {
		v := judgeWith(t, versioned(c.version, func(*attesttest.Machine) []byte { return c.manifest }), acceptVersion1)
		if c := check(t, v, attest.CheckManifest); c.Status != attest.Failed || !strings.Contains(c.Found, what) {
			t.Errorf("%+v, expected %q", c, what)
		}
	}
	v := judge(t, versioned(0, func(*attesttest.Machine) []byte { return make([]byte, 64<<10) }))
	if c := check(t, v, attest.CheckManifest); c.Status != attest.Failed || strings.Contains(c.Found, "expected at most 65536") {
		t.Errorf("%+v", c)
	}
	// Sixteen keys are accepted.
	most := append(bytesTimes(ek, 15), ak)
	want(t, judgeWith(t, versioned(1, func(*attesttest.Machine) []byte { return manifest1(1, 16, most...) }), acceptVersion1))
}

// Evidence of Azure's kind whose report cannot be read.
func TestAzureWithoutReport(t *testing.T) {
	m, ev := azure(runtimeData(jwk("HCLAkPub", `"sign"`, akModulus())))
	good := *ev
	ev.Report = ev.Report[:100]
	golden := azureGolden(t, good.Report, "sim")
	o := options(m)
	o.Policy = azurePolicy()
	v, err := attest.Verify(t.Context(), ev, golden, o)
	if err != nil {
		t.Fatal(err)
	}
	want(t, v, is(attest.CheckReportLength, attest.ReasonReportLength))
	// Without a key that can be used, what depends on it is not made.
	good.Manifest = []byte("{}")
	v, err = attest.Verify(t.Context(), &good, golden, o)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []attest.CheckName{attest.CheckAK, attest.CheckAKResident} {
		if c := check(t, v, name); c.Reason != string(attest.ReasonNotMade) || !strings.Contains(c.Note, "manifest failed") {
			t.Errorf("%+v", c)
		}
	}
	good.Manifest, good.EKPublic = ev.Manifest, []byte{1}
	if v, err = attest.Verify(t.Context(), &good, golden, o); err != nil {
		t.Fatal(err)
	}
	for _, name := range []attest.CheckName{attest.CheckAK, attest.CheckAKResident} {
		if c := check(t, v, name); c.Reason != string(attest.ReasonNotMade) || !strings.Contains(c.Note, "manifest failed") {
			t.Errorf("%+v", c)
		}
	}
	// The longest nonce, and the shortest.
	for _, n := range []int{8, 64} {
		_, ev := azure(runtimeData(jwk("HCLAkPub", `"sign"`, akModulus())))
		ev.Nonce = bytes.Repeat([]byte{1}, n)
		v := judgeAzure(t, m, ev)
		if c := check(t, v, attest.CheckNonce); c.Status != attest.Passed {
			t.Errorf("%+v", c)
		}
	}
}
