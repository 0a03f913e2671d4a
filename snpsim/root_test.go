package snpsim

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-sev-guest/kds"

	"github.com/evtpm/evtpm/attest"
)

func TestRootIsMadeOnce(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "sim")
	root, err := OpenRoot(dir, "Genoa")
	if err != nil {
		t.Fatal(err)
	}
	again, err := OpenRoot(dir, "Genoa")
	if err != nil {
		t.Fatal(err)
	}
	if !root.ARK().Equal(again.ARK()) || !root.ASK().Equal(again.ASK()) {
		t.Error("opening a root again made another")
	}
	for _, c := range []*x509.Certificate{root.ARK(), root.ASK()} {
		key, ok := c.PublicKey.(*rsa.PublicKey)
		if !ok || key.N.BitLen() != 4096 || c.SignatureAlgorithm != x509.SHA384WithRSAPSS {
			t.Errorf("%s: found %T and %v, expected RSA-4096 and PSS with SHA-384", c.Subject, c.PublicKey, c.SignatureAlgorithm)
		}
		if !strings.Contains(c.Subject.String(), "SIMULATED") {
			t.Errorf("subject %q does not say SIMULATED", c.Subject)
		}
	}
	if err := root.ASK().CheckSignatureFrom(root.ARK()); err != nil {
		t.Error(err)
	}

	modes := map[string]fs.FileMode{}
	err = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err == nil {
			rel, _ := filepath.Rel(dir, path)
			modes[rel] = info.Mode()
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]fs.FileMode{
		".": fs.ModeDir | 0o700, "lock": 0o600, "Genoa": fs.ModeDir | 0o700,
		"Genoa/ark.pem": 0o600, "Genoa/ark.key": 0o600, "Genoa/ask.pem": 0o600, "Genoa/ask.key": 0o600,
	}
	if d := cmp.Diff(want, modes); d != "" {
		t.Errorf("files (-want +got):\n%s", d)
	}
}

