// Package ratchet implements the kith session: a header-encrypted Double
// Ratchet whose root also takes an ML-KEM-768 exchange, carried in 32-byte
// blocks by the padding ("cargo"). It implements docs/spec/ratchet.md.
//
//	ciphertext = enc_header 57 ‖ nonce 12 ‖ body (size − 69)
//	enc_header = ChaCha20-Poly1305(HK, nonce; flags 1 ‖ dh 32 ‖ PN 4 ‖ N 4)
//	body       = ChaCha20-Poly1305(MK, nonce; frame; AD ‖ role ‖ header)
//	frame      = length 3 ‖ plaintext ‖ seen 4 ‖ [cargo] ‖ zero padding
//
// A Session is a plain value. Encrypt and Decrypt leave it as it is and return
// the next one; on error they return the value they were given. The caller
// stores the next value in the transaction that stores the ciphertext or the
// plaintext, and only then lets either out of its hands.
package ratchet

import (
	"crypto/ecdh"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/kith-im/kith/protocol"
	"github.com/kith-im/kith/protocol/identity"
)

// Sizes of docs/spec/ratchet.md, section 4.
const (
	keySize       = 32
	headerSize    = 1 + keySize + 4 + 4
	tagSize       = 16
	encHeaderSize = headerSize + tagSize
	nonceSize     = 12
	bodyOffset    = encHeaderSize + nonceSize

	lengthSize = 3
	seenSize   = 4

	// Overhead is what a message costs beside its frame: the encrypted
	// header, the nonce and the authentication tag.
	Overhead = encHeaderSize + nonceSize + tagSize

	// MinCiphertext is the size of a message that carries nothing.
	MinCiphertext = Overhead + lengthSize + seenSize
)

var (
	// ErrDecrypt is the one answer to every message that does not open:
	// forged, damaged, replayed, too far ahead, or from another session.
	ErrDecrypt = errors.New("ratchet: message does not open")

	// ErrPeerCopied says that two different branches of the peer's state
	// sent to us: the peer's device was copied or put back to an old state.
	// The caller raises the alarm and stops sending until the user decides.
	ErrPeerCopied = errors.New("ratchet: the peer's device may be copied")

	// ErrOwnCopied says that the peer received more from us than we sent:
	// our own state was copied or put back.
	ErrOwnCopied = errors.New("ratchet: this device may be copied")

	// ErrExhausted says that a counter reached its end and the two devices
	// need a new session.
	ErrExhausted = errors.New("ratchet: session is used up, a new one is needed")
)

// A role is the side of the handshake a device stood on. It is part of what
// every message authenticates, so a message reflected to its sender fails.
type role uint8

const (
	initiator role = 1
	responder role = 2
)

// peer returns the other role.
func (r role) peer() role { return initiator + responder - r }

// Keys are what the handshake hands to both sides. AD is the same on both:
// session id and both device identity hashes, at most 255 bytes.
type Keys struct {
	RK, HKA, HKB [32]byte
	AD           []byte
}

// Format hides the keys under every verb.
func (Keys) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "(session keys)") }

// A Session is one side's state of the ratchet between two devices. Values
// share immutable parts; copying one is cheap, and any number of goroutines
// may read the same value. It holds secrets: it is stored sealed and never
// logged.
type Session struct {
	role role
	ad   []byte // immutable

	rk                     [32]byte
	cks, hks, nhks         [32]byte
	ckr, hkr, nhkr         [32]byte
	dhs                    *ecdh.PrivateKey // immutable; nil until an initiator's first step
	dhr                    [32]byte
	ns, pn, nr             uint32
	sendChains, recvChains uint32 // chains begun in each direction
	sendFlags, recvFlags   uint8  // header flags of the current chains
	needStep               bool   // the next Encrypt begins a sending chain

	mix      [32]byte // s3 of the handshake until its root step
	mixState mixState

	kem   kem
	stall uint8 // consecutive messages without room for waiting cargo

	pqTurns   uint32 // root steps since the last post-quantum mix
	pqAt      int64  // when that mix was confirmed, unix seconds; 0 until the first message
	pqPending bool   // we mixed; the peer has not answered yet

	clock, lastNow int64 // seconds of receive time, docs/spec/ratchet.md, section 8

	recent  [recentSize]used // immutable ring of the last messages opened
	old     []oldChain       // immutable; ended receiving chains, oldest first
	skipped []skippedKey     // immutable; ordered by chain, then n
}

