//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/evtpm/evtpm/launch/machine"
	"github.com/evtpm/evtpm/ovmf/ovmftest"
	"github.com/evtpm/evtpm/snpsim"
)

// need skips a test without the programs that it runs.
func need(t testing.TB, programs ...string) {
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("%s is not installed", p)
		}
	}
}

// simState is a state directory that all tests share: the simulated platform's
// keys take seconds to make.
var simState = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "evtpm-test-state-")
	if err != nil {
		return "", err
	}
	root, err := snpsim.OpenRoot(filepath.Join(dir, "sim"), "Genoa")
	if err == nil {
		_, err = root.Chip("")
	}
	return dir, err
})

// A rig is a folder with the programs of a test, all of which are found again by
// the folder's path in their command lines.
type rig struct {
	dir, home, state, spec string
}

// linkSelf puts this test binary somewhere under another name. A link would be
// resolved, and the name lost.
func linkSelf(path string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	if os.Link(self, path) == nil {
		return nil
	}
	data, err := os.ReadFile(self)
	if err != nil {
		return err
	}
	return os.WriteFile(path, data, 0o700)
}

const rigSpec = `version: 1
name: m
platform: sim
firmware: {path: OVMF.fd}
cpu: {model: EPYC-v4}
qemu: {binary: %s}
memory: 128M
attestation: {policy: policy.yaml%s}
timeouts: {start: 2m, boot: 5m, attest: 2m, stop: 2s}
`

// impatience replaces the timeouts where a launch is expected to run into them.
// Elsewhere a busy machine shall not be taken for a fault.
const impatience = "timeouts: {start: 6s, boot: 4s, attest: 4s, stop: 2s}"

// impatient makes the rig's launches give up soon.
func (r *rig) impatient() error {
	spec, err := os.ReadFile(r.spec)
	if err != nil {
		return err
	}
	before, _, found := strings.Cut(string(spec), "timeouts: ")
	if !found {
		return errors.New("the spec has no timeouts")
	}
	return os.WriteFile(r.spec, []byte(before+impatience+"\n"), 0o600)
}

// endWait is how long what was told to end may take on a busy machine.
const endWait = 30 * time.Second

// rigPolicy is the default policy without an event log: a fake guest has none.
const rigPolicy = `version: 1
name: rig
report: {min_version: 3}
products: any
signers: [vcek]
vmpl: [0]
tcb: {floors: none}
revocation: if-given
host_data: zero
vtpm: {bindings: [svsm], event_log: if-present}
`

// newRig makes a folder with a fake QEMU, a spec and what that names.
func newRig(set fakeSettings, moreAttestation string) (_ *rig, err error) {
	r := new(rig)
	if r.state, err = simState(); err != nil {
		return nil, err
	}
	if r.dir, err = os.MkdirTemp("", "evr-"); err != nil {
		return nil, err
	}
	r.home, r.spec = filepath.Join(r.dir, "h"), filepath.Join(r.dir, "m.yaml")
	swtpm, err := exec.LookPath("swtpm")
	if err != nil {
		return nil, err
	}
	qemu := filepath.Join(r.dir, "fake-qemu")
	settings, err := json.Marshal(set)
	if err != nil {
		return nil, err
	}
	return r, errors.Join(
		linkSelf(filepath.Join(r.dir, "evtpm")), linkSelf(qemu),
		os.Symlink(swtpm, filepath.Join(r.dir, "swtpm")),
		os.WriteFile(filepath.Join(r.dir, "fake.json"), settings, 0o600),
		os.WriteFile(filepath.Join(r.dir, "OVMF.fd"), ovmftest.Build(ovmftest.AmdSev()), 0o600),
		os.WriteFile(filepath.Join(r.dir, "policy.yaml"), []byte(rigPolicy), 0o600),
		os.WriteFile(r.spec, fmt.Appendf(nil, rigSpec, qemu, moreAttestation), 0o600),
	)
}

// command prepares a run of evtpm.
func (r *rig) command(args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(r.dir, "evtpm"), args...)
	cmd.Env = append(os.Environ(), "EVTPM_HOME="+r.home, "EVTPM_STATE="+r.state, "PATH="+r.dir+":"+os.Getenv("PATH"))
	return cmd
}

// evtpm runs evtpm and returns its exit code and what it said.
func (r *rig) evtpm(args ...string) (int, string) {
	cmd := r.command(args...)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return -1, err.Error()
	}
	return cmd.ProcessState.ExitCode(), string(out)
}

