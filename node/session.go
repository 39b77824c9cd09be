package node

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/crypto/cryptobyte"

	"github.com/kith-im/kith/node/store"
	"github.com/kith-im/kith/protocol"
	"github.com/kith-im/kith/protocol/envelope"
	"github.com/kith-im/kith/protocol/handshake"
	"github.com/kith-im/kith/protocol/identity"
	"github.com/kith-im/kith/protocol/ratchet"
)

// session is a ratchet session with a device, with what surrounds the ratchet:
// the tag chains of both directions and what remains of the handshake.
type session struct {
	id      handshake.SessionID
	device  identity.DeviceHash
	created int64

	initiator bool
	ratchet   ratchet.Session
	tagSend   handshake.TagKey
	tagRecv   handshake.TagKey
	send      envelope.Sender
	recv      envelope.Receiver
	tagged    uint32 // the tags up to this index are in the table
	sealed    uint32 // envelopes sealed so far

	// Of the handshake, until the other side has confirmed it: the prefix of
	// our envelopes, the tag an HX1 prefix goes under, and the key of HX2.
	prefix    []byte
	prefixTag envelope.Tag
	hx2       handshake.HX2Key
	ad        []byte

	dirty bool
}

// sessionFormat is the version of the encoding below.
const sessionFormat = 1

func (s *session) marshal() ([]byte, error) {
	inner, err := s.ratchet.MarshalBinary()
	if err != nil {
		return nil, err
	}
	var b cryptobyte.Builder
	b.AddUint8(sessionFormat)
	var role uint8
	if s.initiator {
		role = 1
	}
	b.AddUint8(role)
	b.AddUint24LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(inner) })
	b.AddBytes(s.tagSend[:])
	b.AddBytes(s.tagRecv[:])
	b.AddUint32(s.send.Index)
	b.AddUint32(s.send.Confirmed)
	advanced := int64(0)
	if !s.send.Advanced.IsZero() {
		advanced = s.send.Advanced.UnixMilli()
	}
	b.AddUint64(uint64(advanced))
	b.AddUint32(s.recv.Highest)
	b.AddUint32(s.tagged)
	b.AddUint32(s.sealed)
	b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(s.prefix) })
	b.AddBytes(s.prefixTag[:])
	b.AddBytes(s.hx2[:])
	b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(s.ad) })
	return b.Bytes()
}

func unmarshalSession(row store.SessionRow) (*session, error) {
	s := &session{created: row.Created}
	copy(s.id[:], row.ID)
	copy(s.device[:], row.Device)
	in := cryptobyte.String(row.State)
	var format, role uint8
	var inner, prefix, ad cryptobyte.String
	var advanced uint64
	if !in.ReadUint8(&format) || format != sessionFormat || !in.ReadUint8(&role) || !in.ReadUint24LengthPrefixed(&inner) ||
		!in.CopyBytes(s.tagSend[:]) || !in.CopyBytes(s.tagRecv[:]) ||
		!in.ReadUint32(&s.send.Index) || !in.ReadUint32(&s.send.Confirmed) || !in.ReadUint64(&advanced) ||
		!in.ReadUint32(&s.recv.Highest) || !in.ReadUint32(&s.tagged) || !in.ReadUint32(&s.sealed) ||
		!in.ReadUint16LengthPrefixed(&prefix) || !in.CopyBytes(s.prefixTag[:]) || !in.CopyBytes(s.hx2[:]) ||
		!in.ReadUint16LengthPrefixed(&ad) || !in.Empty() {
		return nil, fmt.Errorf("a session cannot be read: %w", store.ErrDamaged)
	}
	s.initiator = role == 1
	if advanced != 0 {
		s.send.Advanced = time.UnixMilli(int64(advanced))
	}
	s.prefix, s.ad = prefix, ad
	var err error
	if s.ratchet, err = ratchet.UnmarshalSession(inner); err != nil {
		return nil, fmt.Errorf("a session cannot be read (%w): %w", err, store.ErrDamaged)
	}
	return s, nil
}

// confirmed reports whether the other side is known to hold the session.
func (s *session) confirmed() bool { return s.ratchet.HeardPeer() }

// maxLoaded bounds the sessions that are kept in memory, about 8 KiB each.
const maxLoaded = 64

