package qmp

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"slices"
	"syscall"
	"testing"
	"time"
)

// startQEMU starts a real, empty QEMU and returns its monitor's socket.
func startQEMU(t testing.TB) string {
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
	cmd := exec.Command(binary, "-M", "none", "-accel", "tcg", "-nodefaults", "-display", "none", "-S", "-qmp", "unix:"+sock+",server=on,wait=off")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		os.RemoveAll(dir)
	})
	return sock
}

func dialQEMU(t testing.TB) (*Client, string) {
	t.Helper()
	sock := startQEMU(t)
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
	if sev, err := c.QuerySEV(ctx); err != nil || sev.Enabled {
		t.Errorf("SEV %+v, %v", sev, err)
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

func TestE2EStoppedQEMU(t *testing.T) {
	sock := startQEMU(t)
	c, err := Dial(within(t, 20*time.Second), "unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var pid struct{ PID int }
	// SIGSTOP: the socket lives, and nothing answers.
	out, err := exec.Command("pgrep", "-f", sock).Output()
	if err != nil || json.Unmarshal(out, &pid.PID) != nil {
		t.Fatalf("pgrep: %s, %v", out, err)
	}
	if err := syscall.Kill(pid.PID, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if _, err := c.QueryStatus(within(t, 100*time.Millisecond)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("found %v, expected a deadline", err)
	}
	if err := syscall.Kill(pid.PID, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if _, err := c.QueryStatus(within(t, 10*time.Second)); err != nil {
		t.Errorf("after SIGCONT: %v", err)
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
