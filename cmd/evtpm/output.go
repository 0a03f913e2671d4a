package main

import (
	"fmt"

	"github.com/urfave/cli/v2"
)

// outputFlag is the flag of commands that have something to say to programs.
func outputFlag() cli.Flag {
	return &cli.StringFlag{Name: "output", Aliases: []string{"o"}, Value: "text", Usage: "`FORMAT` of standard output: text or json"}
}

// wantsJSON reads outputFlag.
func wantsJSON(c *cli.Context) (bool, error) {
	switch f := c.String("output"); f {
	case "text":
		return false, nil
	case "json":
		return true, nil
	default:
		return false, fmt.Errorf("--output: found %q, expected text or json", f)
	}
}
