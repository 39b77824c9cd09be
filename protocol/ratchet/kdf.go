package ratchet

import (
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/sha512"
	"fmt"
	"io"

	"golang.org/x/crypto/chacha20poly1305"

	"github.com/kith-im/kith/protocol"
	"github.com/kith-im/kith/protocol/identity"
)

// rootKDF is the root step of docs/spec/ratchet.md, section 5.
func rootKDF(rk [32]byte, dh []byte, secret *[32]byte) (nextRK, ck, nhk [32]byte) {
	ikm, info := dh, protocol.LabelRatchetRootDH
	if secret != nil {
		ikm, info = append(dh, secret[:]...), protocol.LabelRatchetRootKEM
	}
	out := protocol.KDF(ikm, rk[:], info, 96)
	return [32]byte(out[:32]), [32]byte(out[32:64]), [32]byte(out[64:])
}

// chainKDF is the chain step of docs/spec/ratchet.md, section 5.
func chainKDF(ck *[32]byte) (next, mk [32]byte) {
	var in [hmacBlock + 1]byte
	in[hmacBlock] = 1
	out := hmacSHA512(ck, in[:])
	return [32]byte(out[:32]), [32]byte(out[32:])
}

const hmacBlock = sha512.BlockSize

// hmacSHA512 is HMAC-SHA-512 (RFC 2104) of in[hmacBlock:]; it uses what is
// before that. A chain step takes half the time it does with crypto/hmac, whose
// state, like the session it takes the key from, moves to the heap.
func hmacSHA512(key *[32]byte, in []byte) [sha512.Size]byte {
	var outer [hmacBlock + sha512.Size]byte
	for i := range hmacBlock {
		in[i], outer[i] = 0x36, 0x5c
	}
	for i, k := range key {
		in[i] ^= k
		outer[i] ^= k
	}
	inner := sha512.Sum512(in)
	copy(outer[hmacBlock:], inner[:])
	return sha512.Sum512(outer[:])
}

// hedge draws 64 bytes from rand and hashes them with the root key, so that a
// broken source repeats nothing while the root moves on and stays secret
// (docs/spec/ratchet.md, section 5). use tells the two uses apart.
func hedge(rand io.Reader, rk [32]byte, use byte) ([64]byte, error) {
	seed := make([]byte, 64)
	if _, err := io.ReadFull(rand, seed); err != nil {
		return [64]byte{}, fmt.Errorf("ratchet: read randomness: %w", err)
	}
	in := append(make([]byte, hmacBlock, 256), protocol.LabelRatchetHedge...)
	in = append(in, use)
	return hmacSHA512(&rk, append(in, seed...)), nil
}

// The uses of hedge.
const (
	hedgeDH  = 1
	hedgeKEM = 2
)

// exchange is X25519 with a peer's key, which must be canonical and not of
// small order (docs/spec/identity.md, section 4).
func exchange(priv *ecdh.PrivateKey, pub [32]byte) ([]byte, error) {
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
	frame := ct[bodyOffset : len(ct)-tagSize]

	in := make([]byte, hmacBlock, hmacBlock+len(protocol.LabelRatchetNonce)+len(ad)+1+headerSize+len(frame))
	in = append(in, protocol.LabelRatchetNonce...)
	start := len(in)
	in = appendAD(in, ad, from, &hdr)
	aad := in[start:]
	sum := hmacSHA512(mk, append(in, frame...))
	nonce := ct[encHeaderSize:bodyOffset]
	copy(nonce, sum[:])

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
	aad := appendAD(make([]byte, 0, maxAD+1+headerSize), ad, from, &hdr)
	frame, err := newAEAD(mk).Open(nil, ct[encHeaderSize:bodyOffset], ct[bodyOffset:], aad)
	return frame, err == nil
}

// appendAD appends what a body authenticates beside itself.
func appendAD(b, ad []byte, from role, hdr *[headerSize]byte) []byte {
	b = append(b, ad...)
	b = append(b, byte(from))
	return append(b, hdr[:]...)
}

func newAEAD(key *[32]byte) cipher.AEAD {
	a, err := chacha20poly1305.New(key[:])
	if err != nil {
		panic("ratchet: " + err.Error()) // only for a key of another length
	}
	return a
}
