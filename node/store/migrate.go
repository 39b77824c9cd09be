package store

import (
	"embed"
	"fmt"
	"io/fs"
	"path"
)

// schema/NNNN.sql, numbered from 0001 without gaps, are the versions of the
// schema. A file that has been released is never edited: what changes goes
// into the next one.
//
//go:embed schema/*.sql
var migrations embed.FS

// migrate runs every migration the database has not seen, all in one
// transaction: after a crash the schema is the old one or the new one. Only a
// database just created (fresh) may have no schema.
func migrate(c *conn, schema fs.FS, fresh bool) error {
	names, err := fs.Glob(schema, "schema/*.sql")
	if err != nil {
		return err
	}
	var version int
	tx := &Tx{conn: c}
	if err := tx.queryRow(`PRAGMA user_version`).scan(&version); err != nil {
		return err
	}
	switch {
	case (version == 0) != fresh:
		return fmt.Errorf("the database has lost its schema: %w", ErrDamaged)
	case version > len(names):
		return ErrNewerSchema
	case version == len(names):
		return nil
	}
	if err := c.exec(`BEGIN EXCLUSIVE`); err != nil {
		return err
	}
	defer c.rollback()
	for i, name := range names {
		if want := fmt.Sprintf("%04d.sql", i+1); path.Base(name) != want {
			panic("store: migrations have a gap before " + want)
		}
		if i < version {
			continue
		}
		sql, err := fs.ReadFile(schema, name)
		if err != nil {
			return err
		}
		if err := c.db.Exec(string(sql)); err != nil {
			return fmt.Errorf("migrate to schema %d: %w", i+1, err)
		}
	}
	if err := c.db.Exec(fmt.Sprintf(`PRAGMA user_version = %d`, len(names))); err != nil {
		return err
	}
	return c.exec(`COMMIT`)
}
