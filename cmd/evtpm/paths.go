package main

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
)

// runDir is the run directory: one folder for each machine. Nothing in it
// outlives the system's boot.
func (u *ui) runDir() (string, error) {
	if dir := u.getenv("EVTPM_HOME"); dir != "" {
		return dir, nil
	}
	if dir := u.getenv("XDG_RUNTIME_DIR"); dir != "" {
		return filepath.Join(dir, "evtpm"), nil
	}
	if os.Geteuid() == 0 {
		return "/run/evtpm", nil
	}
	return "", errors.New("no run directory: neither EVTPM_HOME nor XDG_RUNTIME_DIR is set; set EVTPM_HOME to a folder of yours, which need not exist")
}

// stateDir is what outlives machines: the simulated platform's root of trust,
// the registry of EKs.
func (u *ui) stateDir() (string, error) {
	if dir := u.getenv("EVTPM_STATE"); dir != "" {
		return filepath.Abs(dir)
	}
	if dir := u.getenv("XDG_STATE_HOME"); dir != "" {
		return filepath.Join(dir, "evtpm"), nil
	}
	if os.Geteuid() == 0 && runtime.GOOS == "linux" {
		return "/var/lib/evtpm", nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", errors.New("no state directory: none of EVTPM_STATE, XDG_STATE_HOME and HOME is set")
	}
	return filepath.Join(home, ".local", "state", "evtpm"), nil
}

// runtimeDir is where libvirt's daemon of this session listens, in the folder
// libvirt: as libvirt chooses it.
func (u *ui) runtimeDir() string {
	for _, name := range []string{"XDG_RUNTIME_DIR", "XDG_CACHE_HOME"} {
		if dir := u.getenv(name); dir != "" {
			return dir
		}
	}
	if home := u.getenv("HOME"); home != "" {
		return filepath.Join(home, ".cache")
	}
	return ""
}

// simRootDir is where the simulated platform's root of trust lies: what
// --trust-sim trusts.
func (u *ui) simRootDir() (string, error) {
	dir, err := u.stateDir()
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, "sim"), nil
}
