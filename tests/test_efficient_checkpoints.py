"""EfficientSED's checkpoints: registry, file layouts, faulty files, parameters and MACs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from hear_pretrainedsed.checkpoints import CheckpointError, load_weights, save_weights
from hear_pretrainedsed.complexity import Complexity, complexity, compute
from hear_pretrainedsed.heads import NoHeadError
from hear_pretrainedsed.model import SEDModel, build_checkpoint
from hear_pretrainedsed.registry import CHECKPOINTS, Checkpoint, bibtex, get_checkpoint
from hear_pretrainedsed.rule_weights import write_release_file
from tests.efficient_rule import build, checkpoint

EFFICIENT = {n: c for n, c in CHECKPOINTS.items() if c.paper == "efficientsed"}
State = dict[str, Tensor]


@pytest.fixture(autouse=True)
def one_thread(few_threads: None) -> None:
    torch.set_num_threads(1)


@pytest.fixture
def released(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], State]:
    """Rule-made weights of any strong fmn network, published or not, in the release's layout."""
    monkeypatch.setattr("hear_pretrainedsed.rule_weights.get_checkpoint", checkpoint)

    def make(name: str) -> State:
        path = write_release_file(name, tmp_path / "released.pt")
        return torch.load(path, weights_only=True)

    return make


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., SEDModel]:
    """Load a state as the network `name`; the file's name grows, since its sha256 changes."""

    def from_state(name: str, state: State, facts: Checkpoint | None = None) -> SEDModel:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.pt"
        torch.save(state, path)
        facts = facts or checkpoint(name)
        with torch.device("meta"):
            model = build_checkpoint(facts)
        before = {k: v.shape for k, v in model.state_dict().items()}
        try:
            load_weights(model, path, facts)
        except CheckpointError:
            after = model.state_dict()
            assert {k: v.shape for k, v in after.items()} == before
            assert all(value.is_meta for value in after.values())  # nothing half loaded
            raise
        return model

    return from_state


def same(a: SEDModel, b: SEDModel) -> bool:
    mine, other = a.state_dict(), b.state_dict()
    return mine.keys() == other.keys() and all(torch.equal(mine[k], other[k]) for k in mine)


# ---- registry ----


def test_registry_lists_the_release() -> None:
    names = set(EFFICIENT)
    dims = {"04": [104], "06": [160], "10": [128, 256, 512, 1024], "20": [512], "30": [768]}
    plain = {f"fmn{w}.{stage}" for w in dims for stage in ("weak", "strong")}
    with_models = {
        f"fmn{w}.strong+{model}-{dim}"
        for w in dims for dim in dims[w] for model in ("tf", "hybrid", "gru")
    }  # fmt: skip
    assert names == plain | with_models | {"fmn10.strong-akd+tf-256"}
    assert len(names) == 35


@pytest.mark.parametrize(
    ("name", "file", "psds1", "sequence_model", "module"),
    [
        ("fmn04.weak", "fmn04_weak.pt", None, None, "fmn04_weak"),
        ("fmn04.strong", "fmn04_strong.pt", 39.52, None, "fmn04_strong"),
        ("fmn30.strong", "fmn30_strong.pt", 44.24, None, "fmn30_strong"),
        ("fmn04.strong+hybrid-104", "fmn04+hybrid-104_strong.pt", 41.37, ("hybrid", 104),
         "fmn04_strong_hybrid_104"),
        ("fmn06.strong+gru-160", "fmn06+gru-160_strong.pt", 40.37, ("gru", 160),
         "fmn06_strong_gru_160"),
        ("fmn10.strong+tf-1024", "fmn10+tf-1024_strong.pt", 44.55, ("tf", 1024),
         "fmn10_strong_tf_1024"),
        ("fmn20.strong+tf-512", "fmn20+tf-512_strong.pt", 45.13, ("tf", 512),
         "fmn20_strong_tf_512"),
        ("fmn30.strong+gru-768", "fmn30+gru-768_strong.pt", 45.77, ("gru", 768),
         "fmn30_strong_gru_768"),
        ("fmn10.strong-akd+tf-256", "fmn10+tf-256_advanced-kd-weak-strong.pt", 45.25,
         ("tf", 256), "fmn10_strong_akd_tf_256"),
    ],
)  # fmt: skip
def test_facts(
    name: str, file: str, psds1: float | None, sequence_model: tuple[str, int] | None, module: str
) -> None:
    facts = get_checkpoint(name)
    assert (facts.file, facts.psds1, facts.sequence_model) == (file, psds1, sequence_model)
    assert facts.module == module
    base = "https://github.com/theMoro/EfficientSED/releases/download/v0.0.1/"
    assert facts.url == base + file
    assert facts.sha256 is None
    assert facts.stage == name.split(".")[1].split("+")[0].split("-")[0]
    assert "Frame" in bibtex(name) or "2211.04772" in bibtex(name)
    assert "2503.11373" in bibtex(name)


