package main

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kith-im/kith/protocol"
	"github.com/kith-im/kith/protocol/identity"
	"github.com/kith-im/kith/protocol/invite"
)

// refused runs a command that has to fail with one sentence, a next step and
// the exit code.
func (h *home) refused(code int, words string, args ...string) {
	h.t.Helper()
	got, stdout, stderr := h.cli(append([]string{"-q"}, args...)...)
	if got != code || stdout != "" || strings.Count(stderr, "\n") != 1 || !strings.Contains(stderr, words) || !strings.ContainsAny(stderr, ":;") {
		h.t.Errorf("kith %.80s: exit %d, stdout %q, stderr %q, want exit %d and one line with %q", strings.Join(args, " "), got, stdout, stderr, code, words)
	}
	got, _, stderr = h.cli(append([]string{"--json"}, args...)...)
	var e struct {
		Error struct{ Code, Message, Hint string }
	}
	if err := json.Unmarshal([]byte(stderr), &e); err != nil || got != code || e.Error.Code == "" || e.Error.Message == "" || e.Error.Hint == "" {
		h.t.Errorf("kith %.80s --json: exit %d, %q, want exit %d, a message and a hint", strings.Join(args, " "), got, stderr, code)
	}
}

// stranger makes a link of a device that nobody runs.
func stranger(t *testing.T, expires time.Time) string {
	t.Helper()
	var device identity.DeviceHash
	rand.Read(device[:])
	link, err := invite.New(rand.Reader, device, false, expires, nil)
	if err != nil {
		t.Fatal(err)
	}
	return link.Link()
}

func TestBadInvite(t *testing.T) {
	n := newNetwork(t)
	a, b := n.person("a", "ann"), n.person("b", "ben")
	link := a.invite()
	middle := len(link) / 2
	flipped := byte('A')
	if link[middle] == flipped {
		flipped = 'B'
	}
	for _, test := range []struct {
		what, link, words string
		code              int
	}{
		{"no link", "hello", "kith:", exitUsage},
		{"another scheme", "https://example.org/" + link[len("kith:"):], "kith:", exitUsage},
		{"without its scheme", link[len("kith:"):], "has lost its beginning; put kith: before it", exitUsage},
		{"something else after the scheme", "kith:AAAA", "this is not a kith invite; copy the whole link, from kith: to its end", exitUsage},
		{"only the scheme", "kith:", "cut short", exitUsage},
		{"truncated", link[:len(link)-4], "cut short", exitUsage},
		{"longer", link + "AAAA", "copy the link again", exitUsage},
		{"altered", link[:middle] + string(flipped) + link[middle+1:], "copy the link again", exitUsage},
		{"enormous", link + strings.Repeat("A", 8<<10), "copy the whole link", exitUsage},
		{"with an escape sequence", link + "\x1b[31m", "copy the whole link", exitUsage},
		{"expired", stranger(t, time.Now().Add(-time.Hour)), "ask for a new one", exitRefused},
	} {
		t.Run(test.what, func(t *testing.T) {
			h := *b
			h.t = t
			h.refused(test.code, test.words, "accept", test.link)
		})
	}
	a.refused(exitRefused, "your own", "accept", link)
	b.refused(exitUsage, "--name", "accept", link, "ann")
	for _, h := range []*home{a, b} {
		if out := h.must("contacts", "--json"); out != "[]\n" {
			t.Errorf("a refused invite left %s", out)
		}
	}
	// After all that the link still works, once.
	b.must("accept", link, "--name", "ann", "--wait", "--timeout", "60s")
	b.refused(exitRefused, "already a contact", "accept", link)
	var invites []struct {
		State string
		Uses  int
	}
	a.until("the invite is used", func() bool {
		a.decode(&invites, "invites")
		return len(invites) == 1 && invites[0].State == "used" && invites[0].Uses == 1
	})
	c := n.person("c", "cid")
	c.refused(exitTimeout, "", "accept", link, "--name", "ann", "--wait", "--timeout", "2s")
	if a.onlyContact() == "" {
		t.Error("a used invite made another contact")
	}

	// Whoever asks for a new one gets in by it, with what was written meanwhile.
	c.must("send", "ann", "is anybody there")
	c.must("accept", a.invite("--name", "cid"), "--wait", "--timeout", "60s")
	c.must("send", "ann", "you are", "--wait", "delivered", "--timeout", "60s")
	var texts []string
	for _, m := range a.read("cid") {
		texts = append(texts, m.Text)
	}
	if got := strings.Join(texts, "|"); got != "is anybody there|you are" {
		t.Errorf("after the second invite ann reads %q", got)
	}
}

