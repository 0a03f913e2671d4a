package launch

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
)

// Where the C-bit is, and what memory encryption takes of the address width, on
// every processor with SEV-SNP (CPUID 0x8000001F EBX; Milan and later).
const (
	sevCBitPos         = 51
	sevReducedPhysBits = 1
)

// sandbox keeps QEMU from what a VM of ours never needs: a guest that breaks out
// of it can start no program and gain no right.
const sandbox = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"

// sandboxHelper is the same for a QEMU that must run its bridge helper.
const sandboxHelper = "on,obsolete=deny,resourcecontrol=deny"

// A QEMUCommand is a command line of QEMU as a value: what is executed, and
// what [QEMUCommand.String] prints.
type QEMUCommand struct {
	Binary string
	Args   []string
}

// QEMUOptions say where a command line finds what a plan does not hold.
type QEMUOptions struct {
	// Dir holds the sockets and the console log. Required.
	Dir string
	// File says how QEMU opens an input. Nil: the path that it came from.
	File func(*Input) string
	// HashesPage is the file with the page of [Plan.HashesPage], for a plan that
	// has one. Empty: hashes.bin in Dir.
	HashesPage string
	// ImageFile says how QEMU opens a file of [Plan.ImageFiles]. Nil: the name, in
	// Dir.
	ImageFile func(name string) string
	// TPM is the control socket of the vTPM, for platform sim. Empty: tpm.sock in
	// Dir.
	TPM string
	// Monitor, Console and SVSM are chardev back ends: "socket,fd=5". Empty: a
	// socket, a log file, and a socket to connect to, in Dir.
	Monitor, Console, SVSM string
	// NoSandbox leaves out -sandbox, for a QEMU that was built without it.
	NoSandbox bool
}

// HashesPage returns the page of kernel hashes that platform sim places in guest
// memory in QEMU's stead, which writes it for SEV guests alone. It is nil for a
// plan without kernel hashes, and on platform snp.
func (p *Plan) HashesPage() (gpa uint64, page []byte, err error) {
	if p.Spec.Platform != PlatformSim || p.Hashes == nil || p.Image == nil {
		return 0, nil, nil
	}
	return p.Image.HashesPage(p.Hashes)
}

// QEMUCommand returns the command line that starts the plan's VM, stopped before
// its first instruction.
func (p *Plan) QEMUCommand(o QEMUOptions) (*QEMUCommand, error) {
	if o.Dir == "" {
		return nil, errors.New("qemu command line: no directory for the sockets")
	}
	if o.File == nil {
		o.File = func(in *Input) string { return in.Path }
	}
	in := func(value, name string) string {
		if value == "" {
			return filepath.Join(o.Dir, name)
		}
		return value
	}
	o.HashesPage = in(o.HashesPage, "hashes.bin")
	if o.ImageFile == nil {
		o.ImageFile = func(name string) string { return filepath.Join(o.Dir, name) }
	}
	o.TPM = in(o.TPM, "tpm.sock")
	if o.Monitor == "" {
		o.Monitor = "socket,server=on,wait=off,path=" + commas(in("", "monitor.sock"))
	}
	if o.Console == "" {
		o.Console = "file,path=" + commas(in("", "console.log"))
	}
	if o.SVSM == "" {
		o.SVSM = "socket,path=" + commas(in("", "svsm.sock"))
	}
	b := &qemuBuilder{plan: p, spec: p.Spec, o: o}
	b.machine()
	b.boot()
	b.control()
	b.devices()
	if b.err != nil {
		return nil, fmt.Errorf("qemu command line: %w", b.err)
	}
	return &QEMUCommand{Binary: p.Spec.QEMU.Binary, Args: b.args}, nil
}

// qemuBuilder gathers arguments.
type qemuBuilder struct {
	plan *Plan
	spec *Spec
	o    QEMUOptions
	args []string
	err  error
}

func (b *qemuBuilder) add(args ...string) { b.args = append(b.args, args...) }

// object adds an option whose value is JSON: nothing in it can be taken for
// another property.
func (b *qemuBuilder) json(option string, v any) {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		b.err = errors.Join(b.err, err)
		return
	}
	b.add(option, strings.TrimSuffix(buf.String(), "\n"))
}

// commas doubles commas, as QEMU's key=value syntax wants them in a value.
func commas(s string) string { return strings.ReplaceAll(s, ",", ",,") }

