package attest_test

import (
	"bytes"
	"crypto/elliptic"
	"fmt"
	"math/big"
	"strings"
	"testing"

	"github.com/evtpm/evtpm/attest"
	"github.com/evtpm/evtpm/attest/attesttest"
)

var signatureInvalid = is(attest.CheckReportSignature, attest.ReasonSignatureInvalid)

func TestS01_BitFlippedInSignedPart(t *testing.T) {
	m := genoa()
	o := options(m)
	o.Cache = new(attest.ChainCache)
	o.Certificates = append(o.Certificates, m.LeafCertificate(), m.Signer.ASK, m.Signer.ARK)
	good := m.SignedReport([64]byte{1})
	for byteAt := range attesttest.OffSignature {
		if testing.Short() && byteAt%13 != 0 && byteAt != attesttest.OffSignature-1 {
			continue
		}
		bad := bytes.Clone(good)
		bad[byteAt] ^= 1 << (byteAt % 8)
		v, err := attest.VerifyReport(t.Context(), bad, nil, attest.Expect{}, o)
		if err != nil {
			t.Fatal(err)
		}
		if v.Trusted() {
			t.Errorf("accepted with byte %#x changed", byteAt)
		}
	}
	want(t, judge(t, withSigned(func(r attesttest.Report) { r[attesttest.OffReportID] ^= 1 })), signatureInvalid)
}

func TestS02_BitFlippedInSignature(t *testing.T) {
	for _, off := range []int{attesttest.OffSignature, attesttest.OffSignatureS} {
		want(t, judge(t, withSigned(func(r attesttest.Report) { r[off+5] ^= 4 })), signatureInvalid)
	}
}

func TestS03_SignatureOutOfRange(t *testing.T) {
	n := elliptic.P384().Params().N
	one := big.NewInt(1)
	for name, rs := range map[string][2]*big.Int{
		"R zero":    {new(big.Int), one},
		"S zero":    {one, new(big.Int)},
		"both zero": {new(big.Int), new(big.Int)},
		"R is n":    {n, one},
		"S is n":    {one, n},
		"S above n": {one, new(big.Int).Add(n, one)},
	} {
		t.Run(name, func(t *testing.T) {
			m := withSigned(func(r attesttest.Report) { r.PutSignature(rs[0], rs[1]) })
			want(t, judge(t, m), is(attest.CheckReportSignature, attest.ReasonSignatureRange))
		})
	}
}

func TestS04_SignatureUpperBytesSet(t *testing.T) {
	for _, off := range []int{0x2D0, 0x2E7, 0x318, 0x32F} {
		want(t, judge(t, withSigned(func(r attesttest.Report) { r[off] = 1 })), is(attest.CheckReportReserved, attest.ReasonReservedNotZero))
	}
}

func TestS05_SignatureBigEndian(t *testing.T) {
	m := withSigned(func(r attesttest.Report) {
		for _, off := range []int{attesttest.OffSignature, attesttest.OffSignatureS} {
			for i := range 24 {
				r[off+i], r[off+47-i] = r[off+47-i], r[off+i]
			}
		}
	})
	v := judge(t, m)
	if got := failures(v); len(got) != 1 || got[0] != signatureInvalid && got[0] != is(attest.CheckReportSignature, attest.ReasonSignatureRange) {
		t.Errorf("failures %q", got)
	}
}

func TestS06_SignatureAlgorithm(t *testing.T) {
	for _, algo := range []uint32{0, 2, 0xFFFFFFFF} {
		m := withReport(func(r attesttest.Report) { r.PutU32(attesttest.OffSignatureAlgo, algo) })
		want(t, judge(t, m), is(attest.CheckReportAlgorithm, attest.ReasonSignatureAlgorithm))
	}
}

func TestS07_WrongLength(t *testing.T) {
	m := genoa()
	good := m.SignedReport([64]byte{1})
	for _, n := range []int{0, 1, 0x188, 1183, 1185, 4096} {
		v := bare(t, m, append(bytes.Clone(good), make([]byte, 4096)...)[:n], attest.Expect{}, nil)
		want(t, v, is(attest.CheckReportLength, attest.ReasonReportLength))
		if v.Class() != attest.ClassSignature {
			t.Errorf("%d bytes: class %d", n, v.Class())
		}
	}
}

