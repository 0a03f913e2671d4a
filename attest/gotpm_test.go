package attest_test

import (
	"bytes"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-sev-guest/abi"
	"github.com/google/go-sev-guest/proto/sevsnp"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/evtpm/evtpm/attest"
	"github.com/evtpm/evtpm/attest/attesttest"
	"github.com/evtpm/evtpm/attest/evidence"
)

func TestGoTPMRoundTrip(t *testing.T) {
	for name, p := range map[string]attesttest.Processor{"Milan": attesttest.Milan, "Siena": attesttest.Siena, "Turin": attesttest.Turin} {
		t.Run(name, func(t *testing.T) {
			m := attesttest.NewMachine(p)
			m.EditReport = version5(3, 7)
			ev := m.Evidence()
			data, err := attest.EncodeGoTPM(ev)
			if err != nil {
				t.Fatal(err)
			}
			back, err := attest.ParseGoTPM(data, ev.Nonce)
			if err != nil {
				t.Fatal(err)
			}
			back.BootID = ev.BootID // has no place in the message
			if diff := cmp.Diff(ev, back); diff != "" {
				t.Errorf("evidence changed on its way:\n%s", diff)
			}
			v, err := attest.Verify(t.Context(), back, m.Golden(), options(m))
			if err != nil {
				t.Fatal(err)
			}
			want(t, v)
			if back, err = attest.ParseGoTPM(data, bytes.Repeat([]byte{1}, 64)); err != nil {
				t.Fatal(err)
			}
			if v, err = attest.Verify(t.Context(), back, m.Golden(), options(m)); err != nil {
				t.Fatal(err)
			}
			want(t, v, reportData, is(attest.CheckQuoteNonce, attest.ReasonQuoteNonce))
		})
	}
}

// TestGoTPMReportIsGoSevGuests: the report's message is what go-sev-guest reads
// and writes.
func TestGoTPMReportIsGoSevGuests(t *testing.T) {
	m := attesttest.NewMachine(attesttest.Turin)
	m.EditReport = version5(3, 7)
	ev := m.Evidence()
	data, err := attest.EncodeGoTPM(ev)
	if err != nil {
		t.Fatal(err)
	}
	snp := field(t, data, 2)
	var att sevsnp.Attestation
	if err := (proto.UnmarshalOptions{}).Unmarshal(snp, &att); err != nil {
		t.Fatal(err)
	}
	raw, err := abi.ReportToAbiBytes(att.Report)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(raw, ev.Report) {
		t.Error("go-sev-guest reads another report")
	}
	if !bytes.Equal(att.CertificateChain.VcekCert, m.LeafCertificate().Raw) {
		t.Error("go-sev-guest finds another VCEK")
	}
	// And back: what go-sev-guest writes, we read.
	theirs, err := proto.Marshal(&att)
	if err != nil {
		t.Fatal(err)
	}
	message := bytes.Replace(data, snp, theirs, 1)
	back, err := attest.ParseGoTPM(message, ev.Nonce)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(back.Report, ev.Report) {
		t.Error("we read another report than go-sev-guest wrote")
	}
}

// field finds a length-delimited field of a message.
func field(t *testing.T, b []byte, want protowire.Number) []byte {
	t.Helper()
	for len(b) > 0 {
		num, kind, n := protowire.ConsumeTag(b)
		if n < 0 || kind != protowire.BytesType {
			t.Fatal("not a message of the kind")
		}
		v, m := protowire.ConsumeBytes(b[n:])
		if num == want {
			return v
		}
		b = b[n+m:]
	}
	t.Fatalf("no field %d", want)
	return nil
}

func TestGoTPMMalformed(t *testing.T) {
	ev := genoa().Evidence()
	good, err := attest.EncodeGoTPM(ev)
	if err != nil {
		t.Fatal(err)
	}
	appended := func(num protowire.Number, v []byte) []byte {
		return protowire.AppendBytes(protowire.AppendTag(bytes.Clone(good), num, protowire.BytesType), v)
	}
	for name, data := range map[string][]byte{
		"empty":               nil,
		"garbage":             {0xFF, 0xFF, 0xFF},
		"cut short":           good[:len(good)-1],
		"manifest twice":      appended(3, ev.Manifest),
		"version twice":       appended(4, []byte("0")),
		"report twice":        appended(2, field(t, good, 2)),
		"attestation twice":   appended(1, field(t, good, 1)),
		"a fixed field":       append(bytes.Clone(good), protowire.AppendTag(nil, 9, protowire.Fixed32Type)...),
		"too many fields":     append(bytes.Clone(good), bytes.Repeat([]byte{0x50, 0}, 5000)...),
		"larger than allowed": make([]byte, evidence.MaxEvidence+1),
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := attest.ParseGoTPM(data, ev.Nonce); err == nil {
				t.Error("accepted")
			}
		})
	}
	for name, edit := range map[string]func(*evidence.Evidence){
		"services":      func(ev *evidence.Evidence) { ev.Binding = evidence.BindingSVSMServices },
		"sha384":        func(ev *evidence.Evidence) { ev.PCRBank = "sha384" },
		"no report":     func(ev *evidence.Evidence) { ev.Report = nil },
		"no AK":         func(ev *evidence.Evidence) { ev.AKPublic = nil },
		"bad cert list": func(ev *evidence.Evidence) { ev.Certificates = []byte{1} },
		"PCR 24":        func(ev *evidence.Evidence) { ev.PCRs[0].PCR = 24 },
		"PCR -1":        func(ev *evidence.Evidence) { ev.PCRs[0].PCR = -1 },
	} {
		t.Run(name, func(t *testing.T) {
			ev := genoa().Evidence()
			edit(ev)
			if _, err := attest.EncodeGoTPM(ev); err == nil {
				t.Error("encoded")
			}
		})
	}
	// A manifest without an EK, and one of version 1.
	ev = genoa().Evidence()
	ev.Manifest, ev.ManifestVersion = manifest1(1, 1, ev.AKPublic[2:]), 1
	data, err := attest.EncodeGoTPM(ev)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := attest.ParseGoTPM(data, ev.Nonce); err == nil {
		t.Error("a manifest without an EK was accepted")
	}
	ev = genoa().Evidence()
	ev.Manifest, ev.ManifestVersion = manifest1(1, 2, ev.AKPublic[2:], ev.EKPublic[2:]), 1
	if data, err = attest.EncodeGoTPM(ev); err != nil {
		t.Fatal(err)
	}
	back, err := attest.ParseGoTPM(data, ev.Nonce)
	if err != nil || !bytes.Equal(back.EKPublic, ev.EKPublic) {
		t.Errorf("a manifest of version 1: %v", err)
	}
}
