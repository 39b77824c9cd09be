package store

// BridgeSource says who told us of a bridge.
type BridgeSource int64

// The sources, the most trusted first.
const (
	BridgeFromUser    BridgeSource = 1
	BridgeFromInvite  BridgeSource = 2
	BridgeFromContact BridgeSource = 3
)

// BridgeRow is a bridge that we know.
type BridgeRow struct {
	Address string // multiaddr with /p2p: a secret
	Source  BridgeSource
	Contact int64 // who told us of it; 0 unless Source is BridgeFromContact
	Shared  bool  // named in our invites, and told to contacts
	Added   int64 // Unix milliseconds
}

// Bridges returns the bridges that we know, the most trusted first and of those
// the newest.
func (tx *Tx) Bridges() ([]BridgeRow, error) {
	var out []BridgeRow
	for r, err := range tx.query(`SELECT address, source, coalesce(contact, 0), shared, added FROM bridges ORDER BY source, added DESC, address`) {
		if err != nil {
			return nil, err
		}
		var b BridgeRow
		if err := r.scan(&b.Address, &b.Source, &b.Contact, &b.Shared, &b.Added); err != nil {
			return nil, err
		}
		out = append(out, b)
	}
	return out, nil
}

// SaveBridge keeps a bridge. One that is known already keeps its source if that
// is trusted more.
func (tx *Tx) SaveBridge(b BridgeRow) error {
	var contact any
	if b.Contact != 0 {
		contact = b.Contact
	}
	_, err := tx.exec(`INSERT INTO bridges (address, source, contact, shared, added) VALUES (?, ?, ?, ?, ?)
		ON CONFLICT (address) DO UPDATE SET source = excluded.source, contact = excluded.contact, shared = excluded.shared
		WHERE excluded.source <= bridges.source`, b.Address, b.Source, contact, b.Shared, b.Added)
	return err
}

// DeleteBridge forgets a bridge.
func (tx *Tx) DeleteBridge(address string) error {
	_, err := tx.exec(`DELETE FROM bridges WHERE address = ?`, address)
	return err
}
