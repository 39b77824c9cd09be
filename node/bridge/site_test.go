package bridge_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kith-im/kith/node/bridge"
)

func write(t testing.TB, dir, name, text string) {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// ask sends one request to a site and returns the answer and its body.
func ask(t testing.TB, site http.Handler, method, path string) (*http.Response, string) {
	t.Helper()
	w := httptest.NewRecorder()
	site.ServeHTTP(w, httptest.NewRequest(method, path, nil))
	res := w.Result()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res, string(b)
}

func TestFileSite(t *testing.T) {
	outside, dir := t.TempDir(), t.TempDir()
	write(t, outside, "secret.txt", "outside")
	write(t, dir, "index.html", "<p>welcome")
	write(t, dir, "a/index.html", "<p>a")
	write(t, dir, "a/.htpasswd", "hidden")
	write(t, dir, ".git/config", "hidden")
	write(t, dir, ".well-known/security.txt", "Contact: x")
	write(t, dir, "b/file.css", "p{}")
	if err := os.Symlink(filepath.Join(outside, "secret.txt"), filepath.Join(dir, "out.txt")); err != nil {
		t.Fatal(err)
	}
	site, err := bridge.Site(dir)
	if err != nil {
		t.Fatal(err)
	}
	type want struct {
		method, path string
		status       int
		body         string
	}
	for _, c := range []want{
		{"GET", "/", 200, "<p>welcome"},
		{"HEAD", "/", 200, ""},
		{"GET", "/?q=1", 200, "<p>welcome"},
		{"GET", "/a/", 200, "<p>a"},
		{"GET", "/a", 301, ""},
		{"GET", "/index.html", 301, ""},
		{"GET", "/b/file.css", 200, "p{}"},
		{"GET", "/b/", 404, "404 page not found\n"},
		{"GET", "/b", 404, "404 page not found\n"},
		{"GET", "/none", 404, "404 page not found\n"},
		{"GET", "/.git/config", 404, "404 page not found\n"},
		{"GET", "/a/.htpasswd", 404, "404 page not found\n"},
		{"GET", "/.well-known/security.txt", 200, "Contact: x"},
		{"GET", "/out.txt", 404, "404 page not found\n"},
		{"GET", "/../secret.txt", 404, "404 page not found\n"},
		{"GET", "/%2e%2e/secret.txt", 404, "404 page not found\n"},
		{"POST", "/", 405, "405 method not allowed\n"},
		{"POST", "/none", 405, "405 method not allowed\n"},
		{"OPTIONS", "/", 405, "405 method not allowed\n"},
	} {
		res, body := ask(t, site, c.method, c.path)
		if res.StatusCode != c.status || body != c.body {
			t.Errorf("%s %s: %d %q, want %d %q", c.method, c.path, res.StatusCode, body, c.status, c.body)
		}
	}
	write(t, dir, "404.html", "<p>lost")
	if res, body := ask(t, site, "GET", "/none"); res.StatusCode != 404 || body != "<p>lost" || !strings.HasPrefix(res.Header.Get("Content-Type"), "text/html") {
		t.Errorf("with a page of its own: %d %q %v", res.StatusCode, body, res.Header)
	}
	if res, body := ask(t, site, "HEAD", "/none"); res.StatusCode != 404 || body != "" {
		t.Errorf("HEAD: %d %q", res.StatusCode, body)
	}
}

func TestSiteRefused(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "file", "x")
	for _, c := range []struct{ spec, want string }{
		{filepath.Join(dir, "none"), "no folder"},
		{filepath.Join(dir, "file"), "no folder that can be read"},
		{dir, "has no index.html"},
		{"ftp://example.org", "neither http:// nor https://"},
		{"http://", "neither a folder nor a URL"},
		{"http://user:secret@example.org", "more than a server and a path"},
		{"http://example.org/?x", "more than a server and a path"},
	} {
		if _, err := bridge.Site(c.spec); err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v, want %q", c.spec, err, c.want)
		}
	}
}

// TestProxySite holds a proxied site against the server behind it.
func TestProxySite(t *testing.T) {
	var seen *http.Request
	far := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen = r
		w.Header().Set("Server", "nginx/1.22.1")
		w.Header().Set("Alt-Svc", `h3=":443"`)
		switch r.URL.Path {
		case "/base/moved":
			http.Redirect(w, r, "http://"+r.Host+"/base/here", http.StatusFound)
		case "/base/lost":
			w.WriteHeader(http.StatusNotFound)
			_, _ = io.WriteString(w, "lost")
		default:
			_, _ = io.WriteString(w, "hello")
		}
	}))
	site, err := bridge.Site(far.URL + "/base")
	if err != nil {
		t.Fatal(err)
	}
	res, body := ask(t, site, "GET", "/page?q=1")
	if res.StatusCode != 200 || body != "hello" || res.Header.Get("Server") != "nginx/1.22.1" || res.Header.Get("Alt-Svc") != "" {
		t.Errorf("%d %q %v", res.StatusCode, body, res.Header)
	}
	if seen.Host != "example.com" || seen.URL.String() != "/base/page?q=1" || seen.Header.Get("X-Forwarded-For") == "" {
		t.Errorf("the server saw %s %s %v", seen.Host, seen.URL, seen.Header)
	}
	if _, ok := seen.Header["User-Agent"]; ok {
		t.Errorf("the visitor became %q", seen.Header["User-Agent"])
	}
	if res, body := ask(t, site, "POST", "/lost"); res.StatusCode != 404 || body != "lost" || seen.Method != "POST" {
		t.Errorf("POST: %d %q", res.StatusCode, body)
	}
	if res, _ := ask(t, site, "GET", "/moved"); res.Header.Get("Location") != "http://example.com/base/here" {
		t.Errorf("Location: %q", res.Header.Get("Location"))
	}
	far.Close()
	if res, body := ask(t, site, "GET", "/"); res.StatusCode != 502 || body != "Bad Gateway\n" {
		t.Errorf("without the server: %d %q", res.StatusCode, body)
	}
	var names []string
	res, _ = ask(t, site, "GET", "/")
	for name := range res.Header {
		names = append(names, name)
	}
	slices.Sort(names)
	if want := []string{"Content-Type", "X-Content-Type-Options"}; !slices.Equal(names, want) {
		t.Errorf("without the server the headers are %q, want %q", names, want)
	}
}
