package node_test

import (
	"context"
	"strings"
	"testing"
	"time"

	apiv1 "github.com/kith-im/kith/node/api/v1"
	"github.com/kith-im/kith/node/nodetest"
)

// roadTo pings a contact and returns the road it took.
func roadTo(t *testing.T, u *nodetest.User, contact string) string {
	t.Helper()
	out, err := u.Ping(context.Background(), &apiv1.PingRequest{Contact: contact})
	if err != nil {
		t.Fatalf("%s pings %s: %v", u.Name, contact, err)
	}
	return out.Road
}

// behindNATs makes two users behind NATs, who are contacts.
func (w *world) behindNATs(a, b nodetest.NAT) (alice, bob *nodetest.User) {
	w.t.Helper()
	for i, nat := range []nodetest.NAT{a, b} {
		w.SetNAT(nodetest.IP(1001+w.users+i), nat)
	}
	return w.pair()
}

// natCheck is what doctor says of the NAT before somebody.
func natCheck(t *testing.T, u *nodetest.User) string {
	t.Helper()
	out, err := u.Doctor(ctx, &apiv1.DoctorRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range out.Checks {
		if c.Name == "nat" {
			return c.Text
		}
	}
	return ""
}

// TestF11_Roads: contacts meet directly where the NATs between them allow it, and
// over a relay where not.
func TestF11_Roads(t *testing.T) {
	for _, test := range []struct {
		name string
		a, b nodetest.NAT
		want string
	}{
		{"none to none", nodetest.NoNAT, nodetest.NoNAT, "direct"},
		{"port-restricted to none", nodetest.PortNAT, nodetest.NoNAT, "direct"},
		{"none to port-restricted", nodetest.NoNAT, nodetest.PortNAT, "direct"},
		{"port-restricted to port-restricted", nodetest.PortNAT, nodetest.PortNAT, "direct"},
		{"symmetric to none", nodetest.SymmetricNAT, nodetest.NoNAT, "direct"},
		{"symmetric to symmetric", nodetest.SymmetricNAT, nodetest.SymmetricNAT, "relay"},
		{"symmetric to port-restricted", nodetest.SymmetricNAT, nodetest.PortNAT, "relay"},
	} {
		t.Run(test.name, func(t *testing.T) {
			simulate(t, 5, func(t *testing.T, w *world) {
				alice, bob := w.behindNATs(test.a, test.b)
				start := time.Now()
				alice.UntilDelivered(alice.Say("bob", "hello")...)
				first := time.Since(start)
				alice.UntilWithin(time.Minute, "the road is "+test.want, func() bool { return roadTo(t, alice, "bob") == test.want })
				t.Logf("delivered after %v, %s after %v", first, test.want, time.Since(start))
				time.Sleep(time.Minute)
				if got := roadTo(t, bob, "alice"); got != test.want {
					t.Errorf("the other side's road is %s, want %s", got, test.want)
				}
				// Simulated symmetric NATs have no sockets to compare.
				if got := natCheck(t, bob); test.b == nodetest.PortNAT && !strings.Contains(got, "the same for everybody") {
					t.Errorf("of bob's NAT doctor says %q", got)
				}
			})
		})
	}
}

// TestF11_HiddenAddress: from whom a user hides, they are met over relays alone.
// Nothing goes directly between the two, though both could be dialled; and what
// their records say leads through relays (docs/spec/roads.md, section 7).
func TestF11_HiddenAddress(t *testing.T) {
	lasting(t)
	simulate(t, 5, func(t *testing.T, w *world) {
		alice, bob := w.talking()
		if got := roadTo(t, alice, "bob"); got != "direct" {
			t.Fatalf("the road is %s to begin with", got)
		}
		c, err := bob.HideAddress(ctx, &apiv1.HideAddressRequest{Contact: "alice", Hidden: true})
		if err != nil || !c.Contact.AddressHidden {
			t.Fatalf("hide: %v, %v", c, err)
		}
		bob.Restart() // under another name, and where nobody knows him
		bob.Until("bob has relays", func() bool { return roadState(t, bob) == "ok" })
		alice.Restart()
		ab, ba := w.Dials(alice.IP, bob.IP), w.Dials(bob.IP, alice.IP)
		for range 3 {
			alice.UntilDelivered(alice.Say("bob", "where are you?")...)
			bob.UntilDelivered(bob.Say("alice", "somewhere")...)
			time.Sleep(time.Hour)
		}
		if got := roadTo(t, alice, "bob"); got != "relay" {
			t.Errorf("the road is %s", got)
		}
		// What alice remembers of bob leads to nobody any more; his record leads to relays.
		if got := w.Dials(bob.IP, alice.IP) - ba; got != 0 {
			t.Errorf("bob dialled alice %d times", got)
		}
		if got := w.Dials(alice.IP, bob.IP) - ab; got > 1 {
			t.Errorf("alice dialled bob %d times", got)
		}
		if _, err := bob.HideAddress(ctx, &apiv1.HideAddressRequest{Contact: "alice"}); err != nil {
			t.Fatal(err)
		}
		alice.Until("the road is direct again", func() bool {
			time.Sleep(time.Minute)
			return roadTo(t, alice, "bob") == "direct"
		})
	})
}

func roadState(t *testing.T, u *nodetest.User) string {
	t.Helper()
	s, err := u.Status(ctx, &apiv1.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return s.Roads["relay"]
}

// TestF11_Strangers: who answers a reusable invite is met over relays until they
// are approved, by the one side and by the other.
func TestF11_Strangers(t *testing.T) {
	simulate(t, 5, func(t *testing.T, w *world) {
		alice, bob := w.user("alice"), w.user("bob")
		bob.Accept(reusable(alice), "alice")
		bob.Say("alice", "let me in")
		r := untilRequests(t, alice, 1)[0]
		time.Sleep(2 * time.Hour)
		if a, b := w.Dials(alice.IP, bob.IP), w.Dials(bob.IP, alice.IP); a+b != 0 {
			t.Errorf("strangers dialled each other, %d and %d times", a, b)
		}
		if _, err := alice.ApproveRequest(ctx, &apiv1.ApproveRequestRequest{Id: r.Id}); err != nil {
			t.Fatal(err)
		}
		bob.UntilEstablished("alice")
		alice.UntilDelivered(alice.Say("bob", "welcome")...)
		alice.Until("the road is direct", func() bool {
			time.Sleep(time.Minute)
			return roadTo(t, alice, "bob") == "direct"
		})
	})
}

// TestHandOver: a thousand texts each way, sent while the conversation moves from
// the relay to a direct connection, arrive once and in order (docs/spec/roads.md,
// section 6).
func TestHandOver(t *testing.T) {
	simulate(t, 5, func(t *testing.T, w *world) {
		alice, bob := w.behindNATs(nodetest.PortNAT, nodetest.PortNAT)
		bob.Restart() // what was direct is over
		roads := make(map[string]bool)
		var last, back []string
		for i := range 10 {
			last = alice.Say("bob", numbered("to bob", 100)...)
			back = bob.Say("alice", numbered("to alice", 100)...)
			if i < 9 {
				time.Sleep(50 * time.Millisecond)
			}
			if out, err := alice.Ping(ctx, &apiv1.PingRequest{Contact: "bob"}); err == nil { // he may not be back yet
				roads[out.Road] = true
			}
		}
		alice.UntilDelivered(last...)
		bob.UntilDelivered(back...)
		agree(t, alice, bob, 2000)
		if !roads["relay"] {
			t.Errorf("the roads were %v", roads)
		}
		alice.UntilWithin(time.Minute, "the road is direct", func() bool { return roadTo(t, alice, "bob") == "direct" })
	})
}

// TestF09_RelayDies: a relay dies in the middle of a thousand texts between two
// who have no other road, with its connections or without a word.
func TestF09_RelayDies(t *testing.T) {
	for _, test := range []struct {
		name   string
		die    func(w *world, c *nodetest.Community)
		within time.Duration
	}{
		{"killed", func(_ *world, c *nodetest.Community) { c.Kill() }, 5 * time.Second},
		{"silent", func(w *world, c *nodetest.Community) { w.Blackhole(c.IP) }, 14 * time.Second},
	} {
		t.Run(test.name, func(t *testing.T) {
			simulate(t, 5, func(t *testing.T, w *world) {
				alice, bob := w.behindNATs(nodetest.SymmetricNAT, nodetest.SymmetricNAT)
				alice.UntilDelivered(alice.Say("bob", "hello")...)
				var ids []string
				for i := range 10 {
					ids = append(ids, alice.Say("bob", numbered("text", 100)...)...)
					time.Sleep(5 * time.Millisecond)
					if i != 4 {
						continue
					}
					died := 0
					for _, c := range w.ways {
						if c.Host.Relaying().Connections > 0 {
							test.die(w, c)
							died++
						}
					}
					if died == 0 {
						t.Error("nothing was relayed")
					}
				}
				start := time.Now()
				alice.UntilDelivered(ids...)
				if took := time.Since(start); took > test.within {
					t.Errorf("all is delivered %v after the last was sent, want %v", took, test.within)
				} else {
					t.Logf("delivered %v after the last was sent", took)
				}
				agree(t, alice, bob, 1001)
			})
		})
	}
}
