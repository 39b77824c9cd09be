package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/kith-im/kith/node/api"
	apiv1 "github.com/kith-im/kith/node/api/v1"
	"github.com/kith-im/kith/protocol"
)

const (
	// stopWait is how long kith down waits; the daemon itself takes at most
	// five seconds.
	stopWait = 15 * time.Second
	// readyWait is how long kith wait waits if no --timeout says otherwise.
	readyWait = time.Minute
	// readyEvery is how often both look.
	readyEvery = 25 * time.Millisecond
)

func (k *kith) downCmd() *cobra.Command {
	return k.command(&cobra.Command{
		Use:   "down",
		Short: "Stop the daemon, and return when it has stopped",
	}, 0, 0, func(ctx context.Context, _ []string) error {
		cfg, err := k.config()
		if err != nil {
			return err
		}
		client, err := k.dial()
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(ctx, stopWait)
		defer cancel()
		if _, err := client.Stop(ctx, &apiv1.StopRequest{}); err != nil {
			return err
		}
		// The daemon removes its socket last of all.
		for {
			if _, err := os.Lstat(cfg.api.value); errors.Is(err, os.ErrNotExist) {
				break
			}
			if err := pause(ctx, readyEvery); err != nil {
				return &api.Error{Code: api.CodeTimeout, Message: "the daemon was told to stop and still runs", Hint: "wait a little, or end its process"}
			}
		}
		k.print(struct {
			Stopped bool `json:"stopped"`
		}{true}, func(w io.Writer) {
			if !k.quiet {
				fmt.Fprintln(w, "kith has stopped.")
			}
		})
		return nil
	})
}

type dhtJSON struct {
	Mode  string `json:"mode"`
	Table int32  `json:"table"`
}

type statusJSON struct {
	Ready       bool              `json:"ready"`
	Role        string            `json:"role"`
	Version     string            `json:"version"`
	Account     string            `json:"account"`
	UptimeS     int64             `json:"uptime_s"`
	Listen      []string          `json:"listen"`
	Peers       int32             `json:"peers"`
	DHT         dhtJSON           `json:"dht"`
	Roads       map[string]string `json:"roads"`
	Outbox      int64             `json:"outbox"`
	RSSBytes    int64             `json:"rss_bytes"`
	Store       string            `json:"store"`
	Published   int32             `json:"published"`
	PublishGoal int32             `json:"publish_goal"`
	Goroutines  int32             `json:"goroutines"`
	ReadOnly    bool              `json:"read_only"`
	Mailboxes   *mailboxCount     `json:"mailboxes"` // null on a community node
	LAN         lanJSON           `json:"lan"`
	Budget      budgetJSON        `json:"budget"`
	Mode        *modeJSON         `json:"mode"`   // null on a community node
	Bridge      string            `json:"bridge"` // the web site of one; empty: it is none
	Mail        string            `json:"mail"`   // as of kith node status; empty: it is no community node
}

type mailboxCount struct {
	Mode    string `json:"mode"`
	Healthy int32  `json:"healthy"`
	Total   int32  `json:"total"`
	Needed  int32  `json:"needed"`
	Paused  int32  `json:"paused"`
}

func (c mailboxCount) String() string {
	switch {
	case c.Mode == "none":
		return "none: messages reach you only while you are online"
	case c.Total == 0:
		return "none yet: messages reach you only while you are online"
	case c.Paused > 0:
		return fmt.Sprintf("%d of %d work; %d %s until midnight UTC: the bytes of this day are used up", c.Healthy, c.Total, c.Paused, notAsked(c.Paused))
	case c.Healthy < c.Needed:
		return fmt.Sprintf("%d of %d work; see: kith mailbox list", c.Healthy, c.Total)
	}
	return fmt.Sprintf("%d of %d work", c.Healthy, c.Total)
}

func toStatus(s *apiv1.StatusResponse) statusJSON {
	out := statusJSON{
		Ready: s.Ready, Role: s.Role, Version: s.Version, Account: s.Account, UptimeS: s.UptimeS,
		Listen: nonNil(s.Listen), Peers: s.Peers, DHT: dhtJSON{s.GetDht().GetMode(), s.GetDht().GetTable()},
		Roads: s.Roads, Outbox: s.Outbox, RSSBytes: s.RssBytes, Store: s.Store,
		Published: s.Published, PublishGoal: s.PublishGoal, Goroutines: s.Goroutines, ReadOnly: s.ReadOnly,
		LAN: toLAN(s.GetLan()), Budget: toBudget(s.GetBudget()), Bridge: s.Bridge, Mail: s.Mail,
	}
	if m := s.GetMailboxes(); m != nil {
		out.Mailboxes = &mailboxCount{m.Mode, m.Healthy, m.Total, m.Needed, m.Paused}
	}
	if s.Mode != nil {
		mode := toMode(s.Mode)
		out.Mode = &mode
	}
	if out.Roads == nil {
		out.Roads = map[string]string{}
	}
	return out
}

func (k *kith) statusCmd() *cobra.Command {
	return k.command(&cobra.Command{
		Use:   "status",
		Short: "Show how the daemon is doing",
	}, 0, 0, func(ctx context.Context, _ []string) error {
		client, err := k.dial()
		if err != nil {
			return err
		}
		res, err := client.Status(ctx, &apiv1.StatusRequest{})
		if err != nil {
			return err
		}
		k.print(toStatus(res), func(w io.Writer) { k.writeStatus(w, toStatus(res)) })
		return nil
	})
}

