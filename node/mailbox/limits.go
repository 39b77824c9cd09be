package mailbox

import (
	"time"
)

// Limits are what an operator can set. Zero means the default.
type Limits struct {
	Quota        int64         `json:"quota,omitempty"`         // bytes on the disk, in all
	BoxQuota     int64         `json:"box_quota,omitempty"`     // bytes of contacts' envelopes in a box
	TagQuota     int64         `json:"tag_quota,omitempty"`     // bytes of envelopes under one tag
	RequestShare int64         `json:"request_share,omitempty"` // bytes of strangers' envelopes in a box
	Retention    time.Duration `json:"retention,omitempty"`     // how long what nobody collects is kept
	BoxIdle      time.Duration `json:"box_idle,omitempty"`      // how long a box is kept whose owner does not come
	Boxes        int64         `json:"boxes,omitempty"`         // boxes in all
	BoxTags      int64         `json:"box_tags,omitempty"`      // tags of a box; it may have as many again, while one set replaces another
	SourceRate   int64         `json:"source_rate,omitempty"`   // bytes a second from one peer, after a burst
}

// The defaults.
const (
	// DefaultQuota holds three million texts, and is little for a rented server.
	DefaultQuota = 5 << 30
	// DefaultBoxQuota is what a month of absence brings an active person.
	DefaultBoxQuota = 64 << 20
	// DefaultTagQuota lets one contact, whose tags change daily, send 16,000
	// texts in a day and not fill the box with them.
	DefaultTagQuota = 16 << 20
	// DefaultRequestShare is a few dozen first messages: more than anybody
	// accepts in a month, and nothing to be proud of filling.
	DefaultRequestShare = 256 << 10
	// DefaultRetention is how long senders keep trying.
	DefaultRetention = 30 * 24 * time.Hour
	// DefaultBoxIdle is twice that.
	DefaultBoxIdle = 60 * 24 * time.Hour
	// DefaultBoxes bounds the rows that strangers can make us keep.
	DefaultBoxes = 100_000
	// DefaultBoxTags is for 160 sessions with about a hundred tags each.
	DefaultBoxTags = 16 << 10
	// DefaultSourceRate is 256 texts a second, of which a whole burst is let
	// through at once.
	DefaultSourceRate = 256 << 10
)

// What is not for operators to set.
const (
	// burst is for how many seconds of its rate a source that was quiet may
	// send at once: ten thousand texts in one go.
	burst = 64
	// prefixRate is how much more than one peer a whole prefix may send:
	// many people behind one address, and no more than that; and netRate what the
	// network may that the prefix lies in: who has an IPv6 /32 has 65,536 prefixes.
	prefixRate = 8
	netRate    = 64
	// requestCost is what a request counts beside the bytes it brings, and
	// boxCost what making a box counts: it stays for 60 days.
	requestCost = 256
	boxCost     = 64 << 10

	// requestPart of the quota is all that strangers' mail may take: the rest
	// is always there for contacts. Boxes of one group of addresses take as much
	// of it as they leave.
	requestPart = 16

	// A box may hold a boxPart of what is free, and all boxes opened from one
	// group of addresses together as much as is free: whoever is greedy leaves
	// as much as they take, and nobody's mail is thrown out for it.
	boxPart = 4
	// groups of addresses are told apart. Fair shares need no more, and ten
	// bits in a file are no address.
	groups = 1 << 10
	// tagBytes is what a tag takes on the disk, in a fair share: 63 measured
	// when they were new, and trees fill with holes.
	tagBytes = 100

	// maxGroup bounds the deposits that share one fsync.
	maxGroup = 256
	// maxGather bounds those of one stream that wait for one commit.
	maxGather = 128

	// Streams: in all, of one peer, of one prefix and of one network. An idle one
	// costs 40 KiB.
	maxStreams       = 2048
	maxPeerStreams   = 8
	maxPrefixStreams = maxStreams / 4
	maxNetStreams    = maxStreams / 2
	// maxSources bounds the peers, and the prefixes, of which it is remembered
	// what they asked for: those of a minute, as fast as connections are taken.
	maxSources = 16 << 10
	// streamHold bounds the bytes of one stream's requests that wait to be met;
	// beyond it the stream is not read from.
	streamHold = 512 << 10
	// maxHeld bounds the bytes of requests being read and answers being
	// written, of all streams. A network may hold as much as is then free, and a
	// prefix half of that. A peer of whom nothing is held may always send a request
	// of floorHeld bytes: a text, or tags of a few contacts.
	maxHeld   = 64 << 20
	floorHeld = 2 << 10

	// busyPause is what a source is told to wait that did nothing wrong.
	busyPause = 10 * time.Second
)

// fields are the limits in an order of their own, with their defaults.
func (l *Limits) fields() []limit {
	return []limit{
		{&l.Quota, DefaultQuota},
		{&l.BoxQuota, DefaultBoxQuota},
		{&l.TagQuota, DefaultTagQuota},
		{&l.RequestShare, DefaultRequestShare},
		{(*int64)(&l.Retention), int64(DefaultRetention)},
		{(*int64)(&l.BoxIdle), int64(DefaultBoxIdle)},
		{&l.Boxes, DefaultBoxes},
		{&l.BoxTags, DefaultBoxTags},
		{&l.SourceRate, DefaultSourceRate},
	}
}

type limit struct {
	value *int64
	usual int64
}

// complete puts the defaults in the place of zeros.
func (l Limits) complete() Limits {
	for _, f := range l.fields() {
		if *f.value == 0 {
			*f.value = f.usual
		}
	}
	return l
}

// idle is how long a box takes mail whose owner does not come: always longer than
// mail is kept for.
func (l Limits) idle() time.Duration { return max(l.BoxIdle, l.Retention+time.Hour) }

// hours is the retention as it is told on the wire.
func (l Limits) hours() uint16 {
	return uint16(min(max(l.Retention/time.Hour, 0), 1<<16-1))
}
