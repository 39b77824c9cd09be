package identity

import (
	"crypto/ecdh"
	"crypto/ed25519"
	"crypto/mlkem"
	"encoding/hex"
	"errors"
	"slices"
)

// What the standard library accepts and we do not (docs/spec/identity.md,
// section 4): one key must have one encoding, and no public key may make a
// result independent of the private one.

var (
	errNonCanonical = errors.New("the key is not in canonical form")
	errSmallOrder   = errors.New("the key has small order")
)

// ParseX25519 reads a public key, refusing what is not canonical (u ≥ p, or the
// top bit set, which RFC 7748 has implementations ignore) and points of small order.
func ParseX25519(b []byte) (*ecdh.PublicKey, error) {
	if len(b) != 32 {
		return nil, errors.New("an X25519 key is 32 bytes")
	}
	if !belowP(b) {
		return nil, errNonCanonical
	}
	if slices.Contains(smallOrderX25519, [32]byte(b)) {
		return nil, errSmallOrder
	}
	return ecdh.X25519().NewPublicKey(b)
}

// ParseEncapsulationKey reads an ML-KEM-1024 encapsulation key, with the modulus
// check of FIPS 203, section 7.2.
func ParseEncapsulationKey(b []byte) (*mlkem.EncapsulationKey1024, error) {
	return mlkem.NewEncapsulationKey1024(b)
}

// CheckEd25519 refuses a public key whose y coordinate is not canonical, and
// one of small order, under which one signature fits every message.
func CheckEd25519(b []byte) error {
	if len(b) != ed25519.PublicKeySize {
		return errors.New("an Ed25519 key is 32 bytes")
	}
	y := [32]byte(b)
	y[31] &= 0x7f
	if !belowP(y[:]) {
		return errNonCanonical
	}
	if slices.Contains(smallOrderEd25519, y) {
		return errSmallOrder
	}
	return nil
}

func sign(key ed25519.PrivateKey, label string, message []byte) []byte {
	return ed25519.Sign(key, append([]byte(label), message...))
}

func verify(key []byte, label string, message, signature []byte) bool {
	return CheckEd25519(key) == nil && len(signature) == ed25519.SignatureSize &&
		ed25519.Verify(key, append([]byte(label), message...), signature)
}

// belowP reports whether 32 little-endian bytes are less than p = 2^255 - 19.
// Public keys only: it does not run in constant time.
func belowP(b []byte) bool {
	if b[31] != 0x7f {
		return b[31] < 0x7f
	}
	for _, v := range b[1:31] {
		if v != 0xff {
			return true
		}
	}
	return b[0] < 0xed
}

// The u coordinates of the points of order 1, 2, 4 and 8 of Curve25519 and its
// twist, and the y coordinates of those of Ed25519.
var (
	smallOrderX25519 = [][32]byte{
		coordinate("0000000000000000000000000000000000000000000000000000000000000000"),
		coordinate("0100000000000000000000000000000000000000000000000000000000000000"),
		coordinate("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
		coordinate("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
		coordinate("ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
	}
	smallOrderEd25519 = [][32]byte{
		coordinate("0000000000000000000000000000000000000000000000000000000000000000"),
		coordinate("0100000000000000000000000000000000000000000000000000000000000000"),
		coordinate("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"),
		coordinate("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"),
		coordinate("ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
	}
)

func coordinate(s string) [32]byte {
	b, err := hex.DecodeString(s)
	if err != nil {
		panic(err)
	}
	return [32]byte(b)
}
