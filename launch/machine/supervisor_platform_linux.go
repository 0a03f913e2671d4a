package machine

import (
	"context"
	"fmt"
	"net"
	"os"

	"github.com/evtpm/evtpm/attest"
	"github.com/evtpm/evtpm/launch"
	"github.com/evtpm/evtpm/launch/sev"
)

// A platform is what differs between hardware and its simulation.
type platform interface {
	// prepare starts what QEMU connects to, and returns the control socket of the
	// vTPM.
	prepare(ctx context.Context) (tpm string, err error)
	// serve answers the guest on the port of the simulated SVSM.
	serve(port net.Conn)
	// measure and vtpm are phases. The message tells what came of them; empty
	// means that the platform has no such phase.
	measure(ctx context.Context) (string, error)
	vtpm(ctx context.Context) (string, error)
	// trust says which roots and which chip evidence is judged by.
	trust(o *attest.Options) error
	// close ends what prepare started. It is called once, QEMU being gone.
	close()
}

// newPlatform makes the platform that the plan names.
func newPlatform(s *supervisor) (platform, error) {
	if s.plan.Spec.Platform == launch.PlatformSim {
		return newSimPlatform(s)
	}
	return &hardware{pin: s.plan.Spec.Attestation.Chip != launch.ChipAny, device: sev.Device, ask: sev.ChipID}, nil
}

// hardware is platform snp: the AMD-SP measures, the SVSM in the guest has the
// vTPM, and AMD's roots are the verifier's own.
type hardware struct {
	pin    bool // to this host's chip
	device string
	ask    func(device *os.File) ([]byte, error)

	chip []byte
}

func (*hardware) prepare(context.Context) (string, error) { return "", nil }
func (*hardware) serve(net.Conn)                          {}
func (*hardware) vtpm(context.Context) (string, error)    { return "", nil }
func (*hardware) close()                                  {}

// measure notes which chip has measured: this host's. It comes after QEMU, which
// says better than a missing device what a host lacks.
func (h *hardware) measure(context.Context) (string, error) {
	if !h.pin {
		return "", nil
	}
	f, err := os.OpenFile(h.device, os.O_RDWR, 0)
	if err == nil {
		defer f.Close()
		h.chip, err = h.ask(f)
	}
	if err != nil {
		return "", &classedError{class: attest.ClassHostNotCapable,
			err: fmt.Errorf("this host's chip, which reports are held against: %w; attestation.chip: any does without", err)}
	}
	return fmt.Sprintf("reports must name this host's chip %x...", h.chip[:8]), nil
}

func (h *hardware) trust(o *attest.Options) error {
	o.ChipID = h.chip
	return nil
}
