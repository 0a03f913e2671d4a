package measure

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/evtpm/evtpm/nearest"
)

// A CPUModel is one of QEMU's AMD CPU models: what CPUID 1.EAX says in a VM
// that was given it.
type CPUModel struct {
	Name                    string
	Family, Model, Stepping uint8
}

// Signature is the model's CPUID 1.EAX. Versions of one model share it, so that
// a model's version never changes a launch digest.
func (m CPUModel) Signature() uint32 {
	sig, err := SignatureOf(int(m.Family), int(m.Model), int(m.Stepping))
	if err != nil {
		panic(err) // the table below is constant, and a test reads all of it
	}
	return sig
}

// cpuFamilies are the models of QEMU 11.1 (query-cpu-model-expansion on
// qemu-system-x86_64 11.1.3), one line a family: its versions run from v1.
var cpuFamilies = []struct {
	CPUModel
	versions int
}{
	{CPUModel{"EPYC", 23, 1, 2}, 5},
	{CPUModel{"EPYC-IBPB", 23, 1, 2}, 0},
	{CPUModel{"EPYC-Rome", 23, 49, 0}, 5},
	{CPUModel{"EPYC-Milan", 25, 1, 1}, 4},
	{CPUModel{"EPYC-Genoa", 25, 17, 0}, 3},
	{CPUModel{"EPYC-Turin", 26, 0, 0}, 2},
	{CPUModel{"Dhyana", 24, 0, 1}, 2},
}

// CPUModels lists every AMD and Hygon CPU model of QEMU 11.1, with and without
// version.
func CPUModels() []CPUModel {
	var out []CPUModel
	for _, f := range cpuFamilies {
		out = append(out, f.CPUModel)
		for v := 1; v <= f.versions; v++ {
			m := f.CPUModel
			m.Name = fmt.Sprintf("%s-v%d", f.Name, v)
			out = append(out, m)
		}
	}
	return out
}

// CPUSignature returns the CPUID 1.EAX of one of QEMU 11.1's AMD CPU models. An
// unknown name is an error that names the nearest; "host" and "max" are errors
// too, since what they mean is known only on the host.
func CPUSignature(model string) (uint32, error) {
	models := CPUModels()
	for _, m := range models {
		if m.Name == model {
			return m.Signature(), nil
		}
	}
	if model == "host" || model == "max" {
		return 0, fmt.Errorf("CPU model %q: its signature is that of the host's own processor; give it as a number", model)
	}
	if slices.ContainsFunc(otherModels, func(prefix string) bool { return strings.HasPrefix(model, prefix) }) {
		return 0, fmt.Errorf("CPU model %q: QEMU has it, but it is not an AMD model with SEV, and its signature is not known here", clip(model))
	}
	best := slices.MinFunc(models, func(a, b CPUModel) int {
		return nearest.Distance(model, a.Name) - nearest.Distance(model, b.Name)
	})
	return 0, fmt.Errorf("CPU model %q: not an AMD model of QEMU 11.1; the nearest is %q (QEMU: unable to find CPU model '%s')", clip(model), best.Name, strings.Trim(strconv.Quote(clip(model)), `"`))
}

// otherModels are the names, or how they start, of QEMU's models of other
// processors (qemu-system-x86_64 -cpu help).
var otherModels = []string{
	"486", "Broadwell", "Cascadelake-", "ClearwaterForest", "Conroe", "Cooperlake", "Denverton", "DiamondRapids", "GraniteRapids", "Haswell",
	"Icelake-", "IvyBridge", "KnightsMill", "Nehalem", "Opteron_G", "Penryn", "SandyBridge", "SapphireRapids", "SierraForest", "Skylake-", "Snowridge",
	"Westmere", "YongFeng", "athlon", "core2duo", "coreduo", "kvm32", "kvm64", "n270", "pentium", "phenom", "qemu32", "qemu64",
}

// SignatureOf packs family, model and stepping as CPUID 1.EAX does (AMD APM
// volume 3, CPUID Fn0000_0001_EAX): family and model are the effective ones,
// such as 25 and 17 for Genoa.
func SignatureOf(family, model, stepping int) (uint32, error) {
	const baseFamilyMax = 0xf
	switch {
	case family < 0 || family > baseFamilyMax+0xff:
		return 0, fmt.Errorf("CPU family %d: expected 0 to %d", family, baseFamilyMax+0xff)
	case model < 0 || model > 0xff:
		return 0, fmt.Errorf("CPU model number %d: expected 0 to 255", model)
	case stepping < 0 || stepping > 0xf:
		return 0, fmt.Errorf("CPU stepping %d: expected 0 to 15", stepping)
	}
	base, ext := min(family, baseFamilyMax), max(family-baseFamilyMax, 0)
	return uint32(ext<<20 | model>>4<<16 | base<<8 | model&0xf<<4 | stepping), nil
}

// SplitSignature is the inverse of [SignatureOf].
func SplitSignature(sig uint32) (family, model, stepping int) {
	family = int(sig>>8&0xf) + int(sig>>20&0xff)
	model = int(sig>>4&0xf) | int(sig>>16&0xf)<<4
	return family, model, int(sig & 0xf)
}

// clip shortens text from outside before it is worked on or shown.
func clip(s string) string {
	const enough = 64
	if len(s) > enough {
		return s[:enough] + "..."
	}
	return s
}
