package bundle

import (
	"bytes"
	"math/bits"

	"golang.org/x/crypto/cryptobyte"

	"github.com/kith-im/kith/protocol"
)

// Kind says what an item is.
type Kind uint8

// The kinds of items (docs/spec/bundle.md, section 4). Zero ends a content.
const (
	Envelope Kind = 1 // a whole envelope
	Piece    Kind = 2 // of an envelope that is larger than protocol.BundlePiece
	Record   Kind = 3 // the body of a rendezvous record
)

// Item is one thing in a part:
//
//	envelope: 1 | log 1 | 1024·2^log
//	piece:    2 | log 1 | index 1 | name 16 | 16,384
//	record:   3 | opaque16<1..4096>
type Item struct {
	Kind  Kind
	Body  []byte
	Log   uint8    // of an envelope, or of the one that a piece is of: it has 1024·2^Log bytes
	Index uint8    // of a piece
	Name  [16]byte // of the envelope that a piece is of
}

const (
	contentSize = protocol.BundlePart - overhead

	maxWholeLog = 4 // log of protocol.BundlePiece
	maxLog      = 7 // log of protocol.MaxEnvelope
	pieceHead   = 3 + 16
)

func (it Item) size() int {
	switch it.Kind {
	case Envelope:
		return 2 + len(it.Body)
	case Piece:
		return pieceHead + len(it.Body)
	case Record:
		return 3 + len(it.Body)
	}
	return 0
}

// pieces is how many pieces an envelope of 1024·2^log bytes has.
func pieces(log uint8) int { return 1 << (log - maxWholeLog) }

// Split returns an envelope as the items that carry it: itself, or its pieces.
func Split(envelope []byte) []Item {
	log := uint8(bits.Len(uint(len(envelope)/protocol.MinEnvelope)) - 1)
	if log <= maxWholeLog {
		return []Item{{Kind: Envelope, Log: log, Body: envelope}}
	}
	items := make([]Item, pieces(log))
	name := nameOf(envelope)
	for i := range items {
		items[i] = Item{
			Kind: Piece, Log: log, Index: uint8(i), Name: name,
			Body: envelope[i*protocol.BundlePiece : (i+1)*protocol.BundlePiece],
		}
	}
	return items
}

func nameOf(envelope []byte) [16]byte {
	h := protocol.Hash(protocol.LabelBundlePiece, envelope)
	return [16]byte(h[:16])
}

// marshalContent encodes items, and zeros up to size.
func marshalContent(items []Item, size int) ([]byte, error) {
	b := cryptobyte.NewFixedBuilder(make([]byte, 0, size))
	for _, it := range items {
		b.AddUint8(uint8(it.Kind))
		switch it.Kind {
		case Envelope:
			b.AddUint8(it.Log)
			b.AddBytes(it.Body)
		case Piece:
			b.AddUint8(it.Log)
			b.AddUint8(it.Index)
			b.AddBytes(it.Name[:])
			b.AddBytes(it.Body)
		case Record:
			b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(it.Body) })
		}
	}
	content, err := b.Bytes()
	if err != nil {
		return nil, err
	}
	return content[:size], nil // what follows in the fixed buffer is zeros
}

// ParseContent decodes the content of a part. It refuses whatever a writer
// cannot have written. The items share content's memory.
func ParseContent(content []byte) ([]Item, error) {
	s := cryptobyte.String(content)
	var items []Item
	for !s.Empty() {
		if s[0] == 0 {
			if len(bytes.Trim(s, "\x00")) > 0 {
				return nil, ErrDamaged
			}
			break
		}
		it, ok := readItem(&s)
		if !ok {
			return nil, ErrDamaged
		}
		items = append(items, it)
	}
	if len(items) == 0 {
		return nil, ErrDamaged // nobody seals nothing
	}
	return items, nil
}

func readItem(s *cryptobyte.String) (it Item, ok bool) {
	var kind uint8
	var body cryptobyte.String
	if !s.ReadUint8(&kind) {
		return it, false
	}
	it.Kind = Kind(kind)
	switch it.Kind {
	case Envelope:
		ok = s.ReadUint8(&it.Log) && it.Log <= maxWholeLog && s.ReadBytes((*[]byte)(&body), protocol.MinEnvelope<<it.Log)
	case Piece:
		ok = s.ReadUint8(&it.Log) && it.Log > maxWholeLog && it.Log <= maxLog &&
			s.ReadUint8(&it.Index) && int(it.Index) < pieces(it.Log) &&
			s.CopyBytes(it.Name[:]) && s.ReadBytes((*[]byte)(&body), protocol.BundlePiece)
	case Record:
		ok = s.ReadUint16LengthPrefixed(&body) && len(body) > 0 && len(body) <= protocol.RecordSize
	}
	it.Body = body
	return it, ok
}

// maxJoining bounds the envelopes that a Joiner has pieces of: of what comes in
// order there is never more than one.
const maxJoining = 8

// Joiner puts envelopes together again. The zero value is ready.
type Joiner struct {
	open []joining // oldest first
}

type joining struct {
	name [16]byte
	log  uint8
	have uint64
	body []byte
}

// Add takes a piece and returns its envelope once all of it is there. Of more
// than a few envelopes at one time it forgets the oldest: they are carried again.
func (j *Joiner) Add(it Item) (envelope []byte) {
	i := 0
	for i < len(j.open) && (j.open[i].name != it.Name || j.open[i].log != it.Log) {
		i++
	}
	if i == len(j.open) {
		if len(j.open) == maxJoining {
			j.open, i = j.open[1:], i-1
		}
		j.open = append(j.open, joining{name: it.Name, log: it.Log, body: make([]byte, protocol.MinEnvelope<<it.Log)})
	}
	o := &j.open[i]
	copy(o.body[int(it.Index)*protocol.BundlePiece:], it.Body)
	o.have |= 1 << it.Index
	if bits.OnesCount64(o.have) < pieces(it.Log) {
		return nil
	}
	envelope = o.body
	j.open = append(j.open[:i:i], j.open[i+1:]...)
	if nameOf(envelope) != it.Name {
		return nil
	}
	return envelope
}
