package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	apiv1 "github.com/kith-im/kith/node/api/v1"
)

func (k *kith) nodeCmd() *cobra.Command {
	c := &cobra.Command{
		Use:   "node",
		Short: "Operate a community node: what it keeps, its limits, its retirement",
		Long: `Operate the community node that runs on this home (kith up --role community).
It keeps sealed mail for people who are away, and knows counts, sizes and ages, but
neither names nor texts. Every change works at once, and after a restart.`,
	}
	c.AddCommand(k.nodeStatusCmd(), k.nodeDrainCmd(), k.nodeSetCmd())
	return group(c)
}

type nodeLimitsJSON struct {
	Quota        int64 `json:"quota"`
	BoxQuota     int64 `json:"box_quota"`
	TagQuota     int64 `json:"tag_quota"`
	RequestShare int64 `json:"request_share"`
	RetentionS   int64 `json:"retention_s"`
	BoxIdleS     int64 `json:"box_idle_s"`
	Boxes        int64 `json:"boxes"`
	BoxTags      int64 `json:"box_tags"`
	SourceRate   int64 `json:"source_rate"`
}

type nodeJSON struct {
	State         string           `json:"state"`
	Limits        nodeLimitsJSON   `json:"limits"`
	Used          int64            `json:"used"`
	Boxes         int64            `json:"boxes"`
	Tags          int64            `json:"tags"`
	Envelopes     int64            `json:"envelopes"`
	EnvelopeBytes int64            `json:"envelope_bytes"`
	RequestBytes  int64            `json:"request_bytes"`
	OldestS       int64            `json:"oldest_s"`
	Streams       int64            `json:"streams"`
	Deposits      int64            `json:"deposits"`
	Collected     int64            `json:"collected"`
	Expired       int64            `json:"expired"`
	Refusals      map[string]int64 `json:"refusals"`
}

func toNode(s *apiv1.NodeStatusResponse) nodeJSON {
	l := s.GetLimits()
	out := nodeJSON{
		State: s.GetState(), Used: s.GetUsed(), Boxes: s.GetBoxes(), Tags: s.GetTags(),
		Limits: nodeLimitsJSON{
			Quota: l.GetQuota(), BoxQuota: l.GetBoxQuota(), TagQuota: l.GetTagQuota(), RequestShare: l.GetRequestShare(),
			RetentionS: l.GetRetentionS(), BoxIdleS: l.GetBoxIdleS(), Boxes: l.GetBoxes(), BoxTags: l.GetBoxTags(), SourceRate: l.GetSourceRate(),
		},
		Envelopes: s.GetEnvelopes(), EnvelopeBytes: s.GetEnvelopeBytes(), RequestBytes: s.GetRequestBytes(),
		OldestS: s.GetOldestS(), Streams: s.GetStreams(), Deposits: s.GetDeposits(), Collected: s.GetCollected(),
		Expired: s.GetExpired(), Refusals: s.GetRefusals(),
	}
	if out.Refusals == nil {
		out.Refusals = map[string]int64{}
	}
	return out
}

func (k *kith) nodeStatusCmd() *cobra.Command {
	return k.command(&cobra.Command{
		Use:   "status",
		Short: "Show how much mail the node keeps, and what it refused",
	}, 0, 0, func(ctx context.Context, _ []string) error {
		client, err := k.dial()
		if err != nil {
			return err
		}
		res, err := client.NodeStatus(ctx, &apiv1.NodeStatusRequest{})
		if err != nil {
			return err
		}
		k.print(toNode(res), func(w io.Writer) { writeNode(w, toNode(res)) })
		return nil
	})
}

// nodeStates says what the states of a node mean.
var nodeStates = map[string]string{
	"serving":  "serving",
	"draining": "draining: it takes nothing new and hands out what it has",
	"full":     "full: it takes nothing more until something is collected",
	"failed":   "failed: the disk failed while saving; check it and start kith again",
}

// nodeState is a state with what it means, if that is known.
func nodeState(state string) string {
	if means, ok := nodeStates[state]; ok {
		return means
	}
	return state
}

