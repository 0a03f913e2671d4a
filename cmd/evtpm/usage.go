package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/evtpm/evtpm/nearest"
)

// prepare gives a command and its subcommands the behaviour that the library
// lacks: what is wrong with a command line is an error, and says what was meant.
func prepare(c *cli.Command) {
	c.OnUsageError = usageError
	// "help" is a file or a machine where one is expected; see helpFirst.
	c.HideHelpCommand = true
	if c.Action == nil {
		c.ArgsUsage = "COMMAND"
		c.Action = func(ctx *cli.Context) error { return noCommand(ctx, c.Subcommands) }
	}
	if len(c.Subcommands) == 0 {
		c.CustomHelpTemplate = cli.CommandHelpTemplate
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

// What has a default that says nothing is shown without one.
func init() {
	text := cli.FlagStringer
	cli.FlagStringer = func(f cli.Flag) string {
		return strings.TrimSuffix(strings.TrimSuffix(text(f), " (default: false)"), " (default: 0s)")
	}
}

// noCommand says that a command's name is missing, or that there is none of this
// name.
func noCommand(c *cli.Context, commands []*cli.Command) error {
	var names []string
	for _, sub := range commands {
		if !sub.Hidden {
			names = append(names, sub.Name)
		}
	}
	of := c.Command.HelpName
	if !c.Args().Present() {
		return fmt.Errorf("%s: expected a command: %s", of, strings.Join(names, ", "))
	}
	name := c.Args().First()
	return fmt.Errorf("unknown command %q%s; see %s --help", name, meant("", nearest.Name(name, names)), of)
}

// meant ends a message about a name that is unknown, if one is near.
func meant(prefix, name string) string {
	if name == "" {
		return ""
	}
	return fmt.Sprintf(", nearest is %q", prefix+name)
}

// usageError says what is wrong with flags in this program's words. What package
// flag says is known by its words alone.
func usageError(c *cli.Context, err error, _ bool) error {
	text := err.Error()
	if name, ok := strings.CutPrefix(text, "flag provided but not defined: -"); ok {
		var names []string
		for _, f := range c.Command.Flags {
			for _, n := range f.Names() {
				if len(n) > 1 {
					names = append(names, n)
				}
			}
		}
		return fmt.Errorf("unknown flag %q%s; see %s --help", dashed(name), meant("--", nearest.Name(name, names)), c.Command.HelpName)
	}
	if name, ok := strings.CutPrefix(text, "flag needs an argument: -"); ok {
		return fmt.Errorf("%s: expected a value behind it", dashed(name))
	}
	rest, ok := strings.CutPrefix(text, "invalid value ")
	if !ok {
		rest, ok = strings.CutPrefix(text, "invalid boolean value ")
	}
	if ok {
		if value, err := strconv.QuotedPrefix(rest); err == nil {
			_, rest, _ = strings.Cut(rest[len(value):], " -")
			name, _, _ := strings.Cut(rest, ": ")
			wanted := "true or false"
			if takesValue(c.Command.Flags, name) {
				wanted = "a time such as 90s or 2m" // all others are text
			}
			return fmt.Errorf("%s: found %s, expected %s", dashed(name), value, wanted)
		}
	}
	return err
}

// dashed is a flag's name as it is typed.
func dashed(name string) string {
	if len(name) == 1 {
		return "-" + name
	}
	return "--" + name
}

// helpFirst makes a request for help a flag: "help svsm inspect" means "svsm inspect
// --help". args[0] is the program's name.
func helpFirst(args []string) []string {
	i := slices.IndexFunc(args[min(1, len(args)):], func(a string) bool { return !strings.HasPrefix(a, "-") }) + 1
	if i == 0 || args[i] != "help" && args[i] != "h" {
		return args
	}
	return append(slices.Delete(slices.Clone(args), i, i+1), "--help")
}

// noArgs refuses arguments where there is nothing that they could say.
func noArgs(c *cli.Context) error {
	if c.Args().Present() {
		return fmt.Errorf("%s: found argument %q, expected none", c.Command.HelpName, c.Args().First())
	}
	return nil
}

// oneArg returns the single argument of a command, or says what is missing.
func oneArg(c *cli.Context, what string) (string, error) {
	if n := c.NArg(); n != 1 {
		return "", fmt.Errorf("%s: found %s, expected one: %s", c.Command.HelpName, arguments(n), what)
	}
	return c.Args().First(), nil
}

// arguments is a number of arguments in words.
func arguments(n int) string {
	switch n {
	case 0:
		return "no argument"
	case 1:
		return "one argument"
	}
	return fmt.Sprintf("%d arguments", n)
}

// timeLimit reads --timeout, which is 0 where nothing bounds a command.
func timeLimit(c *cli.Context) (time.Duration, error) {
	d := c.Duration("timeout")
	if c.IsSet("timeout") && d <= 0 {
		return 0, fmt.Errorf("--timeout: found %v, expected more than 0s", d)
	}
	return d, nil
}

// needed returns a flag's value, or says that it is missing.
func needed(c *cli.Context, flag, what string) (string, error) {
	if v := c.String(flag); v != "" {
		return v, nil
	}
	return "", fmt.Errorf("%s: --%s is missing: %s", c.Command.HelpName, flag, what)
}
