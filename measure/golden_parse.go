package measure

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/evtpm/evtpm/strictjson"
)

// MaxGoldenSize bounds a golden document: room for every vCPU count of every CPU
// model, many times over.
const MaxGoldenSize = 4 << 20

// ParseGolden reads golden values from JSON. A field that is unknown or repeated
// is an error, and so are values with which every launch, or none, would agree:
// see [Golden.Validate].
func ParseGolden(data []byte) (*Golden, error) {
	g := new(Golden)
	if err := strictjson.Unmarshal(data, g, MaxGoldenSize, "golden values"); err != nil {
		return nil, err
	}
	if err := g.Validate(); err != nil {
		return nil, err
	}
	return g, nil
}

// Encode returns the document that [ParseGolden] reads: indented JSON with a
// final newline. Schema is filled in. Values that would be refused when read are
// refused here.
func (g *Golden) Encode() ([]byte, error) {
	out := *g
	out.Schema = GoldenSchema
	if err := out.Validate(); err != nil {
		return nil, err
	}
	data, err := json.MarshalIndent(&out, "", "  ")
	if err != nil {
		return nil, err
	}
	return append(data, '\n'), nil
}

// policyMustBeOne is bit 17 of a guest policy, which is always set (SNP ABI
// 56860, guest policy).
const policyMustBeOne = 1 << 17

// Validate checks that the values can be compared with a report's, and that they
// say something: at least one launch digest, none of them zero.
func (g *Golden) Validate() error {
	var errs []error
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf("golden values: "+format, args...)) }
	if g.Schema != GoldenSchema {
		fail("schema: found %q, expected %q", clip(g.Schema), GoldenSchema)
	}
	if g.Platform != "snp" && g.Platform != "sim" {
		fail("platform: found %q, expected \"snp\" or \"sim\"", clip(g.Platform))
	}
	if g.HostProfile == "" {
		fail("host_profile: found nothing, expected the name of the host's rules")
	}
	if len(g.LaunchDigests) == 0 {
		fail("launch_digests: found none, expected at least one")
	}
	for i, d := range g.LaunchDigests {
		if d.IsZero() {
			fail("launch_digests[%d]: found zeros, which no launch has", i)
		}
	}
	if g.Policy&policyMustBeOne == 0 {
		fail("policy: found 0x%x, expected bit 17 to be set, as every guest policy has it", g.Policy)
	}
	if n := len(g.HostData); n != 0 && n != 32 {
		fail("host_data: found %d bytes, expected 32", n)
	}
	if b := g.IDBlock; b != nil {
		if len(b.FamilyID) != 16 {
			fail("id_block.family_id: found %d bytes, expected 16", len(b.FamilyID))
		}
		if len(b.ImageID) != 16 {
			fail("id_block.image_id: found %d bytes, expected 16", len(b.ImageID))
		}
		if b.IDKeyDigest.IsZero() {
			fail("id_block.id_key_digest: found zeros, which is no key's digest")
		}
		if b.AuthorKeyDigest != nil && b.AuthorKeyDigest.IsZero() {
			fail("id_block.author_key_digest: found zeros, which is no key's digest")
		}
	}
	if g.PCRs != nil {
		errs = append(errs, g.PCRs.validate()...)
	}
	for i, in := range g.Inputs {
		if in.Name == "" {
			fail("inputs[%d].name: found nothing", i)
		}
		if n := len(in.SHA256); n != 0 && n != 32 {
			fail("inputs[%d].sha256: found %d bytes, expected 32", i, n)
		}
	}
	return errors.Join(errs...)
}

func (p *GoldenPCRs) validate() []error {
	var errs []error
	fail := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("golden values: pcrs."+format, args...))
	}
	size, ok := map[string]int{"sha256": 32, "sha384": 48}[p.Bank]
	if !ok {
		fail("bank: found %q, expected sha256 or sha384", clip(p.Bank))
	}
	if len(p.Values) == 0 {
		fail("values: found none, expected at least one PCR")
	}
	last := -1
	for i, v := range p.Values {
		if v.PCR < 0 || v.PCR > 23 {
			fail("values[%d].pcr: found %d, expected 0 to 23", i, v.PCR)
		}
		if v.PCR <= last {
			fail("values[%d].pcr: found %d after %d, expected ascending order", i, v.PCR, last)
		}
		last = v.PCR
		if len(v.AnyOf) == 0 {
			fail("values[%d].any_of: found none, expected at least one value", i)
		}
		for j, a := range v.AnyOf {
			if ok && len(a.Value) != size {
				fail("values[%d].any_of[%d].value: found %d bytes, expected %d", i, j, len(a.Value), size)
			}
		}
	}
	return errs
}