func TestS08_VersionZeroAndOne(t *testing.T) {
	for _, version := range []uint32{0, 1} {
		m := withReport(func(r attesttest.Report) { r.PutU32(attesttest.OffVersion, version) })
		v := judge(t, m)
		wantAny(t, v, is(attest.CheckReportVersion, attest.ReasonReportVersion))
		if c := check(t, v, attest.CheckReportLength); c.Status != attest.Passed {
			t.Errorf("%+v", c)
		}
		for _, c := range v.Failures() {
			if c.Name == string(attest.CheckReportVersion) && !bytes.Contains([]byte(c.Found), []byte(fmt.Sprintf("version %d", version))) {
				t.Errorf("version is not named: %q", c.Found)
			}
		}
	}
}

// version2 makes a report one of version 2: it does not name its processor.
func version2(r attesttest.Report) {
	r.PutU32(attesttest.OffVersion, 2)
	r.Put(attesttest.OffCPUID, []byte{0, 0, 0})
}

func TestS09_Version2OnTurin(t *testing.T) {
	m := attesttest.NewMachine(attesttest.Turin)
	m.EditReport = version2
	o := options(m)
	o.Policy = attest.PermissivePolicy()
	want(t, verify(t, m, o), is(attest.CheckProduct, attest.ReasonProductAmbiguous))
	o.Policy.Products = []string{"Turin"}
	want(t, verify(t, m, o))

	// Version 2 is below the default policy's lowest, and has no floors.
	m = withReport(version2)
	v := judge(t, m)
	for _, f := range []string{
		is(attest.CheckPolicyVersion, attest.ReasonVersionBelowPolicy),
		is(attest.CheckFloorReported, attest.ReasonNoFloor),
		is(attest.CheckFloorCurrent, attest.ReasonNoFloor),
	} {
		wantAny(t, v, f)
	}
	o = options(m)
	o.Policy = attest.PermissivePolicy()
	want(t, verify(t, m, o))
}

func TestS10_Version4(t *testing.T) {
	m := withReport(func(r attesttest.Report) { r.PutU32(attesttest.OffVersion, 4) })
	want(t, judge(t, m))
	// Version 4 has version 3's layout: no mitigation vectors.
	m = withReport(func(r attesttest.Report) {
		r.PutU32(attesttest.OffVersion, 4)
		r.PutU64(attesttest.OffLaunchMit, 1)
	})
	want(t, judge(t, m), is(attest.CheckReportReserved, attest.ReasonReservedNotZero))
	if r, err := attest.ParseReport(m.SignedReport([64]byte{})); err != nil || r.LaunchMitigations != 0 || r.Claims().LaunchMitigations != nil {
		t.Errorf("mitigation vectors of version 4: %+v, %v", r, err)
	}
}

func TestS11_Version5(t *testing.T) {
	m := withReport(func(r attesttest.Report) {
		r.PutU32(attesttest.OffVersion, 5)
		r.PutU64(attesttest.OffLaunchMit, 0x0B)
		r.PutU64(attesttest.OffCurrentMit, 0x1B)
	})
	want(t, judge(t, m))
	r, err := attest.ParseReport(m.SignedReport([64]byte{}))
	if err != nil {
		t.Fatal(err)
	}
	if c := r.Claims(); *c.LaunchMitigations != 0x0B || *c.CurrentMitigations != 0x1B {
		t.Errorf("mitigation vectors are %#x and %#x", *c.LaunchMitigations, *c.CurrentMitigations)
	}
}

func TestS12_VersionOfTheFuture(t *testing.T) {
	for _, version := range []uint32{6, 7, 0x100, 0xFFFFFFFF} {
		m := withReport(func(r attesttest.Report) { r.PutU32(attesttest.OffVersion, version) })
		v := judge(t, m)
		wantAny(t, v, is(attest.CheckReportVersion, attest.ReasonReportVersion))
		if v.Class() != attest.ClassSignature {
			t.Errorf("version %d: class %d", version, v.Class())
		}
	}
}

