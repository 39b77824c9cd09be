package store

import (
	"bytes"
	"slices"
)

// BoxState is where a box of ours stands.
type BoxState int

// The states of a box. Only an active one is told to contacts.
const (
	BoxNew     BoxState = 1 // chosen, and not opened yet
	BoxActive  BoxState = 2
	BoxLeaving BoxState = 3 // emptied until nothing comes any more, then forgotten
	BoxRemoved BoxState = 4 // by the user: as BoxLeaving, and not taken again by itself
)

// Leaving says whether a box in this state is only emptied.
func (s BoxState) Leaving() bool { return s == BoxLeaving || s == BoxRemoved }

// BoxRow is a box of ours at a node.
type BoxRow struct {
	Node    []byte // peer id
	Address string // multiaddr with /p2p
	Key     []byte
	State   BoxState
	Chosen  bool  // by the user
	Left    int64 // age since which it is leaving
}

const tableBoxes = "boxes"

// Boxes returns our boxes.
func (tx *Tx) Boxes() ([]BoxRow, error) {
	var out []BoxRow
	for r, err := range tx.query(`SELECT node, address, key_sealed, state, chosen, left FROM boxes ORDER BY node`) {
		if err != nil {
			return nil, err
		}
		var b BoxRow
		var sealed []byte
		if err := r.scan(&b.Node, &b.Address, &sealed, &b.State, &b.Chosen, &b.Left); err != nil {
			return nil, err
		}
		if b.Key, err = tx.seal.open(tableBoxes, b.Node, sealed); err != nil {
			return nil, err
		}
		out = append(out, b)
	}
	return out, nil
}

// SaveBox adds a box or stores every field of it.
func (tx *Tx) SaveBox(b BoxRow) error {
	sealed, err := tx.seal.seal(tableBoxes, b.Node, b.Key)
	if err != nil {
		return err
	}
	_, err = tx.exec(`INSERT INTO boxes (node, address, key_sealed, state, chosen, left) VALUES (?, ?, ?, ?, ?, ?)
		ON CONFLICT (node) DO UPDATE SET address = excluded.address, key_sealed = excluded.key_sealed,
			state = excluded.state, chosen = excluded.chosen, left = excluded.left`,
		b.Node, b.Address, sealed, b.State, b.Chosen, b.Left)
	return err
}

// DeleteBox erases a box and its key.
func (tx *Tx) DeleteBox(node []byte) error {
	tx.Erased()
	_, err := tx.exec(`DELETE FROM boxes WHERE node = ?`, node)
	return err
}

// MailTag is a tag under which envelopes may be left for us.
type MailTag struct {
	Tag     []byte
	Session []byte // whose it is; nil: an invite's
}

// CountTags returns of how many sessions, and of how many invites, we accept tags.
func (tx *Tx) CountTags() (sessions, invites int, err error) {
	err = tx.queryRow(`SELECT count(DISTINCT session), count(DISTINCT invite) FROM tags`).scan(&sessions, &invites)
	return sessions, invites, err
}

// MailTags returns the tags that contacts who are not blocked, and people who
// answer invites, send under, in their own order, which says nothing. Of each
// session they are that of index 0 and the span ones that end skip below its last.
func (tx *Tx) MailTags(skip, span int) ([]MailTag, error) {
	var out []MailTag
	for r, err := range tx.query(`SELECT t.tag, t.session FROM tags t
		LEFT JOIN sessions s ON s.id = t.session LEFT JOIN devices d ON d.hash = s.device LEFT JOIN contacts c ON c.id = d.contact
		LEFT JOIN (SELECT session, max(idx) AS last FROM tags GROUP BY session) m ON m.session = t.session
		WHERE t.invite IS NOT NULL OR c.blocked = 0 AND (t.idx = 0 OR t.idx <= m.last - ?1 AND t.idx > m.last - ?1 - ?2)
		ORDER BY t.tag`, skip, span) {
		if err != nil {
			return nil, err
		}
		var t MailTag
		if err := r.scan(&t.Tag, &t.Session); err != nil {
			return nil, err
		}
		out = append(out, t)
	}
	return out, nil
}

// KeeperRow is what we know of a node that keeps mail.
type KeeperRow struct {
	Node     []byte // peer id
	Strikes  int64  // by what we saw ourselves
	Doubts   int64  // by what became of contacts' mail, which contacts can make look so
	Struck   int64  // age
	Failing  int64  // age; 0: it answers
	Seen     int64
	Probes   int64
	Lost     int64
	Evidence []byte // encoded by the node
}

