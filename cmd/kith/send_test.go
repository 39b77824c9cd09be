package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/kith-im/kith/node/api"
	apiv1 "github.com/kith-im/kith/node/api/v1"
	"github.com/kith-im/kith/protocol"
)

func TestSendLines(t *testing.T) {
	b := &teller{name: "bob"}
	home := serve(t, b)
	var in strings.Builder
	var want []string
	for i := range 1000 {
		want = append(want, fmt.Sprintf("text %d", i))
		fmt.Fprintf(&in, "text %d\n", i)
		if i%10 == 0 {
			in.WriteString("\n") // left out
		}
	}
	code, stdout, stderr := cli(t, in.String(), "--home", home, "--json", "send", "bob", "--stdin")
	if code != 0 {
		t.Fatalf("exit %d: %s", code, stderr)
	}
	var got []string
	for _, req := range b.sent {
		if len(req.Texts) > api.MaxTexts {
			t.Errorf("a request has %d texts", len(req.Texts))
		}
		got = append(got, req.Texts...)
	}
	if strings.Join(got, "|") != strings.Join(want, "|") {
		t.Errorf("%d texts were sent, want %d in their order", len(got), len(want))
	}
	out := json.NewDecoder(strings.NewReader(stdout))
	for i := 0; ; i++ {
		var m struct{ ID, State string }
		if err := out.Decode(&m); err == io.EOF {
			if i != len(want) {
				t.Errorf("%d lines were printed, want %d", i, len(want))
			}
			break
		} else if err != nil || i >= len(want) || m.ID != "id of "+want[i] || m.State != "queued" {
			t.Fatalf("line %d is %+v, %v", i, m, err)
		}
	}
}

func TestSendPrints(t *testing.T) {
	home := serve(t, &teller{name: "bob"})
	for _, test := range []struct{ stdin, args, want string }{
		{"", "send bob hi", "id of hi  queued\n"},
		{"", "send bob hi -q", ""},
		{"one\n\ntwo\n", "send bob --stdin", "id of one  queued\nid of two  queued\n"},
		{"one\n\ntwo\n", "send bob --stdin -q", ""},
		{"", "send bob --stdin", ""},
	} {
		code, stdout, stderr := cli(t, test.stdin, append([]string{"--home", home}, strings.Fields(test.args)...)...)
		if code != 0 || stdout != test.want || stderr != "" {
			t.Errorf("kith %s of %q: exit %d, stdout %q, stderr %q, want %q", test.args, test.stdin, code, stdout, stderr, test.want)
		}
	}
}

func TestSendLinesIdempotently(t *testing.T) {
	b := &teller{name: "bob"}
	home := serve(t, b)
	in := strings.Repeat("x\n", api.MaxTexts+3)
	for range 2 {
		if code, _, stderr := cli(t, in, "--home", home, "send", "bob", "--stdin", "--idempotency-key", "job"); code != 0 {
			t.Fatal(stderr)
		}
	}
	for i, want := range []struct {
		key   string
		texts int
	}{{"job/0", api.MaxTexts}, {"job/1", 3}, {"job/0", api.MaxTexts}, {"job/1", 3}} {
		if i >= len(b.sent) || b.sent[i].IdempotencyKey != want.key || len(b.sent[i].Texts) != want.texts {
			t.Fatalf("request %d is not %+v", i, want)
		}
	}
}

func TestLinesAtHand(t *testing.T) {
	// A line that is there does not wait for the next one.
	typed := &lineReader{lines: make(chan string, 1)}
	typed.lines <- "x"
	if got, err := typed.next(t.Context(), false); len(got) != 1 || err != nil {
		t.Errorf("next = %d lines, %v, want the one at hand", len(got), err)
	}
	// Unless requests must be full: these lines are never at hand.
	slow := &lineReader{lines: make(chan string)}
	go func() {
		for range api.MaxTexts + 1 {
			slow.lines <- "x"
		}
		close(slow.lines)
	}()
	if got, err := slow.next(t.Context(), true); len(got) != api.MaxTexts || err != nil {
		t.Errorf("next = %d lines, %v, want %d", len(got), err, api.MaxTexts)
	}
	if got, err := slow.next(t.Context(), true); len(got) != 1 || !errors.Is(err, io.EOF) {
		t.Errorf("next = %d lines, %v, want the last one", len(got), err)
	}
}

