"""cli.py: what a user types, sees and gets, mistakes and accidents included."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import hear_pretrainedsed as hps
from hear_pretrainedsed import cli
from hear_pretrainedsed.audio import read_audio
from hear_pretrainedsed.cli_options import median_frames_of
from hear_pretrainedsed.events import read_tsv, scores_to_events
from hear_pretrainedsed.records import record_sha256
from hear_pretrainedsed.registry import CHECKPOINTS, get_checkpoint

NAME = "frame_mn06.strong"
LOW = ("--threshold", "0.05")  # stand-in weights give scores of about 0.01 to 0.6


@pytest.fixture
def weights(release_file: Callable[[str], Path], own_cache: Path) -> Path:
    """Stand-in weights under their published name in the cache folder."""
    path = own_cache / get_checkpoint(NAME).file
    path.symlink_to(release_file(NAME))
    with warnings.catch_warnings(action="ignore"):  # of the first load
        record_sha256(path)
    return path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run the command in this process: (exit code, stdout, stderr)."""
    torch.set_num_threads(1)  # the clips are short

    def call(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            cli.main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return stop.value.code, out, err

    return call


def sound(path: Path, duration_s: float = 1.0, rate: int = 16_000, n_channels: int = 1) -> Path:
    """Bursts of noise."""
    n = int(duration_s * rate)
    samples = np.random.default_rng(int(duration_s * 100)).standard_normal((n, n_channels)) * 0.2
    samples[np.arange(n) % rate > rate // 2] *= 0.01
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate)
    return path


def files_below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*"))


# ---- list, info, fetch


def test_list_is_tab_separated_when_piped(run, weights) -> None:
    code, out, err = run("list")
    rows = [line.split("\t") for line in out.splitlines()]
    assert (code, err) == (0, "")
    assert [row[0] for row in rows] == list(CHECKPOINTS)
    assert {len(row) for row in rows} == {6}
    cached = {row[0] for row in rows if row[5] == "yes"}
    assert cached == {name for name, c in CHECKPOINTS.items() if c.file == weights.name}
    (row,) = [row for row in rows if row[0] == "beats.strong"]
    assert row[1:5] == ["strong", "90999278", "46.5", "MIT"]


def test_list_is_a_table_on_a_terminal(run, monkeypatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "200")
    code, out, _ = run("list")
    assert code == 0
    assert "PSDS1" in out.splitlines()[0]
    assert "91.0 M" in out


def test_a_wide_list_has_cost_and_file(run, monkeypatch) -> None:
    code, out, _ = run("list", "--wide")
    rows = {line.split("\t")[0]: line.split("\t") for line in out.splitlines()}
    assert code == 0
    assert {len(row) for row in rows.values()} == {8}
    assert rows["frame_mn10.strong"][6:] == ["1055080320", "frame_mn10_strong_1.pt"]
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "250")
    _, out, _ = run("list", "--wide")
    assert "1.06 G" in out and "MACs per 10 s" in out


def test_info_and_bibtex(run) -> None:
    code, out, _ = run("info", "fpasst.ssl")
    assert code == 0
    assert "DeiT" in out
    assert "arXiv 2110.05069); Effective Pre-Training of Audio Transformers" in out
    assert "hear_pretrainedsed.fpasst_ssl" in out
    assert "none: it has no trained head" in out
    code, out, _ = run("info", "atst_f.strong", "--bibtex")
    assert code == 0
    assert out.startswith("@")
    assert out.count("\n@") == len(get_checkpoint("atst_f.strong").references) - 1


def test_fetch_prints_paths_and_goes_on_after_a_failure(run, weights, monkeypatch) -> None:
    code, out, err = run("fetch", NAME)
    assert (code, out, err) == (0, f"{weights}\n", "")

    def offline(file_name: str, *_: object) -> Path:
        if file_name != weights.name:
            raise cli.FetchError(f"{file_name} cannot be fetched")
        return weights

    monkeypatch.setattr(cli, "fetch", offline)
    code, out, err = run("fetch", "beats.ssl", NAME)
    assert (code, out) == (1, f"{weights}\n")
    assert err == "hear-pretrainedsed: BEATs_ssl.pt cannot be fetched\n"


# ---- embed


