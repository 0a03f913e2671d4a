package snpsim

import (
	"crypto/rand"
	"crypto/rsa"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"github.com/evtpm/evtpm/measure"
)

// caKeys are made once: they take most of the time of a new root.
var caKeys = sync.OnceValues(func() ([2]*rsa.PrivateKey, error) {
	var keys [2]*rsa.PrivateKey
	for i := range keys {
		var err error
		if keys[i], err = rsa.GenerateKey(rand.Reader, caBits); err != nil {
			return keys, err
		}
	}
	return keys, nil
})

// testRoot makes a root in dir, from keys that all tests share.
func testRoot(t testing.TB, dir, product string) *Root {
	t.Helper()
	keys, err := caKeys()
	if err != nil {
		t.Fatal(err)
	}
	next := make(chan *rsa.PrivateKey, len(keys))
	for _, k := range keys {
		next <- k
	}
	r, err := openRoot(dir, product, func() (*rsa.PrivateKey, error) { return <-next, nil })
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// testChip is a chip of a root of its own.
func testChip(t testing.TB, product string) *Chip {
	t.Helper()
	c, err := testRoot(t, filepath.Join(t.TempDir(), "root"), product).Chip("")
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// testSequence is a small launch.
func testSequence() *measure.Sequence {
	vmsas, err := measure.VCPU{Signature: 0x800f12, Features: 1}.VMSASteps(1, 0x80b004, measure.VMSAGPA)
	if err != nil {
		panic(err)
	}
	firmware := make([]byte, 2*measure.PageSize)
	copy(firmware, "firmware")
	return &measure.Sequence{
		Steps: []measure.Step{
			{Type: measure.PageNormal, GPA: 0xffffe000, Size: uint64(len(firmware)), Data: firmware, Source: "firmware"},
			SVSMStep(),
		},
		VMSAs: vmsas,
	}
}

const testPolicy = 0x30000

// launchedSP is an AMD-SP that has launched a guest.
func launchedSP(t testing.TB, c *Chip, o SPOptions) *SP {
	t.Helper()
	sp, err := NewSP(c, o)
	if err != nil {
		t.Fatal(err)
	}
	if err := sp.Launch(testSequence(), LaunchParams{Policy: testPolicy}); err != nil {
		t.Fatal(err)
	}
	return sp
}

// program skips a test that needs a program which is not there.
func program(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("%s is not installed", name)
	}
	return path
}

// testdata is the directory of inputs that are not part of the repository.
func testdata(t testing.TB) string {
	t.Helper()
	dir := os.Getenv("EVTPM_TESTDATA")
	if dir == "" {
		t.Skip("EVTPM_TESTDATA is not set")
	}
	return dir
}
