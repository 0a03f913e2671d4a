//go:build linux

package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/evtpm/evtpm/launch/machine"
)

// machineCommands are those that need machines on this host.
func machineCommands(u *ui) []*cli.Command {
	return []*cli.Command{
		launchCommand(u), psCommand(u), completesNames(u, stopCommand(u)), completesNames(u, killCommand(u)), completesNames(u, rmCommand(u)),
		completesNames(u, logsCommand(u)), completesNames(u, consoleCommand(u)), completesNames(u, eventsCommand(u)),
		doctorCommand(u), superviseCommand(u),
	}
}

// home opens the run directory.
func (u *ui) home() (*machine.Home, error) {
	dir, err := u.runDir()
	if err != nil {
		return nil, err
	}
	return machine.OpenHome(dir)
}

// completesNames has a shell complete a command's machines, as well as its flags.
func completesNames(u *ui, c *cli.Command) *cli.Command {
	c.BashComplete = func(ctx *cli.Context) {
		if n := len(os.Args); n > 1 && strings.HasPrefix(os.Args[n-2], "-") {
			cli.DefaultCompleteWithFlags(c)(ctx)
			return
		}
		h, err := u.home()
		if err != nil {
			return // nobody reads it
		}
		machines, err := h.List(ctx.Context)
		if err != nil {
			return
		}
		for _, m := range machines {
			u.data("%s", m.Name)
		}
	}
	return c
}

// attestMachine has a machine's supervisor make a challenge. It also returns
// where the evidence is kept.
func (u *ui) attestMachine(ctx context.Context, name string) (*machine.Outcome, string, error) {
	h, err := u.home()
	if err != nil {
		return nil, "", err
	}
	out, err := h.Attest(ctx, name)
	return out, filepath.Join(h.Dir(), name, "evidence.json"), err
}
