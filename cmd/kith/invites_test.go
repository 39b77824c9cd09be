package main

import (
	"strings"
	"testing"
	"time"

	"rsc.io/qr"
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
		if got, err := parseLife(s); err != nil || got != want {
			t.Errorf("parseLife(%q) = %v, %v, want %v", s, got, err, want)
		}
	}
	for _, s := range []string{"", "d", "0d", "-1d", "1.5d", "99999999d", "0s", "-5m", "500ms", "soon", "7 d"} {
		if got, err := parseLife(s); err == nil {
			t.Errorf("parseLife(%q) = %v, want an error", s, got)
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
