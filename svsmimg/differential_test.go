package svsmimg

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// A peerAnswer is what the igvm crate says of a file.
type peerAnswer struct {
	refused      string // why; empty when it reads the file
	headers      [3]int // platforms, initializations, directives
	same, digest string
}

// askPeer has the igvm crate (scripts/peers/igvm-crate) read files.
func askPeer(t *testing.T, program string, files [][]byte) []peerAnswer {
	t.Helper()
	dir := t.TempDir()
	var names strings.Builder
	for i, data := range files {
		name := filepath.Join(dir, fmt.Sprintf("%d.igvm", i))
		if err := os.WriteFile(name, data, 0o600); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintln(&names, name)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, program)
	cmd.Stdin = strings.NewReader(names.String())
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSuffix(string(out), "\n"), "\n")
	if len(lines) != len(files) {
		t.Fatalf("found %d answers, expected %d", len(lines), len(files))
	}
	answers := make([]peerAnswer, len(lines))
	for i, line := range lines {
		a := &answers[i]
		fields := strings.Split(line, "\t")
		if fields[0] == "error" {
			a.refused = fields[1]
			continue
		}
		if len(fields) != 6 {
			t.Fatalf("found answer %q", line)
		}
		if _, err := fmt.Sscan(strings.Join(fields[1:4], " "), &a.headers[0], &a.headers[1], &a.headers[2]); err != nil {
			t.Fatal(err)
		}
		a.same, a.digest = fields[4], fields[5]
	}
	return answers
}

// peerFile is a file that the crate is asked about, and what it must say.
type peerFile struct {
	name string
	data []byte
	// refuses is why the crate refuses what this package reads; empty when it does
	// not.
	refuses string
	// digest says why the crate has no digest, or another; empty when it has ours.
	digest string
	// stable says that the crate lays out the file's data in another way than this
	// package, but reads what it writes.
	stable bool
}

