package main

import (
	"github.com/urfave/cli/v2"

	"github.com/evtpm/evtpm/attest"
)

func policyCommand(u *ui) *cli.Command {
	return &cli.Command{
		Name:  "policy",
		Usage: "check and show verification policies",
		Subcommands: []*cli.Command{
			{
				Name: "check", Usage: "say whether a policy file can be used, and what is wrong with it",
				ArgsUsage: "FILE|-",
				Action: func(c *cli.Context) error {
					name, err := oneArg(c, "FILE")
					if err != nil {
						return err
					}
					if _, err := u.policyInput(name); err != nil {
						return err
					}
					if name == "-" {
						name = stdinName
					}
					u.say("%s: policy is in order", name)
					return nil
				},
			},
			{
				Name: "show", Usage: "print a policy with everything that it leaves out filled in",
				ArgsUsage: "FILE|-|default|permissive",
				Action: func(c *cli.Context) error {
					name, err := oneArg(c, "FILE")
					if err != nil {
						return err
					}
					p, err := u.policyInput(name)
					if err != nil {
						return err
					}
					if p.TCB.Floors.Name == "default" {
						p.TCB.Floors.Name = "table"
					}
					text, err := p.Encode()
					if err != nil {
						return err
					}
					_, err = u.out.Write(text)
					return err
				},
			},
			{
				Name: "default", Usage: "print the default policy's file, to start one's own from",
				ArgsUsage: " ",
				Action: func(c *cli.Context) error {
					if err := noArgs(c); err != nil {
						return err
					}
					_, err := u.out.Write(attest.DefaultPolicyYAML())
					return err
				},
			},
		},
	}
}

// policyInput is readPolicy, of standard input too: where a policy is looked at,
// and nothing judged by it.
func (u *ui) policyInput(name string) (*attest.Policy, error) {
	if name != "-" {
		return readPolicy(name)
	}
	text, err := u.readStdin(maxPolicyFile)
	if err != nil {
		return nil, err
	}
	return attest.ParsePolicy(text, stdinName)
}
