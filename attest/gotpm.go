package attest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strconv"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/evtpm/evtpm/attest/evidence"
)

// go-tpm-tools saves a vTPM's attestation as the protocol buffer message
// attest.SevSnpSvsmAttestation (gotpm attest svsm). Its wire form is read and
// written by hand here; the field numbers are those of go-tpm-tools'
// proto/attest.proto and proto/tpm.proto, and of go-sev-guest's
// proto/sevsnp.proto.
const (
	// SevSnpSvsmAttestation.
	pbSVSMAttestation     = 1
	pbSVSMReport          = 2
	pbSVSMManifest        = 3
	pbSVSMManifestVersion = 4
	// attest.Attestation.
	pbAttAKPub    = 1
	pbAttQuotes   = 2
	pbAttEventLog = 3
	// tpm.Quote.
	pbQuoteQuote  = 1
	pbQuoteRawSig = 2
	pbQuotePCRs   = 3
	// tpm.PCRs.
	pbPCRsHash = 1
	pbPCRsMap  = 2
	// sevsnp.Attestation.
	pbSNPReport = 1
	pbSNPChain  = 2
	// sevsnp.CertificateChain.
	pbChainVCEK = 1
	pbChainASK  = 2
	pbChainARK  = 3
	pbChainVLEK = 6
	// Map entries.
	pbMapKey   = 1
	pbMapValue = 2
)

// maxGoTPM bounds a message; maxPBFields the fields of one message.
const (
	maxGoTPM    = evidence.MaxEvidence
	maxPBFields = 4096
)

// pbReportField is a field of sevsnp.Report and where it lies in the report:
// bytes of that length, or an integer of that many bytes.
type pbReportField struct {
	num     protowire.Number
	off, n  int
	integer bool
}

// pbReport lists the fields of sevsnp.Report. CPUID's (29) is not among them: it
// is CPUID 1.EAX, and lies in three bytes.
var pbReport = []pbReportField{
	{1, offVersion, 4, true}, {2, offGuestSVN, 4, true}, {3, offPolicy, 8, true},
	{4, offFamilyID, 16, false}, {5, offImageID, 16, false}, {6, offVMPL, 4, true},
	{7, offSignatureAlgo, 4, true}, {8, offCurrentTCB, 8, true}, {9, offPlatformInfo, 8, true},
	{10, offSignerInfo, 4, true}, {11, offReportData, 64, false}, {12, offMeasurement, 48, false},
	{13, offHostData, 32, false}, {14, offIDKeyDigest, 48, false}, {15, offAuthorKeyDigest, 48, false},
	{16, offReportID, 32, false}, {17, offReportIDMA, 32, false}, {18, offReportedTCB, 8, true},
	{19, offChipID, 64, false}, {20, offCommittedTCB, 8, true},
	{21, offCurrentVersion, 1, true}, {22, offCurrentVersion + 1, 1, true}, {23, offCurrentVersion + 2, 1, true},
	{24, offCommittedVer, 1, true}, {25, offCommittedVer + 1, 1, true}, {26, offCommittedVer + 2, 1, true},
	{27, offLaunchTCB, 8, true}, {28, offSignature, ReportSize - offSignature, false},
	{30, offLaunchMit, 8, true}, {31, offCurrentMit, 8, true},
}

// pbReportCPUID is cpuid1eax_fms.
const pbReportCPUID = 29

// ErrGoTPM is wrapped by every error about a malformed SevSnpSvsmAttestation.
var ErrGoTPM = errors.New("malformed SevSnpSvsmAttestation")

// pbMessage is a message's fields in order.
type pbMessage []pbField

type pbField struct {
	num    protowire.Number
	number uint64 // of varint fields
	bytes  []byte // of length-delimited fields
}

// parsePB reads a message that has varint and length-delimited fields only.
func parsePB(b []byte) (pbMessage, error) {
	var m pbMessage
	for len(b) > 0 {
		if len(m) == maxPBFields {
			return nil, fmt.Errorf("%w: more than %d fields", ErrGoTPM, maxPBFields)
		}
		num, kind, n := protowire.ConsumeTag(b)
		if err := protowire.ParseError(n); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrGoTPM, err)
		}
		b = b[n:]
		f := pbField{num: num}
		switch kind {
		case protowire.VarintType:
			f.number, n = protowire.ConsumeVarint(b)
		case protowire.BytesType:
			f.bytes, n = protowire.ConsumeBytes(b)
		default:
			return nil, fmt.Errorf("%w: field %d has wire type %d", ErrGoTPM, num, kind)
		}
		if err := protowire.ParseError(n); err != nil {
			return nil, fmt.Errorf("%w: field %d: %w", ErrGoTPM, num, err)
		}
		b = b[n:]
		m = append(m, f)
	}
	return m, nil
}

