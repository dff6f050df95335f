package merge_test

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/testkit"
	"github.com/loratool/loratool/merge"
)

// TestHolesOfTheWeightsStayHoles merges a base of one large hole and a small tensor, with and
// without a record, and unmerges it.
func TestHolesOfTheWeightsStayHoles(t *testing.T) {
	const hole = 8 << 20
	rng := rand.New(rand.NewPCG(31, 32))
	dir := t.TempDir()
	q := testkit.Random(rng, "q.weight", dtype.BF16, 0.02, 64, 48)
	header := fmt.Sprintf(`{"embed":{"dtype":"F32","shape":[%d],"data_offsets":[0,%d]},`+
		`"q.weight":{"dtype":"BF16","shape":[64,48],"data_offsets":[%[2]d,%[3]d]}}`, hole/4, hole, hole+len(q.Data))
	base := filepath.Join(dir, "base.safetensors")
	head := testkit.Raw(header, nil)
	testkit.Write(t, base, head)
	f, err := os.OpenFile(base, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(q.Data, int64(len(head)+hole)); err != nil {
		t.Fatal(err)
	}
	blocks := func(path string) int64 {
		var s syscall.Stat_t
		if err := syscall.Stat(path, &s); err != nil {
			t.Fatal(err)
		}
		return int64(s.Blocks)
	}
	most := blocks(base) + 2048 // units of 512 bytes; the hole has 16,384
	adapter := writeLoRA(t, filepath.Join(dir, "adapter"), rng, "q", 3, 64, 48, 0.004)

	p, err := merge.Open(context.Background(), base, []merge.Adapter{adapter}, merge.Options{})
	plain := run(t, p, err)
	recorded, rec := mergeRecorded(t, base, adapter)
	p, err = merge.OpenUnmerge(context.Background(), recorded, merge.Removal{
		Adapters: anyWeight([]merge.Adapter{adapter}), Records: []*merge.Record{record(t, "record", rec)},
	}, merge.Options{})
	back := run(t, p, err)
	for name, path := range map[string]string{"merged": plain, "merged with a record": recorded, "restored": back} {
		if n := blocks(path); n > most {
			t.Errorf("%s: the output takes %d blocks on the disk, want at most %d", name, n, most)
		}
	}
	if testkit.Hash(t, plain) != testkit.Hash(t, recorded) {
		t.Error("the merges with and without a record differ")
	}
	want, err := os.ReadFile(base)
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(back)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("the restored file is not the base")
	}
}