// Keeper returns what we know of a node; of one we never met, nothing.
func (tx *Tx) Keeper(node []byte) (KeeperRow, error) {
	k := KeeperRow{Node: node}
	_, err := missing(tx.queryRow(`SELECT strikes, doubts, struck, failing, seen, probes, lost, evidence FROM keepers WHERE node = ?`, node).
		scan(&k.Strikes, &k.Doubts, &k.Struck, &k.Failing, &k.Seen, &k.Probes, &k.Lost, &k.Evidence))
	return k, err
}

// SaveKeeper stores what we know of a node.
func (tx *Tx) SaveKeeper(k KeeperRow) error {
	_, err := tx.exec(`INSERT INTO keepers (node, strikes, doubts, struck, failing, seen, probes, lost, evidence) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
		ON CONFLICT (node) DO UPDATE SET strikes = excluded.strikes, doubts = excluded.doubts, struck = excluded.struck, failing = excluded.failing,
			seen = excluded.seen, probes = excluded.probes, lost = excluded.lost, evidence = excluded.evidence`,
		k.Node, k.Strikes, k.Doubts, k.Struck, k.Failing, k.Seen, k.Probes, k.Lost, nullable(k.Evidence))
	return err
}

// DeviceBoxes returns what a contact's device told of its mailboxes, or
// ErrNotFound.
func (tx *Tx) DeviceBoxes(device []byte) ([]byte, error) {
	var b []byte
	err := tx.queryRow(`SELECT boxes FROM device_boxes WHERE device = ?`, device).scan(&b)
	return b, err
}

// SaveDeviceBoxes stores what a contact's device told of its mailboxes.
func (tx *Tx) SaveDeviceBoxes(device, boxes []byte) error {
	_, err := tx.exec(`INSERT INTO device_boxes (device, boxes) VALUES (?, ?)
		ON CONFLICT (device) DO UPDATE SET boxes = excluded.boxes`, device, boxes)
	return err
}

// DepositRow is an open delivery that is to be left at mailboxes.
type DepositRow struct {
	DeliveryRow

	Rounds int   // how often enough nodes have taken it
	Held   bool  // the node that was asked about has given a receipt for it that is good
	Asked  int64 // age when that node signed for it, or last proved that it is there
}

// Deposits returns up to limit open deliveries to a device that come after a
// delivery and are due for mailboxes, in the order of sending, with their envelopes.
func (tx *Tx) Deposits(device, node []byte, after, age int64, limit int) ([]DepositRow, error) {
	var out []DepositRow
	for r, err := range tx.query(`SELECT `+deliveryColumns+`, e.bytes, coalesce(p.rounds, 0), h.delivery IS NOT NULL, coalesce(h.asked, 0)
		FROM `+deliveryTables+` JOIN envelopes e ON e.delivery = d.id LEFT JOIN deposits p ON p.delivery = d.id
			LEFT JOIN holdings h ON h.delivery = d.id AND h.node = ?1 AND h.until > ?4
		WHERE d.device = ?2 AND d.id > ?3 AND d.open = 1 AND coalesce(p.due, d.due) <= ?4 AND d.expires > ?4 ORDER BY d.id LIMIT ?5`,
		node, device, after, age, limit) {
		if err != nil {
			return nil, err
		}
		var d DepositRow
		if err := r.scan(append(d.columns(), &d.Envelope, &d.Rounds, &d.Held, &d.Asked)...); err != nil {
			return nil, err
		}
		out = append(out, d)
	}
	return out, nil
}

// NextDeposit returns when the next open delivery to a device is due for
// mailboxes, and whether a message is among those due by then; ok is false if
// nothing is open.
func (tx *Tx) NextDeposit(device []byte, age int64) (due int64, message, ok bool, err error) {
	err = tx.queryRow(`SELECT count(*) > 0, coalesce(min(coalesce(p.due, d.due)), 0),
			count(CASE WHEN d.message IS NOT NULL AND coalesce(p.due, d.due) <= ?2 THEN 1 END) > 0
		FROM deliveries d LEFT JOIN deposits p ON p.delivery = d.id WHERE d.device = ?1 AND d.open = 1`, device, age).scan(&ok, &due, &message)
	return due, message, ok, err
}

