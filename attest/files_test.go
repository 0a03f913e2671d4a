package attest_test

import (
	"bytes"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/evtpm/evtpm/attest"
	"github.com/evtpm/evtpm/attest/attesttest"
)

func TestSplitReport(t *testing.T) {
	m := genoa()
	raw, table := []byte(m.SignedReport([64]byte{1})), m.CertTable()
	whole := append(bytes.Clone(raw), table...)
	wrapped := func(s string) []byte {
		var b strings.Builder
		for len(s) > 64 {
			b.WriteString(s[:64] + "\r\n")
			s = s[64:]
		}
		return []byte(b.String() + s + "\n")
	}
	for name, data := range map[string][]byte{
		"raw":               whole,
		"hex":               []byte(hex.EncodeToString(whole)),
		"hex in upper case": []byte(strings.ToUpper(hex.EncodeToString(whole))),
		"hex on lines":      wrapped(hex.EncodeToString(whole)),
		"base64":            []byte(base64.StdEncoding.EncodeToString(whole)),
		"base64 on lines":   wrapped(base64.StdEncoding.EncodeToString(whole)),
		"base64url":         []byte(base64.RawURLEncoding.EncodeToString(whole)),
		"hex with spaces":   bytes.ReplaceAll(wrapped(hex.EncodeToString(whole)), []byte("\r\n"), []byte(" \t")),
	} {
		t.Run(name, func(t *testing.T) {
			r, c, err := attest.SplitReport(data)
			if err != nil || !bytes.Equal(r, raw) || !bytes.Equal(c, table) {
				t.Errorf("%v", err)
			}
		})
	}
	for name, data := range map[string][]byte{"raw": raw, "hex": []byte(hex.EncodeToString(raw)), "base64": []byte(base64.StdEncoding.EncodeToString(raw))} {
		if r, c, err := attest.SplitReport(data); err != nil || !bytes.Equal(r, raw) || c != nil {
			t.Errorf("%s without a table: %v", name, err)
		}
	}
	for name, data := range map[string][]byte{
		"empty":           nil,
		"cut short":       raw[:1183],
		"a byte too many": append(bytes.Clone(raw), 0),
		"text":            []byte("this is no report"),
		"odd hex":         []byte(hex.EncodeToString(raw)[1:]),
		"a gigabyte":      make([]byte, attest.MaxReportFile+1),
		"garbage table":   append(bytes.Clone(raw), bytes.Repeat([]byte{0xFF}, 48)...),
	} {
		t.Run(name, func(t *testing.T) {
			if _, _, err := attest.SplitReport(data); err == nil {
				t.Error("accepted")
			}
		})
	}
	for _, data := range [][]byte{raw[:10], nil} {
		if _, _, err := attest.SplitReport(data); !errors.Is(err, attest.ErrReportLength) {
			t.Errorf("error is %v", err)
		}
	}
}

// Text is never taken for a report's bytes, however long it is, nor are bytes for
// text.
func TestTextIsNoReport(t *testing.T) {
	digits := []byte(hex.EncodeToString(genoa().SignedReport([64]byte{1})))
	for says, text := range map[string][]byte{
		"report: neither hexadecimal nor base64": bytes.Repeat([]byte("~"), attest.ReportSize),
		"report: found JSON":                     []byte(` {"report": ""}`),
	} {
		if _, _, err := attest.SplitReport(text); err == nil || !strings.HasPrefix(err.Error(), says) {
			t.Errorf("error is %v, expected %q", err, says)
		}
	}
	for _, c := range []byte{0x00, 0x1F, 0x7F, 0xA5} {
		data := bytes.Repeat([]byte{c}, attest.ReportSize)
		if r, _, err := attest.SplitReport(data); err != nil || !bytes.Equal(r, data) {
			t.Errorf("bytes %#02x: %v", c, err)
		}
	}
	// White space counts for the size of a file.
	padded := append(digits, bytes.Repeat([]byte(" "), attest.MaxReportFile-len(digits))...)
	if _, _, err := attest.SplitReport(padded); err != nil {
		t.Error(err)
	}
	if _, _, err := attest.SplitReport(append(padded, ' ')); err == nil {
		t.Error("a file that is too long was accepted")
	}
}