def test_embed_writes_what_the_api_gives(run, weights, tmp_path) -> None:
    path = sound(tmp_path / "in" / "a.flac", 12.3, 44_100, 2)
    code, out, err = run("embed", path, "--checkpoint", NAME, "-o", tmp_path / "out")
    assert (code, out, err) == (0, "", "")
    assert files_below(tmp_path / "out") == ["a.embeddings.json", "a.embeddings.npy"]
    found = np.load(tmp_path / "out" / "a.embeddings.npy")
    facts = json.loads((tmp_path / "out" / "a.embeddings.json").read_text())
    model = hps.load_model(weights)
    audio = read_audio(path)
    expected, timestamps = hps.get_timestamp_embeddings(audio[None], model)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected[0], rtol=1e-4, atol=1e-5)
    assert facts["shape"] == list(found.shape)
    assert facts["duration_s"] == len(audio) / 16_000
    assert (facts["checkpoint"], facts["filename"]) == (NAME, "a.flac")
    assert len(facts["sha256"]) == 64
    times = facts["first_ms"] + facts["hop_ms"] * np.arange(len(found))
    assert np.array_equal(times, timestamps[0])


def test_embed_options_reach_the_model(run, weights, tmp_path) -> None:
    path = sound(tmp_path / "a.wav", 11.0)
    options = ["--layer", "-2,3", "--windowing", "overlap", "--batch-size", "1"]
    code, _, err = run("embed", path, "-c", NAME, "-o", tmp_path, "--weights", weights, *options)
    assert (code, err) == (0, "")
    model = hps.load_model(weights, layer=[-2, 3], windowing="overlap")
    expected = model.embeddings(read_audio(path)[None])[0]
    found = np.load(tmp_path / "a.embeddings.npy")
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
    code, _, _ = run("embed", path, "-c", NAME, "-o", tmp_path / "x", "--scene", "--layer=-1")
    scene = np.load(tmp_path / "x" / "a.embeddings.npy")
    model = hps.load_model(weights, layer=-1)
    expected = hps.get_scene_embeddings(read_audio(path)[None], model)[0]
    np.testing.assert_allclose(scene, expected, rtol=1e-3, atol=1e-4)
    facts = json.loads((tmp_path / "x" / "a.embeddings.json").read_text())
    assert (facts["axes"], facts["layer"]) == (["dim"], "-1")
    assert "hop_ms" not in facts


# ---- detect


def test_detect_prints_what_the_api_finds(run, weights, tmp_path) -> None:
    paths = [sound(tmp_path / name, 2.0 + i) for i, name in enumerate(["a.wav", "b.ogg"])]
    code, out, err = run("detect", *paths, "--checkpoint", NAME, *LOW, "--median-s", "0.2")
    assert (code, err) == (0, "")
    (tmp_path / "out.tsv").write_text(out)
    found = read_tsv(tmp_path / "out.tsv")
    assert list(found) == ["a.wav", "b.ogg"]
    model = hps.load_model(weights)
    for path in paths:
        expected = hps.detect(path, model, threshold=0.05, median_frames=5)
        assert expected
        assert [event[:3] for event in found[path.name]] == [event[:3] for event in expected]


def test_detect_writes_every_format(run, weights, tmp_path) -> None:
    sound(tmp_path / "in" / "a.wav", 2.0)
    sound(tmp_path / "in" / "sub" / "a.flac", 3.0, 8000, 3)
    formats = ("--format", "tsv", "--format", "json", "--format", "audacity")
    out = tmp_path / "out"
    arguments = ("detect", tmp_path / "in", "-c", NAME, *LOW, "-o", out, *formats)
    code, printed, err = run(*arguments, "--save-scores", "--picture", "--min-duration-s", "0.08")
    assert (code, printed, err) == (0, "", "")
    kinds = ("events.json", "events.png", "events.tsv", "labels.txt", "scores.npz")
    expected = [f"{stem}.{kind}" for stem in ("a", "sub/a") for kind in kinds]
    assert files_below(out) == sorted([*expected, "events.tsv"])
    whole = read_tsv(out / "events.tsv")
    assert list(whole) == ["a.wav", "sub/a.flac"]
    for stem, name in (("a", "a.wav"), ("sub/a", "sub/a.flac")):
        events = read_tsv(out / f"{stem}.events.tsv")[name]
        assert events == whole[name]
        facts = json.loads((out / f"{stem}.events.json").read_text())
        assert [event["label"] for event in facts["events"]] == [event.label for event in events]
        assert (facts["threshold"], facts["min_duration_s"]) == (0.05, 0.08)
        lines = (out / f"{stem}.labels.txt").read_text().splitlines()
        assert [line.split("\t")[2] for line in lines] == [event.label for event in events]
        with np.load(out / f"{stem}.scores.npz") as saved:
            again = scores_to_events(
                saved["scores"],
                saved["labels"].tolist(),
                threshold=0.05,
                min_duration_s=0.08,
                duration_s=facts["duration_s"],
            )
        assert [event[:3] for event in again] == [event[:3] for event in events]


