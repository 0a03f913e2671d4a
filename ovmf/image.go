package ovmf

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/evtpm/evtpm/measure"
)

// MaxSize is the largest image that is read. The largest that QEMU maps below
// 4 GiB is far smaller.
const MaxSize = 64 << 20

// top is where an image ends in guest memory.
const top = 1 << 32

// A SectionType says what a section of the SEV metadata is for (edk2
// OvmfPkg/ResetVector/X64/OvmfSevMetadata.asm).
type SectionType uint32

// Types of sections.
const (
	SectionSecMem       SectionType = 1
	SectionSecrets      SectionType = 2
	SectionCPUID        SectionType = 3
	SectionSVSMCAA      SectionType = 4
	SectionKernelHashes SectionType = 0x10
)

// String returns edk2's name of the type.
func (t SectionType) String() string {
	switch t {
	case SectionSecMem:
		return "SNP_SEC_MEM"
	case SectionSecrets:
		return "SNP_SECRETS"
	case SectionCPUID:
		return "SNP_CPUID"
	case SectionSVSMCAA:
		return "SVSM_CAA"
	case SectionKernelHashes:
		return "SNP_KERNEL_HASHES"
	}
	return fmt.Sprintf("type 0x%x", uint32(t))
}

// A Section is a piece of guest memory that the firmware wants at launch.
type Section struct {
	GPA  uint32
	Size uint32
	Type SectionType
}

// An Area is a piece of guest memory that the table names.
type Area struct{ GPA, Size uint32 }

// An Image is a parsed firmware image. It refers to the bytes that it was
// parsed from and never changes them.
type Image struct {
	// Data is the whole image; nil when only its digest is known.
	Data []byte

	// Size of the image in bytes: it ends at 4 GiB.
	Size uint32

	// Prefix is the launch digest after the image's pages, when Data is nil.
	Prefix measure.Digest

	// Table lists the entries of the table, in the order of the image.
	Table []Entry

	// ResetEIP is where vCPUs other than the first start; nil when the image
	// has no SEV-ES reset block. Builds without SEV-ES may have one with zero.
	ResetEIP *uint32

	// HashArea is where the firmware looks for the kernel hashes. Builds without
	// support leave the entry out, or have both fields zero.
	HashArea *Area

	// Secret is where the firmware expects a launch secret (SEV and SEV-ES).
	Secret *Area

	// HasMetadata says whether the image has SEV metadata; Sections may be empty
	// even then. MetadataOffset is where in the image it lies.
	HasMetadata    bool
	MetadataOffset int64
	Sections       []Section
}

// GPA is where the image starts in guest memory.
func (img *Image) GPA() uint64 { return top - uint64(img.Size) }

// Parse reads an image. Everything that the table leads to must be whole and
// well formed; whether SEV-SNP can start the image is [Image.CheckSNP]'s to say,
// since SEV starts images that SNP does not. data is kept, not copied.
func Parse(data []byte) (*Image, error) {
	img, err := Bare(data)
	if err != nil {
		return nil, err
	}
	return img, img.readTable(bytes.NewReader(data))
}

// Scan reads an image of size bytes like [Parse], and keeps of its contents
// their launch digest alone. It takes less time and memory, and is enough for
// everything but the pages themselves: a trace, a diff, a launch of SEV or
// SEV-ES.
func Scan(r io.ReaderAt, size int64) (*Image, error) {
	if err := checkSize(size); err != nil {
		return nil, err
	}
	img := &Image{Size: uint32(size)}
	// The table first: most files that are no firmware fail there at once.
	if err := img.readTable(r); err != nil {
		return nil, err
	}
	var err error
	img.Prefix, err = measure.FoldReader(r, size, img.GPA())
	if err != nil {
		return nil, fmt.Errorf("firmware: %w", err)
	}
	return img, nil
}

// readTable reads the table and what it leads to.
func (img *Image) readTable(r io.ReaderAt) error {
	// One page holds any table that exists; the longest possible one is read when
	// the footer says so.
	n := min(int64(img.Size), measure.PageSize)
	tail, err := readAt(r, int64(img.Size)-n, n)
	if err == nil && tableLength(tail) > len(tail)-tableEnd && n < int64(img.Size) {
		n = min(int64(img.Size), tailBytes)
		tail, err = readAt(r, int64(img.Size)-n, n)
	}
	if err != nil {
		return err
	}
	if img.Table, err = parseTable(tail, int64(img.Size)-n); err != nil {
		if errors.Is(err, ErrNoTable) {
			img.ResetEIP, err = loneResetBlock(tail)
		}
		return err
	}
	for i := range img.Table {
		if err := img.read(r, &img.Table[i]); err != nil {
			return err
		}
	}
	return nil
}

func readAt(r io.ReaderAt, offset, n int64) ([]byte, error) {
	out := make([]byte, n)
	if _, err := io.ReadFull(io.NewSectionReader(r, offset, n), out); err != nil {
		return nil, fmt.Errorf("firmware: %w", err)
	}
	return out, nil
}

