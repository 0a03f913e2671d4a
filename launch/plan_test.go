package launch

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/evtpm/evtpm/attest"
	"github.com/evtpm/evtpm/launch/launchtest"
	"github.com/evtpm/evtpm/measure"
	"github.com/evtpm/evtpm/ovmf"
	"github.com/evtpm/evtpm/ovmf/ovmftest"
	"github.com/evtpm/evtpm/snpsim"
	"github.com/evtpm/evtpm/svsmimg"
)

// planDir is a folder with a spec's inputs, and the spec.
func planDir(t testing.TB, lines ...string) (dir string, s *Spec) {
	t.Helper()
	dir, path := launchtest.SpecDir(t, lines...)
	return dir, read(t, path)
}

// igvmDir is a folder with an SVSM image, and a spec that names it.
func igvmDir(t testing.TB, image []byte, lines ...string) (dir string, s *Spec) {
	t.Helper()
	dir, path := launchtest.IGVMSpecDir(t, image, lines...)
	return dir, read(t, path)
}

func read(t testing.TB, path string) *Spec {
	t.Helper()
	s, err := ReadSpec(path, SpecFileOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func resolve(t testing.TB, s *Spec) *Plan {
	t.Helper()
	p, err := Resolve(context.Background(), s, ResolveOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// TestResolve: a plan holds what its files held, and the digest of a launch with
// them.
func TestResolve(t *testing.T) {
	dir, s := planDir(t, "cpu: {model: EPYC-Milan, count: 3, guest_features: 0x21}", "platform: snp", "host_data: "+strings.Repeat("0a", 32))
	p := resolve(t, s)
	read := func(name string) []byte {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	hashes := &measure.KernelHashes{Kernel: sha256.Sum256(launchtest.Kernel()), Initrd: sha256.Sum256([]byte("initrd"))}
	hashes.Cmdline = sha256.Sum256([]byte("quiet loglevel=0\x00"))
	img, err := ovmf.Parse(read("OVMF.fd"))
	if err != nil {
		t.Fatal(err)
	}
	seq, err := img.Sequence(ovmf.LaunchOptions{VCPUs: 3, CPUSignature: 0xa00f11, GuestFeatures: 0x21, Hashes: hashes})
	if err != nil {
		t.Fatal(err)
	}
	digest, err := seq.LaunchDigest()
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]measure.Digest{digest}, p.Golden.LaunchDigests); d != "" {
		t.Errorf("launch digests differ (-want +got):\n%s", d)
	}
	if d := cmp.Diff(hashes, p.Hashes); d != "" {
		t.Errorf("kernel hashes differ (-want +got):\n%s", d)
	}
	g := p.Golden
	if g.Name != "demo" || g.Platform != PlatformSNP || g.HostProfile != ProfileKVM || g.Policy != 0x30000 || !slices.Equal(g.HostData, s.HostData) || g.IDBlock != nil {
		t.Errorf("found golden values %+v", g)
	}
	var names []string
	for _, in := range p.Inputs() {
		names = append(names, in.Name)
	}
	if d := cmp.Diff([]string{"firmware", "kernel", "initrd"}, names); d != "" {
		t.Errorf("inputs differ (-want +got):\n%s", d)
	}
	want := []measure.GoldenInput{
		{Name: "firmware", SHA256: sum(read("OVMF.fd"))},
		{Name: "kernel", SHA256: hashes.Kernel[:]},
		{Name: "initrd", SHA256: hashes.Initrd[:]},
		{Name: "cmdline", Value: "quiet loglevel=0"},
		{Name: "kernel_hashes", Value: "on"},
		{Name: "cpu_model", Value: "EPYC-Milan"},
		{Name: "cpu_count", Value: "3"},
		{Name: "guest_features", Value: "0x21"},
		{Name: "memory", Value: "256M"},
	}
	if d := cmp.Diff(want, g.Inputs); d != "" {
		t.Errorf("inputs of the golden values differ (-want +got):\n%s", d)
	}
	pcrs, err := measure.PredictDirectBoot(measure.PCRInputs{Bank: "sha256", Kernel: launchtest.Kernel(), Initrd: []byte("initrd"), Cmdline: "quiet loglevel=0"})
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(pcrs, g.PCRs); d != "" {
		t.Errorf("PCRs differ (-want +got):\n%s", d)
	}
	if _, err := g.Encode(); err != nil {
		t.Error(err)
	}
}

// TestResolvePCRs: what the PCRs are predicted from, also without kernel hashes,
// initrd or command line, and that there are none without a kernel.
func TestResolvePCRs(t *testing.T) {
	bzImage := launchtest.Kernel()
	bzImage = append(bzImage, make([]byte, 0x400)...)
	copy(bzImage[0x202:], "HdrS\x0c\x02")
	bzImage[0x211] = 1    // loaded high
	bzImage[0x236] = 0x02 // can be loaded above 4 GiB
	predict := func(in measure.PCRInputs) *measure.GoldenPCRs {
		pcrs, err := measure.PredictDirectBoot(in)
		if err != nil {
			t.Fatal(err)
		}
		return pcrs
	}
	for name, c := range map[string]struct {
		lines []string
		want  *measure.GoldenPCRs
	}{
		"sim":     {nil, predict(measure.PCRInputs{Bank: "sha256", Kernel: bzImage, Initrd: []byte("initrd"), Cmdline: "quiet loglevel=0", MemoryBytes: 256 << 20})},
		"no hash": {[]string{"kernel_hashes: off"}, predict(measure.PCRInputs{Bank: "sha256", Kernel: bzImage, Initrd: []byte("initrd"), Cmdline: "quiet loglevel=0", MemoryBytes: 256 << 20})},
		"sha384":  {[]string{"vtpm: {pcr_bank: sha384}", "memory: 1G"}, predict(measure.PCRInputs{Bank: "sha384", Kernel: bzImage, Initrd: []byte("initrd"), Cmdline: "quiet loglevel=0", MemoryBytes: 1 << 30})},
		"snp":     {[]string{"platform: snp"}, predict(measure.PCRInputs{Bank: "sha256", Kernel: bzImage, Initrd: []byte("initrd"), Cmdline: "quiet loglevel=0"})},
		"bare":    {[]string{"platform: snp", "cmdline: ''"}, predict(measure.PCRInputs{Bank: "sha256", Kernel: bzImage})},
	} {
		dir, s := planDir(t, c.lines...)
		launchtest.Write(t, filepath.Join(dir, "vmlinuz"), bzImage)
		if name == "bare" {
			s.Initrd, s.src = "", nil // as if the line were not there
		}
		if d := cmp.Diff(c.want, resolve(t, s).Golden.PCRs); d != "" {
			t.Errorf("%s: PCRs differ (-want +got):\n%s", name, d)
		}
	}
	_, s := planDir(t)
	s.src, s.Kernel, s.Initrd, s.Cmdline, s.KernelHashes = nil, "", "", "", Off
	if p := resolve(t, s); p.Golden.PCRs != nil {
		t.Errorf("found PCRs %+v without a kernel", p.Golden.PCRs)
	}
}

// TestResolveUnified: a unified kernel image's command line is in PCR 12, which must
// be quoted then.
func TestResolveUnified(t *testing.T) {
	const headers, section = 0x200, 0x58 + 112
	inner := launchtest.Kernel()
	image := append(launchtest.Kernel()[:headers], inner...)
	copy(image[section:], ".linux\x00\x00")
	binary.LittleEndian.PutUint32(image[section+8:], uint32(len(inner)))
	binary.LittleEndian.PutUint32(image[section+16:], uint32(len(inner)))
	for pcrs, want := range map[string]string{
		"[4, 9, 12]": "",
		"[4, 9]":     "attestation.pcrs: found no PCR 12, expected it with the kernel",
	} {
		dir, s := planDir(t, "attestation: {pcrs: "+pcrs+"}")
		launchtest.Write(t, filepath.Join(dir, "vmlinuz"), image)
		s.Initrd, s.src = "", nil
		p, err := Resolve(t.Context(), s, ResolveOptions{})
		if err != nil {
			if want == "" || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: found %v, expected %q", pcrs, err, want)
			}
			continue
		}
		defer p.Close()
		if v := p.Golden.PCRs.Values; want != "" || len(v) != 2 || v[0].PCR != 4 || v[1].PCR != 12 {
			t.Errorf("%s: found %+v, expected %q", pcrs, v, want)
		}
	}
}

func sum(data []byte) measure.HexBytes {
	h := sha256.Sum256(data)
	return h[:]
}

// TestResolveSim: on the simulated platform the simulated SVSM is measured too,
// last before the VMSAs.
func TestResolveSim(t *testing.T) {
	_, s := planDir(t)
	sim := resolve(t, s)
	_, s = planDir(t, "platform: snp")
	snp := resolve(t, s)
	if d := cmp.Diff(append(slices.Clone(snp.Sequence.Steps), snpsim.SVSMStep()), sim.Sequence.Steps); d != "" {
		t.Errorf("steps differ (-want +got):\n%s", d)
	}
	if d := cmp.Diff(snp.Sequence.VMSAs, sim.Sequence.VMSAs); d != "" {
		t.Errorf("VMSAs differ (-want +got):\n%s", d)
	}
	digest, err := sim.Sequence.LaunchDigest()
	if err != nil || digest != sim.Golden.LaunchDigests[0] || digest == snp.Golden.LaunchDigests[0] {
		t.Errorf("found digest %s (%v), golden %s on sim and %s on snp", digest, err, sim.Golden.LaunchDigests, snp.Golden.LaunchDigests)
	}
}

// TestResolveDigestDependsOn: what changes the launch digest, and what does not.
func TestResolveDigestDependsOn(t *testing.T) {
	digest := func(lines ...string) measure.Digest {
		_, s := planDir(t, append([]string{"platform: snp"}, lines...)...)
		return resolve(t, s).Golden.LaunchDigests[0]
	}
	base := digest()
	for _, line := range []string{"cpu: {count: 2}", "cpu: {model: EPYC-Rome}", "cpu: {guest_features: 0x21}", "cmdline: quiet", "cpu: {model: host, signature: 0xa20f10}"} {
		if digest(line) == base {
			t.Errorf("%s: the launch digest stays the same", line)
		}
	}
	for _, line := range []string{"memory: 512M", "policy: 0x20000", "host_data: " + strings.Repeat("01", 32), "name: other", "rng: true", "cpu: {model: EPYC-v1}"} {
		if digest(line) != base {
			t.Errorf("%s: the launch digest changes", line)
		}
	}
	off := digest("kernel_hashes: off")
	if off == base {
		t.Error("kernel_hashes off: the launch digest stays the same")
	}
	if digest("kernel_hashes: off", "cmdline: other") != off {
		t.Error("without kernel hashes the command line changes the launch digest")
	}
}

// TestResolveRefuses: every missing or wrong file is reported at its line, all of
// them at once where they can be known, and nothing stays open.
func TestResolveRefuses(t *testing.T) {
	plain := ovmftest.AmdSev()
	plain.Entries = slices.DeleteFunc(plain.Entries, func(e ovmftest.Entry) bool { return e.GUID == ovmftest.HashTable })
	for name, c := range map[string]struct {
		lines []string
		spoil func(dir string)
		want  []string
	}{
		"several missing": {
			spoil: func(dir string) {
				os.Remove(filepath.Join(dir, "OVMF.fd"))
				os.Remove(filepath.Join(dir, "initrd.cpio"))
			},
			want: []string{"a.yaml:4: firmware.path: ", "OVMF.fd: no such file", "a.yaml:6: initrd: ", "initrd.cpio: no such file"},
		},
		"empty kernel": {
			spoil: func(dir string) { launchtest.Write(t, filepath.Join(dir, "vmlinuz"), nil) },
			want:  []string{"a.yaml:5: kernel: ", "found an empty file"},
		},
		"firmware is something else": {
			spoil: func(dir string) { launchtest.Write(t, filepath.Join(dir, "OVMF.fd"), make([]byte, 65536)) },
			want:  []string{"a.yaml:4: firmware.path: ", "OVMF.fd: firmware has no table of GUIDs"},
		},
		"firmware without metadata": {
			lines: []string{"kernel_hashes: off"},
			spoil: func(dir string) {
				i := ovmftest.AmdSev()
				i.Metadata = nil
				i.Entries = slices.DeleteFunc(i.Entries, func(e ovmftest.Entry) bool { return e.GUID == ovmftest.SEVMetadata })
				launchtest.Write(t, filepath.Join(dir, "OVMF.fd"), ovmftest.Build(i))
			},
			want: []string{"a.yaml:4: firmware.path: ", "firmware has no SEV metadata"},
		},
		"I-10 kernel hashes without a place for them": {
			spoil: func(dir string) { launchtest.Write(t, filepath.Join(dir, "OVMF.fd"), ovmftest.Build(plain)) },
			want:  []string{"a.yaml:4: firmware.path: ", "no SEV hash table area", "AmdSev", "or set kernel_hashes: off, then the PCRs alone bind the kernel"},
		},
		"kernel is no kernel": {
			spoil: func(dir string) { launchtest.Write(t, filepath.Join(dir, "vmlinuz"), []byte("text")) },
			want:  []string{"a.yaml:5: kernel: ", "vmlinuz: predicting PCRs: kernel: found no PE image"},
		},
		"policy that checks nothing": {
			lines: []string{"attestation: {policy: p.yaml}"},
			spoil: func(dir string) { launchtest.Write(t, filepath.Join(dir, "p.yaml"), []byte("version: 1\n")) },
			want:  []string{"a.yaml:9: attestation.policy: ", "p.yaml"},
		},
		"bundle that is none": {
			lines: []string{"attestation: {bundle: b.pem}"},
			spoil: func(dir string) { launchtest.Write(t, filepath.Join(dir, "b.pem"), []byte("text")) },
			want:  []string{"a.yaml:9: attestation.bundle: ", "b.pem: "},
		},
		"no bundle": {
			lines: []string{"attestation: {bundle: b.pem}"},
			spoil: func(dir string) {},
			want:  []string{"a.yaml:9: attestation.bundle: ", "b.pem: no such file"},
		},
		"ID key missing": {
			lines: []string{"id_block: {id_key: id.pem, author_key: author.pem}"},
			spoil: func(dir string) { launchtest.Write(t, filepath.Join(dir, "author.pem"), []byte("x")) },
			want:  []string{"a.yaml:9: id_block.id_key: ", "id.pem: no such file", "a.yaml:9: id_block.author_key: ", "author.pem: private key: found PEM blocks"},
		},
		"ID key of another curve": {
			lines: []string{"id_block: {id_key: id.pem}"},
			spoil: func(dir string) {
				k, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
				der, _ := x509.MarshalECPrivateKey(k)
				launchtest.Write(t, filepath.Join(dir, "id.pem"), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}))
			},
			want: []string{"a.yaml:9: id_block.id_key: ", "found curve P-256, expected P-384"},
		},
		"ID block of another size": {
			lines: []string{"id_block: {block: b, auth: a}"},
			spoil: func(dir string) {
				launchtest.Write(t, filepath.Join(dir, "b"), make([]byte, 95))
				launchtest.Write(t, filepath.Join(dir, "a"), []byte(base64.StdEncoding.EncodeToString(make([]byte, 4095))))
			},
			want: []string{"id_block.block: ", "found 95 bytes, expected 96, or their base64", "id_block.auth: ", "expected 4096, or their base64"},
		},
		"ID block of zeros": {
			lines: []string{"id_block: {block: b, auth: a}"},
			spoil: func(dir string) {
				launchtest.Write(t, filepath.Join(dir, "b"), make([]byte, 96))
				launchtest.Write(t, filepath.Join(dir, "a"), make([]byte, 4096))
			},
			want: []string{"id_block.block: ID block: found version 0, expected 1", "id_block.auth: "},
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir, s := planDir(t, c.lines...)
			c.spoil(dir)
			before := openFiles(t)
			p, err := Resolve(t.Context(), s, ResolveOptions{})
			if err == nil || p != nil {
				t.Fatalf("found plan %v and error %v", p, err)
			}
			for _, want := range c.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("found %v, expected %q in it", err, want)
				}
			}
			var field *FieldError
			if !errors.As(err, &field) {
				t.Errorf("found a %T, expected a *FieldError in it", err)
			}
			if after := openFiles(t); after != before {
				t.Errorf("found %d open descriptors, expected %d", after, before)
			}
		})
	}
	t.Run("invalid spec", func(t *testing.T) {
		_, s := planDir(t)
		s.CPU.Count = 0
		if _, err := Resolve(t.Context(), s, ResolveOptions{}); err == nil || !strings.Contains(err.Error(), "cpu.count") {
			t.Errorf("found %v, expected an error about cpu.count", err)
		}
	})
	t.Run("cancelled", func(t *testing.T) {
		_, s := planDir(t)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		before := openFiles(t)
		if _, err := Resolve(ctx, s, ResolveOptions{}); !errors.Is(err, context.Canceled) {
			t.Errorf("found %v, expected context.Canceled", err)
		}
		if after := openFiles(t); after != before {
			t.Errorf("found %d open descriptors, expected %d", after, before)
		}
	})
}

