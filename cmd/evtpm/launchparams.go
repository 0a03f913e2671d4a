package main

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/urfave/cli/v2"

	"github.com/evtpm/evtpm/explain"
	"github.com/evtpm/evtpm/hostcpu"
	"github.com/evtpm/evtpm/inputfile"
	"github.com/evtpm/evtpm/measure"
	"github.com/evtpm/evtpm/measure/fromvm"
	"github.com/evtpm/evtpm/ovmf"
)

// parameters are the flags of a launch, taken apart.
type parameters struct {
	mode           measure.Mode
	options        ovmf.LaunchOptions
	cpuName        string
	ovmf           string
	ovmfHash       string
	kernel, initrd string
	kernelHash     string
	initrdHash     string
	cmdline        string
	measureKernel  bool
	pages          bool // the firmware's contents are needed, not their digest alone
	svsm           string
	vars           int64
	policy         uint64
	platform       string
	legacyUnspoken bool // SEV-ES by flags: QEMU's default is the other one
}

func (u *ui) parameters(c *cli.Context) (*parameters, error) {
	p := &parameters{platform: "snp", pages: c.Bool("trace") || c.IsSet("map")}
	if c.IsSet("platform") {
		p.platform = c.String("platform")
	}
	vm, err := u.fromVM(c)
	if err != nil {
		return nil, err
	}
	if vm == nil {
		vm = &fromvm.VM{}
	}
	text := func(flag, other string) string {
		if c.IsSet(flag) || other == "" {
			return c.String(flag)
		}
		return other
	}
	p.mode = measure.Mode(text("mode", string(vm.Mode)))
	switch p.mode {
	case measure.ModeSNP, measure.ModeSEV, measure.ModeSEVES, modeOVMFHash, modeSVSMBin:
	case "":
		return nil, fmt.Errorf("%s: expected a spec, or --mode with the launch's parameters", c.Command.HelpName)
	default:
		return nil, fmt.Errorf("--mode: found %q, expected sev, seves, snp, snp:ovmf-hash or snp:svsm", p.mode)
	}
	p.ovmf, p.ovmfHash = text("ovmf", vm.Firmware), c.String("snp-ovmf-hash")
	if p.ovmfHash != "" && p.mode != measure.ModeSNP {
		return nil, errors.New("--snp-ovmf-hash: expected --mode snp: only there can a hash be continued")
	}
	if p.mode == modeOVMFHash {
		return p, p.needOVMF()
	}
	p.options.Mode = p.mode
	if p.mode == modeSVSMBin {
		p.options.Mode = measure.ModeSNP
	}
	if p.options.VMM, err = measure.ParseVMM(c.String("vmm-type")); err != nil {
		return nil, fmt.Errorf("--vmm-type: %w", err)
	}
	if err := p.cpus(c, vm); err != nil {
		return nil, err
	}
	if err := p.boot(c, vm, text); err != nil {
		return nil, err
	}
	p.options.GuestFeatures, p.options.RawFeatures = vm.GuestFeatures, true
	if c.IsSet("guest-features") || vm.Mode == "" {
		if p.options.GuestFeatures, err = parseNumber("guest-features", c.String("guest-features"), 64); err != nil {
			return nil, err
		}
	}
	p.policy = vm.Policy
	if c.IsSet("policy") || vm.Mode == "" {
		if p.policy, err = parseNumber("policy", c.String("policy"), 64); err != nil {
			return nil, err
		}
	}
	if p.options.NoFPU, err = parseOnOff("legacy-vm-type", text("legacy-vm-type", map[bool]string{true: "on"}[vm.LegacyVMType])); err != nil {
		return nil, err
	}
	p.legacyUnspoken = p.mode == measure.ModeSEVES && p.options.VMM == measure.VMMQEMU && vm.Mode == "" && !c.IsSet("legacy-vm-type")
	switch v := c.String("ec2-rdx"); v {
	case "0x600":
	case "0", "0x0":
		p.options.ZeroRDX = true
	default:
		return nil, fmt.Errorf("--ec2-rdx: found %q, expected 0x600 or 0", v)
	}
	if p.mode == modeSVSMBin {
		if err := p.svsmBin(c); err != nil {
			return nil, err
		}
	}
	return p, p.needOVMF()
}

