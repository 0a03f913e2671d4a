package svsmimg

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/evtpm/evtpm/measure"
	"github.com/evtpm/evtpm/ovmf"
)

// InfoSchema names the version of [Info]'s JSON form.
const InfoSchema = "evtpm.svsm-inspect/v1"

// Info says what is in a file.
type Info struct {
	Schema       string         `json:"schema"`
	Version      uint32         `json:"format_version"`
	Architecture string         `json:"architecture"`
	Bytes        int            `json:"bytes"`
	Headers      []HeaderCount  `json:"headers"`
	Platforms    []PlatformInfo `json:"platforms"`
	Areas        []AreaInfo     `json:"parameter_areas,omitempty"`

	// IDBlock is nil when there is no SNP_ID_BLOCK.
	IDBlock *IDBlockInfo `json:"id_block,omitempty"`

	// Firmware is the metadata of the OVMF image in the file; nil when there is
	// none.
	Firmware *FirmwareInfo `json:"firmware,omitempty"`
}

// HeaderCount says how many headers of a type there are.
type HeaderCount struct {
	Type  string `json:"type"`
	Count int    `json:"count"`
}

// PlatformInfo is a platform that the file is for, and what is launched there.
type PlatformInfo struct {
	Type              string       `json:"type"`
	Mask              Hex          `json:"compatibility_mask"`
	HighestVTL        uint8        `json:"highest_vtl"`
	SharedGPABoundary Hex          `json:"shared_gpa_boundary"`
	Policy            *Hex         `json:"policy,omitempty"`
	Regions           []RegionInfo `json:"regions"`

	// RegionsLeftOut counts regions that are not listed: more than anyone reads.
	RegionsLeftOut int `json:"regions_left_out,omitempty"`

	VCPUs []VCPUInfo `json:"vcpus,omitempty"`
}

// RegionInfo is a run of guest memory of one kind.
type RegionInfo struct {
	GPA  Hex    `json:"gpa"`
	Size Hex    `json:"size"`
	Name string `json:"name"`
	Type string `json:"type"` // of the header, or the kind of PAGE_DATA

	// Measured says what of the region enters the launch digest: "contents",
	// "address" (address and type) or "nothing".
	Measured string `json:"measured"`

	// Zeros counts pages that the file has no data for.
	Zeros int `json:"zero_pages,omitempty"`
}

// What of a region is measured.
const (
	measuredContents = "contents"
	measuredAddress  = "address"
	measuredNothing  = "nothing"
)

// VCPUInfo is what a vCPU starts with.
type VCPUInfo struct {
	Index     uint16     `json:"vcpu"`
	GPA       Hex        `json:"gpa"`
	Registers []Register `json:"registers"` // those that are not zero

	// Bad says why the registers cannot be read.
	Bad string `json:"bad,omitempty"`
}

// Register is a register's value.
type Register struct {
	Name  string `json:"name"`
	Value Hex    `json:"value"`
}

// AreaInfo is a parameter area: what the loader puts there, and where it ends up.
type AreaInfo struct {
	Index       uint32          `json:"index"`
	Size        Hex             `json:"size"`
	GPA         *Hex            `json:"gpa,omitempty"`
	Parameters  []ParameterInfo `json:"parameters,omitempty"`
	InitialData bool            `json:"initial_data,omitempty"`
}

// ParameterInfo is one thing that the loader writes into an area.
type ParameterInfo struct {
	Type     string `json:"type"`
	Offset   Hex    `json:"offset"`
	Optional bool   `json:"optional,omitempty"`
}

// IDBlockInfo is the SNP_ID_BLOCK.
type IDBlockInfo struct {
	LaunchDigest    measure.Digest   `json:"launch_digest"`
	FamilyID        measure.HexBytes `json:"family_id"`
	ImageID         measure.HexBytes `json:"image_id"`
	GuestSVN        uint32           `json:"guest_svn"`
	Version         uint32           `json:"version"`
	IDKeyDigest     *measure.Digest  `json:"id_key_digest,omitempty"`
	AuthorKeyDigest *measure.Digest  `json:"author_key_digest,omitempty"`

	// Bad says why the keys cannot be read.
	Bad string `json:"bad,omitempty"`
}

// FirmwareInfo is what an OVMF image's table and SEV metadata say.
type FirmwareInfo struct {
	GPA      Hex           `json:"gpa"`
	Size     Hex           `json:"size"`
	Table    []string      `json:"table,omitempty"`
	Sections []SectionInfo `json:"sev_sections,omitempty"`

	// Bad says why the image cannot be read.
	Bad string `json:"bad,omitempty"`
}

