package launch

import (
	"context"
	"encoding/base64"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/evtpm/evtpm/qmp"
)

// A driftError says what of a VM is not as it was planned: something between the
// plan and QEMU (a wrapper, a hook, another client of libvirt) changed it.
type driftError struct{ differs []string }

func (e *driftError) Error() string {
	return "the VM is not what was planned: " + strings.Join(e.differs, "; ")
}

func (e *driftError) add(what string, found, expected any) {
	e.differs = append(e.differs, fmt.Sprintf("%s: found %v, expected %v", what, shown(found), shown(expected)))
}

// shown quotes text, which is another program's.
func shown(v any) any {
	if s, ok := v.(string); ok {
		return fmt.Sprintf("%q", clip(s))
	}
	return v
}

// err returns what was found as an error, or nil.
func (e *driftError) err() error {
	if len(e.differs) == 0 {
		return nil
	}
	return e
}

// ReadBack holds a VM that has not run yet against its plan: what QEMU itself
// says of its objects, its memory, its vCPUs and its devices. opened says how
// QEMU was told to open each input.
func (p *Plan) ReadBack(ctx context.Context, mon qmp.Executor, opened map[string]string) error {
	r := &readBack{ctx: ctx, mon: qmp.Commands{Executor: mon}, plan: p, opened: opened}
	for _, part := range []func() error{r.machine, r.memory, r.cpus, r.devices, r.sev} {
		if err := part(); err != nil {
			return fmt.Errorf("read the VM back: %w", err)
		}
	}
	return r.drift.err()
}

type readBack struct {
	ctx    context.Context
	mon    qmp.Commands
	plan   *Plan
	opened map[string]string
	drift  driftError
}

// property compares a property of an object.
func (r *readBack) property(path, name string, expected any) error {
	found := reflect.New(reflect.TypeOf(expected))
	if err := r.mon.QOMGet(r.ctx, path, name, found.Interface()); err != nil {
		return err
	}
	if v := found.Elem().Interface(); v != expected {
		r.drift.add(path+" "+name, v, expected)
	}
	return nil
}

// properties compares several, in the order of their names.
func (r *readBack) properties(path string, expected map[string]any) error {
	for _, name := range slices.Sorted(maps.Keys(expected)) {
		if err := r.property(path, name, expected[name]); err != nil {
			return err
		}
	}
	return nil
}

func (r *readBack) machine() error {
	p := r.plan
	expected := map[string]any{"smm": "off", "dump-guest-core": false}
	for property, in := range map[string]*Input{"firmware": p.Firmware, "kernel": p.Kernel, "initrd": p.Initrd} {
		if in != nil {
			expected[property] = r.opened[in.Name]
		}
	}
	if p.Extracted != nil {
		expected["firmware"] = r.opened[imageFirmware]
	}
	if p.Kernel != nil {
		expected["append"] = p.Spec.Cmdline
	}
	if p.Spec.Platform == PlatformSim {
		expected["confidential-guest-support"] = ""
	}
	return r.properties("/machine", expected)
}

func (r *readBack) memory() error {
	m, err := r.mon.QueryMemorySizeSummary(r.ctx)
	if err != nil {
		return err
	}
	if found := Size(m.Base) + Size(m.Plugged); found != r.plan.Spec.Memory {
		r.drift.add("memory", found, r.plan.Spec.Memory)
	}
	return nil
}

func (r *readBack) cpus() error {
	cpus, err := r.mon.QueryCPUsFast(r.ctx)
	if err != nil {
		return err
	}
	want := r.plan.Spec.CPU
	if len(cpus) != want.Count {
		r.drift.add("vCPUs", len(cpus), want.Count)
	}
	// The type of an alias, "EPYC", is that of its version, "EPYC-v1-x86_64-cpu".
	const suffix = "-x86_64-cpu"
	for _, c := range cpus {
		var kind string
		if err := r.mon.QOMGet(r.ctx, c.QOMPath, "type", &kind); err != nil {
			return err
		}
		if kind != want.Model+suffix && !(strings.HasPrefix(kind, want.Model+"-v") && strings.HasSuffix(kind, suffix)) {
			r.drift.add(fmt.Sprintf("type of vCPU %d", c.Index), kind, want.Model+suffix)
		}
	}
	return nil
}

// plumbing are devices that backends put between others: ports of the PCI bus.
var plumbing = []string{"pcie-root-port"}

