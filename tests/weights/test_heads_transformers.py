"""The heads of the models of transformers themselves, where that is installed (`pip install transformers`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from slt_callbacks import attention_heads
from tests.weights.heads import check_heads, tap_input

transformers = pytest.importorskip("transformers", minversion="5")  # where some paths are others than before

HEADS = 4
GPT2 = {"vocab_size": 20, "n_embd": 16, "n_head": HEADS, "n_layer": 2, "n_positions": 8}
BERT = {
    "vocab_size": 20,
    "hidden_size": 16,
    "intermediate_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "max_position_embeddings": 8,
}
LLAMA = BERT | {"num_key_value_heads": 2, "pad_token_id": 0}
VIT = BERT | {"image_size": 4, "patch_size": 2, "num_channels": 3}


@dataclass
class Case:
    """A model, and where in it the layer is.

    Attributes:
        model: How its classes are called.
        config: A small one.
        path: Of the layer.
        out: Where its output projection is.
        keys: Where its keys are, if the bias of them changes nothing.
        group: How many heads share a key.
    """

    model: str
    config: dict[str, Any]
    path: str
    out: str
    keys: str = ""
    group: int = 1


CASES = [
    Case("GPT2", GPT2, "h.1.attn", "c_proj", "c_attn"),
    Case("OpenAIGPT", GPT2, "h.1.attn", "c_proj", "c_attn"),
    Case("GPTBigCode", GPT2 | {"multi_query": True}, "h.1.attn", "c_proj", "c_attn", group=4),
    Case("GPTBigCode", GPT2 | {"multi_query": False}, "h.1.attn", "c_proj", "c_attn"),
    Case("GPTJ", GPT2 | {"rotary_dim": 2}, "h.1.attn", "out_proj"),
    Case("GPTNeoX", BERT, "layers.1.attention", "dense", "query_key_value"),
    Case("Bloom", BERT | {"n_head": HEADS, "n_layer": 2}, "h.1.self_attention", "dense", "query_key_value"),
    Case("Falcon", BERT | {"multi_query": False, "alibi": False}, "h.1.self_attention", "dense"),
    Case("Falcon", BERT | {"multi_query": True, "alibi": False}, "h.1.self_attention", "dense", group=4),
    Case(
        "Falcon", BERT | {"new_decoder_architecture": True, "num_kv_heads": 2}, "h.1.self_attention", "dense", group=2
    ),
    Case("Persimmon", LLAMA, "layers.1.self_attn", "dense", "query_key_value"),
    Case("Mpt", {"vocab_size": 20, "d_model": 16, "n_heads": HEADS, "n_layers": 2}, "blocks.1.attn", "out_proj"),
    Case("ModernBert", BERT | {"pad_token_id": 0}, "layers.1.attn", "Wo"),
    Case("Llama", LLAMA, "layers.1.self_attn", "o_proj", group=2),
    Case("Llama", LLAMA | {"attention_bias": True, "head_dim": 6}, "layers.1.self_attn", "o_proj", "k_proj", group=2),
    Case("Qwen3", LLAMA | {"head_dim": 6}, "layers.1.self_attn", "o_proj", group=2),
    Case("Phi3", LLAMA, "layers.1.self_attn", "o_proj", group=2),
    Case("Bert", BERT, "encoder.layer.1.attention", "output.dense", "self.key"),
    Case("DebertaV2", BERT, "encoder.layer.1.attention", "output.dense", "self.key_proj"),
    Case(
        "DistilBert",
        {"vocab_size": 20, "dim": 16, "hidden_dim": 8, "n_layers": 2, "n_heads": HEADS, "max_position_embeddings": 8},
        "transformer.layer.1.attention",
        "out_lin",
        "k_lin",
    ),
    Case(
        "T5Encoder",
        {"vocab_size": 20, "d_model": 16, "d_kv": 3, "d_ff": 8, "num_layers": 2, "num_heads": HEADS},
        "encoder.block.1.layer.0.SelfAttention",
        "o",
    ),
    Case("ViT", VIT, "layers.1.attention", "o_proj", "k_proj"),
    Case("CLIPVision", VIT, "encoder.layers.1.self_attn", "out_proj", "k_proj"),
    Case("BlipVision", VIT, "encoder.layers.1.self_attn", "projection", "qkv"),
]


def built(case: Case) -> Any:
    """The model with weights that are nowhere 0, and in double precision."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{case.model.removesuffix('Encoder')}Config")(**case.config)
    model = getattr(transformers, f"{case.model}Model")(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.4)
    return model.double().eval()


def run(model: Any) -> torch.Tensor:
    if model.main_input_name == "pixel_values":
        inputs = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    else:
        inputs = torch.randint(3, 20, (2, 6), generator=torch.Generator().manual_seed(1))
    return model(inputs)[0]  # type: ignore[no-any-return]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.model)
def test_the_weights_of_a_head_are_those_that_its_output_depends_on(case: Case) -> None:
    model = built(case)
    layer = model.get_submodule(case.path)
    names = [name for name, _ in layer.named_parameters()]
    shared = [f"{case.path}.{name}" for name in names if "norm" in name.lower() or name == f"{case.out}.bias"]
    undecided = [f"{case.path}.{name}" for name in names if name == f"{case.keys}.bias"]
    check_heads(
        model,
        attention_heads(model, case.path),
        tap_input(layer.get_submodule(case.out), HEADS),
        lambda: run(model),
        path=f"{case.path}.",
        group=case.group,
        shared=shared,
        undecided=undecided,
    )
