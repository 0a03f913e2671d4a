package attest_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/evtpm/evtpm/attest"
	"github.com/evtpm/evtpm/attest/attesttest"
	"github.com/evtpm/evtpm/attest/evidence"
)

var (
	reportData  = is(attest.CheckReportData, attest.ReasonReportData)
	ekMismatch  = is(attest.CheckEKBound, attest.ReasonEKMismatch)
	badManifest = is(attest.CheckManifest, attest.ReasonManifest)
)

func TestV01_EKIsNotTheManifests(t *testing.T) {
	for _, binding := range []string{evidence.BindingSVSM, evidence.BindingSVSMServices} {
		m := genoa()
		m.Binding = binding
		other := attesttest.NewVTPM(5, false)
		m.EditEvidence = func(ev *evidence.Evidence) { ev.EKPublic = other.EKPublic() }
		want(t, judge(t, m), ekMismatch)
	}
	// The paper's binding covers the EK itself.
	m := genoa()
	m.Binding = evidence.BindingNV
	m.EditEvidence = func(ev *evidence.Evidence) { ev.EKPublic = attesttest.NewVTPM(5, false).EKPublic() }
	want(t, judge(t, m), reportData)
}

func TestV02_ManifestChanged(t *testing.T) {
	m := withEvidence(func(ev *evidence.Evidence) { ev.Manifest[100] ^= 1 })
	want(t, judge(t, m), reportData, ekMismatch)
	m.Binding = evidence.BindingSVSMServices
	m.EditEvidence = func(ev *evidence.Evidence) { ev.Manifest[len(ev.Manifest)-1] ^= 1 } // the other service's
	want(t, judge(t, m), reportData)
}

func TestV03_ManifestTruncatedOrLonger(t *testing.T) {
	good := genoa().Manifest()
	for n := range len(good) {
		if testing.Short() && n > 8 && n%29 != 0 && n < len(good)-2 {
			continue
		}
		m := genoa()
		m.EditManifest = func(b []byte) []byte { return b[:n] }
		reason := badManifest
		if n == 0 {
			reason = is(attest.CheckManifest, attest.ReasonManifestNone)
		}
		want(t, judge(t, m), reason)
	}
	m := genoa()
	m.EditManifest = func(b []byte) []byte { return append(b, 0) }
	want(t, judge(t, m), badManifest)
}

// manifest1 is a manifest of version 1.
func manifest1(version, count uint32, keys ...[]byte) []byte {
	be := binary.BigEndian
	out := be.AppendUint32(be.AppendUint32(nil, version), count)
	for _, k := range keys {
		out = append(be.AppendUint16(out, uint16(len(k))), k...)
	}
	return out
}

// versions is a machine with a manifest of version 1.
func versioned(claimed uint32, edit func(m *attesttest.Machine) []byte) *attesttest.Machine {
	m := genoa()
	m.EditManifest = func([]byte) []byte { return edit(m) }
	m.EditEvidence = func(ev *evidence.Evidence) { ev.ManifestVersion = claimed }
	return m
}

func acceptVersion1(p *attest.Policy) { p.VTPM.ManifestVersions = []uint32{0, 1} }

func keysOf(m *attesttest.Machine) (ek, ak []byte) {
	return tpm2.Marshal(m.TPM.EK), tpm2.Marshal(m.TPM.AK)
}

func TestV04_ManifestVersion(t *testing.T) {
	version := is(attest.CheckManifest, attest.ReasonManifestVer)
	good := func(m *attesttest.Machine) []byte { ek, ak := keysOf(m); return manifest1(1, 2, ek, ak) }
	want(t, judgeWith(t, versioned(1, good), acceptVersion1))
	want(t, judge(t, versioned(1, good)), version) // the default policy takes 0 alone
	want(t, judgeWith(t, versioned(2, good), acceptVersion1), version)
	// Version 1 claimed for version 0's bytes, and the reverse.
	want(t, judgeWith(t, versioned(1, func(m *attesttest.Machine) []byte { ek, _ := keysOf(m); return ek }), acceptVersion1), badManifest)
	want(t, judgeWith(t, versioned(0, good), acceptVersion1), badManifest)
	// The blob names another version than the evidence.
	other := func(m *attesttest.Machine) []byte { ek, ak := keysOf(m); return manifest1(0, 2, ek, ak) }
	want(t, judgeWith(t, versioned(1, other), acceptVersion1), badManifest)
}

func TestV05_ManifestCounts(t *testing.T) {
	for name, edit := range map[string]func(ek, ak []byte) []byte{
		"no keys":             func(_, _ []byte) []byte { return manifest1(1, 0) },
		"four billion keys":   func(ek, ak []byte) []byte { return manifest1(1, 0xFFFFFFFF, ek, ak) },
		"17 keys":             func(ek, _ []byte) []byte { return manifest1(1, 17, bytesTimes(ek, 17)...) },
		"one key too few":     func(ek, _ []byte) []byte { return manifest1(1, 2, ek) },
		"one key too many":    func(ek, ak []byte) []byte { return manifest1(1, 1, ek, ak) },
		"a key cut short":     func(ek, _ []byte) []byte { return manifest1(1, 1, ek[:len(ek)-1]) },
		"size beyond the end": func(ek, _ []byte) []byte { b := manifest1(1, 1, ek); b[8], b[9] = 0xFF, 0xFF; return b },
		"64 KiB and more":     func(ek, _ []byte) []byte { return append(manifest1(1, 1, ek), make([]byte, 64<<10)...) },
	} {
		t.Run(name, func(t *testing.T) {
			m := versioned(1, func(m *attesttest.Machine) []byte { return edit(keysOf(m)) })
			want(t, judgeWith(t, m, acceptVersion1), badManifest)
		})
	}
	// One key is enough, sixteen are not too many; the EK must be among them.
	one := func(m *attesttest.Machine) []byte { ek, _ := keysOf(m); return manifest1(1, 1, ek) }
	want(t, judgeWith(t, versioned(1, one), acceptVersion1))
	many := func(m *attesttest.Machine) []byte {
		ek, ak := keysOf(m)
		return manifest1(1, 16, append(bytesTimes(ak, 15), ek)...)
	}
	want(t, judgeWith(t, versioned(1, many), acceptVersion1))
	none := func(m *attesttest.Machine) []byte { _, ak := keysOf(m); return manifest1(1, 1, ak) }
	want(t, judgeWith(t, versioned(1, none), acceptVersion1), ekMismatch)
}

func bytesTimes(b []byte, n int) [][]byte {
	var out [][]byte
	for range n {
		out = append(out, b)
	}
	return out
}

