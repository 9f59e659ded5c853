"""`hear-pretrainedsed enhance-labels`: a label file with the labels that its clips lack (PSLA)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from hear_pretrainedsed.cli_options import Argument, Device, Option, Precision, device_of
from hear_pretrainedsed.progress import count_bar
from hear_pretrainedsed.registry import get_checkpoint, unknown
from pretraining.enhanced_files import Enhanced, clip_names, enhance_file
from pretraining.importers.listing import pick
from pretraining.label_enhancement import RULES, TYPES, Ontology, read_ontology
from pretraining.teacher_scores import TeacherScores, compute_scores, read_scores
from pretraining.vocabulary import Vocabulary, first_few, open_vocabulary

KINDS = {**{str(kind): (kind,) for kind in TYPES}, "both": TYPES}
_TOLD = 10  # classes

File = Annotated[Path, Argument(help="Clip labels: PSLA's JSON, AudioSet's CSV or FSD50K's CSV.")]
Out = Annotated[Path, Option("--out", "-o", help="The same with more labels; takes its place.")]
OntologyFile = Annotated[Path, Option("--ontology", help="AudioSet's ontology.json, or alike.")]
Classes = Annotated[str, Option(help="audioset_527, another shipped class list, or a file.")]
Teacher = Annotated[
    str | None, Option("--checkpoint", "-c", help="Teacher with clip scores, as in `list`.")
]
CorpusFolder = Annotated[
    Path | None, Option("--corpus", help="The clips that it hears, as `corpus` makes it.")
]
Scores = Annotated[
    Path | None, Option("--scores", help="Instead: .npz of names, scores (clips, classes).")
]
Save = Annotated[Path | None, Option("--save-scores", help="Keep the teacher's, for --scores.")]
Threshold = Annotated[str, Option(help=f"{', '.join(RULES)}: of scores of clips with the class.")]
Kind = Annotated[str, Option("--type", help="1: direct children; 2: all ancestors; both.")]
Batch = Annotated[int, Option("--batch-size", min=1, help="Clips at a time.")]


def enhance_labels(
    file: File,
    out: Out,
    ontology: OntologyFile,
    classes: Classes = "audioset_527",
    checkpoint: Teacher = None,
    corpus: CorpusFolder = None,
    scores: Scores = None,
    save_scores: Save = None,
    threshold: Threshold = "mean",
    kind: Kind = "both",
    device: Device = "auto",
    precision: Precision = "fp32",
    batch_size: Batch = 8,
) -> None:
    """Add labels that a clip ought to have by the ontology and a teacher's scores."""
    _check_choices(file, out, threshold, kind)
    vocabulary, tree = open_vocabulary(classes), read_ontology(ontology)
    for one in KINDS[kind]:
        tree.links(vocabulary, one)
    names = clip_names(file, vocabulary)
    if scores is not None:
        if (checkpoint, corpus, save_scores) != (None, None, None):
            raise ValueError("--scores stands alone: without --checkpoint, --corpus, --save-scores")
        found = read_scores(scores, vocabulary)
    elif checkpoint is None or corpus is None:
        raise ValueError("give --checkpoint NAME and --corpus DIR, or --scores FILE")
    else:
        options = {"device": device_of(device), "precision": precision, "batch_size": batch_size}
        found = _computed(checkpoint, corpus, file, names, vocabulary, **options)
        if save_scores is not None:
            found.write(save_scores, vocabulary)
    _write(file, out, found, vocabulary, tree, threshold, kind)


def _check_choices(file: Path, out: Path, threshold: str, kind: str) -> None:
    if threshold not in RULES:
        raise ValueError(unknown("threshold", threshold, RULES))
    if kind not in KINDS:
        raise ValueError(unknown("type", kind, KINDS))
    if out.exists() and file.exists() and out.samefile(file):
        raise ValueError(f"-o is {out}, which is what labels are added to: take another file")
    if not out.parent.is_dir():
        raise ValueError(f"cannot write {out}: there is no folder {out.parent}")


def _computed(
    checkpoint: str,
    folder: Path,
    source: Path,
    names: list[str],
    vocabulary: Vocabulary,
    **options: object,
) -> TeacherScores:
    """A checkpoint's scores for the clips of a label file that a corpus has."""
    from hear_pretrainedsed.api import load_model
    from pretraining.corpus import open_corpus

    get_checkpoint(checkpoint)
    corpus = open_corpus(folder)
    place = {name: number for number, name in enumerate(corpus.names)}
    there = {picked for name in names if (picked := pick(name, place)) is not None}
    if not there:
        raise ValueError(f"{source}: {first_few(names, 'clip')} not in {folder}, and no clip is")
    model = load_model(checkpoint=checkpoint, **options)
    numbers = sorted(place[name] for name in there)
    size = int(str(options["batch_size"]))
    with count_bar("clips") as progress:
        return compute_scores(
            model, corpus, numbers, vocabulary, batch_size=size, progress=progress
        )


def _write(
    source: Path,
    out: Path,
    found: TeacherScores,
    vocabulary: Vocabulary,
    tree: Ontology,
    threshold: str,
    kind: str,
) -> None:
    """Write the file, and say what was added."""
    done: Enhanced = enhance_file(
        source, out, found.names, found.scores, vocabulary, tree, threshold, KINDS[kind]
    )
    print(
        f"{out}: {done.n_clips} clips, {done.n_without_scores} of them without scores; "
        f"{done.n_added} labels added to {len(done.by_class)} classes"
    )
    told = list(done.by_class.items())
    for label, n in told[:_TOLD]:
        print(f"{n:8} {label}")
    if len(told) > _TOLD:
        print(f"{sum(n for _, n in told[_TOLD:]):8} of {len(told) - _TOLD} other classes")
