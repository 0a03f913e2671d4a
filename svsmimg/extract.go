package svsmimg

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"slices"

	"github.com/evtpm/evtpm/ovmf"
)

// Extracted is what a QEMU without IGVM can load of a file with stock options.
type Extracted struct {
	// Firmware is the OVMF image in the file: the pages that end at 4 GiB.
	Firmware []byte

	// SVSM says that the file starts something else than its firmware. That is an
	// SVSM, which a machine without VMPLs has no place for.
	SVSM bool

	// Pages are the other pages of a file without an SVSM that hold something, in
	// ascending order of address, neighbours joined. Pages of zeros are left out, and
	// so is the firmware's end below 1 MiB, where QEMU shows it by itself.
	Pages []LoaderPages
}

// LoaderPages is a piece of guest memory.
type LoaderPages struct {
	GPA  uint64
	Data []byte
}

// biosAlign is what QEMU wants the size of a -bios file to be a multiple of
// (hw/i386/x86-common.c, x86_bios_rom_init).
const biosAlign = 64 << 10

// BIOS returns the firmware as a file for QEMU's -bios: with pages of zeros before
// it, where its size is not a multiple of 64 KiB.
func (e *Extracted) BIOS() []byte {
	n := len(e.Firmware)
	out := make([]byte, alignUp(uint64(n), biosAlign))
	copy(out[len(out)-n:], e.Firmware)
	return out
}

// maxExpansion bounds by how much an extract may be larger than its file: pages
// may share their data.
const maxExpansion = 32 << 20

// Extract takes out of a file what can run without an SVSM under it, on a machine
// without SEV-SNP: the firmware. The SEV_SNP platform's pages are taken, or NATIVE's
// where there is no other.
func (f *File) Extract() (*Extracted, error) {
	mask := f.Mask(PlatformSNP)
	if mask == 0 {
		mask = f.Mask(PlatformNative)
	}
	if mask == 0 {
		return nil, errors.New("IGVM file is neither for SEV_SNP nor for NATIVE")
	}
	firmware, err := f.firmware(mask)
	if err != nil {
		return nil, err
	}
	e := &Extracted{Firmware: firmware}
	size := uint64(len(firmware))
	base, limit := top4G-size, f.maxExtract()
	if entry, ok := f.entry(mask); ok && (entry < base || entry >= top4G) {
		e.SVSM = true
		return e, nil
	}
	var pages []*PageData
	for _, h := range f.Headers {
		p, ok := h.(*PageData)
		switch {
		case !ok || p.Mask&mask == 0 || p.Kind != DataNormal || p.Data.Size == 0:
		case p.GPA >= base && p.GPA < top4G:
		case f.isLowAlias(p, firmware):
		default:
			pages = append(pages, p)
			if size += p.Bytes(); size > limit {
				return nil, fmt.Errorf("IGVM file: pages with contents take more than %d bytes, for %d bytes of file data", limit, len(f.Data))
			}
		}
	}
	slices.SortFunc(pages, func(a, b *PageData) int { return cmp.Compare(a.GPA, b.GPA) })
	for _, p := range pages {
		if n := len(e.Pages); n > 0 && e.Pages[n-1].GPA+uint64(len(e.Pages[n-1].Data)) == p.GPA {
			e.Pages[n-1].Data = append(e.Pages[n-1].Data, f.Bytes(p.Data)...)
			continue
		}
		e.Pages = append(e.Pages, LoaderPages{GPA: p.GPA, Data: slices.Clone(f.Bytes(p.Data))})
	}
	return e, nil
}

// isLowAlias reports whether a page is the firmware's, seen below 1 MiB.
func (f *File) isLowAlias(p *PageData, firmware []byte) bool {
	n := uint64(min(len(firmware), lowAlias))
	if p.GPA < top1M-n || p.GPA+p.Bytes() > top1M {
		return false
	}
	at := uint64(len(firmware)) - (top1M - p.GPA)
	return bytes.Equal(f.Bytes(p.Data), firmware[at:at+p.Bytes()])
}

func (f *File) maxExtract() uint64 { return uint64(len(f.Data)) + maxExpansion }

// errNoFirmware says that a file has no page that ends at 4 GiB.
var errNoFirmware = errors.New("IGVM file has no firmware: found no page that ends at 4 GiB")

// firmware returns the pages of a platform that end at 4 GiB. Memory above may
// follow them.
func (f *File) firmware(mask uint32) ([]byte, error) {
	base := uint64(top4G)
	for _, r := range f.runs(mask) {
		if r.gpa < top4G && r.gpa+r.size >= top4G {
			base = r.gpa
		}
	}
	size := top4G - base
	switch {
	case size == 0:
		return nil, errNoFirmware
	case size > ovmf.MaxSize:
		return nil, fmt.Errorf("IGVM file: found a firmware of %d bytes, expected at most %d", size, ovmf.MaxSize)
	case size > f.maxExtract():
		return nil, fmt.Errorf("IGVM file: found a firmware of %d bytes in %d bytes of file data", size, len(f.Data))
	}
	out := make([]byte, size)
	for _, h := range f.Headers {
		if p, ok := h.(*PageData); ok && p.Mask&mask != 0 && p.Kind == DataNormal && p.GPA >= base && p.GPA < top4G {
			copy(out[p.GPA-base:], f.Bytes(p.Data))
		}
	}
	return out, nil
}