// TestPlanFilesClosed: a closed plan holds nothing open.
func TestPlanFilesClosed(t *testing.T) {
	_, s := planDir(t)
	before := openFiles(t)
	for range 20 {
		p, err := Resolve(t.Context(), s, ResolveOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(p.Close(), p.Close()); err != nil {
			t.Fatal(err)
		}
	}
	if after := openFiles(t); after != before {
		t.Errorf("found %d open descriptors, expected %d", after, before)
	}
}

// TestResolvePolicy: the verification policy is an input like others, pinned and
// handed over.
func TestResolvePolicy(t *testing.T) {
	dir, s := planDir(t, "attestation: {policy: p.yaml}")
	if _, err := Resolve(t.Context(), s, ResolveOptions{}); err == nil || !strings.Contains(err.Error(), "a.yaml:9: attestation.policy: ") {
		t.Errorf("found %v, expected the policy to be missing", err)
	}
	text := attest.DefaultPolicyYAML()
	launchtest.Write(t, filepath.Join(dir, "p.yaml"), text)
	p := resolve(t, s)
	if p.Policy == nil || p.Policy.SHA256 != sha256.Sum256(text) {
		t.Fatalf("found policy %v", p.Policy)
	}
	lock := p.Lock()
	launchtest.Write(t, filepath.Join(dir, "p.yaml"), append(text, '\n'))
	if _, err := Resolve(t.Context(), s, ResolveOptions{Frozen: lock}); err == nil || !strings.HasPrefix(err.Error(), "policy differs from the lock: ") {
		t.Errorf("found %v, expected the policy to differ", err)
	}
}

// TestResolveBundle: so are certificates.
func TestResolveBundle(t *testing.T) {
	dir, s := planDir(t, "attestation: {bundle: b.pem}")
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: attest.AMDCertificates()[0].Raw})
	launchtest.Write(t, filepath.Join(dir, "b.pem"), text)
	p := resolve(t, s)
	if p.Bundle == nil || p.Bundle.SHA256 != sha256.Sum256(text) || !slices.Contains(p.Inputs(), p.Bundle) {
		t.Fatalf("found bundle %v", p.Bundle)
	}
}

