//go:build linux

package main

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"time"
)

// An attack is mounted on VMs of its own.
type attack struct {
	name string
	what string
	// want is the exit code, and the reason code that must be among those of
	// the verdict.
	want  outcome
	mount func(context.Context, *lab) (outcome, error)
}

func refusal(code int, reason string) outcome { return outcome{code: code, reason: reason} }

// once is an attack that one launch shows.
func once(v vm) func(context.Context, *lab) (outcome, error) {
	v.name = "victim"
	return func(ctx context.Context, l *lab) (outcome, error) { return l.launch(ctx, v) }
}

// bootWait is how long a VM whose firmware refuses the kernel is given; an
// honest one boots in less than half of it.
const bootWait = 25 * time.Second

// attacks lists what is mounted. The first lines are no attacks: they show that
// the same launches are trusted when nobody interferes.
var attacks = []attack{
	{"honest", "the same VM, and nobody interferes", trusted, once(vm{})},
	{"honest-hashes", "the same with kernel hashes", trusted, once(vm{hashes: true})},
	{"honest-nv", "the same with the report in the NV index", trusted, once(vm{binding: "nv"})},

	{"firmware-swapped", "QEMU loads another firmware than was planned",
		refusal(6, "measurement-differs"), once(vm{qemu: []string{"-firmware", "flip"}})},

	{"kernel-swapped", "QEMU loads another kernel; the PCRs bind it",
		refusal(6, "pcr-differs"), once(vm{qemu: []string{"-kernel", "flip"}})},
	{"initrd-swapped", "QEMU loads another initramfs; the PCRs bind it",
		refusal(6, "pcr-differs"), once(vm{qemu: []string{"-initrd", "pad"}})},
	{"cmdline-swapped", "QEMU gets another command line; the PCRs bind it",
		refusal(6, "pcr-differs"), once(vm{qemu: []string{"-cmdline", "quiet loglevel=0 init=/bin/sh"}})},

	{"kernel-vs-hashes", "another kernel, and the firmware checks kernel hashes: it never starts",
		refusal(10, "no verdict: boot"), once(vm{hashes: true, boot: bootWait, qemu: []string{"-kernel", "flip"}})},
	{"initrd-vs-hashes", "another initramfs, likewise",
		refusal(10, "no verdict: boot"), once(vm{hashes: true, boot: bootWait, qemu: []string{"-initrd", "pad"}})},
	{"cmdline-vs-hashes", "another command line, likewise",
		refusal(10, "no verdict: boot"), once(vm{hashes: true, boot: bootWait, qemu: []string{"-cmdline", "quiet loglevel=0 init=/bin/sh"}})},
	{"hashes-swapped", "another command line and kernel hashes to match: it starts, and measures differently",
		refusal(6, "measurement-differs"), once(vm{hashes: true, qemu: []string{"-hashes", "-cmdline", "quiet loglevel=1"}})},

	{"second-tpm", "the host's own TPM in the place of the vTPM",
		refusal(7, "ek-mismatch"), secondTPM},

	{"nv-garbage", "the report in the NV index replaced by garbage",
		refusal(2, "report-version-unsupported"), once(vm{binding: "nv", qemu: []string{"-wire", "report-garbage"}})},
	{"nv-older-boot", "the report in the NV index replaced by that of an older boot",
		refusal(7, "report-data-differs"), olderBoot},
	{"nv-other-vm", "the report in the NV index replaced by that of another VM",
		refusal(7, "report-data-differs"), otherVM},
	{"nv-vmpl1", "the report in the NV index asked for by the guest, at VMPL1",
		refusal(7, "vmpl-not-zero"), guestReport(1)},
	{"nv-vmpl2", "the same at VMPL2", refusal(7, "vmpl-not-zero"), guestReport(2)},
	{"nv-vmpl3", "the same at VMPL3", refusal(7, "vmpl-not-zero"), guestReport(3)},

	{"no-svsm", "the guest itself runs at VMPL0 and makes VMPL0 reports",
		refusal(6, "measurement-differs"), superviseOnce(noSVSM)},
	{"kept-state", "a vTPM whose state was kept from the last boot",
		refusal(7, "ek-reused"), keptState},

	{"quote-replayed", "an older quote of the same vTPM",
		refusal(7, "quote-nonce-differs"), replayedQuote},
	{"eventlog-changed", "the event log changed on its way",
		refusal(6, "event-log-replay-differs"), once(vm{qemu: []string{"-wire", "eventlog-changed"}})},
	{"relayed", "the challenge answered by another machine's VM, which is genuine",
		refusal(5, "chip-not-launch-host"), relayed},
}

// secondTPM starts a TPM of the host's and gives it to the VM.
func secondTPM(ctx context.Context, l *lab) (outcome, error) {
	socket := filepath.Join(l.dir, "host-tpm.sock")
	swtpm := exec.CommandContext(ctx, "swtpm", "socket", "--tpm2", "--tpmstate", "dir="+l.dir, "--ctrl", "type=unixio,path="+socket, "--terminate")
	if err := swtpm.Start(); err != nil {
		return outcome{}, err
	}
	defer swtpm.Wait()
	defer swtpm.Process.Kill()
	return l.launch(ctx, vm{name: "victim", qemu: []string{"-tpm", socket}})
}

func olderBoot(ctx context.Context, l *lab) (outcome, error) {
	path, err := l.spec(vm{name: "older", binding: "nv"})
	if err != nil {
		return outcome{}, err
	}
	saved := filepath.Join(l.dir, "saved")
	if o, err := l.run(ctx, "launch", "--rm", "--save", saved, "-o", "json", path); err != nil || !o.is(trusted) {
		return o, fmt.Errorf("the older boot: %v, %w", o, err)
	}
	return l.launch(ctx, vm{name: "victim", binding: "nv", qemu: []string{"-wire", "report-from", "-wire-arg", filepath.Join(saved, "evidence.json")}})
}

func otherVM(ctx context.Context, l *lab) (outcome, error) {
	stop, err := l.keep(ctx, vm{name: "other", binding: "nv"})
	if err != nil {
		return outcome{}, err
	}
	defer stop()
	return l.launch(ctx, vm{name: "victim", binding: "nv", qemu: []string{"-wire", "report-from", "-wire-arg", l.machineFile("other", "evidence.json")}})
}

// guestReport runs the malicious guest, which asks for reports of a VMPL.
func guestReport(vmpl int) func(context.Context, *lab) (outcome, error) {
	return func(ctx context.Context, l *lab) (outcome, error) {
		return l.launch(ctx, vm{name: "victim", binding: "nv", initrd: l.badInitrd, cmdline: fmt.Sprintf("attack.vmpl=%d", vmpl)})
	}
}

// replayedQuote challenges a VM twice; the second quote is the first's.
func replayedQuote(ctx context.Context, l *lab) (outcome, error) {
	stop, err := l.keep(ctx, vm{name: "victim", qemu: []string{"-wire", "quote-replayed"}})
	if err != nil {
		return outcome{}, err
	}
	defer stop()
	return l.run(ctx, "attest", "-o", "json", "victim")
}

// relayed lets a VM on another machine answer.
func relayed(ctx context.Context, l *lab) (outcome, error) {
	stop, err := l.keep(ctx, vm{name: "elsewhere", machine: "another"})
	if err != nil {
		return outcome{}, err
	}
	defer stop()
	return l.launch(ctx, vm{name: "victim", qemu: []string{"-wire", "pass", "-wire-to", l.machineFile("elsewhere", "agent.sock")}})
}
