package main

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/evtpm/evtpm/attest"
	"github.com/evtpm/evtpm/attest/kds"
)

func certsCommand(u *ui) *cli.Command {
	return &cli.Command{
		Name:  "certs",
		Usage: "fetch, keep and show the certificates and CRLs that reports are judged with",
		Subcommands: []*cli.Command{
			{
				Name: "fetch", Usage: "fetch what reports need from AMD into the cache",
				Description: "For each REPORT its VCEK certificate and the CRL of its root; with --product the CA\n" +
					"certificates and the CRLs of a product line.",
				ArgsUsage: "[REPORT...]",
				Flags: []cli.Flag{
					&cli.StringSliceFlag{Name: "product", Usage: "product `LINE`: Milan, Genoa (also Bergamo, Siena) or Turin; may be repeated"},
				},
				Action: func(c *cli.Context) error { return certsFetch(u, c) },
			},
			{
				Name: "import", Usage: "put certificates and CRLs from files into the cache",
				ArgsUsage: "FILE...",
				Flags: []cli.Flag{
					&cli.StringSliceFlag{Name: "cert-table", Usage: "certificate table `FILE`, as the host gives it to guests; may be repeated"},
				},
				Action: func(c *cli.Context) error { return certsImport(u, c) },
			},
			{
				Name: "show", Usage: "say what certificates and CRLs are: those in files, or without any those in the cache",
				ArgsUsage: "[FILE|-...]",
				Flags: []cli.Flag{
					&cli.StringSliceFlag{Name: "cert-table", Usage: "certificate table `FILE`, as the host gives it to guests; may be repeated"},
					outputFlag(),
				},
				Action: func(c *cli.Context) error { return certsShow(u, c) },
			},
			{
				Name: "bundle", Usage: "write a PEM file for a verifier without network",
				Description: "The bundle holds AMD's CA certificates, everything in the cache, and the FILEs.",
				ArgsUsage:   "[FILE...]",
				Flags: []cli.Flag{
					&cli.StringSliceFlag{Name: "cert-table", Usage: "certificate table `FILE`, as the host gives it to guests; may be repeated"},
					&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "write to `FILE` instead of standard output"},
				},
				Action: func(c *cli.Context) error { return certsBundle(u, c) },
			},
		},
	}
}

func certsFetch(u *ui, c *cli.Context) error {
	dir, err := u.certDir()
	if err != nil {
		return err
	}
	urls, err := fetchList(u, c)
	if err != nil {
		return err
	}
	amd := &countingGetter{next: kds.New(kds.Options{})}
	cache := &kds.Cache{Dir: dir, Next: amd}
	var errs []error
	for _, url := range urls {
		before := amd.got
		if _, err := cache.Get(c.Context, url); err != nil {
			errs = append(errs, err)
		} else if amd.got > before {
			u.say("fetched %s", url)
		} else {
			u.say("kept already: %s", url)
		}
	}
	return withClass(attest.ClassCertificates, errors.Join(errs...))
}

// countingGetter counts what was got.
type countingGetter struct {
	next attest.Getter
	got  int
}

func (g *countingGetter) Get(ctx context.Context, url string) ([]byte, error) {
	data, err := g.next.Get(ctx, url)
	if err == nil {
		g.got++
	}
	return data, err
}

// fetchList lists the URLs of what was asked for, each once.
func fetchList(u *ui, c *cli.Context) ([]string, error) {
	var urls []string
	seen := map[string]bool{}
	add := func(url string) {
		if !seen[url] {
			seen[url] = true
			urls = append(urls, url)
		}
	}
	for _, line := range c.StringSlice("product") {
		if line != "Milan" && line != "Genoa" && line != "Turin" {
			return nil, fmt.Errorf("--product: found %q, expected Milan, Genoa or Turin", line)
		}
		for _, kind := range []string{"vcek", "vlek"} {
			add(attest.CertChainURL(kind, line))
			add(attest.CRLURL(kind, line))
		}
	}
	for _, name := range c.Args().Slice() {
		data, err := u.readInput(name, attest.MaxReportFile)
		if err != nil {
			return nil, err
		}
		raw, _, err := attest.SplitReport(data)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		r, err := attest.ParseReport(raw)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		url, err := attest.ReportURL(r)
		if err != nil {
			return nil, withClass(attest.ClassCertificates, fmt.Errorf("%s: %w", name, err))
		}
		product, _ := r.CPUID.Product() // known, or there would be no URL
		add(url)
		add(attest.CRLURL("vcek", product.Line))
	}
	if len(urls) == 0 {
		return nil, errors.New("certs fetch: found neither a report nor --product")
	}
	return urls, nil
}

