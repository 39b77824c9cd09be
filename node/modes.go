package node

// What a node shows to the network it is in. In open mode it listens and dials
// as libp2p nodes do. In censored mode every host of the process dials bridges
// alone and listens nowhere, and whatever needs other nodes is done by errands at
// the community nodes behind the bridges (docs/spec/errand.md). Who is given a
// bridge is given it because it is needed, so by itself a node becomes censored
// when it first hears of one, by an invite or from its user. By itself it never
// becomes open again, wherever the machine goes (docs/decisions/0023).

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	ma "github.com/multiformats/go-multiaddr"

	apiv1 "github.com/kith-im/kith/node/api/v1"
	"github.com/kith-im/kith/node/store"
	"github.com/kith-im/kith/node/transport"
)

// ModeSetting is what the user says about the mode.
type ModeSetting string

// The settings. ModeAuto leaves it to what was found out.
const (
	ModeAuto     ModeSetting = "auto"
	ModeOpen     ModeSetting = "open"
	ModeCensored ModeSetting = "censored"
)

// Rows of store's meta table. What was found out is kept beside what the user
// says: it counts again when the user leaves it to us.
const (
	metaMode      = "mode"
	metaModeFound = "mode found"
)

// maxBridges bounds the bridges that we keep, of all sources.
const maxBridges = 64

// ParseModeSetting reads a setting.
func ParseModeSetting(s string) (ModeSetting, error) {
	switch m := ModeSetting(s); m {
	case ModeAuto, ModeOpen, ModeCensored:
		return m, nil
	}
	return "", refuse(CodeUsage, "use one of the three", "the mode is auto, open or censored, not %q", s)
}

// Prepare notes what the command line says of the mode ("" leaves it as it was)
// and of bridges, and returns the mode in which the hosts are to be made. It is
// for a user's store, before New.
func Prepare(ctx context.Context, st *store.Store, setting ModeSetting, bridges []ma.Multiaddr, now int64) (mode transport.Mode, err error) {
	err = st.Update(ctx, func(tx *store.Tx) error {
		if setting != "" {
			if err := tx.SetMeta(metaMode, []byte(setting)); err != nil {
				return err
			}
		}
		have, err := tx.Bridges()
		if err != nil {
			return err
		}
		for _, b := range bridges {
			// The user may have said since that it is a secret.
			if known, ok := bridgeUnder(have, b.String()); ok && known.Source == store.BridgeFromUser {
				continue
			}
			if err := learnBridge(tx, store.BridgeRow{Address: b.String(), Source: store.BridgeFromUser, Shared: true, Added: now}); err != nil {
				return err
			}
		}
		_, mode, err = storedMode(tx)
		return err
	})
	if err != nil {
		return mode, fmt.Errorf("load the mode: %w", err)
	}
	return mode, nil
}

// storedMode is what the user says of the mode, and what it is.
func storedMode(tx *store.Tx) (setting ModeSetting, mode transport.Mode, err error) {
	set, err := tx.Meta(metaMode)
	if _, err := found(err); err != nil {
		return "", 0, err
	}
	decided, err := tx.Meta(metaModeFound)
	if _, err := found(err); err != nil {
		return "", 0, err
	}
	if setting = ModeSetting(set); setting == "" {
		setting = ModeAuto
	}
	if setting == ModeCensored || setting == ModeAuto && string(decided) == string(ModeCensored) {
		mode = transport.Censored
	}
	return setting, mode, nil
}

// bridgeUnder is what is known of a bridge under an address.
func bridgeUnder(have []store.BridgeRow, address string) (row store.BridgeRow, ok bool) {
	i := slices.IndexFunc(have, func(k store.BridgeRow) bool { return k.Address == address })
	if i < 0 {
		return row, false
	}
	return have[i], true
}

