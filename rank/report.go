package rank

// ExtractReport is the result of an extraction. Energy, Error, Rounded and Ranks are over all
// changes. A tensor carried whole has no error; one left out is lost entirely. A row or tensor that
// only one checkpoint has counts whole. A head that only one checkpoint stores counts as its
// difference from the embedding that the other ties it to.
type ExtractReport struct {
	Layers   []ExtractedLayer `json:"layers"`
	Beside   []BesideReport   `json:"beside"`
	Skipped  []Skipped        `json:"skipped"`
	Energy   float64          `json:"energy"`        // kept share of Σ‖Δ‖²
	Error    float64          `json:"error"`         // √ of the lost share, before the factors are rounded
	Rounded  float64          `json:"rounded_error"` // √ of the lost share, as stored
	LeftOut  float64          `json:"left_out"`      // √ of the share of the tensors that are left out
	Bytes    int64            `json:"bytes"`         // of the factors and the tensors carried whole
	Ranks    []RankEnergy     `json:"ranks"`         // energy at other fixed ranks of the layers
	Warnings []string         `json:"warnings"`      // the Extraction's, and reasons why the adapter may be useless
	Products int              `json:"products"`      // products with thin matrices
	Flops    int64            `json:"flops"`
}

// ExtractedLayer is the report of one layer. Errors are Frobenius norms relative to ‖Δ‖_F.
type ExtractedLayer struct {
	Module  string  `json:"module"`
	Kind    string  `json:"kind"`
	M       int     `json:"m"`
	N       int     `json:"n"`
	Rank    int     `json:"rank"`
	Energy  float64 `json:"energy"`
	Error   float64 `json:"error"`
	Rounded float64 `json:"rounded_error"`
	// NearBest says that Rounded is within 0.1 % of the least error of any matrix of this rank. It
	// is false if the dtype of the factors is too coarse for that, or if the error is below 1e-6,
	// where Δ in float32 is too coarse.
	NearBest bool `json:"near_best"`

	Frobenius      float64      `json:"frobenius"`     // ‖Δ‖_F
	RelativeNorm   float64      `json:"relative_norm"` // ‖Δ‖_F / ‖W‖_F
	NoiseEdge      float64      `json:"noise_edge"`    // singular values below it are rounding noise; 0 if unknown
	SingularValues []float64    `json:"singular_values"`
	Ranks          []RankEnergy `json:"ranks"`

	energies energies
}

// energies are the squares behind the totals.
type energies struct{ all, kept, left, rounded float64 }

// RankEnergy is the share of the energy that rank k reaches. With AtLeast the decomposition stopped
// before the k-th value converged, and the true share can be larger.
type RankEnergy struct {
	Rank    int     `json:"rank"`
	Energy  float64 `json:"energy"`
	AtLeast bool    `json:"at_least"`
}

// BesideReport is a tensor carried whole.
type BesideReport struct {
	Tensor string `json:"tensor"`
	Why    string `json:"why"`
	Bytes  int64  `json:"bytes"`
}

// reportedRanks are the ranks of the table.
var reportedRanks = []int{4, 8, 16, 32, 64}

// Skipped is a tensor that is not extracted. Share is its part of ‖Δ‖_F over all changes, 0 if the
// tensor did not change.
type Skipped struct {
	Tensor string  `json:"tensor"`
	Why    string  `json:"why"`
	Share  float64 `json:"share"`
	Bytes  int64   `json:"bytes"` // of the tensor in the tuned checkpoint, or in the base

	energy float64 // ‖Δ‖² of the tensor
}

// Unchanged is the reason for skipping a tensor with the same values in both checkpoints.
const Unchanged = "unchanged"
