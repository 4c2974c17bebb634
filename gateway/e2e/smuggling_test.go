//go:build e2e

package e2e

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// malformed is what a client writes into its tunnel to get two readings of it, or one too many requests. In raw, {n} is
// the row's number and {good} the server. What is meant to be sent goes to /case-{n}; /smuggled-{n} is a request within
// it that must not come into being.
type malformed struct {
	name string
	raw  string

	// status is that of the first answer. 200: /case-{n} arrives once, with this body. Another: it does not, not to its
	// end. 0: there is no answer, since the gateway waits for more until the client ends.
	status int
	body   string

	// on: though it is refused, nobody doubts where it ends, and the connection goes on.
	on bool

	// second: by RFC 9112 what looks smuggled is the next request of this same client.
	second bool
}

// smuggled is the request that hides.
const smuggled = "GET /smuggled-{n} HTTP/1.1\r\nHost: {good}\r\nAuthorization: Bearer " + clientCredential + "\r\n\r\n"

// post is an upload with these header lines and all that follows the head.
func post(lines, rest string) string { return withHead("POST /case-{n} HTTP/1.1", lines) + rest }

// query is one with these header lines.
func query(lines string) string { return withHead("GET /case-{n} HTTP/1.1", lines) }

func withHead(line, lines string) string {
	return line + "\r\nHost: {good}\r\nAuthorization: Bearer " + clientCredential + "\r\n" + lines + "\r\n"
}

// asChunk is text as a whole chunked body.
func asChunk(text string) string { return "{size}\r\n" + text + lastChunk }

const lastChunk = "\r\n0\r\n\r\n"

// refused is a malformed that the gateway refuses as such.
func refused(name, raw string) malformed { return malformed{name: name, raw: raw, status: 400} }

// taken is a malformed that has one reading.
func taken(name, raw, body string) malformed {
	return malformed{name: name, raw: raw, status: 200, body: body}
}

// corpus returns all rows.
func corpus() []malformed {
	return slices.Concat(codings(), lengths(), headerLines(), requestLines(), chunks(), bodies(), connections())
}

// codings are ways to write Transfer-Encoding. Each comes alone, and beside a Content-Length that has another opinion.
func codings() []malformed {
	const chunked = "Transfer-Encoding: chunked\r\n"
	var rows []malformed
	both := func(name, lines string, row func(name, raw string) malformed) {
		rest := "0\r\n\r\n" + smuggled
		rows = append(rows,
			row(name+" and a length over all", post(lines+"Content-Length: {len}\r\n", rest)),
			row(name+" behind a length over all", post("Content-Length: {len}\r\n"+lines, rest)))
	}
	for _, value := range []string{
		"xchunked", "chunkedx", "chunked, identity", "identity, chunked", "identity", "chunked, chunked", "chunked,chunked",
		"gzip, chunked", "chunked, gzip",
		"gzip", "deflate", "\"chunked\"", "'chunked'", "chunked;q=1", "chunked; foo=bar", "chunked,", ",chunked", ", chunked",
		"chun ked", "x chunked", "chunked x",
		"chunked\x0b", "\x0bchunked", "\x0cchunked", "\x00chunked", "chunked\x00", "chunked\x01", "chunked\x7f", "\x85chunked",
		"\xa0chunked", "\xef\xbb\xbfchunked",
		"\u212aunked", "chunked\u2028", "%63hunked", "chunked\\", "null", "-", "chunke", "chunked/1",
	} {
		both(fmt.Sprintf("coding %q", value), "Transfer-Encoding: "+value+"\r\n", refused)
	}
	for _, lines := range []string{
		chunked + chunked,
		chunked + "Transfer-Encoding: identity\r\n",
		"Transfer-Encoding: identity\r\n" + chunked,
		chunked + "transfer-encoding: xchunked\r\n",
		"Transfer-Encoding : chunked\r\n",
		"Transfer-Encoding\t: chunked\r\n",
		"Transfer-Encoding\x0b: chunked\r\n",
		"Transfer-Encoding\x00: chunked\r\n",
		"\x00Transfer-Encoding: chunked\r\n",
		"Transfer-Encoding\r\n: chunked\r\n",
		"Transfer Encoding: chunked\r\n",
		"Transfer-Encoding\xa0: chunked\r\n",
		"Transfer-Encoding:\r\n",
		"Transfer-Encoding: \r\n",
		"X-A: b\rTransfer-Encoding: chunked\r\n",
		"Transfer-Encoding: chunked\rX: b\r\n",
	} {
		both(fmt.Sprintf("lines %q", lines), lines, refused)
	}
	// Not that header, so the length stands.
	for _, line := range []string{
		"Transfer_Encoding: chunked\r\n", "X-Transfer-Encoding: chunked\r\n", "Transfer-Encodings: chunked\r\n",
		"TE: chunked\r\n",
	} {
		rows = append(rows, taken(fmt.Sprintf("line %q beside a length", line), post(line+"Content-Length: {len}\r\n", "0\r\n\r\n"+smuggled), "0\r\n\r\n"+smuggled))
	}
	return rows
}

