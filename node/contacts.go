package node

import (
	"context"
	"crypto/rand"
	"encoding/base32"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	apiv1 "github.com/kith-im/kith/node/api/v1"
	"github.com/kith-im/kith/node/store"
	"github.com/kith-im/kith/protocol"
	"github.com/kith-im/kith/protocol/identity"
	"github.com/kith-im/kith/protocol/message"
	"github.com/kith-im/kith/protocol/ratchet"
)

// A contact's state moves forward only:
//
//	pending ──► established      we accepted their invite, or they our one-time
//	                             invite, and their device list has arrived
//	request ──► established      they accepted our reusable invite, and we
//	                             approved
//
// Blocked and alarmed are not states: a contact is either beside its state.
func (w *work) moveContact(c *store.ContactRow, to store.ContactState) error {
	if to != store.ContactEstablished || c.State == store.ContactEstablished {
		return fmt.Errorf("node: a contact cannot move from state %d to %d", c.State, to)
	}
	c.State = to
	if err := w.saveContact(*c); err != nil {
		return err
	}
	return w.emitContact(*c, "established")
}

func contactStateName(c store.ContactRow) string {
	switch {
	case c.Blocked:
		return "blocked"
	case c.Alarm != "":
		return "key_changed"
	}
	switch c.State {
	case store.ContactPending:
		return "pending"
	case store.ContactRequest:
		return "request"
	case store.ContactEstablished:
		return "established"
	}
	return "unknown"
}

// addContact gives a new contact its handle and a name, and stores it.
func (w *work) addContact(c *store.ContactRow) error {
	var b [10]byte
	if _, err := io.ReadFull(rand.Reader, b[:]); err != nil {
		return err
	}
	c.Handle = handleEncoding.EncodeToString(b[:])
	if c.Name == "" {
		c.Name = fallbackName(*c)
	}
	var err error
	if c.Name, err = w.freeName(c.Name, 0); err != nil {
		return err
	}
	c.ID, err = w.tx.CreateContact(*c)
	return err
}

var handleEncoding = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// fallbackName is what a contact is called before anybody named it.
func fallbackName(c store.ContactRow) string { return "contact-" + c.Handle[:min(4, len(c.Handle))] }

// freeName returns name, or name with a number behind it if another contact
// has it: two contacts never look the same.
func (w *work) freeName(name string, except int64) (string, error) {
	contacts, err := w.tx.Contacts()
	if err != nil {
		return "", err
	}
	taken := func(n string) bool {
		return slices.ContainsFunc(contacts, func(c store.ContactRow) bool {
			// Nor does a name look like the id of somebody else.
			return c.ID != except && (strings.EqualFold(c.Name, n) || len(n) >= 4 && strings.HasPrefix(c.Handle, strings.ToLower(n)))
		})
	}
	free := name
	for i := 2; taken(free); i++ {
		free = fmt.Sprintf("%s-%d", name, i)
	}
	return free, nil
}

// cleanName makes a name that came from elsewhere fit to be shown: no control
// or invisible characters, no more than protocol.MaxName of the others.
func cleanName(name string) string {
	name = strings.Map(func(r rune) rune {
		switch {
		case unicode.IsSpace(r):
			return ' '
		case !unicode.IsPrint(r), r == utf8.RuneError:
			return -1
		}
		return r
	}, name)
	name = strings.Join(strings.Fields(name), " ")
	for utf8.RuneCountInString(name) > protocol.MaxName {
		_, size := utf8.DecodeLastRuneInString(name)
		name = name[:len(name)-size]
	}
	return strings.TrimSpace(name)
}

// quoteName is a contact's name as an argument of a command.
func quoteName(c store.ContactRow) string {
	if strings.ContainsFunc(c.Name, func(r rune) bool {
		return !unicode.IsLetter(r) && !unicode.IsDigit(r) && r != '-' && r != '_' && r != '.'
	}) {
		return "'" + strings.ReplaceAll(c.Name, "'", "’") + "'"
	}
	return c.Name
}