// fromVM reads the parameters of a VM that somebody runs; nil when none is named.
func (u *ui) fromVM(c *cli.Context) (*fromvm.VM, error) {
	line, file := c.String("from-qemu"), c.String("from-libvirt")
	var vm *fromvm.VM
	var err error
	switch {
	case line != "" && file != "":
		return nil, errors.New("--from-qemu and --from-libvirt: found both, expected one of them")
	case file != "":
		var doc []byte
		if doc, err = u.readInput(file, inputfile.MaxDocument); err != nil {
			return nil, err
		}
		if vm, err = fromvm.Libvirt(doc); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
	case line != "":
		name, isFile := strings.CutPrefix(line, "@")
		if isFile {
			doc, err := readCommandLine(name)
			if err != nil {
				return nil, err
			}
			line = string(doc)
		}
		if vm, err = fromvm.QEMU(line); err != nil {
			return nil, fmt.Errorf("--from-qemu: %w", err)
		}
		if dir := processDir(name); isFile && dir != "" {
			// The process's relative paths are not ours.
			for _, path := range []*string{&vm.Firmware, &vm.Kernel, &vm.Initrd, &vm.IGVM} {
				if *path != "" && !filepath.IsAbs(*path) {
					*path = filepath.Join(dir, *path)
				}
			}
		}
	default:
		return nil, nil
	}
	for _, w := range vm.Warnings {
		u.warn("%s", w)
	}
	if vm.IGVM != "" {
		return nil, fmt.Errorf("the VM starts from an IGVM file: see evtpm svsm measure --vcpus %d %q", vm.VCPUs, vm.IGVM)
	}
	return vm, nil
}

// readCommandLine reads a file of /proc, whose size is only known when it has
// been read, or an ordinary one.
func readCommandLine(name string) ([]byte, error) {
	f, _, err := inputfile.Open(name, inputfile.MaxDocument)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return inputfile.ReadAll(f, name, inputfile.MaxDocument)
}

// processDir is the working directory of the process whose command line a file of
// /proc is; empty for other files.
func processDir(name string) string {
	dir, file := filepath.Split(name)
	if file != "cmdline" || !strings.HasPrefix(dir, "/proc/") {
		return ""
	}
	cwd, err := os.Readlink(dir + "cwd")
	if err != nil {
		return ""
	}
	return cwd
}

func (p *parameters) needOVMF() error {
	isFile := p.ovmfHash != "" && len(p.ovmfHash) != 2*measure.DigestSize
	switch {
	case p.ovmf == "" && !isFile:
		return errors.New("--ovmf: expected the firmware's file")
	case p.ovmf != "" && isFile:
		return fmt.Errorf("--snp-ovmf-hash: %q brings its own metadata: --ovmf is not wanted beside it", p.ovmfHash)
	}
	return nil
}

// cpus reads the number of vCPUs and their signature.
func (p *parameters) cpus(c *cli.Context, vm *fromvm.VM) error {
	p.options.VCPUs = vm.VCPUs
	var err error
	if c.IsSet("vcpus") {
		if p.options.VCPUs, err = decimal(c, "vcpus"); err != nil {
			return err
		}
	}
	if p.options.Mode == measure.ModeSEV {
		return nil // measures no vCPU
	}
	if p.options.VCPUs == 0 && !c.IsSet("vcpus") && !c.IsSet("matrix") {
		return fmt.Errorf("--vcpus: expected a number of vCPUs for mode %s", p.mode)
	}
	if p.options.VCPUs < 0 || p.options.VCPUs > measure.MaxVCPUs || p.options.VCPUs == 0 && c.IsSet("vcpus") {
		return fmt.Errorf("--vcpus: found %d, expected 1 to %d", p.options.VCPUs, measure.MaxVCPUs)
	}
	switch {
	// In sev-snp-measure's order, where more than one is given.
	case c.IsSet("vcpu-family"):
		if !c.IsSet("vcpu-model") || !c.IsSet("vcpu-stepping") {
			return errors.New("--vcpu-family: expected --vcpu-model and --vcpu-stepping beside it")
		}
		family, errFamily := decimal(c, "vcpu-family")
		model, errModel := decimal(c, "vcpu-model")
		stepping, errStepping := decimal(c, "vcpu-stepping")
		if err := errors.Join(errFamily, errModel, errStepping); err != nil {
			return err
		}
		p.options.CPUSignature, err = measure.SignatureOf(family, model, stepping)
	case c.IsSet("vcpu-sig"):
		var n uint64
		n, err = parseNumber("vcpu-sig", c.String("vcpu-sig"), 32)
		p.options.CPUSignature = uint32(n)
	case c.IsSet("vcpu-type"):
		p.cpuName = c.String("vcpu-type")
		p.options.CPUSignature, err = cpuSignature(p.cpuName)
	case vm.Mode != "":
		p.cpuName = vm.CPUModel
		p.options.CPUSignature, err = vmSignature(vm)
	case p.options.VMM == measure.VMMQEMU && !c.IsSet("matrix"):
		return fmt.Errorf("--vcpu-type: expected a CPU model, or --vcpu-sig or --vcpu-family, for mode %s", p.mode)
	}
	return err
}

// cpuSignature is a model's signature; "host" is this machine's.
func cpuSignature(model string) (uint32, error) {
	if model == "host" || model == "max" {
		sig, err := hostcpu.Signature()
		if err != nil {
			return 0, fmt.Errorf("CPU model %q: %w; give --vcpu-sig", model, err)
		}
		return sig, nil
	}
	return measure.CPUSignature(model)
}

