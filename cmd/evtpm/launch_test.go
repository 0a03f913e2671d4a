//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"testing"
)

// The document of a launch that was interrupted names the exit code that the process
// ends with, and no other does.
func TestInterruptedLaunchDocument(t *testing.T) {
	interrupted, cancel := context.WithCancel(t.Context())
	cancel()
	late, cancel := context.WithTimeout(t.Context(), -1)
	defer cancel()
	for want, ctx := range map[int]context.Context{130: interrupted, 1: late} {
		var out bytes.Buffer
		home := t.TempDir()
		u := &ui{out: &out, err: io.Discard, getenv: func(string) string { return home }}
		if err := (&launching{u: u, json: true}).run(ctx, "nosuch.yaml"); err == nil {
			t.Error("found no error")
		}
		var doc launchDoc
		if err := json.Unmarshal(out.Bytes(), &doc); err != nil || doc.Error == nil || doc.Error.Class != want {
			t.Errorf("found %v, %s; expected class %d", err, out.Bytes(), want)
		}
	}
}