// resolve finds a contact by name, by id, or by a prefix of its id that fits
// no other. Names win over prefixes.
func resolveContact(tx *store.Tx, word string) (store.ContactRow, error) {
	contacts, err := tx.Contacts()
	if err != nil {
		return store.ContactRow{}, err
	}
	match := func(fits func(store.ContactRow) bool) []store.ContactRow {
		var out []store.ContactRow
		for _, c := range contacts {
			if fits(c) {
				out = append(out, c)
			}
		}
		return out
	}
	for _, fits := range []func(store.ContactRow) bool{
		func(c store.ContactRow) bool { return c.Handle == word },
		func(c store.ContactRow) bool { return c.Name == word },
		func(c store.ContactRow) bool { return strings.EqualFold(c.Name, word) },
		func(c store.ContactRow) bool { return word != "" && strings.HasPrefix(c.Handle, strings.ToLower(word)) },
	} {
		switch found := match(fits); {
		case len(found) == 1:
			return found[0], nil
		case len(found) > 1:
			var names []string
			for _, c := range found {
				names = append(names, fmt.Sprintf("%s (%s)", c.Name, c.Handle))
			}
			return store.ContactRow{}, refuse(CodeUsage, "use one of the ids", "%q fits several contacts: %s", word, strings.Join(names, ", "))
		}
	}
	return store.ContactRow{}, refuse(CodeNotFound, "kith contacts lists the ones you have", "there is no contact %q", word)
}

func (w *work) resolve(word string) (store.ContactRow, error) { return resolveContact(w.tx, word) }

// saveContact stores a contact that has changed.
func (w *work) saveContact(c store.ContactRow) error {
	for _, p := range w.parties {
		if p.contact.ID == c.ID {
			p.contact = c
		}
	}
	return w.tx.SaveContact(c)
}

// lookAgain has the outbox look again at what it may do for a contact.
func (w *work) lookAgain(c store.ContactRow) error {
	devices, err := w.tx.Devices(c.ID)
	for _, d := range devices {
		w.devices[identity.DeviceHash(d.Hash)] = true
	}
	return err
}

// removeContact forgets a contact and all that was exchanged with it.
func (w *work) removeContact(c store.ContactRow) error {
	devices, err := w.tx.Devices(c.ID)
	if err != nil {
		return err
	}
	for _, d := range devices {
		w.devices[identity.DeviceHash(d.Hash)] = true // the outbox ends what has no row
	}
	for id, s := range w.sessions {
		if slices.ContainsFunc(devices, func(d store.DeviceRow) bool { return identity.DeviceHash(d.Hash) == s.device }) {
			delete(w.sessions, id)
			delete(w.live, s.device)
			delete(w.parties, s.device)
		}
	}
	w.n.loaded.forget()
	delete(w.chains, c.ID)
	w.names, w.publish = true, true
	return w.tx.DeleteContact(c.ID)
}

// showContact is a contact as the API shows it.
func (n *Node) showContact(tx *store.Tx, c store.ContactRow) (*apiv1.Contact, error) {
	out := &apiv1.Contact{
		Id: c.Handle, Name: c.Name, State: contactStateName(c), Verified: c.Verified,
		AddedMs: c.Added, LastSeenMs: c.Seen, Conversation: c.Handle, Alarm: c.Alarm, AddressHidden: c.Hidden,
	}
	if len(c.Account) == len(identity.AccountPublic{}) {
		out.Fingerprint = identity.AccountPublic(c.Account).Fingerprint().Text()
	}
	devices, err := tx.Devices(c.ID)
	if err != nil {
		return nil, err
	}
	for _, d := range devices {
		if d.Public != nil {
			out.Devices++
		}
		rows, err := tx.Sessions(d.Hash)
		if err != nil {
			return nil, err
		}
		for _, row := range rows {
			s, err := unmarshalSession(row)
			if err != nil {
				return nil, err
			}
			turns, age := s.ratchet.PQAge(n.now())
			out.PqAgeTurns = max(out.PqAgeTurns, int32(min(turns, 1<<30)))
			out.PqAgeDays = max(out.PqAgeDays, int32(age.Hours()/24))
		}
	}
	return out, nil
}

