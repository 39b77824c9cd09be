package mailbox

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"time"

	"github.com/ncruces/go-sqlite3"

	"github.com/kith-im/kith/protocol/envelope"
	"github.com/kith-im/kith/protocol/mailbox"
)

// usage is how much is kept, in all and for each group of addresses that boxes
// were opened from.
type usage struct {
	boxes, tags, items int64
	mail, requests     int64 // bytes of envelopes
	disk               int64 // bytes of the file in use
	groups             [groups]share
}

// share is what the boxes of one group hold.
type share struct {
	boxes    int64
	bytes    int64 // of envelopes and tags
	requests int64 // of strangers' envelopes among them
}

func (u *usage) load(c *conn) error {
	err := c.query(func(st *sqlite3.Stmt) bool {
		boxes, tags, items := st.ColumnInt64(1), st.ColumnInt64(2), st.ColumnInt64(3)
		mail, requests := st.ColumnInt64(4), st.ColumnInt64(5)
		u.boxes, u.tags, u.items = u.boxes+boxes, u.tags+tags, u.items+items
		u.mail, u.requests = u.mail+mail, u.requests+requests
		g := &u.groups[uint64(st.ColumnInt64(0))%groups]
		g.boxes, g.bytes, g.requests = g.boxes+boxes, g.bytes+mail+requests+tags*tagBytes, g.requests+requests
		return true
	}, `SELECT grp, count(*), sum(tags), sum(items), sum(mail), sum(requests) FROM boxes GROUP BY grp`)
	if err != nil {
		return err
	}
	u.disk, err = c.inUse()
	return err
}

// inUse is how many bytes of the file hold something.
func (c *conn) inUse() (int64, error) {
	var pages, unused int64
	if _, err := c.get([]any{&pages}, `PRAGMA page_count`); err != nil {
		return 0, err
	}
	_, err := c.get([]any{&unused}, `PRAGMA freelist_count`)
	return (pages - unused) * pageSize, err
}

// box is a row of boxes.
type box struct {
	id, group, seen, generation, last int64
	tags, items, mail, requests       int64
}

const boxColumns = `id, grp, seen, generation, last, tags, items, mail, requests`

func (b *box) columns() []any {
	return []any{&b.id, &b.group, &b.seen, &b.generation, &b.last, &b.tags, &b.items, &b.mail, &b.requests}
}

// errNoBox means that a stream's box has been dropped.
var errNoBox = errors.New("no such box")

// byID returns a box that has not been dropped, or ok = false.
func (c *conn) byID(id int64) (b box, ok bool, err error) {
	ok, err = c.get(b.columns(), `SELECT `+boxColumns+` FROM boxes WHERE id = ?`, id)
	return b, ok, err
}

func (c *conn) byKey(key mailbox.BoxID) (b box, ok bool, err error) {
	ok, err = c.get(b.columns(), `SELECT `+boxColumns+` FROM boxes WHERE key = ?`, key[:])
	return b, ok, err
}

// save writes what changes of a box, and keeps the sums.
func (t *tx) save(was, is box) error {
	t.use.tags += is.tags - was.tags
	t.use.items += is.items - was.items
	t.use.mail += is.mail - was.mail
	t.use.requests += is.requests - was.requests
	g := &t.use.groups[is.group]
	g.bytes += is.held() - was.held()
	g.requests += is.requests - was.requests
	return t.exec(`UPDATE boxes SET seen = ?, generation = ?, last = ?, tags = ?, items = ?, mail = ?, requests = ? WHERE id = ?`,
		is.seen, is.generation, is.last, is.tags, is.items, is.mail, is.requests, is.id)
}

// held is what a box counts in its group's share.
func (b *box) held() int64 { return b.mail + b.requests + b.tags*tagBytes }

// quota is how many bytes of contacts' envelopes a box may hold now.
func (t *tx) quota(b *box) int64 {
	return min(t.set.BoxQuota, (b.mail+t.free)/boxPart)
}

// room says whether a box may take n bytes more of a class, under a tag that has
// some: no more than the tag then leaves to the others of its class, and the
// boxes of its group to those of others.
func (t *tx) room(b *box, class mailbox.Class, under, n int64) bool {
	if n > t.free || t.use.groups[b.group].bytes+n > t.free {
		return false
	}
	left := t.quota(b) - b.mail
	if class == mailbox.ClassRequest {
		all := t.set.Quota/requestPart - t.use.requests
		if t.use.groups[b.group].requests+n > all {
			return false
		}
		left = min(t.set.RequestShare-b.requests, all)
	}
	return under+n <= min(t.set.TagQuota, left)
}

