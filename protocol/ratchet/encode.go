package ratchet

import (
	"crypto/ecdh"
	"errors"
	"fmt"

	"golang.org/x/crypto/cryptobyte"

	"github.com/kith-im/kith/protocol"
)

// stateVersion is the version of the stored form; another one is refused.
const stateVersion = 1

// MarshalBinary encodes the session for storage. It never fails. The result
// holds secrets in the clear. One session has one encoding.
func (s Session) MarshalBinary() ([]byte, error) {
	b := cryptobyte.NewBuilder(make([]byte, 0, 4096+len(s.skipped)*48))
	b.AddUint8(stateVersion)
	b.AddUint8(uint8(s.role))
	b.AddUint8LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(s.ad) })
	for _, k := range s.keys() {
		b.AddBytes(k[:])
	}
	if s.dhs == nil {
		b.AddUint8(0)
	} else {
		b.AddUint8(1)
		b.AddBytes(s.dhs.Bytes())
	}
	for _, n := range s.counters() {
		b.AddUint32(*n)
	}
	for _, n := range s.small() {
		b.AddUint8(*n)
	}
	for _, f := range s.flags() {
		b.AddUint8(fromBool(*f))
	}
	for _, t := range s.times() {
		b.AddUint64(uint64(*t))
	}
	b.AddBytes(s.kem.seed[:])
	b.AddBytes(s.kem.out[:])
	b.AddBytes(s.kem.in[:])
	b.AddUint64(s.kem.have)
	b.AddBytes(s.kem.ready[:])
	for i := range s.recent {
		u := &s.recent[i]
		b.AddUint32(u.chain)
		b.AddUint32(u.n)
		b.AddBytes(u.mark[:])
	}
	b.AddUint8(uint8(len(s.old)))
	for i := range s.old {
		c := &s.old[i]
		b.AddUint32(c.id)
		b.AddBytes(c.hk[:])
		b.AddBytes(c.dh[:])
		b.AddUint32(c.end)
	}
	b.AddUint16(uint16(len(s.skipped)))
	for i := range s.skipped {
		k := &s.skipped[i]
		b.AddUint32(k.chain)
		b.AddUint32(k.n)
		b.AddUint64(uint64(k.at))
		b.AddBytes(k.mk[:])
	}
	return b.Bytes()
}

// The fixed-size fields in the order of storage, shared by both directions.
func (s *Session) keys() []*[32]byte {
	return []*[32]byte{&s.rk, &s.cks, &s.hks, &s.nhks, &s.ckr, &s.hkr, &s.nhkr, &s.dhr, &s.mix}
}

func (s *Session) counters() []*uint32 {
	return []*uint32{&s.ns, &s.pn, &s.nr, &s.sendChains, &s.recvChains, &s.pqTurns, &s.kem.epoch}
}

func (s *Session) small() []*uint8 {
	return []*uint8{&s.sendFlags, &s.recvFlags, (*uint8)(&s.mixState), (*uint8)(&s.kem.phase), &s.kem.outPos, &s.stall}
}

func (s *Session) flags() []*bool { return []*bool{&s.needStep, &s.pqPending} }

func (s *Session) times() []*int64 { return []*int64{&s.pqAt, &s.clock, &s.lastNow} }

func fromBool(b bool) uint8 {
	if b {
		return 1
	}
	return 0
}

var errState = errors.New("ratchet: stored session is damaged")

// UnmarshalSession decodes what MarshalBinary encoded and refuses everything
// else.
func UnmarshalSession(data []byte) (Session, error) {
	in := cryptobyte.String(data)
	var version uint8
	if !in.ReadUint8(&version) {
		return Session{}, errState
	}
	if version != stateVersion {
		return Session{}, fmt.Errorf("ratchet: stored session has version %d", version)
	}
	var s Session
	if !s.unmarshal(&in) || !in.Empty() || !s.valid() {
		return Session{}, errState
	}
	return s, nil
}

