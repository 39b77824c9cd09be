package transport_test

import (
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/network"

	"github.com/kith-im/kith/node/nodetest"
	"github.com/kith-im/kith/node/transport"
)

// TestBudgetOfADay: once the day's bytes are used up, a community node and look-ups
// stop, conversations go on, and midnight ends it; a restart does not.
func TestBudgetOfADay(t *testing.T) {
	nodetest.Bubble(t, 1, func(t *testing.T, n *nodetest.Network) {
		meter := transport.NewMeter(transport.Budget{Bytes: 1 << 20}, nil)
		node := n.Host(t, transport.Config{Role: transport.Community, Meter: meter}, nodetest.IP(0))
		node.SetStreamHandler("/lan/mailbox/1.0.0", func(s network.Stream) {
			_, _ = io.Copy(s, s)
			_ = s.Close()
		})
		before := n.Host(t, transport.Config{Role: transport.Errands}, nodetest.IP(1))
		if err := before.Connect(t.Context(), nodetest.AddrInfo(t, node)); err != nil {
			t.Fatal(err)
		}
		s, err := before.NewStream(t.Context(), node.ID(), "/lan/mailbox/1.0.0")
		if err != nil {
			t.Fatal(err)
		}
		piece := make([]byte, 64<<10)
		for range 10 {
			if _, err := s.Write(piece); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(s, piece); err != nil {
				t.Fatal(err)
			}
		}
		u, day := meter.Usage()
		if mail := u.Sent[transport.Mailboxes]; mail < 640<<10 || mail > 700<<10 {
			t.Errorf("%d bytes were counted for mailboxes, want 640 KiB", mail)
		}
		if u.Sent[transport.Upkeep] == 0 || u.Sent[transport.Conversations] != 0 {
			t.Errorf("counted %+v", u)
		}

		late := n.Host(t, transport.Config{Role: transport.Errands}, nodetest.IP(2))
		if err := late.Connect(t.Context(), nodetest.AddrInfo(t, node)); err == nil {
			t.Error("the node takes newcomers when its day's bytes are used up")
		}
		if s, err := before.NewStream(t.Context(), node.ID(), "/lan/mailbox/1.0.0"); err == nil {
			if _, err := s.Write(piece); err == nil {
				if _, err = io.ReadFull(s, piece); err == nil {
					t.Error("the node serves when its day's bytes are used up")
				}
			}
		}
		talk := n.Host(t, transport.Config{Meter: meter}, nodetest.IP(3))
		friend := n.Host(t, transport.Config{}, nodetest.IP(4))
		if err := talk.Connect(t.Context(), nodetest.AddrInfo(t, friend)); err != nil {
			t.Errorf("conversations end with the day's bytes: %v", err)
		}
		look := n.Host(t, transport.Config{Role: transport.Errands, Meter: meter}, nodetest.IP(5))
		if err := look.Connect(t.Context(), nodetest.AddrInfo(t, friend)); err == nil {
			t.Error("look-ups go on when the day's bytes are used up")
		}

		again := transport.NewMeter(transport.Budget{Bytes: 1 << 20}, nil)
		again.Restore(u, day)
		if now, _ := again.Usage(); now.Bytes() != u.Bytes() {
			t.Errorf("after a restart %d bytes are counted, want %d", now.Bytes(), u.Bytes())
		}
		time.Sleep(24 * time.Hour)
		if now, _ := meter.Usage(); now.Bytes() != 0 {
			t.Errorf("the next day begins with %d bytes", now.Bytes())
		}
		if err := late.Connect(t.Context(), nodetest.AddrInfo(t, node)); err != nil {
			t.Errorf("the next day the node is closed: %v", err)
		}
	})
}

// TestDayGoesBack: a clock that was wrong for a while, or is put back a little, leaves
// nobody without bytes for longer than a day has.
func TestDayGoesBack(t *testing.T) {
	now := time.Date(2026, 11, 27, 12, 0, 0, 0, time.UTC)
	meter := transport.NewMeter(transport.Budget{Bytes: 1000}, func() time.Time { return now })
	use := func() { meter.LogSentMessageStream(1000, "/lan/mailbox/1.0.0", "") }
	now = now.AddDate(1, 0, 0)
	use()
	if !meter.Spent() {
		t.Error("what a day has is not used up")
	}
	now = now.AddDate(-1, 0, 0)
	if meter.Spent() {
		t.Error("what was used of another day counts")
	}
	use()
	now = now.Add(-time.Hour)
	if !meter.Spent() {
		t.Error("an hour back on the same day there are bytes again")
	}
}

// TestSpentBytes: once the day's bytes are used up nothing is asked any more on
// connections that are there, but for conversations.
func TestSpentBytes(t *testing.T) {
	nodetest.Bubble(t, 1, func(t *testing.T, n *nodetest.Network) {
		meter := transport.NewMeter(transport.Budget{Bytes: 1 << 20}, nil)
		node := n.Host(t, transport.Config{}, nodetest.IP(0))
		node.SetStreamHandler("/lan/mailbox/1.0.0", func(s network.Stream) { _ = s.Close() })
		errands := n.Host(t, transport.Config{Role: transport.Errands, Meter: meter}, nodetest.IP(1))
		talk := n.Host(t, transport.Config{Role: transport.Contacts, Meter: meter}, nodetest.IP(2))
		opens := func(h *transport.Host) error {
			if err := h.Connect(t.Context(), nodetest.AddrInfo(t, node)); err != nil {
				return err
			}
			s, err := h.NewStream(t.Context(), node.ID(), "/lan/mailbox/1.0.0")
			if err == nil {
				_ = s.Reset()
			}
			return err
		}
		for _, h := range []*transport.Host{errands, talk} {
			if err := opens(h); err != nil {
				t.Fatal(err)
			}
		}
		_, today := meter.Usage()
		var earlier transport.Usage
		earlier.Received[transport.Directory] = 1 << 20
		meter.Restore(earlier, today)
		if opens(errands) == nil {
			t.Error("errands go on when the day's bytes are used up")
		}
		if err := opens(talk); err != nil {
			t.Errorf("conversations end with the day's bytes: %v", err)
		}
	})
}

