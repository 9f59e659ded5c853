"""ATST-SED: both front ends, the network and its scores, against the original's numbers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hear_pretrainedsed.backbones.atst_sed import AtstSedMel, split
from hear_pretrainedsed.complexity import complexity
from hear_pretrainedsed.events import scores_to_events
from hear_pretrainedsed.frames import FrameGrid
from hear_pretrainedsed.registry import get_checkpoint, read_labels
from hear_pretrainedsed.rule_weights import published_names
from tests.atst_sed_reference import (
    DESED,
    GOLDEN,
    build,
    floored_over_batch,
    golden_outputs,
    pack,
    pure_rule,
    reference_model,
    reference_value,
)
from tests.efficient_rule import arrays, gaps, manifest

LIMIT = 5e-5  # of a posterior, in standard deviations, from stored inputs
ATST_LIMIT, CRNN_LIMIT = 3e-4, 1e-4  # of the two specs
N_PARAMETERS = 86_646_500


@pytest.fixture(scope="module", autouse=True)
def weights() -> Iterator[None]:
    """Weights of 350 MB go when these tests are done."""
    yield
    reference_model.cache_clear()
    pure_rule.cache_clear()


@pytest.fixture(autouse=True)
def one_thread(few_threads: None) -> None:
    """Where more are wanted, the test says so."""
    torch.set_num_threads(1)


@pytest.fixture
def folder(shared: Path) -> Path:
    return shared / "parity_efficient"


@pytest.fixture
def reference(folder: Path) -> dict[str, Tensor]:
    return arrays(folder / "atst_sed.npz")


@pytest.fixture
def audio(folder: Path) -> Tensor:
    return arrays(folder / "audio_10s.npz")["audio"]


@pytest.fixture
def stored(reference: dict[str, Tensor]) -> Tensor:
    """Clip 0 as the reference stored it."""
    return pack(reference["atst_input_c0"], reference["crnn_input_c0"])


@pytest.fixture
def both(stored: Tensor, audio: Tensor) -> Tensor:
    """Both clips in a batch, as the original has them: of clip 1 only every 5th frame is stored."""
    return torch.cat([stored, floored_over_batch(AtstSedMel()(audio))[1:]])


def check(found: Tensor, wanted: Tensor, limit: float = LIMIT) -> None:
    largest, _ = gaps(found, wanted)
    assert largest <= limit, f"max {largest:.1e} std"


# ---- names, size, classes ----


def test_names_shapes_and_size(folder: Path) -> None:
    model, facts = build(), manifest(folder, "atst_sed")
    names = published_names(model, "")
    found = {names[k]: list(v.shape) for k, v in model.state_dict().items()}
    assert found == {k: entry["shape"] for k, entry in facts["tensors"].items()}
    assert len(found) == 223 and set(names.values()) == set(found)
    parts = {"atst": "atst_frame", "cnn": "cnn", "rnn": "rnn", "cat_tf": "cat_tf"}
    body = {k: getattr(model.backbone, part) for k, part in parts.items()} | {"heads": model.head}
    size = {k: sum(p.numel() for p in part.parameters()) for k, part in body.items()}
    assert size | {"total": model.n_parameters} == facts["parameters"]


def test_size_and_cost(folder: Path) -> None:
    cost = complexity(get_checkpoint(DESED))
    facts = manifest(folder, "atst_sed")
    assert cost.parameters == N_PARAMETERS
    assert cost.macs_with_attention == facts["macs_per_10s_clip"] == 23_370_260_480
    assert cost.attention == facts["by_operator"]["aten.bmm"]
    transformer = complexity(get_checkpoint("atst_f.ssl"))
    assert transformer.macs_with_attention == facts["macs_atst"]


def test_rule_is_the_reference_datas(folder: Path) -> None:
    """The formulas, kind by kind; the whole network agrees only if all names do as well."""
    kinds = {entry["kind"]: (k, entry["shape"]) for k, entry in
             reversed(manifest(folder, "atst_sed")["tensors"].items())}  # fmt: skip
    assert set(kinds) == {"matrix", "bias", "norm_weight", "bn_mean", "bn_var", "counter", "table"}
    name, shape = kinds["table"]
    assert reference_value(name, tuple(shape)).std().item() == pytest.approx(0.1, rel=0.05)


def test_classes_are_the_original_ones(folder: Path) -> None:
    cases = json.loads((folder / "atst_sed.cases.json").read_text())
    assert list(read_labels("desed")) == cases["label_encoding"]["classes"]
    assert list(read_labels("desed")) == list(cases["median"]["stage2"]["windows"])


# ---- front ends ----


def test_windows_and_filters(folder: Path) -> None:
    constants, frontend = arrays(folder / "constants.npz"), AtstSedMel()
    for name in ("atst", "crnn"):
        part = getattr(frontend, name)
        torch.testing.assert_close(part.window, constants[f"{name}/window"])
        wanted = constants[f"{name}/mel_basis"]
        torch.testing.assert_close(part.filters, wanted, atol=2e-5, rtol=0)


@pytest.mark.parametrize("one_by_one", [False, True])
def test_inputs(reference: dict[str, Tensor], audio: Tensor, one_by_one: bool) -> None:
    frontend = AtstSedMel()
    parts = audio.split(1) if one_by_one else (audio,)
    spec = torch.cat([frontend(part) for part in parts])
    assert spec.shape == (2, 1, 192, 1001) and not spec[:, :, 64:, 626:].any()
    atst, crnn = (part[:, 0] for part in split(floored_over_batch(spec)))
    for found, name, limit in ((atst, "atst", ATST_LIMIT), (crnn, "crnn", CRNN_LIMIT)):
        for clip, step in ((0, 1), (1, 5)):
            wanted = reference[f"{name}_input_c{clip}"]
            assert found[clip, :, ::step].shape == wanted.shape
            assert (found[clip, :, ::step] - wanted).abs().max() <= limit, (name, clip)


def test_a_loud_neighbour_changes_the_originals_spec_and_not_ours(
    reference: dict[str, Tensor], audio: Tensor
) -> None:
    pair = torch.stack([audio[0], 1e-4 * audio[1]])
    spec = AtstSedMel()(pair)
    quiet = spec[1, 0, :64, ::20]
    assert (quiet - reference["coupling/quiet_alone"]).abs().max() <= ATST_LIMIT
    original = floored_over_batch(spec)
    in_batch = original[1, 0, :64, ::20]
    assert (in_batch - reference["coupling/quiet_in_batch"]).abs().max() <= ATST_LIMIT
    assert (in_batch - quiet).abs().max() > 0.1
    assert torch.equal(original[0], spec[0]) and torch.equal(original[:, :, 64:], spec[:, :, 64:])


# ---- the network ----


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("folded", [False, True])
def test_from_the_stored_inputs(
    folder: Path, reference: dict[str, Tensor], stored: Tensor, folded: bool, threads: int
) -> None:
    torch.set_num_threads(threads)
    model = reference_model(folder)
    tokens = (model.inference_parts()[0] if folded else model.backbone)(stored)
    assert tokens.shape == (1, 156, 256)
    check(model.head(tokens)[0].T, reference["strong"][0])
    check(model.head.clip(tokens)[0], reference["weak"][0])


@pytest.mark.slow
def test_every_module_on_the_way(folder: Path, reference: dict[str, Tensor], both: Tensor) -> None:
    """Mean, deviation, minimum, maximum and 64 samples of what each module gives; both clips."""
    model = reference_model(folder)
    modules = dict(model.backbone.named_modules())
    modules |= {"rnn": modules["rnn.rnn"], "dense": model.head.strong}
    modules |= {"dense_softmax": model.head.weak}
    wanted = [k.removeprefix("trace/") for k in reference if k.startswith("trace/")]
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> object:
        def hook(_: nn.Module, __: object, y: Tensor | tuple[Tensor, Tensor]) -> None:
            outputs[name] = y if isinstance(y, Tensor) else y[0]

        return hook

    hooks = [modules[k].register_forward_hook(keep(k)) for k in wanted]
    tokens = model.backbone(both)
    weak = model.head.clip(tokens)
    for hook in hooks:
        hook.remove()
    shapes = manifest(folder, "atst_sed")["trace_shapes"]
    assert len(wanted) == 46 and {k: list(v.shape) for k, v in outputs.items()} == shapes
    for name in wanted:
        x = outputs[name].double().flatten()
        places = torch.arange(64) * 2_654_435_761 % len(x)
        facts = torch.stack([x.mean(), x.std(correction=0), x.min(), x.max()])
        found, digest = torch.cat([facts, x[places]]), reference[f"trace/{name}"].double()
        gap = (found - digest).abs().max() / digest[1]
        assert gap < 1e-4, f"first module that differs: {name} ({gap:.1e} std)"
    embedding = outputs["atst_frame.atst.norm_frame"][0].T[:, ::5]
    check(embedding, reference["atst_embedding_c0_every5"])
    check(model.head(tokens).transpose(1, 2), reference["strong"])
    check(weak, reference["weak"])


@pytest.mark.slow
def test_pure_rule(reference: dict[str, Tensor], both: Tensor) -> None:
    model = pure_rule()
    tokens = model.backbone(both)
    check(model.head(tokens).transpose(1, 2), reference["rule/strong"])
    check(model.head.clip(tokens), reference["rule/weak"])


@pytest.mark.slow
def test_the_inference_script_gives_the_transformer_plain_power(
    folder: Path, reference: dict[str, Tensor], stored: Tensor, audio: Tensor
) -> None:
    """The original's stand-alone script leaves out dB and range; here they are always there."""
    model = reference_model(folder)
    split(stored)[0][:, 0] = model.frontend.atst.linear(audio[:1]).transpose(1, 2)
    tokens = model.backbone(stored)
    found = model.head(tokens).transpose(1, 2)
    check(found, reference["variant_inference_script/strong_c0"])
    check(model.head.clip(tokens), reference["variant_inference_script/weak_c0"])
    assert (found[0] - reference["strong"][0]).abs().max() > 0.38


