package envelope

import (
	"math"
	"time"

	"github.com/kith-im/kith/protocol"
)

// firstIndex is the first index for envelopes without a prefix.
const firstIndex = HX2Index + 1

// Sender is the sending side's place in the tags of one session and direction
// (docs/spec/envelope.md, section 4). The index is a counter and not a date:
// clocks are wrong. The zero value is the beginning.
type Sender struct {
	Index     uint32    // in use; 0 means firstIndex
	Confirmed uint32    // highest index with an end-to-end receipt
	Advanced  time.Time // when Index last moved
}

// Current is the index to send under.
func (s Sender) Current() uint32 { return max(s.Index, firstIndex) }

// Advance moves to the next index if a day has passed since the last move and
// receipts keep up. A clock that was put back restarts the day.
func (s Sender) Advance(now time.Time) Sender {
	s.Index = s.Current()
	switch {
	case s.Advanced.IsZero() || now.Before(s.Advanced):
		s.Advanced = now
	case now.Sub(s.Advanced) < protocol.TagPeriod,
		s.Index >= s.Confirmed+protocol.MaxTagAhead,
		s.Index == math.MaxUint32-protocol.TagWindow:
	default:
		s.Index++
		s.Advanced = now
	}
	return s
}

// Confirm notes an end-to-end receipt for a message sent under index.
func (s Sender) Confirm(index uint32) Sender {
	if index <= s.Current() {
		s.Confirmed = max(s.Confirmed, index)
	}
	return s
}

// Receiver is the receiving side's place in the tags of one session and
// direction. The zero value is the beginning.
type Receiver struct {
	Highest uint32 // index of the newest envelope that opened
}

// Window is the first and the last index to accept. A tag behind the newest
// stays good for as long as a sender retries the bytes it made under it. An
// initiator accepts HX2Index besides, for as long as it keeps the session.
func (r Receiver) Window() (first, last uint32) {
	first = firstIndex
	if r.Highest > firstIndex+protocol.TagsBehind {
		first = r.Highest - protocol.TagsBehind
	}
	return first, r.Highest + min(protocol.TagWindow, math.MaxUint32-r.Highest)
}

// Accepts reports whether index is in the window.
func (r Receiver) Accepts(index uint32) bool {
	first, last := r.Window()
	return first <= index && index <= last
}

// Opened notes an envelope under index that opened and moves the window.
func (r Receiver) Opened(index uint32) Receiver {
	if r.Accepts(index) {
		r.Highest = max(r.Highest, index)
	}
	return r
}