// readBundles reads the files of a command: PEM, DER and certificate tables. One may
// be standard input.
func readBundles(u *ui, c *cli.Context) (*attest.Bundle, error) {
	b := new(attest.Bundle)
	var errs []error
	for _, name := range c.Args().Slice() {
		data, err := u.readInput(name, attest.MaxBundle)
		if err == nil {
			var more *attest.Bundle
			if more, err = attest.ParseBundle(data); err == nil {
				b.Add(more)
				continue
			}
			err = fmt.Errorf("%s: %w", name, err)
		}
		errs = append(errs, err)
	}
	for _, name := range c.StringSlice("cert-table") {
		data, err := u.readInput(name, attest.MaxReportFile)
		if err == nil {
			var more *attest.Bundle
			if more, err = attest.TableBundle(data); err == nil {
				b.Add(more)
				continue
			}
			err = fmt.Errorf("%s: %w", name, err)
		}
		errs = append(errs, err)
	}
	return b, errors.Join(errs...)
}

func certsImport(u *ui, c *cli.Context) error {
	b, err := readBundles(u, c)
	if err != nil {
		return err
	}
	if len(b.Certificates)+len(b.CRLs) == 0 {
		return errors.New("certs import: found no certificate and no CRL")
	}
	dir, err := u.certDir()
	if err != nil {
		return err
	}
	cache := &kds.Cache{Dir: dir}
	kept := 0
	put := func(what string, data []byte, urls ...string) error {
		var newer error
		for _, url := range urls {
			err := cache.Import(url, data)
			if errors.Is(err, kds.ErrNewer) {
				newer = err
			} else if err != nil {
				return fmt.Errorf("%s: %w", what, err)
			}
		}
		if newer != nil {
			u.say("not kept: %s (%v)", what, newer)
			return nil
		}
		kept++
		u.say("kept %s", what)
		return nil
	}
	for _, x := range b.Certificates {
		name := printable(x.Subject.CommonName)
		if attest.CertificateRole(x) != "leaf" {
			u.say("not kept: %s (AMD's CA certificates are part of evtpm; others are given with --ca)", name)
			continue
		}
		l, err := attest.ParseLeaf(x)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		url := l.URL()
		if url == "" {
			u.say("not kept: %s (no chip's certificate; give it with --vek)", name)
			continue
		}
		if err := put(fmt.Sprintf("%s of chip %x", name, l.HWID), x.Raw, url); err != nil {
			return err
		}
	}
	for _, l := range b.CRLs {
		line, ok := strings.CutPrefix(l.Issuer.CommonName, "ARK-")
		if !ok {
			u.say("not kept: CRL of %s", printable(l.Issuer.CommonName))
			continue
		}
		if err := put("CRL of "+printable(l.Issuer.CommonName), l.Raw, attest.CRLURL("vcek", line), attest.CRLURL("vlek", line)); err != nil {
			return err
		}
	}
	if kept == 0 {
		return errors.New("certs import: nothing to keep in these files")
	}
	return nil
}

// certInfo is the JSON form of a certificate or CRL.
type certInfo struct {
	Kind      string      `json:"kind"` // root, intermediate, leaf, crl
	Subject   string      `json:"subject,omitempty"`
	Issuer    string      `json:"issuer"`
	NotBefore time.Time   `json:"not_before"`
	NotAfter  time.Time   `json:"not_after"`
	Serial    string      `json:"serial,omitempty"`
	SHA256    string      `json:"sha256"`
	AMDRoot   bool        `json:"amd_root,omitempty"`
	Leaf      string      `json:"leaf,omitempty"` // vcek, vlek
	Product   string      `json:"product,omitempty"`
	HWID      string      `json:"hwid,omitempty"`
	CSPID     string      `json:"csp_id,omitempty"`
	TCB       *attest.TCB `json:"tcb,omitempty"`
	Revoked   []string    `json:"revoked,omitempty"`
	Fault     string      `json:"fault,omitempty"` // of a leaf's extensions
}

