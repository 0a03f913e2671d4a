package main

import (
	"fmt"

	"github.com/urfave/cli/v2"
)

// manCommand prints the manual page, which the library makes of the commands
// themselves: it cannot say anything else than they do.
func manCommand(u *ui) *cli.Command {
	return &cli.Command{
		Name:  "man",
		Usage: "print the manual page (troff): evtpm man >evtpm.1",
		Action: func(c *cli.Context) error {
			text, err := c.App.ToManWithSection(1)
			if err != nil {
				return err
			}
			u.data("%s", text)
			return nil
		},
	}
}

// Shells ask the program itself what can follow: the flag is the library's.
const (
	bashCompletion = `_evtpm() {
  local words
  words=$("${COMP_WORDS[@]:0:$COMP_CWORD}" --generate-bash-completion 2>/dev/null)
  COMPREPLY=($(compgen -W "$words" -- "${COMP_WORDS[COMP_CWORD]}"))
}
complete -o bashdefault -o default -F _evtpm evtpm`

	zshCompletion = `#compdef evtpm
_evtpm() {
  local -a words_
  words_=("${(@f)$("${words[@]:0:#words[@]-1}" --generate-bash-completion 2>/dev/null)}")
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
