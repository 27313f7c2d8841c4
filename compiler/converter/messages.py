"""The coded messages in the converter's log.

The tool prints `CODE: [INVOP] ...`, as text of its Python front end and as text of its Java parts, each with
its own time format. Measured with imx500-converter 3.19.2 by running it, not by looking inside:

| code | meaning | exit |
|---|---|---|
| EXEC | its front end cannot read the file | 1 |
| USOP | operators it does not know | 2 |
| INVOP | attributes or ranks it does not take: node, parameter, value, reason | 3 |
| INVMOD | batch size or a dynamic picture size | 4 |
| CNVE, VE, GRE, GE, RE | conversion: bit widths, missing quantizers, NaN, anything else | 1 |
| ISM | more memory than the chip has; the tiling advisor tries (IMCF, TANSF) | 1, or 0 if that helped |
| CBE | the back end | 1 |
| FEFSUC, FLFSUC, BEFSUC | one of its Java machines failed, whatever the reason | 1 |
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Message:
    """One coded message; `level` as printed (INFO, WARN, ERROR), `text` may have several lines."""

    level: str
    code: str
    text: str


TIMESTAMP = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[.,]\d+ (?P<level>[A-Z]+) ?: "
ORIGIN = re.compile(r" *\[[^\[\]\n]*/logger\.py:\d+\]$")
"""Where in the tool's own code a line comes from; says nothing to a user."""

_START = re.compile(rf"^(?:{TIMESTAMP})?CODE: \[(?P<code>[A-Z]+)\] ?(?P<text>.*)$")
_OTHER = re.compile(rf"^(?:{TIMESTAMP}|Picked up JAVA_TOOL_OPTIONS|Exception in thread|Traceback \(most)")
_NESTED = re.compile(r"ERROR: CODE: \[([A-Z]+)\] ?")
_NEW_STATEMENT = re.compile(
    r"Caught exception while|ConvFe error|Conversion Error|\[BeLogger|\w+Manager Error"
)
_TRACE_END = re.compile(r"^(?P<kind>[A-Za-z_][\w.]*(?:Error|Exception|Interrupt))(?:: .*)?$", re.MULTILINE)


def parse_log(log: str) -> tuple[Message, ...]:
    """Every coded message in order; what the Java side splits over several coded lines is one message.

    Where an outer message wraps another (`[GE] Caught exception ...: ERROR: CODE: [CNVE] ...`) the code is
    the inner one. The front end prints an error twice, with a trace between: the second copy is dropped, and
    a message without text gets the trace's last line.
    """
    messages: list[Message] = []
    outer = ""
    for level, code, text in _coded_parts(log):
        wrapped = _NESTED.search(text)
        if wrapped is None and outer == code and messages and not _NEW_STATEMENT.search(text):
            last = messages[-1]
            if text != last.text:
                messages[-1] = Message(last.level, last.code, f"{last.text}\n{text}")
            continue
        outer = code
        if wrapped is not None:
            code, text = wrapped[1], text[wrapped.end() :]
        messages.append(Message(level, code, text))
    return tuple(dict.fromkeys(messages))


def _coded_parts(log: str) -> Iterator[tuple[str, str, str]]:
    """(level, code, text) of each coded line with the lines that continue it."""
    parts: list[tuple[str, str, list[str]]] = []
    continues = False
    for line in log.splitlines():
        start = _START.match(line)
        if start is not None:
            parts.append((start["level"] or "ERROR", start["code"], [start["text"]]))
            continues = True
        elif _OTHER.match(line) is not None:
            continues = False
        elif continues:
            parts[-1][2].append(line)
    for level, code, lines in parts:
        text = ORIGIN.sub("", "\n".join(lines).strip()).strip()
        yield level, code, text or _trace_end(log)


def _trace_end(log: str) -> str:
    ends = [found[0] for found in _TRACE_END.finditer(log)]
    return f"stopped with {ends[-1]}" if ends else "no reason given"