func writeNode(w io.Writer, s nodeJSON) {
	waiting := plural(int(s.Envelopes), "envelope") + ", " + size(s.EnvelopeBytes)
	if s.Envelopes > 0 {
		waiting += ", the oldest for " + span(s.OldestS)
	}
	l := s.Limits
	rows := [][]string{
		{"state", nodeState(s.State)},
		{"disk", size(s.Used) + " of " + size(l.Quota)},
		{"boxes", fmt.Sprintf("%d of %d, with %s", s.Boxes, l.Boxes, plural(int(s.Tags), "tag"))},
		{"waiting", waiting},
		{"from strangers", size(s.RequestBytes)},
		{"connected", plural(int(s.Streams), "stream")},
		{"since the start", fmt.Sprintf("%d taken, %d collected, %d expired", s.Deposits, s.Collected, s.Expired)},
	}
	for _, why := range slices.Sorted(maps.Keys(s.Refusals)) {
		if n := s.Refusals[why]; n > 0 {
			rows = append(rows, []string{"refused", fmt.Sprintf("%d: %s", n, strings.ReplaceAll(why, "_", " "))})
		}
	}
	rows = append(rows,
		[]string{"keeps mail for", span(l.RetentionS)},
		[]string{"keeps unused boxes for", span(l.BoxIdleS)},
		[]string{"room of a box", fmt.Sprintf("%s, and never more than a quarter of what is free, now %s", size(l.BoxQuota), size(max(0, l.Quota-s.Used)/4))},
		[]string{"of that for strangers", size(l.RequestShare)},
		[]string{"room under a tag", size(l.TagQuota)},
		[]string{"tags of a box", strconv.FormatInt(l.BoxTags, 10)},
		[]string{"rate of a source", size(l.SourceRate) + "/s"},
	)
	table(w, rows...)
}

func (k *kith) nodeDrainCmd() *cobra.Command {
	var undo bool
	c := &cobra.Command{
		Use:   "drain [--undo]",
		Short: "Retire the node without loss: take nothing new, hand out what is there",
		Long: `Take no new mail and open no new boxes, and go on handing out what is there. Those
who have a mailbox here are told, and open another elsewhere. When kith node status
shows nothing waiting any more, or after the time that mail is kept for, the node can
be stopped for good.`,
	}
	c.Flags().BoolVar(&undo, "undo", false, "take mail again")
	return k.command(c, 0, 0, func(ctx context.Context, _ []string) error {
		drain := !undo
		return k.setNode(ctx, &apiv1.SetNodeRequest{Draining: &drain}, func(w io.Writer, s nodeJSON) {
			if undo {
				fmt.Fprintln(w, "The node takes mail again.")
				return
			}
			fmt.Fprintf(w, "The node is draining: %s left to be collected. Watch with: kith node status%s\n", plural(int(s.Envelopes), "envelope"), k.at())
		})
	})
}

// setNode changes the node and prints what it is like then.
func (k *kith) setNode(ctx context.Context, req *apiv1.SetNodeRequest, human func(io.Writer, nodeJSON)) error {
	client, err := k.dial()
	if err != nil {
		return err
	}
	res, err := client.SetNode(ctx, req)
	if err != nil {
		return err
	}
	s := toNode(res.GetStatus())
	k.print(s, func(w io.Writer) {
		if !k.quiet {
			human(w, s)
		}
	})
	return nil
}