// Several processes may make the same root at once; here, several goroutines
// whose locks are of different open files, as processes' are.
func TestRootRace(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "sim")
	roots := make([]*Root, 4)
	chips := make([]*Chip, len(roots))
	var wg sync.WaitGroup
	for i := range roots {
		wg.Go(func() {
			roots[i] = testRoot(t, dir, "Milan")
			var err error
			if chips[i], err = roots[i].Chip(""); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	for i := range roots {
		if !roots[i].ARK().Equal(roots[0].ARK()) || chips[i].ID != chips[0].ID || !chips[i].VCEK().Equal(chips[0].VCEK()) {
			t.Error("two were made")
		}
	}
}

func TestRootRefused(t *testing.T) {
	t.Run("product", func(t *testing.T) {
		_, err := OpenRoot(t.TempDir(), "Rome")
		if err == nil || !strings.Contains(err.Error(), `found "Rome", expected Genoa, Milan, Turin`) {
			t.Error(err)
		}
	})
	t.Run("directory for others", func(t *testing.T) {
		dir := t.TempDir()
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		_, err := OpenRoot(dir, "Genoa")
		if err == nil || !strings.Contains(err.Error(), "found mode 0755, expected 0700") {
			t.Error(err)
		}
	})
	t.Run("a file", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenRoot(path, "Genoa"); err == nil {
			t.Error("a file was opened as a root")
		}
	})

	// Each of these breaks a root that was made.
	swap := func(a, b string) func(t *testing.T, dir string) {
		return func(t *testing.T, dir string) {
			data, err := os.ReadFile(filepath.Join(dir, b))
			if err == nil {
				err = os.WriteFile(filepath.Join(dir, a), data, 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, c := range map[string]struct {
		change func(t *testing.T, dir string)
		want   string
	}{
		"key for others": {func(t *testing.T, dir string) {
			if err := os.Chmod(filepath.Join(dir, fileASKKey), 0o644); err != nil {
				t.Fatal(err)
			}
		}, "found mode 0644, expected 0600"},
		"key of another": {swap(fileASKKey, fileARKKey), "not the key of ask.pem"},
		"ASK not by this ARK": {rewrite(fileASK, "CERTIFICATE", func(der []byte) []byte {
			der[len(der)-1] ^= 1 // in the signature
			return der
		}), "ask.pem is not signed by ark.pem"},
		"ARK is no ARK":          {swap(fileARK, fileASK), "is not an ARK"},
		"no certificate":         {swap(fileARK, fileARKKey), "no certificate in PEM"},
		"no key":                 {swap(fileASKKey, fileASK), "no PRIVATE KEY in PEM"},
		"truncated certificate":  {rewrite(fileASK, "CERTIFICATE", half), "ask.pem: x509"},
		"truncated key":          {rewrite(fileASKKey, "PRIVATE KEY", half), "ask.key: "},
		"certificate of no size": {func(t *testing.T, dir string) { resize(t, filepath.Join(dir, fileASK), maxPEM+1) }, "ask.pem"},
	} {
		t.Run(name, func(t *testing.T) {
			top := filepath.Join(t.TempDir(), "sim")
			r := testRoot(t, top, "Genoa")
			c.change(t, r.dir)
			_, err := OpenRoot(top, "Genoa")
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("found %v, expected %q", err, c.want)
			}
		})
	}
}

func half(der []byte) []byte { return der[:len(der)/2] }

// rewrite keeps the PEM form of a file and changes what is in it.
func rewrite(name, kind string, change func([]byte) []byte) func(t *testing.T, dir string) {
	return func(t *testing.T, dir string) {
		path := filepath.Join(dir, name)
		block, _ := pem.Decode(mustRead(t, path))
		data := pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: change(block.Bytes)})
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func resize(t *testing.T, path string, size int64) {
	t.Helper()
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
}

// A process that dies while it makes a root leaves nothing that a later one
// could take for a root.
func TestRootHalfMade(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "sim")
	fault := errors.New("no entropy")
	if _, err := openRoot(dir, "Genoa", func() (*rsa.PrivateKey, error) { return nil, fault }); !errors.Is(err, fault) {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Name() != fileLock {
			t.Errorf("found %s", e.Name())
		}
	}
	testRoot(t, dir, "Genoa")
}

func TestLoadARKs(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "with [brackets]")
	genoa, turin := testRoot(t, dir, "Genoa"), testRoot(t, dir, "Turin")
	names := func(path string) []string {
		t.Helper()
		certs, err := LoadARKs(path)
		if err != nil {
			t.Fatal(err)
		}
		var out []string
		for _, c := range certs {
			out = append(out, c.Subject.CommonName)
		}
		return out
	}
	if d := cmp.Diff([]string{"ARK-Genoa", "ARK-Turin"}, names(dir)); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff([]string{"ARK-Genoa"}, names(filepath.Join(genoa.dir, fileARK))); d != "" {
		t.Error(d)
	}

	// What a user could mistake for a simulated root.
	amd := attest.AMDCertificates()
	files := map[string]struct {
		certs []*x509.Certificate
		want  string
	}{
		"AMD's root":    {amd[:1], "does not say SIMULATED"},
		"an ASK":        {[]*x509.Certificate{turin.ask}, "is not an ARK"},
		"one and AMD's": {[]*x509.Certificate{turin.ark, amd[0]}, "does not say SIMULATED"},
		"none":          {nil, "no certificate"},
	}
	for name, f := range files {
		path := filepath.Join(t.TempDir(), "roots.pem")
		var data []byte
		for _, c := range f.certs {
			data = append(data, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := LoadARKs(path); err == nil || !strings.Contains(err.Error(), f.want) {
			t.Errorf("%s: found %v, expected %q", name, err, f.want)
		}
	}
	for _, path := range []string{t.TempDir(), filepath.Join(dir, "nothing")} {
		if _, err := LoadARKs(path); err == nil {
			t.Errorf("%s: found roots", path)
		}
	}

	// An ARK that another ARK of the same name signed is no root.
	forged := *genoa.ark
	forged.Raw, forged.Signature = genoa.ark.Raw, bytes.Clone(genoa.ark.Signature)
	forged.Signature[0] ^= 1
	if err := checkSimulatedRoot(&forged); err == nil || !strings.Contains(err.Error(), "not signed by itself") {
		t.Errorf("wrong signature: found %v", err)
	}
}

func TestChips(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "sim")
	root := testRoot(t, dir, "Genoa")
	this, err := root.Chip("")
	if err != nil {
		t.Fatal(err)
	}
	other, err := root.Chip("other")
	if err != nil {
		t.Fatal(err)
	}
	again, err := testRoot(t, dir, "Genoa").Chip("")
	if err != nil {
		t.Fatal(err)
	}
	if this.ID != again.ID || !this.VCEK().Equal(again.VCEK()) || !this.key.Equal(again.key) {
		t.Error("opening a chip again made another")
	}
	if this.ID == other.ID || this.key.Equal(other.key) {
		t.Error("two chips are one")
	}
	for _, name := range []string{"../x", "A", "x/y", strings.Repeat("x", 33), "x\x00", "."} {
		if _, err := root.Chip(name); err == nil {
			t.Errorf("name %q was taken", name)
		}
	}

	// A chip that runs with another TCB keeps its id and has another VCEK.
	newer := *root
	newer.product.tcb.microcode++
	updated, err := newer.Chip("")
	if err != nil {
		t.Fatal(err)
	}
	if updated.ID != this.ID || updated.key.Equal(this.key) {
		t.Error("a firmware update must change the VCEK and not the chip's id")
	}

	chipDir := filepath.Join(root.dir, dirChips, "other")
	if err := os.WriteFile(filepath.Join(chipDir, fileChipID), []byte("beef\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := root.Chip("other"); err == nil || !strings.Contains(err.Error(), "expected 64 bytes in hex") {
		t.Errorf("short id: %v", err)
	}
	if err := os.WriteFile(root.vcekPath(filepath.Join(root.dir, dirChips, thisMachine)), mustRead(t, newer.vcekPath(filepath.Join(root.dir, dirChips, thisMachine)))[:200], 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := root.Chip(""); err == nil {
		t.Error("half a VCEK file was taken")
	}
}

func TestChipOfAnotherRoot(t *testing.T) {
	a := testRoot(t, filepath.Join(t.TempDir(), "a"), "Genoa")
	b, err := openRoot(filepath.Join(t.TempDir(), "b"), "Genoa", func() (*rsa.PrivateKey, error) { return rsa.GenerateKey(rand.Reader, 2048) })
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Chip(""); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(a.dir, dirChips)
	if err := os.Rename(filepath.Join(b.dir, dirChips), dir); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Chip(""); err == nil || !strings.Contains(err.Error(), "not signed by this root's ASK") {
		t.Errorf("found %v", err)
	}

	// Key and certificate of different chips.
	path := a.vcekPath(filepath.Join(dir, thisMachine))
	one := mustRead(t, path)
	os.RemoveAll(dir)
	if _, err := a.Chip(""); err != nil {
		t.Fatal(err)
	}
	two := mustRead(t, path)
	cut := func(b []byte) int { return bytes.Index(b, []byte("-----BEGIN PRIVATE KEY")) }
	if err := os.WriteFile(path, append(two[:cut(two):cut(two)], one[cut(one):]...), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Chip(""); err == nil || !strings.Contains(err.Error(), "do not belong together") {
		t.Errorf("found %v", err)
	}
}

func mustRead(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// The extensions are read by go-sev-guest where it knows them, and compared with
// a certificate of AMD's.
func TestVCEKExtensions(t *testing.T) {
	for _, name := range []string{"Milan", "Genoa"} {
		c := testChip(t, name)
		got, err := kds.VcekCertificateExtensions(c.VCEK())
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got.ProductName != c.product.productName || !bytes.Equal(got.HWID, c.ID[:]) || uint64(got.TCBVersion) != c.product.version() {
			t.Errorf("%s: found %+v", name, got)
		}
		if now := time.Now(); now.Before(c.VCEK().NotBefore) || now.AddDate(6, 0, 0).After(c.VCEK().NotAfter) {
			t.Errorf("%s: valid from %v to %v", name, c.VCEK().NotBefore, c.VCEK().NotAfter)
		}
	}
}

func TestVCEKExtensionsOfAMD(t *testing.T) {
	dir := filepath.Join(testdata(t), "realdata")
	for name, file := range map[string]string{
		"Milan": "certs/vcek_b67b09bfb887.der",
		"Genoa": "certs/vcek_05788a16abe1.der",
		"Turin": "misc/sev__vcek_turin.der",
	} {
		amd, err := x509.ParseCertificate(mustRead(t, filepath.Join(dir, file)))
		if err != nil {
			t.Fatal(err)
		}
		// What is in a certificate: the extensions with the DER type and length
		// of each value, and the product's name.
		form := func(c *x509.Certificate) map[string]string {
			out := map[string]string{}
			for _, e := range c.Extensions {
				id := e.Id.String()
				if !strings.HasPrefix(id, "1.3.6.1.4.1.3704.1.") {
					continue
				}
				switch {
				case strings.HasSuffix(id, "3704.1.2"), strings.HasSuffix(id, "3704.1.1"):
					out[id] = string(e.Value)
				case strings.HasSuffix(id, "3704.1.4"):
					out[id] = strings.Repeat("x", len(e.Value))
				default:
					out[id] = string(e.Value[:1]) // INTEGER, one or two bytes
				}
			}
			return out
		}
		ours := testChip(t, name).VCEK()
		if d := cmp.Diff(form(amd), form(ours)); d != "" {
			t.Errorf("%s (-AMD +simulated):\n%s", name, d)
		}
		if ours.Subject.CommonName != amd.Subject.CommonName || ours.Issuer.CommonName != amd.Issuer.CommonName {
			t.Errorf("%s: %q below %q, AMD has %q below %q", name, ours.Subject.CommonName, ours.Issuer.CommonName, amd.Subject.CommonName, amd.Issuer.CommonName)
		}
	}
}
