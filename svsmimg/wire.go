package svsmimg

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Sizes of the headers' contents (igvm_defs, IGVM_VHS_*), in bytes. Everything is
// little-endian.
var contentSizes = map[HeaderType]int{
	TypeSupportedPlatform:   16,
	TypeGuestPolicy:         16,
	TypeRelocatableRegion:   48,
	TypePageTableRelocation: 32,
	TypeCoRIMDocument:       16,
	TypeCoRIMSignature:      16,
	TypeCCAPolicy:           32,
	TypeParameterArea:       16,
	TypePageData:            24,
	TypeParameterInsert:     16,
	TypeVPContext:           20,
	TypeRequiredMemory:      24,
	TypeVPCount:             8,
	TypeSRAT:                8,
	TypeMADT:                8,
	TypeMMIORanges:          8,
	TypeSNPIDBlock:          idBlockSize,
	TypeMemoryMap:           8,
	TypeErrorRange:          16,
	TypeCommandLine:         8,
	TypeSLIT:                8,
	TypePPTT:                8,
	TypeVBSMeasurement:      864,
	TypeDeviceTree:          8,
	TypeEnvironmentInfo:     8,
}

var le = binary.LittleEndian

// isParameter reports whether a header of the type is a [Parameter].
func (t HeaderType) isParameter() bool {
	return t.section() == sectionDirective && contentSizes[t] == 8
}

// sizeOf is the length of a header's content, without padding.
func sizeOf(h Header) int {
	if u, ok := h.(*Unknown); ok {
		return len(u.Content)
	}
	return contentSizes[h.Type()]
}

// A decoder turns variable headers into their types. It remembers what later
// headers depend on.
type decoder struct {
	dataAt    uint32 // where the file data starts
	dataSize  uint32
	data      []byte
	platforms map[uint32]PlatformType // by mask
	pages     []PageData              // room for all, so that they lie together
}

// place checks a piece of file data. An offset of zero means none.
func (d *decoder) place(offset uint32, size uint64) (Blob, error) {
	if offset == 0 {
		return Blob{}, nil
	}
	if offset < d.dataAt || uint64(offset)+size > uint64(d.dataAt)+uint64(d.dataSize) {
		return Blob{}, fmt.Errorf("found %d bytes of data at file offset 0x%x, expected them within the file data, 0x%x to 0x%x",
			size, offset, d.dataAt, uint64(d.dataAt)+uint64(d.dataSize))
	}
	return Blob{Offset: offset - d.dataAt, Size: uint32(size)}, nil
}

