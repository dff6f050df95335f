package convert

import (
	"context"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/loratool/loratool/format"
	"github.com/loratool/loratool/internal/fault"
)

// Cloneofsimo returns the dialect of cloneofsimo's lora, the first for Stable Diffusion. It numbers
// the factors of a model instead of naming its modules: unet:0:up and unet:0:down in safetensors,
// and a list of tensors, up and down in turn, in a pickle. The numbers follow the order in which
// its code walks through the models of Stable Diffusion 1 and 2; a file whose number of factors or
// shapes do not fit them is carried, and merge refuses it by name. The scale is 1. It is read only.
func Cloneofsimo() Dialect { return cloneofsimo }

var cloneofsimo = &listDialect{readOnly{"cloneofsimo"}}

type listDialect struct{ readOnly }

func (*listDialect) Recognise(in *Input) bool {
	if in.readTable() != nil {
		return isList(in) && fitsList(in)
	}
	return slices.ContainsFunc(in.table.tensors, func(t format.Tensor) bool {
		_, ok := parseListKey(t.Name)
		return ok
	})
}

// fitsList reports whether a pickled list has the sizes of a model's layers.
func fitsList(in *Input) bool {
	t, err := wholeTable(in.ctx, in)
	if err != nil {
		return false
	}
	p := pairReader{collector: collector{tensors: t.tensors}}
	lists, others := p.lists(parsePlace)
	return len(others) == 0 && walkOf("", p.sizesOf(lists[""])) != nil
}

// listKey is the place of a factor: number i of a component.
type listKey struct {
	component string // "" in a pickle, which holds one component and does not say which
	i         int
	role      format.Role
}

func parseListKey(name string) (k listKey, ok bool) {
	parts := strings.Split(name, ":")
	if len(parts) != 3 {
		return k, false
	}
	k.component = parts[0]
	i, err := strconv.Atoi(parts[1])
	k.i, k.role, ok = i, sides[parts[2]], err == nil && i >= 0
	return k, ok && k.role != ""
}

func (d *listDialect) Open(ctx context.Context, in *Input, o Options) (format.Source, error) {
	t, err := wholeTable(ctx, in)
	if err != nil {
		return nil, err
	}
	sign, key := "a list of tensors, up and down in turn", parsePlace // a pickle, or one restored
	for _, x := range t.tensors {
		if _, ok := parseListKey(x.Name); ok {
			sign, key = "keys such as "+x.Name, parseListKey
		}
	}
	p := pairReader{dialect: d.name, options: o}
	assign := func(p *pairReader) error { return p.assignList(key) }
	return openPairs(ctx, in, t, sign, p, assign)
}

// parsePlace parses the name of a tensor in a list, which is its place from 0 on.
func parsePlace(name string) (k listKey, ok bool) {
	i, err := strconv.Atoi(name)
	if err != nil {
		return k, false
	}
	return listKey{i: i / 2, role: []format.Role{roleB, roleA}[i%2]}, true
}

// assignList gives the factors of each component their modules.
func (p *pairReader) assignList(parse func(string) (listKey, bool)) error {
	p.layers = make(map[string]map[format.Role]int)
	lists, others := p.lists(parse)
	for _, component := range slices.Sorted(maps.Keys(lists)) {
		p.assignComponent(component, lists[component])
	}
	for _, i := range others {
		feature := format.FeatureUnknownTensor
		if strings.HasPrefix(p.tensors[i].Name, "<") {
			feature = format.FeatureTextualInversion
		}
		p.opaque(i)
		p.require(feature, p.tensors[i].Name)
	}
	return nil
}

// lists sorts the tensors by component, number and role, and returns the other tensors.
func (p *pairReader) lists(parse func(string) (listKey, bool)) (
	lists map[string]map[int]map[format.Role]int, others []int) {
	lists = make(map[string]map[int]map[format.Role]int)
	for i, t := range p.tensors {
		k, ok := parse(t.Name)
		list := lists[k.component]
		switch {
		case !ok || hasRole(list[k.i], k.role):
			others = append(others, i)
			continue
		case list == nil:
			list = make(map[int]map[format.Role]int)
			lists[k.component] = list
		}
		if list[k.i] == nil {
			list[k.i] = make(map[format.Role]int)
		}
		list[k.i][k.role] = i
	}
	return lists, others
}

// assignComponent gives the factors of a component their modules. If they fit none of the models
// that the program knew, it carries them.
func (p *pairReader) assignComponent(component string, list map[int]map[format.Role]int) {
	modules := walkOf(component, p.sizesOf(list))
	for i, roles := range list {
		if modules != nil {
			p.layers[modules[i]] = roles
			continue
		}
		for _, t := range roles {
			p.opaque(t)
		}
	}
	if modules == nil {
		where := component + " " + fault.Count(len(list), "pair") + " of factors" +
			", in the order of no model of Stable Diffusion 1 or 2"
		p.require(format.FeatureUnknownTensor, strings.TrimSpace(where))
	}
}

// sizesOf returns the outputs and inputs of each layer of a list, nil if the list has gaps or
// factors that are no matrices of one rank.
func (p *pairReader) sizesOf(list map[int]map[format.Role]int) []size {
	sizes := make([]size, len(list))
	for i := range sizes {
		ia, hasA := list[i][roleA]
		ib, hasB := list[i][roleB]
		if !hasA || !hasB {
			return nil
		}
		a, b := p.tensors[ia].Shape, p.tensors[ib].Shape
		if len(a) != 2 || len(b) != 2 || a[0] != b[1] {
			return nil
		}
		sizes[i] = size{b[0], a[1]}
	}
	return sizes
}
