package certs_test

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"orthanc-dicomweb-oauth/certs"
)

const host = "dicom.example.org" // of hosts

func rotate(t testing.TB, dir string, force bool) *certs.CA {
	t.Helper()
	ca, err := certs.Rotate(dir, hosts, force)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func activate(t testing.TB, dir string) *certs.CA {
	t.Helper()
	ca, err := certs.Activate(dir)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func loaded(t testing.TB, dir string) *certs.CA {
	t.Helper()
	ca, err := certs.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

// bundled returns the certificates of a bundle by their subjects, in order.
func bundled(t testing.TB, text []byte) []string {
	t.Helper()
	var names []string
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, cert.Subject.CommonName)
	}
	return names
}

func subjects(list ...*certs.CA) []string {
	var names []string
	for _, ca := range list {
		names = append(names, ca.Certificate().Subject.CommonName)
	}
	return names
}

// wantTrusted fails the test unless a client with the folder's bundle, as it is now, accepts a leaf of the CA.
func wantTrusted(t testing.TB, dir string, ca *certs.CA) {
	t.Helper()
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(read(t, filepath.Join(dir, "bundle.pem")))
	if _, err := mint(t, ca, host).Leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: host}); err != nil {
		t.Errorf("a client with this bundle says %v", err)
	}
}

func wantBundle(t testing.TB, dir string, want ...*certs.CA) {
	t.Helper()
	if diff := cmp.Diff(subjects(want...), bundled(t, read(t, filepath.Join(dir, "bundle.pem")))); diff != "" {
		t.Errorf("bundle.pem (-want +got):\n%s", diff)
	}
}

func files(t testing.TB, dir string) map[string]string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	for _, e := range entries {
		all[e.Name()] = string(read(t, filepath.Join(dir, e.Name())))
	}
	return all
}

func wantFiles(t testing.TB, dir string, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, slices.Sorted(maps.Keys(files(t, dir)))); diff != "" {
		t.Errorf("the folder (-want +got):\n%s", diff)
	}
}

func TestEveryClientTrustsTheNewCABeforeItSigns(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ca")
	first := open(t, dir, hosts)

	waits := rotate(t, dir, false)
	second := waits.Waiting()
	if second == nil || second.Fingerprint() == first.Fingerprint() || waits.Fingerprint() != first.Fingerprint() {
		t.Fatal("rotate: want the first CA to sign, and another one to wait")
	}
	wantFiles(t, dir, "bundle.pem", "ca-key.pem", "ca.pem", "next-ca-key.pem", "next-ca.pem")
	wantBundle(t, dir, first, second)
	wantTrusted(t, dir, waits)
	wantTrusted(t, dir, second)
	if got := open(t, dir, hosts); got.Fingerprint() != first.Fingerprint() {
		t.Error("the new CA signs before it is activated")
	}

	now := activate(t, dir)
	if now.Fingerprint() != second.Fingerprint() || now.Waiting() != nil {
		t.Error("activate: want the second CA to sign, and none to wait")
	}
	wantFiles(t, dir, "bundle.pem", "ca-key.pem", "ca.pem", "previous-ca.pem")
	wantBundle(t, dir, first, second)
	wantTrusted(t, dir, first) // a gateway that has not looked yet
	wantTrusted(t, dir, now)
	if got := open(t, dir, hosts); got.Fingerprint() != second.Fingerprint() {
		t.Error("another CA signs after a start")
	}

	if err := os.Remove(now.BundlePath()); err != nil { // a lost bundle is made anew
		t.Fatal(err)
	}
	open(t, dir, hosts)
	wantBundle(t, dir, second, first)

	third := rotate(t, dir, false).Waiting()
	wantFiles(t, dir, "bundle.pem", "ca-key.pem", "ca.pem", "next-ca-key.pem", "next-ca.pem")
	wantBundle(t, dir, second, third)
	if runtime.GOOS != "windows" {
		for name, want := range map[string]fs.FileMode{"ca-key.pem": 0o600, "next-ca-key.pem": 0o600, "ca.pem": 0o644, "next-ca.pem": 0o644, "bundle.pem": 0o644} {
			if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode() != want {
				t.Errorf("%s: got %v, %v, want mode %v", name, info.Mode(), err, want)
			}
		}
	}
}

