package mailbox_test

import (
	"bytes"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/kith-im/kith/node/mailbox"
	"github.com/kith-im/kith/node/nodetest"
	"github.com/kith-im/kith/node/transport"
	"github.com/kith-im/kith/protocol"
	"github.com/kith-im/kith/protocol/envelope"
	wire "github.com/kith-im/kith/protocol/mailbox"
)

// fast is a rate that no test reaches.
const fast = 1 << 40

// ready opens a box with one tag of contacts and one of strangers.
func (c *client) ready(key *wire.BoxKey) (contact, request envelope.Tag) {
	c.t.Helper()
	contact, request = newTag(), newTag()
	c.open(key, true)
	c.register(1, false, contact)
	answer[*wire.Registered](c.t, c.ask(tagsFrame(1, false, wire.ClassRequest, request)))
	return contact, request
}

// fillUp deposits until the box refuses, and returns how many bytes it took.
func (c *client) fillUp(tag envelope.Tag, size int) (n int) {
	c.t.Helper()
	for {
		for _, why := range c.depositAll(letters(tag, size, 64)) {
			switch why {
			case 0:
				n += size
			case wire.RefusedFull:
				return n
			default:
				c.t.Fatalf("a deposit was refused with %d after %d bytes", why, n)
			}
		}
	}
}

// G01: many peers flood a box, by its invite's tag, by tags that do not exist,
// and by the tag of one bad contact. Another contact's message gets through.
func TestG01_Flood(t *testing.T) {
	world(t, mailbox.Limits{TagQuota: 1 << 20}, func(t *testing.T, h *house) {
		owner := h.dial(1)
		key, bad := newKey(), newTag()
		contact, request := owner.ready(key)
		owner.register(1, false, bad)
		var flood []*client
		for i := range 20 {
			flood = append(flood, h.dial(10+i))
		}
		const each = 256
		for i, c := range flood {
			tag := []envelope.Tag{request, newTag(), bad}[i%3]
			go func() { // never reads
				for _, env := range letters(tag, protocol.MinEnvelope, each) {
					if _, err := c.net.Write(wire.AppendFrame(nil, &wire.Deposit{Envelope: env})); err != nil {
						return
					}
				}
			}()
		}
		began := time.Now()
		if why := h.dial(2).deposit(letter(contact, protocol.MinEnvelope)); why != 0 {
			t.Fatalf("the contact's message was refused with %d", why)
		}
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("it took %v", took)
		}
		for i, c := range flood { // every answer comes, in order
			for range each {
				f := c.read()
				r, ok := f.(*wire.Refused)
				switch i % 3 {
				case 0, 2:
					if _, stored := f.(*wire.Stored); !stored && (!ok || r.Why != wire.RefusedFull) {
						t.Fatalf("a flood under a tag that exists is answered with %#v", f)
					}
				case 1:
					if !ok || r.Why != wire.RefusedUnknown {
						t.Fatalf("a flood under a tag that does not is answered with %#v", f)
					}
				}
			}
		}
		st, err := h.Status(t.Context())
		if err != nil || st.Requests > mailbox.DefaultRequestShare || st.Mail > 1<<20+protocol.MinEnvelope {
			t.Errorf("%d bytes of requests and %d of mail are kept, %v", st.Requests, st.Mail, err)
		}
	})
}

// G01: one peer, and all of one prefix, are told to wait beyond their rate, and
// nobody else is.
func TestG01_SourceRates(t *testing.T) {
	world(t, mailbox.Limits{SourceRate: 4 << 10}, func(t *testing.T, h *house) {
		owner := h.dial(1)
		contact, _ := owner.ready(newKey())
		count := func(c *client) (n int) {
			for {
				f := c.ask(&wire.Deposit{Envelope: letter(contact, protocol.MaxEnvelope)})
				r, ok := f.(*wire.Refused)
				if !ok {
					n++
					continue
				}
				if r.Why != wire.RefusedBusy || r.Wait == 0 {
					t.Fatalf("beyond the rate: %+v", r)
				}
				return n
			}
		}
		host := h.net.Host(t, transport.Config{Role: transport.Errands}, nodetest.IP(2))
		if n := count(h.dialFrom(host)); n != 2 { // 256 KiB
			t.Errorf("a peer may leave %d envelopes at once, want 2", n)
		}
		if n := count(h.dialFrom(host)); n != 0 {
			t.Errorf("its next stream may leave %d, want none", n)
		}
		near := 0
		for range 10 { // other peers of the same prefix
			near += count(h.dial(2))
		}
		if near < 10 || near > 16 { // 2 MiB in all
			t.Errorf("the prefix may leave %d more envelopes, want about 14", near)
		}
		if why := h.dial(3).deposit(letter(contact, protocol.MinEnvelope)); why != 0 {
			t.Errorf("another prefix is refused with %d", why)
		}
		time.Sleep(30 * time.Second)
		if why := h.dialFrom(host).deposit(letter(contact, protocol.MinEnvelope)); why != 0 {
			t.Errorf("after half a minute it is refused with %d", why)
		}
	})
}

