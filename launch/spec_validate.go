package launch

import (
	"fmt"
	"net"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/evtpm/evtpm/launch/libvirtd"
	"github.com/evtpm/evtpm/measure"
)

// Bounds that are not in the tags.
const (
	minMemory   = 128 << 20 // OVMF does not start in less
	maxMemory   = 8 << 40
	maxDuration = 24 * time.Hour
	maxPath     = 4095
	maxDevices  = 16 // of one kind: PCI slots are few
)

// Validate judges a spec whose defaults are filled in: every field for itself,
// then those that depend on each other. It opens no file. All problems are
// reported at once, each a [*FieldError].
func (s *Spec) Validate() error {
	p := &problems{src: s.src}
	s.each(func(f field, v reflect.Value, path string) { p.field(f, v, path) })
	// A field that is wrong by itself is not also reported for what follows.
	p.once = true
	s.checkPlatform(p)
	s.checkBoot(p)
	s.checkCPU(p)
	s.checkMemory(p)
	s.checkIDBlock(p)
	s.checkDevices(p)
	s.checkAgent(p)
	s.checkAttestation(p)
	return p.err()
}

// field checks one field against its tags.
func (p *problems) field(f field, v reflect.Value, path string) {
	if v.IsZero() && !p.src.has(path) {
		if f.tag.Get("required") == "true" {
			p.add(path, "missing%s", expectation(f))
			return
		}
		if f.tag.Get("default") == "" {
			return
		}
	}
	if v.Kind() == reflect.Slice && v.Type() != reflect.TypeFor[measure.HexBytes]() {
		if v.Len() == 0 {
			p.add(path, "found an empty list, expected at least one value")
		}
		for i := range v.Len() {
			p.value(f, v.Index(i), fmt.Sprintf("%s[%d]", path, i))
		}
		return
	}
	p.value(f, v, path)
}

// value checks one scalar against its field's tags.
func (p *problems) value(f field, v reflect.Value, path string) {
	switch x := v.Interface().(type) {
	case Size:
		if x < minMemory || x > maxMemory {
			p.add(path, "found %s, expected %s to %s", x, Size(minMemory), Size(maxMemory))
		}
		return
	case Duration:
		if x <= 0 || time.Duration(x) > maxDuration {
			p.add(path, "found %s, expected more than 0s and at most %s", x, Duration(maxDuration))
		}
		return
	case Policy:
		if err := x.check(); err != nil {
			p.add(path, "%v", err)
		}
		return
	case measure.HexBytes:
		if size, _ := f.number("size"); uint64(len(x)) != size {
			p.add(path, "found %d bytes, expected %d", len(x), size)
		}
		return
	}
	switch v.Kind() {
	case reflect.String:
		p.text(f, v.String(), path)
	case reflect.Int, reflect.Uint32, reflect.Uint64:
		// A negative number becomes a large one, and every int has a maximum.
		n := v.Convert(reflect.TypeFor[uint64]()).Uint()
		lo, _ := f.number("min")
		hi, ok := f.number("max")
		if n < lo || ok && n > hi {
			p.add(path, "found %v%s", v, expectation(f))
		}
	}
}

// Names, compiled when a spec is read.
const interfacePattern = `^[A-Za-z0-9][A-Za-z0-9_.-]{0,14}$`

