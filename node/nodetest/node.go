package nodetest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/kith-im/kith/discovery"
	"github.com/kith-im/kith/node"
	apiv1 "github.com/kith-im/kith/node/api/v1"
	"github.com/kith-im/kith/node/mailbox"
	"github.com/kith-im/kith/node/store"
	"github.com/kith-im/kith/node/transport"
	wire "github.com/kith-im/kith/protocol/mailbox"
)

// Community is a community node: one host that serves the table. Nobody has to
// be told of it but by way of Options.Ways.
type Community struct {
	t    testing.TB
	net  *Network
	key  crypto.PrivKey
	ways []*Community

	IP        netip.Addr
	Info      peer.AddrInfo // how to dial it, also while it is down
	Host      *transport.Host
	Discovery *discovery.Discovery
	Mail      *mailbox.Service // nil if it keeps none; Behaviour.Crash replaces it
	MailFile  string           // where
	run       *running

	awkward *awkward      // between the mailboxes and their users
	mailing chan struct{} // whoever puts something in may start and end the mailboxes; no mutex, which a bubble does not wait for
	keep    *running      // nil: they are not there
}

// NewCommunity starts a community node on machine i that joins by way of others.
func NewCommunity(t testing.TB, n *Network, i int, ways ...*Community) *Community {
	t.Helper()
	return newCommunity(t, n, i, false, ways)
}

func newCommunity(t testing.TB, n *Network, i int, mail bool, ways []*Community) *Community {
	t.Helper()
	c := &Community{t: t, net: n, IP: IP(i), ways: ways, mailing: make(chan struct{}, 1)}
	if mail {
		c.MailFile = filepath.Join(t.TempDir(), "mailbox.db")
		c.awkward = newAwkward(n)
		c.awkward.crash = c.crashMail
		c.awkward.Behaviour = Mild(i%3 == 0)
	}
	t.Cleanup(c.Stop)
	c.Start()
	return c
}

// NewCommunities starts count community nodes on machines 0 and up, all of which
// know the first two, and gives them time to join.
func NewCommunities(t testing.TB, n *Network, count int) []*Community {
	t.Helper()
	return newCommunities(t, n, count, false)
}

// NewMailCommunities is NewCommunities with nodes that keep mail, awkwardly: one
// of every three loses some (see Mild). Behave(Behaviour{}) makes a node honest.
func NewMailCommunities(t testing.TB, n *Network, count int) []*Community {
	t.Helper()
	return newCommunities(t, n, count, true)
}

func newCommunities(t testing.TB, n *Network, count int, mail bool) (all []*Community) {
	for i := range count {
		all = append(all, newCommunity(t, n, i, mail, all[:min(2, len(all))]))
	}
	time.Sleep(time.Minute)
	return all
}

// Start starts the node again after Stop or Kill, under the same identity.
func (c *Community) Start() {
	c.t.Helper()
	c.Host = c.net.Host(c.t, transport.Config{Key: c.key, Role: transport.Community, Relay: true, Memory: transport.CommunityMemory}, c.IP)
	c.key, c.Info = c.Host.Peerstore().PrivKey(c.Host.ID()), AddrInfo(c.t, c.Host)
	var err error
	c.Discovery, err = discovery.New(discovery.Config{
		Host: c.Host, Server: true, Public: true, Bootstrap: infos(c.ways),
	})
	if err != nil {
		c.t.Fatal(err)
	}
	c.run = start(c.Discovery.Run)
	if c.MailFile == "" {
		return
	}
	c.mailing <- struct{}{}
	defer func() { <-c.mailing }()
	c.openMail()
	c.Host.SetStreamHandler(wire.Protocol, c.awkward.handle)
}

// openMail starts the mailboxes. The caller holds mailing.
func (c *Community) openMail() {
	raw, err := c.key.Raw()
	if err != nil {
		c.t.Error(err)
		return
	}
	if c.Mail, err = mailbox.Open(context.Background(), mailbox.Config{Path: c.MailFile, Key: raw}); err != nil {
		c.t.Error(err)
		return
	}
	c.keep = start(c.Mail.Run)
	c.awkward.key = raw
	c.awkward.serve(c.Mail)
}

// closeMail ends the mailboxes, if they are there. The caller holds mailing.
func (c *Community) closeMail() {
	if c.keep == nil {
		return
	}
	c.awkward.serve(nil)
	if err := errors.Join(c.keep.stop(), c.Mail.Close()); err != nil {
		c.t.Errorf("the mailboxes of a community node ended with: %v", err)
	}
	c.keep = nil
}

