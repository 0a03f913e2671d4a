package measure

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"testing"
)

// peImage builds a PE image that also is a bzImage, as Linux's x86 kernels are:
// the setup header at 0x1f1 lies within the PE headers' padding.
type peImage struct {
	pe32         bool
	directories  int    // number of data directories
	padding      int    // bytes after the sections
	certificates int    // bytes at the end
	trailing     int    // bytes after the certificates
	stub         string // text in the first section
	protocol     uint16 // of the setup header; 0: none
	linux        []byte // of a section .linux, before the padding
}

const (
	testPEAt   = 0x80
	testHdrs   = 0x400
	testSec1   = 0x400 // .text, 0x200 bytes
	testSec2   = 0x800 // .data, 0x100 bytes: after a gap
	testOptLen = 240
)

func (p peImage) build() []byte {
	le := binary.LittleEndian
	const end = 0x900
	linuxRaw := (len(p.linux) + 0x1ff) &^ 0x1ff
	b := make([]byte, end+linuxRaw+p.padding)
	for i := range b {
		b[i] = byte(i * 7)
	}
	copy(b[end:], p.linux)
	copy(b, "MZ")
	le.PutUint32(b[peHeaderPointerAt:], testPEAt)
	pe := b[testPEAt:]
	copy(pe, "PE\x00\x00")
	le.PutUint16(pe[peSectionsAt:], 3)
	le.PutUint16(pe[peOptionalSizeAt:], testOptLen)
	opt := pe[peOptionalAt:]
	dirs := optDirectories64At
	le.PutUint16(opt, opt64)
	if p.pe32 {
		le.PutUint16(opt, opt32)
		dirs = optDirectories32At
	}
	clear(opt[2:testOptLen])
	le.PutUint32(opt[32:], 0x1000) // section alignment
	le.PutUint32(opt[36:], 0x100)  // file alignment
	le.PutUint32(opt[56:], 0x4000) // image size
	le.PutUint32(opt[optHeadersSizeAt:], testHdrs)
	le.PutUint32(opt[dirs-4:], uint32(p.directories))
	clear(opt[dirs : dirs+8*p.directories])
	// Out of order, and one without data.
	for i, s := range []struct {
		name string
		at   uint32
		size uint32
	}{{".data", testSec2, 0x100}, {".text", testSec1, 0x200}, {".bss", 0, 0}} {
		h := opt[testOptLen+i*sectionHeaderSize:]
		clear(h[:sectionHeaderSize])
		copy(h, s.name)
		le.PutUint32(h[8:], max(s.size, 0x100))
		le.PutUint32(h[12:], uint32(0x1000*(i+1)))
		le.PutUint32(h[sectionRawSizeAt:], s.size)
		le.PutUint32(h[sectionRawAt:], s.at)
	}
	if p.linux != nil {
		le.PutUint16(pe[peSectionsAt:], 4)
		h := opt[testOptLen+3*sectionHeaderSize:]
		clear(h[:sectionHeaderSize])
		copy(h, unifiedLinux)
		le.PutUint32(h[sectionVirtualAt:], uint32(len(p.linux)))
		le.PutUint32(h[12:], 0x100000)
		le.PutUint32(h[sectionRawSizeAt:], uint32(linuxRaw))
		le.PutUint32(h[sectionRawAt:], end)
	}
	copy(b[testSec1:], p.stub)
	if p.certificates > 0 {
		le.PutUint32(opt[dirs+8*securityDirectory:], uint32(len(b)))
		le.PutUint32(opt[dirs+8*securityDirectory+4:], uint32(p.certificates))
		b = append(b, bytes.Repeat([]byte{0xce}, p.certificates)...)
	}
	b = append(b, bytes.Repeat([]byte{0x77}, p.trailing)...)
	if p.protocol != 0 {
		clear(b[0x1f1:setupHeaderSize])
		copy(b[setupMagicAt:], "HdrS")
		le.PutUint16(b[setupVersionAt:], p.protocol)
		b[setupFlagsAt] = setupLoadedHigh
		le.PutUint32(b[setupInitMaxAt:], 0x7fffffff)
		le.PutUint16(b[setupXLoadAt:], 0x7f)
	}
	return b
}

func kernel64() peImage {
	return peImage{directories: 6, stub: stubMeasuresInitrd + "\x00" + stubMeasuresOptions, protocol: 0x20f}
}