// Format hides the state under every verb.
func (Session) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "(session)") }

// mixState says what is to happen with the handshake's last KEM secret.
type mixState uint8

const (
	mixNone mixState = iota
	mixSend          // goes into our first sending step
	mixRecv          // goes into our first receiving step
)

// Initiator begins the session of the side that sent HX1. peerPrekey is the
// X25519 prekey the handshake used.
func Initiator(k Keys, peerPrekey [32]byte) (Session, error) {
	s, err := newSession(k, initiator)
	if err != nil {
		return Session{}, err
	}
	if _, err := identity.ParseX25519(peerPrekey[:]); err != nil {
		return Session{}, fmt.Errorf("ratchet: peer's prekey: %w", err)
	}
	s.dhr = peerPrekey
	s.nhks, s.nhkr = k.HKA, k.HKB
	s.needStep = true
	s.kem.phase = offerPending
	return s, nil
}

// Responder begins the session of the side that answers HX1 with the prekey
// that HX1 named. It can encrypt once it has decrypted the first message.
func Responder(k Keys, prekeySecret [32]byte) (Session, error) {
	s, err := newSession(k, responder)
	if err != nil {
		return Session{}, err
	}
	if s.dhs, err = ecdh.X25519().NewPrivateKey(prekeySecret[:]); err != nil {
		return Session{}, fmt.Errorf("ratchet: prekey: %w", err)
	}
	s.nhks, s.nhkr = k.HKB, k.HKA
	s.kem.phase = listening
	return s, nil
}

func newSession(k Keys, r role) (Session, error) {
	if len(k.AD) == 0 || len(k.AD) > maxAD {
		return Session{}, fmt.Errorf("ratchet: associated data of %d bytes", len(k.AD))
	}
	return Session{role: r, ad: append([]byte(nil), k.AD...), rk: k.RK, kem: kem{epoch: 1}}, nil
}

// MixSend puts the handshake's s3 into the responder's first sending step. It
// is called before the first Encrypt; later it changes nothing.
func (s Session) MixSend(s3 [32]byte) Session {
	if s.role == responder && s.sendChains == 0 {
		s.mix, s.mixState = s3, mixSend
	}
	return s
}

// MixRecv puts the handshake's s3 into the initiator's first receiving step.
// It is called with every HX2 prefix, before Decrypt; once a message of the
// peer was decrypted it changes nothing.
func (s Session) MixRecv(s3 [32]byte) Session {
	if s.role == initiator && s.recvChains == 0 {
		s.mix, s.mixState = s3, mixRecv
	}
	return s
}

// HeardPeer reports whether any message of the peer was ever decrypted. From
// then on an initiator sends without the HX1 prefix.
func (s Session) HeardPeer() bool { return s.recvChains >= 1 }

// PeerConfirmed reports whether a message of the peer's second chain was
// decrypted. From then on a responder sends without the HX2 prefix.
func (s Session) PeerConfirmed() bool { return s.recvChains >= 2 }

// NeedsRoom reports whether the key exchange in the padding has found no room
// for 32 messages in a row; the caller then takes the next larger bucket.
func (s Session) NeedsRoom() bool { return s.stall >= protocol.CargoStall }

// PQAge says how long ago fresh ML-KEM secrets last entered the session: in
// root steps (turns), and in time since the mix was confirmed.
func (s Session) PQAge(now time.Time) (turns uint32, age time.Duration) {
	if s.pqAt == 0 {
		return s.pqTurns, 0
	}
	return s.pqTurns, max(0, now.Sub(time.Unix(s.pqAt, 0)))
}

