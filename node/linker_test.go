package node_test

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	apiv1 "github.com/kith-im/kith/node/api/v1"
	"github.com/kith-im/kith/node/nodetest"
	"github.com/kith-im/kith/protocol"
	"github.com/kith-im/kith/protocol/envelope"
	"github.com/kith-im/kith/protocol/mailbox"
)

// TestD13_OneNameOneBox: whoever a node sees under one transport name either
// collects from one box, or deposits for one contact, or only asks what the node
// offers; and nobody meets these names anywhere else.
func TestD13_OneNameOneBox(t *testing.T) {
	simulateMail(t, 3, func(t *testing.T, w *world) {
		l := logMail(w)
		users := []*nodetest.User{w.user("alice"), w.user("bob"), w.user("carol")}
		alice, bob, carol := users[0], users[1], users[2]
		elsewhere := make(map[peer.ID]bool)
		for _, u := range users {
			housed(u, 3)
			elsewhere[u.Contacts.ID()], elsewhere[u.Errands.ID()] = true, true
		}
		nodetest.Befriend(alice, bob)
		nodetest.Befriend(alice, carol)
		if _, err := alice.Mailboxes().TestMailbox(t.Context(), &apiv1.TestMailboxRequest{}); err != nil {
			t.Fatal(err)
		}
		sent(bob)
		sent(carol)
		bob.Stop()
		carol.Stop()
		for _, name := range []string{"bob", "carol", "bob"} {
			alice.UntilState("held", alice.Say(name, "while you are out")...)
		}
		alice.Restart()
		elsewhere[alice.Contacts.ID()], elsewhere[alice.Errands.ID()] = true, true
		alice.UntilState("held", alice.Say("carol", "again")...)
		alice.Stop()
		bob.Start()
		bob.UntilTexts("alice", 2)
		sent(bob)

		entries := l.since(time.Time{})
		_, of := joined(entries)
		by := make(map[envelope.Tag]*owner)
		for _, a := range of {
			for tag := range a.tags {
				by[tag] = a
			}
		}
		type role struct {
			box mailbox.BoxID
			to  *owner
		}
		roles := make(map[peer.ID]role)
		collects, deposits := 0, 0
		for _, e := range entries {
			if elsewhere[e.peer] {
				t.Fatal("a name of conversations or look-ups is known to a mailbox")
			}
			r := role{box: e.box}
			switch f := e.frame.(type) {
			case *mailbox.Deposit:
				r.to = by[envelope.Tag(f.Envelope[:envelope.TagSize])]
				deposits++
			case *mailbox.Collect:
				collects++
			default:
				if r.box == (mailbox.BoxID{}) {
					continue
				}
			}
			if was, ok := roles[e.peer]; ok && was != r {
				t.Fatalf("one name was seen as %v and as %v", was, r)
			}
			roles[e.peer] = r
		}
		if collects == 0 || deposits < 15 {
			t.Fatalf("%d deposits and %d collections were seen", deposits, collects)
		}
	})
}

