package svsmimg

import (
	"bytes"
	"testing"
)

// images are what fuzzing of files starts from: small ones, of which it makes
// thousands a second.
func images(f *testing.F) {
	for _, file := range []*File{small(), direct(), withMask(), insertLate(), everything(), signedWith(nil)} {
		f.Add(encodedOptional(shrunk(file)))
	}
}

// resealed is data with a checksum and sizes that fit, so that fuzzing comes
// further than to them.
func resealed(data []byte) []byte {
	data = bytes.Clone(data)
	if len(data) < fixedSizeV2 || len(data) > 1<<20 {
		return data
	}
	if data[fixedVersion] != 2 {
		data[fixedVersion] = 1
	}
	copy(data, magic)
	fixed := uint32(fixedSizeV1)
	if data[fixedVersion] == 2 {
		fixed = fixedSizeV2
		le.PutUint32(data[fixedPageSize:], pageSize)
	}
	le.PutUint32(data[fixedVersion:], uint32(data[fixedVersion]))
	le.PutUint32(data[fixedHeadersAt:], fixed)
	le.PutUint32(data[fixedTotalSize:], uint32(len(data)))
	if size := le.Uint32(data[fixedHeadersSize:]) &^ 7; uint64(size)+uint64(fixed) < uint64(len(data)) {
		le.PutUint32(data[fixedHeadersSize:], size)
		seal(data)
	}
	return data
}

// FuzzParse: no input makes reading a file, or anything that is done with one,
// panic.
func FuzzParse(f *testing.F) {
	images(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, d := range [][]byte{data, resealed(data)} {
			file, err := Parse(d)
			if err != nil {
				continue
			}
			file.Inspect()
			file.InferProfile()
			if e, err := file.Extract(); err == nil && len(e.BIOS())%biosAlign != 0 {
				t.Errorf("a BIOS of %d bytes", len(e.BIOS()))
			}
			for _, p := range Profiles() {
				s, err := file.Sequence(SequenceOptions{Profile: p, CPUSignature: 1})
				if err != nil {
					continue
				}
				if _, err := s.LaunchDigest(); err != nil {
					t.Errorf("%s: a sequence that was made has no digest: %v", p, err)
				}
			}
			if _, err := file.VerifyIDBlock(SequenceOptions{}); err == nil && file.IDBlock() == nil {
				t.Error("no ID block is good")
			}
		}
	})
}

// FuzzRoundTrip: a file that is read is written as the same bytes, and its
// canonical form says the same.
func FuzzRoundTrip(f *testing.F) {
	images(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		data = resealed(data)
		file, err := Parse(data)
		if err != nil {
			return
		}
		again, err := file.Encode()
		if err != nil || !bytes.Equal(again, data) {
			t.Fatalf("written differently: %v", err)
		}
		c, err := file.Canonical()
		if err != nil {
			t.Fatal(err)
		}
		encoded, err := c.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if d := DiffSettings(file, c); len(d) > 0 {
			t.Errorf("the canonical form has other settings: %v", d)
		}
		a, errA := file.Sequence(SequenceOptions{Profile: ProfileFile})
		b, errB := must(Parse(encoded)).Sequence(SequenceOptions{Profile: ProfileFile})
		if (errA == nil) != (errB == nil) {
			t.Fatalf("found errors %v and %v", errA, errB)
		}
		if errA == nil && must(a.LaunchDigest()) != must(b.LaunchDigest()) {
			t.Error("the canonical form is another launch")
		}
	})
}

// FuzzLint: no file makes lint fail, and every finding has its rule.
func FuzzLint(f *testing.F) {
	images(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		file, err := Parse(resealed(data))
		if err != nil {
			return
		}
		for _, p := range Profiles() {
			findings, err := file.Lint(LintOptions{Launch: SequenceOptions{Profile: p, VCPUs: 2, CPUSignature: 1}, QEMU: QEMUVersion{11, 1, p == ProfileKVMDirect}})
			if err != nil {
				t.Fatal(err)
			}
			for _, x := range findings {
				if x.Fix == "" || x.Message == "" {
					t.Errorf("found %+v", x)
				}
			}
		}
	})
}

// FuzzRecipe: a recipe that is read is valid, and builds or says why not.
func FuzzRecipe(f *testing.F) {
	f.Add([]byte("version: 1\nkind: wrap\nfirmware: OVMF.fd\nplatforms: [snp, native]\npolicy: 0x30000\nsev_features: 0x1\nparameters: off\nexpect: {cpu_model: EPYC-v4, vcpus: [1, 2]}\n"))
	f.Add([]byte("version: 1\nkind: coconut\nboot_loader: bldr\nkernel: svsm\nfilesystem: fs\nfirmware: OVMF.fd\nvmsa: guest-memory\nconsole_port: 2\nalternate_injection: true\ndevice_tree: \"off\"\nfeatures: [vtpm]\n"))
	f.Add([]byte("version: 1\nkind: replace-firmware\nimage: image\nfirmware: OVMF.fd\n"))
	in := tinyFiles()
	in["image"] = must(coconutRecipe().Build(files(in))).Image
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := ParseRecipe(data, "recipe")
		if err != nil {
			return
		}
		if err := r.Validate(); err != nil {
			t.Fatal(err)
		}
		b, err := r.Build(files(in))
		if err != nil {
			return
		}
		if err := b.Manifest.Check(b.Image); err != nil {
			t.Error(err)
		}
	})
}

// FuzzManifest: a manifest that is read can be written, and reads the same.
func FuzzManifest(f *testing.F) {
	b := must(coconutRecipe().Build(files(tinyFiles())))
	f.Add(must(b.Manifest.Encode()))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := ParseManifest(data)
		if err != nil {
			return
		}
		text, err := m.Encode()
		if err != nil {
			t.Fatal(err)
		}
		again, err := ParseManifest(text)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(must(again.Encode()), text) {
			t.Error("written differently")
		}
		_ = m.Check(b.Image) // a manifest of another image is one, whatever it says
	})
}

// FuzzBuild: no kernel, firmware or boot loader makes a build panic, and what is
// built is a file.
func FuzzBuild(f *testing.F) {
	in := tinyFiles()
	for name, data := range in {
		f.Add(name, data)
	}
	f.Add("OVMF.fd", igvmFirmware(0x812000, 0x1000, igvmParamArea, 0, 0xc0, igvmMemoryMap, 0x813000, 0x1000, igvmHOBArea))
	f.Fuzz(func(t *testing.T, name string, data []byte) {
		if len(data) > 1<<20 {
			return
		}
		in := tinyFiles()
		in[name] = data
		for _, r := range []*Recipe{coconutRecipe(), {Version: 1, Kind: KindWrap, Firmware: "OVMF.fd"}} {
			b, err := r.Build(files(in))
			if err != nil {
				continue
			}
			file, err := Parse(b.Image)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := file.Sequence(SequenceOptions{}); err != nil && file.Mask(PlatformSNP) != 0 {
				t.Errorf("what was built cannot be measured: %v", err)
			}
		}
	})
}
