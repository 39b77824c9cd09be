package node_test

import (
	"strings"
	"testing"
	"time"

	apiv1 "github.com/kith-im/kith/node/api/v1"
	"github.com/kith-im/kith/node/nodetest"
)

// netcheck returns what kith netcheck says of one thing.
func netcheck(t *testing.T, u *nodetest.User, name string) *apiv1.Check {
	t.Helper()
	out, err := u.Netcheck(ctx, &apiv1.NetcheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range out.Checks {
		if c.Name == name {
			return c
		}
	}
	return nil
}

// TestNetcheckLooksUp: netcheck says whether the directory answers, by looking
// something up, and in censored mode asks nobody but bridges.
func TestNetcheckLooksUp(t *testing.T) {
	for _, test := range []struct {
		name       string
		before     func(*testing.T, *world, *nodetest.User)
		ok, asks   bool // nodes are dialled
		text, hint string
	}{
		{
			name: "it answers", ok: true, asks: true, text: "The directory answers, within ",
			before: func(*testing.T, *world, *nodetest.User) {},
		},
		{
			name: "it does not", asks: true, text: "no community node took a look-up", hint: "--bootstrap",
			before: func(_ *testing.T, w *world, _ *nodetest.User) {
				for _, c := range w.ways {
					c.Kill()
				}
			},
		},
		{
			name: "the bridge is down", text: "does not answer through any bridge", hint: "kith bridge add",
			before: func(t *testing.T, _ *world, u *nodetest.User) {
				if _, err := u.AddBridge(ctx, &apiv1.AddBridgeRequest{Address: aBridge}); err != nil {
					t.Fatal(err)
				}
			},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			simulate(t, 3, func(t *testing.T, w *world) {
				alice := w.user("alice")
				time.Sleep(time.Minute) // it has joined the directory
				test.before(t, w, alice)
				dials := func() (n int) {
					for _, c := range w.ways {
						n += w.Dials(alice.IP, c.IP)
					}
					return n
				}
				was := dials()
				c := netcheck(t, alice, "directory")
				if c == nil {
					t.Fatal("nothing is said of the directory")
				}
				if c.Ok != test.ok || !strings.Contains(c.Text, test.text) || !strings.Contains(c.Hint, test.hint) || c.Ok != (c.Hint == "") {
					t.Errorf("of the directory it says %v", c)
				}
				if asked := dials() - was; asked > 0 != test.asks {
					t.Errorf("%d dials to community nodes", asked)
				}
			})
		})
	}
}

// TestDoctorSeesNow: when community nodes are connected to again, that is what doctor
// says of the network, and not what was found while they were down.
func TestDoctorSeesNow(t *testing.T) {
	simulate(t, 3, func(t *testing.T, w *world) {
		alice := w.user("alice")
		time.Sleep(time.Minute) // it has joined the directory
		road := func() *apiv1.Check {
			t.Helper()
			out, err := alice.Doctor(ctx, &apiv1.DoctorRequest{})
			if err != nil {
				t.Fatal(err)
			}
			for _, c := range out.Checks {
				if c.Name == "network" {
					return c
				}
			}
			t.Fatal("nothing is said of the network")
			return nil
		}
		for _, c := range w.ways {
			c.Stop()
		}
		netcheck(t, alice, "network")
		time.Sleep(42 * time.Second)
		if c := road(); c.Ok || !strings.Contains(c.Text, " seconds ago)") {
			t.Errorf("without community nodes doctor says %v", c)
		}
		for _, c := range w.ways {
			c.Start()
		}
		time.Sleep(time.Hour)
		if c := road(); !c.Ok || !strings.Contains(c.Text, "Community nodes can be reached (connected now)") {
			t.Errorf("with them doctor says %v", c)
		}
	})
}

// aBridge is the address of a bridge that does not exist. It is no name: names
// would be looked up outside the bubble.
const aBridge = "/ip4/20.99.0.1/tcp/443/tls/sni/cats.example/http-path/AAECAwQFBgcICQoLDA0ODw/p2p/12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN"
