package node

import (
	"log/slog"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/kith-im/kith/node/store"
	"github.com/kith-im/kith/node/transport"
)

// findings makes what the probes of one server found.
func findings(outcome transport.Outcome, probes ...transport.Probe) (f transport.Findings) {
	for _, p := range probes {
		f[p] = outcome
	}
	return f
}

// but changes some of them.
func but(f transport.Findings, outcome transport.Outcome, probes ...transport.Probe) transport.Findings {
	for _, p := range probes {
		f[p] = outcome
	}
	return f
}

// TestSkew: of several relays the one counts whose clock is nearest to ours, so
// that none can set it wrong alone.
func TestSkew(t *testing.T) {
	r := newRelays(nil)
	if _, ok := r.skew(); ok {
		t.Error("a clock is known without a relay")
	}
	for id, ahead := range map[peer.ID]time.Duration{"a": -3 * time.Hour, "b": 5 * time.Second, "c": 9 * time.Hour} {
		r.held[id] = reservation{ahead: ahead}
	}
	if skew, ok := r.skew(); !ok || skew != 5*time.Second {
		t.Errorf("the clocks differ by %v, %v", skew, ok)
	}
}

func TestJudge(t *testing.T) {
	const silent, reset, passed = transport.Silent, transport.Reset, transport.Passed
	node := findings(passed, transport.ProbeTCP, transport.ProbeUDP, transport.ProbeQUIC, transport.ProbeQUICOurs,
		transport.ProbePlain, transport.ProbeLong)
	bridge := findings(passed, transport.ProbeTCP, transport.ProbeTLS, transport.ProbeVeil)
	site := but(bridge, transport.NotTried, transport.ProbeVeil) // it was not asked for the bridge
	down := findings(silent, transport.ProbeTCP, transport.ProbeUDP, transport.ProbeQUIC, transport.ProbeQUICOurs)
	type list = []transport.Findings
	for _, test := range []struct {
		name           string
		nodes, bridges list
		blocked        []obstacle
		open, bridge   bool
	}{
		{name: "nothing is known"},
		{name: "all passes", nodes: list{node}, bridges: list{bridge}, open: true, bridge: true},
		{name: "nothing passes", nodes: list{down, down}, bridges: list{findings(silent, transport.ProbeTCP)}, blocked: []obstacle{obstacleAll}},
		{name: "one of two nodes is down", nodes: list{node, down}, blocked: []obstacle{obstacleAddress}, open: true},
		{name: "UDP", nodes: list{but(node, silent, transport.ProbeUDP, transport.ProbeQUIC, transport.ProbeQUICOurs)}, blocked: []obstacle{obstacleUDP}, open: true},
		{name: "QUIC", nodes: list{but(node, silent, transport.ProbeQUIC, transport.ProbeQUICOurs)}, blocked: []obstacle{obstacleQUIC}, open: true},
		{name: "QUIC's name", nodes: list{but(node, silent, transport.ProbeQUICOurs)}, blocked: []obstacle{obstacleALPN}, open: true},
		{name: "UDP here and there: one node is old", nodes: list{node, but(node, silent, transport.ProbeUDP, transport.ProbeQUIC, transport.ProbeQUICOurs)}, open: true},
		{name: "the plain handshake, dropped", nodes: list{but(but(node, silent, transport.ProbePlain), transport.NotTried, transport.ProbeLong)}, blocked: []obstacle{obstaclePlain}, open: true},
		{name: "the plain handshake, reset, and UDP", nodes: list{but(findings(passed, transport.ProbeTCP), reset, transport.ProbePlain), but(but(down, passed, transport.ProbeTCP), reset, transport.ProbePlain)}, bridges: list{bridge}, blocked: []obstacle{obstacleUDP, obstaclePlain}, bridge: true},
		{name: "frozen", nodes: list{but(node, silent, transport.ProbeLong)}, blocked: []obstacle{obstacleLong}, open: true},
		{name: "random", nodes: list{but(node, silent, transport.ProbeRandom)}, blocked: []obstacle{obstacleRandom}, open: true},
		{name: "names", nodes: list{node}, bridges: list{but(but(site, silent, transport.ProbeTLS, transport.ProbeOther), passed, transport.ProbeNameless)}, blocked: []obstacle{obstacleSNI}, open: true},
		{name: "a hello", nodes: list{node}, bridges: list{but(but(bridge, reset, transport.ProbeTLS, transport.ProbeNameless), passed, transport.ProbeOther)}, blocked: []obstacle{obstacleFingerprint}, open: true, bridge: true},
		{name: "TLS", nodes: list{node}, bridges: list{but(site, silent, transport.ProbeTLS, transport.ProbeOther, transport.ProbeNameless)}, blocked: []obstacle{obstacleTLS}, open: true},
		{name: "a bridge in the middle", nodes: list{node}, bridges: list{but(site, transport.Altered, transport.ProbeTLS)}, blocked: []obstacle{obstacleAltered}, open: true},
		{name: "an expired certificate", nodes: list{node}, bridges: list{but(bridge, transport.Altered, transport.ProbeVeil)}, blocked: []obstacle{obstacleAltered}, open: true},
		{name: "a site that knows nothing of a bridge", nodes: list{down}, bridges: list{but(bridge, transport.Refused, transport.ProbeVeil)}, blocked: []obstacle{obstacleAddress, obstacleBridge}},
		{name: "a bridge that falls silent beside one that does not", bridges: list{bridge, but(bridge, silent, transport.ProbeVeil)}, blocked: []obstacle{obstacleBridge}, bridge: true},
		{name: "names are not looked up", bridges: list{findings(silent, transport.ProbeName), bridge}, blocked: []obstacle{obstacleAddress, obstacleName}, bridge: true},
	} {
		got := judge(test.nodes, test.bridges)
		if !slices.Equal(got.Blocked, test.blocked) || got.Open != test.open || got.Bridge != test.bridge {
			t.Errorf("%s: blocked %q, open %v, bridge %v; want %q, %v, %v", test.name, got.Blocked, got.Open, got.Bridge, test.blocked, test.open, test.bridge)
		}
		for _, censored := range []bool{false, true} {
			for _, c := range got.checks(censored) {
				if c.Text == "" || !c.Ok && c.Hint == "" {
					t.Errorf("%s: %v does not say what to do", test.name, c)
				}
			}
		}
	}
}

