// Package node is one person's running messenger: their account, their
// contacts, what waits to be sent and what was received.
//
// The two straight paths are send.go with outbox.go, and receive.go; each
// opens with the journey it describes. Two invariants shape both: commit, then
// send; commit, then acknowledge. Everything that must be true together is
// written in one store.Update, through a work (work.go).
//
// A Node is made of finished parts by its caller: an open store, a libp2p host
// for conversations and a discovery. It starts nothing until Run.
package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/kith-im/kith/discovery"
	"github.com/kith-im/kith/node/store"
	"github.com/kith-im/kith/node/transport"
)

// Role is what a daemon is for.
type Role int

// The roles. A community node serves the DHT and talks to nobody; only a user
// has an account.
const (
	RoleUser Role = iota
	RoleCommunity
)

// String returns the word that the API and the command line use.
func (r Role) String() string {
	switch r {
	case RoleUser:
		return "user"
	case RoleCommunity:
		return "community"
	}
	return "unknown"
}

// Config holds the finished parts of a node. The caller keeps ownership of all
// of them and closes them after Run has returned.
type Config struct {
	Store     *store.Store
	Discovery *discovery.Discovery
	// Lookups is the host of Discovery where that is another than Host, so that
	// both are in one mode.
	Lookups *transport.Host

	// Host carries conversations. Its peer id is fresh for every run. On a
	// community node it is the one persistent host.
	Host *transport.Host

	Role Role
	// Name is what the account calls itself from now on; empty leaves it as it is.
	Name string
	// Version of the program, for status.
	Version string
	// Reachable says whether an address that somebody published may be dialled: an
	// established contact, if known is true, a stranger otherwise. nil allows all.
	Reachable func(a ma.Multiaddr, known bool) bool
	// HideAddress has contacts learn only relays and mailboxes of us, never our
	// address (docs/spec/roads.md, section 7). The host then listens to nobody.
	HideAddress bool
	// Hints are the community nodes that new invites name as ways in, as
	// multiaddrs with /p2p; at most three are used.
	Hints []ma.Multiaddr
	// Errand makes a host without a listener under a name that nobody has seen,
	// for one mailbox, or for what is left at mailboxes for one contact. Its
	// caller closes it.
	Errand func() (*transport.Host, error)
	// Preset is the name of the budget that the hosts' meter holds, for status.
	Preset string
	// Offline says that the hosts dial nothing but what is heard on a local network:
	// then the network is not probed either, nor is the proxy.
	Offline bool
	// Proxy is what every connection goes through; nil: nothing.
	Proxy *transport.Proxy
	// Site is what a bridge's web site is called, for status; empty: it is no bridge.
	Site string
	// Prober is how the network is probed.
	Prober transport.Prober
	// LANLink opens the way to the local networks; nil opens sockets.
	LANLink func() (discovery.Link, error)
	// MailboxMode says whether mailboxes are used, ours and those of contacts.
	MailboxMode MailboxMode
	// Now is the clock; nil means time.Now. Only displayed times and expiry
	// depend on it.
	Now func() time.Time
	Log *slog.Logger
}

// Node is a messenger. Its API methods may be called from any goroutine while
// Run runs.
type Node struct {
	cfg     Config
	store   *store.Store
	self    *self // nil on a community node
	age     age
	now     func() time.Time
	log     *slog.Logger
	feed    *feed
	outbox  *outbox
	lobby   *lobby
	beacon  *beacon
	locals  *locals
	checker *checker
	relays  *relays
	mail    *Mailboxes
	modes   *modes
	rush    *rush
	gate    *gate
	loaded  loaded
	hasty   chan struct{} // something expires soon
	started time.Time
}

