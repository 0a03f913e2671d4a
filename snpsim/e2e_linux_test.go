package snpsim

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/evtpm/evtpm/attest"
	"github.com/evtpm/evtpm/attest/evidence"
	"github.com/evtpm/evtpm/initramfs"
	"github.com/evtpm/evtpm/measure"
	"github.com/evtpm/evtpm/ovmf"
	"github.com/evtpm/evtpm/qmp"
	"github.com/evtpm/evtpm/svsmimg"
)

const debianOVMF = "/usr/share/ovmf/OVMF.fd"

// A vm is a real QEMU.
type vm struct {
	*qmp.Client
	dir string
	cmd *exec.Cmd
}

// startQEMU starts QEMU, stopped before the first instruction.
func startQEMU(t testing.TB, args ...string) *vm {
	t.Helper()
	binary := program(t, "qemu-system-x86_64")
	dir := shortDir(t)
	v := &vm{dir: dir}
	monitor, file, err := socketPair("monitor")
	if err != nil {
		t.Fatal(err)
	}
	// Never KVM: a /dev/kvm that opens is no KVM that works.
	v.cmd = exec.Command(binary, append([]string{
		"-machine", "q35,smm=off,accel=tcg", "-m", "256", "-no-user-config", "-nodefaults", "-display", "none", "-S",
		"-chardev", "socket,id=monitor,fd=3", "-mon", "chardev=monitor,mode=control",
	}, args...)...)
	v.cmd.ExtraFiles = []*os.File{file}
	var said bytes.Buffer
	v.cmd.Stderr = &said
	err = v.cmd.Start()
	file.Close()
	if err != nil {
		t.Fatal(err)
	}
	exited := make(chan struct{})
	go func() {
		v.cmd.Wait()
		close(exited)
	}()
	t.Cleanup(func() {
		v.cmd.Process.Kill()
		<-exited
		if said.Len() > 0 {
			t.Logf("QEMU said: %s", said.String())
		}
	})
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if v.Client, err = qmp.NewClient(ctx, monitor); err != nil {
		v.cmd.Process.Kill()
		<-exited
		t.Fatalf("%v; QEMU said: %s", err, said.String())
	}
	t.Cleanup(func() { v.Close() })
	return v
}

// readFirmware skips a test whose firmware is not there.
func readFirmware(t testing.TB, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Skipf("needs a firmware: %v; scripts/setup test brings it", err)
	}
	return data
}

