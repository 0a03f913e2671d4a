package machine

import (
	"context"

	"github.com/evtpm/evtpm/launch"
	"github.com/evtpm/evtpm/qmp"
)

// A hypervisor is how a supervisor's VM runs: as a process of its own, or as a
// domain of libvirt's. It is started at most once.
type hypervisor interface {
	// start starts the VM, stopped before its first instruction, with a vTPM
	// behind the control socket tpm (empty: none). The message tells what runs
	// it. From the moment that the VM's monitor answers, [supervisor.monitor]
	// returns it, and the end of the VM ends the supervisor's work.
	start(ctx context.Context, tpm string) (string, error)
	// opened says how QEMU was told to open the plan's inputs, by their names.
	opened() map[string]string
	// resume has the first instruction executed.
	resume(ctx context.Context) error
	// powerdown presses the power button.
	powerdown(ctx context.Context) error
	// end ends the VM, whatever became of start, and returns when nothing of it
	// runs any more. What it holds of disks is written, if that takes no longer
	// than quitTimeout.
	end()
}

// newHypervisor makes the hypervisor that the plan names.
func newHypervisor(s *supervisor) hypervisor {
	if s.plan.Spec.Backend == launch.BackendLibvirt {
		return newLibvirtVM(s)
	}
	return &qemuVM{s: s}
}

// A monitor is a way to QEMU's monitor: its commands, and what it says unasked.
// The channel is closed when there will be nothing more.
type monitor interface {
	qmp.Executor
	Events() <-chan qmp.Event
	Version() qmp.Version
}
