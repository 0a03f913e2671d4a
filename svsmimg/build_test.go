package svsmimg

import (
	"bytes"
	"cmp"
	"debug/elf"
	"encoding/binary"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/evtpm/evtpm/measure"
	"github.com/evtpm/evtpm/ovmf"
	"github.com/evtpm/evtpm/ovmf/ovmftest"
)

// TestCoconutDigests builds images of synthetic inputs. The digests are those that
// COCONUT-SVSM's own igvmbuilder and igvmmeasure of August 2026 give for the same
// inputs and settings, without and with igvmmeasure's -n.
func TestCoconutDigests(t *testing.T) {
	for name, c := range map[string]struct {
		change       func(*Recipe)
		normal, zero string
	}{
		"everything": {func(*Recipe) {},
			"d929ada8b9127e9d1d58b817d573842d21b95ad9c99d97d14327cf3b834d616e06b1d07d8d843794a04a1bc079cd637d",
			"978ca97e5236b5e5922b66d0a99803c7c6be4c2e9c7327b518ff663d445ed4cfcc2396fc3cb96a9ac8edb865942fa375"},
		"no native": {func(r *Recipe) { r.Platforms = []string{"snp"} },
			"d929ada8b9127e9d1d58b817d573842d21b95ad9c99d97d14327cf3b834d616e06b1d07d8d843794a04a1bc079cd637d",
			"978ca97e5236b5e5922b66d0a99803c7c6be4c2e9c7327b518ff663d445ed4cfcc2396fc3cb96a9ac8edb865942fa375"},
		"no firmware":   {func(r *Recipe) { r.Firmware = "" }, "086c9b1693ea000f3880f830bdf676ede78ae33c012f869564e82b603d6b1b3ef80fa008aef211b8f1468056f0b51eea", "5a5648b7d610e5954f39d5f03583c089b7769413fbfb3f37335ada1e6916bdf89e03271c23b2df1150b42d2e99473bd7"},
		"no filesystem": {func(r *Recipe) { r.Filesystem = "" }, "01b462c9f8e05641ab4bba80b95401f498c70b7169f37ae75a35b4c2b35335eb3a9c8fb2022f7617093630d9641760d2", "384c75288ba5941b8b571b4681aae9e5204e6bec185749167edc5dd90ab5306060e2ae59d3ad0897f634770ede4db92e"},
		"settings": {func(r *Recipe) {
			features := Hex(0x229)
			r.Filesystem, r.ConsolePort, r.AlternateInjection, r.SEVFeatures = "", 3, true, &features
		}, "9106e78ddc44b7557257a7185ee526050ae3f7b6625fc0eebe32e8442db1d119b878bc06253f22c0e024001d7e4ade1e", "6e61238ab6760eab3915ddab283938bda2e6c07ab412aa6ffff5f5855895f0259b7b420a27c164bd397231657b3b04f1"},
	} {
		t.Run(name, func(t *testing.T) {
			r := coconutRecipe()
			c.change(r)
			b, err := r.Build(files(coconutFiles()))
			if err != nil {
				t.Fatal(err)
			}
			for zero, want := range map[bool]string{false: c.normal, true: c.zero} {
				for _, p := range []Profile{ProfileFile, ProfileKVM, ProfileKVMBSP} {
					if got := launchDigest(t, b.File, SequenceOptions{Profile: p, NativeZero: zero}); got.String() != want {
						t.Errorf("%s, native zero %t: found %s, expected %s", p, zero, got, want)
					}
				}
			}
		})
	}
}

// TestCoconutAmdSev builds an image with a firmware that has IGVM metadata. The
// digests were made as those of TestCoconutDigests.
func TestCoconutAmdSev(t *testing.T) {
	in := coconutFiles()
	in["OVMF.fd"] = testdata(t, "fixtures/firmware/sid-OVMF.amdsev.fd")
	r := coconutRecipe()
	r.Filesystem = ""
	b := must(r.Build(files(in)))
	for zero, want := range map[bool]string{false: "a31e997c080aac883bf2c25d0374af3252340bc01a22ef470be831c3fa3f2e677e85d778a9cc2fa277d6648a1cf921b7", true: "165b9e4784b7e3cf9c83c94c610e9c64684566153c214b477d62ae6ef4665926ab397b8d878adba743454d09fb886f9a"} {
		if got := launchDigest(t, b.File, SequenceOptions{Profile: ProfileFile, NativeZero: zero}); got.String() != want {
			t.Errorf("native zero %t: found %s, expected %s", zero, got, want)
		}
	}
}

