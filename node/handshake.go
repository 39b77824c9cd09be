package node

// How a session begins. The one who accepts an invite begins it, once the
// inviter's prekey bundle was found (begin); the one who made the invite
// answers (respond). Each side's first words are its signed device list and
// its name (introduce); with the list the account behind the device is known.

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"errors"
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

// begin starts a session with a device whose invite we accepted. What waits in
// an earlier one, which nobody ever answered, is sealed anew; the earlier one
// stays to receive, in case its answer is on the way.
func (w *work) begin(c store.ContactRow, d store.DeviceRow, link *invite.Invite, bundle *handshake.Bundle) error {
	device := bundle.Device.Hash()
	waiting, err := w.tx.OpenDeliveries(d.Hash)
	if err != nil {
		return err
	}
	keys := link.Keys()
	hx1, hk, err := handshake.Initiate(w.n.self.rand, w.n.self.device, bundle, keys.PSK)
	if err != nil {
		return err
	}
	r, err := ratchet.Initiator(ratchetKeys(hk), [32]byte(bundle.X().Bytes()))
	if err != nil {
		return err
	}
	delete(w.parties, device)
	d.Public = bundle.Device.Marshal()
	if err := w.tx.SaveDevice(d); err != nil {
		return err
	}
	s := newSession(hk, device, r)
	s.initiator, s.tagSend, s.tagRecv = true, hk.TagA, hk.TagB
	s.prefix, s.prefixTag = hx1, keys.Tag
	if err := w.newSession(s, hk.Pair); err != nil {
		return err
	}
	w.names, w.publish = true, true
	if err := w.emitContact(c, "keys found"); err != nil {
		return err
	}
	for _, row := range waiting {
		if row.Message == nil { // it said who we are; that is said again
			if err := w.tx.DeleteDelivery(row.ID); err != nil {
				return err
			}
			continue
		}
		if err := w.reseal(s, row); err != nil {
			return err
		}
	}
	return w.introduce(c)
}

// reseal seals a waiting message anew, in a session of its device.
func (w *work) reseal(s *session, row store.DeliveryRow) error {
	m, err := w.tx.Message(row.Message)
	if err != nil {
		return err
	}
	sealed, index, err := w.seal(s, m.Wire)
	if err != nil {
		return err
	}
	w.wake[s.device] = true
	if err := w.tx.ForgetDeposits(row.ID); err != nil {
		return err
	}
	return w.tx.Reseal(row.ID, sealed, index)
}

// stale says whether a session was begun with a prekey that is out of use by
// now, and nobody has answered: it never will be.
func (w *work) stale(device identity.DeviceHash, bundle *handshake.Bundle) (bool, error) {
	s, err := w.liveSession(device)
	if err != nil || s == nil {
		return false, err
	}
	return s.initiator && !s.confirmed() && s.created+answerGrace.Milliseconds() <= w.ms() &&
		!bytes.HasPrefix(s.prefix[1:], bundle.PrekeyID[:]), nil
}

func newSession(k *handshake.Keys, device identity.DeviceHash, r ratchet.Session) *session {
	return &session{id: k.SID, device: device, ratchet: r, hx2: k.HX2, ad: k.AD[:]}
}

func ratchetKeys(k *handshake.Keys) ratchet.Keys {
	return ratchet.Keys{RK: k.Root, HKA: k.HeaderA, HKB: k.HeaderB, AD: k.AD[:]}
}

// introduce sends the first words of a session.
func (w *work) introduce(c store.ContactRow) error {
	if err := w.say(c, &message.DeviceList{Signed: w.n.self.list}); err != nil {
		return err
	}
	if err := w.say(c, &message.Profile{Name: w.n.self.name}); err != nil {
		return err
	}
	return w.tellBoxes(c)
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
	switch {
	case err != nil:
		return nil, nil, nil, nil
	case !w.n.gate.admit(w.now):
		return nil, nil, nil, errBusy
	case inv.State == store.InviteUsed:
		return nil, nil, nil, w.usedTwice(inv) // once: then its state is another
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
		return nil, nil, nil, nil
	}
	return s, nil, plaintext, w.tx.RememberHandshake(hash[:], s.id[:], inv.Erase)
}

// errBusy means that more people answer invites than we let in at one time.
// What they sent is not acknowledged: they come again.
var errBusy = errors.New("too many people answer invites at one time")