func vmSignature(vm *fromvm.VM) (uint32, error) {
	if vm.CPUModel == "host" || vm.CPUModel == "max" {
		sig, err := cpuSignature(vm.CPUModel)
		if err != nil {
			return 0, err
		}
		family, model, stepping := measure.SplitSignature(sig)
		for from, into := range map[*int]*int{vm.Family: &family, vm.Model: &model, vm.Stepping: &stepping} {
			if from != nil {
				*into = *from
			}
		}
		return measure.SignatureOf(family, model, stepping)
	}
	return vm.Signature()
}

// boot reads what a direct boot loads.
func (p *parameters) boot(c *cli.Context, vm *fromvm.VM, text func(flag, other string) string) error {
	p.kernel, p.initrd, p.cmdline = text("kernel", vm.Kernel), text("initrd", vm.Initrd), text("append", vm.Cmdline)
	p.kernelHash, p.initrdHash = c.String("kernel-hash"), c.String("initrd-hash")
	if c.IsSet("kernel-hash") && !c.IsSet("kernel") {
		p.kernel = ""
	}
	if c.IsSet("initrd-hash") && !c.IsSet("initrd") {
		p.initrd = ""
	}
	hasKernel := p.kernel != "" || p.kernelHash != ""
	switch {
	case p.kernel != "" && p.kernelHash != "":
		return errors.New("--kernel-hash: found beside --kernel, expected one of them")
	case p.initrd != "" && p.initrdHash != "":
		return errors.New("--initrd-hash: found beside --initrd, expected one of them")
	case p.initrd != "" && !hasKernel, p.initrdHash != "" && !hasKernel:
		return errors.New("--initrd: expected --kernel beside it")
	case p.cmdline != "" && !hasKernel:
		return errors.New("--append: expected --kernel beside it")
	case p.mode == modeSVSMBin && hasKernel:
		return errors.New("--kernel: mode snp:svsm measures no kernel")
	}
	p.measureKernel = hasKernel
	if vm.Mode != "" && !c.IsSet("kernel") && !c.IsSet("kernel-hash") {
		p.measureKernel = vm.KernelHashes
		if vm.KernelHashes && !hasKernel {
			return errors.New("the VM has kernel-hashes=on without a kernel: QEMU fails an assertion (kernel_hashes_data)")
		}
	}
	return nil
}

func (p *parameters) svsmBin(c *cli.Context) error {
	if p.options.VMM != measure.VMMQEMU {
		return fmt.Errorf("--vmm-type: found %s, expected QEMU: only it has been known to start an svsm.bin", p.options.VMM)
	}
	if p.svsm = c.String("svsm"); p.svsm == "" {
		return errors.New("--svsm: expected the SVSM's file for mode snp:svsm")
	}
	switch {
	case c.IsSet("vars-file") && c.IsSet("vars-size"):
		return errors.New("--vars-file: found beside --vars-size, expected one of them")
	case c.IsSet("vars-file"):
		f, size, err := inputfile.Open(c.String("vars-file"), inputfile.MaxFirmware)
		if err != nil {
			return fmt.Errorf("--vars-file: %w", err)
		}
		p.vars = size
		return f.Close()
	case c.IsSet("vars-size"):
		n, err := decimal(c, "vars-size")
		p.vars = int64(n)
		return err
	}
	return errors.New("--vars-size: expected the size of the variable store, or --vars-file, for mode snp:svsm")
}

// read reads the files that the parameters name, all at the same time.
func (p *parameters) read(u *ui) (*launchInput, error) {
	if p.legacyUnspoken {
		u.warn("SEV-ES as sev-snp-measure computes it; QEMU's default start leaves x87 and SSE state out of the VMSAs: --legacy-vm-type on")
	}
	l := &launchInput{mode: p.mode, vars: p.vars, policy: p.policy, platform: p.platform}
	l.Options, l.CPUModel, l.FirmwareName = p.options, p.cpuName, p.ovmf
	boot := explain.Boot{KernelName: p.kernel, Initrd: measure.NoInitrd, InitrdName: p.initrd, Cmdline: p.cmdline}
	var errs [4]error
	var unloadable error
	var wg sync.WaitGroup
	if p.svsm != "" {
		wg.Go(func() {
			var data []byte
			if data, errs[1] = inputfile.Read(p.svsm, inputfile.MaxFirmware); errs[1] == nil {
				if l.svsm, errs[1] = ovmf.Parse(data); errs[1] != nil {
					errs[1] = fmt.Errorf("%s: %w", p.svsm, errs[1])
				}
			}
		})
	}
	if p.measureKernel {
		wg.Go(func() { errs[2] = hashOf("kernel-hash", p.kernelHash, p.kernel, inputfile.MaxKernel, &boot.Kernel) })
		wg.Go(func() { unloadable = p.checkKernel() })
		if p.initrd != "" || p.initrdHash != "" {
			wg.Go(func() { errs[3] = hashOf("initrd-hash", p.initrdHash, p.initrd, inputfile.MaxInitrd, &boot.Initrd) })
		}
	}
	errs[0] = p.readFirmware(u, l)
	wg.Wait()
	if err := errors.Join(errs[:]...); err != nil {
		return nil, err
	}
	if p.measureKernel {
		l.Boot = &boot
	}
	if unloadable != nil {
		u.warn("%s: %v", p.kernel, unloadable)
	}
	l.describe(p)
	return l, nil
}

