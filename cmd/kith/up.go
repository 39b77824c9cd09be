package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/kith-im/kith/discovery"
	"github.com/kith-im/kith/node"
	"github.com/kith-im/kith/node/api"
	apiv1 "github.com/kith-im/kith/node/api/v1"
	"github.com/kith-im/kith/node/mailbox"
	"github.com/kith-im/kith/node/store"
	"github.com/kith-im/kith/node/transport"
	wire "github.com/kith-im/kith/protocol/mailbox"
)

const (
	// stopTime is how long a daemon takes to stop at most. What is cut off
	// then is as safe as after a power cut.
	stopTime = 5 * time.Second
	// runsWait is how long a daemon that holds the store has to answer that it
	// is ready, which takes it milliseconds.
	runsWait = 2 * time.Second
	// waysKept is how many addresses of community nodes are remembered.
	waysKept = 64
	// maxPassphrase bounds the passphrase file, in bytes.
	maxPassphrase = 4 << 10
	// communityHeap is where a community node's garbage collector begins to work
	// harder: a flood of deposits took 838 MB without it, and 450 MB with it.
	communityHeap = 448 << 20
	// keyMeta is where the store keeps a community node's transport key.
	keyMeta = "host key"
	// quotaMeta is where it keeps what --quota said when it was last given,
	// as eight bytes.
	quotaMeta = "quota"
	// noProxy says that the variables of the environment are not to be heeded.
	noProxy = "none"
	// upCommunity is how a community node is started.
	upCommunity = "kith up --role community"
)

func (k *kith) upCmd() *cobra.Command {
	var flags config
	var ask, untilEOF bool
	c := &cobra.Command{
		Use:   "up",
		Short: "Run the daemon; the first start creates the account",
		Long: `Run the daemon in the foreground until Ctrl-C, kith down or SIGTERM. The first
start creates the account. Nothing has to be configured.

A passphrase protects the store from the start at which it is first given; copies
of the data directory that were made before open without it.

Community nodes keep what contacts send while this daemon is off; with --mailbox
none messages travel only while both sides are online.

With --role community --bridge it is a bridge too: a community node for people
whose network lets only web sites through. Everybody but them sees the --site.

With --proxy, or HTTPS_PROXY or ALL_PROXY in the environment, every connection
goes through that proxy, which also resolves the names; there is no QUIC then,
and unless --listen is given nothing listens.

With --role community it becomes a community node instead: it helps others find
each other, keeps sealed mail for them while they are away (as much as --quota
allows; see kith node), and prints its addresses for their --bootstrap. It has no
account and can read nothing.`,
	}
	f := c.Flags()
	f.StringVar(&flags.name.value, "name", "", "what you call yourself; contacts are told")
	f.StringVar(&flags.role.value, "role", "user", "user or community")
	f.StringArrayVar(&flags.listen.value, "listen", nil, "a `MULTIADDR` to listen on; repeatable")
	f.StringArrayVar(&flags.bootstrap.value, "bootstrap", nil, "the `MULTIADDR` of a community node, with /p2p/ID; repeatable")
	f.StringVar(&flags.web.value, "web", "off", "the web UI's address; this version only knows off")
	f.StringVar(&flags.mailbox.value, "mailbox", "auto", "auto, or none: messages only while both are online")
	f.StringVar(&flags.proxy.value, "proxy", "", "the `URL` of a proxy, socks5:// or http://, for every connection; none: heed no HTTPS_PROXY or ALL_PROXY either")
	f.StringVar(&flags.quota.value, "quota", "", "the `SIZE` of the mail that a community node keeps (default 5GiB, or as it was)")
	f.StringVar(&flags.metrics.value, "metrics", "", "the `IP:PORT` at which a community node shows its counts to Prometheus")
	f.StringVar(&flags.lan.value, "lan", "", "on or off: be found on local networks (default as it was; see kith lan)")
	f.Lookup("lan").NoOptDefVal = "on"
	f.StringVar(&flags.preset.value, "preset", "", "what may be used: laptop, lowpower, server, bridge or offline; see kith budget --help")
	f.BoolVar(&flags.metered.value, "metered", false, "bytes cost money: spend few, and slow what nobody waits for; see kith budget --help")
	f.StringVar(&flags.perDay.value, "bytes-per-day", "", "the `SIZE` of what may be sent and received in a day, instead of the preset's")
	f.StringVar(&flags.memory.value, "memory", "", "the `SIZE` of the memory for connections, instead of the preset's")
	f.StringVar(&flags.conns.value, "connections", "", "the `NUMBER` of connections of each host, instead of the preset's")
	f.StringVar(&flags.dials.value, "dials-per-minute", "", "the `NUMBER` of dials in a minute, instead of the preset's")
	f.BoolVar(&flags.hide.value, "hide-address", false, "keep this machine's address from all contacts: relays and mailboxes only")
	f.BoolVar(&flags.upnp.value, "upnp", false, "ask routers on the network for ports (UPnP, NAT-PMP), which tells them that we listen")
	f.StringVar(&flags.mode.value, "mode", "", "auto, open or censored (default as it was; see kith mode)")
	flags.bridge.define(f)
	f.StringVar(&flags.passphrase.value, "passphrase-file", "", "a `FILE` with the passphrase, which protects the store from then on")
	f.BoolVar(&ask, "passphrase", false, "ask for the passphrase, which protects the store from then on")
	f.BoolVar(&untilEOF, "until-eof", false, "stop when the standard input ends, as it does with the process that holds it")
	_ = f.MarkHidden("until-eof")
	k.command(c, 0, 0, func(ctx context.Context, _ []string) error {
		cfg, err := k.config()
		if err != nil {
			return err
		}
		changed := f.Changed
		override(&cfg.name, flags.name, changed("name"))
		override(&cfg.role, flags.role, changed("role"))
		override(&cfg.listen, flags.listen, changed("listen"))
		override(&cfg.bootstrap, flags.bootstrap, changed("bootstrap"))
		override(&cfg.web, flags.web, changed("web"))
		override(&cfg.mailbox, flags.mailbox, changed("mailbox"))
		override(&cfg.proxy, flags.proxy, changed("proxy"))
		override(&cfg.quota, flags.quota, changed("quota"))
		override(&cfg.metrics, flags.metrics, changed("metrics"))
		override(&cfg.lan, flags.lan, changed("lan"))
		override(&cfg.preset, flags.preset, changed("preset"))
		override(&cfg.metered, flags.metered, changed("metered"))
		override(&cfg.perDay, flags.perDay, changed("bytes-per-day"))
		override(&cfg.memory, flags.memory, changed("memory"))
		override(&cfg.conns, flags.conns, changed("connections"))
		override(&cfg.dials, flags.dials, changed("dials-per-minute"))
		override(&cfg.hide, flags.hide, changed("hide-address"))
		override(&cfg.upnp, flags.upnp, changed("upnp"))
		override(&cfg.mode, flags.mode, changed("mode"))
		override(&cfg.passphrase, flags.passphrase, changed("passphrase-file"))
		cfg.bridge.override(flags.bridge, changed)
		d, err := newDaemon(k, cfg)
		if err != nil {
			return err
		}
		if d.passphrase, err = k.passphrase(cfg, ask); err != nil {
			return err
		}
		if err := harden(); err != nil {
			k.notef("warning: this process could not be hardened: %v", err)
		}
		if untilEOF {
			var cancel context.CancelFunc
			ctx, cancel = context.WithCancel(ctx)
			defer cancel()
			go func() {
				_, _ = io.Copy(io.Discard, k.stdin)
				cancel()
			}()
		}
		return d.run(ctx)
	})
	return c
}

