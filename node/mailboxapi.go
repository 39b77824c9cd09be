package node

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	apiv1 "github.com/kith-im/kith/node/api/v1"
	"github.com/kith-im/kith/node/store"
	"github.com/kith-im/kith/protocol/mailbox"
)

// Mailboxes returns the node's own boxes, for the local API.
func (n *Node) Mailboxes() *Mailboxes { return n.mail }

// mailboxText is the short name of a node for people.
func mailboxText(node peer.ID) string {
	h := sha256.Sum256([]byte(node))
	return hex.EncodeToString(h[:4])
}

func (m *Mailboxes) modeText() string {
	if m.n.cfg.MailboxMode == MailboxNone {
		return "none"
	}
	return "auto"
}

// standing is what the node of a box of ours is called to who asks. Where the day's
// bytes are used up it is not asked, and how it does is not known.
func (m *Mailboxes) standing(k store.KeeperRow, age int64) standing {
	s := standingNow(k, age)
	if s != standingGood && s != standingDegraded || !m.n.cfg.Host.Meter().Spent() {
		return s
	}
	if v, _ := m.look(peer.ID(k.Node)); v.connected { // from before
		return s
	}
	return standingPaused
}

// show is a box as the API shows it.
func (m *Mailboxes) show(tx *store.Tx, row store.BoxRow) (*apiv1.Mailbox, error) {
	node := peer.ID(row.Node)
	k, err := tx.Keeper(row.Node)
	if err != nil {
		return nil, err
	}
	all, err := decodeEvidence(k.Evidence)
	if err != nil {
		return nil, err
	}
	out := &apiv1.Mailbox{
		Id: mailboxText(node), Address: row.Address, State: string(m.standing(k, m.n.age.now())),
		LastSeenMs: k.Seen, Probes: k.Probes, ProbesLost: k.Lost, AddedBy: "default",
	}
	for _, e := range all {
		sentence := e.What
		if e.Count > 1 {
			sentence = fmt.Sprintf("%s (%d times)", e.What, e.Count)
		}
		out.Evidence = append(out.Evidence, sentence)
	}
	switch row.State {
	case store.BoxNew:
		if out.State == string(standingGood) {
			out.State = "new"
		}
	case store.BoxLeaving, store.BoxRemoved:
		out.State = "leaving"
	case store.BoxActive:
	}
	if row.Chosen {
		out.AddedBy = "you"
	}
	if v, ok := m.look(node); ok {
		if v.connected {
			out.LastSeenMs = m.n.now().UnixMilli()
		}
		out.Items, out.Bytes, out.Quota = int64(v.opened.Items), int64(v.opened.Bytes), int64(v.opened.Quota)
		out.RetentionS = int64((time.Duration(v.hours) * time.Hour).Seconds())
	}
	return out, nil
}

// ListMailboxes returns our boxes.
func (m *Mailboxes) ListMailboxes(ctx context.Context, _ *apiv1.ListMailboxesRequest) (*apiv1.ListMailboxesResponse, error) {
	out := &apiv1.ListMailboxesResponse{Mode: m.modeText()}
	err := m.n.view(ctx, func(tx *store.Tx) error {
		rows, err := tx.Boxes()
		if err != nil {
			return err
		}
		for _, row := range rows {
			shown, err := m.show(tx, row)
			if err != nil {
				return err
			}
			out.Mailboxes = append(out.Mailboxes, shown)
		}
		count, err := m.count(tx)
		out.Healthy, out.Needed, out.Total, out.Paused = count.Healthy, count.Needed, count.Total, count.Paused
		return err
	})
	return out, explain(err)
}

// count says how many boxes work.
func (m *Mailboxes) count(tx *store.Tx) (*apiv1.MailboxCount, error) {
	paused := 0
	healthy, all, err := healthyBoxes(tx, m.n.age.now(), func(k store.KeeperRow, age int64) standing {
		s := m.standing(k, age)
		if s == standingPaused {
			paused++
		}
		return s
	})
	return &apiv1.MailboxCount{
		Mode: m.modeText(), Healthy: int32(healthy), Total: int32(all), Needed: int32(max(1, min(holdersWanted, all))), Paused: int32(paused),
	}, err
}

