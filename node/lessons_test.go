package node

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"testing"
	"time"

	"github.com/kith-im/kith/node/store"
	"github.com/kith-im/kith/node/transport"
)

// What a bridge's stream learnt is there after a restart, for this network alone.
func TestLessons(t *testing.T) {
	dir := t.TempDir()
	open := func() (*store.Store, transport.VeilMemory, *lessons) {
		t.Helper()
		st, err := store.Open(store.Options{Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		memory, err := VeilMemory(t.Context(), st)
		if err != nil {
			t.Fatal(err)
		}
		var m lessons
		if err := st.View(t.Context(), func(tx *store.Tx) (err error) {
			m.key, err = tx.SecretMeta(metaNetworkKey)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		return st, memory, &m
	}
	st, memory, m := open()
	cut := transport.Lesson{Hello: "firefox", Packets: 14, Bytes: 16000, Gap: time.Second, At: time.Now().Round(0)}
	for i := range maxLessons + 10 { // the oldest have to go
		memory.Save(transport.ServerKey{byte(i)}, cut)
	}
	there := transport.ServerKey{0xff}
	m.st, m.all = st, []lessonKept{{Network: "another", Server: hex.EncodeToString(there[:]), Lesson: cut}}
	if m.load(there) != (transport.Lesson{}) {
		t.Error("what was learnt on another network counts on this one")
	}
	first, last := transport.ServerKey{0}, transport.ServerKey{maxLessons + 9}
	if memory.Load(first) != (transport.Lesson{}) || memory.Load(last) != cut {
		t.Errorf("the first is %+v, the last %+v", memory.Load(first), memory.Load(last))
	}
	cut.Packets = 8
	memory.Save(last, cut)
	for written := false; !written; { // by a goroutine; the test's own time limit ends this
		if err := st.View(t.Context(), func(tx *store.Tx) error {
			b, err := tx.Meta(metaLessons)
			var all []lessonKept
			written = json.Unmarshal(b, &all) == nil && len(all) > 0 && all[0].Lesson.Packets == cut.Packets
			return err
		}); err != nil && !errors.Is(err, store.ErrNotFound) {
			t.Fatal(err)
		}
	}
	if err := st.Close(); err != nil {
		t.Fatal(err)
	}
	st, memory, _ = open()
	defer st.Close()
	if got := memory.Load(last); !got.At.Equal(cut.At) || got.Hello != cut.Hello || got.Packets != cut.Packets {
		t.Errorf("after a restart: %+v", got)
	}
}
