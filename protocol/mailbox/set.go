package mailbox

import (
	"errors"

	"golang.org/x/crypto/cryptobyte"

	"github.com/kith-im/kith/protocol"
)

// setVersion begins a Set.
const setVersion = 1

// Set says at which nodes a device collects: the value of
// rendezvous.FieldMailboxes (docs/spec/mailbox.md, section 10).
type Set struct {
	Version uint64   // rises with every change; of two sets the higher counts
	Nodes   [][]byte // binary multiaddrs that end in /p2p, best first; at most MaxSet, each node once; none: no mailboxes
}

var errSet = errors.New("mailbox: malformed set")

// Marshal encodes the set. It refuses what ParseSet would refuse.
func (s *Set) Marshal() ([]byte, error) {
	if err := s.check(); err != nil {
		return nil, err
	}
	w := cryptobyte.NewBuilder(nil)
	w.AddUint8(setVersion)
	w.AddUint64(s.Version)
	for _, n := range s.Nodes {
		w.AddUint8LengthPrefixed(func(w *cryptobyte.Builder) { w.AddBytes(n) })
	}
	return w.Bytes()
}

// ParseSet decodes a set. The nodes share b's memory.
func ParseSet(b []byte) (*Set, error) {
	in := cryptobyte.String(b)
	s := new(Set)
	var version uint8
	if !in.ReadUint8(&version) || version != setVersion || !in.ReadUint64(&s.Version) {
		return nil, errSet
	}
	for !in.Empty() {
		var node cryptobyte.String
		if len(s.Nodes) == MaxSet || !in.ReadUint8LengthPrefixed(&node) {
			return nil, errSet
		}
		s.Nodes = append(s.Nodes, node)
	}
	if err := s.check(); err != nil {
		return nil, err
	}
	return s, nil
}

func (s *Set) check() error {
	if len(s.Nodes) > MaxSet {
		return errSet
	}
	seen := make(map[[32]byte]bool, MaxSet)
	for _, n := range s.Nodes {
		key, ok := nodeOf(n)
		if !ok || len(n) > protocol.MaxAddress || seen[key] {
			return errSet
		}
		seen[key] = true
	}
	return nil
}

// peer is how an address ends, up to the node's key: /p2p, and a peer id of an
// Ed25519 key.
const peer = "\xa5\x03\x26\x00\x24\x08\x01\x12\x20"

// nodeOf returns the transport key of the node that an address leads to.
func nodeOf(address []byte) (key [32]byte, ok bool) {
	at := len(address) - len(peer) - len(key)
	if at < 0 || string(address[at:at+len(peer)]) != peer {
		return key, false
	}
	return [32]byte(address[at+len(peer):]), true
}
