package main

import (
	"fmt"
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
			renderDirFlag(), renderWriteFlag(), frozenFlag(), specOwnerFlag(), outputFlag(),
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
			if err := u.simFiles(plan, dir, c.Bool("write")); err != nil {
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

func renderDirFlag() cli.Flag {
	return &cli.StringFlag{Name: "dir", Value: ".", Usage: "folder `DIR` for sockets, and for files that platform sim alone loads"}
}

func renderWriteFlag() cli.Flag {
	return &cli.BoolFlag{Name: "write", Usage: "write these files to DIR: the kernel hashes page (hashes.bin), what QEMU runs of an SVSM image (firmware.fd)"}
}

// simFiles writes the files that a rendered command line of platform sim loads, or
// says that they are missing.
func (u *ui) simFiles(plan *launch.Plan, dir string, write bool) error {
	gpa, page, err := plan.HashesPage()
	if err != nil {
		return err
	}
	file := func(name, what string, data []byte) error {
		path := filepath.Join(dir, name)
		if !write {
			u.say("evtpm: %s must hold %s; --write makes it", path, what)
			return nil
		}
		return writeWhole(path, func(w io.Writer) error {
			_, err := w.Write(data)
			return err
		})
	}
	if page != nil {
		if err := file("hashes.bin", fmt.Sprintf("the kernel hashes page for %#x", gpa), page); err != nil {
			return err
		}
	}
	for _, f := range plan.ImageFiles() {
		if err := file(f.Name, fmt.Sprintf("what the SVSM image has at %#x", f.GPA), f.Data); err != nil {
			return err
		}
	}
	return nil
}
