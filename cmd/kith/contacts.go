package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	apiv1 "github.com/kith-im/kith/node/api/v1"
)

type contactJSON struct {
	ID           string `json:"id"`
	Name         string `json:"name"`
	State        string `json:"state"`
	Verified     bool   `json:"verified"`
	Devices      int32  `json:"devices"`
	Added        int64  `json:"added"`
	LastSeen     int64  `json:"last_seen"`
	Conversation string `json:"conversation"`
	Fingerprint  string `json:"fingerprint"`
	Hidden       bool   `json:"address_hidden"`
	Alarm        string `json:"alarm,omitempty"`
	FirstText    string `json:"first_text,omitempty"`
}

func toContact(c *apiv1.Contact) contactJSON {
	return contactJSON{
		ID: c.GetId(), Name: c.GetName(), State: c.GetState(), Verified: c.GetVerified(), Devices: c.GetDevices(),
		Added: c.GetAddedMs(), LastSeen: c.GetLastSeenMs(), Conversation: c.GetConversation(),
		Fingerprint: c.GetFingerprint(), Hidden: c.GetAddressHidden(), Alarm: c.GetAlarm(), FirstText: c.GetFirstText(),
	}
}

func toContacts(list []*apiv1.Contact) []contactJSON {
	out := []contactJSON{}
	for _, c := range list {
		out = append(out, toContact(c))
	}
	return out
}

