"""Reference models of EfficientSED's reference data: rule-made weights, names, golden arrays.

`python -m tests.efficient_rule SHARED` makes tests/golden/efficient from the reference data.
"""

from __future__ import annotations

import json
import sys
import zlib
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from hear_pretrainedsed.checkpoints import load_weights
from hear_pretrainedsed.model import SEDModel, build_checkpoint
from hear_pretrainedsed.registry import Checkpoint
from hear_pretrainedsed.rule_weights import published_names

GOLDEN = Path(__file__).parent / "golden" / "efficient"
LABELS = "audioset_strong_train"
PREFIX = "model.fmn."

#: name -> (trained parameters, constants, MACs of backbone, sequence model and heads), published
MODELS = {
    "fmn04": (860_318, 0, 181_127_808, 0, 43_083_648),
    "fmn06": (1_615_022, 0, 376_283_840, 0, 64_625_472),
    "fmn10": (3_830_798, 0, 947_371_200, 0, 107_709_120),
    "fmn20": (13_359_254, 0, 3_624_218_496, 0, 215_418_240),
    "fmn30": (28_574_734, 0, 8_030_530_368, 0, 323_127_360),
    "fmn10+tf-256": (5_028_254, 32, 947_371_200, 455_680_000, 28_722_432),
    "fmn10+attn-256": (3_976_350, 32, 947_371_200, 193_536_000, 28_722_432),
    "fmn10+gru-256": (6_483_854, 0, 947_371_200, 761_856_000, 57_444_864),
    "fmn10+tcn-256": (7_389_838, 0, 947_371_200, 1_093_238_784, 28_722_432),
    "fmn10+hybrid-256": (5_810_702, 0, 947_371_200, 651_264_000, 28_722_432),
    "fmn10+mamba-256": (4_310_206, 0, 947_371_200, 404_423_680, 28_722_432),
    "fmn04+tf-104": (912_022, 26, 181_127_808, 75_088_000, 11_668_488),
    "fmn06+hybrid-160": (2_259_518, 0, 376_283_840, 253_440_000, 17_951_520),
}
#: those whose batch-norm statistics are small enough to be kept in tests/golden
KEPT = tuple(name for name in MODELS if name.split("+")[0] not in ("fmn20", "fmn30"))


def rule_value(name: str, shape: tuple[int, ...]) -> Tensor:
    """The tensor that the reference data's rule gives a name: a scaled standard normal."""
    last = name.rsplit(".", 1)[-1]
    if last == "num_batches_tracked":
        return torch.zeros(shape, dtype=torch.int64)
    n = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode()))).standard_normal(shape)
    if last == "running_var":
        value = 0.5 + np.abs(n)
    elif last in ("weight_g", "D"):
        value = 1 + 0.1 * n
    elif last == "A_log":
        value = np.log(4) + 0.5 * n
    elif last == "dt_bias":
        value = -3 + 0.5 * n
    elif n.ndim >= 2:
        value = n / np.sqrt(float(np.prod(shape[1:])))
    elif "bias" in last or last == "running_mean":
        value = 0.1 * n
    else:
        value = 1 + 0.1 * n
    return torch.from_numpy(value.astype(np.float32))


def checkpoint(name: str) -> Checkpoint:
    """A strong checkpoint of a reference model, such as `fmn10.strong+tcn-256`."""
    backbone, plus, sequence = name.partition("+")
    return Checkpoint(f"{backbone}.strong{plus}{sequence}", "x.pt", "none", labels=LABELS)


def build(name: str) -> SEDModel:
    """The network without weights, as `load_model` builds it."""
    with torch.device("meta"):
        return build_checkpoint(checkpoint(name))


