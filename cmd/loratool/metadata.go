package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/report"
)

// showTraining prints what the metadata of an adapter say of it and of its training.
func showTraining(t *terminal, r *report.Adapter) {
	m := r.Training
	if m == nil {
		return
	}
	say := func(label string, parts ...string) {
		if text := joined(parts...); text != "" {
			t.line("%-9s %s", label, text)
		}
	}
	say("title", m.Title, prefixed("for ", m.Architecture), prefixed("by ", m.Author), m.Date)
	say("trigger", m.Trigger)
	say("usage", m.UsageHint)
	say("trained", prefixed("by ", m.Program), m.Network, prefixed("dim ", m.Dim),
		prefixed("alpha ", m.Alpha), prefixed("arguments ", m.Args))
	say("trained", prefixed("on ", m.BaseFile), m.Base, prefixed("SHA-256 ", m.BaseHash))
	say("trained", share("step", m.Steps, m.MaxSteps), share("epoch", m.Epoch, m.Epochs),
		prefixed("learning rate ", m.LearningRate), prefixed("of the U-Net ", m.UNetRate),
		prefixed("of the text encoder ", m.EncoderRate), m.Optimizer)
	showTags(t, m)
	for _, c := range m.Configuration {
		t.line("config    %s", c)
	}
	for _, why := range m.Unreadable {
		t.line("note      in the metadata, %s", why)
	}
}

// maxTags is how many tags a report shows.
const maxTags = 10

// showTags prints the most frequent tags of the captions.
func showTags(t *terminal, m *report.Training) {
	if len(m.Tags) == 0 {
		return
	}
	var all []string
	for _, tag := range m.Tags[:min(len(m.Tags), maxTags)] {
		all = append(all, fmt.Sprintf("%s %s", tag.Tag, countText(tag.Count)))
	}
	text := strings.Join(all, ", ")
	if n := m.NTags - len(all); n > 0 {
		text += " and " + fault.Count(n, "other")
	}
	t.line("tags      %s", text)
}

// joined joins the parts that are not empty.
func joined(parts ...string) string {
	return strings.Join(slices.DeleteFunc(parts, func(s string) bool { return s == "" }), ", ")
}

// prefixed puts a word before a text, unless the text is empty.
func prefixed(word, text string) string {
	if text == "" {
		return ""
	}
	return word + text
}

// share says which of how many steps or epochs: step 1600 of 1600.
func share(noun, n, all string) string {
	if n == "" || all == "" || all == "0" {
		return prefixed(noun+" ", n)
	}
	return noun + " " + n + " of " + all
}

// showHashes prints the hashes by which other programs know the file, and whether its header has
// the right ones.
func showHashes(t *terminal, r *report.Adapter) {
	h := r.Hashes
	switch {
	case h == nil && r.Metadata == nil:
		return
	case h == nil:
		said := limited(r.Metadata["sshs_model_hash"])
		t.line("hashes    not computed%s; --hashes computes those of Civitai and sd-scripts",
			prefixed("; the header says sshs_model_hash ", said))
		return
	}
	t.line("hashes    SHA-256 %s", h.SHA256)
	t.line("hashes    of Civitai: AutoV1 %s, AutoV2 %s%s", h.AutoV1, h.AutoV2,
		prefixed(", AutoV3 ", h.AutoV3))
	for _, x := range h.Header {
		if x.Verdict == "missing" && x.Entry != "sshs_model_hash" {
			continue // it adds nothing to the line of Civitai
		}
		t.line("hashes    %s", headerHashText(&x))
		if x.Entry == "sshs_model_hash" && !strings.HasPrefix(x.Hash, h.AutoV3) {
			t.line("hashes    AutoV3 differs from it: the file has its tensors in another order " +
				"than sd-scripts writes")
		}
	}
}

// hashOfNothing is the SHA-256 of no bytes, which a faulty trainer wrote into every file.
const hashOfNothing = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

// headerHashText says what a hash is, and whether the header has it.
func headerHashText(x *report.HeaderHash) string {
	switch x.Verdict {
	case "right":
		return fmt.Sprintf("%s %s, as the header says", x.Entry, x.Hash)
	case "missing":
		return fmt.Sprintf("%s %s, which the header lacks", x.Entry, x.Hash)
	case "unknown":
		return fmt.Sprintf("%s cannot be checked, because it depends on the order of the metadata "+
			"in memory; the header says %s", x.Entry, limited(x.Found))
	}
	found := limited(x.Found)
	if x.Found == hashOfNothing {
		found += ", the hash of no bytes,"
	}
	return fmt.Sprintf("%s %s; the header says %s, which is not of these tensors",
		x.Entry, x.Hash, found)
}

// maxShownBytes bounds a value of the metadata in a line of a report.
const maxShownBytes = 2000

// showMetadata prints all entries of the metadata. A value that is very long is cut.
func showMetadata(t *terminal, r *report.Adapter) {
	if len(r.Metadata) == 0 {
		t.line("metadata  none")
		return
	}
	for _, key := range slices.Sorted(maps.Keys(r.Metadata)) {
		value, more := r.Metadata[key], ""
		if n := len(value); n > maxShownBytes {
			value = strings.ToValidUTF8(value[:maxShownBytes], "")
			more = fmt.Sprintf("… (%s bytes; --json shows all)", countText(int64(n)))
		}
		t.line("metadata  %s = %s%s", limited(key), value, more)
	}
}

// limited cuts a text from a file that should be short.
func limited(s string) string {
	const most = 100
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "…"
}
