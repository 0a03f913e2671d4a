//go:build unix

package qmp

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// startQEMU starts a real QEMU that stays stopped, and returns its monitor's
// socket and its process. machine is the value of -M.
func startQEMU(t testing.TB, machine string, args ...string) (string, *os.Process) {
	t.Helper()
	binary, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		t.Skip("qemu-system-x86_64 is not installed")
	}
	dir, err := os.MkdirTemp("", "qmp")
	if err != nil {
		t.Fatal(err)
	}
	sock := dir + "/q.sock"
	cmd := exec.Command(binary, append([]string{
		"-M", machine, "-accel", "tcg", "-no-user-config", "-nodefaults", "-display", "none", "-S",
		"-qmp", "unix:" + sock + ",server=on,wait=off",
	}, args...)...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		os.RemoveAll(dir)
	})
	return sock, cmd.Process
}

func dialQEMU(t testing.TB) (*Client, string) {
	t.Helper()
	sock, _ := startQEMU(t, "none")
	c, err := Dial(within(t, 20*time.Second), "unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c, sock
}

func TestE2EQEMU(t *testing.T) {
	c, sock := dialQEMU(t)
	ctx := within(t, 20*time.Second)
	if c.Version().Major < 7 {
		t.Errorf("version %v", c.Version())
	}
	s, err := c.QueryStatus(ctx)
	if err != nil || s.Status != "prelaunch" || s.Running {
		t.Errorf("status %+v, %v", s, err)
	}

	// One line of more than 64 KiB, whole.
	var schema []json.RawMessage
	if err := c.Execute(ctx, "query-qmp-schema", nil, &schema); err != nil || len(schema) < 500 {
		t.Errorf("schema of %d elements, %v", len(schema), err)
	}

	// QEMU serves one client; a second one waits for its deadline, not for ever.
	_, err = Dial(within(t, 200*time.Millisecond), "unix", sock)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("second client: found %v, expected a deadline", err)
	}

	var e *Error
	if err := c.Execute(ctx, "no-such-command", nil, nil); !errors.As(err, &e) || e.Class != "CommandNotFound" {
		t.Errorf("found %v, expected class CommandNotFound", err)
	}
	if err := c.QOMGet(ctx, "/machine", "no-such-property", nil); !errors.As(err, &e) || e.Class != "GenericError" {
		t.Errorf("found %v, expected class GenericError", err)
	}
	types, err := c.QOMListTypes(ctx, "confidential-guest-support")
	if err != nil || !slices.Contains(types, "sev-guest") {
		t.Errorf("types %v, %v", types, err)
	}
	props, err := c.QOMListProperties(ctx, "sev-guest")
	if err != nil || !slices.Contains(props, "policy") {
		t.Errorf("properties %v, %v", props, err)
	}
	props, err = c.DeviceListProperties(ctx, "virtio-serial-pci")
	if err != nil || !slices.Contains(props, "max_ports") {
		t.Errorf("device properties %v, %v", props, err)
	}
	if cpus, err := c.QueryCPUsFast(ctx); err != nil || len(cpus) != 0 {
		t.Errorf("CPUs %v, %v", cpus, err)
	}
	if text, err := c.HumanMonitor(ctx, "info version"); err != nil || text == "" {
		t.Errorf("human monitor %q, %v", text, err)
	}
	if sev, err := c.QuerySEV(ctx); err != nil || sev.Enabled || sev.State != "uninit" {
		t.Errorf("SEV %+v, %v", sev, err)
	}
	if models, err := c.QueryTPMModels(ctx); err != nil || !slices.Contains(models, "tpm-crb") {
		t.Errorf("TPM models %v, %v", models, err)
	}
	if types, err := c.QueryTPMTypes(ctx); err != nil || !slices.Contains(types, "emulator") {
		t.Errorf("TPM types %v, %v", types, err)
	}

	// A descriptor goes along.
	file, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := c.ExecuteWithFile(ctx, "getfd", map[string]string{"fdname": "f"}, nil, file); err != nil {
		t.Errorf("getfd: %v", err)
	}
	if err := c.Execute(ctx, "getfd", map[string]string{"fdname": "g"}, nil); !errors.As(err, &e) {
		t.Errorf("getfd without a descriptor: found %v, expected an *Error", err)
	}

	// Unread events do not hold up replies, and come in order.
	for range 3 {
		if err := errors.Join(c.Cont(ctx), c.Stop(ctx)); err != nil {
			t.Fatal(err)
		}
	}
	for i, want := range []string{"RESUME", "STOP", "RESUME", "STOP", "RESUME", "STOP"} {
		if e := <-c.Events(); e.Name != want {
			t.Errorf("event %d is %s, expected %s", i, e.Name, want)
		}
	}

	if err := c.Quit(ctx); err != nil {
		t.Error(err)
	}
	select {
	case <-c.Done():
	case <-ctx.Done():
		t.Error("the connection outlives QEMU")
	}
}