func TestSendBadLine(t *testing.T) {
	for _, test := range []struct{ name, line, want string }{
		{"control character", "a\x1b[2J", "line 3"},
		{"no UTF-8", "a\xff", "line 3"},
		{"too long", strings.Repeat("x", protocol.MaxText+1), "line 3"},
		{"far too long", strings.Repeat("x", 3*protocol.MaxText), "line is longer"},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := &teller{name: "bob"}
			home := serve(t, b)
			code, _, stderr := cli(t, "one\ntwo\n"+test.line+"\nfour\n", "--home", home, "send", "bob", "--stdin")
			if code != exitUsage || !strings.Contains(stderr, test.want) || !strings.Contains(stderr, "2 lines were sent") || strings.Count(stderr, "\n") != 1 {
				t.Errorf("exit %d, stderr %q", code, stderr)
			}
			n := 0
			for _, req := range b.sent {
				n += len(req.Texts)
			}
			if n != 2 {
				t.Errorf("%d lines were sent, want the two before", n)
			}
		})
	}
	b := &teller{name: "bob"}
	home := serve(t, b)
	if _, _, stderr := cli(t, "one\na\x07\n", "--home", home, "send", "bob", "--stdin"); !strings.Contains(stderr, "1 line was sent") {
		t.Errorf("after one line: %q", stderr)
	}
	b.sent = nil
	for _, bad := range []string{"", "a\x07", strings.Repeat("x", 70_000)} {
		if code, _, stderr := cli(t, "", "--home", home, "send", "bob", "--", bad); code != exitUsage || strings.Count(stderr, "\n") != 1 {
			t.Errorf("text of %d bytes: exit %d, stderr %q", len(bad), code, stderr)
		}
	}
	if len(b.sent) != 0 {
		t.Error("a bad text was sent")
	}
}

func TestSendWait(t *testing.T) {
	event := func(id, state string) *apiv1.Event {
		return &apiv1.Event{Id: 1, Type: "ledger", Data: fmt.Sprintf(`{"id":%q,"state":%q,"reason":"because"}`, id, state)}
	}
	for _, test := range []struct {
		name   string
		wait   string
		events []*apiv1.Event
		code   int
		want   string // the state printed
	}{
		{"delivered", "delivered", []*apiv1.Event{event("id of hi", "sent"), event("id of hi", "delivered")}, 0, "delivered"},
		{"held", "held", []*apiv1.Event{event("id of hi", "held")}, 0, "held"},
		{"not yet held", "held", []*apiv1.Event{event("id of hi", "sent")}, exitTimeout, "sent"},
		{"held is not delivered", "delivered", []*apiv1.Event{event("id of hi", "held")}, exitTimeout, "held"},
		{"beyond", "held", []*apiv1.Event{event("id of hi", "read")}, 0, "read"},
		{"others' messages", "delivered", []*apiv1.Event{event("x", "failed"), event("id of hi", "delivered")}, 0, "delivered"},
		{"failed", "delivered", []*apiv1.Event{event("id of hi", "failed")}, exitRefused, "failed"},
		{"cancelled", "sent", []*apiv1.Event{event("id of hi", "cancelled")}, exitRefused, "cancelled"},
		{"not in time", "delivered", []*apiv1.Event{event("id of hi", "sent")}, exitTimeout, "sent"},
	} {
		t.Run(test.name, func(t *testing.T) {
			home := serve(t, &teller{name: "bob", events: test.events})
			code, stdout, stderr := cli(t, "", "--home", home, "--json", "send", "bob", "hi", "--wait", test.wait, "--timeout", "300ms")
			var m struct{ State string }
			if err := json.Unmarshal([]byte(stdout), &m); err != nil || code != test.code || m.State != test.want {
				t.Errorf("exit %d, stdout %q, stderr %q, want exit %d and %s", code, stdout, stderr, test.code, test.want)
			}
		})
	}
}

