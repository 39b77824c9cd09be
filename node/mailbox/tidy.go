package mailbox

import (
	"context"
	"errors"
	"time"

	"github.com/ncruces/go-sqlite3"
)

const (
	// tidyEvery is how often the age is saved, and what has ended is dropped.
	tidyEvery = 10 * time.Minute
	// tidyStep bounds the items, or tags, that one change drops, so that
	// streams get their turn in between.
	tidyStep int64 = 256
)

// tidy drops what has ended until ctx does, or until writing failed.
func (s *Service) tidy(ctx context.Context) error {
	ticker := time.NewTicker(tidyEvery)
	defer ticker.Stop()
	for {
		if err := s.tidyOnce(ctx); err != nil && ctx.Err() == nil && !errors.Is(err, errFailed) {
			s.log.Warn("what has expired could not be dropped; it is tried again", "cause", err)
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return nil
		case <-s.failed:
			return errFailed
		}
	}
}

func (s *Service) tidyOnce(ctx context.Context) error {
	s.sources.forget()
	if err := s.reclaim(ctx, func(t *tx) error { return t.saveAge(s) }); err != nil {
		return err
	}
	for _, step := range []func(*tx) (dropped int64, more bool, err error){(*tx).expire, (*tx).abandon} {
		for more := true; more; {
			var dropped int64
			err := s.reclaim(ctx, func(t *tx) (err error) {
				dropped, more, err = step(t)
				return err
			})
			if err != nil {
				return err
			}
			s.counters.expired.Add(dropped)
		}
	}
	return nil
}

func (t *tx) saveAge(s *Service) error { return s.age.save(t.conn, s.wall()) }

// expire drops items whose time is over, and says how many, and whether there may
// be more.
func (t *tx) expire() (dropped int64, more bool, err error) {
	type owned struct {
		item
		box int64
	}
	var found []owned
	err = t.query(func(st *sqlite3.Stmt) bool {
		found = append(found, owned{box: st.ColumnInt64(0), item: item{
			n: st.ColumnInt64(1), class: st.ColumnInt64(2), size: st.ColumnInt64(3), tag: st.ColumnBlob(4, nil),
		}})
		return true
	}, `SELECT box, `+itemColumns+` FROM items WHERE until <= ? ORDER BY until LIMIT ?`, t.age, tidyStep)
	if err != nil {
		return 0, false, err
	}
	for _, i := range found {
		b, ok, err := t.byID(i.box)
		if err != nil {
			return 0, false, err
		}
		is := b
		if err := t.drop(&is, i.item); err != nil {
			return 0, false, err
		}
		if ok {
			if err := t.save(b, is); err != nil {
				return 0, false, err
			}
		}
	}
	return int64(len(found)), int64(len(found)) == tidyStep, nil
}

// abandon lets go of a part of a box whose owner has not come for long: first of
// its tags, so that nothing more comes, and when what was signed for is over, of
// the box.
func (t *tx) abandon() (_ int64, more bool, err error) {
	var b box
	ok, err := t.get(b.columns(), `SELECT `+boxColumns+` FROM boxes WHERE seen <= ? AND (tags > 0 OR items = 0) LIMIT 1`,
		t.age-t.set.idle().Milliseconds())
	if err != nil || !ok {
		return 0, false, err
	}
	err = t.exec(`DELETE FROM tags WHERE (tag, since, box) IN (SELECT tag, since, box FROM tags WHERE box = ? LIMIT ?)`, b.id, tidyStep)
	if err != nil {
		return 0, false, err
	}
	is := b
	if is.tags -= t.db.Changes(); is.tags > 0 || is.items > 0 {
		return 0, is.tags < b.tags, t.save(b, is)
	}
	if err := t.save(b, is); err != nil {
		return 0, false, err
	}
	t.use.boxes--
	t.use.groups[b.group].boxes--
	return 0, true, t.exec(`DELETE FROM boxes WHERE id = ?`, b.id)
}
