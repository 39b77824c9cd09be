package store

// AccountRow is the account and this device.
type AccountRow struct {
	Name    string
	Secret  []byte // account seed and device key, encoded by the node
	List    []byte // our signed device list
	Created int64  // Unix milliseconds
}

const (
	tableAccount = "account"
	tableMeta    = "meta"
)

// Account returns the account, or ErrNotFound before the first start.
func (tx *Tx) Account() (AccountRow, error) {
	var a AccountRow
	var sealed []byte
	if err := tx.queryRow(`SELECT name, secret_sealed, list, created FROM account WHERE id = 1`).
		scan(&a.Name, &sealed, &a.List, &a.Created); err != nil {
		return AccountRow{}, err
	}
	var err error
	a.Secret, err = tx.seal.open(tableAccount, []byte{1}, sealed)
	return a, err
}

// CreateAccount stores the account. There is one at most.
func (tx *Tx) CreateAccount(a AccountRow) error {
	sealed, err := tx.seal.seal(tableAccount, []byte{1}, a.Secret)
	if err != nil {
		return err
	}
	_, err = tx.exec(`INSERT INTO account (id, name, secret_sealed, list, created) VALUES (1, ?, ?, ?, ?)`,
		a.Name, sealed, a.List, a.Created)
	return err
}

// SetAccountName changes what the account calls itself.
func (tx *Tx) SetAccountName(name string) error {
	_, err := tx.exec(`UPDATE account SET name = ? WHERE id = 1`, name)
	return err
}

// Meta returns a single value kept under key, or ErrNotFound.
func (tx *Tx) Meta(key string) ([]byte, error) {
	var v []byte
	err := tx.queryRow(`SELECT value FROM meta WHERE key = ?`, key).scan(&v)
	return v, err
}

// SetMeta keeps a single value under key.
func (tx *Tx) SetMeta(key string, value []byte) error {
	if value == nil {
		value = []byte{} // nil would be NULL
	}
	_, err := tx.exec(`INSERT INTO meta (key, value) VALUES (?, ?)
		ON CONFLICT (key) DO UPDATE SET value = excluded.value`, key, value)
	return err
}

// SecretMeta is Meta for key material.
func (tx *Tx) SecretMeta(key string) ([]byte, error) {
	v, err := tx.Meta(key)
	if err != nil {
		return nil, err
	}
	return tx.seal.open(tableMeta, []byte(key), v)
}

// SetSecretMeta is SetMeta for key material.
func (tx *Tx) SetSecretMeta(key string, value []byte) error {
	sealed, err := tx.seal.seal(tableMeta, []byte(key), value)
	if err != nil {
		return err
	}
	return tx.SetMeta(key, sealed)
}

// Ways returns the addresses of community nodes that served us, the most
// recent first, at most limit.
func (tx *Tx) Ways(limit int) ([]string, error) {
	var ways []string
	for r, err := range tx.query(`SELECT address FROM ways ORDER BY seen DESC LIMIT ?`, limit) {
		if err != nil {
			return nil, err
		}
		var a string
		if err := r.scan(&a); err != nil {
			return nil, err
		}
		ways = append(ways, a)
	}
	return ways, nil
}

// RememberWay notes that a community node served us, and forgets all but the
// keep most recent.
func (tx *Tx) RememberWay(address string, now int64, keep int) error {
	if _, err := tx.exec(`INSERT INTO ways (address, seen) VALUES (?, ?)
		ON CONFLICT (address) DO UPDATE SET seen = excluded.seen`, address, now); err != nil {
		return err
	}
	_, err := tx.exec(`DELETE FROM ways WHERE address NOT IN (SELECT address FROM ways ORDER BY seen DESC LIMIT ?)`, keep)
	return err
}

// NextPointSeq returns the sequence number for the next record at a rendezvous
// point of a day: 1, 2, 3 and so on.
func (tx *Tx) NextPointSeq(key []byte, day int64) (uint64, error) {
	var seq uint64
	if err := tx.queryRow(`INSERT INTO points (key, seq, day) VALUES (?, 1, ?)
		ON CONFLICT (key) DO UPDATE SET seq = seq + 1 RETURNING seq`, key, day).scan(&seq); err != nil {
		return 0, err
	}
	return seq, nil
}

// ForgetPoints drops the sequence numbers of days before a day.
func (tx *Tx) ForgetPoints(before int64) error {
	_, err := tx.exec(`DELETE FROM points WHERE day < ?`, before)
	return err
}