// loaded are sessions as the last transactions left them: reading one costs a
// scalar multiplication and the unsealing of 4 KiB. Only transactions touch it,
// one at a time; each sees what those before it saved, in the same commit too.
// What is undone takes all of it along.
type loaded struct {
	sessions map[handshake.SessionID]session
	live     map[identity.DeviceHash]handshake.SessionID // what liveSession found
}

func (l *loaded) forget() { clear(l.sessions); clear(l.live) }

// keepLoaded leaves the transaction's sessions, which are saved, to the next.
func (w *work) keepLoaded() {
	l := &w.n.loaded
	if l.sessions == nil {
		l.sessions = make(map[handshake.SessionID]session)
		l.live = make(map[identity.DeviceHash]handshake.SessionID)
	}
	if len(l.sessions)+len(w.sessions) > maxLoaded {
		l.forget()
	}
	if len(w.sessions) > maxLoaded {
		return
	}
	for id, s := range w.sessions {
		l.sessions[id] = *s
	}
	for device, s := range w.live {
		if s != nil {
			l.live[device] = s.id
		}
	}
	w.tx.OnUndo(l.forget)
}

// session returns a session of this transaction, loading it at first use.
func (w *work) session(id handshake.SessionID) (*session, error) {
	if s := w.sessions[id]; s != nil {
		return s, nil
	}
	if s, ok := w.n.loaded.sessions[id]; ok {
		w.sessions[id] = &s
		return &s, nil
	}
	row, err := w.tx.Session(id[:])
	if err != nil {
		return nil, err
	}
	return w.adopt(row)
}

func (w *work) adopt(row store.SessionRow) (*session, error) {
	s, err := unmarshalSession(row)
	if err != nil {
		return nil, err
	}
	w.sessions[s.id] = s
	return s, nil
}

// liveSession returns the session to send to a device on: of those the device
// is known to hold the one with the smallest id, or else the newest, so that
// after a simultaneous start both sides settle on one
// (docs/spec/handshake.md, section 7). It returns nil if there is none.
func (w *work) liveSession(device identity.DeviceHash) (*session, error) {
	if s := w.live[device]; s != nil {
		return s, nil
	}
	if id, ok := w.n.loaded.live[device]; ok {
		s, err := w.session(id)
		if err == nil {
			w.live[device] = s
		}
		return s, err
	}
	rows, err := w.tx.Sessions(device[:])
	if err != nil {
		return nil, err
	}
	var live *session
	for _, row := range rows { // smallest id first
		s := w.sessions[handshake.SessionID(row.ID)]
		if s == nil {
			if s, err = w.adopt(row); err != nil {
				return nil, err
			}
		}
		switch {
		case s.confirmed():
			w.live[device] = s
			return s, nil
		case live == nil || s.created > live.created:
			live = s
		}
	}
	w.live[device] = live
	return live, nil
}

// newSession adds a session to the transaction. Its first tags are accepted as
// soon as the transaction commits.
func (w *work) newSession(s *session, pair protocol.PairSecret) error {
	s.created = w.ms()
	w.sessions[s.id] = s
	w.unsettle(s.device)
	state, err := s.marshal()
	if err != nil {
		return err
	}
	if err := w.tx.CreateSession(store.SessionRow{ID: s.id[:], Device: s.device[:], Pair: pair[:], State: state, Created: s.created}); err != nil {
		return err
	}
	if err := w.dropOldSessions(s.device); err != nil {
		return err
	}
	if s.initiator { // the answer may carry an HX2 prefix
		if err := w.acceptTag(s, envelope.HX2Index); err != nil {
			return err
		}
	}
	return w.acceptTags(s)
}

func (w *work) saveSession(s *session) error {
	if !s.dirty {
		return nil
	}
	state, err := s.marshal()
	if err != nil {
		return err
	}
	s.dirty = false
	return w.tx.SaveSession(s.id[:], state)
}

// maxSessions bounds the sessions of a pair of devices: the one to send on and
// four that only receive (docs/spec/handshake.md, section 7).
const maxSessions = 5

