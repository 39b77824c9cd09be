// Package discovery finds people's devices and community nodes. It announces
// sealed records at rendezvous points of a distributed hash table and finds
// them there (docs/spec/discovery.md).
//
// The table is kad-dht under our own protocol name; it is a hint, never an
// authority and never the only path. Three things lead into it: community
// nodes remembered from earlier runs (remembered.go), those of the
// configuration and of invites (invited.go), and the table itself (dht.go).
// guard.go stands between kad-dht and its peers, valuestore.go bounds what a
// server keeps, lookup.go walks towards a key.
package discovery

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/kith-im/kith/protocol/rendezvous"
)

var (
	// ErrNotFound means that community nodes answered and none had a record.
	ErrNotFound = errors.New("no record was found: the contact has not announced itself lately")
	// ErrNoPeers means that no community node could be reached.
	ErrNoPeers = errors.New("no community node answers: check the network, or add a way in")
)

// Config holds the parts of a Discovery. Host is required. The caller keeps
// ownership of the host and closes it after the Discovery.
type Config struct {
	Host host.Host

	// Server serves the table to others, as community nodes do. People's
	// devices are clients: they are in nobody's table. It never changes on its own.
	Server bool
	// Public says that the network is the open internet: addresses that are
	// not public are not believed, and one network can't fill the table. It
	// must be off on a LAN and in tests, where all peers are one network.
	Public bool

	// Bootstrap holds the ways in that the configuration and accepted invites
	// name; AddWaysIn adds to them.
	Bootstrap []peer.AddrInfo
	// Remembered holds what Remember was last given, in the same order.
	Remembered []peer.AddrInfo
	// Remember is given the community nodes to keep for the next run, at most
	// 32, best first, when they change. It is called from one goroutine at a
	// time; nil remembers nothing.
	Remember func([]peer.AddrInfo)

	// Carry, on a server, brings a mailbox's request to another node and returns
	// the answer (docs/spec/errand.md, section 4). It is called from many
	// goroutines and returns ErrNotCarried for what is never carried. Nil carries
	// nothing.
	Carry func(ctx context.Context, address, mail []byte) ([]byte, error)

	// Now is the clock for the expiry of records; nil means time.Now.
	Now func() time.Time
	// Refresh is how old the routing table may become before it is filled again
	// when it is used; 0 means an hour.
	Refresh time.Duration
	// RecordMemory bounds the records that a server keeps, in bytes; 0 means
	// 64 MiB.
	RecordMemory int64

	Log *slog.Logger
}

// Discovery announces and finds. Its methods may be called from any goroutine.
type Discovery struct {
	cfg        Config
	log        *slog.Logger
	table      *table
	remembered *remembered
	invited    *invited
	floors     *floors
	carriers   *carriers
	errands    *errandServer // nil on a client

	joining chan struct{} // holds one token: whoever takes it connects to the ways in
	wake    chan struct{} // a way in was added
	repairs chan repair
	tried   sync.Map // ways in that were dialled since the table was last empty, by peer.ID

	closing sync.Once
	closed  error
}

// A source knows ways into the table.
type source interface {
	// ways returns community nodes, best first.
	ways() []peer.AddrInfo
}

// Published says what became of an announcement.
type Published struct {
	Asked     int // community nodes that were asked to keep the record
	Stored    int // those that said they did
	Confirmed int // those that gave it back when asked again
}

// Found is what a look-up brought.
type Found struct {
	Point int // the index of the point it was found at
	Body  rendezvous.Body
	Seq   uint64
}

// Mode is what a Discovery is in the table.
type Mode uint8

// The modes.
const (
	Client Mode = iota
	Server
	Errand // a client that has errands done
)

// String returns the mode's name.
func (m Mode) String() string {
	switch m {
	case Server:
		return "server"
	case Errand:
		return "errand"
	case Client:
	}
	return "client"
}

// Status is a Discovery's state at one moment.
type Status struct {
	Mode    Mode
	Table   int // community nodes in the routing table
	Peers   int // those of them with an open connection, or of those that do errands
	Records int // records kept for others; 0 on a client
}

