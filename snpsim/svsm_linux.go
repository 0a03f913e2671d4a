package snpsim

import (
	"context"
	"crypto/sha512"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
)

// SVSMOptions say how the simulated SVSM and its vTPM run.
type SVSMOptions struct {
	// Dir is a private folder for the control socket, of at most 80 bytes so
	// that the socket's path fits. The vTPM's state lies in a folder of its own
	// on a memory file system, below Dir when Dir is on one, else below
	// /dev/shm.
	Dir string
	// Swtpm is the program; empty means "swtpm" from PATH.
	Swtpm string
	// Spawn starts a process that must not outlive the caller; nil starts it
	// with no such promise.
	Spawn func(*exec.Cmd) error
	// OnReset, when not nil, is called when the guest was reset: the vTPM is
	// dead then.
	OnReset func()

	// KeptState, when not empty, is a folder whose TPM state is used instead of
	// fresh state, and kept: an SVSM that is not ephemeral. For demonstrations
	// of attacks.
	KeptState string
	// GuestVMPL is the guest's privilege level: zero means 1, as in the paper.
	GuestVMPL uint32
	// GuestAtVMPL0 runs the guest itself at VMPL0, without an SVSM above it, so
	// that it gets any report it asks for. For demonstrations of attacks.
	GuestAtVMPL0 bool
}

// An SVSM is the simulated SVSM of one VM: its vTPM, and the services it offers
// to the guest.
type SVSM struct {
	o        SVSMOptions
	state    string
	socket   string
	listener *net.UnixListener
	cmd      *exec.Cmd
	control  *control
	tpm      *channel

	exited  chan struct{} // closed when swtpm has ended
	exitErr error

	mu   sync.Mutex
	sp   *SP
	ek   []byte // TPM2B_PUBLIC
	errs []error
	once sync.Once
}

// StartSVSM starts the vTPM, with fresh state, and listens for QEMU at
// [SVSM.ControlSocket]. Nothing of it outlives Close.
func StartSVSM(ctx context.Context, o SVSMOptions) (*SVSM, error) {
	s := &SVSM{o: o, exited: make(chan struct{})}
	if err := s.start(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("simulated SVSM: %w", err), s.Close())
	}
	return s, nil
}

func (s *SVSM) start(ctx context.Context) error {
	if err := s.makeState(); err != nil {
		return err
	}
	swtpm, theirControl, err := socketPair("swtpm-control")
	if err != nil {
		return err
	}
	defer theirControl.Close()
	s.control = &control{swtpm: swtpm, inited: make(chan struct{}), onReset: s.o.OnReset}
	name := s.o.Swtpm
	if name == "" {
		name = "swtpm"
	}
	// The process ends with its control connection, which is ours alone.
	s.cmd = exec.Command(name, "socket", "--tpm2", "--tpmstate", "dir="+s.state, "--ctrl", "type=unixio,clientfd=3", "--terminate")
	s.cmd.ExtraFiles = []*os.File{theirControl}
	s.cmd.Dir = s.state
	spawn := s.o.Spawn
	if spawn == nil {
		spawn = (*exec.Cmd).Start
	}
	if err := spawn(s.cmd); err != nil {
		s.cmd = nil
		close(s.exited)
		return fmt.Errorf("starting %s: %w", name, err)
	}
	go func() {
		s.exitErr = s.cmd.Wait()
		close(s.exited)
	}()
	stop := context.AfterFunc(ctx, func() { s.cmd.Process.Kill() })
	defer stop()
	data, theirData, err := socketPair("swtpm-data")
	if err != nil {
		return err
	}
	err = sendDataFD(swtpm, theirData)
	theirData.Close()
	if err != nil {
		data.Close()
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return fmt.Errorf("starting %s: %w", name, err)
	}
	s.tpm = &channel{conn: data}
	s.control.tpm = s.tpm
	s.socket = filepath.Join(s.o.Dir, "vtpm.sock")
	s.listener, err = net.ListenUnix("unix", &net.UnixAddr{Name: s.socket, Net: "unix"})
	if err != nil {
		return err
	}
	go s.serveControl()
	return nil
}

// tmpfsMagic and ramfsMagic are file system types that live in memory.
const (
	tmpfsMagic = 0x01021994
	ramfsMagic = 0x858458f6
)

