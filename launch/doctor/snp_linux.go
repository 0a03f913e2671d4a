package doctor

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/evtpm/evtpm/attest"
	"github.com/evtpm/evtpm/inputfile"
	"github.com/evtpm/evtpm/launch"
	"github.com/evtpm/evtpm/launch/sev"
)

// What a host needs for SEV-SNP.
const (
	// First kernel whose KVM starts SEV-SNP guests.
	snpKernelMajor, snpKernelMinor = 6, 11
	// Lowest API of the AMD-SP's firmware that the kernel takes
	// (drivers/crypto/ccp/sev-dev.c, SNP_MIN_API_MAJOR and MINOR).
	snpMinAPIMajor, snpMinAPIMinor = 1, 51
	// KVM_X86_SNP_VM of the kernel's arch/x86/include/uapi/asm/kvm.h.
	kvmTypeSNP = 4
)

const biosFix = "in the BIOS set-up, switch on SVM, SMEE (secure memory encryption), SEV-SNP, RMP table coverage and the IOMMU; " +
	"then see what dmesg says of SEV, RMP and ccp"

// hostFix is what mends a host whose hardware or firmware keeps SEV-SNP from it.
func (d *examination) hostFix() string {
	if d.cpu == nil || d.cpu.has("hypervisor") && !d.cpu.has("sev_snp") {
		return "use another machine: bare metal, with an AMD EPYC 7003 (Milan) or later"
	}
	return biosFix
}

// snpHost looks at the machine and its kernel.
func (d *examination) snpHost() {
	d.processor()
	d.kvmModule()
	d.kernel()
	d.kernelParameters()
	d.kvm()
	d.secureProcessor()
	d.asids()
}

// hostCPU is what /proc/cpuinfo says of the first processor.
type hostCPU struct {
	vendor, name string
	id           attest.CPUID
	flags        []string
}

func (c *hostCPU) has(flag string) bool { return slices.Contains(c.flags, flag) }

// parseCPUInfo reads the first processor of /proc/cpuinfo.
func parseCPUInfo(text string) *hostCPU {
	c := new(hostCPU)
	number := func(s string) uint8 {
		n, _ := strconv.ParseUint(s, 10, 8) // zero is no processor with SEV
		return uint8(n)
	}
	for line := range strings.Lines(text) {
		key, value, ok := strings.Cut(line, ":")
		if !ok {
			break // the next processor
		}
		value = strings.TrimSpace(value)
		switch strings.TrimSpace(key) {
		case "vendor_id":
			c.vendor = value
		case "model name":
			c.name = value
		case "cpu family":
			c.id.Family = number(value)
		case "model":
			c.id.Model = number(value)
		case "stepping":
			c.id.Stepping = number(value)
		case "flags":
			c.flags = strings.Fields(value)
		}
	}
	return c
}

func (d *examination) processor() {
	const needed = "an AMD EPYC 7003 (Milan) or later"
	text, err := d.read("/proc/cpuinfo")
	if err != nil {
		d.fail("cpu", fmt.Sprintf("the processor is not known: %v", err), needed, "mount /proc")
		return
	}
	c := parseCPUInfo(text)
	product, known := c.id.Product()
	if c.vendor != "AuthenticAMD" || !known {
		d.fail("cpu", fmt.Sprintf("the processor is %q, without SEV-SNP", c.name), needed, d.hostFix())
		return
	}
	d.cpu = c
	d.ok("cpu", "%s (%s, %s)", c.name, product.Name, c.id)
	switch {
	case c.has("sev_snp"):
		d.ok("sev-snp", "the processor has SEV-SNP switched on")
	case c.has("hypervisor"):
		d.fail("sev-snp", "this machine is itself a virtual machine without SEV-SNP", "SEV-SNP switched on in the processor", d.hostFix())
	default:
		d.fail("sev-snp", "SEV-SNP is off in the processor", "the flag sev_snp in /proc/cpuinfo", d.hostFix())
	}
}

// kvmModule looks at KVM's parameters, which it corrects to what is possible
// when it is loaded.
func (d *examination) kvmModule() {
	const dir, needed = "/sys/module/kvm_amd/parameters", "kvm_amd with sev_snp on"
	if !d.exists(dir) {
		d.fail("kvm-amd", "the kernel module kvm_amd is not loaded", needed, "modprobe kvm_amd; when it refuses: "+d.hostFix())
		return
	}
	if value, err := d.read(dir + "/sev_snp"); err == nil && (value == "Y" || value == "1") {
		d.snpOn = true
		d.ok("kvm-amd", "kvm_amd has sev_snp on")
		return
	}
	// sev and sev_es, which SEV-SNP builds on, narrow down why.
	var found []string
	for _, name := range []string{"sev", "sev_es", "sev_snp"} {
		value, err := d.read(dir + "/" + name)
		if err != nil {
			value = "not there"
		}
		found = append(found, name+" is "+value)
	}
	d.fail("kvm-amd", "kvm_amd: "+strings.Join(found, ", "), needed, d.hostFix())
}

