package invite

import (
	"bytes"
	"encoding/base32"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kith-im/kith/protocol"
	"github.com/kith-im/kith/protocol/identity"
)

var expiry = time.Unix(1_800_000_000, 0)

func newInvite(t testing.TB, seed byte, reusable bool, hints ...[]byte) *Invite {
	t.Helper()
	r := random(seed)
	inv, err := New(r, identity.DeviceHash(randomBytes(r, 32)), reusable, expiry, hints)
	if err != nil {
		t.Fatal(err)
	}
	return inv
}

func full(b byte) []byte { return bytes.Repeat([]byte{b}, protocol.MaxAddress) }

func same(a, b *Invite) bool {
	return a.Reusable == b.Reusable && a.Device == b.Device && a.Secret == b.Secret &&
		a.Expiry.Equal(b.Expiry) && slices.EqualFunc(a.Hints, b.Hints, bytes.Equal)
}

func TestRoundTrip(t *testing.T) {
	for _, inv := range []*Invite{
		newInvite(t, 1, false),
		newInvite(t, 2, true, []byte("a")),
		newInvite(t, 3, false, []byte("way in"), []byte("another")),
		newInvite(t, 4, true, full(1), full(2), full(3)),
	} {
		for _, text := range []string{inv.Link(), inv.QR(), " \t" + inv.Link() + "\r\n", "\n" + inv.QR() + " "} {
			got, err := Parse(text)
			if err != nil || !same(got, inv) {
				t.Errorf("%d hints: %v", len(inv.Hints), err)
			}
		}
		if strings.Trim(inv.QR(), "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 $%*+-./:") != "" {
			t.Error("the QR form leaves QR's alphanumeric mode")
		}
		if len(inv.QR()) > maxText {
			t.Error("an invite is longer than what Parse takes")
		}
	}
	if n := len(newInvite(t, 1, false).payload()); n != 74 {
		t.Errorf("an invite without hints has %d bytes, want 74", n)
	}
}

func TestExpiry(t *testing.T) {
	inv, err := New(random(5), identity.DeviceHash{}, false, expiry.Add(time.Second), nil)
	if err != nil {
		t.Fatal(err)
	}
	if want := expiry.Add(time.Minute); !inv.Expiry.Equal(want) {
		t.Errorf("expires at %v, want %v, rounded up", inv.Expiry, want)
	}
	if inv.Expired(inv.Expiry.Add(-time.Second)) || !inv.Expired(inv.Expiry) {
		t.Error("Expired is wrong at the edge")
	}
	for _, bad := range []time.Time{time.Unix(-1000, 0), time.Unix(1<<40, 0)} {
		if _, err := New(random(5), identity.DeviceHash{}, false, bad, nil); err == nil {
			t.Errorf("made an invite that expires at %v", bad)
		}
	}
}

func TestNewRefuses(t *testing.T) {
	for name, hints := range map[string][][]byte{
		"four hints": {{1}, {2}, {3}, {4}},
		"empty hint": {{}},
		"long hint":  {make([]byte, 256)},
	} {
		if _, err := New(random(6), identity.DeviceHash{}, false, expiry, hints); err == nil {
			t.Errorf("made an invite with a %s", name)
		}
	}
	if _, err := New(bytes.NewReader(make([]byte, 31)), identity.DeviceHash{}, false, expiry, nil); err == nil {
		t.Error("made an invite from 31 random bytes")
	}
}

// text encodes a payload as a link, with a right checksum if sum is set.
func text(payload []byte, sum bool) string {
	if sum {
		payload = append(payload[:len(payload)-checksumSize:len(payload)-checksumSize], checksum(payload[:len(payload)-checksumSize])...)
	}
	return scheme + base64.RawURLEncoding.EncodeToString(payload)
}

