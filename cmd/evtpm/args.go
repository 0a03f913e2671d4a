package main

import (
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
)

// completionFlag is what a shell's completion ends its question with. The library
// looks for it there.
const completionFlag = "--generate-bash-completion"

// flagsFirst moves the flags of a command before its arguments, as the library
// wants them: "verify FILE --golden G" means "verify --golden G FILE". A flag of
// the program that the command does not have goes before the command: "ps -q" means
// "-q ps". What follows "--" stays where it is, and so does what a shell asks. args[0] is the program's name.
func flagsFirst(app *cli.App, args []string) []string {
	if len(args) == 0 || args[len(args)-1] == completionFlag {
		return args
	}
	commands, flags := app.Commands, app.Flags
	out := args[:1:1]
	var global, moved, rest []string
	for i := 1; i < len(args); i++ {
		a := args[i]
		switch {
		case a == "--":
			rest = append(rest, args[i:]...)
			i = len(args)
		case strings.HasPrefix(a, "-") && a != "-":
			name, _, hasValue := strings.Cut(strings.TrimLeft(a, "-"), "=")
			if len(out) > 1 && !hasFlag(flags, name) && hasFlag(app.Flags, name) {
				global = append(global, a) // none takes a value
				continue
			}
			moved = append(moved, a)
			if !hasValue && takesValue(flags, name) && i+1 < len(args) {
				i++
				moved = append(moved, args[i])
			}
		default:
			if c := find(commands, a); c != nil && len(rest) == 0 {
				out = append(append(out, moved...), a)
				moved = nil
				commands, flags = c.Subcommands, c.Flags
				continue
			}
			if len(out) == 1 {
				return args // no command of ours: nothing is known of its flags
			}
			commands = nil // "evtpm ovmf inspect measure" names a file
			rest = append(rest, a)
		}
	}
	out = append(append(out, moved...), rest...)
	return append(append(args[:1:1], global...), out[1:]...)
}

// question is what a shell asks, without the program's own flags, and without
// flags at its end that take no value: what follows them is asked for, and the
// library would look for flags that begin like them. args end with completionFlag.
func question(app *cli.App, args []string) []string {
	commands, flags := app.Commands, app.Flags
	out := args[:1:1]
	for _, a := range args[1 : len(args)-1] {
		name, isFlag := strings.TrimLeft(a, "-"), strings.HasPrefix(a, "-")
		c := find(commands, a)
		switch {
		case isFlag && hasFlag(app.Flags, name) && (len(out) == 1 || !hasFlag(flags, name)):
			continue
		case c != nil:
			commands, flags = c.Subcommands, c.Flags
		case !isFlag:
			commands = nil
		}
		out = append(out, a)
	}
	for n := len(out) - 1; n > 0; n-- {
		name := strings.TrimLeft(out[n], "-")
		if name == out[n] || !hasFlag(flags, name) || takesValue(flags, name) {
			break
		}
		out = out[:n]
	}
	return append(out, completionFlag)
}

func find(commands []*cli.Command, name string) *cli.Command {
	for _, c := range commands {
		if c.HasName(name) {
			return c
		}
	}
	return nil
}

func hasFlag(flags []cli.Flag, name string) bool {
	for _, f := range flags {
		if slices.Contains(f.Names(), name) {
			return true
		}
	}
	return false
}

// takesValue reports whether a flag is followed by its value.
func takesValue(flags []cli.Flag, name string) bool {
	for _, f := range flags {
		for _, n := range f.Names() {
			if n != name {
				continue
			}
			d, ok := f.(cli.DocGenerationFlag)
			return ok && d.TakesValue()
		}
	}
	return false
}
