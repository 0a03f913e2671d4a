package ovmf_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/evtpm/evtpm/measure"
	"github.com/evtpm/evtpm/ovmf"
	"github.com/evtpm/evtpm/ovmf/ovmftest"
)

func TestParse(t *testing.T) {
	img, err := ovmf.Parse(ovmftest.Build(ovmftest.AmdSev()))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(ovmftest.AmdSevSections(), img.Sections); d != "" {
		t.Error(d)
	}
	if img.ResetEIP == nil || *img.ResetEIP != 0x80b004 {
		t.Errorf("found reset address %v, expected 0x80b004", img.ResetEIP)
	}
	if img.HashArea == nil || *img.HashArea != (ovmf.Area{GPA: 0x810c00, Size: 0x400}) {
		t.Errorf("found hash area %+v", img.HashArea)
	}
	if img.Secret == nil || *img.Secret != (ovmf.Area{GPA: 0x811000, Size: 0x1000}) {
		t.Errorf("found secret area %+v", img.Secret)
	}
	if img.GPA() != 0xffff0000 || img.MetadataOffset != 0x10000-ovmftest.MetadataFromEnd {
		t.Errorf("found GPA 0x%x and metadata at 0x%x", img.GPA(), img.MetadataOffset)
	}
	var names []string
	for _, e := range img.Table {
		names = append(names, e.Name)
	}
	if d := cmp.Diff([]string{"SEV hash table area", "SEV secret block", "SEV metadata offset", "SEV-ES reset block"}, names); d != "" {
		t.Error(d)
	}
}

// with returns an AmdSev image with one change.
func with(change func(*ovmftest.Image)) []byte {
	i := ovmftest.AmdSev()
	change(&i)
	return ovmftest.Build(i)
}

// withSections returns an AmdSev image with other sections.
func withSections(change func([]ovmf.Section) []ovmf.Section) []byte {
	return with(func(i *ovmftest.Image) { i.Metadata = ovmftest.Metadata(change(ovmftest.AmdSevSections())...) })
}