// What is read from a real QEMU launches to the digest of the file that QEMU was
// given, by ovmf's own sequence; from another file, to another.
func TestE2EReadSequence(t *testing.T) {
	check := func(t *testing.T, v *vm, image []byte, o ovmf.LaunchOptions) measure.Digest {
		t.Helper()
		seq, err := ReadSequence(context.Background(), v, ReadOptions{Dir: v.dir, GuestFeatures: o.GuestFeatures})
		if err != nil {
			t.Fatal(err)
		}
		got, err := seq.LaunchDigest()
		if err != nil {
			t.Fatal(err)
		}
		img, err := ovmf.Parse(image)
		if err != nil {
			t.Fatal(err)
		}
		want, err := img.Sequence(o)
		if err != nil {
			t.Fatal(err)
		}
		want.Steps = append(want.Steps, SVSMStep())
		if d, err := want.LaunchDigest(); err != nil || d != got {
			t.Errorf("QEMU holds %s, the file gives %s (%v)\nfound %s\nexpected %s", got, d, err, summary(seq), summary(want))
		}
		return got
	}
	signature := func(t *testing.T, model string) uint32 {
		t.Helper()
		sig, err := measure.CPUSignature(model)
		if err != nil {
			t.Fatal(err)
		}
		return sig
	}

	t.Run("Debian OVMF 2022.11", func(t *testing.T) {
		image := readFirmware(t, debianOVMF)
		v := startQEMU(t, "-bios", debianOVMF, "-cpu", "EPYC-v4", "-smp", "2")
		good := check(t, v, image, ovmf.LaunchOptions{VCPUs: 2, CPUSignature: signature(t, "EPYC-v4")})

		// A byte that is neither code nor table.
		image[0] ^= 1
		swapped := filepath.Join(shortDir(t), "swapped.fd")
		if err := os.WriteFile(swapped, image, 0o600); err != nil {
			t.Fatal(err)
		}
		v = startQEMU(t, "-bios", swapped, "-cpu", "EPYC-v4", "-smp", "2")
		if bad := check(t, v, image, ovmf.LaunchOptions{VCPUs: 2, CPUSignature: signature(t, "EPYC-v4")}); bad == good {
			t.Error("swapped firmware has the same launch digest")
		}
	})
	t.Run("firmware out of an IGVM file", func(t *testing.T) {
		l := launchOf(t, wrapped(t, readFirmware(t, debianOVMF)))
		digest := func(firmware string) measure.Digest {
			t.Helper()
			v := startQEMU(t, "-bios", firmware, "-cpu", "EPYC-v4", "-smp", "2")
			seq, err := ReadSequence(context.Background(), v, ReadOptions{Dir: v.dir, Image: l})
			if err != nil {
				t.Fatal(err)
			}
			return digestOf(t, seq)
		}
		want, err := l.Sequence(2, signature(t, "EPYC-v4"))
		if err != nil {
			t.Fatal(err)
		}
		want.Steps = append(want.Steps, SVSMStep())
		if got := digest(debianOVMF); got != digestOf(t, want) {
			t.Errorf("QEMU holds %s, the image gives %s", got, digestOf(t, want))
		}
		image := readFirmware(t, debianOVMF)
		image[0] ^= 1
		swapped := filepath.Join(shortDir(t), "swapped.fd")
		if err := os.WriteFile(swapped, image, 0o600); err != nil {
			t.Fatal(err)
		}
		if digest(swapped) == digestOf(t, want) {
			t.Error("swapped firmware has the same launch digest")
		}
	})
	t.Run("pages beside the firmware of an IGVM file", func(t *testing.T) {
		f := *wrapped(t, readFirmware(t, debianOVMF))
		page := bytes.Repeat([]byte("page"), measure.PageSize/4)
		at := slices.IndexFunc(f.Headers, func(h svsmimg.Header) bool { return h.Type() == svsmimg.TypePageData })
		f.Headers = slices.Insert(slices.Clone(f.Headers), at, svsmimg.Header(&svsmimg.PageData{
			GPA: 0x900000, Mask: f.Mask(svsmimg.PlatformSNP), Data: svsmimg.Blob{Offset: uint32(len(f.Data)), Size: measure.PageSize},
		}))
		f.Data = append(slices.Clone(f.Data), page...)
		l := launchOf(t, &f)
		want, err := l.Sequence(1, signature(t, "EPYC-v4"))
		if err != nil {
			t.Fatal(err)
		}
		want.Steps = append(want.Steps, SVSMStep())
		name := filepath.Join(shortDir(t), "pages.bin")
		for _, changed := range []bool{false, true} {
			if changed {
				page[0] ^= 1
			}
			if err := os.WriteFile(name, page, 0o600); err != nil {
				t.Fatal(err)
			}
			v := startQEMU(t, "-bios", debianOVMF, "-cpu", "EPYC-v4", "-device", "loader,file="+name+",addr=0x900000,force-raw=on")
			seq, err := ReadSequence(context.Background(), v, ReadOptions{Dir: v.dir, Image: l})
			if err != nil {
				t.Fatal(err)
			}
			if (digestOf(t, seq) == digestOf(t, want)) == changed {
				t.Errorf("changed %t: QEMU holds %s, the image gives %s", changed, digestOf(t, seq), digestOf(t, want))
			}
		}
	})
	t.Run("boot vCPU starts elsewhere", func(t *testing.T) {
		readFirmware(t, debianOVMF)
		digest := func(args ...string) measure.Digest {
			t.Helper()
			v := startQEMU(t, append([]string{"-bios", debianOVMF, "-cpu", "qemu64"}, args...)...)
			seq, err := ReadSequence(context.Background(), v, ReadOptions{Dir: v.dir})
			if err != nil {
				t.Fatal(err)
			}
			d, err := seq.LaunchDigest()
			if err != nil {
				t.Fatal(err)
			}
			return d
		}
		if digest() == digest("-device", "loader,addr=0x1000,cpu-num=0") {
			t.Error("the launch digest is the same")
		}
	})
	t.Run("flash is refused", func(t *testing.T) {
		const flash = "/usr/share/OVMF/OVMF_CODE_4M.fd"
		readFirmware(t, flash)
		v := startQEMU(t, "-drive", "if=pflash,unit=0,format=raw,readonly=on,file="+flash)
		_, err := ReadSequence(context.Background(), v, ReadOptions{Dir: v.dir})
		if err == nil || !strings.Contains(err.Error(), "system.flash0") {
			t.Errorf("found %v", err)
		}
	})
	t.Run("a VM that ran is refused", func(t *testing.T) {
		readFirmware(t, debianOVMF)
		v := startQEMU(t, "-bios", debianOVMF)
		for _, f := range []func(context.Context) error{v.Cont, v.Stop} {
			if err := f(context.Background()); err != nil {
				t.Fatal(err)
			}
		}
		_, err := ReadSequence(context.Background(), v, ReadOptions{Dir: v.dir})
		if err == nil || !strings.Contains(err.Error(), "before its first instruction only") {
			t.Errorf("found %v", err)
		}
	})
	t.Run("AmdSev with kernel hashes", func(t *testing.T) {
		path := filepath.Join(testdata(t), "fixtures", "firmware", "sid-OVMF.amdsev.fd")
		image := readFirmware(t, path)
		img, err := ovmf.Parse(image)
		if err != nil {
			t.Fatal(err)
		}
		cmdline, err := measure.HashCmdline("quiet")
		if err != nil {
			t.Fatal(err)
		}
		hashes := &measure.KernelHashes{Kernel: sha256.Sum256([]byte("kernel")), Initrd: sha256.Sum256(nil), Cmdline: cmdline}
		gpa, page, err := img.HashesPage(hashes)
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(shortDir(t), "hashes")
		if err := os.WriteFile(file, page, 0o600); err != nil {
			t.Fatal(err)
		}
		loader := fmt.Sprintf("loader,file=%s,addr=%#x,force-raw=on", file, gpa)
		model := ovmf.LaunchOptions{VCPUs: 1, CPUSignature: signature(t, "EPYC-Milan"), GuestFeatures: 0x21}
		without := check(t, startQEMU(t, "-bios", path, "-cpu", "EPYC-Milan"), image, model)
		model.Hashes = hashes
		if with := check(t, startQEMU(t, "-bios", path, "-cpu", "EPYC-Milan", "-device", loader), image, model); with == without {
			t.Error("kernel hashes do not change the launch digest")
		}
	})
}