// learnBridge keeps a bridge, and notes that bridges are needed unless it only
// came from a contact.
func learnBridge(tx *store.Tx, b store.BridgeRow) error {
	have, err := tx.Bridges()
	if err != nil {
		return err
	}
	if _, known := bridgeUnder(have, b.Address); len(have) >= maxBridges && !known {
		if worst := have[len(have)-1]; worst.Source >= b.Source {
			if err := tx.DeleteBridge(worst.Address); err != nil {
				return err
			}
		} else {
			return nil
		}
	}
	if err := tx.SaveBridge(b); err != nil || b.Source == store.BridgeFromContact {
		return err
	}
	return tx.SetMeta(metaModeFound, []byte(ModeCensored))
}

// modes keeps all hosts of the process in one mode.
type modes struct {
	n *Node

	changed  chan struct{} // what the store says of modes and bridges
	applying baton         // held while the hosts are brought to a mode

	mu      sync.Mutex
	setting ModeSetting
	mode    transport.Mode
	bridges []peer.AddrInfo // the most trusted first
	errands map[*transport.Host]struct{}
}

func newModes(n *Node) *modes {
	return &modes{n: n, mode: n.cfg.Host.Mode(), changed: make(chan struct{}, 1), applying: newBaton(), setting: ModeAuto, errands: make(map[*transport.Host]struct{})}
}

// run brings everything to the mode of the store, now and whenever it changes.
func (m *modes) run(ctx context.Context) {
	for {
		if err := m.load(ctx); err != nil && ctx.Err() == nil {
			m.n.log.Warn("not everything could be brought to the mode")
		}
		select {
		case <-m.changed:
		case <-ctx.Done():
			return
		}
	}
}

func (m *modes) get() (ModeSetting, transport.Mode) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.setting, m.mode
}

// censored reports whether bridges alone may be dialled.
func (m *modes) censored() bool {
	_, mode := m.get()
	return mode == transport.Censored
}

// known are the bridges that we know, the most trusted first.
func (m *modes) known() []peer.AddrInfo {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.bridges)
}

// bridge is how a node is dialled through bridges, without an address if it is
// none that we know of.
func (m *modes) bridge(id peer.ID) peer.AddrInfo {
	for _, info := range m.known() {
		if info.ID == id {
			return info
		}
	}
	return peer.AddrInfo{ID: id}
}

// errand makes a host for one errand, in the mode of the others. done closes it.
func (m *modes) errand() (host *transport.Host, done func(), err error) {
	if host, err = m.n.cfg.Errand(); err != nil {
		return nil, nil, err
	}
	m.mu.Lock()
	m.errands[host] = struct{}{}
	err = host.SetMode(m.mode) // or a change in between would be undone
	m.mu.Unlock()
	done = func() {
		m.mu.Lock()
		delete(m.errands, host)
		m.mu.Unlock()
		host.Close()
	}
	if err != nil {
		done()
		return nil, nil, err
	}
	return host, done, nil
}

// load brings everything to what the store says. What a host could not listen on
// is returned; the rest is done all the same.
func (m *modes) load(ctx context.Context) error {
	m.applying.Lock()
	defer m.applying.Unlock()
	setting, mode, bridges, err := m.stored(ctx)
	if err != nil {
		return err
	}
	return m.apply(setting, mode, bridges)
}

// stored is what the store says.
func (m *modes) stored(ctx context.Context) (setting ModeSetting, mode transport.Mode, bridges []peer.AddrInfo, err error) {
	var rows []store.BridgeRow
	err = m.n.view(ctx, func(tx *store.Tx) (err error) {
		if setting, mode, err = storedMode(tx); err != nil {
			return err
		}
		rows, err = tx.Bridges()
		return err
	})
	return setting, mode, bridgeInfos(rows), err
}

