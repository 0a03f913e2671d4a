package attest_test

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"maps"
	"strings"
	"testing"

	"github.com/evtpm/evtpm/attest"
	"github.com/evtpm/evtpm/attest/attesttest"
)

// numberList is bytes as a list of numbers, as serde writes them.
func numberList(b []byte) []int {
	out := make([]int, len(b))
	for i, v := range b {
		out[i] = int(v)
	}
	return out
}

// sevReport is a report as the sev crate writes it; old is its first version's
// form.
func sevReport(b []byte, old bool) map[string]any {
	le := binary.LittleEndian
	tcb := func(off int) any {
		t := b[off:]
		switch {
		case old:
			return map[string]any{"bootloader": t[0], "tee": t[1], "_reserved": []int{0, 0, 0, 0}, "snp": t[6], "microcode": t[7]}
		case b[0x188] >= 0x1A:
			return map[string]any{"fmc": t[0], "bootloader": t[1], "tee": t[2], "snp": t[3], "microcode": t[7]}
		}
		return map[string]any{"fmc": nil, "bootloader": t[0], "tee": t[1], "snp": t[6], "microcode": t[7]}
	}
	out := map[string]any{
		"version": le.Uint32(b), "guest_svn": le.Uint32(b[4:]), "policy": le.Uint64(b[8:]),
		"family_id": numberList(b[0x10:0x20]), "image_id": numberList(b[0x20:0x30]), "vmpl": le.Uint32(b[0x30:]), "sig_algo": le.Uint32(b[0x34:]),
		"current_tcb": tcb(0x38), "plat_info": le.Uint64(b[0x40:]), "report_data": numberList(b[0x50:0x90]), "measurement": numberList(b[0x90:0xC0]),
		"host_data": numberList(b[0xC0:0xE0]), "id_key_digest": numberList(b[0xE0:0x110]), "author_key_digest": numberList(b[0x110:0x140]),
		"report_id": numberList(b[0x140:0x160]), "report_id_ma": numberList(b[0x160:0x180]), "reported_tcb": tcb(0x180),
		"chip_id": numberList(b[0x1A0:0x1E0]), "committed_tcb": tcb(0x1E0), "launch_tcb": tcb(0x1F0),
		"signature": map[string]any{"r": numberList(b[0x2A0:0x2E8]), "s": numberList(b[0x2E8:0x330])},
	}
	if old {
		maps.Copy(out, map[string]any{
			"_author_key_en": le.Uint32(b[0x48:]), "_reserved_0": 0, "current_build": b[0x1E8], "current_minor": b[0x1E9], "current_major": b[0x1EA],
			"committed_build": b[0x1EC], "committed_minor": b[0x1ED], "committed_major": b[0x1EE],
		})
		return out
	}
	maps.Copy(out, map[string]any{
		"key_info": le.Uint32(b[0x48:]), "cpuid_fam_id": b[0x188], "cpuid_mod_id": b[0x189], "cpuid_step": b[0x18A],
		"current":   map[string]any{"major": b[0x1EA], "minor": b[0x1E9], "build": b[0x1E8]},
		"committed": map[string]any{"major": b[0x1EE], "minor": b[0x1ED], "build": b[0x1EC]},
	})
	if le.Uint32(b) >= 5 {
		out["launch_mit_vector"], out["current_mit_vector"] = le.Uint64(b[0x1F8:]), le.Uint64(b[0x200:])
	}
	return out
}

func byGUID(entries []attest.CertEntry) map[attest.GUID][]byte {
	out := map[attest.GUID][]byte{}
	for _, e := range entries {
		out[e.GUID] = e.Data
	}
	return out
}