// makeState makes the private folder for the vTPM's state, in memory.
func (s *SVSM) makeState() error {
	if s.o.KeptState != "" {
		s.state = s.o.KeptState
		return nil
	}
	for _, dir := range []string{s.o.Dir, "/dev/shm"} {
		var st syscall.Statfs_t
		if err := syscall.Statfs(dir, &st); err != nil || (uint32(st.Type) != tmpfsMagic && uint32(st.Type) != ramfsMagic) {
			continue
		}
		var err error
		s.state, err = os.MkdirTemp(dir, "evtpm-vtpm-") // mode 0700
		return err
	}
	return fmt.Errorf("vTPM state: neither %s nor /dev/shm is a memory file system (tmpfs), which the state must lie on", s.o.Dir)
}

// ControlSocket is what QEMU's -tpmdev emulator connects to.
func (s *SVSM) ControlSocket() string { return s.socket }

// serveControl serves QEMU, which connects once.
func (s *SVSM) serveControl() {
	conn, err := s.listener.AcceptUnix()
	if err != nil {
		return
	}
	s.listener.Close() // removes the socket: there is one QEMU
	s.mu.Lock()
	s.control.qemu = conn
	s.mu.Unlock()
	if err := s.control.run(); err != nil && !errors.Is(err, net.ErrClosed) {
		s.mu.Lock()
		s.errs = append(s.errs, err)
		s.mu.Unlock()
	}
	conn.Close()
}

// Provision makes the vTPM ready for a VM that the AMD-SP has measured and that
// has not run yet: it starts the TPM, makes the EK, and writes the report whose
// REPORT_DATA is the SHA-512 of the EK (TPM2B_PUBLIC) to NV index 0x01C00002. It
// waits until QEMU has initialised the TPM.
func (s *SVSM) Provision(ctx context.Context, sp *SP) error {
	select {
	case <-s.control.inited:
	case <-s.exited:
		return fmt.Errorf("simulated SVSM: swtpm ended before QEMU initialised it: %w", s.failure())
	case <-ctx.Done():
		return fmt.Errorf("simulated SVSM: waiting for QEMU to initialise the vTPM: %w", context.Cause(ctx))
	}
	ek, err := startUp(s.tpm)
	if err != nil {
		return fmt.Errorf("simulated SVSM: %w", err)
	}
	report, err := sp.Report(VMPLSVSM, sha512.Sum512(ek))
	if err != nil {
		return err
	}
	if err := writeReport(s.tpm, report); err != nil {
		return fmt.Errorf("simulated SVSM: %w", err)
	}
	s.mu.Lock()
	s.ek, s.sp = ek, sp
	s.mu.Unlock()
	s.control.mu.Lock()
	s.control.provisioned = true
	s.control.mu.Unlock()
	return nil
}

func (s *SVSM) failure() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return errors.Join(append(s.errs, s.exitErr)...)
}

// EKPublic is the EK as TPM2B_PUBLIC; nil before Provision.
func (s *SVSM) EKPublic() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ek
}

// Exited is closed when the vTPM's process has ended, expected or not.
func (s *SVSM) Exited() <-chan struct{} { return s.exited }

// Pid is the process identifier of swtpm; zero when it was not started.
func (s *SVSM) Pid() int {
	if s.cmd == nil || s.cmd.Process == nil {
		return 0
	}
	return s.cmd.Process.Pid
}

// Close ends the vTPM and removes its state and sockets.
func (s *SVSM) Close() error {
	var err error
	s.once.Do(func() { err = s.close() })
	return err
}

func (s *SVSM) close() error {
	if s.listener != nil {
		s.listener.Close()
	}
	s.mu.Lock()
	if s.control != nil {
		s.control.swtpm.Close()
		if s.control.qemu != nil {
			s.control.qemu.Close()
		}
	}
	s.mu.Unlock()
	if s.tpm != nil {
		s.tpm.conn.Close()
	}
	if s.cmd != nil {
		s.cmd.Process.Kill()
		<-s.exited
	}
	if s.state == "" || s.o.KeptState != "" {
		return nil
	}
	if err := os.RemoveAll(s.state); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("simulated SVSM: removing the vTPM's state: %w", err)
	}
	return nil
}

// guestVMPL is the level that the guest's own requests come from.
func (s *SVSM) guestVMPL() uint32 {
	switch {
	case s.o.GuestAtVMPL0:
		return 0
	case s.o.GuestVMPL == 0:
		return 1
	}
	return s.o.GuestVMPL
}

// certTable are the certificates that the host gives along.
func (sp *SP) certTable() []byte { return sp.Chip().CertTable() }
