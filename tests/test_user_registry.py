"""import: a file becomes a checkpoint with a name, like a published one, until it is removed."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import hear_pretrainedsed as hps
from hear_pretrainedsed import cli, user_registry
from hear_pretrainedsed.checkpoints import CheckpointError, save_weights
from hear_pretrainedsed.decoding import Decoding
from hear_pretrainedsed.heads import LinearHead
from hear_pretrainedsed.model import build_model
from hear_pretrainedsed.registry import CHECKPOINTS, get_checkpoint, read_labels
from hear_pretrainedsed.user_registry import (
    REGISTRY,
    add_imported,
    check_name,
    import_checkpoint,
    remove_checkpoint,
)

NAME = "fmn04.strong-mine"
DECODING = Decoding((0.2, 0.6), (3, 7))


@pytest.fixture(autouse=True)
def same_registry() -> Iterator[None]:
    """The registry of this process as it was before."""
    before = dict(CHECKPOINTS)
    yield
    CHECKPOINTS.clear()
    CHECKPOINTS.update(before)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as `finetune` writes it."""
    torch.manual_seed(0)
    model = build_model("fmn04", head="linear", labels=("bark", "meow"))
    model.head = LinearHead(model.frame_dim, 2, weak=False)
    model.provenance = {"checkpoint": "fmn04.strong", "origin": {"checkpoint": "fmn04.strong"}}
    model.provenance["origin"]["task"] = "pets"
    model.decoding = DECODING
    path = tmp_path_factory.mktemp("tuned") / "model.safetensors"
    save_weights(model, path)
    return path


def command(*words: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        cli.main(list(map(str, words)))
    return stopped.value.code


def in_a_new_process(code: str) -> str:
    words = [sys.executable, "-W", "ignore", "-c", code]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


def test_a_tuned_file_is_a_checkpoint_like_any_other(tuned, own_cache, capsys) -> None:
    assert command("import", tuned, "--as", NAME) == 0
    assert capsys.readouterr().out == f"{NAME}\n"
    facts = get_checkpoint(NAME)
    assert (facts.names, facts.n_classes, facts.own) == (("bark", "meow"), 2, True)
    assert (facts.backbone, facts.stage, facts.sequence_model) == ("fmn04", "strong", None)
    assert NAME in hps.list_checkpoints()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = hps.load_model(checkpoint=NAME)
    source = hps.load_model(tuned)
    assert model.labels == ("bark", "meow") and model.decoding == DECODING
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), source.parameters(), strict=True)
    )
    assert model.provenance["origin"] == source.provenance["origin"]
    assert command("list") == 0
    (row,) = [x for x in capsys.readouterr().out.splitlines() if x.startswith(NAME)]
    assert row.split("\t")[1:2] + row.split("\t")[4:] == ["strong", "the user's own", "yes"]
    assert command("info", NAME) == 0
    told = capsys.readouterr().out
    assert "classes:     2 (bark, meow)" in told and "fmn04.strong fine-tuned on pets" in told
    assert command("info", NAME, "--bibtex") == 0


def test_a_new_process_knows_it(tuned, own_cache) -> None:
    import_checkpoint(tuned, NAME)
    told = in_a_new_process(
        "import torch, hear_pretrainedsed as hps, hear_pretrainedsed.fmn04_strong_mine as module\n"
        f"assert {NAME!r} in hps.list_checkpoints()\n"
        "model = module.load_model()\n"
        "frames, ms = module.get_timestamp_embeddings(torch.zeros(1, 16000), model)\n"
        "print(model.labels, model.decoding.thresholds, tuple(frames.shape))"
    )
    assert told.strip() == "('bark', 'meow') (0.2, 0.6) (1, 25, 384)"
    remove_checkpoint(NAME)
    assert "False" in in_a_new_process(
        f"import hear_pretrainedsed as hps; print({NAME!r} in hps.list_checkpoints())"
    )


def test_other_numbers_of_layers_are_in_the_file(tmp_path, own_cache) -> None:
    torch.manual_seed(0)
    labels = ("bark", "meow")
    model = build_model("fmn04", sequence_model=("gru", 8, 3), head="linear", labels=labels)
    save_weights(model, tmp_path / "model.safetensors")
    name = import_checkpoint(tmp_path / "model.safetensors", "fmn04.strong-deep+gru-8").name
    assert CHECKPOINTS[name].sequence_model == ("gru", 8, 3)
    audio = torch.randn(1, 32_000)
    assert torch.equal(hps.load_model(checkpoint=name).scores(audio), model.scores(audio))
    code = f"import hear_pretrainedsed as h; print(h.load_model(checkpoint='{name}').frame_dim)"
    assert in_a_new_process(code).strip() == "16"


