package mailbox_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
	"testing/synctest"
	"time"

	apiv1 "github.com/kith-im/kith/node/api/v1"
	"github.com/kith-im/kith/node/mailbox"
	"github.com/kith-im/kith/node/nodetest"
	"github.com/kith-im/kith/protocol"
	wire "github.com/kith-im/kith/protocol/mailbox"
)

// An owner who is connected has a deposit at once, on every stream: nothing
// is polled for.
func TestWakeUp(t *testing.T) {
	world(t, mailbox.Limits{}, func(t *testing.T, h *house) {
		a, b := h.dial(1), h.dial(3)
		key := newKey()
		tag, _ := a.ready(key)
		b.open(key, false)
		for _, c := range []*client{a, b} {
			c.write(&wire.Collect{Wait: wire.MaxWait})
		}
		time.Sleep(5 * time.Minute)
		env := letter(tag, protocol.MinEnvelope)
		began := time.Now()
		if why := h.dial(2).deposit(env); why != 0 {
			t.Fatalf("refused with %d", why)
		}
		for _, c := range []*client{a, b} {
			p := answer[*wire.Page](t, c.read())
			if took := time.Since(began); took > 500*time.Millisecond { // four round trips to dial and deposit, in bubble time
				t.Errorf("it took %v", took)
			}
			if len(p.Items) != 1 || !bytes.Equal(p.Items[0].Envelope, env) {
				t.Fatalf("the page has %d items", len(p.Items))
			}
		}
	})
}

// A wait ends by its time with an empty page, and by the next request.
func TestWaitEnds(t *testing.T) {
	world(t, mailbox.Limits{}, func(t *testing.T, h *house) {
		c := h.dial(1)
		c.ready(newKey())
		began := time.Now()
		c.write(&wire.Collect{Wait: 2 * time.Minute})
		if p := answer[*wire.Page](t, c.read()); len(p.Items) != 0 || time.Since(began).Round(time.Second) != 2*time.Minute {
			t.Errorf("%d items after %v", len(p.Items), time.Since(began))
		}
		began = time.Now()
		c.write(&wire.Collect{Wait: wire.MaxWait})
		time.Sleep(3 * time.Second)
		c.write(tagsFrame(2, false, wire.ClassContact, newTag()))
		answer[*wire.Page](t, c.read())
		answer[*wire.Registered](t, c.read())
		if took := time.Since(began); took > 4*time.Second {
			t.Errorf("the next request was answered after %v", took)
		}
	})
}

// A new generation of tags takes the place of the one before, over several
// requests and without a gap; an older one changes nothing.
func TestGenerations(t *testing.T) {
	world(t, mailbox.Limits{BoxTags: 4}, func(t *testing.T, h *house) {
		c, sender := h.dial(1), h.dial(2)
		c.open(newKey(), true)
		old, both, fresh := newTag(), newTag(), newTag()
		c.register(5, false, old, both)
		c.register(6, false, both)
		for _, tag := range [][16]byte{old, both} {
			if why := sender.deposit(letter(tag, 1024)); why != 0 {
				t.Errorf("before the change a tag is refused with %d", why)
			}
		}
		if got := c.register(6, true, fresh); got.Tags != 2 || got.Generation != 6 {
			t.Errorf("registered %+v", got)
		}
		if got := c.register(4, true, newTag()); got.Generation != 6 || got.Tags != 2 {
			t.Errorf("an older generation: %+v", got)
		}
		for tag, want := range map[[16]byte]wire.Refusal{old: wire.RefusedUnknown, both: 0, fresh: 0} {
			if why := sender.deposit(letter(tag, 1024)); why != want {
				t.Errorf("after the change a tag is refused with %d, want %d", why, want)
			}
		}
		c.register(6, false, newTag(), newTag())
		c.register(7, false, newTag(), newTag()) // a whole set in the place of another
		if got := c.register(7, true, newTag(), newTag()); got.Tags != 4 {
			t.Errorf("replaced by %+v", got)
		}
		if why := refusal(t, c.ask(tagsFrame(8, true, wire.ClassContact, newTag(), newTag(), newTag(), newTag(), newTag()))); why != wire.RefusedLimit {
			t.Errorf("too many tags are refused with %d", why)
		}
		if got := c.drain(); len(got) != 4 { // what came under a tag that was let go stays
			t.Errorf("%d envelopes wait, want 4", len(got))
		}
	})
}

