package store

import (
	"crypto/cipher"
	"crypto/rand"
	"fmt"

	"golang.org/x/crypto/chacha20poly1305"
	"golang.org/x/crypto/cryptobyte"

	"github.com/kith-im/kith/protocol"
)

// sealer seals values that hold key material once more than the database
// around them: the encryption of blocks does not know which row a value belongs to.
type sealer struct{ aead cipher.AEAD }

func newSealer(dataKey func() []byte) sealer {
	aead, err := chacha20poly1305.NewX(mustHKDF(dataKey(), protocol.LabelStoreRows))
	if err != nil {
		panic("store: " + err.Error()) // only a key of the wrong length
	}
	return sealer{aead}
}

// sealVersion is the layout of a sealed value, part of what it is bound to.
const sealVersion = 1

// seal returns nonce ‖ XChaCha20-Poly1305(value), bound to the table and the
// row's key, so that it opens nowhere else.
func (s sealer) seal(table string, row, value []byte) ([]byte, error) {
	nonce := make([]byte, chacha20poly1305.NonceSizeX, chacha20poly1305.NonceSizeX+len(value)+chacha20poly1305.Overhead)
	rand.Read(nonce)
	ad, err := sealAD(table, row)
	if err != nil {
		return nil, err
	}
	return s.aead.Seal(nonce, nonce, value, ad), nil
}

// open undoes seal. A value that was altered or moved is ErrDamaged.
func (s sealer) open(table string, row, sealed []byte) ([]byte, error) {
	ad, err := sealAD(table, row)
	if err != nil {
		return nil, err
	}
	if len(sealed) >= chacha20poly1305.NonceSizeX {
		nonce, box := sealed[:chacha20poly1305.NonceSizeX], sealed[chacha20poly1305.NonceSizeX:]
		if value, err := s.aead.Open(nil, nonce, box, ad); err == nil {
			return value, nil
		}
	}
	return nil, fmt.Errorf("a sealed row of %s does not open: %w", table, ErrDamaged)
}

func sealAD(table string, row []byte) ([]byte, error) {
	var b cryptobyte.Builder
	b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes([]byte(table)) })
	b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(row) })
	b.AddUint8(sealVersion)
	return b.Bytes()
}
