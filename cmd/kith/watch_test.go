package main

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"

	apiv1 "github.com/kith-im/kith/node/api/v1"
)

func someEvents(n int) (events []*apiv1.Event) {
	for i := range n {
		events = append(events, &apiv1.Event{Id: uint64(i + 1), Type: "message", Data: `{"id":"m","from":"bob","text":"hi"}`})
	}
	return events
}

func TestWatchAcknowledges(t *testing.T) {
	b := &teller{events: someEvents(50)}
	home := serve(t, b)
	code, stdout, stderr := cli(t, "", "--home", home, "watch", "--cursor", "bot", "-n", "50")
	if code != 0 || strings.Count(stdout, "\n") != 50 {
		t.Fatalf("exit %d, %d lines, stderr %q", code, strings.Count(stdout, "\n"), stderr)
	}
	if len(b.acked) == 0 || b.acked[len(b.acked)-1] != 50 || !slices.IsSorted(b.acked) {
		t.Errorf("acknowledged were %v, want the last to be 50", b.acked)
	}
}

func TestWatchManual(t *testing.T) {
	b := &teller{events: someEvents(3)}
	home := serve(t, b)
	if code, _, stderr := cli(t, "", "--home", home, "watch", "--cursor", "bot", "--ack", "manual", "-n", "3"); code != 0 || len(b.acked) != 0 {
		t.Errorf("exit %d, %s, acknowledged by itself: %v", code, stderr, b.acked)
	}
	if code, _, stderr := cli(t, "", "--home", home, "watch", "ack", "bot", "2"); code != 0 || !slices.Equal(b.acked, []uint64{2}) {
		t.Errorf("exit %d, %s, acknowledged: %v", code, stderr, b.acked)
	}
	if code, _, _ := cli(t, "x\n", "--home", home, "watch", "--cursor", "bot", "--ack", "manual"); code != exitUsage {
		t.Errorf("a bad acknowledgement: exit %d, want %d", code, exitUsage)
	}
}

// full is an output whose reader has gone after some lines.
type full struct{ left int }

func (f *full) Write(p []byte) (int, error) {
	if f.left == 0 {
		return 0, errors.New("nobody reads")
	}
	f.left--
	return len(p), nil
}

func TestWatchAcknowledgesWhatWasTaken(t *testing.T) {
	b := &teller{events: someEvents(10)}
	home := serve(t, b)
	var stderr bytes.Buffer
	code := run(t.Context(), []string{"--home", home, "watch", "--cursor", "bot"}, strings.NewReader(""), &full{left: 4}, &stderr)
	if code != exitRefused {
		t.Errorf("exit %d, want %d", code, exitRefused)
	}
	if len(b.acked) == 0 || slices.Max(b.acked) != 4 {
		t.Errorf("acknowledged %v, want up to 4", b.acked)
	}
}

// TestDescribeEvent: what contacts call themselves is shown without control
// characters.
func TestDescribeEvent(t *testing.T) {
	for _, test := range []struct{ typ, data, want string }{
		{"contact", `{"name":"alice","state":"established","what":"profile","profile":"Alice\u001b[2J"}`, "contact alice calls themselves Alice"},
		{"contact", `{"name":"alice","state":"established","what":"profile","profile":"alice"}`, "contact alice is established"},
		{"contact", `{"name":"alice","state":"established","what":"approved"}`, "contact alice is established"},
	} {
		if got := describeEvent(&apiv1.Event{Type: test.typ, Data: test.data}); !strings.HasPrefix(got, test.want) || strings.Contains(got, "\x1b") {
			t.Errorf("%s is shown as %q", test.data, got)
		}
	}
}
