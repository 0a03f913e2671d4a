package doctor

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/evtpm/evtpm/attest"
	"github.com/evtpm/evtpm/launch"
	"github.com/evtpm/evtpm/launch/launchtest"
	"github.com/evtpm/evtpm/launch/sev"
	"github.com/evtpm/evtpm/ovmf/ovmftest"
	"github.com/evtpm/evtpm/qmp"
)

// fakeHost is a host that has everything, until a test takes something away.
type fakeHost struct {
	root   string
	o      Options
	status sev.Status
	types  uint32
	qemu   *fakeQEMU
	swtpm  string // what it prints
	lacks  []string
}

// cpuinfo is the first processor of /proc/cpuinfo, and the second's beginning.
const cpuinfo = "processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: AMD EPYC 9554 64-Core Processor\n" +
	"stepping\t: 1\nflags\t\t: fpu svm sev sev_es sev_snp\n\nprocessor\t: 1\nvendor_id\t: Other\n"

func newFakeHost(t *testing.T) *fakeHost {
	h := &fakeHost{root: t.TempDir(), types: 1 | 1<<kvmTypeSNP, qemu: newFakeQEMU()}
	h.swtpm = `{"type": "swtpm", "features": ["tpm-2.0", "nvram-backend-file"], "version": "0.8.0"}`
	h.status = sev.Status{APIMajor: 1, APIMinor: 55, Build: 40, Initialized: true, RMP: true}
	h.status.CurrentTCB = attest.TCBLayoutMilan.Join(attest.TCB{Bootloader: 10, SNP: 27, Microcode: 86})
	h.status.ReportedTCB = h.status.CurrentTCB
	h.set(t, "proc/cpuinfo", cpuinfo)
	h.set(t, "proc/sys/kernel/osrelease", "6.12.30-amd64\n")
	h.set(t, "proc/cmdline", "root=/dev/sda1 quiet\n")
	h.set(t, "proc/meminfo", "MemTotal:       33554432 kB\nMemFree:        1 kB\nMemAvailable:   16777216 kB\n")
	for _, name := range []string{"sev", "sev_es", "sev_snp"} {
		h.set(t, "sys/module/kvm_amd/parameters/"+name, "Y\n")
	}
	h.set(t, "sys/fs/cgroup/misc.capacity", "sev 410\nsev_es 99\n")
	h.set(t, "sys/fs/cgroup/misc.current", "sev 0\nsev_es 3\n")
	h.set(t, "dev/kvm", "")
	h.set(t, "dev/sev", "")
	h.set(t, "usr/share/ovmf/OVMF.amdsev.fd", string(ovmftest.Build(ovmftest.AmdSev())))
	home, err := os.MkdirTemp("", "evtpm-test-") // a short path: there are sockets in it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(home) })
	h.o = Options{Root: h.root, Home: home, StateDir: t.TempDir(), RuntimeDir: t.TempDir()}
	h.o.VMTypes = func(*os.File) (uint32, error) { return h.types, nil }
	h.o.SNPStatus = func(*os.File) (sev.Status, error) { return h.status, nil }
	h.o.ChipID = func(*os.File) ([]byte, error) { return bytes.Repeat([]byte{7}, 64), nil }
	h.o.Libvirt = func(context.Context, LibvirtQuery) (*LibvirtAnswer, error) {
		return nil, errors.New("not to be asked")
	}
	h.o.connect = h.qemu.connect
	h.o.lookPath = func(name string) (string, error) {
		if slices.Contains(h.lacks, name) {
			return "", fs.ErrNotExist
		}
		if name == "swtpm" {
			path := filepath.Join(h.root, "swtpm")
			launchtest.Write(t, path, []byte("#!/bin/sh\n/bin/cat <<'EOT'\n"+h.swtpm+"\nEOT\n"))
			return path, os.Chmod(path, 0o700)
		}
		return "/usr/bin/" + name, nil
	}
	return h
}