// TestD12_WhatAMailboxStores looks at 1,000 envelopes of one session as a
// mailbox stores them.
func TestD12_WhatAMailboxStores(t *testing.T) {
	const days, daily = 5, 200
	simulateMail(t, 2, func(t *testing.T, w *world) {
		l := logMail(w)
		now := newClock(0)
		alice, bob := w.userWith("alice", nodetest.Options{Now: now.now}), w.user("bob")
		housed(alice, 2)
		housed(bob, 2)
		nodetest.Befriend(alice, bob)
		sent(alice)
		sent(bob)
		bob.Stop()
		began := time.Now()
		for day := range days {
			said := texts("alice", daily)
			for i := range said { // not all short
				if i%50 == day {
					said[i] = strings.Repeat(said[i]+" ", 1<<(i/12))
				}
			}
			alice.UntilState("held", alice.Say("bob", said...)...)
			now.move(25 * time.Hour)
		}
		seen := make(map[mailbox.Digest]bool)
		var stored [][]byte
		for _, e := range l.since(began) {
			if f, ok := e.frame.(*mailbox.Deposit); ok && !seen[mailbox.DigestOf(f.Envelope)] {
				seen[mailbox.DigestOf(f.Envelope)] = true
				stored = append(stored, f.Envelope)
			}
		}
		if len(stored) < days*daily {
			t.Fatalf("the nodes were given %d envelopes of %d", len(stored), days*daily)
		}
		tags, sizes := make(map[envelope.Tag]int), make(map[int]int)
		var last envelope.Tag
		windows := make([]uint64, 0, len(stored)*protocol.MinEnvelope)
		var histogram [256]float64
		total := 0.0
		for _, env := range stored {
			size := len(env)
			if size < protocol.MinEnvelope || size > protocol.MaxEnvelope || size&(size-1) != 0 {
				t.Errorf("an envelope has %d bytes", size)
			}
			sizes[size]++
			tag, payload, err := envelope.Parse(env)
			if err != nil {
				t.Fatal(err)
			}
			if tag != last && tags[tag] > 0 {
				t.Error("a tag came back")
			}
			last = tag
			tags[tag]++
			for i := range payload {
				histogram[payload[i]]++
				if i+8 <= len(payload) {
					windows = append(windows, binary.BigEndian.Uint64(payload[i:]))
				}
			}
			total += float64(len(payload))
		}
		if len(tags) != days {
			t.Errorf("on %d days the tags were %d", days, len(tags))
		}
		if len(sizes) < 3 {
			t.Errorf("the sizes were only %v", sizes)
		}
		slices.Sort(windows)
		if n := len(windows); len(slices.Compact(windows)) != n {
			t.Error("eight bytes that follow each other came twice")
		}
		chi := 0.0
		for _, n := range histogram {
			chi += (n - total/256) * (n - total/256) / (total / 256)
		}
		if chi > 400 { // 255 is to be expected, and 400 once in 10^8 times
			t.Errorf("the bytes are not uniform: chi-squared %.0f", chi)
		}
		t.Logf("%d envelopes, %v bytes, %d tags, chi-squared %.0f", len(stored), sizes, len(tags), chi)
	})
}

// TestP12 leaves a message at three mailboxes of which the recipient later
// reaches only two, one of them one that the sender did not reach.
func TestP12(t *testing.T) {
	for honest := range 3 {
		t.Run(fmt.Sprint("mailbox ", honest+1), func(t *testing.T) {
			simulateMail(t, 3, func(t *testing.T, w *world) {
				logMail(w) // honest: which of them counts is chosen below
				alice, bob := w.pair()
				housed(alice, 3)
				housed(bob, 3)
				sent(alice)
				sent(bob)
				bob.Stop()
				late, early := w.ways[(honest+1)%3], w.ways[(honest+2)%3]
				w.Blackhole(late.IP)
				ids := alice.Say("bob", texts("alice", 3)...)
				alice.UntilState("held", ids...)
				alice.Stop()
				w.Heal()
				w.Blackhole(early.IP)
				bob.Start()
				bob.UntilTexts("alice", 3)
				sent(bob)
				bob.Stop()
				alice.Start()
				alice.UntilDelivered(ids...)
			})
		})
	}
}

// left is an envelope that somebody left at nodes that compare their logs.
type left struct {
	at   time.Time
	env  mailbox.Digest
	tag  envelope.Tag
	size int
	to   *owner
	ip   netip.Addr
	by   map[peer.ID]bool
}

// evidence is what a linker works with: the log of all nodes together, ordered.
type evidence struct {
	log    []logged
	owners []*owner
	of     map[mailbox.BoxID]*owner
	mail   []*left // oldest first, without what is left at one node only: the tests of owners
}

