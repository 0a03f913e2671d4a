package launch

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/evtpm/evtpm/launch/launchtest"
	"github.com/evtpm/evtpm/qmp"
)

// A fakeExecutor is a QEMU of answers: a map from a command, and the path and
// property that it is about, to what it returns.
type fakeExecutor map[string]any

func (f fakeExecutor) Execute(_ context.Context, command string, args, out any) error {
	key := command
	if m, ok := args.(map[string]string); ok {
		key = strings.TrimSpace(command + " " + m["path"] + " " + m["property"])
	}
	answer, ok := f[key]
	if !ok {
		return &qmp.Error{Command: command, Class: "GenericError", Desc: "no answer to " + key}
	}
	if err, ok := answer.(error); ok {
		return err
	}
	data, err := json.Marshal(answer)
	if err != nil {
		return err
	}
	return json.Unmarshal(data, out)
}

// opened is what a QEMU says that it opened the inputs as.
var openedInputs = map[string]string{"firmware": "/fd/1", "kernel": "/fd/2", "initrd": "/fd/3"}

// plannedVM answers as a QEMU that runs the plan.
func plannedVM(p *Plan) fakeExecutor {
	f := fakeExecutor{
		"qom-get /machine smm":                        "off",
		"qom-get /machine dump-guest-core":            false,
		"qom-get /machine firmware":                   "/fd/1",
		"qom-get /machine kernel":                     "/fd/2",
		"qom-get /machine initrd":                     "/fd/3",
		"qom-get /machine append":                     p.Spec.Cmdline,
		"qom-get /machine confidential-guest-support": "",
		"query-memory-size-summary":                   map[string]uint64{"base-memory": uint64(p.Spec.Memory)},
		"query-cpus-fast":                             []map[string]any{{"cpu-index": 0, "qom-path": "/cpu", "thread-id": 1}},
		"qom-get /cpu type":                           p.Spec.CPU.Model + "-x86_64-cpu",
	}
	devices := []map[string]string{{"name": "type", "type": "string"}}
	for i, d := range p.devices() {
		devices = append(devices, map[string]string{"name": fmt.Sprintf("d%d", i), "type": "child<" + d + ">"})
	}
	f["qom-list /machine/peripheral"] = append(slices.Clone(devices), map[string]string{"name": "pci.1", "type": "child<pcie-root-port>"}, map[string]string{"name": "serial0", "type": "child<isa-serial>"})
	f["qom-list /machine/peripheral-anon"] = devices[:1]
	if p.Spec.Platform == PlatformSNP {
		f["qom-get /machine confidential-guest-support"] = "/objects/sev0"
		for name, value := range map[string]any{
			"type": "sev-snp-guest", "policy": uint64(p.Spec.Policy), "kernel-hashes": true,
			"host-data": base64.StdEncoding.EncodeToString(p.Spec.HostData), "author-key-enabled": p.AuthorKey, "vcek-disabled": false,
			"cbitpos": 51, "reduced-phys-bits": 1,
			"id-block": base64.StdEncoding.EncodeToString(p.IDBlock), "id-auth": base64.StdEncoding.EncodeToString(p.IDAuth),
		} {
			f["qom-get /objects/sev0 "+name] = value
		}
		f["query-sev"] = map[string]any{"enabled": true, "state": "running", "sev-type": "sev-snp", "snp-policy": uint64(p.Spec.Policy)}
	}
	return f
}

