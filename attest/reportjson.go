package attest

import (
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/evtpm/evtpm/strictjson"
)

// jsonObject is a JSON object whose members are read one by one.
type jsonObject map[string]json.RawMessage

// has says whether a member is there, and not null.
func (o jsonObject) has(name string) bool {
	raw, ok := o[name]
	return ok && string(raw) != "null"
}

// read reads a member, and names it when that fails; one that is not there is
// nothing.
func (o jsonObject) read(name string, as func(json.RawMessage) ([]byte, error)) ([]byte, error) {
	if !o.has(name) {
		return nil, nil
	}
	b, err := as(o[name])
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return b, nil
}

// members are those of an object inside a document; nil for any other value. Where
// the document was read strictly, no member is there twice here, either.
func members(raw json.RawMessage) (o jsonObject) {
	_ = json.Unmarshal(raw, &o)
	return o
}

// reportFromJSON reads the JSON that other programs put reports into: Trustee's
// evidence ({"attestation_report", "cert_chain"}), the sev crate's report alone,
// and configfs-tsm's files ({"outblob", "auxblob"}); each also as the member
// "evidence" of an object. A report that comes as fields is put together again; its
// signature shows whether rightly.
func reportFromJSON(data []byte) (report, certTable []byte, err error) {
	var doc jsonObject
	if err := strictjson.Unmarshal(data, &doc, MaxReportFile, "report"); err != nil {
		return nil, nil, err
	}
	if inner := members(doc["evidence"]); inner != nil {
		doc, data = inner, doc["evidence"]
	}
	var tableErr error
	switch {
	case doc.has("outblob"):
		report, err = doc.read("outblob", jsonBase64)
		certTable, tableErr = doc.read("auxblob", jsonBase64)
	case doc.has("attestation_report"):
		report, err = doc.read("attestation_report", jsonReport)
		certTable, tableErr = doc.read("cert_chain", jsonChain)
	case doc.has("measurement") && doc.has("signature"):
		report, err = jsonReport(data)
	default:
		return nil, nil, errors.New("report: found JSON without attestation_report or outblob: evidence has commands of its own")
	}
	if err := errors.Join(err, tableErr); err != nil {
		return nil, nil, fmt.Errorf("report: %w", err)
	}
	if len(report) != ReportSize {
		return nil, nil, fmt.Errorf("%w: found %d bytes, expected %d", ErrReportLength, len(report), ReportSize)
	}
	if _, err := ParseCertTable(certTable); err != nil {
		return nil, nil, fmt.Errorf("report: %w", err)
	}
	return report, certTable, nil
}

// jsonBase64 reads a string of base64 in either alphabet, padded or not.
func jsonBase64(raw json.RawMessage) ([]byte, error) {
	var s string
	if err := json.Unmarshal(raw, &s); err != nil {
		return nil, err
	}
	s = strings.TrimRight(s, "=")
	if out, err := base64.RawStdEncoding.Strict().DecodeString(s); err == nil {
		return out, nil
	}
	return base64.RawURLEncoding.Strict().DecodeString(s)
}

// jsonBytes reads bytes as base64, or as a list of numbers.
func jsonBytes(raw json.RawMessage) ([]byte, error) {
	if strings.HasPrefix(string(raw), "[") {
		var list byteList
		err := list.UnmarshalJSON(raw)
		return list, err
	}
	return jsonBase64(raw)
}

// jsonReport reads a report's bytes, or its fields as the sev crate names them.
func jsonReport(raw json.RawMessage) ([]byte, error) {
	o := members(raw)
	if o == nil {
		return jsonBytes(raw)
	}
	f := reportFields{object: o, out: make([]byte, ReportSize)}
	f.number("version", offVersion, 4)
	f.number("guest_svn", offGuestSVN, 4)
	f.number("policy", offPolicy, 8)
	f.bytes("family_id", offFamilyID, 16)
	f.bytes("image_id", offImageID, 16)
	f.number("vmpl", offVMPL, 4)
	f.number("sig_algo", offSignatureAlgo, 4)
	f.tcb("current_tcb", offCurrentTCB)
	f.number("plat_info", offPlatformInfo, 8)
	if f.object.has("_author_key_en") { // before version 2 of the crate
		f.number("_author_key_en", offSignerInfo, 4)
	} else {
		f.number("key_info", offSignerInfo, 4)
	}
	f.bytes("report_data", offReportData, 64)
	f.bytes("measurement", offMeasurement, 48)
	f.bytes("host_data", offHostData, 32)
	f.bytes("id_key_digest", offIDKeyDigest, 48)
	f.bytes("author_key_digest", offAuthorKeyDigest, 48)
	f.bytes("report_id", offReportID, 32)
	f.bytes("report_id_ma", offReportIDMA, 32)
	f.tcb("reported_tcb", offReportedTCB)
	for i, name := range []string{"cpuid_fam_id", "cpuid_mod_id", "cpuid_step"} {
		f.optional(name, offCPUID+i, 1)
	}
	f.bytes("chip_id", offChipID, 64)
	f.tcb("committed_tcb", offCommittedTCB)
	f.version("current", offCurrentVersion)
	f.version("committed", offCommittedVer)
	f.tcb("launch_tcb", offLaunchTCB)
	f.optional("launch_mit_vector", offLaunchMit, 8)
	f.optional("current_mit_vector", offCurrentMit, 8)
	sig := f.inner("signature")
	sig.bytes("r", offSignatureR, scalarFieldSize)
	sig.bytes("s", offSignatureS, scalarFieldSize)
	sig.finish()
	f.finish()
	return f.out, f.err
}