// G03: a proof of ownership is good on one stream, once; an envelope deposited
// again is there once.
func TestG03_Replay(t *testing.T) {
	world(t, mailbox.Limits{}, func(t *testing.T, h *house) {
		owner := h.dial(1)
		key, tag := newKey(), newTag()
		proof := wire.SignOpen(key, owner.node, owner.hello.Nonce, true)
		answer[*wire.Opened](t, owner.ask(proof))
		owner.register(1, false, tag)
		if why := refusal(t, h.dial(2).ask(proof)); why != wire.RefusedProof {
			t.Errorf("the same proof on another stream is refused with %d", why)
		}
		sender, env := h.dial(3), letter(tag, protocol.MinEnvelope)
		for range 3 {
			if why := sender.deposit(env); why != 0 {
				t.Fatalf("refused with %d", why)
			}
		}
		if got := owner.drain(); len(got) != 1 {
			t.Errorf("%d copies are there, want 1", len(got))
		}
	})
}

// G06: whoever does not hold a box's key can neither read, nor delete, nor
// register, nor learn anything.
func TestG06_OnlyTheOwner(t *testing.T) {
	world(t, mailbox.Limits{}, func(t *testing.T, h *house) {
		owner := h.dial(1)
		key, tag := newKey(), newTag()
		owner.open(key, true)
		owner.register(1, false, tag)
		env := letter(tag, protocol.MinEnvelope)
		h.dial(2).deposit(env)
		other := newKey()
		stolen := *wire.SignOpen(other, h.node(), wire.Nonce{}, false)
		for name, try := range map[string]func(*client) wire.Frame{
			"collect without a box": func(c *client) wire.Frame { return c.ask(&wire.Collect{Done: []uint64{1}}) },
			"tags without a box":    func(c *client) wire.Frame { return c.ask(tagsFrame(9, true, wire.ClassContact, newTag())) },
			"another key's signature": func(c *client) wire.Frame {
				o := *wire.SignOpen(other, c.node, c.hello.Nonce, false)
				o.Box = key.ID()
				return c.ask(&o)
			},
			"another node's proof": func(c *client) wire.Frame {
				return c.ask(wire.SignOpen(key, [32]byte(random(32)), c.hello.Nonce, false))
			},
			"another stream's nonce": func(c *client) wire.Frame { return c.ask(&stolen) },
			"a proof made for less": func(c *client) wire.Frame {
				o := *wire.SignOpen(key, c.node, c.hello.Nonce, false)
				o.Create = true
				return c.ask(&o)
			},
			"a box that is not there": func(c *client) wire.Frame {
				return c.ask(wire.SignOpen(newKey(), c.node, c.hello.Nonce, false))
			},
		} {
			want := wire.RefusedProof
			if name == "collect without a box" || name == "tags without a box" || name == "a box that is not there" {
				want = wire.RefusedNoBox
			}
			if got := refusal(t, try(h.dial(3))); got != want {
				t.Errorf("%s: refused with %d, want %d", name, got, want)
			}
		}

		// The owner of another box, who even knows the tag, gets the answers that
		// an unknown tag gets, and nothing else.
		thief := h.dial(4)
		thief.open(other, true)
		if got := thief.register(1, false, tag); got.Tags != 1 {
			t.Errorf("a tag that somebody has is registered as %+v", got)
		}
		second := letter(tag, protocol.MinEnvelope)
		h.dial(2).deposit(second)
		if got := thief.page(0, 1, 2, 3); len(got.Items) != 0 {
			t.Errorf("the thief collects %d envelopes", len(got.Items))
		}
		if got := owner.drain(); !slices.EqualFunc(got, [][]byte{env, second}, bytes.Equal) {
			t.Errorf("the owner collects %d envelopes, want 2", len(got))
		}
	})
}

