package node

import (
	"context"
	"encoding/json"
	"time"

	apiv1 "github.com/kith-im/kith/node/api/v1"
	"github.com/kith-im/kith/node/store"
	"github.com/kith-im/kith/node/transport"
)

// metaUsage keeps what was used on a day, which outlives the process; it is saved at
// the end, and every meterEvery where there is a budget of bytes.
const (
	metaUsage  = "usage"
	meterEvery = 5 * time.Minute
)

// meteredPace is by how much that is slower which nobody waits for, where bytes
// cost money: our tests of others, above all whether they keep what they said.
const meteredPace = 6

// leisurely is how long a pause is between things that nobody waits for.
func (n *Node) leisurely(pause time.Duration) time.Duration {
	if n.metered() {
		return meteredPace * pause
	}
	return pause
}

// meteredRefresh is how old the routing table may become where bytes cost money: a
// refresh is 0.19 MiB, and without one a look-up meets a few more who are gone.
const meteredRefresh = 6 * time.Hour

// Refresh is how old the routing table may become under a budget, for
// discovery.Config.
func Refresh(b transport.Budget) time.Duration {
	if b.Metered {
		return meteredRefresh
	}
	return 0 // as discovery has it
}

func (n *Node) metered() bool { return n.cfg.Host.Meter().Budget().Metered }

type usageRow struct {
	Day   int64           `json:"day"`
	Usage transport.Usage `json:"usage"`
}

// recount continues the count of an earlier run, before anything is used in this one.
func (n *Node) recount(ctx context.Context) error {
	return n.view(ctx, func(tx *store.Tx) error {
		b, err := tx.Meta(metaUsage)
		ok, err := found(err)
		var row usageRow
		if ok && json.Unmarshal(b, &row) == nil {
			n.cfg.Host.Meter().Restore(row.Usage, row.Day)
		}
		return err
	})
}

// meter keeps the count until ctx ends.
func (n *Node) meter(ctx context.Context) {
	meter := n.cfg.Host.Meter()
	var tick <-chan time.Time
	if meter.Budget().Bytes > 0 {
		ticker := time.NewTicker(meterEvery)
		defer ticker.Stop()
		tick = ticker.C
	}
	for {
		ended := false
		select {
		case <-tick:
		case <-ctx.Done():
			ended = true
		}
		u, day := meter.Usage()
		b, err := json.Marshal(usageRow{day, u})
		if err == nil {
			err = n.store.Update(context.WithoutCancel(ctx), func(tx *store.Tx) error { return tx.SetMeta(metaUsage, b) })
		}
		if err != nil && !ended {
			n.log.Warn("what was used today could not be kept")
		}
		if ended {
			return
		}
	}
}

// moreBytes is the next step where the bytes of the day are used up.
const moreBytes = "wait, or restart with a larger --bytes-per-day"

// needBytes refuses what a budget leaves no bytes for.
func (n *Node) needBytes() error {
	if n.cfg.Host.Meter().Spent() {
		return refuse(CodeQuota, moreBytes, "the bytes of this day are used up: until midnight UTC mailboxes are not asked")
	}
	return nil
}

// budget is what may be used, and what was.
func (n *Node) budget() *apiv1.Budget {
	meter := n.cfg.Host.Meter()
	b := meter.Budget()
	u, _ := meter.Usage()
	out := &apiv1.Budget{
		Preset: n.cfg.Preset, Memory: b.Memory, ConnectionsMax: int32(b.Connections), Connections: int32(len(n.cfg.Host.Network().Conns())),
		DialsPerMinute: int32(b.Dials), BytesPerDay: b.Bytes, BytesToday: u.Bytes(), Dials: u.Dials, Refused: u.Refused, Metered: b.Metered,
	}
	for i := range u.Sent {
		out.Usage = append(out.Usage, &apiv1.Usage{Subsystem: transport.Subsystem(i).String(), Sent: u.Sent[i], Received: u.Received[i]})
	}
	return out
}
