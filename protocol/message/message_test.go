package message

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"github.com/kith-im/kith/protocol"
	"github.com/kith-im/kith/protocol/identity"
)

var update = flag.Bool("update", false, "write the vectors anew")

// samples has one content of each kind, and one of none.
func samples() []Content {
	id := ID{1}
	return []Content{
		&Text{Body: "hello", ReplyTo: id, Expire: 60},
		&Delivered{IDs: []ID{{1}, {2}}},
		&Read{IDs: []ID{{3}}},
		&Edit{Target: id, Body: "better"},
		&Delete{Target: id},
		&Reaction{Target: id, Sign: "👍"},
		&Typing{Active: true},
		&Expiry{Seconds: 3600},
		&Profile{Name: "Ada"},
		&DeviceList{Signed: []byte("list")},
		&Prekey{Bundle: []byte("bundle")},
		&Rendezvous{Record: []byte("record")},
		&Attachment{Key: [32]byte{1}, Digest: [32]byte{2}, Size: 3, Name: "a.pdf"},
		&Group{Operation: []byte("operation")},
		&Resend{Ranges: []Range{{1, 1}, {3, 9}}},
		&Gone{Seq: 4, ID: id, Reason: Expired},
		&Held{Nodes: [][32]byte{{1}, {2}}, Left: []Left{{[16]byte{3}, 1}, {[16]byte{4}, 3}}},
		&Unknown{Number: 4711, Raw: []byte("new")},
	}
}

// of is a valid message around a content.
func of(c Content) *Message {
	m := &Message{Conversation: ConversationID{9}, Time: 1_700_000_000_000, Content: c}
	if c.Kind().Historical() {
		m.Seq, m.Prev, m.Parents, m.Depth = 2, ID{5}, []ID{{6}, {7}}, 8
	}
	return m
}

func TestEveryKindEncodes(t *testing.T) {
	for _, c := range samples() {
		m := of(c)
		b, err := m.Encode()
		if err != nil {
			t.Fatalf("%v: %v", c.Kind(), err)
		}
		got, err := Decode(b)
		if err != nil {
			t.Fatalf("%v: %v", c.Kind(), err)
		}
		if fmt.Sprintf("%T %x", got.Content, mustEncode(t, got)) != fmt.Sprintf("%T %x", c, b) {
			t.Errorf("%v does not survive", c.Kind())
		}
		for n := range b {
			if _, err := Decode(b[:n]); err == nil {
				t.Errorf("%v is accepted when cut to %d bytes", c.Kind(), n)
			}
		}
		if _, err := Decode(append(bytes.Clone(b), 0)); err == nil {
			t.Errorf("%v is accepted with a byte more", c.Kind())
		}
	}
}

