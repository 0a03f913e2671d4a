//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/evtpm/evtpm/attest"
	"github.com/evtpm/evtpm/launch"
	"github.com/evtpm/evtpm/launch/machine"
	"github.com/evtpm/evtpm/snpsim"
)

// A host that does more than exchange files: its supervisor keeps the vTPM's
// state, or runs the guest without an SVSM. The plan, the golden values and the
// verification are the honest ones.

// superviseBadly is the supervisor's process. Its argument is the attack, as
// JSON.
func superviseBadly(ctx context.Context, args []string) error {
	var attack snpsim.Attack
	if len(args) != 1 {
		return fmt.Errorf("supervise: found %d arguments, expected an attack", len(args))
	}
	if err := json.Unmarshal([]byte(args[0]), &attack); err != nil {
		return fmt.Errorf("supervise: %w", err)
	}
	return machine.Supervise(ctx, attack)
}

// superviseOnce launches a VM under a malicious supervisor.
func superviseOnce(v func(*lab) (vm, snpsim.Attack)) func(context.Context, *lab) (outcome, error) {
	return func(ctx context.Context, l *lab) (outcome, error) {
		spec, attack := v(l)
		return l.launchBadly(ctx, spec, attack)
	}
}

func noSVSM(l *lab) (vm, snpsim.Attack) {
	return vm{name: "victim", binding: "nv", initrd: l.badInitrd, cmdline: "attack.vmpl=0"}, snpsim.Attack{GuestAtVMPL0: true}
}

// keptState boots twice on one TPM state: the first boot is as good as any.
func keptState(ctx context.Context, l *lab) (outcome, error) {
	state := filepath.Join(l.dir, "tpm-state")
	if err := os.Mkdir(state, 0o700); err != nil {
		return outcome{}, err
	}
	attack := snpsim.Attack{KeptState: state}
	if o, err := l.launchBadly(ctx, vm{name: "first"}, attack); err != nil || !o.is(trusted) {
		return o, fmt.Errorf("the first boot: %v, %w", o, err)
	}
	return l.launchBadly(ctx, vm{name: "victim"}, attack)
}

// launchBadly does what evtpm launch --rm does, with this program as the
// supervisor.
func (l *lab) launchBadly(ctx context.Context, v vm, attack snpsim.Attack) (outcome, error) {
	path, err := l.spec(v)
	if err != nil {
		return outcome{}, err
	}
	spec, err := launch.ReadSpec(path, launch.SpecFileOptions{})
	if err != nil {
		return outcome{}, err
	}
	plan, err := launch.Resolve(ctx, spec, launch.ResolveOptions{})
	if err != nil {
		return outcome{}, err
	}
	defer plan.Close()
	home, err := machine.OpenHome(filepath.Join(l.dir, "run"))
	if err != nil {
		return outcome{}, err
	}
	text, err := json.Marshal(attack)
	if err != nil {
		return outcome{}, err
	}
	m, err := machine.Start(ctx, plan, machine.StartOptions{Home: home, StateDir: stateDir(), Supervise: []string{l.self, "supervise", string(text)}})
	if err != nil {
		return outcome{}, err
	}
	defer m.Close()
	a, err := m.FirstAttestation(ctx)
	if err != nil {
		var phase *machine.PhaseError
		if errors.As(err, &phase) {
			return outcome{code: int(phase.Class), reasons: []string{"no verdict: " + string(phase.Phase)}}, nil
		}
		return outcome{}, err
	}
	return found(a.Verdict), nil
}

// found is the outcome that a verdict is.
func found(v *attest.Verdict) outcome {
	o := outcome{code: int(v.Class())}
	for _, c := range v.Failures() {
		if !slices.Contains(o.reasons, c.Reason) {
			o.reasons = append(o.reasons, c.Reason)
		}
	}
	return o
}

// stateDir is evtpm's own: its simulated root of trust, and the EKs it has seen.
func stateDir() string {
	if dir := os.Getenv("EVTPM_STATE"); dir != "" {
		return dir
	}
	return "/var/lib/evtpm"
}
