package doctor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/evtpm/evtpm/launch"
	"github.com/evtpm/evtpm/launch/process"
	"github.com/evtpm/evtpm/qmp"
)

// probeTimeout bounds what one program is asked.
const probeTimeout = 30 * time.Second

const snpQEMUFix = "install QEMU 9.1 or later, built for x86_64 with KVM"

// programs looks at QEMU and what runs beside it.
func (d *examination) programs(platforms []string) {
	d.platforms = platforms
	d.qemu()
	d.only(d.swtpm, launch.PlatformSim)
	d.runDir()
	d.stateDir()
	switch {
	case d.spec == nil:
		d.firmware()
	case d.spec.Platform == launch.PlatformSNP:
		d.only(d.firmware, launch.PlatformSim)
	}
}

// lookProgram finds a program as a launch will: in PATH, or where it is.
func lookProgram(name string) (string, error) { return exec.LookPath(name) }

// qemu asks QEMU itself, without a machine, what it has.
func (d *examination) qemu() {
	binary := "qemu-system-x86_64"
	if d.spec != nil {
		binary = d.spec.QEMU.Binary
	}
	path, err := d.o.lookPath(binary)
	if err != nil {
		d.fail("qemu", binary+" is not installed", "QEMU for x86_64", "install it (Debian: qemu-system-x86 and qemu-utils), or name it in qemu.binary")
		return
	}
	ctx, cancel := context.WithTimeout(d.ctx, probeTimeout)
	defer cancel()
	c, end, err := d.o.connect(ctx, path)
	if err != nil {
		d.fail("qemu", fmt.Sprintf("%s does not start: %v", path, err), "a QEMU that runs", "start it by hand with -machine none to see why")
		return
	}
	defer end()
	d.ok("qemu", "QEMU %s, %s", c.Version(), path)
	q := &qemuProbe{d: d, ctx: ctx, c: c}
	if slices.Contains(d.platforms, launch.PlatformSNP) {
		d.only(q.kvm, launch.PlatformSNP)
		d.only(q.snp, launch.PlatformSNP)
	} else if d.spec.QEMU.Accel == launch.AccelKVM {
		q.kvm()
	}
	d.only(q.vtpm, launch.PlatformSim)
	if d.spec != nil {
		d.only(q.commandLine, d.spec.Platform)
		if err := d.spec.CheckQEMU(c.Version()); err != nil {
			d.fail("qemu-version", err.Error(), "QEMU 10.0 or later", "install a newer QEMU, or set kernel_hashes: off, then the PCRs alone bind the kernel")
		}
	}
	if q.err != nil {
		d.fail("qemu-answers", fmt.Sprintf("QEMU does not answer as expected: %v", q.err), "QEMU 7.2 or later", "install another QEMU")
	}
}

// connectEmptyQEMU starts a QEMU without a machine, which cannot outlive this
// process, and connects to its monitor. The function that it returns ends it.
func connectEmptyQEMU(ctx context.Context, binary string) (*qmp.Client, func(), error) {
	conn, theirs, err := process.SocketPair("monitor")
	if err != nil {
		return nil, nil, err
	}
	said := new(lastWords)
	cmd := exec.Command(binary, "-machine", "none,accel=tcg:kvm", "-no-user-config", "-nodefaults", "-display", "none", "-S",
		"-chardev", "socket,id=monitor,fd=3", "-mon", "chardev=monitor,mode=control")
	cmd.Dir = "/"
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.Stdout, cmd.Stderr = said, said
	cmd.WaitDelay = time.Second
	s := process.NewSpawner()
	err = s.Start(cmd)
	theirs.Close()
	if err != nil {
		s.Close()
		conn.Close()
		return nil, nil, err
	}
	end := func() {
		// Not yet waited for: the number is still this process's.
		_ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL)
		_ = cmd.Wait()
		s.Close()
	}
	c, err := qmp.NewClient(ctx, conn)
	if err != nil {
		end()
		if text := said.String(); text != "" {
			err = fmt.Errorf("%w: %s", err, text)
		}
		return nil, nil, err
	}
	return c, func() { c.Close(); end() }, nil
}

// lastWords keeps the beginning of what a program says.
type lastWords struct{ text []byte }

