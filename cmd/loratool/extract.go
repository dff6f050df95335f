package main

import (
	"cmp"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/fileio"
	"github.com/loratool/loratool/rank"
	"github.com/urfave/cli/v2"
)

type extractOptions struct {
	common
	manifestOption
	out, to, dtype              string
	rank, maxRank               int
	energy, maxError            float64
	noiseFloor                  bool
	budget                      string
	include, exclude            cli.StringSlice
	strict, only, force, dryRun bool
	seed                        int64
}

func extractCommand(t *terminal) *cli.Command {
	o := new(extractOptions)
	return &cli.Command{
		Name:      "extract",
		Usage:     "turn a fine-tuned checkpoint into an adapter of low rank, with its error",
		ArgsUsage: "BASE TUNED -o ADAPTER --rank 8",
		Description: "Decomposes TUNED − BASE, tensor by tensor, by truncated SVD. The rank is fixed, or the fewest singular values that keep a share\n" +
			"of the energy, stay below an error, stand above the rounding noise of TUNED, or fit a size. Norms and biases, which low\n" +
			"rank does not hold, are carried whole.\n\n" +
			"The error is over all that changed. Of a tensor that is left out, all is lost: what it is and its share of |Δ| are listed. A\n" +
			"row that only one of BASE and TUNED has counts whole, as do tensors; a head that only one has counts as its difference\n" +
			"from the embedding that the other one ties it to.\n\n" +
			"A directory for PEFT has the names of the modules in memory, as transformers 5 has them. What PEFT cannot hold is refused\n" +
			"by name; a .lora file holds it.",
		Flags: append([]cli.Flag{
			&cli.StringFlag{Name: "out", Aliases: []string{"o"}, Usage: "write to `ADAPTER`: a name that ends in .lora, or a directory for PEFT", Destination: &o.out},
			&cli.StringFlag{Name: "to", Usage: "the `DIALECT` to write, lora or peft, where ADAPTER's name does not say it", Destination: &o.to},
			&cli.IntFlag{Name: "rank", Aliases: []string{"r"}, Usage: "keep `K` singular values per layer", Destination: &o.rank},
			&cli.Float64Flag{Name: "energy", Usage: "keep the fewest singular values with this `SHARE` of the energy ‖Δ‖², such as 0.95", Destination: &o.energy},
			&cli.Float64Flag{Name: "max-error", Usage: "keep the fewest singular values with an error of at most `E`·‖Δ‖, such as 0.1", Destination: &o.maxError},
			&cli.BoolFlag{Name: "noise-floor", Usage: "keep the singular values above the rounding noise of TUNED", Destination: &o.noiseFloor},
			&cli.StringFlag{Name: "budget", Usage: "spend `SIZE` bytes, such as 40MB, on the singular values that bring most energy per byte", Destination: &o.budget},
			&cli.IntFlag{Name: "max-rank", Usage: "with another rule: at most `K` per layer", Destination: &o.maxRank},
			&cli.StringFlag{Name: "dtype", Usage: "of the factors: f32, bf16 or f16", Value: "f32", Destination: &o.dtype},
			&cli.StringSliceFlag{Name: "include", Usage: "extract only tensors whose name matches the regular expression `RE`", Destination: &o.include},
			&cli.StringSliceFlag{Name: "exclude", Usage: "leave out tensors whose name matches `RE`", Destination: &o.exclude},
			&cli.BoolFlag{Name: "only-lora", Usage: "leave out what low rank does not hold, in place of carrying it whole", Destination: &o.only},
			&cli.BoolFlag{Name: "strict", Usage: "fail if anything is left out or carried whole", Destination: &o.strict},
			&cli.Int64Flag{Name: "seed", Usage: "of the random start", Destination: &o.seed},
			&cli.BoolFlag{Name: "force", Usage: "replace ADAPTER if it is an adapter", Destination: &o.force},
			&cli.BoolFlag{Name: "dry-run", Usage: "show what would be compared, and write nothing", Destination: &o.dryRun},
		}, append([]cli.Flag{o.memoryFlag(), o.manifestFlag()}, o.flags()...)...),
		Action: func(c *cli.Context) error { return runExtract(c, t, o) },
	}
}

