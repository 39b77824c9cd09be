package protocol

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// One key, one purpose: every label is distinct, none begins another, and none
// is written anywhere but in labels.go.
func TestA10_Labels(t *testing.T) {
	labels := map[string]string{}
	fset := token.NewFileSet()
	f, err := parser.ParseFile(fset, "labels.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	ast.Inspect(f, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		for i, name := range spec.Names {
			if len(spec.Values) <= i {
				t.Errorf("%s has no value of its own", name.Name)
				continue
			}
			lit, ok := spec.Values[i].(*ast.BasicLit)
			if !ok || lit.Kind != token.STRING {
				t.Errorf("%s is not a literal string", name.Name)
				continue
			}
			v, err := strconv.Unquote(lit.Value)
			if err != nil {
				t.Fatal(err)
			}
			if !strings.HasPrefix(v, "kith ") {
				t.Errorf("%s = %q does not begin with %q", name.Name, v, "kith ")
			}
			labels[name.Name] = v
		}
		return true
	})
	overview, err := os.ReadFile("../docs/spec/overview.md")
	if err != nil {
		t.Fatal(err)
	}
	for name, label := range labels {
		if !strings.Contains(string(overview), "`"+label+"`") {
			t.Errorf("%s = %q is not in docs/spec/overview.md, section 4", name, label)
		}
	}
	if len(labels) < 20 {
		t.Fatalf("found only %d labels", len(labels))
	}
	for a, va := range labels {
		for b, vb := range labels {
			if a != b && strings.HasPrefix(vb, va) {
				t.Errorf("%s = %q begins %s = %q", a, va, b, vb)
			}
		}
	}
}

func TestA10_NoLabelElsewhere(t *testing.T) {
	seen := 0
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") ||
			strings.HasSuffix(path, "_test.go") || path == "labels.go" {
			return err
		}
		seen++
		fset := token.NewFileSet()
		f, err := parser.ParseFile(fset, path, nil, 0)
		if err != nil {
			return err
		}
		ast.Inspect(f, func(n ast.Node) bool {
			lit, ok := n.(*ast.BasicLit)
			if !ok || lit.Kind != token.STRING {
				return true
			}
			if v, err := strconv.Unquote(lit.Value); err == nil && strings.HasPrefix(v, "kith ") {
				t.Errorf("%s: label %q stands outside labels.go", fset.Position(lit.Pos()), v)
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if seen < 10 {
		t.Fatalf("looked at only %d files", seen)
	}
}
