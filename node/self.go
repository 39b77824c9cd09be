package node

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/kith-im/kith/node/store"
	"github.com/kith-im/kith/protocol"
	"github.com/kith-im/kith/protocol/identity"
	"github.com/kith-im/kith/protocol/message"
)

// self is who this node is: the account, this device, and their randomness.
type self struct {
	account *identity.Account
	device  *identity.DeviceKey
	name    string
	list    []byte                // our signed device list
	others  []identity.DeviceHash // our other devices
	created int64
	rand    io.Reader
}

// Rows of store's meta table.
const (
	metaBoots = "boots" // how often this store was opened: the hedge's counter
	metaEpoch = "epoch" // how often prekey bundles were published
	metaHedge = "hedge" // secret of the hedged generator
)

// loadSelf loads the account, or creates it where there never was one: a store
// that has contacts but no account is damaged, and gets no fresh identity.
func loadSelf(ctx context.Context, cfg Config) (*self, error) {
	var row store.AccountRow
	var hedge protocol.HedgeSecret
	var boots uint64
	err := cfg.Store.Update(ctx, func(tx *store.Tx) error {
		secret, err := tx.SecretMeta(metaHedge)
		switch {
		case errors.Is(err, store.ErrNotFound):
			if _, err := io.ReadFull(rand.Reader, hedge[:]); err != nil {
				return err
			}
			if err := tx.SetSecretMeta(metaHedge, hedge[:]); err != nil {
				return err
			}
		case err != nil:
			return err
		default:
			copy(hedge[:], secret)
		}
		if boots, err = counter(tx, metaBoots); err != nil {
			return err
		}
		row, err = tx.Account()
		if errors.Is(err, store.ErrNotFound) {
			row, err = createSelf(tx, cfg, protocol.NewHedge(rand.Reader, hedge, boots))
			// The generator that made the keys is spent; the next one counts on.
			if err == nil {
				boots, err = counter(tx, metaBoots)
			}
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("load the account: %w", err)
	}
	s := &self{name: row.Name, list: row.List, created: row.Created, rand: &lockedReader{r: protocol.NewHedge(rand.Reader, hedge, boots)}}
	if s.account, s.device, err = decodeSelf(row.Secret); err != nil {
		return nil, fmt.Errorf("load the account: %w", err)
	}
	list, err := identity.ParseDeviceList(s.list, s.account.Public())
	if err != nil {
		return nil, fmt.Errorf("load the account: %w", errors.Join(err, store.ErrDamaged))
	}
	for _, d := range list.Live() {
		if d != s.device.Hash() {
			s.others = append(s.others, d)
		}
	}
	return s, nil
}

func createSelf(tx *store.Tx, cfg Config, rng io.Reader) (store.AccountRow, error) {
	contacts, err := tx.Contacts()
	if err != nil {
		return store.AccountRow{}, err
	}
	if len(contacts) > 0 {
		return store.AccountRow{}, fmt.Errorf("the account is missing from the store: %w", store.ErrDamaged)
	}
	account, err := identity.NewAccount(rng)
	if err != nil {
		return store.AccountRow{}, err
	}
	device, err := identity.NewDeviceKey(rng, account.Public())
	if err != nil {
		return store.AccountRow{}, err
	}
	list, err := identity.NewDeviceList(account, 1, []identity.DeviceEntry{{ID: 1, Device: device.Hash(), Added: 1}})
	if err != nil {
		return store.AccountRow{}, err
	}
	row := store.AccountRow{
		Name:    cleanName(cfg.Name),
		Secret:  append(account.Marshal(), device.Marshal()...),
		List:    list.Marshal(),
		Created: cfg.Now().UnixMilli(),
	}
	return row, tx.CreateAccount(row)
}

// rename gives the account the name that the node was started with, if that is
// another one, and tells contacts. Those it can not tell yet learn the name with
// the first words of their session.
func (n *Node) rename(ctx context.Context) error {
	name := cleanName(n.cfg.Name)
	if name == "" || name == n.self.name {
		return nil
	}
	n.self.name = name
	return n.update(ctx, func(w *work) error {
		if err := w.tx.SetAccountName(name); err != nil {
			return err
		}
		contacts, err := w.tx.Contacts()
		if err != nil {
			return err
		}
		for _, c := range contacts {
			if c.State == store.ContactRequest || c.Blocked {
				continue
			}
			ok, err := w.reaches(c)
			if err != nil {
				return err
			}
			if !ok {
				continue
			}
			if err := w.say(c, &message.Profile{Name: name}); err != nil {
				return err
			}
		}
		return nil
	})
}

// reaches says whether there is a session with every device of a contact.
func (w *work) reaches(c store.ContactRow) (bool, error) {
	devices, err := w.recipients(c)
	if err != nil {
		return false, err
	}
	for _, d := range devices {
		if s, err := w.liveSession(d); err != nil || s == nil {
			return false, err
		}
	}
	return len(devices) > 0, nil
}

func decodeSelf(secret []byte) (*identity.Account, *identity.DeviceKey, error) {
	const seed = 32
	if len(secret) != seed+identity.DeviceKeySize {
		return nil, nil, fmt.Errorf("the account's keys have a wrong size: %w", store.ErrDamaged)
	}
	account, err := identity.UnmarshalAccount(secret[:seed])
	if err != nil {
		return nil, nil, err
	}
	device, err := identity.UnmarshalDeviceKey(secret[seed:])
	if err != nil {
		return nil, nil, err
	}
	if device.Public().Account() != account.Public() {
		return nil, nil, fmt.Errorf("the device belongs to another account: %w", store.ErrDamaged)
	}
	return account, device, nil
}

// counter raises a number kept in meta, and returns it.
func counter(tx *store.Tx, key string) (uint64, error) {
	var n uint64
	b, err := tx.Meta(key)
	switch {
	case errors.Is(err, store.ErrNotFound):
	case err != nil:
		return 0, err
	case len(b) != 8:
		return 0, fmt.Errorf("a counter has a wrong size: %w", store.ErrDamaged)
	default:
		n = binary.BigEndian.Uint64(b)
	}
	n++
	return n, tx.SetMeta(key, binary.BigEndian.AppendUint64(nil, n))
}

// lockedReader lets several goroutines use one generator.
type lockedReader struct {
	mu sync.Mutex
	r  io.Reader
}

func (l *lockedReader) Read(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.r.Read(p)
}
