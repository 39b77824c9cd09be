// Package rendezvous says where a device leaves word of itself, day by day, for
// one contact or for the holders of one invite: points of a distributed hash
// table that only they can compute, and the sealed record found there.
// docs/spec/rendezvous.md is its specification.
//
//	record (4096 bytes) = ver 1 | pub 32 | seq 8 | expiry 8 | nonce 12 | sealed body | signature 64
//
// To everybody else a record is a one-off key and random bytes, of one size.
package rendezvous

import (
	"crypto/cipher"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"time"

	"github.com/kith-im/kith/protocol"
	"github.com/kith-im/kith/protocol/identity"
	"golang.org/x/crypto/chacha20poly1305"
)

// Points is how many independent points carry the same record: a censor who
// finds one has gained nothing.
const Points = 3

const (
	recordVersion = 1
	pubAt         = 1
	seqAt         = pubAt + 32
	expiryAt      = seqAt + 8
	nonceAt       = expiryAt + 8
	sealedAt      = nonceAt + chacha20poly1305.NonceSize
	signatureAt   = protocol.RecordSize - ed25519.SignatureSize

	secondsPerDay  = 24 * 60 * 60
	secondsPerHour = 60 * 60
)

// Day returns the number of the UTC day of t, from 1 January 1970.
func Day(t time.Time) int64 {
	day := t.Unix() / secondsPerDay
	if t.Unix()%secondsPerDay < 0 {
		day--
	}
	return day
}

type sealRole struct{}

// Point is one place where a record may be, with the keys to write and to read
// it. Both sides of the secret can write; what is sealed inside authenticates
// itself.
type Point struct {
	key  ed25519.PrivateKey
	seal protocol.Secret[sealRole]
}

// Derive returns the points where the publisher leaves its records on the day
// (docs/spec/rendezvous.md, section 2).
func Derive(secret protocol.RendezvousSecret, publisher identity.DeviceHash, day int64) [Points]Point {
	var points [Points]Point
	for i := range points {
		info := append([]byte(protocol.LabelPoint), publisher[:]...)
		info = binary.BigEndian.AppendUint64(info, uint64(day))
		info = append(info, byte(i))
		k := protocol.KDF(secret[:], nil, string(info), ed25519.SeedSize+32)
		points[i].key = ed25519.NewKeyFromSeed(k[:ed25519.SeedSize])
		copy(points[i].seal[:], k[ed25519.SeedSize:])
	}
	return points
}

// Key returns the point's key in the hash table: SHA-256 of its public key.
func (p Point) Key() [32]byte { return sha256.Sum256(p.key[ed25519.SeedSize:]) }

// Format hides the point.
func (p Point) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "(point)") }

// Seal makes a record. seq must rise with every record at the point, and starts
// low: it is public, so it must not be a clock. Expiry is rounded up to a whole
// hour, for the same reason.
func (p Point) Seal(seq uint64, expiry time.Time, body Body) ([]byte, error) {
	plain, err := body.Marshal()
	if err != nil {
		return nil, err
	}
	hours := (expiry.Unix() + secondsPerHour - 1) / secondsPerHour
	if hours < 0 {
		return nil, errors.New("rendezvous: the expiry is out of range")
	}
	record := make([]byte, 0, protocol.RecordSize)
	record = append(record, recordVersion)
	record = append(record, p.key[ed25519.SeedSize:]...)
	record = binary.BigEndian.AppendUint64(record, seq)
	record = binary.BigEndian.AppendUint64(record, uint64(hours*secondsPerHour))
	record = append(record, p.nonce(record, plain)...)
	record = p.aead().Seal(record, record[nonceAt:sealedAt], plain, record[:nonceAt])
	return append(record, ed25519.Sign(p.key, signedMessage(record))...), nil
}

// Open validates and reads a record of this point.
func (p Point) Open(record []byte, now time.Time) (body Body, seq uint64, err error) {
	key := p.Key()
	if err := Validate(key[:], record, now); err != nil {
		return Body{}, 0, err
	}
	nonce := record[nonceAt:sealedAt]
	plain, err := p.aead().Open(nil, nonce, record[sealedAt:signatureAt], record[:nonceAt])
	if err != nil || !hmac.Equal(nonce, p.nonce(record[:nonceAt], plain)) {
		return Body{}, 0, errRecord
	}
	if err := body.unmarshal(plain); err != nil {
		return Body{}, 0, err
	}
	return body, binary.BigEndian.Uint64(record[seqAt:]), nil
}

// nonce is synthetic, so that no state of the writer has to be trusted: other
// content never meets the same nonce.
func (p Point) nonce(head, plain []byte) []byte {
	m := protocol.MAC(p.seal[:], protocol.LabelRecordNonce, head, plain)
	return m[:chacha20poly1305.NonceSize]
}

func (p Point) aead() cipher.AEAD {
	a, err := chacha20poly1305.New(p.seal[:])
	if err != nil {
		panic("rendezvous: " + err.Error()) // the key is not 32 bytes
	}
	return a
}

func signedMessage(unsigned []byte) []byte {
	return append([]byte(protocol.LabelRecord), unsigned...)
}

var errRecord = errors.New("rendezvous: the record is not valid")

// ErrExpired means that a record's time is over.
var ErrExpired = errors.New("rendezvous: the record has expired")

// Validate checks a record as anyone can who holds the hash table's key: size
// first, signature last (docs/spec/rendezvous.md, section 5).
func Validate(key, record []byte, now time.Time) error {
	if len(record) != protocol.RecordSize || record[0] != recordVersion {
		return errRecord
	}
	expiry := binary.BigEndian.Uint64(record[expiryAt:])
	if expiry > math.MaxInt64 || expiry%secondsPerHour != 0 {
		return errRecord
	}
	end := time.Unix(int64(expiry), 0)
	if !now.Before(end) {
		return ErrExpired
	}
	if end.After(now.Add(protocol.MaxRecordLife)) {
		return errRecord
	}
	pub := record[pubAt:seqAt]
	if sum := sha256.Sum256(pub); string(key) != string(sum[:]) {
		return errRecord
	}
	if identity.CheckEd25519(pub) != nil ||
		!ed25519.Verify(pub, signedMessage(record[:signatureAt]), record[signatureAt:]) {
		return errRecord
	}
	return nil
}

// Select returns the index of the record to keep: the highest seq, and the
// first of several, so that identical records may be published again. It
// returns an error if there is none. The records must have been validated.
func Select(records [][]byte) (int, error) {
	best, bestSeq := -1, uint64(0)
	for i, r := range records {
		if len(r) != protocol.RecordSize {
			continue
		}
		if seq := binary.BigEndian.Uint64(r[seqAt:]); best < 0 || seq > bestSeq {
			best, bestSeq = i, seq
		}
	}
	if best < 0 {
		return 0, errors.New("rendezvous: no record to select")
	}
	return best, nil
}
