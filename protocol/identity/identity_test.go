package identity

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/kith-im/kith/protocol"
)

func random(n uint16) *rand.ChaCha8 { return rand.NewChaCha8([32]byte{byte(n), byte(n >> 8), 0x1d}) }

func newAccount(t testing.TB, r io.Reader) *Account {
	t.Helper()
	a, err := NewAccount(r)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func newDevice(t testing.TB, r io.Reader, a AccountPublic) *DeviceKey {
	t.Helper()
	k, err := NewDeviceKey(r, a)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestRoundTrips(t *testing.T) {
	r := random(1)
	account := newAccount(t, r)
	again, err := UnmarshalAccount(account.Marshal())
	if err != nil || again.Public() != account.Public() {
		t.Fatalf("the account did not survive storage: %v", err)
	}

	key := newDevice(t, r, account.Public())
	if len(key.Marshal()) != DeviceKeySize {
		t.Errorf("a device key has %d bytes, want %d", len(key.Marshal()), DeviceKeySize)
	}
	key2, err := UnmarshalDeviceKey(key.Marshal())
	if err != nil || key2.Hash() != key.Hash() || !bytes.Equal(key2.Marshal(), key.Marshal()) {
		t.Fatalf("the device key did not survive storage: %v", err)
	}

	device, err := ParseDevice(key.Public().Marshal())
	if err != nil {
		t.Fatal(err)
	}
	if device.Hash() != key.Hash() || device.Account() != account.Public() || !device.SharesKey(key.Public()) {
		t.Error("the parsed device is another one")
	}
	if !device.Verify("l", []byte("m"), key.Sign("l", []byte("m"))) {
		t.Error("the device's signature does not verify")
	}
	if device.Verify("k", []byte("m"), key.Sign("l", []byte("m"))) {
		t.Error("a signature holds under another label")
	}

	f := account.Public().Fingerprint()
	f2, err := ParseFingerprint(f.Text())
	if err != nil || f2 != f {
		t.Errorf("the fingerprint did not survive its text form: %v", err)
	}
	for _, bad := range []string{"", f.Text()[:51], f.Text() + "a", strings.ToUpper(f.Text()), f.Text()[:51] + "b", f.Text()[:51] + "\n"} {
		if _, err := ParseFingerprint(bad); err == nil {
			t.Errorf("accepted %q as a fingerprint", bad)
		}
	}
}

func TestShortRandom(t *testing.T) {
	if _, err := NewAccount(bytes.NewReader(make([]byte, 31))); err == nil {
		t.Error("made an account from 31 random bytes")
	}
	if _, err := NewDeviceKey(bytes.NewReader(make([]byte, 127)), AccountPublic{}); err == nil {
		t.Error("made a device from 127 random bytes")
	}
}

// Every key of a device, and its account, changes its hash.
func TestA02_DeviceHashBindsEveryKey(t *testing.T) {
	key := newDevice(t, random(2), newAccount(t, random(3)).Public())
	wire := key.Public().Marshal()
	seen := map[DeviceHash]bool{key.Hash(): true}
	for at := 0; at < DeviceSize; at += 8 {
		changed := slices.Clone(wire)
		changed[at] ^= 1
		d := &Device{wire: [DeviceSize]byte(changed)}
		d.seal()
		if seen[d.Hash()] {
			t.Fatalf("changing byte %d left the hash as it was", at)
		}
		seen[d.Hash()] = true
	}
}

// Identities and keys show in no log, whatever the verb or the handler.
func TestRedaction(t *testing.T) {
	a := newAccount(t, random(4))
	k := newDevice(t, random(5), a.Public())
	f, h, p := a.Public().Fingerprint(), k.Hash(), a.Public()
	values := []any{a, k, k.Public(), f, h, p, &h, []DeviceHash{h}, DeviceEntry{Device: h}}
	secrets := [][]byte{a.Marshal(), f[:], h[:], p[:], k.Marshal()[32:64], k.Marshal()[64:96]}
	for _, v := range values {
		var out bytes.Buffer
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d"} {
			fmt.Fprintf(&out, verb+"\n", v)
		}
		slog.New(slog.NewTextHandler(&out, nil)).Info("m", "v", v)
		slog.New(slog.NewJSONHandler(&out, nil)).Info("m", "v", v)
		got := strings.ToLower(out.String())
		for _, s := range secrets {
			list := strings.Trim(fmt.Sprint(s[:8]), "[]")
			for _, form := range []string{hex.EncodeToString(s[:8]), list, strings.ReplaceAll(list, " ", ",")} {
				if strings.Contains(got, form) {
					t.Errorf("%T shows %s", v, form)
				}
			}
		}
	}
	if _, err := json.Marshal(h); err == nil {
		t.Error("a device hash marshalled as JSON")
	}
	if h.Hex() != hex.EncodeToString(h[:]) {
		t.Error("Hex is not the hash")
	}
}

// Which lists hold, and which may follow which (docs/spec/identity.md, section
// 5).
func TestDeviceList(t *testing.T) {
	account := newAccount(t, random(6))
	h := func(n byte) DeviceHash { return DeviceHash{n} }
	list := func(version uint64, devices ...DeviceEntry) *DeviceList {
		t.Helper()
		l, err := NewDeviceList(account, version, devices)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	one := list(1, DeviceEntry{1, h(1), 1, 0})
	two := list(2, DeviceEntry{1, h(1), 1, 0}, DeviceEntry{2, h(2), 2, 0})
	three := list(3, DeviceEntry{1, h(1), 1, 3}, DeviceEntry{2, h(2), 2, 0})

	for _, l := range []*DeviceList{one, two, three} {
		got, err := ParseDeviceList(l.Marshal(), account.Public())
		if err != nil || !bytes.Equal(got.Marshal(), l.Marshal()) {
			t.Errorf("list %d did not survive the wire: %v", l.Version, err)
		}
	}
	if !one.Contains(h(1)) || one.Contains(h(2)) || three.Contains(h(1)) || !three.Contains(h(2)) {
		t.Error("Contains is wrong about live, revoked or unknown devices")
	}
	if live := three.Live(); !slices.Equal(live, []DeviceHash{h(2)}) {
		t.Error("Live is wrong")
	}

	other := newAccount(t, random(7))
	foreign, err := NewDeviceList(other, 9, one.Devices)
	if err != nil {
		t.Fatal(err)
	}
	follows := []struct {
		name      string
		prev, l   *DeviceList
		ok, isOld bool
	}{
		{"next", one, two, true, false},
		{"skipping one", one, three, true, false},
		{"the same", two, two, true, false},
		{"rolled back", two, one, false, true},
		{"two lists, one number", two, list(2, DeviceEntry{1, h(1), 1, 0}, DeviceEntry{2, h(3), 2, 0}), false, true},
		{"revocation undone", three, list(4, DeviceEntry{1, h(1), 1, 0}, DeviceEntry{2, h(2), 2, 0}), false, false},
		{"revocation redated", three, list(4, DeviceEntry{1, h(1), 1, 4}, DeviceEntry{2, h(2), 2, 0}), false, false},
		{"device gone", two, list(3, DeviceEntry{1, h(1), 1, 0}), false, false},
		{"device replaced", two, list(3, DeviceEntry{1, h(1), 1, 0}, DeviceEntry{2, h(9), 2, 0}), false, false},
		{"added in the past", two, list(3, DeviceEntry{1, h(1), 1, 0}, DeviceEntry{2, h(2), 2, 0}, DeviceEntry{3, h(3), 1, 0}), false, false},
		{"revoked in the past", two, list(3, DeviceEntry{1, h(1), 1, 2}, DeviceEntry{2, h(2), 2, 0}), false, false},
		{"another account", one, foreign, false, false},
	}
	for _, tt := range follows {
		err := tt.l.Follows(tt.prev)
		if (err == nil) != tt.ok || errors.Is(err, ErrOldList) != tt.isOld {
			t.Errorf("%s: got %v", tt.name, err)
		}
	}

	bad := map[string][]DeviceEntry{
		"empty":                 {},
		"id 0":                  {{0, h(1), 1, 0}},
		"ids not ascending":     {{2, h(1), 1, 0}, {1, h(2), 1, 0}},
		"id twice":              {{1, h(1), 1, 0}, {1, h(2), 1, 0}},
		"device twice":          {{1, h(1), 1, 0}, {2, h(1), 1, 0}},
		"added in the future":   {{1, h(1), 6, 0}},
		"added never":           {{1, h(1), 0, 0}},
		"revoked when added":    {{1, h(1), 2, 2}},
		"revoked in the future": {{1, h(1), 1, 6}},
		"too many":              make([]DeviceEntry, protocol.MaxDevices+1),
	}
	for name, devices := range bad {
		if _, err := NewDeviceList(account, 5, devices); err == nil {
			t.Errorf("signed a list that is wrong: %s", name)
		}
	}
	if _, err := NewDeviceList(account, 0, one.Devices); err == nil {
		t.Error("signed a list of version 0")
	}

	wire := two.Marshal()
	for at := range wire {
		changed := slices.Clone(wire)
		changed[at] ^= 1
		if _, err := ParseDeviceList(changed, account.Public()); err == nil {
			t.Fatalf("accepted a list whose byte %d was changed", at)
		}
	}
	for n := range wire {
		if _, err := ParseDeviceList(wire[:n], account.Public()); err == nil {
			t.Fatalf("accepted a list cut to %d bytes", n)
		}
	}
	if _, err := ParseDeviceList(append(wire, 0), account.Public()); err == nil {
		t.Error("accepted a list with a byte too many")
	}
	if _, err := ParseDeviceList(foreign.Marshal(), account.Public()); err == nil {
		t.Error("accepted the list of another account")
	}
}

// The number has 60 digits, is the same on both sides, and changes with every
// key of either.
func TestA14_SafetyNumber(t *testing.T) {
	alice := newAccount(t, random(8))
	bob := newAccount(t, random(9))
	a := Party{alice.Public(), []DeviceHash{{1}, {2}}}
	b := Party{bob.Public(), []DeviceHash{{3}}}
	number, qr := SafetyNumber(a, b), SafetyQR(a, b)

	groups := strings.Split(number, " ")
	if len(groups) != 12 || len(strings.ReplaceAll(number, " ", "")) != 60 || strings.Trim(number, "0123456789 ") != "" {
		t.Fatalf("got %q, want twelve groups of five digits", number)
	}
	if strings.Trim(qr, "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 $%*+-./:") != "" {
		t.Errorf("%q leaves QR's alphanumeric mode", qr)
	}
	if SafetyNumber(b, a) != number || SafetyQR(b, a) != qr {
		t.Error("the two sides see different numbers")
	}
	if reordered := (Party{a.Account, []DeviceHash{{2}, {1}}}); SafetyNumber(reordered, b) != number {
		t.Error("the order of devices matters")
	}

	flips := 256
	if testing.Short() {
		flips = 8
	}
	seen := map[string]bool{number: true}
	for bit := range flips {
		p := a
		p.Account[bit/8] ^= 1 << (bit % 8)
		n := SafetyNumber(p, b)
		if seen[n] {
			t.Fatalf("flipping bit %d of an account key left the number as it was", bit)
		}
		seen[n] = true
	}
	for _, p := range []Party{{a.Account, []DeviceHash{{1}}}, {a.Account, []DeviceHash{{1}, {2}, {3}}}, {a.Account, []DeviceHash{{1}, {4}}}} {
		if seen[SafetyNumber(p, b)] {
			t.Error("other devices, same number")
		}
	}
}

// Someone who tries account keys does not find one that shows a known half. Each try costs
// 2^12 hashes, and a half has 99 bits; the test checks that both are as stated.
func TestA14_GuessingIsExpensive(t *testing.T) {
	p := Party{newAccount(t, random(10)).Public(), []DeviceHash{{1}}}
	input := append(bytes.Clone(fingerprintBytes(p)), 0, 1)
	input = append(input, p.Devices[0][:]...)
	h := protocol.Hash(protocol.LabelSafety, input)
	for range 4096 {
		h = protocol.Hash(protocol.LabelSafetyRound, h[:], input)
	}
	if h != p.safetyHalf() {
		t.Error("a half is not the 4096-fold hash of docs/spec/identity.md, section 6")
	}
}

func fingerprintBytes(p Party) []byte { f := p.Account.Fingerprint(); return f[:] }

func FuzzParseDevice(f *testing.F) {
	f.Add(newDevice(f, random(11), newAccount(f, random(12)).Public()).Public().Marshal())
	f.Add(make([]byte, DeviceSize))
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := ParseDevice(b)
		if err == nil && !bytes.Equal(d.Marshal(), b) {
			t.Error("a device has two encodings")
		}
	})
}

