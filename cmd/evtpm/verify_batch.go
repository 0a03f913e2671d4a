package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/evtpm/evtpm/attest"
	"github.com/evtpm/evtpm/attest/evidence"
	"github.com/evtpm/evtpm/inputfile"
	"github.com/evtpm/evtpm/measure"
)

// outcome is what came of one file of a batch.
type outcome struct {
	judgement
	alone bool  // a bare report
	err   error // the file is neither evidence nor a report
}

// class is the exit code that the file alone would give.
func (o outcome) class() attest.Class {
	if o.err != nil {
		return attest.ClassMisuse
	}
	return o.Verdict.Class()
}

// verifyBatch judges every file of a folder, on all processors, verifying each
// chain of certificates once. It ends with the lowest class of failure.
func verifyBatch(u *ui, c *cli.Context, dir string, golden *measure.Golden, o attest.Options, asJSON bool) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("--batch: %w", err)
	}
	var files []string
	for _, e := range entries {
		// A link is followed. What is no file in the end is refused like one that is
		// no evidence: passed over, it would count as trusted.
		name := filepath.Join(dir, e.Name())
		if info, err := os.Stat(name); err != nil || !info.IsDir() {
			files = append(files, name)
		}
	}
	if len(files) == 0 {
		return fmt.Errorf("--batch: no files in %s", dir)
	}
	if o.Now.IsZero() {
		o.Now = time.Now()
	}
	o.Cache = new(attest.ChainCache)
	start := time.Now()
	out := u.judgeAll(c.Context, files, golden, o)
	took := max(time.Since(start), time.Microsecond) // a clock may be coarse
	if err := c.Context.Err(); err != nil {
		return err
	}
	class, trusted := attest.ClassOK, 0
	for i, r := range out {
		if k := r.class(); k == attest.ClassOK {
			trusted++
		} else if class == attest.ClassOK || k < class {
			class = k
		}
		if !asJSON {
			u.data("%s\t%s", printable(files[i]), r.line())
		}
	}
	for _, w := range warningsOf(out) {
		u.warn("%s", printable(w))
	}
	rate := float64(len(out)) / took.Seconds()
	u.say("%d files, %d trusted, %d refused, %.0f a second", len(out), trusted, len(out)-trusted, rate)
	if asJSON {
		if err := u.json(batchDocument(out, trusted, rate)); err != nil {
			return err
		}
	}
	if class != attest.ClassOK {
		return errSilent(class)
	}
	return nil
}

// warningsOf lists the warnings of trusted verdicts, each once.
func warningsOf(out []outcome) (list []string) {
	seen := map[string]bool{}
	for _, o := range out {
		if o.class() != attest.ClassOK {
			continue
		}
		for _, w := range o.Verdict.Warnings {
			if !seen[w] {
				seen[w] = true
				list = append(list, w)
			}
		}
	}
	return list
}

// batchResult is the JSON form of a batch.
type batchResult struct {
	Schema    string      `json:"schema"`
	Files     int         `json:"files"`
	Trusted   int         `json:"trusted"`
	PerSecond float64     `json:"per_second"`
	Results   []batchFile `json:"results"`
}

type batchFile struct {
	judgement
	Error string `json:"error,omitempty"`
}

func batchDocument(out []outcome, trusted int, rate float64) batchResult {
	doc := batchResult{Schema: "evtpm.batch/v1", Files: len(out), Trusted: trusted, PerSecond: rate}
	for _, r := range out {
		f := batchFile{judgement: r.judgement}
		if r.err != nil {
			f.Error = r.err.Error()
		}
		doc.Results = append(doc.Results, f)
	}
	return doc
}

// line is an outcome in a line.
func (o outcome) line() string {
	if o.err != nil {
		return "error: " + printable(strings.ReplaceAll(o.err.Error(), "\n", "; "))
	}
	line := verdictLine(o.Verdict)
	if o.alone {
		line += "; a report alone, no vTPM"
	}
	return line
}

func (u *ui) judgeAll(ctx context.Context, files []string, golden *measure.Golden, o attest.Options) []outcome {
	out := make([]outcome, len(files))
	next := make(chan int)
	var wg sync.WaitGroup
	workers := min(runtime.GOMAXPROCS(0), len(files))
	if o.Registry != nil {
		workers = 1 // of two launches with one EK, the first file's is remembered
	}
	for range workers {
		wg.Go(func() {
			for i := range next {
				out[i] = u.judgeFile(ctx, files[i], golden, o)
			}
		})
	}
	for i := range files {
		next <- i
	}
	close(next)
	wg.Wait()
	return out
}

// judgeFile judges evidence, which is JSON, or a bare report.
func (u *ui) judgeFile(ctx context.Context, name string, golden *measure.Golden, o attest.Options) (out outcome) {
	defer func() { out.File = name }()
	if err := ctx.Err(); err != nil {
		return outcome{err: err}
	}
	data, err := inputfile.Read(name, evidence.MaxEvidence)
	if err != nil {
		return outcome{err: err}
	}
	if bytes.HasPrefix(bytes.TrimSpace(data), []byte("{")) {
		if golden == nil {
			return outcome{err: errors.New("evidence is judged against golden values: give --golden")}
		}
		ev, err := evidence.Parse(data)
		if err != nil {
			return outcome{err: err}
		}
		v, err := attest.Verify(ctx, ev, golden, u.withKept(ctx, o, ev.Report))
		if err != nil {
			return outcome{err: err}
		}
		return outcome{judgement: newJudgement(v, ev.Report)}
	}
	raw, table, err := attest.SplitReport(data)
	if err != nil {
		return outcome{err: err}
	}
	o.Registry = nil // a bare report has no EK
	v, err := attest.VerifyReport(ctx, raw, table, attest.Expect{Golden: golden}, u.withKept(ctx, o, raw))
	if err != nil {
		return outcome{err: err}
	}
	return outcome{judgement: newJudgement(v, raw), alone: true}
}