// A real firmware starts with a TPM that the SVSM has started already, and
// measures into it.
func TestE2EFirmwareMeasures(t *testing.T) {
	readFirmware(t, debianOVMF)
	s := startSVSM(t, SVSMOptions{})
	v := startQEMU(t, "-bios", debianOVMF, "-cpu", "qemu64",
		"-chardev", "socket,id=tpm,path="+s.ControlSocket(), "-tpmdev", "emulator,id=tpm0,chardev=tpm", "-device", "tpm-crb,tpmdev=tpm0")
	seq, err := ReadSequence(context.Background(), v, ReadOptions{Dir: v.dir})
	if err != nil {
		t.Fatal(err)
	}
	sp, err := NewSP(testChip(t, "Genoa"), SPOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := sp.Launch(seq, LaunchParams{Policy: testPolicy}); err != nil {
		t.Fatal(err)
	}
	if err := s.Provision(context.Background(), sp); err != nil {
		t.Fatal(err)
	}
	if err := v.Cont(context.Background()); err != nil {
		t.Fatal(err)
	}

	// The firmware measures itself into PCR 0, in every bank, and the boot order
	// into PCR 1; the SVSM looks on through the same TPM.
	deadline := time.Now().Add(60 * time.Second)
	for {
		values := readPCRs(t, s, 0, 1, 7)
		if !allZeroPCRs(values) {
			t.Logf("PCR 0 %x", values[0])
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("PCRs are still %x", values)
		}
		time.Sleep(200 * time.Millisecond)
	}
	if _, report := readNV(t, s.tpm); len(report) != ReportSize {
		t.Errorf("found %d bytes in the NV index", len(report))
	}
	pid := s.Pid()
	if err := v.Quit(context.Background()); err != nil {
		t.Fatal(err)
	}
	if !gone(pid) {
		t.Error("the vTPM outlives QEMU")
	}
}

// readPCRs reads SHA-256 PCRs past the guest.
func readPCRs(t testing.TB, s *SVSM, pcrs ...uint) [][]byte {
	t.Helper()
	r, err := tpm2.PCRRead{PCRSelectionIn: tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{
		{Hash: tpm2.TPMAlgSHA256, PCRSelect: tpm2.PCClientCompatible.PCRs(pcrs...)},
	}}}.Execute(s.tpm)
	if err != nil {
		t.Fatal(err)
	}
	var out [][]byte
	for _, d := range r.PCRValues.Digests {
		out = append(out, d.Buffer)
	}
	return out
}

