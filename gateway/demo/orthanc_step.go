package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
)

// howToGetOrthanc stands where Orthanc is missing.
const howToGetOrthanc = "skipped: no Orthanc with DICOMweb plugin here (Debian, Ubuntu: apt install orthanc orthanc-dicomweb)"

// realOrthanc lets a real Orthanc send a study through the gateway, where there is one.
func (s *stage) realOrthanc(ctx context.Context, _ *Instance) error {
	choice := s.options.Orthanc
	if choice == OrthancOff {
		s.page.note("skipped: --orthanc off")
		return nil
	}
	where, err := findOrthanc(choice)
	if errors.Is(err, errNoOrthanc) && (choice == OrthancAuto || choice == "") {
		s.page.note("%s", howToGetOrthanc)
		return nil
	}
	if err != nil {
		return cannotFindOrthanc(err)
	}
	if err := s.startOrthanc(ctx, where); err != nil {
		return fmt.Errorf("%w\nto leave Orthanc out: --orthanc off", err)
	}
	return s.sendWithOrthanc(ctx)
}

func cannotFindOrthanc(err error) error {
	return fmt.Errorf("find Orthanc: %w; give the path of its binary, or --orthanc off", err)
}

// startOrthanc starts it with the three settings that a user would add to orthanc.json, and shows them.
func (s *stage) startOrthanc(ctx context.Context, where installation) error {
	proxy := "http://" + s.gateway.ProxyAddr
	started, err := startOrthanc(ctx, where, s.folder, map[string]any{
		"Name":                "orthanc-dicomweb-oauth demo",
		"HttpProxy":           proxy,
		"HttpsCACertificates": s.gateway.CAFile,
		"DicomWeb":            map[string]any{"Servers": map[string]any{"demo": map[string]string{"Url": s.server.URL()}}},
	})
	if err != nil {
		return err
	}
	s.orthanc = started
	var system struct{ Version string }
	if err := s.orthanc.call(ctx, "GET", "/system", nil, &system); err != nil {
		return err
	}
	s.page.line("Orthanc "+system.Version, "%s, with this in orthanc.json:", where.binary)
	s.page.line("", `"HttpProxy": %q,`, proxy)
	s.page.line("", `"HttpsCACertificates": %q,`, s.gateway.CAFile)
	s.page.line("", `"DicomWeb": {"Servers": {"demo": {"Url": %q}}}`, s.server.URL())
	return nil
}

// sendWithOrthanc uploads an instance to Orthanc, has it sent by STOW-RS, and searched by QIDO-RS.
func (s *stage) sendWithOrthanc(ctx context.Context) error {
	instance := NewInstance(InstanceOptions{PatientName: "DEMO^ORTHANC", PatientID: "DEMO2"})
	s.page.line(byHand, "POST /instances · %s", instance.Value(TagPatientName))
	var uploaded struct{ ID string }
	if err := s.orthanc.call(ctx, "POST", "/instances", instance.File, &uploaded); err != nil {
		return err
	}
	resources, err := json.Marshal(map[string][]string{"Resources": {uploaded.ID}})
	if err != nil {
		return fmt.Errorf("write STOW-RS call: %w", err)
	}
	s.page.line(byHand, "POST /dicom-web/servers/demo/stow")
	if err := s.orthanc.call(ctx, "POST", "/dicom-web/servers/demo/stow", resources, new(map[string]any)); err != nil {
		return err
	}
	if err := s.showLast("STOW-RS", "Orthanc reports success"); err != nil {
		return err
	}

	search := fmt.Appendf(nil, `{"Uri": "/studies", "Arguments": {"StudyInstanceUID": %q}}`, instance.StudyInstanceUID())
	s.page.line(byHand, "POST /dicom-web/servers/demo/qido")
	var found []any
	if err := s.orthanc.call(ctx, "POST", "/dicom-web/servers/demo/qido", search, &found); err != nil {
		return err
	}
	if len(found) != 1 {
		return fmt.Errorf("QIDO-RS by Orthanc found %d studies, want 1", len(found))
	}
	return s.showLast("QIDO-RS", "1 study found")
}

// showLast prints the request of Orthanc's that the server saw last, and what became of it.
func (s *stage) showLast(what, result string) error {
	token, err := s.lastToken()
	if err != nil {
		return fmt.Errorf("%s by Orthanc: %w", what, err)
	}
	requests := s.server.Requests()
	last := requests[len(requests)-1]
	s.page.line(toProxy, "%s %s · no Authorization", last.Method, last.Path)
	s.page.added(token)
	s.page.answer(last.Status, "%s", result)
	return nil
}
