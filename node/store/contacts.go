package store

import "errors"

// ContactState is where a contact stands. Only node's moveContact changes it.
type ContactState int

// The states of a contact.
const (
	ContactPending     ContactState = 1 // we answered their invite and wait for them
	ContactRequest     ContactState = 2 // they answered our reusable invite and wait for us
	ContactEstablished ContactState = 3
)

// ContactRow is a person we may talk to.
type ContactRow struct {
	ID       int64
	Handle   string // the id that users and the API see
	Name     string // what the user calls them
	Profile  string // what they call themselves
	Account  []byte // account key; nil until their bundle was found
	State    ContactState
	Blocked  bool
	Verified bool
	List     []byte // their newest signed device list
	Alarm    string // why sending is paused; empty if it is not
	Hidden   bool   // the user hides their address from them
	Added    int64
	Seen     int64
}

const contactColumns = `id, handle, name, profile, account, state, blocked, verified, list, alarm, hidden, added, seen`

func scanContact(r row, c *ContactRow) error {
	return r.scan(&c.ID, &c.Handle, &c.Name, &c.Profile, &c.Account, &c.State, &c.Blocked, &c.Verified,
		&c.List, &c.Alarm, &c.Hidden, &c.Added, &c.Seen)
}

func (tx *Tx) contacts(sql string, args ...any) ([]ContactRow, error) {
	var out []ContactRow
	for r, err := range tx.query(sql, args...) {
		if err != nil {
			return nil, err
		}
		var c ContactRow
		if err := scanContact(r, &c); err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	return out, nil
}

func (tx *Tx) contact(sql string, args ...any) (ContactRow, error) {
	cs, err := tx.contacts(sql, args...)
	switch {
	case err != nil:
		return ContactRow{}, err
	case len(cs) == 0:
		return ContactRow{}, ErrNotFound
	}
	return cs[0], nil
}

// Contacts returns every contact, requests included, oldest first.
func (tx *Tx) Contacts() ([]ContactRow, error) {
	return tx.contacts(`SELECT ` + contactColumns + ` FROM contacts ORDER BY id`)
}

// Contact returns one contact, or ErrNotFound.
func (tx *Tx) Contact(id int64) (ContactRow, error) {
	return tx.contact(`SELECT `+contactColumns+` FROM contacts WHERE id = ?`, id)
}

// ContactByAccount returns the contact with that account key, or ErrNotFound.
func (tx *Tx) ContactByAccount(account []byte) (ContactRow, error) {
	return tx.contact(`SELECT `+contactColumns+` FROM contacts WHERE account = ?`, account)
}

// CreateContact adds c and returns its id.
func (tx *Tx) CreateContact(c ContactRow) (int64, error) {
	_, err := tx.exec(`INSERT INTO contacts (handle, name, profile, account, state, blocked, verified, list, alarm, hidden, added, seen)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
		c.Handle, c.Name, c.Profile, nullable(c.Account), c.State, c.Blocked, c.Verified, nullable(c.List), c.Alarm, c.Hidden, c.Added, c.Seen)
	if err != nil {
		return 0, err
	}
	return tx.conn.db.LastInsertRowID(), nil
}

// SaveContact stores every field of c.
func (tx *Tx) SaveContact(c ContactRow) error {
	_, err := tx.exec(`UPDATE contacts SET name = ?, profile = ?, account = ?, state = ?, blocked = ?, verified = ?,
		list = ?, alarm = ?, hidden = ?, seen = ? WHERE id = ?`,
		c.Name, c.Profile, nullable(c.Account), c.State, c.Blocked, c.Verified, nullable(c.List), c.Alarm, c.Hidden, c.Seen, c.ID)
	return err
}

// seenGrain is how much older than now the time must be that a contact was last
// heard from, in milliseconds, to be noted anew: not with every message.
const seenGrain = 10_000

// SeenContact notes when a contact was last heard from, to ten seconds.
func (tx *Tx) SeenContact(id, now int64) error {
	_, err := tx.exec(`UPDATE contacts SET seen = ? WHERE id = ? AND seen < ?`, now, id, now-seenGrain)
	return err
}

// DeleteContact removes a contact and everything that was exchanged with it.
func (tx *Tx) DeleteContact(id int64) error {
	for _, sql := range []string{
		`DELETE FROM deliveries WHERE contact = ?`,
		`DELETE FROM messages WHERE contact = ?`,
		`DELETE FROM chains WHERE contact = ?`,
		`DELETE FROM idempotency WHERE contact = ?`,
		`DELETE FROM events WHERE contact = ?`,
		`DELETE FROM sessions WHERE device IN (SELECT hash FROM devices WHERE contact = ?)`,
		`DELETE FROM devices WHERE contact = ?`,
		`DELETE FROM contacts WHERE id = ?`,
	} {
		if _, err := tx.exec(sql, id); err != nil {
			return err
		}
	}
	tx.Erased()
	return nil
}

// DeviceRow is a device of a contact.
type DeviceRow struct {
	Hash      []byte // device identity hash
	Contact   int64
	Public    []byte // device identity; nil until its bundle was found
	Link      []byte // the invite we answered, while no session with it is confirmed
	Addresses []byte // where it was last reached, encoded by the node
}

const (
	tableDeviceLink = "devices.link"

	deviceColumns = `hash, contact, public, link_sealed, addresses`
)

func (tx *Tx) devices(sql string, args ...any) ([]DeviceRow, error) {
	var out []DeviceRow
	for r, err := range tx.query(sql, args...) {
		if err != nil {
			return nil, err
		}
		var d DeviceRow
		var link []byte
		if err := r.scan(&d.Hash, &d.Contact, &d.Public, &link, &d.Addresses); err != nil {
			return nil, err
		}
		if d.Link, err = tx.openOptional(tableDeviceLink, d.Hash, link); err != nil {
			return nil, err
		}
		out = append(out, d)
	}
	return out, nil
}

// Devices returns the devices of a contact; with contact 0, of all contacts.
func (tx *Tx) Devices(contact int64) ([]DeviceRow, error) {
	return tx.devices(`SELECT `+deviceColumns+` FROM devices WHERE ?1 = 0 OR contact = ?1`, contact)
}

// Device returns one device, or ErrNotFound.
func (tx *Tx) Device(hash []byte) (DeviceRow, error) {
	ds, err := tx.devices(`SELECT `+deviceColumns+` FROM devices WHERE hash = ?`, hash)
	switch {
	case err != nil:
		return DeviceRow{}, err
	case len(ds) == 0:
		return DeviceRow{}, ErrNotFound
	}
	return ds[0], nil
}

// SaveDevice adds a device or stores every field of it.
func (tx *Tx) SaveDevice(d DeviceRow) error {
	link, err := tx.sealOptional(tableDeviceLink, d.Hash, d.Link)
	if err != nil {
		return err
	}
	_, err = tx.exec(`INSERT INTO devices (hash, contact, public, link_sealed, addresses)
		VALUES (?, ?, ?, ?, ?)
		ON CONFLICT (hash) DO UPDATE SET contact = excluded.contact, public = excluded.public,
			link_sealed = excluded.link_sealed, addresses = excluded.addresses`,
		d.Hash, d.Contact, nullable(d.Public), nullable(link), nullable(d.Addresses))
	return err
}

// SessionRow is a session with a device.
type SessionRow struct {
	ID      []byte
	Device  []byte
	Pair    []byte // pair secret; only CreateSession reads it, see Pairs
	State   []byte // ratchet, tag chains and handshake remains, encoded by the node
	Created int64
}

const (
	tableSessions     = "sessions"
	tableSessionsPair = "sessions.pair"
)

func (tx *Tx) sessions(sql string, args ...any) ([]SessionRow, error) {
	var out []SessionRow
	for r, err := range tx.query(sql, args...) {
		if err != nil {
			return nil, err
		}
		var s SessionRow
		var sealed []byte
		if err := r.scan(&s.ID, &s.Device, &sealed, &s.Created); err != nil {
			return nil, err
		}
		if s.State, err = tx.seal.open(tableSessions, s.ID, sealed); err != nil {
			return nil, err
		}
		out = append(out, s)
	}
	return out, nil
}

// Session returns one session, or ErrNotFound.
func (tx *Tx) Session(id []byte) (SessionRow, error) {
	ss, err := tx.sessions(`SELECT id, device, state_sealed, created FROM sessions WHERE id = ?`, id)
	switch {
	case err != nil:
		return SessionRow{}, err
	case len(ss) == 0:
		return SessionRow{}, ErrNotFound
	}
	return ss[0], nil
}

// Sessions returns the sessions with a device, smallest id first.
func (tx *Tx) Sessions(device []byte) ([]SessionRow, error) {
	return tx.sessions(`SELECT id, device, state_sealed, created FROM sessions WHERE device = ? ORDER BY id`, device)
}

// CreateSession adds a session.
func (tx *Tx) CreateSession(s SessionRow) error {
	pair, err := tx.seal.seal(tableSessionsPair, s.ID, s.Pair)
	if err != nil {
		return err
	}
	state, err := tx.seal.seal(tableSessions, s.ID, s.State)
	if err != nil {
		return err
	}
	_, err = tx.exec(`INSERT INTO sessions (id, device, pair_sealed, state_sealed, created) VALUES (?, ?, ?, ?, ?)`,
		s.ID, s.Device, pair, state, s.Created)
	return err
}

// SaveSession stores a session's new state. The old one, and with it every key
// the session consumed, is overwritten.
func (tx *Tx) SaveSession(id, state []byte) error {
	sealed, err := tx.seal.seal(tableSessions, id, state)
	if err != nil {
		return err
	}
	_, err = tx.exec(`UPDATE sessions SET state_sealed = ? WHERE id = ?`, sealed, id)
	return err
}

// Pairs returns the pair secrets of all sessions with a device, the newest
// session's first.
func (tx *Tx) Pairs(device []byte) ([][]byte, error) {
	var out [][]byte
	for r, err := range tx.query(`SELECT id, pair_sealed FROM sessions WHERE device = ? ORDER BY created DESC, id`, device) {
		if err != nil {
			return nil, err
		}
		var id, sealed []byte
		if err := r.scan(&id, &sealed); err != nil {
			return nil, err
		}
		pair, err := tx.seal.open(tableSessionsPair, id, sealed)
		if err != nil {
			return nil, err
		}
		out = append(out, pair)
	}
	return out, nil
}

// DeleteSession erases a session and its tags.
func (tx *Tx) DeleteSession(id []byte) error {
	tx.Erased()
	_, err := tx.exec(`DELETE FROM sessions WHERE id = ?`, id)
	return err
}

// TagOwner is what a tag names: a session and the tag's place in its chain, or
// an invite.
type TagOwner struct {
	Session []byte
	Index   uint32
	Invite  []byte
}

// TagOwner returns what tag names, or ErrNotFound.
func (tx *Tx) TagOwner(tag []byte) (TagOwner, error) {
	var o TagOwner
	err := tx.queryRow(`SELECT session, idx, invite FROM tags WHERE tag = ?`, tag).scan(&o.Session, &o.Index, &o.Invite)
	return o, err
}

// AddSessionTag accepts tag, number index of a session's receiving chain.
func (tx *Tx) AddSessionTag(tag, session []byte, index uint32) error {
	_, err := tx.exec(`INSERT INTO tags (tag, session, idx) VALUES (?, ?, ?) ON CONFLICT (tag) DO NOTHING`, tag, session, index)
	return err
}

// AddInviteTag accepts tag as the place where answers to an invite go.
func (tx *Tx) AddInviteTag(tag, invite []byte) error {
	_, err := tx.exec(`INSERT INTO tags (tag, idx, invite) VALUES (?, 0, ?) ON CONFLICT (tag) DO NOTHING`, tag, invite)
	return err
}

// DropSessionTags forgets the tags of a session below index, but keeps the one
// of index 0, under which the answer to a handshake travels.
func (tx *Tx) DropSessionTags(session []byte, below uint32) error {
	_, err := tx.exec(`DELETE FROM tags WHERE session = ? AND idx > 0 AND idx < ?`, session, below)
	return err
}

// nullable stores an empty value as NULL.
func nullable(b []byte) any {
	if len(b) == 0 {
		return nil
	}
	return b
}

func (tx *Tx) sealOptional(table string, row, secret []byte) ([]byte, error) {
	if len(secret) == 0 {
		return nil, nil
	}
	return tx.seal.seal(table, row, secret)
}

func (tx *Tx) openOptional(table string, row, sealed []byte) ([]byte, error) {
	if len(sealed) == 0 {
		return nil, nil
	}
	return tx.seal.open(table, row, sealed)
}

// missing turns ErrNotFound into ok == false.
func missing(err error) (ok bool, _ error) {
	if errors.Is(err, ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}