// processes lists what runs with this rig's folder in its command line.
func (r *rig) processes() map[int]string {
	out := map[int]string{}
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		line, err := os.ReadFile("/proc/" + e.Name() + "/cmdline")
		if err != nil || !bytes.Contains(line, []byte(r.dir+"/")) {
			continue
		}
		out[pid] = strings.ReplaceAll(strings.TrimSuffix(string(line), "\x00"), "\x00", " ")
	}
	return out
}

// pid finds the process of a role.
func (r *rig) pid(role string) int {
	for pid, line := range r.processes() {
		program, rest, _ := strings.Cut(line, " ")
		var is bool
		switch role {
		case "qemu":
			is = filepath.Base(program) == "fake-qemu" || strings.Contains(line, "-machine q35")
		case "swtpm":
			is = filepath.Base(program) == "swtpm"
		case "supervisor":
			is = filepath.Base(program) == "evtpm" && rest == "supervise"
		case "launcher":
			is = filepath.Base(program) == "evtpm" && strings.Contains(rest, "launch")
		}
		if is {
			return pid
		}
	}
	return 0
}

// gone waits until no process of the rig's is left.
func (r *rig) gone(within time.Duration) map[int]string {
	none := 0
	for deadline := time.Now().Add(within); ; time.Sleep(5 * time.Millisecond) {
		left := r.processes()
		if len(left) > 0 {
			none = 0
		} else if none++; none == 3 {
			return nil // a process that is becoming another has no command line for a moment
		}
		if time.Now().After(deadline) {
			return left
		}
	}
}

// files lists what is in the run directory.
func (r *rig) files() []string {
	var out []string
	_ = filepath.WalkDir(r.home, func(path string, d fs.DirEntry, err error) error {
		if err == nil && path != r.home {
			out = append(out, strings.TrimPrefix(path, r.home+"/"))
		}
		return nil
	})
	return out
}

// held waits until the fake QEMU stands at its point.
func (r *rig) held(within time.Duration) error {
	for deadline := time.Now().Add(within); ; time.Sleep(2 * time.Millisecond) {
		if _, err := os.Stat(filepath.Join(r.dir, "held")); err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return errors.New("the launch did not come to this point")
		}
	}
}

