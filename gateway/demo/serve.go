package demo

import (
	"context"
	"os"
)

// serve prints what to try by hand, and then each request that reaches the DICOMweb server, until ctx ends.
func (s *stage) serve(ctx context.Context) {
	p := s.page
	seen := s.server.requests.count()
	curl := "curl"
	if os.Getenv("NO_PROXY")+os.Getenv("no_proxy") != "" {
		curl += " --noproxy ''" // else curl may leave the proxy out
	}
	through := curl + " --proxy http://" + s.gateway.ProxyAddr + " --cacert " + s.gateway.CAFile
	p.heading("Try it by hand (Ctrl-C ends the demo)")
	p.note("# search, through the gateway")
	p.note("%s '%sstudies?PatientName=DEMO*'", through, s.server.URL())
	p.note("# retrieve")
	p.note(`%s -H 'Accept: multipart/related; type="application/dicom"' -o study.multipart %sstudies/%s`,
		through, s.server.URL(), s.server.Instances()[0].StudyInstanceUID())
	p.note("# the same search without the gateway: 401")
	p.note("%s -i --cacert %s %sstudies", curl, s.file(serverCAFile), s.server.URL())
	if s.gateway.AdminAddr != "" {
		p.note("# how the gateway is doing")
		p.note("%s http://%s/dicomweb-oauth/status", curl, s.gateway.AdminAddr)
	}
	if s.orthanc != nil {
		p.note("# Orthanc Explorer, with \"send to DICOMweb server\"")
		p.note("%s/app/explorer.html", s.orthanc.url)
	}
	s.showRequests(ctx, seen)
}

// showRequests prints each request after the first seen ones, until ctx ends.
func (s *stage) showRequests(ctx context.Context, seen int) {
	p := s.page
	p.heading("What reaches the DICOMweb server")
	for s.server.WaitRequests(ctx, seen+1) == nil {
		var requests []Request
		requests, seen = s.server.requests.since(seen)
		for _, r := range requests {
			s.showRequest(r)
		}
	}
	p.heading("Stopped.")
}

func (s *stage) showRequest(r Request) {
	credential := "no bearer token"
	if r.Token.Fingerprint != "" {
		credential = "Authorization: Bearer " + r.Token.String()
	}
	s.page.note("%s  %s %s · %s", r.Time.Format("15:04:05"), r.Method, r.Path, credential)
	s.page.answer(r.Status, "")
}