func runExtract(c *cli.Context, t *terminal, o *extractOptions) error {
	const example = "loratool extract BASE TUNED -o ADAPTER --rank 8"
	if c.NArg() != 2 {
		return usagef(example, "extract takes a base and a tuned checkpoint, got %d arguments", c.NArg())
	}
	if o.out == "" && !o.dryRun {
		return usagef(example, "extract needs -o ADAPTER, the place of the adapter")
	}
	options, err := o.library(c)
	if err != nil {
		return err
	}
	dialect := convert.LoRA
	if o.out != "" {
		if dialect, err = dialectOf(o.out, o.to); err != nil {
			return err
		}
	}
	options.PEFT = dialect == convert.PEFT
	base, tuned := c.Args().Get(0), c.Args().Get(1)
	if sameFile(base, tuned) {
		return usagef("give the base first and the tuned checkpoint second", "%s and %s are the same checkpoint", base, tuned)
	}
	creation := o.creation(o.force, base, tuned)
	if creation.MaxManifestBytes, err = o.maxManifest(); err != nil {
		return err
	}
	if o.out != "" {
		if err := convert.Check(c.Context, o.out, dialect, nil, creation); err != nil {
			return err
		}
	}
	var add func(int64)
	options.Layer = func(_ string, n int64) {
		if add != nil {
			add(n)
		}
	}
	e, err := rank.OpenExtraction(c.Context, base, tuned, options)
	if err != nil {
		return err
	}
	defer e.Close()
	if o.dryRun {
		return showExtraction(t, o, e)
	}
	if err := o.checkMemory(e.PeakBytes(), fmt.Sprintf("extracting %q", e.LargestTensor())); err != nil {
		return err
	}
	add, finish := t.progress(&o.common, e.Bytes(), "extracting")
	src, report, err := e.Run(c.Context)
	finish()
	if err != nil {
		return err
	}
	defer src.Close()
	if !o.quiet {
		for _, w := range report.Warnings {
			t.message("warning", w)
		}
	}
	size, err := store(c, src, o.out, dialect, creation)
	if err != nil {
		return err
	}
	if o.json {
		return t.document("extract", report)
	}
	if !o.quiet {
		showExtracted(t, o, report, size)
	}
	return nil
}

// library turns the flags into options of the library.
func (o *extractOptions) library(c *cli.Context) (rank.ExtractOptions, error) {
	options := rank.ExtractOptions{Only: o.only, Strict: o.strict, Workers: o.workers, Tool: "loratool " + version}
	options.SVD.Seed = uint64(o.seed)
	rules := 0
	for _, name := range []string{"rank", "energy", "max-error", "noise-floor", "budget"} {
		if c.IsSet(name) {
			rules++
		}
	}
	hint := "one of --rank 8, --energy 0.95, --max-error 0.1, --noise-floor, --budget 40MB"
	switch {
	case rules != 1:
		return options, usagef(hint, "extract needs one rule for the rank, got %d", rules)
	case c.IsSet("rank") && o.rank < 1:
		return options, usagef(hint, "a rank is at least 1, got %d", o.rank)
	case c.IsSet("energy") && !(o.energy > 0 && o.energy <= 1):
		return options, usagef(hint, "a share of the energy lies above 0 and up to 1, got %v", o.energy)
	case c.IsSet("max-error") && !(o.maxError > 0 && o.maxError < 1):
		return options, usagef(hint, "a relative error lies between 0 and 1, got %v", o.maxError)
	case o.maxRank < 0 || o.maxRank > 0 && c.IsSet("rank"):
		return options, usagef(hint, "--max-rank is a positive bound for another rule than --rank")
	}
	switch {
	case c.IsSet("rank"):
		options.Rule = rank.FixedRank{K: o.rank}
	case c.IsSet("energy"):
		options.Rule = rank.EnergyShare{Share: o.energy, Max: o.maxRank}
	case c.IsSet("max-error"):
		options.Rule = rank.MaxError(o.maxError, o.maxRank)
	case c.IsSet("noise-floor"):
		options.Rule = rank.NoiseFloor{Max: o.maxRank}
	default:
		n, err := parseBytes(o.budget)
		if err != nil {
			return options, err
		}
		options.Budget, options.MaxRank = n, o.maxRank
	}
	d, ok := dtype.Parse(strings.ToUpper(o.dtype))
	if !ok || d != dtype.F32 && d != dtype.BF16 && d != dtype.F16 {
		return options, usagef("--dtype f32, bf16 or f16", "unknown dtype %q for the factors", o.dtype)
	}
	options.DType = d
	for _, list := range []struct {
		texts []string
		dst   *[]*regexp.Regexp
	}{{o.include.Value(), &options.Include}, {o.exclude.Value(), &options.Exclude}} {
		for _, text := range list.texts {
			re, err := regexp.Compile(text)
			if err != nil {
				return options, usagef("the syntax is that of Go: https://pkg.go.dev/regexp/syntax", "%v", err)
			}
			*list.dst = append(*list.dst, re)
		}
	}
	return options, nil
}

// sameFile reports whether two paths lead to the same file or directory.
func sameFile(a, b string) bool {
	ra, err1 := filepath.EvalSymlinks(a)
	rb, err2 := filepath.EvalSymlinks(b)
	return err1 == nil && err2 == nil && ra == rb
}

