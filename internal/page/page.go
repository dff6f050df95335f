// Package page writes reports as pages: one HTML file with everything in it. A page works from a
// disk, and its content security policy forbids it the network. It shows layers × modules as heat
// maps, which are tables with coloured cells, all layers as a table, and the spectrum of a layer on
// demand. Without scripts the tables are still there.
package page

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/base64"
	"html/template"
)

// Head is the part of a page that the report does not know.
type Head struct {
	Command string // the command that made the report, such as inspect
	Title   string // the subject of the report
	Tool    string // the program and its version
	Notes   []string
}

// Fact is a line of the summary.
type Fact struct{ Name, Value string }

// facts keeps the facts that have a value.
func facts(all ...Fact) (kept []Fact) {
	for _, f := range all {
		if f.Value != "" {
			kept = append(kept, f)
		}
	}
	return kept
}

// list is a list of names with a heading.
type list struct {
	Name  string
	Items []string
}

// page is the content of a page, as the template takes it.
type page struct {
	Head
	Verdict string   // "" is none
	IsBad   bool     // the verdict warns
	Reasons []string // for the verdict
	Facts   []Fact
	Lists   []list

	LayersTitle, NameHead string
	DetailName            string // what a click on a layer shows
	table

	Policy string
	Style  template.CSS
	Chart  template.JS // the library for charts, "" if the page has none
	Script template.JS
}

// addList adds a list of names, if there are any.
func (p *page) addList(name string, items []string) {
	if len(items) > 0 {
		p.Lists = append(p.Lists, list{name, items})
	}
}

//go:embed assets
var assets embed.FS

func asset(name string) string {
	text, err := assets.ReadFile("assets/" + name)
	if err != nil {
		panic(err) // it is a part of the program
	}
	return string(text)
}

var pageTemplate = template.Must(template.New("page").Funcs(template.FuncMap{"lineParts": lineParts}).Parse(asset("page.html")))

// render returns the page as HTML.
func (p *page) render() ([]byte, error) {
	style, script := asset("page.css"), asset("page.js")
	scripts := hash(script)
	if p.Data.Sigma != nil {
		chart := asset("uplot/uPlot.iife.min.js")
		style = asset("uplot/uPlot.min.css") + style
		scripts, p.Chart = hash(chart)+" "+scripts, template.JS(chart)
	}
	p.Style, p.Script = template.CSS(style), template.JS(script)
	p.Policy = "default-src 'none'; base-uri 'none'; form-action 'none'; style-src " + hash(style) + "; script-src " + scripts
	var b bytes.Buffer
	if err := pageTemplate.Execute(&b, p); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// hash names a text that a content security policy allows.
func hash(text string) string {
	sum := sha256.Sum256([]byte(text))
	return "'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
}

// Is reports whether the beginning of a file is that of a page of this package.
func Is(text []byte) bool {
	return bytes.HasPrefix(text, []byte("<!DOCTYPE html>")) && bytes.Contains(text, []byte(generator))
}

// generator is the beginning of the mark by which a page is known.
const generator = `<meta name="generator" content="loratool`
