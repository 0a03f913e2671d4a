package launch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/evtpm/evtpm/attest"
	"github.com/evtpm/evtpm/inputfile"
	"github.com/evtpm/evtpm/measure"
	"github.com/evtpm/evtpm/ovmf"
	"github.com/evtpm/evtpm/snpsim"
	"github.com/evtpm/evtpm/svsmimg"
)

// A Plan is a spec with everything resolved, once: what the VM is started from,
// and what it must therefore measure to. It holds open files: Close it.
type Plan struct {
	// Name of the machine.
	Name string
	// Spec has its defaults filled in and has been validated.
	Spec *Spec

	// Firmware, Kernel, Initrd and SVSM are what the VM is started from; nil when
	// absent.
	Firmware, Kernel, Initrd, SVSM *Input
	// Policy is the verification policy's file; nil for the default policy.
	Policy *Input
	// Bundle is the file of certificates and CRLs; nil when absent.
	Bundle *Input

	// IDBlock is the 96 bytes, IDAuth the 4096; nil when absent.
	IDBlock, IDAuth []byte
	// AuthorKey says that IDAuth holds an author key.
	AuthorKey bool

	// Image is the parsed firmware, or nil; SVSMImage the parsed SVSM image that
	// holds the firmware, or nil. They stay usable after Close.
	Image     *ovmf.Image
	SVSMImage *svsmimg.File
	// Extracted is what platform sim runs of SVSMImage; nil on platform snp.
	Extracted *svsmimg.Extracted
	// HostProfile is the spec's or, where that has none, the one that the SVSM
	// image was made for.
	HostProfile string
	// Hashes are the kernel hashes; nil when they are off.
	Hashes *measure.KernelHashes
	// Sequence is what the AMD-SP is to be given.
	Sequence *measure.Sequence
	// Golden holds the values that evidence is compared with.
	Golden *measure.Golden
}

// ResolveOptions say how a spec is resolved.
type ResolveOptions struct {
	// Frozen is the lock that the plan must agree with; nil is none.
	Frozen *Lock
	// Rand is the source of the nonces that ID block signatures need. Nil makes
	// the signatures deterministic (RFC 6979).
	Rand io.Reader
}

