package main

import (
	"path/filepath"

	"github.com/urfave/cli/v2"

	"github.com/evtpm/evtpm/launch"
)

func renderLibvirtCommand(u *ui) *cli.Command {
	return &cli.Command{
		Name:      "libvirt",
		Usage:     "print the XML of a libvirt domain",
		ArgsUsage: "SPEC",
		Description: "The domain names the files by their paths: what libvirt starts is what lies there then. On\n" +
			"platform sim it expects the vTPM and the simulated SVSM behind the sockets that it names.",
		Flags: []cli.Flag{
			renderDirFlag(), renderWriteFlag(), frozenFlag(), specOwnerFlag(),
		},
		Action: func(c *cli.Context) error {
			path, err := oneArg(c, "a spec")
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
			domain, err := plan.LibvirtDomain(launch.LibvirtOptions{Dir: dir})
			if err != nil {
				return err
			}
			if err := u.simFiles(plan, dir, c.Bool("write")); err != nil {
				return err
			}
			_, err = u.out.Write(domain)
			return err
		},
	}
}
