"""SEDModel -> ONNX: one 10 s window, spec (or audio) in, frames and what the head emits out.

The graph is what `torch.onnx.export` makes of the network, with batch norms folded as for inference
and two parts said otherwise: a bidirectional GRU is ONNX's own operator (the exporter would walk
through it frame by frame), and the way from tokens to the 40 ms grid, which is linear, one matrix.
A front end inside computes its Fourier transform by ONNX's DFT. The file's metadata say what it is,
and hold a hash of the file: `read_onnx` refuses one that no longer agrees with them.

ONNX's operator sets: https://onnx.ai/onnx/operators/.
"""

from __future__ import annotations

import copy
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

import hear_pretrainedsed
from hear_pretrainedsed.events import whole_file
from hear_pretrainedsed.frames import FrameGrid
from hear_pretrainedsed.frontends import SAMPLE_RATE
from hear_pretrainedsed.heads import NoHeadError
from hear_pretrainedsed.model import SEDModel
from hear_pretrainedsed.onnx_files import ExportError, OnnxFacts, require, write_facts
from hear_pretrainedsed.registry import CHECKPOINTS

if TYPE_CHECKING:
    from onnx import ModelProto

OPSET = 18
BATCH = "batch"  # name of the dynamic axis
#: largest and mean gap to PyTorch, in standard deviations of an output, by the graph's input
LIMITS = {"spec": (1e-3, 3e-5), "audio": (2e-1, 3e-3)}


def export_onnx(
    model: SEDModel, path: str | os.PathLike[str], *, from_audio: bool = False
) -> OnnxFacts:
    """Write `model` as an ONNX file, in float32 whatever `options` say; all or nothing.

    The graph takes spec (batch, 1, mels, spec_frames) of 10 s windows, or their audio
    (batch, 160000) with the front end inside, and gives `frames` (batch, 250, dim); with a head
    also `logits` (batch, 250, classes) and `weak_logits` (batch, classes), or `scores` and
    `weak_scores` where the head emits those. Batches may have any size. Before it is written it is
    checked: by ONNX's checker, and against PyTorch where onnxruntime is installed.

    Args:
        model: as `load_model` gives it; it is left as it is.
        path: the file; what is there is replaced once the new one is complete.
        from_audio: put the front end inside.

    Returns:
        What the file says about itself.

    Raises:
        ExportError: packages are missing, `path` cannot be a file, or the graph's outputs are
            further from PyTorch's than `LIMITS`.
        OSError: the file cannot be written.
    """
    path = Path(path)
    check_ready(path)
    whole = copy.deepcopy(model).cpu().float().eval().requires_grad_(False)
    with torch.no_grad():
        audio = example_audio(whole.grid, 2)
        given = {"audio": audio} if from_audio else {"spec": whole.frontend(audio)}
        outputs = window_outputs(whole, whole.frontend(audio))
        network = _Network(whole, given)
        proto = _traced(network, given, list(outputs))
    facts = _facts(whole, given, outputs)
    write_facts(proto, facts)
    content = proto.SerializeToString()
    _check(content, whole, *given)
    try:
        with whole_file(path) as file:
            file.write(content)
    except OSError as error:  # a full disk names no file by itself
        raise OSError(error.errno, error.strerror, str(path)) from error
    return facts


def check_ready(path: Path) -> None:
    """Refuse, before anything is loaded, what could only fail at the end."""
    require("onnx", "onnxscript")
    if path.is_dir():
        raise ExportError(f"cannot write {path}: it is a folder")
    if not path.parent.is_dir():
        raise ExportError(f"cannot write {path}: there is no folder {path.parent}")


def window_outputs(model: SEDModel, spec: Tensor) -> dict[str, Tensor]:
    """Spec of whole windows -> every output that the model has, by name, `frames` last."""
    tokens = model.backbone(spec)
    frames = model.sequence_model(model.grid.to_frames(tokens))
    found = {}
    if (head := model.head) is not None:
        kind = "logits" if head.emits == "logits" else "scores"
        direct = isinstance(model.sequence_model, nn.Identity)
        pooled = tokens if head.pools == "tokens" and direct else frames
        for name, part, x in ((kind, head, frames), (f"weak_{kind}", head.clip, pooled)):
            with suppress(NoHeadError):
                found[name] = part(x)
    return {**found, "frames": frames}


