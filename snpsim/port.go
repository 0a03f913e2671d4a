package snpsim

import (
	"bytes"
	"crypto/sha512"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/evtpm/evtpm/attest/evidence"
	"github.com/evtpm/evtpm/measure"
	"github.com/evtpm/evtpm/strictjson"
)

// Calls of the SVSM attestation protocol (AMD 58019, chapter 7).
const (
	callServices      = 0 // SVSM_ATTEST_SERVICES
	callSingleService = 1 // SVSM_ATTEST_SINGLE_SERVICE
)

const (
	nonceSize = 64
	// vtpmManifestVersion is the only version of the vTPM service's manifest: the
	// EK as TPMT_PUBLIC.
	vtpmManifestVersion = 0
	// maxRequest bounds a request from the guest, which takes some 300 bytes.
	maxRequest = 4096
)

// GUIDs of the protocol (AMD 58019, chapters 7 and 8).
var (
	guidVTPM     = mustGUID("c476f1eb-0123-45a5-9641-b4e7dde5bfe3")
	guidServices = mustGUID("63849ebb-3d92-4670-a1ff-58f9c94b87bb")
)

// The manifest of all services (AMD 58019, SVSM_ATTEST_SERVICES): a header, an
// entry for each service, then their manifests. Little-endian.
const (
	servicesLength = 16 // u32, of the whole; after the GUID
	servicesCount  = 20 // u32
	servicesHeader = 24
	serviceOffset  = 16 // u32, from the start of the header; after the GUID
	serviceLength  = 20 // u32
	serviceEntry   = 24
)

// A services is what a guest can reach of AMD-SP and SVSM.
type services struct {
	sp *SP
	ek []byte // TPM2B_PUBLIC
	// guestVMPL is the guest's own; zero means that there is no SVSM.
	guestVMPL uint32
}

// answer answers one request, with a frame for the guest.
func (s *services) answer(t evidence.FrameType, payload []byte) (evidence.FrameType, any, error) {
	switch t {
	case evidence.FrameSVSMAttest:
		var req evidence.SVSMAttest
		if err := strictjson.Unmarshal(payload, &req, maxRequest, "SVSM attestation request"); err != nil {
			return 0, nil, err
		}
		r, err := s.attest(&req)
		return evidence.FrameSVSMAttestResult, r, err
	case evidence.FrameGuestReport:
		var req evidence.GuestReport
		if err := strictjson.Unmarshal(payload, &req, maxRequest, "report request"); err != nil {
			return 0, nil, err
		}
		r, err := s.guestReport(&req)
		return evidence.FrameGuestReportReply, r, err
	}
	return 0, nil, fmt.Errorf("found frame type %d, expected %d or %d", t, evidence.FrameSVSMAttest, evidence.FrameGuestReport)
}

// attest answers a call of the attestation protocol: the SVSM asks for a report
// for its own VMPL, with REPORT_DATA = SHA-512(nonce || manifest).
func (s *services) attest(req *evidence.SVSMAttest) (*evidence.SVSMAttestResult, error) {
	invalid := func(format string, args ...any) (*evidence.SVSMAttestResult, error) {
		return nil, fmt.Errorf("SVSM_ERR_INVALID_PARAMETER: "+format, args...)
	}
	if s.guestVMPL == VMPLSVSM {
		return nil, errors.New("there is no SVSM: the guest runs at VMPL 0 itself")
	}
	if len(req.Nonce) != nonceSize {
		return invalid("nonce: found %d bytes, expected %d", len(req.Nonce), nonceSize)
	}
	manifest := s.vtpmManifest()
	switch req.Call {
	case callSingleService:
		if !bytes.Equal(req.GUID, guidVTPM[:]) {
			return invalid("service GUID: found %x, expected %x (the vTPM)", req.GUID, guidVTPM[:])
		}
		if req.ManifestVersion != vtpmManifestVersion {
			return invalid("manifest version: found %d, expected %d", req.ManifestVersion, vtpmManifestVersion)
		}
	case callServices:
		if len(req.GUID) != 0 || req.ManifestVersion != 0 {
			return invalid("found a service or a manifest version in a call for all services")
		}
		manifest = servicesManifest(manifest)
	default:
		return nil, fmt.Errorf("SVSM_ERR_UNSUPPORTED_CALL: found call %d, expected %d or %d", req.Call, callServices, callSingleService)
	}
	report, err := s.sp.Report(VMPLSVSM, sha512.Sum512(append(bytes.Clone(req.Nonce), manifest...)))
	if err != nil {
		return nil, err
	}
	return &evidence.SVSMAttestResult{Report: report, Manifest: manifest, Certificates: s.sp.chip.CertTable()}, nil
}

// vtpmManifest is the EK as TPMT_PUBLIC: TPM2B_PUBLIC without its size.
func (s *services) vtpmManifest() []byte { return s.ek[2:] }

// servicesManifest lists all services: the vTPM alone.
func servicesManifest(vtpm []byte) []byte {
	out := make([]byte, servicesHeader+serviceEntry, servicesHeader+serviceEntry+len(vtpm))
	put := func(at int, v int) { binary.LittleEndian.PutUint32(out[at:], uint32(v)) }
	copy(out, guidServices[:])
	put(servicesLength, cap(out))
	put(servicesCount, 1)
	copy(out[servicesHeader:], guidVTPM[:])
	put(servicesHeader+serviceOffset, len(out))
	put(servicesHeader+serviceLength, len(vtpm))
	return append(out, vtpm...)
}

// guestReport answers a guest's own request to the AMD-SP, which passes the SVSM
// by.
func (s *services) guestReport(req *evidence.GuestReport) (*evidence.GuestReportReply, error) {
	if len(req.ReportData) != 64 {
		return nil, fmt.Errorf("report_data: found %d bytes, expected 64", len(req.ReportData))
	}
	report, err := s.sp.ReportFrom(s.guestVMPL, req.VMPL, [64]byte(req.ReportData))
	if err != nil {
		return nil, err
	}
	return &evidence.GuestReportReply{Report: report, Certificates: s.sp.chip.CertTable()}, nil
}

// mustGUID reads a GUID written in this source.
func mustGUID(s string) measure.GUID {
	g, err := measure.ParseGUID(s)
	if err != nil {
		panic(err)
	}
	return g
}
