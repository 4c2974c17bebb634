package gateway_test

import (
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
