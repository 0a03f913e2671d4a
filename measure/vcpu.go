package measure

import "fmt"

// SEV_FEATURES bits of a VMSA (AMD APM volume 2, table B-4, offset 0x3B0).
const (
	FeatureSNPActive           = 1 << 0
	FeatureVTOM                = 1 << 1
	FeatureReflectVC           = 1 << 2
	FeatureRestrictedInjection = 1 << 3
	FeatureAlternateInjection  = 1 << 4
	FeatureDebugSwap           = 1 << 5
	FeaturePreventHostIBS      = 1 << 6
	FeatureBTBIsolation        = 1 << 7
	FeatureVMPLSSS             = 1 << 8
	FeatureSecureTSC           = 1 << 9
	FeatureVMGEXITParameter    = 1 << 10
	FeatureIBSVirtualization   = 1 << 12
	FeatureVMSARegProt         = 1 << 14
	FeatureSMTProtection       = 1 << 15
)

// ResetEIP is where a BSP starts: 16 bytes below 4 GiB.
const ResetEIP = 0xfffffff0

// A VCPU is what the first save area of a vCPU derives from.
type VCPU struct {
	// VMM decides most registers; empty is QEMU.
	VMM VMM

	// Signature is the CPUID 1.EAX that the VMM's CPU model shows: it is in RDX
	// after a reset. Only QEMU passes it on.
	Signature uint32

	// Features is SEV_FEATURES. Zero outside of SNP.
	Features uint64

	// EIP is where the vCPU starts: ResetEIP for the BSP, the firmware's SEV-ES
	// reset block for the others.
	EIP uint32

	// NoFPU leaves the x87 and SSE control registers zero. KVM copies them into
	// the save area only for VMs of its newer types (Linux 6.10,
	// arch/x86/kvm/svm/sev.c, sev_es_sync_vmsa): not for SEV-ES as QEMU starts it
	// by default, and not on the SNP kernels before the upstream ones. EC2 and
	// GCE never do.
	NoFPU bool

	// ZeroRDX starts EC2's vCPUs with RDX zero instead of 0x600: what some
	// implementations expect, and what VMs launched long ago may have had.
	ZeroRDX bool
}

// Reset values of registers, as KVM gives them to a vCPU that starts at the
// reset vector, and which differ between VMMs.
const (
	patKVM       = 0x0007040600070406 // power-on value (AMD APM volume 2, 7.8.1)
	patGCE       = 0x0000000000070106
	rdxReset     = 0x600  // family 6: KVM's RDX when no CPU model is set
	mxcsrReset   = 0x1f80 // all SSE exceptions masked
	fcwReset     = 0x037f // all x87 exceptions masked, extended precision
	dr6Reset     = 0xffff0ff0
	dr7Reset     = 0x400
	eferSVME     = 0x1000
	cr4MCE       = 0x40
	cr0ET        = 0x10
	rflagsAlways = 0x2
)

// VMSA returns the save area that KVM measures for the vCPU.
func (c VCPU) VMSA() (*VMSA, error) {
	data := Segment{Attrib: 0x93, Limit: 0xffff}
	v := &VMSA{
		ES: data, SS: data, DS: data, FS: data, GS: data,
		CS:          Segment{Selector: 0xf000, Attrib: 0x9b, Limit: 0xffff, Base: uint64(c.EIP & 0xffff0000)},
		GDTR:        Segment{Limit: 0xffff},
		IDTR:        Segment{Limit: 0xffff},
		LDTR:        Segment{Attrib: 0x82, Limit: 0xffff},
		TR:          Segment{Attrib: 0x8b, Limit: 0xffff},
		EFER:        eferSVME,
		CR4:         cr4MCE,
		CR0:         cr0ET,
		DR7:         dr7Reset,
		DR6:         dr6Reset,
		RFLAGS:      rflagsAlways,
		RIP:         uint64(c.EIP & 0xffff),
		PAT:         patKVM,
		SEVFeatures: c.Features,
		XCR0:        1,
	}
	switch c.VMM {
	case VMMQEMU, "":
		v.RDX = uint64(c.Signature)
		if !c.NoFPU {
			v.MXCSR, v.X87FCW = mxcsrReset, fcwReset
		}
	case VMMEC2:
		if c.EIP == ResetEIP {
			v.CS.Attrib = 0x9a
		}
		v.SS.Attrib = 0x92
		v.TR.Attrib = 0x83
		v.RDX = rdxReset
		if c.ZeroRDX {
			v.RDX = 0
		}
	case VMMGCE:
		v.RDX = rdxReset
		v.PAT = patGCE
	default:
		_, err := ParseVMM(string(c.VMM))
		if err == nil {
			err = fmt.Errorf("VMM %q: expected QEMU, ec2 or gce", c.VMM)
		}
		return nil, err
	}
	return v, nil
}

// VMSASteps returns the save areas of n vCPUs as launch steps at gpa: one BSP
// and n-1 others that start at apEIP. They share two pages of contents.
func (c VCPU) VMSASteps(n int, apEIP uint32, gpa uint64) ([]Step, error) {
	if n < 1 || n > MaxVCPUs {
		return nil, fmt.Errorf("vCPUs: found %d, expected 1 to %d", n, MaxVCPUs)
	}
	c.EIP = ResetEIP
	bsp, err := c.VMSA()
	if err != nil {
		return nil, err
	}
	c.EIP = apEIP
	ap, err := c.VMSA()
	if err != nil {
		return nil, err
	}
	data := [2][]byte{bsp.Page(), ap.Page()}
	steps := make([]Step, n)
	for i := range steps {
		steps[i] = Step{Type: PageVMSA, GPA: gpa, Size: PageSize, Data: data[min(i, 1)], Source: fmt.Sprintf("vCPU %d", i)}
	}
	return steps, nil
}