// New prepares a node: it loads the account and gives it cfg.Name, or creates it
// in a store that has none. It starts nothing.
func New(ctx context.Context, cfg Config) (*Node, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	n := &Node{cfg: cfg, store: cfg.Store, now: cfg.Now, log: cfg.Log, started: cfg.Now()}
	n.feed = newFeed(n)
	n.locals = newLocals(n)
	n.checker = newChecker(n)
	err := n.view(ctx, func(tx *store.Tx) (err error) {
		n.locals.on, err = lanSetting(tx)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("load the settings: %w", err)
	}
	if err := n.recount(ctx); err != nil {
		return nil, fmt.Errorf("load what was used today: %w", err)
	}
	if cfg.Role == RoleCommunity {
		return n, nil
	}
	if n.self, err = loadSelf(ctx, cfg); err != nil {
		return nil, err
	}
	if err := cfg.Store.Update(ctx, func(tx *store.Tx) (err error) {
		n.age, err = loadAge(tx, cfg.Now())
		return err
	}); err != nil {
		return nil, fmt.Errorf("load the store's age: %w", err)
	}
	n.gate = newGate(cfg.Now())
	n.hasty = make(chan struct{}, 1)
	n.outbox = newOutbox(n)
	n.lobby = newLobby(n)
	n.beacon = newBeacon(n)
	n.relays = newRelays(n)
	n.mail = newMailboxes(n)
	n.modes = newModes(n)
	n.rush = newRush(n)
	if err := n.rename(ctx); err != nil {
		return nil, fmt.Errorf("rename the account: %w", err)
	}
	return n, nil
}

// Run serves until ctx ends, then lets what is on its way finish, for at most
// drainTime, and returns when every goroutine it started has ended. It returns
// nil after ctx ended, and an error if the store failed.
func (n *Node) Run(ctx context.Context) error {
	run, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	var parts sync.WaitGroup
	parts.Go(func() { n.locals.run(run) })
	parts.Go(func() { n.meter(run) })
	if n.cfg.Role == RoleCommunity {
		err := n.keep(ctx)
		cancel()
		parts.Wait()
		return err
	}
	parts.Go(func() { n.checker.run(run) })
	parts.Go(func() { n.watch(run) })
	n.lobby.open(run)
	connections := &network.NotifyBundle{ConnectedF: n.outbox.connected}
	n.cfg.Host.Network().Notify(connections)
	defer n.cfg.Host.Network().StopNotify(connections)
	parts.Go(func() { n.relays.run(run) })
	parts.Go(func() { n.modes.run(run) })
	parts.Go(func() { n.beacon.run(run) })
	parts.Go(func() { n.mail.run(run) })
	parts.Go(func() { n.tidy(run) })
	if err := n.outbox.open(run); err != nil {
		cancel()
		parts.Wait()
		return fmt.Errorf("load the outbox: %w", err)
	}
	err := n.keep(ctx)
	n.lobby.close()
	n.outbox.drain(drainTime)
	cancel()
	n.lobby.wait()
	n.outbox.wait()
	parts.Wait()
	return err
}

// drainTime bounds how long a stopping node waits for what it has offered to
// be acknowledged. Nothing depends on it: what is cut off is offered again.
const drainTime = 2 * time.Second

// errStoreFailed ends a node whose disk failed: it must not acknowledge more.
var errStoreFailed = errors.New("the disk failed while saving, so kith stopped: check the disk and restart kith")

// keep waits for the end.
func (n *Node) keep(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-n.store.Failed():
		return errStoreFailed
	}
}

// tidyEvery is how often expiry is looked after, and sooner if something is to
// expire sooner, but not before tidyRest.
const (
	tidyEvery = time.Hour
	tidyRest  = 250 * time.Millisecond
)

// tidy looks after everything that ends by itself: envelopes, invites, prekeys,
// events.
func (n *Node) tidy(ctx context.Context) {
	for {
		next := tidyEvery
		if err := n.update(ctx, func(w *work) (err error) {
			next, err = w.tidy()
			return err
		}); err != nil && ctx.Err() == nil {
			n.log.Warn("tidying up failed; it is tried again in an hour", "cause", err)
			next = tidyEvery
		}
		timer := time.NewTimer(min(max(next, tidyRest), tidyEvery))
		select {
		case <-timer.C:
		case <-n.hasty:
		case <-ctx.Done():
			timer.Stop()
			return
		}
		timer.Stop()
	}
}
