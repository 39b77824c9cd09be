package protocol

import (
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha512"
)

// KDF is HKDF-SHA-512 (RFC 5869). It panics if more than 255·64 bytes are
// wanted.
func KDF(secret, salt []byte, info string, n int) []byte {
	key, err := hkdf.Key(sha512.New, secret, salt, info, n)
	if err != nil {
		panic("protocol: " + err.Error())
	}
	return key
}

// MAC is the first 32 bytes of HMAC-SHA-512 over a label and the parts, one
// after the other. The caller sees to it that the parts cannot be cut
// differently: all but one have a fixed length, or carry their length.
func MAC(key []byte, label string, parts ...[]byte) [32]byte {
	h := hmac.New(sha512.New, key)
	h.Write([]byte(label))
	for _, p := range parts {
		h.Write(p)
	}
	return [32]byte(h.Sum(nil))
}

// Hash is SHA-512 over a label and the parts, with the same duty as for MAC.
func Hash(label string, parts ...[]byte) [64]byte {
	h := sha512.New()
	h.Write([]byte(label))
	for _, p := range parts {
		h.Write(p)
	}
	return [64]byte(h.Sum(nil))
}
