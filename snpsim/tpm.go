package snpsim

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

const (
	// nvReport is where the ACSAC 2023 paper keeps the report: the NV index of
	// the RSA-2048 EK certificate (TCG EK Credential Profile, 2.2.1.4).
	nvReport = 0x01C00002
	// ekHandle is the persistent handle of the EK there.
	ekHandle = 0x81010001
	// nvChunk is how much swtpm takes in one NV_Write (NV_BUFFER_MAX).
	nvChunk = 1024

	// maxTPMMessage bounds a TPM command or response: swtpm's buffer is 4096.
	maxTPMMessage = 8192
	// tpmHeader is tag u16, size u32, code u32, big-endian.
	tpmHeader = 10

	// tpmTimeout bounds one command of the SVSM's own.
	tpmTimeout = 30 * time.Second
)

// channel is the TPM's data channel: one command at a time, whoever sends it.
type channel struct {
	mu   sync.Mutex
	conn net.Conn
}

var _ transport.TPM = (*channel)(nil)

// Send passes one command to the TPM and returns its response.
func (c *channel) Send(command []byte) ([]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.conn.SetDeadline(time.Now().Add(tpmTimeout)); err != nil {
		return nil, err
	}
	if _, err := c.conn.Write(command); err != nil {
		return nil, fmt.Errorf("vTPM: %w", err)
	}
	response, err := readTPMMessage(c.conn)
	if err != nil {
		return nil, fmt.Errorf("vTPM: response: %w", err)
	}
	return response, nil
}

// readTPMMessage reads one command or response: its header holds its size.
func readTPMMessage(r io.Reader) ([]byte, error) {
	var header [tpmHeader]byte
	if _, err := io.ReadFull(r, header[:]); err != nil {
		return nil, err
	}
	size := binary.BigEndian.Uint32(header[2:])
	if size < tpmHeader || size > maxTPMMessage {
		return nil, fmt.Errorf("TPM message: found size %d, expected %d to %d", size, tpmHeader, maxTPMMessage)
	}
	message := make([]byte, size)
	copy(message, header[:])
	_, err := io.ReadFull(r, message[tpmHeader:])
	return message, err
}

// startUp starts the TPM and makes its EK (TCG EK Credential Profile, template
// L-1: RSA-2048), persistent at 0x81010001 as the paper's SVSM does. It returns
// the EK's public area as TPM2B_PUBLIC.
func startUp(tpm transport.TPM) ([]byte, error) {
	if _, err := (tpm2.Startup{StartupType: tpm2.TPMSUClear}).Execute(tpm); err != nil {
		return nil, fmt.Errorf("vTPM: startup: %w", err)
	}
	ek, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHEndorsement, InPublic: tpm2.New2B(tpm2.RSAEKTemplate)}.Execute(tpm)
	if err != nil {
		return nil, fmt.Errorf("vTPM: EK: %w", err)
	}
	_, errKeep := tpm2.EvictControl{
		Auth:             tpm2.TPMRHOwner,
		ObjectHandle:     &tpm2.NamedHandle{Handle: ek.ObjectHandle, Name: ek.Name},
		PersistentHandle: ekHandle,
	}.Execute(tpm)
	_, errFlush := tpm2.FlushContext{FlushHandle: ek.ObjectHandle}.Execute(tpm)
	if err := errors.Join(errKeep, errFlush); err != nil {
		return nil, fmt.Errorf("vTPM: keeping the EK: %w", err)
	}
	return tpm2.Marshal(ek.OutPublic), nil
}

// writeReport puts the report into the NV index, with the attributes that the
// paper's SVSM gives it (0x42072001).
func writeReport(tpm transport.TPM, report []byte) error {
	platform := tpm2.AuthHandle{Handle: tpm2.TPMRHPlatform, Auth: tpm2.PasswordAuth(nil)}
	public := tpm2.TPMSNVPublic{
		NVIndex: nvReport,
		NameAlg: tpm2.TPMAlgSHA256,
		Attributes: tpm2.TPMANV{
			PPWrite: true, WriteDefine: true, PPRead: true, OwnerRead: true, AuthRead: true, NoDA: true, PlatformCreate: true,
		},
		DataSize: uint16(len(report)),
	}
	if _, err := (tpm2.NVDefineSpace{AuthHandle: platform, PublicInfo: tpm2.New2B(public)}).Execute(tpm); err != nil {
		return fmt.Errorf("vTPM: defining NV index %#x: %w", nvReport, err)
	}
	for at := 0; at < len(report); at += nvChunk {
		now, err := tpm2.NVReadPublic{NVIndex: tpm2.TPMHandle(nvReport)}.Execute(tpm)
		if err != nil {
			return fmt.Errorf("vTPM: NV index %#x: %w", nvReport, err)
		}
		_, err = tpm2.NVWrite{
			AuthHandle: platform,
			NVIndex:    tpm2.NamedHandle{Handle: nvReport, Name: now.NVName},
			Data:       tpm2.TPM2BMaxNVBuffer{Buffer: report[at:min(at+nvChunk, len(report))]},
			Offset:     uint16(at),
		}.Execute(tpm)
		if err != nil {
			return fmt.Errorf("vTPM: writing NV index %#x: %w", nvReport, err)
		}
	}
	return nil
}
