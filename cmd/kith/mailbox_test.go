package main

import (
	"bytes"
	"strings"
	"testing"

	apiv1 "github.com/kith-im/kith/node/api/v1"
)

func TestMailboxList(t *testing.T) {
	good := &apiv1.Mailbox{Id: "1a2b3c4d", Address: "/ip4/10.0.0.1/tcp/1/p2p/x", State: "good", Items: 3, Bytes: 12_000, Quota: 64e6, RetentionS: 30 * 86400, AddedBy: "default"}
	bad := &apiv1.Mailbox{Id: "5e6f7a8b", State: "lying", Evidence: []string{"it gave a false receipt"}, Probes: 4, ProbesLost: 1, AddedBy: "you"}
	for _, test := range []struct {
		name string
		res  *apiv1.ListMailboxesResponse
		want []string
	}{
		{
			"all good", &apiv1.ListMailboxesResponse{Mailboxes: []*apiv1.Mailbox{good, good, good}, Mode: "auto", Healthy: 3, Total: 3, Needed: 2},
			[]string{"1a2b3c4d  good   3, 12.0 kB  64.0 MB  30 days    -          default", "3 of 3 work", "held when 2 have signed"},
		},
		{
			"one, as the user wants it", &apiv1.ListMailboxesResponse{Mailboxes: []*apiv1.Mailbox{good}, Mode: "manual", Healthy: 1, Total: 1, Needed: 1},
			[]string{"1 of 1 work", "held when one has signed"},
		},
		{
			"evidence", &apiv1.ListMailboxesResponse{Mailboxes: []*apiv1.Mailbox{good, bad}, Mode: "auto", Healthy: 1, Total: 2, Needed: 2},
			[]string{"lying", "5e6f7a8b: it gave a false receipt", "5e6f7a8b: 1 of 4 tests did not come back", "Too few work: 1 of 2", "held when 2 have signed", "kith mailbox add ADDRESS"},
		},
		{
			"the day's bytes are used up", &apiv1.ListMailboxesResponse{Mailboxes: []*apiv1.Mailbox{good}, Mode: "auto", Healthy: 0, Total: 3, Needed: 2, Paused: 3},
			[]string{"0 of 3 work; 3 are not asked until midnight UTC", "used up: see kith budget"},
		},
		{
			"just added", &apiv1.ListMailboxesResponse{Mailboxes: []*apiv1.Mailbox{{Id: "1a2b3c4d", State: "new", AddedBy: "you"}}, Mode: "auto", Needed: 1},
			[]string{"None is ready yet"},
		},
		{"none yet", &apiv1.ListMailboxesResponse{Mode: "auto", Needed: 2}, []string{"No mailboxes yet", "kith mailbox add ADDRESS"}},
		{"switched off", &apiv1.ListMailboxesResponse{Mode: "none"}, []string{"switched off", "kith up --mailbox auto"}},
	} {
		var out bytes.Buffer
		list := []mailboxJSON{}
		for _, m := range test.res.Mailboxes {
			list = append(list, toMailbox(m))
		}
		new(kith).writeMailboxes(&out, list, test.res)
		for _, want := range test.want {
			if !strings.Contains(out.String(), want) {
				t.Errorf("%s: %q is not in\n%s", test.name, want, out.String())
			}
		}
	}
	k := &kith{}
	k.root()
	k.home = "50%d"
	var out bytes.Buffer
	k.writeMailboxes(&out, []mailboxJSON{toMailbox(good)}, &apiv1.ListMailboxesResponse{Mode: "auto", Total: 3, Needed: 2, Paused: 3})
	if want := "0 of 3 work; 3 are not asked until midnight UTC, as the bytes of this day are used up: see kith budget --home '50%d'. What is left there waits.\n"; !strings.HasSuffix(out.String(), want) {
		t.Errorf("%q is not at the end of\n%s", want, out.String())
	}
}

