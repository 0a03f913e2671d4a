package attest_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/evtpm/evtpm/attest"
	"github.com/evtpm/evtpm/attest/attesttest"
	"github.com/evtpm/evtpm/measure"
)

// The published attacks that a report can show, and the check that answers each
// (docs/attacks.md). The levels are those that the bulletins are quoted with.

// below is a machine one step below a floor: which of fmc, boot loader, TEE, SNP
// and microcode, and how low.
func below(p attesttest.Processor, which int, level uint8) *attesttest.Machine {
	levels := p.Levels
	levels[which] = level
	return lowered(p, levels)
}

const (
	snpLevel   = 3
	ucodeLevel = 4
)

func TestA01_CacheWarp(t *testing.T) {
	want(t, judge(t, below(attesttest.Milan, ucodeLevel, 0xD0)), allFloors...)
}

func TestA02_EntrySign(t *testing.T) {
	want(t, judge(t, below(attesttest.Milan, ucodeLevel, 0xDA)), allFloors...)
	want(t, judge(t, below(attesttest.Genoa, ucodeLevel, 0x53)), allFloors...)
	want(t, judge(t, below(attesttest.Siena, ucodeLevel, 0x18)), allFloors...)
	want(t, judge(t, below(attesttest.Genoa, snpLevel, 0x16)), allFloors...)
}

func TestA03_BadRAM(t *testing.T) {
	m := withReport(func(r attesttest.Report) { r.PutU64(attesttest.OffPlatformInfo, 0x05) })
	want(t, judge(t, m), is(attest.CheckAliasCheck, attest.ReasonAliasCheck))
	want(t, judge(t, below(attesttest.Genoa, snpLevel, 0x15)), allFloors...)
}

func TestA07_RMPocalypse(t *testing.T) {
	want(t, judge(t, below(attesttest.Genoa, snpLevel, 0x1A)), allFloors...)
	want(t, judge(t, below(attesttest.Turin, snpLevel, 3)), allFloors...)
	// By its mitigation bit, where a policy asks for that.
	bit1 := func(p *attest.Policy) { p.Mitigations = attest.MitigationRules{Launch: 1 << 1, Current: 1 << 1} }
	want(t, judgeWith(t, withReport(version5(1<<1, 1<<1)), bit1))
	want(t, judgeWith(t, withReport(version5(0, 0)), bit1), is(attest.CheckMitigations, attest.ReasonMitigationMissing))
}

func TestA08_StackWarp(t *testing.T) {
	want(t, judge(t, below(attesttest.Milan, ucodeLevel, 0xDD)), allFloors...)
	want(t, judge(t, below(attesttest.Genoa, ucodeLevel, 0x55)), allFloors...)
	want(t, judge(t, below(attesttest.Turin, ucodeLevel, 0x50)), allFloors...)
	// Or SMT forbidden, by the guest's policy and on the platform.
	v := judgeWith(t, genoa(), func(p *attest.Policy) { p.Platform.Bits["smt"] = attest.Forbidden })
	want(t, v, is(attest.CheckPlatformInfo, attest.ReasonPlatformBits))
}

func TestA09_Fabricked(t *testing.T) {
	// The value was withdrawn, so it is no default; a policy can ask for it.
	v := judgeWith(t, genoa(), func(p *attest.Policy) {
		floors := attest.DefaultFloors()
		floors.Find(attest.CPUID{Family: 0x19, Model: 0x11, Stepping: 1}).TCB.SNP = 0x1C
		p.TCB.Floors = attest.FloorSource{Name: "table", Table: floors}
	})
	want(t, v, allFloors...)
}

func TestA10_BreakFAST(t *testing.T) {
	want(t, judge(t, below(attesttest.Milan, snpLevel, 0x1C)), allFloors...)
	bit4 := func(p *attest.Policy) { p.Mitigations.Current = 1 << 4 }
	want(t, judgeWith(t, withReport(version5(0, 1<<4)), bit4))
	want(t, judgeWith(t, withReport(version5(1<<4, 0)), bit4), is(attest.CheckMitigations, attest.ReasonMitigationMissing))
}

