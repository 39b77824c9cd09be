package main

import (
	"context"
	"fmt"
	"io"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/kith-im/kith/node"
	apiv1 "github.com/kith-im/kith/node/api/v1"
	"github.com/kith-im/kith/node/transport"
)

const presetOffline = "offline"

// presets are budgets by name. What one leaves at zero has no limit, but for the
// memory, which each has.
var presets = map[string]transport.Budget{
	"laptop":      {Memory: transport.UserMemory, Dials: 600},
	"lowpower":    {Memory: transport.UserMemory / 2, Connections: 48, Dials: 60, Bytes: 200 << 20},
	"server":      {Memory: transport.CommunityMemory},
	"bridge":      {Memory: transport.CommunityMemory, Dials: 600},
	presetOffline: {Memory: transport.UserMemory / 2, Connections: 32, Dials: 60},
}

// budgetSettings finds the budget that the configuration names.
func (d *daemon) budgetSettings() error {
	d.preset = d.cfg.preset.value
	if d.preset == "" {
		d.preset = "laptop"
		if d.role == node.RoleCommunity {
			d.preset = "server"
		}
	}
	b, ok := presets[d.preset]
	if !ok {
		return usagef("use laptop, lowpower, server, bridge or offline", "there is no preset %q", clean(d.preset))
	}
	if d.cfg.metered.value {
		if d.role == node.RoleCommunity {
			return usagef("leave it away", "--metered is for a user: a community node is there to serve others")
		}
		b.Metered = true
		low := presets["lowpower"]
		b.Bytes, b.Connections, b.Dials = least(b.Bytes, low.Bytes), least(b.Connections, low.Connections), least(b.Dials, low.Dials)
	}
	for _, s := range []struct {
		key   string
		given string
		to    *int64
		least int64
	}{
		{"bytes-per-day", d.cfg.perDay.value, &b.Bytes, 1e6},
		{"memory", d.cfg.memory.value, &b.Memory, 2 * transport.MinMemory},
	} {
		if s.given == "" {
			continue
		}
		n, err := parseSize("--"+s.key, "200MB", s.given)
		if err != nil {
			return err
		}
		if n < s.least {
			return usagef("the least is "+size(s.least), "%s of %s is too little", s.key, size(n))
		}
		*s.to = n
	}
	for _, s := range []struct {
		key   string
		given string
		to    *int
	}{
		{"connections", d.cfg.conns.value, &b.Connections},
		{"dials-per-minute", d.cfg.dials.value, &b.Dials},
	} {
		if s.given == "" {
			continue
		}
		n, err := strconv.ParseUint(s.given, 10, 16)
		if err != nil || n == 0 {
			return usagef("for example --"+s.key+" 60", "%s takes a number from 1 to 65535, not %q", s.key, clean(s.given))
		}
		*s.to = int(n)
	}
	d.meter = transport.NewMeter(b, nil)
	return nil
}

// least is the lower of two limits, of which 0 is none.
func least[T int | int64](a, b T) T {
	if a == 0 || b == 0 {
		return max(a, b)
	}
	return min(a, b)
}

// private is what the host for conversations may dial beside what the network of
// the daemon has: a contact may be on the same local network. Offline, it is
// only what is heard there.
func (d *daemon) private() transport.Reach {
	if d.preset == presetOffline {
		return 0
	}
	return transport.Private
}

