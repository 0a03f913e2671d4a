package measure_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/evtpm/evtpm/measure"
)

func goldenExample() *measure.Golden {
	key := measure.Digest{3}
	return &measure.Golden{
		Schema: measure.GoldenSchema, Name: "demo", Platform: "sim", HostProfile: "sim",
		LaunchDigests: []measure.Digest{{1}, {2}},
		Policy:        0x30000,
		HostData:      make([]byte, 32),
		IDBlock: &measure.GoldenIDBlock{
			FamilyID: make([]byte, 16), ImageID: make([]byte, 16), GuestSVN: 4, IDKeyDigest: measure.Digest{9}, AuthorKeyDigest: &key,
		},
		PCRs: &measure.GoldenPCRs{Bank: "sha256", Values: []measure.GoldenPCR{
			{PCR: 4, AnyOf: []measure.GoldenPCRValue{{Value: make([]byte, 32), When: "direct boot"}}},
			{PCR: 9, AnyOf: []measure.GoldenPCRValue{{Value: make([]byte, 32)}, {Value: make([]byte, 32)}}},
		}},
		Inputs: []measure.GoldenInput{{Name: "firmware", SHA256: make([]byte, 32)}, {Name: "vcpus", Value: "4"}},
	}
}

func TestGoldenRoundTrip(t *testing.T) {
	want := goldenExample()
	data, err := want.Encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := measure.ParseGolden(data)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

// TestGoldenRefuses changes one thing in a good document each time.
func TestGoldenRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*measure.Golden)
		want   string
	}{
		"platform":     {func(g *measure.Golden) { g.Platform = "tdx" }, "platform"},
		"host profile": {func(g *measure.Golden) { g.HostProfile = "" }, "host_profile"},
		"no digests":   {func(g *measure.Golden) { g.LaunchDigests = nil }, "launch_digests: found none"},
		"zero digest":  {func(g *measure.Golden) { g.LaunchDigests[1] = measure.Digest{} }, "launch_digests[1]: found zeros"},
		"policy":       {func(g *measure.Golden) { g.Policy = 0x10000 }, "bit 17"},
		"host data":    {func(g *measure.Golden) { g.HostData = make([]byte, 31) }, "host_data"},
		"family":       {func(g *measure.Golden) { g.IDBlock.FamilyID = nil }, "family_id"},
		"image":        {func(g *measure.Golden) { g.IDBlock.ImageID = make([]byte, 17) }, "image_id"},
		"ID key":       {func(g *measure.Golden) { g.IDBlock.IDKeyDigest = measure.Digest{} }, "id_key_digest"},
		"author key":   {func(g *measure.Golden) { g.IDBlock.AuthorKeyDigest = new(measure.Digest) }, "author_key_digest"},
		"bank":         {func(g *measure.Golden) { g.PCRs.Bank = "sha1" }, "pcrs.bank"},
		"no PCRs":      {func(g *measure.Golden) { g.PCRs.Values = nil }, "pcrs.values: found none"},
		"PCR 24":       {func(g *measure.Golden) { g.PCRs.Values[1].PCR = 24 }, "pcr: found 24"},
		"PCR -1":       {func(g *measure.Golden) { g.PCRs.Values[0].PCR = -1 }, "pcr: found -1"},
		"PCR twice":    {func(g *measure.Golden) { g.PCRs.Values[1].PCR = 4 }, "ascending"},
		"PCR any":      {func(g *measure.Golden) { g.PCRs.Values[0].AnyOf = nil }, "any_of: found none"},
		"PCR value":    {func(g *measure.Golden) { g.PCRs.Values[0].AnyOf[0].Value = make([]byte, 20) }, "found 20 bytes, expected 32"},
		"input name":   {func(g *measure.Golden) { g.Inputs[0].Name = "" }, "inputs[0].name"},
		"input hash":   {func(g *measure.Golden) { g.Inputs[0].SHA256 = make([]byte, 48) }, "inputs[0].sha256"},
	} {
		g := goldenExample()
		c.change(g)
		if _, err := g.Encode(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: found error %v, expected one with %q", name, err, c.want)
		}
	}
	data, err := goldenExample().Encode()
	if err != nil {
		t.Fatal(err)
	}
	doc := string(data)
	for name, c := range map[string]struct{ in, want string }{
		"unknown field":   {strings.Replace(doc, `"name"`, `"nome"`, 1), `"nome": not known`},
		"repeated field":  {strings.Replace(doc, `"platform": "sim"`, `"platform": "snp", "platform": "sim"`, 1), "found twice"},
		"other schema":    {strings.Replace(doc, "golden/v1", "golden/v2", 1), "schema"},
		"short digest":    {strings.Replace(doc, `"0100`, `"00`, 1), "94 characters"},
		"second document": {doc + doc, "after the end"},
		"too large":       {doc + strings.Repeat(" ", measure.MaxGoldenSize), "at most"},
		"null digests":    {strings.Replace(doc, `"launch_digests"`, `"launch_digests": null, "inputs_"`, 1), "not known"},
		"empty":           {"", "EOF"},
		"not an object":   {"[]", "cannot unmarshal"},
		"null":            {"null", "schema"},
	} {
		if _, err := measure.ParseGolden([]byte(c.in)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: found error %v, expected one with %q", name, err, c.want)
		}
	}
}

func FuzzParseGolden(f *testing.F) {
	data, err := goldenExample().Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Fuzz(func(t *testing.T, in []byte) {
		g, err := measure.ParseGolden(in)
		if err != nil {
			return
		}
		if len(g.LaunchDigests) == 0 {
			t.Fatal("accepted golden values without a launch digest")
		}
		out, err := g.Encode()
		if err != nil {
			t.Fatalf("read but not written: %v", err)
		}
		again, err := measure.ParseGolden(out)
		if err != nil {
			t.Fatalf("written but not read: %v", err)
		}
		if out2, err := again.Encode(); err != nil || !bytes.Equal(out, out2) {
			t.Fatalf("found %s and error %v, expected %s", out2, err, out)
		}
	})
}
