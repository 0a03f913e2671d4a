package main

import (
	"strings"

	"github.com/urfave/cli/v2"
)

// A commandMaker makes a command. One that is brief computes something from files
// and ends: an interrupt may end it as it ends any program, and it need not be
// caught.
type commandMaker struct {
	name  string
	make  func(*ui) *cli.Command
	brief bool
}

// commandMakers are of the commands that do not depend on the system, in the order
// of the help text. Each lives in a file of its own name.
var commandMakers = []commandMaker{
	{name: "attest", make: attestCommand},
	{name: "spec", make: specCommand},
	{name: "lock", make: lockCommand},
	{name: "render", make: renderCommand},
	{name: "measure", make: measureCommand, brief: true},
	{name: "explain", make: explainCommand},
	{name: "diff", make: diffCommand, brief: true},
	{name: "ovmf", make: ovmfCommand, brief: true},
	{name: "idblock", make: idblockCommand, brief: true},
	{name: "svsm", make: svsmCommand},
	{name: "initramfs", make: initramfsCommand},
	{name: "verify", make: verifyCommand},
	{name: "report", make: reportCommand},
	{name: "certs", make: certsCommand},
	{name: "policy", make: policyCommand},
	{name: "evidence", make: evidenceCommand},
	{name: "completion", make: completionCommand},
	{name: "man", make: manCommand},
}

// namedCommand is the maker of the command that the arguments name, when it knows
// of no other command; else nil.
func namedCommand(args []string) *commandMaker {
	for _, a := range args[min(1, len(args)):] {
		if strings.HasPrefix(a, "-") {
			continue // a flag of the program: none takes a value
		}
		for i := range commandMakers {
			if m := &commandMakers[i]; m.name == a && a != "completion" && a != "man" {
				return m
			}
		}
		break
	}
	return nil
}

// commands lists every command; or, where the arguments name one that is enough,
// that one: making them all takes a good part of what a short command does.
func commands(u *ui, args []string) []*cli.Command {
	if m := namedCommand(args); m != nil {
		return []*cli.Command{m.make(u)}
	}
	out := machineCommands(u)
	for _, m := range commandMakers {
		out = append(out, m.make(u))
	}
	return out
}
