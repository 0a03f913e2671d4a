package snpsim

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-sev-guest/abi"
	"github.com/google/go-sev-guest/verify"

	"github.com/evtpm/evtpm/attest"
	"github.com/evtpm/evtpm/measure"
)

var testReportData = [64]byte{1, 2, 3, 63: 64}

// Every product and version is accepted by the verifier with its default policy,
// which has floors, when the root is named, and by no means otherwise.
func TestReportsAreAccepted(t *testing.T) {
	for _, product := range []string{"Milan", "Genoa", "Turin"} {
		for _, version := range []uint32{3, 5} {
			t.Run(fmt.Sprintf("%s v%d", product, version), func(t *testing.T) {
				c := testChip(t, product)
				sp := launchedSP(t, c, SPOptions{ReportVersion: version})
				report, err := sp.Report(VMPLSVSM, testReportData)
				if err != nil {
					t.Fatal(err)
				}
				measured, _ := sp.Measurement()
				want := attest.Expect{Measurements: []measure.Digest{measured}, ReportData: testReportData[:]}
				ark, err := x509.ParseCertificate(c.ark)
				if err != nil {
					t.Fatal(err)
				}
				v, err := attest.VerifyReport(context.Background(), report, c.CertTable(), want, attest.Options{
					SimRoots: []*x509.Certificate{ark}, ChipID: c.ID[:],
				})
				if err != nil {
					t.Fatal(err)
				}
				if !v.Trusted() || v.Platform != attest.PlatformSim {
					t.Errorf("found %s on platform %q: %+v", v.Result, v.Platform, v.Failures())
				}
				v, err = attest.VerifyReport(context.Background(), report, c.CertTable(), want, attest.Options{})
				if err != nil {
					t.Fatal(err)
				}
				if v.Trusted() {
					t.Error("trusted without the simulated root")
				}
			})
		}
	}
}

// go-sev-guest, an independent implementation, reads the reports and verifies
// their signatures.
func TestReportsInGoSEVGuest(t *testing.T) {
	for _, product := range []string{"Milan", "Genoa"} {
		for _, version := range []uint32{3, 5} {
			c := testChip(t, product)
			sp := launchedSP(t, c, SPOptions{ReportVersion: version})
			raw, err := sp.Report(2, testReportData)
			if err != nil {
				t.Fatal(err)
			}
			if err := verify.SnpReportSignature(raw, c.VCEK()); err != nil {
				t.Errorf("%s v%d: %v", product, version, err)
			}
			r, err := abi.ReportToProto(raw)
			if err != nil {
				t.Fatalf("%s v%d: %v", product, version, err)
			}
			p := c.product
			measured, _ := sp.Measurement()
			want := map[string]any{
				"version": version, "vmpl": uint32(2), "policy": uint64(testPolicy), "svn": uint32(0),
				"measurement": measured[:], "data": testReportData[:], "host data": make([]byte, 32),
				"chip": c.ID[:], "platform": p.platformInfo, "signer": uint32(0), "algo": uint32(1),
				"current": p.version(), "reported": p.version(), "committed": p.version(), "launch": p.version(),
				"cpuid":    abi.FmsToCpuid1Eax(p.family, p.model, p.stepping),
				"firmware": [6]uint32{uint32(p.major), uint32(p.minor), uint32(p.build), uint32(p.major), uint32(p.minor), uint32(p.build)},
				"id ma":    bytes.Repeat([]byte{0xff}, 32),
			}
			got := map[string]any{
				"version": r.Version, "vmpl": r.Vmpl, "policy": r.Policy, "svn": r.GuestSvn,
				"measurement": r.Measurement, "data": r.ReportData, "host data": r.HostData,
				"chip": r.ChipId, "platform": r.PlatformInfo, "signer": r.SignerInfo, "algo": r.SignatureAlgo,
				"current": r.CurrentTcb, "reported": r.ReportedTcb, "committed": r.CommittedTcb, "launch": r.LaunchTcb,
				"cpuid":    r.Cpuid1EaxFms,
				"firmware": [6]uint32{r.CurrentMajor, r.CurrentMinor, r.CurrentBuild, r.CommittedMajor, r.CommittedMinor, r.CommittedBuild},
				"id ma":    r.ReportIdMa,
			}
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("%s v%d (-want +got):\n%s", product, version, d)
			}
			mitigations := [2]uint64{r.LaunchMitVector, r.CurrentMitVector}
			if wanted := [2]uint64{p.mitigations, p.mitigations}; version == 5 && mitigations != wanted {
				t.Errorf("%s v%d: mitigations %x, expected %x", product, version, mitigations, wanted)
			}
		}
	}
}