func digest(t *testing.T, image []byte) string {
	t.Helper()
	d, err := authenticode(image, sha256.New())
	if err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(d)
}

func TestAuthenticode(t *testing.T) {
	// Made with osslsigncode 2.5 (sign, then verify: "Calculated message digest"),
	// except those that it refuses, which are testdata/pcr/predict.py's.
	const plain = "e77abc8d3dbaeeba0660b42b46133ffb0926001f2522192764c05cfc8b8038ca"
	signed := kernel64()
	signed.certificates = 0x118
	for name, tc := range map[string]struct {
		p    peImage
		want string
	}{
		"PE32+":                    {kernel64(), plain},
		"PE32":                     {peImage{pe32: true, directories: 16}, "462c6ec7042bf4802833b0a6728d23cbf5c4bd32405f985bba4081bedbdc31e4"},
		"data after the sections":  {peImage{directories: 6, padding: 16}, "2c89bb322380587f85e66b1cc2c3d65a965d8e659044665bef70d12cde373d94"},
		"without a security entry": {peImage{directories: 4}, "111ab5721140aaf2481a961b97022c5cf9c67080cdaf7262c2d9cac46a4304de"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := digest(t, tc.p.build()); got != tc.want {
				t.Errorf("found %s, expected %s", got, tc.want)
			}
		})
	}
	// Neither the checksum nor the certificates nor their directory entry count;
	// everything else does.
	image := kernel64().build()
	base := digest(t, image)
	opt := testPEAt + peOptionalAt
	security := opt + optDirectories64At + securityDirectory*directorySize
	for _, at := range []int{opt + optChecksumAt, opt + optChecksumAt + 3, security, security + 3} {
		changed := bytes.Clone(image)
		changed[at] ^= 1
		if digest(t, changed) != base {
			t.Errorf("byte %#x counts", at)
		}
	}
	for _, at := range []int{opt + optChecksumAt - 1, opt + optChecksumAt + 4, security - 1, security + directorySize, testSec1, testSec2, len(image) - 1} {
		changed := bytes.Clone(image)
		changed[at] ^= 1
		if d, err := authenticode(changed, sha256.New()); err == nil && hex.EncodeToString(d) == base {
			t.Errorf("byte %#x does not count", at)
		}
	}
	if a, b := image, signed.build(); !bytes.Equal(a[:security], b[:security]) || digest(t, a) != digest(t, b) {
		t.Error("a signature changes the digest")
	}
}

// An image whose size is no multiple of eight has two digests in the world: the
// firmware's, and the one that signing tools make after padding it.
func TestAuthenticodeIsNotPadded(t *testing.T) {
	odd := peImage{directories: 6, padding: 13}.build()
	padded := append(bytes.Clone(odd), 0, 0, 0)
	// testdata/pcr/predict.py's, which does not pad; a boot of such a kernel is
	// among the agent's end-to-end tests.
	const want = "9135694c18559591868ae48da837143f0a5b1168f106aefe17b1f91b5fe3e7a8"
	if got := digest(t, odd); got != want || got == digest(t, padded) {
		t.Errorf("found %s, expected %s; padded %s", got, want, digest(t, padded))
	}
}

func TestCheckKernelFile(t *testing.T) {
	bzImage := kernel64().build()
	unified := peImage{directories: 6}.build()
	binary.LittleEndian.PutUint16(unified[testPEAt+peMachineAt:], peMachineX64)
	clear(unified[setupMagicAt : setupMagicAt+4])
	arm := bytes.Clone(unified)
	binary.LittleEndian.PutUint16(arm[testPEAt+peMachineAt:], 0xaa64)
	far := bytes.Clone(unified)
	binary.LittleEndian.PutUint32(far[peHeaderPointerAt:], 0xffffffff)
	for _, c := range []struct {
		name   string
		head   []byte
		initrd bool
		want   string
	}{
		{"bzImage", bzImage, false, ""},
		{"bzImage with initrd", bzImage, true, ""},
		{"unified", unified, false, ""},
		{"unified with initrd", unified, true, "QEMU: linux kernel too old to load a ram disk"},
		{"arm64", arm, false, "machine 0xaa64, expected 0x8664"},
		{"vmlinux", append([]byte("\x7fELF\x02\x01\x01"), make([]byte, 1000)...), false, "an ELF file"},
		{"nothing", nil, true, ""},
		{"MZ alone", []byte("MZ"), true, ""},
		{"header pointer", far, true, ""},
		{"no more than its pointer", append([]byte("MZ"), make([]byte, peHeaderPointerAt+2)...), true, ""},
		{"no PE header", bytes.Replace(unified, []byte("PE\x00\x00"), []byte("PX\x00\x00"), 1), true, ""},
		{"no more than PE's header", unified[:testPEAt+peOptionalAt], true, "QEMU: linux kernel too old to load a ram disk"},
		{"another program", append([]byte("ZM"), unified[2:]...), true, ""},
		{"no more than a set-up header", bzImage[:setupHeaderSize], true, ""},
		{"any bytes", bytes.Repeat([]byte("kernel"), 200), true, ""},
	} {
		err := CheckKernelFile(c.head, c.initrd)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: found error %v, expected %q", c.name, err, c.want)
		}
	}
}

