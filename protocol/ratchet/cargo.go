package ratchet

import (
	"crypto/mlkem"
	"encoding/binary"
	"io"
	"math/bits"
)

// The key exchange in the padding (docs/spec/ratchet.md, section 7). One runs
// at a time. The offerer sends an ML-KEM-768 encapsulation key, the answerer a
// ciphertext, both in 32-byte blocks; then the roles change.
const (
	blockSize    = 32
	offerBlocks  = mlkem.EncapsulationKeySize768 / blockSize // 37
	answerBlocks = mlkem.CiphertextSize768 / blockSize       // 34

	cargoHeaderSize = 1 + 4 + 1 + 1 // kind, epoch, first, count
)

// phase is where an exchange stands, seen from one side:
//
//	offerer   offerPending ─Encrypt─► offering ─first answer block─► collecting
//	             ▲                                                       │ last block
//	             │ next epoch                                            ▼
//	answerer     └─ answering ◄─Encrypt─ offered ◄─last block─ listening ◄─sending step─ answered
//
// Encrypt does what needs randomness, a key pair and an encapsulation; Decrypt
// decapsulates. Only move changes the phase.
type phase uint8

const (
	offerPending phase = iota + 1 // our turn to offer; the key pair is made by the next Encrypt
	offering                      // our key goes out
	collecting                    // the answer comes in
	answered                      // the secret is known; our next sending step mixes it
	listening                     // the peer's key comes in
	offered                       // the peer's key is complete; the next Encrypt encapsulates
	answering                     // our answer goes out until a chain says that it was mixed
)

func (p phase) String() string {
	switch p {
	case offerPending:
		return "offer pending"
	case offering:
		return "offering"
	case collecting:
		return "collecting"
	case answered:
		return "answered"
	case listening:
		return "listening"
	case offered:
		return "offered"
	case answering:
		return "answering"
	}
	return "invalid"
}

// kem is the state of the exchange in flight. Fields that the phase has no use
// for are zero.
type kem struct {
	phase  phase
	epoch  uint32
	seed   [mlkem.SeedSize]byte                // offering, collecting
	out    [mlkem.EncapsulationKeySize768]byte // offering (all), answering (first 1088)
	outPos uint8                               // next block of out to send
	in     [mlkem.EncapsulationKeySize768]byte // blocks that came in
	have   uint64                              // bitmap of those
	ready  [mlkem.SharedKeySize]byte           // answered, answering: the secret to mix
}

// move enters a phase and clears what it has no use for.
func (k *kem) move(to phase) {
	if to != answered && to != answering {
		k.ready = [mlkem.SharedKeySize]byte{}
	}
	if to != offering && to != answering {
		k.out, k.outPos = [mlkem.EncapsulationKeySize768]byte{}, 0
	}
	if to != offering && to != collecting {
		k.seed = [mlkem.SeedSize]byte{}
	}
	if to != collecting && to != offered {
		k.in, k.have = [mlkem.EncapsulationKeySize768]byte{}, 0
	}
	k.phase = to
}

// prepare makes the key pair to offer, or the answer to a complete offer.
func (k *kem) prepare(rand io.Reader, rk [32]byte) error {
	switch k.phase {
	case offerPending:
		seed, err := hedge(rand, rk, hedgeKEM)
		if err != nil {
			return err
		}
		k.offer(seed)
	case offered:
		// FIPS 203, section 7.2: an encapsulation key is checked before use. A
		// peer that offers a bad one gets no answer, and the PQ age shows it.
		ek, err := mlkem.NewEncapsulationKey768(k.in[:])
		if err != nil {
			k.move(listening)
			return nil
		}
		secret, ct := ek.Encapsulate()
		k.move(answering)
		copy(k.out[:], ct)
		k.ready = [mlkem.SharedKeySize]byte(secret)
	default: // there is nothing to make
	}
	return nil
}

// offer begins an exchange with the key pair of seed.
func (k *kem) offer(seed [mlkem.SeedSize]byte) {
	k.move(offering)
	k.seed = seed
	copy(k.out[:], k.decapsulationKey().EncapsulationKey().Bytes())
}

// decapsulate takes the secret out of a complete answer. From here on nothing
// of the key pair is left.
func (k *kem) decapsulate() {
	secret, err := k.decapsulationKey().Decapsulate(k.in[:mlkem.CiphertextSize768])
	if err != nil {
		panic("ratchet: " + err.Error()) // only for a ciphertext of another length
	}
	k.move(answered)
	k.ready = [mlkem.SharedKeySize]byte(secret)
}