func TestReportID(t *testing.T) {
	sp := launchedSP(t, testChip(t, "Genoa"), SPOptions{})
	id := func() [32]byte {
		t.Helper()
		raw, err := sp.Report(0, testReportData)
		if err != nil {
			t.Fatal(err)
		}
		return [32]byte(raw[reportReportID:])
	}
	first := id()
	if id() != first {
		t.Error("REPORT_ID changed within a launch")
	}
	if err := sp.Launch(testSequence(), LaunchParams{Policy: testPolicy}); err != nil {
		t.Fatal(err)
	}
	if second := id(); second == first || second == [32]byte{} {
		t.Error("two launches have one REPORT_ID")
	}
}

func TestHostData(t *testing.T) {
	sp := launchedSP(t, testChip(t, "Genoa"), SPOptions{})
	p := LaunchParams{Policy: testPolicy, HostData: [32]byte{9, 31: 8}}
	if err := sp.Launch(testSequence(), p); err != nil {
		t.Fatal(err)
	}
	raw, err := sp.Report(0, testReportData)
	if err != nil {
		t.Fatal(err)
	}
	r, err := attest.ParseReport(raw)
	if err != nil {
		t.Fatal(err)
	}
	if r.HostData != p.HostData {
		t.Errorf("found %x", r.HostData)
	}
}

// wantStatus checks that the AMD-SP refused a command, and how.
func wantStatus(t *testing.T, err error, command string, status Status, words string) {
	t.Helper()
	var f *FirmwareError
	if !errors.As(err, &f) || f.Command != command || f.Status != status || !strings.Contains(err.Error(), words) {
		t.Errorf("found %v, expected %s: %s: ...%s...", err, command, status, words)
	}
}

