package discovery

import (
	"slices"
	"sync"

	"github.com/libp2p/go-libp2p/core/peer"
)

// maxInvited bounds the ways in from the configuration and from invites; the
// oldest is forgotten first.
const maxInvited = 64

// invited holds the ways in that somebody gave us: in the configuration or in
// an invite.
type invited struct {
	self peer.ID

	mu    sync.Mutex
	infos []peer.AddrInfo // newest first
}

var _ source = (*invited)(nil)

func newInvited(self peer.ID, infos []peer.AddrInfo) *invited {
	v := &invited{self: self}
	v.add(infos)
	return v
}

// add reports whether there was anything new.
func (v *invited) add(infos []peer.AddrInfo) (added bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, info := range slices.Backward(infos) {
		if info.ID == v.self || !isEd25519(info.ID) || len(info.Addrs) == 0 {
			continue
		}
		i := slices.IndexFunc(v.infos, func(have peer.AddrInfo) bool { return have.ID == info.ID })
		if i >= 0 {
			old := v.infos[i]
			v.infos = slices.Delete(v.infos, i, i+1)
			added = added || !sameAddrs(old, info)
		} else {
			added = true
		}
		v.infos = slices.Insert(v.infos, 0, capAddrs(info))
	}
	if len(v.infos) > maxInvited {
		v.infos = v.infos[:maxInvited]
	}
	return added
}

func (v *invited) ways() []peer.AddrInfo {
	v.mu.Lock()
	defer v.mu.Unlock()
	return slices.Clone(v.infos)
}
