package node

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	apiv1 "github.com/kith-im/kith/node/api/v1"
	"github.com/kith-im/kith/node/store"
	"github.com/kith-im/kith/protocol/handshake"
	"github.com/kith-im/kith/protocol/identity"
	"github.com/kith-im/kith/protocol/invite"
)

const (
	// inviteLife is how long an invite lives unless its maker says otherwise,
	// and maxInviteLife the longest it may.
	inviteLife    = 7 * 24 * time.Hour
	maxInviteLife = 365 * 24 * time.Hour

	// maxInvites bounds the open invites: each costs three records in the
	// table every few hours.
	maxInvites = 100

	// A reusable invite shows a new prekey every prekeyLife.
	prekeyLife = 48 * time.Hour

	// answerGrace is how long after its expiry, or after a new prekey took its
	// place, an invite's prekey still opens answers: they were given in time,
	// and one of the two was offline.
	answerGrace = 7 * 24 * time.Hour

	// acceptPatience is how long accepting waits for the inviter's keys before
	// it leaves the search to the background.
	acceptPatience = 5 * time.Second
)

// CreateInvite makes a link that turns whoever opens it into a contact, or,
// reusable, into a request.
func (n *Node) CreateInvite(ctx context.Context, req *apiv1.CreateInviteRequest) (*apiv1.CreateInviteResponse, error) {
	if err := n.needUser(); err != nil {
		return nil, err
	}
	life := inviteLife
	if req.ExpiresS != 0 {
		life = time.Duration(req.ExpiresS) * time.Second
	}
	if life < time.Minute || life > maxInviteLife {
		return nil, refuse(CodeUsage, "choose between 1m and 365d", "an invite cannot live that long or that short")
	}
	var out *apiv1.Invite
	err := n.update(ctx, func(w *work) error {
		rows, err := w.tx.Invites()
		if err != nil {
			return err
		}
		open := 0
		for _, r := range rows {
			if r.State == store.InviteOpen && r.Expires > w.ms() {
				open++
			}
		}
		if open >= maxInvites {
			return refuse(CodeQuota, "revoke some: kith invite revoke ID", "there are already %d open invites", maxInvites)
		}
		hints, err := w.hints()
		if err != nil {
			return err
		}
		link, err := invite.New(n.self.rand, n.self.device.Hash(), req.Reusable, w.now.Add(life), hints)
		if err != nil {
			return err
		}
		id := make([]byte, 8)
		if _, err := io.ReadFull(n.self.rand, id); err != nil {
			return err
		}
		row := store.InviteRow{
			ID: id, Link: []byte(link.Link()), Name: cleanName(req.Name), Reusable: req.Reusable,
			State: store.InviteOpen, Created: w.ms(), Expires: link.Expiry.UnixMilli(),
			Erase: w.age + (life + messageLife).Milliseconds(),
		}
		if err := w.tx.CreateInvite(row); err != nil {
			return err
		}
		if _, err := w.newPrekey(row); err != nil {
			return err
		}
		tag := link.Keys().Tag
		if err := w.tx.AddInviteTag(tag[:], id); err != nil {
			return err
		}
		w.names, w.publish, w.hidden = true, true, req.Reusable
		out = w.showInvite(row)
		return nil
	})
	if err != nil {
		return nil, explain(err)
	}
	return &apiv1.CreateInviteResponse{Invite: out}, nil
}

// newPrekey gives an invite a fresh prekey.
func (w *work) newPrekey(inv store.InviteRow) (*handshake.Prekey, error) {
	p, err := handshake.NewPrekey(w.n.self.rand)
	if err != nil {
		return nil, err
	}
	erase := inv.Erase - (messageLife - answerGrace).Milliseconds()
	if inv.Reusable {
		erase = min(erase, w.age+(prekeyLife+answerGrace).Milliseconds())
	}
	id := p.ID()
	return p, w.tx.CreatePrekey(store.PrekeyRow{ID: id[:], Invite: inv.ID, Secret: p.Marshal(), Born: w.age, Erase: erase})
}

// answerable says whether answers to an invite are still taken, though it may
// no longer be shown to anybody new.
func answerable(inv store.InviteRow, now time.Time) bool {
	return now.UnixMilli() < inv.Expires+answerGrace.Milliseconds()
}

