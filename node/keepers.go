package node

import (
	"encoding/json"
	"errors"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/kith-im/kith/node/store"
	"github.com/kith-im/kith/protocol"
)

// What a node that keeps mail is worth. Being away costs it nothing for a
// while: people run these at home. What counts is a broken word: it signed, and
// did not keep. Such strikes are forgiven one a day.

const (
	strikeOdd  = 1  // it does not keep to the protocol: a broken program
	strikeLoss = 3  // something it had signed for is gone
	strikeLie  = 10 // a signature or a proof that is not one

	// degradedAt and lyingAt are the strikes from which a node is called so:
	// one loss may be a broken disk, three are none.
	degradedAt = 3
	lyingAt    = 9
	// unreachableAfter is how long a node may be away before it is called
	// unreachable, and replaceAfter before another takes its place.
	unreachableAfter = 10 * time.Minute
	replaceAfter     = 24 * time.Hour

	forgiveEvery = 24 * time.Hour

	// maxEvidence sentences are kept of a node, the newest.
	maxEvidence = 8
	// spokeEvery is how often it is noted that a node answers.
	spokeEvery = 10 * time.Minute
)

// standing is what a node that keeps mail is called.
type standing string

// The standings of a node.
const (
	standingGood        standing = "good"
	standingDegraded    standing = "degraded"
	standingLying       standing = "lying"
	standingUnreachable standing = "unreachable"
	standingPaused      standing = "paused" // of a box, for who asks: it is not asked, the day's bytes being used up
)

// evidence is something that a node did, and how often.
type evidence struct {
	Time  int64  `json:"t"` // the last time, in Unix milliseconds
	Count int    `json:"n"`
	What  string `json:"s"`
}

func decodeEvidence(b []byte) (all []evidence, err error) {
	if len(b) == 0 {
		return nil, nil
	}
	if err := json.Unmarshal(b, &all); err != nil {
		return nil, errors.Join(store.ErrDamaged, err)
	}
	return all, nil
}

// forgiven is a node's strikes and doubts at an age, one a day forgiven.
func forgiven(k store.KeeperRow, age int64) (strikes, doubts int64) {
	days := (age - k.Struck) / forgiveEvery.Milliseconds()
	return max(0, k.Strikes-days), max(0, k.Doubts-days)
}

// standingOf is what a node is called at an age.
func standingOf(k store.KeeperRow, age int64) standing {
	strikes, _ := forgiven(k, age)
	switch {
	case strikes >= lyingAt:
		return standingLying
	case k.Failing != 0 && age-k.Failing >= unreachableAfter.Milliseconds():
		return standingUnreachable
	case strikes >= degradedAt:
		return standingDegraded
	}
	return standingGood
}

// standingNow is what a node is called to who asks: unreachable as soon as it
// does not answer, and degraded by doubts, too, which decide nothing.
func standingNow(k store.KeeperRow, age int64) standing {
	_, doubts := forgiven(k, age)
	switch s := standingOf(k, age); {
	case k.Failing != 0 && s != standingLying:
		return standingUnreachable
	case s == standingGood && doubts >= degradedAt:
		return standingDegraded
	default:
		return s
	}
}

// strike notes that a node broke its word to us.
func (w *work) strike(node peer.ID, n int64, what string) error {
	return w.blame(node, n, 0, 0, what)
}

// doubt notes that a contact's mail is not where a node had said it was. A
// contact who collects it there and keeps it elsewhere makes an honest node look
// so; it costs the node nothing but that its receipts stop counting.
func (w *work) doubt(node peer.ID, n int64, what string) error {
	return w.blame(node, 0, n, 0, what)
}

// doubtDaily is doubt for what counts once, however often it shows in a day.
func (w *work) doubtDaily(node peer.ID, n int64, what string) error {
	return w.blame(node, 0, n, forgiveEvery, what)
}

