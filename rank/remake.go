package rank

import (
	"cmp"
	"slices"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/fileio"
)

// remake is an adapter made of others: tensors and attachments that stay, and new tensors in a
// spool. It is a source. Closing it removes the new tensors, and leaves the adapters open that it
// was made of.
type remake struct {
	sources  []format.Source
	spool    *spool
	manifest format.Manifest
	places   []place // of the tensors, then of the attachments
}

// place is a tensor or attachment of a source, or a tensor of the spool.
type place struct{ source, blob int }

// ofSpool is the source of new tensors.
const ofSpool = -1

// keep adds a tensor of a source, and returns its number.
func (r *remake) keep(source, tensor int) int {
	t := r.sources[source].Manifest().Tensors[tensor]
	return r.enter(t, place{source, tensor})
}

// take adds a tensor of the spool, and returns its number.
func (r *remake) take(spooled int) int {
	return r.enter(r.spool.manifest.Tensors[spooled], place{ofSpool, spooled})
}

func (r *remake) enter(t format.Tensor, p place) int {
	r.manifest.Tensors = append(r.manifest.Tensors, t)
	r.places = append(r.places, p)
	return len(r.places) - 1
}

// keepRoles adds the tensors of the given roles of a layer, and returns their numbers.
func (r *remake) keepRoles(source int, l *format.Layer, roles ...format.Role) map[format.Role]int {
	slices.Sort(roles)
	kept := make(map[format.Role]int, len(roles))
	for _, role := range roles {
		if i, ok := l.Roles[role]; ok {
			kept[role] = r.keep(source, i)
		}
	}
	return kept
}

// attach adds an attachment of a source, after all tensors.
func (r *remake) attach(source, attachment int) {
	m := r.sources[source].Manifest()
	r.manifest.Attachments = append(r.manifest.Attachments, m.Attachments[attachment])
	r.places = append(r.places, place{source, len(m.Tensors) + attachment})
}

// attachCard adds the model card of a source. Its other attachments are of a file that the adapter
// is no longer.
func (r *remake) attachCard(source int) {
	for i, a := range r.sources[source].Manifest().Attachments {
		if a.Name == format.ModelCard {
			r.attach(source, i)
		}
	}
}

func (r *remake) Manifest() *format.Manifest { return &r.manifest }

func (r *remake) ReadBlobAt(p []byte, i int, off int64) error {
	at := r.places[i]
	if at.source == ofSpool {
		return r.spool.ReadBlobAt(p, at.blob, off)
	}
	return r.sources[at.source].ReadBlobAt(p, at.blob, off)
}

func (r *remake) Unchanged() error {
	for _, s := range r.sources {
		if err := fileio.Unchanged(s); err != nil {
			return err
		}
	}
	return nil
}

func (r *remake) Close() error { return r.spool.Close() }

// setScale gives a layer a rank and a scale: by alpha/r where that is exact, and fixed otherwise.
func setScale(l *format.Layer, rank int, scale float64) {
	l.Rank, l.Scaling, l.Fixed, l.Alpha = rank, format.AlphaOverR, 0, scale*float64(rank)
	if l.Scale() != scale {
		l.Scaling, l.Fixed, l.Alpha = format.Fixed, scale, 0
	}
}

// sortedRequires joins lists of requirements, each once.
func sortedRequires(lists ...[]format.Requirement) []format.Requirement {
	all := slices.Concat(lists...)
	slices.SortFunc(all, func(q, r format.Requirement) int {
		return cmp.Or(cmp.Compare(q.Feature, r.Feature), cmp.Compare(q.Where, r.Where))
	})
	return slices.Compact(all)
}
