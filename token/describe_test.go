package token_test

import (
	"encoding/base64"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"orthanc-dicomweb-oauth/token"
)

// jwtOf is a JWT with these claims and no good signature.
func jwtOf(claims string) string {
	part := base64.RawURLEncoding.EncodeToString
	return part([]byte(`{"alg":"none"}`)) + "." + part([]byte(claims)) + "." + part([]byte("a signature of 32 bytes or so..."))
}

func TestDescribeTellsTheClaimsAndTheEnd(t *testing.T) {
	for _, row := range []struct{ name, value, want string }{
		{
			"aud and iss as strings", jwtOf(`{"aud":"https://dicom.test","iss":"https://idp.test/v2","sub":"orthanc","exp":4102444800}`),
			`aud "https://dicom.test", iss "https://idp.test/v2"`,
		},
		{"aud as a list", jwtOf(`{"aud":["https://a.test","https://b.test"]}`), `aud "https://a.test" "https://b.test"`},
		{"scope", jwtOf(`{"scope":"dicom.read dicom.write"}`), `scope "dicom.read dicom.write"`},
		{"Entra's scp and roles", jwtOf(`{"roles":["Reader","Writer"],"scp":"Dicom.Read","aud":"x"}`), `aud "x", scp "Dicom.Read", roles "Reader" "Writer"`},
		{"scp as a list, as Okta writes it", jwtOf(`{"scp":["dicom"]}`), `scp "dicom"`},
		{"claims of odd types", jwtOf(`{"aud":17,"iss":{"a":[1]},"roles":[null,true]}`), `aud "17", iss "map[a:[1]]", roles "<nil>" "true"`},
		{"empty claims, which are worth to be seen", jwtOf(`{"aud":"","roles":[]}`), `aud "", roles none`},
		{"a claim that is null", jwtOf(`{"aud":null,"iss":"i"}`), `iss "i"`},
		{"a JWT without any of them", jwtOf(`{"sub":"orthanc"}`), "a JWT without aud, iss, scope or roles"},
		{"opaque", "ya29.opaque-access-token", "not a JWT, so that its claims are unknown"},
		{"encrypted (JWE)", "e30.e30.e30.e30.e30", "not a JWT, so that its claims are unknown"},
		{"three parts, but no Base64", "a.~.c", "not a JWT, so that its claims are unknown"},
		{"three parts, but no object", jwtOf(`["aud"]`), "not a JWT, so that its claims are unknown"},
		{"no value", "", "not a JWT, so that its claims are unknown"},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				tok := token.Token{Value: token.NewSecret(row.value)}
				if got := tok.Describe(); got != row.want {
					t.Errorf("got  %s\nwant %s", got, row.want)
				}
				tok.Expires = time.Now().Add(90*time.Second + time.Millisecond)
				if got, want := tok.Describe(), row.want+", expires in 1m30s"; got != want {
					t.Errorf("got  %s\nwant %s", got, want)
				}
			})
		})
	}
}

// Claims are foreign text: on the operator's terminal they move no cursor and
// begin no line.
func TestDescribeMakesForeignTextHarmless(t *testing.T) {
	long := strings.Repeat("x", 5000)
	for _, claims := range []string{
		`{"aud":"a\u0000\u001b[2J\r\nquery ok\u007f\u0085\u009b31m"}`,
		`{"iss":["\u202etset.pdi//:sptth","\u2028","\ufeff","\ud800"]}`,
		`{"scope":{"\u001b":"\u001b"}}`,
		`{"roles":"` + long + `"}`,
		"{\"aud\":\"\xff\xfe\"}",
	} {
		got := (&token.Token{Value: token.NewSecret(jwtOf(claims))}).Describe()
		for _, r := range got {
			if !strconv.IsPrint(r) {
				t.Errorf("%.40q: %U stands in %q", claims, r, got)
			}
		}
		if len(got) > 300 {
			t.Errorf("%.40q: got %d bytes, want a line", claims, len(got))
		}
	}
}

func TestDescribeShowsNoCredential(t *testing.T) {
	for _, row := range []struct {
		name     string
		settings token.Settings
		want     string
		secrets  []string
	}{
		{
			"aws_sigv4", &token.AWSSigV4{Region: "us-east-1", AccessKeyID: secretValue("AKIDEXAMPLE"), SecretAccessKey: secretValue("secret-4711")},
			"signs each request",
			[]string{"AKIDEXAMPLE", "secret-4711"},
		},
		{
			"basic", &token.Basic{Username: "orthanc", Password: secretValue("secret-4711")},
			"configured",
			[]string{"secret-4711", base64.StdEncoding.EncodeToString([]byte("orthanc:secret-4711"))},
		},
		{"basic, whose password has dots", &token.Basic{Username: "o", Password: secretValue("a.e30.b")}, "configured", []string{"e30"}},
		{"api_key", &token.APIKey{Key: secretValue("secret-4711")}, "configured", []string{"secret-4711"}},
		{"static_bearer", &token.StaticBearer{Token: secretValue("secret-4711")}, "not a JWT, so that its claims are unknown", []string{"secret-4711"}},
		{
			"static_bearer, a JWT", &token.StaticBearer{Token: secretValue(jwtOf(`{"aud":"x"}`))},
			`aud "x"`, strings.Split(jwtOf(`{"aud":"x"}`), "."),
		},
	} {
		t.Run(row.name, func(t *testing.T) {
			a, err := row.settings.Acquirer(token.Env{})
			if err != nil {
				t.Fatal(err)
			}
			tok, err := a.Acquire(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			got := tok.Describe()
			if got != row.want {
				t.Errorf("got %q, want %q", got, row.want)
			}
			for _, secret := range row.secrets {
				if strings.Contains(got, secret) {
					t.Errorf("%q shows %q", got, secret)
				}
			}
		})
	}
}
