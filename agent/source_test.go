package agent

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"net"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-configfs-tsm/configfs/configfsi"
	"github.com/google/go-configfs-tsm/configfs/faketsm"
	"github.com/google/go-tpm/tpm2"

	"github.com/evtpm/evtpm/attest/evidence"
)

// kernelTSM is a fake of the kernel's configfs-tsm in a guest under an SVSM.
func kernelTSM(svsm bool, aux []byte, auxErr error) configfsi.Client {
	attr := func() *faketsm.ReportAttributeState { return &faketsm.ReportAttributeState{} }
	return &faketsm.Client{Subsystems: map[string]configfsi.Client{"report": &faketsm.ReportSubsystem{
		Random: rand.Reader,
		CheckInAttr: func(e *faketsm.ReportEntry, name string, _ []byte) error {
			if e.InAttrs[name] == nil {
				return syscall.ENOENT
			}
			return nil
		},
		MakeEntry: func() *faketsm.ReportEntry {
			e := &faketsm.ReportEntry{InAttrs: map[string]*faketsm.ReportAttributeState{"inblob": attr(), "privlevel": attr()}}
			if svsm {
				e.InAttrs["service_provider"], e.InAttrs["service_guid"], e.InAttrs["service_manifest_version"] = attr(), attr(), attr()
			}
			return e
		},
		ReadAttr: func(e *faketsm.ReportEntry, name string) ([]byte, error) {
			service := string(e.InAttrs["service_provider"].Value) + " " + string(e.InAttrs["service_guid"].Value) + " " + string(e.InAttrs["service_manifest_version"].Value)
			switch name {
			case "provider":
				return []byte("sev_guest\n"), nil
			case "outblob":
				return append([]byte("report for "), e.InAttrs["inblob"].Value...), nil
			case "manifestblob":
				return []byte("manifest of " + service), nil
			case "auxblob":
				return aux, auxErr
			}
			return nil, syscall.ENOENT
		},
	}}}
}

func TestTSM(t *testing.T) {
	ctx := context.Background()
	for _, tc := range []struct{ binding, manifest string }{
		{evidence.BindingSVSM, "manifest of svsm c476f1eb-0123-45a5-9641-b4e7dde5bfe3 0"},
		{evidence.BindingSVSMServices, "manifest of svsm  "},
	} {
		s := TSM(kernelTSM(true, []byte("certs"), nil))
		if got := s.Bindings(); !slices.Equal(got, svsmBindings()) {
			t.Errorf("bindings %q", got)
		}
		a, err := s.Attest(ctx, tc.binding, nonce('n'))
		if err != nil {
			t.Fatal(err)
		}
		if string(a.Report) != "report for "+string(nonce('n')) || string(a.Manifest) != tc.manifest || string(a.Certificates) != "certs" || a.ManifestVersion != 0 {
			t.Errorf("%s: %q %q %q", tc.binding, a.Report, a.Manifest, a.Certificates)
		}
	}
	// Without certificates the report still counts.
	a, err := TSM(kernelTSM(true, nil, syscall.ENOENT)).Attest(ctx, evidence.BindingSVSM, nonce(1))
	if err != nil || len(a.Certificates) != 0 || len(a.Report) == 0 {
		t.Errorf("no certificates: %v", err)
	}
}

func TestTSMWithoutSVSM(t *testing.T) {
	if got := TSM(kernelTSM(false, nil, nil)).Bindings(); len(got) != 0 {
		t.Errorf("plain guest: bindings %q", got)
	}
	if got := TSM(&faketsm.Client{}).Bindings(); len(got) != 0 {
		t.Errorf("no configfs-tsm: bindings %q", got)
	}
	if _, err := TSM(&faketsm.Client{}).Attest(context.Background(), evidence.BindingSVSM, nonce(1)); err == nil {
		t.Error("no configfs-tsm: a report came from nowhere")
	}
}

