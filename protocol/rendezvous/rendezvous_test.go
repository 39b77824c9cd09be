package rendezvous

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kith-im/kith/protocol"
	"github.com/kith-im/kith/protocol/identity"
)

var (
	now    = time.Unix(1_800_000_123, 0)
	expiry = now.Add(24 * time.Hour)
	secret = protocol.RendezvousSecret{1}
	device = identity.DeviceHash{2}
)

func sealed(t testing.TB, p Point, seq uint64, body Body) []byte {
	t.Helper()
	record, err := p.Seal(seq, expiry, body)
	if err != nil {
		t.Fatal(err)
	}
	return record
}

func equal(a, b Body) bool {
	return slices.EqualFunc(a.Addresses, b.Addresses, bytes.Equal) && bytes.Equal(a.Bundle, b.Bundle) &&
		slices.EqualFunc(a.Fields, b.Fields, func(a, b Field) bool { return a.Type == b.Type && bytes.Equal(a.Value, b.Value) })
}

func TestRoundTrip(t *testing.T) {
	bodies := map[string]Body{
		"empty":     {},
		"addresses": {Addresses: [][]byte{{1}, bytes.Repeat([]byte{2}, 255)}},
		"full": {
			Addresses: slices.Repeat([][]byte{bytes.Repeat([]byte{3}, 30)}, protocol.MaxRecordAddresses),
			Bundle:    bytes.Repeat([]byte{4}, 3387), // handshake.BundleSize
			Fields:    []Field{{FieldMailboxes, bytes.Repeat([]byte{5}, 200)}, {0xffff, nil}},
		},
	}
	point := Derive(secret, device, Day(now))[1]
	for name, body := range bodies {
		record := sealed(t, point, 7, body)
		if len(record) != protocol.RecordSize {
			t.Errorf("%s: a record has %d bytes, want %d", name, len(record), protocol.RecordSize)
		}
		again := Derive(secret, device, Day(now))[1]
		got, seq, err := again.Open(record, now)
		if err != nil || seq != 7 || !equal(got, body) {
			t.Errorf("%s: did not survive: seq %d, %v", name, seq, err)
		}
		key := point.Key()
		if err := Validate(key[:], record, now); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if !bytes.Equal(record, sealed(t, point, 7, body)) {
			t.Errorf("%s: publishing the same again makes another record", name)
		}
		if got.Field(FieldMailboxes) == nil != (name != "full") {
			t.Errorf("%s: Field is wrong", name)
		}
	}
}

func TestSealRefuses(t *testing.T) {
	point := Derive(secret, device, 1)[0]
	for name, body := range map[string]Body{
		"too many addresses": {Addresses: slices.Repeat([][]byte{{1}}, protocol.MaxRecordAddresses+1)},
		"empty address":      {Addresses: [][]byte{{}}},
		"long address":       {Addresses: [][]byte{make([]byte, 256)}},
		"too much":           {Bundle: make([]byte, bodySize)},
		"field twice":        {Fields: []Field{{1, nil}, {1, nil}}},
		"fields descending":  {Fields: []Field{{2, nil}, {1, nil}}},
		"too many fields":    {Fields: make([]Field, protocol.MaxRecordFields+1)},
	} {
		if _, err := point.Seal(1, expiry, body); err == nil {
			t.Errorf("sealed a body with %s", name)
		}
	}
	if _, err := point.Seal(1, time.Unix(-1_000_000, 0), Body{}); err == nil {
		t.Error("sealed a record that expired before 1970")
	}
}

// resign makes a changed record valid again, as the writer could.
func resign(p Point, record []byte) []byte {
	r := slices.Clone(record)
	copy(r[signatureAt:], ed25519.Sign(p.key, signedMessage(r[:signatureAt])))
	return r
}

