package demo

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Transfer syntaxes whose dataset the parser must tell apart. All others are explicit VR little endian up to the pixels.
const (
	implicitLittleEndian = "1.2.840.10008.1.2"
	explicitLittleEndian = "1.2.840.10008.1.2.1"
	deflatedLittleEndian = "1.2.840.10008.1.2.1.99"
	explicitBigEndian    = "1.2.840.10008.1.2.2"
)

// Limits of the parser. A file beyond them is refused.
const (
	maxValueLength   = 4096 // of an attribute that is kept
	maxSequenceDepth = 32
)

// Tags that only the structure of a file uses.
const (
	tagItem             Tag = 0xFFFEE000
	tagItemEnd          Tag = 0xFFFEE00D
	tagSequenceEnd      Tag = 0xFFFEE0DD
	lastInterestingTag  Tag = 0x0028FFFF // tags ascend: nothing behind it needs to be read
	undefinedLength         = 0xFFFFFFFF
	preambleLength          = 128
	preambleAndMagicLen     = preambleLength + len("DICM")
)

// errTransferSyntax says that the file may be sound, but is written in a way that the parser does not read.
var errTransferSyntax = errors.New("transfer syntax is not supported")

// errTruncated says that the file ends within an element.
var errTruncated = errors.New("the file is cut short")

// ParseInstance reads a DICOM part-10 file in explicit or implicit VR little endian, up to what lies before its pixel
// data. It keeps file, which must not be changed any more. Malformed input gives an error, never a panic.
func ParseInstance(file []byte) (*Instance, error) {
	if len(file) < preambleAndMagicLen || string(file[preambleLength:preambleAndMagicLen]) != "DICM" {
		return nil, errors.New("parse DICOM file: no DICM prefix")
	}
	i := &Instance{File: file, values: make(map[Tag]string)}
	p := &parser{rest: file[preambleAndMagicLen:], explicit: true, values: i.values, known: map[Tag]string{TagTransferSyntaxUID: "UI"}}
	if err := p.read(0x0002FFFF); err != nil {
		return nil, fmt.Errorf("parse DICOM file: meta information: %w", err)
	}
	switch i.values[TagTransferSyntaxUID] {
	case "":
		return nil, errors.New("parse DICOM file: no transfer syntax")
	case deflatedLittleEndian, explicitBigEndian:
		return nil, fmt.Errorf("parse DICOM file: %w", errTransferSyntax)
	case implicitLittleEndian:
		p.explicit = false
	}
	p.known = make(map[Tag]string)
	for _, a := range attributes() {
		p.known[a.tag] = a.vr
	}
	if err := p.read(lastInterestingTag); err != nil {
		return nil, fmt.Errorf("parse DICOM file: dataset: %w", err)
	}
	for _, tag := range []Tag{TagSOPClassUID, TagSOPInstanceUID, TagStudyInstanceUID, TagSeriesInstanceUID} {
		if !isUID(i.values[tag]) {
			return nil, fmt.Errorf("parse DICOM file: no valid UID in %s", tag)
		}
	}
	return i, nil
}

// isUID says whether s may stand in a DICOM file and in a URL as a UID.
func isUID(s string) bool {
	return s != "" && len(s) <= 64 && strings.Trim(s, "0123456789.") == ""
}

// parser walks over the elements of a file.
type parser struct {
	rest     []byte
	explicit bool
	known    map[Tag]string // what to keep, with its VR
	values   map[Tag]string
}

// element is the head of one.
type element struct {
	tag    Tag
	vr     string // "" in implicit VR, and for items
	length uint32
}

// read keeps the known elements up to the tag last, and stops before the first one behind it.
func (p *parser) read(last Tag) error {
	for len(p.rest) >= 4 && tagOf(p.rest) <= last {
		e, err := p.head()
		if err != nil {
			return err
		}
		vr, keep := p.known[e.tag]
		if !keep || e.length == undefinedLength {
			if err := p.skip(e, 0); err != nil {
				return err
			}
			continue
		}
		if e.length > maxValueLength {
			return fmt.Errorf("value of %s is too long", e.tag)
		}
		value, err := p.take(e.length)
		if err != nil {
			return err
		}
		p.values[e.tag] = text(vr, value)
	}
	return nil // a rest of less than a tag has nothing to say
}

// tagOf reads a tag at the start of b.
func tagOf(b []byte) Tag {
	return Tag(binary.LittleEndian.Uint16(b))<<16 | Tag(binary.LittleEndian.Uint16(b[2:]))
}

// head takes the tag, the VR and the length of the next element.
func (p *parser) head() (element, error) {
	b, err := p.take(8)
	if err != nil {
		return element{}, err
	}
	e := element{tag: tagOf(b)}
	if !p.explicit || e.tag>>16 == 0xFFFE { // items never have a VR
		e.length = binary.LittleEndian.Uint32(b[4:])
		return e, nil
	}
	e.vr = string(b[4:6])
	switch e.vr {
	case "OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV": // two reserved bytes, then 32 bits
		long, err := p.take(4)
		if err != nil {
			return element{}, err
		}
		e.length = binary.LittleEndian.Uint32(long)
	case "AE", "AS", "AT", "CS", "DA", "DS", "DT", "FD", "FL", "IS", "LO", "LT", "PN", "SH", "SL", "SS", "ST", "TM", "UI", "UL", "US":
		e.length = uint32(binary.LittleEndian.Uint16(b[6:]))
	default:
		return element{}, fmt.Errorf("%s has an unknown VR", e.tag)
	}
	return e, nil
}

// skip leaves out the value of an element. One of undefined length is a sequence, to be walked to its end.
func (p *parser) skip(e element, depth int) error {
	if e.length != undefinedLength {
		_, err := p.take(e.length)
		return err
	}
	if depth == maxSequenceDepth {
		return errors.New("sequences are nested too deep")
	}
	if e.vr == "UN" { // PS3.5 section 6.2.2: such a sequence is in implicit VR, whatever surrounds it
		outer := p.explicit
		p.explicit = false
		defer func() { p.explicit = outer }()
	}
	for {
		item, err := p.head()
		switch {
		case err != nil:
			return err
		case item.tag == tagSequenceEnd:
			return nil
		case item.tag != tagItem:
			return fmt.Errorf("%s stands where an item of %s should", item.tag, e.tag)
		}
		if err := p.skipItem(item, depth); err != nil {
			return err
		}
	}
}

func (p *parser) skipItem(item element, depth int) error {
	if item.length != undefinedLength {
		_, err := p.take(item.length)
		return err
	}
	for {
		e, err := p.head()
		if err != nil {
			return err
		}
		if e.tag == tagItemEnd {
			return nil
		}
		if err := p.skip(e, depth+1); err != nil {
			return err
		}
	}
}

// take returns the next n bytes of the file.
func (p *parser) take(n uint32) ([]byte, error) {
	if uint64(n) > uint64(len(p.rest)) {
		return nil, errTruncated
	}
	taken := p.rest[:n]
	p.rest = p.rest[n:]
	return taken, nil
}

// text is the value of an element as text, without its padding.
func text(vr string, value []byte) string {
	if vr != "US" {
		return strings.ToValidUTF8(strings.Trim(string(value), " \x00"), "\uFFFD")
	}
	if len(value) < 2 {
		return ""
	}
	return strconv.Itoa(int(binary.LittleEndian.Uint16(value)))
}
