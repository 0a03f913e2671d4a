package main

import (
	"errors"
	"fmt"
	"strconv"

	"github.com/urfave/cli/v2"

	"github.com/evtpm/evtpm/explain"
	"github.com/evtpm/evtpm/inputfile"
	"github.com/evtpm/evtpm/launch"
	"github.com/evtpm/evtpm/measure"
	"github.com/evtpm/evtpm/ovmf"
)

// Modes of sev-snp-measure that are not generations of SEV.
const (
	modeOVMFHash measure.Mode = "snp:ovmf-hash"
	modeSVSMBin  measure.Mode = "snp:svsm"
)

// launchFlags describe a launch without a spec: sev-snp-measure's flags, and
// some of our own.
func launchFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "mode", Usage: "sev, seves, snp, snp:ovmf-hash or snp:svsm"},
		&cli.StringFlag{Name: "vcpus", Usage: "number of vCPUs"},
		&cli.StringFlag{Name: "vcpu-type", Usage: "CPU model of QEMU, or host for this machine's processor"},
		&cli.StringFlag{Name: "vcpu-sig", Usage: "CPUID 1.EAX of the vCPUs"},
		&cli.StringFlag{Name: "vcpu-family", Usage: "family of the vCPUs, with --vcpu-model and --vcpu-stepping"},
		&cli.StringFlag{Name: "vcpu-model", Usage: "model number of the vCPUs"},
		&cli.StringFlag{Name: "vcpu-stepping", Usage: "stepping of the vCPUs"},
		&cli.StringFlag{Name: "vmm-type", Value: "QEMU", Usage: "QEMU, ec2 or gce"},
		&cli.StringFlag{Name: "ovmf", Usage: "firmware `FILE`"},
		&cli.StringFlag{Name: "kernel", Usage: "kernel `FILE` of a measured direct boot"},
		&cli.StringFlag{Name: "initrd", Usage: "initrd `FILE`, with --kernel"},
		&cli.StringFlag{Name: "append", Usage: "kernel command `LINE`, with --kernel"},
		&cli.StringFlag{Name: "kernel-hash", Usage: "SHA-256 of the kernel, instead of the file"},
		&cli.StringFlag{Name: "initrd-hash", Usage: "SHA-256 of the initrd, instead of the file"},
		&cli.StringFlag{Name: "guest-features", Value: "0x1", Usage: "SEV_FEATURES of the vCPUs"},
		&cli.StringFlag{Name: "snp-ovmf-hash", Usage: "precomputed `HASH` of the firmware, whose metadata --ovmf gives; or a file that mode snp:ovmf-hash wrote with -o json, without --ovmf"},
		&cli.StringFlag{Name: "svsm", Usage: "svsm.bin `FILE`, for mode snp:svsm"},
		&cli.StringFlag{Name: "vars-size", Usage: "size of the variable store in bytes, for mode snp:svsm"},
		&cli.StringFlag{Name: "vars-file", Usage: "variable store `FILE`, instead of its size"},
		&cli.StringFlag{Name: "legacy-vm-type", Value: "off", Usage: "on: SEV-ES as QEMU starts it by default, without x87 and SSE state in the VMSAs; for SNP, kernels before the upstream ones"},
		&cli.StringFlag{Name: "ec2-rdx", Value: "0x600", Usage: "RDX of EC2's vCPUs: 0x600, or 0 for VMs launched long ago"},
		&cli.StringFlag{Name: "policy", Value: "0x30000", Usage: "guest policy, for the golden values"},
		specOwnerFlag(),
		frozenFlag(),
		&cli.StringFlag{Name: "from-qemu", Usage: "take the parameters from a QEMU command `LINE`; @FILE reads it from a file, such as @/proc/PID/cmdline"},
		&cli.StringFlag{Name: "from-libvirt", Usage: "take the parameters from the XML of a libvirt domain in `FILE`"},
	}
}

// launchInput is what flags or a spec say of a launch.
type launchInput struct {
	explain.Launch
	mode measure.Mode // Options.Mode, or one of sev-snp-measure's own

	svsm *ovmf.Image // svsm.bin, with its options
	vars int64

	policy   uint64
	platform string
	files    []measure.GoldenInput

	plan *launch.Plan // of a spec; nil with flags alone
}

