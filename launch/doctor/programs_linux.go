package doctor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/evtpm/evtpm/inputfile"
	"github.com/evtpm/evtpm/launch/machine"
	"github.com/evtpm/evtpm/measure"
	"github.com/evtpm/evtpm/ovmf"
)

const swtpmFix = "install swtpm 0.7 or later"

// swtpmFeatures are what the simulated SVSM uses of swtpm.
var swtpmFeatures = []string{"tpm-2.0", "nvram-backend-file"}

// swtpm asks the TPM emulator for its features.
func (d *examination) swtpm() {
	path, err := d.o.lookPath("swtpm")
	if err != nil {
		d.fail("swtpm", "swtpm is not installed", "a TPM emulator for the simulated SVSM", swtpmFix)
		return
	}
	ctx, cancel := context.WithTimeout(d.ctx, probeTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, "socket", "--print-capabilities")
	cmd.Env = []string{}
	out, err := cmd.Output()
	var answer struct {
		Features []string `json:"features"`
		Version  string   `json:"version"`
	}
	if err == nil {
		err = json.Unmarshal(out, &answer)
	}
	if err != nil {
		d.fail("swtpm", fmt.Sprintf("%s does not tell its features: %v", path, err), "features "+strings.Join(swtpmFeatures, ", "), swtpmFix)
		return
	}
	for _, f := range swtpmFeatures {
		if !slices.Contains(answer.Features, f) {
			d.fail("swtpm", fmt.Sprintf("swtpm %s has no feature %s", answer.Version, f), "features "+strings.Join(swtpmFeatures, ", "), swtpmFix)
			return
		}
	}
	d.ok("swtpm", "swtpm %s, %s", answer.Version, path)
}

// runDir looks at the run directory without making it.
func (d *examination) runDir() {
	const needed = "a directory of this user's alone, mode 0700"
	dir, err := filepath.Abs(d.o.Home)
	if err != nil {
		d.fail("run-directory", err.Error(), needed, "choose an absolute EVTPM_HOME")
		return
	}
	name := "machine"
	if d.spec != nil {
		name = d.spec.Name
	}
	switch err := machine.CheckHome(dir, name); {
	case err == nil:
		d.ok("run-directory", "%s", dir)
	case errors.Is(err, fs.ErrNotExist):
		if err := canWrite(dir); err != nil {
			d.fail("run-directory", fmt.Sprintf("%s cannot be made: %v", dir, err), needed, "choose an EVTPM_HOME that this user can make")
			return
		}
		d.ok("run-directory", "%s, to be made", dir)
	default:
		d.fail("run-directory", err.Error(), needed, "choose another EVTPM_HOME")
	}
}

// canWrite reports why a directory could not be written, or made where the
// nearest that exists above it is.
func canWrite(dir string) error {
	for {
		_, err := os.Lstat(dir)
		if err == nil {
			break
		}
		up := filepath.Dir(dir)
		if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTDIR) || up == dir {
			return err
		}
		dir = up
	}
	info, err := os.Stat(dir)
	if err != nil {
		return err // a link to nowhere
	}
	if !info.IsDir() {
		return fmt.Errorf("%s: found a file, expected a directory", dir)
	}
	if err := unix.Access(dir, unix.W_OK|unix.X_OK); err != nil {
		return &fs.PathError{Op: "write", Path: dir, Err: err}
	}
	return nil
}

// stateDir looks at the state directory without making it.
func (d *examination) stateDir() {
	if err := canWrite(d.o.StateDir); err != nil {
		d.fail("state-directory", fmt.Sprintf("%s cannot be written: %v", d.o.StateDir, err), "a directory that this user can write", "choose an EVTPM_STATE that this user can write")
		return
	}
	d.ok("state-directory", "%s", d.o.StateDir)
}

// firmwarePaths is where distributions put OVMF images that -bios loads.
var firmwarePaths = []string{
	"/usr/share/ovmf/OVMF.amdsev.fd",
	"/usr/share/edk2/ovmf/OVMF.amdsev.fd",
	"/usr/share/ovmf/OVMF.fd",
	"/usr/share/qemu/OVMF.fd",
	"/usr/share/OVMF/OVMF.fd",
}

// firmware looks for OVMF images where distributions put them.
func (d *examination) firmware() {
	const fix = "install OVMF (Debian: ovmf, and ovmf-amdsev for kernel hashes), or name an image in firmware.path"
	var seen []fs.FileInfo // one image often has several names
	for _, path := range firmwarePaths {
		info, err := os.Stat(d.path(path))
		if errors.Is(err, fs.ErrNotExist) || slices.ContainsFunc(seen, func(o fs.FileInfo) bool { return os.SameFile(info, o) }) {
			continue
		}
		text, err := describeFirmware(d.path(path))
		if err != nil {
			d.warn("firmware", fmt.Sprintf("%s: %v", path, err), "an OVMF image that SEV-SNP can start", fix)
			continue
		}
		seen = append(seen, info)
		d.ok("firmware", "%s: %s", path, text)
	}
	if seen == nil {
		d.fail("firmware", "no OVMF image was found", "an OVMF image that SEV-SNP can start", fix)
	}
}

// describeFirmware says what an image can do; it is an error that it cannot be
// started as an SNP VM, which both platforms measure it as.
func describeFirmware(path string) (string, error) {
	f, size, err := inputfile.Open(path, inputfile.MaxFirmware)
	if err != nil {
		return "", err
	}
	defer f.Close()
	img, err := ovmf.Scan(f, size)
	if err == nil {
		err = img.CheckSNP()
	}
	if err != nil {
		return "", err
	}
	if img.CheckKernelHashes(measure.ModeSNP) != nil {
		return "SEV-SNP, without kernel hashes", nil
	}
	return "SEV-SNP, with kernel hashes", nil
}
