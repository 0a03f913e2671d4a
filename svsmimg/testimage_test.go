package svsmimg

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"

	"github.com/evtpm/evtpm/measure"
	"github.com/evtpm/evtpm/ovmf"
	"github.com/evtpm/evtpm/ovmf/ovmftest"
)

// testdata returns a file of the data that tests use and the repository does not
// contain.
func testdata(t testing.TB, name string) []byte {
	t.Helper()
	dir := os.Getenv("EVTPM_TESTDATA")
	if dir == "" {
		t.Skip("EVTPM_TESTDATA is not set: it names the folder with fixtures and facts")
	}
	data, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// must unwraps what cannot fail in a test.
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// filler makes bytes that differ from page to page.
func filler(n int, seed uint64) []byte {
	out := make([]byte, n)
	x := seed*2862933555777941757 + 3037000493
	for i := range out {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		out[i] = byte(x)
	}
	return out
}

// svsmBinFile makes an IGVM file of a launch of svsm.bin and firmware: the same
// pages in the same order.
func svsmBinFile(t testing.TB, vcpus int) *File {
	t.Helper()
	firmware := must(ovmf.Parse(testdata(t, "fixtures/svsm/svsm_ovmf.fd")))
	svsm := must(ParseSVSMBin(testdata(t, "fixtures/svsm/svsm.bin")))
	seq := must(SVSMBinSequence(svsm, firmware, ovmf.SVSMOptions{VarsSize: 540672, VCPUs: vcpus, CPUSignature: must(measure.CPUSignature("EPYC-v4"))}))
	b := newBuilder(1)
	b.add(&Platform{Mask: maskSNP, HighestVTL: 2, Platform: PlatformSNP, Version: 1})
	b.add(&GuestPolicy{Policy: policyDefault, Mask: maskSNP})
	for _, s := range seq.Steps {
		switch s.Type {
		case measure.PageNormal:
			b.pages(s.GPA, maskSNP, s.Data)
		case measure.PageZero:
			b.empty(s.GPA, s.Size, maskSNP, DataNormal)
		case measure.PageSecrets:
			b.empty(s.GPA, s.Size, maskSNP, DataSecrets)
		case measure.PageCPUID:
			b.empty(s.GPA, s.Size, maskSNP, DataCPUID)
		default:
			t.Fatalf("step of type %s", s.Type)
		}
	}
	for i, s := range seq.VMSAs {
		b.add(&VPContext{GPA: s.GPA, Mask: maskSNP, VPIndex: uint16(i), Data: b.blob(s.Data)})
	}
	return must(b.file())
}

// firmware is a synthetic OVMF image for SEV-SNP.
func firmware(size int, seed uint64) []byte {
	i := ovmftest.AmdSev()
	i.Size = size
	data := ovmftest.Build(i)
	copy(data, filler(size-ovmftest.MetadataFromEnd-4096, seed))
	return data
}

// An elfImage is what buildELF makes a kernel of.
type elfImage struct {
	base    uint64
	entry   uint64
	symbols int
	tiny    bool // a few bytes of file
}

// buildELF makes a static ELF file with the segments of COCONUT's linker script:
// code, read-only data, data, and memory that the file has no bytes for.
func buildELF(o elfImage) []byte {
	if o.base == 0 {
		o.base = 0xffffff8000000000
	}
	type seg struct {
		flags         elf.ProgFlag
		vaddr         uint64
		filesz, memsz int
	}
	segs := []seg{
		{elf.PF_R | elf.PF_X, o.base, 0x5123, 0x5123},
		{elf.PF_R, o.base + 0x6000, 0x2000, 0x2000},
		{elf.PF_R | elf.PF_W, o.base + 0x9000, 0x1800, 0x7000},
		{elf.PF_R | elf.PF_W, o.base + 0x10000, 0, 0x3000},
	}
	fileAlign := pageSize
	if o.tiny {
		fileAlign = 16
		for i := range segs {
			segs[i].filesz = min(segs[i].filesz, 0x48)
		}
	}
	le := binary.LittleEndian
	var file bytes.Buffer
	put := func(v any) { _ = binary.Write(&file, le, v) }
	const headerSize, progSize = 64, 56
	bodyAt := headerSize + len(segs)*progSize
	if !o.tiny {
		bodyAt = pageSize
	}
	offset := uint64(bodyAt)
	var progs []elf.Prog64
	var body []byte
	for i, s := range segs {
		progs = append(progs, elf.Prog64{Type: uint32(elf.PT_LOAD), Flags: uint32(s.flags), Off: offset, Vaddr: s.vaddr, Paddr: s.vaddr, Filesz: uint64(s.filesz), Memsz: uint64(s.memsz), Align: pageSize})
		body = append(body, filler(s.filesz, uint64(i+1))...)
		for len(body)%fileAlign != 0 {
			body = append(body, 0)
		}
		offset = uint64(bodyAt + len(body))
	}
	var symtab, strtab, names []byte
	strtab = []byte{0}
	for i := range o.symbols {
		if i > 0 {
			name := uint32(len(strtab))
			strtab = append(strtab, []byte("symbol_"+string(rune('a'+i%26)))...)
			strtab = append(strtab, 0)
			symtab = le.AppendUint32(symtab, name)
		} else {
			symtab = le.AppendUint32(symtab, 0)
		}
		symtab = append(symtab, 0x12, 0, 1, 0)
		symtab = le.AppendUint64(symtab, o.base+uint64(i)*16)
		symtab = le.AppendUint64(symtab, 16)
	}
	names = []byte("\x00.symtab\x00.strtab\x00.shstrtab\x00")
	symAt := uint64(bodyAt + len(body))
	strAt := symAt + uint64(len(symtab))
	namesAt := strAt + uint64(len(strtab))
	sectionsAt := alignUp(namesAt+uint64(len(names)), 8)
	h := elf.Header64{Type: uint16(elf.ET_EXEC), Machine: uint16(elf.EM_X86_64), Version: 1, Entry: o.base + o.entry, Phoff: headerSize, Ehsize: headerSize, Phentsize: progSize, Phnum: uint16(len(progs)), Shentsize: 64}
	copy(h.Ident[:], "\x7fELF\x02\x01\x01")
	if o.symbols > 0 {
		h.Shoff, h.Shnum, h.Shstrndx = sectionsAt, 4, 3
	}
	put(h)
	for _, p := range progs {
		put(p)
	}
	file.Write(make([]byte, bodyAt-file.Len()))
	file.Write(body)
	if o.symbols == 0 {
		return file.Bytes()
	}
	file.Write(symtab)
	file.Write(strtab)
	file.Write(names)
	file.Write(make([]byte, int(sectionsAt)-file.Len()))
	put(elf.Section64{})
	put(elf.Section64{Name: 1, Type: uint32(elf.SHT_SYMTAB), Off: symAt, Size: uint64(len(symtab)), Link: 2, Info: 1, Addralign: 8, Entsize: elf.Sym64Size})
	put(elf.Section64{Name: 9, Type: uint32(elf.SHT_STRTAB), Off: strAt, Size: uint64(len(strtab)), Addralign: 1})
	put(elf.Section64{Name: 17, Type: uint32(elf.SHT_STRTAB), Off: namesAt, Size: uint64(len(names)), Addralign: 1})
	return file.Bytes()
}

// files is a reader of recipes' inputs out of memory.
func files(m map[string][]byte) func(string) ([]byte, error) {
	return func(name string) ([]byte, error) {
		data, ok := m[name]
		if !ok {
			return nil, os.ErrNotExist
		}
		return data, nil
	}
}

// coconutFiles are inputs of a synthetic COCONUT image.
func coconutFiles() map[string][]byte {
	return map[string][]byte{
		"bldr": filler(0x2345, 7), "svsm": buildELF(elfImage{entry: 0x40, symbols: 700}), "fs": filler(0x1801, 9), "OVMF.fd": firmware(256<<10, 11),
	}
}

// coconutRecipe is a recipe for them.
func coconutRecipe() *Recipe {
	return &Recipe{Version: 1, Kind: KindCoconut, BootLoader: "bldr", Kernel: "svsm", Filesystem: "fs", Firmware: "OVMF.fd", Features: []string{"vtpm"}}
}

// tinyFiles are the smallest inputs of a COCONUT image.
func tinyFiles() map[string][]byte {
	i := ovmftest.AmdSev()
	i.Size = pageSize
	return map[string][]byte{"bldr": filler(40, 7), "svsm": buildELF(elfImage{entry: 0x40, symbols: 3, tiny: true}), "fs": filler(20, 9), "OVMF.fd": ovmftest.Build(i)}
}

// shrunk is a file whose pages share one page of data, so that it is small.
func shrunk(f *File) *File {
	b := newBuilder(f.Version)
	b.f.Architecture = f.Architecture
	page := filler(pageSize, 1)
	for _, h := range f.Headers {
		switch h := h.(type) {
		case *PageData:
			c := *h
			c.Data = Blob{}
			if h.Data.Size == pageSize && h.Kind == DataNormal {
				c.Data = b.blob(page)
			}
			b.add(&c)
		case *ParameterArea:
			c := *h
			c.Data = Blob{}
			b.add(&c)
		case *VPContext:
			c := *h
			c.Data = b.blob(f.Bytes(h.Data))
			b.add(&c)
		case *CoRIM:
			c := *h
			c.Data = b.blob(f.Bytes(h.Data))
			b.add(&c)
		default:
			b.add(h)
		}
	}
	return must(b.file())
}
