package node

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"time"

	apiv1 "github.com/kith-im/kith/node/api/v1"
	"github.com/kith-im/kith/node/store"
	"github.com/kith-im/kith/protocol"
	"github.com/kith-im/kith/protocol/identity"
	"github.com/kith-im/kith/protocol/message"
)

// A delivery's state only moves to the right:
//
//	queued ──► sent, held ──► delivered ──► read
//	   │            │
//	   ├────────────┴──► expired, failed ──► delivered
//	   └──► cancelled ──► delivered
//
// queued: committed here. sent: the device's daemon has it. held: enough of its
// mailboxes have signed for it. Either way we still keep it.
// delivered: the device's receipt is here. A sent message can still expire
// without a receipt, and a receipt that comes even later is the truth.
// moveDelivery is the only way to move.
func (w *work) moveDelivery(c store.ContactRow, d *store.DeliveryRow, to store.DeliveryState, reason string) error {
	if !mayMove(d.State, to) {
		return nil
	}
	d.State, d.Reason = to, reason
	d.Open = to == store.DeliverySent || to == store.DeliveryHeld
	if to == store.DeliveryDelivered {
		d.Delivered = w.ms()
		if err := w.receiptedAt(d); err != nil {
			return err
		}
	}
	if err := w.tx.SaveDelivery(*d); err != nil {
		return err
	}
	if !d.Open {
		if err := w.tx.ForgetDeposits(d.ID); err != nil {
			return err
		}
	}
	return w.emit(eventLedger, c.ID, ledgerEvent{
		ID: messageText(d.Message), Conversation: c.Handle, State: stateName(to), Device: hex.EncodeToString(d.Device),
		Time: w.ms(), Reason: reason,
	})
}

func mayMove(from, to store.DeliveryState) bool {
	switch to {
	case store.DeliverySent, store.DeliveryHeld:
		return from == store.DeliveryQueued
	case store.DeliveryDelivered: // whatever we believed: the receipt is the truth
		return from != store.DeliveryDelivered && from != store.DeliveryRead
	case store.DeliveryRead:
		return from != store.DeliveryRead
	case store.DeliveryExpired, store.DeliveryFailed:
		return from < store.DeliveryDelivered
	case store.DeliveryCancelled:
		return from == store.DeliveryQueued
	case store.DeliveryQueued:
	}
	return false
}

func stateName(s store.DeliveryState) string {
	switch s {
	case store.DeliveryQueued:
		return "queued"
	case store.DeliverySent:
		return "sent"
	case store.DeliveryHeld:
		return "held"
	case store.DeliveryDelivered:
		return "delivered"
	case store.DeliveryRead:
		return "read"
	case store.DeliveryFailed:
		return "failed"
	case store.DeliveryExpired:
		return "expired"
	case store.DeliveryCancelled:
		return "cancelled"
	}
	return "unknown"
}

// attempt is one try to bring an envelope to a device.
type attempt struct {
	Time   int64  `json:"t"`
	Road   road   `json:"r"`
	Result string `json:"s"`
}

// resultTaken is the result of an attempt that brought the envelope to the
// device's daemon.
const resultTaken = "taken"

// resultOffered is the result of one after which nobody knows.
const resultOffered = "offered, and no answer came"

// mayHaveLeft says whether a file with a delivery is under way, or somebody may
// have got it who could not say so.
func mayHaveLeft(encoded []byte) (bool, error) {
	all, err := attempts(encoded)
	return slices.ContainsFunc(all, func(a attempt) bool { return a.Road == roadBundle || a.Result == resultOffered }), err
}

// timesTaken is how many of a delivery's attempts did that.
func timesTaken(encoded []byte) (n int, err error) {
	all, err := attempts(encoded)
	for _, a := range all {
		if a.Result == resultTaken {
			n++
		}
	}
	return n, err
}

// maxAttempts bounds what the ledger keeps of a message that is hard to
// deliver: the newest, and the newest of every road, and of those on it that may
// have brought it.
const maxAttempts = 16

