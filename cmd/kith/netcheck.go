package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"runtime"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kith-im/kith/node/api"
	apiv1 "github.com/kith-im/kith/node/api/v1"
)

type checkJSON struct {
	Name string `json:"name"`
	OK   bool   `json:"ok"`
	Text string `json:"text"`
	Hint string `json:"hint,omitempty"`
}

// toChecks also counts those that are not ok.
func (k *kith) toChecks(in []*apiv1.Check) (checks []checkJSON, bad int) {
	checks = []checkJSON{}
	for _, c := range in {
		checks = append(checks, checkJSON{c.Name, c.Ok, k.here(c.Text), k.here(c.Hint)})
		if !c.Ok {
			bad++
		}
	}
	return checks, bad
}

// checkState is the word for a check. One that is ok and says what to do is a warning.
func checkState(ok bool, hint string) string {
	switch {
	case !ok:
		return "WRONG"
	case hint != "":
		return "warning"
	}
	return "ok"
}

func writeChecks(w io.Writer, checks []checkJSON) {
	rows := [][]string{}
	for _, c := range checks {
		rows = append(rows, []string{checkState(c.OK, c.Hint), c.Name, strings.TrimSuffix(c.Text, ".") + prefixed("; ", c.Hint)})
	}
	table(w, rows...)
}

func (k *kith) netcheckCmd() *cobra.Command {
	var plain bool
	c := &cobra.Command{
		Use:   "netcheck",
		Short: "Find out what the network you are on blocks",
		Long: `Try what the network lets through, and say in a sentence each what is blocked and
what is used instead: a warning is about what kith gets past by itself. A bridge is
connected to, since its web site may answer without it. It takes up to a minute. The
result is remembered for this network, and decides which addresses are tried.

Only community nodes and bridges that this daemon knows anyway are contacted, with
what kith says to them on ordinary days, and the directory is asked for something
that nobody has; in censored mode only bridges are, and look it up for it. A proxy
that cannot be used is named, and then nothing is said of the network. With
--probe-plain it tries everything, which tells whoever watches that this machine
does: do not use it where that is dangerous.

It exits with 4 if no road is left, or the proxy is what fails, and with 1 if
something else is wrong; a warning is no failure.`,
	}
	c.Flags().BoolVar(&plain, "probe-plain", false, "also try what an observer may find strange, in every mode")
	return k.command(c, 0, 0, func(ctx context.Context, _ []string) error {
		client, err := k.dial()
		if err != nil {
			return err
		}
		if !k.json && !k.quiet {
			k.notef("Trying what this network lets through …")
		}
		res, err := client.Netcheck(ctx, &apiv1.NetcheckRequest{ProbePlain: plain})
		if err != nil {
			return err
		}
		checks, bad := k.toChecks(res.Checks)
		k.print(struct {
			Blocked []string    `json:"blocked"`
			Nodes   bool        `json:"nodes"`
			Bridges bool        `json:"bridges"`
			Network string      `json:"network"`
			Time    int64       `json:"time"`
			Checks  []checkJSON `json:"checks"`
		}{nonNil(res.Blocked), res.Nodes, res.Bridges, res.Network, res.TimeMs, checks}, func(w io.Writer) { writeChecks(w, checks) })
		return netcheckFailure(checks, bad)
	})
}

// netcheckFailure is how a netcheck ends that found something wrong: without a road,
// which the checks by these two names are about, nothing else is of use.
func netcheckFailure(checks []checkJSON, bad int) error {
	if bad == 0 {
		return nil
	}
	if slices.ContainsFunc(checks, func(c checkJSON) bool { return !c.OK && (c.Name == "network" || c.Name == "proxy") }) {
		return &api.Error{Code: api.CodeNetwork, Message: "no road leads out of here now", Hint: followHints}
	}
	return foundWrong(bad)
}

const followHints = "follow the hints above"

// foundWrong says how many checks found something wrong.
func foundWrong(bad int) error {
	return &api.Error{Code: api.CodeRefused, Message: plural(bad, "check") + " found something wrong", Hint: followHints}
}

// printReport prints what helps others to see what is wrong, and nothing that
// says whose daemon it is.
func (k *kith) printReport(s *apiv1.StatusResponse, checks []*apiv1.Check) {
	lines := []string{
		fmt.Sprintf("kith %s, %s/%s, role %s, up for %s", clean(s.Version), runtime.GOOS, runtime.GOARCH, clean(s.Role), span(s.UptimeS)),
		fmt.Sprintf("peers %d, nodes known %d, published %d of %d, waiting %d", s.Peers, s.GetDht().GetTable(), s.Published, s.PublishGoal, s.Outbox),
		fmt.Sprintf("memory %d MB, goroutines %d", s.RssBytes/1e6, s.Goroutines),
	}
	if s.Mode != nil {
		lines = append(lines, "mode "+toMode(s.Mode).String())
	}
	b := toBudget(s.GetBudget())
	lines = append(lines, fmt.Sprintf("budget %s, %s today, %d dials, %d refused", clean(b.Preset), size(b.BytesToday), b.Dials, b.Refused))
	for _, road := range slices.Sorted(maps.Keys(s.Roads)) {
		lines = append(lines, "road "+clean(road)+": "+clean(s.Roads[road]))
	}
	for _, c := range checks {
		lines = append(lines, checkState(c.Ok, c.Hint)+" "+clean(c.Name)+": "+clean(c.Text))
	}
	k.print(struct {
		Report []string `json:"report"`
	}{lines}, func(w io.Writer) {
		for _, l := range lines {
			fmt.Fprintln(w, l)
		}
	})
}
