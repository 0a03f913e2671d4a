package kds

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/evtpm/evtpm/attest"
	"github.com/evtpm/evtpm/wholefile"
)

// crlFresh is how long a CRL in the cache is used without asking again. AMD
// makes new ones rarely; a revocation should still be noticed within a day.
const crlFresh = 24 * time.Hour

// Folder is where commands keep the cache, in a state directory.
const Folder = "certs"

// A Cache keeps what another getter fetched in a folder: a file a URL, written
// whole or not at all, held against its URL again when it is read. Certificates
// do not change and are kept for good. CRLs are asked for again after a day; when
// that fails, the kept one is used, and package attest refuses it once its
// nextUpdate has passed.
type Cache struct {
	// Dir is the folder; it is made with mode 0700.
	Dir string
	// Next fetches what is not there; nil means that nothing is fetched.
	Next attest.Getter
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Get implements [attest.Getter].
func (c *Cache) Get(ctx context.Context, url string) ([]byte, error) {
	kept, since, err := readKept(filepath.Join(c.Dir, fileName(url)), url)
	if err == nil && c.fresh(since, url) {
		return kept, nil
	}
	if c.Next == nil {
		if err == nil {
			return kept, nil
		}
		return nil, fmt.Errorf("%w: %s: not in the cache, and nothing is fetched", ErrUnavailable, url)
	}
	data, fetchErr := c.Next.Get(ctx, url)
	if fetchErr != nil {
		if err == nil {
			return kept, nil
		}
		return nil, fetchErr
	}
	// A cache that cannot be written costs time, not correctness.
	_ = c.Put(url, data)
	return data, nil
}

// Put keeps an answer, as if it had been fetched.
func (c *Cache) Put(url string, data []byte) error {
	if err := checkContent(urlPath(url), data); err != nil {
		return err
	}
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return err
	}
	return wholefile.WriteBytes(filepath.Join(c.Dir, fileName(url)), 0o600, data)
}

// ErrNewer says that the cache has a newer CRL than the one to import.
var ErrNewer = errors.New("the cache has a newer CRL")

// Import keeps what came from elsewhere than Next. A CRL may be the last one before
// a revocation: it takes no newer one's place, and is asked for again as soon as
// something can be fetched.
func (c *Cache) Import(url string, data []byte) error {
	path := filepath.Join(c.Dir, fileName(url))
	l, err := attest.ParseCRL(data)
	if err != nil {
		return c.Put(url, data) // a certificate
	}
	kept, _, _ := readKept(path, url) // what is missing or damaged is no CRL
	if old, err := attest.ParseCRL(kept); err == nil && old.ThisUpdate.After(l.ThisUpdate) {
		return ErrNewer
	}
	if err := c.Put(url, data); err != nil {
		return err
	}
	return os.Chtimes(path, time.Time{}, time.Unix(0, 0))
}

// readKept reads a file of the cache, and since when it is there. A damaged one
// counts as absent.
func readKept(path, url string) (data []byte, since time.Time, err error) {
	info, err := os.Lstat(path)
	if err != nil {
		return nil, since, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxAnswer {
		return nil, since, errors.New("not a file of the cache")
	}
	data, err = os.ReadFile(path)
	return data, info.ModTime(), errors.Join(err, checkContent(urlPath(url), data))
}

// fresh reports whether a kept file needs no asking: certificates never, CRLs
// for a day.
func (c *Cache) fresh(since time.Time, url string) bool {
	if !strings.HasSuffix(urlPath(url), "/crl") {
		return true
	}
	now := time.Now
	if c.Now != nil {
		now = c.Now
	}
	// A file from the future says nothing about its age.
	age := now().Sub(since)
	return age > -time.Minute && age < crlFresh
}

// fileName is a file's name for a URL: what it is, for people, and a hash. No
// part of the URL is in it.
func fileName(url string) string {
	kind := "cert"
	switch path := urlPath(url); {
	case strings.HasSuffix(path, "/crl"):
		kind = "crl"
	case strings.HasSuffix(path, "/cert_chain"):
		kind = "cert_chain"
	}
	sum := sha256.Sum256([]byte(url))
	return fmt.Sprintf("%s-%x", kind, sum[:16])
}

func urlPath(u string) string {
	_, rest, _ := strings.Cut(u, "://")
	_, path, _ := strings.Cut(rest, "/")
	path, _, _ = strings.Cut(path, "?")
	return "/" + path
}

// Kept returns the certificate that the cache in dir keeps for a report: what was
// fetched or imported once needs no network. Whether it is the report's is for
// package attest to say.
func Kept(ctx context.Context, dir string, report []byte) (*x509.Certificate, error) {
	r, err := attest.ParseReport(report)
	if err != nil {
		return nil, err
	}
	url, err := attest.ReportURL(r)
	if err != nil {
		return nil, err
	}
	der, err := (&Cache{Dir: dir}).Get(ctx, url)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}
