package attest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/evtpm/evtpm/strictjson"
	"github.com/evtpm/evtpm/wholefile"
)

// registrySchema names the version of a registry file.
const registrySchema = "evtpm.registry/v1"

// Bounds of a registry file.
const (
	// maxSightings is how many launches are remembered; the oldest go first.
	maxSightings    = 16384
	maxRegistrySize = 16 << 20 // each takes some 700 bytes at most
	// maxBoots is how many boots of one launch are: a guest that says another boot
	// id at each attestation does not crowd out other launches.
	maxBoots = 16
)

// A FileRegistry keeps sightings in a file that several processes may share. The
// file is replaced whole or not at all; a lock file beside it (name + ".lock")
// keeps processes apart. A file that cannot be read is an error, never an empty
// registry.
type FileRegistry struct{ path string }

// NewFileRegistry returns the registry in a file, which is made at the first
// sighting with mode 0600. Its directory must exist.
func NewFileRegistry(path string) *FileRegistry { return &FileRegistry{path: path} }

type registryFile struct {
	Schema    string     `json:"schema"`
	Sightings []Sighting `json:"sightings"` // oldest first
}

// Observe implements [Registry].
func (r *FileRegistry) Observe(ctx context.Context, s Sighting, judge func([]Sighting) bool) (err error) {
	unlock, err := lockFile(ctx, r.path+".lock")
	if err != nil {
		return fmt.Errorf("registry %s: %w", r.path, err)
	}
	defer func() { err = errors.Join(err, unlock()) }()
	f, err := r.read()
	if err != nil {
		return err
	}
	var earlier []Sighting
	for _, e := range f.Sightings {
		if e.EK.String() == s.EK.String() || s.BootID != "" && e.BootID == s.BootID {
			earlier = append(earlier, e)
		}
	}
	if !judge(earlier) {
		return nil
	}
	f.add(s)
	return r.write(f)
}

// add keeps a sighting: the last one of its EK, report id and boot, at the end.
func (f *registryFile) add(s Sighting) {
	launch := func(e Sighting) bool {
		return e.EK.String() == s.EK.String() && e.ReportID.String() == s.ReportID.String()
	}
	others := 0 // boots of the launch
	for _, e := range f.Sightings {
		if launch(e) && e.BootID != s.BootID {
			others++
		}
	}
	kept := f.Sightings[:0]
	for _, e := range f.Sightings {
		switch {
		case launch(e) && e.BootID == s.BootID:
		case launch(e) && others >= maxBoots:
			others--
		default:
			kept = append(kept, e)
		}
	}
	if len(kept) >= maxSightings {
		kept = kept[len(kept)-maxSightings+1:]
	}
	f.Sightings = append(kept, s)
}

func (r *FileRegistry) read() (*registryFile, error) {
	f := &registryFile{Schema: registrySchema}
	info, err := os.Lstat(r.path)
	if errors.Is(err, fs.ErrNotExist) {
		return f, nil
	}
	if err != nil {
		return nil, fmt.Errorf("registry: %w", err)
	}
	if !info.Mode().IsRegular() || info.Size() > maxRegistrySize {
		return nil, fmt.Errorf("registry %s: found %s of %d bytes, expected a regular file of at most %d", r.path, info.Mode().Type(), info.Size(), maxRegistrySize)
	}
	data, err := os.ReadFile(r.path)
	if err != nil {
		return nil, fmt.Errorf("registry: %w", err)
	}
	if err := strictjson.Unmarshal(data, f, maxRegistrySize, "registry "+r.path); err != nil {
		return nil, err
	}
	if f.Schema != registrySchema {
		return nil, fmt.Errorf("registry %s: schema is %q, expected %q", r.path, f.Schema, registrySchema)
	}
	return f, nil
}

func (r *FileRegistry) write(f *registryFile) error {
	data, err := json.Marshal(f)
	if err != nil {
		return fmt.Errorf("registry %s: %w", r.path, err)
	}
	if err := wholefile.WriteBytes(r.path, 0o600, data); err != nil {
		return fmt.Errorf("registry: %w", err)
	}
	return nil
}

// lockWait is the pause between tries for a lock that another process holds.
const lockWait = 10 * time.Millisecond

// lockFile takes an exclusive lock on a file that it makes if need be, waiting
// until ctx ends.
func lockFile(ctx context.Context, path string) (unlock func() error, err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		if err := tryLock(f); err == nil {
			return f.Close, nil
		} else if !errors.Is(err, errLocked) {
			return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), f.Close())
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("lock %s: %w", path, ctx.Err()), f.Close())
		case <-time.After(lockWait):
		}
	}
}

// errLocked says that another process holds the lock.
var errLocked = errors.New("held by another process")
