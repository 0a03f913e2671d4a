// Command evtpm launches confidential VMs with ephemeral vTPMs, says beforehand
// what the hardware must measure, and proves afterwards, from evidence alone,
// that the VM came up that way.
//
// The command parses, calls and prints; everything else lives in the packages
// beside it.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/urfave/cli/v2"
)

// version is set at link time.
var version = "dev"

// exitInterrupted is the exit code after Ctrl-C or SIGTERM.
const exitInterrupted = 130

func main() { os.Exit(run()) }

// run is main without os.Exit, so that tests can call it.
func run() int {
	ctx := context.Background()
	if m := namedCommand(os.Args); m == nil || !m.brief {
		var stop context.CancelFunc
		ctx, stop = signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
		defer stop()
	}
	out := &dataWriter{w: os.Stdout}
	u := newUI(out)
	app := newApp(u, os.Args)
	err := app.RunContext(ctx, flagsFirst(app, os.Args))
	if err == nil && out.err != nil {
		err = fmt.Errorf("standard output: %w", out.err)
	}
	var silent errSilent
	if err != nil && !errors.As(err, &silent) {
		u.fail(err)
	}
	if ctx.Err() != nil && err != nil {
		return exitInterrupted
	}
	return exitCode(err)
}

// newApp makes the program's commands; args, the program's name first, may name
// one that is enough.
func newApp(u *ui, args []string) *cli.App {
	app := &cli.App{
		Name:                 "evtpm",
		Usage:                "launch, measure and attest confidential VMs with ephemeral vTPMs",
		Version:              version,
		Reader:               u.in,
		Writer:               u.out,
		ErrWriter:            u.err,
		EnableBashCompletion: true,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "print nothing for people; the exit code says it all", Destination: &u.quiet},
		},
		Commands: commands(u, args),
		// The library would exit by itself, and explain usage on stdout.
		ExitErrHandler: func(*cli.Context, error) {},
		OnUsageError:   func(_ *cli.Context, err error, _ bool) error { return err },
		CommandNotFound: func(c *cli.Context, name string) {
			u.fail(fmt.Errorf("unknown command %q; see evtpm --help", name))
		},
		Action: func(c *cli.Context) error {
			if c.Args().Present() {
				return fmt.Errorf("unknown command %q; see evtpm --help", c.Args().First())
			}
			return cli.ShowAppHelp(c)
		},
	}
	for _, c := range app.Commands {
		prepare(c)
	}
	return app
}

// prepare gives a command and its subcommands the behaviour that the library
// lacks: usage errors as errors, and unknown subcommands too.
func prepare(c *cli.Command) {
	c.OnUsageError = func(_ *cli.Context, err error, _ bool) error { return err }
	if c.Action == nil && len(c.Subcommands) > 0 {
		c.Action = func(ctx *cli.Context) error {
			if ctx.Args().Present() {
				return fmt.Errorf("unknown command %q; see evtpm %s --help", ctx.Args().First(), c.Name)
			}
			return cli.ShowSubcommandHelp(ctx)
		}
	}
	if len(c.Subcommands) == 0 {
		// Parsed flags are known to the context. The library would still look
		// each one up among all, by regular expressions, for actions that none of
		// ours has: a good part of what a short command takes.
		c.Before = func(ctx *cli.Context) error {
			ctx.Command.Flags = nil
			return nil
		}
	}
	for _, sub := range c.Subcommands {
		prepare(sub)
	}
}

// oneArg returns the single argument of a command, or says what is missing.
func oneArg(c *cli.Context, what string) (string, error) {
	if n := c.NArg(); n != 1 {
		return "", fmt.Errorf("%s: found %d arguments, expected one: %s", c.Command.HelpName, n, what)
	}
	return c.Args().First(), nil
}
