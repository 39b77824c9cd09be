// Package errand is what a device and a community node say to each other when
// the node does for the device what the device may not do itself
// (docs/spec/errand.md): in a censored network it can dial bridges alone, and
// elsewhere it may prefer that nobody else sees what it looks for.
//
//	client → node   Find Announce Carry
//	node → client   Records Kept Carried, or Refused
//
// Requests are answered in their order, one at a time. The node is trusted with
// nothing but its silence: what it brings is checked by who asked.
package errand

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"time"

	"golang.org/x/crypto/cryptobyte"

	"github.com/kith-im/kith/protocol"
)

// Protocol is the name of the libp2p protocol.
const Protocol = "/lan/errand/1.0.0"

// MaxKeys bounds the keys of one Find: the points of one day.
const MaxKeys = 3

// maxMail is the longest frame of a mailbox that is carried, its length
// included: a deposit.
const maxMail = protocol.FrameLengthSize + 1 + protocol.MaxEnvelope

// The longest frames of either side, type and body. A node sets MaxRequest aside for
// each stream before it reads.
const (
	MaxRequest = 1 + 1 + protocol.MaxAddress + maxMail
	maxAnswer  = 1 + MaxKeys*(1+protocol.RecordSize)
)

// maxMailAnswer is the longest answer of a mailbox that is carried back: a
// receipt, with room for later versions.
const maxMailAnswer = 256

// Key names a record in the table (docs/spec/rendezvous.md, section 2).
type Key [32]byte

// Type says what a frame is.
type Type uint8

// The frames of docs/spec/errand.md, section 3. A node never sends a type below
// 64, a client never one from there on.
const (
	TypeFind     Type = 1
	TypeAnnounce Type = 2
	TypeCarry    Type = 3

	TypeRecords Type = 64
	TypeKept    Type = 65
	TypeCarried Type = 66
	TypeRefused Type = 67
)

// firstAnswer is where the types of a node's frames begin.
const firstAnswer = TypeRecords

// Frame is one of the frame types below.
type Frame interface {
	Type() Type
	marshal(b []byte) []byte
	unmarshal(in *cryptobyte.String) bool
	valid() bool
}

// Find asks for the newest valid record under each key. The answer is Records.
type Find struct {
	Keys []Key // 1 to MaxKeys, each once
}

// Records holds what was found. Keys that nothing was found under are left out.
type Records struct {
	Records []Record // at most one for each key, in the order of the keys
}

// Record is the record under one key.
type Record struct {
	Index uint8  // of the key in Find
	Value []byte // protocol.RecordSize bytes
}

// Announce asks the node to leave a record with those that are nearest to it.
// The answer is Kept.
type Announce struct {
	Key    Key
	Record []byte // protocol.RecordSize bytes
}

// Kept says what became of an announcement: how many nodes were asked to keep
// it, said that they do, and gave it back.
type Kept struct {
	Asked, Stored, Confirmed uint8
}

// Carry asks the node to bring one request of a mailbox (docs/spec/mailbox.md,
// section 3) to another node. Only Deposit and Audit are carried: whatever
// answers them is signed by, or provable to, nobody but the two ends.
type Carry struct {
	Address []byte // of the node: a binary multiaddr that ends in /p2p
	Mail    []byte // the request, one frame with its length
}

// Carried is the mailbox's answer.
type Carried struct {
	Mail []byte // one frame with its length
}

// Refusal is why a request is not met.
type Refusal uint8

// The refusals of docs/spec/errand.md, section 4.
const (
	RefusedBusy        Refusal = 1 // too much at one time: ask again later, or elsewhere
	RefusedLimit       Refusal = 2 // too much from one place
	RefusedUnreachable Refusal = 3 // of Carry: the node named does not answer
	RefusedInvalid     Refusal = 4 // the record, address or request is not one that is carried
)

// Refused says that a request is not met.
type Refused struct {
	Why   Refusal
	After time.Duration // ask again not before; whole seconds
}

