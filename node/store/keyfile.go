package store

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"

	"golang.org/x/crypto/argon2"
	"golang.org/x/crypto/chacha20poly1305"
	"golang.org/x/crypto/cryptobyte"
)

// The key file holds the 32-byte data key in slots, each of which opens in its
// own way. It is one sector, so that a write reaches the disk whole or not,
// and there are two copies, so that not does no harm:
//
//	struct {
//	    opaque magic[8] = "kithkey1";
//	    uint64 generation;     // the copy with the higher one counts
//	    uint8  count;          // 1..maxSlots
//	    Slot   slots[count];
//	    opaque zero[…];        // to 480 bytes
//	    opaque checksum[32];   // SHA-256 of the 480 bytes before
//	} KeyFile;                 // 512 bytes
//
//	struct {
//	    uint8 kind;
//	    select (kind) {
//	        case 1: opaque key[32];                         // as it is; the file's mode is 0600
//	        case 2: uint32 passes; uint32 kib; uint8 lanes; // Argon2id
//	                opaque salt[16]; opaque nonce[24];
//	                opaque sealed[48];                      // XChaCha20-Poly1305, AD: magic, then the slot up to salt
//	    };
//	} Slot;
const (
	keyFileSize  = 512
	keyBodySize  = keyFileSize - sha256.Size
	keyMagic     = "kithkey1"
	dataKeySize  = 32
	maxSlots     = 4
	slotPlain    = 1
	slotPassword = 2
	saltSize     = 16

	// What a key file may ask of Argon2id: far above what kith writes, low
	// enough that an altered file cannot exhaust the machine.
	maxPasses = 16
	maxKiB    = 1 << 20
	maxLanes  = 16
)

var keyFileNames = [2]string{"key.0", "key.1"}

// kdfParams is what Argon2id costs.
type kdfParams struct {
	passes uint32
	kib    uint32
	lanes  uint8
}

// defaultKDF is 256 MiB in three passes, about half a second; 64 MiB on
// machines with less than 1 GiB, which would fail otherwise.
func defaultKDF() kdfParams {
	p := kdfParams{passes: 3, kib: 256 << 10, lanes: 4}
	if m := totalMemory(); m != 0 && m < 1<<30 {
		p.kib = 64 << 10
	}
	return p
}

func (p kdfParams) valid() bool {
	return 1 <= p.passes && p.passes <= maxPasses && 1 <= p.lanes && p.lanes <= maxLanes &&
		8*uint32(p.lanes) <= p.kib && p.kib <= maxKiB
}

type slot struct {
	kind   byte
	key    [dataKeySize]byte // slotPlain
	kdf    kdfParams         // slotPassword, as the fields below
	salt   [saltSize]byte
	nonce  [chacha20poly1305.NonceSizeX]byte
	sealed [dataKeySize + chacha20poly1305.Overhead]byte
}

func (s *slot) ad() []byte {
	b := cryptobyte.NewBuilder([]byte(keyMagic))
	s.marshalHead(b)
	return b.BytesOrPanic()
}

func (s *slot) marshalHead(b *cryptobyte.Builder) {
	b.AddUint8(s.kind)
	b.AddUint32(s.kdf.passes)
	b.AddUint32(s.kdf.kib)
	b.AddUint8(s.kdf.lanes)
	b.AddBytes(s.salt[:])
}

func (s *slot) marshal(b *cryptobyte.Builder) {
	if s.kind == slotPlain {
		b.AddUint8(s.kind)
		b.AddBytes(s.key[:])
		return
	}
	s.marshalHead(b)
	b.AddBytes(s.nonce[:])
	b.AddBytes(s.sealed[:])
}

func (s *slot) unmarshal(r *cryptobyte.String) bool {
	if !r.ReadUint8(&s.kind) {
		return false
	}
	switch s.kind {
	case slotPlain:
		return r.CopyBytes(s.key[:])
	case slotPassword:
		return r.ReadUint32(&s.kdf.passes) && r.ReadUint32(&s.kdf.kib) && r.ReadUint8(&s.kdf.lanes) &&
			s.kdf.valid() && r.CopyBytes(s.salt[:]) && r.CopyBytes(s.nonce[:]) && r.CopyBytes(s.sealed[:])
	}
	return false
}