// The outcomes of a request that is met, and the refusals.
type outcome struct {
	why   mailbox.Refusal // 0: met
	hours uint16
}

func refused(why mailbox.Refusal) outcome { return outcome{why: why} }

// keyOf is where the index looks for an envelope.
func keyOf(d mailbox.Digest) int64 { return int64(binary.BigEndian.Uint64(d[:])) }

const hour = int64(time.Hour / time.Millisecond)

// deposit takes an envelope, whose key the caller has worked out: hashing would
// hold up the others here. The same one again gets a receipt for what is left
// of its time, if there is any: nobody prolongs what they leave.
func (t *tx) deposit(env []byte, key int64) (outcome, error) {
	tag := env[:envelope.TagSize]
	var boxID, since, class, under int64
	known, err := t.get([]any{&boxID, &since, &class, &under},
		`SELECT box, since, class, bytes FROM tags WHERE tag = ? ORDER BY since, box LIMIT 1`, tag)
	if err != nil || !known {
		return refused(mailbox.RefusedUnknown), err
	}
	b, ok, err := t.byID(boxID)
	if err != nil || !ok {
		return refused(mailbox.RefusedUnknown), err
	}
	var left int64
	found := false
	err = t.query(func(st *sqlite3.Stmt) bool {
		if found = bytes.Equal(st.ColumnRawBlob(1), env); found {
			left = st.ColumnInt64(0) - t.age
		}
		return !found
	}, `SELECT until, body FROM items WHERE key = ? AND box = ? AND until > ?`, key, b.id, t.age)
	if err != nil {
		return outcome{}, err
	}
	if found {
		return outcome{hours: uint16(min(left/hour, math.MaxUint16))}, nil
	}
	size := int64(len(env))
	if !t.room(&b, mailbox.Class(class), under, size) {
		return refused(mailbox.RefusedFull), nil
	}
	is := b
	is.last++
	is.items++
	if mailbox.Class(class) == mailbox.ClassRequest {
		is.requests += size
	} else {
		is.mail += size
	}
	t.free -= size
	t.news[b.id] = struct{}{}
	return outcome{hours: t.set.hours()}, errors.Join(
		t.exec(`INSERT INTO items (box, id, class, stored, until, key, body) VALUES (?, ?, ?, ?, ?, ?, ?)`,
			b.id, is.last, class, t.age, t.age+t.set.Retention.Milliseconds(), key, env),
		t.exec(`UPDATE tags SET bytes = bytes + ? WHERE tag = ? AND since = ? AND box = ?`, size, tag, since, b.id),
		t.save(b, is))
}

// find returns an envelope that is still there, or nil.
func (c *conn) find(tag envelope.Tag, d mailbox.Digest) (env []byte, err error) {
	err = c.query(func(st *sqlite3.Stmt) bool {
		b := st.ColumnRawBlob(0)
		if len(b) >= len(tag) && envelope.Tag(b[:len(tag)]) == tag && mailbox.DigestOf(b) == d {
			env = bytes.Clone(b)
		}
		return env == nil
	}, `SELECT body FROM items WHERE key = ?`, keyOf(d))
	return env, err
}

// touchEvery is how often it is written down that an owner came.
const touchEvery = hour

// open finds a box for its owner, or makes it.
func (t *tx) open(key mailbox.BoxID, create bool, group int64) (b box, quota int64, o outcome, err error) {
	b, ok, err := t.byKey(key)
	switch {
	case err != nil:
		return b, 0, o, err
	case !ok && !create:
		return b, 0, refused(mailbox.RefusedNoBox), nil
	case !ok && t.set.Draining:
		return b, 0, refused(mailbox.RefusedDraining), nil
	case !ok:
		left := t.set.Boxes - t.use.boxes
		if left <= 0 || t.use.groups[group].boxes >= left {
			return b, 0, refused(mailbox.RefusedLimit), nil
		}
		err := t.exec(`INSERT INTO boxes (key, grp, seen, generation, last, tags, items, mail, requests) VALUES (?, ?, ?, 0, 0, 0, 0, 0, 0)`,
			key[:], group, t.age)
		if err != nil {
			return b, 0, o, err
		}
		t.use.boxes++
		t.use.groups[group].boxes++
		b = box{id: t.db.LastInsertRowID(), group: group, seen: t.age}
	case t.age-b.seen >= touchEvery:
		is := b
		is.seen = t.age
		err = t.save(b, is)
	}
	return b, t.quota(&b), o, err
}

// touch notes that a box's owner is here.
func (t *tx) touch(id int64) error {
	b, ok, err := t.byID(id)
	if err != nil || !ok {
		return err
	}
	is := b
	is.seen = t.age
	return t.save(b, is)
}

