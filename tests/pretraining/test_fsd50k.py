"""FSD50K's importer on a small invented table: what is kept, splits, rows that are refused."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
import soundfile

from pretraining.corpus import CorpusError, open_corpus
from pretraining.corpus_writer import write_corpus
from pretraining.enhanced_files import clip_names
from pretraining.importers import Request, list_clips
from pretraining.vocabulary import open_vocabulary
from tests.pretraining.small_corpus import encoded, rows_of, sound


def fsd50k(folder: Path) -> Request:
    audio = folder / "FSD50K.dev_audio"
    audio.mkdir()
    for number in (64760, 16399):
        (audio / f"{number}.wav").write_bytes(encoded(sound(0.5, rate=44_100), "WAV", 44_100))
    (folder / "vocabulary.csv").write_text("0,Bark,/m/05tny_\n1,Bell_and_more,/m/0395lw\n")
    (folder / "dev.csv").write_text(
        'fname,labels,mids,split\n64760,"Bell_and_more,Bark","/m/0395lw,/m/05tny_",train\n'
        "16399,Bark,/m/05tny_,val\n7,Bark,/m/05tny_,train\n"
    )
    return Request((audio,), (), (folder / "dev.csv",), str(folder / "vocabulary.csv"))


def test_fsd50k_is_kept_at_16_khz(tmp_path: Path) -> None:
    found = list_clips("fsd50k", fsd50k(tmp_path))
    assert found.labels == ("Bark", "Bell_and_more") and found.missing == ("7",)
    assert rows_of(found) == {"64760": (None, (0, 1)), "16399": (None, (0,))}
    corpus = open_corpus(write_corpus(found, tmp_path / "corpus"))
    with soundfile.SoundFile(io.BytesIO(corpus[0].audio)) as file:
        assert (file.format, file.samplerate, file.frames) == ("FLAC", 16_000, 8000)


@pytest.mark.parametrize(
    ("split", "names", "missing"),
    [("train", ["64760"], ("7",)), ("val", ["16399"], ()), (None, ["64760", "16399"], ("7",))],
)
def test_fsd50k_by_its_column_split(
    tmp_path: Path, split: str | None, names: list[str], missing: tuple[str, ...]
) -> None:
    found = list_clips("fsd50k", replace(fsd50k(tmp_path), split=split))
    assert list(rows_of(found)) == names and found.missing == missing


def test_splits_that_are_refused(tmp_path: Path) -> None:
    request = replace(fsd50k(tmp_path), split="valid")
    wanted = r"dev.csv: unknown split 'valid'; did you mean 'val'\? \(one of: train, val\)"
    with pytest.raises(CorpusError, match=wanted):
        list_clips("fsd50k", request)
    (tmp_path / "dev.csv").write_text("fname,labels,mids\n7,Bark,/m/05tny_\n")
    with pytest.raises(CorpusError, match=r"dev\.csv: no column 'split' in .* --split is valid"):
        list_clips("fsd50k", request)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("8", r"line 3: a row is fname, labels, mids, split; got \['8'\]"),
        ("8,Bark,/m/05tny_", "line 3: a row is fname, labels, mids, split; got"),
        ("8,Bark,/m/05tny_,train,more", "line 3: a row is fname, labels, mids, split; got"),
        (",Bark,/m/05tny_,train", "line 3: no fname"),
        ('8,"Bark,/m/05tny_,train', "line 3: no row of a CSV, as by a quote left open"),
        ('8,"Bark,/m/05tny_,train\n9,"Bark","/m/05tny_",val', "line 3: no row of a CSV"),
        ('\n8,"', "line 4: no row of a CSV, as by a quote left open"),
    ],
)
def test_fsd50k_rows_that_are_refused(tmp_path: Path, row: str, message: str) -> None:
    """In both of what reads such a table: the importer, and labels that are enhanced."""
    request = fsd50k(tmp_path)
    table = tmp_path / "dev.csv"
    table.write_text(f'fname,labels,mids,split\n7,"Bark","/m/05tny_",train\n{row}\n')
    with pytest.raises(CorpusError, match=rf"dev\.csv, {message}") as caught:
        list_clips("fsd50k", request)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=rf"dev\.csv, {message}"):
        clip_names(table, open_vocabulary(str(request.classes)))


def test_fsd50k_tables_that_are_refused(tmp_path: Path) -> None:
    request = fsd50k(tmp_path)
    table = tmp_path / "dev.csv"
    table.write_text("fname,labels\n1,Bark\n1,Bark\n")
    with pytest.raises(CorpusError, match=r"1 clip \('1'\) is given twice"):
        list_clips("fsd50k", request)
    table.write_text("fname,labels\n1,Barks\n")
    with pytest.raises(ValueError, match=r"1 label \('Barks'\) is not .*the first is 'Bark'"):
        list_clips("fsd50k", request)
    table.write_text("name,labels\n1,Bark\n")
    with pytest.raises(CorpusError, match="no column 'fname'"):
        list_clips("fsd50k", request)
