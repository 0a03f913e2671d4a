//go:build !linux

package main

import (
	"context"
	"errors"

	"github.com/urfave/cli/v2"

	"github.com/evtpm/evtpm/attest"
	"github.com/evtpm/evtpm/launch/machine"
)

// errLinux is the answer to every command about machines on this host.
var errLinux = withClass(attest.ClassHostNotCapable, errors.New("machines are launched on Linux alone; what a tenant needs runs here too: measure, verify, attest --connect"))

// machineCommands are those that need machines on this host, which this system
// cannot have.
func machineCommands(*ui) []*cli.Command {
	var out []*cli.Command
	for _, name := range []string{"launch", "ps", "stop", "kill", "rm", "logs", "console", "events", "doctor"} {
		out = append(out, &cli.Command{Name: name, Usage: "on Linux alone", Action: func(*cli.Context) error { return errLinux }})
	}
	return out
}

func (u *ui) attestMachine(context.Context, string) (*machine.Outcome, string, error) {
	return nil, "", errLinux
}
