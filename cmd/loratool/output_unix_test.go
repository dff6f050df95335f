//go:build unix

package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/internal/testkit"
	"github.com/loratool/loratool/merge"
)

// demoCopy copies the demo's base and adapter.
func demoCopy(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	if err := os.CopyFS(dir, os.DirFS("../../testdata/demo")); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestWhatChangesWhileAMergeRunsIsAnError rewrites inputs between the plan and the run, with their
// sizes and times as they were.
func TestWhatChangesWhileAMergeRunsIsAnError(t *testing.T) {
	touch := func(path string) error {
		info, err := os.Stat(path)
		if err != nil {
			return err
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		content[len(content)-1] ^= 1
		return errors.Join(os.WriteFile(path, content, 0o666), os.Chtimes(path, info.ModTime(), info.ModTime()))
	}
	exchange := func(path string) error {
		content, err := os.ReadFile(path)
		return errors.Join(err, os.Remove(path), os.WriteFile(path, content, 0o666))
	}
	fifo := func(path string) error { return errors.Join(os.Remove(path), syscall.Mkfifo(path, 0o666)) }
	for _, c := range []struct {
		file, want string
		act        func(string) error
	}{
		{"adapter-r8/adapter_model.safetensors", "changed while this run read it", touch},
		{"adapter-r8/adapter_config.json", "changed while this run read it", touch},
		{"adapter-r8/adapter_model.safetensors", "another file has taken its place", exchange},
		{"adapter-r8/adapter_config.json", "it is gone", os.Remove},
		{"base/model.safetensors", "changed while this run read it", touch},
		{"base/config.json", "changed while this run read it", touch},
		{"base/generation_config.json", "it is a pipe", fifo},
	} {
		dir := demoCopy(t)
		adapter := filepath.Join(dir, "adapter-r8")
		src, err := convert.Open(t.Context(), adapter, convert.Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer src.Close()
		plan, err := merge.Open(t.Context(), filepath.Join(dir, "base"), []merge.Adapter{{Source: src, Name: adapter, Weight: 1}}, merge.Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer plan.Close()
		if err := c.act(filepath.Join(dir, c.file)); err != nil {
			t.Fatal(err)
		}
		out := filepath.Join(dir, "out")
		_, err = plan.Run(t.Context(), out)
		if err == nil || !strings.Contains(err.Error(), filepath.Base(c.file)) || !strings.Contains(err.Error(), c.want) || exitCode(err) != exitInput {
			t.Errorf("Run when %s was changed = %v, want an error of the input that says %q", c.file, err, c.want)
		}
		checkAbsent(t, out)
	}
}

// TestAStageThatVanishesWhileMergingIsAnError removes the hidden directory at work, as another
// machine's sweep could.
func TestAStageThatVanishesWhileMergingIsAnError(t *testing.T) {
	dir := t.TempDir()
	base, adapter := largeCase(t, dir)
	outs := t.TempDir()
	r := runUntil(t, outs, []string{"merge", base, adapter, "-o", filepath.Join(outs, "out"), "--workers", "1"},
		func() bool { return hasLargeFile(outs) },
		func(*os.Process) error { return os.RemoveAll(filepath.Join(outs, hidden(t, outs))) })
	if r.code != exitFailed || !strings.Contains(r.stderr, "has been removed or changed by somebody else") {
		t.Errorf("the exit code is %d, want %d and an error that says why: %s", r.code, exitFailed, r.stderr)
	}
	checkTree(t, "after all", outs, map[string]string{})
}

func TestOutputsAreAsPrivateAsTheirInputs(t *testing.T) {
	old := syscall.Umask(0o022)
	defer syscall.Umask(old)
	dir := demoCopy(t)
	at := func(name string) string { return filepath.Join(dir, filepath.FromSlash(name)) }
	testkit.Write(t, at("base/run.sh"), []byte("#!/bin/sh\n"))
	if err := errors.Join(
		os.Chmod(at("base"), 0o750), os.Chmod(at("base/model.safetensors"), 0o600), os.Chmod(at("base/config.json"), 0o440),
		os.Chmod(at("base/run.sh"), 0o755), os.Chmod(at("adapter-r8"), 0o700),
		os.Chmod(at("adapter-r8/adapter_model.safetensors"), 0o640), os.Chmod(at("adapter-r8/adapter_config.json"), 0o644),
	); err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		"merge base adapter-r8 -o merged --undo", "merge base/model.safetensors adapter-r8 -o single.safetensors",
		"unmerge merged adapter-r8 -o back", "convert adapter-r8 -o a.lora", "convert a.lora -o peft", "convert adapter-r8 --to peft -o copy",
		"convert adapter-r8 -o w.safetensors", "extract base merged --rank 1 -o x.lora",
	} {
		cmd := program(strings.Fields(line)...)
		cmd.Dir = dir
		if r := finishNow(t, cmd); r.code != 0 {
			t.Fatalf("%s: %s", line, r.stderr)
		}
	}
	for name, want := range map[string]os.FileMode{
		"merged": 0o750, "merged/model.safetensors": 0o600, "merged/config.json": 0o640, "merged/run.sh": 0o755, "merged.undo": 0o600,
		"single.safetensors": 0o600, "back/model.safetensors": 0o600, "back/run.sh": 0o755, "a.lora": 0o640, "peft/adapter_config.json": 0o640,
		"copy": 0o700, "copy/adapter_model.safetensors": 0o640, "copy/adapter_config.json": 0o644, "w.safetensors": 0o640, "adapter_config.json": 0o644,
		"x.lora": 0o600,
	} {
		info, err := os.Stat(at(name))
		if err != nil || info.Mode().Perm() != want {
			t.Errorf("%s has the mode %v (%v), want %o", name, info.Mode(), err, want)
		}
	}
}

// TestLinksOutOfABaseAreNamed: but not those of the hub's cache, which is made of them.
func TestLinksOutOfABaseAreNamed(t *testing.T) {
	dir := demoCopy(t)
	at := func(name string) string { return filepath.Join(dir, filepath.FromSlash(name)) }
	testkit.Write(t, at("secret"), []byte("{}"))
	snapshot, blobs := at("models--x/snapshots/0123"), at("models--x/blobs")
	if err := errors.Join(
		os.Symlink(at("secret"), at("base/notes.json")), os.Symlink("config.json", at("base/same.json")),
		os.MkdirAll(snapshot, 0o777), os.MkdirAll(blobs, 0o777),
		os.Rename(at("base/model.safetensors"), filepath.Join(blobs, "1")),
		os.Symlink("../../blobs/1", filepath.Join(snapshot, "model.safetensors")),
		os.Symlink(at("secret"), filepath.Join(snapshot, "other.json")), os.Symlink("../../blobs/1", at("base/model.safetensors")),
		os.Remove(at("base/model.safetensors")), os.Symlink(filepath.Join(blobs, "1"), at("base/model.safetensors")),
		os.WriteFile(filepath.Join(snapshot, "config.json"), []byte("{}"), 0o666),
	); err != nil {
		t.Fatal(err)
	}
	for base, want := range map[string][]string{"base": {"model.safetensors", "notes.json"}, snapshot: {"other.json"}} {
		cmd := program("merge", base, "adapter-r8", "-o", "out", "--dry-run")
		cmd.Dir = dir
		r := finishNow(t, cmd)
		if n := strings.Count(r.stderr, "leads out of the base's directory"); r.code != 0 || n != len(want) {
			t.Errorf("merge of %s gave %d and %d warnings of links, want those of %q: %s", base, r.code, n, want, r.stderr)
		}
		for _, name := range want {
			if !strings.Contains(r.stderr, `"`+name+`" is a link`) {
				t.Errorf("merge of %s does not name %s: %s", base, name, r.stderr)
			}
		}
	}
}

// TestConvertReplacesWeightsAndConfigurationTogether: what a kill leaves is tested where the moves
// are made.
func TestConvertReplacesWeightsAndConfigurationTogether(t *testing.T) {
	dir := demoCopy(t)
	at := func(name string) string { return filepath.Join(dir, filepath.FromSlash(name)) }
	config, err := os.ReadFile(at("adapter-r8/adapter_config.json"))
	if err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) {
		t.Helper()
		cmd := program(args...)
		cmd.Dir = dir
		if r := finishNow(t, cmd); r.code != 0 {
			t.Fatalf("%q: %s", args, r.stderr)
		}
	}
	if err := os.Mkdir(at("two"), 0o777); err != nil {
		t.Fatal(err)
	}
	run("convert", "adapter-r8", "-o", "two/w.safetensors")
	before := testkit.Tree(t, at("two"))
	testkit.Write(t, at("adapter-r8/adapter_config.json"), bytes.Replace(config, []byte(`"lora_alpha": `), []byte(`"lora_alpha": 1`), 1))
	run("convert", "adapter-r8", "-o", "two/w.safetensors", "--force")
	after := testkit.Tree(t, at("two"))
	if len(after) != len(before) || after["adapter_config.json"] == before["adapter_config.json"] {
		t.Errorf("after convert --force there is %v, want another configuration than in %v and nothing else", after, before)
	}
}