// word is s as one argument of a shell command that is shown to be typed.
func word(s string) string {
	s = clean(s)
	plain := s != "" && !strings.HasPrefix(s, "-")
	for _, c := range s {
		plain = plain && (c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.ContainsRune("-_./:@+,", c) || c > 0x7f)
	}
	if plain {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

func (k *kith) contactsCmd() *cobra.Command {
	return k.command(&cobra.Command{
		Use:   "contacts",
		Short: "List the people I can write to",
	}, 0, 0, func(ctx context.Context, _ []string) error {
		c, err := k.dial()
		if err != nil {
			return err
		}
		res, err := c.ListContacts(ctx, &apiv1.ListContactsRequest{})
		if err != nil {
			return err
		}
		k.print(toContacts(res.Contacts), func(w io.Writer) {
			if len(res.Contacts) == 0 {
				fmt.Fprintln(w, k.here("No contacts yet. Make a link for a friend with: kith invite"))
				return
			}
			rows := [][]string{{"NAME", "STATE", "VERIFIED", "LAST HEARD", "ID"}}
			for _, c := range res.Contacts {
				verified := "no"
				if c.Verified {
					verified = "yes"
				}
				state := c.State
				if state == "pending" && c.Devices == 0 {
					state = "searching" // its keys have not been found
				}
				rows = append(rows, []string{c.Name, state, verified, clock(c.LastSeenMs), c.Id})
			}
			table(w, rows...)
			for _, c := range res.Contacts {
				if c.Alarm != "" {
					fmt.Fprintf(w, "Sending to %s is paused: %s\n", clean(c.Name), clean(c.Alarm))
				}
			}
		})
		return nil
	})
}

func (k *kith) renameCmd() *cobra.Command {
	c := k.command(&cobra.Command{
		Use:   "rename CONTACT NAME",
		Short: "Give a contact another name, which only I see",
	}, 2, 2, func(ctx context.Context, args []string) error {
		c, err := k.dial()
		if err != nil {
			return err
		}
		res, err := c.RenameContact(ctx, &apiv1.RenameContactRequest{Contact: args[0], Name: args[1]})
		if err != nil {
			return err
		}
		k.printContact(res.GetContact(), "%s is the name now.")
		return nil
	})
	return k.completeContacts(c)
}

func (k *kith) blockCmd() *cobra.Command   { return k.setBlocked("block", true) }
func (k *kith) unblockCmd() *cobra.Command { return k.setBlocked("unblock", false) }

func (k *kith) setBlocked(verb string, blocked bool) *cobra.Command {
	short, done := "Hear nothing from a contact any more; they are not told", "%s is blocked and is not told."
	if !blocked {
		short, done = "Hear from a blocked contact again", "%s is not blocked any more."
	}
	c := k.command(&cobra.Command{
		Use:   verb + " CONTACT",
		Short: short,
	}, 1, 1, func(ctx context.Context, args []string) error {
		c, err := k.dial()
		if err != nil {
			return err
		}
		res, err := c.SetBlocked(ctx, &apiv1.SetBlockedRequest{Contact: args[0], Blocked: blocked})
		if err != nil {
			return err
		}
		k.printContact(res.GetContact(), done)
		return nil
	})
	return k.completeContacts(c)
}

func (k *kith) hideAddressCmd() *cobra.Command {
	c := k.command(&cobra.Command{
		Use:   "hide-address CONTACT on|off",
		Short: "Keep my address from a contact: reach them over relays and mailboxes only",
		Long: `Keep my address from a contact, or show it again. While it is hidden, messages
to and from that contact go over relays and mailboxes, and they are not dialled.
What they learnt before they keep: if they dial the address they remember, they
are answered until kith is restarted. With kith up --hide-address it is hidden
from everybody.`,
	}, 2, 2, func(ctx context.Context, args []string) error {
		on := args[1] == "on"
		if !on && args[1] != "off" {
			return usagef("use one of the two", "it is either on or off, not %q", clean(args[1]))
		}
		c, err := k.dial()
		if err != nil {
			return err
		}
		res, err := c.HideAddress(ctx, &apiv1.HideAddressRequest{Contact: args[0], Hidden: on})
		if err != nil {
			return err
		}
		done := "My address is hidden from %s from now on; restart kith, or they may still dial the address they remember."
		if !on {
			done = "My address is not hidden from %s any more."
		}
		k.printContact(res.GetContact(), done)
		return nil
	})
	return k.completeContacts(c)
}

// printContact prints the contact a command has changed; sentence has a %s
// for the name.
func (k *kith) printContact(c *apiv1.Contact, sentence string) {
	k.print(struct {
		Contact contactJSON `json:"contact"`
	}{toContact(c)}, func(w io.Writer) {
		if !k.quiet {
			fmt.Fprintln(w, strings.Replace(k.here(sentence), "%s", clean(c.GetName()), 1))
		}
	})
}

// completeContacts lets the shell complete the first argument with names of
// contacts.
func (k *kith) completeContacts(c *cobra.Command) *cobra.Command {
	c.ValidArgsFunction = func(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		client, err := k.dial()
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		res, err := client.ListContacts(cmd.Context(), &apiv1.ListContactsRequest{})
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		var names []string
		for _, c := range res.Contacts {
			if name := clean(c.Name); strings.HasPrefix(name, prefix) {
				names = append(names, name)
			}
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	}
	return c
}

func (k *kith) pingCmd() *cobra.Command {
	count := 1
	c := &cobra.Command{
		Use:   "ping CONTACT [-c N]",
		Short: "Reach a contact's device and measure the round trip",
	}
	c.Flags().IntVarP(&count, "count", "c", 1, "how many times, one second apart; 0: until interrupted")
	k.command(c, 1, 1, func(ctx context.Context, args []string) error {
		if count < 0 {
			return usagef("for example -c 5", "the count is negative")
		}
		client, err := k.dial()
		if err != nil {
			return err
		}
		for i := 0; count == 0 || i < count; i++ {
			if i > 0 {
				if err := pause(ctx, pingEvery); err != nil {
					return err
				}
			}
			res, err := client.Ping(ctx, &apiv1.PingRequest{Contact: args[0]})
			if err != nil {
				return err
			}
			k.print(struct {
				Ms      float64 `json:"ms"`
				Road    string  `json:"road"`
				Address string  `json:"address"`
			}{res.Ms, res.Road, res.Address}, func(w io.Writer) {
				fmt.Fprintf(w, "%s answered in %.2f ms (%s, %s)\n", clean(args[0]), res.Ms, clean(res.Road), clean(res.Address))
			})
		}
		return nil
	})
	return k.completeContacts(c)
}
