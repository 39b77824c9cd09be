package node

import (
	"encoding/binary"
	"errors"
	"time"

	"github.com/kith-im/kith/node/store"
)

// The clock on the wall is wrong by years, is put back, and jumps. Nothing that
// ends by itself, a message's life or a key's, may end early because of it. So
// a store has an age: milliseconds that the node was running, by the monotonic
// clock, and between two runs what the wall says has passed, but never less
// than nothing nor more than maxAbsence. Things may live longer by the wall;
// they never live shorter by a clock alone.

// maxAbsence bounds how much older a store becomes while nobody runs it.
const maxAbsence = 24 * time.Hour

// firstAge is where a new store begins, so that the past can be subtracted.
const firstAge = int64(400 * 24 * time.Hour / time.Millisecond)

// metaAge keeps the age and the wall's time it was saved at.
const metaAge = "age"

// age is a store's clock in this run.
type age struct {
	base  int64
	began time.Time // with its monotonic reading
}

// loadAge continues a store's clock.
func loadAge(tx *store.Tx, wall time.Time) (age, error) {
	a := age{base: firstAge, began: time.Now()}
	b, err := tx.Meta(metaAge)
	switch {
	case errors.Is(err, store.ErrNotFound):
	case err != nil:
		return a, err
	case len(b) == 16:
		away := wall.UnixMilli() - int64(binary.BigEndian.Uint64(b[8:]))
		a.base = int64(binary.BigEndian.Uint64(b)) + min(max(away, 0), maxAbsence.Milliseconds())
	}
	return a, a.save(tx, wall)
}

// now is the store's age in milliseconds.
func (a age) now() int64 { return a.base + time.Since(a.began).Milliseconds() }

func (a age) save(tx *store.Tx, wall time.Time) error {
	b := binary.BigEndian.AppendUint64(nil, uint64(a.now()))
	return tx.SetMeta(metaAge, binary.BigEndian.AppendUint64(b, uint64(wall.UnixMilli())))
}