// TestWorkedRound: what kith gets past by itself is a warning, and wrong is only
// what the user has to see to.
func TestWorkedRound(t *testing.T) {
	all := func(f netFound) netFound {
		f.Asked = true
		return f
	}
	for _, test := range []struct {
		name     string
		found    netFound
		censored bool
		states   string // of the checks, in their order: ok, warning, WRONG
		healthy  bool
		hint     string // in one of them
	}{
		{name: "nothing is blocked", found: all(netFound{Open: true}), states: "ok", healthy: true},
		{name: "UDP, and TCP passes", found: all(netFound{Open: true, Blocked: []obstacle{obstacleUDP}}), states: "warning ok", healthy: true, hint: "TCP is used instead"},
		{name: "the plain handshake, and QUIC passes", found: all(netFound{Open: true, Blocked: []obstacle{obstaclePlain}}), states: "warning ok", healthy: true, hint: "QUIC is used instead"},
		{name: "UDP and the plain handshake, and a bridge works", found: all(netFound{Bridge: true, Blocked: []obstacle{obstacleUDP, obstaclePlain}}), states: "warning warning ok", healthy: true, hint: "kith mode censored"},
		{name: "the same in censored mode", found: all(netFound{Bridge: true, Blocked: []obstacle{obstacleUDP, obstaclePlain}}), censored: true, states: "warning warning ok", healthy: true, hint: "bridges are used instead"},
		{name: "the plain handshake, and there is no bridge", found: all(netFound{Blocked: []obstacle{obstacleUDP, obstaclePlain}}), states: "warning WRONG WRONG", hint: "kith bridge add ADDRESS"},
		{name: "one bridge of two is gone", found: netFound{Bridge: true, Blocked: []obstacle{obstacleBridge}}, censored: true, states: "warning ok", healthy: true, hint: "a new invite"},
		{name: "the only bridge is gone", found: netFound{Blocked: []obstacle{obstacleBridge}}, censored: true, states: "WRONG WRONG", hint: "a new invite"},
		{name: "the only bridge is gone, and nodes were probed", found: all(netFound{Open: true, Blocked: []obstacle{obstacleBridge}}), censored: true, states: "WRONG WRONG", hint: "kith mode open"},
		{name: "an impostor beside a bridge that works", found: netFound{Bridge: true, Blocked: []obstacle{obstacleAltered}}, censored: true, states: "WRONG ok", hint: "do not use this bridge"},
		{name: "nothing passes", found: all(netFound{Blocked: []obstacle{obstacleAll}}), states: "WRONG WRONG", hint: "kith lan on"},
	} {
		var states, hints []string
		for _, c := range test.found.checks(test.censored) {
			state := "ok"
			if !c.Ok {
				state = "WRONG"
			} else if c.Hint != "" {
				state = "warning"
			}
			states, hints = append(states, state), append(hints, c.Hint)
		}
		if got := strings.Join(states, " "); got != test.states {
			t.Errorf("%s: the checks are %s, want %s", test.name, got, test.states)
		}
		if all := strings.Join(hints, "; "); !strings.Contains(all, test.hint) {
			t.Errorf("%s: the hints are %q, want %q among them", test.name, all, test.hint)
		}
		if e := test.found.health(test.censored); e.OK != test.healthy || e.OK == strings.Contains(test.states, "WRONG") {
			t.Errorf("%s: the event says %v, %q", test.name, e.OK, e.Text)
		}
	}
}

