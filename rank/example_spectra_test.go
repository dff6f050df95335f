package rank_test

import (
	"context"
	"fmt"
	"log"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/rank"
)

// The update 2·B·A with B = (1 0; 0 1) and A = (3 0; 0 4) has the singular values 8 and 6.
func ExampleSpectra() {
	b := format.NewBuilder("example")
	b.Linear("q_proj", 2, 2,
		format.Float32s([]float32{3, 0, 0, 4}), format.Float32s([]float32{1, 0, 0, 1}))
	src, err := b.Source()
	if err != nil {
		log.Fatal(err)
	}
	defer src.Close()
	spectra, err := rank.Spectra(context.Background(), src, 0)
	if err != nil {
		log.Fatal(err)
	}
	for _, s := range spectra {
		fmt.Printf("%s %.3f, half of the energy in rank %d\n", s.Module, s.SingularValues, s.RankFor(0.5))
	}
	// Output:
	// q_proj [8.000 6.000], half of the energy in rank 1
}