// SectionInfo is a section of SEV metadata.
type SectionInfo struct {
	Type string `json:"type"`
	GPA  Hex    `json:"gpa"`
	Size Hex    `json:"size"`
}

// Inspect says what is in a file.
func (f *File) Inspect() *Info {
	info := &Info{Schema: InfoSchema, Version: f.Version, Architecture: "X64", Bytes: f.encodedSize()}
	if f.Architecture == ArchAArch64 {
		info.Architecture = "AARCH64"
	}
	info.Headers = f.countTypes()
	for _, h := range f.Headers {
		if p, ok := h.(*Platform); ok {
			info.Platforms = append(info.Platforms, f.inspectPlatform(p))
		}
	}
	info.Areas = f.inspectAreas()
	if b := f.IDBlock(); b != nil {
		info.IDBlock = b.info()
	}
	info.Firmware = f.inspectFirmware()
	return info
}

func (f *File) countTypes() []HeaderCount {
	counts := make(map[HeaderType]int)
	for _, h := range f.Headers {
		counts[h.Type()]++
	}
	var types []HeaderType
	for t := range counts {
		types = append(types, t)
	}
	slices.Sort(types)
	var out []HeaderCount
	for _, t := range types {
		out = append(out, HeaderCount{t.String(), counts[t]})
	}
	return out
}

func (f *File) inspectPlatform(p *Platform) PlatformInfo {
	info := PlatformInfo{
		Type: p.Platform.String(), Mask: Hex(p.Mask), HighestVTL: p.HighestVTL, SharedGPABoundary: Hex(p.SharedGPABoundary),
	}
	info.Regions, info.RegionsLeftOut = f.inspectRegions(p.Mask)
	if policy, ok := f.Policy(p.Platform); ok {
		info.Policy = (*Hex)(&policy)
	}
	vmsa := p.Platform == PlatformSNP || p.Platform == PlatformSEVES
	for _, c := range f.contexts(p.Mask) {
		if p.Platform != PlatformVSM && p.Platform != PlatformCCA {
			info.VCPUs = append(info.VCPUs, f.inspectContext(c, vmsa))
		}
	}
	return info
}

func (f *File) inspectContext(c *VPContext, vmsa bool) VCPUInfo {
	info := VCPUInfo{Index: c.VPIndex, GPA: Hex(c.GPA)}
	if vmsa {
		v, err := measure.ParseVMSA(f.Bytes(c.Data))
		if err != nil {
			info.Bad = err.Error()
			return info
		}
		for _, r := range v.Diff(new(measure.VMSA)) {
			info.Registers = append(info.Registers, Register{r.Name, Hex(r.A)})
		}
		return info
	}
	n, err := ParseNativeContext(f.Bytes(c.Data))
	if err != nil {
		info.Bad = err.Error()
		return info
	}
	for _, r := range n.fields() {
		if v := r.value(); v != 0 {
			info.Registers = append(info.Registers, Register{r.name, Hex(v)})
		}
	}
	return info
}

// maxRegions bounds the regions that are listed of a platform. Images have some
// dozens.
const maxRegions = 4096

// inspectRegions lists what a platform's memory is filled with, in ascending order
// of address, neighbours of one kind joined; and how many regions it left out.
func (f *File) inspectRegions(mask uint32) (_ []RegionInfo, leftOut int) {
	names := f.regions(mask)
	areas := make(map[uint32]uint64)
	var out []RegionInfo
	for _, h := range f.Headers {
		var r RegionInfo
		switch h := h.(type) {
		case *ParameterArea:
			areas[h.Index] = h.Bytes
			continue
		case *PageData:
			if h.Mask&mask == 0 {
				continue
			}
			r = RegionInfo{GPA: Hex(h.GPA), Size: Hex(h.Bytes()), Name: names.pageName(h), Type: h.Kind.String(), Measured: h.measured()}
			if h.Data.Size == 0 && h.Kind == DataNormal {
				r.Zeros = int(h.Bytes() / pageSize)
			}
		case *ParameterInsert:
			if h.Mask&mask == 0 {
				continue
			}
			r = RegionInfo{
				GPA: Hex(h.GPA), Size: Hex(areas[h.Index]), Name: fmt.Sprintf("parameter area %d", h.Index),
				Type: h.Type().String(), Measured: measuredAddress,
			}
		case *VPContext:
			if h.Mask&mask == 0 || h.GPA == 0 || h.VPIndex != 0 {
				continue
			}
			r = RegionInfo{GPA: Hex(h.GPA), Size: pageSize, Name: "VMSA", Type: h.Type().String(), Measured: measuredContents}
		case *ErrorRange:
			if h.Mask&mask == 0 {
				continue
			}
			r = RegionInfo{GPA: Hex(h.GPA), Size: Hex(h.Bytes), Name: "error range", Type: h.Type().String(), Measured: measuredNothing}
		default:
			continue
		}
		if n := len(out); n > 0 && out[n-1].joins(&r) {
			out[n-1].Size += r.Size
			out[n-1].Zeros += r.Zeros
			continue
		}
		if len(out) == maxRegions {
			leftOut++
			continue
		}
		out = append(out, r)
	}
	slices.SortStableFunc(out, func(a, b RegionInfo) int { return cmp.Compare(a.GPA, b.GPA) })
	joined := out[:0]
	for _, r := range out {
		if n := len(joined); n > 0 && joined[n-1].joins(&r) {
			joined[n-1].Size += r.Size
			joined[n-1].Zeros += r.Zeros
			continue
		}
		joined = append(joined, r)
	}
	return joined, leftOut
}