// TestL27ReadBack: a VM that is as planned passes; whatever QEMU says otherwise
// of one thing is named.
func TestL27ReadBack(t *testing.T) {
	sim := func() *Plan { _, s := planDir(t); return resolve(t, s) }()
	dir, s := planDir(t, "platform: snp", "id_block: {id_key: id.pem}", "host_data: "+strings.Repeat("0a", 32))
	launchtest.Key(t, filepath.Join(dir, "id.pem"))
	snp := resolve(t, s)
	for name, p := range map[string]*Plan{"sim": sim, "snp": snp} {
		if err := p.ReadBack(t.Context(), plannedVM(p), openedInputs); err != nil {
			t.Errorf("%s: found %v", name, err)
		}
		if err := p.CheckLaunched(t.Context(), plannedVM(p)); err != nil {
			t.Errorf("%s: found %v", name, err)
		}
	}
	device := func(list any, kind string) any {
		return append(slices.Clone(list.([]map[string]string)), map[string]string{"name": "x", "type": "child<" + kind + ">"})
	}
	few := plannedVM(sim)["qom-list /machine/peripheral"].([]map[string]string)
	for _, c := range []struct {
		plan  *Plan
		key   string
		value any
		want  string
	}{
		{sim, "qom-get /machine smm", "on", `/machine smm: found "on", expected "off"`},
		{sim, "qom-get /machine dump-guest-core", true, "/machine dump-guest-core: found true, expected false"},
		{sim, "qom-get /machine firmware", "/evil", `/machine firmware: found "/evil", expected "/fd/1"`},
		{sim, "qom-get /machine kernel", "/evil", "/machine kernel"},
		{sim, "qom-get /machine initrd", "", "/machine initrd"},
		{sim, "qom-get /machine append", "init=/bin/sh", "/machine append"},
		{sim, "qom-get /machine confidential-guest-support", "/objects/x", "/machine confidential-guest-support"},
		{sim, "query-memory-size-summary", map[string]uint64{"base-memory": 1 << 20}, "memory: found 1M, expected"},
		{sim, "query-cpus-fast", []map[string]any{}, "vCPUs: found 0, expected 1"},
		{sim, "qom-get /cpu type", "max-x86_64-cpu", `type of vCPU 0: found "max-x86_64-cpu"`},
		{sim, "qom-list /machine/peripheral", device(few, "vfio-pci"), `devices of type "vfio-pci": found 1 more than expected`},
		{sim, "qom-list /machine/peripheral", device(few, "isa-serial"), `devices of type "isa-serial": found 2 more`},
		{sim, "qom-list /machine/peripheral-anon", device(few[:1], "loader"), `devices of type "loader": found 1 more`},
		{sim, "qom-list /machine/peripheral", few[:1], `devices of type "tpm-crb": found 1 fewer than expected`},
		{snp, "qom-get /machine confidential-guest-support", "", "expected \"an object of type sev-snp-guest\""},
		{snp, "qom-get /objects/sev0 type", "sev-guest", "/objects/sev0 type"},
		{snp, "qom-get /objects/sev0 policy", 0xb0000, "/objects/sev0 policy: found 720896, expected 196608"},
		{snp, "qom-get /objects/sev0 kernel-hashes", false, "/objects/sev0 kernel-hashes"},
		{snp, "qom-get /objects/sev0 host-data", "", "/objects/sev0 host-data"},
		{snp, "qom-get /objects/sev0 author-key-enabled", true, "/objects/sev0 author-key-enabled"},
		{snp, "qom-get /objects/sev0 vcek-disabled", true, "/objects/sev0 vcek-disabled"},
		{snp, "qom-get /objects/sev0 cbitpos", 47, "/objects/sev0 cbitpos"},
		{snp, "qom-get /objects/sev0 reduced-phys-bits", 5, "/objects/sev0 reduced-phys-bits"},
		{snp, "qom-get /objects/sev0 id-block", "AAAA", "/objects/sev0 id-block"},
		{snp, "qom-get /objects/sev0 id-auth", "AAAA", "/objects/sev0 id-auth"},
		{snp, "query-sev", map[string]any{"enabled": false}, "query-sev: found \"enabled false"},
		{snp, "query-sev", map[string]any{"enabled": true, "sev-type": "sev", "snp-policy": 0x30000}, "query-sev"},
		{snp, "query-sev", map[string]any{"enabled": true, "sev-type": "sev-snp", "snp-policy": 0x20000}, "policy 0x20000"},
	} {
		vm := plannedVM(c.plan)
		vm[c.key] = c.value
		err := c.plan.ReadBack(t.Context(), vm, openedInputs)
		var drift *driftError
		if !errors.As(err, &drift) || len(drift.differs) == 0 || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s = %v: found %v, expected %q", c.key, c.value, err, c.want)
		}
		// What QEMU does not answer is an error too, and no drift.
		vm[c.key] = errors.New("no")
		if err := c.plan.ReadBack(t.Context(), vm, openedInputs); err == nil || errors.As(err, &drift) {
			t.Errorf("%s refused: found %v, expected QEMU's error", c.key, err)
		}
	}
	vm := plannedVM(snp)
	vm["query-sev"] = map[string]any{"state": "launch-update"}
	if err := snp.CheckLaunched(t.Context(), vm); err == nil || !strings.Contains(err.Error(), `launch state: found "launch-update", expected "running"`) {
		t.Errorf("found %v, expected the launch state", err)
	}
}

