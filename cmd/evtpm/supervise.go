//go:build linux

package main

import (
	"errors"

	"github.com/urfave/cli/v2"

	"github.com/evtpm/evtpm/launch/machine"
	"github.com/evtpm/evtpm/snpsim"
)

// superviseCommand is what launch starts for each machine. Nobody else does.
func superviseCommand(*ui) *cli.Command {
	return &cli.Command{
		Name:   "supervise",
		Hidden: true,
		Action: func(c *cli.Context) error {
			if c.NArg() > 0 {
				return errors.New("supervise takes no arguments: evtpm launch starts it")
			}
			return machine.Supervise(c.Context, snpsim.Attack{})
		},
	}
}