func document(t *testing.T, v any) []byte {
	t.Helper()
	out, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestReportInJSON(t *testing.T) {
	std, url := base64.StdEncoding.EncodeToString, base64.RawURLEncoding.EncodeToString
	for product, p := range map[string]attesttest.Processor{"Genoa": attesttest.Genoa, "Turin": attesttest.Turin} {
		m := attesttest.NewMachine(p)
		m.EditReport = func(r attesttest.Report) {
			r.PutU32(attesttest.OffVersion, 5)
			r.Put(0x1F8, []byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16})
		}
		raw, table := []byte(m.SignedReport([64]byte{1})), m.CertTable()
		entries, err := attest.ParseCertTable(table)
		if err != nil {
			t.Fatal(err)
		}
		kinds := map[attest.GUID]string{attest.GUIDVCEK: "VCEK", attest.GUIDASK: "ASK", attest.GUIDARK: "ARK"}
		var list []any
		object := map[string]any{"vlek": nil}
		for _, e := range entries {
			list = append(list, map[string]any{"cert_type": kinds[e.GUID], "data": numberList(e.Data)})
			object[strings.ToLower(kinds[e.GUID])] = std(e.Data)
		}
		vlek := []attest.CertEntry{{GUID: attest.GUIDVLEK, Data: []byte{1, 2}}}
		others := []any{
			map[string]any{"cert_type": "Empty", "data": []int{}}, map[string]any{"cert_type": "PSK", "data": []int{9}},
			map[string]any{"cert_type": "VLEK", "data": []int{1, 2}}, map[string]any{"cert_type": "CRL", "data": []int{3}},
		}
		otherTable := attest.EncodeCertTable(append(vlek, attest.CertEntry{GUID: attest.GUIDCRL, Data: []byte{3}}))
		for name, c := range map[string]struct {
			doc   any
			table []byte
		}{
			"the sev crate's fields":           {sevReport(raw, false), nil},
			"its fields, in another object":    {map[string]any{"evidence": sevReport(raw, false)}, nil},
			"Trustee's, without certificates":  {map[string]any{"attestation_report": sevReport(raw, false), "cert_chain": nil}, nil},
			"Trustee's, with certificates":     {map[string]any{"attestation_report": sevReport(raw, false), "cert_chain": append(list, map[string]any{"cert_type": map[string]any{"OTHER": "x"}, "data": []int{1}})}, table},
			"the bytes, in another object":     {map[string]any{"platform": "snp", "evidence": map[string]any{"attestation_report": std(raw), "cert_chain": object}}, table},
			"configfs-tsm":                     {map[string]any{"provider": "sev_guest\n", "outblob": url(raw), "auxblob": url(table)}, table},
			"configfs-tsm, without the others": {map[string]any{"outblob": std(raw), "auxblob": ""}, nil},
			"configfs-tsm, without auxblob":    {map[string]any{"outblob": std(raw)}, nil},
			"an empty list of certificates":    {map[string]any{"attestation_report": std(raw), "cert_chain": []any{}}, nil},
			"an object without certificates":   {map[string]any{"attestation_report": std(raw), "cert_chain": map[string]any{"vcek": nil}}, nil},
			"certificates of other kinds":      {map[string]any{"attestation_report": std(raw), "cert_chain": others}, otherTable},
			"a VLEK in an object":              {map[string]any{"attestation_report": std(raw), "cert_chain": map[string]any{"vlek": std([]byte{1, 2})}}, attest.EncodeCertTable(vlek)},
		} {
			t.Run(product+"/"+name, func(t *testing.T) {
				report, certs, err := attest.SplitReport(append([]byte("\n"), document(t, c.doc)...))
				if err != nil || !bytes.Equal(report, raw) {
					t.Fatalf("%v\n%x\n%x", err, report, raw)
				}
				found, err := attest.ParseCertTable(certs)
				expected, expectedErr := attest.ParseCertTable(c.table)
				if err != nil || expectedErr != nil || len(certs) != len(c.table) || !maps.EqualFunc(byGUID(found), byGUID(expected), bytes.Equal) {
					t.Errorf("%v, %v: found a table of %d bytes, expected %d\n%x\n%x", err, expectedErr, len(certs), len(c.table), certs, c.table)
				}
			})
		}
	}
}

