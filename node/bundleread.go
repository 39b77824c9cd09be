package node

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"slices"
	"strings"
	"time"

	apiv1 "github.com/kith-im/kith/node/api/v1"
	"github.com/kith-im/kith/node/store"
	"github.com/kith-im/kith/protocol"
	"github.com/kith-im/kith/protocol/bundle"
	"github.com/kith-im/kith/protocol/handshake"
	"github.com/kith-im/kith/protocol/identity"
	"github.com/kith-im/kith/protocol/rendezvous"
)

const (
	// maxPaper bounds what is read as text: two hundred slips.
	maxPaper = 1 << 20

	// busyPause is how long an import waits when more people answer invites
	// than are let in at one time.
	busyPause = time.Second / handshakeRate

	// carryLife is how long what is for others is kept: as long as its sender
	// tries.
	carryLife = messageLife
)

// lock is what we know of a key that a part may be sealed under.
type lock struct {
	contact int64 // 0: an invite's
	own     bool  // what we seal ourselves
	// Of a record: who made the invite that we accepted, and with what it is
	// authenticated.
	device *identity.DeviceHash
	prekey protocol.BundleKey
}

// locks are all keys that parts for us, or of ours, are sealed under.
type locks struct {
	keys []bundle.Key
	of   []lock
}

func (l *locks) add(k bundle.Key, of lock) { l.keys, l.of = append(l.keys, k), append(l.of, of) }

// findLocks collects the keys: of every session, of the invites that we
// accepted, and of our own.
func (n *Node) findLocks(tx *store.Tx) (l locks, err error) {
	self := n.self.device.Hash()
	devices, err := tx.Devices(0)
	if err != nil {
		return l, err
	}
	for _, d := range devices {
		device := identity.DeviceHash(d.Hash)
		shared, err := sharedKeys(tx, d)
		if err != nil {
			return l, err
		}
		for _, s := range shared {
			l.add(bundle.To(s.Carry, self), lock{contact: d.Contact})
			l.add(bundle.To(s.Carry, device), lock{contact: d.Contact, own: true})
		}
		if d.Link != nil { // the last of them is the invite's
			s := shared[len(shared)-1]
			l.add(bundle.From(s.Carry, device), lock{contact: d.Contact, device: &device, prekey: s.Bundle})
		}
	}
	invites, err := tx.Invites()
	if err != nil {
		return l, err
	}
	for _, i := range invites {
		if i.State == store.InviteRevoked {
			continue
		}
		link, err := parseLink(i.Link)
		if err != nil {
			return l, err
		}
		carry := link.Keys().Carry
		l.add(bundle.To(carry, self), lock{})
		l.add(bundle.From(carry, self), lock{own: true})
	}
	return l, nil
}

// reading is an import under way.
type reading struct {
	n       *Node
	locks   locks
	inspect bool
	carry   bool
	out     *apiv1.ImportBundleResponse
	joiner  bundle.Joiner
	batch   [][]byte        // envelopes to be received
	foreign [][]byte        // parts to be kept
	from    map[int64]int32 // envelopes by contact
	misread bool
}

// ImportBundle reads a file, or the texts of slips, from what next returns until
// io.EOF, and receives what is for us. What was received stays so whatever happens
// afterwards, and to read a file again is harmless.
func (b *Bundles) ImportBundle(ctx context.Context, next func() (*apiv1.ImportBundleRequest, error)) (*apiv1.ImportBundleResponse, error) {
	n := b.n
	if err := n.needUser(); err != nil {
		return nil, err
	}
	r := &reading{n: n, out: &apiv1.ImportBundleResponse{}, from: make(map[int64]int32)}
	if err := n.view(ctx, func(tx *store.Tx) (err error) {
		r.locks, err = n.findLocks(tx)
		return err
	}); err != nil {
		return nil, explain(err)
	}
	first, err := next()
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	r.inspect, r.carry = first.GetInspect(), first.GetCarry()
	buf, text := first.GetData(), isText(first.GetData())
	r.out.Bytes = int64(len(buf))
	for err == nil {
		if !text {
			if buf, err = r.parts(ctx, buf); err != nil {
				return nil, explain(err)
			}
		}
		var more *apiv1.ImportBundleRequest
		if more, err = next(); err == nil {
			r.out.Bytes += int64(len(more.Data))
			text = text && isText(more.Data) && len(buf) < maxPaper
			buf = append(buf, more.Data...)
		}
		if r.out.Bytes > protocol.MaxBundle {
			return nil, refuse(CodeUsage, "name the file that kith bundle export made", "no bundle is that large")
		}
	}
	if !errors.Is(err, io.EOF) {
		return nil, err
	}
	if text {
		err = r.slips(ctx, string(buf))
	} else if _, err = r.parts(ctx, buf); err == nil {
		err = r.flush(ctx)
	}
	if err != nil {
		return nil, explain(err)
	}
	return r.finish(ctx)
}

