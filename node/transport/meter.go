package transport

import (
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/metrics"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
)

const (
	// streamRate and streamBurst bound the streams that one peer may open, per
	// second and at once. An honest one opens a few when it comes, and one for
	// each question to the directory.
	streamRate, streamBurst = 20, 200

	// floodBan is how long a peer that opens more is not let in again, and
	// maxFlooders bounds those who are remembered for it.
	floodBan    = time.Minute
	maxFlooders = 1024

	day = 24 * time.Hour
)

// Budget is what a daemon may use of a machine and its network. A zero field is
// the default, or no limit.
type Budget struct {
	Memory      int64 // bytes that the hosts' connections may reserve
	Connections int   // of each host, fewer than its memory allows
	Dials       int   // a minute; 0: no limit
	Bytes       int64 // a day, sent and received; 0: no limit
	Metered     bool  // bytes cost money: what nobody waits for is slow
}

// Subsystem is what bytes are counted for.
type Subsystem uint8

// The subsystems.
const (
	Conversations Subsystem = iota // contacts, and whatever else has a secret name
	Directory                      // the table of community nodes
	Mailboxes
	Relays
	Upkeep // identification, reachability, hole punching, and agreeing on protocols
	subsystems
)

// String returns the subsystem's word.
func (s Subsystem) String() string {
	return [...]string{"conversations", "directory", "mailboxes", "relays", "upkeep"}[s]
}

// subsystemOf says what a stream of a protocol is for.
func subsystemOf(p protocol.ID) Subsystem {
	switch s := string(p); {
	case strings.HasSuffix(s, "/kad/1.0.0"), strings.HasPrefix(s, "/lan/errand/"):
		return Directory
	case strings.HasPrefix(s, "/libp2p/circuit/"):
		return Relays
	case s == "", strings.HasPrefix(s, "/ipfs/"), strings.HasPrefix(s, "/libp2p/"):
		return Upkeep
	case strings.HasPrefix(s, "/lan/mailbox/"):
		return Mailboxes
	}
	return Conversations
}

// Usage is what was used since midnight UTC.
type Usage struct {
	Sent, Received [subsystems]int64 // bytes of streams, without what carries them
	Dials          int64             // since the start
	Refused        int64             // dials and connections that were over the budget, since the start
}

// Bytes is the sum of both directions.
func (u Usage) Bytes() (sum int64) {
	for i := range u.Sent {
		sum += u.Sent[i] + u.Received[i]
	}
	return sum
}

// Meter counts what the hosts of a daemon use, and holds them to a budget. Its
// methods may be called from any goroutine.
type Meter struct {
	budget Budget
	now    func() time.Time

	today          atomic.Int64 // number of the day that is counted
	sent, received [subsystems]atomic.Int64
	dials, refused atomic.Int64

	mu       sync.Mutex
	minute   bucket // of dials
	openers  map[peer.ID]*bucket
	flooders map[peer.ID]time.Time // until when
}

var _ metrics.Reporter = (*Meter)(nil)

// NewMeter makes a meter. now is the clock that says when a day is over; nil
// means time.Now.
func NewMeter(budget Budget, now func() time.Time) *Meter {
	if now == nil {
		now = time.Now
	}
	m := &Meter{budget: budget, now: now, openers: make(map[peer.ID]*bucket), flooders: make(map[peer.ID]time.Time)}
	m.minute = bucket{rate: float64(budget.Dials) / 60, burst: float64(budget.Dials), tokens: float64(budget.Dials)}
	m.today.Store(m.day())
	return m
}

// Budget returns the budget.
func (m *Meter) Budget() Budget { return m.budget }

func (m *Meter) day() int64 { return m.now().Unix() / int64(day/time.Second) }

// turn begins a new day, if there is one. A clock that was ahead and is put right
// begins one as well: what is used up would else be so until that day.
func (m *Meter) turn() {
	if now, was := m.day(), m.today.Load(); now != was && m.today.CompareAndSwap(was, now) {
		for i := range m.sent {
			m.sent[i].Store(0)
			m.received[i].Store(0)
		}
	}
}

// Usage returns what was used, and the number of the day it is of.
func (m *Meter) Usage() (u Usage, of int64) {
	m.turn()
	for i := range m.sent {
		u.Sent[i], u.Received[i] = m.sent[i].Load(), m.received[i].Load()
	}
	u.Dials, u.Refused = m.dials.Load(), m.refused.Load()
	return u, m.today.Load()
}

// Restore continues the count of a day, of which an earlier run used this.
func (m *Meter) Restore(u Usage, of int64) {
	m.turn()
	if of != m.today.Load() {
		return
	}
	for i := range m.sent {
		m.sent[i].Add(u.Sent[i])
		m.received[i].Add(u.Received[i])
	}
}

// Spent says whether the day's bytes are used up.
func (m *Meter) Spent() bool {
	if m == nil || m.budget.Bytes == 0 {
		return false
	}
	u, _ := m.Usage()
	return u.Bytes() >= m.budget.Bytes
}