// machine adds what the board, the processors and the memory are.
func (b *qemuBuilder) machine() {
	s := b.spec
	machine := s.QEMU.Machine + ",smm=off,dump-guest-core=off,accel=" + s.QEMU.Accel
	backend := s.Platform == PlatformSNP || s.Hugepages != ""
	if backend {
		machine += ",memory-backend=ram0"
	}
	if s.Platform == PlatformSNP {
		machine += ",confidential-guest-support=sev0"
		if s.SVSM != nil {
			machine += ",igvm-cfg=igvm0"
			if s.SVSM.DevicePlane {
				// COCONUT's QEMU alone has these.
				machine += ",kernel-irqchip=split,device-plane=2,x-svsm-virtio-mmio=on"
			}
		}
	}
	b.add("-name", "guest="+b.plan.Name)
	b.add("-machine", machine)
	b.add("-cpu", s.CPU.Model)
	b.add("-smp", strconv.Itoa(s.CPU.Count))
	b.add("-m", s.Memory.String())
	b.add("-no-user-config", "-nodefaults", "-display", "none")
	// A reset makes another vTPM: what was attested would be gone.
	b.add("-no-reboot")
	if !b.o.NoSandbox {
		b.add("-sandbox", b.sandbox())
	}
	b.add("-S")
	if backend {
		b.json("-object", memoryBackend(s))
	}
	if s.Platform == PlatformSNP {
		b.json("-object", b.sevGuest())
	}
}

func (b *qemuBuilder) sandbox() string {
	for _, n := range b.spec.Networks {
		if n.Type == NetworkBridge {
			return sandboxHelper
		}
	}
	return sandbox
}

// memfdObject is QEMU's memory-backend-memfd.
type memfdObject struct {
	QOMType     string `json:"qom-type"`
	ID          string `json:"id"`
	Size        uint64 `json:"size"`
	Share       bool   `json:"share"`
	Prealloc    bool   `json:"prealloc"`
	HugeTLB     bool   `json:"hugetlb,omitempty"`
	HugeTLBSize uint64 `json:"hugetlbsize,omitempty"`
}

func memoryBackend(s *Spec) memfdObject {
	m := memfdObject{QOMType: "memory-backend-memfd", ID: "ram0", Size: uint64(s.Memory), Share: true}
	switch s.Hugepages {
	case "2M":
		m.HugeTLB, m.HugeTLBSize = true, 2<<20
	case "1G":
		m.HugeTLB, m.HugeTLBSize = true, 1<<30
	}
	return m
}

// sevObject is QEMU's sev-snp-guest (qapi/qom.json, SevSnpGuestProperties).
type sevObject struct {
	QOMType         string `json:"qom-type"`
	ID              string `json:"id"`
	CBitPos         int    `json:"cbitpos"`
	ReducedPhysBits int    `json:"reduced-phys-bits"`
	Policy          uint64 `json:"policy"`
	KernelHashes    bool   `json:"kernel-hashes,omitempty"`
	HostData        []byte `json:"host-data,omitempty"`
	IDBlock         []byte `json:"id-block,omitempty"`
	IDAuth          []byte `json:"id-auth,omitempty"`
	AuthorKey       bool   `json:"author-key-enabled,omitempty"`
}

func (b *qemuBuilder) sevGuest() sevObject {
	return sevObject{
		QOMType: "sev-snp-guest", ID: "sev0",
		CBitPos: sevCBitPos, ReducedPhysBits: sevReducedPhysBits,
		Policy:       uint64(b.spec.Policy),
		KernelHashes: b.plan.Hashes != nil,
		HostData:     b.spec.HostData,
		IDBlock:      b.plan.IDBlock,
		IDAuth:       b.plan.IDAuth,
		AuthorKey:    b.plan.AuthorKey,
	}
}

// igvmObject is QEMU's igvm-cfg.
type igvmObject struct {
	QOMType string `json:"qom-type"`
	ID      string `json:"id"`
	File    string `json:"file"`
}

// boot adds what is loaded.
func (b *qemuBuilder) boot() {
	p := b.plan
	if p.Firmware != nil {
		// Never pflash: its variable store is the host's, and not measured.
		b.add("-bios", b.o.File(p.Firmware))
	}
	if bios, args := p.loaderArgs(b.o.ImageFile); bios != "" {
		b.add("-bios", bios)
		b.add(args...)
	}
	if p.SVSM != nil && b.spec.Platform == PlatformSNP {
		b.json("-object", igvmObject{QOMType: "igvm-cfg", ID: "igvm0", File: b.o.File(p.SVSM)})
	}
	if p.Kernel != nil {
		b.add("-kernel", b.o.File(p.Kernel))
		if p.Initrd != nil {
			b.add("-initrd", b.o.File(p.Initrd))
		}
		b.add("-append", b.spec.Cmdline)
	}
	gpa, page, err := p.HashesPage()
	if err != nil {
		b.err = errors.Join(b.err, err)
	}
	if page != nil {
		b.add("-device", fmt.Sprintf("loader,file=%s,addr=%#x,force-raw=on", commas(b.o.HashesPage), gpa))
	}
}

