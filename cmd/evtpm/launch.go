//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/evtpm/evtpm/attest"
	"github.com/evtpm/evtpm/launch"
	"github.com/evtpm/evtpm/launch/machine"
)

func launchCommand(u *ui) *cli.Command {
	return &cli.Command{
		Name:      "launch",
		Usage:     "start a VM, attest it, and judge the evidence",
		ArgsUsage: "SPEC",
		Description: "Returns when the first attestation has been judged: with 0, and the VM running, when it is\n" +
			"trusted; with the class of what is wrong, and the VM ended, when it is not. Until then the VM\n" +
			"lives no longer than this command; afterwards it is on its own: see evtpm ps, attest, stop.",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "detach", Aliases: []string{"d"}, Usage: "return when the VM runs; it is attested in the background"},
			&cli.BoolFlag{Name: "rm", Usage: "end the VM after the verdict and leave nothing of it"},
			&cli.DurationFlag{Name: "timeout", Usage: "give up after this `TIME`, all phases together (the spec bounds each)"},
			&cli.StringFlag{Name: "backend", Usage: "start the VM with `BACKEND`, qemu or libvirt, whatever the spec says"},
			frozenFlag(),
			&cli.StringFlag{Name: "save", Usage: "write golden values, evidence and verdict to the folder `DIR` as well"},
			specOwnerFlag(),
			outputFlag(),
		},
		Action: func(c *cli.Context) error {
			path, err := oneArg(c, "a spec")
			if err != nil {
				return err
			}
			asJSON, err := wantsJSON(c)
			if err != nil {
				return err
			}
			if c.Bool("detach") && c.Bool("rm") {
				return errors.New("--detach and --rm exclude each other: without a verdict there is nothing to wait for")
			}
			if c.Bool("detach") && c.String("save") != "" {
				return errors.New("--detach and --save exclude each other: there is no verdict yet to write; evtpm attest NAME --save FILE writes evidence later")
			}
			switch b := c.String("backend"); b {
			case "", launch.BackendQEMU, launch.BackendLibvirt:
			default:
				return fmt.Errorf("--backend: found %q, expected %s or %s", b, launch.BackendQEMU, launch.BackendLibvirt)
			}
			l := &launching{
				u: u, json: asJSON, detach: c.Bool("detach"), remove: c.Bool("rm"), save: c.String("save"),
				backend: c.String("backend"), anyOwner: c.Bool("allow-untrusted-file"), frozen: c.Bool("frozen"),
			}
			d, err := timeLimit(c)
			if err != nil {
				return err
			}
			ctx := c.Context
			if d > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeoutCause(ctx, d, fmt.Errorf("no end within %v: %w", d, context.DeadlineExceeded))
				defer cancel()
			}
			return l.run(ctx, path)
		},
	}
}

// launching is one run of the launch command.
type launching struct {
	u      *ui
	json   bool
	detach bool
	remove bool
	save   string

	backend          string
	anyOwner, frozen bool

	doc launchDoc
}

// launchDoc is what -o json prints.
type launchDoc struct {
	Schema   string           `json:"schema"`
	Name     string           `json:"name,omitempty"`
	Platform string           `json:"platform,omitempty"`
	State    machine.State    `json:"state,omitempty"`
	Timings  []machine.Timing `json:"timings"`
	Golden   json.RawMessage  `json:"golden,omitempty"`
	Verdict  *attest.Verdict  `json:"verdict,omitempty"`
	// Evidence is the path of the saved evidence; empty after --rm.
	Evidence string    `json:"evidence,omitempty"`
	Error    *docError `json:"error,omitempty"`
}

// docError is an error in a document.
type docError struct {
	Phase   machine.Phase `json:"phase,omitempty"`
	Class   int           `json:"class"`
	Message string        `json:"message"`
}

// errorOf is err in a document of a command under ctx: its class is the exit code
// that the process ends with, if nothing else fails.
func errorOf(ctx context.Context, err error) *docError {
	d := &docError{Class: exitCode(err), Message: err.Error()}
	if errors.Is(ctx.Err(), context.Canceled) {
		d.Class = exitInterrupted
	}
	var pe *machine.PhaseError
	if errors.As(err, &pe) {
		d.Phase = pe.Phase
	}
	return d
}

const launchSchema = "evtpm.launch/v1"

func (l *launching) run(ctx context.Context, path string) error {
	l.doc = launchDoc{Schema: launchSchema, Timings: []machine.Timing{}}
	err := l.launch(ctx, path)
	if l.json {
		var silent errSilent
		if err != nil && !errors.As(err, &silent) {
			l.doc.Error = errorOf(ctx, err)
		}
		err = errors.Join(err, l.u.json(l.doc))
	}
	return err
}

