package snpsim

import (
	"context"
	"crypto/sha512"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// controlSocket is the name of the socket that QEMU connects to.
const controlSocket = "vtpm.sock"

// maxSunPath is the room for a path in struct sockaddr_un, without its NUL.
const maxSunPath = 107

// SVSMOptions configures a simulated SVSM.
type SVSMOptions struct {
	// Dir is a private directory (mode 0700), in which the control socket is
	// made. Required.
	Dir string

	// Swtpm is the program: a path, or a name that is looked up in PATH. Empty is
	// "swtpm".
	Swtpm string

	// Spawn starts a process, as (*exec.Cmd).Start, which nil means. It is where
	// a caller sees to it that processes end with it; swtpm also ends by itself
	// when the process that called StartSVSM does. The SVSM waits for the
	// process.
	Spawn func(*exec.Cmd) error

	// OnReset is called when the guest was reset: the vTPM is gone, and nothing
	// will attest the VM that runs on. Nil is nothing to call.
	OnReset func()

	// Attack is for demonstrations of what a malicious platform could do. A
	// launch never sets it.
	Attack Attack
}

// An Attack is what a malicious platform does in place of the SVSM. The zero
// value is none.
type Attack struct {
	// KeptState is a directory whose TPM state is used and kept: a vTPM that is
	// not ephemeral, and has the EK of the boot before.
	KeptState string

	// GuestAtVMPL0 runs the guest itself at VMPL0, with no SVSM above it: it gets
	// every report that it asks for. [ReadOptions.NoSVSM] belongs to it.
	GuestAtVMPL0 bool
}

// An SVSM is the simulated SVSM of one VM: its vTPM, and what it offers to the
// guest. It is safe for concurrent use.
type SVSM struct {
	o        SVSMOptions
	tpm      *swtpm
	socket   string
	patience time.Duration // for the rest of a frame of the guest's
	listener *net.UnixListener
	serving  sync.WaitGroup

	made  chan struct{} // closed when the EK is there, or madeErr
	exits chan struct{} // closed when the vTPM ended by itself

	mu      sync.Mutex
	ek      []byte // TPM2B_PUBLIC; nil until made
	madeErr error
	power   int           // how often QEMU initialised the vTPM
	sp      *SP           // nil until provisioned
	over    error         // why the vTPM's life is over; nil while it lives
	guest   *net.UnixConn // data channel from QEMU
	qemu    *net.UnixConn // control channel from QEMU
}

// Reasons for the end of a vTPM's life.
var (
	errClosed     = errors.New("the vTPM was closed")
	errGuestReset = errors.New("the guest was reset, which ended the vTPM that was attested; start the machine anew")
	errQEMUGone   = errors.New("QEMU has gone, and the vTPM with it")
	errTPMGone    = errors.New("the vTPM's process has ended")
)

// StartSVSM starts a vTPM with fresh state, begins to make its EK, and listens
// for QEMU at [SVSM.ControlSocket]. The state lies in memory, under no name, and
// ends with [SVSM.Close], with QEMU, or with this process. ctx bounds the start.
//
// Until [SVSM.Provision], the guest's TPM commands are answered TPM_RC_RETRY.
func StartSVSM(ctx context.Context, o SVSMOptions) (*SVSM, error) {
	if o.Swtpm == "" {
		o.Swtpm = "swtpm"
	}
	if o.Spawn == nil {
		o.Spawn = (*exec.Cmd).Start
	}
	s := &SVSM{o: o, patience: frameTimeout, made: make(chan struct{}), exits: make(chan struct{}), socket: filepath.Join(o.Dir, controlSocket)}
	if err := s.start(ctx); err != nil {
		return nil, fmt.Errorf("simulated SVSM: %w", err)
	}
	return s, nil
}

func (s *SVSM) start(ctx context.Context) error {
	if len(s.socket) > maxSunPath {
		return fmt.Errorf("the path of socket %s is %d bytes long, expected at most %d", s.socket, len(s.socket), maxSunPath)
	}
	if err := checkSocketDir(s.o.Dir); err != nil {
		return err
	}
	var err error
	if s.tpm, err = startSwtpm(ctx, s.o.Swtpm, s.o.Attack.KeptState, s.o.Spawn); err != nil {
		return err
	}
	if s.listener, err = net.ListenUnix("unix", &net.UnixAddr{Name: s.socket, Net: "unix"}); err != nil {
		s.tpm.kill()
		return err
	}
	s.serving.Go(s.makeEK)
	s.serving.Go(s.accept)
	go s.watch()
	return nil
}

// checkSocketDir refuses a directory in which others could reach the vTPM.
func checkSocketDir(dir string) error {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return fmt.Errorf("directory %s: %w", dir, err)
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFDIR:
		return fmt.Errorf("%s: found a file, expected a directory", dir)
	case st.Mode&0o077 != 0:
		return fmt.Errorf("%s: found mode %04o, expected 0700: others could reach the vTPM", dir, st.Mode&0o777)
	}
	return nil
}

func (s *SVSM) makeEK() {
	defer close(s.made)
	ek, err := makeEK(s.tpm)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ek, s.madeErr = ek, err
}

// watch notices when swtpm ends by itself.
func (s *SVSM) watch() {
	<-s.tpm.exited
	if s.end(errTPMGone) {
		close(s.exits)
	}
}

