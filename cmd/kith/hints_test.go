package main

import (
	"bytes"
	"strings"
	"testing"
)

// TestHints: a command that a hint names acts on the home of the command that was
// refused, and nothing else in a hint is touched.
func TestHints(t *testing.T) {
	for _, test := range []struct {
		home, api  string
		hint, want string
	}{
		{hint: "start it with: kith up", want: "start it with: kith up"},
		{home: "a", hint: "start it with: kith up", want: "start it with: kith up --home a"},
		{api: "/run/x.sock", hint: "see: kith doctor", want: "see: kith doctor --api /run/x.sock"},
		{home: "a", api: "b", hint: "see: kith doctor", want: "see: kith doctor --home a --api b"},
		{home: "my home", hint: "see kith contacts", want: "see kith contacts --home 'my home'"},
		{home: "50%d", hint: "see kith contacts", want: "see kith contacts --home '50%d'"},
		{home: "a", hint: "kith mailbox list shows the ones you have", want: "kith mailbox list --home a shows the ones you have"},
		{home: "a", hint: "add another one with kith bridge add ADDRESS", want: "add another one with kith bridge add --home a ADDRESS"},
		{home: "a", hint: "see: kith mailbox list, or add another with: kith mailbox add ADDRESS", want: "see: kith mailbox list --home a, or add another with: kith mailbox add --home a ADDRESS"},
		{home: "a", hint: "restart it with this version: kith down, kith up", want: "restart it with this version: kith down --home a, kith up --home a"},
		{home: "a", hint: "start it with: kith up --role community, or choose another one with --home DIR", want: "start it with: kith up --home a --role community, or choose another one with --home DIR"},
		{home: "a", hint: "write to them: kith send 'kith down' TEXT", want: "write to them: kith send --home a 'kith down' TEXT"},
		{home: "a", hint: "on every network (kith mode open ends it)", want: "on every network (kith mode --home a open ends it)"},
		// What names another home, or none.
		{home: "a", hint: "start a community node with: kith up --role community --home DIR", want: "start a community node with: kith up --role community --home DIR"},
		{home: "a", hint: "run kith up with another --home for an account of your own", want: "run kith up with another --home for an account of your own"},
		{home: "a", hint: "copy the whole address that kith bridge invite printed", want: "copy the whole address that kith bridge invite printed"},
		{home: "a", hint: "see: kith bundle export --help", want: "see: kith bundle export --help"},
		{home: "a", hint: "have the same version: kith version, kith status", want: "have the same version: kith version, kith status --home a"},
		{home: "a", hint: "did you mean: kith demo", want: "did you mean: kith demo"},
		// What is no command.
		{home: "a", hint: "stop kith and wait", want: "stop kith and wait"},
		{home: "a", hint: "keep kith running; restart kith", want: "keep kith running; restart kith"},
		{home: "a", hint: "look into /srv/kith up there", want: "look into /srv/kith up there"},
	} {
		k := &kith{}
		k.root()
		k.home, k.socket = test.home, test.api
		if got := k.here(test.hint); got != test.want {
			t.Errorf("--home %q --api %q: %q, want %q", test.home, test.api, got, test.want)
		}
	}
}

// TestHintsAreAboutThisHome: wherever a command ends, its next step is printed for
// its own home, to people and to programs.
func TestHintsAreAboutThisHome(t *testing.T) {
	n := &network{t: t, dir: shortDir(t)}
	a := n.home("a", "--name", "ann", "--listen", "/ip4/127.0.0.1/tcp/0")
	at := " --home " + a.dir
	command := func(args ...string) (out string) {
		var stdout, stderr bytes.Buffer
		run(t.Context(), append([]string{"--home", a.dir}, args...), strings.NewReader(""), &stdout, &stderr)
		return stdout.String() + stderr.String()
	}
	for _, test := range []struct {
		up   bool
		want string
		args []string
	}{
		{false, "start it with: kith up" + at, []string{"status"}},
		{false, `"hint":"start it with: kith up` + at, []string{"status", "--json"}},
		{true, "kith contacts" + at + " lists", []string{"send", "nobody", "hi"}},
		{true, `"hint":"kith contacts` + at + " lists", []string{"send", "nobody", "hi", "--json"}},
		{true, "kith invite" + at, []string{"contacts"}},
		{true, "kith invite" + at, []string{"chats"}},
		{true, "kith mailbox add" + at + " ADDRESS", []string{"mailbox", "list"}},
		{true, "kith mailbox add" + at + " ADDRESS", []string{"doctor"}},
		{true, "kith lan on" + at, []string{"lan"}},
		{true, "kith bridge add" + at + " ADDRESS", []string{"bridge", "ways"}},
		{true, "who runs:  kith accept LINK\n", []string{"invite"}},
	} {
		if test.up && a.cmd == nil {
			a.up()
		}
		if got := command(test.args...); !strings.Contains(got, test.want) {
			t.Errorf("kith %s: %q, want %q", strings.Join(test.args, " "), got, test.want)
		}
	}
	if got := command("invite"); !strings.Contains(got, "kith invite revoke ") || !strings.HasSuffix(got, at+"\n") {
		t.Errorf("kith invite: %q", got)
	}
	if report := command("doctor", "--report"); strings.Contains(report, a.dir) {
		t.Errorf("a report for others names the home:\n%s", report)
	}
}
