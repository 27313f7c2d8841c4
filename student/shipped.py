"""The checkpoints that come with this project, known by their SHA-256."""

from __future__ import annotations

import json
from pathlib import Path

CHECKPOINTS = Path(__file__).parent / "checkpoints"
"""NAME.pt and its card, NAME.json."""


def shipped_protocol(sha256: str) -> str | None:
    """The prompt protocol that the shipped checkpoint of this digest was trained under; None of other files.

    Their metadata does not name it (`student.checkpoint.PROTOCOL_KEY`): they are older.
    """
    for card in sorted(CHECKPOINTS.glob("*.json")):
        content = json.loads(card.read_text(encoding="utf-8"))
        if content["checkpoint"]["sha256"] == sha256:
            return str(content["training"]["recipe"]["protocol"])
    return None