// New makes a Discovery. It serves, if it is a server, but connects to nobody
// until Run. Run or Close ends what it started.
func New(cfg Config) (*Discovery, error) {
	if cfg.Host == nil {
		return nil, errors.New("discovery needs a host")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Refresh == 0 {
		cfg.Refresh = refreshEvery
	}
	if cfg.RecordMemory == 0 {
		cfg.RecordMemory = storeMemory
	}
	t, err := newTable(cfg)
	if err != nil {
		return nil, err
	}
	d := &Discovery{
		cfg:        cfg,
		log:        cfg.Log,
		table:      t,
		remembered: newRemembered(cfg.Host.ID(), cfg.Remembered, cfg.Remember),
		invited:    newInvited(cfg.Host.ID(), cfg.Bootstrap),
		floors:     newFloors(),
		joining:    make(chan struct{}, 1),
		wake:       make(chan struct{}, 1),
		repairs:    make(chan repair, repairQueue),
		carriers:   newCarriers(),
	}
	d.joining <- struct{}{}
	if cfg.Server {
		d.errands = newErrandServer(d)
	}
	return d, nil
}

const (
	// repairQueue bounds the records waiting to be put back; more are dropped.
	repairQueue = 16
	// refreshEvery is how old the routing table may become: 0.19 MiB an hour
	// against 1.4 with kad-dht's ten minutes.
	refreshEvery = time.Hour
	// tendEvery is how often Run looks after an empty table and remembers.
	tendEvery = 5 * time.Minute
	// rejoinMin and rejoinMax bound the pause between attempts to find a way in.
	rejoinMin = 2 * time.Second
	rejoinMax = 5 * time.Minute
)

// Run keeps the Discovery connected until ctx ends, then closes it. It returns
// nil when ctx ended.
func (d *Discovery) Run(ctx context.Context) error {
	defer d.remember()
	var pause time.Duration
	refreshed := d.cfg.Now()
	for ctx.Err() == nil {
		if d.byErrand() {
			d.tendErrands(ctx)
			continue
		}
		wait := tendEvery
		if d.table.size() == 0 {
			if d.join(ctx) {
				pause = 0
				d.table.refresh(ctx)
				d.log.Debug("joined the table", "size", d.table.size())
			} else {
				pause = min(max(2*pause, rejoinMin), rejoinMax)
				wait = jitter(pause)
			}
		}
		d.widen(ctx)
		d.remember()
		if now := d.cfg.Now(); d.cfg.Server && now.Sub(refreshed) >= d.cfg.Refresh {
			d.table.refresh(ctx)
			refreshed = now
		}
		timer := time.NewTimer(wait)
	tend:
		for {
			select {
			case r := <-d.repairs:
				d.table.repair(ctx, r)
			case <-d.wake:
				if d.table.size() > 0 && !d.byErrand() {
					d.dial(ctx, d.invited).Wait()
				}
				break tend
			case <-timer.C:
				break tend
			case <-ctx.Done():
				break tend
			}
		}
		timer.Stop()
	}
	return d.Close()
}

// Close ends everything that New started. It is for a Discovery that Run never
// ran; after Run it does nothing.
func (d *Discovery) Close() error {
	d.closing.Do(func() {
		if d.errands != nil {
			d.errands.close()
		}
		d.closed = d.table.close()
	})
	return d.closed
}

// AddWaysIn adds community nodes, from an invite for example, and connects to
// them while Run runs.
func (d *Discovery) AddWaysIn(infos []peer.AddrInfo) {
	if !d.invited.add(infos) {
		return
	}
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// Nodes returns the community nodes known now, those in the table first; one may
// come more than once.
func (d *Discovery) Nodes() []peer.AddrInfo {
	return slices.Concat(d.table.alive(), d.remembered.ways(), d.invited.ways())
}

// Drop closes all connections: this machine is in another network than before.
// New ones are made when they are needed.
func (d *Discovery) Drop() {
	for _, c := range d.cfg.Host.Network().Conns() {
		_ = c.Close() // the other side sees it end either way
	}
}

// Status returns the state now.
func (d *Discovery) Status() Status {
	if d.byErrand() {
		return Status{Mode: Errand, Peers: d.connected()}
	}
	return d.table.status()
}
