package api

import (
	"strings"
	"testing"

	apiv1 "github.com/kith-im/kith/node/api/v1"
	"github.com/kith-im/kith/protocol"
)

func TestCheck(t *testing.T) {
	text := func(s string) *apiv1.SendRequest { return &apiv1.SendRequest{Conversation: "bob", Texts: []string{s}} }
	long := func(n int) string { return strings.Repeat("x", n) }
	for _, test := range []struct {
		name string
		req  any
		ok   bool
	}{
		{"one letter", text("x"), true},
		{"lines and tabs", text("a\n\tb"), true},
		{"right to left", text("\u202bשלום\u202c"), true},
		{"longest text", text(long(protocol.MaxText)), true},
		{"too long a text", text(long(protocol.MaxText + 1)), false},
		{"seventy kilobytes", text(long(70_000)), false},
		{"empty text", text(""), false},
		{"escape", text("\x1b[31mred"), false},
		{"zero", text("a\x00b"), false},
		{"carriage return", text("a\rb"), false},
		{"delete", text("a\x7f"), false},
		{"C1", text("a\u009b31m"), false},
		{"no UTF-8", text("a\xff"), false},
		{"no texts", &apiv1.SendRequest{Conversation: "bob"}, false},
		{"no conversation", &apiv1.SendRequest{Texts: []string{"x"}}, false},
		{"too many texts", &apiv1.SendRequest{Conversation: "bob", Texts: make([]string, MaxTexts+1)}, false},
		{"one bad text of two", &apiv1.SendRequest{Conversation: "bob", Texts: []string{"x", "\x07"}}, false},
		{"reply with two texts", &apiv1.SendRequest{Conversation: "bob", Texts: []string{"x", "y"}, ReplyTo: "1"}, false},
		{"reply", &apiv1.SendRequest{Conversation: "bob", Texts: []string{"x"}, ReplyTo: "1"}, true},
		{"long key", &apiv1.SendRequest{Conversation: "bob", Texts: []string{"x"}, IdempotencyKey: long(MaxKey + 1)}, false},
		{"negative expiry", &apiv1.SendRequest{Conversation: "bob", Texts: []string{"x"}, ExpireS: -1}, false},
		{"expiry in two years", &apiv1.SendRequest{Conversation: "bob", Texts: []string{"x"}, ExpireS: 2 * maxLifetime}, false},
		{"id with escape", &apiv1.TraceRequest{Id: "\x1b]52;c;x\x07"}, false},
		{"long id", &apiv1.TraceRequest{Id: long(MaxRef + 1)}, false},
		{"no id", &apiv1.CancelRequest{}, false},
		{"rename", &apiv1.RenameContactRequest{Contact: "bob", Name: "Bob Müller 🙂"}, true},
		{"rename to nothing", &apiv1.RenameContactRequest{Contact: "bob", Name: " "}, false},
		{"rename with direction", &apiv1.RenameContactRequest{Contact: "bob", Name: "\u202ebob"}, false},
		{"rename with line", &apiv1.RenameContactRequest{Contact: "bob", Name: "bob\nalice"}, false},
		{"long name", &apiv1.RenameContactRequest{Contact: "bob", Name: long(MaxName + 1)}, false},
		{"invite", &apiv1.CreateInviteRequest{}, true},
		{"invite for a year", &apiv1.CreateInviteRequest{ExpiresS: maxLifetime}, true},
		{"invite for a century", &apiv1.CreateInviteRequest{ExpiresS: 100 * 366 * 24 * 3600}, false},
		{"accept nothing", &apiv1.AcceptInviteRequest{}, false},
		{"accept a novel", &apiv1.AcceptInviteRequest{Link: long(MaxLink + 1)}, false},
		{"last", &apiv1.ListMessagesRequest{Conversation: "bob", Last: MaxPage}, true},
		{"too many", &apiv1.ListMessagesRequest{Conversation: "bob", Last: MaxPage + 1}, false},
		{"both sides", &apiv1.ListMessagesRequest{Conversation: "bob", Since: "1", Before: "2"}, false},
		{"cursor", &apiv1.WatchEventsRequest{Cursor: "weather-bot", From: "start"}, true},
		{"cursor with slash", &apiv1.WatchEventsRequest{Cursor: "../x"}, false},
		{"cursor and id", &apiv1.WatchEventsRequest{Cursor: "x", After: 1}, false},
		{"odd from", &apiv1.WatchEventsRequest{From: "yesterday"}, false},
		{"poll for a day", &apiv1.ListEventsRequest{WaitMs: 24 * 3600 * 1000}, false},
		{"negative limit", &apiv1.ListEventsRequest{Limit: -1}, false},
		{"cursor and id of a poll", &apiv1.ListEventsRequest{Cursor: "x", After: 1}, false},
		{"acknowledge nowhere", &apiv1.AckEventsRequest{Id: 1}, false},
		{"add a mailbox", &apiv1.AddMailboxRequest{Address: "/ip4/10.0.0.1/tcp/4040/p2p/x"}, true},
		{"add nothing", &apiv1.AddMailboxRequest{}, false},
		{"add a novel", &apiv1.AddMailboxRequest{Address: long(maxAddress + 1)}, false},
		{"add an escape", &apiv1.AddMailboxRequest{Address: "/ip4/\x1b[2J"}, false},
		{"remove a mailbox", &apiv1.RemoveMailboxRequest{Id: "1a2b3c4d"}, true},
		{"remove none", &apiv1.RemoveMailboxRequest{}, false},
		{"test all mailboxes", &apiv1.TestMailboxRequest{}, true},
		{"test an escape", &apiv1.TestMailboxRequest{Id: "\x07"}, false},
		{"bundle for all", &apiv1.ExportBundleRequest{}, true},
		{"bundle for some", &apiv1.ExportBundleRequest{Contacts: []string{"bob"}, Invites: []string{"ab"}, Size: 1 << 20}, true},
		{"bundle for nobody", &apiv1.ExportBundleRequest{Contacts: []string{""}}, false},
		{"bundle of no invite", &apiv1.ExportBundleRequest{Invites: []string{"\x1b"}}, false},
		{"bundle for too many", &apiv1.ExportBundleRequest{Contacts: make([]string, maxBundleNames+1)}, false},
		{"bundle of a terabyte", &apiv1.ExportBundleRequest{Size: 1 << 40}, false},
		{"invites on paper", &apiv1.ExportBundleRequest{Invites: []string{"ab"}, Text: true}, false},
		{"entries", &apiv1.NoteBundleRequest{Entries: make([]int64, MaxBundleEntries)}, true},
		{"too many entries", &apiv1.NoteBundleRequest{Entries: make([]int64, MaxBundleEntries+1)}, false},
		{"change nothing", &apiv1.SetNodeRequest{}, false},
		{"change nothing of the limits", &apiv1.SetNodeRequest{Limits: &apiv1.NodeLimits{}}, false},
		{"drain", &apiv1.SetNodeRequest{Draining: new(bool)}, true},
		{"quota", &apiv1.SetNodeRequest{Limits: &apiv1.NodeLimits{Quota: 5e9}}, true},
		{"negative quota", &apiv1.SetNodeRequest{Limits: &apiv1.NodeLimits{Quota: -1}}, false},
		{"tiny quota", &apiv1.SetNodeRequest{Limits: &apiv1.NodeLimits{Quota: 1}}, false},
		{"box below an envelope", &apiv1.SetNodeRequest{Limits: &apiv1.NodeLimits{BoxQuota: protocol.MaxEnvelope - 1}}, false},
		{"retention of an age", &apiv1.SetNodeRequest{Limits: &apiv1.NodeLimits{RetentionS: maxRetention + 1}}, false},
		{"one good and one bad limit", &apiv1.SetNodeRequest{Limits: &apiv1.NodeLimits{Quota: 5e9, BoxTags: -5}}, false},
		{"status", &apiv1.StatusRequest{}, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			err := check(test.req)
			if (err == nil) != test.ok {
				t.Fatalf("check = %v, want ok %v", err, test.ok)
			}
			if err != nil && (err.Code != CodeUsage || err.Hint == "" || !isPrintable(err.Message)) {
				t.Errorf("the error is %#v, want a usage error with a hint", err)
			}
			if err != nil && strings.HasPrefix(err.Message, "the expiry") && !strings.HasSuffix(err.Message, " days") {
				t.Errorf("%q: nobody counts a year in seconds", err.Message)
			}
		})
	}
}

// FuzzCheckText holds that what passes is harmless on a terminal and short
// enough to travel.
func FuzzCheckText(f *testing.F) {
	for _, s := range []string{"", "hi", "a\n\tb", "\x1b[2J", "\u009b", "\xff", "🙂", "\u202e"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if CheckText(s) != nil {
			return
		}
		if s == "" || len(s) > protocol.MaxText {
			t.Fatalf("%d bytes passed", len(s))
		}
		if strings.ToValidUTF8(s, "") != s {
			t.Fatal("bad UTF-8 passed")
		}
		if strings.ContainsFunc(s, func(c rune) bool { return isControl(c) && c != '\n' && c != '\t' }) {
			t.Fatalf("a control character passed in %q", s)
		}
	})
}
