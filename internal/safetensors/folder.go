package safetensors

import (
	"fmt"
	"path"
	"regexp"
	"strings"
)

// besides lists other files that are found in place of weights, by lower-case names, with advice
// about each. The first match is reported.
var besides = []struct {
	name *regexp.Regexp
	hint string
}{
	{regexp.MustCompile(`\.(incomplete|part|partial|crdownload|download|aria2|tmp)$`),
		"%s is a download that has not ended; fetch it again"},
	{trainingShard, "%s is of the shards of a training run; " + hintGather},
	{regexp.MustCompile(`\.gguf$`), "%s is GGUF; " + hintOriginal},
	{regexp.MustCompile(`\.(h5|msgpack|onnx|ot|tflite|mlmodel)$`),
		"%s is of another framework than torch; " + hintOriginal},
	{regexp.MustCompile(`\.(zip|tar|tgz|tar\.gz|7z|rar)$`), "unpack %s first"},
	{regexp.MustCompile(`^(optimizer|scheduler|rng_state|scaler|trainer_state|training_args).*`),
		"%s is of the state of a training run, which holds no weights; save the model or the adapter"},
	{regexp.MustCompile(`\.(pt|pth|ckpt|bin|npz)$`), "give the file itself, such as %s"},
	{regexp.MustCompile(`^adapter_config\.json$`), "%s is there without its weights; fetch adapter_model.safetensors as well"},
}

// trainingShard matches the names of files and directories that FSDP, DeepSpeed and torch's
// distributed checkpoints leave.
var trainingShard = regexp.MustCompile(`^model_world_size_\d+_rank_\d+\.pt$|\.distcp$|_model_states\.pt$|` +
	`_optim_states\.pt$|^zero_pp_rank_|^mp_rank_\d+|^pytorch_model_fsdp|` +
	`^global_step\d+$|^zero_to_fp32\.py$`)

const hintGather = "gather the shards with the tool of the library that wrote them, and save safetensors: " +
	"accelerate merge-weights for FSDP, zero_to_fp32.py for DeepSpeed, verl.model_merger for verl"

// HintForShard returns advice for a file that is one part of the weights of a training run, by its
// name; "" for any other file.
func HintForShard(name string) string {
	if trainingShard.MatchString(strings.ToLower(path.Base(name))) {
		return hintGather
	}
	return ""
}

// HintForFolder returns advice for a directory without safetensors, by the names of its files; ""
// if these tell nothing.
func HintForFolder(names []string) string {
	if len(names) == 0 {
		return "the directory is empty"
	}
	for _, b := range besides {
		for _, name := range names {
			if b.name.MatchString(strings.ToLower(path.Base(name))) {
				return fmt.Sprintf(b.hint, name)
			}
		}
	}
	return ""
}
