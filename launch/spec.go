package launch

import "github.com/evtpm/evtpm/measure"

// SpecVersion is the version of the spec format that this package reads.
const SpecVersion = 1

// Values of a spec's fields.
const (
	PlatformSNP = "snp" // SEV-SNP hardware
	PlatformSim = "sim" // any machine; the AMD-SP and the SVSM are simulated

	BackendQEMU    = "qemu"
	BackendLibvirt = "libvirt"

	AccelKVM = "kvm"
	AccelTCG = "tcg"

	On  = "on"
	Off = "off"

	// Host profiles: which VMSAs the host's KVM measures, and where.
	ProfileKVM       = "kvm"        // upstream KVM: one for each vCPU, made by KVM, at the end
	ProfileKVMBSP    = "kvm-bsp"    // the boot vCPU's alone, at 0xFFFFFFFFF000
	ProfileKVMDirect = "kvm-direct" // the boot vCPU's alone, as the image gives it, at its own address

	NetworkUser   = "user"
	NetworkBridge = "bridge"
	NetworkTap    = "tap"

	DiskQCOW2 = "qcow2"
	DiskRaw   = "raw"

	ConsoleLog  = "log"
	ConsoleNone = "none"

	TransportVirtioSerial = "virtio-serial"
	TransportVsock        = "vsock"
	TransportTCP          = "tcp"

	OnResetStop    = "stop"
	OnResetRestart = "restart"

	ChipHost = "host"
	ChipAny  = "any"

	OnRefusedStop = "stop"
	OnRefusedKeep = "keep"
)

// A Spec says what VM is to be launched: the user's YAML. The same struct tags
// drive the reader, the checks and the JSON Schema: json names the field, doc
// describes it, default is what an absent one means, and enum, min, max, pattern
// (in words: want), size, kind and required are its rules.
//
// [LoadSpec] reads, [Spec.FillDefaults] fills in, [Spec.Validate] judges; none
// does another's work.
type Spec struct {
	Version  int    `json:"version" required:"true" min:"1" max:"1" doc:"Version of this format: 1."`
	Name     string `json:"name" required:"true" pattern:"^[a-z0-9][a-z0-9-]{0,62}$" want:"lower-case letters, digits and hyphens, at most 63, no hyphen first" doc:"Name of the machine: lower-case letters, digits and hyphens, at most 63."`
	Platform string `json:"platform" required:"true" enum:"snp,sim" doc:"snp: SEV-SNP hardware. sim: any machine; the AMD-SP and the SVSM are simulated, and nothing is confidential."`

	Backend string  `json:"backend,omitempty" enum:"qemu,libvirt" default:"qemu" doc:"What starts the VM."`
	QEMU    QEMU    `json:"qemu,omitzero" doc:"The QEMU to start."`
	Libvirt Libvirt `json:"libvirt,omitzero" doc:"The libvirt to ask, for backend libvirt."`

	Firmware     Firmware `json:"firmware,omitzero" doc:"The OVMF image. Not given when svsm.image holds the firmware."`
	SVSM         *SVSM    `json:"svsm,omitempty" doc:"The SVSM image. On platform sim its firmware alone runs, and all of it is measured: what is simulated is the SVSM."`
	Kernel       string   `json:"kernel,omitempty" kind:"path" doc:"Kernel for a direct boot."`
	Initrd       string   `json:"initrd,omitempty" kind:"path" doc:"Initial RAM disk of the direct boot."`
	Cmdline      string   `json:"cmdline,omitempty" max:"2047" doc:"Kernel command line of the direct boot: one line, measured as it stands. Linux on x86 drops silently what is beyond 2047 bytes."`
	KernelHashes string   `json:"kernel_hashes,omitempty" enum:"on,off" doc:"Measure kernel, initrd and command line into the launch digest. Default: on with a kernel, off without. Needs a firmware that checks them: an AmdSev build of OVMF."`

	CPU         CPU    `json:"cpu,omitzero" doc:"The vCPUs."`
	Memory      Size   `json:"memory,omitempty" kind:"size" default:"512M" doc:"Memory of the VM, such as 512M or 2G."`
	Hugepages   string `json:"hugepages,omitempty" enum:"2M,1G" doc:"Back the memory with huge pages of this size. Absent: ordinary pages."`
	HostProfile string `json:"host_profile,omitempty" enum:"kvm,kvm-bsp,kvm-direct" doc:"How the host's KVM measures vCPUs: part of the launch digest. Default: kvm; with svsm.image the profile that the image was made for."`

	Policy   Policy           `json:"policy,omitzero" kind:"policy" doc:"Guest policy: a number such as 0x30000, or named bits. Default 0x30000: SMT allowed, no debugging, no migration."`
	HostData measure.HexBytes `json:"host_data,omitempty" kind:"bytes" size:"32" doc:"HOST_DATA of the report: 32 bytes in hex or base64. Absent: zeros."`
	IDBlock  *IDBlock         `json:"id_block,omitempty" doc:"ID block: the AMD-SP refuses to start anything else than the launch it names."`

	VTPM VTPM `json:"vtpm,omitzero" doc:"How the vTPM is attested."`
	Sim  *Sim `json:"sim,omitempty" doc:"What platform sim simulates."`

	Disks    []Disk    `json:"disks,omitempty" doc:"Disks, in the order the guest sees them."`
	Networks []Network `json:"networks,omitempty" doc:"Network cards. Absent: none."`
	Vsock    *Vsock    `json:"vsock,omitempty" doc:"A vsock device."`
	Console  string    `json:"console,omitempty" enum:"log,none" default:"log" doc:"log: a serial port whose output is kept in the run directory."`
	RNG      bool      `json:"rng,omitempty" doc:"Add a virtio-rng device."`
	OnReset  string    `json:"on_reset,omitempty" enum:"stop,restart" default:"stop" doc:"What follows when the guest reboots, which ends its vTPM. stop: the machine ends. restart: it is started anew from the same files, with another vTPM, and is not attested until it has been attested anew."`

	Agent       Agent       `json:"agent,omitzero" doc:"How the agent in the guest is reached."`
	Attestation Attestation `json:"attestation,omitzero" doc:"What is asked of the evidence, and what follows."`
	Timeouts    Timeouts    `json:"timeouts,omitzero" doc:"How long each phase may take, such as 90s or 2m."`

	src *source // where the fields stand; nil for a spec made in code
}

