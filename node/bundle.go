package node

// A message's way out by hand (docs/spec/bundle.md; receiving is in
// bundleread.go):
//
//  1. ExportBundle looks up who is to get what: for each device the key that it
//     looks for, and what waits in its outbox, in the order of sending.
//  2. The same bytes as on any other road are packed into parts, each sealed for
//     one device; keys of open invites and what is carried for others beside them.
//  3. The file is filled up with noise and handed to whoever writes it.
//  4. NoteBundle notes in the ledger that it is where it is to be. Nothing else
//     changes: a message waits for its receipt, on all roads.

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"

	apiv1 "github.com/kith-im/kith/node/api/v1"
	"github.com/kith-im/kith/node/store"
	"github.com/kith-im/kith/protocol"
	"github.com/kith-im/kith/protocol/bundle"
	"github.com/kith-im/kith/protocol/identity"
	"github.com/kith-im/kith/protocol/invite"
	"github.com/kith-im/kith/protocol/rendezvous"
)

const (
	// bundleSize is the largest file unless somebody wants another: what every
	// stick, mail and phone takes. The least holds the largest envelope.
	bundleSize    = 64 << 20
	minBundleSize = int64(protocol.MaxEnvelope/protocol.BundlePiece) * protocol.BundlePart

	// maxCarried bounds the parts that are carried for others: 64 MiB, a fifth
	// of a second's worth of looking through them.
	maxCarried = 2048

	// noteBatch bounds the deliveries noted in one transaction.
	noteBatch = 500
)

// resultCarried is the result of an attempt that put an envelope into a file.
const resultCarried = "carried"

// carried says whether a file with a delivery is under way: then it has left.
func carried(encoded []byte) (bool, error) {
	all, err := attempts(encoded)
	return slices.ContainsFunc(all, func(a attempt) bool { return a.Road == roadBundle }), err
}

// Bundles makes and reads the files that people carry.
type Bundles struct{ n *Node }

// Bundles returns the node's bundles, for the local API.
func (n *Node) Bundles() *Bundles { return &Bundles{n} }

// load is what goes into a bundle for one reader.
type load struct {
	key    bundle.Key
	device []byte // whose outbox; nil: an invite's
	record []byte // keys of an invite
}

// manifest says what a bundle is to hold.
type manifest struct {
	loads   []load
	carried bool // and what is carried for others
}

// manifest looks up what a request asks for.
func (w *work) manifest(req *apiv1.ExportBundleRequest) (m manifest, err error) {
	all := len(req.Contacts) == 0 && len(req.Invites) == 0
	m.carried = all && !req.Text && !req.Fresh
	var contacts []store.ContactRow
	if all {
		if contacts, err = w.tx.Contacts(); err != nil {
			return m, err
		}
		contacts = slices.DeleteFunc(contacts, func(c store.ContactRow) bool { return maySend(c) != nil })
	}
	for _, word := range req.Contacts {
		c, err := w.resolve(word)
		if err != nil {
			return m, err
		}
		if err := maySend(c); err != nil {
			return m, err
		}
		if !slices.ContainsFunc(contacts, func(o store.ContactRow) bool { return o.ID == c.ID }) {
			contacts = append(contacts, c)
		}
	}
	for _, c := range contacts {
		devices, err := w.tx.Devices(c.ID)
		if err != nil {
			return m, err
		}
		for _, d := range devices {
			l, ok, err := w.loadFor(d)
			if err != nil {
				return m, err
			}
			if ok {
				m.loads = append(m.loads, l)
			} else if !all {
				return m, refuse(CodeRefused, "import a bundle that they made after their invite, or connect to a network once",
					"the keys of %s have not been found yet", quoteName(c))
			}
		}
	}
	if req.Text || req.Fresh && all {
		return m, nil
	}
	invites, err := w.inviteLoads(req.Invites, all)
	m.loads = append(invites, m.loads...)
	return m, err
}