// A distribution's signed kernel carries the digest that its signers computed.
func TestAuthenticodeOfSignedKernel(t *testing.T) {
	const name = "../build/kernel/vmlinuz"
	image, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		t.Skipf("needs %s: run scripts/setup test", name)
	}
	if err != nil {
		t.Fatal(err)
	}
	p, err := parsePE(image)
	if err != nil || p.certificatesSize == 0 {
		t.Fatalf("%+v, %v", p, err)
	}
	d, err := authenticode(image, sha256.New())
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(image[uint64(len(image))-p.certificatesSize:], d) {
		t.Errorf("the kernel's signature is not over %x", d)
	}
}

func TestAuthenticodeRefuses(t *testing.T) {
	le := binary.LittleEndian
	opt := testPEAt + peOptionalAt
	section := func(b []byte, i int) []byte { return b[opt+testOptLen+i*sectionHeaderSize:] }
	for name, tc := range map[string]struct {
		change func([]byte) []byte
		want   string
	}{
		"nothing":            {func([]byte) []byte { return nil }, "expected a kernel with an EFI stub"},
		"ELF":                {func(b []byte) []byte { copy(b, "\x7fELF"); return b }, "does not begin with MZ"},
		"short":              {func(b []byte) []byte { return b[:0x3f] }, "does not begin with MZ"},
		"header pointer":     {func(b []byte) []byte { le.PutUint32(b[peHeaderPointerAt:], 0xffffffff); return b }, "no PE header at 0xffffffff"},
		"no PE signature":    {func(b []byte) []byte { b[testPEAt] = 'X'; return b }, "no PE header at 0x80"},
		"optional header":    {func(b []byte) []byte { le.PutUint16(b[testPEAt+peOptionalSizeAt:], 0xffff); return b }, "optional header of 65535 bytes"},
		"no optional header": {func(b []byte) []byte { le.PutUint16(b[testPEAt+peOptionalSizeAt:], 0); return b }, "optional header of 0 bytes"},
		"small header":       {func(b []byte) []byte { le.PutUint16(b[testPEAt+peOptionalSizeAt:], 100); return b }, "expected at least 112"},
		"few directories":    {func(b []byte) []byte { le.PutUint16(b[testPEAt+peOptionalSizeAt:], 150); return b }, "expected at least 152 for 6 directories"},
		"magic":              {func(b []byte) []byte { le.PutUint16(b[opt:], 0x107); return b }, "magic is 0x107"},
		"headers too large":  {func(b []byte) []byte { le.PutUint32(b[opt+optHeadersSizeAt:], 0x901); return b }, "headers of 2305 bytes"},
		"headers too small":  {func(b []byte) []byte { le.PutUint32(b[opt+optHeadersSizeAt:], 0x1f0); return b }, "headers of 496 bytes"},
		"many sections":      {func(b []byte) []byte { le.PutUint16(b[testPEAt+peSectionsAt:], 0xffff); return b }, "for 65535 sections"},
		"section outside":    {func(b []byte) []byte { le.PutUint32(section(b, 0)[sectionRawSizeAt:], 0x101); return b }, "section of 257 bytes at 0x800"},
		"huge section":       {func(b []byte) []byte { le.PutUint32(section(b, 0)[sectionRawSizeAt:], 0xffffffff); return b }, "section of 4294967295 bytes"},
		"overlap":            {func(b []byte) []byte { le.PutUint32(section(b, 0)[sectionRawAt:], 0x5ff); return b }, "at 0x5ff, expected between 0x600"},
		"in the headers":     {func(b []byte) []byte { le.PutUint32(section(b, 0)[sectionRawAt:], 0); return b }, "at 0x0, expected between 0x400"},
		"certificates": {func(b []byte) []byte {
			le.PutUint32(b[opt+optDirectories64At+securityDirectory*directorySize+4:], 0x300)
			return b
		}, "certificates of 768 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			d, err := authenticode(tc.change(kernel64().build()), sha256.New())
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("found %x, %v; expected an error with %q", d, err, tc.want)
			}
		})
	}
}

