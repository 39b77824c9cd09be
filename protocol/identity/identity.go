// Package identity holds who people are to kith: an account (one Ed25519 key)
// and its devices (an Ed25519, an X25519 and an ML-KEM-1024 key each), the
// signed list that ties devices to the account, and the numbers that people
// compare. docs/spec/identity.md is its specification.
//
//	Device (1664 bytes) = acct 32 | d.ed 32 | d.x 32 | d.ek 1568
//
// A device names its account, but anyone can write a device that names any
// account: the claim counts once a DeviceList signed by the account contains
// the device's hash.
package identity

import (
	"crypto/ed25519"
	"encoding/base32"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/kith-im/kith/protocol"
)

// AccountPublic is an account's Ed25519 public key.
type AccountPublic [32]byte

// Account is an account's private key.
type Account struct {
	key ed25519.PrivateKey
}

// NewAccount makes an account from 32 bytes of rand.
func NewAccount(rand io.Reader) (*Account, error) {
	seed := make([]byte, ed25519.SeedSize)
	if _, err := io.ReadFull(rand, seed); err != nil {
		return nil, fmt.Errorf("make an account key: %w", err)
	}
	return UnmarshalAccount(seed)
}

// UnmarshalAccount restores an account from its 32-byte seed.
func UnmarshalAccount(seed []byte) (*Account, error) {
	if len(seed) != ed25519.SeedSize {
		return nil, errors.New("identity: an account seed is 32 bytes")
	}
	return &Account{key: ed25519.NewKeyFromSeed(seed)}, nil
}

// Marshal returns the 32-byte seed, for sealed storage.
func (a *Account) Marshal() []byte { return a.key.Seed() }

// Public returns the account's public key.
func (a *Account) Public() AccountPublic { return AccountPublic(a.key.Public().(ed25519.PublicKey)) }

// Format hides the key.
func (a *Account) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "(account key)") }

// Fingerprint returns the account's fingerprint
// (docs/spec/identity.md, section 2).
func (p AccountPublic) Fingerprint() Fingerprint {
	h := protocol.Hash(protocol.LabelAccount, p[:])
	return Fingerprint(h[:32])
}

// String hides the key: it names a person. p[:] is its value.
func (AccountPublic) String() string { return "(account)" }

// Format hides the key under every verb.
func (p AccountPublic) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, p.String()) }

// MarshalText refuses, so that no log or document carries the key by accident.
func (AccountPublic) MarshalText() ([]byte, error) { return nil, errNoText }

// Fingerprint identifies an account to people and to the API.
type Fingerprint [32]byte

// fingerprintEncoding is RFC 4648 base32 in lower case without padding.
var fingerprintEncoding = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// Text returns the 52 characters that stand for the fingerprint in the API and
// on screen.
func (f Fingerprint) Text() string { return fingerprintEncoding.EncodeToString(f[:]) }

// ParseFingerprint reads what Text returned.
func ParseFingerprint(text string) (Fingerprint, error) {
	var f Fingerprint
	if len(text) != fingerprintEncoding.EncodedLen(len(f)) || strings.ContainsAny(text, "\r\n") {
		return f, errFingerprint
	}
	b, err := fingerprintEncoding.DecodeString(text)
	if err != nil || fingerprintEncoding.EncodeToString(b) != text {
		return f, errFingerprint
	}
	return Fingerprint(b), nil
}

// String hides the fingerprint; Text shows it.
func (Fingerprint) String() string { return "(fingerprint)" }

// Format hides the fingerprint under every verb.
func (f Fingerprint) Format(s fmt.State, _ rune) { _, _ = io.WriteString(s, f.String()) }

// MarshalText refuses, so that no log carries the fingerprint by accident.
func (Fingerprint) MarshalText() ([]byte, error) { return nil, errNoText }

// DeviceHash identifies a device by all of its public keys and its account
// (docs/spec/identity.md, section 3).
type DeviceHash [32]byte

// Hex returns the hash as 64 hexadecimal digits.
func (h DeviceHash) Hex() string { return hex.EncodeToString(h[:]) }

// String hides the hash; Hex shows it.
func (DeviceHash) String() string { return "(device)" }

// Format hides the hash under every verb.
func (h DeviceHash) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, h.String()) }

// MarshalText refuses, so that no log carries the hash by accident.
func (DeviceHash) MarshalText() ([]byte, error) { return nil, errNoText }

var (
	errNoText      = errors.New("identity: an identity has no implicit text form")
	errFingerprint = errors.New("identity: a fingerprint is 52 characters, a-z and 2-7")
)