// crashMail ends the mailboxes in the middle of what they are about. A while
// later they are there again, unless the node is not.
func (c *Community) crashMail() {
	c.mailing <- struct{}{}
	defer func() { <-c.mailing }()
	if c.keep == nil {
		return
	}
	c.closeMail()
	c.awkward.mu.Lock()
	away := c.awkward.CrashFor
	c.awkward.mu.Unlock()
	timer := time.NewTimer(away)
	defer timer.Stop()
	<-timer.C
	c.openMail()
}

// Stop ends the node.
func (c *Community) Stop() {
	if c.run != nil {
		if err := c.run.stop(); err != nil {
			c.t.Errorf("a community node ended with: %v", err)
		}
		c.run = nil
		c.Host.Close()
	}
	c.mailing <- struct{}{}
	defer func() { <-c.mailing }()
	c.closeMail()
}

// Kill ends the node as a power cut would.
func (c *Community) Kill() {
	c.net.Kill(c.IP)
	c.Stop()
}

func infos(cs []*Community) (out []peer.AddrInfo) {
	for _, c := range cs {
		out = append(out, c.Info)
	}
	return out
}

// Options say how a user's node is made. Only Machine is required.
type Options struct {
	Machine int          // the user's node runs on IP(Machine)
	Ways    []*Community // ways into the table, also named by invites
	Home    string       // data directory; empty: a new one
	// Mailboxes says whether the user uses them.
	Mailboxes node.MailboxMode
	Budget    transport.Budget
	Now       func() time.Time
	// Link, if set, is the machine's way to local networks; a network's LAN
	// makes one.
	Link func() (discovery.Link, error)
	Log  *slog.Logger
}

// User is a user's whole daemon but for its command line: a store, the hosts for
// conversations and for look-ups, the discovery and the node. It is stopped
// when the test ends.
type User struct {
	// Node is the running node. Restart replaces it.
	*node.Node

	t    testing.TB
	net  *Network
	opts Options

	Name     string
	Home     string
	IP       netip.Addr
	Store    *store.Store
	Contacts *transport.Host
	Errands  *transport.Host
	Dir      *discovery.Discovery

	talk, look *running
}

// NewUser makes a user and starts their node.
func NewUser(t testing.TB, n *Network, name string, opts Options) *User {
	t.Helper()
	if opts.Home == "" {
		opts.Home = t.TempDir()
	}
	u := &User{t: t, net: n, opts: opts, Name: name, Home: opts.Home, IP: IP(opts.Machine)}
	t.Cleanup(u.Stop)
	u.Start()
	return u
}

// Start starts the node again after Stop or Crash, on the same home.
func (u *User) Start() {
	u.t.Helper()
	if err := u.TryStart(); err != nil {
		u.t.Fatalf("%s does not start: %v", u.Name, err)
	}
}

// TryStart is Start for a home that may not open.
func (u *User) TryStart() (err error) {
	u.t.Helper()
	if u.Store, err = store.Open(store.Options{Dir: u.Home, Log: u.opts.Log}); err != nil {
		return err
	}
	meter := transport.NewMeter(u.opts.Budget, u.opts.Now)
	mode, err := node.Prepare(context.Background(), u.Store, "", nil, 0)
	if err != nil {
		return errors.Join(err, u.Store.Close())
	}
	u.Contacts = u.net.Host(u.t, transport.Config{Role: transport.Contacts, Mode: mode, Meter: meter, Log: u.opts.Log}, u.IP)
	u.Errands = u.net.Host(u.t, transport.Config{Role: transport.Errands, Mode: mode, Meter: meter, Log: u.opts.Log}, u.IP)
	if u.Dir, err = discovery.New(discovery.Config{
		Host: u.Errands, Public: true, Bootstrap: infos(u.opts.Ways), Now: u.opts.Now, Refresh: node.Refresh(u.opts.Budget), Log: u.opts.Log,
	}); err != nil {
		return errors.Join(err, u.Store.Close())
	}
	var hints []ma.Multiaddr
	for _, info := range infos(u.opts.Ways) {
		full, err := peer.AddrInfoToP2pAddrs(&info)
		if err != nil {
			return err
		}
		hints = append(hints, full...)
	}
	u.Node, err = node.New(context.Background(), node.Config{
		Store: u.Store, Discovery: u.Dir, Host: u.Contacts, Lookups: u.Errands, Role: node.RoleUser, Name: u.Name, Version: "test",
		Reachable: func(a ma.Multiaddr, _ bool) bool { return transport.ReachOf(a) == transport.Public },
		Hints:     hints, Errand: func() (*transport.Host, error) { return u.net.Errand(u.IP, meter) },
		Prober:      transport.Prober{DialTCP: u.net.dialFrom(u.IP)},
		MailboxMode: u.opts.Mailboxes, Now: u.opts.Now, LANLink: u.opts.Link, Log: u.opts.Log,
	})
	if err != nil {
		return errors.Join(err, u.Dir.Close(), u.Store.Close())
	}
	u.look, u.talk = start(u.Dir.Run), start(u.Node.Run)
	return nil
}