// clean ends what a failed test left.
func (r *rig) clean() {
	for pid := range r.processes() {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	os.RemoveAll(r.dir)
}

// A fault is what happens to a launch, and when.
type fault struct {
	point string // where the launch stands; "run": after the verdict
	what  string // what is done to it
	mode  string // what the fake QEMU does wrong by itself

	flags []string // of the launch
	codes []int    // exit codes of the launcher that are right
	limit time.Duration
}

func (f fault) name() string {
	return strings.Join(append([]string{f.point, f.what + f.mode}, f.flags...), "/")
}

// Signals to a role: "kill-qemu".
var faultSignals = map[string]syscall.Signal{"kill": syscall.SIGKILL, "stop": syscall.SIGSTOP, "int": syscall.SIGINT, "term": syscall.SIGTERM}

// killed is the exit code of a process that a signal ended.
const killed = -1

// faultMatrix lists every phase of a launch with everything that can happen in
// it.
func faultMatrix() []fault {
	var out []fault
	signals := []struct {
		what  string
		codes []int
	}{
		{"kill-qemu", []int{8}},
		{"kill-swtpm", []int{8}},
		{"kill-supervisor", []int{8}},
		{"kill-launcher", []int{killed}},
		{"kill-launcher,supervisor", []int{killed}},
		{"kill-qemu,swtpm,supervisor", []int{8}},
		{"stop-qemu", []int{10}},
		{"stop-swtpm", []int{8, 10}},
		{"stop-supervisor", []int{10}},
		{"int-launcher", []int{130}},
		{"term-launcher", []int{130}},
	}
	for _, point := range fakePoints {
		for _, s := range signals {
			for _, flags := range [][]string{nil, {"--rm"}} {
				out = append(out, fault{point: point, what: s.what, codes: s.codes, flags: flags, limit: 24 * time.Second})
			}
		}
		out = append(out, fault{point: point, what: "timeout", codes: []int{10}, flags: []string{"--timeout", "5s"}, limit: 15 * time.Second})
	}
	for _, s := range signals {
		if !strings.Contains(s.what, "launcher") {
			out = append(out, fault{point: "run", what: s.what, codes: []int{0}, limit: 20 * time.Second})
		}
	}
	// What QEMU, its monitor and the guest can do wrong by themselves.
	for _, m := range []struct {
		point string
		mode  string
		codes []int
	}{
		{"start", "die", []int{8}},
		{"start", "no-greeting", []int{10}},
		{"start", "greeting-garbage", []int{8}},
		{"start", "endless-line", []int{8}},
		{"start", "drift", []int{8}},
		{"measure", "qmp-hang", []int{10}},
		{"measure", "qmp-garbage", []int{8}},
		{"measure", "qmp-flood", []int{0}},
		{"boot", "agent-silent", []int{10}},
		{"boot", "guest-shutdown", []int{8}},
		{"boot", "guest-panic", []int{8}},
		{"attest", "agent-garbage", []int{8}},
		{"attest", "agent-huge", []int{8}},
		{"attest", "agent-flood", []int{8, 10}},
		{"attest", "agent-drip", []int{10}},
		{"attest", "agent-mute", []int{10}},
		{"attest", "agent-leaves", []int{8}},
		{"attest", "guest-reset", []int{8}},
		{"stop", "ignores-quit", []int{0}},
	} {
		for _, flags := range [][]string{nil, {"--rm"}} {
			out = append(out, fault{point: m.point, mode: m.mode, codes: m.codes, flags: flags, limit: 20 * time.Second})
		}
	}
	return out
}

// A faultResult is a line of the table.
type faultResult struct {
	fault
	code    int
	took    time.Duration
	orphans int
	files   []string
	problem string
	said    string // by the launcher, when there is a problem
}

// TestFaultMatrix does everything to a launch in every phase: nothing may run,
// nothing may lie about, and nothing may hang afterwards. It is the test of a
// launcher that is killed (L-12), of Ctrl-C in every phase (L-20), and of guests
// that hang (L-21). EVTPM_FAULTS=all runs
// the whole matrix, and prints it; otherwise it is every seventh case.
func TestFaultMatrix(t *testing.T) {
	need(t, "swtpm")
	cases := faultMatrix()
	all := os.Getenv("EVTPM_FAULTS") == "all"
	if !all {
		for i := range cases {
			if i%7 != 0 {
				cases[i].point = ""
			}
		}
		cases = slices.DeleteFunc(cases, func(f fault) bool { return f.point == "" })
	}
	warmUp(t)
	results := make([]faultResult, len(cases))
	var wg sync.WaitGroup
	slots := make(chan struct{}, 4)
	for i, f := range cases {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			results[i] = f.run()
		})
	}
	wg.Wait()
	orphans, files, hangs := 0, 0, 0
	for _, r := range results {
		if all {
			fmt.Printf("%-8s %-28s %-18s code %3d %6.2fs  orphans %d  files %d  %s\n",
				r.point, r.what+r.mode, strings.Join(r.flags, " "), r.code, r.took.Seconds(), r.orphans, len(r.files), r.problem)
		}
		orphans += r.orphans
		files += len(r.files)
		if r.took > r.limit {
			hangs++
		}
		if r.problem != "" || r.orphans > 0 || len(r.files) > 0 {
			t.Errorf("%s: code %d, %d orphans, files %v: %s\n%s", r.name(), r.code, r.orphans, r.files, r.problem, r.said)
		}
	}
	if all {
		fmt.Printf("%d runs, %d orphans, %d stale files, %d past the deadline\n", len(results), orphans, files, hangs)
	}
}

// warmUp makes the simulated platform's keys, and shows that a launch without a
// fault is trusted.
func warmUp(t *testing.T) {
	r, err := newRig(fakeSettings{}, "")
	if err != nil {
		t.Fatal(err)
	}
	defer r.clean()
	if code, said := r.evtpm("launch", "--rm", r.spec); code != 0 {
		t.Fatalf("a launch without a fault: exit code %d:\n%s", code, said)
	}
	if left := r.gone(endWait); len(left) > 0 || len(r.files()) > 0 {
		t.Fatalf("a launch without a fault left processes %v, files %v", left, r.files())
	}
}

