"""Tiny random models of every architecture that bantam's forward pass knows, and what transformers computes with them.

Every parameter is random, norms, biases, sinks and correction biases included, so that leaving one out shows. Windows,
softcaps and clamps are small enough to matter for sequences of 24 tokens. Needs torch, transformers and safetensors.
"""

import json
import pathlib

import torch
import transformers
from safetensors.torch import save_file

VOCABULARY, SEQUENCES, LENGTH = 96, 3, 24

# What the models share, unless one of them says otherwise.
COMMON = {"vocab_size": VOCABULARY, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
          "max_position_embeddings": 32, "pad_token_id": None, "bos_token_id": 0, "eos_token_id": 1}
GROUPED = {**COMMON, "num_key_value_heads": 2, "intermediate_size": 96}
GEMMA = {**GROUPED, "head_dim": 24, "hidden_activation": "gelu_pytorch_tanh"}
SPARSE = {**GROUPED, "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
LATENT = {**COMMON, "num_key_value_heads": 4, "intermediate_size": 96, "kv_lora_rank": 24, "qk_rope_head_dim": 8,
          "qk_nope_head_dim": 16, "v_head_dim": 20, "n_routed_experts": 8, "num_experts_per_tok": 3,
          "moe_intermediate_size": 32, "n_shared_experts": 2, "first_k_dense_replace": 1}
# YaRN's ramp lies inside so few dimensions only where the original length is far above that of the sequences.
LATENT_YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 1024,
               "beta_fast": 32, "beta_slow": 1}
FACTORS = [1.0 + 0.25 * index for index in range(8)]


def rope(kind: str, **parameters) -> dict:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **parameters}}


LLAMA3 = rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16)
YARN = rope("yarn", factor=4.0, original_max_position_embeddings=1024) | {"max_position_embeddings": 4096}

