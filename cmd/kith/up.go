package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	"github.com/spf13/cobra"

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
	// communityHeap is where a community node's garbage collector begins to work
	// harder: a flood of deposits took 838 MB without it, and 450 MB with it.
	communityHeap = 448 << 20
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
	var inUse *store.InUseError
	if errors.As(err, &inUse) {
		if runs, err := d.runs(ctx, inUse.PID); runs || err != nil {
			return err
		}
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
		Site:        front.called(),
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
		serving.Backend = community{n, operator{mail}, front, main.BridgeAddr()}
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

	if err := d.ready(ctx, n, main, front.called()); err != nil {
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
func (d *daemon) ready(ctx context.Context, n *node.Node, host *transport.Host, bridge string) error {
	addrs, err := host.ListenAddrs()
	if err != nil {
		return fmt.Errorf("list the addresses: %w", err)
	}
	r := readyJSON{Event: "ready", API: d.cfg.api.value, Listen: []string{}, Role: d.role.String(), Version: version, Bridge: bridge}
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
	Bridge  string   `json:"bridge"`
}

func (d *daemon) announce(r readyJSON) {
	if d.k.json {
		writeJSON(d.k.stdout, r)
		return
	}
	if d.k.quiet {
		return
	}
	home := d.k.at()
	w := d.k.stdout
	fmt.Fprintf(w, "\nkith is ready.\n\n")
	r.write(w)
	switch {
	case r.Bridge != "":
		fmt.Fprintf(w, "\nMake an address for somebody: kith bridge invite%s\n", home)
	case d.role == node.RoleCommunity:
		fmt.Fprintf(w, "\nOthers begin here with:      kith up --bootstrap %s\n", bootstrapExample(r.Listen))
	default:
		fmt.Fprintf(w, "\nMake a link for a friend:    kith invite%s\nHave a link from a friend:   kith accept LINK%s\n", home, home)
	}
	fmt.Fprintf(w, "Stop with Ctrl-C, or:        kith down%s\n\n", home)
}

// write says who and where the daemon is.
func (r readyJSON) write(w io.Writer) {
	rows := [][]string{}
	if r.Account != "" {
		rows = append(rows, []string{"  account", r.Account})
	}
	if r.Bridge != "" {
		rows = append(rows, []string{"  a bridge", bridgeOf(r.Bridge)})
	}
	for _, a := range r.Listen {
		rows = append(rows, []string{"  listens on", a})
	}
	table(w, append(rows, []string{"  local API", r.API})...)
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
