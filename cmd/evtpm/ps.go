//go:build linux

package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/evtpm/evtpm/launch"
	"github.com/evtpm/evtpm/launch/machine"
)

func psCommand(u *ui) *cli.Command {
	return &cli.Command{
		Name:      "ps",
		Usage:     "list machines and how they are",
		ArgsUsage: " ",
		Flags:     []cli.Flag{outputFlag()},
		Action: func(c *cli.Context) error {
			if err := noArgs(c); err != nil {
				return err
			}
			asJSON, err := wantsJSON(c)
			if err != nil {
				return err
			}
			h, err := u.home()
			if err != nil {
				return err
			}
			machines, err := h.List(c.Context)
			if err != nil {
				return err
			}
			if asJSON {
				return u.json(struct {
					Schema   string           `json:"schema"`
					Machines []machine.Record `json:"machines"`
				}{"evtpm.ps/v1", machines})
			}
			if len(machines) > 0 {
				psTable(u.out, machines, time.Now())
			}
			return nil
		},
	}
}

// psTable prints machines for people.
func psTable(w io.Writer, machines []machine.Record, now time.Time) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "NAME\tSTATE\tPLATFORM\tVERDICT\tAGE\tNOTE")
	for _, m := range machines {
		state := string(m.State)
		if m.State == machine.StateRefused && m.Running {
			state += ", running"
		}
		verdict := "-"
		if m.Verdict != nil {
			verdict = m.Verdict.Result
			if len(m.Verdict.Reasons) > 0 {
				verdict += ": " + m.Verdict.Reasons[0]
			}
			if m.Platform == launch.PlatformSim {
				verdict += " (SIMULATED)"
			}
		}
		age, platform := "-", m.Platform
		if !m.Created.IsZero() {
			age = now.Sub(m.Created).Round(time.Second).String()
		}
		if platform == "" {
			platform = "-"
		}
		note, _, _ := strings.Cut(m.Reason, "\n")
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\n", m.Name, state, platform, printable(verdict), age, printable(note))
	}
	_ = t.Flush() // standard output's reader is gone
}