func (l *launchInput) close() {
	if l.plan != nil {
		l.plan.Close()
	}
}

// readLaunch reads a launch from the command's argument or its flags.
func (u *ui) readLaunch(c *cli.Context) (*launchInput, error) {
	if c.NArg() > 0 {
		path, err := oneArg(c, "a spec")
		if err != nil {
			return nil, err
		}
		for _, f := range launchFlags() {
			name := f.Names()[0]
			if c.IsSet(name) && name != "allow-untrusted-file" && name != "frozen" {
				return nil, fmt.Errorf("--%s: found beside a spec, expected one of them", name)
			}
		}
		return specLaunch(c, path)
	}
	p, err := u.parameters(c)
	if err != nil {
		return nil, err
	}
	return p.read(u)
}

// specLaunch resolves a spec.
func specLaunch(c *cli.Context, path string) (*launchInput, error) {
	plan, err := resolveSpec(c, path)
	if err != nil {
		return nil, err
	}
	spec := plan.Spec
	signature, err := spec.CPUSignature()
	if err != nil {
		plan.Close()
		return nil, err
	}
	l := &launchInput{plan: plan, mode: measure.ModeSNP, policy: uint64(spec.Policy), platform: spec.Platform}
	l.Options = ovmf.LaunchOptions{Mode: measure.ModeSNP, VMM: measure.VMMQEMU, VCPUs: spec.CPU.Count, CPUSignature: signature, GuestFeatures: spec.CPU.GuestFeatures, RawFeatures: true}
	l.CPUModel = spec.CPU.Model
	l.Firmware, l.FirmwareName = plan.Image, spec.Firmware.Path
	if plan.Hashes != nil {
		l.Boot = &explain.Boot{Kernel: plan.Hashes.Kernel, KernelName: spec.Kernel, Initrd: plan.Hashes.Initrd, InitrdName: spec.Initrd, Cmdline: spec.Cmdline}
	}
	if plan.Image != nil {
		own, err := l.Sequence()
		if err != nil {
			plan.Close()
			return nil, err
		}
		l.Append = plan.Sequence.Steps[min(len(own.Steps), len(plan.Sequence.Steps)):]
	}
	return l, nil
}

// stdinName is what errors call standard input.
const stdinName = "standard input"

// readInput reads a file, or standard input for "-".
func (u *ui) readInput(name string, limit int64) ([]byte, error) {
	if name == "-" {
		return u.readStdin(limit)
	}
	return inputfile.Read(name, limit)
}

// readStdin reads standard input, of which there is one.
func (u *ui) readStdin(limit int64) ([]byte, error) {
	if u.stdinRead.Swap(true) {
		return nil, errors.New("found - twice, expected it at most once: there is one standard input")
	}
	return inputfile.ReadAll(u.in, stdinName, limit)
}

// sequence is what is launched.
func (l *launchInput) sequence() (*measure.Sequence, error) {
	switch {
	case l.plan != nil:
		return l.plan.Sequence, nil
	case l.svsm != nil:
		return l.Firmware.SVSMSequence(l.svsm, ovmf.SVSMOptions{VarsSize: l.vars, VCPUs: l.Options.VCPUs, CPUSignature: l.Options.CPUSignature})
	}
	seq, err := l.Sequence()
	if err != nil && l.FirmwareName != "" {
		return nil, fmt.Errorf("%s: %w", l.FirmwareName, err)
	}
	return seq, err
}

// describe notes what the golden values derive from.
func (l *launchInput) describe(p *parameters) {
	value := func(name, v string) {
		if v != "" {
			l.files = append(l.files, measure.GoldenInput{Name: name, Value: v})
		}
	}
	value("mode", string(p.mode))
	value("firmware", p.ovmf+p.ovmfHash[:min(len(p.ovmfHash), 2*measure.DigestSize)])
	if d := l.Firmware.Prefix; !d.IsZero() {
		value("ovmf_hash", d.String())
	}
	if l.Boot != nil {
		l.files = append(l.files, measure.GoldenInput{Name: "kernel", SHA256: l.Boot.Kernel[:], Value: l.Boot.KernelName})
		if l.Boot.Initrd != measure.NoInitrd {
			l.files = append(l.files, measure.GoldenInput{Name: "initrd", SHA256: l.Boot.Initrd[:], Value: l.Boot.InitrdName})
		}
		value("cmdline", l.Boot.Cmdline)
	}
	value("cpu_count", strconv.Itoa(l.Options.VCPUs))
	if l.Options.VMM == measure.VMMQEMU {
		value("cpu_model", l.CPUModel)
		value("cpu_signature", fmt.Sprintf("%#x", l.Options.CPUSignature))
	}
	value("guest_features", fmt.Sprintf("%#x", l.Options.GuestFeatures))
}