func TestPredictDirectBoot(t *testing.T) {
	// Made with testdata/pcr/predict.py from the same kernel, 1000 times
	// "initrd", "quiet" and 268435456. Real boots are compared with their
	// prediction in the agent's end-to-end tests.
	for bank, want := range map[string][4]string{
		"sha256": {
			"adcfca57c9ff74b6bf0910dabc30031a5e6d3b6dd603dd7efd52212ca458f0a3",
			"8cd2ce724c18619c9669549185c65459dafaae127499c43e3e9c0e5381228768",
			"9858db034e2b258a04d386d65c347bdaced10ce0e61c38ebd35d0a6277923c10",
			"00bbf4897a3a3c71d53f813107a70c5e9a52e25e534297e72957785a7e9f1648",
		},
		"sha384": {
			"60d1c0dd7dc6b60810cd41b597ef31c964372c581336de091e5d6359ac69bed0668e5943133ada2a91232f0cb813fc26",
			"54ee716d2eb74384bab75142798a8910e05da788441a74cfecf01e85d01e089fde2d26fc5649e707022ce81e08032f44",
			"45d24963e4cd3a0f7b804fee2a461f62f466a1acb26a2ae9a51ef1d5f5f6f24e1321f3414ecd6096480c7c07901b8d7f",
			"e7768f95e9195e3872401ef786190e80f52c0d381c77efc338bee2c07e01f1602da099c993d86bb36387ff0f18042330",
		},
	} {
		g := predict(t, testInputs(bank))
		if g.Bank != bank || len(g.Values) != 2 || g.Values[0].PCR != 4 || g.Values[1].PCR != 9 {
			t.Fatalf("%s: %+v", bank, g)
		}
		got := append(values(g.Values[0]), values(g.Values[1])...)
		if !slices.Equal(got, want[:]) {
			t.Errorf("%s: found %q, expected %q", bank, got, want)
		}
		for _, v := range g.Values {
			for _, a := range v.AnyOf {
				if a.When == "" {
					t.Errorf("%s: PCR %d: nobody says when it is %s", bank, v.PCR, a.Value)
				}
			}
		}
	}
}

