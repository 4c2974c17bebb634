package rules

import (
	"strings"
	"testing"
)

func TestParseAuthority(t *testing.T) {
	long := strings.Repeat("a", 63)
	for _, row := range []struct {
		in   string
		port uint16
		want string
	}{
		{"dicom.example.org", 443, "dicom.example.org:443"},
		{"dicom.example.org:8443", 443, "dicom.example.org:8443"},
		{"dicom.example.org:443", 0, "dicom.example.org:443"},
		{"dicom.example.org:00443", 0, "dicom.example.org:443"},
		{"DICOM.Example.ORG", 443, "dicom.example.org:443"},
		{"dicom.example.org.", 443, "dicom.example.org:443"},
		{"DICOM.example.org.:443", 80, "dicom.example.org:443"},
		{"localhost:65535", 443, "localhost:65535"},
		{"orthanc_1:8042", 443, "orthanc_1:8042"}, // container names
		{"1.dicom.example.org", 443, "1.dicom.example.org:443"},
		{"4you", 443, "4you:443"},
		{"0xabc.example.org", 443, "0xabc.example.org:443"},
		{long + ".org", 443, long + ".org:443"},
		// IDNA
		{"bücher.example.org", 443, "xn--bcher-kva.example.org:443"},
		{"BÜCHER.example.org", 443, "xn--bcher-kva.example.org:443"},
		{"xn--bcher-kva.example.org", 443, "xn--bcher-kva.example.org:443"},
		{"XN--BCHER-KVA.example.org", 443, "xn--bcher-kva.example.org:443"},
		{"ｄｉｃｏｍ.example.org", 443, "dicom.example.org:443"},
		{"dicom。example。org", 443, "dicom.example.org:443"},
		// addresses
		{"192.0.2.1", 443, "192.0.2.1:443"},
		{"192.0.2.1:8042", 443, "192.0.2.1:8042"},
		{"[2001:db8::1]", 443, "[2001:db8::1]:443"},
		{"[2001:DB8:0:0:0:0:0:1]:8042", 443, "[2001:db8::1]:8042"},
		{"[2001:db8::192.0.2.1]", 443, "[2001:db8::c000:201]:443"},
		{"[::ffff:192.0.2.1]", 443, "192.0.2.1:443"},
		{"[::ffff:c000:201]:80", 443, "192.0.2.1:80"},
	} {
		t.Run(row.in, func(t *testing.T) {
			got, err := ParseAuthority(row.in, row.port)
			if err != nil || got.String() != row.want {
				t.Fatalf("got %v, %v, want %s", got, err, row.want)
			}
			again, err := ParseAuthority(got.String(), 0)
			if err != nil || again != got {
				t.Errorf("read again: got %v, %v, want the same", again, err)
			}
		})
	}
}

