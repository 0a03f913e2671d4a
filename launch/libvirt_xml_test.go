package launch

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/evtpm/evtpm/launch/launchtest"
	"github.com/evtpm/evtpm/measure"
	"github.com/evtpm/evtpm/measure/fromvm"
	"github.com/evtpm/evtpm/ovmf/ovmftest"
	"github.com/evtpm/evtpm/svsmimg"
)

// domainCases are plans that use every element of a domain.
func domainCases(t *testing.T) map[string]*Plan {
	t.Helper()
	cases := make(map[string]*Plan)
	add := func(name string, lines ...string) {
		dir, s := planDir(t, lines...)
		launchtest.Key(t, filepath.Join(dir, "id.pem"))
		launchtest.Key(t, filepath.Join(dir, "author.pem"))
		cases[name] = resolve(t, s)
	}
	add("sim")
	add("sim without hashes", "kernel_hashes: off", "console: none", "cpu: {model: EPYC-Milan, count: 4}")
	add("snp", "platform: snp")
	add("snp with all", "platform: snp", "id_block: {id_key: id.pem, author_key: author.pem}", "host_data: "+strings.Repeat("0a", 32), "policy: {abi_major: 1, single_socket: true}",
		"rng: true", "hugepages: 2M", "cpu: {model: EPYC-Milan, count: 4}", "qemu: {machine: pc-q35-10.0}")
	add("host's own", "platform: snp", "vsock: {cid: 42}", "agent: {transport: vsock}", "cpu: {model: host, signature: 0xa00f11}", "qemu: {binary: /opt/qemu}")
	add("disks", "disks: [{path: a, format: raw, readonly: true}, {path: b, format: qcow2, discard: true}]")
	add("networks", "networks: [{type: user}, {type: user, forwards: [{host_port: 2222, guest_port: 22}, {protocol: udp, host_port: 53, guest_port: 53}]}, {type: bridge, bridge: br0, mac: '52:54:00:00:00:01'}, {type: tap, device: tap0}]")
	add("hugepages", "hugepages: 1G", "memory: 2G")

	// A plan with an IGVM file, made from one without: what is in it does not
	// matter here.
	igvm := func(name string, plane bool) {
		dir, s := planDir(t, "platform: snp", "kernel_hashes: off")
		p := resolve(t, s)
		p.SVSM, p.Firmware, p.Image = p.Firmware, nil, nil
		s.SVSM, s.Firmware = &SVSM{Image: filepath.Join(dir, "a.igvm"), DevicePlane: plane}, Firmware{}
		cases[name] = p
	}
	igvm("igvm", false)
	igvm("igvm in COCONUT's QEMU", true)
	maps.Copy(cases, exampleCases(t))
	return cases
}

// exampleCases makes plans of the specs in examples/snp, with inputs of the
// names that they give.
func exampleCases(t *testing.T) map[string]*Plan {
	t.Helper()
	specs, err := filepath.Glob("../examples/snp/*.yaml")
	if err != nil || len(specs) < 2 {
		t.Fatalf("examples/snp: found %q, %v", specs, err)
	}
	cases := make(map[string]*Plan)
	for _, path := range specs {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		for name, data := range map[string][]byte{
			"OVMF.amdsev.fd":    ovmftest.Build(ovmftest.AmdSev()),
			"vmlinuz":           launchtest.Kernel(),
			"initrd.cpio":       []byte("initrd"),
			"coconut-qemu.igvm": launchtest.IGVM(t, 0x20000, &svsmimg.GuestPolicy{Policy: 0x30000, Mask: 1}),
			"root.raw":          make([]byte, 1<<20),
			"root.qcow2":        testQCOW2(),
		} {
			launchtest.Write(t, filepath.Join(dir, name), data)
		}
		launchtest.Key(t, filepath.Join(dir, "id.pem"))
		launchtest.Key(t, filepath.Join(dir, "author.pem"))
		// The firmware is Debian's, wherever that is installed.
		text = bytes.ReplaceAll(text, []byte("/usr/share/ovmf/"), nil)
		s, err := ReadSpec(launchtest.Write(t, filepath.Join(dir, filepath.Base(path)), text), SpecFileOptions{})
		if err != nil {
			t.Fatal(err)
		}
		cases["examples/snp/"+filepath.Base(path)] = resolve(t, s)
	}
	return cases
}

