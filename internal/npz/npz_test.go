package npz

import (
	"archive/zip"
	"bytes"
	"compress/flate"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"testing"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/fault"
)

func read(p []byte) (*File, error) {
	return Read(context.Background(), bytes.NewReader(p), int64(len(p)))
}

// npy composes an array of any header and values, with version 1.0.
func npy(dict string, values ...byte) []byte {
	p := append([]byte(magic), 1, 0)
	p = binary.LittleEndian.AppendUint16(p, uint16(len(dict)))
	return append(append(p, dict...), values...)
}

// of is the header that NumPy writes.
func of(descr, fortran, shape string) string {
	return fmt.Sprintf("{'descr': '%s', 'fortran_order': %s, 'shape': %s, }   \n", descr, fortran, shape)
}

// plain is an array of two numbers.
var plain = npy(of("<f4", "False", "(2,)"), 0, 0, 128, 63, 0, 0, 0, 64)

// part is an entry of an archive that is composed by hand, so that it can be wrong.
type part struct {
	name    string
	content []byte
	method  uint16
	flags   uint16
	change  func(h *zip.FileHeader)
}

// archived makes an archive of entries.
func archived(t testing.TB, parts ...part) []byte {
	t.Helper()
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	for _, p := range parts {
		packed := p.content
		if p.method == zip.Deflate {
			var d bytes.Buffer
			c, _ := flate.NewWriter(&d, 9)
			c.Write(p.content)
			c.Close()
			packed = d.Bytes()
		}
		h := &zip.FileHeader{
			Name: p.name, Method: p.method, Flags: p.flags, CRC32: crc32.ChecksumIEEE(p.content),
			UncompressedSize64: uint64(len(p.content)), CompressedSize64: uint64(len(packed)),
		}
		if p.change != nil {
			p.change(h)
		}
		e, err := w.CreateRaw(h)
		if err != nil {
			t.Fatal(err)
		}
		e.Write(packed)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func stored(name string, content []byte) part { return part{name: name, content: content} }
func deflated(name string, content []byte) part {
	return part{name: name, content: content, method: zip.Deflate}
}

// overlapping is an archive whose two entries have the same bytes: the directory's second record
// points at the first entry.
func overlapping(t testing.TB) []byte {
	p := archived(t, stored("a.npy", plain), stored("b.npy", plain))
	at := bytes.LastIndex(p, []byte("PK\x01\x02"))
	binary.LittleEndian.PutUint32(p[at+42:], 0)
	return p
}

// zip64 is an archive whose directory gives the sizes of its entry as a zip64 record.
func zip64(t testing.TB, size uint64) []byte {
	return archived(t, part{name: "a.npy", content: plain, change: func(h *zip.FileHeader) {
		extra := binary.LittleEndian.AppendUint16(nil, 1)
		extra = binary.LittleEndian.AppendUint16(extra, 16)
		extra = binary.LittleEndian.AppendUint64(extra, size)
		h.Extra = binary.LittleEndian.AppendUint64(extra, size)
		h.UncompressedSize64, h.CompressedSize64 = size, size
	}})
}

type refusal struct {
	file []byte
	kind fault.Kind
	want string
}

// hostile are files that Read must refuse, with a part of the message.
func hostile(t testing.TB) map[string]refusal {
	one := func(content []byte) []byte { return archived(t, stored("a.npy", content)) }
	text := func(dict string) []byte { return one(npy(dict)) }
	claim := func(n uint16) []byte {
		return append(append([]byte(magic), 1, 0), byte(n), byte(n>>8), '{', '}')
	}
	long := append(append([]byte(magic), 2, 0), 1, 0, 1, 0)
	zeros := npy(of("<f4", "False", "(1048576,)"), make([]byte, 4<<20)...)
	whole := archived(t, stored("a.npy", plain))
	return map[string]refusal{
		"empty":            {nil, fault.Truncated, "zip"},
		"magic of zip":     {[]byte("PK\x03\x04"), fault.Truncated, "zip"},
		"cut":              {whole[:len(whole)-30], fault.Truncated, "zip"},
		"two of a name":    {archived(t, stored("a.npy", plain), stored("a.npy", plain)), fault.Corrupt, `two entries "a.npy"`},
		"no array":         {archived(t, stored("a.npy", plain), stored("x.py", nil)), fault.Unsupported, `"x.py" of the archive is no array`},
		"a directory":      {archived(t, stored("a.npy/", nil)), fault.Unsupported, "no array"},
		"encrypted":        {archived(t, part{name: "a.npy", content: plain, flags: isEncrypted}), fault.Unsupported, "encrypted"},
		"method 12":        {archived(t, part{name: "a.npy", content: plain, method: 12}), fault.Unsupported, "method 12"},
		"overlapping":      {overlapping(t), fault.Corrupt, "share bytes"},
		"zip64 of 2^40":    {zip64(t, 1<<40), fault.Corrupt, "outside the file"},
		"zip64 of 2^64-1":  {zip64(t, math.MaxUint64), fault.Corrupt, "outside the file"},
		"a bomb":           {archived(t, deflated("a.npy", zeros)), fault.Limit, "more than 16 times"},
		"no deflate":       {archived(t, part{name: "a.npy", content: []byte{7, 7}, change: func(h *zip.FileHeader) { h.Method = zip.Deflate }}), fault.Corrupt, "cannot be"},
		"entry empty":      {one(nil), fault.Truncated, "ends within its header"},
		"another magic":    {one([]byte("\x93NUMPX\x01\x00\x02\x00{}")), fault.Corrupt, "magic string"},
		"magic alone":      {one([]byte(magic)), fault.Truncated, "ends within"},
		"version 4":        {one([]byte(magic + "\x04\x00\x02\x00{}")), fault.Unsupported, "version 4.0"},
		"version 1.1":      {one([]byte(magic + "\x01\x01\x02\x00{}")), fault.Unsupported, "version 1.1"},
		"length cut":       {one([]byte(magic + "\x02\x00\x02\x00")), fault.Truncated, "ends within"},
		"header of 3":      {one(claim(3)), fault.Truncated, "header of 3 bytes"},
		"header of 65535":  {one(claim(65535)), fault.Truncated, "header of 65535 bytes"},
		"header of 65537":  {one(append(long, make([]byte, 1<<17)...)), fault.Limit, "limit is 65536"},
		"header of 2^32-1": {one([]byte(magic + "\x03\x00\xff\xff\xff\xff{}")), fault.Truncated, "4294967295"},
		"no dictionary":    {text("[]"), fault.Corrupt, "want a dictionary"},
		"nothing in it":    {text("{}"), fault.Corrupt, `lacks "descr"`},
		"not closed":       {text("{'descr': '<f4'"), fault.Corrupt, "want a comma"},
		"text behind":      {text(of("<f4", "False", "(0,)") + "1"), fault.Corrupt, "nothing more"},
		"a call":           {text(of("<f4", "False", "__import__('os').system('x')")), fault.Corrupt, "want a tuple"},
		"a key twice":      {text("{'descr': '<f4', 'descr': '<f4'}"), fault.Corrupt, `"descr" twice`},
		"another key":      {text("{'x': 1}"), fault.Corrupt, `unknown key "x"`},
		"key not closed":   {text("{'x"), fault.Corrupt, "want a key"},
		"an escape":        {text(`{'\x64escr': '<f4'}`), fault.Corrupt, "want a key"},
		"objects":          {text(of("|O", "False", "(1,)")), fault.Unsupported, "Python objects"},
		"big-endian":       {text(of(">f4", "False", "(0,)")), fault.Unsupported, `">f4"`},
		"complex":          {text(of("<c8", "False", "(0,)")), fault.Unsupported, `"<c8"`},
		"records":          {text("{'descr': [('x', '<f4')], 'fortran_order': False, 'shape': (0,)}"), fault.Unsupported, "records"},
		"order":            {text(of("<f4", "1", "(0,)")), fault.Corrupt, "want True or False"},
		"shape of a list":  {text(of("<f4", "False", "[0]")), fault.Corrupt, "want a tuple"},
		"no tuple":         {text(of("<f4", "False", "(0)")), fault.Corrupt, "want a tuple"},
		"no comma":         {text(of("<f4", "False", "(0, 0 0)")), fault.Corrupt, "want a tuple"},
		"negative":         {text(of("<f4", "False", "(-1,)")), fault.Corrupt, "want a tuple"},
		"2^64":             {text(of("<f4", "False", "(18446744073709551616,)")), fault.Corrupt, "want a tuple"},
		"2^64-1":           {text(of("<f4", "False", "(18446744073709551615,)")), fault.Limit, "too many"},
		"product wraps":    {text(of("<f4", "False", "(4294967296, 4294967296)")), fault.Limit, "too many"},
		"bytes wrap":       {text(of("<f8", "False", "(2305843009213693952,)")), fault.Limit, "too many"},
		"65 dimensions":    {text(of("<f4", "False", "("+strings.Repeat("1, ", 65)+")")), fault.Limit, "more than 64"},
		"2^40 values":      {text(of("<f4", "False", "(1099511627776,)")), fault.Truncated, "claims 4398046511104 bytes"},
		"values cut":       {one(plain[:len(plain)-1]), fault.Truncated, "claims 8 bytes of values, and its entry has 7"},
		"values too many":  {one(append(bytes.Clone(plain), 0)), fault.Corrupt, "has 9"},
	}
}

func TestReadRefusesHostileFiles(t *testing.T) {
	for name, c := range hostile(t) {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := read(c.file)
		runtime.ReadMemStats(&after)
		if err == nil || !errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: Read = %v, want kind %v and %q", name, err, c.kind, c.want)
		}
		if n := after.TotalAlloc - before.TotalAlloc; n > 1<<20 {
			t.Errorf("%s: a file of %d bytes took %d bytes of memory", name, len(c.file), n)
		}
	}
}

// damaged are archives whose damage only the first read of the values can find.
func damaged(t testing.TB) map[string]refusal {
	wrong := func(method uint16) []byte {
		return archived(t, part{name: "a.npy", content: plain, method: method, change: func(h *zip.FileHeader) { h.CRC32 ^= 1 }})
	}
	none := func(method uint16) []byte {
		return archived(t, part{name: "a.npy", content: plain, method: method, change: func(h *zip.FileHeader) { h.CRC32 = 0 }})
	}
	longer := archived(t, part{name: "a.npy", content: append(bytes.Clone(plain), 7), method: zip.Deflate, change: func(h *zip.FileHeader) {
		h.UncompressedSize64--
		h.CRC32 = crc32.ChecksumIEEE(plain)
	}})
	shorter := archived(t, part{name: "a.npy", content: plain[:len(plain)-1], method: zip.Deflate, change: func(h *zip.FileHeader) {
		h.UncompressedSize64++
	}})
	return map[string]refusal{
		"checksum":            {wrong(zip.Store), fault.Corrupt, "CRC-32"},
		"checksum, deflated":  {wrong(zip.Deflate), fault.Corrupt, "CRC-32"},
		"checksum 0":          {none(zip.Store), fault.Corrupt, "the archive says 00000000"},
		"checksum 0, deflate": {none(zip.Deflate), fault.Corrupt, "the archive says 00000000"},
		"longer":              {longer, fault.Corrupt, "cannot be decompressed"},
		"shorter":             {shorter, fault.Corrupt, "unexpected EOF"},
	}
}

func TestReadAtFindsDamage(t *testing.T) {
	for name, c := range damaged(t) {
		f, err := read(c.file)
		if err != nil {
			t.Errorf("%s: Read = %v", name, err)
			continue
		}
		if err := f.ReadAt(make([]byte, 4), 0, 4); !errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: ReadAt = %v, want kind %v and %q", name, err, c.kind, c.want)
		}
	}
}