// TestRefused has one image a fault. parse says that Parse itself refuses;
// otherwise the image is good for SEV and refused for SNP.
func TestRefused(t *testing.T) {
	section := func(i int, change func(*ovmf.Section)) []byte {
		return withSections(func(s []ovmf.Section) []ovmf.Section {
			change(&s[i])
			return s
		})
	}
	header := func(at int, value uint32) []byte {
		return with(func(i *ovmftest.Image) { binary.LittleEndian.PutUint32(i.Metadata[at:], value) })
	}
	fromEnd := func(n uint32) []byte {
		return with(func(i *ovmftest.Image) { i.Entries[2].Data = ovmftest.U32(n) })
	}
	for _, c := range []struct {
		name  string
		data  []byte
		parse bool
		want  string
	}{
		{"I-01 empty", nil, true, "empty"},
		{"I-01 1 byte", []byte{1}, true, "multiple of 4096"},
		{"I-01 31 bytes", make([]byte, 31), true, "multiple of 4096"},
		{"I-01 49 bytes", make([]byte, 49), true, "multiple of 4096"},
		{"I-01 no whole pages", append(ovmftest.Build(ovmftest.AmdSev()), 0), true, "multiple of 4096"},
		{"I-01 too large", make([]byte, ovmf.MaxSize+4096), true, "at most"},
		{"I-02 no footer", bytes.Repeat([]byte{0xff}, 65536), true, "no table of GUIDs"},
		{"I-03 table length 1", with(func(i *ovmftest.Image) { i.TableLength = 1 }), true, "found length 1,"},
		{"I-03 table length 17", with(func(i *ovmftest.Image) { i.TableLength = 17 }), true, "found length 17,"},
		{"I-03 table longer than the file", with(func(i *ovmftest.Image) { i.Size = 4096; i.TableLength = 0xffff; i.Metadata = nil }), true, "found length 65535,"},
		{"I-04 entry length 1", with(func(i *ovmftest.Image) { i.Entries[1].Length = 1 }), true, "found length 1,"},
		{"I-04 entry length 17", with(func(i *ovmftest.Image) { i.Entries[1].Length = 17 }), true, "found length 17,"},
		{"I-04 entry too long", with(func(i *ovmftest.Image) { i.Entries[0].Length = 1000 }), true, "found length 1000,"},
		{"I-04 entry straddles the start", with(func(i *ovmftest.Image) { i.TableLength = 18 + 22 + 7 }), true, "before the first entry"},
		{"I-04 entry twice", with(func(i *ovmftest.Image) { i.Entries = append(i.Entries, i.Entries[0]) }), true, "found twice"},
		{"reset block of 3 bytes", with(func(i *ovmftest.Image) { i.Entries[3].Data = make([]byte, 3) }), true, "SEV-ES reset block: found 3 bytes, expected 4"},
		{"hash area of 4 bytes", with(func(i *ovmftest.Image) { i.Entries[0].Data = make([]byte, 4) }), true, "found 4 bytes, expected 8"},
		{"I-05 metadata offset 0", fromEnd(0), true, "found offset 0 "},
		{"I-05 metadata offset 15", fromEnd(15), true, "found offset 15 "},
		{"I-05 metadata before the file", fromEnd(65537), true, "found offset 65537 "},
		{"I-05 metadata offset 2^32-1", fromEnd(0xffffffff), true, "found offset 4294967295 "},
		{"I-06 signature", header(0, 0x56455340), true, "Failed to locate SEV metadata header"},
		{"I-06 length 15", header(4, 15), true, "found length 15 "},
		{"I-06 length without one section", header(4, 16+12*6), true, "found length 88 "},
		{"I-06 version 2", header(8, 2), true, "found version 2"},
		{"I-06 2^32-1 sections", header(12, 0xffffffff), true, "4294967295 sections"},
		{"I-06 65 sections", header(12, 65), true, "65 sections"},
		{"I-06 sections run over the end", with(func(i *ovmftest.Image) {
			i.Entries[2].Data = ovmftest.U32(32)
			i.Size = 65536
		}), true, "signature"},
		{"I-07 type 5", section(0, func(s *ovmf.Section) { s.Type = 5 }), false, "type that is not known"},
		{"I-07 type 0xff", section(0, func(s *ovmf.Section) { s.Type = 0xff }), false, "type that is not known"},
		{"I-08 overlap by a page", section(0, func(s *ovmf.Section) { s.Size = 0xb000 }), false, "section 1 (SNP_SEC_MEM 0x80a000+0x3000): overlaps section 0"},
		{"I-08 same page twice", section(4, func(s *ovmf.Section) { s.GPA = 0x80e000 }), false, "overlaps section 3"},
		{"I-08 overlaps the firmware", section(5, func(s *ovmf.Section) { s.GPA = 0xfffff000 - 0x1e000 }), false, "overlaps the firmware itself at 0xffff0000"},
		{"I-08 past 4 GiB", section(5, func(s *ovmf.Section) { s.GPA = 0xfffff000 }), false, "Failed to get HVA"},
		{"I-08 unaligned address", section(4, func(s *ovmf.Section) { s.GPA += 16 }), false, "whole number of pages"},
		{"I-08 unaligned size", section(5, func(s *ovmf.Section) { s.Size -= 16 }), false, "whole number of pages"},
		{"I-08 size 0", section(5, func(s *ovmf.Section) { s.Size = 0; s.GPA = 0 }), false, "SNP_LAUNCH_UPDATE called with invalid address/length"},
		{"I-08 size 2^32-4096", section(5, func(s *ovmf.Section) { s.Size = 0xfffff000 }), false, "past 4 GiB"},
		{"I-09 two secrets", section(4, func(s *ovmf.Section) { s.Type = ovmf.SectionSecrets }), false, "second one, the first is section 2"},
		{"I-09 two CPUID", section(4, func(s *ovmf.Section) { s.Type = ovmf.SectionCPUID }), false, "second one, the first is section 3"},
		{"I-09 two SVSM_CAA", section(6, func(s *ovmf.Section) { s.Type = ovmf.SectionSVSMCAA }), false, "second one, the first is section 4"},
		{"I-09 two kernel hashes", section(4, func(s *ovmf.Section) { s.Type = ovmf.SectionKernelHashes }), false, "second one, the first is section 4"},
		{"secrets of two pages", withSections(func(s []ovmf.Section) []ovmf.Section {
			return append(s, ovmf.Section{GPA: 0x900000, Size: 0x2000, Type: ovmf.SectionSecrets})[3:]
		}), false, "expected one page"},
		{"no reset block", with(func(i *ovmftest.Image) { i.Entries = i.Entries[:3] }), false, "failed to locate and/or save reset vector"},
		{"reset address 0", with(func(i *ovmftest.Image) { i.Entries[3].Data = ovmftest.U32(0) }), false, "QEMU: SEV-ES reset address is zero"},
		{"no metadata", with(func(i *ovmftest.Image) { i.Entries = append(i.Entries[:2:2], i.Entries[3]) }), false, "Failed to locate SEV metadata header"},
	} {
		t.Run(c.name, func(t *testing.T) {
			img, err := ovmf.Parse(c.data)
			if _, scanErr := ovmf.Scan(bytes.NewReader(c.data), int64(len(c.data))); fmt.Sprint(scanErr) != fmt.Sprint(err) {
				t.Errorf("Scan: found error %v, Parse: %v", scanErr, err)
			}
			if c.parse {
				if err == nil || !strings.Contains(err.Error(), c.want) {
					t.Errorf("found error %v, expected one with %q", err, c.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			_, err = img.Sequence(ovmf.LaunchOptions{VCPUs: 1})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("found error %v, expected one with %q", err, c.want)
			}
			if _, err := img.Sequence(ovmf.LaunchOptions{Mode: measure.ModeSEV}); err != nil {
				t.Errorf("SEV: found error %v", err)
			}
			if _, _, err := img.HashesPage(&measure.KernelHashes{}); err == nil {
				t.Error("HashesPage: found no error")
			}
			if _, err := img.Precomputed(); err == nil {
				t.Error("Precomputed: found no error")
			}
		})
	}
}

// TestI10I11KernelHashes: a kernel that would not be measured is never measured
// silently.
func TestI10I11KernelHashes(t *testing.T) {
	area := func(gpa, size uint32) []byte {
		return with(func(i *ovmftest.Image) { i.Entries[0].Data = ovmftest.U32(gpa, size) })
	}
	for _, c := range []struct {
		name string
		data []byte
		sev  bool // refused for SEV and SEV-ES too
		want string
	}{
		{"I-10 no hash area", with(func(i *ovmftest.Image) { i.Entries = i.Entries[1:] }), true, "no hashes table GUID"},
		{"I-10 no section", withSections(func(s []ovmf.Section) []ovmf.Section { return s[:6] }), false, "no SNP_KERNEL_HASHES section"},
		{"I-11 area 0", area(0, 0), true, "guest firmware hashes table area is invalid (base=0x0 size=0x0)"},
		{"I-11 area of 175 bytes", area(0x810c00, 175), true, "(base=0x810c00 size=0xaf)"},
		{"I-11 area before the section", area(0x80fff0, 0x400), false, "does not lie in"},
		{"I-11 area over the section's end", area(0x810f51, 0x400), false, "does not lie in"},
		{"I-11 area in the section's second page", with(func(i *ovmftest.Image) {
			i.Entries[0].Data = ovmftest.U32(0x8aac00, 0x400)
			s := ovmftest.AmdSevSections()
			s[6] = ovmf.Section{GPA: 0x8a9000, Size: 0x2000, Type: ovmf.SectionKernelHashes}
			i.Metadata = ovmftest.Metadata(s...)
		}), false, "does not lie in the first page"},
	} {
		t.Run(c.name, func(t *testing.T) {
			img, err := ovmf.Parse(c.data)
			if err != nil {
				t.Fatal(err)
			}
			o := ovmf.LaunchOptions{VCPUs: 1, Hashes: &measure.KernelHashes{}}
			if _, err := img.Sequence(o); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("found error %v, expected one with %q", err, c.want)
			}
			if _, _, err := img.HashesPage(o.Hashes); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("HashesPage: found error %v, expected one with %q", err, c.want)
			}
			o.Mode = measure.ModeSEVES
			if _, err := img.Sequence(o); (err != nil) != c.sev {
				t.Errorf("SEV-ES: found error %v", err)
			}
			o = ovmf.LaunchOptions{VCPUs: 1}
			if _, err := img.Sequence(o); err != nil {
				t.Errorf("without kernel: found error %v", err)
			}
		})
	}
	// At the very end of the page the table just fits.
	img, err := ovmf.Parse(area(0x810f50, 176))
	if err != nil {
		t.Fatal(err)
	}
	h := &measure.KernelHashes{Kernel: [32]byte{1}}
	gpa, page, err := img.HashesPage(h)
	if err != nil || gpa != 0x810000 || !bytes.Equal(page[0xf50:], h.Table()) || len(bytes.Trim(page[:0xf50], "\x00")) != 0 {
		t.Errorf("found page %x at 0x%x, error %v", page, gpa, err)
	}
}

