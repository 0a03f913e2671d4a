//go:build linux

package main

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// libvirtCapabilities is what a daemon has learned of this machine's QEMU: it
// takes seconds, and is the same for all.
var libvirtCapabilities = struct {
	sync.Mutex
	dir string
}{}

// shareCapabilities gives the rig's daemon what an earlier one has learned, or
// has it learn.
func (l *libvirtRig) shareCapabilities(t *testing.T) {
	t.Helper()
	own := filepath.Join(l.dir, "cache/libvirt/qemu/cache")
	libvirtCapabilities.Lock()
	defer libvirtCapabilities.Unlock()
	if libvirtCapabilities.dir == "" {
		l.virsh(t, "domcapabilities", "--virttype", "qemu", "--machine", "q35")
		dir, err := os.MkdirTemp("", "evtpm-test-caps-")
		if err == nil {
			err = os.CopyFS(dir, os.DirFS(own))
		}
		if err != nil {
			t.Fatal(err)
		}
		libvirtCapabilities.dir = dir
		return
	}
	l.stopDaemon()
	if err := os.RemoveAll(own); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(own, os.DirFS(libvirtCapabilities.dir)); err != nil {
		t.Fatal(err)
	}
	l.give(t)
	l.startDaemon(t)
}

// libvirtFaults lists what happens to launches through libvirt.
func libvirtFaults() []fault {
	var out []fault
	add := func(point, what string, codes ...int) {
		out = append(out, fault{point: point, what: what, codes: codes})
	}
	for _, p := range append(slices.Clone(libvirtPoints), struct {
		name string
		at   rpcPoint
		vm   bool
	}{name: "boot", vm: true}) {
		add(p.name, "kill-libvirtd", 8)
		add(p.name, "stop-libvirtd", 10)
		add(p.name, "kill-swtpm", 8)
		add(p.name, "kill-supervisor", 8)
		add(p.name, "kill-launcher", killed)
		add(p.name, "kill-launcher,supervisor", killed)
		add(p.name, "int-launcher", 130)
		add(p.name, "kill-libvirtd,supervisor", 8)
		if p.vm {
			add(p.name, "kill-qemu", 8)
			add(p.name, "stop-qemu", 10)
			add(p.name, "destroy", 8)
		}
		if p.name == "create" || p.name == "measure" {
			for _, mode := range []string{"rpc-drop", "rpc-garbage", "rpc-empty", "rpc-half", "rpc-huge"} {
				out = append(out, fault{point: p.name, mode: mode, codes: []int{8}})
			}
			out = append(out, fault{point: p.name, mode: "rpc-mute", codes: []int{10}})
		}
	}
	return out
}

// TestFaultLibvirt does everything to launches through libvirt: to the daemon, to
// QEMU, to evtpm's own processes, and to what libvirt says. As with
// TestFaultMatrix, nothing may run, lie about or hang afterwards, and libvirt may
// know no domain; and EVTPM_FAULTS=all runs all.
func TestFaultLibvirt(t *testing.T) {
	need(t, "libvirtd", "virsh", "qemu-system-x86_64", "swtpm")
	cases := libvirtFaults()
	if !allFaults() {
		few := cases[:0:0]
		for i, f := range cases {
			if i%11 == 1 {
				few = append(few, f)
			}
		}
		cases = few
	}
	var mu sync.Mutex
	runs, bad := 0, 0
	t.Run("all", func(t *testing.T) {
		for _, f := range cases {
			t.Run(f.name(), func(t *testing.T) {
				t.Parallel()
				began := time.Now()
				code := f.runLibvirt(t)
				mu.Lock()
				defer mu.Unlock()
				runs++
				ok := ""
				if t.Failed() {
					bad++
					ok = "FAILED"
				}
				report("libvirt %-8s %-26s code %3d %6.2fs %s", f.point, f.what+f.mode, code, time.Since(began).Seconds(), ok)
			})
		}
	})
	report("%d runs through libvirt, %d of them left something, hung or ended otherwise than they should", runs, bad)
}

