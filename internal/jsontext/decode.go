package jsontext

import (
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
)

// Decode sets *v from a text, read as Python reads it. A struct gets the members whose keys equal
// the json tags of its fields. Members without a field are ignored; of equal keys the last one
// counts. null empties slices, maps and pointers, and leaves any other value unchanged. v may hold
// structs, slices, maps with string keys, pointers, strings, bools, numbers, and Unmarshalers such
// as json.RawMessage. A number must fit its type.
func Decode(text []byte, v any) error {
	_, err := DecodeNear(text, v)
	return err
}

// DecodeNear is Decode that also returns, sorted, the ignored members of the outermost struct whose
// keys differ from a field's only in upper and lower case.
func DecodeNear(text []byte, v any) (near []string, err error) {
	d := newDecoder(text, Python)
	if d.Skip(); d.err == nil { // invalid JSON sets nothing
		d.End()
	}
	if d.err == nil {
		d.pos = 0
		d.value(reflect.ValueOf(v).Elem())
	}
	if d.err != nil {
		return nil, d.err
	}
	slices.Sort(d.near)
	return slices.Compact(d.near), nil
}

// DecodeExact sets the fields of the struct *v, and of the structs in it, from a strict text. Every
// field has a json tag. Every member must occur, once and not null, and no other member may. A
// field with the option omitempty may be absent.
func DecodeExact(text []byte, v any) error {
	d := newDecoder(text, Strict)
	d.exact = true
	d.value(reflect.ValueOf(v).Elem())
	d.End()
	return d.err
}

// Unmarshaler parses the text of its own value, as with encoding/json.
type Unmarshaler interface{ UnmarshalJSON(text []byte) error }

type decoder struct {
	*Scanner
	exact  bool
	near   []string
	path   []step // the path to the current value, for errors
	fields map[reflect.Type][]field
}

// step is one key of a path, or one index into a list.
type step struct {
	key   string
	index int // isKey if the step is a key
}

const isKey = -1

// field is a field of a struct, by the name of its member.
type field struct {
	name       string
	index      int
	isOptional bool
}

func newDecoder(text []byte, form Form) *decoder {
	return &decoder{Scanner: New(string(text), form), fields: make(map[reflect.Type][]field)}
}

// value reads one value into v.
func (d *decoder) value(v reflect.Value) {
	if d.err != nil {
		return
	}
	if u, ok := v.Addr().Interface().(Unmarshaler); ok {
		at := d.Pos()
		if err := u.UnmarshalJSON([]byte(d.Raw())); err != nil {
			d.Failf(Type, at, "%s: %v", d.where(), err)
		}
		return
	}
	if !d.exact && d.Word("null") {
		if k := v.Kind(); k == reflect.Pointer || k == reflect.Slice || k == reflect.Map {
			v.SetZero()
		}
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		if v.IsNil() {
			v.Set(reflect.New(v.Type().Elem()))
		}
		d.value(v.Elem())
	case reflect.Struct:
		d.object(v, d.structure)
	case reflect.Map:
		d.object(v, d.dictionary)
	case reflect.Slice:
		d.list(v)
	default:
		d.scalar(v)
	}
}

// object reads an object with the function members.
func (d *decoder) object(v reflect.Value, members func(reflect.Value)) {
	if d.Next() != '{' {
		d.wrong(v)
		return
	}
	members(v)
}

// structure reads an object into a struct.
func (d *decoder) structure(v reflect.Value) {
	at, fields := d.Pos(), d.fieldsOf(v.Type())
	places := make([]int, len(fields)) // positions of the values; never 0, where the object itself begins
	for keyAt, key := range d.Object() {
		i := slices.IndexFunc(fields, func(f field) bool { return f.name == key })
		switch {
		case d.exact && (i < 0 || places[i] > 0):
			d.Failf(Members, keyAt, "member %q of %s is unknown or repeated", key, d.where())
		case d.exact:
			places[i] = d.Pos()
			d.step(key, isKey, v.Field(fields[i].index))
		case i >= 0:
			places[i] = d.Pos()
			d.Skip()
		default:
			d.ignore(key, fields)
		}
	}
	end := d.pos
	for i, place := range places {
		switch {
		case d.err != nil:
			return
		case d.exact && place == 0 && !fields[i].isOptional:
			d.Failf(Members, at, "%s lacks member %q", d.where(), fields[i].name)
		case !d.exact && place > 0: // the last of equal keys
			d.pos = place
			d.step(fields[i].name, isKey, v.Field(fields[i].index))
		}
	}
	d.pos = end
}