// TestBudgetOfDials: no more is dialled than the budget says.
func TestBudgetOfDials(t *testing.T) {
	nodetest.Bubble(t, 1, func(t *testing.T, n *nodetest.Network) {
		meter := transport.NewMeter(transport.Budget{Dials: 6}, nil)
		h := n.Host(t, transport.Config{Role: transport.Errands, Meter: meter}, nodetest.IP(0))
		dialled := func() (ok int) {
			for i := range 10 {
				other := n.Host(t, transport.Config{}, nodetest.IP(10+i))
				if h.Connect(t.Context(), nodetest.AddrInfo(t, other)) == nil {
					ok++
				}
				other.Close()
			}
			return ok
		}
		if ok := dialled(); ok != 6 {
			t.Errorf("%d of 10 dials at once, want 6", ok)
		}
		time.Sleep(30 * time.Second)
		if ok := dialled(); ok != 3 {
			t.Errorf("%d of 10 dials half a minute later, want 3", ok)
		}
		if u, _ := meter.Usage(); u.Dials != 9 || u.Refused != 11 {
			t.Errorf("counted %d dials and %d refused, want 9 and 11", u.Dials, u.Refused)
		}
	})
}

// TestF03_HonestPace: a peer that opens streams as honest ones do, and twice as
// many, stays.
func TestF03_HonestPace(t *testing.T) {
	nodetest.Bubble(t, 1, func(t *testing.T, n *nodetest.Network) {
		server := n.Host(t, transport.Config{Role: transport.Community}, nodetest.IP(0))
		peer := n.Host(t, transport.Config{Role: transport.Errands}, nodetest.IP(1))
		if err := peer.Connect(t.Context(), nodetest.AddrInfo(t, server)); err != nil {
			t.Fatal(err)
		}
		for i := range 600 {
			if err := pingOnce(t, peer, server.ID()); err != nil {
				t.Fatalf("ping %d: %v", i, err)
			}
			time.Sleep(100 * time.Millisecond)
		}
	})
}

// TestF13_SlowReader never reads what it asks for: what waits for it is bounded by
// its window, and others are served meanwhile.
func TestF13_SlowReader(t *testing.T) {
	server := realHost(t, transport.Community, tcpLoopback)
	const name = "/lan/test/1.0.0"
	var sent [2]int64
	stopped := make(chan struct{})
	server.SetStreamHandler(name, func(s network.Stream) {
		defer close(stopped)
		piece := make([]byte, 64<<10)
		_ = s.SetWriteDeadline(time.Now().Add(2 * time.Second)) // as every writer of ours sets one
		for {
			n, err := s.Write(piece)
			sent[0] += int64(n)
			if err != nil {
				_ = s.Reset()
				return
			}
		}
	})
	slow, other := realHost(t, transport.Errands), realHost(t, transport.Errands)
	for _, h := range []*transport.Host{slow, other} {
		if err := h.Connect(t.Context(), nodetest.AddrInfo(t, server)); err != nil {
			t.Fatal(err)
		}
	}
	s, err := slow.NewStream(t.Context(), server.ID(), name)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = s.Write([]byte{1})
	if err := pingOnce(t, other, server.ID()); err != nil {
		t.Errorf("another is not served: %v", err)
	}
	if err := pingOnce(t, slow, server.ID()); err != nil {
		t.Errorf("the slow reader's other streams are not served: %v", err)
	}
	<-stopped
	if sent[0] > 1<<20 {
		t.Errorf("%d bytes were taken for one who reads nothing", sent[0])
	}
}

// TestF14_NegotiationFlood opens streams that never name a protocol: no more are
// open at a time than one peer may have, and each ends within its time.
func TestF14_NegotiationFlood(t *testing.T) {
	nodetest.Bubble(t, 1, func(t *testing.T, n *nodetest.Network) {
		server := n.Host(t, transport.Config{Role: transport.Community, Memory: transport.CommunityMemory}, nodetest.IP(0))
		flooder := n.Host(t, transport.Config{Role: transport.Errands, Memory: transport.CommunityMemory}, nodetest.IP(1))
		other := n.Host(t, transport.Config{Role: transport.Errands}, nodetest.IP(2))
		for _, h := range []*transport.Host{flooder, other} {
			if err := h.Connect(t.Context(), nodetest.AddrInfo(t, server)); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Minute)
		conn := flooder.Network().ConnsToPeer(server.ID())[0]
		for range 150 { // below what is cut off as a storm
			s, err := conn.NewStream(t.Context())
			if errors.Is(err, network.ErrResourceLimitExceeded) {
				continue // our own limit
			}
			if err != nil {
				break
			}
			_, _ = s.Write([]byte{19}) // the length of a line that does not come
		}
		synctest.Wait()
		open := 0
		for _, c := range server.Network().ConnsToPeer(flooder.ID()) {
			open += len(c.GetStreams())
		}
		if open > 64 {
			t.Errorf("%d streams of one peer wait for a name", open)
		}
		if err := pingOnce(t, other, server.ID()); err != nil {
			t.Errorf("another is not served: %v", err)
		}
		time.Sleep(transport.FirstByteTimeout + time.Second)
		for _, c := range server.Network().ConnsToPeer(flooder.ID()) {
			if left := len(c.GetStreams()); left > 0 {
				t.Errorf("%d streams are left after their time", left)
			}
		}
	})
}
