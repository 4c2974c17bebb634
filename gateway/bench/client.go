package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"runtime/debug"
	"slices"
	"sync"
	"time"
)

// The kinds of jobs.
const (
	jobNewConnection = "new connection" // small requests, each on a connection of its own
	jobKeepAlive     = "keep-alive"     // small requests, one connection for each client
	jobDownload      = "download"
	jobUpload        = "upload"
	jobIdle          = "idle" // as many connections as Clients, which do nothing after one request
	jobUnauthorized  = "unauthorized"
)

// job is what a client process does. It warms up, waits until it is told to go, and then measures.
type job struct {
	Target   target
	Kind     string
	Clients  int
	Path     string        // of the small request; empty means qidoPath
	Duration time.Duration // of a job of small requests
	Bytes    int64         // of a body
	Chunked  bool
	Warm     bool // jobUnauthorized: one accepted request before the revocation
}

// outcome is what a client process has seen.
type outcome struct {
	Seconds  float64
	Requests int
	Bytes    int64
	P50, P99 float64 // seconds; of the small requests from their start to the end of the answer, new connection included
	Status   int     // jobUnauthorized: of the answer; 0 when there was none
	CRC      uint32  // jobUnauthorized: of the body that was meant
}

// playClient is a client process. Several goroutines make the clients.
func playClient(settings []byte) error {
	debug.SetGCPercent(400) // the client shall not compete with the proxy
	var j job
	if err := json.Unmarshal(settings, &j); err != nil {
		return err
	}
	conf, err := clientConfig(j.Target.CAFile, "localhost")
	if err != nil {
		return err
	}
	ctx := context.Background() // the process ends with the benchmark
	var o outcome
	switch j.Kind {
	case jobNewConnection, jobKeepAlive:
		o, err = j.small(ctx, conf)
	case jobDownload, jobUpload:
		o, err = j.bulk(ctx, conf)
	case jobIdle:
		o, err = j.idle(ctx, conf)
	case jobUnauthorized:
		o, err = j.unauthorized(ctx, conf)
	default:
		err = fmt.Errorf("unknown kind %q", j.Kind)
	}
	if err != nil {
		return err
	}
	return announce(o)
}

// waitToGo tells that the warm-up is done, and waits for the word to go.
func waitToGo() error {
	if err := announce("warm"); err != nil {
		return err
	}
	_, err := bufio.NewReader(os.Stdin).ReadBytes('\n')
	return err
}

// small runs small requests for the job's duration.
func (j *job) small(ctx context.Context, conf *tls.Config) (outcome, error) {
	path := j.Path
	if path == "" {
		path = qidoPath
	}
	request := j.Target.request("GET", path, "")
	once := func(c *conn, buf []byte) error { return c.ask(request, qidoLength, buf) }
	workers := make([]func() error, j.Clients)
	for i := range workers {
		buf := make([]byte, 4<<10)
		if j.Kind == jobNewConnection {
			workers[i] = func() error {
				c, err := j.Target.dial(ctx, conf)
				if err != nil {
					return err
				}
				defer func() { _ = c.Close() }() // with an alert, as Orthanc's libcurl does
				return once(c, buf)
			}
			continue
		}
		c, err := j.Target.dial(ctx, conf)
		if err != nil {
			return outcome{}, err
		}
		workers[i] = func() error { return once(c, buf) }
	}
	if _, err := repeat(workers, j.Duration/5); err != nil {
		return outcome{}, fmt.Errorf("warm up: %w", err)
	}
	if err := waitToGo(); err != nil {
		return outcome{}, err
	}
	started := time.Now()
	times, err := repeat(workers, j.Duration)
	if err != nil {
		return outcome{}, err
	}
	o := outcome{Seconds: time.Since(started).Seconds(), Requests: len(times)}
	slices.Sort(times)
	o.P50, o.P99 = times[len(times)/2].Seconds(), times[len(times)*99/100].Seconds()
	return o, nil
}

// repeat calls each worker again and again until the duration is over, each at least once, all at the same time. It returns
// how long each call took.
func repeat(workers []func() error, d time.Duration) ([]time.Duration, error) {
	end := time.Now().Add(d)
	times := make([][]time.Duration, len(workers))
	errs := make([]error, len(workers))
	var all sync.WaitGroup
	for i, work := range workers {
		all.Go(func() {
			for now := time.Now(); len(times[i]) == 0 || now.Before(end); {
				if errs[i] = work(); errs[i] != nil {
					return
				}
				after := time.Now()
				times[i] = append(times[i], after.Sub(now))
				now = after
			}
		})
	}
	all.Wait()
	return slices.Concat(times...), errors.Join(errs...)
}

// uploadChunk is the size of the chunks of a chunked upload: Orthanc's.
const uploadChunk = 64 << 10

