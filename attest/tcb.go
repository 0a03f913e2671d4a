package attest

import (
	"fmt"
	"strings"
)

// RawTCB is a TCB_VERSION as it lies in a report, read as a little-endian
// integer: byte 0 is its least significant byte.
type RawTCB uint64

// A TCBLayout says which byte of a TCB_VERSION holds which component (SNP ABI
// 56860, TCB_VERSION).
type TCBLayout int

// Layouts.
const (
	// TCBLayoutMilan is that of Milan and Genoa: byte 0 boot loader, 1 TEE,
	// 2 to 5 reserved, 6 SNP, 7 microcode.
	TCBLayoutMilan TCBLayout = iota
	// TCBLayoutTurin is that of Turin and later: byte 0 FMC, 1 boot loader,
	// 2 TEE, 3 SNP, 4 to 6 reserved, 7 microcode.
	TCBLayoutTurin
)

// A TCB holds the security patch levels of a platform's firmware.
type TCB struct {
	// FMC is the firmware module controller's level; nil on products that have
	// none (Milan and Genoa).
	FMC        *uint8 `json:"fmc,omitempty" yaml:"fmc,omitempty"`
	Bootloader uint8  `json:"bootloader" yaml:"bootloader"`
	TEE        uint8  `json:"tee" yaml:"tee"`
	SNP        uint8  `json:"snp" yaml:"snp"`
	// Microcode is the low byte of the patch level: comparable within one
	// CPUID stepping only.
	Microcode uint8 `json:"microcode" yaml:"microcode"`
}

// Split takes a TCB_VERSION apart. Reserved bytes that are not zero are an
// error, which names them.
func (l TCBLayout) Split(raw RawTCB) (TCB, error) {
	b := func(i int) uint8 { return uint8(raw >> (8 * i)) }
	var t TCB
	var reserved []int
	switch l {
	case TCBLayoutTurin:
		fmc := b(0)
		t = TCB{FMC: &fmc, Bootloader: b(1), TEE: b(2), SNP: b(3), Microcode: b(7)}
		reserved = []int{4, 5, 6}
	default:
		t = TCB{Bootloader: b(0), TEE: b(1), SNP: b(6), Microcode: b(7)}
		reserved = []int{2, 3, 4, 5}
	}
	for _, i := range reserved {
		if b(i) != 0 {
			return t, fmt.Errorf("TCB version %#016x: reserved byte %d is %#02x, expected 0", uint64(raw), i, b(i))
		}
	}
	return t, nil
}

// Join is the inverse of Split. A nil FMC counts as zero.
func (l TCBLayout) Join(t TCB) RawTCB {
	at := func(v uint8, i int) RawTCB { return RawTCB(v) << (8 * i) }
	if l == TCBLayoutTurin {
		return at(t.fmc(), 0) | at(t.Bootloader, 1) | at(t.TEE, 2) | at(t.SNP, 3) | at(t.Microcode, 7)
	}
	return at(t.Bootloader, 0) | at(t.TEE, 1) | at(t.SNP, 6) | at(t.Microcode, 7)
}

func (t TCB) fmc() uint8 {
	if t.FMC == nil {
		return 0
	}
	return *t.FMC
}

// String lists the components: "bl 4, tee 0, snp 24, ucode 219".
func (t TCB) String() string {
	s := fmt.Sprintf("bl %d, tee %d, snp %d, ucode %d", t.Bootloader, t.TEE, t.SNP, t.Microcode)
	if t.FMC != nil {
		s = fmt.Sprintf("fmc %d, %s", *t.FMC, s)
	}
	return s
}

// tcbPart is a named component of a TCB.
type tcbPart struct {
	name  string
	value uint8
}

func (t TCB) parts() []tcbPart {
	return []tcbPart{
		{"fmc", t.fmc()}, {"bl", t.Bootloader}, {"tee", t.TEE}, {"snp", t.SNP}, {"ucode", t.Microcode},
	}
}

// below lists the components of t that are lower than floor's.
func (t TCB) below(floor TCB) string {
	var out []string
	want := floor.parts()
	for i, p := range t.parts() {
		if p.value < want[i].value {
			out = append(out, fmt.Sprintf("%s %d < %d", p.name, p.value, want[i].value))
		}
	}
	return strings.Join(out, ", ")
}

// differs lists the components in which two TCBs differ.
func (t TCB) differs(u TCB) string {
	var out []string
	other := u.parts()
	for i, p := range t.parts() {
		if p.value != other[i].value {
			out = append(out, fmt.Sprintf("%s %d, not %d", p.name, p.value, other[i].value))
		}
	}
	return strings.Join(out, ", ")
}

// platformTCBs are the four TCB versions of a report, taken apart.
type platformTCBs struct {
	Current, Reported, Committed, Launch TCB
}

// split takes a report's four TCB versions apart; the error names every field
// with reserved bytes set.
func (r *Report) split(l TCBLayout) (t platformTCBs, faults []string) {
	for _, f := range []struct {
		name string
		raw  RawTCB
		to   *TCB
	}{
		{"CURRENT_TCB", r.CurrentTCB, &t.Current},
		{"REPORTED_TCB", r.ReportedTCB, &t.Reported},
		{"COMMITTED_TCB", r.CommittedTCB, &t.Committed},
		{"LAUNCH_TCB", r.LaunchTCB, &t.Launch},
	} {
		var err error
		if *f.to, err = l.Split(f.raw); err != nil {
			faults = append(faults, f.name+": "+err.Error())
		}
	}
	return t, faults
}