var (
	interfaceName = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(interfacePattern) })
	programName   = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.+-]*$`) })
)

func (p *problems) text(f field, x, path string) {
	if i := strings.IndexFunc(x, func(r rune) bool { return r < ' ' || r == 0x7f }); i >= 0 {
		p.add(path, "found the control character %q, expected one line of plain text", x[i])
		return
	}
	if enum := f.list("enum"); enum != nil {
		if !slices.Contains(enum, x) {
			hint := suggestion(x, enum)
			if !strings.HasPrefix(hint, ", expected") {
				hint += expectation(f)
			}
			p.add(path, "found %q%s", clip(x), hint)
		}
		return
	}
	if pattern := f.tag.Get("pattern"); pattern != "" {
		if !regexp.MustCompile(pattern).MatchString(x) {
			p.add(path, "found %q%s", clip(x), expectation(f))
		}
		return
	}
	switch kind := f.tag.Get("kind"); {
	case f.tag.Get("max") != "":
		if hi, _ := f.number("max"); uint64(len(x)) > hi {
			p.add(path, "found %d bytes, expected at most %d", len(x), hi)
		}
	case kind == "path" && (x == "" || len(x) > maxPath):
		p.add(path, "found a path of %d characters, expected 1 to %d", len(x), maxPath)
	case kind == "interface" && !interfaceName().MatchString(x):
		p.add(path, "found %q, expected the name of a network interface: at most 15 letters, digits, dots, hyphens and underscores", clip(x))
	case kind == "program" && !programName().MatchString(x) && !filepath.IsAbs(x):
		p.add(path, "found %q, expected a program's name, or an absolute path", clip(x))
	}
}

// expectation says what a field takes, after a comma.
func expectation(f field) string {
	if enum := f.list("enum"); enum != nil {
		return ", expected " + orList(enum)
	}
	lo, _ := f.number("min")
	hi, ok := f.number("max")
	switch {
	case f.tag.Get("pattern") != "":
		return ", expected " + f.tag.Get("want")
	case ok && lo == hi:
		return fmt.Sprintf(", expected %d", lo)
	case ok:
		return fmt.Sprintf(", expected %d to %d", lo, hi)
	case f.tag.Get("kind") == "path":
		return ", expected a file's path"
	}
	return ""
}

func orList(names []string) string {
	return strings.Join(names[:len(names)-1], ", ") + " or " + names[len(names)-1]
}

func (s *Spec) checkPlatform(p *problems) {
	switch s.Platform {
	case PlatformSNP:
		if s.Sim != nil {
			p.add("sim", "found on platform snp, expected only on platform sim")
		}
		if s.QEMU.Accel != AccelKVM {
			p.add("qemu.accel", "found %q, expected kvm: SEV-SNP is KVM's", s.QEMU.Accel)
		}
	case PlatformSim:
		if s.SVSM != nil && s.SVSM.DevicePlane {
			p.add("svsm.device_plane", "found on platform sim, expected only on platform snp: the simulated SVSM has no devices")
		}
		if s.Sim == nil {
			p.add("sim", "missing: the defaults are not filled in")
		} else if s.Sim.ReportVersion == 4 {
			p.add("sim.report_version", "found 4, expected 3 or 5")
		}
	}
	if s.Backend != BackendLibvirt {
		if s.Libvirt.URI != "" || s.src.has("libvirt") {
			p.add("libvirt", "found with backend %s, expected only with backend libvirt", s.Backend)
		}
		return
	}
	if _, err := libvirtd.ParseURI(s.Libvirt.URI); err != nil {
		p.add("libvirt.uri", "found %q, %v", clip(s.Libvirt.URI), err)
	}
}

func (s *Spec) checkBoot(p *problems) {
	switch {
	case s.SVSM == nil && s.Firmware.Path == "":
		p.add("firmware.path", "missing, expected an OVMF image, or svsm.image that holds one")
	case s.SVSM != nil && s.Firmware.Path != "":
		p.add("firmware.path", "found beside svsm.image, expected one of them: QEMU loads no firmware besides an IGVM file")
	}
	if s.Kernel == "" {
		if s.Initrd != "" {
			p.add("initrd", "found without a kernel")
		}
		if s.Cmdline != "" {
			p.add("cmdline", "found without a kernel")
		}
	}
	if s.KernelHashes == On {
		switch {
		case s.Kernel == "":
			p.add("kernel_hashes", "found on without a kernel")
		case s.SVSM != nil:
			p.add("kernel_hashes", "found on with svsm.image, expected off: QEMU gives an IGVM file no hashes")
		}
	}
	if _, err := measure.HashCmdline(s.Cmdline); err != nil {
		p.add("cmdline", "%v", err)
	}
	if s.HostProfile != ProfileKVM && s.SVSM == nil {
		p.add("host_profile", "found %s without svsm.image, expected kvm: KVM measures every vCPU of a VM that OVMF starts", s.HostProfile)
	}
}

func (s *Spec) checkCPU(p *problems) {
	known, err := s.modelSignature()
	switch {
	case err != nil && s.CPU.Signature == 0:
		p.add("cpu.model", "%v; or give cpu.signature", err)
	case err == nil && s.CPU.Signature != 0 && s.CPU.Signature != known:
		p.add("cpu.signature", "found %#x, expected %#x, the signature of %s", s.CPU.Signature, known, s.CPU.Model)
	}
	switch {
	case s.SVSM != nil && s.CPU.GuestFeatures != 0:
		p.add("cpu.guest_features", "found with svsm.image, expected nothing: the VMSA in the image says it")
	case s.SVSM == nil && s.CPU.GuestFeatures&measure.FeatureSNPActive == 0:
		p.add("cpu.guest_features", "found %#x, expected bit 0 (SNPActive) set", s.CPU.GuestFeatures)
	}
}

func (s *Spec) checkMemory(p *problems) {
	unit, why := Size(1<<20), ""
	if s.Hugepages != "" {
		huge, err := ParseSize(s.Hugepages)
		if err != nil {
			return
		}
		unit, why = huge, ", the size of the huge pages"
	}
	if s.Memory%unit != 0 {
		p.add("memory", "found %s, expected a multiple of %s%s", s.Memory, unit, why)
	}
}

func (s *Spec) checkIDBlock(p *problems) {
	b := s.IDBlock
	if b == nil {
		return
	}
	if b.Block == "" && b.Auth == "" {
		if b.IDKey == "" {
			p.add("id_block.id_key", "missing, expected a private key, or block and auth")
		}
		return
	}
	if b.Block == "" || b.Auth == "" {
		p.add("id_block", "found one of block and auth, expected both")
	}
	if b.IDKey != "" || b.AuthorKey != "" || b.FamilyID != nil || b.ImageID != nil || b.SVN != 0 {
		p.add("id_block", "found keys or ids beside a ready-made block, expected one way or the other")
	}
}

func (s *Spec) checkDevices(p *problems) {
	for _, l := range []struct {
		path string
		n    int
	}{{"disks", len(s.Disks)}, {"networks", len(s.Networks)}} {
		if l.n > maxDevices {
			p.add(l.path, "found %d, expected at most %d", l.n, maxDevices)
		}
	}
	writers := make(map[string]int)
	for i, d := range s.Disks {
		if j, ok := writers[d.Path]; ok && (!d.ReadOnly || !s.Disks[j].ReadOnly) {
			p.add(fmt.Sprintf("disks[%d].path", i), "found the image of disks[%d] again: two disks cannot share an image that one of them writes", j)
		}
		writers[d.Path] = i
	}
	macs, ports := make(map[string]int), make(map[string]string)
	for i, n := range s.Networks {
		at := fmt.Sprintf("networks[%d]", i)
		for _, f := range []struct{ name, value, of string }{{"bridge", n.Bridge, NetworkBridge}, {"device", n.Device, NetworkTap}} {
			switch {
			case f.of == n.Type && f.value == "":
				p.add(at+"."+f.name, "missing, needed for type %s", n.Type)
			case f.of != n.Type && f.value != "":
				p.add(at+"."+f.name, "found for type %s, expected only for type %s", n.Type, f.of)
			}
		}
		if n.Type != NetworkUser && n.Forwards != nil {
			p.add(at+".forwards", "found for type %s, expected only for type user", n.Type)
		}
		if j, ok := macs[n.MAC]; ok && n.MAC != "" {
			p.add(at+".mac", "found the address of networks[%d] again", j)
		}
		macs[n.MAC] = i
		for j, f := range n.Forwards {
			here := fmt.Sprintf("%s.forwards[%d]", at, j)
			key := f.Protocol + strconv.Itoa(f.HostPort)
			if other, ok := ports[key]; ok {
				p.add(here+".host_port", "found %d, already taken by %s", f.HostPort, other)
			}
			ports[key] = here
		}
	}
}

func (s *Spec) checkAgent(p *problems) {
	a := s.Agent
	if a.Address != "" && a.Transport != TransportTCP {
		p.add("agent.address", "found for transport %s, expected only for tcp", a.Transport)
	}
	if s.src.has("agent.port") && a.Transport != TransportVsock {
		p.add("agent.port", "found for transport %s, expected only for vsock", a.Transport)
	}
	switch a.Transport {
	case TransportVsock:
		if s.Vsock == nil {
			p.add("agent.transport", "found vsock without a vsock device, expected vsock.cid")
		}
	case TransportTCP:
		if len(s.Networks) == 0 {
			p.add("agent.transport", "found tcp without a network card, expected networks")
		}
		host, port, err := net.SplitHostPort(a.Address)
		if n, e := strconv.ParseUint(port, 10, 16); err != nil || e != nil || n == 0 || host == "" {
			p.add("agent.address", "found %q, expected HOST:PORT", clip(a.Address))
		}
	}
}

func (s *Spec) checkAttestation(p *problems) {
	if s.Attestation.Fetch && s.Platform == PlatformSim {
		p.add("attestation.fetch", "found true, expected false with platform sim: AMD has no certificates of simulated chips")
	}
	if s.Attestation.Chip == ChipHost && s.onOtherHost() {
		p.add("attestation.chip", "found %s, expected %s: %s leads to another machine, and its chip is not known here; name it in chip_ids of a policy", ChipHost, ChipAny, s.Libvirt.URI)
	}
	pcrs := s.Attestation.PCRs
	for i := 1; i < len(pcrs); i++ {
		if pcrs[i] == pcrs[i-1] {
			p.add("attestation.pcrs", "found PCR %d twice", pcrs[i])
			return
		}
	}
	for _, n := range []int{4, 9} {
		if s.Kernel != "" && !slices.Contains(pcrs, n) {
			p.add("attestation.pcrs", "found no PCR %d, expected 4 and 9 with a kernel: they hold kernel, initrd and command line", n)
		}
	}
}
