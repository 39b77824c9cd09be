package transport

import (
	"crypto/rand"
	"errors"
	"math/big"

	"golang.org/x/crypto/cryptobyte"
)

// Limits of one exchange (docs/spec/veil.md, section 4).
const (
	maxVeilData = 256 << 10 // bytes of the stream in one body: a web server in front of a bridge takes 1 MiB by default
	maxVeilPad  = 1 << 10   // shorter bodies are padded to a random length up to this
	maxVeilBody = requestHead + maxVeilData
	requestHead = 16 + 5*8 + 2*4 + 1 + 3
	answerHead  = 4*8 + 1 + 3
)

type sessionID [16]byte

// Flags of both kinds of frame.
const (
	veilFin   = 1 << iota // the stream ends where data ends
	veilAbort             // the session is over, whatever is still on its way
	veilFlags = veilFin | veilAbort
)

// veilRequest is what a client sends (docs/spec/veil.md, section 4.1).
type veilRequest struct {
	session  sessionID
	number   uint64 // of the request: each is used once
	offset   uint64 // of data in the stream from the client
	received uint64 // bytes of the stream from the server that the client has, from its beginning
	from     uint64 // first byte wanted of the stream from the server
	written  uint64 // bytes the client has written so far
	most     uint32 // bytes wanted at most; 0: none
	hold     uint32 // milliseconds for which the server may wait for something to answer
	flags    byte
	data     []byte
	padding  int
}

// veilAnswer is what a server answers (docs/spec/veil.md, section 4.2).
type veilAnswer struct {
	accepted uint64 // bytes of the stream from the client that the server has, from its beginning
	limit    uint64 // of the stream from the client: what lies beyond isn't taken yet
	written  uint64 // bytes the server has for the client, from the beginning of the stream
	offset   uint64 // of data in the stream from the server
	flags    byte
	data     []byte
	padding  int
}

func (r *veilRequest) marshal() []byte {
	b := cryptobyte.NewFixedBuilder(make([]byte, 0, requestHead+len(r.data)+r.padding))
	b.AddBytes(r.session[:])
	b.AddUint64(r.number)
	b.AddUint64(r.offset)
	b.AddUint64(r.received)
	b.AddUint64(r.from)
	b.AddUint64(r.written)
	b.AddUint32(r.most)
	b.AddUint32(r.hold)
	b.AddUint8(r.flags)
	b.AddUint24LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(r.data) })
	b.AddBytes(make([]byte, r.padding))
	return b.BytesOrPanic()
}

func (r *veilRequest) unmarshal(body []byte) error {
	s := cryptobyte.String(body)
	var data cryptobyte.String
	if !s.CopyBytes(r.session[:]) ||
		!s.ReadUint64(&r.number) ||
		!s.ReadUint64(&r.offset) ||
		!s.ReadUint64(&r.received) ||
		!s.ReadUint64(&r.from) ||
		!s.ReadUint64(&r.written) ||
		!s.ReadUint32(&r.most) ||
		!s.ReadUint32(&r.hold) ||
		!s.ReadUint8(&r.flags) ||
		!s.ReadUint24LengthPrefixed(&data) {
		return errBadFrame
	}
	r.data = data
	return checkFrame(r.flags, r.offset, data, s, &r.padding)
}

func (a *veilAnswer) marshal() []byte {
	b := cryptobyte.NewFixedBuilder(make([]byte, 0, answerHead+len(a.data)+a.padding))
	b.AddUint64(a.accepted)
	b.AddUint64(a.limit)
	b.AddUint64(a.written)
	b.AddUint64(a.offset)
	b.AddUint8(a.flags)
	b.AddUint24LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(a.data) })
	b.AddBytes(make([]byte, a.padding))
	return b.BytesOrPanic()
}

func (a *veilAnswer) unmarshal(body []byte) error {
	s := cryptobyte.String(body)
	var data cryptobyte.String
	if !s.ReadUint64(&a.accepted) ||
		!s.ReadUint64(&a.limit) ||
		!s.ReadUint64(&a.written) ||
		!s.ReadUint64(&a.offset) ||
		!s.ReadUint8(&a.flags) ||
		!s.ReadUint24LengthPrefixed(&data) {
		return errBadFrame
	}
	a.data = data
	return checkFrame(a.flags, a.offset, data, s, &a.padding)
}

var errBadFrame = errors.New("not a frame of the veil")

// checkFrame refuses what no encoder makes; rest is the padding.
func checkFrame(flags byte, offset uint64, data, rest []byte, padding *int) error {
	if flags&^veilFlags != 0 || len(data) > maxVeilData || len(rest) > maxVeilPad || offset+uint64(len(data)) < offset {
		return errBadFrame
	}
	for _, b := range rest {
		if b != 0 {
			return errBadFrame
		}
	}
	*padding = len(rest)
	return nil
}

// padTo returns how many bytes of padding to put behind a frame of n bytes, so
// that lengths of small ones tell nothing (docs/spec/veil.md, section 4.3).
func padTo(n int) int {
	if n >= maxVeilPad {
		return 0
	}
	extra, err := rand.Int(rand.Reader, big.NewInt(int64(maxVeilPad-n)))
	if err != nil {
		return 0
	}
	return int(extra.Int64())
}
