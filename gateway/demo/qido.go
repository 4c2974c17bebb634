package demo

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// search answers QIDO-RS at level l.
func (s *Server) search(l level) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		q, err := parseQuery(r.URL.RawQuery)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		found := []dataset{} // an empty answer is [], not null
		for _, group := range group(s.store.find(r.PathValue("study"), r.PathValue("series"), ""), l) {
			if at := slices.IndexFunc(group, q.matches); at >= 0 {
				found = append(found, summary(group, group[at], l, serviceURL(r)))
			}
		}
		found = found[min(q.offset, len(found)):]
		if q.limit >= 0 {
			found = found[:min(q.limit, len(found))]
		}
		writeJSON(w, dicomJSON, http.StatusOK, found)
	}
}

// group parts instances by study, by series, or one by one, in the order of their first one.
func group(instances []*Instance, l level) [][]*Instance {
	var groups [][]*Instance
	position := make(map[string]int)
	for _, i := range instances {
		key := i.StudyInstanceUID()
		if l >= levelSeries {
			key += "/" + i.SeriesInstanceUID()
		}
		if l == levelInstance {
			key += "/" + i.SOPInstanceUID()
		}
		at, known := position[key]
		if !known {
			at = len(groups)
			position[key] = at
			groups = append(groups, nil)
		}
		groups[at] = append(groups[at], i)
	}
	return groups
}

// summary describes a group by one of its instances, and by what it holds.
func summary(group []*Instance, i *Instance, l level, base string) dataset {
	d := make(dataset)
	d.describeInstance(i, l)
	url := base + "studies/" + i.StudyInstanceUID()
	if l >= levelSeries {
		url += "/series/" + i.SeriesInstanceUID()
	}
	switch l {
	case levelStudy:
		var modalities []any
		for _, m := range distinct(group, TagModality) {
			modalities = append(modalities, m)
		}
		d.set(tagModalitiesInStudy, "CS", modalities...)
		d.set(tagSeriesInStudy, "IS", len(distinct(group, TagSeriesInstanceUID)))
		d.set(tagInstancesInStudy, "IS", len(group))
	case levelSeries:
		d.set(tagInstancesInSeries, "IS", len(group))
	case levelInstance:
		url += "/instances/" + i.SOPInstanceUID()
	}
	d.set(tagRetrieveURL, "UR", url)
	return d
}

// query is the query of a QIDO-RS request.
type query struct {
	keys   []key
	offset int
	limit  int // -1 when there is none
}

// key is one attribute to match.
type key struct {
	attribute
	pattern string
}

// parseQuery reads the parameters. What the server does not know (includefield, fuzzymatching, other attributes) does
// not narrow the search.
func parseQuery(raw string) (query, error) {
	q := query{limit: -1}
	parameters, err := url.ParseQuery(raw)
	if err != nil {
		return query{}, fmt.Errorf("parse query: %w", err)
	}
	for name, values := range parameters {
		switch name {
		case "limit":
			q.limit, err = strconv.Atoi(values[0])
		case "offset":
			q.offset, err = strconv.Atoi(values[0])
		case "ModalitiesInStudy", tagModalitiesInStudy.String():
			name = "Modality"
		}
		if err != nil || q.offset < 0 || q.limit < -1 {
			return query{}, fmt.Errorf("parse query: %s is not a count", name)
		}
		for _, a := range attributes() {
			if name == a.keyword || strings.EqualFold(name, a.tag.String()) {
				q.keys = append(q.keys, key{a, values[0]})
			}
		}
	}
	return q, nil
}

func (q query) matches(i *Instance) bool {
	for _, k := range q.keys {
		if !k.matches(i.Value(k.tag)) {
			return false
		}
	}
	return true
}

// matches compares as PS3.4 section C.2.2.2 says: universal, list of UIDs, date range, wildcard or single value.
func (k key) matches(value string) bool {
	switch from, to, isRange := strings.Cut(k.pattern, "-"); {
	case k.pattern == "":
		return true
	case k.vr == "UI":
		uids := strings.FieldsFunc(k.pattern, func(r rune) bool { return r == ',' || r == '\\' })
		return slices.Contains(uids, value)
	case (k.vr == "DA" || k.vr == "TM") && isRange:
		return value != "" && value >= from && (to == "" || value <= to)
	case k.vr == "PN":
		return wildcard(strings.ToLower(k.pattern), strings.ToLower(value))
	default:
		return wildcard(k.pattern, value)
	}
}

// wildcard matches s against a pattern with * and ?. It takes time in the product of the lengths at most.
func wildcard(pattern, s string) bool {
	p, star, mark := 0, -1, 0
	for i := 0; i < len(s); {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			star, mark = p, i
			p++
		case p < len(pattern) && (pattern[p] == '?' || pattern[p] == s[i]):
			p++
			i++
		case star >= 0: // let the last star take one more
			mark++
			p, i = star+1, mark
		default:
			return false
		}
	}
	return strings.Trim(pattern[p:], "*") == ""
}