@pytest.mark.slow
def test_from_audio(folder: Path, reference: dict[str, Tensor], audio: Tensor) -> None:
    """Clip 0 has the batch's loudest sound, so that its neighbour leaves the original alone.

    Clip 1 differs by the original's floor over the batch, which is 3 dB above its own.
    """
    model = reference_model(folder)
    for clip, limit in ((0, LIMIT), (1, 2e-3)):
        alone = audio[clip : clip + 1]
        check(model.head(model.tokens(alone))[0].T, reference["strong"][clip], limit)
        check(model.weak_scores(alone)[0], reference["weak"][clip], limit)
    tokens = model.inference_parts()[0](floored_over_batch(model.frontend(audio)))
    check(model.head(tokens).transpose(1, 2), reference["strong"])
    check(model.head.clip(tokens), reference["weak"])


@pytest.mark.slow
def test_scores_of_frames_lie_between_those_of_the_steps(
    folder: Path, reference: dict[str, Tensor], audio: Tensor
) -> None:
    """Frame centres at 40 ms among step centres at 64 ms, linear before the sigmoid."""
    model = reference_model(folder)
    scores = model.scores(audio[:1])[0].double().numpy()
    steps = reference["strong"][0].double().numpy()
    logits = np.log(steps / (1 - steps))
    at, centres = (np.arange(250) + 0.5) * 0.04, (np.arange(156) + 0.5) * 0.064
    wanted = np.stack([1 / (1 + np.exp(-np.interp(at, centres, x))) for x in logits], axis=1)
    assert np.abs(scores - wanted).max() < 1e-5
    assert model.labels == read_labels("desed")