// addAttempt appends to a delivery's encoded attempts.
func addAttempt(encoded []byte, a attempt) ([]byte, error) {
	all, err := attempts(encoded)
	if err != nil {
		return nil, err
	}
	all = append(all, a)
	for i := 0; len(all) > maxAttempts && i < len(all); {
		if !slices.ContainsFunc(all[i+1:], func(later attempt) bool {
			return later.Road == all[i].Road && (all[i].Result != resultOffered || later.Result == resultOffered)
		}) {
			i++
			continue
		}
		all = slices.Delete(all, i, i+1)
	}
	return json.Marshal(all)
}

func attempts(encoded []byte) (all []attempt, err error) {
	if len(encoded) == 0 {
		return nil, nil
	}
	if err := json.Unmarshal(encoded, &all); err != nil {
		return nil, errors.Join(store.ErrDamaged, err)
	}
	return all, nil
}

// show is a message as the API shows it: its state is that of the device it
// has come least far to.
func (n *Node) show(tx *store.Tx, row store.MessageRow, c store.ContactRow) (*apiv1.Message, error) {
	if row.Gone != 0 {
		return &apiv1.Message{
			Id: messageText(row.ID), Conversation: c.Handle, FromMe: row.Mine, From: n.nameOf(row, c), Seq: row.Seq,
			ReceivedMs: row.Received, State: message.Reason(row.Gone).String(), Kind: "gone",
		}, nil
	}
	m, err := message.Decode(row.Wire)
	if err != nil {
		return nil, errors.Join(store.ErrDamaged, err)
	}
	out := showMessage(row, m, c, n.self.name)
	if !row.Mine {
		below, err := tx.SeqBefore(row.Contact, row.Author, row.Seq)
		if err != nil {
			return nil, err
		}
		out.MissingBefore = uint32(min(row.Seq-below-1, 1<<31))
		return out, nil
	}
	deliveries, err := tx.Deliveries(row)
	if err != nil {
		return nil, err
	}
	state, reason := overall(deliveries)
	out.State, out.Reason = stateName(state), reason
	if state != store.DeliveryHeld {
		return out, nil
	}
	for _, d := range deliveries {
		if d.State != state {
			continue
		}
		h, err := n.holding(tx, d)
		if err != nil {
			return nil, err
		}
		if out.Holding == nil || h.GetHeld() < out.Holding.Held {
			out.Holding = h
		}
	}
	return out, nil
}

// holding says which mailboxes have signed for a delivery; nil: none.
func (n *Node) holding(tx *store.Tx, d store.DeliveryRow) (*apiv1.Holding, error) {
	k, until, err := holders(tx, d.ID, n.age.now())
	if err != nil || k == 0 {
		return nil, err
	}
	nodes, err := n.mailboxesOf(tx, d.Device)
	return &apiv1.Holding{Held: int32(k), Of: int32(max(len(nodes), k)), UntilMs: n.now().UnixMilli() + until - n.age.now()}, err
}

func (n *Node) nameOf(row store.MessageRow, c store.ContactRow) string {
	if row.Mine {
		return n.self.name
	}
	return c.Name
}

// overall is the state of a message from those of its deliveries: the least
// advanced one that is still on its way, or else the furthest.
func overall(ds []store.DeliveryRow) (state store.DeliveryState, reason string) {
	for _, d := range ds {
		if state == 0 || d.State < state {
			state, reason = d.State, d.Reason
		}
	}
	return state, reason
}

// minPrefix is how much of an id names a message.
const minPrefix = 4

// resolveMessage finds a message by its id or by a prefix of it that fits no
// other.
func resolveMessage(tx *store.Tx, word string) (store.MessageRow, error) {
	const full = 2 * len(message.ID{})
	missing := refuse(CodeNotFound, "kith read --json shows the ids", "there is no message %q", word)
	word = strings.ToLower(word)
	if len(word) < minPrefix {
		return store.MessageRow{}, refuse(CodeUsage, "kith read --json shows the ids", "%q is too short for a message's id: give %d characters or more", word, minPrefix)
	}
	if len(word) > full {
		return store.MessageRow{}, missing
	}
	low, err1 := hex.DecodeString(word + strings.Repeat("0", full-len(word)))
	high, err2 := hex.DecodeString(word + strings.Repeat("f", full-len(word)))
	if err1 != nil || err2 != nil {
		return store.MessageRow{}, missing
	}
	rows, err := tx.MessagesByPrefix(low, high, 2)
	switch {
	case err != nil:
		return store.MessageRow{}, err
	case len(rows) == 0:
		return store.MessageRow{}, missing
	case len(rows) > 1:
		return store.MessageRow{}, refuse(CodeUsage, "give more of the id", "%q fits several messages", word)
	}
	return rows[0], nil
}

