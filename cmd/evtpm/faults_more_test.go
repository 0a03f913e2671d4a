//go:build linux

package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/evtpm/evtpm/attest/evidence"
	"github.com/evtpm/evtpm/launch"
	"github.com/evtpm/evtpm/launch/machine"
	"github.com/evtpm/evtpm/ovmf/ovmftest"
	"github.com/evtpm/evtpm/qmp"
)

// allFaults says that every run of the fault tests is wanted, and a line about
// each.
func allFaults() bool { return os.Getenv("EVTPM_FAULTS") == "all" }

// howMany is the number of repetitions: few, or all.
func howMany(few, all int) int {
	if allFaults() {
		return all
	}
	return few
}

// report prints a line of the fault table.
func report(format string, args ...any) {
	if allFaults() {
		fmt.Printf(format+"\n", args...)
	}
}

func mustRig(t *testing.T, set fakeSettings, moreAttestation string) *rig {
	t.Helper()
	r, err := newRig(set, moreAttestation)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.clean)
	return r
}

// realQEMU makes the rig use the real QEMU, with firmware that does nothing: it
// halts at its first instruction, and nothing is ever heard of the guest.
func (r *rig) realQEMU(t *testing.T) {
	t.Helper()
	need(t, "qemu-system-x86_64")
	qemu, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		t.Fatal(err)
	}
	spec, err := os.ReadFile(r.spec)
	if err != nil {
		t.Fatal(err)
	}
	firmware := ovmftest.AmdSev()
	firmware.Fill = 0xf4 // HLT
	err = errors.Join(
		os.WriteFile(r.spec, bytes.Replace(spec, []byte(filepath.Join(r.dir, "fake-qemu")), []byte(qemu), 1), 0o600),
		os.WriteFile(filepath.Join(r.dir, "OVMF.fd"), ovmftest.Build(firmware), 0o600),
	)
	if err != nil {
		t.Fatal(err)
	}
}

// nothingLeft fails the test when anything of the rig's runs or lies about.
func (r *rig) nothingLeft(t *testing.T) {
	t.Helper()
	if left := r.gone(endWait); len(left) > 0 {
		t.Errorf("processes are left: %v", left)
	}
	if files := r.files(); len(files) > 0 {
		t.Errorf("files are left: %v", files)
	}
}

