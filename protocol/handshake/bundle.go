package handshake

import (
	"crypto/ecdh"
	"crypto/hmac"
	"crypto/mlkem"
	"errors"
	"fmt"
	"io"
	"math"
	"time"

	"github.com/kith-im/kith/protocol"
	"github.com/kith-im/kith/protocol/identity"
	"golang.org/x/crypto/cryptobyte"
)

// PrekeyID names a prekey. It is random, and means nothing to others.
type PrekeyID [8]byte

// PrekeySize is the length of a marshalled Prekey: id 8 | sp.x 32 | sp.k seed 64.
const PrekeySize = 8 + 32 + mlkem.SeedSize

// Prekey is the private half of a bundle. It is deleted in the transaction that
// creates the session it was used for.
type Prekey struct {
	id  PrekeyID
	x   *ecdh.PrivateKey
	kem *mlkem.DecapsulationKey1024
}

// NewPrekey makes a prekey from 104 bytes of rand.
func NewPrekey(rand io.Reader) (*Prekey, error) {
	b := make([]byte, PrekeySize)
	if _, err := io.ReadFull(rand, b); err != nil {
		return nil, fmt.Errorf("make a prekey: %w", err)
	}
	return UnmarshalPrekey(b)
}

// UnmarshalPrekey restores what Marshal returned.
func UnmarshalPrekey(b []byte) (*Prekey, error) {
	if len(b) != PrekeySize {
		return nil, errors.New("handshake: a prekey has a fixed size")
	}
	x, err := ecdh.X25519().NewPrivateKey(b[8:40])
	if err != nil {
		return nil, fmt.Errorf("restore a prekey: %w", err)
	}
	kem, err := mlkem.NewDecapsulationKey1024(b[40:])
	if err != nil {
		return nil, fmt.Errorf("restore a prekey: %w", err)
	}
	return &Prekey{id: PrekeyID(b[:8]), x: x, kem: kem}, nil
}

// Marshal returns the prekey, for sealed storage.
func (p *Prekey) Marshal() []byte {
	b := append(make([]byte, 0, PrekeySize), p.id[:]...)
	b = append(b, p.x.Bytes()...)
	return append(b, p.kem.Bytes()...)
}

// ID returns the prekey's name.
func (p *Prekey) ID() PrekeyID { return p.id }

// X returns the private X25519 key, which is also the responder's first ratchet
// key.
func (p *Prekey) X() *ecdh.PrivateKey { return p.x }

// Format hides the prekey.
func (p *Prekey) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "(prekey)") }

// BundleSize is the length of every bundle.
const BundleSize = 1 + 2 + identity.DeviceSize + 8 + 8 + 8 + 32 + mlkem.EncapsulationKeySize1024 + 64 + 32

// Bundle is what an initiator needs of a device it has never spoken to. Every
// Bundle was made or verified here; treat it as immutable.
type Bundle struct {
	Device   *identity.Device
	PrekeyID PrekeyID
	Epoch    uint64    // rises with every bundle of the device
	Expiry   time.Time // whole seconds

	x    *ecdh.PublicKey
	ek   *mlkem.EncapsulationKey1024
	wire []byte
}

// Errors that callers tell apart.
var (
	ErrBundleExpired = errors.New("handshake: the prekey bundle has expired")
	ErrBundleOld     = errors.New("handshake: the prekey bundle is older than one already seen")
	errBundle        = errors.New("handshake: the prekey bundle is not authentic")
)

// The kinds of public key under a bundle's signature
// (docs/spec/handshake.md, section 2).
const (
	typeX25519     = 1
	typeMLKEM1024  = 2
	bundleSigned   = BundleSize - 64 - 32
	bundleUnMACked = BundleSize - 32
)

// NewBundle signs the public half of a prekey and adds a MAC for those who hold
// the key. Expiry is cut to whole seconds.
func NewBundle(device *identity.DeviceKey, prekey *Prekey, epoch uint64, expiry time.Time, key protocol.BundleKey) *Bundle {
	b := &Bundle{
		Device:   device.Public(),
		PrekeyID: prekey.id,
		Epoch:    epoch,
		Expiry:   time.Unix(expiry.Unix(), 0),
		x:        prekey.x.PublicKey(),
		ek:       prekey.kem.EncapsulationKey(),
	}
	w := cryptobyte.NewBuilder(make([]byte, 0, BundleSize))
	w.AddUint8(protocol.Version)
	w.AddUint16(protocol.Suite)
	w.AddBytes(b.Device.Marshal())
	w.AddBytes(b.PrekeyID[:])
	w.AddUint64(b.Epoch)
	w.AddUint64(uint64(b.Expiry.Unix()))
	w.AddBytes(b.x.Bytes())
	w.AddBytes(b.ek.Bytes())
	b.wire = w.BytesOrPanic()
	b.wire = append(b.wire, device.Sign(protocol.LabelPrekey, b.signedMessage())...)
	mac := protocol.MAC(key[:], protocol.LabelPrekeyMAC, b.wire)
	b.wire = append(b.wire, mac[:]...)
	return b
}

