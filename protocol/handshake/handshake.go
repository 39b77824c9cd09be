// Package handshake is HX, the key agreement of two devices that need not be
// online together: X25519 and ML-KEM-1024 with both parties' static keys, so
// that either primitive alone keeps the session secret and authentic, and no
// signature says that anyone spoke. docs/spec/handshake.md is its specification.
//
//	HX1 (4889 bytes), A → B, before A's ratchet envelopes until B answers:
//	    ver 1 | prekey id 8 | e 32 | ct1 1568 | ct2 1568 | sealed identity of A 1680 | gate 32
//	HX2 (1596 bytes), B → A, before B's ratchet envelopes until A's second chain:
//	    nonce 12 | sealed ct3 1584
//
// A session is authentic only once a ratchet envelope opened under its keys:
// Respond by itself proves no more than knowledge of the shared secret, since
// what authenticates A enters the keys and not the prefix. Against a quantum
// attacker A is authentic once B opened an envelope of A's second chain, into
// which s3 went.
package handshake

import (
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/hmac"
	"crypto/mlkem"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/kith-im/kith/protocol"
	"github.com/kith-im/kith/protocol/identity"
	"golang.org/x/crypto/chacha20poly1305"
)

// Sizes of the two prefixes.
const (
	HX1Size = sealedAt + identity.DeviceSize + chacha20poly1305.Overhead + gateSize
	HX2Size = chacha20poly1305.NonceSize + mlkem.CiphertextSize1024 + chacha20poly1305.Overhead

	ephemeralAt = 1 + 8
	ct1At       = ephemeralAt + 32
	ct2At       = ct1At + mlkem.CiphertextSize1024
	sealedAt    = ct2At + mlkem.CiphertextSize1024
	gateSize    = 32
	gateAt      = HX1Size - gateSize
)

type (
	rootRole   struct{}
	headerRole struct{}
	tagRole    struct{}
	hx2Role    struct{}
	kemRole    struct{}
)

// Keys of a session, one type for each role.
type (
	RootKey   = protocol.Secret[rootRole]   // the ratchet's first root key
	HeaderKey = protocol.Secret[headerRole] // a first header key
	TagKey    = protocol.Secret[tagRole]    // the tag chain of a direction
	HX2Key    = protocol.Secret[hx2Role]    // seals the HX2 prefix
	KEMSecret = protocol.Secret[kemRole]    // s3: goes into a root step
)

// SessionID names a session. Both sides derive it.
type SessionID [16]byte

// Keys are what both devices hold after the handshake. A is the initiator.
type Keys struct {
	Root    RootKey
	HeaderA HeaderKey // what A sends
	HeaderB HeaderKey // what B sends
	HX2     HX2Key    // needed until HX2 was made or opened
	TagA    TagKey    // envelopes A → B
	TagB    TagKey    // envelopes B → A
	Pair    protocol.PairSecret
	SID     SessionID

	// AD is sid | D_A | D_B. Every message of the session authenticates it,
	// followed by the sender's role.
	AD [16 + 32 + 32]byte
}

const keysSize = 7*32 + 16

// Format hides the keys, and whose they are.
func (Keys) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "(session keys)") }

// ErrRefused is the one error of a handshake message that does not fit, whatever the reason:
// an observer learns nothing from it, and nothing is sent in answer.
var ErrRefused = errors.New("handshake: the message is not a valid handshake for this device")

// encapsulator is mlkem's Encapsulate, which takes no source of randomness;
// known-answer tests pass another (docs/spec/handshake.md, section 6).
type encapsulator func(*mlkem.EncapsulationKey1024) (shared, ciphertext []byte)

func encapsulate(ek *mlkem.EncapsulationKey1024) (shared, ciphertext []byte) { return ek.Encapsulate() }

// Initiate agrees on keys with the device of the bundle. It returns the HX1
// prefix, which goes, the same bytes each time, before every envelope until one
// of B's was opened.
func Initiate(rand io.Reader, self *identity.DeviceKey, bundle *Bundle, psk protocol.PSK) (hx1 []byte, keys *Keys, err error) {
	return initiate(rand, encapsulate, self, bundle, psk)
}