// Mail is kept for the retention and not for much longer, and so are boxes
// without their owner; both in the service's own age, whatever the clock says.
// One start makes it at most a day older.
func TestP11_Clocks(t *testing.T) {
	const day = 24 * time.Hour
	for _, jump := range []time.Duration{0, 3650 * day, -3650 * day} {
		t.Run(jump.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { clocks(t, jump) })
		})
	}
}

func clocks(t *testing.T, jump time.Duration) {
	off := time.Duration(0)
	cfg := mailbox.Config{
		Path: filepath.Join(t.TempDir(), "mailbox.db"), Key: ed25519.NewKeyFromSeed(make([]byte, 32)),
		Limits: mailbox.Limits{Retention: 60 * time.Hour, BoxIdle: 120 * time.Hour},
		Now:    func() time.Time { return time.Now().Add(off) },
	}
	// live runs the service for a while.
	live := func(d time.Duration, look func(*mailbox.Service)) {
		t.Helper()
		s, err := mailbox.Open(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), d)
		defer cancel()
		if err := s.Run(ctx); err != nil {
			t.Fatal(err)
		}
		look(s)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	key, tag := newKey().ID(), newTag()
	env := letter(tag, protocol.MinEnvelope)
	come := func(s *mailbox.Service) {
		t.Helper()
		if err := s.Register(key, 1, false, tag); err != nil {
			t.Fatal(err)
		}
	}
	boxes := func(s *mailbox.Service) int64 {
		t.Helper()
		st, err := s.Status(t.Context())
		if err != nil || st.Tags != st.Boxes {
			t.Fatal(st, err)
		}
		return st.Boxes
	}
	live(time.Hour, func(s *mailbox.Service) {
		come(s)
		if why, err := s.Leave(env); err != nil || why[0] != 0 {
			t.Fatal(why, err)
		}
	})
	off = jump
	live(34*time.Hour, func(s *mailbox.Service) {
		if !s.Has(env) {
			t.Error("mail is dropped early")
		}
	})
	off = 0
	live(28*time.Hour, func(s *mailbox.Service) {
		if s.Has(env) {
			t.Error("mail is kept for longer")
		}
		come(s)
	})
	off = jump
	live(90*time.Hour, func(s *mailbox.Service) {
		if boxes(s) != 1 {
			t.Error("a box is dropped early")
		}
		come(s)
	})
	live(121*time.Hour, func(s *mailbox.Service) {
		if boxes(s) != 0 {
			t.Error("a box is kept for longer")
		}
	})
}

// A node that drains takes no mail and no new boxes, says so to those who come
// and to those who wait, and gives out what it has; also after a restart, and
// until it is undone.
func TestDrain(t *testing.T) {
	world(t, mailbox.Limits{}, func(t *testing.T, h *house) {
		owner, key := h.dial(1), newKey()
		tag, _ := owner.ready(key)
		sender := h.dial(2)
		sender.deposit(letter(tag, 1024))
		waiting := h.dial(1)
		waiting.open(key, false)
		waiting.write(&wire.Collect{After: 1, Wait: wire.MaxWait})
		time.Sleep(time.Second)
		if _, err := h.SetNode(t.Context(), &apiv1.SetNodeRequest{Draining: new(true)}); err != nil {
			t.Fatal(err)
		}
		if f, err := waiting.next(); err == nil {
			t.Errorf("a stream from before goes on with %T", f)
		}
		h.restart()
		c := h.dial(2)
		if !c.hello.Draining {
			t.Error("hello does not say so")
		}
		if why := c.deposit(letter(tag, 1024)); why != wire.RefusedDraining {
			t.Errorf("a deposit is refused with %d", why)
		}
		if why := c.deposit(letter(newTag(), 1024)); why != wire.RefusedDraining {
			t.Errorf("a deposit under an unknown tag is refused with %d", why)
		}
		if why := refusal(t, c.ask(wire.SignOpen(newKey(), c.node, c.hello.Nonce, true))); why != wire.RefusedDraining {
			t.Errorf("a new box is refused with %d", why)
		}
		owner = h.dial(1)
		owner.open(key, true)
		if got := owner.drain(); len(got) != 1 {
			t.Errorf("%d envelopes are collected, want 1", len(got))
		}
		if st, err := h.NodeStatus(t.Context(), nil); err != nil || st.State != "draining" {
			t.Errorf("the state is %q, %v", st.GetState(), err)
		}
		if err := h.SetDraining(t.Context(), false); err != nil {
			t.Fatal(err)
		}
		if why := h.dial(2).deposit(letter(tag, 1024)); why != 0 {
			t.Errorf("after all, a deposit is refused with %d", why)
		}
	})
}