// ParseBundle reads a bundle that must be of the device, carry the MAC under
// the key, have at least the epoch minEpoch, and not have expired at now. The
// cheap checks come first (docs/spec/handshake.md, section 2).
func ParseBundle(wire []byte, device identity.DeviceHash, key protocol.BundleKey, minEpoch uint64, now time.Time) (*Bundle, error) {
	if len(wire) != BundleSize {
		return nil, errors.New("handshake: a prekey bundle has a fixed size")
	}
	mac := protocol.MAC(key[:], protocol.LabelPrekeyMAC, wire[:bundleUnMACked])
	if !hmac.Equal(mac[:], wire[bundleUnMACked:]) {
		return nil, errBundle
	}

	b := &Bundle{wire: append([]byte(nil), wire...)}
	s := cryptobyte.String(b.wire)
	var version uint8
	var suite uint16
	var dev, x, ek []byte
	var expiry uint64
	if !s.ReadUint8(&version) || !s.ReadUint16(&suite) || version != protocol.Version || suite != protocol.Suite {
		return nil, errors.New("handshake: the prekey bundle is of another version")
	}
	if !s.ReadBytes(&dev, identity.DeviceSize) || !s.CopyBytes(b.PrekeyID[:]) ||
		!s.ReadUint64(&b.Epoch) || !s.ReadUint64(&expiry) ||
		!s.ReadBytes(&x, 32) || !s.ReadBytes(&ek, mlkem.EncapsulationKeySize1024) {
		return nil, errBundle
	}
	if expiry > math.MaxInt64 {
		return nil, errBundle
	}
	b.Expiry = time.Unix(int64(expiry), 0)
	if !now.Before(b.Expiry) {
		return nil, ErrBundleExpired
	}
	if b.Epoch < minEpoch {
		return nil, ErrBundleOld
	}

	var err error
	if b.Device, err = identity.ParseDevice(dev); err != nil {
		return nil, fmt.Errorf("handshake: the prekey bundle's device: %w", err)
	}
	if b.Device.Hash() != device {
		return nil, errBundle
	}
	if !b.Device.Verify(protocol.LabelPrekey, b.signedMessage(), b.wire[bundleSigned:bundleUnMACked]) {
		return nil, errBundle
	}
	if b.x, err = identity.ParseX25519(x); err != nil {
		return nil, fmt.Errorf("handshake: the prekey bundle: %w", err)
	}
	if b.ek, err = identity.ParseEncapsulationKey(ek); err != nil {
		return nil, fmt.Errorf("handshake: the prekey bundle: %w", err)
	}
	return b, nil
}

// signedMessage is what the device signs: every field before the signature,
// the public keys each with its kind and length, so that neither can be taken
// for the other (docs/spec/handshake.md, section 2).
func (b *Bundle) signedMessage() []byte {
	const keys = bundleSigned - 32 - mlkem.EncapsulationKeySize1024
	hash := b.Device.Hash()
	m := cryptobyte.NewBuilder(make([]byte, 0, BundleSize))
	m.AddUint8(b.wire[0])
	m.AddBytes(b.wire[1:3])
	m.AddUint32(BundleSize)
	m.AddBytes(hash[:])
	m.AddBytes(b.wire[3+identity.DeviceSize : keys]) // prekey id, epoch, expiry
	m.AddUint8(typeX25519)
	m.AddUint16LengthPrefixed(func(m *cryptobyte.Builder) { m.AddBytes(b.wire[keys : keys+32]) })
	m.AddUint8(typeMLKEM1024)
	m.AddUint16LengthPrefixed(func(m *cryptobyte.Builder) { m.AddBytes(b.wire[keys+32 : bundleSigned]) })
	return m.BytesOrPanic()
}

// Marshal returns the bundle as ParseBundle reads it.
func (b *Bundle) Marshal() []byte { return append([]byte(nil), b.wire...) }

// X returns the prekey's X25519 key, which is also the responder's first
// ratchet key.
func (b *Bundle) X() *ecdh.PublicKey { return b.x }

// Format hides the bundle.
func (b *Bundle) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "(bundle)") }