// bulk moves one body, on a connection that has moved a small one before.
func (j *job) bulk(ctx context.Context, conf *tls.Config) (outcome, error) {
	c, err := j.Target.dial(ctx, conf)
	if err != nil {
		return outcome{}, err
	}
	move := j.download
	if j.Kind == jobUpload {
		move = j.upload
	}
	if err := move(c, min(j.Bytes, 4<<20)); err != nil {
		return outcome{}, fmt.Errorf("warm up: %w", err)
	}
	if err := waitToGo(); err != nil {
		return outcome{}, err
	}
	started := time.Now()
	if err := move(c, j.Bytes); err != nil {
		return outcome{}, err
	}
	return outcome{Seconds: time.Since(started).Seconds(), Requests: 1, Bytes: j.Bytes}, nil
}

func (j *job) download(c *conn, n int64) error {
	path := fmt.Sprintf("%s%d", bulkPath, n)
	if !j.Chunked {
		path += "?length"
	}
	return c.ask(j.Target.request("GET", path, ""), n, make([]byte, 64<<10))
}

func (j *job) upload(c *conn, n int64) error {
	if err := j.send(c, bulkPath, n, nil); err != nil {
		return err
	}
	// The answer tells how many bytes have arrived.
	want := fmt.Sprint(n)
	h, err := c.readHead()
	if err != nil {
		return err
	}
	if h.status != 200 || h.length != int64(len(want)) {
		return fmt.Errorf("got status %d and %d bytes", h.status, h.length)
	}
	got := make([]byte, len(want))
	for i := range got {
		if got[i], err = c.br.ReadByte(); err != nil {
			return err
		}
	}
	if string(got) != want {
		return fmt.Errorf("the upstream has received %s bytes, want %s", got, want)
	}
	return nil
}

// send sends a request with a body of n bytes. It calls sent, if that is not nil, with each piece before it is sent.
func (j *job) send(c *conn, path string, n int64, sent func([]byte)) error {
	head := "Content-Type: multipart/related; type=\"application/dicom\"; boundary=x\r\n"
	if j.Chunked {
		head += "Transfer-Encoding: chunked\r\n"
	} else {
		head += fmt.Sprintf("Content-Length: %d\r\n", n)
	}
	if _, err := c.Write(j.Target.request("POST", path, head)); err != nil {
		return err
	}
	const size = "10000\r\n" // uploadChunk in hexadecimal
	frame := append(make([]byte, len(size)+uploadChunk), "\r\n"...)
	copy(frame, size)
	piece := frame[len(size) : len(size)+uploadChunk]
	_, _ = rand.NewChaCha8([32]byte{1}).Read(piece) // never fails
	for left := n; left > 0; left -= uploadChunk {
		last := piece[:min(left, uploadChunk)]
		if sent != nil {
			sent(last)
		}
		out := last
		switch {
		case j.Chunked && len(last) == uploadChunk:
			out = frame
		case j.Chunked:
			out = fmt.Appendf(nil, "%x\r\n%s\r\n", len(last), last)
		}
		if _, err := c.Write(out); err != nil {
			return err
		}
	}
	if j.Chunked {
		_, err := c.Write([]byte("0\r\n\r\n"))
		return err
	}
	return nil
}

// idle opens connections and makes one request on each. After the word to go it makes another one: all must be alive.
func (j *job) idle(ctx context.Context, conf *tls.Config) (outcome, error) {
	request := j.Target.request("GET", qidoPath, "")
	conns := make([]*conn, j.Clients)
	each := func(do func(i int) error) error {
		const hands = 16
		errs := make([]error, hands)
		var all sync.WaitGroup
		for hand := range hands {
			all.Go(func() {
				for i := hand; i < len(conns) && errs[hand] == nil; i += hands {
					errs[hand] = do(i)
				}
			})
		}
		all.Wait()
		return errors.Join(errs...)
	}
	err := each(func(i int) (err error) {
		if conns[i], err = j.Target.dial(ctx, conf); err != nil {
			return err
		}
		conns[i].br = bufio.NewReaderSize(conns[i].Conn, 4<<10) // ten thousand of them
		return conns[i].ask(request, qidoLength, nil)
	})
	if err != nil {
		return outcome{}, err
	}
	if err := waitToGo(); err != nil {
		return outcome{}, err
	}
	err = each(func(i int) error { return conns[i].ask(request, qidoLength, nil) })
	return outcome{Requests: len(conns)}, err
}

// unauthorized uploads one body with a token that the upstream no longer accepts, and reads the answer meanwhile.
func (j *job) unauthorized(ctx context.Context, conf *tls.Config) (outcome, error) {
	c, err := j.Target.dial(ctx, conf)
	if err != nil {
		return outcome{}, err
	}
	if j.Warm {
		if err := c.ask(j.Target.request("GET", qidoPath, ""), qidoLength, nil); err != nil {
			return outcome{}, err
		}
	}
	if err := waitToGo(); err != nil {
		return outcome{}, err
	}
	answered := make(chan int, 1)
	go func() {
		h, _ := c.readHead() // the status is 0 where the connection was cut instead
		answered <- h.status
	}()
	crc := crc32.NewIEEE()
	var o outcome
	_ = j.send(c, bulkPath+"?crc", j.Bytes, func(p []byte) { // it may fail: an answer to half a body can end the rest
		_, _ = crc.Write(p)
		o.Bytes += int64(len(p))
	})
	o.CRC = crc.Sum32()
	o.Status = <-answered
	return o, nil
}