// set writes a file of the host; remove removes one.
func (h *fakeHost) set(t *testing.T, name, text string) {
	t.Helper()
	path := filepath.Join(h.root, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	launchtest.Write(t, path, []byte(text))
}

func (h *fakeHost) remove(t *testing.T, name string) {
	t.Helper()
	if err := os.RemoveAll(filepath.Join(h.root, name)); err != nil {
		t.Fatal(err)
	}
}

// fakeQEMU answers the questions that are put to an empty QEMU.
type fakeQEMU struct {
	types    map[string][]string // with their properties
	machines string
	cpus     string
	kvm      bool
	tpmTypes string
	models   string
	options  []string // of the command line
	hangs    bool
	err      error
}

func newFakeQEMU() *fakeQEMU {
	return &fakeQEMU{
		types: map[string][]string{
			"sev-snp-guest":        append([]string{"vcek-disabled"}, snpProperties...),
			"igvm-cfg":             {"file"},
			"memory-backend-memfd": {"size", "share", "prealloc", "hugetlb", "hugetlbsize"},
			"pc-q35-11.1-machine":  {"smm", "dump-guest-core", "memory-backend", "confidential-guest-support", "igvm-cfg"},
			"virtio-serial-pci":    {"max_ports"},
			"virtserialport":       {"nr", "chardev", "name"},
			"tpm-crb":              {"tpmdev"},
			"loader":               {"file", "addr", "force-raw"},
			"virtio-blk-pci":       {"drive"},
			"virtio-net-pci":       {"netdev", "romfile", "mac"},
			"vhost-vsock-pci":      {"guest-cid"},
			"virtio-rng-pci":       {},
		},
		machines: `[{"name": "none", "cpu-max": 1}, {"name": "pc-q35-11.1", "alias": "q35", "cpu-max": 4096}]`,
		cpus:     `[{"name": "EPYC-v4"}, {"name": "EPYC-Genoa"}]`,
		kvm:      true,
		tpmTypes: `["passthrough", "emulator"]`,
		models:   `["tpm-crb", "tpm-tis"]`,
		options:  []string{"sandbox"},
	}
}

func (q *fakeQEMU) connect(ctx context.Context, _ string) (*qmp.Client, func(), error) {
	if q.err != nil {
		return nil, nil, q.err
	}
	ours, theirs := net.Pipe()
	go q.serve(theirs)
	c, err := qmp.NewClient(ctx, ours)
	if err != nil {
		return nil, nil, err
	}
	return c, func() { c.Close() }, nil
}

func (q *fakeQEMU) serve(conn net.Conn) {
	defer conn.Close()
	fmt.Fprintln(conn, `{"QMP": {"version": {"qemu": {"major": 11, "minor": 1, "micro": 3}, "package": ""}, "capabilities": []}}`)
	lines := bufio.NewScanner(conn)
	for lines.Scan() {
		var cmd struct {
			Execute   string
			Arguments map[string]any
			ID        string
		}
		if json.Unmarshal(lines.Bytes(), &cmd) != nil {
			return
		}
		result, found := q.answer(cmd.Execute, cmd.Arguments)
		switch {
		case q.hangs && cmd.Execute != "qmp_capabilities":
		case found:
			fmt.Fprintf(conn, `{"return": %s, "id": %q}`+"\n", result, cmd.ID)
		default:
			fmt.Fprintf(conn, `{"error": {"class": "DeviceNotFound", "desc": "not found"}, "id": %q}`+"\n", cmd.ID)
		}
	}
}

func (q *fakeQEMU) answer(command string, args map[string]any) (string, bool) {
	switch command {
	case "qmp_capabilities":
		return "{}", true
	case "qom-list-properties", "device-list-properties":
		properties, ok := q.types[fmt.Sprint(args["typename"])]
		list := []map[string]string{}
		for _, p := range properties {
			list = append(list, map[string]string{"name": p})
		}
		out, _ := json.Marshal(list)
		return string(out), ok
	case "query-machines":
		return q.machines, true
	case "query-cpu-definitions":
		return q.cpus, true
	case "query-kvm":
		return fmt.Sprintf(`{"enabled": false, "present": %t}`, q.kvm), true
	case "query-tpm-types":
		return q.tpmTypes, true
	case "query-tpm-models":
		return q.models, true
	case "query-command-line-options":
		return "[]", slices.Contains(q.options, fmt.Sprint(args["option"]))
	}
	return "", false
}

// notOK lists the findings that are not ok: "fail kvm", in order.
func notOK(r *Report) []string {
	var out []string
	for _, f := range r.Findings {
		if f.Status != OK {
			out = append(out, string(f.Status)+" "+f.Name)
		}
	}
	return out
}

func examine(t *testing.T, h *fakeHost, spec *launch.Spec) *Report {
	t.Helper()
	r, err := Examine(t.Context(), spec, h.o)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range r.Findings {
		if f.Found == "" || len(f.Platforms) == 0 || (f.Status == OK) != (f.Fix == "") || (f.Status == OK) != (f.Needed == "") {
			t.Errorf("finding without what belongs to it: %+v", f)
		}
	}
	return r
}

func TestDoctorGoodHost(t *testing.T) {
	r := examine(t, newFakeHost(t), nil)
	if got := notOK(r); got != nil || !r.Works {
		t.Errorf("works %t, found %q", r.Works, got)
	}
	if want := "this machine can run SEV-SNP guests; the simulated platform works"; r.Summary != want {
		t.Errorf("summary %q, expected %q", r.Summary, want)
	}
	if diff := cmp.Diff(map[string]bool{launch.PlatformSNP: true, launch.PlatformSim: true}, r.Platforms); diff != "" {
		t.Error(diff)
	}
}

// TestL28 takes one thing away from a host that has everything: that, and
// nothing else, must be told, and the platforms that need it do not work.
func TestL28(t *testing.T) {
	const cmdline = "proc/cmdline"
	both, snp, sim := "no snp, no sim", "no snp", "no sim"
	for name, c := range map[string]struct {
		take func(t *testing.T, h *fakeHost)
		want []string
		lost string // "" when all platforms still work
	}{
		"not AMD": {func(t *testing.T, h *fakeHost) {
			h.set(t, "proc/cpuinfo", strings.Replace(cpuinfo, "AuthenticAMD", "GenuineIntel", 1))
		}, []string{"fail cpu"}, snp},
		"Rome": {func(t *testing.T, h *fakeHost) {
			h.set(t, "proc/cpuinfo", strings.Replace(cpuinfo, "family\t: 25", "family\t: 23", 1))
		}, []string{"fail cpu"}, snp},
		"no cpuinfo": {func(t *testing.T, h *fakeHost) { h.remove(t, "proc/cpuinfo") }, []string{"fail cpu"}, snp},
		"SNP off in the BIOS": {func(t *testing.T, h *fakeHost) {
			h.set(t, "proc/cpuinfo", strings.Replace(cpuinfo, " sev_snp", "", 1))
		}, []string{"fail sev-snp"}, snp},
		"in a VM": {func(t *testing.T, h *fakeHost) {
			h.set(t, "proc/cpuinfo", strings.Replace(cpuinfo, "sev_snp", "hypervisor", 1))
		}, []string{"fail sev-snp"}, snp},
		"no kvm_amd": {func(t *testing.T, h *fakeHost) { h.remove(t, "sys/module/kvm_amd") }, []string{"fail kvm-amd"}, snp},
		"sev_snp=N": {func(t *testing.T, h *fakeHost) {
			h.set(t, "sys/module/kvm_amd/parameters/sev_snp", "N\n")
		}, []string{"fail kvm-amd"}, snp},
		"kernel without sev_snp": {func(t *testing.T, h *fakeHost) {
			h.remove(t, "sys/module/kvm_amd/parameters/sev_snp")
		}, []string{"fail kvm-amd"}, snp},
		"SEV without ASIDs of its own": {func(t *testing.T, h *fakeHost) {
			h.set(t, "sys/module/kvm_amd/parameters/sev", "N\n")
		}, nil, ""},
		"old kernel": {func(t *testing.T, h *fakeHost) {
			h.remove(t, "sys/module/kvm_amd/parameters/sev_snp")
			h.set(t, "proc/sys/kernel/osrelease", "6.10.9\n")
		}, []string{"fail kvm-amd", "fail kernel"}, snp},
		"old kernel that has SNP": {func(t *testing.T, h *fakeHost) {
			h.set(t, "proc/sys/kernel/osrelease", "5.14.0-570.el9\n")
		}, nil, ""},
		"no kernel version": {func(t *testing.T, h *fakeHost) { h.remove(t, "proc/sys/kernel") }, []string{"warn kernel"}, ""},
		"iommu=pt": {func(t *testing.T, h *fakeHost) {
			h.set(t, cmdline, "quiet iommu=nobypass,pt")
			h.set(t, "sys/module/kvm_amd/parameters/sev_snp", "N\n")
		}, []string{"fail kvm-amd", "fail kernel-parameters"}, snp},
		"iommu=pt where it does no harm": {func(t *testing.T, h *fakeHost) { h.set(t, cmdline, "iommu=pt") }, nil, ""},
		"no /dev/kvm":                    {func(t *testing.T, h *fakeHost) { h.remove(t, "dev/kvm") }, []string{"fail kvm"}, snp},
		"KVM without SNP":                {func(_ *testing.T, h *fakeHost) { h.types = 1 }, []string{"fail kvm"}, snp},
		"KVM does not answer": {func(_ *testing.T, h *fakeHost) {
			h.o.VMTypes = func(*os.File) (uint32, error) { return 1 << kvmTypeSNP, errors.New("no") }
		}, []string{"fail kvm"}, snp},
		"no /dev/sev": {func(t *testing.T, h *fakeHost) { h.remove(t, "dev/sev") }, []string{"fail sev-device"}, snp},
		"/dev/sev is no device": {func(t *testing.T, h *fakeHost) {
			h.remove(t, "dev/sev")
			h.set(t, "dev/sev/x", "")
		}, []string{"fail sev-device"}, snp},
		"AMD-SP does not answer": {func(_ *testing.T, h *fakeHost) {
			h.o.SNPStatus = func(*os.File) (sev.Status, error) { return h.status, errors.New("no") }
		}, []string{"fail sp-firmware"}, snp},
		"chip not known": {func(_ *testing.T, h *fakeHost) {
			h.o.ChipID = func(*os.File) ([]byte, error) { return nil, errors.New("no") }
		}, []string{"fail chip"}, snp},
		"old AMD-SP firmware":      {func(_ *testing.T, h *fakeHost) { h.status.APIMinor = 50 }, []string{"fail sp-firmware"}, snp},
		"AMD-SP not initialised":   {func(_ *testing.T, h *fakeHost) { h.status.Initialized = false }, []string{"fail sp-firmware"}, snp},
		"no RMP":                   {func(_ *testing.T, h *fakeHost) { h.status.RMP = false }, []string{"fail rmp"}, snp},
		"masked chip id":           {func(_ *testing.T, h *fakeHost) { h.status.MaskChipID = true }, []string{"warn chip-id"}, ""},
		"reported TCB below floor": {func(_ *testing.T, h *fakeHost) { h.status.ReportedTCB -= 1 << 56 }, []string{"fail tcb"}, snp},
		"current TCB below floor":  {func(_ *testing.T, h *fakeHost) { h.status.CurrentTCB -= 1 << 48 }, []string{"fail tcb"}, snp},
		"boot loader below floor":  {func(_ *testing.T, h *fakeHost) { h.status.ReportedTCB-- }, []string{"fail tcb"}, snp},
		"reserved bytes in TCB":    {func(_ *testing.T, h *fakeHost) { h.status.CurrentTCB |= 1 << 32 }, []string{"fail tcb"}, snp},
		"no floor known": {func(t *testing.T, h *fakeHost) {
			h.set(t, "proc/cpuinfo", strings.Replace(cpuinfo, "stepping\t: 1", "stepping\t: 9", 1))
		}, []string{"fail tcb"}, snp},
		"Milan": {func(t *testing.T, h *fakeHost) {
			h.set(t, "proc/cpuinfo", strings.Replace(cpuinfo, "model\t\t: 17", "model\t\t: 1", 1))
			h.status.CurrentTCB = attest.TCBLayoutMilan.Join(attest.TCB{Bootloader: 4, SNP: 29, Microcode: 222})
			h.status.ReportedTCB = h.status.CurrentTCB
		}, []string{"warn tcb"}, ""},
		"no ASIDs":       {func(t *testing.T, h *fakeHost) { h.set(t, "sys/fs/cgroup/misc.capacity", "sev 509\nsev_es 0\n") }, []string{"fail asids"}, snp},
		"all ASIDs used": {func(t *testing.T, h *fakeHost) { h.set(t, "sys/fs/cgroup/misc.current", "sev_es 99\n") }, []string{"fail asids"}, snp},
		"ASIDs of cgroup v1": {func(t *testing.T, h *fakeHost) {
			h.remove(t, "sys/fs/cgroup/misc.capacity")
			h.set(t, "sys/fs/cgroup/misc/misc.capacity", "sev_es 0\n")
		}, []string{"fail asids"}, snp},
		"ASIDs not known": {func(t *testing.T, h *fakeHost) { h.remove(t, "sys/fs/cgroup") }, []string{"warn asids"}, ""},

		"no QEMU":                {func(_ *testing.T, h *fakeHost) { h.lacks = []string{"qemu-system-x86_64"} }, []string{"fail qemu"}, both},
		"QEMU does not start":    {func(_ *testing.T, h *fakeHost) { h.qemu.err = errors.New("no") }, []string{"fail qemu"}, both},
		"QEMU without SNP":       {func(_ *testing.T, h *fakeHost) { delete(h.qemu.types, "sev-snp-guest") }, []string{"fail qemu-snp"}, snp},
		"QEMU without id-auth":   {func(_ *testing.T, h *fakeHost) { h.qemu.types["sev-snp-guest"] = snpProperties[:6] }, []string{"fail qemu-snp"}, snp},
		"QEMU without KVM":       {func(_ *testing.T, h *fakeHost) { h.qemu.kvm = false }, []string{"fail qemu-kvm"}, snp},
		"QEMU without IGVM":      {func(_ *testing.T, h *fakeHost) { delete(h.qemu.types, "igvm-cfg") }, []string{"warn qemu-igvm"}, ""},
		"QEMU without TPMs":      {func(_ *testing.T, h *fakeHost) { h.qemu.tpmTypes = `["passthrough"]` }, []string{"fail qemu-tpm"}, sim},
		"QEMU without tpm-crb":   {func(_ *testing.T, h *fakeHost) { h.qemu.models = `["tpm-tis"]` }, []string{"fail qemu-tpm"}, sim},
		"QEMU answers strangely": {func(_ *testing.T, h *fakeHost) { h.qemu.models = `7` }, []string{"fail qemu-tpm", "fail qemu-answers"}, both},

		"no swtpm":             {func(_ *testing.T, h *fakeHost) { h.lacks = []string{"swtpm"} }, []string{"fail swtpm"}, sim},
		"swtpm says nothing":   {func(_ *testing.T, h *fakeHost) { h.swtpm = "" }, []string{"fail swtpm"}, sim},
		"old swtpm":            {func(_ *testing.T, h *fakeHost) { h.swtpm = strings.Replace(h.swtpm, "nvram-backend-file", "x", 1) }, []string{"fail swtpm"}, sim},
		"swtpm for TPM 1.2":    {func(_ *testing.T, h *fakeHost) { h.swtpm = strings.Replace(h.swtpm, "tpm-2.0", "tpm-1.2", 1) }, []string{"fail swtpm"}, sim},
		"no firmware":          {func(t *testing.T, h *fakeHost) { h.remove(t, "usr") }, []string{"fail firmware"}, both},
		"firmware without SEV": {func(t *testing.T, h *fakeHost) { h.set(t, "usr/share/ovmf/OVMF.amdsev.fd", string(make([]byte, 8192))) }, []string{"warn firmware", "fail firmware"}, both},
		"run directory open to others": {func(t *testing.T, h *fakeHost) {
			if err := os.Chmod(h.o.Home, 0o755); err != nil {
				t.Fatal(err)
			}
		}, []string{"fail run-directory"}, both},
		"run directory too long":   {func(_ *testing.T, h *fakeHost) { h.o.Home += "/" + strings.Repeat("x", 80) }, []string{"fail run-directory"}, both},
		"run directory to be made": {func(_ *testing.T, h *fakeHost) { h.o.Home += "/a/b" }, nil, ""},
		"run directory is a file": {func(t *testing.T, h *fakeHost) {
			h.o.Home += "/f"
			launchtest.Write(t, h.o.Home, nil)
		}, []string{"fail run-directory"}, both},
		"run directory cannot be made": {func(t *testing.T, h *fakeHost) {
			link := filepath.Join(h.o.Home, "link")
			if err := os.Symlink("nowhere", link); err != nil {
				t.Fatal(err)
			}
			h.o.Home = filepath.Join(link, "home")
		}, []string{"fail run-directory"}, both},
		"state directory cannot be made": {func(t *testing.T, h *fakeHost) {
			h.o.StateDir = filepath.Join(launchtest.Write(t, filepath.Join(h.o.StateDir, "file"), nil), "state", "x")
		}, []string{"fail state-directory"}, both},
	} {
		t.Run(name, func(t *testing.T) {
			h := newFakeHost(t)
			c.take(t, h)
			r := examine(t, h, nil)
			if got := notOK(r); !slices.Equal(got, c.want) {
				t.Errorf("found %q, expected %q", got, c.want)
			}
			want := map[string]bool{launch.PlatformSNP: !strings.Contains(c.lost, snp), launch.PlatformSim: !strings.Contains(c.lost, sim)}
			if diff := cmp.Diff(want, r.Platforms); diff != "" {
				t.Error(diff)
			}
			if r.Works != (c.lost != both) {
				t.Errorf("works %t with %q", r.Works, c.lost)
			}
		})
	}
}

// TestL28Rights: a device or directory that this user may not open is told apart
// from one that is not there. Root may open everything, so a user without rights
// stands in for it.
func TestL28Rights(t *testing.T) {
	h := newFakeHost(t)
	if err := errors.Join(os.Chmod(filepath.Join(h.root, "dev/sev"), 0), os.Chmod(h.o.StateDir, 0o555)); err != nil {
		t.Fatal(err)
	}
	var r *Report
	asNobody(t, func() { r = examine(t, h, nil) })
	found := map[string]string{}
	for _, f := range r.Failures(launch.PlatformSNP) {
		found[f.Name] = f.Found
	}
	for name, want := range map[string]string{"sev-device": "/dev/sev may not be opened by this user", "state-directory": "permission denied"} {
		if !strings.Contains(found[name], want) {
			t.Errorf("%s: found %q, expected %q", name, found[name], want)
		}
	}
}

// asNobody calls f as a user to whom access rights apply.
func asNobody(t *testing.T, f func()) {
	t.Helper()
	if os.Geteuid() != 0 {
		f()
		return
	}
	// The thread is thrown away with its rights: it is never unlocked.
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var none [2]unix.CapUserData
		if err := unix.Capset(&header, &none[0]); err != nil {
			t.Errorf("capabilities: %v", err)
			return
		}
		f()
	}()
	<-done
}