// ListMessages returns a page of a conversation, in its order.
func (n *Node) ListMessages(ctx context.Context, req *apiv1.ListMessagesRequest) (*apiv1.ListMessagesResponse, error) {
	if err := n.needUser(); err != nil {
		return nil, err
	}
	limit := int(req.Last)
	if limit <= 0 {
		limit = 50
	}
	limit = min(limit, 1000)
	out := &apiv1.ListMessagesResponse{}
	err := n.view(ctx, func(tx *store.Tx) error {
		c, err := resolveContact(tx, req.Conversation)
		if err != nil {
			return err
		}
		var rows []store.MessageRow
		switch {
		case req.Since != "":
			after, err := messageIn(tx, c, req.Since)
			if err != nil {
				return err
			}
			if rows, err = tx.NextMessages(c.ID, after, limit+1); err != nil {
				return err
			}
			if out.More = len(rows) > limit; out.More {
				rows = rows[:limit]
			}
		default:
			var before *store.MessageRow
			if req.Before != "" {
				row, err := messageIn(tx, c, req.Before)
				if err != nil {
					return err
				}
				before = &row
			}
			if rows, err = tx.LastMessages(c.ID, before, limit+1); err != nil {
				return err
			}
			if out.More = len(rows) > limit; out.More {
				rows = rows[1:]
			}
		}
		for _, row := range rows {
			shown, err := n.show(tx, row, c)
			if err != nil {
				return err
			}
			out.Messages = append(out.Messages, shown)
		}
		return nil
	})
	return out, explain(err)
}

func messageIn(tx *store.Tx, c store.ContactRow, id string) (store.MessageRow, error) {
	row, err := resolveMessage(tx, id)
	if err == nil && row.Contact != c.ID {
		return row, refuse(CodeNotFound, "kith read --json shows the ids", "that message is not in this conversation")
	}
	return row, err
}

// ListConversations returns the conversations, requests excepted, each with
// its last message.
func (n *Node) ListConversations(ctx context.Context, _ *apiv1.ListConversationsRequest) (*apiv1.ListConversationsResponse, error) {
	out := &apiv1.ListConversationsResponse{}
	err := n.listContacts(ctx, func(tx *store.Tx, c store.ContactRow) error {
		if c.State == store.ContactRequest {
			return nil
		}
		contact, err := n.showContact(tx, c)
		if err != nil {
			return err
		}
		conv := &apiv1.Conversation{Id: c.Handle, Name: c.Name, Kind: "contact", Contact: contact}
		if conv.Messages, err = tx.CountMessages(c.ID); err != nil {
			return err
		}
		last, err := tx.LastMessages(c.ID, nil, 1)
		if err != nil {
			return err
		}
		for _, row := range last {
			if conv.Last, err = n.show(tx, row, c); err != nil {
				return err
			}
		}
		out.Conversations = append(out.Conversations, conv)
		return nil
	})
	return out, err
}

// Trace returns a message's ledger: every device it goes to, and every attempt.
func (n *Node) Trace(ctx context.Context, req *apiv1.TraceRequest) (*apiv1.TraceResponse, error) {
	if err := n.needUser(); err != nil {
		return nil, err
	}
	out := &apiv1.TraceResponse{}
	err := n.view(ctx, func(tx *store.Tx) error {
		row, err := resolveMessage(tx, req.Id)
		if err != nil {
			return err
		}
		c, err := tx.Contact(row.Contact)
		if err != nil {
			return err
		}
		if out.Message, err = n.show(tx, row, c); err != nil {
			return err
		}
		deliveries, err := tx.Deliveries(row)
		if err != nil {
			return err
		}
		for _, d := range deliveries {
			shown := &apiv1.Delivery{Device: hex.EncodeToString(d.Device), State: stateName(d.State), DeliveredMs: d.Delivered}
			if d.Open {
				shown.NextMs = n.outbox.nextTry(d.Device)
				if wait := d.Due - n.age.now(); wait > 0 {
					shown.NextMs = max(shown.NextMs, n.now().UnixMilli()+wait)
				}
			}
			if shown.Holding, err = n.holding(tx, d); err != nil {
				return err
			}
			boxes, err := countMailboxes(tx, d.Device)
			if err != nil {
				return err
			}
			shown.Mailboxes = int32(boxes)
			all, err := attempts(d.Attempts)
			if err != nil {
				return err
			}
			for _, a := range all {
				shown.Attempts = append(shown.Attempts, &apiv1.Attempt{TimeMs: a.Time, Road: string(a.Road), Result: a.Result})
			}
			out.Devices = append(out.Devices, shown)
		}
		return nil
	})
	return out, explain(err)
}

