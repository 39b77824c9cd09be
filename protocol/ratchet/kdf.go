package ratchet

import (
	"crypto/ecdh"
	"crypto/hmac"
	"crypto/sha512"
	"fmt"
	"io"

	"golang.org/x/crypto/chacha20poly1305"

	"github.com/kith-im/kith/protocol"
	"github.com/kith-im/kith/protocol/identity"
)

// rootKDF is the root step of docs/spec/ratchet.md, section 5.
func rootKDF(rk *[32]byte, dh []byte, secret *[32]byte) (nextRK, ck, nhk [32]byte) {
	ikm, info := dh, protocol.LabelRatchetRootDH
	if secret != nil {
		ikm, info = append(dh, secret[:]...), protocol.LabelRatchetRootKEM
	}
	out := protocol.KDF(ikm, rk[:], info, 96)
	return [32]byte(out[:32]), [32]byte(out[32:64]), [32]byte(out[64:])
}

// chainKDF is the chain step of docs/spec/ratchet.md, section 5.
func chainKDF(ck *[32]byte) (next, mk [32]byte) {
	m := hmac.New(sha512.New, ck[:])
	m.Write([]byte{1})
	var out [64]byte
	m.Sum(out[:0])
	return [32]byte(out[:32]), [32]byte(out[32:])
}

// hedge draws n ≤ 64 bytes from rand and hashes them with the root key, so
// that a broken source repeats nothing while the root moves on and stays
// secret (docs/spec/ratchet.md, section 5).
func hedge(rand io.Reader, rk *[32]byte, n int) ([]byte, error) {
	var seed [64]byte
	if _, err := io.ReadFull(rand, seed[:]); err != nil {
		return nil, fmt.Errorf("ratchet: read randomness: %w", err)
	}
	m := hmac.New(sha512.New, rk[:])
	m.Write([]byte(protocol.LabelRatchetHedge))
	m.Write([]byte{byte(n)})
	m.Write(seed[:])
	return m.Sum(nil)[:n], nil
}

// exchange is X25519 with a peer's key, which must be canonical and not of
// small order (docs/spec/identity.md, section 4).
func exchange(priv *ecdh.PrivateKey, pub *[32]byte) ([]byte, error) {
	p, err := identity.ParseX25519(pub[:])
	if err != nil {
		return nil, fmt.Errorf("ratchet: peer's key: %w", err)
	}
	return priv.ECDH(p)
}

// seal encrypts in place: ct[bodyOffset:len-tagSize] holds the frame.
//
// The nonce is a MAC of everything it protects (docs/spec/ratchet.md, section
// 6): a state that was put back and used again repeats it only with the very
// same message, so neither keystream nor authentication key is ever reused.
func seal(ct []byte, hk, mk *[32]byte, ad []byte, from role, h *header) {
	hdr := h.marshal()
	aad := additionalData(ad, from, &hdr)
	frame := ct[bodyOffset : len(ct)-tagSize]

	m := hmac.New(sha512.New, mk[:])
	m.Write([]byte(protocol.LabelRatchetNonce))
	m.Write(aad)
	m.Write(frame)
	var sum [64]byte
	nonce := ct[encHeaderSize:bodyOffset]
	copy(nonce, m.Sum(sum[:0]))

	newAEAD(hk).Seal(ct[:0], nonce, hdr[:], nil)
	newAEAD(mk).Seal(frame[:0], nonce, frame, aad)
}

// openHeader decrypts and parses the header of ct with hk.
func openHeader(ct []byte, hk *[32]byte, h *header) bool {
	var hdr [headerSize]byte
	_, err := newAEAD(hk).Open(hdr[:0], ct[encHeaderSize:bodyOffset], ct[:encHeaderSize], nil)
	return err == nil && h.unmarshal(&hdr)
}

// openBody decrypts the body of ct into a new slice.
func openBody(ct []byte, mk *[32]byte, ad []byte, from role, h *header) (frame []byte, ok bool) {
	hdr := h.marshal()
	frame, err := newAEAD(mk).Open(nil, ct[encHeaderSize:bodyOffset], ct[bodyOffset:], additionalData(ad, from, &hdr))
	return frame, err == nil
}

func additionalData(ad []byte, from role, hdr *[headerSize]byte) []byte {
	aad := make([]byte, 0, maxAD+1+headerSize)
	aad = append(aad, ad...)
	aad = append(aad, byte(from))
	return append(aad, hdr[:]...)
}

type aead interface {
	Seal(dst, nonce, plaintext, additionalData []byte) []byte
	Open(dst, nonce, ciphertext, additionalData []byte) ([]byte, error)
}

func newAEAD(key *[32]byte) aead {
	a, err := chacha20poly1305.New(key[:])
	if err != nil {
		panic("ratchet: " + err.Error()) // only for a key of another length
	}
	return a
}
