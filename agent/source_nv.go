package agent

import (
	"context"
	"fmt"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/evtpm/evtpm/attest/evidence"
)

const (
	// nvIndex is where the ACSAC 2023 prototype's vTPM keeps its report: TCG's
	// index of the RSA-2048 EK certificate.
	nvIndex = 0x01C00002

	// nvChunk is what every TPM can read at once (swtpm's TPM_PT_NV_BUFFER_MAX
	// is 1024).
	nvChunk = 1024
)

// NV returns the source that reads the report from NV index 0x01C00002. That
// report carries no nonce.
func NV(tpm transport.TPM) Source { return &nv{tpm: tpm} }

type nv struct{ tpm transport.TPM }

func (n *nv) Bindings() []string {
	if _, err := (tpm2.NVReadPublic{NVIndex: tpm2.TPMHandle(nvIndex)}).Execute(n.tpm); err != nil {
		return nil
	}
	return []string{evidence.BindingNV}
}

func (n *nv) Attest(_ context.Context, _ string, _ []byte) (*Attestation, error) {
	rsp, err := tpm2.NVReadPublic{NVIndex: tpm2.TPMHandle(nvIndex)}.Execute(n.tpm)
	if err != nil {
		return nil, fmt.Errorf("NV index %#x: TPM2_NV_ReadPublic: %w", nvIndex, err)
	}
	public, err := rsp.NVPublic.Contents()
	if err != nil {
		return nil, fmt.Errorf("NV index %#x: TPM2_NV_ReadPublic: %w", nvIndex, err)
	}
	size := public.DataSize
	if size > maxReport {
		return nil, fmt.Errorf("NV index %#x: found %d bytes, expected at most %d", nvIndex, size, maxReport)
	}
	report := make([]byte, 0, size)
	for len(report) < int(size) {
		offset := uint16(len(report))
		read, err := tpm2.NVRead{
			// The index itself authorises: it has the attribute AUTHREAD and an
			// empty password, and the owner hierarchy may have one.
			AuthHandle: tpm2.AuthHandle{Handle: nvIndex, Name: rsp.NVName, Auth: tpm2.PasswordAuth(nil)},
			NVIndex:    tpm2.NamedHandle{Handle: nvIndex, Name: rsp.NVName},
			Size:       min(nvChunk, size-offset),
			Offset:     offset,
		}.Execute(n.tpm)
		if err != nil {
			return nil, fmt.Errorf("NV index %#x: TPM2_NV_Read at %d: %w", nvIndex, offset, err)
		}
		if len(read.Data.Buffer) == 0 {
			return nil, fmt.Errorf("NV index %#x: found %d bytes, expected %d", nvIndex, offset, size)
		}
		report = append(report, read.Data.Buffer...)
	}
	return &Attestation{Report: report}, nil
}