// TestCoconutLayout looks at what COCONUT's boot loader and kernel are given.
func TestCoconutLayout(t *testing.T) {
	r := coconutRecipe()
	r.VMSA = vmsaGuestMemory
	b := must(r.Build(files(coconutFiles())))
	f := must(Parse(b.Image))
	if p := f.InferProfile(); p != ProfileKVMDirect {
		t.Errorf("inferred %s, expected kvm-direct", p)
	}
	c := f.contexts(f.Mask(PlatformSNP))[0]
	if c.GPA != 0x08fff000 {
		t.Errorf("found the VMSA at 0x%x, expected 0x8fff000", c.GPA)
	}
	last := f.Headers[len(f.Headers)-1]
	if last != Header(c) {
		t.Errorf("found a %s last, expected the VMSA", last.Type())
	}
	if findings := must(f.Lint(LintOptions{QEMU: QEMUVersion{11, 1, true}})); len(findings) != 0 {
		t.Errorf("lint finds %+v", findings)
	}
	names := make(map[string]bool)
	for _, p := range f.Inspect().Platforms {
		for _, r := range p.Regions {
			names[r.Name] = true
		}
	}
	for _, want := range []string{regionBootLoader, regionKernel, regionFilesystem, regionFirmware, "parameter area 0", "VMSA"} {
		if !names[want] {
			t.Errorf("inspect names no region %q: %v", want, slices.Collect(maps.Keys(names)))
		}
	}
	// The parameter block says that the VMSA lies in the kernel's region.
	at, _, err := f.findBootParams()
	if err != nil {
		t.Fatal(err)
	}
	block := f.Bytes(f.Headers[at].(*PageData).Data)
	if block[37] != 1 || le.Uint64(block[152:]) != 0x08000000 || le.Uint32(block[40:]) != uint32(top4G-256<<10) {
		t.Errorf("found the parameter block %x", block[:bootParamsSize])
	}
	r.DeviceTree = "off"
	if findings := must(must(r.Build(files(coconutFiles()))).File.Lint(LintOptions{})); !slices.Equal(codes(findings), nil) {
		t.Errorf("without device tree, for QEMU 11.1, lint finds %+v", findings)
	}
}

// TestWrap wraps an OVMF image alone.
func TestWrap(t *testing.T) {
	fw := firmware(256<<10, 4)
	in := files(map[string][]byte{"OVMF.fd": fw})
	r := &Recipe{Version: 1, Kind: KindWrap, Firmware: "OVMF.fd"}
	b := must(r.Build(in))
	f := must(Parse(b.Image))
	if f.Version != 2 || f.Mask(PlatformSNP) == 0 || f.Mask(PlatformNative) == 0 {
		t.Errorf("found version %d", f.Version)
	}
	if findings := must(f.Lint(LintOptions{})); len(findings) != 0 {
		t.Errorf("lint finds %+v", findings)
	}
	if e := must(f.Extract()); !bytes.Equal(e.Firmware, fw) {
		t.Error("another firmware comes out than went in")
	}
	// It is launched as QEMU launches the image by itself, but for the type of the
	// pages of zeros, and the CPU model in RDX.
	img := must(ovmf.Parse(fw))
	direct := must(img.Sequence(ovmf.LaunchOptions{VCPUs: 1}))
	pages := func(s *measure.Sequence) map[measure.Page]bool {
		out := make(map[measure.Page]bool)
		for _, p := range must(s.Pages()) {
			p.Source = ""
			out[p] = true
		}
		return out
	}
	if a, b := pages(direct), pages(must(f.Sequence(SequenceOptions{NativeZero: true}))); !maps.Equal(a, b) {
		t.Errorf("the launch of a wrapped image has %d pages, that of the image alone %d, and not the same", len(b), len(a))
	}
	for platform, mask := range map[string]PlatformType{"snp": PlatformSNP, "native": PlatformNative} {
		r.Platforms = []string{platform}
		f := must(r.Build(in)).File
		if f.Mask(mask) == 0 || f.Mask(PlatformSNP+PlatformNative-mask) != 0 || must(f.Extract()) == nil {
			t.Errorf("%s: found platforms %s", platform, f.platformNames())
		}
	}
	r.Platforms = nil
	policy, features := Hex(0xb0000), Hex(0x21)
	r.Policy, r.SEVFeatures, r.Expect = &policy, &features, &Expect{CPUModel: "EPYC-v4", VCPUs: []int{2, 4}}
	b = must(r.Build(in))
	if p, _ := b.File.Policy(PlatformSNP); p != 0xb0000 || *b.Manifest.Policy != 0xb0000 {
		t.Errorf("found policy 0x%x", p)
	}
	if len(b.Manifest.LaunchDigests) != 5 || b.Manifest.Check(b.Image) != nil {
		t.Errorf("found launch digests %+v", b.Manifest.LaunchDigests)
	}
}