func TestV06_ServicesManifest(t *testing.T) {
	le := binary.LittleEndian
	for name, edit := range map[string]func([]byte) []byte{
		"header guid":                 func(b []byte) []byte { b[0] ^= 1; return b },
		"total length":                func(b []byte) []byte { le.PutUint32(b[16:], uint32(len(b)+1)); return b },
		"four billion entries":        func(b []byte) []byte { le.PutUint32(b[20:], 0xFFFFFFFF); return b },
		"65 entries":                  func(b []byte) []byte { le.PutUint32(b[20:], 65); return b },
		"an entry more than fits":     func(b []byte) []byte { le.PutUint32(b[20:], 60); return b },
		"entry of four gigabytes":     func(b []byte) []byte { le.PutUint32(b[24+20:], 0xFFFFFFFF); return b },
		"entry inside the entries":    func(b []byte) []byte { le.PutUint32(b[24+16:], 24); return b },
		"gap before an entry":         func(b []byte) []byte { le.PutUint32(b[24+16:], le.Uint32(b[24+16:])+1); return b },
		"entries overlap":             func(b []byte) []byte { le.PutUint32(b[48+16:], le.Uint32(b[48+16:])-1); return b },
		"bytes behind the last entry": func(b []byte) []byte { le.PutUint32(b[48+20:], le.Uint32(b[48+20:])-1); return b },
		"guid twice":                  func(b []byte) []byte { copy(b[48:64], b[24:40]); return b },
		"header cut short":            func(b []byte) []byte { return b[:23] },
		"trailing byte": func(b []byte) []byte {
			return append(b, 0)
		},
		"64 KiB and more": func([]byte) []byte {
			return attesttest.Services(attesttest.TableEntry{GUID: attesttest.GUIDVTPM, Data: make([]byte, 64<<10)})
		},
		"EK cut short": func([]byte) []byte {
			return attesttest.Services(attesttest.TableEntry{GUID: attesttest.GUIDVTPM, Data: genoa().Manifest()[:313]})
		},
	} {
		t.Run(name, func(t *testing.T) {
			m := genoa()
			m.Binding = evidence.BindingSVSMServices
			m.EditManifest = edit
			want(t, judge(t, m), badManifest)
		})
	}
	m := genoa()
	m.Binding = evidence.BindingSVSMServices
	m.EditManifest = func([]byte) []byte {
		return attesttest.Services(attesttest.TableEntry{GUID: [16]byte{1}, Data: []byte("x")})
	}
	want(t, judge(t, m), is(attest.CheckManifest, attest.ReasonManifestNoVTPM))
	m.EditManifest = func([]byte) []byte { return attesttest.Services() }
	want(t, judge(t, m), is(attest.CheckManifest, attest.ReasonManifestNoVTPM))
}

func TestS62_ServiceManifestPassedOffAsAnother(t *testing.T) {
	// The manifest of all services under the name of the single one, and back:
	// REPORT_DATA is right in both cases, and the kind is not what it says.
	m := genoa()
	m.Binding = evidence.BindingSVSMServices
	m.EditEvidence = func(ev *evidence.Evidence) { ev.Binding = evidence.BindingSVSM }
	want(t, judge(t, m), badManifest)
	m = genoa()
	m.EditEvidence = func(ev *evidence.Evidence) { ev.Binding = evidence.BindingSVSMServices }
	want(t, judge(t, m), badManifest)
	// Another service's own manifest.
	m = genoa()
	m.EditManifest = func([]byte) []byte { return []byte("UEFI variables: 1") }
	want(t, judge(t, m), badManifest)
}

func TestV07_WrongFormula(t *testing.T) {
	m := genoa()
	nonce := m.Evidence().Nonce
	manifest := m.Manifest()
	join := func(b ...[]byte) []byte { return bytes.Join(b, nil) }
	sum256 := sha256.Sum256(join(nonce, manifest))
	for name, data := range map[string][]byte{
		"SHA-256":            sum256[:],
		"nonce last":         sum512(join(manifest, nonce)),
		"32 bytes of nonce":  sum512(join(nonce[:32], manifest)),
		"no nonce":           sum512(manifest),
		"TPM2B instead":      sum512(join(nonce, m.TPM.EKPublic())),
		"the paper's":        sum512(m.TPM.EKPublic()),
		"nonce in the clear": nonce,
		"zeros":              make([]byte, 64),
	} {
		t.Run(name, func(t *testing.T) {
			m := genoa()
			m.EditReport = func(r attesttest.Report) {
				r.Put(attesttest.OffReportData, make([]byte, 64))
				r.Put(attesttest.OffReportData, data)
			}
			want(t, judge(t, m), reportData)
		})
	}
}

func sum512(b []byte) []byte {
	s := sha512.Sum512(b)
	return s[:]
}

// withEK is a machine whose vTPM has another EK, in manifest and evidence alike.
func withEK(edit func(*tpm2.TPMTPublic)) *attesttest.Machine {
	m := genoa()
	edit(&m.TPM.EK)
	return m
}

func TestV08_EKTemplate(t *testing.T) {
	template := is(attest.CheckEK, attest.ReasonEKTemplate)
	for name, edit := range map[string]func(*tpm2.TPMTPublic){
		"not restricted":     func(p *tpm2.TPMTPublic) { p.ObjectAttributes.Restricted = false },
		"not decrypt":        func(p *tpm2.TPMTPublic) { p.ObjectAttributes.Decrypt = false },
		"sign":               func(p *tpm2.TPMTPublic) { p.ObjectAttributes.SignEncrypt = true },
		"not fixedTPM":       func(p *tpm2.TPMTPublic) { p.ObjectAttributes.FixedTPM = false },
		"not fixedParent":    func(p *tpm2.TPMTPublic) { p.ObjectAttributes.FixedParent = false },
		"imported":           func(p *tpm2.TPMTPublic) { p.ObjectAttributes.SensitiveDataOrigin = false },
		"userWithAuth":       func(p *tpm2.TPMTPublic) { p.ObjectAttributes.UserWithAuth = true },
		"no adminWithPolicy": func(p *tpm2.TPMTPublic) { p.ObjectAttributes.AdminWithPolicy = false },
		"other policy":       func(p *tpm2.TPMTPublic) { p.AuthPolicy.Buffer = bytes.Repeat([]byte{1}, 32) },
		"no policy":          func(p *tpm2.TPMTPublic) { p.AuthPolicy.Buffer = nil },
		"exponent 3":         func(p *tpm2.TPMTPublic) { rsaParms(p).Exponent = 3 },
		"exponent in full":   func(p *tpm2.TPMTPublic) { rsaParms(p).Exponent = 65537 },
		"RSA-1024": func(p *tpm2.TPMTPublic) {
			rsaParms(p).KeyBits = 1024
			p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: bytes.Repeat([]byte{0xC1}, 128)})
		},
		"modulus with a leading zero": func(p *tpm2.TPMTPublic) {
			p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: append([]byte{0}, bytes.Repeat([]byte{0xC1}, 255)...)})
		},
		"even modulus": func(p *tpm2.TPMTPublic) {
			p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: bytes.Repeat([]byte{0xC2}, 256)})
		},
		"ECC": func(p *tpm2.TPMTPublic) {
			*p = tpm2.ECCEKTemplate
			p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
				X: tpm2.TPM2BECCParameter{Buffer: make([]byte, 32)}, Y: tpm2.TPM2BECCParameter{Buffer: make([]byte, 32)},
			})
		},
	} {
		t.Run(name, func(t *testing.T) { want(t, judge(t, withEK(edit)), template) })
	}
}

