package naming

// renamedTypes are the other model types whose modules transformers 5.24 renames on loading, from
// its own table of conversions. We do not know their names in memory.
var renamedTypes = set(
	"afmoe", "altclip", "apertus1p5_text", "aria", "aria_text", "audio-spectrogram-transformer",
	"audioflamingo3", "axk1", "axk2", "bailing_hybrid", "beam", "beit", "chinese_clip",
	"clipseg", "cohere2_moe", "cohere_asr", "colqwen2", "conditional_detr", "cosmos3_edge",
	"cosmos3_omni", "d_fine", "deepseek_ocr2", "deepseek_v32", "deepseek_v4", "deformable_detr",
	"detr", "dinov3_convnext", "dinov3_vit", "dory", "dots3_note_audio_encoder",
	"dots3_note_vision_encoder", "emu3", "ernie4_5_moe", "ernie4_5_vl_moe", "esm", "exaone",
	"exaone_moe", "flint", "fuyu", "gemma4_unified", "glm4_moe_lite", "glm4v_moe", "glm5_next",
	"glm5_next_text", "glm_moe_dsa", "glmasr", "gradium_phonon_tts", "granite_speech",
	"granite_speech_plus", "gte", "hrm_text", "hunyuan_v1_moe", "hunyuan_vl", "hy_v3", "hy_v4",
	"hy_v4_vl", "hy_v4_vl_text", "hyperclovax_vision_v2", "ijepa", "inkling2", "inkling2_loop",
	"inkling2_loop_text", "inkling2_text", "inkling_mm_model", "jamba", "jev",
	"jina_embeddings_v3", "kimi_k25", "kimi_linear", "kolibri1", "laguna", "lara_mini",
	"lfm2_moe", "lfm3", "lfm3_vl_vision", "longcat_flash", "lw_detr", "maskformer", "mellum",
	"metaclip_2", "mimi", "mimo_v2_flash", "minimax_m2", "minimax_m3_vl", "mistral_large4",
	"mistral_large4_text", "mlcd", "molmo2", "musicflamingo", "nemo_speechlm", "nemotron_h",
	"nomic_bert", "olmo_hybrid", "paddleocr_vl", "pi0", "pixio", "pp_chart2table",
	"pp_doclayout_v2", "pp_doclayout_v3", "pp_doclayout_v4", "qianfan_ocr", "qwen2_5_omni",
	"qwen2_5_omni_thinker", "qwen2_audio", "qwen3_omni_moe", "qwen3_omni_moe_text",
	"qwen3_omni_moe_thinker", "qwen4_exp_text", "radio", "rf_detr", "rt_detr", "rt_detr_v2",
	"sam3_tracker", "sam3_tracker_video", "sapiens2", "sarvam_mla", "sarvam_moe",
	"shieldgemma2", "siglip2", "solar_open", "step3p5_vision", "step3p7", "t5gemma2_encoder",
	"timesfm2_5", "timm_wrapper", "tipsv2", "tipsv2_dpt", "unlimited_ocr", "vibevoice_asr",
	"video_llava", "videomae", "vit_mae", "vivit", "voxtral", "voxtral_realtime", "xclip",
	"yolos",
)

// KnowsLive reports whether LiveNames returns the right names for a model type: it has a table, or
// memory and disk agree.
func KnowsLive(modelType string) bool { return !renamedTypes[modelType] }