// TestSeenLive: what the open connections show wins over what was found before, and
// what they say nothing of is told with its age.
func TestSeenLive(t *testing.T) {
	const bridgeLost = "WRONG network: bridge, WRONG network"
	censored := netFound{Blocked: []obstacle{obstacleBridge}, Lost: []string{"b"}}
	for _, test := range []struct {
		name     string
		found    netFound
		seen     seen
		censored bool
		states   string
		road     string // of the last
	}{
		{name: "nothing is seen", found: censored, censored: true, states: bridgeLost, road: "3 minutes ago"},
		{name: "the bridge is back", found: censored, seen: seen{bridge: true, back: true}, censored: true, states: "ok network", road: "Bridges can be reached (connected now)"},
		{name: "another bridge works", found: censored, seen: seen{bridge: true}, censored: true, states: "warning network: bridge, ok network", road: "connected now"},
		{name: "nodes, which censored mode does not use", found: censored, seen: seen{nodes: true, tcp: true}, censored: true, states: bridgeLost, road: "3 minutes ago"},
		{name: "nothing passed, and nodes are there", found: netFound{Asked: true, Blocked: []obstacle{obstacleAll}}, seen: seen{nodes: true, tcp: true}, states: "ok network", road: "Community nodes can be reached (connected now)"},
		{name: "QUIC passes now", found: netFound{Asked: true, Open: true, Blocked: []obstacle{obstacleUDP}}, seen: seen{nodes: true, quic: true}, states: "ok network", road: "connected now"},
		{name: "TCP says nothing of UDP", found: netFound{Asked: true, Open: true, Blocked: []obstacle{obstacleUDP}}, seen: seen{nodes: true, tcp: true}, states: "warning network: udp, ok network", road: "connected now"},
		{name: "the plain handshake passes now", found: netFound{Asked: true, Blocked: []obstacle{obstaclePlain}}, seen: seen{nodes: true, tcp: true}, states: "ok network", road: "connected now"},
		{name: "a bridge says nothing of nodes", found: netFound{Asked: true, Open: true}, seen: seen{bridge: true}, states: "ok network", road: "Community nodes can be reached (3 minutes ago)"},
	} {
		now := time.UnixMilli(1_700_000_000_000)
		test.found.Time = now.Add(-3*time.Minute - time.Second).UnixMilli()
		var states []string
		var road string
		for _, c := range test.found.checksAt(now, test.seen, test.censored) {
			state := "ok "
			if !c.Ok {
				state = "WRONG "
			} else if c.Hint != "" {
				state = "warning "
			}
			states, road = append(states, state+c.Name), c.Text
		}
		if got := strings.Join(states, ", "); got != test.states || !strings.Contains(road, test.road) {
			t.Errorf("%s: the checks are %s, of the road %q; want %s, %q", test.name, got, road, test.states, test.road)
		}
	}
}

func TestAgo(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Hour: "just now", 999 * time.Millisecond: "just now", time.Second: "1 second ago", 59*time.Second + 999*time.Millisecond: "59 seconds ago",
		time.Minute: "1 minute ago", 59 * time.Minute: "59 minutes ago", time.Hour: "1 hour ago", 47*time.Hour + time.Minute: "47 hours ago", 48 * time.Hour: "2 days ago",
	} {
		if got := ago(d); got != want {
			t.Errorf("%v: %q, want %q", d, got, want)
		}
	}
}