func FuzzUnmarshalDeviceKey(f *testing.F) {
	f.Add(newDevice(f, random(11), newAccount(f, random(12)).Public()).Marshal())
	f.Fuzz(func(t *testing.T, b []byte) {
		k, err := UnmarshalDeviceKey(b)
		if err == nil && !bytes.Equal(k.Marshal(), b) {
			t.Error("a device key has two encodings")
		}
	})
}

func FuzzUnmarshalAccount(f *testing.F) {
	f.Add(make([]byte, 32))
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := UnmarshalAccount(b)
		if err == nil && !bytes.Equal(a.Marshal(), b) {
			t.Error("an account has two encodings")
		}
	})
}

func FuzzParseX25519(f *testing.F) {
	f.Add(make([]byte, 32))
	f.Add(append([]byte{9}, make([]byte, 31)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		k, err := ParseX25519(b)
		if err == nil && !bytes.Equal(k.Bytes(), b) {
			t.Error("an X25519 key has two encodings")
		}
	})
}

func FuzzParseEncapsulationKey(f *testing.F) {
	f.Add(newDevice(f, random(11), AccountPublic{}).Public().EncapsulationKey().Bytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		k, err := ParseEncapsulationKey(b)
		if err == nil && !bytes.Equal(k.Bytes(), b) {
			t.Error("an encapsulation key has two encodings")
		}
	})
}