// AppendFrame appends a frame to dst. It panics if the frame could not be read
// back.
func AppendFrame(dst []byte, f Frame) []byte {
	start := len(dst)
	dst = append(dst, make([]byte, protocol.FrameLengthSize)...)
	dst = append(dst, byte(f.Type()))
	dst = f.marshal(dst)
	frame := dst[start+protocol.FrameLengthSize:]
	if !f.Type().fits(len(frame)-1) || !f.valid() {
		panic(fmt.Sprintf("errand: a frame of type %d that cannot be read back", f.Type()))
	}
	if n := binary.PutUvarint(dst[start:], uint64(len(frame))); n < protocol.FrameLengthSize {
		copy(dst[start+n:], frame)
		dst = dst[:start+n+len(frame)]
	}
	return dst
}

// ReadRequest reads a frame of a client, and ReadAnswer one of a node. They
// return io.EOF if the stream ended before a frame began, io.ErrUnexpectedEOF if
// within one, and protocol.ErrFrame for what no honest side sends. Memory grows
// only with what arrived; what a frame holds shares it.
func ReadRequest(r *bufio.Reader) (Frame, error) {
	return readFrame(r, MaxRequest, func(t Type) bool { return t < firstAnswer })
}

// ReadAnswer reads a frame of a node; see ReadRequest.
func ReadAnswer(r *bufio.Reader) (Frame, error) {
	return readFrame(r, maxAnswer, func(t Type) bool { return t >= firstAnswer })
}

func readFrame(r *bufio.Reader, limit int, sent func(Type) bool) (Frame, error) {
	length, err := protocol.ReadFrameLength(r, limit)
	if err != nil {
		return nil, err
	}
	b, err := r.ReadByte()
	if err != nil {
		return nil, protocol.MidFrame(err)
	}
	t := Type(b)
	if !sent(t) || !t.fits(length-1) {
		return nil, protocol.ErrFrame
	}
	body, err := protocol.ReadFrameBody(r, length-1)
	if err != nil {
		return nil, err
	}
	f := t.frame()
	in := cryptobyte.String(body)
	if !f.unmarshal(&in) || !in.Empty() || !f.valid() {
		return nil, protocol.ErrFrame
	}
	return f, nil
}

// fits reports whether a frame of the type may have a body of n bytes. It is
// known before memory is taken for the body.
func (t Type) fits(n int) bool {
	switch t {
	case TypeFind:
		return n >= len(Key{}) && n <= MaxKeys*len(Key{}) && n%len(Key{}) == 0
	case TypeAnnounce:
		return n == len(Key{})+protocol.RecordSize
	case TypeCarry:
		return n >= 1+1+1 && n < MaxRequest
	case TypeRecords:
		return n >= 0 && n <= MaxKeys*(1+protocol.RecordSize) && n%(1+protocol.RecordSize) == 0
	case TypeKept:
		return n == 3
	case TypeCarried:
		return n >= 1 && n <= maxMailAnswer
	case TypeRefused:
		return n == 1+2
	}
	return false
}

// frame returns an empty frame of a type that fits has passed.
func (t Type) frame() Frame {
	switch t {
	case TypeFind:
		return new(Find)
	case TypeAnnounce:
		return new(Announce)
	case TypeCarry:
		return new(Carry)
	case TypeRecords:
		return new(Records)
	case TypeKept:
		return new(Kept)
	case TypeCarried:
		return new(Carried)
	case TypeRefused:
		return new(Refused)
	}
	panic(fmt.Sprintf("errand: no frame of type %d", t))
}

// Type is TypeFind.
func (*Find) Type() Type { return TypeFind }

func (f *Find) marshal(b []byte) []byte {
	for _, k := range f.Keys {
		b = append(b, k[:]...)
	}
	return b
}

func (f *Find) unmarshal(in *cryptobyte.String) bool {
	for !in.Empty() {
		var k Key
		if !in.CopyBytes(k[:]) {
			return false
		}
		f.Keys = append(f.Keys, k)
	}
	return true
}

