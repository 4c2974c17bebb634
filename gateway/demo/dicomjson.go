package demo

import (
	"slices"
	"strconv"
	"strings"
)

const dicomJSON = "application/dicom+json"

// Attributes that only answers carry.
const (
	tagRetrieveURL        Tag = 0x00081190
	tagFailureReason      Tag = 0x00081197
	tagFailedSequence     Tag = 0x00081198
	tagReferencedSequence Tag = 0x00081199
	tagReferencedClass    Tag = 0x00081150
	tagReferencedInstance Tag = 0x00081155
	tagModalitiesInStudy  Tag = 0x00080061
	tagSeriesInStudy      Tag = 0x00201206
	tagInstancesInStudy   Tag = 0x00201208
	tagInstancesInSeries  Tag = 0x00201209
)

// dataset is one in the DICOM JSON model (PS3.18 annex F), by the tags' String.
type dataset map[string]jsonAttribute

type jsonAttribute struct {
	VR    string `json:"vr"`
	Value []any  `json:"Value,omitempty"`
}

func (d dataset) set(t Tag, vr string, values ...any) {
	d[t.String()] = jsonAttribute{VR: vr, Value: values}
}

// describeInstance sets the attributes of an instance that belong to level l or above.
func (d dataset) describeInstance(i *Instance, l level) {
	for _, a := range attributes() {
		text, present := i.values[a.tag]
		if !present || a.level > l {
			continue
		}
		d.set(a.tag, a.vr, jsonValues(a.vr, text)...)
	}
}

// jsonValues parts the text of an attribute into its values.
func jsonValues(vr, text string) []any {
	if text == "" {
		return nil
	}
	var values []any
	for value := range strings.SplitSeq(text, `\`) {
		switch vr {
		case "PN":
			values = append(values, map[string]string{"Alphabetic": value})
		case "IS", "US":
			n, err := strconv.Atoi(strings.TrimSpace(value))
			if err != nil {
				return nil // not a number: better no value than one that breaks the reader
			}
			values = append(values, n)
		default:
			values = append(values, value)
		}
	}
	return values
}

// distinct returns the different values of an attribute among instances, sorted.
func distinct(instances []*Instance, t Tag) []string {
	var values []string
	for _, i := range instances {
		values = append(values, i.Value(t))
	}
	slices.Sort(values)
	return slices.Compact(values)
}