def test_labels_and_top_choose_classes(run, weights, tmp_path) -> None:
    path = sound(tmp_path / "a.wav", 2.0)
    model = hps.load_model(weights)
    scores = model.scores(read_audio(path)[None])[0].detach()
    wanted = ["Speech", "Accelerating, revving, vroom"]
    chosen = [argument for label in wanted for argument in ("--labels", label)]
    arguments = ("detect", path, "-c", NAME, "--threshold", "0", "-o", tmp_path, "--save-scores")
    assert run(*arguments, *chosen)[0] == 0
    with np.load(tmp_path / "a.scores.npz") as saved:
        assert saved["labels"].tolist() == wanted
        column = model.labels.index(wanted[1])
        np.testing.assert_allclose(saved["scores"][:, 1], scores[:, column], atol=1e-5)
    assert {e.label for e in read_tsv(tmp_path / "a.events.tsv")["a.wav"]} == set(wanted)
    assert run(*arguments, "--top", "3")[0] == 0
    best = {model.labels[i] for i in scores.max(dim=0).values.topk(3).indices}
    assert {e.label for e in read_tsv(tmp_path / "a.events.tsv")["a.wav"]} == best


@pytest.mark.parametrize(
    ("median_s", "frames"), [(0.04, 1), (0.01, 1), (0.12, 3), (0.2, 5), (0.36, 9), (0.5, 13)]
)
def test_median_is_an_odd_number_of_frames(median_s, frames) -> None:
    assert median_frames_of(median_s) == frames


def test_one_stem_in_two_inputs_gives_two_outputs(run, weights, tmp_path) -> None:
    paths = [sound(tmp_path / name, 0.5) for name in ("x/a.wav", "y/a.wav", "a.flac")]
    code, _, _ = run("detect", *paths, "-c", NAME, "-o", tmp_path / "out")
    assert code == 0
    names = ["a.events.tsv", "a.flac.events.tsv", "a.wav.events.tsv", "events.tsv"]
    assert files_below(tmp_path / "out") == names
    assert list(read_tsv(tmp_path / "out" / "events.tsv")) == ["a.wav", str(paths[1]), "a.flac"]


# ---- accidents


@pytest.mark.parametrize("command", ["embed", "detect"])
def test_one_broken_file_among_many_is_reported_and_skipped(
    run, weights, tmp_path, command
) -> None:
    for name in ("a.wav", "c.wav", "d.flac"):
        sound(tmp_path / "in" / name, 0.5)
    data = (tmp_path / "in" / "c.wav").read_bytes()
    (tmp_path / "in" / "b.wav").write_bytes(data[:5000])
    (tmp_path / "in" / "e.mp3").write_bytes(b"\xff\xfb\x90\x64" + bytes(5000))
    samples = np.zeros(1000, np.float32)
    samples[77] = np.nan
    soundfile.write(tmp_path / "in" / "n.wav", samples, 16_000, "FLOAT")
    out = tmp_path / "out"
    code, _, err = run(command, tmp_path / "in", "-c", NAME, "-o", out)
    assert code == 1
    lines = err.splitlines()
    assert len(lines) == 4
    assert "b.wav: truncated" in lines[0]
    assert "e.mp3: " in lines[1]
    assert "n.wav: NaN at sample 77" in lines[2]
    assert lines[3] == "hear-pretrainedsed: 3 of 6 files could not be processed"
    written = {name.split(".")[0] for name in files_below(out)}
    assert written - {"events"} == {"a", "c", "d"}


