"""What a run begins with and learns from, seen before anything is trained or planned."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from hear_pretrainedsed.registry import get_checkpoint
from pretraining.config import Recipe
from pretraining.corpus import Corpus, open_corpus
from pretraining.validation import check_clip_labels, check_decodable, check_events

if TYPE_CHECKING:
    from pretraining.pseudo_labels import PseudoLabels  # needs h5py


@dataclass(frozen=True)
class Sources:
    """What a run begins with and learns from: folders of corpora, names of checkpoints, files.

    corpus: None for a plan alone.
    """

    corpus: Path | None
    weak_corpus: Path | None = None
    valid: Path | None = None
    evaluation: Path | None = None
    checkpoint: str | None = None
    backbone: str | None = None
    pseudo_labels: Path | None = None
    teacher: str | None = None
    image_weights: Path | None = None


@dataclass(frozen=True)
class Given:
    """A recipe with its sources, opened as they are asked for.

    What cannot be used raises `ValueError` in one line.
    """

    recipe: Recipe
    sources: Sources

    def check_use(self, *, missing: bool = True) -> None:
        """Refuse a source that the recipe does not use, and, with `missing`, one that it lacks."""
        recipe, sources = self.recipe, self.sources
        wanted = {
            "--pseudo-labels": (sources.pseudo_labels, recipe.pseudo == "file"),
            "--weak-corpus": (sources.weak_corpus, recipe.weak_batch is not None),
            "--teacher": (sources.teacher or self.teacher_name, recipe.pseudo == "teacher"),
        }
        for name, (value, needed) in wanted.items():
            if needed and value is None and missing:
                raise ValueError(f"the recipe {recipe.name} needs {name}")
            if value is not None and not needed:
                raise ValueError(f"the recipe {recipe.name} does not use {name} (got {value})")
        if sources.evaluation is not None:
            self._check_evaluation()

    def _check_evaluation(self) -> None:
        """Refuse an evaluation corpus where nothing would be evaluated."""
        recipe, told = self.recipe, f"--eval {self.sources.evaluation}"
        if recipe.stage != "weak":
            raise ValueError(f"{told}: it is for weak runs, and {recipe.name} is a strong one")
        if self.sources.valid is None:
            raise ValueError(f"{told}: what is evaluated is chosen on --valid, which is missing")
        if recipe.keep_from_epoch is None:
            raise ValueError(
                f"{told}: it compares the weights that are kept, and with keep_from_epoch None "
                "none are"
            )

    def check(self) -> None:
        """Refuse all of what is there that a run refuses, but for what needs a teacher's file."""
        self.check_use(missing=False)
        if self.sources.corpus is not None:
            _ = self.corpus
        _ = self.weak_corpus, self.valid, self.evaluation, self.pseudo
        if self.teacher_name is not None:
            self.check_teacher(get_checkpoint(self.teacher_name).classes)

    @cached_property
    def corpus(self) -> Corpus:
        """What is learned from; with events of all clips if the stage is strong."""
        assert self.sources.corpus is not None
        corpus = open_corpus(self.sources.corpus)
        if self.recipe.stage == "strong" and not corpus.has_events:
            raise ValueError(f"{corpus.folder} has clips without events: stage strong needs them")
        return corpus

    @cached_property
    def weak_corpus(self) -> Corpus | None:
        """The second stream's; with events of the same classes if these are learned there."""
        folder = self.sources.weak_corpus
        if folder is None:
            return None
        corpus = open_corpus(folder)
        if self.recipe.weak_objective == "strong":
            if self.sources.corpus is not None:
                corpus.require_labels(self.corpus.labels)
            if not corpus.has_events:
                raise ValueError(
                    f"{folder} has clips without events: weak_objective strong needs them"
                )
        return corpus

    @cached_property
    def valid(self) -> Corpus | None:
        """What is validated on: it has something of the classes that are learned."""
        return self._opened(self.sources.valid)

    @cached_property
    def evaluation(self) -> Corpus | None:
        """What a weak run's checkpoints are compared on afterwards; nothing is chosen there."""
        return self._opened(self.sources.evaluation)

    def _opened(self, folder: Path | None) -> Corpus | None:
        if folder is None:
            return None
        corpus = open_corpus(folder)
        check = check_clip_labels if self.recipe.stage == "weak" else check_events
        if self.sources.corpus is not None:
            check(self.corpus.labels, corpus)
        check_decodable(corpus)
        return corpus

    @cached_property
    def pseudo(self) -> PseudoLabels | None:
        """An ensemble's logits of the corpus' clips."""
        file = self.sources.pseudo_labels
        if file is None:
            return None
        from pretraining.pseudo_labels import PseudoLabels  # needs h5py

        pseudo = PseudoLabels(file)
        if self.sources.corpus is not None:
            pseudo.check(self.corpus)
        return pseudo

    @property
    def teacher_name(self) -> str | None:
        """The frozen one's, given or the recipe's, where there is one."""
        if self.recipe.pseudo != "teacher":
            return None
        return self.sources.teacher or self.recipe.teacher

    def check_teacher(self, labels: tuple[str, ...] | None) -> None:
        """Refuse a teacher of other classes than the corpus, or, without one, of another number."""
        has, told = len(labels or ()), f"the teacher {self.teacher_name} has other classes"
        if self.sources.corpus is None:
            if has != self.recipe.n_classes:
                raise ValueError(f"{told} ({has}) than n_classes says ({self.recipe.n_classes})")
        elif labels != self.corpus.labels:
            raise ValueError(
                f"{told} ({has}) than {self.corpus.folder} ({len(self.corpus.labels)})"
            )
