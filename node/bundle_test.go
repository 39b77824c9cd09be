package node_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kith-im/kith/node"
	apiv1 "github.com/kith-im/kith/node/api/v1"
	"github.com/kith-im/kith/node/nodetest"
	"github.com/kith-im/kith/protocol"
)

// stick is what a bundle export made.
type stick struct {
	files   [][]byte
	about   []*apiv1.BundleFile
	entries []int64
	leftOut int32
}

// export makes a bundle and notes that it is on its way.
func export(t testing.TB, u *nodetest.User, req *apiv1.ExportBundleRequest) stick {
	t.Helper()
	s, err := tryExport(u, req)
	if err != nil {
		t.Fatalf("%s exports: %v", u.Name, err)
	}
	if _, err := u.Bundles().NoteBundle(context.Background(), &apiv1.NoteBundleRequest{Entries: s.entries}); err != nil {
		t.Fatal(err)
	}
	return s
}

func tryExport(u *nodetest.User, req *apiv1.ExportBundleRequest) (s stick, err error) {
	var file []byte
	err = u.Bundles().ExportBundle(context.Background(), req, func(p *apiv1.ExportBundleResponse) error {
		file = append(file, p.Data...)
		s.entries = append(s.entries, p.Entries...)
		s.leftOut += p.LeftOut
		if p.File != nil {
			s.files, s.about, file = append(s.files, file), append(s.about, p.File), nil
		}
		return nil
	})
	if len(file) > 0 {
		return s, errors.New("a file has no end")
	}
	return s, err
}

// pieces hands b over as a client does, with req's flags.
func pieces(b []byte, req *apiv1.ImportBundleRequest) func() (*apiv1.ImportBundleRequest, error) {
	first := true
	return func() (*apiv1.ImportBundleRequest, error) {
		if len(b) == 0 && !first {
			return nil, io.EOF
		}
		n := min(len(b), 100_000) // not a multiple of a part
		p := &apiv1.ImportBundleRequest{Data: b[:n]}
		if first {
			p.Inspect, p.Carry, first = req.GetInspect(), req.GetCarry(), false
		}
		b = b[n:]
		return p, nil
	}
}

func tryImport(u *nodetest.User, b []byte, req *apiv1.ImportBundleRequest) (*apiv1.ImportBundleResponse, error) {
	return u.Bundles().ImportBundle(context.Background(), pieces(b, req))
}

func importAll(t testing.TB, u *nodetest.User, files ...[]byte) *apiv1.ImportBundleResponse {
	t.Helper()
	var out *apiv1.ImportBundleResponse
	for _, f := range files {
		var err error
		if out, err = tryImport(u, f, nil); err != nil {
			t.Fatalf("%s imports: %v", u.Name, err)
		}
	}
	return out
}

// hand carries all that waits at one person to another.
func hand(t testing.TB, from, to *nodetest.User) *apiv1.ImportBundleResponse {
	t.Helper()
	return importAll(t, to, export(t, from, &apiv1.ExportBundleRequest{}).files...)
}

func all() *apiv1.ExportBundleRequest { return &apiv1.ExportBundleRequest{} }

// road is how a message's newest attempt went.
func road(t testing.TB, u *nodetest.User, id string) string {
	t.Helper()
	out, err := u.Trace(context.Background(), &apiv1.TraceRequest{Id: id})
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range slices.Backward(out.Devices[0].Attempts) {
		if a.Road == "bundle" {
			return a.Road + " " + a.Result
		}
	}
	return ""
}

