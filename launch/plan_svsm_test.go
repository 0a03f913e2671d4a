package launch

import (
	"bytes"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/evtpm/evtpm/launch/launchtest"
	"github.com/evtpm/evtpm/measure"
	"github.com/evtpm/evtpm/ovmf/ovmftest"
	"github.com/evtpm/evtpm/snpsim"
	"github.com/evtpm/evtpm/svsmimg"
)

// simImage makes an image of a firmware, more pages, and a boot vCPU that starts at
// eip.
func simImage(t *testing.T, eip uint32, more ...svsmimg.Header) (image, firmware []byte) {
	t.Helper()
	i := ovmftest.AmdSev()
	i.Size = 100 << 10
	firmware = ovmftest.Build(i)
	vmsa, err := measure.VCPU{Features: 1, EIP: eip}.VMSA()
	if err != nil {
		t.Fatal(err)
	}
	data := append(slices.Clone(firmware), vmsa.Page()...)
	data = append(data, strings.Repeat("page", 1024)...)
	page := func(at int) svsmimg.Blob { return svsmimg.Blob{Offset: uint32(at), Size: measure.PageSize} }
	headers := []svsmimg.Header{
		&svsmimg.Platform{Mask: 1, Platform: svsmimg.PlatformSNP, Version: 1},
		&svsmimg.GuestPolicy{Policy: 0x30000, Mask: 1},
	}
	for _, h := range more {
		if p, ok := h.(*svsmimg.PageData); ok && p.Data.Size != 0 {
			p.Data = page(len(data) - measure.PageSize)
		}
		headers = append(headers, h)
	}
	for at := 0; at < len(firmware); at += measure.PageSize {
		headers = append(headers, &svsmimg.PageData{GPA: uint64(1<<32 - len(firmware) + at), Mask: 1, Data: page(at)})
	}
	headers = append(headers, &svsmimg.VPContext{GPA: measure.VMSAGPA, Mask: 1, Data: page(len(firmware))})
	image, err = (&svsmimg.File{Version: 1, Headers: headers, Data: data}).Encode()
	if err != nil {
		t.Fatal(err)
	}
	return image, firmware
}

// filled is a page with contents.
func filled(gpa uint64) *svsmimg.PageData {
	return &svsmimg.PageData{GPA: gpa, Mask: 1, Data: svsmimg.Blob{Size: measure.PageSize}}
}