func lengths() []malformed {
	const hello = "hello" + smuggled
	var rows []malformed
	for _, value := range []string{
		"+5", "-5", "-0", "0x5", "5,5", "5, 6", "5;", "5.0", "5e0", "\u0665", "five", "5 5", "5\t5", "5_0", "\"5\"", "5\x00", "\x005", "5\x0b",
		"18446744073709551616", "18446744073709551621", "9223372036854775808", "99999999999999999999999", "4294967296x", "-1", "NaN", "",
	} {
		rows = append(rows, refused(fmt.Sprintf("length %q", value), post("Content-Length: "+value+"\r\n", hello)))
	}
	for _, lines := range []string{
		"Content-Length: 5\r\nContent-Length: 6\r\n",
		"Content-Length: 0\r\nContent-Length: 5\r\n",
		"Content-Length: 5\r\ncontent-length: {len}\r\n",
		"Content-Length: 5\r\nContent-Length: 5\r\nContent-Length: 6\r\n",
		"Content-Length: 5\r\nContent-Length: +5\r\n",
		"Content-Length : 5\r\n",
		"Content-Length\t: 5\r\n",
		"Content-Length\x00: 5\r\n",
		"Content Length: 5\r\n",
		"Content-Length\r\n : 5\r\n",
		"Content-Length: 5\r\n\x00Content-Length: 6\r\n",
	} {
		rows = append(rows, refused(fmt.Sprintf("lines %q", lines), post(lines, hello)))
	}
	return append(rows,
		taken("the same length twice", post("Content-Length: 5\r\nContent-Length: 5\r\n", "hello"), "hello"),
		taken("length with zeros before", post("Content-Length: 0005\r\n", "hello"), "hello"),
		taken("length between blanks", post("Content-Length: \t5 \t\r\n", "hello"), "hello"),
		taken("length on a folded line", post("Content-Length:\r\n 5\r\n", "hello"), "hello"),
		malformed{name: "length of more than comes", raw: post("Content-Length: 2000\r\n", hello)},
		malformed{name: "length of eight exbibytes", raw: post("Content-Length: 9223372036854775807\r\n", hello)},
		malformed{name: "length shorter than the body", raw: post("Content-Length: 5\r\n", hello), status: 200, body: "hello", second: true},
		malformed{name: "length of nothing", raw: post("Content-Length: 0\r\n", smuggled), status: 200, second: true},
	)
}