// end ends the vTPM's life, once; it reports whether this call did.
func (s *SVSM) end(reason error) bool {
	s.mu.Lock()
	first := s.over == nil
	if first {
		s.over = reason
	}
	s.mu.Unlock()
	if first {
		s.tpm.kill()
	}
	return first
}

// accept serves QEMU: one connection at a time, and none after the one that the
// VM ran with. QEMU may come and go before: a start can fail and be tried again.
func (s *SVSM) accept() {
	for {
		conn, err := s.listener.AcceptUnix()
		if err != nil {
			return
		}
		s.mu.Lock()
		s.qemu = conn
		closed := s.over != nil
		s.mu.Unlock()
		if closed {
			conn.Close()
			return
		}
		_ = serveControl(conn, s) // QEMU's fault shows in QEMU's end
		conn.Close()

		s.mu.Lock()
		if s.guest != nil {
			s.guest.Close()
		}
		s.guest, s.qemu, s.power = nil, nil, 0
		ran := s.sp != nil
		s.mu.Unlock()
		if ran {
			s.end(errQEMUGone)
			s.listener.Close()
			return
		}
	}
}

// attach implements tpmPower.
func (s *SVSM) attach(guest *net.UnixConn) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.guest != nil {
		return errors.New("found a second data channel, expected one")
	}
	s.guest = guest
	s.serving.Go(func() { relay(guest, s.send) })
	return nil
}

// send passes the guest's command to the vTPM.
func (s *SVSM) send(command []byte) []byte {
	s.mu.Lock()
	ready, over := s.sp != nil, s.over
	s.mu.Unlock()
	switch {
	case over != nil:
		return tpmError(tpmRCFailure)
	case !ready:
		// QEMU probes for the TPM's version, while the EK is being made. No
		// instruction of the guest has run.
		return tpmError(tpmRCRetry)
	}
	response, err := s.tpm.Send(command)
	if err != nil {
		return tpmError(tpmRCFailure)
	}
	return response
}

// initialise implements tpmPower. The first time in a VM's life it is power on,
// which the vTPM has had from the SVSM; a second time it is a reset of the VM,
// and ends the vTPM's life. QEMU is told that all is well, since it would exit:
// what runs on has a TPM in failure mode.
func (s *SVSM) initialise() error {
	s.mu.Lock()
	s.power++
	reset := s.power > 1 && s.sp != nil
	over := s.over
	s.mu.Unlock()
	if errors.Is(over, errGuestReset) {
		return nil
	}
	if over != nil || !reset {
		return over
	}
	if s.end(errGuestReset) && s.o.OnReset != nil {
		go s.o.OnReset() // which may well call Close
	}
	return nil
}

// locality implements tpmPower.
func (s *SVSM) locality(l uint8) error { return s.tpm.locality(l) }

// cancel implements tpmPower.
func (s *SVSM) cancel() error { return s.tpm.cancel() }

// ControlSocket is what QEMU's -tpmdev emulator connects to.
func (s *SVSM) ControlSocket() string { return s.socket }

// Provision binds the vTPM to a guest that the AMD-SP has measured and that has
// not run yet: it asks the AMD-SP for a report for VMPL0 whose REPORT_DATA is the
// SHA-512 of the EK (TPM2B_PUBLIC), and writes it to NV index 0x01C00002, as the
// ACSAC 2023 prototype does. From then on the guest can use the vTPM, and [SVSM.Serve]
// attests it.
func (s *SVSM) Provision(ctx context.Context, sp *SP) error {
	if err := s.provision(ctx, sp); err != nil {
		return fmt.Errorf("simulated SVSM: %w", err)
	}
	return nil
}

func (s *SVSM) provision(ctx context.Context, sp *SP) error {
	select {
	case <-s.made:
	case <-ctx.Done():
		return fmt.Errorf("wait for the EK: %w", context.Cause(ctx))
	}
	s.mu.Lock()
	ek, err := s.ek, errors.Join(s.over, s.madeErr)
	again := s.sp != nil
	s.mu.Unlock()
	if err != nil {
		return err
	}
	if again {
		return errors.New("the vTPM has been provisioned already")
	}
	if !s.o.Attack.GuestAtVMPL0 {
		report, err := sp.Report(VMPLSVSM, sha512.Sum512(ek))
		if err != nil {
			return err
		}
		if err := writeReport(s.tpm, report); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sp = sp
	return s.over
}

// EKPublic returns the EK as TPM2B_PUBLIC: nil while it is being made, which
// Provision waits for.
func (s *SVSM) EKPublic() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ek
}

// Exited is closed when the vTPM's process has ended by itself.
func (s *SVSM) Exited() <-chan struct{} { return s.exits }

// Pid is the process identifier of swtpm.
func (s *SVSM) Pid() int { return s.tpm.cmd.Process.Pid }

// Close ends the vTPM and what serves it. Nothing of it is left.
func (s *SVSM) Close() error {
	s.end(errClosed)
	err := s.listener.Close()
	if errors.Is(err, net.ErrClosed) {
		err = nil
	}
	s.mu.Lock()
	for _, c := range []*net.UnixConn{s.qemu, s.guest} {
		if c != nil {
			c.Close()
		}
	}
	s.mu.Unlock()
	s.serving.Wait()
	return err
}
