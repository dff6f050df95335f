// Package report describes adapters, checkpoints and undo records: their contents, and how merge
// applies them. Describe, DescribeCheckpoint and DescribeUndo return structs that encode as JSON.
// They read only headers, unless Options ask for values.
package report

import (
	"context"
	"fmt"
	"slices"
	"sort"
	"strconv"
	"strings"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/card"
	"github.com/loratool/loratool/internal/delta"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/resolve"
	"github.com/loratool/loratool/rank"
)

// Adapter is the report on an adapter.
type Adapter struct {
	Kind         string         `json:"kind"` // "adapter"
	Dialect      string         `json:"dialect"`
	Sign         string         `json:"recognised_by"` // the sign of the dialect in the file, if it was needed
	Method       string         `json:"method"`
	Base         string         `json:"base"`
	Revision     string         `json:"revision"`
	License      string         `json:"license"`           // of the model card, or of the metadata
	Datasets     []string       `json:"datasets"`          // of the model card
	Attached     []string       `json:"attached"`          // files that the source carries
	Fingerprints int            `json:"base_fingerprints"` // number of base tensors that the adapter remembers
	Parameters   int64          `json:"parameters"`
	Bytes        int64          `json:"bytes"` // of all tensors
	DTypes       []DTypeCount   `json:"dtypes"`
	Layers       []Layer        `json:"layers"`
	Beside       []BesideTensor `json:"beside"`
	FilesBeside  []string       `json:"files_beside"` // weights in its folder that do not belong to it
	PEFT         *PEFT          `json:"peft,omitempty"`

	// Unusual lists the files of its folder that it does not need, or that can run code.
	Unusual []convert.UnusualFile `json:"unusual_files"`

	Requires  []Requirement `json:"requires"`
	Mergeable bool          `json:"mergeable"`
	Methods   []string      `json:"methods"`  // steps of merge beyond the plain formula
	Refusals  []string      `json:"refusals"` // reasons why merge refuses it
	Notes     []string      `json:"notes"`
	Training  *Training     `json:"training,omitempty"` // what the metadata say, condensed
	Hashes    *Hashes       `json:"hashes,omitempty"`   // only with Options.Hashes
	Values    *Values       `json:"values,omitempty"`
	Findings  []Finding     `json:"findings,omitempty"`   // only with Options.Spectrum
	Saving    *Saving       `json:"saving,omitempty"`     // the same, if resizing would save much
	OnBase    *OnBase       `json:"on_base,omitempty"`    // set by the caller, from CompareBase
	Content   string        `json:"content_id,omitempty"` // only with Options.Values

	// Metadata is __metadata__ of the file that the adapter was read from. Of an adapter of PEFT it
	// is there only with Options.Metadata or Options.Hashes.
	Metadata map[string]string `json:"metadata,omitempty"`
}

// Layer is one layer.
type Layer struct {
	Module    string   `json:"module"`
	Kind      string   `json:"kind"`
	M         uint64   `json:"m"`                // rows of B; 0 if only the base tells, as of IA³
	N         uint64   `json:"n"`                // columns of A; 0 if only the base tells
	Kernel    []uint64 `json:"kernel,omitempty"` // lengths of a convolution's window
	Rank      int      `json:"rank"`
	Alpha     float64  `json:"alpha"`
	Scale     float64  `json:"scale"`
	DType     string   `json:"dtype"` // of A and, if different, of B, as "F32/BF16"
	Roles     []string `json:"roles"` // besides A and B
	Untrained bool     `json:"untrained,omitempty"`
	NonFinite int64    `json:"non_finite,omitempty"`

	NoSpectrum string `json:"no_spectrum,omitempty"` // why a requested spectrum is missing
	*Spectrum
}

// Size is the shape of the update of the layer: of a convolution with its kernel. A letter stands
// for a size that only the base tells.
func (l *Layer) Size() string {
	m, n := "m", "n"
	if l.M != 0 {
		m = strconv.FormatUint(l.M, 10)
	}
	if l.N != 0 {
		n = strconv.FormatUint(l.N, 10)
	}
	text := m + "×" + n
	for _, k := range l.Kernel {
		text += fmt.Sprintf("×%d", k)
	}
	return text
}

// Spectrum holds the result of rank.Spectra for one layer. Package rank has the definitions.
type Spectrum struct {
	SingularValues []float64 `json:"singular_values"` // of s·B·A, descending
	Energy         []float64 `json:"energy"`          // cumulative shares
	Frobenius      float64   `json:"frobenius"`
	StableRank     float64   `json:"stable_rank"`
	EffectiveRank  float64   `json:"effective_rank"` // the entropy rank
	NumericalRank  int       `json:"numerical_rank"`
	Rank90         int       `json:"rank_90"` // singular values with 90, 95, 99 % of the energy
	Rank95         int       `json:"rank_95"`
	Rank99         int       `json:"rank_99"`
}

