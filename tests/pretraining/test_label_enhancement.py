"""Label enhancement: PSLA's reference, slow obvious code beside it, label files in three forms."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretraining.enhanced_files import Enhanced, enhance_file
from pretraining.label_enhancement import (
    RULES,
    Ontology,
    enhance,
    enhance_by,
    read_ontology,
    thresholds,
)
from pretraining.vocabulary import Vocabulary, open_vocabulary


@pytest.fixture
def facts(shared: Path) -> dict[str, Any]:
    content = json.loads((shared / "parity_efficient" / "psla.cases.json").read_text())
    return content["label_enhancement"]


@pytest.fixture
def ontology(facts: dict[str, Any], tmp_path: Path) -> Ontology:
    path = tmp_path / "ontology.json"
    path.write_text(json.dumps(facts["ontology"]))
    return read_ontology(path)


def vocabulary_of(labels: list[str]) -> Vocabulary:
    return Vocabulary("a list", tuple(labels), {label: i for i, label in enumerate(labels)})


def test_the_ontology_is_read_as_psla_does(facts: dict[str, Any], ontology: Ontology) -> None:
    assert {k: list(v) for k, v in ontology.children.items()} == facts["child_dict"]
    above = ontology.ancestors()
    for one, ancestors in facts["ancestors_including_self"].items():
        assert above[one] | {one} == set(ancestors or [one]), one


@pytest.mark.parametrize("rule", RULES[1:])
def test_is_psla_s(facts: dict[str, Any], ontology: Ontology, rule: str) -> None:
    order = facts["label_order"]
    vocabulary = vocabulary_of(order)
    labels = [[order.index(label) for label in row] for row in facts["clip_labels"]]
    scores = np.array(facts["predictions"])
    limits = thresholds(labels, scores, rule)
    np.testing.assert_allclose(limits, facts["thresholds"][rule], rtol=1e-12)
    for name, types in (("type1", [1]), ("type2", [2]), ("merged", [1, 2])):
        found = enhance_by(ontology, vocabulary, labels, scores, rule, types)
        wanted = facts["results"][rule][name]
        assert [sorted(order[i] for i in row) for row in found] == wanted, name


def test_without_a_threshold_all_that_is_linked_is_added(
    facts: dict[str, Any], ontology: Ontology
) -> None:
    order = facts["label_order"]
    vocabulary = vocabulary_of(order)
    start = [[order.index("/p/A1a")], [order.index("/p/A")], [order.index("/p/X1")]]
    found = enhance_by(ontology, vocabulary, start, np.zeros((3, len(order))), "none")
    names = [[order[i] for i in row] for row in found]
    assert names == [["/p/A", "/p/A1", "/p/A1a"], ["/p/A", "/p/A1", "/p/A2"], ["/p/X1"]]


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), rule=st.sampled_from(RULES))
def test_is_what_slow_code_does(seed: int, rule: str) -> None:
    chance = np.random.default_rng(seed)
    n_clips, n_classes = 9, 5
    labels = [np.flatnonzero(chance.random(n_classes) < 0.4).tolist() for _ in range(n_clips)]
    scores = chance.integers(0, 4, (n_clips, n_classes)) / 4  # ties: above is strict
    links = chance.random((n_classes, n_classes)) < 0.4
    limits = thresholds(labels, scores, rule)
    wanted = []
    for clip, own in enumerate(labels):
        after = set(own)
        for label in own:
            for other in range(n_classes):
                known = [scores[i, other] for i in range(n_clips) if other in labels[i]]
                if links[label, other] and (rule == "none" or known):
                    limit = -1.0 if rule == "none" else statistic(known, rule)
                    after |= {other} if scores[clip, other] > limit else set()
        wanted.append(tuple(sorted(after)))
    assert enhance(labels, scores, links, limits) == wanted


def statistic(values: list[float], rule: str) -> float:
    if rule == "mean":
        return float(np.mean(values))
    return float(np.percentile(values, 50 if rule == "median" else int(rule)))


def test_many_clips_are_taken_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    chance = np.random.default_rng(0)
    labels = [[int(n)] for n in chance.integers(0, 3, 10)]
    scores, links = chance.random((10, 3)), np.ones((3, 3), dtype=bool)
    limits = np.full(3, 0.5)
    whole = enhance(labels, scores, links, limits)
    monkeypatch.setattr("pretraining.label_enhancement._CLIPS_AT_ONCE", 4)
    assert enhance(labels, scores, links, limits) == whole


# ---- files ----

NODES = [
    {"id": "/m/a", "name": "Animal", "restrictions": [], "child_ids": ["/m/d"]},
    {"id": "/m/d", "name": "Dog", "restrictions": [], "child_ids": ["/m/b"]},
    {"id": "/m/b", "name": "Bark, loud", "restrictions": [], "child_ids": []},
]


@pytest.fixture
def small(tmp_path: Path) -> tuple[Path, Vocabulary, Ontology]:
    (tmp_path / "ontology.json").write_text(json.dumps(NODES))
    rows = ["index,mid,display_name", '0,/m/b,"Bark, loud"', "1,/m/d,Dog", "2,/m/a,Animal"]
    (tmp_path / "classes.csv").write_text("\n".join(rows))
    vocabulary = open_vocabulary(tmp_path / "classes.csv")
    return tmp_path, vocabulary, read_ontology(tmp_path / "ontology.json")


SCORES = np.array([[0.2, 0.9, 0.9], [0.9, 0.9, 0.1]])


def test_psla_s_file(small: tuple[Path, Vocabulary, Ontology]) -> None:
    folder = small[0]
    data = [
        {"wav": "audio/one.flac", "labels": "/m/d", "more": 1},
        {"wav": "audio/two.flac", "labels": "/m/d"},
        {"wav": "audio/gone.flac", "labels": "/m/d"},
    ]
    (folder / "in.json").write_text(json.dumps({"data": data}))
    done = enhance_file(
        folder / "in.json",
        folder / "out.json",
        ["two", "one"],
        SCORES,
        *small[1:],
        "none",
    )
    by_class = {"Bark, loud": 2, "Animal": 2}
    assert done == Enhanced(n_clips=3, n_without_scores=1, n_added=4, by_class=by_class)
    after = json.loads((folder / "out.json").read_text())["data"]
    assert after[0] == {"wav": "audio/one.flac", "labels": "/m/d,/m/b,/m/a", "more": 1}
    assert after[2] == data[2]


def test_the_scores_of_a_clip_are_found_by_its_name(
    small: tuple[Path, Vocabulary, Ontology],
) -> None:
    folder, vocabulary, ontology = small
    text = '# YTID, start, end, labels\none, 30.000, 40.000, "/m/d"\ntwo, 0.0, 10.0, "/m/b,/m/d"\n'
    (folder / "in.csv").write_text(text)
    args = (vocabulary, ontology, "mean")
    names = ["Ytwo", "one_30000"]
    enhance_file(folder / "in.csv", folder / "out.csv", names, SCORES, *args)
    lines = (folder / "out.csv").read_text().splitlines()
    # one has 0.9 for Bark; two alone carries it and has 0.2. No clip has Animal: never added.
    assert lines == [
        "# YTID, start, end, labels",
        'one, 30.000, 40.000, "/m/d,/m/b"',
        'two, 0.0, 10.0, "/m/b,/m/d"',
    ]


def test_fsd50k_s_file_by_name_with_ids_beside(small: tuple[Path, Vocabulary, Ontology]) -> None:
    folder, vocabulary, ontology = small
    (folder / "in.csv").write_text("fname,labels,mids,split\n7,Dog,/m/d,train\n8,Animal,/m/a,val\n")
    enhance_file(
        folder / "in.csv", folder / "out.csv", ["7", "8"], SCORES, vocabulary, ontology, "none", [2]
    )
    with (folder / "out.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows[0] == {"fname": "7", "labels": "Dog,Animal", "mids": "/m/d,/m/a", "split": "train"}
    assert rows[1] == {"fname": "8", "labels": "Animal", "mids": "/m/a", "split": "val"}


def test_a_name_with_a_comma_is_written_by_its_id(
    small: tuple[Path, Vocabulary, Ontology],
) -> None:
    """The list of a clip's labels has commas between them: the name would be two others."""
    folder, vocabulary, ontology = small
    (folder / "in.csv").write_text('one, 0, 10, "Dog"\n')
    args = (folder / "in.csv", folder / "out.csv", ["one_0"], SCORES[:1])
    enhance_file(*args, vocabulary, ontology, "none")
    assert (folder / "out.csv").read_text() == 'one, 0, 10, "Dog,/m/b,Animal"\n'
    (folder / "names.txt").write_text("\n".join(vocabulary.labels))
    names_alone = open_vocabulary(folder / "names.txt")
    args = (folder / "in.csv", folder / "none.csv", *args[2:])
    with pytest.raises(ValueError, match="'Bark, loud' cannot be written into a label file"):
        enhance_file(*args, names_alone, ontology, "none")
    assert not (folder / "none.csv").exists()


