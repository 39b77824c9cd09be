package node

// A message's way in (docs/architecture.md; the functions stand in this order):
//
//  1. listen takes the envelopes that a conversation's reader handed over, as
//     many as have arrived, and receives them in one transaction.
//  2. receive refuses cheaply first: size, then tag. Only an envelope whose tag
//     names a session or an invite costs public-key work, and an invite's only
//     after its gate (handshake.go).
//  3. The session opens it, or stays exactly what it was.
//  4. take looks up who sent it and whether they may, then switches on the
//     content: keep stores what belongs to the history.
//  5. The sessions, messages, events and owed receipts are committed and
//     synced together. Any error takes all of it back.
//  6. listen acknowledges; the receipts leave by the outbox.
//
// Invariant: commit, then acknowledge. What does not open is acknowledged like
// what does: nobody learns the difference, and the sender keeps everything
// until the end-to-end receipt.

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/kith-im/kith/node/store"
	"github.com/kith-im/kith/protocol"
	"github.com/kith-im/kith/protocol/envelope"
	"github.com/kith-im/kith/protocol/handshake"
	"github.com/kith-im/kith/protocol/identity"
	"github.com/kith-im/kith/protocol/message"
	"github.com/kith-im/kith/protocol/ratchet"
)

// listen receives what arrives on a conversation until it ends.
func (l *lobby) listen(ctx context.Context, c *conversation) {
	n := l.n
	defer c.reset()
	unknown := time.AfterFunc(guestTime, func() {
		if !c.known() {
			c.reset()
		}
	})
	defer unknown.Stop()
	for first := range c.arrived {
		batch := append(make([][]byte, 0, maxBatch), first)
	gather:
		for len(batch) < maxBatch {
			select {
			case e, ok := <-c.arrived:
				if !ok {
					break gather
				}
				batch = append(batch, e)
			default:
				break gather
			}
		}
		got, err := l.handle(ctx, c, batch)
		if err != nil {
			if ctx.Err() == nil && !errors.Is(err, errBusy) && !errors.Is(err, errEnded) {
				n.log.Warn("receiving failed; the sender will offer it again", "full", errors.Is(err, errTooMuch))
			}
			return
		}
		if !c.known() && got.opened > 0 {
			c.name(got.from)
			n.lobby.named(c)
			n.outbox.attach(got.from, c)
		}
	}
}

// handle receives envelopes and acknowledges them.
func (l *lobby) handle(ctx context.Context, c *conversation, batch [][]byte) (received, error) {
	c.handling.Lock()
	defer c.handling.Unlock()
	got, err := l.receiveAll(ctx, batch, "")
	if err != nil {
		return got, err
	}
	if c.acknowledge(batch) != nil {
		return got, errEnded
	}
	return got, nil
}

// received is what came of some envelopes.
type received struct {
	from     identity.DeviceHash // of the last one that opened
	opened   int                 // were new, and from somebody we talk to
	messages int                 // of the history, shown for the first time
}

// receiveAll receives envelopes in one transaction. from is the mailbox that
// handed them out; "": none did. An envelope that makes the program panic is
// taken out of the way alone: it must neither stop its neighbours nor come back.
func (l *lobby) receiveAll(ctx context.Context, batch [][]byte, from peer.ID) (got received, err error) {
	n := l.n
	err = n.update(ctx, func(w *work) error {
		got = received{}
		for _, raw := range batch {
			if from != "" {
				if err := w.handed(from, raw); err != nil {
					return err
				}
			}
			d, err := w.receive(raw)
			if err != nil {
				return err
			}
			if d != (identity.DeviceHash{}) {
				got.from = d
				got.opened++
			}
		}
		got.messages = w.shown
		return nil
	})
	if !isPoison(err) {
		return got, err
	}
	got = received{}
	if len(batch) > 1 {
		for _, raw := range batch {
			one, err := l.receiveAll(ctx, [][]byte{raw}, from)
			if err != nil {
				return got, err
			}
			if one.opened > 0 {
				got.from = one.from
			}
			got.opened += one.opened
			got.messages += one.messages
		}
		return got, nil
	}
	var crash *store.PanicError
	if errors.As(err, &crash) {
		n.log.Error("an envelope was set aside because the program failed on it", "stack", string(crash.Stack))
	} else {
		n.log.Error("an envelope was set aside because it could not be processed")
	}
	return got, n.update(ctx, func(w *work) error {
		if !n.gate.once("set aside", w.now) {
			return nil
		}
		return w.emit(eventHealth, 0, healthEvent{Text: "a message could not be processed and was set aside"})
	})
}

