package doctor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/evtpm/evtpm/launch"
	"github.com/evtpm/evtpm/launch/libvirtd"
	"github.com/evtpm/evtpm/launch/sev"
	"github.com/evtpm/evtpm/qmp"
)

// Options say where [Examine] looks.
type Options struct {
	// Root is the folder under which the system's files are looked for: proc,
	// sys, dev, run, etc, usr/share. Empty: "/".
	Root string
	// Home is the run directory, which is not made. Required.
	Home string
	// StateDir is what outlives machines, and is not made either. Required.
	StateDir string
	// RuntimeDir is that of [launch.StartOptions].
	RuntimeDir string

	// VMTypes asks KVM, through its opened device, which types of VMs it has:
	// bit n stands for type n. Nil: its ioctl.
	VMTypes func(kvm *os.File) (uint32, error)
	// SNPStatus and ChipID ask the AMD-SP, through its opened device. Nil: its
	// ioctl.
	SNPStatus func(device *os.File) (sev.Status, error)
	ChipID    func(device *os.File) ([]byte, error)
	// Libvirt asks a libvirt what it can do. Nil: through its socket.
	Libvirt func(context.Context, LibvirtQuery) (*LibvirtAnswer, error)

	// connect starts a QEMU without a machine, lookPath finds programs.
	connect  func(ctx context.Context, binary string) (*qmp.Client, func(), error)
	lookPath func(string) (string, error)
	geteuid  func() int
}

// Examine looks whether this host has what a launch needs: a launch of the spec,
// whose defaults are filled in, or any launch when it is nil. It asks the kernel,
// the AMD-SP, QEMU, swtpm and libvirt themselves, judges the spec's inputs as a
// launch would, and changes nothing. Everything that is missing is in the
// report; the error is about the call alone.
func Examine(ctx context.Context, spec *launch.Spec, o Options) (*Report, error) {
	if o.Home == "" || o.StateDir == "" {
		return nil, errors.New("doctor: expected a run directory and a state directory")
	}
	o.fillDefaults()
	d := &examination{ctx: ctx, o: o, spec: spec, report: &Report{Schema: Schema, Findings: []Finding{}}}
	platforms := []string{launch.PlatformSNP, launch.PlatformSim}
	if spec != nil {
		d.report.Name, d.report.Platform = spec.Name, spec.Platform
		if spec.Platform == launch.PlatformSim {
			platforms = []string{launch.PlatformSim}
		}
	}
	if host := remoteLibvirt(spec); host != "" {
		// What is here says nothing of what is there.
		d.report.Host = host
		platforms = []string{spec.Platform}
		d.only(d.inputs, spec.Platform)
		d.report.conclude(platforms)
		return d.report, ctx.Err()
	}
	if platforms[0] == launch.PlatformSNP {
		d.only(d.snpHost, launch.PlatformSNP)
	}
	if spec != nil {
		d.only(d.inputs, spec.Platform)
	}
	d.programs(platforms)
	if spec != nil {
		d.only(d.specNeeds, spec.Platform)
	}
	if d.plan != nil {
		d.plan.Close()
	}
	d.report.conclude(platforms)
	return d.report, ctx.Err()
}

func (o *Options) fillDefaults() {
	if o.Root == "" {
		o.Root = "/"
	}
	if o.RuntimeDir == "" {
		o.RuntimeDir = libvirtd.DefaultRuntimeDir()
	}
	if o.VMTypes == nil {
		o.VMTypes = kvmVMTypes
	}
	if o.SNPStatus == nil {
		o.SNPStatus = sev.PlatformStatus
	}
	if o.ChipID == nil {
		o.ChipID = sev.ChipID
	}
	if o.Libvirt == nil {
		root, dir := o.Root, o.RuntimeDir
		o.Libvirt = func(ctx context.Context, q LibvirtQuery) (*LibvirtAnswer, error) {
			return askLibvirt(ctx, root, dir, q)
		}
	}
	if o.connect == nil {
		o.connect = connectEmptyQEMU
	}
	if o.lookPath == nil {
		o.lookPath = lookProgram
	}
	if o.geteuid == nil {
		o.geteuid = os.Geteuid
	}
}

// An examination is one look at a host.
type examination struct {
	ctx    context.Context
	o      Options
	spec   *launch.Spec // nil: any launch
	report *Report

	platforms []string // that need what is being looked at

	cpu   *hostCPU     // nil when it could not be read
	snpOn bool         // KVM says that it has SEV-SNP
	plan  *launch.Plan // nil when the spec's inputs are not as they should be
}

// only runs a part of the examination that the given platforms alone need.
func (d *examination) only(part func(), platforms ...string) {
	saved := d.platforms
	d.platforms = platforms
	part()
	d.platforms = saved
}

func (d *examination) add(f Finding) {
	f.Platforms = d.platforms
	d.report.Findings = append(d.report.Findings, f)
}

func (d *examination) ok(name, format string, args ...any) {
	d.add(Finding{Name: name, Status: OK, Found: fmt.Sprintf(format, args...)})
}

func (d *examination) fail(name, found, needed, fix string) {
	d.add(Finding{Name: name, Status: Fail, Found: found, Needed: needed, Fix: fix})
}

func (d *examination) warn(name, found, needed, fix string) {
	d.add(Finding{Name: name, Status: Warn, Found: found, Needed: needed, Fix: fix})
}

// path is where a file of the system is.
func (d *examination) path(name string) string { return filepath.Join(d.o.Root, name) }

func (d *examination) exists(name string) bool {
	_, err := os.Stat(d.path(name))
	return err == nil
}

// maxSystemFile bounds what is read of a file of /proc or /sys. /proc/cpuinfo of
// a large machine is longer; its first processor is enough.
const maxSystemFile = 64 << 10

// read returns the text of a file of the system without the blanks around it.
func (d *examination) read(name string) (string, error) {
	f, err := os.Open(d.path(name))
	if err != nil {
		return "", err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxSystemFile))
	return strings.TrimSpace(string(data)), err
}

// device opens a device as QEMU would, to see whether this user may. The caller
// closes it.
func (d *examination) device(finding, name, without string) *os.File {
	f, err := os.OpenFile(d.path(name), os.O_RDWR, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		d.fail(finding, name+" is not there", name, without)
	case errors.Is(err, fs.ErrPermission):
		d.fail(finding, name+" may not be opened by this user", "read and write access to "+name,
			"join the group of "+name+" (ls -l "+name+"), or give it one with a udev rule")
	case err != nil:
		d.fail(finding, fmt.Sprintf("%s does not open: %v", name, errors.Unwrap(err)), "read and write access to "+name, without)
	default:
		return f
	}
	return nil
}
