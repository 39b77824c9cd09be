package mailbox

import (
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path"
	"path/filepath"

	"github.com/ncruces/go-sqlite3"
)

var (
	// ErrNewerSchema: a later version of kith has written the file.
	ErrNewerSchema = errors.New("the mailboxes were written by a newer kith: install that version again, or a later one")
	// ErrDamaged: the file cannot be read as what it was.
	ErrDamaged = errors.New("the mailboxes' file is damaged: stop kith, move the file away or restore it from a backup, and start again")
)

// schema/NNNN.sql, numbered from 0001 without gaps, are the versions of the
// schema. A file that has been released is never edited.
//
//go:embed schema/*.sql
var migrations embed.FS

const (
	// logPages is the size at which the log is moved into the database.
	logPages = 1000
	// logLimit is the size from which moving it waits for who still reads.
	logLimit = 8 * logPages
	// busyTime is how long anybody waits for the log to be moved, in milliseconds.
	busyTime = 5000
)

// pragmas are the settings of every connection; the cache is in KiB.
var pragmas = []string{
	`journal_mode = WAL`,
	`synchronous = FULL`,
	`secure_delete = ON`, // what was collected or has expired is overwritten
	`temp_store = MEMORY`,
	`trusted_schema = OFF`,
	`cell_size_check = ON`,
	`wal_autocheckpoint = 0`, // it would not tell of a failed sync
	`cache_size = -8192`,
	fmt.Sprintf(`busy_timeout = %d`, busyTime),
}

// conn is one connection and its prepared statements. Not for concurrent use.
type conn struct {
	db    *sqlite3.Conn
	stmts map[string]*sqlite3.Stmt
}

// connect opens a connection to the file at name, which exists. vfs is SQLite's
// name for a file layer; "" is the system's.
func connect(name, vfs string) (_ *conn, err error) {
	query := url.Values{"modeof": {name}} // the log is as private as the file
	if vfs != "" {
		query.Set("vfs", vfs)
	}
	// Without "//": SQLite would take the drive of a Windows path for a host.
	location := url.URL{Path: filepath.ToSlash(name)}
	uri := url.URL{Scheme: "file", Opaque: location.EscapedPath(), RawQuery: query.Encode()}
	db, err := sqlite3.OpenFlags(uri.String(), sqlite3.OPEN_READWRITE|sqlite3.OPEN_URI)
	if err != nil {
		return nil, err
	}
	c := &conn{db: db, stmts: make(map[string]*sqlite3.Stmt)}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.close())
		}
	}()
	for _, p := range pragmas {
		if err := db.Exec(`PRAGMA ` + p); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// createFile makes the file private before SQLite sees it, and says whether
// there was none.
func createFile(name string) (created bool, err error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, f.Close()
}

func (c *conn) close() error {
	var errs []error
	for _, st := range c.stmts {
		errs = append(errs, st.Close())
	}
	return errors.Join(append(errs, c.db.Close())...)
}

// bind takes the prepared statement for sql and binds args: int64, []byte, or
// string. Who calls it resets the statement.
func (c *conn) bind(sql string, args []any) (*sqlite3.Stmt, error) {
	st := c.stmts[sql]
	if st == nil {
		var err error
		if st, _, err = c.db.PrepareFlags(sql, sqlite3.PREPARE_PERSISTENT); err != nil {
			return nil, err
		}
		c.stmts[sql] = st
	} else {
		_ = st.Reset() // if the program failed while it ran
	}
	for i, arg := range args {
		var err error
		switch a := arg.(type) {
		case int64:
			err = st.BindInt64(i+1, a)
		case []byte:
			err = st.BindBlob(i+1, a)
		case string:
			err = st.BindText(i+1, a)
		default:
			panic(fmt.Sprintf("mailbox: cannot bind a %T", arg))
		}
		if err != nil {
			return nil, err
		}
	}
	return st, nil
}

// exec runs a statement that returns nothing.
func (c *conn) exec(sql string, args ...any) error {
	st, err := c.bind(sql, args)
	if err != nil {
		return err
	}
	err = st.Exec()
	_ = st.Reset() // repeats err
	return err
}

// query calls row for every row until it returns false. A row is valid until
// row returns; it must not run the same statement again.
func (c *conn) query(row func(*sqlite3.Stmt) bool, sql string, args ...any) error {
	st, err := c.bind(sql, args)
	if err != nil {
		return err
	}
	for st.Step() {
		if !row(st) {
			break
		}
	}
	err = st.Err()
	_ = st.Reset() // repeats err
	return err
}

// get reads the first row into dest, *int64 or *[]byte, and says whether there
// was one.
func (c *conn) get(dest []any, sql string, args ...any) (found bool, err error) {
	err = c.query(func(st *sqlite3.Stmt) bool {
		found = true
		for i, d := range dest {
			switch d := d.(type) {
			case *int64:
				*d = st.ColumnInt64(i)
			case *[]byte:
				*d = st.ColumnBlob(i, nil)
			default:
				panic(fmt.Sprintf("mailbox: cannot read a %T", d))
			}
		}
		return false
	}, sql, args...)
	return found && err == nil, err
}

// rollback ends a transaction, if SQLite has not already done so.
func (c *conn) rollback() {
	if !c.db.GetAutocommit() {
		_ = c.exec(`ROLLBACK`) // it cannot fail in a way that leaves the transaction open
	}
}

// applicationID marks the file as this package's ("kmbx").
const applicationID = 0x6b6d6278

// prepare brings a file to its newest schema, all in one transaction. A file
// that was in use is not taken for a new one.
func (c *conn) prepare(schema fs.FS, used bool) error {
	names, err := fs.Glob(schema, "schema/*.sql")
	if err != nil {
		return err
	}
	var version, application, tables int64
	for sql, value := range map[string]*int64{
		`PRAGMA user_version`: &version, `PRAGMA application_id`: &application,
		`SELECT count(*) FROM sqlite_schema`: &tables,
	} {
		if _, err := c.get([]any{value}, sql); err != nil {
			return err
		}
	}
	switch {
	case version == 0 && (used || tables > 0), version != 0 && application != applicationID:
		return ErrDamaged // emptied, or another program's
	case version > int64(len(names)):
		return ErrNewerSchema
	case version == int64(len(names)):
		return nil
	case version == 0:
		// Eight bytes of checksum on each page: a disk that lies is found out
		// before we lie to others.
		if err := c.db.EnableChecksums(""); err != nil {
			return err
		}
	}
	if err := c.exec(`BEGIN EXCLUSIVE`); err != nil {
		return err
	}
	defer c.rollback()
	for i, name := range names {
		if want := fmt.Sprintf("%04d.sql", i+1); path.Base(name) != want {
			panic("mailbox: migrations have a gap before " + want)
		}
		if int64(i) < version {
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
	if err := c.db.Exec(fmt.Sprintf(`PRAGMA application_id = %d; PRAGMA user_version = %d`, applicationID, len(names))); err != nil {
		return err
	}
	return c.exec(`COMMIT`)
}

// isDamage says that reading found what was never written.
func isDamage(err error) bool {
	return errors.Is(err, sqlite3.CORRUPT) || errors.Is(err, sqlite3.NOTADB) ||
		errors.Is(err, sqlite3.IOERR_DATA) || errors.Is(err, sqlite3.IOERR_CORRUPTFS) ||
		errors.Is(err, sqlite3.IOERR_SHORT_READ)
}

// isFailure says that writing failed: unless it was for want of room, nobody
// knows what is on the disk.
func isFailure(err error) bool { return errors.Is(err, sqlite3.IOERR) && !isDamage(err) }