def example_audio(grid: FrameGrid, n: int) -> Tensor:
    """Noise in bursts of many levels (n, 160000), always the same."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(n, grid.window_frames, grid.hop_samples, generator=generator)
    level = 10 ** -(1 + 2 * torch.rand(n, grid.window_frames // 25, generator=generator))
    return (noise * level.repeat_interleave(25, dim=1)[..., None]).flatten(1).clamp(-1, 1)


# ---- the network as it is traced


class _Gru(nn.Module):
    """A bidirectional nn.GRU (batch first) as ONNX's operator; it is traced and never run."""

    def __init__(self, gru: nn.GRU) -> None:
        super().__init__()
        self.hidden, self.n_layers = gru.hidden_size, gru.num_layers

        def gates(name: str) -> Tensor:  # torch: reset, update, new; ONNX: update, reset, new
            reset, update, new = getattr(gru, name).chunk(3)
            return torch.cat([update, reset, new])

        for i in range(self.n_layers):
            ways = (f"l{i}", f"l{i}_reverse")
            for kind in ("ih", "hh"):
                both = torch.stack([gates(f"weight_{kind}_{way}") for way in ways])
                self.register_buffer(f"{kind}_{i}", both)
            biases = [torch.cat([gates(f"bias_{kind}_{w}") for kind in ("ih", "hh")]) for w in ways]
            self.register_buffer(f"bias_{i}", torch.stack(biases))

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        """Frames (batch, frames, inputs) -> (batch, frames, 2 hidden), and no state."""
        x = x.transpose(0, 1)
        facts = {"hidden_size": self.hidden, "direction": "bidirectional", "linear_before_reset": 1}
        for i in range(self.n_layers):
            weights = [getattr(self, f"{name}_{i}") for name in ("ih", "hh", "bias")]
            shape = (x.shape[0], 2, x.shape[1], self.hidden)
            y = torch.onnx.ops.symbolic(
                "GRU", (x, *weights), facts, dtype=x.dtype, shape=shape, version=OPSET
            )
            x = y.transpose(1, 2).flatten(2)
        return x.transpose(0, 1), None


class _Placing(nn.Module):
    """`FrameGrid.to_frames` for one number of tokens, as a matrix (frames, tokens)."""

    def __init__(self, grid: FrameGrid, n_tokens: int) -> None:
        super().__init__()
        identity = torch.eye(n_tokens)
        shares = grid.to_frames(identity[None])[0]
        self.register_buffer("shares", None if torch.equal(shares, identity) else shares)

    def to_frames(self, tokens: Tensor) -> Tensor:
        """Tokens (batch, tokens, dim) -> frames (batch, frames, dim)."""
        return tokens if self.shares is None else self.shares @ tokens


class _Network(nn.Module):
    """What is traced: `given` -> the values of `window_outputs`."""

    def __init__(self, model: SEDModel, given: dict[str, Tensor]) -> None:
        super().__init__()
        model = copy.deepcopy(model)
        spec = model.frontend(given["audio"]) if "audio" in given else given["spec"]
        self.frontend = model.frontend if "audio" in given else nn.Identity()
        model.grid = _Placing(model.grid, model.backbone(spec).shape[1])
        model.backbone = model.backbone.for_inference(torch.float32)
        model.backbone.to(memory_format=torch.contiguous_format)
        for module in list(model.modules()):
            for name, child in module.named_children():
                if isinstance(child, nn.GRU):
                    setattr(module, name, _Gru(child))
        self.model = model

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Spec or audio -> the outputs."""
        return tuple(window_outputs(self.model, self.frontend(x)).values())


def _traced(network: nn.Module, given: dict[str, Tensor], outputs: list[str]) -> ModelProto:
    """The network's ONNX graph, without what the exporter notes about this machine's files."""
    with _silence():
        program = torch.onnx.export(
            network,
            tuple(given.values()),
            dynamo=True,
            dynamic_shapes={"x": {0: torch.export.Dim(BATCH, min=1)}},
            input_names=list(given),
            output_names=outputs,
            opset_version=OPSET,
            verbose=False,
        )
    proto = program.model_proto
    if proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param != BATCH:
        raise ExportError("the batch came out fixed: a module takes the len() of a tensor")
    parts = (proto, proto.graph, *proto.graph.node, *proto.graph.value_info)
    for part in (*parts, *proto.graph.initializer, *proto.graph.input, *proto.graph.output):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    return proto


@contextmanager
def _silence() -> Iterator[None]:
    """No warnings of the exporter about itself."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