// The first versions of the sev crate wrote version-2 reports in another form.
func TestReportInOldJSON(t *testing.T) {
	m := genoa()
	m.EditReport = func(r attesttest.Report) {
		r.PutU32(attesttest.OffVersion, 2)
		r.Put(0x188, []byte{0, 0, 0})
	}
	raw := []byte(m.SignedReport([64]byte{1}))
	nulls := sevReport(raw, false) // what version 2 has not is null in later versions of the crate
	for _, name := range []string{"cpuid_fam_id", "cpuid_mod_id", "cpuid_step", "launch_mit_vector", "current_mit_vector"} {
		nulls[name] = nil
	}
	for name, fields := range map[string]any{"old": sevReport(raw, true), "with nulls": nulls} {
		report, _, err := attest.SplitReport(document(t, map[string]any{"attestation_report": fields, "cert_chain": nil}))
		if err != nil || !bytes.Equal(report, raw) {
			t.Errorf("%s: %v\n%x\n%x", name, err, report, raw)
		}
	}
}

func TestReportInBadJSON(t *testing.T) {
	raw := []byte(genoa().SignedReport([64]byte{1}))
	with := func(name string, v any) any {
		out := sevReport(raw, false)
		out[name] = v
		return out
	}
	without := sevReport(raw, false)
	delete(without, "host_data")
	withoutNumber := sevReport(raw, false)
	delete(withoutNumber, "guest_svn")
	zeros := numberList(make([]byte, 72))
	for want, doc := range map[string]any{
		`report: found JSON without attestation_report or outblob`:               map[string]any{"report": ""},
		`report: field "host_data": found none`:                                  without,
		`report: field "cpuid_family": not known`:                                with("cpuid_family", 1),
		`report: field "vmpl": found 4294967296, expected a number of 4 bytes`:   with("vmpl", 1<<32),
		`report: field "vmpl": found "0", expected a number of 4 bytes`:          with("vmpl", "0"),
		`report: field "chip_id": found 63 bytes, expected 64`:                   with("chip_id", numberList(make([]byte, 63))),
		`report: field "chip_id": found 256, expected a byte`:                    with("chip_id", []int{256}),
		`report: field "launch_tcb.tee": found none`:                             with("launch_tcb", map[string]any{"bootloader": 1}),
		`report: field "launch_tcb.hsp": not known`:                              with("launch_tcb", map[string]any{"bootloader": 1, "tee": 1, "snp": 1, "microcode": 1, "hsp": 1}),
		`report: field "signature.r": found 1 bytes, expected 72`:                with("signature", map[string]any{"r": []int{0}, "s": numberList(make([]byte, 72))}),
		`report: field "current": found 1, expected an object`:                   with("current", 1),
		`report: field "reported_tcb": found none`:                               with("reported_tcb", nil),
		`report: field "current.patch": not known`:                               with("current", map[string]any{"major": 1, "minor": 1, "build": 1, "patch": 1}),
		`report: field "committed.minor": found none`:                            with("committed", map[string]any{"major": 1, "build": 1}),
		`report: field "current_build": found none`:                              with("current", nil),
		`report: field "signature.algo": not known`:                              with("signature", map[string]any{"r": zeros, "s": zeros, "algo": 1}),
		`report: field "guest_svn": found none`:                                  withoutNumber,
		`report: attestation_report: field "measurement": found none`:            map[string]any{"attestation_report": with("measurement", nil)},
		`report: attestation_report: field "signature": found none`:              map[string]any{"attestation_report": with("signature", nil)},
		`report: field "signature": found [], expected an object`:                with("signature", []any{}),
		`report: field "report_data": found none`:                                with("report_data", nil),
		`report: found JSON without attestation_report or outblob: evidence`:     map[string]any{"signature": "AA"},
		`report: found JSON without attestation_report or outblob: evidence has`: map[string]any{"measurement": "AA"},
		`report: attestation_report: illegal base64`:                             map[string]any{"attestation_report": "!"},
		`attestation report has the wrong length: found 3 bytes, expected 1184`:  map[string]any{"attestation_report": "AAAA"},
		`report: outblob: json: cannot unmarshal number`:                         map[string]any{"outblob": 5},
		`report: auxblob: illegal base64`:                                        map[string]any{"outblob": "AAAA", "auxblob": "!"},
		`report: malformed certificate table: no terminating entry`:              map[string]any{"outblob": base64.StdEncoding.EncodeToString(raw), "auxblob": "AAAA"},
		`report: cert_chain: VCEK: found 256, expected a byte`:                   map[string]any{"attestation_report": "AAAA", "cert_chain": []any{map[string]any{"cert_type": "VCEK", "data": []int{256}}}},
		`report: cert_chain: ASK: illegal base64`:                                map[string]any{"attestation_report": "AAAA", "cert_chain": map[string]any{"ask": "!"}},
		`report: cert_chain: VLEK: unexpected end of JSON input`:                 map[string]any{"attestation_report": "AAAA", "cert_chain": []any{map[string]any{"cert_type": "VLEK"}}},
		`report: cert_chain: certificates: json: cannot unmarshal`:               map[string]any{"attestation_report": "AAAA", "cert_chain": 5},
		`report: cert_chain: certificates: field "[0].kind": not known`:          map[string]any{"attestation_report": "AAAA", "cert_chain": []any{map[string]any{"kind": 1}}},
		`report: malformed certificate table: entry 63da758d-e664-4564-adc5-f4b93be8accd is repeated`: map[string]any{"attestation_report": base64.StdEncoding.EncodeToString(raw), "cert_chain": []any{
			map[string]any{"cert_type": "VCEK", "data": []int{1}}, map[string]any{"cert_type": "VCEK", "data": []int{1}}}},
		`report: malformed certificate table: entry a8074bc2-a25a-483e-aae6-39c045a0b8a1 has 0 bytes`: map[string]any{"attestation_report": base64.StdEncoding.EncodeToString(raw), "cert_chain": []any{map[string]any{"cert_type": "VLEK", "data": nil}}},
	} {
		t.Run(want, func(t *testing.T) {
			if _, _, err := attest.SplitReport(document(t, doc)); err == nil || !strings.HasPrefix(err.Error(), want) {
				t.Errorf("error is %v", err)
			}
		})
	}
	for text, want := range map[string]string{
		"{":                          `report: unexpected EOF`,
		`{"a":1,"a":2}`:              `report: field "a": found twice`,
		`{"outblob":"AA"} x`:         `report: found more after the end of the document`,
		`{"evidence":{"a":1,"a":2}}`: `report: field "evidence.a": found twice`,
		`{"evidence":{"cert_chain":{"ask":"AA","ask":"AA"}}}`:      `report: field "evidence.cert_chain.ask": found twice`,
		`{"attestation_report":{"signature":{"r":"AA","r":"AA"}}}`: `report: field "attestation_report.signature.r": found twice`,
		`{"measurement":"AA","signature":"AA","signature":"AA"}`:   `report: field "signature": found twice`,
	} {
		if _, _, err := attest.SplitReport([]byte(text)); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%s: error is %v", text, err)
		}
	}
}

// The sev-guest device's answer is 4000 bytes with a header before the report.
func TestReportResponse(t *testing.T) {
	raw := []byte(genoa().SignedReport([64]byte{1}))
	rsp := make([]byte, 4000)
	binary.LittleEndian.PutUint32(rsp[4:], 1184)
	copy(rsp[32:], raw)
	for _, data := range [][]byte{rsp, rsp[:32+1184]} {
		if report, table, err := attest.SplitReport(data); err != nil || !bytes.Equal(report, raw) || table != nil {
			t.Errorf("%d bytes: %v", len(data), err)
		}
	}
	for name, at := range map[string]int{"status": 0, "size": 4, "reserved": 31, "bytes behind": 3999} {
		bad := bytes.Clone(rsp)
		bad[at]++
		if report, _, err := attest.SplitReport(bad); err == nil && bytes.Equal(report, raw) {
			t.Errorf("%s: accepted", name)
		}
	}
}