// Of many launches of one name at the same time, one wins.
func TestFaultL15_OneNameWins(t *testing.T) {
	need(t, "swtpm")
	r := mustRig(t, fakeSettings{Hold: "boot"}, "")
	n := howMany(20, 100)
	codes := make(chan int, n)
	for range n {
		go func() {
			code, _ := r.evtpm("launch", r.spec)
			codes <- code
		}()
	}
	for range n - 1 {
		if code := <-codes; code != 8 {
			t.Errorf("exit code %d of a launch under a name that is taken, expected 8", code)
		}
	}
	if err := os.WriteFile(filepath.Join(r.dir, "go"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if code := <-codes; code != 0 {
		t.Errorf("exit code %d of the launch that won, expected 0", code)
	}
	if code, said := r.evtpm("rm", "--force", "m"); code != 0 {
		t.Errorf("evtpm rm: %s", said)
	}
	r.nothingLeft(t)
	report("%d launches of one name at the same time: one won", n)
}

// A machine that is stopped, refused or dead does not stand in a launch's way.
func TestFaultNextLaunchCleansUp(t *testing.T) {
	need(t, "swtpm")
	r := mustRig(t, fakeSettings{}, "")
	for _, how := range []func(){
		func() {},
		func() { r.evtpm("stop", "m") },
		func() { _ = syscall.Kill(r.pid("supervisor"), syscall.SIGKILL); r.gone(endWait) },
		func() { _ = syscall.Kill(r.pid("qemu"), syscall.SIGKILL); r.gone(endWait) },
		func() {
			// As a crash of the file system would leave it.
			_ = syscall.Kill(r.pid("supervisor"), syscall.SIGKILL)
			r.gone(endWait)
			_ = os.Truncate(filepath.Join(r.home, "m", "machine.json"), 10)
		},
	} {
		how()
		if state := r.state1(); state == machine.StateTrusted {
			t.Errorf("a machine that was ended is %s", state)
		}
		if code, said := r.evtpm("launch", r.spec); code != 0 {
			t.Errorf("launch: exit code %d:\n%s", code, said)
		}
	}
	r.evtpm("rm", "--force", "m")
	r.nothingLeft(t)
}

// Failed launches leave nothing in the process that made them.
func TestFaultL31_NothingGrows(t *testing.T) {
	need(t, "swtpm")
	r := mustRig(t, fakeSettings{Mode: "die"}, "")
	home, err := machine.OpenHome(r.home)
	if err != nil {
		t.Fatal(err)
	}
	spec, err := launch.ReadSpec(r.spec, launch.SpecFileOptions{})
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	fail := func() {
		plan, err := launch.Resolve(ctx, spec, launch.ResolveOptions{})
		if err != nil {
			t.Fatal(err)
		}
		defer plan.Close()
		_, err = machine.Start(ctx, plan, machine.StartOptions{
			Home: home, StateDir: r.state, Supervise: []string{filepath.Join(r.dir, "evtpm"), "supervise"},
		})
		var pe *machine.PhaseError
		if !errors.As(err, &pe) || pe.Phase != machine.PhaseStart || !strings.Contains(err.Error(), "Cannot allocate memory") {
			t.Fatalf("launch: %v, expected QEMU's own words", err)
		}
	}
	descriptors := func() int {
		e, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(e)
	}
	fail()
	goroutines, fds := runtime.NumGoroutine(), descriptors()
	n := howMany(20, 1000)
	for range n {
		fail()
	}
	settled := func() bool { return runtime.NumGoroutine() <= goroutines && descriptors() <= fds }
	for deadline := time.Now().Add(endWait); !settled() && time.Now().Before(deadline); {
		time.Sleep(10 * time.Millisecond)
	}
	if !settled() {
		t.Errorf("%d failed launches: %d goroutines and %d descriptors became %d and %d", n, goroutines, fds, runtime.NumGoroutine(), descriptors())
	}
	r.nothingLeft(t)
	report("%d failed launches: goroutines %d -> %d, descriptors %d -> %d, files 0", n, goroutines, runtime.NumGoroutine(), fds, descriptors())
}

// Whatever is killed whenever, ps tells the truth, and the next launch goes
// ahead.
func TestFaultPsTellsTheTruth(t *testing.T) {
	need(t, "swtpm")
	r := mustRig(t, fakeSettings{}, "")
	n := howMany(15, 200)
	seen := map[machine.State]int{}
	for range n {
		cmd := r.command("launch", r.spec)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(rand.IntN(800)) * time.Millisecond)
		for _, role := range []string{"launcher", "supervisor", "qemu", "swtpm"} {
			if rand.IntN(2) == 0 {
				if pid := r.pid(role); pid != 0 {
					_ = syscall.Kill(pid, syscall.SIGKILL)
				}
			}
		}
		_ = cmd.Wait()
		// What was killed ends, and what ends with it; what was not stays.
		state, truth := r.settle()
		if !truth {
			t.Fatalf("ps says %q; these run: %v", state, r.processes())
		}
		seen[state]++
		if r.evtpm("stop", "m"); len(r.gone(endWait)) > 0 {
			t.Fatalf("after stop these run: %v", r.processes())
		}
	}
	report("%d times killed at random: ps told the truth each time: %v", n, seen)
	r.evtpm("rm", "m")
	r.nothingLeft(t)
}

// settle waits until what ps says is so.
func (r *rig) settle() (state machine.State, truth bool) {
	for deadline := time.Now().Add(endWait); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		state = r.state1()
		switch runs := r.pid("qemu") != 0 && r.pid("swtpm") != 0 && r.pid("supervisor") != 0; state {
		case machine.StateTrusted:
			truth = runs
		case "", machine.StateDead, machine.StateFailed, machine.StateStopped:
			truth = len(r.processes()) == 0
		}
		if truth {
			return state, true
		}
	}
	return state, false
}