func TestBundle(t *testing.T) {
	m := genoa()
	leaf, s := m.LeafCertificate(), m.Signer
	crl := s.CRL(nil, nil)
	block := func(kind string, der []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}) }
	text := bytes.Join([][]byte{block("CERTIFICATE", leaf.Raw), block("CERTIFICATE", s.ASK.Raw), block("X509 CRL", crl)}, []byte("\n"))
	b, err := attest.ParseBundle(text)
	if err != nil || len(b.Certificates) != 2 || len(b.CRLs) != 1 || !b.Certificates[0].Equal(leaf) {
		t.Fatalf("%+v, %v", b, err)
	}
	back, err := attest.ParseBundle(b.Encode())
	if err != nil || len(back.Certificates) != 2 || len(back.CRLs) != 1 {
		t.Fatalf("%+v, %v", back, err)
	}
	// Joining drops what is there already.
	b.Add(back)
	b.Add(&attest.Bundle{Certificates: []*x509.Certificate{s.ARK, s.ARK}, CRLs: back.CRLs})
	if len(b.Certificates) != 3 || len(b.CRLs) != 1 {
		t.Errorf("joined: %d certificates, %d CRLs", len(b.Certificates), len(b.CRLs))
	}
	b.Add(&attest.Bundle{CRLs: []*x509.RevocationList{revocationList(t, s.CRL(serial(9), nil))}})
	if len(b.Certificates) != 3 || len(b.CRLs) != 2 {
		t.Errorf("joined: %d certificates, %d CRLs", len(b.Certificates), len(b.CRLs))
	}
	// The bounds themselves, and what is above.
	spaces := bytes.Repeat([]byte("\n"), attest.MaxBundle-len(text))
	if b, err := attest.ParseBundle(append(bytes.Clone(text), spaces...)); err != nil || len(b.Certificates) != 2 {
		t.Errorf("as long as a bundle may be: %v", err)
	}
	if _, err := attest.ParseBundle(append(append(bytes.Clone(text), spaces...), '\n')); err == nil {
		t.Error("a byte more than a bundle may have was accepted")
	}
	if b, err := attest.ParseBundle(bytes.Repeat(block("CERTIFICATE", leaf.Raw), 1024)); err != nil || len(b.Certificates) != 1024 {
		t.Errorf("as many as a bundle may hold: %v", err)
	}
	if _, err := attest.ParseBundle(bytes.Repeat(block("CERTIFICATE", leaf.Raw), 1025)); err == nil {
		t.Error("one more than a bundle may hold was accepted")
	}
	for name, der := range map[string][]byte{"certificate": leaf.Raw, "CRL": crl} {
		b, err := attest.ParseBundle(der)
		if err != nil || len(b.Certificates)+len(b.CRLs) != 1 {
			t.Errorf("%s in DER: %v", name, err)
		}
	}
	for name, data := range map[string][]byte{
		"empty":             nil,
		"garbage":           []byte("garbage"),
		"a private key":     block("PRIVATE KEY", []byte{1}),
		"not a certificate": block("CERTIFICATE", []byte{1}),
		"not a CRL":         block("X509 CRL", leaf.Raw),
		"text at the end":   append(bytes.Clone(text), []byte("trailing")...),
		"a broken block":    append(bytes.Clone(text), []byte("-----BEGIN CERTIFICATE-----\n")...),
		"five megabytes":    make([]byte, 5<<20),
		"2000 blocks":       bytes.Repeat(block("CERTIFICATE", s.ARK.Raw), 2000),
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := attest.ParseBundle(data); err == nil {
				t.Error("accepted")
			}
		})
	}
	tb, err := attest.TableBundle(attest.EncodeCertTable(append(entries(t, m.CertTable()),
		attest.CertEntry{GUID: attest.GUIDCRL, Data: crl}, attest.CertEntry{GUID: attest.GUID{9}, Data: []byte("other")})))
	if err != nil || len(tb.Certificates) != 3 || len(tb.CRLs) != 1 {
		t.Errorf("%+v, %v", tb, err)
	}
	for name, e := range map[string]attest.CertEntry{"VCEK": {GUID: attest.GUIDVCEK, Data: []byte{1}}, "CRL": {GUID: attest.GUIDCRL, Data: []byte{1}}} {
		if _, err := attest.TableBundle(attest.EncodeCertTable([]attest.CertEntry{e})); !errors.Is(err, attest.ErrCertTable) {
			t.Errorf("a table with a broken %s: %v", name, err)
		}
	}
	if _, err := attest.TableBundle([]byte{1}); err == nil {
		t.Error("a broken table was accepted")
	}
}

