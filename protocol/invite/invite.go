// Package invite is the link, or the QR code, that makes two people contacts.
// docs/spec/invite.md is its specification.
//
//	kind and version 1 | flags 1 | device 32 | secret 32 | expiry 4 | hints × (len 1 | bytes) | checksum 4
//
// Whoever holds the link can find its owner and answer; whoever does not can do
// neither. It is a secret until it was used.
package invite

import (
	"encoding/base32"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"time"

	"github.com/kith-im/kith/protocol"
	"github.com/kith-im/kith/protocol/identity"
	"golang.org/x/crypto/cryptobyte"
)

// Errors of Parse. Each is a sentence for the person who pasted the link.
var (
	ErrNotInvite = errors.New("this is not a kith invite: copy the whole link, from kith: to its end, or ask for a new one")
	ErrNoScheme  = errors.New("the link has lost its beginning: put kith: before it")
	ErrTruncated = errors.New("the invite is cut short: copy the whole link and try again")
	ErrDamaged   = errors.New("the invite is damaged: copy the link again, or ask for a new one")
	ErrNewer     = errors.New("the invite was made by a newer kith: update kith and try again")
)

// The first byte is the kind in its high and the version in its low four bits.
// A device-link payload has another kind and another scheme, and is never an
// invite (docs/spec/invite.md, section 2).
const (
	kindInvite     = 1
	kindDeviceLink = 2

	first = kindInvite<<4 | protocol.Version

	flagReusable   = 1 << 0
	hintsShift     = 1 // bits 1 and 2 count the hints
	hintsMask      = 3 << hintsShift
	flagsKnown     = flagReusable | hintsMask
	checksumSize   = 4
	minPayload     = 1 + 1 + 32 + 32 + 4 + checksumSize
	maxPayload     = minPayload + protocol.MaxHints*(1+protocol.MaxAddress)
	scheme         = "kith:"
	qrScheme       = "KITH:"
	maxText        = 2048 // above len(qrScheme) + the base32 of maxPayload, with room for spaces
	secondsPerTick = 60
)

type secretRole struct{}

// Secret is the random secret of an invite.
type Secret = protocol.Secret[secretRole]

// Invite is the content of a link.
type Invite struct {
	Reusable bool
	Device   identity.DeviceHash
	Secret   Secret
	Expiry   time.Time // whole minutes
	Hints    [][]byte  // at most protocol.MaxHints binary multiaddrs
}

// New makes an invite to the device with a fresh secret from rand. Expiry is
// rounded up to a whole minute.
func New(rand io.Reader, device identity.DeviceHash, reusable bool, expiry time.Time, hints [][]byte) (*Invite, error) {
	inv := &Invite{Reusable: reusable, Device: device, Hints: hints}
	if _, err := io.ReadFull(rand, inv.Secret[:]); err != nil {
		return nil, fmt.Errorf("make an invite: %w", err)
	}
	tick := (expiry.Unix() + secondsPerTick - 1) / secondsPerTick
	if tick < 0 || tick > math.MaxUint32 {
		return nil, errors.New("make an invite: the expiry is out of range")
	}
	inv.Expiry = time.Unix(tick*secondsPerTick, 0)
	if err := checkHints(hints); err != nil {
		return nil, err
	}
	return inv, nil
}

func checkHints(hints [][]byte) error {
	if len(hints) > protocol.MaxHints {
		return fmt.Errorf("make an invite: at most %d hints fit", protocol.MaxHints)
	}
	for _, h := range hints {
		if len(h) == 0 || len(h) > protocol.MaxAddress {
			return fmt.Errorf("make an invite: a hint is 1 to %d bytes", protocol.MaxAddress)
		}
	}
	return nil
}

// Expired reports whether the invite may no longer be answered at now.
func (inv *Invite) Expired(now time.Time) bool { return !now.Before(inv.Expiry) }

// Link returns the form that people send: "kith:" and base64url.
func (inv *Invite) Link() string {
	return scheme + base64.RawURLEncoding.EncodeToString(inv.payload())
}

// QR returns the upper-case form, which stays in QR's alphanumeric mode.
func (inv *Invite) QR() string {
	return qrScheme + qrEncoding.EncodeToString(inv.payload())
}

var qrEncoding = base32.StdEncoding.WithPadding(base32.NoPadding)

// Format hides the invite.
func (inv *Invite) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "(invite)") }

