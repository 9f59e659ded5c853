"""Importers: what a user has -> a listing of clips. One file each, one line each below."""

from __future__ import annotations

from collections.abc import Callable

from hear_pretrainedsed.registry import unknown
from pretraining.corpus import CorpusError
from pretraining.importers.folder import list_folder
from pretraining.importers.fsd50k import list_fsd50k
from pretraining.importers.hdf5 import list_hdf5
from pretraining.importers.listing import Listing, Request
from pretraining.importers.psla import list_psla

IMPORTERS: dict[str, Callable[[Request], Listing]] = {
    "folder": list_folder,
    "hdf5": list_hdf5,
    "fsd50k": list_fsd50k,
    "psla": list_psla,
}


def list_clips(importer: str, request: Request) -> Listing:
    """What an importer finds. Raises `CorpusError`, or `ValueError` naming the importers."""
    if importer not in IMPORTERS:
        raise CorpusError(unknown("importer", importer, IMPORTERS))
    return IMPORTERS[importer](request)
