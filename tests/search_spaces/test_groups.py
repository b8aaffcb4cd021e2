import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_spaces.errors import InputError
from search_spaces.groups import Groups

NAMES = [
    "model.embed_tokens.weight",
    *(f"model.layers.{i}.{part}.weight" for i in range(6) for part in ("self_attn.q_proj", "mlp.up_proj", "norm1")),
    "model.norm.weight",
    "lm_head.weight",
    "transformer.h.3.attn.c_attn.weight",
    "transformer.ln_f.weight",
]
kinds = st.sampled_from(["model", "depth:2", "depth:5", "layers:1", "layers:4", "modules"])


@given(kind=kinds, value=st.floats(-2, 2), name=st.sampled_from(NAMES), layers=st.integers(6, 40))
def test_equal_groups_are_one_weight_for_the_model(kind: str, value: float, name: str, layers: int) -> None:
    groups = Groups.parse(kind)
    assert groups.weight([value] * groups.count, name, layers) == value


@given(st.integers(2, 8), st.integers(2, 40), st.data())
def test_a_profile_passes_through_its_ends_and_stays_between_its_points(
    count: int, layers: int, data: st.DataObject
) -> None:
    values = data.draw(st.lists(st.floats(0, 1), min_size=count, max_size=count))
    groups = Groups.parse(f"depth:{count}")
    along = [groups.weight(values, f"model.layers.{i}.mlp.up_proj.weight", layers) for i in range(layers)]
    assert groups.weight(values, "model.embed_tokens.weight", layers) == along[0] == values[0]
    for name in ("model.norm.weight", "lm_head.weight"):
        assert groups.weight(values, name, layers) == pytest.approx(values[-1], abs=1e-12)
    assert along[-1] == pytest.approx(values[-1], abs=1e-12)
    assert all(min(values) - 1e-12 <= w <= max(values) + 1e-12 for w in along)


def test_blocks_of_layers_are_equal_and_take_embeddings_and_head_along() -> None:
    groups = Groups.parse("layers:3")
    names = [f"model.layers.{i}.mlp.up_proj.weight" for i in range(6)]
    assert [groups.weight([1.0, 2.0, 3.0], name, 6) for name in names] == [1, 1, 2, 2, 3, 3]
    assert groups.weight([1.0, 2.0, 3.0], "model.embed_tokens.weight", 6) == 1
    assert groups.weight([1.0, 2.0, 3.0], "lm_head.weight", 6) == 3


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("model.layers.0.self_attn.q_proj.weight", 0),
        ("transformer.h.0.attn.c_attn.weight", 0),
        ("model.layers.0.mlp.experts.0.up_proj.weight", 1),
        ("model.layers.0.block_sparse_moe.gate.weight", 1),
        ("model.layers.0.input_layernorm.weight", 2),
        ("model.embed_tokens.weight", 2),
    ],
)
def test_kinds_of_modules(name: str, kind: int) -> None:
    assert Groups.parse("modules").weight([0.0, 1.0, 2.0], name, 4) == kind


@pytest.mark.parametrize("text", ["", "depth", "depth:1", "depth:65", "layers:0", "layers:x", "modules:2", "model:1"])
def test_other_groups_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="groups must be model"):
        Groups.parse(text)