// MaxPlaintext is the longest plaintext a ciphertext of the given size takes;
// negative if it takes none.
func MaxPlaintext(size int) int { return size - MinCiphertext }

// header is the plaintext of enc_header.
type header struct {
	flags uint8
	dh    [32]byte
	pn, n uint32
}

const flagMixed = 1 // this chain's root step took the KEM secret

func (h *header) marshal() (b [headerSize]byte) {
	b[0] = h.flags
	copy(b[1:33], h.dh[:])
	binary.BigEndian.PutUint32(b[33:37], h.pn)
	binary.BigEndian.PutUint32(b[37:41], h.n)
	return b
}

func (h *header) unmarshal(b *[headerSize]byte) bool {
	h.flags = b[0]
	h.dh = [32]byte(b[1:33])
	h.pn = binary.BigEndian.Uint32(b[33:37])
	h.n = binary.BigEndian.Uint32(b[37:41])
	return h.flags&^flagMixed == 0 && h.pn <= maxCounter && h.n < maxCounter
}

// Encrypt returns the next session and a ciphertext of exactly size bytes for
// plaintext. rand is read only when a sending chain begins. The ciphertext
// must not leave before the next session is stored.
func (s Session) Encrypt(rand io.Reader, plaintext []byte, size int) (Session, []byte, error) {
	if size > protocol.MaxEnvelope || len(plaintext) > MaxPlaintext(size) {
		return s, nil, fmt.Errorf("ratchet: %d bytes do not fit a ciphertext of %d", len(plaintext), size)
	}
	if s.ns >= maxCounter {
		return s, nil, ErrExhausted
	}
	next := s
	if next.needStep {
		if err := next.stepSend(rand); err != nil {
			return s, nil, err
		}
	}
	if next.sendChains == 0 {
		return s, nil, errors.New("ratchet: a responder cannot send before it has received")
	}
	if err := next.kem.prepare(rand, next.rk); err != nil {
		return s, nil, err
	}
	var mk [32]byte
	next.cks, mk = chainKDF(&next.cks)
	h := header{flags: next.sendFlags, pn: next.pn, n: next.ns}
	copy(h.dh[:], next.dhs.PublicKey().Bytes())
	next.ns++

	ct := make([]byte, size)
	next.fill(ct[bodyOffset:size-tagSize], plaintext)
	seal(ct, &next.hks, &mk, next.ad, next.role, &h)
	return next, ct, nil
}

// fill writes plaintext, the count of what we received, and as much cargo as
// fits into frame, which is zero.
func (s *Session) fill(frame, plaintext []byte) {
	n := len(plaintext)
	frame[0], frame[1], frame[2] = byte(n>>16), byte(n>>8), byte(n)
	frame = frame[lengthSize:]
	copy(frame, plaintext)
	frame = frame[n:]
	binary.BigEndian.PutUint32(frame, s.nr)
	switch s.kem.load(frame[seenSize:]) {
	case cargoLoaded, cargoNone:
		s.stall = 0
	case cargoNoRoom:
		s.stall = min(s.stall+1, protocol.CargoStall)
	}
}

// stepSend begins a sending chain with a new ratchet key.
func (s *Session) stepSend(rand io.Reader) error {
	if s.sendChains >= maxCounter {
		return ErrExhausted
	}
	seed, err := hedge(rand, s.rk, hedgeDH)
	if err != nil {
		return err
	}
	dhs, err := ecdh.X25519().NewPrivateKey(seed[:keySize])
	if err != nil {
		return fmt.Errorf("ratchet: ephemeral key: %w", err)
	}
	return s.beginChain(dhs)
}

