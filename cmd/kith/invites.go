package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"rsc.io/qr"

	"github.com/kith-im/kith/node/api"
	apiv1 "github.com/kith-im/kith/node/api/v1"
)

type inviteJSON struct {
	ID       string `json:"id"`
	Link     string `json:"link"`
	Expires  int64  `json:"expires"`
	Uses     int32  `json:"uses"`
	Reusable bool   `json:"reusable"`
	Name     string `json:"name"`
	State    string `json:"state"`
	Created  int64  `json:"created"`
}

func toInvite(i *apiv1.Invite) inviteJSON {
	return inviteJSON{
		ID: i.GetId(), Link: i.GetLink(), Expires: i.GetExpiresMs(), Uses: i.GetUses(),
		Reusable: i.GetReusable(), Name: i.GetName(), State: i.GetState(), Created: i.GetCreatedMs(),
	}
}

func (k *kith) inviteCmd() *cobra.Command {
	var reusable, qrCode bool
	var expires, name string
	c := &cobra.Command{
		Use:   "invite [--reusable] [--expires TIME] [--name NAME] [--qr]",
		Short: "Make a link that lets someone become a contact",
		Long: `Make a link that lets someone become a contact. Send it over a channel you
trust: whoever has it first can use it. It works once, unless --reusable.`,
	}
	c.Flags().BoolVar(&reusable, "reusable", false, "let the link work more than once; each use is a request to approve")
	c.Flags().StringVar(&expires, "expires", "7d", "how long the link works, for example 12h or 30d")
	c.Flags().StringVar(&name, "name", "", "a note to yourself: for whom it is")
	c.Flags().BoolVar(&qrCode, "qr", false, "show the link as a QR code too")
	k.command(c, 0, 0, func(ctx context.Context, _ []string) error {
		life, err := parseLife("--expires", expires)
		if err != nil {
			return err
		}
		client, err := k.dial()
		if err != nil {
			return err
		}
		res, err := client.CreateInvite(ctx, &apiv1.CreateInviteRequest{Reusable: reusable, ExpiresS: int64(life / time.Second), Name: name})
		if err != nil {
			return err
		}
		inv := res.GetInvite()
		var code string
		if qrCode {
			if code, err = halfBlocks(inv.GetLink()); err != nil {
				return err
			}
		}
		k.print(toInvite(inv), func(w io.Writer) {
			if k.quiet {
				fmt.Fprintln(w, clean(inv.GetLink()))
				return
			}
			fmt.Fprintf(w, "%s%s\n\n", code, clean(inv.GetLink()))
			fmt.Fprintf(w, "Give this link to your friend, who runs:  kith accept LINK\nIt works until %s", clock(inv.GetExpiresMs()))
			if !reusable {
				fmt.Fprint(w, ", once")
			}
			fmt.Fprintf(w, ". To take it back:  kith invite revoke %s%s\n", clean(inv.GetId()), k.at())
		})
		return nil
	})
	c.AddCommand(k.command(&cobra.Command{
		Use:   "revoke ID",
		Short: "Take an invite back, so that nobody can use it any more",
	}, 1, 1, func(ctx context.Context, args []string) error {
		client, err := k.dial()
		if err != nil {
			return err
		}
		if _, err := client.RevokeInvite(ctx, &apiv1.RevokeInviteRequest{Id: args[0]}); err != nil {
			return err
		}
		k.print(struct {
			ID    string `json:"id"`
			State string `json:"state"`
		}{args[0], "revoked"}, func(w io.Writer) {
			if !k.quiet {
				fmt.Fprintln(w, "The invite is revoked.")
			}
		})
		return nil
	}))
	return c
}

// maxLife is how long an invite or an undelivered message lives at most.
const maxLife = 365 * 24 * time.Hour

// parseLife reads a flag with a time span that may also be in days.
func parseLife(flag, s string) (time.Duration, error) {
	bad := usagef(fmt.Sprintf("for example %s 12h or %s 30d", flag, flag), "%q is no length of time", clean(s))
	if days, ok := strings.CutSuffix(s, "d"); ok {
		n, err := strconv.ParseUint(days, 10, 16)
		if err != nil || n == 0 {
			return 0, bad
		}
		s = fmt.Sprintf("%dh", 24*n)
	}
	d, err := time.ParseDuration(s)
	switch {
	case err != nil || d < time.Second:
		return 0, bad
	case d > maxLife:
		return 0, usagef("choose 365d or less", "%s is too long", flag)
	}
	return d, nil
}

