package node_test

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"log/slog"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	apiv1 "github.com/kith-im/kith/node/api/v1"
	"github.com/kith-im/kith/node/nodetest"
)

// logBook keeps everything that is logged.
type logBook struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logBook) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

func (l *logBook) text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// TestH16_LogsAreSilent logs a whole acquaintance at the finest level, with what
// goes wrong in it, and looks for anything about people in it.
func TestH16_LogsAreSilent(t *testing.T) {
	simulate(t, 2, func(t *testing.T, w *world) {
		book := &logBook{}
		log := slog.New(slog.NewTextHandler(book, &slog.HandlerOptions{Level: slog.LevelDebug}))
		alice := w.userWith("Alissandra", nodetest.Options{Log: log})
		bob := w.userWith("Bobadilla", nodetest.Options{Log: log})
		secrets := map[string]string{"a name": "Alissandra", "another name": "Bobadilla", "a text": "xyzzy"}
		add := func(what, secret string) {
			if len(secret) < 6 {
				t.Fatalf("%s is too short to look for", what)
			}
			secrets[what] = secret
		}
		link := oneTime(alice, "Bobadilla")
		keys := parseLink(t, link)
		add("a link", link[5:40])
		add("a secret", hex.EncodeToString(keys.Secret[:]))
		bob.Accept(link, "Alissandra")
		alice.UntilEstablished("Bobadilla")
		bob.UntilEstablished("Alissandra")
		note := func(u *nodetest.User, run int) {
			add(fmt.Sprint("a peer id ", run, u.Name), u.Contacts.ID().String())
			add(fmt.Sprint("a look-up's peer id ", run, u.Name), u.Errands.ID().String())
		}
		note(alice, 1)
		note(bob, 1)
		ids := alice.Say("Bobadilla", "xyzzy and more")
		alice.UntilDelivered(ids...)
		bob.Stop()
		ids = append(ids, alice.Say("Bobadilla", "xyzzy again")...)
		time.Sleep(30 * time.Minute)
		for _, c := range w.ways {
			w.Blackhole(c.IP)
			add("a community node "+c.IP.String(), c.Info.ID.String())
		}
		time.Sleep(30 * time.Minute)
		w.Heal()
		bob.Start()
		note(bob, 2)
		alice.UntilDelivered(ids...)
		door := w.dial(t, alice, pairKey(t, alice, "Bobadilla"))
		door.send(t, noise(1024))
		door.hangUp()
		alice.Crash()
		alice.Start()
		for _, c := range contacts(t, alice) {
			add("a contact's id", c.Id)
			add("a fingerprint", c.Fingerprint)
			add("the start of a fingerprint", strings.Fields(c.Fingerprint)[0])
		}
		if n, err := alice.GetSafetyNumber(ctx, &apiv1.GetSafetyNumberRequest{Contact: "Bobadilla"}); err != nil {
			t.Error(err)
		} else {
			add("a safety number", n.Number)
		}
		for _, id := range ids {
			add("a message's id "+id, id[:12])
		}
		for i, d := range devices(t, alice, "Bobadilla") {
			add(fmt.Sprint("a device ", i), hex.EncodeToString(d.Hash))
			add(fmt.Sprint("a device in base64 ", i), base64.StdEncoding.EncodeToString(d.Hash)[:20])
		}
		for i, p := range pairs(t, alice, "Bobadilla") {
			add(fmt.Sprint("a pair's secret ", i), hex.EncodeToString(p[:]))
		}
		for _, u := range []*nodetest.User{alice, bob} {
			add("an address of "+u.Name, u.IP.String())
			add("a home of "+u.Name, u.Home)
		}
		alice.Stop()
		bob.Stop()
		logged := book.text()
		if len(logged) == 0 {
			t.Fatal("nothing was logged, so nothing was tested")
		}
		for what, secret := range secrets {
			if i := strings.Index(logged, secret); i >= 0 {
				t.Errorf("%s is in the logs: %s", what, logged[max(0, i-80):min(len(logged), i+80)])
			}
		}
		for what, form := range map[string]string{
			"a multiaddr": `/(ip4|ip6|dns4|p2p)/`, "a peer id": `12D3Koo|Qm[1-9A-Za-z]{30}`, "an IP address": `\b\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}\b`,
			"something like a key": `[0-9a-fA-F]{32}`,
		} {
			if hit := regexp.MustCompile(form).FindString(logged); hit != "" {
				i := strings.Index(logged, hit)
				t.Errorf("%s is in the logs: %s", what, logged[max(0, i-80):min(len(logged), i+80)])
			}
		}
	})
}