// TestWrapParameters wraps an OVMF that has a place for IGVM parameters.
func TestWrapParameters(t *testing.T) {
	in := files(map[string][]byte{"OVMF.fd": testdata(t, "fixtures/firmware/sid-OVMF.amdsev.fd")})
	r := &Recipe{Version: 1, Kind: KindWrap, Firmware: "OVMF.fd"}
	f := must(Parse(must(r.Build(in)).Image))
	areas := f.Inspect().Areas
	if len(areas) != 1 || *areas[0].GPA != 0x812000 || len(areas[0].Parameters) != 2 || areas[0].Parameters[1].Offset != 0xc0 {
		t.Errorf("found areas %+v", areas)
	}
	if findings := must(f.Lint(LintOptions{})); len(findings) != 0 {
		t.Errorf("lint finds %+v", findings)
	}
	hob := false
	for _, h := range f.Headers {
		if p, ok := h.(*PageData); ok && p.GPA == 0x813000 && p.Mask&maskNative != 0 {
			hob = p.Flags == 0 && p.Data.Size == 0
		}
	}
	if !hob {
		t.Error("the page of HOBs is not measured zeros")
	}
	r.Parameters = "off"
	if areas := must(r.Build(in)).File.Inspect().Areas; areas != nil {
		t.Errorf("parameters off: found areas %+v", areas)
	}
}

// igvmFirmware is a firmware with IGVM metadata.
func igvmFirmware(sections ...uint32) []byte {
	i := ovmftest.AmdSev()
	const fromEnd = 0xc00
	i.Entries = append(slices.Clone(i.Entries), ovmftest.Entry{GUID: "784fa70e-3176-4677-8a20-04b68699e374", Data: ovmftest.U32(fromEnd)})
	data := ovmftest.Build(i)
	meta := append([]byte("IGVM"), ovmftest.U32(16+uint32(len(sections))*4, 1, uint32(len(sections)/3))...)
	copy(data[len(data)-fromEnd:], append(meta, ovmftest.U32(sections...)...))
	return data
}

// TestIGVMMetadata: metadata that leads out of memory, or into each other.
func TestIGVMMetadata(t *testing.T) {
	good := []uint32{0x812000, 0x1000, igvmParamArea, 0, 0xc0, igvmMemoryMap, 0xc0, 0x10, igvmVPCount, 0x813000, 0x1000, igvmHOBArea, 1, 2, 0x999}
	for name, c := range map[string]struct {
		sections []uint32
		words    string
	}{
		"good":              {good, ""},
		"map before area":   {[]uint32{0, 0xc0, igvmMemoryMap}, "found before a parameter area"},
		"map too long":      {[]uint32{0x812000, 0x1000, igvmParamArea, 0xfff, 2, igvmMemoryMap}, "found 0x2 bytes at offset 0xfff"},
		"map far away":      {[]uint32{0x812000, 0x1000, igvmParamArea, 0xffffffff, 0xffffffff, igvmVPCount}, "of a parameter area of 0x1000"},
		"two areas":         {[]uint32{0x812000, 0x1000, igvmParamArea, 0x814000, 0x1000, igvmParamArea}, "second parameter area"},
		"area of bytes":     {[]uint32{0x812000, 0x10, igvmParamArea}, "expected whole pages"},
		"area at the end":   {[]uint32{0xfffff000, 0x2000, igvmHOBArea}, "expected whole pages"},
		"secrets page":      {[]uint32{0x80d000, 0x1000, igvmParamArea}, "lies in the parameter area"},
		"area in firmware":  {[]uint32{0xffff8000, 0x1000, igvmParamArea}, "overlaps"},
		"HOBs in firmware":  {[]uint32{0xffff8000, 0x1000, igvmHOBArea}, "overlaps"},
		"too many sections": {make([]uint32, 3*65), "found 65 sections"},
	} {
		t.Run(name, func(t *testing.T) {
			r := &Recipe{Version: 1, Kind: KindWrap, Firmware: "OVMF.fd"}
			_, err := r.Build(files(map[string][]byte{"OVMF.fd": igvmFirmware(c.sections...)}))
			if c.words == "" && err != nil || c.words != "" && (err == nil || !strings.Contains(err.Error(), c.words)) {
				t.Errorf("found error %v, expected one with %q", err, c.words)
			}
		})
	}
	for name, change := range map[string]func([]byte){
		"signature": func(d []byte) { d[len(d)-0xc00] = 'J' },
		"count":     func(d []byte) { le.PutUint32(d[len(d)-0xc00+12:], 1000) },
	} {
		d := igvmFirmware(good...)
		change(d)
		r := &Recipe{Version: 1, Kind: KindWrap, Firmware: "OVMF.fd"}
		if _, err := r.Build(files(map[string][]byte{"OVMF.fd": d})); err == nil || !strings.Contains(err.Error(), "IGVM metadata") {
			t.Errorf("%s: found error %v, expected one about IGVM metadata", name, err)
		}
	}
}

