package api

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	apiv1 "github.com/kith-im/kith/node/api/v1"
	"github.com/kith-im/kith/protocol"
)

// Limits of the form of requests. What a contact may send or store is limited
// elsewhere; these only keep one call bounded.
const (
	MaxTexts  = 256     // texts in one Send: one transaction, held in memory
	MaxPage   = 1000    // messages or events in one answer
	MaxWait   = 60_000  // ms of a long poll
	MaxName   = 128     // bytes of a name of a person or an invite
	MaxRef    = 256     // bytes of an id, a name or a prefix of one
	MaxLink   = 4 << 10 // bytes of an invite link; one with many addresses has 1 KiB
	MaxCursor = 64      // bytes of a cursor's name
	MaxKey    = 128     // bytes of an idempotency key

	MaxBundleData    = 1 << 20 // bytes of a file in one piece
	MaxBundleEntries = 4096    // in one NoteBundle
	maxBundleNames   = 256     // contacts, and invites, in one ExportBundle

	// What an operator may set: less serves nobody, and more is a slip of the
	// hand. The wire tells the retention in hours.
	MinQuota     = 16 << 20 // bytes
	maxQuota     = 1 << 50
	minShare     = protocol.MaxEnvelope
	minRate      = 4 << 10 // bytes a second: the burst then holds the largest envelope
	minRetention = 3600
	maxRetention = maxLifetime
	maxCount     = 1 << 40

	// maxAddress bounds a multiaddr as text: no part of a binary one becomes
	// more than four times as long.
	maxAddress = 4 * protocol.MaxAddress

	maxLifetime = 365 * 24 * 3600 // seconds an invite or an undelivered message may live

	// Largest encoded requests: a full Send with room for its framing (a text
	// in JSON may be longer than its bytes), and anything else.
	maxSendRequest   = MaxTexts*protocol.MaxText + 2<<20
	maxImportRequest = MaxBundleData + 1<<10
	maxRequest       = 64 << 10
	// Largest encoded answer: a page of the longest messages, and some room.
	maxResponse = MaxPage*protocol.MaxText + 16<<20
)

func usage(hint, format string, args ...any) *Error {
	return &Error{Code: CodeUsage, Message: fmt.Sprintf(format, args...), Hint: hint}
}

// check refuses requests whose form no backend should see. It never repeats
// what was sent: the text of an error may end in a log.
func check(req any) *Error {
	switch r := req.(type) {
	case *apiv1.CreateInviteRequest:
		return first(checkName("the invite's name", r.Name, true), checkLifetime(r.ExpiresS))
	case *apiv1.RevokeInviteRequest:
		return checkRef("the invite", r.Id)
	case *apiv1.AcceptInviteRequest:
		return first(checkLink(r.Link), checkName("the contact's name", r.Name, true))
	case *apiv1.ApproveRequestRequest:
		return checkRef("the request", r.Id)
	case *apiv1.RejectRequestRequest:
		return checkRef("the request", r.Id)
	case *apiv1.RenameContactRequest:
		return first(checkRef("the contact", r.Contact), checkName("the new name", r.Name, false))
	case *apiv1.SetBlockedRequest:
		return checkRef("the contact", r.Contact)
	case *apiv1.HideAddressRequest:
		return checkRef("the contact", r.Contact)
	case *apiv1.GetSafetyNumberRequest:
		return checkRef("the contact", r.Contact)
	case *apiv1.SetVerifiedRequest:
		return checkRef("the contact", r.Contact)
	case *apiv1.SendRequest:
		return checkSend(r)
	case *apiv1.ListMessagesRequest:
		if r.Since != "" && r.Before != "" {
			return usage("ask for one side at a time", "since and before exclude each other")
		}
		return first(checkRef("the conversation", r.Conversation), checkRange("last", int64(r.Last), MaxPage),
			checkOptionalRef("since", r.Since), checkOptionalRef("before", r.Before))
	case *apiv1.TraceRequest:
		return checkRef("the message", r.Id)
	case *apiv1.CancelRequest:
		return checkRef("the message", r.Id)
	case *apiv1.PingRequest:
		return checkRef("the contact", r.Contact)
	case *apiv1.CreateBridgeInviteRequest:
		return checkName("the invite's name", r.Name, true)
	case *apiv1.RevokeBridgeInviteRequest:
		return checkRef("the invite", r.Id)
	case *apiv1.AddMailboxRequest:
		return checkAddress(r.Address)
	case *apiv1.RemoveMailboxRequest:
		return checkRef("the mailbox", r.Id)
	case *apiv1.TestMailboxRequest:
		return checkOptionalRef("the mailbox", r.Id)
	case *apiv1.ExportBundleRequest:
		return checkExport(r)
	case *apiv1.NoteBundleRequest:
		return checkRange("the number of entries", int64(len(r.Entries)), MaxBundleEntries)
	case *apiv1.SetModeRequest:
		return checkRef("the mode", r.Setting)
	case *apiv1.AddBridgeRequest:
		return checkBridgeAddress(r.Address)
	case *apiv1.RemoveBridgeRequest:
		return checkBridge(r.Id)
	case *apiv1.SetNodeRequest:
		return checkSetNode(r)
	case *apiv1.WatchEventsRequest:
		return first(checkCursor(r.Cursor, true), checkFrom(r.From), checkStart(r.Cursor, r.From, r.After))
	case *apiv1.ListEventsRequest:
		return first(checkCursor(r.Cursor, true), checkFrom(r.From), checkStart(r.Cursor, r.From, r.After),
			checkRange("limit", int64(r.Limit), MaxPage), checkRange("wait_ms", r.WaitMs, MaxWait))
	case *apiv1.AckEventsRequest:
		return checkCursor(r.Cursor, false)
	}
	return nil
}

