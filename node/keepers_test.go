package node

import (
	"testing"

	ma "github.com/multiformats/go-multiaddr"

	"github.com/kith-im/kith/protocol"
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

// TestTagWindow: who has hundreds of contacts is found under every tag that their
// senders may use in a month of absence, and asks no node to know too many.
func TestTagWindow(t *testing.T) {
	for _, test := range []struct{ sessions, ahead int }{
		{1, protocol.TagWindow},
		{150, protocol.TagWindow},
		{151, protocol.TagWindow},
		{160, protocol.MaxTagAhead},
		{400, protocol.MaxTagAhead},
		{500, 25},
		{1000, 10},
		{3000, 2},
	} {
		behind, ahead := tagWindow(test.sessions, 10)
		if n := test.sessions*(1+behind+1+ahead) + 10; n > maxBoxTags || ahead < test.ahead {
			t.Errorf("of %d sessions a node is told %d tags behind and %d ahead, %d in all", test.sessions, behind, ahead, n)
		}
	}
}
