package launch

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/evtpm/evtpm/measure/fromvm"
	"github.com/evtpm/evtpm/ovmf"
)

// qemuCommand renders a plan.
func qemuCommand(t testing.TB, p *Plan) *QEMUCommand {
	t.Helper()
	c, err := p.QEMUCommand(QEMUOptions{Dir: "/run/evtpm/demo"})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// after returns the values of an option.
func (c *QEMUCommand) after(option string) []string {
	var out []string
	for i, a := range c.Args[:len(c.Args)-1] {
		if a == option {
			out = append(out, c.Args[i+1])
		}
	}
	return out
}

func TestQEMUCommandSim(t *testing.T) {
	dir, s := planDir(t, "cpu: {model: EPYC-Milan, count: 2}", "memory: 256M")
	p := resolve(t, s)
	page, _, err := p.HashesPage()
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"-name", "guest=demo",
		"-machine", "q35,smm=off,dump-guest-core=off,accel=tcg",
		"-cpu", "EPYC-Milan", "-smp", "2", "-m", "256M",
		"-no-user-config", "-nodefaults", "-display", "none", "-no-reboot",
		"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
		"-S",
		"-bios", dir + "/OVMF.fd",
		"-kernel", dir + "/vmlinuz", "-initrd", dir + "/initrd.cpio", "-append", "quiet loglevel=0",
		"-device", fmt.Sprintf("loader,file=/run/evtpm/demo/hashes.bin,addr=%#x,force-raw=on", page),
		"-chardev", "socket,id=monitor,server=on,wait=off,path=/run/evtpm/demo/monitor.sock", "-mon", "chardev=monitor,mode=control",
		"-chardev", "socket,id=qmp,server=on,wait=off,path=/run/evtpm/demo/qmp.sock", "-mon", "chardev=qmp,mode=control",
		"-chardev", "file,id=console,path=/run/evtpm/demo/console.log", "-serial", "chardev:console",
		"-device", "virtio-serial-pci,id=serial0,max_ports=4",
		"-chardev", "socket,id=agent,path=/run/evtpm/demo/agent.sock,server=on,wait=off",
		"-device", "virtserialport,bus=serial0.0,nr=1,chardev=agent,name=org.evtpm.agent.0",
		"-chardev", "socket,id=svsm,path=/run/evtpm/demo/svsm.sock",
		"-device", "virtserialport,bus=serial0.0,nr=2,chardev=svsm,name=org.evtpm.svsm.0",
		"-chardev", "socket,id=tpm,path=/run/evtpm/demo/tpm.sock", "-tpmdev", "emulator,id=tpm0,chardev=tpm", "-device", "tpm-crb,tpmdev=tpm0",
	}
	if d := cmp.Diff(want, qemuCommand(t, p).Args); d != "" {
		t.Errorf("arguments differ (-want +got):\n%s", d)
	}
}

