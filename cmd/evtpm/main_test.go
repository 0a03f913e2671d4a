package main

import (
	"os"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"evtpm": func() { os.Exit(run()) }})
}

// TestScripts runs testdata/*.txt: one file per behaviour of the command line.
// Files that boot VMs live in the end-to-end tests, not here.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:           "testdata",
		UpdateScripts: os.Getenv("EVTPM_UPDATE_SCRIPTS") != "",
		Setup: func(env *testscript.Env) error {
			env.Setenv("EVTPM_TESTDATA", os.Getenv("EVTPM_TESTDATA"))
			return nil
		},
	})
}
