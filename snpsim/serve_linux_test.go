package snpsim

import (
	"bytes"
	"context"
	"crypto/sha512"
	"encoding/json"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/evtpm/evtpm/attest"
	"github.com/evtpm/evtpm/attest/evidence"
)

// A guestPort is the guest's side of the port org.evtpm.svsm.0.
type guestPort struct {
	t    testing.TB
	conn net.Conn
	done chan error // what Serve returned
}

func openPort(t testing.TB, ctx context.Context, s *SVSM) *guestPort {
	t.Helper()
	guest, file, err := socketPair("port")
	if err != nil {
		t.Fatal(err)
	}
	host, err := unixConn(file)
	if err != nil {
		t.Fatal(err)
	}
	p := &guestPort{t: t, conn: guest, done: make(chan error, 1)}
	go func() { p.done <- s.Serve(ctx, host) }()
	t.Cleanup(func() { guest.Close() })
	return p
}

// call sends a request and returns the answer.
func (p *guestPort) call(ft evidence.FrameType, request any) (evidence.FrameType, []byte) {
	p.t.Helper()
	payload, ok := request.([]byte)
	if !ok {
		var err error
		if payload, err = json.Marshal(request); err != nil {
			p.t.Fatal(err)
		}
	}
	if err := evidence.WriteFrame(p.conn, ft, payload); err != nil {
		p.t.Fatal(err)
	}
	return p.answer()
}

func (p *guestPort) answer() (evidence.FrameType, []byte) {
	p.t.Helper()
	p.conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	ft, answer, err := evidence.ReadFrame(p.conn, 0)
	if err != nil {
		p.t.Fatal(err)
	}
	return ft, answer
}

// decode reads an answer of a type.
func decode[T any](t testing.TB, want, ft evidence.FrameType, payload []byte) *T {
	t.Helper()
	v := new(T)
	if ft != want {
		t.Fatalf("found frame type %d: %s, expected %d", ft, payload, want)
	}
	if err := json.Unmarshal(payload, v); err != nil {
		t.Fatal(err)
	}
	return v
}

// wantFailure checks that a request was refused.
func wantFailure(t testing.TB, ft evidence.FrameType, payload []byte, words string) {
	t.Helper()
	f := decode[evidence.Failure](t, evidence.FrameError, ft, payload)
	if !strings.Contains(f.Message, words) {
		t.Errorf("found %q, expected %q", f.Message, words)
	}
}

var testNonce = bytes.Repeat([]byte{0xa5}, 64)

func singleService() evidence.SVSMAttest {
	return evidence.SVSMAttest{Call: callSingleService, Nonce: testNonce, GUID: guidVTPM[:]}
}

func TestAttestVTPM(t *testing.T) {
	s, sp := provisioned(t, SVSMOptions{})
	p := openPort(t, context.Background(), s)
	for _, c := range []struct {
		name    string
		request evidence.SVSMAttest
		vtpm    func([]byte) []byte // the vTPM's own manifest in what is delivered
	}{
		{"single service", singleService(), func(m []byte) []byte { return m }},
		{"all services", evidence.SVSMAttest{Nonce: testNonce}, func(m []byte) []byte {
			list, err := attest.ParseServices(m)
			if err != nil || len(list) != 1 || list[0].GUID != attest.GUIDServiceVTPM {
				t.Fatalf("services manifest: %v, %v", list, err)
			}
			return list[0].Manifest
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			ft, payload := p.call(evidence.FrameSVSMAttest, c.request)
			r := decode[evidence.SVSMAttestResult](t, evidence.FrameSVSMAttestResult, ft, payload)
			if got := c.vtpm(r.Manifest); !bytes.Equal(got, s.EKPublic()[2:]) || len(got) != 314 {
				t.Errorf("manifest: %x", got)
			}
			report, err := attest.ParseReport(r.Report)
			if err != nil {
				t.Fatal(err)
			}
			if report.VMPL != 0 || report.ReportData != sha512.Sum512(append(bytes.Clone(testNonce), r.Manifest...)) {
				t.Errorf("VMPL %d, REPORT_DATA %x", report.VMPL, report.ReportData)
			}
			if measured, _ := sp.Measurement(); report.Measurement != measured {
				t.Errorf("measurement %x", report.Measurement)
			}
			if !bytes.Equal(r.Certificates, sp.Chip().CertTable()) {
				t.Error("other certificates")
			}
		})
	}
	p.conn.Close()
	if err := <-p.done; err != nil {
		t.Errorf("Serve after the guest left: %v", err)
	}
}