func TestA11_MilansRootSeed(t *testing.T) {
	// A Milan report on hardware is warned of by default, and can be excluded.
	m := attesttest.NewMachine(attesttest.Milan)
	o := hardware(t, m)
	v := judgeCRL(t, m, o)
	want(t, v)
	if !strings.Contains(strings.Join(v.Warnings, " "), "root seed") {
		t.Errorf("warnings are %q", v.Warnings)
	}
	o.Policy.Products = []string{"Genoa", "Bergamo-Siena", "Turin"}
	want(t, judgeCRL(t, m, o), is(attest.CheckPolicyProduct, attest.ReasonProductNotAllowed))
	// A simulated Milan has no such seed.
	if v := judge(t, m); strings.Contains(strings.Join(v.Warnings, " "), "root seed") {
		t.Errorf("warnings of the simulated platform are %q", v.Warnings)
	}
	g := genoa()
	if v := judgeCRL(t, g, hardware(t, g)); strings.Contains(strings.Join(v.Warnings, " "), "root seed") {
		t.Errorf("warnings about Genoa are %q", v.Warnings)
	}
}

func TestA12_CiphertextSideChannels(t *testing.T) {
	strict := func(p *attest.Policy) {
		p.Platform.Bits["ciphertext_hiding"] = attest.Required
		p.GuestPolicy.Bits["ciphertext_hiding"] = attest.Required
		p.GuestPolicy.Bits["page_swap_disable"] = attest.Required
	}
	want(t, judgeWith(t, genoa(), strict), is(attest.CheckPlatformInfo, attest.ReasonPlatformBits), is(attest.CheckGuestPolicy, attest.ReasonPolicyBits))
}

func TestA13_IOMMUWriteBuffer(t *testing.T) {
	want(t, judge(t, below(attesttest.Milan, snpLevel, 0x1A)), allFloors...)
	v := judgeWith(t, genoa(), func(p *attest.Policy) { p.Platform.Bits["iommu_write_safe"] = attest.Required })
	want(t, v, is(attest.CheckPlatformInfo, attest.ReasonPlatformBits))
	// A row of floors can ask for platform bits too; the policy's own word wins.
	row := func(p *attest.Policy) *attest.Floor {
		p.TCB.Floors = attest.FloorSource{Name: "table", Table: attest.DefaultFloors()}
		f := p.TCB.Floors.Table.Find(attest.CPUID{Family: 0x19, Model: 0x11, Stepping: 1})
		f.Platform["iommu_write_safe"] = attest.Required
		return f
	}
	want(t, judgeWith(t, genoa(), func(p *attest.Policy) { row(p) }), is(attest.CheckPlatformInfo, attest.ReasonPlatformBits))
	want(t, judgeWith(t, genoa(), func(p *attest.Policy) { row(p); p.Platform.Bits["iommu_write_safe"] = attest.Any }))
}

func TestA14_FirmwareMemoryBugs(t *testing.T) {
	want(t, judge(t, below(attesttest.Genoa, snpLevel, 5)), allFloors...)
}

func TestA15_WrongMitigationBit(t *testing.T) {
	// Bit 3 proves nothing: a report with it alone and an old SNP level is refused.
	m := below(attesttest.Milan, snpLevel, 0x1A)
	old := m.EditReport
	m.EditReport = func(r attesttest.Report) { old(r); version5(1<<3, 1<<3)(r) }
	want(t, judge(t, m), allFloors...)
}

func TestA20_StateCloned(t *testing.T) {
	r := registry(t)
	want(t, judgeSeen(t, launched(1, "boot-1", 3), r))
	want(t, judgeSeen(t, launched(2, "boot-2", 3), r), reused)
}

func TestA23_Relay(t *testing.T) {
	m := genoa()
	o := options(m)
	o.ChipID = make([]byte, 64)
	o.ChipID[0] = 1
	want(t, verify(t, m, o), is(attest.CheckChip, attest.ReasonChipRelayed))
}