func override[T any](s *setting[T], flag setting[T], changed bool) {
	if changed {
		*s = setting[T]{flag.value, "flag"}
	}
}

// daemon is one run of kith up.
type daemon struct {
	k          *kith
	cfg        *config
	role       node.Role
	listen     []ma.Multiaddr
	bootstrap  []peer.AddrInfo
	bridges    []ma.Multiaddr // of a user's bootstrap, those that are bridges
	setting    node.ModeSetting
	mode       transport.Mode // at the start
	lessons    transport.VeilMemory
	mailbox    node.MailboxMode
	proxy      *transport.Proxy // nil: none
	preset     string
	meter      *transport.Meter
	quota      int64           // bytes; 0: as it was set before
	metrics    netip.AddrPort  // not valid: none
	bridge     *bridgeSettings // nil: it is none
	passphrase []byte
	log        *slog.Logger
}

// newDaemon checks what it is told before anything is opened or created.
func newDaemon(k *kith, cfg *config) (*daemon, error) {
	level := slog.LevelWarn
	if k.verbose {
		level = slog.LevelDebug
	}
	d := &daemon{k: k, cfg: cfg, log: slog.New(slog.NewTextHandler(k.stderr, &slog.HandlerOptions{Level: level}))}
	switch cfg.role.value {
	case "user":
		d.role = node.RoleUser
	case "community":
		d.role = node.RoleCommunity
	default:
		return nil, usagef("use one of the two", "the role is either user or community, not %q", clean(cfg.role.value))
	}
	if err := d.mailSettings(); err != nil {
		return nil, err
	}
	if err := d.budgetSettings(); err != nil {
		return nil, err
	}
	switch cfg.lan.value {
	case "", "on", "off":
	default:
		return nil, usagef("use one of the two", "lan is either on or off, not %q", clean(cfg.lan.value))
	}
	if s := cfg.mode.value; s != "" {
		var err error
		if d.setting, err = node.ParseModeSetting(s); err != nil {
			return nil, usagef("use one of the three", "the mode is auto, open or censored, not %q", clean(s))
		}
		if d.role == node.RoleCommunity {
			return nil, usagef("leave it away", "--mode is for a user: a community node is open to those it serves")
		}
	}
	if cfg.web.value != "off" {
		return nil, usagef("leave --web away, or set it to off", "this version of kith has no web UI")
	}
	for _, s := range cfg.listen.value {
		a, err := ma.NewMultiaddr(s)
		if err != nil {
			return nil, usagef("for example /ip4/0.0.0.0/udp/4040/quic-v1 or /ip4/0.0.0.0/tcp/4040", "%q is no address to listen on", clean(s))
		}
		d.listen = append(d.listen, a)
	}
	for _, s := range cfg.bootstrap.value {
		info, err := peer.AddrInfoFromString(s)
		if err != nil {
			return nil, usagef("copy one that kith up --role community prints, such as /ip4/…/tcp/…/p2p/…", "%q is no address of a community node", clean(s))
		}
		if a := ma.StringCast(s); d.role == node.RoleUser && transport.IsVeil(a) {
			d.bridges = append(d.bridges, a)
			continue
		}
		d.bootstrap = append(d.bootstrap, *info)
	}
	if err := d.proxySettings(); err != nil {
		return nil, err
	}
	bridge, err := readBridge(d.role, &cfg.bridge)
	if err != nil {
		return nil, err
	}
	d.bridge = bridge
	if err := d.hideSettings(); err != nil {
		return nil, err
	}
	// Behind a proxy nobody could come in, and a port of our own would show
	// those who try it an address that the proxy is there to hide. On a bridge
	// it would tell a prober what the site is there to hide.
	if len(d.listen) == 0 && d.proxy == nil && d.bridge == nil && !cfg.hide.value {
		d.listen = listenEverywhere()
	}
	return d, nil
}

