package launch

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
)

// LibvirtOptions say where a domain finds what a plan does not hold.
type LibvirtOptions struct {
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
	// TPM is the control socket of the vTPM, and SVSM the socket of the simulated
	// SVSM's port, for platform sim. Empty: tpm.sock and svsm.sock in Dir.
	TPM, SVSM string
	// Console is the socket that the console is connected to, or "pty" for a
	// terminal of libvirt's, which virsh console shows. Empty: it goes to the file
	// console.log in Dir.
	Console string
	// UUID of the domain. Empty: libvirt makes one.
	UUID string
	// User is who QEMU runs as, "+1000:+1000", with files and sockets left as they
	// are. Empty: as libvirt is configured.
	User string
}

// LibvirtDomain returns the XML of a libvirt domain that is the same VM as
// [Plan.QEMUCommand]'s: for libvirt 10.5 or later, which knows SEV-SNP. What
// libvirt has no element for goes through its passage for QEMU arguments.
func (p *Plan) LibvirtDomain(o LibvirtOptions) ([]byte, error) {
	d, err := p.libvirtDomain(o)
	if err != nil {
		return nil, fmt.Errorf("libvirt domain: %w", err)
	}
	data, err := xml.MarshalIndent(d, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("libvirt domain: %w", err)
	}
	return append(data, '\n'), nil
}

const libvirtQEMUNamespace = "http://libvirt.org/schemas/domain/qemu/1.0"

// A domain is libvirt's description of a VM
// (https://libvirt.org/formatdomain.html): the elements that we use.
type domain struct {
	XMLName       xml.Name           `xml:"domain"`
	Type          string             `xml:"type,attr"`
	QEMUNamespace string             `xml:"xmlns:qemu,attr,omitempty"`
	Name          string             `xml:"name"`
	UUID          string             `xml:"uuid,omitempty"`
	Memory        domainSize         `xml:"memory"`
	Backing       *domainBacking     `xml:"memoryBacking"`
	VCPU          int                `xml:"vcpu"`
	OS            domainOS           `xml:"os"`
	Features      domainFeatures     `xml:"features"`
	CPU           domainCPU          `xml:"cpu"`
	Clock         domainClock        `xml:"clock"`
	OnPoweroff    string             `xml:"on_poweroff"`
	OnReboot      string             `xml:"on_reboot"`
	OnCrash       string             `xml:"on_crash"`
	Devices       domainDevices      `xml:"devices"`
	Label         *domainLabel       `xml:"seclabel"`
	Security      *domainSecurity    `xml:"launchSecurity"`
	Commandline   *domainCommandline `xml:"qemu:commandline"`
}

type domainSize struct {
	Unit  string `xml:"unit,attr"`
	Value uint64 `xml:",chardata"`
}

type domainBacking struct {
	Hugepage *domainPage  `xml:"hugepages>page"`
	Source   domainTyped  `xml:"source"`
	Access   domainAccess `xml:"access"`
}

type domainPage struct {
	Size uint64 `xml:"size,attr"`
	Unit string `xml:"unit,attr"`
}

type domainTyped struct {
	Type string `xml:"type,attr"`
}

type domainAccess struct {
	Mode string `xml:"mode,attr"`
}

type domainOS struct {
	Type    domainOSType  `xml:"type"`
	Loader  *domainLoader `xml:"loader"`
	Kernel  string        `xml:"kernel,omitempty"`
	Initrd  string        `xml:"initrd,omitempty"`
	Cmdline string        `xml:"cmdline,omitempty"`
}

type domainOSType struct {
	Arch    string `xml:"arch,attr"`
	Machine string `xml:"machine,attr"`
	Value   string `xml:",chardata"`
}

// domainLoader of type rom becomes -bios. A pflash would bring a variable store
// that the host can write and nobody measures.
type domainLoader struct {
	ReadOnly  string `xml:"readonly,attr"`
	Type      string `xml:"type,attr"`
	Stateless string `xml:"stateless,attr"`
	Path      string `xml:",chardata"`
}

type domainFeatures struct {
	ACPI domainPresent `xml:"acpi"`
	APIC domainPresent `xml:"apic"`
	SMM  domainState   `xml:"smm"`
}

// domainPresent is an element that means something by being there.
type domainPresent struct{}

type domainState struct {
	State string `xml:"state,attr"`
}