func TestA24_FirmwareRollback(t *testing.T) {
	// New firmware runs, old firmware is committed: the host can go back.
	p := attesttest.Genoa
	newer := p.Levels
	newer[snpLevel]++
	m := withReport(func(r attesttest.Report) { r.PutU64(attesttest.OffCurrentTCB, p.RawTCB(newer)) })
	want(t, judge(t, m), is(attest.CheckProvisional, attest.ReasonProvisional))
}

func TestA25_SideChannelsOfPowerAndSMT(t *testing.T) {
	v := judgeWith(t, genoa(), func(p *attest.Policy) {
		p.GuestPolicy.Bits["smt"], p.GuestPolicy.Bits["rapl_disable"] = attest.Forbidden, attest.Required
		p.Platform.Bits["rapl_disabled"] = attest.Required
	})
	want(t, v, is(attest.CheckGuestPolicy, attest.ReasonPolicyBits), is(attest.CheckPlatformInfo, attest.ReasonPlatformBits))
}

func TestA26_NVIndexRewritten(t *testing.T) {
	// Root of the guest undefines the index and writes a report of its own.
	m := vmpl(1)
	m.Binding = "nv"
	want(t, judge(t, m), is(attest.CheckVMPL, attest.ReasonVMPLNotZero))
}

func TestFloorsOfEveryProcessor(t *testing.T) {
	// The table as it is written down: a change of a value is a decision.
	wants := map[string]string{
		"19/01/01": "bl 4, tee 0, snp 29, ucode 222",
		"19/01/02": "bl 4, tee 0, snp 29, ucode 71",
		"19/11/01": "bl 10, tee 0, snp 27, ucode 86",
		"19/11/02": "bl 10, tee 0, snp 27, ucode 81",
		"19/a0/02": "bl 10, tee 0, snp 27, ucode 25",
		"1a/02/01": "fmc 1, bl 1, tee 1, snp 4, ucode 81",
	}
	table := attest.DefaultFloors()
	if len(table.Floors) != len(wants) || table.Date != "2026-11-23" {
		t.Errorf("%d rows of %s", len(table.Floors), table.Date)
	}
	for _, f := range table.Floors {
		if f.TCB.String() != wants[f.CPUID] || len(f.Sources) == 0 || f.Platform["alias_check_complete"] != attest.Required {
			t.Errorf("%s: %+v", f.CPUID, f)
		}
	}
}

func TestFloorsGrowOld(t *testing.T) {
	m := genoa()
	o := options(m)
	warned := func() bool {
		v := verify(t, m, o)
		want(t, v)
		return strings.Contains(strings.Join(v.Warnings, " "), "days old")
	}
	if warned() {
		t.Error("warned of a table that is a day old")
	}
	o.Now = attesttest.Now.AddDate(0, 0, 180)
	if !warned() {
		t.Error("not warned of a table that is older than 180 days")
	}
	o.Policy = attest.DefaultPolicy()
	o.Policy.TCB.MaxAgeDays = 0
	if warned() {
		t.Error("warned although the policy does not ask for it")
	}
}

func TestA04_Interposers(t *testing.T) {
	// No report shows them; a policy can name the machines whose rooms are trusted.
	v := judgeWith(t, genoa(), func(p *attest.Policy) { p.ChipIDs = hexList(bytes.Repeat([]byte{7}, 64)) })
	want(t, v, is(attest.CheckChip, attest.ReasonChipNotAllowed))
}

// launchOf is a small launch: firmware, a page of kernel hashes, one VMSA for each
// vCPU with its SEV_FEATURES.
func launchOf(firmware byte, hashes bool, vcpus int, features byte) *measure.Sequence {
	page := func(b byte) []byte { return bytes.Repeat([]byte{b}, measure.PageSize) }
	s := &measure.Sequence{Steps: []measure.Step{{Type: measure.PageNormal, GPA: 0xFFFFF000, Size: measure.PageSize, Data: page(firmware)}}}
	if hashes {
		s.Steps = append(s.Steps, measure.Step{Type: measure.PageNormal, GPA: 0x80D000, Size: measure.PageSize, Data: page(0x4B)})
	}
	for range vcpus {
		vmsa := page(0)
		vmsa[0x3B0] = features
		s.VMSAs = append(s.VMSAs, measure.Step{Type: measure.PageVMSA, GPA: measure.VMSAGPA, Size: measure.PageSize, Data: vmsa})
	}
	return s
}

