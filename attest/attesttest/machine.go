package attesttest

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"errors"
	"net"

	"github.com/evtpm/evtpm/attest/evidence"
	"github.com/evtpm/evtpm/measure"
	"github.com/google/go-tpm/tpm2"
)

// A Processor is one of those that the default policy has floors for, with
// levels that meet them.
type Processor struct {
	Line   string
	CPUID  [3]byte
	Levels [5]uint8 // fmc, boot loader, TEE, SNP, microcode
}

// Processors.
var (
	Milan = Processor{"Milan", [3]byte{0x19, 0x01, 0x01}, [5]uint8{0, 4, 0, 29, 222}}
	Genoa = Processor{"Genoa", [3]byte{0x19, 0x11, 0x01}, [5]uint8{0, 10, 0, 27, 86}}
	Siena = Processor{"Genoa", [3]byte{0x19, 0xA0, 0x02}, [5]uint8{0, 10, 0, 27, 27}}
	Turin = Processor{"Turin", [3]byte{0x1A, 0x02, 0x01}, [5]uint8{1, 1, 1, 4, 81}}
)

// RawTCB is the processor's TCB_VERSION for levels.
func (p Processor) RawTCB(l [5]uint8) uint64 {
	if p.Line == "Turin" {
		return uint64(l[0]) | uint64(l[1])<<8 | uint64(l[2])<<16 | uint64(l[3])<<24 | uint64(l[4])<<56
	}
	return uint64(l[1]) | uint64(l[2])<<8 | uint64(l[3])<<48 | uint64(l[4])<<56
}

// A Machine is a launched machine with a vTPM: everything about it is in order
// until a field is changed.
type Machine struct {
	Processor Processor
	Signer    *Signer
	ChipID    [64]byte
	TPM       *VTPM
	Events    []Event
	Binding   string
	// ManifestVersion and Services shape the SVSM's manifest.
	BootID string

	// Leaf is the certificate's description; nil means one that fits.
	Leaf *Leaf

	// Hooks change a part before it is signed or sent; nil leaves it alone.
	EditReport   func(Report)           // before the report is signed
	EditSigned   func(Report)           // after
	EditManifest func([]byte) []byte    // before it is hashed into REPORT_DATA
	EditQuote    func(*tpm2.TPMSAttest) // before the quote is signed
	EditEvidence func(*evidence.Evidence)
}

// NewMachine makes a machine on a processor, booted directly into a kernel.
func NewMachine(p Processor) *Machine {
	m := &Machine{
		Processor: p, Signer: NewSigner(p.Line), TPM: NewVTPM(3, false),
		Events: DirectBoot(), Binding: evidence.BindingSVSM, BootID: "6a4b6f0c-8a52-4d6f-9c4e-2f6a3c1d0e5b",
	}
	for i := range m.ChipID {
		m.ChipID[i] = byte(0xA0 + i)
	}
	if p.Line == "Turin" {
		clear(m.ChipID[8:])
	}
	m.TPM.Extend(m.Events)
	return m
}

// LaunchDigest is the measurement of every machine made here.
var LaunchDigest = measure.Digest(sha512.Sum384([]byte("launch")))

// GuestPolicy is the guest policy of every machine made here.
const GuestPolicy = 0x30000

// Report makes the unsigned report with a report data.
func (m *Machine) Report(data [64]byte) Report {
	r := make(Report, ReportSize)
	r.PutU32(OffVersion, 3)
	r.PutU64(OffPolicy, GuestPolicy)
	r.PutU32(OffSignatureAlgo, 1)
	r.PutTCBs(m.Processor.RawTCB(m.Processor.Levels))
	r.PutU64(OffPlatformInfo, 0x25)
	r.Put(OffReportData, data[:])
	r.Put(OffMeasurement, LaunchDigest[:])
	id := sha256.Sum256([]byte("report id"))
	r.Put(OffReportID, id[:])
	r.Put(OffReportIDMA, bytes.Repeat([]byte{0xFF}, 32))
	r.Put(OffCPUID, m.Processor.CPUID[:])
	r.Put(OffChipID, m.ChipID[:])
	r.Put(OffCurrentVersion, []byte{49, 55, 1})
	r.Put(OffCommittedVersion, []byte{49, 55, 1})
	return r
}