# ---- metadata


def _facts(model: SEDModel, given: dict[str, Tensor], outputs: dict[str, Tensor]) -> OnnxFacts:
    name = str(model.provenance.get("checkpoint", ""))
    folded = any(isinstance(module, nn.BatchNorm2d) for module in model.backbone.modules())
    grid, head = model.grid, [x for key, x in outputs.items() if key != "frames"]
    about = {
        "spec": f"of 10 s at {SAMPLE_RATE} Hz, as this model's front end gives it",
        "audio": f"10 s at {SAMPLE_RATE} Hz, in [-1, 1]; zeros after the end of a shorter clip",
        "frames": "frame i is centred at (i + 0.5) * hop_s",
        "logits": "of frames, before the sigmoid",
        "scores": "of frames, in 0..1",
        "weak_logits": "of the window, before the sigmoid",
        "weak_scores": "of the window, in 0..1",
    }

    def describe(tensors: dict[str, Tensor]) -> dict[str, str]:
        return {
            key: f"float32 ({', '.join(map(str, (BATCH, *x.shape[1:])))}): {about[key]}"
            for key, x in tensors.items()
        }

    return OnnxFacts(
        checkpoint=name,
        weights_sha256=str(model.provenance.get("sha256", "")),
        licence=CHECKPOINTS[name].licence if name in CHECKPOINTS else "",
        classes=model.labels if head else None,
        n_classes=head[0].shape[-1] if head else 0,
        thresholds=model.decoding.thresholds if model.decoding else None,
        median_frames=model.decoding.median_frames if model.decoding else None,
        windowing=model.options.windowing,
        sample_rate=SAMPLE_RATE,
        hop_s=grid.hop_s,
        window_s=grid.window_samples / SAMPLE_RATE,
        batch_norms="folded" if folded else "none",
        opset=OPSET,
        inputs=describe(given),
        outputs=describe(outputs),
        package_version=hear_pretrainedsed.__version__,
    )


# ---- against PyTorch


def gaps(content: bytes, model: SEDModel, n: int) -> dict[str, tuple[float, float]]:
    """How far an ONNX graph's outputs are from those of the plain module, for a batch of `n`.

    Returns:
        output -> largest and mean difference, in standard deviations of PyTorch's output.
    """
    from onnxruntime import InferenceSession, SessionOptions

    options = SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = InferenceSession(content, options, providers=["CPUExecutionProvider"])
    audio = example_audio(model.grid, n)
    with torch.no_grad():
        spec = model.frontend(audio)
        wanted = window_outputs(model, spec)
    given = {"spec": spec, "audio": audio}
    names = [node.name for node in session.get_inputs()]
    found = session.run(list(wanted), {name: given[name].numpy() for name in names})
    result = {}
    for (name, reference), value in zip(wanted.items(), found, strict=True):
        if value.shape != tuple(reference.shape):
            raise ExportError(
                f"the ONNX graph gives {name} as {value.shape}, not {reference.shape}"
            )
        gap = (torch.from_numpy(value) - reference).abs() / reference.std().clamp(min=1e-12)
        result[name] = (gap.max().item(), gap.mean().item())
    return result


def _check(content: bytes, model: SEDModel, given: str) -> None:
    """ONNX's checker, then onnxruntime against PyTorch, with one window and with three."""
    import onnx

    onnx.checker.check_model(content)
    if find_spec("onnxruntime") is None:
        warnings.warn("onnxruntime is not installed: the ONNX graph was not run", stacklevel=3)
        return
    largest_allowed, mean_allowed = LIMITS[given]
    for n in (1, 3):
        for name, (largest, mean) in gaps(content, model, n).items():
            if not (largest <= largest_allowed and mean <= mean_allowed):
                raise ExportError(
                    f"the ONNX graph's {name} differ from PyTorch's by up to {largest:.1e} and by "
                    f"{mean:.1e} on average, in standard deviations, with {n} windows; allowed are "
                    f"{largest_allowed} and {mean_allowed}: nothing is written"
                )