func headerLines() []malformed {
	var rows []malformed
	for _, lines := range []string{
		"no colon\r\n", "nocolon\r\n", ": no name\r\n", " : blank name\r\n:\r\n", "X A: b\r\n", "X-A : b\r\n", "X-A\t: b\r\n",
		"(X): b\r\n", "X@A: b\r\n", "X\"A: b\r\n", "X/A: b\r\n",
		"X\x00A: b\r\n", "X-\xc3\xa4: b\r\n", "X-A: a\x00b\r\n", "X-A: a\x01b\r\n", "X-A: a\x1bb\r\n", "X-A: a\x7fb\r\n",
		"X-A: a\rb\r\n", "X-A: a\r\r\n", "\rX-A: b\r\n", "X-A\r: b\r\n",
		"X-A: b\r\n\rGET /smuggled-{n} HTTP/1.1\r\nY: \r\n", "Host: {good}\r\n", "Host: evil.test\r\n", "host: {good}\r\n",
		"HOST:\r\n", "GET /smuggled-{n} HTTP/1.1\r\n",
		"X-A: " + strings.Repeat("a", 70<<10) + "\r\n", strings.Repeat("X-A: b\r\n", 10_000), strings.Repeat("a", 70<<10) + ": b\r\n",
	} {
		name := fmt.Sprintf("lines %.60q", lines)
		rows = append(rows, refused(name, query(lines)))
	}
	rows = append(rows,
		refused("first line folded", "GET /case-{n} HTTP/1.1\r\n Host: evil.test\r\nHost: {good}\r\n\r\n"),
		refused("no Host", "GET /case-{n} HTTP/1.1\r\n\r\n"),
		refused("Host with a blank", "GET /case-{n} HTTP/1.1\r\nHost: {good} evil.test\r\n\r\n"),
		malformed{name: "Host is two", raw: "GET /case-{n} HTTP/1.1\r\nHost: {good},{good}\r\n\r\n", status: 400, on: true},
		refused("Host with a path", "GET /case-{n} HTTP/1.1\r\nHost: {good}/smuggled-{n}\r\n\r\n"),
		taken("folded line", query("X-A: 1\r\n Authorization: Bearer b\r\n"), ""),
		taken("folded with a tab", query("X-A: 1\r\n\tTransfer-Encoding: chunked\r\n"), ""),
		taken("lines end with LF alone", strings.ReplaceAll(query("X-A: b\r\n"), "\r\n", "\n"), ""),
		taken("head ends with LF alone", strings.TrimSuffix(query("X-A: b\r\n"), "\r\n")+"\n", ""),
		taken("empty value", query("X-A:\r\n"), ""),
		taken("value with blanks around", query("X-A: \t b\t \r\n"), ""),
		taken("value in UTF-8", query("X-A: \xc3\xa4\r\n"), ""),
	)
	return rows
}

