package main

import (
	"context"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/evtpm/evtpm/attest"
	"github.com/evtpm/evtpm/attest/kds"
	"github.com/evtpm/evtpm/inputfile"
	"github.com/evtpm/evtpm/snpsim"
)

// judgeFlags are the flags of the commands that judge reports: where
// certificates come from, what is trusted, by which policy, at which time.
func judgeFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringSliceFlag{Name: "vek", Usage: "VCEK or VLEK certificate `FILE`, PEM or DER; may be repeated"},
		&cli.StringSliceFlag{Name: "ca", Usage: "ASK, ASVK or ARK certificate `FILE`, PEM or DER; may be repeated"},
		&cli.StringSliceFlag{Name: "crl", Usage: "CRL `FILE`, PEM or DER; may be repeated"},
		&cli.StringFlag{Name: "bundle", Usage: "PEM `FILE` of certificates and CRLs (evtpm certs bundle)"},
		&cli.BoolFlag{Name: "fetch", Usage: "fetch missing certificates and the CRL from AMD"},
		&cli.StringFlag{Name: "at", Usage: "judge validity at this `TIME` (RFC 3339) instead of now"},
		&cli.StringFlag{Name: "policy", Usage: "policy `FILE`, or default, or permissive", Value: "default"},
		&cli.StringFlag{Name: "chip-id", Usage: "pin the chip: 64 bytes in `HEX`"},
		&cli.BoolFlag{Name: "trust-sim", Usage: "trust this machine's simulated platform, and AMD's roots not"},
		outputFlag(),
	}
}

// judgeOptions makes the options of a verification from the flags.
func (u *ui) judgeOptions(c *cli.Context) (attest.Options, error) {
	var o attest.Options
	var errs []error
	note := func(err error) {
		if err != nil {
			errs = append(errs, err)
		}
	}
	note(nothingEmpty(c))
	if at := c.String("at"); at != "" {
		t, err := time.Parse(time.RFC3339, at)
		if err != nil {
			note(fmt.Errorf("--at: found %q, expected a time such as 2026-11-24T12:00:00Z", at))
		}
		o.Now = t
	}
	var err error
	o.Policy, err = readPolicy(c.String("policy"))
	note(err)
	if id := c.String("chip-id"); id != "" {
		o.ChipID, err = hex.DecodeString(id)
		if err != nil || len(o.ChipID) != 64 {
			note(fmt.Errorf("--chip-id: found %q, expected 64 bytes in hexadecimal", id))
		}
	}
	b := new(attest.Bundle)
	for _, f := range []struct {
		flag  string
		files []string
	}{{"vek", c.StringSlice("vek")}, {"ca", c.StringSlice("ca")}, {"crl", c.StringSlice("crl")}, {"bundle", nonEmpty(c.String("bundle"))}} {
		for _, name := range f.files {
			more, err := readBundle(name)
			if err != nil {
				note(fmt.Errorf("--%s: %w", f.flag, err))
				continue
			}
			b.Add(more)
		}
	}
	o.Certificates, o.CRLs = b.Certificates, b.CRLs
	if c.Bool("trust-sim") {
		if o.SimRoots, err = u.simRoots(); err != nil {
			note(fmt.Errorf("--trust-sim: %w", err))
		}
	}
	if c.Bool("fetch") {
		if o.Getter, err = u.getter(); err != nil {
			note(fmt.Errorf("--fetch: %w", err))
		}
	}
	return o, errors.Join(errs...)
}

// nothingEmpty refuses flags with nothing behind them, as an unset variable of a
// script leaves them: what they ask for would not be judged, and nobody would know.
func nothingEmpty(c *cli.Context) error {
	var errs []error
	for _, f := range []string{"at", "policy", "chip-id", "bundle", "golden", "registry", "batch", "cert-table", "binding"} {
		if c.IsSet(f) && c.String(f) == "" {
			errs = append(errs, fmt.Errorf("--%s: expected a value behind it", f))
		}
	}
	return errors.Join(errs...)
}

