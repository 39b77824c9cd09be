// Package message implements docs/spec/message.md: what people say to each
// other, and what their devices say on their behalf, as the plaintext of a
// session.
//
//	message = conversation 32 ‖ seq 8 ‖ prev 32 ‖ parents 1 + 32n ‖ depth 8 ‖
//	          time 8 ‖ kind 2 ‖ length 3 ‖ content
//
// Encodings are canonical: what Decode accepts, Encode gives back. Nothing here
// looks at whether a message makes sense in its conversation; that needs a
// history, and the node has it.
package message

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"golang.org/x/crypto/cryptobyte"

	"github.com/kith-im/kith/protocol"
	"github.com/kith-im/kith/protocol/identity"
)

// An ID names a message. It is a hash of the author's device and of every byte
// of the message, so nobody chooses it and no two messages share one.
type ID [32]byte

// NewID is the id of an encoded message by a device (docs/spec/message.md,
// section 3).
func NewID(author identity.DeviceHash, encoded []byte) ID {
	h := protocol.Hash(protocol.LabelMessage, author[:], encoded)
	return ID(h[:32])
}

// IsZero reports whether id names nothing.
func (id ID) IsZero() bool { return id == ID{} }

// String hides the value: ids do not belong in logs.
func (ID) String() string { return "(message)" }

// Format hides the value under every verb.
func (id ID) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, id.String()) }

// A ConversationID names a conversation.
type ConversationID [32]byte

// ConversationOf is the conversation of two accounts; either may come first
// (docs/spec/message.md, section 3).
func ConversationOf(a, b identity.AccountPublic) ConversationID {
	if bytes.Compare(a[:], b[:]) > 0 {
		a, b = b, a
	}
	h := protocol.Hash(protocol.LabelConversation, a[:], b[:])
	return ConversationID(h[:32])
}

// String hides the value: ids do not belong in logs.
func (ConversationID) String() string { return "(conversation)" }

// Format hides the value under every verb.
func (c ConversationID) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, c.String()) }

// A Message is one message of one device.
//
// Messages that are part of the history (Kind.Historical) have a Seq from 1 on,
// one sequence for each device and conversation, and say what came before. The
// others have Seq, Prev, Parents and Depth zero: they are true when they
// arrive, and nobody misses one.
type Message struct {
	Conversation ConversationID
	Seq          uint64
	Prev         ID     // the device's message Seq−1; zero for Seq 1
	Parents      []ID   // newest messages of others that the device has seen, ascending
	Depth        uint64 // see NextDepth
	Time         uint64 // unix milliseconds by the sender's clock: shown, never trusted
	Content      Content
}

const (
	// MaxDepth bounds Depth and Seq. No conversation reaches it; a peer that
	// claims it cannot make the next depth overflow.
	MaxDepth = 1 << 40

	// maxTime is the end of the year 9999, the last that date formats take.
	maxTime = 253402300799999
)

// NextDepth is the depth of a message whose predecessors, the sender's previous
// message and the parents, have the given depths: one more than the highest.
// Ordered by depth, author and seq, a set of messages has one order everywhere,
// and a message stands after all that its author had seen.
func NextDepth(before ...uint64) uint64 {
	var highest uint64
	for _, d := range before {
		highest = max(highest, d)
	}
	return min(highest, MaxDepth-1) + 1
}

// Format hides the message under every verb: text does not belong in logs.
func (Message) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "(message)") }

// Kind says what a message's content is.
func (m *Message) Kind() Kind { return m.Content.Kind() }

// valid checks what section 2 of docs/spec/message.md demands of the fields
// around the content.
func (m *Message) valid() error {
	switch {
	case m.Time > maxTime:
		return errors.New("message: time is out of range")
	case m.Seq > MaxDepth, m.Depth > MaxDepth, len(m.Parents) > protocol.MaxParents:
		return errors.New("message: place in the history is out of range")
	case m.Seq == 0 && (!m.Prev.IsZero() || len(m.Parents) > 0 || m.Depth != 0):
		return errors.New("message: has predecessors but no sequence number")
	case m.Seq > 0 && (m.Depth == 0 || m.Prev.IsZero() != (m.Seq == 1)):
		return errors.New("message: has a sequence number but no place after its predecessor")
	}
	if info := m.Kind().info(); info.known && info.historical != (m.Seq > 0) {
		return fmt.Errorf("message: %v with sequence number %d", m.Kind(), m.Seq)
	}
	if !ascending(m.Parents) {
		return errors.New("message: parents are not in order")
	}
	return nil
}

// Encode is the canonical encoding. It refuses a message that Decode would
// refuse.
func (m *Message) Encode() ([]byte, error) {
	if m.Content == nil {
		return nil, errors.New("message: no content")
	}
	if err := m.valid(); err != nil {
		return nil, err
	}
	if err := m.Content.valid(); err != nil {
		return nil, err
	}
	b := cryptobyte.NewBuilder(nil)
	b.AddBytes(m.Conversation[:])
	b.AddUint64(m.Seq)
	b.AddBytes(m.Prev[:])
	b.AddUint8(uint8(len(m.Parents)))
	for i := range m.Parents {
		b.AddBytes(m.Parents[i][:])
	}
	b.AddUint64(m.Depth)
	b.AddUint64(m.Time)
	b.AddUint16(uint16(m.Kind()))
	b.AddUint24LengthPrefixed(m.Content.marshal)
	return b.Bytes()
}

var errForm = errors.New("message: wrong form")

// Decode reads one message. Content of a kind that this version does not know
// comes out as Unknown.
func Decode(b []byte) (*Message, error) {
	in := cryptobyte.String(b)
	m := new(Message)
	var kind uint16
	var content cryptobyte.String
	if !in.CopyBytes(m.Conversation[:]) || !in.ReadUint64(&m.Seq) || !in.CopyBytes(m.Prev[:]) ||
		!readParents(&in, &m.Parents) || !in.ReadUint64(&m.Depth) || !in.ReadUint64(&m.Time) ||
		!in.ReadUint16(&kind) || !in.ReadUint24LengthPrefixed(&content) || !in.Empty() {
		return nil, errForm
	}
	var ok bool
	if m.Content, ok = Kind(kind).info().unmarshal(Kind(kind), content); !ok {
		return nil, errForm
	}
	if err := m.Content.valid(); err != nil {
		return nil, err
	}
	if err := m.valid(); err != nil {
		return nil, err
	}
	return m, nil
}

func readParents(in *cryptobyte.String, parents *[]ID) bool {
	var n uint8
	return in.ReadUint8(&n) && n <= protocol.MaxParents && readIDs(in, int(n), parents)
}

// readIDs reads n ids; the caller has capped n.
func readIDs(in *cryptobyte.String, n int, ids *[]ID) bool {
	if len(*in) < n*len(ID{}) {
		return false
	}
	if n > 0 {
		*ids = make([]ID, n)
	}
	for i := range *ids {
		in.CopyBytes((*ids)[i][:])
	}
	return true
}

// ascending reports whether ids are in strictly ascending order, none zero.
func ascending(ids []ID) bool {
	var last ID
	for i := range ids {
		if bytes.Compare(ids[i][:], last[:]) <= 0 {
			return false
		}
		last = ids[i]
	}
	return true
}