// bundle is what an invite shows: its newest prekey, replaced when it is due.
func (w *work) bundle(inv store.InviteRow, link *invite.Invite, epoch uint64) (*handshake.Bundle, error) {
	var p *handshake.Prekey
	row, err := w.tx.NewestPrekey(inv.ID)
	switch {
	case errors.Is(err, store.ErrNotFound), err == nil && inv.Reusable && row.Born+prekeyLife.Milliseconds() <= w.age:
		p, err = w.newPrekey(inv)
	case err == nil:
		p, err = handshake.UnmarshalPrekey(row.Secret)
	}
	if err != nil {
		return nil, err
	}
	expiry := time.UnixMilli(inv.Expires)
	if limit := w.now.Add(prekeyLife + answerGrace); inv.Reusable && limit.Before(expiry) {
		expiry = limit
	}
	return handshake.NewBundle(w.n.self.device, p, epoch, expiry, link.Keys().Bundle), nil
}

func inviteText(id []byte) string { return hex.EncodeToString(id) }

func (w *work) showInvite(r store.InviteRow) *apiv1.Invite { return showInvite(r, w.now) }

func showInvite(r store.InviteRow, now time.Time) *apiv1.Invite {
	state := "open"
	switch {
	case r.State == store.InviteUsed, r.State == store.InviteTwice:
		state = "used"
	case r.State == store.InviteRevoked:
		state = "revoked"
	case r.Expires <= now.UnixMilli():
		state = "expired"
	}
	return &apiv1.Invite{
		Id: inviteText(r.ID), Link: string(r.Link), ExpiresMs: r.Expires, Uses: int32(r.Uses),
		Reusable: r.Reusable, Name: r.Name, State: state, CreatedMs: r.Created,
	}
}

// ListInvites returns our invites, oldest first.
func (n *Node) ListInvites(ctx context.Context, _ *apiv1.ListInvitesRequest) (*apiv1.ListInvitesResponse, error) {
	if err := n.needUser(); err != nil {
		return nil, err
	}
	out := &apiv1.ListInvitesResponse{}
	err := n.view(ctx, func(tx *store.Tx) error {
		rows, err := tx.Invites()
		for _, r := range rows {
			out.Invites = append(out.Invites, showInvite(r, n.now()))
		}
		return err
	})
	return out, explain(err)
}

// RevokeInvite ends an invite: nobody can answer it any more.
func (n *Node) RevokeInvite(ctx context.Context, req *apiv1.RevokeInviteRequest) (*apiv1.RevokeInviteResponse, error) {
	if err := n.needUser(); err != nil {
		return nil, err
	}
	err := n.update(ctx, func(w *work) error {
		rows, err := w.tx.Invites()
		if err != nil {
			return err
		}
		var fits []store.InviteRow
		for _, r := range rows {
			if req.Id != "" && strings.HasPrefix(inviteText(r.ID), strings.ToLower(req.Id)) {
				fits = append(fits, r)
			}
		}
		switch {
		case len(fits) == 0:
			return refuse(CodeNotFound, "kith invites lists the ones you have", "there is no invite %q", req.Id)
		case len(fits) > 1:
			return refuse(CodeUsage, "give more of the id", "%q fits several invites", req.Id)
		}
		r := fits[0]
		if r.State != store.InviteOpen {
			return refuse(CodeRefused, "nothing needs to be done", "this invite is not open any more")
		}
		if err := w.tx.DeletePrekeys(r.ID); err != nil {
			return err
		}
		w.names, w.publish = true, true
		return w.tx.SetInvite(r.ID, store.InviteRevoked, r.Uses)
	})
	return &apiv1.RevokeInviteResponse{}, explain(err)
}

