package orthancjson

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"orthanc-dicomweb-oauth/rules"
)

// configOf reads a config of rules with the profile p, after what stands before them.
func configOf(t *testing.T, before, after string) *rules.Config {
	t.Helper()
	path := filepath.Join(t.TempDir(), "gateway.toml")
	text := before + "\n" + after + "\n[profile.p]\ntype = \"static_bearer\"\ntoken = \"s3cr3t\"\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := rules.Load(path, os.LookupEnv)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func inject(name, url string, more ...string) string {
	return fmt.Sprintf("[[rule]]\nname = %q\nurl = %q\nprofile = \"p\"\n%s\n", name, url, strings.Join(more, "\n"))
}

func TestSettingsAreReadyToMerge(t *testing.T) {
	c := configOf(t, "", inject("azure", "https://Dicom.example.org/v2/")+
		inject("read-only", "https://reader.example.org:8443/dicom-web/", `methods = ["GET"]`)+
		inject("many", "https://*.cloud.example.org/")+
		inject("soon", "https://soon.example.org/", `mode = "report"`)+
		"[[rule]]\nname = \"denied\"\nurl = \"https://denied.example.org/\"\naction = \"deny\"\n")
	s, notes, err := NewSettings(c, SettingsOptions{Bundle: "/etc/gateway/ca/bundle.pem"})
	if err != nil {
		t.Fatal(err)
	}
	text, err := s.JSON()
	if err != nil {
		t.Fatal(err)
	}
	want := `{
  "HttpProxy": "http://127.0.0.1:3128",
  "HttpsCACertificates": "/etc/gateway/ca/bundle.pem",
  "HttpTimeout": 3600,
  "DicomWeb": {
    "Servers": {
      "azure": {
        "Url": "https://Dicom.example.org/v2/",
        "HasDelete": true
      },
      "read-only": {
        "Url": "https://reader.example.org:8443/dicom-web/"
      },
      "soon": {
        "Url": "https://soon.example.org/",
        "HasDelete": true
      }
    }
  }
}
`
	if diff := cmp.Diff(want, string(text)); diff != "" {
		t.Error(diff)
	}
	env, err := s.Env()
	if err != nil {
		t.Fatal(err)
	}
	wantEnv := `ORTHANC__HTTP_PROXY=http://127.0.0.1:3128
ORTHANC__HTTPS_CA_CERTIFICATES=/etc/gateway/ca/bundle.pem
ORTHANC__HTTP_TIMEOUT=3600
ORTHANC__DICOM_WEB__SERVERS={"azure":{"Url":"https://Dicom.example.org/v2/","HasDelete":true},"read-only":{"Url":"https://reader.example.org:8443/dicom-web/"},"soon":{"Url":"https://soon.example.org/","HasDelete":true}}
`
	if diff := cmp.Diff(wantEnv, string(env)); diff != "" {
		t.Error(diff)
	}
	for _, want := range []string{`"many" is for many hosts`, `"soon" is in mode report`, "HttpTimeout: ", "NO_PROXY"} {
		if !strings.Contains(strings.Join(notes, "\n"), want) {
			t.Errorf("no note has %q in %q", want, notes)
		}
	}
}

func TestHttpProxyFollowsTheListener(t *testing.T) {
	t.Setenv("PROXY_PASSWORD", "p@ss: w$rd/{x}%&'\"")
	const login = "username = \"orthänc\"\npassword = \"${PROXY_PASSWORD}\"\n"
	for _, c := range []struct{ name, proxy, host, want string }{
		{"loopback", `listen = "127.0.0.1:3128"`, "", "http://127.0.0.1:3128"},
		{"IPv6", `listen = "[::1]:3128"`, "", "http://[::1]:3128"},
		{"a name", `listen = "localhost:3128"`, "", "http://localhost:3128"},
		{"all of IPv4", login + `listen = "0.0.0.0:3128"`, "", "http://USER:PASSWORD@GATEWAY-HOST:3128"},
		{"all", login + `listen = "[::]:3128"`, "", "http://USER:PASSWORD@GATEWAY-HOST:3128"},
		{"all, by no address", login + `listen = ":3128"`, "gateway.example.org", "http://USER:PASSWORD@gateway.example.org:3128"},
		{"another name", `listen = "127.0.0.1:3128"`, "gateway", "http://gateway:3128"},
		{"another address", `listen = "127.0.0.1:3128"`, "fd00::1", "http://[fd00::1]:3128"},
	} {
		t.Run(c.name, func(t *testing.T) {
			config := configOf(t, "[proxy]\n"+c.proxy, inject("azure", "https://dicom.example.org/"))
			s, notes, err := NewSettings(config, SettingsOptions{ProxyHost: c.host})
			if err != nil || s.HTTPProxy != c.want {
				t.Errorf("got %q, %v, want %q", s.HTTPProxy, err, c.want)
			}
			for placeholder, said := range map[string]string{"USER:PASSWORD": "--reveal", "GATEWAY-HOST": "--proxy-host"} {
				if strings.Contains(c.want, placeholder) != strings.Contains(strings.Join(notes, "\n"), said) {
					t.Errorf("got the notes %q; want one with %s exactly where %s stands", notes, said, placeholder)
				}
			}
		})
	}
	config := configOf(t, "[proxy]\n"+login, inject("azure", "https://dicom.example.org/"))
	s, notes, err := NewSettings(config, SettingsOptions{Reveal: true})
	if want := "http://orth%C3%A4nc:p%40ss%3A%20w%24rd%2F%7Bx%7D%25%26%27%22@127.0.0.1:3128"; err != nil || s.HTTPProxy != want {
		t.Errorf("got %q, %v, want %q", s.HTTPProxy, err, want)
	}
	if all := strings.Join(notes, "\n"); strings.Contains(all, "w%24rd") || !strings.Contains(all, "in clear") {
		t.Errorf("got the notes %q, want one about the password, without it", notes)
	}
}

func TestRevealNeedsAReadablePassword(t *testing.T) {
	file := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(file, []byte("pass"), 0o600); err != nil {
		t.Fatal(err)
	}
	config := configOf(t, fmt.Sprintf("[proxy]\nusername = \"u\"\npassword_file = %q\n", file), inject("azure", "https://dicom.example.org/"))
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if _, _, err := NewSettings(config, SettingsOptions{}); err != nil {
		t.Errorf("without reveal: %v", err)
	}
	if _, _, err := NewSettings(config, SettingsOptions{Reveal: true}); err == nil || !strings.HasPrefix(err.Error(), "proxy.password: ") {
		t.Errorf("got %v, want an error that names proxy.password", err)
	}
}

func TestURLInSettingsIsNotEscaped(t *testing.T) {
	s := Settings{DicomWeb: DicomWeb{Servers: map[string]Server{"a": {URL: "https://dicom.example.org/a&b<c>/"}}}}
	text, err := s.JSON()
	if err != nil || !strings.Contains(string(text), "a&b<c>") {
		t.Errorf("got %s, %v", text, err)
	}
	var back Settings
	if err := json.Unmarshal(text, &back); err != nil || !cmp.Equal(s, back) {
		t.Errorf("got %v, %v", back, err)
	}
}
