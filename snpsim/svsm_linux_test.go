package snpsim

import (
	"bytes"
	"context"
	"crypto/sha512"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"golang.org/x/sys/unix"

	"github.com/evtpm/evtpm/attest"
)

// startSVSM starts an SVSM with a real swtpm.
func startSVSM(t testing.TB, o SVSMOptions) *SVSM {
	t.Helper()
	program(t, "swtpm")
	if o.Dir == "" {
		o.Dir = shortDir(t)
	}
	s, err := StartSVSM(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// shortDir is a private directory whose path leaves room for a socket's name.
func shortDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "evtpm-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// provisioned is an SVSM that is ready for the guest.
func provisioned(t testing.TB, o SVSMOptions) (*SVSM, *SP) {
	t.Helper()
	s := startSVSM(t, o)
	sp := launchedSP(t, testChip(t, "Genoa"), SPOptions{})
	if err := s.Provision(context.Background(), sp); err != nil {
		t.Fatal(err)
	}
	return s, sp
}

// A frontEnd is QEMU's side of a vTPM: what -tpmdev emulator and tpm-crb do.
type frontEnd struct {
	t    testing.TB
	ctrl *net.UnixConn
	data *net.UnixConn
}

func connect(t testing.TB, s *SVSM) *frontEnd {
	t.Helper()
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: s.ControlSocket(), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	f := &frontEnd{t: t, ctrl: c}
	t.Cleanup(f.close)
	return f
}

func (f *frontEnd) close() {
	f.ctrl.Close()
	if f.data != nil {
		f.data.Close()
	}
}

// control sends a command and returns the result and what follows it.
func (f *frontEnd) control(c controlCommand, parameters []byte, rest int, files ...*os.File) (uint32, []byte) {
	f.t.Helper()
	var rights []byte
	if len(files) > 0 {
		var fds []int
		for _, file := range files {
			fds = append(fds, int(file.Fd()))
		}
		rights = unix.UnixRights(fds...)
	}
	request := append(binary.BigEndian.AppendUint32(nil, uint32(c)), parameters...)
	if _, _, err := f.ctrl.WriteMsgUnix(request, rights, nil); err != nil {
		f.t.Fatalf("%s: %v", c, err)
	}
	f.ctrl.SetReadDeadline(time.Now().Add(10 * time.Second))
	response := make([]byte, 4+rest)
	if n, err := io.ReadFull(f.ctrl, response); err != nil {
		f.t.Fatalf("%s: %d bytes, %v", c, n, err)
	}
	return binary.BigEndian.Uint32(response), response[4:]
}

// attach does what QEMU does at its start, up to the reset of its devices.
func (f *frontEnd) attach() *frontEnd {
	f.t.Helper()
	ours, theirs, err := socketPair("data")
	if err != nil {
		f.t.Fatal(err)
	}
	defer theirs.Close()
	f.data = ours
	if r, _ := f.control(cmdSetDataFD, nil, 0, theirs); r != 0 {
		f.t.Fatalf("%s: result %d", cmdSetDataFD, r)
	}
	if r, bits := f.control(cmdGetCapability, nil, 4); r != 0 || binary.BigEndian.Uint32(bits) != 0x34af {
		f.t.Fatalf("capabilities %x, result %d", bits, r)
	}
	if r := f.reset(); r != 0 {
		f.t.Fatalf("first %s: result %d", cmdInit, r)
	}
	return f
}

// reset does what QEMU does when its devices are reset, and returns the result
// of CMD_INIT.
func (f *frontEnd) reset() uint32 {
	f.t.Helper()
	if r, _ := f.control(cmdStop, nil, 0); r != 0 {
		f.t.Fatalf("%s: result %d", cmdStop, r)
	}
	r, sizes := f.control(cmdSetBufferSize, binary.BigEndian.AppendUint32(nil, 3968), 12)
	if want := bytes.Repeat([]byte{0, 0, 0x0f, 0x80}, 3); r != 0 || !bytes.Equal(sizes, want) {
		f.t.Fatalf("%s: result %d, sizes %x, expected %x", cmdSetBufferSize, r, sizes, want)
	}
	r, _ = f.control(cmdInit, make([]byte, 4), 0)
	return r
}

// Send is the guest's way to the vTPM, as go-tpm's transport.TPM.
func (f *frontEnd) Send(command []byte) ([]byte, error) {
	f.data.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := f.data.Write(command); err != nil {
		return nil, err
	}
	return readTPMMessage(f.data)
}

func TestVTPM(t *testing.T) {
	s := startSVSM(t, SVSMOptions{})
	qemu := connect(t, s).attach()

	// Before the guest may run: QEMU's probe gets the answer of a TPM 2.0 at
	// once, and nothing else is answered either.
	probe := []byte{0x80, 0x01, 0, 0, 0, 10, 0, 0, 0x01, 0x81} // TPM2_ReadClock
	for range 2 {
		response, err := qemu.Send(probe)
		if err != nil || !bytes.Equal(response, []byte{0x80, 0x01, 0, 0, 0, 10, 0, 0, 0x09, 0x22}) {
			t.Fatalf("before Provision: found %x, %v, expected TPM_RC_RETRY", response, err)
		}
	}

	sp := launchedSP(t, testChip(t, "Genoa"), SPOptions{})
	if err := s.Provision(context.Background(), sp); err != nil {
		t.Fatal(err)
	}

	// The firmware starts the TPM, which has been started: edk2 takes
	// TPM_RC_INITIALIZE for success.
	_, err := tpm2.Startup{StartupType: tpm2.TPMSUClear}.Execute(qemu)
	if !errors.Is(err, tpm2.TPMRCInitialize) {
		t.Errorf("TPM2_Startup by the guest: found %v, expected TPM_RC_INITIALIZE", err)
	}

	// The EK is where the paper has it, and is what the template makes.
	read, err := tpm2.ReadPublic{ObjectHandle: ekHandle}.Execute(qemu)
	if err != nil {
		t.Fatal(err)
	}
	if got := tpm2.Marshal(read.OutPublic); !bytes.Equal(got, s.EKPublic()) || len(got) != 316 {
		t.Errorf("EK at %#x: found %d bytes %x, EKPublic is %x", ekHandle, len(got), got, s.EKPublic())
	}
	// Template L-1 up to the modulus, from tpm2-tools 5.4 (tpm2_createek -G rsa).
	want := []byte("\x01\x3a\x00\x01\x00\x0b\x00\x03\x00\xb2\x00\x20\x83\x71\x97\x67")
	if !bytes.HasPrefix(s.EKPublic(), want) {
		t.Errorf("EK begins %x, expected %x", s.EKPublic()[:len(want)], want)
	}
	primary, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHEndorsement, InPublic: tpm2.New2B(tpm2.RSAEKTemplate)}.Execute(qemu)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(tpm2.Marshal(primary.OutPublic), s.EKPublic()) {
		t.Error("the guest's EK from the same template is another")
	}

	// The report in NV is one for VMPL 0 that binds the EK.
	public, report := readNV(t, qemu)
	const attributes = 0x42072001 | 1<<29 // and TPMA_NV_WRITTEN
	if got := binary.BigEndian.Uint32(tpm2.Marshal(public.Attributes)); got != attributes || public.DataSize != ReportSize {
		t.Errorf("NV index: attributes %#x, size %d, expected %#x, %d", got, public.DataSize, attributes, ReportSize)
	}
	r, err := attest.ParseReport(report)
	if err != nil {
		t.Fatal(err)
	}
	if r.VMPL != 0 || r.ReportData != sha512.Sum512(s.EKPublic()) {
		t.Errorf("report in NV: VMPL %d, REPORT_DATA %x", r.VMPL, r.ReportData)
	}

	// PCRs take measurements, and localities reach the TPM: PCR 20 can be
	// extended at locality 3 alone.
	extend := func(pcr uint32) error {
		_, err := tpm2.PCRExtend{
			PCRHandle: tpm2.AuthHandle{Handle: tpm2.TPMHandle(pcr), Auth: tpm2.PasswordAuth(nil)},
			Digests:   tpm2.TPMLDigestValues{Digests: []tpm2.TPMTHA{{HashAlg: tpm2.TPMAlgSHA256, Digest: make([]byte, 32)}}},
		}.Execute(qemu)
		return err
	}
	if err := extend(0); err != nil {
		t.Errorf("extend PCR 0: %v", err)
	}
	if err := extend(20); !errors.Is(err, tpm2.TPMRCLocality) {
		t.Errorf("extend PCR 20 at locality 0: found %v, expected TPM_RC_LOCALITY", err)
	}
	if r, _ := qemu.control(cmdSetLocality, []byte{3, 0, 0, 0}, 0); r != 0 {
		t.Errorf("%s: result %d", cmdSetLocality, r)
	}
	if err := extend(20); err != nil {
		t.Errorf("extend PCR 20 at locality 3: %v", err)
	}
	if r, _ := qemu.control(cmdSetLocality, []byte{9, 0, 0, 0}, 0); r == 0 {
		t.Error("locality 9 was taken")
	}
	if r, _ := qemu.control(cmdCancelTPMCmd, nil, 0); r != 0 {
		t.Errorf("%s: result %d", cmdCancelTPMCmd, r)
	}
	if r, bit := qemu.control(cmdGetTPMEstablished, nil, 4); r != 0 || !bytes.Equal(bit, make([]byte, 4)) {
		t.Errorf("%s: result %d, %x", cmdGetTPMEstablished, r, bit)
	}
}

// readNV reads the report's index as a guest does, with empty authorisation of
// the owner.
func readNV(t testing.TB, tpm interface{ Send([]byte) ([]byte, error) }) (*tpm2.TPMSNVPublic, []byte) {
	t.Helper()
	rp, err := tpm2.NVReadPublic{NVIndex: nvReport}.Execute(tpm)
	if err != nil {
		t.Fatal(err)
	}
	public, err := rp.NVPublic.Contents()
	if err != nil {
		t.Fatal(err)
	}
	var out []byte
	for len(out) < int(public.DataSize) {
		r, err := tpm2.NVRead{
			AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)},
			NVIndex:    tpm2.NamedHandle{Handle: nvReport, Name: rp.NVName},
			Size:       min(nvChunk, public.DataSize-uint16(len(out))),
			Offset:     uint16(len(out)),
		}.Execute(tpm)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, r.Data.Buffer...)
	}
	return public, out
}

