package evidence

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// A frame is a 12-byte header, then the payload:
//
//	0  magic    "evtp"
//	4  version  u8, FrameVersion
//	5  type     u8
//	6  reserved u16, zero
//	8  length   u32, big-endian, of the payload
const (
	frameMagic      = "evtp"
	FrameVersion    = 1
	frameHeaderSize = 12

	// MaxPayload bounds every payload: 2 MiB, several times the largest
	// evidence seen (a 64 KiB event log makes about 120 KiB of JSON).
	MaxPayload = 2 << 20
)

// FrameType says what a payload is.
type FrameType uint8

// Frame types. A verifier speaks to the guest agent with the first group; the
// agent speaks to the simulated SVSM with the second.
const (
	FrameHello     FrameType = 1 // guest: Hello, first frame of a connection; verifier: empty, asks for it
	FrameChallenge FrameType = 2 // verifier: Challenge
	FrameEvidence  FrameType = 3 // guest: Evidence
	FrameActivate  FrameType = 4 // verifier: Activate
	FrameActivated FrameType = 5 // guest: Activated
	FrameError     FrameType = 6 // either: Failure

	FrameSVSMAttest       FrameType = 16 // guest: SVSMAttest
	FrameSVSMAttestResult FrameType = 17 // SVSM: SVSMAttestResult
	FrameGuestReport      FrameType = 18 // guest: GuestReport
	FrameGuestReportReply FrameType = 19 // AMD-SP: GuestReportReply
)

// ErrFrame is wrapped by every error about a malformed frame.
var ErrFrame = errors.New("malformed frame")

// WriteFrame writes one frame in one Write.
func WriteFrame(w io.Writer, t FrameType, payload []byte) error {
	if len(payload) > MaxPayload {
		return fmt.Errorf("%w: payload of %d bytes, expected at most %d", ErrFrame, len(payload), MaxPayload)
	}
	buf := make([]byte, frameHeaderSize, frameHeaderSize+len(payload))
	copy(buf, frameMagic)
	buf[4] = FrameVersion
	buf[5] = byte(t)
	binary.BigEndian.PutUint32(buf[8:], uint32(len(payload)))
	_, err := w.Write(append(buf, payload...))
	return err
}

// ReadFrame reads one frame whose payload is at most max bytes (MaxPayload when
// max is zero). Memory grows with the bytes received, not with the length that
// the peer announced. It does not look past the frame.
func ReadFrame(r io.Reader, max int) (FrameType, []byte, error) {
	if max == 0 {
		max = MaxPayload
	}
	var h [frameHeaderSize]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return 0, nil, err
	}
	switch {
	case string(h[:4]) != frameMagic:
		return 0, nil, fmt.Errorf("%w: magic is %q, expected %q", ErrFrame, h[:4], frameMagic)
	case h[4] != FrameVersion:
		return 0, nil, fmt.Errorf("%w: version is %d, expected %d", ErrFrame, h[4], FrameVersion)
	case h[6] != 0 || h[7] != 0:
		return 0, nil, fmt.Errorf("%w: reserved bytes are %x, expected zero", ErrFrame, h[6:8])
	}
	n := binary.BigEndian.Uint32(h[8:])
	if uint64(n) > uint64(max) {
		return 0, nil, fmt.Errorf("%w: payload of %d bytes, expected at most %d", ErrFrame, n, max)
	}
	payload, err := io.ReadAll(io.LimitReader(r, int64(n)))
	if err != nil {
		return 0, nil, err
	}
	if len(payload) != int(n) {
		return 0, nil, io.ErrUnexpectedEOF
	}
	return FrameType(h[5]), payload, nil
}