func revocationList(t *testing.T, der []byte) *x509.RevocationList {
	t.Helper()
	l, err := attest.ParseCRL(der)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestCertTableRoundTrip(t *testing.T) {
	in := []attest.CertEntry{{attest.GUIDVCEK, []byte("vcek")}, {attest.GUIDASK, bytes.Repeat([]byte{1}, 2000)}, {attest.GUIDARK, []byte{7}}}
	out, err := attest.ParseCertTable(attest.EncodeCertTable(in))
	if err != nil || len(out) != len(in) {
		t.Fatal(out, err)
	}
	for i := range in {
		if out[i].GUID != in[i].GUID || !bytes.Equal(out[i].Data, in[i].Data) {
			t.Errorf("entry %d: %+v", i, out[i])
		}
	}
	// The tests' own writer agrees, and the order of the data does not matter.
	m := genoa()
	if got := attest.EncodeCertTable(entries(t, m.CertTable())); !bytes.Equal(got, m.CertTable()) {
		t.Error("two writers disagree")
	}
	if none, err := attest.ParseCertTable(nil); err != nil || none != nil {
		t.Errorf("no table: %v, %v", none, err)
	}
	if none, err := attest.ParseCertTable(make([]byte, 24)); err != nil || len(none) != 0 {
		t.Errorf("an empty table: %v, %v", none, err)
	}
	if s := attest.GUIDVCEK.String(); s != "63da758d-e664-4564-adc5-f4b93be8accd" {
		t.Errorf("GUID is %s", s)
	}
}

// Every bound of a certificate table, and what is just above.
func TestCertTableBounds(t *testing.T) {
	entry := func(i, n int) attest.CertEntry {
		return attest.CertEntry{GUID: attest.GUID{byte(i), byte(i >> 8), 7}, Data: make([]byte, n)}
	}
	many := func(n int) (list []attest.CertEntry) {
		for i := range n {
			list = append(list, entry(i, 1))
		}
		return list
	}
	// moved is a table of three entries of 8 bytes with the data of one elsewhere.
	moved := func(i int, to uint32) []byte {
		b := attest.EncodeCertTable([]attest.CertEntry{entry(0, 8), entry(1, 8), entry(2, 8)})
		binary.LittleEndian.PutUint32(b[24*i+16:], to)
		return append(b, make([]byte, 64)...)
	}
	padded := func(n int) []byte {
		b := attest.EncodeCertTable(many(1))
		return append(b, make([]byte, n-len(b))...)
	}
	for name, c := range map[string]struct {
		table []byte
		ok    bool
	}{
		"entry of no bytes":      {attest.EncodeCertTable([]attest.CertEntry{entry(0, 0)}), false},
		"entry of 1 byte":        {attest.EncodeCertTable([]attest.CertEntry{entry(0, 1)}), true},
		"entry of 64 KiB":        {attest.EncodeCertTable([]attest.CertEntry{entry(0, 64<<10)}), true},
		"entry of 64 KiB and 1":  {attest.EncodeCertTable([]attest.CertEntry{entry(0, 64<<10+1)}), false},
		"64 entries":             {attest.EncodeCertTable(many(64)), true},
		"65 entries":             {attest.EncodeCertTable(many(65)), false},
		"256 KiB":                {padded(256 << 10), true},
		"256 KiB and 1":          {padded(256<<10 + 1), false},
		"data in another order":  {moved(0, 96+24), true},
		"data in the header":     {moved(1, 95), false},
		"data at the header":     {moved(0, 96), true},
		"data on the next":       {moved(0, 97), false},
		"data on the one before": {moved(2, 96+15), false},
		"data on the first":      {moved(2, 96), false},
		"first data on the last": {moved(0, 96+23), false},
		"data that ends early":   {attest.EncodeCertTable([]attest.CertEntry{entry(0, 9)})[:48+8], false},
		"terminator that is cut": {attest.EncodeCertTable(nil)[:23], false},
	} {
		if _, err := attest.ParseCertTable(c.table); (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestClaims(t *testing.T) {
	m := attesttest.NewMachine(attesttest.Turin)
	m.EditReport = func(r attesttest.Report) {
		version5(3, 7)(r)
		r.PutU64(attesttest.OffPolicy, 0x3FF0000|0x0137)
		r.PutU64(attesttest.OffPlatformInfo, 0xFF)
		r.PutU32(attesttest.OffVMPL, 2)
	}
	report := m.SignedReport([64]byte{0xAB})
	r, err := attest.ParseReport(report)
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(r.Claims())
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := json.Unmarshal(text, &got); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]any{
		"measurement": attesttest.LaunchDigest.String(), "report_data": "ab" + strings.Repeat("00", 63), "init_data": strings.Repeat("00", 32),
		"policy_abi_major": 1.0, "policy_abi_minor": 55.0, "policy_smt_allowed": true, "policy_migrate_ma": true,
		"policy_debug_allowed": true, "policy_single_socket": true, "policy_page_swap_disabled": true, "policy": "0x3ff0137",
		"platform_smt_enabled": true, "platform_tsme_enabled": true, "platform_alias_check_complete": true, "platform_tio_enabled": true,
		"reported_tcb_bootloader": 1.0, "reported_tcb_tee": 1.0, "reported_tcb_snp": 4.0, "reported_tcb_microcode": 81.0, "reported_tcb_fmc": 1.0,
		"vmpl": 2.0, "report_version": 5.0, "product": "Turin", "cpuid": "1a/02/01", "signing_key": "vcek", "current_version": "1.55.49",
		"launch_mit_vector": 3.0, "current_mit_vector": 7.0, "guest_svn": 0.0,
	} {
		if got[name] != want {
			t.Errorf("%s is %v, expected %v", name, got[name], want)
		}
	}
	// Every field from its own bytes.
	g := genoa()
	g.EditReport = func(r attesttest.Report) {
		r.PutU32(attesttest.OffGuestSVN, 7)
		r.PutU64(attesttest.OffPlatformInfo, 0x58)
		r.PutU32(attesttest.OffSignerInfo, 1)
		for off, b := range map[int]byte{
			attesttest.OffFamilyID: 1, attesttest.OffImageID: 2, attesttest.OffHostData: 3, attesttest.OffIDKeyDigest: 4, attesttest.OffAuthorKeyDigest: 5,
			attesttest.OffReportID: 6, attesttest.OffReportIDMA: 7, attesttest.OffChipID: 8, attesttest.OffMeasurement: 9,
		} {
			r[off] = b
		}
		for off, ucode := range map[int]byte{attesttest.OffCurrentTCB: 81, attesttest.OffReportedTCB: 82, attesttest.OffCommittedTCB: 83, attesttest.OffLaunchTCB: 84} {
			r[off+7] = ucode
		}
		r[attesttest.OffCommittedVersion] = 48
	}
	if r, err = attest.ParseReport(g.SignedReport([64]byte{})); err != nil {
		t.Fatal(err)
	}
	f := r.Claims()
	for name, ok := range map[string]bool{
		"numbers":  f.GuestSVN == 7 && f.CurrentVersion == "1.55.49" && f.CommittedVersion == "1.55.48" && f.AuthorKeyEnable,
		"ids":      f.FamilyID[0] == 1 && f.ImageID[0] == 2 && f.ReportID[0] == 6 && f.ReportIDMA[0] == 7 && f.ChipID[0] == 8,
		"digests":  f.InitData[0] == 3 && f.IDKeyDigest[0] == 4 && f.AuthorKeyDigest[0] == 5 && f.Measurement[0] == 9,
		"sizes":    len(f.FamilyID) == 16 && len(f.ImageID) == 16 && len(f.InitData) == 32 && len(f.IDKeyDigest) == 48 && len(f.AuthorKeyDigest) == 48 && len(f.ReportID) == 32 && len(f.ReportIDMA) == 32 && len(f.ChipID) == 64,
		"TCBs":     f.CurrentTCB.Microcode == 81 && f.ReportedTCBMicrocode == 82 && f.CommittedTCB.Microcode == 83 && f.LaunchTCB.Microcode == 84,
		"platform": f.PlatformInfo == "0x58" && f.PlatformRAPLDisabled && f.PlatformCiphertext && f.PlatformIOMMUWriteOK && !f.PlatformTIOEnabled && !f.PlatformECCEnabled,
	} {
		if !ok {
			t.Errorf("%s: %+v", name, f)
		}
	}
	none := withReport(func(r attesttest.Report) {
		version2(r)
		r.PutU64(attesttest.OffPolicy, 0x20000)
		r.PutU64(attesttest.OffPlatformInfo, 0)
	}).SignedReport([64]byte{})
	if r, err = attest.ParseReport(none); err != nil {
		t.Fatal(err)
	}
	c := r.Claims()
	if c.Product != "" || c.CPUID != "" || c.LaunchMitigations != nil || c.PolicySMTAllowed || c.PolicyDebugAllowed || c.PlatformSMTEnabled || c.ReportedTCBFMC != nil {
		t.Errorf("%+v", c)
	}
}

func TestRegistryFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "eks.json")
	r := attest.NewFileRegistry(path)
	keep := func([]attest.Sighting) bool { return true }
	s := attest.Sighting{EK: []byte{1}, ReportID: []byte{2}, BootID: "b", Clock: 3}
	if err := r.Observe(t.Context(), s, func([]attest.Sighting) bool { return false }); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("a sighting that is not kept made a file")
	}
	if err := r.Observe(t.Context(), s, keep); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	// Others are not shown; those with the EK or the boot id are.
	for name, c := range map[string]struct {
		s attest.Sighting
		n int
	}{
		"other":         {attest.Sighting{EK: []byte{9}, BootID: "c"}, 0},
		"same EK":       {attest.Sighting{EK: []byte{1}, BootID: "c"}, 1},
		"same boot":     {attest.Sighting{EK: []byte{9}, BootID: "b"}, 1},
		"no boot id":    {attest.Sighting{EK: []byte{9}}, 0},
		"same in every": {s, 1},
	} {
		err := r.Observe(t.Context(), c.s, func(earlier []attest.Sighting) bool {
			if len(earlier) != c.n {
				t.Errorf("%s: %d earlier sightings, expected %d", name, len(earlier), c.n)
			}
			return false
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	// The same launch again takes the place of its earlier sighting.
	s.Clock = 4
	if err := r.Observe(t.Context(), s, keep); err != nil {
		t.Fatal(err)
	}
	other := s
	other.ReportID = []byte{8}
	if err := r.Observe(t.Context(), other, keep); err != nil {
		t.Fatal(err)
	}
	err = r.Observe(t.Context(), s, func(earlier []attest.Sighting) bool {
		if len(earlier) != 2 || earlier[0].Clock != 4 {
			t.Errorf("%+v", earlier)
		}
		return false
	})
	if err != nil {
		t.Fatal(err)
	}
	// Nothing else is left in the folder.
	files, err := os.ReadDir(dir)
	if err != nil || len(files) != 2 {
		t.Errorf("%v, %v", files, err)
	}
}

func TestRegistryIsBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "eks.json")
	type file struct {
		Schema    string            `json:"schema"`
		Sightings []attest.Sighting `json:"sightings"`
	}
	f := file{Schema: "evtpm.registry/v1"}
	for i := range attest.MaxSightings {
		f.Sightings = append(f.Sightings, attest.Sighting{EK: []byte{byte(i >> 8), byte(i), 1}, ReportID: []byte{1}})
	}
	text, err := json.Marshal(f)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	r := attest.NewFileRegistry(path)
	if err := r.Observe(t.Context(), attest.Sighting{EK: []byte{2}}, func([]attest.Sighting) bool { return true }); err != nil {
		t.Fatal(err)
	}
	var after file
	if err := json.Unmarshal(readFile(t, path), &after); err != nil {
		t.Fatal(err)
	}
	if n := len(after.Sightings); n != attest.MaxSightings || after.Sightings[0].EK[1] != 1 || after.Sightings[n-1].EK[0] != 2 {
		t.Errorf("%d sightings, first %v, last %v", n, after.Sightings[0].EK, after.Sightings[n-1].EK)
	}
}

// Which sightings are one launch's, so that the later takes the earlier's place: if
// any other did, a launch would be forgotten, and its EK could come back.
func TestRegistryKeepsOthers(t *testing.T) {
	one := attest.Sighting{EK: []byte{1}, ReportID: []byte{2}, BootID: "b", Clock: 1}
	for name, c := range map[string]struct {
		edit func(*attest.Sighting)
		kept int
	}{
		"the same, later":   {func(s *attest.Sighting) { s.Clock = 2 }, 1},
		"another EK":        {func(s *attest.Sighting) { s.EK = []byte{9} }, 2},
		"another report id": {func(s *attest.Sighting) { s.ReportID = []byte{9} }, 2},
		"another boot":      {func(s *attest.Sighting) { s.BootID = "c" }, 2},
	} {
		path := filepath.Join(t.TempDir(), "eks.json")
		two := one
		c.edit(&two)
		for _, s := range []attest.Sighting{one, two} {
			observe(t, path, s)
		}
		var f struct{ Sightings []attest.Sighting }
		if err := json.Unmarshal(readFile(t, path), &f); err != nil || len(f.Sightings) != c.kept || f.Sightings[c.kept-1].Clock != two.Clock {
			t.Errorf("%s: %+v, %v", name, f.Sightings, err)
		}
	}
	// A launch does not crowd out others by its boots; the last ones are kept.
	crowded := filepath.Join(t.TempDir(), "eks.json")
	observe(t, crowded, attest.Sighting{EK: []byte{9}})
	for i := range 40 {
		one.BootID = strconv.Itoa(i)
		if n := observe(t, crowded, one); n != min(i, 16) {
			t.Fatalf("boot %d: %d earlier ones", i, n)
		}
	}
	one.BootID = "24"
	for range 2 { // the first time nothing makes room for it
		if n := observe(t, crowded, one); n != 16 {
			t.Errorf("%d boots after one of them again", n)
		}
	}
	if n := observe(t, crowded, attest.Sighting{EK: []byte{9}}); n != 1 {
		t.Errorf("%d sightings of the other launch", n)
	}
	// Guests without a boot id have nothing in common by that.
	path := filepath.Join(t.TempDir(), "eks.json")
	observe(t, path, attest.Sighting{EK: []byte{1}})
	if n := observe(t, path, attest.Sighting{EK: []byte{2}}); n != 0 {
		t.Errorf("%d sightings of others that have no boot id either", n)
	}
}

// observe keeps a sighting, and returns how many earlier ones were shown.
func observe(t *testing.T, path string, s attest.Sighting) (earlier int) {
	t.Helper()
	err := attest.NewFileRegistry(path).Observe(t.Context(), s, func(list []attest.Sighting) bool {
		earlier = len(list)
		return true
	})
	if err != nil {
		t.Fatal(err)
	}
	return earlier
}

// What lies where the registry should be, and is none: were it taken for an empty
// one, every EK would be new.
func TestRegistryThatCannotBeRead(t *testing.T) {
	empty := `{"schema":"evtpm.registry/v1","sightings":[]}`
	write := func(text string) func(string) error {
		return func(path string) error { return os.WriteFile(path, []byte(text), 0o600) }
	}
	for name, c := range map[string]struct {
		put  func(path string) error
		says string // of the error; empty if it is good
	}{
		"none":             {func(string) error { return nil }, ""},
		"empty":            {write(empty), ""},
		"16 MiB":           {write(empty + strings.Repeat(" ", 16<<20-len(empty))), ""},
		"16 MiB and 1":     {write(empty + strings.Repeat(" ", 16<<20-len(empty)+1)), "expected a regular file of at most 16777216"},
		"no bytes":         {write(""), "registry"},
		"cut":              {write(empty[:20]), "registry"},
		"another version":  {write(strings.Replace(empty, "v1", "v2", 1)), "v2"},
		"unknown field":    {write(strings.Replace(empty, "sightings", "sighting", 1)), "sighting"},
		"a folder":         {func(path string) error { return os.Mkdir(path, 0o700) }, "expected a regular file"},
		"a link":           {func(path string) error { return os.Symlink(path+"x", path) }, "expected a regular file"},
		"a missing folder": {func(path string) error { return os.Remove(filepath.Dir(path)) }, "no such"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "folder", "eks.json")
			if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := c.put(path); err != nil {
				t.Fatal(err)
			}
			judged := false
			err := attest.NewFileRegistry(path).Observe(t.Context(), attest.Sighting{EK: []byte{1}}, func([]attest.Sighting) bool { judged = true; return true })
			if judged != (c.says == "") || (err == nil) != judged || err != nil && !strings.Contains(err.Error(), c.says) {
				t.Errorf("judged: %v, error is %v, expected %q", judged, err, c.says)
			}
		})
	}
}

