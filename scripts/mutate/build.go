package main

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/printer"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// A mutant is one change of a program.
type mutant struct {
	id int
	// name is file, function, the expression and what becomes of it: stable as
	// long as they are.
	name     string
	position string
	line     int // in the instrumented file, for compile errors
	file, fn string
	killer   string
}

// doesNotCompile is the killer of a mutant that the compiler refuses: it is no
// credit to the tests.
const doesNotCompile = "does not compile"

// A build is a package's test binary with all mutants in it.
type build struct {
	dir     string
	pkg     string
	source  listed
	mutants []*mutant
	skip    map[string]bool // names of mutants that do not compile
}

func (b *build) binary() string { return filepath.Join(b.dir, "mutants.test") }

// support is compiled into the package: the switch.
//
//go:embed support.txt
var support string

// compile instruments every file and compiles the test binary. A mutant that does
// not compile is left out, and everything tried again.
func (b *build) compile() error {
	b.skip = map[string]bool{}
	for range 20 {
		overlay, err := b.instrument()
		if err != nil {
			return err
		}
		out, err := exec.Command("go", "test", "-c", "-vet=off", "-overlay", overlay, "-o", b.binary(), b.pkg).CombinedOutput()
		if err == nil {
			return nil
		}
		if !b.leaveOut(string(out)) {
			return fmt.Errorf("the instrumented package does not compile: %s", out)
		}
	}
	return fmt.Errorf("the instrumented package does not compile after 20 tries")
}

var compileError = regexp.MustCompile(`(?m)([A-Za-z0-9_-]+\.go):(\d+):\d+: `)

// leaveOut marks the mutants on the lines that the compiler complains about.
func (b *build) leaveOut(out string) bool {
	found := false
	for _, m := range compileError.FindAllStringSubmatch(out, -1) {
		line, _ := strconv.Atoi(m[2])
		for _, x := range b.mutants {
			if x.file == m[1] && x.line == line && !b.skip[x.name] {
				b.skip[x.name], found = true, true
			}
		}
	}
	return found
}

// instrument writes the instrumented files and the overlay that puts them in
// place of the originals.
func (b *build) instrument() (overlay string, err error) {
	b.mutants = nil
	replace := map[string]string{}
	pkgName := ""
	names := map[string]int{}
	for _, name := range b.source.GoFiles {
		path := filepath.Join(b.source.Dir, name)
		fset := token.NewFileSet()
		file, err := parser.ParseFile(fset, path, nil, parser.SkipObjectResolution|parser.ParseComments)
		if err != nil {
			return "", err
		}
		keepDirectives(file)
		pkgName = file.Name.Name
		r := &rewriter{build: b, fset: fset, file: name, names: names}
		for _, d := range file.Decls {
			r.decl(d)
		}
		var text bytes.Buffer
		// One expression a line would be nicer to read; one statement a line is
		// what compile errors can be traced back with.
		if err := (&printer.Config{Mode: printer.RawFormat}).Fprint(&text, fset, file); err != nil {
			return "", err
		}
		b.findLines(name, text.String())
		out := filepath.Join(b.dir, name)
		if err := os.WriteFile(out, text.Bytes(), 0o600); err != nil {
			return "", err
		}
		replace[path] = out
	}
	switchFile := filepath.Join(b.dir, "zz_mutant.go")
	if err := os.WriteFile(switchFile, []byte(strings.Replace(support, "PACKAGE", pkgName, 1)), 0o600); err != nil {
		return "", err
	}
	replace[filepath.Join(b.source.Dir, "zz_mutant.go")] = switchFile
	data, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return "", err
	}
	overlay = filepath.Join(b.dir, "overlay.json")
	return overlay, os.WriteFile(overlay, data, 0o600)
}

// keepDirectives drops every comment but those that tell the compiler something
// about a declaration (go:embed): others would end up in odd places.
func keepDirectives(file *ast.File) {
	file.Comments, file.Doc = nil, nil
	ast.Inspect(file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.GenDecl:
			n.Doc = directives(n.Doc)
		case *ast.FuncDecl:
			n.Doc = nil
		case *ast.Field:
			n.Doc, n.Comment = nil, nil
		case *ast.ValueSpec:
			n.Doc, n.Comment = nil, nil
		case *ast.TypeSpec:
			n.Doc, n.Comment = nil, nil
		case *ast.ImportSpec:
			n.Doc, n.Comment = nil, nil
		}
		return true
	})
}

func directives(g *ast.CommentGroup) *ast.CommentGroup {
	if g == nil {
		return nil
	}
	var kept []*ast.Comment
	for _, c := range g.List {
		if strings.HasPrefix(c.Text, "//go:") {
			kept = append(kept, c)
		}
	}
	if kept == nil {
		return nil
	}
	return &ast.CommentGroup{List: kept}
}

var mutantCall = regexp.MustCompile(`mutant[A-Z][A-Za-z]*\((\d+)`)

