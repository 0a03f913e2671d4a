//go:build !unix

package snpsim

import (
	"errors"
	"io/fs"
	"os"
)

// checkPrivate has nothing to look at: modes say nothing here.
func checkPrivate(string, fs.FileInfo) error { return nil }

// tryLock refuses: the simulated platform runs on Linux, and roots are made
// there.
func tryLock(*os.File) error { return errors.ErrUnsupported }