// hideSettings refuses what would show the address that is to be hidden.
func (d *daemon) hideSettings() error {
	if !d.cfg.hide.value {
		return nil
	}
	switch {
	case d.role == node.RoleCommunity:
		return usagef("leave it away", "--hide-address is for a user: others are told to dial a community node")
	case len(d.listen) > 0:
		return usagef("leave --listen away", "who hides the address does not listen")
	case d.cfg.upnp.value:
		return usagef("leave one of the two away", "who hides the address needs no ports of the router")
	case d.cfg.lan.value == "on":
		return usagef("leave one of the two away", "on the local network others are told the address, which is to be hidden")
	}
	return nil
}

// proxySettings finds the proxy that is named here or in the environment, and
// refuses what would go past it.
func (d *daemon) proxySettings() (err error) {
	const hint = "use socks5://HOST:PORT or http://HOST:PORT, with USER:PASSWORD@ before the host if the proxy wants them"
	named := d.cfg.proxy.value
	switch {
	case d.role == node.RoleCommunity:
		if named != "" && named != noProxy {
			return usagef("leave it away", "--proxy is for a user: a community node has to be reachable")
		}
		return nil
	case named == noProxy:
		return nil
	case named != "":
		d.proxy, err = transport.ParseProxy(named)
	default:
		d.proxy, err = transport.ProxyFromEnvironment(os.Getenv)
	}
	if err != nil {
		if named == "" {
			return usagef(hint+" in HTTPS_PROXY or ALL_PROXY, or heed neither with --proxy none", "%v", err)
		}
		return usagef(hint, "%v", err)
	}
	if d.proxy == nil {
		return nil
	}
	for _, a := range d.listen {
		if _, err := a.ValueForProtocol(ma.P_TCP); err != nil {
			return usagef("listen on TCP, or start without a proxy", "%s would go past the proxy, which carries only TCP", a)
		}
	}
	for _, info := range d.bootstrap {
		for _, a := range info.Addrs {
			if _, err := a.ValueForProtocol(ma.P_TCP); err != nil {
				return usagef("name one with /tcp/PORT", "%s can not be reached through a proxy, which carries only TCP", a)
			}
		}
	}
	return nil
}

// dialTCP is how connections are opened; nil: directly. Names that are no
// proxy's business lead to addresses in reach alone.
func (d *daemon) dialTCP(reach transport.Reach) transport.DialFunc {
	if d.proxy == nil {
		return nil
	}
	return d.proxy.Within(reach)
}

// mailSettings checks what is said about mailboxes, one's own and others'.
func (d *daemon) mailSettings() (err error) {
	switch d.cfg.mailbox.value {
	case "auto":
	case "none":
		d.mailbox = node.MailboxNone
	default:
		return usagef("use one of the two", "mailbox is either auto or none, not %q", clean(d.cfg.mailbox.value))
	}
	if d.role == node.RoleUser {
		for name, given := range map[string]setting[string]{"quota": d.cfg.quota, "metrics": d.cfg.metrics} {
			if given.value != "" {
				return usagef("add --role community, or leave it away", "--%s is for a community node", name)
			}
		}
		return nil
	}
	if d.cfg.mailbox.from != "default" {
		return usagef("leave it away", "--mailbox is for a user: a community node has no mailboxes of its own")
	}
	if s := d.cfg.quota.value; s != "" {
		if d.quota, err = parseSize("--quota", "5GB", s); err != nil {
			return err
		}
		if d.quota < api.MinQuota {
			return usagef("for example --quota 5GB; the least is 16MiB", "a quota of %s is too little to keep mail", size(d.quota))
		}
	}
	if s := d.cfg.metrics.value; s != "" {
		// The address has to be named, so that nobody shows the world by leaving it away.
		if d.metrics, err = netip.ParseAddrPort(s); err != nil {
			return usagef("for example --metrics 127.0.0.1:9090; whoever reaches the address can read the counts", "%q is not an IP address with a port", clean(s))
		}
	}
	return nil
}

// listenEverywhere is the default: ports the system picks, on every interface.
func listenEverywhere() []ma.Multiaddr {
	out := []ma.Multiaddr{ma.StringCast("/ip4/0.0.0.0/udp/0/quic-v1"), ma.StringCast("/ip4/0.0.0.0/tcp/0")}
	probe, err := new(net.ListenConfig).ListenPacket(context.Background(), "udp6", "[::]:0")
	if err != nil { // no IPv6 on this machine
		return out
	}
	probe.Close()
	return append(out, ma.StringCast("/ip6/::/udp/0/quic-v1"), ma.StringCast("/ip6/::/tcp/0"))
}