func TestValidate(t *testing.T) {
	points := Derive(secret, device, Day(now))
	p := points[0]
	key := p.Key()
	record := sealed(t, p, 1, Body{Addresses: [][]byte{{1}}})
	withExpiry := func(e uint64) []byte {
		r := slices.Clone(record)
		binary.BigEndian.PutUint64(r[expiryAt:], e)
		return resign(p, r)
	}
	hour := uint64(expiry.Unix()/3600) * 3600
	tests := []struct {
		name   string
		record []byte
		now    time.Time
		ok     bool
		err    error
	}{
		{"good", record, now, true, nil},
		{"in its last second", record, time.Unix(int64(hour)+3600-1, 0), true, nil},
		{"expired", record, time.Unix(int64(hour)+3600, 0), false, ErrExpired},
		{"as far ahead as may be", withExpiry(uint64(now.Unix()+48*3600) / 3600 * 3600), now, true, nil},
		{"too far ahead", withExpiry(uint64(now.Unix()+48*3600)/3600*3600 + 3600), now, false, errRecord},
		{"expires never", withExpiry(1<<64 - 1), now, false, errRecord},
		{"expiry within the hour", withExpiry(hour + 1), now, false, errRecord},
		{"empty", nil, now, false, errRecord},
		{"a byte short", record[:protocol.RecordSize-1], now, false, errRecord},
		{"a byte long", append(slices.Clone(record), 0), now, false, errRecord},
	}
	for _, tt := range tests {
		err := Validate(key[:], tt.record, tt.now)
		if (err == nil) != tt.ok || !errors.Is(err, tt.err) {
			t.Errorf("%s: got %v", tt.name, err)
		}
	}
	for at := range record {
		bad := slices.Clone(record)
		bad[at] ^= 1
		if Validate(key[:], bad, now) == nil {
			t.Fatalf("a record with byte %d changed is valid", at)
		}
	}
	other := points[1].Key()
	if Validate(other[:], record, now) == nil || Validate(nil, record, now) == nil || Validate(key[:31], record, now) == nil {
		t.Error("a record is valid under a key that is not its own")
	}
	if _, _, err := points[1].Open(record, now); err == nil {
		t.Error("a record opened at another point")
	}

	// A key of small order, under which one signature fits every record.
	weak := slices.Clone(record)
	clear(weak[pubAt:seqAt])
	weak[pubAt] = 1
	clear(weak[signatureAt:])
	weak[signatureAt] = 1
	weakKey := sha256.Sum256(weak[pubAt:seqAt])
	if Validate(weakKey[:], weak, now) == nil {
		t.Error("a record under a key of small order is valid")
	}

	// What the writer signed but did not seal for the point does not open.
	bad := slices.Clone(record)
	bad[sealedAt] ^= 1
	if _, _, err := p.Open(resign(p, bad), now); !errors.Is(err, errRecord) {
		t.Errorf("a changed body: got %v", err)
	}
	bad = slices.Clone(record)
	bad[seqAt+7] ^= 1
	if _, _, err := p.Open(resign(p, bad), now); !errors.Is(err, errRecord) {
		t.Errorf("a changed seq: got %v", err)
	}
}

// Only the nonce that follows from the content opens
// (docs/spec/rendezvous.md, section 3).
func TestRecordNonce(t *testing.T) {
	p := Derive(secret, device, Day(now))[0]
	record := sealed(t, p, 1, Body{Addresses: [][]byte{{1}}})
	plain, err := p.aead().Open(nil, record[nonceAt:sealedAt], record[sealedAt:signatureAt], record[:nonceAt])
	if err != nil {
		t.Fatal(err)
	}
	other := slices.Clone(record)
	other[nonceAt] ^= 1
	p.aead().Seal(other[:sealedAt], other[nonceAt:sealedAt], plain, other[:nonceAt])
	key := p.Key()
	if err := Validate(key[:], resign(p, other), now); err != nil {
		t.Fatalf("a stranger can tell: %v", err)
	}
	if _, _, err := p.Open(resign(p, other), now); err == nil {
		t.Error("a record with another nonce opened")
	}
}