func (d *examination) kernel() {
	needed := fmt.Sprintf("Linux %d.%d or later, with CONFIG_KVM_AMD_SEV", snpKernelMajor, snpKernelMinor)
	release, err := d.read("/proc/sys/kernel/osrelease")
	if err != nil {
		d.warn("kernel", fmt.Sprintf("the kernel's version is not known: %v", err), needed, "mount /proc")
		return
	}
	var major, minor int
	// What cannot be read is version 0.0: too old, unless it has SEV-SNP.
	_, _ = fmt.Sscanf(release, "%d.%d", &major, &minor)
	if !d.snpOn && (major < snpKernelMajor || major == snpKernelMajor && minor < snpKernelMinor) {
		d.fail("kernel", "Linux "+release+" has no SEV-SNP for guests", needed, "install a newer kernel")
		return
	}
	d.ok("kernel", "Linux %s", release)
}

// kernelParameters names those that switch SEV-SNP off, when it is off.
func (d *examination) kernelParameters() {
	text, err := d.read("/proc/cmdline")
	if err != nil || d.snpOn {
		return
	}
	var bad []string
	for _, word := range strings.Fields(text) {
		key, values, _ := strings.Cut(word, "=")
		for value := range strings.SplitSeq(values, ",") {
			switch key + "=" + value {
			// drivers/iommu/amd/init.c, iommu_snp_enable.
			case "iommu=off", "iommu=pt", "iommu.passthrough=1", "amd_iommu=off", "amd_iommu=pgtbl_v2",
				"kvm_amd.sev=0", "kvm_amd.sev_es=0", "kvm_amd.sev_snp=0", "kvm_amd.sev=N", "kvm_amd.sev_es=N", "kvm_amd.sev_snp=N":
				bad = append(bad, key+"="+value)
			}
		}
	}
	if bad != nil {
		d.fail("kernel-parameters", "the kernel was started with "+strings.Join(bad, " "), "an IOMMU that translates with its first page table format, and SEV-SNP not switched off",
			"remove "+strings.Join(bad, " ")+" from the kernel's command line")
	}
}

// kvm asks KVM itself, as QEMU does.
func (d *examination) kvm() {
	f := d.device("kvm", "/dev/kvm", "modprobe kvm_amd; when it refuses: "+d.hostFix())
	if f == nil {
		return
	}
	defer f.Close()
	types, err := d.o.VMTypes(f)
	switch {
	case err != nil:
		d.fail("kvm", fmt.Sprintf("KVM does not answer: %v", err), "KVM with VMs of type SEV-SNP", "see what dmesg says of kvm")
	case types>>kvmTypeSNP&1 == 0:
		d.fail("kvm", "KVM has no VMs of type SEV-SNP", "KVM with VMs of type SEV-SNP", d.hostFix())
	default:
		d.ok("kvm", "KVM has VMs of type SEV-SNP")
	}
}

func (d *examination) secureProcessor() {
	f := d.device("sev-device", sev.Device, "load the kernel module ccp; if it is: "+d.hostFix())
	if f == nil {
		return
	}
	defer f.Close()
	d.ok("sev-device", "%s opens", sev.Device)
	s, err := d.o.SNPStatus(f)
	if err != nil {
		d.fail("sp-firmware", fmt.Sprintf("the AMD-SP does not answer: %v", err), "its platform status", d.hostFix())
		return
	}
	d.secureProcessorFirmware(s)
	if s.RMP {
		d.ok("rmp", "the reverse map table is initialised")
	} else {
		d.fail("rmp", "the reverse map table is not initialised", "an RMP that covers the memory", d.hostFix())
	}
	d.chip(f)
	if s.MaskChipID {
		d.warn("chip-id", "reports carry no chip id", "reports that name their chip",
			"set MASK_CHIP_ID to 0 (snphost config), or use a policy with allow_masked_chip_id: a verdict under the default policy refuses them")
	}
	d.tcb(s)
}

// chip looks whether a launch can hold reports against this host's chip.
func (d *examination) chip(device *os.File) {
	id, err := d.o.ChipID(device)
	switch {
	case err == nil:
		d.ok("chip", "this host's chip is %x", id)
	case d.spec != nil && d.spec.Attestation.Chip == launch.ChipAny:
		d.ok("chip", "this host's chip is not known, and the spec takes reports of any")
	default:
		d.fail("chip", fmt.Sprintf("this host's chip is not known: %v", err), "its id, which reports are held against",
			"say attestation.chip: any in the spec, and restrict the chips in a policy")
	}
}

