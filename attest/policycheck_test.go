package attest_test

import (
	"strings"
	"testing"

	"github.com/evtpm/evtpm/attest"
	"github.com/evtpm/evtpm/attest/attesttest"
)

// What a verdict says beside a reason is part of it: it is what people act on.

func TestFloorsInWords(t *testing.T) {
	// A processor of a known product without a row.
	m := withReport(func(r attesttest.Report) { r.Put(attesttest.OffCPUID, []byte{0x19, 0x1F, 0x0F}) })
	if c := checkOf(t, judge(t, m), attest.CheckFloorReported); c.Reason != string(attest.ReasonNoFloor) || c.Found != "no row for 19/1f/0f" {
		t.Errorf("%+v", c)
	}
	// Only the launch level asks for a new launch.
	old := attesttest.Genoa.Levels
	old[4]--
	v := judge(t, lowered(attesttest.Genoa, old))
	for _, name := range []attest.CheckName{attest.CheckFloorReported, attest.CheckFloorCommitted, attest.CheckFloorCurrent, attest.CheckFloorLaunch} {
		c := checkOf(t, v, name)
		if c.Status != attest.Failed || !strings.HasPrefix(c.Note, "ucode 85 < 86") || strings.Contains(c.Note, "start the machine again") != (name == attest.CheckFloorLaunch) {
			t.Errorf("%+v", c)
		}
	}
	if v.FloorsDate != attest.DefaultFloors().Date {
		t.Errorf("floors of %q", v.FloorsDate)
	}
	v = judgeWith(t, genoa(), func(p *attest.Policy) { p.TCB.Floors = attest.FloorSource{Name: "none"} })
	if c := checkOf(t, v, attest.CheckFloorCurrent); c.Status != attest.NotApplicable || v.FloorsDate != "" {
		t.Errorf("%+v, floors of %q", c, v.FloorsDate)
	}
}

func TestFirmwareInWords(t *testing.T) {
	// Which of the two differs.
	m := withReport(func(r attesttest.Report) { r[attesttest.OffCommittedVersion]-- })
	if c := checkOf(t, judge(t, m), attest.CheckProvisional); c.Found != "committed 1.55.48, current 1.55.49" {
		t.Errorf("%+v", c)
	}
	m = withReport(func(r attesttest.Report) { r[attesttest.OffCommittedTCB+7]-- })
	if c := checkOf(t, judge(t, m), attest.CheckProvisional); c.Found != "committed TCB 0x551b00000000000a, current TCB 0x561b00000000000a" {
		t.Errorf("%+v", c)
	}
	// Either version can be too low.
	lowest := func(p *attest.Policy) { p.Platform.MinFirmware, p.TCB.AllowProvisional = "1.55.49", true }
	for _, off := range []int{attesttest.OffCommittedVersion, attesttest.OffCurrentVersion} {
		m = withReport(func(r attesttest.Report) { r[off]-- })
		want(t, judgeWith(t, m, lowest), is(attest.CheckFirmware, attest.ReasonFirmwareBelow))
	}
	if c := checkOf(t, judge(t, genoa()), attest.CheckFirmware); c.Status != attest.NotApplicable || c.Found != "current 1.55.49, committed 1.55.49" {
		t.Errorf("%+v", c)
	}
}

// What is not asked for is shown, and not called good.
func TestWhatIsNotAskedFor(t *testing.T) {
	m := withReport(func(r attesttest.Report) {
		r.PutU64(attesttest.OffPolicy, 0x30137)
		r.PutU32(attesttest.OffGuestSVN, 7)
	})
	v := bare(t, m, m.SignedReport([64]byte{1}), attest.Expect{}, nil)
	want(t, v)
	for name, f := range map[attest.CheckName]string{
		attest.CheckGuestABI: "1.55", attest.CheckGuestGolden: "0x30137", attest.CheckGuestSVN: "7",
		attest.CheckMitigations: "launch 0x0, current 0x0",
		attest.CheckFamilyID:    strings.Repeat("0", 32), attest.CheckImageID: strings.Repeat("0", 32),
		attest.CheckIDKey: strings.Repeat("0", 96), attest.CheckAuthorKey: strings.Repeat("0", 96),
		attest.CheckMeasurement: attesttest.LaunchDigest.String(), attest.CheckReportData: "01" + strings.Repeat("00", 63),
	} {
		if c := checkOf(t, v, name); c.Status != attest.NotApplicable || c.Found != f || c.Note == "" {
			t.Errorf("%+v", c)
		}
	}
	v = bare(t, m, m.SignedReport([64]byte{1}), attest.Expect{}, func(o *attest.Options) {
		o.Policy = attest.DefaultPolicy()
		o.Policy.Products, o.Policy.HostData, o.Policy.Platform.Bits = nil, attest.HostDataAny, nil
	})
	want(t, v)
	for name, f := range map[attest.CheckName]string{attest.CheckPolicyProduct: "Genoa", attest.CheckHostData: strings.Repeat("0", 64)} {
		if c := checkOf(t, v, name); c.Status != attest.NotApplicable || c.Found != f {
			t.Errorf("%+v", c)
		}
	}
}

// A bit that a policy leaves alone is not called good when it is set.
func TestBitsThatAreLeftAlone(t *testing.T) {
	silent := func(p *attest.Policy) {
		delete(p.GuestPolicy.Bits, "debug")
		delete(p.GuestPolicy.Bits, "migrate_ma")
		p.Platform.Bits["alias_check_complete"] = attest.Any
	}
	for _, c := range []struct {
		check       attest.CheckName
		guest, info uint64
		status      attest.Status
	}{
		{attest.CheckGuestDebug, 0xB0000, 0x25, attest.NotApplicable},
		{attest.CheckGuestDebug, 0x30000, 0x25, attest.Passed},
		{attest.CheckGuestMigration, 0x70000, 0x25, attest.NotApplicable},
		{attest.CheckGuestMigration, 0x30000, 0x25, attest.Passed},
		{attest.CheckAliasCheck, 0x30000, 0x05, attest.NotApplicable},
		{attest.CheckAliasCheck, 0x30000, 0x25, attest.Passed},
	} {
		m := withReport(func(r attesttest.Report) {
			r.PutU64(attesttest.OffPolicy, c.guest)
			r.PutU64(attesttest.OffPlatformInfo, c.info)
			if c.guest&0x40000 != 0 {
				r[attesttest.OffReportIDMA] = 1 // the agent's
			}
		})
		g := m.Golden()
		g.Policy = c.guest
		o := options(m)
		o.Policy = attest.DefaultPolicy()
		silent(o.Policy)
		v, err := attest.Verify(t.Context(), m.Evidence(), g, o)
		if err != nil {
			t.Fatal(err)
		}
		want(t, v)
		if got := checkOf(t, v, c.check); got.Status != c.status {
			t.Errorf("policy %#x, platform %#x: %+v", c.guest, c.info, got)
		}
	}
}
