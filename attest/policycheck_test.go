package attest_test

import (
	"bytes"
	"crypto/x509"
	"strings"
	"testing"
	"time"

	"github.com/evtpm/evtpm/attest"
	"github.com/evtpm/evtpm/attest/attesttest"
	"github.com/evtpm/evtpm/measure"
)

// What a verdict says beside a reason is part of it: it is what people act on.

func TestFloorsInWords(t *testing.T) {
	// A processor of a known product without a row.
	m := withReport(func(r attesttest.Report) { r.Put(attesttest.OffCPUID, []byte{0x19, 0x1F, 0x0F}) })
	if c := check(t, judge(t, m), attest.CheckFloorReported); c.Reason != string(attest.ReasonNoFloor) || c.Found != "no row for 19/1f/0f" {
		t.Errorf("%+v", c)
	}
	// Only the launch level asks for a new launch.
	old := attesttest.Genoa.Levels
	old[4]--
	v := judge(t, lowered(attesttest.Genoa, old))
	for _, name := range []attest.CheckName{attest.CheckFloorReported, attest.CheckFloorCommitted, attest.CheckFloorCurrent, attest.CheckFloorLaunch} {
		c := check(t, v, name)
		if c.Status != attest.Failed || !strings.HasPrefix(c.Note, "ucode 85 < 86") || strings.Contains(c.Note, "start the machine again") != (name == attest.CheckFloorLaunch) {
			t.Errorf("%+v", c)
		}
	}
	if v.FloorsDate != attest.DefaultFloors().Date {
		t.Errorf("floors of %q", v.FloorsDate)
	}
	v = judgeWith(t, genoa(), func(p *attest.Policy) { p.TCB.Floors = attest.FloorSource{Name: "none"} })
	if c := check(t, v, attest.CheckFloorCurrent); c.Status != attest.NotApplicable || v.FloorsDate != "" {
		t.Errorf("%+v, floors of %q", c, v.FloorsDate)
	}
}

