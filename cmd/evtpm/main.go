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
	args := helpFirst(os.Args)
	app := newApp(u, args)
	if n := len(args); n > 1 && args[n-1] == completionFlag {
		args = question(app, args)
		os.Args = args // where the library looks
	}
	err := app.RunContext(ctx, flagsFirst(app, args))
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
		ExitErrHandler:  func(*cli.Context, error) {},
		OnUsageError:    usageError,
		HideHelpCommand: true,
		Action: func(c *cli.Context) error {
			if c.Args().Present() {
				return noCommand(c, c.App.Commands)
			}
			return cli.ShowAppHelp(c)
		},
	}
	for _, c := range app.Commands {
		prepare(c)
	}
	return app
}