// TestProbed: bridges are known from the store, and nothing is probed that would
// not be dialled.
func TestProbed(t *testing.T) {
	st, err := store.Open(store.Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	const id = "/p2p/12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN"
	if err := st.Update(t.Context(), func(tx *store.Tx) error {
		for _, a := range []string{"/ip4/127.0.0.1/tcp/4001" + id, "/ip4/192.168.1.1/tcp/80" + id, "/ip4/8.8.8.8/tcp/4001" + id} {
			if err := tx.RememberWay(a, 1, keepWays); err != nil {
				return err
			}
		}
		for _, way := range []string{
			"/ip4/10.0.0.1/tcp/443/tls/sni/cats.example/http-path/AAECAwQFBgcICQoLDA0ODw", "/dns4/cats.example/tcp/443/tls/http-path/AAECAwQFBgcICQoLDA0ODw",
			"/ip4/8.8.4.4/tcp/443/tls/sni/cats.example/http-path/AAECAwQFBgcICQoLDA0ODw", "/dns4/cats.example/tcp/443/tls/http-path/AAECAwQFBgcICQoLDA0OEA",
		} {
			if err := tx.SaveBridge(store.BridgeRow{Address: way + id, Source: store.BridgeFromUser}); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	n := &Node{store: st, cfg: Config{Reachable: func(a ma.Multiaddr, _ bool) bool { return transport.ReachOf(a) == transport.Public }}}
	nodes, bridges, err := n.probed(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(nodes) != 1 || len(nodes[0].Addrs) != 1 || nodes[0].Addrs[0].String() != "/ip4/8.8.8.8/tcp/4001" {
		t.Errorf("the nodes are %v", nodes)
	}
	paths := make(map[string]int)
	for _, b := range bridges {
		paths[b.site.Host] += len(b.info.Addrs)
	}
	if want := map[string]int{"cats.example": 2, "8.8.4.4": 1}; len(bridges) != 2 || !maps.Equal(paths, want) { // a path that was taken back says nothing of another
		t.Errorf("there are %d bridges, with paths %v", len(bridges), paths)
	}
}

// TestRecall: what was found on the network that this machine is on is known after
// a restart, and that it is looked at all the time costs neither the store nor the
// system's tables anything.
func TestRecall(t *testing.T) {
	st, err := store.Open(store.Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	n := &Node{store: st, now: time.Now, log: slog.New(slog.DiscardHandler)}
	c := newChecker(n)
	c.recall(t.Context())
	if _, ok := c.found(); ok || !c.looked.IsZero() {
		t.Error("something is known of a network before anything was found")
	}
	kept, err := c.keep(t.Context(), netFound{Blocked: []obstacle{obstacleUDP}})
	if err != nil {
		t.Fatal(err)
	}
	c.recall(t.Context())
	if got, ok := c.found(); !ok || got.Network != kept.Network {
		t.Errorf("just found is %+v", got)
	}
	again := newChecker(n)
	again.recall(t.Context())
	if got, ok := again.found(); !ok || got.Time != kept.Time || !got.blocks(obstacleUDP) {
		t.Errorf("after a restart is known %+v", got)
	}
	if err := st.Close(); err != nil { // whoever reads now is told
		t.Fatal(err)
	}
	first := again.looked
	again.recall(t.Context())
	if got, _ := again.found(); got.Time != kept.Time || again.looked != first {
		t.Errorf("a moment later the system's tables are read again: %+v", got)
	}
	again.last, again.at = netFound{}, nil // as from another network
	again.recall(t.Context())
	if got, ok := again.found(); !ok || got.Time != kept.Time || again.looked.Equal(first) {
		t.Errorf("back on the network is known %+v", got)
	}
	again.last, again.looked = netFound{}, first.Add(-recallEvery)
	again.recall(t.Context())
	if _, ok := again.found(); !ok {
		t.Error("a router that changed is not noticed")
	}
}

// TestSpared: QUIC is spared where it was found not to pass, for as long as a
// finding is good for.
func TestSpared(t *testing.T) {
	now := time.UnixMilli(1_700_000_000_000)
	n := &Node{now: func() time.Time { return now }}
	n.checker = newChecker(n)
	n.checker.last = netFound{Network: "x", Time: now.UnixMilli(), Blocked: []obstacle{obstacleUDP}, Open: true}
	quic, tcp := ma.StringCast("/ip4/8.8.8.8/udp/4001/quic-v1"), ma.StringCast("/ip4/8.8.8.8/tcp/4001")
	if !n.checker.spared(quic) || n.checker.spared(tcp) {
		t.Error("where UDP does not pass, TCP is tried and QUIC is not")
	}
	now = now.Add(netcheckFresh + time.Minute)
	if n.checker.spared(quic) {
		t.Error("QUIC is never tried again")
	}
}
