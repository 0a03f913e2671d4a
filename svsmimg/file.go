package svsmimg

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
)

// The fixed header (igvm_defs, IGVM_FIXED_HEADER and IGVM_FIXED_HEADER_V2).
const (
	fixedMagic        = 0  // "IGVM"
	fixedVersion      = 4  // u32: 1 or 2
	fixedHeadersAt    = 8  // u32: offset of the variable headers
	fixedHeadersSize  = 12 // u32
	fixedTotalSize    = 16 // u32: size of the file
	fixedChecksum     = 20 // u32: CRC-32 of fixed header (this field zero) and variable headers
	fixedSizeV1       = 24
	fixedArchitecture = 24 // u32, version 2
	fixedPageSize     = 28 // u32, version 2
	fixedSizeV2       = 32

	magic = "IGVM"

	headerType    = 0 // u32, of a variable header
	headerLength  = 4 // u32: of the content
	headerContent = 8
	headerAlign   = 8
)

const (
	pageSize  = 4096
	largePage = 2 << 20
)

// Bounds of what is read. COCONUT's images have some ten thousand pages.
const (
	// MaxSize is the largest file in bytes.
	MaxSize = 512 << 20

	// MaxPages is the largest number of 4 KiB pages that a file may place: 512 MiB
	// of guest memory.
	MaxPages = 1 << 17

	maxHeaders       = MaxPages + 1024
	maxParameterArea = 16 << 20
)

// An Architecture is the processor that a version 2 file is for.
type Architecture uint32

// Architectures.
const (
	ArchX64     Architecture = 0
	ArchAArch64 Architecture = 1
)

// A File is a parsed IGVM file. It refers to the bytes that it was parsed from
// and never changes them.
type File struct {
	// Version is the format version: 1 or 2.
	Version uint32
	// Architecture is part of version 2; zero in version 1.
	Architecture Architecture

	// Headers are the variable headers, in the order of the file: platforms,
	// then initialization, then directives.
	Headers []Header

	// Data is the file data, which the headers' [Blob]s are parts of.
	Data []byte
}

// ErrNotIGVM says that a file is not an IGVM file at all.
var ErrNotIGVM = errors.New(`not an IGVM file: does not start with "IGVM"`)

// Parse reads a file. It refuses what no loader takes and what two loaders could
// take in two ways: wrong sizes and checksums, headers out of order, unknown
// required headers, data outside of the file, pages placed twice, parameters
// outside of their areas. data is kept, not copied.
func Parse(data []byte) (*File, error) {
	if len(data) < len(magic) || string(data[:len(magic)]) != magic {
		return nil, ErrNotIGVM
	}
	switch {
	case len(data) > MaxSize:
		return nil, fmt.Errorf("IGVM file: found %d bytes, expected at most %d", len(data), MaxSize)
	case len(data) < fixedSizeV1:
		return nil, fmt.Errorf("IGVM fixed header: found %d bytes, expected at least %d", len(data), fixedSizeV1)
	}
	f := &File{Version: le.Uint32(data[fixedVersion:])}
	fixedSize, err := f.fixedSize()
	if err != nil {
		return nil, err
	}
	if len(data) < fixedSize {
		return nil, fmt.Errorf("IGVM fixed header: found %d bytes, expected %d", len(data), fixedSize)
	}
	headersAt, headersSize := le.Uint32(data[fixedHeadersAt:]), le.Uint32(data[fixedHeadersSize:])
	total := le.Uint32(data[fixedTotalSize:])
	switch end := uint64(headersAt) + uint64(headersSize); {
	case uint64(total) != uint64(len(data)):
		return nil, fmt.Errorf("IGVM fixed header: found total file size %d, expected %d: the file's own", total, len(data))
	case headersAt != uint32(fixedSize):
		// The checksum does not cover bytes between the two.
		return nil, fmt.Errorf("IGVM fixed header: found variable headers at offset %d, expected %d", headersAt, fixedSize)
	case headersSize%headerAlign != 0:
		return nil, fmt.Errorf("IGVM fixed header: found %d bytes of variable headers, expected a multiple of %d", headersSize, headerAlign)
	case end >= uint64(total):
		return nil, fmt.Errorf("IGVM fixed header: found variable headers up to %d, expected them to end before the end of the file, %d", end, total)
	}
	if f.Version == 2 {
		f.Architecture = Architecture(le.Uint32(data[fixedArchitecture:]))
		if f.Architecture > ArchAArch64 {
			return nil, fmt.Errorf("IGVM fixed header: found architecture %d, expected 0 (X64) or 1 (AARCH64)", f.Architecture)
		}
		if n := le.Uint32(data[fixedPageSize:]); n != pageSize {
			return nil, fmt.Errorf("IGVM fixed header: found page size %d, expected %d", n, pageSize)
		}
	}
	headers := data[headersAt : headersAt+headersSize]
	if found, want := le.Uint32(data[fixedChecksum:]), checksum(data[:fixedSize], headers); found != want {
		return nil, fmt.Errorf("IGVM fixed header: found checksum 0x%08x, expected 0x%08x: the headers were changed", found, want)
	}
	f.Data = data[headersAt+headersSize:]
	if err := f.parseHeaders(headers, headersAt+headersSize); err != nil {
		return nil, err
	}
	return f, f.check()
}

