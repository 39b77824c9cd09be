package kith

import (
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// The checks read the sources themselves. A test that asked `go list` would be
// served from the test cache after the very change it is there to catch; files
// that a test opens are part of its cache key.

const (
	module          = "github.com/kith-im/kith"
	rulesFile       = "docs/architecture.md"
	reasonsFile     = "docs/dependencies.md"
	labelsFile      = "protocol/labels.go"
	labelPrefix     = "kith "
	testRule        = "_test" // suffix of a rule for what only a package's tests import
	protocolStdRule = "protocol std"
)

// TestArchitecture holds the tree to its rules. Every message names the file
// and says what to do.
func TestArchitecture(t *testing.T) {
	tree, err := readTree(os.DirFS("."))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range checks {
		t.Run(c.name, func(t *testing.T) {
			for _, problem := range c.run(tree) {
				t.Error(problem)
			}
		})
	}
}

var checks = []struct {
	name string
	run  func(*tree) []string
}{
	{"imports", checkImports},
	{"bans", checkBans},
	{"names", checkNames},
	{"pure", checkPure},
	{"comments", checkComments},
	{"marks", checkMarks},
	{"citations", checkCitations},
	{"links", checkLinks},
	{"fuzz", checkFuzz},
	{"labels", checkLabels},
	{"modules", checkModules},
	{"folders", checkFolders},
}

// checkImports compares every package's imports with the rules, both ways:
// neither an import without a rule nor a rule without an import. Imports of the
// standard library are free outside protocol.
func checkImports(t *tree) (problems []string) {
	rules, err := parseRules(t.texts[rulesFile])
	if err != nil {
		return []string{err.Error()}
	}
	used := map[string]map[string]bool{protocolStdRule: {}}
	for _, p := range t.packages {
		if p.dir == "." { // this test and a comment
			continue
		}
		if _, ok := rules[p.dir]; !ok {
			problems = append(problems, fmt.Sprintf("%s: package is not in the rules of %s", p.dir, rulesFile))
			continue
		}
		used[p.dir], used[p.dir+testRule] = map[string]bool{}, map[string]bool{}
		for _, f := range p.files {
			for _, imp := range f.ast.Imports {
				name := importPath(imp)
				unit, std := t.unit(name)
				switch {
				case std && !inProtocol(p.dir), unit == p.dir:
				case std && f.test:
				case std:
					if !rules[protocolStdRule][name] {
						problems = append(problems, fmt.Sprintf("%s: protocol may not import %q", t.at(imp), name))
					}
					used[protocolStdRule][name] = true
				case rules[p.dir][unit]:
					if !f.test {
						used[p.dir][unit] = true
					}
				case f.test && rules[p.dir+testRule][unit]:
					used[p.dir+testRule][unit] = true
				default:
					problems = append(problems, fmt.Sprintf("%s: no rule lets %s import %s", t.at(imp), p.dir, unit))
				}
			}
		}
	}
	for rule, units := range rules {
		if used[rule] == nil {
			problems = append(problems, fmt.Sprintf("%s: stale rule: there is no package %s", rulesFile, rule))
		}
		for unit := range units {
			if used[rule] != nil && !used[rule][unit] {
				problems = append(problems, fmt.Sprintf("%s: stale rule: %s does not import %s", rulesFile, rule, unit))
			}
		}
	}
	slices.Sort(problems)
	return problems
}

// bans are imports that no rule in docs/architecture.md may allow. As in Go's
// own patterns, /... covers a package and all below it.
var bans = []struct {
	path   string
	within []string // folders the ban covers; empty: all
	except []string // packages it spares
	tests  bool     // also in tests
	why    string
}{
	{path: "C", tests: true, why: "the binary is static: CGO_ENABLED=0"},
	{path: "unsafe", why: "memory safety is a promise"},
	{path: "go.uber.org/fx/...", tests: true, why: "main wires by hand"},
	{path: "github.com/stretchr/testify/...", tests: true, why: "tests use plain testing"},
	{path: "github.com/pkg/errors", tests: true, why: "errors and fmt do this"},
	{path: "math/rand", tests: true, why: "use math/rand/v2, or crypto/rand for anything an enemy may guess"},
	{path: "log", why: "a *slog.Logger is passed in"},
	{path: "expvar", why: "no debug endpoint in a release (threats H18)"},
	{path: "net/http/pprof", why: "no debug endpoint in a release (threats H18)"},
	{path: "compress/...", within: []string{"protocol", "node", "discovery"}, why: "compression next to a secret leaks its length (threats B17), and bombs (H10)"},
	{path: "archive/...", within: []string{"protocol", "node", "discovery"}, why: "the daemon opens no archives (threats H10)"},
	{path: "image/...", why: "the daemon decodes no media (threats H09)"},
	{path: "html/...", why: "the daemon renders no markup (threats H03)"},
	{path: "net/http/...", except: []string{"node/api", "node/api/v1", "node/bridge", "node/transport"}, why: "only the local API, proxies and bridges speak HTTP; nothing fetches (threats D09)"},
	{path: "database/sql/...", except: []string{"node/store"}, why: "durable state lives in node/store"},
	{path: "github.com/ncruces/go-sqlite3/...", except: []string{"node/store", "node/mailbox"}, tests: true, why: "durable state lives in node/store, and others' mail in node/mailbox"},
	{path: "github.com/libp2p/go-libp2p", tests: true, why: "libp2p.New links every transport it knows"},
	{path: "github.com/libp2p/go-libp2p/config", tests: true, why: "the host is assembled by hand in node/transport"},
	{path: "github.com/libp2p/go-libp2p-kad-dht/...", except: []string{"discovery"}, tests: true, why: "the DHT stays behind Announce and Find"},
	{path: "github.com/libp2p/go-libp2p/p2p/transport/...", except: []string{"node/transport", "node/nodetest"}, why: "the host is assembled by hand in node/transport"},
	{path: "github.com/libp2p/go-libp2p/p2p/net/swarm/...", except: []string{"node/transport", "node/nodetest"}, why: "the host is assembled by hand in node/transport"},
	{path: "github.com/libp2p/go-libp2p/p2p/transport/webrtc/...", tests: true, why: "not linked: attack surface (threats F04)"},
	{path: "github.com/libp2p/go-libp2p/p2p/transport/webtransport/...", tests: true, why: "not linked: attack surface (threats F04)"},
	{path: "github.com/quic-go/quic-go/http3/...", tests: true, why: "not linked: attack surface (threats F04)"},
}

// checkBans enforces bans.
func checkBans(t *tree) (problems []string) {
	for _, p := range t.packages {
		for _, f := range p.files {
			for _, imp := range f.ast.Imports {
				name := importPath(imp)
				if imp.Name != nil && imp.Name.Name == "." {
					problems = append(problems, fmt.Sprintf("%s: dot import of %s hides where names come from", t.at(imp), name))
				}
				for _, b := range bans {
					if root, subtree := strings.CutSuffix(b.path, "/..."); name != root && (!subtree || !under(name, root)) ||
						(f.test || f.generated) && !b.tests ||
						len(b.within) > 0 && !slices.ContainsFunc(b.within, func(w string) bool { return under(p.dir, w) }) ||
						slices.Contains(b.except, p.dir) {
						continue
					}
					problems = append(problems, fmt.Sprintf("%s: %s is banned: %s", t.at(imp), name, b.why))
				}
			}
		}
	}
	return problems
}

// bannedNames are single names of packages that may otherwise be imported. They
// concern code that ships, not tests.
var bannedNames = []struct {
	pkg    string
	names  string
	within string
	except string
	why    string
}{
	{pkg: "time", names: "Sleep", except: "node/nodetest", why: "wait with a timer and a context"},
	{
		pkg: "time", names: "Now Since Until After AfterFunc NewTimer NewTicker Tick Timer Ticker Local LoadLocation",
		within: "protocol", why: "time is an argument",
	},
	{pkg: "bytes", names: "Equal", within: "protocol", why: "compare with crypto/subtle, whatever is secret (threats B16)"},
	{pkg: "crypto/ed25519", names: "GenerateKey", within: "protocol", why: "it ignores its reader; make the key from a seed that was read (threats A20)"},
	{
		pkg:   "log/slog",
		names: "Default SetDefault Debug DebugContext Info InfoContext Warn WarnContext Error ErrorContext Log LogAttrs With",
		why:   "a *slog.Logger is passed in",
	},
	{
		pkg:   "net/http",
		names: "Get Head Post PostForm DefaultClient DefaultTransport DefaultServeMux Handle HandleFunc ListenAndServe ListenAndServeTLS Serve",
		why:   "clients and servers are made with their limits",
	},
	{pkg: "os", names: "Exit", except: "cmd/kith", why: "return an error; only main ends the process"},
}

// checkNames enforces bannedNames.
func checkNames(t *tree) (problems []string) {
	for _, p := range t.packages {
		for _, f := range p.files {
			if f.test {
				continue
			}
			imports := f.importNames()
			ast.Inspect(f.ast, func(n ast.Node) bool {
				sel, ok := n.(*ast.SelectorExpr)
				if !ok {
					return true
				}
				x, ok := sel.X.(*ast.Ident)
				if !ok || imports[x.Name] == "" {
					return true
				}
				for _, b := range bannedNames {
					if imports[x.Name] == b.pkg && slices.Contains(strings.Fields(b.names), sel.Sel.Name) &&
						(b.within == "" || under(p.dir, b.within)) && p.dir != b.except {
						problems = append(problems, fmt.Sprintf("%s: %s.%s is banned: %s", t.at(sel), b.pkg, sel.Sel.Name, b.why))
					}
				}
				return true
			})
		}
	}
	return problems
}

// checkPure keeps goroutines and channels out of protocol; its imports are
// checked with the others.
func checkPure(t *tree) (problems []string) {
	for _, p := range t.packages {
		if !inProtocol(p.dir) {
			continue
		}
		for _, f := range p.files {
			if f.test {
				continue
			}
			ast.Inspect(f.ast, func(n ast.Node) bool {
				what := ""
				switch n := n.(type) {
				case *ast.GoStmt:
					what = "starts a goroutine"
				case *ast.ChanType:
					what = "uses a channel"
				case *ast.SelectorExpr:
					if n.Sel.Name == "GenerateKey" {
						what = "generates a key that ignores its reader (threats A20)"
					}
				}
				if what != "" {
					problems = append(problems, fmt.Sprintf("%s: protocol %s", t.at(n), what))
				}
				return true
			})
		}
	}
	return problems
}

// checkComments wants exactly one package comment in each package and a comment
// on everything exported from it.
func checkComments(t *tree) (problems []string) {
	for _, p := range t.packages {
		var comments []string
		for _, f := range p.files {
			if f.test || f.generated {
				continue
			}
			if f.ast.Doc != nil {
				comments = append(comments, f.path)
				if text := f.ast.Doc.Text(); !strings.HasPrefix(text, "Package "+f.ast.Name.Name+" ") && f.ast.Name.Name != "main" ||
					f.ast.Name.Name == "main" && !strings.HasPrefix(text, "Command ") {
					problems = append(problems, fmt.Sprintf("%s: begin the package comment with the package's name", f.path))
				}
			}
			for _, d := range f.ast.Decls {
				problems = append(problems, t.undocumented(d)...)
			}
		}
		if p.shipped() && len(comments) != 1 {
			problems = append(problems, fmt.Sprintf("%s: want one package comment, have %d %v", p.dir, len(comments), comments))
		}
	}
	return problems
}

// checkMarks refuses comments that put work off: it belongs in an issue, where
// somebody will see it.
func checkMarks(t *tree) (problems []string) {
	for _, p := range t.packages {
		for _, f := range p.files {
			for _, group := range f.ast.Comments {
				for _, mark := range []string{"TO" + "DO", "FIX" + "ME", "XX" + "X"} {
					if !f.generated && strings.Contains(group.Text(), mark) {
						problems = append(problems, fmt.Sprintf("%s: %s belongs in an issue", t.at(group), mark))
					}
				}
			}
		}
	}
	return problems
}

// undocumented names what d exports without a comment. Methods that every Go
// reader knows need none, nor do members of a commented group.
func (t *tree) undocumented(d ast.Decl) (problems []string) {
	missing := func(id *ast.Ident) {
		if id.IsExported() {
			problems = append(problems, fmt.Sprintf("%s: exported %s needs a comment", t.at(id), id.Name))
		}
	}
	switch d := d.(type) {
	case *ast.FuncDecl:
		if d.Doc != nil {
			break
		}
		if d.Recv != nil {
			if !ast.IsExported(receiver(d)) || slices.Contains([]string{"Error", "Unwrap", "String"}, d.Name.Name) {
				break
			}
		}
		missing(d.Name)
	case *ast.GenDecl:
		for _, s := range d.Specs {
			switch s := s.(type) {
			case *ast.TypeSpec:
				if s.Doc == nil && d.Doc == nil {
					missing(s.Name)
				}
			case *ast.ValueSpec:
				if s.Doc == nil && s.Comment == nil && d.Doc == nil && !commentedAbove(d, s) {
					for _, name := range s.Names {
						missing(name)
					}
				}
			}
		}
	}
	return problems
}

// commentedAbove reports whether s continues a run of constants or variables
// whose first member has a comment.
func commentedAbove(d *ast.GenDecl, s *ast.ValueSpec) bool {
	i := slices.IndexFunc(d.Specs, func(other ast.Spec) bool { return other == ast.Spec(s) })
	for ; i >= 0; i-- {
		if d.Specs[i].(*ast.ValueSpec).Doc != nil {
			return true
		}
	}
	return false
}

var (
	citation = regexp.MustCompile(`docs/spec/([\w-]+)\.md(?:,? sections? (\d+(?:\.\d+)*(?:(?:,| to| and|, and) \d+(?:\.\d+)*)*))?`)
	section  = regexp.MustCompile(`\d+(?:\.\d+)*`)
	heading  = regexp.MustCompile(`(?m)^##+ (\d+(?:\.\d+)*)\.? `)
)

// checkCitations wants every document and section of docs/spec that a comment
// cites to exist, and every section that says MUST to be cited by a test.
func checkCitations(t *tree) (problems []string) {
	sections := map[string]map[string]bool{} // by document and number: is a test of it missing?
	for name, text := range t.texts {
		if dir, base := path.Split(name); dir == "docs/spec/" {
			doc := map[string]bool{}
			at := heading.FindAllStringSubmatchIndex(text, -1)
			for i, m := range at {
				end := len(text)
				if i+1 < len(at) {
					end = at[i+1][0]
				}
				doc[text[m[2]:m[3]]] = strings.Contains(text[m[0]:end], "MUST")
			}
			sections[strings.TrimSuffix(base, ".md")] = doc
		}
	}
	for _, p := range t.packages {
		for _, f := range p.files {
			if p.dir == "." { // examples
				continue
			}
			for _, group := range f.ast.Comments {
				text := strings.Join(strings.Fields(group.Text()), " ")
				for _, m := range citation.FindAllStringSubmatch(text, -1) {
					doc, ok := sections[m[1]]
					if !ok {
						problems = append(problems, fmt.Sprintf("%s: cites docs/spec/%s.md, which does not exist", t.at(group), m[1]))
						continue
					}
					for _, n := range section.FindAllString(m[2], -1) {
						if _, ok := doc[n]; !ok {
							problems = append(problems, fmt.Sprintf("%s: cites docs/spec/%s.md, section %s, which does not exist", t.at(group), m[1], n))
						} else if f.test {
							doc[n] = false
						}
					}
				}
			}
		}
	}
	for name, doc := range sections {
		for n, untested := range doc {
			if untested {
				problems = append(problems, fmt.Sprintf("docs/spec/%s.md: section %s says MUST, and no test cites it", name, n))
			}
		}
	}
	slices.Sort(problems)
	return problems
}

var link = regexp.MustCompile(`\]\(([^):#]+)(?:#[^)]*)?\)`)

// checkLinks wants what a document links to, inside the tree, to exist.
func checkLinks(t *tree) (problems []string) {
	for _, name := range slices.Sorted(maps.Keys(t.texts)) {
		for _, m := range link.FindAllStringSubmatch(t.texts[name], -1) {
			if path.Ext(name) == ".md" && !t.paths[path.Join(path.Dir(name), m[1])] {
				problems = append(problems, fmt.Sprintf("%s: links to %s, which does not exist", name, m[1]))
			}
		}
	}
	return problems
}

// checkFuzz wants every exported Parse… and Unmarshal… of protocol to be
// reached from a fuzz target of its package, by name (and, for a method, by the
// name of its type).
func checkFuzz(t *tree) (problems []string) {
	for _, p := range t.packages {
		if !inProtocol(p.dir) {
			continue
		}
		reached := p.reachedByFuzz()
		for _, f := range p.files {
			for _, d := range f.ast.Decls {
				fn, ok := d.(*ast.FuncDecl)
				if f.test || !ok || !fn.Name.IsExported() ||
					!strings.HasPrefix(fn.Name.Name, "Parse") && !strings.HasPrefix(fn.Name.Name, "Unmarshal") {
					continue
				}
				if !reached[fn.Name.Name] || fn.Recv != nil && !reached[receiver(fn)] {
					problems = append(problems, fmt.Sprintf("%s: no fuzz target of %s calls %s", t.at(fn), p.dir, fn.Name.Name))
				}
			}
		}
	}
	return problems
}

// reachedByFuzz returns the identifiers that p's fuzz targets use, themselves
// or through other functions of p's tests.
func (p *pkg) reachedByFuzz() map[string]bool {
	funcs := map[string]*ast.FuncDecl{}
	for _, f := range p.files {
		for _, d := range f.ast.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && f.test {
				funcs[fn.Name.Name] = fn
			}
		}
	}
	reached := map[string]bool{}
	var walk func(*ast.FuncDecl)
	walk = func(fn *ast.FuncDecl) {
		ast.Inspect(fn, func(n ast.Node) bool {
			if id, ok := n.(*ast.Ident); ok && !reached[id.Name] {
				reached[id.Name] = true
				if callee := funcs[id.Name]; callee != nil {
					walk(callee)
				}
			}
			return true
		})
	}
	for name, fn := range funcs {
		if strings.HasPrefix(name, "Fuzz") {
			walk(fn)
		}
	}
	return reached
}