// one returns the only field of a number; an absent one is zero. Two would let
// readers disagree.
func (m pbMessage) one(num protowire.Number) (pbField, error) {
	var out pbField
	seen := false
	for _, f := range m {
		if f.num != num {
			continue
		}
		if seen {
			return out, fmt.Errorf("%w: field %d is repeated", ErrGoTPM, num)
		}
		out, seen = f, true
	}
	return out, nil
}

// sub reads the only field of a number as a message.
func (m pbMessage) sub(num protowire.Number) (pbMessage, error) {
	f, err := m.one(num)
	if err != nil {
		return nil, err
	}
	return parsePB(f.bytes)
}

// ParseGoTPM reads a SevSnpSvsmAttestation. The TEE nonce is not part of it:
// nonce is the verifier's, 64 bytes, and the quote's nonce must have been its
// SHA-256 (gotpm attest svsm --tee-nonce N --nonce SHA-256(N)). Of its quotes that
// over the SHA-256 bank is taken.
func ParseGoTPM(data, nonce []byte) (*evidence.Evidence, error) {
	if len(data) > maxGoTPM {
		return nil, fmt.Errorf("%w: found %d bytes, expected at most %d", ErrGoTPM, len(data), maxGoTPM)
	}
	m, err := parsePB(data)
	if err != nil {
		return nil, err
	}
	ev := &evidence.Evidence{Schema: evidence.Schema, Nonce: nonce, Binding: evidence.BindingSVSM}
	manifest, err := m.one(pbSVSMManifest)
	if err != nil {
		return nil, err
	}
	ev.Manifest = manifest.bytes
	version, err := m.one(pbSVSMManifestVersion)
	if err != nil {
		return nil, err
	}
	n, err := strconv.ParseUint(string(version.bytes), 10, 32)
	if err != nil {
		return nil, fmt.Errorf("%w: manifest version is %q", ErrGoTPM, clip(version.bytes, 16))
	}
	ev.ManifestVersion = uint32(n)
	if err := readGoTPMReport(m, ev); err != nil {
		return nil, err
	}
	if err := readGoTPMQuote(m, ev); err != nil {
		return nil, err
	}
	return ev, readGoTPMKeys(ev)
}

// readGoTPMKeys takes the EK out of the manifest: version 0 is the EK, version 1
// lists keys, of which the EK is the one with its template.
func readGoTPMKeys(ev *evidence.Evidence) error {
	keys, err := parseVTPMManifest(ev.Manifest, ev.ManifestVersion)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrGoTPM, err)
	}
	for _, k := range keys {
		if bytes.HasPrefix(k.raw, ekPrefix) {
			ev.EKPublic = sized2B(k.raw)
			return nil
		}
	}
	return fmt.Errorf("%w: no EK in the manifest", ErrGoTPM)
}

func readGoTPMReport(m pbMessage, ev *evidence.Evidence) error {
	snp, err := m.sub(pbSVSMReport)
	if err != nil {
		return err
	}
	report, err := snp.sub(pbSNPReport)
	if err != nil {
		return err
	}
	if ev.Report, err = reportFromPB(report); err != nil {
		return err
	}
	chain, err := snp.sub(pbSNPChain)
	if err != nil {
		return err
	}
	var entries []CertEntry
	for _, c := range []struct {
		num  protowire.Number
		guid GUID
	}{{pbChainVCEK, GUIDVCEK}, {pbChainVLEK, GUIDVLEK}, {pbChainASK, GUIDASK}, {pbChainARK, GUIDARK}} {
		f, err := chain.one(c.num)
		if err != nil {
			return err
		}
		if len(f.bytes) > 0 {
			entries = append(entries, CertEntry{c.guid, f.bytes})
		}
	}
	if len(entries) > 0 {
		ev.Certificates = EncodeCertTable(entries)
	}
	return nil
}

