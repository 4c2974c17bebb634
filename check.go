package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"orthanc-dicomweb-oauth/gateway"
	"orthanc-dicomweb-oauth/rules"
	"orthanc-dicomweb-oauth/rules/orthancjson"
)

// check loads the config as run would, but listens nowhere and makes no CA.
func check(path string, asJSON bool, stdout, stderr io.Writer) error {
	c, err := rules.Load(path, os.LookupEnv)
	if err == nil {
		err = gateway.CheckCA(c)
	}
	if asJSON {
		problems, _ := errors.AsType[rules.Problems](err) // which is what both return
		if problems == nil {
			problems = rules.Problems{}
		}
		result := struct {
			OK       bool           `json:"ok"`
			Problems rules.Problems `json:"problems"`
			Warnings rules.Problems `json:"warnings,omitempty"`
		}{OK: err == nil, Problems: problems}
		if c != nil {
			result.Warnings = c.Warnings
		}
		if jsonErr := json.NewEncoder(stdout).Encode(result); jsonErr != nil {
			return jsonErr
		}
		return err
	}
	if c != nil {
		for _, w := range c.Warnings {
			fmt.Fprintf(stderr, "warning: %s\nhint: %s\n", w, w.Hint)
		}
	}
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(stdout, "%s: ok, %s, %s\n", path, counted(len(c.Rules), "rule"), counted(len(c.Profiles), "profile"))
	return err
}

// counted is a number of things, such as "1 rule" and "2 rules".
func counted(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// match is the match command.
func match(path, method, url string, asJSON bool, stdout io.Writer) error {
	c, err := rules.Load(path, os.LookupEnv)
	if err != nil {
		return err
	}
	e, err := c.Explain(method, url)
	if err != nil {
		return &usageError{err.Error(), "such as: " + name + " match GET https://dicom.example.org/dicom-web/studies"}
	}
	if asJSON {
		return json.NewEncoder(stdout).Encode(e)
	}
	rule := "none"
	if e.Rule != "" {
		rule = e.Rule
	}
	_, err = fmt.Fprintf(stdout, "rule:  %s\nwould: %s\nwhy:   %s\n", rule, strings.TrimSpace(e.Would+" "+e.Code), e.Why)
	return err
}

// importFile is the import command.
func importFile(path string, stdout, stderr io.Writer) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return &usageError{err.Error(), "name the orthanc.json, or a file with its OAuth section"}
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return err
	}
	converted, notes, err := orthancjson.Convert(text, filepath.Dir(abs))
	if err != nil {
		return &usageError{fmt.Sprintf("%s: %s", path, err), ""}
	}
	for _, note := range notes {
		fmt.Fprintf(stderr, "note: %s\n", note)
	}
	_, err = stdout.Write(converted)
	return err
}
