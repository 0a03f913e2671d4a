package main

import "github.com/urfave/cli/v2"

// commands lists every command, in the order of the help text. Each lives in a
// file of its own name.
func commands(u *ui) []*cli.Command {
	return append(machineCommands(u), []*cli.Command{
		attestCommand(u),
		specCommand(u),
		lockCommand(u),
		renderCommand(u),
		measureCommand(u),
		explainCommand(u),
		diffCommand(u),
		ovmfCommand(u),
		idblockCommand(u),
		svsmCommand(u),
		initramfsCommand(u),
		verifyCommand(u),
		reportCommand(u),
		certsCommand(u),
		policyCommand(u),
		evidenceCommand(u),
		completionCommand(u), manCommand(u),
	}...)
}
