package launch

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/evtpm/evtpm/inputfile"
)

// SpecFileOptions say how a spec's file is looked at.
type SpecFileOptions struct {
	// AnyOwner takes a file that others than its reader and root could have
	// written. Zero refuses it: who can change the spec decides what is launched,
	// and what the golden values are.
	AnyOwner bool
	// Backend takes the place of what the file says. Empty: the file's.
	Backend string
}

// ReadSpec loads the spec at path, fills in its defaults and validates it. Paths
// in it are relative to its folder. The errors of a file that cannot be trusted
// wrap [ErrUntrustedFile].
func ReadSpec(path string, o SpecFileOptions) (*Spec, error) {
	dir, err := filepath.Abs(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	f, _, err := inputfile.Open(path, maxSpecBytes)
	if err != nil {
		return nil, fmt.Errorf("spec: %w", err)
	}
	defer f.Close()
	if !o.AnyOwner {
		if err := checkOwner(path, f); err != nil {
			return nil, err
		}
	}
	s, err := LoadSpec(f, path)
	if err != nil {
		return nil, err
	}
	if o.Backend != "" && o.Backend != s.Backend {
		s.Backend = o.Backend
		s.forget("backend")
		if s.Backend == BackendQEMU {
			// Not used then, and no contradiction.
			s.Libvirt = Libvirt{}
			s.forget("libvirt")
		}
	}
	s.FillDefaults(dir)
	if err := s.Validate(); err != nil {
		return nil, err
	}
	return s, nil
}

// forget makes a field one that is not in the file.
func (s *Spec) forget(path string) {
	for at := range s.src.lines {
		if at == path || strings.HasPrefix(at, path+".") {
			delete(s.src.lines, at)
		}
	}
}

// ErrUntrustedFile says that others could have written a file.
var ErrUntrustedFile = errors.New("others could have written this file")
