package main

import (
	"errors"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/format/output"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/fileio"
	"github.com/loratool/loratool/internal/report"
	"github.com/urfave/cli/v2"
)

type bundleOptions struct {
	common
	withoutOption
	out       string
	names     cli.StringSlice
	force     bool
	noSharing bool
}

// bundleActions are what bundle does, with the form of their arguments.
var bundleActions = map[string]string{
	"add": "add FILE ADAPTER...", "remove": "remove FILE NAME...", "list": "list FILE", "split": "split FILE -o DIR",
}

func bundleCommand(t *terminal) *cli.Command {
	o := new(bundleOptions)
	return &cli.Command{
		Name:      "bundle",
		Usage:     "keep several adapters in one .lora file",
		ArgsUsage: "add|remove|list|split FILE ...",
		Description: "add FILE ADAPTER... puts adapters into the bundle FILE, and makes it if it is not there. remove FILE NAME... takes adapters out. " +
			"list FILE shows them. split FILE -o DIR writes each to a .lora file of its own, DIR/NAME.lora.\n\n" +
			"Every command that takes an ADAPTER takes FILE#NAME, one adapter of a bundle. A tensor that several adapters have in common is stored once; " +
			"readers of version 1.0 of the format refuse such a bundle, and --no-sharing writes one for them.",
		Flags: append(append([]cli.Flag{
			&cli.StringSliceFlag{Name: "name", Usage: "add an adapter as `NAME`; once per adapter, in their order (default: the name of its file or directory)", Destination: &o.names},
			&cli.StringFlag{Name: "out", Aliases: []string{"o"}, Usage: "split into `DIR`, which must not exist", Destination: &o.out},
			&cli.BoolFlag{Name: "force", Usage: "add: replace an adapter of the same name", Destination: &o.force},
			&cli.BoolFlag{Name: "no-sharing", Usage: "store equal tensors once per adapter", Destination: &o.noSharing},
		}, o.openFlags()...), o.flags()...),
		Action: func(c *cli.Context) error { return runBundle(c, t, o) },
	}
}

func runBundle(c *cli.Context, t *terminal, o *bundleOptions) error {
	action, args := c.Args().First(), c.Args().Tail()
	usage, ok := bundleActions[action]
	switch {
	case action == "":
		return usagef("loratool bundle add FILE ADAPTER...", "bundle needs an action: add, remove, list or split")
	case !ok:
		return unknown("action", action, []string{"add", "remove", "list", "split"}, helpHint("bundle"))
	case len(args) == 0, (action == "add" || action == "remove") == (len(args) == 1), action == "split" && o.out == "":
		return usagef("loratool bundle "+usage, "bundle %s does not have the arguments that it needs", action)
	}
	switch file, rest := args[0], args[1:]; action {
	case "add":
		return addToBundle(c, t, o, file, rest)
	case "remove":
		return removeFromBundle(c, t, o, file, rest)
	case "split":
		return splitBundle(c, t, o, file)
	default:
		return listBundle(c, t, o, file)
	}
}

// openBundle opens a .lora file, and returns its adapters as sources of their own.
func openBundle(c *cli.Context, o *bundleOptions, file string, closers *closers) (format.Source, []format.Member, error) {
	options, err := o.opening(file)
	if err != nil {
		return nil, nil, err
	}
	options[0].From, options[0].Alpha, options[0].Scale = "", 0, 0 // they are for what is added
	src, err := convert.Open(c.Context, file, options[0])
	if err != nil {
		return nil, nil, err
	}
	closers.add(src)
	members, err := membersOf(src)
	return src, members, fault.InFile(err, file)
}

// membersOf returns the adapters of a source, each as a source of its own.
func membersOf(src format.Source) (members []format.Member, err error) {
	for _, a := range src.Manifest().Adapters {
		member, err := format.Select(src, a.Name)
		if err != nil {
			return nil, err
		}
		members = append(members, format.Member{Name: a.Name, Source: member})
	}
	return members, nil
}

