package rank_test

import (
	"context"
	"fmt"
	"log"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/rank"
)

// Two updates of rank 1 whose sum has the singular values 4 and 3. At rank 1 the error is 3/5 of
// the sum's norm.
func ExampleCombine() {
	adapter := func(a, b []float32) format.Source {
		x := format.NewBuilder("example")
		x.Linear("q_proj", 1, 1, format.Float32s(a), format.Float32s(b))
		src, err := x.Source()
		if err != nil {
			log.Fatal(err)
		}
		return src
	}
	one, other := adapter([]float32{4, 0}, []float32{1, 0}), adapter([]float32{0, 6}, []float32{0, 1})
	sum, report, err := rank.Combine(context.Background(), []format.Source{one, other}, rank.CombineOptions{
		Weights: []float64{1, 0.5}, Rule: rank.FixedRank{K: 1},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer sum.Close()
	l := report.Layers[0]
	fmt.Printf("rank %d of %v, singular values %.0f, error %.2f\n", l.Rank, l.Was, l.SingularValues, report.Rounded)
	// Output:
	// rank 1 of [1 1], singular values [4 3], error 0.60
}

func ExampleCompare() {
	adapter := func(a, b []float32) format.Source {
		x := format.NewBuilder("example")
		x.Linear("q_proj", 1, 1, format.Float32s(a), format.Float32s(b))
		src, err := x.Source()
		if err != nil {
			log.Fatal(err)
		}
		return src
	}
	c, err := rank.Compare(context.Background(),
		adapter([]float32{1, 0}, []float32{3, 0}), adapter([]float32{1, 0}, []float32{0, 4}), rank.CompareOptions{})
	if err != nil {
		log.Fatal(err)
	}
	l := c.Layers[0]
	fmt.Printf("norms %.0f and %.0f, difference %.0f, cosine %.0f\n", l.NormA, l.NormB, l.NormDifference, l.Cosine)
	fmt.Printf("overlap %.0f of the inputs, %.0f of the outputs\n", l.Overlap, l.OverlapOut)
	// Output:
	// norms 3 and 4, difference 5, cosine 0
	// overlap 1 of the inputs, 0 of the outputs
}
