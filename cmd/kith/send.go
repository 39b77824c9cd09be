package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/kith-im/kith/node/api"
	apiv1 "github.com/kith-im/kith/node/api/v1"
	"github.com/kith-im/kith/protocol"
)

// states orders the states of a message that is on its way or has arrived, for
// --wait.
var states = []string{"queued", "sent", "held", "delivered", "read"}

// traceWait bounds asking why a message is late, once its time is up.
const traceWait = 2 * time.Second

type sendFlags struct {
	stdin   bool
	wait    string
	replyTo string
	expire  string
	key     string
}

func (k *kith) sendCmd() *cobra.Command {
	var f sendFlags
	c := &cobra.Command{
		Use:   "send CONVERSATION TEXT | send CONVERSATION --stdin",
		Short: "Send a text",
		Long: `Send a text. The command returns when the message is safe on disk: it will be
delivered even if both sides go offline in between. With --wait it returns when
the message came that far, and exits with 7 if --timeout runs out before: sent, a
device of the contact has it; held, so have enough of the contact's mailboxes, and
this daemon may be switched off (5 in place of 7: they are full); delivered, the contact's receipt is here.

With --stdin every line of the standard input becomes a message; empty lines are
left out. All are sent in the order of the lines.

For every message the command prints its id and how far it came; -q leaves that
out.

A text that begins with a dash goes after two: kith send bob -- "-5 degrees"`,
	}
	c.Flags().BoolVar(&f.stdin, "stdin", false, "send each line of the standard input")
	c.Flags().StringVar(&f.wait, "wait", "", "return when it is sent, held or delivered")
	c.Flags().StringVar(&f.replyTo, "reply-to", "", "the `ID` of the message this answers")
	c.Flags().StringVar(&f.expire, "expire", "", "give up if undelivered after this `TIME`, for example 1h or 7d")
	c.Flags().StringVar(&f.key, "idempotency-key", "", "a `WORD` that makes repeating this command send nothing twice")
	k.command(c, 1, 2, func(ctx context.Context, args []string) error {
		if f.stdin != (len(args) == 1) {
			return usagef("see: kith send --help", "give either a text or --stdin")
		}
		switch f.wait {
		case "", "sent", "held", "delivered":
		case "read":
			return usagef("use --wait delivered", "read receipts are off in this version")
		default:
			return usagef("use one of them", "--wait takes sent, held or delivered")
		}
		var life time.Duration
		if f.expire != "" {
			var err error
			if life, err = parseLife("--expire", f.expire); err != nil {
				return err
			}
		}
		client, err := k.dial()
		if err != nil {
			return err
		}
		s := sender{k: k, client: client, flags: f, request: &apiv1.SendRequest{
			Conversation: args[0], ReplyTo: f.replyTo, ExpireS: int64(life / time.Second),
		}}
		if f.stdin {
			return s.lines(ctx, k.stdin)
		}
		return s.one(ctx, args[1])
	})
	return k.completeContacts(c)
}

func rank(state string) (int, bool) {
	for i, s := range states {
		if s == state {
			return i, true
		}
	}
	return 0, false
}

// sender sends texts for one invocation of the command.
type sender struct {
	k       *kith
	client  *api.Client
	flags   sendFlags
	request *apiv1.SendRequest
	ledger  *ledger // set with --wait, from the first answer on
	count   int
}

func (s *sender) one(ctx context.Context, text string) error {
	if e := api.CheckText(text); e != nil {
		return e
	}
	sent, err := s.send(ctx, []string{text}, s.flags.key)
	if err != nil {
		return err
	}
	defer s.stop()
	return s.report(ctx, sent)
}

// send queues texts in one transaction.
func (s *sender) send(ctx context.Context, texts []string, key string) ([]*apiv1.Message, error) {
	s.request.Texts, s.request.IdempotencyKey = texts, key
	res, err := s.client.Send(ctx, s.request)
	if err != nil {
		return nil, err
	}
	if s.flags.wait != "" && s.ledger == nil {
		s.ledger = watchLedger(ctx, s.client, res.After)
		if s.flags.wait == "held" && s.boxless(ctx) {
			s.k.notef("This daemon uses no mailboxes, by --mailbox none. Waiting until it is delivered …")
		}
	}
	s.count += len(res.Messages)
	return res.Messages, nil
}

func (s *sender) stop() {
	if s.ledger != nil {
		s.ledger.stop()
	}
}