// TestIDBlock: the block names this launch, and its signatures hold.
func TestIDBlock(t *testing.T) {
	dir, s := planDir(t, "id_block: {id_key: id.pem, author_key: author.pem, family_id: 000102030405060708090a0b0c0d0e0f, image_id: ffffffffffffffffffffffffffffffff, svn: 7}", "policy: {abi_major: 1}")
	idKey, authorKey := launchtest.Key(t, filepath.Join(dir, "id.pem")), launchtest.Key(t, filepath.Join(dir, "author.pem"))
	p := resolve(t, s)
	block, err := measure.ParseIDBlock(p.IDBlock)
	if err != nil {
		t.Fatal(err)
	}
	want := &measure.IDBlock{LaunchDigest: p.Golden.LaunchDigests[0], GuestSVN: 7, Policy: 0x30100}
	copy(want.FamilyID[:], s.IDBlock.FamilyID)
	copy(want.ImageID[:], s.IDBlock.ImageID)
	if d := cmp.Diff(want, block); d != "" {
		t.Errorf("ID block differs (-want +got):\n%s", d)
	}
	auth, err := measure.ParseIDAuth(p.IDAuth)
	if err != nil {
		t.Fatal(err)
	}
	if err := auth.Verify(block); err != nil {
		t.Error(err)
	}
	if !auth.IDKey.Equal(&idKey.PublicKey) || !auth.AuthorKey.Equal(&authorKey.PublicKey) || !p.AuthorKey {
		t.Error("keys of the ID authentication information are not those of the spec")
	}
	idDigest, _ := measure.IDKeyDigest(&idKey.PublicKey)
	authorDigest, _ := measure.IDKeyDigest(&authorKey.PublicKey)
	golden := &measure.GoldenIDBlock{FamilyID: s.IDBlock.FamilyID, ImageID: s.IDBlock.ImageID, GuestSVN: 7, IDKeyDigest: idDigest, AuthorKeyDigest: &authorDigest}
	if d := cmp.Diff(golden, p.Golden.IDBlock); d != "" {
		t.Errorf("golden values differ (-want +got):\n%s", d)
	}
	if again := resolve(t, s); !slices.Equal(again.IDAuth, p.IDAuth) {
		t.Error("two resolutions sign differently: not deterministic")
	}
	if data, _, err := p.Handover(); err != nil || strings.Contains(string(data), "PRIVATE KEY") {
		t.Errorf("the handed-over plan holds a private key (%v)", err)
	}

	// The same block, ready made, raw and in base64.
	encoded := base64.StdEncoding.EncodeToString(p.IDAuth)
	for name, files := range map[string][2][]byte{
		"raw":    {p.IDBlock, p.IDAuth},
		"base64": {[]byte(base64.StdEncoding.EncodeToString(p.IDBlock) + "\n"), []byte(encoded[:76] + "\n" + encoded[76:])},
	} {
		dir, s := planDir(t, "id_block: {block: b, auth: a}", "policy: {abi_major: 1}")
		launchtest.Write(t, filepath.Join(dir, "b"), files[0])
		launchtest.Write(t, filepath.Join(dir, "a"), files[1])
		q := resolve(t, s)
		if !slices.Equal(q.IDBlock, p.IDBlock) || !slices.Equal(q.IDAuth, p.IDAuth) || !q.AuthorKey {
			t.Errorf("%s: the ready-made block is not taken as it is", name)
		}
	}

	// C-11: a block of another launch, of another policy, and one that was changed.
	dir, s = planDir(t, "id_block: {block: b, auth: a}", "cmdline: other")
	changed := slices.Clone(p.IDAuth)
	changed[0x50] ^= 1 // in the signature of the block
	launchtest.Write(t, filepath.Join(dir, "b"), p.IDBlock)
	launchtest.Write(t, filepath.Join(dir, "a"), changed)
	_, err = Resolve(t.Context(), s, ResolveOptions{})
	for _, want := range []string{"id_block.block: found launch digest", "id_block.block: found policy 0x30100, expected 0x30000", "id_block.auth: "} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("found %v, expected %q in it", err, want)
		}
	}
}