// TestReplaceFirmware: an image with another firmware is the image that is built
// with it.
func TestReplaceFirmware(t *testing.T) {
	in := coconutFiles()
	in["small.fd"], in["large.fd"] = firmware(64<<10, 20), firmware(1<<20, 21)
	build := func(change func(*Recipe)) *Built {
		r := coconutRecipe()
		change(r)
		return must(r.Build(files(in)))
	}
	in["with.igvm"] = build(func(*Recipe) {}).Image
	in["without.igvm"] = build(func(r *Recipe) { r.Firmware = "" }).Image
	in["direct.igvm"] = build(func(r *Recipe) { r.VMSA = vmsaGuestMemory }).Image
	for _, image := range []string{"with.igvm", "without.igvm", "direct.igvm"} {
		for _, fw := range []string{"small.fd", "large.fd", "OVMF.fd"} {
			r := &Recipe{Version: 1, Kind: KindReplace, Image: image, Firmware: fw}
			b, err := r.Build(files(in))
			if err != nil {
				t.Fatal(err)
			}
			want := build(func(r *Recipe) {
				r.Firmware = fw
				if image == "direct.igvm" {
					r.VMSA = vmsaGuestMemory
				}
			})
			if got, want := launchDigest(t, b.File, SequenceOptions{}), launchDigest(t, want.File, SequenceOptions{}); got != want {
				t.Errorf("%s with %s: found launch digest %s, expected %s", image, fw, got, want)
			}
			if d := DiffSettings(b.File, want.File); len(d) > 0 {
				t.Errorf("%s with %s: found settings %v", image, fw, d)
			}
			if !bytes.Equal(must(b.File.Extract()).Firmware, in[fw]) {
				t.Errorf("%s with %s: another firmware comes out", image, fw)
			}
			if !bytes.Equal(b.Image, want.Image) {
				t.Errorf("%s with %s: the image is not the one that is built with it", image, fw)
			}
		}
	}
	key := must(measure.ParsePrivateKeyPEM([]byte(testIDKey)))
	signed := must(must(Parse(in["with.igvm"])).Sign(IDBlockOptions{}, measure.SignOptions{IDKey: key}))
	in["signed.igvm"] = must(signed.Encode())
	r := &Recipe{Version: 1, Kind: KindReplace, Image: "signed.igvm", Firmware: "small.fd"}
	if b := must(r.Build(files(in))); !b.Manifest.IDBlockRemoved || b.File.IDBlock() != nil {
		t.Error("the ID block of the old launch stayed")
	}
	in["wrapped.igvm"] = must((&Recipe{Version: 1, Kind: KindWrap, Firmware: "OVMF.fd"}).Build(files(in))).Image
	in["hyperv.igvm"] = bytes.Clone(in["with.igvm"])
	f := must(Parse(in["hyperv.igvm"]))
	at, _, err := f.findBootParams()
	if err != nil {
		t.Fatal(err)
	}
	f.Data[f.Headers[at].(*PageData).Data.Offset+bootParamsFirmware+16] = 1
	f = must(Parse(in["with.igvm"]))
	f.Headers[0].(*Platform).SharedGPABoundary = 1 << 46
	in["vtom.igvm"] = must(f.Encode())
	in["bad.igvm"] = in["with.igvm"][:1000]
	for image, words := range map[string]string{
		"wrapped.igvm": "found no parameter block", "hyperv.igvm": "for another hypervisor than QEMU",
		"vtom.igvm": "for another hypervisor than QEMU", "bad.igvm": "total file size", "none.igvm": "not exist",
	} {
		r := &Recipe{Version: 1, Kind: KindReplace, Image: image, Firmware: "small.fd"}
		if _, err := r.Build(files(in)); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("%s: found error %v, expected one with %q", image, err, words)
		}
	}
}

