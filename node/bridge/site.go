package bridge

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"os"
	"path"
	"strings"
	"time"
)

// Limits of a site that is fetched from another server.
const (
	siteConnectTime = 10 * time.Second
	siteHeaderTime  = 30 * time.Second
	siteIdleTime    = 90 * time.Second
	siteIdleConns   = 64
)

// Site returns what a bridge shows to everybody who does not know one of its
// secret paths: the files of a folder, or what another web server answers to
// http://HOST or https://HOST. The error is a sentence for the operator.
func Site(spec string) (http.Handler, error) {
	if strings.Contains(spec, "://") {
		return proxySite(spec)
	}
	return fileSite(spec)
}

// fileSite serves a folder as web servers do: index.html for a folder, 404.html
// if it is there for what is not, no lists of files, no hidden files, and no way
// out of the folder.
func fileSite(dir string) (http.Handler, error) {
	root, err := os.OpenRoot(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("there is no folder %s", dir)
	case err != nil:
		return nil, fmt.Errorf("%s is no folder that can be read", dir)
	}
	files := http.FS(siteFiles{root.FS()})
	if f, err := files.Open("/index.html"); err != nil {
		root.Close()
		return nil, fmt.Errorf("%s has no index.html", dir)
	} else if err := f.Close(); err != nil {
		root.Close()
		return nil, err
	}
	server := http.FileServer(files)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			http.Error(w, "405 method not allowed", http.StatusMethodNotAllowed)
			return
		}
		f, err := files.Open(path.Clean("/" + r.URL.Path))
		if err == nil {
			f.Close()
			server.ServeHTTP(w, r)
			return
		}
		page, err := fs.ReadFile(siteFiles{root.FS()}, "404.html")
		if err != nil {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.WriteHeader(http.StatusNotFound)
		if r.Method == http.MethodGet {
			_, _ = w.Write(page) // whoever asked may have gone
		}
	}), nil
}

// siteFiles are the files of a folder that a web site shows.
type siteFiles struct{ fs.FS }

// Open opens a file, or a folder that has an index.html.
func (s siteFiles) Open(name string) (fs.File, error) {
	notThere := &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	for part := range strings.SplitSeq(name, "/") {
		// .well-known is where others look for proofs that a site is one's own.
		if strings.HasPrefix(part, ".") && part != "." && part != ".well-known" {
			return nil, notThere
		}
	}
	f, err := s.FS.Open(name)
	if err != nil {
		return nil, notThere
	}
	info, err := f.Stat()
	if err == nil && info.IsDir() {
		var index fs.File
		if index, err = s.FS.Open(path.Join(name, "index.html")); err == nil {
			err = index.Close()
		}
	}
	if err != nil || !info.IsDir() && !info.Mode().IsRegular() {
		f.Close()
		return nil, notThere
	}
	return f, nil
}

// proxySite passes every request to another web server. One on this machine or
// this network is the operator's own, and gets the visitor's Host and address;
// one elsewhere gets neither.
func proxySite(spec string) (http.Handler, error) {
	target, err := url.Parse(spec)
	switch {
	case err != nil || target.Host == "":
		return nil, errors.New("the site is neither a folder nor a URL")
	case target.Scheme != "http" && target.Scheme != "https":
		return nil, errors.New("the site's URL begins with neither http:// nor https://")
	case target.User != nil || target.RawQuery != "" || target.Fragment != "":
		return nil, errors.New("the site's URL holds more than a server and a path")
	}
	own := local(target.Hostname())
	return &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(target)
			if own {
				r.Out.Host = r.In.Host
				r.SetXForwarded()
			}
			if _, ok := r.In.Header["User-Agent"]; !ok {
				r.Out.Header["User-Agent"] = nil // the library would name itself
			}
		},
		ModifyResponse: func(r *http.Response) error {
			r.Header.Del("Alt-Svc") // of ports that are not this site's
			if to, err := url.Parse(r.Header.Get("Location")); err == nil && to.Host == target.Host && !own {
				to.Scheme, to.Host = "", ""
				if to.Path == "" {
					to.Path = "/"
				}
				r.Header.Set("Location", to.String())
			}
			return nil
		},
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) {
			http.Error(w, http.StatusText(http.StatusBadGateway), http.StatusBadGateway)
		},
		ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError), // it names addresses
		Transport: &http.Transport{
			DialContext:           (&net.Dialer{Timeout: siteConnectTime}).DialContext,
			TLSHandshakeTimeout:   siteConnectTime,
			ResponseHeaderTimeout: siteHeaderTime,
			IdleConnTimeout:       siteIdleTime,
			MaxIdleConnsPerHost:   siteIdleConns,
			DisableCompression:    true, // what the visitor asks for is passed on
			ForceAttemptHTTP2:     true,
		},
	}, nil
}

// local reports whether a host is on this machine or this network.
func local(host string) bool {
	if host == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && (ip.IsLoopback() || ip.IsPrivate() || ip.IsLinkLocalUnicast())
}
