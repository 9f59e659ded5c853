"""export.py: onnxruntime against PyTorch, outputs, the command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from hear_pretrainedsed import cli, export, onnx_files
from hear_pretrainedsed.export import LIMITS, export_onnx
from hear_pretrainedsed.heads import AttentionHead, LinearHead
from hear_pretrainedsed.model import SEDModel, build_model
from hear_pretrainedsed.onnx_files import ExportError, read_onnx
from hear_pretrainedsed.registry import SEQUENCE_MODELS
from hear_pretrainedsed.rule_weights import fill
from tests.efficient_rule import gaps
from tests.efficient_rule import reference_model as efficient_model
from tests.export_models import LABELS, clips, cut, needs_onnx, small
from tests.reference import reference_model


@pytest.fixture(autouse=True)
def one_thread(few_threads: None) -> None:
    """Tracing is Python: a second thread of torch would only wait."""
    torch.set_num_threads(1)


def run_onnx(path: Path, x: Tensor) -> dict[str, Tensor]:
    """The file's outputs by name, by onnxruntime, for its only input."""
    from onnxruntime import InferenceSession, SessionOptions

    options = SessionOptions()
    options.intra_op_num_threads = 1
    session = InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    assert given.shape[0] == "batch" and given.shape[1:] == list(x.shape[1:])
    names = [node.name for node in session.get_outputs()]
    found = session.run(names, {given.name: x.numpy()})
    return {name: torch.from_numpy(y) for name, y in zip(names, found, strict=True)}


def compare(model: SEDModel, path: Path, kind: str, outputs: set[str]) -> None:
    """Outputs against the model's methods from audio: all for one window, frames for three."""
    for n, names in ((1, outputs), (3, {"frames"})):
        audio = clips(n)
        found = run_onnx(path, audio if kind == "audio" else model.frontend(audio))
        assert set(found) == outputs
        for name in names:
            largest, mean = gaps(found[name], getattr(model, name)(audio))
            limit = LIMITS[kind]
            assert largest <= limit[0] and mean <= limit[1], (name, n, largest, mean)


STRONG = {"logits", "weak_logits", "frames"}


# ---- against PyTorch, family by family


@needs_onnx
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["spec", "audio"])
def test_fmn(tmp_path: Path, kind: str) -> None:
    model = efficient_model("fmn04", None)  # statistics under which outputs react to everything
    facts = export_onnx(model, tmp_path / "m.onnx", from_audio=kind == "audio")
    assert facts.batch_norms == "folded" and list(facts.inputs) == [kind]
    compare(model, tmp_path / "m.onnx", kind, STRONG)


@needs_onnx
@pytest.mark.slow
@pytest.mark.parametrize("sequence", SEQUENCE_MODELS)
def test_sequence_models(tmp_path: Path, sequence: str) -> None:
    model = small(sequence)
    if sequence == "hybrid":  # one of its two layers: they unroll into hundreds of operators each
        model.sequence_model[1].layers = model.sequence_model[1].layers[:1]
    export_onnx(model, tmp_path / "m.onnx")
    compare(model, tmp_path / "m.onnx", "spec", STRONG)


@needs_onnx
@pytest.mark.slow
def test_psla_from_audio(tmp_path: Path) -> None:
    with torch.device("meta"):
        model = build_model("psla", head="multihead", labels=LABELS)
    model = fill(model).requires_grad_(False)
    export_onnx(model, tmp_path / "m.onnx", from_audio=True)
    compare(model, tmp_path / "m.onnx", "audio", {"scores", "weak_scores", "frames"})


@needs_onnx
@pytest.mark.slow
@pytest.mark.parametrize(("backbone", "n_blocks"), [("asit", 1), ("beats", 2)])
def test_short_transformers(tmp_path: Path, backbone: str, n_blocks: int) -> None:
    with torch.device("meta"):
        model = cut(build_model(backbone, head="linear", labels=LABELS), n_blocks)
    model = fill(model).requires_grad_(False)
    facts = export_onnx(model, tmp_path / "m.onnx", from_audio=True)
    assert facts.batch_norms == "none"
    compare(model, tmp_path / "m.onnx", "audio", STRONG)