// run serves until ctx ends, and for at most stopTime longer.
func (d *daemon) run(ctx context.Context) error {
	done := make(chan error, 1)
	go func() { done <- d.serve(ctx) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	limit := time.NewTimer(stopTime)
	defer limit.Stop()
	select {
	case err := <-done:
		return err
	case <-limit.C:
		return errors.New("stopping took too long and was cut short; nothing is lost")
	}
}

// serve puts the daemon together from top to bottom, waits, and takes it apart
// in the opposite order.
func (d *daemon) serve(ctx context.Context) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	transport.SilenceLibraries()

	// The store. Its lock is what makes a second daemon on this home impossible.
	d.stage("store", "Opening the store in %s", d.cfg.paths.Data)
	st, err := store.Open(store.Options{Dir: d.cfg.paths.Data, Passphrase: d.passphrase, Log: d.log})
	if err == nil {
		defer d.removeSocket() // last of all: kith down waits for it
		defer st.Close()
		if err = d.checkRole(ctx, st); err == nil {
			err = d.protect(st)
		}
	}
	clear(d.passphrase)
	if errors.As(err, new(*store.InUseError)) && d.runs(ctx) {
		return nil
	}
	if err != nil {
		return d.explainStore(err)
	}

	// The hosts. A user's look-ups go out under another identity than their
	// conversations, so that nobody sees which belong together.
	d.stage("network", "Opening the network")
	ways, err := remembered(ctx, st)
	if err != nil {
		return err
	}
	reach := d.reach(ways)
	if d.role == node.RoleUser {
		if d.mode, err = node.Prepare(ctx, st, d.setting, d.bridges, time.Now().UnixMilli()); err != nil {
			return d.explainStore(err)
		}
		if d.lessons, err = node.VeilMemory(ctx, st); err != nil {
			return d.explainStore(err)
		}
	}
	front, err := d.openBridge(ctx, st)
	if err != nil {
		return d.explainStore(err)
	}
	main, errands, err := d.hosts(ctx, st, reach, front)
	if err != nil {
		return err
	}
	defer main.Close()
	if errands != main {
		defer errands.Close()
	}

	// The directory in which contacts find each other.
	d.stage("directory", "Joining the directory by %s", plural(len(d.bootstrap)+len(ways), "known node"))
	dir, err := discovery.New(discovery.Config{
		Host:       errands,
		Carry:      node.Carry(errands),
		Server:     d.role == node.RoleCommunity,
		Public:     reach == transport.Public,
		Bootstrap:  d.bootstrap,
		Remembered: ways,
		Remember:   func(ways []peer.AddrInfo) { d.remember(ctx, st, ways) },
		Refresh:    node.Refresh(d.meter.Budget()),
		Log:        d.log,
	})
	if err != nil {
		return fmt.Errorf("open the directory: %w", err)
	}
	defer dir.Close()

	// The messenger.
	var n *node.Node
	n, err = node.New(ctx, node.Config{
		Store:     st,
		Discovery: dir,
		Host:      main,
		Lookups:   errands,
		Role:      d.role,
		Name:      d.cfg.name.value,
		Version:   version,
		Reachable: func(a ma.Multiaddr, known bool) bool {
			if known { // a contact may be on the same LAN
				return transport.ReachOf(a)&(reach|transport.Private) != 0
			}
			return transport.ReachOf(a)&reach != 0
		},
		Hints:   d.hints(ways),
		Preset:  d.preset,
		Offline: d.preset == presetOffline,
		Proxy:   d.proxy,
		Prober:  transport.Prober{DialTCP: d.dialTCP(reach), Dial: reach, Hellos: d.hellos()},
		Errand: func() (*transport.Host, error) {
			h, err := d.errand(reach, transport.MinMemory)
			if err == nil {
				h.AllowNear(n.Near)
			}
			return h, err
		},

		HideAddress: d.cfg.hide.value,
		MailboxMode: d.mailbox,
		Log:         d.log,
	})
	if err != nil {
		return d.explainStore(fmt.Errorf("open the messenger: %w", err))
	}

	main.AllowNear(n.Near)
	errands.AllowNear(n.Near)
	if d.cfg.lan.value != "" {
		if err := n.SetLAN(ctx, d.cfg.lan.value == "on"); err != nil {
			return d.explainStore(err)
		}
	}

	// What a community node keeps for others.
	var mail *mailbox.Service
	if d.role == node.RoleCommunity {
		if mail, err = d.openMailboxes(ctx, st); err != nil {
			return d.explainStore(err)
		}
		defer mail.Close()
		main.SetStreamHandler(wire.Protocol, mail.Handle)
		if os.Getenv("GOMEMLIMIT") == "" {
			debug.SetMemoryLimit(communityHeap)
		}
	}
	shown, err := d.listenMetrics()
	if err != nil {
		return err
	}
	if shown != nil {
		defer shown.Close()
	}

	// The local API.
	ln, err := api.Listen(d.cfg.api.value)
	if err != nil {
		return err
	}
	defer ln.Close()
	if err := d.linkSocket(); err != nil {
		return errors.Join(err, ln.Close())
	}
	serving := api.ServerConfig{Backend: n, Bundles: n.Bundles(), Stop: stop, Log: d.log}
	if mail != nil {
		serving.Operator = operator{mail}
		if front != nil {
			serving.Bridge = front.invites
		}
	} else {
		serving.Mailboxes = n.Mailboxes()
	}
	server := api.NewServer(serving)

	// What runs. A part that ends by itself takes the daemon with it.
	failed := make(chan error, 5)
	defer start(ctx, dir.Run, failed).stop()
	defer start(ctx, n.Run, failed).stop()
	if mail != nil {
		defer start(ctx, mail.Run, failed).stop()
	}
	if shown != nil {
		defer start(ctx, func(ctx context.Context) error { return api.ServeMetrics(ctx, shown, mail.WriteMetrics) }, failed).stop()
	}
	defer start(ctx, func(ctx context.Context) error { return server.Serve(ctx, ln) }, failed).stop()

	if err := d.ready(ctx, n, main); err != nil {
		return err
	}
	notify("READY=1")
	defer notify("STOPPING=1")
	select {
	case <-ctx.Done():
		d.stage("stopping", "Stopping")
		return nil
	case err := <-failed:
		return d.explainEnd(err)
	}
}