func (k *kith) invitesCmd() *cobra.Command {
	return k.command(&cobra.Command{
		Use:   "invites",
		Short: "List the invites I made",
	}, 0, 0, func(ctx context.Context, _ []string) error {
		client, err := k.dial()
		if err != nil {
			return err
		}
		res, err := client.ListInvites(ctx, &apiv1.ListInvitesRequest{})
		if err != nil {
			return err
		}
		list := []inviteJSON{}
		for _, i := range res.Invites {
			list = append(list, toInvite(i))
		}
		k.print(list, func(w io.Writer) {
			if len(list) == 0 {
				fmt.Fprintln(w, k.here("No invites. Make one with: kith invite"))
				return
			}
			rows := [][]string{{"ID", "STATE", "USES", "EXPIRES", "FOR"}}
			for _, i := range list {
				rows = append(rows, []string{i.ID, i.State, strconv.Itoa(int(i.Uses)), clock(i.Expires), i.Name})
			}
			table(w, rows...)
		})
		return nil
	})
}

const (
	// lookingAfter is how long kith accept waits before it says for what: a
	// link that is refused is refused sooner.
	lookingAfter = 300 * time.Millisecond
	// maxLinkParts is into how many arguments a broken link may have fallen.
	maxLinkParts = 64
)

func (k *kith) acceptCmd() *cobra.Command {
	var wait bool
	var name string
	c := &cobra.Command{
		Use:   "accept LINK [--name NAME] [--wait]",
		Short: "Become contacts from a friend's link",
		Long: `Become contacts from a friend's link. You can write at once, even if your
friend is offline: what you write is delivered when they come back.`,
	}
	c.Flags().BoolVar(&wait, "wait", false, "return when the friend's device has answered")
	c.Flags().StringVar(&name, "name", "", "what to call the contact")
	k.command(c, 1, maxLinkParts, func(ctx context.Context, args []string) error {
		client, err := k.dial()
		if err != nil {
			return err
		}
		// Mail breaks long lines, and the shell makes arguments of the parts.
		link := strings.Join(strings.Fields(strings.Join(args, " ")), "")
		said := make(chan struct{})
		looking := time.AfterFunc(lookingAfter, func() {
			k.notef("Looking for the one who made this link …")
			close(said)
		})
		res, err := client.AcceptInvite(ctx, &apiv1.AcceptInviteRequest{Link: link, Name: name})
		if !looking.Stop() {
			<-said
		}
		var bad *api.Error
		if errors.As(err, &bad) && bad.Code == api.CodeUsage && len(args) > 1 { // kith accept LINK ann
			return &api.Error{Code: bad.Code, Message: bad.Message, Hint: "give nothing but the link, and a name with --name NAME"}
		}
		if err != nil {
			return err
		}
		contact := res.GetContact()
		if wait {
			if contact.GetState() == "pending" {
				k.notef("Found %s. Waiting for the first answer …", clean(contact.GetName()))
			}
			name := clean(contact.GetName())
			contact, err = waitEstablished(ctx, client, contact)
			var late *api.Error
			if errors.Is(err, context.DeadlineExceeded) || errors.As(err, &late) && late.Code == api.CodeTimeout {
				return &api.Error{
					Code:    api.CodeTimeout,
					Message: name + " has not answered yet; kith keeps trying while it runs",
					Hint:    "they may be offline, may have to approve you first, or somebody else has used the link: then ask for a new one",
				}
			}
			if err != nil {
				return err
			}
		}
		sentence := "%s is a contact now."
		switch {
		case contact.GetDevices() == 0:
			sentence = "%s was not found yet; kith keeps looking, and you can write as soon as kith contacts says searching no more."
		case contact.GetState() == "pending":
			sentence = "You can write to %s now; the contact is pending until the first answer."
		}
		k.printContact(contact, sentence)
		return nil
	})
	return c
}

// waitEstablished returns the contact once it is no longer pending. Events wake
// it; it also looks by itself, since the change may have come before the watch.
func waitEstablished(ctx context.Context, client *api.Client, contact *apiv1.Contact) (*apiv1.Contact, error) {
	watch, cancel := context.WithCancel(ctx)
	wake := make(chan struct{}, 1)
	ended := make(chan error, 1)
	go func() {
		ended <- client.WatchEvents(watch, &apiv1.WatchEventsRequest{From: "now"}, func(e *apiv1.Event) error {
			if e.Type == "contact" {
				select {
				case wake <- struct{}{}:
				default:
				}
			}
			return nil
		})
	}()
	defer func() {
		cancel()
		if ended != nil {
			<-ended
		}
	}()
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		res, err := client.ListContacts(ctx, &apiv1.ListContactsRequest{})
		if err != nil {
			return nil, err
		}
		for _, c := range res.Contacts {
			if c.Id == contact.GetId() && c.State != "pending" {
				return c, nil
			}
		}
		select {
		case <-wake:
		case <-tick.C:
		case err := <-ended:
			ended = nil
			if ctx.Err() != nil {
				err = ctx.Err()
			}
			return nil, err
		}
	}
}

