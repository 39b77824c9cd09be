package discovery

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/kith-im/kith/protocol/lan"
)

const (
	// lanSteady is the mean pause between two packets on a quiet network, and
	// lanLook how often changes to our networks are looked for.
	lanSteady = 30 * time.Second
	lanLook   = 3 * time.Second

	// Whoever appears on a network speaks several times, since datagrams get
	// lost; lanAnswer is how long one who was recognised waits for an answer at
	// most, and lanRest the least pause between any two packets.
	lanAnswer = 250 * time.Millisecond
	lanRest   = 100 * time.Millisecond

	// lanReopen is the pause after the port could not be had, or was lost.
	lanReopen = 5 * time.Second

	// maxLocalNetworks bounds the networks that are spoken on: a machine with
	// containers may have dozens.
	maxLocalNetworks = 8

	// What is listened to, in packets per second and at once: recognising a
	// packet costs a microsecond for each contact and epoch. One source may be
	// several daemons of one machine.
	lanSourceRate, lanSourceBurst = 4, 16
	lanTotalRate, lanTotalBurst   = 64, 128
	maxLANSources                 = 256
)

// lanBurst is when to speak after appearing.
var lanBurst = []time.Duration{0, 300 * time.Millisecond, time.Second, 2 * time.Second, 4 * time.Second}

// LocalNetwork is one of this machine's addresses on a network whose machines
// hear one another: IPv4 with broadcast, or IPv6 link-local.
type LocalNetwork struct {
	Interface string
	Prefix    netip.Prefix // the address, with the length of the network's prefix
}

// Link is how packets are exchanged with everybody on the local networks.
type Link interface {
	// Networks returns what this machine is attached to now.
	Networks() ([]LocalNetwork, error)
	// Send sends one packet to everybody on a network, from our address there.
	Send(on LocalNetwork, packet []byte) error
	// Receive waits for a packet and returns its length and where it came from,
	// an address without a zone or port. It fails for good after Close.
	Receive(packet []byte) (n int, from netip.Addr, err error)
	Close() error
}

// LANConfig holds the parts of a LAN. Packet and Heard are required.
type LANConfig struct {
	// Open opens the way to the local networks; nil opens sockets.
	Open func() (Link, error)
	// Packet makes a packet that will be sent from source, which has a zone where
	// it needs one; nil means that there is nothing to say there.
	Packet func(source netip.Addr) []byte
	// Heard is given every packet of somebody else's in its turn, and the
	// address to reach its sender at, with a zone where one is needed. It
	// returns whether to answer soon.
	Heard func(packet []byte, source lan.Source, from netip.Addr) (answer bool)
	// Moved, if set, is told at which addresses packets are sent from now on, as
	// Packet is, whenever they are others than before; of none when the networks are
	// lost. It is not called beside Packet.
	Moved func(sources []netip.Addr)
	Log   *slog.Logger
}

// LAN speaks and listens on the local networks (docs/spec/lan.md). What is said
// and who is recognised is its caller's business; it knows when to speak, and
// how much to listen to.
type LAN struct {
	cfg   LANConfig
	burst chan struct{}
	told  []netip.Addr // what Moved was told last; only Run uses it

	mu       sync.Mutex
	networks []LocalNetwork
	problem  error
}

// NewLAN makes a LAN that does nothing until Run.
func NewLAN(cfg LANConfig) *LAN {
	if cfg.Open == nil {
		cfg.Open = openSockets
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &LAN{cfg: cfg, burst: make(chan struct{}, 1)}
}

// Announce speaks up as on a network where nobody knows us yet: there is
// somebody new to speak to, or something new to say.
func (l *LAN) Announce() {
	select {
	case l.burst <- struct{}{}:
	default:
	}
}

// Status returns the networks that are spoken on, and why there are none.
func (l *LAN) Status() ([]LocalNetwork, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.networks), l.problem
}

// ErrNoLocalNetwork means that this machine is on no network whose machines hear
// one another.
var ErrNoLocalNetwork = errors.New("this machine is on no local network")

func (l *LAN) note(networks []LocalNetwork, problem error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.networks, l.problem = networks, problem
}

// Run speaks and listens until ctx ends, and opens the way again when it is
// lost. It returns nil.
func (l *LAN) Run(ctx context.Context) error {
	defer l.note(nil, nil)
	for ctx.Err() == nil {
		link, err := l.cfg.Open()
		if err == nil {
			err = l.serve(ctx, link)
		}
		if ctx.Err() != nil {
			break
		}
		l.note(nil, err)
		l.moved(nil)
		l.cfg.Log.Debug("the local network was lost")
		timer := time.NewTimer(lanReopen)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
	}
	return nil
}

// serve speaks and listens on a link until ctx ends or the link fails, and
// closes it.
func (l *LAN) serve(ctx context.Context, link Link) error {
	ctx, cancel := context.WithCancel(ctx)
	answers := make(chan struct{}, 1)
	var listening sync.WaitGroup
	var lost error
	listening.Go(func() {
		defer cancel()
		lost = l.listen(link, answers)
	})
	l.speak(ctx, link, answers)
	cancel()
	_ = link.Close() // it was only there to be used
	listening.Wait()
	return lost
}