// findLines notes where the mutants of a file ended up.
func (b *build) findLines(file, text string) {
	at := map[int]int{}
	for i, line := range strings.Split(text, "\n") {
		for _, m := range mutantCall.FindAllStringSubmatch(line, -1) {
			id, _ := strconv.Atoi(m[1])
			at[id] = i + 1
		}
	}
	last := 0
	for _, m := range b.mutants {
		if m.file != file {
			continue
		}
		// Some calls stand for several mutants, and name the first.
		if line, ok := at[m.id]; ok {
			last = line
		}
		m.line = last
	}
}

// A rewriter instruments one file.
type rewriter struct {
	*build
	fset  *token.FileSet
	file  string
	fn    string
	names map[string]int
}

// add makes a mutant of a node; nil when it is to be left out.
func (r *rewriter) add(n ast.Node, what string) *mutant {
	var text bytes.Buffer
	_ = printer.Fprint(&text, r.fset, n)
	short := strings.Join(strings.Fields(text.String()), " ")
	if len(short) > 90 {
		short = short[:90]
	}
	name := fmt.Sprintf("%s: %s: %s: %s", r.file, r.fn, short, what)
	if r.names[name]++; r.names[name] > 1 {
		name = fmt.Sprintf("%s (%d)", name, r.names[name])
	}
	pos := r.fset.Position(n.Pos())
	m := &mutant{id: len(r.mutants) + 1, name: name, file: r.file, fn: r.fn, position: fmt.Sprintf("%s:%d", r.file, pos.Line)}
	r.mutants = append(r.mutants, m)
	if r.skip[name] {
		m.killer = doesNotCompile
		return nil
	}
	return m
}

func call(fn string, args ...ast.Expr) *ast.CallExpr {
	return &ast.CallExpr{Fun: ast.NewIdent(fn), Args: args}
}

func number(n int) ast.Expr { return &ast.BasicLit{Kind: token.INT, Value: strconv.Itoa(n)} }

func (r *rewriter) decl(d ast.Decl) {
	f, ok := d.(*ast.FuncDecl)
	if !ok || f.Body == nil {
		return
	}
	r.fn = f.Name.Name
	if f.Recv != nil && len(f.Recv.List) > 0 {
		var t bytes.Buffer
		_ = printer.Fprint(&t, r.fset, f.Recv.List[0].Type)
		r.fn = strings.TrimPrefix(t.String(), "*") + "." + r.fn
	}
	r.block(f.Body)
}

// block instruments a list of statements, which may be left out one by one.
func (r *rewriter) block(b *ast.BlockStmt) {
	if b == nil {
		return
	}
	b.List = r.stmts(b.List)
}

func (r *rewriter) stmts(list []ast.Stmt) []ast.Stmt {
	for i, s := range list {
		list[i] = r.stmt(s)
	}
	return list
}

// leaveOut makes a statement one that a mutant leaves out.
func (r *rewriter) leaveOutStmt(s ast.Stmt) ast.Stmt {
	m := r.add(s, "left out")
	r.exprs(s)
	if m == nil {
		return s
	}
	return &ast.IfStmt{Cond: call("mutantRuns", number(m.id)), Body: &ast.BlockStmt{List: []ast.Stmt{s}}}
}

func (r *rewriter) stmt(s ast.Stmt) ast.Stmt {
	switch s := s.(type) {
	case *ast.ExprStmt:
		return r.leaveOutStmt(s)
	case *ast.AssignStmt:
		if s.Tok == token.DEFINE {
			r.exprs(s)
			return s
		}
		return r.leaveOutStmt(s)
	case *ast.IncDecStmt:
		return r.leaveOutStmt(s)
	case *ast.IfStmt:
		if s.Init != nil {
			r.exprs(s.Init)
		}
		s.Cond = r.condition(s.Cond)
		r.block(s.Body)
		if s.Else != nil {
			s.Else = r.stmt(s.Else)
		}
	case *ast.BlockStmt:
		r.block(s)
	case *ast.ForStmt:
		// A loop's own condition is left alone: it would run for ever.
		r.block(s.Body)
	case *ast.RangeStmt:
		s.X = r.expr(s.X)
		r.block(s.Body)
	case *ast.SwitchStmt:
		if s.Init != nil {
			r.exprs(s.Init)
		}
		for _, c := range s.Body.List {
			c := c.(*ast.CaseClause)
			for i, e := range c.List {
				if s.Tag == nil {
					c.List[i] = r.condition(e)
				}
			}
			c.Body = r.stmts(c.Body)
		}
	case *ast.TypeSwitchStmt:
		for _, c := range s.Body.List {
			c := c.(*ast.CaseClause)
			c.Body = r.stmts(c.Body)
		}
	case *ast.SelectStmt:
		for _, c := range s.Body.List {
			c := c.(*ast.CommClause)
			c.Body = r.stmts(c.Body)
		}
	case *ast.LabeledStmt:
		s.Stmt = r.stmt(s.Stmt)
	default:
		r.exprs(s)
	}
	return s
}

