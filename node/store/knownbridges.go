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

// Bridges returns the bridges that we know, each once, the most trusted first and
// of those the newest. Of several who told us of one, who is trusted most counts.
func (tx *Tx) Bridges() ([]BridgeRow, error) {
	var out []BridgeRow
	seen := make(map[string]bool)
	for r, err := range tx.query(`SELECT address, source, coalesce(contact, 0), shared, added FROM bridges
		ORDER BY source, added DESC, address, contact`) {
		if err != nil {
			return nil, err
		}
		var b BridgeRow
		if err := r.scan(&b.Address, &b.Source, &b.Contact, &b.Shared, &b.Added); err != nil {
			return nil, err
		}
		if !seen[b.Address] {
			seen[b.Address] = true
			out = append(out, b)
		}
	}
	return out, nil
}

// SaveBridge keeps a bridge, beside what contacts told of the same one. What the
// user or an invite named keeps its source if that is trusted more.
func (tx *Tx) SaveBridge(b BridgeRow) error {
	var contact any
	if b.Contact != 0 {
		contact = b.Contact
	}
	_, err := tx.exec(`INSERT INTO bridges (address, source, contact, shared, added) VALUES (?, ?, ?, ?, ?)
		ON CONFLICT (address, coalesce(contact, 0)) DO UPDATE SET source = excluded.source, shared = excluded.shared
		WHERE excluded.source <= bridges.source`, b.Address, b.Source, contact, b.Shared, b.Added)
	return err
}

// DeleteBridge forgets a bridge, whoever told of it.
func (tx *Tx) DeleteBridge(address string) error {
	_, err := tx.exec(`DELETE FROM bridges WHERE address = ?`, address)
	return err
}

// DeleteBridgesOf forgets what a contact told of bridges. Those that somebody else
// told of as well stay.
func (tx *Tx) DeleteBridgesOf(contact int64) error {
	_, err := tx.exec(`DELETE FROM bridges WHERE contact = ?`, contact)
	return err
}
