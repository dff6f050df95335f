package convert

import (
	"path/filepath"
	"regexp"
	"strings"
)

// This file knows the names of files and their meaning. Content decides wherever it can.

// weightsKind is a kind of file that holds weights.
type weightsKind int

const (
	noWeights weightsKind = iota
	safetensorsFile
	pickleFile
	anyPickle // any object of Python's
	arraysFile
	containerFile
	ggufFile
)

// weightsExt are the endings of the names of files with weights.
var weightsExt = map[string]weightsKind{
	".safetensors": safetensorsFile,
	".bin":         pickleFile,
	".pt":          pickleFile,
	".pth":         pickleFile,
	".ckpt":        pickleFile,
	".pkl":         anyPickle,
	".npz":         arraysFile,
	".lora":        containerFile,
	".gguf":        ggufFile,
}

// kindOf is the kind of file that a name ends for, in any case.
func kindOf(name string) weightsKind { return weightsExt[strings.ToLower(filepath.Ext(name))] }

// The names that PEFT gives to the weights of an adapter; the pickle under older releases, and with
// safe_serialization=False.
const (
	peftWeights = "adapter_model.safetensors"
	peftPickle  = "adapter_model.bin"
)

// modelConfig is the configuration of a model, which no adapter has beside it.
const modelConfig = "config.json"

var (
	// trainingState are the files in which trainers keep the state of a training.
	trainingState = regexp.MustCompile(`(?i)^(optimizer|optim|scheduler|lr_scheduler|scaler|grad_scaler|rng_state|random_states?|training_args|trainer_state|training_state|recipe_state|sampler|dataloader)([._-].*)?\.[a-z]+$|_optim_states\.pt$`)
	// modelWeights are the names under which whole models are saved.
	modelWeights = regexp.MustCompile(`(?i)^(model|pytorch_model|diffusion_pytorch_model|consolidated|hf_model)([._-].*)?\.[a-z]+$`)
	// shard is the name of a part of an adapter: PEFT's name, with the number as transformers
	// writes it.
	shard = regexp.MustCompile(`^adapter_model-[0-9]+-of-[0-9]+\.(safetensors|bin)$`)
)

func isTrainingState(name string) bool { return trainingState.MatchString(name) }
