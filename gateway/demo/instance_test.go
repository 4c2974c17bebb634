package demo_test

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"orthanc-dicomweb-oauth/gateway/demo"
)

func TestGeneratedInstanceParsesToItsOwnAttributes(t *testing.T) {
	made := demo.NewInstance(demo.InstanceOptions{PatientID: "P1", Number: 3, Rows: 3, Columns: 5})
	parsed, err := demo.ParseInstance(made.File)
	if err != nil {
		t.Fatal(err)
	}
	for tag, want := range map[demo.Tag]string{
		demo.TagPatientName: "DEMO^PATIENT", demo.TagPatientID: "P1", demo.TagInstanceNumber: "3", demo.TagModality: "OT",
		demo.TagRows: "3", demo.TagColumns: "5", demo.TagTransferSyntaxUID: "1.2.840.10008.1.2.1",
	} {
		if got := parsed.Value(tag); got != want {
			t.Errorf("%s: got %q, want %q", tag, got, want)
		}
	}
	uids := func(i *demo.Instance) []string {
		return []string{i.StudyInstanceUID(), i.SeriesInstanceUID(), i.SOPInstanceUID()}
	}
	if diff := cmp.Diff(uids(made), uids(parsed)); diff != "" {
		t.Errorf("UIDs (-made +parsed):\n%s", diff)
	}
	if made.StudyInstanceUID() == demo.NewInstance(demo.InstanceOptions{}).StudyInstanceUID() {
		t.Error("two instances share a study, want new UIDs")
	}
}

// part10 puts a dataset behind a head with this transfer syntax.
func part10(transferSyntax string, dataset []byte) []byte {
	file := append(make([]byte, 128), "DICM"...)
	return append(append(file, explicitText(0x00020010, "UI", transferSyntax)...), dataset...)
}

func explicitText(tag uint32, vr, value string) []byte {
	if len(value)%2 == 1 {
		value += "\x00"
	}
	b := binary.LittleEndian.AppendUint16(nil, uint16(tag>>16))
	b = binary.LittleEndian.AppendUint16(b, uint16(tag))
	b = append(b, vr...)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(value)))
	return append(b, value...)
}

// implicit writes an element without VR.
func implicit(tag, length uint32, value []byte) []byte {
	b := binary.LittleEndian.AppendUint16(nil, uint16(tag>>16))
	b = binary.LittleEndian.AppendUint16(b, uint16(tag))
	b = binary.LittleEndian.AppendUint32(b, length)
	return append(b, value...)
}

func implicitText(tag uint32, value string) []byte {
	if len(value)%2 == 1 {
		value += " "
	}
	return implicit(tag, uint32(len(value)), []byte(value))
}

func TestParserReadsImplicitVRAndSkipsNestedSequences(t *testing.T) {
	const undefined = 0xFFFFFFFF
	item := bytes.Join([][]byte{ // an item of undefined length with a sequence of undefined length
		implicit(0xFFFEE000, undefined, nil),
		implicit(0x00081199, undefined, nil),
		implicit(0xFFFEE000, 8, implicit(0x00100010, 0, nil)),
		implicit(0xFFFEE0DD, 0, nil),
		implicitText(0x00100010, "WRONG^NAME"),
		implicit(0xFFFEE00D, 0, nil),
	}, nil)
	i, err := demo.ParseInstance(part10("1.2.840.10008.1.2", bytes.Join([][]byte{
		implicitText(0x00080016, "1.2.3"),
		implicitText(0x00080018, "1.2.3.4"),
		implicit(0x00081115, undefined, append(item, implicit(0xFFFEE0DD, 0, nil)...)),
		implicitText(0x00100010, "RIGHT^NAME"),
		implicitText(0x0020000D, "1.2"),
		implicitText(0x0020000E, "1.2.5"),
		implicit(0x7FE00010, 1<<30, nil), // the pixels are not even looked for
	}, nil)))
	if err != nil {
		t.Fatal(err)
	}
	if got := i.Value(demo.TagPatientName); got != "RIGHT^NAME" {
		t.Errorf("got patient %q, want RIGHT^NAME", got)
	}
}

func TestParserRefusesMalformedFiles(t *testing.T) {
	const explicitLE = "1.2.840.10008.1.2.1"
	deep := bytes.Repeat(append(implicit(0x00081115, 0xFFFFFFFF, nil), implicit(0xFFFEE000, 0xFFFFFFFF, nil)...), 100)
	for name, file := range map[string][]byte{
		"empty":                   nil,
		"no prefix":               bytes.Repeat([]byte{'x'}, 200),
		"no transfer syntax":      part10("", nil),
		"deflated":                part10("1.2.840.10008.1.2.1.99", nil),
		"big endian":              part10("1.2.840.10008.1.2.2", nil),
		"no UIDs":                 part10(explicitLE, nil),
		"length beyond the end":   part10("1.2.840.10008.1.2", implicit(0x00080018, 1<<31, nil)),
		"endless nesting":         part10("1.2.840.10008.1.2", deep),
		"unknown VR":              part10(explicitLE, []byte("\x08\x00\x16\x00??\x00\x00")),
		"UID with a path in it":   part10(explicitLE, explicitText(0x00080016, "UI", "../../x")),
		"value too long":          part10(explicitLE, explicitText(0x00080016, "UI", strings.Repeat("1", 5000))),
		"cut within the UIDs":     demo.NewInstance(demo.InstanceOptions{}).File[:400],
		"sequence without an end": part10("1.2.840.10008.1.2", implicit(0x00081115, 0xFFFFFFFF, nil)),
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := demo.ParseInstance(file); err == nil {
				t.Error("got nil, want an error")
			}
		})
	}
}

func FuzzParseInstance(f *testing.F) {
	f.Add(demo.NewInstance(demo.InstanceOptions{Rows: 2, Columns: 2}).File)
	f.Add(part10("1.2.840.10008.1.2", implicitText(0x00080016, "1.2.3")))
	f.Add(part10("1.2.840.10008.1.2", implicit(0x00081115, 0xFFFFFFFF, implicit(0xFFFEE000, 0xFFFFFFFF, nil))))
	f.Fuzz(func(t *testing.T, file []byte) {
		i, err := demo.ParseInstance(file)
		if err != nil {
			return
		}
		if strings.ContainsAny(i.StudyInstanceUID()+i.SeriesInstanceUID()+i.SOPInstanceUID(), "/ \x00") {
			t.Errorf("got UIDs %q %q %q, want digits and dots", i.StudyInstanceUID(), i.SeriesInstanceUID(), i.SOPInstanceUID())
		}
	})
}