MISTAKES = [
    (("info", "beats.weka"), "unknown checkpoint 'beats.weka'; did you mean 'beats.weak'"),
    (("fetch", "frame_mn6.strong"), "did you mean 'frame_mn06.strong'"),
    (("embd",), "No such command 'embd'"),
    (("list", "--patterns"), "No such option: --patterns"),
    (("embed", "A", "-c", NAME), "Missing option '--out'"),
    (("embed", "A", "-c", "beats.stong", "-o", "O"), "did you mean 'beats.strong'"),
    (("embed", "missing.wav", "-c", NAME, "-o", "O"), "no such file or folder: missing.wav"),
    (("embed", "A", "-c", NAME, "-o", "A"), "-o takes a folder, and A is a file"),
    (("embed", "A", "-c", NAME, "-o", "O", "--layer", "x"), "--layer is 'x'; allowed"),
    (("embed", "A", "-c", NAME, "-o", "O", "--layer", "99"), "layer is 99; allowed"),
    (("embed", "A", "-c", NAME, "-o", "O", "--windowing", "overlp"), "did you mean 'overlap'"),
    (("embed", "A", "-c", NAME, "-o", "O", "--precision", "fp16"), "unknown precision 'fp16'"),
    (("embed", "A", "-c", NAME, "-o", "O", "--batch-size", "0"), "batch_size is 0"),
    (("embed", "A", "-c", NAME, "-o", "O", "--device", "gpu"), "unknown device 'gpu'"),
    (("embed", "A", "-c", NAME, "-o", "O", "--device", "cuda:99"), "no device 'cuda:99' here"),
    (("embed", "A", "-c", NAME, "-o", "O", "--device", "meta"), "unknown device 'meta'"),
    (("embed", "A", "-c", NAME, "-o", "O", "--weights", "A"), "A"),
    (("detect", "A", "-c", "beats.ssl"), "beats.ssl has no trained head.*`probe`.*`finetune`"),
    (("detect", "A", "-c", NAME, "--labels", "Speach"), "the nearest is 'Speech'"),
    (("detect", "A", "-c", NAME, "--format", "xml"), "'xml' is not one of 'tsv'"),
    (("detect", "A", "-c", NAME, "--format", "json"), "give a folder, -o DIR"),
    (("detect", "A", "-c", NAME, "--picture"), "give a folder, -o DIR"),
    (("detect", "A", "-c", NAME, "--top", "0"), "--top"),
    (("detect", "A", "-c", NAME, "--threshold", "nan"), "threshold is NaN"),
    (("detect", "A", "-c", NAME, "--threshold", "high"), "--threshold"),
    (("detect", "A", "-c", NAME, "--threshold", "50"), "--threshold is a score from 0 to 1"),
    (("detect", "A", "-c", NAME, "--median-s", "1e300"), "--median-s is a time"),
    (("detect", "A", "-c", NAME, "--median-s", "0"), "--median-s is a time"),
    (("detect", "A", "-c", NAME, "--median-s", "inf"), "--median-s is a time"),
    (("detect", "A", "-c", NAME, "--min-duration-s", "-1"), "min_duration_s is a time"),
    (("detect", "empty", "-c", NAME), "empty: no audio files in this folder"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES, ids=lambda x: " ".join(x)[:60])
def test_a_mistake_is_one_line_and_exit_2(
    run, weights, tmp_path, monkeypatch, arguments, message
) -> None:
    monkeypatch.chdir(tmp_path)
    sound(tmp_path / "A.wav", 0.1).rename("A")
    (tmp_path / "empty").mkdir()
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert re.search(message, err)
    assert [path.name for path in tmp_path.rglob("*.*")] == []


def test_no_arguments_show_the_help(run) -> None:
    code, out, err = run()
    assert code == 2
    assert "detect" in out + err
    assert "Traceback" not in err


def test_a_full_disk_is_one_line(run, weights, tmp_path, monkeypatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", str(tmp_path / "a.npy"))

    monkeypatch.setattr(cli.np, "save", full)
    code, _, err = run("embed", sound(tmp_path / "a.wav", 0.1), "-c", NAME, "-o", tmp_path / "out")
    assert code == 1
    assert err == f"hear-pretrainedsed: {tmp_path / 'a.npy'}: No space left on device\n"
    assert files_below(tmp_path / "out") == []


def test_warnings_are_one_line_each(run, weights, tmp_path, monkeypatch) -> None:
    path = sound(tmp_path / "a.wav", 0.1)
    assert run("detect", path, "-c", NAME)[0] == 0
    content = torch.load(weights)
    content["strong_head.bias"] = content["strong_head.bias"] + 1
    weights.unlink()
    torch.save(content, weights)
    code, _, err = run("detect", path, "-c", NAME)
    assert code == 0
    assert err.startswith(f"hear-pretrainedsed: warning: {weights.name}: sha256 was ")
    assert len(err.splitlines()) == 1


def test_ctrl_c_in_the_middle_is_130_and_leaves_no_part(
    run, weights, tmp_path, monkeypatch
) -> None:
    def stop(file: object, array: object) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.np, "save", stop)
    code, _, err = run("embed", sound(tmp_path / "a.wav", 0.1), "-c", NAME, "-o", tmp_path / "out")
    assert (code, err) == (130, "hear-pretrainedsed: interrupted\n")
    assert list((tmp_path / "out").iterdir()) == []


def test_version(run) -> None:
    assert run("--version") == (0, f"hear-pretrainedsed {hps.__version__}\n", "")


# ---- the process

COMMAND = [sys.executable, "-m", "hear_pretrainedsed"]


@pytest.mark.slow
def test_ctrl_c_from_the_keyboard(weights, tmp_path) -> None:
    first = sound(tmp_path / "in" / "000.wav", 10.0)
    for i in range(1, 200):
        os.link(first, first.with_name(f"{i:03}.wav"))
    out = tmp_path / "out"
    process = subprocess.Popen(
        [*COMMAND, "detect", tmp_path / "in", "-c", NAME, "-o", out],
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not (out.exists() and any(out.iterdir())) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == "hear-pretrainedsed: interrupted\n"
    assert all(path.name.endswith(".events.tsv") for path in out.iterdir())
    assert all(read_tsv(path) for path in out.iterdir())


@pytest.mark.slow
def test_a_reader_that_stops_is_no_error(weights, tmp_path) -> None:
    command = shlex.join([*COMMAND, "list"])
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command} | true"], capture_output=True, text=True
    )
    assert done.returncode in (0, 1, 141)
    assert done.stderr == ""