// A unified kernel image: its own digest, then perhaps that of the kernel inside.
func TestPredictUnified(t *testing.T) {
	kernel := kernel64()
	kernel.padding = 100 // the section is longer in the file
	image := peImage{directories: 6, padding: 7, linux: kernel.build()}.build()
	zeros := func(n int) string { return strings.Repeat("0", 2*n) }
	// Made with testdata/pcr/predict.py. The boots that it was compared with had the
	// stubs of systemd 252, 257 and 262.
	for bank, want := range map[string][]string{
		"sha256": {"6cb26c660a049333f3bd79ce7d727c653728691b574c40698bb5cecfaf8f3f9b", "ce321ce932506a74ae58baa6631e6f4e90c626d98275ed781a9801110955f241", "eb8d775eb86b3805dd7294e982c311f4ffce13da2f42848440331a41ebef9136"},
		"sha384": {"6e6d0c8eec30d92b4807c59a151314204824fc3ebadfe3405fcbcd86a1630f10e5d59eed8e97dc80914d30d4f9784d96", "e817a2e4d22dbeb24609dd817fc7e513935dff382698b97af630332cb3eeca9d7f8fb9d4e802736536311760e86ec4db", "4e92bde325d048186a791ec65cadaabb9d037922416833bd352b3994bcab9c7e18e6cf3bef08de715b5d5418866a421c"},
	} {
		g := predict(t, PCRInputs{Bank: bank, Kernel: image, Cmdline: "quiet  x=1", MemoryBytes: 256 << 20})
		if len(g.Values) != 2 || g.Values[0].PCR != 4 || g.Values[1].PCR != 12 {
			t.Fatalf("%s: %+v", bank, g)
		}
		if got := append(values(g.Values[0]), values(g.Values[1])...); !slices.Equal(got, want) {
			t.Errorf("%s: found %q, expected %q", bank, got, want)
		}
		if got := values(predict(t, PCRInputs{Bank: bank, Kernel: image}).Values[1]); !slices.Equal(got, []string{zeros(len(g.Values[1].AnyOf[0].Value))}) {
			t.Errorf("%s without cmdline: found PCR 12 %q", bank, got)
		}
	}
	le := binary.LittleEndian
	header := func(b []byte, i int) []byte {
		return b[testPEAt+peOptionalAt+testOptLen+i*sectionHeaderSize:]
	}
	for name, c := range map[string]struct {
		change func(*PCRInputs)
		want   string
	}{
		"initrd":        {func(in *PCRInputs) { in.Initrd = []byte("initrd") }, "linux kernel too old to load a ram disk"},
		"space":         {func(in *PCRInputs) { in.Cmdline = "quiet " }, "no space at its ends"},
		"tab":           {func(in *PCRInputs) { in.Cmdline = "a\tb" }, "no control characters"},
		"not ASCII":     {func(in *PCRInputs) { in.Cmdline = "q\u00fcit" }, "expected ASCII"},
		"two kernels":   {func(in *PCRInputs) { copy(header(in.Kernel, 1), unifiedLinux+"\x00\x00") }, "found two sections .linux"},
		"more memory":   {func(in *PCRInputs) { le.PutUint32(header(in.Kernel, 3)[sectionVirtualAt:], 0x10000) }, "found 2560 bytes in the file for 65536 in memory"},
		"nothing in it": {func(in *PCRInputs) { le.PutUint32(header(in.Kernel, 3)[sectionVirtualAt:], 0) }, "for 0 in memory"},
		"certificates that do not fit": {func(in *PCRInputs) {
			le.PutUint32(in.Kernel[testPEAt+peOptionalAt+optDirectories64At+8*securityDirectory+4:], 1<<20)
		}, "kernel: PE image: certificates of 1048576 bytes"},
		"no kernel": {func(in *PCRInputs) { in.Kernel[0x900] = 'X' }, "kernel: section .linux: found no PE image"},
	} {
		in := PCRInputs{Bank: "sha256", Kernel: bytes.Clone(image)}
		c.change(&in)
		if g, err := PredictDirectBoot(in); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: found %+v, %v; expected an error with %q", name, g, err, c.want)
		}
	}
}

func testInputs(bank string) PCRInputs {
	return PCRInputs{
		Bank: bank, Kernel: kernel64().build(), Initrd: bytes.Repeat([]byte("initrd"), 1000), Cmdline: "quiet", MemoryBytes: 256 << 20,
	}
}