// QEMU names the binary and the machine.
type QEMU struct {
	Binary  string `json:"binary,omitempty" kind:"program" default:"qemu-system-x86_64" doc:"The program: a name that is looked up in PATH, or a path."`
	Accel   string `json:"accel,omitempty" enum:"kvm,tcg" doc:"Accelerator. Default: kvm on platform snp; tcg on platform sim, which works everywhere."`
	Machine string `json:"machine,omitempty" pattern:"^(pc-)?q35(-[0-9]+\\.[0-9]+)?$" want:"q35, or a version of it such as pc-q35-10.0" default:"q35" doc:"Machine type: q35 or a version of it, such as pc-q35-10.0. Part of what PCR 1 measures."`
}

// Libvirt names a libvirt daemon.
type Libvirt struct {
	URI string `json:"uri,omitempty" doc:"Connection URI. Default: qemu:///session on platform sim, qemu:///system on platform snp."`
}

// Firmware is an OVMF image.
type Firmware struct {
	Path string `json:"path,omitempty" kind:"path" doc:"The image, loaded with -bios."`
}

// SVSM is an image that holds an SVSM and its firmware.
type SVSM struct {
	Image       string `json:"image,omitempty" kind:"path" required:"true" doc:"IGVM file."`
	DevicePlane bool   `json:"device_plane,omitempty" doc:"Give the SVSM its devices in a plane of its own: machine options that only COCONUT's QEMU has."`
}

// CPU describes the vCPUs.
type CPU struct {
	Model         string `json:"model,omitempty" pattern:"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$" want:"a CPU model's name without options" default:"EPYC-v4" doc:"QEMU's name of the CPU model. Its signature is measured."`
	Count         int    `json:"count,omitempty" min:"1" max:"512" default:"1" doc:"Number of vCPUs."`
	Signature     uint32 `json:"signature,omitempty" max:"0xffffffff" doc:"CPUID 1.EAX that the model shows, for a model of which it is not known, such as host."`
	GuestFeatures uint64 `json:"guest_features,omitempty" doc:"SEV_FEATURES as the host gives them. Default 0x1: SNPActive alone. 0x21 where KVM enables debug swap. Not with svsm.image, whose VMSA says it."`
}

// IDBlock is made from keys, or given ready made.
type IDBlock struct {
	IDKey     string           `json:"id_key,omitempty" kind:"path" doc:"P-384 private key, PEM, that signs the block."`
	AuthorKey string           `json:"author_key,omitempty" kind:"path" doc:"P-384 private key, PEM, that signs the ID key."`
	FamilyID  measure.HexBytes `json:"family_id,omitempty" kind:"bytes" size:"16" doc:"FAMILY_ID: 16 bytes in hex or base64. Absent: zeros."`
	ImageID   measure.HexBytes `json:"image_id,omitempty" kind:"bytes" size:"16" doc:"IMAGE_ID: 16 bytes in hex or base64. Absent: zeros."`
	SVN       uint32           `json:"svn,omitempty" max:"0xffffffff" doc:"GUEST_SVN."`
	Block     string           `json:"block,omitempty" kind:"path" doc:"A ready-made ID block: 96 bytes, raw or base64. Excludes the fields above."`
	Auth      string           `json:"auth,omitempty" kind:"path" doc:"The ID authentication information of block: 4096 bytes, raw or base64."`
}

// VTPM says how the vTPM is bound to the report.
type VTPM struct {
	Binding string `json:"binding,omitempty" enum:"svsm,svsm-services,nv" default:"svsm" doc:"svsm: the SVSM's attestation of the vTPM service, with the verifier's nonce. svsm-services: of all services. nv: the report in NV index 0x01C00002."`
	PCRBank string `json:"pcr_bank,omitempty" enum:"sha256,sha384" default:"sha256" doc:"Bank that is quoted."`
}

