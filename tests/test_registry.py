"""The facts of the published checkpoints, and that every name leads to one thing."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest

import hear_pretrainedsed as hps
from hear_pretrainedsed.model import HEADS
from hear_pretrainedsed.registry import (
    BACKBONES,
    CHECKPOINTS,
    SEQUENCE_MODELS,
    STAGES,
    Checkpoint,
    bibtex,
    get_checkpoint,
    list_checkpoints,
    read_labels,
    unknown,
)

RELEASE = "https://github.com/fschmid56/PretrainedSED/releases/download/v0.0.1/"
# Published file names, PSDS1 of the strong one, and what the licence has to say.
PRETRAINEDSED = {
    "asit": ("ASIT", 46.2, "none.*no licence file"),
    "atst_f": ("ATST-F", 45.8, "^CC BY 4.0$"),
    "beats": ("BEATs", 46.5, "^MIT$"),
    "fpasst": ("fpasst", 45.4, "^MIT$"),
    "m2d": ("M2D", 46.3, "NTT"),
}
STUDENTS = {"frame_mn06": 40.81, "frame_mn10": 43.26}
NAME = re.compile(
    r"[a-z][a-z0-9_]*\.(ssl|weak|strong)(-[a-z0-9]+)*(\+(tf|gru|hybrid|attn|mamba|tcn)-\d+)?"
)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("backbone", PRETRAINEDSED)
def test_transformers_of_pretrainedsed(backbone: str, stage: str) -> None:
    file, psds1, licence = PRETRAINEDSED[backbone]
    facts = get_checkpoint(f"{backbone}.{stage}")
    assert facts.file == f"{file}_{stage}{'_1' if stage == 'strong' else ''}.pt"
    assert facts.url == RELEASE + facts.file
    assert facts.psds1 == (psds1 if stage == "strong" else None)
    assert facts.labels == ("audioset_strong_train" if stage == "strong" else None)
    assert re.search(licence, facts.licence)
    assert (facts.backbone, facts.stage, facts.sequence_model) == (backbone, stage, None)


@pytest.mark.parametrize("backbone", STUDENTS)
def test_mobilenets_of_pretrainedsed(backbone: str) -> None:
    facts = get_checkpoint(f"{backbone}.strong")
    assert facts.url == f"{RELEASE}{backbone}_strong_1.pt"
    assert (facts.psds1, facts.labels) == (STUDENTS[backbone], "audioset_strong_train")
    assert facts.licence == "MIT"
    assert [name for name in CHECKPOINTS if name.startswith(f"{backbone}.")] == [facts.name]


def test_pretrainedsed_has_17_checkpoints() -> None:
    assert sum(facts.release == RELEASE for facts in CHECKPOINTS.values()) == 17


def test_notes_say_what_a_name_does_not() -> None:
    assert "ImageNet" in get_checkpoint("fpasst.ssl").note
    for name in ("m2d.ssl", "m2d.weak"):
        assert "one address" in get_checkpoint(name).note
    assert get_checkpoint("beats.ssl").note == ""


def test_names_files_and_modules_lead_to_one_checkpoint() -> None:
    everything = list(CHECKPOINTS.values())
    for key in ("name", "file", "module"):
        assert len({getattr(facts, key) for facts in everything}) == len(everything), key
    assert list_checkpoints() == hps.list_checkpoints() == sorted(CHECKPOINTS)
    for name, facts in CHECKPOINTS.items():
        assert facts.name == name and facts.module.isidentifier()
        # a HEAR module must not hide one of the package's own
        assert not files("hear_pretrainedsed").joinpath(f"{facts.module}.py").is_file()
        assert not files("hear_pretrainedsed").joinpath(facts.module).is_dir()


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_facts_of_every_checkpoint(name: str) -> None:
    facts = CHECKPOINTS[name]
    assert NAME.fullmatch(name)
    assert facts.backbone in BACKBONES and facts.stage in STAGES and facts.head in HEADS
    assert facts.sequence_model is None or facts.sequence_model[0] in SEQUENCE_MODELS
    assert facts.sha256 is None or re.fullmatch("[0-9a-f]{64}", facts.sha256)
    assert facts.url is None or re.fullmatch(r"https://\S+/[\w.+-]+\.pth?", facts.url)
    assert facts.url or "by hand" in facts.note
    assert re.fullmatch(r"[\w.+-]+\.(pth?|ckpt)", facts.file)
    assert facts.licence and "\n" not in facts.licence + facts.note
    assert facts.psds1 is None or (0 < facts.psds1 < 100 and facts.stage == "strong")
    if facts.stage == "strong":
        assert facts.labels
        assert (facts.psds1 is not None) == (facts.labels == "audioset_strong_train")
    if facts.labels:
        labels = read_labels(facts.labels)
        assert len(set(labels)) == len(labels) > 0 and all(x == x.strip() != "" for x in labels)
    for key in facts.references:
        check_entry(key, bibtex(name))


def check_entry(key: str, text: str) -> None:
    """One entry of this key, its braces in pairs, with title, author and year."""
    entries = re.findall(rf"^@\w+{{{key},\n(?:.*\n)*?}}", text, re.MULTILINE)
    assert len(entries) == 1, key
    depth = 0
    for letter in re.sub(r"\\[{}]", "", entries[0]):
        depth += (letter == "{") - (letter == "}")
        assert depth >= 0
    assert depth == 0
    fields = re.findall(r"^  (\w+) = {(.+)},?$", entries[0], re.MULTILINE)
    assert len(dict(fields)) == len(fields)
    assert {"title", "author", "year"} <= dict(fields).keys()
    assert re.fullmatch(r"(19|20)\d\d", dict(fields)["year"])
    assert " and " in dict(fields)["author"] or "," in dict(fields)["author"]


def test_bibtex_has_the_papers_of_backbone_and_system() -> None:
    text = bibtex("beats.strong")
    assert re.findall(r"^@\w+{(\w+),", text, re.MULTILINE) == ["beats", "pretrainedsed"]
    everything = files("hear_pretrainedsed").joinpath("assets", "references.bib").read_text("utf-8")
    keys = re.findall(r"^@\w+{(\w+),", everything, re.MULTILINE)
    used = {key for facts in CHECKPOINTS.values() for key in facts.references}
    assert len(set(keys)) == len(keys) and used <= set(keys)


def test_parts_of_a_name() -> None:
    facts = Checkpoint("fmn10.strong-akd+tf-256", "x.pt", "MIT")
    assert (facts.backbone, facts.stage) == ("fmn10", "strong")
    assert facts.sequence_model == ("tf", 256)
    assert facts.module == "fmn10_strong_akd_tf_256"
    assert Checkpoint("psla.weak-audioset", "x.pt", "MIT", release=None).url is None


@pytest.mark.parametrize(
    ("given", "near"),
    [("beat.strong", "beats.strong"), ("BEATs.strong", "beats.strong"), ("m2d_ssl", "m2d.ssl")],
)
def test_unknown_name_is_answered_with_the_nearest(given: str, near: str) -> None:
    for ask in (get_checkpoint, lambda name: hps.load_model(checkpoint=name), bibtex):
        with pytest.raises(ValueError, match=f"'{given}'; did you mean '{near}'") as caught:
            ask(given)
        assert "\n" not in str(caught.value) and "fpasst.weak" in str(caught.value)


def test_unknown_with_nothing_near() -> None:
    assert unknown("thing", 5, ["abc", "def"]) == "unknown thing 5 (one of: abc, def)"
    assert (
        unknown("thing", "ab", ["abc"]) == "unknown thing 'ab'; did you mean 'abc'? (one of: abc)"
    )
