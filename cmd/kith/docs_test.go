package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/kith-im/kith/node/api"
)

// TestDocs holds docs/json.md to the code: it names every field that a command
// or an event prints, every command and every exit code.
func TestDocs(t *testing.T) {
	b, err := os.ReadFile("../../docs/json.md")
	if err != nil {
		t.Fatal(err)
	}
	doc := string(b)
	sources, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	tag := regexp.MustCompile("`json:\"([a-z0-9_-]+)")
	fields := 0
	for _, path := range append(sources, "../../node/events.go") {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		src, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range tag.FindAllStringSubmatch(string(src), -1) {
			if fields++; !strings.Contains(doc, "`"+m[1]+"`") && !strings.Contains(doc, `"`+m[1]+`"`) {
				t.Errorf("docs/json.md lacks the field %q of %s", m[1], path)
			}
		}
	}
	if fields < 100 {
		t.Errorf("only %d fields were found in the sources", fields)
	}
	for _, c := range new(kith).root().Commands() {
		if !c.HasSubCommands() && !strings.Contains(doc, "`"+c.Name()+"`") {
			t.Errorf("docs/json.md lacks kith %s", c.Name())
		}
		for _, sub := range c.Commands() {
			if !strings.Contains(doc, "`"+c.Name()+" "+sub.Name()+"`") {
				t.Errorf("docs/json.md lacks kith %s %s", c.Name(), sub.Name())
			}
		}
	}
	for _, code := range []api.Code{
		api.CodeRefused, api.CodeUsage, api.CodeNotRunning, api.CodeNetwork, api.CodeQuota,
		api.CodeKeyUntrusted, api.CodeTimeout, api.CodeLocked, api.CodeNotFound, api.CodeInternal,
	} {
		row := regexp.MustCompile(fmt.Sprintf("(?m)^\\| %d \\| .*`%s`", exitCode(code), code))
		if !row.MatchString(doc) {
			t.Errorf("docs/json.md lacks that %s exits with %d", code, exitCode(code))
		}
	}
}