// devices compares how many devices there are of each type, but for what a board
// always has.
func (r *readBack) devices() error {
	count := map[string]int{}
	for _, container := range []string{"/machine/peripheral", "/machine/peripheral-anon"} {
		list, err := r.mon.QOMList(r.ctx, container)
		if err != nil {
			return err
		}
		for _, child := range list {
			if kind, ok := strings.CutPrefix(child.Type, "child<"); ok {
				count[strings.TrimSuffix(kind, ">")]++
			}
		}
	}
	for _, d := range r.plan.devices() {
		count[d]--
	}
	if r.plan.Spec.Console == ConsoleLog && count["isa-serial"] == 1 {
		// libvirt's; that of -serial is the board's.
		delete(count, "isa-serial")
	}
	for _, kind := range slices.Sorted(maps.Keys(count)) {
		switch n := count[kind]; {
		case n > 0 && !slices.Contains(plumbing, kind):
			r.drift.differs = append(r.drift.differs, fmt.Sprintf("devices of type %q: found %d more than expected", clip(kind), n))
		case n < 0:
			r.drift.differs = append(r.drift.differs, fmt.Sprintf("devices of type %q: found %d fewer than expected", kind, -n))
		}
	}
	return nil
}

// devices lists the types of the devices that the plan's VM has beside those of
// every board.
func (p *Plan) devices() []string {
	s := p.Spec
	var out []string
	ports := 0
	if s.Agent.Transport == TransportVirtioSerial {
		ports++
	}
	if s.Platform == PlatformSim {
		ports++
		out = append(out, "tpm-crb")
	}
	if ports > 0 {
		out = append(out, "virtio-serial-pci")
	}
	out = append(out, slices.Repeat([]string{"virtserialport"}, ports)...)
	if _, page, err := p.HashesPage(); err == nil && page != nil {
		out = append(out, "loader")
	}
	if p.Extracted != nil {
		out = append(out, slices.Repeat([]string{"loader"}, len(p.Extracted.Pages))...)
	}
	if s.Vsock != nil {
		out = append(out, "vhost-vsock-pci")
	}
	out = append(out, slices.Repeat([]string{"virtio-blk-pci"}, len(s.Disks))...)
	out = append(out, slices.Repeat([]string{"virtio-net-pci"}, len(s.Networks))...)
	if s.RNG {
		out = append(out, "virtio-rng-pci")
	}
	return out
}

// sev compares what the AMD-SP is given.
func (r *readBack) sev() error {
	p := r.plan
	if p.Spec.Platform != PlatformSNP {
		return nil
	}
	var object string
	if err := r.mon.QOMGet(r.ctx, "/machine", "confidential-guest-support", &object); err != nil {
		return err
	}
	if object == "" {
		r.drift.add("/machine confidential-guest-support", "", "an object of type sev-snp-guest")
		return nil
	}
	if err := r.sevObject(object); err != nil {
		return err
	}
	state, err := r.mon.QuerySEV(r.ctx)
	if err != nil {
		return err
	}
	if !state.Enabled || state.Type != "sev-snp" || state.SNPPolicy != uint64(p.Spec.Policy) {
		r.drift.add("query-sev", fmt.Sprintf("enabled %t, type %q, policy %s", state.Enabled, clip(state.Type), Policy(state.SNPPolicy)),
			fmt.Sprintf("enabled true, type %q, policy %s", "sev-snp", p.Spec.Policy))
	}
	return nil
}

func (r *readBack) sevObject(path string) error {
	p := r.plan
	expected := map[string]any{
		"type":               "sev-snp-guest",
		"policy":             uint64(p.Spec.Policy),
		"kernel-hashes":      p.Hashes != nil,
		"host-data":          base64.StdEncoding.EncodeToString(p.Spec.HostData),
		"author-key-enabled": p.AuthorKey,
		"vcek-disabled":      false,
		"cbitpos":            sevCBitPos,
		"reduced-phys-bits":  sevReducedPhysBits,
		"id-block":           base64.StdEncoding.EncodeToString(p.IDBlock),
		"id-auth":            base64.StdEncoding.EncodeToString(p.IDAuth),
	}
	return r.properties(path, expected)
}

// CheckLaunched looks, once the VM runs, whether the AMD-SP has finished its
// launch. Not tried on hardware.
func (p *Plan) CheckLaunched(ctx context.Context, mon qmp.Executor) error {
	if p.Spec.Platform != PlatformSNP {
		return nil
	}
	state, err := qmp.Commands{Executor: mon}.QuerySEV(ctx)
	if err != nil {
		return err
	}
	if state.State != "running" {
		var drift driftError
		drift.add("launch state", state.State, "running")
		return drift.err()
	}
	return nil
}
