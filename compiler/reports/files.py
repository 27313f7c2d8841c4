"""The report files of a package or of a failed run."""

from __future__ import annotations

from pathlib import Path

from compiler.reports.html import to_html
from compiler.reports.json_document import to_json
from compiler.reports.markdown import to_markdown
from compiler.reports.sarif import to_sarif
from compiler.result import CompileResult


def report_files(result: CompileResult, model: Path, created: str) -> dict[str, bytes]:
    """Name -> content of every report; `model` is the file compiled, `created` an ISO time.

    Source paths under the current folder become relative in report.sarif, as code scanning wants them.
    """
    return {
        "report.html": to_html(result, created).encode(),
        "report.json": to_json(result, created).encode(),
        "report.md": to_markdown(result, created).encode(),
        "report.sarif": to_sarif(result, str(model), str(Path.cwd())).encode(),
    }
