package store

import (
	"errors"
	"fmt"
	"iter"
	"math"
	"reflect"
	"slices"

	"github.com/ncruces/go-sqlite3"
)

// Tx is one transaction: a view's snapshot, or an update's own part of the
// writer's transaction. It is valid until the closure it was given to returns,
// and only in that closure's goroutine.
type Tx struct {
	conn  *conn
	seal  sealer
	hooks []func()
	undo  []func()
	erase bool
	write bool
	over  bool
}

// OnCommit has f called once the update is committed and synced, before Update
// returns, on the writer's goroutine and in the order of the updates. f must
// be quick and must not call the store. If the update fails f is not called.
func (tx *Tx) OnCommit(f func()) {
	tx.mustWrite()
	tx.hooks = append(tx.hooks, f)
}

// OnUndo has f called if the update is undone although its closure succeeded,
// before any other update begins, on the writer's goroutine. f must be quick
// and must not call the store.
func (tx *Tx) OnUndo(f func()) {
	tx.mustWrite()
	tx.undo = append(tx.undo, f)
}

// Erased says that the update deleted or replaced something that must not
// survive in the log: the log is emptied after the commit, before Update
// returns, or as soon as the views that still read from it end.
func (tx *Tx) Erased() {
	tx.mustWrite()
	tx.erase = true
}

func (tx *Tx) mustWrite() {
	if tx.over || !tx.write {
		panic("store: this needs an update still running")
	}
}

func (tx *Tx) end() { tx.over = true }

// exec runs a statement that returns no rows and says how many rows it
// inserted, changed or deleted.
func (tx *Tx) exec(sql string, args ...any) (int64, error) {
	st, err := tx.bind(sql, args)
	if err != nil {
		return 0, err
	}
	defer st.release()
	if err := st.Exec(); err != nil {
		return 0, classify(err)
	}
	return tx.conn.db.Changes(), nil
}

// query yields the rows of a statement. Iteration ends after the first error.
// A row is valid until the next one is asked for.
func (tx *Tx) query(sql string, args ...any) iter.Seq2[row, error] {
	return func(yield func(row, error) bool) {
		st, err := tx.bind(sql, args)
		if err != nil {
			yield(row{}, err)
			return
		}
		defer st.release()
		for st.Step() {
			if !yield(row{st: st}, nil) {
				return
			}
		}
		if err := st.Err(); err != nil {
			yield(row{}, classify(err))
		}
	}
}

// queryRow runs a statement for its first row. scan returns ErrNotFound if
// there is none.
func (tx *Tx) queryRow(sql string, args ...any) oneRow {
	return oneRow{tx: tx, sql: sql, args: args}
}

type oneRow struct {
	tx   *Tx
	sql  string
	args []any
}

func (o oneRow) scan(dest ...any) error {
	for r, err := range o.tx.query(o.sql, o.args...) {
		if err != nil {
			return err
		}
		return r.scan(dest...)
	}
	return ErrNotFound
}

// bind takes the connection's prepared statement for sql and binds args.
func (tx *Tx) bind(sql string, args []any) (*stmt, error) {
	if tx.over {
		panic("store: transaction used after its closure returned")
	}
	st, err := tx.conn.prepare(sql)
	if err != nil {
		return nil, classify(err)
	}
	if n := st.BindCount(); n != len(args) {
		st.release()
		panic(fmt.Sprintf("store: %d arguments for %d parameters: %s", len(args), n, sql))
	}
	for i, a := range args {
		if err := st.bindAny(i+1, a); err != nil {
			st.release()
			return nil, classify(err)
		}
	}
	return st, nil
}

// The settings every connection runs with; the cache is in KiB, the busy
// timeout in milliseconds.
var (
	commonPragmas = []string{
		`journal_mode = WAL`,
		`synchronous = FULL`,   // NORMAL lost acknowledged commits in 1,353 of 2,100 simulated power cuts
		`secure_delete = ON`,   // what is deleted is overwritten
		`temp_store = MEMORY`,  // nothing outside the encrypted files
		`foreign_keys = ON`,    // SQLite's default is off
		`trusted_schema = OFF`, // an altered schema must not call functions
		`cell_size_check = ON`, // malformed pages are found where they are read
		`cache_size = -2048`,   // four connections; the system caches the files too
	}
	writerPragmas = append(slices.Clip(commonPragmas),
		fmt.Sprintf(`wal_autocheckpoint = %d`, logPages),
		fmt.Sprintf(`busy_timeout = %d`, truncateWait.Milliseconds()))
	readerPragmas = append(slices.Clip(commonPragmas),
		`query_only = ON`,
		fmt.Sprintf(`busy_timeout = %d`, readerWait.Milliseconds()))
)

// conn is one SQLite connection and its prepared statements. Not for
// concurrent use.
type conn struct {
	db    *sqlite3.Conn
	stmts map[string]*stmt
}

// stmt is a prepared statement that goes back to its connection on release.
type stmt struct {
	*sqlite3.Stmt
	busy   bool
	cached bool
}

func openConn(uri string, flags sqlite3.OpenFlag) (*conn, error) {
	db, err := sqlite3.OpenFlags(uri, flags|sqlite3.OPEN_URI)
	if err != nil {
		return nil, err
	}
	// Otherwise SQLite, built with STAT4, prepares a statement anew for every
	// value bound to it that might change its plan.
	if _, err := db.Config(sqlite3.DBCONFIG_ENABLE_QPSG, true); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return &conn{db: db, stmts: make(map[string]*stmt)}, nil
}

