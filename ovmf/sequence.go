package ovmf

import (
	"errors"
	"fmt"

	"github.com/evtpm/evtpm/measure"
)

// LaunchOptions are the parameters of a launch besides the image.
type LaunchOptions struct {
	// Mode is the generation of SEV; empty is SNP.
	Mode measure.Mode

	// VMM is whose vCPUs are measured; empty is QEMU.
	VMM measure.VMM

	// VCPUs is the number of vCPUs, 1 to 512. Not used for SEV without ES.
	VCPUs int

	// CPUSignature is the CPUID 1.EAX of the CPU model: see
	// [measure.CPUSignature]. Not used by EC2 and GCE.
	CPUSignature uint32

	// GuestFeatures is SEV_FEATURES of every VMSA. Zero means SNPActive alone,
	// what QEMU and KVM give a VM by default, unless RawFeatures is set. SEV-ES
	// has none.
	GuestFeatures uint64

	// RawFeatures takes GuestFeatures as it is, even zero.
	RawFeatures bool

	// Hashes are the kernel hashes of a measured direct boot; nil means
	// kernel-hashes=off.
	Hashes *measure.KernelHashes

	// NoFPU and ZeroRDX are deviations of some hosts: see [measure.VCPU]. A
	// SEV-ES VM that QEMU starts with its default legacy-vm-type has NoFPU.
	NoFPU, ZeroRDX bool

	// VMSAGPA is where the VMSAs are measured; zero is [measure.VMSAGPA], right
	// on every KVM.
	VMSAGPA uint64
}

// features is the SEV_FEATURES that the options mean.
func (o *LaunchOptions) features() uint64 {
	switch {
	case o.Mode == measure.ModeSEVES:
		return 0
	case o.GuestFeatures == 0 && !o.RawFeatures:
		return measure.FeatureSNPActive
	}
	return o.GuestFeatures
}

// Sequence returns what the AMD-SP is given at the launch of the image: its
// pages, the sections of its metadata, the VMSAs. An image that could not start
// is an error.
func (img *Image) Sequence(o LaunchOptions) (*measure.Sequence, error) {
	switch o.Mode {
	case measure.ModeSNP, "":
		return img.snpSequence(o)
	case measure.ModeSEV, measure.ModeSEVES:
		return img.sevSequence(o)
	}
	return nil, fmt.Errorf("mode %q: expected snp, seves or sev", o.Mode)
}

func (img *Image) snpSequence(o LaunchOptions) (*measure.Sequence, error) {
	if err := img.CheckSNP(); err != nil {
		return nil, err
	}
	s := &measure.Sequence{Mode: measure.ModeSNP, Start: img.Prefix}
	if img.Data != nil {
		s.Steps = append(s.Steps, img.firmwareStep())
	}
	var late []measure.Step
	for _, sec := range img.Sections {
		step := measure.Step{
			Type:   PageType(sec.Type, o.VMM),
			GPA:    uint64(sec.GPA),
			Size:   uint64(sec.Size),
			Source: sec.Type.String() + " section",
		}
		if sec.Type == SectionKernelHashes && o.Hashes != nil {
			_, page, err := img.HashesPage(o.Hashes)
			if err != nil {
				return nil, err
			}
			step.Type = measure.PageNormal
			step.Source = "kernel hashes"
			step.Data = make([]byte, sec.Size)
			copy(step.Data, page)
		}
		if o.VMM == measure.VMMEC2 && sec.Type == SectionCPUID {
			// EC2 measures the CPUID page after all other sections.
			late = append(late, step)
			continue
		}
		s.Steps = append(s.Steps, step)
	}
	s.Steps = append(s.Steps, late...)
	if o.Hashes != nil {
		if err := img.CheckKernelHashes(measure.ModeSNP); err != nil {
			return nil, err
		}
	}
	var err error
	s.VMSAs, err = img.vmsas(o)
	if err != nil {
		return nil, err
	}
	return s, s.Validate()
}

// PageType is the type that a section's pages are launched with. QEMU measures
// every type that it has no other for as zeros, kernel hashes that are off among
// them; GCE leaves the memory of the SEC phase unmeasured.
func PageType(t SectionType, vmm measure.VMM) measure.PageType {
	switch {
	case t == SectionSecrets:
		return measure.PageSecrets
	case t == SectionCPUID:
		return measure.PageCPUID
	case t == SectionSecMem && vmm == measure.VMMGCE:
		return measure.PageUnmeasured
	}
	return measure.PageZero
}

func (img *Image) firmwareStep() measure.Step {
	return measure.Step{Type: measure.PageNormal, GPA: img.GPA(), Size: uint64(img.Size), Data: img.Data, Source: "firmware"}
}

func (img *Image) vmsas(o LaunchOptions) ([]measure.Step, error) {
	if err := img.checkReset(); err != nil {
		return nil, err
	}
	c := measure.VCPU{VMM: o.VMM, Signature: o.CPUSignature, Features: o.features(), NoFPU: o.NoFPU, ZeroRDX: o.ZeroRDX}
	gpa := o.VMSAGPA
	if gpa == 0 {
		gpa = measure.VMSAGPA
	}
	return c.VMSASteps(o.VCPUs, *img.ResetEIP, gpa)
}

// sevSequence is the launch of SEV and SEV-ES: the image, the hash table right
// after it, the VMSAs (QEMU target/i386/sev.c, sev_encrypt_flash and
// sev_add_kernel_loader_hashes). Metadata plays no part.
func (img *Image) sevSequence(o LaunchOptions) (*measure.Sequence, error) {
	if img.Data == nil {
		return nil, errors.New("SEV and SEV-ES need the firmware itself: a precomputed hash is SNP's")
	}
	s := &measure.Sequence{Mode: o.Mode, Steps: []measure.Step{img.firmwareStep()}}
	if o.Hashes != nil {
		if err := img.CheckKernelHashes(o.Mode); err != nil {
			return nil, err
		}
		table := o.Hashes.Table()
		s.Steps = append(s.Steps, measure.Step{
			Type: measure.PageNormal, GPA: uint64(img.HashArea.GPA), Size: uint64(len(table)), Data: table, Source: "kernel hashes",
		})
	}
	if o.Mode == measure.ModeSEVES {
		var err error
		if s.VMSAs, err = img.vmsas(o); err != nil {
			return nil, err
		}
	}
	return s, s.Validate()
}

// HashesPage returns the page that QEMU puts into the SNP_KERNEL_HASHES
// section: zeros, and the table where the firmware looks for it.
func (img *Image) HashesPage(h *measure.KernelHashes) (gpa uint64, page []byte, err error) {
	if err := img.CheckSNP(); err != nil {
		return 0, nil, err
	}
	if err := img.CheckKernelHashes(measure.ModeSNP); err != nil {
		return 0, nil, err
	}
	page = make([]byte, measure.PageSize)
	copy(page[img.HashArea.GPA%measure.PageSize:], h.Table())
	return uint64(img.Section(SectionKernelHashes).GPA), page, nil
}
