"""Recipes by name: what they reproduce, with the published number beside each.

Settings are those of the papers and of their released scripts (PretrainedSED, arXiv 2409.09546;
EfficientSED, arXiv 2503.11373; PSLA, TASLP 2021). PSDS1 is on AudioSet Strong's evaluation clips,
macro over 407 classes without the variance penalty, in per cent.
"""

from __future__ import annotations

import difflib
from dataclasses import replace
from typing import Any

from hear_pretrainedsed.registry import EFFICIENTSED_PSDS1, unknown
from hear_pretrainedsed.training.augmentation import Augmentation
from pretraining.config import Recipe

TRANSFORMERS = ("atst_f", "beats", "fpasst", "m2d", "asit")
TEACHER = "beats.strong"

_SCRIPT_WARMUP = 20_000  # whatever the scripts' option says
_PAPER_WARMUP = 5_000

#: PSDS1 by preset and backbone, in the order of TRANSFORMERS
_STRONG = {
    "strong_teacher": (43.3, 45.8, 43.3, 44.1, 43.3),
    "strong_teacher-no_rnn": (41.8, 44.1, 40.7, 41.1, 40.9),
    "strong_teacher-no_step2": (43.5, 34.4, 40.9, 43.8, 43.2),
    "strong_student": (45.8, 46.5, 45.4, 46.3, 46.2),
    "strong_student-no_kd": (41.8, 44.1, 40.7, 41.1, 40.9),  # the very numbers of no_rnn
    "strong_student-no_rnn_teachers": (45.7, 45.8, 45.3, 46.0, 46.1),
    "strong_student-no_step2": (45.7, 46.3, 45.2, 44.9, 46.2),
    "li_et_al": (40.9, 36.5, 38.7, 36.9, 37.0),
}
#: What the ablations are, where it is not what their base reproduces
_REPRODUCES = {
    "strong_teacher-no_rnn": "PretrainedSED's ablation: a teacher without sequence model",
    "strong_teacher-no_step2": "PretrainedSED's ablation: a teacher of two BiGRU layers of 2048, "
    "begun from the SSL stage instead of the Weak one",
    "strong_student-no_kd": "PretrainedSED's ablation: without distillation, which by its numbers "
    "(our reading) is the training of strong_teacher-no_rnn",
    "strong_student-no_rnn_teachers": "PretrainedSED's ablation: distilled from stored logits of "
    "teachers without sequence model",
    "strong_student-no_step2": "PretrainedSED's ablation: distilled from the ensemble's stored "
    "logits, begun from the SSL stage instead of the Weak one",
    "li_et_al": "Li et al.'s baseline as PretrainedSED reproduced it; our reading: labels alone, "
    "from the SSL stage, mixup, 30 epochs",
}
#: PSDS1 of ATST-Frame teachers by sequence model, layers and width 256, 512, 1024, 2048
_GRID = {
    ("gru", 1): (8.72, 40.62, 42.74, 43.41),
    ("gru", 2): (3.76, 7.26, 42.75, 43.43),
    ("gru", 3): (3.10, 0.12, 43.00, 42.66),
    ("tf", 1): (34.25, 40.41, 42.69, 42.90),
    ("tf", 2): (34.62, 41.11, 42.22, 38.94),
    ("tf", 3): (34.05, 40.30, 42.20, 42.90),
    ("attn", 1): (40.08, 41.78, 42.44, 41.58),
    ("attn", 2): (39.70, 41.91, 42.45, 41.59),
    ("attn", 3): (39.55, 41.95, 42.08, 41.42),
    ("mamba", 1): (40.27, 41.25, 41.97, 41.72),
}
_WIDTHS = (256, 512, 1024, 2048)
_SLOW_SEQUENCES = {  # of EfficientSED's checkpoints: sequence lr 8e-4, else 3e-3
    "fmn10+hybrid-256",
    *(f"fmn10+gru-{dim}" for dim in (256, 512, 1024)),
    "fmn06+gru-160",
    "fmn20+gru-512",
    "fmn30+gru-768",
}
_FMN_BATCHES = {"fmn04": (128, 2), "fmn06": (128, 2), "fmn10": (64, 4)}  # else 32 x 8

_MIXUP = Augmentation(mixup=0.3, draw_mel_edges=True)
_MILD = replace(_MIXUP, wavmix=0.5)  # as the released script's example of a student
_AGGRESSIVE = Augmentation(
    mixup=0.3, mixstyle=0.3, filter_augment=0.5, freq_warp=0.5, draw_mel_edges=True
)

