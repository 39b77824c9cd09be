package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/kith-im/kith/node/api"
	apiv1 "github.com/kith-im/kith/node/api/v1"
)

func (k *kith) mailboxCmd() *cobra.Command {
	c := &cobra.Command{
		Use:   "mailbox",
		Short: "See and choose the community nodes that keep my mail while I am away",
		Long: `Community nodes keep what contacts send while this daemon is off, and hand it
over when it is back. They see padded ciphertext under names that change, not who
writes or to whom. kith chooses a few by itself, watches whether they keep their
word, and replaces those that do not; here is what it knows, and how to choose
others.

To exchange messages directly or not at all:  kith up --mailbox none`,
	}
	c.AddCommand(k.mailboxListCmd(), k.mailboxAddCmd(), k.mailboxRemoveCmd(), k.mailboxTestCmd())
	return group(c)
}

// group completes a command that only has others below it.
func group(c *cobra.Command) *cobra.Command {
	c.DisableFlagsInUseLine = true
	c.Args = cobra.ArbitraryArgs
	c.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return cmd.Help()
		}
		return usagef("see: "+cmd.CommandPath()+" --help", "there is no command %q", cmd.Name()+" "+clean(args[0]))
	}
	return c
}

type mailboxJSON struct {
	ID         string   `json:"id"`
	Address    string   `json:"address"`
	State      string   `json:"state"`
	Evidence   []string `json:"evidence"`
	Items      int64    `json:"items"`
	Bytes      int64    `json:"bytes"`
	Quota      int64    `json:"quota"`
	RetentionS int64    `json:"retention_s"`
	LastSeen   int64    `json:"last_seen"`
	Probes     int64    `json:"probes"`
	ProbesLost int64    `json:"probes_lost"`
	AddedBy    string   `json:"added_by"`
}

func toMailbox(m *apiv1.Mailbox) mailboxJSON {
	return mailboxJSON{
		ID: m.GetId(), Address: m.GetAddress(), State: m.GetState(), Evidence: nonNil(m.GetEvidence()),
		Items: m.GetItems(), Bytes: m.GetBytes(), Quota: m.GetQuota(), RetentionS: m.GetRetentionS(),
		LastSeen: m.GetLastSeenMs(), Probes: m.GetProbes(), ProbesLost: m.GetProbesLost(), AddedBy: m.GetAddedBy(),
	}
}

func (k *kith) mailboxListCmd() *cobra.Command {
	return k.command(&cobra.Command{
		Use:   "list",
		Short: "List my mailboxes, how each is doing, and what it did wrong",
	}, 0, 0, func(ctx context.Context, _ []string) error {
		client, err := k.dial()
		if err != nil {
			return err
		}
		res, err := client.ListMailboxes(ctx, &apiv1.ListMailboxesRequest{})
		if err != nil {
			return err
		}
		list := []mailboxJSON{}
		for _, m := range res.Mailboxes {
			list = append(list, toMailbox(m))
		}
		k.print(list, func(w io.Writer) { k.writeMailboxes(w, list, res) })
		return nil
	})
}

func (k *kith) writeMailboxes(w io.Writer, list []mailboxJSON, res *apiv1.ListMailboxesResponse) {
	if len(list) > 0 {
		rows := [][]string{{"ID", "STATE", "WAITING", "ROOM", "KEEPS FOR", "LAST SEEN", "ADDED BY", "ADDRESS"}}
		for _, m := range list {
			rows = append(rows, []string{
				m.ID, m.State, fmt.Sprintf("%d, %s", m.Items, size(m.Bytes)), known(m.Quota, size), known(m.RetentionS, span),
				clock(m.LastSeen), m.AddedBy, m.Address,
			})
		}
		table(w, rows...)
		for _, m := range list {
			for _, e := range m.Evidence {
				fmt.Fprintf(w, "%s: %s\n", clean(m.ID), clean(e))
			}
			if m.ProbesLost > 0 {
				fmt.Fprintf(w, "%s: %d of %s did not come back\n", clean(m.ID), m.ProbesLost, plural(int(m.Probes), "test"))
			}
		}
	}
	switch {
	case res.Mode == "none":
		fmt.Fprintln(w, k.here("Mailboxes are switched off: messages reach you only while you are online. Switch them on with: kith up --mailbox auto"))
	case res.Total == 0 && len(list) > 0:
		fmt.Fprintln(w, "None is ready yet: messages reach you only while you are online. Contacts are told of a mailbox once it is open.")
	case res.Total == 0:
		fmt.Fprintln(w, k.here("No mailboxes yet: messages reach you only while you are online. kith opens some when it finds community nodes; or name one: kith mailbox add ADDRESS"))
	case res.Paused > 0:
		fmt.Fprintf(w, "%d of %d work; %d %s until midnight UTC, as the bytes of this day are used up: %s\n",
			res.Healthy, res.Total, res.Paused, notAsked(res.Paused), k.here("see kith budget. What is left there waits."))
	case res.Healthy < res.Needed:
		fmt.Fprintf(w, "Too few work: %d of %d, and a message counts as held when %s. Add one with: kith mailbox add%s ADDRESS\n",
			res.Healthy, res.Total, signed(res.Needed), k.at())
	default:
		fmt.Fprintf(w, "%d of %d work. A message counts as held when %s.\n", res.Healthy, res.Total, signed(res.Needed))
	}
}

