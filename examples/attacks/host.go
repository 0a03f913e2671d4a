//go:build linux

package main

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/evtpm/evtpm/measure"
)

// The malicious host: a program in the place of QEMU that changes what it was
// given, then becomes QEMU. Plans and golden values were made before it runs, as
// they are when a tenant made them.
//
// evtpm asks QEMU what it was started with, which is good against mistakes. A
// host that means it lies: other files lie behind the descriptors that were
// planned, and what QEMU's monitor says of the command line is the planned one.

// A hostAttack is what the program in QEMU's place does. Its fields are read
// from the wrapper's own command line.
type hostAttack struct {
	qemu string // the real QEMU
	dir  string // the attack's private folder

	// Files to load instead of the planned ones: a path, "flip" for the planned
	// one with one bit flipped, "pad" for the planned one with zeros after it.
	firmware string
	kernel   string
	initrd   string
	cmdline  string // instead of the planned one
	hashes   bool   // recompute the kernel hashes page for what is really loaded

	wire    string // tamper to run on the agent's socket
	wireArg string
	wireTo  string // relay to the agent of this socket instead

	tpm string // control socket of another TPM
}

// become changes argv as the attack says, starts what must run beside it, and
// replaces this process by QEMU.
func (h *hostAttack) become(argv []string) error {
	if err := h.swapFiles(argv); err != nil {
		return err
	}
	for i, a := range argv {
		switch {
		case h.wire != "" && strings.Contains(a, "/agent.sock"):
			listen := option(a, "path")
			real := filepath.Join(h.dir, "real.sock")
			argv[i] = strings.Replace(a, "path="+listen, "path="+real, 1)
			if h.wireTo != "" {
				real = h.wireTo
			}
			if err := startWire(listen, real, h.wire, h.wireArg); err != nil {
				return err
			}
		case h.tpm != "" && i > 0 && argv[i-1] == "-chardev" && strings.HasPrefix(a, "socket,id=tpm"):
			argv[i] = strings.Replace(a, "path="+option(a, "path"), "path="+h.tpm, 1)
		}
	}
	return syscall.Exec(h.qemu, append([]string{"qemu-system-x86_64"}, argv...), os.Environ())
}

// option returns the value of name in a QEMU option string without doubled
// commas.
func option(s, name string) string {
	for part := range strings.SplitSeq(s, ",") {
		if v, ok := strings.CutPrefix(part, name+"="); ok {
			return v
		}
	}
	return ""
}

// startWire runs this program as the wire between verifier and guest.
func startWire(listen, real, name, arg string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.Command(self, "wire", listen, real, name, arg)
	cmd.Stderr = os.Stderr
	return cmd.Start()
}

func (h *hostAttack) swapFiles(argv []string) error {
	var kernel, initrd string
	cmdline := ""
	loader := -1
	for i := 0; i+1 < len(argv); i++ {
		var err error
		switch argv[i] {
		case "-bios":
			argv[i+1], err = h.swap("firmware", argv[i+1], h.firmware)
		case "-kernel":
			argv[i+1], err = h.swap("kernel", argv[i+1], h.kernel)
			kernel = argv[i+1]
		case "-initrd":
			argv[i+1], err = h.swap("initrd", argv[i+1], h.initrd)
			initrd = argv[i+1]
		case "-append":
			if h.cmdline != "" {
				if err := h.lie(argv, h.cmdline, argv[i+1]); err != nil {
					return err
				}
				argv[i+1] = h.cmdline
			}
			cmdline = argv[i+1]
		case "-device":
			if strings.HasPrefix(argv[i+1], "loader,") {
				loader = i + 1
			}
		}
		if err != nil {
			return err
		}
	}
	if !h.hashes {
		return nil
	}
	if loader < 0 {
		return fmt.Errorf("no kernel hashes page on QEMU's command line")
	}
	return h.swapHashes(&argv[loader], kernel, initrd, cmdline)
}

