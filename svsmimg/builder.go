package svsmimg

import (
	"bytes"
	"crypto/sha256"
)

// Compatibility masks of the files that this package builds: COCONUT's.
const (
	maskSNP    = 1 << 0
	maskNative = 1 << 1
)

// A builder puts a file together. Equal contents are stored once, in the order of
// their first use: the same headers give the same bytes.
type builder struct {
	f     File
	blobs map[[sha256.Size]byte]Blob
}

func newBuilder(version uint32) *builder {
	return &builder{f: File{Version: version}, blobs: make(map[[sha256.Size]byte]Blob)}
}

func (b *builder) add(h Header) { b.f.Headers = append(b.f.Headers, h) }

// blob stores contents.
func (b *builder) blob(data []byte) Blob {
	sum := sha256.Sum256(data)
	if known, ok := b.blobs[sum]; ok {
		return known
	}
	out := Blob{Offset: uint32(len(b.f.Data)), Size: uint32(len(data))}
	b.f.Data = append(b.f.Data, data...)
	b.blobs[sum] = out
	return out
}

// page adds one page with contents, which may be shorter than a page.
func (b *builder) page(gpa uint64, mask uint32, kind PageDataType, data []byte) {
	if len(data) < pageSize {
		data = append(bytes.Clone(data), make([]byte, pageSize-len(data))...)
	}
	b.add(&PageData{GPA: gpa, Mask: mask, Kind: kind, Data: b.blob(data)})
}

// pages adds contents page by page.
func (b *builder) pages(gpa uint64, mask uint32, data []byte) {
	for len(data) > 0 {
		n := min(pageSize, len(data))
		b.page(gpa, mask, DataNormal, data[:n])
		gpa, data = gpa+pageSize, data[n:]
	}
}

// empty adds pages without data. It stops when there are more than any file may
// have, which ends the build.
func (b *builder) empty(gpa, size uint64, mask uint32, kind PageDataType) {
	for end := gpa + size; gpa < end && len(b.f.Headers) <= maxHeaders; gpa += pageSize {
		b.add(&PageData{GPA: gpa, Mask: mask, Kind: kind})
	}
}

// context adds a VP_CONTEXT of the boot vCPU.
func (b *builder) context(gpa uint64, mask uint32, page []byte) {
	b.add(&VPContext{GPA: gpa, Mask: mask, Data: b.blob(page)})
}

// file returns what was built.
func (b *builder) file() (*File, error) {
	f := b.f
	return &f, f.check()
}

// Canonical returns the same file with its data laid out anew: equal contents
// once, in the order of the headers, and nothing that no header refers to. Two
// files that say the same have the same canonical form.
func (f *File) Canonical() (*File, error) {
	if err := f.check(); err != nil {
		return nil, err
	}
	b := newBuilder(f.Version)
	b.f.Architecture = f.Architecture
	for _, h := range f.Headers {
		move := func(blob Blob) Blob {
			if blob.Size == 0 {
				return Blob{}
			}
			return b.blob(f.Bytes(blob))
		}
		switch h := h.(type) {
		case *CoRIM:
			c := *h
			c.Data = move(h.Data)
			b.add(&c)
		case *ParameterArea:
			c := *h
			c.Data = move(h.Data)
			b.add(&c)
		case *PageData:
			c := *h
			c.Data = move(h.Data)
			b.add(&c)
		case *VPContext:
			c := *h
			c.Data = move(h.Data)
			b.add(&c)
		default:
			b.add(h)
		}
	}
	if len(b.f.Data) == 0 {
		// Loaders want file data even where nothing refers to it.
		b.f.Data = make([]byte, headerAlign)
	}
	return b.file()
}
