//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/evtpm/evtpm/attest"
	"github.com/evtpm/evtpm/attest/evidence"
	"github.com/evtpm/evtpm/initramfs"
)

// What scripts/setup puts where.
const (
	kernelPath  = "../../build/kernel/vmlinuz"
	modulesPath = "../../build/kernel/lib/modules"
	amdsevPath  = "../../build/firmware/OVMF.amdsev.fd"
	ovmfPath    = "/usr/share/ovmf/OVMF.fd"
)

// need skips a test that lacks what scripts/setup would have brought.
func need(t *testing.T, programs []string, files ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("needs %s: run scripts/setup test", p)
		}
	}
	for _, f := range files {
		if _, err := os.Stat(f); err != nil {
			t.Skipf("needs %s: run scripts/setup test", f)
		}
	}
}

var buildAgent = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "agent")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	name := filepath.Join(dir, "agent")
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w -X main.version=e2e", "-o", name, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%w: %s", err, out)
	}
	return os.ReadFile(name)
})

// initrd makes an archive with this agent as /init and the modules named.
func initrd(t *testing.T, modules ...string) []byte {
	t.Helper()
	agent, err := buildAgent()
	if err != nil {
		t.Fatal(err)
	}
	files := append(initramfs.Base(), initramfs.File{Path: "/init", Mode: 0o755, Data: agent})
	for _, m := range modules {
		found := ""
		err := filepath.WalkDir(modulesPath, func(p string, d fs.DirEntry, err error) error {
			if err == nil && d.Name() == m {
				found = p
			}
			return err
		})
		if err != nil || found == "" {
			t.Fatalf("module %s: %q, %v", m, found, err)
		}
		data, err := os.ReadFile(found)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, initramfs.File{Path: "/lib/modules/" + m, Mode: 0o644, Data: data})
	}
	var buf bytes.Buffer
	if err := initramfs.Write(&buf, files); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// guest is what a test boots.
type guest struct {
	firmware string
	memory   string // QEMU's -m
	cpu      string
	kernel   []byte // empty: kernelPath's
	initrd   []byte
	cmdline  string
	args     []string // more for QEMU
}

// vm is a running guest. Sockets are in dir: agent, svsm, qmp.
type vm struct {
	t       *testing.T
	dir     string
	qemu    *exec.Cmd
	ended   chan struct{}
	console func() string
}

// boot starts a software TPM and QEMU, without hardware virtualisation.
func boot(t *testing.T, g guest) *vm {
	t.Helper()
	need(t, []string{"qemu-system-x86_64", "swtpm"}, g.firmware, kernelPath)
	dir, err := os.MkdirTemp("", "e2e")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	at := func(name string) string { return filepath.Join(dir, name) }

	os.Mkdir(at("tpm"), 0o700)
	swtpm := exec.Command("swtpm", "socket", "--tpm2", "--ctrl", "type=unixio,path="+at("tpm.sock"),
		"--tpmstate", "dir="+at("tpm"), "--flags", "not-need-init", "--terminate")
	if err := swtpm.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { swtpm.Process.Kill(); swtpm.Wait() })

	kernel := kernelPath
	if g.kernel != nil {
		kernel = at("kernel")
		if err := os.WriteFile(kernel, g.kernel, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(at("initrd"), g.initrd, 0o600); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "swtpm", func() bool { _, err := os.Stat(at("tpm.sock")); return err == nil })
	if g.cpu == "" {
		g.cpu = "qemu64"
	}
	args := []string{
		"-machine", "q35,smm=off,accel=tcg", "-cpu", g.cpu, "-m", g.memory, "-no-user-config", "-nodefaults",
		"-display", "none", "-no-reboot", "-serial", "file:" + at("console"),
		"-bios", g.firmware, "-kernel", kernel, "-initrd", at("initrd"), "-append", g.cmdline,
		"-chardev", "socket,id=tpm,path=" + at("tpm.sock"), "-tpmdev", "emulator,id=tpm0,chardev=tpm", "-device", "tpm-crb,tpmdev=tpm0",
		"-device", "virtio-serial-pci,id=vs0",
		"-chardev", "socket,id=agent,path=" + at("agent") + ",server=on,wait=off",
		"-device", "virtserialport,bus=vs0.0,chardev=agent,name=" + agentPort,
		"-chardev", "socket,id=svsm,path=" + at("svsm") + ",server=on,wait=off",
		"-device", "virtserialport,bus=vs0.0,chardev=svsm,name=" + svsmPort,
		"-qmp", "unix:" + at("qmp") + ",server=on,wait=off",
	}
	qemu := exec.Command("qemu-system-x86_64", append(args, g.args...)...)
	var stderr bytes.Buffer
	qemu.Stderr = &stderr
	if err := qemu.Start(); err != nil {
		t.Fatal(err)
	}
	m := &vm{t: t, dir: dir, qemu: qemu, ended: make(chan struct{})}
	go func() { qemu.Wait(); close(m.ended) }()
	m.console = func() string {
		b, _ := os.ReadFile(at("console"))
		return string(b)
	}
	t.Cleanup(func() {
		qemu.Process.Kill()
		<-m.ended
		if t.Failed() {
			t.Logf("QEMU's stderr: %q\nconsole: %q", stderr.String(), m.console())
		}
	})
	waitFor(t, "QEMU", func() bool {
		select {
		case <-m.ended:
			t.Fatalf("QEMU ended: %s", stderr.String())
		default:
		}
		_, err := os.Stat(at("svsm"))
		return err == nil
	})
	return m
}

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s is not ready after 30 s", what)
		}
	}
}

