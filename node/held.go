package node

// A node that drops the mail of one tag, or a single envelope, passes every
// test. The sender knows what it has signed for, the recipient what it has
// handed out, so the one tells the other (docs/spec/mailbox.md, section 9):
//
//  1. The sender notes, when a message is receipted, which nodes held it, and
//     says so beside a later text: never in an envelope that leaves by itself,
//     whose time would tell nodes something.
//  2. The recipient knows which mailbox handed out which envelope. What one
//     handed out and another should have and did not is a claim against that.
//  3. When the node has nothing more to hand out, a while later, it is doubted
//     if the claim still holds. A contact can bring an honest node into that:
//     who knows a tag can register it in a box of their own before us.

import (
	"bytes"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/kith-im/kith/node/store"
	"github.com/kith-im/kith/protocol"
	"github.com/kith-im/kith/protocol/envelope"
	"github.com/kith-im/kith/protocol/mailbox"
	"github.com/kith-im/kith/protocol/message"
)

const (
	// tellAfter is how long a receipt waits to be told of together with others.
	tellAfter = time.Hour
	// claimGrace is how long a node has, after it was told of what it signed
	// for, to hand it out.
	claimGrace = 10 * time.Minute
	// handedLife is how long it is remembered what a node handed out, and
	// maxHanded how many envelopes of each node: as much as a box holds.
	handedLife = messageLife
	maxHanded  = 64 << 10
)

// shortDigest is the part of an envelope's digest that names it in a
// message.Held.
func shortDigest(env []byte) []byte {
	d := mailbox.DigestOf(env)
	return d[:len(message.Left{}.Envelope)]
}

// receiptedAt notes which nodes hold a message whose receipt has come, before
// that is forgotten.
func (w *work) receiptedAt(d *store.DeliveryRow) error {
	holdings, err := w.tx.Holdings(d.ID, w.age)
	if err != nil || len(holdings) == 0 {
		return err
	}
	env, err := w.tx.Envelope(d.ID)
	if ok, err := found(err); !ok {
		return err
	}
	for _, h := range holdings {
		if err := w.tx.AddTelling(d.Contact, store.ReceiptRow{Envelope: shortDigest(env), Node: h.Node}, w.age); err != nil {
			return err
		}
	}
	return nil
}

// tellHeld tells a contact, beside a text, what its mailboxes gave receipts for.
func (w *work) tellHeld(c store.ContactRow) error {
	rows, err := w.tx.TakeTelling(c.ID, w.age-tellAfter.Milliseconds(), protocol.MaxBatch)
	if err != nil || len(rows) == 0 {
		return err
	}
	held := &message.Held{}
	for _, r := range rows {
		key, err := nodeKey(peer.ID(r.Node))
		if err != nil {
			return err
		}
		if !slices.Contains(held.Nodes, key) && len(held.Nodes) < mailbox.MaxSet {
			held.Nodes = append(held.Nodes, key)
		}
	}
	slices.SortFunc(held.Nodes, func(a, b [32]byte) int { return bytes.Compare(a[:], b[:]) })
	for _, r := range rows {
		key, err := nodeKey(peer.ID(r.Node))
		if err != nil {
			return err
		}
		i := slices.Index(held.Nodes, key)
		if i < 0 {
			continue // it has had many mailboxes
		}
		left := message.Left{Envelope: [16]byte(r.Envelope)}
		if n := len(held.Left); n == 0 || held.Left[n-1].Envelope != left.Envelope {
			held.Left = append(held.Left, left)
		}
		held.Left[len(held.Left)-1].Nodes |= 1 << i
	}
	return w.say(c, held)
}

// handed notes which envelopes a mailbox of ours handed out, of those that are
// addressed to us.
func (w *work) handed(node peer.ID, raw []byte) error {
	tag, _, err := envelope.Parse(raw)
	if err != nil {
		return nil
	}
	if _, err := w.tx.TagOwner(tag[:]); err != nil {
		_, err = found(err)
		return err
	}
	return w.tx.AddHanded(store.ReceiptRow{Envelope: shortDigest(raw), Node: []byte(node)}, w.age)
}

// takeHeld keeps what a contact says that mailboxes of ours signed for and did
// not hand out, until it can be judged.
func (w *work) takeHeld(c store.ContactRow, held *message.Held) error {
	boxes, err := w.tx.Boxes()
	if err != nil {
		return err
	}
	for _, b := range boxes {
		key, err := nodeKey(peer.ID(b.Node))
		if err != nil {
			return err
		}
		i := slices.Index(held.Nodes, key)
		if i < 0 {
			continue
		}
		for _, l := range held.Left {
			if l.Nodes>>i&1 == 0 {
				continue
			}
			if err := w.tx.AddClaim(c.ID, store.ReceiptRow{Envelope: l.Envelope[:], Node: b.Node}, w.age); err != nil {
				return err
			}
		}
	}
	return nil
}

// judge doubts a node that has handed out all it has, if it had signed for
// more: once for every contact who says so, however many messages it was.
func (w *work) judge(node peer.ID) error {
	n, err := w.tx.SettleClaims([]byte(node), w.age-claimGrace.Milliseconds())
	for range n {
		if err := w.doubt(node, strikeLoss, "it did not hand out a message that, as a contact says, it had signed for"); err != nil {
			return err
		}
	}
	return err
}