func (w *lastWords) Write(p []byte) (int, error) {
	w.text = append(w.text, p[:min(len(p), 512-len(w.text))]...)
	return len(p), nil
}

func (w *lastWords) String() string {
	return strings.ToValidUTF8(strings.TrimSpace(string(w.text)), "?")
}

// qemuProbe asks one QEMU.
type qemuProbe struct {
	d   *examination
	ctx context.Context
	c   *qmp.Client
	err error // the first answer that was none
}

// absent reports whether err is QEMU's word that something does not exist. Any
// other error is kept, and ends the questions.
func (q *qemuProbe) absent(err error) bool {
	var e *qmp.Error
	if errors.As(err, &e) {
		return true
	}
	if err != nil && q.err == nil {
		q.err = err
	}
	return err != nil
}

// lacks returns what a type does not have of the wanted properties; all of it,
// when there is no such type.
func (q *qemuProbe) lacks(list func(context.Context, string) ([]string, error), kind, typename string, wanted []string) []string {
	have, err := list(q.ctx, typename)
	if q.absent(err) {
		return []string{kind + " " + typename}
	}
	var out []string
	for _, p := range wanted {
		if !slices.Contains(have, p) {
			out = append(out, "property "+p+" of "+kind+" "+typename)
		}
	}
	return out
}

// kvm asks whether QEMU was built with KVM, which SEV-SNP is part of.
func (q *qemuProbe) kvm() {
	var kvm struct {
		Present bool `json:"present"`
	}
	if err := q.c.Execute(q.ctx, "query-kvm", nil, &kvm); q.absent(err) || !kvm.Present {
		q.d.fail("qemu-kvm", "QEMU was built without KVM", "QEMU with KVM", "install a QEMU built with KVM")
	}
}

// snpProperties are those of sev-snp-guest that a launch can need.
var snpProperties = []string{
	"cbitpos", "reduced-phys-bits", "policy", "kernel-hashes", "host-data", "id-block", "id-auth", "author-key-enabled",
}

func (q *qemuProbe) snp() {
	if lacks := q.lacks(q.c.QOMListProperties, "object", "sev-snp-guest", snpProperties); lacks != nil {
		q.d.fail("qemu-snp", "QEMU has no "+strings.Join(lacks, ", "), "object sev-snp-guest", snpQEMUFix)
	} else {
		q.d.ok("qemu-snp", "QEMU has object sev-snp-guest")
	}
	const needed, fix = "object igvm-cfg", "use QEMU 10.1 or later built with --enable-igvm; distributions often build it without"
	switch _, err := q.c.QOMListProperties(q.ctx, "igvm-cfg"); {
	case !q.absent(err):
		q.d.ok("qemu-igvm", "QEMU has object igvm-cfg")
	case q.d.spec == nil:
		q.d.warn("qemu-igvm", "QEMU has no object igvm-cfg: no SVSM images", needed, fix)
	case q.d.spec.SVSM != nil:
		q.d.fail("qemu-igvm", "QEMU has no object igvm-cfg: no SVSM images", needed, fix)
	}
}

func (q *qemuProbe) vtpm() {
	types, err := q.c.QueryTPMTypes(q.ctx)
	q.absent(err)
	models, err := q.c.QueryTPMModels(q.ctx)
	q.absent(err)
	if !slices.Contains(types, "emulator") || !slices.Contains(models, "tpm-crb") {
		q.d.fail("qemu-tpm", "QEMU was built without emulated TPMs", "device tpm-crb with back end emulator", "install a QEMU built with --enable-tpm")
		return
	}
	q.d.ok("qemu-tpm", "QEMU has device tpm-crb with back end emulator")
}