// A full disk ends a launch with an error that says so, wherever it happens.
func TestFaultL18_DiskFull(t *testing.T) {
	need(t, "swtpm", "unshare", "mount")
	if err := exec.Command("unshare", "-m", "true").Run(); err != nil {
		if err := exec.Command("unshare", "-Urm", "true").Run(); err != nil {
			t.Skip("needs unshare, to mount a small file system: it fails here")
		}
	}
	isolate := "-m"
	if os.Geteuid() != 0 {
		isolate = "-Urm"
	}
	sizes := []int{0, 4, 8, 12, 16, 24, 32, 48, 64, 80, 96, 128}
	if !allFaults() {
		sizes = []int{4, 16, 64}
	}
	for _, kib := range sizes {
		r := mustRig(t, fakeSettings{}, "")
		if err := os.Mkdir(r.home, 0o700); err != nil {
			t.Fatal(err)
		}
		// The last line says what is left in the run directory.
		script := `mount -t tmpfs -o size=1m,mode=700 evtpm-test "$1" && head -c $((1048576 - $2 * 1024)) /dev/zero >"$1/.filler" || true
"$3" launch --rm "$4"; code=$?; find "$1" -mindepth 1 ! -name .filler; echo "code $code"`
		cmd := exec.Command("unshare", isolate, "sh", "-c", script, "sh", r.home, fmt.Sprint(kib), filepath.Join(r.dir, "evtpm"), r.spec)
		cmd.Env = r.command().Env
		var out, said bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &said
		began := time.Now()
		if err := cmd.Run(); err != nil {
			t.Fatalf("%v: %s", err, said.String())
		}
		took := time.Since(began)
		result := strings.TrimSpace(out.String())
		full := result == "code 8" && strings.Contains(said.String(), "no space left on device")
		if result != "code 0" && !full {
			t.Errorf("%d KiB of room: %q:\n%s", kib, result, said.String())
		}
		if left := r.gone(endWait); len(left) > 0 {
			t.Errorf("%d KiB of room: these run: %v", kib, left)
		}
		report("disk     full, %3d KiB of room %-27s %s %6.2fs  orphans 0  files 0", kib, "", result, took.Seconds())
	}
}

// Real QEMU, killed and stopped by hand in every phase before its guest says a
// word.
func TestFaultRealQEMU(t *testing.T) {
	need(t, "swtpm")
	points := []string{"planned", "started", "measured", "vTPM"}
	actions := []string{"kill-qemu", "kill-swtpm", "kill-supervisor", "kill-launcher", "int-launcher"}
	if !allFaults() {
		points, actions = points[3:], actions[2:4]
	}
	codes := map[string]int{"kill-launcher": killed, "int-launcher": 130}
	for _, point := range points {
		for _, what := range actions {
			r := mustRig(t, fakeSettings{}, "")
			r.realQEMU(t)
			cmd := r.command("launch", r.spec)
			stderr, err := cmd.StderrPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			lines := bufio.NewScanner(stderr)
			for lines.Scan() && !strings.Contains(lines.Text(), point) {
			}
			action, role, _ := strings.Cut(what, "-")
			var pid int
			for deadline := time.Now().Add(endWait); pid == 0 && time.Now().Before(deadline); {
				pid = r.pid(role)
			}
			began := time.Now()
			if pid == 0 || syscall.Kill(pid, faultSignals[action]) != nil {
				t.Errorf("%s at %s: no such process", what, point)
			}
			rest, _ := io.ReadAll(stderr)
			_ = cmd.Wait()
			took := time.Since(began)
			want := codes[what]
			if want == 0 {
				want = 8
			}
			if code := cmd.ProcessState.ExitCode(); code != want {
				t.Errorf("%s at %s: exit code %d, expected %d:\n%s", what, point, code, want, rest)
			}
			left := r.gone(endWait)
			if code, said := r.evtpm("ps"); code != 0 || said != "" && !strings.Contains(said, " dead ") {
				t.Errorf("%s at %s: evtpm ps: %s", what, point, said)
			}
			r.evtpm("rm", "m")
			report("%-8s %-28s %-18s code %3d %6.2fs  orphans %d  files %d", point, what, "real QEMU", cmd.ProcessState.ExitCode(), took.Seconds(), len(left), len(r.files()))
			r.nothingLeft(t)
		}
	}
}