func (k *kith) requestsCmd() *cobra.Command {
	return k.command(&cobra.Command{
		Use:   "requests",
		Short: "List those who want to become contacts",
	}, 0, 0, func(ctx context.Context, _ []string) error {
		client, err := k.dial()
		if err != nil {
			return err
		}
		res, err := client.ListRequests(ctx, &apiv1.ListRequestsRequest{})
		if err != nil {
			return err
		}
		k.print(toContacts(res.Requests), func(w io.Writer) {
			if len(res.Requests) == 0 {
				fmt.Fprintln(w, "No requests.")
				return
			}
			for _, r := range res.Requests {
				if r.FirstText == "" {
					fmt.Fprintf(w, "%s is shown as %s and has not written yet.\n", clean(r.Id), clean(r.Name))
					continue
				}
				fmt.Fprintf(w, "%s is shown as %s and writes:\n  %s\n", clean(r.Id), clean(r.Name), cleanText(r.FirstText, "  "))
			}
			fmt.Fprintln(w, k.here("Answer with: kith approve ID, or: kith reject ID"))
		})
		return nil
	})
}

func (k *kith) approveCmd() *cobra.Command {
	return k.command(&cobra.Command{
		Use:   "approve ID",
		Short: "Make the sender of a request a contact",
	}, 1, 1, func(ctx context.Context, args []string) error {
		client, err := k.dial()
		if err != nil {
			return err
		}
		res, err := client.ApproveRequest(ctx, &apiv1.ApproveRequestRequest{Id: args[0]})
		if err != nil {
			return noRequest(err, args[0])
		}
		k.printContact(res.GetContact(), "%s is a contact now.")
		return nil
	})
}

// noRequest says of a request that is not found where requests are listed.
func noRequest(err error, id string) error {
	var e *api.Error
	if errors.As(err, &e) && e.Code == api.CodeNotFound {
		return &api.Error{Code: e.Code, Message: fmt.Sprintf("there is no request %q", clean(id)), Hint: "kith requests lists the ones you have"}
	}
	return err
}

func (k *kith) rejectCmd() *cobra.Command {
	return k.command(&cobra.Command{
		Use:   "reject ID",
		Short: "Refuse a request; its sender is not told",
	}, 1, 1, func(ctx context.Context, args []string) error {
		client, err := k.dial()
		if err != nil {
			return err
		}
		if _, err := client.RejectRequest(ctx, &apiv1.RejectRequestRequest{Id: args[0]}); err != nil {
			return noRequest(err, args[0])
		}
		k.print(struct {
			ID    string `json:"id"`
			State string `json:"state"`
		}{args[0], "rejected"}, func(w io.Writer) {
			if !k.quiet {
				fmt.Fprintln(w, "The request is rejected; its sender is not told.")
			}
		})
		return nil
	})
}

// halfBlocks draws text as a QR code, two rows of modules to a line. Light
// modules are drawn and dark ones left empty, as most terminals are dark;
// scanners read the code inverted as well.
func halfBlocks(text string) (string, error) {
	code, err := qr.Encode(text, qr.M)
	if err != nil {
		return "", errors.New("this is too long for a QR code; copy the text instead")
	}
	const quiet = 2 // modules; scanners of today need less than the standard's four
	var b strings.Builder
	light := func(x, y int) bool { return !code.Black(x, y) } // outside the code Black is false
	for y := -quiet; y < code.Size+quiet; y += 2 {
		for x := -quiet; x < code.Size+quiet; x++ {
			top, bottom := light(x, y), light(x, y+1) && y+1 < code.Size+quiet
			switch {
			case top && bottom:
				b.WriteRune('█')
			case top:
				b.WriteRune('▀')
			case bottom:
				b.WriteRune('▄')
			default:
				b.WriteByte(' ')
			}
		}
		b.WriteByte('\n')
	}
	return b.String() + "\n", nil
}