// Options request more than headers tell.
type Options struct {
	Values   bool     // read all values: finds untrained layers, NaN and infinity, and the content id
	Spectrum bool     // compute the spectrum of every layer
	Metadata bool     // show the metadata of an adapter of PEFT, too
	Hashes   bool     // hash the file that the adapter was read from
	Workers  int      // goroutines for spectra; 0 means one per processor
	Sign     string   // how the dialect was recognised (convert.RecognisedBy)
	Beside   []string // weight files in the adapter's folder that do not belong to it (convert.WeightsBeside)
}

// BesideTensor is a tensor outside all layers.
type BesideTensor struct {
	Action string   `json:"action"`
	Target string   `json:"target"`
	DType  string   `json:"dtype"`
	Shape  []uint64 `json:"shape"`
}

// Requirement is format.Requirement.
type Requirement struct {
	Feature string `json:"feature"`
	Where   string `json:"where"`
}

// DTypeCount is the share of one dtype in a file.
type DTypeCount struct {
	DType   string `json:"dtype"`
	Tensors int    `json:"tensors"`
	Bytes   int64  `json:"bytes"`
}

// Values holds results from reading every value.
type Values struct {
	Untrained int   `json:"untrained_layers"` // B is all zeros, so ΔW is zero
	NonFinite int64 `json:"non_finite"`       // NaN or infinite
}

// Describe reports on a source. It covers all adapters of a bundle together.
func Describe(ctx context.Context, src format.Source, o Options) (*Adapter, error) {
	m := src.Manifest()
	if err := format.Validate(m); err != nil {
		return nil, err
	}
	r := &Adapter{Kind: "adapter", Sign: o.Sign, Datasets: []string{}, Attached: []string{}, Layers: []Layer{}, Beside: []BesideTensor{}, FilesBeside: []string{}, Unusual: []convert.UnusualFile{}, Requires: []Requirement{}, Methods: []string{}, Refusals: []string{}, Notes: append([]string{}, m.Notes...)}
	counts := make(dtypeCounts)
	for i := range m.Tensors {
		t := &m.Tensors[i]
		counts.add(t.DType.String(), t.NBytes())
		r.Parameters += t.Elements()
		r.Bytes += t.NBytes()
	}
	r.DTypes = counts.sorted()
	for i := range m.Adapters {
		r.addAdapter(m, &m.Adapters[i])
	}
	if err := r.addAttachments(src); err != nil {
		return nil, err
	}
	unusual, err := convert.UnusualFiles(src)
	if err != nil {
		return nil, err
	}
	r.Unusual = append(r.Unusual, unusual...)
	if err := r.addMetadata(ctx, src, o.Metadata || o.Hashes); err != nil {
		return nil, err
	}
	if o.Hashes {
		if err := r.addHashes(ctx, src); err != nil {
			return nil, err
		}
	}
	for _, name := range o.Beside {
		r.FilesBeside = append(r.FilesBeside, name)
		r.Refusals = append(r.Refusals, fmt.Sprintf("its folder also holds the weights %q (Options.With applies them, "+
			"Options.Without leaves them out)", name))
	}
	r.Mergeable = len(r.Refusals) == 0
	if o.Spectrum {
		if err := r.addSpectra(ctx, src, o.Workers); err != nil {
			return nil, err
		}
	}
	if o.Values {
		return r, r.readValues(ctx, src)
	}
	var nonFinite int64 // found by the spectra
	for i := range r.Layers {
		nonFinite += r.Layers[i].NonFinite
	}
	r.refuseNonFinite(nonFinite)
	return r, nil
}

// maxCardBytes bounds the model card that is read for its front matter, and PEFT's configuration.
const maxCardBytes = 1 << 20

// addAttachments adds the names of the attached files, and the facts of the model card.
func (r *Adapter) addAttachments(src format.Source) error {
	m := src.Manifest()
	for i, a := range m.Attachments {
		if a.Name == format.SourceHeader {
			continue
		}
		r.Attached = append(r.Attached, a.Name)
		if a.Name != format.ModelCard && a.Name != format.PEFTConfig || a.NBytes > maxCardBytes {
			continue
		}
		text := make([]byte, a.NBytes)
		if err := src.ReadBlobAt(text, len(m.Tensors)+i, 0); err != nil {
			return err
		}
		if a.Name == format.PEFTConfig {
			r.PEFT = describePEFT(text)
			continue
		}
		facts := card.Parse(text)
		r.License, r.Datasets = facts.License, append(r.Datasets, facts.Datasets...)
	}
	return nil
}

