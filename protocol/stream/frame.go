package stream

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/kith-im/kith/protocol"
)

// Type says what a frame is.
type Type uint8

// The frame types of docs/spec/stream.md, section 4.
const (
	TypeEnvelope Type = 1 // an envelope, whole
	TypeAck      Type = 2 // how many envelopes of this stream are done with, durably
	TypePing     Type = 3 // asks for a pong with the same 8 bytes
	TypePong     Type = 4
	TypeClose    Type = 5 // no envelope follows from the sender; why
)

// Reason says why a stream is closed.
type Reason uint8

// The reasons of docs/spec/stream.md, section 6.
const (
	ReasonSuperseded Reason = 1 // a better stream took its place
	ReasonIdle       Reason = 2
	ReasonShutdown   Reason = 3
)

// MaxFrame bounds a frame's type and body.
const MaxFrame = 1 + protocol.MaxEnvelope

// Frame is one frame. Only the field of its type is set.
type Frame struct {
	Type     Type
	Envelope []byte
	Count    uint64  // of TypeAck: envelopes since the stream began
	Token    [8]byte // of TypePing and TypePong
	Reason   Reason  // of TypeClose
}

// AppendFrame appends a frame to dst. It panics if the frame could not be read
// back: an envelope of a wrong size, an unknown type or reason.
func AppendFrame(dst []byte, f Frame) []byte {
	var body []byte
	switch f.Type {
	case TypeEnvelope:
		body = f.Envelope
	case TypeAck:
		body = binary.BigEndian.AppendUint64(nil, f.Count)
	case TypePing, TypePong:
		body = f.Token[:]
	case TypeClose:
		if !f.Reason.known() {
			panic(fmt.Sprintf("stream: unknown reason %d", f.Reason))
		}
		body = []byte{byte(f.Reason)}
	}
	if !f.Type.fits(len(body)) {
		panic(fmt.Sprintf("stream: a frame of type %d does not hold %d bytes", f.Type, len(body)))
	}
	dst = binary.AppendUvarint(dst, uint64(1+len(body)))
	dst = append(dst, byte(f.Type))
	return append(dst, body...)
}

// ReadFrame reads one frame. It returns io.EOF if the stream ended before a
// frame began, io.ErrUnexpectedEOF if within one, and protocol.ErrFrame for what no
// honest side sends. Memory grows only with what arrived.
func ReadFrame(r *bufio.Reader) (Frame, error) {
	length, err := protocol.ReadFrameLength(r, MaxFrame)
	if err != nil {
		return Frame{}, err
	}
	t, err := r.ReadByte()
	if err != nil {
		return Frame{}, protocol.MidFrame(err)
	}
	f := Frame{Type: Type(t)}
	n := length - 1
	if !f.Type.fits(n) {
		return Frame{}, protocol.ErrFrame
	}
	if f.Type == TypeEnvelope {
		if f.Envelope, err = protocol.ReadFrameBody(r, n); err != nil {
			return Frame{}, err
		}
		return f, nil
	}
	var small [8]byte
	body := small[:n]
	if _, err := io.ReadFull(r, body); err != nil {
		return Frame{}, protocol.MidFrame(err)
	}
	switch f.Type {
	case TypeAck:
		f.Count = binary.BigEndian.Uint64(body)
	case TypePing, TypePong:
		f.Token = small
	case TypeClose:
		if f.Reason = Reason(body[0]); !f.Reason.known() {
			return Frame{}, protocol.ErrFrame
		}
	case TypeEnvelope: // returned above
	}
	return f, nil
}

// fits reports whether a frame of the type may have a body of n bytes.
func (t Type) fits(n int) bool {
	switch t {
	case TypeEnvelope:
		return n >= protocol.MinEnvelope && n <= protocol.MaxEnvelope && n&(n-1) == 0
	case TypeAck, TypePing, TypePong:
		return n == 8
	case TypeClose:
		return n == 1
	}
	return false
}

func (r Reason) known() bool { return r >= ReasonSuperseded && r <= ReasonShutdown }