// TestL28Spec takes away what one spec needs.
func TestL28Spec(t *testing.T) {
	dir := t.TempDir()
	disk := launchtest.Write(t, filepath.Join(dir, "disk.raw"), make([]byte, 512))
	for name, c := range map[string]struct {
		lines []string
		take  func(t *testing.T, h *fakeHost, s *launch.Spec)
		want  []string
	}{
		"plain snp": {[]string{"platform: snp"}, nil, nil},
		"plain sim": {[]string{"platform: sim"}, nil, nil},
		"chip not known, any taken": {[]string{"platform: snp", "attestation: {chip: any}"}, func(_ *testing.T, h *fakeHost, _ *launch.Spec) {
			h.o.ChipID = func(*os.File) ([]byte, error) { return nil, errors.New("no") }
		}, nil},
		"no firmware file": {[]string{"platform: snp"}, func(_ *testing.T, _ *fakeHost, s *launch.Spec) { s.Firmware.Path += "x" }, []string{"fail inputs"}},
		"no files at all": {[]string{"platform: sim"}, func(_ *testing.T, _ *fakeHost, s *launch.Spec) {
			s.Firmware.Path, s.Kernel, s.Initrd = "/x", "/y", "/z"
		}, []string{"fail inputs", "fail inputs", "fail inputs"}},
		"firmware without hashes": {[]string{"platform: sim"}, func(t *testing.T, _ *fakeHost, s *launch.Spec) {
			i := ovmftest.AmdSev()
			i.Entries = slices.DeleteFunc(slices.Clone(i.Entries), func(e ovmftest.Entry) bool { return strings.HasPrefix(e.GUID, "7255371f") })
			launchtest.Write(t, s.Firmware.Path, ovmftest.Build(i))
		}, []string{"fail inputs"}},
		"no policy file":                       {[]string{"platform: sim", "attestation: {policy: none.yaml}"}, nil, []string{"fail inputs"}},
		"guest policy asks for newer firmware": {[]string{"platform: snp", "policy: {abi_major: 1, abi_minor: 58}"}, nil, []string{"fail sp-firmware"}},
		"guest policy that is met":             {[]string{"platform: snp", "policy: {abi_major: 1, abi_minor: 55}"}, nil, nil},
		"CPU model not known":                  {[]string{"platform: snp", "cpu: {model: EPYC-Turin}"}, nil, []string{"fail qemu-options"}},
		"machine not known":                    {[]string{"platform: sim", "qemu: {machine: pc-q35-4.2}"}, nil, []string{"fail qemu-options"}},
		"machine known by its own name":        {[]string{"platform: sim", "qemu: {machine: pc-q35-11.1}"}, nil, nil},
		"too many vCPUs": {[]string{"platform: sim", "cpu: {count: 300}"}, func(_ *testing.T, h *fakeHost, _ *launch.Spec) {
			h.qemu.machines = strings.Replace(h.qemu.machines, "4096", "288", 1)
		}, []string{"fail qemu-options"}},
		"no virtserialport": {[]string{"platform: snp"}, func(_ *testing.T, h *fakeHost, _ *launch.Spec) { delete(h.qemu.types, "virtserialport") }, []string{"fail qemu-options"}},
		"property missing":  {[]string{"platform: sim"}, func(_ *testing.T, h *fakeHost, _ *launch.Spec) { h.qemu.types["loader"] = []string{"file", "addr"} }, []string{"fail qemu-options"}},
		"object missing":    {[]string{"platform: snp"}, func(_ *testing.T, h *fakeHost, _ *launch.Spec) { delete(h.qemu.types, "memory-backend-memfd") }, []string{"fail qemu-options"}},
		"machine property missing": {[]string{"platform: snp"}, func(_ *testing.T, h *fakeHost, _ *launch.Spec) {
			h.qemu.types["pc-q35-11.1-machine"] = []string{"smm", "dump-guest-core", "memory-backend"}
		}, []string{"fail qemu-options"}},
		"no sandbox":                 {[]string{"platform: sim"}, func(_ *testing.T, h *fakeHost, _ *launch.Spec) { h.qemu.options = nil }, []string{"warn qemu-sandbox"}},
		"no IGVM, not needed":        {[]string{"platform: snp"}, func(_ *testing.T, h *fakeHost, _ *launch.Spec) { delete(h.qemu.types, "igvm-cfg") }, nil},
		"sim with KVM":               {[]string{"platform: sim", "qemu: {accel: kvm}"}, nil, nil},
		"sim with KVM, QEMU without": {[]string{"platform: sim", "qemu: {accel: kvm}"}, func(_ *testing.T, h *fakeHost, _ *launch.Spec) { h.qemu.kvm = false }, []string{"fail qemu-kvm"}},
		"sim with KVM, none there":   {[]string{"platform: sim", "qemu: {accel: kvm}"}, func(t *testing.T, h *fakeHost, _ *launch.Spec) { h.remove(t, "dev/kvm") }, []string{"fail kvm"}},
		"sim without an SNP host": {[]string{"platform: sim"}, func(t *testing.T, h *fakeHost, _ *launch.Spec) {
			for _, name := range []string{"dev/kvm", "dev/sev", "sys", "proc/cpuinfo", "usr"} {
				h.remove(t, name)
			}
			h.qemu.kvm = false
			delete(h.qemu.types, "sev-snp-guest")
		}, nil},
		"memory too large": {[]string{"platform: sim", "memory: 64G"}, nil, []string{"fail memory"}},
		"memory in use":    {[]string{"platform: sim", "memory: 24G"}, nil, []string{"warn memory"}},
		"memory not known": {[]string{"platform: sim"}, func(t *testing.T, h *fakeHost, _ *launch.Spec) { h.remove(t, "proc/meminfo") }, []string{"warn memory"}},
		"no huge pages":    {[]string{"platform: sim", "hugepages: 2M", "memory: 512M"}, nil, []string{"fail hugepages"}},
		"too few huge pages": {[]string{"platform: sim", "hugepages: 2M", "memory: 512M"}, func(t *testing.T, h *fakeHost, _ *launch.Spec) {
			h.set(t, "sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "255\n")
		}, []string{"fail hugepages"}},
		"huge pages": {[]string{"platform: sim", "hugepages: 2M", "memory: 512M"}, func(t *testing.T, h *fakeHost, _ *launch.Spec) {
			h.set(t, "sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "256\n")
		}, nil},
		"disk":                {[]string{"platform: sim", "disks: [{path: " + disk + ", format: raw}]"}, nil, nil},
		"no disk":             {[]string{"platform: sim", "disks: [{path: /nonexistent, format: raw}]"}, nil, []string{"fail disk"}},
		"disk is a directory": {[]string{"platform: sim", "disks: [{path: " + dir + ", format: raw, readonly: true}]"}, nil, []string{"fail disk"}},
		"no bridge":           {[]string{"platform: sim", "networks: [{type: bridge, bridge: br0}]"}, nil, []string{"fail network"}},
		"bridge not allowed": {[]string{"platform: sim", "networks: [{type: bridge, bridge: br0}]"}, func(t *testing.T, h *fakeHost, _ *launch.Spec) {
			h.set(t, "sys/class/net/br0/bridge/x", "")
			h.set(t, "etc/qemu/bridge.conf", "allow br1\ndeny all\n")
		}, []string{"fail network"}},
		"bridge": {[]string{"platform: sim", "networks: [{type: bridge, bridge: br0}]"}, func(t *testing.T, h *fakeHost, _ *launch.Spec) {
			h.set(t, "sys/class/net/br0/bridge/x", "")
			h.set(t, "etc/qemu/bridge.conf", "allow br0\n")
		}, nil},
		"no tap": {[]string{"platform: sim", "networks: [{type: tap, device: tap0}]"}, nil, []string{"fail network"}},
		"tap without tun": {[]string{"platform: sim", "networks: [{type: tap, device: tap0}]"}, func(t *testing.T, h *fakeHost, _ *launch.Spec) {
			h.set(t, "sys/class/net/tap0/tun_flags", "0x1002\n")
		}, []string{"fail network"}},
		"tap": {[]string{"platform: sim", "networks: [{type: tap, device: tap0}]"}, func(t *testing.T, h *fakeHost, _ *launch.Spec) {
			h.set(t, "sys/class/net/tap0/tun_flags", "0x1002\n")
			h.set(t, "dev/net/tun", "")
		}, nil},
		"no vsock": {[]string{"platform: sim", "vsock: {cid: 5}"}, nil, []string{"fail vsock"}},
		"vsock":    {[]string{"platform: sim", "vsock: {cid: 5}"}, func(t *testing.T, h *fakeHost, _ *launch.Spec) { h.set(t, "dev/vhost-vsock", "") }, nil},
	} {
		t.Run(name, func(t *testing.T) {
			spec := specOf(t, c.lines...)
			h := newFakeHost(t)
			if c.take != nil {
				c.take(t, h, spec)
			}
			r := examine(t, h, spec)
			if got := notOK(r); !slices.Equal(got, c.want) {
				t.Errorf("found %q, expected %q", got, c.want)
				for _, f := range r.Findings {
					t.Logf("%+v", f)
				}
			}
			works := !slices.ContainsFunc(c.want, func(s string) bool { return strings.HasPrefix(s, "fail") })
			if r.Works != works || r.Platforms[spec.Platform] != works || r.Platform != spec.Platform || r.Name != spec.Name {
				t.Errorf("works %t, expected %t: %+v", r.Works, works, r)
			}
		})
	}
}

// TestL28SVSM: an SVSM image needs what an image without does not.
func TestL28SVSM(t *testing.T) {
	spec := igvmSpecOf(t, launchtest.IGVM(t, 0))
	spec.SVSM.DevicePlane = true
	for name, c := range map[string]struct {
		take func(q *fakeQEMU)
		want []string
	}{
		"COCONUT's QEMU": {func(q *fakeQEMU) {
			q.types["pc-q35-11.1-machine"] = append(q.types["pc-q35-11.1-machine"], "device-plane", "x-svsm-virtio-mmio")
		}, nil},
		"upstream's QEMU": {func(*fakeQEMU) {}, []string{"fail qemu-options"}},
		"a QEMU without IGVM": {func(q *fakeQEMU) {
			delete(q.types, "igvm-cfg")
			q.types["pc-q35-11.1-machine"] = []string{"smm", "dump-guest-core", "memory-backend", "confidential-guest-support", "device-plane", "x-svsm-virtio-mmio"}
		}, []string{"fail qemu-igvm"}},
	} {
		t.Run(name, func(t *testing.T) {
			h := newFakeHost(t)
			c.take(h.qemu)
			if got := notOK(examine(t, h, spec)); !slices.Equal(got, c.want) {
				t.Errorf("found %q, expected %q", got, c.want)
			}
		})
	}
}

// TestDoctorReasons: the conclusion names what is missing, and not more than a
// person reads.
func TestDoctorReasons(t *testing.T) {
	h := newFakeHost(t)
	h.remove(t, "proc/cpuinfo")
	h.remove(t, "sys/module")
	h.remove(t, "dev/kvm")
	h.remove(t, "dev/sev")
	r := examine(t, h, nil)
	for _, want := range []string{"this machine cannot run SEV-SNP guests: the processor is not known", "/dev/kvm is not there, and more", "; the simulated platform works"} {
		if !strings.Contains(r.Summary, want) {
			t.Errorf("found %q, expected %q in it", r.Summary, want)
		}
	}
	if strings.Contains(r.Summary, "/dev/sev") {
		t.Errorf("found %q, expected three reasons", r.Summary)
	}
	h.lacks = []string{"swtpm"}
	if r = examine(t, h, nil); !strings.Contains(r.Summary, "the simulated platform does not work: swtpm is not installed") || r.Works {
		t.Errorf("found %q, works %t", r.Summary, r.Works)
	}
}

// TestDoctorHangingQEMU: a QEMU that answers nothing ends with the context.
func TestDoctorHangingQEMU(t *testing.T) {
	h := newFakeHost(t)
	h.qemu.hangs = true
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	begin := time.Now()
	if _, err := Examine(ctx, nil, h.o); !errors.Is(err, context.DeadlineExceeded) || time.Since(begin) > 5*time.Second {
		t.Errorf("found %v after %v, expected a deadline", err, time.Since(begin))
	}
}

func TestDoctorChangesNothing(t *testing.T) {
	h := newFakeHost(t)
	h.o.Home, h.o.StateDir = filepath.Join(h.o.Home, "home"), filepath.Join(h.o.StateDir, "state")
	if r := examine(t, h, nil); !r.Works {
		t.Fatal(r.Summary)
	}
	for _, dir := range []string{h.o.Home, h.o.StateDir} {
		if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s was made", dir)
		}
	}
	if _, err := Examine(t.Context(), nil, Options{}); err == nil {
		t.Error("accepted without directories")
	}
}

// A file that is no such device refuses the request instead of filling it in.
func TestNoKVM(t *testing.T) {
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if n, err := kvmVMTypes(f); err == nil {
		t.Errorf("%s: found VM types %#x, expected an error", os.DevNull, n)
	}
}

func TestOptionKeys(t *testing.T) {
	for option, want := range map[string]string{
		"q35":                         "q35 []",
		"loader,file=a,,b=c,addr=0x1": "loader [file addr]",
		"virtio-net-pci,romfile=":     "virtio-net-pci [romfile]",
	} {
		first, keys := optionKeys(option)
		if got := fmt.Sprint(first, " ", keys); got != want {
			t.Errorf("%q: found %s, expected %s", option, got, want)
		}
	}
}

// TestE2EDoctorQEMU asks real programs: the QEMU of this machine, and those that
// are unpacked beside it.
func TestE2EDoctorQEMU(t *testing.T) {
	for _, program := range []string{"qemu-system-x86_64", "swtpm"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("%s is not installed", program)
		}
	}
	binaries := []string{"qemu-system-x86_64"}
	for _, version := range []string{"qemu7", "qemu11"} {
		if other, err := filepath.Abs("../../build/" + version + "/qemu-system-x86_64"); err == nil {
			if _, err := os.Stat(other); err == nil {
				binaries = append(binaries, other)
			}
		}
	}
	for _, binary := range binaries {
		t.Run(filepath.Base(filepath.Dir(binary)), func(t *testing.T) {
			h := newFakeHost(t)
			h.o.connect, h.o.lookPath = nil, nil
			// Every object, device and property of the command lines.
			sim, snp := []string(nil), []string(nil)
			igvm, future := []string{"fail qemu-igvm", "fail qemu-options"}, []string{"fail qemu-options"}
			if strings.Contains(binary, "qemu7") {
				// It knows neither SEV-SNP nor the CPU model, and changes the kernel.
				sim, snp = []string{"fail qemu-options", "fail qemu-version"}, []string{"fail qemu-snp", "fail qemu-options"}
				igvm, future = append([]string{"fail qemu-snp"}, igvm...), sim
			}
			for platform, want := range map[string][]string{"sim": sim, "snp": snp} {
				spec := specOf(t, "platform: "+platform, "qemu: {binary: "+binary+"}", "rng: true",
					"disks: [{path: /dev/null, format: raw}]", "networks: [{type: user}]")
				spec.Disks[0].Path = launchtest.Write(t, filepath.Join(t.TempDir(), "disk"), make([]byte, 512))
				if got := notOK(examine(t, h, spec)); !slices.Equal(got, want) {
					t.Errorf("%s: found %q, expected %q", platform, got, want)
				}
			}
			spec := igvmSpecOf(t, launchtest.IGVM(t, 0), "qemu: {binary: "+binary+"}")
			spec.SVSM.DevicePlane = true
			if got := notOK(examine(t, h, spec)); !slices.Equal(got, igvm) {
				t.Errorf("a distribution's QEMU and COCONUT's image: found %q", got)
			}
			spec = specOf(t, "platform: sim", "qemu: {binary: "+binary+", machine: pc-q35-99.1}")
			if got := notOK(examine(t, h, spec)); !slices.Equal(got, future) {
				t.Errorf("a machine of the future: found %q", got)
			}
		})
	}
	h := newFakeHost(t)
	h.o.connect, h.o.lookPath = nil, func(string) (string, error) { return "/bin/true", nil }
	r := examine(t, h, nil)
	if got := notOK(r); !slices.Equal(got, []string{"fail qemu", "fail swtpm"}) {
		t.Errorf("/bin/true for QEMU and swtpm: found %q", got)
	}
}