// condition makes a condition one that mutants make constant.
func (r *rewriter) condition(e ast.Expr) ast.Expr {
	never, always := r.add(e, "false"), r.add(e, "true")
	e = r.expr(e)
	if never == nil || always == nil {
		return e
	}
	return call("mutantBool", number(never.id), e)
}

// exprs instruments the expressions inside a statement that is not taken apart.
func (r *rewriter) exprs(s ast.Stmt) {
	switch s := s.(type) {
	case *ast.ReturnStmt:
		for i := range s.Results {
			s.Results[i] = r.expr(s.Results[i])
		}
	case *ast.AssignStmt:
		for i := range s.Rhs {
			s.Rhs[i] = r.expr(s.Rhs[i])
		}
	case *ast.ExprStmt:
		s.X = r.expr(s.X)
	case *ast.DeferStmt:
		r.expr(s.Call)
	case *ast.GoStmt:
		r.expr(s.Call)
	}
}

// expr instruments an expression and what is in it.
func (r *rewriter) expr(e ast.Expr) ast.Expr {
	switch e := e.(type) {
	case *ast.BinaryExpr:
		return r.binary(e)
	case *ast.ParenExpr:
		e.X = r.expr(e.X)
	case *ast.UnaryExpr:
		if e.Op == token.NOT {
			e.X = r.expr(e.X)
		}
	case *ast.CallExpr:
		e.Fun = r.expr(e.Fun)
		for i := range e.Args {
			e.Args[i] = r.expr(e.Args[i])
		}
		r.variadic(e)
	case *ast.SelectorExpr:
		e.X = r.expr(e.X)
	case *ast.FuncLit:
		r.block(e.Body)
	case *ast.CompositeLit:
		return r.composite(e)
	case *ast.KeyValueExpr:
		e.Value = r.expr(e.Value)
	}
	return e
}

// variadic makes the arguments of calls to put ones that mutants leave out: each
// is a check.
func (r *rewriter) variadic(c *ast.CallExpr) {
	s, ok := c.Fun.(*ast.SelectorExpr)
	if !ok || s.Sel.Name != "put" || c.Ellipsis.IsValid() || len(c.Args) < 2 {
		return
	}
	list := &ast.CompositeLit{Type: &ast.ArrayType{Elt: ast.NewIdent("Check")}, Elts: c.Args}
	if m := r.elements(list); m != nil {
		c.Args = []ast.Expr{m}
		c.Ellipsis = c.Rparen
	}
}

// elements makes a list one of which mutants leave out an element.
func (r *rewriter) elements(l *ast.CompositeLit) ast.Expr {
	first := len(r.mutants) + 1
	ok := true
	for _, x := range l.Elts {
		if r.add(x, "not in the list") == nil {
			ok = false
		}
	}
	if !ok {
		return nil
	}
	return call("mutantList", number(first), l)
}

func (r *rewriter) composite(l *ast.CompositeLit) ast.Expr {
	a, isList := l.Type.(*ast.ArrayType)
	for i, x := range l.Elts {
		// Elements without a type of their own stand for composite literals too.
		if inner, ok := x.(*ast.CompositeLit); ok && inner.Type == nil {
			for j := range inner.Elts {
				inner.Elts[j] = r.expr(inner.Elts[j])
			}
			continue
		}
		l.Elts[i] = r.expr(x)
	}
	if !isList || a.Len != nil || len(l.Elts) == 0 {
		return l
	}
	if id, ok := a.Elt.(*ast.Ident); ok && (id.Name == "byte" || id.Name == "any") {
		return l
	}
	if _, keyed := l.Elts[0].(*ast.KeyValueExpr); keyed {
		return l
	}
	if m := r.elements(l); m != nil {
		return m
	}
	return l
}

// sides are what && and || are when one side is left out.
var sides = map[token.Token]string{token.LAND: "true", token.LOR: "false"}

// borders maps a comparison to the helper that can shift its border.
var borders = map[token.Token]string{token.LSS: "mutantLess", token.LEQ: "mutantLessEqual", token.GTR: "mutantGreater", token.GEQ: "mutantGreaterEqual"}

func (r *rewriter) binary(e *ast.BinaryExpr) ast.Expr {
	if neutral, ok := sides[e.Op]; ok {
		left, right := r.add(e.X, neutral+" in "+e.Op.String()), r.add(e.Y, neutral+" in "+e.Op.String())
		e.X, e.Y = r.expr(e.X), r.expr(e.Y)
		fn := "mutantTrue"
		if neutral == "false" {
			fn = "mutantFalse"
		}
		if left != nil {
			e.X = call(fn, number(left.id), e.X)
		}
		if right != nil {
			e.Y = call(fn, number(right.id), e.Y)
		}
		return e
	}
	fn, ok := borders[e.Op]
	if !ok {
		e.X, e.Y = r.expr(e.X), r.expr(e.Y)
		return e
	}
	m := r.add(e, "border shifted")
	e.X, e.Y = r.expr(e.X), r.expr(e.Y)
	if m == nil {
		return e
	}
	return call(fn, number(m.id), e.X, e.Y)
}
