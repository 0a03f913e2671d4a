package main

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/evtpm/evtpm/ovmf/ovmftest"
)

// programs are what this test binary is under other names.
var programs = map[string]func(){"evtpm": func() { os.Exit(run()) }}

func TestMain(m *testing.M) { testscript.Main(m, programs) }

// TestScripts runs testdata/*.txt: one file per behaviour of the command line.
// Files that boot VMs live in the end-to-end tests, not here.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:           "testdata",
		UpdateScripts: os.Getenv("EVTPM_UPDATE_SCRIPTS") != "",
		Setup: func(env *testscript.Env) error {
			env.Setenv("EVTPM_TESTDATA", os.Getenv("EVTPM_TESTDATA"))
			// A firmware and a kernel that can be measured, if not run; a firmware
			// as it was built before SEV-SNP, and one without room for hashes.
			old := ovmftest.AmdSev()
			old.Entries[0].Data = ovmftest.U32(0, 0)
			old.Entries = append(old.Entries[:2:2], old.Entries[3])
			noKernel := ovmftest.AmdSev()
			noKernel.Entries = slices.DeleteFunc(slices.Clone(noKernel.Entries), func(e ovmftest.Entry) bool { return strings.HasPrefix(e.GUID, "7255371f") })
			return errors.Join(
				os.WriteFile(filepath.Join(env.WorkDir, "nokernel.fd"), ovmftest.Build(noKernel), 0o600),
				os.WriteFile(filepath.Join(env.WorkDir, "old.fd"), ovmftest.Build(old), 0o600),
				os.WriteFile(filepath.Join(env.WorkDir, "OVMF.fd"), ovmftest.Build(ovmftest.AmdSev()), 0o600),
				os.WriteFile(filepath.Join(env.WorkDir, "vmlinuz"), testKernel(), 0o600),
			)
		},
	})
}

// testKernel is a PE image with nothing in it.
func testKernel() []byte {
	const header, optional, headers = 0x40, 0x58, 0x200
	k := make([]byte, headers)
	copy(k, "MZ")
	binary.LittleEndian.PutUint32(k[0x3c:], header)
	copy(k[header:], "PE\x00\x00")
	binary.LittleEndian.PutUint16(k[header+20:], 112)       // size of the optional header
	binary.LittleEndian.PutUint16(k[optional:], 0x20b)      // PE32+
	binary.LittleEndian.PutUint32(k[optional+60:], headers) // size of the headers
	return k
}
