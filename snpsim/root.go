package snpsim

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/evtpm/evtpm/inputfile"
)

// A root's directory:
//
//	lock                      held while something is made
//	<product>/ark.pem         certificates: PEM
//	<product>/ask.pem
//	<product>/ark.key         private keys: PEM, PKCS #8, mode 0600
//	<product>/ask.key
//	<product>/chips/<name>/   see Chip
const (
	fileARK    = "ark.pem"
	fileARKKey = "ark.key"
	fileASK    = "ask.pem"
	fileASKKey = "ask.key"
	fileLock   = "lock"
	dirChips   = "chips"
)

// caBits is the size of AMD's own CA keys.
const caBits = 4096

// Validity of certificates, as AMD's: 25 years for the CAs, 7 for a VCEK. It
// begins a day before they are made, for clocks that disagree.
const (
	caYears   = 25
	leafYears = 7
	backdate  = 24 * time.Hour
)

// maxPEM bounds the files of a root's directory.
const maxPEM = 64 << 10

// simulated is in the organisation of every certificate made here.
const simulated = "SIMULATED"

// A Root is a simulated root of trust for one product: an ARK, the ASK that it
// signed, and any number of chips below them. The keys are files; whoever reads
// them can sign any report.
type Root struct {
	top     string // the root's directory
	dir     string // of the product in it
	product product

	ark, ask *x509.Certificate
	askKey   *rsa.PrivateKey
}

// OpenRoot opens the root of trust of a product ("Milan", "Genoa", "Turin") in
// dir. What is not there yet is made, which takes a second or more the first
// time: two RSA keys of 4096 bits. Certificates are valid from the day before by
// the system's clock.
//
// dir must be this user's alone (mode 0700). Only one process makes a root:
// others wait for it.
func OpenRoot(dir, productName string) (*Root, error) {
	return openRoot(dir, productName, func() (*rsa.PrivateKey, error) { return rsa.GenerateKey(rand.Reader, caBits) })
}

// openRoot is OpenRoot with the source of the CA keys, which take most of the
// time.
func openRoot(dir, productName string, newKey func() (*rsa.PrivateKey, error)) (*Root, error) {
	p, err := productNamed(productName)
	if err != nil {
		return nil, err
	}
	if err := makePrivate(dir); err != nil {
		return nil, fmt.Errorf("simulated root: %w", err)
	}
	r := &Root{top: dir, dir: filepath.Join(dir, p.line), product: p}
	err = r.load()
	if errors.Is(err, fs.ErrNotExist) {
		err = r.locked(func() error {
			err := r.load()
			if errors.Is(err, fs.ErrNotExist) {
				err = r.create(newKey)
			}
			return err
		})
	}
	if err != nil {
		return nil, fmt.Errorf("simulated root: %w", err)
	}
	return r, nil
}

// ARK returns the root certificate: what a verifier must be told to trust.
func (r *Root) ARK() *x509.Certificate { return r.ark }

// ASK returns the intermediate certificate, which signs the chips'.
func (r *Root) ASK() *x509.Certificate { return r.ask }

// LoadARKs returns the simulated root certificates at path: those of every
// product in a directory that [OpenRoot] made, or those in a PEM file. Roots that
// do not say that they are simulated are an error.
func LoadARKs(path string) ([]*x509.Certificate, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("simulated roots: %w", err)
	}
	files := []string{path}
	if info.IsDir() {
		if files, err = filepath.Glob(filepath.Join(globEscape(path), "*", fileARK)); err != nil {
			return nil, fmt.Errorf("simulated roots: %w", err)
		}
		if len(files) == 0 {
			return nil, fmt.Errorf("simulated roots: found no %s below %s; a launch on the simulated platform makes one", fileARK, path)
		}
	}
	var out []*x509.Certificate
	for _, f := range files {
		certs, err := readCertificates(f)
		if err == nil {
			err = errors.Join(othersWrite(f), othersWrite(filepath.Dir(f)))
		}
		if err != nil {
			return nil, fmt.Errorf("simulated roots: %w", err)
		}
		for _, c := range certs {
			if err := checkSimulatedRoot(c); err != nil {
				return nil, fmt.Errorf("simulated roots: %s: %w", f, err)
			}
		}
		out = append(out, certs...)
	}
	return out, nil
}

// othersWrite refuses a root, or its folder, that everybody can write: then anybody
// says whom to trust. In a folder as /tmp is, nobody takes another's file away.
func othersWrite(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	// Windows keeps rights elsewhere, and shows every file as writable.
	if m := info.Mode(); m.Perm()&0o002 != 0 && m&fs.ModeSticky == 0 && runtime.GOOS != "windows" {
		return fmt.Errorf("%s: found mode %04o, expected one that others cannot write (chmod o-w)", path, m.Perm())
	}
	return nil
}