// speak sends packets when they are due: several after we have appeared, one
// soon after somebody was recognised, and one now and then.
func (l *LAN) speak(ctx context.Context, link Link, answers <-chan struct{}) {
	var known []LocalNetwork
	due := append([]time.Duration(nil), lanBurst...) // from appeared on
	appeared := time.Now()
	appear := func() { due, appeared = append(due[:0], lanBurst...), time.Now() }
	spoke := appeared.Add(-lanRest)
	look := time.NewTicker(lanLook)
	defer look.Stop()
	next := time.NewTimer(0)
	defer next.Stop()
	at := appeared
	set := func(when time.Time) {
		if rest := spoke.Add(lanRest); when.Before(rest) {
			when = rest
		}
		at = when
		next.Reset(time.Until(when))
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-look.C:
			if now := l.look(link); !slices.Equal(now, known) {
				known = now
				l.moved(known)
				appear()
				set(appeared)
			}
		case <-l.burst:
			appear()
			set(appeared)
		case <-answers:
			if soon := time.Now().Add(rand.N(lanAnswer)); soon.Before(at) {
				set(soon)
			}
		case <-next.C:
			if known == nil {
				known = l.look(link)
				l.moved(known)
			}
			l.say(link, known)
			spoke = time.Now()
			for len(due) > 0 && spoke.Sub(appeared) >= due[0] {
				due = due[1:]
			}
			if len(due) > 0 {
				set(appeared.Add(due[0]))
			} else {
				set(spoke.Add(jitter(lanSteady)))
			}
		}
	}
}

// look returns the networks to speak on: at most maxLocalNetworks.
func (l *LAN) look(link Link) []LocalNetwork {
	networks, err := link.Networks()
	if len(networks) > maxLocalNetworks {
		networks = networks[:maxLocalNetworks]
	}
	if err == nil && len(networks) == 0 {
		err = ErrNoLocalNetwork
	}
	l.note(networks, err)
	return networks
}

// moved tells where we speak from, if that is not where we did before.
func (l *LAN) moved(networks []LocalNetwork) {
	if l.cfg.Moved == nil {
		return
	}
	var sources []netip.Addr
	for _, on := range networks {
		sources = append(sources, on.source())
	}
	if slices.Equal(sources, l.told) {
		return
	}
	l.told = sources
	l.cfg.Moved(slices.Clone(sources))
}

// source is our address on a network, with the zone that one needs to use it.
func (n LocalNetwork) source() netip.Addr {
	source := n.Prefix.Addr().WithZone("")
	if source.Is6() {
		source = source.WithZone(n.Interface)
	}
	return source
}

// say sends a packet of its own on every network. One that can not be sent is
// as good as lost.
func (l *LAN) say(link Link, networks []LocalNetwork) {
	for _, on := range networks {
		if packet := l.cfg.Packet(on.source()); packet != nil {
			_ = link.Send(on, packet)
		}
	}
}

// listen hands over what arrives from our own networks, within the limits, until
// the link fails.
func (l *LAN) listen(link Link, answers chan<- struct{}) error {
	ears := newEars()
	packet := make([]byte, lan.PacketSize+1)
	for {
		n, from, err := link.Receive(packet)
		if err != nil {
			return err
		}
		from = from.Unmap()
		if n != lan.PacketSize || !ears.open(from.WithZone(""), time.Now()) {
			continue
		}
		near, ok := l.neighbour(from)
		if !ok {
			continue
		}
		if l.cfg.Heard(packet[:n], lan.Source(from.As16()), near) {
			select {
			case answers <- struct{}{}:
			default:
			}
		}
	}
}

// neighbour returns where to reach somebody who was heard: only what is on one
// of our own networks is a neighbour, so that no packet can aim our calls at
// anything else.
func (l *LAN) neighbour(from netip.Addr) (netip.Addr, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, on := range l.networks {
		if !on.Prefix.Contains(from.WithZone("")) {
			continue
		}
		if from.Is6() && from.IsLinkLocalUnicast() {
			if from.Zone() == "" || from.Zone() != on.Interface {
				continue
			}
			return from, true
		}
		return from.WithZone(""), true
	}
	return netip.Addr{}, false
}

// ears bounds what is listened to.
type ears struct {
	all     bucket
	sources map[netip.Addr]*bucket
}

func newEars() *ears {
	return &ears{all: newBucket(lanTotalRate, lanTotalBurst), sources: make(map[netip.Addr]*bucket)}
}

// open says whether to listen to one more packet of a source.
func (e *ears) open(from netip.Addr, now time.Time) bool {
	b := e.sources[from]
	if b == nil {
		if len(e.sources) >= maxLANSources {
			for a, old := range e.sources {
				if old.full(now) {
					delete(e.sources, a)
				}
			}
		}
		if len(e.sources) >= maxLANSources {
			return false
		}
		fresh := newBucket(lanSourceRate, lanSourceBurst)
		b = &fresh
		e.sources[from] = b
	}
	return b.take(now) && e.all.take(now)
}

// bucket is a token bucket.
type bucket struct {
	rate, burst float64
	tokens      float64
	at          time.Time
}

func newBucket(rate, burst float64) bucket { return bucket{rate: rate, burst: burst, tokens: burst} }

func (b *bucket) fill(now time.Time) {
	if !b.at.IsZero() {
		b.tokens = min(b.burst, b.tokens+b.rate*now.Sub(b.at).Seconds())
	}
	b.at = now
}

func (b *bucket) take(now time.Time) bool {
	b.fill(now)
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}

func (b *bucket) full(now time.Time) bool {
	b.fill(now)
	return b.tokens >= b.burst
}
