package svsmimg

import (
	"errors"
	"fmt"

	"github.com/evtpm/evtpm/measure"
	"github.com/evtpm/evtpm/ovmf"
)

// The IGVM metadata of an OVMF image (edk2 OvmfPkg/ResetVector/X64/
// IgvmMetadata.nasm.inc): a header, then sections. An entry of the image's table
// gives its distance from the end of the image.
const (
	igvmMetaSignature = 0  // "IGVM"
	igvmMetaCount     = 12 // u32, after length and version
	igvmMetaHeader    = 16
	igvmMetaSection   = 12 // u32 address, u32 size, u32 type
	maxIGVMSections   = 64

	igvmParamArea = 0x100
	igvmMemoryMap = 0x101 // address is an offset in the area
	igvmVPCount   = 0x102 // likewise
	igvmHOBArea   = 0x200
)

// GUIDs of entries of an OVMF image's table.
var (
	guidIGVM        = mustGUID("784fa70e-3176-4677-8a20-04b68699e374")
	guidSEVMetadata = mustGUID("dc886566-984a-4798-a75e-5585a7bf67cc")
)

func mustGUID(s string) measure.GUID {
	g, err := measure.ParseGUID(s)
	if err != nil {
		panic(err)
	}
	return g
}

// An igvmSection is one section of an OVMF image's IGVM metadata.
type igvmSection struct{ start, size, kind uint32 }

// igvmMetadata reads the IGVM metadata of an image; nil when there is none.
func igvmMetadata(img *ovmf.Image) ([]igvmSection, error) {
	for _, e := range img.Table {
		if e.GUID != guidIGVM {
			continue
		}
		if len(e.Data) != 4 {
			return nil, fmt.Errorf("firmware table: %s: found %d bytes, expected 4", e.Name, len(e.Data))
		}
		fromEnd := le.Uint32(e.Data)
		if uint64(fromEnd) > uint64(len(img.Data)) || fromEnd < igvmMetaHeader {
			return nil, fmt.Errorf("IGVM metadata: found offset %d from the end of the image, expected %d to %d", fromEnd, igvmMetaHeader, len(img.Data))
		}
		m := img.Data[len(img.Data)-int(fromEnd):]
		if string(m[igvmMetaSignature:4]) != "IGVM" {
			return nil, fmt.Errorf("IGVM metadata: found signature %q, expected \"IGVM\"", m[igvmMetaSignature:4])
		}
		n := le.Uint32(m[igvmMetaCount:])
		if n > maxIGVMSections || igvmMetaHeader+int(n)*igvmMetaSection > len(m) {
			return nil, fmt.Errorf("IGVM metadata: found %d sections, expected at most %d, within the image", n, maxIGVMSections)
		}
		var out []igvmSection
		for i := range int(n) {
			at := m[igvmMetaHeader+i*igvmMetaSection:]
			out = append(out, igvmSection{le.Uint32(at), le.Uint32(at[4:]), le.Uint32(at[8:])})
		}
		return out, checkIGVMSections(out)
	}
	return nil, nil
}

// checkIGVMSections checks the areas, and that what lies in the parameter area
// does so.
func checkIGVMSections(sections []igvmSection) error {
	var area *igvmSection
	for i, s := range sections {
		switch s.kind {
		case igvmParamArea, igvmHOBArea:
			if s.start%pageSize != 0 || s.size == 0 || s.size%pageSize != 0 || uint64(s.start)+uint64(s.size) > top4G {
				return fmt.Errorf("IGVM metadata: section %d: found 0x%x bytes at 0x%x, expected whole pages", i, s.size, s.start)
			}
			if s.kind == igvmParamArea {
				if area != nil {
					return errors.New("IGVM metadata: found a second parameter area")
				}
				area = &sections[i]
			}
		case igvmMemoryMap, igvmVPCount:
			if area == nil {
				return fmt.Errorf("IGVM metadata: section %d: found before a parameter area", i)
			}
			if uint64(s.start)+uint64(s.size) > uint64(area.size) {
				return fmt.Errorf("IGVM metadata: section %d: found 0x%x bytes at offset 0x%x of a parameter area of 0x%x", i, s.size, s.start, area.size)
			}
		}
	}
	return nil
}