func study(log []logged) *evidence {
	v := &evidence{log: log}
	v.owners, v.of = joined(log)
	by := make(map[envelope.Tag]*owner)
	for _, o := range v.owners {
		for tag := range o.tags {
			by[tag] = o
		}
	}
	nodes, mail := make(map[mailbox.Digest]map[peer.ID]bool), make(map[mailbox.Digest]*left)
	for _, e := range log {
		f, ok := e.frame.(*mailbox.Deposit)
		if !ok {
			continue
		}
		d := mailbox.DigestOf(f.Envelope)
		if mail[d] == nil {
			tag := envelope.Tag(f.Envelope[:envelope.TagSize])
			mail[d] = &left{e.at, d, tag, len(f.Envelope), by[tag], e.ip, make(map[peer.ID]bool)}
			nodes[d] = make(map[peer.ID]bool)
			v.mail = append(v.mail, mail[d])
		}
		mail[d].by[e.peer], nodes[d][e.node] = true, true
	}
	v.mail = slices.DeleteFunc(v.mail, func(l *left) bool { return l.to == nil || len(nodes[l.env]) < 2 })
	return v
}

// A linker names the account of who left an envelope, or nobody.
type linker func(v *evidence, l *left) *owner

// byName: the same transport name was seen at a box.
func byName(v *evidence, l *left) *owner {
	for _, e := range v.log {
		if e.box != (mailbox.BoxID{}) && l.by[e.peer] && v.of[e.box] != l.to {
			return v.of[e.box]
		}
	}
	return nil
}

// byTag: the tag is known to another box too.
func byTag(v *evidence, l *left) *owner {
	for _, o := range v.owners {
		if o != l.to && o.tags[l.tag] {
			return o
		}
	}
	return nil
}

// byAddress: the same address was seen at a box.
func byAddress(v *evidence, l *left) *owner {
	for _, e := range v.log {
		if o := v.of[e.box]; o != nil && o != l.to && e.ip == l.ip {
			return o
		}
	}
	return nil
}

// after names the account of which something was seen last before the envelope
// was left, within a window.
func after(window time.Duration, seen func(*left, mailbox.Frame) bool) linker {
	return func(v *evidence, l *left) *owner {
		i, _ := slices.BinarySearchFunc(v.log, l.at, func(e logged, at time.Time) int { return e.at.Compare(at) })
		for i--; i >= 0 && l.at.Sub(v.log[i].at) <= window; i-- {
			if o := v.of[v.log[i].box]; o != nil && o != l.to && seen(l, v.log[i].frame) {
				return o
			}
		}
		return nil
	}
}

func given(_ *left, f mailbox.Frame) bool {
	p, ok := f.(*mailbox.Page)
	return ok && len(p.Items) > 0
}

func givenSize(l *left, f mailbox.Frame) bool {
	p, ok := f.(*mailbox.Page)
	return ok && slices.ContainsFunc(p.Items, func(i mailbox.Item) bool { return len(i.Envelope) == l.size })
}

func came(_ *left, f mailbox.Frame) bool       { _, ok := f.(*mailbox.Opened); return ok }
func retagged(_ *left, f mailbox.Frame) bool   { _, ok := f.(*mailbox.Registered); return ok }
func anythingOf(_ *left, _ mailbox.Frame) bool { return true }

// disclosed runs a statistical disclosure attack: over everything that was left
// for the same account, it names the one that was given mail within a window
// before more often than at other times.
func disclosed(window time.Duration) linker {
	return func(v *evidence, l *left) *owner {
		best, score := (*owner)(nil), 0.0
		for _, o := range v.owners {
			if s := v.excess(l.to, o, window, len(v.mail)); o != l.to && s > score {
				best, score = o, s
			}
		}
		return best
	}
}

// excess is how much more often an account was given mail shortly before
// something was left for to than chance has it, looking at the first n.
func (v *evidence) excess(to, o *owner, window time.Duration, n int) float64 {
	var given []time.Time
	for _, e := range v.log {
		if p, ok := e.frame.(*mailbox.Page); ok && len(p.Items) > 0 && v.of[e.box] == o {
			given = append(given, e.at)
		}
	}
	hits, other := [2]float64{}, [2]float64{}
	for _, l := range v.mail[:n] {
		k := 1
		if l.to == to {
			k = 0
		} else if l.to == o {
			continue
		}
		other[k]++
		if slices.ContainsFunc(given, func(at time.Time) bool { return !at.After(l.at) && l.at.Sub(at) <= window }) {
			hits[k]++
		}
	}
	return hits[0]/max(1, other[0]) - hits[1]/max(1, other[1])
}