// peerFiles are files of every kind that is built here.
func peerFiles(t *testing.T) []peerFile {
	var out []peerFile
	add := func(name string, f *File, change ...func(*peerFile)) {
		p := peerFile{name: name, data: must(must(f.Canonical()).Encode())}
		for _, c := range change {
			c(&p)
		}
		out = append(out, p)
	}
	refuses := func(words string) func(*peerFile) { return func(p *peerFile) { p.refuses = words } }
	build := func(r *Recipe, in map[string][]byte) *File { return must(r.Build(files(in))).File }

	for _, n := range []int{1, 2, 4} {
		if os.Getenv("EVTPM_TESTDATA") != "" {
			add(fmt.Sprintf("launch that hardware measured, %d vCPUs", n), svsmBinFile(t, n))
		}
	}
	if os.Getenv("EVTPM_TESTDATA") != "" {
		out = append(out, peerFile{name: "fixture", data: testdata(t, "fixtures/svsm/svsm-epyc-v4-4vcpu.igvm")})
	}
	wrap := func(platforms ...string) *Recipe {
		return &Recipe{Version: 1, Kind: KindWrap, Firmware: "OVMF.fd", Platforms: platforms}
	}
	plain := map[string][]byte{"OVMF.fd": firmware(256<<10, 4)}
	add("wrapped", build(wrap(), plain))
	add("wrapped for SNP", build(wrap("snp"), plain))
	add("wrapped for NATIVE", build(wrap("native"), plain), func(p *peerFile) { p.digest = "- not for SEV_SNP" })
	parameters := map[string][]byte{"OVMF.fd": igvmFirmware(0x812000, 0x1000, igvmParamArea, 0, 0xc0, igvmMemoryMap, 0xc0, 0x10, igvmVPCount, 0x813000, 0x1000, igvmHOBArea)}
	add("wrapped with parameters", build(wrap(), parameters))
	for _, name := range []string{"/usr/share/ovmf/OVMF.fd", "../build/firmware/OVMF.amdsev.fd"} {
		if data, err := os.ReadFile(name); err == nil {
			add("wrapped "+filepath.Base(name), build(wrap(), map[string][]byte{"OVMF.fd": data}))
		}
	}
	coconut := coconutRecipe()
	image := build(coconut, coconutFiles())
	add("COCONUT", image)
	for name, change := range map[string]func(*Recipe){
		"for SNP":              func(r *Recipe) { r.Platforms = []string{"snp"} },
		"VMSA in guest memory": func(r *Recipe) { r.VMSA = vmsaGuestMemory },
		"no device tree":       func(r *Recipe) { r.DeviceTree = "off" },
		"no filesystem":        func(r *Recipe) { r.Filesystem = "" },
		"no firmware":          func(r *Recipe) { r.Firmware = "" },
	} {
		r := *coconut
		change(&r)
		add("COCONUT "+name, build(&r, coconutFiles()))
	}
	replaced := &Recipe{Version: 1, Kind: KindReplace, Image: "image.igvm", Firmware: "OVMF.fd"}
	add("COCONUT, firmware replaced", build(replaced, map[string][]byte{"image.igvm": must(image.Encode()), "OVMF.fd": firmware(512<<10, 12)}))
	add("signed", signedWith(nil))

	// A file with a header of each type, alone.
	add("small", small())
	for typ, header := range map[HeaderType]func(*builder) Header{
		TypeCoRIMDocument: func(b *builder) Header {
			return &CoRIM{Kind: TypeCoRIMDocument, Mask: maskSNP, Data: b.blob([]byte("a CoRIM document"))}
		},
		TypeRequiredMemory: func(*builder) Header {
			return &RequiredMemory{GPA: 0x8000000, Mask: maskSNP, Bytes: 0x1000000, Flags: 1}
		},
		TypeErrorRange: func(*builder) Header { return &ErrorRange{GPA: 0x7000, Mask: maskSNP, Bytes: pageSize} },
	} {
		add(typ.String(), small(func(b *builder) {
			at := 2 // after the policy
			if typ.section() == sectionDirective {
				at = len(b.f.Headers) - 1
			}
			b.f.Headers = slices.Insert(b.f.Headers, at, header(b))
		}))
	}
	for _, k := range []HeaderType{TypeVPCount, TypeSRAT, TypeMADT, TypeMMIORanges, TypeMemoryMap, TypeCommandLine, TypeSLIT, TypePPTT, TypeDeviceTree, TypeEnvironmentInfo} {
		add(k.String(), small(func(b *builder) {
			at := slices.IndexFunc(b.f.Headers, func(h Header) bool { return h.Type() == TypeVPCount })
			b.f.Headers = slices.Insert(b.f.Headers, at+1, Header(&Parameter{Kind: k, Index: 7, Offset: 128}))
		}))
	}
	add("RELOCATABLE_REGION", small(func(b *builder) {
		b.f.Headers = slices.Insert(b.f.Headers, 2, Header(&RelocatableRegion{Mask: maskSNP, Alignment: 0x1000, GPA: 0x10000, Size: 0x3000, MinGPA: 0x10000, MaxGPA: 0x100000}))
	}), refuses("no matching vp context")) // the crate knows contexts with a VTL alone
	add("two-page parameter area", small(func(b *builder) {
		for _, h := range b.f.Headers {
			if a, ok := h.(*ParameterArea); ok {
				a.Bytes = 2 * pageSize
			}
		}
	}))
	add("pages in all ways", small(func(b *builder) {
		b.add(&PageData{GPA: 0x600000, Mask: maskSNP, Flags: PageUnmeasured, Data: b.blob(filler(pageSize, 3))})
		b.add(&PageData{GPA: 0x601000, Mask: maskSNP, Kind: DataCPUIDXF})
	}))
	add("shared page", small(func(b *builder) {
		b.add(&PageData{GPA: 0x600000, Mask: maskSNP, Flags: PageShared, Data: b.blob(filler(pageSize, 3))})
	}), func(p *peerFile) { p.digest = "shared pages are not measured by the crate" })
	add("no policy", small(func(b *builder) {
		b.f.Headers = slices.DeleteFunc(b.f.Headers, func(h Header) bool { return h.Type() == TypeGuestPolicy })
	}), func(p *peerFile) { p.digest = "- no SNP guest policy found in initialization headers" })
	add("2 MiB page", small(func(b *builder) {
		b.add(&PageData{GPA: 0x600000, Mask: maskSNP, Flags: Page2MiB, Data: b.blob(filler(largePage, 3))})
	}), func(p *peerFile) { p.digest, p.stable = "the crate reads the first 4 KiB of a 2 MiB page", true })
	add("optional header of an unknown type", small(func(b *builder) { b.add(&Unknown{Kind: 0x3ff, Content: []byte("new")}) }), refuses("header"))
	return out
}