def test_both_names_of_the_family_are_one_network() -> None:
    with torch.device("meta"):
        a, b = (build_checkpoint(get_checkpoint(f"{x}10.strong")) for x in ("fmn", "frame_mn"))
    assert {k: v.shape for k, v in a.state_dict().items()} == {
        k: v.shape for k, v in b.state_dict().items()
    }


# ---- layouts ----


@pytest.mark.parametrize("name", ["fmn04", "fmn04+tf-104", "fmn04+gru-104"])
@pytest.mark.parametrize(
    ("backbone", "rest"),
    [
        ("net.model.", "net."),
        ("model.model.", "model."),
        ("model.fmn.", ""),
        ("model.fmn.", "net."),
    ],
)
def test_every_published_prefix_loads(
    name: str, backbone: str, rest: str, released: Callable, load: Callable
) -> None:
    state = released(name)
    moved = {
        backbone + k[len("net.model.") :] if k.startswith("net.model.") else rest + k[4:]: v
        for k, v in state.items()
    }
    model = load(name, moved)
    assert same(model, load(name, state))
    assert model.provenance["left_out"] == [] and model.provenance["layout"] == "release"
    assert torch.equal(model.head.strong.weight, state["net.strong_head.weight"])


def test_teachers_name_the_gru_in_their_own_way(released: Callable, load: Callable) -> None:
    state = released("fmn04+gru-104")
    other = {k.replace("seq_model.0.gru.", "seq_model.rnn."): v for k, v in state.items()}
    assert other.keys() != state.keys()
    assert same(load("fmn04+gru-104", other), load("fmn04+gru-104", state))


def test_weak_files_lose_their_heads(released: Callable, load: Callable) -> None:
    state = released("fmn04")
    for head in ("strong_head", "weak_head"):
        state[f"net.{head}.weight"] = torch.zeros(527, 384)
        state[f"net.{head}.bias"] = torch.zeros(527)
    model = load("fmn04", state, get_checkpoint("fmn04.weak"))
    assert model.head is None and len(model.provenance["left_out"]) == 4
    with pytest.raises(NoHeadError, match="finetune"):
        model.scores(torch.zeros(1, 16_000))


def test_clip_head_of_other_classes_is_left_out(released: Callable, load: Callable) -> None:
    state = released("fmn04")
    state["net.weak_head.weight"] = torch.zeros(527, 384)
    state["net.weak_head.bias"] = torch.zeros(527)
    model = load("fmn04", state)
    assert model.head.weak is None
    assert model.provenance["left_out"][:2] == ["net.weak_head.weight", "net.weak_head.bias"]
    assert model.scores(torch.zeros(1, 640)).shape == (1, 1, 447)
    with pytest.raises(NoHeadError, match="no weak head"):
        model.weak_scores(torch.zeros(1, 640))


def test_strong_head_of_other_classes_is_refused(released: Callable, load: Callable) -> None:
    state = released("fmn04")
    state["net.strong_head.weight"] = torch.zeros(527, 384)
    with pytest.raises(CheckpointError, match="head.strong.weight has .527, 384., not .447, 384."):
        load("fmn04", state)


@pytest.mark.parametrize("name", ["fmn04+tf-104", "fmn04+attn-104"])
def test_rotary_frequencies_may_be_stored(name: str, released: Callable, load: Callable) -> None:
    state = released(name)
    stored = [k for k in state if k.endswith("freqs")]
    assert len(stored) == 2
    model = load(name, state)
    without = {k: v for k, v in state.items() if k not in stored}
    assert same(model, load(name, without))
    for wrong, message in (
        (state[stored[1]] * 1.001, "freqs holds other constants"),
        (state[stored[1]][:-1], "1 of another shape: .*freqs"),
    ):
        with pytest.raises(CheckpointError, match=message):
            load(name, state | {stored[1]: wrong})


def test_both_names_of_a_convolution_have_to_agree(released: Callable, load: Callable) -> None:
    state = released("fmn04+tcn-64")
    places = [k for k in state if ".net." in k]
    assert len(places) == 2 * 5 * 2 * 3
    by_place = {k: v for k, v in state.items() if ".conv1." not in k and ".conv2." not in k}
    by_name = {k: v for k, v in state.items() if k not in places}
    model = load("fmn04+tcn-64", state)
    assert same(model, load("fmn04+tcn-64", by_place))
    assert same(model, load("fmn04+tcn-64", by_name))
    state[places[7]] = state[places[7]] + 1
    with pytest.raises(CheckpointError, match="should repeat"):
        load("fmn04+tcn-64", state)
    missing = {k: v for k, v in by_name.items() if "1.layers.1.network.4.conv2.weight_v" not in k}
    with pytest.raises(CheckpointError, match="1 missing: .*network.4.conv2.weight_v"):
        load("fmn04+tcn-64", missing)