func TestSelect(t *testing.T) {
	p := Derive(secret, device, 5)[0]
	one, two, two2 := sealed(t, p, 1, Body{}), sealed(t, p, 2, Body{}), sealed(t, p, 2, Body{Bundle: []byte{1}})
	tests := []struct {
		records [][]byte
		want    int
		ok      bool
	}{
		{[][]byte{one}, 0, true},
		{[][]byte{one, two}, 1, true},
		{[][]byte{two, one}, 0, true},
		{[][]byte{two, two}, 0, true},
		{[][]byte{one, two2, two}, 1, true},
		{[][]byte{nil, one}, 1, true},
		{[][]byte{{}}, 0, false},
		{nil, 0, false},
	}
	for i, tt := range tests {
		if got, err := Select(tt.records); got != tt.want || (err == nil) != tt.ok {
			t.Errorf("case %d: got %d, %v, want %d", i, got, err, tt.want)
		}
	}
}

func TestDay(t *testing.T) {
	for unix, want := range map[int64]int64{0: 0, 86399: 0, 86400: 1, -1: -1, -86400: -1, -86401: -2, 1_800_000_000: 20833} {
		if got := Day(time.Unix(unix, 0)); got != want {
			t.Errorf("Day(%d) = %d, want %d", unix, got, want)
		}
	}
}

// D12: records do not tell which belong together. Of many records, of the same and of
// other pairs, publishers, days and points, no two share eight bytes at any place but the
// version, the sequence number and the coarse expiry, which all records of the hour share.
func TestD12_RecordsAreUnlinkable(t *testing.T) {
	pairs := 80
	if testing.Short() {
		pairs = 10
	}
	const days, seqs = 2, 3
	body := Body{Addresses: [][]byte{[]byte("the same address")}, Bundle: make([]byte, 3387)}
	seen := make(map[[8]byte]bool)
	keys := make(map[[32]byte]bool)
	clear8 := map[string]bool{}
	var ones, bits int
	for pair := range pairs {
		for direction := range byte(2) {
			for day := range int64(days) {
				for _, p := range Derive(protocol.RendezvousSecret{byte(pair), 1}, identity.DeviceHash{direction}, day) {
					if keys[p.Key()] {
						t.Fatal("two points share a key")
					}
					keys[p.Key()] = true
					for seq := range uint64(seqs) {
						r := sealed(t, p, seq, body)
						clear8[string(r[:1])+string(r[seqAt:nonceAt])] = true
						parts := [][]byte{r[nonceAt:]}
						if seq == 0 {
							parts = append(parts, r[pubAt:seqAt])
						}
						for _, part := range parts {
							for i := 0; i+8 <= len(part); i += 8 {
								window := [8]byte(part[i:])
								if seen[window] {
									t.Fatal("two records share eight bytes")
								}
								seen[window] = true
							}
						}
						for _, b := range r[sealedAt : sealedAt+64] {
							for ; b != 0; b &= b - 1 {
								ones++
							}
							bits += 8
						}
					}
				}
			}
		}
	}
	if len(clear8) != seqs {
		t.Errorf("the clear fields take %d values, want one for each seq", len(clear8))
	}
	if share := float64(ones) / float64(bits); share < 0.48 || share > 0.52 {
		t.Errorf("the sealed bodies have %.3f ones", share)
	}
}

func TestRedaction(t *testing.T) {
	p := Derive(secret, device, 5)[0]
	for _, verb := range []string{"%v", "%+v", "%#v", "%x"} {
		got := fmt.Sprintf(verb, p)
		if strings.Contains(got, hex.EncodeToString(p.seal[:4])) || strings.Contains(got, hex.EncodeToString(p.key[:4])) ||
			strings.Contains(got, strings.Trim(fmt.Sprint(p.key[:4]), "[]")) {
			t.Errorf("a point shows its keys under %s", verb)
		}
	}
}