func requestLines() []malformed {
	var rows []malformed
	for _, line := range []string{
		"GET /case-{n}", "GET /case-{n} ", "GET  /case-{n} HTTP/1.1", "GET /case-{n}  HTTP/1.1", " GET /case-{n} HTTP/1.1",
		"GET\t/case-{n}\tHTTP/1.1", "GET /case-{n} HTTP/1.1 ",
		"GET /case-{n} HTTP/1.1 HTTP/1.1", "GET /case-{n} x HTTP/1.1", "GET /case-{n}\tx HTTP/1.1", "GET /case-{n}\x00 HTTP/1.1",
		"GET /case-{n}\r HTTP/1.1", "GET\x00 /case-{n} HTTP/1.1",
		"GET /case-{n} HTTP/0.9", "GET /case-{n} HTTP/2.0", "GET /case-{n} HTTP/3.0", "GET /case-{n} HTTP/1.10",
		"GET /case-{n} HTTP/01.1", "GET /case-{n} http/1.1", "GET /case-{n} HTTP/1,1",
		"GET /case-{n} HTP/1.1", "GET /case-{n} HTTP/1.", "GET /case-{n} HTTP/", "GET /case-{n} HTTP/-1.1",
		"GET /case-{n} HTTP/1.1\x00", "GET /case-{n} HTTP /1.1", "GET /case-{n} HTTPS/1.1",
		"GET case-{n} HTTP/1.1", "GET ?case-{n} HTTP/1.1", "GET /case-{n}%zz HTTP/1.1",
		"GET ://{good}/case-{n} HTTP/1.1", "\x00GET /case-{n} HTTP/1.1",
		" /case-{n} HTTP/1.1", "/case-{n} HTTP/1.1", "G(T /case-{n} HTTP/1.1", "G\xc3\x84T /case-{n} HTTP/1.1",
		"GET /case-{n}?" + strings.Repeat("a", 70<<10) + " HTTP/1.1",
		"HTTP/1.1 200 OK", "\x16\x03\x01\x00\xa5", "\r", "\n\rGET /case-{n} HTTP/1.1",
	} {
		rows = append(rows, refused(fmt.Sprintf("line %.50q", line), withHead(line, "")))
	}
	for _, line := range []string{
		"get /case-{n} HTTP/1.1", "GETS /case-{n} HTTP/1.1", "TRACE /case-{n} HTTP/1.1", "OPTIONS /case-{n} HTTP/1.1",
		"TRACK /case-{n} HTTP/1.1", "PROPFIND /case-{n} HTTP/1.1",
	} {
		rows = append(rows, malformed{name: "method in " + line, raw: withHead(line, ""), status: 405})
	}
	for _, line := range []string{
		"GET * HTTP/1.1", "GET /case-{n}#fragment HTTP/1.1", "GET /a/../case-{n} HTTP/1.1",
		"GET https://user@{good}/case-{n} HTTP/1.1", "GET https:/case-{n} HTTP/1.1", "CONNECT {good} HTTP/1.1",
		"CONNECT {good}/ HTTP/1.1",
		"PRI * HTTP/2.0",
	} {
		rows = append(rows, malformed{name: "target in " + line, raw: withHead(line, ""), status: 400, on: true})
	}
	for _, line := range []string{
		"GET {good} HTTP/1.1", "GET http://{good}/case-{n} HTTP/1.1", "GET https://evil.test/case-{n} HTTP/1.1",
		"GET ftp://{good}/case-{n} HTTP/1.1", "CONNECT evil.test:443 HTTP/1.1",
	} {
		rows = append(rows, malformed{name: "target in " + line, raw: withHead(line, ""), status: 421})
	}
	return append(rows,
		refused("HTTP/2 preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"),
		refused("HTTP/0.9", "GET /case-{n}\r\n"+smuggled),
		refused("HTTP/1.0", withHead("GET /case-{n} HTTP/1.0", "")),
		malformed{name: "HTTP/1.0 that stays", raw: withHead("GET /case-{n} HTTP/1.0", "Connection: keep-alive\r\n"), status: 400, on: true},
		refused("HTTP/1.0 with chunks", withHead("POST /case-{n} HTTP/1.0", "Transfer-Encoding: chunked\r\n")+asChunk(smuggled)),
		refused("empty line first", "\r\n"+query("")),
		taken("absolute target", withHead("GET https://{good}/case-{n} HTTP/1.1", ""), ""),
		taken("HTTP/1.2", withHead("GET /case-{n} HTTP/1.2", ""), ""),
	)
}