// blame notes what a node did, unless it did the same less than once ago.
func (w *work) blame(node peer.ID, strikes, doubts int64, once time.Duration, what string) error {
	k, err := w.tx.Keeper([]byte(node))
	if err != nil {
		return err
	}
	all, err := decodeEvidence(k.Evidence)
	if err != nil {
		return err
	}
	now := evidence{Time: w.ms(), Count: 1, What: what}
	kept := []evidence{}
	for _, e := range all {
		if e.What != what {
			kept = append(kept, e)
			continue
		}
		if since := now.Time - e.Time; since >= 0 && since < once.Milliseconds() {
			return nil
		}
		now.Count += e.Count
	}
	if kept = append(kept, now); len(kept) > maxEvidence {
		kept = kept[len(kept)-maxEvidence:]
	}
	if k.Evidence, err = json.Marshal(kept); err != nil {
		return err
	}
	k.Strikes, k.Doubts = forgiven(k, w.age)
	k.Strikes, k.Doubts, k.Struck = k.Strikes+strikes, k.Doubts+doubts, w.age
	w.mail = true
	return w.tx.SaveKeeper(k)
}

// faulty notes what an error on a stream to a node says of it. Most say nothing:
// connections end.
func (w *work) faulty(node peer.ID, err error) error {
	switch {
	case errors.Is(err, protocol.ErrFrame), errors.Is(err, errOddAnswer):
		return w.strike(node, strikeOdd, "it does not keep to the protocol")
	case errors.Is(err, errHasty):
		return w.strike(node, strikeOdd, "it does not hold its answers back, and keeps your device busy")
	case errors.Is(err, errForeign):
		return w.strike(node, strikeLoss, "it hands out without end what is not for you")
	}
	return nil
}

// spoke notes that a node answers.
func (w *work) spoke(node peer.ID) error {
	k, err := w.tx.Keeper([]byte(node))
	if err != nil || k.Failing == 0 && w.ms()-k.Seen < spokeEvery.Milliseconds() && w.ms() >= k.Seen {
		return err
	}
	w.mail = w.mail || k.Failing != 0
	k.Failing, k.Seen = 0, w.ms()
	return w.tx.SaveKeeper(k)
}

// seen notes, at the end of a visit, when the node last answered.
func (w *work) seen(node peer.ID, at int64) error {
	k, err := w.tx.Keeper([]byte(node))
	if err != nil || at <= k.Seen {
		return err
	}
	k.Seen = at
	return w.tx.SaveKeeper(k)
}

// served notes that a node took what we left for others. Where we have a box
// ourselves, only the box shows whether the node serves us.
func (w *work) served(node peer.ID) error {
	boxes, err := w.tx.Boxes()
	if err != nil || slices.ContainsFunc(boxes, func(b store.BoxRow) bool { return peer.ID(b.Node) == node && !b.State.Leaving() }) {
		return err
	}
	return w.spoke(node)
}

// silent notes that a node does not answer.
func (w *work) silent(node peer.ID) error {
	k, err := w.tx.Keeper([]byte(node))
	if err != nil || k.Failing != 0 {
		return err
	}
	k.Failing = w.age
	return w.tx.SaveKeeper(k)
}

// trusted says whether a node's receipts count.
func (w *work) trusted(node peer.ID) (bool, error) {
	k, err := w.tx.Keeper([]byte(node))
	return trusted(k, w.age), err
}

func trusted(k store.KeeperRow, age int64) bool {
	strikes, doubts := forgiven(k, age)
	return strikes+doubts < lyingAt
}

// probed notes how a test of a node ended.
func (w *work) probed(node peer.ID, lost bool, what string) error {
	k, err := w.tx.Keeper([]byte(node))
	if err != nil {
		return err
	}
	k.Probes++
	if lost {
		k.Lost++
	}
	if err := w.tx.SaveKeeper(k); err != nil || !lost {
		return err
	}
	return w.strike(node, strikeLoss, what)
}
