package node

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	libp2pcrypto "github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/kith-im/kith/node/store"
	"github.com/kith-im/kith/node/transport"
	"github.com/kith-im/kith/protocol/mailbox"
)

// Boxes that are given up take no place in what contacts are told, and a box
// that contacts are not told of is not one that works.
func TestSetBesideLeavingBoxes(t *testing.T) {
	st, err := store.Open(store.Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	n := &Node{store: st, now: time.Now}
	n.beacon = newBeacon(n)
	err = n.update(t.Context(), func(w *work) error {
		for i := range 13 {
			_, pub, err := libp2pcrypto.GenerateEd25519Key(rand.Reader)
			if err != nil {
				return err
			}
			id, err := peer.IDFromPublicKey(pub)
			if err != nil {
				return err
			}
			b := store.BoxRow{
				Node: []byte(id), Address: fmt.Sprintf("/ip4/10.0.0.%d/udp/4040/quic-v1/p2p/%s", i+1, id),
				Key: make([]byte, len(mailbox.BoxKey{})), State: store.BoxLeaving, Chosen: true,
			}
			if i < 3 {
				b.State, b.Chosen = store.BoxActive, false
			}
			if err := w.tx.SaveBox(b); err != nil {
				return err
			}
		}
		for _, want := range []int{0, 3} {
			if healthy, all, err := healthyBoxes(w.tx, w.age, standingNow); err != nil || healthy != want || all != want {
				t.Errorf("%d of %d boxes work, want %d: %v", healthy, all, want, err)
			}
			if err := w.publishBoxes(); err != nil {
				return err
			}
		}
		told, err := mailSet(w.tx)
		if err != nil {
			return err
		}
		set, err := mailbox.ParseSet(told)
		if err == nil && len(set.Nodes) != 3 {
			t.Errorf("contacts are told of %d boxes, want 3", len(set.Nodes))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// However many addresses there are, a record takes those that fit beside the
// prekey bundle, the best of each kind first.
func TestAddressesThatFit(t *testing.T) {
	var w whereabouts
	for i := range 4 {
		w.direct = append(w.direct, bytes.Repeat([]byte{byte(i)}, 60))
		w.relayed = append(w.relayed, bytes.Repeat([]byte{byte(4 + i)}, 100))
	}
	for name, test := range map[string]struct {
		bundle int
		direct bool
		want   int
	}{
		"all fit":      {2000, true, 8},
		"some fit":     {3400, true, 7},
		"relays alone": {3400, false, 4},
		"fewer relays": {3700, false, 2},
		"none fits":    {3925, true, 0},
	} {
		body := w.to(audience{direct: test.direct, bundle: make([]byte, test.bundle)})
		if _, err := body.Marshal(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		t.Log(name, len(body.Addresses))
		if len(body.Addresses) != test.want {
			t.Errorf("%s: %d addresses, want %d", name, len(body.Addresses), test.want)
		}
		if test.direct && test.want > 1 && !bytes.Equal(body.Addresses[0], w.direct[0]) {
			t.Errorf("%s: the best address is not the first", name)
		}
	}
}

// A change of the mode is not taken for one of the network: what still works
// through a bridge would be dropped.
func TestPlace(t *testing.T) {
	at := func(mode transport.Mode, addresses ...string) place { return place{mode, addresses} }
	for name, test := range map[string]struct {
		was, is     place
		moved, lost bool
	}{
		"nothing changed":   {at(transport.Open, "a", "b"), at(transport.Open, "a", "b"), false, false},
		"another network":   {at(transport.Open, "a", "b"), at(transport.Open, "c", "b"), true, true},
		"one more":          {at(transport.Open, "a"), at(transport.Open, "a", "b"), true, false},
		"one less":          {at(transport.Open, "a", "b"), at(transport.Open, "a"), true, true},
		"became censored":   {at(transport.Open, "a", "b"), at(transport.Censored), false, false},
		"is open again":     {at(transport.Censored), at(transport.Open, "a", "b"), false, false},
		"another in hiding": {at(transport.Censored, "a"), at(transport.Censored, "b"), true, true},
	} {
		if moved, lost := test.is.since(test.was); moved != test.moved || lost != test.lost {
			t.Errorf("%s: moved %v, lost %v", name, moved, lost)
		}
	}
}

// We wait at no bridge but the user's own, and at none that is a secret: who named it to
// us may run it, and would learn where we are.
func TestF11_Doors(t *testing.T) {
	st, err := store.Open(store.Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	n := &Node{store: st, now: time.Now, modes: &modes{}}
	var ours peer.ID
	if err := st.Update(t.Context(), func(tx *store.Tx) error {
		for i, b := range []store.BridgeRow{
			{Source: store.BridgeFromUser, Shared: true},
			{Source: store.BridgeFromUser},
			{Source: store.BridgeFromInvite, Shared: true},
			{Source: store.BridgeFromContact},
		} {
			_, pub, err := libp2pcrypto.GenerateEd25519Key(rand.Reader)
			if err != nil {
				return err
			}
			id, err := peer.IDFromPublicKey(pub)
			if err != nil {
				return err
			}
			if i == 0 {
				ours = id
			}
			b.Address = fmt.Sprintf("/ip4/20.9.9.%d/tcp/443/tls/sni/cats.example/http-path/AAECAwQFBgcICQoLDA0ODw/p2p/%s", i+1, id)
			if err := tx.SaveBridge(b); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if doors, err := n.doors(t.Context()); err != nil || !slices.Equal(doors, []peer.ID{ours}) {
		t.Errorf("we wait at %d bridges: %v, %v", len(doors), doors, err)
	}
	n.modes.mode = transport.Censored
	if doors, err := n.doors(t.Context()); err != nil || len(doors) > 0 {
		t.Errorf("in censored mode we wait at %d bridges besides: %v", len(doors), err)
	}
}

// Records name a bridge to those alone who were told of it.
func TestWaysTold(t *testing.T) {
	const id = "12D3KooWDBEmPh41n4p3WTk6z6Xu1REDq2pwn59fd4HiyehFnFVy"
	all := bridgeBytes([]store.BridgeRow{{Address: "/ip4/20.9.9.9/tcp/443/tls/sni/cats.example/http-path/AAECAwQFBgcICQoLDA0ODw/p2p/" + id, Shared: true}})
	for name, test := range map[string]struct {
		state store.ContactState
		link  []byte
		want  int
	}{
		"whose invite we answered":    {store.ContactPending, []byte{1}, 0},
		"who answered ours":           {store.ContactPending, nil, 1},
		"established":                 {store.ContactEstablished, nil, 1},
		"established, by a newer one": {store.ContactEstablished, []byte{1}, 1},
	} {
		told := waysTold(store.ContactRow{State: test.state}, store.DeviceRow{Link: test.link}, all)
		if len(told) != test.want {
			t.Errorf("%s: records name %d bridges, want %d", name, len(told), test.want)
		}
	}
}

// On a slow line an announcement is not made again as soon as it is over.
func TestRecordsRest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBeacon(&Node{})
		for took, want := range map[time.Duration]time.Duration{5 * time.Second: 10 * time.Second, time.Hour: time.Minute} {
			if rest := time.Until(restAfter(time.Now().Add(-took))); rest != want {
				t.Errorf("after an announcement that took %v records rest for %v, want %v", took, rest, want)
			}
		}
		rest := time.Now().Add(10 * time.Second)
		if b.renewed(rest) {
			t.Error("nothing has changed")
		}
		began := time.Now()
		b.renew()
		<-b.changed
		if b.renewed(rest) {
			t.Error("records are made anew at once")
		}
		<-b.changed
		if took := time.Since(began); took != 10*time.Second || !b.renewed(rest) {
			t.Errorf("records are not made anew after %v", took)
		}
	})
}

// While relays are looked for anew, records go on saying what they said.
func TestRelaysTold(t *testing.T) {
	n := &Node{modes: &modes{mode: transport.Censored}}
	n.beacon = newBeacon(n)
	r := newRelays(n)
	id, err := peer.Decode("12D3KooWDBEmPh41n4p3WTk6z6Xu1REDq2pwn59fd4HiyehFnFVy")
	if err != nil {
		t.Fatal(err)
	}
	told := func(want int, renewed bool) {
		t.Helper()
		r.tell()
		if got := len(r.addresses()); got != want {
			t.Errorf("%d addresses are told, want %d", got, want)
		}
		if got := n.beacon.anew.Swap(false); got != renewed {
			t.Errorf("records are made anew: %v", got)
		}
	}
	r.held[id] = reservation{info: peer.AddrInfo{ID: id}}
	told(1, true)
	r.forget(id)
	if len(r.addresses()) != 1 {
		t.Error("a reservation that is being renewed left the records")
	}
	r.held[id] = reservation{info: peer.AddrInfo{ID: id}}
	told(1, false)
	r.forget(id)
	told(0, true)
	r.held[id] = reservation{info: peer.AddrInfo{ID: id}}
	told(1, true)
	n.modes.mode = transport.Open
	told(0, true) // a bridge's name is not for everybody
	if held, _ := r.standing(); held != 0 {
		t.Errorf("everybody reaches us through %d relays", held)
	}
}