func (k *kith) writeStatus(w io.Writer, s statusJSON) {
	state := "starting"
	if s.Ready {
		state = "ready"
	}
	if s.ReadOnly {
		state = "reading only: the disk is full or failed, nothing is sent or received"
	}
	rows := [][]string{
		{"state", state},
		{"role", s.Role},
		{"version", s.Version},
		{"up for", (time.Duration(s.UptimeS) * time.Second).String()},
	}
	if s.Account != "" {
		rows = append(rows, []string{"account", s.Account})
	}
	if s.Bridge != "" {
		rows = append(rows, []string{"bridge", bridgeOf(s.Bridge)})
	}
	if s.Mail != "" {
		rows = append(rows, []string{"mail", nodeState(s.Mail)})
	}
	for _, a := range s.Listen {
		rows = append(rows, []string{"listen", a})
	}
	rows = append(rows,
		[]string{"peers", strconv.Itoa(int(s.Peers))},
		[]string{"directory", fmt.Sprintf("%s, %s known", s.DHT.Mode, plural(int(s.DHT.Table), "node"))},
	)
	if s.PublishGoal > 0 {
		rows = append(rows, []string{"published", fmt.Sprintf("%d of %d", s.Published, s.PublishGoal)})
	}
	roads := make([]string, 0, len(s.Roads))
	for road := range s.Roads {
		roads = append(roads, road)
	}
	slices.Sort(roads)
	for _, road := range roads {
		rows = append(rows, []string{"road", road + ": " + s.Roads[road]})
	}
	if s.Mode != nil {
		rows = append(rows, []string{"mode", k.here(s.Mode.String())})
	}
	if s.Mailboxes != nil {
		rows = append(rows, []string{"mailboxes", k.here(s.Mailboxes.String())})
	}
	rows = append(rows, []string{"budget", s.Budget.String()})
	store := "protected by a passphrase"
	switch {
	case s.Store == "passphrase":
	case s.Role == "community":
		store = "protected by its key file alone: whoever can read your files can run a node in this one's name"
	default:
		store = "protected by its key file alone: whoever can read your files can read your messages"
	}
	rows = append(rows,
		[]string{"waiting", plural(int(s.Outbox), "envelope")},
		[]string{"store", store},
		[]string{"memory", fmt.Sprintf("%.1f MB, %s", float64(s.RSSBytes)/1e6, plural(int(s.Goroutines), "goroutine"))},
	)
	table(w, rows...)
}

func (k *kith) waitCmd() *cobra.Command {
	return k.command(&cobra.Command{
		Use:   "wait",
		Short: "Return when the daemon is ready",
	}, 0, 0, func(ctx context.Context, _ []string) error {
		if k.timeout == 0 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, readyWait)
			defer cancel()
		}
		client, err := k.dial()
		if err != nil {
			return err
		}
		for {
			res, err := client.Status(ctx, &apiv1.StatusRequest{})
			if err == nil && res.Ready {
				k.print(toStatus(res), func(w io.Writer) {
					if !k.quiet {
						fmt.Fprintln(w, "kith is ready.")
					}
				})
				return nil
			}
			var e *api.Error
			if err != nil && ctx.Err() == nil && (!errors.As(err, &e) || e.Code != api.CodeNotRunning) {
				return err
			}
			if pause(ctx, readyEvery) != nil {
				if err == nil {
					return &api.Error{Code: api.CodeTimeout, Message: "the daemon is still starting", Hint: "see: kith doctor"}
				}
				return &api.Error{Code: api.CodeTimeout, Message: "the daemon did not become ready in time: " + err.Error(), Hint: "start it with: " + k.start()}
			}
		}
	})
}

func (k *kith) doctorCmd() *cobra.Command {
	var report bool
	c := &cobra.Command{
		Use:   "doctor",
		Short: "Find out what does not work, and what to do about it",
		Long: `Look at everything that messages depend on, and say for each what was found and
what to do. What the network blocks is as kith netcheck found it last, unless open
connections show otherwise by now. It fails if
something is wrong; a warning is no failure, as that all hangs on one node, or that
something is blocked which kith gets past by itself.

With --report it prints a report that can be shown to others: no names, keys, ids
or addresses, of nobody.`,
	}
	c.Flags().BoolVar(&report, "report", false, "print a report without names, keys and addresses, to share")
	return k.command(c, 0, 0, func(ctx context.Context, _ []string) error {
		client, err := k.dial()
		if err != nil {
			return err
		}
		res, err := client.Doctor(ctx, &apiv1.DoctorRequest{})
		if err != nil {
			return err
		}
		if report {
			s, err := client.Status(ctx, &apiv1.StatusRequest{})
			if err != nil {
				return err
			}
			k.printReport(s, res.Checks)
			return nil
		}
		checks, bad := k.toChecks(res.Checks)
		k.print(struct {
			OK     bool        `json:"ok"`
			Checks []checkJSON `json:"checks"`
		}{bad == 0, checks}, func(w io.Writer) { writeChecks(w, checks) })
		if bad > 0 {
			return foundWrong(bad)
		}
		return nil
	})
}

func (k *kith) versionCmd() *cobra.Command {
	return k.command(&cobra.Command{
		Use:   "version",
		Short: "Show the version of this program",
	}, 0, 0, func(context.Context, []string) error {
		k.print(struct {
			Version  string `json:"version"`
			Protocol int    `json:"protocol"`
			Go       string `json:"go"`
			OS       string `json:"os"`
			Arch     string `json:"arch"`
		}{version, protocol.Version, runtime.Version(), runtime.GOOS, runtime.GOARCH}, func(w io.Writer) {
			fmt.Fprintf(w, "kith %s (protocol %d, %s, %s/%s)\n", version, protocol.Version, runtime.Version(), runtime.GOOS, runtime.GOARCH)
		})
		return nil
	})
}