// ring makes users each of whom has the next one and the one before as contacts.
func ring(w *world, count int) (all []*nodetest.User) {
	for i := range count {
		all = append(all, w.user(fmt.Sprint("user", i)))
	}
	for _, u := range all {
		housed(u, len(w.ways))
	}
	for i, u := range all {
		nodetest.Befriend(u, all[(i+1)%count])
	}
	for _, u := range all {
		sent(u)
	}
	time.Sleep(time.Minute)
	return all
}

// crowd says whose an account and an address are.
func crowd(t *testing.T, v *evidence, users []*nodetest.User) map[*owner]*nodetest.User {
	t.Helper()
	whose := make(map[*owner]*nodetest.User)
	for _, u := range users {
		for box := range boxesOf(t, u) {
			whose[v.of[box]] = u
		}
	}
	if len(v.owners) != len(users) || len(whose) != len(users) {
		t.Fatalf("the boxes of %d users seem to have %d owners", len(users), len(v.owners))
	}
	return whose
}

// score is how many senders a linker names, of those of whom something was left;
// where it names nobody it guesses. chance is how often a guess is right.
func score(v *evidence, whose map[*owner]*nodetest.User, link linker) (hits, of int) {
	for _, l := range v.mail {
		named := link(v, l)
		for named == nil || named == l.to {
			named = v.owners[rand.N(len(v.owners))]
		}
		if of++; whose[named].IP == l.ip {
			hits++
		}
	}
	return hits, of
}

// tail is how likely chance has at least hits of n, each with probability p.
func tail(hits, n int, p float64) (sum float64) {
	for k := hits; k <= n; k++ {
		lg := func(x int) float64 { g, _ := math.Lgamma(float64(x) + 1); return g }
		sum += math.Exp(lg(n) - lg(k) - lg(n-k) + float64(k)*math.Log(p) + float64(n-k)*math.Log1p(-p))
	}
	return sum
}

// improbable is what a score must not be, in a test that is run often. It is low
// because guesses about one account are not independent: a linker that names
// somebody is right, or wrong, about all of that account's mail.
const improbable = 1e-9

// TestG08_LogAndLink: two nodes put all they know together and look for the
// senders of what was left in the quiet case: everybody's daemon runs but that of
// the recipient, who comes home to find it. From addresses they learn every
// sender; without them, little that helps more than a guess (docs/threat-model.md).
func TestG08_LogAndLink(t *testing.T) {
	if testing.Short() {
		t.Skip("reads much, and nothing at one time")
	}
	const people = 5
	simulateMail(t, 2, func(t *testing.T, w *world) {
		l := logMail(w)
		users := ring(w, people)
		began := time.Now()
		for _, i := range rand.Perm(people) {
			u := users[i]
			u.Stop()
			var ids [2][]string
			contacts := [2]*nodetest.User{users[(i+1)%people], users[(i+people-1)%people]}
			for range 4 {
				time.Sleep(time.Minute + rand.N(8*time.Minute))
				k := rand.N(2)
				ids[k] = append(ids[k], contacts[k].Say(u.Name, "are you there?")...)
				contacts[k].UntilState("held", ids[k]...)
			}
			time.Sleep(time.Minute + rand.N(10*time.Minute))
			u.Start()
			contacts[0].UntilDelivered(ids[0]...)
			contacts[1].UntilDelivered(ids[1]...)
		}
		v := study(l.since(time.Time{}))
		whose := crowd(t, v, users)
		v.mail = slices.DeleteFunc(v.mail, func(l *left) bool { return l.at.Before(began) })
		if len(v.mail) < 4*people {
			t.Fatalf("only %d envelopes were left", len(v.mail))
		}
		chance := 1.0 / (people - 1)
		for _, test := range []struct {
			by   string
			link linker
		}{
			{"transport names", byName},
			{"tags", byTag},
			{"who was last given mail", after(time.Hour, given)},
			{"who was last given mail of that size", after(time.Hour, givenSize)},
			{"who came last", after(time.Hour, came)},
			{"who last registered tags", after(time.Hour, retagged)},
			{"who did anything last", after(time.Hour, anythingOf)},
			{"who is given mail the minute before", disclosed(time.Minute)},
			{"who is given mail the hour before", disclosed(time.Hour)},
		} {
			hits, of := score(v, whose, test.link)
			t.Logf("by %-38s %2d of %d senders, %.0f by chance", test.by, hits, of, chance*float64(of))
			if p := tail(hits, of, chance); p < improbable {
				t.Errorf("by %s the nodes name %d of %d senders, which is chance once in %.0g times", test.by, hits, of, 1/p)
			}
		}
		hits, of := score(v, whose, byAddress)
		t.Logf("by %-38s %2d of %d senders", "addresses", hits, of)
		if hits != of {
			t.Error("does the linker see anything?")
		}
	})
}