_WEAK = Recipe(
    name="weak",
    reproduces="PSLA's pipeline with a linear clip head on the backbone's mean frame",
    stage="weak",
    n_classes=527,
    objective="weak",
    sampling="psla",
    replacement=True,
    epoch_clips=None,
    batch=100,
    augmentation=Augmentation(wav_mixup=0.5, spec_mask=(48, 192)),
    n_epochs=30,
    n_warmup_steps=1000,
    valid_every_epochs=1,
    keep_from_epoch=16,
    optimizer="adam",
    betas=(0.95, 0.999),
    lr=1e-4,
    weight_decay=5e-7,
    vector_decay=5e-7,
    schedule="steps",
    halve_from_epoch=10,
    halve_every_epochs=5,
)
_TEACHER = Recipe(
    name="strong_teacher",
    reproduces="a teacher of PretrainedSED's ensemble: two BiGRU layers of 2048 on the Weak stage",
    sequence_model="gru-2048",
    objective="strong",
    sampling="strong",
    batch=256,
    augmentation=_AGGRESSIVE,
    n_epochs=30,
    n_warmup_steps=_PAPER_WARMUP,
)
_STUDENT = Recipe(
    name="strong_student",
    reproduces="PretrainedSED's Strong checkpoint: distilled from the ensemble's stored logits",
    objective="strong",
    distillation_weight=0.9,
    pseudo="file",
    batch=256,
    augmentation=_MIXUP,
    n_epochs=120,
    n_warmup_steps=_PAPER_WARMUP,
)
_FMN = replace(
    _STUDENT,
    name="fmn_student",
    reproduces="EfficientSED's offline distillation",
    augmentation=replace(_MILD, frame_shift=0.125, mixup_larger_share=False),
    n_warmup_steps=_SCRIPT_WARMUP,
    layer_decay=0.9,
    decay_last=False,
)

_OURS: dict[str, Any] = {
    "optimizer": "adamw",
    "weight_decay": 0.01,
    "n_warmup_steps": None,
    "warmup_share": 0.1,
    "layer_decay": 0.9,
    "ema_decay": 0.999,
    "gradient_clip": 1.0,
    "precision": "bf16",
    "start": None,
    "published": "none: ours",
}
_REPAIRED: dict[str, Any] = {"time_mask": 0.2, "repaired_time_mask": True}


def _psla() -> list[Recipe]:
    base = replace(
        _WEAK,
        head="multihead",
        objective="psla",
        keep_from_epoch=1,  # an ensemble of one run is of all its epochs
        average_from_epoch=16,
        average_first_twice=True,
    )
    full = replace(
        base,
        name="weak-psla-audioset",
        reproduces="PSLA on the whole of AudioSet",
        published="mAP 0.440; averaged 0.444; ensemble of one run 0.453, of three runs 0.464",
    )
    balanced = replace(
        full,
        name="weak-psla-balanced",
        reproduces="PSLA on AudioSet's balanced set, labels enhanced (threshold mean)",
        published="mAP 0.316 (0.312 without enhanced labels; 0.317 with the 25th percentile)",
        sampling="uniform",
        replacement=False,
        lr=1e-3,
        n_epochs=60,
        halve_from_epoch=35,
        average_from_epoch=41,
    )
    fsd50k = replace(
        full,
        name="weak-psla-fsd50k",
        reproduces="PSLA on FSD50K, labels enhanced (threshold mean); clips of up to 30 s",
        published="mAP 0.567 (0.558 without enhanced labels), averaged 0.562, ensemble 0.573",
        n_classes=200,
        clip_s=30.0,
        lr=5e-4,
        batch=24,
        n_epochs=40,
        average_from_epoch=21,
    )
    return [
        replace(_WEAK, published="none: our reading for other backbones"),
        full,
        balanced,
        fsd50k,
    ]


def _strong() -> list[Recipe]:
    no_rnn = {"sequence_model": None}
    labels_alone = {"distillation_weight": 0.0, "pseudo": None, "n_epochs": 30}
    changes: dict[str, tuple[Recipe, str, dict[str, Any]]] = {
        "strong_teacher": (_TEACHER, "weak", {}),
        "strong_teacher-no_rnn": (_TEACHER, "weak", no_rnn),
        "strong_teacher-no_step2": (_TEACHER, "ssl", {}),
        "strong_student": (_STUDENT, "weak", {}),
        "strong_student-no_kd": (_TEACHER, "weak", no_rnn),
        "strong_student-no_rnn_teachers": (_STUDENT, "weak", {}),
        "strong_student-no_step2": (_STUDENT, "ssl", {}),
        "li_et_al": (_STUDENT, "ssl", labels_alone),
    }
    recipes = []
    for name, (base, stage, other) in changes.items():
        for backbone, number in zip(TRANSFORMERS, _STRONG[name], strict=True):
            recipe = replace(
                base,
                name=f"{name}-{backbone}",
                reproduces=_REPRODUCES.get(name, base.reproduces),
                published=f"PSDS1 {number}",
                start=f"{backbone}.{stage}",
                **other,
            )
            recipes.append(recipe)
    return recipes