// reportFromPB lays a sevsnp.Report out as the ABI has it. Reserved bytes are not
// in the message; if they were set in the report, its signature does not verify.
func reportFromPB(m pbMessage) ([]byte, error) {
	out := make([]byte, ReportSize)
	for _, rf := range pbReport {
		f, err := m.one(rf.num)
		if err != nil {
			return nil, err
		}
		if !rf.integer {
			if len(f.bytes) != rf.n {
				return nil, fmt.Errorf("%w: report field %d has %d bytes, expected %d", ErrGoTPM, rf.num, len(f.bytes), rf.n)
			}
			copy(out[rf.off:], f.bytes)
			continue
		}
		if f.number>>(8*rf.n) != 0 {
			return nil, fmt.Errorf("%w: report field %d is %#x, expected %d bytes", ErrGoTPM, rf.num, f.number, rf.n)
		}
		for i := range rf.n {
			out[rf.off+i] = byte(f.number >> (8 * i))
		}
	}
	f, err := m.one(pbReportCPUID)
	if err != nil {
		return nil, err
	}
	if f.number > math.MaxUint32 {
		return nil, fmt.Errorf("%w: CPUID is %#x", ErrGoTPM, f.number)
	}
	if binary.LittleEndian.Uint32(out) >= cpuidVersion {
		c := cpuidOfEAX(uint32(f.number))
		copy(out[offCPUID:], []byte{c.Family, c.Model, c.Stepping})
	}
	return out, nil
}

// cpuidOfEAX takes CPUID 1.EAX apart (AMD 24594, CPUID Fn0000_0001_EAX).
func cpuidOfEAX(eax uint32) CPUID {
	family := eax >> 8 & 0xF
	model := eax >> 4 & 0xF
	if family == 0xF {
		family += eax >> 20 & 0xFF
		model |= eax >> 12 & 0xF0
	}
	return CPUID{Family: uint8(family), Model: uint8(model), Stepping: uint8(eax & 0xF)}
}

// eax is the inverse of cpuidOfEAX for families from 0Fh on.
func (c CPUID) eax() uint32 {
	return uint32(c.Family-0xF)<<20 | 0xF<<8 | uint32(c.Model>>4)<<16 | uint32(c.Model&0xF)<<4 | uint32(c.Stepping)
}

func readGoTPMQuote(m pbMessage, ev *evidence.Evidence) error {
	att, err := m.sub(pbSVSMAttestation)
	if err != nil {
		return err
	}
	ak, err := att.one(pbAttAKPub)
	if err != nil {
		return err
	}
	if len(ak.bytes) > math.MaxUint16 {
		return fmt.Errorf("%w: AK has %d bytes", ErrGoTPM, len(ak.bytes))
	}
	ev.AKPublic = sized2B(ak.bytes)
	log, err := att.one(pbAttEventLog)
	if err != nil {
		return err
	}
	ev.EventLog = log.bytes
	for _, f := range att {
		if f.num != pbAttQuotes {
			continue
		}
		found, err := readGoTPMBank(f.bytes, ev)
		if err != nil || found {
			return err
		}
	}
	return fmt.Errorf("%w: no quote over the SHA-256 bank", ErrGoTPM)
}

// readGoTPMBank reads a quote if it is over the SHA-256 bank.
func readGoTPMBank(b []byte, ev *evidence.Evidence) (found bool, err error) {
	quote, err := parsePB(b)
	if err != nil {
		return false, err
	}
	pcrs, err := quote.sub(pbQuotePCRs)
	if err != nil {
		return false, err
	}
	bank, err := pcrs.one(pbPCRsHash)
	if err != nil || bank.number != algSHA256 {
		return false, err
	}
	message, err := quote.one(pbQuoteQuote)
	if err != nil {
		return false, err
	}
	sig, err := quote.one(pbQuoteRawSig)
	if err != nil {
		return false, err
	}
	ev.PCRBank, ev.Quote, ev.QuoteSignature = "sha256", message.bytes, sig.bytes
	values := map[int][]byte{}
	for _, f := range pcrs {
		if f.num != pbPCRsMap {
			continue
		}
		entry, err := parsePB(f.bytes)
		if err != nil {
			return false, err
		}
		key, err := entry.one(pbMapKey)
		if err != nil {
			return false, err
		}
		value, err := entry.one(pbMapValue)
		if err != nil {
			return false, err
		}
		if _, twice := values[int(key.number)]; twice || key.number >= pcrCount {
			return false, fmt.Errorf("%w: PCR %d is repeated or does not exist", ErrGoTPM, key.number)
		}
		values[int(key.number)] = value.bytes
	}
	for i := range pcrCount {
		if v, ok := values[i]; ok {
			ev.PCRs = append(ev.PCRs, evidence.PCR{PCR: i, Value: v})
		}
	}
	return true, nil
}

