package svsmimg

import "fmt"

// NativeContext is the form of a VP_CONTEXT of NATIVE and SEV (igvm_defs,
// IgvmNativeVpContextX64): registers at the start of a page. What is not listed
// starts as after a reset.
type NativeContext struct {
	RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI uint64
	R8, R9, R10, R11, R12, R13, R14, R15   uint64
	RIP, RFLAGS                            uint64
	IDTRBase                               uint64
	IDTRLimit                              uint16
	GDTRLimit                              uint16
	GDTRBase                               uint64
	CodeSelector, CodeAttributes           uint16
	CodeBase, CodeLimit                    uint32
	DataSelector, DataAttributes           uint16
	DataBase, DataLimit                    uint32
	GSBase, CR0, CR3, CR4, EFER            uint64
}

const (
	nativeIDTRReserved = 0x9a // u16[2], between the limits
	nativeContextSize  = 0xe8
)

// fields lists the registers with their offsets.
func (c *NativeContext) fields() []nativeField {
	out := make([]nativeField, 0, 40)
	add := func(name string, at int, to any) { out = append(out, nativeField{name, at, to}) }
	for i, r := range []struct {
		name string
		to   *uint64
	}{
		{"rax", &c.RAX}, {"rcx", &c.RCX}, {"rdx", &c.RDX}, {"rbx", &c.RBX}, {"rsp", &c.RSP}, {"rbp", &c.RBP}, {"rsi", &c.RSI}, {"rdi", &c.RDI},
		{"r8", &c.R8}, {"r9", &c.R9}, {"r10", &c.R10}, {"r11", &c.R11}, {"r12", &c.R12}, {"r13", &c.R13}, {"r14", &c.R14}, {"r15", &c.R15},
		{"rip", &c.RIP}, {"rflags", &c.RFLAGS}, {"idtr.base", &c.IDTRBase},
	} {
		add(r.name, 8*i, r.to)
	}
	add("idtr.limit", 0x98, &c.IDTRLimit)
	add("gdtr.limit", 0x9e, &c.GDTRLimit)
	add("gdtr.base", 0xa0, &c.GDTRBase)
	add("cs.selector", 0xa8, &c.CodeSelector)
	add("cs.attrib", 0xaa, &c.CodeAttributes)
	add("cs.base", 0xac, &c.CodeBase)
	add("cs.limit", 0xb0, &c.CodeLimit)
	add("ds.selector", 0xb4, &c.DataSelector)
	add("ds.attrib", 0xb6, &c.DataAttributes)
	add("ds.base", 0xb8, &c.DataBase)
	add("ds.limit", 0xbc, &c.DataLimit)
	for i, r := range []struct {
		name string
		to   *uint64
	}{{"gs.base", &c.GSBase}, {"cr0", &c.CR0}, {"cr3", &c.CR3}, {"cr4", &c.CR4}, {"efer", &c.EFER}} {
		add(r.name, 0xc0+8*i, r.to)
	}
	return out
}

type nativeField struct {
	name string
	at   int
	to   any // pointer into the context
}

func (f nativeField) value() uint64 {
	switch v := f.to.(type) {
	case *uint16:
		return uint64(*v)
	case *uint32:
		return uint64(*v)
	}
	return *f.to.(*uint64)
}

// Page encodes the registers as the 4 KiB of a VP_CONTEXT.
func (c *NativeContext) Page() []byte {
	page := make([]byte, pageSize)
	for _, f := range c.fields() {
		switch v := f.to.(type) {
		case *uint64:
			le.PutUint64(page[f.at:], *v)
		case *uint32:
			le.PutUint32(page[f.at:], *v)
		case *uint16:
			le.PutUint16(page[f.at:], *v)
		}
	}
	return page
}

// ParseNativeContext reads the 4 KiB of a VP_CONTEXT.
func ParseNativeContext(page []byte) (*NativeContext, error) {
	if len(page) != pageSize {
		return nil, fmt.Errorf("native context: found %d bytes, expected %d", len(page), pageSize)
	}
	if err := zero(page[nativeIDTRReserved:nativeIDTRReserved+4], page[nativeContextSize:]); err != nil {
		return nil, fmt.Errorf("native context: %w", err)
	}
	c := new(NativeContext)
	for _, f := range c.fields() {
		switch v := f.to.(type) {
		case *uint64:
			*v = le.Uint64(page[f.at:])
		case *uint32:
			*v = le.Uint32(page[f.at:])
		case *uint16:
			*v = le.Uint16(page[f.at:])
		}
	}
	return c, nil
}