func (w *work) dropOldSessions(device identity.DeviceHash) error {
	rows, err := w.tx.Sessions(device[:])
	if err != nil {
		return err
	}
	live, err := w.liveSession(device)
	if err != nil {
		return err
	}
	slices.SortFunc(rows, func(a, b store.SessionRow) int { return cmp.Compare(a.Created, b.Created) })
	for _, r := range rows[:max(0, len(rows)-maxSessions)] {
		if handshake.SessionID(r.ID) == live.id {
			continue
		}
		if err := w.dropSession(handshake.SessionID(r.ID), device); err != nil {
			return err
		}
	}
	return nil
}

func (w *work) dropSession(id handshake.SessionID, device identity.DeviceHash) error {
	delete(w.sessions, id)
	delete(w.n.loaded.sessions, id)
	w.unsettle(device)
	return w.tx.DeleteSession(id[:])
}

// unsettle has liveSession look again.
func (w *work) unsettle(device identity.DeviceHash) {
	delete(w.live, device)
	delete(w.n.loaded.live, device)
}

// acceptTags brings the table of tags up to date with the session's window.
func (w *work) acceptTags(s *session) error {
	first, last := s.recv.Window()
	for i := max(first, s.tagged+1); i <= last; i++ {
		if err := w.acceptTag(s, i); err != nil {
			return err
		}
		s.tagged, s.dirty = i, true
	}
	if first > 1 {
		return w.tx.DropSessionTags(s.id[:], first)
	}
	return nil
}

func (w *work) acceptTag(s *session, index uint32) error {
	tag := envelope.DeriveTag(s.tagRecv, index)
	w.tags = true
	return w.tx.AddSessionTag(tag[:], s.id[:], index)
}

// errTooLong means that a message does not fit the largest envelope.
var errTooLong = errors.New("the message does not fit an envelope")

// seal encrypts a plaintext for the other side of the session into the
// smallest envelope that holds it, and returns it with the index of its tag.
func (w *work) seal(s *session, plaintext []byte) (sealed []byte, index uint32, err error) {
	prefix, tag := s.prefix, s.prefixTag
	switch {
	case s.initiator && !s.ratchet.HeardPeer(): // HX1, under the invite's tag
	case !s.initiator && !s.ratchet.PeerConfirmed(): // HX2
		index = envelope.HX2Index
		tag = envelope.DeriveTag(s.tagSend, index)
	default:
		prefix, s.prefix = nil, nil
		s.send = s.send.Advance(w.now)
		index = s.send.Current()
		tag = envelope.DeriveTag(s.tagSend, index)
	}
	size, err := envelope.SizeFor(len(prefix) + ratchet.MinCiphertext + len(plaintext))
	if err != nil {
		return nil, 0, errTooLong
	}
	if s.ratchet.NeedsRoom() && size < protocol.MaxEnvelope {
		size *= 2
	}
	next, ciphertext, err := s.ratchet.Encrypt(w.n.self.rand, plaintext, size-envelope.TagSize-len(prefix))
	if err != nil {
		return nil, 0, err
	}
	s.ratchet, s.dirty = next, true
	s.sealed++
	sealed, err = envelope.New(tag, prefix, ciphertext)
	return sealed, index, err
}

// open decrypts a payload that arrived under a tag of the session. On error
// the session is what it was.
func (w *work) open(s *session, index uint32, payload []byte) (plaintext []byte, err error) {
	r := s.ratchet
	if s.initiator && index == envelope.HX2Index {
		if len(payload) < handshake.HX2Size {
			return nil, ratchet.ErrDecrypt
		}
		if !r.HeardPeer() {
			keys := &handshake.Keys{HX2: s.hx2}
			copy(keys.AD[:], s.ad)
			s3, err := handshake.OpenHX2(w.n.self.device, keys, payload[:handshake.HX2Size])
			if err != nil {
				return nil, ratchet.ErrDecrypt
			}
			r = r.MixRecv(s3)
		}
		payload = payload[handshake.HX2Size:]
	}
	next, plaintext, err := r.Decrypt(payload, w.now)
	if err != nil {
		return nil, err
	}
	if !s.confirmed() {
		w.unsettle(s.device) // it is now
	}
	s.ratchet, s.dirty = next, true
	if index != envelope.HX2Index {
		if was := s.recv; was != was.Opened(index) {
			s.recv = was.Opened(index)
			return plaintext, w.acceptTags(s)
		}
	}
	return plaintext, nil
}
