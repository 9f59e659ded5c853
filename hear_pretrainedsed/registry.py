"""BACKBONES and CHECKPOINTS: the only place that lists names."""

from __future__ import annotations

import csv
import difflib
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib.resources import files
from pathlib import Path

from torch import nn

from hear_pretrainedsed.backbones.asit import ASiT
from hear_pretrainedsed.backbones.atst_f import AtstFrame
from hear_pretrainedsed.backbones.atst_sed import AtstSed
from hear_pretrainedsed.backbones.base import Backbone
from hear_pretrainedsed.backbones.beats import Beats
from hear_pretrainedsed.backbones.fpasst import FPaSST
from hear_pretrainedsed.backbones.frame_mn import Fmn, FrameMobileNet
from hear_pretrainedsed.backbones.m2d import M2D
from hear_pretrainedsed.backbones.psla import Psla
from hear_pretrainedsed.sequence_models.attn import Attn
from hear_pretrainedsed.sequence_models.gru import BiGru
from hear_pretrainedsed.sequence_models.hybrid import Hybrid
from hear_pretrainedsed.sequence_models.mamba import Mamba
from hear_pretrainedsed.sequence_models.tcn import Tcn
from hear_pretrainedsed.sequence_models.tf import Tf

BACKBONES: dict[str, Callable[[], Backbone]] = {
    "asit": ASiT,
    "atst_f": AtstFrame,
    "atst_sed": AtstSed,
    "beats": Beats,
    "fmn04": partial(Fmn, 0.4),
    "fmn06": partial(Fmn, 0.6),
    "fmn10": partial(Fmn, 1.0),
    "fmn20": partial(Fmn, 2.0),
    "fmn30": partial(Fmn, 3.0),
    "fpasst": FPaSST,
    "frame_mn06": partial(FrameMobileNet, 0.6),
    "frame_mn10": partial(FrameMobileNet, 1.0),
    "m2d": M2D,
    "psla": Psla,
}

#: (frames' dim, model's dim) -> model
SEQUENCE_MODELS: dict[str, Callable[[int, int], nn.Module]] = {
    "attn": Attn,
    "gru": BiGru,
    "hybrid": Hybrid,
    "mamba": Mamba,
    "tcn": Tcn,
    "tf": Tf,
}

STAGES = ("ssl", "weak", "strong")
PRETRAINEDSED = "https://github.com/fschmid56/PretrainedSED/releases/download/v0.0.1/"
EFFICIENTSED = "https://github.com/theMoro/EfficientSED/releases/download/v0.0.1/"


@dataclass(frozen=True)
class Checkpoint:
    """Facts about one file. `labels` names the class list of its trained head.

    Those of a checkpoint that the user imported (`own`) are its `names`.
    """

    name: str
    file: str
    licence: str
    release: str | None = PRETRAINEDSED
    sha256: str | None = None  # None: nobody here has seen the file
    labels: str | None = None
    n_classes: int | None = None  # of a trained head whose class names are not known here
    head: str = "linear"  # key of `model.HEADS`; read where there are labels or n_classes
    clip_s: float | None = None  # see `SEDModel.clip_samples`
    psds1: float | None = None  # AudioSet Strong, macro over 407 classes, no variance penalty
    note: str = ""
    paper: str = "pretrainedsed"  # of the system that published it; key in assets/references.bib
    names: tuple[str, ...] | None = None
    own: bool = False
    n_layers: int | None = None  # of the sequence model; None: its usual number

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Class names of its trained head, where there is one and they are known."""
        return read_labels(self.labels) if self.labels else self.names

    @property
    def backbone(self) -> str:
        """Key of `BACKBONES`."""
        return self.name.split(".")[0]

    @property
    def stage(self) -> str:
        """`ssl`, `weak` or `strong`."""
        return re.split(r"[-+]", self.name.split(".")[1])[0]

    @property
    def sequence_model(self) -> tuple[str, int] | tuple[str, int, int] | None:
        """(key of `SEQUENCE_MODELS`, dim), from the part of the name after the plus sign.

        And the number of its layers, where that is not the usual one.
        """
        _, plus, sequence = self.name.partition("+")
        if not plus:
            return None
        name, dim = sequence.split("-")
        return (name, int(dim)) if self.n_layers is None else (name, int(dim), self.n_layers)

    @property
    def url(self) -> str | None:
        """Where the file is published."""
        return self.release and self.release + self.file

    @property
    def module(self) -> str:
        """Name of the checkpoint's HEAR module below `hear_pretrainedsed`."""
        return re.sub(r"[.+-]", "_", self.name)

    @property
    def references(self) -> tuple[str, ...]:
        """Keys in assets/references.bib: the backbone's paper and the publishing system's."""
        own = re.sub(r"^(frame_mn|fmn)\d+$", "frame_mn", self.backbone)
        return tuple(dict.fromkeys((own, self.paper)))


