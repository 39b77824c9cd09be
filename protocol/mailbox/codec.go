package mailbox

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"math/bits"
	"time"

	"golang.org/x/crypto/cryptobyte"

	"github.com/kith-im/kith/protocol"
	"github.com/kith-im/kith/protocol/envelope"
)

// The longest frames of either side, type and body: a deposit and a page.
const (
	maxRequest = 1 + protocol.MaxEnvelope
	maxAnswer  = 1 + 1 + MaxItems*itemHead + MaxPage
)

// The sizes of what repeats in a frame.
const (
	registrationSize = envelope.TagSize + 1
	itemHead         = 8 + 1
)

// AppendFrame appends a frame to dst. It panics if the frame could not be read
// back: an envelope of a wrong size, numbers or tags out of order, a part of a
// second, more than a limit allows.
func AppendFrame(dst []byte, f Frame) []byte {
	start := len(dst)
	dst = append(dst, make([]byte, protocol.FrameLengthSize)...)
	dst = append(dst, byte(f.Type()))
	dst = f.marshal(dst)
	frame := dst[start+protocol.FrameLengthSize:]
	if !f.Type().fits(len(frame)-1) || !f.valid() {
		panic(fmt.Sprintf("mailbox: a frame of type %d that cannot be read back", f.Type()))
	}
	if n := binary.PutUvarint(dst[start:], uint64(len(frame))); n < protocol.FrameLengthSize {
		copy(dst[start+n:], frame)
		dst = dst[:start+n+len(frame)]
	}
	return dst
}

// ReadRequest reads a frame of a client, and ReadAnswer one of a node. They
// return io.EOF if the stream ended before a frame began, io.ErrUnexpectedEOF if
// within one, and protocol.ErrFrame for what no honest side sends. Memory grows only with
// what arrived. The envelopes of a page share their memory.
func ReadRequest(r *bufio.Reader) (Frame, error) {
	return readFrame(r, maxRequest, func(t Type) bool { return t < firstAnswer })
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
	case TypeDeposit:
		return envelopeSize(n)
	case TypeAudit:
		return n == envelope.TagSize+32+32
	case TypeOpen:
		return n == 32+1+64
	case TypeTags:
		n -= 8 + 1
		return n >= 0 && n <= MaxTags*registrationSize && n%registrationSize == 0
	case TypeCollect:
		n -= 8 + 2
		return n >= 0 && n <= MaxItems*8 && n%8 == 0
	case TypeHello:
		return n == 32+1+2
	case TypeStored:
		return n == 2+64
	case TypeProof:
		return n == 32
	case TypeOpened:
		return n == 8+4+4+8+8
	case TypeRegistered:
		return n == 8+4
	case TypePage:
		return n >= 1 && n < maxAnswer
	case TypeRefused:
		return n == 1+2
	}
	return false
}

// frame returns an empty frame of a type that fits has passed.
func (t Type) frame() Frame {
	switch t {
	case TypeDeposit:
		return new(Deposit)
	case TypeAudit:
		return new(Audit)
	case TypeOpen:
		return new(Open)
	case TypeTags:
		return new(Tags)
	case TypeCollect:
		return new(Collect)
	case TypeHello:
		return new(Hello)
	case TypeStored:
		return new(Stored)
	case TypeProof:
		return new(Proof)
	case TypeOpened:
		return new(Opened)
	case TypeRegistered:
		return new(Registered)
	case TypePage:
		return new(Page)
	case TypeRefused:
		return new(Refused)
	}
	panic(fmt.Sprintf("mailbox: no frame has the type %d", t))
}

func (f *Hello) marshal(b []byte) []byte {
	b = append(b, f.Nonce[:]...)
	b = appendBool(b, f.Draining)
	return binary.BigEndian.AppendUint16(b, f.Hours)
}

func (f *Hello) unmarshal(in *cryptobyte.String) bool {
	return in.CopyBytes(f.Nonce[:]) && readBool(in, &f.Draining) && in.ReadUint16(&f.Hours)
}

func (*Hello) valid() bool { return true }