func rsaParms(p *tpm2.TPMTPublic) *tpm2.TPMSRSAParms {
	parms, err := p.Parameters.RSADetail()
	if err != nil {
		panic(err)
	}
	fresh := *parms
	p.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &fresh)
	return &fresh
}

func TestV09_EKNotCanonical(t *testing.T) {
	malformed := is(attest.CheckEK, attest.ReasonEKMalformed)
	ek := genoa().TPM.EKPublic()
	for name, b := range map[string][]byte{
		"empty":                nil,
		"trailing byte":        append(bytes.Clone(ek), 0),
		"size one less":        func() []byte { b := bytes.Clone(ek); b[1]--; return b }(),
		"cut short":            ek[:len(ek)-1],
		"no size":              ek[2:],
		"reserved attribute":   func() []byte { b := bytes.Clone(ek); b[2+4] = 0x80; return b }(),
		"unknown type":         func() []byte { b := bytes.Clone(ek); b[3] = 0x25; return b }(),
		"scheme that is none":  func() []byte { b := bytes.Clone(ek); b[2+48], b[2+49] = 0x12, 0x34; return b }(),
		"trailing byte inside": func() []byte { b := append(bytes.Clone(ek), 0); b[1]++; return b }(),
	} {
		t.Run(name, func(t *testing.T) {
			want(t, judge(t, withEvidence(func(ev *evidence.Evidence) { ev.EKPublic = b })), malformed)
		})
	}
	// A signing scheme in an EK parses, and is not the template.
	m := withEK(func(p *tpm2.TPMTPublic) {
		rsaParms(p).Scheme = tpm2.TPMTRSAScheme{Scheme: tpm2.TPMAlgRSASSA,
			Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgRSASSA, &tpm2.TPMSSigSchemeRSASSA{HashAlg: tpm2.TPMAlgSHA256})}
	})
	want(t, judge(t, m), is(attest.CheckEK, attest.ReasonEKTemplate))
}

// registry is a registry file of the test's own.
func registry(t *testing.T) *attest.FileRegistry {
	return attest.NewFileRegistry(filepath.Join(t.TempDir(), "eks.json"))
}

// launched is a machine of a launch: a report id, a boot id and an EK.
func launched(reportID byte, bootID string, ek int) *attesttest.Machine {
	m := genoa()
	m.TPM = attesttest.NewVTPM(ek, false)
	m.TPM.Extend(m.Events)
	m.BootID = bootID
	m.EditReport = func(r attesttest.Report) { r.Put(attesttest.OffReportID, bytes.Repeat([]byte{reportID}, 32)) }
	return m
}

func judgeSeen(t *testing.T, m *attesttest.Machine, r attest.Registry) *attest.Verdict {
	t.Helper()
	o := options(m)
	o.Registry = r
	return verify(t, m, o)
}

var (
	reused    = is(attest.CheckLifecycle, attest.ReasonEKReused)
	idChanged = is(attest.CheckLifecycle, attest.ReasonReportID)
	backwards = is(attest.CheckQuoteClock, attest.ReasonClockBackwards)
)

func TestV10_EKSeenInAnotherLaunch(t *testing.T) {
	r := registry(t)
	want(t, judgeSeen(t, launched(1, "boot-1", 3), r))
	want(t, judgeSeen(t, launched(1, "boot-1", 3), r)) // the same launch again
	want(t, judgeSeen(t, launched(2, "boot-2", 3), r), reused)
	want(t, judgeSeen(t, launched(2, "boot-2", 3), r), reused) // and it stays refused
	want(t, judgeSeen(t, launched(3, "boot-3", 5), r))         // a fresh EK
	// What was refused is not remembered: it could otherwise shut out the owner.
	bad := launched(4, "boot-4", 6)
	bad.EditSigned = func(r attesttest.Report) { r[attesttest.OffSignature] ^= 1 }
	want(t, judgeSeen(t, bad, r), signatureInvalid)
	want(t, judgeSeen(t, launched(5, "boot-5", 6), r))
}

func TestV11_EKInTwoMachinesAtOnce(t *testing.T) {
	r := registry(t)
	var wg sync.WaitGroup
	var trusted [8]bool
	for i := range trusted {
		m := launched(byte(i+1), "boot-"+string(rune('a'+i)), 3)
		ev, g, o := m.Evidence(), m.Golden(), options(m)
		o.Registry = r
		wg.Go(func() {
			v, err := attest.Verify(context.Background(), ev, g, o)
			trusted[i] = err == nil && v.Trusted()
		})
	}
	wg.Wait()
	n := 0
	for _, ok := range trusted {
		if ok {
			n++
		}
	}
	if n != 1 {
		t.Errorf("%d of %d machines with one EK were trusted, expected 1", n, len(trusted))
	}
}

func TestS60_ReportID(t *testing.T) {
	r := registry(t)
	want(t, judgeSeen(t, launched(1, "boot-1", 3), r))
	// Another report id within one boot, with a new EK.
	want(t, judgeSeen(t, launched(2, "boot-1", 5), r), idChanged)
	// The boot id is the guest's word: an empty one compares with nothing.
	r = registry(t)
	want(t, judgeSeen(t, launched(1, "", 3), r))
	want(t, judgeSeen(t, launched(2, "", 5), r))
}

func TestV12_PlainTPMPassedOff(t *testing.T) {
	// Evidence of a TPM without any manifest.
	m := withEvidence(func(ev *evidence.Evidence) { ev.Manifest = nil })
	want(t, judge(t, m), is(attest.CheckManifest, attest.ReasonManifestNone), reportData)
	// A second TPM's EK beside the manifest of the vTPM.
	m = genoa()
	other := attesttest.NewVTPM(5, true)
	other.Extend(m.Events)
	m.EditEvidence = func(ev *evidence.Evidence) { ev.EKPublic = other.EKPublic() }
	want(t, judge(t, m), ekMismatch)
	// A manifest where the binding has none.
	m = genoa()
	m.Binding = evidence.BindingNV
	m.EditEvidence = func(ev *evidence.Evidence) { ev.Manifest = []byte{1} }
	want(t, judge(t, m), is(attest.CheckManifest, attest.ReasonManifestExtra))
	m.EditEvidence = func(ev *evidence.Evidence) { ev.ManifestVersion = 1 }
	want(t, judge(t, m), is(attest.CheckManifest, attest.ReasonManifestExtra))
	// An unknown binding.
	m = withEvidence(func(ev *evidence.Evidence) { ev.Binding = "tpm" })
	want(t, judge(t, m), is(attest.CheckBinding, attest.ReasonBinding))
	// One that the policy does not take.
	m = genoa()
	m.Binding = evidence.BindingNV
	v := judgeWith(t, m, func(p *attest.Policy) { p.VTPM.Bindings = []string{evidence.BindingSVSM} })
	want(t, v, is(attest.CheckBinding, attest.ReasonBinding))
	// Real evidence of a TPM without a TEE is no evidence of ours.
	data := readFile(t, filepath.Join(dataDir(t), "azure-vtpm", "trustee__tpm_evidence.json"))
	if _, err := evidence.Parse(data); err == nil {
		t.Error("evidence of a plain TPM was read as ours")
	}
}