def test_hybrid_file_of_four_heads(released: Callable, load: Callable, tmp_path: Path) -> None:
    name = "fmn04+hybrid-104"
    state = released(name)
    eight = load(name, state)
    norms = [k for k in state if "_out_norm.gamma" in k]
    assert len(norms) == 4 and state[norms[0]].shape == (13,)
    four = load(name, state | {k: state[k].repeat(2) for k in norms})
    assert four.sequence_model[1].layers[1][1].rnn_out_norm.gamma.shape == (26,)
    audio = torch.randn(1, 16_000, generator=torch.Generator().manual_seed(0))
    assert (four.frames(audio) - eight.frames(audio)).abs().max() > 1e-3
    save_weights(four, tmp_path / "own.pt")
    again = build(name)
    load_weights(again, tmp_path / "own.pt", checkpoint(name))
    assert same(again, four)
    for bad in ({norms[0]: torch.ones(26)}, {k: torch.ones(25) for k in norms}):
        with pytest.raises(CheckpointError, match="of another shape: sequence_model.1.layers"):
            load(name, state | bad)


@pytest.mark.parametrize(
    ("file", "asked", "message"),
    [
        ("fmn04", "fmn04+tf-104", "missing: sequence_model.0.bias"),
        ("fmn04+tf-104", "fmn04", "it holds a sequence model, none of which is in"),
        ("fmn04+hybrid-104", "fmn04+tf-104", "it holds a sequence model, another one than"),
        ("fmn04+tf-104", "fmn04+tf-128", r"sequence_model.0.bias has .104,., not .128,."),
        ("fmn04", "fmn06", r"of another shape: backbone.features.0.0.weight has .8, 1, 3, 3."),
        ("fmn06+tf-104", "fmn04+tf-104", "of another shape"),
    ],
)
def test_file_of_another_network(
    file: str, asked: str, message: str, released: Callable, load: Callable
) -> None:
    with pytest.raises(CheckpointError, match=message):
        load(asked, released(file))


# ---- parameters and MACs ----


@pytest.mark.slow
def test_stored_facts_are_what_is_counted() -> None:
    """assets/complexity.json is `hear_pretrainedsed.complexity.facts_text()`."""
    for facts in CHECKPOINTS.values():
        assert complexity(facts) == compute(facts), facts.name


def test_unlisted_checkpoints_are_counted() -> None:
    own = replace(get_checkpoint("fmn04.strong"), name="fmn04.strong-mine")
    assert complexity(own) == complexity(get_checkpoint("fmn04.strong"))
    assert complexity(own) is complexity(own)


@pytest.mark.parametrize(
    "name",
    ["fmn04.strong+tf-104", "beats.strong", "atst_f.strong", "fpasst.strong", "asit.ssl",
     "m2d.strong", "psla.weak-audioset"],
)  # fmt: skip
def test_count_against_torch(name: str) -> None:
    """torch's counter of what its operators do, attention apart."""
    cost = compute(get_checkpoint(name))
    with torch.device("meta"):
        model = build_checkpoint(get_checkpoint(name))
    spec = model.frontend(torch.zeros(1, model.grid.span_samples)).to("meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        tokens = model.backbone(spec)
        if name.startswith("psla"):
            model.head.clip(tokens)
        else:
            frames = model.sequence_model(model.grid.to_frames(tokens))
            for part in (model.head.clip, model.head) if model.head else ():
                part(frames)
    operators = counter.get_flop_counts()["Global"]
    macs = {str(op).split(".")[-1]: flops // 2 for op, flops in operators.items()}
    assert sum(macs.pop(op, 0) for op in ("convolution", "addmm", "mm")) == cost.macs
    assert sum(macs.values()) in (0, cost.attention)  # a fused attention is not in torch's table
    assert cost.macs_with_attention == cost.macs + cost.attention


def test_costs_of_the_transformers() -> None:
    cost = complexity(get_checkpoint("atst_f.ssl"))
    # 12 blocks of 12 * 768^2 weights over 250 tokens, and the patches' embedding
    assert cost == Complexity(
        parameters=85_419_264,
        backbone=250 * (12 * 12 * 768**2 + 256 * 768),
        sequence_model=0,
        head=0,
        attention=12 * 2 * 250**2 * 768,
    )
    assert round(cost.macs_with_attention / 1e9, 2) == 22.43  # as ATST-SED's reference counts
    assert complexity(get_checkpoint("psla.weak-audioset")).macs == 1_945_576_576