func describeCertificate(x *x509.Certificate) certInfo {
	sum := sha256.Sum256(x.Raw)
	i := certInfo{
		Kind: attest.CertificateRole(x), Subject: x.Subject.CommonName, Issuer: x.Issuer.CommonName,
		NotBefore: x.NotBefore.UTC(), NotAfter: x.NotAfter.UTC(), Serial: fmt.Sprintf("%#x", x.SerialNumber),
		SHA256: fmt.Sprintf("%x", sum), AMDRoot: attest.IsAMDRoot(x),
	}
	if i.Kind != "leaf" {
		return i
	}
	l, err := attest.ParseLeaf(x)
	if err != nil {
		i.Fault = strings.ReplaceAll(err.Error(), "\n", "; ")
		return i
	}
	i.Leaf, i.Product, i.CSPID, i.TCB = l.Kind, l.ProductName, l.CSPID, &l.TCB
	if l.HWID != nil {
		i.HWID = fmt.Sprintf("%x", l.HWID)
	}
	return i
}

func describeCRL(l *x509.RevocationList) certInfo {
	sum := sha256.Sum256(l.Raw)
	i := certInfo{
		Kind: "crl", Issuer: l.Issuer.CommonName,
		NotBefore: l.ThisUpdate.UTC(), NotAfter: l.NextUpdate.UTC(), SHA256: fmt.Sprintf("%x", sum),
	}
	for _, e := range l.RevokedCertificateEntries {
		i.Revoked = append(i.Revoked, fmt.Sprintf("%#x", e.SerialNumber))
	}
	return i
}

func certsShow(u *ui, c *cli.Context) error {
	asJSON, err := wantsJSON(c)
	if err != nil {
		return err
	}
	b, err := readBundles(u, c)
	if err == nil && c.NArg() == 0 && len(c.StringSlice("cert-table")) == 0 {
		b, err = u.keptBundle()
	}
	if err != nil {
		return err
	}
	var list []certInfo
	for _, x := range b.Certificates {
		list = append(list, describeCertificate(x))
	}
	for _, l := range b.CRLs {
		list = append(list, describeCRL(l))
	}
	if len(list) == 0 {
		return errors.New("certs show: found no certificate and no CRL")
	}
	if asJSON {
		return u.json(struct {
			Schema       string     `json:"schema"`
			Certificates []certInfo `json:"certificates"`
		}{"evtpm.certificates/v1", list})
	}
	for _, i := range list {
		for _, line := range i.lines() {
			u.data("%s", line)
		}
	}
	return nil
}

// lines is a certificate's text form: a heading and indented fields.
func (i certInfo) lines() []string {
	head := i.Kind + ": " + printable(i.Subject)
	if i.Kind == "crl" {
		head = "crl of " + printable(i.Issuer)
	}
	out := []string{head}
	add := func(name, value string) {
		if value != "" {
			out = append(out, "  "+name+": "+printable(value))
		}
	}
	add("issuer", i.Issuer)
	add("valid", i.NotBefore.Format(time.RFC3339)+" to "+i.NotAfter.Format(time.RFC3339))
	add("serial", i.Serial)
	add("sha256", i.SHA256)
	if i.AMDRoot {
		add("pinned", "one of AMD's roots")
	}
	add("key", i.Leaf)
	add("product", i.Product)
	add("hwid", i.HWID)
	add("provider", i.CSPID)
	if i.TCB != nil {
		add("tcb", i.TCB.String())
	}
	add("revoked", strings.Join(i.Revoked, ", "))
	add("fault", i.Fault)
	return out
}

func certsBundle(u *ui, c *cli.Context) error {
	b, err := readBundles(u, c)
	if err != nil {
		return err
	}
	kept, err := u.keptBundle()
	if err != nil {
		return err
	}
	all := &attest.Bundle{Certificates: attest.AMDCertificates()}
	all.Add(b)
	all.Add(kept)
	u.say("certificates: %d, CRLs: %d", len(all.Certificates), len(all.CRLs))
	write := func(w io.Writer) error {
		_, err := w.Write(all.Encode())
		return err
	}
	if name := c.String("output"); name != "" {
		return writeWhole(name, write)
	}
	return write(u.out)
}

// keptBundle is everything in the cache.
func (u *ui) keptBundle() (*attest.Bundle, error) {
	dir, err := u.certDir()
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	all := new(attest.Bundle)
	for _, e := range entries {
		if !e.Type().IsRegular() || strings.HasPrefix(e.Name(), ".") {
			continue
		}
		kept, err := readBundle(filepath.Join(dir, e.Name()))
		if err != nil {
			return nil, fmt.Errorf("cache: %w", err)
		}
		all.Add(kept)
	}
	return all, nil
}
