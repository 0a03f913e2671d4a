package attest

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// A GUID is its bytes in the order of the text form (RFC 4122), as the hosts of
// AWS, Google and QEMU write them in certificate tables.
type GUID [16]byte

// String returns the usual text form.
func (g GUID) String() string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", g[0:4], g[4:6], g[6:8], g[8:10], g[10:16])
}

// swapped is a GUID with its first three fields in the other byte order, which
// UEFI and the SVSM's manifests use.
func (g GUID) swapped() GUID {
	slices.Reverse(g[0:4])
	slices.Reverse(g[4:6])
	slices.Reverse(g[6:8])
	return g
}

// mustGUID reads the usual text form of a constant.
func mustGUID(s string) GUID {
	b, err := hex.DecodeString(strings.ReplaceAll(s, "-", ""))
	if err != nil {
		panic(err)
	}
	return GUID(b)
}

// GUIDs of a certificate table (GHCB 56421, SNP Extended Guest Request).
var (
	GUIDVCEK = mustGUID("63da758d-e664-4564-adc5-f4b93be8accd")
	GUIDVLEK = mustGUID("a8074bc2-a25a-483e-aae6-39c045a0b8a1")
	GUIDASK  = mustGUID("4ab7b379-bbac-4fe4-a02f-05aef327c782")
	GUIDARK  = mustGUID("c0b406a4-a803-4952-9743-3fb6014cd0ae")
	GUIDCRL  = mustGUID("92f81bc3-5811-4d3d-97ff-d19f88dc67ea")
)

// tableGUID reads an entry's GUID. The specification does not say in which order
// its bytes are: a known GUID is known in both.
func tableGUID(b []byte) GUID {
	g := GUID(b)
	for _, known := range []GUID{GUIDVCEK, GUIDVLEK, GUIDASK, GUIDARK, GUIDCRL} {
		if g == known.swapped() {
			return known
		}
	}
	return g
}

// Bounds of a certificate table.
const (
	certEntrySize   = 24 // GUID, offset u32, length u32
	maxCertEntries  = 64
	maxCertTable    = 256 << 10
	offEntryOffset  = 16
	offEntryLength  = 20
	maxCertEntryLen = 64 << 10
)

// A CertEntry is one entry of a certificate table.
type CertEntry struct {
	GUID GUID
	Data []byte
}

// ErrCertTable is wrapped by every error about a malformed certificate table.
var ErrCertTable = errors.New("malformed certificate table")

// ParseCertTable reads a certificate table: entries of GUID, offset and length
// (little-endian, from the start of the table), ended by an entry of zeros, then
// the data. The host supplies it: nothing in it is trusted. Entries must lie
// behind the header, inside the table, and must not overlap; a GUID must not
// repeat.
func ParseCertTable(b []byte) ([]CertEntry, error) {
	if len(b) == 0 {
		return nil, nil
	}
	if len(b) > maxCertTable {
		return nil, fmt.Errorf("%w: found %d bytes, expected at most %d", ErrCertTable, len(b), maxCertTable)
	}
	type span struct{ from, to uint64 }
	var entries []CertEntry
	var spans []span
	header := 0
	for ; ; header += certEntrySize {
		if header+certEntrySize > len(b) {
			return nil, fmt.Errorf("%w: no terminating entry", ErrCertTable)
		}
		e := b[header : header+certEntrySize]
		if allZero(e) {
			break
		}
		if len(entries) == maxCertEntries {
			return nil, fmt.Errorf("%w: more than %d entries", ErrCertTable, maxCertEntries)
		}
		g := tableGUID(e[:16])
		from := uint64(binary.LittleEndian.Uint32(e[offEntryOffset:]))
		n := uint64(binary.LittleEndian.Uint32(e[offEntryLength:]))
		switch {
		case n == 0 || n > maxCertEntryLen:
			return nil, fmt.Errorf("%w: entry %s has %d bytes, expected 1 to %d", ErrCertTable, g, n, maxCertEntryLen)
		case from+n > uint64(len(b)):
			return nil, fmt.Errorf("%w: entry %s ends at %d of %d bytes", ErrCertTable, g, from+n, len(b))
		case slices.ContainsFunc(entries, func(e CertEntry) bool { return e.GUID == g }):
			return nil, fmt.Errorf("%w: entry %s is repeated", ErrCertTable, g)
		}
		entries = append(entries, CertEntry{g, b[from : from+n]})
		spans = append(spans, span{from, from + n})
	}
	headerEnd := uint64(header + certEntrySize)
	slices.SortFunc(spans, func(a, b span) int { return int(int64(a.from) - int64(b.from)) })
	for _, s := range spans {
		if s.from < headerEnd {
			return nil, fmt.Errorf("%w: data at %d overlaps what lies before it", ErrCertTable, s.from)
		}
		headerEnd = s.to
	}
	return entries, nil
}

// EncodeCertTable writes a certificate table. [ParseCertTable] reads it back.
func EncodeCertTable(entries []CertEntry) []byte {
	header := make([]byte, (len(entries)+1)*certEntrySize)
	var data bytes.Buffer
	for i, e := range entries {
		h := header[i*certEntrySize:]
		copy(h, e.GUID[:])
		binary.LittleEndian.PutUint32(h[offEntryOffset:], uint32(len(header)+data.Len()))
		binary.LittleEndian.PutUint32(h[offEntryLength:], uint32(len(e.Data)))
		data.Write(e.Data)
	}
	return append(header, data.Bytes()...)
}