func addToBundle(c *cli.Context, t *terminal, o *bundleOptions, file string, paths []string) error {
	var closers closers
	defer closers.close()
	var members []format.Member
	var err error
	exists := !fileio.IsAbsent(file)
	if exists {
		if _, members, err = openBundle(c, o, file, &closers); err != nil {
			return err
		}
		if len(members) == 1 && members[0].Name == "" {
			return fault.New(fault.Mismatch, "the file holds one adapter without a name, not a bundle").In(file).
				WithHint("make a new bundle of it: loratool bundle add BUNDLE.lora %s %s", file, strings.Join(paths, " "))
		}
	} else if d, err := dialectOf(file, ""); err != nil || d != convert.LoRA() {
		return usagef("loratool bundle add FILE.lora ADAPTER...", "a bundle is a file that ends in .lora, got %s", file)
	}
	added, err := o.newMembers(c, t, paths, &closers)
	if err != nil {
		return err
	}
	for _, m := range added {
		at := slices.IndexFunc(members, func(x format.Member) bool { return x.Name == m.Name })
		switch {
		case at < 0:
			members = append(members, m)
		case o.force:
			members[at] = m
		default:
			return usagef("give it another name with --name, or use --force to replace the one in the bundle", "%s has an adapter %q already", file, m.Name)
		}
	}
	return writeBundle(c, t, o, file, members, exists, paths)
}

// newMembers opens the adapters that are added, with their names. A bundle among them adds all its
// adapters.
func (o *bundleOptions) newMembers(c *cli.Context, t *terminal, paths []string, closers *closers) (members []format.Member, err error) {
	names := o.names.Value()
	if len(names) > 0 && len(names) != len(paths) {
		return nil, usagef("give --name once per adapter, in the order of the adapters", "got %s for %s",
			fault.Count(len(names), "name"), fault.Count(len(paths), "adapter"))
	}
	for _, name := range names {
		if !fileio.IsName(name) {
			return nil, usagef("use a name that a file can have", "--name %s has a character that file names do not allow", name)
		}
	}
	options, err := o.opening(paths...)
	if err != nil {
		return nil, err
	}
	for i, path := range paths {
		src, err := convert.OpenDigested(c.Context, path, options[i])
		if err != nil {
			return nil, err
		}
		closers.add(src)
		o.warn(t, src.Manifest().Notes)
		switch {
		case len(src.Manifest().Adapters) > 1 && len(names) > 0:
			return nil, usagef("add it in a run of its own", "%s is a bundle, whose adapters have names", path)
		case len(src.Manifest().Adapters) > 1:
			more, err := membersOf(src)
			if err != nil {
				return nil, fault.InFile(err, path)
			}
			members = append(members, more...)
		case len(names) > 0:
			members = append(members, format.Member{Name: names[i], Source: src})
		default:
			members = append(members, format.Member{Name: memberName(path), Source: src})
		}
	}
	return members, nil
}

// memberName is the name of an adapter in a bundle: that of its file or directory, of PEFT's files
// that of the directory.
func memberName(path string) string {
	if _, name := convert.SplitMember(path); name != "" {
		return name
	}
	if abs, err := filepath.Abs(path); err == nil {
		path = abs
	}
	base := filepath.Base(path)
	if strings.HasPrefix(base, "adapter_model.") {
		return filepath.Base(filepath.Dir(path))
	}
	for _, ext := range []string{".lora", ".safetensors", ".bin", ".pt"} {
		base = strings.TrimSuffix(base, ext)
	}
	return base
}

func removeFromBundle(c *cli.Context, t *terminal, o *bundleOptions, file string, names []string) error {
	var closers closers
	defer closers.close()
	_, members, err := openBundle(c, o, file, &closers)
	if err != nil {
		return err
	}
	for _, name := range names {
		at := slices.IndexFunc(members, func(m format.Member) bool { return m.Name == name })
		if at < 0 {
			var known []string
			for _, m := range members {
				known = append(known, m.Name)
			}
			return unknown("adapter", name, known, "loratool bundle list "+file+" names the adapters")
		}
		members = slices.Delete(members, at, at+1)
	}
	if len(members) == 0 {
		return usagef("delete "+file+" if you need none of them", "a bundle holds one adapter or more, and this would remove all of them")
	}
	return writeBundle(c, t, o, file, members, true, nil)
}