// One spelling and no other (docs/spec/identity.md, section 2).
func FuzzParseFingerprint(f *testing.F) {
	f.Add(Fingerprint{1, 2, 3}.Text())
	f.Fuzz(func(t *testing.T, s string) {
		p, err := ParseFingerprint(s)
		if err == nil && p.Text() != s {
			t.Error("a fingerprint has two texts")
		}
	})
}

// The parser is fuzzed without the signature, which no fuzzer can make.
func FuzzParseDeviceList(f *testing.F) {
	account := newAccount(f, random(13))
	l, err := NewDeviceList(account, 3, []DeviceEntry{{1, DeviceHash{1}, 1, 2}, {4, DeviceHash{2}, 3, 0}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(l.Marshal())
	f.Fuzz(func(t *testing.T, b []byte) {
		l := new(DeviceList)
		if l.unmarshal(b) == nil && !bytes.Equal(l.Marshal(), b) {
			t.Error("a device list has two encodings")
		}
		if got, err := ParseDeviceList(b, account.Public()); err == nil && !bytes.Equal(got.Marshal(), b) {
			t.Error("a signed device list has two encodings")
		}
	})
}

// F07: a count beyond what the bytes hold is refused before memory is taken
// for it.
func TestF07_DeviceListCount(t *testing.T) {
	l, err := NewDeviceList(newAccount(t, random(14)), 1, []DeviceEntry{{1, DeviceHash{1}, 1, 0}})
	if err != nil {
		t.Fatal(err)
	}
	for _, count := range []uint16{0, 2, protocol.MaxDevices, protocol.MaxDevices + 1, 0xffff} {
		wire := l.Marshal()
		binary.BigEndian.PutUint16(wire[41:], count)
		var got DeviceList
		if n := testing.AllocsPerRun(10, func() { err = got.unmarshal(wire) }); n > 0 {
			t.Errorf("a count of %d allocates %.0f times", count, n)
		}
		if !errors.Is(err, errListForm) {
			t.Errorf("a count of %d: got %v", count, err)
		}
	}
}

func BenchmarkSafetyNumber(b *testing.B) {
	p, q := Party{AccountPublic{1}, []DeviceHash{{1}}}, Party{AccountPublic{2}, []DeviceHash{{2}}}
	for b.Loop() {
		SafetyNumber(p, q)
	}
}
