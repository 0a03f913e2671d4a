package launch

import (
	"crypto/sha256"
	"fmt"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/evtpm/evtpm/measure"
)

// FillDefaults gives every absent field its default and makes the paths of the
// spec absolute: they are relative to dir, the folder of the spec's file, itself
// absolute. A field that is in the file is left as it is, even when it is zero or
// empty. Neither ~ nor environment variables are expanded.
func (s *Spec) FillDefaults(dir string) {
	onSim := s.Platform == PlatformSim
	if onSim && s.Sim == nil {
		s.Sim = new(Sim)
	}
	if s.Backend == BackendLibvirt && s.Timeouts.Start == 0 && !s.src.has("timeouts.start") {
		s.Timeouts.Start = Duration(2 * time.Minute)
	}
	s.each(func(f field, v reflect.Value, path string) {
		if f.tag.Get("kind") == "path" && v.String() != "" && !filepath.IsAbs(v.String()) {
			v.SetString(filepath.Join(dir, v.String()))
		}
		text, ok := f.tag.Lookup("default")
		if !ok || !v.IsZero() || s.src.has(path) {
			return
		}
		if err := setDefault(v, text); err != nil {
			panic(fmt.Sprintf("spec field %s: default %q: %v", path, text, err))
		}
	})
	fill := func(field *string, path, value string) {
		if *field == "" && !s.src.has(path) {
			*field = value
		}
	}
	choose := func(cond bool, yes, no string) string {
		if cond {
			return yes
		}
		return no
	}
	fill(&s.KernelHashes, "kernel_hashes", choose(s.Kernel != "" && s.SVSM == nil, On, Off))
	fill(&s.QEMU.Accel, "qemu.accel", choose(onSim, AccelTCG, AccelKVM))
	if s.Backend == BackendLibvirt {
		fill(&s.Libvirt.URI, "libvirt.uri", choose(onSim, "qemu:///session", "qemu:///system"))
	}
	fill(&s.Attestation.Chip, "attestation.chip", choose(s.onOtherHost(), ChipAny, ChipHost))
	if s.Policy == 0 && !s.src.has("policy") {
		s.Policy = DefaultPolicy
	}
	if s.SVSM == nil {
		fill(&s.HostProfile, "host_profile", ProfileKVM)
		if s.CPU.GuestFeatures == 0 && !s.src.has("cpu.guest_features") {
			s.CPU.GuestFeatures = measure.FeatureSNPActive
		}
	}
	if s.Attestation.PCRs == nil {
		for i := range pcrCount {
			s.Attestation.PCRs = append(s.Attestation.PCRs, i)
		}
	}
	slices.Sort(s.Attestation.PCRs)
	for i := range s.Networks {
		fill(&s.Networks[i].MAC, fmt.Sprintf("networks[%d].mac", i), defaultMAC(s.Name, i))
	}
}

// defaultMAC is the address of a machine's card in QEMU's range: the same at every
// launch, and another than that of other machines on a bridge, which would all
// have the same from QEMU.
func defaultMAC(name string, card int) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "evtpm network card %d of %s", card, name))
	return fmt.Sprintf("52:54:00:%02x:%02x:%02x", sum[0], sum[1], sum[2])
}

// pcrCount is the number of PCRs of a TPM for PC clients.
const pcrCount = 24

// setDefault sets a scalar to the value of a default tag.
func setDefault(v reflect.Value, text string) error {
	if u, ok := v.Addr().Interface().(interface{ UnmarshalText([]byte) error }); ok {
		return u.UnmarshalText([]byte(text))
	}
	if v.Kind() == reflect.String {
		v.SetString(text)
		return nil
	}
	n, err := parseNumber(text)
	if err != nil {
		return err
	}
	if v.CanInt() {
		v.SetInt(int64(n))
	} else {
		v.SetUint(n)
	}
	return nil
}

// each calls visit for every scalar of the spec, and every list of them, in the
// order of the structs. Sections that are absent are not visited.
func (s *Spec) each(visit func(f field, v reflect.Value, path string)) {
	eachField(reflect.ValueOf(s).Elem(), "", visit)
}

func eachField(v reflect.Value, path string, visit func(f field, v reflect.Value, path string)) {
	for _, f := range fieldsOf(v.Type()) {
		fv, at := v.Field(f.index), joinPath(path, f.name)
		if fv.Kind() == reflect.Pointer {
			if fv.IsNil() {
				continue
			}
			fv = fv.Elem()
		}
		switch {
		case fv.Kind() == reflect.Struct:
			eachField(fv, at, visit)
		case fv.Kind() == reflect.Slice && fv.Type().Elem().Kind() == reflect.Struct:
			for i := range fv.Len() {
				eachField(fv.Index(i), fmt.Sprintf("%s[%d]", at, i), visit)
			}
		default:
			visit(f, fv, at)
		}
	}
}

// list splits a tag that holds names.
func (f field) list(tag string) []string {
	text, ok := f.tag.Lookup(tag)
	if !ok {
		return nil
	}
	return strings.Split(text, ",")
}