func mustEncode(t testing.TB, m *Message) []byte {
	t.Helper()
	b, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestA19_AllowTable holds the table to the one in docs/spec/message.md and
// wants a row, a content type and a sample for every constant in the source.
func TestA19_AllowTable(t *testing.T) {
	spec, err := os.ReadFile("../../docs/spec/message.md")
	if err != nil {
		t.Fatal(err)
	}
	senders := []Sender{OwnDevice, Contact, Member, Admin, Stranger}
	have := map[Kind]Content{}
	for _, c := range samples() {
		have[c.Kind()] = c
	}
	check := func(k Kind, number string) {
		info := k.info()
		cells := []string{number, info.name, map[bool]string{true: "yes", false: "no"}[info.historical]}
		if !info.known {
			cells[2] = "if seq > 0"
		}
		for _, s := range senders {
			cells = append(cells, map[bool]string{true: "yes", false: "–"}[k.AllowedFrom(s)])
		}
		row := "| " + strings.Join(cells, " | ") + " |"
		if !bytes.Contains(spec, []byte(row)) {
			t.Errorf("docs/spec/message.md has no row %s", row)
		}
	}
	file, err := parser.ParseFile(token.NewFileSet(), "kind.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	kinds := 0
	ast.Inspect(file, func(n ast.Node) bool {
		v, ok := n.(*ast.ValueSpec)
		if !ok || len(v.Names) != 1 || !strings.HasPrefix(v.Names[0].Name, "Kind") {
			return true
		}
		number, err := strconv.Atoi(v.Values[0].(*ast.BasicLit).Value)
		if err != nil {
			t.Fatal(err)
		}
		kinds++
		k := Kind(number)
		if !k.Known() || have[k] == nil {
			t.Errorf("%s has no row in the table or no sample", v.Names[0].Name)
		}
		check(k, strconv.Itoa(number))
		return true
	})
	if kinds != len(have)-1 {
		t.Errorf("%d kinds and %d samples", kinds, len(have)-1)
	}
	check(Kind(4711), "other")

	for k := range Kind(100) {
		if k.AllowedFrom(0) {
			t.Errorf("%v is allowed from nobody", k)
		}
		if k.AllowedFrom(Contact|Stranger) != (k.AllowedFrom(Contact) && k.AllowedFrom(Stranger)) {
			t.Errorf("%v: two classes get more than each", k)
		}
	}
}

// TestB08_B09_IDsBind: the id of a message covers its author, its conversation,
// its place in the sequence and what came before, so none of them can change
// without a gap or another message.
func TestB08_B09_IDsBind(t *testing.T) {
	author := identity.DeviceHash{1}
	base := of(&Text{Body: "x"})
	id := NewID(author, mustEncode(t, base))
	seen := map[ID]string{id: "the message itself"}
	for name, change := range map[string]func(*Message){
		"conversation": func(m *Message) { m.Conversation[0] ^= 1 },
		"sequence":     func(m *Message) { m.Seq++ },
		"predecessor":  func(m *Message) { m.Prev[31] ^= 1 },
		"parents":      func(m *Message) { m.Parents = m.Parents[:1] },
		"depth":        func(m *Message) { m.Depth++ },
		"time":         func(m *Message) { m.Time++ },
		"content":      func(m *Message) { m.Content = &Text{Body: "y"} },
		"kind":         func(m *Message) { m.Content = &Edit{Target: ID{1}, Body: "x"} },
	} {
		m := *base
		change(&m)
		got := NewID(author, mustEncode(t, &m))
		if was, ok := seen[got]; ok {
			t.Errorf("another %s has the id of %s", name, was)
		}
		seen[got] = name
	}
	if NewID(identity.DeviceHash{2}, mustEncode(t, base)) == id {
		t.Error("another author has the same id")
	}
	a, b := identity.AccountPublic{1}, identity.AccountPublic{2}
	if ConversationOf(a, b) != ConversationOf(b, a) {
		t.Error("two people have two conversations")
	}
	if ConversationOf(a, b) == ConversationOf(a, a) {
		t.Error("two conversations have one name")
	}
}

// TestB18_FileIsCommitted: the id of a message covers a file's key and digest,
// so two recipients of one message cannot open one file as two.
func TestB18_FileIsCommitted(t *testing.T) {
	file := Attachment{Key: [32]byte{1}, Digest: [32]byte{2}, Size: 3}
	other := file
	other.Key[0]++
	if NewID(identity.DeviceHash{}, mustEncode(t, of(&file))) == NewID(identity.DeviceHash{}, mustEncode(t, of(&other))) {
		t.Error("two keys, one message")
	}
	for name, bad := range map[string]*Attachment{
		"no key":    {Digest: [32]byte{2}, Size: 3},
		"no digest": {Key: [32]byte{1}, Size: 3},
		"no size":   {Key: [32]byte{1}, Digest: [32]byte{2}},
		"too large": {Key: [32]byte{1}, Digest: [32]byte{2}, Size: maxFileSize + 1},
	} {
		if _, err := of(bad).Encode(); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestRefused(t *testing.T) {
	id := ID{1}
	many := make([]ID, protocol.MaxBatch+1)
	ranges := make([]Range, protocol.MaxBatch+1)
	for i := range many {
		many[i] = ID{byte(i >> 8), byte(i), 1}
		ranges[i] = Range{uint64(3*i + 1), uint64(3*i + 1)}
	}
	for name, c := range map[string]Content{
		"empty text":                &Text{},
		"long text":                 &Text{Body: strings.Repeat("x", protocol.MaxText+1)},
		"broken text":               &Text{Body: "a\xff"},
		"surrogate":                 &Text{Body: "\xed\xa0\x80"},
		"edit of nothing":           &Edit{Body: "x"},
		"empty edit":                &Edit{Target: id},
		"delete of nothing":         &Delete{},
		"reaction to nothing":       &Reaction{Sign: "x"},
		"long reaction":             &Reaction{Target: id, Sign: strings.Repeat("x", maxSign+1)},
		"empty receipt":             &Delivered{},
		"long receipt":              &Delivered{IDs: many},
		"receipt twice for one":     &Read{IDs: []ID{{1}, {1}}},
		"receipt out of order":      &Read{IDs: []ID{{2}, {1}}},
		"receipt for nothing":       &Read{IDs: []ID{{}}},
		"long name":                 &Profile{Name: strings.Repeat("é", protocol.MaxName+1)},
		"broken name":               &Profile{Name: "\xff"},
		"empty list":                &DeviceList{},
		"long list":                 &DeviceList{Signed: make([]byte, protocol.MaxContent+1)},
		"empty prekey":              &Prekey{},
		"empty record":              &Rendezvous{},
		"empty operation":           &Group{},
		"no ranges":                 &Resend{},
		"too many ranges":           &Resend{Ranges: ranges},
		"range from 0":              &Resend{Ranges: []Range{{0, 1}}},
		"range backwards":           &Resend{Ranges: []Range{{2, 1}}},
		"ranges touch":              &Resend{Ranges: []Range{{1, 2}, {3, 4}}},
		"range beyond":              &Resend{Ranges: []Range{{1, MaxDepth + 1}}},
		"gone without number":       &Gone{ID: id, Reason: Deleted},
		"gone without id":           &Gone{Seq: 1, Reason: Deleted},
		"gone without reason":       &Gone{Seq: 1, ID: id},
		"gone for an unknown one":   &Gone{Seq: 1, ID: id, Reason: 4},
		"held nowhere":              &Held{Left: []Left{{[16]byte{1}, 1}}},
		"nothing held":              &Held{Nodes: [][32]byte{{1}}},
		"held at no node":           &Held{Nodes: [][32]byte{{1}}, Left: []Left{{[16]byte{1}, 1}, {[16]byte{2}, 0}}},
		"held at an unnamed node":   &Held{Nodes: [][32]byte{{1}}, Left: []Left{{[16]byte{1}, 3}}},
		"held nothing at a node":    &Held{Nodes: [][32]byte{{1}, {2}}, Left: []Left{{[16]byte{1}, 1}}},
		"held at six nodes":         &Held{Nodes: [][32]byte{{1}, {2}, {3}, {4}, {5}, {6}}, Left: []Left{{[16]byte{1}, 63}}},
		"held, nodes not in order":  &Held{Nodes: [][32]byte{{2}, {1}}, Left: []Left{{[16]byte{1}, 3}}},
		"held, a node twice":        &Held{Nodes: [][32]byte{{1}, {1}}, Left: []Left{{[16]byte{1}, 3}}},
		"held, not in order":        &Held{Nodes: [][32]byte{{1}}, Left: []Left{{[16]byte{2}, 1}, {[16]byte{1}, 1}}},
		"held, too many":            &Held{Nodes: [][32]byte{{1}}, Left: make([]Left, protocol.MaxBatch+1)},
		"long file name":            &Attachment{Key: [32]byte{1}, Digest: [32]byte{1}, Size: 1, Name: strings.Repeat("x", 256)},
		"kind 0":                    &Unknown{},
		"known kind as unknown":     &Unknown{Number: KindText, Raw: []byte("x")},
		"long content of a new one": &Unknown{Number: 999, Raw: make([]byte, protocol.MaxContent+1)},
	} {
		if _, err := of(c).Encode(); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	for name, change := range map[string]func(*Message){
		"history without number":   func(m *Message) { m.Seq, m.Prev, m.Parents, m.Depth = 0, ID{}, nil, 0 },
		"first with predecessor":   func(m *Message) { m.Seq = 1 },
		"second without":           func(m *Message) { m.Prev = ID{} },
		"no depth":                 func(m *Message) { m.Depth = 0 },
		"number beyond":            func(m *Message) { m.Seq = MaxDepth + 1 },
		"depth beyond":             func(m *Message) { m.Depth = MaxDepth + 1 },
		"time beyond":              func(m *Message) { m.Time = maxTime + 1 },
		"parents out of order":     func(m *Message) { m.Parents = []ID{{2}, {1}} },
		"one parent twice":         func(m *Message) { m.Parents = []ID{{2}, {2}} },
		"no parent":                func(m *Message) { m.Parents = []ID{{}} },
		"too many parents":         func(m *Message) { m.Parents = many[1 : protocol.MaxParents+2] },
		"passing kind in history":  func(m *Message) { m.Content = &Typing{} },
		"depth outside of history": func(m *Message) { m.Seq, m.Prev, m.Parents, m.Content = 0, ID{}, nil, &Typing{} },
		"no content":               func(m *Message) { m.Content = nil },
	} {
		m := of(&Text{Body: "x"})
		change(m)
		if _, err := m.Encode(); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := of(&Text{Body: strings.Repeat("x", protocol.MaxText+1)}).Encode(); !errors.Is(err, ErrTextTooLong) {
		t.Errorf("long text: %v", err)
	}
	if _, err := of(&Text{Body: "\xff"}).Encode(); !errors.Is(err, ErrTextInvalid) {
		t.Errorf("broken text: %v", err)
	}
}

// TestOneEncoding: forms that only a decoder meets.
func TestOneEncoding(t *testing.T) {
	reply := mustEncode(t, of(&Text{Body: "x", ReplyTo: ID{1}}))
	present := len(reply) - 1 - 4 - 32 - 1 // body, expiry, id, presence
	typing := mustEncode(t, of(&Typing{Active: true}))
	for name, b := range map[string][]byte{
		"reply to nothing":   append(append(bytes.Clone(reply[:present+1]), make([]byte, 32)...), reply[present+33:]...),
		"presence of 2":      append(append(bytes.Clone(reply[:present]), 2), reply[present+1:]...),
		"typing more than 1": append(bytes.Clone(typing[:len(typing)-1]), 2),
	} {
		if _, err := Decode(b); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := Decode(reply); err != nil || reply[present] != 1 {
		t.Fatalf("the test looks at the wrong place: %v", err)
	}
}

func TestNextDepth(t *testing.T) {
	for _, tt := range []struct {
		before []uint64
		want   uint64
	}{
		{nil, 1},
		{[]uint64{4, 9, 2}, 10},
		{[]uint64{MaxDepth}, MaxDepth},
		{[]uint64{1<<64 - 1}, MaxDepth}, // nothing overflows
	} {
		if got := NextDepth(tt.before...); got != tt.want {
			t.Errorf("NextDepth(%v) = %d, want %d", tt.before, got, tt.want)
		}
	}
}

// TestF07_Bombs: counts and lengths that promise more than there is, or more
// than there may be, allocate nothing to speak of.
func TestF07_Bombs(t *testing.T) {
	head := func(kind Kind, length int) []byte {
		b := make([]byte, 32+8+32+1+8+8, 128)
		b = binary.BigEndian.AppendUint16(b, uint16(kind))
		return append(b, byte(length>>16), byte(length>>8), byte(length))
	}
	parents := make([]byte, 32+8+32+1)
	parents[len(parents)-1] = 255
	long := append(head(KindDelivered, 2+65535*32), 0xff, 0xff)
	long = append(long, make([]byte, 65535*32)...)
	for name, b := range map[string][]byte{
		"parents":        parents,
		"receipts":       append(head(KindDelivered, 2), 0xff, 0xff),
		"real receipts":  long,
		"ranges":         append(head(KindResend, 2), 0xff, 0xff),
		"length":         head(KindText, 1<<24-1),
		"long list":      append(head(KindDeviceList, 1<<20), make([]byte, 1<<20)...),
		"long text":      append(head(KindText, 1<<20), make([]byte, 1<<20)...),
		"unknown length": head(999, 1<<24-1),
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		if _, err := Decode(b); err == nil {
			t.Errorf("%s: accepted", name)
		}
		runtime.ReadMemStats(&after)
		if grew := after.TotalAlloc - before.TotalAlloc; grew > 64<<10 {
			t.Errorf("%s: refusing %d bytes took %d", name, len(b), grew)
		}
	}
}

func FuzzDecode(f *testing.F) {
	for _, c := range samples() {
		b, err := of(c).Encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := Decode(b)
		if err != nil {
			return
		}
		if again := mustEncode(t, m); !bytes.Equal(b, again) {
			t.Fatalf("a message has two encodings:\n%x\n%x", b, again)
		}
	})
}

// TestNothingPrints: ids stay out of logs however they are printed.
func TestNothingPrints(t *testing.T) {
	id, c := ID{0xab, 0xcd}, ConversationID{0xab, 0xcd}
	for _, verb := range []string{"%v", "%s", "%x", "%d", "%+v", "%#v"} {
		m := Message{Conversation: c, Prev: id, Content: &Text{Body: "ab"}}
		if s := fmt.Sprintf(verb+verb+verb+verb, id, c, m, &m); strings.Contains(s, "ab") || strings.Contains(s, "171") {
			t.Errorf("%s prints %s", verb, s)
		}
	}
}

// A vector is one message in testdata/messages.json.
type vector struct {
	Kind    string
	Author  string
	Message string
	ID      string
}

func TestVectors(t *testing.T) {
	author := identity.DeviceHash{0xaa}
	var vectors []vector
	for _, c := range samples() {
		b := mustEncode(t, of(c))
		id := NewID(author, b)
		vectors = append(vectors, vector{
			c.Kind().String(), hex.EncodeToString(author[:]), hex.EncodeToString(b), hex.EncodeToString(id[:]),
		})
	}
	conversation := ConversationOf(identity.AccountPublic{1}, identity.AccountPublic{2})
	got, err := json.MarshalIndent(struct {
		Accounts     [2]string
		Conversation string
		Messages     []vector
	}{
		[2]string{hex.EncodeToString(append([]byte{1}, make([]byte, 31)...)), hex.EncodeToString(append([]byte{2}, make([]byte, 31)...))},
		hex.EncodeToString(conversation[:]), vectors,
	}, "", "\t")
	if err != nil {
		t.Fatal(err)
	}
	got = append(got, '\n')
	const file = "testdata/messages.json"
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Fatal("the vectors changed: an older build would not understand this one")
	}
}

func BenchmarkEncode(b *testing.B) {
	m := of(&Text{Body: strings.Repeat("x", 100)})
	b.ReportAllocs()
	for b.Loop() {
		if _, err := m.Encode(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDecode(b *testing.B) {
	m := of(&Text{Body: strings.Repeat("x", 100)})
	data := mustEncode(b, m)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Decode(data); err != nil {
			b.Fatal(err)
		}
	}
}
