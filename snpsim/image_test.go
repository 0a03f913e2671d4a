package snpsim

import (
	"context"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/evtpm/evtpm/measure"
	"github.com/evtpm/evtpm/ovmf"
	"github.com/evtpm/evtpm/ovmf/ovmftest"
	"github.com/evtpm/evtpm/svsmimg"
)

// wrapped is an image of a firmware alone.
func wrapped(t testing.TB, firmware []byte) *svsmimg.File {
	t.Helper()
	r := &svsmimg.Recipe{Version: 1, Kind: svsmimg.KindWrap, Firmware: "OVMF.fd"}
	b, err := r.Build(func(string) ([]byte, error) { return firmware, nil })
	if err != nil {
		t.Fatal(err)
	}
	return b.File
}

// withSVSM is the image with two pages of an SVSM, one of them right behind the
// firmware, and its boot vCPU's VMSA at gpa.
func withSVSM(t testing.TB, f *svsmimg.File, gpa uint64) *svsmimg.File {
	t.Helper()
	out := *f
	out.Data = slices.Clone(f.Data)
	out.Headers = slices.Clone(f.Headers)
	at := uint32(len(out.Data))
	out.Data = append(out.Data, strings.Repeat("SVSM", 2*measure.PageSize/4)...)
	mask := f.Mask(svsmimg.PlatformSNP)
	first := slices.IndexFunc(out.Headers, func(h svsmimg.Header) bool { return h.Type() == svsmimg.TypePageData })
	out.Headers = slices.Insert(out.Headers, first,
		svsmimg.Header(&svsmimg.PageData{GPA: 0x10000, Mask: mask, Data: svsmimg.Blob{Offset: at, Size: measure.PageSize}}),
		svsmimg.Header(&svsmimg.PageData{GPA: 0x100000000, Mask: mask, Data: svsmimg.Blob{Offset: at + measure.PageSize, Size: measure.PageSize}}))
	vmsa, err := measure.VCPU{Features: 1, EIP: 0x10000}.VMSA()
	if err != nil {
		t.Fatal(err)
	}
	for i, h := range out.Headers {
		if c, ok := h.(*svsmimg.VPContext); ok && c.Mask&mask != 0 {
			context := *c
			context.GPA = gpa
			context.Data = svsmimg.Blob{Offset: uint32(len(out.Data)), Size: measure.PageSize}
			out.Headers[i] = &context
		}
	}
	out.Data = append(out.Data, vmsa.Page()...)
	encoded, err := out.Encode()
	if err != nil {
		t.Fatal(err)
	}
	back, err := svsmimg.Parse(encoded)
	if err != nil {
		t.Fatal(err)
	}
	return back
}

// launchOf is the launch of an image as a supervisor asks for it.
func launchOf(t testing.TB, f *svsmimg.File) *ImageLaunch {
	t.Helper()
	e, err := f.Extract()
	if err != nil {
		t.Fatal(err)
	}
	return &ImageLaunch{
		Sequence: func(vcpus int, signature uint32) (*measure.Sequence, error) {
			return f.Sequence(svsmimg.SequenceOptions{VCPUs: vcpus, CPUSignature: signature})
		},
		FirmwareSize: uint64(len(e.Firmware)),
		SVSM:         e.SVSM,
	}
}

