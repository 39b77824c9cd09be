package rendezvous

import (
	"errors"

	"github.com/kith-im/kith/protocol"
	"golang.org/x/crypto/chacha20poly1305"
	"golang.org/x/crypto/cryptobyte"
)

// Body is what a record says, padded to bodySize before it is sealed:
//
//	addresses: count 1 × (len 1 | bytes) | bundle: len 2 | bytes | fields: count 1 × (type 2 | len 2 | bytes) | zeros
type Body struct {
	Addresses [][]byte // binary multiaddrs, best first; at most protocol.MaxRecordAddresses
	Bundle    []byte   // a prekey bundle, or nothing
	Fields    []Field  // what later versions add
}

// Field is one extension of a body, for example the device's mailboxes. Types ascend
// and appear once. A reader skips the types it does not know.
type Field struct {
	Type  FieldType
	Value []byte
}

// FieldType says what a field holds.
type FieldType uint16

// FieldMailboxes holds the publisher's mailboxes; its value is specified by the
// mailbox chapter and begins with a version of its own.
const FieldMailboxes FieldType = 1

// bodySize is the length of every sealed body before encryption.
const bodySize = signatureAt - sealedAt - chacha20poly1305.Overhead

var errBody = errors.New("rendezvous: the record's content is malformed")

// Field returns the value of the field of a type, or nil.
func (b *Body) Field(t FieldType) []byte {
	for _, f := range b.Fields {
		if f.Type == t {
			return f.Value
		}
	}
	return nil
}

func (b *Body) marshal() ([]byte, error) {
	if err := b.check(); err != nil {
		return nil, err
	}
	w := cryptobyte.NewFixedBuilder(make([]byte, 0, bodySize))
	w.AddUint8(uint8(len(b.Addresses)))
	for _, a := range b.Addresses {
		w.AddUint8LengthPrefixed(func(w *cryptobyte.Builder) { w.AddBytes(a) })
	}
	w.AddUint16LengthPrefixed(func(w *cryptobyte.Builder) { w.AddBytes(b.Bundle) })
	w.AddUint8(uint8(len(b.Fields)))
	for _, f := range b.Fields {
		w.AddUint16(uint16(f.Type))
		w.AddUint16LengthPrefixed(func(w *cryptobyte.Builder) { w.AddBytes(f.Value) })
	}
	plain, err := w.Bytes()
	if err != nil {
		return nil, errors.New("rendezvous: the content does not fit into a record")
	}
	return plain[:bodySize], nil // what follows in the fixed buffer is zeros
}

func (b *Body) unmarshal(plain []byte) error {
	s := cryptobyte.String(plain)
	var count uint8
	if !s.ReadUint8(&count) || count > protocol.MaxRecordAddresses {
		return errBody
	}
	for range count {
		var address cryptobyte.String
		if !s.ReadUint8LengthPrefixed(&address) {
			return errBody
		}
		b.Addresses = append(b.Addresses, address)
	}
	var bundle cryptobyte.String
	if !s.ReadUint16LengthPrefixed(&bundle) {
		return errBody
	}
	if len(bundle) > 0 {
		b.Bundle = bundle
	}
	if !s.ReadUint8(&count) || count > protocol.MaxRecordFields {
		return errBody
	}
	for range count {
		var t uint16
		var value cryptobyte.String
		if !s.ReadUint16(&t) || !s.ReadUint16LengthPrefixed(&value) {
			return errBody
		}
		b.Fields = append(b.Fields, Field{Type: FieldType(t), Value: value})
	}
	for _, zero := range s {
		if zero != 0 {
			return errBody
		}
	}
	return b.check()
}

func (b *Body) check() error {
	if len(b.Addresses) > protocol.MaxRecordAddresses || len(b.Fields) > protocol.MaxRecordFields {
		return errBody
	}
	for _, a := range b.Addresses {
		if len(a) == 0 || len(a) > protocol.MaxAddress {
			return errBody
		}
	}
	for i, f := range b.Fields {
		if i > 0 && f.Type <= b.Fields[i-1].Type {
			return errBody
		}
	}
	return nil
}
