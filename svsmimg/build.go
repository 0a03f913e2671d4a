package svsmimg

import (
	"errors"
	"fmt"

	"github.com/evtpm/evtpm/measure"
)

// Built is an image and what is known about it.
type Built struct {
	Image    []byte
	File     *File
	Manifest *Manifest
}

// Build builds an image. read returns the contents of a file that the recipe
// names. The same recipe and the same contents give the same bytes, of the image
// and of its manifest.
func (r *Recipe) Build(read func(name string) ([]byte, error)) (*Built, error) {
	if err := r.Validate(); err != nil {
		return nil, err
	}
	m := &Manifest{Schema: ManifestSchema, Recipe: r, Features: r.Features}
	var errs []error
	input := func(role, name string) []byte {
		if name == "" {
			return nil
		}
		data, err := read(name)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", role, err))
			return nil
		}
		m.Inputs = append(m.Inputs, manifestFile(role, data))
		return data
	}
	firmware := input("firmware", r.Firmware)
	in := &coconutInputs{
		firmware: firmware, bootLoader: input("boot_loader", r.BootLoader), kernel: input("kernel", r.Kernel), filesystem: input("filesystem", r.Filesystem),
	}
	image := input("image", r.Image)
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	out := &Built{Manifest: m}
	var err error
	switch r.Kind {
	case KindWrap:
		out.File, err = r.wrap(firmware)
	case KindCoconut:
		out.File, err = r.coconut(in)
	case KindReplace:
		var old *File
		if old, err = Parse(image); err != nil {
			return nil, fmt.Errorf("%s: %w", r.Image, err)
		}
		out.File, m.IDBlockRemoved, err = replaceFirmware(old, firmware)
	}
	if err != nil {
		return nil, err
	}
	if out.File, err = out.File.Canonical(); err != nil {
		return nil, err
	}
	if out.Image, err = out.File.Encode(); err != nil {
		return nil, err
	}
	m.Image = manifestFile("", out.Image)
	return out, out.measure()
}

// measure fills in what the image is launched with, and measures to.
func (b *Built) measure() error {
	m := b.Manifest
	if b.File.Mask(PlatformSNP) == 0 {
		return nil
	}
	if policy, ok := b.File.Policy(PlatformSNP); ok {
		m.Policy = (*Hex)(&policy)
	}
	// A profile whose host would not start the image has no digest.
	profiles := []Profile{ProfileFile, ProfileKVM, ProfileKVMBSP}
	if b.File.InferProfile() == ProfileKVMDirect {
		profiles = []Profile{ProfileFile, ProfileKVMDirect}
	}
	vcpus := max(1, len(b.File.contexts(b.File.Mask(PlatformSNP))))
	for _, p := range profiles {
		digest, err := b.File.digest(p, vcpus, "")
		if err != nil {
			return fmt.Errorf("host profile %s: %w", p, err)
		}
		m.LaunchDigests = append(m.LaunchDigests, ManifestDigest{HostProfile: p, VCPUs: vcpus, LaunchDigest: digest})
		if e := m.Recipe.Expect; e != nil && p == ProfileKVM {
			for _, n := range e.VCPUs {
				if digest, err = b.File.digest(p, n, e.CPUModel); err != nil {
					return fmt.Errorf("expect: %w", err)
				}
				m.LaunchDigests = append(m.LaunchDigests, ManifestDigest{HostProfile: p, VCPUs: n, CPUModel: e.CPUModel, LaunchDigest: digest})
			}
		}
	}
	return nil
}

func (e *Expect) validate() error {
	if e == nil {
		return nil
	}
	var errs []error
	if _, err := measure.CPUSignature(e.CPUModel); err != nil {
		errs = append(errs, fmt.Errorf("expect.cpu_model: %w", err))
	}
	if len(e.VCPUs) == 0 || len(e.VCPUs) > 64 {
		errs = append(errs, fmt.Errorf("expect.vcpus: found %d numbers, expected 1 to 64", len(e.VCPUs)))
	}
	for i, n := range e.VCPUs {
		if n < 1 || n > measure.MaxVCPUs {
			errs = append(errs, fmt.Errorf("expect.vcpus[%d]: found %d, expected 1 to %d", i, n, measure.MaxVCPUs))
		}
	}
	return errors.Join(errs...)
}
