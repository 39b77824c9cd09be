package node

// A message's way out (docs/architecture.md; the functions stand in this
// order, and outbox.go carries on):
//
//  1. Send checks the request and begins one transaction. In it,
//  2. compose gives every text its place in the conversation,
//  3. address seals it for each of the contact's devices, and for our others,
//  4. and the sessions, the messages and the envelopes are committed and
//     synced together. Only now the caller gets the ids: queued.
//  5. The outbox of each device wakes and offers the stored bytes, by whatever
//     road, as often as it takes: the same bytes each time.
//  6. The recipient's receipt arrives (receive.go): delivered.
//
// Invariant: commit, then send.

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	apiv1 "github.com/kith-im/kith/node/api/v1"
	"github.com/kith-im/kith/node/store"
	"github.com/kith-im/kith/protocol"
	"github.com/kith-im/kith/protocol/identity"
	"github.com/kith-im/kith/protocol/message"
)

const (
	// messageLife is how long a message is offered before it expires: as long
	// as the recipient keeps the key of a message that is late.
	messageLife = 30 * 24 * time.Hour

	// never is the age at which a control message expires: its envelope keeps
	// the way passable for those after it, see milestone.
	never = math.MaxInt64

	// milestone: a ratchet passes over at most protocol.MaxSkipGap messages
	// that never come. Envelopes that expire or are cancelled never leave, so
	// every so many a control message is sealed that always will.
	milestone = protocol.MaxSkipGap / 2
)

// Send queues texts for a conversation, all or none.
func (n *Node) Send(ctx context.Context, req *apiv1.SendRequest) (*apiv1.SendResponse, error) {
	if err := n.needUser(); err != nil {
		return nil, err
	}
	var reply message.ID
	life := messageLife
	if req.ExpireS > 0 {
		life = min(time.Duration(req.ExpireS)*time.Second, messageLife)
	}
	var out *apiv1.SendResponse
	var first []store.DeviceRow // that may be waiting for these
	err := n.update(ctx, func(w *work) error {
		last, err := w.tx.LastEvent()
		if err != nil {
			return err
		}
		out = &apiv1.SendResponse{After: last}
		c, err := w.resolve(req.Conversation)
		if err != nil {
			return err
		}
		if done, err := w.sentBefore(c, req, out); done || err != nil {
			return err
		}
		if err := maySend(c); err != nil {
			return err
		}
		if req.ReplyTo != "" {
			m, err := resolveMessage(w.tx, req.ReplyTo)
			if err != nil {
				return err
			}
			if m.Contact != c.ID {
				return refuse(CodeNotFound, "see kith read", "the message to reply to is not in this conversation")
			}
			reply = message.ID(m.ID)
		}
		var ids []byte
		chain, err := w.chain(c)
		if err != nil {
			return err
		}
		for _, text := range req.Texts {
			m := chain.compose(w.now, &message.Text{Body: text, ReplyTo: reply})
			row, err := w.post(c, chain, m, life)
			if err != nil {
				return err
			}
			ids = append(ids, row.ID...)
			shown := showMessage(row, m, c, n.self.name)
			shown.State = stateName(store.DeliveryQueued)
			out.Messages = append(out.Messages, shown)
			if err := w.emit(eventMessage, c.ID, newMessageEvent(shown)); err != nil {
				return err
			}
		}
		first = nil
		if c.State == store.ContactPending {
			if first, err = w.tx.Devices(c.ID); err != nil {
				return err
			}
		}
		if req.IdempotencyKey == "" {
			return nil
		}
		return w.tx.RememberIdempotent(req.IdempotencyKey, c.ID, ids, w.age)
	})
	if err != nil {
		return nil, explain(err)
	}
	for _, d := range first {
		n.rush.begin(identity.DeviceHash(d.Hash))
	}
	return out, nil
}

