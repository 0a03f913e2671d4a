package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/urfave/cli/v2"

	"github.com/evtpm/evtpm/attest"
	"github.com/evtpm/evtpm/launch"
)

func specCommand(u *ui) *cli.Command {
	return &cli.Command{
		Name:  "spec",
		Usage: "check specs, and say what they can hold",
		Subcommands: []*cli.Command{
			{
				Name:      "check",
				Usage:     "say everything that is wrong with a spec, without opening the files that it names",
				ArgsUsage: "SPEC|-",
				Flags:     []cli.Flag{specOwnerFlag(), outputFlag()},
				Action: func(c *cli.Context) error {
					path, err := oneArg(c, "a spec")
					if err != nil {
						return err
					}
					asJSON, err := wantsJSON(c)
					if err != nil {
						return err
					}
					var spec *launch.Spec
					if path == "-" {
						path = stdinName
						spec, err = u.stdinSpec()
					} else {
						spec, err = readSpec(path, launch.SpecFileOptions{AnyOwner: c.Bool("allow-untrusted-file")})
					}
					if err != nil {
						return err
					}
					if asJSON {
						return u.json(spec)
					}
					u.say("%s: a good spec of %s, platform %s", printable(path), spec.Name, spec.Platform)
					return nil
				},
				Description: "With -o json prints the spec with every default filled in. Of a spec on standard input (-), paths are relative\n" +
					"to the working directory.",
			},
			{
				Name:  "schema",
				Usage: "print the JSON Schema of specs, for editors",
				Action: func(c *cli.Context) error {
					if err := noArgs(c); err != nil {
						return err
					}
					schema, err := launch.SpecSchema()
					if err != nil {
						return err
					}
					_, err = u.out.Write(schema)
					return err
				},
			},
		},
	}
}

// specOwnerFlag is a flag of every command that reads a spec.
func specOwnerFlag() cli.Flag {
	return &cli.BoolFlag{Name: "allow-untrusted-file", Usage: "take a spec that other users could have written"}
}

// frozenFlag is a flag of every command that resolves a spec.
func frozenFlag() cli.Flag {
	return &cli.BoolFlag{Name: "frozen", Usage: "refuse inputs that differ from the spec's lock file"}
}

// readSpec reads the spec at path.
func readSpec(path string, o launch.SpecFileOptions) (*launch.Spec, error) {
	spec, err := launch.ReadSpec(path, o)
	if errors.Is(err, launch.ErrUntrustedFile) {
		err = fmt.Errorf("%w; --allow-untrusted-file takes it all the same", err)
	}
	return spec, err
}

// maxSpecFile bounds a spec, as [launch.ReadSpec] does.
const maxSpecFile = 64 << 10

// stdinSpec reads a spec from standard input, as [launch.ReadSpec] reads a file.
func (u *ui) stdinSpec() (*launch.Spec, error) {
	dir, err := os.Getwd()
	if err != nil {
		return nil, err
	}
	data, err := u.readStdin(maxSpecFile)
	if err != nil {
		return nil, err
	}
	spec, err := launch.LoadSpec(bytes.NewReader(data), stdinName)
	if err != nil {
		return nil, err
	}
	spec.FillDefaults(dir)
	return spec, spec.Validate()
}

// resolveSpec reads and resolves the spec that a command was given, as the
// command's specOwnerFlag and frozenFlag say. The caller closes the plan.
func resolveSpec(c *cli.Context, path string) (*launch.Plan, error) {
	return resolvePlan(c.Context, path, launch.SpecFileOptions{AnyOwner: c.Bool("allow-untrusted-file")}, c.Bool("frozen"))
}

// resolvePlan reads and resolves the spec at path; frozen holds it against its
// lock. The caller closes the plan.
func resolvePlan(ctx context.Context, path string, file launch.SpecFileOptions, frozen bool) (*launch.Plan, error) {
	spec, err := readSpec(path, file)
	if err != nil {
		return nil, err
	}
	var o launch.ResolveOptions
	if frozen {
		if o.Frozen, err = launch.ReadLock(launch.LockPath(path)); err != nil {
			return nil, fmt.Errorf("lock: %w (evtpm lock writes it)", err)
		}
	}
	plan, err := launch.Resolve(ctx, spec, o)
	if errors.Is(err, launch.ErrLockDiffers) {
		err = withClass(attest.ClassMeasurement, err)
	}
	return plan, err
}