// Many machines at once: each is its own.
func TestFaultL16_ManyMachines(t *testing.T) {
	need(t, "swtpm")
	r := mustRig(t, fakeSettings{}, "")
	r.realQEMU(t)
	spec, err := os.ReadFile(r.spec)
	if err != nil {
		t.Fatal(err)
	}
	n := howMany(4, 32)
	began := time.Now()
	var wg sync.WaitGroup
	for i := range n {
		path := filepath.Join(r.dir, fmt.Sprintf("m%d.yaml", i))
		s := strings.NewReplacer("name: m\n", fmt.Sprintf("name: m%d\n", i)).Replace(string(spec))
		if err := os.WriteFile(path, []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			if code, said := r.evtpm("launch", "--detach", path); code != 0 {
				t.Errorf("launch: exit code %d: %s", code, said)
			}
		})
	}
	wg.Wait()
	up := time.Since(began)
	home, err := machine.OpenHome(r.home)
	if err != nil {
		t.Fatal(err)
	}
	machines, err := home.List(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range machines {
		if m.State != machine.StateBooting || !m.Running {
			t.Errorf("%s is %s: %s", m.Name, m.State, m.Reason)
		}
	}
	began = time.Now()
	code, said := r.evtpm("rm", "--force", "--all")
	down := time.Since(began)
	if code != 0 || len(machines) != n {
		t.Errorf("%d machines of %d; rm: exit code %d: %s", len(machines), n, code, said)
	}
	r.nothingLeft(t)
	report("%d machines with real QEMU started at once in %.2f s, ended in %.2f s", n, up.Seconds(), down.Seconds())
}

