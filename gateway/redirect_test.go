package gateway_test

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"testing"
)

// hop is a double that redirects to what the query parameter "to" says.
func hop(t *testing.T) *double {
	t.Helper()
	return newDouble(t, func(w http.ResponseWriter, r *http.Request) {
		status, _ := strconv.Atoi(r.URL.Query().Get("status"))
		w.Header().Set("Location", r.URL.Query().Get("to"))
		w.WriteHeader(max(status, 302))
	})
}

func TestRedirectsPassWhereARuleCoversTheTarget(t *testing.T) {
	t.Parallel()
	up := hop(t)
	h := newHarness(t, setup{up: up, url: up.url + "/dicom-web/", more: passRule("cdn", "cdn.test:443") + fmt.Sprintf(`
[[rule]]
name = "admin"
url = "%s/admin/"
action = "deny"
[[rule]]
name = "plain"
url = "http://plain.test/"
action = "pass"
`, up.url)})
	for _, row := range []struct {
		to      string
		refused bool
	}{
		{to: "/dicom-web/studies"},
		{to: "studies"},
		{to: up.url + "/dicom-web/x?y=1"},
		{to: "https://cdn.test/blob?sig=1"},
		{to: "https://CDN.test:443/"},
		{to: "http://plain.test/x"},
		{to: "/dicom-web/../other", refused: true},
		{to: "/other", refused: true},
		{to: "/admin/x", refused: true},
		{to: "//evil.test/dicom-web/", refused: true},
		{to: "https://evil.test/dicom-web/", refused: true},
		{to: "http://" + up.authority() + "/dicom-web/", refused: true},
		{to: "https://user:pass@cdn.test/", refused: true},
		{to: "ftp://cdn.test/", refused: true},
		{to: "javascript:alert(1)", refused: true},
		{to: "https://[::1", refused: true},
		{to: "https://", refused: true},
	} {
		for _, status := range []int{301, 302, 303, 307, 308} {
			a := h.request("GET", fmt.Sprintf("/dicom-web/%s/%d?status=%d&to=%s", "s", status, status, escape(row.to)), nil)
			if row.refused {
				if _, complaint := a.asProblem(502, "redirect_refused"); complaint != "" || a.header.Get("Location") != "" {
					t.Errorf("%d to %s: %s, Location %q", status, row.to, complaint, a.header.Get("Location"))
				}
			} else if a.status != max(status, 302) || a.header.Get("Location") != row.to {
				t.Errorf("%d to %s: got %d, Location %q", status, row.to, a.status, a.header.Get("Location"))
			}
		}
	}
	h.get("/dicom-web/?to=/other", wado).empty(t, 502)
	// 304 is no redirect, and a 3xx without a Location leads nowhere.
	h.get("/dicom-web/?status=304").want(t, 304)
	h.get("/dicom-web/?status=302&to=").want(t, 302)
}

func escape(s string) string {
	return strings.NewReplacer("%", "%25", "&", "%26", "#", "%23", "?", "%3F", "+", "%2B").Replace(s)
}

func TestRedirectOfAnUploadIsRefused(t *testing.T) {
	t.Parallel()
	up := hop(t)
	h := newHarness(t, setup{up: up})
	for _, status := range []int{302, 307} {
		h.request("POST", fmt.Sprintf("/?status=%d&to=/elsewhere", status), strings.NewReader("hello")).problem(t, 502, "redirect_refused")
	}
	h.raw(strings.Replace(chunked, "POST /", "POST /?to=/x", 1)+"\r\n5\r\nhello\r\n0\r\n\r\n").problem(t, 502, "redirect_refused")
}

