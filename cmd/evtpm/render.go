package main

import (
	"io"
	"path/filepath"

	"github.com/urfave/cli/v2"

	"github.com/evtpm/evtpm/launch"
)

func renderCommand(u *ui) *cli.Command {
	return &cli.Command{
		Name:  "render",
		Usage: "print what a spec is started with",
		Subcommands: []*cli.Command{
			renderQEMUCommand(u),
			renderLibvirtCommand(u),
		},
	}
}

func renderQEMUCommand(u *ui) *cli.Command {
	return &cli.Command{
		Name:      "qemu",
		Usage:     "print QEMU's command line, quoted for a shell",
		ArgsUsage: "SPEC",
		Description: "The command starts the VM stopped before its first instruction; monitor.sock answers to QMP.\n" +
			"evtpm launch gives QEMU sealed copies of the files and sockets of its own instead of the paths.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "dir", Value: ".", Usage: "folder `DIR` for sockets and the kernel hashes page"},
			&cli.BoolFlag{Name: "write", Usage: "write the kernel hashes page of platform sim to DIR/hashes.bin"},
			frozenFlag(), specOwnerFlag(), outputFlag(),
		},
		Action: func(c *cli.Context) error {
			path, err := oneArg(c, "a spec")
			if err != nil {
				return err
			}
			asJSON, err := wantsJSON(c)
			if err != nil {
				return err
			}
			plan, err := resolveSpec(c, path)
			if err != nil {
				return err
			}
			defer plan.Close()
			dir, err := filepath.Abs(c.String("dir"))
			if err != nil {
				return err
			}
			cmd, err := plan.QEMUCommand(launch.QEMUOptions{Dir: dir})
			if err != nil {
				return err
			}
			if err := u.hashesPage(plan, filepath.Join(dir, "hashes.bin"), c.Bool("write")); err != nil {
				return err
			}
			if asJSON {
				return u.json(struct {
					Schema string   `json:"schema"`
					Argv   []string `json:"argv"`
				}{"evtpm.qemu/v1", append([]string{cmd.Binary}, cmd.Args...)})
			}
			u.data("%s", cmd)
			return nil
		},
	}
}

// hashesPage writes the page that a rendered command line loads, or says that it
// is missing.
func (u *ui) hashesPage(plan *launch.Plan, path string, write bool) error {
	gpa, page, err := plan.HashesPage()
	if err != nil || page == nil {
		return err
	}
	if !write {
		u.say("evtpm: %s must hold the kernel hashes page for %#x; --write makes it", path, gpa)
		return nil
	}
	return writeWhole(path, func(w io.Writer) error {
		_, err := w.Write(page)
		return err
	})
}
