// Command mutate breaks the code of packages in every place where a decision is
// made, one place at a time, and says which of the broken programs their own
// tests do not notice. A check whose deletion no test notices is a check that
// nobody would miss when it goes.
//
//	go run ./scripts/mutate ./attest [PACKAGE...]
//
// A mutant is one of: a condition that is always false, or always true; one side
// of && or || left out; < for <= and > for >=, and back; an element left out of a
// list; a statement left out. All mutants of a package are compiled into one test
// binary, where a number in the environment switches one of them on. First each
// test runs alone and notes which mutants it comes by; then each mutant meets only
// those tests, the quickest first, until one fails.
//
// Mutants that are no different from the original are listed, each with its
// reason, in equivalent.txt beside this file. Exit code 1 if any other survives.
package main

import (
	"bufio"
	"cmp"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

//go:embed equivalent.txt
var equivalentText string

func main() {
	verbose := flag.Bool("v", false, "print every mutant")
	only := flag.String("run", "", "only mutants whose name matches this `REGEXP`: a file, a function")
	keep := flag.String("keep", "", "build in this `DIR`, and leave it there")
	timeout := flag.Duration("timeout", 60*time.Second, "a test run that takes longer counts as a failure")
	flag.Parse()
	if err := run(flag.Args(), *only, *keep, *timeout, *verbose); err != nil {
		fmt.Fprintln(os.Stderr, "mutate:", err)
		os.Exit(1)
	}
}

func run(packages []string, only, keep string, timeout time.Duration, verbose bool) error {
	if len(packages) == 0 {
		return errors.New("no packages")
	}
	filter, err := regexp.Compile(only)
	if err != nil {
		return err
	}
	known, err := readEquivalent(equivalentText)
	if err != nil {
		return err
	}
	c := count{known: known, all: only == "", verbose: verbose}
	for _, p := range packages {
		if err := mutatePackage(p, keep, filter, timeout, c.add); err != nil {
			return fmt.Errorf("%s: %w", p, err)
		}
	}
	fmt.Printf("mutants: %d, killed: %d, equivalent: %d, survived: %d (and %d that do not compile)\n", c.killed+c.equivalent+c.survived, c.killed, c.equivalent, c.survived, c.broken)
	if c.survived > 0 {
		return fmt.Errorf("%d mutants survived", c.survived)
	}
	return nil
}

// A count counts what became of mutants, and prints those that survived.
type count struct {
	known        map[string]string // equivalent mutants, with reasons
	all, verbose bool

	mu                                   sync.Mutex
	killed, equivalent, survived, broken int
}

func (c *count) add(m *mutant) {
	c.mu.Lock()
	defer c.mu.Unlock()
	say := func(what, more string) {
		if c.verbose {
			fmt.Printf("%-11s %s (%s)\n", what, m.name, more)
		}
	}
	reason, excused := c.known[m.name]
	switch {
	case m.killer == doesNotCompile:
		c.broken++
		say("no compile", m.position)
	case m.killer != "":
		c.killed++
		say("killed", m.killer)
		if excused && c.all {
			fmt.Printf("not equivalent, though listed so: %s\n", m.name)
		}
	case excused:
		c.equivalent++
		say("equivalent", reason)
	default:
		c.survived++
		fmt.Printf("survived    %s  [%s]\n", m.name, m.position)
	}
}

// readEquivalent reads lines of "name # reason".
func readEquivalent(text string) (map[string]string, error) {
	out := map[string]string{}
	for i, line := range strings.Split(text, "\n") {
		if line == "" || strings.HasPrefix(line, "# ") {
			continue
		}
		name, reason, ok := strings.Cut(line, "  # ")
		if !ok || reason == "" {
			return nil, fmt.Errorf("equivalent.txt:%d: no reason", i+1)
		}
		out[strings.TrimSpace(name)] = reason
	}
	return out, nil
}

// listed is what go list says of a package.
type listed struct {
	Dir     string
	GoFiles []string
}

// mutatePackage makes the mutants of one package, and tries those whose name
// matches.
func mutatePackage(pkg, keep string, only *regexp.Regexp, timeout time.Duration, done func(*mutant)) error {
	out, err := exec.Command("go", "list", "-json=Dir,GoFiles", pkg).Output()
	if err != nil {
		return err
	}
	var l listed
	if err := json.Unmarshal(out, &l); err != nil {
		return err
	}
	dir := keep
	if dir == "" {
		if dir, err = os.MkdirTemp("", "mutate-"); err != nil {
			return err
		}
		defer os.RemoveAll(dir)
	}
	b := &build{dir: dir, pkg: pkg, source: l}
	if err := b.compile(); err != nil {
		return err
	}
	t := &trial{build: b, timeout: timeout}
	if err := t.trace(); err != nil {
		return err
	}
	chosen := slices.DeleteFunc(b.mutants, func(m *mutant) bool { return !only.MatchString(m.name) })
	t.tryAll(chosen, done)
	return nil
}

// A trial runs the tests against the mutants.
type trial struct {
	*build
	timeout time.Duration
	tests   []timedTest

	mu     sync.Mutex
	lately map[string][]string // the last killers, by function and by file
}

// timedTest is a test, how long it takes, and which mutants it comes by.
type timedTest struct {
	name string
	took time.Duration
	hits map[int]bool
}

// command runs the test binary as go test would.
func (t *trial) command(ctx context.Context, env string, args ...string) *exec.Cmd {
	c := exec.CommandContext(ctx, t.binary(), args...)
	c.Dir = t.source.Dir
	c.Env = append(os.Environ(), env)
	return c
}

// trace runs every test alone.
func (t *trial) trace() error {
	out, err := t.command(context.Background(), "MUTANT=", "-test.list", "^(Test|Fuzz)").Output()
	if err != nil {
		return fmt.Errorf("list the tests: %w", err)
	}
	names := strings.Fields(string(out))
	t.tests = make([]timedTest, len(names))
	var mu sync.Mutex
	var failed []string
	each(len(names), func(i int) {
		hits := filepath.Join(t.dir, fmt.Sprintf("hits-%d", i))
		start := time.Now()
		err := t.command(context.Background(), "MUTANT_TRACE="+hits, "-test.short", "-test.run", "^"+names[i]+"$").Run()
		test := timedTest{name: names[i], took: time.Since(start), hits: readHits(hits)}
		mu.Lock()
		defer mu.Unlock()
		if err != nil {
			failed = append(failed, names[i])
		}
		t.tests[i] = test
	})
	if len(failed) > 0 {
		return fmt.Errorf("tests fail without any mutant: %s", strings.Join(failed, ", "))
	}
	slices.SortFunc(t.tests, func(a, b timedTest) int { return cmp.Compare(a.took, b.took) })
	return nil
}

// each calls f for 0 to n-1, on all processors.
func each(n int, f func(int)) {
	next := make(chan int)
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for i := range next {
				f(i)
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	wg.Wait()
}

func readHits(name string) map[int]bool {
	hits := map[int]bool{}
	f, err := os.Open(name)
	if err != nil {
		return hits
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if id, err := strconv.Atoi(s.Text()); err == nil {
			hits[id] = true
		}
	}
	return hits
}

// A group of tests in one process: so many, or so long.
const (
	groupTests = 12
	groupTime  = 2 * time.Second
)

// tryAll meets each mutant with the tests that come by it; done is told of each.
func (t *trial) tryAll(mutants []*mutant, done func(*mutant)) {
	t.lately = map[string][]string{}
	each(len(mutants), func(i int) {
		m := mutants[i]
		if m.killer == "" {
			m.killer = t.try(m)
			t.noteKiller(m)
		}
		done(m)
	})
}

// try meets a mutant with the tests that come by it: first those that noticed
// others of its function or file, then all, the quickest first. A process for
// each would cost more than the tests do.
func (t *trial) try(m *mutant) string {
	likely := t.likely(m)
	if len(likely) > 0 {
		if killer := t.kills(m, likely); killer != "" {
			return killer
		}
	}
	var group []string
	var took time.Duration
	for _, test := range t.tests {
		if !test.hits[m.id] || slices.Contains(likely, test.name) {
			continue
		}
		group = append(group, test.name)
		if took += test.took; len(group) >= groupTests || took > groupTime {
			if killer := t.kills(m, group); killer != "" {
				return killer
			}
			group, took = nil, 0
		}
	}
	if len(group) == 0 {
		return ""
	}
	return t.kills(m, group)
}

// likely are the tests that noticed mutants of the same function or file lately
// and come by this one.
func (t *trial) likely(m *mutant) []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []string
	for _, name := range append(slices.Clone(t.lately[m.file+m.fn]), t.lately[m.file]...) {
		hit := slices.ContainsFunc(t.tests, func(x timedTest) bool { return x.name == name && x.hits[m.id] })
		if hit && !slices.Contains(out, name) {
			out = append(out, name)
		}
	}
	return out
}

// noteKiller remembers the test that noticed a mutant, the last four of a
// function and of a file.
func (t *trial) noteKiller(m *mutant) {
	if !slices.ContainsFunc(t.tests, func(x timedTest) bool { return x.name == m.killer }) {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, where := range []string{m.file + m.fn, m.file} {
		list := slices.DeleteFunc(t.lately[where], func(name string) bool { return name == m.killer })
		list = append([]string{m.killer}, list...)
		t.lately[where] = list[:min(len(list), 4)]
	}
}

// kills says how tests notice a mutant; empty if they do not.
func (t *trial) kills(m *mutant, tests []string) string {
	ctx, cancel := context.WithTimeout(context.Background(), t.timeout)
	defer cancel()
	pattern := "^(" + strings.Join(tests, "|") + ")$"
	out, err := t.command(ctx, "MUTANT="+strconv.Itoa(m.id), "-test.short", "-test.failfast", "-test.run", pattern).CombinedOutput()
	switch {
	case ctx.Err() != nil:
		return "time-out"
	case err == nil:
		return ""
	}
	if i := strings.Index(string(out), "--- FAIL: "); i >= 0 {
		name, _, _ := strings.Cut(string(out[i+len("--- FAIL: "):]), " ")
		return name
	}
	return "panic"
}
