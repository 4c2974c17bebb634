package demo

import (
	"crypto/rand"
	"encoding/binary"
	"math/big"
	"strconv"
	"time"
)

// secondaryCapture is the SOP class of an image that no modality made.
const secondaryCapture = "1.2.840.10008.5.1.4.1.1.7"

// implementationClassUID marks the files that this package writes. It is a fixed one below 2.25.
const implementationClassUID = "2.25.319486120175268470593840228172954603417"

// InstanceOptions describes the instance to generate. The zero value is a new study of a patient DEMO^PATIENT.
type InstanceOptions struct {
	StudyInstanceUID  string // default a new one
	SeriesInstanceUID string // default a new one
	PatientName       string // default DEMO^PATIENT
	PatientID         string // default DEMO
	Number            int    // InstanceNumber; default 1
	Rows, Columns     uint16 // default 64; the pixels are one byte each, so that 10000 x 10000 makes 100 MB
}

// NewInstance generates a valid Secondary Capture instance: 8 bits, MONOCHROME2, explicit VR little endian.
func NewInstance(o InstanceOptions) *Instance {
	or := func(value, otherwise string) string {
		if value != "" {
			return value
		}
		return otherwise
	}
	rows, columns := max(o.Rows, 1), max(o.Columns, 1)
	if o.Rows == 0 {
		rows = 64
	}
	if o.Columns == 0 {
		columns = 64
	}
	now := time.Now()
	w := &writer{values: make(map[Tag]string)}
	sopInstanceUID := newUID()

	w.bytes(0x00020001, "OB", []byte{0, 1})
	w.text(0x00020002, "UI", secondaryCapture)
	w.text(0x00020003, "UI", sopInstanceUID)
	w.text(TagTransferSyntaxUID, "UI", explicitLittleEndian)
	w.text(0x00020012, "UI", implementationClassUID)
	meta := w.out
	w.out = append(make([]byte, preambleLength, preambleAndMagicLen+len(meta)+1024+int(rows)*int(columns)), "DICM"...)
	w.bytes(0x00020000, "UL", binary.LittleEndian.AppendUint32(nil, uint32(len(meta))))
	w.out = append(w.out, meta...)

	w.text(0x00080005, "CS", "ISO_IR 192")
	w.text(TagSOPClassUID, "UI", secondaryCapture)
	w.text(TagSOPInstanceUID, "UI", sopInstanceUID)
	w.text(TagStudyDate, "DA", now.Format("20060102"))
	w.text(TagStudyTime, "TM", now.Format("150405"))
	w.text(TagAccessionNumber, "SH", "")
	w.text(TagModality, "CS", "OT")
	w.text(0x00080064, "CS", "WSD") // ConversionType: from a workstation
	w.text(0x00080090, "PN", "")
	w.text(TagStudyDescription, "LO", "DICOMweb OAuth2 demo")
	w.text(TagPatientName, "PN", or(o.PatientName, "DEMO^PATIENT"))
	w.text(TagPatientID, "LO", or(o.PatientID, "DEMO"))
	w.text(0x00100030, "DA", "")
	w.text(0x00100040, "CS", "O")
	w.text(TagStudyInstanceUID, "UI", or(o.StudyInstanceUID, newUID()))
	w.text(TagSeriesInstanceUID, "UI", or(o.SeriesInstanceUID, newUID()))
	w.text(0x00200010, "SH", "1")
	w.text(TagSeriesNumber, "IS", "1")
	w.text(TagInstanceNumber, "IS", strconv.Itoa(max(o.Number, 1)))
	w.text(0x00200020, "CS", "")
	w.number(0x00280002, 1) // samples per pixel
	w.text(0x00280004, "CS", "MONOCHROME2")
	w.number(TagRows, rows)
	w.number(TagColumns, columns)
	w.number(0x00280100, 8) // bits allocated, stored, and the highest of them
	w.number(0x00280101, 8)
	w.number(0x00280102, 7)
	w.number(0x00280103, 0) // unsigned
	w.bytes(0x7FE00010, "OB", pattern(int(rows), int(columns)))
	return &Instance{File: w.out, values: w.values}
}

// newUID makes a UID from a random UUID (PS3.5 section B.2).
func newUID() string {
	var uuid [16]byte
	_, _ = rand.Read(uuid[:]) // never fails
	uuid[6] = uuid[6]&0x0F | 0x40
	uuid[8] = uuid[8]&0x3F | 0x80
	return "2.25." + new(big.Int).SetBytes(uuid[:]).String()
}

// pattern draws the pixels: curves, so that a viewer has something to show.
func pattern(rows, columns int) []byte {
	pixels := make([]byte, rows*columns)
	for y := range rows {
		for x := range columns {
			pixels[y*columns+x] = byte(x*y + x + y)
		}
	}
	return pixels
}

// writer writes elements in explicit VR little endian, and remembers the text of the main dataset.
type writer struct {
	out    []byte
	values map[Tag]string
}

func (w *writer) bytes(tag Tag, vr string, value []byte) {
	w.out = binary.LittleEndian.AppendUint16(w.out, uint16(tag>>16))
	w.out = binary.LittleEndian.AppendUint16(w.out, uint16(tag))
	w.out = append(w.out, vr...)
	padded := len(value) + len(value)%2
	if vr == "OB" {
		w.out = append(w.out, 0, 0)
		w.out = binary.LittleEndian.AppendUint32(w.out, uint32(padded))
	} else {
		w.out = binary.LittleEndian.AppendUint16(w.out, uint16(padded))
	}
	w.out = append(w.out, value...)
	if padded > len(value) {
		w.out = append(w.out, 0)
	}
}

func (w *writer) text(tag Tag, vr, value string) {
	w.values[tag] = value
	if len(value)%2 == 1 && vr != "UI" { // text is padded with a space, a UID with a zero
		value += " "
	}
	w.bytes(tag, vr, []byte(value))
}

func (w *writer) number(tag Tag, n uint16) {
	w.values[tag] = strconv.Itoa(int(n))
	w.bytes(tag, "US", binary.LittleEndian.AppendUint16(nil, n))
}
