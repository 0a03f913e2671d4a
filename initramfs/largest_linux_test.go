package initramfs

import (
	"io/fs"
	"math"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// The size of a file is a field of 32 bits. The data is address space alone, which
// takes no memory as long as nobody reads it.
func TestLargest(t *testing.T) {
	if strconv.IntSize < 64 {
		t.Skip("needs a system of 64 bits: no file has 4 GiB here")
	}
	size := uint64(math.MaxUint32) + 1
	data, err := syscall.Mmap(-1, 0, int(size), syscall.PROT_NONE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
	if err != nil {
		t.Skipf("needs 4 GiB of address space: %v", err)
	}
	defer syscall.Munmap(data)
	if err := check(File{Path: "/p", Data: data[:size-1]}); err != nil {
		t.Error(err)
	}
	for mode, want := range map[fs.FileMode]string{0: "/p: found 4294967296 bytes, expected less than 4 GiB", fs.ModeSymlink: "target of 4294967296 bytes"} {
		if err := check(File{Path: "/p", Mode: mode, Data: data}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: found error %v, expected one with %q", mode, err, want)
		}
	}
}
