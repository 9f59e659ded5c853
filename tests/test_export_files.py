"""What export.py writes and onnx_files.py reads: metadata, changed files, accidents."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from hear_pretrainedsed import export
from hear_pretrainedsed.decoding import Decoding
from hear_pretrainedsed.export import OPSET, export_onnx
from hear_pretrainedsed.onnx_files import HASH_KEY, ExportError, read_onnx
from hear_pretrainedsed.registry import get_checkpoint
from tests.export_models import LABELS, clips, needs_onnx, small


@pytest.fixture(autouse=True)
def one_thread(few_threads: None) -> None:
    """Tracing is Python: a second thread of torch would only wait."""
    torch.set_num_threads(1)


# ---- what is written


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A small model, its file, and what the file says."""
    torch.set_num_threads(1)  # `one_thread` comes later
    model = small()
    model.provenance = {"checkpoint": "fmn04.strong", "sha256": "ab" * 32}
    model.decoding = Decoding((0.25, 0.5, 0.75), (1, 3, 5))
    model.options = replace(model.options, windowing="overlap")
    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    return SimpleNamespace(model=model, path=path, facts=export_onnx(model, path))


@needs_onnx
@pytest.mark.slow
def test_metadata(exported: SimpleNamespace) -> None:
    from onnxruntime import InferenceSession

    facts = exported.facts
    assert facts == read_onnx(exported.path)
    assert (facts.checkpoint, facts.weights_sha256) == ("fmn04.strong", "ab" * 32)
    assert facts.licence == get_checkpoint("fmn04.strong").licence
    assert facts.classes == LABELS and facts.n_classes == 3
    assert (facts.thresholds, facts.median_frames) == ((0.25, 0.5, 0.75), (1, 3, 5))
    assert facts.windowing == "overlap"
    assert (facts.sample_rate, facts.hop_s, facts.window_s) == (16_000, 0.04, 10.0)
    assert facts.inputs["spec"].startswith("float32 (batch, 1, 128, 1000): ")
    assert facts.outputs["logits"].startswith("float32 (batch, 250, 3): ")
    assert facts.opset == OPSET
    # what a user of onnxruntime alone sees
    session = InferenceSession(exported.path)
    told = session.get_modelmeta().custom_metadata_map
    assert json.loads(told["classes"]) == list(LABELS) and told["hop_s"] == "0.04"


@needs_onnx
@pytest.mark.slow
def test_nothing_of_this_machine_is_in_the_file(exported: SimpleNamespace) -> None:
    content = exported.path.read_bytes()
    for word in (b"site-packages", b"stack_trace", str(Path(__file__).parents[1]).encode()):
        assert word not in content