// What an operator sets holds at once and after a restart, until the
// configuration changes.
func TestConfigure(t *testing.T) {
	world(t, mailbox.Limits{Quota: 1 << 30}, func(t *testing.T, h *house) {
		limits := func() mailbox.Limits {
			t.Helper()
			st, err := h.Status(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			return st.Limits
		}
		res, err := h.SetNode(t.Context(), &apiv1.SetNodeRequest{Limits: &apiv1.NodeLimits{Quota: 2 << 30, RetentionS: 7200}})
		if err != nil || res.Status.Limits.Quota != 2<<30 || res.Status.Limits.BoxTags != mailbox.DefaultBoxTags {
			t.Fatalf("%+v, %v", res, err)
		}
		// A box is kept for longer than mail, whatever is set.
		short := &apiv1.NodeLimits{RetentionS: 7200, BoxIdleS: 60}
		if res, err = h.SetNode(t.Context(), &apiv1.SetNodeRequest{Limits: short}); err != nil || res.Status.Limits.BoxIdleS != 3*3600 {
			t.Fatalf("%+v, %v", res, err)
		}
		if got := h.dial(1).hello.Hours; got != 2 {
			t.Errorf("hello says %d hours, want 2", got)
		}
		h.restart()
		if l := limits(); l.Quota != 2<<30 || l.Retention != 2*time.Hour {
			t.Errorf("after a restart: %+v", l)
		}
		h.cfg.Limits.Quota = 3 << 30
		h.restart()
		if l := limits(); l.Quota != 3<<30 || l.Retention != 2*time.Hour {
			t.Errorf("with another configuration: %+v", l)
		}
		if err := h.Configure(t.Context(), mailbox.Limits{Boxes: -1}); err == nil {
			t.Error("a limit below zero is taken")
		}
	})
}

// An upgrade finds the mail that the version before held; an older version
// leaves a newer file alone.
func TestUpgrade(t *testing.T) {
	world(t, mailbox.Limits{}, func(t *testing.T, h *house) {
		owner, key := h.dial(1), newKey()
		tag, _ := owner.ready(key)
		env := letter(tag, 1024)
		h.dial(2).deposit(env)
		h.stop()
		first, err := os.ReadFile(filepath.Join("schema", "0001.sql"))
		if err != nil {
			t.Fatal(err)
		}
		next := fstest.MapFS{
			"schema/0001.sql": {Data: first},
			"schema/0002.sql": {Data: []byte(`ALTER TABLE items ADD COLUMN extra INTEGER NOT NULL DEFAULT 0`)},
		}
		broken := fstest.MapFS{
			"schema/0001.sql": {Data: first},
			"schema/0002.sql": {Data: []byte(`CREATE TABLE half (a) STRICT; nonsense`)},
		}
		if _, err := mailbox.OpenWith(t.Context(), h.cfg, "", broken); err == nil {
			t.Fatal("a migration that fails is passed over")
		}
		h.start() // the old version, untouched
		if !h.dial(2).holds(env) {
			t.Error("a migration that failed cost mail")
		}
		h.stop()
		s, err := mailbox.OpenWith(t.Context(), h.cfg, "", next)
		if err != nil {
			t.Fatal(err)
		}
		h.host.SetStreamHandler(wire.Protocol, s.Handle)
		c := h.dial(1)
		c.open(key, false)
		if got := c.drain(); len(got) != 1 || !bytes.Equal(got[0], env) {
			t.Errorf("%d envelopes after the upgrade", len(got))
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := mailbox.Open(t.Context(), h.cfg); !errors.Is(err, mailbox.ErrNewerSchema) {
			t.Errorf("the older version says: %v", err)
		}
	})
}

// Metrics and the log name nobody.
func TestMetrics(t *testing.T) {
	world(t, mailbox.Limits{}, func(t *testing.T, h *house) {
		key := newKey()
		tag, _ := h.dial(1).ready(key)
		sender := h.dial(2)
		sender.deposit(letter(tag, 1024))
		sender.deposit(letter(newTag(), 1024))
		var out strings.Builder
		if err := h.WriteMetrics(&out); err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{
			"kith_mailbox_items 1\n", "kith_mailbox_stored_total 1\n", `kith_mailbox_refused_total{reason="unknown"} 1`,
			"# TYPE kith_mailbox_items gauge\n", "kith_mailbox_boxes 1\n", "kith_mailbox_mail_bytes 1024\n",
		} {
			if !strings.Contains(out.String(), want) {
				t.Errorf("the metrics lack %q:\n%s", want, out.String())
			}
		}
	})
}

// Mail that nobody came for, and mail of a box whose owner did not, is counted.
func TestExpiredIsCounted(t *testing.T) {
	world(t, mailbox.Limits{Retention: 48 * time.Hour, BoxIdle: 100 * time.Hour}, func(t *testing.T, h *house) {
		owner, key := h.dial(1), newKey()
		tag, _ := owner.ready(key)
		owner.close()
		for i, why := range h.dial(2).depositAll(letters(tag, 1024, 300)) {
			if why != 0 {
				t.Fatalf("deposit %d was refused with %d", i, why)
			}
		}
		expired := func() (int64, int64) {
			t.Helper()
			st, err := h.NodeStatus(t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			return st.Expired, st.Envelopes
		}
		time.Sleep(47 * time.Hour)
		if gone, left := expired(); gone != 0 || left != 300 {
			t.Errorf("before its time: %d expired, %d left", gone, left)
		}
		time.Sleep(2 * time.Hour)
		if gone, left := expired(); gone != 300 || left != 0 {
			t.Errorf("after its time: %d expired, %d left", gone, left)
		}
		var out strings.Builder
		if err := h.WriteMetrics(&out); err != nil || !strings.Contains(out.String(), "kith_mailbox_expired_total 300\n") {
			t.Errorf("the metrics say %s, %v", &out, err)
		}
	})
}

// What was signed for is kept for its time, though the owner has not come for long
// and the operator has shortened everything since; the box takes nothing more.
func TestSignedForIsKept(t *testing.T) {
	world(t, mailbox.Limits{Retention: 100 * time.Hour, BoxIdle: 150 * time.Hour}, func(t *testing.T, h *house) {
		key := newKey()
		for _, late := range []time.Duration{0, 140 * time.Hour} {
			owner := h.dial(1)
			tag, _ := owner.ready(key)
			owner.close()
			time.Sleep(late)
			env := letter(tag, 1024)
			if why := h.dial(2).deposit(env); why != 0 {
				t.Fatalf("refused with %d", why)
			}
			if late == 0 {
				if err := h.Configure(t.Context(), mailbox.Limits{Retention: time.Hour, BoxIdle: 2 * time.Hour}); err != nil {
					t.Fatal(err)
				}
			}
			time.Sleep(99 * time.Hour)
			if !h.dial(2).holds(env) {
				t.Errorf("after %v, an envelope is gone before its time", late)
			}
			if why := h.dial(2).deposit(letter(tag, 1024)); why != wire.RefusedUnknown {
				t.Errorf("after %v, a box that is let go answers with %d", late, why)
			}
			owner = h.dial(1)
			owner.open(key, false)
			if got := owner.drain(); len(got) != 1 || !bytes.Equal(got[0], env) {
				t.Errorf("after %v, the owner finds %d envelopes", late, len(got))
			}
			if err := h.Configure(t.Context(), mailbox.Limits{Retention: 100 * time.Hour, BoxIdle: 150 * time.Hour}); err != nil {
				t.Fatal(err)
			}
			owner.close()
		}
		time.Sleep(151 * time.Hour)
		if st, err := h.Status(t.Context()); err != nil || st.Boxes != 0 || st.Tags != 0 {
			t.Errorf("%d boxes and %d tags are left, %v", st.Boxes, st.Tags, err)
		}
	})
}

// The log of all that can happen, at its most talkative, names no tag, no box, no
// peer and no address.
func TestLogNamesNobody(t *testing.T) {
	var log bytes.Buffer
	world(t, mailbox.Limits{SourceRate: 16 << 10, BoxQuota: 256 << 10}, func(t *testing.T, h *house) {
		h.cfg.Log = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
		h.restart()
		owner, sender, key := h.dial(1), h.dial(2), newKey()
		tag, request := owner.ready(key)
		env := letter(tag, protocol.MinEnvelope)
		sender.deposit(env)
		sender.deposit(letter(newTag(), protocol.MinEnvelope))
		sender.holds(env)
		for range 2 << 20 / protocol.MaxEnvelope { // full, and then beyond the rate
			sender.deposit(letter(request, protocol.MaxEnvelope))
		}
		refusal(t, h.dial(3).ask(wire.SignOpen(newKey(), h.node(), wire.Nonce{}, true)))
		if _, err := h.dial(3).net.Write(random(64)); err != nil {
			t.Fatal(err)
		}
		owner.drain()
		if err := h.SetDraining(t.Context(), true); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		if err := h.Tidy(t.Context()); err != nil {
			t.Error(err)
		}
		h.stop()
		// What went wrong on the disk is logged, too.
		disk, path := newSimDisk(t, 1), filepath.Join(t.TempDir(), "mailbox.db")
		s, err := mailbox.OpenWith(t.Context(), mailbox.Config{Path: path, Key: h.cfg.Key, Log: h.cfg.Log}, disk.name, mailbox.Migrations)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.NewBox(key.ID(), tag); err != nil {
			t.Fatal(err)
		}
		disk.mu.Lock()
		disk.eioIn = 1
		disk.mu.Unlock()
		if _, err := s.Leave(env); err == nil {
			t.Error("a failed sync is acknowledged")
		}
		s.Close() // fails
		if !strings.Contains(log.String(), "saving mail failed") {
			t.Errorf("the log says nothing of a failed disk: %s", &log)
		}
		id, digest := key.ID(), wire.DigestOf(env)
		names := []string{h.info.ID.String(), owner.net.Conn().LocalPeer().String(), sender.net.Conn().LocalPeer().String(), path}
		for i := range 4 {
			names = append(names, nodetest.IP(i).String())
		}
		for _, b := range [][]byte{tag[:], request[:], id[:], digest[:], env[len(env)-16:]} {
			names = append(names, hex.EncodeToString(b[:8]), base64.StdEncoding.EncodeToString(b[:6]), string(b[:8]), fmt.Sprint(b[:4]))
		}
		for _, name := range names {
			if strings.Contains(strings.ToLower(log.String()), strings.ToLower(strings.Trim(name, "[]"))) {
				t.Errorf("the log names %q:\n%s", name, &log)
			}
		}
	})
}

// What runs ends: no stream is left when Close returns, and nobody waits for an
// answer that does not come.
func TestClose(t *testing.T) {
	world(t, mailbox.Limits{}, func(t *testing.T, h *house) {
		c := h.dial(1)
		c.ready(newKey())
		c.write(&wire.Collect{Wait: wire.MaxWait})
		time.Sleep(time.Second)
		h.stop()
		if f, err := c.next(); err == nil {
			t.Errorf("who waits is answered with %T", f)
		}
		if _, err := h.Status(context.Background()); err == nil {
			t.Error("a closed service has a status")
		}
		if err := h.Close(); err != nil {
			t.Errorf("closed again: %v", err)
		}
	})
}