func first(errs ...*Error) *Error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func checkSend(r *apiv1.SendRequest) *Error {
	if len(r.Texts) == 0 {
		return usage("give a text", "there is nothing to send")
	}
	if len(r.Texts) > MaxTexts {
		return usage("split them over several requests", "at most %d texts fit into one request", MaxTexts)
	}
	if r.ReplyTo != "" && len(r.Texts) != 1 {
		return usage("send the reply on its own", "only a single text can be a reply")
	}
	for _, t := range r.Texts {
		if err := CheckText(t); err != nil {
			return err
		}
	}
	if len(r.IdempotencyKey) > MaxKey || !isPrintable(r.IdempotencyKey) {
		return usage("use a short word, such as a UUID", "the idempotency key must be printable and at most %d bytes", MaxKey)
	}
	return first(checkRef("the conversation", r.Conversation), checkOptionalRef("reply_to", r.ReplyTo),
		checkLifetime(r.ExpireS))
}

// CheckText says whether a text may be sent: 1 to protocol.MaxText bytes of
// UTF-8 without control characters, line feed and tab excepted. Control
// characters mean nothing to a reader and are orders to a terminal. A front
// end that splits its input into many texts may call it to name the bad one.
func CheckText(t string) *Error {
	switch {
	case t == "":
		return usage("write something", "the text is empty")
	case len(t) > protocol.MaxText:
		return usage("send it in parts", "the text is %d bytes long and the limit is %d", len(t), protocol.MaxText)
	case !utf8.ValidString(t):
		return usage("convert it to UTF-8 first", "the text is not UTF-8")
	}
	for _, c := range t {
		if c != '\n' && c != '\t' && isControl(c) {
			return usage("remove it; line feed and tab are the only ones allowed", "the text holds the control character U+%04X", c)
		}
	}
	return nil
}

func checkExport(r *apiv1.ExportBundleRequest) *Error {
	if len(r.Contacts) > maxBundleNames || len(r.Invites) > maxBundleNames {
		return usage("leave the names out to carry for all", "at most %d contacts or invites can be named", maxBundleNames)
	}
	if r.Text && len(r.Invites) > 0 {
		return usage("put them into a file", "the keys of an invite do not fit on paper")
	}
	for _, c := range r.Contacts {
		if err := checkRef("the contact", c); err != nil {
			return err
		}
	}
	for _, i := range r.Invites {
		if err := checkRef("the invite", i); err != nil {
			return err
		}
	}
	return checkRange("size", r.Size, protocol.MaxBundle)
}

func checkName(what, s string, emptyOK bool) *Error {
	switch {
	case s == "" && emptyOK:
		return nil
	case strings.TrimSpace(s) == "":
		return usage("give at least one letter", "%s is empty", what)
	case len(s) > MaxName:
		return usage("choose a shorter one", "%s is %d bytes long and the limit is %d", what, len(s), MaxName)
	case !isPrintable(s):
		return usage("use letters, digits, spaces and punctuation", "%s holds characters that can not be shown", what)
	}
	return nil
}

func checkRef(what, s string) *Error {
	if s == "" {
		return usage("name it by its name, its id or the beginning of its id", "%s is not given", what)
	}
	return checkOptionalRef(what, s)
}

func checkOptionalRef(what, s string) *Error {
	if len(s) > MaxRef || !isPrintable(s) {
		return usage("name it by its name, its id or the beginning of its id", "%s is no name or id", what)
	}
	return nil
}

func checkLink(s string) *Error {
	if s == "" || len(s) > MaxLink || !isPrintable(s) {
		return usage("copy the whole link, from its first letter to its last", "this is not an invite link")
	}
	return nil
}

