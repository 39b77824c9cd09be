package mailbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"

	"github.com/libp2p/go-libp2p/core/network"

	"github.com/kith-im/kith/protocol/envelope"
	"github.com/kith-im/kith/protocol/mailbox"
)

// What the tests, which are another package because of who imports this one,
// replace and look into.

// Migrations are the schema's files.
var Migrations fs.FS = migrations

// OpenWith is Open on another file layer, or with another schema.
func OpenWith(ctx context.Context, cfg Config, vfs string, schema fs.FS) (*Service, error) {
	return open(ctx, cfg, engine{vfs: vfs, schema: schema})
}

// Age is the service's own, in milliseconds.
func (s *Service) Age() int64 { return s.age.now() }

// Tidy drops what has ended.
func (s *Service) Tidy(ctx context.Context) error { return s.tidyOnce(ctx) }

// What streams ask for, without a stream.

// NewBox makes a box with tags of contacts.
func (s *Service) NewBox(id mailbox.BoxID, tags ...envelope.Tag) error {
	return s.Register(id, 1, false, tags...)
}

// Register makes a box, if need be, and registers tags of contacts.
func (s *Service) Register(id mailbox.BoxID, generation uint64, prune bool, tags ...envelope.Tag) error {
	f := &mailbox.Tags{Generation: generation, Prune: prune}
	for _, tag := range tags {
		f.Tags = append(f.Tags, mailbox.Registration{Tag: tag, Class: mailbox.ClassContact})
	}
	return s.change(context.Background(), func(t *tx) error {
		b, _, o, err := t.open(id, true, s.group(netip.Prefix{}))
		if err == nil && o.why == 0 {
			_, o, err = t.register(b.id, f)
		}
		if err == nil && o.why != 0 {
			err = fmt.Errorf("refused with %d", o.why)
		}
		return err
	})
}

// Leave deposits envelopes together and returns the refusals.
func (s *Service) Leave(envs ...[]byte) ([]mailbox.Refusal, error) {
	var ops []*op
	out := make([]mailbox.Refusal, len(envs))
	for i, env := range envs {
		key := keyOf(mailbox.DigestOf(env))
		ops = append(ops, &op{do: func(t *tx) error {
			o, err := t.deposit(env, key)
			out[i] = o.why
			return err
		}})
	}
	if err := s.submit(context.Background(), ops...); err != nil {
		return nil, err
	}
	for _, o := range ops {
		if o.err != nil {
			return nil, o.err
		}
	}
	return out, nil
}

// Remove deletes an item of a box.
func (s *Service) Remove(id mailbox.BoxID, item uint64) error {
	return s.reclaim(context.Background(), func(t *tx) error {
		b, _, err := t.byKey(id)
		if err != nil {
			return err
		}
		return t.remove(b.id, []uint64{item})
	})
}

// Page reads a page of a box.
func (s *Service) Page(id mailbox.BoxID, after uint64) (p *mailbox.Page, err error) {
	err = s.read(context.Background(), func(c *conn) error {
		b, _, err := c.byKey(id)
		if err == nil {
			p, err = c.page(b.id, after, mailbox.MaxPage)
		}
		return err
	})
	return p, err
}

// Has says whether an envelope is there and whole.
func (s *Service) Has(env []byte) bool {
	var got []byte
	err := s.read(context.Background(), func(c *conn) (err error) {
		got, err = c.find(envelope.Tag(env[:envelope.TagSize]), mailbox.DigestOf(env))
		return err
	})
	return err == nil && bytes.Equal(got, env)
}

// Check finds contradictions in the file, and between it and the sums in memory.
func (s *Service) Check() error {
	return s.change(context.Background(), func(t *tx) error {
		var verdict []byte
		if _, err := t.get([]any{&verdict}, `PRAGMA integrity_check(1)`); err != nil || string(verdict) != "ok" {
			return fmt.Errorf("%s (%w)", verdict, err)
		}
		var fresh usage
		if err := fresh.load(t.conn); err != nil {
			return err
		}
		if fresh.disk = t.use.disk; fresh != *t.use {
			return errors.New("the sums are wrong")
		}
		for _, sql := range []string{
			`SELECT count(*) FROM boxes b WHERE items != (SELECT count(*) FROM items i WHERE i.box = b.id)`,
			`SELECT count(*) FROM boxes b WHERE mail + requests != (SELECT coalesce(sum(length(body)), 0) FROM items i WHERE i.box = b.id)`,
			`SELECT count(*) FROM boxes b WHERE tags != (SELECT count(*) FROM tags t WHERE t.box = b.id)`,
			`SELECT count(*) FROM items WHERE box NOT IN (SELECT id FROM boxes)`,
		} {
			var n int64
			if _, err := t.get([]any{&n}, sql); err != nil || n != 0 {
				return fmt.Errorf("%d rows contradict: %s (%w)", n, sql, err)
			}
		}
		return nil
	})
}

// Floor is what the database does at best: a group of rows with the same bodies
// in a table without an index, and a commit.
func (s *Service) Floor(bodies [][]byte) error {
	return s.change(context.Background(), func(t *tx) error {
		if err := t.db.Exec(`CREATE TABLE IF NOT EXISTS floor (n INTEGER PRIMARY KEY, body BLOB NOT NULL) STRICT`); err != nil {
			return err
		}
		for _, b := range bodies {
			if err := t.exec(`INSERT INTO floor (body) VALUES (?)`, b); err != nil {
				return err
			}
		}
		return nil
	})
}

// Held is how many bytes of requests and answers are in memory.
func (s *Service) Held() int64 {
	s.sources.mu.Lock()
	defer s.sources.mu.Unlock()
	return s.sources.held
}

// Hold counts bytes as held in memory, by nobody, until the returned function
// gives them back.
func (s *Service) Hold(n int64) (release func()) {
	add := func(n int64) {
		s.sources.mu.Lock()
		defer s.sources.mu.Unlock()
		s.sources.held += n
	}
	add(n)
	return func() { add(-n) }
}

// Answer meets requests that have arrived together on a stream.
func (s *Service) Answer(ns network.Stream, frames ...mailbox.Frame) error {
	st := &stream{
		s: s, net: ns, who: s.sources.enter(ns.Conn()),
		arrived: make(chan request, len(frames)), freed: make(chan struct{}, 1),
	}
	defer st.who.leave()
	for _, f := range frames {
		r := request{frame: f, size: int64(len(mailbox.AppendFrame(nil, f)))}
		st.who.hold(r.size)
		st.held.Add(r.size)
		st.arrived <- r
	}
	close(st.arrived)
	return st.serve(context.Background())
}
