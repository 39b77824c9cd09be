package store

// InviteState is where one of our invites stands.
type InviteState int

// The states of an invite. Expiry is not a state: it is a time.
const (
	InviteOpen    InviteState = 1
	InviteUsed    InviteState = 2 // a one-time invite that was answered
	InviteRevoked InviteState = 3
	InviteTwice   InviteState = 4 // a used one that was answered again, of which its maker has been told
)

// InviteRow is an invite of ours.
type InviteRow struct {
	ID       []byte
	Link     []byte // the link, which holds the invite's secret
	Name     string // whom it is for; only shown to its maker
	Reusable bool
	State    InviteState
	Uses     int
	Created  int64
	Expires  int64
	Erase    int64 // age from which nothing of it is needed
}

const (
	tableInvites = "invites"
	tablePrekeys = "prekeys"

	inviteColumns = `id, secret_sealed, name, reusable, state, uses, created, expires, erase`
)

func (tx *Tx) invites(sql string, args ...any) ([]InviteRow, error) {
	var out []InviteRow
	for r, err := range tx.query(sql, args...) {
		if err != nil {
			return nil, err
		}
		var i InviteRow
		var sealed []byte
		if err := r.scan(&i.ID, &sealed, &i.Name, &i.Reusable, &i.State, &i.Uses, &i.Created, &i.Expires, &i.Erase); err != nil {
			return nil, err
		}
		if i.Link, err = tx.seal.open(tableInvites, i.ID, sealed); err != nil {
			return nil, err
		}
		out = append(out, i)
	}
	return out, nil
}

// Invites returns our invites, oldest first.
func (tx *Tx) Invites() ([]InviteRow, error) {
	return tx.invites(`SELECT ` + inviteColumns + ` FROM invites ORDER BY created, id`)
}

// Invite returns one invite, or ErrNotFound.
func (tx *Tx) Invite(id []byte) (InviteRow, error) {
	is, err := tx.invites(`SELECT `+inviteColumns+` FROM invites WHERE id = ?`, id)
	switch {
	case err != nil:
		return InviteRow{}, err
	case len(is) == 0:
		return InviteRow{}, ErrNotFound
	}
	return is[0], nil
}

// CreateInvite adds an invite.
func (tx *Tx) CreateInvite(i InviteRow) error {
	sealed, err := tx.seal.seal(tableInvites, i.ID, i.Link)
	if err != nil {
		return err
	}
	_, err = tx.exec(`INSERT INTO invites (id, secret_sealed, name, reusable, state, uses, created, expires, erase) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)`,
		i.ID, sealed, i.Name, i.Reusable, i.State, i.Uses, i.Created, i.Expires, i.Erase)
	return err
}

// SetInvite stores the state of an invite and how often it was answered.
func (tx *Tx) SetInvite(id []byte, state InviteState, uses int) error {
	_, err := tx.exec(`UPDATE invites SET state = ?, uses = ? WHERE id = ?`, state, uses, id)
	return err
}

// EraseInvites erases what is past its age: invites with their prekeys and tags,
// prekeys, and the memory of handshakes.
func (tx *Tx) EraseInvites(age int64) error {
	for _, sql := range []string{
		`DELETE FROM invites WHERE erase <= ?`,
		`DELETE FROM prekeys WHERE erase <= ?`,
		`DELETE FROM handshakes WHERE erase <= ?`,
	} {
		n, err := tx.exec(sql, age)
		if err != nil {
			return err
		}
		if n > 0 {
			tx.Erased()
		}
	}
	return nil
}

// PrekeyRow is the secret half of a prekey that an invite's bundle shows.
type PrekeyRow struct {
	ID     []byte
	Invite []byte
	Secret []byte
	Born   int64 // its age when it was made
	Erase  int64 // the age at which it goes
}

// Prekey returns one prekey, or ErrNotFound.
func (tx *Tx) Prekey(id []byte) (PrekeyRow, error) {
	p := PrekeyRow{ID: id}
	var sealed []byte
	if err := tx.queryRow(`SELECT invite, secret_sealed, born, erase FROM prekeys WHERE id = ?`, id).
		scan(&p.Invite, &sealed, &p.Born, &p.Erase); err != nil {
		return PrekeyRow{}, err
	}
	var err error
	p.Secret, err = tx.seal.open(tablePrekeys, id, sealed)
	return p, err
}

// NewestPrekey returns the newest prekey of an invite, or ErrNotFound.
func (tx *Tx) NewestPrekey(invite []byte) (PrekeyRow, error) {
	var id []byte
	if err := tx.queryRow(`SELECT id FROM prekeys WHERE invite = ? ORDER BY born DESC, id LIMIT 1`, invite).scan(&id); err != nil {
		return PrekeyRow{}, err
	}
	return tx.Prekey(id)
}

// CreatePrekey adds a prekey.
func (tx *Tx) CreatePrekey(p PrekeyRow) error {
	sealed, err := tx.seal.seal(tablePrekeys, p.ID, p.Secret)
	if err != nil {
		return err
	}
	_, err = tx.exec(`INSERT INTO prekeys (id, invite, secret_sealed, born, erase) VALUES (?, ?, ?, ?, ?)`,
		p.ID, p.Invite, sealed, p.Born, p.Erase)
	return err
}

// DeletePrekeys erases the prekeys of an invite.
func (tx *Tx) DeletePrekeys(invite []byte) error {
	tx.Erased()
	_, err := tx.exec(`DELETE FROM prekeys WHERE invite = ?`, invite)
	return err
}

// Handshake returns the session that a handshake with that hash made; ok is
// false if there was none.
func (tx *Tx) Handshake(hash []byte) (session []byte, ok bool, err error) {
	ok, err = missing(tx.queryRow(`SELECT session FROM handshakes WHERE hash = ?`, hash).scan(&session))
	return session, ok, err
}

// RememberHandshake keeps the hash of an answered handshake up to an age.
func (tx *Tx) RememberHandshake(hash, session []byte, erase int64) error {
	_, err := tx.exec(`INSERT INTO handshakes (hash, session, erase) VALUES (?, ?, ?) ON CONFLICT (hash) DO NOTHING`, hash, session, erase)
	return err
}
