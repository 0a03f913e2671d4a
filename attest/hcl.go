package attest

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/evtpm/evtpm/attest/evidence"
	"github.com/evtpm/evtpm/strictjson"
)

// Offsets in Azure's HCL report (Microsoft Learn, "Azure confidential VM guest
// attestation design", attestation report format; version 2 as OpenHCL writes
// it). Integers are little-endian.
const (
	hclMagic         = "HCLA"
	hclHeaderSize    = 32
	offHCLVersion    = 4
	offHCLSize       = 8
	offHCLRequest    = 12
	offHCLData       = hclHeaderSize + ReportSize // IGVM_REQUEST_DATA
	hclDataHeader    = 20
	hclRequestReport = 2 // request type: attestation report
	hclReportSNP     = 2 // report type
	hclHashSHA256    = 1
	maxHCLVersion    = 2 // OpenHCL's; the layout is that of version 1
	maxHCL           = 64 << 10
	maxAzure         = 256 << 10 // evidence that lists numbers has 36 KiB
)

// ErrHCL is wrapped by every error about a malformed HCL report.
var ErrHCL = errors.New("malformed HCL report")

// An HCLReport is Azure's envelope around an SNP report: the report, and the
// runtime data whose SHA-256 begins its REPORT_DATA.
type HCLReport struct {
	Report  []byte
	Runtime []byte // JSON
}

// ParseHCL takes an HCL report apart. What follows the runtime data must be
// zeros.
func ParseHCL(b []byte) (*HCLReport, error) {
	bad := func(format string, args ...any) (*HCLReport, error) {
		return nil, fmt.Errorf("%w: %s", ErrHCL, fmt.Sprintf(format, args...))
	}
	if len(b) < offHCLData+hclDataHeader || len(b) > maxHCL {
		return bad("found %d bytes, expected %d to %d", len(b), offHCLData+hclDataHeader, maxHCL)
	}
	le := binary.LittleEndian
	data := b[offHCLData:]
	dataSize, variable := uint64(le.Uint32(data)), uint64(le.Uint32(data[16:]))
	switch {
	case string(b[:4]) != hclMagic:
		return bad("magic is %q, expected %q", b[:4], hclMagic)
	case le.Uint32(b[offHCLVersion:])-1 >= maxHCLVersion:
		return bad("version is %d, expected 1 to %d", le.Uint32(b[offHCLVersion:]), maxHCLVersion)
	case le.Uint32(b[offHCLRequest:]) != hclRequestReport:
		return bad("request type is %d, expected %d", le.Uint32(b[offHCLRequest:]), hclRequestReport)
	case !allZero(b[offHCLRequest+4 : hclHeaderSize]):
		return bad("status or reserved bytes of the header are set")
	case le.Uint32(data[4:]) != 1:
		return bad("version of the data is %d, expected 1", le.Uint32(data[4:]))
	case le.Uint32(data[8:]) != hclReportSNP:
		return bad("report type is %d, expected %d (SNP)", le.Uint32(data[8:]), hclReportSNP)
	case le.Uint32(data[12:]) != hclHashSHA256:
		return bad("hash type is %d, expected %d (SHA-256)", le.Uint32(data[12:]), hclHashSHA256)
	case dataSize != hclDataHeader+variable:
		return bad("data has %d bytes, expected %d for %d of runtime data", dataSize, hclDataHeader+variable, variable)
	case uint64(le.Uint32(b[offHCLSize:])) != offHCLData+dataSize:
		return bad("size is %d, expected %d", le.Uint32(b[offHCLSize:]), offHCLData+dataSize)
	case offHCLData+dataSize > uint64(len(b)):
		return bad("size is %d, found %d bytes", offHCLData+dataSize, len(b))
	case !allZero(b[offHCLData+dataSize:]):
		return bad("bytes behind the runtime data")
	}
	return &HCLReport{Report: b[hclHeaderSize:offHCLData], Runtime: data[hclDataHeader:dataSize]}, nil
}

// hclAK is the AK's name in runtime data.
const hclAK = "HCLAkPub"

// hclKey is a key in runtime data, a JSON Web Key.
type hclKey struct {
	KID    string   `json:"kid"`
	KeyOps []string `json:"key_ops"`
	KTY    string   `json:"kty"`
	E      string   `json:"e"`
	N      string   `json:"n"`
}

