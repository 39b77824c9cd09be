// Package bundle is what envelopes look like in a file that people carry: on a
// USB stick, in the memory of a phone, or, one at a time, on paper. (A prekey
// bundle, in package handshake, is another thing.)
//
// A file is parts of one size, one after the other, and nothing around them
// (docs/spec/bundle.md):
//
//	part (32,768) = salt 16 | mark 16 | sealed 32,736
//	slip          = salt 16 | mark 16 | sealed 1,056 or 2,080
//
// Each part is sealed for one reader, who finds it by its mark; to everybody
// else parts, and the random bytes that fill a file up to one of few sizes, are
// noise. A part is whole or it is nothing: one that was damaged costs what it
// held and no more.
package bundle

import (
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"math/bits"

	"golang.org/x/crypto/chacha20"
	"golang.org/x/crypto/chacha20poly1305"

	"github.com/kith-im/kith/protocol"
	"github.com/kith-im/kith/protocol/identity"
)

const (
	saltSize = 16
	markSize = 16
	overhead = saltSize + markSize + chacha20poly1305.Overhead

	// slipRoom is what a slip holds beside its envelope: what tells an item's
	// kind and size, and zeros.
	slipRoom = 16
)

type keyRole struct{}

// Key seals parts for one reader.
type Key = protocol.Secret[keyRole]

// The directions of a key (docs/spec/bundle.md, section 2).
const (
	to   = 0
	from = 1
)

// To returns the key of what is sealed for a device, by whoever shares secret
// with it.
func To(secret protocol.CarryKey, device identity.DeviceHash) Key { return key(secret, to, device) }

// From returns the key of what a device seals for all who share secret with it:
// the holders of its invite.
func From(secret protocol.CarryKey, device identity.DeviceHash) Key {
	return key(secret, from, device)
}

func key(secret protocol.CarryKey, direction byte, device identity.DeviceHash) Key {
	return Key(protocol.KDF(secret[:], nil, protocol.LabelBundleKey+string(append([]byte{direction}, device[:]...)), len(Key{})))
}

// ErrDamaged means that a part is for us and is not what was sealed.
var ErrDamaged = errors.New("bundle: a part is damaged")

// Find returns which of the keys a part, or a slip, was sealed under. It costs
// one MAC for each key, whatever the part holds.
func Find(keys []Key, part []byte) (i int, ok bool) {
	if !sized(len(part)) {
		return 0, false
	}
	salt, mark := part[:saltSize], part[saltSize:saltSize+markSize]
	for i, k := range keys {
		m := protocol.MAC(k[:], protocol.LabelBundleMark, salt)
		if subtle.ConstantTimeCompare(m[:markSize], mark) == 1 {
			return i, true
		}
	}
	return 0, false
}

// Open returns what a part, or a slip, holds. The items share no memory with it.
func Open(k Key, part []byte) ([]Item, error) {
	if !sized(len(part)) {
		return nil, ErrDamaged
	}
	content, err := aead(k, part[:saltSize]).Open(nil, make([]byte, chacha20poly1305.NonceSize), part[saltSize+markSize:], nil)
	if err != nil {
		return nil, ErrDamaged
	}
	return ParseContent(content)
}

// seal makes a part of size bytes.
func seal(rand io.Reader, k Key, items []Item, size int) ([]byte, error) {
	content, err := marshalContent(items, size-overhead)
	if err != nil {
		return nil, err
	}
	part := make([]byte, saltSize, size)
	if _, err := io.ReadFull(rand, part); err != nil {
		return nil, fmt.Errorf("seal a part: %w", err)
	}
	mark := protocol.MAC(k[:], protocol.LabelBundleMark, part[:saltSize])
	part = append(part, mark[:markSize]...)
	return aead(k, part[:saltSize]).Seal(part, make([]byte, chacha20poly1305.NonceSize), content, nil), nil
}

// aead is the cipher of one part: its key is used once, because its salt is.
func aead(k Key, salt []byte) interface {
	Seal(dst, nonce, plaintext, ad []byte) []byte
	Open(dst, nonce, ciphertext, ad []byte) ([]byte, error)
} {
	once := protocol.MAC(k[:], protocol.LabelBundlePart, salt)
	c, err := chacha20poly1305.New(once[:])
	if err != nil {
		panic("bundle: " + err.Error()) // the key has its size
	}
	return c
}

// sized says whether a part or a slip can have n bytes.
func sized(n int) bool { return n == protocol.BundlePart || isSlip(n) }

func isSlip(n int) bool {
	envelope := n - overhead - slipRoom
	return envelope >= protocol.MinEnvelope && envelope <= protocol.MaxSlip && envelope&(envelope-1) == 0
}

// Packer fills parts for one reader, in the order of what it is given.
type Packer struct {
	rand  io.Reader
	key   Key
	items []Item
	used  int
}

// NewPacker returns a packer that seals under a key, with salts from rand.
func NewPacker(rand io.Reader, k Key) *Packer { return &Packer{rand: rand, key: k} }

// Needs returns how many parts are begun if items are added now.
func (p *Packer) Needs(items []Item) (parts int) {
	used, empty := p.used, len(p.items) == 0
	for _, it := range items {
		if empty || used+it.size() > contentSize {
			parts, used, empty = parts+1, 0, false
		}
		used += it.size()
	}
	return parts
}

// Open returns how many parts are being filled: 1 or, if nothing was added, 0.
func (p *Packer) Open() int { return min(len(p.items), 1) }

// Add puts an item into the part that is being filled, and returns the part
// before it if that had no room left.
func (p *Packer) Add(it Item) (full []byte, err error) {
	if p.used+it.size() > contentSize {
		if full, err = p.Flush(); err != nil {
			return nil, err
		}
	}
	p.items = append(p.items, it)
	p.used += it.size()
	return full, nil
}

// Flush returns the part that is being filled; nil if nothing is in it.
func (p *Packer) Flush() ([]byte, error) {
	if len(p.items) == 0 {
		return nil, nil
	}
	part, err := seal(p.rand, p.key, p.items, protocol.BundlePart)
	if err != nil {
		return nil, err
	}
	p.items, p.used = nil, 0
	return part, nil
}

// Padding returns how many parts of random bytes a file of n parts lacks.
func Padding(n int) int {
	if n == 0 {
		return 0
	}
	return 1<<bits.Len(uint(n-1)) - n
}

// MaxParts returns how many parts the largest file of at most size bytes has; 0
// if there is none.
func MaxParts(size int64) int {
	n := min(size, protocol.MaxBundle) / protocol.BundlePart
	if n < 1 {
		return 0
	}
	return 1 << (bits.Len64(uint64(n)) - 1)
}

// IsSize says whether a whole file can have size bytes.
func IsSize(size int64) bool {
	return size > 0 && size <= protocol.MaxBundle && int64(MaxParts(size))*protocol.BundlePart == size
}

// Noise makes what fills a file up: as long as a part, and like one to everybody.
func Noise(rand io.Reader) ([]byte, error) {
	var k [chacha20.KeySize]byte
	if _, err := io.ReadFull(rand, k[:]); err != nil {
		return nil, fmt.Errorf("make noise: %w", err)
	}
	c, err := chacha20.NewUnauthenticatedCipher(k[:], make([]byte, chacha20.NonceSize))
	if err != nil {
		return nil, fmt.Errorf("make noise: %w", err)
	}
	part := make([]byte, protocol.BundlePart)
	c.XORKeyStream(part, part)
	return part, nil
}