// ListContacts returns every contact but requests.
func (n *Node) ListContacts(ctx context.Context, _ *apiv1.ListContactsRequest) (*apiv1.ListContactsResponse, error) {
	out := &apiv1.ListContactsResponse{}
	err := n.listContacts(ctx, func(tx *store.Tx, c store.ContactRow) error {
		if c.State == store.ContactRequest && !c.Blocked {
			return nil
		}
		shown, err := n.showContact(tx, c)
		out.Contacts = append(out.Contacts, shown)
		return err
	})
	return out, err
}

// ListRequests returns the people who wait to be approved, with the first
// thing they wrote.
func (n *Node) ListRequests(ctx context.Context, _ *apiv1.ListRequestsRequest) (*apiv1.ListRequestsResponse, error) {
	out := &apiv1.ListRequestsResponse{}
	err := n.listContacts(ctx, func(tx *store.Tx, c store.ContactRow) error {
		if c.State != store.ContactRequest || c.Blocked {
			return nil
		}
		shown, err := n.showContact(tx, c)
		if err != nil {
			return err
		}
		first, err := tx.NextMessages(c.ID, store.MessageRow{Author: []byte{}}, 1)
		if err != nil {
			return err
		}
		for _, m := range first {
			msg, err := message.Decode(m.Wire)
			if err != nil {
				return errors.Join(store.ErrDamaged, err)
			}
			if t, ok := msg.Content.(*message.Text); ok {
				shown.FirstText = t.Body
			}
		}
		out.Requests = append(out.Requests, shown)
		return nil
	})
	return out, err
}

func (n *Node) listContacts(ctx context.Context, each func(*store.Tx, store.ContactRow) error) error {
	if err := n.needUser(); err != nil {
		return err
	}
	return explain(n.view(ctx, func(tx *store.Tx) error {
		contacts, err := tx.Contacts()
		if err != nil {
			return err
		}
		for _, c := range contacts {
			if err := each(tx, c); err != nil {
				return err
			}
		}
		return nil
	}))
}

// changeContact resolves a contact, changes it in one transaction and returns
// how it stands after.
func (n *Node) changeContact(ctx context.Context, word string, change func(*work, *store.ContactRow) error) (*apiv1.Contact, error) {
	if err := n.needUser(); err != nil {
		return nil, err
	}
	var out *apiv1.Contact
	err := n.update(ctx, func(w *work) error {
		c, err := w.resolve(word)
		if err != nil {
			return err
		}
		if err := change(w, &c); err != nil {
			return err
		}
		out, err = n.showContact(w.tx, c)
		return err
	})
	return out, explain(err)
}

// ApproveRequest makes a contact of a request: what they wrote is acknowledged
// from now on, and they learn who we are.
func (n *Node) ApproveRequest(ctx context.Context, req *apiv1.ApproveRequestRequest) (*apiv1.ApproveRequestResponse, error) {
	c, err := n.changeContact(ctx, req.Id, func(w *work, c *store.ContactRow) error {
		if c.State != store.ContactRequest || c.Blocked {
			return refuse(CodeRefused, "kith requests lists the ones that wait", "%s is not waiting to be approved", quoteName(*c))
		}
		return w.approve(c)
	})
	return &apiv1.ApproveRequestResponse{Contact: c}, err
}

// approve makes a contact of a request.
func (w *work) approve(c *store.ContactRow) error {
	if c.Account == nil {
		return refuse(CodeRefused, "try again in a moment", "%s has not introduced itself completely yet", quoteName(*c))
	}
	if err := w.moveContact(c, store.ContactEstablished); err != nil {
		return err
	}
	w.released[c.ID], w.publish = true, true
	if err := w.lookAgain(*c); err != nil {
		return err
	}
	if err := w.introduce(*c); err != nil {
		return err
	}
	return w.shareWith(*c)
}

