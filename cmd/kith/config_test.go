package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kith-im/kith/node/api"
)

func writeFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestConfigOrder(t *testing.T) {
	home := shortDir(t)
	writeFile(t, filepath.Join(home, "config.toml"), "name = \"file\"\nlisten = [\"/ip4/1.2.3.4/tcp/1\"]\nrole = \"community\"\n")
	t.Setenv("KITH_NAME", "environment")
	t.Setenv("KITH_BOOTSTRAP", "/a, /b")
	_, stdout, stderr := cli(t, "", "--home", home, "--json", "config", "--api", "/x/y.sock")
	var got map[string]struct {
		Value any
		From  string
	}
	if err := json.Unmarshal([]byte(stdout), &got); err != nil {
		t.Fatal(err, stderr)
	}
	for key, want := range map[string]string{"name": "environment", "listen": "config file", "role": "config file", "bootstrap": "environment", "web": "default", "api": "flag"} {
		if got[key].From != want {
			t.Errorf("%s is from the %s, want %s", key, got[key].From, want)
		}
	}
	if got["name"].Value != "environment" || got["role"].Value != "community" || len(got["bootstrap"].Value.([]any)) != 2 {
		t.Errorf("got %v", got)
	}
}

// TestConfigOnOff: a misspelt variable does not switch off what is to protect
// somebody.
func TestConfigOnOff(t *testing.T) {
	for value, want := range map[string]string{"1": "true", "Yes": "true", "0": "false", "": "false", "ture": ""} {
		t.Setenv("KITH_HIDE_ADDRESS", value)
		code, stdout, stderr := cli(t, "", "--home", shortDir(t), "--json", "config")
		switch {
		case want == "":
			if code != exitUsage || !strings.Contains(stderr, "KITH_HIDE_ADDRESS is either on or off") {
				t.Errorf("%q: exit %d, %q", value, code, stderr)
			}
		case !strings.Contains(stdout, `"hide-address":{"value":`+want):
			t.Errorf("%q: %q %q", value, stdout, stderr)
		}
	}
}

func TestConfigErrors(t *testing.T) {
	for text, want := range map[string]string{
		"nmae = \"x\"":     "nmae",
		"name = 3":         "something else than a text",
		"listen = 3":       "where a list belongs",
		"name = \"x":       "line 1",
		"[section]\nx = 1": "section",
	} {
		home := shortDir(t)
		writeFile(t, filepath.Join(home, "config.toml"), text)
		for _, verb := range []string{"status", "up"} {
			code, _, stderr := cli(t, "", "--home", home, verb)
			if code != exitUsage || !strings.Contains(stderr, want) || strings.Count(stderr, "\n") != 1 || strings.Contains(stderr, "toml:") {
				t.Errorf("%q: kith %s: exit %d, stderr %q, want %q", text, verb, code, stderr, want)
			}
		}
	}
}

func TestPaths(t *testing.T) {
	t.Setenv("HOME", "/home/x")
	t.Setenv("XDG_CONFIG_HOME", "")
	t.Setenv("XDG_DATA_HOME", "")
	t.Setenv("XDG_RUNTIME_DIR", "/run/user/7")
	for _, test := range []struct {
		name string
		home string
		want paths
	}{
		{"XDG", "", paths{"/home/x/.config/kith/config.toml", "/home/x/.local/share/kith", "/run/user/7/kith/api.sock"}},
		{"one folder", "/h", paths{"/h/config.toml", "/h", "/h/run/api.sock"}},
	} {
		if got, err := findPaths(test.home); err != nil || got != test.want {
			t.Errorf("%s: got %v, %v, want %v", test.name, got, err, test.want)
		}
	}
	deep := "/" + strings.Repeat("deep/", 40)
	got, err := findPaths(deep)
	if err != nil || len(got.API) > api.MaxSocketPath || !strings.HasPrefix(got.API, "/run/user/7/kith-") {
		t.Errorf("a long home: %v, %v", got.API, err)
	}
	other, _ := findPaths(deep + "er")
	if got.API == other.API {
		t.Error("two long homes share a socket")
	}
	t.Setenv("KITH_HOME", "/from/environment")
	if _, stdout, _ := cli(t, "", "paths"); !strings.Contains(stdout, "/from/environment/run/api.sock") {
		t.Errorf("KITH_HOME: %q", stdout)
	}
	t.Setenv("KITH_HOME", "")
	t.Setenv("HOME", "")
	if code, _, stderr := cli(t, "", "paths"); code != exitUsage || !strings.Contains(stderr, "--home") {
		t.Errorf("without any home: exit %d, %q", code, stderr)
	}
}

// TestConfigPrinted: what config prints is a config file that says the same.
func TestConfigPrinted(t *testing.T) {
	home := shortDir(t)
	file := filepath.Join(home, "config.toml")
	writeFile(t, file, "bootstrap = [\"/ip4/192.0.2.1/tcp/1\", \"/ip4/192.0.2.2/tcp/2\"]\n")
	_, printed, stderr := cli(t, "", "--home", home, "config")
	if stderr != "" {
		t.Fatal(stderr)
	}
	if !strings.Contains(printed, "given are not in this; where it listens is shown by: kith status --home "+home) {
		t.Errorf("flags are passed over in silence:\n%s", printed)
	}
	writeFile(t, file, printed)
	code, again, stderr := cli(t, "", "--home", home, "config")
	if code != exitOK {
		t.Fatalf("exit %d, %q, of %s", code, stderr, printed)
	}
	values := func(text string) (all []string) {
		for line := range strings.Lines(text) {
			key, _, _ := strings.Cut(line, "  #")
			all = append(all, strings.Join(strings.Fields(key), " "))
		}
		return all
	}
	if a, b := values(printed), values(again); !slices.Equal(a, b) {
		t.Errorf("printed:\n%s\nread again:\n%s", strings.Join(a, "\n"), strings.Join(b, "\n"))
	}
}
