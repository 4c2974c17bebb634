package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"orthanc-dicomweb-oauth/gateway/demo"
)

// orthancRTTs are the round-trip times between Orthanc, or the gateway, and the DICOMweb server.
func orthancRTTs() []time.Duration {
	return []time.Duration{0, 20 * time.Millisecond, 50 * time.Millisecond}
}

// The loads that Orthanc makes.
const (
	orthancQIDO     = "QIDO-RS"
	orthancRetrieve = "50 single-instance retrieves"
	orthancStow27   = "STOW-RS of 27 files"
	orthancStow100  = "STOW-RS of 100 MB"
)

func orthancLoads() []string {
	return []string{orthancQIDO, orthancRetrieve, orthancStow27, orthancStow100}
}

// qidoCalls is how many requests of QIDO-RS make one sample.
const qidoCalls = 10

// stow27Jobs is how many of the short jobs make one sample, their mean.
const stow27Jobs = 3

// orthancRow is one load at one round-trip time: seconds, one value for each round.
type orthancRow struct {
	Load          string
	RTT           time.Duration
	Without, With []float64 // until the upstream has answered the last request
	JobWithout    []float64 // until Orthanc has told that the job is done; nil for QIDO-RS
	JobWith       []float64
}

// orthanc is a running Orthanc. Its DICOMweb servers are named for their round-trip times.
type orthanc struct {
	b       *bench
	process *process
	url     string
	files   map[string][]string // the stored instances of each STOW-RS load, by Orthanc's names
}

// installation is where Orthanc and its DICOMweb plugin are.
type installation struct{ binary, plugin string }

func findOrthanc() (installation, error) {
	binary, err := find("Orthanc", "/usr/sbin/Orthanc") // Debian's is not in everyone's PATH
	if err != nil {
		return installation{}, err
	}
	const plugin = "/usr/share/orthanc/plugins/libOrthancDicomWeb.so"
	_, err = os.Stat(plugin)
	return installation{binary, plugin}, err
}

// orthancFiles are what is sent and retrieved.
type orthancFiles struct {
	retrieve []*demo.Instance
	stow     map[string][]*demo.Instance
}

// makeOrthancFiles generates the instances, and writes those for the upstream.
func (b *bench) makeOrthancFiles() (orthancFiles, error) {
	first := demo.NewInstance(demo.InstanceOptions{PatientID: "BENCH-RETRIEVE", Rows: 512, Columns: 256})
	f := orthancFiles{retrieve: []*demo.Instance{first}, stow: make(map[string][]*demo.Instance)}
	series := func(i *demo.Instance, number int) demo.InstanceOptions {
		return demo.InstanceOptions{
			PatientID: i.Value(demo.TagPatientID), StudyInstanceUID: i.StudyInstanceUID(), SeriesInstanceUID: i.SeriesInstanceUID(),
			Number: number, Rows: 512, Columns: 256,
		}
	}
	for n := 2; n <= 50; n++ {
		f.retrieve = append(f.retrieve, demo.NewInstance(series(first, n)))
	}
	for _, i := range f.retrieve {
		if err := os.WriteFile(filepath.Join(b.instances, i.SOPInstanceUID()+".dcm"), i.File, 0o600); err != nil {
			return f, err
		}
	}
	small := demo.NewInstance(demo.InstanceOptions{PatientID: "BENCH-27", Rows: 512, Columns: 256})
	f.stow[orthancStow27] = append(f.stow[orthancStow27], small)
	for n := 2; n <= 27; n++ {
		f.stow[orthancStow27] = append(f.stow[orthancStow27], demo.NewInstance(series(small, n)))
	}
	f.stow[orthancStow100] = []*demo.Instance{demo.NewInstance(demo.InstanceOptions{PatientID: "BENCH-100", Rows: 10_000, Columns: 10_000})}
	return f, nil
}

