package node

// What the network we are on lets through. Probes go to community nodes and
// bridges that we have anyway, say what our ordinary connections say, and in
// censored mode go to bridges alone. What they find is kept for each network
// that we have been on, decides which addresses are tried, and is what kith
// doctor and kith netcheck tell.

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/kith-im/kith/discovery"
	apiv1 "github.com/kith-im/kith/node/api/v1"
	"github.com/kith-im/kith/node/store"
	"github.com/kith-im/kith/node/transport"
	"github.com/kith-im/kith/protocol"
	"github.com/kith-im/kith/protocol/identity"
	"github.com/kith-im/kith/protocol/rendezvous"
)

const (
	// maxProbed bounds the community nodes, and the bridges, that are probed.
	maxProbed = 4
	// netcheckTime bounds one check.
	netcheckTime = 45 * time.Second

	// A network is checked by itself when no community node has answered for
	// netcheckAlone, and what was found is good for netcheckFresh.
	netcheckAlone = time.Minute
	netcheckFresh = 6 * time.Hour

	// maxNetworks bounds the networks that are remembered.
	maxNetworks = 32

	// deadKnown is after how long a connection that carries nothing more is given up,
	// through a bridge as well: one that is older than what was found and has lived
	// for as long since shows otherwise.
	deadKnown = 90 * time.Second

	// recallEvery is how often the router is looked at although this machine's
	// addresses are what they were: other networks have the same.
	recallEvery = time.Minute
)

// Rows of store's meta table.
const (
	metaNetworkKey = "network key" // by which networks are named
	metaNetworks   = "networks"    // what was found on each, as JSON
)

// obstacle is something that a network does not let through.
type obstacle string

// The obstacles, in the order in which they are told.
const (
	obstacleAll         obstacle = "everything"
	obstacleAddress     obstacle = "addresses"
	obstacleName        obstacle = "dns"
	obstacleUDP         obstacle = "udp"
	obstacleQUIC        obstacle = "quic"
	obstacleALPN        obstacle = "alpn"
	obstaclePlain       obstacle = "libp2p"
	obstacleLong        obstacle = "freeze"
	obstacleRandom      obstacle = "random"
	obstacleSNI         obstacle = "sni"
	obstacleFingerprint obstacle = "fingerprint"
	obstacleTLS         obstacle = "tls"
	obstacleAltered     obstacle = "altered"
	obstacleBridge      obstacle = "bridge"
)

// netFound is what was found on one network.
type netFound struct {
	Network string     `json:"network"` // a keyed hash: it means nothing elsewhere
	Time    int64      `json:"time"`
	Blocked []obstacle `json:"blocked"`
	Asked   bool       `json:"asked"`  // community nodes were probed
	Open    bool       `json:"open"`   // community nodes can be reached
	Bridge  bool       `json:"bridge"` // a bridge can be
	Lost    []string   `json:"lost"`   // the bridges that could not be, by their peer ids
}

func (f netFound) blocks(o obstacle) bool { return slices.Contains(f.Blocked, o) }

