package node

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/kith-im/kith/discovery"
	apiv1 "github.com/kith-im/kith/node/api/v1"
	"github.com/kith-im/kith/node/store"
	"github.com/kith-im/kith/node/transport"
)

// p2p is our transport's name as the last part of an address.
func (n *Node) p2p() ma.Multiaddr {
	a, err := ma.NewComponent("p2p", n.cfg.Host.ID().String())
	if err != nil {
		panic("node: " + err.Error()) // a peer id is always one
	}
	return a.Multiaddr()
}

// sortAddresses puts those first that most people can use: public before
// private before loopback, and of each kind QUIC before TCP.
func sortAddresses(addrs []ma.Multiaddr) []ma.Multiaddr {
	rank := func(a ma.Multiaddr) int {
		r := 0
		switch {
		case manet.IsIPLoopback(a):
			r = 4
		case !manet.IsPublicAddr(a):
			r = 2
		}
		if _, err := a.ValueForProtocol(ma.P_QUIC_V1); err != nil {
			r++
		}
		return r
	}
	return slices.SortedStableFunc(slices.Values(addrs), func(a, b ma.Multiaddr) int { return cmp.Compare(rank(a), rank(b)) })
}

// Listen returns the addresses that lead to us, each with our transport's name.
func (n *Node) Listen() ([]string, error) {
	addrs, err := n.cfg.Host.ListenAddrs()
	if err != nil {
		return nil, err
	}
	var out []string
	for _, a := range sortAddresses(addrs) {
		out = append(out, a.Encapsulate(n.p2p()).String())
	}
	return out, nil
}

// Status says how the daemon is.
func (n *Node) Status(ctx context.Context, _ *apiv1.StatusRequest) (*apiv1.StatusResponse, error) {
	listen, err := n.Listen()
	if err != nil {
		return nil, err
	}
	d := n.cfg.Discovery.Status()
	out := &apiv1.StatusResponse{
		Ready: true, Role: n.cfg.Role.String(), Version: n.cfg.Version,
		UptimeS: int64(n.now().Sub(n.started).Seconds()), Listen: listen,
		Peers: int32(len(n.cfg.Host.Network().Peers())),
		Dht:   &apiv1.Dht{Mode: d.Mode.String(), Table: int32(d.Table)},
		Store: n.store.Protection(), RssBytes: residentMemory(), Goroutines: int32(runtime.NumGoroutine()),
	}
	out.Bridge = n.cfg.Site
	out.Lan = n.locals.status()
	out.Budget = n.budget()
	select {
	case <-n.store.Failed():
		out.ReadOnly = true
	default:
	}
	if n.self == nil {
		return out, nil
	}
	out.Peers += int32(d.Peers)
	out.Account = n.self.account.Public().Fingerprint().Text()
	p := n.beacon.status()
	out.Mode = n.modes.show()
	out.Published, out.PublishGoal = int32(p.kept), int32(p.goal)
	out.Roads = map[string]string{string(roadDirect): "ok", string(roadLAN): lanRoad(out.Lan)}
	switch {
	case n.cfg.HideAddress:
		out.Roads[string(roadDirect)] = "off"
	case n.cfg.Offline:
		out.Roads[string(roadDirect)] = offByPreset
	case len(listen) == 0 && out.Peers == 0:
		out.Roads[string(roadDirect)] = "not connected to anybody, and nothing is listened on"
	case len(listen) == 0:
		out.Roads[string(roadDirect)] = "outgoing only: nothing is listened on"
	}
	out.Roads[string(roadRelay)] = n.relays.state(out.Peers == 0)
	out.Roads[string(roadBridge)] = n.modes.road()
	return out, n.view(ctx, func(tx *store.Tx) (err error) {
		if out.Outbox, err = tx.CountOutbox(); err != nil {
			return err
		}
		out.Mailboxes, err = n.mail.count(tx)
		return err
	})
}

// offByPreset is a road's state where nothing is dialled.
const offByPreset = "off: nothing is dialled, by --preset offline"

// residentMemory is the process's resident set in bytes, or what the runtime
// holds where the system does not say.
func residentMemory() int64 {
	if b, err := os.ReadFile("/proc/self/statm"); err == nil {
		if f := strings.Fields(string(b)); len(f) > 1 {
			if pages, err := strconv.ParseInt(f[1], 10, 64); err == nil {
				return pages * int64(os.Getpagesize())
			}
		}
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.Sys)
}

// firstTime is how long after a start community nodes are given to answer for the
// first time, before it is called wrong that none has, and roundTime how long a round
// of announcing that is under way has.
const (
	firstTime = 5 * time.Second
	roundTime = 5 * time.Second
)

// awaitFirst returns when community nodes were asked for the first time, and what is
// being announced is.
func (n *Node) awaitFirst(ctx context.Context) {
	if n.self == nil {
		return
	}
	wait := func(most time.Duration, what <-chan struct{}) {
		timer := time.NewTimer(most)
		defer timer.Stop()
		select {
		case <-what:
		case <-timer.C:
		case <-ctx.Done():
		}
	}
	wait(min(firstTime, firstTime-n.now().Sub(n.started)), n.relays.settled)
	wait(roundTime, n.beacon.round())
}