// dial connects to a socket of the VM; a boot may take minutes on a busy
// machine.
func (m *vm) dial(name string) net.Conn {
	m.t.Helper()
	// A socket is there a moment before QEMU listens on it.
	var conn net.Conn
	waitFor(m.t, "socket "+name, func() (ok bool) {
		var err error
		conn, err = net.Dial("unix", filepath.Join(m.dir, name))
		return err == nil
	})
	m.t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(3 * time.Minute))
	return conn
}

// hello waits for the agent's Hello, as verifiers do.
func (m *vm) hello(conn net.Conn) evidence.Hello {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(m.t.Context(), 3*time.Minute)
	defer cancel()
	h, err := attest.Greet(ctx, conn)
	if err != nil {
		m.t.Fatal(err)
	}
	conn.SetDeadline(time.Now().Add(3 * time.Minute))
	return *h
}

func (m *vm) read(conn net.Conn, want evidence.FrameType, into any) {
	m.t.Helper()
	ft, payload, err := evidence.ReadFrame(conn, 0)
	for err == nil && ft == evidence.FrameHello {
		ft, payload, err = evidence.ReadFrame(conn, 0)
	}
	if err != nil || ft != want {
		m.t.Fatalf("found frame type %d %q, %v; expected %d", ft, payload, err, want)
	}
	if err := json.Unmarshal(payload, into); err != nil {
		m.t.Fatal(err)
	}
}

func (m *vm) write(conn net.Conn, ft evidence.FrameType, message any) {
	m.t.Helper()
	b, err := json.Marshal(message)
	if err != nil {
		m.t.Fatal(err)
	}
	if err := evidence.WriteFrame(conn, ft, b); err != nil {
		m.t.Fatal(err)
	}
}

// serveSVSM answers attestation requests on the SVSM's port with their nonce.
func (m *vm) serveSVSM() {
	conn := m.dial("svsm")
	go func() {
		for {
			ft, payload, err := evidence.ReadFrame(conn, 0)
			if err != nil {
				return
			}
			var req evidence.SVSMAttest
			if err := json.Unmarshal(payload, &req); err != nil || ft != evidence.FrameSVSMAttest {
				m.t.Errorf("the SVSM was asked type %d, %q", ft, payload)
				return
			}
			m.write(conn, evidence.FrameSVSMAttestResult, evidence.SVSMAttestResult{
				Report: append([]byte("report "), req.Nonce...), Manifest: req.GUID, Certificates: []byte("certificates"),
			})
		}
	}()
}

func challenge(n byte, bank string) evidence.Challenge {
	c := evidence.Challenge{Nonce: bytes.Repeat([]byte{n}, 64), PCRBank: bank}
	for i := range 24 {
		c.PCRs = append(c.PCRs, i)
	}
	return c
}

