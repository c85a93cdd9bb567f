"""What the tests of the command line share."""

from __future__ import annotations

import sys

import pytest
from called import Left, Rlmon

from rlmon import cli


@pytest.fixture
def rlmon(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Rlmon:
    """``rlmon("show", path)`` runs that command line in this process."""

    def run(*arguments: object) -> Left:
        monkeypatch.setattr(sys, "argv", ["rlmon", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            cli.main()
        code = left.value.code
        captured = capsys.readouterr()
        return Left(0 if code is None else int(code), captured.out, captured.err)

    return run