// loadFor returns the key that a device looks for; ok is false if its own keys
// are not known.
func (w *work) loadFor(d store.DeviceRow) (l load, ok bool, err error) {
	device := identity.DeviceHash(d.Hash)
	if d.Public == nil {
		return l, false, nil
	}
	l.device = d.Hash
	if d.Link != nil { // it may not know our session yet, but it knows its invite
		link, err := parseLink(d.Link)
		if err != nil {
			return l, false, err
		}
		l.key = bundle.To(link.Keys().Carry, device)
		return l, true, nil
	}
	s, err := w.liveSession(device)
	if err != nil || s == nil {
		return l, false, err
	}
	pair, err := w.tx.Pair(s.id[:])
	if err != nil {
		return l, false, err
	}
	l.key = bundle.To(protocol.SharedFromPair(protocol.PairSecret(pair)).Carry, device)
	return l, true, nil
}

// inviteLoads are the keys of our open invites, for those who hold them: of
// those with the given ids, or of all.
func (w *work) inviteLoads(ids []string, all bool) (loads []load, err error) {
	invites, err := w.tx.Invites()
	if err != nil {
		return nil, err
	}
	open := slices.DeleteFunc(invites, func(i store.InviteRow) bool { return i.State != store.InviteOpen || i.Expires <= w.ms() })
	if !all {
		chosen := make([]store.InviteRow, 0, len(ids))
		for _, id := range ids {
			i := slices.IndexFunc(open, func(i store.InviteRow) bool {
				return id != "" && strings.HasPrefix(inviteText(i.ID), strings.ToLower(id))
			})
			if i < 0 {
				return nil, refuse(CodeNotFound, "kith invites lists the ones you have", "there is no open invite %q", id)
			}
			chosen = append(chosen, open[i])
		}
		open = chosen
	}
	epoch, err := counter(w.tx, metaEpoch)
	if err != nil {
		return nil, err
	}
	boxes, err := mailSet(w.tx)
	if err != nil {
		return nil, err
	}
	for _, i := range open {
		link, err := parseLink(i.Link)
		if err != nil {
			return nil, err
		}
		prekeys, err := w.bundle(i, link, epoch)
		if err != nil {
			return nil, err
		}
		body := rendezvous.Body{Bundle: prekeys.Marshal()}
		if boxes != nil {
			body.Fields = []rendezvous.Field{{Type: rendezvous.FieldMailboxes, Value: boxes}}
		}
		record, err := body.Marshal()
		if err != nil {
			return nil, err
		}
		loads = append(loads, load{key: bundle.From(link.Keys().Carry, w.n.self.device.Hash()), record: record})
	}
	return loads, nil
}

// parseLink reads a link of the store's.
func parseLink(link []byte) (*invite.Invite, error) {
	l, err := invite.Parse(string(link))
	if err != nil {
		return nil, errors.Join(store.ErrDamaged, err)
	}
	return l, nil
}

// MarkBundle says, in a word that means nothing else, what a bundle for all would
// hold now.
func (b *Bundles) MarkBundle(ctx context.Context, _ *apiv1.MarkBundleRequest) (*apiv1.MarkBundleResponse, error) {
	if err := b.n.needUser(); err != nil {
		return nil, err
	}
	out := &apiv1.MarkBundleResponse{}
	err := b.n.view(ctx, func(tx *store.Tx) error {
		delivery, part, err := tx.BundleMark()
		if err != nil {
			return err
		}
		invites, err := tx.Invites()
		if err != nil {
			return err
		}
		out.Mark = fmt.Sprintf("%d.%d", delivery, part)
		for _, i := range invites {
			if i.State == store.InviteOpen && i.Expires > b.n.now().UnixMilli() {
				out.Mark += "." + inviteText(i.ID)
			}
		}
		return nil
	})
	return out, explain(err)
}