func TestFirmwareInWords(t *testing.T) {
	// Which of the two differs.
	m := withReport(func(r attesttest.Report) { r[attesttest.OffCommittedVersion]-- })
	if c := check(t, judge(t, m), attest.CheckProvisional); c.Found != "committed 1.55.48, current 1.55.49" {
		t.Errorf("%+v", c)
	}
	m = withReport(func(r attesttest.Report) { r[attesttest.OffCommittedTCB+7]-- })
	if c := check(t, judge(t, m), attest.CheckProvisional); c.Found != "committed TCB 0x551b00000000000a, current TCB 0x561b00000000000a" {
		t.Errorf("%+v", c)
	}
	// Either version can be too low.
	lowest := func(p *attest.Policy) { p.Platform.MinFirmware, p.TCB.AllowProvisional = "1.55.49", true }
	for _, off := range []int{attesttest.OffCommittedVersion, attesttest.OffCurrentVersion} {
		m = withReport(func(r attesttest.Report) { r[off]-- })
		want(t, judgeWith(t, m, lowest), is(attest.CheckFirmware, attest.ReasonFirmwareBelow))
	}
	if c := check(t, judge(t, genoa()), attest.CheckFirmware); c.Status != attest.NotApplicable || c.Found != "current 1.55.49, committed 1.55.49" {
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
		if c := check(t, v, name); c.Status != attest.NotApplicable || c.Found != f || c.Note == "" {
			t.Errorf("%+v", c)
		}
	}
	v = bare(t, m, m.SignedReport([64]byte{1}), attest.Expect{}, func(o *attest.Options) {
		o.Policy = attest.DefaultPolicy()
		o.Policy.Products, o.Policy.HostData, o.Policy.Platform.Bits = nil, attest.HostDataAny, nil
	})
	want(t, v)
	for name, f := range map[attest.CheckName]string{attest.CheckPolicyProduct: "Genoa", attest.CheckHostData: strings.Repeat("0", 64)} {
		if c := check(t, v, name); c.Status != attest.NotApplicable || c.Found != f {
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
		if got := check(t, v, c.check); got.Status != c.status {
			t.Errorf("policy %#x, platform %#x: %+v", c.guest, c.info, got)
		}
	}
}

// Every border of the table of products.
func TestProductsByCPUID(t *testing.T) {
	for _, c := range []struct {
		family, model uint8
		name          string
	}{
		{0x18, 0x00, ""}, {0x17, 0x31, ""},
		{0x19, 0x00, "Milan"}, {0x19, 0x01, "Milan"}, {0x19, 0x0F, "Milan"},
		{0x19, 0x10, "Genoa"}, {0x19, 0x1F, "Genoa"}, {0x19, 0x20, ""}, {0x19, 0x9F, ""},
		{0x19, 0xA0, "Bergamo-Siena"}, {0x19, 0xAF, "Bergamo-Siena"}, {0x19, 0xB0, ""}, {0x19, 0xFF, ""},
		{0x1A, 0x00, "Turin"}, {0x1A, 0x0F, "Turin"}, {0x1A, 0x10, "Turin-Dense"}, {0x1A, 0x1F, "Turin-Dense"},
		{0x1A, 0x20, ""}, {0x1A, 0x4F, ""}, {0x1A, 0x50, "Venice"}, {0x1A, 0x5F, "Venice"}, {0x1A, 0x60, ""}, {0x1B, 0x00, ""},
	} {
		if p, ok := (attest.CPUID{Family: c.family, Model: c.model}).Product(); p.Name != c.name || ok != (c.name != "") {
			t.Errorf("%#x/%#x is %q, expected %q", c.family, c.model, p.Name, c.name)
		}
	}
}

// Golden values decide about HOST_DATA, whatever the policy accepts.
func TestHostDataOfGoldenValues(t *testing.T) {
	m := withReport(func(r attesttest.Report) { r[attesttest.OffHostData] = 1 })
	accept := func(p *attest.Policy) { p.HostData = attest.HostDataAny }
	want(t, judgeWith(t, m, accept), is(attest.CheckHostData, attest.ReasonHostData))
	o := options(m)
	o.Policy = attest.DefaultPolicy()
	g := m.Golden()
	g.HostData = make([]byte, 32)
	g.HostData[0] = 1
	v, err := attest.Verify(t.Context(), m.Evidence(), g, o)
	if err != nil {
		t.Fatal(err)
	}
	want(t, v)
}

// A VLEK's report names no chip that could be believed, even if it has a CHIP_ID.
func TestChipOfVLEK(t *testing.T) {
	m := vlek()
	m.EditReport = func(r attesttest.Report) { r.PutU32(attesttest.OffSignerInfo, 1<<2) }
	v := bare(t, m, m.SignedReport([64]byte{1}), attest.Expect{}, func(o *attest.Options) { o.ChipID = m.ChipID[:] })
	want(t, v, is(attest.CheckChip, attest.ReasonChipUnprovable))
}

// All accepted values are named when none is found.
func TestAcceptedValuesInWords(t *testing.T) {
	m := genoa()
	one, two := make([]byte, 48), make([]byte, 48)
	one[0], two[0] = 1, 2
	v := bare(t, m, m.SignedReport([64]byte{1}), attest.Expect{Measurements: []measure.Digest{measure.Digest(one), measure.Digest(two)}}, func(o *attest.Options) {
		o.Policy = attest.DefaultPolicy()
		o.Policy.IDBlock.IDKeys = []measure.HexBytes{one, two}
		o.Policy.Products, o.Policy.Signers = []string{"Milan", "Turin"}, []string{"vlek"}
	})
	either := "01" + strings.Repeat("00", 47) + " or 02" + strings.Repeat("00", 47)
	for name, expected := range map[attest.CheckName]string{
		attest.CheckIDKey: either, attest.CheckMeasurement: either, attest.CheckPolicyProduct: "Milan, Turin", attest.CheckPolicySigner: "vlek",
	} {
		if c := check(t, v, name); c.Status != attest.Failed || c.Expected != expected {
			t.Errorf("%+v", c)
		}
	}
}

// Warnings of floors: when the table is old, and where a row has one.
func TestFloorWarnings(t *testing.T) {
	date, err := time.Parse(time.DateOnly, attest.DefaultFloors().Date)
	if err != nil {
		t.Fatal(err)
	}
	limit := date.AddDate(0, 0, 180)
	for _, c := range []struct {
		p        attesttest.Processor
		now      time.Time
		old, row bool
	}{
		{attesttest.Genoa, limit, false, false},
		{attesttest.Genoa, limit.Add(time.Second), true, false},
		{attesttest.Milan, limit, false, true},
	} {
		m := attesttest.NewMachine(c.p)
		o := hardware(t, m)
		o.Now = c.now
		v := judgeCRL(t, m, o)
		want(t, v)
		text := strings.Join(v.Warnings, "\n")
		if strings.Contains(text, "more than 180 days old") != c.old || strings.Contains(text, "Milan B1: ") != c.row || strings.Contains(text, "Genoa B1: ") {
			t.Errorf("%s at %s: warnings %q", c.p.Line, c.now, v.Warnings)
		}
		o.Policy.TCB.MaxAgeDays = 0 // never
		if v := judgeCRL(t, m, o); strings.Contains(strings.Join(v.Warnings, "\n"), "days old") {
			t.Errorf("warnings %q", v.Warnings)
		}
	}
	// A simulated Milan has no seed to lose.
	m := attesttest.NewMachine(attesttest.Milan)
	v := bare(t, m, m.SignedReport([64]byte{1}), attest.Expect{}, nil)
	if strings.Contains(strings.Join(v.Warnings, "\n"), "Milan") {
		t.Errorf("warnings %q", v.Warnings)
	}
}

// Where the VCEK came from is said; for a simulated platform none is fetched.
func TestWhereTheVCEKCameFrom(t *testing.T) {
	m := genoa()
	report := m.SignedReport([64]byte{1})
	parsed, err := attest.ParseReport(report)
	if err != nil {
		t.Fatal(err)
	}
	url, err := attest.ReportURL(parsed)
	if err != nil {
		t.Fatal(err)
	}
	asked := counter{getter: getter{url: m.LeafCertificate().Raw}, n: map[string]int{}}
	verdict := func(o attest.Options) *attest.Verdict {
		o.Getter, o.Certificates = asked, []*x509.Certificate{m.Signer.ASK, m.Signer.ARK}
		v, err := attest.VerifyReport(t.Context(), report, nil, attest.Expect{}, o)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	v := verdict(options(m))
	if len(asked.n) > 0 || found(v, attest.CheckCertificates) != "no VCEK or VLEK" {
		t.Errorf("asked for %v, found %q", asked.n, found(v, attest.CheckCertificates))
	}
	o := hardware(t, m)
	o.Policy.Revocation = attest.RevocationIfGiven
	v = verdict(o)
	want(t, v)
	if f := found(v, attest.CheckCertificates); f != "SEV-VCEK under ARK-Genoa, VCEK from kdsintf.amd.com" {
		t.Errorf("found %q", f)
	}
}

// TestPolicyCSP: a policy can say whose VLEKs it accepts.
func TestPolicyCSP(t *testing.T) {
	with := func(ids ...string) func(*attest.Policy) {
		return func(p *attest.Policy) { p.CSPIDs = ids }
	}
	notAllowed := is(attest.CheckPolicyCSP, attest.ReasonCSPNotAllowed)
	want(t, judgeWith(t, vlek(), with("CN=other.example", "CN=cloud.example")))
	v := judgeWith(t, vlek(), with("CN=other.example", "CN=third.example"))
	want(t, v, notAllowed)
	if c := check(t, v, attest.CheckPolicyCSP); c.Expected != "CN=other.example, CN=third.example" || c.Found != "CN=cloud.example" {
		t.Errorf("%+v", c)
	}
	for _, v := range []*attest.Verdict{judge(t, vlek()), judgeWith(t, genoa(), with("CN=other.example"))} {
		want(t, v)
		if c := check(t, v, attest.CheckPolicyCSP); c.Status != attest.NotApplicable {
			t.Errorf("%+v", c)
		}
	}
	for fault, ids := range map[string][]string{"csp_ids is empty": {}, "csp_ids: an empty name": {"CN=x", ""}} {
		p := attest.DefaultPolicy()
		p.CSPIDs = ids
		if err := p.Validate(); err == nil || !strings.Contains(err.Error(), fault) {
			t.Errorf("found %v, expected %s", err, fault)
		}
	}
	own := bytes.Replace(attest.PermissivePolicyYAML(), []byte("version: 1"), []byte("version: 1\ncsp_ids: [CN=cloud.example]"), 1)
	if _, err := attest.ParsePolicy(own, "p"); err != nil {
		t.Errorf("a policy that judges the provider alone: %v", err)
	}
}