// TestI23VCPUs: counts out of range are refused.
func TestI23VCPUs(t *testing.T) {
	img, err := ovmf.Parse(ovmftest.Build(ovmftest.AmdSev()))
	if err != nil {
		t.Fatal(err)
	}
	svsm := svsmImage(t)
	for n, good := range map[int]bool{-1: false, 0: false, 1: true, 511: true, 512: true, 513: false, 1 << 31: false} {
		for _, mode := range []measure.Mode{measure.ModeSNP, measure.ModeSEVES} {
			if _, err := img.Sequence(ovmf.LaunchOptions{Mode: mode, VCPUs: n}); (err == nil) != good {
				t.Errorf("%s: %d vCPUs: found error %v", mode, n, err)
			}
		}
		if _, err := img.SVSMSequence(svsm, ovmf.SVSMOptions{VarsSize: 4096, VCPUs: n}); (err == nil) != good {
			t.Errorf("svsm.bin: %d vCPUs: found error %v", n, err)
		}
	}
}

func TestSequenceOptions(t *testing.T) {
	img, err := ovmf.Parse(ovmftest.Build(ovmftest.AmdSev()))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := img.Sequence(ovmf.LaunchOptions{Mode: "tdx", VCPUs: 1}); err == nil {
		t.Error("mode tdx: found no error")
	}
	if _, err := img.Sequence(ovmf.LaunchOptions{VMM: "krun", VCPUs: 1}); err == nil || !strings.Contains(err.Error(), "not verified") {
		t.Errorf("krun: found error %v, expected not verified", err)
	}
	types := func(o ovmf.LaunchOptions) string {
		o.VCPUs = 1
		s, err := img.Sequence(o)
		if err != nil {
			t.Fatal(err)
		}
		var out []string
		for _, st := range s.Steps {
			out = append(out, st.Type.String())
		}
		return strings.Join(out, " ")
	}
	for _, c := range []struct {
		o    ovmf.LaunchOptions
		want string
	}{
		{ovmf.LaunchOptions{}, "normal zero zero secrets cpuid zero zero zero"},
		{ovmf.LaunchOptions{Hashes: &measure.KernelHashes{}}, "normal zero zero secrets cpuid zero zero normal"},
		{ovmf.LaunchOptions{VMM: measure.VMMEC2}, "normal zero zero secrets zero zero zero cpuid"},
		{ovmf.LaunchOptions{VMM: measure.VMMGCE}, "normal unmeasured unmeasured secrets cpuid zero unmeasured zero"},
		{ovmf.LaunchOptions{Mode: measure.ModeSEV}, "normal"},
		{ovmf.LaunchOptions{Mode: measure.ModeSEVES, Hashes: &measure.KernelHashes{}}, "normal normal"},
	} {
		if got := types(c.o); got != c.want {
			t.Errorf("%+v: found steps %q, expected %q", c.o, got, c.want)
		}
	}
	s, err := img.Sequence(ovmf.LaunchOptions{VCPUs: 3, VMSAGPA: 0xffffffffff000})
	if err != nil || len(s.VMSAs) != 3 || s.VMSAs[2].GPA != 0xffffffffff000 {
		t.Errorf("found %+v and error %v", s, err)
	}
}

