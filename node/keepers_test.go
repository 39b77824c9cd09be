package node

import (
	"testing"

	ma "github.com/multiformats/go-multiaddr"

	"github.com/kith-im/kith/protocol/mailbox"
)

// TestKeepers: a node that a contact names by its peer id alone, as it does with a
// bridge, keeps what it keeps when the set changes.
func TestKeepers(t *testing.T) {
	set := &mailbox.Set{Nodes: [][]byte{ma.StringCast(someNode).Bytes(), ma.StringCast("/ip4/8.8.8.8/tcp/4001" + someNode).Bytes()}}
	if n := len(keepers(set)); n != 2 {
		t.Errorf("%d of 2 nodes", n)
	}
}
