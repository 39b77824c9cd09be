package main

// How a daemon opens its home: the passphrase, the role it was made for, the lock on
// it, and what each refusal says.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/term"

	"github.com/kith-im/kith/node"
	"github.com/kith-im/kith/node/api"
	apiv1 "github.com/kith-im/kith/node/api/v1"
	"github.com/kith-im/kith/node/store"
)

// maxPassphrase bounds the passphrase file, in bytes.
const maxPassphrase = 4 << 10

// checkRole refuses a home that was made for the other role, before an account
// or a key of this one is put beside what is there, and a bridge's that is not to be one.
func (d *daemon) checkRole(ctx context.Context, st *store.Store) error {
	var community, user bool
	var paths int
	err := st.View(ctx, func(tx *store.Tx) (err error) {
		if community, err = found(tx.SecretMeta(keyMeta)); err != nil {
			return err
		}
		if user, err = found(tx.Account()); err != nil {
			return err
		}
		paths, err = tx.CountBridgeInvites()
		return err
	})
	switch {
	case err != nil:
		return err
	case d.role == node.RoleUser && community && !user:
		return &api.Error{
			Code: api.CodeRefused, Message: "this home is a community node's",
			Hint: "start it with: " + upCommunity + ", or choose another one with --home DIR",
		}
	case d.role == node.RoleCommunity && user && !community:
		return &api.Error{
			Code: api.CodeRefused, Message: "this home is a user's, with an account",
			Hint: "start it with: kith up, or choose another one for the community node with --home DIR",
		}
	case d.role == node.RoleCommunity && paths > 0 && d.bridge == nil:
		// It would listen under the bridge's own name, as what its web site hides.
		return &api.Error{
			Code: api.CodeRefused, Message: "this home is a bridge's, and people have its address",
			Hint: "start it as before, with --bridge and its --site, or choose another one with --home DIR",
		}
	}
	return nil
}