// withKept adds the certificate that the cache keeps for a report.
func (u *ui) withKept(ctx context.Context, o attest.Options, report []byte) attest.Options {
	dir, err := u.certDir()
	if err != nil {
		return o // there is none
	}
	if x, err := kds.Kept(ctx, dir, report); err == nil {
		o.Certificates = append(slices.Clip(o.Certificates), x)
	}
	return o
}

func nonEmpty(s string) []string {
	if s == "" {
		return nil
	}
	return []string{s}
}

// simRoots are the roots of this machine's simulated platform.
func (u *ui) simRoots() (roots []*x509.Certificate, err error) {
	dir, err := u.simRootDir()
	if err != nil {
		return nil, err
	}
	if roots, err = snpsim.LoadARKs(dir); err != nil {
		return nil, err
	}
	if len(roots) == 0 {
		return nil, fmt.Errorf("found no simulated platform in %s: a launch with platform sim makes one", dir)
	}
	return roots, nil
}

// getter fetches from AMD, through the cache of the state directory.
func (u *ui) getter() (attest.Getter, error) {
	dir, err := u.certDir()
	if err != nil {
		return nil, err
	}
	return &kds.Cache{Dir: dir, Next: kds.New(kds.Options{})}, nil
}

// certDir is the cache of certificates and CRLs.
func (u *ui) certDir() (string, error) {
	dir, err := u.stateDir()
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, kds.Folder), nil
}

// maxPolicyFile bounds a policy file.
const maxPolicyFile = 64 << 10

// readPolicy reads a policy by name or from a file.
func readPolicy(name string) (*attest.Policy, error) {
	switch name {
	case "default":
		return attest.DefaultPolicy(), nil
	case "permissive":
		return attest.PermissivePolicy(), nil
	}
	text, err := readReference(name, maxPolicyFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("policy: %w; expected a file, default or permissive", err)
	}
	if err != nil {
		return nil, fmt.Errorf("policy: %w", err)
	}
	return attest.ParsePolicy(text, name)
}

// readReference reads a file that decides what is trusted. One that everybody can
// write decides nothing.
func readReference(name string, limit int64) ([]byte, error) {
	f, size, err := inputfile.Open(name, limit)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	// Windows keeps rights elsewhere, and shows every file as writable.
	if mode := info.Mode().Perm(); mode&0o002 != 0 && runtime.GOOS != "windows" {
		return nil, fmt.Errorf("%s: found mode %04o, expected one that others cannot write (chmod o-w)", name, mode)
	}
	return io.ReadAll(io.LimitReader(f, size))
}

func readBundle(name string) (*attest.Bundle, error) {
	data, err := inputfile.Read(name, attest.MaxBundle)
	if err != nil {
		return nil, err
	}
	b, err := attest.ParseBundle(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return b, nil
}

// judgementSchema names the version of a judgement's JSON form.
const judgementSchema = "evtpm.judgement/v1"

// A judgement is the JSON form of what a judging command found out.
type judgement struct {
	Schema  string          `json:"schema"`
	File    string          `json:"file,omitempty"`
	Verdict *attest.Verdict `json:"verdict"`
	// Claims are what the report says; absent when it cannot be read.
	Claims *attest.Claims `json:"claims,omitempty"`
}

// newJudgement joins a verdict with the report's claims.
func newJudgement(v *attest.Verdict, report []byte) judgement {
	j := judgement{Schema: judgementSchema, Verdict: v}
	if r, err := attest.ParseReport(report); err == nil {
		claims := r.Claims()
		j.Claims = &claims
	}
	return j
}

// judged prints a verdict, and ends with its exit code.
func (u *ui) judged(asJSON bool, v *attest.Verdict, report []byte) error {
	u.verdict(v)
	if asJSON {
		if err := u.json(newJudgement(v, report)); err != nil {
			return err
		}
	}
	return verdictExit(v)
}
