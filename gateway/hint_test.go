package gateway_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
)

// What the status page tells of a failure, from the request to the hint.
func TestRecentFailuresCarryTheirHint(t *testing.T) {
	h := newHarness(t, setup{rule: `methods = ["GET"]`, up: newDouble(t, func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusForbidden)
	})})
	h.get("/studies/1.2.3?PatientName="+patient).want(t, http.StatusForbidden)
	h.request("DELETE", "/studies/1.2.3", nil).want(t, http.StatusMethodNotAllowed)
	eventually(t, "two failures", func() bool { return len(h.gw.Recent().Failures) == 2 })
	all := h.gw.Recent()
	for i, want := range []struct{ method, reason, hint string }{
		{"DELETE", "method_not_allowed", "methods"},
		{"GET", "", "role"},
	} {
		f := all.Failures[i]
		if f.Method != want.method || f.Reason != want.reason || !strings.Contains(f.Hint, want.hint) || f.Route != "/studies/{}" {
			t.Errorf("got %+v, want %+v", f, want)
		}
	}
	if len(all.Requests) != 2 || all.Requests[0].Method != "DELETE" {
		t.Errorf("got %+v, want both requests, the newest first", all.Requests)
	}
}

// What a client sends in place of a host is not for the page, since it may be anything.
func TestRecentFailuresQuoteNoClient(t *testing.T) {
	h := newHarness(t, setup{})
	c := dial(t, h.addr)
	fmt.Fprintf(c, "CONNECT %s..x:443 HTTP/1.1\r\nHost: x\r\n\r\n", patient)
	if head := readHead(t, c); !strings.HasPrefix(head, "HTTP/1.1 400 ") {
		t.Fatalf("got %s", head)
	}
	eventually(t, "a failure", func() bool { return len(h.gw.Recent().Failures) == 1 })
	if all := strings.ToLower(fmt.Sprintf("%+v", h.gw.Recent())); strings.Contains(all, strings.ToLower(patient)) {
		t.Errorf("got %s", all)
	}
}

// The log has the hint that the audit log lacks, once for each kind of failure, and nothing that a client has chosen
// decides how often. What is merely not there is no warning.
func TestLogTellsOfEachKindOfFailureOnce(t *testing.T) {
	h := newHarness(t, setup{up: newDouble(t, func(w http.ResponseWriter, r *http.Request) {
		status := http.StatusForbidden
		if strings.Contains(r.URL.Path, "absent") {
			status = http.StatusNotFound
		}
		w.WriteHeader(status)
	})})
	for i := range 3 {
		h.get(fmt.Sprintf("/studies/1.2.%d", i)).want(t, http.StatusForbidden)
		h.get(fmt.Sprintf("/studies/absent-%d", i)).want(t, http.StatusNotFound)
	}
	eventually(t, "six records", func() bool { return len(h.gw.Recent().Requests) == 6 })
	for what, want := range map[string]int{`"level":"WARN","msg":"request failed`: 1, `"level":"INFO","msg":"request failed`: 1, "give the client the role": 1} {
		if n := strings.Count(h.log.String(), what); n != want {
			t.Errorf("%q is %d times in the log, want %d", what, n, want)
		}
	}
}