MIT = "MIT"
ATST_LICENCE = "CC BY 4.0"
M2D_LICENCE = "NTT's own (see the M2D repository)"
ASIT_LICENCE = "none stated (ASiT's repository has no licence file)"
STRONG = "audioset_strong_train"
DEIT = "an ImageNet DeiT initialisation: there is no audio SSL stage of this backbone"
EFFICIENTSED_LICENCE = "none known here (see the EfficientSED repository)"
PSLA_LICENCE = "none known here (see the PSLA repository)"
ATST_SED_LICENCE = "none known here (see the ATST-SED repository)"
ATST_SED_NOTE = "{}; no address is known: put it into the cache folder by hand"
PSLA_NOTE = "mAP {:.3f} in its paper; no address is known: put it into the cache folder by hand"
ONE_ADDRESS = "the sources give one address for M2D's SSL and Weak files: compare their sha256"

_PUBLISHED = (
    Checkpoint("asit.ssl", "ASIT_ssl.pt", ASIT_LICENCE),
    Checkpoint("asit.weak", "ASIT_weak.pt", ASIT_LICENCE),
    Checkpoint("asit.strong", "ASIT_strong_1.pt", ASIT_LICENCE, labels=STRONG, psds1=46.2),
    Checkpoint("atst_f.ssl", "ATST-F_ssl.pt", ATST_LICENCE),
    Checkpoint("atst_f.weak", "ATST-F_weak.pt", ATST_LICENCE),
    Checkpoint("atst_f.strong", "ATST-F_strong_1.pt", ATST_LICENCE, labels=STRONG, psds1=45.8),
    Checkpoint("beats.ssl", "BEATs_ssl.pt", MIT),
    Checkpoint("beats.weak", "BEATs_weak.pt", MIT),
    Checkpoint("beats.strong", "BEATs_strong_1.pt", MIT, labels=STRONG, psds1=46.5),
    Checkpoint("fpasst.ssl", "fpasst_ssl.pt", MIT, note=DEIT),
    Checkpoint("fpasst.weak", "fpasst_weak.pt", MIT),
    Checkpoint("fpasst.strong", "fpasst_strong_1.pt", MIT, labels=STRONG, psds1=45.4),
    Checkpoint("frame_mn06.strong", "frame_mn06_strong_1.pt", MIT, labels=STRONG, psds1=40.81),
    Checkpoint("frame_mn10.strong", "frame_mn10_strong_1.pt", MIT, labels=STRONG, psds1=43.26),
    Checkpoint("m2d.ssl", "M2D_ssl.pt", M2D_LICENCE, note=ONE_ADDRESS),
    Checkpoint("m2d.weak", "M2D_weak.pt", M2D_LICENCE, note=ONE_ADDRESS),
    Checkpoint("m2d.strong", "M2D_strong_1.pt", M2D_LICENCE, labels=STRONG, psds1=46.3),
)