// AddMailbox opens a box at a node that the user chose.
func (m *Mailboxes) AddMailbox(ctx context.Context, req *apiv1.AddMailboxRequest) (*apiv1.AddMailboxResponse, error) {
	a, err := ma.NewMultiaddr(req.Address)
	if err != nil {
		return nil, refuse(CodeUsage, "a community node prints its addresses when it starts, like /ip4/198.51.100.7/tcp/4001/p2p/12D3KooW…", "that is not the address of a community node")
	}
	info, err := mailInfo(a.Bytes())
	if err != nil {
		return nil, refuse(CodeUsage, "a community node prints its addresses when it starts, like /ip4/198.51.100.7/tcp/4001/p2p/12D3KooW…",
			"that is not the address of a community node")
	}
	address, err := addressOf(info)
	if err != nil {
		return nil, err
	}
	if m.n.cfg.MailboxMode == MailboxNone {
		return nil, refuse(CodeRefused, "start kith with --mailbox auto", "mailboxes are switched off")
	}
	rows, err := m.rows(ctx)
	if err != nil {
		return nil, explain(err)
	}
	inUse := 0
	have := false
	for _, row := range rows {
		switch {
		case peer.ID(row.Node) != info.ID:
			if !row.State.Leaving() && row.Chosen {
				inUse++
			}
		case !row.State.Leaving() && row.Chosen && row.Address == address:
			return m.added(ctx, row)
		default:
			have = true
		}
	}
	if inUse >= mailbox.MaxSet {
		return nil, refuse(CodeQuota, "remove one first: kith mailbox remove ID", "there are already %d mailboxes", inUse)
	}
	if err := m.n.needBytes(); err != nil {
		return nil, err
	}
	switch err := m.serves(ctx, info); {
	case err == nil:
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case errors.Is(err, errDial):
		return nil, refuse(CodeNetwork, "check the address, or try again later", "the community node does not answer")
	case errors.Is(err, errNoMailbox):
		return nil, refuse(CodeRefused, "choose another community node", "that node keeps no mail")
	default:
		return nil, refuse(CodeRefused, "choose another community node", "that node is being retired")
	}
	if !have {
		b, err := m.add(ctx, info, true)
		if err != nil {
			return nil, explain(err)
		}
		m.wake()
		return m.added(ctx, b.BoxRow)
	}
	// It was chosen by itself, was given up and is wanted again, or has moved.
	row, err := m.change(ctx, info.ID, func(row *store.BoxRow) {
		row.Chosen, row.Address = true, address
		if row.State.Leaving() {
			row.State, row.Left = store.BoxNew, 0
		}
	})
	if err != nil {
		return nil, explain(err)
	}
	return m.added(ctx, row)
}

func (m *Mailboxes) added(ctx context.Context, row store.BoxRow) (*apiv1.AddMailboxResponse, error) {
	out := &apiv1.AddMailboxResponse{}
	err := m.n.view(ctx, func(tx *store.Tx) (err error) {
		out.Mailbox, err = m.show(tx, row)
		return err
	})
	return out, explain(err)
}

func (m *Mailboxes) rows(ctx context.Context) (rows []store.BoxRow, err error) {
	err = m.n.view(ctx, func(tx *store.Tx) error {
		rows, err = tx.Boxes()
		return err
	})
	return rows, err
}

// change changes what is kept of a box, if there is one, and has it looked at.
func (m *Mailboxes) change(ctx context.Context, node peer.ID, fn func(*store.BoxRow)) (row store.BoxRow, err error) {
	err = m.n.update(ctx, func(w *work) error {
		rows, err := w.tx.Boxes()
		if err != nil {
			return err
		}
		for _, row = range rows {
			if peer.ID(row.Node) == node {
				fn(&row)
				w.mail = true
				return w.tx.SaveBox(row)
			}
		}
		return nil // it was forgotten meanwhile
	})
	return row, err
}

