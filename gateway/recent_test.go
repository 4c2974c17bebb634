package gateway

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"orthanc-dicomweb-oauth/gateway/audit"
)

// ended returns the record of a request that was answered so.
func ended(id string, status int) *audit.Record {
	return &audit.Record{
		Time: time.Now(), RequestID: id, Method: "GET", Authority: "dicom.example.org:443", Route: "/studies", Rule: "archive",
		Profile: "main", Status: status, UpstreamStatus: status, Outcome: audit.Forwarded,
	}
}

func recentOf(s *stats) Recent { return (&Gateway{stats: s}).Recent() }

func TestFailuresOutliveSuccess(t *testing.T) {
	s := newStats()
	s.observe(ended("the failure", http.StatusForbidden))
	for i := range 3 * lastRequests {
		s.observe(ended(fmt.Sprint(i), http.StatusOK))
	}
	all := recentOf(s)
	if len(all.Failures) != 1 || all.Failures[0].RequestID != "the failure" || !strings.Contains(all.Failures[0].Hint, "role") {
		t.Errorf("got the failures %+v, want the one 403 with its hint", all.Failures)
	}
	if s.rules.get("archive").lastFailed.Load() {
		t.Error("the last request is said to have failed")
	}
	if len(all.Requests) != lastRequests || all.Requests[0].RequestID != "299" || all.Requests[lastRequests-1].RequestID != "200" {
		t.Errorf("got %d requests, the first %v and the last %v; want the last 100, newest first", len(all.Requests), all.Requests[0], all.Requests[len(all.Requests)-1])
	}
}

// A server that is down for a night must not push out what went wrong before.
func TestEqualFailuresAreOneRow(t *testing.T) {
	s := newStats()
	s.observe(ended("rare", http.StatusNotFound))
	for i := range 1000 {
		s.observe(ended(fmt.Sprint(i), http.StatusServiceUnavailable))
	}
	all := recentOf(s).Failures
	if len(all) != 2 || all[0].Times != 1000 || all[0].RequestID != "999" || all[1].RequestID != "rare" || all[1].Times != 1 {
		t.Errorf("got %+v, want 1000 times 503, then one 404", all)
	}
	for i := range 2 * lastFailures {
		other := ended("other", http.StatusNotFound)
		other.Authority = fmt.Sprintf("host-%d:443", i)
		s.observe(other)
	}
	if all = recentOf(s).Failures; len(all) != lastFailures || all[0].Authority != "host-99:443" {
		t.Errorf("got %d kinds, the newest %+v; want the last 50", len(all), all[0])
	}
}

func TestMinutesOfTheLastHour(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStats()
		s.observe(ended("", http.StatusOK))
		s.observe(ended("", http.StatusNotFound))
		want := func(i int, requests, failures uint64) {
			t.Helper()
			if m := recentOf(s).Minutes; len(m) != lastMinutes || m[i].Requests != requests || m[i].Failures != failures {
				t.Errorf("minute %d: got %+v, want %d requests and %d failures", i, m, requests, failures)
			}
		}
		want(59, 2, 1)
		time.Sleep(10 * time.Minute)
		want(59, 0, 0)
		want(49, 2, 1)
		time.Sleep(50 * time.Minute) // the same slot again
		want(59, 0, 0)
		want(0, 0, 0)
		s.observe(ended("", http.StatusOK))
		want(59, 1, 0)
	})
}

// Each failure has a hint that says where to look or what to change.
func TestEveryFailureHasAHint(t *testing.T) {
	upstream := func(status int, profile string) audit.Record {
		rec := ended("", knownStatus(status))
		rec.UpstreamStatus, rec.Profile = status, profile
		return *rec
	}
	for name, row := range map[string]struct {
		rec  audit.Record
		want string
	}{
		"upstream 401":                 {upstream(401, "main"), "audience"},
		"upstream 401, nothing sent":   {upstream(401, ""), "profile"},
		"upstream 403":                 {upstream(403, "main"), "role"},
		"upstream 404":                 {upstream(404, "main"), "url"},
		"upstream 409":                 {upstream(409, "main"), "refused instances"},
		"upstream 413":                 {upstream(413, "main"), "size"},
		"upstream 415":                 {upstream(415, "main"), "media type"},
		"upstream 429":                 {upstream(429, "main"), "throttles"},
		"upstream 500":                 {upstream(500, "main"), "log"},
		"upstream 503":                 {upstream(503, "main"), "overloaded"},
		"client gone":                  {audit.Record{Status: statusClientGone, Outcome: audit.ClientGone}, "HttpTimeout"},
		"client gone after the status": {audit.Record{Status: 200, UpstreamStatus: 200, Outcome: audit.ClientGone}, "HttpTimeout"},
		"client stalled":               {audit.Record{Status: statusClientGone, Outcome: audit.Cut, Reason: "client_stalled"}, "stopped sending"},
		"cut":                          {audit.Record{Status: 200, UpstreamStatus: 200, Outcome: audit.Cut}, "broke off"},
		"a problem's own hint":         {audit.Record{Status: 403, Outcome: audit.Refused, Reason: string(noRule), Hint: "add a [[rule]]"}, "add a [[rule]]"},
	} {
		if !row.rec.Failed() {
			t.Errorf("%s: not a failure", name)
		}
		if got := remedy(&row.rec); !strings.Contains(got, row.want) {
			t.Errorf("%s: got %q, want something with %q", name, got, row.want)
		}
	}
	withOwnHint := map[code]bool{
		noRule: true, methodNotAllowed: true, proxyAuthRequired: true, upstreamUnreachable: true, addressRefused: true, redirectRefused: true, upstreamTimeout: true,
	}
	for c := range answers {
		if got := remedy(&audit.Record{Status: answers[c].status, Outcome: audit.Refused, Reason: string(c)}); strings.Contains(got, "documentation") && !withOwnHint[c] {
			t.Errorf("%s: no hint", c)
		}
	}
}

func TestObservingARequestMakesNoGarbage(t *testing.T) {
	s := newStats()
	rec := ended("id", http.StatusOK)
	if n := testing.AllocsPerRun(1000, func() { s.observe(rec) }); n > 0 {
		t.Errorf("got %v allocations for a request, want none", n)
	}
}

// Requests end on many goroutines while the page is looked at.
func TestRecentShowsEachRequestOnceWhileOthersEnd(t *testing.T) {
	s := newStats()
	var all sync.WaitGroup
	for i := range 4 {
		all.Go(func() {
			for j := range 500 {
				s.observe(ended(fmt.Sprint(i, "-", j), []int{200, 403}[j%2]))
			}
		})
	}
	for range 50 {
		seen := map[string]bool{}
		for _, rec := range recentOf(s).Requests {
			if seen[rec.RequestID] {
				t.Errorf("%s is shown twice", rec.RequestID)
			}
			seen[rec.RequestID] = true
		}
	}
	all.Wait()
	if got := recentOf(s); len(got.Requests) != lastRequests || len(got.Failures) != 1 || got.Failures[0].Times != 1000 {
		t.Errorf("in the end there are %d requests and %+v", len(got.Requests), got.Failures)
	}
}
