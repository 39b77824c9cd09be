package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	apiv1 "github.com/kith-im/kith/node/api/v1"
)

type modeJSON struct {
	Mode    string `json:"mode"`
	Setting string `json:"setting"`
	Bridges int32  `json:"bridges"`
}

func toMode(m *apiv1.Mode) modeJSON {
	return modeJSON{Mode: m.GetMode(), Setting: m.GetSetting(), Bridges: m.GetBridges()}
}

func (m modeJSON) String() string {
	by := "kith chose it"
	switch {
	case m.Setting != "auto":
		by = "you chose it"
	case m.Mode == "censored":
		by = "kith chose it, for every network; kith mode open ends it"
	}
	return fmt.Sprintf("%s (%s), %s", m.Mode, by, plural(int(m.Bridges), "bridge"))
}

func (k *kith) modeCmd() *cobra.Command {
	return k.command(&cobra.Command{
		Use:   "mode [auto|open|censored]",
		Short: "Show or set what the network gets to see of kith",
		Long: `In open mode kith listens and connects as any program of its kind. In censored mode
it listens nowhere and connects to bridges alone, which look like web sites: nothing
else of it is on the network, and community nodes behind the bridges do what it
cannot do itself.

With auto, which is how it begins, kith goes over to censored mode when an invite or
kith bridge add gives it a bridge: who was given one needs it. A change takes effect at once, and stays.

It never goes back by itself, on no other network either: a network can only be
tried openly by being seen there, and what watches one network of a country watches
the others. Where nobody watches, kith mode open ends it; kith mode auto or
kith mode censored goes over again before the machine is back where somebody does.`,
	}, 0, 1, func(ctx context.Context, args []string) error {
		client, err := k.dial()
		if err != nil {
			return err
		}
		var mode *apiv1.Mode
		if len(args) == 0 {
			res, err := client.GetMode(ctx, &apiv1.GetModeRequest{})
			if err != nil {
				return err
			}
			mode = res.Mode
		} else {
			res, err := client.SetMode(ctx, &apiv1.SetModeRequest{Setting: args[0]})
			if err != nil {
				return err
			}
			mode = res.Mode
		}
		k.print(toMode(mode), func(w io.Writer) { fmt.Fprintln(w, k.here(toMode(mode).String())) })
		return nil
	})
}

type knownBridgeJSON struct {
	ID        string `json:"id"`
	Address   string `json:"address"`
	Shared    bool   `json:"shared"`
	AddedBy   string `json:"added_by"`
	Added     int64  `json:"added"`
	Connected bool   `json:"connected"`
}

func toKnownBridge(b *apiv1.Bridge) knownBridgeJSON {
	return knownBridgeJSON{
		ID: b.GetId(), Address: b.GetAddress(), Shared: b.GetShared(), AddedBy: b.GetAddedBy(),
		Added: b.GetAddedMs(), Connected: b.GetConnected(),
	}
}

func (k *kith) bridgeAddCmd() *cobra.Command {
	var secret bool
	c := &cobra.Command{
		Use:   "add ADDRESS",
		Short: "Use a bridge that somebody gave me",
		Long: `Use a bridge that somebody gave you. Your invites name it, and a part of your
contacts is told of it, unless it is added with --secret.`,
	}
	c.Flags().BoolVar(&secret, "secret", false, "tell nobody of it")
	return k.command(c, 1, 1, func(ctx context.Context, args []string) error {
		client, err := k.dial()
		if err != nil {
			return err
		}
		res, err := client.AddBridge(ctx, &apiv1.AddBridgeRequest{Address: args[0], Secret: secret})
		if err != nil {
			return err
		}
		k.print(struct {
			knownBridgeJSON
			Known bool `json:"known"`
		}{toKnownBridge(res.GetBridge()), res.GetKnown()}, func(w io.Writer) {
			sentence := "Bridge %s is used."
			if res.GetKnown() {
				sentence = "Bridge %s was known before, by this very address."
			}
			fmt.Fprintf(w, sentence+" The mode is %s.\n", clean(res.GetBridge().GetId()), k.here(toMode(res.GetMode()).String()))
		})
		return nil
	})
}

func (k *kith) bridgeRemoveCmd() *cobra.Command {
	return k.command(&cobra.Command{
		Use:   "remove ID",
		Short: "Forget a bridge under one of its addresses",
	}, 1, 1, func(ctx context.Context, args []string) error {
		client, err := k.dial()
		if err != nil {
			return err
		}
		if _, err := client.RemoveBridge(ctx, &apiv1.RemoveBridgeRequest{Id: args[0]}); err != nil {
			return err
		}
		k.print(struct {
			State string `json:"state"`
		}{"removed"}, func(w io.Writer) {
			fmt.Fprintln(w, k.here("That address of a bridge is forgotten. The mode stays as it is: see kith mode."))
		})
		return nil
	})
}

func (k *kith) bridgeWaysCmd() *cobra.Command {
	return k.command(&cobra.Command{
		Use:   "ways",
		Short: "List the bridges that I can use, and who gave them to me",
	}, 0, 0, func(ctx context.Context, _ []string) error {
		client, err := k.dial()
		if err != nil {
			return err
		}
		res, err := client.ListBridges(ctx, &apiv1.ListBridgesRequest{})
		if err != nil {
			return err
		}
		list := []knownBridgeJSON{}
		for _, b := range res.Bridges {
			list = append(list, toKnownBridge(b))
		}
		k.print(list, func(w io.Writer) {
			if len(list) == 0 {
				fmt.Fprintln(w, "No bridges yet. Who runs one makes an address for you with kith bridge invite; "+k.here("add it with: kith bridge add ADDRESS"))
				return
			}
			rows := [][]string{{"ID", "ADDED", "FROM", "SHARED", "CONNECTED", "ADDRESS"}}
			for _, b := range list {
				rows = append(rows, []string{b.ID, clock(b.Added), b.AddedBy, yesNo(b.Shared), yesNo(b.Connected), b.Address})
			}
			table(w, rows...)
		})
		return nil
	})
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