// EncodeGoTPM writes evidence as a SevSnpSvsmAttestation, without nonce and boot
// id, which the message has no place for. Only evidence of the single-service
// binding over the SHA-256 bank has that form.
func EncodeGoTPM(ev *evidence.Evidence) ([]byte, error) {
	switch {
	case ev.Binding != evidence.BindingSVSM:
		return nil, fmt.Errorf("go-tpm-tools: binding is %q, expected %q", ev.Binding, evidence.BindingSVSM)
	case ev.PCRBank != "sha256":
		return nil, fmt.Errorf("go-tpm-tools: PCR bank is %q, expected sha256", ev.PCRBank)
	}
	r, err := ParseReport(ev.Report)
	if err != nil {
		return nil, fmt.Errorf("go-tpm-tools: %w", err)
	}
	ak, err := parsePublic2B(ev.AKPublic)
	if err != nil {
		return nil, fmt.Errorf("go-tpm-tools: AK: %w", err)
	}
	entries, err := ParseCertTable(ev.Certificates)
	if err != nil {
		return nil, fmt.Errorf("go-tpm-tools: %w", err)
	}
	var chain []byte
	for _, e := range entries {
		for num, guid := range map[protowire.Number]GUID{pbChainVCEK: GUIDVCEK, pbChainVLEK: GUIDVLEK, pbChainASK: GUIDASK, pbChainARK: GUIDARK} {
			if e.GUID == guid {
				chain = pbBytes(chain, num, e.Data)
			}
		}
	}
	var pcrs []byte
	pcrs = pbNumber(pcrs, pbPCRsHash, algSHA256)
	for _, p := range ev.PCRs {
		if p.PCR < 0 || p.PCR >= pcrCount {
			return nil, fmt.Errorf("go-tpm-tools: PCR %d", p.PCR)
		}
		entry := pbBytes(pbNumber(nil, pbMapKey, uint64(p.PCR)), pbMapValue, p.Value)
		pcrs = pbBytes(pcrs, pbPCRsMap, entry)
	}
	quote := pbBytes(pbBytes(pbBytes(nil, pbQuoteQuote, ev.Quote), pbQuoteRawSig, ev.QuoteSignature), pbQuotePCRs, pcrs)
	att := pbBytes(pbBytes(pbBytes(nil, pbAttAKPub, ak.raw), pbAttQuotes, quote), pbAttEventLog, ev.EventLog)
	snp := pbBytes(pbBytes(nil, pbSNPReport, reportToPB(r)), pbSNPChain, chain)
	out := pbBytes(pbBytes(nil, pbSVSMAttestation, att), pbSVSMReport, snp)
	out = pbBytes(out, pbSVSMManifest, ev.Manifest)
	return pbBytes(out, pbSVSMManifestVersion, []byte(strconv.FormatUint(uint64(ev.ManifestVersion), 10))), nil
}

func reportToPB(r *Report) []byte {
	var out []byte
	for _, rf := range pbReport {
		if !rf.integer {
			out = pbBytes(out, rf.num, r.Raw[rf.off:rf.off+rf.n])
			continue
		}
		var v uint64
		for i := range rf.n {
			v |= uint64(r.Raw[rf.off+i]) << (8 * i)
		}
		out = pbNumber(out, rf.num, v)
	}
	if r.CPUID != nil {
		out = pbNumber(out, pbReportCPUID, uint64(r.CPUID.eax()))
	}
	return out
}

// pbBytes and pbNumber append fields; like the library, they leave out zeros.
func pbBytes(b []byte, num protowire.Number, v []byte) []byte {
	if len(v) == 0 {
		return b
	}
	return protowire.AppendBytes(protowire.AppendTag(b, num, protowire.BytesType), v)
}

func pbNumber(b []byte, num protowire.Number, v uint64) []byte {
	if v == 0 {
		return b
	}
	return protowire.AppendVarint(protowire.AppendTag(b, num, protowire.VarintType), v)
}