// judge concludes from the probes of community nodes and of bridges what a
// network blocks. What fails everywhere where it could be told from a node that
// is down is blocked.
func judge(nodes, bridges []transport.Findings) (f netFound) {
	f.Asked = len(nodes) > 0
	all := slices.Concat(nodes, bridges)
	answers := func(x transport.Findings) bool {
		return slices.ContainsFunc(x[:], func(o transport.Outcome) bool {
			return o == transport.Passed || o == transport.Reset || o == transport.Altered || o == transport.Refused
		})
	}
	reached := 0
	for _, x := range all {
		if answers(x) {
			reached++
		}
	}
	add := func(o obstacle, when bool) {
		if when {
			f.Blocked = append(f.Blocked, o)
		}
	}
	if len(all) > 0 && reached == 0 {
		add(obstacleAll, true)
		return f
	}
	// never says that a probe failed wherever it was tried and another passed.
	never := func(set []transport.Findings, probe, beside transport.Probe) bool {
		failed := false
		for _, x := range set {
			if x[probe] == transport.Passed {
				return false
			}
			failed = failed || x[probe].Failed() && x[beside] == transport.Passed
		}
		return failed
	}
	for _, x := range nodes {
		f.Open = f.Open || x[transport.ProbeQUICOurs] == transport.Passed || x[transport.ProbeLong] == transport.Passed
	}
	for _, x := range bridges {
		f.Bridge = f.Bridge || x[transport.ProbeVeil] == transport.Passed
	}
	add(obstacleAddress, reached < len(all))
	add(obstacleName, slices.ContainsFunc(bridges, func(x transport.Findings) bool { return x[transport.ProbeName].Failed() }))
	switch udp := never(nodes, transport.ProbeUDP, transport.ProbeTCP); {
	case udp && never(nodes, transport.ProbeQUIC, transport.ProbeTCP):
		add(obstacleUDP, true)
	case never(nodes, transport.ProbeQUIC, transport.ProbeUDP):
		add(obstacleQUIC, true)
	case never(nodes, transport.ProbeQUICOurs, transport.ProbeQUIC):
		add(obstacleALPN, true)
	}
	add(obstaclePlain, never(nodes, transport.ProbePlain, transport.ProbeTCP))
	add(obstacleLong, never(nodes, transport.ProbeLong, transport.ProbePlain))
	add(obstacleRandom, never(nodes, transport.ProbeRandom, transport.ProbeTCP))
	add(obstacleAltered, slices.ContainsFunc(bridges, func(x transport.Findings) bool {
		return x[transport.ProbeTLS] == transport.Altered || x[transport.ProbeVeil] == transport.Altered
	}))
	add(obstacleBridge, slices.ContainsFunc(bridges, func(x transport.Findings) bool {
		return x[transport.ProbeVeil].Failed() && x[transport.ProbeVeil] != transport.Altered
	}))
	if never(bridges, transport.ProbeTLS, transport.ProbeTCP) {
		passed := func(p transport.Probe) bool {
			return slices.ContainsFunc(bridges, func(x transport.Findings) bool { return x[p] == transport.Passed })
		}
		switch {
		case passed(transport.ProbeOther):
			add(obstacleFingerprint, true)
		case passed(transport.ProbeNameless):
			add(obstacleSNI, true)
		case !f.blocks(obstacleAltered):
			add(obstacleTLS, true)
		}
	}
	return f
}

// remedy says who gets past an obstacle.
type remedy uint8

const (
	byUser remedy = iota // nobody but the user
	byRoad               // kith, if it has a road left
	byKith               // kith, always
)

// told is what is said of an obstacle, what is done about it, and by whom.
var told = map[obstacle]struct {
	text, hint string
	by         remedy
}{
	obstacleAll:         {"Nothing passes: this network leads nowhere, or every address we know is blocked.", "with contacts nearby use kith lan on; else carry messages with kith bundle, or ask a contact for another way in", byUser},
	obstacleAddress:     {"Some known addresses do not answer: they are blocked, or down.", "the others are used", byKith},
	obstacleName:        {"The name of a bridge is not resolved.", "use a bridge that is named by its address, or a proxy that resolves names", byRoad},
	obstacleUDP:         {"UDP is blocked.", "TCP is used instead", byKith},
	obstacleQUIC:        {"QUIC is blocked, other UDP is not.", "TCP is used instead", byKith},
	obstacleALPN:        {"QUIC that names libp2p is blocked.", "TCP is used instead", byKith},
	obstaclePlain:       {"The plain libp2p handshake over TCP is blocked.", "go through a bridge: ask for the address of one, and add it with kith bridge add ADDRESS", byRoad},
	obstacleLong:        {"Connections freeze after a few packets.", "go through a bridge, which uses many short ones: ask for the address of one, and add it with kith bridge add ADDRESS", byRoad},
	obstacleRandom:      {"Traffic that looks like nothing is blocked.", "nothing of ours does; a bridge looks like a web site", byKith},
	obstacleSNI:         {"TLS that names the bridge is blocked.", "ask for a bridge under another name", byRoad},
	obstacleFingerprint: {"TLS with the hello of one browser is blocked, with that of another it is not.", "the other one is used", byKith},
	obstacleTLS:         {"TLS with the bridge is blocked.", "ask a contact for another bridge", byRoad},
	obstacleAltered:     {"What answers in a bridge's place does not prove to be it: somebody is in between, or its certificate has expired.", "do not use this bridge here; ask a contact for another one", byUser},
	obstacleBridge:      {"The web site at a bridge's address answers, and the bridge itself does not.", "the secret in the address may have changed: ask who gave it to you for a new one, or for a new invite, or a contact for another bridge", byRoad},
}