// sentBefore answers a request that was made before, by its idempotency key.
func (w *work) sentBefore(c store.ContactRow, req *apiv1.SendRequest, out *apiv1.SendResponse) (bool, error) {
	if req.IdempotencyKey == "" {
		return false, nil
	}
	contact, ids, ok, err := w.tx.Idempotent(req.IdempotencyKey)
	if !ok || err != nil {
		return false, err
	}
	if contact != c.ID {
		return false, refuse(CodeUsage, "use a new key", "this idempotency key was used for another conversation")
	}
	for id := range slices.Chunk(ids, len(message.ID{})) {
		row, err := w.tx.Message(id)
		if err != nil {
			return false, err
		}
		shown, err := w.n.show(w.tx, row, c)
		if err != nil {
			return false, err
		}
		out.Messages = append(out.Messages, shown)
	}
	same := func(text string, m *apiv1.Message) bool { return text == m.Text || m.Kind != "text" }
	if !slices.EqualFunc(req.Texts, out.Messages, same) {
		return false, refuse(CodeRefused, "use a new key for a new text", "this idempotency key was used for another text")
	}
	return true, nil
}

// maySend says whether anything may be sent to the contact now.
func maySend(c store.ContactRow) error {
	switch {
	case c.Blocked:
		return refuse(CodeRefused, "unblock the contact first: kith unblock "+quoteName(c), "%s is blocked", quoteName(c))
	case c.Alarm != "":
		return refuse(CodeKeyUntrusted, "compare safety numbers, then: kith verify "+quoteName(c)+" --yes",
			"sending to %s is paused because %s", quoteName(c), c.Alarm)
	case c.State == store.ContactRequest:
		return refuse(CodeRefused, "approve the request first: kith approve "+c.Handle, "%s is not a contact yet", quoteName(c))
	}
	return nil
}

// chain is a conversation's history while a transaction adds to it: who has
// written how much, and what names what.
type chain struct {
	conversation message.ConversationID
	mine         *store.ChainRow
	others       []*store.ChainRow
	dirty        bool
}

// chain returns where a conversation stands.
func (w *work) chain(c store.ContactRow) (*chain, error) {
	if ch := w.chains[c.ID]; ch != nil {
		return ch, nil
	}
	account, err := w.accountOf(c)
	if err != nil {
		return nil, err
	}
	hash := w.n.self.device.Hash()
	ch := &chain{
		conversation: message.ConversationOf(w.n.self.account.Public(), account),
		mine:         &store.ChainRow{Contact: c.ID, Author: hash[:]},
	}
	rows, err := w.tx.Chains(c.ID)
	if err != nil {
		return nil, err
	}
	for _, r := range rows {
		if bytes.Equal(r.Author, hash[:]) {
			ch.mine = &r
		} else {
			ch.others = append(ch.others, &r)
		}
	}
	w.chains[c.ID] = ch
	return ch, nil
}

// of returns another author's chain in the conversation.
func (ch *chain) of(author identity.DeviceHash) *store.ChainRow {
	for _, o := range ch.others {
		if bytes.Equal(o.Author, author[:]) {
			return o
		}
	}
	o := &store.ChainRow{Contact: ch.mine.Contact, Author: author[:]}
	ch.others = append(ch.others, o)
	return o
}

// depth is the highest depth known in the conversation.
func (ch *chain) depth() uint64 {
	d := ch.mine.Depth
	for _, o := range ch.others {
		d = max(d, o.Depth)
	}
	return d
}

// kept is how many bytes the messages of others take.
func (ch *chain) kept() (n int64) {
	for _, o := range ch.others {
		n += o.Kept
	}
	return n
}

func (ch *chain) save(tx *store.Tx) error {
	if !ch.dirty {
		return nil
	}
	for _, o := range append([]*store.ChainRow{ch.mine}, ch.others...) {
		if o.Seq == 0 {
			continue
		}
		if err := tx.SaveChain(*o); err != nil {
			return err
		}
	}
	return nil
}

// compose gives content its place at the end of our chain: after our last
// message, and after what we have seen of others (docs/spec/message.md, section 2).
func (ch *chain) compose(now time.Time, content message.Content) *message.Message {
	m := &message.Message{
		Conversation: ch.conversation,
		Seq:          ch.mine.Seq + 1,
		Time:         uint64(max(0, now.UnixMilli())),
		Depth:        message.NextDepth(ch.depth()),
		Content:      content,
	}
	if ch.mine.Seq > 0 {
		m.Prev = message.ID(ch.mine.ID)
	}
	for _, o := range ch.others {
		if o.Seq > 0 && !o.Cited && len(m.Parents) < protocol.MaxParents {
			m.Parents = append(m.Parents, message.ID(o.ID))
			o.Cited = true
		}
	}
	slices.SortFunc(m.Parents, func(a, b message.ID) int { return bytes.Compare(a[:], b[:]) })
	return m
}

