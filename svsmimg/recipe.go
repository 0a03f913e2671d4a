package svsmimg

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/evtpm/evtpm/nearest"
)

// Kinds of recipes.
const (
	// KindWrap puts an OVMF image alone into a file, for machines with and without
	// SEV-SNP.
	KindWrap = "wrap"
	// KindCoconut puts COCONUT-SVSM's boot loader, kernel and filesystem and an
	// OVMF image together, in the layout of its igvmbuilder of August 2026 for QEMU.
	KindCoconut = "coconut"
	// KindReplace replaces the firmware of an existing file, or adds one.
	KindReplace = "replace-firmware"
)

// A Recipe says how an image is built. Names of files are relative to the
// recipe's folder and never enter the image.
type Recipe struct {
	Version int    `yaml:"version" json:"version"` // 1
	Kind    string `yaml:"kind" json:"kind"`

	// Platforms are those that the image is for: snp and native. Empty is both. Not
	// for replace-firmware.
	Platforms []string `yaml:"platforms" json:"platforms,omitempty"`

	// Firmware is an OVMF image. Optional for coconut.
	Firmware string `yaml:"firmware" json:"firmware,omitempty"`

	// Image is the file whose firmware is replaced.
	Image string `yaml:"image" json:"image,omitempty"`

	// BootLoader, Kernel and Filesystem are COCONUT's: a flat image for address
	// 0x10000, an ELF file, and an optional packed filesystem.
	BootLoader string `yaml:"boot_loader" json:"boot_loader,omitempty"`
	Kernel     string `yaml:"kernel" json:"kernel,omitempty"`
	Filesystem string `yaml:"filesystem" json:"filesystem,omitempty"`

	// Policy is the guest policy. Nil is 0x30000.
	Policy *Hex `yaml:"policy" json:"policy,omitempty"`

	// SEVFeatures is SEV_FEATURES of the boot vCPU's VMSA. Nil is 0x1 (SNPActive)
	// for wrap, and 0x29 (with RestrictedInjection and DebugSwap) for coconut.
	SEVFeatures *Hex `yaml:"sev_features" json:"sev_features,omitempty"`

	// VMSA is where the boot vCPU's VMSA of coconut lies: kvm (empty) is
	// 0xFFFFFFFFF000, for hosts whose KVM builds it; guest-memory is the last page of
	// the kernel's region, for hosts that take it from there.
	VMSA string `yaml:"vmsa" json:"vmsa,omitempty"`

	// ConsolePort is the COM port of the SVSM's console, 1 to 4. Zero is 1.
	ConsolePort int `yaml:"console_port" json:"console_port,omitempty"`

	// AlternateInjection lets the SVSM use alternate injection.
	AlternateInjection bool `yaml:"alternate_injection" json:"alternate_injection,omitempty"`

	// DeviceTree is off for loaders that do not know the DEVICE_TREE parameter, such
	// as QEMU's up to 11.1. Empty is on.
	DeviceTree string `yaml:"device_tree" json:"device_tree,omitempty"`

	// Parameters is off for a wrapped OVMF that is to be given no IGVM parameters,
	// though it has a place for them. Empty is on.
	Parameters string `yaml:"parameters" json:"parameters,omitempty"`

	// Features are the features that the SVSM's kernel was compiled with, such as
	// vtpm: for the manifest. Nothing in an image says so by itself.
	Features []string `yaml:"features" json:"features,omitempty"`

	// Expect names launches whose digests the manifest lists beside those of one
	// vCPU.
	Expect *Expect `yaml:"expect" json:"expect,omitempty"`
}

// Expect names launches with more vCPUs, whose digest on host profile kvm depends
// on the CPU model.
type Expect struct {
	CPUModel string `yaml:"cpu_model" json:"cpu_model"`
	VCPUs    []int  `yaml:"vcpus" json:"vcpus"`
}

// fieldsOf lists the fields that a kind of recipe takes besides version and kind.
var fieldsOf = map[string][]string{
	KindWrap:    {"platforms", "firmware", "policy", "sev_features", "parameters", "expect"},
	KindCoconut: {"platforms", "firmware", "boot_loader", "kernel", "filesystem", "policy", "sev_features", "vmsa", "console_port", "alternate_injection", "device_tree", "features", "expect"},
	KindReplace: {"firmware", "image", "features", "expect"},
}