func allZeroPCRs(values [][]byte) bool {
	for _, v := range values {
		if len(bytes.Trim(v, "\x00")) > 0 {
			return false
		}
	}
	return true
}

// A reset of a real VM ends the vTPM, and not the VM.
func TestE2EReset(t *testing.T) {
	readFirmware(t, debianOVMF)
	resets := make(chan struct{}, 1)
	s := startSVSM(t, SVSMOptions{OnReset: func() { resets <- struct{}{} }})
	v := startQEMU(t, "-bios", debianOVMF,
		"-chardev", "socket,id=tpm,path="+s.ControlSocket(), "-tpmdev", "emulator,id=tpm0,chardev=tpm", "-device", "tpm-tis,tpmdev=tpm0")
	if err := s.Provision(context.Background(), launchedSP(t, testChip(t, "Genoa"), SPOptions{})); err != nil {
		t.Fatal(err)
	}
	if err := v.Cont(context.Background()); err != nil {
		t.Fatal(err)
	}
	if err := v.Execute(context.Background(), "system_reset", nil, nil); err != nil {
		t.Fatal(err)
	}
	select {
	case <-resets:
	case <-time.After(20 * time.Second):
		t.Fatal("the reset was not noticed")
	}
	if !gone(s.Pid()) {
		t.Error("the vTPM lives on")
	}
	// QEMU has survived it.
	if _, err := v.QueryStatus(context.Background()); err != nil {
		t.Error(err)
	}
}

// What scripts/setup puts where.
const kernelPath = "../build/kernel/vmlinuz"

