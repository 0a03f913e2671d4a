package attest_test

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-sev-guest/proto/sevsnp"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/evtpm/evtpm/attest"
	"github.com/evtpm/evtpm/attest/attesttest"
	"github.com/evtpm/evtpm/attest/evidence"
)

// A pbPath leads to a message inside a SevSnpSvsmAttestation, by field numbers.
type pbPath []protowire.Number

// rewrite changes the message at a path, the first one where there are several.
func rewrite(t *testing.T, b []byte, path pbPath, edit func([]byte) []byte) []byte {
	t.Helper()
	if len(path) == 0 {
		return edit(bytes.Clone(b))
	}
	for at := 0; at < len(b); {
		num, kind, tag := protowire.ConsumeTag(b[at:])
		n := protowire.ConsumeFieldValue(num, kind, b[at+tag:])
		if n < 0 {
			t.Fatal(protowire.ParseError(n))
		}
		end := at + tag + n
		if num == path[0] {
			inner, _ := protowire.ConsumeBytes(b[at+tag:])
			return bytes.Join([][]byte{b[:at], pbBytes(num, rewrite(t, inner, path[1:], edit)), b[end:]}, nil)
		}
		at = end
	}
	t.Fatalf("no field %d", path[0])
	return nil
}

// added puts fields behind the message at a path.
func added(t *testing.T, b []byte, path pbPath, fields ...[]byte) []byte {
	t.Helper()
	return rewrite(t, b, path, func(m []byte) []byte { return append(m, bytes.Join(fields, nil)...) })
}

// without removes the fields of a number from the message at a path, and puts
// others there.
func without(t *testing.T, b []byte, path pbPath, drop protowire.Number, fields ...[]byte) []byte {
	t.Helper()
	return rewrite(t, b, path, func(m []byte) []byte {
		var out []byte
		for len(m) > 0 {
			num, _, n := protowire.ConsumeField(m)
			if n < 0 {
				t.Fatal(protowire.ParseError(n))
			}
			if num != drop {
				out = append(out, m[:n]...)
			}
			m = m[n:]
		}
		return append(out, bytes.Join(fields, nil)...)
	})
}

func pbBytes(num protowire.Number, v []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(nil, num, protowire.BytesType), v)
}

func pbNumber(num protowire.Number, v uint64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(nil, num, protowire.VarintType), v)
}

// Where messages lie.
var (
	pbWhole    pbPath
	pbAtt      = pbPath{1}
	pbQuote    = pbPath{1, 2}
	pbPCRs     = pbPath{1, 2, 3}
	pbPCREntry = pbPath{1, 2, 3, 2}
	pbSNP      = pbPath{2}
	pbReport   = pbPath{2, 1}
	pbChain    = pbPath{2, 2}
)

func encodeGoTPM(t *testing.T, ev *evidence.Evidence) []byte {
	t.Helper()
	data, err := attest.EncodeGoTPM(ev)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// refused demands an error of the format that says why.
func refused(t *testing.T, name string, data []byte, says string) {
	t.Helper()
	_, err := attest.ParseGoTPM(data, make([]byte, attest.NonceSize))
	if !errors.Is(err, attest.ErrGoTPM) || !strings.Contains(err.Error(), says) {
		t.Errorf("%s: error is %v, expected %q", name, err, says)
	}
}

func accepted(t *testing.T, name string, data []byte) *evidence.Evidence {
	t.Helper()
	ev, err := attest.ParseGoTPM(data, make([]byte, attest.NonceSize))
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return ev
}

// Every message inside must be whole: one that is cut short could hide the rest,
// as an empty chain or a later quote would take its place.
func TestGoTPMMessageCutShort(t *testing.T) {
	good := encodeGoTPM(t, genoa().Evidence())
	for name, path := range map[string]pbPath{
		"whole": pbWhole, "attestation": pbAtt, "quote": pbQuote, "PCRs": pbPCRs, "PCR": pbPCREntry,
		"SNP": pbSNP, "report": pbReport, "chain": pbChain,
	} {
		data := added(t, good, path, []byte{0xFF})
		refused(t, name, data, "")
		if _, err := attest.ParseGoTPM(data, nil); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%s: error is %v", name, err)
		}
	}
	// Nor does a good quote behind it make up for one that cannot be read.
	quote := bytes.Clone(field(t, field(t, good, 1), 2))
	refused(t, "first quote", without(t, good, pbAtt, 2, pbBytes(2, []byte{0xFF}), pbBytes(2, quote)), "unexpected EOF")
}

