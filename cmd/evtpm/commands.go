package main

import (
	"strings"

	"github.com/urfave/cli/v2"
)

// commandMakers make the commands that do not depend on the system, by name, in
// the order of the help text. Each lives in a file of its own name.
var commandMakers = []struct {
	name string
	make func(*ui) *cli.Command
}{
	{"attest", attestCommand},
	{"spec", specCommand},
	{"lock", lockCommand},
	{"render", renderCommand},
	{"measure", measureCommand},
	{"explain", explainCommand},
	{"diff", diffCommand},
	{"ovmf", ovmfCommand},
	{"idblock", idblockCommand},
	{"svsm", svsmCommand},
	{"initramfs", initramfsCommand},
	{"verify", verifyCommand},
	{"report", reportCommand},
	{"certs", certsCommand},
	{"policy", policyCommand},
	{"evidence", evidenceCommand},
	{"completion", completionCommand},
	{"man", manCommand},
}

// commands lists every command; or, where the arguments name one that knows of no
// other, that one: making them all takes a good part of what a short command does.
func commands(u *ui, args []string) []*cli.Command {
	for _, a := range args[min(1, len(args)):] {
		if strings.HasPrefix(a, "-") {
			continue // a flag of the program: none takes a value
		}
		for _, m := range commandMakers {
			if m.name == a && a != "completion" && a != "man" {
				return []*cli.Command{m.make(u)}
			}
		}
		break
	}
	out := machineCommands(u)
	for _, m := range commandMakers {
		out = append(out, m.make(u))
	}
	return out
}