func chunks() []malformed {
	const head = "Transfer-Encoding: chunked\r\n"
	var rows []malformed
	for _, body := range []string{
		"0x5\r\nhello\r\n0\r\n\r\n", "+5\r\nhello\r\n0\r\n\r\n", "-5\r\nhello\r\n0\r\n\r\n", "5g\r\nhello\r\n0\r\n\r\n",
		"\r\nhello\r\n0\r\n\r\n", "5,5\r\nhello\r\n0\r\n\r\n", "5 5\r\nhello\r\n0\r\n\r\n",
		"00000000000000005\r\nhello\r\n0\r\n\r\n", "fffffffffffffffff\r\nhello\r\n0\r\n\r\n",
		"10000000000000005\r\nhello\r\n0\r\n\r\n", "5\r\nhello0\r\n\r\n", "5\r\nhelloXX0\r\n\r\n", "5\r\nhello\n0\r\n\r\n",
		"5\r\nhello\r0\r\n\r\n", "4\r\nhello\r\n0\r\n\r\n", "5\r\nhello\r\n\r\n0\r\n\r\n", "5\x00\r\nhello\r\n0\r\n\r\n",
		"\x005\r\nhello\r\n0\r\n\r\n", "5\rX\r\nhello\r\n0\r\n\r\n", " 5\r\nhello\r\n0\r\n\r\n",
		"5;" + strings.Repeat("a", 20<<10) + "\r\nhello\r\n0\r\n\r\n", "z\r\n\r\n", "\u0665\r\nhello\r\n0\r\n\r\n", "5\r\nhello\r\n0\r\nno colon\r\n\r\n",
		"5\r\nhello\r\n0\r\n" + "GET /smuggled-{n} HTTP/1.1\r\n\r\n", "5\r\nhello\r\n-0\r\n\r\n",
		"5;a\nhello\r\n0\r\n\r\n" + smuggled, "5\nhello\r\n0\r\n\r\n",
	} {
		rows = append(rows, refused(fmt.Sprintf("chunks %.50q", body), post(head, body)))
	}
	return append(rows,
		taken("chunk with an extension", post(head, "5;a=b\r\nhello\r\n0\r\n\r\n"), "hello"),
		taken("chunk with a quoted extension", post(head, "5;a=\"0;b\"\r\nhello\r\n0;c\r\n\r\n"), "hello"),
		taken("chunk size with zeros", post(head, "0005\r\nhello\r\n000\r\n\r\n"), "hello"),
		taken("chunk size with a blank behind", post(head, "5 \r\nhello\r\n0 \r\n\r\n"), "hello"),
		taken("chunk size in capitals", post(head, "A\r\nhellohello\r\n0\r\n\r\n"), "hellohello"),
		taken("request in a chunk", post(head, asChunk(smuggled)), smuggled),
		taken("coding in capitals", post("transfer-encoding: CHUNKED\r\n", asChunk(smuggled)), smuggled),
		taken("coding between blanks", post("Transfer-Encoding: \t chunked \t\r\n", asChunk(smuggled)), smuggled),
		taken("coding on a folded line", post("Transfer-Encoding:\r\n chunked\r\n", asChunk(smuggled)), smuggled),
		taken("trailers", post(head, "5\r\nhello\r\n0\r\nX-A: b\r\n\r\n"), "hello"),
		taken("trailer with a blank in its name", post(head, "5\r\nhello\r\n0\r\nX A: b\r\n\r\n"), "hello"),
		taken("trailer with a length", post(head, "5\r\nhello\r\n0\r\nContent-Length: 100\r\n\r\n"), "hello"),
		refused("trailer with a length that was announced", post(head+"Trailer: Content-Length\r\n", "5\r\nhello\r\n0\r\nContent-Length: 100\r\n\r\n")),
		taken("trailer with a coding", post(head, "5\r\nhello\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n"), "hello"),
		taken("trailer with a credential", post(head+"Trailer: Authorization\r\n", "5\r\nhello\r\n0\r\nAuthorization: Bearer "+clientCredential+"\r\n\r\n"), "hello"),
		taken("trailer with a Host", post(head, "5\r\nhello\r\n0\r\nHost: evil.test\r\n\r\n"), "hello"),
		malformed{name: "chunks without their end", raw: post(head, "5\r\nhello\r\n")},
		malformed{name: "chunk of eight exbibytes", raw: post(head, "7fffffffffffffff\r\nhello\r\n0\r\n\r\n"+smuggled)},
		malformed{name: "chunks, then a request", raw: post(head, "5\r\nhello\r\n0\r\n\r\n"+smuggled), status: 200, body: "hello", second: true},
	)
}