// TestScan: an image that is not held gives the digest of one that is, whatever
// its size.
func TestScan(t *testing.T) {
	for _, pages := range []int{1, 16, 31, 32, 33, 64, 97} {
		i := ovmftest.AmdSev()
		i.Size = pages * 4096
		data := ovmftest.Build(i)
		for at := 0; at < len(data)-0x1000; at += 5000 {
			data[at] = byte(at >> 8)
		}
		whole, err := ovmf.Parse(data)
		if err != nil {
			t.Fatal(err)
		}
		want, err := whole.Hash()
		if err != nil {
			t.Fatal(err)
		}
		img, err := ovmf.Scan(bytes.NewReader(data), int64(len(data)))
		if err != nil {
			t.Fatal(err)
		}
		if img.Data != nil || img.Prefix != want {
			t.Errorf("%d pages: found %s, expected %s", pages, img.Prefix, want)
		}
		whole.Data, img.Prefix = nil, measure.Digest{}
		if d := cmp.Diff(whole, img); d != "" {
			t.Errorf("%d pages:\n%s", pages, d)
		}
		if got, err := ovmf.HashPages(bytes.NewReader(data), int64(len(data))); err != nil || got != want {
			t.Errorf("%d pages: found %s and error %v, expected %s", pages, got, err, want)
		}
	}
	data := ovmftest.Build(ovmftest.AmdSev())
	short := struct{ io.ReaderAt }{io.NewSectionReader(bytes.NewReader(data), 0, 8192)}
	if _, err := ovmf.HashPages(short, int64(len(data))); err == nil || !strings.Contains(err.Error(), "became shorter") {
		t.Errorf("found error %v, expected that the file became shorter", err)
	}
	for _, size := range []int64{-4096, 0, 4095, ovmf.MaxSize + 4096} {
		if _, err := ovmf.HashPages(bytes.NewReader(data), size); err == nil {
			t.Errorf("size %d: found no error", size)
		}
	}
}

