package node

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"slices"
	"strings"
	"sync"

	"github.com/kith-im/kith/node/store"
	"github.com/kith-im/kith/node/transport"
)

const (
	metaLessons = "lessons" // what worked at bridges, as JSON
	maxLessons  = 64
)

// lessons is what bridges' streams taught on each network (docs/spec/veil.md, section
// 7), shared by all hosts of the process and kept in the store.
type lessons struct {
	st  *store.Store
	key []byte // of names of networks

	mu  sync.Mutex
	all []lessonKept // the newest first

	writing sync.Mutex
}

// lessonKept is a lesson as it is stored.
type lessonKept struct {
	Network string           `json:"network"`
	Server  string           `json:"server"`
	Lesson  transport.Lesson `json:"lesson"`
}

// VeilMemory keeps in a user's store what works at bridges. What can not be written
// is learnt again.
func VeilMemory(ctx context.Context, st *store.Store) (transport.VeilMemory, error) {
	m := &lessons{st: st}
	err := st.Update(ctx, func(tx *store.Tx) (err error) {
		if m.key, err = networkKey(tx); err != nil {
			return err
		}
		b, err := tx.Meta(metaLessons)
		if ok, err := found(err); !ok {
			return err
		}
		if json.Unmarshal(b, &m.all) != nil {
			m.all = nil // of another version
		}
		return nil
	})
	return transport.VeilMemory{Load: m.load, Save: m.save}, err
}

// network is the one we are on. The router's hardware address is not asked for: the
// system knows it at some times and at others not, and what was learnt behind
// another router with the same address is soon unlearnt.
func (m *lessons) network() string {
	marks := slices.DeleteFunc(transport.NetworkMarks(), func(s string) bool { return strings.HasPrefix(s, transport.HardwareMark) })
	return networkName(m.key, marks)
}

func (m *lessons) load(server transport.ServerKey) transport.Lesson {
	network, name := m.network(), hex.EncodeToString(server[:])
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, l := range m.all {
		if l.Network == network && l.Server == name {
			return l.Lesson
		}
	}
	return transport.Lesson{}
}

// save keeps a lesson at once, and writes it a moment later.
func (m *lessons) save(server transport.ServerKey, lesson transport.Lesson) {
	row := lessonKept{m.network(), hex.EncodeToString(server[:]), lesson}
	m.mu.Lock()
	m.all = slices.DeleteFunc(m.all, func(l lessonKept) bool { return l.Network == row.Network && l.Server == row.Server })
	m.all = slices.Insert(m.all, 0, row)
	m.all = m.all[:min(len(m.all), maxLessons)]
	m.mu.Unlock()
	go m.write()
}

// write stores what is newest, however many ask for it.
func (m *lessons) write() {
	m.writing.Lock()
	defer m.writing.Unlock()
	m.mu.Lock()
	b, err := json.Marshal(m.all)
	m.mu.Unlock()
	if err != nil {
		return
	}
	_ = m.st.Update(context.Background(), func(tx *store.Tx) error { return tx.SetMeta(metaLessons, b) })
}
