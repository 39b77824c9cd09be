package store

// DeliveryState is where a message stands on its way to one device. It only
// moves forward; node/ledger.go draws the diagram.
type DeliveryState int

// The states of a delivery.
const (
	DeliveryQueued    DeliveryState = 1 // committed here
	DeliverySent      DeliveryState = 2 // the device's daemon took it
	DeliveryHeld      DeliveryState = 3 // mailboxes hold it
	DeliveryDelivered DeliveryState = 4 // the device's receipt is here
	DeliveryRead      DeliveryState = 5
	DeliveryFailed    DeliveryState = 6
	DeliveryExpired   DeliveryState = 7
	DeliveryCancelled DeliveryState = 8
)

// DeliveryRow is what is to reach one device: a message, or a control message.
type DeliveryRow struct {
	ID        int64 // in the order of sending
	Device    []byte
	Contact   int64
	Message   []byte // id; nil: a control message
	Open      bool   // its envelope is still to be sent, or receipted
	TagIndex  uint32
	State     DeliveryState
	Reason    string
	Attempts  []byte // encoded by the node
	Due       int64  // age before which it is not offered again
	Expires   int64  // age
	Delivered int64

	Envelope []byte // only Outbox fills it in
}

const (
	deliveryColumns = `d.id, d.device, d.contact, m.id, d.open, d.tag_index, d.state, d.reason, d.attempts, d.due, d.expires, d.delivered`
	deliveryTables  = `deliveries d LEFT JOIN messages m ON m.n = d.message`
)

func (d *DeliveryRow) columns() []any {
	return []any{&d.ID, &d.Device, &d.Contact, &d.Message, &d.Open, &d.TagIndex, &d.State, &d.Reason, &d.Attempts, &d.Due, &d.Expires, &d.Delivered}
}

func (tx *Tx) deliveries(where string, args ...any) ([]DeliveryRow, error) {
	var out []DeliveryRow
	for r, err := range tx.query(`SELECT `+deliveryColumns+` FROM `+deliveryTables+` WHERE `+where, args...) {
		if err != nil {
			return nil, err
		}
		var d DeliveryRow
		if err := r.scan(d.columns()...); err != nil {
			return nil, err
		}
		out = append(out, d)
	}
	return out, nil
}

func (tx *Tx) delivery(where string, args ...any) (DeliveryRow, error) {
	ds, err := tx.deliveries(where, args...)
	switch {
	case err != nil:
		return DeliveryRow{}, err
	case len(ds) == 0:
		return DeliveryRow{}, ErrNotFound
	}
	return ds[0], nil
}

// AddDelivery puts an envelope into the outbox of a device. message is the N
// of the message it holds; 0 for a control message.
func (tx *Tx) AddDelivery(d DeliveryRow, message int64) error {
	var n any
	if message != 0 {
		n = message
	}
	if _, err := tx.exec(`INSERT INTO deliveries (device, contact, message, open, tag_index, state, due, expires)
		VALUES (?, ?, ?, 1, ?, ?, ?, ?)`, d.Device, d.Contact, n, d.TagIndex, d.State, d.Due, d.Expires); err != nil {
		return err
	}
	_, err := tx.exec(`INSERT INTO envelopes (delivery, bytes) VALUES (?, ?)`, tx.conn.db.LastInsertRowID(), d.Envelope)
	return err
}

// Outbox returns up to limit open deliveries to a device that come after a
// delivery, are due at a time and have not expired now, in the order of
// sending, with their envelopes.
func (tx *Tx) Outbox(device []byte, after, due, now int64, limit int) ([]DeliveryRow, error) {
	var out []DeliveryRow
	for r, err := range tx.query(`SELECT `+deliveryColumns+`, e.bytes FROM `+deliveryTables+` JOIN envelopes e ON e.delivery = d.id
		WHERE d.device = ? AND d.id > ? AND d.open = 1 AND d.due <= ? AND d.expires > ? ORDER BY d.id LIMIT ?`, device, after, due, now, limit) {
		if err != nil {
			return nil, err
		}
		var d DeliveryRow
		if err := r.scan(append(d.columns(), &d.Envelope)...); err != nil {
			return nil, err
		}
		out = append(out, d)
	}
	return out, nil
}