#: PSDS1 of EfficientSED's strong checkpoints: {backbone: {sequence model or "": number}}
EFFICIENTSED_PSDS1: dict[str, dict[str, float]] = {
    "fmn04": {"": 39.52, "tf-104": 40.10, "hybrid-104": 41.37, "gru-104": 40.81},
    "fmn06": {"": 40.75, "tf-160": 41.78, "hybrid-160": 42.54, "gru-160": 40.37},
    "fmn10": {
        "": 42.28,
        **{"tf-128": 42.75, "tf-256": 43.86, "tf-512": 44.11, "tf-1024": 44.55},
        **{"hybrid-128": 43.45, "hybrid-256": 44.05, "hybrid-512": 44.32, "hybrid-1024": 44.48},
        **{"gru-128": 43.13, "gru-256": 43.53, "gru-512": 43.96, "gru-1024": 44.50},
    },
    "fmn20": {"": 43.86, "tf-512": 45.13, "hybrid-512": 45.44, "gru-512": 44.94},
    "fmn30": {"": 44.24, "tf-768": 45.64, "hybrid-768": 45.67, "gru-768": 45.77},
}


def _efficientsed(name: str, file: str, psds1: float | None) -> Checkpoint:
    """A checkpoint of EfficientSED's release; without PSDS1 it is a weak one."""
    return Checkpoint(
        name,
        file,
        EFFICIENTSED_LICENCE,
        release=EFFICIENTSED,
        labels=None if psds1 is None else STRONG,
        psds1=psds1,
        paper="efficientsed",
    )


_EFFICIENTSED = (
    *(_efficientsed(f"{fmn}.weak", f"{fmn}_weak.pt", None) for fmn in EFFICIENTSED_PSDS1),
    *(
        _efficientsed(f"{fmn}.strong{plus}", f"{fmn}{plus}_strong.pt", psds1)
        for fmn, numbers in EFFICIENTSED_PSDS1.items()
        for plus, psds1 in ((f"+{seq}" if seq else "", number) for seq, number in numbers.items())
    ),
    _efficientsed("fmn10.strong-akd+tf-256", "fmn10+tf-256_advanced-kd-weak-strong.pt", 45.25),
)


def _psla(
    data: str, n_map: float, n_averaged: float, **facts: str | int | float
) -> tuple[Checkpoint, Checkpoint]:
    """PSLA's checkpoints of one data set: of a single epoch, and averaged over the last ones."""
    single = Checkpoint(
        f"psla.weak-{data}",
        f"psla_{data}.pth",
        PSLA_LICENCE,
        release=None,
        head="multihead",
        paper="psla",
        note=PSLA_NOTE.format(n_map),
        **facts,
    )
    return single, replace(
        single,
        name=f"{single.name}-wa",
        file=f"psla_{data}_wa.pth",
        note=PSLA_NOTE.format(n_averaged),
    )


_PSLA = (
    *_psla("audioset", 0.440, 0.444, labels="audioset_527"),
    *_psla("fsd50k", 0.558, 0.562, n_classes=200, clip_s=30.0),
)


def _atst_sed(name: str, file: str, what: str) -> Checkpoint:
    """One of ATST-SED's two stages of training on DESED."""
    return Checkpoint(
        name,
        file,
        ATST_SED_LICENCE,
        release=None,
        labels="desed",
        head="token_attention",
        paper="atst_sed",
        note=ATST_SED_NOTE.format(what),
    )


_DESED_SCORES = "stage 2, teacher; PSDS1 0.583 and PSDS2 0.810 on DESED's validation in its paper"
_ATST_SED = (
    _atst_sed("atst_sed.strong-desed", "atst_sed_stage2.ckpt", _DESED_SCORES),
    _atst_sed(
        "atst_sed.strong-desed-stage1",
        "atst_sed_stage1.ckpt",
        "stage 1, teacher: the transformer is still ATST-Frame's own",
    ),
)