// G10: a page has at most 64 items and 1 MiB, whatever waits.
func TestG10_Pages(t *testing.T) {
	world(t, mailbox.Limits{SourceRate: fast, TagQuota: 64 << 20}, func(t *testing.T, h *house) {
		owner, sender := h.dial(1), h.dial(2)
		tag, _ := owner.ready(newKey())
		sizes := []int{1 << 10, 128 << 10, 64 << 10, 2 << 10, 16 << 10}
		var want [][]byte
		for i := range 150 {
			want = append(want, letter(tag, sizes[i%len(sizes)]))
		}
		for i, why := range sender.depositAll(want) {
			if why != 0 {
				t.Fatalf("deposit %d was refused with %d", i, why)
			}
		}
		var got [][]byte
		for after, more := uint64(0), true; more; {
			p := owner.page(after)
			total := 0
			for _, i := range p.Items {
				got, after, total = append(got, i.Envelope), i.ID, total+len(i.Envelope)
			}
			if len(p.Items) == 0 || len(p.Items) > wire.MaxItems || total > wire.MaxPage {
				t.Fatalf("a page has %d items of %d bytes", len(p.Items), total)
			}
			more = p.More
		}
		if !slices.EqualFunc(got, want, bytes.Equal) {
			t.Errorf("%d envelopes came, want %d in their order", len(got), len(want))
		}
	})
}

// G13: whoever fills what they can, with as many boxes as they like, leaves room
// for others; strangers' mail leaves room for contacts'; nothing that is there
// is thrown out.
func TestG13_FairShare(t *testing.T) {
	const quota = 16 << 20
	l := mailbox.Limits{Quota: quota, TagQuota: quota, BoxQuota: quota, RequestShare: quota, SourceRate: fast}
	world(t, l, func(t *testing.T, h *house) {
		victim := h.dial(1)
		tag, _ := victim.ready(newKey())
		early := letter(tag, protocol.MinEnvelope)
		if why := h.dial(2).deposit(early); why != 0 {
			t.Fatalf("refused with %d", why)
		}

		var tags [][2]envelope.Tag
		for range 12 { // boxes of one prefix
			contact, request := h.dial(3).ready(newKey())
			tags = append(tags, [2]envelope.Tag{contact, request})
		}
		filler, one, all, strangers := h.dial(9), 0, 0, 0
		for i, tag := range tags {
			if all += filler.fillUp(tag[0], 16<<10); i == 0 {
				one = all
			}
			strangers += filler.fillUp(tag[1], 16<<10)
		}
		if strangers > quota/16 {
			t.Errorf("strangers filled %d bytes of %d", strangers, quota)
		}
		all += strangers
		if one > quota/4 {
			t.Errorf("one box took %d bytes of %d", one, quota)
		}
		if all < quota/4 || all > quota/2 {
			t.Errorf("the boxes of one prefix took %d bytes of %d", all, quota)
		}

		if why := h.dial(2).deposit(letter(tag, protocol.MinEnvelope)); why != 0 {
			t.Errorf("somebody else's contact is refused with %d", why)
		}
		other, _ := h.dial(4).ready(newKey())
		if n := h.dial(5).fillUp(other, 16<<10); n < quota/32 { // one tag: half of what the box may hold
			t.Errorf("a box of another prefix gets %d bytes", n)
		}
		if got := victim.drain(); len(got) != 2 || !bytes.Equal(got[0], early) {
			t.Errorf("%d envelopes are there, want 2", len(got))
		}
		if st, err := h.Status(t.Context()); err != nil || st.Disk > quota+quota/8 {
			t.Errorf("%d bytes of %d are used, %v", st.Disk, quota, err)
		}
	})
}

// G13: strangers' mail in the boxes of one prefix leaves as much of the share of
// all strangers' mail to others as it takes.
func TestG13_FairRequests(t *testing.T) {
	const quota = 16 << 20
	world(t, mailbox.Limits{Quota: quota, SourceRate: fast}, func(t *testing.T, h *house) {
		filler, taken := h.dial(9), 0
		for range 24 { // boxes of one prefix, made for this
			_, request := h.dial(3).ready(newKey())
			taken += filler.fillUp(request, 1<<10)
		}
		if taken < quota/64 || taken > quota/32 {
			t.Errorf("one prefix took %d bytes of the %d for strangers", taken, quota/16)
		}
		_, invite := h.dial(4).ready(newKey())
		if why := h.dial(5).deposit(letter(invite, 16<<10)); why != 0 {
			t.Errorf("a stranger's mail for somebody else is refused with %d", why)
		}
	})
}

