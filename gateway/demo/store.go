package demo

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"sync"
	"sync/atomic"
)

// defaultMaxBytes bounds what a server keeps in memory.
const defaultMaxBytes = 512 << 20

// errFull says that the store has no room for an instance.
var errFull = errors.New("the server's memory is full")

// store keeps instances in memory, in the order of their arrival.
type store struct {
	maxBytes int64
	used     atomic.Int64 // bytes of instances that are kept or being received

	mu        sync.RWMutex
	instances []*Instance
}

// receive reads one file, within the room that is left. What it returns counts as used until put or release.
func (s *store) receive(r io.Reader) ([]byte, error) {
	var file bytes.Buffer
	chunk := make([]byte, 64<<10)
	for {
		n, err := r.Read(chunk)
		if s.used.Add(int64(n)) > s.maxBytes {
			err = errFull
		}
		switch {
		case err == nil:
			file.Write(chunk[:n])
		case errors.Is(err, io.EOF):
			file.Write(chunk[:n])
			return bytes.Clone(file.Bytes()), nil // without the spare room of the buffer
		default:
			s.release(file.Len() + n)
			return nil, err
		}
	}
}

// release gives back the room of n received bytes.
func (s *store) release(n int) { s.used.Add(-int64(n)) }

// put keeps a received instance, in the place of one with the same UID.
func (s *store) put(i *Instance) {
	s.mu.Lock()
	defer s.mu.Unlock()
	at := slices.IndexFunc(s.instances, func(o *Instance) bool { return o.SOPInstanceUID() == i.SOPInstanceUID() })
	if at < 0 {
		s.instances = append(s.instances, i)
		return
	}
	s.release(len(s.instances[at].File))
	s.instances[at] = i
}

// find returns the instances of a study, and of a series and with a SOP instance UID unless these are empty. An empty
// study stands for all.
func (s *store) find(study, series, instance string) []*Instance {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var found []*Instance
	for _, i := range s.instances {
		if (study == "" || study == i.StudyInstanceUID()) &&
			(series == "" || series == i.SeriesInstanceUID()) &&
			(instance == "" || instance == i.SOPInstanceUID()) {
			found = append(found, i)
		}
	}
	return found
}

// remove drops a study and says whether there was one.
func (s *store) remove(study string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	before := len(s.instances)
	s.instances = slices.DeleteFunc(s.instances, func(i *Instance) bool {
		if i.StudyInstanceUID() != study {
			return false
		}
		s.release(len(i.File))
		return true
	})
	return len(s.instances) < before
}