type domainCPU struct {
	Mode  string         `xml:"mode,attr"`
	Match string         `xml:"match,attr,omitempty"`
	Check string         `xml:"check,attr,omitempty"`
	Model *domainCPUName `xml:"model"`
}

type domainCPUName struct {
	Fallback string `xml:"fallback,attr"`
	Value    string `xml:",chardata"`
}

type domainClock struct {
	Offset string `xml:"offset,attr"`
}

type domainDevices struct {
	Emulator    string             `xml:"emulator,omitempty"`
	Disks       []domainDisk       `xml:"disk"`
	Controllers []domainController `xml:"controller"`
	Interfaces  []domainInterface  `xml:"interface"`
	Serials     []domainSerial     `xml:"serial"`
	Channels    []domainChannel    `xml:"channel"`
	TPM         *domainTPM         `xml:"tpm"`
	Audio       domainAudio        `xml:"audio"`
	Video       domainVideo        `xml:"video"`
	Balloon     domainModel        `xml:"memballoon"`
	RNG         *domainRNG         `xml:"rng"`
	Vsock       *domainVsock       `xml:"vsock"`
}

type domainDisk struct {
	Type     string           `xml:"type,attr"`
	Device   string           `xml:"device,attr"`
	Driver   domainDiskDriver `xml:"driver"`
	Source   domainDiskSource `xml:"source"`
	Target   domainTarget     `xml:"target"`
	ReadOnly *domainPresent   `xml:"readonly"`
}

type domainDiskDriver struct {
	Name    string `xml:"name,attr"`
	Type    string `xml:"type,attr"`
	Discard string `xml:"discard,attr"`
}

type domainDiskSource struct {
	File string `xml:"file,attr"`
}

// domainTarget is how the guest sees a device; each kind has its own attributes.
type domainTarget struct {
	Type    string `xml:"type,attr,omitempty"`
	Name    string `xml:"name,attr,omitempty"`
	Dev     string `xml:"dev,attr,omitempty"`
	Bus     string `xml:"bus,attr,omitempty"`
	Port    string `xml:"port,attr,omitempty"`
	Managed string `xml:"managed,attr,omitempty"`
}

type domainController struct {
	Type  string `xml:"type,attr"`
	Index string `xml:"index,attr,omitempty"`
	Model string `xml:"model,attr,omitempty"`
	Ports string `xml:"ports,attr,omitempty"`
}

type domainInterface struct {
	Type     string              `xml:"type,attr"`
	MAC      *domainMAC          `xml:"mac"`
	Source   *domainBridge       `xml:"source"`
	Target   *domainTarget       `xml:"target"`
	Forwards []domainPortForward `xml:"portForward"`
	Model    domainTyped         `xml:"model"`
	Backend  *domainTyped        `xml:"backend"`
	ROM      domainROM           `xml:"rom"`
}

type domainMAC struct {
	Address string `xml:"address,attr"`
}

type domainBridge struct {
	Bridge string `xml:"bridge,attr"`
}

type domainPortForward struct {
	Proto   string          `xml:"proto,attr"`
	Address string          `xml:"address,attr"`
	Range   domainPortRange `xml:"range"`
}

type domainPortRange struct {
	Start int `xml:"start,attr"`
	To    int `xml:"to,attr"`
}

// domainROM without a file keeps code of the host out of the guest.
type domainROM struct {
	Enabled string `xml:"enabled,attr"`
}

type domainSerial struct {
	Type   string              `xml:"type,attr"`
	Source *domainSocketSource `xml:"source"`
	Target domainTarget        `xml:"target"`
}

type domainChannel struct {
	Type   string             `xml:"type,attr"`
	Source domainSocketSource `xml:"source"`
	Target domainTarget       `xml:"target"`
	// Address fixes the port's number, which is part of the guest's view.
	Address domainPortAddress `xml:"address"`
}

type domainSocketSource struct {
	Type string `xml:"type,attr,omitempty"`
	Mode string `xml:"mode,attr,omitempty"`
	Path string `xml:"path,attr"`
}

type domainPortAddress struct {
	Type       string `xml:"type,attr"`
	Controller string `xml:"controller,attr"`
	Bus        string `xml:"bus,attr"`
	Port       string `xml:"port,attr"`
}

type domainTPM struct {
	Model   string           `xml:"model,attr"`
	Backend domainTPMBackend `xml:"backend"`
}

