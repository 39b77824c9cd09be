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
	Message   []byte // nil: a control message
	Envelope  []byte // nil: nothing left to send
	TagIndex  uint32
	State     DeliveryState
	Reason    string
	Attempts  []byte // encoded by the node
	Due       int64  // not offered again before
	Expires   int64
	Delivered int64
}

const deliveryColumns = `id, device, contact, message, envelope, tag_index, state, reason, attempts, due, expires, delivered`

func (tx *Tx) deliveries(sql string, args ...any) ([]DeliveryRow, error) {
	var out []DeliveryRow
	for r, err := range tx.query(sql, args...) {
		if err != nil {
			return nil, err
		}
		var d DeliveryRow
		if err := r.scan(&d.ID, &d.Device, &d.Contact, &d.Message, &d.Envelope, &d.TagIndex, &d.State, &d.Reason,
			&d.Attempts, &d.Due, &d.Expires, &d.Delivered); err != nil {
			return nil, err
		}
		out = append(out, d)
	}
	return out, nil
}

// AddDelivery puts an envelope into the outbox of a device.
func (tx *Tx) AddDelivery(d DeliveryRow) error {
	_, err := tx.exec(`INSERT INTO deliveries (device, contact, message, envelope, tag_index, state, due, expires)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?)`,
		d.Device, d.Contact, nullable(d.Message), d.Envelope, d.TagIndex, d.State, d.Due, d.Expires)
	return err
}

// Outbox returns up to limit envelopes for a device that are due and come
// after a delivery, in the order of sending.
func (tx *Tx) Outbox(device []byte, after, now int64, limit int) ([]DeliveryRow, error) {
	return tx.deliveries(`SELECT `+deliveryColumns+` FROM deliveries
		WHERE device = ? AND id > ? AND envelope IS NOT NULL AND due <= ? ORDER BY id LIMIT ?`, device, after, now, limit)
}

// NextDue returns when the next envelope for a device is due; ok is false if
// its outbox is empty.
func (tx *Tx) NextDue(device []byte) (due int64, ok bool, err error) {
	ok, err = missing(tx.queryRow(`SELECT due FROM deliveries WHERE device = ? AND envelope IS NOT NULL ORDER BY due LIMIT 1`, device).scan(&due))
	return due, ok, err
}

// CountOutbox returns how many envelopes wait, for all devices.
func (tx *Tx) CountOutbox() (int64, error) {
	var n int64
	err := tx.queryRow(`SELECT count(*) FROM deliveries WHERE envelope IS NOT NULL`).scan(&n)
	return n, err
}

// Deliveries returns the ledger of a message, a row per device.
func (tx *Tx) Deliveries(message []byte) ([]DeliveryRow, error) {
	return tx.deliveries(`SELECT `+deliveryColumns+` FROM deliveries WHERE message = ? ORDER BY device, id`, message)
}

// Delivery returns the ledger row of a message and a device, or ErrNotFound.
func (tx *Tx) Delivery(message, device []byte) (DeliveryRow, error) {
	ds, err := tx.deliveries(`SELECT `+deliveryColumns+` FROM deliveries WHERE message = ? AND device = ? ORDER BY id DESC LIMIT 1`, message, device)
	switch {
	case err != nil:
		return DeliveryRow{}, err
	case len(ds) == 0:
		return DeliveryRow{}, ErrNotFound
	}
	return ds[0], nil
}

// DeliveryByID returns one delivery, or ErrNotFound.
func (tx *Tx) DeliveryByID(id int64) (DeliveryRow, error) {
	ds, err := tx.deliveries(`SELECT `+deliveryColumns+` FROM deliveries WHERE id = ?`, id)
	switch {
	case err != nil:
		return DeliveryRow{}, err
	case len(ds) == 0:
		return DeliveryRow{}, ErrNotFound
	}
	return ds[0], nil
}

// SaveDelivery stores what can change of a delivery. keep says whether the
// envelope is still wanted.
func (tx *Tx) SaveDelivery(d DeliveryRow, keep bool) error {
	if keep {
		_, err := tx.exec(`UPDATE deliveries SET state = ?, reason = ?, attempts = ?, due = ?, delivered = ? WHERE id = ?`,
			d.State, d.Reason, nullable(d.Attempts), d.Due, d.Delivered, d.ID)
		return err
	}
	_, err := tx.exec(`UPDATE deliveries SET envelope = NULL, state = ?, reason = ?, attempts = ?, due = ?, delivered = ? WHERE id = ?`,
		d.State, d.Reason, nullable(d.Attempts), d.Due, d.Delivered, d.ID)
	return err
}

// DeleteDelivery removes a control message that was taken.
func (tx *Tx) DeleteDelivery(id int64) error {
	_, err := tx.exec(`DELETE FROM deliveries WHERE id = ?`, id)
	return err
}

// ExpiredDeliveries returns up to limit envelopes whose time is over.
func (tx *Tx) ExpiredDeliveries(now int64, limit int) ([]DeliveryRow, error) {
	return tx.deliveries(`SELECT `+deliveryColumns+` FROM deliveries WHERE envelope IS NOT NULL AND expires < ? LIMIT ?`, now, limit)
}

// PendingDevices returns the devices that envelopes wait for.
func (tx *Tx) PendingDevices() ([][]byte, error) {
	var out [][]byte
	for r, err := range tx.query(`SELECT DISTINCT device FROM deliveries WHERE envelope IS NOT NULL`) {
		if err != nil {
			return nil, err
		}
		var d []byte
		if err := r.scan(&d); err != nil {
			return nil, err
		}
		out = append(out, d)
	}
	return out, nil
}