// SignedReport makes a signed report, the hooks having had their turn.
func (m *Machine) SignedReport(data [64]byte) Report {
	r := m.Report(data)
	if m.EditReport != nil {
		m.EditReport(r)
	}
	r.Sign(LeafKey())
	if m.EditSigned != nil {
		m.EditSigned(r)
	}
	return r
}

// LeafCertificate makes the machine's VCEK certificate, or what Leaf says.
func (m *Machine) LeafCertificate() *x509.Certificate {
	l := Leaf{ChipID: m.ChipID, Levels: m.Processor.Levels}
	if m.Leaf != nil {
		l = *m.Leaf
	}
	return m.Signer.Leaf(l)
}

// GUIDs of a certificate table in the order of their text, as hosts write them,
// and of manifests in UEFI's.
var (
	guidVCEK = [16]byte{0x63, 0xda, 0x75, 0x8d, 0xe6, 0x64, 0x45, 0x64, 0xad, 0xc5, 0xf4, 0xb9, 0x3b, 0xe8, 0xac, 0xcd}
	guidVLEK = [16]byte{0xa8, 0x07, 0x4b, 0xc2, 0xa2, 0x5a, 0x48, 0x3e, 0xaa, 0xe6, 0x39, 0xc0, 0x45, 0xa0, 0xb8, 0xa1}
	guidASK  = [16]byte{0x4a, 0xb7, 0xb3, 0x79, 0xbb, 0xac, 0x4f, 0xe4, 0xa0, 0x2f, 0x05, 0xae, 0xf3, 0x27, 0xc7, 0x82}
	guidARK  = [16]byte{0xc0, 0xb4, 0x06, 0xa4, 0xa8, 0x03, 0x49, 0x52, 0x97, 0x43, 0x3f, 0xb6, 0x01, 0x4c, 0xd0, 0xae}
	// GUIDVTPM is the vTPM service's.
	GUIDVTPM = [16]byte{0xeb, 0xf1, 0x76, 0xc4, 0x23, 0x01, 0xa5, 0x45, 0x96, 0x41, 0xb4, 0xe7, 0xdd, 0xe5, 0xbf, 0xe3}
	// GUIDServices heads a services manifest.
	GUIDServices = [16]byte{0xbb, 0x9e, 0x84, 0x63, 0x92, 0x3d, 0x70, 0x46, 0xa1, 0xff, 0x58, 0xf9, 0xc9, 0x4b, 0x87, 0xbb}
)

// TableEntry is an entry of a GUID table.
type TableEntry struct {
	GUID [16]byte
	Data []byte
}

// CertTable writes a GHCB certificate table.
func CertTable(entries ...TableEntry) []byte {
	le := binary.LittleEndian
	off := 24 * (len(entries) + 1)
	var head, data []byte
	for _, e := range entries {
		head = append(head, e.GUID[:]...)
		head = le.AppendUint32(head, uint32(off+len(data)))
		head = le.AppendUint32(head, uint32(len(e.Data)))
		data = append(data, e.Data...)
	}
	head = append(head, make([]byte, 24)...)
	return append(head, data...)
}

// Services writes a services manifest.
func Services(entries ...TableEntry) []byte {
	le := binary.LittleEndian
	off := 24 * (len(entries) + 1)
	head := append([]byte(nil), GUIDServices[:]...)
	total := off
	for _, e := range entries {
		total += len(e.Data)
	}
	head = le.AppendUint32(head, uint32(total))
	head = le.AppendUint32(head, uint32(len(entries)))
	var data []byte
	for _, e := range entries {
		head = append(head, e.GUID[:]...)
		head = le.AppendUint32(head, uint32(off+len(data)))
		head = le.AppendUint32(head, uint32(len(e.Data)))
		data = append(data, e.Data...)
	}
	return append(head, data...)
}

// CertTable is the certificate table that the machine's host would give.
func (m *Machine) CertTable() []byte {
	leaf := TableEntry{guidVCEK, m.LeafCertificate().Raw}
	mid := m.Signer.ASK
	if m.Leaf != nil && m.Leaf.VLEK {
		leaf.GUID, mid = guidVLEK, m.Signer.ASVK
	}
	return CertTable(leaf, TableEntry{guidASK, mid.Raw}, TableEntry{guidARK, m.Signer.ARK.Raw})
}