// TestE2EDoctorLeavesNothing: QEMUs that were asked are gone, whatever they
// answered.
func TestE2EDoctorLeavesNothing(t *testing.T) {
	script := launchtest.Write(t, filepath.Join(t.TempDir(), "qemu"), []byte("#!/bin/sh\necho this is why >&2\nexec /bin/sleep 1000\n"))
	if err := os.Chmod(script, 0o700); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, _, err := connectEmptyQEMU(ctx, script)
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "this is why") {
		t.Errorf("found %v, expected a deadline and what the program said", err)
	}
	out, err := exec.Command("ps", "-o", "args=", "--ppid", fmt.Sprint(os.Getpid())).Output()
	if err != nil || strings.Contains(string(out), "sleep 1000") {
		t.Errorf("children: %s, %v", out, err)
	}
}

// specOf reads a spec with its inputs beside it.
func specOf(t *testing.T, lines ...string) *launch.Spec {
	t.Helper()
	_, path := launchtest.SpecDir(t, lines...)
	return readSpec(t, path)
}

// igvmSpecOf reads a spec of an SVSM image.
func igvmSpecOf(t *testing.T, image []byte, lines ...string) *launch.Spec {
	t.Helper()
	_, path := launchtest.IGVMSpecDir(t, image, lines...)
	return readSpec(t, path)
}

func readSpec(t *testing.T, path string) *launch.Spec {
	t.Helper()
	s, err := launch.ReadSpec(path, launch.SpecFileOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return s
}
