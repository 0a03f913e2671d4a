package snpsim

import (
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

const (
	// nvReport is where the ACSAC 2023 prototype keeps its report: the NV index of
	// the RSA-2048 EK certificate (TCG EK Credential Profile, 2.2.1.4).
	nvReport tpm2.TPMHandle = 0x01C00002
	// ekHandle is the persistent handle of the EK there.
	ekHandle tpm2.TPMHandle = 0x81010001
	// nvChunk is how much swtpm takes in one TPM2_NV_Write
	// (TPM_PT_NV_BUFFER_MAX).
	nvChunk = 1024
)

// makeEK starts the TPM and makes its EK: RSA-2048 by the TCG EK Credential
// Profile's template L-1, persistent at 0x81010001. It returns the EK as
// TPM2B_PUBLIC.
func makeEK(tpm transport.TPM) ([]byte, error) {
	if _, err := (tpm2.Startup{StartupType: tpm2.TPMSUClear}).Execute(tpm); err != nil {
		return nil, fmt.Errorf("TPM2_Startup: %w", err)
	}
	ek, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHEndorsement, InPublic: tpm2.New2B(tpm2.RSAEKTemplate)}.Execute(tpm)
	if err != nil {
		return nil, fmt.Errorf("TPM2_CreatePrimary of the EK: %w", err)
	}
	if err := forgetEK(tpm); err != nil {
		return nil, err
	}
	_, errKeep := tpm2.EvictControl{
		Auth:             tpm2.TPMRHOwner,
		ObjectHandle:     &tpm2.NamedHandle{Handle: ek.ObjectHandle, Name: ek.Name},
		PersistentHandle: ekHandle,
	}.Execute(tpm)
	if errKeep != nil {
		errKeep = fmt.Errorf("TPM2_EvictControl of the EK: %w", errKeep)
	}
	_, errFlush := tpm2.FlushContext{FlushHandle: ek.ObjectHandle}.Execute(tpm)
	if errFlush != nil {
		errFlush = fmt.Errorf("TPM2_FlushContext of the EK: %w", errFlush)
	}
	return tpm2.Marshal(ek.OutPublic), errors.Join(errKeep, errFlush)
}

// forgetEK removes the persistent EK, if there is one: in state that was kept
// from an earlier boot, which is an attack.
func forgetEK(tpm transport.TPM) error {
	old, err := tpm2.ReadPublic{ObjectHandle: ekHandle}.Execute(tpm)
	if err != nil {
		return nil //nolint:nilerr // fresh state has none
	}
	_, err = tpm2.EvictControl{
		Auth:             tpm2.TPMRHOwner,
		ObjectHandle:     &tpm2.NamedHandle{Handle: ekHandle, Name: old.Name},
		PersistentHandle: ekHandle,
	}.Execute(tpm)
	if err != nil {
		return fmt.Errorf("TPM2_EvictControl of an earlier EK: %w", err)
	}
	return nil
}

// writeReport puts the report into the NV index, with the attributes that the
// prototype gives it (0x42072001): the guest can read it with owner, platform or
// empty authorisation. As there, a guest that has platform authorisation can put
// another in its place; that the report is for VMPL0 and for this EK is what a
// verifier goes by.
func writeReport(tpm transport.TPM, report []byte) error {
	platform := tpm2.AuthHandle{Handle: tpm2.TPMRHPlatform, Auth: tpm2.PasswordAuth(nil)}
	if old, err := (tpm2.NVReadPublic{NVIndex: nvReport}).Execute(tpm); err == nil {
		// As for forgetEK.
		_, err := tpm2.NVUndefineSpace{AuthHandle: platform, NVIndex: tpm2.NamedHandle{Handle: nvReport, Name: old.NVName}}.Execute(tpm)
		if err != nil {
			return fmt.Errorf("TPM2_NV_UndefineSpace of an earlier report: %w", err)
		}
	}
	public := tpm2.TPMSNVPublic{
		NVIndex: nvReport,
		NameAlg: tpm2.TPMAlgSHA256,
		Attributes: tpm2.TPMANV{
			PPWrite: true, WriteDefine: true,
			PPRead: true, OwnerRead: true, AuthRead: true,
			NoDA: true, PlatformCreate: true,
		},
		DataSize: uint16(len(report)),
	}
	if _, err := (tpm2.NVDefineSpace{AuthHandle: platform, PublicInfo: tpm2.New2B(public)}).Execute(tpm); err != nil {
		return fmt.Errorf("TPM2_NV_DefineSpace of %#x: %w", uint32(nvReport), err)
	}
	for at := 0; at < len(report); at += nvChunk {
		// The index's name changes with its first write.
		now, err := tpm2.NVReadPublic{NVIndex: nvReport}.Execute(tpm)
		if err != nil {
			return fmt.Errorf("TPM2_NV_ReadPublic of %#x: %w", uint32(nvReport), err)
		}
		_, err = tpm2.NVWrite{
			AuthHandle: platform,
			NVIndex:    tpm2.NamedHandle{Handle: nvReport, Name: now.NVName},
			Data:       tpm2.TPM2BMaxNVBuffer{Buffer: report[at:min(at+nvChunk, len(report))]},
			Offset:     uint16(at),
		}.Execute(tpm)
		if err != nil {
			return fmt.Errorf("TPM2_NV_Write of %#x at %d: %w", uint32(nvReport), at, err)
		}
	}
	return nil
}