// Doctor looks at everything that messages depend on and says, for each, what
// it found and what to do. A check that is ok and has a hint is a warning: all
// works, as long as the one thing does that it hangs on.
func (n *Node) Doctor(ctx context.Context, _ *apiv1.DoctorRequest) (*apiv1.DoctorResponse, error) {
	n.awaitFirst(ctx)
	s, err := n.Status(ctx, &apiv1.StatusRequest{})
	if err != nil {
		return nil, err
	}
	out := &apiv1.DoctorResponse{}
	add := func(name string, ok bool, text, hint string) {
		if ok {
			hint = ""
		}
		out.Checks = append(out.Checks, &apiv1.Check{Name: name, Ok: ok, Text: text, Hint: hint})
	}
	warn := func(name, text, hint string) {
		out.Checks = append(out.Checks, &apiv1.Check{Name: name, Ok: true, Text: text, Hint: hint})
	}
	switch err := n.store.Check(ctx); {
	case err != nil:
		add("store", false, "The database is damaged.", "stop kith and restore the data directory from a backup")
	case n.store.Full():
		add("store", false, "The disk is full: nothing can be saved.", "free some space; kith goes on by itself")
	default:
		add("store", !s.ReadOnly, map[bool]string{
			false: "The database is whole.", true: "The disk failed while saving, so kith only reads.",
		}[s.ReadOnly], "check the disk and restart kith")
	}
	if n.self != nil {
		text := "A passphrase protects the data at rest."
		if s.Store != "passphrase" {
			text = "No passphrase is set: whoever can read the data directory can read your messages (kith down, then kith up --passphrase, sets one)."
		}
		add("protection", true, text, "")
	}
	if n.cfg.Host.Listens() {
		add("listen", len(s.Listen) > 0, fmt.Sprintf("Addresses listened on: %d.", len(s.Listen)),
			"nothing is listened on: start with --listen, or let contacts be reachable instead")
	} else {
		add("listen", true, n.listensNowhere(), "")
	}
	if n.cfg.Offline {
		add("preset", true, "Nothing is dialled but what is heard on a local network, by --preset offline (kith down, then kith up --preset laptop, ends that).", "")
	}
	if n.cfg.Host.Meter().Spent() {
		add("budget", false, "The bytes of this day are used up: until midnight UTC there are conversations alone, without the directory and mailboxes.",
			moreBytes)
	}
	if p := n.cfg.Proxy; p != nil && !n.cfg.Offline {
		out.Checks = append(out.Checks, (&proxyError{p.Check(ctx), p.Address()}).check())
	}
	if n.self != nil && s.Mode.GetMode() == transport.Censored.String() {
		add("mode", true, "Censored mode, on every network: bridges alone are connected to (kith mode open ends it, where nobody watches).", "")
	}
	if n.self != nil {
		out.Checks = append(out.Checks, n.lanCheck(s.Lan))
	}
	switch d := n.cfg.Discovery.Status(); {
	case n.cfg.Offline && d.Peers == 0:
		add("directory", true, "Off, by --preset offline: nobody is looked for but on a local network.", "")
	case d.Mode == discovery.Errand && s.Mode.GetBridges() == 0:
		add("directory", false, "No bridge is known, and in censored mode nothing else is connected to.",
			"add one with kith bridge add ADDRESS; where nobody watches kith mode open ends it")
	case d.Mode == discovery.Errand:
		text := fmt.Sprintf("Bridges known: %d; those that look things up for us: %d.", s.Mode.GetBridges(), d.Peers)
		if d.Peers > 0 && s.Mode.GetBridges() == 1 {
			warn("directory", text, "without it nothing is reached: ask for another one, and add it with kith bridge add ADDRESS")
			break
		}
		add("directory", d.Peers > 0, text, "no bridge answers: see kith netcheck, or add another one with kith bridge add ADDRESS")
	default:
		text := fmt.Sprintf("Community nodes known: %d; connected: %d.", s.Dht.Table, d.Peers)
		if s.Dht.Table == 1 && n.self != nil {
			warn("directory", text, "without it nobody is found: name another one with --bootstrap")
			break
		}
		add("directory", s.Dht.Table > 0 || n.self == nil, text, // the first community node of a network knows no other
			"no community node answers: check the network with kith netcheck, or name one with --bootstrap")
	}
	out.Checks = append(out.Checks, n.networkChecks()...)
	out.Checks = append(out.Checks, n.placeChecks()...)
	if n.self != nil {
		if n.cfg.Offline && s.Published == 0 {
			add("announced", true, "Off, by --preset offline: contacts find this machine on a local network alone.", "")
		} else {
			add("announced", s.PublishGoal == s.Published, fmt.Sprintf("Records read back from other nodes: %d of %d.", s.Published, s.PublishGoal),
				"contacts may not find you yet; this is tried again by itself")
		}
		m := s.Mailboxes
		text := fmt.Sprintf("Mailboxes that work: %d of %d; how many have to sign for a message until it counts as held: %d.", m.GetHealthy(), m.GetTotal(), m.GetNeeded())
		switch {
		case m.GetMode() == "none":
			add("mailboxes", true, "Off, by --mailbox none: messages are exchanged only while both are online (kith down, then kith up --mailbox auto, ends that).", "")
		case n.cfg.Offline && m.GetHealthy() == 0:
			add("mailboxes", true, "Off, by --preset offline: messages are exchanged on a local network, or carried with kith bundle.", "")
		case m.GetPaused() > 0:
			warn("mailboxes", fmt.Sprintf("Mailboxes that are not asked until midnight UTC, as the bytes of this day are used up: %d of %d; what is left there waits.",
				m.GetPaused(), m.GetTotal()), moreBytes)
		case m.GetHealthy() == 1 && m.GetTotal() == 1:
			warn("mailboxes", text, "mail is lost with the one place that holds it: add another with kith mailbox add ADDRESS")
		default:
			add("mailboxes", m.GetHealthy() >= m.GetNeeded(), text,
				"messages may not reach you while you are away: see kith mailbox list, or add one with kith mailbox add ADDRESS")
		}
		add("outbox", true, fmt.Sprintf("Waiting to be taken or receipted: %d; kith trace says more of a message.", s.Outbox), "")
	}
	return out, nil
}