// Stop ends the node as SIGTERM does.
func (u *User) Stop() {
	if u.talk == nil {
		return
	}
	if err := errors.Join(u.talk.stop(), u.look.stop()); err != nil {
		u.t.Errorf("%s ended with: %v", u.Name, err)
	}
	u.talk, u.look = nil, nil
	u.Contacts.Close()
	u.Errands.Close()
	if err := u.Store.Close(); err != nil {
		u.t.Errorf("%s: close the store: %v", u.Name, err)
	}
}

// Restart is Stop and Start.
func (u *User) Restart() {
	u.t.Helper()
	u.Stop()
	u.Start()
}

// Crash ends the node as kill -9 does: the network loses it without a goodbye,
// and what a later Start finds is the data directory of that moment, in the
// middle of a transaction.
func (u *User) Crash() {
	u.t.Helper()
	u.net.Kill(u.IP)
	home := u.Clone()
	u.Stop()
	u.Home = home
}

// Clone copies the data directory of a running node as it is at one moment, and
// returns the copy.
func (u *User) Clone() string {
	u.t.Helper()
	to := u.t.TempDir()
	rollback := errors.New("rolled back")
	err := u.Store.Update(context.Background(), func(*store.Tx) error { // nothing else writes meanwhile
		if err := copyDir(to, u.Home); err != nil {
			return err
		}
		return rollback
	})
	if !errors.Is(err, rollback) {
		u.t.Fatalf("clone the home of %s: %v", u.Name, err)
	}
	return to
}

func copyDir(to, from string) error {
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		target := filepath.Join(to, rel)
		switch {
		case d.IsDir():
			return os.MkdirAll(target, 0o700)
		case rel == "lock":
			return nil
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(target, b, 0o600)
	})
}

// running is something that runs until it is stopped.
type running struct {
	cancel context.CancelFunc
	ended  chan error
}

func start(run func(context.Context) error) *running {
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{cancel: cancel, ended: make(chan error, 1)}
	go func() { r.ended <- run(ctx) }()
	return r
}

func (r *running) stop() error {
	r.cancel()
	return <-r.ended
}

// Patience is how long the methods that wait do so, in virtual time: longer than
// every pause between attempts of a node.
const Patience = 30 * time.Minute

// Until waits for ok to hold, looking whenever the user's event log grows and
// every second. It says what in vain after Patience.
func (u *User) Until(what string, ok func() bool) {
	u.t.Helper()
	u.UntilWithin(Patience, what, ok)
}

// UntilWithin is Until with another patience.
func (u *User) UntilWithin(patience time.Duration, what string, ok func() bool) {
	u.t.Helper()
	end := time.Now().Add(patience)
	var last uint64
	for first := true; ; first = false {
		if first {
			last = u.LastEvent()
		}
		if ok() {
			return
		}
		if !time.Now().Before(end) {
			u.t.Fatalf("%s waited %v in vain for: %s", u.Name, patience, what)
		}
		out, err := u.ListEvents(context.Background(), &apiv1.ListEventsRequest{After: last, From: "start", Limit: 1000, WaitMs: 1000})
		if err != nil {
			u.t.Fatalf("%s: list events: %v", u.Name, err)
		}
		for _, e := range out.Events {
			last = e.Id
		}
	}
}

// LastEvent returns the id of the newest event.
func (u *User) LastEvent() (last uint64) {
	u.t.Helper()
	if err := u.Store.View(context.Background(), func(tx *store.Tx) (err error) {
		last, err = tx.LastEvent()
		return err
	}); err != nil {
		u.t.Fatal(err)
	}
	return last
}

// Event is an event with its data decoded; fields that its type does not have
// are zero.
type Event struct {
	Number uint64 `json:"-"`
	Type   string `json:"-"`

	ID           string `json:"id"`
	Name         string `json:"name"`
	Conversation string `json:"conversation"`
	FromMe       bool   `json:"from_me"`
	Text         string `json:"text"`
	State        string `json:"state"`
	Seq          uint64 `json:"seq"`
	Missing      uint32 `json:"missing_before"`
	What         string `json:"what"`
	Profile      string `json:"profile"`
	Invite       string `json:"invite"`
	Verified     bool   `json:"verified"`
}

