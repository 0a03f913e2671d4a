package launch

import (
	"fmt"
	"strconv"

	"github.com/evtpm/evtpm/measure"
)

// golden says what evidence of the launch must show.
func (p *Plan) golden(digest measure.Digest, block *measure.GoldenIDBlock) (*measure.Golden, error) {
	s := p.Spec
	g := &measure.Golden{
		Schema:        measure.GoldenSchema,
		Name:          s.Name,
		Platform:      s.Platform,
		HostProfile:   s.HostProfile,
		LaunchDigests: []measure.Digest{digest},
		Policy:        uint64(s.Policy),
		HostData:      s.HostData,
		IDBlock:       block,
		Inputs:        p.goldenInputs(),
	}
	if err := g.Validate(); err != nil {
		return nil, err
	}
	return g, nil
}

// goldenInputs lists what the values derive from.
func (p *Plan) goldenInputs() []measure.GoldenInput {
	var out []measure.GoldenInput
	for _, in := range p.Inputs() {
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
	value("guest_features", fmt.Sprintf("%#x", s.CPU.GuestFeatures))
	value("memory", s.Memory.String())
	return out
}
