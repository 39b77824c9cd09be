package store

// MessageRow is a message of a conversation, sent or received.
type MessageRow struct {
	N        int64 // in the order of arrival; set by AddMessage
	ID       []byte
	Contact  int64
	Author   []byte // device hash
	Mine     bool
	Seq      uint64 // the author's count in the conversation
	Depth    uint64
	Received int64
	Owed     bool // of a received message: its receipt was held back
	Gone     int  // why it will never come or was taken back; 0: it is here
	Wire     []byte
}

const messageColumns = `n, id, contact, author, mine, seq, depth, received, owed, gone, wire`

func (tx *Tx) messages(sql string, args ...any) ([]MessageRow, error) {
	var out []MessageRow
	for r, err := range tx.query(sql, args...) {
		if err != nil {
			return nil, err
		}
		var m MessageRow
		if err := r.scan(&m.N, &m.ID, &m.Contact, &m.Author, &m.Mine, &m.Seq, &m.Depth, &m.Received, &m.Owed, &m.Gone, &m.Wire); err != nil {
			return nil, err
		}
		out = append(out, m)
	}
	return out, nil
}

func (tx *Tx) message(sql string, args ...any) (MessageRow, error) {
	ms, err := tx.messages(sql, args...)
	switch {
	case err != nil:
		return MessageRow{}, err
	case len(ms) == 0:
		return MessageRow{}, ErrNotFound
	}
	return ms[0], nil
}

// Message returns one message, or ErrNotFound.
func (tx *Tx) Message(id []byte) (MessageRow, error) {
	return tx.message(`SELECT `+messageColumns+` FROM messages WHERE id = ?`, id)
}

// MessageBySeq returns the message with that place in its author's chain, or
// ErrNotFound.
func (tx *Tx) MessageBySeq(contact int64, author []byte, seq uint64) (MessageRow, error) {
	return tx.message(`SELECT `+messageColumns+` FROM messages WHERE contact = ? AND author = ? AND seq = ?`, contact, author, seq)
}

// SeqBefore returns the highest place below seq that is filled in an author's
// chain; 0 if none is.
func (tx *Tx) SeqBefore(contact int64, author []byte, seq uint64) (uint64, error) {
	var n uint64
	err := tx.queryRow(`SELECT coalesce(max(seq), 0) FROM messages WHERE contact = ? AND author = ? AND seq < ?`, contact, author, seq).scan(&n)
	return n, err
}

// A Gap is a run of places in a chain that no message fills.
type Gap struct {
	First, Last uint64
}

// gapHorizon is how many of an author's newest messages Gaps looks at.
const gapHorizon = 4096

// Gaps returns up to limit gaps among an author's newest messages, ascending.
func (tx *Tx) Gaps(contact int64, author []byte, limit int) ([]Gap, error) {
	var out []Gap
	for r, err := range tx.query(`SELECT below + 1, seq - 1 FROM (
			SELECT seq, lag(seq, 1, CASE WHEN full THEN seq - 1 ELSE 0 END) OVER (ORDER BY seq) AS below FROM (
				SELECT seq, count(*) OVER () = ?3 AS full FROM (
					SELECT seq FROM messages WHERE contact = ?1 AND author = ?2 ORDER BY seq DESC LIMIT ?3)))
		WHERE below + 1 < seq ORDER BY seq LIMIT ?4`, contact, author, gapHorizon, limit) {
		if err != nil {
			return nil, err
		}
		var g Gap
		if err := r.scan(&g.First, &g.Last); err != nil {
			return nil, err
		}
		out = append(out, g)
	}
	return out, nil
}

// MessagesByPrefix returns up to limit messages with ids from low to high.
func (tx *Tx) MessagesByPrefix(low, high []byte, limit int) ([]MessageRow, error) {
	return tx.messages(`SELECT `+messageColumns+` FROM messages WHERE id >= ? AND id <= ? LIMIT ?`, low, high, limit)
}

// LastMessages returns the last limit messages of a conversation that stand
// before a message, in conversation order; with before nil, the very last.
func (tx *Tx) LastMessages(contact int64, before *MessageRow, limit int) ([]MessageRow, error) {
	var ms []MessageRow
	var err error
	if before == nil {
		ms, err = tx.messages(`SELECT `+messageColumns+` FROM messages WHERE contact = ? AND gone = 0
			ORDER BY depth DESC, author DESC, seq DESC LIMIT ?`, contact, limit)
	} else {
		ms, err = tx.messages(`SELECT `+messageColumns+` FROM messages WHERE contact = ? AND gone = 0
			AND (depth, author, seq) < (?, ?, ?) ORDER BY depth DESC, author DESC, seq DESC LIMIT ?`,
			contact, before.Depth, before.Author, before.Seq, limit)
	}
	for i, j := 0, len(ms)-1; i < j; i, j = i+1, j-1 {
		ms[i], ms[j] = ms[j], ms[i]
	}
	return ms, err
}

