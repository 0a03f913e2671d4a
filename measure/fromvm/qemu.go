package fromvm

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/evtpm/evtpm/measure"
	"github.com/evtpm/evtpm/strictjson"
)

// QEMU reads a QEMU command line: as a shell takes it, or as /proc/PID/cmdline
// shows it.
func QEMU(line string) (*VM, error) {
	args, err := words(line)
	if err != nil {
		return nil, err
	}
	return QEMUArgs(args)
}

// QEMUArgs reads QEMU's arguments. A first one that is no option is taken for
// the program's name.
func QEMUArgs(args []string) (*VM, error) {
	q := &qemu{objects: make(map[string]options), nodes: make(map[string]options)}
	if err := q.read(args); err != nil {
		return nil, err
	}
	return q.vm()
}

// options are the parts of an option's argument: "a,b=c".
type options map[string]string

// qemu holds what was read of a command line.
type qemu struct {
	cpu, smp, bios, kernel, initrd, cmdline string
	seen                                    map[string]bool
	machine                                 options
	objects, nodes                          map[string]options
	pflash                                  string // file of unit 0
	warnings                                []string
}

// value options that are read; everything else that matters for the launch is a
// warning, and the rest is skipped.
func (q *qemu) read(args []string) error {
	if len(args) > maxWords {
		return fmt.Errorf("command line: found more than %d words", maxWords)
	}
	q.seen = make(map[string]bool)
	q.machine = make(options)
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		args = args[1:]
	}
	for i := 0; i < len(args); i++ {
		name := strings.TrimPrefix(strings.TrimPrefix(args[i], "-"), "-")
		if name == args[i] {
			continue // a value of an option that is not read, or a disk image
		}
		switch name {
		case "cpu", "smp", "bios", "kernel", "initrd", "append", "machine", "M", "object", "drive", "pflash", "blockdev":
		case "readconfig", "preconfig", "set":
			return fmt.Errorf("-%s: what it configures is not on the command line", name)
		case "shim":
			q.warnings = append(q.warnings, "-shim: not measured by kernel hashes")
			continue
		default:
			continue
		}
		i++
		if i >= len(args) {
			return fmt.Errorf("-%s: found nothing after it", name)
		}
		if err := q.option(name, args[i]); err != nil {
			return fmt.Errorf("-%s: %w", name, err)
		}
	}
	return nil
}

func (q *qemu) option(name, value string) error {
	// Objects and drives are looked at when something refers to them; even so
	// there must be a name to refer to.
	mayBeUnread := name == "object" || name == "blockdev" || name == "drive"
	if !mayBeUnread || strings.HasPrefix(value, unknown) {
		if err := known(value); err != nil {
			return err
		}
	}
	// QEMU takes the last of several.
	switch name {
	case "cpu":
		q.cpu = value
	case "smp":
		q.smp = value
	case "bios":
		q.bios = value
	case "kernel":
		q.kernel = value
	case "initrd":
		q.initrd = value
	case "append":
		q.cmdline = value
	case "pflash":
		if q.pflash == "" {
			q.pflash = value
		}
	case "machine", "M":
		o, err := parseOptions(value, "type")
		if err != nil {
			return err
		}
		for k, v := range o { // several are merged
			q.machine[k] = v
		}
	case "object":
		return q.named(q.objects, "id", value, "qom-type")
	case "blockdev":
		return q.named(q.nodes, "node-name", value, "driver")
	case "drive":
		o, err := parseOptions(value, "")
		if err != nil {
			return err
		}
		if err := errors.Join(known(o["if"]), known(o["unit"])); err != nil {
			return err
		}
		if o["if"] == "pflash" && (o["unit"] == "" || o["unit"] == "0") && q.pflash == "" {
			q.pflash = o["file"]
			return known(q.pflash)
		}
	}
	return nil
}

func (q *qemu) named(into map[string]options, key, value, first string) error {
	o, err := parseOptions(value, first)
	if err != nil {
		return err
	}
	id := o[key]
	if id == "" {
		return nil // cannot be referred to
	}
	if err := errors.Join(known(id), known(o[first])); err != nil {
		return err
	}
	if into[id] != nil {
		return fmt.Errorf("found a second one with %s=%s", key, clip(id))
	}
	into[id] = o
	return nil
}

// parseOptions takes "first,key=value,flag" apart, in which two commas are one
// of a value, or a JSON object.
func parseOptions(s, first string) (options, error) {
	out := make(options)
	if strings.HasPrefix(s, "{") {
		return out, jsonOptions(s, "", out)
	}
	for n := 0; s != "" || n == 0; n++ {
		var part strings.Builder
		for {
			i := strings.IndexByte(s, ',')
			if i < 0 {
				part.WriteString(s)
				s = ""
				break
			}
			part.WriteString(s[:i])
			s = s[i+1:]
			if !strings.HasPrefix(s, ",") {
				break
			}
			part.WriteByte(',')
			s = s[1:]
		}
		key, value, ok := strings.Cut(part.String(), "=")
		switch {
		case ok:
		case n == 0 && first != "":
			key, value = first, key
		default:
			key, value = flag(key)
		}
		if key == "" {
			continue
		}
		if old, ok := out[key]; ok && old != value {
			return nil, fmt.Errorf("%s: found %q and %q", clip(key), clip(old), clip(value))
		}
		out[key] = value
	}
	return out, nil
}

