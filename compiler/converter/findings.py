"""The converter's messages as diagnostics: rule `converter/<code>`, one for each node and reason it names."""

from __future__ import annotations

import re
from collections.abc import Sequence

from compiler.converter.messages import Message
from passes.diagnostics import Diagnostic, Severity

NEUTRAL = frozenset({"START", "OUTPUT", "IMCF", "URCI"})
"""Codes that report something and judge nothing."""

SUBPROCESS_FAILED = frozenset({"FEFSUC", "FLFSUC", "BEFSUC"})
"""`Failure in SUb-running Converter`: says where, never why."""

REASONS = frozenset(
    {"EXEC", "USOP", "INVOP", "INVMOD", "CNVE", "VE", "GRE", "GE", "RE", "ISM", "TANSF", "CBE"}
)
"""Codes that name a reason for refusing the model. A code that is not here is passed on as a note."""

MAX_TEXT = 300
"""Characters of vendor text kept in one field of a diagnostic."""


def diagnose(messages: Sequence[Message], *, accepted: bool, version: str) -> tuple[Diagnostic, ...]:
    """What the converter said about the model: errors if it refused it, else warnings and notes.

    With `accepted`, a memory error means that the converter fitted the network by tiling it: a warning. When
    refused for memory, whatever the tiling advisor's attempts said afterwards is a note.
    """
    found: list[Diagnostic] = []
    names_layers = any(message.code == "CBE" and _CBE_LAYER.search(message.text) for message in messages)
    for message in messages:
        if message.level != "ERROR" or message.code in NEUTRAL | SUBPROCESS_FAILED:
            continue
        after_memory = any(diagnostic.rule == "converter/ism" for diagnostic in found)
        severity = Severity.WARNING if accepted else Severity.ERROR
        if message.code not in REASONS or after_memory:
            severity = Severity.NOTE
        if message.code == "CBE" and names_layers and _CBE_LAYER.search(message.text) is None:
            continue  # the same error once more, without the layer
        for node, text, limit, fix in _READERS.get(message.code, _read_other)(message.text):
            if message.code == "ISM" and after_memory:
                text = f"{text} even when cut into tiles"
            elif message.code == "ISM" and accepted:
                text, fix = (
                    f"{text}, and fits only cut into tiles",
                    f"nothing has to be done; to avoid tiles, {fix}",
                )
            found.append(
                Diagnostic(
                    rule=f"converter/{message.code.lower()}",
                    severity=severity,
                    node=node,
                    module="",
                    found=text[:MAX_TEXT],
                    limit=limit[:MAX_TEXT],
                    fix=fix,
                    source=f"imx500-converter {version}, its own message",
                )
            )
    return tuple(dict.fromkeys(found))


_Finding = tuple[str, str, str, str]
"""node, found, limit, fix."""


def _read_usop(text: str) -> list[_Finding]:
    listed = text.partition("ops:")[2] or text
    return [
        (
            "",
            f"operator {name.strip()}",
            "operators of the converter's list (`picosam2 rules`)",
            "write it with operators of the list; `picosam2 check` names the nodes",
        )
        for name in listed.split(",")
    ]


_NODE = re.compile(
    r"^Node (?:\[Framework\.nnir\] op: (?P<nnir>\S+), id: (?P<nnir_id>.*?))?(?:, )?"
    r"(?:\[Framework\.onnx\] op: (?P<onnx>\S+), id: (?P<onnx_id>.*?))?, errors:",
    re.MULTILINE,
)
_END = r"(?=\s*\n\t(?:Param|Input) error|\s*\n-{10,}|\s*\nNode |\s*\Z)"
_PARAM = re.compile(
    rf"\tParam error - param: (?P<param>.*?), value: (?P<value>.*?), reason: (?P<reason>.*?){_END}", re.DOTALL
)
_INPUT = re.compile(
    rf"\tInput error - input index: (?P<index>\d+), input node: (?P<source>.*?), "
    rf"reason: (?P<reason>.*?){_END}",
    re.DOTALL,
)