func TestAttestRefused(t *testing.T) {
	s, _ := provisioned(t, SVSMOptions{})
	p := openPort(t, context.Background(), s)
	change := func(f func(*evidence.SVSMAttest)) evidence.SVSMAttest {
		r := singleService()
		f(&r)
		return r
	}
	for name, c := range map[string]struct {
		ft      evidence.FrameType
		request any
		want    string
	}{
		"short nonce":        {evidence.FrameSVSMAttest, change(func(r *evidence.SVSMAttest) { r.Nonce = r.Nonce[1:] }), "found 63 bytes, expected 64"},
		"long nonce":         {evidence.FrameSVSMAttest, change(func(r *evidence.SVSMAttest) { r.Nonce = append(bytes.Clone(r.Nonce), 0) }), "found 65 bytes"},
		"no nonce":           {evidence.FrameSVSMAttest, change(func(r *evidence.SVSMAttest) { r.Nonce = nil }), "found 0 bytes"},
		"another service":    {evidence.FrameSVSMAttest, change(func(r *evidence.SVSMAttest) { r.GUID = bytes.Repeat([]byte{1}, 16) }), "SVSM_ERR_INVALID_PARAMETER: service GUID"},
		"no service":         {evidence.FrameSVSMAttest, change(func(r *evidence.SVSMAttest) { r.GUID = nil }), "service GUID"},
		"manifest version 1": {evidence.FrameSVSMAttest, change(func(r *evidence.SVSMAttest) { r.ManifestVersion = 1 }), "manifest version: found 1, expected 0"},
		"all with a service": {evidence.FrameSVSMAttest, change(func(r *evidence.SVSMAttest) { r.Call = callServices }), "call for all services"},
		"all with a version": {evidence.FrameSVSMAttest, evidence.SVSMAttest{Nonce: testNonce, ManifestVersion: 1}, "call for all services"},
		"call 2":             {evidence.FrameSVSMAttest, change(func(r *evidence.SVSMAttest) { r.Call = 2 }), "SVSM_ERR_UNSUPPORTED_CALL: found call 2"},
		"unknown field":      {evidence.FrameSVSMAttest, []byte(`{"call":1,"vmpl":0}`), "vmpl"},
		"no JSON":            {evidence.FrameSVSMAttest, []byte(`x`), "SVSM attestation request"},
		"two documents":      {evidence.FrameSVSMAttest, []byte(`{}{}`), "SVSM attestation request"},
		"verifier's frame":   {evidence.FrameChallenge, []byte(`{}`), "found frame type 2"},
		"SVSM's own frame":   {evidence.FrameSVSMAttestResult, []byte(`{}`), "found frame type 17"},
		"short report data":  {evidence.FrameGuestReport, evidence.GuestReport{ReportData: testNonce[1:], VMPL: 1}, "found 63 bytes"},
		"report at VMPL 0":   {evidence.FrameGuestReport, evidence.GuestReport{ReportData: testNonce}, "VMPL 1 asks for a report of VMPL 0"},
		"report at VMPL 4":   {evidence.FrameGuestReport, evidence.GuestReport{ReportData: testNonce, VMPL: 4}, "expected 0 to 3"},
		"report, no JSON":    {evidence.FrameGuestReport, []byte(`[]`), "report request"},
	} {
		t.Run(name, func(t *testing.T) {
			ft, payload := p.call(c.ft, c.request)
			wantFailure(t, ft, payload, c.want)
		})
	}
}

func TestGuestReports(t *testing.T) {
	s, _ := provisioned(t, SVSMOptions{})
	p := openPort(t, context.Background(), s)
	for vmpl := uint32(1); vmpl <= 3; vmpl++ {
		ft, payload := p.call(evidence.FrameGuestReport, evidence.GuestReport{ReportData: testNonce, VMPL: vmpl})
		r := decode[evidence.GuestReportReply](t, evidence.FrameGuestReportReply, ft, payload)
		report, err := attest.ParseReport(r.Report)
		if err != nil || report.VMPL != vmpl || !bytes.Equal(report.ReportData[:], testNonce) {
			t.Errorf("VMPL %d: %+v, %v", vmpl, report, err)
		}
	}
}

