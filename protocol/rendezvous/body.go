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

// FieldMailboxes holds the publisher's mailboxes (docs/spec/mailbox.md, section
// 10); its value begins with a version of its own.
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

// Marshal encodes a body as it is sealed into a record, with its padding.
func (b *Body) Marshal() ([]byte, error) {
	if err := b.check(); err != nil {
		return nil, err
	}
	w := cryptobyte.NewFixedBuilder(make([]byte, 0, bodySize))
	w.AddUint8(uint8(len(b.Addresses)))
	for _, a := range b.Addresses {
		w.AddUint8LengthPrefixed(func(w *cryptobyte.Builder) { w.AddBytes(a) })
	}
	w.AddUint16LengthPrefixed(func(w *cryptobyte.Builder) { w.AddBytes(b.Bundle) })
	addFields(w, b.Fields)
	plain, err := w.Bytes()
	if err != nil {
		return nil, errors.New("rendezvous: the content does not fit into a record")
	}
	return plain[:bodySize], nil // what follows in the fixed buffer is zeros
}

// ParseBody decodes what Marshal encoded. The body shares plain's memory.
func ParseBody(plain []byte) (Body, error) {
	var b Body
	if len(plain) != bodySize {
		return Body{}, errBody
	}
	if err := b.unmarshal(plain); err != nil {
		return Body{}, err
	}
	return b, nil
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
	var ok bool
	if b.Fields, ok = readFields(&s); !ok {
		return errBody
	}
	for _, zero := range s {
		if zero != 0 {
			return errBody
		}
	}
	return b.check()
}

func (b *Body) check() error {
	if len(b.Addresses) > protocol.MaxRecordAddresses {
		return errBody
	}
	for _, a := range b.Addresses {
		if len(a) == 0 || len(a) > protocol.MaxAddress {
			return errBody
		}
	}
	return checkFields(b.Fields)
}

// MarshalFields encodes fields alone, as in a body, for a rendezvous update
// (docs/spec/rendezvous.md, section 4). It refuses what ParseFields would refuse.
func MarshalFields(fields []Field) ([]byte, error) {
	if err := checkFields(fields); err != nil {
		return nil, err
	}
	w := cryptobyte.NewBuilder(nil)
	addFields(w, fields)
	return w.Bytes()
}

// ParseFields decodes what MarshalFields encoded. The values share b's memory.
func ParseFields(b []byte) ([]Field, error) {
	s := cryptobyte.String(b)
	fields, ok := readFields(&s)
	if !ok || !s.Empty() {
		return nil, errBody
	}
	if err := checkFields(fields); err != nil {
		return nil, err
	}
	return fields, nil
}

func addFields(w *cryptobyte.Builder, fields []Field) {
	w.AddUint8(uint8(len(fields)))
	for _, f := range fields {
		w.AddUint16(uint16(f.Type))
		w.AddUint16LengthPrefixed(func(w *cryptobyte.Builder) { w.AddBytes(f.Value) })
	}
}

func readFields(s *cryptobyte.String) (fields []Field, ok bool) {
	var count uint8
	if !s.ReadUint8(&count) || count > protocol.MaxRecordFields {
		return nil, false
	}
	for range count {
		var t uint16
		var value cryptobyte.String
		if !s.ReadUint16(&t) || !s.ReadUint16LengthPrefixed(&value) {
			return nil, false
		}
		fields = append(fields, Field{Type: FieldType(t), Value: value})
	}
	return fields, true
}

func checkFields(fields []Field) error {
	if len(fields) > protocol.MaxRecordFields {
		return errBody
	}
	for i, f := range fields {
		if i > 0 && f.Type <= fields[i-1].Type {
			return errBody
		}
	}
	return nil
}