def _read_invop(text: str) -> list[_Finding]:
    nodes = list(_NODE.finditer(text))
    findings = []
    for node, after in zip(nodes, [*nodes[1:], None], strict=True):
        part = text[node.end() : None if after is None else after.start()]
        op, name = node["onnx"] or node["nnir"] or "", node["onnx_id"] or node["nnir_id"] or ""
        for error in _PARAM.finditer(part):
            value = re.sub(r"np\.\w+\(([^)]*)\)", r"\1", " ".join(error["value"].split()))
            reason = " ".join(error["reason"].split())
            found = f"{op}: {error['param']} = {value}"
            findings.append((name, found, reason, _invop_fix(f"{op} {error['param']}: {reason}")))
        for error in _INPUT.finditer(part):
            reason = " ".join(error["reason"].split())
            found = f"{op}: input {error['index']} from {error['source']}"
            findings.append((name, found, reason, _invop_fix(f"{op} input: {reason}")))
    return findings or _read_other(text)


_INVOP_FIXES: tuple[tuple[str, str], ...] = (
    (r"Padding >= kernel", "pad less than the kernel's extent, dilation included"),
    (r"Kernel size > 12", "use a depthwise kernel of at most 12, or a dense convolution"),
    (r"Stride > 1 with dilation", "set stride or dilation to 1"),
    (r"Stride > kernel", "make the kernel at least as large as the stride"),
    (r"ConvTranspose padding", "set padding=0 and crop the result by slicing"),
    (r"Groups > 1", "set groups=1"),
    (r"Dilation > 1|dilations", "set dilation=1"),
    (r"ceil_mode", "set ceil_mode=False, and pad the input to keep the output's size"),
    (r"coordinate_transformation_mode", "set align_corners=False"),
    (r"Resize mode", "set mode='bilinear' or 'nearest'"),
    (r"Pad mode", "pad with zeros (padding_mode='zeros', F.pad mode 'constant')"),
    (r"negative pads", "crop by slicing instead of padding by a negative number"),
    (r"[Bb]atch", "leave the first axis, the batch, as it is and work on the others"),
    (r"TopK largest", "set largest=True (negate the values to get the smallest)"),
    (r"TopK sorted", "set sorted=True"),
    (r"positive stride", "slice with positive steps (no flip)"),
    (r"Only 2d input", "flatten to (N, D) first, or use a 1x1 convolution instead of the linear layer"),
    (r"Only 2d Op", "use the 2-D layer with one axis of size 1 (Conv2d for Conv1d)"),
    (r"Only last axis", "normalise over the last axis only"),
    (r"Supported values", "set it to one of the supported values"),
)


def _invop_fix(text: str) -> str:
    for pattern, fix in _INVOP_FIXES:
        if re.search(pattern, text):
            return fix
    return "change the layer to meet the limit; `picosam2 rules` lists what the target takes"


def _read_invmod(text: str) -> list[_Finding]:
    if "batch-size" in text:
        return [("", text, "a batch of 1, fixed or symbolic", "export with a batch of 1")]
    return [("", text, "a fixed height, width and number of channels", "export with a fixed input size")]


_MEMORY = re.compile(r"available: ([\d.]+) ?MB *, *required: ([\d.]+) ?MB")


def _read_ism(text: str) -> list[_Finding]:
    sizes = _MEMORY.search(text)
    found, limit = (text, "the chip's memory")
    if sizes is not None:
        found, limit = f"needs {sizes[2]} MB", f"{sizes[1]} MB for weights and activations together"
    return [
        (
            "",
            found,
            limit,
            "make the largest tensors smaller: fewer channels or a smaller picture (`picosam2 check` shows "
            "the peak); --no-input-persistency saves the input's bytes",
        )
    ]


_BIT_WIDTH = re.compile(
    r"layer: (?P<op>\S+) with flnID: (?:\(F\))?(?P<node>.+?): (?P<what>(?:in|out)put number \d+) not support "
    r"(?P<bits>\d+) number of bits"
)