// checkLabels wants every key-derivation label of code that ships to be a
// constant of protocol/labels.go.
func checkLabels(t *tree) (problems []string) {
	for _, p := range t.packages {
		if !inProtocol(p.dir) {
			continue
		}
		for _, f := range p.files {
			if f.test || f.path == labelsFile {
				continue
			}
			ast.Inspect(f.ast, func(n ast.Node) bool {
				if lit, ok := n.(*ast.BasicLit); ok && lit.Kind == token.STRING {
					if s, err := strconv.Unquote(lit.Value); err == nil && strings.HasPrefix(s, labelPrefix) {
						problems = append(problems, fmt.Sprintf("%s: label %q belongs in %s (threats A10)", t.at(lit), s, labelsFile))
					}
				}
				return true
			})
		}
	}
	return problems
}

var (
	directive = regexp.MustCompile(`(?m)^(replace|exclude|retract)\b`)
	require   = regexp.MustCompile(`(?m)^\s*(?:require )?(\S+\.\S+/?\S*) v\S+( // indirect)?$`)
	reason    = regexp.MustCompile("(?m)^\\| `([^`]+)` \\| [^|]{20,} \\|$")
)

// checkModules wants a go.mod that anyone can build on, without replace or
// exclude, and a reason in docs/dependencies.md for every direct requirement.
func checkModules(t *tree) (problems []string) {
	for _, m := range directive.FindAllStringSubmatch(t.texts["go.mod"], -1) {
		problems = append(problems, fmt.Sprintf("go.mod: %s changes what others build", m[1]))
	}
	reasons := map[string]bool{}
	for _, m := range reason.FindAllStringSubmatch(t.texts[reasonsFile], -1) {
		reasons[m[1]] = true
	}
	for _, m := range require.FindAllStringSubmatch(t.texts["go.mod"], -1) {
		if m[2] != "" {
			continue
		}
		if !reasons[m[1]] {
			problems = append(problems, fmt.Sprintf("%s: say in one line why we need %s", reasonsFile, m[1]))
		}
		delete(reasons, m[1])
	}
	for _, name := range slices.Sorted(maps.Keys(reasons)) {
		problems = append(problems, fmt.Sprintf("%s: %s is no direct requirement of go.mod", reasonsFile, name))
	}
	return problems
}