// register makes tags those of a generation, and forgets with prune those of
// older ones. An older generation than the box has changes nothing.
func (t *tx) register(id int64, f *mailbox.Tags) (b box, o outcome, err error) {
	b, ok, err := t.byID(id)
	switch {
	case err != nil:
		return b, o, err
	case !ok:
		return b, refused(mailbox.RefusedNoBox), nil
	case f.Generation > math.MaxInt64:
		return b, refused(mailbox.RefusedLimit), nil
	case int64(f.Generation) < b.generation:
		return b, o, nil
	}
	type known struct{ since, class, generation int64 }
	have := make([]known, len(f.Tags)) // since 0: not registered by this box
	added := int64(0)
	for i, r := range f.Tags {
		k := &have[i]
		ok, err := t.get([]any{&k.since, &k.class, &k.generation},
			`SELECT since, class, generation FROM tags WHERE tag = ? AND box = ?`, r.Tag[:], id)
		if err != nil {
			return b, o, err
		}
		if !ok {
			k.since = -1
			added++
		}
	}
	if added > 0 && (b.tags+added > 2*t.set.BoxTags || t.use.groups[b.group].bytes+added*tagBytes > t.free) {
		return b, refused(mailbox.RefusedLimit), nil
	}
	is := b
	is.generation, is.seen = int64(f.Generation), t.age
	is.tags += added
	for i, r := range f.Tags {
		k := have[i]
		switch {
		case k.since < 0:
			err = t.exec(`INSERT INTO tags (tag, since, box, class, generation, bytes) VALUES (?, ?, ?, ?, ?, 0)`,
				r.Tag[:], t.age, id, int64(r.Class), is.generation)
		case k.class != int64(r.Class) || k.generation != is.generation:
			err = t.exec(`UPDATE tags SET class = ?, generation = ? WHERE tag = ? AND since = ? AND box = ?`,
				int64(r.Class), is.generation, r.Tag[:], k.since, id)
		}
		if err != nil {
			return b, o, err
		}
	}
	if f.Prune {
		if err := t.exec(`DELETE FROM tags WHERE box = ? AND generation < ?`, id, is.generation); err != nil {
			return b, o, err
		}
		is.tags -= t.db.Changes()
	}
	return is, o, t.save(b, is)
}

// remove deletes items of a box by their numbers; those that are not there are
// done with.
func (t *tx) remove(id int64, done []uint64) error {
	b, ok, err := t.byID(id)
	if err != nil {
		return err
	}
	if !ok {
		return errNoBox
	}
	is := b
	is.seen = t.age
	for _, n := range done {
		if n > math.MaxInt64 {
			continue
		}
		var row item
		ok, err := t.get(row.columns(), `SELECT `+itemColumns+` FROM items WHERE box = ? AND id = ?`, id, int64(n))
		if err != nil {
			return err
		}
		if ok {
			if err := t.drop(&is, row); err != nil {
				return err
			}
		}
	}
	return t.save(b, is)
}

// item is what an item counts.
type item struct {
	n, class, size int64
	tag            []byte
}

const itemColumns = `n, class, length(body), substr(body, 1, 16)`

func (i *item) columns() []any { return []any{&i.n, &i.class, &i.size, &i.tag} }

// drop deletes an item of b.
func (t *tx) drop(b *box, i item) error {
	b.items--
	if mailbox.Class(i.class) == mailbox.ClassRequest {
		b.requests -= i.size
	} else {
		b.mail -= i.size
	}
	return errors.Join(
		t.exec(`DELETE FROM items WHERE n = ?`, i.n),
		// A tag that was let go and registered anew counts from nothing.
		t.exec(`UPDATE tags SET bytes = max(0, bytes - ?) WHERE tag = ? AND box = ?`, i.size, i.tag, b.id))
}

// page reads what waits in a box after an item, up to limit bytes of it.
func (c *conn) page(id int64, after uint64, limit int) (*mailbox.Page, error) {
	p := &mailbox.Page{}
	if after > math.MaxInt64 {
		return p, nil
	}
	total := 0
	err := c.query(func(st *sqlite3.Stmt) bool {
		env := st.ColumnRawBlob(1)
		if total += len(env); len(p.Items) == mailbox.MaxItems || total > limit {
			p.More = true
			return false
		}
		p.Items = append(p.Items, mailbox.Item{ID: uint64(st.ColumnInt64(0)), Envelope: bytes.Clone(env)})
		return true
	}, `SELECT id, body FROM items WHERE box = ? AND id > ? ORDER BY id LIMIT 65`, id, int64(after))
	return p, err
}
