package mailbox

import (
	"encoding/binary"
	"time"
)

// A server's clock is wrong by years, too, and is put right while mail waits.
// So a service has an age: milliseconds that it ran, by the monotonic clock, and
// between two runs what the wall says has passed, but never less than nothing
// nor more than maxAbsence. Mail may be kept for longer by the wall; it is never
// dropped early by a clock alone.

// maxAbsence bounds how much older a service becomes while nobody runs it.
const maxAbsence = 24 * time.Hour

// metaAge keeps the age and the wall's time it was saved at.
const metaAge = "age"

// age is the service's clock in this run.
type age struct {
	base  int64
	began time.Time // with its monotonic reading
}

// loadAge continues the clock of a file.
func loadAge(c *conn, wall time.Time) (age, error) {
	a := age{began: time.Now()}
	b, err := c.meta(metaAge)
	if err != nil {
		return a, err
	}
	if len(b) == 16 {
		away := wall.UnixMilli() - int64(binary.BigEndian.Uint64(b[8:]))
		a.base = int64(binary.BigEndian.Uint64(b)) + min(max(away, 0), maxAbsence.Milliseconds())
	}
	return a, nil
}

// now is the age in milliseconds.
func (a age) now() int64 { return a.base + time.Since(a.began).Milliseconds() }

func (a age) save(c *conn, wall time.Time) error {
	b := binary.BigEndian.AppendUint64(nil, uint64(a.now()))
	return c.setMeta(metaAge, binary.BigEndian.AppendUint64(b, uint64(wall.UnixMilli())))
}