// checkKernel says why QEMU would not load the kernel with its hashes. A file that
// cannot be read is hashOf's to report.
func (p *parameters) checkKernel() error {
	if p.kernel == "" || p.kernel == os.DevNull || p.options.VMM != measure.VMMQEMU {
		return nil
	}
	f, size, err := inputfile.Open(p.kernel, inputfile.MaxKernel)
	if err != nil {
		return nil
	}
	defer f.Close()
	head := make([]byte, min(size, measure.KernelHead))
	if _, err := f.ReadAt(head, 0); err != nil {
		return nil
	}
	return measure.CheckKernelFile(head, p.initrd != "" || p.initrdHash != "")
}

// hashOf takes a file's SHA-256, or reads it from a flag. The null device is an
// empty file, as scripts write for no kernel or no initrd.
func hashOf(flag, text, path string, limit int64, into *[32]byte) (err error) {
	if path == os.DevNull {
		*into = sha256.Sum256(nil)
		return nil
	}
	if path != "" {
		*into, err = inputfile.SHA256(path, limit)
		return err
	}
	sum, err := hex.DecodeString(text)
	if err != nil || len(sum) != len(into) {
		return fmt.Errorf("--%s: found %q, expected 64 hexadecimal digits", flag, text)
	}
	copy(into[:], sum)
	return nil
}

func (p *parameters) readFirmware(u *ui, l *launchInput) error {
	if p.ovmf == "" {
		doc, err := inputfile.Read(p.ovmfHash, inputfile.MaxDocument)
		if errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("--snp-ovmf-hash: found neither 96 hexadecimal digits nor a file: %w", err)
		}
		if err != nil {
			return err
		}
		if l.Firmware, err = ovmf.ParsePrecomputed(doc); err != nil {
			return fmt.Errorf("%s: %w", p.ovmfHash, err)
		}
		return nil
	}
	var err error
	if l.Firmware, err = p.readImage(); err != nil {
		return err
	}
	if p.ovmfHash == "" {
		return nil
	}
	var hash measure.Digest
	if err := hash.UnmarshalText([]byte(p.ovmfHash)); err != nil {
		return fmt.Errorf("--snp-ovmf-hash: %w", err)
	}
	own, err := l.Firmware.Hash()
	if err != nil {
		return fmt.Errorf("%s: %w", p.ovmf, err)
	}
	if own != hash {
		u.warn("--snp-ovmf-hash: not the hash of %s (%s): its metadata may not be that of the firmware that was hashed", p.ovmf, own)
	}
	l.Firmware.Data, l.Firmware.Prefix = nil, hash
	return nil
}

// readImage reads the firmware: its contents only where they are needed besides
// their digest, its table only where the mode needs it.
func (p *parameters) readImage() (img *ovmf.Image, err error) {
	f, size, err := inputfile.Open(p.ovmf, inputfile.MaxFirmware)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	switch tableless := p.mode == modeOVMFHash || p.mode == measure.ModeSEV; {
	case p.options.Mode == measure.ModeSNP && p.mode != modeSVSMBin && !p.pages, p.mode == modeOVMFHash:
		img, err = ovmf.Scan(f, size)
		if tableless && errors.Is(err, ovmf.ErrNoTable) {
			img = &ovmf.Image{Size: uint32(size)}
			img.Prefix, err = ovmf.HashPages(f, size)
		}
	default:
		data, readErr := inputfile.Read(p.ovmf, inputfile.MaxFirmware)
		if readErr != nil {
			return nil, readErr
		}
		img, err = ovmf.Parse(data)
		if tableless && errors.Is(err, ovmf.ErrNoTable) {
			img, err = ovmf.Bare(data)
		}
	}
	if err != nil {
		magic := make([]byte, 4)
		if n, _ := f.ReadAt(magic, 0); string(magic[:n]) == "IGVM" {
			return nil, fmt.Errorf("%s: an IGVM file, see evtpm svsm measure", p.ovmf)
		}
		return nil, fmt.Errorf("%s: %w", p.ovmf, err)
	}
	return img, nil
}