func checkAddress(s string) *Error {
	if s == "" || len(s) > maxAddress || !isPrintable(s) {
		return usage("copy one that kith up --role community prints, such as /ip4/…/tcp/…/p2p/…", "this is not the address of a community node")
	}
	return nil
}

func checkBridgeAddress(s string) *Error {
	if s == "" || len(s) > maxAddress || !isPrintable(s) {
		return usage("copy the whole address that kith bridge invite printed", "this is not the address of a bridge")
	}
	return nil
}

// checkBridge takes an id or an address.
func checkBridge(s string) *Error {
	if len(s) <= MaxRef {
		return checkRef("the bridge", s)
	}
	return checkBridgeAddress(s)
}

func checkSetNode(r *apiv1.SetNodeRequest) *Error {
	l := r.GetLimits()
	var errs []*Error
	given := r.Draining != nil
	for _, f := range []struct {
		what     string
		v        int64
		min, max int64
		show     func(int64) string
	}{
		{"the quota", l.GetQuota(), MinQuota, maxQuota, bytesText},
		{"the quota of a box", l.GetBoxQuota(), minShare, maxQuota, bytesText},
		{"the quota of a tag", l.GetTagQuota(), minShare, maxQuota, bytesText},
		{"the share of requests", l.GetRequestShare(), minShare, maxQuota, bytesText},
		{"the retention", l.GetRetentionS(), minRetention, maxRetention, secondsText},
		{"the time that an unused box is kept", l.GetBoxIdleS(), minRetention, maxRetention, secondsText},
		{"the number of boxes", l.GetBoxes(), 1, maxCount, countText},
		{"the number of tags of a box", l.GetBoxTags(), 1, maxCount, countText},
		{"the rate of a source", l.GetSourceRate(), minRate, maxQuota, bytesText},
	} {
		if f.v == 0 {
			continue
		}
		given = true
		if f.v < f.min || f.v > f.max {
			errs = append(errs, usage("choose a value in this range", "%s must be between %s and %s", f.what, f.show(f.min), f.show(f.max)))
		}
	}
	if !given {
		return usage("see: kith node set --help", "nothing is given to change")
	}
	return first(errs...)
}

// Limits as a person writes them. All of them are whole in the unit shown.
func bytesText(n int64) string {
	units := []string{"bytes", "KiB", "MiB", "GiB", "TiB"}
	i := 0
	for i < len(units)-1 && n%1024 == 0 {
		n, i = n/1024, i+1
	}
	return fmt.Sprintf("%d %s", n, units[i])
}

func secondsText(s int64) string {
	if s%(24*3600) == 0 {
		return fmt.Sprintf("%d days", s/(24*3600))
	}
	return fmt.Sprintf("%d hour", s/3600)
}

func countText(n int64) string { return strconv.FormatInt(n, 10) }

func checkCursor(s string, emptyOK bool) *Error {
	ok := len(s) <= MaxCursor && (s != "" || emptyOK)
	for _, c := range s {
		ok = ok && (c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_' || c == '.')
	}
	if !ok {
		return usage("call it for example weather-bot", "the name of a cursor has 1 to %d letters, digits, dots, dashes or underscores", MaxCursor)
	}
	return nil
}

func checkFrom(s string) *Error {
	if s != "" && s != "now" && s != "start" {
		return usage("use one of the two", "from is either now or start")
	}
	return nil
}

func checkStart(cursor, from string, after uint64) *Error {
	if after != 0 && (cursor != "" || from != "") {
		return usage("name a cursor, or an id to begin after", "a place to begin is given twice")
	}
	return nil
}

func checkRange(what string, v, limit int64) *Error {
	if v < 0 || v > limit {
		return usage("choose a value in this range", "%s must be between 0 and %d", what, limit)
	}
	return nil
}

// checkLifetime checks how many seconds something may live; 0 is the default.
func checkLifetime(seconds int64) *Error {
	if seconds < 0 || seconds > maxLifetime {
		return usage("choose 365 days or less, or leave it at 0", "the expiry is negative or more than 365 days")
	}
	return nil
}

// isControl reports C0, DEL and C1.
func isControl(c rune) bool { return c < 0x20 || c >= 0x7f && c < 0xa0 }

// isPrintable reports whether s is UTF-8 of which nothing changes how the
// rest is shown: no control character, line or paragraph separator, or
// bidirectional control.
func isPrintable(s string) bool {
	if !utf8.ValidString(s) {
		return false
	}
	for _, c := range s {
		if isControl(c) || c == 0x2028 || c == 0x2029 || c == 0x061c || c == 0x200e || c == 0x200f ||
			c >= 0x202a && c <= 0x202e || c >= 0x2066 && c <= 0x2069 {
			return false
		}
	}
	return true
}
