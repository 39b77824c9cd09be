package identity

import (
	"errors"
	"fmt"
	"slices"

	"github.com/kith-im/kith/protocol"
	"golang.org/x/crypto/cryptobyte"
)

// DeviceEntry is one device of an account. Added and Revoked are versions of
// the list: the one in which the device appeared, and the one that revoked it,
// or 0 while it is live.
type DeviceEntry struct {
	ID      uint32 // from 1, never used twice in an account
	Device  DeviceHash
	Added   uint64
	Revoked uint64
}

// DeviceList is an account's signed list of its devices. Every value of this
// type carries a signature that was made or verified here. It travels only
// inside established sessions. Treat it as immutable.
//
//	format 1 | acct 32 | version 8 | count 2 | count × (id 4 | device 32 | added 8 | revoked 8) | signature 64
type DeviceList struct {
	Account AccountPublic
	Version uint64 // from 1, one more with every change
	Devices []DeviceEntry

	signature [64]byte
}

const (
	listFormat    = 1
	listEntrySize = 4 + 32 + 8 + 8

	// MaxDeviceListSize bounds a marshalled list.
	MaxDeviceListSize = 1 + 32 + 8 + 2 + protocol.MaxDevices*listEntrySize + 64
)

// ErrOldList means that a device list is not newer than the one already known:
// an old one replayed, or two lists with one number.
var ErrOldList = errors.New("identity: the device list is not newer than the known one")

// NewDeviceList signs a list of the account's devices
// (docs/spec/identity.md, section 5).
func NewDeviceList(account *Account, version uint64, devices []DeviceEntry) (*DeviceList, error) {
	l := &DeviceList{Account: account.Public(), Version: version, Devices: append([]DeviceEntry(nil), devices...)}
	if err := l.check(); err != nil {
		return nil, err
	}
	l.signature = [64]byte(sign(account.key, protocol.LabelDeviceList, l.body()))
	return l, nil
}

// ParseDeviceList reads the list of the account, and refuses one that the
// account did not sign.
func ParseDeviceList(b []byte, account AccountPublic) (*DeviceList, error) {
	l := new(DeviceList)
	if err := l.unmarshal(b); err != nil {
		return nil, err
	}
	if l.Account != account {
		return nil, errors.New("identity: the device list is of another account")
	}
	if !verify(account[:], protocol.LabelDeviceList, l.body(), l.signature[:]) {
		return nil, errors.New("identity: the device list's signature is wrong")
	}
	return l, nil
}

// Marshal returns the list as ParseDeviceList reads it.
func (l *DeviceList) Marshal() []byte { return append(l.body(), l.signature[:]...) }

func (l *DeviceList) body() []byte {
	b := cryptobyte.NewBuilder(make([]byte, 0, MaxDeviceListSize))
	b.AddUint8(listFormat)
	b.AddBytes(l.Account[:])
	b.AddUint64(l.Version)
	b.AddUint16(uint16(len(l.Devices)))
	for _, d := range l.Devices {
		b.AddUint32(d.ID)
		b.AddBytes(d.Device[:])
		b.AddUint64(d.Added)
		b.AddUint64(d.Revoked)
	}
	return b.BytesOrPanic()
}

func (l *DeviceList) unmarshal(b []byte) error {
	s := cryptobyte.String(b)
	var format uint8
	var count uint16
	if !s.ReadUint8(&format) || format != listFormat {
		return errors.New("identity: the device list has an unknown format")
	}
	if !s.CopyBytes(l.Account[:]) || !s.ReadUint64(&l.Version) || !s.ReadUint16(&count) {
		return errListForm
	}
	if count > protocol.MaxDevices || len(s) != int(count)*listEntrySize+len(l.signature) {
		return errListForm
	}
	l.Devices = make([]DeviceEntry, count)
	for i := range l.Devices {
		d := &l.Devices[i]
		if !s.ReadUint32(&d.ID) || !s.CopyBytes(d.Device[:]) || !s.ReadUint64(&d.Added) || !s.ReadUint64(&d.Revoked) {
			return errListForm
		}
	}
	if !s.CopyBytes(l.signature[:]) || !s.Empty() {
		return errListForm
	}
	return l.check()
}

// check holds the rules that a list must obey whoever signed it.
func (l *DeviceList) check() error {
	if l.Version == 0 || len(l.Devices) == 0 || len(l.Devices) > protocol.MaxDevices {
		return errListForm
	}
	seen := make(map[DeviceHash]bool, len(l.Devices))
	var last uint32
	for _, d := range l.Devices {
		switch {
		case d.ID <= last: // ascending, so that a list has one form
			return errListForm
		case d.Added == 0 || d.Added > l.Version:
			return errListForm
		case d.Revoked != 0 && (d.Revoked <= d.Added || d.Revoked > l.Version):
			return errListForm
		case seen[d.Device]:
			return errListForm
		}
		last = d.ID
		seen[d.Device] = true
	}
	return nil
}

var errListForm = errors.New("identity: the device list is malformed")

// Live returns the hashes of the devices that are not revoked.
func (l *DeviceList) Live() []DeviceHash {
	var live []DeviceHash
	for _, d := range l.Devices {
		if d.Revoked == 0 {
			live = append(live, d.Device)
		}
	}
	return live
}

// Contains reports whether the device is on the list and not revoked: only then
// does it belong to the account it names.
func (l *DeviceList) Contains(device DeviceHash) bool {
	for _, d := range l.Devices {
		if d.Device == device {
			return d.Revoked == 0
		}
	}
	return false
}

// Follows checks that l may take the place of prev: same account, higher
// version, every earlier device still there with its marks, and no revocation
// undone. Seeing the same list again is no error. An error that is ErrOldList
// is a replay; any other means that the account's key signs contradictions.
func (l *DeviceList) Follows(prev *DeviceList) error {
	if l.Account != prev.Account {
		return errors.New("identity: the device list is of another account")
	}
	if l.Version == prev.Version && slices.Equal(l.Devices, prev.Devices) {
		return nil
	}
	if l.Version <= prev.Version {
		return fmt.Errorf("%w: version %d after %d", ErrOldList, l.Version, prev.Version)
	}
	now := make(map[uint32]DeviceEntry, len(l.Devices))
	for _, d := range l.Devices {
		now[d.ID] = d
	}
	for _, old := range prev.Devices {
		d, ok := now[old.ID]
		if !ok || d.Device != old.Device || d.Added != old.Added || old.Revoked != 0 && d.Revoked != old.Revoked {
			return errors.New("identity: the device list contradicts the one before it")
		}
		if old.Revoked == 0 && d.Revoked != 0 && d.Revoked <= prev.Version {
			return errors.New("identity: the device list revokes a device in the past")
		}
		delete(now, old.ID)
	}
	for _, d := range now {
		if d.Added <= prev.Version {
			return errors.New("identity: the device list adds a device in the past")
		}
	}
	return nil
}
