"""What several tests of pre-training need."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hear_pretrainedsed import cli

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Run `pretrain` in this process: (exit code, stdout, stderr)."""

    def called(*words: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            cli.main(["pretrain", *map(str, words), "--device", "cpu"])
        out, err = capsys.readouterr()
        return stop.value.code, out, err

    return called