// TestParseErrors: what is no invite is told apart as docs/spec/invite.md, section 4,
// says, and a link without its scheme is not accepted.
func TestParseErrors(t *testing.T) {
	inv := newInvite(t, 7, false, []byte("way in"))
	link, payload := inv.Link(), inv.payload()
	edit := func(f func(p []byte)) []byte {
		p := slices.Clone(payload)
		f(p)
		return p
	}
	plain := newInvite(t, 7, false).Link() // 74 bytes: the last character has two unused bits
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	stray := plain[:len(plain)-1] + string(alphabet[strings.IndexByte(alphabet, plain[len(plain)-1])+1])
	var typo string
	if link[20] == 'A' {
		typo = link[:20] + "B" + link[21:]
	} else {
		typo = link[:20] + "A" + link[21:]
	}
	tests := []struct {
		name, text string
		want       error
	}{
		{"empty", "", ErrNotInvite},
		{"white space", " \n", ErrNotInvite},
		{"a web address", "https://example.org", ErrNotInvite},
		{"no scheme", link[len(scheme):], ErrNoScheme},
		{"no scheme, and cut short", link[len(scheme) : len(link)-1], ErrNotInvite},
		{"no scheme of a QR text", inv.QR()[len(qrScheme):], ErrNotInvite},
		{"another kind", scheme + "AAAA", ErrNotInvite},
		{"too long without a scheme", strings.Repeat("A", maxText), ErrNotInvite},
		{"scheme only", scheme, ErrTruncated},
		{"too long", scheme + strings.Repeat("A", maxText), ErrNotInvite},
		{"one character short", link[:len(link)-1], ErrTruncated},
		{"half", link[:len(link)/2], ErrTruncated},
		{"half a QR text", inv.QR()[:60], ErrTruncated},
		{"one wrong character", typo, ErrDamaged},
		{"a character of no alphabet", link[:20] + "!" + link[21:], ErrDamaged},
		{"a line break inside", link[:20] + "\n" + link[20:], ErrDamaged},
		{"something after it", link + "AAAA", ErrDamaged},
		{"the wrong alphabet", qrScheme + link[len(scheme):], ErrDamaged},
		{"a stray bit in the last character", stray, ErrDamaged},
		{"wrong checksum", text(edit(func(p []byte) { p[len(p)-1] ^= 1 }), false), ErrDamaged},
		{"changed secret", text(edit(func(p []byte) { p[40] ^= 1 }), false), ErrDamaged},
		{"newer version", text(edit(func(p []byte) { p[0]++ }), true), ErrNewer},
		{"newer flag", text(edit(func(p []byte) { p[1] |= 0x80 }), true), ErrNewer},
		{"newer version, damaged", text(edit(func(p []byte) { p[0]++ }), false), ErrDamaged},
		{"more hints promised", text(edit(func(p []byte) { p[1] += 1 << hintsShift }), true), ErrTruncated},
		{"fewer hints promised", text(edit(func(p []byte) { p[1] -= 1 << hintsShift }), true), ErrDamaged},
		{"an empty hint", text(slices.Concat(payload[:70], []byte{0, 0, 0, 0, 0}), true), ErrDamaged},
	}
	for _, tt := range tests {
		if _, err := Parse(tt.text); !errors.Is(err, tt.want) {
			t.Errorf("%s: got %v, want %v", tt.name, err, tt.want)
		}
	}

	// Cut anywhere, in either form, an invite is cut short, or at worst damaged.
	for _, whole := range []string{link, inv.QR()} {
		for n := len(scheme); n < len(whole); n++ {
			if _, err := Parse(whole[:n]); !errors.Is(err, ErrTruncated) {
				t.Errorf("cut to %d of %d characters: got %v", n, len(whole), err)
			}
		}
	}
}

// A14 and A17, the protocol's part: the secret has 256 random bits, two invites share
// nothing, and everything that answers an invite is bound to the device it names.
func TestA17_InvitesShareNothing(t *testing.T) {
	seen := map[string]bool{}
	check := func(k Keys) {
		t.Helper()
		for _, b := range [][]byte{k.Rendezvous[:], k.PSK[:], k.Bundle[:], k.Stream[:], k.Tag[:]} {
			if seen[string(b[:16])] {
				t.Fatal("two derived keys are the same")
			}
			seen[string(b[:16])] = true
		}
	}
	for n := range byte(50) {
		check(newInvite(t, n, false).Keys())
	}
	inv := newInvite(t, 100, false)
	check(inv.Keys())
	inv.Device[0] ^= 1 // the same secret for another device
	check(inv.Keys())

	// Whoever relays or shortens the link changes no key: expiry and hints are not in them.
	inv2 := *inv
	inv2.Expiry, inv2.Hints, inv2.Reusable = inv.Expiry.Add(time.Hour), [][]byte{{1}}, true
	if inv.Keys() != inv2.Keys() {
		t.Error("a key depends on what is not the secret or the device")
	}
}

