//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/evtpm/evtpm/attest"
	"github.com/evtpm/evtpm/launch/machine"
)

func stopCommand(u *ui) *cli.Command {
	return &cli.Command{
		Name:      "stop",
		Usage:     "end machines in order; their records stay",
		ArgsUsage: "NAME...",
		Description: "A guest with disks that it can write is asked to shut down first, and given the time that its\n" +
			"spec allows; one without has nothing to save. --grace says otherwise.",
		Flags: []cli.Flag{
			&cli.DurationFlag{Name: "grace", Usage: "ask every guest to shut down and wait this `TIME` (0s: do not ask)"},
			&cli.BoolFlag{Name: "force", Usage: "end a machine whose supervisor does not answer as well"},
			allFlag(), outputFlag(),
		},
		Action: func(c *cli.Context) error {
			grace := time.Duration(-1)
			if c.IsSet("grace") {
				if grace = c.Duration("grace"); grace < 0 {
					return fmt.Errorf("--grace: found %v, expected 0s or more", grace)
				}
			}
			return u.eachMachine(c, func(h *machine.Home, b *became) error { return u.stop(c.Context, h, b, grace, c.Bool("force")) })
		},
	}
}

func killCommand(u *ui) *cli.Command {
	return &cli.Command{
		Name:      "kill",
		Usage:     "end machines at once; their records stay",
		ArgsUsage: "NAME...",
		Flags:     []cli.Flag{allFlag(), outputFlag()},
		Action: func(c *cli.Context) error {
			return u.eachMachine(c, func(h *machine.Home, b *became) error { return u.stop(c.Context, h, b, 0, true) })
		},
	}
}

func allFlag() cli.Flag { return &cli.BoolFlag{Name: "all", Usage: "every machine"} }

// stop ends one machine; a negative grace is the machine's own. One that does not run is no error: that is what was
// asked for.
func (u *ui) stop(ctx context.Context, h *machine.Home, b *became, grace time.Duration, force bool) error {
	m, err := h.Status(ctx, b.Name)
	if err != nil {
		return err
	}
	b.is(m)
	done := didStop
	switch {
	case m.State == machine.StateUnresponsive && force:
		done = didKill
		err = h.Kill(ctx, b.Name)
	case m.State == machine.StateUnresponsive:
		return fmt.Errorf("%s: %s", b.Name, m.Reason)
	case !m.Running && m.State != machine.StateStarting:
		u.say("%s does not run: %s", b.Name, m.State)
		return nil
	default:
		if grace < 0 {
			grace = time.Duration(m.Grace)
		}
		err = h.Stop(ctx, b.Name, grace)
	}
	if err != nil {
		return err
	}
	u.say("%s stopped", b.Name)
	b.Done = append(b.Done, done)
	if m, err = h.Status(ctx, b.Name); err == nil {
		b.is(m)
	}
	return nil // one that was stopped while it was launched leaves nothing
}

func rmCommand(u *ui) *cli.Command {
	return &cli.Command{
		Name:      "rm",
		Usage:     "remove the records of machines that do not run",
		ArgsUsage: "NAME...",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "force", Usage: "end those that run"},
			allFlag(), outputFlag(),
		},
		Action: func(c *cli.Context) error {
			return u.eachMachine(c, func(h *machine.Home, b *became) error { return u.remove(c.Context, h, b, c.Bool("force")) })
		},
	}
}

// remove removes one machine's records.
func (u *ui) remove(ctx context.Context, h *machine.Home, b *became, force bool) error {
	if force {
		if err := u.stop(ctx, h, b, 0, true); err != nil {
			return err
		}
	} else if m, err := h.Status(ctx, b.Name); err == nil {
		b.is(m)
	}
	if err := h.Remove(b.Name); err != nil {
		return err
	}
	u.say("%s removed", b.Name)
	b.Done = append(b.Done, didRemove)
	return nil
}

// What is done with machines.
const (
	didStop   = "stopped" // by its supervisor
	didKill   = "killed"  // with its supervisor, which did not answer
	didRemove = "removed"
)

// became is what became of one machine.
type became struct {
	Name string `json:"name"`
	// Done lists what was done, in order: nothing, when nothing was left to do.
	Done []string `json:"done"`
	// State is the machine's now, or its last; not there when it is not known.
	State  machine.State `json:"state,omitempty"`
	Reason string        `json:"reason,omitempty"`
	// Class is that of the error that the machine failed with.
	Class attest.Class `json:"class,omitempty"`
	Error *docError    `json:"error,omitempty"`
}

// is notes how the machine is.
func (b *became) is(m machine.Record) { b.State, b.Reason, b.Class = m.State, m.Reason, m.Class }

// eachMachine does something with the machines that the arguments name, or with
// all of them, goes on when it fails with one, and tells what became of each.
func (u *ui) eachMachine(c *cli.Context, do func(*machine.Home, *became) error) error {
	asJSON, err := wantsJSON(c)
	if err != nil {
		return err
	}
	h, err := u.home()
	if err != nil {
		return err
	}
	names, err := machineNames(c, h)
	if err != nil {
		return err
	}
	list := make([]became, len(names))
	var errs []error
	for i, name := range names {
		b := &list[i]
		b.Name, b.Done = name, []string{}
		if err := do(h, b); err != nil {
			errs = append(errs, err)
			b.Error = errorOf(c.Context, err)
		}
	}
	if asJSON {
		errs = append(errs, u.json(struct {
			Schema   string   `json:"schema"`
			Machines []became `json:"machines"`
		}{"evtpm." + c.Command.Name + "/v1", list}))
	}
	return errors.Join(errs...)
}

// machineNames lists the machines that the arguments name, or all of them.
func machineNames(c *cli.Context, h *machine.Home) ([]string, error) {
	names := c.Args().Slice()
	switch {
	case !c.Bool("all") && len(names) == 0:
		return nil, fmt.Errorf("%s: expected the name of a machine; see evtpm ps", c.Command.HelpName)
	case !c.Bool("all"):
		return names, nil
	case len(names) > 0:
		return nil, fmt.Errorf("%s: found names beside --all", c.Command.HelpName)
	}
	machines, err := h.List(c.Context)
	for _, m := range machines {
		names = append(names, m.Name)
	}
	return names, err
}