# Name: class of the model, its configuration, and how config.json is rewritten before it is read again.
MODELS = {
    "llama": ("LlamaForCausalLM", GROUPED),
    "llama-linear": ("LlamaForCausalLM", GROUPED | rope("linear", factor=4.0)),
    "llama-dynamic": ("LlamaForCausalLM", GROUPED | rope("dynamic", factor=3.0) | {"max_position_embeddings": 16}),
    "llama-dynamic-short": ("LlamaForCausalLM", GROUPED | rope("dynamic", factor=3.0)),
    "llama-llama3": ("LlamaForCausalLM", GROUPED | LLAMA3),
    "llama-llama3-old": ("LlamaForCausalLM", GROUPED | LLAMA3, "old"),
    "llama-yarn": ("LlamaForCausalLM", GROUPED | YARN),
    "llama-yarn-options": ("LlamaForCausalLM", GROUPED | rope(
        "yarn", factor=4.0, original_max_position_embeddings=1024, beta_fast=16.0, beta_slow=2.0,
        attention_factor=1.25, truncate=False) | {"max_position_embeddings": 4096}),
    "llama-yarn-old": ("LlamaForCausalLM", GROUPED | YARN, "old"),
    "llama-biases": ("LlamaForCausalLM", GROUPED | {"attention_bias": True, "mlp_bias": True}),
    "llama-tied": ("LlamaForCausalLM", GROUPED | {"tie_word_embeddings": True}),
    "llama-head-dim": ("LlamaForCausalLM", GROUPED | {"head_dim": 24}),
    "llama-gelu": ("LlamaForCausalLM", GROUPED | {"hidden_act": "gelu"}),
    "mistral": ("MistralForCausalLM", GROUPED | {"sliding_window": None}),
    "mistral-window": ("MistralForCausalLM", GROUPED | {"sliding_window": 7, "head_dim": 24}),
    "qwen2": ("Qwen2ForCausalLM", GROUPED),
    "qwen2-window": ("Qwen2ForCausalLM", GROUPED | {"use_sliding_window": True, "sliding_window": 7,
                                                   "max_window_layers": 1}),
    "qwen2-window-old": ("Qwen2ForCausalLM", GROUPED | {"use_sliding_window": True, "sliding_window": 7,
                                                       "max_window_layers": 1}, "old"),
    "qwen3": ("Qwen3ForCausalLM", GROUPED | {"head_dim": 24}),
    "qwen3-bias-window": ("Qwen3ForCausalLM", GROUPED | {
        "head_dim": 24, "attention_bias": True, "use_sliding_window": True, "sliding_window": 7,
        "max_window_layers": 2, "tie_word_embeddings": True}),
    "gemma": ("GemmaForCausalLM", {key: value for key, value in GEMMA.items() if key != "hidden_activation"}
              | {"hidden_act": "gelu_pytorch_tanh"}),
    "gemma2": ("Gemma2ForCausalLM", GEMMA | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0,
                                             "query_pre_attn_scalar": 20, "sliding_window": 7}),
    "gemma2-old": ("Gemma2ForCausalLM", GEMMA | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0,
                                                 "query_pre_attn_scalar": 20, "sliding_window": 7}, "old"),
    "gemma3": ("Gemma3ForCausalLM", GEMMA | {
        "query_pre_attn_scalar": 20, "sliding_window": 7,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "rope_parameters": {"sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
                            "full_attention": {"rope_type": "linear", "rope_theta": 1000000.0, "factor": 8.0}}}),
    "gemma3-old": ("Gemma3ForCausalLM", GEMMA | {
        "query_pre_attn_scalar": 20, "sliding_window": 7,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "rope_parameters": {"sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
                            "full_attention": {"rope_type": "linear", "rope_theta": 1000000.0, "factor": 8.0}}}, "old"),
    "phi3": ("Phi3ForCausalLM", GROUPED),
    "phi3-partial-window": ("Phi3ForCausalLM", GROUPED | rope("default", partial_rotary_factor=0.5)
                            | {"sliding_window": 7}),
    "phi3-longrope": ("Phi3ForCausalLM", GROUPED | rope(
        "longrope", short_factor=FACTORS, long_factor=[2.0 * factor for factor in FACTORS],
        original_max_position_embeddings=16) | {"original_max_position_embeddings": 16}),
    "phi3-longrope-short": ("Phi3ForCausalLM", GROUPED | rope(
        "longrope", short_factor=FACTORS, long_factor=[2.0 * factor for factor in FACTORS],
        original_max_position_embeddings=30) | {"original_max_position_embeddings": 30, "max_position_embeddings": 60}),
    "phi3-longrope-old": ("Phi3ForCausalLM", GROUPED | rope(
        "longrope", short_factor=FACTORS[:4], long_factor=[2.0 * factor for factor in FACTORS[:4]],
        original_max_position_embeddings=16, partial_rotary_factor=0.5) | {"original_max_position_embeddings": 16},
        "old"),
    "mixtral": ("MixtralForCausalLM", GROUPED | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "mixtral-window": ("MixtralForCausalLM", GROUPED | {"num_local_experts": 4, "num_experts_per_tok": 2,
                                                        "sliding_window": 7}),
    "qwen3-moe": ("Qwen3MoeForCausalLM", SPARSE | {"head_dim": 24, "norm_topk_prob": True}),
    "qwen3-moe-mixed": ("Qwen3MoeForCausalLM", SPARSE | {"head_dim": 24, "norm_topk_prob": False,
                                                        "mlp_only_layers": [1]}),
    "qwen3-moe-step": ("Qwen3MoeForCausalLM", SPARSE | {"head_dim": 24, "norm_topk_prob": True,
                                                       "decoder_sparse_step": 2}),
    "qwen2-moe": ("Qwen2MoeForCausalLM", SPARSE | {"shared_expert_intermediate_size": 48, "norm_topk_prob": False}),
    "qwen2-moe-mixed": ("Qwen2MoeForCausalLM", SPARSE | {"shared_expert_intermediate_size": 48, "norm_topk_prob": True,
                                                        "mlp_only_layers": [0]}),
    "deepseek-v3": ("DeepseekV3ForCausalLM", LATENT | {"q_lora_rank": 20, "n_group": 4, "topk_group": 2,
                                                      "norm_topk_prob": True, "routed_scaling_factor": 2.5}),
    "deepseek-v3-yarn": ("DeepseekV3ForCausalLM", LATENT | {
        "q_lora_rank": None, "n_group": 2, "topk_group": 1, "norm_topk_prob": False, "n_shared_experts": 1,
        "rope_parameters": LATENT_YARN | {"mscale": 0.707, "mscale_all_dim": 1.2}, "max_position_embeddings": 4096}),
    "deepseek-v3-yarn-old": ("DeepseekV3ForCausalLM", LATENT | {
        "q_lora_rank": 20, "n_group": 4, "topk_group": 2, "norm_topk_prob": True, "attention_bias": True,
        "rope_parameters": LATENT_YARN | {"mscale": 1.0, "mscale_all_dim": 1.0}, "max_position_embeddings": 4096},
        "old"),
    "deepseek-v3-halves": ("DeepseekV3ForCausalLM", LATENT | {"q_lora_rank": 20, "n_group": 1, "topk_group": 1,
                                                             "norm_topk_prob": True, "rope_interleave": False}),
    "deepseek-v2": ("DeepseekV2ForCausalLM", LATENT | {"q_lora_rank": None, "topk_method": "greedy", "n_group": 1,
                                                      "topk_group": 1, "norm_topk_prob": False}),
    "deepseek-v2-groups": ("DeepseekV2ForCausalLM", LATENT | {
        "q_lora_rank": 20, "topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2,
        "routed_scaling_factor": 4.0,
        "rope_parameters": LATENT_YARN | {"mscale": 0.707, "mscale_all_dim": 0.707}, "max_position_embeddings": 4096}),
    "gpt-oss": ("GptOssForCausalLM", GROUPED | {
        "head_dim": 24, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 7, "swiglu_limit": 1.0,
        "max_position_embeddings": 4096,
        "rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "beta_fast": 32.0,
                            "beta_slow": 1.0, "truncate": False, "original_max_position_embeddings": 1024}}),
    "gpt-oss-old": ("GptOssForCausalLM", GROUPED | {
        "head_dim": 24, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 7, "swiglu_limit": 1.0,
        "max_position_embeddings": 4096,
        "rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "beta_fast": 32.0,
                            "beta_slow": 1.0, "truncate": False, "original_max_position_embeddings": 1024}}, "old"),
    "opt": ("OPTForCausalLM", COMMON | {"ffn_dim": 96, "word_embed_proj_dim": 64, "do_layer_norm_before": True}),
    "opt-after": ("OPTForCausalLM", COMMON | {"ffn_dim": 96, "word_embed_proj_dim": 40,
                                              "do_layer_norm_before": False}),
    "opt-project": ("OPTForCausalLM", COMMON | {"ffn_dim": 96, "word_embed_proj_dim": 40,
                                                "do_layer_norm_before": True, "activation_function": "gelu"}),
    "gpt2": ("GPT2LMHeadModel", {"vocab_size": VOCABULARY, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 32,
                                 "bos_token_id": 0, "eos_token_id": 1}),
    "gpt2-options": ("GPT2LMHeadModel", {
        "vocab_size": VOCABULARY, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 32, "n_inner": 96,
        "bos_token_id": 0, "eos_token_id": 1, "scale_attn_by_inverse_layer_idx": True, "activation_function": "relu"}),
    "bert": ("BertForMaskedLM", COMMON | {"intermediate_size": 96}),
    "bert-model": ("BertModel", COMMON | {"intermediate_size": 96}),
}