// No field that is read once may be there twice: readers take the first or the
// last, and would judge different evidence.
func TestGoTPMFieldTwice(t *testing.T) {
	good := encodeGoTPM(t, genoa().Evidence())
	for _, m := range []struct {
		name string
		path pbPath
		nums []protowire.Number
	}{
		{"whole", pbWhole, []protowire.Number{1, 2, 3, 4}},
		{"attestation", pbAtt, []protowire.Number{1, 3}},
		{"quote", pbQuote, []protowire.Number{1, 2, 3}},
		{"SNP", pbSNP, []protowire.Number{1, 2}},
		{"chain", pbChain, []protowire.Number{1, 2, 3, 6}},
		{"report", pbReport, []protowire.Number{4, 12, 28}},
	} {
		for _, num := range m.nums {
			refused(t, m.name, added(t, good, m.path, pbBytes(num, nil), pbBytes(num, nil)), "is repeated")
		}
	}
	for _, m := range []struct {
		name string
		path pbPath
		num  protowire.Number
	}{{"bank", pbPCRs, 1}, {"PCR's number", pbPCREntry, 1}, {"version", pbReport, 1}, {"CPUID", pbReport, 29}} {
		refused(t, m.name, added(t, good, m.path, pbNumber(m.num, 0), pbNumber(m.num, 0)), "is repeated")
	}
	refused(t, "PCR's value", added(t, good, pbPCREntry, pbBytes(2, nil)), "is repeated")
	refused(t, "PCR", added(t, good, pbPCRs, pbBytes(2, pbNumber(1, 7))), "PCR 7 is repeated")
}

// A field of the report fills its place exactly: one that is longer would write
// over its neighbour.
func TestGoTPMReportFieldSizes(t *testing.T) {
	good := encodeGoTPM(t, genoa().Evidence())
	for _, n := range []int{0, 47, 49} {
		refused(t, "measurement", without(t, good, pbReport, 12, pbBytes(12, make([]byte, n))), "expected 48")
	}
	for _, c := range []struct {
		name   string
		num    protowire.Number
		off, n int
	}{{"VMPL", 6, attesttest.OffVMPL, 4}, {"current build", 21, attesttest.OffCurrentVersion, 1}, {"launch TCB", 27, attesttest.OffLaunchTCB, 8}} {
		set := func(v uint64) []byte { return without(t, good, pbReport, c.num, pbNumber(c.num, v)) }
		most := uint64(1)<<(8*c.n) - 1
		want := accepted(t, "good", good).Report
		copy(want[c.off:], bytes.Repeat([]byte{0xFF}, c.n))
		if !bytes.Equal(accepted(t, c.name, set(most)).Report, want) {
			t.Errorf("%s: %#x does not lie in its %d bytes", c.name, most, c.n)
		}
		if c.n < 8 {
			refused(t, c.name, set(most+1), "report field")
		}
	}
	cpuid := func(v uint64) []byte { return without(t, good, pbReport, 29, pbNumber(29, v)) }
	accepted(t, "CPUID", cpuid(1<<32-1))
	refused(t, "CPUID", cpuid(1<<32), "CPUID is 0x100000000")
}

// CPUID 1.EAX in the message is family, model and stepping in the report, from
// version 3 on; before, these bytes are reserved.
func TestGoTPMCPUID(t *testing.T) {
	good := encodeGoTPM(t, genoa().Evidence())
	for _, c := range []struct {
		version, eax uint64
		want         [3]byte
	}{
		{3, 0x00A00F11, [3]byte{0x19, 0x01, 0x01}}, // Milan
		{3, 0x00A10F12, [3]byte{0x19, 0x11, 0x02}}, // Genoa
		{5, 0x00B00F21, [3]byte{0x1A, 0x02, 0x01}}, // Turin
		{3, 0x0FFF0675, [3]byte{0x06, 0x07, 0x05}}, // below family 0Fh the extended bits are reserved
		{2, 0x00A00F11, [3]byte{}},
	} {
		data := without(t, without(t, good, pbReport, 1, pbNumber(1, c.version)), pbReport, 29, pbNumber(29, c.eax))
		if got := accepted(t, "CPUID", data).Report[attesttest.OffCPUID:][:3]; !bytes.Equal(got, c.want[:]) {
			t.Errorf("version %d, EAX %#x: %x, expected %x", c.version, c.eax, got, c.want)
		}
	}
	// A report of version 2 survives the way there and back.
	m := attesttest.NewMachine(attesttest.Milan)
	m.EditReport = func(r attesttest.Report) {
		r.PutU32(attesttest.OffVersion, 2)
		copy(r[attesttest.OffCPUID:], make([]byte, 3))
	}
	ev := m.Evidence()
	if back := accepted(t, "version 2", encodeGoTPM(t, ev)); !bytes.Equal(back.Report, ev.Report) {
		t.Error("the report has changed")
	}
}