// commandLine asks for everything that the command line of the spec names.
func (q *qemuProbe) commandLine() {
	plan := q.d.plan
	if plan == nil {
		plan = launch.PlanWithoutInputs(q.d.spec)
	}
	line, err := plan.QEMUCommand(launch.QEMUOptions{Dir: "/run"})
	if err != nil {
		q.d.fail("qemu-options", err.Error(), "a command line", "change the spec")
		return
	}
	var lacks []string
	for i := 0; i+1 < len(line.Args); i++ {
		value := line.Args[i+1]
		switch line.Args[i] {
		case "-object":
			lacks = append(lacks, q.object(value)...)
		case "-device":
			name, keys := optionKeys(value)
			// id and bus are of every device, and no properties.
			keys = slices.DeleteFunc(keys, func(k string) bool { return k == "id" || k == "bus" })
			lacks = append(lacks, q.lacks(q.c.DeviceListProperties, "device", name, keys)...)
		case "-machine":
			lacks = append(lacks, q.machine(value)...)
		case "-cpu":
			lacks = append(lacks, q.cpuModel(value)...)
		case "-sandbox":
			q.sandbox()
		}
	}
	if lacks != nil {
		q.d.fail("qemu-options", "QEMU has no "+strings.Join(lacks, ", "), "everything on the command line (evtpm render qemu)", "use another QEMU, or change the spec")
		return
	}
	q.d.ok("qemu-options", "QEMU has every object, device and property of the command line")
}

// object asks for an object given as JSON. What the probe for SEV-SNP looks at
// is not looked at again.
func (q *qemuProbe) object(value string) []string {
	var properties map[string]json.RawMessage
	var typename string
	if err := errors.Join(json.Unmarshal([]byte(value), &properties), json.Unmarshal(properties["qom-type"], &typename)); err != nil {
		return []string{fmt.Sprintf("object %s (%v)", value, err)}
	}
	if typename == "sev-snp-guest" || typename == "igvm-cfg" {
		return nil
	}
	var wanted []string
	for key := range properties {
		if key != "qom-type" && key != "id" {
			wanted = append(wanted, key)
		}
	}
	slices.Sort(wanted)
	return q.lacks(q.c.QOMListProperties, "object", typename, wanted)
}

// machine asks for a machine type, its properties, and the number of vCPUs.
func (q *qemuProbe) machine(value string) []string {
	name, keys := optionKeys(value)
	var machines []struct {
		Name  string `json:"name"`
		Alias string `json:"alias"`
		CPUs  int    `json:"cpu-max"`
	}
	if err := q.c.Execute(q.ctx, "query-machines", nil, &machines); q.absent(err) {
		return []string{"list of machines"}
	}
	for _, m := range machines {
		if m.Name != name && m.Alias != name {
			continue
		}
		// These two are the accelerator's.
		keys = slices.DeleteFunc(keys, func(k string) bool { return k == "accel" || k == "kernel-irqchip" })
		if q.d.spec.SVSM != nil {
			// Said already.
			keys = slices.DeleteFunc(keys, func(k string) bool { return k == "igvm-cfg" })
		}
		lacks := q.lacks(q.c.QOMListProperties, "machine", m.Name+"-machine", keys)
		if q.d.spec.CPU.Count > m.CPUs {
			lacks = append(lacks, fmt.Sprintf("room for %d vCPUs in machine %s: %d at most", q.d.spec.CPU.Count, m.Name, m.CPUs))
		}
		return lacks
	}
	return []string{"machine " + name}
}

func (q *qemuProbe) cpuModel(value string) []string {
	name, _ := optionKeys(value)
	var models []struct {
		Name string `json:"name"`
	}
	if err := q.c.Execute(q.ctx, "query-cpu-definitions", nil, &models); q.absent(err) {
		return []string{"list of CPU models"}
	}
	for _, m := range models {
		if m.Name == name {
			return nil
		}
	}
	return []string{"CPU model " + name}
}

func (q *qemuProbe) sandbox() {
	err := q.c.Execute(q.ctx, "query-command-line-options", map[string]string{"option": "sandbox"}, nil)
	if q.absent(err) {
		q.d.warn("qemu-sandbox", "QEMU was built without -sandbox; it will run without", "a QEMU that cannot start programs", "install a QEMU built with --enable-seccomp")
	}
}

// optionKeys takes a QEMU option apart: its first word, and the names of what
// follows. A doubled comma is one in a value.
func optionKeys(option string) (first string, keys []string) {
	parts := strings.Split(strings.ReplaceAll(option, ",,", "\x00"), ",")
	for _, p := range parts[1:] {
		key, _, _ := strings.Cut(p, "=")
		keys = append(keys, key)
	}
	return parts[0], keys
}
