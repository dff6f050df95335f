package checkpoint_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/checkpoint"
	"github.com/loratool/loratool/internal/config"
	"github.com/loratool/loratool/internal/fault"
	"github.com/loratool/loratool/internal/naming"
	"github.com/loratool/loratool/internal/testkit"
)

// weights returns a file with one tensor of one byte for every name.
func weights(names ...string) []byte {
	var tensors []testkit.Tensor
	for i, name := range names {
		tensors = append(tensors, testkit.Tensor{Name: name, DType: dtype.U8, Shape: []uint64{1}, Data: []byte{byte(i)}})
	}
	return testkit.Encode(nil, tensors...)
}

// index returns the text of an index that assigns names to shards.
func index(t *testing.T, shardOf map[string]string) []byte {
	text, err := json.Marshal(map[string]any{"metadata": map[string]any{"total_size": len(shardOf)}, "weight_map": shardOf})
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// directory writes files, by name and content, and returns their directory.
func directory(t *testing.T, files map[string][]byte) string {
	dir := filepath.Join(t.TempDir(), "model")
	for name, content := range files {
		testkit.Write(t, filepath.Join(dir, filepath.FromSlash(name)), content)
	}
	return dir
}

func open(t *testing.T, path string) *checkpoint.Checkpoint {
	t.Helper()
	c, err := checkpoint.Open(t.Context(), path)
	if err != nil {
		t.Fatal(err, "\nhint: ", fault.Hint(err))
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// checkNames compares the tensors and reads each of them from the place that the checkpoint states.
func checkNames(t *testing.T, c *checkpoint.Checkpoint, want ...string) {
	t.Helper()
	if got := c.Names(); !slices.Equal(got, want) {
		t.Fatalf("Names() = %q, want %q", got, want)
	}
	for _, name := range want {
		ref, ok := c.Lookup(name)
		if !ok {
			t.Fatalf("Lookup(%q) finds nothing", name)
		}
		one := make([]byte, 1)
		if err := ref.Tensor.ReadAt(t.Context(), one, 0); err != nil {
			t.Errorf("reading %q: %v", name, err)
		}
	}
}

func files(c *checkpoint.Checkpoint) []string {
	var names []string
	for _, f := range c.Files {
		names = append(names, f.Name)
	}
	return names
}

func TestOpenFindsTheWeights(t *testing.T) {
	two := map[string]string{"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
	for _, c := range []struct {
		name  string
		files map[string][]byte
		want  []string
	}{
		{"one file", map[string][]byte{"model.safetensors": weights("a", "b")}, []string{"model.safetensors"}},
		{"shards", map[string][]byte{
			"model.safetensors.index.json":     index(t, two),
			"model-00001-of-00002.safetensors": weights("a"), "model-00002-of-00002.safetensors": weights("b"),
		}, []string{"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"}},
		{"one shard", map[string][]byte{
			"model.safetensors.index.json":     index(t, map[string]string{"a": "model-00001-of-00001.safetensors", "b": "model-00001-of-00001.safetensors"}),
			"model-00001-of-00001.safetensors": weights("a", "b"),
		}, []string{"model-00001-of-00001.safetensors"}},
		{"shards in a sub-directory", map[string][]byte{
			"model.safetensors.index.json": index(t, map[string]string{"a": "shards/1.safetensors", "b": "shards/2.safetensors"}),
			"shards/1.safetensors":         weights("a"), "shards/2.safetensors": weights("b"),
		}, []string{"shards/1.safetensors", "shards/2.safetensors"}},
		{"diffusers", map[string][]byte{"diffusion_pytorch_model.safetensors": weights("a", "b")}, []string{"diffusion_pytorch_model.safetensors"}},
		{"diffusers, variant", map[string][]byte{"diffusion_pytorch_model.fp16.safetensors": weights("a", "b")}, []string{"diffusion_pytorch_model.fp16.safetensors"}},
		{"diffusers, shards", map[string][]byte{
			"diffusion_pytorch_model.safetensors.index.json":     index(t, map[string]string{"a": "diffusion_pytorch_model-00001-of-00002.safetensors", "b": "diffusion_pytorch_model-00002-of-00002.safetensors"}),
			"diffusion_pytorch_model-00001-of-00002.safetensors": weights("a"), "diffusion_pytorch_model-00002-of-00002.safetensors": weights("b"),
		}, []string{"diffusion_pytorch_model-00001-of-00002.safetensors", "diffusion_pytorch_model-00002-of-00002.safetensors"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := directory(t, c.files)
			for _, path := range []string{dir, dir + string(filepath.Separator)} {
				base := open(t, path)
				checkNames(t, base, "a", "b")
				if got := files(base); !slices.Equal(got, c.want) || !base.IsDir {
					t.Errorf("Open(%q) found the files %q (directory: %v), want %q", path, got, base.IsDir, c.want)
				}
				if len(base.Left) > 0 {
					t.Errorf("Left = %q, want none", base.Left)
				}
			}
		})
	}
}

func TestOpenOfAFileTakesThatFileAlone(t *testing.T) {
	dir := directory(t, map[string][]byte{"model.safetensors": weights("a"), "other.safetensors": weights("b"), "config.json": []byte(`{"model_type":"llama"}`)})
	base := open(t, filepath.Join(dir, "other.safetensors"))
	checkNames(t, base, "b")
	if base.IsDir || len(base.Side) > 0 || len(base.Left) > 0 {
		t.Errorf("IsDir %v, Side %q, Left %q, want none of it", base.IsDir, base.Side, base.Left)
	}
	if base.Config.ModelType != "llama" {
		t.Errorf("the configuration beside the file has the model type %q, want llama", base.Config.ModelType)
	}
}

// TestLinksAreFollowed: the hub's cache holds snapshots of links to blobs.
func TestLinksAreFollowed(t *testing.T) {
	cache := t.TempDir()
	blobs := map[string][]byte{
		"1111": weights("a"), "2222": weights("b"), "3333": []byte(`{"model_type":"llama"}`),
		"4444": index(t, map[string]string{"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}),
	}
	for name, content := range blobs {
		testkit.Write(t, filepath.Join(cache, "blobs", name), content)
	}
	snapshot := filepath.Join(cache, "snapshots", "0123abcd")
	if err := os.MkdirAll(snapshot, 0o777); err != nil {
		t.Fatal(err)
	}
	for name, blob := range map[string]string{
		"model-00001-of-00002.safetensors": "1111", "model-00002-of-00002.safetensors": "2222", "config.json": "3333", "model.safetensors.index.json": "4444",
	} {
		if err := os.Symlink(filepath.Join("..", "..", "blobs", blob), filepath.Join(snapshot, name)); err != nil {
			t.Fatal(err)
		}
	}
	whole := filepath.Join(cache, "current")
	if err := os.Symlink(snapshot, whole); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{snapshot, whole, filepath.Join("testdata", "..", relative(t, whole))} {
		base := open(t, path)
		checkNames(t, base, "a", "b")
		if want := []string{"config.json", "model.safetensors.index.json"}; !slices.Equal(base.Side, want) || len(base.Left) > 0 {
			t.Errorf("Open(%s): Side %q, Left %q, want %q and nothing", path, base.Side, base.Left, want)
		}
		if base.Config.ModelType != "llama" {
			t.Errorf("Open(%s) read the model type %q, want llama", path, base.Config.ModelType)
		}
	}
	checkNames(t, open(t, filepath.Join(snapshot, "model-00001-of-00002.safetensors")), "a")

	if err := os.Remove(filepath.Join(cache, "blobs", "2222")); err != nil {
		t.Fatal(err)
	}
	checkError(t, snapshot, nil, "broken link", "")
}

func relative(t *testing.T, path string) string {
	wd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	rel, err := filepath.Rel(wd, path)
	if err != nil {
		t.Fatal(err)
	}
	return rel
}

// checkError opens path and wants an error of a kind (nil means any) with the given words in its
// message and in its hint.
func checkError(t *testing.T, path string, kind error, words, hint string) {
	t.Helper()
	c, err := checkpoint.Open(t.Context(), path)
	switch {
	case err == nil:
		c.Close()
		t.Errorf("Open(%s) succeeded, want an error with the words %q", path, words)
	case kind != nil && !errors.Is(err, kind):
		t.Errorf("Open(%s) = %v, want one of kind %v", path, err, kind)
	case !strings.Contains(err.Error(), words):
		t.Errorf("Open(%s) = %v, want the words %q", path, err, words)
	case !strings.Contains(fault.Hint(err), hint):
		t.Errorf("Open(%s) has the hint %q, want the words %q", path, fault.Hint(err), hint)
	}
}

// TestAnIndexOfTheOneFileIsRead: mlx-lm writes one beside model.safetensors.
func TestAnIndexOfTheOneFileIsRead(t *testing.T) {
	dir := t.TempDir()
	testkit.Write(t, filepath.Join(dir, "model.safetensors"), weights("a"))
	testkit.Write(t, filepath.Join(dir, "model.safetensors.index.json"), index(t, map[string]string{"a": "model.safetensors"}))
	if c := open(t, dir); len(c.Files) != 1 || !slices.Contains(c.Side, "model.safetensors.index.json") {
		t.Errorf("the checkpoint has %d files, and beside them %q, want one and the index", len(c.Files), c.Side)
	}
}

func TestBrokenCheckpointsAreRefused(t *testing.T) {
	a, b := "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
	good := index(t, map[string]string{"a": a, "b": b})
	for _, c := range []struct {
		name  string
		files map[string][]byte
		kind  error
		words string
		hint  string
	}{
		{"one file and an index", map[string][]byte{"model.safetensors": weights("a"), "model.safetensors.index.json": good, a: weights("a"), b: weights("b")},
			fault.Mismatch, "both model.safetensors and model.safetensors.index.json", "move one of them"},
		{"one file and a variant", map[string][]byte{"model.safetensors": weights("a"), "model.fp16.safetensors": weights("a")},
			fault.Mismatch, "model.safetensors and model.fp16.safetensors", "give the path of the file"},
		{"missing shard", map[string][]byte{"model.safetensors.index.json": good, a: weights("a")},
			fault.Truncated, "names the shard " + b, "not downloaded completely"},
		{"a tensor that its shard lacks", map[string][]byte{"model.safetensors.index.json": good, a: weights("a"), b: weights("c")},
			fault.Corrupt, `says that ` + b + ` holds "b", but it does not`, ""},
		{"several tensors that their shards lack, the first by name", map[string][]byte{"model.safetensors.index.json": index(t, map[string]string{"a": a, "c": a, "d": a, "e": a, "f": a}), a: weights("a")},
			fault.Corrupt, `holds "c", but it does not`, ""},
		{"a tensor in another shard", map[string][]byte{"model.safetensors.index.json": good, a: weights("b"), b: weights("a")},
			fault.Corrupt, `says that ` + a + ` holds "a", but ` + b + ` does`, ""},
		{"a tensor in two shards", map[string][]byte{"model.safetensors.index.json": good, a: weights("a"), b: weights("a", "b")},
			fault.Corrupt, `"a" is both in ` + a + ` and in ` + b, ""},
		{"a shard outside the directory", map[string][]byte{"model.safetensors.index.json": index(t, map[string]string{"a": "../a.safetensors"}), "../a.safetensors": weights("a")},
			fault.Corrupt, `"../a.safetensors", which is not a file of its directory`, ""},
		{"a shard on the way outside", map[string][]byte{"model.safetensors.index.json": index(t, map[string]string{"a": "x/../../a.safetensors"}), "../a.safetensors": weights("a")},
			fault.Corrupt, "not a file of its directory", ""},
		{"a shard at an absolute path", map[string][]byte{"model.safetensors.index.json": index(t, map[string]string{"a": "/etc/passwd"})},
			fault.Corrupt, "not a file of its directory", ""},
		{"a shard with backslashes", map[string][]byte{"model.safetensors.index.json": index(t, map[string]string{"a": `..\a.safetensors`})},
			fault.Corrupt, "not a file of its directory", ""},
		{"a shard without a name", map[string][]byte{"model.safetensors.index.json": index(t, map[string]string{"a": ""})},
			fault.Corrupt, "not a file of its directory", ""},
		{"the directory as a shard", map[string][]byte{"model.safetensors.index.json": index(t, map[string]string{"a": "."})},
			fault.Unsupported, "not a regular file", ""},
		{"an empty index", map[string][]byte{"model.safetensors.index.json": index(t, nil), a: weights("a")}, fault.Corrupt, "no weight_map", ""},
		{"an index that is no JSON", map[string][]byte{"model.safetensors.index.json": []byte("a"), a: weights("a")}, fault.Corrupt, "not an index", ""},
		{"an index of numbers", map[string][]byte{"model.safetensors.index.json": []byte(`{"weight_map":{"a":1}}`), a: weights("a")}, fault.Corrupt, "not an index", ""},
		{"a shard that is corrupt", map[string][]byte{"model.safetensors.index.json": good, a: weights("a"), b: weights("b")[:20]}, fault.Truncated, b, "fetch it again"},
		{"a configuration that is no JSON", map[string][]byte{"model.safetensors": weights("a"), "config.json": []byte("{")}, fault.Corrupt, "config.json", ""},
		{"weights that are a directory", map[string][]byte{"model.safetensors/x": nil}, fault.Unsupported, "neither", ""},

		{"shards without their index", map[string][]byte{a: weights("a"), b: weights("b")},
			fault.Unsupported, "holds all 2 shards, such as " + a + ", but not their index model.safetensors.index.json", `glob("model-*-of-00002.safetensors")`},
		{"one of two shards", map[string][]byte{b: weights("b")}, fault.Truncated, "nor the shard " + a, "fetch the missing files"},
		{"the fifth of four shards", map[string][]byte{"model-00005-of-00004.safetensors": weights("b")}, fault.Truncated, "nor the shard model-00001-of-00004", ""},
		{"shards of an adapter", map[string][]byte{"adapter_config.json": []byte("{}"), "adapter_model-00001-of-00002.safetensors": weights("a")},
			fault.Unsupported, "neither", "this is an adapter"},

		{"an adapter", map[string][]byte{"adapter_config.json": []byte("{}"), "adapter_model.safetensors": weights("a")}, fault.Unsupported, "neither", "this is an adapter"},
		{"pickles", map[string][]byte{"config.json": []byte("{}"), "pytorch_model.bin": []byte("PK\x03\x04")}, fault.Truncated, "not a complete zip archive", "fetch it again"},
		{"sharded pickles", map[string][]byte{"pytorch_model-00001-of-00002.bin": []byte("PK"), "pytorch_model.bin.index.json": []byte("{}")}, fault.Corrupt, "pytorch_model.bin.index.json: the index has no weight_map", ""},
		{"pickled shards without their index", map[string][]byte{"pytorch_model-00001-of-00001.bin": nil}, fault.Unsupported, "not their index pytorch_model.bin.index.json", "fetch it"},
		{"two shards of one name in an output", map[string][]byte{
			"pytorch_model.bin.index.json": index(t, map[string]string{"a": "x.bin", "b": "x.pt"}), "x.bin": weights("a"), "x.pt": weights("b"),
		}, fault.Unsupported, "would both be called x.safetensors", "give one of them another name"},
		{"a pipeline of pickles", map[string][]byte{"model_index.json": []byte("{}"), "unet/diffusion_pytorch_model.bin": []byte("PK\x03\x04")}, fault.Truncated, "unet/diffusion_pytorch_model.bin: not a complete zip archive", ""},
		{"a pipeline without weights", map[string][]byte{"model_index.json": []byte("{}"), "unet/model.onnx": nil}, fault.Unsupported, "neither", "pipeline of diffusers"},
		{"weights of another name", map[string][]byte{"consolidated.safetensors": weights("a")}, fault.Unsupported, "neither", "such as consolidated.safetensors"},
		{"an adapter further down", map[string][]byte{"inner/adapter_config.json": []byte("{}"), "inner/adapter_model.safetensors": weights("a")},
			fault.Unsupported, "neither", "it holds an adapter, in inner"},
		{"a model and an adapter further down", map[string][]byte{"ad/adapter_config.json": []byte("{}"), "m/model.safetensors": weights("a")},
			fault.Unsupported, "neither", "such as m/model.safetensors"},
		{"GGUF", map[string][]byte{"config.json": []byte("{}"), "m.gguf": []byte("GGUF")}, fault.Truncated, "m.gguf: byte 4", ""},
		{"GGUF further down", map[string][]byte{"d/m.gguf": []byte("GGUF")}, fault.Unsupported, "neither", "m.gguf"},
		{"half a download", map[string][]byte{"config.json": []byte("{}"), "model.safetensors.part": nil}, fault.Unsupported, "neither", "has not ended"},
		{"nothing", map[string][]byte{"readme.txt": nil}, fault.Unsupported, "neither", ""},
	} {
		t.Run(c.name, func(t *testing.T) { checkError(t, directory(t, c.files), c.kind, c.words, c.hint) })
	}
}

func TestOpenRefusesWhatIsNoCheckpoint(t *testing.T) {
	dir := directory(t, map[string][]byte{"model.safetensors.index.json": index(t, map[string]string{"a": "a.safetensors"}), "a.safetensors": weights("a")})
	checkError(t, filepath.Join(dir, "model.safetensors.index.json"), fault.Unsupported, "the index of a sharded checkpoint", "give the directory")
	checkError(t, filepath.Join(dir, "absent"), fs.ErrNotExist, "absent", "")
	checkError(t, filepath.Join(dir, "a.safetensors", "x"), nil, "x", "")
}

// TestOpenTellsPicklesApart: a pickle of an adapter is in the wrong place, and one that the reader
// of pickles refuses is refused with its words.
func TestOpenTellsPicklesApart(t *testing.T) {
	const dir = "../../testdata/"
	const adapter = "a pickle of torch.save that holds an adapter"
	for _, c := range []struct {
		file        string
		kind        error
		words, hint string
	}{
		{"corpus/huggingface__peft__26/adapter_model.bin", fault.Unsupported, adapter, "this is an adapter"},
		{"pickle/deep/dictionaries.bin", fault.Unsupported, adapter, "this is an adapter"}, // of CLIP-LoRA,
		{"pickle/refuse/cut.bin", fault.Truncated, "not a complete zip archive", "fetch it again"},
		{"pickle/refuse/eval.bin", fault.Unsupported, `names "__builtin__.eval"`, "do not load it"},
		{"pickle/refuse/zip.bin", fault.Unsupported, "no data.pkl", "unpack the archive"},
		{"pickle/read/strided.bin", fault.Unsupported, `"transposed" of shape [8 6] with the strides [1 8], want a contiguous tensor`, "contiguous()"},
	} {
		t.Run(c.file, func(t *testing.T) {
			checkError(t, filepath.FromSlash(dir+c.file), c.kind, c.words, c.hint)
		})
	}
}

// TestOtherFilesAreSorted: files of the model go along with a merge, and files that would
// contradict it do not.
func TestOtherFilesAreSorted(t *testing.T) {
	side := []string{
		"1_Pooling/config.json", "LICENSE", "README.md", "added_tokens.json", "chat_template.jinja", "config.json", "generation_config.json", "merges.txt",
		"model.safetensors.index.json", "modeling_custom.py", "modules.json", "sub/deeper/vocab.txt", "tokenizer.json", "tokenizer.model", "tokenizer_config.json",
	}
	left := []string{
		".cache/", ".git/", ".gitattributes", "adapter_config.json", "adapter_model.bin", "adapter_model.safetensors", "consolidated.00.pth", "flax_model.msgpack",
		"ggml-model-q4_0.bin", "lora/adapter_config.json", "lora/adapter_model.safetensors", "model-q4_k_m.gguf", "model.ckpt", "onnx/model.onnx", "onnx/model.onnx_data",
		"openvino_model.bin", "original/consolidated.safetensors", "pytorch_model.bin", "pytorch_model.bin.index.json", "sub/.hidden", "tf_model.h5", "training_args.bin",
	}
	content := map[string][]byte{
		"shard.safetensors": weights("a"), ".git/config": nil, ".git/objects/x.safetensors": weights("b"), ".cache/huggingface/x": nil,
	}
	for _, name := range slices.Concat(side, left) {
		if !strings.HasSuffix(name, "/") {
			content[name] = []byte("{}")
		}
	}
	content["model.safetensors.index.json"] = index(t, map[string]string{"a": "shard.safetensors"})
	base := open(t, directory(t, content))
	slices.Sort(base.Left)
	if !slices.Equal(base.Side, side) {
		t.Errorf("Side = %q, want %q", base.Side, side)
	}
	if !slices.Equal(base.Left, left) {
		t.Errorf("Left = %q, want %q", base.Left, left)
	}
}

func TestConfigIsRead(t *testing.T) {
	yes, no := true, false
	for _, c := range []struct {
		text string
		want config.Model
	}{
		{`{}`, config.Model{Found: true}},
		{`{"model_type":"gpt2","architectures":["GPT2LMHeadModel"],"tie_word_embeddings":true}`,
			config.Model{Found: true, ModelType: "gpt2", Architectures: []string{"GPT2LMHeadModel"}, TieWordEmbeddings: &yes,
				Widths: naming.Widths{ModelType: "gpt2"}}},
		{`{"text_config":{"tie_word_embeddings":false}}`, config.Model{Found: true, TieWordEmbeddings: &no, TextTie: &no}},
		{`{"tie_word_embeddings":true,"text_config":{"tie_word_embeddings":false}}`, config.Model{Found: true, TieWordEmbeddings: &yes, TextTie: &no}},
		{`{"vocab_size":5,"text_config":{"vocab_size":7}}`, config.Model{Found: true, VocabSize: 7}},
		{`{"model_type":"lfm2","tie_word_embeddings":true,"tie_embedding":false}`, config.Model{Found: true, ModelType: "lfm2", TieWordEmbeddings: &no,
			Widths: naming.Widths{ModelType: "lfm2"}}},
		{`{"quantization_config":{"quant_method":"fp8"}}`, config.Model{Found: true, QuantizationMethod: "fp8", Quantization: []byte(`{"quant_method":"fp8"}`)}},
		{`{"quantization_config":{}}`, config.Model{Found: true, QuantizationMethod: "unnamed", Quantization: []byte("{}")}},
		{`{"quantization_config":null}`, config.Model{Found: true}},
		{`{"torch_dtype":"float16"}`, config.Model{Found: true, DType: "float16"}},
		{`{"dtype":"float16","text_config":{"dtype":"bfloat16"}}`, config.Model{Found: true, DType: "bfloat16"}},
	} {
		got := open(t, directory(t, map[string][]byte{"model.safetensors": weights("a"), "config.json": []byte(c.text)})).Config
		a, _ := json.Marshal(got)
		b, _ := json.Marshal(c.want)
		if !bytes.Equal(a, b) {
			t.Errorf("the configuration of %s is %s, want %s", c.text, a, b)
		}
	}
	none := open(t, directory(t, map[string][]byte{"model.safetensors": weights("a")})).Config
	if none.Found {
		t.Errorf("a configuration was found where there is none")
	}
}

func TestNewTakesAFileInMemory(t *testing.T) {
	file := weights("a", "b")
	c, err := checkpoint.New(t.Context(), "memory", bytes.NewReader(file), int64(len(file)))
	if err != nil {
		t.Fatal(err)
	}
	checkNames(t, c, "a", "b")
	if c.Bytes() != int64(len(file)) {
		t.Errorf("Bytes() = %d, want %d", c.Bytes(), len(file))
	}
	if _, err := checkpoint.New(t.Context(), "memory", bytes.NewReader(file), int64(len(file)-1)); !errors.Is(err, fault.Truncated) || !strings.HasPrefix(err.Error(), "memory: ") {
		t.Errorf("New(a file cut short) = %v, want an error of kind %v that begins with the name", err, fault.Truncated)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}