// checkFolders refuses names that say nothing about what is inside.
func checkFolders(t *tree) (problems []string) {
	for _, p := range t.packages {
		for _, name := range strings.Split(p.dir, "/") {
			if slices.Contains([]string{"internal", "pkg", "util", "utils", "common", "types", "helpers"}, name) {
				problems = append(problems, fmt.Sprintf("%s: the name %q says nothing", p.dir, name))
			}
		}
	}
	return problems
}

// tree is what the checks see: parsed Go files by package, and the texts they
// are compared with.
type tree struct {
	fset     *token.FileSet
	packages []*pkg // ordered by folder
	texts    map[string]string
	paths    map[string]bool // every file and folder
	modules  []string        // of go.mod, longest path first
}

type pkg struct {
	dir   string // "." is the root
	files []*file
}

type file struct {
	path      string
	test      bool
	generated bool
	ast       *ast.File
}

// readTree parses every Go file below fsys that git would keep.
func readTree(fsys fs.FS) (*tree, error) {
	t := &tree{fset: token.NewFileSet(), texts: map[string]string{}, paths: map[string]bool{}}
	byDir := map[string]*pkg{}
	err := fs.WalkDir(fsys, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		t.paths[name] = true
		base := path.Base(name)
		if d.IsDir() {
			if name != "." && (strings.HasPrefix(base, ".") || strings.HasPrefix(base, "_") || base == "testdata" || name == "bin" || name == "dist") {
				return fs.SkipDir
			}
			return nil
		}
		if name != "go.mod" && path.Ext(name) != ".go" && path.Ext(name) != ".md" {
			return nil
		}
		text, err := fs.ReadFile(fsys, name)
		if errors.Is(err, fs.ErrNotExist) { // an editor's file, gone since the folder was listed
			return nil
		}
		if err != nil {
			return err
		}
		if path.Ext(name) != ".go" {
			t.texts[name] = string(text)
			return nil
		}
		parsed, err := parser.ParseFile(t.fset, name, text, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		dir := path.Dir(name)
		if byDir[dir] == nil {
			byDir[dir] = &pkg{dir: dir}
		}
		byDir[dir].files = append(byDir[dir].files, &file{
			path: name, test: strings.HasSuffix(name, "_test.go"), generated: ast.IsGenerated(parsed), ast: parsed,
		})
		return nil
	})
	for _, dir := range slices.Sorted(maps.Keys(byDir)) {
		t.packages = append(t.packages, byDir[dir])
	}
	for _, m := range require.FindAllStringSubmatch(t.texts["go.mod"], -1) {
		t.modules = append(t.modules, m[1])
	}
	slices.SortFunc(t.modules, func(a, b string) int { return len(b) - len(a) })
	return t, err
}