// listenMetrics opens where counts are shown, if they are to be.
func (d *daemon) listenMetrics() (net.Listener, error) {
	if !d.metrics.IsValid() {
		return nil, nil
	}
	ln, err := new(net.ListenConfig).Listen(context.Background(), "tcp", d.metrics.String())
	if err != nil {
		return nil, &api.Error{Code: api.CodeNetwork, Message: "the counts can not be shown at " + d.metrics.String(), Hint: "check --metrics: the address may be in use or not of this machine"}
	}
	return ln, nil
}

// explainEnd says why a part, and with it the daemon, has ended by itself.
func (d *daemon) explainEnd(err error) error {
	var explained *api.Error
	if err = d.explainStore(err); errors.As(err, &explained) {
		return err
	}
	message := "a part of kith ended by itself"
	if err != nil {
		message += ": " + err.Error()
	}
	return &api.Error{Code: api.CodeInternal, Message: message, Hint: "start it again"}
}

// checkRole refuses a home that was made for the other role, before an account
// or a key of this one is put beside what is there.
func (d *daemon) checkRole(ctx context.Context, st *store.Store) error {
	var community, user bool
	err := st.View(ctx, func(tx *store.Tx) (err error) {
		if community, err = found(tx.SecretMeta(keyMeta)); err != nil {
			return err
		}
		user, err = found(tx.Account())
		return err
	})
	switch {
	case err != nil:
		return err
	case d.role == node.RoleUser && community && !user:
		return &api.Error{
			Code: api.CodeRefused, Message: "this home is a community node's",
			Hint: "start it with: " + d.k.at(upCommunity) + ", or choose another one with --home DIR",
		}
	case d.role == node.RoleCommunity && user && !community:
		return &api.Error{
			Code: api.CodeRefused, Message: "this home is a user's, with an account",
			Hint: "start it with: " + d.k.at("kith up") + ", or choose another one for the community node with --home DIR",
		}
	}
	return nil
}

