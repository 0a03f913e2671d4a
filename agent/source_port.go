package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/evtpm/evtpm/attest/evidence"
	"github.com/evtpm/evtpm/strictjson"
)

// svsmTimeout bounds one request to the simulated SVSM.
const svsmTimeout = 20 * time.Second

// SVSM attestation protocol calls (AMD 58019, chapter 7).
const (
	callServices      = 0 // SVSM_ATTEST_SERVICES
	callSingleService = 1 // SVSM_ATTEST_SINGLE_SERVICE
)

// SVSMPort returns the source that asks the simulated platform's SVSM. present
// says whether this guest has its port; dial opens a connection for one request.
func SVSMPort(present func() bool, dial func(context.Context) (net.Conn, error)) Source {
	return &svsmPort{present: present, dial: dial}
}

type svsmPort struct {
	present func() bool
	dial    func(context.Context) (net.Conn, error)
}

func (p *svsmPort) Bindings() []string {
	if !p.present() {
		return nil
	}
	return svsmBindings()
}

func (p *svsmPort) Attest(ctx context.Context, binding string, nonce []byte) (*Attestation, error) {
	req := evidence.SVSMAttest{Call: callServices, Nonce: nonce}
	if binding == evidence.BindingSVSM {
		req.Call, req.GUID = callSingleService, vtpmServiceWire[:]
	}
	var r evidence.SVSMAttestResult
	if err := p.ask(ctx, evidence.FrameSVSMAttest, req, evidence.FrameSVSMAttestResult, &r); err != nil {
		return nil, err
	}
	return &Attestation{Report: r.Report, Manifest: r.Manifest, Certificates: r.Certificates}, nil
}

// guestVMPL is a level that every guest under an SVSM may name in a report.
const guestVMPL = 3

// certificates asks for a report of the guest's own, which the host's
// certificates come with. The report itself says nothing of the vTPM.
func (p *svsmPort) certificates(ctx context.Context) ([]byte, error) {
	var r evidence.GuestReportReply
	req := evidence.GuestReport{ReportData: make([]byte, 64), VMPL: guestVMPL}
	err := p.ask(ctx, evidence.FrameGuestReport, req, evidence.FrameGuestReportReply, &r)
	return r.Certificates, err
}

// ask sends one request over a connection of its own and decodes the answer,
// which must be of type want.
func (p *svsmPort) ask(ctx context.Context, t evidence.FrameType, req any, want evidence.FrameType, out any) error {
	payload, err := json.Marshal(req)
	if err != nil {
		return fmt.Errorf("simulated SVSM: %w", err)
	}
	conn, err := p.dial(ctx)
	if err != nil {
		return fmt.Errorf("simulated SVSM: %w", err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if err := conn.SetDeadline(time.Now().Add(svsmTimeout)); err != nil {
		return fmt.Errorf("simulated SVSM: %w", err)
	}
	if err := evidence.WriteFrame(conn, t, payload); err != nil {
		return fmt.Errorf("simulated SVSM: %w", err)
	}
	got, payload, err := evidence.ReadFrame(conn, 0)
	if err != nil {
		return fmt.Errorf("simulated SVSM: %w", err)
	}
	switch got {
	case want:
		if err := strictjson.Unmarshal(payload, out, evidence.MaxPayload, "answer"); err != nil {
			return fmt.Errorf("simulated SVSM: %w", err)
		}
		return nil
	case evidence.FrameError:
		var f evidence.Failure
		if err := strictjson.Unmarshal(payload, &f, evidence.MaxPayload, "failure"); err != nil {
			return fmt.Errorf("simulated SVSM: %w", err)
		}
		return errors.New("simulated SVSM: " + f.Message)
	}
	return fmt.Errorf("simulated SVSM: frame type %d, expected %d", got, want)
}