type domainTPMBackend struct {
	Type   string             `xml:"type,attr"`
	Source domainSocketSource `xml:"source"`
}

type domainAudio struct {
	ID   int    `xml:"id,attr"`
	Type string `xml:"type,attr"`
}

type domainVideo struct {
	Model domainTyped `xml:"model"`
}

type domainModel struct {
	Model string `xml:"model,attr"`
}

type domainRNG struct {
	Model   string           `xml:"model,attr"`
	Backend domainRNGBackend `xml:"backend"`
}

type domainRNGBackend struct {
	Model string `xml:"model,attr"`
	Path  string `xml:",chardata"`
}

type domainVsock struct {
	Model string    `xml:"model,attr"`
	CID   domainCID `xml:"cid"`
}

type domainCID struct {
	Auto    string `xml:"auto,attr"`
	Address uint32 `xml:"address,attr"`
}

type domainSecurity struct {
	Type            string `xml:"type,attr"`
	KernelHashes    string `xml:"kernelHashes,attr,omitempty"`
	AuthorKey       string `xml:"authorKey,attr,omitempty"`
	CBitPos         int    `xml:"cbitpos"`
	ReducedPhysBits int    `xml:"reducedPhysBits"`
	Policy          string `xml:"policy"`
	IDBlock         string `xml:"idBlock,omitempty"`
	IDAuth          string `xml:"idAuth,omitempty"`
	HostData        string `xml:"hostData,omitempty"`
}

type domainLabel struct {
	Type    string `xml:"type,attr"`
	Model   string `xml:"model,attr"`
	Relabel string `xml:"relabel,attr"`
	Label   string `xml:"label"`
}

type domainCommandline struct {
	Args []domainArg `xml:"qemu:arg"`
}

type domainArg struct {
	Value string `xml:"value,attr"`
}

func (p *Plan) libvirtDomain(o LibvirtOptions) (*domain, error) {
	if o.Dir == "" {
		return nil, errors.New("no directory for the sockets")
	}
	if o.File == nil {
		o.File = func(in *Input) string { return in.Path }
	}
	for _, f := range []struct {
		value *string
		name  string
	}{{&o.HashesPage, "hashes.bin"}, {&o.TPM, "tpm.sock"}, {&o.SVSM, "svsm.sock"}} {
		if *f.value == "" {
			*f.value = filepath.Join(o.Dir, f.name)
		}
	}
	if o.ImageFile == nil {
		o.ImageFile = func(name string) string { return filepath.Join(o.Dir, name) }
	}
	s := p.Spec
	d := &domain{
		Type:       map[string]string{AccelKVM: "kvm", AccelTCG: "qemu"}[s.QEMU.Accel],
		Name:       p.Name,
		UUID:       o.UUID,
		Memory:     domainSize{Unit: "b", Value: uint64(s.Memory)},
		VCPU:       s.CPU.Count,
		OS:         domainOS{Type: domainOSType{Arch: "x86_64", Machine: s.QEMU.Machine, Value: "hvm"}},
		Features:   domainFeatures{SMM: domainState{State: "off"}},
		CPU:        domainCPU{Mode: "custom", Match: "exact", Check: "none", Model: &domainCPUName{Fallback: "forbid", Value: s.CPU.Model}},
		Clock:      domainClock{Offset: "utc"},
		OnPoweroff: "destroy",
		// A reset makes another vTPM: what was attested would be gone.
		OnReboot: "destroy",
		OnCrash:  "destroy",
	}
	if o.User != "" {
		d.Label = &domainLabel{Type: "static", Model: "dac", Relabel: "no", Label: o.User}
	}
	if s.CPU.Model == "host" {
		d.CPU = domainCPU{Mode: "host-passthrough", Check: "none"}
	}
	if err := p.libvirtBoot(d, o); err != nil {
		return nil, err
	}
	if err := p.libvirtDevices(d, o); err != nil {
		return nil, err
	}
	if d.Commandline != nil {
		d.QEMUNamespace = libvirtQEMUNamespace
	}
	return d, checkXMLText(reflect.ValueOf(d))
}

// arg adds arguments for QEMU that libvirt has no element for.
func (d *domain) arg(args ...string) {
	if d.Commandline == nil {
		d.Commandline = new(domainCommandline)
	}
	for _, a := range args {
		d.Commandline.Args = append(d.Commandline.Args, domainArg{Value: a})
	}
}

