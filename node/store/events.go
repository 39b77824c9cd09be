package store

// EventRow is an entry of the event log.
type EventRow struct {
	ID   uint64 // rises by one; never reused
	Type string
	Time int64
	Data []byte // JSON object
}

// AddEvent appends to the event log, at a time and an age. contact is whom it is
// about: with the contact the event goes too; 0 for nobody.
func (tx *Tx) AddEvent(typ string, contact, now, age int64, data []byte) error {
	_, err := tx.exec(`INSERT INTO events (type, contact, time, born, data) VALUES (?, ?, ?, ?, ?)`, typ, contact, now, age, data)
	return err
}

// Events returns up to limit events after an id, in order.
func (tx *Tx) Events(after uint64, limit int) ([]EventRow, error) {
	var out []EventRow
	for r, err := range tx.query(`SELECT id, type, time, data FROM events WHERE id > ? ORDER BY id LIMIT ?`, after, limit) {
		if err != nil {
			return nil, err
		}
		var e EventRow
		if err := r.scan(&e.ID, &e.Type, &e.Time, &e.Data); err != nil {
			return nil, err
		}
		out = append(out, e)
	}
	return out, nil
}

// LastEvent returns the id of the newest event ever; 0 if there was none.
func (tx *Tx) LastEvent() (uint64, error) {
	var id uint64
	_, err := missing(tx.queryRow(`SELECT seq FROM sqlite_sequence WHERE name = 'events'`).scan(&id))
	return id, err
}

// Cursor returns the id up to which a cursor's owner has acknowledged; ok is
// false if there is no such cursor.
func (tx *Tx) Cursor(name string) (acked uint64, ok bool, err error) {
	ok, err = missing(tx.queryRow(`SELECT acked FROM cursors WHERE name = ?`, name).scan(&acked))
	return acked, ok, err
}

// CountCursors returns how many cursors exist.
func (tx *Tx) CountCursors() (int, error) {
	var n int
	err := tx.queryRow(`SELECT count(*) FROM cursors`).scan(&n)
	return n, err
}

// SetCursor creates a cursor or moves it forward; it never moves back.
func (tx *Tx) SetCursor(name string, acked uint64, age int64) error {
	_, err := tx.exec(`INSERT INTO cursors (name, acked, used) VALUES (?, ?, ?)
		ON CONFLICT (name) DO UPDATE SET acked = max(acked, excluded.acked), used = excluded.used`, name, acked, age)
	return err
}

// PruneEvents drops events from before an age that every cursor has
// acknowledged. A cursor not used since the age unused no longer counts and is
// dropped.
func (tx *Tx) PruneEvents(before, unused int64) error {
	if _, err := tx.exec(`DELETE FROM cursors WHERE used < ?`, unused); err != nil {
		return err
	}
	n, err := tx.exec(`DELETE FROM events WHERE born < ? AND id <= (SELECT coalesce(min(acked), 9223372036854775807) FROM cursors)`, before)
	if n > 0 {
		tx.Erased()
	}
	return err
}
