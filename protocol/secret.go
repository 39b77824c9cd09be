package protocol

import (
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
)

// Secret is a 32-byte key with one role. Role is only a marker: it makes a key
// of one purpose unusable, at compile time, where a key of another is wanted.
// A Secret never prints and never marshals as text; s[:] is its value.
type Secret[Role any] [32]byte

// Equal reports, in constant time, whether two secrets are the same.
func (s Secret[Role]) Equal(t Secret[Role]) bool {
	return subtle.ConstantTimeCompare(s[:], t[:]) == 1
}

// IsZero reports whether s was never set.
func (s Secret[Role]) IsZero() bool { return s.Equal(Secret[Role]{}) }

// String hides the value.
func (Secret[Role]) String() string { return redacted }

// Format hides the value under every verb.
func (Secret[Role]) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, redacted) }

// MarshalText refuses: a secret belongs in sealed storage, as bytes.
func (Secret[Role]) MarshalText() ([]byte, error) { return nil, errSecretText }

const redacted = "(secret)"

var errSecretText = errors.New("protocol: a secret has no text form")

type (
	rendezvousRole struct{}
	pskRole        struct{}
	bundleRole     struct{}
	streamRole     struct{}
	carryRole      struct{}
	pairRole       struct{}
	hedgeRole      struct{}
)

// Secrets that one package derives and another uses (docs/spec/overview.md,
// section 5).
type (
	// RendezvousSecret places and seals rendezvous records.
	RendezvousSecret = Secret[rendezvousRole]
	// PSK enters a handshake and guards it against strangers.
	PSK = Secret[pskRole]
	// BundleKey authenticates a prekey bundle to those who may use it.
	BundleKey = Secret[bundleRole]
	// StreamKey names and authenticates conversation streams.
	StreamKey = Secret[streamRole]
	// CarryKey seals what travels in files.
	CarryKey = Secret[carryRole]
	// PairSecret is what a session leaves its two devices for everything that
	// is not a message; see SharedFromPair.
	PairSecret = Secret[pairRole]
	// HedgeSecret keeps Hedge unpredictable when the system's generator fails.
	HedgeSecret = Secret[hedgeRole]
)

// Shared are the secrets with which two devices find, reach and recognise each
// other: from an invite before they have a session, from its pair secret after.
type Shared struct {
	Rendezvous RendezvousSecret
	PSK        PSK
	Bundle     BundleKey
	Stream     StreamKey
	Carry      CarryKey
}

// SharedFromPair derives the shared secrets of two devices that have a session.
func SharedFromPair(pair PairSecret) Shared {
	return DeriveShared(pair[:], LabelPair, nil)
}

// DeriveShared implements docs/spec/overview.md, section 5. The label says what
// kind of secret it starts from, the context what that secret belongs to.
func DeriveShared(secret []byte, label string, context []byte) Shared {
	var s Shared
	prk := KDF(secret, []byte(label), string(context), 64)
	copy(s.Rendezvous[:], KDF(prk, nil, LabelSharedRendezvous, 32))
	copy(s.PSK[:], KDF(prk, nil, LabelSharedPSK, 32))
	copy(s.Bundle[:], KDF(prk, nil, LabelSharedBundle, 32))
	copy(s.Stream[:], KDF(prk, nil, LabelSharedStream, 32))
	copy(s.Carry[:], KDF(prk, nil, LabelSharedCarry, 32))
	return s
}
