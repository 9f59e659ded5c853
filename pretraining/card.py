"""What a run's card says of where its model comes from: data, parents, licences; and its score."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from hear_pretrainedsed.model import SEDModel
from hear_pretrainedsed.records import known_sha256
from hear_pretrainedsed.registry import CHECKPOINTS, get_checkpoint
from hear_pretrainedsed.training.fit import Fitted

if TYPE_CHECKING:
    from pretraining.run import Run


def data_of(job: Run) -> dict[str, Any]:
    """The corpora: sha256 and sizes; also that of the evaluation, which no weights depend on."""
    corpora = {"corpus": job.corpus, "weak_corpus": job.weak_corpus}
    corpora |= {"valid": job.valid, "evaluation": job.evaluation}
    return {
        name: {"sha256": one.sha256, "clips": len(one), "classes": len(one.labels)}
        for name, one in corpora.items()
        if one is not None
    }


def metrics_of(job: Run, fitted: Fitted) -> dict[str, Any]:
    """How the training ended; the score is None where nothing was validated."""
    name = "mAP" if job.recipe.stage == "weak" else "psds1_macro"
    known = job.valid is not None and math.isfinite(fitted.valid_score)
    return {
        name: fitted.valid_score if known else None,
        "loss": fitted.loss,
        "n_steps": fitted.n_steps,
        "kept_step": fitted.kept_step,
    }


def parents_of(job: Run, model: SEDModel) -> list[dict[str, Any]]:
    """What the weights come from: names and sha256."""
    parents = []
    if model.provenance.get("sha256") is not None:
        parents.append({"role": "start", **_named(model)})
    if "image_weights" in model.provenance:
        parents.append({"role": "image weights", **model.provenance["image_weights"]})
    if job.teacher is not None:
        parents.append({"role": "teacher", **_named(job.teacher)})
    if job.sources.pseudo_labels is not None:
        sha256 = known_sha256(job.sources.pseudo_labels)
        origin = job.order.clips.pseudo.origin
        parents.append({"role": "pseudo labels", "sha256": sha256, "origin": origin})
    return parents


def _named(model: SEDModel) -> dict[str, Any]:
    return {name: model.provenance[name] for name in ("checkpoint", "sha256")}


def licence_of(job: Run) -> dict[str, str | None]:
    """Of the parents and the pseudo labels' models, as the registry knows them.

    Those of corpora are what their manifests say.
    """
    recipe, sources = job.recipe, job.sources
    start = None if sources.backbone else sources.checkpoint or recipe.start
    names = [start, sources.teacher or recipe.teacher if recipe.pseudo == "teacher" else None]
    known = {name: get_checkpoint(name).licence for name in names if name is not None}
    if sources.pseudo_labels is not None:
        models = job.order.clips.pseudo.origin.get("models", [])
        for name in [model["checkpoint"] or "a model" for model in models] or ["pseudo labels"]:
            there = CHECKPOINTS.get(name)
            known[name] = there.licence if there else "not known here: see where it comes from"
    if sources.image_weights is not None:
        known["image weights"] = "not stated: see where the file comes from"
    corpora = {"corpus": job.corpus, "weak corpus": job.weak_corpus}
    stated = {name: one.manifest.get("licence") for name, one in corpora.items() if one is not None}
    unknown = "not stated: see where its clips come from"
    return known | {name: licence or unknown for name, licence in stated.items()}