// flag is an option without value: "svm" is on, "nosvm" off.
func flag(s string) (key, value string) {
	if k, ok := strings.CutPrefix(s, "no"); ok && k != "" {
		return k, "off"
	}
	return s, "on"
}

// jsonOptions flattens a JSON object: {"file":{"filename":"f"}} is
// file.filename=f.
func jsonOptions(s, prefix string, out options) error {
	var doc map[string]any
	if err := strictjson.Unmarshal([]byte(s), &doc, maxInput, "JSON"); err != nil {
		return err
	}
	dec := json.NewDecoder(strings.NewReader(s))
	dec.UseNumber() // a policy is a number that must not become a float
	doc = nil
	if err := dec.Decode(&doc); err != nil {
		return fmt.Errorf("JSON: %w", err)
	}
	var flatten func(prefix string, v any, depth int) error
	flatten = func(prefix string, v any, depth int) error {
		if depth > 8 {
			return errors.New("JSON: found nesting deeper than 8")
		}
		switch v := v.(type) {
		case map[string]any:
			for k, e := range v {
				if err := flatten(strings.TrimPrefix(prefix+"."+k, "."), e, depth+1); err != nil {
					return err
				}
			}
		case []any:
			for i, e := range v {
				if err := flatten(fmt.Sprintf("%s.%d", prefix, i), e, depth+1); err != nil {
					return err
				}
			}
		case bool:
			out[prefix] = map[bool]string{true: "on", false: "off"}[v]
		case nil:
		default:
			out[prefix] = fmt.Sprint(v)
		}
		return nil
	}
	return flatten(prefix, doc, 0)
}

// vm turns what was read into a launch.
func (q *qemu) vm() (*VM, error) {
	vm := &VM{Kernel: q.kernel, Initrd: q.initrd, Cmdline: q.cmdline, CPUModel: "qemu64", Warnings: q.warnings}
	id := q.machine["confidential-guest-support"]
	if id == "" {
		id = q.machine["memory-encryption"] // before QEMU 6
	}
	if id == "" {
		return nil, errNotConfidential
	}
	cgs := q.objects[id]
	if cgs == nil {
		return nil, fmt.Errorf("-machine confidential-guest-support=%s: found no -object with this id", clip(id))
	}
	if err := cgs.known(); err != nil {
		return nil, err
	}
	if err := vm.confidential(cgs); err != nil {
		return nil, fmt.Errorf("-object %s,id=%s: %w", cgs["qom-type"], id, err)
	}
	var err error
	if vm.VCPUs, err = smp(q.smp); err != nil {
		return nil, err
	}
	if err := vm.cpuModel(q.cpu); err != nil {
		return nil, err
	}
	if igvm := q.machine["igvm-cfg"]; igvm != "" {
		vm.IGVM = q.objects[igvm]["file"]
		if err := known(vm.IGVM); err != nil {
			return nil, err
		}
		if vm.IGVM == "" {
			return nil, fmt.Errorf("-machine igvm-cfg=%s: found no -object with this id and a file", clip(igvm))
		}
		return vm, nil
	}
	if vm.IGVM = cgs["igvm-file"]; vm.IGVM != "" { // COCONUT's QEMU of 2024
		return vm, nil
	}
	return vm, q.firmware(vm)
}

// known refuses options that a shell alone knows.
func (o options) known() error {
	for _, key := range slices.Sorted(maps.Keys(o)) {
		if err := errors.Join(known(key), known(o[key])); err != nil {
			return err
		}
	}
	return nil
}

// firmware finds the image: -bios, or the first flash drive.
func (q *qemu) firmware(vm *VM) error {
	if q.bios != "" {
		vm.Firmware = q.bios
		return nil
	}
	vm.Firmware = q.pflash
	if node := q.machine["pflash0"]; node != "" {
		for range 8 { // a format node stands on a file node
			o := q.nodes[node]
			if err := o.known(); err != nil {
				return err
			}
			if name := o["filename"]; name != "" {
				vm.Firmware = name
				break
			}
			if name := o["file.filename"]; name != "" {
				vm.Firmware = name
				break
			}
			node = o["file"]
		}
	}
	if vm.Firmware == "" {
		return errors.New("command line: found neither -bios nor a flash drive: QEMU would start SeaBIOS, which no SEV VM can run")
	}
	if vm.Mode == measure.ModeSNP {
		vm.warn("firmware in flash: QEMU starts an SNP VM from -bios only")
	}
	return nil
}