// TestReadAcceptsWhatOthersWrite: headers of NumPy's three versions, of Python 2, and of MLX.
func TestReadAcceptsWhatOthersWrite(t *testing.T) {
	version := func(n byte) []byte {
		p := append([]byte(magic), n, 0)
		dict := of("<f4", "False", "(1, 2)")
		p = binary.LittleEndian.AppendUint32(p, uint32(len(dict)))
		return append(append(p, dict...), plain[len(plain)-8:]...)
	}
	for name, c := range map[string]struct {
		array []byte
		want  Tensor
	}{
		"version 1":  {plain, Tensor{"a", dtype.F32, []uint64{2}, false}},
		"version 2":  {version(2), Tensor{"a", dtype.F32, []uint64{1, 2}, false}},
		"version 3":  {version(3), Tensor{"a", dtype.F32, []uint64{1, 2}, false}},
		"Python 2":   {npy(`{"shape": (1L, 2L), "fortran_order": False, "descr": "<f2"}`, 0, 0, 0, 0), Tensor{"a", dtype.F16, []uint64{1, 2}, false}},
		"MLX":        {npy("{'descr': '<V2', 'fortran_order': True, 'shape': (1, 2, )}  \n", 0, 0, 0, 0), Tensor{"a", dtype.BF16, []uint64{1, 2}, true}},
		"one number": {npy(of("<f8", "True", "()"), make([]byte, 8)...), Tensor{"a", dtype.F64, nil, false}},
		"none":       {npy(of("|i1", "True", "(0,)")), Tensor{"a", dtype.I8, []uint64{0}, false}},
	} {
		for _, p := range []part{stored("a.npy", c.array), deflated("a.npy", c.array)} {
			f, err := read(archived(t, p))
			if err != nil {
				t.Errorf("%s: %v", name, err)
			} else if !reflect.DeepEqual(f.Tensors, []Tensor{c.want}) {
				t.Errorf("%s: %v, want %v", name, f.Tensors, c.want)
			}
		}
	}
}