// bootAgent returns an initramfs with the guest agent as /init.
func bootAgent(t testing.TB) []byte {
	t.Helper()
	name := filepath.Join(t.TempDir(), "agent")
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", name, "../cmd/evtpm-agent")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	agent, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := initramfs.Write(&out, append(initramfs.Base(), initramfs.File{Path: "/init", Mode: 0o755, Data: agent})); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// A whole first attestation, through a real firmware, kernel and agent, in each
// of the bindings. The same evidence fails where the platform lied.
func TestE2EFirstAttestation(t *testing.T) {
	image := readFirmware(t, debianOVMF)
	if _, err := os.Stat(kernelPath); err != nil {
		t.Skipf("needs a kernel: %v; scripts/setup test brings it", err)
	}
	initrd := filepath.Join(t.TempDir(), "initrd")
	if err := os.WriteFile(initrd, bootAgent(t), 0o600); err != nil {
		t.Fatal(err)
	}
	s := startSVSM(t, SVSMOptions{})
	agent := filepath.Join(shortDir(t), "agent.sock")
	port := filepath.Join(filepath.Dir(agent), "svsm.sock")
	v := startQEMU(t, "-bios", debianOVMF, "-cpu", "qemu64", "-kernel", kernelPath, "-initrd", initrd, "-append", "quiet loglevel=0",
		"-chardev", "socket,id=tpm,path="+s.ControlSocket(), "-tpmdev", "emulator,id=tpm0,chardev=tpm", "-device", "tpm-crb,tpmdev=tpm0",
		"-device", "virtio-serial-pci,id=serial0",
		"-chardev", "socket,id=agent,path="+agent+",server=on,wait=off", "-device", "virtserialport,bus=serial0.0,nr=1,chardev=agent,name=org.evtpm.agent.0",
		"-chardev", "socket,id=svsm,path="+port+",server=on,wait=off", "-device", "virtserialport,bus=serial0.0,nr=2,chardev=svsm,name=org.evtpm.svsm.0")
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	seq, err := ReadSequence(ctx, v, ReadOptions{Dir: v.dir})
	if err != nil {
		t.Fatal(err)
	}
	chip := testChip(t, "Turin")
	sp, err := NewSP(chip, SPOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := sp.Launch(seq, LaunchParams{Policy: testPolicy}); err != nil {
		t.Fatal(err)
	}
	if err := s.Provision(ctx, sp); err != nil {
		t.Fatal(err)
	}
	svsmPort, err := net.Dial("unix", port)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, svsmPort) }()
	if err := v.Cont(ctx); err != nil {
		t.Fatal(err)
	}

	// The golden values come from the file, and not from QEMU.
	img, err := ovmf.Parse(image)
	if err != nil {
		t.Fatal(err)
	}
	signature, err := measure.CPUSignature("qemu64")
	if err != nil {
		signature = 0x60fb1 // QEMU's qemu64 is no model that SEV-SNP starts with
	}
	plan, err := img.Sequence(ovmf.LaunchOptions{VCPUs: 1, CPUSignature: signature})
	if err != nil {
		t.Fatal(err)
	}
	withoutSVSM, err := plan.LaunchDigest()
	if err != nil {
		t.Fatal(err)
	}
	plan.Steps = append(plan.Steps, SVSMStep())
	digest, err := plan.LaunchDigest()
	if err != nil {
		t.Fatal(err)
	}
	golden := &measure.Golden{
		Schema: measure.GoldenSchema, Platform: "sim", HostProfile: "kvm",
		LaunchDigests: []measure.Digest{digest}, Policy: testPolicy,
	}
	ark, err := x509.ParseCertificate(chip.ark)
	if err != nil {
		t.Fatal(err)
	}
	for _, binding := range []string{evidence.BindingSVSM, evidence.BindingSVSMServices, evidence.BindingNV} {
		conn, err := net.Dial("unix", agent)
		if err != nil {
			t.Fatal(err)
		}
		session, err := attest.Challenge(ctx, conn, attest.ChallengeOptions{Binding: binding})
		conn.Close()
		if err != nil {
			t.Fatalf("%s: %v", binding, err)
		}
		// The guest's driver learns of the end of a connection later than of data
		// on the next.
		time.Sleep(time.Second)
		ev := session.Evidence
		if binding == evidence.BindingNV && len(ev.Certificates) == 0 {
			// NV holds the report alone: certificates come from elsewhere.
			ev.Certificates = chip.CertTable()
		}
		if !bytes.Equal(ev.EKPublic, s.EKPublic()) {
			t.Errorf("%s: the guest has another EK", binding)
		}
		if len(ev.EventLog) < 1000 {
			t.Errorf("%s: found an event log of %d bytes", binding, len(ev.EventLog))
		}
		judge := func(change func(*measure.Golden, *attest.Options)) *attest.Verdict {
			t.Helper()
			g := *golden
			o := attest.Options{SimRoots: []*x509.Certificate{ark}, ChipID: chip.ID[:], Live: session}
			if change != nil {
				o.Live = nil // a session is good for one verdict
				change(&g, &o)
			}
			verdict, err := attest.Verify(ctx, ev, &g, o)
			if err != nil {
				t.Fatalf("%s: %v", binding, err)
			}
			return verdict
		}
		if verdict := judge(nil); !verdict.Trusted() || verdict.Platform != attest.PlatformSim {
			t.Errorf("%s: %s on %q: %+v", binding, verdict.Result, verdict.Platform, verdict.Failures())
		}
		for name, change := range map[string]func(*measure.Golden, *attest.Options){
			"launch without the SVSM": func(g *measure.Golden, _ *attest.Options) { g.LaunchDigests = []measure.Digest{withoutSVSM} },
			"another chip":            func(_ *measure.Golden, o *attest.Options) { o.ChipID = testReportData[:] },
			"AMD's roots":             func(_ *measure.Golden, o *attest.Options) { o.SimRoots = nil },
		} {
			if judge(change).Trusted() {
				t.Errorf("%s: trusted, expected %s to be refused", binding, name)
			}
		}
	}
	if err := v.Quit(ctx); err != nil {
		t.Fatal(err)
	}
	if err := <-served; err != nil {
		t.Errorf("Serve: %v", err)
	}
}
