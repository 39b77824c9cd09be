package discovery

import (
	"slices"
	"sync"

	"github.com/libp2p/go-libp2p/core/peer"
)

const (
	// maxRemembered is how many community nodes are kept for the next run. At
	// least sixteen proven ones stay, however many strangers fill the table.
	maxRemembered = 32
	// maxPerNetwork bounds the newly remembered of one network (/16, or /32 of
	// IPv6), so that one operator can't become all we remember.
	maxPerNetwork = 4
)

// remembered holds the community nodes that served us well, proven longest
// first. A newcomer never takes the place of one that still answers.
type remembered struct {
	self peer.ID
	save func([]peer.AddrInfo)

	mu    sync.Mutex
	infos []peer.AddrInfo
}

var _ source = (*remembered)(nil)

func newRemembered(self peer.ID, infos []peer.AddrInfo, save func([]peer.AddrInfo)) *remembered {
	r := &remembered{self: self, save: save}
	for _, info := range infos {
		if len(r.infos) < maxRemembered && info.ID != self && isEd25519(info.ID) && len(info.Addrs) > 0 {
			r.infos = append(r.infos, capAddrs(info))
		}
	}
	return r
}

func (r *remembered) ways() []peer.AddrInfo {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.infos)
}

// update takes the community nodes that answer now, longest known first. Those
// remembered that answer keep their places, newcomers follow, and what does
// not answer comes last and falls off first.
func (r *remembered) update(alive []peer.AddrInfo, public bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	answers := make(map[peer.ID]peer.AddrInfo, len(alive))
	for _, info := range alive {
		answers[info.ID] = info
	}
	known := make(map[peer.ID]bool, len(r.infos))
	perNetwork := make(map[string]int)
	var next, silent []peer.AddrInfo
	for _, info := range r.infos {
		known[info.ID] = true
		now, ok := answers[info.ID]
		if !ok {
			silent = append(silent, info)
			continue
		}
		if len(now.Addrs) > 0 {
			info = capAddrs(now)
		}
		next = append(next, info)
		perNetwork[networkOf(info)]++
	}
	for _, info := range alive {
		if known[info.ID] || info.ID == r.self || len(info.Addrs) == 0 {
			continue
		}
		if public && perNetwork[networkOf(info)] >= maxPerNetwork {
			continue
		}
		perNetwork[networkOf(info)]++
		next = append(next, capAddrs(info))
	}
	next = append(next, silent...)
	if len(next) > maxRemembered {
		next = next[:maxRemembered]
	}
	changed := !slices.EqualFunc(next, r.infos, func(a, b peer.AddrInfo) bool { return a.ID == b.ID && sameAddrs(a, b) })
	r.infos = next
	if changed && r.save != nil {
		r.save(slices.Clone(next))
	}
}