// follow does what old Orthanc does: follow, each hop on a new connection.
func (h *harness) follow(start string) (hops int, last answer) {
	h.t.Helper()
	for next := start; ; hops++ {
		authority := h.authority()
		if !strings.Contains(authority, ":") {
			authority += ":443"
		}
		last = talk(secure(h.t, h.addr, authority, "", h.roots()), "GET "+next+" HTTP/1.1\r\nHost: "+h.authority()+"\r\n\r\n")
		if last.status != 302 || hops > 30 {
			return hops, last
		}
		next = strings.TrimPrefix(last.header.Get("Location"), h.up.url)
	}
}

func TestChainOfRedirectsIsCutAfterTenHops(t *testing.T) {
	t.Parallel()
	for name, location := range map[string]func(h *double, n int) string{
		"relative": func(_ *double, n int) string { return fmt.Sprintf("/%d", n) },
		"absolute": func(d *double, n int) string { return fmt.Sprintf("%s/%d", d.url, n) },
		"loop":     func(d *double, _ int) string { return "/0" },
		"pair":     func(d *double, n int) string { return fmt.Sprintf("/%d", n%2) },
	} {
		// The default port is left out of URLs.
		t.Run(name+", default port", func(t *testing.T) {
			var up *double
			up = newDouble(t, func(w http.ResponseWriter, r *http.Request) {
				n, _ := strconv.Atoi(r.URL.Path[1:])
				w.Header().Set("Location", location(up, n+1))
				w.WriteHeader(302)
			})
			h := behindCorporate(t, up, setup{})
			hops, last := h.follow("/0")
			if hops != 10 {
				t.Errorf("got %d hops, want 10", hops)
			}
			last.problem(t, 502, "redirect_refused")
		})
		t.Run(name, func(t *testing.T) {
			var up *double
			up = newDouble(t, func(w http.ResponseWriter, r *http.Request) {
				n, _ := strconv.Atoi(r.URL.Path[1:])
				w.Header().Set("Location", location(up, n+1))
				w.WriteHeader(302)
			})
			h := newHarness(t, setup{up: up})
			hops, last := h.follow("/0")
			if hops != 10 {
				t.Errorf("got %d hops, want 10", hops)
			}
			last.problem(t, 502, "redirect_refused")
		})
	}
}

// Ten hops are a chain's, not a URL's: who comes back later begins anew.
func TestShortChainsMayBeFollowedAgain(t *testing.T) {
	t.Parallel()
	h := newHarness(t, setup{up: newDouble(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/end" {
			return
		}
		w.Header().Set("Location", "/end")
		w.WriteHeader(302)
	})})
	for range 15 {
		if hops, last := h.follow("/0"); hops != 1 || last.status != 200 {
			t.Fatalf("got %d after %d hops, want 200 after 1", last.status, hops)
		}
	}
}

// The redirect is the client's to follow; the gateway goes nowhere.
func TestInvariant5TheGatewayFollowsNoRedirect(t *testing.T) {
	t.Parallel()
	other := newDouble(t, nil)
	up := hop(t)
	h := newHarness(t, setup{up: up, more: fmt.Sprintf("[[rule]]\nname = \"other\"\nurl = \"%s/\"\nprofile = \"main\"\nca_file = \"up.pem\"\nallow_networks = [\"127.0.0.0/8\", \"::1/128\"]\n", other.url)})
	if a := h.get("/?to="+other.url+"/x").want(t, 302); a.header.Get("Location") != other.url+"/x" {
		t.Errorf("got Location %q", a.header.Get("Location"))
	}
	if len(other.all()) != 0 {
		t.Error("the upstream's redirect was followed")
	}

	trap := newDouble(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprint(w, `{"access_token":"stolen","token_type":"Bearer","expires_in":300}`)
	})
	for _, status := range []int{301, 302, 307, 308} {
		h := newHarness(t, setup{token: "max_attempts = 1", before: redirectTo(trap.url, status)})
		h.get("/").problem(t, 503, "token_unavailable")
		if len(h.up.all()) != 0 || trap.connections() != 0 {
			t.Errorf("%d: the provider's redirect was followed", status)
		}
	}
}