// runtimeAK finds the AK in runtime data: exactly one key of its name, for
// signing alone, RSA of 2048 bits.
func runtimeAK(runtime []byte) (*tpmPublic, error) {
	var doc map[string]json.RawMessage
	if err := strictjson.Unmarshal(runtime, &doc, maxHCL, "runtime data"); err != nil {
		return nil, err
	}
	var keys []hclKey
	if err := json.Unmarshal(doc["keys"], &keys); err != nil {
		return nil, fmt.Errorf("runtime data: keys: %w", err)
	}
	var ak *hclKey
	for i, k := range keys {
		if k.KID != hclAK {
			continue
		}
		if ak != nil {
			return nil, fmt.Errorf("runtime data: two keys %s", hclAK)
		}
		ak = &keys[i]
	}
	if ak == nil {
		return nil, fmt.Errorf("runtime data: no key %s", hclAK)
	}
	n, err := base64.RawURLEncoding.Strict().DecodeString(ak.N)
	switch {
	case err != nil:
		return nil, fmt.Errorf("runtime data: %s: n: %w", hclAK, err)
	case ak.KTY != "RSA" || ak.E != "AQAB":
		return nil, fmt.Errorf("runtime data: %s: found kty %q, e %q, expected RSA, AQAB", hclAK, ak.KTY, ak.E)
	case len(ak.KeyOps) != 1 || ak.KeyOps[0] != "sign":
		return nil, fmt.Errorf("runtime data: %s: key_ops is %q, expected sign alone", hclAK, ak.KeyOps)
	}
	p := &tpmPublic{kind: algRSA, bits: 2048, modulus: n, scheme: algRSASSA, schemeHash: algSHA256}
	_, err = p.key()
	return p, err
}

// hclReportData is what REPORT_DATA must be over runtime data.
func hclReportData(runtime []byte) []byte {
	out := make([]byte, 64)
	sum := sha256.Sum256(runtime)
	copy(out, sum[:])
	return out
}

// hclEvidence makes the checks that stand in for those of EK, AK and manifest
// when Azure's paravisor vouches for the AK. The AK is nil if there is none.
func (v *verifier) hclEvidence(ev *evidence.Evidence) *tpmPublic {
	const noEK = "Azure's runtime data names the AK itself"
	v.put(skip(CheckEK, noEK), skip(CheckEKBound, noEK), v.hclNonce(ev))
	if v.parsed != nil {
		v.put(checkReportData(v.parsed, hclReportData(ev.Manifest), "SHA-256(runtime data), then zeros"))
	}
	if len(ev.EKPublic)+len(ev.AKPublic) > 0 || ev.ManifestVersion != 0 {
		c := fail(CheckManifest, ReasonManifest, "runtime data and no keys beside it", fmt.Sprintf("EK of %d bytes, AK of %d, version %d", len(ev.EKPublic), len(ev.AKPublic), ev.ManifestVersion))
		v.put(c, notMade(CheckAK, c), notMade(CheckAKResident, c))
		return nil
	}
	ak, err := runtimeAK(ev.Manifest)
	if err != nil {
		c := fail(CheckManifest, ReasonManifest, "runtime data with one AK", oneLine(err))
		v.put(c, notMade(CheckAK, c), notMade(CheckAKResident, c))
		return nil
	}
	v.put(
		pass(CheckManifest, fmt.Sprintf("runtime data, %d bytes", len(ev.Manifest))),
		skip(CheckAK, "runtime data gives the AK's modulus alone; its attributes are the paravisor's word"),
		pass(CheckAKResident, noEK),
	)
	return ak
}

// hclNonce judges the nonce, which goes into the quote as it is.
func (v *verifier) hclNonce(ev *evidence.Evidence) Check {
	if v.o.Live != nil {
		return fail(CheckNonce, ReasonNonceForeign, "the nonce of the challenge", "evidence of another protocol")
	}
	if n := len(ev.Nonce); n < 8 || n > NonceSize || allZero(ev.Nonce) {
		return fail(CheckNonce, ReasonNonceForm, fmt.Sprintf("8 to %d bytes", NonceSize), fmt.Sprintf("%d bytes", n))
	}
	return pass(CheckNonce, fmt.Sprintf("%x", ev.Nonce)).with("only a live challenge can show that it was fresh")
}

