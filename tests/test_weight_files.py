"""Files that hold no weights, or others: one clear line, nothing run, the model as it was."""

from __future__ import annotations

import builtins
import io
import os
import pickle
import random
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

import hear_pretrainedsed as hps
from hear_pretrainedsed.checkpoints import CheckpointError, load_weights
from hear_pretrainedsed.model import SEDModel, build_checkpoint
from hear_pretrainedsed.registry import get_checkpoint
from hear_pretrainedsed.weight_files import FACTS_KEY, read, read_saved
from tests.layouts import State, load, only, put, released, stand_in, under

MN = "frame_mn06.strong"
PAGE = b"\n<!DOCTYPE html><html><body>Please log in to continue</body></html>"


class Code:
    """A pickle that makes a file when it is read."""

    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return (os.mkdir, (str(self.made),))


@pytest.fixture(scope="module")
def model() -> SEDModel:
    """A model that has values, which no faulty file may change."""
    torch.manual_seed(0)
    model = build_checkpoint(get_checkpoint(MN))
    model.provenance = {"checkpoint": MN, "file": "before.pt"}
    return model


def refused(model: SEDModel, path: Path, checkpoint: str, says: str) -> str:
    """Load a faulty file; check the one line, and that nothing of the model has changed."""
    before = {k: v.clone() for k, v in model.state_dict().items()}
    parameters, provenance = list(model.parameters()), dict(model.provenance)
    with pytest.raises(CheckpointError, match=says) as caught:
        load_weights(model, path, get_checkpoint(checkpoint))
    assert model.state_dict().keys() == before.keys() and model.head.weak is not None
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert model.provenance == provenance
    line = str(caught.value)
    assert "\n" not in line and str(path) in line and checkpoint in line and len(line) < 900
    seen: list[BaseException | None] = [caught.value]
    while seen[-1] is not None:  # what a traceback would print
        assert "weights_only" not in str(seen[-1])
        last = seen[-1]
        seen.append(last.__cause__ or (None if last.__suppress_context__ else last.__context__))
    return line


def zipped(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "no weights")


def torchscript(path: Path) -> None:
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), path)