// A guest's reset ends what was attested.
func TestFaultL10_ResetEndsTheMachine(t *testing.T) {
	need(t, "swtpm")
	r := mustRig(t, fakeSettings{}, "")
	r.realQEMU(t)
	if code, said := r.evtpm("launch", "--detach", r.spec); code != 0 {
		t.Fatal(said)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	mon, err := qmp.Dial(ctx, "unix", filepath.Join(r.home, "m", "qmp.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer mon.Close()
	if err := mon.Execute(ctx, "system_reset", nil, nil); err != nil {
		t.Fatal(err)
	}
	if left := r.gone(endWait); len(left) > 0 {
		t.Errorf("these run after a reset: %v", left)
	}
	if code, said := r.evtpm("ps"); code != 0 || !strings.Contains(said, "the guest was reset") {
		t.Errorf("ps: %s", said)
	}
	r.evtpm("rm", "m")
	r.nothingLeft(t)
}

// A machine that is to be restarted is another boot after a reset: it has
// another vTPM, and is not attested until that was attested.
func TestFaultL10_ResetRestarts(t *testing.T) {
	need(t, "swtpm")
	r := mustRig(t, fakeSettings{Mode: "reboots"}, "")
	spec, err := os.ReadFile(r.spec)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(r.spec, append(spec, "on_reset: restart\n"...), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, said := r.evtpm("launch", r.spec); code != 0 {
		t.Fatal(said)
	}
	home, err := machine.OpenHome(r.home)
	if err != nil {
		t.Fatal(err)
	}
	eks := map[string]bool{}
	for boot := 1; ; boot++ {
		ev, err := home.OpenFile("m", "evidence.json")
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(ev)
		ev.Close()
		if err != nil {
			t.Fatal(err)
		}
		parsed, err := evidence.Parse(bytes.TrimSpace(data))
		if err != nil {
			t.Fatal(err)
		}
		eks[string(parsed.EKPublic)] = true
		if boot == 3 {
			break
		}
		supervisor := r.pid("supervisor")
		if err := os.WriteFile(filepath.Join(r.dir, "reboot"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		seen := map[machine.State]bool{}
		for deadline := time.Now().Add(endWait); ; time.Sleep(2 * time.Millisecond) {
			m, err := home.Status(context.Background(), "m")
			if err != nil {
				t.Fatal(err)
			}
			seen[m.State] = true
			if m.Boots == boot+1 && m.State == machine.StateTrusted {
				break
			}
			if m.Boots > boot && m.State != machine.StateNotAttested || time.Now().After(deadline) {
				t.Fatalf("boot %d: %s: %s; seen %v", m.Boots, m.State, m.Reason, seen)
			}
		}
		if !seen[machine.StateNotAttested] || r.pid("supervisor") == supervisor || len(r.processes()) != 3 {
			t.Errorf("states seen: %v; supervisor %d; these run: %v", seen, supervisor, r.processes())
		}
		if code, said := r.evtpm("attest", "m"); code != 0 {
			t.Errorf("attest after a reset: exit code %d: %s", code, said)
		}
	}
	if len(eks) != 3 {
		t.Errorf("%d EKs in 3 boots", len(eks))
	}
	if code, said := r.evtpm("events", "m"); code != 0 || strings.Count(said, "trusted") < 3 {
		t.Errorf("events: %s", said)
	}
	// Stopped is stopped, reset or not.
	if err := os.WriteFile(filepath.Join(r.dir, "reboot"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(endWait); r.state1() != machine.StateStopped && time.Now().Before(deadline); {
		if code, said := r.evtpm("stop", "m"); code != 0 {
			t.Errorf("stop: %s", said)
		}
	}
	if left := r.gone(endWait); len(left) > 0 || r.state1() != machine.StateStopped {
		t.Errorf("after stop the machine is %s, and these run: %v", r.state1(), left)
	}
	r.evtpm("rm", "m")
	r.nothingLeft(t)
}

// A machine whose attestation is refused is ended, or kept, as its spec says.
func TestFaultRefused(t *testing.T) {
	need(t, "swtpm")
	for _, onRefused := range []string{"stop", "keep"} {
		r := mustRig(t, fakeSettings{}, ", on_refused: "+onRefused)
		// A policy that the simulated platform cannot meet.
		policy := strings.Replace(rigPolicy, "signers: [vcek]", "signers: [vlek]", 1)
		if err := os.WriteFile(filepath.Join(r.dir, "policy.yaml"), []byte(policy), 0o600); err != nil {
			t.Fatal(err)
		}
		if code, said := r.evtpm("launch", r.spec); code != 5 {
			t.Errorf("exit code %d, expected 5:\n%s", code, said)
		}
		kept := onRefused == "keep"
		if state := r.state1(); state != machine.StateRefused || (r.pid("qemu") != 0) != kept {
			t.Errorf("on_refused %s: state %s, processes %v", onRefused, state, r.processes())
		}
		if code, said := r.evtpm("attest", "m"); kept && code != 5 || !kept && code != 8 {
			t.Errorf("on_refused %s: attest: exit code %d: %s", onRefused, code, said)
		}
		for _, name := range []string{"evidence.json", "verdict.json", "golden.json"} {
			if _, err := os.Stat(filepath.Join(r.home, "m", name)); err != nil {
				t.Error(err)
			}
		}
		r.evtpm("rm", "--force", "m")
		r.nothingLeft(t)
	}
}
