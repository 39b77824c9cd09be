package node

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/kith-im/kith/node/store"
	"github.com/kith-im/kith/protocol/handshake"
	"github.com/kith-im/kith/protocol/identity"
	"github.com/kith-im/kith/protocol/message"
)

// work is one transaction's view of the node: the sessions it has advanced,
// and what is to be woken once it is durable. It lives inside one
// store.Update.
type work struct {
	n   *Node
	tx  *store.Tx
	now time.Time // by the wall
	age int64     // of the store

	sessions map[handshake.SessionID]*session // loaded, and saved once at the end
	live     map[identity.DeviceHash]*session // what liveSession found
	parties  map[identity.DeviceHash]*party   // what party found
	chains   map[int64]*chain                 // loaded, and saved once at the end
	receipts map[int64][]message.ID           // by contact, to queue at the end
	released map[int64]bool                   // contacts whose held-back receipts are due
	wake     map[identity.DeviceHash]bool     // outboxes with something new
	devices  map[identity.DeviceHash]bool     // devices that need an outbox
	names    bool                             // who may open a stream has changed
	tags     bool                             // what we accept envelopes under has changed
	mail     bool                             // our boxes, or what we know of their nodes, have changed
	shown    int                              // messages added to a history
	moved    bool                             // what our records say has changed
	roads    bool                             // the bridges we know, or the mode, have changed
	publish  bool                             // what we publish has changed
	hidden   bool                             // who may know our address has changed
	event    bool                             // the event log has grown
	soon     bool                             // something expires before tidying is due
}

// update runs fn in one transaction. When it returns nil everything fn did is
// on disk, and only then does anything leave or get acknowledged.
func (n *Node) update(ctx context.Context, fn func(*work) error) error {
	return n.store.Update(ctx, func(tx *store.Tx) error {
		w := &work{
			n: n, tx: tx, now: n.now(), age: n.age.now(),
			sessions: make(map[handshake.SessionID]*session),
			live:     make(map[identity.DeviceHash]*session),
			parties:  make(map[identity.DeviceHash]*party),
			chains:   make(map[int64]*chain),
			receipts: make(map[int64][]message.ID),
			released: make(map[int64]bool),
			wake:     make(map[identity.DeviceHash]bool),
			devices:  make(map[identity.DeviceHash]bool),
		}
		if err := fn(w); err != nil {
			return err
		}
		return w.finish()
	})
}

// finish queues the receipts that are owed, saves the sessions and arranges
// what happens after the commit.
func (w *work) finish() error {
	if err := w.queueReceipts(); err != nil {
		return err
	}
	for _, ch := range w.chains {
		if err := ch.save(w.tx); err != nil {
			return err
		}
	}
	for _, s := range w.sessions {
		if err := w.saveSession(s); err != nil {
			return err
		}
	}
	w.keepLoaded()
	w.tx.OnCommit(w.committed)
	return nil
}

// committed runs after the commit, on the store's writer: it only wakes others.
func (w *work) committed() {
	if w.event {
		w.n.feed.wake()
	}
	if w.soon {
		poke(w.n.hasty)
	}
	if w.names {
		w.n.lobby.refresh()
	}
	if w.names || w.publish {
		w.n.locals.refresh()
	}
	if w.publish {
		w.n.beacon.wake()
	}
	if w.hidden {
		w.n.relays.wake()
	}
	if w.moved {
		w.n.beacon.renew()
	}
	if w.names || w.tags {
		w.n.mail.retag()
	}
	if w.roads {
		poke(w.n.modes.changed)
	}
	if w.mail {
		w.n.mail.wake()
	}
	for d := range w.devices {
		w.n.outbox.add(d)
	}
	for d := range w.wake {
		w.n.outbox.wake(d)
	}
}

// ms is the transaction's time as the store keeps times.
func (w *work) ms() int64 { return w.now.UnixMilli() }

// emit appends to the event log. contact is whom it is about; 0 for nobody.
func (w *work) emit(typ string, contact int64, data any) error {
	b, err := json.Marshal(data)
	if err != nil {
		return err
	}
	w.event = true
	return w.tx.AddEvent(typ, contact, w.ms(), w.age, b)
}

// view runs fn on a snapshot.
func (n *Node) view(ctx context.Context, fn func(*store.Tx) error) error {
	return n.store.View(ctx, fn)
}

// found turns store.ErrNotFound into ok == false.
func found(err error) (ok bool, _ error) {
	if errors.Is(err, store.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}
