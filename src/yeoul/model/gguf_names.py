"""What the GGUF specification calls our tensors, in both directions; without torch."""

from __future__ import annotations

import re

NAMES = {
    "input_layernorm": "attn_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""Parts of a layer; `post_attention_layernorm` stands before the MLP or, with other placements, after attention."""
TOP = {"model.embed_tokens": "token_embd", "model.embed_positions": "position_embd", "model.norm": "output_norm"}
FUSED = "attn_qkv"
"""Queries, keys and values in one tensor."""


def layer_names(norm_placement: str) -> dict[str, str]:
    """Part of a layer -> its name in the file, for a `ModelConfig.norm_placement`."""
    after = "ffn_norm" if norm_placement == "pre" else "post_attention_norm"
    return {**NAMES, "post_attention_layernorm": after}


def our_name(name: str, norm_placement: str) -> str | None:
    """Our name of a tensor of a file; of a fused one with `FUSED` as its module; None where it is not known."""
    stem, _, leaf = name.rpartition(".")
    if leaf not in ("weight", "bias"):
        return None
    top = {theirs: ours for ours, theirs in TOP.items()} | {"output": "lm_head"}
    if stem in top:
        return f"{top[stem]}.{leaf}"
    block = re.fullmatch(r"blk\.(\d{1,9})\.(.+)", stem)
    if block is None:
        return None
    placed = layer_names(norm_placement)
    if norm_placement == "pre":
        del placed["pre_feedforward_layernorm"]
    inner = {theirs: ours for ours, theirs in placed.items()} | {FUSED: FUSED}
    return f"model.layers.{block[1]}.{inner[block[2]]}.{leaf}" if block[2] in inner else None
