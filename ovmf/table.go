package ovmf

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/evtpm/evtpm/measure"
)

// The table of GUIDed structures (edk2 OvmfPkg/ResetVector/Ia16/
// ResetVectorVtf0.asm). It ends 32 bytes before the end of the image and is read
// backwards: each entry's data is followed by its length and its GUID, and the
// last entry is the footer, whose length is that of the whole table.
const (
	tableEnd      = 32 // bytes between the table and the end of the image
	entryTrailer  = 18 // u16 length, then the GUID; the length counts both
	entryGUID     = 16
	maxTableBytes = 0xffff
)

// GUIDs of the table.
var (
	guidFooter      = mustGUID("96b582de-1fb2-45f7-baea-a366c55a082d")
	guidHashTable   = mustGUID("7255371f-3a3b-4b04-927b-1da6efa8d454")
	guidResetBlock  = mustGUID("00f771de-1a7e-4fcb-890e-68c77e2fb44e")
	guidSEVMetadata = mustGUID("dc886566-984a-4798-a75e-5585a7bf67cc")
	guidSecretBlock = mustGUID("4c2eb361-7d9b-4cc3-8081-127c90d3d294")
	guidTDXMetadata = mustGUID("e47a6535-984a-4798-865e-4685a7bf8ec2")
	guidIGVM        = mustGUID("784fa70e-3176-4677-8a20-04b68699e374")
	guidSVSMInfo    = mustGUID("a789a612-0597-4c4b-a49f-cbb1fe9d1ddd")
)

func mustGUID(s string) measure.GUID {
	g, err := measure.ParseGUID(s)
	if err != nil {
		panic(err)
	}
	return g
}

// guidNames says in words what the known entries are.
var guidNames = map[measure.GUID]string{
	guidHashTable:   "SEV hash table area",
	guidResetBlock:  "SEV-ES reset block",
	guidSEVMetadata: "SEV metadata offset",
	guidSecretBlock: "SEV secret block",
	guidTDXMetadata: "TDX metadata offset",
	guidIGVM:        "IGVM metadata offset",
	guidSVSMInfo:    "SVSM info",
}

// An Entry is one structure of the table.
type Entry struct {
	GUID   measure.GUID
	Name   string // in words; empty when unknown
	Offset int64  // of Data in the image
	Data   []byte
}

// ErrNoTable says that an image does not end in the table of GUIDs, so that
// nothing is known of how SEV would start it.
var ErrNoTable = errors.New("firmware has no table of GUIDs at its end: not an OVMF image for SEV (QEMU: failed to locate and/or save reset vector)")

// tailBytes are enough of an image's end to hold any table.
const tailBytes = tableEnd + maxTableBytes

// tableLength is the length that the footer gives the table; 0 without footer.
func tableLength(data []byte) int {
	end := len(data) - tableEnd
	if end < entryTrailer || measure.GUID(data[end-entryGUID:end]) != guidFooter {
		return 0
	}
	return int(binary.LittleEndian.Uint16(data[end-entryTrailer:]))
}

// parseTable reads the table from the end of an image, which lies at offset in
// it. Entries are returned in the order of the image. QEMU stops quietly at the
// first entry that makes no sense; a table that would be read in part is an error
// here.
func parseTable(data []byte, offset int64) ([]Entry, error) {
	end := len(data) - tableEnd
	if end < entryTrailer {
		return nil, ErrNoTable
	}
	if measure.GUID(data[end-entryGUID:end]) != guidFooter {
		return nil, ErrNoTable
	}
	total := tableLength(data)
	if total < entryTrailer || total > end {
		return nil, fmt.Errorf("firmware table: found length %d, expected %d to %d", total, entryTrailer, min(end, maxTableBytes))
	}
	start := end - total
	var entries []Entry
	seen := make(map[measure.GUID]bool)
	for at := end - entryTrailer; at > start; {
		if at-start < entryTrailer {
			return nil, fmt.Errorf("firmware table: found %d bytes before the first entry, expected none", at-start)
		}
		guid := measure.GUID(data[at-entryGUID : at])
		length := int(binary.LittleEndian.Uint16(data[at-entryTrailer:]))
		if length < entryTrailer || length > at-start {
			return nil, fmt.Errorf("firmware table: entry %s: found length %d, expected %d to %d", guid, length, entryTrailer, at-start)
		}
		if seen[guid] {
			return nil, fmt.Errorf("firmware table: entry %s: found twice", guid)
		}
		seen[guid] = true
		entries = append(entries, Entry{
			GUID:   guid,
			Name:   guidNames[guid],
			Offset: offset + int64(at-length),
			Data:   data[at-length : at-entryTrailer],
		})
		at -= length
	}
	for i, j := 0, len(entries)-1; i < j; i, j = i+1, j-1 {
		entries[i], entries[j] = entries[j], entries[i]
	}
	return entries, nil
}

// loneResetBlock reads the SEV-ES reset block of an image that is older than the
// table (edk2 2020.05 to 2020.11): the same structure, alone where the table ends.
// QEMU looks there when it finds no table (target/i386/sev.c,
// sev_es_find_reset_vector). Without one the error is [ErrNoTable].
func loneResetBlock(data []byte) (*uint32, error) {
	const length = 4 + entryTrailer
	end := len(data) - tableEnd
	if end < length || measure.GUID(data[end-entryGUID:end]) != guidResetBlock {
		return nil, ErrNoTable
	}
	if n := binary.LittleEndian.Uint16(data[end-entryTrailer:]); n != length {
		return nil, fmt.Errorf("SEV-ES reset block: found length %d, expected %d", n, length)
	}
	eip := binary.LittleEndian.Uint32(data[end-length:])
	return &eip, nil
}
