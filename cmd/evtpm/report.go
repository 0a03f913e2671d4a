package main

import (
	"encoding/hex"
	"fmt"
	"reflect"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/evtpm/evtpm/attest"
	"github.com/evtpm/evtpm/inputfile"
	"github.com/evtpm/evtpm/measure"
)

// reportFile says what a report's argument may be.
const reportFile = "FILE"

const reportForms = "FILE holds the 1184 bytes, with or without a certificate table behind them, or Azure's HCL\n" +
	"report around them; or the same in hexadecimal or base64; or JSON: Trustee's evidence, a report\n" +
	"of the sev crate, or configfs-tsm's outblob and auxblob; \"-\" is standard input."

func reportCommand(u *ui) *cli.Command {
	return &cli.Command{
		Name:  "report",
		Usage: "show or verify a bare attestation report",
		Subcommands: []*cli.Command{
			{
				Name: "show", Usage: "print a report's fields; nothing is judged",
				Description: reportForms,
				ArgsUsage:   reportFile,
				Flags: []cli.Flag{
					outputFlag(),
				},
				Action: func(c *cli.Context) error { return reportShow(u, c) },
			},
			{
				Name: "verify", Usage: "judge a report's signature, chain, platform and policy",
				Description: reportForms + "\n" +
					"Certificates are looked for behind the report, in the files of the flags, among AMD's\n" +
					"published ones, in the cache of evtpm certs, and with --fetch at AMD.\n" +
					"Exit codes: 0 trusted, 2 signature or chain,\n" +
					"3 certificates unavailable, 4 CRL unavailable, 5 policy or TCB, 6 measurement, 7 report data or VMPL.",
				ArgsUsage: reportFile,
				Flags: append(judgeFlags(),
					&cli.StringFlag{Name: "cert-table", Usage: "certificate table `FILE`, as the host gives it to guests"},
					&cli.StringSliceFlag{Name: "expect-measurement", Usage: "accepted launch digest, 48 bytes in `HEX`; may be repeated"},
					&cli.StringFlag{Name: "expect-report-data", Usage: "report data, 64 bytes in `HEX`"},
				),
				Action: func(c *cli.Context) error { return reportVerify(u, c) },
			},
		},
	}
}

func reportShow(u *ui, c *cli.Context) error {
	name, err := oneArg(c, reportFile)
	if err != nil {
		return err
	}
	asJSON, err := wantsJSON(c)
	if err != nil {
		return err
	}
	data, err := u.readInput(name, attest.MaxReportFile)
	if err != nil {
		return err
	}
	raw, table, err := attest.SplitReport(data)
	if err != nil {
		return withClass(attest.ClassSignature, fmt.Errorf("%s: %w", name, err))
	}
	r, err := attest.ParseReport(raw)
	if err != nil {
		return withClass(attest.ClassSignature, fmt.Errorf("%s: %w", name, err))
	}
	claims := r.Claims()
	if asJSON {
		return u.json(struct {
			Schema string        `json:"schema"`
			Claims attest.Claims `json:"claims"`
		}{"evtpm.report/v1", claims})
	}
	for _, line := range fieldLines(claims) {
		u.data("%s", line)
	}
	if len(table) > 0 {
		u.data("certificate_table: %d bytes", len(table))
	}
	return nil
}

// fieldLines lists a struct's fields by their JSON names, one "name: value" each.
func fieldLines(v any) []string {
	var out []string
	rv := reflect.ValueOf(v)
	for i := range rv.NumField() {
		name, _, _ := strings.Cut(rv.Type().Field(i).Tag.Get("json"), ",")
		f := rv.Field(i)
		if f.Kind() == reflect.Pointer {
			if f.IsNil() {
				continue
			}
			f = f.Elem()
		}
		out = append(out, fmt.Sprintf("%s: %v", name, f.Interface()))
	}
	return out
}

func reportVerify(u *ui, c *cli.Context) error {
	name, err := oneArg(c, reportFile)
	if err != nil {
		return err
	}
	asJSON, err := wantsJSON(c)
	if err != nil {
		return err
	}
	o, err := u.judgeOptions(c)
	if err != nil {
		return err
	}
	want, err := expectations(c)
	if err != nil {
		return err
	}
	data, err := u.readInput(name, attest.MaxReportFile)
	if err != nil {
		return err
	}
	raw, table, err := attest.SplitReport(data)
	if err != nil {
		return withClass(attest.ClassSignature, fmt.Errorf("%s: %w", name, err))
	}
	if file := c.String("cert-table"); file != "" {
		if len(table) > 0 {
			return fmt.Errorf("--cert-table: %s has a certificate table of its own", name)
		}
		if table, err = inputfile.Read(file, attest.MaxReportFile); err != nil {
			return fmt.Errorf("--cert-table: %w", err)
		}
	}
	v, err := attest.VerifyReport(c.Context, raw, table, want, u.withKept(c.Context, o, raw))
	if err != nil {
		return err
	}
	return u.judged(asJSON, v, raw)
}

// expectations reads what a report is compared with.
func expectations(c *cli.Context) (attest.Expect, error) {
	var want attest.Expect
	for _, s := range c.StringSlice("expect-measurement") {
		var d measure.Digest
		if err := d.UnmarshalText([]byte(s)); err != nil {
			return want, fmt.Errorf("--expect-measurement: %w", err)
		}
		want.Measurements = append(want.Measurements, d)
	}
	if c.IsSet("expect-report-data") {
		s := c.String("expect-report-data")
		data, err := hex.DecodeString(s)
		if err != nil || len(data) != 64 {
			return want, fmt.Errorf("--expect-report-data: found %d characters, expected 64 bytes in hexadecimal", len(s))
		}
		want.ReportData = data
	}
	if c.IsSet("expect-measurement") && len(want.Measurements) == 0 {
		return want, fmt.Errorf("--expect-measurement: found no digest")
	}
	return want, nil
}
