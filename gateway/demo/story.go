package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// tell is the story, from the problem to the solution.
func (s *stage) tell(ctx context.Context) error {
	p := s.page
	instance := NewInstance(InstanceOptions{})
	p.heading("A DICOMweb server that wants OAuth2, and an Orthanc that knows only HttpProxy")
	p.line("identity provider", "%s, issues access tokens for %s", s.provider.Issuer(), s.options.TokenLifetime)
	p.line("DICOMweb server", "%s, refuses a request without a valid token", s.server.URL())
	p.line("gateway", "http://%s, one rule and one profile in %s", s.gateway.ProxyAddr, s.file(configFile))
	p.line("Orthanc", "played by this demo, with its requests; it has no credential")

	for _, step := range []struct {
		title string
		act   func(context.Context, *Instance) error
	}{
		{"0  Without the gateway", s.withoutGateway},
		{"1  STOW-RS through the gateway: send an instance", s.sendInstance},
		{"2  QIDO-RS: search for it", s.searchInstance},
		{"3  WADO-RS: get it back", s.retrieveInstance},
		{"4  Tokens expire; the gateway has the next one before that", s.outliveToken},
		{"5  The same with a real Orthanc", s.realOrthanc},
	} {
		p.heading("%s", step.title)
		if err := step.act(ctx, instance); err != nil {
			return fmt.Errorf("demo step %q: %w", step.title, err)
		}
	}
	return nil
}

// withoutGateway shows the problem.
func (s *stage) withoutGateway(ctx context.Context, _ *Instance) error {
	c, err := newClient("", s.server.CAPEM())
	if err != nil {
		return err
	}
	defer c.close()
	s.page.line(direct, "GET /dicom-web/studies")
	a, err := c.do(ctx, "GET", s.server.URL()+"studies", nil, "Accept", "*/*")
	if err != nil {
		return err
	}
	s.page.answer(a.status, "WWW-Authenticate: %s", a.header.Get("WWW-Authenticate"))
	return a.want(401)
}

func (s *stage) sendInstance(ctx context.Context, i *Instance) error {
	body, contentType, err := related(i.File)
	if err != nil {
		return err
	}
	s.page.line(toProxy, "POST /dicom-web/studies · %s, %s bytes of DICOM · no Authorization",
		i.Value(TagPatientName), thousands(len(i.File)))
	a, err := s.through(ctx, "POST", "studies", body, "Accept", dicomJSON, "Content-Type", contentType)
	if err != nil {
		return err
	}
	var stored map[string]jsonAttribute
	if err := json.Unmarshal(a.body, &stored); err != nil {
		return fmt.Errorf("parse STOW-RS answer: %w", err)
	}
	n := len(stored[tagReferencedSequence.String()].Value)
	s.page.answer(a.status, "%d instance stored", n)
	if n != 1 {
		return fmt.Errorf("the server stored %d instances, want 1", n)
	}
	return nil
}

func (s *stage) searchInstance(ctx context.Context, _ *Instance) error {
	s.page.line(toProxy, "GET /dicom-web/studies?PatientName=DEMO*")
	a, err := s.through(ctx, "GET", "studies?PatientName=DEMO%2A", nil, "Accept", "*/*")
	if err != nil {
		return err
	}
	var found []map[string]jsonAttribute
	if err := json.Unmarshal(a.body, &found); err != nil {
		return fmt.Errorf("parse QIDO-RS answer: %w", err)
	}
	s.page.answer(a.status, "%d study found", len(found))
	if len(found) != 1 {
		return fmt.Errorf("the server found %d studies, want 1", len(found))
	}
	return nil
}

func (s *stage) retrieveInstance(ctx context.Context, i *Instance) error {
	s.page.line(toProxy, "GET /dicom-web/studies/%s…", i.StudyInstanceUID()[:20])
	a, err := s.through(ctx, "GET", "studies/"+i.StudyInstanceUID(), nil,
		"Accept", `multipart/related; type="application/dicom"; transfer-syntax=*`)
	if err != nil {
		return err
	}
	file, err := a.firstPart()
	if err != nil {
		return fmt.Errorf("parse WADO-RS answer: %w", err)
	}
	if !bytes.Equal(file, i.File) {
		return fmt.Errorf("the instance came back changed: %d bytes, want the %d that were sent", len(file), len(i.File))
	}
	s.page.answer(a.status, "%s bytes, equal to what was sent", thousands(len(file)))
	return nil
}

// outliveToken searches on and on until the server sees another token. No request may fail meanwhile.
func (s *stage) outliveToken(ctx context.Context, _ *Instance) error {
	lifetime := s.provider.lifetime()
	ctx, cancel := context.WithTimeoutCause(ctx, 2*lifetime+10*time.Second,
		errors.New("the gateway did not refresh its token within two lifetimes"))
	defer cancel()
	tick := time.NewTicker(min(time.Second, lifetime/12))
	defer tick.Stop()

	s.page.line("Orthanc", "searches on; ✓ is a 200, before it the seconds that the token has left")
	s.page.begin("first token")
	defer s.page.end()
	var first Token
	for requests, slowest := 1, time.Duration(0); ; requests++ {
		token, took, err := s.searchQuietly(ctx)
		if err != nil {
			return err
		}
		slowest = max(slowest, took)
		if first.Fingerprint == "" {
			first = token
		}
		if token.Fingerprint != first.Fingerprint {
			s.page.end()
			s.page.begin("next token")
			s.page.more("%d s ✓", token.secondsLeft())
			s.page.end()
			s.page.line("", "refreshed %d s ahead of expiry · %d requests, none failed, the slowest took %d ms",
				first.secondsLeft(), requests, slowest.Milliseconds())
			return nil
		}
		s.page.more("%d s ✓", token.secondsLeft())
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// searchQuietly sends one QIDO-RS request through the gateway, and says which token it had and how long it took.
func (s *stage) searchQuietly(ctx context.Context) (Token, time.Duration, error) {
	begin := time.Now()
	a, err := s.client.do(ctx, "GET", s.server.URL()+"studies?limit=1", nil, "Accept", "*/*")
	if err != nil {
		return Token{}, 0, err
	}
	took := time.Since(begin)
	if err := a.want(200); err != nil {
		return Token{}, 0, err
	}
	token, err := s.lastToken()
	return token, took, err
}

// through sends one of Orthanc's requests through the gateway, and prints what the gateway added to it.
func (s *stage) through(ctx context.Context, method, path string, body []byte, headers ...string) (*answer, error) {
	a, err := s.client.do(ctx, method, s.server.URL()+path, body, headers...)
	if err != nil {
		return nil, fmt.Errorf("%w; look at %s", err, s.file(auditFile))
	}
	if err := a.want(200); err != nil {
		s.page.answer(a.status, "")
		return nil, err
	}
	token, err := s.lastToken()
	if err != nil {
		return nil, err
	}
	s.page.added(token)
	return a, nil
}

// lastToken describes the token of the latest request that the server saw.
func (s *stage) lastToken() (Token, error) {
	requests := s.server.Requests()
	if len(requests) == 0 || requests[len(requests)-1].Token.Fingerprint == "" {
		return Token{}, errors.New("the request reached the server without a bearer token; the gateway did not do its job")
	}
	return requests[len(requests)-1].Token, nil
}