// post stores a message of ours and addresses it.
func (w *work) post(c store.ContactRow, ch *chain, m *message.Message, life time.Duration) (store.MessageRow, error) {
	wire, err := m.Encode()
	if err != nil {
		return store.MessageRow{}, err
	}
	hash := w.n.self.device.Hash()
	id := message.NewID(hash, wire)
	row := store.MessageRow{
		ID: id[:], Contact: c.ID, Author: hash[:], Mine: true, Seq: m.Seq, Depth: m.Depth,
		Received: w.ms(), Wire: wire,
	}
	if added, err := w.tx.AddMessage(&row); err != nil {
		return row, err
	} else if !added {
		return row, fmt.Errorf("node: our place %d in a conversation is taken: %w", m.Seq, store.ErrDamaged)
	}
	ch.mine.Seq, ch.mine.ID, ch.mine.Depth = m.Seq, id[:], m.Depth
	ch.dirty = true
	w.soon = w.soon || life < tidyEvery
	if err := w.address(c, wire, row.N, w.age+life.Milliseconds()); err != nil {
		return row, err
	}
	return row, w.tellHeld(c)
}

// address seals an encoded message for every device it is meant for and puts
// the envelopes into their outboxes. row is the N of the message's row; 0 for a
// control message, which has no ledger.
func (w *work) address(c store.ContactRow, wire []byte, row, expires int64) error {
	devices, err := w.recipients(c)
	if err != nil {
		return err
	}
	for _, d := range devices {
		s, err := w.liveSession(d)
		switch {
		case err != nil:
			return err
		case s == nil:
			return refuse(CodeNetwork, "try again when kith contacts shows the contact's keys were found, or run: kith doctor",
				"the keys of %s have not been found yet", quoteName(c))
		}
		sealed, index, err := w.seal(s, wire)
		if err != nil {
			return err
		}
		if err := w.tx.AddDelivery(store.DeliveryRow{
			Device: d[:], Contact: c.ID, Envelope: sealed, TagIndex: index,
			State: store.DeliveryQueued, Expires: expires,
		}, row); err != nil {
			return err
		}
		w.wake[d] = true
		if s.sealed%milestone == 0 {
			if err := w.say(c, &message.Profile{Name: w.n.self.name}); err != nil {
				return err
			}
		}
	}
	return nil
}

// recipients are the devices that a message to a contact goes to: all of
// theirs, and our own others.
func (w *work) recipients(c store.ContactRow) ([]identity.DeviceHash, error) {
	rows, err := w.tx.Devices(c.ID)
	if err != nil {
		return nil, err
	}
	var out []identity.DeviceHash
	for _, r := range rows {
		out = append(out, identity.DeviceHash(r.Hash))
	}
	return append(out, w.n.self.others...), nil
}

// say sends a control message: one that devices exchange and no history keeps.
// An alarm silences it too.
func (w *work) say(c store.ContactRow, content message.Content) error {
	if c.Alarm != "" {
		return nil
	}
	account, err := w.accountOf(c)
	if err != nil {
		return err
	}
	m := &message.Message{
		Conversation: message.ConversationOf(w.n.self.account.Public(), account),
		Time:         uint64(max(0, w.ms())),
		Content:      content,
	}
	wire, err := m.Encode()
	if err != nil {
		return err
	}
	return w.address(c, wire, 0, never)
}

// accountOf is the account that a contact's devices name. Until their signed
// device list arrived it is a claim; messages are bound to it either way.
func (w *work) accountOf(c store.ContactRow) (identity.AccountPublic, error) {
	if len(c.Account) == len(identity.AccountPublic{}) {
		return identity.AccountPublic(c.Account), nil
	}
	devices, err := w.tx.Devices(c.ID)
	if err != nil {
		return identity.AccountPublic{}, err
	}
	for _, d := range devices {
		if d.Public == nil {
			continue
		}
		dev, err := identity.ParseDevice(d.Public)
		if err != nil {
			return identity.AccountPublic{}, errors.Join(store.ErrDamaged, err)
		}
		return dev.Account(), nil
	}
	return identity.AccountPublic{}, refuse(CodeNetwork,
		"keep kith running and try again in a moment; kith contacts shows when it is done", "the keys of %s have not been found yet", quoteName(c))
}
