package agent

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/google/go-configfs-tsm/configfs/configfsi"
	"github.com/google/go-configfs-tsm/report"

	"github.com/evtpm/evtpm/attest/evidence"
)

// tsmSpacing is how far apart requests are kept. KVM lets a guest make two in
// two seconds; an SVSM that meets that limit may not survive it.
const tsmSpacing = time.Second

// TSM returns the source that asks the SVSM through the kernel's configfs-tsm
// (Linux's Documentation/ABI/testing/configfs-tsm-report: service_provider,
// since 6.10). client is linuxtsm's, or a fake.
func TSM(client configfsi.Client) Source { return &tsm{client: client} }

type tsm struct {
	client configfsi.Client

	mu   sync.Mutex
	last time.Time
}

// Bindings makes a report entry and looks whether it takes a service provider:
// the kernel offers that attribute only where an SVSM answers.
func (t *tsm) Bindings() []string {
	r, err := report.CreateOpenReport(t.client)
	if err != nil {
		return nil
	}
	defer r.Destroy()
	if err := r.WriteOption("service_provider", []byte("svsm")); err != nil {
		return nil
	}
	return svsmBindings()
}

func (t *tsm) Attest(ctx context.Context, binding string, nonce []byte) (*Attestation, error) {
	if err := t.pace(ctx); err != nil {
		return nil, err
	}
	req := &report.Request{InBlob: nonce, ServiceProvider: "svsm"}
	if binding == evidence.BindingSVSM {
		req.ServiceGuid, req.ServiceManifestVersion = vtpmService, "0"
	}
	r, err := report.Create(t.client, req)
	if err != nil {
		return nil, fmt.Errorf("configfs-tsm: %w", err)
	}
	defer r.Destroy()
	rsp, err := r.Get()
	if err != nil {
		return nil, fmt.Errorf("configfs-tsm: %w", err)
	}
	// An SVSM may have no certificates to give; the verifier finds them
	// elsewhere. The generation check makes sure that they belong to the report.
	certs, err := r.ReadOption("auxblob")
	if report.GetGenerationErr(err) != nil {
		return nil, fmt.Errorf("configfs-tsm: %w", err)
	}
	return &Attestation{Report: rsp.OutBlob, Manifest: rsp.ManifestBlob, Certificates: certs}, nil
}

// certificates asks for a report of the guest's own, without the SVSM: the
// kernel's request is an extended one, which the host's certificates come with.
func (t *tsm) certificates(ctx context.Context) ([]byte, error) {
	if err := t.pace(ctx); err != nil {
		return nil, err
	}
	r, err := report.Create(t.client, &report.Request{InBlob: make([]byte, 64)})
	if err != nil {
		return nil, fmt.Errorf("configfs-tsm: %w", err)
	}
	defer r.Destroy()
	if _, err := r.Get(); err != nil {
		return nil, fmt.Errorf("configfs-tsm: %w", err)
	}
	return r.ReadOption("auxblob")
}

// pace waits until tsmSpacing has passed since the last request.
func (t *tsm) pace(ctx context.Context) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if wait := time.Until(t.last.Add(tsmSpacing)); !t.last.IsZero() && wait > 0 {
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	t.last = time.Now()
	return nil
}