func TestRotateIsForTheNamesOfToday(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ca")
	open(t, dir, hosts)
	ca, err := certs.Rotate(dir, &certs.Names{Hosts: []string{"new.example.org"}}, false)
	if err != nil {
		t.Fatal(err)
	}
	if ca.Covers("new.example.org") || !ca.Waiting().Covers("new.example.org") || ca.Waiting().Covers(host) {
		t.Error("want the new CA for the new name only")
	}
}

func TestWhatWaitsIsNotReplacedByMistake(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ca")
	first := open(t, dir, hosts)
	second := rotate(t, dir, false).Waiting()
	before := files(t, dir)
	_, err := certs.Rotate(dir, hosts, false)
	if folder, ok := errors.AsType[*certs.FolderError](err); !ok || !strings.Contains(folder.What, "a new CA waits already, made on "+time.Now().UTC().Format("2006-01-")) || !strings.Contains(folder.Hint, "ca activate") {
		t.Errorf("got %v, want that one waits", err)
	}
	if diff := cmp.Diff(before, files(t, dir)); diff != "" {
		t.Errorf("the folder has changed (-want +got):\n%s", diff)
	}
	third := rotate(t, dir, true).Waiting()
	if third.Fingerprint() == second.Fingerprint() {
		t.Error("force has made no new CA")
	}
	wantBundle(t, dir, first, third)
	if now := activate(t, dir); now.Fingerprint() != third.Fingerprint() {
		t.Error("another CA than the last one signs")
	}
}