// TestSendLinesHeld: a batch waits for each of its lines.
func TestSendLinesHeld(t *testing.T) {
	event := func(id, state string) *apiv1.Event {
		return &apiv1.Event{Id: 1, Type: "ledger", Data: fmt.Sprintf(`{"id":%q,"state":%q}`, id, state)}
	}
	for _, test := range []struct {
		name   string
		events []*apiv1.Event
		code   int
		want   string
	}{
		{"all", []*apiv1.Event{event("id of one", "held"), event("id of two", "delivered")}, 0, "id of one  held\nid of two  delivered\n"},
		{"one of two", []*apiv1.Event{event("id of one", "held")}, exitTimeout, "id of one  held\nid of two  queued\n"},
		{"one expired", []*apiv1.Event{event("id of one", "expired"), event("id of two", "held")}, exitRefused, "id of one  expired\n"},
	} {
		home := serve(t, &teller{name: "bob", events: test.events})
		code, stdout, stderr := cli(t, "one\ntwo\n", "--home", home, "send", "bob", "--stdin", "--wait", "held", "--timeout", "300ms")
		if code != test.code || stdout != test.want {
			t.Errorf("%s: exit %d, stdout %q, stderr %q, want exit %d and %q", test.name, code, stdout, stderr, test.code, test.want)
		}
	}
}

// traced is a teller whose trace knows of attempts.
type traced struct {
	*teller
	attempts []*apiv1.Attempt
	told     int32 // mailboxes of the contact
}

func (b traced) Trace(context.Context, *apiv1.TraceRequest) (*apiv1.TraceResponse, error) {
	return &apiv1.TraceResponse{Message: b.message(), Devices: []*apiv1.Delivery{{Attempts: b.attempts, Mailboxes: b.told}}}, nil
}

// TestSendLate: who waits in vain for mailboxes is told what they said.
func TestSendLate(t *testing.T) {
	attempt := func(road, result string) *apiv1.Attempt { return &apiv1.Attempt{Road: road, Result: result} }
	for _, test := range []struct {
		attempts []*apiv1.Attempt
		told     int32
		wait     string
		code     int
		want     string
	}{
		{nil, 0, "held", exitTimeout, "was left at no mailbox: bob has told of none; it is delivered when both are online"},
		{[]*apiv1.Attempt{attempt("direct", "unreachable")}, 3, "held", exitTimeout, "was left at no mailbox yet; bob has told of 3; this is tried again by itself"},
		{[]*apiv1.Attempt{attempt("mailbox", "the mailbox is full"), attempt("direct", "unreachable")}, 3, "held", exitQuota, "not yet held: the mailbox is full; "},
		{[]*apiv1.Attempt{attempt("mailbox", "the mailbox is full"), attempt("mailbox", "held by 1 of 3")}, 3, "held", exitTimeout, "not yet held: held by 1 of 3; "},
		{[]*apiv1.Attempt{attempt("mailbox", "held by 1 of 3: the mailbox is full")}, 3, "held", exitQuota, "not yet held: held by 1 of 3: the mailbox is full; "},
		{[]*apiv1.Attempt{attempt("mailbox", "the mailbox is full")}, 3, "delivered", exitTimeout, "still on its way"},
	} {
		home := serve(t, traced{&teller{name: "bob"}, test.attempts, test.told})
		code, _, stderr := cli(t, "", "--home", home, "send", "bob", "hi", "--wait", test.wait, "--timeout", "200ms")
		if code != test.code || !strings.Contains(stderr, test.want) || !strings.Contains(stderr, "kith trace --home "+home+" id of hi") || strings.Count(stderr, "\n") != 1 {
			t.Errorf("--wait %s after %v: exit %d, %q, want exit %d and %q", test.wait, test.attempts, code, stderr, test.code, test.want)
		}
	}
}