// judgeLaunch compares a machine that was launched in one way with golden values
// of another.
func judgeLaunch(t *testing.T, real, golden *measure.Sequence) *attest.Verdict {
	t.Helper()
	digest := func(s *measure.Sequence) measure.Digest {
		d, err := s.LaunchDigest()
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	d := digest(real)
	m := withReport(func(r attesttest.Report) { r.Put(attesttest.OffMeasurement, d[:]) })
	return judgeGolden(t, m, func(g *measure.Golden) { g.LaunchDigests = []measure.Digest{digest(golden)} })
}

var measurementDiffers = is(attest.CheckMeasurement, attest.ReasonMeasurement)

func TestS57_LaunchOfAnotherShape(t *testing.T) {
	golden := launchOf(1, true, 4, 1)
	want(t, judgeLaunch(t, launchOf(1, true, 4, 1), golden))
	v := judgeLaunch(t, launchOf(1, true, 8, 1), golden)
	want(t, v, measurementDiffers)
	if c := check(t, v, attest.CheckMeasurement); !strings.Contains(c.Note, "evtpm explain") || c.Expected == c.Found {
		t.Errorf("the check does not say how to find the difference: %+v", c)
	}
}

func TestA05_WeSee(t *testing.T) {
	// Restricted injection (SEV_FEATURES bit 3) is measured with every vCPU.
	want(t, judgeLaunch(t, launchOf(1, true, 1, 0x1), launchOf(1, true, 1, 0x9)), measurementDiffers)
}

func TestA06_Heckler(t *testing.T) {
	// Alternate injection (SEV_FEATURES bit 4), likewise.
	want(t, judgeLaunch(t, launchOf(1, true, 1, 0x1), launchOf(1, true, 1, 0x11)), measurementDiffers)
}

func TestA16_TablesOfTheHost(t *testing.T) {
	// A table that the host brought is measured; hiding its event is noticed.
	table := attesttest.Event{PCR: 1, Type: attesttest.EvPostCode, Digest: digestOf([]byte("ACPI DATA")), Data: []byte("ACPI DATA")}
	m := booted(append([]attesttest.Event{table}, attesttest.DirectBoot()...))
	want(t, judge(t, m))
	m.Events = m.Events[1:]
	want(t, judge(t, m), logReplay)
}

func TestA17_FirmwareThatDoesNotEnforceHashes(t *testing.T) {
	want(t, judgeLaunch(t, launchOf(2, true, 1, 1), launchOf(1, true, 1, 1)), measurementDiffers)
	// And the kernel that it let through is in PCR 4.
	m := genoa()
	v := judgeGolden(t, m, func(g *measure.Golden) { g.PCRs.Values[0].AnyOf[0].Value[0] ^= 1 })
	want(t, v, is(attest.CheckPCRGolden, attest.ReasonPCRGolden))
}

func TestA18_NoKernelHashes(t *testing.T) {
	want(t, judgeLaunch(t, launchOf(1, false, 1, 1), launchOf(1, true, 1, 1)), measurementDiffers)
}

func TestA19_VariableStore(t *testing.T) {
	// Secure Boot switched off by the host's variables is in PCR 7.
	boot := func(state string) *attesttest.Machine {
		return booted(append(attesttest.DirectBoot(), attesttest.Event{PCR: 7, Type: 0x80000001, Data: []byte("SecureBoot " + state)}))
	}
	on, off := boot("on"), boot("off")
	v := judgeGolden(t, off, func(g *measure.Golden) {
		g.PCRs.Values = append(g.PCRs.Values[:1:1], measure.GoldenPCR{PCR: 7, AnyOf: []measure.GoldenPCRValue{{Value: on.TPM.PCRs[7]}}}, g.PCRs.Values[1])
	})
	want(t, v, is(attest.CheckPCRGolden, attest.ReasonPCRGolden))
}

func TestA22_AnotherSVSM(t *testing.T) {
	want(t, judgeLaunch(t, launchOf(3, true, 1, 1), launchOf(1, true, 1, 1)), measurementDiffers)
}