def test_removed_it_is_gone_and_its_name_is_free(tuned, own_cache, capsys) -> None:
    import_checkpoint(tuned, NAME)
    file = own_cache / get_checkpoint(NAME).file
    assert file.is_file()
    assert command("import", "--remove", NAME) == 0
    assert not file.exists() and NAME not in CHECKPOINTS
    assert json.loads((own_cache / REGISTRY).read_text()) == {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # other bytes under the same name are no surprise
        model = hps.load_model(tuned)
        with torch.no_grad():
            model.head.strong.bias.add_(1)
        save_weights(model, tuned.with_name("other.pt"))
        import_checkpoint(tuned.with_name("other.pt"), NAME)
        hps.load_model(checkpoint=NAME)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fmn04.strong", "there is a checkpoint fmn04.strong already"),
        ("mine", "is no checkpoint's name: BACKBONE.STAGE"),
        ("fmn04.strong mine", "is no checkpoint's name"),
        ("FMN04.strong-mine", "is no checkpoint's name"),
        ("fmn04.strong-mine.pt", "is no checkpoint's name"),
        ("fmn04.strong-mine+tf-0", "is no checkpoint's name"),
        ("../fmn04.strong-mine", "is no checkpoint's name"),
        ("fmn05.strong-mine", "unknown backbone 'fmn05'; did you mean"),
        ("fmn04.stron-mine", "unknown stage 'stron'; did you mean 'strong'"),
        ("fmn04.strong-mine+tg-104", "unknown sequence model 'tg'"),
        ("fmn10.strong-tf_256", "would have the HEAR module fmn10_strong_tf_256, as fmn10.strong+"),
    ],
)
def test_names_that_are_taken_or_tell_nothing(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_name(name)


def test_published_layouts(release_file: Callable[[str], Path], tmp_path, own_cache) -> None:
    """The head is the file's, its class names those of the published head of that size."""
    source = release_file("fmn04.strong+tf-104")
    copy = tmp_path / "mine.pt"
    copy.write_bytes(source.read_bytes())
    facts = import_checkpoint(copy, "fmn04.strong-mine+tf-104")
    model = hps.load_model(checkpoint=facts.name)
    assert model.labels == read_labels("audioset_strong_train")
    wanted = hps.load_model(source)
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), wanted.parameters(), strict=True)
    )
    assert model.provenance["origin"]["file"] == "mine.pt"
    facts = import_checkpoint(copy, "fmn04.weak-mine+tf-104")  # a weak one has no head here
    assert hps.load_model(checkpoint=facts.name).head is None


def test_a_head_of_unknown_classes(release_file, tmp_path, own_cache) -> None:
    state = torch.load(release_file("fmn04.strong"), weights_only=True)
    for name in [name for name in state if "_head." in name]:
        state[name] = state[name][:3]
    path = tmp_path / "three.pt"
    torch.save(state, path)
    facts = import_checkpoint(path, "fmn04.strong-three")
    assert (facts.n_classes, facts.names) == (3, None)
    model = hps.load_model(checkpoint=facts.name)
    assert model.scores(torch.zeros(1, 16_000)).shape == (1, 25, 3) and model.labels is None
    names = tmp_path / "names.txt"
    names.write_text("one\ntwo\nthree\n")
    facts = import_checkpoint(path, "fmn04.strong-named", names)
    assert hps.load_model(checkpoint=facts.name).labels == ("one", "two", "three")
    names.write_text("one\n")
    with pytest.raises(ValueError, match="holds 1 names"):
        import_checkpoint(path, "fmn04.strong-other", names)


def test_wrong_files_are_refused_and_leave_nothing(
    tuned, release_file, tmp_path, own_cache
) -> None:
    with pytest.raises(CheckpointError, match="does not hold fmn06.strong-mine"):
        import_checkpoint(tuned, "fmn06.strong-mine")
    with pytest.raises(CheckpointError, match="does not hold fmn04.strong-mine"):
        import_checkpoint(tuned, "fmn04.strong-mine+tf-104")
    with pytest.raises(CheckpointError, match="is the published file of fmn04.strong"):
        import_checkpoint(release_file("fmn04.strong"), NAME)
    (tmp_path / "cut.safetensors").write_bytes(tuned.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match="cut off or damaged"):
        import_checkpoint(tmp_path / "cut.safetensors", NAME)
    with pytest.raises(CheckpointError, match="there is no such file"):
        import_checkpoint(tmp_path / "none.pt", NAME)
    assert not list(own_cache.glob("*.safetensors")) and NAME not in CHECKPOINTS


