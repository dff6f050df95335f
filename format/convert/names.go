package convert

import (
	"path/filepath"
	"regexp"
	"strings"
)

// This file holds the meaning of file names. Content decides wherever it can.

// weightsKind is a kind of file that holds weights.
type weightsKind int

const (
	noWeights weightsKind = iota
	safetensorsFile
	pickleFile
	anyPickle // any pickled Python object
	arraysFile
	containerFile
	ggufFile
)

// weightsExt maps the ending of a file name to the kind of weights.
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

// kindOf returns the kind of file that the ending of name promises, in any case.
func kindOf(name string) weightsKind { return weightsExt[strings.ToLower(filepath.Ext(name))] }

// PEFT's names for the weights of an adapter. Older releases wrote the pickle, and save_pretrained
// with safe_serialization=False still does.
const (
	peftWeights = "adapter_model.safetensors"
	peftPickle  = "adapter_model.bin"
)

// torchtuneWeights is torchtune's name for the weights of an adapter. Beside them, it writes those
// of PEFT for most models.
const torchtuneWeights = "adapter_model.pt"

// modelConfig is the configuration of a model. No adapter has it in its directory.
const modelConfig = "config.json"

// pipelineIndex is the list of the models in a pipeline of diffusers.
const pipelineIndex = "model_index.json"

var (
	// trainingState matches the files in which trainers save the state of a training.
	trainingState = regexp.MustCompile(`(?i)^(optimizer|optim|scheduler|lr_scheduler|scaler|grad_scaler|rng_state|random_states?|training_args|trainer_state|training_state|recipe_state|sampler|dataloader)([._-].*)?\.[a-z]+$|_optim_states\.pt$`)
	// modelWeights matches the names of the weights of whole models.
	modelWeights = regexp.MustCompile(`(?i)^(model|pytorch_model|diffusion_pytorch_model|consolidated|hf_model)([._-].*)?\.[a-z]+$`)
)

func isTrainingState(name string) bool { return trainingState.MatchString(name) }
