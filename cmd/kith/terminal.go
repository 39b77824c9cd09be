package main

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
	"unicode/utf8"
)

// What comes from the network is shown to people by this file alone: names,
// texts and whatever else others chose go through clean or cleanText before
// they reach a terminal, which would otherwise obey the escape sequences in
// them (move the cursor, fill the clipboard, answer as if typed).

// harmful reports characters that act instead of being seen: C0, DEL and C1
// controls, line and paragraph separators, bidirectional controls, and the
// invisible tag characters.
func harmful(c rune) bool {
	return c < 0x20 || c >= 0x7f && c < 0xa0 || c == 0x2028 || c == 0x2029 ||
		unicode.Is(unicode.Bidi_Control, c) || c >= 0xe0000 && c <= 0xe007f
}

// clean returns s fit for one line of a terminal: harmful characters appear as
// <U+001B>, bytes that are no UTF-8 as the replacement character. The implicit
// direction marks, which are invisible in honest text, are left out.
func clean(s string) string {
	safe := true
	for _, c := range s {
		if harmful(c) || c == utf8.RuneError {
			safe = false
			break
		}
	}
	if safe {
		return s
	}
	var b strings.Builder
	for _, c := range s {
		switch {
		case c == 0x200e || c == 0x200f || c == 0x061c:
		case harmful(c):
			fmt.Fprintf(&b, "<U+%04X>", c)
		default:
			b.WriteRune(c)
		}
	}
	return b.String()
}

// cleanText is clean for a text of several lines: each line after the first
// begins with indent, so that no line of a text can pass for a line of ours.
func cleanText(s, indent string) string {
	lines := strings.Split(s, "\n")
	for i, l := range lines {
		lines[i] = clean(strings.ReplaceAll(strings.TrimSuffix(l, "\r"), "\t", "    "))
	}
	return strings.Join(lines, "\n"+indent)
}

// cleanJSON escapes in encoded JSON what encoding/json leaves as it is and a
// terminal might obey. Such characters only occur inside strings, where an
// escape means the same.
func cleanJSON(b []byte) []byte {
	if bytes.IndexFunc(b, harmful) < 0 {
		return b
	}
	out := make([]byte, 0, len(b)+64)
	for _, c := range string(b) {
		switch {
		case !harmful(c):
			out = utf8.AppendRune(out, c)
		case c > 0xffff:
			high := (c - 0x10000) >> 10
			out = fmt.Appendf(out, `\u%04x\u%04x`, 0xd800+high, 0xdc00+(c-0x10000)&0x3ff)
		default:
			out = fmt.Appendf(out, `\u%04x`, c)
		}
	}
	return out
}

// table writes rows in aligned columns. The cells are cleaned here.
func table(w io.Writer, rows ...[]string) {
	t := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	for _, row := range rows {
		for i, cell := range row {
			if i > 0 {
				io.WriteString(t, "\t")
			}
			io.WriteString(t, clean(cell))
		}
		io.WriteString(t, "\n")
	}
	t.Flush()
}

// clock shows a time of the API as a person wants it: the time today, the
// date before.
func clock(ms int64) string {
	if ms == 0 {
		return "-"
	}
	t := time.UnixMilli(ms)
	now := time.Now()
	switch {
	case t.Year() == now.Year() && t.YearDay() == now.YearDay():
		return t.Format("15:04:05")
	case t.Year() == now.Year():
		return t.Format("Jan 2 15:04")
	}
	return t.Format("2006-01-02 15:04")
}

// were counts things that something was done to: were(2, "line") is "2 lines
// were".
func were(n int, thing string) string {
	if n == 1 {
		return "1 " + thing + " was"
	}
	return plural(n, thing) + " were"
}

// plural counts things: plural(2, "text") is "2 texts".
func plural(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	if strings.HasSuffix(thing, "s") {
		return fmt.Sprintf("%d %ses", n, thing)
	}
	return fmt.Sprintf("%d %ss", n, thing)
}