func (k *kem) decapsulationKey() *mlkem.DecapsulationKey768 {
	dk, err := mlkem.NewDecapsulationKey768(k.seed[:])
	if err != nil {
		panic("ratchet: " + err.Error()) // only for a seed of another length
	}
	return dk
}

// mixAsOfferer returns the secret of a complete exchange, or nil, and hands
// the next epoch's offer to the peer.
func (k *kem) mixAsOfferer() *[32]byte {
	if k.phase != answered {
		return nil
	}
	secret := k.ready
	k.epoch++
	k.move(listening)
	return &secret
}

// mixAsAnswerer returns the secret of the exchange the peer has mixed, or nil
// if there is none, and makes us the offerer of the next epoch.
func (k *kem) mixAsAnswerer() *[32]byte {
	if k.phase != answering {
		return nil
	}
	secret := k.ready
	k.epoch++
	k.move(offerPending)
	return &secret
}

// cargoKind says what a frame's cargo is.
type cargoKind uint8

const (
	noCargo     cargoKind = 0
	offerCargo  cargoKind = 1
	answerCargo cargoKind = 2
)

// blocks is how many blocks a whole offer or answer has.
func (c cargoKind) blocks() int {
	switch c {
	case offerCargo:
		return offerBlocks
	case answerCargo:
		return answerBlocks
	case noCargo:
	}
	return 0
}

// cargo is a run of blocks; it wraps from the last block to the first.
type cargo struct {
	kind  cargoKind
	epoch uint32
	first uint8
	data  []byte
}

// loadResult says how loading went.
type loadResult uint8

const (
	cargoNone loadResult = iota // nothing to carry
	cargoLoaded
	cargoNoRoom
)

// load writes the next blocks that wait into room.
func (k *kem) load(room []byte) loadResult {
	var kind cargoKind
	switch k.phase {
	case offering:
		kind = offerCargo
	case answering:
		kind = answerCargo
	default:
		return cargoNone
	}
	total := kind.blocks()
	count := min(total, (len(room)-cargoHeaderSize)/blockSize)
	if len(room) < cargoHeaderSize+blockSize {
		return cargoNoRoom
	}
	room[0] = byte(kind)
	binary.BigEndian.PutUint32(room[1:5], k.epoch)
	room[5], room[6] = k.outPos, byte(count)
	room = room[cargoHeaderSize:]
	for i := range count {
		at := (int(k.outPos) + i) % total * blockSize
		copy(room[i*blockSize:], k.out[at:at+blockSize])
	}
	k.outPos = uint8((int(k.outPos) + count) % total)
	return cargoLoaded
}

// parseCargo reads what follows the plaintext: nothing or one cargo, then zeros.
func parseCargo(b []byte) (c cargo, ok bool) {
	if len(b) < cargoHeaderSize || b[0] == byte(noCargo) {
		return cargo{}, allZero(b)
	}
	c.kind = cargoKind(b[0])
	total := c.kind.blocks()
	c.epoch = binary.BigEndian.Uint32(b[1:5])
	c.first = b[5]
	n := int(b[6]) * blockSize
	if int(c.first) >= total || n == 0 || n > total*blockSize || n > len(b)-cargoHeaderSize {
		return cargo{}, false
	}
	b = b[cargoHeaderSize:]
	c.data = b[:n]
	return c, allZero(b[n:])
}

// unload takes in the blocks of the exchange in flight and ignores all others:
// they are late, and late is normal.
func (k *kem) unload(c cargo) {
	offer := c.kind == offerCargo && k.phase == listening
	answer := c.kind == answerCargo && (k.phase == offering || k.phase == collecting)
	if c.epoch != k.epoch || !offer && !answer {
		return
	}
	if k.phase == offering {
		k.move(collecting)
	}
	total := c.kind.blocks()
	for i := 0; i*blockSize < len(c.data); i++ {
		at := (int(c.first) + i) % total
		copy(k.in[at*blockSize:(at+1)*blockSize], c.data[i*blockSize:])
		k.have |= 1 << at
	}
	if bits.OnesCount64(k.have) < total {
		return
	}
	if answer {
		k.decapsulate()
		return
	}
	k.move(offered)
}

func allZero(b []byte) bool {
	var or byte
	for _, x := range b {
		or |= x
	}
	return or == 0
}