// bodies are bodies where none is expected, and none where one is.
func bodies() []malformed {
	const length = "Content-Length: {len}\r\n"
	var rows []malformed
	for _, method := range []string{"GET", "DELETE", "HEAD", "PUT"} {
		line := method + " /case-{n} HTTP/1.1"
		rows = append(rows,
			taken(method+" with a length", withHead(line, length)+smuggled, smuggled),
			taken(method+" with chunks", withHead(line, "Transfer-Encoding: chunked\r\n")+asChunk(smuggled), smuggled),
			malformed{name: method + " with both", raw: withHead(line, "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n") + asChunk(smuggled), status: 200, body: smuggled},
		)
	}
	return append(rows,
		malformed{name: "upload without a framing", raw: post("", smuggled), status: 200, second: true},
		malformed{name: "TRACE with a body", raw: withHead("TRACE /case-{n} HTTP/1.1", length) + smuggled, status: 405},
		taken("Expect with a length", post(length+"Expect: 100-continue\r\n", smuggled), smuggled),
		taken("Expect with chunks", post("Transfer-Encoding: chunked\r\nExpect: 100-continue\r\n", asChunk(smuggled)), smuggled),
		taken("Expect with both", post("Content-Length: 5\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n", asChunk(smuggled)), smuggled),
		taken("Expect in capitals", post(length+"Expect: 100-CONTINUE\r\n", smuggled), smuggled),
		taken("Expect without a body", query("Expect: 100-continue\r\n"), ""),
		malformed{name: "Expect of nonsense", raw: post(length+"Expect: nonsense\r\n", smuggled), status: 417},
		malformed{name: "Expect twice", raw: post(length+"Expect: 100-continue\r\nExpect: nonsense\r\n", smuggled), status: 200, body: smuggled},
		malformed{name: "Expect of two things", raw: post(length+"Expect: 100-continue, nonsense\r\n", smuggled), status: 200, body: smuggled},
		malformed{name: "Expect in HTTP/1.0", raw: withHead("POST /case-{n} HTTP/1.0", length+"Expect: 100-continue\r\n") + smuggled, status: 400},
		malformed{name: "Expect of no end", raw: post("Content-Length: 500\r\nExpect: 100-continue\r\n", "hello")},
		taken("override of the method", post(length+"X-HTTP-Method-Override: GET\r\n", smuggled), smuggled),
	)
}

// connections are requests that say something of the connection.
func connections() []malformed {
	const hello = "Content-Length: {len}\r\n"
	var rows []malformed
	for _, names := range []string{
		"content-length", "transfer-encoding", "host", "authorization", "close, content-length", "keep-alive, content-length",
		"content-length, transfer-encoding, host, authorization", ",,,", "x\ty",
		"TE", "upgrade", "expect", "connection", "proxy-connection",
	} {
		rows = append(rows, taken(fmt.Sprintf("Connection: %q", names), post(hello+"Connection: "+names+"\r\n", smuggled), smuggled))
	}
	for _, lines := range []string{
		"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n",
		"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZQ==\r\n",
		"Upgrade: TLS/1.0\r\nConnection: Upgrade\r\n", "Upgrade: \x80\r\nConnection: Upgrade\r\n",
		"Proxy-Connection: keep-alive\r\n", "Keep-Alive: timeout=5\r\n", "TE: trailers, deflate\r\n",
		"Trailer: Content-Length\r\n",
		"Proxy-Authorization: Basic " + clientCredential + "\r\n", "Connection: a\r\nConnection: b\r\nConnection: authorization\r\n",
	} {
		rows = append(rows,
			taken(fmt.Sprintf("query with %q", lines), query(lines), ""),
			taken(fmt.Sprintf("upload with %q", lines), post(hello+lines, smuggled), smuggled))
	}
	return append(rows,
		malformed{name: "two requests in one write", raw: query("") + smuggled, status: 200, second: true},
		malformed{name: "half a head", raw: "GET /case-{n} HTTP/1.1\r\nHost: {good}\r\nX-A: "},
	)
}

