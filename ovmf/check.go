package ovmf

import (
	"errors"
	"fmt"

	"github.com/evtpm/evtpm/measure"
)

// CheckSNP says what would keep QEMU, or the AMD-SP, from starting the image as
// an SNP VM. All faults are reported at once.
func (img *Image) CheckSNP() error {
	var errs []error
	if err := img.checkReset(); err != nil {
		errs = append(errs, err)
	}
	if !img.HasMetadata {
		errs = append(errs, errors.New("firmware has no SEV metadata: not built for SEV-SNP (QEMU: Failed to locate SEV metadata header)"))
	}
	errs = append(errs, img.checkSections()...)
	return errors.Join(errs...)
}

// checkReset says what keeps vCPUs other than the first from starting, with which
// QEMU starts no SEV-ES or SNP VM at all.
func (img *Image) checkReset() error {
	switch {
	case img.ResetEIP == nil:
		return errors.New("firmware has no SEV-ES reset block (QEMU: failed to locate and/or save reset vector)")
	case *img.ResetEIP == 0:
		return errors.New("firmware's SEV-ES reset block has address 0: built without SEV-ES (QEMU: SEV-ES reset address is zero)")
	}
	return nil
}

// checkSections checks each section by itself and all of them together.
func (img *Image) checkSections() []error {
	var errs []error
	first := make(map[SectionType]int)
	for i, s := range img.Sections {
		fail := func(format string, args ...any) {
			errs = append(errs, fmt.Errorf("SEV metadata: section %d (%s 0x%x+0x%x): %w", i, s.Type, s.GPA, s.Size, fmt.Errorf(format, args...)))
		}
		single := false
		switch s.Type {
		case SectionSecMem:
		case SectionSecrets, SectionCPUID:
			single = true
			if s.Size != measure.PageSize && s.Size != 0 {
				fail("found size 0x%x, expected one page", s.Size)
			}
		case SectionSVSMCAA, SectionKernelHashes:
			single = true
		default:
			fail("found a type that is not known (QEMU would take it for pages of zeros)")
		}
		if single {
			if j, ok := first[s.Type]; ok {
				fail("found a second one, the first is section %d", j)
			}
			first[s.Type] = i
		}
		end := uint64(s.GPA) + uint64(s.Size)
		switch {
		case s.Size == 0:
			fail("found size 0 (QEMU: SNP_LAUNCH_UPDATE called with invalid address/length)")
		case s.GPA%measure.PageSize != 0 || s.Size%measure.PageSize != 0:
			fail("not a whole number of pages (QEMU: SNP_LAUNCH_UPDATE called with invalid address/length)")
		case end > top:
			fail("runs past 4 GiB (QEMU: Failed to get HVA for GPA 0x%x sz 0x%x)", s.GPA, s.Size)
		case end > img.GPA():
			fail("overlaps the firmware itself at 0x%x", img.GPA())
		}
		for j, o := range img.Sections[:i] {
			if uint64(s.GPA) < uint64(o.GPA)+uint64(o.Size) && uint64(o.GPA) < end {
				fail("overlaps section %d (%s 0x%x+0x%x)", j, o.Type, o.GPA, o.Size)
			}
		}
	}
	return errs
}

// CheckKernelHashes says what keeps the image from a measured direct boot.
func (img *Image) CheckKernelHashes(mode measure.Mode) error {
	const hint = "; take a firmware that verifies kernel hashes (OvmfPkg/AmdSev)"
	a := img.HashArea
	if a == nil {
		return errors.New("kernel given, but the firmware has no SEV hash table area, so the kernel would not be measured (QEMU: kernel specified but guest firmware has no hashes table GUID)" + hint)
	}
	if a.GPA == 0 || a.Size < measure.KernelHashesLength {
		return fmt.Errorf("kernel given, but the firmware's hash table area is empty or too small, so the kernel would not be measured (QEMU: guest firmware hashes table area is invalid (base=0x%x size=0x%x))"+hint, a.GPA, a.Size)
	}
	if mode != measure.ModeSNP && mode != "" {
		return nil
	}
	s := img.Section(SectionKernelHashes)
	if s == nil {
		return errors.New("kernel given, but the firmware's SEV metadata has no SNP_KERNEL_HASHES section, so the kernel would not be measured" + hint)
	}
	// QEMU keeps only the offset in a page and writes the table into the
	// section's first one; anywhere else the firmware would not find it.
	if a.GPA < s.GPA || uint64(a.GPA)+measure.KernelHashesLength > uint64(s.GPA)+uint64(min(s.Size, measure.PageSize)) {
		return fmt.Errorf("firmware's hash table area 0x%x+0x%x does not lie in the first page of its SNP_KERNEL_HASHES section 0x%x+0x%x", a.GPA, a.Size, s.GPA, s.Size)
	}
	return nil
}