func TestVectors(t *testing.T) {
	type field struct {
		Type  uint16
		Value string
	}
	type vector struct {
		Secret, Publisher string
		Day               int64
		Index             int
		Public, Key, Seal string
		Seq               uint64
		Expiry            int64
		Addresses         []string
		Bundle            string
		Fields            []field
		Record            string
	}
	h := hex.EncodeToString
	var vectors []vector
	for n := range byte(2) {
		r := random(n)
		s, d := protocol.RendezvousSecret(randomBytes(r, 32)), identity.DeviceHash(randomBytes(r, 32))
		day := Day(now) + int64(n)
		body := Body{
			Addresses: [][]byte{randomBytes(r, 8), randomBytes(r, 20)}, Bundle: randomBytes(r, int(n)*100),
			Fields: []Field{{FieldMailboxes, randomBytes(r, 10)}},
		}
		for i, p := range Derive(s, d, day) {
			key := p.Key()
			record := sealed(t, p, uint64(i+1), body)
			vectors = append(vectors, vector{
				Secret: h(s[:]), Publisher: h(d[:]), Day: day, Index: i,
				Public: h(p.key[32:]), Key: h(key[:]), Seal: h(p.seal[:]),
				Seq: uint64(i + 1), Expiry: int64(binary.BigEndian.Uint64(record[expiryAt:])),
				Addresses: []string{h(body.Addresses[0]), h(body.Addresses[1])}, Bundle: h(body.Bundle),
				Fields: []field{{uint16(FieldMailboxes), h(body.Fields[0].Value)}}, Record: h(record),
			})
		}
	}
	golden(t, "rendezvous.json", vectors)
}

func FuzzValidate(f *testing.F) {
	p := Derive(secret, device, Day(now))[0]
	key := p.Key()
	record := sealed(f, p, 1, Body{Bundle: []byte("b")})
	f.Add(record)
	f.Fuzz(func(t *testing.T, b []byte) {
		if Validate(key[:], b, now) == nil && !bytes.Equal(b, record) {
			t.Error("a record that nobody signed is valid")
		}
		_, _ = Select([][]byte{b, record})
	})
}

func FuzzBody(f *testing.F) {
	body := Body{Addresses: [][]byte{{1, 2}, {3}}, Bundle: []byte("b"), Fields: []Field{{1, []byte("v")}, {9, nil}}}
	plain, err := body.Marshal()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(plain[:64])
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > bodySize {
			return
		}
		plain := make([]byte, bodySize)
		copy(plain, b)
		body, err := ParseBody(plain)
		if err != nil {
			return
		}
		again, err := body.Marshal()
		if err != nil || !bytes.Equal(again, plain) {
			t.Errorf("a body has two encodings: %v", err)
		}
	})
}

// fieldLists are what a rendezvous update may hold.
func fieldLists() [][]Field {
	full := make([]Field, protocol.MaxRecordFields)
	for i := range full {
		full[i] = Field{FieldType(i * 0x1111), randomBytes(random(byte(40+i)), i)}
	}
	return [][]Field{
		nil,
		{{FieldMailboxes, randomBytes(random(30), 60)}},
		{{FieldMailboxes, randomBytes(random(31), 60)}, {0xffff, []byte{}}},
		full,
	}
}

func TestFields(t *testing.T) {
	for i, fields := range fieldLists() {
		b, err := MarshalFields(fields)
		if err != nil {
			t.Fatal(err)
		}
		got, err := ParseFields(b)
		if err != nil || !equal(Body{Fields: got}, Body{Fields: fields}) {
			t.Errorf("list %d: got %v, %v", i, got, err)
		}
		for n := range len(b) {
			if got, err := ParseFields(b[:n]); err == nil || got != nil {
				t.Fatalf("list %d, cut to %d bytes: got %v, %v", i, n, got, err)
			}
		}
		if got, err := ParseFields(append(b, 0)); err == nil || got != nil {
			t.Errorf("list %d with a byte behind it: got %v, %v", i, got, err)
		}
	}
}

// F07: fields that no writer produces are refused, and nothing of them is
// returned.
func TestF07_Fields(t *testing.T) {
	for name, wire := range map[string][]byte{
		"nothing":           {},
		"too many":          append([]byte{protocol.MaxRecordFields + 1}, make([]byte, 4*(protocol.MaxRecordFields+1))...),
		"fewer than said":   {2, 0, 1, 0, 0},
		"more than said":    {0, 0, 1, 0, 0},
		"a value cut short": {1, 0, 1, 0, 2, 7},
		"one twice":         {2, 0, 1, 0, 0, 0, 1, 0, 0},
		"descending":        {2, 0, 2, 0, 0, 0, 1, 0, 0},
		"padded":            {1, 0, 1, 0, 0, 0},
	} {
		if got, err := ParseFields(wire); !errors.Is(err, errBody) || got != nil {
			t.Errorf("%s: got %v, %v", name, got, err)
		}
	}
	for name, fields := range map[string][]Field{
		"too many":   make([]Field, protocol.MaxRecordFields+1),
		"one twice":  {{1, nil}, {1, nil}},
		"descending": {{2, nil}, {1, nil}},
		"a long one": {{1, make([]byte, 1<<16)}},
	} {
		if b, err := MarshalFields(fields); err == nil || b != nil {
			t.Errorf("%s: encoded", name)
		}
	}
}

