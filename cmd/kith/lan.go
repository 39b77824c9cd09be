package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	apiv1 "github.com/kith-im/kith/node/api/v1"
)

func (k *kith) lanCmd() *cobra.Command {
	c := k.command(&cobra.Command{
		Use:   "lan [on|off]",
		Short: "Find contacts on the same local network, without the internet",
		Long: `Show whether kith looks for contacts on local networks, and what it finds.

With kith lan on, contacts who do the same and are on one Wi-Fi or switch with you
find each other in seconds, with nothing between them and nothing else running. It
stays on, after a restart as well, until kith lan off. It is off at first: whoever
watches the network sees that a machine sends packets of random bytes, and where;
they do not show names, keys, or how many contacts you have.

A community node that has it on is found by users on the same network who do.`,
	}, 0, 1, func(ctx context.Context, args []string) error {
		if len(args) > 0 { // on and off are commands of their own
			return usagef("use kith lan on or kith lan off", "the local network is either on or off, not %q", clean(args[0]))
		}
		client, err := k.dial()
		if err != nil {
			return err
		}
		res, err := client.Status(ctx, &apiv1.StatusRequest{})
		if err != nil {
			return err
		}
		k.printLAN(res.GetLan(), res.GetRole())
		return nil
	})
	c.AddCommand(k.lanSwitchCmd("on", "Be found by contacts on local networks, and find them", true),
		k.lanSwitchCmd("off", "Say and look for nothing on local networks", false))
	return c
}

func (k *kith) lanSwitchCmd(name, short string, on bool) *cobra.Command {
	return k.command(&cobra.Command{Use: name, Short: short}, 0, 0, func(ctx context.Context, _ []string) error {
		client, err := k.dial()
		if err != nil {
			return err
		}
		res, err := client.SetLan(ctx, &apiv1.SetLanRequest{On: on})
		if err != nil {
			return err
		}
		// It is switched, whatever becomes of the sentence.
		status, err := client.Status(ctx, &apiv1.StatusRequest{})
		if err != nil {
			status = &apiv1.StatusResponse{}
		}
		k.printLAN(res.GetLan(), status.GetRole())
		if on && status.GetMode().GetMode() == "censored" && !k.json && !k.quiet {
			fmt.Fprintln(k.stdout, k.here("In censored mode, too, kith listens on local networks meanwhile, and whoever is on one can find that out; kith lan off ends it"))
		}
		return nil
	})
}

type lanJSON struct {
	On       bool   `json:"on"`
	Networks int32  `json:"networks"`
	Devices  int32  `json:"devices"`
	Nodes    int32  `json:"nodes"`
	Problem  string `json:"problem,omitempty"`
}

func toLAN(l *apiv1.Lan) lanJSON {
	return lanJSON{l.GetOn(), l.GetNetworks(), l.GetDevices(), l.GetNodes(), l.GetProblem()}
}

// printLAN says how the local network stands: with a user who looks for contacts, or
// with a community node, which has none and is there to be found.
func (k *kith) printLAN(l *apiv1.Lan, role string) {
	community := role == "community"
	k.print(toLAN(l), func(w io.Writer) {
		at := plural(int(l.GetNetworks()), "local address")
		switch {
		case !l.GetOn() && community:
			fmt.Fprintln(w, k.here("Off: users on the same network do not find this node that way. Switch it on with: kith lan on"))
		case !l.GetOn():
			fmt.Fprintln(w, k.here("Off: contacts on the same network do not find you that way. Switch it on with: kith lan on"))
		case l.GetProblem() != "":
			fmt.Fprintf(w, "On, but %s.\n", clean(l.GetProblem()))
		case l.GetNetworks() == 0 && community:
			fmt.Fprintln(w, "On: users on the same network who switch it on too find this node from now on.")
		case l.GetNetworks() == 0:
			fmt.Fprintln(w, "On: contacts on the same network who switch it on too are looked for from now on.")
		case community:
			fmt.Fprintf(w, "On, at %s: users there who switch it on too find this node.\n", at)
		default:
			fmt.Fprintf(w, "On, at %s: %s of contacts and %s heard.\n", at,
				plural(int(l.GetDevices()), "device"), plural(int(l.GetNodes()), "community node"))
		}
	})
}