// Only the SHA-256 bank's quote is taken, wherever it stands.
func TestGoTPMBanks(t *testing.T) {
	ev := genoa().Evidence()
	good := encodeGoTPM(t, ev)
	quote := bytes.Clone(field(t, field(t, good, 1), 2))
	sha1 := pbBytes(2, without(t, quote, pbPath{3}, 1, pbNumber(1, 4)))
	back := accepted(t, "SHA-1 first", without(t, good, pbAtt, 2, sha1, pbBytes(2, quote)))
	if !bytes.Equal(back.Quote, ev.Quote) || len(back.PCRs) != len(ev.PCRs) {
		t.Error("another quote was taken")
	}
	refused(t, "SHA-1 alone", without(t, good, pbAtt, 2, sha1), "no quote over the SHA-256 bank")
	refused(t, "no bank", without(t, good, pbPCRs, 1), "no quote over the SHA-256 bank")
	refused(t, "no quote", without(t, good, pbAtt, 2), "no quote over the SHA-256 bank")
	refused(t, "PCR 24", added(t, good, pbPCRs, pbBytes(2, pbNumber(1, 24))), "PCR 24")
	refused(t, "PCR 2^63", added(t, good, pbPCRs, pbBytes(2, pbNumber(1, 1<<63))), "does not exist")
}

// What is not there is not made up: neither PCRs, nor certificates, nor a log.
func TestGoTPMWithout(t *testing.T) {
	ev := genoa().Evidence()
	ev.BootID, ev.Nonce, ev.Certificates, ev.EventLog = "", make([]byte, attest.NonceSize), nil, nil
	ev.PCRs = append(ev.PCRs[:3:3], ev.PCRs[5:]...)
	data := encodeGoTPM(t, ev)
	if diff := cmp.Diff(ev, accepted(t, "some", data)); diff != "" {
		t.Errorf("evidence changed on its way:\n%s", diff)
	}
	var att sevsnp.Attestation
	if err := proto.Unmarshal(field(t, data, 2), &att); err != nil || att.CertificateChain != nil {
		t.Errorf("go-sev-guest finds a chain: %v, %v", att.CertificateChain, err)
	}
	ev.Certificates = attest.EncodeCertTable([]attest.CertEntry{{GUID: attest.GUIDVLEK, Data: []byte("VLEK")}})
	if diff := cmp.Diff(ev, accepted(t, "VLEK", encodeGoTPM(t, ev))); diff != "" {
		t.Errorf("evidence with a VLEK changed on its way:\n%s", diff)
	}
}

// Bounds of the message itself, of its manifest and of its AK.
func TestGoTPMBounds(t *testing.T) {
	good := encodeGoTPM(t, genoa().Evidence())
	// An unknown field fills it up: four bytes are its tag and its size.
	full := added(t, good, pbWhole, pbBytes(9, make([]byte, evidence.MaxEvidence-len(good)-4)))
	if len(full) != evidence.MaxEvidence {
		t.Fatalf("%d bytes", len(full))
	}
	accepted(t, "full", full)
	more := added(t, good, pbWhole, pbBytes(9, make([]byte, evidence.MaxEvidence-len(good)-3)))
	refused(t, "one more", more, "expected at most")
	// An absent version is not version 0.
	for _, version := range []string{"", "x", "-1", " 0", "0x0", "4294967296"} {
		refused(t, "version "+version, without(t, good, pbWhole, 4, pbBytes(4, []byte(version))), "manifest version is")
	}
	refused(t, "version absent", without(t, good, pbWhole, 4), "manifest version is")
	data := without(t, good, pbWhole, 3, pbBytes(3, []byte("EK")))
	if _, err := attest.ParseGoTPM(data, nil); !errors.Is(err, attest.ErrManifest) {
		t.Errorf("error is %v", err)
	}
	// An AK's size is 16 bits wide; one more would be written as none.
	ak := func(n int) []byte { return without(t, good, pbAtt, 1, pbBytes(1, make([]byte, n))) }
	if n := len(accepted(t, "AK", ak(1<<16-1)).AKPublic); n != 2+1<<16-1 {
		t.Errorf("AK of %d bytes", n)
	}
	refused(t, "AK", ak(1<<16), "AK has 65536 bytes")
}