// TestL03_E2EQEMUHangs: a QEMU that is stopped takes commands and answers none.
// The call ends with its context, and the connection outlives it.
func TestL03_E2EQEMUHangs(t *testing.T) {
	sock, qemu := startQEMU(t, "none")
	c, err := Dial(within(t, 20*time.Second), "unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := qemu.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if _, err := c.QueryStatus(within(t, 100*time.Millisecond)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("found %v, expected a deadline", err)
	}
	if err := qemu.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if s, err := c.QueryStatus(within(t, 10*time.Second)); err != nil || s.Status != "prelaunch" {
		t.Errorf("after SIGCONT: %+v, %v", s, err)
	}
}

// TestL11_E2EQEMUKilled: calls under way end at once when QEMU is killed.
func TestL11_E2EQEMUKilled(t *testing.T) {
	sock, qemu := startQEMU(t, "none")
	c, err := Dial(within(t, 20*time.Second), "unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := qemu.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	result := make(chan error, 1)
	go func() { result <- c.Cont(within(t, 20*time.Second)) }()
	time.Sleep(20 * time.Millisecond)
	if err := qemu.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := <-result; !errors.Is(err, ErrClosed) {
		t.Errorf("found %v, expected ErrClosed", err)
	}
}

// TestE2EMemory: guest memory as QEMU writes it is what was loaded.
func TestE2EMemory(t *testing.T) {
	want := []byte("what the guest finds in its memory")
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/blob", want, 0o600); err != nil {
		t.Fatal(err)
	}
	sock, _ := startQEMU(t, "q35", "-m", "128", "-device", "loader,addr=0x200000,force-raw=on,file="+dir+"/blob")
	ctx := within(t, 20*time.Second)
	c, err := Dial(ctx, "unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.PMemSave(ctx, 0x200000, uint64(len(want)), dir+"/out"); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(dir + "/out"); err != nil || !bytes.Equal(got, want) {
		t.Errorf("found %q, %v, expected %q", got, err, want)
	}
	if cpus, err := c.QueryCPUsFast(ctx); err != nil || len(cpus) != 1 || cpus[0].Thread == 0 || cpus[0].QOMPath == "" {
		t.Errorf("CPUs %+v, %v", cpus, err)
	}
	var typename string
	if err := c.QOMGet(ctx, "/machine", "type", &typename); err != nil || !strings.HasSuffix(typename, "-machine") {
		t.Errorf("type of /machine %q, %v", typename, err)
	}
	if err := c.SystemPowerdown(ctx); err != nil {
		t.Error(err)
	}
	if e := <-c.Events(); e.Name != "POWERDOWN" {
		t.Errorf("event %s, expected POWERDOWN", e.Name)
	}
	// Only QEMU can say that it cannot write.
	var e *Error
	if err := c.PMemSave(ctx, 0, 16, "/nonexistent/dir/file"); !errors.As(err, &e) {
		t.Errorf("found %v, expected an *Error", err)
	}
}

func BenchmarkRoundTrip(b *testing.B) {
	c, _ := dialQEMU(b)
	for b.Loop() {
		if _, err := c.QueryStatus(context.Background()); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkSchema(b *testing.B) {
	c, _ := dialQEMU(b)
	for b.Loop() {
		var out json.RawMessage
		if err := c.Execute(context.Background(), "query-qmp-schema", nil, &out); err != nil {
			b.Fatal(err)
		}
		b.SetBytes(int64(len(out)))
	}
}