// TestE2EInit boots the agent as /init: evidence from a real kernel, firmware
// and TPM; verifiers that come and go; and the power button.
func TestE2EInit(t *testing.T) {
	need(t, nil, modulesPath)
	m := boot(t, guest{
		firmware: ovmfPath, memory: "256M", cmdline: "quiet console=ttyS0 -- -tcp :7600",
		initrd: initrd(t, "configfs.ko.xz", "tsm.ko.xz", "sev-guest.ko.xz", "button.ko.xz"),
	})
	m.serveSVSM()
	start := time.Now()
	conn := m.dial("agent")
	h := m.hello(conn)
	t.Logf("hello after %v: %+v", time.Since(start), h)
	if h.AgentVersion != "e2e" || len(h.BootID) != 36 || strings.Join(h.Sources, " ") != "svsm svsm-services" {
		t.Errorf("hello %+v", h)
	}

	start = time.Now()
	m.write(conn, evidence.FrameChallenge, challenge(1, "sha256"))
	var ev evidence.Evidence
	m.read(conn, evidence.FrameEvidence, &ev)
	t.Logf("evidence after %v", time.Since(start))
	if !strings.HasPrefix(string(ev.Report), "report \x01\x01") || ev.BootID != h.BootID || len(ev.EventLog) < 1000 || len(ev.PCRs) != 24 || len(ev.Quote) == 0 {
		t.Errorf("evidence %+v", ev)
	}
	start = time.Now()
	m.write(conn, evidence.FrameChallenge, challenge(2, "sha384"))
	m.read(conn, evidence.FrameEvidence, &ev)
	t.Logf("evidence again after %v", time.Since(start))

	// A verifier leaves, within a frame; the next one is greeted. Verifiers who
	// come while the last one leaves are no less well served.
	conn.Write([]byte("evtp\x01"))
	conn.Close()
	for i := range 40 {
		conn = m.dial("agent")
		if i%2 == 0 {
			if _, err := attest.Challenge(t.Context(), conn, attest.ChallengeOptions{}); err != nil {
				t.Errorf("connection %d: %v", i, err)
			}
		} else {
			m.hello(conn)
		}
		conn.Close()
		if i%3 == 0 {
			// With time for the guest to see that nobody is there.
			time.Sleep(150 * time.Millisecond)
		}
	}
	// Garbage ends nothing but itself.
	conn = m.dial("agent")
	m.hello(conn)
	conn.Write(bytes.Repeat([]byte("garbage "), 1000))
	var f evidence.Failure
	m.read(conn, evidence.FrameError, &f)
	conn.Close()
	m.hello(m.dial("agent"))

	start = time.Now()
	m.powerButton()
	select {
	case <-m.ended:
		t.Logf("off after %v", time.Since(start))
		if m.qemu.ProcessState.ExitCode() != 0 {
			t.Errorf("QEMU ended with %v", m.qemu.ProcessState)
		}
	case <-time.After(time.Minute):
		t.Error("the power button does not end the VM")
	}
	for _, want := range []string{"evtpm-agent: version e2e, first process", "evtpm-agent: serving virtio-serial /dev/vport", "evtpm-agent: serving tcp [::]:7600", "evtpm-agent: powering off"} {
		if !strings.Contains(m.console(), want) {
			t.Errorf("console lacks %q", want)
		}
	}
	if strings.Contains(m.console(), "error: mo") {
		t.Errorf("console tells of failed mounts or modules")
	}
}

// powerButton presses it, by QMP.
func (m *vm) powerButton() {
	m.t.Helper()
	conn := m.dial("qmp")
	d := json.NewDecoder(conn)
	for _, cmd := range []string{"qmp_capabilities", "system_powerdown"} {
		fmt.Fprintf(conn, `{"execute":%q}`, cmd)
	}
	for replies := 0; replies < 2; {
		var r map[string]any
		if err := d.Decode(&r); err != nil {
			m.t.Fatal(err)
		}
		if _, ok := r["return"]; ok {
			replies++
		} else if e, ok := r["error"]; ok {
			m.t.Fatal(e)
		}
	}
}
