package main

import (
	"encoding/json"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

// attacks are strings that do something to a terminal that prints them.
var attacks = []string{
	"\x1b[2J\x1b[H",                  // clear the screen
	"\x1b]52;c;ZXZpbA==\x07",         // OSC 52: fill the clipboard
	"\x1b]0;title\x1b\\",             // set the title
	"\x1b[6n",                        // make the terminal answer
	"\u009b31mred",                   // CSI as one C1 character
	"\x9b31mred",                     // CSI as one byte: no UTF-8
	"\u0085next line",                // C1 NEL
	"safe\rEVIL",                     // overwrite the line
	"a\bb\x7fc",                      // backspace, delete
	"bell\x07 null\x00 so\x0e",       // more C0
	"two\nlines",                     // forge a line
	"para\u2029graph line\u2028sep",  // separators some terminals break at
	"\u202etxt.exe\u202c",            // right-to-left override
	"\u2066isolate\u2069 \u200fmark", // isolates and marks
	"tag\U000e0041\U000e007f",        // invisible tag characters
	"\xed\xa0\x80 surrogate \xff",    // bad UTF-8
}

// acts reports characters a terminal may obey, from Unicode's own categories: a
// second opinion on harmful.
func acts(c rune) bool {
	return unicode.Is(unicode.Cc, c) || unicode.Is(unicode.Zl, c) || unicode.Is(unicode.Zp, c) ||
		unicode.Is(unicode.Bidi_Control, c) || c>>7 == 0xe0000>>7
}

func TestH15_Clean(t *testing.T) {
	for _, s := range attacks {
		for name, got := range map[string]string{"clean": clean(s), "cleanText": cleanText(s, "    "), "oneLine": clean(oneLine(s))} {
			if name == "cleanText" {
				got = strings.ReplaceAll(got, "\n    ", "")
			}
			if strings.ContainsFunc(got, acts) || !utf8.ValidString(got) {
				t.Errorf("%s(%q) = %q", name, s, got)
			}
		}
	}
	for _, s := range []string{"", "plain", "Grüße, 世界", "שלום עולם", "مرحبا", "👩‍👩‍👧 ❤️", "é as e\u0301", "می\u200cخواهم"} {
		if got := clean(s); got != s {
			t.Errorf("clean(%q) = %q, want it unchanged", s, got)
		}
	}
	for s, want := range map[string]string{
		"\x1b[2J":          "<U+001B>[2J",
		"a\u200fb":         "ab",
		"\u202eb":          "<U+202E>b",
		"bad \xff utf-8":   "bad \ufffd utf-8",
		"one\ntwo\tthree":  "one<U+000A>two<U+0009>three",
		"\U000e0041nobody": "<U+E0041>nobody",
	} {
		if got := clean(s); got != want {
			t.Errorf("clean(%q) = %q, want %q", s, got, want)
		}
	}
	if got, want := cleanText("one\r\n\ttwo\n\x1bthree", "  "), "one\n      two\n  <U+001B>three"; got != want {
		t.Errorf("cleanText = %q, want %q", got, want)
	}
}

func TestH15_JSON(t *testing.T) {
	for _, s := range attacks {
		b, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		got := cleanJSON(b)
		if strings.ContainsFunc(string(got), acts) {
			t.Errorf("cleanJSON(%q) = %q", b, got)
		}
		var back, want string
		if json.Unmarshal(b, &want) != nil || json.Unmarshal(got, &back) != nil || back != want {
			t.Errorf("cleanJSON(%q) means %q, want %q", b, back, want)
		}
	}
}

func FuzzClean(f *testing.F) {
	for _, s := range attacks {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got := clean(s)
		if strings.ContainsFunc(got, acts) || !utf8.ValidString(got) {
			t.Fatalf("clean(%q) = %q", s, got)
		}
		if again := clean(got); again != got {
			t.Fatalf("clean is not stable: %q, then %q", got, again)
		}
		text := cleanText(s, "\u00a0")
		for i, line := range strings.Split(text, "\n") {
			if strings.ContainsFunc(line, acts) || i > 0 && !strings.HasPrefix(line, "\u00a0") {
				t.Fatalf("cleanText(%q) has the line %q", s, line)
			}
		}
	})
}

func FuzzCleanJSON(f *testing.F) {
	for _, s := range attacks {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		b, err := json.Marshal(map[string]string{s: s})
		if err != nil {
			t.Skip()
		}
		got := cleanJSON(b)
		if strings.ContainsFunc(string(got), acts) {
			t.Fatalf("cleanJSON(%q) = %q", b, got)
		}
		var want, back map[string]string
		if err := json.Unmarshal(b, &want); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(got, &back); err != nil {
			t.Fatalf("cleanJSON(%q) = %q: %v", b, got, err)
		}
		for k, v := range want {
			if back[k] != v {
				t.Fatalf("%q became %q", want, back)
			}
		}
	})
}
