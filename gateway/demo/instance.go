package demo

import "fmt"

// Tag is the tag of a DICOM attribute: the group in the upper, the element in the lower 16 bits.
type Tag uint32

// The attributes that the server knows. All stand before the pixel data, and in the main dataset.
const (
	TagTransferSyntaxUID Tag = 0x00020010
	TagSOPClassUID       Tag = 0x00080016
	TagSOPInstanceUID    Tag = 0x00080018
	TagStudyDate         Tag = 0x00080020
	TagStudyTime         Tag = 0x00080030
	TagAccessionNumber   Tag = 0x00080050
	TagModality          Tag = 0x00080060
	TagStudyDescription  Tag = 0x00081030
	TagSeriesDescription Tag = 0x0008103E
	TagPatientName       Tag = 0x00100010
	TagPatientID         Tag = 0x00100020
	TagStudyInstanceUID  Tag = 0x0020000D
	TagSeriesInstanceUID Tag = 0x0020000E
	TagSeriesNumber      Tag = 0x00200011
	TagInstanceNumber    Tag = 0x00200013
	TagRows              Tag = 0x00280010
	TagColumns           Tag = 0x00280011
)

// String is the tag as DICOM JSON writes it: eight hexadecimal digits.
func (t Tag) String() string { return fmt.Sprintf("%08X", uint32(t)) }

// Instance is one DICOM instance as a part-10 file. It is never changed after it was made.
type Instance struct {
	File   []byte
	values map[Tag]string // known attributes, trimmed; several values are parted by a backslash
}

// Value is the text of a known attribute, or "".
func (i *Instance) Value(t Tag) string { return i.values[t] }

// SOPInstanceUID names the instance.
func (i *Instance) SOPInstanceUID() string { return i.values[TagSOPInstanceUID] }

// StudyInstanceUID names the study that the instance belongs to.
func (i *Instance) StudyInstanceUID() string { return i.values[TagStudyInstanceUID] }

// SeriesInstanceUID names the series that the instance belongs to.
func (i *Instance) SeriesInstanceUID() string { return i.values[TagSeriesInstanceUID] }

// level is a level of the DICOM hierarchy. Studies hold the patient's attributes too.
type level int

const (
	levelStudy level = iota
	levelSeries
	levelInstance
)

// attribute describes a known attribute.
type attribute struct {
	tag     Tag
	vr      string
	keyword string
	level   level
}

// attributes is the table of what the server keeps of an instance, to search and to answer by.
func attributes() []attribute {
	return []attribute{
		{TagSOPClassUID, "UI", "SOPClassUID", levelInstance},
		{TagSOPInstanceUID, "UI", "SOPInstanceUID", levelInstance},
		{TagStudyDate, "DA", "StudyDate", levelStudy},
		{TagStudyTime, "TM", "StudyTime", levelStudy},
		{TagAccessionNumber, "SH", "AccessionNumber", levelStudy},
		{TagModality, "CS", "Modality", levelSeries},
		{TagStudyDescription, "LO", "StudyDescription", levelStudy},
		{TagSeriesDescription, "LO", "SeriesDescription", levelSeries},
		{TagPatientName, "PN", "PatientName", levelStudy},
		{TagPatientID, "LO", "PatientID", levelStudy},
		{TagStudyInstanceUID, "UI", "StudyInstanceUID", levelStudy},
		{TagSeriesInstanceUID, "UI", "SeriesInstanceUID", levelSeries},
		{TagSeriesNumber, "IS", "SeriesNumber", levelSeries},
		{TagInstanceNumber, "IS", "InstanceNumber", levelInstance},
		{TagRows, "US", "Rows", levelInstance},
		{TagColumns, "US", "Columns", levelInstance},
	}
}
