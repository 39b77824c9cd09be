package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"strconv"
	"strings"
	"syscall"

	"github.com/BurntSushi/toml"
	"github.com/spf13/cobra"

	"github.com/kith-im/kith/node/api"
)

// config is what a daemon is told. Every key is a flag of kith up, a key of the
// config file and a KITH_… variable of the environment; the flag wins over the
// variable, the variable over the file.
type config struct {
	paths paths

	name       setting[string]
	role       setting[string]
	listen     setting[[]string]
	bootstrap  setting[[]string]
	api        setting[string]
	web        setting[string]
	mailbox    setting[string]
	proxy      setting[string] // URL; empty: none named here; noProxy: none at all
	quota      setting[string] // as parseSize takes it; empty: as it was set before
	metrics    setting[string] // IP:port; empty: none
	lan        setting[string] // on or off; empty: as it was set before
	hide       setting[bool]
	upnp       setting[bool]
	mode       setting[string] // auto, open or censored; empty: as it was set before
	bridge     bridgeConfig
	preset     setting[string]
	metered    setting[bool]
	perDay     setting[string] // bytes, as parseSize takes them; empty: as the preset says
	memory     setting[string] // the same
	conns      setting[string] // a number; empty: as the preset says
	dials      setting[string] // the same, a minute
	passphrase setting[string] // the file that holds it
}

// bridgeConfig is what a bridge is told.
type bridgeConfig struct {
	on      setting[bool]
	site    setting[string] // a folder or a URL
	domain  setting[string]
	acme    setting[bool]
	cert    setting[string] // files
	key     setting[string]
	listen  setting[string] // multiaddr; empty: port 443 everywhere
	address setting[string] // multiaddr; empty: the domain, or the machine's own
	behind  setting[bool]   // another web server
}

// setting is a value and where it comes from.
type setting[T any] struct {
	value T
	from  string // "default", "config file", "environment" or "flag"
}

// file is the config file. Keys that are not here are refused, so that a
// misspelt one is not silently without effect.
type file struct {
	Name       *string   `toml:"name"`
	Role       *string   `toml:"role"`
	Listen     *[]string `toml:"listen"`
	Bootstrap  *[]string `toml:"bootstrap"`
	API        *string   `toml:"api"`
	Web        *string   `toml:"web"`
	Mailbox    *string   `toml:"mailbox"`
	Proxy      *string   `toml:"proxy"`
	Quota      *string   `toml:"quota"`
	Metrics    *string   `toml:"metrics"`
	LAN        *string   `toml:"lan"`
	Hide       *bool     `toml:"hide-address"`
	UPnP       *bool     `toml:"upnp"`
	Mode       *string   `toml:"mode"`
	Bridge     *bool     `toml:"bridge"`
	Site       *string   `toml:"site"`
	Domain     *string   `toml:"domain"`
	ACME       *bool     `toml:"acme"`
	Cert       *string   `toml:"cert"`
	Key        *string   `toml:"key"`
	BridgeAt   *string   `toml:"bridge-listen"`
	BridgeAddr *string   `toml:"bridge-address"`
	Behind     *bool     `toml:"bridge-behind"`
	Preset     *string   `toml:"preset"`
	Metered    *bool     `toml:"metered"`
	PerDay     *string   `toml:"bytes-per-day"`
	Memory     *string   `toml:"memory"`
	Conns      *string   `toml:"connections"`
	Dials      *string   `toml:"dials-per-minute"`
	Passphrase *string   `toml:"passphrase-file"`
}

// maxConfig bounds the config file, in bytes.
const maxConfig = 1 << 20