def _read_cnve(text: str) -> list[_Finding]:
    found = [
        (
            match["node"],
            f"{match['what']} has {match['bits']} bits",
            "weights (input 1) of 2, 4 or 8 bits, activations of 8",
            "quantize weights to 8, 4 or 2 bits and activations to 8",
        )
        for match in _BIT_WIDTH.finditer(text)
    ]
    return found or _read_other(text)


_UNQUANTIZED = re.compile(r"Layer (?P<op>\S+): (?P<node>.+?) is not quantized")
_PLACEHOLDER = re.compile(r"^(?:Placeholder|Variable|Output)\.(.+)\.uid\d+$")


def _read_ve(text: str) -> list[_Finding]:
    found = [
        (
            _PLACEHOLDER.sub(r"\1", match["node"]),
            f"the result of {match['op']} has no quantizer",
            "a quantizer behind every operator and every input",
            "let this tool quantize the float model, or export from MCT with quantization_format MCTQ",
        )
        for match in _UNQUANTIZED.finditer(text)
    ]
    return found or _read_other(text)


_ILLEGAL = re.compile(
    r"Const layer: Const-(?P<node>\S+?)\(\d+\) in graph: \S+ has tensor with illegal values: "
    r"\[(?P<values>[^\]]*)\]"
)


def _read_gre(text: str) -> list[_Finding]:
    found = [
        (
            match["node"],
            f"a constant holds {match['values']}",
            "finite numbers",
            "train or repair the checkpoint: a weight is not a finite number",
        )
        for match in _ILLEGAL.finditer(text)
    ]
    return found or _read_other(text)


_CBE_FRAME = re.compile(
    r"\[BeLogger:\d+\]|\[ConverterBE:\d+\]|\w+Manager Error:|Converter Backend finished with errors!"
)
_CBE_LAYER = re.compile(r"FlnId:\S+ Layers:\[(?P<layers>[^\]]*)\] Error: ?(?P<error>.*)")


def _read_cbe(text: str) -> list[_Finding]:
    layer = _CBE_LAYER.search(text)
    if layer is None:
        bare = _CBE_FRAME.sub("", text).strip()
        return _read_other(bare) if bare else []
    return [
        (
            "",
            f"layers {layer['layers']}: {layer['error']}",
            "layers that the back end can place on the chip",
            "replace the layer, a group or instance norm by a batch norm",
        )
    ]


def _read_exec(text: str) -> list[_Finding]:
    if "producer" in text:
        limit, fix = "an ONNX file exported by PyTorch 2 or newer", "export the network from PyTorch"
    elif "value_info" in text:
        limit, fix = (
            "a shape written down for every value",
            "run onnx.shape_inference on it, or export it again",
        )
    else:
        limit, fix = (
            "a valid quantized ONNX file",
            "export the network again; `picosam2 check` reads it first",
        )
    return [("", text, limit, fix)]


def _read_other(text: str) -> list[_Finding]:
    if "List is empty" in text:
        return [
            (
                "",
                "the network has no quantizers",
                "a quantizer behind every operator and every input",
                "let this tool quantize the float model, or export from MCT with quantization_format MCTQ",
            )
        ]
    layer = re.search(r"[Ll]ayer ([^\s:]+):", text)
    node = re.sub(r"^Windowed_TiledLayer_\d+_", "", layer[1]) if layer else ""
    return [
        (
            node,
            " ".join(re.sub(r"^Caught exception while converting ?'[^']*': *", "", text).split()),
            "a network the converter can schedule",
            "rewrite this part with operators of `picosam2 rules`",
        )
    ]


_READERS = {
    "USOP": _read_usop,
    "INVOP": _read_invop,
    "INVMOD": _read_invmod,
    "ISM": _read_ism,
    "CNVE": _read_cnve,
    "VE": _read_ve,
    "GRE": _read_gre,
    "CBE": _read_cbe,
    "EXEC": _read_exec,
}