// TestReadAtReadsPieces in any order, from more compressed arrays than are kept in memory.
func TestReadAtReadsPieces(t *testing.T) {
	var parts []part
	for i := range maxUnpacked + 3 {
		values := make([]byte, 40)
		for k := range values {
			values[k] = byte(i*len(values) + k)
		}
		p := deflated(fmt.Sprintf("%d.npy", i), npy(of("<f4", "False", "(10,)"), values...))
		if i%3 == 2 {
			p.method = zip.Store
		}
		parts = append(parts, p)
	}
	f, err := read(archived(t, parts...))
	if err != nil {
		t.Fatal(err)
	}
	for _, off := range []int{36, 0, 17, 4, 38} {
		for i := range f.Tensors {
			got := make([]byte, min(5, 40-off))
			if err := f.ReadAt(got, i, int64(off)); err != nil {
				t.Fatal(err)
			}
			if want := byte(i*40 + off); got[0] != want || got[len(got)-1] != want+byte(len(got)-1) {
				t.Errorf("array %d from %d = %d, want %d and more", i, off, got, want)
			}
		}
	}
	if len(f.unpacked) > maxUnpacked {
		t.Errorf("%d arrays are in memory, want at most %d", len(f.unpacked), maxUnpacked)
	}
}

// TestReadAgreesWithNumPyAndMLX: the files are theirs (testdata/mlx/make.py), and so is the list of
// what they hold.
func TestReadAgreesWithNumPyAndMLX(t *testing.T) {
	dir := filepath.Join("..", "..", "testdata", "mlx", "npz")
	want, err := os.ReadFile(filepath.Join(dir, "arrays.txt"))
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, name := range []string{"numpy.npz", "packed.npz", "mlx.npz"} {
		p, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		f, err := read(p)
		if err != nil {
			t.Fatal(err)
		}
		for i, x := range f.Tensors {
			n, _ := dtype.NElements(x.Shape)
			values := make([]byte, int(n)*x.DType.Size())
			if err := f.ReadAt(values, i, 0); err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(&b, "%s %s %v %v %v %x\n", name, x.Name, x.DType, x.Shape, x.IsTransposed, values)
		}
	}
	if b.String() != string(want) {
		t.Errorf("Read found\n%s\nNumPy and MLX have\n%s", b.String(), want)
	}
}

func FuzzRead(f *testing.F) {
	for _, set := range []map[string]refusal{hostile(f), damaged(f)} {
		for _, c := range set {
			if len(c.file) < 1<<16 {
				f.Add(c.file)
			}
		}
	}
	f.Add(archived(f, stored("a.npy", plain), deflated("b.npy", plain)))
	f.Fuzz(func(t *testing.T, p []byte) {
		file, err := read(p)
		if err != nil {
			return
		}
		for i, x := range file.Tensors {
			n, _ := dtype.NElements(x.Shape)
			size, _ := x.DType.NBytes(n)
			if size > maxExpansion*int64(len(p)) {
				t.Fatalf("%s has %d bytes in a file of %d", x.Name, size, len(p))
			}
			whole := make([]byte, size)
			if file.ReadAt(whole, i, 0) != nil || size < 2 {
				continue
			}
			piece := make([]byte, size/2)
			if err := file.ReadAt(piece, i, size-size/2); err != nil || !bytes.Equal(piece, whole[size-size/2:]) {
				t.Fatalf("%s: a piece differs from the whole: %v", x.Name, err)
			}
		}
	})
}
