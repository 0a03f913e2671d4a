package kds

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/evtpm/evtpm/attest"
)

// crlFresh is how long a CRL in the cache is used without asking again. AMD
// makes new ones rarely; a revocation should still be noticed within a day.
const crlFresh = 24 * time.Hour

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
	path := filepath.Join(c.Dir, fileName(url))
	kept, err := readKept(path, url)
	if err == nil && c.fresh(path, url) {
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
	tmp, err := os.CreateTemp(c.Dir, ".new-*")
	if err != nil {
		return err
	}
	_, err = tmp.Write(data)
	if err == nil {
		err = tmp.Sync()
	}
	if err = errors.Join(err, tmp.Close()); err == nil {
		err = os.Rename(tmp.Name(), filepath.Join(c.Dir, fileName(url)))
	}
	if err != nil {
		return errors.Join(err, os.Remove(tmp.Name()))
	}
	return nil
}

// readKept reads a file of the cache. A damaged one counts as absent.
func readKept(path, url string) ([]byte, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxAnswer {
		return nil, errors.New("not a file of the cache")
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return data, checkContent(urlPath(url), data)
}

// fresh reports whether a kept file needs no asking: certificates never, CRLs
// for a day.
func (c *Cache) fresh(path, url string) bool {
	if !strings.HasSuffix(urlPath(url), "/crl") {
		return true
	}
	info, err := os.Stat(path)
	if err != nil {
		return false
	}
	now := time.Now
	if c.Now != nil {
		now = c.Now
	}
	// A file from the future says nothing about its age.
	age := now().Sub(info.ModTime())
	return age > -time.Minute && age < crlFresh
}

// fileName is a file's name for a URL: what it asks for, for people, and a hash.
func fileName(url string) string {
	parts := strings.Split(strings.Trim(urlPath(url), "/"), "/")
	kind := parts[len(parts)-1]
	if len(kind) > 16 {
		kind = kind[:16]
	}
	sum := sha256.Sum256([]byte(url))
	return fmt.Sprintf("%s-%x", keepWord(kind), sum[:16])
}

// keepWord drops what could be more than a part of a file's name.
func keepWord(s string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '_' {
			return r
		}
		return -1
	}, s)
}

func urlPath(u string) string {
	_, rest, _ := strings.Cut(u, "://")
	_, path, _ := strings.Cut(rest, "/")
	path, _, _ = strings.Cut(path, "?")
	return "/" + path
}
