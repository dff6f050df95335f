package audit

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"net/url"
	"path/filepath"
	"strings"
)

// SARIF returns the report in the Static Analysis Results Interchange Format, version 2.1.0: a rule
// for each finding, and a result for each tensor that is not as claimed. Tool and version name the
// calling program, and merged is the path of the merged checkpoint.
func (r *Report) SARIF(tool, version, base, merged string, isDir bool, exitCode int) ([]byte, error) {
	rules, ruleAt := sarifRules()
	results := []sarifResult{}
	for i := range r.Tensors {
		if t := &r.Tensors[i]; t.Verdict != AsClaimed {
			results = append(results, t.sarif(ruleAt[t.Finding], fileOf(merged, isDir, t.File)))
		}
	}
	run := sarifRun{Results: results, Properties: map[string]any{
		"verdict": r.Verdict, "text": r.Text(base, merged), "rounding": r.Rounding, "margin": r.Margin, "tensors": len(r.Tensors),
	}}
	run.Tool.Driver = sarifDriver{Name: tool, Version: version, InformationURI: "https://github.com/loratool/loratool", Rules: rules}
	run.Invocations = []sarifInvocation{{ExecutionSuccessful: true, ExitCode: exitCode}}
	return json.MarshalIndent(sarifLog{
		Schema:  "https://json.schemastore.org/sarif-2.1.0.json",
		Version: "2.1.0", Runs: []sarifRun{run},
	}, "", "  ")
}

// sarifRules lists the findings that a result can have.
func sarifRules() (rules []sarifRule, at map[Finding]int) {
	at = make(map[Finding]int)
	for _, f := range Findings() {
		if f == Untouched || f == Merged || f == Replaced || f == Copied {
			continue
		}
		at[f] = len(rules)
		rules = append(rules, sarifRule{ID: f, Name: camelCase(string(f)), ShortDescription: sarifText{f.Text()}})
	}
	return rules, at
}

// camelCase joins the words of a name that has underscores.
func camelCase(name string) string {
	var b strings.Builder
	for _, word := range strings.Split(name, "_") {
		b.WriteString(strings.ToUpper(word[:1]) + word[1:])
	}
	return b.String()
}

// sarif is the result of a tensor.
func (t *Tensor) sarif(rule int, uri string) sarifResult {
	level := "error"
	if t.Verdict == Inconclusive {
		level = "warning"
	}
	sum := sha256.Sum256([]byte(string(t.Finding) + "\x00" + t.Tensor))
	x := sarifResult{
		RuleID: t.Finding, RuleIndex: rule, Level: level, Message: sarifText{t.Tensor + ": " + t.Explain()},
		// GitHub makes this print from lines of the file, which a checkpoint does not have.
		Fingerprints: map[string]string{"primaryLocationLineHash": hex.EncodeToString(sum[:8]) + ":1"},
	}
	var at sarifLocation
	at.Physical.Artifact.URI = uri
	at.Physical.Region.StartLine = 1 // GitHub wants a line
	at.Logical = []sarifLogical{{t.Tensor, "member"}}
	x.Locations = []sarifLocation{at}
	return x
}

// fileOf is the address of a file of a checkpoint, relative if the path is.
func fileOf(path string, isDir bool, file string) string {
	if isDir {
		path = filepath.Join(path, filepath.FromSlash(file))
	}
	u := url.URL{Path: filepath.ToSlash(path)}
	switch {
	case strings.HasPrefix(u.Path, "/"):
		u.Scheme = "file"
	case filepath.IsAbs(path): // a drive of Windows
		u.Scheme, u.Path = "file", "/"+u.Path
	}
	return u.String()
}

type sarifLog struct {
	Schema  string     `json:"$schema"`
	Version string     `json:"version"`
	Runs    []sarifRun `json:"runs"`
}

type sarifRun struct {
	Tool struct {
		Driver sarifDriver `json:"driver"`
	} `json:"tool"`
	Invocations []sarifInvocation `json:"invocations"`
	Results     []sarifResult     `json:"results"`
	Properties  map[string]any    `json:"properties"`
}

type sarifDriver struct {
	Name           string      `json:"name"`
	Version        string      `json:"version"`
	InformationURI string      `json:"informationUri"`
	Rules          []sarifRule `json:"rules"`
}

type sarifRule struct {
	ID               Finding   `json:"id"`
	Name             string    `json:"name"`
	ShortDescription sarifText `json:"shortDescription"`
}

type sarifText struct {
	Text string `json:"text"`
}

type sarifInvocation struct {
	ExecutionSuccessful bool `json:"executionSuccessful"`
	ExitCode            int  `json:"exitCode"`
}

type sarifResult struct {
	RuleID       Finding           `json:"ruleId"`
	RuleIndex    int               `json:"ruleIndex"`
	Level        string            `json:"level"`
	Message      sarifText         `json:"message"`
	Locations    []sarifLocation   `json:"locations"`
	Fingerprints map[string]string `json:"partialFingerprints"`
}

type sarifLocation struct {
	Physical struct {
		Artifact struct {
			URI string `json:"uri"`
		} `json:"artifactLocation"`
		Region struct {
			StartLine int `json:"startLine"`
		} `json:"region"`
	} `json:"physicalLocation"`
	Logical []sarifLogical `json:"logicalLocations"`
}

type sarifLogical struct {
	Name string `json:"fullyQualifiedName"`
	Kind string `json:"kind"`
}