// ahead runs commit, which stores an invite's bridges and whatever else it names, with
// everything in the mode that follows from them already: what it names besides is
// dialled as soon as it is known, and is not for a censored network. Afterwards the
// store decides, also when commit failed.
func (m *modes) ahead(ctx context.Context, bridges []peer.AddrInfo, commit func() error) error {
	if len(bridges) == 0 {
		return commit()
	}
	m.applying.Lock()
	defer m.applying.Unlock()
	setting, mode, known, err := m.stored(ctx)
	if err != nil {
		return err
	}
	if setting == ModeAuto && mode == transport.Open {
		if err := m.apply(setting, transport.Censored, append(known, bridges...)); err != nil {
			poke(m.changed) // back to what the store says
			return err
		}
	}
	committed := commit()
	if setting, mode, known, err = m.stored(ctx); err == nil {
		err = m.apply(setting, mode, known)
	}
	if err != nil { // run tries again
		m.n.log.Warn("not everything could be brought to the mode")
		poke(m.changed)
	}
	return committed
}

// apply brings everything to a mode. The caller holds applying.
func (m *modes) apply(setting ModeSetting, mode transport.Mode, bridges []peer.AddrInfo) error {
	m.mu.Lock()
	changed, before := mode != m.mode, m.bridges
	m.setting, m.mode, m.bridges = setting, mode, bridges
	hosts := []*transport.Host{m.n.cfg.Host}
	if m.n.cfg.Lookups != nil {
		hosts = append(hosts, m.n.cfg.Lookups)
	}
	for h := range m.errands {
		hosts = append(hosts, h)
	}
	m.mu.Unlock()
	var failed error
	for _, h := range hosts {
		failed = errors.Join(failed, h.SetMode(mode))
	}
	// A contact may be relayed by a bridge that its record only names. One that was
	// removed is not dialled any more.
	book := m.n.cfg.Host.Peerstore()
	for _, info := range before {
		book.SetAddrs(info.ID, info.Addrs, 0)
	}
	for _, info := range bridges {
		book.AddAddrs(info.ID, info.Addrs, peerstore.PermanentAddrTTL)
	}
	m.n.cfg.Discovery.SetErrands(mode == transport.Censored, bridges)
	if mode == transport.Open && len(bridges) > 0 {
		m.n.cfg.Discovery.AddWaysIn(bridges)
	}
	if changed {
		m.n.outbox.hurry()
		m.n.mail.restart()
		m.n.relays.readdressed()
		m.n.beacon.renew()
	}
	if !changed && !slices.EqualFunc(before, bridges, sameWays) {
		m.n.mail.hurry() // a box may be at a bridge that has another path now
		m.n.relays.rerouted()
	}
	return failed
}

// bridgeInfos joins the addresses of each bridge.
func bridgeInfos(rows []store.BridgeRow) (infos []peer.AddrInfo) {
	for _, row := range rows {
		info, err := peer.AddrInfoFromString(row.Address)
		if err != nil || len(info.Addrs) == 0 || !transport.IsVeil(info.Addrs[0]) {
			continue // written by another version
		}
		if i := slices.IndexFunc(infos, func(k peer.AddrInfo) bool { return k.ID == info.ID }); i >= 0 {
			infos[i].Addrs = append(infos[i].Addrs, info.Addrs...)
			continue
		}
		infos = append(infos, *info)
	}
	return infos
}

func sameWays(a, b peer.AddrInfo) bool {
	return a.ID == b.ID && slices.EqualFunc(a.Addrs, b.Addrs, ma.Multiaddr.Equal)
}

// permits says whether an address that we were told may be dialled.
func (n *Node) permits(a ma.Multiaddr) bool {
	return n.cfg.Host.Permits(a) && (transport.IsVeil(a) || n.reachable(a, true))
}

// modeEvent says which mode it is from now on, and whether the user said so.
type modeEvent struct {
	Mode    string `json:"mode"`
	Setting string `json:"setting"`
}

// noteMode puts a change of the mode into the event log.
func (w *work) noteMode(before transport.Mode) error {
	setting, mode, err := storedMode(w.tx)
	if err != nil || mode == before {
		return err
	}
	return w.emit(eventMode, 0, modeEvent{Mode: mode.String(), Setting: string(setting)})
}