func (r *RegionInfo) joins(next *RegionInfo) bool {
	return r.GPA+r.Size == next.GPA && r.Name == next.Name && r.Type == next.Type && r.Measured == next.Measured
}

// measured says what of a page enters the launch digest.
func (p *PageData) measured() string {
	if p.Kind != DataNormal || p.Flags&PageUnmeasured != 0 {
		return measuredAddress
	}
	return measuredContents
}

func (f *File) inspectAreas() []AreaInfo {
	var out []AreaInfo
	index := make(map[uint32]int)
	for _, h := range f.Headers {
		switch h := h.(type) {
		case *ParameterArea:
			index[h.Index] = len(out)
			out = append(out, AreaInfo{Index: h.Index, Size: Hex(h.Bytes), InitialData: h.Data.Size != 0})
		case *Parameter:
			if i, ok := index[h.Index]; ok {
				out[i].Parameters = append(out[i].Parameters, ParameterInfo{h.Kind.String(), Hex(h.Offset), h.Optional})
			}
		case *ParameterInsert:
			if i, ok := index[h.Index]; ok {
				gpa := Hex(h.GPA)
				out[i].GPA = &gpa
			}
		}
	}
	return out
}

func (b *SNPIDBlock) info() *IDBlockInfo {
	info := &IDBlockInfo{LaunchDigest: b.LaunchDigest, FamilyID: b.FamilyID[:], ImageID: b.ImageID[:], GuestSVN: b.GuestSVN, Version: b.Version}
	auth, err := b.Auth()
	if err != nil {
		info.Bad = err.Error()
		return info
	}
	g, err := auth.Golden(b.Block(0))
	if err != nil {
		info.Bad = err.Error()
		return info
	}
	info.IDKeyDigest, info.AuthorKeyDigest = &g.IDKeyDigest, g.AuthorKeyDigest
	return info
}

func (f *File) inspectFirmware() *FirmwareInfo {
	mask := f.Mask(PlatformSNP)
	if mask == 0 {
		mask = f.Mask(PlatformNative)
	}
	data, err := f.firmware(mask)
	if err != nil {
		return nil
	}
	info := &FirmwareInfo{GPA: Hex(top4G - uint64(len(data))), Size: Hex(len(data))}
	img, err := ovmf.Parse(data)
	if err != nil {
		info.Bad = err.Error()
		return info
	}
	info.Table, info.Sections = tableNames(img), sevSections(img)
	return info
}

// tableNames lists the entries of an image's table, by name where they have one.
func tableNames(img *ovmf.Image) (out []string) {
	for _, e := range img.Table {
		out = append(out, cmp.Or(e.Name, e.GUID.String()))
	}
	return out
}

func sevSections(img *ovmf.Image) (out []SectionInfo) {
	for _, s := range img.Sections {
		out = append(out, SectionInfo{s.Type.String(), Hex(s.GPA), Hex(s.Size)})
	}
	return out
}

// encodedSize is the size of the file.
func (f *File) encodedSize() int {
	n, err := f.fixedSize()
	if err != nil {
		return 0
	}
	for _, h := range f.Headers {
		n += headerContent + int(alignUp(uint64(sizeOf(h)), headerAlign))
	}
	return n + len(f.Data)
}