func (l *launching) launch(ctx context.Context, path string) error {
	began := time.Now()
	home, err := l.u.home()
	if err != nil {
		return err
	}
	state, err := l.u.stateDir()
	if err != nil {
		return err
	}
	plan, err := resolvePlan(ctx, path, launch.SpecFileOptions{AnyOwner: l.anyOwner, Backend: l.backend}, l.frozen)
	if err != nil {
		return err
	}
	defer plan.Close()
	l.doc.Name, l.doc.Platform = plan.Name, plan.Spec.Platform
	if l.doc.Golden, err = plan.Golden.Encode(); err != nil {
		return err
	}
	l.event(machine.Event{
		Elapsed: time.Since(began).Seconds(), Kind: machine.EventPhase, Phase: machine.PhasePlan,
		Message: fmt.Sprintf("%d files sealed and hashed", len(plan.Inputs())),
	})
	self, err := os.Executable()
	if err != nil {
		return err
	}
	m, err := machine.Start(ctx, plan, machine.StartOptions{
		Home: home, StateDir: state, RuntimeDir: l.u.runtimeDir(), Supervise: []string{self, "supervise"}, Began: began, Events: l.event,
	})
	if err != nil {
		return err
	}
	defer m.Close()
	if l.detach {
		return l.leave(ctx, m, home)
	}
	a, err := m.FirstAttestation(ctx)
	if err != nil {
		return err
	}
	return l.judged(ctx, m, home, a, plan.Spec.Attestation.OnRefused)
}

// leave lets a machine go before its verdict.
func (l *launching) leave(ctx context.Context, m *machine.Launch, home *machine.Home) error {
	if err := m.Release(ctx); err != nil {
		return err
	}
	l.doc.State = machine.StateBooting
	l.u.say("%s runs; it is being attested: evtpm ps", m.Name)
	return nil
}

// judged tells the verdict, and leaves the machine or ends it.
func (l *launching) judged(ctx context.Context, m *machine.Launch, home *machine.Home, a *machine.Outcome, onRefused string) error {
	l.doc.Verdict = a.Verdict
	l.u.verdict(a.Verdict)
	if l.save != "" {
		if err := l.saveTo(l.save, a); err != nil {
			return err
		}
	}
	trusted := a.Verdict.Trusted()
	l.doc.State = machine.StateTrusted
	if !trusted {
		l.doc.State = machine.StateRefused
	}
	if l.remove {
		if err := m.Close(); err != nil {
			return err
		}
		return verdictExit(a.Verdict)
	}
	if err := m.Release(ctx); err != nil {
		return err
	}
	dir := filepath.Join(home.Dir(), m.Name)
	l.doc.Evidence = filepath.Join(dir, "evidence.json")
	sim := ""
	if a.Verdict.Platform == attest.PlatformSim {
		sim = " --trust-sim"
	}
	switch {
	case trusted:
		l.u.say("\n%s runs. Next:", m.Name)
		l.u.say("  evtpm attest %-12s challenge it again", m.Name)
		l.u.say("  evtpm logs %-14s what its console said", m.Name)
		l.u.say("  evtpm verify%s --golden %s %s", sim, filepath.Join(dir, "golden.json"), l.doc.Evidence)
		l.u.say("  evtpm stop %-14s end it", m.Name)
	case onRefused == launch.OnRefusedKeep:
		l.u.say("\n%s was refused and still runs, as its spec says: evtpm stop %s", m.Name, m.Name)
	default:
		l.u.say("\n%s was ended. Evidence and verdict: %s", m.Name, dir)
	}
	return verdictExit(a.Verdict)
}

// saveTo writes the documents of an attestation to a folder.
func (l *launching) saveTo(dir string, a *machine.Outcome) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("--save: %w", err)
	}
	verdict, err := json.MarshalIndent(a.Verdict, "", "  ")
	if err != nil {
		return err
	}
	for _, f := range []struct {
		name string
		data []byte
	}{{"golden.json", l.doc.Golden}, {"evidence.json", a.Evidence}, {"verdict.json", verdict}} {
		err := writeWhole(filepath.Join(dir, f.name), func(w io.Writer) error {
			_, err := w.Write(append(f.data, '\n'))
			return err
		})
		if err != nil {
			return fmt.Errorf("--save: %w", err)
		}
	}
	return nil
}

// phaseWords says what has happened when a phase is complete.
var phaseWords = map[machine.Phase]string{
	machine.PhasePlan:    "planned",
	machine.PhaseStart:   "started",
	machine.PhaseMeasure: "measured",
	machine.PhaseVTPM:    "vTPM",
	machine.PhaseBoot:    "booted",
	machine.PhaseAttest:  "attested",
	machine.PhaseVerdict: "judged",
}

// event shows what happens as it happens.
func (l *launching) event(e machine.Event) {
	switch e.Kind {
	case machine.EventPhase:
		l.doc.Timings = append(l.doc.Timings, machine.Timing{Phase: e.Phase, Elapsed: e.Elapsed})
		l.u.say("%7.2fs  %-9s %s", e.Elapsed, phaseWords[e.Phase], printable(e.Message))
	case machine.EventWarning:
		l.u.warn("%s", printable(e.Message))
	case machine.EventVM:
		l.u.say("%7.2fs  %-9s %s", e.Elapsed, "VM", printable(e.Message))
	}
}
