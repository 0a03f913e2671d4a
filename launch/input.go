package launch

import (
	"crypto/sha256"
	"os"
)

// An Input is a file of a spec, as it was when it was read: a private copy that
// nothing can change, and its hash.
type Input struct {
	// Name says which input it is: "firmware", "svsm", "kernel", "initrd".
	Name string
	// Path is where it came from, for people: the file there may have changed.
	Path string
	// Size in bytes.
	Size int64
	// SHA256 is the hash of the copy.
	SHA256 [sha256.Size]byte
	// File is the copy: on Linux a memory file sealed against every change,
	// which another program can open as /proc/self/fd/N. Elsewhere nil.
	File *os.File

	data []byte
}