// TestE2EReadBackQEMU: real QEMUs say of their VMs what the check expects. Of
// SEV-SNP the objects alone are there: QEMU makes them without the hardware, as
// long as no machine is to use them.
func TestE2EReadBackQEMU(t *testing.T) {
	for _, qemu := range qemus(t) {
		if strings.HasPrefix(qemuVersion(t, qemu), "7.") {
			continue // knows no SEV-SNP
		}
		for name, p := range domainCases(t) {
			if p.SVSM != nil || p.Spec.Vsock != nil || p.Spec.Hugepages == "1G" || p.Spec.Hugepages == "2M" || p.Spec.Networks != nil || name == "disks" {
				continue // needs what the host may lack
			}
			t.Run(name, func(t *testing.T) {
				dir := t.TempDir()
				o := QEMUOptions{Dir: dir, Console: "null", SVSM: "null", TPM: filepath.Join(dir, "tpm"), Monitor: "socket,server=on,wait=off,path=" + filepath.Join(dir, "m")}
				_, page, err := p.HashesPage()
				if err != nil {
					t.Fatal(err)
				}
				launchtest.Write(t, filepath.Join(dir, "hashes.bin"), page)
				c, err := p.QEMUCommand(o)
				if err != nil {
					t.Fatal(err)
				}
				mon := startReadBack(t, qemu, filepath.Join(dir, "m"), readBackArgs(c.Args))
				opened := map[string]string{"firmware": p.Firmware.Path}
				err = p.ReadBack(t.Context(), mon, opened)
				var drift *driftError
				if err != nil && !errors.As(err, &drift) {
					t.Fatal(err)
				}
				var differs []string
				if drift != nil {
					differs = drift.differs
				}
				// What this test leaves out, and no more.
				for _, d := range differs {
					if !saysOne(d, []string{"/machine append:", "/machine confidential-guest-support:", `devices of type "tpm-crb"`}) {
						t.Errorf("found %s", d)
					}
				}
				want := 2
				if p.Spec.Cmdline == "" {
					want--
				}
				if len(differs) != want {
					t.Errorf("found %q, expected %d differences", differs, want)
				}
				if p.Spec.Platform != PlatformSNP {
					return
				}
				r := &readBack{ctx: t.Context(), mon: qmp.Commands{Executor: mon}, plan: p}
				if err := errors.Join(r.sevObject("/objects/sev0"), r.drift.err()); err != nil {
					t.Errorf("the object sev-snp-guest: %v", err)
				}
			})
		}
	}
}

// readBackArgs leaves out of a command line what the test has no hardware, no
// vTPM or no kernel for.
func readBackArgs(args []string) []string {
	var out []string
	for i := 0; i+1 < len(args); i++ {
		option, value := args[i], args[i+1]
		switch {
		case option == "-machine":
			value = strings.NewReplacer("accel=kvm", "accel=tcg", ",confidential-guest-support=sev0", "").Replace(value)
		case option == "-cpu" && value == "host":
			value = "max"
		case slices.Contains([]string{"-kernel", "-initrd", "-append", "-tpmdev"}, option),
			option == "-chardev" && strings.Contains(value, "id=tpm"), option == "-device" && strings.HasPrefix(value, "tpm-crb"):
			i++
			continue
		case option == "-chardev" && strings.HasPrefix(value, "socket,id=svsm"):
			value = "null,id=svsm"
		}
		if strings.HasPrefix(value, "-") {
			out = append(out, option) // has no value
			continue
		}
		out = append(out, option, value)
		i++
	}
	return out
}

func startReadBack(t *testing.T, qemu, socket string, args []string) *qmp.Client {
	t.Helper()
	cmd := exec.Command(qemu, args...)
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	ctx, cancel := context.WithTimeoutCause(t.Context(), 60*time.Second, errors.New("QEMU does not answer"))
	go func() {
		_ = cmd.Wait()
		cancel()
		close(ended)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-ended
	})
	mon, err := qmp.Dial(ctx, "unix", socket)
	if err != nil {
		cancel()
		<-ended
		t.Fatalf("%v\n%q\n%s", err, args, &said)
	}
	t.Cleanup(func() { mon.Close() })
	return mon
}
