package main

import (
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"
)

// manCommand prints the manual page, made of the commands themselves: it cannot
// say anything else than they do.
func manCommand(u *ui) *cli.Command {
	return &cli.Command{
		Name:  "man",
		Usage: "print the manual page (troff): evtpm man >evtpm.1",
		Action: func(c *cli.Context) error {
			u.data("%s", manPage(c.App))
			return nil
		},
	}
}

// manPage is the manual page in troff's man macros. The library has one too, at
// the price of a Markdown parser that starts with every command.
func manPage(app *cli.App) string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line(`.TH %s 1 "" "%s"`, strings.ToUpper(app.Name), troff(app.Name+" "+app.Version))
	line(".SH NAME\n%s \\- %s", app.Name, troff(app.Usage))
	line(".SH SYNOPSIS\n.B %s\n[\\-\\-quiet] \\fICOMMAND\\fR [\\fIOPTIONS\\fR] [\\fIARGUMENTS\\fR]", app.Name)
	line(".SH OPTIONS")
	manFlags(line, app.VisibleFlags())
	line(".SH COMMANDS")
	for _, c := range app.VisibleCommands() {
		manOf(line, app.Name, c)
	}
	return strings.TrimSuffix(b.String(), "\n")
}

// manOf describes a command, then its subcommands.
func manOf(line func(format string, args ...any), parent string, c *cli.Command) {
	if c.Name == "help" {
		return
	}
	name := parent + " " + c.Name
	line(".SS %s", troff(strings.TrimSpace(name+" "+c.ArgsUsage)))
	line("%s", troff(c.Usage))
	for _, paragraph := range strings.Split(c.Description, "\n\n") {
		if paragraph != "" {
			line(".PP\n%s", troff(paragraph))
		}
	}
	manFlags(line, c.VisibleFlags())
	for _, sub := range c.Subcommands {
		if !sub.Hidden {
			manOf(line, name, sub)
		}
	}
}

// manFlags describes flags as the help text does.
func manFlags(line func(format string, args ...any), flags []cli.Flag) {
	for _, f := range flags {
		names, usage, _ := strings.Cut(strings.TrimSpace(fmt.Sprint(f)), "\t")
		line(".TP\n\\fB%s\\fR\n%s", troff(names), troff(usage))
	}
}

// troff escapes text: a hyphen must stay one, and a line that starts with a dot
// or a quotation mark would be an instruction.
func troff(text string) string {
	lines := strings.Split(strings.NewReplacer(`\`, `\e`, "-", `\-`).Replace(strings.TrimSpace(text)), "\n")
	for i, l := range lines {
		if strings.HasPrefix(l, ".") || strings.HasPrefix(l, "'") {
			lines[i] = `\&` + l
		}
	}
	return strings.Join(lines, "\n")
}

// Shells ask the program itself what can follow: the flag is the library's.
const (
	bashCompletion = `_evtpm() {
  local words cur=${COMP_WORDS[COMP_CWORD]} before=("${COMP_WORDS[@]:0:$COMP_CWORD}")
  [[ "$cur" == -* ]] && before+=("$cur")
  words=$("${before[@]}" --generate-bash-completion 2>/dev/null)
  COMPREPLY=($(compgen -W "$words" -- "$cur"))
}
complete -o bashdefault -o default -F _evtpm evtpm`

	zshCompletion = `#compdef evtpm
_evtpm() {
  local -a words_ before_
  before_=("${words[@]:0:#words[@]-1}")
  [[ "${words[-1]}" == -* ]] && before_+=("${words[-1]}")
  words_=("${(@f)$("${before_[@]}" --generate-bash-completion 2>/dev/null)}")
  if [[ "${words_[1]}" != "" ]]; then
    _describe 'values' words_
  else
    _files
  fi
}
compdef _evtpm evtpm`
)

func completionCommand(u *ui) *cli.Command {
	return &cli.Command{
		Name:      "completion",
		Usage:     "print the completion script of a shell: bash, zsh or fish",
		ArgsUsage: "SHELL",
		Action: func(c *cli.Context) error {
			shell, err := oneArg(c, "bash, zsh or fish")
			if err != nil {
				return err
			}
			text := map[string]string{"bash": bashCompletion, "zsh": zshCompletion}[shell]
			if shell == "fish" {
				if text, err = c.App.ToFishCompletion(); err != nil {
					return err
				}
			}
			if text == "" {
				return fmt.Errorf("shell %q: expected bash, zsh or fish", shell)
			}
			u.data("%s", text)
			return nil
		},
	}
}