// fieldsOf returns the fields of a struct that have a json tag.
func (d *decoder) fieldsOf(t reflect.Type) []field {
	fields, ok := d.fields[t]
	if ok {
		return fields
	}
	for i := range t.NumField() {
		if name, option, _ := strings.Cut(t.Field(i).Tag.Get("json"), ","); name != "" {
			fields = append(fields, field{name, i, option == "omitempty"})
		}
	}
	d.fields[t] = fields
	return fields
}

// ignore skips a member without a field.
func (d *decoder) ignore(key string, fields []field) {
	if len(d.path) == 0 && slices.ContainsFunc(fields, func(f field) bool { return strings.EqualFold(f.name, key) }) {
		d.near = append(d.near, key)
	}
	d.Skip()
}

// dictionary reads an object with arbitrary keys into a map.
func (d *decoder) dictionary(v reflect.Value) {
	if v.IsNil() {
		v.Set(reflect.MakeMap(v.Type()))
	}
	texts, isTexts := v.Addr().Interface().(*map[string]string)
	for at, key := range d.Object() {
		if isTexts && !d.exact && d.Next() == '"' { // the index of a model has a hundred thousand
			(*texts)[key] = d.Str()
			continue
		}
		name := reflect.ValueOf(key)
		if d.exact && v.MapIndex(name).IsValid() {
			d.Failf(Members, at, "member %q of %s is repeated", key, d.where())
		}
		value := reflect.New(v.Type().Elem()).Elem()
		d.step(key, isKey, value)
		v.SetMapIndex(name, value)
	}
}

func (d *decoder) list(v reflect.Value) {
	if d.Next() != '[' {
		d.wrong(v)
		return
	}
	v.Set(reflect.MakeSlice(v.Type(), 0, 0))
	for i := range d.Array() {
		v.Grow(1)
		v.SetLen(i + 1)
		d.step("", i, v.Index(i))
	}
}

// step reads a value inside another one.
func (d *decoder) step(key string, index int, v reflect.Value) {
	d.path = append(d.path, step{key, index})
	d.value(v)
	d.path = d.path[:len(d.path)-1]
}

// scalar reads a string, a bool or a number.
func (d *decoder) scalar(v reflect.Value) {
	at := d.Pos()
	ok := false
	switch c := d.Next(); {
	case v.Kind() == reflect.String:
		if ok = c == '"'; ok {
			v.SetString(d.Str())
		}
	case v.Kind() == reflect.Bool:
		isTrue := d.Word("true")
		if ok = isTrue || d.Word("false"); ok {
			v.SetBool(isTrue)
		}
	case c == '-' || '0' <= c && c <= '9':
		ok = setNumber(v, d.Number())
	}
	if !ok {
		d.pos = at
		d.wrong(v)
	}
}

// setNumber sets v to a number and reports whether its type can hold it.
func setNumber(v reflect.Value, digits string) bool {
	var err error
	switch {
	case v.CanInt():
		var n int64
		n, err = strconv.ParseInt(digits, 10, v.Type().Bits())
		v.SetInt(n)
	case v.CanUint():
		var n uint64
		n, err = strconv.ParseUint(digits, 10, v.Type().Bits())
		v.SetUint(n)
	default:
		var x float64
		x, err = strconv.ParseFloat(digits, v.Type().Bits())
		v.SetFloat(x)
	}
	return err == nil
}

// wrong fails because the next value has another type than v.
func (d *decoder) wrong(v reflect.Value) {
	at, value := d.Pos(), d.Raw()
	if d.err != nil {
		return
	}
	const most = 60
	if len(value) > most {
		value = value[:most] + "…"
	}
	if len(d.path) == 0 && value[0] == '[' {
		value = "an array"
	}
	d.Failf(Type, at, "%s is %s, want %s", d.where(), strings.ToValidUTF8(value, "\ufffd"), want(v.Type()))
}

// want names the values that a type takes.
func want(t reflect.Type) string {
	switch t.Kind() {
	case reflect.Struct, reflect.Map:
		return "an object"
	case reflect.Slice:
		return "a list"
	case reflect.String:
		return "a string"
	case reflect.Bool:
		return "true or false"
	case reflect.Float64, reflect.Float32:
		return "a number"
	}
	return "an integer"
}

// where returns the path of the current value: keys and indices.
func (d *decoder) where() string {
	var b strings.Builder
	for i, s := range d.path {
		switch {
		case s.index != isKey:
			fmt.Fprintf(&b, "[%d]", s.index)
		case i > 0:
			b.WriteString("." + s.key)
		default:
			b.WriteString(s.key)
		}
	}
	if b.Len() == 0 {
		return "the text"
	}
	return b.String()
}