// found reports whether a look-up in the store found something.
func found[T any](_ T, err error) (bool, error) {
	if errors.Is(err, store.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// runs reports whether a daemon of this home answers already, and then prints
// where: starting what runs is no error, if it is of this role. pid is who holds the
// store; 0: it is not known.
func (d *daemon) runs(ctx context.Context, pid int) (bool, error) {
	client := api.NewClient(d.cfg.api.value)
	defer client.Close()
	ctx, cancel := context.WithTimeout(ctx, runsWait)
	defer cancel()
	s, err := client.Status(ctx, &apiv1.StatusRequest{})
	switch {
	case err != nil || !s.Ready: // whoever holds the store is named then
		return false, nil
	case s.Role == d.role.String():
	case d.role == node.RoleUser:
		return false, &api.Error{
			Code: api.CodeRefused, Message: "kith runs on this home already, as a community node, which has no account",
			Hint: "choose another home for a user with --home DIR",
		}
	default:
		return false, &api.Error{
			Code: api.CodeRefused, Message: "kith runs on this home already, as a user's",
			Hint: "choose another home for a community node with --home DIR",
		}
	}
	r := readyJSON{"ready", s.Account, d.cfg.api.value, nil, nonNil(s.Listen), s.Role, s.Version, s.Bridge}
	since := time.Now().Add(-time.Duration(s.UptimeS) * time.Second).UnixMilli()
	d.k.print(struct {
		Event string `json:"event"`
		PID   int    `json:"pid"`
		Since int64  `json:"since"`
	}{"running", pid, since}, func(w io.Writer) {
		if d.k.quiet {
			return
		}
		process := ""
		if pid != 0 {
			process = fmt.Sprintf(" (process %d)", pid)
		}
		fmt.Fprintf(w, "\nkith runs already, since %s%s, and nothing that was said here changes it.\n\n", clock(since), process)
		r.write(w)
		fmt.Fprintf(w, "\nStop it with: kith down%s\n\n", d.k.at())
	})
	if d.k.json {
		d.announce(r)
	}
	return true, nil
}

// protect gives a store that only its key file protects the passphrase that
// was given for it: whoever gives one believes the store to be protected.
func (d *daemon) protect(st *store.Store) error {
	if len(d.passphrase) == 0 || st.Protection() == "passphrase" {
		return nil
	}
	d.stage("protecting", "Protecting the store with the passphrase from now on")
	return st.ChangePassphrase(nil, d.passphrase)
}

// explainStore gives the errors of a store, when it is opened and while the
// daemon runs, their codes and next steps.
func (d *daemon) explainStore(err error) error {
	var explained *api.Error
	var inUse *store.InUseError
	refused := func(message, hint string) error {
		return &api.Error{Code: api.CodeRefused, Message: message, Hint: hint}
	}
	switch {
	case errors.As(err, &explained):
		return err
	case errors.As(err, &inUse):
		holder := ""
		if inUse.PID != 0 {
			holder = fmt.Sprintf(" (process %d)", inUse.PID)
		}
		return refused("another kith"+holder+" uses this data directory", "stop it with: kith down, or choose another one with --home")
	case errors.Is(err, store.ErrPassphraseNeeded):
		return &api.Error{Code: api.CodeLocked, Message: "this store is protected by a passphrase", Hint: "use --passphrase-file FILE, or --passphrase to be asked"}
	case errors.Is(err, store.ErrPassphrase):
		return &api.Error{Code: api.CodeLocked, Message: "the passphrase does not open this store", Hint: "check it and try again with --passphrase-file FILE, or --passphrase to be asked"}
	case errors.Is(err, store.ErrFull), errors.Is(err, syscall.ENOSPC):
		return &api.Error{Code: api.CodeQuota, Message: "the disk is full, so kith can save nothing", Hint: "free some space and try again"}
	case errors.Is(err, store.ErrDamaged):
		what, ok := strings.CutSuffix(err.Error(), ": "+store.ErrDamaged.Error())
		if !ok {
			what = "the store is damaged"
		}
		return refused(what, "restore the data directory from a backup")
	case errors.Is(err, store.ErrReadOnly):
		return refused("the disk failed while saving", "check the disk and start kith again")
	case errors.Is(err, store.ErrNewerSchema):
		return refused("this store was written by a newer kith", "install that version again, or a later one")
	case errors.Is(err, syscall.ENOTDIR):
		return refused(d.cfg.paths.Data+" is not a folder", "choose another one with --home DIR")
	case errors.Is(err, fs.ErrPermission), errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.EROFS):
		return refused("kith can not write into "+d.cfg.paths.Data, "allow it to, or choose another folder with --home DIR")
	}
	return err
}

// passphrase reads the store's passphrase from the file that the configuration
// names, or asks for it where there is a person to ask.
func (k *kith) passphrase(cfg *config, ask bool) ([]byte, error) {
	if path := cfg.passphrase.value; path != "" {
		f, err := os.Open(path)
		if err != nil {
			return nil, usagef("check --passphrase-file", "the passphrase file %s", unreadable(err))
		}
		defer f.Close()
		b, err := io.ReadAll(io.LimitReader(f, maxPassphrase+1))
		if err != nil {
			return nil, usagef("check --passphrase-file", "the passphrase file %s", unreadable(err))
		}
		b = []byte(strings.TrimRight(string(b), "\r\n"))
		if len(b) == 0 || len(b) > maxPassphrase {
			return nil, usagef("write the passphrase into it, on one line", "the passphrase file holds no passphrase")
		}
		return b, nil
	}
	if !ask {
		return nil, nil
	}
	in, ok := k.stdin.(*os.File)
	if !ok || !term.IsTerminal(int(in.Fd())) {
		return nil, usagef("use --passphrase-file FILE", "there is no terminal to ask for the passphrase")
	}
	first, err := k.askSecret(in, "Passphrase: ")
	if err != nil || opensOnlyWithPassphrase(cfg.paths.Data) {
		return first, err
	}
	second, err := k.askSecret(in, "The same once more: ")
	if err != nil {
		return nil, err
	}
	if string(first) != string(second) {
		return nil, usagef("start again", "the two passphrases differ")
	}
	return first, nil
}

// opensOnlyWithPassphrase reports whether a passphrase is checked by opening the
// store with it; else it will be a new one, in which a slip of the finger would
// lock its owner out.
func opensOnlyWithPassphrase(dir string) bool {
	if !store.Exists(dir) {
		return false
	}
	st, err := store.Open(store.Options{Dir: dir})
	if err != nil {
		return true // or not to be opened at all, which the daemon will say
	}
	st.Close()
	return false
}

// unreadable says why a file could not be read.
func unreadable(err error) string {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "does not exist"
	case errors.Is(err, fs.ErrPermission):
		return "may not be read by this user"
	case errors.Is(err, syscall.EISDIR):
		return "is a folder"
	}
	return "can not be read: " + err.Error()
}

func (k *kith) askSecret(in *os.File, question string) ([]byte, error) {
	fmt.Fprint(k.stderr, question)
	b, err := term.ReadPassword(int(in.Fd()))
	fmt.Fprintln(k.stderr)
	if err != nil {
		return nil, fmt.Errorf("read the passphrase: %w", err)
	}
	if len(b) == 0 {
		return nil, usagef("start without --passphrase if you want none", "the passphrase is empty")
	}
	return b, nil
}