// initiate implements docs/spec/handshake.md, section 3.
func initiate(rand io.Reader, encap encapsulator, self *identity.DeviceKey, bundle *Bundle, psk protocol.PSK) ([]byte, *Keys, error) {
	if self.Public().SharesKey(bundle.Device) {
		return nil, nil, errors.New("handshake: the prekey bundle is this device's own")
	}
	seed := make([]byte, 32)
	if _, err := io.ReadFull(rand, seed); err != nil {
		return nil, nil, fmt.Errorf("make an ephemeral key: %w", err)
	}
	e, err := ecdh.X25519().NewPrivateKey(seed)
	if err != nil {
		return nil, nil, fmt.Errorf("make an ephemeral key: %w", err)
	}

	// -> e, ct1, ct2
	s1, ct1 := encap(bundle.ek)
	s2, ct2 := encap(bundle.Device.EncapsulationKey())
	hx1 := make([]byte, 0, HX1Size)
	hx1 = append(hx1, protocol.Version)
	hx1 = append(hx1, bundle.PrekeyID[:]...)
	hx1 = append(hx1, e.PublicKey().Bytes()...)
	hx1 = append(hx1, ct1...)
	hx1 = append(hx1, ct2...)
	t := transcript(hx1, bundle.Device.Hash(), bundle.x, bundle.ek)

	dh1, err := e.ECDH(bundle.x)
	if err != nil {
		return nil, nil, fmt.Errorf("handshake: %w", err)
	}
	dh2, err := e.ECDH(bundle.Device.X())
	if err != nil {
		return nil, nil, fmt.Errorf("handshake: %w", err)
	}
	dh3, err := self.DH(bundle.x)
	if err != nil {
		return nil, nil, fmt.Errorf("handshake: %w", err)
	}

	// -> seal(k1; identity of A), gate
	sched := newSchedule(psk, t, dh1, dh2, s1, s2)
	hx1 = sched.identityAEAD().Seal(hx1, zeroNonce[:], self.Public().Marshal(), nil)
	keys := sched.keys(hx1[sealedAt:], dh3, self.Hash(), bundle.Device.Hash())
	gate := gateMAC(psk, hx1)
	return append(hx1, gate[:]...), keys, nil
}

// Gate checks, at the cost of one MAC over the prefix, that hx1 was made by a
// holder of the shared secret, and returns the name of the prekey it wants.
// Public-key work for strangers starts only after it.
func Gate(psk protocol.PSK, hx1 []byte) (PrekeyID, error) {
	if len(hx1) != HX1Size || hx1[0] != protocol.Version {
		return PrekeyID{}, ErrRefused
	}
	gate := gateMAC(psk, hx1[:gateAt])
	if !hmac.Equal(gate[:], hx1[gateAt:]) {
		return PrekeyID{}, ErrRefused
	}
	return PrekeyID(hx1[1:ephemeralAt]), nil
}

// Respond agrees on keys with the sender of hx1, whose identity it returns. The
// identity is a claim until a ratchet envelope opens under the keys.
func Respond(self *identity.DeviceKey, prekey *Prekey, psk protocol.PSK, hx1 []byte) (peer *identity.Device, keys *Keys, err error) {
	// Steps of docs/spec/handshake.md, section 4.
	id, err := Gate(psk, hx1)
	if err != nil || id != prekey.id {
		return nil, nil, ErrRefused
	}
	e, err := identity.ParseX25519(hx1[ephemeralAt:ct1At])
	if err != nil {
		return nil, nil, ErrRefused
	}
	t := transcript(hx1[:sealedAt], self.Hash(), prekey.x.PublicKey(), prekey.kem.EncapsulationKey())

	dh1, err := prekey.x.ECDH(e)
	if err != nil {
		return nil, nil, ErrRefused
	}
	dh2, err := self.DH(e)
	if err != nil {
		return nil, nil, ErrRefused
	}
	s1, err := prekey.kem.Decapsulate(hx1[ct1At:ct2At])
	if err != nil {
		return nil, nil, ErrRefused
	}
	s2, err := self.Decapsulate(hx1[ct2At:sealedAt])
	if err != nil {
		return nil, nil, ErrRefused
	}

	sched := newSchedule(psk, t, dh1, dh2, s1, s2)
	sealed := hx1[sealedAt:gateAt]
	wire, err := sched.identityAEAD().Open(nil, zeroNonce[:], sealed, nil)
	if err != nil {
		return nil, nil, ErrRefused
	}
	peer, err = identity.ParseDevice(wire)
	if err != nil || self.Public().SharesKey(peer) {
		return nil, nil, ErrRefused
	}
	dh3, err := prekey.x.ECDH(peer.X())
	if err != nil {
		return nil, nil, ErrRefused
	}
	return peer, sched.keys(sealed, dh3, peer.Hash(), self.Hash()), nil
}

// MakeHX2 returns the HX2 prefix, which goes, the same bytes each time, before
// every envelope of B until one of A's second chain was opened, and the secret
// s3 that B's first root step mixes in.
func MakeHX2(keys *Keys, peer *identity.Device) (hx2 []byte, s3 KEMSecret) {
	return makeHX2(encapsulate, keys, peer)
}