// listensNowhere says who wanted that nothing is listened on.
func (n *Node) listensNowhere() string {
	const instead = ": others come over relays and mailboxes"
	switch {
	case n.self == nil:
		return "Nothing is listened on but the bridge's web site."
	case n.cfg.HideAddress:
		return "Nothing is listened on, by --hide-address" + instead + " (kith down, then kith up --hide-address=false, ends that)."
	case n.censored():
		return "Nothing is listened on, in censored mode" + instead + "."
	case n.cfg.Proxy != nil:
		return "Nothing is listened on, behind a proxy" + instead + "."
	}
	return "Nothing is listened on" + instead + "."
}

// lanCheck says how the local network stands, which is off until the user says on.
func (n *Node) lanCheck(l *apiv1.Lan) *apiv1.Check {
	c := &apiv1.Check{Name: "lan", Ok: true}
	switch {
	case !l.GetOn():
		c.Text = "Off: contacts on the same local network are not found without the internet (kith lan on switches it on)."
		if n.cfg.HideAddress {
			c.Text = "Off: who is on the same local network would be told this machine's address, which is hidden."
		}
	case l.GetProblem() != "":
		c.Text, c.Hint = "On, but "+l.GetProblem()+".", "contacts nearby are not found that way; kith lan off switches it off"
	default:
		c.Text = fmt.Sprintf("On; devices of contacts heard: %d, community nodes: %d.", l.GetDevices(), l.GetNodes())
	}
	return c
}

// pingTime bounds a ping, with reaching the contact, and pingTries how often it is
// asked anew because the conversation ended.
const (
	pingTime  = 30 * time.Second
	pingTries = 3
)

// Ping measures one round trip to a contact's daemon on the live conversation,
// and opens one if there is none.
func (n *Node) Ping(ctx context.Context, req *apiv1.PingRequest) (*apiv1.PingResponse, error) {
	if err := n.needUser(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, pingTime)
	defer cancel()
	var c store.ContactRow
	var devices []store.DeviceRow
	if err := n.view(ctx, func(tx *store.Tx) (err error) {
		if c, err = resolveContact(tx, req.Contact); err != nil {
			return err
		}
		devices, err = tx.Devices(c.ID)
		return err
	}); err != nil {
		return nil, explain(err)
	}
	if c.Alarm != "" {
		return nil, maySend(c)
	}
	if c.Blocked || c.State == store.ContactRequest {
		return nil, refuse(CodeRefused, "see kith contacts", "%s is not reached while it is %s", quoteName(c), contactStateName(c))
	}
	var failure error = errDial
	for _, d := range devices {
		// A conversation may end for a better one; then that one is asked.
		failure = errEnded
		for range pingTries {
			if !errors.Is(failure, errEnded) {
				break
			}
			var conv *conversation
			if conv, failure = n.outbox.summon(ctx, d.Hash); failure != nil {
				break
			}
			var token [8]byte
			if _, err := rand.Read(token[:]); err != nil {
				return nil, err
			}
			var took time.Duration
			if took, failure = conv.ping(ctx, token); failure == nil {
				return &apiv1.PingResponse{
					Ms: float64(took.Microseconds()) / 1000, Road: string(conv.road), Address: transportAddress(conv.stream.Conn()),
				}, nil
			}
		}
	}
	if errors.Is(failure, errSummoned) || errors.Is(failure, context.DeadlineExceeded) {
		return nil, refuse(CodeNetwork, "see kith doctor", "%s could not be reached", quoteName(c))
	}
	return nil, refuse(CodeNetwork, "see kith doctor", "%s could not be reached: %s", quoteName(c), reasonOf(failure))
}
