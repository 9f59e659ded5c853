"""Frame MobileNets fmn04 to fmn30 and the six sequence models against EfficientSED's reference.

Limits: section 3 of the reference data's README, in units of the output's standard deviation.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hear_pretrainedsed.complexity import count
from hear_pretrainedsed.model import SEDModel
from hear_pretrainedsed.rule_weights import write_release_file
from tests.efficient_rule import (
    GOLDEN,
    KEPT,
    MODELS,
    arrays,
    build,
    checkpoint,
    first_difference,
    gaps,
    manifest,
    reference_model,
    subsample,
)

FROM_SPEC, FROM_AUDIO, WEAK = (1e-3, 3e-5), (2e-1, 3e-3), (1e-4, 1e-4)


def check(
    where: str,
    found: Tensor,
    wanted: Tensor,
    limits: tuple[float, float],
    why: Callable[[], str] = str,
) -> None:
    largest, mean = gaps(found, wanted)
    assert largest <= limits[0] and mean <= limits[1], (
        f"{where}: max {largest:.1e}, mean {mean:.1e} std (limits {limits}) {why()}"
    )


def outputs(model: SEDModel, spec: Tensor, *, folded: bool = False) -> dict[str, Tensor]:
    """From spec to every output that is compared, logits as (batch, classes, frames).

    `folded`: as inference computes them, batch norms folded into convolutions.
    """
    plain = (model.backbone, model.sequence_model)
    backbone, sequence_model = model.inference_parts() if folded else plain
    with torch.no_grad():
        tokens = backbone(spec)
        frames = sequence_model(model.grid.to_frames(tokens))
        strong = model.head(frames).transpose(1, 2)
        weak = model.head.clip(frames)
    return {"backbone": tokens, "sequence": frames, "strong": strong, "weak": weak}


@pytest.fixture(scope="module", params=MODELS)
def name(request: pytest.FixtureRequest) -> str:
    """Each reference model in turn: module-wide, so that its weights are made once."""
    return request.param


@pytest.fixture(autouse=True)
def one_thread(few_threads: None) -> None:
    """Where more are wanted, the test says so."""
    torch.set_num_threads(1)


@pytest.fixture
def folder(shared: Path) -> Path:
    return shared / "parity_efficient"


def wanted(folder: Path, name: str) -> dict[str, Tensor]:
    """Reference outputs of a model under one set of names, clip 0 without its number."""
    found = arrays(folder / f"{name}.npz")
    for clip in "01":
        found.setdefault(f"seq_c{clip}", found[f"backbone_c{clip}"])
    return found


@pytest.mark.slow
def test_agrees_from_the_stored_spec(name: str, folder: Path) -> None:
    model, reference = reference_model(name, folder), wanted(folder, name)
    stored = arrays(folder / "frontend.npz")["mel_c0"][None, None]
    audio = arrays(folder / "audio_10s.npz")["audio"]
    both = torch.cat([stored, model.frontend(audio[1:])])
    step = {"backbone": 25 if "+" in name else 2 if name == "fmn30" else 1}
    step["sequence"] = 2 if name == "fmn30" else 1
    trace = {k[6:]: v for k, v in reference.items() if k.startswith("trace/")}
    for spec, threads, folded in (
        (stored, 1, False),
        (stored, 2, False),
        (both, 1, False),
        (stored, 1, True),
    ):
        torch.set_num_threads(threads)
        found = outputs(model, spec, folded=folded)
        for key, stem in (("backbone", "backbone"), ("sequence", "seq"), ("strong", "strong")):
            check(
                f"{name} {key}, batch of {len(spec)}, {threads} threads, folded: {folded}",
                found[key][0][:: step.get(key, 1)],
                reference[f"{stem}_c0"],
                FROM_SPEC,
                lambda: first_difference(model, stored, trace),
            )
        check(f"{name} weak", found["weak"][0], reference["weak"][0], WEAK)


def test_sampled_modules_agree(name: str, folder: Path) -> None:
    found = arrays(folder / f"{name}.npz")
    trace = {key[6:]: value for key, value in found.items() if key.startswith("trace/")}
    spec = arrays(folder / "frontend.npz")["mel_c0"][None, None]
    model = reference_model(name, folder)
    with torch.no_grad():
        assert first_difference(model, spec, trace) == "no sampled module differs"
        backbone = dict(model.backbone.named_parameters())
        backbone["features.5.block.1.0.weight"].mul_(1.01)
        assert "model.fmn.features.5 " in first_difference(model, spec, trace)
        backbone["features.5.block.1.0.weight"].div_(1.01)


@pytest.mark.slow
def test_agrees_from_audio(name: str, folder: Path) -> None:
    model, reference = reference_model(name, folder), wanted(folder, name)
    audio = arrays(folder / "audio_10s.npz")["audio"]
    found = outputs(model, model.frontend(audio), folded=True)
    check(f"{name} logits", model.logits(audio).transpose(1, 2), found["strong"], FROM_SPEC)
    for clip in (0, 1):
        every = 5 if clip else 1
        check(
            f"{name} strong, clip {clip}",
            found["strong"][clip, :, ::every],
            reference[f"strong_c{clip}"],
            FROM_AUDIO,
        )
        every = 5 if clip else 2 if name == "fmn30" else 1
        check(
            f"{name} sequence, clip {clip}",
            found["sequence"][clip, ::every],
            reference[f"seq_c{clip}"],
            FROM_AUDIO,
        )
    check(f"{name} weak", found["weak"], reference["weak"], FROM_AUDIO)


def test_names_and_shapes_are_the_published_ones(
    name: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "hear_pretrainedsed.rule_weights.get_checkpoint", lambda name: checkpoint(name)
    )
    written = torch.load(write_release_file(name, tmp_path / "x.pt"), weights_only=True)
    facts = manifest(folder, name)["tensors"]
    as_released = {k.replace("net.model.", "model.fmn.").removeprefix("net."): v.shape
                   for k, v in written.items()}  # fmt: skip
    assert as_released == {k: torch.Size(v["shape"]) for k, v in facts.items()}
    constants = {k: v for k, v in facts.items() if v["kind"] == "constant"}
    stored = arrays(folder / f"{name}.npz")
    for key in constants:
        if f"const/{key}" in stored:
            assert torch.equal(written[f"net.{key}"], stored[f"const/{key}"])


def test_parameters_and_macs(name: str) -> None:
    parameters, n_constants, *macs = MODELS[name]
    model = build(name)
    cost = count(model)
    assert cost.parameters == parameters
    assert [cost.backbone, cost.sequence_model, cost.head] == macs
    assert cost.macs == sum(macs)
    constants = model.sequence_model.constants() if "+" in name else {}
    assert sum(value.numel() for value in constants.values()) == n_constants


def test_parameters_and_macs_are_the_manifests(name: str, folder: Path) -> None:
    facts = manifest(folder, name)
    parameters, constants, *macs = MODELS[name]
    assert facts["parameters"]["trainable"] == parameters
    assert facts["parameters"]["total"] == parameters + constants
    parts = ("backbone", "sequence_model", "heads")
    assert [facts["macs"][part] for part in parts] == macs
    assert facts["macs"]["per_10s_clip_total"] == sum(macs)


@pytest.mark.parametrize("kept", KEPT)
def test_agrees_with_golden_arrays(kept: str) -> None:
    """What is left of the comparison in a plain clone: clip 0, subsampled."""
    spec = arrays(GOLDEN / "spec.npz")["clip0"][None, None]
    golden = arrays(GOLDEN / "outputs.npz")
    found = {key: value[0] for key, value in outputs(reference_model(kept, None), spec).items()}
    for key, value in subsample(found).items():
        limits = WEAK if key == "weak" else FROM_SPEC
        check(f"{kept} {key}", value, golden[f"{kept}/{key}"], limits)