// Events returns all events after an id.
func (u *User) Events(after uint64) (all []Event) {
	u.t.Helper()
	for {
		out, err := u.ListEvents(context.Background(), &apiv1.ListEventsRequest{After: after, From: "start", Limit: 1000})
		if err != nil {
			u.t.Fatal(err)
		}
		if len(out.Events) == 0 {
			return all
		}
		for _, raw := range out.Events {
			e := Event{Number: raw.Id, Type: raw.Type}
			if err := json.Unmarshal([]byte(raw.Data), &e); err != nil {
				u.t.Fatal(err)
			}
			all, after = append(all, e), raw.Id
		}
	}
}

// Contact returns a contact by name or id, or nil.
func (u *User) Contact(word string) *apiv1.Contact {
	u.t.Helper()
	out, err := u.ListContacts(context.Background(), &apiv1.ListContactsRequest{})
	if err != nil {
		u.t.Fatal(err)
	}
	for _, c := range out.Contacts {
		if c.Id == word || c.Name == word {
			return c
		}
	}
	return nil
}

// Invite makes an invite and returns its link.
func (u *User) Invite(req *apiv1.CreateInviteRequest) string {
	u.t.Helper()
	out, err := u.CreateInvite(context.Background(), req)
	if err != nil {
		u.t.Fatal(err)
	}
	return out.Invite.Link
}

// Accept answers a link and calls its maker name.
func (u *User) Accept(link, name string) *apiv1.Contact {
	u.t.Helper()
	out, err := u.AcceptInvite(context.Background(), &apiv1.AcceptInviteRequest{Link: link, Name: name})
	if err != nil {
		u.t.Fatal(err)
	}
	return out.Contact
}

// Befriend makes a and b contacts, under each other's names, by a one-time
// invite of a.
func Befriend(a, b *User) {
	a.t.Helper()
	b.Accept(a.Invite(&apiv1.CreateInviteRequest{Name: b.Name}), a.Name)
	a.UntilEstablished(b.Name)
	b.UntilEstablished(a.Name)
}

// UntilEstablished waits until a contact is established.
func (u *User) UntilEstablished(name string) {
	u.t.Helper()
	u.Until(name+" is an established contact", func() bool {
		c := u.Contact(name)
		return c != nil && c.State == "established"
	})
}

// Say sends texts, all in one request, and returns their ids.
func (u *User) Say(to string, texts ...string) (ids []string) {
	u.t.Helper()
	out, err := u.Send(context.Background(), &apiv1.SendRequest{Conversation: to, Texts: texts})
	if err != nil {
		u.t.Fatalf("%s sends to %s: %v", u.Name, to, err)
	}
	for _, m := range out.Messages {
		ids = append(ids, m.Id)
	}
	return ids
}

// Messages returns a whole conversation in its order.
func (u *User) Messages(with string) (all []*apiv1.Message) {
	u.t.Helper()
	before := ""
	for {
		out, err := u.ListMessages(context.Background(), &apiv1.ListMessagesRequest{Conversation: with, Last: 1000, Before: before})
		if err != nil {
			u.t.Fatalf("%s reads %s: %v", u.Name, with, err)
		}
		all = append(out.Messages, all...)
		if !out.More {
			return all
		}
		before = out.Messages[0].Id
	}
}

// Texts returns the texts of a conversation in its order, each as "name: text".
func (u *User) Texts(with string) (all []string) {
	u.t.Helper()
	for _, m := range u.Messages(with) {
		all = append(all, m.From+": "+m.Text)
	}
	return all
}

// State returns how far a message of the user's own has come.
func (u *User) State(id string) string {
	u.t.Helper()
	out, err := u.Trace(context.Background(), &apiv1.TraceRequest{Id: id})
	if err != nil {
		u.t.Fatal(err)
	}
	return out.Message.State
}

// UntilState waits until messages of the user's own are in a state.
func (u *User) UntilState(state string, ids ...string) {
	u.t.Helper()
	i := 0
	u.Until(fmt.Sprintf("%d messages are %s", len(ids), state), func() bool {
		for i < len(ids) && u.State(ids[i]) == state {
			i++
		}
		return i == len(ids)
	})
}

// UntilDelivered waits for the receipts of messages.
func (u *User) UntilDelivered(ids ...string) {
	u.t.Helper()
	u.UntilState("delivered", ids...)
}

// UntilTexts waits until a conversation shows count messages.
func (u *User) UntilTexts(with string, count int) {
	u.t.Helper()
	u.Until(fmt.Sprintf("%d messages with %s", count, with), func() bool { return len(u.Messages(with)) >= count })
}
