package attest_test

import (
	"bytes"
	"testing"

	"github.com/evtpm/evtpm/attest"
	"github.com/evtpm/evtpm/attest/attesttest"
	"github.com/evtpm/evtpm/measure"
)

// hexList makes a list of byte strings.
func hexList(b ...[]byte) []measure.HexBytes {
	var out []measure.HexBytes
	for _, x := range b {
		out = append(out, bytes.Clone(x))
	}
	return out
}

// judgeGolden verifies a machine against changed golden values.
func judgeGolden(t *testing.T, m *attesttest.Machine, change func(*measure.Golden)) *attest.Verdict {
	t.Helper()
	g := m.Golden()
	change(g)
	v, err := attest.Verify(t.Context(), m.Evidence(), g, options(m))
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestS21_GuestPolicyOfTheGoldenValues(t *testing.T) {
	v := judgeGolden(t, genoa(), func(g *measure.Golden) { g.Policy = 0x30100 })
	want(t, v, is(attest.CheckGuestGolden, attest.ReasonPolicyGolden))
}

func TestS55_HostData(t *testing.T) {
	differs := is(attest.CheckHostData, attest.ReasonHostData)
	data := bytes.Repeat([]byte{7}, 32)
	m := withReport(func(r attesttest.Report) { r.Put(attesttest.OffHostData, data) })
	want(t, judge(t, m), differs) // nothing expected means zeros
	want(t, judgeGolden(t, m, func(g *measure.Golden) { g.HostData = data }))
	want(t, judgeGolden(t, genoa(), func(g *measure.Golden) { g.HostData = data }), differs)
	// A bare report is compared with the policy.
	raw := m.SignedReport([64]byte{1})
	for hostData, ok := range map[string]bool{"zero": false, "any": true, measure.HexBytes(data).String(): true, measure.HexBytes(make([]byte, 32)).String(): false} {
		v := bare(t, m, raw, attest.Expect{}, func(o *attest.Options) {
			o.Policy = attest.DefaultPolicy()
			o.Policy.HostData = hostData
		})
		if ok {
			want(t, v)
		} else {
			want(t, v, differs)
		}
	}
}

func TestS56_Measurement(t *testing.T) {
	differs := is(attest.CheckMeasurement, attest.ReasonMeasurement)
	for _, i := range []int{0, 47} {
		m := withReport(func(r attesttest.Report) { r[attesttest.OffMeasurement+i] ^= 1 })
		v := judge(t, m)
		want(t, v, differs)
		if v.Class() != attest.ClassMeasurement {
			t.Errorf("class is %d", v.Class())
		}
		raw := m.SignedReport([64]byte{1})
		want(t, bare(t, m, raw, attest.Expect{Measurements: []measure.Digest{attesttest.LaunchDigest}}, nil), differs)
	}
	// One of several.
	m := genoa()
	want(t, judgeGolden(t, m, func(g *measure.Golden) { g.LaunchDigests = append([]measure.Digest{{1}}, g.LaunchDigests...) }))
	raw := m.SignedReport([64]byte{1})
	want(t, bare(t, m, raw, attest.Expect{Measurements: []measure.Digest{attesttest.LaunchDigest}}, nil))
	// An empty list, or one with zeros, is misuse.
	for _, digests := range [][]measure.Digest{nil, {{}}} {
		g := m.Golden()
		g.LaunchDigests = digests
		if _, err := attest.Verify(t.Context(), m.Evidence(), g, options(m)); err == nil {
			t.Errorf("no error for golden values with %d launch digests", len(digests))
		}
	}
	for _, digests := range [][]measure.Digest{{}, {{}}} {
		if _, err := attest.VerifyReport(t.Context(), raw, nil, attest.Expect{Measurements: digests}, options(m)); err == nil {
			t.Errorf("no error for %d expected measurements of zeros", len(digests))
		}
	}
}

// idBlock is a machine launched with an ID block, and its golden values.
func idBlock(author bool) (*attesttest.Machine, func(*measure.Golden)) {
	family, image := bytes.Repeat([]byte{0xFA}, 16), bytes.Repeat([]byte{0x1A}, 16)
	key, authorKey := measure.Digest{1}, measure.Digest{2}
	m := withReport(func(r attesttest.Report) {
		r.PutU32(attesttest.OffGuestSVN, 7)
		r.Put(attesttest.OffFamilyID, family)
		r.Put(attesttest.OffImageID, image)
		r.Put(attesttest.OffIDKeyDigest, key[:])
		if author {
			r.PutU32(attesttest.OffSignerInfo, 1)
			r.Put(attesttest.OffAuthorKeyDigest, authorKey[:])
		}
	})
	return m, func(g *measure.Golden) {
		g.IDBlock = &measure.GoldenIDBlock{FamilyID: family, ImageID: image, GuestSVN: 7, IDKeyDigest: key}
		if author {
			digest := authorKey
			g.IDBlock.AuthorKeyDigest = &digest
		}
	}
}

func TestS58_IDBlockKeys(t *testing.T) {
	for _, author := range []bool{false, true} {
		m, golden := idBlock(author)
		want(t, judgeGolden(t, m, golden))
	}
	m, golden := idBlock(true)
	idKey, authorKey := is(attest.CheckIDKey, attest.ReasonIDKey), is(attest.CheckAuthorKey, attest.ReasonAuthorKey)
	inconsistent := is(attest.CheckAuthorKey, attest.ReasonAuthorKeyFields)
	want(t, judgeGolden(t, m, func(g *measure.Golden) { golden(g); g.IDBlock.IDKeyDigest[47] = 1 }), idKey)
	want(t, judgeGolden(t, m, func(g *measure.Golden) { golden(g); g.IDBlock.AuthorKeyDigest[47] = 1 }), authorKey)
	want(t, judgeGolden(t, m, func(g *measure.Golden) { golden(g); g.IDBlock.AuthorKeyDigest = nil }), authorKey)
	// No ID block expected: every field must be zero.
	want(t, judge(t, m), idKey, authorKey, is(attest.CheckFamilyID, attest.ReasonFamilyID),
		is(attest.CheckImageID, attest.ReasonImageID), is(attest.CheckGuestSVN, attest.ReasonGuestSVN))
	// AUTHOR_KEY_EN and the digest must agree, whatever is expected.
	enabled := withReport(func(r attesttest.Report) { r.PutU32(attesttest.OffSignerInfo, 1) })
	want(t, judge(t, enabled), inconsistent)
	digest := withReport(func(r attesttest.Report) { r[attesttest.OffAuthorKeyDigest] = 1 })
	want(t, judge(t, digest), authorKey)
	raw := digest.SignedReport([64]byte{1})
	want(t, bare(t, digest, raw, attest.Expect{}, nil), inconsistent)

	// Lists of keys in a policy, for bare reports.
	raw = m.SignedReport([64]byte{1})
	listed := func(id, author []byte) *attest.Verdict {
		return bare(t, m, raw, attest.Expect{}, func(o *attest.Options) {
			o.Policy = attest.DefaultPolicy()
			o.Policy.IDBlock.IDKeys, o.Policy.IDBlock.AuthorKeys = hexList(make([]byte, 48), id), hexList(author)
		})
	}
	key, author, other := measure.Digest{1}, measure.Digest{2}, measure.Digest{3}
	want(t, listed(key[:], author[:]))
	want(t, listed(other[:], author[:]), idKey)
	want(t, listed(key[:], other[:]), authorKey)
}

func TestS59_FamilyImageSVN(t *testing.T) {
	m, golden := idBlock(false)
	want(t, judgeGolden(t, m, func(g *measure.Golden) { golden(g); g.IDBlock.FamilyID = make([]byte, 16) }), is(attest.CheckFamilyID, attest.ReasonFamilyID))
	want(t, judgeGolden(t, m, func(g *measure.Golden) { golden(g); g.IDBlock.ImageID = make([]byte, 16) }), is(attest.CheckImageID, attest.ReasonImageID))
	for _, svn := range []uint32{6, 8} {
		want(t, judgeGolden(t, m, func(g *measure.Golden) { golden(g); g.IDBlock.GuestSVN = svn }), is(attest.CheckGuestSVN, attest.ReasonGuestSVN))
	}
	raw := m.SignedReport([64]byte{1})
	rules := func(change func(*attest.IDBlockRules)) *attest.Verdict {
		return bare(t, m, raw, attest.Expect{}, func(o *attest.Options) {
			o.Policy = attest.DefaultPolicy()
			change(&o.Policy.IDBlock)
		})
	}
	family, image := bytes.Repeat([]byte{0xFA}, 16), bytes.Repeat([]byte{0x1A}, 16)
	want(t, rules(func(r *attest.IDBlockRules) { r.FamilyID, r.ImageID, r.MinGuestSVN = family, image, 7 }))
	want(t, rules(func(r *attest.IDBlockRules) { r.FamilyID = image }), is(attest.CheckFamilyID, attest.ReasonFamilyID))
	want(t, rules(func(r *attest.IDBlockRules) { r.ImageID = family }), is(attest.CheckImageID, attest.ReasonImageID))
	want(t, rules(func(r *attest.IDBlockRules) { r.MinGuestSVN = 8 }), is(attest.CheckGuestSVN, attest.ReasonGuestSVN))
}
