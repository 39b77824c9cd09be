package node

// How a session begins. The one who accepts an invite begins it, once the
// inviter's prekey bundle was found (begin); the one who made the invite
// answers (respond). Each side's first words are its signed device list and
// its name (introduce); with the list the account behind the device is known.

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/kith-im/kith/node/store"
	"github.com/kith-im/kith/protocol"
	"github.com/kith-im/kith/protocol/handshake"
	"github.com/kith-im/kith/protocol/identity"
	"github.com/kith-im/kith/protocol/invite"
	"github.com/kith-im/kith/protocol/message"
	"github.com/kith-im/kith/protocol/ratchet"
)

// begin starts a session with a device whose invite we accepted.
func (w *work) begin(c store.ContactRow, d store.DeviceRow, link *invite.Invite, bundle *handshake.Bundle) error {
	keys := link.Keys()
	hx1, hk, err := handshake.Initiate(w.n.self.rand, w.n.self.device, bundle, keys.PSK)
	if err != nil {
		return err
	}
	r, err := ratchet.Initiator(ratchetKeys(hk), [32]byte(bundle.X().Bytes()))
	if err != nil {
		return err
	}
	d.Public, d.Pair = bundle.Device.Marshal(), hk.Pair[:]
	if err := w.tx.SaveDevice(d); err != nil {
		return err
	}
	s := newSession(hk, bundle.Device.Hash(), r)
	s.initiator, s.tagSend, s.tagRecv = true, hk.TagA, hk.TagB
	s.prefix, s.prefixTag = hx1, keys.Tag
	if err := w.newSession(s); err != nil {
		return err
	}
	w.names, w.publish = true, true
	if err := w.emitContact(c, "keys found"); err != nil {
		return err
	}
	return w.introduce(c)
}

func newSession(k *handshake.Keys, device identity.DeviceHash, r ratchet.Session) *session {
	return &session{id: k.SID, device: device, ratchet: r, hx2: k.HX2, ad: k.AD[:]}
}

func ratchetKeys(k *handshake.Keys) ratchet.Keys {
	return ratchet.Keys{RK: k.Root, HKA: k.HeaderA, HKB: k.HeaderB, AD: k.AD[:]}
}

// beginAgain replaces a session that nobody has answered for so long that the
// prekey it used is gone, and seals what waits anew.
func (w *work) beginAgain(c store.ContactRow, d store.DeviceRow, link *invite.Invite, bundle *handshake.Bundle) error {
	old, err := w.liveSession(bundle.Device.Hash())
	if err != nil || old == nil || old.confirmed() || old.created+answerGrace.Milliseconds() > w.ms() ||
		bytes.HasPrefix(old.prefix[1:], bundle.PrekeyID[:]) {
		return err
	}
	delete(w.sessions, old.id)
	delete(w.live, old.device)
	if err := w.tx.DeleteSession(old.id[:]); err != nil {
		return err
	}
	waiting, err := w.tx.Outbox(d.Hash, 0, math.MaxInt64, math.MaxInt32)
	if err != nil {
		return err
	}
	for _, row := range waiting {
		if err := w.tx.DeleteDelivery(row.ID); err != nil {
			return err
		}
	}
	if err := w.begin(c, d, link, bundle); err != nil {
		return err
	}
	for _, row := range waiting {
		if row.Message == nil {
			continue // begin has introduced us anew
		}
		m, err := w.tx.Message(row.Message)
		if err != nil {
			return err
		}
		if err := w.address(c, m.Wire, m.N, time.Duration(row.Expires-w.ms())*time.Millisecond); err != nil {
			return err
		}
	}
	return nil
}

// introduce sends the first words of a session.
func (w *work) introduce(c store.ContactRow) error {
	if err := w.say(c, &message.DeviceList{Signed: w.n.self.list}); err != nil {
		return err
	}
	return w.say(c, &message.Profile{Name: w.n.self.name})
}

