//go:build linux

// Command guest is a malicious /init: a guest whose root hands out reports of
// its own making for the vTPM, with the right EK digest in them. It is what is
// left to an attacker inside the VM: asking the AMD-SP directly, at the guest's
// own privilege level.
package main

import (
	"context"
	"crypto/sha512"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"golang.org/x/sys/unix"

	"github.com/evtpm/evtpm/agent"
	"github.com/evtpm/evtpm/attest/evidence"
)

func main() {
	if err := run(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "malicious guest:", err)
	}
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF) // the host waits for no more than its time limit
}

func run(ctx context.Context) error {
	for _, m := range [][2]string{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}, {"securityfs", "/sys/kernel/security"}} {
		err := os.MkdirAll(m[1], 0o755)
		if err == nil {
			err = unix.Mount(m[0], m[1], m[0], 0, "")
		}
		if err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("%s: %w", m[1], err)
		}
	}
	vmpl, err := wantedVMPL()
	if err != nil {
		return err
	}
	device, err := agent.FindPort("org.evtpm.agent.0")
	if err != nil {
		return err
	}
	tpm, err := agent.OpenTPM()
	if err != nil {
		return err
	}
	listener, err := agent.ListenPort(device)
	if err != nil {
		return err
	}
	a, err := agent.New(agent.Options{
		TPM:     tpm,
		Sources: []agent.Source{&forger{tpm: tpm, vmpl: vmpl}},
		BootID:  agent.BootID, EventLog: agent.EventLog,
	})
	if err != nil {
		return err
	}
	return a.ServeListener(ctx, listener, agent.ListenOptions{})
}

// wantedVMPL reads attack.vmpl from the kernel's command line.
func wantedVMPL() (uint32, error) {
	cmdline, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return 0, err
	}
	for word := range strings.FieldsSeq(string(cmdline)) {
		if v, ok := strings.CutPrefix(word, "attack.vmpl="); ok {
			n, err := strconv.ParseUint(v, 10, 32)
			return uint32(n), err
		}
	}
	return 0, errors.New("no attack.vmpl on the command line")
}

// A forger is a source of reports that asks the AMD-SP as the guest's kernel
// can, with the REPORT_DATA that the SVSM would use.
type forger struct {
	tpm  transport.TPM
	vmpl uint32
}

func (f *forger) Bindings() []string { return []string{evidence.BindingNV} }

func (f *forger) Attest(ctx context.Context, _ string, _ []byte) (*agent.Attestation, error) {
	ek, err := tpm2.ReadPublic{ObjectHandle: tpm2.TPMHandle(0x81010001)}.Execute(f.tpm)
	if err != nil {
		return nil, err
	}
	data := sha512.Sum512(tpm2.Marshal(ek.OutPublic))
	device, err := agent.FindPort("org.evtpm.svsm.0")
	if err != nil {
		return nil, err
	}
	conn, err := agent.DialPort(ctx, device)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	return ask(conn, evidence.GuestReport{ReportData: data[:], VMPL: f.vmpl})
}

func ask(conn net.Conn, req evidence.GuestReport) (*agent.Attestation, error) {
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		return nil, err
	}
	payload, err := json.Marshal(req)
	if err != nil {
		return nil, err
	}
	if err := evidence.WriteFrame(conn, evidence.FrameGuestReport, payload); err != nil {
		return nil, err
	}
	t, payload, err := evidence.ReadFrame(conn, 0)
	if err != nil {
		return nil, err
	}
	if t != evidence.FrameGuestReportReply {
		return nil, fmt.Errorf("the AMD-SP refuses: %s", payload)
	}
	var reply evidence.GuestReportReply
	if err := json.Unmarshal(payload, &reply); err != nil {
		return nil, err
	}
	return &agent.Attestation{Report: reply.Report, Certificates: reply.Certificates}, nil
}