// Without an SVSM above it, the guest gets the report that an SVSM would; only
// the launch digest tells.
func TestAttackGuestAtVMPL0(t *testing.T) {
	s, _ := provisioned(t, SVSMOptions{Attack: Attack{GuestAtVMPL0: true}})
	p := openPort(t, context.Background(), s)
	ft, payload := p.call(evidence.FrameGuestReport, evidence.GuestReport{ReportData: testNonce})
	r := decode[evidence.GuestReportReply](t, evidence.FrameGuestReportReply, ft, payload)
	if report, err := attest.ParseReport(r.Report); err != nil || report.VMPL != 0 {
		t.Errorf("found %+v, %v", report, err)
	}
	ft, payload = p.call(evidence.FrameSVSMAttest, singleService())
	wantFailure(t, ft, payload, "there is no SVSM")
}

// The port outlives what a guest does to it.
func TestPortSurvivesTheGuest(t *testing.T) {
	s, _ := provisioned(t, SVSMOptions{})
	s.patience = 300 * time.Millisecond
	p := openPort(t, context.Background(), s)
	works := func(t *testing.T) {
		t.Helper()
		ft, payload := p.call(evidence.FrameSVSMAttest, singleService())
		decode[evidence.SVSMAttestResult](t, evidence.FrameSVSMAttestResult, ft, payload)
	}
	works(t)
	send := func(t *testing.T, b []byte) {
		t.Helper()
		if _, err := p.conn.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	whole := new(bytes.Buffer)
	if err := evidence.WriteFrame(whole, evidence.FrameSVSMAttest, []byte(`{"call":0}`)); err != nil {
		t.Fatal(err)
	}
	tooLong := bytes.Clone(whole.Bytes()[:12])
	tooLong[8], tooLong[9] = 0, 0xff

	for _, c := range []struct {
		name string
		sent []byte
		want string
	}{
		{"garbage", bytes.Repeat([]byte("garbage "), 4096), "malformed frame"},
		{"half a frame", whole.Bytes()[:whole.Len()-3], "timeout"},
		{"one byte", whole.Bytes()[:1], "timeout"},
		{"announced too long", tooLong, "expected at most 4096"},
	} {
		t.Run(c.name, func(t *testing.T) {
			send(t, c.sent)
			ft, payload := p.answer()
			wantFailure(t, ft, payload, c.want)
			works(t)
		})
	}
	t.Run("a guest that does not read", func(t *testing.T) {
		request, err := json.Marshal(singleService())
		if err != nil {
			t.Fatal(err)
		}
		p.conn.SetWriteDeadline(time.Now().Add(2 * time.Second))
		for range 10000 {
			if err := evidence.WriteFrame(p.conn, evidence.FrameSVSMAttest, request); err != nil {
				break
			}
		}
		select {
		case err := <-p.done:
			t.Fatalf("Serve ended: %v", err)
		default:
		}
	})
}

func TestServeEndsWithItsContext(t *testing.T) {
	s, _ := provisioned(t, SVSMOptions{})
	ctx, cancel := context.WithCancelCause(context.Background())
	p := openPort(t, ctx, s)
	cause := errors.New("stop")
	cancel(cause)
	select {
	case err := <-p.done:
		if !errors.Is(err, cause) {
			t.Errorf("found %v", err)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("Serve goes on")
	}
}

// Connections are served at the same time, and end by themselves.
func TestPorts(t *testing.T) {
	s, _ := provisioned(t, SVSMOptions{})
	idle := openPort(t, context.Background(), s)
	idle.conn.Write([]byte("e")) // half a frame holds up nobody else
	busy := openPort(t, context.Background(), s)
	ft, payload := busy.call(evidence.FrameSVSMAttest, singleService())
	decode[evidence.SVSMAttestResult](t, evidence.FrameSVSMAttestResult, ft, payload)
}
