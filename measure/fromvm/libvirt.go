package fromvm

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/evtpm/evtpm/measure"
)

// qemuNamespace is that of libvirt's elements for raw QEMU arguments.
const qemuNamespace = "http://libvirt.org/schemas/domain/qemu/1.0"

// maxDepth bounds the nesting of a domain's XML.
const maxDepth = 64

// domain holds what is read of a domain. Only paths of elements that matter are
// looked at.
type domain struct {
	vm        *VM
	text      map[string]string // element path -> its text
	attrs     map[string]string // "path@name" -> value
	arguments []string          // of qemu:commandline
}

// Libvirt reads a domain's XML, as virsh dumpxml prints it.
func Libvirt(doc []byte) (*VM, error) {
	if len(doc) > maxInput {
		return nil, fmt.Errorf("domain XML: found %d bytes, expected at most %d", len(doc), maxInput)
	}
	d := &domain{vm: new(VM), text: make(map[string]string), attrs: make(map[string]string)}
	if err := d.read(doc); err != nil {
		return nil, fmt.Errorf("domain XML: %w", err)
	}
	if err := d.launch(); err != nil {
		return nil, fmt.Errorf("domain XML: %w", err)
	}
	return d.vm, nil
}

// wanted are the paths of the elements that are read. Each may occur once.
var wanted = map[string]bool{
	"domain":                             true,
	"domain/vcpu":                        true,
	"domain/os":                          true,
	"domain/os/loader":                   true,
	"domain/os/kernel":                   true,
	"domain/os/initrd":                   true,
	"domain/os/cmdline":                  true,
	"domain/cpu":                         true,
	"domain/cpu/model":                   true,
	"domain/launchSecurity":              true,
	"domain/launchSecurity/policy":       true,
	"domain/launchSecurity/idBlock":      true,
	"domain/launchSecurity/idAuth":       true,
	"domain/launchSecurity/hostData":     true,
	"domain/launchSecurity/kernelHashes": true,
	"domain/commandline":                 true,
}

func (d *domain) read(doc []byte) error {
	dec := xml.NewDecoder(bytes.NewReader(doc))
	dec.Strict = true
	var path []string
	var text strings.Builder
	for {
		tok, err := dec.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		switch t := tok.(type) {
		case xml.StartElement:
			if len(path) >= maxDepth {
				return fmt.Errorf("line %d: found nesting deeper than %d", line(dec), maxDepth)
			}
			if len(path) == 0 && d.text["domain"] != "" {
				return fmt.Errorf("line %d: found a second document", line(dec))
			}
			path = append(path, t.Name.Local)
			text.Reset()
			if err := d.start(strings.Join(path, "/"), t); err != nil {
				return fmt.Errorf("line %d: %w", line(dec), err)
			}
		case xml.EndElement:
			if key := strings.Join(path, "/"); wanted[key] && key != "domain" {
				d.text[key] = text.String()
			}
			path = path[:len(path)-1]
			text.Reset()
		case xml.CharData:
			if len(path) > 0 && wanted[strings.Join(path, "/")] {
				text.Write(t)
			}
		case xml.Directive:
			return fmt.Errorf("line %d: found a document type declaration, which a domain has none of", line(dec))
		}
	}
	if d.text["domain"] == "" {
		return errors.New("found no <domain>")
	}
	return nil
}

func line(dec *xml.Decoder) int {
	n, _ := dec.InputPos()
	return n
}

func (d *domain) start(key string, t xml.StartElement) error {
	if key == "domain/commandline/arg" {
		for _, a := range t.Attr {
			if a.Name.Local == "value" {
				d.arguments = append(d.arguments, a.Value)
			}
		}
		if len(d.arguments) > maxWords {
			return fmt.Errorf("found more than %d QEMU arguments", maxWords)
		}
		return nil
	}
	if !wanted[key] {
		return nil
	}
	if _, ok := d.text[key]; ok {
		return fmt.Errorf("found a second <%s>", t.Name.Local)
	}
	if key == "domain/commandline" && t.Name.Space != qemuNamespace {
		return fmt.Errorf("<%s>: found namespace %q, expected %q", t.Name.Local, clip(t.Name.Space), qemuNamespace)
	}
	d.text[key] = " "
	for _, a := range t.Attr {
		d.attrs[key+"@"+a.Name.Local] = a.Value
	}
	return nil
}

// value is an element's text without surrounding space.
func (d *domain) value(key string) string { return strings.TrimSpace(d.text["domain/"+key]) }

func (d *domain) attr(key, name string) string { return d.attrs["domain/"+key+"@"+name] }