// maxRecipe bounds a recipe.
const maxRecipe = 64 << 10

// ParseRecipe reads a recipe: YAML, one document, no field that is unknown, given
// twice or of another kind. name is what errors call it.
func ParseRecipe(data []byte, name string) (*Recipe, error) {
	if len(data) > maxRecipe {
		return nil, fmt.Errorf("%s: found %d bytes, expected at most %d", name, len(data), maxRecipe)
	}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc yaml.Node
	switch err := dec.Decode(&doc); {
	case errors.Is(err, io.EOF):
		return nil, fmt.Errorf("%s: found an empty document", name)
	case err != nil:
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%s: found more after the first document", name)
	}
	if err := plain(&doc, 0); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if len(doc.Content) != 1 || doc.Content[0].Kind != yaml.MappingNode {
		return nil, fmt.Errorf("%s: line %d: expected fields", name, doc.Line)
	}
	if err := checkFields(doc.Content[0]); err != nil {
		return nil, prefix(name, err)
	}
	r := new(Recipe)
	if err := doc.Decode(r); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if err := r.Validate(); err != nil {
		return nil, prefix(name, err)
	}
	return r, nil
}

// prefix puts a name before each of joined errors.
func prefix(name string, err error) error {
	var joined interface{ Unwrap() []error }
	if !errors.As(err, &joined) {
		return fmt.Errorf("%s: %w", name, err)
	}
	var out []error
	for _, e := range joined.Unwrap() {
		out = append(out, fmt.Errorf("%s: %w", name, e))
	}
	return errors.Join(out...)
}

