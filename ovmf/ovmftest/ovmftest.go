// Package ovmftest builds firmware images for tests: a table of GUIDs and SEV
// metadata at the end of pages of padding. Nothing in them can run.
package ovmftest

import (
	"bytes"
	"encoding/binary"

	"github.com/evtpm/evtpm/measure"
	"github.com/evtpm/evtpm/ovmf"
)

// GUIDs of the entries of a firmware's table.
const (
	Footer      = "96b582de-1fb2-45f7-baea-a366c55a082d"
	HashTable   = "7255371f-3a3b-4b04-927b-1da6efa8d454"
	ResetBlock  = "00f771de-1a7e-4fcb-890e-68c77e2fb44e"
	SEVMetadata = "dc886566-984a-4798-a75e-5585a7bf67cc"
	Secret      = "4c2eb361-7d9b-4cc3-8081-127c90d3d294"
	SVSMInfo    = "a789a612-0597-4c4b-a49f-cbb1fe9d1ddd"
)

// MetadataFromEnd is where [Build] puts the SEV metadata: bytes before the end of
// the image.
const MetadataFromEnd = 0x800

// An Entry is one structure of the table. Length is what its trailer says; zero
// means the right one.
type Entry struct {
	GUID   string
	Data   []byte
	Length uint16
}

// An Image is what [Build] makes an image of. The zero value of a field leaves
// the thing out, except where it says otherwise.
type Image struct {
	Size    int // zero is 64 KiB
	Fill    byte
	Entries []Entry

	// TableLength is the footer's; zero means the right one.
	TableLength uint16

	// Metadata is written MetadataFromEnd bytes before the end.
	Metadata []byte
}

// U32 encodes numbers as the table does.
func U32(n ...uint32) []byte {
	var out []byte
	for _, v := range n {
		out = binary.LittleEndian.AppendUint32(out, v)
	}
	return out
}

// Metadata encodes sections behind a right header.
func Metadata(sections ...ovmf.Section) []byte {
	out := append([]byte("ASEV"), U32(uint32(16+12*len(sections)), 1, uint32(len(sections)))...)
	for _, s := range sections {
		out = append(out, U32(s.GPA, s.Size, uint32(s.Type))...)
	}
	return out
}

// AmdSev describes an image with everything that edk2's AmdSev build has: the
// sections of its 2026.08 release, a place for kernel hashes, a reset block.
func AmdSev() Image {
	return Image{
		Fill: 0xff,
		Entries: []Entry{
			{GUID: HashTable, Data: U32(0x810c00, 0x400)},
			{GUID: Secret, Data: U32(0x811000, 0x1000)},
			{GUID: SEVMetadata, Data: U32(MetadataFromEnd)},
			{GUID: ResetBlock, Data: U32(0x80b004)},
		},
		Metadata: Metadata(AmdSevSections()...),
	}
}

// AmdSevSections are the sections of [AmdSev].
func AmdSevSections() []ovmf.Section {
	return []ovmf.Section{
		{GPA: 0x800000, Size: 0x9000, Type: ovmf.SectionSecMem},
		{GPA: 0x80a000, Size: 0x3000, Type: ovmf.SectionSecMem},
		{GPA: 0x80d000, Size: 0x1000, Type: ovmf.SectionSecrets},
		{GPA: 0x80e000, Size: 0x1000, Type: ovmf.SectionCPUID},
		{GPA: 0x80f000, Size: 0x1000, Type: ovmf.SectionSVSMCAA},
		{GPA: 0x811000, Size: 0x1f000, Type: ovmf.SectionSecMem},
		{GPA: 0x810000, Size: 0x1000, Type: ovmf.SectionKernelHashes},
	}
}

// Build makes the image.
func Build(i Image) []byte {
	size := i.Size
	if size == 0 {
		size = 64 << 10
	}
	data := bytes.Repeat([]byte{i.Fill}, size)
	if i.Metadata != nil {
		copy(data[size-MetadataFromEnd:], i.Metadata)
	}
	var table []byte
	for _, e := range i.Entries {
		length := e.Length
		if length == 0 {
			length = uint16(len(e.Data) + 18)
		}
		table = append(table, e.Data...)
		table = append(table, trailer(length, e.GUID)...)
	}
	length := i.TableLength
	if length == 0 {
		length = uint16(len(table) + 18)
	}
	table = append(table, trailer(length, Footer)...)
	copy(data[size-32-len(table):], table)
	return data
}

// trailer ends an entry: its length, its GUID.
func trailer(length uint16, guid string) []byte {
	g, err := measure.ParseGUID(guid)
	if err != nil {
		panic(err)
	}
	return append(binary.LittleEndian.AppendUint16(nil, length), g[:]...)
}
