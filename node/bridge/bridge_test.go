package bridge_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/kith-im/kith/node/api"
	apiv1 "github.com/kith-im/kith/node/api/v1"
	"github.com/kith-im/kith/node/bridge"
	"github.com/kith-im/kith/node/store"
	"github.com/kith-im/kith/node/transport"
)

var _ api.BridgeOperator = (*bridge.Service)(nil)

// open opens the store in dir and the bridge's invites in it.
func open(t testing.TB, dir string) (*bridge.Service, *store.Store) {
	t.Helper()
	st, err := store.Open(store.Options{Dir: dir, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { st.Close() })
	key, err := transport.NewKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	id, err := peer.IDFromPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	s, err := bridge.Open(t.Context(), st, id, func() (transport.VeilAddr, error) {
		return transport.VeilAddr{Host: "www.example.org", Family: 4, Port: 443}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return s, st
}

func TestInvites(t *testing.T) {
	dir := t.TempDir()
	s, st := open(t, dir)
	invite := func(name string) *apiv1.BridgeInvite {
		t.Helper()
		res, err := s.CreateBridgeInvite(t.Context(), &apiv1.CreateBridgeInviteRequest{Name: name})
		if err != nil {
			t.Fatal(err)
		}
		return res.Invite
	}
	path := func(i *apiv1.BridgeInvite) string {
		t.Helper()
		a, err := ma.NewMultiaddr(i.Address)
		if err != nil {
			t.Fatal(err)
		}
		v, err := transport.ParseVeil(a)
		if err != nil {
			t.Fatalf("%s: %v", i.Address, err)
		}
		return v.Path
	}
	ann, ben := invite("ann"), invite("ben")
	if path(ann) == path(ben) || ann.Id == ben.Id {
		t.Fatalf("two invites are one: %v, %v", ann, ben)
	}
	if !strings.Contains(ann.Address, "/p2p/") {
		t.Errorf("the address is %s", ann.Address)
	}
	for _, i := range []*apiv1.BridgeInvite{ann, ben} {
		if !s.Path(path(i)) {
			t.Errorf("the path of %s does not work", i.Name)
		}
	}
	for _, wrong := range []string{"", "/", path(ann)[1:], path(ann) + "A", "/" + path(ann), strings.ToUpper(path(ann))} {
		if s.Path(wrong) {
			t.Errorf("%q works", wrong)
		}
	}

	// One is taken back, at once and for good; the other goes on, after a restart too.
	if _, err := s.RevokeBridgeInvite(t.Context(), &apiv1.RevokeBridgeInviteRequest{Id: ann.Id}); err != nil {
		t.Fatal(err)
	}
	if s.Path(path(ann)) || !s.Path(path(ben)) {
		t.Error("not the one that was taken back ended")
	}
	for _, id := range []string{ann.Id, "99", "x", ""} {
		_, err := s.RevokeBridgeInvite(t.Context(), &apiv1.RevokeBridgeInviteRequest{Id: id})
		var coded api.Coded
		if !errors.As(err, &coded) || coded.ErrorCode() != string(api.CodeNotFound) || coded.ErrorHint() == "" {
			t.Errorf("revoke %q: %v", id, err)
		}
	}
	if err := st.Close(); err != nil {
		t.Fatal(err)
	}
	s, _ = open(t, dir)
	if s.Path(path(ann)) || !s.Path(path(ben)) {
		t.Error("after a restart other paths work")
	}
	res, err := s.ListBridgeInvites(t.Context(), &apiv1.ListBridgeInvitesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if len(res.Invites) != 1 || res.Invites[0].Name != "ben" || res.Invites[0].Id != ben.Id || path(res.Invites[0]) != path(ben) {
		t.Errorf("listed are %v", res.Invites)
	}
	if next := invite("cara"); next.Id == ann.Id {
		t.Error("the id of a revoked invite is given again")
	}
}

func TestInvitesAreBounded(t *testing.T) {
	s, st := open(t, t.TempDir())
	err := st.Update(t.Context(), func(tx *store.Tx) error {
		for i := range 1000 {
			if _, err := tx.AddBridgeInvite(store.BridgeInviteRow{Path: fmt.Appendf(nil, "path %d", i), Created: int64(i)}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.CreateBridgeInvite(context.Background(), &apiv1.CreateBridgeInviteRequest{})
	var coded api.Coded
	if !errors.As(err, &coded) || coded.ErrorCode() != string(api.CodeQuota) {
		t.Errorf("one more: %v", err)
	}
}
