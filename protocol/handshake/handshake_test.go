package handshake

import (
	"bytes"
	"crypto/ecdh"
	"crypto/mlkem"
	"crypto/mlkem/mlkemtest"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kith-im/kith/protocol"
	"github.com/kith-im/kith/protocol/identity"
	"golang.org/x/crypto/chacha20poly1305"
)

var (
	now    = time.Unix(1_800_000_000, 0)
	expiry = now.Add(7 * 24 * time.Hour)
)

func random(seed uint64) *rand.ChaCha8 {
	var s [32]byte
	binary.BigEndian.PutUint64(s[:], seed)
	return rand.NewChaCha8(s)
}

// derandomized is an encapsulator that draws from r, for known answers.
func derandomized(r io.Reader) encapsulator {
	return func(ek *mlkem.EncapsulationKey1024) ([]byte, []byte) {
		m := make([]byte, 32)
		if _, err := io.ReadFull(r, m); err != nil {
			panic(err)
		}
		shared, ct, err := mlkemtest.Encapsulate1024(ek, m)
		if err != nil {
			panic(err)
		}
		return shared, ct
	}
}

// pair is two devices, an invitation's secrets, and B's bundle.
type pair struct {
	a, b      *identity.DeviceKey
	prekey    *Prekey
	psk       protocol.PSK
	bundleKey protocol.BundleKey
	bundle    *Bundle
}