@needs_onnx
@pytest.mark.slow
def test_whole_transformer(tmp_path: Path) -> None:
    model = reference_model("atst_f")
    export_onnx(model, tmp_path / "m.onnx")
    compare(model, tmp_path / "m.onnx", "spec", STRONG)


# ---- outputs


@needs_onnx
@pytest.mark.slow
def test_without_a_head_there_are_frames_only(tmp_path: Path) -> None:
    model = small()
    model.head = model.labels = None
    facts = export_onnx(model, tmp_path / "m.onnx")
    assert list(facts.outputs) == ["frames"]
    assert facts == read_onnx(tmp_path / "m.onnx")
    assert (facts.classes, facts.n_classes, facts.checkpoint, facts.licence) == (None, 0, "", "")
    compare(model, tmp_path / "m.onnx", "spec", {"frames"})


@pytest.mark.parametrize(
    ("head", "names"),
    [
        (LinearHead(16, 3), ["logits", "weak_logits", "frames"]),
        (LinearHead(16, 3, weak=False), ["logits", "frames"]),
        (LinearHead(16, 3, strong=False), ["weak_logits", "frames"]),
        (AttentionHead(16, 3), ["scores", "weak_scores", "frames"]),
    ],
)
def test_outputs_are_named_after_what_the_head_emits(head: nn.Module, names: list[str]) -> None:
    model = small(head=head)
    spec = model.frontend(clips(1))
    with torch.no_grad():
        found = export.window_outputs(model, spec)
    assert list(found) == names
    for name, value in found.items():
        assert torch.allclose(value, getattr(model, name)(clips(1)), atol=1e-5)


@needs_onnx
@pytest.mark.slow
def test_a_fixed_batch_is_an_error(tmp_path: Path) -> None:
    class Counting(LinearHead):
        def forward(self, frames: Tensor) -> Tensor:
            return super().forward(frames.reshape(len(frames), 250, 16))

    with pytest.raises(ExportError, match="the batch came out fixed"):
        export_onnx(small(head=Counting(16, 3)), tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


# ---- the command


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run the command in this process: (exit code, stdout, stderr)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            cli.main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return stop.value.code, out, err

    return call


@needs_onnx
@pytest.mark.slow
def test_command(
    run: Callable[..., tuple[int, str, str]], release_file: Callable[[str], Path], tmp_path: Path
) -> None:
    path = tmp_path / "m.onnx"
    weights = release_file("fmn04.strong")
    code, out, err = run("export", "fmn04.strong", "-o", path, "--weights", weights, "--from-audio")
    assert code == 0 and out == f"{path}\n"
    assert "Traceback" not in err and "torchvision" not in err
    code, out, _ = run("info", path)
    assert code == 0
    assert "checkpoint:      fmn04.strong\n" in out
    assert "input:           audio, float32 (batch, 160000): 10 s at 16000 Hz" in out
    path.write_bytes(path.read_bytes()[:-100])
    code, out, err = run("info", path)
    assert code == 2 and out == "" and len(err.splitlines()) == 1 and str(path) in err


@needs_onnx
@pytest.mark.parametrize(
    ("name", "out", "message"),
    [
        ("fmn04.strnog", "m.onnx", "did you mean 'fmn04.strong'"),
        ("fmn04.strong", "none/m.onnx", "there is no folder"),
        ("fmn04.strong", ".", "it is a folder"),
    ],
)
def test_command_with_mistakes(
    run: Callable[..., tuple[int, str, str]], tmp_path: Path, name: str, out: str, message: str
) -> None:
    code, printed, err = run("export", name, "-o", tmp_path / out)
    assert code == 2 and printed == "" and len(err.splitlines()) == 1 and message in err
    assert not list(tmp_path.iterdir())


def test_command_without_the_packages(
    run: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_files, "find_spec", lambda name: None)
    for arguments in (("export", "fmn04.strong", "-o", tmp_path / "m.onnx"), ("info", "m.onnx")):
        code, _, err = run(*arguments)
        assert code == 2 and len(err.splitlines()) == 1
        assert "onnx" in err and "pip install 'hear-pretrainedsed[export]'" in err