// TestIGVMPeer has the igvm crate, an independent reader and writer of IGVM files,
// read what is built here: it must find the same headers, the same launch digest,
// and write the same bytes. Then both read thousands of damaged files: where both
// accept one, its launch must be the same.
func TestIGVMPeer(t *testing.T) {
	program := os.Getenv("EVTPM_PEER_IGVM")
	if program == "" {
		t.Skip("EVTPM_PEER_IGVM is not set: see scripts/test-igvm")
	}
	built := peerFiles(t)
	var data [][]byte
	for _, f := range built {
		data = append(data, f.data)
	}
	read, equal, identical := 0, 0, 0
	for i, a := range askPeer(t, program, data) {
		p := built[i]
		f := must(Parse(p.data))
		if again := must(f.Encode()); string(again) != string(p.data) {
			t.Errorf("%s: written differently", p.name)
		}
		if p.refuses != "" || a.refused != "" {
			if a.refused == "" || !strings.Contains(a.refused, p.refuses) || p.refuses == "" {
				t.Errorf("%s: the crate says %q, expected %q", p.name, a.refused, p.refuses)
			}
			continue
		}
		read++
		var want [3]int
		for _, h := range f.Headers {
			want[min(int(h.Type()>>8), 2)]++
		}
		if a.headers != want {
			t.Errorf("%s: the crate finds %v headers, expected %v", p.name, a.headers, want)
		}
		switch {
		case a.same == "same":
			identical++
		case a.same != "stable" || !p.stable:
			t.Errorf("%s: what the crate writes is %q", p.name, a.same)
		}
		ours := ""
		if f.Mask(PlatformSNP) != 0 {
			ours = launchDigest(t, f, SequenceOptions{Profile: ProfileFile}).String()
		}
		switch {
		case a.digest == ours && p.digest == "":
			equal++
		case p.digest == "", a.digest == ours, strings.HasPrefix(p.digest, "-") && a.digest != p.digest:
			t.Errorf("%s: the crate's digest is %s, ours %s, expected %q", p.name, a.digest, ours, p.digest)
		}
	}
	t.Logf("igvm crate: %d files built: %d read, %d written with the same bytes, %d with the same launch digest", len(built), read, identical, equal)

	var damaged [][]byte
	random := rand.New(rand.NewPCG(1, 2))
	for _, f := range []*File{small(), direct(), signedWith(nil), shrunk(must(coconutRecipe().Build(files(tinyFiles()))).File), must((&Recipe{Version: 1, Kind: KindWrap, Firmware: "OVMF.fd"}).Build(files(tinyFiles()))).File} {
		good := must(f.Encode())
		fixed := must(f.fixedSize())
		headers := int(le.Uint32(good[fixedHeadersSize:]))
		for range 400 {
			d := slices.Clone(good)
			for range 1 + random.IntN(2) {
				at := fixed + random.IntN(headers)
				if random.IntN(8) == 0 {
					at = random.IntN(fixed)
				}
				d[at] ^= 1 << random.IntN(8)
			}
			if at := int(le.Uint32(d[fixedHeadersAt:])); at == fixed && int(le.Uint32(d[fixedHeadersSize:])) == headers && d[fixedVersion] == good[fixedVersion] {
				seal(d)
			}
			damaged = append(damaged, d)
		}
	}
	both, neither, stricter, laxer := 0, 0, 0, map[string]int{}
	for i, a := range askPeer(t, program, damaged) {
		f, err := Parse(damaged[i])
		switch {
		case err != nil && a.refused != "":
			neither++
		case err != nil:
			stricter++
		case a.refused != "":
			laxer[a.refused]++
		default:
			both++
			if f.Mask(PlatformSNP) == 0 || strings.HasPrefix(a.digest, "-") || slices.ContainsFunc(f.Headers, func(h Header) bool { p, ok := h.(*PageData); return ok && p.Flags&PageShared != 0 }) {
				continue
			}
			if d := launchDigest(t, f, SequenceOptions{Profile: ProfileFile}); d.String() != a.digest {
				t.Errorf("damaged file %d: the crate's digest is %s, ours %s", i, a.digest, d)
			}
		}
	}
	t.Logf("igvm crate: %d damaged files: %d accepted by both, with the same launch; %d refused by both, %d here alone, %d by the crate alone: %v",
		len(damaged), both, neither, stricter, sumOf(laxer), laxer)
}

func sumOf(m map[string]int) (n int) {
	for _, v := range m {
		n += v
	}
	return n
}