// testQCOW2 is a disk image of 1 MiB without content: header, L1 table, refcount
// table and block, a cluster each (QEMU, docs/interop/qcow2.rst).
func testQCOW2() []byte {
	const cluster = 1 << 16
	image := make([]byte, 4*cluster)
	be := binary.BigEndian
	copy(image, "QFI\xfb")
	be.PutUint32(image[4:], 2)          // version
	be.PutUint32(image[20:], 16)        // cluster_bits
	be.PutUint64(image[24:], 1<<20)     // size
	be.PutUint32(image[36:], 1)         // l1_size
	be.PutUint64(image[40:], cluster)   // l1_table_offset
	be.PutUint64(image[48:], 2*cluster) // refcount_table_offset
	be.PutUint32(image[56:], 1)         // refcount_table_clusters
	be.PutUint64(image[2*cluster:], 3*cluster)
	for i := range 4 {
		be.PutUint16(image[3*cluster+2*i:], 1)
	}
	return image
}

// tell prints a line of what make test-libvirt shows.
func tell(format string, args ...any) {
	if testing.Verbose() {
		fmt.Printf(format+"\n", args...)
	}
}

// TestLibvirtSchema: libvirt's own schema takes every domain.
func TestLibvirtSchema(t *testing.T) {
	validate, err := exec.LookPath("virt-xml-validate")
	if err != nil {
		t.Skip("virt-xml-validate is not installed")
	}
	// As evtpm render writes them, and as machines are started: through a libvirt
	// of the session, of the system, and of another machine.
	const uuid = "6cf6e3c9-1d5b-4a52-8c2d-5d4b4f1e9d10"
	for as, o := range map[string]LibvirtOptions{
		"rendered": {Dir: "/run/evtpm/demo"},
		"session":  {Dir: "/run/evtpm/demo", UUID: uuid, Console: "/run/evtpm/demo/console.sock"},
		"system":   {Dir: "/run/evtpm/demo", UUID: uuid, Console: "/run/evtpm/demo/console.sock", User: "+1000:+1000"},
		"remote":   {Dir: "/run/evtpm/demo", UUID: uuid, Console: "pty"},
	} {
		for name, p := range domainCases(t) {
			data, err := p.LibvirtDomain(o)
			if err != nil {
				t.Errorf("%s, %s: %v", name, as, err)
				continue
			}
			path := launchtest.Write(t, filepath.Join(t.TempDir(), "domain.xml"), data)
			if out, err := exec.Command(validate, path, "domain").CombinedOutput(); err != nil {
				t.Errorf("%s, %s: %v\n%s\n%s", name, as, err, out, data)
				continue
			}
			tell("validated  %s, %s", name, as)
		}
	}
}

// TestLibvirtMeasures: a domain says what its plan says of everything that is
// measured, by the reader that measures other people's domains.
func TestLibvirtMeasures(t *testing.T) {
	for name, p := range domainCases(t) {
		if p.Spec.Platform != PlatformSNP || p.SVSM != nil {
			continue // the reader wants a loader, as libvirt's own users have one
		}
		data, err := p.LibvirtDomain(LibvirtOptions{Dir: "/run/evtpm/demo"})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		got, err := fromvm.Libvirt(data)
		if err != nil {
			t.Errorf("%s: %v\n%s", name, err, data)
			continue
		}
		path := func(in *Input) string {
			if in == nil {
				return ""
			}
			return in.Path
		}
		want := &fromvm.VM{
			Mode: measure.ModeSNP, VCPUs: p.Spec.CPU.Count, CPUModel: p.Spec.CPU.Model,
			Firmware: path(p.Firmware), Kernel: path(p.Kernel), Initrd: path(p.Initrd), Cmdline: p.Spec.Cmdline,
			KernelHashes: p.Hashes != nil, GuestFeatures: 1,
			Policy: uint64(p.Spec.Policy), HostData: p.Spec.HostData, IDBlock: p.IDBlock, IDAuth: p.IDAuth,
		}
		if d := cmp.Diff(want, got, cmpopts.IgnoreFields(fromvm.VM{}, "Warnings")); d != "" {
			t.Errorf("%s: what is measured differs (-spec +domain):\n%s", name, d)
		}
	}
}