func TestEveryBootHasItsOwnEK(t *testing.T) {
	a, _ := provisioned(t, SVSMOptions{})
	b, _ := provisioned(t, SVSMOptions{})
	if bytes.Equal(a.EKPublic(), b.EKPublic()) {
		t.Error("two vTPMs have one EK")
	}
}

// The state lies in no file that has a name, and the process keeps none open but
// that.
func TestStateHasNoName(t *testing.T) {
	dir := shortDir(t)
	s, _ := provisioned(t, SVSMOptions{Dir: dir})
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Name() != controlSocket {
			t.Errorf("found %s", e.Name())
		}
	}
	fds, err := filepath.Glob("/proc/" + strconv.Itoa(s.Pid()) + "/fd/*")
	if err != nil || len(fds) == 0 {
		t.Fatalf("%v, %v", fds, err)
	}
	for _, fd := range fds {
		target, err := os.Readlink(fd)
		if err == nil && strings.HasPrefix(target, "/") && !strings.HasPrefix(target, "/memfd:") && target != "/dev/null" {
			t.Errorf("swtpm has %s open", target)
		}
	}
}

// gone waits until a process has ended.
func gone(pid int) bool {
	for range 200 {
		if errors.Is(unix.Kill(pid, 0), unix.ESRCH) {
			return true
		}
		time.Sleep(10 * time.Millisecond)
	}
	return false
}

