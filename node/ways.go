package node

// Ways in that others gave us and that we pass on. Invites carry them, and
// contacts tell each other a few inside sessions, so that a bridge that is
// blocked, or was leaked, is one of several.

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"slices"
	"strings"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/kith-im/kith/node/store"
	"github.com/kith-im/kith/node/transport"
	"github.com/kith-im/kith/protocol"
	"github.com/kith-im/kith/protocol/message"
	"github.com/kith-im/kith/protocol/rendezvous"
)

// waysPerContact is how many of our bridges one contact is told of: one that
// works, and one for when it is blocked.
const waysPerContact = 2

// bridgeBytes are the addresses of the bridges that may be shared, best first.
func bridgeBytes(rows []store.BridgeRow) (out [][]byte) {
	for _, row := range rows {
		a, err := ma.NewMultiaddr(row.Address)
		if err != nil || !row.Shared || row.Source == store.BridgeFromContact {
			continue
		}
		if b := a.Bytes(); len(b) <= protocol.MaxAddress {
			out = append(out, b)
		}
	}
	return out
}

// bridgeIDs are the bridges to which addresses lead, each once.
func bridgeIDs(all [][]byte) (ids []peer.ID) {
	bridges, _ := readHints(all)
	for _, a := range bridges {
		if id, err := peer.IDFromP2PAddr(a); err == nil && !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	return ids
}

// waysTold are the bridges that a contact's device knows from us: its part of those that
// may be shared. Whose invite we answered is told of it when they are established.
func waysTold(c store.ContactRow, d store.DeviceRow, all [][]byte) []peer.ID {
	if c.State != store.ContactEstablished && d.Link != nil {
		return nil
	}
	return bridgeIDs(share(c, all))
}

// hints are the ways in that a new invite names: bridges, because they are of use
// wherever community nodes are and the reverse is not so, then community nodes.
func (w *work) hints() ([][]byte, error) {
	rows, err := w.tx.Bridges()
	if err != nil {
		return nil, err
	}
	out := bridgeBytes(rows)
	for _, h := range w.n.cfg.Hints {
		b := h.Bytes()
		known := slices.ContainsFunc(out, func(o []byte) bool { return bytes.Equal(o, b) })
		if len(b) <= protocol.MaxAddress && !known {
			out = append(out, b)
		}
	}
	return out[:min(len(out), protocol.MaxHints)], nil
}

// readHints sorts the ways in that an invite names: bridges, and the rest. What nobody
// can read or dial is left out, and so is somebody's secret in a form that is not a
// bridge's.
func readHints(hints [][]byte) (bridges, others []ma.Multiaddr) {
	for _, h := range hints {
		a, err := ma.NewMultiaddrBytes(h)
		if err != nil {
			continue
		}
		info, err := peer.AddrInfoFromP2pAddr(a)
		switch {
		case err != nil || len(info.Addrs) == 0:
		case transport.IsVeil(info.Addrs[0]):
			bridges = append(bridges, a)
		case !transport.HasPath(a):
			others = append(others, a)
		}
	}
	return bridges, others
}

// takeHints keeps the ways in that an invite named, and notes the mode that follows.
func (w *work) takeHints(bridges, others []ma.Multiaddr) error {
	_, before, err := storedMode(w.tx)
	if err != nil {
		return err
	}
	for _, a := range bridges {
		if err := learnBridge(w.tx, store.BridgeRow{Address: a.String(), Source: store.BridgeFromInvite, Shared: true, Added: w.ms()}); err != nil {
			return err
		}
	}
	for _, a := range others {
		if err := w.tx.RememberWay(a.String(), w.ms(), keepWays); err != nil {
			return err
		}
	}
	if err := w.noteMode(before); err != nil {
		return err
	}
	return w.shareBridges()
}

// share is what one contact is told of the bridges that may be shared: always
// the same for the same bridges, and another part of them for each contact.
func share(c store.ContactRow, all [][]byte) [][]byte {
	rank := func(a []byte) [sha256.Size]byte { return sha256.Sum256(append([]byte(c.Handle), a...)) }
	all = slices.SortedFunc(slices.Values(all), func(a, b []byte) int {
		x, y := rank(a), rank(b)
		return bytes.Compare(x[:], y[:])
	})
	return all[:min(len(all), waysPerContact)]
}

// metaShared keeps the bridges that contacts were told of, each its own part.
const metaShared = "bridges shared"

// shareBridges tells those contacts of bridges for whom something has changed.
func (w *work) shareBridges() error {
	rows, err := w.tx.Bridges()
	if err != nil {
		return err
	}
	now := bridgeBytes(rows)
	told, err := w.tx.Meta(metaShared)
	if _, err := found(err); err != nil {
		return err
	}
	before := splitAddresses(told)
	if slices.EqualFunc(before, now, bytes.Equal) {
		return nil
	}
	if err := w.tx.SetMeta(metaShared, joinAddresses(now)); err != nil {
		return err
	}
	contacts, err := w.tx.Contacts()
	if err != nil {
		return err
	}
	for _, c := range contacts {
		if c.State != store.ContactEstablished || c.Blocked || slices.EqualFunc(share(c, before), share(c, now), bytes.Equal) {
			continue
		}
		if err := w.sayWays(c, share(c, now)); err != nil {
			return err
		}
	}
	return nil
}

// shareWith tells a new contact of its part of the bridges.
func (w *work) shareWith(c store.ContactRow) error {
	told, err := w.tx.Meta(metaShared)
	if ok, err := found(err); !ok {
		return err
	}
	if ways := share(c, splitAddresses(told)); len(ways) > 0 {
		return w.sayWays(c, ways)
	}
	return nil
}

func (w *work) sayWays(c store.ContactRow, ways [][]byte) error {
	if ok, err := w.reaches(c); !ok {
		return err
	}
	value, err := rendezvous.MarshalWays(ways)
	if err != nil {
		return err
	}
	record, err := rendezvous.MarshalFields([]rendezvous.Field{{Type: rendezvous.FieldWays, Value: value}})
	if err != nil {
		return err
	}
	return w.say(c, &message.Rendezvous{Record: record})
}

// takeWays keeps the bridges that a contact passes on, in the place of those it
// passed on before. They are tried when ours fail, and not passed on.
func (w *work) takeWays(c store.ContactRow, value []byte) error {
	ways, err := rendezvous.ParseWays(value)
	if err != nil || c.State != store.ContactEstablished || c.Blocked {
		return nil
	}
	if err := w.tx.DeleteBridgesOf(c.ID); err != nil {
		return err
	}
	for _, b := range ways {
		a, err := ma.NewMultiaddrBytes(b)
		if err != nil {
			continue
		}
		info, err := peer.AddrInfoFromP2pAddr(a)
		if err != nil || len(info.Addrs) != 1 || !transport.IsVeil(info.Addrs[0]) {
			continue
		}
		if err := learnBridge(w.tx, store.BridgeRow{
			Address: a.String(), Source: store.BridgeFromContact, Contact: c.ID, Added: w.ms(),
		}); err != nil {
			return err
		}
	}
	w.roads = true
	return nil
}

// joinAddresses and splitAddresses keep a list of binary multiaddrs in one value.
func joinAddresses(all [][]byte) (out []byte) {
	for _, a := range all {
		out = append(append(out, uint8(len(a))), a...) // at most protocol.MaxAddress
	}
	return out
}

func splitAddresses(b []byte) (all [][]byte) {
	for len(b) > 0 && len(b) > int(b[0]) {
		n := 1 + int(b[0])
		all, b = append(all, b[1:n]), b[n:]
	}
	return all
}

// hasPrefix is strings.HasPrefix for what people type: nothing fits nothing.
func hasPrefix(s, prefix string) bool { return prefix != "" && strings.HasPrefix(s, prefix) }

// route is how a node is dialled in the mode we are in: through a bridge, if we
// know it as one, or at the addresses it is told to have. Without addresses it
// cannot be dialled.
func (n *Node) route(info peer.AddrInfo) peer.AddrInfo {
	out := n.modes.bridge(info.ID)
	for _, a := range info.Addrs {
		if n.permits(a) && !slices.ContainsFunc(out.Addrs, a.Equal) {
			out.Addrs = append(out.Addrs, a)
		}
	}
	// What is no bridge's address is quicker, where it may be dialled.
	slices.SortStableFunc(out.Addrs, func(a, b ma.Multiaddr) int { return cmp.Compare(veilLast(a), veilLast(b)) })
	return out
}

func veilLast(a ma.Multiaddr) int {
	if transport.HasPath(a) {
		return 1
	}
	return 0
}