def config_of(class_name: str, values: dict) -> transformers.PreTrainedConfig:
    model = getattr(transformers, class_name)
    # A configuration may change what it is given.
    return model.config_class(**json.loads(json.dumps(values)))


def shake(model: torch.nn.Module, seed: int) -> None:
    """Gives every parameter and every stored buffer random values: matrices of a size that keeps activations near one,
    vectors around what they are."""
    generator = torch.Generator().manual_seed(seed)
    stored = set(model.state_dict())
    tensors = dict(model.named_parameters())
    tensors |= {name: tensor for name, tensor in model.named_buffers() if name in stored and tensor.is_floating_point()}
    with torch.no_grad():
        for name, tensor in sorted(tensors.items()):
            noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float32)
            if "sinks" in name or "correction_bias" in name or tensor.dim() < 2:
                base = torch.nan_to_num(tensor) if "sinks" not in name else torch.zeros_like(tensor)
                tensor.copy_(base + 0.3 * noise)
            else:
                tensor.copy_(noise * tensor.shape[-1] ** -0.5)


def old_keys(config: dict) -> dict:
    """config.json as older versions of transformers wrote it, and most checkpoints have it."""
    config = dict(config)
    parameters = config.pop("rope_parameters", None) or {}
    if "full_attention" in parameters:
        full, local = parameters["full_attention"], parameters["sliding_attention"]
        config["rope_local_base_freq"] = local["rope_theta"]
        config["sliding_window_pattern"] = 2
        parameters = full
    parameters = dict(parameters)
    for key in ("rope_theta", "partial_rotary_factor"):
        if key in parameters:
            config[key] = parameters.pop(key)
    if config["model_type"] == "phi3":
        parameters.pop("original_max_position_embeddings", None)
    config["rope_scaling"] = parameters if parameters.get("rope_type", "default") != "default" else None
    config.pop("layer_types", None)
    if "dtype" in config:
        config["torch_dtype"] = config.pop("dtype")
    return config


def output_of(folder: pathlib.Path, class_name: str, ids: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What transformers computes with the model as it was stored."""
    model = getattr(transformers, class_name).from_pretrained(
        folder, dtype=dtype, attn_implementation="eager", experts_implementation="eager").eval()
    with torch.no_grad():
        output = model(input_ids=ids) if class_name.startswith("Bert") else model(input_ids=ids, use_cache=False)
    return output.last_hidden_state if class_name == "BertModel" else output.logits


def make(name: str, folder: pathlib.Path) -> None:
    """Writes `model/`, `ids.safetensors` and `reference.safetensors` (in double and in single precision)."""
    class_name, values, *rewrite = MODELS[name]
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    seed = sum(name.encode())
    torch.manual_seed(seed)
    model = getattr(transformers, class_name)(config_of(class_name, values)).float()
    shake(model, seed)
    model.save_pretrained(folder / "model")
    if rewrite:
        path = folder / "model" / "config.json"
        path.write_text(json.dumps(old_keys(json.loads(path.read_text(encoding="utf-8"))), indent=2), encoding="utf-8")
    ids = torch.randint(0, VOCABULARY, (SEQUENCES, LENGTH), generator=torch.Generator().manual_seed(seed + 1))
    save_file({"ids": ids}, folder / "ids.safetensors")
    precise = output_of(folder / "model", class_name, ids, torch.float64)
    single = output_of(folder / "model", class_name, ids, torch.float32)
    save_file({"precise": precise.contiguous(), "single": single.contiguous()}, folder / "reference.safetensors")