// startOrthanc starts an Orthanc and gives it the files to send. Nothing of it is on disk after its end but its folder.
func (b *bench) startOrthanc(ctx context.Context, name string, where installation, files orthancFiles, settings map[string]any) (*orthanc, error) {
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(b.dir, "orthanc-")
	if err != nil {
		return nil, err
	}
	settings["Name"] = name
	settings["HttpPort"] = port
	settings["DicomServerEnabled"] = false
	settings["RemoteAccessAllowed"] = false
	settings["AuthenticationEnabled"] = false
	settings["StorageDirectory"] = dir
	settings["Plugins"] = []string{where.plugin}
	settings["HttpTimeout"] = 600
	text, err := json.Marshal(settings)
	if err != nil {
		return nil, fmt.Errorf("write orthanc.json: %w", err)
	}
	config := filepath.Join(dir, "orthanc.json")
	if err := os.WriteFile(config, text, 0o600); err != nil {
		return nil, err
	}
	p, err := b.startProgram(name, where.binary, config)
	if err != nil {
		return nil, err
	}
	o := &orthanc{b: b, process: p, url: fmt.Sprintf("http://127.0.0.1:%d", port), files: make(map[string][]string)}
	if err := p.ready(ctx, func() error { return o.call(ctx, http.MethodGet, "/dicom-web/servers", nil, nil) }); err != nil {
		return nil, err
	}
	for load, instances := range files.stow {
		for _, i := range instances {
			var stored struct{ ID string }
			if err := o.call(ctx, http.MethodPost, "/instances", i.File, &stored); err != nil {
				return nil, err
			}
			o.files[load] = append(o.files[load], stored.ID)
		}
	}
	return o, nil
}

// call makes one request of Orthanc's REST API. A body that is not []byte goes as JSON.
func (o *orthanc) call(ctx context.Context, method, path string, body, result any) error {
	payload, ok := body.([]byte)
	if !ok && body != nil {
		var err error
		if payload, err = json.Marshal(body); err != nil {
			return fmt.Errorf("make request: %w", err)
		}
	}
	r, err := http.NewRequestWithContext(ctx, method, o.url+path, bytes.NewReader(payload))
	if err != nil {
		return fmt.Errorf("make request: %w", err)
	}
	response, err := o.b.http.Do(r)
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }()
	answer, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s %s of Orthanc: status %d: %s", method, path, response.StatusCode, answer)
	}
	if result == nil {
		return nil
	}
	return json.Unmarshal(answer, result)
}

// times is what one load of Orthanc took, in seconds.
type times struct{ transfer, job float64 }

// play makes Orthanc run a load once, and asks the upstream whether all of it has arrived.
func (o *orthanc) play(ctx context.Context, upstream, load string, rtt time.Duration, files orthancFiles) (times, error) {
	server := "/dicom-web/servers/" + serverName(rtt)
	var before observation
	if err := o.b.control(ctx, http.MethodGet, upstream, "/bench/observation", &before); err != nil {
		return times{}, err
	}
	started := time.Now()
	var err error
	requests, size := int64(1), 0
	switch load {
	case orthancQIDO:
		requests = qidoCalls
		for range qidoCalls {
			var found []any
			if err = o.call(ctx, http.MethodPost, server+"/qido", map[string]any{
				"Uri": "/studies", "Arguments": map[string]string{"PatientID": "BENCH"},
			}, &found); err != nil || len(found) != 1 {
				err = errors.Join(err, fmt.Errorf("found %d studies, want 1", len(found)))
				break
			}
			err = nil
		}
	case orthancRetrieve:
		requests = int64(len(files.retrieve))
		var resources []map[string]string
		for _, i := range files.retrieve {
			resources = append(resources, map[string]string{
				"Study": i.StudyInstanceUID(), "Series": i.SeriesInstanceUID(), "Instance": i.SOPInstanceUID(),
			})
		}
		err = o.call(ctx, http.MethodPost, server+"/retrieve", map[string]any{"Resources": resources, "Synchronous": true}, nil)
	default:
		for _, i := range files.stow[load] {
			size += len(i.File)
		}
		err = o.call(ctx, http.MethodPost, server+"/stow", map[string]any{"Resources": o.files[load], "Synchronous": true}, nil)
	}
	t := times{job: time.Since(started).Seconds()}
	if err != nil {
		return t, err
	}
	var after observation
	if err := o.process.ready(ctx, func() error { // the upstream counts a request a moment after its answer
		err := o.b.control(ctx, http.MethodGet, upstream, "/bench/observation", &after)
		if got := after.Requests - before.Requests; err == nil && got != requests {
			err = fmt.Errorf("the upstream has seen %d requests, want %d", got, requests)
		}
		return err
	}); err != nil {
		return t, err
	}
	if size > 0 && after.Bytes != int64(size) {
		return t, fmt.Errorf("the upstream has received %d bytes, want %d", after.Bytes, size)
	}
	t.transfer = (after.Done.Sub(started) + rtt/2).Seconds() // its last answer is still to travel back
	if load == orthancQIDO {
		t.transfer = t.job // no job: the answer itself is what is timed
	}
	if load == orthancRetrieve {
		return t, o.forget(ctx, files.retrieve[0].StudyInstanceUID(), len(files.retrieve))
	}
	return t, nil
}