// mayDial counts a dial and says whether it is within the budget. Conversations
// are what the rest is for: the day's bytes do not end them, the rate of
// dials does.
func (m *Meter) mayDial(role Role) bool {
	if m == nil {
		return true
	}
	ok := role == Contacts || !m.Spent()
	if ok && m.budget.Dials > 0 {
		m.mu.Lock()
		ok = m.minute.take(time.Now())
		m.mu.Unlock()
	}
	if ok {
		m.dials.Add(1)
	} else {
		m.refused.Add(1)
	}
	return ok
}

// mayTalk says whether somebody may come in or a stream be opened, whoever does: not
// once the day's bytes are used up, but for conversations.
func (m *Meter) mayTalk(role Role) bool {
	if m == nil || role == Contacts || !m.Spent() {
		return true
	}
	m.refused.Add(1)
	return false
}

// opened counts a stream that a peer opened, and says whether that is too many.
func (m *Meter) opened(p peer.ID) (flood bool) {
	now := time.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	b := m.openers[p]
	if b == nil {
		if len(m.openers) >= maxFlooders {
			for id, old := range m.openers {
				if old.fill(now); old.tokens >= old.burst {
					delete(m.openers, id)
				}
			}
		}
		b = &bucket{rate: streamRate, burst: streamBurst, tokens: streamBurst, at: now}
		m.openers[p] = b
	}
	if b.take(now) {
		return false
	}
	for id, until := range m.flooders {
		if now.After(until) {
			delete(m.flooders, id)
		}
	}
	if len(m.flooders) < maxFlooders {
		m.flooders[p] = now.Add(floodBan)
	}
	return true
}

// floods says whether a peer is kept out for opening too many streams.
func (m *Meter) floods(p peer.ID) bool {
	if m == nil {
		return false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	until, ok := m.flooders[p]
	return ok && time.Now().Before(until)
}

// LogSentMessageStream counts bytes of a stream.
func (m *Meter) LogSentMessageStream(n int64, p protocol.ID, _ peer.ID) {
	m.turn()
	m.sent[subsystemOf(p)].Add(n)
}

// LogRecvMessageStream counts bytes of a stream.
func (m *Meter) LogRecvMessageStream(n int64, p protocol.ID, _ peer.ID) {
	m.turn()
	m.received[subsystemOf(p)].Add(n)
}

// reporter is what counts the bytes of a host.
func reporter(cfg Config) metrics.Reporter {
	if cfg.Role == Community {
		return cfg.Meter
	}
	return once{cfg.Meter}
}

// once counts what a user's own connections through relays carry by their streams,
// and not again by the stream to the relay.
type once struct{ *Meter }

func (o once) LogSentMessageStream(n int64, p protocol.ID, from peer.ID) {
	if subsystemOf(p) != Relays {
		o.Meter.LogSentMessageStream(n, p, from)
	}
}

func (o once) LogRecvMessageStream(n int64, p protocol.ID, from peer.ID) {
	if subsystemOf(p) != Relays {
		o.Meter.LogRecvMessageStream(n, p, from)
	}
}

// The rest of metrics.Reporter is for those who want libp2p's own figures.

// LogSentMessage does nothing: the stream's call counts.
func (m *Meter) LogSentMessage(int64) {}

// LogRecvMessage does nothing: the stream's call counts.
func (m *Meter) LogRecvMessage(int64) {}

// GetBandwidthForPeer returns nothing: no peer is counted by name.
func (m *Meter) GetBandwidthForPeer(peer.ID) (s metrics.Stats) { return s }

// GetBandwidthForProtocol returns nothing; see Usage.
func (m *Meter) GetBandwidthForProtocol(protocol.ID) (s metrics.Stats) { return s }

// GetBandwidthTotals returns nothing; see Usage.
func (m *Meter) GetBandwidthTotals() (s metrics.Stats) { return s }

// GetBandwidthByPeer returns nothing: no peer is counted by name.
func (m *Meter) GetBandwidthByPeer() map[peer.ID]metrics.Stats { return nil }

// GetBandwidthByProtocol returns nothing; see Usage.
func (m *Meter) GetBandwidthByProtocol() map[protocol.ID]metrics.Stats { return nil }

// Reset does nothing: a day ends by itself.
func (m *Meter) Reset() {}

// TrimIdle does nothing: nothing grows.
func (m *Meter) TrimIdle(time.Time) {}

// metered is a resource manager that takes nothing more once the day's bytes are
// used up, and that ends the connections of peers who open streams faster than
// anybody needs (threats F03): each costs a goroutine and an answer, however soon
// it is reset.
type metered struct {
	network.ResourceManager
	meter *Meter
	role  Role
	end   func(peer.ID) // closes the connections of a peer
}

func (r *metered) OpenStream(p peer.ID, dir network.Direction) (network.StreamManagementScope, error) {
	if dir == network.DirInbound && r.meter.opened(p) {
		r.end(p)
		return nil, network.ErrResourceLimitExceeded
	}
	if !r.meter.mayTalk(r.role) {
		return nil, network.ErrResourceLimitExceeded
	}
	return r.ResourceManager.OpenStream(p, dir)
}

// bucket is a token bucket.
type bucket struct {
	rate, burst, tokens float64
	at                  time.Time
}

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
