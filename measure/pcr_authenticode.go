package measure

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"slices"
)

// Offsets in a PE image (Microsoft PE Format, "Optional Header" and "Section
// Table"); fields are little-endian.
const (
	peHeaderPointerAt = 0x3c // u32: offset of "PE\0\0"

	peMachineAt      = 4 // u16, from "PE\0\0"
	peMachineX64     = 0x8664
	peSectionsAt     = 6  // u16
	peOptionalSizeAt = 20 // u16
	peOptionalAt     = 24

	// From the optional header.
	optHeadersSizeAt   = 60 // u32
	optChecksumAt      = 64 // u32
	optDirectories32At = 96
	optDirectories64At = 112
	opt32              = 0x10b
	opt64              = 0x20b

	directorySize     = 8 // RVA or offset u32, size u32
	securityDirectory = 4

	sectionHeaderSize = 40
	sectionNameSize   = 8  // at 0, padded with zeros
	sectionVirtualAt  = 8  // u32
	sectionRawSizeAt  = 16 // u32
	sectionRawAt      = 20 // u32
)

// authenticode returns the digest of a PE image that firmware extends into PCR
// 4 (Microsoft "Windows Authenticode Portable Executable Signature Format",
// as EDK2's SecurityPkg/Tcg/Tcg2Dxe/MeasureBootPeCoff.c computes it): headers
// without checksum and certificate directory, sections by file offset, and what
// follows them without the certificates.
//
// Signing tools first pad an image to a multiple of eight bytes. Firmware does
// not: for an image of another size this digest is not the one that a signature
// would be made over.
func authenticode(image []byte, h hash.Hash) ([]byte, error) {
	p, err := parsePE(image)
	if err != nil {
		return nil, err
	}
	h.Write(image[:p.checksum])
	rest := p.checksum + 4
	if p.certificates != 0 {
		h.Write(image[rest:p.certificates])
		rest = p.certificates + directorySize
	}
	h.Write(image[rest:p.headers])
	hashed := p.headers
	for _, s := range p.sections {
		h.Write(image[s.at : s.at+s.size])
		hashed += s.size
	}
	// Counted, not located: what EDK2 does when sections leave gaps.
	size := uint64(len(image))
	if size-hashed < p.certificatesSize {
		return nil, fmt.Errorf("PE image: certificates of %d bytes, but %d bytes follow the sections", p.certificatesSize, size-hashed)
	}
	h.Write(image[hashed : size-p.certificatesSize])
	return h.Sum(nil), nil
}

// peLayout is what a digest needs to know of a PE image. Everything in it lies
// within the image.
type peLayout struct {
	checksum         uint64 // offset of the checksum field
	certificates     uint64 // offset of the certificate directory's entry; 0 when there is none
	certificatesSize uint64
	headers          uint64 // size of the headers
	sections         []peSection
}

type peSection struct {
	name     string
	at, size uint64 // in the file
	virtual  uint64 // size in memory
}

// parsePE finds the parts of a PE image. Sections may not overlap, so that the
// work is bounded by the image's size.
func parsePE(image []byte) (*peLayout, error) {
	le := binary.LittleEndian
	size := uint64(len(image))
	if size < peHeaderPointerAt+4 || string(image[:2]) != "MZ" {
		return nil, errors.New("found no PE image (it does not begin with MZ); expected a kernel with an EFI stub, such as a bzImage")
	}
	pe := uint64(le.Uint32(image[peHeaderPointerAt:]))
	if pe+peOptionalAt > size || string(image[pe:pe+4]) != "PE\x00\x00" {
		return nil, fmt.Errorf("PE image: found no PE header at %#x", pe)
	}
	opt := pe + peOptionalAt
	optSize := uint64(le.Uint16(image[pe+peOptionalSizeAt:]))
	if opt+optSize > size || optSize < 2 {
		return nil, fmt.Errorf("PE image: optional header of %d bytes at %#x does not lie within its %d bytes", optSize, opt, size)
	}
	directories := uint64(optDirectories32At)
	switch magic := le.Uint16(image[opt:]); magic {
	case opt32:
	case opt64:
		directories = optDirectories64At
	default:
		return nil, fmt.Errorf("PE image: optional header's magic is %#x, expected %#x or %#x", magic, opt32, opt64)
	}
	if optSize < directories {
		return nil, fmt.Errorf("PE image: optional header of %d bytes, expected at least %d", optSize, directories)
	}
	p := &peLayout{checksum: opt + optChecksumAt, headers: uint64(le.Uint32(image[opt+optHeadersSizeAt:]))}
	sectionTable := opt + optSize
	sections := uint64(le.Uint16(image[pe+peSectionsAt:]))
	if end := sectionTable + sections*sectionHeaderSize; end > p.headers || p.headers > size {
		return nil, fmt.Errorf("PE image: headers of %d bytes, expected at least %d for %d sections and at most the image's %d", p.headers, end, sections, size)
	}
	// The number of directories stands before the first of them.
	if n := le.Uint32(image[opt+directories-4:]); n > securityDirectory {
		entry := directories + securityDirectory*directorySize
		if optSize < entry+directorySize {
			return nil, fmt.Errorf("PE image: optional header of %d bytes, expected at least %d for %d directories", optSize, entry+directorySize, n)
		}
		p.certificates = opt + entry
		p.certificatesSize = uint64(le.Uint32(image[p.certificates+4:]))
	}
	return p, p.readSections(image, sectionTable, sections)
}

// readSections reads the section table and sorts it by file offset.
func (p *peLayout) readSections(image []byte, table, n uint64) error {
	le := binary.LittleEndian
	for i := range n {
		header := image[table+i*sectionHeaderSize:]
		s := peSection{
			name:    string(bytes.TrimRight(header[:sectionNameSize], "\x00")),
			at:      uint64(le.Uint32(header[sectionRawAt:])),
			size:    uint64(le.Uint32(header[sectionRawSizeAt:])),
			virtual: uint64(le.Uint32(header[sectionVirtualAt:])),
		}
		if s.size != 0 {
			p.sections = append(p.sections, s)
		}
	}
	slices.SortStableFunc(p.sections, func(a, b peSection) int { return cmp.Compare(a.at, b.at) })
	end := p.headers
	for _, s := range p.sections {
		if s.at < end || s.at+s.size > uint64(len(image)) {
			return fmt.Errorf("PE image: section of %d bytes at %#x, expected between %#x and the image's end at %#x", s.size, s.at, end, len(image))
		}
		end = s.at + s.size
	}
	return nil
}
