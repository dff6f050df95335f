// Package convert reads and writes adapters in the dialects of other programs, such as
// huggingface/peft. [Open] returns any of them as a format.Source: layers with a module name, a
// kind, factors and a scale. Tensors and settings that do not fit this model are listed in the
// manifest, never dropped. [DialectFor] picks the dialect for an output, and [Create] writes it.
//
// # What each dialect carries
//
// "yes" means that an adapter with it comes back from the dialect's files with the same numbers,
// and "-" that Create refuses it by name. A refused adapter can still be kept as a container.
//
//	dialect      files    names        scale      conv  DoRA  DoRA-in  bias  embed  LyCORIS  diff
//	lora         written  any          any        yes   yes   yes      yes   yes    yes      yes
//	gguf         written  llama.cpp's  one alpha  -     -     -        -     yes    -        -
//	mlx          written  dotted       one scale  -     yes   -        -     yes    -        -
//	peft         written  dotted       any        yes   yes   -        yes   yes    -        -
//	kohya        written  flat         alphas     yes   yes   yes      -     -      yes      yes
//	diffusers    written  diffusers    header     yes   yes   -        yes   -      -        -
//	comfyui      written  authors'     alphas     yes   yes   yes      -     -      yes      yes
//	xlabs        read     authors'     1          -     -     -        -     -      -        -
//	cloneofsimo  read     numbers      1          -     -     -        -     -      -        -
//	loralib      read     dotted       by option  -     -     -        -     -      -        -
//	megatron     read     Megatron's   by option  -     -     -        -     -      -        -
//	torchtune    read     torchtune's  beside     -     -     -        -     -      -        -
//	mistral      read     authors'     beside     -     -     -        -     -      -        -
//
// A "written" dialect is read, too. The columns behind the scale: factors of convolutions;
// magnitudes of DoRA for each output, and for each input; a bias of B; factors of embeddings;
// layers of LyCORIS' methods (LoHa, LoKr, IA³, LoCon with a core); and tensors that are added to
// those of the base. PEFT's rsLoRA is a scale like any other, and becomes an alpha where a file has
// one for each module (alphas) or a configuration in the header. Stacked experts, saved modules and
// token rows are in containers and in PEFT's directories alone.
//
// A GGUF file has one alpha. Where no alpha gives every layer its scale, the factors carry what is
// missing, exactly where powers of two do; [Remarks] names what is rounded. The factors have one
// dtype (CreateOptions.DType), and the experts of a layer are stacked.
//
// A directory of MLX has one scale and one rank. Smaller ranks are padded with zeros, and factors
// carry what the scale cannot say, as in a GGUF file.
//
// PEFT's files are for one model. Create writes those of an image or video model for one component,
// which CreateOptions.Only names, with the names that diffusers and transformers 5 have in memory.
//
// Flat names are those of the model with underscores in place of dots. They become dotted again by
// the tables of internal/architecture, or by the base in CreateOptions.Base, and never by a guess.
// The dialects of one model divide fused projections in different ways; Create divides and joins
// the factors without rounding.
//
// A dialect is one file of this package and one entry of [Default]. A program adds its own dialects
// with [Dialects.With]. A set of dialects is a value; there is no registry.
package convert