// Cancel takes back a message that has not left for any device. Its place in
// the conversation stays, and the recipient is told that nothing will come.
func (n *Node) Cancel(ctx context.Context, req *apiv1.CancelRequest) (*apiv1.CancelResponse, error) {
	if err := n.needUser(); err != nil {
		return nil, err
	}
	out := &apiv1.CancelResponse{}
	var withheld []store.DeliveryRow
	defer func() {
		for _, d := range withheld {
			n.outbox.release(d.Device, d.ID)
		}
	}()
	err := n.update(ctx, func(w *work) error {
		row, err := resolveMessage(w.tx, req.Id)
		if err != nil {
			return err
		}
		if !row.Mine {
			return refuse(CodeRefused, "only messages of your own can be cancelled", "this message is not yours")
		}
		c, err := w.tx.Contact(row.Contact)
		if err != nil {
			return err
		}
		if row.Gone != 0 { // already done
			out.Message, err = n.show(w.tx, row, c)
			return err
		}
		deliveries, err := w.tx.Deliveries(row)
		if err != nil {
			return err
		}
		for _, d := range deliveries {
			held, err := w.tx.Holdings(d.ID, 0)
			if err != nil {
				return err
			}
			left, err := mayHaveLeft(d.Attempts)
			if err != nil {
				return err
			}
			if d.State != store.DeliveryQueued || len(held) > 0 || left || n.outbox.withhold(d.Device, d.ID) {
				return refuse(CodeRefused, "see: kith trace "+messageText(row.ID)[:12], "the message has already left and cannot be cancelled")
			}
			withheld = append(withheld, d)
		}
		for _, d := range deliveries {
			if err := w.moveDelivery(c, &d, store.DeliveryCancelled, ""); err != nil {
				return err
			}
		}
		if err := w.tx.SetGone(row, int(message.Cancelled), messageText(row.ID)); err != nil {
			return err
		}
		if err := w.say(c, &message.Gone{Seq: row.Seq, ID: message.ID(row.ID), Reason: message.Cancelled}); err != nil {
			return err
		}
		row.Gone = int(message.Cancelled)
		out.Message, err = n.show(w.tx, row, c)
		return err
	})
	return out, explain(err)
}

// askAgain is how long a request for missing messages is given to be answered, as
// long as the conversation lives on which it went; and answerAgain how long one is
// not answered again.
const (
	askAgain    = 10 * time.Second
	answerAgain = askAgain / 2
)

// askForMissing asks the author of a chain for what is missing below its end,
// if that was not done just now.
func (w *work) askForMissing(c store.ContactRow, end *store.ChainRow, again time.Duration) error {
	if !receipted(c) || w.age-end.Asked < again.Milliseconds() {
		return nil
	}
	gaps, err := w.tx.Gaps(c.ID, end.Author, protocol.MaxBatch)
	if err != nil {
		return err
	}
	if len(gaps) == 0 {
		end.Asked = 0
		return nil
	}
	ask := &message.Resend{}
	for _, g := range gaps {
		ask.Ranges = append(ask.Ranges, message.Range{First: g.First, Last: g.Last})
	}
	end.Asked = w.age
	return w.say(c, ask)
}

// lookForGaps asks a device for what is missing of it, at the beginning of a
// conversation: an earlier request or its answer may have been lost.
func (w *work) lookForGaps(device identity.DeviceHash) error {
	d, err := w.tx.Device(device[:])
	if ok, err := found(err); !ok {
		return err
	}
	c, err := w.tx.Contact(d.Contact)
	if err != nil || d.Public == nil {
		return err
	}
	ch, err := w.chain(c)
	if err != nil {
		return err
	}
	ch.dirty = true
	return w.askForMissing(c, ch.of(device), answerAgain)
}