// TestStick has two people meet and talk who never had a network, and then one
// comes: nothing is shown twice, and the order is right.
func TestStick(t *testing.T) {
	simulate(t, 3, func(t *testing.T, w *world) {
		alice, bob := w.user("alice"), w.user("bob")
		w.Blackhole(alice.IP)
		w.Blackhole(bob.IP)

		link := oneTime(alice, "bob")
		keys := export(t, alice, all())
		if len(keys.about) != 1 || keys.about[0].Invites != 1 || len(keys.files[0]) != protocol.BundlePart {
			t.Fatalf("the keys of an invite are %v", keys.about)
		}
		if _, err := tryImport(bob, keys.files[0], nil); code(err) != node.CodeNotFound {
			t.Errorf("who did not accept the invite imports its keys: %v", err)
		}
		bob.Accept(link, "alice")
		if got := importAll(t, bob, keys.files...); got.Invites != 1 || got.Ours != 1 {
			t.Errorf("importing the keys says %v", got)
		}
		first := bob.Say("alice", texts("bob", 3)...)
		there := export(t, bob, all())
		if road(t, bob, first[0]) != "bundle carried" || bob.State(first[0]) != "queued" {
			t.Errorf("a message in a bundle is %s, by road %q", bob.State(first[0]), road(t, bob, first[0]))
		}
		if got := importAll(t, alice, there.files...); got.Messages != 3 || got.Waiting != 0 {
			t.Errorf("importing three first words says %v", got)
		}
		alice.UntilEstablished("bob")
		answers := alice.Say("bob", texts("alice", 3)...)
		if got := hand(t, alice, bob); got.Messages != 3 || len(got.From) != 1 || got.From[0].Name != "alice" {
			t.Errorf("importing three answers says %v", got)
		}
		bob.UntilEstablished("alice")
		bob.UntilDelivered(first...) // the receipts came with the answers
		hand(t, bob, alice)
		alice.UntilDelivered(answers...)
		agree(t, alice, bob, 6)

		last := alice.Say("bob", "before the network is back")
		hand(t, alice, bob)
		w.Heal()
		alice.UntilDelivered(append(last, alice.Say("bob", "and after")...)...)
		bob.UntilDelivered(bob.Say("alice", "good to hear you")...)
		time.Sleep(2 * time.Hour) // whatever is offered again has been
		agree(t, alice, bob, 9)
	})
}

// Every file of a bundle that was cut into volumes can be read alone, in any order
// and twice; what waits is in exactly one.
func TestBundleVolumes(t *testing.T) {
	simulate(t, 3, func(t *testing.T, w *world) {
		alice, bob := w.talking()
		w.Blackhole(alice.IP)
		sent := numbered("volume", 400)
		for i := range sent {
			if i%40 == 7 {
				sent[i] += strings.Repeat(" and so on", 6000) // many pieces
			}
		}
		ids := alice.Say("bob", sent[:200]...)
		ids = append(ids, alice.Say("bob", sent[200:]...)...)
		s := export(t, alice, &apiv1.ExportBundleRequest{Size: 300_000})
		if len(s.files) < 4 {
			t.Fatalf("%d files, want several", len(s.files))
		}
		for _, f := range s.files {
			if n := len(f); n > 300_000 || n&(n-1) != 0 {
				t.Errorf("a file has %d bytes", n)
			}
		}
		fresh := 0
		for _, i := range rand.New(rand.NewPCG(1, 2)).Perm(len(s.files)) {
			for round := range 2 {
				out, err := tryImport(bob, s.files[i], nil)
				if err != nil {
					t.Fatal(err)
				}
				if out.Envelopes != s.about[i].Envelopes || round > 0 && (out.Fresh > 0 || out.Messages > 0) {
					t.Errorf("file %d, time %d: %d envelopes, %d fresh; want %d", i, round, out.Envelopes, out.Fresh, s.about[i].Envelopes)
				}
				fresh += int(out.Messages)
			}
		}
		if fresh != len(sent) {
			t.Errorf("%d messages came out, want %d", fresh, len(sent))
		}
		if _, err := tryExport(alice, &apiv1.ExportBundleRequest{Fresh: true}); code(err) != node.CodeRefused {
			t.Errorf("what was carried is new: %v", err)
		}
		w.Heal()
		alice.UntilDelivered(ids...)
		agree(t, alice, bob, before+len(sent))
	})
}

// TestBundleDamage damages a bundle at random places, and cuts it: what is whole
// arrives, what is not comes with the next copy, and nothing else ever does.
func TestBundleDamage(t *testing.T) {
	simulate(t, 3, func(t *testing.T, w *world) {
		alice, bob := w.talking()
		w.Blackhole(alice.IP)
		alice.Say("bob", numbered("text", 200)...)
		s := export(t, alice, all())
		file := s.files[0]
		rng := rand.New(rand.NewPCG(3, 4))
		for range 40 {
			bad := bytes.Clone(file)
			for range rng.IntN(20) {
				bad[rng.IntN(len(bad))] ^= 1 << rng.IntN(8)
			}
			if _, err := tryImport(bob, bad[:rng.IntN(len(bad))], nil); err != nil && code(err) == "" {
				t.Fatalf("a damaged bundle ends with: %v", err)
			}
		}
		for name, foreign := range map[string][]byte{
			"nothing":         nil,
			"a holiday photo": bytes.Repeat([]byte("\xff\xd8\xff\xe0 JFIF"), 100_000),
			"a letter":        []byte("dear bob"),
			"a short text":    []byte("ABCDEF"),
		} {
			if _, err := tryImport(bob, foreign, nil); code(err) == "" {
				t.Errorf("%s: %v", name, err)
			}
		}
		importAll(t, bob, file)
		agreeTexts(t, bob, "alice", "alice: text", 200)
	})
}