// newSlot puts the data key behind a passphrase, or in the clear if it is empty.
func newSlot(dataKey, passphrase []byte, p kdfParams) slot {
	s := slot{kind: slotPlain}
	if len(passphrase) == 0 {
		copy(s.key[:], dataKey)
		return s
	}
	s.kind, s.kdf = slotPassword, p
	rand.Read(s.salt[:])
	rand.Read(s.nonce[:])
	kek := s.stretch(passphrase)
	defer clear(kek)
	aead, err := chacha20poly1305.NewX(kek)
	if err != nil {
		panic("store: " + err.Error()) // only a key of the wrong length
	}
	aead.Seal(s.sealed[:0], s.nonce[:], dataKey, s.ad())
	return s
}

// open returns the data key, or nil if the passphrase is another.
func (s *slot) open(passphrase []byte) []byte {
	if s.kind == slotPlain {
		return bytes.Clone(s.key[:])
	}
	kek := s.stretch(passphrase)
	defer clear(kek)
	aead, err := chacha20poly1305.NewX(kek)
	if err != nil {
		panic("store: " + err.Error()) // only a key of the wrong length
	}
	key, err := aead.Open(nil, s.nonce[:], s.sealed[:], s.ad())
	if err != nil {
		return nil
	}
	return key
}

func (s *slot) stretch(passphrase []byte) []byte {
	kek := argon2.IDKey(passphrase, s.salt[:], s.kdf.passes, s.kdf.kib, s.kdf.lanes, chacha20poly1305.KeySize)
	// Its memory is of no use to a daemon that then runs in a quarter of it.
	debug.FreeOSMemory()
	return kek
}

// keyCopy is the content of one copy.
type keyCopy struct {
	generation uint64
	slots      []slot
}

func (k *keyCopy) marshal() []byte {
	b := cryptobyte.NewBuilder(make([]byte, 0, keyFileSize))
	b.AddBytes([]byte(keyMagic))
	b.AddUint64(k.generation)
	b.AddUint8(uint8(len(k.slots)))
	for i := range k.slots {
		k.slots[i].marshal(b)
	}
	body := b.BytesOrPanic()
	body = append(body, make([]byte, keyBodySize-len(body))...)
	sum := sha256.Sum256(body)
	return append(body, sum[:]...)
}

// parseKeyCopy reads one copy. It accepts exactly what marshal writes.
func parseKeyCopy(data []byte) (*keyCopy, error) {
	if len(data) != keyFileSize {
		return nil, errors.New("wrong length")
	}
	body, sum := data[:keyBodySize], data[keyBodySize:]
	if want := sha256.Sum256(body); subtle.ConstantTimeCompare(sum, want[:]) != 1 {
		return nil, errors.New("wrong checksum")
	}
	r := cryptobyte.String(body)
	var magic []byte
	var count uint8
	k := new(keyCopy)
	if !r.ReadBytes(&magic, len(keyMagic)) || string(magic) != keyMagic ||
		!r.ReadUint64(&k.generation) || !r.ReadUint8(&count) || count < 1 || count > maxSlots {
		return nil, errors.New("wrong header")
	}
	k.slots = make([]slot, count)
	for i := range k.slots {
		if !k.slots[i].unmarshal(&r) {
			return nil, errors.New("wrong slot")
		}
	}
	for _, b := range r {
		if b != 0 {
			return nil, errors.New("wrong padding")
		}
	}
	return k, nil
}

// keyFile is the opened key file of a store.
type keyFile struct {
	dir string
	key [dataKeySize]byte

	mu     sync.Mutex
	copy   keyCopy
	newest int // which of keyFileNames held copy last; it is overwritten last
}

// dataKey returns the key that all others of the store are derived from.
func (k *keyFile) dataKey() []byte { return k.key[:] }

