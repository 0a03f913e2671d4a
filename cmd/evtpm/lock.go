package main

import (
	"github.com/urfave/cli/v2"

	"github.com/evtpm/evtpm/launch"
)

func lockCommand(u *ui) *cli.Command {
	return &cli.Command{
		Name:      "lock",
		Usage:     "pin every input of a spec, and the launch digest, in a file beside it",
		ArgsUsage: "SPEC",
		Description: "Writes NAME.lock beside NAME.yaml. With --frozen, launch, measure and render refuse whatever\n" +
			"differs from it. Keep it under version control: a changed input is then a changed line.",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "check", Usage: "write nothing; exit with 6 if anything differs from the lock"},
			specOwnerFlag(),
		},
		Action: func(c *cli.Context) error {
			path, err := oneArg(c, "a spec")
			if err != nil {
				return err
			}
			lock := launch.LockPath(path)
			check := c.Bool("check")
			plan, err := resolvePlan(c.Context, path, launch.SpecFileOptions{AnyOwner: c.Bool("allow-untrusted-file")}, check)
			if err != nil {
				return err
			}
			defer plan.Close()
			if check {
				u.say("%s: nothing differs", printable(lock))
				return nil
			}
			if old, err := launch.ReadLock(lock); err == nil {
				// What changes is said before it is lost.
				if err := old.Check(plan); err != nil {
					u.say("%v", err)
				}
			}
			if err := plan.Lock().Write(lock); err != nil {
				return err
			}
			u.say("%s pins %d inputs and the launch digest", printable(lock), len(plan.Inputs()))
			return nil
		},
	}
}
