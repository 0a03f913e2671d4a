//go:build linux

package main

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// mounts are what the agent reads, in order. Those that a kernel lacks are left
// out.
var mounts = []struct{ fstype, dir string }{
	{"proc", "/proc"},
	{"sysfs", "/sys"},
	{"devtmpfs", "/dev"},
	{"securityfs", "/sys/kernel/security"},
}

// modules are what the agent can use, in the order in which they need each
// other. Each is loaded where the initramfs has it under /lib/modules.
var modules = []string{
	"virtio_ring", "virtio", "virtio_pci_modern_dev", "virtio_pci_legacy_dev", "virtio_pci", "virtio_console", // -port
	"configfs", "tsm", "sev-guest", "tpm_svsm", // reports from an SVSM
	"button",                                                                   // the power button
	"vsock", "vmw_vsock_virtio_transport_common", "vmw_vsock_virtio_transport", // -vsock
}

// runInit is the first process: it never returns, for the kernel would panic.
func runInit() {
	for _, m := range mounts {
		mount(m.fstype, m.dir)
	}
	loadModules("/lib/modules")
	mount("configfs", "/sys/kernel/config")

	ctx, shutdown := context.WithCancel(context.Background())
	go reap()
	go func() {
		waitForShutdown()
		shutdown()
	}()
	say("version %s, first process", version)
	// What the firmware appends to the kernel's command line ends up among the
	// arguments, where that has any.
	args := slices.DeleteFunc(slices.Clone(os.Args[1:]), func(a string) bool { return a == "initrd=initrd" })
	if err := serve(ctx, args); err != nil && ctx.Err() == nil {
		say("error: %v", err)
	}
	<-ctx.Done()
	say("powering off")
	unix.Sync()
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF); err != nil {
		say("error: power off: %v", err)
	}
	select {}
}

func mount(fstype, dir string) {
	if err := os.MkdirAll(dir, 0o755); err != nil && !errors.Is(err, fs.ErrPermission) {
		// sysfs makes its own mount points, or has none.
		return
	}
	err := unix.Mount(fstype, dir, fstype, unix.MS_NOSUID|unix.MS_NOEXEC, "")
	switch {
	case err == nil, errors.Is(err, unix.EBUSY), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENOENT):
	default:
		say("error: mount %s: %v", dir, err)
	}
}

// loadModules loads the modules of the list that it finds below dir, compressed
// or not.
func loadModules(dir string) {
	found := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, suffix, ok := strings.Cut(d.Name(), ".ko")
		if ok && d.Type().IsRegular() && (suffix == "" || suffix == ".xz" || suffix == ".zst" || suffix == ".gz") {
			found[name] = path
		}
		return nil
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		say("error: modules: %v", err)
	}
	for _, name := range modules {
		path, ok := found[name]
		if !ok {
			continue
		}
		// ENODEV is a driver's way to say that its hardware is not there.
		if err := loadModule(path); err != nil && !errors.Is(err, unix.EEXIST) && !errors.Is(err, unix.ENODEV) {
			say("error: module %s: %v", name, err)
		}
	}
}

func loadModule(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	flags := 0
	if !strings.HasSuffix(path, ".ko") {
		flags = unix.MODULE_INIT_COMPRESSED_FILE
	}
	return unix.FinitModule(int(f.Fd()), "", flags)
}

// reap collects processes whose parents have ended.
func reap() {
	children := make(chan os.Signal, 1)
	signal.Notify(children, unix.SIGCHLD)
	for range children {
		for {
			pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil)
			if pid <= 0 && !errors.Is(err, unix.EINTR) {
				break
			}
		}
	}
}

// waitForShutdown returns when the machine is asked to end: by its power
// button, or by the signals that init systems take for it.
func waitForShutdown() {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, os.Interrupt, syscall.SIGPWR)
	button := make(chan struct{})
	go func() {
		err := waitForPowerButton()
		for err != nil {
			say("the power button is not watched: %v", err)
			time.Sleep(time.Minute)
			err = waitForPowerButton()
		}
		close(button)
	}()
	select {
	case <-signals:
	case <-button:
	}
}
