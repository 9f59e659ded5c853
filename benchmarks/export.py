"""Size and speed of exported models: onnxruntime against PyTorch, one 10 s window at a time.

    python -m benchmarks.export [NAME ...] [--threads 1 2] [--from-audio] [--rounds 5]

"plain" is the network as a plain module, "fast" what inference runs (folded, channels-last). All
three start from the spec; from audio, front end and all, with --from-audio. Weights are stand-ins
(a trained file has the same cost). The three ways are interleaved, beside the matrix-product peak
at that number of threads.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.measure import interleaved, machine, peak_gflops, spread
from hear_pretrainedsed.export import example_audio, export_onnx
from hear_pretrainedsed.model import SEDModel, build_checkpoint
from hear_pretrainedsed.registry import CHECKPOINTS
from hear_pretrainedsed.rule_weights import fill

NAMES = (
    "fmn04.strong",
    "fmn10.strong",
    "fmn10.strong+tf-256",
    "fmn10.strong+hybrid-256",
    "fmn10.strong+gru-256",
    "psla.weak-audioset",
    "atst_f.strong",
)
WAYS = ("onnxruntime", "fast", "plain")


def onnxruntime_way(path: Path, threads: int, audio: Tensor, spec: Tensor) -> Callable[[], object]:
    """A run of the exported file."""
    from onnxruntime import InferenceSession, SessionOptions

    options = SessionOptions()
    options.intra_op_num_threads = threads
    # Threads that wait busily would slow down what is measured next.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (node,) = session.get_inputs()
    given = {node.name: {"audio": audio, "spec": spec}[node.name].numpy()}
    return lambda: session.run(None, given)


def ways(
    model: SEDModel, path: Path, threads: int, from_audio: bool
) -> dict[str, Callable[[], object]]:
    """The three ways to frames and what the head makes of them."""
    audio = example_audio(model.grid, 1)
    spec = model.frontend(audio)

    def torch_way(backbone: torch.nn.Module, sequence: torch.nn.Module) -> Callable[[], object]:
        def run() -> object:
            tokens = backbone(model.frontend(audio) if from_audio else spec)
            frames = sequence(model.grid.to_frames(tokens))
            return frames, model.head and model.head(frames)

        return run

    found = (
        onnxruntime_way(path, threads, audio, spec),
        torch_way(*model.inference_parts()),
        torch_way(model.backbone, model.sequence_model),
    )
    return dict(zip(WAYS, found, strict=True))


def rows(name: str, threads: list[int], from_audio: bool, rounds: int) -> Iterator[list[str]]:
    """Cells of a checkpoint's rows, one for each number of threads."""
    with torch.device("meta"):
        model = build_checkpoint(CHECKPOINTS[name])
    model = fill(model).requires_grad_(False)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export_onnx(model, path, from_audio=from_audio)
        size = f"{path.stat().st_size / 1e6:.1f}"
        for n in threads:
            torch.set_num_threads(n)
            times = interleaved(ways(model, path, n, from_audio), rounds)
            middle = {way: statistics.median(values) for way, values in times.items()}
            ratios = [f"{middle[way] / middle['onnxruntime']:.2f}" for way in WAYS[1:]]
            cells = [spread([1000 * x for x in times[way]], 1) for way in WAYS]
            yield [name, size, str(n), *cells, *ratios, f"{peak_gflops(torch.float32):.0f}"]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=NAMES, metavar="NAME")
    parser.add_argument("--threads", nargs="+", type=int, default=(1, 2))
    parser.add_argument("--from-audio", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    kind = "audio" if arguments.from_audio else "spec"
    title = f"one 10 s window from {kind}, ms: median (range) of {arguments.rounds}\n{machine()}"
    heads = ["MB", "threads", *WAYS, "fast / ort", "plain / ort", "peak GFLOP/s"]
    table = Table("checkpoint", *heads, title=title, box=None)
    with torch.no_grad():
        for name in arguments.names:
            for cells in rows(name, arguments.threads, arguments.from_audio, arguments.rounds):
                table.add_row(*cells)
    Console(width=None if Console().is_terminal else 150).print(table)


if __name__ == "__main__":
    main()
