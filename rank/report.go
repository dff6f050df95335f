package rank

// ExtractReport says what an extraction found. Energy, Error, Rounded and Ranks are over all that
// changed: a tensor that is carried whole has no error, and of one that is left out all is lost. A
// row that only one of the checkpoints has counts whole, and so does a tensor; a head that only one
// has counts as its difference from the embedding that the other one ties it to.
type ExtractReport struct {
	Layers   []ExtractedLayer `json:"layers"`
	Beside   []BesideReport   `json:"beside"`
	Skipped  []Skipped        `json:"skipped"`
	Energy   float64          `json:"energy"`        // share of Σ‖Δ‖² that is kept
	Error    float64          `json:"error"`         // √ of the share that is not, before the factors are rounded
	Rounded  float64          `json:"rounded_error"` // the same for the factors as they are stored
	LeftOut  float64          `json:"left_out"`      // √ of the share of the tensors that are left out
	Bytes    int64            `json:"bytes"`         // of the factors and of what is beside
	Ranks    []RankEnergy     `json:"ranks"`         // what a fixed rank of the layers would give
	Warnings []string         `json:"warnings"`      // what makes the adapter of little use, though it is what was asked for
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
	// is false where the factors as stored have too few digits for that, and where the error is
	// below 1e-6, at which Δ itself, in float32, has too few.
	NearBest bool `json:"near_best"`

	Frobenius      float64      `json:"frobenius"`     // ‖Δ‖_F
	RelativeNorm   float64      `json:"relative_norm"` // ‖Δ‖_F / ‖W‖_F
	NoiseEdge      float64      `json:"noise_edge"`    // singular values below are rounding noise; 0 where it is not known
	SingularValues []float64    `json:"singular_values"`
	Ranks          []RankEnergy `json:"ranks"`

	energies energies
}

// energies are the squares that the totals are made of.
type energies struct{ all, kept, left, rounded float64 }

// RankEnergy is the share of the energy that rank k is known to reach. AtLeast is true where the
// decomposition stopped before the k-th value had converged, so that the true share can be larger.
type RankEnergy struct {
	Rank    int     `json:"rank"`
	Energy  float64 `json:"energy"`
	AtLeast bool    `json:"at_least"`
}

// BesideReport is a tensor that is carried whole.
type BesideReport struct {
	Tensor string `json:"tensor"`
	Why    string `json:"why"`
	Bytes  int64  `json:"bytes"`
}

// reportedRanks are the ranks of the table.
var reportedRanks = []int{4, 8, 16, 32, 64}

// Skipped is a tensor that is not extracted. Share is what it has of ‖Δ‖_F over all that changed: 0
// for what did not change.
type Skipped struct {
	Tensor string  `json:"tensor"`
	Why    string  `json:"why"`
	Share  float64 `json:"share"`

	energy float64 // ‖Δ‖² of it
}

// Unchanged is why a tensor is skipped that has the same values in both checkpoints.
const Unchanged = "unchanged"