// isPoison says whether an error belongs to an envelope and would come again
// with it: a panic, or anything but the store's and our own refusals, after
// which the sender is to try again.
func isPoison(err error) bool {
	for _, passing := range []error{
		errBusy, errTooMuch, store.ErrFull, store.ErrReadOnly, store.ErrClosed, context.Canceled, context.DeadlineExceeded,
	} {
		if errors.Is(err, passing) {
			return false
		}
	}
	return err != nil
}

// receive takes one envelope and returns the device it came from, or zero if
// it did not open. An error is a fault of the store.
func (w *work) receive(raw []byte) (identity.DeviceHash, error) {
	var nobody identity.DeviceHash
	tag, payload, err := envelope.Parse(raw)
	if err != nil {
		return nobody, nil
	}
	owner, err := w.tx.TagOwner(tag[:])
	if ok, err := found(err); !ok {
		return nobody, err
	}
	var s *session
	var plaintext []byte
	if owner.Invite != nil {
		if s, payload, plaintext, err = w.respond(owner.Invite, payload); s == nil || err != nil {
			return nobody, err
		}
		if plaintext != nil {
			return w.take(s, plaintext)
		}
	} else if s, err = w.session(handshake.SessionID(owner.Session)); err != nil {
		return nobody, err
	}
	plaintext, err = w.open(s, owner.Index, payload)
	switch {
	case errors.Is(err, ratchet.ErrPeerCopied), errors.Is(err, ratchet.ErrOwnCopied):
		return nobody, w.alarm(s, err)
	case errors.Is(err, ratchet.ErrDecrypt):
		return nobody, nil
	case err != nil:
		return nobody, err
	}
	return w.take(s, plaintext)
}

// party is who is at the other end of a session.
type party struct {
	device  store.DeviceRow
	contact store.ContactRow
}

// party looks up who a device is, and notes that it was heard from.
func (w *work) party(device identity.DeviceHash) (*party, error) {
	if p := w.parties[device]; p != nil {
		return p, nil
	}
	d, err := w.tx.Device(device[:])
	if err != nil {
		return nil, err
	}
	c, err := w.tx.Contact(d.Contact)
	if err != nil {
		return nil, err
	}
	if err := w.tx.SeenContact(c.ID, w.ms()); err != nil {
		return nil, err
	}
	c.Seen = max(c.Seen, w.ms())
	w.parties[device] = &party{d, c}
	return w.parties[device], nil
}

// take acts on a message that a session authenticated, and returns the device
// it came from: nobody, if we do not talk to it.
func (w *work) take(s *session, plaintext []byte) (identity.DeviceHash, error) {
	p, err := w.party(s.device)
	if err != nil {
		return identity.DeviceHash{}, err
	}
	if err := w.confirm(s, p.contact, &p.device); err != nil {
		return identity.DeviceHash{}, err
	}
	from := s.device
	if p.contact.Blocked {
		from = identity.DeviceHash{}
	}
	m, err := message.Decode(plaintext)
	if err != nil {
		return from, nil // authentic nonsense: only a broken program sends it
	}
	return from, w.act(s, p.contact, m, plaintext)
}

