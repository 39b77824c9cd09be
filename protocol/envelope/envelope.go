// Package envelope implements docs/spec/envelope.md: the one shape in which
// everything travels, by every road, and the tags that say whose it is to the
// recipient and nothing to anybody else.
//
//	envelope = tag 16 ‖ payload
//	payload  = [handshake prefix] ‖ ratchet ciphertext
//
// The length of an envelope is 1024·2^k bytes, k = 0 to 7. There is no version
// and no length on it: the tag alone says which session, and which prefix.
package envelope

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"

	"github.com/kith-im/kith/protocol"
)

// TagSize is the length of a tag.
const TagSize = 16

// A Tag names a session to its recipient. It changes (see Sender), so it is no
// name to a node that carries it.
type Tag [TagSize]byte

// HX2Index is the index of the tag under which the responder's envelopes
// travel while they carry the HX2 prefix. Envelopes without a prefix use
// higher ones.
const HX2Index = 0

// DeriveTag implements docs/spec/envelope.md, section 3. The key is that of
// one direction of one session.
func DeriveTag(key [32]byte, index uint32) Tag {
	var i [4]byte
	binary.BigEndian.PutUint32(i[:], index)
	m := protocol.MAC(key[:], protocol.LabelTag, i[:])
	return Tag(m[:TagSize])
}

// valid reports whether size is on the list of sizes.
func valid(size int) bool {
	return size >= protocol.MinEnvelope && size <= protocol.MaxEnvelope && size&(size-1) == 0
}

// SizeFor is the smallest envelope that takes a payload of n bytes, tag
// included. It fails if there is none.
func SizeFor(n int) (int, error) {
	if n < 0 || n > protocol.MaxEnvelope-TagSize {
		return 0, fmt.Errorf("envelope: a payload of %d bytes fits no envelope", n)
	}
	return max(protocol.MinEnvelope, 1<<bits.Len(uint(n+TagSize-1))), nil
}

// New puts an envelope together. The payload must fill it exactly: the sender
// asks the ratchet for a ciphertext of size − TagSize − len(prefix) bytes, with
// a size from SizeFor.
func New(tag Tag, prefix, ciphertext []byte) ([]byte, error) {
	size := TagSize + len(prefix) + len(ciphertext)
	if !valid(size) {
		return nil, fmt.Errorf("envelope: %d bytes is not a size of envelopes", size)
	}
	b := make([]byte, 0, size)
	b = append(b, tag[:]...)
	b = append(b, prefix...)
	return append(b, ciphertext...), nil
}

var errSize = errors.New("envelope: not a size of envelopes")

// Parse takes an envelope apart. The payload is part of b, not a copy.
func Parse(b []byte) (Tag, []byte, error) {
	if !valid(len(b)) {
		return Tag{}, nil, errSize
	}
	return Tag(b[:TagSize]), b[TagSize:], nil
}