func (c *conn) configure(pragmas []string) error {
	for _, p := range pragmas {
		if err := c.db.Exec(`PRAGMA ` + p); err != nil {
			return err
		}
	}
	return nil
}

func (c *conn) close() error {
	var errs []error
	for _, st := range c.stmts {
		errs = append(errs, st.Close())
	}
	return errors.Join(append(errs, c.db.Close())...)
}

// prepare returns the cached statement for sql, or a fresh one while the
// cached one is being iterated.
func (c *conn) prepare(sql string) (*stmt, error) {
	if st := c.stmts[sql]; st != nil && !st.busy {
		st.busy = true
		return st, nil
	}
	s, tail, err := c.db.PrepareFlags(sql, sqlite3.PREPARE_PERSISTENT)
	if err != nil {
		return nil, err
	}
	if s == nil || tail != "" {
		panic("store: not one statement: " + sql)
	}
	st := &stmt{Stmt: s, busy: true}
	if c.stmts[sql] == nil {
		st.cached = true
		c.stmts[sql] = st
	}
	return st, nil
}

// release makes the statement ready for its next use. What it was bound to is
// cleared, so that no key stays behind in SQLite's memory.
func (st *stmt) release() {
	if !st.cached {
		st.Close()
		return
	}
	_ = st.Reset() // repeats the error of the step before, which has been reported
	_ = st.ClearBindings()
	st.busy = false
}

// exec runs one of the store's own statements, which have no parameters.
func (c *conn) exec(sql string) error {
	st, err := c.prepare(sql)
	if err != nil {
		return err
	}
	defer st.release()
	return st.Exec()
}

// rollback ends a transaction, if SQLite has not already done so.
func (c *conn) rollback() {
	if !c.db.GetAutocommit() {
		// It cannot fail in a way that leaves the transaction open.
		_ = c.exec(`ROLLBACK`)
	}
}

// bindAny binds one argument: nil, bool, string, []byte, any integer type that
// fits 64 signed bits, any string type, any byte slice or byte array.
func (st *stmt) bindAny(i int, arg any) error {
	switch a := arg.(type) {
	case nil:
		return st.BindNull(i)
	case bool:
		return st.BindBool(i, a)
	case int:
		return st.BindInt64(i, int64(a))
	case int64:
		return st.BindInt64(i, a)
	case string:
		return st.BindText(i, a)
	case []byte:
		return st.BindBlob(i, a)
	}
	v := reflect.ValueOf(arg)
	switch v.Kind() {
	case reflect.Bool:
		return st.BindBool(i, v.Bool())
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return st.BindInt64(i, v.Int())
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		u := v.Uint()
		if u > math.MaxInt64 {
			return fmt.Errorf("number %d does not fit a column", u)
		}
		return st.BindInt64(i, int64(u))
	case reflect.String:
		return st.BindText(i, v.String())
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			return st.BindBlob(i, v.Bytes())
		}
	case reflect.Array:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			b := make([]byte, v.Len())
			reflect.Copy(reflect.ValueOf(b), v)
			return st.BindBlob(i, b)
		}
	}
	panic(fmt.Sprintf("store: cannot bind a %T", arg))
}

// row is the current row of a query.
type row struct{ st *stmt }

// scan copies the columns into dest, pointers to the types bindAny takes. NULL
// is the zero value. A number out of the range of its destination, or a blob
// that does not fit a byte array exactly, is ErrDamaged.
func (r row) scan(dest ...any) error {
	if n := r.st.DataCount(); n != len(dest) {
		panic(fmt.Sprintf("store: %d destinations for %d columns: %s", len(dest), n, r.st.SQL()))
	}
	for i, d := range dest {
		switch d := d.(type) {
		case *bool:
			*d = r.st.ColumnBool(i)
		case *int:
			*d = r.st.ColumnInt(i)
		case *int64:
			*d = r.st.ColumnInt64(i)
		case *string:
			*d = r.st.ColumnText(i)
		case *[]byte:
			*d = r.st.ColumnBlob(i, nil)
		default:
			if err := r.scanReflect(i, d); err != nil {
				return err
			}
		}
	}
	return nil
}

func (r row) scanReflect(i int, dest any) error {
	p := reflect.ValueOf(dest)
	if p.Kind() != reflect.Pointer {
		panic(fmt.Sprintf("store: cannot scan into a %T", dest))
	}
	v := p.Elem()
	switch v.Kind() {
	case reflect.Bool:
		v.SetBool(r.st.ColumnBool(i))
		return nil
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		n := r.st.ColumnInt64(i)
		if v.OverflowInt(n) {
			return fmt.Errorf("a stored number is out of range: %w", ErrDamaged)
		}
		v.SetInt(n)
		return nil
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		n := r.st.ColumnInt64(i)
		if n < 0 || v.OverflowUint(uint64(n)) {
			return fmt.Errorf("a stored number is out of range: %w", ErrDamaged)
		}
		v.SetUint(uint64(n))
		return nil
	case reflect.String:
		v.SetString(r.st.ColumnText(i))
		return nil
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			v.SetBytes(r.st.ColumnBlob(i, nil))
			return nil
		}
	case reflect.Array:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			b := r.st.ColumnRawBlob(i)
			switch len(b) {
			case v.Len():
				reflect.Copy(v, reflect.ValueOf(b))
				return nil
			case 0:
				v.SetZero()
				return nil
			}
			return fmt.Errorf("a stored value has %d bytes instead of %d: %w", len(b), v.Len(), ErrDamaged)
		}
	}
	panic(fmt.Sprintf("store: cannot scan into a %T", dest))
}