// forget deletes the study that was retrieved, so that the next round stores it anew. It must have as many instances.
func (o *orthanc) forget(ctx context.Context, studyInstanceUID string, instances int) error {
	var found []struct{ ID, Type string }
	if err := o.call(ctx, http.MethodPost, "/tools/lookup", []byte(studyInstanceUID), &found); err != nil {
		return err
	}
	if len(found) != 1 {
		return fmt.Errorf("found %d studies in Orthanc, want the one that it retrieved", len(found))
	}
	var stored []any
	if err := o.call(ctx, http.MethodGet, "/studies/"+found[0].ID+"/instances", nil, &stored); err != nil {
		return err
	}
	if len(stored) != instances {
		return fmt.Errorf("found %d instances in Orthanc after retrieving them, want %d", len(stored), instances)
	}
	return o.call(ctx, http.MethodDelete, "/studies/"+found[0].ID, nil, nil)
}

func serverName(rtt time.Duration) string { return "rtt" + fmt.Sprint(rtt.Milliseconds()) }

// runOrthanc compares two Orthancs: one goes through the gateway, the other one has a fixed token.
func runOrthanc(ctx context.Context, b *bench) error {
	where, err := findOrthanc()
	if err != nil {
		return b.missing(err)
	}
	files, err := b.makeOrthancFiles()
	if err != nil {
		return err
	}
	upstream, err := b.startUpstream()
	if err != nil {
		return err
	}
	_, provider, err := b.startProvider(time.Hour)
	if err != nil {
		return err
	}
	var forwarders []string
	with, without := make(map[string]any), make(map[string]any)
	for _, rtt := range orthancRTTs() {
		_, address, err := b.startServer("delay", delaySettings{To: numeric(upstream), RTT: rtt})
		if err != nil {
			return err
		}
		forwarders = append(forwarders, local(address))
		url := "https://" + local(address) + servicePath
		with[serverName(rtt)] = map[string]any{"Url": url}
		without[serverName(rtt)] = map[string]any{
			"Url": url, "HttpHeaders": map[string]string{"Authorization": "Bearer " + bearer(alwaysValid, b.secret)},
		}
	}
	g, _, err := b.gatewayPeer(ctx, gatewaySettings{upstreams: forwarders, provider: provider})
	if err != nil {
		return err
	}
	alone, err := b.startOrthanc(ctx, "orthanc-alone", where, files, map[string]any{
		"HttpsCACertificates": b.pki.CAFile, "DicomWeb": map[string]any{"Servers": without},
	})
	if err != nil {
		return err
	}
	through, err := b.startOrthanc(ctx, "orthanc-with-gateway", where, files, map[string]any{
		"HttpProxy": "http://" + g.target.Dial, "HttpsCACertificates": g.target.CAFile, "DicomWeb": map[string]any{"Servers": with},
	})
	if err != nil {
		return err
	}
	rows := make([]orthancRow, 0, len(orthancRTTs())*len(orthancLoads()))
	for _, rtt := range orthancRTTs() {
		for _, load := range orthancLoads() {
			rows = append(rows, orthancRow{Load: load, RTT: rtt})
		}
	}
	for round := range b.options.rounds + 1 {
		b.say("  round %d of %d", round, b.options.rounds) // round 0 warms up
		for i := range rows {
			row := &rows[i]
			if round == 0 && row.RTT > 0 && row.Load != orthancQIDO {
				continue // warm enough
			}
			for k := range 2 {
				o := []*orthanc{alone, through}[(k+round)%2]
				jobs := 1
				if row.Load == orthancStow27 {
					jobs = stow27Jobs
				}
				var t times
				for range jobs {
					once, err := o.play(ctx, upstream, row.Load, row.RTT, files)
					if err != nil {
						return fmt.Errorf("%s at %v: %w", row.Load, row.RTT, err)
					}
					t.transfer += once.transfer / float64(jobs)
					t.job += once.job / float64(jobs)
				}
				switch {
				case round == 0:
				case o == alone:
					row.Without, row.JobWithout = append(row.Without, t.transfer), append(row.JobWithout, t.job)
				default:
					row.With, row.JobWith = append(row.With, t.transfer), append(row.JobWith, t.job)
				}
			}
		}
	}
	b.orthancs = rows
	return nil
}