func digestOf(t *testing.T, s *measure.Sequence) measure.Digest {
	t.Helper()
	d, err := s.LaunchDigest()
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// TestReadSequenceImage: of an IGVM file the headers say what is launched, and QEMU
// what lies in the memory that it was given.
func TestReadSequenceImage(t *testing.T) {
	// A size that -bios files do not have: QEMU holds zeros before it.
	i := ovmftest.AmdSev()
	i.Size = 100 << 10
	firmware := ovmftest.Build(i)
	plain := wrapped(t, firmware)
	for name, c := range map[string]struct {
		file *svsmimg.File
		svsm bool
	}{
		"firmware alone":               {plain, false},
		"SVSM":                         {withSVSM(t, plain, measure.VMSAGPA), true},
		"SVSM, its VMSA in the memory": {withSVSM(t, plain, 0x20000), true},
	} {
		t.Run(name, func(t *testing.T) {
			l := launchOf(t, c.file)
			if l.SVSM != c.svsm || l.FirmwareSize != uint64(len(firmware)) {
				t.Fatalf("found %+v", l)
			}
			want, err := l.Sequence(2, 0x800f12)
			if err != nil {
				t.Fatal(err)
			}
			hardware := digestOf(t, want)
			// Without an SVSM, nothing but the firmware is left, or the simulated SVSM's page
			// is not added.
			bare := *want
			if c.svsm {
				bare.Steps = slices.DeleteFunc(slices.Clone(want.Steps), func(s measure.Step) bool {
					return s.Type != measure.PageVMSA && (s.GPA < uint64(1<<32-len(firmware)) || s.GPA >= 1<<32)
				})
			}
			without := digestOf(t, &bare)
			if !c.svsm {
				want.Steps = append(want.Steps, SVSMStep())
			}
			good := digestOf(t, want)
			if (good == hardware) != c.svsm {
				t.Error("the simulated SVSM is measured beside an SVSM, or not without one")
			}
			read := func(change func(*fakeQEMU), o ReadOptions) (*measure.Sequence, error) {
				q := newFakeQEMU(make([]byte, 128<<10), 2)
				q.put(uint64(1<<32-len(firmware)), firmware...)
				if change != nil {
					change(q)
				}
				o.Dir, o.Image = t.TempDir(), l
				seq, err := ReadSequence(context.Background(), q, o)
				if left, _ := os.ReadDir(o.Dir); len(left) != 0 {
					t.Errorf("left behind: %v", left)
				}
				return seq, err
			}
			seq, err := read(nil, ReadOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if d := digestOf(t, seq); d != good {
				t.Errorf("found %s, expected %s\nfound %s\nexpected %s", d, good, summary(seq), summary(want))
			}
			if seq, err := read(nil, ReadOptions{NoSVSM: true}); err != nil || digestOf(t, seq) != without || without == good {
				t.Errorf("attack: no SVSM: found %v (%v), expected digest %s", summary(seq), err, without)
			}
			for name, change := range map[string]func(*fakeQEMU){
				"one bit of the firmware":  func(q *fakeQEMU) { q.put(0xffff0010, 0xfe) },
				"another firmware":         func(q *fakeQEMU) { q.put(uint64(1<<32-len(firmware)), make([]byte, len(firmware))...) },
				"start elsewhere":          func(q *fakeQEMU) { q.register = strings.Replace(q.register, "0000fff0", "00001000", 1) },
				"start in another segment": func(q *fakeQEMU) { q.register = strings.Replace(q.register, "f000 ffff0000", "0000 00000000", 1) },
				"a value in RAX":           func(q *fakeQEMU) { q.register = strings.Replace(q.register, "EAX=00000000", "EAX=00000001", 1) },
			} {
				if seq, err := read(change, ReadOptions{}); err != nil || digestOf(t, seq) == good {
					t.Errorf("%s: the launch digest is the same (%v)", name, err)
				}
			}
			// Memory that the firmware's page of zeros takes is the image's.
			for name, change := range map[string]func(*fakeQEMU){
				"junk where kernel hashes lie": func(q *fakeQEMU) { q.put(0x810000+4095, 1) },
				"one vCPU less":                func(q *fakeQEMU) { q.cpus, q.register = 1, fakeRegisters(1) },
				"another CPU model":            func(q *fakeQEMU) { q.register = strings.ReplaceAll(q.register, "00800f12", "00a00f11") },
			} {
				seq, err := read(change, ReadOptions{})
				if err != nil {
					t.Errorf("%s: %v", name, err)
					continue
				}
				// With an SVSM, only its host's KVM measures other vCPUs, and only the firmware
				// is held.
				measured := !c.svsm || name != "junk where kernel hashes lie" && c.file.InferProfile() == svsmimg.ProfileKVM
				if d := digestOf(t, seq); (d != good) != measured {
					t.Errorf("%s: found digest %s, that of the image is %s", name, d, good)
				}
			}
			if _, err := read(func(q *fakeQEMU) { q.regions = fakeRegions(64<<10, "pc.bios") }, ReadOptions{}); err == nil || !strings.Contains(err.Error(), "expected the 102400 of the image") {
				t.Errorf("a smaller firmware: found %v", err)
			}
			if _, err := read(func(q *fakeQEMU) { q.regions = fakeRegions(128<<10, "system.flash0") }, ReadOptions{}); err == nil {
				t.Error("flash: found no error")
			}
			if _, err := read(func(q *fakeQEMU) { q.fail = "pmemsave" }, ReadOptions{}); err == nil {
				t.Error("pmemsave fails: found no error")
			}
			// What the AMD-SP brings is not read.
			if seq, err := read(func(q *fakeQEMU) { q.put(0x80d000, 1); q.put(0x80e000, 1) }, ReadOptions{}); err != nil || digestOf(t, seq) != good {
				t.Errorf("junk where the secrets page will be: found %s (%v)", summary(seq), err)
			}
			// The image stays what it is, whatever QEMU holds.
			image, err := l.Sequence(2, 0x800f12)
			if err != nil {
				t.Fatal(err)
			}
			l.Sequence = func(int, uint32) (*measure.Sequence, error) { return image, nil }
			for name, change := range map[string]func(*fakeQEMU){
				"firmware":  func(q *fakeQEMU) { q.put(0xffff0010, 0xfe) },
				"registers": func(q *fakeQEMU) { q.register = strings.Replace(q.register, "0000fff0", "00001000", 1) },
			} {
				if _, err := read(change, ReadOptions{}); err != nil || digestOf(t, image) != hardware {
					t.Errorf("%s: the image was changed (%v)", name, err)
				}
			}
		})
	}
	if _, err := ovmf.Parse(firmware); err != nil {
		t.Fatal(err)
	}
}

// TestReadSequenceImageRefused: what has no launch, and what would take too many
// reads.
func TestReadSequenceImageRefused(t *testing.T) {
	q := newFakeQEMU(testImage(t), 1)
	many := &measure.Sequence{}
	for i := range uint64(maxReads + 1) {
		many.Steps = append(many.Steps, measure.Step{Type: measure.PageNormal, GPA: i * 2 * measure.PageSize, Size: measure.PageSize})
	}
	for want, seq := range map[string]*measure.Sequence{"more than 1024 pieces": many, "found no VMSA": {}} {
		q.register = strings.Replace(fakeRegisters(1), "0000fff0", "00001000", 1)
		l := &ImageLaunch{Sequence: func(int, uint32) (*measure.Sequence, error) { return seq, nil }, FirmwareSize: 4096}
		if _, err := ReadSequence(context.Background(), q, ReadOptions{Dir: t.TempDir(), Image: l}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("found %v, expected %q", err, want)
		}
	}
	// As many pieces as may be; and more steps than that in one piece, in any order.
	most := &measure.Sequence{Steps: many.Steps[:maxReads], VMSAs: []measure.Step{{Type: measure.PageVMSA, GPA: measure.VMSAGPA, Size: measure.PageSize}}}
	falling := &measure.Sequence{VMSAs: most.VMSAs}
	for i := range uint64(2 * maxReads) {
		falling.Steps = append(falling.Steps, measure.Step{Type: measure.PageNormal, GPA: (2*maxReads - i) * measure.PageSize, Size: measure.PageSize})
	}
	for name, seq := range map[string]*measure.Sequence{"most": most, "falling": falling} {
		q.register = fakeRegisters(1)
		l := &ImageLaunch{Sequence: func(int, uint32) (*measure.Sequence, error) { return seq, nil }, FirmwareSize: 4096}
		if _, err := ReadSequence(context.Background(), q, ReadOptions{Dir: t.TempDir(), Image: l}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	l := &ImageLaunch{Sequence: func(int, uint32) (*measure.Sequence, error) { return nil, os.ErrInvalid }, FirmwareSize: 4096}
	if _, err := ReadSequence(context.Background(), q, ReadOptions{Dir: t.TempDir(), Image: l}); err == nil {
		t.Error("an image without a launch: found no error")
	}
}