# ---- what is refused ----


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "no ontology"),
        ('[{"id": "a"}]', "no ontology"),
        ('[{"id": "a", "child_ids": []}, {"id": "a", "child_ids": []}]', "an id is there twice"),
    ],
)
def test_refuses_an_ontology(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "o.json").write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        read_ontology(tmp_path / "o.json")
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="cannot be read"):
        read_ontology(tmp_path / "none.json")


def test_refuses_a_circle() -> None:
    circle = Ontology({"a": "A", "b": "B"}, {"a": ("b",), "b": ("a",)})
    with pytest.raises(ValueError, match=r"'a' \(A\) above itself"):
        circle.ancestors()


def test_refuses_rules_types_shapes_and_foreign_classes(ontology: Ontology) -> None:
    scores = np.zeros((2, 3))
    with pytest.raises(ValueError, match="unknown threshold 'meen'; did you mean 'mean'"):
        thresholds([[0], [1]], scores, "meen")
    with pytest.raises(ValueError, match=r"scores of shape \(2, 3\) for 1 clips"):
        thresholds([[0]], scores, "mean")
    with pytest.raises(ValueError, match="unknown type of label enhancement 3"):
        ontology.links(vocabulary_of(["/p/A"]), 3)
    with pytest.raises(ValueError, match="none of the 1 classes of a list is in the ontology"):
        ontology.links(vocabulary_of(["Piano"]), 1)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("in.json", '{"date": []}', "not of the form"),
        ("in.json", '{"data": [{"wav": "one.wav", "labels": 3}]}', "not of the form"),
        ("in.csv", "fname,label\n7,Dog\n", "no column 'labels'"),
        ("in.csv", "one, thirty, 40, /m/d\n", "line 1: a line is id, start, end"),
        ("in.csv", "# nothing\n", "no clip labels in it"),
        ("in.csv", 'one, 0, 10, "/m/dog"\n', r"1 label \('/m/dog'\) is not among the 3 classes"),
        ("in.csv", 'three, 0, 10, "/m/d"\n', r"1 clip \('three_0'\) is without scores"),
    ],
)
def test_refuses_a_file_and_writes_none(
    small: tuple[Path, Vocabulary, Ontology], name: str, text: str, message: str
) -> None:
    folder, vocabulary, ontology = small
    (folder / name).write_text(text)
    target = folder / "out"
    with pytest.raises(ValueError, match=message) as caught:
        enhance_file(folder / name, target, ["one", "two"], SCORES, vocabulary, ontology, "none")
    assert "\n" not in str(caught.value)
    assert not target.exists()
