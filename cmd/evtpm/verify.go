package main

import (
	"errors"
	"fmt"

	"github.com/urfave/cli/v2"

	"github.com/evtpm/evtpm/attest"
	"github.com/evtpm/evtpm/attest/evidence"
	"github.com/evtpm/evtpm/inputfile"
	"github.com/evtpm/evtpm/measure"
)

func verifyCommand(u *ui) *cli.Command {
	return &cli.Command{
		Name:  "verify",
		Usage: "judge saved evidence against golden values",
		Description: "EVIDENCE is what evtpm attest or launch saved; \"-\" is standard input. Whether the AK was in\n" +
			"the vTPM, and whether the nonce was fresh, only a live challenge (evtpm attest) can show: the\n" +
			"verdict says so. With --batch, every file of a folder is judged: evidence, or bare reports, by\n" +
			"what the golden values say of a report.\n" +
			"Exit codes: 0 trusted, 2 signature or chain, 3 certificates unavailable, 4 CRL unavailable,\n" +
			"5 policy or TCB, 6 measurement or PCRs, 7 vTPM binding.",
		ArgsUsage: "EVIDENCE",
		Flags: append(judgeFlags(),
			&cli.StringFlag{Name: "golden", Usage: "golden values `FILE` (evtpm measure -o json)"},
			&cli.StringFlag{Name: "registry", Usage: "remember EKs in `FILE`, and refuse one that was seen in another launch"},
			&cli.StringFlag{Name: "batch", Usage: "judge every file of the folder `DIR`"},
		),
		Action: func(c *cli.Context) error {
			asJSON, err := wantsJSON(c)
			if err != nil {
				return err
			}
			o, err := u.judgeOptions(c)
			if err != nil {
				return err
			}
			golden, err := readGolden(c.String("golden"))
			if err != nil {
				return err
			}
			if file := c.String("registry"); file != "" {
				o.Registry = attest.NewFileRegistry(file)
			}
			if dir := c.String("batch"); dir != "" {
				if c.NArg() > 0 {
					return fmt.Errorf("--batch: found argument %q, expected none", c.Args().First())
				}
				return verifyBatch(u, c, dir, golden, o, asJSON)
			}
			return verifyOne(u, c, golden, o, asJSON)
		},
	}
}

func verifyOne(u *ui, c *cli.Context, golden *measure.Golden, o attest.Options, asJSON bool) error {
	name, err := oneArg(c, "EVIDENCE")
	if err != nil {
		return err
	}
	if golden == nil {
		return errors.New("--golden is missing: evidence is judged against golden values")
	}
	data, err := u.readInput(name, evidence.MaxEvidence)
	if err != nil {
		return err
	}
	ev, err := evidence.Parse(data)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	v, err := attest.Verify(c.Context, ev, golden, u.withKept(c.Context, o, ev.Report))
	if err != nil {
		return err
	}
	return u.judged(asJSON, v, ev.Report)
}

// readGolden reads golden values; nil when no file is named.
func readGolden(name string) (*measure.Golden, error) {
	if name == "" {
		return nil, nil
	}
	data, err := readReference(name, inputfile.MaxDocument)
	if err != nil {
		return nil, fmt.Errorf("--golden: %w", err)
	}
	g, err := measure.ParseGolden(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return g, nil
}
