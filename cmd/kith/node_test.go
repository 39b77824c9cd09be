package main

import (
	"strings"
	"testing"

	apiv1 "github.com/kith-im/kith/node/api/v1"
)

func TestParseSize(t *testing.T) {
	for s, want := range map[string]int64{
		"1": 1, "100": 100, "1b": 1, "1k": 1000, "5GB": 5e9, "5 GB": 5e9, "5gb": 5e9, "1.5MB": 1_500_000, "512MiB": 512 << 20, "1TiB": 1 << 40,
		"": 0, "0": 0, "-1": 0, "x": 0, "5XB": 0, "GB": 0, "1e9": 0, "0x10": 0, "inf": 0, "nan": 0, "1_000": 0, "+5": 0, "5GB5": 0, "9999TB": 0, "0.1": 0, "5BB": 0, "5iB": 0,
	} {
		got, err := parseSize("--quota", "5GB", s)
		if got != want || (err != nil) != (want == 0) {
			t.Errorf("parseSize(%q) = %d, %v, want %d", s, got, err, want)
		}
	}
}

func TestNodeSet(t *testing.T) {
	b := &teller{text: "serving"}
	home := serve(t, b)
	limits := func(l *apiv1.NodeLimits) nodeLimitsJSON { return toNode(&apiv1.NodeStatusResponse{Limits: l}).Limits }
	for _, test := range []struct {
		args string
		want *apiv1.NodeLimits
	}{
		{"--quota 5GB", &apiv1.NodeLimits{Quota: 5e9}},
		{"--box-quota 64MiB --tag-quota 1MB --request-share 256KiB --source-rate 1MB", &apiv1.NodeLimits{BoxQuota: 64 << 20, TagQuota: 1e6, RequestShare: 256 << 10, SourceRate: 1e6}},
		{"--retention 30d --box-idle 48h --boxes 9 --box-tags 8", &apiv1.NodeLimits{RetentionS: 30 * 86400, BoxIdleS: 2 * 86400, Boxes: 9, BoxTags: 8}},
	} {
		code, _, stderr := cli(t, "", append([]string{"--home", home, "node", "set"}, strings.Fields(test.args)...)...)
		if code != 0 || limits(b.limits) != limits(test.want) || b.draining != nil {
			t.Errorf("kith node set %s: exit %d, %s, sets %v, %v", test.args, code, stderr, b.limits, b.draining)
		}
	}
	for args, want := range map[string]string{
		"":                  "nothing is given to change; see: kith node set --help",
		"--quota 1MB":       "the quota must be between 16 MiB and 1024 TiB",
		"--tag-quota 1kB":   "the quota of a tag must be between 128 KiB and",
		"--source-rate 1kB": "the rate of a source must be between 4 KiB and",
		"--retention 1m":    "the retention must be between 1 hour and 365 days",
		"--box-idle 1m":     "the time that an unused box is kept must be between 1 hour and 365 days",
	} {
		b.limits = nil
		code, _, stderr := cli(t, "", append([]string{"--home", home, "node", "set"}, strings.Fields(args)...)...)
		if code != exitUsage || !strings.Contains(stderr, want) || b.limits != nil {
			t.Errorf("kith node set %s: exit %d, %q, sets %v", args, code, stderr, b.limits)
		}
	}
}

func TestNodeDrain(t *testing.T) {
	b := &teller{text: "draining"}
	home := serve(t, b)
	for args, want := range map[string]struct {
		drain bool
		text  string
	}{"": {true, "2 envelopes left to be collected"}, "--undo": {false, "The node takes mail again."}} {
		code, stdout, stderr := cli(t, "", append([]string{"--home", home, "node", "drain"}, strings.Fields(args)...)...)
		if code != 0 || b.draining == nil || *b.draining != want.drain || !strings.Contains(stdout, want.text) {
			t.Errorf("kith node drain %s: exit %d, %q, %s", args, code, stdout, stderr)
		}
	}
	b.limits = &apiv1.NodeLimits{Quota: 5e9, Boxes: 10, RetentionS: 30 * 86400}
	_, stdout, _ := cli(t, "", "--home", home, "node", "status")
	for _, want := range []string{"draining: it takes nothing new", "1.0 MB of 5.0 GB", "2 envelopes, 0 bytes, the oldest for 2 hours", "30 days", "a quarter of what is free, now 1.2 GB"} {
		if !strings.Contains(stdout, want) {
			t.Errorf("%q is not in\n%s", want, stdout)
		}
	}
}

// TestCheckLimits: a limit that another would make mean less is refused.
func TestCheckLimits(t *testing.T) {
	now := &apiv1.NodeLimits{Quota: 5e9, RetentionS: 30 * 86400, BoxIdleS: 60 * 86400}
	for _, test := range []struct {
		set  *apiv1.NodeLimits
		want string // empty: allowed
	}{
		{nil, ""},
		{&apiv1.NodeLimits{BoxQuota: 5e9}, ""},
		{&apiv1.NodeLimits{BoxQuota: 6e9}, "--box-quota 6.0 GB is more than the whole node may keep, which is 5.0 GB"},
		{&apiv1.NodeLimits{BoxQuota: 6e9, Quota: 7e9}, ""},
		{&apiv1.NodeLimits{TagQuota: 2e9, Quota: 1e9}, "--tag-quota 2.0 GB"},
		{&apiv1.NodeLimits{RequestShare: 6e9}, "--request-share"},
		{&apiv1.NodeLimits{Quota: 16 << 20}, ""},
		{&apiv1.NodeLimits{BoxIdleS: 30 * 86400}, "an hour more than mail is kept for, which is 30 days"},
		{&apiv1.NodeLimits{BoxIdleS: 30*86400 + 3600}, ""},
		{&apiv1.NodeLimits{BoxIdleS: 7200, RetentionS: 3600}, ""},
		{&apiv1.NodeLimits{RetentionS: 90 * 86400}, ""},
	} {
		err := checkLimits(now, test.set)
		if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("setting %v: %v, want %q", test.set, err, test.want)
		}
	}
}

// TestDrainIsSeen: a node that retires says so wherever its operator looks, and calls
// it no fault.
func TestDrainIsSeen(t *testing.T) {
	n := newNetwork(t)
	if s := n.node.status(); s.Mail != "serving" {
		t.Errorf("a node that serves is %q", s.Mail)
	}
	if c := n.node.checkOf("mail"); !c.OK || !strings.Contains(c.Text, "Mail is taken") {
		t.Errorf("of one that serves doctor says %+v", c)
	}
	n.node.must("node", "drain")
	if s := n.node.status(); s.Mail != "draining" || !strings.Contains(n.node.must("status"), "draining: it takes nothing new") {
		t.Errorf("a node that drains is %q", s.Mail)
	}
	if c := n.node.checkOf("mail"); !c.OK || c.Hint != "" || !strings.Contains(c.Text, "Draining") || !strings.Contains(c.Text, "--undo ends that") {
		t.Errorf("of one that drains doctor says %+v", c)
	}
	n.node.must("node", "drain", "--undo")
	if s := n.node.status(); s.Mail != "serving" {
		t.Errorf("a node that serves again is %q", s.Mail)
	}
}