// TestLongTable: a table that is longer than a page is read whole.
func TestLongTable(t *testing.T) {
	i := ovmftest.AmdSev()
	i.Metadata = nil
	i.Entries = []ovmftest.Entry{i.Entries[3], {GUID: "00112233-4455-6677-8899-aabbccddeeff", Data: bytes.Repeat([]byte{7}, 9000)}}
	data := ovmftest.Build(i)
	for name, parse := range map[string]func() (*ovmf.Image, error){
		"Parse": func() (*ovmf.Image, error) { return ovmf.Parse(data) },
		"Scan":  func() (*ovmf.Image, error) { return ovmf.Scan(bytes.NewReader(data), int64(len(data))) },
	} {
		img, err := parse()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if len(img.Table) != 2 || img.ResetEIP == nil || !bytes.Equal(img.Table[1].Data, i.Entries[1].Data) {
			t.Errorf("%s: found %d entries, reset vector %v", name, len(img.Table), img.ResetEIP)
		}
	}
}

// TestLoneResetBlock: images older than the table have the SEV-ES reset block
// alone, 32 bytes before the end, and QEMU starts SEV-ES with it.
func TestLoneResetBlock(t *testing.T) {
	build := func(eip uint32, length uint16) []byte {
		data := bytes.Repeat([]byte{0x90}, 65536)
		block := binary.LittleEndian.AppendUint16(ovmftest.U32(eip), length)
		guid, err := measure.ParseGUID(ovmftest.ResetBlock)
		if err != nil {
			t.Fatal(err)
		}
		block = append(block, guid[:]...)
		copy(data[len(data)-32-len(block):], block)
		return data
	}
	parse := func(data []byte) (*ovmf.Image, error) {
		img, err := ovmf.Parse(data)
		scanned, scanErr := ovmf.Scan(bytes.NewReader(data), int64(len(data)))
		if fmt.Sprint(err) != fmt.Sprint(scanErr) {
			t.Errorf("Parse: %v, Scan: %v", err, scanErr)
		}
		if err == nil && *img.ResetEIP != *scanned.ResetEIP {
			t.Errorf("Parse: %#x, Scan: %#x", *img.ResetEIP, *scanned.ResetEIP)
		}
		return img, err
	}
	data := build(0x80b000, 22)
	img, err := parse(data)
	if err != nil {
		t.Fatal(err)
	}
	if img.ResetEIP == nil || *img.ResetEIP != 0x80b000 || len(img.Table) != 0 {
		t.Errorf("found reset address %v and %d entries", img.ResetEIP, len(img.Table))
	}
	// The same launch from an image with a table differs in nothing but the image:
	// the save areas follow from the address alone.
	seq, err := img.Sequence(ovmf.LaunchOptions{Mode: measure.ModeSEVES, VCPUs: 3, CPUSignature: 0xa00f11})
	if err != nil {
		t.Fatal(err)
	}
	tabled := ovmftest.AmdSev()
	tabled.Entries[3].Data = ovmftest.U32(0x80b000)
	other, err := ovmf.Parse(ovmftest.Build(tabled))
	if err != nil {
		t.Fatal(err)
	}
	want, err := other.Sequence(ovmf.LaunchOptions{Mode: measure.ModeSEVES, VCPUs: 3, CPUSignature: 0xa00f11})
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want.VMSAs, seq.VMSAs); d != "" {
		t.Errorf("save areas: found +, expected -:\n%s", d)
	}
	if err := img.CheckSNP(); err == nil || !strings.Contains(err.Error(), "no SEV metadata") {
		t.Errorf("SNP: found error %v", err)
	}
	if _, err := img.Sequence(ovmf.LaunchOptions{Mode: measure.ModeSEV, Hashes: &measure.KernelHashes{}}); err == nil || !strings.Contains(err.Error(), "no hashes table GUID") {
		t.Errorf("SEV with a kernel: found error %v", err)
	}
	for _, c := range []struct {
		name string
		data []byte
		want string
	}{
		{"length 21", build(0x80b000, 21), "SEV-ES reset block: found length 21, expected 22"},
		{"length 0", build(0x80b000, 0), "found length 0"},
		{"length 65535", build(0x80b000, 65535), "found length 65535"},
	} {
		if _, err := parse(c.data); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: found error %v, expected one with %q", c.name, err, c.want)
		}
	}
	// edk2's 4 MiB builds of that time.
	img, err = parse(build(0, 22))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := img.Sequence(ovmf.LaunchOptions{Mode: measure.ModeSEVES, VCPUs: 1}); err == nil || !strings.Contains(err.Error(), "SEV-ES reset address is zero") {
		t.Errorf("address 0: found error %v", err)
	}
}