// TestG08_TagsSayNothing: two people who talk directly, and move on to the tags of
// a new day, do nothing at their mailboxes at that moment.
func TestG08_TagsSayNothing(t *testing.T) {
	lasting(t)
	simulateMail(t, 2, func(t *testing.T, w *world) {
		l := logMail(w)
		c := newClock(0)
		alice, bob := w.userWith("alice", nodetest.Options{Now: c.now}), w.userWith("bob", nodetest.Options{Now: c.now})
		housed(alice, 2)
		housed(bob, 2)
		nodetest.Befriend(alice, bob)
		for range 2 {
			alice.UntilDelivered(alice.Say("bob", "good night")...)
			bob.UntilDelivered(bob.Say("alice", "good night")...)
		}
		time.Sleep(time.Minute)
		c.move(25 * time.Hour)
		began := time.Now()
		for range 3 {
			alice.UntilDelivered(alice.Say("bob", "good morning")...)
			bob.UntilDelivered(bob.Say("alice", "good morning")...)
		}
		time.Sleep(2 * time.Minute)
		for _, e := range l.since(began) {
			if f, ok := e.frame.(*mailbox.Tags); ok {
				t.Errorf("a box was told of %d tags %v after the first word", len(f.Tags), e.at.Sub(began))
			}
		}
		// They are registered all the same, in time.
		time.Sleep(5 * time.Hour)
		boxes := make(map[mailbox.BoxID]bool)
		for _, e := range l.since(began) {
			if _, ok := e.frame.(*mailbox.Tags); ok {
				boxes[e.box] = true
			}
		}
		if len(boxes) != 4 {
			t.Errorf("%d boxes of 4 were told of the new tags", len(boxes))
		}
	})
}