// addAdapter adds the description of one adapter.
func (r *Adapter) addAdapter(m *format.Manifest, a *format.Adapter) {
	r.Dialect, r.Method, r.Base, r.Revision = a.Dialect, string(a.Method), a.Base.Name, a.Base.Revision
	r.Fingerprints += len(a.Base.Fingerprints)
	r.Layers = slices.Grow(r.Layers, len(a.Layers))
	for j := range a.Layers {
		r.Layers = append(r.Layers, describeLayer(&a.Layers[j], m.Tensors))
	}
	for _, b := range a.Beside {
		t := &m.Tensors[b.Tensor]
		r.Beside = append(r.Beside, BesideTensor{Action: string(b.Action), Target: b.Target, DType: t.DType.String(), Shape: t.Shape})
	}
	for _, q := range a.Requires {
		r.Requires = append(r.Requires, Requirement{string(q.Feature), q.Where})
	}
	r.Methods = append(r.Methods, resolve.Explain(a)...)
	why, _ := resolve.Refusals(a, m.Tensors)
	r.Refusals = append(r.Refusals, why...)
	if empty := resolve.Empty(a, m.Tensors); empty != "" {
		r.Refusals = append(r.Refusals, empty)
	}
}

// refuseNonFinite adds a refusal if n values are NaN or infinite.
func (r *Adapter) refuseNonFinite(n int64) {
	if n == 0 {
		return
	}
	r.Mergeable = false
	r.Refusals = append(r.Refusals, fmt.Sprintf("%d of its values %s NaN or infinite (Options.AllowNonFinite merges them anyway)", n, fault.Choose(n, "is", "are")))
}

// addSpectra computes the spectra of the layers that have one.
func (r *Adapter) addSpectra(ctx context.Context, src format.Source, workers int) error {
	spectra, err := rank.Spectra(ctx, src, workers)
	if err != nil {
		return err
	}
	for i := range r.Layers {
		l := &r.Layers[i]
		if len(spectra) == 0 || spectra[0].Module != l.Module {
			continue // the update is more than a product
		}
		s := &spectra[0]
		spectra = spectra[1:]
		if s.Missing != "" {
			l.NonFinite, l.NoSpectrum = s.NonFinite, s.Missing
			continue
		}
		l.Spectrum = &Spectrum{
			SingularValues: s.SingularValues, Energy: s.Energy, Frobenius: s.Frobenius, StableRank: s.StableRank, EffectiveRank: s.EntropyRank,
			NumericalRank: s.NumericalRank, Rank90: s.RankFor(0.9), Rank95: s.RankFor(0.95), Rank99: s.RankFor(0.99),
		}
	}
	r.addFindings()
	return nil
}

// CheckSpectra returns an error if a requested spectrum is missing.
func (r *Adapter) CheckSpectra() error {
	var without []string
	for _, l := range r.Layers {
		if l.NoSpectrum != "" {
			without = append(without, l.Module)
		}
	}
	if len(without) == 0 {
		return nil
	}
	return fault.New(fault.Check, "%d of %s %s no spectrum: %s", len(without), fault.Count(len(r.Layers), "layer"), fault.Choose(len(without), "has", "have"), fault.List(without, 3)).
		WithHint("merge refuses such an adapter too; train it again, or use a checkpoint from before it diverged")
}

func describeLayer(l *format.Layer, tensors []format.Tensor) Layer {
	d := Layer{Module: l.Module, Kind: string(l.Kind), Rank: l.Rank, Alpha: l.Alpha, Scale: l.Scale(), Roles: []string{}}
	if delta.IsMethod(l) {
		return describeMethod(d, l, tensors)
	}
	inputs, outputs := 1, 0 // their dimensions in A and B
	if isPerExpert(l, tensors) {
		inputs, outputs = 2, 1
	}
	if i, ok := l.Roles[format.RoleA]; ok && len(tensors[i].Shape) > 1 {
		d.N, d.DType = tensors[i].Shape[inputs], tensors[i].DType.String()
		if l.Kind == format.Conv {
			d.Kernel = tensors[i].Shape[2:]
		}
	}
	if i, ok := l.Roles[format.RoleB]; ok && len(tensors[i].Shape) > 1 {
		d.M = tensors[i].Shape[outputs]
		if b := tensors[i].DType.String(); b != d.DType {
			d.DType += "/" + b
		}
	}
	for role := range l.Roles {
		if role != format.RoleA && role != format.RoleB {
			d.Roles = append(d.Roles, string(role))
		}
	}
	slices.Sort(d.Roles)
	return d
}