// Resolve opens every input of a spec whose defaults are filled in, copies,
// hashes and parses it, and computes the golden values. The inputs are read at
// the same time. When it fails it holds nothing open; errors about a field of the
// spec are [*FieldError]s, all of those that can be found at once.
func Resolve(ctx context.Context, s *Spec, o ResolveOptions) (_ *Plan, err error) {
	if err := s.Validate(); err != nil {
		return nil, err
	}
	p := &Plan{Name: s.Name, Spec: s}
	defer func() {
		if err != nil {
			p.Close()
		}
	}()
	if err := p.open(ctx); err != nil {
		return nil, err
	}
	// Both take a hash over megabytes, and neither needs the other.
	var pcrs *measure.GoldenPCRs
	var pcrErr error
	var wg sync.WaitGroup
	wg.Go(func() { pcrs, pcrErr = p.predictPCRs() })
	digest, err := p.derive()
	wg.Wait()
	if err := errors.Join(err, pcrErr, p.checkPolicy(), p.checkBundle()); err != nil {
		return nil, err
	}
	block, err := p.makeIDBlock(digest, o.Rand)
	if err != nil {
		return nil, err
	}
	if p.Golden, err = p.golden(digest, block, pcrs); err != nil {
		return nil, err
	}
	if o.Frozen != nil {
		if err := o.Frozen.Check(p); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// Close gives the copies of the inputs back. It may be called twice.
func (p *Plan) Close() error {
	var errs []error
	for _, in := range p.Inputs() {
		errs = append(errs, in.Close())
	}
	return errors.Join(errs...)
}

// Inputs lists the inputs that the plan has, always in the same order: firmware,
// SVSM image, kernel, initrd, policy.
func (p *Plan) Inputs() []*Input {
	var out []*Input
	for _, slot := range p.slots() {
		if *slot.input != nil {
			out = append(out, *slot.input)
		}
	}
	return out
}

// An inputSlot is a place for an input, and where the spec names its file.
type inputSlot struct {
	name  string
	input **Input
	field string // path in the spec
	path  string
	limit int64
}

func (p *Plan) slots() []inputSlot {
	svsm := ""
	if p.Spec.SVSM != nil {
		svsm = p.Spec.SVSM.Image
	}
	return []inputSlot{
		{"firmware", &p.Firmware, "firmware.path", p.Spec.Firmware.Path, inputfile.MaxFirmware},
		{"svsm", &p.SVSM, "svsm.image", svsm, inputfile.MaxImage},
		{"kernel", &p.Kernel, "kernel", p.Spec.Kernel, inputfile.MaxKernel},
		{"initrd", &p.Initrd, "initrd", p.Spec.Initrd, inputfile.MaxInitrd},
		{"policy", &p.Policy, "attestation.policy", p.Spec.Attestation.Policy, inputfile.MaxDocument},
		{"bundle", &p.Bundle, "attestation.bundle", p.Spec.Attestation.Bundle, attest.MaxBundle},
	}
}

// PlanWithoutInputs is a plan of which only the command line can be had: its
// inputs are not opened, since they may be missing.
func PlanWithoutInputs(s *Spec) *Plan {
	p := &Plan{Name: s.Name, Spec: s}
	for _, slot := range p.slots() {
		if slot.path != "" {
			*slot.input = &Input{Name: slot.name, Path: slot.path}
		}
	}
	if s.IDBlock != nil {
		p.IDBlock, p.IDAuth, p.AuthorKey = []byte{0}, []byte{0}, true
	}
	return p
}

// open reads all inputs at the same time.
func (p *Plan) open(ctx context.Context) error {
	slots := p.slots()
	errs := make([]error, len(slots))
	var wg sync.WaitGroup
	for i, slot := range slots {
		if slot.path == "" {
			continue
		}
		wg.Go(func() { *slot.input, errs[i] = openInput(ctx, slot.name, slot.path, slot.limit) })
	}
	wg.Wait()
	bad := &problems{src: p.Spec.src}
	for i, slot := range slots {
		if errs[i] != nil {
			bad.add(slot.field, "%w", errs[i])
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return bad.err()
}

// derive computes what follows from the inputs and the spec alone: the parsed
// images, the kernel hashes, the launch sequence and its digest.
func (p *Plan) derive() (measure.Digest, error) {
	signature, err := p.Spec.CPUSignature()
	if err != nil {
		return p.wrong("cpu.model", err)
	}
	if p.SVSM != nil {
		if err := p.deriveSVSM(signature); err != nil {
			return p.wrong("svsm.image", fmt.Errorf("%s: %w", p.SVSM.Path, err))
		}
	} else {
		if err := p.deriveHashes(); err != nil {
			return p.wrong("cmdline", err)
		}
		if err := p.deriveFirmware(signature); err != nil {
			return p.wrong("firmware.path", fmt.Errorf("%s: %w", p.Firmware.Path, err))
		}
	}
	digest, err := p.Sequence.LaunchDigest()
	if err != nil {
		return p.wrong("", fmt.Errorf("launch sequence: %w", err))
	}
	return digest, nil
}

// wrong reports an error about a field of the spec.
func (p *Plan) wrong(field string, err error) (measure.Digest, error) {
	bad := &problems{src: p.Spec.src}
	bad.add(field, "%w", err)
	return measure.Digest{}, bad.err()
}

func (p *Plan) deriveHashes() (err error) {
	if p.Spec.KernelHashes != On {
		return nil
	}
	p.Hashes = &measure.KernelHashes{Kernel: p.Kernel.SHA256, Initrd: measure.NoInitrd}
	if p.Initrd != nil {
		p.Hashes.Initrd = p.Initrd.SHA256
	}
	p.Hashes.Cmdline, err = measure.HashCmdline(p.Spec.Cmdline)
	return err
}

func (p *Plan) deriveFirmware(signature uint32) error {
	data, err := p.Firmware.Bytes()
	if err != nil {
		return err
	}
	if p.Image, err = ovmf.Parse(data); err != nil {
		return err
	}
	if p.Hashes != nil {
		if err := p.Image.CheckKernelHashes(measure.ModeSNP); err != nil {
			return fmt.Errorf("%w; or set kernel_hashes: off, then the PCRs alone bind the kernel", err)
		}
	}
	p.HostProfile = p.Spec.HostProfile
	p.Sequence, err = p.Image.Sequence(ovmf.LaunchOptions{
		VCPUs:         p.Spec.CPU.Count,
		CPUSignature:  signature,
		GuestFeatures: p.Spec.CPU.GuestFeatures,
		RawFeatures:   true,
		Hashes:        p.Hashes,
	})
	if err != nil {
		return err
	}
	if p.Spec.Platform == PlatformSim {
		p.Sequence.Steps = append(p.Sequence.Steps, snpsim.SVSMStep())
	}
	return nil
}

// checkPolicy says now what is wrong with the policy that the evidence will be
// judged by.
func (p *Plan) checkPolicy() error {
	if p.Policy == nil {
		return nil
	}
	text, err := p.Policy.Bytes()
	if err == nil {
		_, err = attest.ParsePolicy(text, p.Policy.Path)
	}
	if err != nil {
		_, err = p.wrong("attestation.policy", err)
	}
	return err
}

// checkBundle says now what is wrong with the certificates that are to help.
func (p *Plan) checkBundle() error {
	if p.Bundle == nil {
		return nil
	}
	data, err := p.Bundle.Bytes()
	if err == nil {
		_, err = attest.ParseBundle(data)
	}
	if err != nil {
		_, err = p.wrong("attestation.bundle", fmt.Errorf("%s: %w", p.Bundle.Path, err))
	}
	return err
}

// CPUSignature is the CPUID 1.EAX that the spec's CPU model shows.
func (s *Spec) CPUSignature() (uint32, error) {
	if s.CPU.Signature != 0 {
		return s.CPU.Signature, nil
	}
	return s.modelSignature()
}

// modelSignature is what is known of the CPU model by its name.
func (s *Spec) modelSignature() (uint32, error) {
	if s.Platform == PlatformSim && s.CPU.Model == "qemu64" {
		// No processor with SEV, but what QEMU emulates fastest: family 15, model
		// 107, stepping 1 (QEMU target/i386/cpu.c, builtin_x86_defs).
		return measure.SignatureOf(15, 107, 1)
	}
	return measure.CPUSignature(s.CPU.Model)
}