// TestQEMUCommandFiles: a launch gives QEMU the sealed copies, and sockets that
// it inherits.
func TestQEMUCommandFiles(t *testing.T) {
	_, s := planDir(t)
	p := resolve(t, s)
	c, err := p.QEMUCommand(QEMUOptions{
		Dir: "/run", File: func(in *Input) string { return "/fd/" + in.Name }, HashesPage: "/fd/hashes", TPM: "/t",
		Monitor: "socket,fd=5", Console: "socket,fd=6", SVSM: "socket,fd=7", NoSandbox: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	line := c.String()
	for _, want := range []string{"-bios /fd/firmware ", "-kernel /fd/kernel ", "-initrd /fd/initrd ", "file=/fd/hashes,", "socket,id=monitor,fd=5 ", "socket,id=console,fd=6 ", "socket,id=svsm,fd=7 ", "socket,id=tpm,path=/t "} {
		if !strings.Contains(line, want) {
			t.Errorf("%q is not in\n%s", want, line)
		}
	}
	for _, not := range []string{"-sandbox", s.Firmware.Path, s.Kernel} {
		if strings.Contains(line, not) {
			t.Errorf("%q is in\n%s", not, line)
		}
	}
}

// TestQEMUCommandMeasures: a command line says what its plan says of everything
// that is measured, by the reader that measures other people's command lines.
func TestQEMUCommandMeasures(t *testing.T) {
	for name, p := range domainCases(t) {
		if p.Spec.Platform != PlatformSNP || p.SVSM != nil {
			continue
		}
		vm, err := fromvm.QEMU(qemuCommand(t, p).String())
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if vm.VCPUs != p.Spec.CPU.Count || vm.Policy != uint64(p.Spec.Policy) || vm.Cmdline != p.Spec.Cmdline ||
			vm.Kernel != p.Spec.Kernel || vm.Initrd != p.Spec.Initrd || vm.KernelHashes != (p.Hashes != nil) ||
			!bytes.Equal(vm.IDBlock, p.IDBlock) || !bytes.Equal(vm.IDAuth, p.IDAuth) || !bytes.Equal(vm.HostData, p.Spec.HostData) {
			t.Errorf("%s: the command line says %+v", name, vm)
		}
	}
}

// hostile are values that mean something to a shell, to QEMU's option syntax, or
// to JSON.
var hostile = []string{
	"/x,readonly=off", "/a b", "/a'b", `/a"b`, "/a\\b", "/$(id)", "/`id`", "/a;b", "/a\nb", "/é", "/a,,b", "/a=b", "/*?[]{}", "/~", "/#", "/!x", "/%s",
}

// TestC07_Commas: a value cannot become another option of QEMU's.
func TestC07_Commas(t *testing.T) {
	for _, path := range hostile {
		_, s := planDir(t, "platform: snp", "kernel_hashes: off")
		p := resolve(t, s)
		s.Disks = []Disk{{Path: path, Format: DiskRaw, ReadOnly: true}}
		p.SVSM, p.Firmware = p.Firmware, nil
		c, err := p.QEMUCommand(QEMUOptions{Dir: path, File: func(*Input) string { return path }})
		if err != nil {
			t.Fatal(err)
		}
		var node blockNode
		if err := json.Unmarshal([]byte(c.after("-blockdev")[0]), &node); err != nil {
			t.Fatal(err)
		}
		if node.File.Filename != path || !node.ReadOnly || node.Driver != DiskRaw {
			t.Errorf("%q: disk %+v", path, node)
		}
		var igvm igvmObject
		if err := json.Unmarshal([]byte(c.after("-object")[2]), &igvm); err != nil || igvm.File != path {
			t.Errorf("%q: igvm-cfg %+v, %v", path, igvm, err)
		}
		for _, chardev := range c.after("-chardev") {
			// Undoubled, a value must hold no comma of its own.
			rest := strings.ReplaceAll(chardev, ",,", "\x00")
			for _, o := range strings.Split(rest, ",")[1:] {
				key, value, _ := strings.Cut(o, "=")
				value = strings.ReplaceAll(value, "\x00", ",")
				if !slices.Contains([]string{"id", "server", "wait", "path"}, key) || key == "path" && !strings.HasPrefix(value, strings.TrimSuffix(path, "/")) {
					t.Errorf("%q: chardev %q has option %q", path, chardev, o)
				}
			}
		}
	}
}

// TestC08_Shell: what is printed is, to a shell, what is executed.
func TestC08_Shell(t *testing.T) {
	sh, err := exec.LookPath("sh")
	if err != nil {
		t.Skip("sh is not installed")
	}
	_, s := planDir(t, "platform: snp")
	p := resolve(t, s)
	for _, value := range append(hostile, "-device", "", "-S", "--") {
		s.Cmdline = value
		c := qemuCommand(t, p)
		out, err := exec.Command(sh, "-c", strings.Replace(c.String(), c.Binary, `printf '%s\0'`, 1)).Output()
		if err != nil {
			t.Errorf("%q: %v", value, err)
			continue
		}
		got := strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00")
		if d := cmp.Diff(c.Args, got); d != "" {
			t.Errorf("%q: the shell sees other words (-want +got):\n%s", value, d)
		}
	}
}

// TestC11_OnePolicy: the policy that QEMU is given is the one that is expected.
func TestC11_OnePolicy(t *testing.T) {
	_, s := planDir(t, "platform: snp", "policy: {abi_major: 1, abi_minor: 51, single_socket: true}")
	p := resolve(t, s)
	var sev sevObject
	for _, o := range qemuCommand(t, p).after("-object") {
		if strings.Contains(o, "sev-snp-guest") {
			if err := json.Unmarshal([]byte(o), &sev); err != nil {
				t.Fatal(err)
			}
		}
	}
	if sev.Policy != p.Golden.Policy || sev.Policy == uint64(DefaultPolicy) {
		t.Errorf("policy %#x, expected %#x", sev.Policy, p.Golden.Policy)
	}
}

func TestHashesPage(t *testing.T) {
	_, s := planDir(t)
	p := resolve(t, s)
	gpa, page, err := p.HashesPage()
	if err != nil || gpa != 0x810000 || !bytes.Contains(page, p.Hashes.Table()) || len(page) != 4096 {
		t.Errorf("page of %d bytes at %#x, %v", len(page), gpa, err)
	}
	// On hardware QEMU makes it.
	s.Platform = PlatformSNP
	if _, page, err := p.HashesPage(); page != nil || err != nil {
		t.Errorf("platform snp: page of %d bytes, %v", len(page), err)
	}
	s.Platform, p.Image = PlatformSim, new(ovmf.Image)
	if _, err := p.QEMUCommand(QEMUOptions{Dir: "/"}); err == nil {
		t.Error("a firmware without a place for kernel hashes is accepted")
	}
	if _, err := p.QEMUCommand(QEMUOptions{}); err == nil {
		t.Error("a command line without a directory for sockets is accepted")
	}
}

// qemus lists the QEMUs to hold command lines against: the one in PATH, and
// those of EVTPM_QEMUS, separated by colons.
func qemus(t *testing.T) []string {
	q, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		t.Skip("qemu-system-x86_64 is not installed")
	}
	return append([]string{q}, filepath.SplitList(os.Getenv("EVTPM_QEMUS"))...)
}

// before91 are the words of a QEMU that is older than SEV-SNP and its CPUs.
var before91 = []string{"does not accept value 'sev-snp-guest'", "unable to find CPU model 'EPYC-"}

// missingHardware are the words of QEMU's with which a command line may end on a
// machine that lacks what it asks for. Anything else is our mistake.
var missingHardware = []string{
	"vm-type SEV-SNP not supported by KVM",
	"Could not access KVM kernel module",
	"KVM required",
	"sev_common_kvm_init",
}

// missingBuild are those of a QEMU that was built without IGVM, or is not
// COCONUT's.
var missingBuild = []string{"does not accept value 'igvm-cfg'", ".igvm-cfg' not found", ".device-plane' not found"}

// missingHost are those about devices that this host does not have.
var missingHost = []string{"failed to open vhost device", "Could not open '/dev/vhost-vsock'", "unable to map backing store for guest RAM"}

func saysOne(said string, of []string) bool {
	return slices.ContainsFunc(of, func(s string) bool { return strings.Contains(said, s) })
}

// TestE2EQEMUAccepts: real QEMUs take every command line for SEV-SNP up to the
// point where the hardware is missing, and everything about its devices.
func TestE2EQEMUAccepts(t *testing.T) {
	for _, qemu := range qemus(t) {
		version := qemuVersion(t, qemu)
		old := strings.HasPrefix(version, "7.")
		cases := domainCases(t)
		for _, name := range slices.Sorted(maps.Keys(cases)) {
			p := cases[name]
			if p.Spec.Platform != PlatformSNP {
				continue
			}
			dir := t.TempDir()
			p.Spec.QEMU.Machine = "q35"
			image := filepath.Join(dir, "disk,readonly=off.raw")
			if err := os.WriteFile(image, make([]byte, 1<<20), 0o600); err != nil {
				t.Fatal(err)
			}
			if !strings.HasPrefix(name, "examples/") {
				p.Spec.Disks = []Disk{{Path: image, Format: DiskRaw, ReadOnly: true}, {Path: image, Format: DiskRaw, ReadOnly: true, Discard: true}}
			}
			p.Spec.Networks = []Network{{Type: NetworkUser, MAC: "52:54:00:00:00:01", Forwards: []Forward{{Protocol: "udp", HostPort: 53999, GuestPort: 53}}}}
			c, err := p.QEMUCommand(QEMUOptions{Dir: dir})
			if err != nil {
				t.Fatal(err)
			}
			whole := runQEMU(t, qemu, c.Args)
			if !saysOne(whole, missingHardware) && !(p.SVSM != nil && saysOne(whole, missingBuild)) && !(old && saysOne(whole, before91)) {
				t.Errorf("%s: %s: QEMU says\n%s", qemu, name, whole)
			}
			// The rest is looked at later than the hardware: without what needs
			// that, the VM must come up.
			rest := runQEMU(t, qemu, withoutSEV(c.Args))
			absent := p.Spec.Vsock != nil || p.Spec.Hugepages != ""
			if rest != "prelaunch" && !(absent && saysOne(rest, missingHost)) && !(p.SVSM != nil && saysOne(rest, missingBuild)) && !(old && saysOne(rest, before91)) {
				t.Errorf("%s: %s: without SEV-SNP, QEMU says\n%s", qemu, name, rest)
			}
			if testing.Verbose() {
				fmt.Printf("QEMU %-7s %-24s %s\n%-37s without SEV-SNP: %s\n", version, name, lastLine(whole), "", lastLine(rest))
			}
		}
	}
}

// TestE2EQEMUAcceptsNotAll: the words above do not hide a mistake.
func TestE2EQEMUAcceptsNotAll(t *testing.T) {
	_, s := planDir(t, "platform: snp")
	c := qemuCommand(t, resolve(t, s))
	for i, a := range c.Args {
		c.Args[i] = strings.Replace(a, `"policy":`, `"polciy":`, 1)
	}
	for _, qemu := range qemus(t) {
		if said := runQEMU(t, qemu, c.Args); saysOne(said, missingHardware) || !strings.Contains(said, "polciy") {
			t.Errorf("%s: about a property that does not exist, QEMU says\n%s", qemu, said)
		}
	}
}

func qemuVersion(t *testing.T, qemu string) string {
	t.Helper()
	out, err := exec.Command(qemu, "--version").Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.Fields(string(out))[3]
}

// lastLine is what QEMU ended with; warnings come before it.
func lastLine(s string) string { return s[strings.LastIndexByte(s, '\n')+1:] }

// withoutSEV takes out what needs the hardware.
func withoutSEV(args []string) []string {
	var out []string
	for i := 0; i < len(args); i++ {
		switch {
		case args[i] == "-object" && (strings.Contains(args[i+1], "sev-snp-guest") || strings.Contains(args[i+1], "igvm-cfg")):
			i++
		case args[i] == "-machine":
			m := strings.NewReplacer("accel=kvm", "accel=tcg", ",confidential-guest-support=sev0", "", ",igvm-cfg=igvm0", "").Replace(args[i+1])
			out = append(out, args[i], m)
			i++
		case slices.Contains([]string{"-kernel", "-initrd", "-append"}, args[i]):
			i++ // the tests' kernel is none that QEMU would load
		case args[i] == "-cpu" && args[i+1] == "host":
			out = append(out, "-cpu", "max")
			i++
		default:
			out = append(out, args[i])
		}
	}
	return out
}

// runQEMU starts QEMU and returns what it says before it ends, or "prelaunch"
// when it is ready to run.
func runQEMU(t *testing.T, qemu string, args []string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, qemu, append(args, "-qmp", "stdio")...)
	cmd.Stdin = strings.NewReader(`{"execute":"qmp_capabilities"}{"execute":"query-status"}{"execute":"quit"}`)
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); err != nil {
		return strings.TrimSpace(said.String())
	}
	if strings.Contains(out.String(), `"status": "prelaunch"`) {
		return "prelaunch"
	}
	return out.String() + said.String()
}
