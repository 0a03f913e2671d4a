package main

import (
	"strings"
	"testing"

	"github.com/urfave/cli/v2"
)

func TestFlagsFirst(t *testing.T) {
	app := &cli.App{
		Flags: []cli.Flag{&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}}},
		Commands: []*cli.Command{
			{Name: "verify", Flags: []cli.Flag{&cli.StringFlag{Name: "golden"}, &cli.StringSliceFlag{Name: "ca"}, &cli.BoolFlag{Name: "trust-sim"}}},
			{Name: "ovmf", Subcommands: []*cli.Command{{Name: "inspect", Flags: []cli.Flag{&cli.StringFlag{Name: "output", Aliases: []string{"o"}}}}}},
		},
	}
	for in, want := range map[string]string{
		"":                                   "",
		"--version":                          "--version",
		"-q verify E":                        "-q verify E",
		"verify E --golden G":                "verify --golden G E",
		"verify E --golden=G --trust-sim":    "verify --golden=G --trust-sim E",
		"verify --trust-sim E --ca a --ca b": "verify --trust-sim --ca a --ca b E",
		"verify - --golden G":                "verify --golden G -",
		"verify E -- --golden":               "verify E -- --golden",
		"verify E --golden":                  "verify --golden E",
		"verify E --nosuch X":                "verify --nosuch E X",
		"verify --golden -- E":               "verify --golden -- E",
		"ovmf inspect F -o json":             "ovmf inspect -o json F",
		"ovmf -q inspect F":                  "-q ovmf inspect F",
		"verify E --golden -q --quiet":       "--quiet verify --golden -q E",
		"ovmf inspect ovmf -o json":          "ovmf inspect -o json ovmf",
		"nosuch --golden G":                  "nosuch --golden G",
		"verify E --go " + completionFlag:    "verify E --go " + completionFlag,
	} {
		got := strings.Join(flagsFirst(app, append([]string{"evtpm"}, strings.Fields(in)...)), " ")
		if got != strings.TrimSpace("evtpm "+want) {
			t.Errorf("%q: found %q, expected %q", in, got, want)
		}
	}
}

// TestQuestion: what a shell asks is what follows the flags that say nothing of it.
func TestQuestion(t *testing.T) {
	app := &cli.App{
		Flags: []cli.Flag{&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}}},
		Commands: []*cli.Command{
			{Name: "stop", Flags: []cli.Flag{&cli.BoolFlag{Name: "force"}, &cli.BoolFlag{Name: "all"}, &cli.StringFlag{Name: "grace"}}},
			{Name: "own", Flags: []cli.Flag{&cli.StringFlag{Name: "queue", Aliases: []string{"q"}}}},
		},
	}
	for in, want := range map[string]string{
		"": "", "-q": "", "--quiet": "", "--qui": "--qui", "-q stop": "stop", "stop -q": "stop", "-q stop --gr": "stop --gr", "stop -q --gr": "stop --gr",
		"stop --force": "stop", "stop --force --all": "stop", "stop --force --gr": "stop --force --gr", "stop --grace": "stop --grace",
		"stop --force m": "stop --force m", "stop -": "stop -", "own -q": "own -q", "-q own -q": "own -q", "stop own -q": "stop own",
	} {
		got := question(app, append(strings.Fields("evtpm "+in), completionFlag))
		if text := strings.Join(got, " "); text != strings.Join(append(strings.Fields("evtpm "+want), completionFlag), " ") {
			t.Errorf("%q: found %q, expected %q", in, text, want)
		}
	}
}

// TestCommands: a command that is made alone is the one that was asked for.
func TestCommands(t *testing.T) {
	u := &ui{}
	for _, m := range commandMakers {
		if name := m.make(u).Name; name != m.name {
			t.Errorf("%s: found the command %q", m.name, name)
		}
	}
	all := len(commands(u, nil))
	for line, want := range map[string]int{
		"evtpm measure spec.yaml": 1, "evtpm -q measure": 1, "evtpm ovmf inspect measure": 1, "evtpm": all, "evtpm --help": all,
		"evtpm help measure": all, "evtpm man": all, "evtpm completion fish": all, "evtpm launch measure": all, "evtpm unknown measure": all,
	} {
		if n := len(commands(u, strings.Fields(line))); n != want {
			t.Errorf("%s: found %d commands, expected %d", line, n, want)
		}
	}
}