func (k *kith) budgetCmd() *cobra.Command {
	return k.command(&cobra.Command{
		Use:   "budget",
		Short: "Show what kith may use of this machine and network, and what it uses",
		Long: `Show what kith may use of this machine and its network, and what it has used since
midnight UTC, by what it was for.

kith up --preset NAME, or preset in the config file, chooses among:

  laptop     64 MiB for connections, 600 dials a minute (default of a user)
  lowpower   32 MiB, 48 connections of each host, 60 dials a minute, 200 MiB a day
  server     256 MiB (default of a community node)
  bridge     256 MiB, 600 dials a minute
  offline    nothing is dialled but what is heard on a local network (kith lan on)

--bytes-per-day, --memory, --connections and --dials-per-minute change a single
figure of it. Where bytes cost money, --metered lowers connections, dials and bytes a
day to those of lowpower, and slows what nobody waits for: records are renewed and
looked for more rarely, mailboxes tested and the directory refreshed. Texts leave and
arrive as fast as ever, and nobody else is served, as by no user's daemon.
When the bytes of a day are used up, everything ends until midnight but
conversations with contacts: the directory, mailboxes, and what is done for others.

Every start, and two to four times a day besides, this device is announced anew, to each
contact and for each open invite: 0.3 MB for each where there are three community nodes,
0.4 with five, and 1 MB from twelve on. An hour in which nothing happens takes 0.1 to
0.6 MB; with --metered a third of it at most.`,
	}, 0, 0, func(ctx context.Context, _ []string) error {
		client, err := k.dial()
		if err != nil {
			return err
		}
		res, err := client.Status(ctx, &apiv1.StatusRequest{})
		if err != nil {
			return err
		}
		b := toBudget(res.GetBudget())
		k.print(b, func(w io.Writer) { writeBudget(w, b) })
		return nil
	})
}

type usageJSON struct {
	Subsystem string `json:"subsystem"`
	Sent      int64  `json:"sent"`
	Received  int64  `json:"received"`
}

type budgetJSON struct {
	Preset         string      `json:"preset"`
	Metered        bool        `json:"metered"`
	Memory         int64       `json:"memory"`
	ConnectionsMax int32       `json:"connections_max"`
	Connections    int32       `json:"connections"`
	DialsPerMinute int32       `json:"dials_per_minute"`
	BytesPerDay    int64       `json:"bytes_per_day"`
	BytesToday     int64       `json:"bytes_today"`
	Usage          []usageJSON `json:"usage"`
	Dials          int64       `json:"dials"`
	Refused        int64       `json:"refused"`
}

func toBudget(b *apiv1.Budget) budgetJSON {
	out := budgetJSON{
		Preset: b.GetPreset(), Metered: b.GetMetered(), Memory: b.GetMemory(), ConnectionsMax: b.GetConnectionsMax(), Connections: b.GetConnections(),
		DialsPerMinute: b.GetDialsPerMinute(), BytesPerDay: b.GetBytesPerDay(), BytesToday: b.GetBytesToday(),
		Usage: []usageJSON{}, Dials: b.GetDials(), Refused: b.GetRefused(),
	}
	for _, u := range b.GetUsage() {
		out.Usage = append(out.Usage, usageJSON{u.Subsystem, u.Sent, u.Received})
	}
	return out
}

// String is the budget in a few words, for status.
func (b budgetJSON) String() string {
	out := size(b.BytesToday) + " today"
	if b.BytesPerDay > 0 {
		out += " of " + size(b.BytesPerDay)
		if b.BytesToday >= b.BytesPerDay {
			out += ", used up: until midnight UTC there are conversations alone"
		}
	}
	out = b.Preset + ", " + out
	if b.Metered {
		out += ", metered: what nobody waits for is slow"
	}
	return out
}

func writeBudget(w io.Writer, b budgetJSON) {
	limit := func(n int64, text string) string {
		if n == 0 {
			return "no limit"
		}
		return text
	}
	rows := [][]string{
		{"preset", b.Preset},
		{"metered", yesNo(b.Metered)},
		{"memory", size(b.Memory) + " for connections"},
		{"connections", fmt.Sprintf("%d; limit: %s", b.Connections, limit(int64(b.ConnectionsMax), strconv.Itoa(int(b.ConnectionsMax))))},
		{"dials", fmt.Sprintf("%d since the start; limit a minute: %s", b.Dials, limit(int64(b.DialsPerMinute), strconv.Itoa(int(b.DialsPerMinute))))},
		{"today", fmt.Sprintf("%s; limit: %s", size(b.BytesToday), limit(b.BytesPerDay, size(b.BytesPerDay)))},
	}
	for _, u := range b.Usage {
		rows = append(rows, []string{"  " + u.Subsystem, fmt.Sprintf("%s sent, %s received", size(u.Sent), size(u.Received))})
	}
	table(w, append(rows, []string{"over budget", fmt.Sprintf("%d dials and connections refused since the start", b.Refused)})...)
}