// beginChain is a sending step (docs/spec/ratchet.md, section 5).
func (s *Session) beginChain(dhs *ecdh.PrivateKey) error {
	s.dhs, s.sendFlags = dhs, 0
	secret := s.kem.mixAsOfferer()
	switch {
	case secret != nil:
		s.sendFlags = flagMixed
	case s.mixState == mixSend:
		secret = &s.mix
	}
	if err := s.rootStep(secret, &s.cks, &s.nhks, &s.hks); err != nil {
		return err
	}
	if s.mixState == mixSend {
		s.mix, s.mixState = [32]byte{}, mixNone
	}
	s.pqPending = secret != nil
	s.pn, s.ns = s.ns, 0
	s.sendChains++
	s.needStep = false
	return nil
}

// rootStep runs the root KDF over DH(dhs, dhr) and an optional KEM secret: the
// chain gets its key, the next header key becomes the chain's, and a new next
// one is drawn.
func (s *Session) rootStep(secret, ck, nhk, hk *[32]byte) error {
	dh, err := exchange(s.dhs, s.dhr)
	if err != nil {
		return err
	}
	*hk = *nhk
	s.rk, *ck, *nhk = rootKDF(s.rk, dh, secret)
	if secret != nil {
		s.pqTurns = 0
	} else if s.pqTurns < maxCounter {
		s.pqTurns++
	}
	return nil
}

// Decrypt opens a ciphertext received at now and returns the next session and
// the plaintext. The error is ErrDecrypt, or one of ErrPeerCopied and
// ErrOwnCopied, which only somebody who holds the state of one side can cause.
func (s Session) Decrypt(ciphertext []byte, now time.Time) (Session, []byte, error) {
	if len(ciphertext) < MinCiphertext || len(ciphertext) > protocol.MaxEnvelope {
		return s, nil, ErrDecrypt
	}
	next := s
	plaintext, err := next.open(ciphertext, now.Unix())
	if err != nil {
		return s, nil, err
	}
	return next, plaintext, nil
}

// open is Decrypt on a copy that is thrown away on error.
func (s *Session) open(ct []byte, now int64) ([]byte, error) {
	h, from, chain := s.openHeader(ct)
	s.tick(now)
	var mk [32]byte
	var err error
	switch from {
	case currentChain:
		mk, err = s.keyFromCurrent(&h, ct)
	case nextChain:
		mk, err = s.keyFromNext(&h)
	case endedChain:
		mk, err = s.keyFromEnded(&h, ct, chain)
	default:
		err = ErrDecrypt
	}
	if err != nil {
		return nil, err
	}
	frame, ok := openBody(ct, &mk, s.ad, s.role.peer(), &h)
	if !ok {
		return nil, ErrDecrypt
	}
	plaintext, seen, cargo, ok := parseFrame(frame)
	if !ok {
		return nil, ErrDecrypt
	}
	id := s.recvChains
	if from == endedChain {
		id = s.old[chain].id
	} else if err := s.checkSeen(seen); err != nil {
		return nil, err
	}
	s.kem.unload(cargo)
	s.confirmMix(from, now)
	s.remember(id, h.n, ct)
	return plaintext, nil
}

// checkSeen compares what the peer says it received of the chain its current
// chain answers with what we sent in it: the current one as long as we have
// not begun another, else the one before.
func (s *Session) checkSeen(seen uint32) error {
	sent := s.pn
	if s.needStep {
		sent = s.ns
	}
	if seen > sent {
		return ErrOwnCopied
	}
	return nil
}

// confirmMix keeps the time for PQAge: the handshake counts as a mix, and one
// of ours counts from the first answer that depends on it.
func (s *Session) confirmMix(from chainKind, now int64) {
	if s.pqAt == 0 || from == nextChain && (s.pqPending || s.pqTurns == 0) {
		s.pqAt = max(now, 1)
		s.pqPending = false
	}
}

// chainKind says which receiving chain a header key belongs to.
type chainKind uint8

const (
	noChain chainKind = iota
	currentChain
	nextChain
	endedChain
)