// OpenDeliveries returns the ledger rows of everything that waits for a device,
// in the order of sending.
func (tx *Tx) OpenDeliveries(device []byte) ([]DeliveryRow, error) {
	return tx.deliveries(`d.device = ? AND d.open = 1 ORDER BY d.id`, device)
}

// NextDue returns when the next envelope for a device is due; ok is false if
// its outbox is empty.
func (tx *Tx) NextDue(device []byte) (due int64, ok bool, err error) {
	var open bool
	if err := tx.queryRow(`SELECT count(*) > 0, coalesce(min(due), 0) FROM deliveries WHERE device = ? AND open = 1`, device).scan(&open, &due); err != nil {
		return 0, false, err
	}
	return due, open, nil
}

// CountOutbox returns how many envelopes wait, for all devices.
func (tx *Tx) CountOutbox() (int64, error) {
	var n int64
	err := tx.queryRow(`SELECT count(*) FROM envelopes`).scan(&n)
	return n, err
}

// Deliveries returns the ledger of a message, a row per device.
func (tx *Tx) Deliveries(message MessageRow) ([]DeliveryRow, error) {
	return tx.deliveries(`d.message = ? ORDER BY d.device, d.id`, message.N)
}

// Delivery returns the newest ledger row of a message, by its id, and a device,
// or ErrNotFound.
func (tx *Tx) Delivery(message, device []byte) (DeliveryRow, error) {
	return tx.delivery(`d.message = (SELECT n FROM messages WHERE id = ?) AND d.device = ? ORDER BY d.id DESC LIMIT 1`, message, device)
}

// NextExpiry returns the age at which the next open delivery expires; the
// largest number if none does.
func (tx *Tx) NextExpiry() (int64, error) {
	var at int64
	err := tx.queryRow(`SELECT coalesce(min(expires), 9223372036854775807) FROM deliveries WHERE open = 1`).scan(&at)
	return at, err
}

// DeliveryByID returns one delivery, or ErrNotFound.
func (tx *Tx) DeliveryByID(id int64) (DeliveryRow, error) {
	return tx.delivery(`d.id = ?`, id)
}

// Reseal replaces the envelope of an open delivery and has it offered at once.
func (tx *Tx) Reseal(id int64, envelope []byte, tagIndex uint32) error {
	if _, err := tx.exec(`UPDATE deliveries SET tag_index = ?, due = 0 WHERE id = ?`, tagIndex, id); err != nil {
		return err
	}
	_, err := tx.exec(`UPDATE envelopes SET bytes = ? WHERE delivery = ?`, envelope, id)
	return err
}

// SaveDelivery stores what can change of a delivery. If it is no longer open
// its envelope is erased.
func (tx *Tx) SaveDelivery(d DeliveryRow) error {
	if _, err := tx.exec(`UPDATE deliveries SET open = ?, state = ?, reason = ?, attempts = ?, due = ?, delivered = ? WHERE id = ?`,
		d.Open, d.State, d.Reason, nullable(d.Attempts), d.Due, d.Delivered, d.ID); err != nil || d.Open {
		return err
	}
	_, err := tx.exec(`DELETE FROM envelopes WHERE delivery = ?`, d.ID)
	return err
}

// DeleteDelivery removes a control message that was taken.
func (tx *Tx) DeleteDelivery(id int64) error {
	_, err := tx.exec(`DELETE FROM deliveries WHERE id = ?`, id)
	return err
}

// ExpiredDeliveries returns up to limit open deliveries whose time is over.
func (tx *Tx) ExpiredDeliveries(now int64, limit int) ([]DeliveryRow, error) {
	return tx.deliveries(`d.open = 1 AND d.expires < ? LIMIT ?`, now, limit)
}