// G13: the mail under one tag, of a contact or of an invite, leaves as much room
// to the other tags of a box as it takes.
func TestG13_FairTags(t *testing.T) {
	l := mailbox.Limits{BoxQuota: 1 << 20, TagQuota: 1 << 30, RequestShare: 128 << 10}
	world(t, l, func(t *testing.T, h *house) {
		owner, sender := h.dial(1), h.dial(2)
		contact, request := owner.ready(newKey())
		if n := sender.fillUp(contact, 1<<10); n != 512<<10 {
			t.Errorf("one contact takes %d bytes of 1 MiB", n)
		}
		if n := sender.fillUp(request, 1<<10); n != 64<<10 {
			t.Errorf("the answers to one invite take %d bytes of 128 KiB", n)
		}
		friend, invite := newTag(), newTag()
		owner.register(1, false, friend)
		answer[*wire.Registered](t, owner.ask(tagsFrame(1, false, wire.ClassRequest, invite)))
		if n := sender.fillUp(friend, 1<<10); n != 256<<10 {
			t.Errorf("another contact gets %d bytes", n)
		}
		if n := sender.fillUp(invite, 1<<10); n != 32<<10 {
			t.Errorf("the answers to another invite get %d bytes", n)
		}
	})
}

// G16, D11: whoever guesses tags learns nothing of whether there are boxes, full
// ones, or some that were dropped; and nothing of boxes by guessing keys
// (docs/spec/mailbox.md, section 7).
func TestG16_D11_Enumeration(t *testing.T) {
	guesses := soak(300, 100_000)
	l := mailbox.Limits{SourceRate: fast, BoxQuota: 1 << 20, TagQuota: 1 << 20, Retention: time.Hour, BoxIdle: 2 * time.Hour}
	world(t, l, func(t *testing.T, h *house) {
		ask := func(when string, tags func() envelope.Tag, want wire.Refusal) {
			t.Helper()
			c := h.dial(7)
			defer c.close()
			for done := 0; done < guesses; {
				n := min(64, guesses-done)
				var envs [][]byte
				for range n {
					envs = append(envs, letter(tags(), protocol.MinEnvelope))
				}
				for _, why := range c.depositAll(envs) {
					if why != want {
						t.Fatalf("%s: a guess is answered with %d, want %d", when, why, want)
					}
				}
				if c.holds(envs[0]) {
					t.Fatalf("%s: a guess is there", when)
				}
				done += n
			}
		}
		ask("nothing there", newTag, wire.RefusedUnknown)
		owner := h.dial(1)
		key := newKey()
		tag, _ := owner.ready(key)
		ask("a box", newTag, wire.RefusedUnknown)
		h.dial(2).fillUp(tag, 16<<10)
		ask("a full box", newTag, wire.RefusedUnknown)
		owner.register(2, true, newTag())
		ask("a tag that was let go", func() envelope.Tag { return tag }, wire.RefusedUnknown)
		owner.close()
		time.Sleep(3 * time.Hour)
		ask("a box that was dropped", func() envelope.Tag { return tag }, wire.RefusedUnknown)
		late := h.dial(1)
		if why := refusal(t, late.ask(wire.SignOpen(key, late.node, late.hello.Nonce, false))); why != wire.RefusedNoBox {
			t.Errorf("the dropped box is refused with %d", why)
		}
	})
}

// G01: too many streams are turned away, of one peer before anybody else's.
func TestG01_Streams(t *testing.T) {
	world(t, mailbox.Limits{}, func(t *testing.T, h *house) {
		host := h.net.Host(t, transport.Config{Role: transport.Errands}, nodetest.IP(2))
		open := 0
		for range 12 {
			if _, err := dialFrom(t, host, h.info, h.node()); err == nil {
				open++
			}
		}
		if open != 8 {
			t.Errorf("one peer has %d streams, want 8", open)
		}
		h.dial(2)
	})
}