// describeMethod completes the description of a layer of LyCORIS. M×N is the size of its ΔW, 0
// where only the base tells.
func describeMethod(d Layer, l *format.Layer, tensors []format.Tensor) Layer {
	d.M, d.N = delta.Size(l, tensors)
	var dtypes []string
	for role, i := range l.Roles {
		d.Roles = append(d.Roles, string(role))
		if role != format.RoleAlpha && role != format.RoleAxis {
			dtypes = append(dtypes, tensors[i].DType.String())
		}
	}
	slices.Sort(d.Roles)
	slices.Sort(dtypes)
	d.DType = strings.Join(slices.Compact(dtypes), "/")
	return d
}

// isPerExpert reports whether both factors have a matrix per expert: E×r×n and E×m×r.
func isPerExpert(l *format.Layer, tensors []format.Tensor) bool {
	for _, role := range []format.Role{format.RoleA, format.RoleB} {
		if i, ok := l.Roles[role]; !ok || len(tensors[i].Shape) != 3 {
			return false
		}
	}
	return l.Kind == format.Other
}

// readValues fills in the fields that need values.
func (r *Adapter) readValues(ctx context.Context, src format.Source) error {
	m := src.Manifest()
	r.Values = new(Values)
	nonFinite := make([]int64, len(m.Tensors))
	zero := make([]bool, len(m.Tensors))
	for i := range m.Tensors {
		var err error
		if nonFinite[i], zero[i], err = scan(ctx, src, i); err != nil {
			return err
		}
		r.Values.NonFinite += nonFinite[i]
	}
	at := 0
	for i := range m.Adapters {
		for _, l := range m.Adapters[i].Layers {
			layer := &r.Layers[at]
			layer.NonFinite = 0 // a spectrum counts only A and B
			at++
			for _, t := range l.Roles {
				layer.NonFinite += nonFinite[t]
			}
			a, hasA := l.Roles[format.RoleA]
			b, hasB := l.Roles[format.RoleB]
			if hasA && zero[a] || hasB && zero[b] {
				layer.Untrained = true
				r.Values.Untrained++
			}
		}
	}
	r.refuseNonFinite(r.Values.NonFinite)
	id, err := format.AdapterID(ctx, src)
	r.Content = id
	return err
}

// Misgivings lists the reasons why merge refuses the adapters of a source. It reads their values.
func Misgivings(ctx context.Context, src format.Source) (all []string, err error) {
	m := src.Manifest()
	for i := range m.Adapters {
		why, _ := resolve.Refusals(&m.Adapters[i], m.Tensors)
		for _, w := range why {
			all = append(all, "merge refuses this adapter: "+w)
		}
	}
	var n int64
	for i := range m.Tensors {
		bad, _, err := scan(ctx, src, i)
		if err != nil {
			return nil, err
		}
		n += bad
	}
	if n > 0 {
		all = append(all, fmt.Sprintf("merge refuses this adapter without Options.AllowNonFinite: "+
			"%d of its values %s NaN or infinite", n, fault.Choose(n, "is", "are")))
	}
	return all, nil
}

// scan reads a tensor and counts its NaN and infinite values. zero reports whether all values are
// zero.
func scan(ctx context.Context, src format.Source, i int) (nonFinite int64, zero bool, err error) {
	t := &src.Manifest().Tensors[i]
	if !t.DType.IsFloat() {
		return 0, false, nil
	}
	size, total := t.DType.Size(), t.NBytes()
	piece := make([]byte, min(total, 1<<18))
	values := make([]float64, len(piece)/size)
	zero = true
	for off := int64(0); off < total; off += int64(len(piece)) {
		if err := ctx.Err(); err != nil {
			return 0, false, err
		}
		p := piece[:min(int64(len(piece)), total-off)]
		if err := src.ReadBlobAt(p, i, off); err != nil {
			return 0, false, err
		}
		v := values[:len(p)/size]
		dtype.Widen64(v, t.DType, p)
		for _, x := range v {
			if x-x != 0 {
				nonFinite++
			}
			zero = zero && x == 0
		}
	}
	return nonFinite, zero, nil
}

// dtypeCounts counts tensors and bytes by dtype.
type dtypeCounts map[string]*DTypeCount

func (c dtypeCounts) add(d string, nBytes int64) {
	if c[d] == nil {
		c[d] = &DTypeCount{DType: d}
	}
	c[d].Tensors++
	c[d].Bytes += nBytes
}

// sorted lists the counts, the largest first.
func (c dtypeCounts) sorted() []DTypeCount {
	list := make([]DTypeCount, 0, len(c))
	for _, count := range c {
		list = append(list, *count)
	}
	sort.Slice(list, func(i, j int) bool {
		return list[i].Bytes > list[j].Bytes || list[i].Bytes == list[j].Bytes && list[i].DType < list[j].DType
	})
	return list
}
