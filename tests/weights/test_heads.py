"""The weights of a head are those that its output depends on, in layers written as public models write theirs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from slt_callbacks import attention_heads
from tests.weights.heads import check_heads, masks, tap_input
from tests.weights.layers import (
    CASES,
    HEADS,
    FalconAttention,
    GPTNeoXAttention,
    HookedAttention,
    Interleaved,
    Named,
    Torch,
    ViTAttention,
    X,
    model,
)


@pytest.mark.parametrize("case", CASES)
def test_the_weights_of_a_head_are_those_that_its_output_depends_on(case: str) -> None:
    torch.manual_seed(0)
    make, out, more = CASES[case]
    net = model(make())
    layer = net.get_submodule("attn")
    place = layer.get_submodule(out)
    heads = attention_heads(net, "attn")
    assert list(heads) == [f"attn.h{head}" for head in range(HEADS)]
    options = {"shared": (f"attn.{out}.bias",), **more}
    check_heads(net, heads, tap_input(place, HEADS), lambda: layer(X), path="attn.", **options)


def own_layer() -> nn.Module:
    return model(Interleaved())


def check_own(layout: Any) -> None:
    net = own_layer()
    layer = net.get_submodule("attn")
    heads = attention_heads(net, "attn", layout=layout)
    tap = tap_input(layer.get_submodule("o_proj"), HEADS)
    more = {"shared": ("attn.o_proj.bias",), "undecided": ("attn.qkv_proj.bias",)}
    check_heads(net, heads, tap, lambda: layer(X), path="attn.", **more)


def test_a_layout_that_no_name_tells_is_given() -> None:
    check_own("interleaved")
    with pytest.raises(AssertionError):
        check_own("concat")


def test_a_layout_that_no_name_tells_is_asked_for() -> None:
    message = (
        r'`layout` to be given, because attn \(Interleaved\) does not tell how attn.qkv_proj.weight is split: "con'
    )
    with pytest.raises(ValueError, match=message):
        attention_heads(own_layer(), "attn")


def test_a_layout_that_is_given_comes_before_that_of_a_name() -> None:
    net = model(ViTAttention())
    expected = [slice(0, 2), slice(2, 4), slice(4, 6)]
    slices = attention_heads(net, "attn", layout="interleaved")["attn.h0"].slices
    assert slices is not None
    assert [index[0] for index in slices["attn.qkv.weight"]] == expected


@pytest.mark.parametrize("layout", ["concat", "interleaved"])
def test_a_layout_is_without_meaning_where_there_are_three_tensors(layout: Any) -> None:
    net = model(Named("wq", "wk", "wv", "wo", kv_heads=2))
    assert attention_heads(net, "attn", layout=layout) == attention_heads(net, "attn")


def test_a_given_number_comes_before_that_of_a_configuration() -> None:
    assert len(attention_heads(model(GPTNeoXAttention()), "attn", num_heads=2)) == 2


def test_the_number_of_a_layer_comes_before_that_of_its_configuration() -> None:
    net = model(GPTNeoXAttention())
    net.get_submodule("attn").num_heads = 2
    assert len(attention_heads(net, "attn")) == 2


def test_a_number_is_read_from_a_configuration_that_has_one() -> None:
    net = model(FalconAttention(kv_heads=4))
    layer: Any = net.get_submodule("attn")
    del layer.num_heads
    layer.num_heads, layer.cfg = [4, 4], type("Config", (), {"num_heads": 0, "n_heads": HEADS})
    assert len(attention_heads(net, "attn")) == HEADS


def test_the_module_may_be_the_layer_itself() -> None:
    assert list(attention_heads(nn.MultiheadAttention(4, 2), "")) == ["h0", "h1"]


def test_what_is_frozen_is_left_out() -> None:
    net = model(Named("q_proj", "k_proj", "v_proj", "o_proj"))
    net.get_submodule("attn.k_proj").requires_grad_(False)
    whole, head = (attention_heads(one, "attn")["attn.h1"] for one in (model(Named("q", "k", "v", "o")), net))
    assert whole.slices is not None
    assert head.slices is not None
    assert len(whole.slices) - len(head.slices) == 2
    assert not masks(net, head)["attn.k_proj.weight"].any()


def test_a_frozen_layer_is_refused() -> None:
    net = model(Torch())
    net.get_submodule("attn").requires_grad_(False)
    net.get_submodule("attn.out_proj").bias.requires_grad_(True)  # of no head
    with pytest.raises(ValueError, match="'attn' to have trainable weights, but those of its heads are all frozen"):
        attention_heads(net, "attn")


def unnamed() -> nn.Module:
    net = model(Named("q_proj", "k_proj", "v_proj", "o_proj"))
    del net.get_submodule("attn").num_heads
    return net


def parametrized() -> nn.Module:
    net = model(ViTAttention())
    nn.utils.parametrizations.weight_norm(net.get_submodule("attn.qkv"))
    return net


def of_other_shapes() -> nn.Module:
    """Parameters under the names of TransformerLens and of XLNet, which are other tensors."""
    net = nn.Module()
    for names in (("W_Q", "W_K", "W_V", "W_O"), ("q", "k", "v", "o")):
        part = nn.Module()
        for name in names:
            part.register_parameter(name, nn.Parameter(torch.zeros([8, 8] if name[0] == "W" else [8, 4, 2])))
        net.add_module(names[0], part)
    return net


@pytest.mark.parametrize(
    ("make", "arguments", "error", "message"),
    [
        (own_layer, {"path": 3}, TypeError, "`path` to be the path of a module such as .*, but got 3"),
        (
            own_layer,
            {"path": "attention"},
            ValueError,
            r"attention layer of ModuleDict, but 'attention' is no module: there are attn\. Heads of other layers",
        ),
        (own_layer, {"path": "before"}, ValueError, "'before' is a Linear: there are attn"),
        (own_layer, {"path": "attn.o_proj.weight"}, ValueError, "'attn.o_proj.weight' is no module"),
        (
            lambda: nn.Linear(2, 2),
            {"path": ""},
            ValueError,
            "'' is a Linear: nothing in it has projections of names that are known",
        ),
        (of_other_shapes, {"path": "W_Q"}, ValueError, "'W_Q' is a Module: nothing in it has projections"),
        (of_other_shapes, {"path": "q"}, ValueError, "'q' is a Module: nothing in it has projections"),
        (own_layer, {"num_heads": 0}, ValueError, "`num_heads` to be a positive integer or None, but got 0"),
        (own_layer, {"num_kv_heads": True}, ValueError, "`num_kv_heads` to be a positive integer or None, but got T"),
        (own_layer, {"layout": "mixed"}, ValueError, '"auto", "concat" or "interleaved", but got \'mixed\''),
        (unnamed, {}, ValueError, r"`num_heads` to be given, because attn \(Named\) does not say"),
        (lambda: model(Torch()), {"num_heads": 2}, ValueError, r"to be 4, as attn \(Torch\) says, but got 2"),
        (lambda: model(HookedAttention()), {"num_heads": 2}, ValueError, "to be 4, as attn .* says, but got 2"),
        (
            lambda: model(Torch()),
            {"layout": "interleaved"},
            ValueError,
            r'attn \(Torch\) to be "auto" or "concat", but',
        ),
        (
            unnamed,
            {"num_heads": 3},
            ValueError,
            r"sizes of attn \(Named\) to fit num_heads=3, but found along the heads: attn.q_proj.weight 8, .*bias 8, ",
        ),
        (unnamed, {"num_heads": 16}, ValueError, "to fit num_heads=16, but found"),
        (unnamed, {"num_heads": 4, "num_kv_heads": 2}, ValueError, "to fit num_heads=4 and num_kv_heads=2, but found"),
        (
            lambda: model(Named("wq", "wk", "wv", "wo", kv_heads=3)),
            {},
            ValueError,
            "num_heads=4, but found along the heads: attn.wq.weight 8, attn.wq.bias 8, attn.wk.weight 6,",
        ),
        (
            parametrized,
            {},
            ValueError,
            r"attn.qkv.weight of attn \(ViTAttention\) to be a parameter, but it is computed from others",
        ),
    ],
)
def test_what_is_no_layer_and_what_does_not_fit_is_refused(
    make: Callable[[], nn.Module], arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        attention_heads(make(), **{"path": "attn", **arguments})