// RejectRequest forgets a request. Its author learns nothing.
func (n *Node) RejectRequest(ctx context.Context, req *apiv1.RejectRequestRequest) (*apiv1.RejectRequestResponse, error) {
	if err := n.needUser(); err != nil {
		return nil, err
	}
	err := n.update(ctx, func(w *work) error {
		c, err := w.resolve(req.Id)
		if err != nil {
			return err
		}
		if c.State != store.ContactRequest || c.Blocked {
			return refuse(CodeRefused, "kith requests lists the ones that wait", "%s is not waiting to be approved", quoteName(c))
		}
		return w.removeContact(c)
	})
	return &apiv1.RejectRequestResponse{}, explain(err)
}

// RenameContact changes what we call a contact.
func (n *Node) RenameContact(ctx context.Context, req *apiv1.RenameContactRequest) (*apiv1.RenameContactResponse, error) {
	c, err := n.changeContact(ctx, req.Contact, func(w *work, c *store.ContactRow) error {
		name := cleanName(req.Name)
		if name == "" {
			return refuse(CodeUsage, "choose a name with letters in it", "a contact needs a name that can be shown")
		}
		free, err := w.freeName(name, c.ID)
		if err != nil {
			return err
		}
		if free != name {
			return refuse(CodeRefused, "choose another name", "another contact is already called %q", name)
		}
		c.Name = name
		if err := w.saveContact(*c); err != nil {
			return err
		}
		return w.emitContact(*c, "renamed")
	})
	return &apiv1.RenameContactResponse{Contact: c}, err
}

// SetBlocked blocks or unblocks a contact. A blocked contact reaches nobody
// and learns nothing of it.
func (n *Node) SetBlocked(ctx context.Context, req *apiv1.SetBlockedRequest) (*apiv1.SetBlockedResponse, error) {
	c, err := n.changeContact(ctx, req.Contact, func(w *work, c *store.ContactRow) error {
		if c.Blocked == req.Blocked {
			return nil
		}
		c.Blocked = req.Blocked
		if err := w.saveContact(*c); err != nil {
			return err
		}
		if err := w.lookAgain(*c); err != nil {
			return err
		}
		w.names, w.publish, w.released[c.ID] = true, true, receipted(*c)
		what := "blocked"
		if !c.Blocked {
			what = "unblocked"
		}
		return w.emitContact(*c, what)
	})
	return &apiv1.SetBlockedResponse{Contact: c}, err
}

// HideAddress says whether a contact may learn our address. What they know of it
// from before they keep.
func (n *Node) HideAddress(ctx context.Context, req *apiv1.HideAddressRequest) (*apiv1.HideAddressResponse, error) {
	c, err := n.changeContact(ctx, req.Contact, func(w *work, c *store.ContactRow) error {
		if c.Hidden == req.Hidden {
			return nil
		}
		c.Hidden = req.Hidden
		if err := w.saveContact(*c); err != nil {
			return err
		}
		w.hidden, w.moved = true, true
		what := "address hidden"
		if !c.Hidden {
			what = "address shown"
		}
		return errors.Join(w.lookAgain(*c), w.emitContact(*c, what))
	})
	return &apiv1.HideAddressResponse{Contact: c}, err
}