func (m *modes) show() *apiv1.Mode {
	m.mu.Lock()
	defer m.mu.Unlock()
	return &apiv1.Mode{Mode: m.mode.String(), Setting: string(m.setting), Bridges: int32(len(m.bridges))}
}

// road is how it stands with bridges, for status.
func (m *modes) road() string {
	known := m.known()
	up := 0
	for _, info := range known {
		if m.n.connected(info.ID) {
			up++
		}
	}
	switch {
	case len(known) == 0:
		return "off: no bridge is known"
	case up == 0:
		return fmt.Sprintf("not connected to any of %d", len(known))
	}
	return fmt.Sprintf("ok, connected to %d of %d", up, len(known))
}

// conns are the connections of our hosts to a community node.
func (n *Node) conns(id peer.ID) []network.Conn {
	conns := n.cfg.Host.Network().ConnsToPeer(id)
	if n.cfg.Lookups != nil {
		conns = append(conns, n.cfg.Lookups.Network().ConnsToPeer(id)...)
	}
	return conns
}

// connected says whether a host of ours is connected to a community node.
func (n *Node) connected(id peer.ID) bool { return len(n.conns(id)) > 0 }

// GetMode says which mode the node is in.
func (n *Node) GetMode(context.Context, *apiv1.GetModeRequest) (*apiv1.GetModeResponse, error) {
	if err := n.needUser(); err != nil {
		return nil, err
	}
	return &apiv1.GetModeResponse{Mode: n.modes.show()}, nil
}

// SetMode changes the mode of everything that runs, and of later starts.
func (n *Node) SetMode(ctx context.Context, req *apiv1.SetModeRequest) (*apiv1.SetModeResponse, error) {
	if err := n.needUser(); err != nil {
		return nil, err
	}
	setting, err := ParseModeSetting(req.Setting)
	if err != nil {
		return nil, err
	}
	err = n.update(ctx, func(w *work) error {
		_, before, err := storedMode(w.tx)
		if err != nil {
			return err
		}
		if err := w.tx.SetMeta(metaMode, []byte(setting)); err != nil {
			return err
		}
		return w.noteMode(before)
	})
	if err != nil {
		return nil, explain(err)
	}
	if err := n.modes.load(ctx); err != nil {
		var listen *transport.ListenError
		if errors.As(err, &listen) {
			return nil, refuse(CodeNetwork, "stop the program that took it, and restart kith", "the mode is changed, but not every address could be listened on again")
		}
		return nil, explain(err)
	}
	return &apiv1.SetModeResponse{Mode: n.modes.show()}, nil
}

// bridgeHint is the next step for who gives an address that is none.
const bridgeHint = "copy the whole address, like /dns4/example.org/tcp/443/tls/http-path/…/p2p/12D3KooW…"

// readBridge reads a bridge's address, without repeating it in an error.
func readBridge(text string) (ma.Multiaddr, error) {
	a, err := ma.NewMultiaddr(text)
	if err != nil {
		return nil, refuse(CodeUsage, bridgeHint, "that is not the address of a bridge")
	}
	info, err := peer.AddrInfoFromP2pAddr(a)
	if err != nil || len(info.Addrs) != 1 || !transport.IsVeil(info.Addrs[0]) {
		return nil, refuse(CodeUsage, bridgeHint, "that is not the address of a bridge")
	}
	return a, nil
}

// bridgeText is the short name of a bridge's address for people: two paths of one
// bridge have two, and neither tells the path.
func bridgeText(address string) string {
	h := sha256.Sum256([]byte(address))
	return hex.EncodeToString(h[:4])
}