func TestPrivilege(t *testing.T) {
	sp := launchedSP(t, testChip(t, "Genoa"), SPOptions{})
	for requester := range uint32(5) {
		for vmpl := range uint32(5) {
			raw, err := sp.ReportFrom(requester, vmpl, testReportData)
			if requester <= vmpl && vmpl <= 3 {
				if err != nil || raw[reportVMPL] != byte(vmpl) {
					t.Errorf("VMPL %d asks for %d: %v", requester, vmpl, err)
				}
				continue
			}
			wantStatus(t, err, msgReportReq, StatusInvalidParam, "expected")
		}
	}
	_, err := sp.ReportFrom(1, 0xffffffff, testReportData)
	wantStatus(t, err, msgReportReq, StatusInvalidParam, "expected 0 to 3")

	fresh, err := NewSP(testChip(t, "Genoa"), SPOptions{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = fresh.Report(0, testReportData)
	wantStatus(t, err, msgReportReq, StatusInvalidGuestState, "no guest")
	if _, ok := fresh.Measurement(); ok {
		t.Error("a measurement without a launch")
	}
}

func TestGuestPolicy(t *testing.T) {
	for _, c := range []struct {
		policy uint64
		status Status
		words  string
	}{
		{0x30000, "", ""},
		{0x20000, "", ""}, // no SMT
		{0xb0000, "", ""}, // debugging: the verifier's to refuse
		{0x0, StatusInvalidParam, "bit 17 is 0"},
		{0x10000, StatusInvalidParam, "bit 17 is 0"},
		{0x30000 | 1<<26, StatusInvalidParam, "reserved"},
		{0x30000 | 1<<63, StatusInvalidParam, "reserved"},
		{0x30138, StatusPolicyFailure, "ABI 1.56 is asked for, the firmware has 1.55"},
		{0x30200, StatusPolicyFailure, "ABI 2.0"},
		{0x30137, "", ""}, // 1.55, what it has
		{0x300ff, "", ""}, // 0.255, below 1.0
		{0x30000 | 1<<22, StatusPolicyFailure, "AES-256-XTS"},
		{0x30000 | 1<<23, StatusPolicyFailure, "RAPL"},
		{0x30000 | 1<<24, StatusPolicyFailure, "ciphertext hiding"},
		{0x30000 | 1<<25, "", ""},
	} {
		sp := launchedSP(t, testChip(t, "Genoa"), SPOptions{})
		err := sp.Launch(testSequence(), LaunchParams{Policy: c.policy})
		if c.status == "" {
			if err != nil {
				t.Errorf("%#x: %v", c.policy, err)
			}
			continue
		}
		wantStatus(t, err, cmdLaunchStart, c.status, c.words)
		if _, ok := sp.Measurement(); ok {
			t.Errorf("%#x: the guest before is still there", c.policy)
		}
	}
	if err := launchedSP(t, testChip(t, "Turin"), SPOptions{}).Launch(testSequence(), LaunchParams{Policy: 0x3013a}); err != nil {
		t.Errorf("Turin, ABI 1.58: %v", err)
	}
}

func TestMalformedSequence(t *testing.T) {
	sp := launchedSP(t, testChip(t, "Genoa"), SPOptions{})
	seq := testSequence()
	seq.Steps[0].GPA++
	wantStatus(t, sp.Launch(seq, LaunchParams{Policy: testPolicy}), cmdLaunchUpdate, StatusInvalidParam, "not a multiple of 4096")
}

func TestReportVersions(t *testing.T) {
	c := testChip(t, "Genoa")
	for _, v := range []uint32{1, 2, 4, 6} {
		if _, err := NewSP(c, SPOptions{ReportVersion: v}); err == nil {
			t.Errorf("version %d was taken", v)
		}
	}
	raw, err := launchedSP(t, c, SPOptions{}).Report(0, testReportData)
	if err != nil || raw[reportVersion] != 5 {
		t.Errorf("version 0: found %d (%v), expected 5", raw[reportVersion], err)
	}
}

// signedBlock makes an ID block for the test sequence.
func signedBlock(t *testing.T, change func(*measure.IDBlock), author bool) (block, auth []byte, id, authorID measure.Digest) {
	t.Helper()
	digest, err := testSequence().LaunchDigest()
	if err != nil {
		t.Fatal(err)
	}
	b := &measure.IDBlock{LaunchDigest: digest, FamilyID: [16]byte{1}, ImageID: [16]byte{2}, GuestSVN: 3, Policy: testPolicy}
	if change != nil {
		change(b)
	}
	key := func() *ecdsa.PrivateKey {
		k, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	o := measure.SignOptions{IDKey: key()}
	if author {
		k := key()
		o.AuthorKey = k
		if authorID, err = measure.IDKeyDigest(&k.PublicKey); err != nil {
			t.Fatal(err)
		}
	}
	a, err := measure.SignIDBlock(b, o)
	if err != nil {
		t.Fatal(err)
	}
	if auth, err = a.Encode(); err != nil {
		t.Fatal(err)
	}
	if id, err = measure.IDKeyDigest(a.IDKey); err != nil {
		t.Fatal(err)
	}
	return b.Encode(), auth, id, authorID
}

func TestIDBlock(t *testing.T) {
	sp := launchedSP(t, testChip(t, "Genoa"), SPOptions{})
	for _, c := range []struct {
		name               string
		inAuth, authorFlag bool
	}{
		{"ID key alone", false, false},
		{"author key", true, true},
		{"author key that is not enabled", true, false},
	} {
		block, auth, id, author := signedBlock(t, nil, c.inAuth)
		if err := sp.Launch(testSequence(), LaunchParams{Policy: testPolicy, IDBlock: block, IDAuth: auth, AuthorKey: c.authorFlag}); err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		raw, err := sp.Report(0, testReportData)
		if err != nil {
			t.Fatal(err)
		}
		r, err := attest.ParseReport(raw)
		if err != nil {
			t.Fatal(err)
		}
		if !c.authorFlag {
			author = measure.Digest{}
		}
		if r.FamilyID != [16]byte{1} || r.ImageID != [16]byte{2} || r.GuestSVN != 3 || r.IDKeyDigest != id ||
			r.AuthorKeyDigest != author || r.SignerInfo.AuthorKeyEnabled() != c.authorFlag {
			t.Errorf("%s: found %+v", c.name, r)
		}
	}
}

func TestIDBlockRefused(t *testing.T) {
	sp := launchedSP(t, testChip(t, "Genoa"), SPOptions{})
	good, goodAuth, _, _ := signedBlock(t, nil, true)
	_, foreignAuth, _, _ := signedBlock(t, nil, true)
	digest, digestAuth, _, _ := signedBlock(t, func(b *measure.IDBlock) { b.LaunchDigest[0] ^= 1 }, false)
	policy, policyAuth, _, _ := signedBlock(t, func(b *measure.IDBlock) { b.Policy |= 1 << 19 }, false)
	_, noAuthor, _, _ := signedBlock(t, nil, false)
	badAuthor := bytes.Clone(goodAuth)
	copy(badAuthor[0x680:0x880], foreignAuth[0x680:0x880]) // the author key's signature over another ID key
	version := bytes.Clone(good)
	version[0x50]++

	for _, c := range []struct {
		name        string
		block, auth []byte
		author      bool
		status      Status
		words       string
	}{
		{"changed after signing", append(bytes.Clone(good[:0x30]), append([]byte{7}, good[0x31:]...)...), goodAuth, false, StatusBadSignature, "over the ID block"},
		{"author's signature", good, badAuthor, true, StatusBadSignature, "author key's signature"},
		{"digest", digest, digestAuth, false, StatusBadMeasurement, "launch digest is"},
		{"policy", policy, policyAuth, false, StatusPolicyFailure, "guest policy is 0x30000, the ID block expects 0xb0000"},
		{"version", version, goodAuth, false, StatusInvalidParam, "version 2"},
		{"no author key", good, noAuthor, true, StatusInvalidParam, "the author key is enabled"},
		{"block alone", good, nil, false, StatusInvalidParam, "go together"},
		{"auth alone", nil, goodAuth, false, StatusInvalidParam, "go together"},
		{"short block", good[1:], goodAuth, false, StatusInvalidParam, "95 bytes"},
		{"short auth", good, goodAuth[1:], false, StatusInvalidParam, "4095 bytes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := sp.Launch(testSequence(), LaunchParams{Policy: testPolicy, IDBlock: c.block, IDAuth: c.auth, AuthorKey: c.author})
			wantStatus(t, err, cmdLaunchFinish, c.status, c.words)
			if _, ok := sp.Measurement(); ok {
				t.Error("the guest was launched")
			}
		})
	}
	// An author's wrong signature is nothing to a firmware that is not told to
	// look.
	if err := sp.Launch(testSequence(), LaunchParams{Policy: testPolicy, IDBlock: good, IDAuth: badAuthor}); err != nil {
		t.Error(err)
	}
}

// The simulated machines are up to date by the verifier's own table of floors.
func TestTCBsMeetFloors(t *testing.T) {
	floors := attest.DefaultFloors()
	for name, p := range products {
		f := floors.Find(attest.CPUID{Family: p.family, Model: p.model, Stepping: p.stepping})
		if f == nil {
			t.Errorf("%s: no row in the table of floors", name)
			continue
		}
		layout := attest.TCBLayoutMilan
		if p.fmc {
			layout = attest.TCBLayoutTurin
		}
		got, err := layout.Split(attest.RawTCB(p.version()))
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		fmc := func(t attest.TCB) uint8 {
			if t.FMC == nil {
				return 0
			}
			return *t.FMC
		}
		if fmc(got) < fmc(f.TCB) || got.Bootloader < f.TCB.Bootloader || got.TEE < f.TCB.TEE || got.SNP < f.TCB.SNP || got.Microcode < f.TCB.Microcode {
			t.Errorf("%s: %v, the floor is %v", name, got, f.TCB)
		}
	}
}