@needs_onnx
@pytest.mark.slow
def test_the_model_is_left_as_it_was_and_the_file_is_always_the_same(tmp_path: Path) -> None:
    model = small("gru").train().requires_grad_(True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    kinds = {name: type(module) for name, module in model.named_modules()}
    export_onnx(model, tmp_path / "a.onnx")
    assert model.training and all(x.requires_grad for x in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert {name: type(module) for name, module in model.named_modules()} == kinds
    export_onnx(model, tmp_path / "b.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


# ---- files that do not match their metadata


def entry(proto: object, key: str) -> object:
    return next(entry for entry in proto.metadata_props if entry.key == key)


def fewer_classes(proto: object) -> None:
    entry(proto, "classes").value = json.dumps(LABELS[:2])


def other_count(proto: object) -> None:
    entry(proto, "classes").value = json.dumps(LABELS[:2])
    entry(proto, "n_classes").value = "2"


def swapped_classes(proto: object) -> None:
    entry(proto, "classes").value = json.dumps(LABELS[::-1])


def other_weight(proto: object) -> None:
    tensor = max(proto.graph.initializer, key=lambda x: len(x.raw_data))
    tensor.raw_data = bytes([tensor.raw_data[0] ^ 1]) + tensor.raw_data[1:]


def other_operator(proto: object) -> None:
    next(node for node in proto.graph.node if node.op_type == "Relu").op_type = "Abs"


def other_opset(proto: object) -> None:
    next(x for x in proto.opset_import if x.domain == "").version = 17


def other_output(proto: object) -> None:
    proto.graph.output[0].name = "scores"


def no_hash(proto: object) -> None:
    entry(proto, HASH_KEY).key = "other"


def no_json(proto: object) -> None:
    entry(proto, "hop_s").value = "0.04 s"


def other_type(proto: object) -> None:
    entry(proto, "sample_rate").value = '"16000"'


@needs_onnx
@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (fewer_classes, "no longer matches its metadata: it names 2 classes of 3"),
        (other_count, "no longer matches its metadata: logits has 3 classes, and 2 are recorded"),
        (other_opset, r"no longer matches its metadata: its opset is \[17\], and 18 is recorded"),
        (other_output, "its outputs are scores, weak_logits, frames, and logits, weak_logits, fr"),
        (
            swapped_classes,
            "was changed after its export: the sha256 of its content is",
        ),
        (other_weight, "was changed after its export"),
        (other_operator, "was changed after its export"),
        (no_hash, "was not written by `export`, or has lost its metadata: it has no content_sha2"),
        (no_json, "its metadata cannot be read"),
        (other_type, "its metadata cannot be read: sample_rate is"),
    ],
)
def test_changed_files_are_refused(
    exported: SimpleNamespace, tmp_path: Path, change: Callable[[object], None], message: str
) -> None:
    import onnx

    proto = onnx.load(exported.path)
    change(proto)
    path = tmp_path / "changed.onnx"
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(ExportError, match=message) as caught:
        read_onnx(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@needs_onnx
@pytest.mark.slow
def test_files_that_are_no_onnx_files(exported: SimpleNamespace, tmp_path: Path) -> None:
    content = exported.path.read_bytes()
    wrong = {
        "cut.onnx": (content[: len(content) // 2], "cut off or damaged"),
        "text.onnx": (b"these are words, no graph", "no ONNX file"),
        "empty.onnx": (b"", "was not written by `export`"),
    }
    for name, (start, message) in wrong.items():
        (tmp_path / name).write_bytes(start)
        with pytest.raises(ExportError, match=message):
            read_onnx(tmp_path / name)
    with pytest.raises(ExportError, match="there is no such file"):
        read_onnx(tmp_path / "none.onnx")
    with pytest.raises(ExportError, match="cannot be read: Is a directory"):
        read_onnx(tmp_path)


# ---- accidents: nothing is written half


@pytest.fixture
def traced(exported: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph is not traced again, but taken from `exported`."""
    import onnx

    def again(*_: object) -> object:
        proto = onnx.load(exported.path)
        del proto.metadata_props[:]
        return proto

    monkeypatch.setattr(export, "_traced", again)


@needs_onnx
@pytest.mark.slow
def test_full_disk(
    exported: SimpleNamespace, traced: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"the old one")

    class Full(BytesIO):
        def write(self, content: bytes) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    def full(part: Path, mode: str) -> Full:
        part.touch()
        return Full()

    monkeypatch.setattr("hear_pretrainedsed.events.open", full, raising=False)
    with pytest.raises(OSError, match="No space left on device") as caught:
        export_onnx(exported.model, path)
    assert caught.value.filename == str(path)
    assert [x.name for x in tmp_path.iterdir()] == ["m.onnx"]
    assert path.read_bytes() == b"the old one"


@needs_onnx
@pytest.mark.slow
def test_a_graph_that_computes_something_else_is_not_written(
    exported: SimpleNamespace, traced: None, tmp_path: Path
) -> None:
    other = small()
    with torch.no_grad():
        other.head.strong.bias[1] += 0.01 * other.logits(clips(1)).std()
    with pytest.raises(ExportError, match="logits differ from PyTorch's by up to .* with 1 window"):
        export_onnx(other, tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


@needs_onnx
@pytest.mark.slow
def test_without_onnxruntime_the_file_is_written_with_a_warning(
    exported: SimpleNamespace, traced: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    with pytest.warns(UserWarning, match="onnxruntime is not installed: the ONNX graph was not r"):
        export_onnx(exported.model, tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").read_bytes() == exported.path.read_bytes()