// control adds the monitors, the console, and the ports of agent and SVSM.
func (b *qemuBuilder) control() {
	s, o := b.spec, b.o
	b.add("-chardev", "socket,id=monitor"+backend(o.Monitor))
	b.add("-mon", "chardev=monitor,mode=control")
	b.add("-chardev", "socket,id=qmp,server=on,wait=off,path="+commas(filepath.Join(o.Dir, "qmp.sock")))
	b.add("-mon", "chardev=qmp,mode=control")
	if s.Console == ConsoleLog {
		kind, rest, _ := strings.Cut(o.Console, ",")
		b.add("-chardev", kind+",id=console,"+rest)
		b.add("-serial", "chardev:console")
	}
	serial := s.Agent.Transport == TransportVirtioSerial
	if serial || s.Platform == PlatformSim {
		b.add("-device", "virtio-serial-pci,id=serial0,max_ports=4")
	}
	if serial {
		b.add("-chardev", "socket,id=agent,path="+commas(filepath.Join(o.Dir, "agent.sock"))+",server=on,wait=off")
		b.add("-device", "virtserialport,bus=serial0.0,nr=1,chardev=agent,name="+portAgent)
	}
	if s.Platform == PlatformSim {
		b.add("-chardev", "socket,id=svsm"+backend(o.SVSM))
		b.add("-device", "virtserialport,bus=serial0.0,nr=2,chardev=svsm,name="+portSVSM)
		b.add("-chardev", "socket,id=tpm,path="+commas(o.TPM))
		b.add("-tpmdev", "emulator,id=tpm0,chardev=tpm")
		b.add("-device", "tpm-crb,tpmdev=tpm0")
	}
	if s.Vsock != nil {
		b.add("-device", fmt.Sprintf("vhost-vsock-pci,guest-cid=%d", s.Vsock.CID))
	}
}

// Names of virtio-serial ports.
const (
	portAgent = "org.evtpm.agent.0" // verifier and agent
	portSVSM  = "org.evtpm.svsm.0"  // agent and simulated SVSM
)

// backend returns a chardev back end without its kind, "socket".
func backend(s string) string { return strings.TrimPrefix(s, "socket") }

// blockNode is a node of -blockdev.
type blockNode struct {
	Driver   string     `json:"driver"`
	NodeName string     `json:"node-name,omitempty"`
	ReadOnly bool       `json:"read-only"`
	Discard  string     `json:"discard,omitempty"`
	Filename string     `json:"filename,omitempty"`
	File     *blockNode `json:"file,omitempty"`
}

// devices adds disks, network cards and the random number generator.
func (b *qemuBuilder) devices() {
	for i, d := range b.spec.Disks {
		id := fmt.Sprintf("disk%d", i)
		discard := "ignore"
		if d.Discard {
			discard = "unmap"
		}
		b.json("-blockdev", blockNode{
			Driver: d.Format, NodeName: id, ReadOnly: d.ReadOnly, Discard: discard,
			File: &blockNode{Driver: "file", Filename: d.Path, ReadOnly: d.ReadOnly, Discard: discard},
		})
		b.add("-device", fmt.Sprintf("virtio-blk-pci,drive=%s", id))
	}
	for i, n := range b.spec.Networks {
		id := fmt.Sprintf("net%d", i)
		netdev := n.Type + ",id=" + id
		switch n.Type {
		case NetworkUser:
			for _, f := range n.Forwards {
				netdev += fmt.Sprintf(",hostfwd=%s:127.0.0.1:%d-:%d", f.Protocol, f.HostPort, f.GuestPort)
			}
		case NetworkBridge:
			netdev += ",br=" + commas(n.Bridge)
		case NetworkTap:
			netdev += ",ifname=" + commas(n.Device) + ",script=no,downscript=no"
		}
		b.add("-netdev", netdev)
		// Without the option ROM, which would be code from the host.
		device := "virtio-net-pci,netdev=" + id + ",romfile="
		if n.MAC != "" {
			device += ",mac=" + n.MAC
		}
		b.add("-device", device)
	}
	if b.spec.RNG {
		b.add("-device", "virtio-rng-pci")
	}
}

// String returns the command for a POSIX shell: an option and its value a line,
// quoted where needed.
func (c *QEMUCommand) String() string {
	var b strings.Builder
	b.WriteString(shellQuote(c.Binary))
	for _, a := range c.Args {
		if strings.HasPrefix(a, "-") && isOption(a) {
			b.WriteString(" \\\n  ")
		} else {
			b.WriteByte(' ')
		}
		b.WriteString(shellQuote(a))
	}
	return b.String()
}

// isOption tells an option from a value that begins with a hyphen.
func isOption(a string) bool {
	for _, c := range a[1:] {
		if !('a' <= c && c <= 'z' || c == '-' || c == 'S') {
			return false
		}
	}
	return len(a) > 1
}

// shellQuote quotes a word for a POSIX shell.
func shellQuote(s string) string {
	safe := s != ""
	for _, c := range s {
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.ContainsRune("-_./:=,+@%", c)) {
			safe = false
		}
	}
	if safe {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