func notAsked(n int32) string {
	if n == 1 {
		return "is not asked"
	}
	return "are not asked"
}

func signed(n int32) string {
	if n == 1 {
		return "one has signed for it"
	}
	return fmt.Sprintf("%d have signed for it", n)
}

func (k *kith) mailboxAddCmd() *cobra.Command {
	return k.command(&cobra.Command{
		Use:   "add ADDRESS",
		Short: "Have a community node keep my mail, and never replace it by itself",
		Long: `Have a community node keep my mail. ADDRESS is what kith up --role community
prints on that node, such as /ip4/…/tcp/…/p2p/…. Contacts are told of it as soon as
the mailbox is open.`,
	}, 1, 1, func(ctx context.Context, args []string) error {
		client, err := k.dial()
		if err != nil {
			return err
		}
		res, err := client.AddMailbox(ctx, &apiv1.AddMailboxRequest{Address: args[0]})
		if err != nil {
			return err
		}
		k.printMailbox(res.GetMailbox(), "The mailbox %s is added.")
		return nil
	})
}

func (k *kith) mailboxRemoveCmd() *cobra.Command {
	return k.command(&cobra.Command{
		Use:   "remove ID",
		Short: "Use a mailbox no longer; what is in it is still collected",
	}, 1, 1, func(ctx context.Context, args []string) error {
		client, err := k.dial()
		if err != nil {
			return err
		}
		res, err := client.RemoveMailbox(ctx, &apiv1.RemoveMailboxRequest{Id: args[0]})
		if err != nil {
			return noMailbox(err, args[0])
		}
		k.printMailbox(res.GetMailbox(), "Contacts are told to use %s no longer; it is collected from until nothing can come any more.")
		return nil
	})
}

// noMailbox says of a mailbox that is not found where mailboxes are listed.
func noMailbox(err error, id string) error {
	var e *api.Error
	if errors.As(err, &e) && e.Code == api.CodeNotFound {
		return &api.Error{Code: e.Code, Message: fmt.Sprintf("there is no mailbox %q", clean(id)), Hint: "kith mailbox list shows the ones you have"}
	}
	return err
}

func (k *kith) printMailbox(m *apiv1.Mailbox, sentence string) {
	k.print(toMailbox(m), func(w io.Writer) {
		if !k.quiet {
			fmt.Fprintf(w, sentence+"\n", clean(m.GetId()))
		}
	})
}

func (k *kith) mailboxTestCmd() *cobra.Command {
	return k.command(&cobra.Command{
		Use:   "test [ID]",
		Short: "Leave a test envelope at one mailbox, or at all, and see whether it comes back",
	}, 0, 1, func(ctx context.Context, args []string) error {
		client, err := k.dial()
		if err != nil {
			return err
		}
		req := &apiv1.TestMailboxRequest{}
		if len(args) == 1 {
			if req.Id = args[0]; req.Id == "" {
				return usagef("kith mailbox list shows the ones you have", "the id is empty")
			}
		}
		res, err := client.TestMailbox(ctx, req)
		if err != nil {
			return noMailbox(err, req.Id)
		}
		type result struct {
			ID       string  `json:"id"`
			OK       bool    `json:"ok"`
			Sentence string  `json:"sentence"`
			MS       float64 `json:"ms"`
		}
		results, bad := []result{}, 0
		for _, r := range res.Results {
			results = append(results, result{r.Id, r.Ok, r.Sentence, r.Ms})
			if !r.Ok {
				bad++
			}
		}
		k.print(results, func(w io.Writer) {
			if len(results) == 0 {
				fmt.Fprintln(w, k.here("No mailboxes to test. See: kith mailbox list"))
				return
			}
			rows := [][]string{}
			for _, r := range results {
				state, took := "ok", fmt.Sprintf("%.0f ms", r.MS)
				if !r.OK {
					state, took = "WRONG", "-"
				}
				rows = append(rows, []string{state, r.ID, took, r.Sentence})
			}
			table(w, rows...)
		})
		if bad > 0 {
			return &api.Error{
				Code: api.CodeRefused, Message: plural(bad, "mailbox test") + " failed",
				Hint: "see: kith mailbox list, or add another with: kith mailbox add ADDRESS",
			}
		}
		return nil
	})
}

// known shows a number that may not be known.
func known(n int64, show func(int64) string) string {
	if n == 0 {
		return "-"
	}
	return show(n)
}

// size shows bytes as a person wants them.
func size(n int64) string {
	units := []string{"kB", "MB", "GB", "TB", "PB"}
	if n < 1000 {
		return plural(int(n), "byte")
	}
	v := float64(n)
	unit := ""
	for _, unit = range units {
		if v /= 1000; v < 999.95 {
			break
		}
	}
	return fmt.Sprintf("%.1f %s", v, unit)
}

// span shows seconds as a person wants them.
func span(s int64) string {
	d := time.Duration(s) * time.Second
	switch {
	case d >= 48*time.Hour:
		return plural(int(d/(24*time.Hour)), "day")
	case d >= 2*time.Hour:
		return plural(int(d/time.Hour), "hour")
	case d >= 2*time.Minute:
		return plural(int(d/time.Minute), "minute")
	}
	return plural(int(s), "second")
}
