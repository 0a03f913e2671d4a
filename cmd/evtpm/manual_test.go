//go:build linux

package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/urfave/cli/v2"
)

// manuals are the pages whose commands are run.
var manuals = []string{"manual", "svsm"}

// TestManual runs the commands of the manuals; TestE2EManual those that start VMs as
// well.
func TestManual(t *testing.T) { runManuals(t, false) }

func TestE2EManual(t *testing.T) {
	for _, program := range []string{"qemu-system-x86_64", "swtpm"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("%s is not installed", program)
		}
	}
	runManuals(t, true)
}

func runManuals(t *testing.T, vm bool) {
	inputs := manualInputs(t)
	for _, page := range manuals {
		t.Run(page, func(t *testing.T) { runManual(t, page, inputs, vm) })
	}
}

func runManual(t *testing.T, page string, inputs map[string]string, vm bool) {
	text, err := os.ReadFile("../../docs/" + page + ".md")
	if err != nil {
		t.Fatal(err)
	}
	script, files := manualScript(t, string(text), vm)
	dir := t.TempDir()
	name := filepath.Join(dir, page+".txt")
	if err := os.WriteFile(name, []byte(script), 0o600); err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Files: []string{name},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"shows": shows,
			"exits": exits,
		},
		Setup: func(env *testscript.Env) error {
			for name, text := range files {
				if err := os.WriteFile(filepath.Join(env.WorkDir, name), []byte(text), 0o600); err != nil {
					return err
				}
			}
			for name, from := range inputs {
				if err := copyFile(filepath.Join(env.WorkDir, name), from); err != nil {
					return err
				}
			}
			// A run directory's path must be short enough for sockets.
			home, err := os.MkdirTemp("", "m")
			if err != nil {
				return err
			}
			env.Defer(func() { os.RemoveAll(home) })
			env.Setenv("EVTPM_HOME", filepath.Join(home, "run"))
			env.Setenv("EVTPM_STATE", filepath.Join(home, "state"))
			return nil
		},
	})
}

// manualInputs finds the files that the manual speaks of.
func manualInputs(t *testing.T) map[string]string {
	inputs := map[string]string{
		"OVMF.fd":        "/usr/share/ovmf/OVMF.fd",
		"OVMF.amdsev.fd": "../../build/firmware/OVMF.amdsev.fd",
		"vmlinuz":        "../../build/kernel/vmlinuz",
	}
	for name, from := range inputs {
		if _, err := os.Stat(from); err != nil {
			t.Skipf("%s is missing: scripts/setup test", name)
		}
	}
	agent := filepath.Join(t.TempDir(), "evtpm-agent")
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", agent, "../evtpm-agent")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	inputs["evtpm-agent"] = agent
	return inputs
}

var (
	manualBlock  = regexp.MustCompile("(?s)(?:<!-- file: (\\S+) -->\n)?```(\\w+)( vm)?\n(.*?)```")
	manualExit   = regexp.MustCompile(`\s+# exit (\d+)$`)
	manualOutput = regexp.MustCompile(`\s+>(\S+)$`)
)

// manualScript makes a test script of the manual: each "$ command" is run; the
// lines after it must be on its standard output or error, in any order, "..."
// standing for anything.
func manualScript(t *testing.T, text string, vm bool) (script string, files map[string]string) {
	t.Helper()
	var b strings.Builder
	files = map[string]string{}
	commands := 0
	for _, m := range manualBlock.FindAllStringSubmatch(text, -1) {
		file, kind, isVM, body := m[1], m[2], m[3] != "", m[4]
		switch {
		case kind == "yaml" && file != "":
			files[file] = body
		case kind == "console" && (!isVM || vm):
			for line := range strings.Lines(body) {
				line = strings.TrimRight(line, "\n")
				if command, ok := strings.CutPrefix(line, "$ "); ok {
					commands++
					b.WriteString(scriptLines(command))
				} else if line != "..." {
					parts := strings.Split(line, "...")
					for i := range parts {
						parts[i] = regexp.QuoteMeta(parts[i])
					}
					fmt.Fprintf(&b, "shows '^%s$'\n", strings.Join(parts, ".*"))
				}
			}
		}
	}
	if commands == 0 {
		t.Fatal("found no commands in the manual")
	}
	return b.String(), files
}

// scriptLines turns a command of the manual into lines of a test script.
func scriptLines(command string) string {
	after := ""
	if m := manualExit.FindStringSubmatch(command); m != nil {
		command = strings.TrimSuffix(command, m[0])
		return fmt.Sprintf("exits %s %s\n", m[1], command)
	}
	if m := manualOutput.FindStringSubmatch(command); m != nil {
		command = strings.TrimSuffix(command, m[0])
		after = "cp stdout " + m[1] + "\n"
	}
	return "exec " + command + "\n" + after
}

// shows REGEXP: a line of what the last command printed matches.
func shows(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: shows REGEXP")
	}
	said := ts.ReadFile("stdout") + ts.ReadFile("stderr")
	if !regexp.MustCompile("(?m)" + args[0]).MatchString(said) {
		ts.Fatalf("no line matches %s in:\n%s", args[0], said)
	}
}

// exits CODE COMMAND...: the command ends with this exit code.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND...")
	}
	err := ts.Exec(args[1], args[2:]...)
	var exit *exec.ExitError
	if !errors.As(err, &exit) || fmt.Sprint(exit.ExitCode()) != args[0] {
		ts.Fatalf("%v: found %v, expected exit code %s", args[1:], err, args[0])
	}
}

func copyFile(to, from string) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o700)
	if err != nil {
		return err
	}
	defer dst.Close()
	_, err = io.Copy(dst, src)
	return err
}

// TestLaunchDigestsFlags: docs/launch-digests.md names every flag of the commands
// that it is about.
func TestLaunchDigestsFlags(t *testing.T) {
	doc, err := os.ReadFile("../../docs/launch-digests.md")
	if err != nil {
		t.Fatal(err)
	}
	var check func(name string, c *cli.Command)
	check = func(name string, c *cli.Command) {
		for _, f := range c.Flags {
			if flag := "--" + f.Names()[0]; !bytes.Contains(doc, []byte(flag+"`")) {
				t.Errorf("%s: %s is not in docs/launch-digests.md", name, flag)
			}
		}
		for _, sub := range c.Subcommands {
			check(name+" "+sub.Name, sub)
		}
	}
	for _, c := range commands(&ui{}, nil) {
		switch c.Name {
		case "measure", "explain", "diff", "ovmf", "idblock":
			check(c.Name, c)
		}
	}
}
