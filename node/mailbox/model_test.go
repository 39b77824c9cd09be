package mailbox_test

import (
	"bytes"
	"crypto/ed25519"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kith-im/kith/node/mailbox"
	"github.com/kith-im/kith/protocol"
	"github.com/kith-im/kith/protocol/envelope"
	wire "github.com/kith-im/kith/protocol/mailbox"
)

// FuzzService (S4) runs schedules of deposits, registrations, collections,
// deletions, time and restarts against a model that is a few maps.
func FuzzService(f *testing.F) {
	f.Add([]byte{0, 1, 2, 3, 4, 5, 6, 7})
	f.Add([]byte{0, 0, 8, 8, 8, 16, 3, 11, 19, 4, 12, 5, 6, 0, 8})
	f.Add([]byte{1, 9, 17, 0, 8, 2, 10, 5, 13, 0, 3, 7, 15, 0, 4, 6})
	f.Add(bytes.Repeat([]byte{0, 8, 16, 5, 3, 1, 9, 6, 2, 4, 7}, 12))
	f.Fuzz(func(t *testing.T, schedule []byte) {
		synctest.Test(t, func(t *testing.T) { modelled(t, schedule[:min(len(schedule), 256)]) })
	})
}

// modelBox is what a box should be.
type modelBox struct {
	key        wire.BoxID
	generation uint64
	tags       map[envelope.Tag]uint64 // to the generation
	since      map[envelope.Tag]int    // to the step
	items      []modelItem
	last       uint64
	seen       time.Time
}

type modelItem struct {
	id    uint64
	env   []byte
	until time.Time
}

func modelled(t *testing.T, schedule []byte) {
	const retention, idle = 10 * time.Hour, 30 * time.Hour
	cfg := mailbox.Config{
		Path: filepath.Join(t.TempDir(), "mailbox.db"), Key: ed25519.NewKeyFromSeed(make([]byte, 32)),
		Limits: mailbox.Limits{Retention: retention, BoxIdle: idle, TagQuota: 8 << 10, BoxTags: 4},
	}
	s, err := mailbox.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	tags := make([]envelope.Tag, 4)
	for i := range tags {
		tags[i] = envelope.Tag{byte(i)}
	}
	boxes := map[byte]*modelBox{}
	envs := map[byte][]byte{}
	holder := func(tag envelope.Tag) (got *modelBox) {
		for _, b := range boxes {
			if _, ok := b.tags[tag]; ok && (got == nil || b.since[tag] < got.since[tag]) {
				got = b
			}
		}
		return got
	}
	for step, c := range schedule {
		what, who := c&7, c>>3&3
		time.Sleep(time.Second) // who comes first is told apart
		switch b := boxes[who&1]; what {
		case 0, 1: // deposit
			n := c >> 3 & 15
			env := envs[n]
			if env == nil {
				env = append(tags[who][:], bytes.Repeat([]byte{n}, protocol.MinEnvelope-16)...)
				envs[n] = env
			}
			got, err := s.Leave(env)
			if err != nil {
				t.Fatal(err)
			}
			h := holder(tags[who])
			want := wire.Refusal(0)
			switch {
			case h == nil:
				want = wire.RefusedUnknown
			case h.find(env) >= 0:
			default:
				h.last++
				h.items = append(h.items, modelItem{h.last, env, time.Now().Add(retention)})
			}
			if got[0] != want {
				t.Fatalf("step %d: a deposit is answered with %d, want %d", step, got[0], want)
			}
		case 2: // open, and register two tags as a generation of their own
			if b == nil {
				b = &modelBox{key: wire.BoxID{who & 1, 1}, tags: map[envelope.Tag]uint64{}, since: map[envelope.Tag]int{}}
				boxes[who&1] = b
			}
			prune := c&0x20 != 0
			b.generation++
			list := []envelope.Tag{tags[who], tags[(who+1)%4]}
			if list[0][0] > list[1][0] {
				list[0], list[1] = list[1], list[0]
			}
			if err := s.Register(b.key, b.generation, prune, list...); err != nil {
				t.Fatal(err)
			}
			b.seen = time.Now()
			for _, tag := range list {
				if _, ok := b.tags[tag]; !ok {
					b.since[tag] = step
				}
				b.tags[tag] = b.generation
			}
			for tag, g := range b.tags {
				if prune && g < b.generation {
					delete(b.tags, tag)
				}
			}
		case 3, 4: // collect; delete the first
			if b == nil {
				continue
			}
			p, err := s.Page(b.key, 0)
			if err != nil {
				t.Fatal(err)
			}
			if len(p.Items) != len(b.items) {
				t.Fatalf("step %d: %d items wait, want %d", step, len(p.Items), len(b.items))
			}
			for i, item := range p.Items {
				if item.ID != b.items[i].id || !bytes.Equal(item.Envelope, b.items[i].env) {
					t.Fatalf("step %d: item %d is %d, want %d", step, i, item.ID, b.items[i].id)
				}
			}
			if what == 4 && len(b.items) > 0 {
				if err := s.Remove(b.key, b.items[0].id); err != nil {
					t.Fatal(err)
				}
				b.items = b.items[1:]
				b.seen = time.Now()
			}
		case 5: // time goes on
			time.Sleep(time.Duration(who+1) * 3 * time.Hour)
			if err := s.Tidy(t.Context()); err != nil {
				t.Fatal(err)
			}
			for k, b := range boxes {
				for len(b.items) > 0 && !b.items[0].until.After(time.Now()) {
					b.items = b.items[1:]
				}
				if !b.seen.Add(idle).After(time.Now()) {
					clear(b.tags)
					if len(b.items) == 0 {
						delete(boxes, k)
					}
				}
			}
		case 6: // restart
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			if s, err = mailbox.Open(t.Context(), cfg); err != nil {
				t.Fatal(err)
			}
		case 7: // audit
			for _, env := range envs {
				held := false
				for _, b := range boxes {
					held = held || b.find(env) >= 0
				}
				if got := s.Has(env); got != held {
					t.Fatalf("step %d: an audit says %v, want %v", step, got, held)
				}
			}
		}
	}
	if err := s.Check(); err != nil {
		t.Fatal(err)
	}
}

func (b *modelBox) find(env []byte) int {
	for i, item := range b.items {
		if bytes.Equal(item.env, env) {
			return i
		}
	}
	return -1
}