def test_a_full_disk_leaves_no_half_checkpoint(tuned, own_cache, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(user_registry, "save_weights", full)
    with pytest.raises(OSError, match="No space left"):
        import_checkpoint(tuned, NAME)
    assert NAME not in CHECKPOINTS and not (own_cache / REGISTRY).exists()


def test_a_vocabulary_of_no_use_is_refused(tuned, tmp_path, own_cache) -> None:
    names = tmp_path / "names.txt"
    names.write_text("one\ntwo\n")
    save_weights(build_model("fmn04"), tmp_path / "headless.pt")
    with pytest.raises(ValueError, match="names.txt' has no use: .* has no trained head"):
        import_checkpoint(tmp_path / "headless.pt", NAME, names)
    with pytest.raises(ValueError, match=r"names its 2 classes itself \(bark, meow"):
        hps.load_model(tuned, checkpoint="fmn04.strong", vocabulary=names)


def test_a_name_that_another_process_took_is_refused(tuned, own_cache) -> None:
    import_checkpoint(tuned, NAME)
    content = (own_cache / f"{NAME}.safetensors").read_bytes()
    del CHECKPOINTS[NAME]  # as in a process that began before
    with pytest.raises(ValueError, match=f"there is a checkpoint {NAME} already"):
        import_checkpoint(tuned, NAME)
    assert (own_cache / f"{NAME}.safetensors").read_bytes() == content


def test_a_broken_registry_is_kept_aside(tuned, own_cache) -> None:
    own_cache.mkdir(exist_ok=True)
    (own_cache / REGISTRY).write_text('{"fmn04.strong-old": {}, ')
    with pytest.warns(UserWarning, match=f"moved to .*{REGISTRY}.unusable, begun anew"):
        import_checkpoint(tuned, NAME)
    assert list(json.loads((own_cache / REGISTRY).read_text())) == [NAME]
    kept = (own_cache / f"{REGISTRY}.unusable").read_text()
    assert kept == '{"fmn04.strong-old": {}, '


def test_what_another_version_imported_can_be_removed(tuned, own_cache, capsys) -> None:
    import_checkpoint(tuned, NAME)
    kept = json.loads((own_cache / REGISTRY).read_text())
    kept[NAME]["colour"] = "red"
    (own_cache / REGISTRY).write_text(json.dumps(kept))
    assert command("import", "--remove", NAME) == 0
    assert not list(own_cache.glob("*.safetensors"))
    assert json.loads((own_cache / REGISTRY).read_text()) == {}


def test_wrong_calls(tuned, own_cache, capsys) -> None:
    for words in ((), (tuned,), ("--as", NAME)):
        assert command("import", *words) == 2
        assert "give FILE --as NAME, or --remove NAME" in capsys.readouterr().err
    assert command("import", tuned, "--remove", NAME) == 2
    assert "--remove NAME stands alone" in capsys.readouterr().err
    assert command("import", "--remove", "fmn04.strong") == 2
    assert "fmn04.strong is a published checkpoint" in capsys.readouterr().err
    import_checkpoint(tuned, NAME)
    assert command("import", "--remove", "fmn04.strong-min") == 2
    assert f"did you mean '{NAME}'" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["{", "[]", '"a"', '{"a": 3}', "\0"])
def test_a_broken_registry_is_told_and_left_out(own_cache, text: str) -> None:
    own_cache.mkdir(exist_ok=True)
    (own_cache / REGISTRY).write_text(text)
    before = dict(CHECKPOINTS)
    with pytest.warns(UserWarning, match="imported"):
        add_imported()
    assert before == CHECKPOINTS


def test_entries_that_cannot_be_are_left_out(tuned, own_cache) -> None:
    import_checkpoint(tuned, NAME)
    kept = json.loads((own_cache / REGISTRY).read_text())
    kept["fmn04.weak"] = kept[NAME] | {"name": "fmn04.weak"}  # published since
    kept["b"] = {"name": "fmn04.strong-b", "colour": "red"}
    (own_cache / REGISTRY).write_text(json.dumps(kept))
    del CHECKPOINTS[NAME]
    with pytest.warns(UserWarning) as told:
        add_imported()
    assert CHECKPOINTS[NAME].own and not CHECKPOINTS["fmn04.weak"].own
    lines = sorted(str(warning.message) for warning in told)
    assert "b is left out: " in lines[0] and "fmn04.weak is left out: there is" in lines[1]
