package measure

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
)

// The SEV hash table that QEMU places in guest memory for a measured direct
// boot (QEMU target/i386/sev.c, SevHashTable; edk2 OvmfPkg/AmdSev
// BlobVerifierLibSevHashes). Little-endian; GUIDs in their binary form.
const (
	hashTableHeader    = 0   // GUID 9438d606-4f22-4cc9-b479-a793d411fd21
	hashTableLength    = 16  // u16: length of header and entries, 168
	hashTableEntries   = 18  // three entries: command line, initrd, kernel
	hashEntryLength    = 16  // in an entry: u16, 50, after its GUID
	hashEntryHash      = 18  // in an entry: SHA-256
	hashEntrySize      = 50  //
	hashTableUsed      = 168 // header and entries
	KernelHashesLength = 176 // HashTableSize padded to 16 bytes, as measured
)

// GUIDs of the table in their binary form.
var (
	guidHashTable   = GUID{0x06, 0xd6, 0x38, 0x94, 0x22, 0x4f, 0xc9, 0x4c, 0xb4, 0x79, 0xa7, 0x93, 0xd4, 0x11, 0xfd, 0x21}
	guidHashCmdline = GUID{0xd8, 0x2d, 0xd0, 0x97, 0x20, 0xbd, 0x94, 0x4c, 0xaa, 0x78, 0xe7, 0x71, 0x4d, 0x36, 0xab, 0x2a}
	guidHashInitrd  = GUID{0x31, 0xf7, 0xba, 0x44, 0x2f, 0x3a, 0xd7, 0x4b, 0x9a, 0xf1, 0x41, 0xe2, 0x91, 0x69, 0x78, 0x1d}
	guidHashKernel  = GUID{0x37, 0x94, 0xe7, 0x4d, 0xd2, 0xab, 0x7f, 0x42, 0xb8, 0x35, 0xd5, 0xb1, 0x72, 0xd2, 0x04, 0x5b}
)

// KernelHashes are the SHA-256 of what a measured direct boot loads.
type KernelHashes struct {
	// Kernel is the hash of the whole file.
	Kernel [sha256.Size]byte
	// Initrd is the hash of the whole file; without one, the hash of nothing
	// ([NoInitrd]).
	Initrd [sha256.Size]byte
	// Cmdline is the hash of the command line and a final NUL byte: see
	// [HashCmdline].
	Cmdline [sha256.Size]byte
}

// NoInitrd is the Initrd hash of a launch without initrd.
var NoInitrd = sha256.Sum256(nil)

// HashCmdline returns the hash of a kernel command line: SHA-256 of the exact
// bytes and a final NUL, no space trimmed (QEMU target/i386/sev.c,
// sev_add_kernel_loader_hashes). The empty string is a launch without command
// line. NUL and newline are refused: no launcher passes the first, and the
// second is nearly always a file's last byte taken along.
func HashCmdline(s string) ([sha256.Size]byte, error) {
	if i := strings.IndexAny(s, "\x00\n"); i >= 0 {
		return [sha256.Size]byte{}, fmt.Errorf("kernel command line: found %q at byte %d, expected one line without NUL", s[i], i)
	}
	return hashCmdlineBytes(s), nil
}

func hashCmdlineBytes(s string) [sha256.Size]byte {
	buf := make([]byte, len(s)+1)
	copy(buf, s)
	return sha256.Sum256(buf)
}

// Table returns the 176 bytes of the table.
func (k *KernelHashes) Table() []byte {
	t := make([]byte, KernelHashesLength)
	copy(t[hashTableHeader:], guidHashTable[:])
	binary.LittleEndian.PutUint16(t[hashTableLength:], hashTableUsed)
	for i, e := range k.entries() {
		at := t[hashTableEntries+i*hashEntrySize:]
		copy(at, e.guid[:])
		binary.LittleEndian.PutUint16(at[hashEntryLength:], hashEntrySize)
		copy(at[hashEntryHash:], e.hash[:])
	}
	return t
}

type hashEntry struct {
	name string
	guid GUID
	hash *[sha256.Size]byte
}

func (k *KernelHashes) entries() [3]hashEntry {
	return [3]hashEntry{
		{"cmdline", guidHashCmdline, &k.Cmdline},
		{"initrd", guidHashInitrd, &k.Initrd},
		{"kernel", guidHashKernel, &k.Kernel},
	}
}

// ParseKernelHashes reads a table as QEMU writes it: exactly 176 bytes, entries
// in QEMU's order, padding zero.
func ParseKernelHashes(table []byte) (*KernelHashes, error) {
	if len(table) != KernelHashesLength {
		return nil, fmt.Errorf("SEV hash table: found %d bytes, expected %d", len(table), KernelHashesLength)
	}
	if GUID(table[hashTableHeader:hashTableLength]) != guidHashTable {
		return nil, fmt.Errorf("SEV hash table: found header GUID %s, expected %s", GUID(table[:16]), guidHashTable)
	}
	if n := binary.LittleEndian.Uint16(table[hashTableLength:]); n != hashTableUsed {
		return nil, fmt.Errorf("SEV hash table: found length %d, expected %d", n, hashTableUsed)
	}
	k := new(KernelHashes)
	for i, e := range k.entries() {
		at := table[hashTableEntries+i*hashEntrySize:]
		if g := GUID(at[:16]); g != e.guid {
			return nil, fmt.Errorf("SEV hash table: entry %d: found GUID %s, expected %s's %s", i, g, e.name, e.guid)
		}
		if n := binary.LittleEndian.Uint16(at[hashEntryLength:]); n != hashEntrySize {
			return nil, fmt.Errorf("SEV hash table: %s: found length %d, expected %d", e.name, n, hashEntrySize)
		}
		copy(e.hash[:], at[hashEntryHash:])
	}
	if !bytes.Equal(table[hashTableUsed:], make([]byte, KernelHashesLength-hashTableUsed)) {
		return nil, errors.New("SEV hash table: found padding that is not zero")
	}
	return k, nil
}

// KernelHead is how much of a kernel's file [CheckKernelFile] looks at.
const KernelHead = 64 << 10

// CheckKernelFile says why QEMU loads no kernel with hashes from a file, of which
// head is the beginning; nil when nothing is wrong, or when the file is of no
// known kind. QEMU hashes any file that it takes for a Linux kernel (hw/i386/
// x86-common.c, x86_load_linux), so that this is about what could be launched and
// not about the digest.
func CheckKernelFile(head []byte, initrd bool) error {
	le := binary.LittleEndian
	linux := len(head) >= setupHeaderSize && le.Uint32(head[setupMagicAt:]) == setupMagic
	switch {
	case linux:
		return nil
	case bytes.HasPrefix(head, []byte("\x7fELF")):
		return errors.New("an ELF file, which QEMU never hashes: take the bzImage of this kernel")
	case !bytes.HasPrefix(head, []byte("MZ")) || len(head) < peHeaderPointerAt+4:
		return nil
	}
	pe := uint64(le.Uint32(head[peHeaderPointerAt:]))
	if pe+peOptionalAt > uint64(len(head)) || string(head[pe:pe+4]) != "PE\x00\x00" {
		return nil
	}
	if machine := le.Uint16(head[pe+peMachineAt:]); machine != peMachineX64 {
		return fmt.Errorf("a PE image for machine %#x, expected %#x (x86-64)", machine, peMachineX64)
	}
	if initrd {
		return errors.New("a PE image that is no bzImage, such as a unified kernel image, which QEMU takes no initrd with (QEMU: linux kernel too old to load a ram disk)")
	}
	return nil
}