// NextMessages returns the first limit messages of a conversation that stand
// after a message, in conversation order.
func (tx *Tx) NextMessages(contact int64, after MessageRow, limit int) ([]MessageRow, error) {
	return tx.messages(`SELECT `+messageColumns+` FROM messages WHERE contact = ? AND gone = 0
		AND (depth, author, seq) > (?, ?, ?) ORDER BY depth, author, seq LIMIT ?`,
		contact, after.Depth, after.Author, after.Seq, limit)
}

// CountMessages returns how many messages a conversation shows.
func (tx *Tx) CountMessages(contact int64) (int64, error) {
	var n int64
	err := tx.queryRow(`SELECT count(*) FROM messages WHERE contact = ? AND gone = 0`, contact).scan(&n)
	return n, err
}

// AddMessage adds a message and sets its N. It adds nothing, and says so, if
// its id or its place in its author's chain is taken.
func (tx *Tx) AddMessage(m *MessageRow) (added bool, err error) {
	if m.Wire == nil {
		m.Wire = []byte{}
	}
	n, err := tx.exec(`INSERT INTO messages (id, contact, author, mine, seq, depth, received, owed, gone, wire)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING`,
		m.ID, m.Contact, m.Author, m.Mine, m.Seq, m.Depth, m.Received, m.Owed, m.Gone, m.Wire)
	if err != nil || n == 0 {
		return false, err
	}
	m.N = tx.conn.db.LastInsertRowID()
	return true, nil
}

// SetGone erases the content of a message, in the event log too, and keeps its
// place. text is the id as events show it.
func (tx *Tx) SetGone(m MessageRow, reason int, text string) error {
	tx.Erased()
	if _, err := tx.exec(`UPDATE messages SET gone = ?, wire = x'' WHERE n = ?`, reason, m.N); err != nil {
		return err
	}
	_, err := tx.exec(`DELETE FROM events WHERE contact = ? AND type = 'message' AND instr(data, ?) > 0`, m.Contact, text)
	return err
}

// TakeOwedReceipts returns the ids of up to limit received messages of a
// conversation whose receipt was held back. They are no longer owed.
func (tx *Tx) TakeOwedReceipts(contact int64, limit int) ([][]byte, error) {
	var ids [][]byte
	for r, err := range tx.query(`UPDATE messages SET owed = 0 WHERE n IN (
		SELECT n FROM messages WHERE contact = ? AND owed = 1 LIMIT ?) RETURNING id`, contact, limit) {
		if err != nil {
			return nil, err
		}
		var id []byte
		if err := r.scan(&id); err != nil {
			return nil, err
		}
		ids = append(ids, id)
	}
	return ids, nil
}

// OweReceipt holds a message's receipt back.
func (tx *Tx) OweReceipt(id []byte) error {
	_, err := tx.exec(`UPDATE messages SET owed = 1 WHERE id = ?`, id)
	return err
}

// ChainRow is the end of one author's chain in a conversation.
type ChainRow struct {
	Contact int64
	Author  []byte
	Seq     uint64
	ID      []byte
	Depth   uint64
	Cited   bool  // our own newest message names it as a parent
	Asked   int64 // age at which a gap below it was last asked for, or, of our own, answered
	Kept    int64 // bytes of the messages received of it
}

// Chains returns the chains of a conversation.
func (tx *Tx) Chains(contact int64) ([]ChainRow, error) {
	var out []ChainRow
	for r, err := range tx.query(`SELECT contact, author, seq, id, depth, cited, asked, kept FROM chains WHERE contact = ? ORDER BY author`, contact) {
		if err != nil {
			return nil, err
		}
		var c ChainRow
		if err := r.scan(&c.Contact, &c.Author, &c.Seq, &c.ID, &c.Depth, &c.Cited, &c.Asked, &c.Kept); err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	return out, nil
}

// SaveChain adds a chain or stores its new end.
func (tx *Tx) SaveChain(c ChainRow) error {
	_, err := tx.exec(`INSERT INTO chains (contact, author, seq, id, depth, cited, asked, kept) VALUES (?, ?, ?, ?, ?, ?, ?, ?)
		ON CONFLICT (contact, author) DO UPDATE SET seq = excluded.seq, id = excluded.id, depth = excluded.depth,
			cited = excluded.cited, asked = excluded.asked, kept = excluded.kept`, c.Contact, c.Author, c.Seq, c.ID, c.Depth, c.Cited, c.Asked, c.Kept)
	return err
}

// Idempotent returns the messages that an earlier request with the same key
// made in a conversation; ok is false if there was none.
func (tx *Tx) Idempotent(key string) (contact int64, messages []byte, ok bool, err error) {
	ok, err = missing(tx.queryRow(`SELECT contact, messages FROM idempotency WHERE key = ?`, key).scan(&contact, &messages))
	return contact, messages, ok, err
}

// RememberIdempotent keeps which messages a request with that key made.
func (tx *Tx) RememberIdempotent(key string, contact int64, messages []byte, age int64) error {
	_, err := tx.exec(`INSERT INTO idempotency (key, contact, messages, born) VALUES (?, ?, ?, ?)`, key, contact, messages, age)
	return err
}

// ForgetIdempotent drops keys from before an age.
func (tx *Tx) ForgetIdempotent(before int64) error {
	_, err := tx.exec(`DELETE FROM idempotency WHERE born < ?`, before)
	return err
}