func TestMailboxErrors(t *testing.T) {
	home := serve(t, empty{})
	for _, test := range []struct {
		args string
		code int
		want string
	}{
		{"mailbox add /x", exitRefused, "there is no such node; check the address"},
		{"mailbox remove 1a2b", exitNotFound, `there is no mailbox "1a2b"; kith mailbox list --home ` + home + ` shows the ones you have`},
		{"mailbox test 1a2b", exitNotFound, `there is no mailbox "1a2b"; kith mailbox list --home ` + home + ` shows the ones you have`},
		{"node status", exitRefused, "this daemon is a user's and keeps no mail for others; start a community node with: kith up --role community"},
	} {
		code, stdout, stderr := cli(t, "", append([]string{"--home", home}, strings.Fields(test.args)...)...)
		if code != test.code || stdout != "" || !strings.Contains(stderr, test.want) || strings.Count(stderr, "\n") != 1 {
			t.Errorf("kith %s: exit %d, stdout %q, stderr %q, want exit %d and %q", test.args, code, stdout, stderr, test.code, test.want)
		}
	}
	if _, stdout, _ := cli(t, "", "--home", home, "mailbox", "test"); !strings.Contains(stdout, "kith mailbox list") {
		t.Errorf("kith mailbox test without any: %q", stdout)
	}
}

// TestMailboxTest: one that fails is shown beside the others, and in the exit code.
func TestMailboxTest(t *testing.T) {
	home := serve(t, &teller{name: "1a2b3c4d", text: "it came back"})
	code, stdout, stderr := cli(t, "", "--home", home, "mailbox", "test")
	if code != exitRefused || !strings.Contains(stdout, "ok     1a2b3c4d      3 ms  it came back\nWRONG") || !strings.Contains(stderr, "1 mailbox test failed") {
		t.Errorf("exit %d, stdout %q, stderr %q", code, stdout, stderr)
	}
}

// TestHolding: what mailboxes keep is shown wherever a state is.
func TestHolding(t *testing.T) {
	for _, test := range []struct {
		h           holdingJSON
		state, want string
	}{
		{holdingJSON{}, "queued", "queued"},
		{holdingJSON{}, "held", "held"},
		{holdingJSON{Of: 3}, "queued", "queued, held 0/3"},
		{holdingJSON{1, 3, 1}, "queued", "queued, held 1/3 until " + clock(1)},
		{holdingJSON{2, 3, 1}, "held", "held 2/3 until " + clock(1)},
	} {
		if got := test.h.after(test.state); got != test.want {
			t.Errorf("%+v after %s: %q, want %q", test.h, test.state, got, test.want)
		}
	}
	home := serve(t, &teller{name: "held", text: "hi"})
	for _, args := range []string{"read x", "trace x"} {
		if _, stdout, _ := cli(t, "", append([]string{"--home", home}, strings.Fields(args)...)...); !strings.Contains(stdout, "held 2/3 until "+clock(5)) {
			t.Errorf("kith %s prints %q", args, stdout)
		}
	}
}

func TestMailboxCount(t *testing.T) {
	for _, test := range []struct {
		c    mailboxCount
		want string
	}{
		{mailboxCount{"auto", 3, 3, 2, 0}, "3 of 3 work"},
		{mailboxCount{"auto", 1, 1, 1, 0}, "1 of 1 work"},
		{mailboxCount{"auto", 1, 3, 2, 0}, "1 of 3 work; see: kith mailbox list"},
		{mailboxCount{"auto", 2, 3, 2, 1}, "2 of 3 work; 1 is not asked until midnight UTC: the bytes of this day are used up"},
		{mailboxCount{"auto", 0, 0, 1, 0}, "none yet: messages reach you only while you are online"},
		{mailboxCount{"none", 0, 0, 1, 0}, "none: messages reach you only while you are online"},
	} {
		if got := test.c.String(); got != test.want {
			t.Errorf("%+v is %q, want %q", test.c, got, test.want)
		}
	}
}

func TestSizeAndSpan(t *testing.T) {
	for n, want := range map[int64]string{0: "0 bytes", 1: "1 byte", 999: "999 bytes", 1000: "1.0 kB", 999_949: "999.9 kB", 999_950: "1.0 MB", 5e9: "5.0 GB", 1 << 50: "1.1 PB", 9e18: "9000.0 PB"} {
		if got := size(n); got != want {
			t.Errorf("size(%d) = %q, want %q", n, got, want)
		}
	}
	for n, want := range map[int64]string{1: "1 second", 119: "119 seconds", 120: "2 minutes", 7200: "2 hours", 86400: "24 hours", 172800: "2 days"} {
		if got := span(n); got != want {
			t.Errorf("span(%d) = %q, want %q", n, got, want)
		}
	}
}