// act looks up whether the sender may say this, and does what it asks.
func (w *work) act(s *session, c store.ContactRow, m *message.Message, plaintext []byte) error {
	ch, err := w.chain(c)
	if err != nil {
		return err
	}
	if receipt := m.Kind() == message.KindDelivered || m.Kind() == message.KindRead; c.Blocked && !receipt {
		return nil // of those who are blocked, only what moves our own ledger
	}
	if m.Conversation != ch.conversation || !m.Kind().AllowedFrom(senderClass(c)) {
		return nil
	}
	if m.Seq > 0 {
		return w.keep(s, c, ch, m, plaintext)
	}
	switch content := m.Content.(type) {
	case *message.Delivered:
		return w.takeReceipt(s, c, content.IDs, store.DeliveryDelivered)
	case *message.Read:
		return w.takeReceipt(s, c, content.IDs, store.DeliveryRead)
	case *message.DeviceList:
		return w.takeDeviceList(s, c, content)
	case *message.Profile:
		return w.takeProfile(c, content)
	case *message.Resend:
		return w.takeResend(s, c, ch, content)
	case *message.Gone:
		return w.takeGone(s, c, ch, content)
	case *message.Rendezvous:
		return w.takeRendezvous(s.device, c, content.Record)
	case *message.Held:
		return w.takeHeld(c, content)
	default:
		// Typing and prekey stashes, and what later versions add: nothing here
		// acts on them yet.
		return nil
	}
}

// senderClass is what a contact is to the allow-table (docs/spec/message.md,
// section 5).
func senderClass(c store.ContactRow) message.Sender {
	if c.State == store.ContactRequest {
		return message.Stranger
	}
	return message.Contact
}

// keep stores a message of the history, once, at its place in its author's
// chain, and asks for what is missing before it.
func (w *work) keep(s *session, c store.ContactRow, ch *chain, m *message.Message, wire []byte) error {
	id := message.NewID(s.device, wire)
	end := ch.of(s.device)
	switch {
	case m.Seq <= end.Seq:
		if known, err := w.known(&c, s.device, m.Seq, id); err != nil {
			return err
		} else if known {
			return w.receiptAgain(c, id)
		}
	case m.Depth > ch.depth()+maxDepthAhead, m.Seq > end.Seq+maxSeqAhead, m.Seq == end.Seq+1 && m.Depth <= end.Depth:
		// No honest history goes there: it would stand before what its author
		// had written, or push all that follows behind it.
		return w.conflict(&c)
	case m.Seq == end.Seq+1 && end.Seq > 0 && !bytes.Equal(m.Prev[:], end.ID):
		if err := w.conflict(&c); err != nil {
			return err
		}
	}
	if end.Kept += int64(len(wire)); ch.kept() > quota(c) {
		return errTooMuch
	}
	row := store.MessageRow{
		ID: id[:], Contact: c.ID, Author: s.device[:], Seq: m.Seq, Depth: m.Depth, Received: w.ms(), Wire: wire,
		Owed: !receipted(c),
	}
	if added, err := w.tx.AddMessage(&row); err != nil {
		return err
	} else if !added { // its author gave its id to another place
		return w.conflict(&c)
	}
	if !row.Owed {
		w.receipts[c.ID] = append(w.receipts[c.ID], id)
	}
	w.shown++
	shown := showMessage(row, m, c, w.n.self.name)
	if m.Seq <= end.Seq {
		if err := w.askForMissing(c, end, askAgain); err != nil { // is there more to ask for?
			return err
		}
		ch.dirty = true
	} else {
		missing := m.Seq - end.Seq - 1
		shown.MissingBefore = uint32(missing)
		end.Seq, end.ID, end.Cited = m.Seq, id[:], false
		end.Depth = max(end.Depth, m.Depth)
		ch.dirty = true
		if missing > 0 || end.Asked > 0 {
			if err := w.askForMissing(c, end, askAgain); err != nil {
				return err
			}
		}
	}
	return w.emit(eventMessage, c.ID, newMessageEvent(shown))
}