func TestBadText(t *testing.T) {
	n := newNetwork(t)
	a, b := n.pair("ann", "ben")
	for _, test := range []struct{ what, text, words string }{
		{"70 kB", strings.Repeat("x", 70_000), "70000"},
		{"one byte too long", strings.Repeat("x", protocol.MaxText+1), fmt.Sprint(protocol.MaxText)},
		{"an escape sequence", "red \x1b[31malert", "U+001B"},
		{"a carriage return", "over\rwritten", "U+000D"},
		{"NUL", "a\x00b", "U+0000"},
		{"C1", "a\u009b31m", "U+009B"},
		{"no UTF-8", "a\xffb", "UTF-8"},
		{"nothing", "", "empty"},
	} {
		t.Run(test.what, func(t *testing.T) {
			h := *a
			h.t = t
			h.refused(exitUsage, test.words, "send", "ben", test.text)
			lines := "good\n" + test.text + "\nnever sent\n"
			if strings.ContainsAny(test.text, "\r") || test.text == "" {
				return // in a file these are ends of lines
			}
			code, _, stderr := cli(t, lines, "--home", a.dir, "-q", "send", "ben", "--stdin")
			if code != exitUsage || strings.Count(stderr, "\n") != 1 || !strings.Contains(stderr, "1 line") {
				t.Errorf("send --stdin: exit %d, %q", code, stderr)
			}
		})
	}
	a.refused(exitNotFound, "kith contacts", "send", "nobody", "hi")
	a.refused(exitNotFound, "kith contacts", "read", "nobody")
	a.refused(exitNotFound, "kith read", "trace", "0123456789abcdef")
	longest := strings.Repeat("ü", protocol.MaxText/2)
	a.must("send", "ben", longest, "--wait", "delivered", "--timeout", "60s")
	a.must("send", "ben", "tabs\tand\nlines are fine", "--wait", "delivered", "--timeout", "60s")
	var got []string
	for _, m := range b.read("ann")[2:] {
		if m.Text != "good" {
			got = append(got, m.Text)
		}
	}
	if len(got) != 2 || got[0] != longest || got[1] != "tabs\tand\nlines are fine" {
		t.Errorf("%d texts arrived, the first with %d bytes", len(got), len(strings.Join(got[:1], "")))
	}
}

// TestAmbiguousName has more contacts than letters to begin an id with.
func TestAmbiguousName(t *testing.T) {
	n := newNetwork(t)
	a := n.person("a", "ann")
	const letters = 32
	var accepting sync.WaitGroup
	for range letters + 1 {
		link := stranger(t, time.Now().Add(time.Hour))
		accepting.Go(func() { a.cli("accept", link, "--timeout", "1s") })
	}
	accepting.Wait()
	var list []contactJSON
	a.decode(&list, "contacts")
	if len(list) != letters+1 {
		t.Fatalf("there are %d contacts, want %d", len(list), letters+1)
	}
	byLetter := map[string][]contactJSON{}
	for _, c := range list {
		byLetter[c.ID[:1]] = append(byLetter[c.ID[:1]], c)
	}
	for letter, fits := range byLetter {
		if len(fits) < 2 {
			continue
		}
		for _, c := range fits {
			a.refused(exitUsage, c.ID, "send", letter, "hi")
		}
		a.refused(exitUsage, "several", "read", letter)
		break
	}
}