@pytest.mark.slow
def test_a_terminal_shows_a_bar_and_a_pipe_does_not(weights, tmp_path) -> None:
    pty = pytest.importorskip("pty")
    sound(tmp_path / "a.wav", 0.2)
    sound(tmp_path / "b.wav", 0.2).write_bytes(b"")
    shown, far = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, "detect", tmp_path, "-c", NAME],
        stdout=subprocess.PIPE,
        stderr=far,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "150"},
    )
    os.close(far)
    text = b""
    try:
        while part := os.read(shown, 65536):
            text += part
    except OSError:  # Linux tells the end of a terminal so
        os.close(shown)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert b"2.0 of 2" in text
    assert b"empty file" in text
    assert printed.startswith(b"filename\tonset")
    assert b"filename\tonset" not in text


@pytest.mark.slow
def test_closed_streams_are_no_error(weights, tmp_path) -> None:
    path = sound(tmp_path / "a.wav", 0.1)
    command = shlex.join([*COMMAND, "detect", str(path), "-c", NAME, "-o", str(tmp_path)])
    assert subprocess.run(["bash", "-c", f"{command} >&- 2>&-"]).returncode == 0
    assert (tmp_path / "a.events.tsv").exists()


def test_start_imports_nothing_heavy() -> None:
    """Nothing that draws, plots or plays; torch is needed by the package itself."""
    code = (
        "import sys, hear_pretrainedsed.cli; "
        "heavy = {'matplotlib', 'scipy', 'soxr', 'pandas', 'tensorflow', 'torchaudio', 'lightning'}"
        "; print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (MemoryError("a.wav is too long"), "not enough memory: a.wav is too long"),
        (torch.OutOfMemoryError("CUDA out of memory"), "not enough memory: CUDA out of memory"),
    ],
)
def test_memory_that_runs_out_is_one_line(run, weights, tmp_path, monkeypatch, error, line) -> None:
    def load(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(cli, "load", load)
    path = sound(tmp_path / "a.wav", 0.5)
    code, _, errors = run("embed", path, "-c", NAME, "-o", tmp_path / "out")
    assert code == 1
    assert errors.splitlines()[-1] == f"hear-pretrainedsed: {line}"
