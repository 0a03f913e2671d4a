package svsmimg

import (
	"errors"
	"fmt"

	"github.com/evtpm/evtpm/measure"
)

// Registers that KVM changes when QEMU hands it a VP_CONTEXT's.
const (
	eferSVME     = 1 << 12
	cr0ET        = 1 << 4
	cr0NW        = 1 << 29
	cr0CD        = 1 << 30
	cr4MCE       = 1 << 6
	rflagsAlways = 1 << 1
	dr7Always    = 1 << 10
)

// kvmVMSAs are the VMSAs that upstream KVM builds and measures for n vCPUs: those
// of the contexts as KVM takes them, all others as after a reset.
func (f *File) kvmVMSAs(contexts []*VPContext, n int, signature uint32) ([]measure.Step, error) {
	if len(contexts) > n {
		return nil, fmt.Errorf("found VP_CONTEXTs for %d vCPUs, but the VM has %d (QEMU: SEV: unable to set CPU context for out of bounds CPU index %d)", len(contexts), n, n)
	}
	steps := make([]measure.Step, 0, n)
	features := uint64(measure.FeatureSNPActive)
	add := func(data []byte) {
		steps = append(steps, measure.Step{
			Type: measure.PageVMSA, GPA: measure.VMSAGPA, Size: pageSize, Data: data, Source: fmt.Sprintf("vCPU %d", len(steps)),
		})
	}
	for i, c := range contexts {
		if c.GPA != measure.VMSAGPA {
			return nil, fmt.Errorf("VP_CONTEXT of vCPU %d: found the VMSA at 0x%x, expected 0x%x, where this host's KVM places all of them (QEMU: The VMSA GPA must be %X). Use host profile kvm-direct on a host that takes VMSAs from the file",
				i, c.GPA, uint64(measure.VMSAGPA), uint64(measure.VMSAGPA))
		}
		v, err := measure.ParseVMSA(f.Bytes(c.Data))
		if err != nil {
			return nil, fmt.Errorf("VP_CONTEXT of vCPU %d: %w (QEMU: The VMSA contains fields that are not synchronized with KVM)", i, err)
		}
		if err := checkKVM(v); err != nil {
			return nil, fmt.Errorf("VP_CONTEXT of vCPU %d: %w", i, err)
		}
		if i == 0 {
			features = v.SEVFeatures // QEMU creates the VM with them
		}
		v.SEVFeatures = features
		add(asKVM(v).Page())
	}
	if n == len(contexts) {
		return steps, nil
	}
	if signature == 0 {
		return nil, fmt.Errorf("found VP_CONTEXTs for %d of %d vCPUs: the others start with the CPU model's signature in RDX, so the CPU model must be given", len(contexts), n)
	}
	reset, err := measure.VCPU{Signature: signature, Features: features, EIP: measure.ResetEIP}.VMSA()
	if err != nil {
		return nil, err
	}
	page := reset.Page()
	for len(steps) < n {
		add(page)
	}
	return steps, nil
}

// checkKVM says which registers QEMU refuses to hand to KVM (target/i386/sev.c,
// check_vmsa_supported and check_sev_features).
func checkKVM(v *measure.VMSA) error {
	var errs []error
	for _, r := range []struct {
		name  string
		value uint64
	}{
		{"vmpl", uint64(v.VMPL)}, {"cpl", uint64(v.CPL)}, {"xss", v.XSS}, {"virtual_tom", v.VirtualTOM}, {"x87_dp", v.X87DP},
		{"x87_ftw", uint64(v.X87FTW)}, {"x87_fsw", uint64(v.X87FSW)}, {"x87_fop", uint64(v.X87FOP)},
	} {
		if r.value != 0 {
			errs = append(errs, fmt.Errorf("%s: found 0x%x, expected 0 (QEMU: The VMSA contains fields that are not synchronized with KVM)", r.name, r.value))
		}
	}
	if v.SEVFeatures&measure.FeatureSNPActive == 0 {
		errs = append(errs, fmt.Errorf("sev_features: found 0x%x, expected SNPActive (0x1) in it (QEMU: SEV_SNP is enabled but is not enabled in VMSA sev_features)", v.SEVFeatures))
	}
	if v.DR7&^dr7Always != 0 {
		errs = append(errs, fmt.Errorf("dr7: found 0x%x, expected no breakpoint (KVM refuses to build the VMSA)", v.DR7))
	}
	return errors.Join(errs...)
}

// asKVM is the VMSA that KVM builds from registers that QEMU hands to it (QEMU
// target/i386/sev.c, sev_apply_cpu_context; Linux arch/x86/kvm/svm, the setters of
// each register and sev_es_sync_vmsa).
func asKVM(v *measure.VMSA) *measure.VMSA {
	k := *v
	k.EFER |= eferSVME
	k.CR0 = (k.CR0 | cr0ET) &^ (cr0NW | cr0CD)
	k.CR4 |= cr4MCE
	k.RFLAGS |= rflagsAlways
	k.TR.Base = k.LDTR.Base // QEMU takes it from there
	for _, t := range []*measure.Segment{&k.GDTR, &k.IDTR} {
		t.Selector, t.Attrib, t.Limit = 0, 0, t.Limit&0xffff // KVM keeps base and 16 bits of limit
	}
	k.CPL = uint8(k.SS.Attrib >> 5 & 3)
	return &k
}
