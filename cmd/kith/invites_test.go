package main

import (
	"strings"
	"testing"
	"time"

	"rsc.io/qr"

	"github.com/kith-im/kith/node/api"
)

func TestHalfBlocks(t *testing.T) {
	text := "kith:" + strings.Repeat("abcdefgh", 20)
	drawn, err := halfBlocks(text)
	if err != nil {
		t.Fatal(err)
	}
	code, err := qr.Encode(text, qr.M)
	if err != nil {
		t.Fatal(err)
	}
	const quiet = 2
	for y, line := range strings.Split(strings.TrimRight(drawn, "\n"), "\n") {
		cells := []rune(line)
		if len(cells) != code.Size+2*quiet {
			t.Fatalf("line %d is %d wide, want %d", y, len(cells), code.Size+2*quiet)
		}
		for x, c := range cells {
			top := c == '█' || c == '▀'
			bottom := c == '█' || c == '▄'
			if top == code.Black(x-quiet, 2*y-quiet) {
				t.Fatalf("module %d,%d is wrong", x, 2*y)
			}
			if 2*y+1 < code.Size+2*quiet && bottom == code.Black(x-quiet, 2*y+1-quiet) {
				t.Fatalf("module %d,%d is wrong", x, 2*y+1)
			}
		}
	}
	if _, err := halfBlocks(strings.Repeat("x", 5000)); err == nil {
		t.Error("5,000 bytes fit into a QR code")
	}
}

func TestParseLife(t *testing.T) {
	for s, want := range map[string]time.Duration{"7d": 168 * time.Hour, "12h": 12 * time.Hour, "90m": 90 * time.Minute, "1s": time.Second} {
		if got, err := parseLife("--expires", s); err != nil || got != want {
			t.Errorf("parseLife(%q) = %v, %v, want %v", s, got, err, want)
		}
	}
	for _, s := range []string{"", "d", "0d", "-1d", "1.5d", "99999999d", "366d", "9999999h", "0s", "-5m", "500ms", "soon", "7 d"} {
		if got, err := parseLife("--expires", s); err == nil {
			t.Errorf("parseLife(%q) = %v, want an error", s, got)
		}
	}
}

// TestAcceptBrokenLink takes a link as mail may have broken it.
func TestAcceptBrokenLink(t *testing.T) {
	for _, args := range [][]string{{"kith:abc"}, {" kith:a", "b", "c"}, {"kith:a\r\n b\tc\n"}, {"kith:\u00a0abc"}} {
		b := &teller{name: "bob"}
		home := serve(t, b)
		if code, _, stderr := cli(t, "", append([]string{"--home", home, "accept"}, args...)...); code != 0 || b.link != "kith:abc" {
			t.Errorf("%q: exit %d, stderr %q, accepted %q", args, code, stderr, b.link)
		}
	}
}

// TestAcceptRefused says nothing about looking where nobody was looked for.
func TestAcceptRefused(t *testing.T) {
	home := serve(t, &teller{fail: &api.Error{Code: api.CodeUsage, Message: "this is no link", Hint: "copy it again"}})
	if _, _, stderr := cli(t, "", "--home", home, "accept", "kith:x"); stderr != "kith: this is no link; copy it again\n" {
		t.Errorf("stderr %q", stderr)
	}
}

func TestRequests(t *testing.T) {
	home := serve(t, &teller{name: "bob"})
	if _, stdout, _ := cli(t, "", "--home", home, "requests"); !strings.Contains(stdout, "bob and has not written yet") {
		t.Errorf("a request without a text: %q", stdout)
	}
	home = serve(t, &teller{fail: &api.Error{Code: api.CodeNotFound, Message: "there is no contact", Hint: "kith contacts"}})
	for _, verb := range []string{"approve", "reject"} {
		if code, _, stderr := cli(t, "", "--home", home, verb, "zzz"); code != exitNotFound || !strings.Contains(stderr, `"zzz"; kith requests`) {
			t.Errorf("kith %s: exit %d, %q", verb, code, stderr)
		}
	}
}

func TestInGroups(t *testing.T) {
	got := inGroups(strings.Repeat("12345 ", 12))
	want := strings.TrimSuffix(strings.Repeat("12345 ", 6), " ") + "\n" + strings.TrimSuffix(strings.Repeat("12345 ", 6), " ")
	if got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