// Envelope returns the bytes of an open delivery, or ErrNotFound.
func (tx *Tx) Envelope(delivery int64) (b []byte, err error) {
	err = tx.queryRow(`SELECT bytes FROM envelopes WHERE delivery = ?`, delivery).scan(&b)
	return b, err
}

// SetDeposit stores how often a delivery was left at mailboxes and when it is
// next.
func (tx *Tx) SetDeposit(delivery int64, rounds int, due int64) error {
	_, err := tx.exec(`INSERT INTO deposits (delivery, rounds, due) VALUES (?, ?, ?)
		ON CONFLICT (delivery) DO UPDATE SET rounds = excluded.rounds, due = excluded.due`, delivery, rounds, due)
	return err
}

// DepositRounds returns how often enough nodes have taken a delivery.
func (tx *Tx) DepositRounds(delivery int64) (rounds int, err error) {
	_, err = missing(tx.queryRow(`SELECT rounds FROM deposits WHERE delivery = ?`, delivery).scan(&rounds))
	return rounds, err
}

// AddHolding notes a node's receipt for a delivery, of an age and good until another.
func (tx *Tx) AddHolding(delivery int64, node []byte, age, until int64) error {
	_, err := tx.exec(`INSERT INTO holdings (delivery, node, asked, until) VALUES (?, ?, ?, ?)
		ON CONFLICT (delivery, node) DO UPDATE SET asked = excluded.asked, until = excluded.until`, delivery, node, age, until)
	return err
}

// ProveHolding notes that a node which gave a receipt has what it signed for at an age.
func (tx *Tx) ProveHolding(delivery int64, node []byte, age int64) error {
	_, err := tx.exec(`UPDATE holdings SET asked = ? WHERE delivery = ? AND node = ?`, age, delivery, node)
	return err
}

// DropHolding forgets a node's receipt: it does not have the envelope.
func (tx *Tx) DropHolding(delivery int64, node []byte) error {
	_, err := tx.exec(`DELETE FROM holdings WHERE delivery = ? AND node = ?`, delivery, node)
	return err
}

// ForgetDeposits forgets what mailboxes were given of a delivery.
func (tx *Tx) ForgetDeposits(delivery int64) error {
	if _, err := tx.exec(`DELETE FROM holdings WHERE delivery = ?`, delivery); err != nil {
		return err
	}
	_, err := tx.exec(`DELETE FROM deposits WHERE delivery = ?`, delivery)
	return err
}

// HoldingRow is a node's receipt for a delivery.
type HoldingRow struct {
	Node  []byte
	Until int64 // age
}

// Holdings returns the receipts for a delivery that are good at an age.
func (tx *Tx) Holdings(delivery, age int64) (out []HoldingRow, err error) {
	for r, err := range tx.query(`SELECT node, until FROM holdings WHERE delivery = ? AND until > ?`, delivery, age) {
		if err != nil {
			return nil, err
		}
		var h HoldingRow
		if err := r.scan(&h.Node, &h.Until); err != nil {
			return nil, err
		}
		out = append(out, h)
	}
	return out, nil
}

// ReceiptRow is a node's receipt for an envelope.
type ReceiptRow struct {
	Envelope []byte // the beginning of its digest
	Node     []byte
}

// AddTelling notes a receipt that a contact is to be told of.
func (tx *Tx) AddTelling(contact int64, r ReceiptRow, age int64) error {
	_, err := tx.exec(`INSERT OR IGNORE INTO telling (contact, envelope, node, age) VALUES (?, ?, ?, ?)`, contact, r.Envelope, r.Node, age)
	return err
}

// TakeTelling forgets what a contact is to be told of, and returns it, of at
// most limit envelopes, in their order. If none of it is as old as before, it
// waits.
func (tx *Tx) TakeTelling(contact, before int64, limit int) (out []ReceiptRow, err error) {
	var due bool
	if err := tx.queryRow(`SELECT coalesce(min(age) <= ?2, 0) FROM telling WHERE contact = ?1`, contact, before).scan(&due); err != nil || !due {
		return nil, err
	}
	for r, err := range tx.query(`SELECT envelope, node FROM telling WHERE contact = ?1 AND envelope IN (
			SELECT envelope FROM telling WHERE contact = ?1 GROUP BY envelope ORDER BY max(age) DESC LIMIT ?2
		) ORDER BY envelope, node`, contact, limit) {
		if err != nil {
			return nil, err
		}
		var row ReceiptRow
		if err := r.scan(&row.Envelope, &row.Node); err != nil {
			return nil, err
		}
		out = append(out, row)
	}
	_, err = tx.exec(`DELETE FROM telling WHERE contact = ?`, contact)
	return out, err
}