func (f *Find) valid() bool {
	for i, k := range f.Keys {
		for _, other := range f.Keys[:i] {
			if k == other {
				return false
			}
		}
	}
	return true
}

// Type is TypeAnnounce.
func (*Announce) Type() Type { return TypeAnnounce }

func (f *Announce) marshal(b []byte) []byte { return append(append(b, f.Key[:]...), f.Record...) }

func (f *Announce) unmarshal(in *cryptobyte.String) bool {
	return in.CopyBytes(f.Key[:]) && in.ReadBytes(&f.Record, protocol.RecordSize)
}

func (f *Announce) valid() bool { return len(f.Record) == protocol.RecordSize }

// Type is TypeCarry.
func (*Carry) Type() Type { return TypeCarry }

func (f *Carry) marshal(b []byte) []byte {
	b = append(b, uint8(len(f.Address)))
	b = append(b, f.Address...)
	return append(b, f.Mail...)
}

func (f *Carry) unmarshal(in *cryptobyte.String) bool {
	var address cryptobyte.String
	if !in.ReadUint8LengthPrefixed(&address) {
		return false
	}
	f.Address, f.Mail = address, *in
	*in = nil
	return true
}

func (f *Carry) valid() bool {
	return len(f.Address) > 0 && len(f.Address) <= protocol.MaxAddress && len(f.Mail) > 0 && len(f.Mail) <= maxMail
}

// Type is TypeRecords.
func (*Records) Type() Type { return TypeRecords }

func (f *Records) marshal(b []byte) []byte {
	for _, r := range f.Records {
		b = append(append(b, r.Index), r.Value...)
	}
	return b
}

func (f *Records) unmarshal(in *cryptobyte.String) bool {
	for !in.Empty() {
		var r Record
		if !in.ReadUint8(&r.Index) || !in.ReadBytes(&r.Value, protocol.RecordSize) {
			return false
		}
		f.Records = append(f.Records, r)
	}
	return true
}

func (f *Records) valid() bool {
	for i, r := range f.Records {
		if r.Index >= MaxKeys || i > 0 && r.Index <= f.Records[i-1].Index || len(r.Value) != protocol.RecordSize {
			return false
		}
	}
	return true
}

// Type is TypeKept.
func (*Kept) Type() Type { return TypeKept }

func (f *Kept) marshal(b []byte) []byte { return append(b, f.Asked, f.Stored, f.Confirmed) }

func (f *Kept) unmarshal(in *cryptobyte.String) bool {
	return in.ReadUint8(&f.Asked) && in.ReadUint8(&f.Stored) && in.ReadUint8(&f.Confirmed)
}

func (f *Kept) valid() bool { return f.Confirmed <= f.Stored && f.Stored <= f.Asked }

// Type is TypeCarried.
func (*Carried) Type() Type { return TypeCarried }

func (f *Carried) marshal(b []byte) []byte { return append(b, f.Mail...) }

func (f *Carried) unmarshal(in *cryptobyte.String) bool {
	f.Mail = *in
	*in = nil
	return true
}

func (f *Carried) valid() bool { return len(f.Mail) > 0 && len(f.Mail) <= maxMailAnswer }

// Type is TypeRefused.
func (*Refused) Type() Type { return TypeRefused }

func (f *Refused) marshal(b []byte) []byte {
	return binary.BigEndian.AppendUint16(append(b, byte(f.Why)), uint16(f.After/time.Second))
}

func (f *Refused) unmarshal(in *cryptobyte.String) bool {
	var why uint8
	var after uint16
	if !in.ReadUint8(&why) || !in.ReadUint16(&after) {
		return false
	}
	f.Why, f.After = Refusal(why), time.Duration(after)*time.Second
	return true
}

func (f *Refused) valid() bool {
	return f.Why >= RefusedBusy && f.Why <= RefusedInvalid &&
		f.After >= 0 && f.After%time.Second == 0 && f.After/time.Second <= 1<<16-1
}