// ExportBundle makes bundles of what waits, and calls emit with their bytes, in
// order.
func (b *Bundles) ExportBundle(ctx context.Context, req *apiv1.ExportBundleRequest, emit func(*apiv1.ExportBundleResponse) error) error {
	n := b.n
	if err := n.needUser(); err != nil {
		return err
	}
	size := req.Size
	switch {
	case size == 0:
		size = bundleSize
	case size < minBundleSize:
		return refuse(CodeUsage, "choose at least 262144 bytes, or carry single messages on paper with --text", "a bundle that small does not hold every message")
	}
	var m manifest
	if err := n.update(ctx, func(w *work) (err error) {
		m, err = w.manifest(req)
		return err
	}); err != nil {
		return explain(err)
	}
	p := &press{n: n, emit: emit, max: bundle.MaxParts(size), fresh: req.Fresh, text: req.Text}
	for _, l := range m.loads {
		if err := p.take(ctx, l); err != nil {
			return explain(err)
		}
	}
	if m.carried {
		if err := p.carry(ctx); err != nil {
			return explain(err)
		}
	}
	if err := p.end(); err != nil {
		return err
	}
	switch {
	case p.leftOut > 0:
		return emit(&apiv1.ExportBundleResponse{LeftOut: p.leftOut})
	case p.files > 0:
		return nil
	case req.Fresh && p.older > 0:
		return refuse(CodeRefused, "leave out --new to carry it again", "all that waits was put into a bundle before")
	}
	return refuse(CodeRefused, "write something first: kith send CONTACT TEXT", "nothing waits to be carried")
}

// press makes files: it fills one after the other.
type press struct {
	n     *Node
	emit  func(*apiv1.ExportBundleResponse) error
	max   int // parts in a file
	fresh bool
	text  bool

	parts   int // in the file under way
	file    apiv1.BundleFile
	seen    map[string]bool // devices that it has something for
	files   int
	leftOut int32
	older   int // envelopes that were carried before
}

// take puts what there is for one reader into the file under way, and into more
// if it does not fit.
func (p *press) take(ctx context.Context, l load) error {
	packer := bundle.NewPacker(p.n.self.rand, l.key)
	if l.record != nil {
		if p.parts == p.max {
			if err := p.end(); err != nil {
				return err
			}
		}
		if _, err := packer.Add(bundle.Item{Kind: bundle.Record, Body: l.record}); err != nil {
			return err
		}
		p.file.Invites++
		return p.flush(packer)
	}
	for after := int64(0); ; {
		var rows []store.DeliveryRow
		if err := p.n.view(ctx, func(tx *store.Tx) (err error) {
			rows, err = tx.Outbox(l.device, after, math.MaxInt64, p.n.age.now(), maxInFlight)
			return err
		}); err != nil {
			return err
		}
		for _, d := range rows {
			after = d.ID
			before, err := carried(d.Attempts)
			if err != nil {
				return err
			}
			if before && p.fresh {
				p.older++
				continue
			}
			if p.text {
				err = p.slip(l, d)
			} else {
				err = p.put(packer, l, d)
			}
			if err != nil {
				return err
			}
		}
		if len(rows) < maxInFlight {
			return p.flush(packer)
		}
	}
}

// put packs one envelope. All of it goes into one file.
func (p *press) put(packer *bundle.Packer, l load, d store.DeliveryRow) error {
	items := bundle.Split(d.Envelope)
	if p.parts+packer.Open()+packer.Needs(items) > p.max {
		if err := p.flush(packer); err != nil {
			return err
		}
		if err := p.end(); err != nil {
			return err
		}
	}
	p.count(l, d)
	for _, it := range items {
		full, err := packer.Add(it)
		if err != nil {
			return err
		}
		if err := p.part(full); err != nil {
			return err
		}
	}
	return p.emit(&apiv1.ExportBundleResponse{Entries: []int64{d.ID}})
}

