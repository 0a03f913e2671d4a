//go:build linux

package main

import (
	"context"
	"fmt"
	"time"

	"github.com/urfave/cli/v2"

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
			allFlag(),
		},
		Action: func(c *cli.Context) error {
			h, err := u.home()
			if err != nil {
				return err
			}
			grace := time.Duration(-1)
			if c.IsSet("grace") {
				if grace = c.Duration("grace"); grace < 0 {
					return fmt.Errorf("--grace: found %v, expected 0s or more", grace)
				}
			}
			return eachMachine(c, h, func(name string) error { return u.stop(c.Context, h, name, grace, c.Bool("force")) })
		},
	}
}

func killCommand(u *ui) *cli.Command {
	return &cli.Command{
		Name:      "kill",
		Usage:     "end machines at once; their records stay",
		ArgsUsage: "NAME...",
		Flags:     []cli.Flag{allFlag()},
		Action: func(c *cli.Context) error {
			h, err := u.home()
			if err != nil {
				return err
			}
			return eachMachine(c, h, func(name string) error { return u.stop(c.Context, h, name, 0, true) })
		},
	}
}

func allFlag() cli.Flag { return &cli.BoolFlag{Name: "all", Usage: "every machine"} }

// stop ends one machine; a negative grace is the machine's own. One that does not run is no error: that is what was
// asked for.
func (u *ui) stop(ctx context.Context, h *machine.Home, name string, grace time.Duration, force bool) error {
	m, err := h.Status(ctx, name)
	if err != nil {
		return err
	}
	switch {
	case m.State == machine.StateUnresponsive && force:
		err = h.Kill(ctx, name)
	case m.State == machine.StateUnresponsive:
		return fmt.Errorf("%s: %s", name, m.Reason)
	case !m.Running && m.State != machine.StateStarting:
		u.say("%s does not run: %s", name, m.State)
		return nil
	default:
		if grace < 0 {
			grace = time.Duration(m.Grace)
		}
		err = h.Stop(ctx, name, grace)
	}
	if err != nil {
		return err
	}
	u.say("%s stopped", name)
	return nil
}

func rmCommand(u *ui) *cli.Command {
	return &cli.Command{
		Name:      "rm",
		Usage:     "remove the records of machines that do not run",
		ArgsUsage: "NAME...",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "force", Usage: "end those that run"},
			allFlag(),
		},
		Action: func(c *cli.Context) error {
			h, err := u.home()
			if err != nil {
				return err
			}
			return eachMachine(c, h, func(name string) error {
				if c.Bool("force") {
					if err := u.stop(c.Context, h, name, 0, true); err != nil {
						return err
					}
				}
				if err := h.Remove(name); err != nil {
					return err
				}
				u.say("%s removed", name)
				return nil
			})
		},
	}
}
