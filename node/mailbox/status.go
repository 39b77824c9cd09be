package mailbox

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/kith-im/kith/protocol/mailbox"
)

// counters count answers since the service was opened.
type counters struct {
	stored     atomic.Int64
	collected  atomic.Int64
	expired    atomic.Int64
	turnedAway atomic.Int64 // streams
	refused    [mailbox.RefusedLimit + 1]atomic.Int64
}

func (c *counters) count(f mailbox.Frame) {
	switch f := f.(type) {
	case *mailbox.Stored:
		c.stored.Add(1)
	case *mailbox.Refused:
		c.refused[f.Why].Add(1)
	}
}

// refusals are the reasons as metrics and operators read them.
var refusals = map[mailbox.Refusal]string{
	mailbox.RefusedUnknown:  "unknown",
	mailbox.RefusedFull:     "full",
	mailbox.RefusedBusy:     "busy",
	mailbox.RefusedDraining: "draining",
	mailbox.RefusedNoBox:    "no_box",
	mailbox.RefusedProof:    "proof",
	mailbox.RefusedLimit:    "limit",
}

// Status is what an operator sees: counts, bytes and ages, never names or tags.
type Status struct {
	Draining bool
	Failed   bool // writing failed
	DiskFull bool
	Limits   Limits // complete

	Boxes, Tags, Items int64
	Mail, Requests     int64         // bytes of envelopes
	Disk               int64         // bytes of the file in use
	Oldest             time.Duration // how long the oldest envelope has waited
	Streams            int

	// Since the service was opened.
	Stored, Collected, Expired int64
	TurnedAway                 int64            // streams
	Refused                    map[string]int64 // by reason
}

// Status says how the service is.
func (s *Service) Status(ctx context.Context) (Status, error) {
	set := s.settings()
	out := Status{Draining: set.Draining, Limits: set.Limits, Refused: make(map[string]int64)}
	var stored int64
	err := s.read(ctx, func(c *conn) error {
		ok, err := c.get([]any{&stored}, `SELECT stored FROM items ORDER BY n LIMIT 1`)
		if ok {
			out.Oldest = max(0, time.Duration(s.age.now()-stored)*time.Millisecond)
		}
		return err
	})
	if err != nil {
		return out, fmt.Errorf("read the mailboxes: %w", explain(err))
	}
	select {
	case <-s.failed:
		out.Failed = true
	default:
	}
	s.mu.Lock()
	out.Boxes, out.Tags, out.Items = s.use.boxes, s.use.tags, s.use.items
	out.Mail, out.Requests, out.Disk = s.use.mail, s.use.requests, s.use.disk
	out.DiskFull, out.Streams = s.full, len(s.streams)
	s.mu.Unlock()
	out.Stored, out.Collected = s.counters.stored.Load(), s.counters.collected.Load()
	out.Expired, out.TurnedAway = s.counters.expired.Load(), s.counters.turnedAway.Load()
	for why, name := range refusals {
		out.Refused[name] = s.counters.refused[why].Load()
	}
	return out, nil
}

// SetDraining says that the node retires, or that it does not after all: it
// takes no mail and no new boxes, and keeps serving those there are. Owners
// who are connected are let go, and hear of it when they come back.
func (s *Service) SetDraining(ctx context.Context, draining bool) error {
	value := []byte{}
	if draining {
		value = []byte{1}
	}
	err := s.change(ctx, func(t *tx) error { return t.setMeta(metaDraining, value) })
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := *s.settings()
	now.Draining = draining
	s.now.Store(&now)
	for st := range s.streams {
		st.end()
	}
	return nil
}

// Configure changes those limits that are not zero, at once and for as long as
// the configuration that the service is opened with stays what it is.
func (s *Service) Configure(ctx context.Context, l Limits) error {
	for _, f := range l.fields() {
		if *f.value < 0 {
			return fmt.Errorf("a limit of %d is none", *f.value)
		}
	}
	var now settings
	err := s.change(ctx, func(t *tx) error {
		var set Limits
		b, err := t.meta(metaLimits)
		if err != nil {
			return err
		}
		if json.Unmarshal(b, &set) != nil {
			return ErrDamaged
		}
		now = *s.settings()
		is, to := now.fields(), set.fields()
		for i, f := range l.fields() {
			if *f.value != 0 {
				*is[i].value, *to[i].value = *f.value, *f.value
			}
		}
		if b, err = json.Marshal(set); err != nil {
			return err
		}
		return t.setMeta(metaLimits, b)
	})
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now.Draining = s.settings().Draining
	s.now.Store(&now)
	return nil
}

// WriteMetrics writes what Status says in Prometheus' text format.
func (s *Service) WriteMetrics(w io.Writer) error {
	st, err := s.Status(context.Background())
	if err != nil {
		return err
	}
	flag := map[bool]int64{true: 1}
	for _, m := range []struct {
		name, kind, help string
		value            int64
	}{
		{"boxes", "gauge", "Boxes.", st.Boxes},
		{"tags", "gauge", "Registered tags.", st.Tags},
		{"items", "gauge", "Envelopes that wait.", st.Items},
		{"mail_bytes", "gauge", "Bytes of contacts' envelopes that wait.", st.Mail},
		{"request_bytes", "gauge", "Bytes of strangers' envelopes that wait.", st.Requests},
		{"disk_bytes", "gauge", "Bytes of the file in use.", st.Disk},
		{"quota_bytes", "gauge", "Bytes the file may use.", st.Limits.Quota},
		{"oldest_seconds", "gauge", "How long the oldest envelope has waited.", int64(st.Oldest.Seconds())},
		{"streams", "gauge", "Open streams.", int64(st.Streams)},
		{"draining", "gauge", "1 while the node retires.", flag[st.Draining]},
		{"disk_full", "gauge", "1 while the disk is full.", flag[st.DiskFull]},
		{"failed", "gauge", "1 after saving failed.", flag[st.Failed]},
		{"stored_total", "counter", "Receipts given.", st.Stored},
		{"collected_total", "counter", "Envelopes their owners were done with.", st.Collected},
		{"expired_total", "counter", "Envelopes that nobody collected in time.", st.Expired},
		{"turned_away_total", "counter", "Streams that were too many.", st.TurnedAway},
	} {
		if _, err := fmt.Fprintf(w, "# HELP kith_mailbox_%s %s\n# TYPE kith_mailbox_%s %s\nkith_mailbox_%s %d\n",
			m.name, m.help, m.name, m.kind, m.name, m.value); err != nil {
			return err
		}
	}
	if _, err := fmt.Fprint(w, "# HELP kith_mailbox_refused_total Requests refused, by reason.\n# TYPE kith_mailbox_refused_total counter\n"); err != nil {
		return err
	}
	for why := mailbox.RefusedUnknown; why <= mailbox.RefusedLimit; why++ {
		name := refusals[why]
		if _, err := fmt.Fprintf(w, "kith_mailbox_refused_total{reason=%q} %d\n", name, st.Refused[name]); err != nil {
			return err
		}
	}
	return nil
}