// A18: the payload that links a device is no invite, in whatever dress.
func TestA18_DeviceLinkIsNoInvite(t *testing.T) {
	payload := newInvite(t, 8, false).payload()
	payload[0] = kindDeviceLink<<4 | protocol.Version
	for name, text := range map[string]string{
		"as a link":                 text(payload, true),
		"with its own checksum":     text(payload, false),
		"as a QR text":              qrScheme + base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(payload),
		"under its own scheme":      "kith-link:" + base64.RawURLEncoding.EncodeToString(payload),
		"a safety number's QR text": identity.SafetyQR(identity.Party{}, identity.Party{}),
	} {
		if _, err := Parse(text); !errors.Is(err, ErrNotInvite) {
			t.Errorf("%s: got %v, want %v", name, err, ErrNotInvite)
		}
	}
}

func TestRedaction(t *testing.T) {
	inv := newInvite(t, 9, false)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x"} {
		for _, v := range []any{inv, *inv, inv.Keys()} {
			got := fmt.Sprintf(verb, v)
			for _, s := range [][]byte{inv.Secret[:4], inv.Device[:4]} {
				if strings.Contains(got, hex.EncodeToString(s)) || strings.Contains(got, strings.Trim(fmt.Sprint(s), "[]")) {
					t.Errorf("%T shows a secret under %s", v, verb)
				}
			}
		}
	}
}

func TestVectors(t *testing.T) {
	type vector struct {
		Reusable                                   bool
		Device, Secret                             string
		Expiry                                     int64
		Hints                                      []string
		Link, QR                                   string
		Rendezvous, PSK, BundleKey, StreamKey, Tag string
	}
	var vectors []vector
	for n, hints := range [][][]byte{nil, {[]byte("\x04\x0a\x00\x00\x01\x06\x10\xe1")}, {full(1), full(2), full(3)}} {
		inv := newInvite(t, byte(200+n), n == 1, hints...)
		k := inv.Keys()
		h := hex.EncodeToString
		v := vector{
			Reusable: inv.Reusable, Device: h(inv.Device[:]), Secret: h(inv.Secret[:]), Expiry: inv.Expiry.Unix(),
			Link: inv.Link(), QR: inv.QR(),
			Rendezvous: h(k.Rendezvous[:]), PSK: h(k.PSK[:]), BundleKey: h(k.Bundle[:]), StreamKey: h(k.Stream[:]), Tag: h(k.Tag[:]),
		}
		for _, hint := range hints {
			v.Hints = append(v.Hints, h(hint))
		}
		vectors = append(vectors, v)
	}
	golden(t, "invite.json", vectors)
}

func FuzzParse(f *testing.F) {
	f.Add(newInvite(f, 10, false).Link())
	f.Add(newInvite(f, 11, true, []byte("way in")).QR())
	f.Add(scheme)
	f.Fuzz(func(t *testing.T, s string) {
		inv, err := Parse(s)
		if err != nil {
			return
		}
		if s = strings.TrimSpace(s); s != inv.Link() && s != inv.QR() {
			t.Error("an invite has two texts")
		}
	})
}

// The payload is fuzzed with its checksum made right.
func FuzzParsePayload(f *testing.F) {
	f.Add(newInvite(f, 12, true, []byte("way in"), []byte("two")).payload())
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < checksumSize {
			return
		}
		b = append(b[:len(b)-checksumSize], checksum(b[:len(b)-checksumSize])...)
		if inv, err := parsePayload(b); err == nil && !bytes.Equal(inv.payload(), b) {
			t.Error("an invite has two encodings")
		}
	})
}