// maxResend and maxResendBytes bound what one request makes us send again.
const (
	maxResend      = 1024
	maxResendBytes = 1 << 20
)

// takeResend sends messages of ours again that the other side says it misses:
// the same messages under the same ids, newly sealed in place of what waits.
// What it has receipted it has; what will not come is said to be gone.
func (w *work) takeResend(s *session, c store.ContactRow, ch *chain, m *message.Resend) error {
	if w.age-ch.mine.Asked < answerAgain.Milliseconds() {
		return nil
	}
	ch.mine.Asked, ch.dirty = w.age, true
	live, err := w.liveSession(s.device)
	if err != nil {
		return err
	}
	budget, bytes := maxResend, 0
	for _, r := range m.Ranges {
		for seq := r.First; seq <= min(r.Last, ch.mine.Seq) && budget > 0 && bytes < maxResendBytes; seq++ {
			row, err := w.tx.MessageBySeq(c.ID, ch.mine.Author, seq)
			if err != nil {
				return err
			}
			budget--
			d, err := w.tx.Delivery(row.ID, s.device[:])
			if ok, err := found(err); !ok && err != nil {
				return err
			}
			switch {
			case row.Gone != 0:
				err = w.say(c, &message.Gone{Seq: seq, ID: message.ID(row.ID), Reason: message.Reason(row.Gone)})
			case d.State == store.DeliveryExpired, d.State == store.DeliveryFailed:
				err = w.say(c, &message.Gone{Seq: seq, ID: message.ID(row.ID), Reason: message.Expired})
			case d.State == store.DeliverySent, d.State == store.DeliveryHeld:
				bytes += len(row.Wire)
				err = w.reseal(live, d)
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// takeGone fills a gap with the word that nothing will come.
func (w *work) takeGone(s *session, c store.ContactRow, ch *chain, m *message.Gone) error {
	end := ch.of(s.device)
	if m.Seq > end.Seq+1 {
		return nil // the gap before it is found with the next message
	}
	if known, err := w.known(&c, s.device, m.Seq, m.ID); known || err != nil {
		return err
	}
	added, err := w.tx.AddMessage(&store.MessageRow{
		ID: m.ID[:], Contact: c.ID, Author: s.device[:], Seq: m.Seq, Depth: end.Depth, Received: w.ms(), Gone: int(m.Reason),
	})
	switch {
	case err != nil:
		return err
	case !added:
		return w.conflict(&c)
	case m.Seq == end.Seq+1:
		end.Seq, end.ID = m.Seq, m.ID[:]
		ch.dirty = true
	}
	return nil
}

// tidyBatch bounds how much one transaction of tidying does.
const tidyBatch = 500

// tidy ends what ends by itself, by the store's age, and says when something
// is to end next.
func (w *work) tidy() (next time.Duration, err error) {
	expired, err := w.tx.ExpiredDeliveries(w.age, tidyBatch)
	if err != nil {
		return 0, err
	}
	for _, d := range expired {
		c, err := w.tx.Contact(d.Contact)
		if err != nil {
			return 0, err
		}
		if err := w.moveDelivery(c, &d, store.DeliveryExpired, "not delivered in time"); err != nil {
			return 0, err
		}
	}
	if len(expired) == tidyBatch {
		return 0, nil
	}
	at, err := w.tx.NextExpiry()
	if err != nil {
		return 0, err
	}
	next = tidyEvery
	if left := at - w.age; left < tidyEvery.Milliseconds() {
		next = time.Duration(left) * time.Millisecond
	}
	if err := w.n.age.save(w.tx, w.now); err != nil {
		return 0, err
	}
	if err := w.tx.EraseInvites(w.age); err != nil {
		return 0, err
	}
	if err := w.tx.EraseCarried(w.age); err != nil {
		return 0, err
	}
	if err := w.tx.ForgetIdempotent(w.age - messageLife.Milliseconds()); err != nil {
		return 0, err
	}
	if err := w.tx.ForgetHanded(w.age-handedLife.Milliseconds(), maxHanded); err != nil {
		return 0, err
	}
	return next, w.tx.PruneEvents(w.age-eventLife.Milliseconds(), w.age-cursorLife.Milliseconds())
}