# ---- decoding ----


def active(row: Tensor, size: int, threshold: float) -> list[tuple[int, int]]:
    """Runs of steps above a threshold after a median filter, by this project's decoder."""
    hop_s = FrameGrid().hop_s
    events = scores_to_events(row[:, None], ["x"], median_frames=size, threshold=threshold)
    return [(round(event.onset_s / hop_s), round(event.offset_s / hop_s)) for event in events]


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_median_filters_and_events(folder: Path, reference: dict[str, Tensor], stage: str) -> None:
    """The original's windows, one a class, on its grid of 64 ms: filtered scores and events."""
    facts = json.loads((folder / "atst_sed.cases.json").read_text())["median"][stage]
    events, rows = [], reference["median/scores"]
    for i, (label, size) in enumerate(facts["windows"].items()):
        for threshold in np.linspace(0.02, 0.98, 25).round(2):
            found = torch.zeros(156, dtype=torch.bool)
            for first, end in active(rows[i], size, threshold):
                found[first:end] = True
            assert torch.equal(found, reference[f"median/{stage}"][i] > float(threshold)), label
        events += [(label, 0.064 * a, 0.064 * b) for a, b in active(rows[i], size, 0.5)]
    wanted = facts["events_at_0.5"]
    assert [event[0] for event in events] == [event[0] for event in wanted]
    np.testing.assert_allclose([e[1:] for e in events], [e[1:] for e in wanted], atol=1e-9)


# ---- without the reference data ----


@pytest.mark.slow
def test_golden_outputs() -> None:
    """Kept when this network agreed with the reference data."""
    kept = arrays(GOLDEN)
    for name, found in golden_outputs().items():
        check(found, kept[name], 1e-4)
    assert (kept["strong"][0] - kept["strong"][1]).abs().max() > 0.2