// relaid is an image with the parameter block of another release, and its kernel at
// another address.
func relaid(t *testing.T, image []byte, l *paramLayout, kernel uint64) []byte {
	t.Helper()
	f := must(Parse(bytes.Clone(image)))
	at, _, err := f.findBootParams()
	if err != nil {
		t.Fatal(err)
	}
	block := f.Bytes(f.Headers[at].(*PageData).Data)
	old := bytes.Clone(block)
	clear(block)
	copy(block, old[:16])
	copy(block[l.context-4:], old[24:32]) // the memory map before the context
	copy(block[l.port:], old[32:35])
	if l.context == 28 {
		copy(block[16:], old[16:24])
	}
	info := bytes.Clone(old[bootParamsFirmware:bootParamsKernel])
	if !l.vtom {
		info = append(info[:8], info[16:]...)
	}
	copy(block[l.firmware:], info)
	le.PutUint64(block[l.kernel:], kernel)
	copy(block[l.kernel+8:], old[bootParamsKernel+8:bootParamsSize])
	move := func(gpa *uint64) {
		if *gpa >= kernelRegion && *gpa < kernelRegion+kernelRegionLen {
			*gpa += kernel - kernelRegion
		}
	}
	for _, h := range f.Headers {
		switch h := h.(type) {
		case *PageData:
			move(&h.GPA)
		case *ParameterInsert:
			move(&h.GPA)
		case *RequiredMemory:
			move(&h.GPA)
		}
	}
	isPage := func(h Header) bool { return h.Type() == TypePageData }
	first := slices.IndexFunc(f.Headers, isPage)
	pages := f.Headers[first:]
	if n := slices.IndexFunc(pages, func(h Header) bool { return !isPage(h) }); n >= 0 {
		pages = pages[:n]
	}
	slices.SortStableFunc(pages, func(a, b Header) int { return cmp.Compare(a.(*PageData).GPA, b.(*PageData).GPA) })
	return must(f.Encode())
}

// TestReplaceFirmwareReleases: as TestReplaceFirmware, for the parameter blocks of
// COCONUT-SVSM's releases, and kernels below and above 4 GiB. It was held against
// the images that igvmbuilder of these releases makes: the same bytes.
func TestReplaceFirmwareReleases(t *testing.T) {
	in := coconutFiles()
	in["small.fd"] = firmware(64<<10, 20)
	build := func(fw string) []byte {
		r := coconutRecipe()
		r.Firmware = fw
		return must(r.Build(files(in))).Image
	}
	without, with, small := build(""), build("OVMF.fd"), build("small.fd")
	for i := range paramLayouts {
		l := &paramLayouts[i]
		for _, kernel := range []uint64{kernelRegion, 0x8000000000, 0x7ff80000000} {
			want := launchDigest(t, must(Parse(relaid(t, small, l, kernel))), SequenceOptions{})
			for name, image := range map[string][]byte{"without": without, "with another": with} {
				in["image.igvm"] = relaid(t, image, l, kernel)
				b, err := (&Recipe{Version: 1, Kind: KindReplace, Image: "image.igvm", Firmware: "small.fd"}).Build(files(in))
				if err != nil {
					t.Errorf("layout %d, kernel at 0x%x, %s firmware: %v", i, kernel, name, err)
				} else if got := launchDigest(t, b.File, SequenceOptions{}); got != want {
					t.Errorf("layout %d, kernel at 0x%x, %s firmware: found launch digest %s, expected %s", i, kernel, name, got, want)
				}
			}
		}
	}
	// The oldest may count the firmware's memory map in pages.
	in["small.fd"] = igvmFirmware(0x812000, pageSize, igvmParamArea, 0x100, 0x200, igvmMemoryMap)
	in["old.igvm"] = relaid(t, with, &paramLayouts[len(paramLayouts)-1], kernelRegion)
	r := &Recipe{Version: 1, Kind: KindReplace, Image: "old.igvm", Firmware: "small.fd"}
	if _, err := r.Build(files(in)); err == nil || !strings.Contains(err.Error(), "memory map") {
		t.Errorf("an old image and a firmware with a memory map: found error %v", err)
	}
	// Release 2026.04 gives the boot loader a copy of the block.
	in["small.fd"] = firmware(64<<10, 20)
	twice := func(image []byte) []byte {
		f := must(Parse(bytes.Clone(image)))
		at, _, err := f.findBootParams()
		if err != nil {
			t.Fatal(err)
		}
		p := *f.Headers[at].(*PageData)
		p.GPA = filesystemBase + 0x100000
		f.Headers = slices.Insert(f.Headers, at, Header(&p))
		return must(f.Encode())
	}
	in["twice.igvm"] = twice(with)
	r.Image = "twice.igvm"
	got := launchDigest(t, must(r.Build(files(in))).File, SequenceOptions{})
	if want := launchDigest(t, must(Parse(twice(small))), SequenceOptions{}); got != want {
		t.Errorf("with two copies of the block: found launch digest %s, expected %s", got, want)
	}
}