func TestV13_GuestsReportOverItsOwnTPM(t *testing.T) {
	// The guest makes a TPM, a manifest with its EK, and asks for a report at its
	// own VMPL: everything fits but the level.
	for _, binding := range []string{evidence.BindingSVSM, evidence.BindingSVSMServices, evidence.BindingNV} {
		for _, level := range []uint32{1, 2, 3} {
			m := vmpl(level)
			m.Binding = binding
			want(t, judge(t, m), is(attest.CheckVMPL, attest.ReasonVMPLNotZero))
		}
	}
}

func TestV14_ReportInTheNVIndexReplaced(t *testing.T) {
	swap := func(report func(m *attesttest.Machine) []byte) *attest.Verdict {
		m := genoa()
		m.Binding = evidence.BindingNV
		m.EditEvidence = func(ev *evidence.Evidence) { ev.Report = report(m) }
		return judge(t, m)
	}
	// Garbage.
	wantAny(t, swap(func(*attesttest.Machine) []byte { return bytes.Repeat([]byte{0xA5}, 1184) }), is(attest.CheckReportVersion, attest.ReasonReportVersion))
	// An older boot's: another EK.
	old := attesttest.NewVTPM(5, false)
	want(t, swap(func(m *attesttest.Machine) []byte { return m.SignedReport([64]byte(sum512(old.EKPublic()))) }), reportData)
	// Another machine's.
	want(t, swap(func(m *attesttest.Machine) []byte {
		other := genoa()
		other.ChipID[0] ^= 0xFF
		return other.SignedReport([64]byte(sum512(m.TPM.EKPublic())))
	}), is(attest.CheckChipBinding, attest.ReasonChipIDMismatch))
	// The guest's own.
	want(t, swap(func(m *attesttest.Machine) []byte {
		m.EditReport = func(r attesttest.Report) { r.PutU32(attesttest.OffVMPL, 1) }
		return m.SignedReport([64]byte(sum512(m.TPM.EKPublic())))
	}), is(attest.CheckVMPL, attest.ReasonVMPLNotZero))
}

// live challenges a machine and judges the answer.
func live(t *testing.T, m *attesttest.Machine, activator *attesttest.VTPM, co attest.ChallengeOptions) (*attest.Session, *attest.Verdict) {
	t.Helper()
	s := challenge(t, m, activator, co)
	return s, judgeSession(t, m, s, s.Evidence)
}