func predict(t *testing.T, in PCRInputs) *GoldenPCRs {
	t.Helper()
	g, err := PredictDirectBoot(in)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func values(p GoldenPCR) []string {
	var out []string
	for _, v := range p.AnyOf {
		out = append(out, v.Value.String())
	}
	return out
}

func TestPredictDirectBootVariants(t *testing.T) {
	// Each made with testdata/pcr/predict.py.
	const (
		asIs      = "adcfca57c9ff74b6bf0910dabc30031a5e6d3b6dd603dd7efd52212ca458f0a3"
		patched4G = "6ef659f3b441abf3b911ffa903609af7c9fb7ddea13461dd0037a52d42381221"
		noInitrd  = "f04f2f39d747478ae9de1d1976be8fde626487c0ec0407a26836a08c6a4a1b5c"
	)
	in := testInputs("sha256")
	in.MemoryBytes = 4 << 30
	if got := values(predict(t, in).Values[0]); !slices.Equal(got, []string{asIs, patched4G}) {
		t.Errorf("4 GiB: %q", got)
	}
	in.MemoryBytes = 0
	if got := values(predict(t, in).Values[0]); !slices.Equal(got, []string{asIs}) {
		t.Errorf("an SEV guest: %q", got)
	}
	in.Initrd = nil
	if got := values(predict(t, in).Values[1]); !slices.Equal(got, []string{noInitrd}) {
		t.Errorf("no initrd: %q", got)
	}
	// Without a setup header QEMU has nothing to fill in.
	in = testInputs("sha256")
	plain := peImage{directories: 6, stub: stubMeasuresInitrd + stubMeasuresOptions}
	in.Kernel = plain.build()
	if got := values(predict(t, in).Values[0]); len(got) != 1 {
		t.Errorf("no setup header: %q", got)
	}
	// A stub that measures the initrd alone, and one that measures nothing.
	in.Kernel = peImage{directories: 6, stub: stubMeasuresInitrd}.build()
	p := newPCR(sha256.New)
	p.measure(in.Initrd)
	if got := values(predict(t, in).Values[1]); !slices.Equal(got, []string{p.value.String()}) {
		t.Errorf("initrd alone: %q", got)
	}
	in.Kernel = peImage{directories: 6}.build()
	if got := values(predict(t, in).Values[1]); !slices.Equal(got, []string{strings.Repeat("0", 64)}) {
		t.Errorf("an old kernel: %q", got)
	}
}

// What QEMU writes into the setup header, field by field.
func TestSetupHeader(t *testing.T) {
	le := binary.LittleEndian
	in := PCRInputs{Kernel: kernel64().build(), Initrd: make([]byte, 5000), Cmdline: "vga=0x317 vga=1", MemoryBytes: 512 << 20}
	out, err := patchSetup(in)
	if err != nil {
		t.Fatal(err)
	}
	changed := map[int]bool{}
	for i := range out {
		if out[i] != in.Kernel[i] {
			changed[i] = true
		}
	}
	// (0x20000000 - 0x28000 - 1 - 5000) rounded down to a page.
	if out[0x210] != 0xb0 || out[0x211] != 0x81 || le.Uint16(out[0x224:]) != 0xfe00 || le.Uint32(out[0x228:]) != 0x20000 ||
		le.Uint32(out[0x218:]) != 0x1ffd6000 || le.Uint32(out[0x21c:]) != 5000 || le.Uint16(out[0x1fa:]) != 0x317 {
		t.Errorf("setup header % x", out[0x1f1:0x268])
	}
	for i := range changed {
		if (i < 0x1fa || i > 0x1fb) && (i < 0x210 || i > 0x22b) {
			t.Errorf("byte %#x changed", i)
		}
	}
	in.Initrd = nil
	if out, err = patchSetup(in); err != nil || le.Uint64(out[0x218:]) != 0 {
		t.Errorf("no initrd: % x, %v", out[0x218:0x220], err)
	}

	for name, tc := range map[string]struct {
		protocol, xload uint16
		initMax         uint32
		memory          uint64
		want            uint32
	}{
		"above 4G":            {0x20f, 0x7f, 0x7fffffff, 0xafffffff, (0xafffffff - 0x28000 - 1 - 5000) &^ 0xfff},
		"2.75 GiB of memory":  {0x20f, 0x7f, 0x7fffffff, 0xb0000000, (0x80000000 - 0x28000 - 1 - 5000) &^ 0xfff},
		"limit in the header": {0x20f, 0, 0x3fffffff, 0x80000000, (0x3fffffff - 5000) &^ 0xfff},
		"no such flag yet":    {0x20b, 0x7f, 0x3fffffff, 0x80000000, (0x3fffffff - 5000) &^ 0xfff},
		"no limit yet":        {0x202, 0x7f, 0x3fffffff, 0x80000000, (0x37ffffff - 5000) &^ 0xfff},
	} {
		k := kernel64()
		k.protocol = tc.protocol
		b := k.build()
		le.PutUint16(b[setupXLoadAt:], tc.xload)
		le.PutUint32(b[setupInitMaxAt:], tc.initMax)
		if got, err := initrdAddress(b, 5000, tc.memory); err != nil || got != tc.want {
			t.Errorf("%s: found %#x, %v; expected %#x", name, got, err, tc.want)
		}
	}
}

func TestVideoMode(t *testing.T) {
	for cmdline, want := range map[string]string{
		"quiet": "0 false", "vga=normal": "65535 true", "vga=ext": "65534 true", "vga=extended": "65534 true", "a vga=ask b": "65533 true",
		"vga=791": "791 true", "vga=0X317 x": "791 true", "vga=01427": "791 true", "vga=65537": "1 true", "novga=3": "3 true", "vga=0": "0 true",
		"vga=0x": "error", "vga=x": "error", "vga=": "error", "vga=1,2": "error", "vga=089": "error", "vga=4294967296": "error", "vga=1_0": "error",
	} {
		mode, found, err := videoMode(cmdline)
		got := fmt.Sprint(mode, found)
		if err != nil {
			got = "error"
		}
		if got != want {
			t.Errorf("%q: found %s (%v), expected %s", cmdline, got, err, want)
		}
	}
}

func TestPredictDirectBootRefuses(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*PCRInputs)
		want   string
	}{
		"bank":           {func(in *PCRInputs) { in.Bank = "sha1" }, `PCR bank: found "sha1"`},
		"kernel":         {func(in *PCRInputs) { in.Kernel = []byte("hello") }, "kernel: found no PE image"},
		"not ASCII":      {func(in *PCRInputs) { in.Cmdline = "q\u00fcit" }, "cmdline: found byte 0xc3 at 1"},
		"NUL":            {func(in *PCRInputs) { in.Cmdline = "a\x00b" }, "cmdline: found byte 0x00 at 1"},
		"video mode":     {func(in *PCRInputs) { in.Cmdline = "vga=big" }, "cmdline: vga=big: invalid syntax"},
		"little memory":  {func(in *PCRInputs) { in.MemoryBytes = 0x20000 }, "memory: found 131072 bytes"},
		"initrd too big": {func(in *PCRInputs) { in.MemoryBytes = 0x28000 + 6001 }, "QEMU takes less than 6000"},
		"old protocol": {func(in *PCRInputs) {
			k := kernel64()
			k.protocol = 0x201
			in.Kernel = k.build()
		}, "boot protocol is 2.01"},
		"low kernel": {func(in *PCRInputs) { in.Kernel[setupFlagsAt] = 0 }, "high load address"},
	} {
		in := testInputs("sha256")
		tc.change(&in)
		if g, err := PredictDirectBoot(in); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %+v, %v; expected an error with %q", name, g, err, tc.want)
		}
	}
	// Kernel and command line at once.
	in := testInputs("sha256")
	in.Kernel, in.Cmdline = nil, "\x80"
	if _, err := PredictDirectBoot(in); err == nil || !strings.Contains(err.Error(), "kernel: ") || !strings.Contains(err.Error(), "cmdline: ") {
		t.Errorf("two mistakes: %v", err)
	}
}