// parseRules reads the fenced block `imports` of docs/architecture.md: lines of
// `package: import import …`, continued by indented lines. An import is a
// package of ours or a module.
func parseRules(text string) (map[string]map[string]bool, error) {
	_, block, ok := strings.Cut(text, "\n```imports\n")
	block, _, closed := strings.Cut(block, "\n```\n")
	if !ok || !closed {
		return nil, fmt.Errorf("%s: no fenced block of import rules", rulesFile)
	}
	rules := map[string]map[string]bool{}
	var current map[string]bool
	for line := range strings.Lines(block + "\n") {
		line = strings.TrimSuffix(line, "\n")
		units := line
		if !strings.HasPrefix(line, " ") {
			name, rest, ok := strings.Cut(line, ":")
			if !ok || rules[name] != nil {
				return nil, fmt.Errorf("%s: cannot read the rule %q, or its package has one already", rulesFile, line)
			}
			current, units = map[string]bool{}, rest
			rules[name] = current
		}
		for _, u := range strings.Fields(units) {
			current[u] = true
		}
	}
	return rules, nil
}

// unit returns what a rule calls an import: the folder of a package of ours, or
// the module of another. std reports a package of the standard library.
func (t *tree) unit(name string) (unit string, std bool) {
	if under(name, module) {
		return path.Clean(strings.TrimPrefix(strings.TrimPrefix(name, module), "/")), false
	}
	if first, _, _ := strings.Cut(name, "/"); !strings.Contains(first, ".") {
		return name, true
	}
	for _, m := range t.modules {
		if under(name, m) {
			return m, false
		}
	}
	return name, false
}