func (k *keyFile) protection() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	for i := range k.copy.slots {
		if k.copy.slots[i].kind == slotPlain {
			return "key file"
		}
	}
	return "passphrase"
}

// createKeyFile draws a data key and writes both copies.
func createKeyFile(dir string, passphrase []byte, p kdfParams) (*keyFile, error) {
	k := &keyFile{dir: dir}
	rand.Read(k.key[:])
	k.copy = keyCopy{generation: 1, slots: []slot{newSlot(k.key[:], passphrase, p)}}
	return k, k.save()
}

// openKeyFile opens the newer good copy and repairs the other.
func openKeyFile(dir string, passphrase []byte) (*keyFile, error) {
	k := &keyFile{dir: dir}
	var good, missing int
	var stale bool
	for i, name := range keyFileNames {
		data, err := os.ReadFile(filepath.Join(dir, name))
		switch {
		case errors.Is(err, fs.ErrNotExist):
			missing++
			continue
		case err != nil:
			return nil, fmt.Errorf("read the key file: %w", err)
		}
		c, err := parseKeyCopy(data)
		if err != nil {
			continue
		}
		good++
		stale = stale || good > 1 && c.generation != k.copy.generation
		if c.generation > k.copy.generation || k.copy.slots == nil {
			k.copy, k.newest = *c, i
		}
	}
	switch {
	case missing == len(keyFileNames):
		return nil, fmt.Errorf("the key file is missing from the store: %w", ErrDamaged)
	case good == 0:
		return nil, fmt.Errorf("both copies of the key file are damaged: %w", ErrDamaged)
	}
	key, err := k.unlock(passphrase)
	if err != nil {
		return nil, err
	}
	copy(k.key[:], key)
	clear(key)
	if good < len(keyFileNames) || stale {
		if err := k.save(); err != nil {
			return nil, fmt.Errorf("repair the key file: %w", err)
		}
	}
	return k, nil
}

// unlock returns the data key from the first slot that opens.
func (k *keyFile) unlock(passphrase []byte) ([]byte, error) {
	err := ErrPassphraseNeeded
	for i := range k.copy.slots {
		s := &k.copy.slots[i]
		if s.kind == slotPassword && len(passphrase) == 0 {
			continue
		}
		if key := s.open(passphrase); key != nil {
			return key, nil
		}
		err = ErrPassphrase
	}
	return nil, err
}

// change replaces all slots by one for the new passphrase.
func (k *keyFile) change(old, passphrase []byte, p kdfParams) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	key, err := k.unlock(old)
	if err != nil {
		return err
	}
	defer clear(key)
	before := k.copy
	k.copy = keyCopy{generation: before.generation + 1, slots: []slot{newSlot(key, passphrase, p)}}
	if err := k.save(); err != nil {
		// One copy may hold the new slot already: outdo it with the old one.
		k.copy = keyCopy{generation: before.generation + 2, slots: before.slots}
		return fmt.Errorf("change the passphrase: %w", errors.Join(err, k.save()))
	}
	return nil
}

// save writes both copies, the older one first, over what they held: the old
// slots do not stay behind in a file that was merely unlinked.
func (k *keyFile) save() error {
	data := k.copy.marshal()
	defer clear(data)
	for range keyFileNames {
		k.newest = 1 - k.newest
		if err := overwrite(filepath.Join(k.dir, keyFileNames[k.newest]), data); err != nil {
			return err
		}
	}
	return osDisk{}.syncDir(k.dir)
}

func overwrite(name string, data []byte) (err error) {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := f.Chmod(0o600); err != nil {
		return err
	}
	if err := f.Truncate(int64(len(data))); err != nil {
		return err
	}
	if _, err := f.WriteAt(data, 0); err != nil {
		return err
	}
	return f.Sync()
}

// ChangePassphrase has the store open with another passphrase from now on; an
// empty one leaves it to the key file alone. ErrPassphrase if old is not the
// present one. The data key stays: a copy of the old key file still opens with
// the old passphrase.
func (s *Store) ChangePassphrase(old, passphrase []byte) error {
	return s.keys.change(old, passphrase, s.kdf)
}