func yesNo(yes bool) string {
	if yes {
		return "yes"
	}
	return "no"
}

// libvirtBoot adds memory, firmware, kernel and what SEV-SNP is started with.
func (p *Plan) libvirtBoot(d *domain, o LibvirtOptions) error {
	s := p.Spec
	if s.Platform == PlatformSNP || s.Hugepages != "" {
		d.Backing = &domainBacking{Source: domainTyped{Type: "memfd"}, Access: domainAccess{Mode: "shared"}}
		if size, err := ParseSize(s.Hugepages); s.Hugepages != "" {
			if err != nil {
				return err
			}
			d.Backing.Hugepage = &domainPage{Size: uint64(size) >> 10, Unit: "KiB"}
		}
	}
	if p.Firmware != nil {
		d.OS.Loader = &domainLoader{ReadOnly: "yes", Type: "rom", Stateless: "yes", Path: o.File(p.Firmware)}
	}
	if bios, args := p.loaderArgs(o.ImageFile); bios != "" {
		d.OS.Loader = &domainLoader{ReadOnly: "yes", Type: "rom", Stateless: "yes", Path: bios}
		if len(args) > 0 {
			d.arg(args...)
		}
	}
	if p.Kernel != nil {
		d.OS.Kernel, d.OS.Cmdline = o.File(p.Kernel), s.Cmdline
		if p.Initrd != nil {
			d.OS.Initrd = o.File(p.Initrd)
		}
	}
	gpa, page, err := p.HashesPage()
	if err != nil {
		return err
	}
	if page != nil {
		d.arg("-device", fmt.Sprintf("loader,file=%s,addr=%#x,force-raw=on", commas(o.HashesPage), gpa))
	}
	if s.Platform != PlatformSNP {
		return nil
	}
	d.Security = &domainSecurity{
		Type:            "sev-snp",
		KernelHashes:    yesNo(p.Hashes != nil),
		AuthorKey:       yesNo(p.AuthorKey),
		CBitPos:         sevCBitPos,
		ReducedPhysBits: sevReducedPhysBits,
		Policy:          s.Policy.String(),
		IDBlock:         base64.StdEncoding.EncodeToString(p.IDBlock),
		IDAuth:          base64.StdEncoding.EncodeToString(p.IDAuth),
		HostData:        base64.StdEncoding.EncodeToString(s.HostData),
	}
	if p.SVSM != nil {
		// libvirt knows nothing of IGVM; QEMU merges a second -machine into the first.
		object, err := json.Marshal(igvmObject{QOMType: "igvm-cfg", ID: "igvm0", File: o.File(p.SVSM)})
		if err != nil {
			return err
		}
		machine := "igvm-cfg=igvm0"
		if s.SVSM.DevicePlane {
			machine += ",kernel-irqchip=split,device-plane=2,x-svsm-virtio-mmio=on"
		}
		d.arg("-object", string(object), "-machine", machine)
	}
	return nil
}