def rule_state(name: str, statistics: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rule-made weights under the names of the reference data, constants and aliases left out."""
    model = build(name)
    state = {}
    for here, there in published_names(model, PREFIX).items():
        prefix = "sequence_model."
        if here.startswith(prefix):
            there = "seq_model." + model.sequence_model.release_names(here[len(prefix) :])[0]
        state[there] = rule_value(there, tuple(model.state_dict()[here].shape))
    return state | statistics


def statistics(name: str, folder: Path | None) -> dict[str, Tensor]:
    """Batch-norm statistics, from the reference data or, without it, from the golden arrays."""
    backbone = name.split("+")[0]
    if folder is not None:
        return arrays(folder / f"{backbone}.bn.npz")
    kept = arrays(GOLDEN / "statistics.npz")
    start = f"{backbone}/"
    return {key[len(start) :]: value for key, value in kept.items() if key.startswith(start)}


@lru_cache(maxsize=1)
def reference_model(name: str, folder: Path | None) -> SEDModel:
    """The network with rule-made weights, loaded from a file; one is kept at a time."""
    import tempfile

    model = build(name)
    with tempfile.TemporaryDirectory() as where:
        path = Path(where) / "reference.pt"
        torch.save(rule_state(name, statistics(name, folder)), path)
        load_weights(model, path, checkpoint(name))
    return model.requires_grad_(False)


def arrays(path: Path) -> dict[str, Tensor]:
    """All arrays of an .npz."""
    with np.load(path) as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


def manifest(folder: Path, name: str) -> dict:
    """The manifest of a reference model, its tensors by name."""
    found = json.loads((folder / f"{name}.manifest.json").read_text())
    if isinstance(found["tensors"], list):
        found["tensors"] = {entry.pop("key"): entry for entry in found["tensors"]}
    return found


def gaps(found: Tensor, wanted: Tensor) -> tuple[float, float]:
    """Largest and mean difference in units of the reference's standard deviation."""
    assert found.shape == wanted.shape, (found.shape, wanted.shape)
    difference = (found.double() - wanted.double()).abs() / wanted.double().std(correction=0)
    return difference.max().item(), difference.mean().item()


def trace_modules(model: SEDModel, trace: dict[str, Tensor]) -> dict[str, nn.Module]:
    """Modules whose output the reference data sampled: its name -> the module here."""
    own = dict(model.named_modules())
    found = {}
    for name in trace:
        here = f"backbone.{name[len(PREFIX) :]}"
        if name.startswith("seq_model."):
            below = name[len("seq_model.") :]
            here = "sequence_model." + model.sequence_model.rename(below + ".").rstrip(".")
        if here in own:
            found[name] = own[here]
    return found


def first_difference(model: SEDModel, spec: Tensor, trace: dict[str, Tensor]) -> str:
    """Name of the first module whose output for clip 0 differs from the sampled one.

    The samples are of both clips in one batch: those of the first half belong to clip 0.
    """
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> object:
        def hook(_: nn.Module, __: object, output: Tensor | tuple[Tensor, ...]) -> None:
            outputs[name] = output if isinstance(output, Tensor) else output[0]

        return hook

    hooks = [m.register_forward_hook(keep(n)) for n, m in trace_modules(model, trace).items()]
    model.sequence_model(model.backbone(spec))
    for hook in hooks:
        hook.remove()
    for name, digest in trace.items():
        if name not in outputs:
            continue
        flat = outputs[name].flatten()
        places = torch.arange(64) * 2_654_435_761 % (2 * len(flat))
        mine = places < len(flat)
        gap = (flat[places[mine]] - digest[4:][mine]).abs().max() / digest[1]
        if gap > 1e-3:
            return f"first module that differs: {name} (gap {gap:.1e} std)"
    return "no sampled module differs"


def subsample(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the golden arrays keep of logits (classes, frames) and sequence (frames, dim)."""
    return {
        "strong": found["strong"][::9, ::10],
        "sequence": found["sequence"][::10, ::8],
        "weak": found["weak"],
    }


def make_golden(folder: Path) -> None:
    """Write tests/golden/efficient from the reference data's folder."""
    GOLDEN.mkdir(parents=True, exist_ok=True)
    outputs = {}
    for name in KEPT:
        found = arrays(folder / f"{name}.npz")
        sequence = found["seq_c0"] if "seq_c0" in found else found["backbone_c0"]
        kept = {"strong": found["strong_c0"], "sequence": sequence, "weak": found["weak"][0]}
        outputs |= {f"{name}/{key}": value.numpy() for key, value in subsample(kept).items()}
    widths = sorted({name.split("+")[0] for name in KEPT})
    norms = {f"{w}/{k}": v.numpy() for w in widths for k, v in statistics(w, folder).items()}
    np.savez_compressed(GOLDEN / "statistics.npz", **norms)
    np.savez_compressed(GOLDEN / "outputs.npz", **outputs)
    mel = arrays(folder / "frontend.npz")["mel_c0"].numpy()
    np.savez_compressed(GOLDEN / "spec.npz", clip0=mel)


if __name__ == "__main__":
    make_golden(Path(sys.argv[1]) / "parity_efficient")