func TestFieldVectors(t *testing.T) {
	type field struct {
		Type  uint16
		Value string
	}
	type vector struct {
		Fields  []field
		Encoded string
	}
	var vectors []vector
	for _, fields := range fieldLists() {
		b, err := MarshalFields(fields)
		if err != nil {
			t.Fatal(err)
		}
		v := vector{Fields: []field{}, Encoded: hex.EncodeToString(b)}
		for _, f := range fields {
			v.Fields = append(v.Fields, field{uint16(f.Type), hex.EncodeToString(f.Value)})
		}
		vectors = append(vectors, v)
	}
	golden(t, "fields.json", vectors)
}

func FuzzFields(f *testing.F) {
	for _, fields := range fieldLists() {
		b, err := MarshalFields(fields)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var fields []Field
		var err error
		var before, after runtime.MemStats
		n := uint64(1<<64 - 1)
		for range 5 { // the runtime allocates, too: the least counts
			runtime.ReadMemStats(&before)
			fields, err = ParseFields(b)
			runtime.ReadMemStats(&after)
			n = min(n, after.TotalAlloc-before.TotalAlloc)
		}
		if n > 4*uint64(len(b))+64<<10 {
			t.Errorf("%d bytes take %d bytes of memory", len(b), n)
		}
		if err != nil {
			return
		}
		if again, err := MarshalFields(fields); err != nil || !bytes.Equal(again, b) {
			t.Errorf("fields have two encodings: %v", err)
		}
	})
}

func BenchmarkRecord(b *testing.B) {
	p := Derive(secret, device, Day(now))[0]
	record := sealed(b, p, 1, Body{})
	key := p.Key()
	b.Run("derive", func(b *testing.B) {
		for b.Loop() {
			Derive(secret, device, 1)
		}
	})
	b.Run("seal", func(b *testing.B) {
		for b.Loop() {
			sealed(b, p, 1, Body{})
		}
	})
	b.Run("validate", func(b *testing.B) {
		for b.Loop() {
			if err := Validate(key[:], record, now); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// F07: a body with counts, lengths or padding that no writer produces is
// refused, and a count costs nothing before its items are there.
func TestF07_Body(t *testing.T) {
	for name, head := range map[string][]byte{
		"too many addresses":          {protocol.MaxRecordAddresses + 1},
		"empty address":               {1, 0},
		"second address empty":        {2, 1, 7},
		"bundle too long":             {0, 0xff, 0xff},
		"too many fields":             {0, 0, 0, protocol.MaxRecordFields + 1},
		"field too long":              {0, 0, 0, 1, 0, 1, 0xff, 0xff},
		"field twice":                 {0, 0, 0, 2, 0, 1, 0, 0, 0, 1, 0, 0},
		"fields descending":           {0, 0, 0, 2, 0, 2, 0, 0, 0, 1, 0, 0},
		"padding that is not zero":    {0, 0, 0, 0, 0, 0, 1},
		"padding not zero at the end": append(make([]byte, bodySize-1), 1),
	} {
		plain := make([]byte, bodySize)
		copy(plain, head)
		var body Body
		if err := body.unmarshal(plain); !errors.Is(err, errBody) {
			t.Errorf("%s: got %v, want %v", name, err, errBody)
		}
	}
	claim := append([]byte{0, 0, 0, protocol.MaxRecordFields}, 0xff)
	if n := testing.AllocsPerRun(100, func() {
		var body Body
		_ = body.unmarshal(claim)
	}); n > 1 {
		t.Errorf("a claim of fields that are not there allocates %.0f times", n)
	}
}