// plain refuses what makes YAML read differently from how it looks: anchors,
// aliases, tags, merge keys.
func plain(n *yaml.Node, depth int) error {
	switch {
	case depth > 8:
		return fmt.Errorf("line %d: found deeper nesting than any recipe has", n.Line)
	case n.Kind == yaml.AliasNode || n.Anchor != "":
		return fmt.Errorf("line %d: found an anchor or alias, expected the value itself", n.Line)
	case n.Style&yaml.TaggedStyle != 0:
		return fmt.Errorf("line %d: found tag %s, expected none", n.Line, clip(n.Tag))
	case n.Tag == "!!merge":
		return fmt.Errorf("line %d: found a merge key", n.Line)
	}
	for _, c := range n.Content {
		if err := plain(c, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// checkFields holds the fields of a document against its kind.
func checkFields(m *yaml.Node) error {
	var errs []error
	kind := ""
	seen := make(map[string]bool)
	for i := 0; i+1 < len(m.Content); i += 2 {
		key, value := m.Content[i], m.Content[i+1]
		if seen[key.Value] {
			errs = append(errs, fmt.Errorf("line %d: field %q: found twice", key.Line, clip(key.Value)))
		}
		seen[key.Value] = true
		if key.Value == "kind" {
			kind = value.Value
		}
		if value.Kind == yaml.ScalarNode && value.Tag == "!!null" {
			errs = append(errs, fmt.Errorf("line %d: field %q: found no value", key.Line, clip(key.Value)))
		}
	}
	known, ok := fieldsOf[kind]
	if !ok {
		return fmt.Errorf("kind: found %q, expected %s, %s or %s", clip(kind), KindWrap, KindCoconut, KindReplace)
	}
	for i := 0; i+1 < len(m.Content); i += 2 {
		name := m.Content[i].Value
		if name == "version" || name == "kind" || slices.Contains(known, name) {
			continue
		}
		err := fmt.Errorf("line %d: field %q: not known%s", m.Content[i].Line, clip(name), hint(name, known))
		for other, fields := range fieldsOf {
			if slices.Contains(fields, name) {
				err = fmt.Errorf("line %d: field %q: not for kind %s but for %s", m.Content[i].Line, name, kind, other)
			}
		}
		errs = append(errs, err)
	}
	if e := child(m, "expect"); e != nil && e.Kind == yaml.MappingNode {
		for i := 0; i+1 < len(e.Content); i += 2 {
			if name := e.Content[i].Value; name != "cpu_model" && name != "vcpus" {
				errs = append(errs, fmt.Errorf("line %d: field %q: not known%s", e.Content[i].Line, clip("expect."+name), hint(name, []string{"cpu_model", "vcpus"})))
			}
		}
	}
	return errors.Join(errs...)
}

func child(m *yaml.Node, name string) *yaml.Node {
	for i := 0; i+1 < len(m.Content); i += 2 {
		if m.Content[i].Value == name {
			return m.Content[i+1]
		}
	}
	return nil
}

// hint names the known field that a wrong one was meant to be, if one is near.
func hint(name string, known []string) string {
	if k := nearest.Name(name, known); k != "" {
		return fmt.Sprintf("; did you mean %q", k)
	}
	return ""
}

// Validate checks everything about a recipe that needs no file.
func (r *Recipe) Validate() error {
	var errs []error
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if r.Version != 1 {
		fail("version: found %d, expected 1", r.Version)
	}
	if fieldsOf[r.Kind] == nil {
		fail("kind: found %q, expected %s, %s or %s", clip(r.Kind), KindWrap, KindCoconut, KindReplace)
	}
	for i, p := range r.Platforms {
		if p != "snp" && p != "native" || slices.Contains(r.Platforms[:i], p) {
			fail("platforms[%d]: found %q, expected snp and native, each once", i, clip(p))
		}
	}
	need := func(name, value string) {
		if value == "" {
			fail("%s: missing, expected the name of a file", name)
		}
	}
	switch r.Kind {
	case KindWrap:
		need("firmware", r.Firmware)
	case KindCoconut:
		need("boot_loader", r.BootLoader)
		need("kernel", r.Kernel)
	case KindReplace:
		need("image", r.Image)
		need("firmware", r.Firmware)
	}
	if r.Policy != nil && (*r.Policy&policyMustBeOne == 0 || *r.Policy>>policyReserved != 0) {
		fail("policy: found %s, expected bit 17 to be one and bits from %d on to be zero", r.Policy, policyReserved)
	}
	if r.SEVFeatures != nil && *r.SEVFeatures&1 == 0 {
		fail("sev_features: found %s, expected SNPActive (0x1) in it", r.SEVFeatures)
	}
	if r.VMSA != "" && r.VMSA != vmsaKVM && r.VMSA != vmsaGuestMemory {
		fail("vmsa: found %q, expected %s or %s", clip(r.VMSA), vmsaKVM, vmsaGuestMemory)
	}
	if r.ConsolePort < 0 || r.ConsolePort > len(comPorts) {
		fail("console_port: found %d, expected 1 to %d", r.ConsolePort, len(comPorts))
	}
	for _, s := range []struct{ name, value string }{{"device_tree", r.DeviceTree}, {"parameters", r.Parameters}} {
		if s.value != "" && s.value != "on" && s.value != "off" {
			fail("%s: found %q, expected on or off", s.name, clip(s.value))
		}
	}
	if len(r.Features) > 64 {
		fail("features: found %d, expected at most 64", len(r.Features))
	}
	for i, f := range r.Features {
		if !isName(f) {
			fail("features[%d]: found %q, expected letters, digits, hyphens and underscores", i, clip(f))
		}
	}
	errs = append(errs, r.Expect.validate())
	return errors.Join(errs...)
}

// Places of the VMSA.
const (
	vmsaKVM         = "kvm"
	vmsaGuestMemory = "guest-memory"
)

// comPorts are the I/O ports of COM1 to COM4.
var comPorts = []uint16{0x3f8, 0x2f8, 0x3e8, 0x2e8}

func isName(s string) bool {
	return s != "" && len(s) <= 64 && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_") == ""
}

// onFor reports whether a platform is among the recipe's.
func (r *Recipe) onFor(platform string) bool {
	return len(r.Platforms) == 0 || slices.Contains(r.Platforms, platform)
}

func (r *Recipe) policy() uint64 {
	if r.Policy == nil {
		return policyDefault
	}
	return uint64(*r.Policy)
}
