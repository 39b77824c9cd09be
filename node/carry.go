package node

// Mail for nodes that we cannot dial, or know by name alone, is brought there by
// community nodes that we can (docs/spec/errand.md, section 4). The receipt is
// the mailbox's own either way.

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"slices"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/kith-im/kith/discovery"
	"github.com/kith-im/kith/node/transport"
	"github.com/kith-im/kith/protocol/mailbox"
)

// Carry returns how a community node brings a mailbox's request to another node,
// for discovery.Config.
func Carry(host *transport.Host) func(ctx context.Context, address, mail []byte) ([]byte, error) {
	return func(ctx context.Context, address, mail []byte) ([]byte, error) {
		info, err := toldInfo(address)
		if err != nil || info.ID == host.ID() || !tellable(info) {
			return nil, discovery.ErrNotCarried
		}
		in := bytes.NewReader(mail)
		request, err := mailbox.ReadRequest(bufio.NewReader(in))
		if err != nil || !bytes.Equal(mailbox.AppendFrame(nil, request), mail) {
			return nil, discovery.ErrNotCarried
		}
		switch request.(type) {
		case *mailbox.Deposit, *mailbox.Audit:
		default:
			return nil, discovery.ErrNotCarried
		}
		m, err := dialMail(ctx, host, info)
		if err != nil {
			return nil, err
		}
		defer m.close()
		answers, err := m.exchange([]mailbox.Frame{request})
		if err != nil {
			return nil, err
		}
		return mailbox.AppendFrame(nil, answers[0]), nil
	}
}

// tellable says whether a node is named to others who are to dial it, or by them:
// at an IP address, or by its peer id alone. Nobody is to have a name looked up, or a
// relay dialled, by us.
func tellable(info peer.AddrInfo) bool {
	return len(info.Addrs) == 0 || len(info.Addrs) == 1 && !transport.HasPath(info.Addrs[0]) && transport.ReachOf(info.Addrs[0]) != 0
}

// mailer is a way to a node that keeps mail: a stream to it, or others who bring
// what we have for it.
type mailer interface {
	// exchange sends requests and returns as many answers.
	exchange(requests []mailbox.Frame) ([]mailbox.Frame, error)
	key() [32]byte // the node's
	// direct reports whether nobody stands between: what is false is then the
	// node's own.
	direct() bool
	close()
}

var (
	_ mailer = (*mailStream)(nil)
	_ mailer = (*errandMail)(nil)
)

// errandMail brings mail to a node by way of others.
type errandMail struct {
	ctx  context.Context //nolint:containedctx // of one round
	host *transport.Host
	by   []peer.AddrInfo // the one that did it last first
	to   []byte          // the node's address
	node [32]byte
}

// carriers are the community nodes that may bring mail to another one.
func (n *Node) carriers(to peer.ID) []peer.AddrInfo {
	all := n.modes.known()
	for _, h := range n.cfg.Hints {
		if info, err := peer.AddrInfoFromP2pAddr(h); err == nil && len(info.Addrs) > 0 && n.permits(info.Addrs[0]) {
			all = append(all, *info)
		}
	}
	return slices.DeleteFunc(all, func(info peer.AddrInfo) bool { return info.ID == to })
}

// carries says whether others can bring mail to a node.
func (n *Node) carries(info peer.AddrInfo) bool { return len(n.carriers(info.ID)) > 0 }

// reachMail opens a way to a node that keeps mail, which a contact named: directly
// where that works, and within the bound on dials at addresses where nobody was met. An
// error says nothing of the node; draining is an answer.
func (n *Node) reachMail(ctx context.Context, host *transport.Host, info peer.AddrInfo) (mailer, error) {
	var m *mailStream
	err := errDial
	route := n.route(info)
	if n.cfg.Lookups != nil {
		for _, c := range n.cfg.Lookups.Network().ConnsToPeer(info.ID) {
			n.cfg.Host.Met(c) // a node that we have found ourselves
		}
	}
	route.Addrs = slices.DeleteFunc(route.Addrs, func(a ma.Multiaddr) bool { // a bridge we know by others
		return slices.ContainsFunc(info.Addrs, a.Equal) && !n.cfg.Host.MayCall(info.ID, a)
	})
	if len(route.Addrs) > 0 {
		if m, err = dialMail(ctx, host, route); err == nil {
			n.cfg.Host.Met(m.stream.Conn())
			if m.hello.Draining {
				m.close()
				return nil, &refusal{mailbox.Refused{Why: mailbox.RefusedDraining}}
			}
			return m, nil
		}
	}
	by := n.carriers(info.ID)
	key, keyErr := nodeKey(info.ID)
	if len(by) == 0 || keyErr != nil || ctx.Err() != nil {
		return nil, err
	}
	name, err := ma.NewComponent("p2p", info.ID.String())
	if err != nil {
		return nil, err
	}
	to := name.Multiaddr()
	if len(info.Addrs) > 0 && tellable(info) {
		to = info.Addrs[0].Encapsulate(to)
	}
	return &errandMail{ctx: ctx, host: host, by: by, to: to.Bytes(), node: key}, nil
}

func (c *errandMail) key() [32]byte { return c.node }

func (c *errandMail) direct() bool { return false }

func (c *errandMail) close() {}

// exchange has requests brought by whoever can, what one could not by the next.
func (c *errandMail) exchange(requests []mailbox.Frame) (answers []mailbox.Frame, _ error) {
	for by, info := range c.by {
		var mails [][]byte
		for _, r := range requests[len(answers):] {
			mails = append(mails, mailbox.AppendFrame(nil, r))
		}
		if len(mails) == 0 {
			break
		}
		backs, _ := discovery.CarryMail(c.ctx, c.host, info, c.to, mails) // what is missing is asked elsewhere
		before := len(answers)
		for _, back := range backs {
			answer, err := mailbox.ReadAnswer(bufio.NewReader(bytes.NewReader(back)))
			if err != nil || !bytes.Equal(mailbox.AppendFrame(nil, answer), back) || !isVerdict(answer) {
				break // it is the carrier who is broken, or lies
			}
			answers = append(answers, answer)
		}
		if len(answers) > before {
			c.by[0], c.by[by] = c.by[by], c.by[0]
		}
	}
	if len(answers) < len(requests) {
		return nil, errors.Join(errDial, c.ctx.Err())
	}
	return answers, nil
}

// isVerdict says whether a frame answers a deposit or an audit.
func isVerdict(f mailbox.Frame) bool {
	switch f.(type) {
	case *mailbox.Stored, *mailbox.Proof, *mailbox.Refused:
		return true
	}
	return false
}
