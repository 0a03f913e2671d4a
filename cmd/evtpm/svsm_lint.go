package main

import (
	"fmt"

	"github.com/urfave/cli/v2"

	"github.com/evtpm/evtpm/attest"
	"github.com/evtpm/evtpm/svsmimg"
)

func svsmLintCommand(u *ui) *cli.Command {
	return &cli.Command{
		Name: "lint", Usage: "find what keeps an image from starting, or makes it measure differently",
		ArgsUsage:   "FILE",
		Description: "Every finding has a stable code, an explanation and a fix. Exit codes: 0 no errors, 5 errors.",
		Flags: append(svsmLaunchFlags(), outputFlag(),
			&cli.StringFlag{Name: "qemu", Usage: "release of QEMU that is to load the image, such as 11.1, or coconut for COCONUT-SVSM's branch, on its kernels", Value: svsmimg.LatestQEMU.String()},
			&cli.StringFlag{Name: "policy", Usage: "guest policy of QEMU's command line"},
			&cli.StringSliceFlag{Name: "beside", Usage: "what else QEMU is given: bios, pflash, kernel, initrd, append, kernel-hashes, id-block"},
			&cli.BoolFlag{Name: "rules", Usage: "list all rules instead of looking at a file"}),
		Action: func(c *cli.Context) error { return u.svsmLint(c) },
	}
}

// lintDocument is what -o json prints.
type lintDocument struct {
	Schema      string            `json:"schema"`
	File        string            `json:"file"`
	QEMU        string            `json:"qemu"`
	HostProfile svsmimg.Profile   `json:"host_profile"`
	Errors      int               `json:"errors"`
	Findings    []svsmimg.Finding `json:"findings"`
}

func (u *ui) svsmLint(c *cli.Context) error {
	asJSON, err := wantsJSON(c)
	if err != nil {
		return err
	}
	if c.Bool("rules") {
		return u.svsmRules(asJSON)
	}
	name, f, err := u.imageArg(c)
	if err != nil {
		return err
	}
	var o svsmimg.LintOptions
	if o.Launch, err = svsmLaunch(c, f); err != nil {
		return err
	}
	if o.QEMU, err = svsmimg.ParseQEMUVersion(c.String("qemu")); err != nil {
		return fmt.Errorf("--qemu: %w", err)
	}
	if c.String("host-profile") == "" {
		o.Launch.Profile = o.QEMU.Profile(f)
	}
	if c.IsSet("policy") {
		policy, err := parseNumber("policy", c.String("policy"), 64)
		if err != nil {
			return err
		}
		o.Policy = &policy
	}
	o.Beside = c.StringSlice("beside")
	findings, err := f.Lint(o)
	if err != nil {
		return err
	}
	doc := lintDocument{Schema: "evtpm.svsm-lint/v1", File: name, QEMU: o.QEMU.String(), HostProfile: o.Launch.Profile, Findings: findings}
	if findings == nil {
		doc.Findings = []svsmimg.Finding{}
	}
	for _, f := range findings {
		if f.Severity == svsmimg.SeverityError {
			doc.Errors++
		}
	}
	if asJSON {
		err = u.json(doc)
	} else {
		u.svsmFindings(&doc)
	}
	if err == nil && doc.Errors > 0 {
		err = errSilent(attest.ClassPolicy)
	}
	return err
}

func (u *ui) svsmFindings(doc *lintDocument) {
	for _, f := range doc.Findings {
		u.data("%s: %s: %s", f.Severity, f.Code, f.Message)
		u.data("    why: %s", f.Explanation)
		u.data("    fix: %s", f.Fix)
	}
	u.say("%s: QEMU %s, host profile %s: %d findings, %d of them errors", doc.File, doc.QEMU, doc.HostProfile, len(doc.Findings), doc.Errors)
}

func (u *ui) svsmRules(asJSON bool) error {
	if asJSON {
		return u.json(svsmimg.Rules())
	}
	for _, r := range svsmimg.Rules() {
		u.data("%s: %s", r.Severity, r.Code)
		u.data("    why: %s", r.Explanation)
		u.data("    fix: %s", r.Fix)
	}
	return nil
}