// libvirtDevices adds the devices, and takes away those that libvirt would add.
func (p *Plan) libvirtDevices(d *domain, o LibvirtOptions) error {
	s, dev := p.Spec, &d.Devices
	if filepath.IsAbs(s.QEMU.Binary) {
		// A bare name is libvirt's to find.
		dev.Emulator = s.QEMU.Binary
	}
	dev.Audio = domainAudio{ID: 1, Type: "none"}
	dev.Video.Model.Type = "none"
	dev.Balloon.Model = "none"
	dev.Controllers = []domainController{{Type: "usb", Model: "none"}}
	for i, disk := range s.Disks {
		out := domainDisk{
			Type: "file", Device: "disk",
			Driver: domainDiskDriver{Name: "qemu", Type: disk.Format, Discard: "ignore"},
			Source: domainDiskSource{File: disk.Path},
			Target: domainTarget{Dev: "vd" + string(rune('a'+i)), Bus: "virtio"},
		}
		if disk.Discard {
			out.Driver.Discard = "unmap"
		}
		if disk.ReadOnly {
			out.ReadOnly = new(domainPresent)
		}
		dev.Disks = append(dev.Disks, out)
	}
	for _, n := range s.Networks {
		dev.Interfaces = append(dev.Interfaces, libvirtInterface(n))
	}
	if s.Console == ConsoleLog {
		serial := domainSerial{Type: "file", Source: &domainSocketSource{Path: filepath.Join(o.Dir, "console.log")}, Target: domainTarget{Type: "isa-serial", Port: "0"}}
		switch o.Console {
		case "":
		case "pty":
			serial.Type, serial.Source = "pty", nil
		default:
			serial.Type, serial.Source = "unix", &domainSocketSource{Mode: "connect", Path: o.Console}
		}
		dev.Serials = []domainSerial{serial}
	}
	channel := func(name, port, mode, path string) {
		dev.Channels = append(dev.Channels, domainChannel{
			Type: "unix", Source: domainSocketSource{Mode: mode, Path: path}, Target: domainTarget{Type: "virtio", Name: name},
			Address: domainPortAddress{Type: "virtio-serial", Controller: "0", Bus: "0", Port: port},
		})
	}
	serial := s.Agent.Transport == TransportVirtioSerial
	switch socket := filepath.Join(o.Dir, "agent.sock"); {
	case serial && o.User != "":
		// libvirt would make this socket itself, as root, for root alone. In JSON, as
		// libvirt's own: QEMU makes other devices first, and there is no bus then.
		d.arg("-chardev", "socket,id=agent,server=on,wait=off,path="+commas(socket),
			"-device", `{"driver":"virtserialport","bus":"virtio-serial0.0","nr":1,"chardev":"agent","name":"`+portAgent+`"}`)
	case serial:
		channel(portAgent, "1", "bind", socket)
	}
	if s.Platform == PlatformSim {
		channel(portSVSM, "2", "connect", o.SVSM)
		dev.TPM = &domainTPM{Model: "tpm-crb", Backend: domainTPMBackend{Type: "external", Source: domainSocketSource{Type: "unix", Mode: "connect", Path: o.TPM}}}
	}
	if serial || dev.Channels != nil {
		dev.Controllers = append(dev.Controllers, domainController{Type: "virtio-serial", Index: "0", Ports: "4"})
	}
	if s.Vsock != nil {
		dev.Vsock = &domainVsock{Model: "virtio", CID: domainCID{Auto: "no", Address: s.Vsock.CID}}
	}
	if s.RNG {
		dev.RNG = &domainRNG{Model: "virtio", Backend: domainRNGBackend{Model: "random", Path: "/dev/urandom"}}
	}
	return nil
}

func libvirtInterface(n Network) domainInterface {
	out := domainInterface{Type: n.Type, Model: domainTyped{Type: "virtio"}, ROM: domainROM{Enabled: "no"}}
	if n.MAC != "" {
		out.MAC = &domainMAC{Address: n.MAC}
	}
	switch n.Type {
	case NetworkUser:
		if n.Forwards != nil {
			// libvirt forwards ports with passt alone.
			out.Backend = &domainTyped{Type: "passt"}
		}
		for _, f := range n.Forwards {
			out.Forwards = append(out.Forwards, domainPortForward{
				Proto: f.Protocol, Address: "127.0.0.1", Range: domainPortRange{Start: f.HostPort, To: f.GuestPort},
			})
		}
	case NetworkBridge:
		out.Source = &domainBridge{Bridge: n.Bridge}
	case NetworkTap:
		out.Type = "ethernet"
		out.Target = &domainTarget{Dev: n.Device, Managed: "no"}
	}
	return out
}

// checkXMLText refuses text that XML cannot hold: the encoder would put another
// character in its place, and the VM would be started with that.
func checkXMLText(v reflect.Value) error {
	switch v.Kind() {
	case reflect.Pointer:
		if v.IsNil() {
			return nil
		}
		return checkXMLText(v.Elem())
	case reflect.Struct:
		for i := range v.NumField() {
			if err := checkXMLText(v.Field(i)); err != nil {
				return err
			}
		}
	case reflect.Slice:
		for i := range v.Len() {
			if err := checkXMLText(v.Index(i)); err != nil {
				return err
			}
		}
	case reflect.String:
		var escaped bytes.Buffer
		if err := xml.EscapeText(&escaped, []byte(v.String())); err != nil {
			return err
		}
		if strings.Count(escaped.String(), "\ufffd") != strings.Count(v.String(), "\ufffd") {
			return fmt.Errorf("found %s, expected characters that XML can hold", strconv.Quote(clip(v.String())))
		}
	}
	return nil
}