// runLibvirt makes one launch and does to it what is to be done.
func (f fault) runLibvirt(t *testing.T) int {
	r := mustRig(t, fakeSettings{}, "")
	r.realQEMU(t)
	spec, err := os.ReadFile(r.spec)
	if err == nil {
		// A busy machine needs longer than a fake QEMU for its start.
		limits := "timeouts: {start: 2m, boot: 5m, attest: 2m, stop: 2s}"
		if slices.Contains(f.codes, 10) {
			limits = "timeouts: {start: 15s, boot: 6s, attest: 4s, stop: 2s}"
		}
		before, _, _ := strings.Cut(string(spec), "timeouts: ")
		err = os.WriteFile(r.spec, []byte(before+limits+"\nbackend: libvirt\n"), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	l := newLibvirtRig(t, r)
	l.shareCapabilities(t)
	var proxy *libvirtProxy
	for _, p := range libvirtPoints {
		if p.name == f.point {
			proxy = l.proxy(t, p.at, f.mode)
		}
	}
	cmd := l.command("launch", l.spec)
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(ended)
	}()
	defer func() {
		_ = cmd.Process.Kill()
		<-ended
		if t.Failed() {
			t.Logf("the launcher said:\n%s", said.String())
		}
	}()
	if f.mode == "" {
		l.reach(t, f.point, proxy, ended)
		l.inflict(t, f.what)
		if proxy != nil {
			proxy.release()
		}
	}
	select {
	case <-ended:
	case <-time.After(60 * time.Second):
		t.Errorf("the launcher hangs; processes: %v", l.processes())
		_ = cmd.Process.Kill()
		<-ended
	}
	code := cmd.ProcessState.ExitCode()
	if !slices.Contains(f.codes, code) {
		t.Errorf("exit code %d, expected %v", code, f.codes)
	}
	l.recover(t, f.what)
	return code
}

// reach waits until the launch has come to a point.
func (l *libvirtRig) reach(t *testing.T, point string, proxy *libvirtProxy, ended <-chan struct{}) {
	t.Helper()
	deadline := time.After(60 * time.Second)
	if proxy != nil {
		select {
		case <-proxy.held:
		case <-ended:
			t.Fatal("the launch ended before this point")
		case <-deadline:
			t.Fatal("the launch did not come to this point")
		}
		return
	}
	for {
		if _, said := l.evtpm("ps"); strings.Contains(said, "booting") {
			return
		}
		select {
		case <-ended:
			t.Fatal("the launch ended before this point")
		case <-deadline:
			t.Fatal("the launch did not come to this point")
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// role finds a process.
func (l *libvirtRig) role(role string) int {
	switch role {
	case "libvirtd":
		return l.daemon.Process.Pid
	case "qemu":
		for pid, line := range l.processes() {
			if strings.Contains(line, "guest=m,") && strings.Contains(line, " -uuid ") {
				return pid
			}
		}
		return 0
	}
	return l.pid(role)
}

// inflict does to the launch what is to be done.
func (l *libvirtRig) inflict(t *testing.T, what string) {
	t.Helper()
	if what == "destroy" {
		l.virsh(t, "destroy", "m")
		return
	}
	action, roles, _ := strings.Cut(what, "-")
	var pids []int
	for role := range strings.SplitSeq(roles, ",") {
		pid := l.role(role)
		if pid == 0 {
			t.Errorf("no process that is the %s", role)
			continue
		}
		pids = append(pids, pid)
	}
	for _, pid := range pids {
		_ = syscall.Kill(pid, faultSignals[action])
	}
}

// recover looks at what is left, as the next user of the machine would find it.
func (l *libvirtRig) recover(t *testing.T, what string) {
	t.Helper()
	switch {
	case strings.Contains(what, "stop-libvirtd"):
		_ = l.daemon.Process.Signal(syscall.SIGCONT)
	case strings.Contains(what, "kill-libvirtd"):
		_ = l.daemon.Wait()
		l.daemon = nil
		os.Remove(l.daemonSocket())
	}
	// A QEMU whose supervisor and whose libvirt were killed is ended by whoever
	// cleans up; every other ends by itself.
	if what != "kill-libvirtd,supervisor" {
		if left := l.left(endWait); len(left) > 0 {
			t.Errorf("processes are left: %v", left)
		}
	}
	code, said := l.evtpm("ps")
	if code != 0 || said != "" && !strings.Contains(said, " dead ") {
		t.Errorf("evtpm ps: exit code %d: %s", code, said)
	}
	if said != "" {
		l.remove(t)
	}
	if left := l.left(endWait); len(left) > 0 {
		t.Errorf("processes are left after evtpm rm: %v", left)
	}
	if files := l.files(); len(files) > 0 {
		t.Errorf("files are left: %v", files)
	}
	if l.daemon == nil {
		l.startDaemon(t)
	}
	l.noDomains(t)
}