// A sighting that is judged good and cannot be kept is an error: the next copy of
// it would be judged good, too.
func TestRegistryThatCannotBeWritten(t *testing.T) {
	path := filepath.Join(t.TempDir(), "eks.json")
	r := attest.NewFileRegistry(path)
	err := r.Observe(t.Context(), attest.Sighting{EK: []byte{1}}, func([]attest.Sighting) bool { return os.Mkdir(path, 0o700) == nil })
	if err == nil {
		t.Error("no error where a folder has the file's name")
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	// Its time has no form in JSON.
	odd := attest.Sighting{EK: []byte{1}, Time: time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC)}
	if err := r.Observe(t.Context(), odd, func([]attest.Sighting) bool { return true }); err == nil {
		t.Error("no error for a time that cannot be written")
	}
	if n := observe(t, path, attest.Sighting{EK: []byte{1}}); n != 0 {
		t.Errorf("%d earlier sightings", n)
	}
}

func TestRegistryLock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "eks.json")
	r := attest.NewFileRegistry(path)
	inside, release := make(chan bool), make(chan bool)
	go r.Observe(t.Context(), attest.Sighting{EK: []byte{1}}, func([]attest.Sighting) bool {
		inside <- true
		<-release
		return true
	})
	<-inside
	ctx, cancel := contextWithTimeout(t)
	defer cancel()
	if err := r.Observe(ctx, attest.Sighting{EK: []byte{2}}, func([]attest.Sighting) bool { t.Error("two at once"); return true }); err == nil {
		t.Error("no error while another has the lock")
	}
	release <- true
	if err := r.Observe(t.Context(), attest.Sighting{EK: []byte{2}}, func([]attest.Sighting) bool { return true }); err != nil {
		t.Error(err)
	}
}