// profile names the rules by which the host measures.
func (l *launchInput) profile() string {
	if l.plan != nil {
		return l.plan.HostProfile
	}
	profile := "kvm"
	if l.Options.VMM != measure.VMMQEMU && l.Options.VMM != "" {
		profile = string(l.Options.VMM)
	}
	switch {
	case l.svsm != nil:
		profile = svsmProfileBin
	case l.Options.NoFPU:
		profile += "-legacy-vm-type"
	case l.Options.ZeroRDX:
		profile += "-zero-rdx"
	}
	return profile
}

// profileText is the profile and the vCPUs in words.
func (l *launchInput) profileText() string {
	if l.Options.Mode == measure.ModeSEV {
		return l.profile()
	}
	cpu := l.CPUModel
	if cpu == "" {
		cpu = fmt.Sprintf("signature %#x", l.Options.CPUSignature)
	}
	if l.Options.VMM != measure.VMMQEMU {
		cpu = "vCPUs as " + string(l.Options.VMM) + " starts them"
	}
	if l.plan != nil && l.plan.SVSMImage != nil {
		cpu = "registers from the SVSM image"
	}
	text := fmt.Sprintf("%s, %s, %s", l.profile(), countText(l.Options.VCPUs), cpu)
	if l.Options.Mode == measure.ModeSNP && l.svsm == nil && l.Firmware != nil {
		text += ", guest features " + explain.FeatureText(l.Options.GuestFeatures)
	}
	return text
}

// verboseMode names the mode as sev-snp-measure's --verbose does.
func (l *launchInput) verboseMode() string {
	return map[measure.Mode]string{measure.ModeSEV: "SEV", measure.ModeSEVES: "SEV_ES", measure.ModeSNP: "SEV_SNP", modeSVSMBin: "SEV_SNP_SVSM"}[l.mode]
}

// golden is the launch as golden values.
func (l *launchInput) golden(seq *measure.Sequence) (*measure.Golden, error) {
	if l.plan != nil {
		return l.plan.Golden, nil
	}
	digest, err := seq.LaunchDigest()
	if err != nil {
		return nil, err
	}
	return &measure.Golden{
		Schema:        measure.GoldenSchema,
		Platform:      l.platform,
		HostProfile:   l.profile(),
		LaunchDigests: []measure.Digest{digest},
		Policy:        l.policy,
		Inputs:        l.files,
	}, nil
}

// decimal reads a count as sev-snp-measure does: in decimal, whatever zeros are in
// front. (The library's own number flags would take 010 for 8.)
func decimal(c *cli.Context, flag string) (int, error) {
	n, err := strconv.Atoi(c.String(flag))
	if err != nil {
		return 0, fmt.Errorf("--%s: found %q, expected a decimal number", flag, c.String(flag))
	}
	return n, nil
}

// parseNumber reads a number, decimal or with 0x, 0o or 0b. A zero in front is an
// error: it means 8 to one program and 10 to the next.
func parseNumber(flag, text string, bits int) (uint64, error) {
	if len(text) > 1 && text[0] == '0' && text[1] >= '0' && text[1] <= '9' {
		return 0, fmt.Errorf("--%s: found %q, expected a number without a zero in front, or with 0x", flag, text)
	}
	n, err := strconv.ParseUint(text, 0, bits)
	if err != nil {
		return 0, fmt.Errorf("--%s: found %q, expected a number of at most %d bits", flag, text, bits)
	}
	return n, nil
}

func parseOnOff(flag, text string) (bool, error) {
	switch text {
	case "on":
		return true, nil
	case "off":
		return false, nil
	}
	return false, fmt.Errorf("--%s: found %q, expected on or off", flag, text)
}

func countText(vcpus int) string {
	if vcpus == 1 {
		return "1 vCPU"
	}
	return fmt.Sprintf("%d vCPUs", vcpus)
}
