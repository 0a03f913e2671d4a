package launch

import (
	"fmt"

	"github.com/evtpm/evtpm/measure"
	"github.com/evtpm/evtpm/ovmf"
	"github.com/evtpm/evtpm/snpsim"
	"github.com/evtpm/evtpm/svsmimg"
)

func (p *Plan) deriveSVSM(signature uint32) error {
	data, err := p.SVSM.Bytes()
	if err != nil {
		return err
	}
	if p.SVSMImage, err = svsmimg.Parse(data); err != nil {
		return err
	}
	policy, ok := p.SVSMImage.Policy(svsmimg.PlatformSNP)
	if ok && Policy(policy) != p.Spec.Policy {
		// QEMU starts the launch with the policy of its command line and gives the
		// ID block that of the file: two would end in a launch that the AMD-SP
		// refuses, or that is not the one that the image's signer meant.
		return fmt.Errorf("found guest policy %s in the image, but %s in the spec; set policy: %[1]s, or rebuild the image", Policy(policy), p.Spec.Policy)
	}
	profile := svsmimg.Profile(p.Spec.HostProfile)
	if profile == "" {
		profile = p.SVSMImage.InferProfile()
	}
	p.HostProfile = string(profile)
	if p.Spec.Platform == PlatformSim {
		if err := p.extract(); err != nil {
			return fmt.Errorf("platform sim: %w", err)
		}
	}
	p.Sequence, err = p.SVSMSequence(svsmimg.SequenceOptions{Profile: profile, VCPUs: p.Spec.CPU.Count, CPUSignature: signature})
	return err
}

// SVSMSequence returns what the AMD-SP is given for the plan's SVSM image. On
// platform sim the simulated SVSM belongs to it, unless the image holds one that it
// stands for.
func (p *Plan) SVSMSequence(o svsmimg.SequenceOptions) (*measure.Sequence, error) {
	seq, err := p.SVSMImage.Sequence(o)
	if err == nil && p.Extracted != nil && !p.Extracted.SVSM {
		seq.Steps = append(seq.Steps, snpsim.SVSMStep())
	}
	return seq, err
}

// ImageLaunch is how the simulated AMD-SP measures the plan's image; nil for a plan
// without one.
func (p *Plan) ImageLaunch() *snpsim.ImageLaunch {
	if p.Extracted == nil {
		return nil
	}
	return &snpsim.ImageLaunch{
		Sequence: func(vcpus int, signature uint32) (*measure.Sequence, error) {
			return p.SVSMImage.Sequence(svsmimg.SequenceOptions{Profile: svsmimg.Profile(p.HostProfile), VCPUs: vcpus, CPUSignature: signature})
		},
		FirmwareSize: uint64(len(p.Extracted.Firmware)),
		SVSM:         p.Extracted.SVSM,
	}
}

// maxImagePages bounds how many pieces of memory QEMU loads from files beside the
// firmware: each takes a descriptor and an option.
const maxImagePages = 32

// maxLowMemory is how much memory below 4 GiB QEMU's q35 has at least, where it has
// more than that altogether (QEMU hw/i386/pc_q35.c, pc_q35_init).
const maxLowMemory = 2 << 30

// Where a PC has no memory below 1 MiB, or not its own.
const (
	legacyHole = 0xa0000
	highMemory = 1 << 20
)

// extract takes out of the image what QEMU can run of it without VMPLs.
func (p *Plan) extract() (err error) {
	if p.Extracted, err = p.SVSMImage.Extract(); err != nil {
		return err
	}
	// What QEMU would run has to be a firmware, and not only end where one does.
	if _, err := ovmf.Parse(p.Extracted.Firmware); err != nil {
		return err
	}
	if n := len(p.Extracted.Pages); n > maxImagePages {
		return fmt.Errorf("found %d pieces of memory beside the firmware, expected at most %d", n, maxImagePages)
	}
	memory := min(uint64(p.Spec.Memory), maxLowMemory)
	for _, l := range p.Extracted.Pages {
		if end := l.GPA + uint64(len(l.Data)); l.GPA < highMemory && end > legacyHole {
			return fmt.Errorf("found pages at %#x to %#x, where QEMU shows a display and the firmware (%#x to %#x)", l.GPA, end, legacyHole, highMemory)
		}
		if l.GPA > memory || uint64(len(l.Data)) > memory-l.GPA {
			return fmt.Errorf("found pages at %#x to %#x, expected them in the first %s of guest memory, where QEMU can load them", l.GPA, l.GPA+uint64(len(l.Data)), Size(memory))
		}
	}
	return nil
}

// An ImageFile is a piece of an SVSM image that QEMU loads on platform sim, as a
// file of its own.
type ImageFile struct {
	// Name of the file: firmware.fd for what -bios loads, or pages-0x810000.bin.
	Name string
	// GPA is where the contents lie in guest memory.
	GPA  uint64
	Data []byte
}

// imageFirmware is the name of the file for -bios.
const imageFirmware = "firmware.fd"

// ImageFiles returns what platform sim loads out of the SVSM image, the firmware
// first. It is empty for a plan without an image, and on platform snp, where QEMU
// loads the image itself.
func (p *Plan) ImageFiles() []ImageFile {
	if p.Extracted == nil {
		return nil
	}
	bios := p.Extracted.BIOS()
	files := []ImageFile{{imageFirmware, 1<<32 - uint64(len(bios)), bios}}
	for _, l := range p.Extracted.Pages {
		files = append(files, ImageFile{fmt.Sprintf("pages-%#x.bin", l.GPA), l.GPA, l.Data})
	}
	return files
}

// loaderArgs are the arguments by which QEMU loads what ImageFiles has beside the
// firmware, and the path of the firmware.
func (p *Plan) loaderArgs(path func(name string) string) (bios string, args []string) {
	for i, f := range p.ImageFiles() {
		if i == 0 {
			bios = path(f.Name)
			continue
		}
		args = append(args, "-device", fmt.Sprintf("loader,file=%s,addr=%#x,force-raw=on", commas(path(f.Name)), f.GPA))
	}
	return bios, args
}