CHECKPOINTS: dict[str, Checkpoint] = {
    checkpoint.name: checkpoint for checkpoint in (*_PUBLISHED, *_EFFICIENTSED, *_PSLA, *_ATST_SED)
}


def list_checkpoints() -> list[str]:
    """Names of all checkpoints, sorted."""
    return sorted(CHECKPOINTS)


def get_checkpoint(name: str) -> Checkpoint:
    """The checkpoint of this name; `ValueError` names the nearest one."""
    if name not in CHECKPOINTS:
        raise ValueError(unknown("checkpoint", name, CHECKPOINTS))
    return CHECKPOINTS[name]


def unknown(what: str, given: object, allowed: Iterable[object]) -> str:
    """One line for a value that is not allowed: the value, the nearest match, what is allowed."""
    names = [str(value) for value in allowed]
    by_lower = {name.lower(): name for name in names}
    near = difflib.get_close_matches(str(given).lower(), by_lower, n=1, cutoff=0.5)
    hint = f"; did you mean {by_lower[near[0]]!r}?" if near else ""
    return f"unknown {what} {given!r}{hint} (one of: {', '.join(names)})"


@cache
def read_labels(name: str) -> tuple[str, ...]:
    """Class list of assets/<name>.txt, in the order of the head's outputs."""
    text = files("hear_pretrainedsed").joinpath("assets", f"{name}.txt").read_text("utf-8")
    return tuple(text.splitlines())


def read_vocabulary(path: str | os.PathLike[str], checkpoint: Checkpoint) -> tuple[str, ...]:
    """Class names that the user has for a head of unknown ones, in the order of its outputs.

    One a line; or a table as AudioSet's and PSLA's (with a column `display_name`); or one as
    FSD50K's vocabulary.csv (index, name, id, without a title line). UTF-8.
    """
    if checkpoint.n_classes is None:
        has = f"those of {checkpoint.labels}" if checkpoint.labels else "no trained head"
        raise ValueError(f"vocabulary={str(path)!r} has no use: {checkpoint.name} has {has}")
    try:
        text = Path(path).read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"vocabulary={str(path)!r} cannot be read: {error}") from error
    rows = [row for row in csv.reader(text.splitlines()) if row]
    if rows and "display_name" in rows[0]:
        column = rows[0].index("display_name")
        names = [row[column] for row in rows[1:] if len(row) > column]
    elif rows and all(len(row) == 3 and row[0] == str(i) for i, row in enumerate(rows)):
        names = [row[1] for row in rows]
    else:
        names = [line.strip() for line in text.splitlines() if line.strip()]
    if len(set(names)) != checkpoint.n_classes or len(names) != checkpoint.n_classes:
        raise ValueError(
            f"vocabulary={str(path)!r} holds {len(names)} names, {len(set(names))} of them "
            f"different; the head of {checkpoint.name} has {checkpoint.n_classes} classes"
        )
    return tuple(names)


@cache
def _references() -> dict[str, str]:
    """BibTeX entries of assets/references.bib, by key."""
    path = files("hear_pretrainedsed").joinpath("assets", "references.bib")
    entries = path.read_text("utf-8").strip().split("\n\n")
    return {re.search(r"{(\w+),", entry)[1]: entry for entry in entries}


def bibtex(name: str) -> str:
    """BibTeX entries of what a checkpoint asks to be cited for."""
    return "\n\n".join(_references()[key] for key in get_checkpoint(name).references)


def paper(key: str) -> str:
    """A paper of assets/references.bib in one line: title (year, arXiv number)."""
    entry = _references()[key]
    fields = dict(re.findall(r"^  (\w+) = {(.*)},?$", entry, flags=re.MULTILINE))
    number = f", arXiv {fields['eprint']}" if "eprint" in fields else ""
    return re.sub(r"[{}]", "", f"{fields['title']} ({fields['year']}{number})")