// respond takes an envelope that arrived under an invite's tag. It returns the
// session that the envelope's handshake began, now or before, and what is left
// to open; or, for a handshake that is new and whose first envelope opened, the
// session with the plaintext. A nil session means that nothing is to be done.
func (w *work) respond(inviteID, payload []byte) (s *session, rest, plaintext []byte, err error) {
	if len(payload) < handshake.HX1Size {
		return nil, nil, nil, nil
	}
	hx1, rest := payload[:handshake.HX1Size], payload[handshake.HX1Size:]
	hash := sha256.Sum256(hx1)
	known, ok, err := w.tx.Handshake(hash[:])
	switch {
	case err != nil:
		return nil, nil, nil, err
	case ok && len(known) == 0:
		return nil, nil, nil, nil // refused before
	case ok:
		s, err := w.session(handshake.SessionID(known))
		if ok, err := found(err); !ok {
			return nil, nil, nil, err // the contact was removed since
		}
		return s, rest, nil, err
	}
	inv, err := w.tx.Invite(inviteID)
	if err != nil {
		return nil, nil, nil, err
	}
	link, err := invite.Parse(string(inv.Link))
	if err != nil {
		return nil, nil, nil, errors.Join(store.ErrDamaged, err)
	}
	// One MAC, then the budget, then public-key work.
	psk := link.Keys().PSK
	prekeyID, err := handshake.Gate(psk, hx1)
	if err != nil || !w.n.gate.admit(w.now) {
		return nil, nil, nil, nil
	}
	refused := func() error { return w.tx.RememberHandshake(hash[:], nil, handshakeMemory(inv)) }
	switch {
	case inv.State == store.InviteUsed:
		if err := refused(); err != nil {
			return nil, nil, nil, err
		}
		return nil, nil, nil, w.usedTwice(inv)
	case inv.State != store.InviteOpen || !answerable(inv, w.now):
		return nil, nil, nil, nil
	}
	row, err := w.tx.Prekey(prekeyID[:])
	if ok, err := found(err); !ok {
		return nil, nil, nil, err
	}
	prekey, err := handshake.UnmarshalPrekey(row.Secret)
	if err != nil {
		return nil, nil, nil, errors.Join(store.ErrDamaged, err)
	}
	peer, hk, err := handshake.Respond(w.n.self.device, prekey, psk, hx1)
	if err != nil {
		return nil, nil, nil, nil
	}
	hx2, s3 := handshake.MakeHX2(hk, peer)
	r, err := ratchet.Responder(ratchetKeys(hk), [32]byte(prekey.X().Bytes()))
	if err != nil {
		return nil, nil, nil, err
	}
	s = newSession(hk, peer.Hash(), r.MixSend(s3))
	s.tagSend, s.tagRecv, s.prefix = hk.TagB, hk.TagA, hx2
	// The peer is who it says only if this opens.
	next, plaintext, err := s.ratchet.Decrypt(rest, w.now)
	if err != nil {
		return nil, nil, nil, nil
	}
	s.ratchet = next
	admitted, err := w.admit(inv, s, peer, hk)
	if err != nil {
		return nil, nil, nil, err
	}
	if !admitted {
		return nil, nil, nil, refused()
	}
	return s, nil, plaintext, w.tx.RememberHandshake(hash[:], s.id[:], handshakeMemory(inv))
}

// handshakeMemory is until when a handshake with an invite is remembered: as
// long as its sender may offer it.
func handshakeMemory(inv store.InviteRow) int64 {
	return inv.Expires + messageLife.Milliseconds()
}

// maxRequests bounds the people who wait for an answer; of more, the oldest go.
const maxRequests = 50

// admit makes a contact, or a request, of the device that answered an invite,
// in the transaction that spends the invite. It refuses a device that claims
// an account we know: those announce new devices in their sessions.
func (w *work) admit(inv store.InviteRow, s *session, peer *identity.Device, hk *handshake.Keys) (bool, error) {
	hash, account := peer.Hash(), peer.Account()
	d, err := w.tx.Device(hash[:])
	var c store.ContactRow
	switch {
	case err == nil:
		if c, err = w.tx.Contact(d.Contact); err != nil {
			return false, err
		}
		if c.Blocked {
			return false, nil
		}
	case !errors.Is(err, store.ErrNotFound):
		return false, err
	default:
		switch known, err := w.tx.ContactByAccount(account[:]); {
		case err == nil:
			if known.Blocked {
				return false, nil
			}
			return false, w.emitContact(known, "another device claims to be this contact")
		case !errors.Is(err, store.ErrNotFound):
			return false, err
		}
		c = store.ContactRow{State: store.ContactPending, Name: inv.Name, Added: w.ms()}
		if inv.Reusable {
			c.State, c.Name = store.ContactRequest, ""
			if err := w.dropOldRequests(); err != nil {
				return false, err
			}
		}
		if err := w.addContact(&c); err != nil {
			return false, err
		}
		d = store.DeviceRow{Hash: hash[:], Contact: c.ID}
	}
	d.Public, d.Pair = peer.Marshal(), hk.Pair[:]
	if err := w.tx.SaveDevice(d); err != nil {
		return false, err
	}
	if err := w.newSession(s); err != nil {
		return false, err
	}
	state := inv.State
	if !inv.Reusable {
		state = store.InviteUsed
		if err := w.tx.DeletePrekeys(inv.ID); err != nil {
			return false, err
		}
	}
	if err := w.tx.SetInvite(inv.ID, state, inv.Uses+1); err != nil {
		return false, err
	}
	w.names, w.publish, w.devices[hash] = true, true, true
	if c.State == store.ContactRequest {
		return true, nil // shown when its first words are taken
	}
	return true, w.introduce(c)
}

// dropOldRequests makes room for one more request.
func (w *work) dropOldRequests() error {
	contacts, err := w.tx.Contacts()
	if err != nil {
		return err
	}
	requests := slices.DeleteFunc(contacts, func(c store.ContactRow) bool {
		return c.State != store.ContactRequest || c.Blocked
	})
	for len(requests) >= maxRequests {
		if err := w.removeContact(requests[0]); err != nil {
			return err
		}
		requests = requests[1:]
	}
	return nil
}