func (d *domain) launch() error {
	vm := d.vm
	if err := d.security(); err != nil {
		return err
	}
	if t := d.attrs["domain@type"]; t != "" && t != "kvm" {
		vm.warn("domain type %q: only kvm starts confidential VMs", clip(t))
	}
	vm.VCPUs = 1
	vcpus := d.value("vcpu")
	if current := d.attr("vcpu", "current"); current != "" {
		vcpus = current
	}
	if vcpus != "" {
		var err error
		if vm.VCPUs, err = count("<vcpu>", vcpus); err != nil {
			return err
		}
	}
	if err := d.cpu(); err != nil {
		return err
	}
	vm.Kernel, vm.Initrd = d.value("os/kernel"), d.value("os/initrd")
	// The command line is measured as libvirt passes it on: exactly.
	if c, ok := d.text["domain/os/cmdline"]; ok && c != " " {
		vm.Cmdline = c
	}
	if vm.Firmware = d.value("os/loader"); vm.Firmware == "" {
		if d.attr("os", "firmware") != "" {
			return errors.New("<os firmware='efi'>: libvirt chooses the image when the domain starts; take the XML of the running domain (virsh dumpxml), or name the image")
		}
		return errors.New("<os>: found no <loader>")
	}
	if vm.Mode == measure.ModeSNP && d.attr("os/loader", "type") != "rom" {
		vm.warn("<loader type='%s'>: QEMU starts an SNP VM from a rom only", clip(d.attr("os/loader", "type")))
	}
	return d.passthrough()
}

func (d *domain) security() error {
	vm := d.vm
	if _, ok := d.text["domain/launchSecurity"]; !ok {
		return errNotConfidential
	}
	const key = "launchSecurity"
	policy := d.value(key + "/policy")
	if policy != "" {
		var err error
		if vm.Policy, err = number("<policy>", policy, 64); err != nil {
			return err
		}
	}
	if h := d.attr(key, "kernelHashes"); h != "" {
		var err error
		if vm.KernelHashes, err = onOff("kernelHashes", h); err != nil {
			return err
		}
	}
	switch t := d.attr(key, "type"); t {
	case "sev":
		if policy == "" {
			return errors.New("<launchSecurity type='sev'>: found no <policy>")
		}
		vm.Mode = measure.ModeSEV
		if vm.Policy&sevPolicyES != 0 {
			// libvirt does not set legacy-vm-type: QEMU's default is the older one.
			vm.Mode, vm.LegacyVMType = measure.ModeSEVES, true
		}
		return nil
	case "sev-snp":
	default:
		return fmt.Errorf("<launchSecurity>: found type %q, expected sev or sev-snp", clip(t))
	}
	vm.Mode, vm.GuestFeatures = measure.ModeSNP, measure.FeatureSNPActive
	if policy == "" {
		vm.Policy = defaultSNPPolicy
	}
	for _, f := range []struct {
		name   string
		size   int
		padded bool
		into   *[]byte
	}{
		{"hostData", 32, false, &vm.HostData},
		{"idBlock", measure.IDBlockSize, false, &vm.IDBlock},
		{"idAuth", measure.IDAuthSize, true, &vm.IDAuth},
	} {
		if v := d.value(key + "/" + f.name); v != "" {
			data, err := binary("<"+f.name+">", v, f.size, f.padded)
			if err != nil {
				return err
			}
			*f.into = data
		}
	}
	return nil
}

func (d *domain) cpu() error {
	vm := d.vm
	switch mode := d.attr("cpu", "mode"); mode {
	case "host-passthrough":
		vm.CPUModel = "host"
	case "maximum":
		vm.CPUModel = "max"
	case "host-model":
		return errors.New("<cpu mode='host-model'>: libvirt chooses the model when the domain starts; take the XML of the running domain (virsh dumpxml), or name the model")
	case "custom", "":
		vm.CPUModel = d.value("cpu/model")
		if vm.CPUModel == "" {
			vm.CPUModel = "qemu64"
			vm.warn("no <cpu>: the VM has QEMU's default model, qemu64, which is no AMD model for SEV")
		}
	default:
		return fmt.Errorf("<cpu>: found mode %q, expected custom, host-passthrough, maximum or host-model", clip(mode))
	}
	return nil
}

// passthrough applies the raw QEMU arguments, which come after libvirt's own.
func (d *domain) passthrough() error {
	if len(d.arguments) == 0 {
		return nil
	}
	q := &qemu{objects: make(map[string]options), nodes: make(map[string]options)}
	if err := q.read(d.arguments); err != nil {
		return fmt.Errorf("<qemu:commandline>: %w", err)
	}
	vm := d.vm
	for _, o := range []struct {
		from string
		into *string
	}{{q.kernel, &vm.Kernel}, {q.initrd, &vm.Initrd}, {q.cmdline, &vm.Cmdline}, {q.bios, &vm.Firmware}} {
		if o.from != "" {
			*o.into = o.from
		}
	}
	if q.smp != "" {
		n, err := smp(q.smp)
		if err != nil {
			return fmt.Errorf("<qemu:commandline>: %w", err)
		}
		vm.VCPUs = n
	}
	if q.cpu != "" {
		if err := vm.cpuModel(q.cpu); err != nil {
			return fmt.Errorf("<qemu:commandline>: %w", err)
		}
	}
	if igvm := q.machine["igvm-cfg"]; igvm != "" {
		vm.IGVM = q.objects[igvm]["file"]
	}
	if q.machine["confidential-guest-support"] != "" {
		return errors.New("<qemu:commandline>: found confidential-guest-support beside <launchSecurity>, expected one of them")
	}
	vm.Warnings = append(vm.Warnings, q.warnings...)
	return nil
}