// isText says whether somebody may have typed b: a slip's text, with mistakes. A
// part of noise is no such thing.
func isText(b []byte) bool {
	for _, c := range b {
		if (c < ' ' || c > '~') && c != '\t' && c != '\r' && c != '\n' {
			return false
		}
	}
	return len(b) > 0
}

// parts takes the whole parts off buf and returns the rest.
func (r *reading) parts(ctx context.Context, buf []byte) (rest []byte, err error) {
	for len(buf) >= protocol.BundlePart {
		if err := r.part(ctx, buf[:protocol.BundlePart]); err != nil {
			return nil, err
		}
		buf = buf[protocol.BundlePart:]
	}
	return bytes.Clone(buf), ctx.Err()
}

// slips reads the texts of slips, with an empty line between them.
func (r *reading) slips(ctx context.Context, text string) error {
	r.out.Text = true
	for _, one := range strings.Split(strings.ReplaceAll(text, "\r", ""), "\n\n") {
		if strings.TrimSpace(one) == "" {
			continue
		}
		slip, err := bundle.ParseText(one)
		if err != nil {
			r.out.Damaged++
			r.misread = r.misread || errors.Is(err, bundle.ErrMisread)
			continue
		}
		if err := r.part(ctx, slip); err != nil {
			return err
		}
	}
	return r.flush(ctx)
}

// part looks at one part, and collects what it holds for us.
func (r *reading) part(ctx context.Context, part []byte) error {
	r.out.Parts++
	i, ok := bundle.Find(r.locks.keys, part)
	if !ok {
		r.out.Foreign++
		if r.carry && !r.inspect && !r.out.Text {
			r.foreign = append(r.foreign, bytes.Clone(part))
			if len(r.foreign) >= maxBatch {
				return r.keep(ctx)
			}
		}
		return nil
	}
	l := r.locks.of[i]
	items, err := bundle.Open(r.locks.keys[i], part)
	switch {
	case err != nil:
		r.out.Damaged++
		return nil
	case l.own:
		r.out.Own++
		return nil
	}
	r.out.Ours++
	for _, it := range items {
		envelope := it.Body
		switch it.Kind {
		case bundle.Record:
			if err := r.record(ctx, l, it.Body); err != nil {
				return err
			}
			continue
		case bundle.Piece:
			if envelope = r.joiner.Add(it); envelope == nil {
				continue
			}
		case bundle.Envelope:
		}
		r.out.Envelopes++
		r.from[l.contact]++
		if r.batch = append(r.batch, envelope); len(r.batch) >= maxBatch {
			if err := r.flush(ctx); err != nil {
				return err
			}
		}
	}
	return nil
}

// record takes the keys of an invite that we accepted: with them the session
// begins, and what was written to the contact is sealed.
func (r *reading) record(ctx context.Context, l lock, encoded []byte) error {
	if l.device == nil {
		return nil // it stands where only envelopes belong
	}
	body, err := rendezvous.ParseBody(encoded)
	if err != nil {
		return nil
	}
	prekeys, err := handshake.ParseBundle(body.Bundle, *l.device, l.prekey, 0, r.n.now())
	if err != nil {
		return nil
	}
	r.out.Invites++
	if r.inspect {
		return nil
	}
	return r.n.update(ctx, func(w *work) error {
		if boxes := body.Field(rendezvous.FieldMailboxes); boxes != nil {
			if err := w.learnBoxes(*l.device, boxes, true); err != nil {
				return err
			}
		}
		return w.learn(*l.device, prekeys)
	})
}