// smuggling is a row as it was played.
type smuggling struct {
	malformed
	n       int
	sent    string
	answers []reply
}

// fill puts a row's number, the server and the length of what follows the head into text.
func (s *smuggling) fill(text, authority string) string {
	text = strings.NewReplacer("{n}", fmt.Sprintf("%04d", s.n), "{good}", authority).Replace(text)
	head, rest, _ := strings.Cut(text, "\r\n\r\n")
	if chunk, ok := strings.CutPrefix(rest, "{size}\r\n"); ok {
		return fmt.Sprintf("%s\r\n\r\n%x\r\n%s", head, len(strings.TrimSuffix(chunk, lastChunk)), chunk)
	}
	return strings.ReplaceAll(text, "{len}", fmt.Sprint(len(rest)))
}

// play writes the row and an innocent request behind it, and reads all answers. Where the gateway waits for more, the
// client ends.
func (s *smuggling) play(t *testing.T, a *arena, authority string) {
	c := a.tunnel(t, authority)
	s.sent = s.fill(s.raw, authority)
	innocent := fmt.Sprintf("GET /marked-%04d HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", s.n, authority)
	if s.name == "half a head" {
		innocent = ""
	}
	written := make(chan struct{})
	go func() {
		defer close(written)
		_, _ = io.WriteString(c, s.sent+innocent)
	}()
	r := bufio.NewReader(c)
	waited := 400 * time.Millisecond
	if s.status != 0 {
		waited = patience
	}
	for {
		_ = c.SetReadDeadline(time.Now().Add(waited))
		if _, err := r.Peek(1); errors.Is(err, os.ErrDeadlineExceeded) && waited < patience {
			<-written
			_ = c.NetConn().(*net.TCPConn).CloseWrite()
			waited = patience
			continue
		} else if err != nil {
			break
		}
		method, _, _ := strings.Cut(s.raw, " ")
		if len(s.answers) > 0 {
			method = "GET"
		}
		answer := nextReply(r, method)
		if answer.err != nil {
			s.answers = append(s.answers, answer)
			break
		}
		if answer.status >= 200 {
			s.answers = append(s.answers, answer)
		}
	}
	_ = c.Close()
	<-written
}

// wrong says what is wrong with the answers and with what of the row arrived at the server.
func (s *smuggling) wrong(arrived []recorded, authority string) []string {
	var wrong []string
	complain := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	first, passed := 0, 0
	for i, answer := range s.answers {
		if i == 0 {
			first = answer.status
		}
		if answer.code() == "" && answer.status == 200 {
			passed++
		}
	}
	if first != s.status && s.status != 0 {
		complain("got status %d, want %d", first, s.status)
	}
	counts := map[string]int{}
	whole := 0
	for _, r := range arrived {
		kind, _, _ := strings.Cut(strings.TrimPrefix(r.target, "/"), "-")
		if r.whole {
			whole++
			counts[kind]++
		}
		if kind == "case" && r.whole && r.body != s.fill(s.body, authority) {
			complain("the body at the server is %.80q, want %.80q", r.body, s.body)
		}
	}
	if want := map[bool]int{true: 1}[s.status == 200]; counts["case"] != want {
		complain("it arrived %d times, want %d", counts["case"], want)
	}
	if counts["smuggled"] > 0 && !s.second || counts["smuggled"] > 1 {
		complain("what it hides arrived as a request, %d times", counts["smuggled"])
	}
	goesOn := s.on || s.status == 200 || s.status == 405
	if counts["marked"] > 1 || counts["marked"] == 1 && !goesOn {
		complain("the request behind it arrived %d times", counts["marked"])
	}
	if whole != passed {
		complain("%d requests at the server, %d answers of its own at the client", whole, passed)
	}
	return wrong
}

