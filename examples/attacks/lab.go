//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// A lab is where attacks are mounted: evtpm's command line, and folders of its
// own for what it keeps.
type lab struct {
	evtpm, kernel, initrd, badInitrd, firmware, amdsev string

	self string // this program
	root string // of everything that is written
	dir  string // of this attack
}

func (l *lab) open() error {
	var err error
	if l.self, err = os.Executable(); err != nil {
		return err
	}
	for _, path := range []*string{&l.evtpm, &l.kernel, &l.initrd, &l.badInitrd, &l.firmware, &l.amdsev} {
		if *path, err = filepath.Abs(*path); err != nil {
			return err
		}
		if _, statErr := os.Stat(*path); statErr != nil {
			err = errors.Join(err, statErr)
		}
	}
	if err != nil {
		return fmt.Errorf("%w (make demo-attacks sets everything up)", err)
	}
	l.root, err = os.MkdirTemp("", "attacks-")
	return err
}

func (l *lab) close() { os.RemoveAll(l.root) }

// sub returns the lab for one attack.
func (l *lab) sub(name string) (*lab, error) {
	s := *l
	s.dir = filepath.Join(l.root, name)
	return &s, os.MkdirAll(s.dir, 0o700)
}

// A vm is what an attack starts.
type vm struct {
	name string
	// hashes uses the firmware that checks kernel hashes.
	hashes  bool
	binding string // empty: svsm
	initrd  string // empty: the honest one
	cmdline string // appended
	machine string // simulated machine; empty: this one
	qemu    []string
	boot    time.Duration // boot timeout; zero: 60 s
}

// spec writes the VM's spec and returns its path.
func (l *lab) spec(v vm) (string, error) {
	firmware, hashes := l.firmware, "off"
	if v.hashes {
		firmware, hashes = l.amdsev, "on"
	}
	if v.initrd == "" {
		v.initrd = l.initrd
	}
	if v.binding == "" {
		v.binding = "svsm"
	}
	if v.boot == 0 {
		v.boot = time.Minute
	}
	var b strings.Builder
	fmt.Fprintf(&b, "version: 1\nname: %s\nplatform: sim\n", v.name)
	fmt.Fprintf(&b, "firmware: {path: %q}\nkernel: %q\ninitrd: %q\nkernel_hashes: %q\n", firmware, l.kernel, v.initrd, hashes)
	fmt.Fprintf(&b, "cmdline: %q\n", strings.TrimSpace("quiet loglevel=0 "+v.cmdline))
	fmt.Fprintf(&b, "memory: 256M\nvtpm: {binding: %s}\ntimeouts: {boot: %s}\n", v.binding, v.boot)
	if v.machine != "" {
		fmt.Fprintf(&b, "sim: {machine: %s}\n", v.machine)
	}
	if v.qemu != nil {
		wrapper, err := l.wrapper(v.name, v.qemu)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(&b, "qemu: {binary: %q}\n", wrapper)
	}
	path := filepath.Join(l.dir, v.name+".yaml")
	return path, os.WriteFile(path, []byte(b.String()), 0o600)
}

// wrapper writes the program that stands in QEMU's place.
func (l *lab) wrapper(name string, args []string) (string, error) {
	work := filepath.Join(l.dir, name+".work")
	if err := os.MkdirAll(work, 0o700); err != nil {
		return "", err
	}
	words := append([]string{l.self, "qemu", "-dir", work}, args...)
	for i, w := range words {
		words[i] = "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
	}
	path := filepath.Join(l.dir, name+".qemu")
	return path, os.WriteFile(path, []byte("#!/bin/sh\nexec "+strings.Join(words, " ")+` -- "$@"`+"\n"), 0o700)
}

// An outcome is how evtpm ended.
type outcome struct {
	code    int
	reason  string   // wanted: one of them; found: the first
	reasons []string // all that were found
	message string   // found: why there is no verdict
}

// trusted is the outcome of an honest launch.
var trusted = outcome{}

// same says whether the outcome found is the one wanted: the exit code, and the
// reason among those given.
func (o outcome) is(want outcome) bool {
	return o.code == want.code && (want.reason == "" || slices.Contains(o.reasons, want.reason))
}

func (o outcome) String() string {
	return strings.TrimSpace(fmt.Sprintf("exit %d %v %s", o.code, o.reasons, o.message))
}

// document is what evtpm prints with -o json.
type document struct {
	Verdict *struct {
		Result string
		Checks []struct{ Status, Reason string }
	}
	Error *struct {
		Phase   string
		Message string
	}
}

// run calls evtpm and reads its document.
func (l *lab) run(ctx context.Context, args ...string) (outcome, error) {
	return l.runAs(ctx, l.evtpm, args...)
}

func (l *lab) runAs(ctx context.Context, program string, args ...string) (outcome, error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.Env = append(os.Environ(), "EVTPM_HOME="+filepath.Join(l.dir, "run"))
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return outcome{}, err
	}
	o := outcome{code: cmd.ProcessState.ExitCode()}
	if o.code < 0 {
		return o, fmt.Errorf("evtpm did not end by itself: %s", tail(stderr.Bytes()))
	}
	var doc document
	if err := json.Unmarshal(stdout.Bytes(), &doc); err != nil {
		return o, fmt.Errorf("exit %d, output is no document: %s", o.code, tail(stderr.Bytes()))
	}
	if doc.Verdict != nil {
		for _, c := range doc.Verdict.Checks {
			if c.Status == "failed" {
				o.reasons = append(o.reasons, c.Reason)
			}
		}
		if (doc.Verdict.Result == "trusted") != (o.code == 0) {
			return o, fmt.Errorf("verdict %q with exit code %d", doc.Verdict.Result, o.code)
		}
	}
	if doc.Error != nil {
		o.reasons = append(o.reasons, "no verdict: "+doc.Error.Phase)
		o.message = doc.Error.Message
		if o.code == 1 {
			return o, errors.New(doc.Error.Message)
		}
	}
	return o, nil
}

func tail(b []byte) string {
	s := strings.TrimSpace(string(b))
	return s[max(0, len(s)-400):]
}

// launch starts a VM, judges it and removes it.
func (l *lab) launch(ctx context.Context, v vm) (outcome, error) {
	path, err := l.spec(v)
	if err != nil {
		return outcome{}, err
	}
	return l.run(ctx, "launch", "--rm", "-o", "json", path)
}

// keep starts a VM that must be trusted and leaves it running until stop.
func (l *lab) keep(ctx context.Context, v vm) (stop func(), err error) {
	path, err := l.spec(v)
	if err != nil {
		return nil, err
	}
	o, err := l.run(ctx, "launch", "-o", "json", path)
	if err == nil && !o.is(trusted) {
		err = fmt.Errorf("%s before the attack: %v", v.name, o)
	}
	stop = func() {
		cmd := exec.Command(l.evtpm, "-q", "kill", v.name)
		cmd.Env = append(os.Environ(), "EVTPM_HOME="+filepath.Join(l.dir, "run"))
		_ = cmd.Run() // it may have ended by itself
	}
	if err != nil {
		stop()
		return nil, err
	}
	return stop, nil
}

// machineFile is a file of a running machine.
func (l *lab) machineFile(name, file string) string {
	return filepath.Join(l.dir, "run", name, file)
}