// confidential reads the object that makes the VM one.
func (vm *VM) confidential(o options) error {
	var err error
	if v, ok := o["kernel-hashes"]; ok {
		if vm.KernelHashes, err = onOff("kernel-hashes", v); err != nil {
			return err
		}
	}
	policy, hasPolicy := o["policy"]
	if hasPolicy {
		if vm.Policy, err = number("policy", policy, 64); err != nil {
			return err
		}
	}
	switch o["qom-type"] {
	case "sev-guest":
		vm.Mode = measure.ModeSEV
		if !hasPolicy {
			vm.Policy = defaultSEVPolicy
		}
		if vm.Policy&sevPolicyES != 0 {
			vm.Mode = measure.ModeSEVES
			// Absent and "auto" both choose the older interface.
			vm.LegacyVMType = o["legacy-vm-type"] != "off"
		}
	case "sev-snp-guest":
		vm.Mode = measure.ModeSNP
		if !hasPolicy {
			vm.Policy = defaultSNPPolicy
		}
		return vm.snp(o)
	case "tdx-guest":
		return errors.New("found Intel TDX, expected AMD SEV")
	default:
		return fmt.Errorf("found type %q, expected sev-guest or sev-snp-guest", clip(o["qom-type"]))
	}
	return nil
}

func (vm *VM) snp(o options) error {
	vm.GuestFeatures = measure.FeatureSNPActive
	for name, bit := range map[string]uint64{"debug-swap": measure.FeatureDebugSwap, "secure-tsc": measure.FeatureSecureTSC} {
		if v, ok := o[name]; ok {
			on, err := onOff(name, v)
			if err != nil {
				return err
			}
			if on {
				vm.GuestFeatures |= bit
			}
		}
	}
	for _, f := range []struct {
		name   string
		size   int
		padded bool
		into   *[]byte
	}{
		{"host-data", 32, false, &vm.HostData},
		{"id-block", measure.IDBlockSize, false, &vm.IDBlock},
		{"id-auth", measure.IDAuthSize, true, &vm.IDAuth},
	} {
		if v, ok := o[f.name]; ok {
			data, err := binary(f.name, v, f.size, f.padded)
			if err != nil {
				return err
			}
			*f.into = data
		}
	}
	if o["init-flags"] != "" || o["svsm"] != "" {
		vm.warn("init-flags and svsm are not upstream QEMU's: such a host measures in its own way")
	}
	return nil
}

// smp reads the number of vCPUs that the VM starts with (QEMU
// hw/core/machine-smp.c): what is not given follows from the rest.
func smp(arg string) (int, error) {
	if arg == "" {
		return 1, nil
	}
	o, err := parseOptions(arg, "cpus")
	if err != nil {
		return 0, fmt.Errorf("-smp: %w", err)
	}
	if v, ok := o["cpus"]; ok {
		n, err := count("-smp", v)
		return n, err
	}
	product := 1
	for _, part := range []string{"drawers", "books", "sockets", "dies", "clusters", "modules", "cores", "threads"} {
		v, ok := o[part]
		if !ok {
			continue
		}
		n, err := count("-smp "+part, v)
		if err != nil {
			return 0, err
		}
		if product *= n; product > 1<<20 {
			return 0, fmt.Errorf("-smp: found more than %d vCPUs", 1<<20)
		}
	}
	if v, ok := o["maxcpus"]; ok {
		return count("-smp maxcpus", v)
	}
	return product, nil
}

// cpuModel reads -cpu: a name, then properties.
func (vm *VM) cpuModel(arg string) error {
	if arg == "" {
		vm.warn("no -cpu: the VM has QEMU's default model, qemu64, which is no AMD model for SEV")
		return nil
	}
	o, err := parseOptions(arg, "model-name")
	if err != nil {
		return fmt.Errorf("-cpu: %w", err)
	}
	if vm.CPUModel = strings.TrimSuffix(o["model-name"], "-x86_64-cpu"); vm.CPUModel == "" {
		return fmt.Errorf("-cpu: found %q, expected a model first", clip(arg))
	}
	for name, into := range map[string]**int{"family": &vm.Family, "model": &vm.Model, "stepping": &vm.Stepping} {
		v, ok := o[name]
		if !ok {
			continue
		}
		n, err := number("-cpu "+name, v, 16)
		if err != nil {
			return err
		}
		*into = new(int)
		**into = int(n)
	}
	return nil
}

// Signature is the CPUID 1.EAX that the VM's CPU model shows.
func (vm *VM) Signature() (uint32, error) {
	family, model, stepping := -1, -1, -1
	if vm.Family == nil || vm.Model == nil || vm.Stepping == nil {
		sig, err := measure.CPUSignature(vm.CPUModel)
		if err != nil {
			return 0, err
		}
		family, model, stepping = measure.SplitSignature(sig)
	}
	for _, p := range []struct {
		from *int
		into *int
	}{{vm.Family, &family}, {vm.Model, &model}, {vm.Stepping, &stepping}} {
		if p.from != nil {
			*p.into = *p.from
		}
	}
	return measure.SignatureOf(family, model, stepping)
}