// agreeTexts checks that a conversation ends with count numbered texts in order.
func agreeTexts(t *testing.T, u *nodetest.User, with, prefix string, count int) {
	t.Helper()
	got := u.Texts(with)
	if want := numbered(prefix, count); len(got) < count || !slices.Equal(got[len(got)-count:], want) {
		t.Errorf("%s sees %d texts, not %d in order at the end", u.Name, len(got), count)
	}
}

// Somebody who is neither of the two carries a bundle's parts on, mixed with
// others, and learns nothing of them.
func TestBundleCourier(t *testing.T) {
	simulate(t, 3, func(t *testing.T, w *world) {
		alice, bob := w.talking()
		carol := w.user("carol")
		nodetest.Befriend(alice, carol)
		w.Blackhole(alice.IP)
		w.Blackhole(carol.IP)
		ids := alice.Say("bob", numbered("carried", 40)...)
		s := export(t, alice, &apiv1.ExportBundleRequest{Contacts: []string{"bob"}})

		if _, err := tryImport(carol, s.files[0], nil); code(err) != node.CodeNotFound {
			t.Errorf("a bundle for somebody else: %v", err)
		}
		for round := range 2 {
			out, err := tryImport(carol, s.files[0], &apiv1.ImportBundleRequest{Carry: true})
			if err != nil || out.Ours != 0 || out.Foreign != int32(len(s.files[0])/protocol.BundlePart) || (out.Kept == out.Foreign) != (round == 0) {
				t.Fatalf("a courier, time %d: %v, %v", round, out, err)
			}
		}
		carol.Restart()
		carol.Say("alice", "by the way")
		onward := export(t, carol, all())
		if onward.about[0].Carried == 0 || onward.about[0].Messages != 1 {
			t.Errorf("the courier's bundle is %v", onward.about)
		}
		if named := export(t, carol, &apiv1.ExportBundleRequest{Contacts: []string{"alice"}}); named.about[0].Carried != 0 {
			t.Error("a bundle for one contact has what is carried for others")
		}
		if got := importAll(t, bob, onward.files...); got.Messages != 40 {
			t.Errorf("what was carried says %v", got)
		}
		if out, err := tryImport(alice, onward.files[0], &apiv1.ImportBundleRequest{Inspect: true}); err != nil || out.Own == 0 || out.Ours == 0 || out.Fresh != 0 {
			t.Errorf("alice sees %v in it, %v", out, err)
		}
		hand(t, bob, alice)
		alice.UntilDelivered(ids...)
	})
}

// One message fits on paper.
func TestBundlePaper(t *testing.T) {
	simulate(t, 3, func(t *testing.T, w *world) {
		alice, bob := w.talking()
		w.Blackhole(alice.IP)
		ids := alice.Say("bob", "on paper", "on another", strings.Repeat("a long letter ", 400))
		s := export(t, alice, &apiv1.ExportBundleRequest{Text: true})
		if len(s.files) != 2 || s.leftOut != 1 {
			t.Fatalf("%d papers and %d left out, want 2 and 1", len(s.files), s.leftOut)
		}
		typed := bytes.ToLower(append(append(s.files[0], "\r\n\r\n"...), s.files[1]...))
		wrong := bytes.Clone(typed)
		if wrong[70] = 'a'; typed[70] == 'a' {
			wrong[70] = 'b'
		}
		if out, err := tryImport(bob, wrong, nil); err != nil || out.Damaged != 1 || out.Messages != 1 {
			t.Errorf("one of two papers is misread: %v, %v", out, err)
		}
		if _, err := tryImport(bob, wrong[:len(s.files[0])], nil); code(err) != node.CodeRefused {
			t.Errorf("the only paper is misread: %v", err)
		}
		if out, err := tryImport(bob, typed, nil); err != nil || out.Messages != 1 || out.Fresh != 1 || !out.Text {
			t.Errorf("both papers: %v, %v", out, err)
		}
		hand(t, bob, alice)
		alice.UntilDelivered(ids[:2]...)
	})
}

