package svsmimg

import (
	"bytes"
	"errors"
	"slices"
)

// replaceFirmware returns an image of COCONUT's with another firmware, and says
// whether an ID block had to go, since it is that of another launch.
func replaceFirmware(image *File, firmware []byte) (f *File, unsigned bool, err error) {
	info, err := newFirmwareInfo(firmware)
	if err != nil {
		return nil, false, err
	}
	at, layout, err := image.findBootParams()
	if err != nil {
		return nil, false, err
	}
	block := image.Bytes(image.Headers[at].(*PageData).Data)
	page := bytes.Clone(block)
	oldStart, oldSize := uint64(le.Uint32(page[layout.firmware:])), uint64(le.Uint32(page[layout.firmware+4:]))
	if layout.mapInPages && info.memoryMapLen != 0 {
		return nil, false, errors.New("firmware: it has a place for IGVM's memory map, which an image of COCONUT-SVSM before release 2026.02 may take otherwise; build the image anew from a newer release, or take a firmware without")
	}
	copy(page[layout.firmware:], layout.encode(info))

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
			// Images of release 2026.04 have the block twice: for the boot loader and
			// for the kernel.
			if i == at || h.Data.Size == pageSize && h.Kind == DataNormal && bytes.Equal(image.Bytes(h.Data), block) {
				p := *h
				p.Data = put(page)
				out.Headers = append(out.Headers, &p)
			} else {
				out.Headers = append(out.Headers, h)
			}
			if h.GPA < uint64(info.start) {
				lastPage = len(out.Headers)
			}
			continue
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

// A paramLayout says where a parameter block has what is needed to recognise it
// and to tell it of another firmware.
type paramLayout struct {
	port     int  // of the console
	context  int  // offset of the page with the firmware's registers, which Hyper-V's has
	firmware int  // GuestFwInfoBlock
	vtom     bool // which has a field for vTOM
	kernel   int  // address that the kernel's region starts at
	size     int

	// Older images with the same block count the firmware's memory map in pages.
	mapInPages bool
}

// paramLayouts are those of COCONUT-SVSM's releases, the newest first.
var paramLayouts = []paramLayout{
	{port: 32, context: 28, firmware: bootParamsFirmware, vtom: true, kernel: bootParamsKernel, size: bootParamsSize},
	{port: 24, context: 20, firmware: 32, vtom: true, kernel: 144, size: 160},                    // 2026.03 to 2026.07
	{port: 24, context: 20, firmware: 32, vtom: false, kernel: 152, size: 176},                   // 2026.02
	{port: 24, context: 20, firmware: 32, vtom: false, kernel: 156, size: 180, mapInPages: true}, // 2026.01 and before
}

// encode is a GuestFwInfoBlock of the layout.
func (l *paramLayout) encode(i *firmwareInfo) []byte {
	b := i.encode()
	if !l.vtom {
		b = slices.Delete(b, firmwareInfoVTOM, firmwareInfoVTOM+8)
	}
	return b
}

// matches reports whether a page is a parameter block for a kernel, whose general
// parameter area is so far away.
func (l *paramLayout) matches(b []byte, general, kernel uint64) bool {
	return uint64(le.Uint32(b[4:])) == general && le.Uint64(b[l.kernel:]) == kernel &&
		slices.Contains(comPorts, le.Uint16(b[l.port:])) && isZero(b[l.size:])
}

// forQEMU reports whether the firmware starts as QEMU starts one: from reset, at
// the end of 4 GiB, without vTOM.
func (l *paramLayout) forQEMU(b []byte) bool {
	lowMemory := l.firmware + firmwareInfoVTOM
	if l.vtom {
		lowMemory += 8
	}
	return le.Uint32(b[l.context:]) == 0 && isZero(b[l.firmware+firmwareInfoVTOM:lowMemory+1])
}

// findBootParams finds the page with the parameter block: before the general
// parameter area, whose distance it holds, for the kernel that the file requires
// memory for.
func (f *File) findBootParams() (int, *paramLayout, error) {
	wrong := errors.New("image is not one of COCONUT-SVSM for QEMU, of a release since 2025: found no parameter block; build a wrapped firmware anew, with a recipe of kind wrap")
	other := errors.New("image is one of COCONUT-SVSM for another hypervisor than QEMU: its firmware starts from a context or in low memory, or shared memory is told apart by vTOM")
	var general, kernel uint64
	var boundary bool
	areas := make(map[uint32]bool)
	for _, h := range f.Headers {
		switch h := h.(type) {
		case *Platform:
			boundary = boundary || h.Platform == PlatformSNP && h.SharedGPABoundary != 0
		case *Parameter:
			areas[h.Index] = areas[h.Index] || h.Kind == TypeVPCount
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
		return 0, nil, wrong
	}
	for i, h := range f.Headers {
		p, ok := h.(*PageData)
		if !ok || p.Kind != DataNormal || p.Data.Size != pageSize || p.GPA >= general || general-p.GPA > 16*pageSize {
			continue
		}
		b := f.Bytes(p.Data)
		for j := range paramLayouts {
			l := &paramLayouts[j]
			switch {
			case !l.matches(b, general-p.GPA, kernel):
			case boundary || !l.forQEMU(b):
				return 0, nil, other
			default:
				return i, l, nil
			}
		}
	}
	return 0, nil, wrong
}
