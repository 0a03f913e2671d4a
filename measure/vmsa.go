package measure

import (
	"encoding/binary"
	"fmt"
)

// A Segment is a segment register in a VMSA: 16 bytes.
type Segment struct {
	Selector uint16
	Attrib   uint16 // the 12 attribute bits: type, S, DPL, P, AVL, L, D/B, G
	Limit    uint32
	Base     uint64
}

// A VMSA is the part of a vCPU's encrypted save area that launches set (AMD APM
// volume 2, appendix B, table B-4, "VMSA layout, state save area for SEV-ES").
// All other bytes of the page are zero.
type VMSA struct {
	ES, CS, SS, DS, FS, GS, GDTR, LDTR, IDTR, TR Segment

	VMPL, CPL                            uint8
	EFER, XSS, CR4, CR3, CR0             uint64
	DR7, DR6, RFLAGS, RIP, RSP, RAX, PAT uint64
	RCX, RDX, RBX, RBP, RSI, RDI         uint64
	R8, R9, R10, R11, R12, R13, R14, R15 uint64
	SEVFeatures, VirtualTOM, XCR0, X87DP uint64
	MXCSR                                uint32
	X87FTW, X87FSW, X87FCW, X87FOP       uint16
}

// register is a named place in the save area. field is a pointer into a VMSA.
type register struct {
	name   string
	offset int
	field  any
}

// registers lists every named place, in ascending order of offset.
func (v *VMSA) registers() []register {
	return []register{
		{"es", 0x000, &v.ES}, {"cs", 0x010, &v.CS}, {"ss", 0x020, &v.SS}, {"ds", 0x030, &v.DS},
		{"fs", 0x040, &v.FS}, {"gs", 0x050, &v.GS}, {"gdtr", 0x060, &v.GDTR}, {"ldtr", 0x070, &v.LDTR},
		{"idtr", 0x080, &v.IDTR}, {"tr", 0x090, &v.TR},
		{"vmpl", 0x0ca, &v.VMPL}, {"cpl", 0x0cb, &v.CPL},
		{"efer", 0x0d0, &v.EFER}, {"xss", 0x140, &v.XSS}, {"cr4", 0x148, &v.CR4}, {"cr3", 0x150, &v.CR3}, {"cr0", 0x158, &v.CR0},
		{"dr7", 0x160, &v.DR7}, {"dr6", 0x168, &v.DR6}, {"rflags", 0x170, &v.RFLAGS}, {"rip", 0x178, &v.RIP},
		{"rsp", 0x1d8, &v.RSP}, {"rax", 0x1f8, &v.RAX}, {"g_pat", 0x268, &v.PAT},
		{"rcx", 0x308, &v.RCX}, {"rdx", 0x310, &v.RDX}, {"rbx", 0x318, &v.RBX},
		{"rbp", 0x328, &v.RBP}, {"rsi", 0x330, &v.RSI}, {"rdi", 0x338, &v.RDI},
		{"r8", 0x340, &v.R8}, {"r9", 0x348, &v.R9}, {"r10", 0x350, &v.R10}, {"r11", 0x358, &v.R11},
		{"r12", 0x360, &v.R12}, {"r13", 0x368, &v.R13}, {"r14", 0x370, &v.R14}, {"r15", 0x378, &v.R15},
		{"sev_features", 0x3b0, &v.SEVFeatures}, {"virtual_tom", 0x3c8, &v.VirtualTOM}, {"xcr0", 0x3e8, &v.XCR0},
		{"x87_dp", 0x400, &v.X87DP}, {"mxcsr", 0x408, &v.MXCSR}, {"x87_ftw", 0x40c, &v.X87FTW},
		{"x87_fsw", 0x40e, &v.X87FSW}, {"x87_fcw", 0x410, &v.X87FCW}, {"x87_fop", 0x412, &v.X87FOP},
	}
}

// Page encodes the save area as the 4 KiB that are measured.
func (v *VMSA) Page() []byte {
	page := make([]byte, PageSize)
	for _, r := range v.registers() {
		at := page[r.offset:]
		switch f := r.field.(type) {
		case *Segment:
			binary.LittleEndian.PutUint16(at[0:], f.Selector)
			binary.LittleEndian.PutUint16(at[2:], f.Attrib)
			binary.LittleEndian.PutUint32(at[4:], f.Limit)
			binary.LittleEndian.PutUint64(at[8:], f.Base)
		case *uint64:
			binary.LittleEndian.PutUint64(at, *f)
		case *uint32:
			binary.LittleEndian.PutUint32(at, *f)
		case *uint16:
			binary.LittleEndian.PutUint16(at, *f)
		case *uint8:
			at[0] = *f
		}
	}
	return page
}

// ParseVMSA reads the named registers of a save area. Bytes that have no name
// here must be zero.
func ParseVMSA(page []byte) (*VMSA, error) {
	if len(page) != PageSize {
		return nil, fmt.Errorf("VMSA: found %d bytes, expected %d", len(page), PageSize)
	}
	v := new(VMSA)
	for _, r := range v.registers() {
		at := page[r.offset:]
		switch f := r.field.(type) {
		case *Segment:
			f.Selector = binary.LittleEndian.Uint16(at[0:])
			f.Attrib = binary.LittleEndian.Uint16(at[2:])
			f.Limit = binary.LittleEndian.Uint32(at[4:])
			f.Base = binary.LittleEndian.Uint64(at[8:])
		case *uint64:
			*f = binary.LittleEndian.Uint64(at)
		case *uint32:
			*f = binary.LittleEndian.Uint32(at)
		case *uint16:
			*f = binary.LittleEndian.Uint16(at)
		case *uint8:
			*f = at[0]
		}
	}
	for i, b := range v.Page() {
		if b != page[i] {
			return nil, fmt.Errorf("VMSA: found 0x%02x at offset 0x%03x, which no register that a launch sets occupies", page[i], i)
		}
	}
	return v, nil
}

// A RegisterDiff is a register that differs between two save areas.
type RegisterDiff struct {
	Name   string // as in the APM, in lower case; "cs.base" for parts of segments
	Offset int
	A, B   uint64
}

// Diff lists the registers that differ, in order of their offsets.
func (v *VMSA) Diff(w *VMSA) []RegisterDiff {
	var out []RegisterDiff
	add := func(name string, offset int, a, b uint64) {
		if a != b {
			out = append(out, RegisterDiff{Name: name, Offset: offset, A: a, B: b})
		}
	}
	ws := w.registers()
	for i, r := range v.registers() {
		switch a := r.field.(type) {
		case *Segment:
			b := ws[i].field.(*Segment)
			add(r.name+".selector", r.offset, uint64(a.Selector), uint64(b.Selector))
			add(r.name+".attrib", r.offset+2, uint64(a.Attrib), uint64(b.Attrib))
			add(r.name+".limit", r.offset+4, uint64(a.Limit), uint64(b.Limit))
			add(r.name+".base", r.offset+8, a.Base, b.Base)
		case *uint64:
			add(r.name, r.offset, *a, *ws[i].field.(*uint64))
		case *uint32:
			add(r.name, r.offset, uint64(*a), uint64(*ws[i].field.(*uint32)))
		case *uint16:
			add(r.name, r.offset, uint64(*a), uint64(*ws[i].field.(*uint16)))
		case *uint8:
			add(r.name, r.offset, uint64(*a), uint64(*ws[i].field.(*uint8)))
		}
	}
	return out
}