// openHeader finds the header key that opens the header: the current chain's,
// the next chain's, then the ended ones, newest first. For an ended chain it
// also returns its place in s.old.
func (s *Session) openHeader(ct []byte) (h header, from chainKind, chain int) {
	if s.recvChains > 0 && openHeader(ct, &s.hkr, &h) {
		return h, currentChain, 0
	}
	if openHeader(ct, &s.nhkr, &h) {
		return h, nextChain, 0
	}
	for i := len(s.old) - 1; i >= 0; i-- {
		if openHeader(ct, &s.old[i].hk, &h) {
			return h, endedChain, i
		}
	}
	return header{}, noChain, 0
}

// keyFromCurrent finds the message key of a message of the current chain.
func (s *Session) keyFromCurrent(h *header, ct []byte) (mk [32]byte, err error) {
	if h.dh != s.dhr {
		return mk, ErrPeerCopied // one header key never serves two ratchet keys
	}
	if h.flags != s.recvFlags {
		return mk, ErrDecrypt
	}
	if h.n < s.nr {
		return s.takeSkipped(s.recvChains, h.n, ct)
	}
	if err := s.skipTo(h.n); err != nil {
		return mk, err
	}
	s.ckr, mk = chainKDF(&s.ckr)
	s.nr++
	return mk, nil
}

// keyFromNext ends the current receiving chain and begins the one h belongs to.
func (s *Session) keyFromNext(h *header) (mk [32]byte, err error) {
	if s.recvChains >= maxCounter || h.n > protocol.MaxSkipGap {
		return mk, ErrDecrypt
	}
	if s.dhs == nil {
		return mk, ErrOwnCopied // an answer, and we have sent nothing yet
	}
	if s.recvChains > 0 {
		if h.dh == s.dhr {
			return mk, ErrDecrypt
		}
		if h.pn < s.nr {
			return mk, ErrPeerCopied // fewer sent than we received
		}
		if err := s.skipTo(h.pn); err != nil {
			return mk, err
		}
		s.endChain()
	} else if h.pn != 0 {
		return mk, ErrDecrypt
	}
	var secret *[32]byte
	switch {
	case h.flags&flagMixed != 0:
		if secret = s.kem.mixAsAnswerer(); secret == nil {
			return mk, ErrDecrypt
		}
	case s.mixState == mixRecv:
		secret = &s.mix
	}
	s.dhr = h.dh
	if err := s.rootStep(secret, &s.ckr, &s.nhkr, &s.hkr); err != nil {
		return mk, ErrDecrypt
	}
	if s.mixState == mixRecv {
		s.mix, s.mixState = [32]byte{}, mixNone
	}
	s.recvFlags, s.nr = h.flags, 0
	s.recvChains++
	s.needStep = true
	if err := s.skipTo(h.n); err != nil {
		return mk, err
	}
	s.ckr, mk = chainKDF(&s.ckr)
	s.nr++
	return mk, nil
}

// keyFromEnded finds the skipped key of a message of an ended chain.
func (s *Session) keyFromEnded(h *header, ct []byte, chain int) (mk [32]byte, err error) {
	c := &s.old[chain]
	if h.dh != c.dh || h.n >= c.end {
		return mk, ErrPeerCopied // the chain went on after the peer ended it
	}
	return s.takeSkipped(c.id, h.n, ct)
}

// parseFrame takes a decrypted body apart. Anything but zeros after the cargo
// is refused, so a frame has one encoding.
func parseFrame(frame []byte) (plaintext []byte, seen uint32, c cargo, ok bool) {
	n := int(frame[0])<<16 | int(frame[1])<<8 | int(frame[2])
	frame = frame[lengthSize:]
	if n > len(frame)-seenSize {
		return nil, 0, cargo{}, false
	}
	plaintext, frame = frame[:n:n], frame[n:]
	seen = binary.BigEndian.Uint32(frame)
	c, ok = parseCargo(frame[seenSize:])
	return plaintext, seen, c, ok
}
