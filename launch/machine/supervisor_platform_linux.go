package machine

import (
	"context"
	"net"

	"github.com/evtpm/evtpm/attest"
	"github.com/evtpm/evtpm/launch"
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
	return hardware{}, nil
}

// hardware is platform snp: the AMD-SP measures, the SVSM in the guest has the
// vTPM, and AMD's roots are the verifier's own.
type hardware struct{}

func (hardware) prepare(context.Context) (string, error) { return "", nil }
func (hardware) serve(net.Conn)                          {}
func (hardware) measure(context.Context) (string, error) { return "", nil }
func (hardware) vtpm(context.Context) (string, error)    { return "", nil }
func (hardware) trust(*attest.Options) error             { return nil }
func (hardware) close()                                  {}
