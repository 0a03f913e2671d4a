package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/evtpm/evtpm/attest"
	"github.com/evtpm/evtpm/launch/machine"
)

func attestCommand(u *ui) *cli.Command {
	return &cli.Command{
		Name:      "attest",
		Usage:     "make a new challenge to a running VM, and judge the evidence",
		ArgsUsage: "NAME|--connect ADDRESS",
		Description: "With NAME, the machine's supervisor makes the challenge, and judges by the spec of its launch.\n" +
			"With --connect, this command makes it itself, from wherever it runs, over any byte stream to\n" +
			"the guest's agent, and judges by the golden values of --golden: a tenant trusts nothing else.\n" +
			"It tries to connect until --timeout: the guest may still be on its way.\n" +
			"Exit codes are those of evtpm verify.",
		Flags: append(judgeFlags(),
			&cli.StringFlag{Name: "connect", Usage: "the agent's `ADDRESS`: unix:PATH, tcp:HOST:PORT or vsock:CID:PORT"},
			&cli.StringFlag{Name: "golden", Usage: "golden values `FILE`, with --connect"},
			&cli.StringFlag{Name: "binding", Usage: "svsm, svsm-services or nv, with --connect; absent: the guest's best"},
			&cli.StringFlag{Name: "registry", Usage: "remember EKs in `FILE`, and refuse one that was seen in another launch"},
			&cli.StringFlag{Name: "save", Usage: "write the evidence to `FILE`"},
			&cli.DurationFlag{Name: "timeout", Value: time.Minute, Usage: "give up after this `TIME`"},
		),
		Action: func(c *cli.Context) error {
			asJSON, err := wantsJSON(c)
			if err != nil {
				return err
			}
			d, err := timeLimit(c)
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeoutCause(c.Context, d, withClass(attest.ClassTimeout, fmt.Errorf("no end within %v", d)))
			defer cancel()
			doc := attestDoc{Schema: "evtpm.attest/v1"}
			var out *machine.Outcome
			if c.IsSet("connect") {
				out, err = u.attestDirect(ctx, c)
			} else {
				if doc.Name, err = oneArg(c, "the name of a machine, or --connect ADDRESS"); err != nil {
					return err
				}
				if err := onlyWithConnect(c); err != nil {
					return err
				}
				out, doc.Evidence, err = u.attestMachine(ctx, doc.Name)
			}
			if err != nil {
				return err
			}
			if file := c.String("save"); file != "" {
				doc.Evidence = file
				if err := writeWhole(file, func(w io.Writer) error { _, err := w.Write(append(out.Evidence, '\n')); return err }); err != nil {
					return fmt.Errorf("--save: %w", err)
				}
			}
			doc.Verdict = out.Verdict
			u.verdict(out.Verdict)
			if asJSON {
				if err := u.json(doc); err != nil {
					return err
				}
			}
			return verdictExit(out.Verdict)
		},
	}
}

// attestDoc is what -o json prints.
type attestDoc struct {
	Schema  string          `json:"schema"`
	Name    string          `json:"name,omitempty"`
	Verdict *attest.Verdict `json:"verdict"`
	// Evidence is the file that it was saved to.
	Evidence string `json:"evidence,omitempty"`
}

// onlyWithConnect refuses flags that a machine's own supervisor would not heed.
func onlyWithConnect(c *cli.Context) error {
	for _, f := range []string{"golden", "binding", "registry", "policy", "vek", "ca", "crl", "bundle", "fetch", "at", "chip-id", "trust-sim"} {
		if c.IsSet(f) {
			return fmt.Errorf("--%s needs --connect: a machine's supervisor judges by the spec of its launch", f)
		}
	}
	return nil
}

// attestDirect makes the challenge itself.
func (u *ui) attestDirect(ctx context.Context, c *cli.Context) (*machine.Outcome, error) {
	if c.NArg() > 0 {
		return nil, fmt.Errorf("--connect: found argument %q, expected none", c.Args().First())
	}
	address, err := machine.ParseAgentAddress(c.String("connect"))
	if err != nil {
		return nil, fmt.Errorf("--connect: %w", err)
	}
	golden, err := readGolden(c.String("golden"))
	if err != nil {
		return nil, err
	}
	if golden == nil {
		return nil, errors.New("--golden is missing: evidence is judged against golden values")
	}
	o, err := u.judgeOptions(c)
	if err != nil {
		return nil, err
	}
	if file := c.String("registry"); file != "" {
		o.Registry = attest.NewFileRegistry(file)
	}
	challenge := attest.ChallengeOptions{Binding: c.String("binding"), StepTimeout: c.Duration("timeout")}
	if golden.PCRs != nil {
		challenge.PCRBank = golden.PCRs.Bank
	}
	if o.Live, err = challengeAgent(ctx, address, challenge); err != nil {
		switch cause := context.Cause(ctx); {
		case cause == nil:
		case errors.Is(err, cause):
			return nil, err
		default:
			return nil, fmt.Errorf("%w: %w", cause, err)
		}
		return nil, withClass(attest.ClassLaunch, err)
	}
	v, err := attest.Verify(ctx, o.Live.Evidence, golden, u.withKept(ctx, o, o.Live.Evidence.Report))
	if err != nil {
		return nil, err
	}
	raw, err := json.MarshalIndent(o.Live.Evidence, "", "  ")
	return &machine.Outcome{Verdict: v, Evidence: raw}, err
}

// challengeAgent connects to an agent and challenges it.
func challengeAgent(ctx context.Context, address machine.AgentAddress, o attest.ChallengeOptions) (*attest.Session, error) {
	conn, hello, err := address.Greet(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	o.Hello = hello
	return attest.Challenge(ctx, conn, o)
}