// Manifest is the SVSM's manifest for the binding.
func (m *Machine) Manifest() []byte {
	var out []byte
	switch m.Binding {
	case evidence.BindingSVSM:
		out = tpm2.Marshal(m.TPM.EK)
	case evidence.BindingSVSMServices:
		out = Services(TableEntry{GUIDVTPM, tpm2.Marshal(m.TPM.EK)}, TableEntry{[16]byte{1}, []byte("other service")})
	}
	if m.EditManifest != nil {
		out = m.EditManifest(out)
	}
	return out
}

// Answer makes the evidence for a challenge.
func (m *Machine) Answer(c evidence.Challenge) *evidence.Evidence {
	ev := &evidence.Evidence{
		Schema: evidence.Schema, Nonce: c.Nonce, Binding: m.Binding, Manifest: m.Manifest(),
		EKPublic: m.TPM.EKPublic(), AKPublic: m.TPM.AKPublic(), Certificates: m.CertTable(),
		PCRBank: "sha256", EventLog: Log(m.Events), BootID: m.BootID,
	}
	data := sha512.Sum512(append(bytes.Clone(c.Nonce), ev.Manifest...))
	if m.Binding == evidence.BindingNV {
		data = sha512.Sum512(ev.EKPublic)
	}
	ev.Report = m.SignedReport(data)
	extra := sha256.Sum256(c.Nonce)
	ev.Quote = m.TPM.Quote(extra[:], c.PCRs, m.EditQuote)
	ev.QuoteSignature = m.TPM.Sign(ev.Quote)
	for _, p := range c.PCRs {
		ev.PCRs = append(ev.PCRs, evidence.PCR{PCR: p, Value: m.TPM.PCRs[p]})
	}
	if m.EditEvidence != nil {
		m.EditEvidence(ev)
	}
	return ev
}

// Evidence answers a challenge with a fixed nonce and all PCRs.
func (m *Machine) Evidence() *evidence.Evidence {
	nonce := sha512.Sum512([]byte("nonce"))
	c := evidence.Challenge{Nonce: nonce[:]}
	for i := range 24 {
		c.PCRs = append(c.PCRs, i)
	}
	return m.Answer(c)
}

// Golden are golden values that fit the machine, for the simulated platform:
// PCRs 4 and 9 are judged.
func (m *Machine) Golden() *measure.Golden {
	return &measure.Golden{
		Schema: measure.GoldenSchema, Platform: "sim", HostProfile: "test",
		LaunchDigests: []measure.Digest{LaunchDigest}, Policy: GuestPolicy,
		PCRs: &measure.GoldenPCRs{Bank: "sha256", Values: []measure.GoldenPCR{
			{PCR: 4, AnyOf: []measure.GoldenPCRValue{{Value: bytes.Clone(m.TPM.PCRs[4])}}},
			{PCR: 9, AnyOf: []measure.GoldenPCRValue{{Value: make([]byte, 32)}, {Value: bytes.Clone(m.TPM.PCRs[9])}}},
		}},
	}
}

// Serve plays the guest's agent on a connection, for one challenge: it greets,
// answers, and activates the credential with the TPM given (the machine's own,
// or an impostor).
func (m *Machine) Serve(conn net.Conn, activator *VTPM) error {
	if err := send(conn, evidence.FrameHello, evidence.Hello{AgentVersion: "test", BootID: m.BootID, Sources: []string{m.Binding}}); err != nil {
		return err
	}
	var c evidence.Challenge
	if err := receive(conn, evidence.FrameChallenge, &c); err != nil {
		return err
	}
	if err := send(conn, evidence.FrameEvidence, m.Answer(c)); err != nil {
		return err
	}
	var a evidence.Activate
	if err := receive(conn, evidence.FrameActivate, &a); err != nil {
		return err
	}
	plain, err := activator.Activate(a.CredentialBlob, a.Secret)
	if err != nil {
		return send(conn, evidence.FrameError, evidence.Failure{Message: err.Error()})
	}
	return send(conn, evidence.FrameActivated, evidence.Activated{CertInfo: plain})
}

func send(conn net.Conn, t evidence.FrameType, v any) error {
	return evidence.WriteFrame(conn, t, must(json.Marshal(v)))
}

func receive(conn net.Conn, want evidence.FrameType, v any) error {
	t, payload, err := evidence.ReadFrame(conn, 0)
	if err != nil {
		return err
	}
	if t != want {
		return errors.New("another frame")
	}
	return json.Unmarshal(payload, v)
}
