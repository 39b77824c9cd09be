package identity

import (
	"crypto/ecdh"
	"crypto/ed25519"
	"crypto/mlkem"
	"errors"
	"fmt"
	"io"

	"github.com/kith-im/kith/protocol"
)

// DeviceSize is the length of a marshalled Device.
const DeviceSize = 32 + 32 + 32 + mlkem.EncapsulationKeySize1024

// Device is a device's public identity. It is immutable, and its keys were
// checked when it was made: canonical, of large order, and in range.
type Device struct {
	wire [DeviceSize]byte
	hash DeviceHash
	x    *ecdh.PublicKey
	ek   *mlkem.EncapsulationKey1024
}

// ParseDevice reads a device identity (docs/spec/identity.md, section 3). The
// account in it is a claim; see DeviceList.
func ParseDevice(b []byte) (*Device, error) {
	if len(b) != DeviceSize {
		return nil, errors.New("identity: a device identity has a fixed size")
	}
	d := &Device{wire: [DeviceSize]byte(b)}
	if err := CheckEd25519(d.wire[:32]); err != nil {
		return nil, fmt.Errorf("account key: %w", err)
	}
	if err := CheckEd25519(d.wire[32:64]); err != nil {
		return nil, fmt.Errorf("device signing key: %w", err)
	}
	var err error
	if d.x, err = ParseX25519(d.wire[64:96]); err != nil {
		return nil, fmt.Errorf("device agreement key: %w", err)
	}
	if d.ek, err = ParseEncapsulationKey(d.wire[96:]); err != nil {
		return nil, fmt.Errorf("device encapsulation key: %w", err)
	}
	d.seal()
	return d, nil
}

func (d *Device) seal() {
	h := protocol.Hash(protocol.LabelDevice, d.wire[:])
	d.hash = DeviceHash(h[:32])
}

// Marshal returns the DeviceSize bytes of the identity.
func (d *Device) Marshal() []byte { return append([]byte(nil), d.wire[:]...) }

// Hash returns the device's identity hash.
func (d *Device) Hash() DeviceHash { return d.hash }

// Account returns the account that the device claims to belong to.
func (d *Device) Account() AccountPublic { return AccountPublic(d.wire[:32]) }

// X returns the X25519 key.
func (d *Device) X() *ecdh.PublicKey { return d.x }

// EncapsulationKey returns the ML-KEM-1024 key.
func (d *Device) EncapsulationKey() *mlkem.EncapsulationKey1024 { return d.ek }

// Verify checks a signature by the device over a label and a message.
func (d *Device) Verify(label string, message, signature []byte) bool {
	return verify(d.wire[32:64], label, message, signature)
}

// SharesKey reports whether two devices have any key of a device in common.
// Honest devices never do: it is a reflection, or a copy with one key changed.
func (d *Device) SharesKey(other *Device) bool {
	return [32]byte(d.wire[32:64]) == [32]byte(other.wire[32:64]) ||
		[32]byte(d.wire[64:96]) == [32]byte(other.wire[64:96]) ||
		[mlkem.EncapsulationKeySize1024]byte(d.wire[96:]) == [mlkem.EncapsulationKeySize1024]byte(other.wire[96:])
}

// Format hides the identity.
func (d *Device) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, d.hash.String()) }

// DeviceKeySize is the length of a marshalled DeviceKey:
// acct 32 | d.ed seed 32 | d.x 32 | d.k seed 64.
const DeviceKeySize = 32 + 32 + 32 + mlkem.SeedSize

// DeviceKey is a device's private keys, with its public identity.
type DeviceKey struct {
	ed     ed25519.PrivateKey
	x      *ecdh.PrivateKey
	kem    *mlkem.DecapsulationKey1024
	public *Device
}

// NewDeviceKey makes the keys of a device of the account from 128 bytes of rand.
func NewDeviceKey(rand io.Reader, account AccountPublic) (*DeviceKey, error) {
	b := make([]byte, DeviceKeySize)
	copy(b, account[:])
	if _, err := io.ReadFull(rand, b[32:]); err != nil {
		return nil, fmt.Errorf("make device keys: %w", err)
	}
	return UnmarshalDeviceKey(b)
}

// UnmarshalDeviceKey restores what Marshal returned.
func UnmarshalDeviceKey(b []byte) (*DeviceKey, error) {
	if len(b) != DeviceKeySize {
		return nil, errors.New("identity: a device key has a fixed size")
	}
	x, err := ecdh.X25519().NewPrivateKey(b[64:96])
	if err != nil {
		return nil, fmt.Errorf("restore a device key: %w", err)
	}
	kem, err := mlkem.NewDecapsulationKey1024(b[96:])
	if err != nil {
		return nil, fmt.Errorf("restore a device key: %w", err)
	}
	k := &DeviceKey{
		ed:     ed25519.NewKeyFromSeed(b[32:64]),
		x:      x,
		kem:    kem,
		public: &Device{x: x.PublicKey(), ek: kem.EncapsulationKey()},
	}
	w := append(k.public.wire[:0], b[:32]...)
	w = append(w, k.ed.Public().(ed25519.PublicKey)...)
	w = append(w, x.PublicKey().Bytes()...)
	_ = append(w, kem.EncapsulationKey().Bytes()...)
	k.public.seal()
	return k, nil
}

// Marshal returns the private keys, for sealed storage.
func (k *DeviceKey) Marshal() []byte {
	b := make([]byte, 0, DeviceKeySize)
	b = append(b, k.public.wire[:32]...)
	b = append(b, k.ed.Seed()...)
	b = append(b, k.x.Bytes()...)
	return append(b, k.kem.Bytes()...)
}

// Public returns the device's public identity.
func (k *DeviceKey) Public() *Device { return k.public }

// Hash returns the device's identity hash.
func (k *DeviceKey) Hash() DeviceHash { return k.public.hash }

// Sign signs a label and a message. Only prekeys are signed with this key, and
// nothing that people write (docs/spec/identity.md, section 1).
func (k *DeviceKey) Sign(label string, message []byte) []byte {
	return sign(k.ed, label, message)
}

// DH is the X25519 function on the device's key.
func (k *DeviceKey) DH(peer *ecdh.PublicKey) ([]byte, error) { return k.x.ECDH(peer) }

// Decapsulate opens an ML-KEM-1024 ciphertext to the device's key. A ciphertext
// that was made for another key yields a secret that nobody knows, not an error.
func (k *DeviceKey) Decapsulate(ciphertext []byte) ([]byte, error) {
	return k.kem.Decapsulate(ciphertext)
}

// Format hides the keys.
func (k *DeviceKey) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "(device key)") }