// An element is any XML element, for reading back what was written.
type element struct {
	XMLName  xml.Name
	Attrs    []xml.Attr `xml:",any,attr"`
	Text     string     `xml:",chardata"`
	Children []element  `xml:",any"`
}

// find returns the elements at a path of names.
func (e element) find(path ...string) []element {
	if len(path) == 0 {
		return []element{e}
	}
	var out []element
	for _, c := range e.Children {
		if c.XMLName.Local == path[0] {
			out = append(out, c.find(path[1:]...)...)
		}
	}
	return out
}

func (e element) attr(name string) string {
	for _, a := range e.Attrs {
		if a.Name.Local == name {
			return a.Value
		}
	}
	return ""
}

func parseDomain(t *testing.T, data []byte) element {
	t.Helper()
	var out element
	dec := xml.NewDecoder(bytes.NewReader(data))
	if err := dec.Decode(&out); err != nil {
		t.Fatalf("%v\n%s", err, data)
	}
	for {
		tok, err := dec.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if space, ok := tok.(xml.CharData); !ok || len(bytes.TrimSpace(space)) > 0 {
			t.Fatalf("found %v and error %v after the domain", tok, err)
		}
	}
	return out
}

// TestC09XML: hostile text comes out of the XML as it went in, and adds nothing to
// it.
func TestC09XML(t *testing.T) {
	const evil = `a"'<b>&amp;]]> <!--,policy=0x80000 -->{"x":1}<qemu:commandline/>`
	_, s := planDir(t, "disks: [{path: a, format: raw}]")
	plain, err := resolve(t, s).LibvirtDomain(LibvirtOptions{Dir: "/d"})
	if err != nil {
		t.Fatal(err)
	}
	p := resolve(t, s)
	s.Cmdline = evil
	s.Disks[0].Path = "/" + evil
	data, err := p.LibvirtDomain(LibvirtOptions{
		Dir: "/d/" + evil, File: func(in *Input) string { return "/" + in.Name + evil },
		HashesPage: evil, TPM: "/tpm" + evil, SVSM: "/svsm" + evil,
	})
	if err != nil {
		t.Fatal(err)
	}
	d := parseDomain(t, data)
	text := func(path ...string) string {
		found := d.find(path...)
		if len(found) != 1 {
			t.Fatalf("found %d of %v, expected 1", len(found), path)
		}
		return found[0].Text
	}
	attrs := func(name string, path ...string) string {
		var out []string
		for _, e := range d.find(path...) {
			out = append(out, e.attr(name))
		}
		return strings.Join(out, "\n")
	}
	for _, c := range []struct{ what, got, want string }{
		{"cmdline", text("os", "cmdline"), evil},
		{"kernel", text("os", "kernel"), "/kernel" + evil},
		{"initrd", text("os", "initrd"), "/initrd" + evil},
		{"loader", text("os", "loader"), "/firmware" + evil},
		{"disk", attrs("file", "devices", "disk", "source"), "/" + evil},
		{"console", attrs("path", "devices", "serial", "source"), filepath.Join("/d/"+evil, "console.log")},
		{"channels", attrs("path", "devices", "channel", "source"), filepath.Join("/d/"+evil, "agent.sock") + "\n/svsm" + evil},
		{"TPM", attrs("path", "devices", "tpm", "backend", "source"), "/tpm" + evil},
		{"arguments", attrs("value", "commandline", "arg"), "-device\nloader,file=" + strings.ReplaceAll(evil, ",", ",,") + ",addr=0x810000,force-raw=on"},
	} {
		if c.got != c.want {
			t.Errorf("%s: found %q, expected %q", c.what, c.got, c.want)
		}
	}
	if got, want := count(d), count(parseDomain(t, plain)); got != want {
		t.Errorf("found %d elements, expected the %d of a domain without hostile text", got, want)
	}

	// What XML cannot hold is refused, not replaced.
	for _, bad := range []string{"a\uffffb", "a\x01b", "a\xffb"} {
		s.Cmdline = bad
		if _, err := p.LibvirtDomain(LibvirtOptions{Dir: "/d"}); err == nil || !strings.Contains(err.Error(), "expected characters that XML can hold") {
			t.Errorf("%q: found %v, expected a refusal", bad, err)
		}
	}
	s.Cmdline = "a\ufffdb" // itself a character like others
	if _, err := p.LibvirtDomain(LibvirtOptions{Dir: "/d"}); err != nil {
		t.Error(err)
	}
	if _, err := p.LibvirtDomain(LibvirtOptions{}); err == nil {
		t.Error("found no error without a directory")
	}
}

