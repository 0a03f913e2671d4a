package libvirtd

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// One at a time starts a daemon of the session, and whoever waits stops waiting
// when its time is over.
func TestOneStartsTheDaemon(t *testing.T) {
	dir := t.TempDir()
	unlock, err := lockStart(t.Context(), dir, "/usr/sbin/libvirtd")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "libvirt/libvirtd.lock")); err != nil {
		t.Error(err)
	}
	late, cancel := context.WithCancelCause(t.Context())
	over := errors.New("over")
	cancel(over)
	if _, err := lockStart(late, dir, "/usr/sbin/libvirtd"); !errors.Is(err, over) {
		t.Errorf("found %v, expected %v", err, over)
	}
	// Another program's lock is another.
	other, err := lockStart(t.Context(), dir, "/usr/sbin/virtqemud")
	if err != nil {
		t.Fatal(err)
	}
	other()
	time.AfterFunc(50*time.Millisecond, unlock)
	again, err := lockStart(t.Context(), dir, "/usr/sbin/libvirtd")
	if err != nil {
		t.Fatal(err)
	}
	again()
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := lockStart(t.Context(), filepath.Join(dir, "file"), "p"); err == nil {
		t.Error("no error where no lock can be")
	}
}