// AddHanded notes that a mailbox of ours handed out an envelope.
func (tx *Tx) AddHanded(r ReceiptRow, age int64) error {
	_, err := tx.exec(`INSERT OR IGNORE INTO handed (node, envelope, age) VALUES (?, ?, ?)`, r.Node, r.Envelope, age)
	return err
}

// AddClaim notes a receipt of a mailbox of ours that a contact tells of, if
// others of our mailboxes have handed the envelope out and this one has not.
func (tx *Tx) AddClaim(contact int64, r ReceiptRow, age int64) error {
	_, err := tx.exec(`INSERT OR IGNORE INTO claims (node, envelope, contact, age) SELECT ?1, ?2, ?3, ?4
		WHERE EXISTS (SELECT 1 FROM handed WHERE envelope = ?2) AND NOT EXISTS (SELECT 1 FROM handed WHERE envelope = ?2 AND node = ?1)
			AND EXISTS (SELECT 1 FROM boxes WHERE node = ?1)`, r.Node, r.Envelope, contact, age)
	return err
}

// Claims returns how many claims about a node are as old as before.
func (tx *Tx) Claims(node []byte, before int64) (n int, err error) {
	err = tx.queryRow(`SELECT count(*) FROM claims WHERE node = ? AND age <= ?`, node, before).scan(&n)
	return n, err
}

// SettleClaims forgets the claims about a node that are as old as before, and
// returns how many contacts made one that still holds.
func (tx *Tx) SettleClaims(node []byte, before int64) (contacts int, err error) {
	if err := tx.queryRow(`SELECT count(DISTINCT contact) FROM claims c WHERE node = ?1 AND age <= ?2
		AND NOT EXISTS (SELECT 1 FROM handed h WHERE h.envelope = c.envelope AND h.node = ?1)`, node, before).scan(&contacts); err != nil {
		return 0, err
	}
	_, err = tx.exec(`DELETE FROM claims WHERE node = ? AND age <= ?`, node, before)
	return contacts, err
}

// ForgetHanded forgets what is older than an age of what mailboxes handed out
// and what is said of them, and of each mailbox all but the newest.
func (tx *Tx) ForgetHanded(before int64, newest int) error {
	for _, table := range []string{"handed", "claims", "telling"} {
		if _, err := tx.exec(`DELETE FROM `+table+` WHERE age < ?`, before); err != nil {
			return err
		}
	}
	var crowded [][]byte
	for r, err := range tx.query(`SELECT node FROM handed GROUP BY node HAVING count(*) > ?`, newest) {
		if err != nil {
			return err
		}
		var node []byte
		if err := r.scan(&node); err != nil {
			return err
		}
		crowded = append(crowded, node)
	}
	for _, node := range crowded {
		if _, err := tx.exec(`DELETE FROM handed WHERE node = ?1 AND envelope NOT IN (
			SELECT envelope FROM handed WHERE node = ?1 ORDER BY age DESC LIMIT ?2)`, node, newest); err != nil {
			return err
		}
	}
	return nil
}

// KeepHoldings forgets the receipts of all nodes but these for the open
// deliveries to a device, and makes those due at an age of which fewer than
// enough are left.
func (tx *Tx) KeepHoldings(device []byte, nodes [][]byte, enough int, age int64) error {
	type receipt struct {
		delivery int64
		node     []byte
	}
	var gone []receipt
	for r, err := range tx.query(`SELECT h.delivery, h.node FROM holdings h JOIN deliveries d ON d.id = h.delivery
		WHERE d.device = ? AND d.open = 1`, device) {
		if err != nil {
			return err
		}
		var h receipt
		if err := r.scan(&h.delivery, &h.node); err != nil {
			return err
		}
		if !slices.ContainsFunc(nodes, func(n []byte) bool { return bytes.Equal(n, h.node) }) {
			gone = append(gone, h)
		}
	}
	for _, h := range gone {
		if err := tx.DropHolding(h.delivery, h.node); err != nil {
			return err
		}
		if _, err := tx.exec(`UPDATE deposits SET due = min(due, ?2) WHERE delivery = ?1
			AND (SELECT count(*) FROM holdings WHERE delivery = ?1 AND until > ?2) < ?3`, h.delivery, age, enough); err != nil {
			return err
		}
	}
	return nil
}
