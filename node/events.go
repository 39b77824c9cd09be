package node

import (
	"context"
	"errors"
	"sync"
	"time"

	apiv1 "github.com/kith-im/kith/node/api/v1"
	"github.com/kith-im/kith/node/store"
	"github.com/kith-im/kith/protocol/message"
)

// The types of events; kith.proto says what the data of each holds.
const (
	eventMessage = "message"
	eventLedger  = "ledger"
	eventContact = "contact"
	eventDevice  = "device"
	eventHealth  = "health"
	eventLAN     = "lan"
	eventMode    = "mode"
)

// messageEvent is a message that was sent or received.
type messageEvent struct {
	ID           string `json:"id"`
	Conversation string `json:"conversation"`
	From         string `json:"from"`
	FromID       string `json:"from_id,omitempty"`
	FromMe       bool   `json:"from_me"`
	Text         string `json:"text"`
	Time         int64  `json:"time"`
	Received     int64  `json:"received"`
	State        string `json:"state"`
	Seq          uint64 `json:"seq"`
	Kind         string `json:"kind"`
	ReplyTo      string `json:"reply_to,omitempty"`
	Missing      uint32 `json:"missing_before,omitempty"`
}

func newMessageEvent(m *apiv1.Message) messageEvent {
	return messageEvent{
		ID: m.Id, Conversation: m.Conversation, From: m.From, FromID: m.FromId, FromMe: m.FromMe, Text: m.Text,
		Time: m.TimeMs, Received: m.ReceivedMs, State: m.State, Seq: m.Seq, Kind: m.Kind,
		ReplyTo: m.ReplyTo, Missing: m.MissingBefore,
	}
}

// ledgerEvent says how far a message of ours has come on its way to a device.
type ledgerEvent struct {
	ID           string `json:"id"`
	Conversation string `json:"conversation"`
	State        string `json:"state"`
	Device       string `json:"device"`
	Time         int64  `json:"time"`
	Reason       string `json:"reason,omitempty"`
}

// contactEvent says what happened to a contact or a request; with Invite, to
// an invite of ours. Profile is what they call themselves, where that is new;
// Name is what we call them, and does not follow it.
type contactEvent struct {
	ID       string `json:"id,omitempty"`
	Name     string `json:"name,omitempty"`
	State    string `json:"state,omitempty"`
	Verified bool   `json:"verified"`
	Invite   string `json:"invite,omitempty"`
	Profile  string `json:"profile,omitempty"`
	What     string `json:"what"`
}

// deviceEvent says that a contact's devices changed.
type deviceEvent struct {
	Contact string `json:"contact"`
	State   string `json:"state"`
}

// healthEvent says that something is wrong, or right again.
type healthEvent struct {
	OK   bool   `json:"ok"`
	Text string `json:"text"`
}

func (w *work) emitContact(c store.ContactRow, what string) error {
	return w.emit(eventContact, c.ID, contactEvent{ID: c.Handle, Name: c.Name, State: contactStateName(c), Verified: c.Verified, What: what})
}

// feed reads the event log, and wakes those who wait for it to grow.
type feed struct {
	n *Node

	mu      sync.Mutex
	waiters map[chan struct{}]struct{}
}

func newFeed(n *Node) *feed { return &feed{n: n, waiters: make(map[chan struct{}]struct{})} }

// subscribe returns a channel that receives something after the log has grown.
func (f *feed) subscribe() chan struct{} {
	c := make(chan struct{}, 1)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.waiters[c] = struct{}{}
	return c
}

func (f *feed) unsubscribe(c chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.waiters, c)
}

func (f *feed) wake() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for c := range f.waiters {
		poke(c)
	}
}

// poke leaves a signal for a goroutine that will look.
func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

const (
	// eventPage is how many events one read of the log takes.
	eventPage = 256
	// maxCursors bounds the cursors: each holds the log back.
	maxCursors = 1000
	// Events are kept for eventLife, and for longer until every cursor in use
	// has acknowledged them. A cursor that nobody used for cursorLife is dropped.
	eventLife  = 30 * 24 * time.Hour
	cursorLife = 365 * 24 * time.Hour
)

// WatchEvents emits events from a cursor's place on, until ctx ends. With a
// cursor nothing is ever skipped.
func (n *Node) WatchEvents(ctx context.Context, req *apiv1.WatchEventsRequest, emit func(*apiv1.Event) error) error {
	if err := n.needUser(); err != nil {
		return err
	}
	news := n.feed.subscribe()
	defer n.feed.unsubscribe(news)
	after := req.After
	if req.Cursor != "" || after == 0 {
		var err error
		if after, err = n.feed.position(ctx, req.Cursor, req.From); err != nil {
			return explain(err)
		}
	}
	for {
		events, err := n.feed.events(ctx, after, eventPage)
		if err != nil {
			return explain(err)
		}
		for _, e := range events {
			if err := emit(e); err != nil {
				return err
			}
			after = e.Id
		}
		if len(events) > 0 && req.AutoAck && req.Cursor != "" {
			if err := n.feed.ack(ctx, req.Cursor, after); err != nil {
				return explain(err)
			}
		}
		if len(events) == eventPage {
			continue
		}
		select {
		case <-news:
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return ctx.Err() // the caller's patience ended
			}
			return nil
		}
	}
}