// TestBuildReproducible: the same inputs give the same bytes, and other inputs
// others.
func TestBuildReproducible(t *testing.T) {
	a, b := must(coconutRecipe().Build(files(coconutFiles()))), must(coconutRecipe().Build(files(coconutFiles())))
	if !bytes.Equal(a.Image, b.Image) || !bytes.Equal(must(a.Manifest.Encode()), must(b.Manifest.Encode())) {
		t.Error("two builds differ")
	}
	if c := must(must(Parse(a.Image)).Canonical()); !bytes.Equal(must(c.Encode()), a.Image) {
		t.Error("what is built is not in canonical form")
	}
	for name := range coconutFiles() {
		in := coconutFiles()
		in[name] = bytes.Clone(in[name])
		in[name][len(in[name])/3] ^= 1
		c, err := coconutRecipe().Build(files(in))
		if err == nil && c.Manifest.LaunchDigests[0].LaunchDigest == a.Manifest.LaunchDigests[0].LaunchDigest {
			t.Errorf("another %s gives the same launch digest", name)
		}
	}
}

// TestKernel: kernels that cannot be built into an image are refused.
func TestKernel(t *testing.T) {
	change := func(f func([]byte)) []byte {
		d := buildELF(elfImage{entry: 0x40, symbols: 3})
		f(d)
		return d
	}
	const prog, progSize = 64, 56 // first program header
	put := func(at int, v uint64) func([]byte) {
		return func(d []byte) { binary.LittleEndian.PutUint64(d[at:], v) }
	}
	sections := func(d []byte) int { return int(le.Uint64(d[40:])) }
	for name, c := range map[string]struct {
		data  []byte
		words string
	}{
		"empty":            {nil, "SVSM kernel"},
		"not ELF":          {filler(1000, 1), "SVSM kernel"},
		"32-bit":           {change(func(d []byte) { d[4] = 1 }), "SVSM kernel"},
		"Arm":              {change(func(d []byte) { d[18] = byte(elf.EM_AARCH64) }), "expected ELFCLASS64 for EM_X86_64"},
		"dynamic":          {change(func(d []byte) { d[prog] = byte(elf.PT_DYNAMIC) }), "must be relocated"},
		"interpreter":      {change(func(d []byte) { d[prog] = byte(elf.PT_INTERP) }), "must be relocated"},
		"no segments":      {change(func(d []byte) { le.PutUint16(d[56:], 0) }), "no loadable segment"},
		"unaligned":        {change(put(prog+16, 0xffffff8000000001)), "expected a multiple of 4096"},
		"base":             {buildELF(elfImage{base: 0xffffff8000001000, entry: 0x40}), "expected a multiple of 2 MiB"},
		"entry":            {buildELF(elfImage{entry: 0x20000}), "outside of its segments"},
		"beyond the file":  {change(put(prog+8, 1<<40)), "SVSM kernel"},
		"file over memory": {change(put(prog+40, 0x10)), "for 0x10 bytes of memory"},
		"huge memory":      {change(put(prog+3*progSize+40, 1<<50)), "0x4000000000000 bytes of memory"},
		"end of space":     {change(put(prog+3*progSize+16, 0xfffffffffffff000)), "bytes of memory at"},
		"far apart":        {change(put(prog+3*progSize+16, 0xffffffc000000000)), "do not fit in the 1 GiB"},
		"overlap":          {change(put(prog+progSize+16, 0xffffff8000000000)), "overlaps"},
		"alignment":        {change(put(prog+48, 0x3000)), "expected a power of two"},
		"self map":         {buildELF(elfImage{base: 493<<39 | 0xffff<<48, entry: 0x40}), "where the page tables are mapped"},
		"too large":        {change(put(prog+3*progSize+40, 16<<20)), "expected less than its region"},
		"no heap":          {change(put(prog+3*progSize+40, 0x0fe8000)), "takes more than"},
		"symbols":          {change(func(d []byte) { le.PutUint64(d[sections(d)+64+56:], 16) }), "expected entries of 24"},
		"symbols beyond":   {change(func(d []byte) { le.PutUint64(d[sections(d)+64+24:], 1<<40) }), "SVSM kernel"},
		"strings beyond":   {change(func(d []byte) { le.PutUint64(d[sections(d)+128+32:], 1<<40) }), "SVSM kernel"},
	} {
		t.Run(name, func(t *testing.T) {
			in := coconutFiles()
			in["svsm"] = c.data
			_, err := coconutRecipe().Build(files(in))
			if err == nil || !strings.Contains(err.Error(), c.words) {
				t.Errorf("found error %v, expected one with %q", err, c.words)
			}
		})
	}
}

