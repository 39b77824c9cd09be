package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/kith-im/kith/node/api"
	apiv1 "github.com/kith-im/kith/node/api/v1"
)

// talker is one side of a conversation that goes on whatever happens to the
// daemons: it says one text after another, each until it is queued, and notes
// all that its watch shows.
type talker struct {
	*home
	name, with string
	queued     []string // ids, in the order in which the daemon took them

	mu       sync.Mutex
	shown    map[string]uint64 // received message → the event that showed it
	last     uint64            // the newest event
	problems []string
	moved    chan struct{} // something arrived
}

const (
	// sayEvery keeps the conversation going and its history small.
	sayEvery = 15 * time.Millisecond
	// killLate is how long after the start, or after the conversation went on,
	// a daemon is killed at the latest.
	killLate = 200 * time.Millisecond
)

var testSeed = os.Getenv("KITH_TEST_SEED")

// TestKill kills one of two talking daemons by kill -9, a hundred times, each
// at a random moment: as it starts, or as messages come and go. Nothing that
// was queued may be lost, shown twice or shown in another order.
// KITH_TEST_SEED repeats a run's moments.
func TestKill(t *testing.T) {
	t.Parallel()
	kills := 100
	switch {
	case soak:
		kills = 2000
	case testing.Short():
		kills = 10
	}
	seed := uint64(time.Now().UnixNano())
	if s := testSeed; s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("KITH_TEST_SEED=%d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))

	n := newNetwork(t)
	a, b := n.pair("ann", "ben")
	sides := [2]*talker{newTalker(a, "ann", "ben"), newTalker(b, "ben", "ann")}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	watching, hush := context.WithCancel(t.Context())
	defer hush()
	var saying, watchers sync.WaitGroup
	for _, s := range sides {
		saying.Go(func() { s.talk(ctx) })
		watchers.Go(func() { s.watch(watching) })
	}
	slowest := time.Duration(0)
	for range kills {
		victim := sides[rng.IntN(2)]
		if rng.IntN(2) == 0 {
			victim.await(e2eTime)
		}
		victim.pass(time.Duration(rng.Int64N(int64(killLate))))
		victim.kill()
		victim.up()
		slowest = max(slowest, victim.took)
	}
	stop()
	saying.Wait()
	for _, s := range sides {
		s.until("everything is delivered", func() bool { return s.delivered() >= len(s.queued)+1 })
	}
	for i, s := range sides {
		s.until("the watch has shown everything", func() bool { return s.count() >= len(sides[1-i].queued) })
	}
	hush()
	watchers.Wait()
	for i, s := range sides {
		s.check(sides[1-i])
	}
	if x, y := conversation(a.read("ben")), conversation(b.read("ann")); x != y {
		t.Error("the two show the conversation in different orders")
	}
	t.Logf("%d kills; %d and %d texts; slowest start %v", kills, len(sides[0].queued), len(sides[1].queued), slowest)
	n.quiet("text 1", sides[0].queued[0][:8], sides[1].queued[0][:8])
}

func newTalker(h *home, name, with string) *talker {
	return &talker{home: h, name: name, with: with, shown: map[string]uint64{}, moved: make(chan struct{}, 1)}
}

// talk says text after text until ctx ends. A text whose fate is not known,
// because the daemon was killed, is said again under the same key.
func (s *talker) talk(ctx context.Context) {
	client := api.NewClient(s.ready.API)
	defer client.Close()
	tick := time.NewTicker(sayEvery)
	defer tick.Stop()
	for i := len(s.queued) + 1; ; i++ {
		req := &apiv1.SendRequest{Conversation: s.with, Texts: []string{fmt.Sprintf("text %d of %s", i, s.name)}, IdempotencyKey: fmt.Sprintf("%s-%d", s.name, i)}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		// Once it is begun, the end of the talk must not leave it in doubt.
		for {
			res, err := client.Send(context.WithoutCancel(ctx), req)
			if err == nil {
				s.queued = append(s.queued, res.Messages[0].Id)
				break
			}
			<-tick.C
		}
	}
}

// watch follows a cursor, over and over as the daemon comes and goes.
func (s *talker) watch(ctx context.Context) {
	for ctx.Err() == nil {
		run(ctx, []string{"--home", s.dir, "watch", "--cursor", "talker", "--from", "start", "--json"}, bytes.NewReader(nil), (*talkerEvents)(s), bytes.NewBuffer(nil))
		s.pass(readyEvery)
	}
}

// talkerEvents takes what kith watch writes, an event at a time.
type talkerEvents talker

func (w *talkerEvents) Write(line []byte) (int, error) {
	var e struct {
		ID   uint64
		Type string
		Data struct {
			ID     string
			FromMe bool `json:"from_me"`
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := json.Unmarshal(line, &e); err != nil {
		w.problems = append(w.problems, fmt.Sprintf("the watch shows %q", line))
		return len(line), nil
	}
	w.last = max(w.last, e.ID)
	if e.Type != "message" || e.Data.FromMe {
		return len(line), nil
	}
	// An event comes again if the daemon died before it was acknowledged; a
	// message has one event for good.
	if was, ok := w.shown[e.Data.ID]; ok && was != e.ID {
		w.problems = append(w.problems, fmt.Sprintf("message %s is shown by event %d and by event %d", e.Data.ID, was, e.ID))
	}
	w.shown[e.Data.ID] = e.ID
	poke(w.moved)
	return len(line), nil
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// await returns when the next message has arrived, or after limit.
func (s *talker) await(limit time.Duration) {
	select {
	case <-s.moved:
	default:
	}
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-s.moved:
	case <-timer.C:
		s.mu.Lock()
		defer s.mu.Unlock()
		s.problems = append(s.problems, fmt.Sprintf("nothing arrived at %s for %v", s.name, limit))
	}
}

// pass lets d pass.
func (s *talker) pass(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	<-timer.C
}

// delivered counts own messages whose receipt is here.
func (s *talker) delivered() (n int) {
	for _, m := range s.read(s.with) {
		if m.FromMe && m.State == "delivered" {
			n++
		}
	}
	return n
}

// count is how many received texts the watch has shown; the one that the two
// met with is not counted.
func (s *talker) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.shown) - 1
}

// check compares what s shows with what other has queued.
func (s *talker) check(other *talker) {
	s.t.Helper()
	for _, p := range s.problems {
		s.t.Error(p)
	}
	var got []messageJSON
	for _, m := range s.read(s.with) {
		if !m.FromMe {
			got = append(got, m)
		}
		if m.Missing != 0 {
			s.t.Errorf("%s shows a gap of %d before %q", s.name, m.Missing, m.Text)
		}
	}
	got = got[1:] // the text the two met with
	if len(got) != len(other.queued) {
		s.t.Errorf("%s queued %d texts, %s shows %d", other.name, len(other.queued), s.name, len(got))
	}
	for i, id := range other.queued {
		text := fmt.Sprintf("text %d of %s", i+1, other.name)
		switch {
		case i >= len(got):
			s.t.Fatalf("%s lost %q", s.name, text)
		case got[i].ID != id || got[i].Text != text:
			s.t.Fatalf("%s shows %q (%s) in place %d, want %q (%s)", s.name, got[i].Text, got[i].ID, i, text, id)
		case s.shown[id] == 0:
			s.t.Errorf("the watch of %s never showed %q", s.name, text)
		}
	}
}

// conversation is the order of a conversation's messages.
func conversation(list []messageJSON) string {
	var b bytes.Buffer
	for _, m := range list {
		b.WriteString(m.ID)
	}
	return b.String()
}