// swap puts another file behind the path that QEMU is to load, which is that of a
// descriptor.
func (h *hostAttack) swap(what, path, instead string) (string, error) {
	if instead == "" {
		return path, nil
	}
	var fd int
	if _, err := fmt.Sscanf(path, "/proc/self/fd/%d", &fd); err != nil {
		return "", fmt.Errorf("%s: found %q, expected a descriptor: %w", what, path, err)
	}
	switch instead {
	case "flip", "pad":
		data, err := os.ReadFile(path)
		if err != nil {
			return "", err
		}
		if instead == "pad" {
			data = append(data, make([]byte, 512)...)
		} else {
			data[flipAt(what, data)] ^= 1
		}
		instead = filepath.Join(h.dir, what)
		if err := os.WriteFile(instead, data, 0o600); err != nil {
			return "", err
		}
	}
	f, err := os.Open(instead)
	if err != nil {
		return "", err
	}
	defer f.Close()
	return path, unix.Dup3(int(f.Fd()), fd, 0)
}

// lie puts a process between evtpm and QEMU's monitor that says honest where
// QEMU would say evil.
func (h *hostAttack) lie(argv []string, evil, honest string) error {
	monitor := -1
	for _, a := range argv {
		if rest, ok := strings.CutPrefix(a, "socket,id=monitor,fd="); ok {
			if _, err := fmt.Sscan(rest, &monitor); err != nil {
				return err
			}
		}
	}
	if monitor < 0 {
		return errors.New("no monitor on QEMU's command line")
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	// The descriptor stays QEMU's, but leads to the liar.
	evtpm, err := unix.Dup(monitor)
	if err != nil {
		return err
	}
	unix.CloseOnExec(evtpm)
	if err := unix.Dup3(pair[1], monitor, 0); err != nil {
		return err
	}
	cmd := exec.Command(self, "lie", evil, honest)
	cmd.ExtraFiles = []*os.File{os.NewFile(uintptr(evtpm), "evtpm"), os.NewFile(uintptr(pair[0]), "qemu")}
	return cmd.Start()
}

// lieOfCmdline is the liar's process: evtpm's side of the monitor is descriptor
// 3, QEMU's is 4.
func lieOfCmdline(args []string) error {
	if len(args) != 2 {
		return fmt.Errorf("lie: found %d arguments, expected two", len(args))
	}
	evil, err1 := json.Marshal(args[0])
	honest, err2 := json.Marshal(args[1])
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	evtpm, qemu := os.NewFile(3, "evtpm"), os.NewFile(4, "qemu")
	go func() {
		_, _ = io.Copy(qemu, evtpm)
		os.Exit(0) // evtpm is gone, and QEMU with it
	}()
	lines := bufio.NewScanner(qemu)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		if _, err := evtpm.Write(append(bytes.ReplaceAll(lines.Bytes(), evil, honest), '\n')); err != nil {
			return err
		}
	}
	return lines.Err()
}

// flipAt chooses a byte that is measured and that nothing needs to start: of the
// firmware, the first byte, in the zero vector of its first volume; of the
// kernel, one of its real-mode code, which a UEFI boot never runs. The end of a
// kernel would not do: it is a signature, which Authenticode digests leave out.
func flipAt(what string, data []byte) int {
	if what == "firmware" {
		return 0
	}
	return min(0x1000, len(data)-1)
}

// swapHashes replaces the kernel hashes page that QEMU was to load by one for
// the files it will really load: what a host does that wants the firmware to
// accept its kernel.
func (h *hostAttack) swapHashes(loader *string, kernel, initrd, cmdline string) error {
	page, err := os.ReadFile(option(*loader, "file"))
	if err != nil {
		return err
	}
	hashes := new(measure.KernelHashes)
	for _, f := range []struct {
		path string
		sum  *[32]byte
	}{{kernel, &hashes.Kernel}, {initrd, &hashes.Initrd}} {
		data, err := os.ReadFile(f.path)
		if err != nil {
			return err
		}
		*f.sum = sha256.Sum256(data)
	}
	if hashes.Cmdline, err = measure.HashCmdline(cmdline); err != nil {
		return err
	}
	table := hashes.Table()
	at := bytes.Index(page, table[:16]) // the table's GUID
	if at < 0 {
		return fmt.Errorf("no kernel hashes table in %s", option(*loader, "file"))
	}
	copy(page[at:], table)
	out := filepath.Join(h.dir, "hashes")
	*loader = strings.Replace(*loader, "file="+option(*loader, "file"), "file="+out, 1)
	return os.WriteFile(out, page, 0o600)
}