// Bare makes an image of any bytes of a firmware's size, without reading the
// table: enough for a SEV launch without kernel hashes, and for a precomputed
// hash of the pages.
func Bare(data []byte) (*Image, error) {
	if err := checkSize(int64(len(data))); err != nil {
		return nil, err
	}
	return &Image{Data: data, Size: uint32(len(data))}, nil
}

// HashPages is the launch digest after the pages of any file of a firmware's
// size: sev-snp-measure's mode snp:ovmf-hash.
func HashPages(r io.ReaderAt, size int64) (measure.Digest, error) {
	if err := checkSize(size); err != nil {
		return measure.Digest{}, err
	}
	return measure.FoldReader(r, size, uint64(top-size))
}

func checkSize(n int64) error {
	switch {
	case n <= 0:
		return errors.New("firmware: found an empty file")
	case n > MaxSize:
		return fmt.Errorf("firmware: found %d bytes, expected at most %d", n, MaxSize)
	case n%measure.PageSize != 0:
		return fmt.Errorf("firmware: found %d bytes, expected a multiple of %d (QEMU: could not load PC BIOS)", n, measure.PageSize)
	}
	return nil
}

// read interprets an entry of the table.
func (img *Image) read(r io.ReaderAt, e *Entry) error {
	var want int
	switch e.GUID {
	case guidHashTable, guidSecretBlock:
		want = 8
	case guidResetBlock, guidSEVMetadata:
		want = 4
	default:
		return nil
	}
	if len(e.Data) != want {
		return fmt.Errorf("firmware table: %s: found %d bytes, expected %d", e.Name, len(e.Data), want)
	}
	first := binary.LittleEndian.Uint32(e.Data)
	switch e.GUID {
	case guidResetBlock:
		img.ResetEIP = &first
	case guidHashTable:
		img.HashArea = &Area{first, binary.LittleEndian.Uint32(e.Data[4:])}
	case guidSecretBlock:
		img.Secret = &Area{first, binary.LittleEndian.Uint32(e.Data[4:])}
	case guidSEVMetadata:
		return img.readMetadata(r, first)
	}
	return nil
}

// The SEV metadata (edk2 OvmfPkg/ResetVector/X64/OvmfSevMetadata.asm; QEMU
// hw/i386/pc_sysfw_ovmf.c, OvmfSevMetadata): a header, then the sections. The
// table gives its distance from the end of the image.
const (
	metadataSignature = 0 // "ASEV"
	metadataLength    = 4 // u32: of header and sections
	metadataVersion   = 8 // u32: 1
	metadataCount     = 12
	metadataHeader    = 16
	sectionBytes      = 12 // u32 address, u32 size, u32 type
	maxSections       = 64
)

func (img *Image) readMetadata(r io.ReaderAt, fromEnd uint32) error {
	const what = "SEV metadata"
	if fromEnd > img.Size || fromEnd < metadataHeader {
		return fmt.Errorf("%s: found offset %d from the end of the image, expected %d to %d", what, fromEnd, metadataHeader, img.Size)
	}
	img.MetadataOffset = int64(img.Size - fromEnd)
	m, err := readAt(r, img.MetadataOffset, min(int64(fromEnd), metadataHeader+maxSections*sectionBytes))
	if err != nil {
		return err
	}
	if sig := m[metadataSignature : metadataSignature+4]; string(sig) != "ASEV" {
		return fmt.Errorf("%s: found signature %q, expected \"ASEV\" (QEMU: Failed to locate SEV metadata header)", what, sig)
	}
	length := binary.LittleEndian.Uint32(m[metadataLength:])
	version := binary.LittleEndian.Uint32(m[metadataVersion:])
	count := binary.LittleEndian.Uint32(m[metadataCount:])
	if version != 1 {
		return fmt.Errorf("%s: found version %d, expected 1", what, version)
	}
	if count > maxSections {
		return fmt.Errorf("%s: found %d sections, expected at most %d", what, count, maxSections)
	}
	if want := metadataHeader + count*sectionBytes; length != want {
		return fmt.Errorf("%s: found length %d for %d sections, expected %d", what, length, count, want)
	}
	if uint64(length) > uint64(len(m)) {
		return fmt.Errorf("%s: found length %d, but only %d bytes to the end of the image", what, length, len(m))
	}
	img.HasMetadata = true
	img.Sections = make([]Section, count)
	for i := range img.Sections {
		at := m[metadataHeader+i*sectionBytes:]
		img.Sections[i] = Section{
			GPA:  binary.LittleEndian.Uint32(at[0:]),
			Size: binary.LittleEndian.Uint32(at[4:]),
			Type: SectionType(binary.LittleEndian.Uint32(at[8:])),
		}
	}
	return nil
}

// Section returns the only section of a type, or nil.
func (img *Image) Section(t SectionType) *Section {
	for i := range img.Sections {
		if img.Sections[i].Type == t {
			return &img.Sections[i]
		}
	}
	return nil
}