// resolve finds a box by a prefix of its short name or of its node's.
func (m *Mailboxes) resolve(ctx context.Context, word string) (store.BoxRow, error) {
	rows, err := m.rows(ctx)
	if err != nil {
		return store.BoxRow{}, explain(err)
	}
	var fits []store.BoxRow
	for _, row := range rows {
		node := peer.ID(row.Node)
		if word != "" && (strings.HasPrefix(mailboxText(node), strings.ToLower(word)) || strings.HasPrefix(node.String(), word)) {
			fits = append(fits, row)
		}
	}
	switch len(fits) {
	case 0:
		return store.BoxRow{}, refuse(CodeNotFound, "kith mailbox list shows the ones you have", "there is no mailbox %q", word)
	case 1:
		return fits[0], nil
	}
	return store.BoxRow{}, refuse(CodeUsage, "give more of the id", "%q fits several mailboxes", word)
}

// RemoveMailbox gives up a box: contacts are told, and it is emptied for as long
// as something may still come.
func (m *Mailboxes) RemoveMailbox(ctx context.Context, req *apiv1.RemoveMailboxRequest) (*apiv1.RemoveMailboxResponse, error) {
	row, err := m.resolve(ctx, req.Id)
	if err != nil {
		return nil, err
	}
	if row, err = m.change(ctx, peer.ID(row.Node), func(row *store.BoxRow) {
		if !row.State.Leaving() {
			row.Left = m.n.age.now()
		}
		row.State, row.Chosen = store.BoxRemoved, false
	}); err != nil {
		return nil, explain(err)
	}
	out := &apiv1.RemoveMailboxResponse{}
	err = m.n.view(ctx, func(tx *store.Tx) error {
		out.Mailbox, err = m.show(tx, row)
		return err
	})
	return out, explain(err)
}

// TestMailbox leaves a test envelope in a box, or in each, and waits for it.
func (m *Mailboxes) TestMailbox(ctx context.Context, req *apiv1.TestMailboxRequest) (*apiv1.TestMailboxResponse, error) {
	var rows []store.BoxRow
	if req.Id != "" {
		row, err := m.resolve(ctx, req.Id)
		if err != nil {
			return nil, err
		}
		rows = append(rows, row)
	} else {
		all, err := m.rows(ctx)
		if err != nil {
			return nil, explain(err)
		}
		for _, row := range all {
			if !row.State.Leaving() {
				rows = append(rows, row)
			}
		}
	}
	if err := m.n.needBytes(); err != nil && len(rows) > 0 {
		return nil, err
	}
	out := &apiv1.TestMailboxResponse{Results: make([]*apiv1.MailboxTest, len(rows))}
	var all sync.WaitGroup
	for i, row := range rows {
		all.Go(func() { out.Results[i] = m.tryBox(ctx, row) })
	}
	all.Wait()
	return out, ctx.Err()
}

// tryBox is one test, in a sentence.
func (m *Mailboxes) tryBox(ctx context.Context, row store.BoxRow) *apiv1.MailboxTest {
	node := peer.ID(row.Node)
	out := &apiv1.MailboxTest{Id: mailboxText(node)}
	m.mu.Lock()
	c := m.collectors[node]
	m.mu.Unlock()
	switch {
	case row.State.Leaving():
		out.Sentence = "It is being given up and takes no test messages."
		return out
	case c == nil || !c.look().connected:
		out.Sentence = "It does not answer; kith keeps trying."
		return out
	}
	took, err := c.probe(ctx)
	out.Ms = float64(took.Microseconds()) / 1000
	var r *refusal
	switch {
	case err == nil:
		out.Ok, out.Sentence = true, "A test message went there and came back."
	case errors.Is(err, errProbeLost):
		out.Sentence = "It signed for a test message and did not hand it out: replace it with kith mailbox remove and add."
	case errors.As(err, &r):
		out.Sentence = "It does not take a test message: " + refusalText(r.Why) + "."
	case errors.Is(err, errOddAnswer):
		out.Sentence = "It gave a false receipt for a test message: replace it with kith mailbox remove and add."
	default:
		out.Sentence = "It stopped answering; kith keeps trying."
	}
	return out
}
