//go:build linux

// Command attacks mounts the attacks of the ACSAC 2023 paper on real VMs of the
// simulated platform, one VM an attack at least, and shows that each is refused,
// for its own reason.
//
// The attacker is the host (a program in QEMU's place, a wire between guest and
// verifier, an SVSM that keeps state), or the guest's root (a malicious /init).
// Plans, golden values and verdicts are evtpm's own, made by its command line.
//
// scripts/demo-attacks builds what it needs and calls it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"regexp"
	"runtime"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "attacks:", err)
		os.Exit(1)
	}
}

// run is one of the attacker's programs, or the list of attacks.
func run(ctx context.Context, args []string) error {
	if len(args) > 0 {
		switch args[0] {
		case "qemu":
			return inQEMUsPlace(args[1:])
		case "wire":
			return onTheWire(ctx, args[1:])
		case "lie":
			return lieOfCmdline(args[1:])
		case "supervise":
			return superviseBadly(ctx, args[1:])
		}
	}
	flags := flag.NewFlagSet("attacks", flag.ContinueOnError)
	l := &lab{}
	flags.StringVar(&l.evtpm, "evtpm", "bin/evtpm", "the command line")
	flags.StringVar(&l.kernel, "kernel", "build/kernel/vmlinuz", "kernel")
	flags.StringVar(&l.initrd, "initrd", "build/demo/initrd.cpio", "initramfs with the agent")
	flags.StringVar(&l.badInitrd, "bad-initrd", "build/attacks/initrd.cpio", "initramfs with the malicious guest")
	flags.StringVar(&l.firmware, "firmware", "/usr/share/ovmf/OVMF.fd", "OVMF without kernel hashes")
	flags.StringVar(&l.amdsev, "amdsev", "build/firmware/OVMF.amdsev.fd", "OVMF that checks kernel hashes")
	only := flags.String("run", "", "run the attacks that match this regular expression only")
	if err := flags.Parse(args); err != nil {
		return err
	}
	match, err := regexp.Compile(*only)
	if err != nil {
		return err
	}
	return l.runAll(ctx, match)
}

// runAll mounts every attack, prints a line each, and fails unless all were
// refused as they should be.
func (l *lab) runAll(ctx context.Context, match *regexp.Regexp) error {
	if err := l.open(); err != nil {
		return err
	}
	defer l.close()
	began := time.Now()
	var chosen []attack
	for _, a := range attacks {
		if match.MatchString(a.name) {
			chosen = append(chosen, a)
		}
	}
	// Each VM keeps one core busy. Lines come in the order of the list.
	lines := make([]chan line, len(chosen))
	slots := make(chan struct{}, runtime.NumCPU())
	for i, a := range chosen {
		lines[i] = make(chan line, 1)
		go func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			lines[i] <- l.mount(ctx, a)
		}()
	}
	refused, failed := 0, 0
	for _, c := range lines {
		r := <-c
		fmt.Println(r.text)
		refused += r.refused
		failed += r.failed
	}
	fmt.Printf("%d attacks refused, %d not as they should, in %.0fs\n", refused, failed, time.Since(began).Seconds())
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case failed > 0:
		return errors.New("not every attack was refused as it should be")
	case len(chosen) == 0:
		return errors.New("no attack of that name")
	}
	return nil
}

// A line is what is printed of one attack.
type line struct {
	text            string
	refused, failed int
}

// mount mounts one attack and judges what came of it.
func (l *lab) mount(ctx context.Context, a attack) line {
	if ctx.Err() != nil {
		return line{text: a.name + " not mounted", failed: 1}
	}
	start := time.Now()
	var got outcome
	own, err := l.sub(a.name)
	if err == nil {
		got, err = a.mount(ctx, own)
	}
	took := time.Since(start).Seconds()
	say := func(word, format string, args ...any) string {
		return fmt.Sprintf("%-18s %-8s %5.1fs  ", a.name, word, took) + fmt.Sprintf(format, args...)
	}
	switch {
	case err != nil:
		return line{text: say("ERROR", "%v", err), failed: 1}
	case !got.is(a.want):
		return line{text: say("MISSED", "found %v, expected exit %d %s", got, a.want.code, a.want.reason), failed: 1}
	case a.want.code == 0:
		return line{text: say("trusted", "%s", a.what)}
	}
	return line{text: say("refused", "exit %d, %s: %s", got.code, a.want.reason, a.what), refused: 1}
}

// inQEMUsPlace is the program that a spec's qemu.binary names.
func inQEMUsPlace(args []string) error {
	flags := flag.NewFlagSet("qemu", flag.ContinueOnError)
	h := &hostAttack{}
	flags.StringVar(&h.qemu, "qemu", "/usr/bin/qemu-system-x86_64", "")
	flags.StringVar(&h.dir, "dir", "", "")
	flags.StringVar(&h.firmware, "firmware", "", "")
	flags.StringVar(&h.kernel, "kernel", "", "")
	flags.StringVar(&h.initrd, "initrd", "", "")
	flags.StringVar(&h.cmdline, "cmdline", "", "")
	flags.BoolVar(&h.hashes, "hashes", false, "")
	flags.StringVar(&h.wire, "wire", "", "")
	flags.StringVar(&h.wireArg, "wire-arg", "", "")
	flags.StringVar(&h.wireTo, "wire-to", "", "")
	flags.StringVar(&h.tpm, "tpm", "", "")
	if err := flags.Parse(args); err != nil {
		return err
	}
	return h.become(flags.Args())
}

// onTheWire is the process between verifier and guest.
func onTheWire(ctx context.Context, args []string) error {
	if len(args) != 4 {
		return fmt.Errorf("wire: found %d arguments, expected listen, real, name and file", len(args))
	}
	t, ok := tampers(args[3])[args[2]]
	if !ok && args[2] != "pass" {
		return fmt.Errorf("wire: unknown attack %q", args[2])
	}
	return serveWire(ctx, args[0], args[1], t)
}