func (s *Session) unmarshal(in *cryptobyte.String) bool {
	var ad cryptobyte.String
	if !in.ReadUint8((*uint8)(&s.role)) || !in.ReadUint8LengthPrefixed(&ad) {
		return false
	}
	s.ad = append([]byte(nil), ad...)
	for _, k := range s.keys() {
		if !in.CopyBytes(k[:]) {
			return false
		}
	}
	if !s.unmarshalDHS(in) {
		return false
	}
	for _, n := range s.counters() {
		if !in.ReadUint32(n) || *n > maxCounter {
			return false
		}
	}
	for _, n := range s.small() {
		if !in.ReadUint8(n) {
			return false
		}
	}
	for _, f := range s.flags() {
		var v uint8
		if !in.ReadUint8(&v) || v > 1 {
			return false
		}
		*f = v == 1
	}
	for _, t := range s.times() {
		var v uint64
		if !in.ReadUint64(&v) {
			return false
		}
		*t = int64(v)
	}
	if !in.CopyBytes(s.kem.seed[:]) || !in.CopyBytes(s.kem.out[:]) || !in.CopyBytes(s.kem.in[:]) ||
		!in.ReadUint64(&s.kem.have) || !in.CopyBytes(s.kem.ready[:]) {
		return false
	}
	for i := range s.recent {
		u := &s.recent[i]
		if !in.ReadUint32(&u.chain) || !in.ReadUint32(&u.n) || !in.CopyBytes(u.mark[:]) {
			return false
		}
	}
	return s.unmarshalOld(in) && s.unmarshalSkipped(in)
}

func (s *Session) unmarshalDHS(in *cryptobyte.String) bool {
	var present uint8
	if !in.ReadUint8(&present) || present > 1 {
		return false
	}
	if present == 0 {
		return true
	}
	var secret [32]byte
	if !in.CopyBytes(secret[:]) {
		return false
	}
	var err error
	s.dhs, err = ecdh.X25519().NewPrivateKey(secret[:])
	return err == nil
}

func (s *Session) unmarshalOld(in *cryptobyte.String) bool {
	var n uint8
	if !in.ReadUint8(&n) || n > maxChains {
		return false
	}
	if n > 0 {
		s.old = make([]oldChain, n)
	}
	for i := range s.old {
		c := &s.old[i]
		if !in.ReadUint32(&c.id) || !in.CopyBytes(c.hk[:]) || !in.CopyBytes(c.dh[:]) || !in.ReadUint32(&c.end) {
			return false
		}
		if i > 0 && c.id <= s.old[i-1].id || c.id >= s.recvChains {
			return false
		}
	}
	return true
}

func (s *Session) unmarshalSkipped(in *cryptobyte.String) bool {
	var n uint16
	if !in.ReadUint16(&n) || n > protocol.MaxSkipped {
		return false
	}
	if n > 0 {
		s.skipped = make([]skippedKey, n)
	}
	for i := range s.skipped {
		k := &s.skipped[i]
		var at uint64
		if !in.ReadUint32(&k.chain) || !in.ReadUint32(&k.n) || !in.ReadUint64(&at) || !in.CopyBytes(k.mk[:]) {
			return false
		}
		k.at = int64(at)
		if i == 0 {
			continue
		}
		prev := &s.skipped[i-1]
		if k.chain < prev.chain || k.chain == prev.chain && k.n <= prev.n {
			return false
		}
	}
	return true
}

// valid checks what later code relies on.
func (s *Session) valid() bool {
	switch {
	case s.role != initiator && s.role != responder, len(s.ad) == 0:
		return false
	case s.dhs == nil && (s.role == responder || s.sendChains > 0 || s.recvChains > 0):
		return false
	case s.sendChains == 0 && s.recvChains == 0 && s.needStep != (s.role == initiator):
		return false
	case s.sendFlags&^flagMixed != 0, s.recvFlags&^flagMixed != 0, s.mixState > mixRecv:
		return false
	case s.kem.phase < offerPending || s.kem.phase > answering, s.kem.outPos >= offerBlocks:
		return false
	case s.kem.have>>offerBlocks != 0, s.stall > protocol.CargoStall:
		return false
	}
	return true
}
