package main

import (
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

// commandLine is what may be a command line of kith in a sentence: the word, and words
// behind it of which the first are perhaps the names of commands.
var commandLine = regexp.MustCompile("(^|[ (`])kith((?: [a-z][a-z-]*)+)")

// homeless are commands that are the same whatever home they are told.
var homeless = []string{"help", "version", "completion", "demo"}

// here has the commands that a hint names act on the home and the daemon of this
// command, so that they can be copied: what names no home means the default one.
// Those that somebody else ran, or that name a home or a page of help already, stay
// as they are.
func (k *kith) here(hint string) string {
	if k.home == "" && k.socket == "" || k.commands == nil {
		return hint
	}
	var out strings.Builder
	for hint != "" {
		m := commandLine.FindStringSubmatchIndex(hint)
		if m == nil {
			break
		}
		end := m[1]
		command, length := k.named(strings.Fields(hint[m[4]:m[5]]))
		if command == nil {
			out.WriteString(hint[:end])
			hint = hint[end:]
			continue
		}
		end = m[4] + length
		clause := end + strings.IndexAny(hint[end:]+";", ",;")
		out.WriteString(hint[:end])
		if !strings.HasSuffix(hint[:m[0]], "that") && !namesHome(hint[end:clause]) {
			out.WriteString(k.at())
		}
		out.WriteString(hint[end:clause])
		hint = hint[clause:]
	}
	return out.String() + hint
}

// named returns the command that words begin with, if it is one that acts on a
// home, and how long its name is, with a space before each word.
func (k *kith) named(words []string) (command *cobra.Command, length int) {
	at := k.commands
	for _, w := range words {
		i := slices.IndexFunc(at.Commands(), func(c *cobra.Command) bool { return c.Name() == w })
		if i < 0 || at == k.commands && slices.Contains(homeless, w) {
			break
		}
		at = at.Commands()[i]
		command, length = at, length+len(" ")+len(w)
	}
	return command, length
}

// namesHome says whether the rest of a command line names the home or the daemon
// itself, or asks for help alone.
func namesHome(rest string) bool {
	return slices.ContainsFunc(strings.Fields(rest), func(w string) bool {
		return w == "--home" || w == "--api" || w == "--help"
	})
}
