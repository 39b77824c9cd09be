package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	apiv1 "github.com/kith-im/kith/node/api/v1"
)

func (k *kith) bridgeCmd() *cobra.Command {
	c := &cobra.Command{
		Use:   "bridge",
		Short: "Bridges: community nodes that look like a web site",
		Long: `A bridge is a community node for people whose network lets only web sites
through. To everybody else it is a web site. Its address holds a secret path; each
person gets a path of their own, so that one that leaks can be taken back alone.

To run one:  kith up --role community --bridge --site DIR|URL --domain NAME
To use one:  kith bridge add ADDRESS`,
	}
	c.AddCommand(k.bridgeAddCmd(), k.bridgeRemoveCmd(), k.bridgeWaysCmd(), k.bridgeInviteCmd(), k.bridgeListCmd(), k.bridgeRevokeCmd(), k.learnHelloCmd())
	return group(c)
}

// bridgeOf says what a bridge is to everybody else.
func bridgeOf(site string) string { return "to everybody else the web site " + site }

type bridgeInviteJSON struct {
	ID      string `json:"id"`
	Name    string `json:"name"`
	Address string `json:"address"`
	Created int64  `json:"created"`
}

func toBridgeInvite(i *apiv1.BridgeInvite) bridgeInviteJSON {
	return bridgeInviteJSON{ID: i.GetId(), Name: i.GetName(), Address: i.GetAddress(), Created: i.GetCreatedMs()}
}

func (k *kith) bridgeInviteCmd() *cobra.Command {
	var name string
	c := &cobra.Command{
		Use:   "invite [--name NAME]",
		Short: "Make an address of this bridge for one person to use",
		Long: `Make an address of this bridge for one person to use and pass on in their
invites. It is a secret: whoever has it can tell that the site is a bridge.`,
	}
	c.Flags().StringVar(&name, "name", "", "a note to yourself: for whom it is")
	return k.command(c, 0, 0, func(ctx context.Context, _ []string) error {
		client, err := k.dial()
		if err != nil {
			return err
		}
		res, err := client.CreateBridgeInvite(ctx, &apiv1.CreateBridgeInviteRequest{Name: name})
		if err != nil {
			return err
		}
		invite := toBridgeInvite(res.GetInvite())
		k.print(invite, func(w io.Writer) {
			fmt.Fprintln(w, clean(invite.Address))
			if !k.quiet {
				fmt.Fprintf(w, "\nThey use it with:  kith bridge add ADDRESS\nTo take it back:   kith bridge revoke %s%s\n", clean(invite.ID), k.at())
			}
		})
		return nil
	})
}

func (k *kith) bridgeListCmd() *cobra.Command {
	return k.command(&cobra.Command{
		Use:   "list",
		Short: "List the addresses of this bridge and for whom they are",
	}, 0, 0, func(ctx context.Context, _ []string) error {
		client, err := k.dial()
		if err != nil {
			return err
		}
		res, err := client.ListBridgeInvites(ctx, &apiv1.ListBridgeInvitesRequest{})
		if err != nil {
			return err
		}
		list := []bridgeInviteJSON{}
		for _, i := range res.Invites {
			list = append(list, toBridgeInvite(i))
		}
		k.print(list, func(w io.Writer) {
			if len(list) == 0 {
				fmt.Fprintln(w, k.here("Nobody has an address of this bridge yet. Make one with: kith bridge invite"))
				return
			}
			rows := [][]string{{"ID", "MADE", "FOR", "ADDRESS"}}
			for _, i := range list {
				rows = append(rows, []string{i.ID, clock(i.Created), i.Name, i.Address})
			}
			table(w, rows...)
		})
		return nil
	})
}

func (k *kith) bridgeRevokeCmd() *cobra.Command {
	return k.command(&cobra.Command{
		Use:   "revoke ID",
		Short: "Take an address of this bridge back, so that it leads to the web site like any other",
	}, 1, 1, func(ctx context.Context, args []string) error {
		client, err := k.dial()
		if err != nil {
			return err
		}
		if _, err := client.RevokeBridgeInvite(ctx, &apiv1.RevokeBridgeInviteRequest{Id: args[0]}); err != nil {
			return err
		}
		k.print(struct {
			ID    string `json:"id"`
			State string `json:"state"`
		}{args[0], "revoked"}, func(w io.Writer) {
			if !k.quiet {
				fmt.Fprintln(w, "The address is taken back.")
			}
		})
		return nil
	})
}