// remedyFor says what is done about an obstacle, and whether kith does it by itself.
func (f netFound) remedyFor(o obstacle, censored bool) (hint string, works bool) {
	t := told[o]
	works = t.by == byKith || t.by == byRoad && f.leads(censored)
	switch {
	case o != obstaclePlain && o != obstacleLong || !works:
		return t.hint, works
	case f.Open && !censored:
		return "QUIC is used instead", works
	case censored:
		return "bridges are used instead", works
	}
	return "bridges are used instead; with kith mode censored nothing else is tried", works
}

// leads says whether a road is left in the mode that we are in.
func (f netFound) leads(censored bool) bool { return f.Bridge || f.Open && !censored }

// checker checks networks and remembers what it found.
type checker struct {
	n     *Node
	alone chan struct{} // nothing answers: look why

	busy chan struct{} // holds a token: whoever takes it checks

	mu     sync.Mutex
	last   netFound  // on the network we are on; zero: nothing is known
	memory *networks // nil: not read yet
	at     []string  // this machine's addresses when the network was looked at
	looked time.Time // when that was
}

// networks is what the store keeps of all networks. It changes by keep alone.
type networks struct {
	key []byte // nil: nothing was ever found on any
	all []netFound
}

func newChecker(n *Node) *checker {
	c := &checker{n: n, alone: make(chan struct{}, 1), busy: make(chan struct{}, 1)}
	c.busy <- struct{}{}
	return c
}

// run looks why nothing answers, whenever that is so, until ctx ends.
func (c *checker) run(ctx context.Context) {
	tick := time.NewTicker(lookAround)
	defer tick.Stop()
	var since time.Time // when nothing answered first
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		c.recall(ctx)
		if c.n.cfg.Discovery.Status().Peers > 0 || c.n.cfg.Host.Mode() == transport.Censored {
			since = time.Time{}
			continue
		}
		if since.IsZero() {
			since = time.Now()
		}
		if time.Since(since) < netcheckAlone || c.fresh() {
			continue
		}
		if _, err := c.check(ctx, false); err != nil && ctx.Err() == nil {
			c.n.log.Debug("the network could not be checked")
			since = time.Now() // once a minute is enough
		}
	}
}

func (c *checker) fresh() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.last.Time != 0 && c.n.now().Sub(time.UnixMilli(c.last.Time)) < netcheckFresh
}

// found returns what is known of the network we are on.
func (c *checker) found() (netFound, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.last, c.last.Time != 0
}

// spared says whether an address is not worth trying on this network: QUIC,
// where it does not pass and others do. Networks change, and nobody would notice.
func (c *checker) spared(a ma.Multiaddr) bool {
	f, ok := c.found()
	if !ok || !c.fresh() || !f.blocks(obstacleUDP) && !f.blocks(obstacleQUIC) && !f.blocks(obstacleALPN) {
		return false
	}
	_, err := a.ValueForProtocol(ma.P_UDP)
	return err == nil && transport.ReachOf(a) == transport.Public
}

// recall takes what was found before on the network that we are on now. It is
// called all the time: the store is read once, and the system's tables when they
// may say something new.
func (c *checker) recall(ctx context.Context) {
	memory, err := c.remembered(ctx)
	if err != nil {
		if ctx.Err() == nil {
			c.n.log.Debug("what was found on this network could not be read")
		}
		return
	}
	if memory.key == nil || !c.moved() {
		return
	}
	name := networkName(memory.key, transport.NetworkMarks())
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.memory != memory || c.last.Network == name { // or just found out
		return
	}
	c.last = netFound{}
	if i := slices.IndexFunc(memory.all, func(f netFound) bool { return f.Network == name }); i >= 0 {
		c.last = memory.all[i]
	}
}

// remembered returns what the store keeps, which it reads once.
func (c *checker) remembered(ctx context.Context) (*networks, error) {
	c.mu.Lock()
	memory := c.memory
	c.mu.Unlock()
	if memory != nil {
		return memory, nil
	}
	memory = &networks{}
	if err := c.n.view(ctx, func(tx *store.Tx) (err error) {
		memory.key, err = tx.SecretMeta(metaNetworkKey)
		if ok, err := found(err); !ok {
			return err
		}
		memory.all, err = loadNetworks(tx)
		return err
	}); err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.memory == nil { // else kept meanwhile
		c.memory = memory
	}
	return c.memory, nil
}