// TestBuildRefuses: inputs that do not fit.
func TestBuildRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		input string
		data  []byte
		words string
	}{
		"no boot loader":    {"bldr", []byte{}, "boot loader: found 0 bytes"},
		"large boot loader": {"bldr", filler(8<<20, 1), "boot loader: found 8388608 bytes"},
		"large filesystem":  {"fs", make([]byte, 128<<20), "filesystem: found"},
		"no firmware image": {"OVMF.fd", make([]byte, 64<<10), "no table of GUIDs"},
		"no SNP firmware":   {"OVMF.fd", ovmftest.Build(ovmftest.Image{Entries: []ovmftest.Entry{{GUID: ovmftest.ResetBlock, Data: ovmftest.U32(0x1000)}}}), "no SEV metadata"},
	} {
		t.Run(name, func(t *testing.T) {
			in := coconutFiles()
			in[c.input] = c.data
			if _, err := coconutRecipe().Build(files(in)); err == nil || !strings.Contains(err.Error(), c.words) {
				t.Errorf("found error %v, expected one with %q", err, c.words)
			}
		})
	}
	many := ovmftest.AmdSev()
	var sections []ovmf.Section
	for i := range uint32(9) {
		sections = append(sections, ovmf.Section{GPA: 0x900000 + i*0x2000, Size: 0x1000, Type: ovmf.SectionSecMem})
	}
	many.Metadata = ovmftest.Metadata(sections...)
	in := coconutFiles()
	in["OVMF.fd"] = ovmftest.Build(many)
	if _, err := coconutRecipe().Build(files(in)); err == nil || !strings.Contains(err.Error(), "more than 8 ranges") {
		t.Errorf("found error %v, expected one about too many ranges", err)
	}
	huge := ovmftest.AmdSev()
	huge.Metadata = ovmftest.Metadata(ovmf.Section{GPA: 0x1000000, Size: 0xe0000000, Type: ovmf.SectionSecMem})
	in["OVMF.fd"] = ovmftest.Build(huge)
	if _, err := (&Recipe{Version: 1, Kind: KindWrap, Firmware: "OVMF.fd"}).Build(files(in)); err == nil || !strings.Contains(err.Error(), "pages of guest memory") {
		t.Errorf("found error %v, expected one about too many pages", err)
	}
	if _, err := coconutRecipe().Build(func(name string) ([]byte, error) { return nil, errors.New(name + " is gone") }); err == nil || strings.Count(err.Error(), "is gone") != 4 {
		t.Errorf("found error %v, expected one for each input", err)
	}
	if _, err := (&Recipe{}).Build(nil); err == nil {
		t.Error("an empty recipe is built")
	}
}
