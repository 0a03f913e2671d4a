package svsmimg

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
)

// replaceFirmware returns an image of COCONUT's with another firmware, and says
// whether an ID block had to go, since it is that of another launch.
func replaceFirmware(image *File, firmware []byte) (f *File, unsigned bool, err error) {
	info, err := newFirmwareInfo(firmware)
	if err != nil {
		return nil, false, err
	}
	at, err := image.findBootParams()
	if err != nil {
		return nil, false, err
	}
	block := image.Headers[at].(*PageData)
	page := bytes.Clone(image.Bytes(block.Data))
	oldStart, oldSize := uint64(le.Uint32(page[bootParamsFirmware:])), uint64(le.Uint32(page[bootParamsFirmware+4:]))
	copy(page[bootParamsFirmware:], info.encode())

	out := &File{Version: image.Version, Architecture: image.Architecture, Data: bytes.Clone(image.Data)}
	put := func(data []byte) Blob {
		b := Blob{Offset: uint32(len(out.Data)), Size: uint32(len(data))}
		out.Data = append(out.Data, data...)
		return b
	}
	mask := image.Mask(PlatformSNP) | image.Mask(PlatformNative)
	place, lastPage := -1, -1
	for i, h := range image.Headers {
		switch h := h.(type) {
		case *SNPIDBlock:
			unsigned = true
			continue
		case *Platform:
			p := *h
			if p.Platform != PlatformNative {
				p.HighestVTL = 2
			}
			out.Headers = append(out.Headers, &p)
			continue
		case *PageData:
			if oldSize != 0 && h.GPA >= oldStart && h.GPA < oldStart+oldSize && h.Mask&mask != 0 {
				if place < 0 {
					place, mask = len(out.Headers), h.Mask
				}
				continue
			}
			if i == at {
				p := *h
				p.Data = put(page)
				out.Headers = append(out.Headers, &p)
				lastPage = len(out.Headers)
				continue
			}
			if h.GPA < top4G {
				lastPage = len(out.Headers) + 1
			}
		}
		out.Headers = append(out.Headers, h)
	}
	if place < 0 {
		place = lastPage
	}
	var pages []Header
	for n := 0; n < len(firmware); n += pageSize {
		pages = append(pages, &PageData{GPA: uint64(info.start) + uint64(n), Mask: mask, Data: put(firmware[n : n+pageSize])})
	}
	out.Headers = slices.Insert(out.Headers, place, pages...)
	return out, unsigned, nil
}

// findBootParams finds the page with the parameter block: before the general
// parameter area, whose distance it holds, for the kernel that the file requires
// memory for.
func (f *File) findBootParams() (int, error) {
	wrong := errors.New("image is not one of COCONUT-SVSM in the layout of 2026 for QEMU: found no parameter block; build a wrapped firmware anew, with a recipe of kind wrap")
	var general, kernel uint64
	areas := make(map[uint32]bool)
	for _, h := range f.Headers {
		switch h := h.(type) {
		case *Parameter:
			if h.Kind == TypeVPCount {
				areas[h.Index] = true
			}
		case *ParameterInsert:
			if areas[h.Index] && general == 0 {
				general = h.GPA
			}
		case *RequiredMemory:
			if kernel == 0 {
				kernel = h.GPA
			}
		}
	}
	if general == 0 || kernel == 0 {
		return 0, wrong
	}
	for i, h := range f.Headers {
		p, ok := h.(*PageData)
		if !ok || p.Kind != DataNormal || p.Data.Size != pageSize || p.GPA >= general || p.GPA < kernel || general-p.GPA > 16*pageSize {
			continue
		}
		b := f.Bytes(p.Data)
		if uint64(le.Uint32(b[4:])) != general-p.GPA || le.Uint64(b[bootParamsKernel:]) != kernel || !isZero(b[bootParamsSize:]) {
			continue
		}
		if le.Uint32(b[28:]) != 0 || le.Uint64(b[bootParamsFirmware+8:]) != 0 || b[bootParamsFirmware+16] != 0 {
			return 0, fmt.Errorf("image is one of COCONUT-SVSM for another hypervisor than QEMU: its firmware starts from a context or in low memory")
		}
		return i, nil
	}
	return 0, wrong
}