// Whatever a client writes into its tunnel, the server sees one request at most for each one that was accepted, written
// in the one way, with the gateway's credential; and nothing that the client hid in a body or a header.
func TestAttackA08Smuggling(t *testing.T) {
	t.Parallel()
	p := newPKI(t)
	s := startRecorder(t, p, nil)
	a := startArena(t, "", p.inject("archive", s.url(), ""))
	rows := corpus()
	if len(rows) < 150 {
		t.Fatalf("the corpus has %d rows, want 150 at least", len(rows))
	}
	played := make([]*smuggling, len(rows))
	t.Run("play", func(t *testing.T) {
		for i, row := range rows {
			played[i] = &smuggling{malformed: row, n: i}
			t.Run(row.name, func(t *testing.T) {
				t.Parallel()
				played[i].play(t, a, s.authority)
			})
		}
	})
	s.wantOurs(t)

	arrived := make([][]recorded, len(rows))
	ours := regexp.MustCompile(`^/(?:case|marked|smuggled)-(\d{4})$`)
	for _, r := range s.seen() {
		match := ours.FindStringSubmatch(r.target)
		if match == nil {
			t.Errorf("the server got %s %s, which nobody sent", r.method, r.target)
			continue
		}
		var n int
		_, _ = fmt.Sscan(strings.TrimLeft(match[1], "0")+" ", &n)
		arrived[n] = append(arrived[n], r)
	}
	for i, row := range played {
		for _, wrong := range row.wrong(arrived[i], s.authority) {
			t.Errorf("%s (%.200q): %s", row.name, row.sent, wrong)
		}
	}
	t.Logf("%d malformed requests, %d arrived", len(rows), len(s.seen()))
}

// The oracle can fail: the recorder's parser takes one way to write a request, and calls all others a breach.
func TestRecorderSeesFaults(t *testing.T) {
	t.Parallel()
	const head = "POST /x HTTP/1.1\r\nHost: a\r\n"
	for text, good := range map[string]bool{
		"GET /x?a=b HTTP/1.1\r\nHost: a\r\nX: \r\n\r\n":                                    true,
		head + "Content-Length: 5\r\n\r\nhello":                                            true,
		head + "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n":                 true,
		head + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n":          false,
		head + "Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello":                       false,
		head + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n": false,
		head + "Transfer-Encoding: Chunked\r\n\r\n0\r\n\r\n":                               false,
		head + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n":                         false,
		head + "Content-Length: +5\r\n\r\nhello":                                           false,
		head + "Content-Length: 05\r\n\r\nhello":                                           false,
		head + "Content-Length : 5\r\n\r\nhello":                                           false,
		head + "X: a\r\n b\r\n\r\n":                                                        false,
		head + "X: a\n\r\n":                                                                false,
		head + "X: a\rb\r\n\r\n":                                                           false,
		head + "X: a\x00b\r\n\r\n":                                                         false,
		head + "Host: b\r\n\r\n":                                                           false,
		head + "Transfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\n\r\n":             false,
		head + "Transfer-Encoding: chunked\r\n\r\n5\nhello\r\n0\r\n\r\n":                   false,
		head + "Transfer-Encoding: chunked\r\n\r\n5\r\nhello0\r\n\r\n":                     false,
		head + "Transfer-Encoding: chunked\r\n\r\n0\r\nX: trailer\r\n\r\n":                 false,
		"POST /x HTTP/1.1\r\n\r\n":                                                         false,
		"GET /x HTTP/1.0\r\nHost: a\r\n\r\n":                                               false,
		"GET https://a/ HTTP/1.1\r\nHost: a\r\n\r\n":                                       false,
		"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n":                                             false,
		"hello\r\n\r\n":                                                                    false,
	} {
		_, err := readStrictly(bufio.NewReader(strings.NewReader(text)))
		if _, found := errors.AsType[breach](err); found == good || good && err != nil {
			t.Errorf("%q: got %v, want it taken: %v", text, err, good)
		}
	}
}