func judgeSession(t *testing.T, m *attesttest.Machine, s *attest.Session, ev *evidence.Evidence) *attest.Verdict {
	t.Helper()
	o := options(m)
	o.Live = s
	v, err := attest.Verify(t.Context(), ev, m.Golden(), o)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

var notResident = is(attest.CheckAKResident, attest.ReasonAKNotResident)

func TestV15_AKNotInTheVTPM(t *testing.T) {
	m := genoa()
	_, v := live(t, m, m.TPM, attest.ChallengeOptions{})
	want(t, v)
	// The AK is another TPM's: the vTPM does not open a credential for it.
	m = genoa()
	owner := attesttest.NewVTPM(3, false)     // the vTPM, with an AK of its own
	m.TPM.AK = attesttest.NewVTPM(3, true).AK // what the guest claims
	_, v = live(t, m, owner, attest.ChallengeOptions{})
	wantAny(t, v, notResident)
	// A TPM with another EK answers.
	m = genoa()
	_, v = live(t, m, attesttest.NewVTPM(5, false), attest.ChallengeOptions{})
	want(t, v, notResident)
	// It was the TPM that refused, not a secret that differed.
	if f := found(v, attest.CheckAKResident); !strings.HasPrefix(f, "the guest's agent says ") {
		t.Errorf("found %q", f)
	}
	// Saved evidence cannot show it; a manifest that lists the AK can.
	saved := judge(t, genoa())
	if c := check(t, saved, attest.CheckAKResident); c.Status != attest.NotApplicable || c.Note != "only a live challenge can show this" {
		t.Errorf("check on saved evidence: %+v", c)
	}
	warned := func(v *attest.Verdict) bool {
		return strings.Contains(strings.Join(v.Warnings, "\n"), "does not show that the AK is in the vTPM")
	}
	if !warned(saved) || warned(v) {
		t.Errorf("warnings of saved evidence are %q, of a challenge %q", saved.Warnings, v.Warnings)
	}
	listed := versioned(1, func(m *attesttest.Machine) []byte { ek, ak := keysOf(m); return manifest1(1, 2, ek, ak) })
	v = judgeWith(t, listed, acceptVersion1)
	if c := check(t, v, attest.CheckAKResident); c.Status != attest.Passed || warned(v) {
		t.Errorf("check with the AK in the manifest: %+v", c)
	}
}

// check finds a check of a verdict.
func check(t *testing.T, v *attest.Verdict, name attest.CheckName) attest.Check {
	t.Helper()
	for _, c := range v.Checks {
		if c.Name == string(name) {
			return c
		}
	}
	t.Fatalf("no check %s", name)
	return attest.Check{}
}

func TestV17_AKAttributes(t *testing.T) {
	attributes := is(attest.CheckAK, attest.ReasonAKAttributes)
	for name, edit := range map[string]func(*tpm2.TPMAObject){
		"not restricted":  func(a *tpm2.TPMAObject) { a.Restricted = false },
		"not sign":        func(a *tpm2.TPMAObject) { a.SignEncrypt = false },
		"decrypt":         func(a *tpm2.TPMAObject) { a.Decrypt = true },
		"not fixedTPM":    func(a *tpm2.TPMAObject) { a.FixedTPM = false },
		"not fixedParent": func(a *tpm2.TPMAObject) { a.FixedParent = false },
		"imported":        func(a *tpm2.TPMAObject) { a.SensitiveDataOrigin = false },
		"duplicable":      func(a *tpm2.TPMAObject) { a.EncryptedDuplication = true },
	} {
		t.Run(name, func(t *testing.T) {
			m := genoa()
			edit(&m.TPM.AK.ObjectAttributes)
			want(t, judge(t, m), attributes)
		})
	}
	// What an AK may or may not have otherwise.
	m := genoa()
	m.TPM.AK.ObjectAttributes.NoDA = true
	want(t, judge(t, m))
	for name, b := range map[string][]byte{
		"empty": nil, "trailing byte": append(m.TPM.AKPublic(), 0), "cut short": m.TPM.AKPublic()[:100],
	} {
		t.Run(name, func(t *testing.T) {
			want(t, judge(t, withEvidence(func(ev *evidence.Evidence) { ev.AKPublic = b })), is(attest.CheckAK, attest.ReasonAKMalformed))
		})
	}
	algorithm := is(attest.CheckAK, attest.ReasonAKAlgorithm)
	for name, edit := range map[string]func(*tpm2.TPMTPublic){
		"no scheme":       func(p *tpm2.TPMTPublic) { rsaParms(p).Scheme = tpm2.TPMTRSAScheme{Scheme: tpm2.TPMAlgNull} },
		"SHA-1 scheme":    func(p *tpm2.TPMTPublic) { rsaParms(p).Scheme = rsassa(tpm2.TPMAlgSHA1) },
		"SHA-1 name":      func(p *tpm2.TPMTPublic) { p.NameAlg = tpm2.TPMAlgSHA1 },
		"exponent 3":      func(p *tpm2.TPMTPublic) { rsaParms(p).Exponent = 3 },
		"even modulus":    func(p *tpm2.TPMTPublic) { p.Unique = modulus(0xC2, 256) },
		"short modulus":   func(p *tpm2.TPMTPublic) { p.Unique = modulus(0xC1, 255) },
		"RSA-1024":        func(p *tpm2.TPMTPublic) { rsaParms(p).KeyBits = 1024; p.Unique = modulus(0xC1, 128) },
		"RSA-8192":        func(p *tpm2.TPMTPublic) { rsaParms(p).KeyBits = 8192; p.Unique = modulus(0xC1, 1024) },
		"storage key":     func(p *tpm2.TPMTPublic) { rsaParms(p).Symmetric = storageSymmetric() },
		"ECDSA for RSA":   func(p *tpm2.TPMTPublic) { rsaParms(p).Scheme = ecdsaForRSA() },
		"P-256 off curve": func(p *tpm2.TPMTPublic) { *p = offCurve() },
		"P-521": func(p *tpm2.TPMTPublic) {
			*p = attesttest.NewVTPM(3, true).AK
			eccParms(p).CurveID = tpm2.TPMECCNistP521
		},
	} {
		t.Run(name, func(t *testing.T) {
			m := genoa()
			edit(&m.TPM.AK)
			wantAny(t, judge(t, m), algorithm)
		})
	}
	// An AK on a curve is as good as an RSA one.
	m = genoa()
	m.TPM = attesttest.NewVTPM(3, true)
	m.TPM.Extend(m.Events)
	want(t, judge(t, m))
}

func TestV18_NameInTheCredential(t *testing.T) {
	// The credential is made for the Name that we compute of the evidence's AK. A
	// TPM that holds an AK of another Name cannot open it.
	m := genoa()
	holder := attesttest.NewVTPM(3, false)
	holder.AK.ObjectAttributes.NoDA = true // another public area, so another Name
	_, v := live(t, m, holder, attest.ChallengeOptions{})
	want(t, v, notResident)
}

func TestV19_ActivationSecret(t *testing.T) {
	for name, answer := range map[string]func(secret []byte) []byte{
		"wrong":         func([]byte) []byte { return bytes.Repeat([]byte{1}, 32) },
		"short":         func(s []byte) []byte { return s[:31] },
		"longer":        func(s []byte) []byte { return append(bytes.Clone(s), 0) },
		"empty":         func([]byte) []byte { return nil },
		"one bit":       func(s []byte) []byte { b := bytes.Clone(s); b[31] ^= 1; return b },
		"just zeros":    func([]byte) []byte { return make([]byte, 32) },
		"another's":     func([]byte) []byte { return sum512([]byte("other"))[:32] },
		"the right one": nil,
	} {
		t.Run(name, func(t *testing.T) {
			m := genoa()
			s := play(t, m, func(c net.Conn) error {
				return serve(c, m, func(a evidence.Activate) (evidence.FrameType, any) {
					secret, err := m.TPM.Activate(a.CredentialBlob, a.Secret)
					if err != nil {
						t.Error(err)
					}
					if answer != nil {
						secret = answer(secret)
					}
					return evidence.FrameActivated, evidence.Activated{CertInfo: secret}
				})
			})
			v := judgeSession(t, m, s, s.Evidence)
			if answer == nil {
				want(t, v)
			} else {
				want(t, v, notResident)
			}
		})
	}
	// Each challenge has a secret of its own: an old answer does not fit.
	m := genoa()
	var first []byte
	remember := func(a evidence.Activate) (evidence.FrameType, any) {
		if first == nil {
			first, _ = m.TPM.Activate(a.CredentialBlob, a.Secret)
		}
		return evidence.FrameActivated, evidence.Activated{CertInfo: first}
	}
	s := play(t, m, func(c net.Conn) error { return serve(c, m, remember) })
	want(t, judgeSession(t, m, s, s.Evidence))
	s = play(t, m, func(c net.Conn) error { return serve(c, m, remember) })
	want(t, judgeSession(t, m, s, s.Evidence), notResident)
}

// play challenges a guest whose agent is a function.
func play(t *testing.T, m *attesttest.Machine, agent func(net.Conn) error) *attest.Session {
	t.Helper()
	ours, theirs := net.Pipe()
	done := make(chan error, 1)
	go func() { done <- agent(theirs) }()
	s, err := attest.Challenge(t.Context(), ours, attest.ChallengeOptions{StepTimeout: 5 * time.Second})
	ours.Close() // an agent that still waits for something is wrong to
	if err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	return s
}

// serve plays an agent that answers activation as it likes.
func serve(c net.Conn, m *attesttest.Machine, activate func(evidence.Activate) (evidence.FrameType, any)) error {
	send := func(t evidence.FrameType, v any) error {
		b, err := json.Marshal(v)
		return errors.Join(err, evidence.WriteFrame(c, t, b))
	}
	receive := func(v any) error {
		_, b, err := evidence.ReadFrame(c, 0)
		return errors.Join(err, json.Unmarshal(b, v))
	}
	var challenge evidence.Challenge
	var credential evidence.Activate
	if err := errors.Join(send(evidence.FrameHello, evidence.Hello{}), receive(&challenge)); err != nil {
		return err
	}
	if err := errors.Join(send(evidence.FrameEvidence, m.Answer(challenge)), receive(&credential)); err != nil {
		return err
	}
	t, v := activate(credential)
	return send(t, v)
}

func TestV20_QuoteNonce(t *testing.T) {
	differs := is(attest.CheckQuoteNonce, attest.ReasonQuoteNonce)
	nonce := genoa().Evidence().Nonce
	right := sha256.Sum256(nonce)
	for name, extra := range map[string][]byte{
		"empty":      nil,
		"prefix":     right[:31],
		"padded":     append(bytes.Clone(right[:]), 0),
		"other":      bytes.Repeat([]byte{9}, 32),
		"bare nonce": nonce[:50], // a TPM takes no more
		"one bit":    func() []byte { b := bytes.Clone(right[:]); b[0] ^= 1; return b }(),
	} {
		t.Run(name, func(t *testing.T) {
			m := genoa()
			m.EditQuote = func(a *tpm2.TPMSAttest) { a.ExtraData.Buffer = extra }
			want(t, judge(t, m), differs)
		})
	}
	// A replayed quote: good in itself, made for another nonce.
	m := genoa()
	old := m.Answer(evidence.Challenge{Nonce: bytes.Repeat([]byte{5}, 64), PCRs: []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23}})
	m.EditEvidence = func(ev *evidence.Evidence) { ev.Quote, ev.QuoteSignature = old.Quote, old.QuoteSignature }
	want(t, judge(t, m), differs)
}

