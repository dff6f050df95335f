package checkpoint

import (
	"context"
	"slices"
	"sync"
)

// keeper keeps the ranges of tensors that were asked for last. Several goroutines may use it.
type keeper struct {
	lock   sync.Mutex
	ranges []*keptRange // the last one was asked for last
}

// A matrix of an expert of gpt-oss has 8.3 MB, and workers use one or two at a time, each with its
// scales: two ranges.
const (
	keptRanges = 6
	keptBytes  = 16 << 20
)

// keptRange is read by the first goroutine that needs it.
type keptRange struct {
	tensor *Tensor
	off, n int64
	once   sync.Once
	bytes  []byte
	err    error
}

// read returns a range of a tensor, arranged, or nil if it has more than keptBytes bytes.
func (k *keeper) read(
	ctx context.Context, t *Tensor, off, n int64, arrange func(raw []byte) []byte,
) ([]byte, error) {
	if n > keptBytes {
		return nil, nil
	}
	r := k.find(t, off, n)
	r.once.Do(func() {
		raw := make([]byte, n)
		if r.err = t.ReadAt(ctx, raw, off); r.err == nil {
			r.bytes = arrange(raw)
		}
	})
	if r.err != nil {
		k.forget(r)
	}
	return r.bytes, r.err
}

// find returns a range, and forgets the oldest if it is a new one.
func (k *keeper) find(t *Tensor, off, n int64) *keptRange {
	k.lock.Lock()
	defer k.lock.Unlock()
	i := slices.IndexFunc(k.ranges, func(r *keptRange) bool { return r.tensor == t && r.off == off && r.n == n })
	r := &keptRange{tensor: t, off: off, n: n}
	switch {
	case i >= 0:
		r = k.ranges[i]
		k.ranges = slices.Delete(k.ranges, i, i+1)
	case len(k.ranges) == keptRanges:
		k.ranges = slices.Delete(k.ranges, 0, 1)
	}
	k.ranges = append(k.ranges, r)
	return r
}

// forget drops a range that could not be read: the context of a later call may live longer.
func (k *keeper) forget(r *keptRange) {
	k.lock.Lock()
	defer k.lock.Unlock()
	if i := slices.Index(k.ranges, r); i >= 0 {
		k.ranges = slices.Delete(k.ranges, i, i+1)
	}
}
