"""The command line, called as a user calls it."""

from __future__ import annotations

from typing import Any

from click.testing import CliRunner, Result

from anomalens.apps.cli import main


def run(*words: Any, code: int = 0) -> Result:
    """`anomalens` with these words; it must end with this exit code, and a bug keeps its traceback."""
    result = CliRunner().invoke(main, [str(word) for word in words])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output + result.stderr
    return result