// makeHX2 implements docs/spec/handshake.md, section 5. The nonce is synthetic:
// a device that was set back and answers again encapsulates afresh, and must not seal two
// ciphertexts under one key and nonce.
func makeHX2(encap encapsulator, keys *Keys, peer *identity.Device) ([]byte, KEMSecret) {
	s3, ct3 := encap(peer.EncapsulationKey())
	nonce := hx2Nonce(keys, ct3)
	hx2 := append(make([]byte, 0, HX2Size), nonce...)
	return newAEAD(keys.HX2[:]).Seal(hx2, nonce, ct3, keys.AD[:]), KEMSecret(s3)
}

// OpenHX2 returns the secret s3 that B's first root step mixed in.
func OpenHX2(self *identity.DeviceKey, keys *Keys, hx2 []byte) (s3 KEMSecret, err error) {
	if len(hx2) != HX2Size {
		return KEMSecret{}, ErrRefused
	}
	nonce, sealed := hx2[:chacha20poly1305.NonceSize], hx2[chacha20poly1305.NonceSize:]
	ct3, err := newAEAD(keys.HX2[:]).Open(nil, nonce, sealed, keys.AD[:])
	if err != nil || !hmac.Equal(nonce, hx2Nonce(keys, ct3)) {
		return KEMSecret{}, ErrRefused
	}
	shared, err := self.Decapsulate(ct3)
	if err != nil {
		return KEMSecret{}, ErrRefused
	}
	return KEMSecret(shared), nil
}

func hx2Nonce(keys *Keys, ct3 []byte) []byte {
	m := protocol.MAC(keys.HX2[:], protocol.LabelHX2Nonce, keys.AD[:], ct3)
	return m[:chacha20poly1305.NonceSize]
}

// transcript is t of docs/spec/handshake.md, section 3: all that is public, up
// to the sealed identity. Every part has a fixed length.
func transcript(head []byte, responder identity.DeviceHash, x *ecdh.PublicKey, ek *mlkem.EncapsulationKey1024) [64]byte {
	return protocol.Hash(protocol.LabelHXTranscript,
		head[:1], binary.BigEndian.AppendUint16(nil, protocol.Suite), responder[:], head[1:ephemeralAt],
		x.Bytes(), ek.Bytes(), head[ephemeralAt:])
}

// schedule is the key schedule after t is known.
type schedule struct {
	salt []byte
	ikm  []byte
	t    [64]byte
}

func newSchedule(psk protocol.PSK, t [64]byte, dh1, dh2, s1, s2 []byte) *schedule {
	salt := protocol.MAC(psk[:], protocol.LabelHXSalt)
	ikm := make([]byte, 0, 5*32)
	ikm = append(ikm, dh1...)
	ikm = append(ikm, dh2...)
	ikm = append(ikm, s1...)
	ikm = append(ikm, s2...)
	return &schedule{salt: salt[:], ikm: ikm, t: t}
}

func (s *schedule) identityAEAD() cipher.AEAD {
	return newAEAD(protocol.KDF(s.ikm, s.salt, protocol.LabelHXIdentity+string(s.t[:]), 32))
}

func (s *schedule) keys(sealed, dh3 []byte, a, b identity.DeviceHash) *Keys {
	final := protocol.Hash(protocol.LabelHXFinal, s.t[:], sealed, a[:])
	out := protocol.KDF(append(s.ikm, dh3...), s.salt, protocol.LabelHXSession+string(final[:]), keysSize)
	k := new(Keys)
	for _, dst := range [][]byte{
		k.Root[:], k.HeaderA[:], k.HeaderB[:], k.HX2[:], k.SID[:], k.TagA[:], k.TagB[:], k.Pair[:],
	} {
		out = out[copy(dst, out):]
	}
	ad := append(k.AD[:0], k.SID[:]...)
	ad = append(ad, a[:]...)
	_ = append(ad, b[:]...)
	return k
}

func gateMAC(psk protocol.PSK, hx1 []byte) [gateSize]byte {
	return protocol.MAC(psk[:], protocol.LabelHXGate, hx1)
}

// zeroNonce serves the identity key, which seals one plaintext: it depends on
// the ephemeral key and both ciphertexts, and the plaintext on the device.
var zeroNonce [chacha20poly1305.NonceSize]byte

func newAEAD(key []byte) cipher.AEAD {
	a, err := chacha20poly1305.New(key)
	if err != nil {
		panic("handshake: " + err.Error()) // the key is not 32 bytes
	}
	return a
}