func (n *Node) showBridge(tx *store.Tx, row store.BridgeRow) (*apiv1.Bridge, error) {
	out := &apiv1.Bridge{Address: row.Address, Shared: row.Shared, AddedMs: row.Added, AddedBy: "you"}
	info, err := peer.AddrInfoFromString(row.Address)
	if err != nil {
		return nil, errors.Join(store.ErrDamaged, err)
	}
	out.Id = bridgeText(row.Address)
	out.Connected = slices.ContainsFunc(n.conns(info.ID), func(c network.Conn) bool {
		return slices.ContainsFunc(info.Addrs, func(a ma.Multiaddr) bool { return transport.DialledUnder(c, a) })
	})
	switch row.Source {
	case store.BridgeFromUser:
	case store.BridgeFromInvite:
		out.AddedBy = "invite"
	case store.BridgeFromContact:
		c, err := tx.Contact(row.Contact)
		if err != nil {
			return nil, err
		}
		out.AddedBy = c.Name
	}
	return out, nil
}

// ListBridges returns the bridges that we know.
func (n *Node) ListBridges(ctx context.Context, _ *apiv1.ListBridgesRequest) (*apiv1.ListBridgesResponse, error) {
	if err := n.needUser(); err != nil {
		return nil, err
	}
	out := &apiv1.ListBridgesResponse{}
	err := n.view(ctx, func(tx *store.Tx) error {
		rows, err := tx.Bridges()
		for _, row := range rows {
			b, err := n.showBridge(tx, row)
			if err != nil {
				return err
			}
			out.Bridges = append(out.Bridges, b)
		}
		return err
	})
	return out, explain(err)
}

// AddBridge keeps a bridge that the user was given.
func (n *Node) AddBridge(ctx context.Context, req *apiv1.AddBridgeRequest) (*apiv1.AddBridgeResponse, error) {
	if err := n.needUser(); err != nil {
		return nil, err
	}
	a, err := readBridge(req.Address)
	if err != nil {
		return nil, err
	}
	out := &apiv1.AddBridgeResponse{}
	err = n.update(ctx, func(w *work) error {
		_, before, err := storedMode(w.tx)
		if err != nil {
			return err
		}
		have, err := w.tx.Bridges()
		if err != nil {
			return err
		}
		_, out.Known = bridgeUnder(have, a.String())
		row := store.BridgeRow{Address: a.String(), Source: store.BridgeFromUser, Shared: !req.Secret, Added: w.ms()}
		if err := learnBridge(w.tx, row); err != nil {
			return err
		}
		if err := w.shareBridges(); err != nil {
			return err
		}
		if out.Bridge, err = n.showBridge(w.tx, row); err != nil {
			return err
		}
		return w.noteMode(before)
	})
	if err != nil {
		return nil, explain(err)
	}
	if err := n.modes.load(ctx); err != nil {
		return nil, explain(err)
	}
	out.Mode = n.modes.show()
	return out, nil
}

// RemoveBridge forgets a bridge under one address. The mode stays as it is.
func (n *Node) RemoveBridge(ctx context.Context, req *apiv1.RemoveBridgeRequest) (*apiv1.RemoveBridgeResponse, error) {
	if err := n.needUser(); err != nil {
		return nil, err
	}
	err := n.update(ctx, func(w *work) error {
		rows, err := w.tx.Bridges()
		if err != nil {
			return err
		}
		var fits []string
		for _, row := range rows {
			info, err := peer.AddrInfoFromString(row.Address)
			if err != nil {
				return errors.Join(store.ErrDamaged, err)
			}
			if row.Address == req.Id || hasPrefix(bridgeText(row.Address), strings.ToLower(req.Id)) || hasPrefix(info.ID.String(), req.Id) {
				fits = append(fits, row.Address)
			}
		}
		switch len(fits) {
		case 0:
			return refuse(CodeNotFound, "kith bridge ways shows the ones you have", "there is no such bridge")
		case 1:
		default:
			return refuse(CodeUsage, "give the whole id, or address, as kith bridge ways shows it", "this fits %d addresses of bridges", len(fits))
		}
		if err := w.tx.DeleteBridge(fits[0]); err != nil {
			return err
		}
		return w.shareBridges()
	})
	if err != nil {
		return nil, explain(err)
	}
	return &apiv1.RemoveBridgeResponse{}, explain(n.modes.load(ctx))
}