// usedTwice tells the user that somebody else holds a one-time invite's link:
// one of the two is not who it was meant for.
func (w *work) usedTwice(inv store.InviteRow) error {
	return w.emit(eventContact, contactEvent{
		Invite: inviteText(inv.ID), Name: inv.Name,
		What: "an invite was used twice: somebody else had the link; compare safety numbers with the contact it made",
	})
}

// confirm notes that the other side holds the session: the invite that began
// it is no longer needed to find each other.
func (w *work) confirm(s *session, d *store.DeviceRow) error {
	if d.Link == nil || !s.initiator || !s.confirmed() {
		return nil
	}
	d.Link = nil // d is the transaction's own copy, so it stays true
	w.names = true
	return w.tx.SaveDevice(*d)
}

// takeDeviceList checks and keeps a contact's signed device list. With the
// first one the account behind the device is certain.
func (w *work) takeDeviceList(s *session, c store.ContactRow, m *message.DeviceList) error {
	account, err := w.accountOf(c)
	if err != nil {
		return err
	}
	list, err := identity.ParseDeviceList(m.Signed, account)
	if err != nil || !list.Contains(s.device) {
		return nil
	}
	if c.List != nil {
		old, err := identity.ParseDeviceList(c.List, account)
		if err != nil {
			return errors.Join(store.ErrDamaged, err)
		}
		switch err := list.Follows(old); {
		case errors.Is(err, identity.ErrOldList):
			return nil
		case err != nil:
			return w.raise(&c, "their account contradicts itself")
		}
	}
	switch other, err := w.tx.ContactByAccount(account[:]); {
	case err == nil && other.ID != c.ID:
		return nil
	case err != nil && !errors.Is(err, store.ErrNotFound):
		return err
	}
	changed := !slices.Equal(c.List, m.Signed)
	first := c.Account == nil
	c.List, c.Account = m.Signed, account[:]
	if err := w.saveContact(c); err != nil {
		return err
	}
	switch {
	case c.State == store.ContactPending:
		return w.moveContact(&c, store.ContactEstablished)
	case first:
		return w.emitContact(c, "request")
	case changed:
		return w.emit(eventDevice, deviceEvent{Contact: c.Handle, State: "changed"})
	}
	return nil
}

// takeProfile keeps what a contact calls itself. It renames the contact only
// while the user has not.
func (w *work) takeProfile(c store.ContactRow, m *message.Profile) error {
	name := cleanName(m.Name)
	if name == c.Profile {
		return nil
	}
	auto := c.Name == "" || c.Name == fallbackName(c) || c.Name == c.Profile
	c.Profile = name
	if auto && name != "" {
		free, err := w.freeName(name, c.ID)
		if err != nil {
			return err
		}
		c.Name = free
	}
	if err := w.saveContact(c); err != nil {
		return err
	}
	return w.emitContact(c, "profile")
}

// alarm pauses a conversation whose session shows that a device was copied.
func (w *work) alarm(s *session, cause error) error {
	d, err := w.tx.Device(s.device[:])
	if err != nil {
		return err
	}
	c, err := w.tx.Contact(d.Contact)
	if err != nil {
		return err
	}
	why := "their device may have been copied"
	if errors.Is(cause, ratchet.ErrOwnCopied) {
		why = "this device may have been copied or set back to an old state"
	}
	return w.raise(&c, why)
}

// conflict is alarm for messages that contradict each other.
func (w *work) conflict(c store.ContactRow) error {
	return w.raise(&c, "their messages contradict each other: a device may have been copied")
}

// raise pauses sending to a contact until the user has decided (kith verify).
func (w *work) raise(c *store.ContactRow, why string) error {
	if c.Alarm == why {
		return nil
	}
	c.Alarm, c.Verified = why, false
	if err := w.saveContact(*c); err != nil {
		return err
	}
	if err := w.lookAgain(*c); err != nil {
		return err
	}
	return w.emitContact(*c, "alarm: "+why)
}

// gate bounds the public-key work that answers to invites may cause.
type gate struct {
	mu     sync.Mutex
	tokens float64
	last   time.Time
}

// handshakeRate is the budget: a handshake costs about 0.3 ms, so this is
// under 2 % of a core, and 50 newcomers a second are still let in.
const handshakeRate = 50

func newGate(now time.Time) *gate { return &gate{tokens: handshakeRate, last: now} }

// admit spends a token, if there is one.
func (g *gate) admit(now time.Time) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if d := now.Sub(g.last).Seconds(); d > 0 {
		g.tokens = min(handshakeRate, g.tokens+d*handshakeRate)
	}
	g.last = now
	if g.tokens < 1 {
		return false
	}
	g.tokens--
	return true
}

// sharedKeys are the secrets with which a device finds and reaches another: of
// the pair once there is a session, and of the invite until the other side has
// confirmed it.
func sharedKeys(d store.DeviceRow) ([]protocol.Shared, error) {
	var out []protocol.Shared
	if d.Pair != nil {
		out = append(out, protocol.SharedFromPair(protocol.PairSecret(d.Pair)))
	}
	if d.Link != nil {
		link, err := invite.Parse(string(d.Link))
		if err != nil {
			return nil, errors.Join(store.ErrDamaged, err)
		}
		out = append(out, link.Keys().Shared)
	}
	return out, nil
}