// ParseAzure reads evidence of an Azure confidential VM as Trustee's guest
// components write it (az-snp-vtpm, versions 0 to 2): an HCL report, a quote over
// the SHA-256 bank of all PCRs, and the VCEK certificate. nonce is what the quote
// must be over; it stands in the evidence as claimed.
func ParseAzure(data, nonce []byte) (*evidence.Evidence, error) {
	doc, err := readAzure(data)
	if err != nil {
		return nil, err
	}
	hcl, err := ParseHCL(doc.hcl)
	if err != nil {
		return nil, err
	}
	ev := &evidence.Evidence{
		Schema: evidence.Schema, Nonce: nonce, Binding: BindingAzureHCL,
		Report: hcl.Report, Manifest: hcl.Runtime, Quote: doc.message, PCRBank: "sha256",
	}
	ev.QuoteSignature = binary.BigEndian.AppendUint16(nil, algRSASSA)
	ev.QuoteSignature = binary.BigEndian.AppendUint16(ev.QuoteSignature, algSHA256)
	ev.QuoteSignature = append(ev.QuoteSignature, sized2B(doc.signature)...)
	for i, v := range doc.pcrs {
		ev.PCRs = append(ev.PCRs, evidence.PCR{PCR: i, Value: v})
	}
	b, err := ParseBundle(doc.vcek)
	if err != nil {
		return nil, fmt.Errorf("azure evidence: vcek: %w", err)
	}
	if len(b.Certificates) != 1 {
		return nil, fmt.Errorf("azure evidence: vcek: found %d certificates, expected one", len(b.Certificates))
	}
	ev.Certificates = EncodeCertTable([]CertEntry{{GUID: GUIDVCEK, Data: b.Certificates[0].Raw}})
	return ev, nil
}

// azureEvidence is what the versions of Azure evidence have in common.
type azureEvidence struct {
	hcl, message, signature, vcek []byte
	pcrs                          [][]byte
}

// readAzure reads the versions of Azure evidence: version 0 has lists of numbers
// and PEM, later ones hexadecimal and base64url of DER.
func readAzure(data []byte) (*azureEvidence, error) {
	var v struct {
		Version *int            `json:"version"`
		Report  byteList        `json:"report"`
		HCL     base64URL       `json:"hcl_report"`
		VCEK    string          `json:"vcek"` // PEM, or base64url of DER
		Quote   json.RawMessage `json:"quote"`
		TPM     json.RawMessage `json:"tpm_quote"`
	}
	const what = "azure evidence"
	if err := strictjson.Unmarshal(data, &v, maxAzure, what); err != nil {
		return nil, err
	}
	out := new(azureEvidence)
	switch {
	case v.Version == nil:
		var q struct {
			Message   byteList   `json:"message"`
			PCRs      []byteList `json:"pcrs"`
			Signature byteList   `json:"signature"`
		}
		if err := strictjson.Unmarshal(v.Quote, &q, maxAzure, what+": quote"); err != nil {
			return nil, err
		}
		out.hcl, out.vcek = v.Report, []byte(v.VCEK)
		out.message, out.signature = q.Message, q.Signature
		for _, p := range q.PCRs {
			out.pcrs = append(out.pcrs, p)
		}
	case *v.Version == 1 || *v.Version == 2:
		var q struct {
			Message   hexString   `json:"message"`
			PCRs      []hexString `json:"pcrs"`
			Signature hexString   `json:"signature"`
		}
		if err := strictjson.Unmarshal(v.TPM, &q, maxAzure, what+": tpm_quote"); err != nil {
			return nil, err
		}
		out.hcl = v.HCL
		out.message, out.signature = q.Message, q.Signature
		for _, p := range q.PCRs {
			out.pcrs = append(out.pcrs, p)
		}
		var der base64URL
		if err := der.UnmarshalText([]byte(v.VCEK)); err != nil {
			return nil, fmt.Errorf("%s: vcek: %w", what, err)
		}
		out.vcek = der
	default:
		return nil, fmt.Errorf("%s: version is %d, expected 0 to 2", what, *v.Version)
	}
	return out, nil
}

// byteList is bytes written as a list of numbers.
type byteList []byte

// UnmarshalJSON implements [json.Unmarshaler].
func (b *byteList) UnmarshalJSON(data []byte) error {
	var n []uint8
	// A []uint8 would be read as base64; numbers one by one are not.
	var list []json.Number
	if err := json.Unmarshal(data, &list); err != nil {
		return err
	}
	for _, x := range list {
		v, err := x.Int64()
		if err != nil || v < 0 || v > 255 {
			return fmt.Errorf("found %s, expected a byte", x)
		}
		n = append(n, uint8(v))
	}
	*b = n
	return nil
}

// base64URL is bytes in base64 of the URL alphabet, with or without padding.
type base64URL []byte

// UnmarshalText implements [encoding.TextUnmarshaler].
func (b *base64URL) UnmarshalText(text []byte) (err error) {
	*b, err = base64.RawURLEncoding.Strict().DecodeString(string(bytes.TrimRight(text, "=")))
	return err
}

// hexString is bytes in hexadecimal.
type hexString []byte

// UnmarshalText implements [encoding.TextUnmarshaler].
func (b *hexString) UnmarshalText(text []byte) (err error) {
	*b, err = fixedHex(string(text), len(text)/2)
	return err
}