func (f *Deposit) marshal(b []byte) []byte { return append(b, f.Envelope...) }

func (f *Deposit) unmarshal(in *cryptobyte.String) bool {
	return in.ReadBytes(&f.Envelope, len(*in))
}

func (f *Deposit) valid() bool { return envelopeSize(len(f.Envelope)) }

func (s *Stored) marshal(b []byte) []byte {
	b = binary.BigEndian.AppendUint16(b, s.Hours)
	return append(b, s.Signature[:]...)
}

func (s *Stored) unmarshal(in *cryptobyte.String) bool {
	return in.ReadUint16(&s.Hours) && in.CopyBytes(s.Signature[:])
}

func (*Stored) valid() bool { return true }

func (f *Audit) marshal(b []byte) []byte {
	b = append(b, f.Tag[:]...)
	b = append(b, f.Digest[:]...)
	return append(b, f.Nonce[:]...)
}

func (f *Audit) unmarshal(in *cryptobyte.String) bool {
	return in.CopyBytes(f.Tag[:]) && in.CopyBytes(f.Digest[:]) && in.CopyBytes(f.Nonce[:])
}

func (*Audit) valid() bool { return true }

func (p *Proof) marshal(b []byte) []byte { return append(b, p.MAC[:]...) }

func (p *Proof) unmarshal(in *cryptobyte.String) bool { return in.CopyBytes(p.MAC[:]) }

func (*Proof) valid() bool { return true }

func (o *Open) marshal(b []byte) []byte {
	b = append(b, o.Box[:]...)
	b = appendBool(b, o.Create)
	return append(b, o.Signature[:]...)
}

func (o *Open) unmarshal(in *cryptobyte.String) bool {
	return in.CopyBytes(o.Box[:]) && readBool(in, &o.Create) && in.CopyBytes(o.Signature[:])
}

func (*Open) valid() bool { return true }

func (f *Opened) marshal(b []byte) []byte {
	b = binary.BigEndian.AppendUint64(b, f.Generation)
	b = binary.BigEndian.AppendUint32(b, f.Tags)
	b = binary.BigEndian.AppendUint32(b, f.Items)
	b = binary.BigEndian.AppendUint64(b, f.Bytes)
	return binary.BigEndian.AppendUint64(b, f.Quota)
}

func (f *Opened) unmarshal(in *cryptobyte.String) bool {
	return in.ReadUint64(&f.Generation) && in.ReadUint32(&f.Tags) && in.ReadUint32(&f.Items) &&
		in.ReadUint64(&f.Bytes) && in.ReadUint64(&f.Quota)
}

func (*Opened) valid() bool { return true }

func (f *Tags) marshal(b []byte) []byte {
	b = binary.BigEndian.AppendUint64(b, f.Generation)
	b = appendBool(b, f.Prune)
	for i := range f.Tags {
		b = append(b, f.Tags[i].Tag[:]...)
		b = append(b, byte(f.Tags[i].Class))
	}
	return b
}

func (f *Tags) unmarshal(in *cryptobyte.String) bool {
	if !in.ReadUint64(&f.Generation) || !readBool(in, &f.Prune) {
		return false
	}
	if n := len(*in) / registrationSize; n > 0 {
		f.Tags = make([]Registration, n)
	}
	for i := range f.Tags {
		if !in.CopyBytes(f.Tags[i].Tag[:]) || !in.ReadUint8((*uint8)(&f.Tags[i].Class)) {
			return false
		}
	}
	return true
}

func (f *Tags) valid() bool {
	for i := range f.Tags {
		if c := f.Tags[i].Class; c != ClassContact && c != ClassRequest {
			return false
		}
		if i > 0 && bytes.Compare(f.Tags[i-1].Tag[:], f.Tags[i].Tag[:]) >= 0 {
			return false
		}
	}
	return f.Generation > 0
}

func (f *Registered) marshal(b []byte) []byte {
	b = binary.BigEndian.AppendUint64(b, f.Generation)
	return binary.BigEndian.AppendUint32(b, f.Tags)
}