def written(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def saved(content: object) -> Callable[[Path], object]:
    return lambda path: torch.save(content, path)


LOOP: dict[str, object] = {}
LOOP["model"] = LOOP
SPARSE = torch.eye(3).to_sparse()
FILES = {
    "empty": (written(b""), "is empty or cut off: it has 0 bytes"),
    "short": (written(b"PK"), "is empty or cut off: it has 2 bytes"),
    "page": (written(PAGE), "is a web page"),
    "text": (written(b"version https://git-lfs.github.com/spec/v1"), "begins with b'version http"),
    "zip": (zipped, "is a zip archive, but not one that holds weights"),
    "folder": (lambda path: path.mkdir(), "is a folder"),
    "nothing": (lambda path: None, "there is no such file"),
    "TorchScript": (torchscript, "is a TorchScript program"),
    "pickle": (written(pickle.dumps({"a": [1.0] * 9})), "damaged, or a pickle of something else"),
    "module": (saved(torch.nn.Linear(1, 1)), r"objects or code \(torch.nn.*Linear\)"),
    "number": (saved(3), "holds no tensors by name"),
    "tensor": (saved(torch.zeros(9)), "holds no tensors by name"),
    "no tensors": (saved({"epoch": 3, "state_dict": {"a": 1}}), "holds no tensors by name"),
    "nothing inside": (saved({}), "holds no tensors by name"),
    "a loop": (saved(LOOP), "holds no tensors by name"),
    "a tensor without values": (saved({"a": torch.empty(3, device="meta")}), "a is no plain"),
    "sparse": (saved({"a": SPARSE}), "a is no plain tensor"),
    "own facts broken": (saved({FACTS_KEY: "{", "a": torch.zeros(1)}), "says about itself"),
    "own facts of a wrong kind": (
        saved({FACTS_KEY: '{"checkpoint": 5}', "a": torch.zeros(1)}), "says about itself"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("case", FILES)
def test_files_that_are_no_weights(tmp_path: Path, model: SEDModel, case: str) -> None:
    write, says = FILES[case]
    path = tmp_path / "some file.pt"
    write(path)
    refused(model, path, MN, says)
    assert case == "own facts" or case.startswith("own") or read_saved(path) is None


@pytest.mark.parametrize("force", [None, "1"])
@pytest.mark.parametrize("how", ["zip", "legacy", "inside", "pickle 0", "pickle 2", "pickle 4"])
def test_code_is_not_run(
    tmp_path: Path, model: SEDModel, monkeypatch: pytest.MonkeyPatch, how: str, force: str | None
) -> None:
    if force:  # heareval's own runner needs it
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", force)
    code = Code(tmp_path / "made")
    path = tmp_path / "BEATs.pt"
    if how.startswith("pickle"):
        path.write_bytes(pickle.dumps(code, protocol=int(how[-1])))
    else:
        content = released(MN) | {"z": code} if how == "inside" else {"model": code}
        torch.save(content, path, _use_new_zipfile_serialization=how != "legacy")
    says = r"\((posix|nt)\.mkdir\)" if how in ("zip", "legacy", "inside", "pickle 2") else "is n"
    refused(model, path, MN, says)
    assert read_saved(path) is None
    with pytest.raises(CheckpointError) as caught:
        read(path)
    error = caught.value  # torch's own text, with its advice, is not to be printed with it
    assert error.__cause__ is None and (error.__suppress_context__ or error.__context__ is None)
    with pytest.raises(ValueError, match="BEATs.pt"):
        hps.load_model(path, checkpoint=MN)
    assert not (tmp_path / "made").exists()
    pickle.loads(pickle.dumps(code))
    assert (tmp_path / "made").exists(), "the code in this test does nothing"


def as_bytes(state: State, kind: str, folder: Path) -> bytes:
    path = folder / f"whole.{kind}"
    if kind == "safetensors":
        save_file({k: v.contiguous() for k, v in state.items()}, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "pt")
    return path.read_bytes()


@pytest.mark.parametrize("kind", ["pt", "legacy", "safetensors"])
def test_file_cut_anywhere(tmp_path: Path, model: SEDModel, kind: str) -> None:
    whole = as_bytes(released(MN), kind, tmp_path)
    path = tmp_path / f"cut.{kind}"

    @settings(max_examples=30, deadline=None, database=None)
    @given(st.one_of(st.integers(0, len(whole) - 1), st.integers(1, 80).map(lambda n: -n)))
    def check(end: int) -> None:
        path.write_bytes(whole[:end])
        refused(model, path, MN, "cut off|damaged")

    check()


@pytest.mark.parametrize("kind", ["pt", "legacy", "safetensors"])
@settings(
    max_examples=150,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(seed=st.integers(0, 1 << 32))
def test_any_bytes_are_read_or_refused(tmp_path: Path, kind: str, seed: int) -> None:
    state = {"a.weight": torch.arange(4.0), "b": torch.arange(6).reshape(2, 3)}
    damaged = bytearray(as_bytes(state, kind, tmp_path))
    chance = random.Random(seed)
    for _ in range(chance.randint(1, 4)):
        damaged[chance.randrange(len(damaged))] = chance.randrange(256)
    path = tmp_path / "damaged"
    path.write_bytes(damaged)
    try:
        assert all(isinstance(v, Tensor) for v in read(path).tensors.values())
    except CheckpointError as error:
        assert str(path) in str(error) and "\n" not in str(error)


def renamed(state: State, old: str, new: str) -> State:
    return {k.replace(old, new): v for k, v in state.items()}


STRONG_MN = released(MN)
FEATURES = only(STRONG_MN, "model.frame_mn.")
LOST = "model.frame_mn.features.0.0.weight"
# Content, what it is given for, what the error says.
OTHERS = {
    "missing": ({k: v for k, v in STRONG_MN.items() if k != LOST}, MN,
                r"1 missing: backbone\.features\.0\.0\.weight"),
    "foreign": (STRONG_MN | {"model.frame_mn.extra": stand_in(1, 2)}, MN, "1 unknown: .*extra"),
    "foreign on top": (STRONG_MN | {"optimizer_state": stand_in(1, 2)}, MN, "1 unknown: optim"),
    "many": (renamed(STRONG_MN, "features.1", "features.x"), MN,
             r"125 missing: .*, \.\.\.; 125 unknown: .*, \.\.\."),
    "shape": (STRONG_MN | {LOST: stand_in(1, 16, 3, 3, 3)}, MN,
              r"1 of another shape: .*0\.weight has \(16, 3, 3, 3\), not \(16, 1, 3, 3\)"),
    "width": (released("frame_mn10.strong"), MN, r"of another shape: .* has \(\d+"),
    "both prefixes": (STRONG_MN | under(FEATURES, "model.fmn."), MN, r"\d\d unknown: model\.fmn"),
    "integers": (STRONG_MN | {LOST: torch.ones(16, 1, 3, 3, dtype=torch.int8)}, MN,
                 "holds torch.int8, where torch.float32 is wanted"),
    "complex": (STRONG_MN | {LOST: torch.ones(16, 1, 3, 3, dtype=torch.complex64)}, MN,
                "holds torch.complex64, where"),
    "NaN": (STRONG_MN | {LOST: stand_in(float("nan"), 16, 1, 3, 3)}, MN, "weight has values .*NaN"),
    "Inf": (STRONG_MN | {LOST: stand_in(float("-inf"), 16, 1, 3, 3)}, MN, "or infinite"),
    "too large": (STRONG_MN | {LOST: torch.full((16, 1, 3, 3), 1e300, dtype=torch.float64)}, MN,
                  "or infinite"),
    "no head": (under(FEATURES, "model.frame_mn."), MN, "no trained strong head: is it an SSL or"),
    "image classifier": (FEATURES | {"classifier.5.weight": stand_in(1, 527, 1280)}, MN,
                         "does not hold frame_mn06.strong: none of its .* begins with features"),
}  # fmt: skip


@pytest.mark.parametrize("case", OTHERS)
def test_files_that_hold_something_else(tmp_path: Path, model: SEDModel, case: str) -> None:
    content, checkpoint, says = OTHERS[case]
    refused(model, put(tmp_path, content), checkpoint, says)


def test_large_values_are_no_infinities(tmp_path: Path) -> None:
    large = torch.full((16, 1, 3, 3), 3e38)  # their sum is more than float32 holds
    model, _ = load(put(tmp_path, STRONG_MN | {LOST: large}), MN)
    assert torch.equal(model.state_dict()["backbone.features.0.0.weight"], large)


@pytest.mark.parametrize(
    ("given_for", "held", "says"),
    [
        ("atst_f.ssl", "beats.ssl", "none of its 250 keys belongs to atst_f .*model.model"),
        ("asit.ssl", "fpasst.ssl", r"missing: .*; \d+ unknown: model\.\w"),  # both under model.
        ("fpasst.ssl", "asit.ssl", r"missing: .*; \d+ unknown: model\.pos_embed"),
        ("asit.ssl", "m2d.ssl", "none of its 150 keys belongs to asit"),
        ("m2d.ssl", "asit.ssl", "does not hold m2d.ssl"),
        ("beats.ssl", "atst_f.ssl", "none of its 138 keys belongs to beats"),
        ("beats.strong", "beats.ssl", "it has no trained strong head: is it an SSL or weak file"),
        ("m2d.strong", "m2d.weak", "2 missing: head.strong.bias"),
    ],
)
def test_files_of_other_backbones_and_stages(
    tmp_path: Path, given_for: str, held: str, says: str
) -> None:
    path = put(tmp_path, released(held))
    with pytest.raises(CheckpointError, match=says) as caught:
        load(path, given_for)
    line = str(caught.value)
    assert str(path) in line and given_for in line and "\n" not in line


def test_published_name_of_another_checkpoint(tmp_path: Path, model: SEDModel) -> None:
    path = put(tmp_path, STRONG_MN, "BEATs_ssl.pt")  # the name alone decides
    refused(model, path, MN, "is the published file of beats.ssl, not of frame_mn06.strong")
    path = put(tmp_path, released("beats.strong"), "BEATs_ssl.pt")
    with pytest.raises(CheckpointError, match="file of beats.ssl, not of beats.strong"):
        hps.load_model(path, checkpoint="beats.strong")


def test_safetensors_missing_and_a_file_that_may_not_be_read(
    tmp_path: Path, model: SEDModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file.safetensors"
    path.write_bytes(as_bytes({"a": torch.zeros(9)}, "safetensors", tmp_path))
    real = builtins.__import__

    def without(name: str, *args: object, **options: object) -> object:
        if name.startswith("safetensors"):
            raise ImportError(name)
        return real(name, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(builtins, "__import__", without)
        refused(model, path, MN, "needs the package safetensors, which is missing")

    def closed(*args: object, **options: object) -> io.BytesIO:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", closed)
    refused(model, path, MN, "cannot be read: Permission denied")
