package svsmimg

import (
	"errors"
	"fmt"

	"github.com/evtpm/evtpm/measure"
	"github.com/evtpm/evtpm/ovmf"
)

// lowAlias is how much of a firmware machines without SEV-SNP find below 1 MiB
// too, where processors start that do not reach the top of memory in real mode.
const lowAlias = 128 << 10

// wrap builds a file of an OVMF image alone: on SEV_SNP with the pages that its
// metadata asks for and a VMSA that starts at the reset vector, on NATIVE from
// reset.
func (r *Recipe) wrap(firmware []byte) (*File, error) {
	img, err := ovmf.Parse(firmware)
	if err != nil {
		return nil, err
	}
	mask := uint32(0)
	version := uint32(1)
	if r.onFor("snp") {
		if err := img.CheckSNP(); err != nil {
			return nil, err
		}
		mask |= maskSNP
	}
	if r.onFor("native") {
		mask, version = mask|maskNative, 2
	}
	meta, err := igvmMetadata(img)
	if err != nil {
		return nil, err
	}
	if r.Parameters == "off" {
		meta = nil
	}
	b := newBuilder(version)
	if mask&maskSNP != 0 {
		b.add(&Platform{Mask: maskSNP, HighestVTL: 2, Platform: PlatformSNP, Version: 1})
	}
	if mask&maskNative != 0 {
		b.add(&Platform{Mask: maskNative, Platform: PlatformNative, Version: 1})
	}
	if mask&maskSNP != 0 {
		b.add(&GuestPolicy{Policy: r.policy(), Mask: maskSNP})
	}
	taken := b.firmwareParameters(meta, mask)
	if mask&maskNative != 0 {
		n := min(lowAlias, len(firmware))
		b.pages(top1M-uint64(n), maskNative, firmware[len(firmware)-n:])
	}
	b.hobAreas(meta, mask, img, taken)
	if mask&maskSNP != 0 {
		if err := b.sections(img, taken); err != nil {
			return nil, err
		}
	}
	b.pages(img.GPA(), mask, firmware)
	if mask&maskSNP != 0 {
		features := uint64(measure.FeatureSNPActive)
		if r.SEVFeatures != nil {
			features = uint64(*r.SEVFeatures)
		}
		v, err := measure.VCPU{Features: features, EIP: measure.ResetEIP}.VMSA()
		if err != nil {
			return nil, err
		}
		b.context(measure.VMSAGPA, maskSNP, v.Page())
	}
	return b.file()
}

// firmwareParameters adds the parameter area that an OVMF image wants. It comes
// before all pages, since loaders place it at once. It returns the pages that it
// takes.
func (b *builder) firmwareParameters(meta []igvmSection, mask uint32) map[uint64]bool {
	taken := make(map[uint64]bool)
	for _, s := range meta {
		switch s.kind {
		case igvmParamArea:
			b.add(&ParameterArea{Bytes: uint64(s.size)})
			for at := uint64(0); at < uint64(s.size); at += pageSize {
				taken[uint64(s.start)+at] = true
			}
		case igvmMemoryMap:
			b.add(&Parameter{Kind: TypeMemoryMap, Offset: s.start})
		case igvmVPCount:
			b.add(&Parameter{Kind: TypeVPCount, Offset: s.start})
		}
	}
	for _, s := range meta {
		if s.kind == igvmParamArea {
			b.add(&ParameterInsert{GPA: uint64(s.start), Mask: mask})
		}
	}
	return taken
}

// hobAreas adds the pages in which the firmware looks for HOBs: measured as
// zeros, so that the host can put none there. On SEV_SNP the metadata's sections
// usually contain them.
func (b *builder) hobAreas(meta []igvmSection, mask uint32, img *ovmf.Image, taken map[uint64]bool) {
	for _, s := range meta {
		if s.kind != igvmHOBArea {
			continue
		}
		for gpa := uint64(s.start); gpa < uint64(s.start)+uint64(s.size); gpa += pageSize {
			m := mask
			if inSections(img, gpa) {
				m &^= maskSNP
			}
			if m != 0 && !taken[gpa] {
				b.empty(gpa, pageSize, m, DataNormal)
			}
		}
	}
}

func inSections(img *ovmf.Image, gpa uint64) bool {
	for _, s := range img.Sections {
		if gpa >= uint64(s.GPA) && gpa < uint64(s.GPA)+uint64(s.Size) {
			return true
		}
	}
	return false
}

// sections adds the pages of the SEV metadata. IGVM has no page type for zeros of
// the AMD-SP's own, so that memory is measured as pages of zeros, and the digest
// is not that of the same image started with -bios.
func (b *builder) sections(img *ovmf.Image, taken map[uint64]bool) error {
	var errs []error
	for _, s := range img.Sections {
		kind := DataNormal
		switch s.Type {
		case ovmf.SectionSecrets:
			kind = DataSecrets
		case ovmf.SectionCPUID:
			kind = DataCPUID
		}
		for gpa := uint64(s.GPA); gpa < uint64(s.GPA)+uint64(s.Size); gpa += pageSize {
			if !taken[gpa] {
				b.empty(gpa, pageSize, maskSNP, kind)
			} else if kind != DataNormal {
				errs = append(errs, fmt.Errorf("firmware: %s section at 0x%x lies in the parameter area", s.Type, gpa))
			}
		}
	}
	return errors.Join(errs...)
}