func (f *Registered) unmarshal(in *cryptobyte.String) bool {
	return in.ReadUint64(&f.Generation) && in.ReadUint32(&f.Tags)
}

func (*Registered) valid() bool { return true }

func (f *Collect) marshal(b []byte) []byte {
	b = binary.BigEndian.AppendUint64(b, f.After)
	b = appendSeconds(b, f.Wait)
	for _, id := range f.Done {
		b = binary.BigEndian.AppendUint64(b, id)
	}
	return b
}

func (f *Collect) unmarshal(in *cryptobyte.String) bool {
	if !in.ReadUint64(&f.After) || !readSeconds(in, &f.Wait) {
		return false
	}
	if n := len(*in) / 8; n > 0 {
		f.Done = make([]uint64, n)
	}
	for i := range f.Done {
		if !in.ReadUint64(&f.Done[i]) {
			return false
		}
	}
	return true
}

func (f *Collect) valid() bool {
	var last uint64
	for _, id := range f.Done {
		if id <= last {
			return false
		}
		last = id
	}
	return validWait(f.Wait)
}

func (f *Page) marshal(b []byte) []byte {
	b = appendBool(b, f.More)
	for i := range f.Items {
		b = binary.BigEndian.AppendUint64(b, f.Items[i].ID)
		b = append(b, byte(bits.Len(uint(len(f.Items[i].Envelope)/protocol.MinEnvelope))-1))
		b = append(b, f.Items[i].Envelope...)
	}
	return b
}

func (f *Page) unmarshal(in *cryptobyte.String) bool {
	if !readBool(in, &f.More) {
		return false
	}
	for !in.Empty() {
		var item Item
		var size uint8
		if len(f.Items) == MaxItems || !in.ReadUint64(&item.ID) || !in.ReadUint8(&size) ||
			!envelopeSize(protocol.MinEnvelope<<size) || !in.ReadBytes(&item.Envelope, protocol.MinEnvelope<<size) {
			return false
		}
		f.Items = append(f.Items, item)
	}
	return true
}

func (f *Page) valid() bool {
	var last uint64
	total := 0
	for i := range f.Items {
		if f.Items[i].ID <= last || !envelopeSize(len(f.Items[i].Envelope)) {
			return false
		}
		last = f.Items[i].ID
		total += len(f.Items[i].Envelope)
	}
	return len(f.Items) <= MaxItems && total <= MaxPage && (len(f.Items) > 0 || !f.More)
}

func (f *Refused) marshal(b []byte) []byte {
	return appendSeconds(append(b, byte(f.Why)), f.Wait)
}

func (f *Refused) unmarshal(in *cryptobyte.String) bool {
	return in.ReadUint8((*uint8)(&f.Why)) && readSeconds(in, &f.Wait)
}

func (f *Refused) valid() bool {
	return f.Why >= RefusedUnknown && f.Why <= RefusedLimit && validWait(f.Wait) &&
		(f.Wait == 0 || f.Why == RefusedBusy)
}

// envelopeSize reports whether n is a size of envelopes (docs/spec/envelope.md,
// section 2).
func envelopeSize(n int) bool {
	return n >= protocol.MinEnvelope && n <= protocol.MaxEnvelope && n&(n-1) == 0
}

func appendBool(b []byte, v bool) []byte {
	if v {
		return append(b, 1)
	}
	return append(b, 0)
}

func readBool(in *cryptobyte.String, v *bool) bool {
	var b uint8
	if !in.ReadUint8(&b) || b > 1 {
		return false
	}
	*v = b == 1
	return true
}

func validWait(d time.Duration) bool { return d >= 0 && d <= MaxWait && d%time.Second == 0 }

func appendSeconds(b []byte, d time.Duration) []byte {
	return binary.BigEndian.AppendUint16(b, uint16(d/time.Second))
}

func readSeconds(in *cryptobyte.String, d *time.Duration) bool {
	var s uint16
	ok := in.ReadUint16(&s)
	*d = time.Duration(s) * time.Second
	return ok
}