// Sim says what the simulated AMD-SP is.
type Sim struct {
	Product       string `json:"product,omitempty" enum:"Milan,Genoa,Turin" default:"Genoa" doc:"Processor whose certificates and TCB layout are simulated."`
	ReportVersion int    `json:"report_version,omitempty" enum:"3,5" min:"3" max:"5" default:"5" doc:"Version of the reports."`
	Machine       string `json:"machine,omitempty" pattern:"^[a-z0-9-]{1,32}$" want:"lower-case letters, digits and hyphens, at most 32" doc:"Name of the simulated machine: another name is another chip under the same root. Absent: this machine's."`
}

// Disk is a virtio disk.
type Disk struct {
	Path     string `json:"path,omitempty" kind:"path" required:"true" doc:"The image."`
	Format   string `json:"format,omitempty" enum:"qcow2,raw" required:"true" doc:"Format of the image. Never guessed: a guest could write a header that changes the guess."`
	ReadOnly bool   `json:"readonly,omitempty" doc:"The guest cannot write."`
	Discard  bool   `json:"discard,omitempty" doc:"Pass discard requests on to the image."`
}

// Network is a virtio network card.
type Network struct {
	Type     string    `json:"type,omitempty" enum:"user,bridge,tap" required:"true" doc:"user: QEMU's own network, no rights needed. bridge: a bridge of the host. tap: an existing tap device."`
	Bridge   string    `json:"bridge,omitempty" kind:"interface" doc:"The bridge, for type bridge."`
	Device   string    `json:"device,omitempty" kind:"interface" doc:"The tap device, for type tap."`
	MAC      string    `json:"mac,omitempty" pattern:"^[0-9a-f][02468ace](:[0-9a-f]{2}){5}$" want:"a unicast MAC address in lower case, such as 52:54:00:12:34:56" doc:"MAC address. Default: one that follows from the machine's name and the card's place in the list."`
	Forwards []Forward `json:"forwards,omitempty" doc:"Ports of the host that lead into the guest, for type user."`
}

// Forward leads a port of the host's loopback interface into the guest.
type Forward struct {
	Protocol  string `json:"protocol,omitempty" enum:"tcp,udp" default:"tcp" doc:"Protocol."`
	HostPort  int    `json:"host_port,omitempty" min:"1" max:"65535" required:"true" doc:"Port on 127.0.0.1 of the host."`
	GuestPort int    `json:"guest_port,omitempty" min:"1" max:"65535" required:"true" doc:"Port of the guest."`
}

// Vsock is a vhost-vsock device.
type Vsock struct {
	CID uint32 `json:"cid,omitempty" min:"3" max:"0xfffffffe" required:"true" doc:"Context identifier of the guest, unique on the host."`
}

// Agent says how the agent is reached.
type Agent struct {
	Transport string `json:"transport,omitempty" enum:"virtio-serial,vsock,tcp" default:"virtio-serial" doc:"virtio-serial needs nothing in the guest but its driver; vsock needs vsock; tcp a network."`
	Address   string `json:"address,omitempty" doc:"HOST:PORT to dial, for transport tcp."`
	Port      uint32 `json:"port,omitempty" min:"1" max:"0xfffffffe" default:"7600" doc:"Port in the guest, for transport vsock."`
}

// Attestation says what is asked of the evidence.
type Attestation struct {
	Policy    string `json:"policy,omitempty" kind:"path" doc:"Verification policy file. Absent: the default policy."`
	PCRs      []int  `json:"pcrs,omitempty" min:"0" max:"23" doc:"PCRs that are quoted: with a kernel 4 and 9 at least, with a unified kernel image 12 too. Absent: all 24."`
	Bundle    string `json:"bundle,omitempty" kind:"path" doc:"Certificates and CRLs, PEM (evtpm certs bundle). They complete the chain and are not trusted by standing there."`
	Fetch     bool   `json:"fetch,omitempty" doc:"Fetch missing certificates and a current CRL from AMD, through the cache. Platform snp only."`
	Chip      string `json:"chip,omitempty" enum:"host,any" doc:"host: the report must name the chip of this host. any: the policy alone says which. Absent: host, or any when libvirt.uri leads to another machine. A report that is signed by a VLEK names no chip: say any there."`
	OnRefused string `json:"on_refused,omitempty" enum:"stop,keep" default:"stop" doc:"What becomes of a VM whose first attestation is refused."`
}

// Timeouts bound the phases of a launch.
type Timeouts struct {
	Start  Duration `json:"start,omitempty" kind:"duration" default:"30s" doc:"Until QEMU is ready to run. Absent with backend libvirt: 2m, since libvirt examines a QEMU that it has not seen before."`
	Boot   Duration `json:"boot,omitempty" kind:"duration" default:"2m" doc:"From the first instruction to the agent's first word."`
	Attest Duration `json:"attest,omitempty" kind:"duration" default:"30s" doc:"From the challenge to the verdict."`
	Stop   Duration `json:"stop,omitempty" kind:"duration" default:"10s" doc:"For the guest to shut down before it is killed."`
}