// TestIDBlockWithoutAuthorKey: the author key is optional.
func TestIDBlockWithoutAuthorKey(t *testing.T) {
	dir, s := planDir(t, "id_block: {id_key: id.pem}")
	launchtest.Key(t, filepath.Join(dir, "id.pem"))
	p := resolve(t, s)
	if p.AuthorKey || p.Golden.IDBlock.AuthorKeyDigest != nil {
		t.Errorf("found an author key in %+v", p.Golden.IDBlock)
	}
}

// TestResolveSVSM: an SVSM image is measured as its host profile says, by default
// the one that it was made for.
func TestResolveSVSM(t *testing.T) {
	for name, c := range map[string]struct {
		gpa     uint64
		lines   []string
		profile svsmimg.Profile
	}{
		"inferred kvm":        {measure.VMSAGPA, nil, svsmimg.ProfileKVM},
		"inferred kvm-direct": {0x20000, nil, svsmimg.ProfileKVMDirect},
		"kvm-bsp":             {measure.VMSAGPA, []string{"host_profile: kvm-bsp"}, svsmimg.ProfileKVMBSP},
	} {
		image := launchtest.IGVM(t, c.gpa, &svsmimg.GuestPolicy{Policy: 0x30000, Mask: 1})
		_, s := igvmDir(t, image, append(c.lines, "cpu: {count: 3}")...)
		p := resolve(t, s)
		f, err := svsmimg.Parse(image)
		if err != nil {
			t.Fatal(err)
		}
		seq, err := f.Sequence(svsmimg.SequenceOptions{Profile: c.profile, VCPUs: 3, CPUSignature: 0x800f12})
		if err != nil {
			t.Fatal(err)
		}
		want, err := seq.LaunchDigest()
		if err != nil {
			t.Fatal(err)
		}
		if got := p.Golden.LaunchDigests[0]; got != want {
			t.Errorf("%s: found digest %s, expected %s", name, got, want)
		}
		if p.HostProfile != string(c.profile) || p.Golden.HostProfile != p.HostProfile || p.Lock().HostProfile != p.HostProfile {
			t.Errorf("%s: found profiles %s, %s and %s", name, p.HostProfile, p.Golden.HostProfile, p.Lock().HostProfile)
		}
		if p.Image != nil || p.Hashes != nil || p.Firmware != nil || p.SVSM.SHA256 != sha256.Sum256(image) {
			t.Errorf("%s: found plan %+v", name, p)
		}
		want2 := []measure.GoldenInput{{Name: "svsm", SHA256: sum(image)}, {Name: "kernel_hashes", Value: "off"}, {Name: "cpu_model", Value: "EPYC-v4"}, {Name: "cpu_count", Value: "3"}, {Name: "memory", Value: "512M"}}
		if d := cmp.Diff(want2, p.Golden.Inputs); d != "" {
			t.Errorf("%s: inputs of the golden values differ (-want +got):\n%s", name, d)
		}
	}
}

