package bridge

import (
	"bufio"
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"time"
)

// visitTime bounds a visit. A web site that takes longer is left by people too.
const visitTime = 10 * time.Second

// Visit is what somebody finds who opens the front page of a bridge's web site.
type Visit struct {
	Listens bool      // somebody answers at all
	Ends    time.Time // when the certificate that was shown ends; zero: none was
	Answers bool      // the site does, and not with a failure of its own
	Page    bool      // there is a front page
}

// See visits the bridge that listens at an IP address and port of this machine, as
// anybody may who comes by. name is that of the site, empty if it has none; secure
// says that the bridge speaks TLS itself.
func See(ctx context.Context, at, name string, secure bool) (v Visit) {
	ctx, cancel := context.WithTimeout(ctx, visitTime)
	defer cancel()
	raw, err := new(net.Dialer).DialContext(ctx, "tcp", at)
	if err != nil {
		return v
	}
	defer raw.Close()
	defer context.AfterFunc(ctx, func() { raw.Close() })()
	v.Listens = true
	conn, scheme := raw, "http"
	if secure {
		// Who trusts the certificate is not asked here, only how long it lasts.
		c := tls.Client(raw, &tls.Config{ServerName: name, InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}})
		if err := c.HandshakeContext(ctx); err != nil {
			return v
		}
		conn, scheme = c, "https"
		v.Ends = c.ConnectionState().PeerCertificates[0].NotAfter
	}
	if name == "" {
		name = at
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, scheme+"://"+name+"/", nil)
	if err != nil {
		return v
	}
	req.Close = true
	req.Header["User-Agent"] = nil // the library would name itself in the operator's log
	if err := req.Write(conn); err != nil {
		return v
	}
	res, err := http.ReadResponse(bufio.NewReader(conn), req)
	if err != nil {
		return v
	}
	defer res.Body.Close()
	v.Answers = res.StatusCode < http.StatusInternalServerError
	v.Page = v.Answers && res.StatusCode != http.StatusNotFound
	return v
}