func (f *File) fixedSize() (int, error) {
	switch f.Version {
	case 1:
		return fixedSizeV1, nil
	case 2:
		return fixedSizeV2, nil
	}
	return 0, fmt.Errorf("IGVM fixed header: found format version %d, expected 1 or 2", f.Version)
}

// checksum is the CRC-32 (IEEE) of a fixed header, its checksum taken as zero,
// and the variable headers.
func checksum(fixed, headers []byte) uint32 {
	var h [fixedSizeV2]byte
	n := copy(h[:], fixed)
	le.PutUint32(h[fixedChecksum:], 0)
	return crc32.Update(crc32.ChecksumIEEE(h[:n]), crc32.IEEETable, headers)
}

// isPadding reports whether bytes are padding: zeros, or the digit 0, which
// igvm-tooling writes.
func isPadding(b []byte) bool {
	return zero(b) == nil || len(bytes.Trim(b, "0")) == 0
}

// parseHeaders reads the variable headers.
func (f *File) parseHeaders(b []byte, dataAt uint32) error {
	count, pages, err := countHeaders(b)
	if err != nil {
		return err
	}
	f.Headers = make([]Header, 0, count)
	d := &decoder{
		dataAt: dataAt, dataSize: uint32(len(f.Data)), data: f.Data,
		platforms: make(map[uint32]PlatformType), pages: make([]PageData, 0, pages),
	}
	at := sectionPlatform
	for i := 0; len(b) > 0; i++ {
		raw, length := le.Uint32(b[headerType:]), le.Uint32(b[headerLength:])
		content := b[headerContent : headerContent+length]
		next := headerContent + alignUp(uint64(length), headerAlign)
		padding := b[headerContent+length : next]
		b = b[next:]
		t, optional := HeaderType(raw&^typeOptional), raw&typeOptional != 0
		fail := func(err error) error { return fmt.Errorf("IGVM header %d (%s): %w", i, t, err) }
		if !isPadding(padding) {
			return fail(errors.New("found padding that is not zero"))
		}
		if s := t.section(); s != sectionNone {
			if s < at {
				return fail(fmt.Errorf("found in the %s section, expected in the %s section before it", at, s))
			}
			at = s
		}
		h, err := d.header(t, optional, content)
		if err != nil {
			return fail(err)
		}
		if p, ok := h.(*Platform); ok {
			d.platforms[p.Mask] = p.Platform
		}
		f.Headers = append(f.Headers, h)
	}
	return nil
}

