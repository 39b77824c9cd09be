package store

import "strconv"

// BridgeInviteRow is a secret path of a bridge.
type BridgeInviteRow struct {
	ID      int64
	Name    string // whom it is for; only shown to the operator
	Path    []byte
	Created int64
}

const tableBridgeInvites = "bridge_invites"

// bridgeInviteLabel is what the path of an invite is sealed under: a row's id is
// known only when it is there.
func bridgeInviteLabel(created int64) []byte { return strconv.AppendInt(nil, created, 10) }

// BridgeInvites returns the secret paths, oldest first.
func (tx *Tx) BridgeInvites() ([]BridgeInviteRow, error) {
	return tx.bridgeInvites(`SELECT id, name, path_sealed, created FROM bridge_invites ORDER BY id`)
}

func (tx *Tx) bridgeInvites(sql string, args ...any) ([]BridgeInviteRow, error) {
	var out []BridgeInviteRow
	for r, err := range tx.query(sql, args...) {
		if err != nil {
			return nil, err
		}
		var b BridgeInviteRow
		var sealed []byte
		if err := r.scan(&b.ID, &b.Name, &sealed, &b.Created); err != nil {
			return nil, err
		}
		if b.Path, err = tx.seal.open(tableBridgeInvites, bridgeInviteLabel(b.Created), sealed); err != nil {
			return nil, err
		}
		out = append(out, b)
	}
	return out, nil
}

// CountBridgeInvites returns how many secret paths there are.
func (tx *Tx) CountBridgeInvites() (n int, err error) {
	err = tx.queryRow(`SELECT count(*) FROM bridge_invites`).scan(&n)
	return n, err
}

// AddBridgeInvite adds a secret path and returns its id, which no other one ever
// has.
func (tx *Tx) AddBridgeInvite(b BridgeInviteRow) (id int64, err error) {
	sealed, err := tx.seal.seal(tableBridgeInvites, bridgeInviteLabel(b.Created), b.Path)
	if err != nil {
		return 0, err
	}
	err = tx.queryRow(`INSERT INTO bridge_invites (name, path_sealed, created) VALUES (?, ?, ?) RETURNING id`,
		b.Name, sealed, b.Created).scan(&id)
	return id, err
}

// DeleteBridgeInvite erases a secret path and returns it, or ErrNotFound.
func (tx *Tx) DeleteBridgeInvite(id int64) (BridgeInviteRow, error) {
	rows, err := tx.bridgeInvites(`SELECT id, name, path_sealed, created FROM bridge_invites WHERE id = ?`, id)
	switch {
	case err != nil:
		return BridgeInviteRow{}, err
	case len(rows) == 0:
		return BridgeInviteRow{}, ErrNotFound
	}
	tx.Erased()
	_, err = tx.exec(`DELETE FROM bridge_invites WHERE id = ?`, id)
	return rows[0], err
}