func TestNothingToActivate(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ca")
	if _, err := certs.Load(dir); err == nil || !strings.Contains(err.Error(), "there is no CA yet") {
		t.Errorf("Load: got %v", err)
	}
	if _, err := certs.Rotate(dir, hosts, false); err == nil || !strings.Contains(err.Error(), "there is no CA yet") {
		t.Errorf("Rotate: got %v", err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Error("the folder was made")
	}
	open(t, dir, hosts)
	before := files(t, dir)
	_, err := certs.Activate(dir)
	if folder, ok := errors.AsType[*certs.FolderError](err); !ok || folder.What != "no new CA waits" || !strings.Contains(folder.Hint, "ca rotate") {
		t.Errorf("got %v", err)
	}
	if diff := cmp.Diff(before, files(t, dir)); diff != "" {
		t.Errorf("the folder has changed (-want +got):\n%s", diff)
	}
}

// A CA that ended can be replaced as any other.
func TestCAThatEndedIsRotated(t *testing.T) {
	dir := folder(t, func(c *x509.Certificate) {
		c.NotBefore, c.NotAfter = time.Now().AddDate(-1, 0, 0), time.Now().Add(-time.Hour)
	})
	rotate(t, dir, false)
	if _, err := certs.Open(dir, hosts); err == nil {
		t.Error("Open: a CA that ended signs")
	} else if folder, _ := errors.AsType[*certs.FolderError](err); folder == nil || !strings.Contains(folder.Hint, "run ca activate") {
		t.Errorf("Open: got %v, want the hint that one waits", err)
	}
	activate(t, dir)
	open(t, dir, hosts)
}

// What a user has put into the bundle stays there.
func TestForeignCertificatesStayInTheBundle(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ca")
	first := open(t, dir, hosts)
	foreign := open(t, filepath.Join(t.TempDir(), "ca"), hosts)
	text := append([]byte("# the hospital's own roots\n"), read(t, foreign.BundlePath())...)
	write(t, first.BundlePath(), append(text, bytes.TrimSuffix(read(t, first.BundlePath()), []byte("\n"))...), 0o644)

	second := rotate(t, dir, false).Waiting()
	wantBundle(t, dir, foreign, first, second)
	activate(t, dir)
	third := rotate(t, dir, false).Waiting()
	wantBundle(t, dir, foreign, second, third)
	if !bytes.HasPrefix(read(t, first.BundlePath()), text) {
		t.Error("the text of the foreign roots has changed")
	}
}

// Each state in which a crash can leave the folder: clients trust the CA that signs there, and the next command works.
func TestCrashLeavesAFolderThatWorks(t *testing.T) {
	master := filepath.Join(t.TempDir(), "ca")
	open(t, master, hosts)
	fresh := files(t, master)
	rotate(t, master, false)
	waiting := files(t, master)
	activate(t, master)
	activated := files(t, master)
	rotate(t, master, false)
	again := files(t, master)

	with := func(base map[string]string, changes ...string) map[string]string { // name and content, "" for no file
		all := maps.Clone(base)
		for i := 0; i < len(changes); i += 2 {
			if all[changes[i]] = changes[i+1]; changes[i+1] == "" {
				delete(all, changes[i])
			}
		}
		return all
	}
	begun := with(waiting, "previous-ca.pem", waiting["ca.pem"])
	bundles := activated["bundle.pem"] + again["next-ca.pem"]
	for name, row := range map[string]struct {
		files  map[string]string
		signs  string // the certificate
		waits  string
		number int // of certificates in the bundle, once it is complete
	}{
		"rotate: the key alone":                     {with(fresh, "next-ca-key.pem", waiting["next-ca-key.pem"]), fresh["ca.pem"], "", 1},
		"rotate: the bundle lacks it":               {with(waiting, "bundle.pem", fresh["bundle.pem"]), fresh["ca.pem"], waiting["next-ca.pem"], 2},
		"rotate: files that were not renamed":       {with(fresh, ".new-1", "half", ".lock", ""), fresh["ca.pem"], "", 1},
		"second rotate: the key alone":              {with(activated, "next-ca-key.pem", again["next-ca-key.pem"]), activated["ca.pem"], "", 2},
		"second rotate: the bundle lacks it":        {with(again, "bundle.pem", activated["bundle.pem"], "previous-ca.pem", activated["previous-ca.pem"]), activated["ca.pem"], again["next-ca.pem"], 3},
		"second rotate: the previous CA is there":   {with(again, "previous-ca.pem", activated["previous-ca.pem"]), activated["ca.pem"], again["next-ca.pem"], 2},
		"forced rotate: the old one left":           {with(waiting, "bundle.pem", fresh["bundle.pem"]), fresh["ca.pem"], waiting["next-ca.pem"], 2},
		"forced rotate: its certificate is removed": {with(waiting, "bundle.pem", fresh["bundle.pem"], "next-ca.pem", ""), fresh["ca.pem"], "", 1},
		"forced rotate: another key":                {with(waiting, "next-ca-key.pem", again["next-ca-key.pem"]), fresh["ca.pem"], "", 2},
		"activate: the previous one is written":     {begun, fresh["ca.pem"], waiting["next-ca.pem"], 2},
		"activate: the key is the new one's":        {with(begun, "ca-key.pem", begun["next-ca-key.pem"], "next-ca-key.pem", ""), waiting["next-ca.pem"], "", 2},
		"third rotate: all are in the bundle":       {with(again, "bundle.pem", bundles, "previous-ca.pem", activated["previous-ca.pem"]), activated["ca.pem"], again["next-ca.pem"], 3},
	} {
		t.Run(name, func(t *testing.T) {
			fill := func() string {
				dir := t.TempDir()
				for name, content := range row.files {
					write(t, filepath.Join(dir, name), []byte(content), 0o600)
				}
				return dir
			}
			dir := fill()
			ca := loaded(t, dir)
			if !ca.Certificate().Equal(certificate(t, []byte(row.signs))) {
				t.Fatal("another CA signs")
			}
			if next := ca.Waiting(); (next != nil) != (row.waits != "") || next != nil && !next.Certificate().Equal(certificate(t, []byte(row.waits))) {
				t.Fatalf("got %v waiting", next)
			}
			wantTrusted(t, dir, ca)
			open(t, dir, hosts)
			if got := bundled(t, read(t, ca.BundlePath())); len(got) != row.number {
				t.Errorf("%d certificates in the bundle after a start, want %d", len(got), row.number)
			}

			// The command that was cut, again; or the next one.
			for _, force := range []bool{false, true} {
				dir := fill()
				if row.waits == "" || force {
					next := rotate(t, dir, force).Waiting()
					wantBundle(t, dir, ca, next)
				}
				wantTrusted(t, dir, ca)
				before := loaded(t, dir)
				now := activate(t, dir)
				if before.Waiting() == nil || now.Fingerprint() != before.Waiting().Fingerprint() {
					t.Error("another CA than the one that waited signs")
				}
				wantBundle(t, dir, ca, now) // and none that nobody knows of any more
				wantTrusted(t, dir, ca)
				wantTrusted(t, dir, now)
				wantFiles(t, dir, "bundle.pem", "ca-key.pem", "ca.pem", "previous-ca.pem")
			}
		})
	}

	// An activation that was cut is brought to its end by the same command.
	dir := t.TempDir()
	for name, content := range with(begun, "ca-key.pem", begun["next-ca-key.pem"], "next-ca-key.pem", "") {
		write(t, filepath.Join(dir, name), []byte(content), 0o600)
	}
	activate(t, dir)
	if diff := cmp.Diff(activated, files(t, dir)); diff != "" {
		t.Errorf("the folder (-want +got):\n%s", diff)
	}
}

// Whoever comes at the same time waits; nobody sees, or leaves behind, a folder that does not work.
func TestManyCommandsAtOnce(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ca")
	running := open(t, dir, hosts)
	var commands, readers sync.WaitGroup
	done := make(chan struct{})
	for i := range 4 {
		commands.Go(func() {
			for range 10 {
				_, err := certs.Rotate(dir, hosts, i%2 == 0)
				if err != nil && !strings.Contains(err.Error(), "a new CA waits already") {
					t.Error(err)
				}
				if _, err := certs.Activate(dir); err != nil && !strings.Contains(err.Error(), "no new CA waits") {
					t.Error(err)
				}
			}
		})
	}
	for range 2 {
		readers.Go(func() {
			ca := running
			for {
				select {
				case <-done:
					return
				default:
				}
				var err error
				if ca, err = ca.Latest(); err != nil {
					t.Error(err)
					return
				}
				if _, err := certs.Open(dir, hosts); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	commands.Wait()
	close(done)
	readers.Wait()
	now := loaded(t, dir)
	want := 2
	if got := bundled(t, read(t, now.BundlePath())); len(got) != want {
		t.Errorf("%d certificates in the bundle, want %d", len(got), want)
	}
	wantTrusted(t, dir, now)
	for name := range files(t, dir) {
		if strings.HasPrefix(name, ".") {
			t.Errorf("%s is left behind", name)
		}
	}
}

func TestLatestIsTheSameUntilTheFolderChanges(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ca")
	first := open(t, dir, hosts)
	leaf := mint(t, first, host)
	latest := func(ca *certs.CA) *certs.CA {
		t.Helper()
		now, err := ca.Latest()
		if err != nil {
			t.Fatal(err)
		}
		return now
	}
	if latest(first) != first {
		t.Error("another CA though nothing has changed")
	}
	rotate(t, dir, false)
	waits := latest(first)
	if waits == first || waits.Waiting() == nil || latest(waits) != waits {
		t.Error("want to see the CA that waits, once")
	}
	if mint(t, waits, host) != leaf {
		t.Error("the leaves are lost though the same CA signs")
	}
	activate(t, dir)
	second := latest(waits)
	if second.Fingerprint() != waits.Waiting().Fingerprint() || latest(second) != second {
		t.Error("want the CA that waited, once")
	}
	if mint(t, second, host).Leaf.CheckSignatureFrom(second.Certificate()) != nil {
		t.Error("a leaf of another CA")
	}
	write(t, dir+"/ca.pem", []byte("broken"), 0o644)
	if _, err := second.Latest(); err == nil {
		t.Error("a broken folder is taken up")
	}
}

func TestWarningComesThirtyDaysAhead(t *testing.T) {
	end := time.Date(2036, 5, 31, 12, 0, 0, 0, time.UTC)
	dir := folder(t, func(c *x509.Certificate) { c.NotAfter = end })
	ca := loaded(t, dir)
	const remedy = "run ca rotate, then ca activate; Orthanc trusts the new CA by the same bundle.pem"
	for _, row := range []struct {
		left time.Duration
		want string
	}{
		{30*24*time.Hour + time.Second, ""},
		{30 * 24 * time.Hour, "the CA ends on 2036-05-31, in 30 days; " + remedy},
		{23 * time.Hour, "the CA ends on 2036-05-31, in 0 days; " + remedy},
		{0, "the CA ended on 2036-05-31, clients refuse its certificates; " + remedy},
		{-time.Hour, "the CA ended on 2036-05-31, clients refuse its certificates; " + remedy},
	} {
		if got := ca.Warning(end.Add(-row.left)); got != row.want {
			t.Errorf("%v before its end: got %q, want %q", row.left, got, row.want)
		}
	}
	if got, want := rotate(t, dir, false).Warning(end.Add(-time.Hour)), "the CA ends on 2036-05-31, in 0 days; a new one waits: run ca activate"; got != want {
		t.Errorf("with one that waits: got %q, want %q", got, want)
	}
}

func TestDescription(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ca")
	first := open(t, dir, &certs.Names{Hosts: []string{host}, Parents: []string{"example.com"}, IPs: addresses("192.0.2.1", "2001:db8::1")})
	d := first.Describe(time.Now())
	if diff := cmp.Diff([]string{host, "*.example.com", "192.0.2.1", "2001:db8::1"}, d.Names); diff != "" {
		t.Errorf("names (-want +got):\n%s", diff)
	}
	if d.Dir != dir || d.Bundle != first.BundlePath() || d.Fingerprint != first.Fingerprint() || !d.NotAfter.Equal(first.Certificate().NotAfter) || d.Waiting != nil || d.Previous != nil || d.Warning != "" {
		t.Errorf("got %+v", d)
	}
	if _, err := certs.Rotate(dir, nil, false); err != nil {
		t.Fatal(err)
	}
	if d = loaded(t, dir).Describe(time.Now()); d.Waiting == nil || d.Waiting.Names != nil || d.Previous != nil {
		t.Errorf("got %+v, want one that waits, for any name", d)
	}
	if d = activate(t, dir).Describe(d.NotAfter); d.Waiting != nil || d.Previous == nil || d.Previous.Fingerprint != first.Fingerprint() || d.Names != nil || d.Warning == "" {
		t.Errorf("got %+v, want a previous one", d)
	}
	none := open(t, filepath.Join(t.TempDir(), "ca"), &certs.Names{}).Describe(time.Now())
	if none.Names == nil || len(none.Names) != 0 {
		t.Errorf("a CA for no host is for %q", none.Names)
	}
}

func TestSystemRoots(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("Windows has a store, not a file")
	}
	own := read(t, open(t, filepath.Join(t.TempDir(), "ca"), hosts).BundlePath())
	path := filepath.Join(t.TempDir(), "roots.pem")
	t.Setenv("SSL_CERT_FILE", path)
	write(t, path, append([]byte("# a comment\n-----BEGIN TRUSTED CERTIFICATE-----\nAAAA\n-----END TRUSTED CERTIFICATE-----\n"), own...), 0o644)
	if got, err := certs.SystemRoots(); err != nil || !bytes.Equal(got, own) {
		t.Errorf("got %v\n%s\nwant the certificate alone", err, got)
	}
	write(t, path, nil, 0o644)
	if got, err := certs.SystemRoots(); err == nil {
		t.Errorf("got %q from an empty file, want an error", got)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if got, err := certs.SystemRoots(); err == nil {
		t.Errorf("got %q from no file, want an error", got)
	}
}