func TestCloseLeavesNothing(t *testing.T) {
	dir := shortDir(t)
	s, _ := provisioned(t, SVSMOptions{Dir: dir})
	qemu := connect(t, s).attach()
	pid := s.Pid()
	for range 2 {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	if !gone(pid) {
		t.Error("swtpm is still there")
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 0 {
		t.Errorf("found %v", entries)
	}
	if _, err := qemu.Send([]byte{0x80, 0x01, 0, 0, 0, 10, 0, 0, 0x01, 0x81}); err == nil {
		t.Error("the vTPM answers after Close")
	}
	select {
	case <-s.Exited():
		t.Error("Close counts as an end of its own")
	default:
	}
}

// A guest's reset ends the vTPM's life: what was attested is gone, and what runs
// on can neither use the TPM nor be attested.
func TestReset(t *testing.T) {
	var resets atomic.Int32
	s, _ := provisioned(t, SVSMOptions{OnReset: func() { resets.Add(1) }})
	pid := s.Pid()
	qemu := connect(t, s).attach()
	if resets.Load() != 0 {
		t.Error("power on counts as a reset")
	}
	for range 2 {
		if r := qemu.reset(); r != 0 {
			t.Errorf("%s: result %d: QEMU would exit", cmdInit, r)
		}
	}
	if !gone(pid) {
		t.Error("the vTPM lives on")
	}
	time.Sleep(20 * time.Millisecond)
	if n := resets.Load(); n != 1 {
		t.Errorf("OnReset was called %d times, expected once", n)
	}
	response, err := qemu.Send([]byte{0x80, 0x01, 0, 0, 0, 10, 0, 0, 0x01, 0x81})
	if err != nil || !bytes.Equal(response, tpmError(tpmRCFailure)) {
		t.Errorf("TPM command after a reset: found %x, %v", response, err)
	}
	if r, _ := qemu.control(cmdSetLocality, make([]byte, 4), 0); r == 0 {
		t.Error("a TPM that is gone takes a locality")
	}
	if _, _, err := s.answer(16, []byte(`{}`)); !errors.Is(err, errGuestReset) {
		t.Errorf("attestation after a reset: found %v", err)
	}
	select {
	case <-s.Exited():
		t.Error("a reset counts as the process's own end")
	default:
	}
}

// QEMU's devices may be reset any number of times before the VM runs.
func TestResetBeforeRun(t *testing.T) {
	var resets atomic.Int32
	s := startSVSM(t, SVSMOptions{OnReset: func() { resets.Add(1) }})
	qemu := connect(t, s).attach()
	for range 3 {
		if r := qemu.reset(); r != 0 {
			t.Fatalf("%s: result %d", cmdInit, r)
		}
	}
	if err := s.Provision(context.Background(), launchedSP(t, testChip(t, "Genoa"), SPOptions{})); err != nil {
		t.Fatal(err)
	}
	if resets.Load() != 0 {
		t.Error("OnReset was called")
	}
	qemu.reset()
	if !gone(s.Pid()) {
		t.Error("a reset after the VM may run was not noticed")
	}
}

// QEMU may fail to start and be tried again; once the VM may have run, its end
// is the vTPM's.
func TestQEMUComesAndGoes(t *testing.T) {
	s := startSVSM(t, SVSMOptions{})
	pid := s.Pid()
	for range 3 {
		f := connect(t, s).attach()
		f.close()
	}
	qemu := connect(t, s).attach()
	if err := s.Provision(context.Background(), launchedSP(t, testChip(t, "Genoa"), SPOptions{})); err != nil {
		t.Fatal(err)
	}
	if _, err := (tpm2.ReadPublic{ObjectHandle: ekHandle}).Execute(qemu); err != nil {
		t.Fatal(err)
	}
	if r, _ := qemu.control(cmdShutdown, nil, 0); r != 0 {
		t.Errorf("%s: result %d", cmdShutdown, r)
	}
	qemu.close()
	if !gone(pid) {
		t.Error("the vTPM outlives its VM")
	}
	if _, err := net.Dial("unix", s.ControlSocket()); err == nil {
		t.Error("a second VM can connect")
	}
}

func TestSwtpmDies(t *testing.T) {
	s, _ := provisioned(t, SVSMOptions{})
	qemu := connect(t, s).attach()
	if err := unix.Kill(s.Pid(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	select {
	case <-s.Exited():
	case <-time.After(5 * time.Second):
		t.Fatal("its end was not noticed")
	}
	response, err := qemu.Send([]byte{0x80, 0x01, 0, 0, 0, 10, 0, 0, 0x01, 0x81})
	if err != nil || !bytes.Equal(response, tpmError(tpmRCFailure)) {
		t.Errorf("found %x, %v", response, err)
	}
	if _, _, err := s.answer(16, nil); !errors.Is(err, errTPMGone) {
		t.Errorf("attestation: %v", err)
	}
	if r := qemu.reset(); r == 0 {
		t.Error("a TPM that is gone can be initialised")
	}
}

// When the process that owns the SVSM is killed, swtpm ends with it.
func TestSwtpmEndsWithItsOwner(t *testing.T) {
	if os.Getenv("EVTPM_TEST_OWNER") != "" {
		s, err := StartSVSM(context.Background(), SVSMOptions{Dir: os.Getenv("EVTPM_TEST_OWNER")})
		if err != nil {
			t.Fatal(err)
		}
		os.Stdout.WriteString(strconv.Itoa(s.Pid()) + "\n")
		unix.Kill(os.Getpid(), unix.SIGKILL)
	}
	program(t, "swtpm")
	cmd := exec.Command(os.Args[0], "-test.run=^TestSwtpmEndsWithItsOwner$")
	cmd.Env = append(os.Environ(), "EVTPM_TEST_OWNER="+shortDir(t))
	out, _ := cmd.Output()
	pid := 0
	for _, c := range bytes.TrimSpace(out) {
		pid = pid*10 + int(c-'0')
	}
	if pid <= 1 {
		t.Fatalf("found %q, expected a process id", out)
	}
	if !gone(pid) {
		unix.Kill(pid, unix.SIGKILL)
		t.Error("swtpm outlived its owner")
	}
}

func TestProvisionRefused(t *testing.T) {
	chip := testChip(t, "Genoa")
	t.Run("not launched", func(t *testing.T) {
		s := startSVSM(t, SVSMOptions{})
		sp, err := NewSP(chip, SPOptions{})
		if err != nil {
			t.Fatal(err)
		}
		wantStatus(t, s.Provision(context.Background(), sp), msgReportReq, StatusInvalidGuestState, "no guest")
		if _, _, err := s.answer(16, nil); err == nil || !strings.Contains(err.Error(), "has not been measured") {
			t.Errorf("attestation: %v", err)
		}
	})
	t.Run("twice", func(t *testing.T) {
		s, sp := provisioned(t, SVSMOptions{})
		if err := s.Provision(context.Background(), sp); err == nil || !strings.Contains(err.Error(), "already") {
			t.Error(err)
		}
	})
	t.Run("closed", func(t *testing.T) {
		s := startSVSM(t, SVSMOptions{})
		s.Close()
		if err := s.Provision(context.Background(), launchedSP(t, chip, SPOptions{})); !errors.Is(err, errClosed) {
			t.Error(err)
		}
	})
	t.Run("cancelled", func(t *testing.T) {
		s := &SVSM{made: make(chan struct{})}
		ctx, cancel := context.WithCancelCause(context.Background())
		cause := errors.New("stop")
		cancel(cause)
		if err := s.Provision(ctx, launchedSP(t, chip, SPOptions{})); !errors.Is(err, cause) {
			t.Error(err)
		}
	})
}

func TestStartRefused(t *testing.T) {
	start := func(o SVSMOptions) error {
		s, err := StartSVSM(context.Background(), o)
		if err == nil {
			s.Close()
		}
		return err
	}
	dir := shortDir(t)
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o700); err != nil {
		t.Fatal(err)
	}
	open := filepath.Join(dir, "open")
	if err := os.Mkdir(open, 0o755); err != nil {
		t.Fatal(err)
	}
	long := filepath.Join(dir, strings.Repeat("x", 100))
	if err := os.Mkdir(long, 0o700); err != nil {
		t.Fatal(err)
	}
	// Programs that are no swtpm: one ends at once, one says nothing for ever.
	ends := script(t, dir, "ends", "echo 'no such TPM' >&2; exit 3")
	for name, c := range map[string]struct {
		o    SVSMOptions
		want string
	}{
		"no directory":       {SVSMOptions{Dir: filepath.Join(dir, "nothing")}, "no such file"},
		"a file":             {SVSMOptions{Dir: file}, "expected a directory"},
		"others can enter":   {SVSMOptions{Dir: open}, "expected 0700"},
		"path too long":      {SVSMOptions{Dir: long}, "expected at most 107"},
		"no swtpm":           {SVSMOptions{Dir: dir, Swtpm: filepath.Join(dir, "nothing")}, "start "},
		"swtpm ends at once": {SVSMOptions{Dir: dir, Swtpm: ends}, "swtpm said: no such TPM"},
		"spawn fails":        {SVSMOptions{Dir: dir, Swtpm: ends, Spawn: func(*exec.Cmd) error { return errors.New("no more") }}, "no more"},
	} {
		if err := start(c.o); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: found %v, expected %q", name, err, c.want)
		}
	}

	hangs := script(t, dir, "hangs", "echo $$ > "+filepath.Join(dir, "pid")+"; exec sleep 1000")
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	began := time.Now()
	if _, err := StartSVSM(ctx, SVSMOptions{Dir: dir, Swtpm: hangs}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("swtpm hangs: found %v", err)
	}
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("swtpm hangs: the start took %v", took)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(mustRead(t, filepath.Join(dir, "pid")))))
	if err != nil || !gone(pid) {
		t.Errorf("swtpm hangs: process %d is still there (%v)", pid, err)
	}
}