// GetSafetyNumber returns what two people compare to be sure of each other.
func (n *Node) GetSafetyNumber(ctx context.Context, req *apiv1.GetSafetyNumberRequest) (*apiv1.GetSafetyNumberResponse, error) {
	if err := n.needUser(); err != nil {
		return nil, err
	}
	out := &apiv1.GetSafetyNumberResponse{}
	err := n.view(ctx, func(tx *store.Tx) error {
		c, err := resolveContact(tx, req.Contact)
		if err != nil {
			return err
		}
		if out.Contact, err = n.showContact(tx, c); err != nil {
			return err
		}
		if c.Account == nil {
			return refuse(CodeRefused, "wait until kith contacts shows it as established",
				"there is no safety number before %s has introduced itself", quoteName(c))
		}
		theirs := identity.Party{Account: identity.AccountPublic(c.Account)}
		devices, err := tx.Devices(c.ID)
		if err != nil {
			return err
		}
		for _, d := range devices {
			theirs.Devices = append(theirs.Devices, identity.DeviceHash(d.Hash))
		}
		ours := identity.Party{Account: n.self.account.Public(), Devices: []identity.DeviceHash{n.self.device.Hash()}}
		out.Number, out.Qr = identity.SafetyNumber(ours, theirs), identity.SafetyQR(ours, theirs)
		return nil
	})
	return out, explain(err)
}

// SetVerified notes that the user compared safety numbers. That also ends an
// alarm.
func (n *Node) SetVerified(ctx context.Context, req *apiv1.SetVerifiedRequest) (*apiv1.SetVerifiedResponse, error) {
	c, err := n.changeContact(ctx, req.Contact, func(w *work, c *store.ContactRow) error {
		if req.Verified && c.Account == nil {
			return refuse(CodeRefused, "wait until kith contacts shows it as established", "%s has not introduced itself yet", quoteName(*c))
		}
		if req.Verified && c.Alarm != "" {
			c.Alarm = ""
			w.released[c.ID] = true
			if err := w.lookAgain(*c); err != nil {
				return err
			}
		}
		c.Verified = req.Verified
		if err := w.saveContact(*c); err != nil {
			return err
		}
		what := "verified"
		if !req.Verified {
			what = "unverified"
		}
		return w.emitContact(*c, what)
	})
	return &apiv1.SetVerifiedResponse{Contact: c}, err
}

// GetIdentity returns who we are.
func (n *Node) GetIdentity(context.Context, *apiv1.GetIdentityRequest) (*apiv1.GetIdentityResponse, error) {
	if err := n.needUser(); err != nil {
		return nil, err
	}
	list, err := identity.ParseDeviceList(n.self.list, n.self.account.Public())
	if err != nil {
		return nil, err
	}
	out := &apiv1.GetIdentityResponse{Name: n.self.name, Fingerprint: n.self.account.Public().Fingerprint().Text()}
	for _, d := range list.Live() {
		out.Devices = append(out.Devices, &apiv1.Device{
			Id: d.Hex(), Name: fmt.Sprintf("device %d", len(out.Devices)+1), ThisDevice: d == n.self.device.Hash(), AddedMs: n.self.created,
		})
	}
	return out, nil
}

// needUser refuses what only a person's node does.
func (n *Node) needUser() error {
	if n.self == nil {
		return refuse(CodeRefused, "run kith up with another --home for an account of your own", "a community node has no account and talks to nobody")
	}
	return nil
}

// explain turns errors of the store that a person can meet into answers.
func explain(err error) error {
	switch {
	case errors.Is(err, store.ErrFull):
		return refuse(CodeQuota, "free some space and try again", "the disk is full, so nothing was saved")
	case errors.Is(err, store.ErrReadOnly), errors.Is(err, store.ErrClosed):
		return refuse(CodeRefused, "check the disk and restart kith", "kith can only read because saving failed")
	case errors.Is(err, store.ErrDamaged):
		return refuse(CodeRefused, "stop kith and restore the data directory from a backup", "the database is damaged")
	case errors.Is(err, errTooLong), errors.Is(err, message.ErrTextTooLong):
		return refuse(CodeUsage, "send it as several messages", "a text has at most %d bytes", protocol.MaxText)
	case errors.Is(err, ratchet.ErrExhausted):
		return refuse(CodeRefused, "exchange a new invite", "this conversation has used up its keys")
	case errors.Is(err, message.ErrTextInvalid):
		return refuse(CodeUsage, "send some text", "a text must not be empty and must be valid UTF-8")
	}
	return err
}

// messageText is a message's id as users see it.
func messageText(id []byte) string { return hex.EncodeToString(id) }