// AcceptInvite answers a link: its maker becomes a contact. It waits a moment
// for the maker's keys, so that one can write at once; if they are not found
// by then the search goes on by itself and the contact stays pending.
func (n *Node) AcceptInvite(ctx context.Context, req *apiv1.AcceptInviteRequest) (*apiv1.AcceptInviteResponse, error) {
	if err := n.needUser(); err != nil {
		return nil, err
	}
	link, err := invite.Parse(req.Link)
	if err != nil {
		sentence, hint, _ := strings.Cut(err.Error(), ": ")
		return nil, refuse(CodeUsage, hint, "%s", sentence)
	}
	if link.Expired(n.now()) {
		return nil, refuse(CodeRefused, "ask for a new one", "the invite has expired")
	}
	if link.Device == n.self.device.Hash() {
		return nil, refuse(CodeRefused, "send it to somebody else", "this is your own invite")
	}
	bridges, others := readHints(link.Hints)
	ways, err := peer.AddrInfosFromP2pAddrs(slices.Concat(bridges, others)...)
	if err != nil {
		return nil, err
	}
	known, err := n.answered(ctx, link)
	if err != nil {
		return nil, explain(err)
	}
	var leads []peer.AddrInfo // the bridges that may change the mode
	if !known {
		if leads, err = peer.AddrInfosFromP2pAddrs(bridges...); err != nil {
			return nil, err
		}
	}
	news := n.feed.subscribe()
	defer n.feed.unsubscribe(news)
	n.rush.begin(link.Device)
	var id int64
	err = n.modes.ahead(ctx, leads, func() error {
		return n.update(ctx, func(w *work) (err error) {
			id, err = w.accept(link, req.Name, bridges, others)
			return err
		})
	})
	if err != nil {
		n.rush.end(link.Device)
		return nil, explain(err)
	}
	if len(ways) > 0 {
		n.cfg.Discovery.AddWaysIn(ways)
	}
	c, err := n.awaitKeys(ctx, id, link.Device, news)
	if err != nil {
		return nil, explain(err)
	}
	return &apiv1.AcceptInviteResponse{Contact: c}, nil
}

// answered reports whether a link's maker is known already, and not by a link that
// was never answered: then nothing is taken from this one.
func (n *Node) answered(ctx context.Context, link *invite.Invite) (known bool, err error) {
	err = n.view(ctx, func(tx *store.Tx) error {
		d, err := tx.Device(link.Device[:])
		if known, err = found(err); !known || d.Link == nil {
			return err
		}
		c, err := tx.Contact(d.Contact)
		known = c.Blocked
		return err
	})
	return known, err
}

// accept makes a link's maker a contact, or says why not.
func (w *work) accept(link *invite.Invite, name string, bridges, others []ma.Multiaddr) (id int64, err error) {
	d, err := w.tx.Device(link.Device[:])
	switch {
	case errors.Is(err, store.ErrNotFound):
		c := store.ContactRow{State: store.ContactPending, Name: cleanName(name), Added: w.ms()}
		if err := w.addContact(&c); err != nil {
			return 0, err
		}
		w.devices[link.Device] = true
		w.publish, w.hidden = true, true
		if err := w.takeHints(bridges, others); err != nil {
			return 0, err
		}
		if err := w.tx.SaveDevice(store.DeviceRow{Hash: link.Device[:], Contact: c.ID, Link: []byte(link.Link())}); err != nil {
			return 0, err
		}
		return c.ID, w.emitContact(c, "accepted")
	case err != nil:
		return 0, err
	case bytes.Equal(d.Link, []byte(link.Link())):
		return d.Contact, nil // accepted before, and still under way
	}
	c, err := w.tx.Contact(d.Contact)
	if err != nil {
		return 0, err
	}
	switch {
	case c.Blocked:
		return 0, refuse(CodeRefused, "unblock them: kith unblock "+quoteName(c), "%s is blocked", quoteName(c))
	case d.Link != nil: // another link, while the first one is not answered
		d.Public, d.Link = nil, []byte(link.Link())
		w.devices[link.Device], w.names = true, true
		if err := w.takeHints(bridges, others); err != nil {
			return 0, err
		}
		return c.ID, w.tx.SaveDevice(d)
	case c.State == store.ContactRequest: // they asked, and so do we
		return c.ID, w.approve(&c)
	}
	return 0, refuse(CodeRefused, "write to them: kith send "+quoteName(c)+" TEXT", "%s is already a contact", quoteName(c))
}

// awaitKeys returns the contact as soon as the device's keys are known, or
// when patience ends.
func (n *Node) awaitKeys(ctx context.Context, id int64, device identity.DeviceHash, news <-chan struct{}) (*apiv1.Contact, error) {
	patience := time.NewTimer(acceptPatience)
	defer patience.Stop()
	for over := false; ; {
		var out *apiv1.Contact
		var known bool
		err := n.view(ctx, func(tx *store.Tx) error {
			c, err := tx.Contact(id)
			if err != nil {
				return err
			}
			d, err := tx.Device(device[:])
			if err != nil {
				return err
			}
			known = d.Public != nil
			out, err = n.showContact(tx, c)
			return err
		})
		if err != nil || known || over {
			return out, err
		}
		select {
		case <-news:
		case <-patience.C:
			over = true
		case <-ctx.Done():
			over = true
			ctx = context.WithoutCancel(ctx) // it is accepted either way: say so
		}
	}
}
