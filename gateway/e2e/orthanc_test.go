//go:build e2e

package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"testing"
)

// orthanc is a running Orthanc with the DICOMweb plugin.
type orthanc struct {
	url     string
	process *process
}

// startOrthanc starts an Orthanc with settings, and variables of its environment, of its own beside the ones that all have.
// Call ready before using it.
func startOrthanc(t *testing.T, name string, settings map[string]any, env ...string) *orthanc {
	t.Helper()
	binary := program(t, "Orthanc", "/usr/sbin/Orthanc")
	plugin := installed(t, "/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
	port := freePorts(t, 1)[0]
	dir := t.TempDir()
	config := map[string]any{
		"Name":                  name,
		"HttpPort":              port,
		"DicomServerEnabled":    false,
		"RemoteAccessAllowed":   false,
		"AuthenticationEnabled": false,
		"StorageDirectory":      dir,
		"IndexDirectory":        dir,
		"Plugins":               []string{plugin},
	}
	maps.Copy(config, settings)
	text, err := json.MarshalIndent(config, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "orthanc.json")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return &orthanc{url: fmt.Sprintf("http://127.0.0.1:%d", port), process: start(t, name, env, binary, path)}
}

func (o *orthanc) ready(t *testing.T) {
	t.Helper()
	o.process.ready(t, func() error {
		_, err := get(loopbackClient, o.url+"/dicom-web/servers")
		return err
	})
}

// call makes one request of Orthanc's REST API. A body that is not []byte goes as JSON, and the answer is JSON for result
// unless that is nil. The error for a status other than 200 is a statusError.
func (o *orthanc) call(method, path string, body, result any) error {
	payload, ok := body.([]byte)
	if !ok && body != nil {
		var err error
		if payload, err = json.Marshal(body); err != nil {
			return err
		}
	}
	req, err := http.NewRequest(method, o.url+path, bytes.NewReader(payload))
	if err != nil {
		return err
	}
	answer, err := do(loopbackClient, req)
	if err != nil || result == nil {
		return err
	}
	if err := json.Unmarshal(answer, result); err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	return nil
}

// must is call for requests that are not what the test is about.
func (o *orthanc) must(t *testing.T, method, path string, body, result any) {
	t.Helper()
	if err := o.call(method, path, body, result); err != nil {
		t.Fatal(err)
	}
}

// add stores a DICOM file and returns Orthanc's names for the instance and its study.
func (o *orthanc) add(t *testing.T, dicom []byte) (instance, study string) {
	t.Helper()
	var stored struct{ ID, ParentStudy string }
	o.must(t, http.MethodPost, "/instances", dicom, &stored)
	return stored.ID, stored.ParentStudy
}

// file returns the DICOM file of an instance.
func (o *orthanc) file(t *testing.T, instance string) []byte {
	t.Helper()
	dicom, err := get(loopbackClient, o.url+"/instances/"+instance+"/file")
	if err != nil {
		t.Fatal(err)
	}
	return dicom
}

// list returns the names of all resources of a level: instances, series, studies or patients.
func (o *orthanc) list(t *testing.T, level string) []string {
	t.Helper()
	var names []string
	o.must(t, http.MethodGet, "/"+level, nil, &names)
	return names
}

// studyUID returns the Study Instance UID of a study.
func (o *orthanc) studyUID(t *testing.T, study string) string {
	t.Helper()
	var found struct {
		MainDicomTags struct{ StudyInstanceUID string }
	}
	o.must(t, http.MethodGet, "/studies/"+study, nil, &found)
	return found.MainDicomTags.StudyInstanceUID
}

// The rest is Orthanc as a DICOMweb client: each call makes it send one request to the DICOMweb server that its
// configuration names serverName, or one for each study.

const serverName = "protected"

// stow sends resources (STOW-RS).
func (o *orthanc) stow(resources ...string) error {
	return o.call(http.MethodPost, "/dicom-web/servers/"+serverName+"/stow",
		map[string]any{"Resources": resources, "Synchronous": true}, nil)
}

// retrieve fetches studies by their Study Instance UIDs (WADO-RS).
func (o *orthanc) retrieve(studyUIDs ...string) error {
	var resources []map[string]string
	for _, uid := range studyUIDs {
		resources = append(resources, map[string]string{"Study": uid})
	}
	return o.call(http.MethodPost, "/dicom-web/servers/"+serverName+"/retrieve",
		map[string]any{"Resources": resources, "Synchronous": true}, nil)
}

// find returns the Study Instance UIDs of the studies of a patient (QIDO-RS). Its key is exact, since an Orthanc server
// does not decode the %2A that an Orthanc client makes of a wildcard.
func (o *orthanc) find(patientID string) ([]string, error) {
	var found []struct {
		StudyInstanceUID struct{ Value string } `json:"0020000D"`
	}
	err := o.call(http.MethodPost, "/dicom-web/servers/"+serverName+"/qido", map[string]any{
		"Uri": "/studies", "Arguments": map[string]string{"PatientID": patientID},
	}, &found)
	var uids []string
	for _, study := range found {
		uids = append(uids, study.StudyInstanceUID.Value)
	}
	return uids, err
}

// remove deletes a study.
func (o *orthanc) remove(studyUID string) error {
	return o.call(http.MethodPost, "/dicom-web/servers/"+serverName+"/delete",
		map[string]any{"Level": "Study", "StudyInstanceUID": studyUID}, nil)
}

// dicomWebServer is the DicomWeb section for one server with these settings.
func dicomWebServer(settings map[string]any) map[string]any {
	settings["HasDelete"] = true
	return map[string]any{"Servers": map[string]any{serverName: settings}}
}