func (inv *Invite) payload() []byte {
	flags := uint8(len(inv.Hints) << hintsShift)
	if inv.Reusable {
		flags |= flagReusable
	}
	b := cryptobyte.NewBuilder(make([]byte, 0, maxPayload))
	b.AddUint8(first)
	b.AddUint8(flags)
	b.AddBytes(inv.Device[:])
	b.AddBytes(inv.Secret[:])
	b.AddUint32(uint32(inv.Expiry.Unix() / secondsPerTick))
	for _, h := range inv.Hints {
		b.AddUint8LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(h) })
	}
	payload := b.BytesOrPanic()
	return append(payload, checksum(payload)...)
}

func checksum(payload []byte) []byte {
	h := protocol.Hash(protocol.LabelInviteChecksum, payload)
	return h[:checksumSize]
}

// Parse reads a link or a QR text, with or without white space around it. The
// invite may have expired; see Expired.
func Parse(text string) (*Invite, error) {
	if len(text) > maxText {
		return nil, ErrNotInvite
	}
	text = strings.TrimSpace(text)
	if !strings.HasPrefix(text, scheme) && !strings.HasPrefix(text, qrScheme) {
		if whole := scheme + text; len(whole) <= maxText {
			if _, err := Parse(whole); err == nil {
				return nil, ErrNoScheme
			}
		}
		return nil, ErrNotInvite
	}
	payload, err := decodeText(text)
	if err != nil {
		return nil, err
	}
	inv, err := parsePayload(payload)
	if err != nil {
		return nil, err
	}
	if text != inv.Link() && text != inv.QR() {
		return nil, ErrDamaged // stray bits after the last byte
	}
	return inv, nil
}

func decodeText(text string) ([]byte, error) {
	if strings.ContainsAny(text, "\r\n") {
		return nil, ErrDamaged // the decoders below would skip them
	}
	var payload []byte
	var err error
	if strings.HasPrefix(text, scheme) {
		text = text[len(scheme):]
		if len(text)%4 == 1 {
			text = text[:len(text)-1] // no encoding ends so: cut short
		}
		payload, err = base64.RawURLEncoding.DecodeString(text)
	} else {
		text = text[len(qrScheme):]
		if n := len(text) % 8; n == 1 || n == 3 || n == 6 {
			text = text[:len(text)-1]
		}
		payload, err = qrEncoding.DecodeString(text)
	}
	if err != nil {
		return nil, ErrDamaged
	}
	return payload, nil
}

// parsePayload implements docs/spec/invite.md, section 4.
func parsePayload(payload []byte) (*Invite, error) {
	if len(payload) == 0 {
		return nil, ErrTruncated
	}
	if payload[0]>>4 != kindInvite {
		return nil, ErrNotInvite
	}
	n := len(payload) - checksumSize
	if payload[0] != first || len(payload) > 1 && payload[1]&^flagsKnown != 0 {
		// A later version may differ in all but the place of the checksum.
		if n < 2 || string(checksum(payload[:n])) != string(payload[n:]) {
			return nil, ErrDamaged
		}
		return nil, ErrNewer
	}
	if len(payload) < minPayload {
		return nil, ErrTruncated
	}

	inv := new(Invite)
	s := cryptobyte.String(payload)
	var flags uint8
	var tick uint32
	if !s.Skip(1) || !s.ReadUint8(&flags) || !s.CopyBytes(inv.Device[:]) ||
		!s.CopyBytes(inv.Secret[:]) || !s.ReadUint32(&tick) {
		return nil, ErrTruncated
	}
	inv.Reusable = flags&flagReusable != 0
	inv.Expiry = time.Unix(int64(tick)*secondsPerTick, 0)
	for range flags & hintsMask >> hintsShift {
		var hint cryptobyte.String
		if !s.ReadUint8LengthPrefixed(&hint) || len(s) < checksumSize {
			return nil, ErrTruncated
		}
		if len(hint) == 0 {
			return nil, ErrDamaged
		}
		inv.Hints = append(inv.Hints, append([]byte(nil), hint...))
	}
	if len(s) != checksumSize || string(s) != string(checksum(payload[:n])) {
		return nil, ErrDamaged
	}
	return inv, nil
}

// Keys are what both sides derive from an invite.
type Keys struct {
	protocol.Shared
	Tag [16]byte // where the answer goes
}

// Keys implements docs/spec/invite.md, section 5.
func (inv *Invite) Keys() Keys {
	return Keys{
		Shared: protocol.DeriveShared(inv.Secret[:], protocol.LabelInvite, inv.Device[:]),
		Tag:    [16]byte(protocol.KDF(inv.Secret[:], []byte(protocol.LabelInviteTag), string(inv.Device[:]), 16)),
	}
}