// A resolver may read each of these as an address; only its canonical spelling is one to us.
func TestParseAuthorityRefuses(t *testing.T) {
	for in, want := range map[string]string{
		"":                                   "empty host",
		".":                                  "empty host",
		":443":                               "empty host",
		"..":                                 "empty label",
		".example.org":                       "empty label",
		"example.org..":                      "empty label",
		"example.org。":                       "empty label",
		"dicom example.org":                  `character ' ' is not allowed`,
		"dicom\x00.example.org":              `character '\x00' is not allowed`,
		"dicom.example.org\n":                `character '\n' is not allowed`,
		"user@example.org":                   `character '@' is not allowed`,
		"example.org/x":                      `character '/' is not allowed`,
		"example.org\\x":                     `character '\\' is not allowed`,
		"example.org?x":                      `character '?' is not allowed`,
		"example.org%2e":                     `character '%' is not allowed`,
		"*.example.org":                      `character '*' is not allowed`,
		"a[::1]":                             "needs brackets",
		strings.Repeat("a", 64):              "longer than 63",
		strings.Repeat("a.", 126) + "aa":     "longer than 253",
		"example.org:":                       "empty port",
		"[::1]:":                             "empty port",
		"example.org:0":                      "bad port",
		"example.org:65536":                  "bad port",
		"example.org:-1":                     "bad port",
		"example.org:+443":                   "bad port",
		"example.org:443 ":                   "bad port",
		"example.org:https":                  "bad port",
		"example.org:0x1bb":                  "bad port",
		"::1":                                "needs brackets",
		"2001:db8::1:443":                    "needs brackets",
		"[::1":                               "missing ]",
		"[::1]443":                           "unexpected text",
		"[192.0.2.1]":                        "not an IPv6 address",
		"[example.org]":                      "not an IPv6 address",
		"[]":                                 "not an IPv6 address",
		"[fe80::1%eth0]":                     "zone",
		"[fe80::1%25eth0]:443":               "zone",
		"2130706433":                         "looks like an IP address", // decimal
		"017700000001":                       "looks like an IP address", // octal
		"0x7f000001":                         "looks like an IP address", // hexadecimal
		"0x":                                 "looks like an IP address",
		"127.1":                              "looks like an IP address", // short
		"127.0.1":                            "looks like an IP address",
		"0177.0.0.1":                         "looks like an IP address",
		"127.0.0.01":                         "looks like an IP address",
		"0x7f.0.0.1":                         "looks like an IP address",
		"127.0.0.0X1":                        "looks like an IP address",
		"127.0.0.1.":                         "looks like an IP address",
		"127.0.0.256":                        "looks like an IP address",
		"1.2.3.4.5":                          "looks like an IP address",
		"example.1":                          "looks like an IP address",
		"１２７.0.0.1":                          "looks like an IP address", // full width
		"127。0。0。1":                          "looks like an IP address",
		"①②⑦.0.0.1":                          "looks like an IP address",
		"169.254.169.254.":                   "looks like an IP address",
		strings.Repeat("ü", 60) + ".example": "longer than 63",
	} {
		got, err := ParseAuthority(in, 443)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, %v, want an error with %q", in, got, err, want)
		}
	}
	if got, err := ParseAuthority("example.org", 0); err == nil || err.Error() != "missing port" {
		t.Errorf("no port and no default: got %v, %v", got, err)
	}
}

func TestAuthorityParts(t *testing.T) {
	for _, row := range []struct {
		in, host string
		isIP     bool
		header   string // where the default is 443
	}{
		{"dicom.example.org:443", "dicom.example.org", false, "dicom.example.org"},
		{"dicom.example.org:80", "dicom.example.org", false, "dicom.example.org:80"},
		{"192.0.2.1:443", "192.0.2.1", true, "192.0.2.1"},
		{"[2001:db8::1]:443", "2001:db8::1", true, "[2001:db8::1]"},
		{"[2001:db8::1]:8443", "2001:db8::1", true, "[2001:db8::1]:8443"},
	} {
		a, err := ParseAuthority(row.in, 0)
		if err != nil {
			t.Fatal(err)
		}
		_, isIP := a.IP()
		if a.Host() != row.host || isIP != row.isIP || a.HostHeader(443) != row.header {
			t.Errorf("%s: got host %q, IP %v, header %q, want %q, %v, %q", row.in, a.Host(), isIP, a.HostHeader(443), row.host, row.isIP, row.header)
		}
	}
}

func FuzzParseAuthority(f *testing.F) {
	for _, seed := range []string{
		"dicom.example.org", "DICOM.example.org.:443", "[2001:DB8::1]:80", "[::ffff:192.0.2.1]", "bücher.example.org", "127.1", "0x7f.0.0.1", "１２７.0.0.1", "a:b:c", "[", "xn--a",
	} {
		f.Add(seed, uint16(443))
	}
	f.Fuzz(func(t *testing.T, s string, port uint16) {
		a, err := ParseAuthority(s, port)
		if err != nil {
			if err.Error() == "" {
				t.Error("an error without words")
			}
			return
		}
		if a.Port() == 0 || a.Host() == "" || a.Host() != strings.ToLower(a.Host()) || strings.HasSuffix(a.Host(), ".") {
			t.Errorf("%q: %v is not canonical", s, a)
		}
		for i := range len(a.Host()) {
			if c := a.Host()[i]; c <= ' ' || c >= 0x7f || strings.IndexByte(`/\@?#%[]*`, c) >= 0 {
				t.Errorf("%q: %v has the character %q", s, a, c)
			}
		}
		if again, err := ParseAuthority(a.String(), 0); err != nil || again != a {
			t.Errorf("%q: %v read again is %v, %v", s, a, again, err)
		}
		if again, err := ParseAuthority(a.HostHeader(443), 443); err != nil || again != a {
			t.Errorf("%q: Host %q read again is %v, %v", s, a.HostHeader(443), again, err)
		}
	})
}