// TestResolveSimImage: on the simulated platform QEMU runs the firmware of an
// image, and the digest is that of all of it.
func TestResolveSimImage(t *testing.T) {
	for name, c := range map[string]struct {
		eip  uint32
		svsm bool
		args string
	}{
		"firmware alone": {measure.ResetEIP, false, "-bios /run/evtpm/demo/firmware.fd -device loader,file=/run/evtpm/demo/pages-0x810000.bin,addr=0x810000,force-raw=on -chardev"},
		"SVSM":           {0x810000, true, "-bios /run/evtpm/demo/firmware.fd -chardev"},
	} {
		image, firmware := simImage(t, c.eip, filled(0x810000))
		dir, s := igvmDir(t, image, "platform: sim", "cpu: {model: qemu64, count: 2}")
		p := resolve(t, s)
		f, err := svsmimg.Parse(image)
		if err != nil {
			t.Fatal(err)
		}
		signature, err := measure.SignatureOf(15, 107, 1)
		if err != nil {
			t.Fatal(err)
		}
		want, err := f.Sequence(svsmimg.SequenceOptions{VCPUs: 2, CPUSignature: signature})
		if err != nil {
			t.Fatal(err)
		}
		hardware, err := want.LaunchDigest()
		if err != nil {
			t.Fatal(err)
		}
		if !c.svsm {
			want.Steps = append(want.Steps, snpsim.SVSMStep())
		}
		digest, err := want.LaunchDigest()
		if got := p.Golden.LaunchDigests[0]; err != nil || got != digest || p.Golden.Platform != PlatformSim {
			t.Errorf("%s: found digest %s for %s, expected %s (%v)", name, got, p.Golden.Platform, digest, err)
		}
		if p.Extracted.SVSM != c.svsm || (digest == hardware) != c.svsm {
			t.Errorf("%s: found SVSM %v, digest %s, on hardware %s", name, p.Extracted.SVSM, digest, hardware)
		}
		line := strings.Join(qemuCommand(t, p).Args, " ")
		if !strings.Contains(line, c.args) || strings.Contains(line, "igvm") {
			t.Errorf("%s: %q is not in, or igvm is:\n%s", name, c.args, line)
		}
		xml, err := p.LibvirtDomain(LibvirtOptions{Dir: dir})
		if err != nil || !bytes.Contains(xml, []byte(`stateless="yes">`+dir+"/firmware.fd</loader>")) || bytes.Contains(xml, []byte("igvm-cfg")) ||
			bytes.Contains(xml, []byte("pages-0x810000.bin")) == c.svsm || bytes.Contains(xml, []byte("qemu:commandline")) == c.svsm {
			t.Errorf("%s: found domain %s (%v)", name, xml, err)
		}
		bios := p.ImageFiles()[0]
		if bios.GPA != 1<<32-128<<10 || len(bios.Data) != 128<<10 || !bytes.HasSuffix(bios.Data, firmware) {
			t.Errorf("%s: found a firmware of %d bytes at %#x", name, len(bios.Data), bios.GPA)
		}
		l := p.ImageLaunch()
		if seq, err := l.Sequence(2, signature); err != nil || l.SVSM != c.svsm || l.FirmwareSize != uint64(len(firmware)) {
			t.Errorf("%s: found launch %+v of %v (%v)", name, l, seq, err)
		}
		s.Platform, s.QEMU.Accel, s.Sim = PlatformSNP, AccelKVM, nil
		s.CPU.Signature = signature
		s.CPU.Model = "host"
		snp := resolve(t, s)
		if snp.Golden.LaunchDigests[0] != hardware || snp.Extracted != nil || snp.ImageFiles() != nil || snp.ImageLaunch() != nil {
			t.Errorf("%s: platform snp: found digest %s, expected %s", name, snp.Golden.LaunchDigests[0], hardware)
		}
	}
}

// TestResolveSimImageRefuses: an image of which QEMU can run nothing, or not all
// that it would have to.
func TestResolveSimImageRefuses(t *testing.T) {
	good, _ := simImage(t, measure.ResetEIP)
	many := make([]svsmimg.Header, maxImagePages+1)
	for i := range many {
		many[i] = filled(uint64(i) * 2 * measure.PageSize)
	}
	image := func(more ...svsmimg.Header) []byte {
		data, _ := simImage(t, measure.ResetEIP, more...)
		return data
	}
	broken := bytes.Replace(good, []byte{0xde, 0x82, 0xb5, 0x96}, []byte{0, 0, 0, 0}, 1) // the GUID of the firmware's table
	for name, c := range map[string]struct {
		image []byte
		lines []string
		want  string
	}{
		"no firmware":              {launchtest.IGVM(t, measure.VMSAGPA), nil, "platform sim: IGVM file has no firmware"},
		"no OVMF":                  {broken, nil, "a.igvm: platform sim: firmware has no table"},
		"pages past the memory":    {image(filled(0x10000000)), []string{"memory: 256M"}, "found pages at 0x10000000 to 0x10001000, expected them in the first 256M of guest memory"},
		"pages in the legacy hole": {image(filled(0x9f000), filled(0xa0000)), nil, "found pages at 0x9f000 to 0xa1000, where QEMU shows a display and the firmware"},
		"pages below 1 MiB":        {image(filled(0xff000)), nil, "found pages at 0xff000 to 0x100000"},
		"many pieces":              {image(many...), nil, "found 33 pieces of memory beside the firmware, expected at most 32"},
		"policy":                   {good, []string{"policy: 0x20000"}, "found guest policy 0x30000 in the image, but 0x20000 in the spec"},
		"kernel hashes":            {good, []string{"kernel: a.igvm", "kernel_hashes: on"}, "kernel_hashes"},
		"device plane":             {good, []string{"svsm: {image: a.igvm, device_plane: true}"}, "the simulated SVSM has no devices"},
	} {
		_, s, err := simSpec(t, c.image, c.lines...)
		if err == nil {
			_, err = Resolve(t.Context(), s, ResolveOptions{})
		}
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: found %v, expected %q in it", name, err, c.want)
		}
	}
	// The last pages that fit, and the first past the hole.
	_, s := igvmDir(t, image(filled(0x9f000), filled(0x100000), filled(0x0ffff000)), "platform: sim", "memory: 256M")
	resolve(t, s)
}