// moved says whether this machine may be on another network than when it was last
// asked.
func (c *checker) moved() bool {
	var at []string
	if addrs, err := net.InterfaceAddrs(); err == nil {
		for _, a := range addrs {
			at = append(at, a.String())
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if slices.Equal(at, c.at) && time.Since(c.looked) < recallEvery {
		return false
	}
	c.at, c.looked = at, time.Now()
	return true
}

// networkKey is the key of names of networks, which is made when it is first needed.
func networkKey(tx *store.Tx) (key []byte, err error) {
	key, err = tx.SecretMeta(metaNetworkKey)
	if errors.Is(err, store.ErrNotFound) {
		key = make([]byte, 32)
		_, _ = rand.Read(key)
		err = tx.SetSecretMeta(metaNetworkKey, key)
	}
	return key, err
}

// networkName names a network by its marks, for us alone.
func networkName(key []byte, marks []string) string {
	slices.Sort(marks)
	m := protocol.MAC(key, protocol.LabelNetworkName, []byte(strings.Join(slices.Compact(marks), "\n")))
	return hex.EncodeToString(m[:8])
}

func loadNetworks(tx *store.Tx) (all []netFound, err error) {
	b, err := tx.Meta(metaNetworks)
	if ok, err := found(err); !ok {
		return nil, err
	}
	if json.Unmarshal(b, &all) != nil {
		return nil, nil // of another version: it is found again
	}
	return all, nil
}

// keep remembers what was found on this network, and says so if it is news.
func (c *checker) keep(ctx context.Context, f netFound) (netFound, error) {
	var memory networks
	err := c.n.update(ctx, func(w *work) error {
		key, err := networkKey(w.tx)
		if err != nil {
			return err
		}
		f.Network, f.Time = networkName(key, transport.NetworkMarks()), w.ms()
		all, err := loadNetworks(w.tx)
		if err != nil {
			return err
		}
		i := slices.IndexFunc(all, func(o netFound) bool { return o.Network == f.Network })
		news := len(f.Blocked) > 0
		if i >= 0 {
			news = !slices.Equal(all[i].Blocked, f.Blocked)
			all = slices.Delete(all, i, i+1)
		}
		all = slices.Insert(all, 0, f)
		all = all[:min(len(all), maxNetworks)]
		memory = networks{key, all}
		b, err := json.Marshal(all)
		if err != nil {
			return err
		}
		if err := w.tx.SetMeta(metaNetworks, b); err != nil || !news || c.n.self == nil {
			return err
		}
		return w.emit(eventHealth, 0, f.health(c.n.censored()))
	})
	if err != nil {
		return f, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last, c.memory = f, &memory
	return f, nil
}

// health says what was found: what the user has to see to, or else what kith gets
// past by itself.
func (f netFound) health(censored bool) healthEvent {
	e := healthEvent{OK: true, Text: "This network blocks nothing that kith needs."}
	for i, o := range f.Blocked {
		hint, works := f.remedyFor(o, censored)
		if i == 0 || e.OK && !works {
			e = healthEvent{OK: works, Text: strings.TrimSuffix(told[o].text, ".") + ": " + hint + "."}
		}
	}
	return e
}

// censored says whether our host connects to bridges alone.
func (n *Node) censored() bool { return n.cfg.Host.Mode() == transport.Censored }

// check probes and remembers. random also makes the probe that an observer may
// find strange.
func (c *checker) check(ctx context.Context, random bool) (f netFound, err error) {
	if c.n.cfg.Offline {
		return f, errOffline
	}
	select {
	case <-c.busy:
		defer func() { c.busy <- struct{}{} }()
	case <-ctx.Done():
		return f, ctx.Err()
	}
	within, cancel := context.WithTimeout(ctx, netcheckTime)
	defer cancel()
	nodes, bridges, err := c.n.probed(within)
	if err != nil {
		return f, err
	}
	if c.n.censored() && !random {
		nodes = nil
	}
	if len(nodes)+len(bridges) == 0 {
		return f, errNothingToProbe
	}
	if err := c.n.proxyFault(within, transport.ProxyUnreachable); err != nil {
		return f, err
	}
	prober := c.n.cfg.Prober
	prober.Random = random
	foundNodes, foundBridges := make([]transport.Findings, len(nodes)), make([]transport.Findings, len(bridges))
	var probing sync.WaitGroup
	for i, info := range nodes {
		probing.Go(func() { foundNodes[i] = prober.Node(within, info.Addrs) })
	}
	for i, b := range bridges {
		probing.Go(func() {
			foundBridges[i] = prober.Bridge(within, b.site, func(ctx context.Context) error { return c.n.throughBridge(ctx, b.info) })
		})
	}
	probing.Wait()
	if ctx.Err() != nil { // not when time is up: what one node was slow to say is not said
		return f, ctx.Err()
	}
	if err := c.n.proxyFault(ctx, transport.ProxyLocked, transport.ProxyForeign, transport.ProxyForbids); err != nil {
		return f, err
	}
	f = judge(foundNodes, foundBridges)
	for i, b := range bridges {
		if foundBridges[i][transport.ProbeVeil] != transport.Passed {
			f.Lost = append(f.Lost, b.info.ID.String())
		}
	}
	return c.keep(context.WithoutCancel(ctx), f)
}

var errOffline = refuse(CodeRefused, "start kith without --preset offline to test the network", "nothing is dialled, by --preset offline")

var errNothingToProbe = refuse(CodeRefused, "accept an invite, which carries one, or name a bridge with kith bridge add ADDRESS, or, in open mode, a community node with kith up --bootstrap ADDRESS",
	"no community node or bridge is known, so there is nothing to test the network with")

// throughBridge connects to a bridge as everything does that goes through it, up
// to libp2p's handshake, under a name of its own.
func (n *Node) throughBridge(ctx context.Context, info peer.AddrInfo) error {
	if n.modes == nil { // a community node
		host, err := n.cfg.Errand()
		if err != nil {
			return err
		}
		defer host.Close()
		return host.Connect(ctx, info)
	}
	host, done, err := n.modes.errand()
	if err != nil {
		return err
	}
	defer done()
	return host.Connect(ctx, info)
}

// knownBridge is a bridge as it is probed: its web site, and how it is connected to.
type knownBridge struct {
	site transport.VeilAddr
	info peer.AddrInfo
}

// probed returns what there is to probe: the ways in that the configuration,
// invites and earlier runs name, and the bridges that we know. An invite can not
// aim the probes at this machine or its network (threats E10).
func (n *Node) probed(ctx context.Context) (nodes []peer.AddrInfo, bridges []knownBridge, err error) {
	var ways []ma.Multiaddr
	ways = append(ways, n.cfg.Hints...)
	err = n.view(ctx, func(tx *store.Tx) error {
		known, err := tx.Ways(keepWays)
		if err != nil {
			return err
		}
		rows, err := tx.Bridges()
		for _, row := range rows {
			known = append(known, row.Address)
		}
		for _, s := range known {
			if a, err := ma.NewMultiaddr(s); err == nil {
				ways = append(ways, a)
			}
		}
		return err
	})
	for _, a := range ways {
		if _, noIP := manet.ToIP(a); noIP == nil && !n.reachable(a, false) {
			continue
		}
		info, err := peer.AddrInfoFromP2pAddr(a)
		if err != nil || len(info.Addrs) == 0 {
			continue
		}
		if v, noBridge := transport.ParseVeil(a); noBridge == nil {
			// A second path of the same bridge leads through the same web site.
			same := func(o knownBridge) bool {
				return o.info.ID == info.ID && o.site.Host == v.Host && o.site.Port == v.Port && o.site.SNI == v.SNI
			}
			if i := slices.IndexFunc(bridges, same); i >= 0 {
				bridges[i].info.Addrs = append(bridges[i].info.Addrs, info.Addrs...)
			} else if len(bridges) < maxProbed {
				bridges = append(bridges, knownBridge{v, *info})
			}
			continue
		}
		if i := slices.IndexFunc(nodes, func(o peer.AddrInfo) bool { return o.ID == info.ID }); i >= 0 {
			nodes[i].Addrs = append(nodes[i].Addrs, info.Addrs...)
		} else if len(nodes) < maxProbed {
			nodes = append(nodes, *info)
		}
	}
	return nodes, bridges, err
}

// Netcheck probes the network and says what passes.
func (n *Node) Netcheck(ctx context.Context, req *apiv1.NetcheckRequest) (*apiv1.NetcheckResponse, error) {
	look, cancel := context.WithCancel(ctx)
	defer cancel()
	var directory *apiv1.Check
	var looking sync.WaitGroup
	looking.Go(func() { directory = n.lookUp(look) })
	looking.Go(func() { n.awaitFirst(look) }) // or no relay is blamed on the network
	f, err := n.checker.check(ctx, req.ProbePlain)
	if err != nil {
		cancel() // nobody is told what it finds
	}
	looking.Wait()
	var proxy *proxyError
	if errors.As(err, &proxy) { // all else is a consequence of that
		return &apiv1.NetcheckResponse{Checks: []*apiv1.Check{proxy.check()}}, nil
	}
	if err != nil {
		return nil, explain(err)
	}
	checks := append(f.checks(n.censored()), directory)
	return &apiv1.NetcheckResponse{
		Checks: append(checks, n.placeChecks()...), Blocked: f.words(), Nodes: f.Open, Bridges: f.Bridge, Network: f.Network, TimeMs: f.Time,
	}, nil
}

// proxyError is what is wrong with our proxy. What is probed through it then says
// nothing of the network.
type proxyError struct {
	fault transport.ProxyFault
	at    string
}

func (e *proxyError) Error() string { return e.check().Text }

// check names the proxy in the hint alone: doctor's report is to be shown to others.
func (e *proxyError) check() *apiv1.Check {
	c := &apiv1.Check{Name: "proxy"}
	switch e.fault {
	case transport.ProxyFine:
		c.Ok, c.Text = true, "Connections go through a proxy, which takes them."
	case transport.ProxyUnreachable:
		c.Text = "The proxy can not be reached, and nothing goes past it."
		c.Hint = "start the one at " + e.at + ", or name another with kith up --proxy URL"
	case transport.ProxyLocked:
		c.Text = "The proxy wants a user name and a password, or others than it was given."
		c.Hint = "name them for " + e.at + " with kith up --proxy, as USER:PASSWORD@ before the host"
	case transport.ProxyForeign:
		c.Text = "What listens at the proxy's address does not answer as such a proxy does."
		c.Hint = "find out whether " + e.at + " wants socks5:// or http://, and name it so with kith up --proxy URL"
	case transport.ProxyForbids:
		c.Text = "The proxy refuses all that kith connects to."
		c.Hint = "ask who runs " + e.at + " to let kith through, or name another with kith up --proxy URL"
	}
	return c
}

// proxyFault returns a *proxyError if our proxy has one of some faults.
func (n *Node) proxyFault(ctx context.Context, of ...transport.ProxyFault) error {
	if n.cfg.Proxy == nil {
		return nil
	}
	if fault := n.cfg.Proxy.Check(ctx); slices.Contains(of, fault) && ctx.Err() == nil {
		return &proxyError{fault, n.cfg.Proxy.Address()}
	}
	return nil
}

// lookUp says whether the directory answers, by looking there for what nobody
// has, as contacts are looked for: in censored mode by errand, through bridges
// alone. The point is random, so that whoever is asked learns nothing of us.
func (n *Node) lookUp(ctx context.Context) *apiv1.Check {
	ctx, cancel := context.WithTimeout(ctx, netcheckTime)
	defer cancel()
	var secret protocol.RendezvousSecret
	_, _ = rand.Read(secret[:])
	points := rendezvous.Derive(secret, identity.DeviceHash{}, rendezvous.Day(n.now()))
	began := time.Now()
	_, err := n.cfg.Discovery.Find(ctx, points[:])
	took := time.Since(began).Round(10 * time.Millisecond)
	byErrand := n.cfg.Discovery.Status().Mode == discovery.Errand
	answers := err == nil || errors.Is(err, discovery.ErrNotFound) // nobody has it, as was to be
	c := &apiv1.Check{Name: "directory", Ok: answers}
	switch {
	case answers && byErrand:
		c.Text = fmt.Sprintf("The directory answers through a bridge, within %s.", took)
	case answers:
		c.Text = fmt.Sprintf("The directory answers, within %s.", took)
	case byErrand:
		c.Text = "The directory does not answer through any bridge."
		c.Hint = "contacts who moved are not found: add another bridge with kith bridge add ADDRESS"
	default:
		c.Text = "The directory does not answer: no community node took a look-up."
		c.Hint = "contacts who moved are not found: name another node with kith up --bootstrap, or add a bridge with kith bridge add ADDRESS"
	}
	return c
}

func (f netFound) words() (words []string) {
	for _, o := range f.Blocked {
		words = append(words, string(o))
	}
	return words
}

// checks is what was found in sentences: one for each obstacle, which is a warning
// if kith gets past it by itself, and one that says which road is left.
func (f netFound) checks(censored bool) (out []*apiv1.Check) {
	for _, o := range f.Blocked {
		hint, works := f.remedyFor(o, censored)
		out = append(out, &apiv1.Check{Name: "network: " + string(o), Ok: works, Text: told[o].text, Hint: hint})
	}
	road := &apiv1.Check{Name: "network", Ok: true}
	switch {
	case f.Open && !f.leads(censored):
		road.Ok, road.Text = false, "No bridge can be reached; community nodes can, and in censored mode they are not connected to."
		road.Hint = "ask a contact for another bridge; where nothing is watched try kith mode open"
	case f.Open:
		road.Text = "Community nodes can be reached."
	case f.Bridge && !f.Asked:
		road.Text = "Bridges can be reached; community nodes were not tried."
	case !f.Asked:
		road.Ok, road.Text = false, "No bridge can be reached; community nodes were not tried."
		road.Hint = "ask a contact for another bridge; where nothing is watched try kith mode open; else carry messages with kith bundle"
	case f.Bridge:
		road.Text = "Bridges can be reached, community nodes can not."
	default:
		road.Ok, road.Text = false, "Neither community nodes nor bridges can be reached."
		road.Hint = "with contacts nearby use kith lan on; else carry messages with kith bundle"
	}
	return append(out, road)
}

// maxSkew is by how much our clock and another's may differ before somebody is
// told: from two hours on some contacts do not find each other.
const maxSkew = time.Hour

// placeChecks says how this machine stands in the network: what is known without
// a probe, from the relays and nodes that we are connected to anyway.
func (n *Node) placeChecks() (out []*apiv1.Check) {
	if n.self == nil {
		return nil
	}
	add := func(name string, ok bool, text, hint string) {
		if ok {
			hint = ""
		}
		out = append(out, &apiv1.Check{Name: name, Ok: ok, Text: text, Hint: hint})
	}
	held, spared := n.relays.standing()
	text := fmt.Sprintf("Community nodes that relay for this machine: %d.", held)
	off := n.cfg.Offline && held == 0
	switch {
	case off:
		text = "Off, by --preset offline: no community node is asked to relay."
	case spared:
		text = "No relay is needed: others can dial this machine."
	}
	if doors := len(n.relays.open()); held == 0 && !spared && !off && doors > 0 {
		// As much as can be had, where no other community node is known.
		out = append(out, &apiv1.Check{
			Name: "relays", Ok: true, Text: fmt.Sprintf("Community nodes that relay for this machine: 0, and bridges of yours: %d.", doors),
			Hint: "contacts who do not have your bridge may not reach you where neither of you can be dialled: another community node would help (--bootstrap)",
		})
	} else {
		add("relays", held > 0 || spared || off, text, "contacts behind a router may not reach you; this is tried again by itself")
	}
	switch n.cfg.Host.NAT() {
	case transport.NATUnknown:
	case transport.NATNone:
		add("nat", true, "No router translates this machine's address.", "")
	case transport.NATSame:
		add("nat", true, "A router translates this machine's address, the same for everybody: contacts meet directly after a moment on a relay.", "")
	case transport.NATEach:
		add("nat", true, "A router translates this machine's address, for each peer to another port: with contacts behind such routers relays are used.", "")
	}
	if skew, ok := n.relays.skew(); ok {
		text := "The clock agrees with those of community nodes."
		if skew < -maxSkew || skew > maxSkew {
			text = fmt.Sprintf("The clock and those of community nodes differ by %s.", skew.Abs().Round(time.Minute))
		}
		add("clock", skew.Abs() <= maxSkew, text, "set the clock of this machine: by a wrong one contacts do not find each other")
	}
	return out
}

// seen is what the connections that are open now show of the network.
type seen struct {
	nodes     bool // community nodes are connected to
	quic, tcp bool // some by QUIC, some by libp2p over TCP, where they are probed as well
	bridge    bool // a bridge is
	back      bool // every bridge that was lost is, or was removed
}

// seen looks at the connections that say more than f, which was found before.
func (n *Node) seen(f netFound) (s seen) {
	found := time.UnixMilli(f.Time)
	proves := func(c network.Conn) bool {
		return c.Stat().Direction == network.DirOutbound && !transport.IsRelayed(c) && !c.IsClosed() &&
			(c.Stat().Opened.After(found) || n.now().Sub(found) > deadKnown)
	}
	lookups := n.cfg.Lookups
	if lookups == nil {
		lookups = n.cfg.Host
	}
	for _, c := range lookups.Network().Conns() {
		if a := c.RemoteMultiaddr(); proves(c) && !transport.OverVeil(c) {
			_, err := a.ValueForProtocol(ma.P_QUIC_V1)
			s.nodes = true
			s.quic = s.quic || err == nil && n.reachable(a, false)
			s.tcp = s.tcp || err != nil && n.reachable(a, false)
		}
	}
	if n.modes == nil { // a community node
		return s
	}
	known := n.modes.known()
	through := func(id peer.ID) bool {
		return slices.ContainsFunc(slices.Concat(lookups.Network().ConnsToPeer(id), n.cfg.Host.Network().ConnsToPeer(id)), func(c network.Conn) bool {
			return proves(c) && transport.OverVeil(c)
		})
	}
	s.back = len(f.Lost) > 0
	for _, info := range known {
		connected := through(info.ID)
		s.bridge = s.bridge || connected
		s.back = s.back && (connected || !slices.Contains(f.Lost, info.ID.String()))
	}
	return s
}

// contradicts says whether an obstacle can not be there, as there are connections
// past it.
func (s seen) contradicts(o obstacle) bool {
	switch o {
	case obstacleAll:
		return s.nodes || s.bridge
	case obstacleUDP, obstacleQUIC, obstacleALPN:
		return s.quic
	case obstaclePlain, obstacleLong:
		return s.tcp
	case obstacleName, obstacleSNI, obstacleTLS, obstacleAltered, obstacleBridge:
		return s.back
	case obstacleAddress, obstacleRandom, obstacleFingerprint:
	}
	return false
}

// corrected is what was found without what is seen to be otherwise by now.
func (f netFound) corrected(s seen) netFound {
	f.Blocked = slices.DeleteFunc(slices.Clone(f.Blocked), s.contradicts)
	f.Asked, f.Open, f.Bridge = f.Asked || s.nodes, f.Open || s.nodes, f.Bridge || s.bridge
	return f
}

// networkChecks is what doctor says of the network: what was found there last, but
// for what is seen to be otherwise now.
func (n *Node) networkChecks() []*apiv1.Check {
	f, ok := n.checker.found()
	if !ok || n.cfg.Offline { // what passes there says nothing of a node that does not dial
		return nil
	}
	return f.checksAt(n.now(), n.seen(f), n.censored())
}

// checksAt is checks at a later time, with how long ago each was found.
func (f netFound) checksAt(now time.Time, s seen, censored bool) []*apiv1.Check {
	when := ago(now.Sub(time.UnixMilli(f.Time)))
	f = f.corrected(s)
	out := f.checks(censored)
	for _, c := range out {
		c.Text = fmt.Sprintf("%s (%s)", strings.TrimSuffix(c.Text, "."), when)
	}
	switch road := out[len(out)-1]; {
	case s.nodes && !censored:
		road.Text = "Community nodes can be reached (connected now)"
	case s.bridge && (censored || !f.Open):
		road.Text = "Bridges can be reached (connected now)"
	}
	return out
}

// ago says how long ago something was, in the unit that people would use.
func ago(d time.Duration) string {
	const day = 24 * time.Hour
	for _, unit := range []struct {
		is, from time.Duration
		name     string
	}{{day, 2 * day, "day"}, {time.Hour, time.Hour, "hour"}, {time.Minute, time.Minute, "minute"}, {time.Second, time.Second, "second"}} {
		switch n := d / unit.is; {
		case d < unit.from:
		case n == 1:
			return "1 " + unit.name + " ago"
		default:
			return fmt.Sprintf("%d %ss ago", n, unit.name)
		}
	}
	return "just now" // or the clock was set back
}
