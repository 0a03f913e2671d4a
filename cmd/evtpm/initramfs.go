package main

import (
	"debug/elf"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/evtpm/evtpm/initramfs"
	"github.com/evtpm/evtpm/wholefile"
)

func initramfsCommand(u *ui) *cli.Command {
	return &cli.Command{
		Name:  "initramfs",
		Usage: "make an initramfs with the guest agent as /init",
		Description: "The same files give the same bytes, so that kernel hashes and PCR 9 follow from them.\n" +
			"The archive goes to standard output, or to the file that -o names.",
		ArgsUsage: " ",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "agent", Usage: "static `FILE` that becomes /init"},
			&cli.StringSliceFlag{Name: "add", Usage: "add a file or a folder, as `SRC:DST`; may be repeated"},
			&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "write to `FILE`"},
		},
		Action: func(c *cli.Context) error {
			if err := noArgs(c); err != nil {
				return err
			}
			agent, err := needed(c, "agent", "the agent's binary")
			if err != nil {
				return err
			}
			files, err := initramfsFiles(agent, c.StringSlice("add"))
			if err != nil {
				return err
			}
			if needsLoader(agent) && len(c.StringSlice("add")) == 0 {
				return fmt.Errorf("--agent: %s: found a dynamically linked program, expected a static one, or --add with its loader and libraries", agent)
			}
			write := func(w io.Writer) error { return initramfs.Write(w, files) }
			if name := c.String("output"); name != "" {
				return writeWhole(name, write)
			}
			return write(u.out)
		},
	}
}

// needsLoader reports whether a program is one that another must load.
func needsLoader(path string) bool {
	f, err := elf.Open(path)
	if err != nil {
		return false // no ELF file
	}
	defer f.Close()
	return slices.ContainsFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP })
}

// initramfsFiles collects what the flags name.
func initramfsFiles(agent string, add []string) ([]initramfs.File, error) {
	files := initramfs.Base()
	init, err := initramfs.FromDisk(agent, "/init")
	if err != nil {
		return nil, fmt.Errorf("--agent: %w", err)
	}
	if len(init) != 1 || init[0].Mode&0o111 == 0 {
		return nil, fmt.Errorf("--agent: %s: found no executable file, expected the agent's binary", agent)
	}
	files = append(files, init...)
	for _, a := range add {
		// A colon may be part of the source's name, not of the guest's path.
		i := strings.LastIndex(a, ":/")
		if i <= 0 {
			return nil, fmt.Errorf("--add: found %q, expected SRC:DST with an absolute DST", a)
		}
		more, err := initramfs.FromDisk(a[:i], a[i+1:])
		if err != nil {
			return nil, fmt.Errorf("--add: %w", err)
		}
		files = append(files, more...)
	}
	return files, nil
}

// writeWhole writes a file for others to read, whole or not at all.
func writeWhole(name string, write func(io.Writer) error) error {
	return wholefile.Write(name, 0o644, write)
}