// maxRequests bounds the people who wait to be approved. Of more nothing is
// taken, and not acknowledged: they come again when there is room.
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
		// That it begins again says that what it began before is gone.
		rows, err := w.tx.Sessions(hash[:])
		if err != nil {
			return false, err
		}
		for _, row := range rows {
			old, err := w.session(handshake.SessionID(row.ID))
			if err != nil {
				return false, err
			}
			if !old.initiator {
				if err := w.dropSession(old.id, hash); err != nil {
					return false, err
				}
			}
		}
	case !errors.Is(err, store.ErrNotFound):
		return false, err
	default:
		switch known, err := w.tx.ContactByAccount(account[:]); {
		case err == nil:
			if known.Blocked {
				return false, nil
			}
			if !w.n.gate.once("claim "+known.Handle, w.now) {
				return false, nil
			}
			return false, w.emitContact(known, "another device claims to be this contact")
		case !errors.Is(err, store.ErrNotFound):
			return false, err
		}
		c = store.ContactRow{State: store.ContactPending, Name: inv.Name, Added: w.ms()}
		if inv.Reusable {
			c.State, c.Name = store.ContactRequest, ""
			if full, err := w.requestsFull(); full || err != nil {
				return false, cmp.Or(err, errBusy)
			}
		}
		if err := w.addContact(&c); err != nil {
			return false, err
		}
		d = store.DeviceRow{Hash: hash[:], Contact: c.ID}
	}
	delete(w.parties, hash)
	d.Public, d.Link = peer.Marshal(), nil // they found us: no need to find them by their invite
	if err := w.tx.SaveDevice(d); err != nil {
		return false, err
	}
	if err := w.newSession(s, hk.Pair); err != nil {
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
	w.names, w.devices[hash] = true, true
	if c.State == store.ContactRequest {
		return true, nil // shown when its first words are taken
	}
	w.publish = true
	return true, w.introduce(c)
}

func (w *work) requestsFull() (bool, error) {
	contacts, err := w.tx.Contacts()
	waiting := 0
	for _, c := range contacts {
		if c.State == store.ContactRequest && !c.Blocked {
			waiting++
		}
	}
	return waiting >= maxRequests, err
}

// usedTwice tells the user that somebody else holds a one-time invite's link:
// one of the two is not who it was meant for.
func (w *work) usedTwice(inv store.InviteRow) error {
	if err := w.tx.SetInvite(inv.ID, store.InviteTwice, inv.Uses); err != nil {
		return err
	}
	return w.emit(eventContact, 0, contactEvent{
		Invite: inviteText(inv.ID), Name: inv.Name,
		What: "an invite was used twice: somebody else had the link; compare safety numbers with the contact it made",
	})
}

// confirm notes that the other side holds the session: the invite that began
// it is no longer needed to find each other.
func (w *work) confirm(s *session, c store.ContactRow, d *store.DeviceRow) error {
	if d.Link == nil || !s.initiator || !s.confirmed() {
		return nil
	}
	d.Link = nil // d is the transaction's own copy, so it stays true
	w.names = true
	if err := w.tx.SaveDevice(*d); err != nil {
		return err
	}
	// Our first words may have met a full house, and nobody keeps those.
	return w.introduce(c)
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
		if err := w.moveContact(&c, store.ContactEstablished); err != nil {
			return err
		}
		return w.shareWith(c)
	case first:
		return w.emitContact(c, "request")
	case changed:
		if !w.n.gate.once("devices "+c.Handle, w.now) {
			return nil
		}
		return w.emit(eventDevice, c.ID, deviceEvent{Contact: c.Handle, State: "changed"})
	}
	return nil
}

// takeProfile keeps what a contact calls itself.
func (w *work) takeProfile(c store.ContactRow, m *message.Profile) error {
	name := cleanName(m.Name)
	if name == c.Profile {
		return nil
	}
	// Only the first one names the contact: a name that the user knows does not
	// change by itself.
	auto := c.Name == fallbackName(c) && c.Profile == ""
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
	if !w.n.gate.once("profile "+c.Handle, w.now) {
		return nil
	}
	return w.emit(eventContact, c.ID, contactEvent{ID: c.Handle, Name: c.Name, State: contactStateName(c), Verified: c.Verified, Profile: name, What: "profile"})
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
func (w *work) conflict(c *store.ContactRow) error {
	return w.raise(c, "their messages contradict each other: a device may have been copied")
}

// raise pauses sending to a contact until the user has decided (kith verify).
func (w *work) raise(c *store.ContactRow, why string) error {
	if c.Alarm != "" {
		return nil // the first one stands until the user has decided
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

// gate bounds what others can make us do: the public-key work that answers to
// invites cause, and how often one of them is worth an event.
type gate struct {
	mu     sync.Mutex
	tokens float64
	last   time.Time
	said   map[string]time.Time
}

const (
	// sayAgain is how long the same thing about the same contact is not said
	// to the user again, and maxSaid how many such things are remembered.
	sayAgain = time.Hour
	maxSaid  = 1000
)

// once says whether something about a contact should be said now.
func (g *gate) once(what string, now time.Time) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if at, ok := g.said[what]; ok && now.Sub(at).Abs() < sayAgain {
		return false
	}
	if len(g.said) >= maxSaid {
		clear(g.said)
	}
	g.said[what] = now
	return true
}

// handshakeRate is the budget: a handshake costs about 0.3 ms, so this is
// under 2 % of a core, and 50 newcomers a second are still let in.
const handshakeRate = 50

func newGate(now time.Time) *gate {
	return &gate{tokens: handshakeRate, last: now, said: make(map[string]time.Time)}
}

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
// the pair for each session they have, and of the invite until the other side has
// confirmed it.
func sharedKeys(tx *store.Tx, d store.DeviceRow) ([]protocol.Shared, error) {
	pairs, err := tx.Pairs(d.Hash)
	if err != nil {
		return nil, err
	}
	var out []protocol.Shared
	for _, p := range pairs {
		out = append(out, protocol.SharedFromPair(protocol.PairSecret(p)))
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