func TestV21_QuoteSignature(t *testing.T) {
	invalid := is(attest.CheckQuoteSignature, attest.ReasonQuoteSignature)
	algorithm := is(attest.CheckQuoteSignature, attest.ReasonQuoteAlgorithm)
	// By another key.
	m := genoa()
	m.EditEvidence = func(ev *evidence.Evidence) { ev.AKPublic = anotherAK() }
	want(t, judge(t, m), invalid)
	// Changed after signing.
	want(t, judge(t, withEvidence(func(ev *evidence.Evidence) { ev.Quote[len(ev.Quote)-1] ^= 1 })), invalid)
	for _, ecc := range []bool{false, true} {
		m := genoa()
		m.TPM = attesttest.NewVTPM(3, ecc)
		m.TPM.Extend(m.Events)
		for name, edit := range map[string]func([]byte) []byte{
			"bit of the signature": func(b []byte) []byte { b[len(b)-1] ^= 1; return b },
		} {
			t.Run(name, func(t *testing.T) {
				m.EditEvidence = func(ev *evidence.Evidence) { ev.QuoteSignature = edit(ev.QuoteSignature) }
				want(t, judge(t, m), invalid)
			})
		}
		for name, edit := range map[string]func([]byte) []byte{
			"empty":         func([]byte) []byte { return nil },
			"cut short":     func(b []byte) []byte { return b[:len(b)-1] },
			"trailing byte": func(b []byte) []byte { return append(b, 0) },
			"SHA-1":         func(b []byte) []byte { b[3] = 0x04; return b },
			"SHA-384":       func(b []byte) []byte { b[3] = 0x0C; return b },
			"other scheme":  func(b []byte) []byte { b[1] = 0x16; return b },
			"HMAC":          func(b []byte) []byte { b[1] = 0x05; return b },
		} {
			t.Run(name, func(t *testing.T) {
				m.EditEvidence = func(ev *evidence.Evidence) { ev.QuoteSignature = edit(ev.QuoteSignature) }
				want(t, judge(t, m), algorithm)
			})
		}
	}
	// The AK's other half of an ECDSA signature (n - s) verifies too: it is the
	// same statement by the same key, so nothing is gained by it.
}

func TestV22_NotAQuote(t *testing.T) {
	for name, c := range map[string]struct {
		edit   func(*tpm2.TPMSAttest)
		reason attest.Reason
	}{
		"magic":   {func(a *tpm2.TPMSAttest) { a.Magic = 0xFF544348 }, attest.ReasonQuoteMagic},
		"certify": {func(a *tpm2.TPMSAttest) { a.Type = tpm2.TPMSTAttestCertify; a.Attested = certifyInfo() }, attest.ReasonQuoteType},
		"time":    {func(a *tpm2.TPMSAttest) { a.Type = tpm2.TPMSTAttestTime; a.Attested = timeInfo() }, attest.ReasonQuoteType},
	} {
		t.Run(name, func(t *testing.T) {
			m := genoa()
			m.EditQuote = c.edit
			want(t, judge(t, m), is(attest.CheckQuoteForm, c.reason))
		})
	}
	malformed := is(attest.CheckQuoteForm, attest.ReasonQuoteMalformed)
	good := genoa().Evidence().Quote
	for n := range good {
		if testing.Short() && n%11 != 0 && n < len(good)-2 {
			continue
		}
		v := judge(t, withEvidence(func(ev *evidence.Evidence) { ev.Quote = ev.Quote[:n] }))
		wantAny(t, v, malformed)
		for _, name := range []attest.CheckName{attest.CheckQuoteNonce, attest.CheckPCRSelection, attest.CheckPCRDigest} {
			if c := check(t, v, name); c.Reason != string(attest.ReasonNotMade) || !strings.Contains(c.Note, "quote-form failed") {
				t.Errorf("%+v", c)
			}
		}
	}
	wantAny(t, judge(t, withEvidence(func(ev *evidence.Evidence) { ev.Quote = append(ev.Quote, 0) })), malformed)
	// Counts that do not fit: selections, and the flag of the clock.
	at := bytes.Index(good, []byte{0, 0, 0, 1, 0, 0x0B, 3})
	wantAny(t, judge(t, withEvidence(func(ev *evidence.Evidence) { copy(ev.Quote[at:], []byte{0xFF, 0xFF, 0xFF, 0xFF}) })), malformed)
	wantAny(t, judge(t, withEvidence(func(ev *evidence.Evidence) { copy(ev.Quote[at:], []byte{0, 0, 0, 17}) })), malformed)
	wantAny(t, judge(t, withEvidence(func(ev *evidence.Evidence) { ev.Quote[at-9] = 2 })), malformed)
}

func TestV23_PCRs(t *testing.T) {
	selection := is(attest.CheckPCRSelection, attest.ReasonPCRSelection)
	digest := is(attest.CheckPCRDigest, attest.ReasonPCRDigest)
	bank := is(attest.CheckPCRSelection, attest.ReasonPCRBank)
	form := is(attest.CheckPCRSelection, attest.ReasonPCRForm)
	replay := is(attest.CheckEventLogReplay, attest.ReasonLogReplay)
	golden := is(attest.CheckPCRGolden, attest.ReasonPCRGolden)

	// A value that is not the quoted one.
	want(t, judge(t, withEvidence(func(ev *evidence.Evidence) { ev.PCRs[12].Value = bytes.Repeat([]byte{1}, 32) })), digest)
	want(t, judge(t, withEvidence(func(ev *evidence.Evidence) { ev.PCRs[4].Value = bytes.Repeat([]byte{1}, 32) })), digest, replay, golden)
	// A PCR left out of the list, or of the quote.
	want(t, judge(t, withEvidence(func(ev *evidence.Evidence) { ev.PCRs = ev.PCRs[:23] })), selection, digest)
	m := genoa()
	m.EditQuote = func(a *tpm2.TPMSAttest) { quoteInfo(a).PCRSelect.PCRSelections[0].PCRSelect = []byte{0xFF, 0xFF, 0x7F} }
	want(t, judge(t, m), selection)
	m.EditQuote = func(a *tpm2.TPMSAttest) { quoteInfo(a).PCRSelect.PCRSelections = nil }
	want(t, judge(t, m), selection)
	m.EditQuote = func(a *tpm2.TPMSAttest) {
		s := quoteInfo(a).PCRSelect.PCRSelections
		quoteInfo(a).PCRSelect.PCRSelections = append(s, s[0])
	}
	want(t, judge(t, m), selection)
	// Another bank in the quote, in the evidence, or one that is too weak.
	m.EditQuote = func(a *tpm2.TPMSAttest) { quoteInfo(a).PCRSelect.PCRSelections[0].Hash = tpm2.TPMAlgSHA1 }
	want(t, judge(t, m), bank)
	v := judge(t, withEvidence(func(ev *evidence.Evidence) { ev.PCRBank = "sha1" }))
	wantAny(t, v, bank)
	v = judge(t, withEvidence(func(ev *evidence.Evidence) { ev.PCRBank = "sha384" }))
	wantAny(t, v, form)
	// A list out of order, with one twice, out of range, or with a short value.
	for name, edit := range map[string]func(*evidence.Evidence){
		"order":        func(ev *evidence.Evidence) { ev.PCRs[10], ev.PCRs[11] = ev.PCRs[11], ev.PCRs[10] },
		"twice":        func(ev *evidence.Evidence) { ev.PCRs[11] = ev.PCRs[10] },
		"out of range": func(ev *evidence.Evidence) { ev.PCRs[23].PCR = 24 },
		"a hundred":    func(ev *evidence.Evidence) { ev.PCRs = append(ev.PCRs, make([]evidence.PCR, 76)...) },
		"negative":     func(ev *evidence.Evidence) { ev.PCRs[0].PCR = -1 },
		"short value":  func(ev *evidence.Evidence) { ev.PCRs[11].Value = ev.PCRs[11].Value[:31] },
	} {
		t.Run(name, func(t *testing.T) { wantAny(t, judge(t, withEvidence(edit)), form) })
	}
	// None at all: with golden values and an event log that is noticed thrice.
	m = genoa()
	m.EditQuote = func(a *tpm2.TPMSAttest) {
		quoteInfo(a).PCRSelect.PCRSelections[0].PCRSelect = []byte{0, 0, 0}
		empty := sha256.Sum256(nil)
		quoteInfo(a).PCRDigest.Buffer = empty[:]
	}
	m.EditEvidence = func(ev *evidence.Evidence) { ev.PCRs = nil }
	want(t, judge(t, m), selection, replay, is(attest.CheckPCRGolden, attest.ReasonPCRMissing))
	// Other PCRs than those that a live challenge asked for.
	m = genoa()
	s := play(t, m, func(c net.Conn) error {
		return serveChanged(c, m, func(ch *evidence.Challenge) { ch.PCRs = ch.PCRs[:10] })
	})
	want(t, judgeSession(t, m, s, s.Evidence), selection)
}