func TestS13_CPUIDInVersion2(t *testing.T) {
	for i := range 3 {
		m := withReport(func(r attesttest.Report) {
			version2(r)
			r[attesttest.OffCPUID+i] = 0x19
		})
		o := options(m)
		o.Policy = attest.PermissivePolicy()
		want(t, verify(t, m, o), is(attest.CheckReportReserved, attest.ReasonReservedNotZero))
	}
}

func TestS14_ReservedRanges(t *testing.T) {
	// First and last byte of every range, for the versions in which it is one.
	signed := map[uint32][]int{
		2: {0x4C, 0x4F, 0x188, 0x19F, 0x1EB, 0x1EF, 0x1F8, 0x200, 0x208, 0x29F},
		3: {0x4C, 0x4F, 0x18B, 0x19F, 0x1EB, 0x1EF, 0x1F8, 0x200, 0x207, 0x208, 0x29F},
		5: {0x4C, 0x4F, 0x18B, 0x19F, 0x1EB, 0x1EF, 0x208, 0x29F},
	}
	for version, offsets := range signed {
		for _, off := range offsets {
			m := withReport(func(r attesttest.Report) {
				if version == 2 {
					version2(r)
				}
				r.PutU32(attesttest.OffVersion, version)
				r[off] = 0x80
			})
			o := options(m)
			o.Policy = attest.PermissivePolicy()
			t.Run(fmt.Sprintf("version %d, byte %#x", version, off), func(t *testing.T) {
				want(t, verify(t, m, o), is(attest.CheckReportReserved, attest.ReasonReservedNotZero))
			})
		}
	}
	// All of them are named.
	m := withReport(func(r attesttest.Report) { r[0x4C], r[0x18B], r[0x1EF] = 1, 1, 1 })
	if f := found(judge(t, m), attest.CheckReportReserved); f != "set bytes in 0x04c to 0x04f, 0x18b to 0x19f, 0x1ef to 0x1ef" {
		t.Errorf("found %q", f)
	}
	for _, off := range []int{0x330, 0x49F} {
		want(t, judge(t, withSigned(func(r attesttest.Report) { r[off] = 1 })), is(attest.CheckReportReserved, attest.ReasonReservedNotZero))
	}
}