// header reads one header, known or not.
func (d *decoder) header(t HeaderType, optional bool, content []byte) (Header, error) {
	want, known := contentSizes[t]
	switch {
	case !known && optional:
		return &Unknown{Kind: t, Content: content}, nil
	case !known:
		return nil, errors.New("found a required header of a type that is not known; a newer format?")
	case optional && !t.isParameter():
		// A loader that knows the type acts on it, another ignores it: the file
		// would be two launches.
		return nil, errors.New("found marked as optional, which loaders take in different ways")
	case len(content) != want:
		return nil, fmt.Errorf("found length %d, expected %d", len(content), want)
	}
	return d.decode(t, optional, content)
}

// countHeaders walks over the headers: every one must lie within them, and there
// must be a bounded number, before anything is allocated.
func countHeaders(b []byte) (headers, pages int, err error) {
	for len(b) > 0 {
		if len(b) < headerContent {
			return 0, 0, fmt.Errorf("IGVM header %d: found %d bytes to the end of the headers, expected at least %d", headers, len(b), headerContent)
		}
		raw, length := le.Uint32(b[headerType:]), le.Uint32(b[headerLength:])
		next := headerContent + alignUp(uint64(length), headerAlign)
		if next > uint64(len(b)) {
			return 0, 0, fmt.Errorf("IGVM header %d (%s): found length %d, expected at most %d to the end of the headers",
				headers, HeaderType(raw&^typeOptional), length, len(b)-headerContent)
		}
		if HeaderType(raw) == TypePageData {
			pages++
		}
		if headers++; headers > maxHeaders {
			return 0, 0, fmt.Errorf("IGVM file: found more than %d headers", maxHeaders)
		}
		b = b[next:]
	}
	return headers, pages, nil
}

func alignUp(n, to uint64) uint64 { return (n + to - 1) / to * to }

// Encode returns the file's bytes. A file that was parsed and not changed gives
// the bytes that it was parsed from.
func (f *File) Encode() ([]byte, error) {
	if err := f.check(); err != nil {
		return nil, err
	}
	fixedSize, err := f.fixedSize()
	if err != nil {
		return nil, err
	}
	headersSize := uint64(0)
	for _, h := range f.Headers {
		headersSize += headerContent + alignUp(uint64(sizeOf(h)), headerAlign)
	}
	dataAt := uint64(fixedSize) + headersSize
	total := dataAt + uint64(len(f.Data))
	if total > min(MaxSize, math.MaxUint32) {
		return nil, fmt.Errorf("IGVM file: found %d bytes, expected at most %d", total, MaxSize)
	}
	out := make([]byte, total)
	copy(out, magic)
	le.PutUint32(out[fixedVersion:], f.Version)
	le.PutUint32(out[fixedHeadersAt:], uint32(fixedSize))
	le.PutUint32(out[fixedHeadersSize:], uint32(headersSize))
	le.PutUint32(out[fixedTotalSize:], uint32(total))
	if f.Version == 2 {
		le.PutUint32(out[fixedArchitecture:], uint32(f.Architecture))
		le.PutUint32(out[fixedPageSize:], pageSize)
	}
	b := out[fixedSize:dataAt]
	for _, h := range f.Headers {
		raw := uint32(h.Type())
		switch h := h.(type) {
		case *Unknown:
			raw |= typeOptional
		case *Parameter:
			if h.Optional {
				raw |= typeOptional
			}
		}
		n := sizeOf(h)
		le.PutUint32(b[headerType:], raw)
		le.PutUint32(b[headerLength:], uint32(n))
		encode(h, b[headerContent:headerContent+n], uint32(dataAt))
		b = b[headerContent+alignUp(uint64(n), headerAlign):]
	}
	copy(out[dataAt:], f.Data)
	le.PutUint32(out[fixedChecksum:], checksum(out[:fixedSize], out[fixedSize:dataAt]))
	return out, nil
}

// Bytes returns a piece of the file data; nil for the zero Blob.
func (f *File) Bytes(b Blob) []byte {
	if b.Size == 0 {
		return nil
	}
	return f.Data[b.Offset : b.Offset+b.Size : b.Offset+b.Size]
}