func TestV23_PCRsAskedFor(t *testing.T) {
	m := genoa()
	_, v := live(t, m, m.TPM, attest.ChallengeOptions{PCRs: []int{0, 1, 2, 3, 4, 5, 6, 7, 9}})
	want(t, v)
	if c := check(t, v, attest.CheckPCRUnjudged); c.Status != attest.NotApplicable || !strings.HasPrefix(c.Found, "0: ") || strings.Contains(c.Found, "\n4: ") {
		t.Errorf("PCRs that are shown: %+v", c)
	}
	if lines := strings.Split(check(t, v, attest.CheckPCRUnjudged).Found, "\n"); len(lines) != 7 {
		t.Errorf("PCRs that are shown: %q", lines)
	}
	ones := genoa()
	ones.TPM.PCRs[17], ones.TPM.PCRs[18] = bytes.Repeat([]byte{0xFF}, 32), bytes.Repeat([]byte{0xFF}, 32)
	if found := check(t, judge(t, ones), attest.CheckPCRUnjudged).Found; !strings.HasSuffix(found, "\n8, 10-16, 19-23: zeros\n17-18: ones") {
		t.Errorf("PCRs that are shown: %q", found)
	}
	// A PCR with a golden value that was not asked for.
	_, v = live(t, m, m.TPM, attest.ChallengeOptions{PCRs: []int{0, 4}})
	want(t, v, is(attest.CheckPCRGolden, attest.ReasonPCRMissing))
}

func TestV28_ClockBackwards(t *testing.T) {
	seen := func(r attest.Registry, clock uint64, reset, restart uint32) *attest.Verdict {
		m := launched(1, "boot-1", 3)
		m.TPM.Clock = tpm2.TPMSClockInfo{Clock: clock, ResetCount: reset, RestartCount: restart, Safe: true}
		return judgeSeen(t, m, r)
	}
	r := registry(t)
	want(t, seen(r, 5000, 2, 1))
	want(t, seen(r, 5000, 2, 1)) // judged again
	want(t, seen(r, 4999, 2, 1), backwards)
	want(t, seen(r, 6000, 2, 0), backwards)
	want(t, seen(r, 6000, 1, 9), backwards)
	want(t, seen(r, 6000, 2, 1))
	want(t, seen(r, 6000, 2, 2)) // resumed: PCRs are kept
	want(t, seen(r, 6000, 2, 1), backwards)
	// A reset within a launch starts the PCRs anew.
	wasReset := is(attest.CheckQuoteClock, attest.ReasonTPMReset)
	want(t, seen(r, 10, 3, 0), wasReset)
	want(t, seen(r, 7000, 3, 2), wasReset)
	// A clock that may have lost time is said, not refused.
	m := genoa()
	m.TPM.Clock.Safe = false
	if v := judge(t, m); !v.Trusted() || !strings.Contains(strings.Join(v.Warnings, " "), "clock") {
		t.Errorf("%s, warnings %q", v.Result, v.Warnings)
	}
}

func TestV29_SecondBootMixedWithFirst(t *testing.T) {
	// State that was kept and booted again: the same EK under a new report id.
	r := registry(t)
	want(t, judgeSeen(t, launched(1, "boot-1", 3), r))
	again := launched(2, "boot-2", 3)
	again.TPM.Clock.ResetCount++
	want(t, judgeSeen(t, again, r), reused)
	// The second boot's quote with the first boot's report and manifest.
	first, second := genoa(), genoa()
	second.TPM = attesttest.NewVTPM(5, false)
	second.TPM.Extend(second.Events)
	ev := second.Evidence()
	first.EditEvidence = func(e *evidence.Evidence) {
		e.EKPublic, e.AKPublic, e.Quote, e.QuoteSignature = ev.EKPublic, ev.AKPublic, ev.Quote, ev.QuoteSignature
	}
	want(t, judge(t, first), ekMismatch)
}

func TestS53_NonceIsSingleUse(t *testing.T) {
	m := genoa()
	s, v := live(t, m, m.TPM, attest.ChallengeOptions{})
	want(t, v)
	used := is(attest.CheckNonce, attest.ReasonNonceUsed)
	want(t, judgeSession(t, m, s, s.Evidence), used)
	// Nonces of other lengths, and zeros.
	for _, nonce := range [][]byte{nil, make([]byte, 64), bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{1}, 65)} {
		m := withEvidence(func(ev *evidence.Evidence) { ev.Nonce = nonce })
		wantAny(t, judge(t, m), is(attest.CheckNonce, attest.ReasonNonceForm))
	}
}

func TestV33_RaceForOneNonce(t *testing.T) {
	m := genoa()
	s := challenge(t, m, m.TPM, attest.ChallengeOptions{})
	o := options(m)
	o.Live = s
	golden := m.Golden()
	var wg sync.WaitGroup
	var trusted [16]bool
	for i := range trusted {
		wg.Go(func() {
			v, err := attest.Verify(context.Background(), s.Evidence, golden, o)
			trusted[i] = err == nil && v.Trusted()
		})
	}
	wg.Wait()
	n := 0
	for _, ok := range trusted {
		if ok {
			n++
		}
	}
	if n != 1 {
		t.Errorf("%d of %d verifications of one challenge were trusted, expected 1", n, len(trusted))
	}
}