func script(t *testing.T, dir, name, body string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+body+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

// What a malicious platform could do, and what a verifier sees of it.
func TestAttackKeptState(t *testing.T) {
	state := shortDir(t)
	a, _ := provisioned(t, SVSMOptions{Attack: Attack{KeptState: state}})
	first := a.EKPublic()
	a.Close()
	b, _ := provisioned(t, SVSMOptions{Attack: Attack{KeptState: state}})
	if !bytes.Equal(first, b.EKPublic()) {
		t.Error("kept state has another EK")
	}
	_, report := readNV(t, connect(t, b).attach())
	if r, err := attest.ParseReport(report); err != nil || r.ReportData != sha512.Sum512(first) {
		t.Errorf("report: %v", err)
	}
}

// BenchmarkStartSVSM is from nothing to a vTPM that is bound to a launch, which
// QEMU's start and the measuring of its memory happen beside.
func BenchmarkStartSVSM(b *testing.B) {
	program(b, "swtpm")
	sp := launchedSP(b, testChip(b, "Genoa"), SPOptions{})
	dir := shortDir(b)
	for b.Loop() {
		s, err := StartSVSM(context.Background(), SVSMOptions{Dir: dir})
		if err != nil {
			b.Fatal(err)
		}
		if err := s.Provision(context.Background(), sp); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		s.Close()
		b.StartTimer()
	}
}

// BenchmarkReport is one signed report.
func BenchmarkReport(b *testing.B) {
	sp := launchedSP(b, testChip(b, "Genoa"), SPOptions{})
	for b.Loop() {
		if _, err := sp.Report(0, testReportData); err != nil {
			b.Fatal(err)
		}
	}
}
