package main

import (
	"os"

	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/format/output"
	"github.com/loratool/loratool/internal/fileio"
	"github.com/loratool/loratool/internal/page"
	"github.com/urfave/cli/v2"
)

// pageOption is --html, the file for a report as a page.
type pageOption struct{ html string }

func (o *pageOption) pageFlag(what string) cli.Flag {
	return &cli.StringFlag{Name: "html", Usage: "write the report to `FILE`, too, as a page for a browser: " + what, Destination: &o.html}
}

// place is the place of the page. It must not be one of the inputs, nor another output of the run.
func (o *pageOption) place(replace bool, inputs, outputs []string) fileio.Place {
	place := fileio.Place{Path: o.html, Replace: replace, Known: isPage, Kind: "a page of loratool"}
	for _, path := range inputs {
		file, _ := convert.SplitMember(path)
		place.Inputs = append(place.Inputs, file)
	}
	for _, path := range outputs {
		if path != "" {
			place.Apart = append(place.Apart, path)
		}
	}
	return place
}

// checkDry refuses --html for a run that makes no report.
func (o *pageOption) checkDry(dryRun bool) error {
	if o.html != "" && dryRun {
		return usagef("leave out --dry-run", "--dry-run makes no report for --html")
	}
	return nil
}

// checkPage checks before the work that the page can be written.
func (o *pageOption) checkPage(place fileio.Place) error {
	if o.html == "" {
		return nil
	}
	return o.named(place.Check())
}

// writePage writes the page that draw makes, if the user asked for one, and says so.
func (o *pageOption) writePage(t *terminal, c *common, place fileio.Place, head page.Head, draw func(page.Head) ([]byte, error)) error {
	if o.html == "" {
		return nil
	}
	head.Tool = "loratool " + version
	for i, note := range head.Notes {
		head.Notes[i] = flagsFor(note)
	}
	text, err := draw(head)
	if err != nil {
		return err
	}
	if err := writeWhole(place, text, 0o644); err != nil {
		return o.named(err)
	}
	if !c.json && !c.quiet {
		t.line("page in %s: %s, for a browser", o.html, fileio.FormatBytes(int64(len(text))))
	}
	return nil
}

// named tells the page from the other outputs in an error.
func (o *pageOption) named(err error) error {
	if err == nil {
		return nil
	}
	return pathError{err, "--html"}
}

// isPage reports whether a file is a page, which --force may replace.
func isPage(path string) bool {
	f, _, err := fileio.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	text := make([]byte, 1<<12)
	n, _ := f.ReadAt(text, 0)
	return page.Is(text[:n])
}

// writeWhole writes a file, whole or not at all.
func writeWhole(place fileio.Place, content []byte, mode os.FileMode) error {
	if err := place.Check(); err != nil {
		return err
	}
	out, err := output.NewDisk(place.Path, output.DiskOptions{Replace: place.Replace})
	if err != nil {
		return err
	}
	defer out.Abort()
	f, err := out.Create(output.Info{Size: int64(len(content)), Mode: mode})
	if err != nil {
		return err
	}
	if _, err := f.WriteAt(content, 0); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return out.Commit()
}