// TestPrecomputed: the JSON form gives the digest that the image gives.
func TestPrecomputed(t *testing.T) {
	img, err := ovmf.Parse(ovmftest.Build(ovmftest.AmdSev()))
	if err != nil {
		t.Fatal(err)
	}
	p, err := img.Precomputed()
	if err != nil {
		t.Fatal(err)
	}
	doc, err := p.Encode()
	if err != nil {
		t.Fatal(err)
	}
	light, err := ovmf.ParsePrecomputed(doc)
	if err != nil {
		t.Fatal(err)
	}
	o := ovmf.LaunchOptions{VCPUs: 2, CPUSignature: 0x800f12, Hashes: &measure.KernelHashes{}}
	digest := func(img *ovmf.Image) measure.Digest {
		s, err := img.Sequence(o)
		if err != nil {
			t.Fatal(err)
		}
		d, err := s.LaunchDigest()
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	if got, want := digest(light), digest(img); got != want {
		t.Errorf("found %s, expected %s", got, want)
	}
	if _, err := light.Sequence(ovmf.LaunchOptions{Mode: measure.ModeSEVES, VCPUs: 1}); err == nil {
		t.Error("SEV-ES from a hash: found no error")
	}
	for name, c := range map[string]struct{ old, new, want string }{
		"schema":        {"ovmf-hash/v1", "ovmf-hash/v2", "schema"},
		"zero hash":     {p.OVMFHash.String(), strings.Repeat("0", 96), "zeros"},
		"size":          {`"size": 65536`, `"size": 65535`, "multiple"},
		"no size":       {`"size": 65536`, `"size": 0`, "multiple"},
		"unknown field": {`"reset_eip"`, `"reset"`, "not known"},
		"wrong name":    {`"SNP_SECRETS"`, `"SNP_CPUID"`, `expected "SNP_SECRETS"`},
		"overlap":       {`"gpa": 8454144`, `"gpa": 8388608`, "overlaps"},
		"too large":     {"{", strings.Repeat(" ", 65<<10) + "{", "at most"},
	} {
		bad := strings.Replace(string(doc), c.old, c.new, 1)
		if bad == string(doc) {
			t.Fatalf("%s: nothing replaced in %s", name, doc)
		}
		if _, err := ovmf.ParsePrecomputed([]byte(bad)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: found error %v, expected one with %q", name, err, c.want)
		}
	}
}

func svsmImage(t testing.TB) *ovmf.Image {
	img, err := ovmf.Parse(ovmftest.Build(svsmBin()))
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func svsmBin() ovmftest.Image {
	return ovmftest.Image{
		Entries: []ovmftest.Entry{
			{GUID: ovmftest.SEVMetadata, Data: ovmftest.U32(ovmftest.MetadataFromEnd)},
			{GUID: ovmftest.SVSMInfo, Data: ovmftest.U32(0x1000)},
		},
		Metadata: ovmftest.Metadata(
			ovmf.Section{GPA: 0, Size: 0x9e000, Type: ovmf.SectionSecMem},
			ovmf.Section{GPA: 0x9e000, Size: 0x1000, Type: ovmf.SectionSecrets},
			ovmf.Section{GPA: 0x9f000, Size: 0x1000, Type: ovmf.SectionCPUID},
		),
	}
}

// TestSVSMBinFixture compares with launch digests that were obtained from
// hardware (2 and 4 vCPUs) and by sev-snp-measure (1 vCPU).
func TestSVSMBinFixture(t *testing.T) {
	dir := testdata(t)
	img, err := ovmf.Parse(readFile(t, dir, "fixtures", "svsm", "svsm_ovmf.fd"))
	if err != nil {
		t.Fatal(err)
	}
	svsm, err := ovmf.Parse(readFile(t, dir, "fixtures", "svsm", "svsm.bin"))
	if err != nil {
		t.Fatal(err)
	}
	for n, want := range map[int]string{
		1: "35782e6d1b45207504c6d4b267423a2291af6112f53b26eb76fb292619b41b3c9e4312608cfae25ba9d6dbeb7a5b78ae",
		2: "9b94745036aafddf4f7f8b00c7513abb5b7703178cb95aaa57928bd963d68d3bfcb715d6019b9167ee2517b11b0d9be7",
		4: "27d154c27b7b359c935e250ec6fee72aa0ae8c1225e3b0e1cf46a9567e938066d7d6f94bbdc4a857818bdb79277a44b2",
	} {
		s, err := img.SVSMSequence(svsm, ovmf.SVSMOptions{VarsSize: 540672, VCPUs: n, CPUSignature: 0x800f12})
		if err != nil {
			t.Fatal(err)
		}
		if got, err := s.LaunchDigest(); err != nil || got.String() != want {
			t.Errorf("%d vCPUs: found %s and error %v, expected %s", n, got, err, want)
		}
	}
}

// TestI14SVSMBin has one fault each.
func TestI14SVSMBin(t *testing.T) {
	img, err := ovmf.Parse(ovmftest.Build(ovmftest.AmdSev()))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		change func(*ovmftest.Image)
		vars   int64
		want   string
	}{
		{"no info", func(i *ovmftest.Image) { i.Entries = i.Entries[:1] }, 4096, "no SVSM info"},
		{"info of 8 bytes", func(i *ovmftest.Image) { i.Entries[1].Data = make([]byte, 8) }, 4096, "found 8 bytes"},
		{"entry at the end", func(i *ovmftest.Image) { i.Entries[1].Data = ovmftest.U32(0x10000) }, 4096, "launch offset 0x10000"},
		{"entry unaligned", func(i *ovmftest.Image) { i.Entries[1].Data = ovmftest.U32(0x1001) }, 4096, "launch offset 0x1001"},
		{"no metadata", func(i *ovmftest.Image) { i.Entries = i.Entries[1:] }, 4096, "no SEV metadata"},
		{"overlap", func(i *ovmftest.Image) { binary.LittleEndian.PutUint32(i.Metadata[16+12:], 0x9d000) }, 4096, "overlaps"},
		{"overlap with the SVSM", func(i *ovmftest.Image) { binary.LittleEndian.PutUint32(i.Metadata[16:], 0xfffdf000-0x9d000) }, 4096, "overlaps"},
		{"no variable store", func(*ovmftest.Image) {}, 0, "variable store"},
		{"odd variable store", func(*ovmftest.Image) {}, 4097, "variable store"},
		{"huge variable store", func(*ovmftest.Image) {}, 1 << 40, "variable store"},
		{"negative variable store", func(*ovmftest.Image) {}, -4096, "variable store"},
	} {
		i := svsmBin()
		c.change(&i)
		svsm, err := ovmf.Parse(ovmftest.Build(i))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := img.SVSMSequence(svsm, ovmf.SVSMOptions{VarsSize: c.vars, VCPUs: 1}); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: found error %v, expected one with %q", c.name, err, c.want)
		}
	}
}

