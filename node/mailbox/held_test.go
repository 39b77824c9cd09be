package mailbox_test

import (
	"testing"

	"github.com/libp2p/go-libp2p/core/network"

	"github.com/kith-im/kith/node/mailbox"
	"github.com/kith-im/kith/node/nodetest"
	"github.com/kith-im/kith/node/transport"
	wire "github.com/kith-im/kith/protocol/mailbox"
)

// TestG01_NoAnswerTaken has a client leave before it is answered: what the node
// holds of its requests is given back.
func TestG01_NoAnswerTaken(t *testing.T) {
	world(t, mailbox.Limits{}, func(t *testing.T, h *house) {
		answered := make(chan error, 1)
		h.host.SetStreamHandler(wire.Protocol, func(s network.Stream) {
			_ = s.Reset()
			answered <- h.Answer(s, &wire.Deposit{Envelope: random(1024)}, tagsFrame(1, false, wire.ClassContact, newTag()))
		})
		if _, err := connect(h.net.Host(t, transport.Config{Role: transport.Errands}, nodetest.IP(1)), h.info, h.node()); err == nil {
			t.Fatal("there was an answer")
		}
		if err := <-answered; err == nil {
			t.Fatal("the stream took an answer")
		}
		if held := h.Held(); held != 0 {
			t.Fatalf("%d bytes are held for a client that has left", held)
		}
	})
}
