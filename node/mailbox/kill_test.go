package mailbox_test

import (
	"bufio"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	libp2p "github.com/libp2p/go-libp2p/core/protocol"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/kith-im/kith/node/mailbox"
	"github.com/kith-im/kith/node/transport"
	"github.com/kith-im/kith/protocol"
	wire "github.com/kith-im/kith/protocol/mailbox"
)

// asProcess names what this test binary is to do instead of testing, and with
// what.
const asProcess = "KITH_TEST_PROCESS"

// role is the value of asProcess, as JSON. One field is set.
type role struct {
	Serve *serving
	Flood *flooding
}

// serving is a mailbox in a process of its own.
type serving struct {
	Dir    string
	Listen string
	Limits mailbox.Limits
}

func TestMain(m *testing.M) {
	text := os.Getenv(asProcess)
	if text == "" {
		os.Exit(m.Run())
	}
	var r role
	err := json.Unmarshal([]byte(text), &r)
	switch {
	case err != nil:
	case r.Serve != nil:
		err = r.Serve.run()
	case r.Flood != nil:
		err = r.Flood.run()
	}
	if err != nil {
		fmt.Println("failed:", err)
		os.Exit(1)
	}
}

// roleCommand is this test binary in a role.
func roleCommand(t testing.TB, r role) *exec.Cmd {
	t.Helper()
	text, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), asProcess+"="+string(text))
	cmd.Stderr = os.Stderr
	return cmd
}

const loopback = "/ip4/127.0.0.1/tcp/0"

func realHost(role transport.Role, seed []byte) (*transport.Host, error) {
	return hostAt(role, seed, loopback)
}

func hostAt(role transport.Role, seed []byte, listen string) (*transport.Host, error) {
	key, err := crypto.UnmarshalEd25519PrivateKey(ed25519.NewKeyFromSeed(seed))
	if err != nil {
		return nil, err
	}
	cfg := transport.Config{Key: key, Role: role, Memory: transport.CommunityMemory, Dial: transport.Loopback}
	if role == transport.Community {
		cfg.Listen = []ma.Multiaddr{ma.StringCast(listen)}
	}
	return transport.New(cfg)
}

// run serves until it is killed.
func (r *serving) run() error {
	seed := make([]byte, 32)
	host, err := hostAt(transport.Community, seed, r.Listen)
	if err != nil {
		return err
	}
	s, err := mailbox.Open(context.Background(), mailbox.Config{
		Path: filepath.Join(r.Dir, "mailbox.db"), Key: ed25519.NewKeyFromSeed(seed), Limits: r.Limits,
	})
	if err != nil {
		return err
	}
	host.SetStreamHandler(libp2p.ID(wire.Protocol), s.Handle)
	addrs, err := host.ListenAddrs()
	if err != nil {
		return err
	}
	fmt.Printf("ready %s/p2p/%s\n", addrs[0], host.ID())
	return s.Run(context.Background())
}

// process is a mailbox in a process of its own.
type process struct {
	cmd  *exec.Cmd
	info peer.AddrInfo
	dead sync.Once
}

func startProcess(t testing.TB, r serving) *process {
	t.Helper()
	cmd := roleCommand(t, role{Serve: &r})
	cmd.Env = append(cmd.Env, "GOMEMLIMIT=448MiB") // of a community node's 512 MiB
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &process{cmd: cmd}
	t.Cleanup(p.kill)
	line, err := bufio.NewReader(out).ReadString('\n')
	address, ok := strings.CutPrefix(strings.TrimSpace(line), "ready ")
	if !ok {
		t.Fatalf("the process says %q, %v", line, err)
	}
	info, err := peer.AddrInfoFromString(address)
	if err != nil {
		t.Fatal(err)
	}
	p.info = *info
	return p
}

func (p *process) kill() {
	p.dead.Do(func() {
		_ = p.cmd.Process.Kill()
		_ = p.cmd.Wait()
	})
}

// G15: a process is killed at random moments while mail comes in. Every
// envelope that a receipt was given for is there afterwards.
func TestG15_Kill(t *testing.T) {
	if testing.Short() {
		t.Skip("processes are killed in the long run")
	}
	what := serving{Dir: t.TempDir(), Listen: loopback, Limits: mailbox.Limits{SourceRate: fast, TagQuota: 1 << 30, BoxQuota: 1 << 30}}
	node := [32]byte(ed25519.NewKeyFromSeed(make([]byte, 32)).Public().(ed25519.PublicKey))
	seed := make([]byte, 32)
	rand.Read(seed)
	host, err := realHost(transport.Errands, seed)
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	key, tag := newKey(), newTag()
	var acked [][]byte
	for round := range soak(5, 100) {
		p := startProcess(t, what)
		c, err := dialFrom(t, host, p.info, node)
		if err != nil {
			t.Fatal(err)
		}
		c.open(key, true)
		c.register(1, false, tag)
		enough := int(random(1)[0]) // answers until the kill
		sent, over := make(chan []byte, 4096), make(chan struct{})
		go func() {
			for {
				env := letter(tag, protocol.MinEnvelope)
				if _, err := c.net.Write(wire.AppendFrame(nil, &wire.Deposit{Envelope: env})); err != nil {
					return
				}
				select {
				case sent <- env:
				case <-over:
					return
				}
			}
		}()
		got := 0
		for ; ; got++ {
			f, err := c.next()
			if err != nil {
				break
			}
			if got == enough {
				go p.kill()
			}
			env := <-sent
			if why := c.outcome(env, f); why != 0 {
				t.Fatalf("round %d: refused with %d", round, why)
			}
			acked = append(acked, env)
		}
		close(over)
		p.kill()
		host.Network().ClosePeer(p.info.ID)
		p = startProcess(t, what)
		if c, err = dialFrom(t, host, p.info, node); err != nil {
			t.Fatal(err)
		}
		for i, env := range acked[len(acked)-got:] {
			if !c.holds(env) {
				t.Fatalf("round %d: envelope %d of %d is gone, and there was a receipt", round, i, got)
			}
		}
		p.kill()
		host.Network().ClosePeer(p.info.ID)
	}
	t.Logf("%d envelopes", len(acked))
}
