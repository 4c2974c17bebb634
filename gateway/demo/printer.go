package demo

import (
	"fmt"
	"io"
	"net/http"
	"strings"
)

// ANSI styles.
const (
	bold  = "1"
	dim   = "2"
	red   = "31"
	green = "32"
)

// Who speaks to whom: the left column of the story.
const (
	direct   = "Orthanc → DICOMweb server"
	toProxy  = "Orthanc → gateway"
	upstream = "gateway → DICOMweb server"
	byHand   = "you → Orthanc"
	back     = "                        ←"
)

// printer lays the story out in two columns. One goroutine at a time may use it.
type printer struct {
	out   io.Writer
	color bool
	open  bool // a line that begin began, and end has not ended
}

// styled wraps text in an ANSI style, where there are colours.
func (p *printer) styled(style, text string) string {
	if !p.color {
		return text
	}
	return "\x1b[" + style + "m" + text + "\x1b[0m"
}

// heading opens a section.
func (p *printer) heading(format string, a ...any) {
	p.write("\n%s\n", p.styled(bold, fmt.Sprintf(format, a...)))
}

// line prints one line of the two columns. The left one may be empty.
func (p *printer) line(left, format string, a ...any) {
	left = fmt.Sprintf("%-26s", left) // padded before it is styled: the styles would count as width
	p.write("   %s %s\n", p.styled(dim, left), fmt.Sprintf(format, a...))
}

// begin starts a line of the two columns that more makes longer, until end ends it.
func (p *printer) begin(left string) {
	p.open = true
	p.write("   %s", p.styled(dim, fmt.Sprintf("%-26s", left)))
}

func (p *printer) more(format string, a ...any) {
	p.write(" %s ", fmt.Sprintf(format, a...))
}

// end ends the begun line, if there is one.
func (p *printer) end() {
	if p.open {
		p.open = false
		p.write("\n")
	}
}

// note prints a line below both columns.
func (p *printer) note(format string, a ...any) {
	p.write("   %s\n", fmt.Sprintf(format, a...))
}

// write does not look at errors: a story that nobody reads needs no teller.
func (p *printer) write(format string, a ...any) { _, _ = fmt.Fprintf(p.out, format, a...) }

// answer prints what came back.
func (p *printer) answer(status int, format string, a ...any) {
	style := green
	if status >= 300 {
		style = red
	}
	text := fmt.Sprintf(format, a...)
	if text != "" {
		text = " · " + text
	}
	p.line(back, "%s%s", p.styled(style, statusText(status)), text)
}

// added prints what the gateway put on a request, never the token itself.
func (p *printer) added(t Token) {
	p.line(upstream, "%s", p.styled(green, "+ Authorization: Bearer "+t.String()))
}

func statusText(status int) string {
	return strings.TrimSpace(fmt.Sprintf("%d %s", status, http.StatusText(status)))
}

// thousands groups the digits of a count.
func thousands(n int) string {
	digits := fmt.Sprint(n)
	for at := len(digits) - 3; at > 0; at -= 3 {
		digits = digits[:at] + "," + digits[at:]
	}
	return digits
}