// decode reads one header's content, whose length has been checked.
func (d *decoder) decode(t HeaderType, optional bool, c []byte) (Header, error) {
	if t.isParameter() {
		return &Parameter{Kind: t, Optional: optional, Index: le.Uint32(c[0:]), Offset: le.Uint32(c[4:])}, nil
	}
	switch t {
	case TypeSupportedPlatform:
		return &Platform{
			Mask: le.Uint32(c[0:]), HighestVTL: c[4], Platform: PlatformType(c[5]),
			Version: le.Uint16(c[6:]), SharedGPABoundary: le.Uint64(c[8:]),
		}, nil
	case TypeGuestPolicy:
		return &GuestPolicy{Policy: le.Uint64(c[0:]), Mask: le.Uint32(c[8:])}, zero(c[12:16])
	case TypeRelocatableRegion:
		return &RelocatableRegion{
			Mask: le.Uint32(c[0:]), VPIndex: le.Uint16(c[4:]), VTL: c[6], Flags: c[7], Alignment: le.Uint64(c[8:]),
			GPA: le.Uint64(c[16:]), Size: le.Uint64(c[24:]), MinGPA: le.Uint64(c[32:]), MaxGPA: le.Uint64(c[40:]),
		}, nil
	case TypePageTableRelocation:
		return &PageTableRelocation{
			Mask: le.Uint32(c[0:]), VPIndex: le.Uint16(c[4:]), VTL: c[6],
			GPA: le.Uint64(c[8:]), Size: le.Uint64(c[16:]), UsedSize: le.Uint64(c[24:]),
		}, zero(c[7:8])
	case TypeCoRIMDocument, TypeCoRIMSignature:
		h := &CoRIM{Kind: t, Mask: le.Uint32(c[0:])}
		var err error
		if h.Data, err = d.place(le.Uint32(c[4:]), uint64(le.Uint32(c[8:]))); err != nil {
			return nil, err
		}
		if h.Data.Size == 0 {
			return nil, errors.New("found no data")
		}
		return h, zero(c[12:16])
	case TypeCCAPolicy:
		return &CCAPolicy{
			Mask: le.Uint32(c[0:]), RequiredZeroes: le.Uint64(c[8:]), RequiredOnes: le.Uint64(c[16:]),
			HashAlgorithm: c[24], LFAPolicy: c[25],
		}, zero(c[4:8], c[26:32])
	case TypeParameterArea:
		h := &ParameterArea{Bytes: le.Uint64(c[0:]), Index: le.Uint32(c[8:])}
		if h.Bytes == 0 || h.Bytes%pageSize != 0 || h.Bytes > maxParameterArea {
			return nil, fmt.Errorf("found %d bytes, expected a multiple of %d up to %d", h.Bytes, pageSize, maxParameterArea)
		}
		var err error
		h.Data, err = d.place(le.Uint32(c[12:]), h.Bytes)
		return h, err
	case TypePageData:
		d.pages = append(d.pages, PageData{GPA: le.Uint64(c[0:]), Mask: le.Uint32(c[8:]), Flags: PageFlags(le.Uint32(c[16:])), Kind: PageDataType(le.Uint16(c[20:]))})
		h := &d.pages[len(d.pages)-1]
		var err error
		if h.Data, err = d.place(le.Uint32(c[12:]), h.Bytes()); err != nil {
			return nil, err
		}
		return h, zero(c[22:24])
	case TypeParameterInsert:
		return &ParameterInsert{GPA: le.Uint64(c[0:]), Mask: le.Uint32(c[8:]), Index: le.Uint32(c[12:])}, nil
	case TypeVPContext:
		h := &VPContext{GPA: le.Uint64(c[0:]), Mask: le.Uint32(c[8:]), VPIndex: le.Uint16(c[16:])}
		offset := le.Uint32(c[12:])
		size, err := d.contextSize(h.Mask, offset)
		if err != nil {
			return nil, err
		}
		if h.Data, err = d.place(offset, size); err != nil {
			return nil, err
		}
		if h.Data.Size == 0 {
			return nil, errors.New("found no data")
		}
		return h, zero(c[18:20])
	case TypeRequiredMemory:
		return &RequiredMemory{GPA: le.Uint64(c[0:]), Mask: le.Uint32(c[8:]), Bytes: le.Uint32(c[12:]), Flags: le.Uint32(c[16:])}, zero(c[20:24])
	case TypeSNPIDBlock:
		return decodeIDBlock(c)
	case TypeErrorRange:
		return &ErrorRange{GPA: le.Uint64(c[0:]), Mask: le.Uint32(c[8:]), Bytes: le.Uint32(c[12:])}, nil
	case TypeVBSMeasurement:
		return &VBSMeasurement{Mask: le.Uint32(c[0:]), Rest: [860]byte(c[4:])}, nil
	}
	return nil, errors.New("found a type that is not known")
}