// G13: who has a whole IPv6 /32 has a prefix for every box, and is one source
// all the same: of memory, of streams and of the disk.
func TestG13_ManyPrefixes(t *testing.T) {
	const quota = 16 << 20
	l := mailbox.Limits{Quota: quota, TagQuota: quota, BoxQuota: quota, SourceRate: fast}
	world(t, l, func(t *testing.T, h *house) {
		all := 0
		filler := h.dial(9)
		var tags []envelope.Tag
		for i := range 24 {
			ip := netip.AddrFrom16([16]byte{0x26, 0x07, 0, 1, 0, byte(i), 15: 1})
			contact, _ := h.dialFrom(h.net.Host(t, transport.Config{Role: transport.Errands}, ip)).ready(newKey())
			tags = append(tags, contact)
		}
		for _, tag := range tags {
			all += filler.fillUp(tag, 16<<10)
		}
		if all > quota/2 {
			t.Errorf("24 prefixes of one /32 took %d bytes of %d", all, quota)
		}
		other, _ := h.dial(4).ready(newKey())
		if n := h.dial(5).fillUp(other, 16<<10); n < quota/32 {
			t.Errorf("a box of another network gets %d bytes", n)
		}
	})
}

// G01: who asks for large pages and does not read them holds little memory, and
// leaves the rest to others.
func TestG01_SlowReaders(t *testing.T) {
	world(t, mailbox.Limits{SourceRate: fast, TagQuota: 64 << 20, BoxQuota: 256 << 20}, func(t *testing.T, h *house) {
		sender, key := h.dial(1), newKey()
		owner := h.dial(2)
		tag, _ := owner.ready(key)
		for i, why := range sender.depositAll(letters(tag, protocol.MaxEnvelope, 32)) {
			if why != 0 {
				t.Fatalf("deposit %d is refused with %d", i, why)
			}
		}
		other, _ := h.dial(3).ready(newKey())
		idle := h.Held()
		for i := range 120 { // of fifteen machines in three networks
			c := h.dialFrom(h.net.Host(t, transport.Config{Role: transport.Errands}, netip.AddrFrom4([4]byte{60, byte(i % 3), byte(i % 15), byte(i)})))
			c.open(key, false)
			for range 64 {
				c.write(&wire.Collect{})
			}
		}
		time.Sleep(5 * time.Second)
		if held := h.Held() - idle; held == 0 || held > 60<<20 {
			t.Errorf("%d MB are held for those who do not read", held>>20)
		}
		began := time.Now()
		if why := h.dial(4).deposit(letter(other, protocol.MinEnvelope)); why != 0 {
			t.Errorf("a deposit is refused with %d", why)
		}
		if got := owner.drain(); len(got) != 32 {
			t.Errorf("the owner gets %d envelopes, want 32", len(got))
		}
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("others wait for %v", took)
		}
	})
}

// G01: the memory is full of others' requests; a text gets through.
func TestG01_FloorOfMemory(t *testing.T) {
	world(t, mailbox.Limits{}, func(t *testing.T, h *house) {
		tag, _ := h.dial(1).ready(newKey())
		defer h.Hold(64 << 20)()
		c := h.dial(2)
		if f := c.ask(&wire.Deposit{Envelope: letter(tag, protocol.MaxEnvelope)}); refusal(t, f) != wire.RefusedBusy {
			t.Errorf("a large envelope is answered with %T", f)
		}
		if why := c.deposit(letter(tag, protocol.MinEnvelope)); why != 0 {
			t.Errorf("a text is refused with %d", why)
		}
	})
}

// Who sends half a frame, or none, or does not read, is let go.
func TestSlowPeers(t *testing.T) {
	world(t, mailbox.Limits{}, func(t *testing.T, h *house) {
		tag, _ := h.dial(1).ready(newKey())
		frame := wire.AppendFrame(nil, &wire.Deposit{Envelope: letter(tag, 1<<12)})
		for name, b := range map[string][]byte{
			"nothing": nil, "half a frame": frame[:100], "a length": frame[:1],
			"garbage": bytes.Repeat([]byte{0xff}, 100), "an answer": wire.AppendFrame(nil, &wire.Hello{}),
		} {
			c := h.dial(2)
			if len(b) > 0 {
				if _, err := c.net.Write(b); err != nil {
					t.Fatal(err)
				}
			}
			began := time.Now()
			if f, err := c.next(); err == nil {
				t.Errorf("%s is answered with %T", name, f)
			}
			if took := time.Since(began); took > 2*time.Minute {
				t.Errorf("%s is listened to for %v", name, took)
			}
		}
		time.Sleep(time.Minute)
		if st, err := h.Status(t.Context()); err != nil || st.Streams > 1 {
			t.Errorf("%d streams are left, %v", st.Streams, err)
		}
	})
}
