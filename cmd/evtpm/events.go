//go:build linux

package main

import (
	"encoding/json"
	"fmt"

	"github.com/urfave/cli/v2"

	"github.com/evtpm/evtpm/launch/machine"
)

func eventsCommand(u *ui) *cli.Command {
	return &cli.Command{
		Name:      "events",
		Usage:     "print what happened to a machine",
		ArgsUsage: "NAME",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "follow", Aliases: []string{"f"}, Usage: "go on while the machine runs"},
			outputFlag(),
		},
		Action: func(c *cli.Context) error {
			name, err := oneArg(c, "the name of a machine")
			if err != nil {
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
			return u.followLog(c.Context, h, name, "events.jsonl", c.Bool("follow"), func(line []byte) error {
				var e machine.Event
				if err := json.Unmarshal(line, &e); err != nil {
					// Cut short when the supervisor was killed.
					u.warn("an event that cannot be read: %v", err)
					return nil
				}
				if asJSON {
					return u.jsonLine(e)
				}
				what := string(e.Phase)
				if e.State != "" {
					what = string(e.State)
				}
				_, err := fmt.Fprintf(u.out, "%s %8.2fs  %-8s %-13s %s\n",
					e.Time.Format("2006-01-02T15:04:05Z07:00"), e.Elapsed, e.Kind, what, printable(e.Message))
				return err
			})
		},
	}
}