// TestD03_Receipts runs a statistical disclosure attack where nobody has a direct
// road and every receipt passes a mailbox: who is given mail shortly before the
// target's box gets something? It measures how many messages that takes, and
// checks what slows it down: receipts are late, and for different contacts they
// do not reach one node in one moment.
func TestD03_Receipts(t *testing.T) {
	if testing.Short() {
		t.Skip("reads much, and nothing at one time")
	}
	const people = 5
	simulateMail(t, 2, func(t *testing.T, w *world) {
		l := logMail(w)
		users := ring(w, people)
		at := make(map[netip.Addr]bool)
		for _, u := range users {
			at[u.IP] = true
		}
		w.Tap(func(from, to netip.Addr) func([]byte) []byte {
			if at[from] && at[to] {
				return func([]byte) []byte { return nil }
			}
			return func(b []byte) []byte { return b }
		})
		time.Sleep(5 * time.Minute) // until they have noticed
		for _, phase := range []struct {
			messages int // of which the target writes every third
			pause    time.Duration
			texts    bool // whether receipts are far from texts
		}{
			{6, 10 * time.Minute, true},
			{30, 2 * time.Second, false},
		} {
			began := time.Now()
			for k := range phase.messages {
				time.Sleep(phase.pause/2 + rand.N(phase.pause))
				if k%3 == 0 {
					users[0].Say(users[1].Name, "do you read me?")
					continue
				}
				from := 1 + rand.N(people-2) // a neighbour beyond whom is not the target
				to := from + 1
				if rand.N(2) == 0 {
					from, to = to, from
				}
				users[from].Say(users[to].Name, "do you read me?")
			}
			time.Sleep(3 * time.Minute)
			v := study(l.since(time.Time{}))
			whose := crowd(t, v, users)
			v.mail = slices.DeleteFunc(v.mail, func(l *left) bool { return l.at.Before(began) })
			apart(t, v)
			if phase.texts {
				late(t, v, whose)
			}
			if found, of := needed(v, whose, users[0], users[1]); found <= of {
				t.Logf("a message every %v: the target's contact is found after %d envelopes of %d", phase.pause, found, of)
			} else {
				t.Logf("a message every %v: the target's contact is not found in %d envelopes", phase.pause, of)
			}
		}
	})
}

// needed is after how many of the envelopes of a contact for the target the best
// of some attacks names the contact and stays with it.
func needed(v *evidence, whose map[*owner]*nodetest.User, target, contact *nodetest.User) (best, of int) {
	all := v.mail
	defer func() { v.mail = all }()
	for _, window := range []time.Duration{15 * time.Second, 40 * time.Second, time.Minute} {
		count := 1
		of = 0
		for n, l := range all {
			if whose[l.to] != target || l.ip != contact.IP {
				continue
			}
			of++
			v.mail = all[:n+1]
			if named := disclosed(window)(v, l); named == nil || whose[named] != contact {
				count = of + 1
			}
		}
		if best == 0 || count < best {
			best = count
		}
	}
	return best, of
}

// late checks that whoever is given mail leaves nothing right after. Of the copies of
// one message the first counts: a receipt does not wait for the others.
func late(t *testing.T, v *evidence, whose map[*owner]*nodetest.User) {
	t.Helper()
	receipts := 0
	for _, l := range v.mail {
		var last time.Time // that who left it was given something
		had := make(map[mailbox.Digest]bool)
		for _, e := range v.log {
			p, ok := e.frame.(*mailbox.Page)
			if !ok || whose[v.of[e.box]] == nil || whose[v.of[e.box]].IP != l.ip || !e.at.Before(l.at) {
				continue
			}
			for _, i := range p.Items {
				if d := mailbox.DigestOf(i.Envelope); !had[d] {
					had[d], last = true, e.at
				}
			}
		}
		switch after := l.at.Sub(last); {
		case after < 5*time.Second:
			t.Errorf("a receipt was left %v after the message came", after)
		case after < time.Minute:
			receipts++
		}
	}
	if receipts == 0 {
		t.Error("no receipt was left")
	}
}

// apart checks that what one user leaves for different contacts does not reach
// one node in one moment.
func apart(t *testing.T, v *evidence) {
	t.Helper()
	type place struct {
		node peer.ID
		ip   netip.Addr
	}
	type visit struct {
		at time.Time
		to *owner
	}
	by := make(map[mailbox.Digest]*left)
	for _, l := range v.mail {
		by[l.env] = l
	}
	last := make(map[place]visit)
	for _, e := range v.log {
		f, ok := e.frame.(*mailbox.Deposit)
		if !ok || by[mailbox.DigestOf(f.Envelope)] == nil {
			continue
		}
		here, now := place{e.node, e.ip}, visit{e.at, by[mailbox.DigestOf(f.Envelope)].to}
		if was, ok := last[here]; ok && was.to != now.to && now.at.Sub(was.at) < 2*time.Second {
			t.Errorf("a user left something for two contacts at one node %v apart", now.at.Sub(was.at))
		}
		last[here] = now
	}
}
