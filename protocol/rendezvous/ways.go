package rendezvous

import (
	"errors"

	"golang.org/x/crypto/cryptobyte"

	"github.com/kith-im/kith/protocol"
)

// FieldWays holds bridges that the publisher passes on (docs/spec/rendezvous.md,
// section 6). It is told inside sessions and never stands in a record.
const FieldWays FieldType = 2

var errWays = errors.New("rendezvous: malformed ways in")

// MarshalWays encodes the value of FieldWays: binary multiaddrs that end in /p2p,
// at most protocol.MaxSharedWays, none twice. It refuses what ParseWays would
// refuse.
func MarshalWays(ways [][]byte) ([]byte, error) {
	if !validWays(ways) {
		return nil, errWays
	}
	w := cryptobyte.NewBuilder(nil)
	for _, a := range ways {
		w.AddUint8LengthPrefixed(func(w *cryptobyte.Builder) { w.AddBytes(a) })
	}
	return w.Bytes()
}

// ParseWays decodes what MarshalWays encoded. The ways share b's memory.
func ParseWays(b []byte) ([][]byte, error) {
	in := cryptobyte.String(b)
	var ways [][]byte
	for !in.Empty() {
		var a cryptobyte.String
		if len(ways) == protocol.MaxSharedWays || !in.ReadUint8LengthPrefixed(&a) {
			return nil, errWays
		}
		ways = append(ways, a)
	}
	if !validWays(ways) {
		return nil, errWays
	}
	return ways, nil
}

func validWays(ways [][]byte) bool {
	if len(ways) > protocol.MaxSharedWays {
		return false
	}
	for i, a := range ways {
		if len(a) == 0 || len(a) > protocol.MaxAddress {
			return false
		}
		for _, other := range ways[:i] {
			if string(a) == string(other) {
				return false
			}
		}
	}
	return true
}
