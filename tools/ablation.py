"""What each part of protocol `best` gains, on validation data; writes the table of its page.

.venv/bin/python tools/ablation.py --checkpoints atst_f.strong fmn10.strong --tasks FOLDER ...

Train is trained on; thresholds and medians are found on every second valid clip and scored on the
others, and the other way round. Test clips are never looked at, and of folds only the first
rotation is run. What is finished is kept in a folder, and the same command goes on from there.
With --stand-in, weights are made by a rule (random features): for a machine without the published
ones.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from downstream.embeddings import FrameSource, find_weights  # noqa: E402
from downstream.protocols.base import Settings  # noqa: E402
from downstream.protocols.best import RECIPE, ChangePoints, Kit, Recipe, Scores  # noqa: E402
from downstream.scoring import main_score  # noqa: E402
from downstream.tasks import Clip, Task, open_task  # noqa: E402
from hear_pretrainedsed.records import cache_folder  # noqa: E402
from hear_pretrainedsed.registry import CHECKPOINTS, get_checkpoint  # noqa: E402
from hear_pretrainedsed.rule_weights import write_release_file  # noqa: E402

PAGE = ROOT / "docs" / "protocols.md"
MARKS = ("<!-- ablation: made by tools/ablation.py -->", "<!-- /ablation -->")
_WHAT = ("score", "frame_map")
Key = tuple[str, str, str, int]  # variant, checkpoint, task, seed


@dataclass(frozen=True)
class Variant:
    """A recipe with a name, and the variant that its gain is counted from."""

    name: str
    recipe: Recipe
    beside: str | None = None


def variants(base: Recipe) -> list[Variant]:
    """From a linear layer on the last output to all parts, one by one; then what else there is."""
    off: dict[str, Any] = {"layer_sum": False, "n_prototypes": None, "windowing": "reference"}
    off |= {"concat_mel": False, "calibrated": False, "change_points": None, "n_dropped": 0}
    steps = (
        ("+ thresholds and medians a class from valid", {"calibrated": True}),
        ("+ prototypes", {"n_prototypes": RECIPE.n_prototypes}),
        ("+ learned sum of blocks", {"layer_sum": True}),
    )
    found = [Variant("linear layer on the last output", replace(base, **off))]
    for name, part in steps:
        last = found[-1]
        found.append(Variant(name, replace(last.recipe, **part), last.name))
    full, name = found[-1].recipe, found[-1].name
    others: tuple[tuple[str, dict[str, Any]], ...] = (
        ("last two blocks dropped", {"n_dropped": 2}),
        ("linear layer again", {"n_prototypes": None}),
        ("change points", {"change_points": ChangePoints()}),
        ("overlapping windows", {"windowing": "overlap"}),
        ("mel appended", {"concat_mel": True}),
    )
    found += [Variant(f"all of these, {n}", replace(full, **part), name) for n, part in others]
    return found


def trained(recipe: Recipe) -> Recipe:
    """A recipe without what comes after training: what its scores depend on."""
    return replace(recipe, calibrated=False, change_points=None)


def crossed(kit: Kit, clips: Sequence[Clip], scores: Scores) -> float:
    """The main score on clips, each half of them decoded by what is best for the other half."""
    halves = (clips[::2], clips[1::2])
    smooth, events = {}, {}
    for mine, other in (halves, halves[::-1]):
        decoding = kit.decoding(other, {clip.file: scores[clip.file] for clip in other})
        found = kit.decode({clip.file: scores[clip.file] for clip in mine}, decoding)
        smooth |= found[0]
        events |= found[1]
    return main_score(kit.task, clips, smooth, events)


def run(
    task: Task, source: FrameSource, wanted: Sequence[Variant], seed: int
) -> Iterator[tuple[Variant, dict[str, float]]]:
    """Scores of each variant; those that differ in decoding only are trained once."""
    known: dict[Recipe, tuple[Scores, float]] = {}
    rotation = task.rotations[0]
    clips = task.clips(rotation.valid)
    for variant in wanted:
        kit = Kit.of(task, source, variant.recipe, Settings(tell=_tell), seed)
        recipe = trained(variant.recipe)
        if recipe not in known:
            model, chosen = kit.fit(rotation, recipe.lrs)
            known[recipe] = (kit.scores(model, clips), chosen["valid_frame_map"])
        scores, frame_map = known[recipe]
        score = crossed(kit, clips, scores)
        yield variant, {"score": 0.0 if math.isnan(score) else score, "frame_map": frame_map}


def _tell(line: str) -> None:
    if sys.stderr.isatty():
        print(f"\r{line:60}", end="", file=sys.stderr)


def facts_of(recipe: Recipe) -> dict[str, Any]:
    """A recipe as it comes back from a line of JSON."""
    return json.loads(json.dumps(asdict(recipe)))


def finished(path: Path, wanted: Sequence[Variant]) -> dict[Key, dict[str, float]]:
    """What a file of lines holds of these variants; not what was found with other settings."""
    recipes = {v.name: facts_of(v.recipe) for v in wanted}
    lines = path.read_text().splitlines() if path.is_file() else []
    rows = [row for row in map(json.loads, lines) if row["recipe"] == recipes.get(row["variant"])]
    return {(r["variant"], r["checkpoint"], r["task"], r["seed"]): r["found"] for r in rows}


def measure(arguments: argparse.Namespace, wanted: Sequence[Variant], path: Path) -> None:
    """Run what is not finished, a line each."""
    embeddings = arguments.embeddings or cache_folder() / "embeddings"
    tasks = [open_task(folder) for folder in arguments.tasks]
    for name in arguments.checkpoints:
        for task in tasks:
            source = FrameSource(find_weights(name), task.clips(task.splits), embeddings)
            for seed in range(arguments.seeds):
                done = finished(path, wanted)
                left = [v for v in wanted if (v.name, name, task.name, seed) not in done]
                for variant, found in run(task, source, left, seed):
                    names = {"variant": variant.name, "checkpoint": name, "task": task.name}
                    facts = names | {"seed": seed, "recipe": facts_of(variant.recipe)}
                    with path.open("a") as file:
                        file.write(json.dumps(facts | {"found": found}) + "\n")
                    print(*names.values(), seed, found, flush=True)


def table(wanted: Sequence[Variant], done: dict[Key, dict[str, float]], note: str) -> str:
    """Mean score and frame mAP of variants in per cent, a column a task and checkpoint; gains."""
    columns = list(dict.fromkeys((task, checkpoint) for _, checkpoint, task, _ in done))
    found: dict[tuple[str, str, str], tuple[float, ...]] = {}
    for name, checkpoint, task, _ in done:
        rows = [r for k, r in done.items() if k[:3] == (name, checkpoint, task)]
        found[name, task, checkpoint] = tuple(100 * mean(r[what] for r in rows) for what in _WHAT)
    lines = [
        f"| | {' | '.join(f'{task}<br>{checkpoint}' for task, checkpoint in columns)} | gain |",
        "|---|" + "---|" * (len(columns) + 1),
    ]
    for v in wanted:
        mine = [found.get((v.name, *c)) for c in columns]
        beside = [found.get((v.beside or "", *c)) for c in columns]
        cells = [_pair(one, ".1f") if one else "-" for one in mine]
        both = [(a, b) for a, b in zip(mine, beside, strict=True) if a and b]
        gains = [mean(a[i] - b[i] for a, b in both) for i in range(2)] if both else None
        cells.append(_pair(gains, "+.1f") if gains else "")
        lines.append(f"| {v.name} | {' | '.join(cells)} |")
    return "\n".join((MARKS[0], "", note, "", *lines, "", MARKS[1]))


def _pair(values: Sequence[float], how: str) -> str:
    return f"{values[0]:{how}} ({values[1]:{how}})"


def write_page(page: Path, text: str) -> None:
    """Put the table between its marks."""
    pattern = f"{re.escape(MARKS[0])}.*{re.escape(MARKS[1])}"
    old = page.read_text(encoding="utf-8")
    if not re.search(pattern, old, flags=re.DOTALL):
        raise ValueError(f"{page}: no {MARKS[0]} in it")
    page.write_text(re.sub(pattern, lambda _: text, old, flags=re.DOTALL), encoding="utf-8")


def note_of(arguments: argparse.Namespace, recipe: Recipe) -> str:
    """What the numbers are."""
    weights = "rule-made weights: random features" if arguments.stand_in else "published weights"
    low, high = recipe.steps_from_to
    steps = f"{low}" if low == high else f"{low} to {high}"
    seeds = "1 seed" if arguments.seeds == 1 else f"mean of {arguments.seeds} seeds"
    return (
        "Main metric of each task on its valid clips and, in brackets, frame mAP before decoding, "
        f"per cent; {weights}; {seeds}, {steps} steps of {recipe.batch_pieces} pieces. *Gain*: the "
        "mean difference to the row above, and for rows that begin with *all of these* to the last "
        "row that begins with a plus."
    )


def make_stand_ins(names: Sequence[str], folder: Path) -> None:
    """Rule-made weights under the published names, in a cache folder of their own."""
    os.environ["HEAR_PRETRAINEDSED_HOME"] = str(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        path = cache_folder() / get_checkpoint(name).file
        if not path.is_file():
            write_release_file(name, path)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoints", nargs="+", required=True, choices=list(CHECKPOINTS))
    parser.add_argument("--tasks", nargs="+", required=True, type=Path)
    parser.add_argument("--results", type=Path, default=Path("out/ablation"))
    parser.add_argument("--embeddings", type=Path, help="folder for frames (default: the cache's)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="of each training (default: the recipe's)")
    parser.add_argument("--batch-pieces", type=int, default=RECIPE.batch_pieces)
    parser.add_argument("--stand-in", action="store_true", help="rule-made weights")
    parser.add_argument("--page", type=Path, default=PAGE)
    return parser.parse_args(arguments)


def main(given: Sequence[str] | None = None) -> None:
    """Measure what is missing, then write the table."""
    arguments = parse(given)
    arguments.results.mkdir(parents=True, exist_ok=True)
    if arguments.stand_in:
        make_stand_ins(arguments.checkpoints, arguments.results / "stand_in")
    base = replace(RECIPE, batch_pieces=arguments.batch_pieces)
    if arguments.steps:
        base = replace(base, steps_from_to=(arguments.steps, arguments.steps))
    wanted, path = variants(base), arguments.results / "ablation.jsonl"
    measure(arguments, wanted, path)
    write_page(arguments.page, table(wanted, finished(path, wanted), note_of(arguments, base)))


if __name__ == "__main__":
    main()