// writeBundle writes adapters to a bundle, and shows it.
func writeBundle(c *cli.Context, t *terminal, o *bundleOptions, file string, members []format.Member, replace bool, inputs []string) error {
	bundle, err := format.Bundle(members...)
	if err != nil {
		return fault.InFile(err, file)
	}
	o.warn(t, bundle.Manifest().Notes)
	if !o.noSharing {
		if bundle, err = format.Share(c.Context, bundle); err != nil {
			return err
		}
	}
	creation := o.creation(replace, inputs...)
	if creation.MaxManifestBytes, err = o.maxManifest(); err != nil {
		return err
	}
	stop := t.stopwatch()
	size, err := store(c, bundle, file, convert.LoRA(), creation)
	if err != nil {
		return err
	}
	r := report.DescribeBundle(bundle)
	document := struct {
		Out          string  `json:"out"`
		Seconds      float64 `json:"seconds"`
		BytesWritten int64   `json:"bytes_written"`
		*report.Bundle
	}{file, stop(), size, r}
	return t.show("bundle", o.json, document, o.summary(func() {
		t.line("bundled in %s: %s%s, %s, %s uncompressed", file, fileio.FormatBytes(size), paceText(size, document.Seconds, "/s"),
			fault.Count(len(r.Adapters), "adapter"), fileio.FormatBytes(r.Bytes))
		showShared(t, r)
	}))
}

func listBundle(c *cli.Context, t *terminal, o *bundleOptions, file string) error {
	var closers closers
	defer closers.close()
	src, _, err := openBundle(c, o, file, &closers)
	if err != nil {
		return err
	}
	r := report.DescribeBundle(src)
	return t.show("bundle", o.json, r, func() { showBundle(t, r) })
}

// showBundle prints a line for every adapter of a bundle.
func showBundle(t *terminal, r *report.Bundle) {
	t.line("bundle    %s in %s, %s", fault.Count(len(r.Adapters), "adapter"), fault.Count(r.Tensors, "tensor"), fileio.FormatBytes(r.Bytes))
	tab := &table{columns: []column{
		{head: "name", left: true, isName: true}, {head: "method", left: true, drop: 2}, {head: "layers"}, {head: "parameters"}, {head: "size"}, {head: "base", left: true, drop: 1},
	}}
	for _, m := range r.Adapters {
		tab.add(m.Name, m.Method, strconv.Itoa(m.Layers), countText(m.Parameters), fileio.FormatBytes(m.Bytes), m.Base)
	}
	t.print(tab)
	showShared(t, r)
}

func showShared(t *terminal, r *report.Bundle) {
	if r.SharedBytes > 0 {
		t.line("shared tensors save %s of that", fileio.FormatBytes(r.SharedBytes))
	}
}

// splitBundle writes every adapter of a bundle to a file of its own, all of them or none.
func splitBundle(c *cli.Context, t *terminal, o *bundleOptions, file string) error {
	var closers closers
	defer closers.close()
	_, members, err := openBundle(c, o, file, &closers)
	if err != nil {
		return err
	}
	var files []string
	for _, m := range members {
		if !fileio.IsName(m.Name) {
			return fault.New(fault.Unsupported, "the adapter %q has a name that no file can have", m.Name).In(file).
				WithHint("write it under a name of your own: loratool convert %q -o OUT.lora", file+"#"+m.Name)
		}
		files = append(files, m.Name+".lora")
	}
	place := newDirectory(o.out, file)
	if err := place.Check(); err != nil {
		return withoutForce(err)
	}
	out, err := output.NewDisk(o.out, output.DiskOptions{IsDir: true, Names: files})
	if err != nil {
		return err
	}
	defer out.Abort()
	for i, m := range members {
		sink, err := convert.LoRA().(convert.OutputDialect).CreateTo(fileOf{out, files[i]}, o.creation(false))
		if err != nil {
			return err
		}
		if err := sink.Store(c.Context, m.Source); err != nil {
			return err
		}
	}
	if err := out.Commit(); err != nil {
		return err
	}
	document := map[string]any{"out": o.out, "files": files}
	return t.show("bundle", o.json, document, o.summary(func() {
		t.line("split into %s: %s", o.out, fault.Count(len(files), "file"))
		for _, name := range files {
			t.line("%s", name)
		}
	}))
}

// fileOf is a place in an output for a result that is one file.
type fileOf struct {
	output.Output
	name string
}

func (f fileOf) Create(info output.Info) (output.File, error) {
	info.Name = f.name
	return f.Output.Create(info)
}

// newDirectory is the place of a directory that is made from a file.
func newDirectory(path, from string) fileio.Place {
	return fileio.Place{Path: path, IsDir: true, Inputs: []string{from}}
}

// withoutForce removes the advice to use --force, for commands without that flag.
func withoutForce(err error) error {
	if e := new(fileio.OutputError); errors.As(err, &e) {
		e.Replaceable = false
	}
	return err
}