// config returns the configuration without the flags of kith up, which that
// command lays over it.
func (k *kith) config() (*config, error) {
	p, err := k.paths()
	if err != nil {
		return nil, err
	}
	f, err := readConfig(p.Config)
	if err != nil {
		return nil, err
	}
	var wrong error
	yes := func(file *bool, variable string) setting[bool] {
		v, err := onOff(file, variable)
		if wrong == nil {
			wrong = err
		}
		return v
	}
	c := &config{
		paths:      p,
		name:       text("", f.Name, "KITH_NAME"),
		role:       text("user", f.Role, "KITH_ROLE"),
		listen:     list(f.Listen, "KITH_LISTEN"),
		bootstrap:  list(f.Bootstrap, "KITH_BOOTSTRAP"),
		api:        text(p.API, f.API, "KITH_API"),
		web:        text("off", f.Web, "KITH_WEB"),
		mailbox:    text("auto", f.Mailbox, "KITH_MAILBOX"),
		proxy:      text("", f.Proxy, "KITH_PROXY"),
		quota:      text("", f.Quota, "KITH_QUOTA"),
		metrics:    text("", f.Metrics, "KITH_METRICS"),
		lan:        text("", f.LAN, "KITH_LAN"),
		mode:       text("", f.Mode, "KITH_MODE"),
		preset:     text("", f.Preset, "KITH_PRESET"),
		perDay:     text("", f.PerDay, "KITH_BYTES_PER_DAY"),
		memory:     text("", f.Memory, "KITH_MEMORY"),
		conns:      text("", f.Conns, "KITH_CONNECTIONS"),
		dials:      text("", f.Dials, "KITH_DIALS_PER_MINUTE"),
		passphrase: text("", f.Passphrase, "KITH_PASSPHRASE_FILE"),
		metered:    yes(f.Metered, "KITH_METERED"),
		hide:       yes(f.Hide, "KITH_HIDE_ADDRESS"),
		upnp:       yes(f.UPnP, "KITH_UPNP"),
		bridge: bridgeConfig{
			on:      yes(f.Bridge, "KITH_BRIDGE"),
			site:    text("", f.Site, "KITH_SITE"),
			domain:  text("", f.Domain, "KITH_DOMAIN"),
			acme:    yes(f.ACME, "KITH_ACME"),
			cert:    text("", f.Cert, "KITH_CERT"),
			key:     text("", f.Key, "KITH_KEY"),
			listen:  text("", f.BridgeAt, "KITH_BRIDGE_LISTEN"),
			address: text("", f.BridgeAddr, "KITH_BRIDGE_ADDRESS"),
			behind:  yes(f.Behind, "KITH_BRIDGE_BEHIND"),
		},
	}
	if k.socket != "" {
		c.api = setting[string]{k.socket, "flag"}
	}
	return c, wrong
}

func text(fallback string, file *string, variable string) setting[string] {
	if v, ok := os.LookupEnv(variable); ok {
		return setting[string]{v, "environment"}
	}
	if file != nil {
		return setting[string]{*file, "config file"}
	}
	return setting[string]{fallback, "default"}
}

// onOff reads a variable as on if it is 1, true, yes or on, and as off if it is 0,
// false, no, off or empty. All else is refused: some of these protect somebody.
func onOff(file *bool, variable string) (setting[bool], error) {
	v, ok := os.LookupEnv(variable)
	switch {
	case !ok && file != nil:
		return setting[bool]{*file, "config file"}, nil
	case !ok:
		return setting[bool]{false, "default"}, nil
	}
	switch strings.ToLower(v) {
	case "1", "true", "yes", "on":
		return setting[bool]{true, "environment"}, nil
	case "", "0", "false", "no", "off":
		return setting[bool]{false, "environment"}, nil
	}
	return setting[bool]{}, usagef("set it to 1 or 0, or unset it", "the variable %s is either on or off, not %q", variable, clean(v))
}

// list reads a variable as words between commas or spaces.
func list(file *[]string, variable string) setting[[]string] {
	if v, ok := os.LookupEnv(variable); ok {
		words := strings.FieldsFunc(v, func(c rune) bool { return c == ',' || c == ' ' || c == '\n' || c == '\t' })
		return setting[[]string]{words, "environment"}
	}
	if file != nil {
		return setting[[]string]{*file, "config file"}
	}
	return setting[[]string]{nil, "default"}
}