// What has no room yet is said to wait, keeps nothing else away, and comes when
// the file is read again.
func TestBundleStranger(t *testing.T) {
	simulate(t, 0, func(t *testing.T, w *world) {
		alice, bob := w.user("alice"), w.user("bob")
		link := alice.Invite(&apiv1.CreateInviteRequest{Reusable: true})
		bob.Accept(link, "alice")
		importAll(t, bob, export(t, alice, all()).files...)
		long := numbered("long", 12)
		for i := range long {
			long[i] += strings.Repeat(" and on", 8000)
		}
		bob.Say("alice", long...)
		s := export(t, bob, all())
		got := importAll(t, alice, s.files...)
		if got.Waiting == 0 || got.Messages == 0 || int(got.Waiting+got.Messages) != len(long) {
			t.Fatalf("a stranger's many words: %v", got)
		}
		requests, err := alice.ListRequests(context.Background(), &apiv1.ListRequestsRequest{})
		if err != nil || len(requests.Requests) != 1 {
			t.Fatalf("the requests are %v, %v", requests, err)
		}
		if _, err := alice.ApproveRequest(context.Background(), &apiv1.ApproveRequestRequest{Id: requests.Requests[0].Id}); err != nil {
			t.Fatal(err)
		}
		if again := importAll(t, alice, s.files...); again.Waiting != 0 || again.Messages != got.Waiting {
			t.Errorf("after the approval: %v", again)
		}
		hand(t, alice, bob)
		agree(t, alice, bob, len(long))
	})
}

// What is refused says why, and nothing is lost.
func TestBundleRefusals(t *testing.T) {
	lasting(t)
	simulate(t, 3, func(t *testing.T, w *world) {
		alice, bob := w.talking()
		w.Blackhole(alice.IP)
		for name, c := range map[string]struct {
			req  *apiv1.ExportBundleRequest
			code node.Code
		}{
			"nobody of that name": {&apiv1.ExportBundleRequest{Contacts: []string{"nobody"}}, node.CodeNotFound},
			"no such invite":      {&apiv1.ExportBundleRequest{Invites: []string{"abcd"}}, node.CodeNotFound},
			"too small":           {&apiv1.ExportBundleRequest{Size: 1000}, node.CodeUsage},
		} {
			if _, err := tryExport(alice, c.req); code(err) != c.code {
				t.Errorf("%s: %v", name, err)
			}
		}
		id := alice.Say("bob", "left by hand")[0]
		s := export(t, alice, all())
		if _, err := tryImport(alice, s.files[0], nil); code(err) != node.CodeRefused {
			t.Errorf("a bundle of our own: %v", err)
		}
		time.Sleep(6 * time.Hour) // many a direct try fails, and the ledger keeps the newest
		if got := road(t, alice, id); got != "bundle carried" {
			t.Errorf("the ledger has forgotten the bundle: %q", got)
		}
		if _, err := alice.Cancel(context.Background(), &apiv1.CancelRequest{Id: id}); code(err) != node.CodeRefused {
			t.Errorf("what is on its way was cancelled: %v", err)
		}
		if _, err := alice.SetBlocked(context.Background(), &apiv1.SetBlockedRequest{Contact: "bob", Blocked: true}); err != nil {
			t.Fatal(err)
		}
		if _, err := tryExport(alice, &apiv1.ExportBundleRequest{Contacts: []string{"bob"}}); code(err) != node.CodeRefused {
			t.Errorf("for somebody who is blocked: %v", err)
		}
		if _, err := tryExport(alice, all()); code(err) != node.CodeRefused {
			t.Errorf("something leaves for somebody who is blocked: %v", err)
		}
		importAll(t, bob, s.files...)
	})
}

// TestBundleCrash kills a daemon in the middle of imports: what was received stays,
// and the rest comes when the file is read again.
func TestBundleCrash(t *testing.T) {
	simulate(t, 3, func(t *testing.T, w *world) {
		alice, bob := w.talking()
		w.Blackhole(alice.IP)
		count := 1000
		if testing.Short() {
			count = 300
		}
		for chunk := range slices.Chunk(numbered("text", count), 250) {
			alice.Say("bob", chunk...)
		}
		s := export(t, alice, all())
		alice.Crash() // the file is there; the ledger may know it or not
		alice.Start()
		file := s.files[0]
		for at := 1; at < 4; at++ { // the daemon dies after a part of it
			_, err := bob.Bundles().ImportBundle(context.Background(), func() func() (*apiv1.ImportBundleRequest, error) {
				next := pieces(file[:len(file)*at/4], nil)
				return func() (*apiv1.ImportBundleRequest, error) {
					p, err := next()
					if errors.Is(err, io.EOF) {
						return nil, context.Canceled
					}
					return p, err
				}
			}())
			if !errors.Is(err, context.Canceled) {
				t.Fatal(err)
			}
			bob.Crash()
			bob.Start()
		}
		importAll(t, bob, file)
		agreeTexts(t, bob, "alice", "alice: text", count)
		hand(t, bob, alice)
		w.Heal()
		agree(t, alice, bob, before+count)
	})
}

// code is the code of a refusal; empty for anything else.
func code(err error) node.Code {
	var e *node.Error
	if errors.As(err, &e) {
		return e.Code
	}
	return ""
}
