package machine

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"sync"

	"github.com/evtpm/evtpm/attest"
	"github.com/evtpm/evtpm/launch"
	"github.com/evtpm/evtpm/launch/process"
	"github.com/evtpm/evtpm/snpsim"
)

// simRoots is the simulated platform's root of trust, in the state directory.
const simRoots = "sim"

// simulation is platform sim: a simulated AMD-SP and SVSM around a real VM.
type simulation struct {
	s    *supervisor
	root string
	chip *snpsim.Chip
	sp   *snpsim.SP
	svsm *snpsim.SVSM

	closing chan struct{}
	ports   sync.WaitGroup
}

func newSimPlatform(s *supervisor) (*simulation, error) {
	return &simulation{s: s, root: filepath.Join(s.job.StateDir, simRoots), closing: make(chan struct{})}, nil
}

// prepare starts the vTPM. The root of trust is read, or made, at the same time.
func (p *simulation) prepare(ctx context.Context) (string, error) {
	spec := p.s.plan.Spec
	rooted := make(chan error, 1)
	go func() {
		root, err := snpsim.OpenRoot(p.root, spec.Sim.Product)
		if err == nil {
			p.chip, err = root.Chip(spec.Sim.Machine)
		}
		if err == nil {
			p.sp, err = snpsim.NewSP(p.chip, snpsim.SPOptions{ReportVersion: uint32(spec.Sim.ReportVersion)})
		}
		rooted <- err
	}()
	svsm, err := snpsim.StartSVSM(ctx, snpsim.SVSMOptions{
		Dir:     p.s.claim.dir,
		Swtpm:   p.s.job.Swtpm,
		Spawn:   p.spawn,
		OnReset: p.s.reset,
		Attack:  p.s.attack,
	})
	select {
	case e := <-rooted:
		err = errors.Join(err, e)
	case <-ctx.Done():
		err = errors.Join(err, context.Cause(ctx))
	}
	if err != nil {
		if svsm != nil {
			err = errors.Join(err, svsm.Close())
		}
		return "", err
	}
	p.svsm = svsm
	go func() {
		select {
		case <-svsm.Exited():
			p.s.cancel(errors.New("the vTPM's process (swtpm) ended"))
		case <-p.closing:
		}
	}()
	return svsm.ControlSocket(), nil
}

func (p *simulation) spawn(cmd *exec.Cmd) error {
	if err := p.s.spawner.Start(cmd); err != nil {
		return err
	}
	if child, err := process.Describe("swtpm", cmd.Process.Pid); err == nil {
		p.s.noteChild(child)
	}
	return nil
}

// serve answers the guest's requests to the SVSM.
func (p *simulation) serve(port net.Conn) {
	p.ports.Go(func() {
		defer port.Close()
		if err := p.svsm.Serve(p.s.ctx, port); err != nil && p.s.ctx.Err() == nil {
			p.s.emit(Event{Kind: EventWarning, Message: err.Error()})
		}
	})
}

// measure has the simulated AMD-SP measure what QEMU holds.
func (p *simulation) measure(ctx context.Context) (string, error) {
	spec := p.s.plan.Spec
	if err := spec.CheckQEMU(p.s.monitor().Version()); err != nil {
		return "", &classedError{class: attest.ClassHostNotCapable, err: err}
	}
	seq, err := snpsim.ReadSequence(ctx, p.s.monitor(), snpsim.ReadOptions{
		Dir:           p.s.claim.dir,
		GuestFeatures: spec.CPU.GuestFeatures,
		BSPOnly:       spec.HostProfile == launch.ProfileKVMBSP,
		Image:         p.s.plan.ImageLaunch(),
		NoSVSM:        p.s.attack.GuestAtVMPL0,
	})
	if err != nil {
		return "", err
	}
	params := snpsim.LaunchParams{Policy: uint64(spec.Policy)}
	if params.IDBlock, params.IDAuth, params.AuthorKey, err = p.s.plan.LaunchIDBlock(); err != nil {
		return "", err
	}
	copy(params.HostData[:], spec.HostData)
	if err := p.sp.Launch(seq, params); err != nil {
		return "", err
	}
	measured, _ := p.sp.Measurement()
	digest := measured.String()
	p.s.update(func(r *Record) { r.LaunchDigest = digest })
	return "launch digest " + digest[:16] + "..." + imageMeasured(p.s.plan), nil
}

// vtpm makes the EK, and binds it to the launch.
func (p *simulation) vtpm(ctx context.Context) (string, error) {
	// A vTPM that does not answer is not waited for past the deadline.
	stop := context.AfterFunc(ctx, func() { _ = p.svsm.Close() })
	defer stop()
	if err := p.svsm.Provision(ctx, p.sp); err != nil {
		return "", err
	}
	return fmt.Sprintf("fresh EK, SHA-256 %.8x...%s", sha256.Sum256(p.svsm.EKPublic()), imageStandsFor(p.s.plan)), nil
}

// trust accepts the simulated root and the simulated chip of this machine.
func (p *simulation) trust(o *attest.Options) error {
	roots, err := snpsim.LoadARKs(p.root)
	if err != nil {
		return err
	}
	o.SimRoots = roots
	if p.s.plan.Spec.Attestation.Chip != launch.ChipAny {
		o.ChipID = p.chip.ID[:]
	}
	return nil
}

func (p *simulation) close() {
	close(p.closing)
	if p.svsm == nil {
		return
	}
	if err := p.svsm.Close(); err != nil {
		p.s.emit(Event{Kind: EventWarning, Message: err.Error()})
	}
	p.ports.Wait()
}

// imageRuns, imageMeasured and imageStandsFor say at launch what is real about an image on
// platform sim, and what is not; they are empty for a plan without one.
func imageRuns(p *launch.Plan) string {
	if p.Extracted == nil {
		return ""
	}
	return fmt.Sprintf(", which runs the firmware of %s (%d KiB)", filepath.Base(p.SVSM.Path), len(p.Extracted.Firmware)>>10)
}

func imageMeasured(p *launch.Plan) string {
	switch {
	case p.Extracted == nil:
		return ""
	case p.Extracted.SVSM:
		return ", of the whole image, by the simulated AMD-SP; its firmware is what QEMU holds"
	}
	return ", of the whole image as QEMU holds it and the simulated SVSM, by the simulated AMD-SP"
}

func imageStandsFor(p *launch.Plan) string {
	switch {
	case p.Extracted == nil:
		return ""
	case p.Extracted.SVSM:
		return ", in the simulated SVSM: the image's is measured, and does not run"
	}
	return ", in the simulated SVSM: the image holds none"
}