func count(e element) int {
	n := 1
	for _, c := range e.Children {
		n += count(c)
	}
	return n
}

// TestLibvirtDomain: what decides over a confidential launch is in the domain, and
// what must not be there is not.
func TestLibvirtDomain(t *testing.T) {
	cases := domainCases(t)
	read := func(name string) element {
		data, err := cases[name].LibvirtDomain(LibvirtOptions{Dir: "/d"})
		if err != nil {
			t.Fatal(err)
		}
		return parseDomain(t, data)
	}
	d, p := read("snp with all"), cases["snp with all"]
	sec := d.find("launchSecurity")[0]
	want := map[string]string{
		"policy": "0x130100", "cbitpos": "51", "reducedPhysBits": "1",
		"idBlock":  base64.StdEncoding.EncodeToString(p.IDBlock),
		"idAuth":   base64.StdEncoding.EncodeToString(p.IDAuth),
		"hostData": "CgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgo=",
	}
	got := make(map[string]string)
	for _, c := range sec.Children {
		got[c.XMLName.Local] = c.Text
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("launchSecurity differs (-want +got):\n%s", diff)
	}
	for _, c := range []struct{ what, got, want string }{
		{"type", sec.attr("type"), "sev-snp"},
		{"kernelHashes", sec.attr("kernelHashes"), "yes"},
		{"authorKey", sec.attr("authorKey"), "yes"},
		{"domain type", d.attr("type"), "kvm"},
		{"loader type", d.find("os", "loader")[0].attr("type"), "rom"},
		{"loader stateless", d.find("os", "loader")[0].attr("stateless"), "yes"},
		{"machine", d.find("os", "type")[0].attr("machine"), "pc-q35-10.0"},
		{"cpu", d.find("cpu", "model")[0].Text, "EPYC-Milan"},
		{"host cpu", read("host's own").find("cpu")[0].attr("mode"), "host-passthrough"},
		{"emulator", read("host's own").find("devices", "emulator")[0].Text, "/opt/qemu"},
		{"vsock", read("host's own").find("devices", "vsock", "cid")[0].attr("address"), "42"},
		{"rng", d.find("devices", "rng", "backend")[0].Text, "/dev/urandom"},
		{"memory", d.find("memory")[0].Text, "268435456"},
		{"reboot", d.find("on_reboot")[0].Text, "destroy"},
		{"smm", d.find("features", "smm")[0].attr("state"), "off"},
		{"sim type", read("sim").attr("type"), "qemu"},
		{"hashes off", read("igvm").find("launchSecurity")[0].attr("kernelHashes"), "no"},
	} {
		if c.got != c.want {
			t.Errorf("%s: found %q, expected %q", c.what, c.got, c.want)
		}
	}
	if n := len(read("sim").find("launchSecurity")); n != 0 {
		t.Errorf("found %d launchSecurity on platform sim, expected none", n)
	}
	if n := len(read("sim without hashes").find("commandline")) + len(d.find("commandline")); n != 0 {
		t.Errorf("found %d commandline elements, expected none", n)
	}
	if n := len(d.find("devices", "tpm")); n != 0 {
		t.Errorf("found %d TPMs of the host in a confidential VM, expected none", n)
	}
	var args []string
	for _, a := range read("igvm in COCONUT's QEMU").find("commandline", "arg") {
		args = append(args, a.attr("value"))
	}
	igvm := cases["igvm in COCONUT's QEMU"]
	wantArgs := []string{"-object", `{"qom-type":"igvm-cfg","id":"igvm0","file":"` + igvm.SVSM.Path + `"}`, "-machine", "igvm-cfg=igvm0,kernel-irqchip=split,device-plane=2,x-svsm-virtio-mmio=on"}
	if diff := cmp.Diff(wantArgs, args); diff != "" {
		t.Errorf("arguments differ (-want +got):\n%s", diff)
	}
	if len(read("igvm").find("os", "loader")) != 0 {
		t.Error("found a loader beside an IGVM file, which QEMU refuses")
	}
}
