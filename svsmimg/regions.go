package svsmimg

import (
	"cmp"
	"slices"

	"github.com/evtpm/evtpm/measure"
)

// Where COCONUT's images of 2026 place things (boot/defs/src/kernel_launch.rs and
// tools/igvmbuilder/src/gpa_map.rs of COCONUT-SVSM).
const (
	bldrBase       = 0x10000
	filesystemBase = 0x800000
	top1M          = 1 << 20
	top4G          = 1 << 32
)

// Names of regions.
const (
	regionFirmware   = "firmware"
	regionBootLoader = "boot loader"
	regionSVSM       = "SVSM"
	regionKernel     = "SVSM kernel"
	regionFilesystem = "SVSM filesystem"
	regionPages      = "pages"
	regionSecrets    = "secrets page"
	regionCPUID      = "CPUID page"
)

// A region is a part of guest memory with a name.
type region struct {
	gpa, end uint64
	name     string
}

// regions names parts of guest memory, in ascending order of address.
type regions []region

// name is the name of the region that an address lies in.
func (r regions) name(gpa uint64) string {
	i, found := slices.BinarySearchFunc(r, gpa, func(a region, gpa uint64) int { return cmp.Compare(a.gpa, gpa) })
	if !found {
		i--
	}
	if i >= 0 && gpa < r[i].end {
		return r[i].name
	}
	return regionPages
}

// pageName is what a page is called: what it is for the AMD-SP, or the region that
// it lies in.
func (r regions) pageName(p *PageData) string {
	switch p.Kind {
	case DataSecrets:
		return regionSecrets
	case DataCPUID, DataCPUIDXF:
		return regionCPUID
	}
	return r.name(p.GPA)
}

// regions finds out what the parts of a platform's guest memory are: the run of
// pages that ends at 4 GiB is the firmware, required memory the SVSM's kernel, and
// the run where the boot vCPU starts its boot loader, or without required memory
// the SVSM itself. An image without an SVSM has a firmware alone.
func (f *File) regions(mask uint32) regions {
	var out regions
	add := func(gpa, end uint64, name string) {
		for _, r := range out {
			if gpa < r.end && r.gpa < end {
				return
			}
		}
		out = append(out, region{gpa, end, name})
	}
	runs := f.runs(mask)
	for _, r := range runs {
		if r.gpa < top4G && r.gpa+r.size >= top4G {
			add(r.gpa, top4G, regionFirmware)
		}
	}
	for _, h := range f.Headers {
		if m, ok := h.(*RequiredMemory); ok && m.Mask&mask != 0 {
			add(m.GPA, m.GPA+uint64(m.Bytes), regionKernel)
		}
	}
	entry, ok := f.entry(mask)
	start := regionSVSM
	if slices.ContainsFunc(out, func(r region) bool { return r.name == regionKernel }) {
		start = regionBootLoader
	}
	for _, r := range runs {
		switch {
		case ok && entry >= r.gpa && entry < r.gpa+r.size:
			add(r.gpa, r.gpa+r.size, start)
		case r.gpa == filesystemBase && ok && entry < filesystemBase && entry >= bldrBase:
			add(r.gpa, r.gpa+r.size, regionFilesystem)
		}
	}
	slices.SortFunc(out, func(a, b region) int { return cmp.Compare(a.gpa, b.gpa) })
	return out
}

// entry is the address at which a platform's boot vCPU starts.
func (f *File) entry(mask uint32) (uint64, bool) {
	contexts := f.contexts(mask)
	if len(contexts) == 0 {
		return 0, false
	}
	page := f.Bytes(contexts[0].Data)
	if mask == f.Mask(PlatformSNP) || mask == f.Mask(PlatformSEVES) {
		v, err := measure.ParseVMSA(page)
		if err != nil {
			return 0, false
		}
		return v.CS.Base + v.RIP, true
	}
	n, err := ParseNativeContext(page)
	if err != nil {
		return 0, false
	}
	return uint64(n.CodeBase) + n.RIP, true
}

// A run is neighbouring memory that a platform's PAGE_DATA headers fill with
// contents of their own.
type run struct{ gpa, size uint64 }

// runs lists the runs in ascending order of address. Pages whose contents the host
// or the AMD-SP brings do not belong to any.
func (f *File) runs(mask uint32) []run {
	out := make([]run, 0, 64)
	for _, h := range f.Headers {
		p, ok := h.(*PageData)
		if !ok || p.Mask&mask == 0 || p.Kind != DataNormal {
			continue
		}
		if n := len(out); n > 0 && out[n-1].gpa+out[n-1].size == p.GPA {
			out[n-1].size += p.Bytes()
			continue
		}
		out = append(out, run{p.GPA, p.Bytes()})
	}
	slices.SortFunc(out, func(a, b run) int { return cmp.Compare(a.gpa, b.gpa) })
	joined := out[:0]
	for _, r := range out {
		if n := len(joined); n > 0 && joined[n-1].gpa+joined[n-1].size == r.gpa {
			joined[n-1].size += r.size
			continue
		}
		joined = append(joined, r)
	}
	return joined
}