// simSpec is igvmDir for platform sim, with the error.
func simSpec(t *testing.T, image []byte, lines ...string) (string, *Spec, error) {
	t.Helper()
	dir := t.TempDir()
	launchtest.Write(t, filepath.Join(dir, "a.igvm"), image)
	text := "version: 1\nname: demo\nplatform: sim\n"
	if !slices.ContainsFunc(lines, func(l string) bool { return strings.HasPrefix(l, "svsm:") }) {
		text += "svsm: {image: a.igvm}\n"
	}
	text += strings.Join(lines, "\n") + "\n"
	s, err := ReadSpec(launchtest.Write(t, filepath.Join(dir, "a.yaml"), []byte(text)), SpecFileOptions{})
	return dir, s, err
}

// TestSimImageIDBlock: the simulated AMD-SP is given the ID block in the image, as
// QEMU gives it on hardware; one in an image without an SVSM is of another launch.
func TestSimImageIDBlock(t *testing.T) {
	k := launchtest.Key(t, filepath.Join(t.TempDir(), "id.pem"))
	signed := func(eip uint32) []byte {
		image, _ := simImage(t, eip, filled(0x810000))
		f, err := svsmimg.Parse(image)
		if err != nil {
			t.Fatal(err)
		}
		seq, err := f.Sequence(svsmimg.SequenceOptions{})
		if err != nil {
			t.Fatal(err)
		}
		digest, err := seq.LaunchDigest()
		if err != nil {
			t.Fatal(err)
		}
		block := &measure.IDBlock{LaunchDigest: digest, GuestSVN: 5, Policy: 0x30000}
		auth, err := measure.SignIDBlock(block, measure.SignOptions{IDKey: k, AuthorKey: k})
		if err != nil {
			t.Fatal(err)
		}
		h, err := svsmimg.NewSNPIDBlock(1, block, auth)
		if err != nil {
			t.Fatal(err)
		}
		image, _ = simImage(t, eip, filled(0x810000), h)
		return image
	}
	_, s, err := simSpec(t, signed(0x810000))
	if err != nil {
		t.Fatal(err)
	}
	p := resolve(t, s)
	block, auth, authorKey, err := p.LaunchIDBlock()
	if err != nil || !authorKey || p.Golden.IDBlock.GuestSVN != 5 {
		t.Fatalf("found author key %v, golden values %+v (%v)", authorKey, p.Golden.IDBlock, err)
	}
	b, err := measure.ParseIDBlock(block)
	if err != nil || b.LaunchDigest != p.Golden.LaunchDigests[0] {
		t.Fatalf("found ID block %+v (%v)", b, err)
	}
	a, err := measure.ParseIDAuth(auth)
	if err != nil || a.Verify(b) != nil {
		t.Errorf("the ID block does not hold (%v)", err)
	}
	_, s, err = simSpec(t, signed(measure.ResetEIP))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Resolve(t.Context(), s, ResolveOptions{}); err == nil || !strings.Contains(err.Error(), "found an ID block in an image without an SVSM") {
		t.Errorf("found %v", err)
	}
}
