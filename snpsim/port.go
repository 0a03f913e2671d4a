package snpsim

import (
	"bytes"
	"context"
	"crypto/sha512"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"

	"github.com/evtpm/evtpm/attest/evidence"
)

// Calls of the SVSM attestation protocol (AMD 58019, chapter 7).
const (
	callServices      = 0 // SVSM_ATTEST_SERVICES
	callSingleService = 1 // SVSM_ATTEST_SINGLE_SERVICE

	nonceSize = 64
	// maxRequest bounds a request from the guest.
	maxRequest = 4096
)

// GUIDs in wire order (first three fields little-endian).
var (
	// vtpmGUID is the vTPM service, c476f1eb-0123-45a5-9641-b4e7dde5bfe3.
	vtpmGUID = []byte{0xeb, 0xf1, 0x76, 0xc4, 0x23, 0x01, 0xa5, 0x45, 0x96, 0x41, 0xb4, 0xe7, 0xdd, 0xe5, 0xbf, 0xe3}
	// servicesGUID is the services manifest, 63849ebb-3d92-4670-a1ff-58f9c94b87bb.
	servicesGUID = []byte{0xbb, 0x9e, 0x84, 0x63, 0x92, 0x3d, 0x70, 0x46, 0xa1, 0xff, 0x58, 0xf9, 0xc9, 0x4b, 0x87, 0xbb}
)

// The services manifest (AMD 58019, chapter 7): a header of GUID, total length
// u32 and count u32, entries of GUID, offset u32 and length u32, little-endian,
// then the services' manifests.
const servicesEntry = 24

// Serve answers requests that the guest sends over the org.evtpm.svsm.0 port,
// until conn ends or ctx does. Whatever the guest sends costs a bounded amount
// of memory, and is answered or refused; a malformed frame ends the connection.
func (s *SVSM) Serve(ctx context.Context, conn net.Conn) error {
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	for {
		t, payload, err := evidence.ReadFrame(conn, maxRequest)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed):
			return nil
		case err != nil:
			return fmt.Errorf("simulated SVSM: request: %w", err)
		}
		rt, reply, err := s.answer(t, payload)
		if err != nil {
			rt, reply = evidence.FrameError, &evidence.Failure{Message: err.Error()}
		}
		data, err := json.Marshal(reply)
		if err != nil {
			return err
		}
		if err := evidence.WriteFrame(conn, rt, data); err != nil {
			return fmt.Errorf("simulated SVSM: reply: %w", err)
		}
	}
}

func (s *SVSM) answer(t evidence.FrameType, payload []byte) (evidence.FrameType, any, error) {
	s.mu.Lock()
	sp, ek := s.sp, s.ek
	s.mu.Unlock()
	if sp == nil {
		return 0, nil, errors.New("the vTPM is not ready")
	}
	switch t {
	case evidence.FrameSVSMAttest:
		var req evidence.SVSMAttest
		if err := strict(payload, &req); err != nil {
			return 0, nil, err
		}
		reply, err := attestServices(sp, ek, &req)
		return evidence.FrameSVSMAttestResult, reply, err
	case evidence.FrameGuestReport:
		var req evidence.GuestReport
		if err := strict(payload, &req); err != nil {
			return 0, nil, err
		}
		if len(req.ReportData) != 64 {
			return 0, nil, fmt.Errorf("report_data: found %d bytes, expected 64", len(req.ReportData))
		}
		report, err := sp.ReportFrom(s.guestVMPL(), req.VMPL, [64]byte(req.ReportData))
		if err != nil {
			return 0, nil, err
		}
		return evidence.FrameGuestReportReply, &evidence.GuestReportReply{Report: report, Certificates: sp.certTable()}, nil
	}
	return 0, nil, fmt.Errorf("frame type %d is no request to the SVSM", t)
}

// strict decodes JSON without unknown fields or trailing data.
func strict(data []byte, out any) error {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(out); err != nil {
		return err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("found data after the request")
	}
	return nil
}

// attestServices answers a call of the attestation protocol: the report is asked
// for at VMPL0, with REPORT_DATA = SHA-512(nonce || manifest).
func attestServices(sp *SP, ek []byte, req *evidence.SVSMAttest) (*evidence.SVSMAttestResult, error) {
	if len(req.Nonce) != nonceSize {
		return nil, fmt.Errorf("nonce: found %d bytes, expected %d (SVSM_ERR_INVALID_PARAMETER)", len(req.Nonce), nonceSize)
	}
	// Manifest version 0 of the vTPM service is the EK as TPMT_PUBLIC: TPM2B_PUBLIC
	// without its size.
	manifest := ek[2:]
	switch req.Call {
	case callSingleService:
		if !bytes.Equal(req.GUID, vtpmGUID) {
			return nil, fmt.Errorf("service %x: there is none but the vTPM (SVSM_ERR_INVALID_PARAMETER)", req.GUID)
		}
		if req.ManifestVersion != 0 {
			return nil, fmt.Errorf("manifest version: found %d, expected 0 (SVSM_ERR_INVALID_PARAMETER)", req.ManifestVersion)
		}
	case callServices:
		manifest = servicesManifest(manifest)
	default:
		return nil, fmt.Errorf("call %d: expected 0 or 1 (SVSM_ERR_UNSUPPORTED_CALL)", req.Call)
	}
	report, err := sp.Report(VMPLSVSM, sha512.Sum512(append(bytes.Clone(req.Nonce), manifest...)))
	if err != nil {
		return nil, err
	}
	return &evidence.SVSMAttestResult{Report: report, Manifest: manifest, Certificates: sp.certTable()}, nil
}

// servicesManifest is the manifest of all services: the vTPM's alone.
func servicesManifest(vtpm []byte) []byte {
	le := binary.LittleEndian
	out := append([]byte{}, servicesGUID...)
	out = le.AppendUint32(out, uint32(2*servicesEntry+len(vtpm)))
	out = le.AppendUint32(out, 1)
	out = append(out, vtpmGUID...)
	out = le.AppendUint32(out, 2*servicesEntry)
	out = le.AppendUint32(out, uint32(len(vtpm)))
	return append(out, vtpm...)
}
