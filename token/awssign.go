package token

import (
	"cmp"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
)

// The values of X-Amz-Content-Sha256 that are not the hash of a body.
const (
	emptySHA256     = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855" // of no byte
	unsignedSHA256  = "UNSIGNED-PAYLOAD"
	streamingSHA256 = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"
)

const (
	amzDate    = "X-Amz-Date"
	amzToken   = "X-Amz-Security-Token"
	amzHash    = "X-Amz-Content-Sha256"
	amzDecoded = "X-Amz-Decoded-Content-Length"
)

// awsSigner signs requests with one set of credentials. It is safe for
// concurrent use.
type awsSigner struct {
	credentials aws.Credentials
	signer      *v4.Signer
	region      string
	service     string
	payload     string
}

// sign signs the request as it will be on the wire. The query becomes its
// canonical form there too (the same parameters, sorted and strictly escaped),
// since then nobody can read it in another way than it was signed; the path goes
// out as it is. Signed are the method, path, query, Host, Content-Type,
// Content-Length and all X-Amz-* headers: what AWS demands, and nothing that a
// hop in between may change.
func (s *awsSigner) sign(r *http.Request) error {
	for _, name := range []string{amzDate, amzToken, amzHash, amzDecoded} {
		delete(r.Header, name)
	}
	hash := emptySHA256
	if r.Body != nil && r.Body != http.NoBody {
		switch s.payload {
		case payloadHash:
			var err error
			if hash, err = spool(r, maxSpool); err != nil {
				return err
			}
		case payloadStreaming:
			hash = streamingSHA256
			if r.ContentLength > 0 {
				r.Header.Set(amzDecoded, strconv.FormatInt(r.ContentLength, 10))
			}
		default:
			hash = unsignedSHA256
		}
	}
	r.Header.Set(amzHash, hash)

	path, _, _ := strings.Cut(r.URL.RequestURI(), "?")
	sent := *r.URL // it may be shared
	sent.RawQuery = canonicalQuery(sent.RawQuery)
	r.URL = &sent

	// The SDK signs all that it is given, and adds its headers there.
	signed := &http.Request{
		Method: r.Method, Host: r.Host, Header: http.Header{},
		URL: &url.URL{Scheme: sent.Scheme, Host: sent.Host, Opaque: normalPath(path), RawQuery: sent.RawQuery},
	}
	if r.Body != nil && len(r.TransferEncoding) == 0 {
		signed.ContentLength = r.ContentLength
	}
	for name, values := range r.Header {
		if name == "Content-Type" || strings.HasPrefix(name, "X-Amz-") {
			signed.Header[name] = slices.Clone(values)
		}
	}
	if err := s.signer.SignHTTP(r.Context(), s.credentials, signed, hash, s.service, s.region, time.Now()); err != nil {
		return &Unavailable{Cause: &Error{Class: Transient, Code: "not_signed", Hint: "the request could not be signed"}}
	}
	for _, name := range []string{"Authorization", amzDate, amzToken} {
		if values, ok := signed.Header[name]; ok {
			r.Header[name] = values
		}
	}
	r.Host = cmp.Or(signed.Host, r.Host) // the SDK signs it without the default port
	return nil
}

// normalPath removes redundant parts of a path: the canonical request of all
// services but S3 has none (RFC 3986 section 5.2.4, and empty segments), whatever
// is on the wire.
func normalPath(path string) string {
	var kept []string
	for segment := range strings.SplitSeq(path, "/") {
		switch segment {
		case "", ".":
		case "..":
			kept = kept[:max(0, len(kept)-1)]
		default:
			kept = append(kept, segment)
		}
	}
	normal := "/" + strings.Join(kept, "/")
	if kept != nil && strings.HasSuffix(path, "/") {
		normal += "/"
	}
	return normal
}

// canonicalQuery brings a raw query into the canonical form of SigV4. No
// parameter is lost: net/url would drop those with a semicolon or a broken
// escape, and so widen a search.
func canonicalQuery(raw string) string {
	type parameter struct{ name, value string }
	var parameters []parameter
	for pair := range strings.SplitSeq(raw, "&") {
		if pair != "" {
			name, value, _ := strings.Cut(pair, "=")
			parameters = append(parameters, parameter{escape(unescape(name)), escape(unescape(value))})
		}
	}
	slices.SortFunc(parameters, func(a, b parameter) int {
		return cmp.Or(strings.Compare(a.name, b.name), strings.Compare(a.value, b.value))
	})
	var b strings.Builder
	for i, p := range parameters {
		if i > 0 {
			b.WriteByte('&')
		}
		b.WriteString(p.name + "=" + p.value)
	}
	return b.String()
}

// unescape decodes a part of a query; a percent sign that begins no escape
// stands for itself.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '+':
			b.WriteByte(' ')
		case c == '%' && i+2 < len(s):
			if v, err := strconv.ParseUint(s[i+1:i+3], 16, 8); err == nil {
				b.WriteByte(byte(v))
				i += 2
				continue
			}
			b.WriteByte(c)
		default:
			b.WriteByte(c)
		}
	}
	return b.String()
}

// escape is UriEncode of the SigV4 documentation: all but RFC 3986's unreserved
// characters.
func escape(s string) string {
	var b strings.Builder
	for i := range len(s) {
		c := s[i]
		if 'A' <= c && c <= 'Z' || 'a' <= c && c <= 'z' || '0' <= c && c <= '9' || strings.IndexByte("-._~", c) >= 0 {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}