// TestResolveSVSMRefuses: an image that does not fit the spec or the host is
// refused before anything starts.
func TestResolveSVSMRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		image []byte
		lines []string
		want  string
	}{
		"not IGVM":    {[]byte("text"), nil, `a.yaml:3: svsm.image: `},
		"I-21 policy": {launchtest.IGVM(t, measure.VMSAGPA, &svsmimg.GuestPolicy{Policy: 0xb0000, Mask: 1}), nil, "found guest policy 0xb0000 in the image, but 0x30000 in the spec; set policy: 0xb0000"},
		"profile":     {launchtest.IGVM(t, measure.VMSAGPA), []string{"host_profile: kvm-direct"}, "host profile kvm-direct: found the VMSA at"},
	} {
		_, s := igvmDir(t, c.image, c.lines...)
		before := openFiles(t)
		if _, err := Resolve(t.Context(), s, ResolveOptions{}); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: found %v, expected %q in it", name, err, c.want)
		}
		if after := openFiles(t); after != before {
			t.Errorf("%s: found %d open descriptors, expected %d", name, after, before)
		}
	}
}

// TestI21ImageIDBlock: an ID block in the image is held against the launch, and
// stands alone.
func TestI21ImageIDBlock(t *testing.T) {
	policy := &svsmimg.GuestPolicy{Policy: 0x30000, Mask: 1}
	_, s := igvmDir(t, launchtest.IGVM(t, measure.VMSAGPA, policy))
	digest := resolve(t, s).Golden.LaunchDigests[0]
	k := launchtest.Key(t, filepath.Join(t.TempDir(), "id.pem"))
	header := func(change func(*measure.IDBlock)) svsmimg.Header {
		block := &measure.IDBlock{LaunchDigest: digest, GuestSVN: 3, Policy: 0x30000}
		change(block)
		auth, err := measure.SignIDBlock(block, measure.SignOptions{IDKey: k})
		if err != nil {
			t.Fatal(err)
		}
		h, err := svsmimg.NewSNPIDBlock(1, block, auth)
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	image := func(change func(*measure.IDBlock)) []byte {
		return launchtest.IGVM(t, measure.VMSAGPA, policy, header(change))
	}
	_, s = igvmDir(t, image(func(*measure.IDBlock) {}))
	p := resolve(t, s)
	if p.IDBlock != nil || p.Golden.IDBlock == nil || p.Golden.IDBlock.GuestSVN != 3 || p.Golden.IDBlock.AuthorKeyDigest != nil {
		t.Errorf("found ID block %x, golden values %+v", p.IDBlock, p.Golden.IDBlock)
	}
	if p.Golden.LaunchDigests[0] != digest {
		t.Errorf("found digest %s, expected %s: the ID block is not measured", p.Golden.LaunchDigests[0], digest)
	}
	for name, c := range map[string]struct {
		image []byte
		lines []string
		want  string
	}{
		"other launch": {image(func(b *measure.IDBlock) { b.LaunchDigest[0] ^= 1 }), nil, "in its ID block, expected " + digest.String()},
		"other policy": {image(func(b *measure.IDBlock) { b.Policy = 0xb0000 }), nil, "signature"},
		"two blocks":   {image(func(*measure.IDBlock) {}), []string{"id_block: {id_key: x}"}, "id_block: found beside the ID block in "},
	} {
		_, s := igvmDir(t, c.image, c.lines...)
		if _, err := Resolve(t.Context(), s, ResolveOptions{}); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: found %v, expected %q in it", name, err, c.want)
		}
	}
}