func (t *tree) at(n ast.Node) string {
	pos := t.fset.Position(n.Pos())
	return fmt.Sprintf("%s:%d", pos.Filename, pos.Line)
}

// shipped reports whether p has more than tests.
func (p *pkg) shipped() bool {
	return slices.ContainsFunc(p.files, func(f *file) bool { return !f.test })
}

// importNames maps the names of f's imports to their paths.
func (f *file) importNames() map[string]string {
	names := map[string]string{}
	for _, imp := range f.ast.Imports {
		p := importPath(imp)
		if imp.Name != nil {
			names[imp.Name.Name] = p
		} else {
			names[path.Base(p)] = p
		}
	}
	return names
}

func importPath(imp *ast.ImportSpec) string {
	p, _ := strconv.Unquote(imp.Path.Value) // the parser has accepted it
	return p
}

func inProtocol(dir string) bool { return under(dir, "protocol") }

// under reports whether p is root or below it.
func under(p, root string) bool { return p == root || strings.HasPrefix(p, root+"/") }

// receiver returns the name of the type that fn is a method of.
func receiver(fn *ast.FuncDecl) string {
	typ := fn.Recv.List[0].Type
	for {
		switch t := typ.(type) {
		case *ast.StarExpr:
			typ = t.X
		case *ast.IndexExpr:
			typ = t.X
		case *ast.IndexListExpr:
			typ = t.X
		case *ast.Ident:
			return t.Name
		default:
			return ""
		}
	}
}
