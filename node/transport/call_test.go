package transport_test

import (
	"errors"
	"io"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/protocol"

	"github.com/kith-im/kith/node/nodetest"
	"github.com/kith-im/kith/node/transport"
)

// TestCall: the first words are answered when libp2p's own way would just have heard
// identify, and before the name was answered.
func TestCall(t *testing.T) {
	nodetest.Bubble(t, 1, func(t *testing.T, n *nodetest.Network) {
		home := n.Host(t, transport.Config{}, nodetest.IP(1))
		home.HandleSecret(func(name protocol.ID) bool { return name == "/secret" }, func(s network.Stream) {
			_, _ = io.Copy(s, s)
			s.Close()
		})
		caller := n.Host(t, transport.Config{}, nodetest.IP(2))
		n.SetLatency(100 * time.Millisecond)
		start := time.Now()
		if err := n.Host(t, transport.Config{}, nodetest.IP(3)).Connect(t.Context(), nodetest.AddrInfo(t, home)); err != nil {
			t.Fatal(err)
		}
		usual := time.Since(start)
		start = time.Now()
		if err := caller.Reach(t.Context(), nodetest.AddrInfo(t, home)); err != nil {
			t.Fatal(err)
		}
		s, err := caller.Call(t.Context(), home.ID(), "/secret")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(s, "hello"); err != nil {
			t.Fatal(err)
		}
		answer := make([]byte, 5)
		if _, err := io.ReadFull(s, answer); err != nil || string(answer) != "hello" {
			t.Errorf("the answer is %q: %v", answer, err)
		}
		if took := time.Since(start); took != usual {
			t.Errorf("answered after %v, want %v", took, usual)
		}
		if err := s.CloseWrite(); err != nil {
			t.Error(err)
		}
		if rest, err := io.ReadAll(s); err != nil || len(rest) > 0 {
			t.Errorf("after the last word: %q, %v", rest, err)
		}

		silent, err := caller.Call(t.Context(), home.ID(), "/secret")
		if err != nil {
			t.Fatal(err)
		}
		if err := silent.CloseWrite(); err != nil {
			t.Error(err)
		}
		if all, err := io.ReadAll(silent); err != nil || len(all) > 0 {
			t.Errorf("who says nothing gets %q, %v", all, err)
		}

		unknown, err := caller.Call(t.Context(), home.ID(), "/unknown")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(unknown, "hello"); err != nil {
			t.Error(err)
		}
		if _, err := unknown.Read(answer); !errors.Is(err, transport.ErrNotSpoken) {
			t.Errorf("a name that is not served: %v", err)
		}
		_ = unknown.Reset()
		_ = caller.Network().ClosePeer(home.ID())
		if _, err := caller.Call(t.Context(), home.ID(), "/secret"); err == nil {
			t.Error("a call dialled")
		}
	})
}