// What an agent answers a second time, or to another challenge, is no answer
// (L-24).
func TestS63_MixedEvidence(t *testing.T) {
	m := genoa()
	s := challenge(t, m, m.TPM, attest.ChallengeOptions{})
	// Another machine's good evidence, under the challenge to this one.
	other := genoa()
	other.TPM = attesttest.NewVTPM(5, true)
	other.TPM.Extend(other.Events)
	ev := other.Answer(evidence.Challenge{Nonce: s.Evidence.Nonce, PCRs: pcrList(24)})
	want(t, judgeSession(t, m, s, ev), is(attest.CheckAKResident, attest.ReasonEvidenceMixed))
	// One of the two keys is another's.
	for name, edit := range map[string]func(*evidence.Evidence){
		"EK": func(ev *evidence.Evidence) { ev.EKPublic = other.TPM.EKPublic() },
		"AK": func(ev *evidence.Evidence) { ev.AKPublic = anotherAK() },
	} {
		s = challenge(t, m, m.TPM, attest.ChallengeOptions{})
		mixed := *s.Evidence
		edit(&mixed)
		t.Run(name, func(t *testing.T) {
			wantAny(t, judgeSession(t, m, s, &mixed), is(attest.CheckAKResident, attest.ReasonEvidenceMixed))
		})
	}
	// Evidence for another nonce.
	s = challenge(t, m, m.TPM, attest.ChallengeOptions{})
	want(t, judgeSession(t, m, s, m.Evidence()), is(attest.CheckNonce, attest.ReasonNonceForeign))
	// Certificates of another machine.
	second := genoa()
	second.ChipID[9] ^= 0xFF
	table := second.CertTable()
	want(t, judge(t, withEvidence(func(ev *evidence.Evidence) { ev.Certificates = table })), is(attest.CheckChipBinding, attest.ReasonChipIDMismatch))
	// A manifest of another launch.
	manifest := other.Manifest()
	want(t, judge(t, withEvidence(func(ev *evidence.Evidence) { ev.Manifest = manifest })), reportData, ekMismatch)
	// A binding that was not asked for.
	s = challenge(t, m, m.TPM, attest.ChallengeOptions{Binding: evidence.BindingNV})
	want(t, judgeSession(t, m, s, s.Evidence), is(attest.CheckBinding, attest.ReasonBindingForeign))
	// Another bank than asked for.
	s = challenge(t, m, m.TPM, attest.ChallengeOptions{PCRBank: "sha384"})
	want(t, judgeSession(t, m, s, s.Evidence), is(attest.CheckPCRSelection, attest.ReasonPCRBank))
}

func pcrList(n int) []int {
	var out []int
	for i := range n {
		out = append(out, i)
	}
	return out
}

func TestS64_EvidenceText(t *testing.T) {
	good, err := json.Marshal(genoa().Evidence())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := evidence.Parse(good); err != nil {
		t.Fatal(err)
	}
	replace := func(old, new string) []byte {
		out := bytes.Replace(good, []byte(old), []byte(new), 1)
		if bytes.Equal(out, good) {
			t.Fatalf("%q is not in the evidence", old)
		}
		return out
	}
	nonce := string(good[bytes.Index(good, []byte(`"nonce":"`))+9:][:20])
	for name, text := range map[string][]byte{
		"duplicate key":           replace(`{"schema"`, `{"boot_id":"x","schema"`),
		"unknown key":             replace(`{"schema"`, `{"verified":true,"schema"`),
		"key in another case":     replace(`"boot_id"`, `"Boot_ID"`),
		"trailing data":           append(bytes.Clone(good), []byte("{}")...),
		"another schema":          replace("evtpm.evidence/v1", "evtpm.evidence/v2"),
		"base64 with line break":  replace(nonce, nonce[:10]+`\n`+nonce[10:]),
		"base64 of URLs":          replace(nonce, "_"+nonce[1:]),
		"base64 with stray bits":  replace(`"pcr":0,"value":"`, `"pcr":0,"value":"AB==","x":"`),
		"NUL":                     append(bytes.Clone(good), 0),
		"invalid UTF-8":           replace(`"boot_id":"`, "\"boot_id\":\"\xff"),
		"empty":                   nil,
		"array":                   []byte("[]"),
		"null":                    []byte("null"),
		"cut short":               good[:len(good)/2],
		"larger than the largest": append(bytes.Clone(good), bytes.Repeat([]byte(" "), evidence.MaxEvidence)...),
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := evidence.Parse(text); err == nil {
				t.Error("accepted")
			}
		})
	}
	// Stray bits alone: "AAB=" and "AAA=" decode to the same bytes.
	ev := genoa().Evidence()
	ev.BootID, ev.EventLog = "", []byte{0, 0}
	text, err := json.Marshal(ev)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := evidence.Parse(bytes.Replace(text, []byte(`"AAA="`), []byte(`"AAB="`), 1)); err == nil {
		t.Error("base64 with stray bits was accepted")
	}
}

func TestRegistryFaults(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "eks.json")
	unavailable := is(attest.CheckLifecycle, attest.ReasonRegistry)
	for name, text := range map[string]string{
		"garbage":         "garbage",
		"another schema":  `{"schema":"evtpm.registry/v2","sightings":[]}`,
		"unknown field":   `{"schema":"evtpm.registry/v1","sightings":[],"x":1}`,
		"empty file":      "",
		"half a document": `{"schema":"evtpm.registry/v1","sightings":[`,
	} {
		t.Run(name, func(t *testing.T) {
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			want(t, judgeSeen(t, genoa(), attest.NewFileRegistry(path)), unavailable)
		})
	}
	want(t, judgeSeen(t, genoa(), attest.NewFileRegistry(filepath.Join(dir, "none", "eks.json"))), unavailable)
	want(t, judgeSeen(t, genoa(), attest.NewFileRegistry(dir)), unavailable)
	// Nothing but the registry and its lock is left.
	r := registry(t)
	want(t, judgeSeen(t, genoa(), r))
	// The evidence cannot be read: nothing can be compared.
	m := withEvidence(func(ev *evidence.Evidence) { ev.Report = nil })
	v := judgeSeen(t, m, r)
	if c := check(t, v, attest.CheckLifecycle); c.Status != attest.Failed || c.Reason != string(attest.ReasonNotMade) {
		t.Errorf("lifecycle of an unreadable report: %+v", c)
	}
}

// What a guest calls its boot does not fill the registry, and is told from others.
func TestV10_LongBootID(t *testing.T) {
	path := filepath.Join(t.TempDir(), "eks.json")
	r := attest.NewFileRegistry(path)
	for i, boot := range []string{strings.Repeat("x", 64), strings.Repeat("x", 65), strings.Repeat("x", 1<<20)} {
		want(t, judgeSeen(t, launched(byte(i), boot, 2+i), r))
		text := string(readFile(t, path))
		if len(text) > 2000 || strings.Contains(text, boot) != (len(boot) <= 64) {
			t.Errorf("%d bytes of boot id: the registry has %d bytes, as it is: %v", len(boot), len(text), strings.Contains(text, boot))
		}
		want(t, judgeSeen(t, launched(byte(i+10), boot, 5+i), r), idChanged)
	}
}