func TestTSMPace(t *testing.T) {
	s := TSM(kernelTSM(true, nil, nil))
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	if _, err := s.Attest(ctx, evidence.BindingSVSM, nonce(1)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Attest(ctx, evidence.BindingSVSM, nonce(1)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a second request at once: %v, expected to wait", err)
	}
	start := time.Now()
	if _, err := s.Attest(context.Background(), evidence.BindingSVSM, nonce(1)); err != nil || time.Since(start) < tsmSpacing/2 {
		t.Errorf("%v after %v", err, time.Since(start))
	}
}

func TestNV(t *testing.T) {
	tpm := swtpm(t)
	s := NV(tpm)
	if got := s.Bindings(); len(got) != 0 {
		t.Errorf("no index: bindings %q", got)
	}
	if _, err := s.Attest(context.Background(), evidence.BindingNV, nil); err == nil {
		t.Error("no index: a report came from nowhere")
	}
	write := func(report []byte) {
		t.Helper()
		// The attributes that the prototype gives the index: 0x42072001.
		public := tpm2.TPMSNVPublic{
			NVIndex: nvIndex, NameAlg: tpm2.TPMAlgSHA256, DataSize: uint16(len(report)),
			Attributes: tpm2.TPMANV{PlatformCreate: true, AuthRead: true, OwnerRead: true, PPRead: true, PPWrite: true, NoDA: true, WriteDefine: true},
		}
		platform := tpm2.AuthHandle{Handle: tpm2.TPMRHPlatform, Auth: tpm2.PasswordAuth(nil)}
		if _, err := (tpm2.NVDefineSpace{AuthHandle: platform, PublicInfo: tpm2.New2B(public)}).Execute(tpm); err != nil {
			t.Fatal(err)
		}
		for o := 0; o < len(report); o += nvChunk {
			pub, err := tpm2.NVReadPublic{NVIndex: tpm2.TPMHandle(nvIndex)}.Execute(tpm)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := (tpm2.NVWrite{
				AuthHandle: platform, NVIndex: tpm2.NamedHandle{Handle: nvIndex, Name: pub.NVName},
				Data: tpm2.TPM2BMaxNVBuffer{Buffer: report[o:min(o+nvChunk, len(report))]}, Offset: uint16(o),
			}).Execute(tpm); err != nil {
				t.Fatal(err)
			}
		}
	}
	report := make([]byte, 1184)
	rand.Read(report)
	write(report)
	if got := s.Bindings(); !slices.Equal(got, []string{evidence.BindingNV}) {
		t.Errorf("bindings %q", got)
	}
	a, err := s.Attest(context.Background(), evidence.BindingNV, nonce(1))
	if err != nil || !bytes.Equal(a.Report, report) || len(a.Manifest) != 0 {
		t.Errorf("report %x, %v", a, err)
	}
}

// fakeSVSM answers one request with the frame given, and hands the request on.
func fakeSVSM(t *testing.T, ft evidence.FrameType, answer string) (Source, func() string) {
	got := make(chan string, 1)
	s := SVSMPort(func() bool { return true }, func(context.Context) (net.Conn, error) {
		here, there := net.Pipe()
		go func() {
			defer there.Close()
			rt, req, err := evidence.ReadFrame(there, 0)
			if err != nil || rt != evidence.FrameSVSMAttest {
				t.Errorf("request: type %d, %v", rt, err)
			}
			got <- string(req)
			evidence.WriteFrame(there, ft, []byte(answer))
		}()
		return here, nil
	})
	return s, func() string { return <-got }
}

func TestSVSMPort(t *testing.T) {
	ctx := context.Background()
	s, request := fakeSVSM(t, evidence.FrameSVSMAttestResult, `{"report":"cg==","manifest":"bQ==","certificates":"Yw=="}`)
	if got := s.Bindings(); !slices.Equal(got, svsmBindings()) {
		t.Errorf("bindings %q", got)
	}
	a, err := s.Attest(ctx, evidence.BindingSVSM, []byte("nonce"))
	if err != nil || string(a.Report) != "r" || string(a.Manifest) != "m" || string(a.Certificates) != "c" {
		t.Errorf("%+v, %v", a, err)
	}
	// The GUID is c476f1eb-0123-45a5-9641-b4e7dde5bfe3 in wire order.
	if got, want := request(), `{"call":1,"nonce":"bm9uY2U=","guid":"6/F2xCMBpUWWQbTn3eW/4w==","manifest_version":0}`; got != want {
		t.Errorf("request %s, expected %s", got, want)
	}
	if _, err := s.Attest(ctx, evidence.BindingSVSMServices, []byte("nonce")); err != nil {
		t.Error(err)
	}
	if got, want := request(), `{"call":0,"nonce":"bm9uY2U=","manifest_version":0}`; got != want {
		t.Errorf("request %s, expected %s", got, want)
	}

	for _, tc := range []struct {
		ft     evidence.FrameType
		answer string
		want   string
	}{
		{evidence.FrameError, `{"message":"no vTPM"}`, "no vTPM"},
		{evidence.FrameError, `{`, "unexpected EOF"},
		{evidence.FrameSVSMAttestResult, `{"trusted":true}`, `field "trusted"`},
		{evidence.FrameEvidence, `{}`, "frame type 3, expected 17"},
	} {
		s, _ := fakeSVSM(t, tc.ft, tc.answer)
		if _, err := s.Attest(ctx, evidence.BindingSVSM, nonce(1)); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v", tc.answer, err)
		}
	}
	if got := SVSMPort(func() bool { return false }, nil).Bindings(); len(got) != 0 {
		t.Errorf("no port: bindings %q", got)
	}
}