// found reports whether a look-up in the store found something.
func found[T any](_ T, err error) (bool, error) {
	if errors.Is(err, store.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// runs reports whether a daemon of this home and role answers already, and then
// prints where: starting what runs is no error.
func (d *daemon) runs(ctx context.Context) bool {
	client := api.NewClient(d.cfg.api.value)
	defer client.Close()
	ctx, cancel := context.WithTimeout(ctx, runsWait)
	defer cancel()
	s, err := client.Status(ctx, &apiv1.StatusRequest{})
	if err != nil || !s.Ready || s.Role != d.role.String() {
		return false
	}
	d.stage("running", "kith runs already, and what is said here changes nothing")
	d.announce(readyJSON{"ready", s.Account, d.cfg.api.value, nil, nonNil(s.Listen), s.Role, s.Version})
	return true
}

// protect gives a store that only its key file protects the passphrase that
// was given for it: whoever gives one believes the store to be protected.
func (d *daemon) protect(st *store.Store) error {
	if len(d.passphrase) == 0 || st.Protection() == "passphrase" {
		return nil
	}
	d.stage("protecting", "Protecting the store with the passphrase from now on")
	return st.ChangePassphrase(nil, d.passphrase)
}

// part is something that runs until it is told to stop.
type part struct {
	cancel context.CancelFunc
	done   chan struct{}
}

// start runs a part apart from the end of ctx, so that parts stop one after
// another. One that ends before it is stopped reports to failed.
func start(ctx context.Context, run func(context.Context) error, failed chan<- error) *part {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	p := &part{cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(p.done)
		err := run(ctx)
		if ctx.Err() == nil {
			failed <- err
		}
	}()
	return p
}

func (p *part) stop() {
	p.cancel()
	<-p.done
}

// explainStore gives the errors of a store, when it is opened and while the
// daemon runs, their codes and next steps.
func (d *daemon) explainStore(err error) error {
	var explained *api.Error
	var inUse *store.InUseError
	refused := func(message, hint string) error {
		return &api.Error{Code: api.CodeRefused, Message: message, Hint: hint}
	}
	switch {
	case errors.As(err, &explained):
		return err
	case errors.As(err, &inUse):
		holder := ""
		if inUse.PID != 0 {
			holder = fmt.Sprintf(" (process %d)", inUse.PID)
		}
		return refused("another kith"+holder+" uses this data directory", "stop it with: "+d.k.at("kith down")+", or choose another one with --home")
	case errors.Is(err, store.ErrPassphraseNeeded):
		return &api.Error{Code: api.CodeLocked, Message: "this store is protected by a passphrase", Hint: "use --passphrase-file FILE, or --passphrase to be asked"}
	case errors.Is(err, store.ErrPassphrase):
		return &api.Error{Code: api.CodeLocked, Message: "the passphrase does not open this store", Hint: "check it and try again with --passphrase-file FILE, or --passphrase to be asked"}
	case errors.Is(err, store.ErrFull), errors.Is(err, syscall.ENOSPC):
		return &api.Error{Code: api.CodeQuota, Message: "the disk is full, so kith can save nothing", Hint: "free some space and try again"}
	case errors.Is(err, store.ErrDamaged):
		what, ok := strings.CutSuffix(err.Error(), ": "+store.ErrDamaged.Error())
		if !ok {
			what = "the store is damaged"
		}
		return refused(what, "restore the data directory from a backup")
	case errors.Is(err, store.ErrReadOnly):
		return refused("the disk failed while saving", "check the disk and start kith again")
	case errors.Is(err, store.ErrNewerSchema):
		return refused("this store was written by a newer kith", "install that version again, or a later one")
	case errors.Is(err, syscall.ENOTDIR):
		return refused(d.cfg.paths.Data+" is not a folder", "choose another one with --home DIR")
	case errors.Is(err, fs.ErrPermission), errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.EROFS):
		return refused("kith can not write into "+d.cfg.paths.Data, "allow it to, or choose another folder with --home DIR")
	}
	return err
}

// passphrase reads the store's passphrase from the file that the configuration
// names, or asks for it where there is a person to ask.
func (k *kith) passphrase(cfg *config, ask bool) ([]byte, error) {
	if path := cfg.passphrase.value; path != "" {
		f, err := os.Open(path)
		if err != nil {
			return nil, usagef("check --passphrase-file", "the passphrase file %s", unreadable(err))
		}
		defer f.Close()
		b, err := io.ReadAll(io.LimitReader(f, maxPassphrase+1))
		if err != nil {
			return nil, usagef("check --passphrase-file", "the passphrase file %s", unreadable(err))
		}
		b = []byte(strings.TrimRight(string(b), "\r\n"))
		if len(b) == 0 || len(b) > maxPassphrase {
			return nil, usagef("write the passphrase into it, on one line", "the passphrase file holds no passphrase")
		}
		return b, nil
	}
	if !ask {
		return nil, nil
	}
	in, ok := k.stdin.(*os.File)
	if !ok || !term.IsTerminal(int(in.Fd())) {
		return nil, usagef("use --passphrase-file FILE", "there is no terminal to ask for the passphrase")
	}
	first, err := k.askSecret(in, "Passphrase: ")
	if err != nil || opensOnlyWithPassphrase(cfg.paths.Data) {
		return first, err
	}
	second, err := k.askSecret(in, "The same once more: ")
	if err != nil {
		return nil, err
	}
	if string(first) != string(second) {
		return nil, usagef("start again", "the two passphrases differ")
	}
	return first, nil
}

// opensOnlyWithPassphrase reports whether a passphrase is checked by opening the
// store with it; else it will be a new one, in which a slip of the finger would
// lock its owner out.
func opensOnlyWithPassphrase(dir string) bool {
	if !store.Exists(dir) {
		return false
	}
	st, err := store.Open(store.Options{Dir: dir})
	if err != nil {
		return true // or not to be opened at all, which the daemon will say
	}
	st.Close()
	return false
}

// unreadable says why a file could not be read.
func unreadable(err error) string {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "does not exist"
	case errors.Is(err, fs.ErrPermission):
		return "may not be read by this user"
	case errors.Is(err, syscall.EISDIR):
		return "is a folder"
	}
	return "can not be read: " + err.Error()
}

func (k *kith) askSecret(in *os.File, question string) ([]byte, error) {
	fmt.Fprint(k.stderr, question)
	b, err := term.ReadPassword(int(in.Fd()))
	fmt.Fprintln(k.stderr)
	if err != nil {
		return nil, fmt.Errorf("read the passphrase: %w", err)
	}
	if len(b) == 0 {
		return nil, usagef("start without --passphrase if you want none", "the passphrase is empty")
	}
	return b, nil
}

// reach is which classes of addresses the network of this daemon has. The open
// internet has public ones alone, and there nothing else is believed or
// dialled. Where the ways in or the listeners lie on a LAN or on this machine,
// so does the network. Nothing is known of a daemon without any way in, so it
// may follow an invite anywhere; the next start knows more.
func (d *daemon) reach(ways []peer.AddrInfo) transport.Reach {
	if d.preset == presetOffline {
		return 0
	}
	reach := transport.Public
	for _, info := range slices.Concat(d.bootstrap, ways) {
		for _, a := range info.Addrs {
			reach |= transport.ReachOf(a)
		}
	}
	for _, a := range slices.Concat(d.listen, d.bridges) {
		reach |= transport.ReachOf(a)
	}
	if len(d.bootstrap) == 0 && len(ways) == 0 {
		reach |= transport.Private | transport.Loopback
	}
	return reach
}

