// Package lan is the packet by which devices on one local network recognise
// each other (docs/spec/lan.md).
//
//	packet (1212 bytes) = nonce 12 | 20 × (tag 8 | sealed 52)
//
// Each slot is for one device that shares a rendezvous secret with the sender;
// the slots that are left over are random. To everybody else all packets are
// random bytes of one size, and no two of them have anything in common.
package lan

import (
	"crypto/cipher"
	"crypto/subtle"
	"encoding/base32"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/kith-im/kith/protocol"
	"github.com/kith-im/kith/protocol/identity"
	"golang.org/x/crypto/chacha20poly1305"
	"golang.org/x/crypto/cryptobyte"
)

// Slots is how many devices one packet can speak to.
const Slots = protocol.LANSlots

const (
	nonceSize = chacha20poly1305.NonceSize
	tagSize   = 8
	hereSize  = 32 + 2 + 2
	slotSize  = tagSize + hereSize + chacha20poly1305.Overhead
)

// PacketSize is the size of every packet, in bytes.
const PacketSize = nonceSize + Slots*slotSize

// Source is the address that a packet is sent from: IPv6, or IPv4 mapped into it
// (RFC 4291, section 2.5.5.2), without a zone.
type Source [16]byte

// Here says where the sender can be reached, at the address that its packet
// comes from.
type Here struct {
	Peer [32]byte // the Ed25519 key of its transport
	TCP  uint16   // port; 0: it takes no TCP
	QUIC uint16   // UDP port; 0: it takes no QUIC
}

// Epoch returns the number of the epoch in which t lies: two hours, from 1
// January 1970 UTC. A reader tries its own epoch and the two beside it.
func Epoch(t time.Time) int64 {
	const length = int64(protocol.LANEpoch / time.Second)
	epoch := t.Unix() / length
	if t.Unix()%length < 0 {
		epoch--
	}
	return epoch
}

type (
	tagRole  struct{}
	sealRole struct{}
)

// Key marks and seals the slots of one sender for one reader in one epoch.
type Key struct {
	tag  protocol.Secret[tagRole]
	seal protocol.Secret[sealRole]
}

// Derive returns the key of what the publisher says to the holders of a
// rendezvous secret (docs/spec/lan.md, section 2).
func Derive(secret protocol.RendezvousSecret, publisher identity.DeviceHash, epoch int64) Key {
	info := append([]byte(protocol.LabelLAN), publisher[:]...)
	return newKey(secret[:], binary.BigEndian.AppendUint64(info, uint64(epoch)))
}

// DeriveOpen returns the key of what a community node says to everybody. It is
// no secret.
func DeriveOpen(epoch int64) Key {
	return newKey(nil, binary.BigEndian.AppendUint64([]byte(protocol.LabelLANOpen), uint64(epoch)))
}

func newKey(secret, info []byte) (key Key) {
	k := protocol.KDF(secret, nil, string(info), len(key.tag)+len(key.seal))
	copy(key.tag[:], k)
	copy(key.seal[:], k[len(key.tag):])
	return key
}

// RecordName is the protocol name under which the publisher hands its rendezvous
// record to a holder of the stream key who sees it on the local network
// (docs/spec/lan.md, section 5). day is as in rendezvous.Day.
func RecordName(key protocol.StreamKey, day int64) string {
	m := protocol.MAC(key[:], protocol.LabelLANRecord, binary.BigEndian.AppendUint64(nil, uint64(day)))
	return "/" + strings.ToLower(base32.StdEncoding.EncodeToString(m[:20]))
}

// Format hides the key.
func (k Key) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "(key)") }

var errTooMany = errors.New("lan: more keys than a packet has slots")

// Seal makes a packet that will be sent from source, for at most Slots keys. It
// is bound to the source: nobody can send it again from elsewhere and be called
// in the sender's place.
// It draws the nonce, the order of the slots and what fills the rest from rand.
func Seal(rand io.Reader, source Source, here Here, keys []Key) ([]byte, error) {
	if len(keys) > Slots {
		return nil, errTooMany
	}
	plain, err := here.marshal()
	if err != nil {
		return nil, err
	}
	packet := make([]byte, PacketSize)
	if _, err := io.ReadFull(rand, packet); err != nil {
		return nil, fmt.Errorf("lan: %w", err)
	}
	order, err := shuffled(rand)
	if err != nil {
		return nil, err
	}
	nonce := packet[:nonceSize]
	for i, k := range keys {
		at := nonceSize + order[i]*slotSize
		tag := k.tagOf(nonce)
		copy(packet[at:], tag[:])
		k.aead().Seal(packet[at+tagSize:at+tagSize], nonce, plain, source[:])
	}
	return packet, nil
}

// shuffled draws an order of the slots (Fisher and Yates). The bias of a
// remainder of 64 bits is below 2^-59.
func shuffled(rand io.Reader) (order [Slots]int, err error) {
	var draws [Slots * 8]byte
	if _, err := io.ReadFull(rand, draws[:]); err != nil {
		return order, fmt.Errorf("lan: %w", err)
	}
	for i := range order {
		j := int(binary.BigEndian.Uint64(draws[i*8:]) % uint64(i+1))
		order[i], order[j] = order[j], i
	}
	return order, nil
}

// Open looks in a packet that came from source for what the key's publisher
// says. ok is false if there is nothing, which says nothing about who sent it.
func (k Key) Open(packet []byte, source Source) (here Here, ok bool) {
	if len(packet) != PacketSize {
		return Here{}, false
	}
	nonce := packet[:nonceSize]
	tag := k.tagOf(nonce)
	for at := nonceSize; at < PacketSize; at += slotSize {
		if subtle.ConstantTimeCompare(packet[at:at+tagSize], tag[:]) == 0 {
			continue
		}
		plain, err := k.aead().Open(nil, nonce, packet[at+tagSize:at+slotSize], source[:])
		if err != nil {
			continue
		}
		here, err := parseHere(plain)
		return here, err == nil
	}
	return Here{}, false
}

// tagOf is fresh for every packet: a tag that came back would tell a listener
// how many slots are real, and follow a machine that changes its addresses.
func (k Key) tagOf(nonce []byte) [tagSize]byte {
	m := protocol.MAC(k.tag[:], protocol.LabelLANTag, nonce)
	return [tagSize]byte(m[:])
}

func (k Key) aead() cipher.AEAD {
	a, err := chacha20poly1305.New(k.seal[:])
	if err != nil {
		panic("lan: " + err.Error()) // the key is not 32 bytes
	}
	return a
}

var errHere = errors.New("lan: the place is malformed")

func (h Here) marshal() ([]byte, error) {
	if err := h.check(); err != nil {
		return nil, err
	}
	w := cryptobyte.NewFixedBuilder(make([]byte, 0, hereSize))
	w.AddBytes(h.Peer[:])
	w.AddUint16(h.TCP)
	w.AddUint16(h.QUIC)
	return w.Bytes()
}

func parseHere(b []byte) (h Here, err error) {
	s := cryptobyte.String(b)
	if !s.CopyBytes(h.Peer[:]) || !s.ReadUint16(&h.TCP) || !s.ReadUint16(&h.QUIC) || !s.Empty() {
		return Here{}, errHere
	}
	return h, h.check()
}

func (h Here) check() error {
	if h.TCP == 0 && h.QUIC == 0 || identity.CheckEd25519(h.Peer[:]) != nil {
		return errHere
	}
	return nil
}