// checkAccepted fails the test when an image that was accepted has pages that
// would be given twice, or types that nobody knows.
func checkAccepted(t testing.TB, img *ovmf.Image, s *measure.Sequence) {
	t.Helper()
	type span struct{ from, to uint64 }
	var spans []span
	for _, st := range s.Steps {
		n := span{st.GPA, st.GPA + st.Size}
		if n.to <= n.from || n.to > 1<<32 {
			t.Fatalf("accepted pages 0x%x to 0x%x", n.from, n.to)
		}
		for _, o := range spans {
			if n.from < o.to && o.from < n.to {
				t.Fatalf("accepted overlapping pages at 0x%x and 0x%x", n.from, o.from)
			}
		}
		spans = append(spans, n)
	}
	for _, sec := range img.Sections {
		if strings.HasPrefix(sec.Type.String(), "type ") {
			t.Fatalf("accepted section type %d", sec.Type)
		}
	}
}

// TestMutatedTails changes a few bytes of the table, the metadata or their
// surroundings 30,000 times: nothing may panic, and nothing that is accepted may
// describe an impossible launch.
func TestMutatedTails(t *testing.T) {
	good := ovmftest.Build(ovmftest.AmdSev())
	tableBytes, metadataBytes := 18*5+8+8+4+4+32, 16+12*7
	rng := rand.New(rand.NewPCG(1, 2))
	hashes := &measure.KernelHashes{}
	accepted := 0
	data := make([]byte, len(good))
	interesting := []byte{0, 1, 0x10, 0x11, 0x12, 0x7f, 0x80, 0xf0, 0xff}
	for range 30000 {
		copy(data, good)
		for range 1 + rng.IntN(4) {
			at := len(data) - 1 - rng.IntN(tableBytes)
			if rng.IntN(2) == 0 {
				at = len(data) - ovmftest.MetadataFromEnd + rng.IntN(metadataBytes)
			}
			switch rng.IntN(3) {
			case 0:
				data[at] ^= 1 << rng.IntN(8)
			case 1:
				data[at] = byte(rng.Uint32())
			case 2:
				data[at] = interesting[rng.IntN(len(interesting))]
			}
		}
		img, err := ovmf.Parse(data)
		if err != nil {
			continue
		}
		s, err := img.Sequence(ovmf.LaunchOptions{VCPUs: 1, Hashes: hashes})
		if err != nil {
			continue
		}
		accepted++
		checkAccepted(t, img, s)
	}
	if accepted == 0 {
		t.Error("no mutated image was accepted: the run tests nothing beyond the first check")
	}
	t.Logf("accepted %d of 30000", accepted)
}

