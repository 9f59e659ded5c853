"""Every published layout loads, strictly, and nothing is left at random or out in silence."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import hear_pretrainedsed as hps
from hear_pretrainedsed.checkpoints import CheckpointError, load_weights, save_weights
from hear_pretrainedsed.heads import NoHeadError
from hear_pretrainedsed.model import SEDModel, build_model
from hear_pretrainedsed.registry import get_checkpoint
from hear_pretrainedsed.rule_weights import write_release_file
from tests.layouts import (
    ATST_BUFFERS,
    PREFIXES,
    TABLE,
    State,
    check_filled,
    lightning_atst,
    load,
    m2d_buffers,
    new_model,
    old_weight_norm,
    one_table,
    only,
    put,
    released,
    stand_in,
    under,
)
from tests.reference import manifest

MN = "frame_mn06.strong"
TRANSFORMERS = ("asit", "atst_f", "beats", "fpasst", "m2d")
WEAK_HEAD = "(no weak_head in the file: the model has no clip scores)"


@pytest.mark.parametrize("backbone", PREFIXES)
def test_names_are_those_of_the_manifests(shared: Path, backbone: str) -> None:
    facts = manifest(shared, backbone)
    release, reference = PREFIXES[backbone]
    if backbone == "m2d":  # its manifest counts the part `backbone.` as a name
        release, reference = release.removesuffix("backbone."), "model.m2d."
    layout = facts["release_layout"]
    assert layout["release_prefix"].startswith(release)
    assert layout["manifest_prefix"] == reference
    wanted = {k: tuple(v["shape"]) for k, v in facts["state_dict"].items()}
    extra = set(ATST_BUFFERS) | set(m2d_buffers("model.m2d."))
    wanted = {k: shape for k, shape in wanted.items() if k not in extra}
    state = released(f"{backbone}.strong", PREFIXES[backbone][1])
    assert {k: tuple(v.shape) for k, v in state.items()} == wanted


@pytest.mark.slow
@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("backbone", PREFIXES)
def test_release_and_reference_layout(tmp_path: Path, backbone: str, place: int) -> None:
    name = f"{backbone}.strong"
    path = put(tmp_path, released(name, PREFIXES[backbone][place]))
    model, loaded = load(path, name)
    check_filled(model, name)
    assert (loaded.layout, loaded.left_out) == ("release", [])
    assert model.provenance["checkpoint"] == name and model.provenance["sha256"] == loaded.sha256


@pytest.mark.parametrize(
    ("name", "n_classes"),
    [
        *(("beats.ssl", n) for n in (None, 447, 527)),
        *((f"{backbone}.weak", 527) for backbone in TRANSFORMERS),
        ("m2d.ssl", 447),
        ("atst_f.weak", 447),
    ],
)
def test_heads_of_ssl_and_weak_files_are_left_out(
    tmp_path: Path, name: str, n_classes: int | None
) -> None:
    state, heads = released(name), {}
    if n_classes:
        dim = new_model(name).backbone.embed_dim
        heads["weak_head.weight"] = stand_in(1, n_classes, dim)
        heads["weak_head.bias"] = stand_in(1, n_classes)
    if n_classes == 447:
        heads |= {k.replace("weak", "strong"): v for k, v in heads.items()}
    model, loaded = load(put(tmp_path, state | heads), name)
    check_filled(model, name)
    assert model.head is None and model.labels is None
    assert loaded.left_out == list(heads)
    with pytest.raises(NoHeadError, match=f"{name} has no trained head"):
        model.scores(torch.zeros(1, 640))


def resized(state: State, n_classes: int | None) -> State:
    """The same with a weak head of another size, or without."""
    state = {k: v for k, v in state.items() if not k.startswith("weak_head.")}
    if n_classes:
        dim = state["strong_head.weight"].shape[1]
        state["weak_head.weight"] = stand_in(5, n_classes, dim)
        state["weak_head.bias"] = stand_in(5, n_classes)
    return state


@pytest.mark.parametrize("n_classes", [None, 10, 527])
def test_weak_head_of_a_strong_file_may_be_absent_or_another(
    tmp_path: Path, n_classes: int | None
) -> None:
    state = resized(released(MN), n_classes)
    model, loaded = load(put(tmp_path, state), MN)
    check_filled(model, MN, without="head.weak.")
    dropped = ["weak_head.weight", "weak_head.bias"] if n_classes else []
    assert loaded.left_out == [*dropped, WEAK_HEAD]
    assert model.scores(torch.zeros(1, 640)).shape == (1, 1, 447)
    for ask in (model.weak_logits, model.weak_scores):
        with pytest.raises(NoHeadError, match="no weak head"):
            ask(torch.zeros(1, 640))


def without_last_class(state: State, key: str) -> State:
    return state | {key: state[key][:-1]}


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        (lambda s: without_last_class(s, "strong_head.bias"), r"strong.bias has \(446,\), not"),
        (lambda s: s | {"strong_head.weight": stand_in(1, 447, 9)}, r"has \(447, 9\), not \(447"),
        (lambda s: s | {"weak_head.weight": stand_in(1, 447, 9)}, r"has \(447, 9\), not \(447"),
        (lambda s: without_last_class(s, "weak_head.bias"), "1 missing: head.weak.bias"),
        (lambda s: {k: v for k, v in s.items() if k != "weak_head.weight"}, "head.weak.weight"),
        (lambda s: {k: v for k, v in s.items() if k != "strong_head.bias"}, "SSL or weak file"),
    ],
)
def test_half_a_head_is_an_error(tmp_path: Path, changed: object, says: str) -> None:
    with pytest.raises(CheckpointError, match=says):
        load(put(tmp_path, changed(released(MN))), MN)


BEATS_BODY = only(released("beats.ssl"), "model.model.")
PREDICTOR = {"predictor.weight": stand_in(1, 527, 768), "predictor.bias": stand_in(1, 527)}
M2D_BODY = only(released("m2d.ssl"), "model.backbone.")
M2D_OTHERS = {
    "mask_token": stand_in(1, 1, 1, 512),
    "decoder_embed.weight": stand_in(1, 512, 768),
    "decoder_blocks.0.attn.qkv.weight": stand_in(1, 1536, 512),
    "target_blocks.0.attn.qkv.weight": stand_in(1, 2304, 768),
    "norm_stats": stand_in(1, 2),
}
RUNTIME = "module.ar.runtime."
# What a file holds, its layout, what is left out.
AUTHORS = {
    "beats, old names": (
        "beats.ssl", old_weight_norm(released("beats.ssl")), "release", []),
    "beats, one table": ("beats.ssl", one_table(released("beats.ssl")), "release", []),
    "beats, authors'": (
        "beats.ssl", {"cfg": {"encoder_layers": 12}, "model": old_weight_norm(BEATS_BODY)},
        "upstream", ["cfg"]),
    "beats, fine-tuned": (
        "beats.weak", {"cfg": {"finetuned_model": True}, "model": BEATS_BODY | PREDICTOR},
        "upstream", ["cfg", *PREDICTOR]),
    "atst, with buffers": (
        "atst_f.ssl",
        released("atst_f.ssl") | {k: stand_in(1, *v) for k, v in ATST_BUFFERS.items()},
        "release", list(ATST_BUFFERS)),
    "m2d, with buffers": (
        "m2d.ssl", released("m2d.ssl") | m2d_buffers("model."),
        "release", list(m2d_buffers("model."))),
    "m2d, reference names, with buffers": (
        "m2d.ssl", released("m2d.ssl", "model.m2d.backbone.") | m2d_buffers("model.m2d."),
        "release", list(m2d_buffers("model.m2d."))),
    "m2d, authors'": ("m2d.ssl", M2D_BODY | M2D_OTHERS, "upstream", list(M2D_OTHERS)),
    "m2d, authors', under model": (
        "m2d.ssl", {"model": M2D_BODY, "optimizer": {}, "epoch": 3},
        "upstream", ["optimizer", "epoch"]),
    "m2d, authors', fine-tuned": (
        "m2d.weak",
        {"model": under(M2D_BODY, RUNTIME + "backbone.") | m2d_buffers(RUNTIME)
         | {"module.head.mlp.weight": stand_in(1, 527, 3840)}},
        "upstream", [*m2d_buffers(RUNTIME), "module.head.mlp.weight"]),
}  # fmt: skip


@pytest.mark.parametrize("case", AUTHORS)
def test_names_of_other_versions_and_of_the_authors(tmp_path: Path, case: str) -> None:
    name, content, layout, left_out = AUTHORS[case]
    model, loaded = load(put(tmp_path, content), name)
    check_filled(model, name)
    assert (loaded.layout, loaded.left_out) == (layout, left_out)


@pytest.mark.parametrize("norm", ["norm_frame", "norm"])
def test_teacher_of_atst_training_is_taken(tmp_path: Path, norm: str) -> None:
    content = lightning_atst(norm)
    content["state_dict"]["model.teacher.encoder.cls_token"] = stand_in(1, 1, 1, 768)
    model, loaded = load(put(tmp_path, content), "atst_f.ssl")
    check_filled(model, "atst_f.ssl")
    rest = [k for k in content["state_dict"] if "teacher.encoder." not in k]
    wanted = ["epoch", "hyper_parameters", *rest, "model.teacher.encoder.cls_token"]
    assert (loaded.layout, sorted(loaded.left_out)) == ("upstream", sorted(wanted))


@pytest.mark.parametrize("prefix", ["teacher.encoder.", "encoder.", "encoder.encoder.", ""])
def test_teacher_of_atst_alone(tmp_path: Path, prefix: str) -> None:
    state = under(only(released("atst_f.ssl"), "model.atst."), prefix)
    check_filled(load(put(tmp_path, state), "atst_f.ssl")[0], "atst_f.ssl")


@pytest.mark.parametrize(
    ("name", "state"),
    [
        ("beats.ssl", BEATS_BODY | {"encoder.layers.12.fc1.bias": stand_in(1, 3072)}),
        ("m2d.ssl", M2D_BODY | {"blocks.12.norm1.bias": stand_in(1, 768)}),
    ],
)
def test_larger_networks_of_the_authors_are_refused(
    tmp_path: Path, name: str, state: State
) -> None:
    with pytest.raises(CheckpointError, match="1 unknown: .*12"):
        load(put(tmp_path, state), name)


@pytest.mark.parametrize(
    "spoil", [lambda x: x + 1, lambda x: x[:, 1:], lambda x: x.double(), lambda x: x.max()]
)
def test_tables_that_should_be_one_and_differ(
    tmp_path: Path, spoil: Callable[[Tensor], Tensor]
) -> None:
    state = released("beats.ssl")
    name = "model.model." + TABLE.format(7)
    with pytest.raises(CheckpointError, match=r"layers\.7\..* should repeat .*layers\.0\."):
        load(put(tmp_path, state | {name: spoil(state[name])}), "beats.ssl")


GRU = replace(get_checkpoint(MN), name="frame_mn06.strong+gru-32", file="mine.pt")


def test_sequence_model_in_the_file(tmp_path: Path) -> None:
    state = released(GRU)
    assert "seq_model.rnn.weight_ih_l1_reverse" in state
    check_filled(load(put(tmp_path, state), GRU)[0], GRU)
    with pytest.raises(CheckpointError, match="unknown: .*it holds a sequence model, none of"):
        load(put(tmp_path, state), MN)
    bare = {k: v for k, v in state.items() if not k.startswith("seq_model.")}
    with pytest.raises(CheckpointError, match="16 missing: sequence_model.rnn"):
        load(put(tmp_path, bare), GRU)
    wider = state | {"seq_model.rnn.bias_hh_l0": stand_in(1, 99)}
    with pytest.raises(CheckpointError, match=r"bias_hh_l0 has \(99,\), not \(96,\)"):
        load(put(tmp_path, wider), GRU)


def test_counters_are_no_weights(tmp_path: Path) -> None:
    state = released(MN)
    counters = [k for k in state if k.endswith("num_batches_tracked")]
    fewer = {k: v for k, v in state.items() if k not in counters}
    model, loaded = load(put(tmp_path, fewer, "fewer.pt"), MN)
    assert len(loaded.left_out) == len(counters) > 0
    assert {v.item() for k, v in model.state_dict().items() if k.endswith("_tracked")} == {0}
    more: State = {
        "n_averaged": torch.tensor(3),
        "model.frame_mn.x.num_batches_tracked": torch.tensor(3),
    }
    path = put(tmp_path, state | more | {"epoch": 3}, "more.pt")
    model, loaded = load(path, MN)
    check_filled(model, MN)
    assert loaded.left_out == ["epoch", *more]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_brought_to_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    state = {k: v / 4 if v.ndim else v for k, v in released(MN).items()}
    stored = {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}
    model, _ = load(put(tmp_path, stored), MN)
    head = stored["strong_head.weight"]
    assert model.head.strong.weight.dtype == torch.float32
    assert torch.equal(model.head.strong.weight, head.float())


def test_strides_and_shared_memory_of_the_file_stay_behind(tmp_path: Path) -> None:
    big, many = torch.randn(576, 447), torch.randn(447 * 9)
    heads = {"strong_head.weight": big.T, "weak_head.weight": big.T.contiguous()}
    heads |= {"strong_head.bias": many[:447], "weak_head.bias": many[:447]}
    first = "model.frame_mn.features.0.1.weight"
    heads |= {first: (one := torch.randn(16)), first.replace("weight", "bias"): one}
    model, _ = load(put(tmp_path, released(MN) | heads), MN)
    assert torch.equal(model.head.strong.weight, big.T)
    assert torch.equal(model.head.weak.bias, many[:447])
    parameters = list(model.parameters())
    assert len({p.data_ptr() for p in parameters}) == len(parameters)
    assert all(p.untyped_storage().nbytes() == p.nbytes and p.is_contiguous() for p in parameters)
    assert all(p.requires_grad and isinstance(p, torch.nn.Parameter) for p in parameters)


@pytest.mark.filterwarnings("ignore:.*(first load|has the bytes)")
def test_formats_of_one_state(tmp_path: Path, release_file: object) -> None:
    path = release_file(MN)
    state = torch.load(path)
    old = put(tmp_path, state, "old.pt", _use_new_zipfile_serialization=False)
    save_file(state, tmp_path / "s.safetensors")
    save_file(state, tmp_path / "named_as_torch.pt")
    reference = load(path, MN)[0].state_dict()
    for other in (old, tmp_path / "s.safetensors", tmp_path / "named_as_torch.pt"):
        model, loaded = load(other, MN)
        assert loaded.layout == "release"
        assert all(torch.equal(v, reference[k]) for k, v in model.state_dict().items())


# ---- this project's own files ----


@pytest.mark.filterwarnings("ignore:first load")
@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_own_layout_round_trip(tmp_path: Path, release_file: object, ending: str) -> None:
    first = hps.load_model(release_file(MN))
    path = tmp_path / f"mine.{ending}"
    save_weights(first, path)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    second = hps.load_model(path)
    assert second.provenance["checkpoint"] == MN and second.provenance["layout"] == "own"
    assert second.labels == first.labels and second.state_dict().keys() == first.state_dict().keys()
    assert all(torch.equal(v, second.state_dict()[k]) for k, v in first.state_dict().items())
    with pytest.raises(CheckpointError, match=f"says it holds {MN}, not frame_mn10.strong"):
        hps.load_model(path, checkpoint="frame_mn10.strong")


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
@pytest.mark.parametrize("head", ["linear", "attention"])
def test_own_head_and_classes_travel(tmp_path: Path, ending: str, head: str) -> None:
    model: SEDModel = build_model("frame_mn06", head=head, labels=["a", "b, c", "ü"])
    model.provenance["checkpoint"] = MN
    save_weights(model, tmp_path / f"mine.{ending}")
    again = hps.load_model(tmp_path / f"mine.{ending}")
    assert again.labels == ("a", "b, c", "ü") and type(again.head) is type(model.head)
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in model.state_dict().items())
    other = build_model("frame_mn06", head=head, labels=["a", "ü", "b, c"])
    with pytest.raises(CheckpointError, match=r"3 classes: it has 3 of its own \(a, b, c, ü"):
        load_weights(other, tmp_path / f"mine.{ending}", get_checkpoint(MN))


def test_own_file_without_clip_head_or_name(tmp_path: Path) -> None:
    model, _ = load(put(tmp_path, resized(released(MN), None)), MN)
    save_weights(model, tmp_path / "mine.pt")
    again = hps.load_model(tmp_path / "mine.pt")
    assert again.head.weak is None and again.labels == model.labels
    save_weights(build_model("frame_mn06"), tmp_path / "nameless.pt")
    with pytest.raises(ValueError, match="which checkpoint does .*nameless.pt' hold"):
        hps.load_model(tmp_path / "nameless.pt")


def test_file_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    model = build_model("frame_mn06")
    for path, says in (("x.bin", "has to end in"), ("no/x.pt", "there is no folder .*no")):
        with pytest.raises(ValueError, match=says):
            save_weights(model, tmp_path / path)
    (tmp_path / "taken.pt").mkdir()
    with pytest.raises(OSError):
        save_weights(model, tmp_path / "taken.pt")
    assert [p.name for p in tmp_path.iterdir()] == ["taken.pt"]


# ---- what loading says ----


def test_first_load_is_told_once(own_cache: Path, tmp_path: Path) -> None:
    path = write_release_file(MN, own_cache / get_checkpoint(MN).file)
    with pytest.warns(UserWarning, match="first load of frame_mn06_strong_1.pt") as caught:
        model = hps.load_model(checkpoint=MN)
    line = str(caught[0].message)
    assert len(caught) == 1 and "\n" not in line and model.provenance["sha256"] in line
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hps.load_model(checkpoint=MN)
        path.rename(tmp_path / "mine.pt")  # no published name: nothing to be told
        hps.load_model(tmp_path / "mine.pt", checkpoint=MN)


def test_known_sha256_is_no_first_load(tmp_path: Path) -> None:
    facts = replace(get_checkpoint(MN), sha256="0" * 64)
    path = put(tmp_path, released(MN), facts.file)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(path, facts)


def test_equal_files_of_two_stages_are_told(own_cache: Path) -> None:
    for name in ("m2d.ssl", "m2d.weak"):
        put(own_cache, released("m2d.ssl"), get_checkpoint(name).file)
    (own_cache / "M2D_weak.pt").write_bytes((own_cache / "M2D_ssl.pt").read_bytes())
    with pytest.warns(UserWarning, match="first load of M2D_ssl.pt"):
        load(own_cache / "M2D_ssl.pt", "m2d.ssl")
    with pytest.warns(UserWarning) as caught:
        load(own_cache / "M2D_weak.pt", "m2d.weak")
    assert any("M2D_weak.pt has the bytes of M2D_ssl.pt" in str(w.message) for w in caught)