func (k *kith) nodeSetCmd() *cobra.Command {
	var l apiv1.NodeLimits
	c := &cobra.Command{
		Use:   "set [--quota SIZE] [--box-quota SIZE] [--retention TIME] [--…]",
		Short: "Change what the node may keep, while it runs",
		Long: `Change what the node may keep, while it runs. It stays after a restart.

A SIZE is a number with kB, MB, GB, TB, KiB, MiB, GiB or TiB, a TIME one with d, h, m
or s. Whatever --box-quota says, one box may hold at most a quarter of what is free;
and a box is kept for at least an hour longer than the mail in it.`,
	}
	type sizeFlag struct {
		value   *int64
		example string
	}
	sizes := map[string]sizeFlag{
		"quota": {&l.Quota, "5GB"}, "box-quota": {&l.BoxQuota, "64MiB"}, "tag-quota": {&l.TagQuota, "16MiB"},
		"request-share": {&l.RequestShare, "256KiB"}, "source-rate": {&l.SourceRate, "256KiB"},
	}
	spans := map[string]*int64{"retention": &l.RetentionS, "box-idle": &l.BoxIdleS}
	f := c.Flags()
	f.String("quota", "", "the `SIZE` of all mail on the disk, for example 5GB; at least 16MiB")
	f.String("box-quota", "", "the `SIZE` of what contacts may leave in one box; at least 128KiB")
	f.String("tag-quota", "", "the `SIZE` of what may be left under one tag; at least 128KiB")
	f.String("request-share", "", "the `SIZE` of what strangers may leave in one box; at least 128KiB")
	f.String("source-rate", "", "the `SIZE` that one peer may send in a second, after a burst; at least 4KiB")
	f.String("retention", "", "the `TIME` for which mail is kept that nobody collects, for example 30d; at least 1h")
	f.String("box-idle", "", "the `TIME` for which a box is kept whose owner does not come; at least 1h more than --retention")
	f.Int64Var(&l.Boxes, "boxes", 0, "the `NUMBER` of boxes")
	f.Int64Var(&l.BoxTags, "box-tags", 0, "the `NUMBER` of tags of one box; twice as many while they are replaced")
	return k.command(c, 0, 0, func(ctx context.Context, _ []string) (err error) {
		for _, name := range slices.Sorted(maps.Keys(sizes)) {
			if v := f.Lookup(name); v.Changed {
				if *sizes[name].value, err = parseSize("--"+name, sizes[name].example, v.Value.String()); err != nil {
					return err
				}
			}
		}
		for _, name := range slices.Sorted(maps.Keys(spans)) {
			if v := f.Lookup(name); v.Changed {
				d, err := parseLife("--"+name, v.Value.String())
				if err != nil {
					return err
				}
				*spans[name] = int64(d / time.Second)
			}
		}
		for name, n := range map[string]int64{"boxes": l.Boxes, "box-tags": l.BoxTags} {
			if f.Changed(name) && n < 1 {
				return usagef("for example --"+name+" 1000", "--%s takes a number, 1 or more", name)
			}
		}
		return k.setNode(ctx, &apiv1.SetNodeRequest{Limits: &l}, func(w io.Writer, s nodeJSON) { writeNode(w, s) })
	})
}

// maxSize bounds a size on the command line: a petabyte is a slip of the hand.
const maxSize = 1 << 50

// parseSize reads a flag with a number of bytes, such as 5GB or 512MiB; example
// is one that makes sense for this flag.
func parseSize(flag, example, s string) (int64, error) {
	bad := usagef("for example "+flag+" "+example, "%q is no size", clean(s))
	digits := strings.TrimRight(s, "BKMGTikmgtb ")
	unit := int64(1)
	switch strings.ToLower(strings.TrimSpace(s[len(digits):])) {
	case "", "b":
	case "k", "kb":
		unit = 1e3
	case "m", "mb":
		unit = 1e6
	case "g", "gb":
		unit = 1e9
	case "t", "tb":
		unit = 1e12
	case "kib":
		unit = 1 << 10
	case "mib":
		unit = 1 << 20
	case "gib":
		unit = 1 << 30
	case "tib":
		unit = 1 << 40
	default:
		return 0, bad
	}
	n, err := strconv.ParseFloat(digits, 64)
	if err != nil || !(n > 0) || strings.ContainsAny(digits, "xXeEpP_+") {
		return 0, bad
	}
	if n *= float64(unit); n > maxSize {
		return 0, usagef("choose less", "%s is too large", flag)
	}
	if n < 1 {
		return 0, bad
	}
	return int64(n), nil
}
