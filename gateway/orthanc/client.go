package orthanc

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"orthanc-dicomweb-oauth/rules/orthancjson"
	"orthanc-dicomweb-oauth/token"
)

// maxAnswer bounds what is read of an answer of Orthanc's.
const maxAnswer = 1 << 20

// client speaks with Orthanc's REST API.
type client struct {
	base     *url.URL
	username string
	password token.Secret
	http     *http.Client
	root     string // of the DICOMweb plugin, without slashes at its ends
}

// newClient checks the URL. No proxy is between us and Orthanc, and no redirect
// is followed: the password is for this host.
func newClient(o Options) (*client, error) {
	u, err := url.Parse(o.URL)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, errors.New("the URL of Orthanc does not begin with http:// or https://")
	}
	if u.User != nil {
		return nil, errors.New("the URL of Orthanc has a user or a password in it")
	}
	u.RawQuery, u.Fragment = "", ""
	return &client{base: u, username: o.Username, password: o.Password, http: &http.Client{
		Transport:     &http.Transport{DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

// answerError is an answer of Orthanc's that is not a 200.
type answerError struct{ status int }

// Error implements error. What Orthanc says beside the status may quote others.
func (e answerError) Error() string { return fmt.Sprintf("Orthanc answered HTTP %d", e.status) }

// call makes one request. The path's elements are escaped. A 200 fills result,
// unless that is nil; any other status is an [answerError].
func (c *client) call(ctx context.Context, method string, body, result any, path ...string) error {
	var payload io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return err
		}
		payload = bytes.NewReader(text)
	}
	escaped := make([]string, len(path))
	for i, element := range path {
		escaped[i] = url.PathEscape(element)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base.JoinPath(escaped...).String(), payload)
	if err != nil {
		return err
	}
	if c.username != "" {
		req.SetBasicAuth(c.username, c.password.Reveal())
	}
	resp, err := c.http.Do(req)
	if err != nil {
		if wrapped, ok := errors.AsType[*url.Error](err); ok {
			err = wrapped.Err
		}
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return answerError{resp.StatusCode}
	}
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil || result == nil {
		return err
	}
	if err := json.Unmarshal(text, result); err != nil {
		return fmt.Errorf("the answer of Orthanc is not the JSON that it should be: %w", err)
	}
	return nil
}

// plugin returns the version of the DICOMweb plugin, and notes its root, which
// DicomWeb.Root may have changed.
func (c *client) plugin(ctx context.Context) (version string, err error) {
	var plugin struct{ Version, RootUri string } //nolint:revive // Orthanc's name
	err = c.call(ctx, http.MethodGet, nil, &plugin, "plugins", "dicom-web")
	root := strings.TrimSuffix(plugin.RootUri, "app/client/index.html")
	c.root = cmp.Or(strings.Trim(strings.TrimLeft(root, "./"), "/"), "dicom-web")
	return plugin.Version, err
}

// servers returns the settings of the DICOMweb servers that Orthanc has.
func (c *client) servers(ctx context.Context) (map[string]map[string]any, error) {
	list := map[string]map[string]any{}
	at := *c
	at.base = c.base.JoinPath(c.root, "servers")
	at.base.RawQuery = "expand"
	return list, at.call(ctx, http.MethodGet, nil, &list)
}

// put makes Orthanc have a server, instead of one of that name. Of the old one's
// settings those stay that are no credential.
func (c *client) put(ctx context.Context, name string, s orthancjson.Server, old map[string]any) error {
	settings := map[string]any{}
	for key, value := range old {
		switch value := value.(type) {
		case string:
			switch key {
			case "Username", "Password", "CertificateFile", "CertificateKeyFile", "CertificateKeyPassword":
			default:
				settings[key] = value
			}
		case float64:
			if key == "Timeout" && value > 0 {
				settings[key] = value
			}
		}
	}
	settings["Url"] = s.URL
	delete(settings, "HasDelete")
	if s.HasDelete {
		settings["HasDelete"] = true
	}
	return c.call(ctx, http.MethodPut, settings, nil, c.server(name)...)
}

func (c *client) remove(ctx context.Context, name string) error {
	return c.call(ctx, http.MethodDelete, nil, nil, c.server(name)...)
}

// query makes Orthanc send one QIDO-RS request to a server.
func (c *client) query(ctx context.Context, name string) error {
	return c.call(ctx, http.MethodPost, map[string]any{"Uri": "/studies", "Arguments": map[string]string{"limit": "1"}}, nil,
		append(c.server(name), "qido")...)
}

func (c *client) server(name string) []string { return []string{c.root, "servers", name} }