// reportFields puts a report together from the fields of a JSON object; the first
// fault sticks.
type reportFields struct {
	object jsonObject
	out    []byte
	path   string
	seen   []string
	parent *reportFields
	err    error
}

func (f *reportFields) fault(name, format string, args ...any) {
	top := f
	for top.parent != nil {
		top = top.parent
	}
	if top.err == nil {
		top.err = fmt.Errorf("field %q: %s", f.path+name, fmt.Sprintf(format, args...))
	}
}

// take is a member's text, and notes that it was read. A missing one is a fault
// already: its text is empty, which is no value of any kind.
func (f *reportFields) take(name string) json.RawMessage {
	f.seen = append(f.seen, name)
	if !f.object.has(name) {
		f.fault(name, "found none")
		return nil
	}
	return f.object[name]
}

func (f *reportFields) number(name string, off, size int) {
	raw := f.take(name)
	v, err := strconv.ParseUint(string(raw), 10, 8*size)
	if err != nil {
		f.fault(name, "found %.40s, expected a number of %d bytes", raw, size)
		return
	}
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], v)
	copy(f.out[off:off+size], b[:])
}

// optional is a number that may be missing or null: zero.
func (f *reportFields) optional(name string, off, size int) {
	if f.object.has(name) {
		f.number(name, off, size)
	}
	f.seen = append(f.seen, name)
}

func (f *reportFields) bytes(name string, off, size int) {
	switch b, err := jsonBytes(f.take(name)); {
	case err != nil:
		f.fault(name, "%v", err)
	case len(b) != size:
		f.fault(name, "found %d bytes, expected %d", len(b), size)
	default:
		copy(f.out[off:], b)
	}
}

// inner is a member that is an object; if it is none, one without members.
func (f *reportFields) inner(name string) *reportFields {
	raw := f.take(name)
	in := &reportFields{object: members(raw), out: f.out, path: f.path + name + ".", parent: f}
	if in.object == nil {
		f.fault(name, "found %.40s, expected an object", raw)
	}
	return in
}

// tcb is a TCB version, in the layout of Turin and later if it has an FMC.
func (f *reportFields) tcb(name string, off int) {
	in := f.inner(name)
	snp := off + 6
	if in.object.has("fmc") {
		in.number("fmc", off, 1)
		off++
		snp = off + 2
	}
	in.seen = append(in.seen, "fmc")
	in.number("bootloader", off, 1)
	in.number("tee", off+1, 1)
	in.number("snp", snp, 1)
	in.number("microcode", off&^7+7, 1)
	in.finish()
}

// version is a firmware version: an object, or three members in old versions of
// the crate.
func (f *reportFields) version(name string, off int) {
	prefix, in := name+"_", f
	if f.object.has(name) {
		prefix, in = "", f.inner(name)
	}
	in.number(prefix+"build", off, 1)
	in.number(prefix+"minor", off+1, 1)
	in.number(prefix+"major", off+2, 1)
	if in != f {
		in.finish()
	}
}

// finish refuses members that were not read; reserved ones are zero, or else the
// signature does not fit.
func (f *reportFields) finish() {
	known := map[string]bool{}
	for _, name := range f.seen {
		known[name] = true
	}
	for name := range f.object {
		if !known[name] && !strings.HasPrefix(name, "_reserved") {
			f.fault(name, "not known")
		}
	}
}

// jsonChain reads certificates: a list of the sev crate's entries, or an object
// with a member for each.
func jsonChain(raw json.RawMessage) ([]byte, error) {
	guids := map[string]GUID{"VCEK": GUIDVCEK, "VLEK": GUIDVLEK, "ASK": GUIDASK, "ARK": GUIDARK, "CRL": GUIDCRL}
	var entries []CertEntry
	add := func(kind string, raw json.RawMessage) error {
		g, ok := guids[kind]
		if !ok {
			return nil
		}
		b, err := jsonBytes(raw)
		if err != nil {
			return fmt.Errorf("%s: %w", kind, err)
		}
		entries = append(entries, CertEntry{g, b})
		return nil
	}
	if o := members(raw); o != nil {
		var err error
		for _, kind := range []string{"vcek", "vlek", "ask", "ark"} {
			if o.has(kind) {
				err = errors.Join(err, add(strings.ToUpper(kind), o[kind]))
			}
		}
		return tableOf(entries), err
	}
	var list []struct {
		Type json.RawMessage `json:"cert_type"` // a name, or an object for other GUIDs
		Data json.RawMessage `json:"data"`
	}
	if err := strictjson.Unmarshal(raw, &list, MaxReportFile, "certificates"); err != nil {
		return nil, err
	}
	for _, e := range list {
		var kind string
		_ = json.Unmarshal(e.Type, &kind) // what is no name stays without one, and is passed over
		if err := add(kind, e.Data); err != nil {
			return nil, err
		}
	}
	return tableOf(entries), nil
}

// tableOf is a certificate table, or nothing for no certificates.
func tableOf(entries []CertEntry) []byte {
	if len(entries) == 0 {
		return nil
	}
	return EncodeCertTable(entries)
}