func newDevice(t testing.TB, r io.Reader) *identity.DeviceKey {
	t.Helper()
	account, err := identity.NewAccount(r)
	if err != nil {
		t.Fatal(err)
	}
	k, err := identity.NewDeviceKey(r, account.Public())
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func newPair(t testing.TB, seed uint64) *pair {
	t.Helper()
	r := random(seed)
	p := &pair{a: newDevice(t, r), b: newDevice(t, r)}
	var err error
	if p.prekey, err = NewPrekey(r); err != nil {
		t.Fatal(err)
	}
	_, _ = io.ReadFull(r, p.psk[:])
	_, _ = io.ReadFull(r, p.bundleKey[:])
	p.bundle = NewBundle(p.b, p.prekey, 3, expiry, p.bundleKey)
	return p
}

func (p *pair) parse(t testing.TB) *Bundle {
	t.Helper()
	b, err := ParseBundle(p.bundle.Marshal(), p.b.Hash(), p.bundleKey, 0, now)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (p *pair) initiate(t testing.TB, r io.Reader) ([]byte, *Keys) {
	t.Helper()
	hx1, keys, err := Initiate(r, p.a, p.bundle, p.psk)
	if err != nil {
		t.Fatal(err)
	}
	return hx1, keys
}

func TestHandshake(t *testing.T) {
	p := newPair(t, 1)
	p.bundle = p.parse(t)
	hx1, ka := p.initiate(t, random(2))
	if len(hx1) != HX1Size || HX1Size != 4889 {
		t.Errorf("HX1 has %d bytes, want %d", len(hx1), HX1Size)
	}
	id, err := Gate(p.psk, hx1)
	if err != nil || id != p.prekey.ID() {
		t.Fatalf("the gate refused an honest first message: %v", err)
	}
	prekey, err := UnmarshalPrekey(p.prekey.Marshal())
	if err != nil {
		t.Fatal(err)
	}
	peer, kb, err := Respond(p.b, prekey, p.psk, hx1)
	if err != nil {
		t.Fatal(err)
	}
	if peer.Hash() != p.a.Hash() {
		t.Error("the responder sees another peer")
	}
	if *ka != *kb {
		t.Fatal("the two sides hold different keys")
	}
	distinct := map[[32]byte]bool{ka.Root: true, ka.HeaderA: true, ka.HeaderB: true, ka.HX2: true, ka.TagA: true, ka.TagB: true, ka.Pair: true}
	if len(distinct) != 7 {
		t.Error("two keys of a session are the same")
	}
	a, b := p.a.Hash(), p.b.Hash()
	if want := slices.Concat(ka.SID[:], a[:], b[:]); !bytes.Equal(ka.AD[:], want) {
		t.Error("AD is not sid | D_A | D_B")
	}

	hx2, s3 := MakeHX2(kb, peer)
	if len(hx2) != HX2Size || HX2Size != 1596 {
		t.Errorf("HX2 has %d bytes, want %d", len(hx2), HX2Size)
	}
	got, err := OpenHX2(p.a, ka, hx2)
	if err != nil || got != s3 {
		t.Fatalf("HX2 did not open: %v", err)
	}
	for at := range hx2 {
		bad := slices.Clone(hx2)
		bad[at] ^= 1
		if _, err := OpenHX2(p.a, ka, bad); !errors.Is(err, ErrRefused) {
			t.Fatalf("HX2 with byte %d changed: got %v", at, err)
		}
	}
	if _, err := OpenHX2(p.a, ka, hx2[:HX2Size-1]); !errors.Is(err, ErrRefused) {
		t.Errorf("short HX2: got %v", err)
	}
}

// A01: whoever stole all of B's identity keys, but not the prekey, cannot speak
// to B as Alice. With the prekey too he can, until it is replaced: a limit we
// state.
func TestA01_KCI(t *testing.T) {
	p := newPair(t, 10)
	thief, err := identity.UnmarshalDeviceKey(p.b.Marshal())
	if err != nil {
		t.Fatal(err)
	}
	guess, err := NewPrekey(random(11))
	if err != nil {
		t.Fatal(err)
	}

	// The thief builds HX1 in Alice's name. All that he lacks is DH(d.x_A, sp.x).
	hx1, mine := forge(t, p, seed(12), encapsulate, func(*Prekey) []byte {
		dh, err := thief.DH(p.a.Public().X())
		if err != nil {
			t.Fatal(err)
		}
		return dh
	})
	peer, keys, err := Respond(p.b, p.prekey, p.psk, hx1)
	if err != nil {
		t.Fatal(err) // the claim reads well ...
	}
	if peer.Hash() != p.a.Hash() || mine.Root.Equal(keys.Root) || mine.HeaderA.Equal(keys.HeaderA) || mine.SID == keys.SID {
		t.Error("a thief of B's identity keys shares keys with B as Alice") // ... but opens nothing
	}

	// With the prekey as well, he succeeds.
	hx1, mine = forge(t, p, seed(13), encapsulate, func(sp *Prekey) []byte { return dhWith(t, sp, p.a.Public()) })
	if _, keys, err = Respond(p.b, p.prekey, p.psk, hx1); err != nil || *keys != *mine {
		t.Error("the stated limit is not the real one: identity and prekey do not suffice")
	}
	// And no more once the prekey was replaced.
	if _, _, err := Respond(p.b, guess, p.psk, hx1); !errors.Is(err, ErrRefused) {
		t.Errorf("after rotation: got %v", err)
	}
}

// forge makes an HX1 in A's name without A's private keys, from a seed for the
// ephemeral key and an encapsulator; dh3 says how the forger computes the one
// secret that A proves herself with.
func forge(t *testing.T, p *pair, seed []byte, encap encapsulator, dh3 func(*Prekey) []byte) ([]byte, *Keys) {
	t.Helper()
	return forgeEncoding(t, p, seed, 0, encap, dh3)
}

// forgeEncoding is forge with bits set in the last byte of the ephemeral key's
// encoding, consistently in all that depends on it.
func forgeEncoding(t *testing.T, p *pair, seed []byte, bits byte, encap encapsulator, dh3 func(*Prekey) []byte) ([]byte, *Keys) {
	t.Helper()
	e, err := ecdh.X25519().NewPrivateKey(seed)
	if err != nil {
		t.Fatal(err)
	}
	s1, ct1 := encap(p.bundle.ek)
	s2, ct2 := encap(p.bundle.Device.EncapsulationKey())
	hx1 := slices.Concat([]byte{protocol.Version}, p.bundle.PrekeyID[:], e.PublicKey().Bytes(), ct1, ct2)
	hx1[ct1At-1] |= bits
	tr := transcript(hx1, p.bundle.Device.Hash(), p.bundle.x, p.bundle.ek)
	dh1, err := e.ECDH(p.bundle.x)
	if err != nil {
		t.Fatal(err)
	}
	dh2, err := e.ECDH(p.bundle.Device.X())
	if err != nil {
		t.Fatal(err)
	}
	sched := newSchedule(p.psk, tr, dh1, dh2, s1, s2)
	hx1 = sched.identityAEAD().Seal(hx1, zeroNonce[:], p.a.Public().Marshal(), nil)
	keys := sched.keys(hx1[sealedAt:], dh3(p.prekey), p.a.Hash(), p.b.Hash())
	gate := gateMAC(p.psk, hx1)
	return append(hx1, gate[:]...), keys
}

// seed returns 32 bytes from the generator.
func seed(n uint64) []byte {
	b := make([]byte, 32)
	_, _ = io.ReadFull(random(n), b)
	return b
}

func dhWith(t *testing.T, sp *Prekey, a *identity.Device) []byte {
	t.Helper()
	dh, err := sp.x.ECDH(a.X())
	if err != nil {
		t.Fatal(err)
	}
	return dh
}

// A02: a change of any byte of HX1, and of any public input, ends the
// handshake or leaves the two sides without a common key.
func TestA02_EveryFieldIsBound(t *testing.T) {
	p := newPair(t, 20)
	hx1, ka := p.initiate(t, random(21))
	fields := []struct {
		name     string
		from, to int
	}{
		{"ver", 0, 1},
		{"prekey id", 1, ephemeralAt},
		{"e", ephemeralAt, ct1At},
		{"ct1", ct1At, ct2At},
		{"ct2", ct2At, sealedAt},
		{"sealed identity", sealedAt, gateAt},
		{"gate", gateAt, HX1Size},
	}
	for _, f := range fields {
		for _, at := range []int{f.from, (f.from + f.to) / 2, f.to - 1} {
			for _, regate := range []bool{false, true} { // by a stranger, or by a holder of the secret
				bad := slices.Clone(hx1)
				bad[at] ^= 0x10
				if regate && at < gateAt {
					gate := gateMAC(p.psk, bad[:gateAt])
					copy(bad[gateAt:], gate[:])
				} else if regate {
					continue
				}
				if _, _, err := Respond(p.b, p.prekey, p.psk, bad); !errors.Is(err, ErrRefused) {
					t.Errorf("%s, byte %d changed (gate renewed: %t): got %v", f.name, at, regate, err)
				}
			}
		}
	}
	for n := range []int{0, 1, HX1Size - 1} {
		if _, _, err := Respond(p.b, p.prekey, p.psk, hx1[:n]); !errors.Is(err, ErrRefused) {
			t.Errorf("cut to %d bytes: got %v", n, err)
		}
	}

	// Another secret, another responder with the same prekey.
	if _, _, err := Respond(p.b, p.prekey, protocol.PSK{1}, hx1); !errors.Is(err, ErrRefused) {
		t.Errorf("another secret: got %v", err)
	}
	if _, _, err := Respond(newDevice(t, random(22)), p.prekey, p.psk, hx1); !errors.Is(err, ErrRefused) {
		t.Errorf("another responder: got %v", err)
	}
	_, kb, err := Respond(p.b, p.prekey, p.psk, hx1)
	if err != nil || *ka != *kb {
		t.Fatalf("the unchanged message does not work: %v", err)
	}
}

// A02: Mallory signs Bob's prekey as his own. The session that comes of it names
// Mallory or nobody, and Bob cannot be led into it.
func TestA02_Misbinding(t *testing.T) {
	p := newPair(t, 25)
	mallory := newDevice(t, random(26))
	stolen := NewBundle(mallory, p.prekey, 1, expiry, p.bundleKey)
	if _, err := ParseBundle(stolen.Marshal(), p.b.Hash(), p.bundleKey, 0, now); err == nil {
		t.Error("Mallory's bundle passed for Bob's")
	}
	bundle, err := ParseBundle(stolen.Marshal(), mallory.Hash(), p.bundleKey, 0, now)
	if err != nil {
		t.Fatal(err)
	}
	hx1, keys, err := Initiate(random(27), p.a, bundle, p.psk)
	if err != nil {
		t.Fatal(err)
	}
	if h := mallory.Hash(); !bytes.Equal(keys.AD[48:], h[:]) {
		t.Error("the initiator's session does not name Mallory")
	}
	if _, _, err := Respond(p.b, p.prekey, p.psk, hx1); !errors.Is(err, ErrRefused) {
		t.Errorf("Bob answered a session meant for Mallory: %v", err)
	}
}

// A03: one's own identity, or a copy of it with one key kept, is no peer.
func TestA03_Reflection(t *testing.T) {
	p := newPair(t, 30)
	if _, _, err := Initiate(random(31), p.b, p.bundle, p.psk); err == nil {
		t.Error("initiated to this device itself")
	}
	own := &pair{a: p.b, b: p.b, prekey: p.prekey, psk: p.psk, bundleKey: p.bundleKey, bundle: p.bundle}
	hx1, _ := forge(t, own, seed(32), encapsulate, func(sp *Prekey) []byte { return dhWith(t, sp, p.b.Public()) })
	if _, _, err := Respond(p.b, p.prekey, p.psk, hx1); !errors.Is(err, ErrRefused) {
		t.Errorf("own identity: got %v", err)
	}

	// B's X25519 key under a new account and new other keys.
	chimera := newDevice(t, random(33)).Marshal()
	copy(chimera[64:96], p.b.Marshal()[64:96])
	k, err := identity.UnmarshalDeviceKey(chimera)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := Initiate(random(34), k, p.bundle, p.psk); err == nil {
		t.Error("initiated to a device that shares a key")
	}

	// One's own first message, back.
	hx1, _ = p.initiate(t, random(36))
	if _, _, err := Respond(p.a, p.prekey, p.psk, hx1); !errors.Is(err, ErrRefused) {
		t.Errorf("own first message: got %v", err)
	}
}

// A04: the signature covers kind and length of each key, the suite and the
// epoch; a signature over one arrangement of the bytes holds for no other.
// See docs/spec/handshake.md, section 2.
func TestA04_SignatureContext(t *testing.T) {
	p := newPair(t, 40)
	b := p.bundle
	message := b.signedMessage()
	x, ek := b.x.Bytes(), b.ek.Bytes()
	head := message[:1+2+4+32+8+8+8]
	field := func(kind byte, key []byte) []byte {
		return append(binary.BigEndian.AppendUint16([]byte{kind}, uint16(len(key))), key...)
	}
	if want := slices.Concat(head, field(typeX25519, x), field(typeMLKEM1024, ek)); !bytes.Equal(message, want) {
		t.Fatal("the signed message is not laid out as docs/spec/handshake.md, section 2 says")
	}
	if len(head) != 63 || head[0] != protocol.Version || binary.BigEndian.Uint16(head[1:]) != protocol.Suite ||
		binary.BigEndian.Uint32(head[3:]) != BundleSize || binary.BigEndian.Uint64(head[47:]) != b.Epoch {
		t.Error("version, suite, length or epoch is not under the signature")
	}
	signature := b.wire[bundleSigned:bundleUnMACked]
	verify := func(message []byte) bool {
		return b.Device.Verify(protocol.LabelPrekey, message, signature)
	}
	if !verify(message) {
		t.Fatal("the honest message does not verify")
	}
	suite := slices.Clone(head)
	suite[2] ^= 1
	length := slices.Clone(head)
	length[6] ^= 1
	epoch := slices.Clone(head)
	epoch[54] ^= 1
	for name, m := range map[string][]byte{
		"kinds swapped":         slices.Concat(head, field(typeMLKEM1024, x), field(typeX25519, ek)),
		"KEM key as EC key":     slices.Concat(head, field(typeX25519, ek), field(typeMLKEM1024, x)),
		"order swapped":         slices.Concat(head, field(typeMLKEM1024, ek), field(typeX25519, x)),
		"boundary moved":        slices.Concat(head, field(typeX25519, append(slices.Clone(x), ek[0])), field(typeMLKEM1024, ek[1:])),
		"without kinds":         slices.Concat(head, x, ek),
		"another suite":         slices.Concat(suite, message[63:]),
		"another bundle length": slices.Concat(length, message[63:]),
		"another epoch":         slices.Concat(epoch, message[63:]),
	} {
		if verify(m) {
			t.Errorf("%s: the signature holds", name)
		}
	}
	if b.Device.Verify(protocol.LabelDeviceList, message, signature) {
		t.Error("the signature holds in another context")
	}
}

// A05: the encapsulation keys and ciphertexts enter the keys themselves, whatever the KEM
// binds: the same shared secrets under another key or ciphertext give other keys.
func TestA05_Reencapsulation(t *testing.T) {
	p, q := newPair(t, 50), newPair(t, 51)
	same := make([]byte, 32)
	mock := func(ct byte) encapsulator { // a KEM that binds nothing
		return func(*mlkem.EncapsulationKey1024) ([]byte, []byte) {
			return same, bytes.Repeat([]byte{ct}, mlkem.CiphertextSize1024)
		}
	}
	run := func(encap encapsulator, bundle *Bundle) Keys {
		_, keys, err := initiate(random(52), encap, p.a, bundle, p.psk)
		if err != nil {
			t.Fatal(err)
		}
		return *keys
	}
	base := run(mock(1), p.bundle)
	swapped := *p.bundle
	swapped.ek = q.bundle.ek
	if k := run(mock(1), &swapped); k.Root.Equal(base.Root) || k.HX2.Equal(base.HX2) {
		t.Error("another prekey with the same secrets gave the same keys")
	}
	if k := run(mock(2), p.bundle); k.Root.Equal(base.Root) {
		t.Error("another ciphertext with the same secrets gave the same keys")
	}
	if k := run(mock(1), p.bundle); k != base {
		t.Error("the same inputs gave other keys")
	}
}

// A08: a bundle with a lower epoch than one seen, or past its time, is refused.
func TestA08_StaleBundle(t *testing.T) {
	p := newPair(t, 80)
	wire := p.bundle.Marshal()
	tests := []struct {
		name     string
		device   identity.DeviceHash
		key      protocol.BundleKey
		minEpoch uint64
		now      time.Time
		want     error
	}{
		{"fresh", p.b.Hash(), p.bundleKey, 3, now, nil},
		{"a second before expiry", p.b.Hash(), p.bundleKey, 3, expiry.Add(-time.Second), nil},
		{"at expiry", p.b.Hash(), p.bundleKey, 3, expiry, ErrBundleExpired},
		{"ten years on", p.b.Hash(), p.bundleKey, 3, now.AddDate(10, 0, 0), ErrBundleExpired},
		{"ten years back", p.b.Hash(), p.bundleKey, 3, now.AddDate(-10, 0, 0), nil},
		{"epoch rolled back", p.b.Hash(), p.bundleKey, 4, now, ErrBundleOld},
		{"another device", p.a.Hash(), p.bundleKey, 3, now, errBundle},
		{"another key", p.b.Hash(), protocol.BundleKey{}, 3, now, errBundle},
	}
	for _, tt := range tests {
		_, err := ParseBundle(wire, tt.device, tt.key, tt.minEpoch, tt.now)
		if !errors.Is(err, tt.want) {
			t.Errorf("%s: got %v, want %v", tt.name, err, tt.want)
		}
	}

	// Whoever holds the MAC key still cannot change what the device signed.
	for at := 0; at < bundleUnMACked; at += 7 {
		bad := slices.Clone(wire)
		bad[at] ^= 1
		if _, err := ParseBundle(bad, p.b.Hash(), p.bundleKey, 0, now); err == nil {
			t.Fatalf("accepted a bundle whose byte %d was changed", at)
		}
		mac := protocol.MAC(p.bundleKey[:], protocol.LabelPrekeyMAC, bad[:bundleUnMACked])
		copy(bad[bundleUnMACked:], mac[:])
		if _, err := ParseBundle(bad, p.b.Hash(), p.bundleKey, 0, now); err == nil {
			t.Fatalf("accepted a bundle whose byte %d was changed and the MAC renewed", at)
		}
	}
}

// A09: version and suite are in the transcript, under the signature, and have
// no other value that is accepted.
// See docs/spec/overview.md, section 2.
func TestA09_Downgrade(t *testing.T) {
	p := newPair(t, 90)
	hx1, ka := p.initiate(t, random(91))
	for v := range 256 {
		if v == protocol.Version {
			continue
		}
		bad := slices.Clone(hx1)
		bad[0] = byte(v)
		gate := gateMAC(p.psk, bad[:gateAt])
		copy(bad[gateAt:], gate[:])
		if _, err := Gate(p.psk, bad); !errors.Is(err, ErrRefused) {
			t.Fatalf("the gate let version %d pass", v)
		}
		// And were it accepted, the keys would differ.
		if transcript(bad[:sealedAt], p.b.Hash(), p.bundle.x, p.bundle.ek) == transcript(hx1[:sealedAt], p.b.Hash(), p.bundle.x, p.bundle.ek) {
			t.Fatal("the version is not in the transcript")
		}
	}
	for at := range 3 { // version and suite of a bundle
		bad := p.bundle.Marshal()
		bad[at] ^= 1
		mac := protocol.MAC(p.bundleKey[:], protocol.LabelPrekeyMAC, bad[:bundleUnMACked])
		copy(bad[bundleUnMACked:], mac[:])
		if _, err := ParseBundle(bad, p.b.Hash(), p.bundleKey, 0, now); err == nil {
			t.Errorf("accepted a bundle whose version or suite (byte %d) was changed", at)
		}
	}

	// Stripping the KEM: ciphertexts of zeros, as if nothing had been
	// encapsulated, with an honest gate.
	bad := slices.Clone(hx1)
	clear(bad[ct1At:sealedAt])
	gate := gateMAC(p.psk, bad[:gateAt])
	copy(bad[gateAt:], gate[:])
	if _, kb, err := Respond(p.b, p.prekey, p.psk, bad); err == nil && *ka == *kb {
		t.Error("a handshake without the KEM succeeded")
	}
}

// A12: all of A's ephemeral secrets, past ones too, do not make a session in A's
// name, nor open one of A's.
func TestA12_LostEphemeral(t *testing.T) {
	p := newPair(t, 120)
	coins := seed(121)
	hx1, real := p.initiate(t, bytes.NewReader(coins))

	// The thief repeats A's computation with e, s1 and s2 known, all but DH(d.x_A, sp.x).
	lost, fake := forge(t, p, coins, encapsulate, func(*Prekey) []byte { return make([]byte, 32) })
	if !bytes.Equal(lost[ephemeralAt:ct1At], hx1[ephemeralAt:ct1At]) {
		t.Fatal("the forgery does not use the lost ephemeral key")
	}
	_, keys, err := Respond(p.b, p.prekey, p.psk, lost)
	if err != nil {
		t.Fatal(err)
	}
	if keys.Root.Equal(fake.Root) || real.Root.Equal(fake.Root) || keys.Root.Equal(real.Root) {
		t.Error("an ephemeral key alone authenticates")
	}
}

// A16: non-canonical and small-order ephemeral keys are refused by the
// responder, even from a holder of the secret.
func TestA16_BadEphemeral(t *testing.T) {
	p := newPair(t, 160)
	hx1, _ := p.initiate(t, random(161))
	e := slices.Clone(hx1[ephemeralAt:ct1At])
	top := slices.Clone(e)
	top[31] |= 0x80
	for name, bad := range map[string][]byte{
		"zero":            make([]byte, 32),
		"one":             append([]byte{1}, make([]byte, 31)...),
		"p":               slices.Concat([]byte{0xed}, bytes.Repeat([]byte{0xff}, 30), []byte{0x7f}),
		"top bit set":     top,
		"all bits":        bytes.Repeat([]byte{0xff}, 32),
		"p - 1, order 2+": slices.Concat([]byte{0xec}, bytes.Repeat([]byte{0xff}, 30), []byte{0x7f}),
	} {
		m := slices.Clone(hx1)
		copy(m[ephemeralAt:], bad)
		gate := gateMAC(p.psk, m[:gateAt])
		copy(m[gateAt:], gate[:])
		if _, _, err := Respond(p.b, p.prekey, p.psk, m); !errors.Is(err, ErrRefused) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

// A16: an initiator that sends its own good key in another encoding, and computes
// everything over that, is refused for the encoding alone.
func TestA16_NonCanonicalEphemeral(t *testing.T) {
	p := newPair(t, 165)
	dh3 := func(sp *Prekey) []byte { return dhWith(t, sp, p.a.Public()) }
	hx1, _ := forgeEncoding(t, p, seed(166), 0x80, encapsulate, dh3)
	if _, _, err := Respond(p.b, p.prekey, p.psk, hx1); !errors.Is(err, ErrRefused) {
		t.Errorf("top bit set: got %v", err)
	}
	hx1, _ = forgeEncoding(t, p, seed(166), 0, encapsulate, dh3)
	if _, _, err := Respond(p.b, p.prekey, p.psk, hx1); err != nil {
		t.Errorf("canonical: got %v", err)
	}
}

// A20: with a system generator that always returns the same bytes, and so ML-KEM
// ciphertexts that repeat, a hedged ephemeral key still makes every session's keys new. And
// a responder set back in time, who answers the same HX1 again, never seals two
// ciphertexts under one nonce.
func TestA20_NoKeyRepeats(t *testing.T) {
	p := newPair(t, 200)
	n := 200
	if testing.Short() {
		n = 30
	}
	seen := map[[32]byte]bool{}
	for counter := range n {
		hedge := protocol.NewHedge(constant(7), protocol.HedgeSecret{1}, uint64(counter))
		hx1, keys, err := initiate(hedge, derandomized(constant(7)), p.a, p.bundle, p.psk)
		if err != nil {
			t.Fatal(err)
		}
		for _, k := range [][32]byte{keys.Root, keys.HeaderA, keys.HX2, keys.Pair, [32]byte(hx1[ephemeralAt:])} {
			if seen[k] {
				t.Fatal("a key repeats")
			}
			seen[k] = true
		}
	}

	_, keys := p.initiate(t, random(201))
	nonces := map[string]string{}
	for range n / 4 {
		hx2, _ := MakeHX2(keys, p.a.Public())
		nonce, sealed := string(hx2[:chacha20poly1305.NonceSize]), string(hx2[chacha20poly1305.NonceSize:])
		if old, ok := nonces[nonce]; ok && old != sealed {
			t.Fatal("two HX2 share a nonce")
		}
		nonces[nonce] = sealed
	}
	one, _ := makeHX2(derandomized(constant(1)), keys, p.a.Public())
	two, _ := makeHX2(derandomized(constant(1)), keys, p.a.Public())
	if !bytes.Equal(one, two) {
		t.Error("the same ciphertext was sealed under two nonces")
	}
}

type constant byte

func (c constant) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(c)
	}
	return len(p), nil
}

// A22: B alone can make a transcript of A writing to B, with the same keys A
// would have had, by the same computation on uniformly drawn inputs: so no
// transcript proves to a third party that A took part.
func TestA22_Deniable(t *testing.T) {
	p := newPair(t, 220)
	hx1, keys := forge(t, p, seed(221), encapsulate, func(sp *Prekey) []byte { return dhWith(t, sp, p.a.Public()) })
	peer, kb, err := Respond(p.b, p.prekey, p.psk, hx1)
	if err != nil || peer.Hash() != p.a.Hash() || *keys != *kb {
		t.Fatalf("B's forgery is not a transcript of A and B: %v", err)
	}

	// Drawn from the same coins, forgery and truth are the same bytes.
	coins := seed(222)
	truth, kTruth, err := initiate(bytes.NewReader(coins), derandomized(random(223)), p.a, p.bundle, p.psk)
	if err != nil {
		t.Fatal(err)
	}
	forged, kForged := forge(t, p, coins, derandomized(random(223)), func(sp *Prekey) []byte { return dhWith(t, sp, p.a.Public()) })
	if !bytes.Equal(truth, forged) || *kTruth != *kForged {
		t.Error("the forgery can be told from the truth")
	}

	// A, for her part, makes B's HX2 with nothing but her own keys.
	hx2, s3 := MakeHX2(kTruth, p.a.Public())
	if got, err := OpenHX2(p.a, kTruth, hx2); err != nil || got != s3 {
		t.Errorf("A's forgery of HX2: %v", err)
	}
}

// A state that was set back could seal another ciphertext under a nonce it has
// used. Only the nonce that follows from the ciphertext opens
// (docs/spec/handshake.md, section 5).
func TestHX2Nonce(t *testing.T) {
	p := newPair(t, 225)
	_, keys := p.initiate(t, random(226))
	hx2, _ := MakeHX2(keys, p.a.Public())
	aead := newAEAD(keys.HX2[:])
	ct3, err := aead.Open(nil, hx2[:aead.NonceSize()], hx2[aead.NonceSize():], keys.AD[:])
	if err != nil {
		t.Fatal(err)
	}
	nonce := bytes.Clone(hx2[:aead.NonceSize()])
	nonce[0] ^= 1
	if _, err := OpenHX2(p.a, keys, aead.Seal(nonce, nonce, ct3, keys.AD[:])); !errors.Is(err, ErrRefused) {
		t.Errorf("another nonce: got %v", err)
	}
}

// A23, the protocol's part: the gate costs a stranger's message one MAC and
// allocates next to nothing.
func TestA23_Gate(t *testing.T) {
	p := newPair(t, 230)
	hx1, _ := p.initiate(t, random(231))
	if _, err := Gate(protocol.PSK{}, hx1); !errors.Is(err, ErrRefused) {
		t.Errorf("without the secret: got %v", err)
	}
	junk := make([]byte, HX1Size)
	_, _ = io.ReadFull(random(232), junk)
	junk[0] = protocol.Version
	if _, err := Gate(p.psk, junk); !errors.Is(err, ErrRefused) {
		t.Errorf("junk: got %v", err)
	}
	if n := testing.AllocsPerRun(100, func() { _, _ = Gate(p.psk, junk) }); n > 10 {
		t.Errorf("the gate allocates %.0f times", n)
	}
}

func TestRedaction(t *testing.T) {
	p := newPair(t, 240)
	_, keys := p.initiate(t, random(241))
	for _, v := range []any{p.prekey, p.bundle, keys, *keys} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%x"} {
			got := fmt.Sprintf(verb, v)
			for _, s := range [][]byte{keys.Root[:4], keys.Pair[:4], keys.SID[:4], keys.AD[16:20], p.prekey.Marshal()[8:12]} {
				if strings.Contains(got, fmt.Sprintf("%x", s)) || strings.Contains(got, strings.Trim(fmt.Sprint(s), "[]")) {
					t.Errorf("%T shows a secret under %s", v, verb)
				}
			}
		}
	}
}

func TestBadPrekeys(t *testing.T) {
	if _, err := NewPrekey(bytes.NewReader(make([]byte, PrekeySize-1))); err == nil {
		t.Error("made a prekey from too few random bytes")
	}
	if _, err := UnmarshalPrekey(make([]byte, PrekeySize-1)); err == nil {
		t.Error("restored a prekey from too few bytes")
	}
}