func (d *examination) secureProcessorFirmware(s sev.Status) {
	major, minor := uint8(snpMinAPIMajor), uint8(snpMinAPIMinor)
	why := "the kernel"
	if d.spec != nil {
		// The AMD-SP refuses a guest policy that asks for more.
		wantMajor, wantMinor := d.spec.Policy.ABI()
		if wantMajor > major || wantMajor == major && wantMinor > minor {
			major, minor, why = wantMajor, wantMinor, "the guest policy"
		}
	}
	found := fmt.Sprintf("AMD-SP firmware %d.%d build %d", s.APIMajor, s.APIMinor, s.Build)
	needed := fmt.Sprintf("API %d.%d or later, which %s asks for", major, minor, why)
	switch {
	case s.APIMajor < major || s.APIMajor == major && s.APIMinor < minor:
		d.fail("sp-firmware", found, needed, "update the BIOS, or linux-firmware (amd/amd_sev_*.sbin)")
	case !s.Initialized:
		d.fail("sp-firmware", found+", not initialised for SEV-SNP", "SNP_INIT done by the kernel", d.hostFix())
	default:
		d.ok("sp-firmware", "%s, %d guests", found, s.Guests)
	}
}

// tcb compares the firmware's levels with the floors of the policy that the
// launch will be judged by.
func (d *examination) tcb(s sev.Status) {
	if d.cpu == nil {
		return
	}
	policy, err := d.verificationPolicy()
	if err != nil {
		return // told among the inputs
	}
	floors := policy.TCB.Floors.Table
	if floors == nil {
		d.ok("tcb", "not judged: the policy has no floors")
		return
	}
	product, _ := d.cpu.id.Product()
	current, err1 := product.TCB.Split(s.CurrentTCB)
	reported, err2 := product.TCB.Split(s.ReportedTCB)
	for _, err := range []error{err1, err2} {
		if err != nil {
			d.fail("tcb", err.Error(), "a TCB version of "+product.Name, "report this with the processor's name")
			return
		}
	}
	floor := floors.Find(d.cpu.id)
	const fix = "update BIOS and microcode; when reported stands below current, raise it (snphost commit, snphost config)"
	switch {
	case floor == nil:
		d.fail("tcb", fmt.Sprintf("no floor is known for %s (%s): every report of it is refused", product.Name, d.cpu.id), "a policy with floors for it", "give floors in a policy of your own")
	case belowFloor(current, floor.TCB) || belowFloor(reported, floor.TCB):
		d.fail("tcb", fmt.Sprintf("current %s; reported %s: reports are refused", current, reported), floor.TCB.String(), fix)
	case floor.Warning != "":
		d.warn("tcb", fmt.Sprintf("reported %s; %s", reported, floor.Warning), floor.TCB.String(), "for secrets that matter, use a later product")
	default:
		d.ok("tcb", "reported %s", reported)
	}
}

// belowFloor reports whether any component is lower than the floor's.
func belowFloor(t, floor attest.TCB) bool {
	fmc := func(t attest.TCB) uint8 {
		if t.FMC == nil {
			return 0
		}
		return *t.FMC
	}
	return fmc(t) < fmc(floor) || t.Bootloader < floor.Bootloader || t.TEE < floor.TEE || t.SNP < floor.SNP || t.Microcode < floor.Microcode
}

// verificationPolicy is the policy that the launch will be judged by.
func (d *examination) verificationPolicy() (*attest.Policy, error) {
	if d.spec == nil || d.spec.Attestation.Policy == "" {
		return attest.DefaultPolicy(), nil
	}
	path := d.spec.Attestation.Policy
	data, err := inputfile.Read(path, inputfile.MaxDocument)
	if err != nil {
		return nil, err
	}
	return attest.ParsePolicy(data, path)
}

// asids looks how many guests the processor can hold. SEV-SNP guests take the
// ASIDs of SEV-ES.
func (d *examination) asids() {
	const needed = "a free SEV-ES ASID"
	var capacity, current string
	var err error
	for _, dir := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/misc"} {
		if capacity, err = d.read(dir + "/misc.capacity"); err == nil {
			current, _ = d.read(dir + "/misc.current") // older kernels have none at the top
			break
		}
	}
	if err != nil {
		if d.snpOn {
			d.warn("asids", "it is not known how many guests the processor can hold: there is no misc cgroup controller", needed, "build the kernel with CONFIG_CGROUP_MISC")
		}
		return
	}
	total, used := cgroupValue(capacity, "sev_es"), cgroupValue(current, "sev_es")
	fix := "end other SEV-ES or SEV-SNP guests, or raise the number of SEV-ES ASIDs in the BIOS set-up (SEV-ES ASID space limit)"
	switch {
	case total == 0:
		d.fail("asids", "there are no SEV-ES ASIDs", needed, fix)
	case used >= total:
		d.fail("asids", fmt.Sprintf("all %d SEV-ES ASIDs are taken", total), needed, fix)
	default:
		d.ok("asids", "%d SEV-ES ASIDs, %d taken", total, used)
	}
}

// cgroupValue reads a line "key number" of a flat keyed file.
func cgroupValue(text, key string) uint64 {
	for line := range strings.Lines(text) {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), " "); ok && k == key {
			n, _ := strconv.ParseUint(v, 10, 64) // "max" is no limit of the hardware's
			return n
		}
	}
	return 0
}