// report prints messages in their order, each once it has come as far as asked
// for.
func (s *sender) report(ctx context.Context, messages []*apiv1.Message) error {
	for _, m := range messages {
		var failed error
		if s.flags.wait != "" {
			if failed = s.ledger.wait(ctx, m, s.flags.wait); failed != nil && errors.Is(failed, errUndelivered) {
				failed = &api.Error{Code: api.CodeRefused, Message: fmt.Sprintf("the message is %s and was not delivered%s", m.State, prefixed(": ", m.Reason)), Hint: "see: kith trace " + m.Id}
			}
		}
		s.k.print(struct {
			ID           string `json:"id"`
			Conversation string `json:"conversation"`
			State        string `json:"state"`
			Time         int64  `json:"time"`
			Seq          uint64 `json:"seq"`
		}{m.Id, m.Conversation, m.State, m.TimeMs, m.Seq}, func(w io.Writer) {
			if !s.k.quiet {
				fmt.Fprintf(w, "%s  %s\n", clean(m.Id), clean(m.State))
			}
		})
		if errors.Is(failed, context.DeadlineExceeded) {
			return s.late(ctx, m)
		}
		if failed != nil {
			return failed
		}
	}
	return nil
}

// boxless says whether this daemon uses no mailboxes, those of contacts either.
func (s *sender) boxless(ctx context.Context) bool {
	status, err := s.client.Status(ctx, &apiv1.StatusRequest{})
	return err == nil && status.GetMailboxes().GetMode() == "none"
}

// late says what a message waits for that has not come as far as asked for.
func (s *sender) late(ctx context.Context, m *apiv1.Message) error {
	e := &api.Error{
		Code: api.CodeTimeout, Message: fmt.Sprintf("the message is %s, not yet %s, and is still on its way", m.State, s.flags.wait),
		Hint: "see: kith trace " + m.Id,
	}
	if s.flags.wait != "held" {
		return e
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), traceWait)
	defer cancel()
	trace, err := s.client.Trace(ctx, &apiv1.TraceRequest{Id: m.Id})
	if err != nil {
		return e
	}
	why, boxes := "", int32(0)
	for _, d := range trace.Devices {
		boxes += d.Mailboxes
		for _, a := range d.Attempts {
			if a.Road == "mailbox" {
				why = a.Result
			}
		}
	}
	switch {
	case why == "" && s.boxless(ctx):
		e.Message = fmt.Sprintf("the message is %s and is left at no mailbox: this daemon uses none, by --mailbox none", m.State)
		e.Hint = "kith down, then kith up --mailbox auto, leaves it at the contact's; else it is delivered when both are online, see: kith trace " + m.Id
	case why == "" && boxes == 0:
		e.Message = fmt.Sprintf("the message is %s and was left at no mailbox: %s has told of none", m.State, s.request.Conversation)
		e.Hint = "it is delivered when both are online, see: kith trace " + m.Id
	case why == "":
		e.Message = fmt.Sprintf("the message is %s and was left at no mailbox yet; %s has told of %d", m.State, s.request.Conversation, boxes)
		e.Hint = "this is tried again by itself, see: kith trace " + m.Id
	case strings.HasSuffix(why, "is full"):
		e.Code = api.CodeQuota
		fallthrough
	default:
		e.Message = fmt.Sprintf("the message is %s, not yet held: %s", m.State, why)
		e.Hint = "this is tried again by itself, see: kith trace " + m.Id
	}
	return e
}

// lines sends the lines of r. What is at hand goes into one request, so that a
// file travels in full ones and a person typing is not kept waiting. With an
// idempotency key each request but the last is full, so that a repetition
// divides the lines in the same way.
func (s *sender) lines(ctx context.Context, r io.Reader) error {
	defer s.stop()
	in := readLines(ctx, r)
	var sent []*apiv1.Message
	for batch := 0; ; batch++ {
		texts, err := in.next(ctx, s.flags.key != "")
		if len(texts) > 0 {
			key := s.flags.key
			if key != "" {
				key = fmt.Sprintf("%s/%d", key, batch)
			}
			messages, err := s.send(ctx, texts, key)
			if err != nil {
				return s.after(err)
			}
			if s.flags.wait == "" {
				if err := s.report(ctx, messages); err != nil {
					return err
				}
			} else {
				sent = append(sent, messages...)
			}
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return s.after(err)
		}
	}
	return s.report(ctx, sent)
}

// after says how many lines were sent before one failed.
func (s *sender) after(err error) error {
	e := *s.k.explain(err)
	if s.count > 0 {
		e.Message = fmt.Sprintf("%s sent before this: %s", were(s.count, "line"), e.Message)
	}
	return &e
}