def _scripts(recipes: list[Recipe]) -> list[Recipe]:
    """Teachers and students as the released script has them, not as the paper says."""
    apart: dict[str, tuple[str, dict[str, Any]]] = {
        "strong_teacher": ("warms up", {}),
        "strong_student": ("warms up, and its example mixes audio", {"augmentation": _MILD}),
    }
    found = []
    for recipe in recipes:
        what, other = apart.get(recipe.name.rpartition("-")[0], (None, {}))
        if what is not None:
            script = replace(
                recipe,
                name=f"{recipe.name}-script",
                reproduces=f"{recipe.reproduces}; as the released script {what}, not as the paper",
                n_warmup_steps=_SCRIPT_WARMUP,
                **other,
            )
            found.append(script)
    return found


def _grid() -> list[Recipe]:
    return [
        replace(
            _TEACHER,
            name=f"sequence-{name}-{n_layers}x{width}",
            reproduces="a row of the comparison of sequence models on ATST-Frame teachers",
            published=f"PSDS1 {number} (41.8 without)",
            start="atst_f.weak",
            sequence_model=f"{name}-{width}",
            n_layers=n_layers,
        )
        for (name, n_layers), numbers in _GRID.items()
        for width, number in zip(_WIDTHS, numbers, strict=True)
    ]


def _fmn() -> list[Recipe]:
    recipes = []
    for fmn, numbers in EFFICIENTSED_PSDS1.items():
        batch, accumulation = _FMN_BATCHES.get(fmn, (32, 8))
        for sequence, number in numbers.items():
            whole = f"{fmn}+{sequence}" if sequence else fmn
            recipe = replace(
                _FMN,
                name=f"fmn_student-{whole}",
                published=f"PSDS1 {number}",
                start=f"{fmn}.weak",
                sequence_model=sequence or None,
                batch=batch,
                accumulation=accumulation,
                backbone_lr=6e-3 if fmn in ("fmn04", "fmn06") else 3e-3,
                lr=8e-4 if whole in _SLOW_SEQUENCES else 3e-3,
            )
            recipes.append(recipe)
    return recipes


def _fmn_others(offline: Recipe) -> list[Recipe]:
    """What EfficientSED compares its offline distillation with."""
    no_kd = replace(
        offline,
        name="fmn_student-no_kd-fmn10+tf-256",
        reproduces="EfficientSED without distillation",
        published="none",
        distillation_weight=0.0,
        pseudo=None,
        lr=1e-4,
        backbone_lr=1e-4,
    )
    online = replace(
        offline,
        name="fmn_online",
        reproduces="EfficientSED's online distillation from BEATs on strong and weak clips, 50/50",
        published="PSDS1 45.25 (offline 43.86)",
        pseudo="teacher",
        teacher=TEACHER,
        weak_batch=64,
        distillation_weight=9 / 11,  # 0.1 labels + 0.45 teacher on strong clips, 0.45 on weak ones
        strong_weight=0.55,
        weak_weight=0.45,
        augmentation=replace(_FMN.augmentation, mixup_beta=(0.3, 0.2)),
        weak_augmentation=Augmentation(mixup=1.0, mixup_beta=(0.3, 0.3), draw_mel_edges=True),
        n_epochs=240,
    )
    return [no_kd, online]


def _best() -> list[Recipe]:
    student = replace(
        _STUDENT,
        name="best",
        reproduces="ours: real warm-up, EMA, repaired time mask, layer-wise lr decay, bf16",
        augmentation=replace(_MILD, **_REPAIRED),
        **_OURS,
    )
    return [
        student,
        replace(
            student,
            name="best-onsets",
            reproduces=f"{student.reproduces}; onsets and offsets learned beside the classes",
            onset_weight=0.5,
        ),
        replace(
            _TEACHER,
            name="best_teacher",
            reproduces="strong_teacher with what is ours of best",
            augmentation=replace(_AGGRESSIVE, **_REPAIRED),
            **_OURS,
        ),
        replace(
            _WEAK,
            name="best_weak",
            reproduces="weak with what is ours of best",
            schedule="cosine",
            halve_from_epoch=None,
            halve_every_epochs=None,
            **_OURS,
        ),
    ]


_ALL = [*_psla(), *_strong(), *_scripts(_strong()), *_grid(), *_fmn(), *_best()]
PRESETS: dict[str, Recipe] = {recipe.name: recipe for recipe in _ALL}
PRESETS |= {r.name: r for r in _fmn_others(PRESETS["fmn_student-fmn10+tf-256"])}
_SHORT = {
    "strong_teacher": "strong_teacher-beats",
    "strong_student": "strong_student-beats",
    "fmn_student": "fmn_student-fmn10+tf-256",
}
PRESETS |= {short: replace(PRESETS[name], name=short) for short, name in _SHORT.items()}


def get_preset(name: str) -> Recipe:
    """The recipe of this name; `ValueError` names the nearest one."""
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=5, cutoff=0.0)
        told = unknown("preset", name, near)[:-1]
        raise ValueError(f"{told} and {len(PRESETS) - len(near)} more: `pretrain --list`)")
    return PRESETS[name]