// globEscape keeps a path from being taken for a pattern.
func globEscape(path string) string {
	return strings.NewReplacer(`\`, `\\`, "*", `\*`, "?", `\?`, "[", `\[`).Replace(path)
}

// checkSimulatedRoot refuses certificates that are no simulated ARK: trusting
// them by this way would be a mistake.
func checkSimulatedRoot(c *x509.Certificate) error {
	name := c.Subject.String()
	switch {
	case !slices.ContainsFunc(c.Subject.Organization, func(o string) bool { return strings.Contains(o, simulated) }):
		return fmt.Errorf("%q does not say %s: not a root of the simulated platform", name, simulated)
	case !strings.HasPrefix(c.Subject.CommonName, "ARK-"):
		return fmt.Errorf("%q is not an ARK", name)
	}
	if err := c.CheckSignatureFrom(c); err != nil {
		return fmt.Errorf("%q is not signed by itself: %w", name, err)
	}
	return nil
}

// load reads the root's files.
func (r *Root) load() error {
	ark, err := readCertificates(filepath.Join(r.dir, fileARK))
	if err != nil {
		return err
	}
	ask, err := readCertificates(filepath.Join(r.dir, fileASK))
	if err != nil {
		return err
	}
	r.ark, r.ask = ark[0], ask[0]
	if err := checkSimulatedRoot(r.ark); err != nil {
		return fmt.Errorf("%s: %w", r.dir, err)
	}
	if err := r.ask.CheckSignatureFrom(r.ark); err != nil {
		return fmt.Errorf("%s: %s is not signed by %s: %w", r.dir, fileASK, fileARK, err)
	}
	path := filepath.Join(r.dir, fileASKKey)
	key, err := readKey(path)
	if err != nil {
		return err
	}
	rsaKey, ok := key.(*rsa.PrivateKey)
	if !ok || !rsaKey.PublicKey.Equal(r.ask.PublicKey) {
		return fmt.Errorf("%s: not the key of %s", path, fileASK)
	}
	r.askKey = rsaKey
	return nil
}

// create makes the root: in a directory beside, which then gets its name.
func (r *Root) create(newKey func() (*rsa.PrivateKey, error)) error {
	tmp, err := os.MkdirTemp(r.top, ".new-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)

	type made struct {
		key *rsa.PrivateKey
		err error
	}
	keys := make(chan made, 2)
	for range 2 {
		go func() {
			key, err := newKey()
			keys <- made{key, err}
		}()
	}
	arkKey, askKey := <-keys, <-keys
	if err := errors.Join(arkKey.err, askKey.err); err != nil {
		return err
	}

	arkTemplate := r.certificate("ARK-"+r.product.line, caYears)
	arkTemplate.IsCA, arkTemplate.BasicConstraintsValid = true, true
	arkTemplate.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	ark, err := x509.CreateCertificate(rand.Reader, arkTemplate, arkTemplate, &arkKey.key.PublicKey, arkKey.key)
	if err != nil {
		return err
	}
	arkCert, err := x509.ParseCertificate(ark)
	if err != nil {
		return err
	}
	askTemplate := r.certificate("SEV-"+r.product.line, caYears)
	askTemplate.IsCA, askTemplate.BasicConstraintsValid, askTemplate.MaxPathLenZero = true, true, true
	askTemplate.KeyUsage = x509.KeyUsageCertSign
	ask, err := x509.CreateCertificate(rand.Reader, askTemplate, arkCert, &askKey.key.PublicKey, arkKey.key)
	if err != nil {
		return err
	}

	for _, f := range []struct {
		name string
		data func() ([]byte, error)
	}{
		{fileARK, certificatePEM(ark)},
		{fileASK, certificatePEM(ask)},
		{fileARKKey, keyPEM(arkKey.key)},
		{fileASKKey, keyPEM(askKey.key)},
	} {
		data, err := f.data()
		if err != nil {
			return err
		}
		if err := writeFile(filepath.Join(tmp, f.name), data); err != nil {
			return err
		}
	}
	if err := os.Rename(tmp, r.dir); err != nil {
		return err
	}
	if err := syncDir(r.top); err != nil {
		return err
	}
	return r.load()
}

// certificate returns what the certificates have in common. The common name is
// AMD's, which verifiers tell roles and products by; the rest of the name says
// whose it is.
func (r *Root) certificate(commonName string, years int) *x509.Certificate {
	from := time.Now().Add(-backdate).UTC().Truncate(time.Second)
	serial := make([]byte, 16)
	rand.Read(serial)
	serial[0] &= 0x7f
	return &x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(serial),
		Subject: pkix.Name{
			CommonName:         commonName,
			Organization:       []string{"evtpm " + simulated + " platform, not AMD"},
			OrganizationalUnit: []string{simulated},
		},
		NotBefore:          from,
		NotAfter:           from.AddDate(years, 0, 0),
		SignatureAlgorithm: x509.SHA384WithRSAPSS,
	}
}

// lockTimeout is how long another process may take to make a root.
const lockTimeout = 2 * time.Minute

// locked runs f while no other process makes anything in the root's directory.
func (r *Root) locked(f func() error) error {
	path := filepath.Join(r.top, fileLock)
	lock, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer lock.Close()
	for start := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		err := tryLock(lock)
		if err == nil {
			return f()
		}
		if !errors.Is(err, errLocked) {
			return fmt.Errorf("lock %s: %w", path, err)
		}
		if time.Since(start) > lockTimeout {
			return fmt.Errorf("another process has held %s for %v", path, lockTimeout)
		}
	}
}

// errLocked says that another process holds a lock.
var errLocked = errors.New("locked by another process")

func certificatePEM(der []byte) func() ([]byte, error) {
	return func() ([]byte, error) {
		return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), nil
	}
}

func keyPEM(key any) func() ([]byte, error) {
	return func() ([]byte, error) {
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			return nil, err
		}
		return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
	}
}

// readCertificates reads the certificates of a PEM file, at least one. Other
// blocks are passed over.
func readCertificates(path string) ([]*x509.Certificate, error) {
	data, err := inputfile.Read(path, maxPEM)
	if err != nil {
		return nil, err
	}
	var out []*x509.Certificate
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		out = append(out, c)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%s: found no certificate in PEM", path)
	}
	return out, nil
}

// readKey reads the private key of a PEM file that nobody else can read.
func readKey(path string) (any, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if err := checkPrivate(path, info); err != nil {
		return nil, err
	}
	data, err := inputfile.Read(path, maxPEM)
	if err != nil {
		return nil, err
	}
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "PRIVATE KEY" {
			continue
		}
		key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		return key, nil
	}
	return nil, fmt.Errorf("%s: found no PRIVATE KEY in PEM", path)
}