// flush receives what was collected, and keeps what is for others.
func (r *reading) flush(ctx context.Context) error {
	batch := r.batch
	r.batch = nil
	if r.inspect || len(batch) == 0 {
		return r.keep(ctx)
	}
	got, err := r.n.lobby.receiveAll(ctx, batch, "")
	if errors.Is(err, errBusy) || errors.Is(err, errTooMuch) {
		// One that cannot be taken now must not keep the others away.
		got, err = r.oneByOne(ctx, batch)
	}
	if err != nil {
		return err
	}
	r.out.Fresh += int32(got.opened)
	r.out.Messages += int32(got.messages)
	return r.keep(ctx)
}

// oneByOne receives envelopes of which some cannot be taken now.
func (r *reading) oneByOne(ctx context.Context, batch [][]byte) (all received, err error) {
	for tries := 0; len(batch) > 0; {
		got, err := r.n.lobby.receiveAll(ctx, batch[:1], "")
		switch {
		case errors.Is(err, errBusy) && tries < handshakeRate:
			tries++
			timer := time.NewTimer(busyPause)
			select {
			case <-timer.C:
			case <-ctx.Done():
				timer.Stop()
				return all, ctx.Err()
			}
			continue
		case errors.Is(err, errBusy), errors.Is(err, errTooMuch):
			r.out.Waiting++
		case err != nil:
			return all, err
		}
		all.opened += got.opened
		all.messages += got.messages
		batch, tries = batch[1:], 0
	}
	return all, nil
}

// keep stores parts for others, as far as there is room.
func (r *reading) keep(ctx context.Context) error {
	parts := r.foreign
	r.foreign = nil
	if len(parts) == 0 {
		return nil
	}
	kept, full := int32(0), false
	err := r.n.update(ctx, func(w *work) error {
		kept, full = 0, false
		for _, p := range parts {
			hash := sha256.Sum256(p)
			here, added, err := w.tx.Carry(hash[:], p, w.age+carryLife.Milliseconds(), maxCarried)
			if err != nil {
				return err
			}
			full = full || !here
			if added {
				kept++
			}
		}
		return nil
	})
	r.out.Kept += kept
	r.out.Full = r.out.Full || full
	return err
}

// finish says what came of it.
func (r *reading) finish(ctx context.Context) (*apiv1.ImportBundleResponse, error) {
	out := r.out
	if err := r.n.view(ctx, func(tx *store.Tx) error {
		out.From = nil
		for contact, count := range r.from {
			s := &apiv1.BundleSender{Envelopes: count}
			if contact != 0 {
				c, err := tx.Contact(contact)
				if ok, err := found(err); !ok {
					if err != nil {
						return err
					}
					continue // removed in the meantime
				}
				s.Contact, s.Name = c.Handle, c.Name
			}
			out.From = append(out.From, s)
		}
		slices.SortFunc(out.From, func(a, b *apiv1.BundleSender) int { return strings.Compare(a.Name+a.Contact, b.Name+b.Contact) })
		return nil
	}); err != nil {
		return nil, explain(err)
	}
	if r.inspect && out.Parts > 0 || out.Ours > 0 || out.Kept > 0 || r.carry && out.Foreign > 0 && !out.Full {
		return out, nil
	}
	return nil, r.nothing()
}

// nothing says why a bundle had nothing for us.
func (r *reading) nothing() error {
	out := r.out
	switch {
	case out.Text && r.misread:
		return refuse(CodeRefused, "compare the text with the paper, letter by letter, and try again", "a letter of the text is wrong or missing")
	case out.Text && out.Parts == 0:
		return refuse(CodeUsage, "copy all of it, from its first letter to its last; it has the letters A to Z and the digits 2 to 7", "this is no text that kith bundle export made")
	case out.Parts == 0:
		return refuse(CodeUsage, "name the file that kith bundle export made, and copy it again if it was cut short", "this file is too small to be a bundle")
	case out.Damaged > 0:
		return refuse(CodeRefused, "ask for another copy", "what was in this bundle for you is damaged")
	case out.Full:
		return refuse(CodeQuota, "carry what you have first: kith bundle export FILE", "there is no room to carry more for others")
	case out.Own > 0:
		return refuse(CodeRefused, "take it to those it is for", "this bundle was made here, for others")
	}
	return refuse(CodeNotFound, "if it is from somebody whose invite you have, first run: kith accept LINK; or keep it for others: kith bundle import --carry FILE",
		"nothing in this file is for you")
}