func readConfig(path string) (f file, err error) {
	src, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return f, nil // without a folder to be in there is no file either
	}
	if err != nil {
		return f, usagef("check "+path, "the config file %s", unreadable(err))
	}
	defer src.Close()
	meta, err := toml.NewDecoder(io.LimitReader(src, maxConfig)).Decode(&f)
	var parse toml.ParseError
	switch {
	case errors.As(err, &parse):
		return f, &api.Error{Code: api.CodeUsage, Message: fmt.Sprintf("the config file is wrong in line %d: %s", parse.Position.Line, parse.Message), Hint: "correct " + path}
	case errors.As(err, new(*fs.PathError)):
		return f, usagef("check "+path, "the config file %s", unreadable(err))
	case err != nil: // the decoder's own words are about Go
		return f, usagef("correct "+path+"; its keys are shown by: kith config --help", "the config file has a text where a list belongs, or something else than a text")
	}
	if unknown := meta.Undecoded(); len(unknown) > 0 {
		return f, &api.Error{Code: api.CodeUsage, Message: fmt.Sprintf("the config file has an unknown key %q", unknown[0]), Hint: "see the known ones with: kith config --help"}
	}
	return f, nil
}

func (k *kith) configCmd() *cobra.Command {
	return k.command(&cobra.Command{
		Use:   "config",
		Short: "Show the configuration and where each value comes from",
		Long: `Show the configuration that kith up would start with, and where each value comes
from. A daemon that runs may have been given other values by flags of its own.

The config file (kith paths shows where) is TOML with these keys:

  name = "Alice"                            what contacts see
  role = "user"                             or "community"
  listen = ["/ip4/0.0.0.0/udp/4040/quic-v1"]    addresses to listen on
  bootstrap = ["/ip4/…/tcp/…/p2p/ID"]       community nodes to begin with
  api = "/path/to/socket"                   the local API
  web = "off"                               the web UI's address
  mailbox = "auto"                          or "none": messages only while both are online
  proxy = "socks5://127.0.0.1:9050"         what every connection goes through
  quota = "5GB"                             what a community node keeps of others' mail
  metrics = "127.0.0.1:9090"                where a community node shows its counts
  lan = "on"                                be found on local networks; see kith lan
  mode = "auto"                             or open, or censored; see kith mode
  preset = "laptop"                         what may be used; see kith budget --help
  metered = true                            bytes cost money: spend few
  bytes-per-day = "200MB"                   instead of what the preset says; as
  memory = "32MiB"                          are memory,
  connections = "64"                        connections of each host
  dials-per-minute = "30"                   and dials
  passphrase-file = "/path/to/file"         opens a protected store
  hide-address = true                       relays and mailboxes only, for everybody
  upnp = true                               ask routers for ports
  bridge = true                             with site, domain, acme, cert, key,
                                            bridge-listen, bridge-address and
                                            bridge-behind, as the flags

Each is also a flag of kith up, and a variable of the environment such as
KITH_NAME or KITH_PASSPHRASE_FILE. A flag wins over a variable, a variable over
the file.`,
	}, 0, 0, func(context.Context, []string) error {
		c, err := k.config()
		if err != nil {
			return err
		}
		type entry struct {
			Value any    `json:"value"`
			From  string `json:"from"`
		}
		v := struct {
			Name       entry `json:"name"`
			Role       entry `json:"role"`
			Listen     entry `json:"listen"`
			Bootstrap  entry `json:"bootstrap"`
			API        entry `json:"api"`
			Web        entry `json:"web"`
			Mailbox    entry `json:"mailbox"`
			Proxy      entry `json:"proxy"`
			Quota      entry `json:"quota"`
			Metrics    entry `json:"metrics"`
			LAN        entry `json:"lan"`
			Mode       entry `json:"mode"`
			Preset     entry `json:"preset"`
			Metered    entry `json:"metered"`
			PerDay     entry `json:"bytes-per-day"`
			Memory     entry `json:"memory"`
			Conns      entry `json:"connections"`
			Dials      entry `json:"dials-per-minute"`
			Passphrase entry `json:"passphrase-file"`
			Hide       entry `json:"hide-address"`
			UPnP       entry `json:"upnp"`
			Bridge     entry `json:"bridge"`
			Site       entry `json:"site"`
			Domain     entry `json:"domain"`
			ACME       entry `json:"acme"`
			Cert       entry `json:"cert"`
			Key        entry `json:"key"`
			BridgeAt   entry `json:"bridge-listen"`
			BridgeAddr entry `json:"bridge-address"`
			Behind     entry `json:"bridge-behind"`
		}{
			entry{c.name.value, c.name.from},
			entry{c.role.value, c.role.from},
			entry{nonNil(c.listen.value), c.listen.from},
			entry{nonNil(c.bootstrap.value), c.bootstrap.from},
			entry{c.api.value, c.api.from},
			entry{c.web.value, c.web.from},
			entry{c.mailbox.value, c.mailbox.from},
			entry{redacted(c.proxy.value), c.proxy.from},
			entry{c.quota.value, c.quota.from},
			entry{c.metrics.value, c.metrics.from},
			entry{c.lan.value, c.lan.from},
			entry{c.mode.value, c.mode.from},
			entry{c.preset.value, c.preset.from},
			entry{c.metered.value, c.metered.from},
			entry{c.perDay.value, c.perDay.from},
			entry{c.memory.value, c.memory.from},
			entry{c.conns.value, c.conns.from},
			entry{c.dials.value, c.dials.from},
			entry{c.passphrase.value, c.passphrase.from},
			entry{c.hide.value, c.hide.from},
			entry{c.upnp.value, c.upnp.from},
			entry{c.bridge.on.value, c.bridge.on.from},
			entry{c.bridge.site.value, c.bridge.site.from},
			entry{c.bridge.domain.value, c.bridge.domain.from},
			entry{c.bridge.acme.value, c.bridge.acme.from},
			entry{c.bridge.cert.value, c.bridge.cert.from},
			entry{c.bridge.key.value, c.bridge.key.from},
			entry{c.bridge.listen.value, c.bridge.listen.from},
			entry{c.bridge.address.value, c.bridge.address.from},
			entry{c.bridge.behind.value, c.bridge.behind.from},
		}
		k.print(v, func(w io.Writer) {
			fmt.Fprintf(w, "# %s\n", clean(c.paths.Config))
			fmt.Fprintln(w, k.here("# Flags that a running daemon was given are not in this; where it listens is shown by: kith status"))
			row := func(key string, e entry) []string {
				return []string{key, "= " + tomlValue(e.Value), "# " + e.From}
			}
			table(w, row("name", v.Name), row("role", v.Role), row("listen", v.Listen), row("bootstrap", v.Bootstrap),
				row("api", v.API), row("web", v.Web),
				row("hide-address", v.Hide), row("upnp", v.UPnP), row("bridge", v.Bridge), row("site", v.Site), row("domain", v.Domain), row("acme", v.ACME),
				row("cert", v.Cert), row("key", v.Key), row("bridge-listen", v.BridgeAt),
				row("bridge-address", v.BridgeAddr), row("bridge-behind", v.Behind),
				row("mailbox", v.Mailbox), row("proxy", v.Proxy), row("quota", v.Quota), row("metrics", v.Metrics), row("lan", v.LAN), row("mode", v.Mode), row("preset", v.Preset), row("metered", v.Metered),
				row("bytes-per-day", v.PerDay), row("memory", v.Memory), row("connections", v.Conns), row("dials-per-minute", v.Dials), row("passphrase-file", v.Passphrase))
		})
		return nil
	})
}

// tomlValue is a value as the config file has it.
func tomlValue(v any) string {
	if on, ok := v.(bool); ok {
		return strconv.FormatBool(on)
	}
	words, ok := v.([]string)
	if !ok {
		return fmt.Sprintf("%q", v)
	}
	quoted := make([]string, len(words))
	for i, word := range words {
		quoted[i] = strconv.Quote(word)
	}
	return "[" + strings.Join(quoted, ", ") + "]"
}

// redacted is a proxy's URL without its password.
func redacted(raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return "not a URL"
	}
	return u.Redacted()
}

// nonNil makes an absent list an empty one, which is [] in JSON.
func nonNil[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}