func showExtraction(t *terminal, o *extractOptions, e *rank.Extraction) error {
	planned, skipped := e.Planned()
	if o.json {
		return t.document("extract", map[string]any{"dry_run": true, "tensors": planned, "skipped": append([]rank.Skipped{}, skipped...), "peak_memory_bytes": e.PeakBytes(), "bytes_to_read": e.Bytes(), "free_bytes": freeBytes(o.out)})
	}
	for _, p := range planned {
		t.printf("%-10s %v %s\n", p.Kind, p.Shape, p.Tensor)
	}
	showSkipped(t, skipped)
	t.printf("%d tensors are compared, %s to read, about %s of memory\n", len(planned), fileio.FormatBytes(e.Bytes()), fileio.FormatBytes(e.PeakBytes()))
	return nil
}

func showSkipped(t *terminal, skipped []rank.Skipped) {
	for _, s := range skipped {
		share := ""
		if s.Share > 0 {
			share = fmt.Sprintf(" (%.4f of |Δ|)", s.Share)
		}
		t.printf("skipped    %s: %s%s\n", s.Tensor, s.Why, share)
	}
}

func showExtracted(t *terminal, o *extractOptions, r *rank.ExtractReport, size int64) {
	if o.verbose {
		tab := &table{columns: []column{
			{head: "m×n"}, {head: "rank"}, {head: "|Δ|/|W|", drop: 3}, {head: "energy"}, {head: "error", drop: 1}, {head: "stored"}, {head: "noise edge/σ1", drop: 2},
			{head: "module", left: true, isName: true},
		}}
		for _, l := range r.Layers {
			tab.add(fmt.Sprintf("%d×%d", l.M, l.N), strconv.Itoa(l.Rank), fmt.Sprintf("%.4f", l.RelativeNorm), fmt.Sprintf("%.4f", l.Energy), errorText(l.Error),
				errorText(l.Rounded), fmt.Sprintf("%.3f", l.NoiseEdge/l.SingularValues[0]), l.Module)
		}
		t.print(tab)
		for _, b := range r.Beside {
			t.printf("whole      %s (%s, %s)\n", b.Tensor, b.Why, fileio.FormatBytes(b.Bytes))
		}
		showSkipped(t, r.Skipped)
	}
	var left []rank.Skipped
	for _, x := range r.Skipped {
		if x.Why != rank.Unchanged {
			left = append(left, x)
		}
	}
	t.printf("extracted to %s: %s, %d layers", o.out, fileio.FormatBytes(size), len(r.Layers))
	if n := len(r.Beside); n > 0 {
		t.printf(", %d tensors whole", n)
	}
	t.printf("; %d unchanged, %d left out\n", len(r.Skipped)-len(left), len(left))
	if !o.verbose {
		showLeftOut(t, left)
	}
	if len(r.Layers) == 0 {
		return
	}
	t.printf("energy %.4f, error %s of |Δ|, as stored %s", r.Energy, errorText(r.Error), errorText(r.Rounded))
	if r.LeftOut > 0 {
		t.printf("; of that what is left out %.4f", r.LeftOut)
	}
	t.printf("\n")
	showCoarse(t, r, o.dtype)
	t.printf("a fixed rank would keep")
	for i, k := range r.Ranks {
		mark := ""
		if k.AtLeast {
			mark = "≥ "
		}
		if i > 0 {
			t.printf(",")
		}
		t.printf(" %s%.3f at %d", mark, k.Energy, k.Rank)
	}
	t.printf("\n")
	if slices.ContainsFunc(r.Ranks, func(k rank.RankEnergy) bool { return k.AtLeast }) {
		t.printf("≥ at least: above the ranks that were computed only a lower bound is known; extract with a higher --rank to see more\n")
	}
}

// errorText is an error as a share of |Δ|. One that is not 0 does not read as if it were.
func errorText(x float64) string {
	if x != 0 && x < 5e-5 {
		return fmt.Sprintf("%.1e", x)
	}
	return fmt.Sprintf("%.4f", x)
}

// showCoarse says how many layers would have a smaller error if their factors had more digits. An
// error below what float32 resolves of Δ is as good as none.
func showCoarse(t *terminal, r *rank.ExtractReport, dtype string) {
	const resolved = 1e-6
	n := 0
	for i := range r.Layers {
		if l := &r.Layers[i]; !l.NearBest && l.Rounded >= resolved {
			n++
		}
	}
	if n > 0 {
		t.printf("%d of %d layers are not within 0.1 %% of the least error of their rank: %s factors have too few digits\n",
			n, len(r.Layers), dtype)
	}
}

// shownLeftOut is how many tensors are named that are left out, where -v does not ask for all.
const shownLeftOut = 8

// showLeftOut names what is left out, the largest share of Δ first.
func showLeftOut(t *terminal, left []rank.Skipped) {
	slices.SortStableFunc(left, func(a, b rank.Skipped) int { return cmp.Compare(b.Share, a.Share) })
	for i := range left {
		if i == shownLeftOut {
			t.printf("… and %d more; -v lists all\n", len(left)-i)
			return
		}
		showSkipped(t, left[i:i+1])
	}
}