// slip writes one message on paper of its own, if it fits. What only daemons say
// to each other, receipts too, is not worth a letter by hand.
func (p *press) slip(l load, d store.DeliveryRow) error {
	if d.Message == nil {
		return nil
	}
	if len(d.Envelope) > protocol.MaxSlip {
		p.leftOut++
		return nil
	}
	text, err := bundle.SealText(p.n.self.rand, l.key, d.Envelope)
	if err != nil {
		return err
	}
	p.count(l, d)
	p.file.Bytes = int64(len(text))
	if err := p.emit(&apiv1.ExportBundleResponse{Data: []byte(text), Entries: []int64{d.ID}}); err != nil {
		return err
	}
	return p.finish()
}

// count adds an envelope to what is said of the file.
func (p *press) count(l load, d store.DeliveryRow) {
	if p.seen == nil {
		p.seen = make(map[string]bool)
	}
	p.seen[string(l.device)] = true
	p.file.Envelopes++
	if d.Message != nil {
		p.file.Messages++
	}
}

// carry adds what is carried for others.
func (p *press) carry(ctx context.Context) error {
	for after := int64(0); ; {
		var rows []store.CarriedRow
		if err := p.n.view(ctx, func(tx *store.Tx) (err error) {
			rows, err = tx.Carried(after, maxInFlight)
			return err
		}); err != nil {
			return err
		}
		for _, c := range rows {
			after = c.ID
			if p.parts == p.max {
				if err := p.end(); err != nil {
					return err
				}
			}
			p.file.Carried++
			if err := p.part(c.Part); err != nil {
				return err
			}
		}
		if len(rows) < maxInFlight {
			return nil
		}
	}
}

func (p *press) flush(packer *bundle.Packer) error {
	last, err := packer.Flush()
	if err != nil {
		return err
	}
	return p.part(last)
}

// part adds a part to the file under way, if there is one.
func (p *press) part(part []byte) error {
	if part == nil {
		return nil
	}
	p.parts++
	p.file.Bytes += int64(len(part))
	return p.emit(&apiv1.ExportBundleResponse{Data: part})
}

// end fills the file under way up with noise and begins the next.
func (p *press) end() error {
	if p.parts == 0 {
		return nil
	}
	for range bundle.Padding(p.parts) {
		noise, err := bundle.Noise(p.n.self.rand)
		if err != nil {
			return err
		}
		if err := p.part(noise); err != nil {
			return err
		}
	}
	return p.finish()
}

func (p *press) finish() error {
	p.file.Contacts = int32(len(p.seen))
	file := &apiv1.BundleFile{
		Bytes: p.file.Bytes, Envelopes: p.file.Envelopes, Messages: p.file.Messages,
		Contacts: p.file.Contacts, Invites: p.file.Invites, Carried: p.file.Carried,
	}
	p.files++
	p.parts, p.seen = 0, nil
	p.file.Reset()
	return p.emit(&apiv1.ExportBundleResponse{File: file})
}

// NoteBundle notes in the ledger what was put into a file.
func (b *Bundles) NoteBundle(ctx context.Context, req *apiv1.NoteBundleRequest) (*apiv1.NoteBundleResponse, error) {
	if err := b.n.needUser(); err != nil {
		return nil, err
	}
	for ids := range slices.Chunk(req.Entries, noteBatch) {
		if err := b.n.update(ctx, func(w *work) error {
			for _, id := range ids {
				if err := w.carry(id); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			return nil, explain(err)
		}
	}
	return &apiv1.NoteBundleResponse{}, nil
}

// carry notes that a delivery was put into a file, if it still waits.
func (w *work) carry(id int64) error {
	d, err := w.tx.DeliveryByID(id)
	if ok, err := found(err); !ok || !d.Open {
		return err
	}
	if d.Attempts, err = addAttempt(d.Attempts, attempt{w.ms(), roadBundle, resultCarried}); err != nil {
		return err
	}
	return w.tx.SaveDelivery(d)
}