func TestPredictLeavesInputsAlone(t *testing.T) {
	in := testInputs("sha256")
	before := bytes.Clone(in.Kernel)
	predict(t, in)
	if !bytes.Equal(in.Kernel, before) {
		t.Error("the kernel was changed")
	}
}

func FuzzPredictDirectBoot(f *testing.F) {
	signed := kernel64()
	signed.certificates, signed.trailing = 16, 3
	f.Add(kernel64().build(), []byte("initrd"), "quiet vga=0x317", uint64(256<<20))
	f.Add(signed.build(), []byte{}, "", uint64(0))
	f.Add(peImage{pe32: true, directories: 16}.build(), []byte("x"), "vga=ask", uint64(1<<63))
	f.Add([]byte("MZ"), []byte{}, "", uint64(1))
	f.Fuzz(func(t *testing.T, kernel, initrd []byte, cmdline string, memory uint64) {
		g, err := PredictDirectBoot(PCRInputs{Bank: "sha256", Kernel: kernel, Initrd: initrd, Cmdline: cmdline, MemoryBytes: memory})
		if err != nil {
			return
		}
		for _, v := range g.Values {
			for _, a := range v.AnyOf {
				if len(a.Value) != sha256.Size {
					t.Errorf("PCR %d is %x", v.PCR, a.Value)
				}
			}
		}
		// Whatever is accepted is bound: another last byte is another PCR 4,
		// unless certificates end there.
		p, err := parsePE(kernel)
		if err != nil {
			t.Fatalf("a kernel that is no PE image was accepted: %v", err)
		}
		if p.certificatesSize == 0 {
			changed := bytes.Clone(kernel)
			changed[len(changed)-1] ^= 1
			again, err := PredictDirectBoot(PCRInputs{Bank: "sha256", Kernel: changed, Initrd: initrd, Cmdline: cmdline, MemoryBytes: memory})
			if err == nil && bytes.Equal(again.Values[0].AnyOf[0].Value, g.Values[0].AnyOf[0].Value) && p.certificates == 0 {
				t.Error("the last byte does not count")
			}
		}
	})
}