// What the messages of one contact may take on disk, as the protocol encodes
// them: more is not taken, and not acknowledged.
const (
	quotaContact = 1 << 30
	quotaRequest = 256 << 10
)

var errTooMuch = errors.New("a contact's messages take too much room")

func quota(c store.ContactRow) int64 {
	if c.State == store.ContactRequest {
		return quotaRequest
	}
	return quotaContact
}

// receiptAgain receipts a message that came a second time: its author did not
// get the first receipt.
func (w *work) receiptAgain(c store.ContactRow, id message.ID) error {
	if !receipted(c) || slices.Contains(w.receipts[c.ID], id) {
		return nil
	}
	m, err := w.tx.Message(id[:])
	if err == nil && m.Gone == 0 && !m.Owed {
		w.receipts[c.ID] = append(w.receipts[c.ID], id)
	}
	return err
}

// known says whether a place in a chain is already filled. Another message
// there is a contradiction.
func (w *work) known(c *store.ContactRow, author identity.DeviceHash, seq uint64, id message.ID) (bool, error) {
	there, err := w.tx.MessageBySeq(c.ID, author[:], seq)
	if ok, err := found(err); !ok {
		return false, err
	}
	if bytes.Equal(there.ID, id[:]) {
		return true, nil // the same message by another road
	}
	return true, w.conflict(c)
}

// receipted says whether a contact gets receipts now: a stranger gets none, and
// what is paused waits.
func receipted(c store.ContactRow) bool {
	return c.State != store.ContactRequest && !c.Blocked && c.Alarm == ""
}

const (
	// maxDepthAhead bounds how far a message's claimed depth may lie beyond
	// all we know: more messages than two people exchange unseen.
	maxDepthAhead = 1 << 20
	// maxSeqAhead bounds the same for one author's count.
	maxSeqAhead = 1 << 20
)

// queueReceipts seals the receipts of this transaction's messages, and those
// held back for contacts that were released in it.
func (w *work) queueReceipts() error {
	for contact := range w.released {
		for {
			ids, err := w.tx.TakeOwedReceipts(contact, protocol.MaxBatch)
			if err != nil {
				return err
			}
			for _, id := range ids {
				w.receipts[contact] = append(w.receipts[contact], message.ID(id))
			}
			if len(ids) < protocol.MaxBatch {
				break
			}
		}
	}
	for contact, ids := range w.receipts {
		c, err := w.tx.Contact(contact)
		if ok, err := found(err); !ok {
			if err != nil {
				return err
			}
			continue // removed in this very transaction
		}
		if !receipted(c) { // an alarm was raised after they were stored
			for _, id := range ids {
				if err := w.tx.OweReceipt(id[:]); err != nil {
					return err
				}
			}
			continue
		}
		for batch := range slices.Chunk(ids, protocol.MaxBatch) {
			slices.SortFunc(batch, func(a, b message.ID) int { return bytes.Compare(a[:], b[:]) })
			if err := w.say(c, &message.Delivered{IDs: batch}); err != nil {
				return err
			}
		}
	}
	return nil
}

// takeReceipt moves the ledger of our messages on.
func (w *work) takeReceipt(s *session, c store.ContactRow, ids []message.ID, to store.DeliveryState) error {
	for _, id := range ids {
		d, err := w.tx.Delivery(id[:], s.device[:])
		if ok, err := found(err); !ok {
			if err != nil {
				return err
			}
			continue // not a message of ours, or not to them
		}
		if err := w.noteTaken(&d); err != nil {
			return err
		}
		if err := w.moveDelivery(c, &d, to, ""); err != nil {
			return err
		}
		// Which session carried the message is not on record; it was this one
		// unless the sessions have changed.
		if live, err := w.liveSession(s.device); err != nil {
			return err
		} else if next := s.send.Confirm(d.TagIndex); live == s && next != s.send {
			s.send, s.dirty = next, true
		}
	}
	return nil
}