// FuzzParse takes the tail of an image: table and metadata.
func FuzzParse(f *testing.F) {
	tail := func(i ovmftest.Image) []byte {
		data := ovmftest.Build(i)
		return data[len(data)-ovmftest.MetadataFromEnd:]
	}
	f.Add(tail(ovmftest.AmdSev()))
	f.Add(tail(svsmBin()))
	f.Fuzz(func(t *testing.T, tail []byte) {
		data := make([]byte, 16<<10)
		copy(data[max(0, len(data)-len(tail)):], tail)
		img, err := ovmf.Parse(data)
		if err != nil {
			return
		}
		for _, o := range []ovmf.LaunchOptions{{VCPUs: 2}, {VCPUs: 1, Hashes: &measure.KernelHashes{}}, {VCPUs: 1, VMM: measure.VMMEC2}} {
			s, err := img.Sequence(o)
			if err != nil {
				continue
			}
			checkAccepted(t, img, s)
			if o.Hashes != nil {
				if _, _, err := img.HashesPage(o.Hashes); err != nil {
					t.Fatalf("sequence with hashes, but no page: %v", err)
				}
			}
		}
		if p, err := img.Precomputed(); err == nil {
			doc, err := p.Encode()
			if err != nil {
				t.Fatal(err)
			}
			if _, err := ovmf.ParsePrecomputed(doc); err != nil {
				t.Fatalf("written but not read: %v", err)
			}
		}
		svsm := *img
		if s, err := img.SVSMSequence(&svsm, ovmf.SVSMOptions{VarsSize: 4096, VCPUs: 1}); err == nil {
			checkAccepted(t, img, s)
		}
	})
}

func FuzzParsePrecomputed(f *testing.F) {
	img, err := ovmf.Parse(ovmftest.Build(ovmftest.AmdSev()))
	if err != nil {
		f.Fatal(err)
	}
	p, err := img.Precomputed()
	if err != nil {
		f.Fatal(err)
	}
	doc, err := p.Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(doc)
	f.Fuzz(func(t *testing.T, doc []byte) {
		img, err := ovmf.ParsePrecomputed(doc)
		if err != nil {
			return
		}
		s, err := img.Sequence(ovmf.LaunchOptions{VCPUs: 1})
		if err != nil {
			t.Fatalf("read but not usable: %v", err)
		}
		checkAccepted(t, img, s)
	})
}