// hosts makes the host for conversations and the one for look-ups. A community
// node has one for both, with an identity that lasts.
func (d *daemon) hosts(ctx context.Context, st *store.Store, reach transport.Reach, front *bridgeFront) (main, errands *transport.Host, err error) {
	if d.role == node.RoleCommunity {
		key, err := hostKey(ctx, st)
		if err != nil {
			return nil, nil, err
		}
		main, err = transport.New(transport.Config{
			Key: key, Role: transport.Community, Relay: true, Listen: d.listen, Memory: d.meter.Budget().Memory, Meter: d.meter, Dial: reach,
			Bridge: front.host(), PortMapping: d.cfg.upnp.value && len(d.listen) > 0, Log: d.log,
		})
		return main, main, d.explainListen(err)
	}
	key, err := transport.NewKey(rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	// A contact may be on the same LAN, whatever network the directory is in.
	main, err = transport.New(transport.Config{
		Key: key, Role: transport.Contacts, Listen: d.listen, Memory: d.meter.Budget().Memory / 2, Meter: d.meter, Mode: d.mode, Dial: reach | d.private(),
		DialTCP: d.dialTCP(reach | d.private()), Veil: transport.VeilClient{Hellos: d.hellos(), Memory: d.lessons},
		PortMapping: d.cfg.upnp.value && len(d.listen) > 0, Log: d.log,
	})
	if err != nil {
		return nil, nil, d.explainListen(err)
	}
	if errands, err = d.errand(reach, d.meter.Budget().Memory/2); err != nil {
		main.Close()
		return nil, nil, err
	}
	return main, errands, nil
}

// errand makes a host without a listener, under a name that nobody has seen.
func (d *daemon) errand(reach transport.Reach, memory int64) (*transport.Host, error) {
	key, err := transport.NewKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	return transport.New(transport.Config{
		Key: key, Role: transport.Errands, Memory: memory, Meter: d.meter, Mode: d.mode, Dial: reach, DialTCP: d.dialTCP(reach),
		Veil: transport.VeilClient{Hellos: d.hellos(), Memory: d.lessons}, Log: d.log,
	})
}

// explainListen says why a host can not be opened: mostly it is an address of
// --listen, or a bridge's.
func (d *daemon) explainListen(err error) error {
	var failed *transport.ListenError
	switch {
	case err == nil:
		return nil
	case !errors.As(err, &failed):
		return &api.Error{Code: api.CodeInternal, Message: "the network can not be opened: " + err.Error(), Hint: "start it again"}
	}
	flag, denied := "--listen", "choose a port from 1024 on with --listen"
	if d.bridge != nil && d.bridge.front.Listen.Equal(failed.Addr) {
		flag, denied = "--bridge-listen", "give it the capability CAP_NET_BIND_SERVICE (docs/operate/bridge.md), or put a web server before it with --bridge-behind"
	}
	e := &api.Error{Code: api.CodeNetwork}
	switch failed.Reason {
	case transport.ListenInUse:
		e.Message = fmt.Sprintf("another program already listens on %s", failed.Addr)
		e.Hint = "stop it, or choose another port with " + flag
		if flag == "--bridge-listen" {
			e.Hint += "; if it is your web server, add --bridge-behind"
		}
	case transport.ListenNotHere:
		e.Message = fmt.Sprintf("this machine has no address for %s", failed.Addr)
		e.Hint = "choose one that it has with " + flag + ", or all with /ip4/0.0.0.0"
	case transport.ListenDenied:
		e.Message = fmt.Sprintf("this user may not listen on %s", failed.Addr)
		e.Hint = denied
	case transport.ListenUnsupported:
		e.Code = api.CodeUsage
		e.Message = fmt.Sprintf("%s is neither QUIC nor TCP on an IP address", failed.Addr)
		e.Hint = "for example --listen /ip4/0.0.0.0/udp/4040/quic-v1 or --listen /ip4/0.0.0.0/tcp/4040"
	case transport.ListenFailed:
		e.Message = fmt.Sprintf("kith can not listen on %s: %v", failed.Addr, failed.Err)
		e.Hint = "choose another address with " + flag
	}
	return e
}

// hostKey returns a community node's transport key; the first start makes it.
func hostKey(ctx context.Context, st *store.Store) (key crypto.PrivKey, err error) {
	err = st.Update(ctx, func(tx *store.Tx) error {
		b, err := tx.SecretMeta(keyMeta)
		if err == nil {
			key, err = crypto.UnmarshalPrivateKey(b)
			return err
		}
		if !errors.Is(err, store.ErrNotFound) {
			return err
		}
		if key, err = transport.NewKey(rand.Reader); err != nil {
			return err
		}
		if b, err = crypto.MarshalPrivateKey(key); err != nil {
			return err
		}
		return tx.SetSecretMeta(keyMeta, b)
	})
	if err != nil {
		return nil, fmt.Errorf("load the node's key: %w", err)
	}
	return key, nil
}

// remembered returns the community nodes of earlier runs, best first.
func remembered(ctx context.Context, st *store.Store) ([]peer.AddrInfo, error) {
	var ways []peer.AddrInfo
	err := st.View(ctx, func(tx *store.Tx) error {
		addrs, err := tx.Ways(waysKept)
		if err != nil {
			return err
		}
		for _, s := range addrs {
			info, err := peer.AddrInfoFromString(s)
			if err != nil {
				continue // written by another version; the rest is as good
			}
			if i := slices.IndexFunc(ways, func(w peer.AddrInfo) bool { return w.ID == info.ID }); i >= 0 {
				ways[i].Addrs = append(ways[i].Addrs, info.Addrs...)
				continue
			}
			ways = append(ways, *info)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("load the known nodes: %w", err)
	}
	return ways, nil
}

// remember keeps community nodes for the next run, best first.
func (d *daemon) remember(ctx context.Context, st *store.Store, ways []peer.AddrInfo) {
	now := time.Now().UnixMilli()
	err := st.Update(context.WithoutCancel(ctx), func(tx *store.Tx) error {
		rank := int64(0)
		for _, info := range ways {
			addrs, err := peer.AddrInfoToP2pAddrs(&info)
			if err != nil {
				return err
			}
			for _, a := range addrs {
				// The order is kept by time: one millisecond less for each.
				if err := tx.RememberWay(a.String(), now-rank, waysKept); err != nil {
					return err
				}
				rank++
			}
		}
		return nil
	})
	if err != nil {
		d.log.Warn("the known nodes could not be remembered")
	}
}

// hints are the ways in that this user's invites name.
func (d *daemon) hints(ways []peer.AddrInfo) []ma.Multiaddr {
	var out []ma.Multiaddr
	for _, info := range slices.Concat(d.bootstrap, ways) {
		if addrs, err := peer.AddrInfoToP2pAddrs(&info); err == nil && len(addrs) > 0 {
			out = append(out, addrs[0])
		}
	}
	return out
}

// linkSocket puts a link where clients of this home look, if the API's socket
// is elsewhere.
func (d *daemon) linkSocket() error {
	usual := d.cfg.paths.API
	if d.cfg.api.value == usual {
		return nil
	}
	target, err := filepath.Abs(d.cfg.api.value)
	if err != nil {
		return fmt.Errorf("API socket: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(usual), 0o700); err != nil {
		return fmt.Errorf("API socket: %w", err)
	}
	if err := os.Remove(usual); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("API socket: %w", err)
	}
	if err := os.Symlink(target, usual); err != nil {
		return fmt.Errorf("API socket: %w", err)
	}
	return nil
}

func (d *daemon) removeSocket() {
	for _, path := range []string{d.cfg.paths.API, d.cfg.api.value} {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			d.log.Warn("the API socket could not be removed")
		}
	}
}

// stage says what the daemon is doing now.
func (d *daemon) stage(event, format string, args ...any) {
	if d.k.json {
		writeJSON(d.k.stdout, struct {
			Event string `json:"event"`
		}{event})
	} else if !d.k.quiet {
		fmt.Fprintf(d.k.stdout, format+" …\n", args...)
	}
}

// ready prints what a person, or a script, needs to go on.
func (d *daemon) ready(ctx context.Context, n *node.Node, host *transport.Host) error {
	addrs, err := host.ListenAddrs()
	if err != nil {
		return fmt.Errorf("list the addresses: %w", err)
	}
	r := readyJSON{Event: "ready", API: d.cfg.api.value, Listen: []string{}, Role: d.role.String(), Version: version}
	for _, a := range addrs {
		r.Listen = append(r.Listen, a.String()+"/p2p/"+host.ID().String())
	}
	if d.role == node.RoleUser {
		id, err := n.GetIdentity(ctx, &apiv1.GetIdentityRequest{})
		if err != nil {
			return fmt.Errorf("load the account: %w", err)
		}
		r.Account = id.Fingerprint
	}
	d.announce(r)
	return nil
}

// readyJSON is the last line of kith up --json before it serves.
type readyJSON struct {
	Event   string   `json:"event"`
	Account string   `json:"account"`
	API     string   `json:"api"`
	Web     *string  `json:"web"`
	Listen  []string `json:"listen"`
	Role    string   `json:"role"`
	Version string   `json:"version"`
}

func (d *daemon) announce(r readyJSON) {
	if d.k.json {
		writeJSON(d.k.stdout, r)
		return
	}
	if d.k.quiet {
		return
	}
	home := d.k.at("")
	w := d.k.stdout
	fmt.Fprintf(w, "\nkith is ready.\n\n")
	rows := [][]string{}
	if r.Account != "" {
		rows = append(rows, []string{"  account", r.Account})
	}
	for _, a := range r.Listen {
		rows = append(rows, []string{"  listens on", a})
	}
	table(w, append(rows, []string{"  local API", r.API})...)
	switch {
	case d.bridge != nil:
		fmt.Fprintf(w, "\nMake an address for somebody: kith bridge invite%s\n", home)
	case d.role == node.RoleCommunity:
		fmt.Fprintf(w, "\nOthers begin here with:      kith up --bootstrap %s\n", bootstrapExample(r.Listen))
	default:
		fmt.Fprintf(w, "\nMake a link for a friend:    kith invite%s\nHave a link from a friend:   kith accept LINK%s\n", home, home)
	}
	fmt.Fprintf(w, "Stop with Ctrl-C, or:        kith down%s\n\n", home)
}

// bootstrapExample is the address most likely to work from elsewhere.
func bootstrapExample(listen []string) string {
	best, score := "MULTIADDR", -1
	for _, s := range listen {
		a, err := ma.NewMultiaddr(s)
		if err != nil {
			continue
		}
		n := 0
		switch transport.ReachOf(a) {
		case transport.Public:
			n = 2
		case transport.Private:
			n = 1
		case transport.Loopback:
		}
		if n > score {
			best, score = s, n
		}
	}
	return best
}

// notify tells systemd, if it asked (sd_notify(3)).
func notify(state string) {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return
	}
	conn, err := new(net.Dialer).DialContext(context.Background(), "unixgram", path)
	if err != nil {
		return // then it gives up on us after its own timeout
	}
	defer conn.Close()
	_, _ = io.WriteString(conn, state)
}
