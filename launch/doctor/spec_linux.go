package doctor

import (
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"strconv"
	"strings"

	"github.com/evtpm/evtpm/launch"
)

// specNeeds looks at what this spec alone needs.
func (d *examination) specNeeds() {
	if d.spec.QEMU.Accel == launch.AccelKVM && d.spec.Platform == launch.PlatformSim {
		if f := d.device("kvm", "/dev/kvm", "load kvm_amd or kvm_intel, or choose accel: tcg"); f != nil {
			f.Close()
			d.ok("kvm", "/dev/kvm opens")
		}
	}
	d.memory()
	d.disks()
	d.networks()
	if d.spec.Vsock != nil {
		if f := d.device("vsock", "/dev/vhost-vsock", "modprobe vhost_vsock"); f != nil {
			f.Close()
			d.ok("vsock", "/dev/vhost-vsock opens")
		}
	}
	if d.spec.Backend == launch.BackendLibvirt {
		d.libvirt()
	}
}

// inputs resolves the spec as a launch does.
func (d *examination) inputs() {
	plan, err := launch.Resolve(d.ctx, d.spec, launch.ResolveOptions{})
	if err != nil {
		for _, err := range flatten(err) {
			fix := "correct the file or the spec"
			if errors.Is(err, fs.ErrNotExist) {
				fix = "put the file there, or name another in the spec"
			}
			d.fail("inputs", err.Error(), "inputs that a launch can be planned from", fix)
		}
		return
	}
	d.plan = plan
	names := make([]string, 0, 4)
	for _, in := range plan.Inputs() {
		names = append(names, in.Name)
	}
	digests := make([]string, 0, 1)
	for _, digest := range plan.Golden.LaunchDigests {
		digests = append(digests, digest.String())
	}
	d.ok("inputs", "%s read; launch digest %s", strings.Join(names, ", "), strings.Join(digests, ", "))
}

// flatten takes joined errors apart.
func flatten(err error) []error {
	var joined interface{ Unwrap() []error }
	if !errors.As(err, &joined) || err.Error() != errors.Join(joined.Unwrap()...).Error() {
		return []error{err}
	}
	var out []error
	for _, e := range joined.Unwrap() {
		out = append(out, flatten(e)...)
	}
	return out
}

// memory looks whether the guest's memory fits.
func (d *examination) memory() {
	want := d.spec.Memory
	if d.spec.Hugepages != "" {
		d.hugepages()
		return
	}
	text, err := d.read("/proc/meminfo")
	if err != nil {
		d.warn("memory", fmt.Sprintf("the free memory is not known: %v", err), want.String(), "mount /proc")
		return
	}
	total, free := meminfo(text, "MemTotal:"), meminfo(text, "MemAvailable:")
	found := fmt.Sprintf("%d MiB of %d MiB of memory are free", free>>20, total>>20)
	switch {
	case total < want:
		d.fail("memory", found, want.String()+" for the guest", "give the guest less memory")
	case free < want:
		d.warn("memory", found, want.String()+" for the guest", "end something else, or give the guest less memory")
	default:
		d.ok("memory", "%s", found)
	}
}

// meminfo reads a line of /proc/meminfo, such as "MemTotal: 1024 kB".
func meminfo(text, key string) launch.Size {
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) >= 2 && f[0] == key {
			n, _ := strconv.ParseUint(f[1], 10, 53) // zero is too little for any guest
			return launch.Size(n << 10)
		}
	}
	return 0
}

func (d *examination) hugepages() {
	size, err := launch.ParseSize(d.spec.Hugepages)
	if err != nil {
		return // Validate's to say
	}
	dir := fmt.Sprintf("/sys/kernel/mm/hugepages/hugepages-%dkB", size>>10)
	text, err := d.read(dir + "/free_hugepages")
	n, err2 := strconv.ParseUint(text, 10, 40)
	needed := fmt.Sprintf("%d free pages of %s", d.spec.Memory/size, size)
	switch {
	case err != nil || err2 != nil:
		d.fail("hugepages", "the kernel has no huge pages of "+size.String(), needed, "boot with hugepagesz="+size.String()+" hugepages=N")
	case launch.Size(n) < d.spec.Memory/size:
		d.fail("hugepages", fmt.Sprintf("%d huge pages of %s are free", n, size), needed, "write the number of pages to "+dir+"/nr_hugepages")
	default:
		d.ok("hugepages", "%d huge pages of %s are free", n, size)
	}
}

// disks opens the disks as QEMU does.
func (d *examination) disks() {
	for _, disk := range d.spec.Disks {
		flag, needed := os.O_RDWR, "a disk image that can be read and written"
		if disk.ReadOnly {
			flag, needed = os.O_RDONLY, "a disk image that can be read"
		}
		info, err := os.Stat(disk.Path)
		if err == nil && !info.Mode().IsRegular() && info.Mode()&os.ModeDevice == 0 {
			err = fmt.Errorf("%s: found a %s, expected a file or a block device", disk.Path, info.Mode().Type())
		}
		var f *os.File
		if err == nil {
			f, err = os.OpenFile(disk.Path, flag, 0)
		}
		if err != nil {
			d.fail("disk", err.Error(), needed, "make it (qemu-img create), or correct the spec")
			continue
		}
		f.Close()
		d.ok("disk", "%s", disk.Path)
	}
}

func (d *examination) networks() {
	for _, n := range d.spec.Networks {
		switch n.Type {
		case launch.NetworkBridge:
			d.bridge(n.Bridge)
		case launch.NetworkTap:
			d.tap(n.Device)
		}
	}
}

func (d *examination) bridge(name string) {
	if !d.exists("/sys/class/net/" + name + "/bridge") {
		d.fail("network", "there is no bridge "+name, "bridge "+name, "ip link add "+name+" type bridge")
		return
	}
	// What QEMU's bridge helper obeys.
	rules, _ := d.read("/etc/qemu/bridge.conf") // absent is nothing allowed
	for line := range strings.Lines(rules) {
		if f := strings.Fields(line); len(f) == 2 && f[0] == "allow" && (f[1] == name || f[1] == "all") {
			d.ok("network", "bridge %s", name)
			return
		}
	}
	d.fail("network", "/etc/qemu/bridge.conf does not allow bridge "+name, "a line \"allow "+name+"\"", "add the line, and let qemu-bridge-helper be set-user-ID root")
}

func (d *examination) tap(name string) {
	if !d.exists("/sys/class/net/" + name + "/tun_flags") {
		d.fail("network", "there is no tap device "+name, "tap device "+name, "ip tuntap add "+name+" mode tap user $USER")
		return
	}
	if f := d.device("network", "/dev/net/tun", "modprobe tun"); f != nil {
		f.Close()
		d.ok("network", "tap device %s", name)
	}
}

// remoteLibvirt returns the host of a libvirt URI that leads to another machine.
func remoteLibvirt(s *launch.Spec) string {
	if s == nil || s.Backend != launch.BackendLibvirt {
		return ""
	}
	u, err := url.Parse(s.Libvirt.URI)
	if err != nil {
		return ""
	}
	return u.Host
}
