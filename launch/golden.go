package launch

import (
	"fmt"
	"slices"
	"strconv"

	"github.com/evtpm/evtpm/measure"
)

// golden says what evidence of the launch must show.
func (p *Plan) golden(digest measure.Digest, block *measure.GoldenIDBlock, pcrs *measure.GoldenPCRs) (*measure.Golden, error) {
	s := p.Spec
	g := &measure.Golden{
		Schema:        measure.GoldenSchema,
		Name:          s.Name,
		Platform:      s.Platform,
		HostProfile:   p.HostProfile,
		LaunchDigests: []measure.Digest{digest},
		Policy:        uint64(s.Policy),
		HostData:      s.HostData,
		IDBlock:       block,
		PCRs:          pcrs,
		Inputs:        p.goldenInputs(),
	}
	if err := g.Validate(); err != nil {
		return nil, err
	}
	return g, nil
}

// predictPCRs says what a direct boot extends into PCR 4 and 9, or 4 and 12; nil
// without a kernel. Each must be quoted, or the kernel is not bound.
func (p *Plan) predictPCRs() (*measure.GoldenPCRs, error) {
	if p.Kernel == nil {
		return nil, nil
	}
	in := measure.PCRInputs{Bank: p.Spec.VTPM.PCRBank, Cmdline: p.Spec.Cmdline}
	if p.Spec.Platform == PlatformSim {
		// QEMU changes the setup header of a kernel that it does not start as a
		// confidential guest's.
		in.MemoryBytes = uint64(p.Spec.Memory)
	}
	var pcrs *measure.GoldenPCRs
	predict := func(initrd []byte) error {
		return p.Kernel.view(func(kernel []byte) (err error) {
			in.Kernel, in.Initrd = kernel, initrd
			pcrs, err = measure.PredictDirectBoot(in)
			return err
		})
	}
	var err error
	if p.Initrd != nil {
		err = p.Initrd.view(predict)
	} else {
		err = predict(nil)
	}
	bad := &problems{src: p.Spec.src}
	if err != nil {
		bad.add("kernel", "%s: predicting PCRs: %w", p.Kernel.Path, err)
		return nil, bad.err()
	}
	for _, v := range pcrs.Values {
		if !slices.Contains(p.Spec.Attestation.PCRs, v.PCR) {
			bad.add("attestation.pcrs", "found no PCR %d, expected it with the kernel %s, a unified kernel image", v.PCR, p.Kernel.Path)
		}
	}
	return pcrs, bad.err()
}

// goldenInputs lists what the values derive from.
func (p *Plan) goldenInputs() []measure.GoldenInput {
	var out []measure.GoldenInput
	for _, in := range p.Inputs() {
		if in == p.Bundle {
			continue // certificates come and go
		}
		out = append(out, measure.GoldenInput{Name: in.Name, SHA256: in.SHA256[:]})
	}
	value := func(name, v string) { out = append(out, measure.GoldenInput{Name: name, Value: v}) }
	s := p.Spec
	if s.Kernel != "" {
		value("cmdline", s.Cmdline)
	}
	value("kernel_hashes", s.KernelHashes)
	value("cpu_model", s.CPU.Model)
	value("cpu_count", strconv.Itoa(s.CPU.Count))
	if p.SVSM == nil {
		value("guest_features", fmt.Sprintf("%#x", s.CPU.GuestFeatures))
	}
	value("memory", s.Memory.String())
	return out
}