// ListEvents is WatchEvents as a long poll.
func (n *Node) ListEvents(ctx context.Context, req *apiv1.ListEventsRequest) (*apiv1.ListEventsResponse, error) {
	if err := n.needUser(); err != nil {
		return nil, err
	}
	news := n.feed.subscribe()
	defer n.feed.unsubscribe(news)
	after := req.After
	if req.Cursor != "" || after == 0 {
		var err error
		if after, err = n.feed.position(ctx, req.Cursor, req.From); err != nil {
			return nil, explain(err)
		}
	}
	limit := int(req.Limit)
	if limit <= 0 {
		limit = 100
	}
	patience := time.NewTimer(time.Duration(req.WaitMs) * time.Millisecond)
	defer patience.Stop()
	for {
		events, err := n.feed.events(ctx, after, min(limit, 1000))
		if err != nil {
			return nil, explain(err)
		}
		if len(events) > 0 || req.WaitMs <= 0 {
			return &apiv1.ListEventsResponse{Events: events}, nil
		}
		select {
		case <-news:
		case <-patience.C:
			return &apiv1.ListEventsResponse{}, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// AckEvents moves a cursor forward.
func (n *Node) AckEvents(ctx context.Context, req *apiv1.AckEventsRequest) (*apiv1.AckEventsResponse, error) {
	if err := n.needUser(); err != nil {
		return nil, err
	}
	var known bool
	var last uint64
	if err := n.view(ctx, func(tx *store.Tx) error {
		var err error
		if _, known, err = tx.Cursor(req.Cursor); err != nil {
			return err
		}
		last, err = tx.LastEvent()
		return err
	}); err != nil {
		return nil, explain(err)
	}
	switch {
	case !known:
		return nil, refuse(CodeNotFound, "it is created by: kith watch --cursor NAME", "there is no cursor %q", req.Cursor)
	case req.Id > last:
		return nil, refuse(CodeUsage, "acknowledge only what was received", "there is no event %d yet", req.Id)
	}
	return &apiv1.AckEventsResponse{}, explain(n.feed.ack(ctx, req.Cursor, req.Id))
}

// position returns the id after which a reader begins, and creates its cursor.
func (f *feed) position(ctx context.Context, cursor, from string) (after uint64, err error) {
	var known bool
	var cursors int
	err = f.n.view(ctx, func(tx *store.Tx) error {
		var err error
		if cursor != "" {
			if after, known, err = tx.Cursor(cursor); err != nil || known {
				return err
			}
		}
		if cursors, err = tx.CountCursors(); err != nil {
			return err
		}
		if from != "start" {
			after, err = tx.LastEvent()
		}
		return err
	})
	if err != nil || known || cursor == "" {
		return after, err
	}
	if cursors >= maxCursors {
		return 0, refuse(CodeQuota, "use one of the cursors there are", "there are already %d cursors", maxCursors)
	}
	return after, f.ack(ctx, cursor, after)
}

func (f *feed) ack(ctx context.Context, cursor string, id uint64) error {
	return f.n.update(ctx, func(w *work) error { return w.tx.SetCursor(cursor, id, w.age) })
}

func (f *feed) events(ctx context.Context, after uint64, limit int) (out []*apiv1.Event, err error) {
	err = f.n.view(ctx, func(tx *store.Tx) error {
		rows, err := tx.Events(after, limit)
		for _, r := range rows {
			out = append(out, &apiv1.Event{Id: r.ID, Type: r.Type, TimeMs: r.Time, Data: string(r.Data)})
		}
		return err
	})
	return out, err
}

// showMessage is a message as the API shows it, but for its state.
func showMessage(row store.MessageRow, m *message.Message, c store.ContactRow, self string) *apiv1.Message {
	out := &apiv1.Message{
		Id: messageText(row.ID), Conversation: c.Handle, From: c.Name, FromId: c.Handle, FromMe: row.Mine,
		TimeMs: int64(m.Time), ReceivedMs: row.Received, Seq: row.Seq, Kind: "unsupported",
	}
	if row.Mine {
		out.From, out.FromId = self, ""
	} else {
		out.State = "received"
	}
	if t, ok := m.Content.(*message.Text); ok {
		out.Kind, out.Text = "text", t.Body
		if !t.ReplyTo.IsZero() {
			out.ReplyTo = messageText(t.ReplyTo[:])
		}
	}
	return out
}
