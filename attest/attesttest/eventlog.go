package attesttest

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
)

// Event types used in tests.
const (
	EvNoAction  = 3
	EvSeparator = 4
	EvPostCode  = 1
	EvCRTM      = 8
	EvBootApp   = 0x80000003
	EvAction    = 0x80000007
)

// An Event is an entry of a log being made. Digest nil means that of the data.
type Event struct {
	PCR    uint32
	Type   uint32
	Digest []byte
	Data   []byte
}

// SpecID is the header event of a log with a SHA-256 bank.
func SpecID() []byte {
	le := binary.LittleEndian
	var b bytes.Buffer
	b.WriteString("Spec ID Event03\x00")
	b.Write([]byte{0, 0, 0, 0, 0, 2, 0, 2}) // platform class, version 2.0, errata 0, UINTN of 64 bits
	b.Write(le.AppendUint32(nil, 1))
	b.Write(le.AppendUint16(nil, 0x0B))
	b.Write(le.AppendUint16(nil, 32))
	b.WriteByte(0)
	return b.Bytes()
}

// Log writes a crypto-agile log with a SHA-256 bank.
func Log(events []Event) []byte {
	le := binary.LittleEndian
	var b bytes.Buffer
	u32 := func(v uint32) { b.Write(le.AppendUint32(nil, v)) }
	u32(0)
	u32(EvNoAction)
	b.Write(make([]byte, 20))
	spec := SpecID()
	u32(uint32(len(spec)))
	b.Write(spec)
	for _, e := range events {
		u32(e.PCR)
		u32(e.Type)
		u32(1)
		b.Write(le.AppendUint16(nil, 0x0B))
		b.Write(e.digest())
		u32(uint32(len(e.Data)))
		b.Write(e.Data)
	}
	return b.Bytes()
}

func (e Event) digest() []byte {
	if e.Digest != nil {
		return e.Digest
	}
	sum := sha256.Sum256(e.Data)
	return sum[:]
}

// Extend replays events into a vTPM's PCRs.
func (v *VTPM) Extend(events []Event) {
	for _, e := range events {
		if e.Type == EvNoAction {
			continue
		}
		sum := sha256.Sum256(append(bytes.Clone(v.PCRs[e.PCR]), e.digest()...))
		v.PCRs[e.PCR] = sum[:]
	}
}

// DirectBoot is what firmware logs when it starts a kernel that QEMU was given:
// the kernel is measured before the separators, and no boot manager appears.
func DirectBoot() []Event {
	kernel := sha256.Sum256([]byte("kernel"))
	events := []Event{
		{PCR: 0, Type: EvCRTM, Data: []byte("v\x001\x00\x00\x00")},
		{PCR: 0, Type: EvPostCode, Digest: kernel[:], Data: []byte("firmware volume")},
		{PCR: 4, Type: EvBootApp, Digest: kernel[:], Data: []byte("device path")},
	}
	for pcr := range uint32(8) {
		events = append(events, Event{PCR: pcr, Type: EvSeparator, Data: []byte{0, 0, 0, 0}})
	}
	return append(events,
		Event{PCR: 5, Type: EvAction, Data: []byte("Exit Boot Services Invocation")},
		Event{PCR: 9, Type: EvPostCode, Digest: kernel[:], Data: []byte("initrd")},
	)
}

// Digest is the SHA-256 digest of an event's data.
func Digest(data []byte) []byte { return Event{Data: data}.digest() }
