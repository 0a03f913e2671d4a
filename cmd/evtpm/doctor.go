//go:build linux

package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/evtpm/evtpm/attest"
	"github.com/evtpm/evtpm/launch"
	"github.com/evtpm/evtpm/launch/doctor"
)

func doctorCommand(u *ui) *cli.Command {
	return &cli.Command{
		Name:      "doctor",
		Usage:     "look whether this host has what a launch needs",
		ArgsUsage: "[SPEC]",
		Description: "Asks the kernel, the AMD-SP, QEMU, swtpm and libvirt themselves, and changes nothing. With a\n" +
			"spec: what a launch of it needs, its files among it; ends with 9 when it cannot work. Without\n" +
			"one: what the platforms need; ends with 9 when none can work.",
		Flags: []cli.Flag{
			specOwnerFlag(), outputFlag(),
		},
		Action: func(c *cli.Context) error {
			asJSON, err := wantsJSON(c)
			if err != nil {
				return err
			}
			r, err := u.doctor(c)
			if err != nil {
				return err
			}
			if asJSON {
				if err := u.json(r); err != nil {
					return err
				}
			} else {
				u.diagnosis(r)
			}
			if !r.Works {
				return errSilent(attest.ClassHostNotCapable)
			}
			return nil
		},
	}
}

// doctor examines the host.
func (u *ui) doctor(c *cli.Context) (*doctor.Report, error) {
	if n := c.NArg(); n > 1 {
		return nil, fmt.Errorf("%s: found %s, expected at most one: a spec", c.Command.HelpName, arguments(n))
	}
	var spec *launch.Spec
	var err error
	if path := c.Args().First(); path != "" {
		if spec, err = readSpec(path, launch.SpecFileOptions{AnyOwner: c.Bool("allow-untrusted-file")}); err != nil {
			return nil, err
		}
	}
	o := doctor.Options{RuntimeDir: u.runtimeDir()}
	if o.Home, err = u.runDir(); err != nil {
		return nil, err
	}
	if o.StateDir, err = u.stateDir(); err != nil {
		return nil, err
	}
	return doctor.Examine(c.Context, spec, o)
}

// diagnosis tells people what was found: a line a thing, what is needed and the
// next step where something is missing, and the conclusion last.
func (u *ui) diagnosis(r *doctor.Report) {
	m := u.marks()
	signs := map[doctor.Status]string{doctor.OK: m.passed, doctor.Warn: "warn", doctor.Fail: m.failed}
	if m == terminalMarks {
		signs[doctor.Warn] = "!"
	}
	for _, f := range r.Findings {
		name := f.Name
		if r.Platform != "" && !slices.Contains(f.Platforms, r.Platform) {
			name += ", for platform " + strings.Join(f.Platforms, ", ") + " and not this spec"
		}
		u.say("%s %s: %s", signs[f.Status], name, printable(f.Found))
		if f.Status != doctor.OK {
			u.values("     ", "needed ", f.Needed)
			u.values("     ", "fix    ", f.Fix)
		}
	}
	u.say("%s", printable(r.Summary))
}
