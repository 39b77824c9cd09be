// Package bridge is what stands around the secret paths of a bridge: the
// operator's web site, which everybody else sees, its certificate, and who was
// given which path. The transport itself is in node/transport.
package bridge

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	apiv1 "github.com/kith-im/kith/node/api/v1"
	"github.com/kith-im/kith/node/store"
	"github.com/kith-im/kith/node/transport"
)

// maxInvites bounds the secret paths of one bridge. One that so many know is no
// secret; the list of them stays small in memory and in one answer.
const maxInvites = 1000

// Service knows who was given which secret path. All methods may be called from
// many goroutines.
type Service struct {
	store   *store.Store
	id      peer.ID
	address func() (transport.VeilAddr, error)
	hashKey [sha256.Size]byte

	mu    sync.RWMutex
	paths map[[sha256.Size]byte]struct{} // by hash under hashKey
}

// Open loads the secret paths. address says where the bridge is reached, without
// a path, and is asked whenever an address is shown.
func Open(ctx context.Context, st *store.Store, id peer.ID, address func() (transport.VeilAddr, error)) (*Service, error) {
	s := &Service{store: st, id: id, address: address, paths: make(map[[sha256.Size]byte]struct{})}
	if _, err := rand.Read(s.hashKey[:]); err != nil {
		return nil, err
	}
	rows, err := s.rows(ctx)
	if err != nil {
		return nil, fmt.Errorf("load the secret paths: %w", err)
	}
	for _, r := range rows {
		s.paths[s.hash(string(r.Path))] = struct{}{}
	}
	return s, nil
}

// Path reports whether a path, without the slash in front, is a secret one. What
// is compared are hashes under a key that nobody knows, so how long it takes says
// nothing about how nearly a guess was right.
func (s *Service) Path(path string) bool {
	h := s.hash(path)
	s.mu.RLock()
	defer s.mu.RUnlock()
	_, ok := s.paths[h]
	return ok
}

// Paths is how many secret paths work.
func (s *Service) Paths() int {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return len(s.paths)
}

func (s *Service) hash(path string) (h [sha256.Size]byte) {
	m := hmac.New(sha256.New, s.hashKey[:])
	m.Write([]byte(path))
	m.Sum(h[:0])
	return h
}

func (s *Service) rows(ctx context.Context) (rows []store.BridgeInviteRow, err error) {
	err = s.store.View(ctx, func(tx *store.Tx) error {
		rows, err = tx.BridgeInvites()
		return err
	})
	return rows, err
}

// CreateBridgeInvite makes a secret path, which works at once.
func (s *Service) CreateBridgeInvite(ctx context.Context, r *apiv1.CreateBridgeInviteRequest) (*apiv1.CreateBridgeInviteResponse, error) {
	path, err := transport.NewPath(rand.Reader)
	if err != nil {
		return nil, err
	}
	row := store.BridgeInviteRow{Name: r.Name, Path: []byte(path), Created: time.Now().UnixMilli()}
	invite, err := s.show(row) // before anything is kept: an address that is not known can not be given
	if err != nil {
		return nil, err
	}
	err = s.store.Update(ctx, func(tx *store.Tx) error {
		n, err := tx.CountBridgeInvites()
		if err != nil {
			return err
		}
		if n >= maxInvites {
			return &inviteError{code: "quota", message: fmt.Sprintf("a bridge has at most %d invites", maxInvites), hint: "take some back with: kith bridge revoke ID"}
		}
		row.ID, err = tx.AddBridgeInvite(row)
		return err
	})
	if err != nil {
		return nil, err
	}
	invite.Id = strconv.FormatInt(row.ID, 10)
	s.mu.Lock()
	s.paths[s.hash(path)] = struct{}{}
	s.mu.Unlock()
	return &apiv1.CreateBridgeInviteResponse{Invite: invite}, nil
}

// ListBridgeInvites returns the invites that work, oldest first.
func (s *Service) ListBridgeInvites(ctx context.Context, _ *apiv1.ListBridgeInvitesRequest) (*apiv1.ListBridgeInvitesResponse, error) {
	rows, err := s.rows(ctx)
	if err != nil {
		return nil, err
	}
	res := &apiv1.ListBridgeInvitesResponse{}
	for _, row := range rows {
		invite, err := s.show(row)
		if err != nil {
			return nil, err
		}
		res.Invites = append(res.Invites, invite)
	}
	return res, nil
}

// RevokeBridgeInvite takes a secret path back. The next request to it gets what
// the site gives, and so do the connections that came over it.
func (s *Service) RevokeBridgeInvite(ctx context.Context, r *apiv1.RevokeBridgeInviteRequest) (*apiv1.RevokeBridgeInviteResponse, error) {
	unknown := &inviteError{code: "not_found", message: "there is no such invite of this bridge", hint: "kith bridge list shows those there are"}
	id, err := strconv.ParseInt(r.Id, 10, 64)
	if err != nil {
		return nil, unknown
	}
	var row store.BridgeInviteRow
	err = s.store.Update(ctx, func(tx *store.Tx) error {
		row, err = tx.DeleteBridgeInvite(id)
		return err
	})
	if errors.Is(err, store.ErrNotFound) {
		return nil, unknown
	}
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	delete(s.paths, s.hash(string(row.Path)))
	s.mu.Unlock()
	return &apiv1.RevokeBridgeInviteResponse{}, nil
}

// show is an invite as the local API has it.
func (s *Service) show(row store.BridgeInviteRow) (*apiv1.BridgeInvite, error) {
	v, err := s.address()
	if err != nil {
		return nil, err
	}
	v.Path = string(row.Path)
	a, err := v.Multiaddr()
	if err != nil {
		return nil, err
	}
	id, err := ma.NewComponent("p2p", s.id.String())
	if err != nil {
		return nil, err
	}
	return &apiv1.BridgeInvite{
		Id: strconv.FormatInt(row.ID, 10), Name: row.Name, Address: a.AppendComponent(id).String(), CreatedMs: row.Created,
	}, nil
}

// inviteError is an error that a person may read; see api.Coded.
type inviteError struct{ code, message, hint string }

func (e *inviteError) Error() string { return e.message }

// ErrorCode returns the code of the local API.
func (e *inviteError) ErrorCode() string { return e.code }

// ErrorHint returns the next step.
func (e *inviteError) ErrorHint() string { return e.hint }
