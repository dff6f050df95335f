package report_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/loratool/loratool/format/convert"
	"github.com/loratool/loratool/format/dtype"
	"github.com/loratool/loratool/internal/report"
	"github.com/loratool/loratool/internal/testkit"
)

// describe reports on a file of kohya with the given metadata.
func describe(t *testing.T, metadata map[string]string, o report.Options) *report.Adapter {
	t.Helper()
	file := testkit.Encode(metadata,
		testkit.Values("lora_unet_q.lora_down.weight", dtype.F32, []uint64{1, 2}, 1, 2),
		testkit.Values("lora_unet_q.lora_up.weight", dtype.F32, []uint64{2, 1}, 1, 2))
	return describeFile(t, file, o)
}

func describeFile(t *testing.T, file []byte, o report.Options) *report.Adapter {
	t.Helper()
	size := int64(len(file))
	src, err := convert.OpenReader(t.Context(), bytes.NewReader(file), size, convert.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	r, err := report.Describe(t.Context(), src, o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestTheMetadataOfATraining of sd-scripts: make.py has the entries.
func TestTheMetadataOfATraining(t *testing.T) {
	file, err := os.ReadFile(filepath.Join("../../testdata/hashes/kohya.safetensors"))
	if err != nil {
		t.Fatal(err)
	}
	r := describeFile(t, file, report.Options{})
	want := &report.Training{
		Title: "Paper cats", Architecture: "stable-diffusion-v1/lora", Author: "Example Corp",
		Date: "2024-05-01T12:00:00", License: "CC0-1.0", Trigger: "paprcat style",
		Network: "networks.lora", Dim: "2", Alpha: "1.0",
		Args: `{"conv_dim": "4", "conv_alpha": "1"}`, Base: "sd_v1",
		BaseFile:     "v1-5-pruned.safetensors",
		BaseHash:     "1a4b384c68bfc25050134f1c855abcdf536e3e14c140329a8a40cdaa80e79eb2",
		LearningRate: "0.0001", EncoderRate: "5e-05",
		Optimizer: "bitsandbytes.optim.adamw.AdamW8bit", Steps: "1600", MaxSteps: "1600",
		Epoch: "10", Epochs: "10", NTags: 4, Configuration: []string{}, Unreadable: []string{},
		Tags: []report.TagCount{{Tag: "cat", Count: 51}, {Tag: "paper", Count: 40},
			{Tag: "no humans", Count: 12}, {Tag: "origami", Count: 7}},
	}
	if !reflect.DeepEqual(r.Training, want) {
		t.Errorf("the training is %+v, want %+v", r.Training, want)
	}
	if r.License != want.License || r.Metadata["ss_training_comment"] != "line one\nline two\t\x01 é" {
		t.Errorf("licence %q, metadata %q", r.License, r.Metadata)
	}
}

// TestTheConfigurationInTheHeader of diffusers has rank and alpha of each component.
func TestTheConfigurationInTheHeader(t *testing.T) {
	r := describe(t, map[string]string{"lora_adapter_metadata": `{"unet.r":1,"unet.lora_alpha":8.5,` +
		`"unet.target_modules":["q"],"text_encoder.r":4}`}, report.Options{})
	want := []string{"text_encoder, r 4", "unet, lora_alpha 8.5, r 1"}
	if got := r.Training.Configuration; !slices.Equal(got, want) {
		t.Errorf("the configuration is %q, want %q", got, want)
	}
}

// TestTheMetadataOfAIToolkit: the form is that of toolkit/metadata.py and of BaseSDTrainProcess.
func TestTheMetadataOfAIToolkit(t *testing.T) {
	r := describe(t, map[string]string{
		"format": "pt", "name": "cats", "software": `{"name": "ai-toolkit", "version": "0.7.0", ` +
			`"repo": "https://github.com/ostris/ai-toolkit"}`, "version": "1.0",
		"training_info": `{"step": 2000, "epoch": 12}`,
	}, report.Options{}).Training
	if r.Title != "cats" || r.Program != "ai-toolkit 0.7.0" || r.Steps != "2000" || r.Epoch != "12" {
		t.Errorf("the training is %+v", r)
	}
	other := map[string]string{"software": "paint", "training_info": "by hand", "ss_steps": "5"}
	r = describe(t, other, report.Options{}).Training
	if r.Program != "" || r.Steps != "5" || len(r.Unreadable) != 0 {
		t.Errorf("the training of another program is %+v", r)
	}
}

// TestHostileMetadataAreBounded: texts are cut, counts do not overflow, and what is not in the form
// of its program is named.
func TestHostileMetadataAreBounded(t *testing.T) {
	long := strings.Repeat("é", 1<<20)
	r := describe(t, map[string]string{"modelspec.title": long, "ss_network_module": "a\x1b[2Jb"},
		report.Options{})
	if got := r.Training.Title; got != strings.Repeat("é", 300)+"…" {
		t.Errorf("the title has %d bytes", len(got))
	}
	if r.Metadata["modelspec.title"] != long {
		t.Error("the metadata are not whole")
	}

	var many strings.Builder
	for i := range 1000 {
		fmt.Fprintf(&many, `"tag %d":%d,`, i, i)
	}
	for _, c := range []struct {
		name, tags string
		readable   bool
		first      report.TagCount
	}{
		{"no JSON", `{"a":`, false, report.TagCount{}},
		{"a list", `["a"]`, false, report.TagCount{}},
		{"a count that is a text", `{"a":{"cat":"many"}}`, false, report.TagCount{}},
		{"a count beyond 64 bits", `{"a":{"cat":1e400}}`, false, report.TagCount{}},
		{"too long", `{"a":{"` + strings.Repeat("x", 9<<20) + `":1}}`, false, report.TagCount{}},
		{"a sum beyond 64 bits", `{"a":{"cat":9223372036854775807},"b":{"cat":1}}`, true,
			report.TagCount{Tag: "cat", Count: 9223372036854775807}},
		{"a negative count", `{"a":{"cat":-5,"dog":1}}`, true, report.TagCount{Tag: "dog", Count: 1}},
		{"no tags", `{}`, true, report.TagCount{}},
		{"many tags", `{"a":{` + many.String() + `"x":0}}`, true, report.TagCount{Tag: "tag 999",
			Count: 999}},
		{"a long tag", `{"a":{"` + long + `":1}}`, true,
			report.TagCount{Tag: strings.Repeat("é", 300) + "…", Count: 1}},
	} {
		got := describe(t, map[string]string{"ss_tag_frequency": c.tags}, report.Options{}).Training
		var first report.TagCount
		if len(got.Tags) > 0 {
			first = got.Tags[0]
		}
		if first != c.first || (len(got.Unreadable) == 0) != c.readable || len(got.Tags) > 20 {
			t.Errorf("%s: first tag %v of %d, unreadable %q", c.name, first, got.NTags, got.Unreadable)
		}
		for _, why := range got.Unreadable {
			if !strings.HasPrefix(why, "ss_tag_frequency: ") || len(why) > 1000 {
				t.Errorf("%s: %q", c.name, why)
			}
		}
	}
	bad := describe(t, map[string]string{"ss_tag_frequency": "None"}, report.Options{}).Training
	if len(bad.Unreadable) != 0 {
		t.Errorf("None of Python is unreadable: %q", bad.Unreadable)
	}
}

// TestHashesInAHeaderAreCompared with those of the tensors.
func TestHashesInAHeaderAreCompared(t *testing.T) {
	nothing := "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	r := describe(t, map[string]string{}, report.Options{Hashes: true})
	model := r.Hashes.Header[0].Hash
	if r.Hashes.AutoV3 != model[:12] || r.Hashes.AutoV2 != r.Hashes.SHA256[:10] {
		t.Errorf("hashes %+v", r.Hashes)
	}
	for _, c := range []struct {
		header map[string]string
		want   []string // verdicts on the model hash, the legacy hash, the hash of ModelSpec
	}{
		{map[string]string{}, []string{"missing", "missing", "missing"}},
		{map[string]string{"sshs_model_hash": nothing, "sshs_legacy_hash": "00000000",
			"modelspec.hash_sha256": "0x" + nothing}, []string{"wrong", "wrong", "wrong"}},
		{map[string]string{"sshs_model_hash": strings.ToUpper(model), "sshs_legacy_hash": "e3b0c442",
			"modelspec.hash_sha256": model}, []string{"right", "right", "right"}},
		{map[string]string{"sshs_legacy_hash": "e3b0c442", "ss_a": strings.Repeat("x", 1<<20),
			"ss_b": ""}, []string{"missing", "unknown", "missing"}},
	} {
		var got []string
		for _, h := range describe(t, c.header, report.Options{Hashes: true}).Hashes.Header {
			got = append(got, h.Verdict)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("header %.80q: %q, want %q", fmt.Sprint(c.header), got, c.want)
		}
	}
}
