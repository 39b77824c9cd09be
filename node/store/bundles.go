package store

// CarriedRow is a part of a bundle that is carried for others.
type CarriedRow struct {
	ID   int64 // in the order of arrival
	Part []byte
}

// Carry keeps a part until an age, if there are fewer than most. It says whether
// the part is here now, and whether it was not before.
func (tx *Tx) Carry(hash, part []byte, erase int64, most int) (here, added bool, err error) {
	var known bool
	var count int
	if err := tx.queryRow(`SELECT EXISTS (SELECT 1 FROM carried WHERE hash = ?), (SELECT count(*) FROM carried)`, hash).scan(&known, &count); err != nil {
		return false, false, err
	}
	if known || count >= most {
		return known, false, nil
	}
	_, err = tx.exec(`INSERT INTO carried (hash, part, erase) VALUES (?, ?, ?)`, hash, part, erase)
	return err == nil, err == nil, err
}

// Carried returns up to limit parts that came after a part, in their order.
func (tx *Tx) Carried(after int64, limit int) ([]CarriedRow, error) {
	var out []CarriedRow
	for r, err := range tx.query(`SELECT id, part FROM carried WHERE id > ? ORDER BY id LIMIT ?`, after, limit) {
		if err != nil {
			return nil, err
		}
		var c CarriedRow
		if err := r.scan(&c.ID, &c.Part); err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	return out, nil
}

// BundleMark returns the newest of the open deliveries and of the carried parts.
func (tx *Tx) BundleMark() (delivery, part int64, err error) {
	err = tx.queryRow(`SELECT (SELECT coalesce(max(id), 0) FROM deliveries WHERE open = 1), (SELECT coalesce(max(id), 0) FROM carried)`).
		scan(&delivery, &part)
	return delivery, part, err
}

// EraseCarried forgets the parts whose age has come.
func (tx *Tx) EraseCarried(age int64) error {
	_, err := tx.exec(`DELETE FROM carried WHERE erase <= ?`, age)
	return err
}

// Pair returns the pair secret of one session, or ErrNotFound.
func (tx *Tx) Pair(session []byte) ([]byte, error) {
	var sealed []byte
	if err := tx.queryRow(`SELECT pair_sealed FROM sessions WHERE id = ?`, session).scan(&sealed); err != nil {
		return nil, err
	}
	return tx.seal.open(tableSessionsPair, session, sealed)
}