// lineReader reads lines in a goroutine of its own, so that next can tell what
// is at hand from what has yet to come.
type lineReader struct {
	lines chan string
	err   error // set before lines is closed
}

func readLines(ctx context.Context, r io.Reader) *lineReader {
	l := &lineReader{lines: make(chan string, api.MaxTexts)}
	go func() {
		defer close(l.lines)
		// One more than fits, so that CheckText can say how much too long it is.
		in := bufio.NewScanner(r)
		in.Buffer(nil, 2*protocol.MaxText)
		for n := 1; in.Scan(); n++ {
			text := strings.TrimSuffix(in.Text(), "\r")
			if text == "" {
				continue
			}
			if e := api.CheckText(text); e != nil {
				l.err = &api.Error{Code: e.Code, Message: fmt.Sprintf("line %d: %s", n, e.Message), Hint: e.Hint}
				return
			}
			select {
			case l.lines <- text:
			case <-ctx.Done():
				l.err = ctx.Err()
				return
			}
		}
		switch err := in.Err(); {
		case errors.Is(err, bufio.ErrTooLong):
			l.err = usagef("send it in parts", "a line is longer than %d bytes", protocol.MaxText)
		case err != nil:
			l.err = fmt.Errorf("read the standard input: %w", err)
		}
	}()
	return l
}

// next returns up to api.MaxTexts lines: at least one, or full requests if
// asked for. The last of them come with io.EOF or the error that ended them.
func (l *lineReader) next(ctx context.Context, full bool) (texts []string, err error) {
	for len(texts) < api.MaxTexts {
		var line string
		var ok bool
		if len(texts) == 0 || full {
			select {
			case line, ok = <-l.lines:
			case <-ctx.Done():
				return texts, ctx.Err()
			}
		} else {
			select {
			case line, ok = <-l.lines:
			default:
				return texts, nil
			}
		}
		if !ok {
			if l.err != nil {
				return texts, l.err
			}
			return texts, io.EOF
		}
		texts = append(texts, line)
	}
	return texts, nil
}

// ledger follows what becomes of sent messages.
type ledger struct {
	client *api.Client
	cancel context.CancelFunc
	ended  chan struct{} // the watch is over, err says why

	mu      sync.Mutex
	states  map[string]ledgerEntry
	changed chan struct{} // closed at the next change
	err     error
}

type ledgerEntry struct {
	State  string `json:"state"`
	Reason string `json:"reason"`
}

// watchLedger follows the events after an id, so that nothing that happens to a
// message between its sending and this call is missed. It ends with stop alone:
// a deadline of ctx is for wait, which says what has not happened by then.
func watchLedger(ctx context.Context, client *api.Client, after uint64) *ledger {
	req := &apiv1.WatchEventsRequest{After: after}
	if after == 0 {
		req.From = "start"
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	l := &ledger{client: client, cancel: cancel, ended: make(chan struct{}), states: map[string]ledgerEntry{}, changed: make(chan struct{})}
	go func() {
		defer close(l.ended)
		err := client.WatchEvents(ctx, req, l.event)
		l.mu.Lock()
		l.err = err
		l.mu.Unlock()
	}()
	return l
}

func (l *ledger) event(e *apiv1.Event) error {
	if e.Type != "ledger" {
		return nil
	}
	var entry struct {
		ID string `json:"id"`
		ledgerEntry
	}
	if json.Unmarshal([]byte(e.Data), &entry) != nil || entry.ID == "" {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.states[entry.ID] = entry.ledgerEntry
	close(l.changed)
	l.changed = make(chan struct{})
	return nil
}

var errUndelivered = errors.New("the message will not be delivered")

// wait returns when m is in state target or beyond, and keeps m.State up to
// date. It returns errUndelivered if that will never be.
func (l *ledger) wait(ctx context.Context, m *apiv1.Message, target string) error {
	want, _ := rank(target)
	for {
		l.mu.Lock()
		if entry, ok := l.states[m.Id]; ok {
			m.State, m.Reason = entry.State, entry.Reason
		}
		changed, err := l.changed, l.err
		l.mu.Unlock()
		got, onItsWay := rank(m.State)
		switch {
		case onItsWay && got >= want:
			return nil
		case !onItsWay:
			return errUndelivered
		case err != nil:
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return err
		}
		select {
		case <-changed:
		case <-l.ended:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (l *ledger) stop() {
	l.cancel()
	<-l.ended
}
