// Package api is the local API of a kith daemon: the handlers, the unix socket
// they are served on, and the Client that every front end uses. The schema is
// v1/kith.proto.
//
// The package checks form (sizes, UTF-8, control characters, ranges) and
// translates errors; what a request means is the Backend's business.
package api

import (
	"context"

	apiv1 "github.com/kith-im/kith/node/api/v1"
)

// Backend does what the API asks for. Requests reach it with their form
// already checked.
//
// An error with the methods ErrorCode and ErrorHint (see Coded) is shown to
// the caller as it is: its text must be one sentence fit for a person. Any
// other error is reported as a fault inside the daemon, without its text.
// Methods are called from many goroutines at once and must heed ctx.
type Backend interface {
	Status(context.Context, *apiv1.StatusRequest) (*apiv1.StatusResponse, error)
	Doctor(context.Context, *apiv1.DoctorRequest) (*apiv1.DoctorResponse, error)

	Netcheck(context.Context, *apiv1.NetcheckRequest) (*apiv1.NetcheckResponse, error)
	SetLan(context.Context, *apiv1.SetLanRequest) (*apiv1.SetLanResponse, error)

	GetIdentity(context.Context, *apiv1.GetIdentityRequest) (*apiv1.GetIdentityResponse, error)
	CreateInvite(context.Context, *apiv1.CreateInviteRequest) (*apiv1.CreateInviteResponse, error)
	ListInvites(context.Context, *apiv1.ListInvitesRequest) (*apiv1.ListInvitesResponse, error)
	RevokeInvite(context.Context, *apiv1.RevokeInviteRequest) (*apiv1.RevokeInviteResponse, error)
	AcceptInvite(context.Context, *apiv1.AcceptInviteRequest) (*apiv1.AcceptInviteResponse, error)
	ListRequests(context.Context, *apiv1.ListRequestsRequest) (*apiv1.ListRequestsResponse, error)
	ApproveRequest(context.Context, *apiv1.ApproveRequestRequest) (*apiv1.ApproveRequestResponse, error)
	RejectRequest(context.Context, *apiv1.RejectRequestRequest) (*apiv1.RejectRequestResponse, error)
	ListContacts(context.Context, *apiv1.ListContactsRequest) (*apiv1.ListContactsResponse, error)
	RenameContact(context.Context, *apiv1.RenameContactRequest) (*apiv1.RenameContactResponse, error)
	SetBlocked(context.Context, *apiv1.SetBlockedRequest) (*apiv1.SetBlockedResponse, error)
	HideAddress(context.Context, *apiv1.HideAddressRequest) (*apiv1.HideAddressResponse, error)
	GetSafetyNumber(context.Context, *apiv1.GetSafetyNumberRequest) (*apiv1.GetSafetyNumberResponse, error)
	SetVerified(context.Context, *apiv1.SetVerifiedRequest) (*apiv1.SetVerifiedResponse, error)

	Send(context.Context, *apiv1.SendRequest) (*apiv1.SendResponse, error)
	ListMessages(context.Context, *apiv1.ListMessagesRequest) (*apiv1.ListMessagesResponse, error)
	ListConversations(context.Context, *apiv1.ListConversationsRequest) (*apiv1.ListConversationsResponse, error)
	Trace(context.Context, *apiv1.TraceRequest) (*apiv1.TraceResponse, error)
	Cancel(context.Context, *apiv1.CancelRequest) (*apiv1.CancelResponse, error)
	Ping(context.Context, *apiv1.PingRequest) (*apiv1.PingResponse, error)

	GetMode(context.Context, *apiv1.GetModeRequest) (*apiv1.GetModeResponse, error)
	SetMode(context.Context, *apiv1.SetModeRequest) (*apiv1.SetModeResponse, error)
	ListBridges(context.Context, *apiv1.ListBridgesRequest) (*apiv1.ListBridgesResponse, error)
	AddBridge(context.Context, *apiv1.AddBridgeRequest) (*apiv1.AddBridgeResponse, error)
	RemoveBridge(context.Context, *apiv1.RemoveBridgeRequest) (*apiv1.RemoveBridgeResponse, error)

	// WatchEvents calls emit for one event after another, in the order of
	// their ids, from one goroutine, until ctx ends or emit fails, and returns
	// that error. With auto_ack an event counts as acknowledged once emit has
	// returned nil for it.
	WatchEvents(ctx context.Context, req *apiv1.WatchEventsRequest, emit func(*apiv1.Event) error) error
	ListEvents(context.Context, *apiv1.ListEventsRequest) (*apiv1.ListEventsResponse, error)
	AckEvents(context.Context, *apiv1.AckEventsRequest) (*apiv1.AckEventsResponse, error)
}