// run makes one launch, does to it what is to be done, and looks at what is
// left.
func (f fault) run() (res faultResult) {
	res = faultResult{fault: f, code: -2}
	set := fakeSettings{Mode: f.mode}
	if f.mode == "" && f.point != "run" {
		set.Hold = f.point
	}
	r, err := newRig(set, "")
	if err != nil {
		res.problem = err.Error()
		return res
	}
	defer r.clean()
	if slices.Contains(f.codes, 10) && f.what != "timeout" {
		if err := r.impatient(); err != nil {
			res.problem = err.Error()
			return res
		}
	}
	cmd := r.command(append(append([]string{"launch"}, f.flags...), r.spec)...)
	var said bytes.Buffer
	cmd.Stderr = &said
	began := time.Now()
	if err := cmd.Start(); err != nil {
		res.problem = err.Error()
		return res
	}
	wait := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(wait)
	}()
	problem := func(format string, args ...any) {
		if res.problem == "" {
			res.problem = fmt.Sprintf(format, args...)
		}
	}
	defer func() {
		if res.problem != "" {
			res.said = said.String()
		}
	}()
	if f.point == "run" {
		<-wait
	}
	if f.mode == "" {
		if set.Hold != "" {
			if err := r.held(endWait); err != nil {
				problem("%v", err)
			}
		}
		began = time.Now()
		if f.what != "timeout" {
			f.inject(r, problem)
		}
	}
	select {
	case <-wait:
	case <-time.After(f.limit + 10*time.Second):
		problem("the launcher hangs")
		_ = cmd.Process.Kill()
		<-wait
	}
	res.took = time.Since(began)
	res.code = cmd.ProcessState.ExitCode()
	if res.took > f.limit {
		problem("took %v, expected at most %v", res.took, f.limit)
	}
	if !slices.Contains(f.codes, res.code) {
		problem("exit code %d, expected %v", res.code, f.codes)
	}
	f.after(r, &res, problem)
	return res
}

// inject does to the launch what is to be done.
func (f fault) inject(r *rig, problem func(string, ...any)) {
	action, roles, _ := strings.Cut(f.what, "-")
	var pids []int
	for role := range strings.SplitSeq(roles, ",") {
		pid := r.pid(role)
		if pid == 0 {
			problem("no process that is the %s", role)
			continue
		}
		pids = append(pids, pid)
	}
	for _, pid := range pids {
		_ = syscall.Kill(pid, faultSignals[action])
	}
}

// after looks at what is left, and has the machine ended where it should still
// be there.
func (f fault) after(r *rig, res *faultResult, problem func(string, ...any)) {
	launched := res.code == 0 && !slices.Contains(f.flags, "--rm")
	if launched {
		state := r.state1()
		want := map[string][]machine.State{
			"kill-qemu": {machine.StateFailed}, "kill-swtpm": {machine.StateFailed}, "kill-supervisor": {machine.StateDead},
			"kill-qemu,swtpm,supervisor": {machine.StateDead}, "stop-supervisor": {machine.StateUnresponsive},
		}[f.what]
		if want == nil {
			want = []machine.State{machine.StateTrusted}
		}
		for deadline := time.Now().Add(endWait); !slices.Contains(want, state) && time.Now().Before(deadline); state = r.state1() {
			time.Sleep(10 * time.Millisecond)
		}
		if !slices.Contains(want, state) {
			problem("state is %q, expected %q", state, want)
		}
		if code, said := r.evtpm("stop", "--force", "m"); code != 0 {
			problem("evtpm stop: exit code %d: %s", code, said)
		}
	}
	left := r.gone(endWait)
	res.orphans = len(left)
	if len(left) > 0 {
		problem("processes are left: %v", left)
	}
	// What was killed with its launcher cannot have cleaned up: it must say that
	// it is dead, and go.
	code, said := r.evtpm("ps")
	if code != 0 || said != "" && !launched && !strings.Contains(said, " dead ") {
		problem("evtpm ps: exit code %d: %s", code, said)
	}
	if said != "" {
		if code, said := r.evtpm("rm", "m"); code != 0 {
			problem("evtpm rm: exit code %d: %s", code, said)
		}
	}
	res.files = r.files()
}

// state1 is the state of the rig's machine; empty when there is none.
func (r *rig) state1() machine.State {
	home, err := machine.OpenHome(r.home)
	if err != nil {
		return ""
	}
	m, err := home.Status(context.Background(), "m")
	if err != nil {
		return ""
	}
	return m.State
}