// withPolicy is a machine with another guest policy, in report and golden values
// alike.
func verifyGuestPolicy(t *testing.T, guest uint64, change func(*attest.Policy)) *attest.Verdict {
	t.Helper()
	m := withReport(func(r attesttest.Report) { r.PutU64(attesttest.OffPolicy, guest) })
	o := options(m)
	o.Policy = attest.DefaultPolicy()
	if change != nil {
		change(o.Policy)
	}
	g := m.Golden()
	if guest>>17&1 == 1 {
		g.Policy = guest
	}
	v, err := attest.Verify(t.Context(), m.Evidence(), g, o)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestS15_PolicyBit17Clear(t *testing.T) {
	v := verifyGuestPolicy(t, 0x10000, nil)
	wantAny(t, v, is(attest.CheckGuestPolicyForm, attest.ReasonPolicyReserved))
}

func TestS16_PolicyBitsUnknown(t *testing.T) {
	for _, bit := range []int{26, 40, 63} {
		want(t, verifyGuestPolicy(t, 0x30000|1<<bit, nil), is(attest.CheckGuestPolicyForm, attest.ReasonPolicyReserved))
	}
	want(t, verifyGuestPolicy(t, 0x30000|1<<25, nil))
}

func TestS17_DebugAllowed(t *testing.T) {
	want(t, verifyGuestPolicy(t, 0xB0000, nil), is(attest.CheckGuestDebug, attest.ReasonDebugAllowed))
	want(t, verifyGuestPolicy(t, 0xB0000, func(p *attest.Policy) { delete(p.GuestPolicy.Bits, "debug") }))
	want(t, verifyGuestPolicy(t, 0x30000, func(p *attest.Policy) { p.GuestPolicy.Bits["debug"] = attest.Required }),
		is(attest.CheckGuestDebug, attest.ReasonDebugAllowed))

	// Who does not forbid it is warned.
	warned := func(v *attest.Verdict) bool {
		return strings.Contains(strings.Join(v.Warnings, "\n"), "the host debug the guest")
	}
	allow := func(p *attest.Policy) { delete(p.GuestPolicy.Bits, "debug") }
	if warned(verifyGuestPolicy(t, 0x30000, allow)) || warned(verifyGuestPolicy(t, 0xB0000, nil)) || !warned(verifyGuestPolicy(t, 0xB0000, allow)) {
		t.Error("a warning too few, or too many")
	}
}

// A verdict by the permissive policy does not look like one by a policy.
func TestPermissiveIsWarnedOf(t *testing.T) {
	m := genoa()
	for _, p := range []*attest.Policy{nil, attest.DefaultPolicy(), attest.PermissivePolicy()} {
		v := bare(t, m, m.SignedReport([64]byte{1}), attest.Expect{}, func(o *attest.Options) { o.Policy = p })
		warned := strings.Contains(strings.Join(v.Warnings, "\n"), "the policy asks for nothing beyond a genuine report")
		if permissive := p != nil && p.Name == "permissive"; warned != permissive {
			t.Errorf("permissive: %t, warnings %q", permissive, v.Warnings)
		}
	}
}

func TestS18_Migration(t *testing.T) {
	want(t, verifyGuestPolicy(t, 0x70000, nil), is(attest.CheckGuestMigration, attest.ReasonMigrationAllowed))
	want(t, verifyGuestPolicy(t, 0x70000, func(p *attest.Policy) { delete(p.GuestPolicy.Bits, "migrate_ma") }))
	// A migration agent's report id without the bit that allows one.
	m := withReport(func(r attesttest.Report) { r[attesttest.OffReportIDMA+31] = 0xFE })
	want(t, judge(t, m), is(attest.CheckGuestMigration, attest.ReasonMigrationFields))
}

func TestS19_SMT(t *testing.T) {
	// The machine's platform has SMT on; a guest that forbids it cannot run there.
	want(t, verifyGuestPolicy(t, 0x20000, nil), is(attest.CheckSMT, attest.ReasonSMT))
	// Forbidden by our policy.
	v := verifyGuestPolicy(t, 0x30000, func(p *attest.Policy) { p.GuestPolicy.Bits["smt"] = attest.Forbidden })
	want(t, v, is(attest.CheckGuestPolicy, attest.ReasonPolicyBits))
}

func TestS20_SingleSocket(t *testing.T) {
	required := func(p *attest.Policy) { p.GuestPolicy.Bits["single_socket"] = attest.Required }
	want(t, verifyGuestPolicy(t, 0x30000, required), is(attest.CheckGuestPolicy, attest.ReasonPolicyBits))
	want(t, verifyGuestPolicy(t, 0x130000, required))
}

func TestS21_PolicyABI(t *testing.T) {
	for _, c := range []struct {
		abi uint64 // major << 8 | minor
		min string
		ok  bool
	}{
		{0x0136, "1.55", false}, {0x0137, "1.55", true}, {0x0138, "1.55", true},
		{0x00FF, "1.0", false}, {0x0200, "1.55", true}, {0x0000, "0.0", true},
	} {
		v := verifyGuestPolicy(t, 0x30000|c.abi, func(p *attest.Policy) { p.GuestPolicy.MinABI = c.min })
		if c.ok {
			want(t, v)
		} else {
			want(t, v, is(attest.CheckGuestABI, attest.ReasonPolicyABI))
		}
	}
}

func TestS22_PolicyBitsThreeWays(t *testing.T) {
	bits := map[string]int{"smt": 16, "single_socket": 20, "cxl": 21, "mem_aes_256_xts": 22, "rapl_disable": 23, "ciphertext_hiding": 24, "page_swap_disable": 25}
	for name, bit := range bits {
		for _, set := range []bool{false, true} {
			guest := uint64(0x30000) &^ (1 << bit)
			if set {
				guest |= 1 << bit
			}
			for _, w := range []attest.Want{attest.Any, attest.Required, attest.Forbidden} {
				m := withReport(func(r attesttest.Report) {
					r.PutU64(attesttest.OffPolicy, guest)
					r.PutU64(attesttest.OffPlatformInfo, 0x24) // SMT off
				})
				o := options(m)
				o.Policy = attest.DefaultPolicy()
				o.Policy.GuestPolicy.Bits[name] = w
				g := m.Golden()
				g.Policy = guest
				v, err := attest.Verify(t.Context(), m.Evidence(), g, o)
				if err != nil {
					t.Fatal(err)
				}
				if w == attest.Any || (w == attest.Required) == set {
					want(t, v)
				} else {
					want(t, v, is(attest.CheckGuestPolicy, attest.ReasonPolicyBits))
				}
			}
		}
	}
}

func TestS23_PlatformInfoUnknownBit(t *testing.T) {
	platform := func(version uint32, info uint64, change func(*attest.Policy)) *attest.Verdict {
		m := withReport(func(r attesttest.Report) {
			if version == 2 {
				version2(r)
			}
			r.PutU32(attesttest.OffVersion, version)
			r.PutU64(attesttest.OffPlatformInfo, info)
		})
		o := options(m)
		o.Policy = attest.DefaultPolicy()
		if version == 2 {
			o.Policy = attest.PermissivePolicy()
			o.Policy.Platform.AllowUnknownBits = false
		}
		if change != nil {
			change(o.Policy)
		}
		return verify(t, m, o)
	}
	unknown := is(attest.CheckPlatformInfo, attest.ReasonPlatformUnknown)
	want(t, platform(3, 0x25|1<<8, nil), unknown)
	want(t, platform(5, 0x25|1<<63, nil), unknown)
	want(t, platform(2, 0x25|1<<6, nil), unknown)
	want(t, platform(2, 0x25, nil))
	want(t, platform(3, 0x65, nil)) // IOMMU_WRITE_SAFE, as Turin sets it
	want(t, platform(5, 0xE7, nil))
	want(t, platform(3, 0x25|1<<8, func(p *attest.Policy) { p.Platform.AllowUnknownBits = true }))

	// Required and forbidden, for each bit that has no check of its own.
	for name, bit := range map[string]int{"smt": 0, "tsme": 1, "ecc": 2, "rapl_disabled": 3, "ciphertext_hiding": 4, "iommu_write_safe": 6, "tio": 7} {
		for _, w := range []attest.Want{attest.Required, attest.Forbidden} {
			for _, set := range []bool{false, true} {
				info := uint64(0x20)
				if set {
					info |= 1 << bit
				}
				v := platform(3, info, func(p *attest.Policy) { p.Platform.Bits[name] = w })
				if (w == attest.Required) == set {
					want(t, v)
				} else {
					want(t, v, is(attest.CheckPlatformInfo, attest.ReasonPlatformBits))
				}
			}
		}
	}
}

func TestS24_AliasCheckIncomplete(t *testing.T) {
	m := withReport(func(r attesttest.Report) { r.PutU64(attesttest.OffPlatformInfo, 0x05) })
	want(t, judge(t, m), is(attest.CheckAliasCheck, attest.ReasonAliasCheck))
	want(t, judgeWith(t, m, func(p *attest.Policy) { p.Platform.Bits["alias_check_complete"] = attest.Any }))
	// The floors of a processor ask for it too, where the policy says nothing.
	silent := func(p *attest.Policy) { delete(p.Platform.Bits, "alias_check_complete") }
	want(t, judgeWith(t, m, silent), is(attest.CheckAliasCheck, attest.ReasonAliasCheck))
	want(t, judgeWith(t, m, func(p *attest.Policy) {
		silent(p)
		p.TCB.Floors = attest.FloorSource{Name: "none"}
	}))
}

func vmpl(level uint32) *attesttest.Machine {
	return withReport(func(r attesttest.Report) { r.PutU32(attesttest.OffVMPL, level) })
}

func TestS25_VMPLNotZero(t *testing.T) {
	for _, level := range []uint32{1, 2, 3} {
		v := judge(t, vmpl(level))
		want(t, v, is(attest.CheckVMPL, attest.ReasonVMPLNotZero))
		if v.Class() != attest.ClassVTPM {
			t.Errorf("class is %d", v.Class())
		}
	}
	// A bare report's VMPL is the policy's matter.
	m := vmpl(2)
	want(t, bare(t, m, m.SignedReport([64]byte{1}), attest.Expect{}, nil), is(attest.CheckVMPL, attest.ReasonVMPL))
	want(t, bare(t, m, m.SignedReport([64]byte{1}), attest.Expect{}, func(o *attest.Options) {
		o.Policy = attest.DefaultPolicy()
		o.Policy.VMPL = []uint32{1, 2}
	}))
}

func TestS26_VMPLOfTheHost(t *testing.T) {
	m := vmpl(0xFFFFFFFF)
	want(t, judge(t, m), is(attest.CheckVMPL, attest.ReasonVMPLHost))
	want(t, bare(t, m, m.SignedReport([64]byte{1}), attest.Expect{}, func(o *attest.Options) { o.Policy = attest.PermissivePolicy() }),
		is(attest.CheckVMPL, attest.ReasonVMPLHost))
}

func TestS27_VMPLMalformed(t *testing.T) {
	for _, level := range []uint32{4, 0x100, 0xFFFFFFFE} {
		m := vmpl(level)
		want(t, judge(t, m), is(attest.CheckVMPL, attest.ReasonVMPLMalformed))
		want(t, bare(t, m, m.SignedReport([64]byte{1}), attest.Expect{}, func(o *attest.Options) { o.Policy = attest.PermissivePolicy() }),
			is(attest.CheckVMPL, attest.ReasonVMPLMalformed))
	}
}

func TestS28_GuestReportPassedOffAsTheSVSMs(t *testing.T) {
	// No policy makes a guest's report bind a vTPM.
	for _, p := range []*attest.Policy{attest.PermissivePolicy(), attest.DefaultPolicy()} {
		m := vmpl(2)
		o := options(m)
		o.Policy = p
		o.Policy.VMPL = []uint32{0, 1, 2, 3}
		want(t, verify(t, m, o), is(attest.CheckVMPL, attest.ReasonVMPLNotZero))
	}
}

func TestS30_SignerInfo(t *testing.T) {
	for key, reason := range map[uint32]attest.Reason{
		2: attest.ReasonSignerInfo, 3: attest.ReasonSignerInfo, 6: attest.ReasonSignerInfo, 7: attest.ReasonNotSigned,
	} {
		m := withReport(func(r attesttest.Report) { r.PutU32(attesttest.OffSignerInfo, key<<2) })
		wantAny(t, judge(t, m), is(attest.CheckReportSigner, reason))
	}
	for _, bit := range []int{5, 31} {
		m := withReport(func(r attesttest.Report) { r.PutU32(attesttest.OffSignerInfo, 1<<bit) })
		want(t, judge(t, m), is(attest.CheckReportSigner, attest.ReasonSignerInfo))
	}
	// MASK_CHIP_KEY: the firmware signs nothing, so nothing is signed.
	m := withReport(func(r attesttest.Report) { r.PutU32(attesttest.OffSignerInfo, 2) })
	want(t, judge(t, m), is(attest.CheckReportSigner, attest.ReasonNotSigned))
}

func TestS53_ReportData(t *testing.T) {
	m := genoa()
	data := [64]byte{1, 2, 3}
	report := m.SignedReport(data)
	differs := is(attest.CheckReportData, attest.ReasonReportData)
	want(t, bare(t, m, report, attest.Expect{ReportData: data[:]}, nil))
	for i := range 64 {
		other := data
		other[i] ^= 0x40
		want(t, bare(t, m, report, attest.Expect{ReportData: other[:]}, nil), differs)
	}
}

func TestS54_ExpectationThatExpectsNothing(t *testing.T) {
	m := genoa()
	report := m.SignedReport([64]byte{})
	for _, e := range []attest.Expect{
		{ReportData: []byte{}},
		{ReportData: make([]byte, 64)},
		{ReportData: make([]byte, 32)},
		{ReportData: make([]byte, 65)},
		{ReportData: bytes.Repeat([]byte{1}, 32)},
		{ReportData: bytes.Repeat([]byte{1}, 65)},
	} {
		if _, err := attest.VerifyReport(t.Context(), report, nil, e, options(m)); err == nil {
			t.Errorf("no error for expected report data of %d bytes", len(e.ReportData))
		}
	}
}