// Mailboxes does what the API asks for about the mailboxes of a user, under the
// rules of Backend.
type Mailboxes interface {
	ListMailboxes(context.Context, *apiv1.ListMailboxesRequest) (*apiv1.ListMailboxesResponse, error)
	AddMailbox(context.Context, *apiv1.AddMailboxRequest) (*apiv1.AddMailboxResponse, error)
	RemoveMailbox(context.Context, *apiv1.RemoveMailboxRequest) (*apiv1.RemoveMailboxResponse, error)
	TestMailbox(context.Context, *apiv1.TestMailboxRequest) (*apiv1.TestMailboxResponse, error)
}

// Operator does what the API asks for about a community node, under the rules of
// Backend.
type Operator interface {
	NodeStatus(context.Context, *apiv1.NodeStatusRequest) (*apiv1.NodeStatusResponse, error)
	SetNode(context.Context, *apiv1.SetNodeRequest) (*apiv1.SetNodeResponse, error)
}

// BridgeOperator does what the API asks for about the invites of a bridge, under
// the rules of Backend.
type BridgeOperator interface {
	CreateBridgeInvite(context.Context, *apiv1.CreateBridgeInviteRequest) (*apiv1.CreateBridgeInviteResponse, error)
	ListBridgeInvites(context.Context, *apiv1.ListBridgeInvitesRequest) (*apiv1.ListBridgeInvitesResponse, error)
	RevokeBridgeInvite(context.Context, *apiv1.RevokeBridgeInviteRequest) (*apiv1.RevokeBridgeInviteResponse, error)
}

// notUser, notOperator and notBridge stand where a daemon has no such part.
type (
	notUser     struct{}
	notOperator struct{}
	notBridge   struct{}
)

var (
	errNotUser = &Error{
		Code: CodeRefused, Message: "a community node keeps mail for others and has no mailboxes of its own",
		Hint: "see what it keeps with: kith node status",
	}
	errNotOperator = &Error{
		Code: CodeRefused, Message: "this daemon is a user's and keeps no mail for others",
		Hint: "start a community node with: kith up --role community --home DIR",
	}
	errNotBridge = &Error{
		Code: CodeRefused, Message: "this daemon is no bridge",
		Hint: "start one, in a home of its own, with: kith up --home DIR --role community --bridge --site DIR",
	}
)

func (notUser) ListMailboxes(context.Context, *apiv1.ListMailboxesRequest) (*apiv1.ListMailboxesResponse, error) {
	return nil, errNotUser
}

func (notUser) AddMailbox(context.Context, *apiv1.AddMailboxRequest) (*apiv1.AddMailboxResponse, error) {
	return nil, errNotUser
}

func (notUser) RemoveMailbox(context.Context, *apiv1.RemoveMailboxRequest) (*apiv1.RemoveMailboxResponse, error) {
	return nil, errNotUser
}

func (notUser) TestMailbox(context.Context, *apiv1.TestMailboxRequest) (*apiv1.TestMailboxResponse, error) {
	return nil, errNotUser
}

func (notOperator) NodeStatus(context.Context, *apiv1.NodeStatusRequest) (*apiv1.NodeStatusResponse, error) {
	return nil, errNotOperator
}

func (notOperator) SetNode(context.Context, *apiv1.SetNodeRequest) (*apiv1.SetNodeResponse, error) {
	return nil, errNotOperator
}

func (notBridge) CreateBridgeInvite(context.Context, *apiv1.CreateBridgeInviteRequest) (*apiv1.CreateBridgeInviteResponse, error) {
	return nil, errNotBridge
}

func (notBridge) ListBridgeInvites(context.Context, *apiv1.ListBridgeInvitesRequest) (*apiv1.ListBridgeInvitesResponse, error) {
	return nil, errNotBridge
}

func (notBridge) RevokeBridgeInvite(context.Context, *apiv1.RevokeBridgeInviteRequest) (*apiv1.RevokeBridgeInviteResponse, error) {
	return nil, errNotBridge
}