// encode writes a header's content.
func encode(h Header, c []byte, dataAt uint32) {
	offset := func(b Blob) uint32 {
		if b.Size == 0 {
			return 0
		}
		return dataAt + b.Offset
	}
	switch h := h.(type) {
	case *Platform:
		le.PutUint32(c[0:], h.Mask)
		c[4], c[5] = h.HighestVTL, byte(h.Platform)
		le.PutUint16(c[6:], h.Version)
		le.PutUint64(c[8:], h.SharedGPABoundary)
	case *GuestPolicy:
		le.PutUint64(c[0:], h.Policy)
		le.PutUint32(c[8:], h.Mask)
	case *RelocatableRegion:
		le.PutUint32(c[0:], h.Mask)
		le.PutUint16(c[4:], h.VPIndex)
		c[6], c[7] = h.VTL, h.Flags
		for i, v := range []uint64{h.Alignment, h.GPA, h.Size, h.MinGPA, h.MaxGPA} {
			le.PutUint64(c[8+8*i:], v)
		}
	case *PageTableRelocation:
		le.PutUint32(c[0:], h.Mask)
		le.PutUint16(c[4:], h.VPIndex)
		c[6] = h.VTL
		for i, v := range []uint64{h.GPA, h.Size, h.UsedSize} {
			le.PutUint64(c[8+8*i:], v)
		}
	case *CoRIM:
		le.PutUint32(c[0:], h.Mask)
		le.PutUint32(c[4:], offset(h.Data))
		le.PutUint32(c[8:], h.Data.Size)
	case *CCAPolicy:
		le.PutUint32(c[0:], h.Mask)
		le.PutUint64(c[8:], h.RequiredZeroes)
		le.PutUint64(c[16:], h.RequiredOnes)
		c[24], c[25] = h.HashAlgorithm, h.LFAPolicy
	case *ParameterArea:
		le.PutUint64(c[0:], h.Bytes)
		le.PutUint32(c[8:], h.Index)
		le.PutUint32(c[12:], offset(h.Data))
	case *PageData:
		le.PutUint64(c[0:], h.GPA)
		le.PutUint32(c[8:], h.Mask)
		le.PutUint32(c[12:], offset(h.Data))
		le.PutUint32(c[16:], uint32(h.Flags))
		le.PutUint16(c[20:], uint16(h.Kind))
	case *ParameterInsert:
		le.PutUint64(c[0:], h.GPA)
		le.PutUint32(c[8:], h.Mask)
		le.PutUint32(c[12:], h.Index)
	case *VPContext:
		le.PutUint64(c[0:], h.GPA)
		le.PutUint32(c[8:], h.Mask)
		le.PutUint32(c[12:], offset(h.Data))
		le.PutUint16(c[16:], h.VPIndex)
	case *RequiredMemory:
		le.PutUint64(c[0:], h.GPA)
		le.PutUint32(c[8:], h.Mask)
		le.PutUint32(c[12:], h.Bytes)
		le.PutUint32(c[16:], h.Flags)
	case *Parameter:
		le.PutUint32(c[0:], h.Index)
		le.PutUint32(c[4:], h.Offset)
	case *SNPIDBlock:
		h.encode(c)
	case *ErrorRange:
		le.PutUint64(c[0:], h.GPA)
		le.PutUint32(c[8:], h.Mask)
		le.PutUint32(c[12:], h.Bytes)
	case *VBSMeasurement:
		le.PutUint32(c[0:], h.Mask)
		copy(c[4:], h.Rest[:])
	case *Unknown:
		copy(c, h.Content)
	}
}

// A VBS context is a count of registers and the registers (igvm_defs,
// VbsVpContextHeader and VbsVpContextRegister).
const (
	vbsRegisters    = 0 // u32
	vbsHeader       = 4
	vbsRegister     = 32
	maxVBSRegisters = 256
)

// contextSize is the size of a VP context's data, which depends on the platform.
func (d *decoder) contextSize(mask, offset uint32) (uint64, error) {
	for bit := uint32(1); bit != 0; bit <<= 1 {
		if mask&bit == 0 {
			continue
		}
		p, ok := d.platforms[bit]
		if !ok {
			continue
		}
		switch p {
		case PlatformVSM:
			b, err := d.place(offset, vbsHeader)
			if err != nil || b.Size == 0 {
				return 0, err
			}
			n := le.Uint32(d.data[b.Offset+vbsRegisters:])
			if n == 0 || n > maxVBSRegisters {
				return 0, fmt.Errorf("found %d registers, expected 1 to %d", n, maxVBSRegisters)
			}
			return vbsHeader + vbsRegister*uint64(n), nil
		case PlatformTDX:
			return 0, errors.New("found one for TDX, whose vCPUs start in the architecture's reset state")
		}
		return pageSize, nil
	}
	return pageSize, nil
}

// zero says that reserved bytes hold something.
func zero(reserved ...[]byte) error {
	for _, r := range reserved {
		for _, b := range r {
			if b != 0 {
				return errors.New("found reserved bytes that are not zero")
			}
		}
	}
	return nil
}
