"""Runtime memory: which buffers are alive at each step of the chip's schedule.

Tensors lie in one of four layouts: the channels, the rows or the columns rounded up to 32, or packed. Each
kind of layer reads and writes certain ones; where a tensor is not in the layout its reader wants, a step of
its own copies it, and both copies are alive during that step. docs/memory.md shows where each rule was seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Set
from dataclasses import dataclass, field
from enum import StrEnum

import onnx_ir as ir

from passes.graph import real_inputs
from passes.imx500.geometry import Window, behind, ceil_div, even, is_polyphase, round_up, window
from passes.imx500.layers import Kind, Layer, Shape, Wide, channels_of, shape_of
from passes.imx500.weights import LANES, has_weights, is_whole_picture


class Layout(StrEnum):
    CHANNELS = "channels"
    """c32(C) * H * W bytes: pools, resizes, depthwise and most dense convolutions."""
    ROWS = "rows"
    """C * c32(H) * W bytes: additions and concatenations where it is smaller."""
    WIDE = "wide"
    """C * H * c32(W) bytes, in the order of ROWS: additions and concatenations where it is smaller."""
    COLUMNS = "columns"
    """C * H * c32(W) bytes: inputs, and the results of convolutions with few channels."""
    PACKED = "packed"
    """C * H * W bytes: outputs."""


@dataclass
class Buffer:
    """One copy of a tensor; `first` and `last` are the steps that make it and read it for the last time."""

    tensor: ir.Value | None
    name: str
    bytes: int
    layout: Layout
    first: int = -1
    last: int = -1


@dataclass
class Step:
    """One step: buffers read and written, and bytes the layer needs besides them."""

    name: str
    reads: list[Buffer]
    writes: list[Buffer]
    scratch: int = 0
    movable: tuple[Step, ...] = ()
    """The last copy of a tensor into another layout: the copies it takes, itself included; they may run
    earlier."""


@dataclass
class Schedule:
    """The steps in order and every buffer, with `first` and `last` filled in.

    Attributes:
        kept: inputs that stay in memory for the whole run.
    """

    steps: list[Step]
    kept: Set[ir.Value] = frozenset()
    buffers: list[Buffer] = field(default_factory=list)

    def settle(self) -> None:
        """Number the steps and find each buffer's life."""
        self.buffers = list({id(b): b for step in self.steps for b in (*step.reads, *step.writes)}.values())
        for buffer in self.buffers:
            buffer.first = buffer.last = -1
        for index, step in enumerate(self.steps):
            for buffer in step.writes:
                buffer.first = buffer.last = index
            for buffer in step.reads:
                buffer.last = index

    def placed_bytes(self, kept: list[int]) -> tuple[int, int]:
        """Bytes of the step that needs most once its buffers have places, and that step.

        Buffers begin at multiples of PLACE, the smallest last, so that its end need not be one.

        Args:
            kept: sizes of the buffers that stay for the whole run.
        """
        starts: list[list[Buffer]] = [[] for _ in self.steps]
        ends: list[list[Buffer]] = [[] for _ in self.steps]
        for buffer in self.buffers:
            starts[max(buffer.first, 0)].append(buffer)
            ends[max(buffer.last, 0)].append(buffer)
        alive: dict[int, int] = {}
        places = sum(round_up(size, PLACE) for size in kept)
        most, at = 0, 0
        for index, step in enumerate(self.steps):
            for buffer in starts[index]:
                alive[id(buffer)] = buffer.bytes
                places += round_up(buffer.bytes, PLACE)
            taken = places + round_up(step.scratch, PLACE)
            if taken > most:
                smallest = min(*alive.values(), *kept, step.scratch or taken, taken)
                taken -= round_up(smallest, PLACE) - smallest
            if taken > most:
                most, at = taken, index
            for buffer in ends[index]:
                places -= round_up(alive.pop(id(buffer)), PLACE)
        return most, at

    def live_bytes(self) -> list[int]:
        """Bytes alive during each step, scratch included, kept inputs left out."""
        change = [0] * (len(self.steps) + 1)
        for buffer in self.buffers:
            if buffer.tensor in self.kept and not self.steps[max(buffer.first, 0)].reads:
                continue  # the input itself, no copy of it: it stays, whoever reads it last
            change[max(buffer.first, 0)] += buffer.bytes
            change[buffer.last + 1] -= buffer.bytes
        total, result = 0, []
        for step, delta in zip(self.steps, change, strict=False):
            total += delta
            result.append(total + step.scratch)
        return result


PLACE = 1_024
"""Buffers begin at multiples of it."""


def bytes_of(shape: Shape, layout: Layout, width: int = 1) -> int:
    """Bytes of a tensor (without batch) in a layout.

    A tensor that is no picture (rank 3 without the batch) has its last axis rounded up, or, from four axes
    on, the axis where that costs least.

    Args:
        width: bytes of a number, 1 or 2; what is rounded up to 32 is bytes, not numbers.
    """
    if len(shape) > 3:
        packed = _product(shape) * width
        if layout is Layout.PACKED:
            return packed
        return min(packed // (n * width) * round_up(n * width) for n in shape)
    if len(shape) < 3:
        *outer, inner = shape or (1,)
        return _product(outer) * (inner * width if layout is Layout.PACKED else round_up(inner * width))
    channels, rows, columns = shape
    match layout:
        case Layout.CHANNELS:
            return round_up(channels * width) * rows * columns
        case Layout.ROWS:
            return channels * round_up(rows * width) * columns
        case Layout.COLUMNS | Layout.WIDE:
            return channels * rows * round_up(columns * width)
        case Layout.PACKED:
            return channels * rows * columns * width


def _product(numbers: Iterable[int]) -> int:
    result = 1
    for number in numbers:
        result *= number
    return result


def input_persistency(shape: Shape) -> int:
    """Bytes of an input that stays in memory: 4096 + C * even(H) * c32(W)."""
    *outer, inner = shape or (1,)
    rows = even(outer[-1]) if outer else 1
    return INPUT_RESERVE + _product(outer[:-1]) * rows * round_up(inner)


INPUT_RESERVE = 4_096
"""Bytes an input keeps besides its picture."""

WORTH_COPYING = 0.8
"""An elementwise layer leaves channels for a layout that takes less than this part: at 0.80, not at 0.83."""

FEW = 16
"""Channels up to which a convolution works on rows of pixels instead of on channels."""

COLUMN_SCRATCH = 65_536
"""Bytes a convolution needs that writes by columns, and a layer norm."""

COLUMN_KERNEL = 17
"""Largest kernel seen to write by columns; one of 31 writes channels."""


def schedule_of(
    graph: ir.Graph, layers: tuple[Layer, ...], wide: Wide = frozenset(), kept: Set[ir.Value] = frozenset()
) -> Schedule:
    """The schedule in graph order; copies of skipped tensors run when that keeps the peak lowest.

    Args:
        wide: the tensors of 16 bits.
        kept: inputs that stay in memory for the whole run: a copy that is made early frees nothing.
    """
    builder = _Builder(graph, wide)
    for layer in layers:
        builder.add(layer)
    for output in graph.outputs:
        builder.deliver(output)
    schedule = Schedule(builder.steps, kept)
    schedule.settle()
    _hoist(schedule)
    return schedule


def _hoist(schedule: Schedule) -> None:
    """Run the copies of a skipped tensor early where that lowers the peak.

    They run right after the tensor's last other reader, or before its readers, right after the tensor is
    made. They can lower the peak only where all of it lies between their old place and their new one: the
    move changes nothing else.
    """
    users: dict[int, list[Step]] = {}
    for step in schedule.steps:
        for buffer in (*step.reads, *step.writes):
            users.setdefault(id(buffer), []).append(step)
    position = {id(step): index for index, step in enumerate(schedule.steps)}
    peak, first, last = _peak(schedule.live_bytes())
    for copies in [step.movable for step in schedule.steps if step.movable]:
        own = set(map(id, copies))
        others = [position[id(user)] for user in users[id(copies[0].reads[0])] if id(user) not in own]
        for target in dict.fromkeys((max(others) + 1, min(others) + 1)):
            at, count = position[id(copies[0])], len(copies)
            if target >= at or first < target or last >= at + count:
                continue
            before = schedule.steps[target : at + count]
            schedule.steps[target : at + count] = [*copies, *before[:-count]]
            schedule.settle()
            moved = _peak(schedule.live_bytes())
            if moved[0] < peak:
                peak, first, last = moved
                position = {id(step): index for index, step in enumerate(schedule.steps)}
            else:
                schedule.steps[target : at + count] = before
                schedule.settle()


def _peak(live: list[int]) -> tuple[int, int, int]:
    """The most of the bytes alive, and the first and the last step at which so much is."""
    most = max(live, default=0)
    steps = [index for index, number in enumerate(live) if number == most] or [0]
    return most, steps[0], steps[-1]


class _Builder:
    """Adds the steps of one layer after another and keeps the copies that exist of each tensor."""

    def __init__(self, graph: ir.Graph, wide: Wide) -> None:
        self.wide = wide
        self.steps: list[Step] = []
        self.copies: dict[ir.Value, dict[Layout, Buffer]] = {}
        self.casts: dict[ir.Value, dict[Layout, Buffer]] = {}
        """Tensors in the width that they are not stored in."""
        self.resizes: dict[ir.Value, Step] = {}
        """Output of a resize -> the first step it takes."""
        for value in real_inputs(graph):
            size = bytes_of(shape_of(value), Layout.COLUMNS, self._width(value))
            buffer = Buffer(value, value.name or "input", size, Layout.COLUMNS)
            self.copies[value] = {Layout.COLUMNS: buffer}
            self.steps.append(Step(buffer.name, [], [buffer]))

    def add(self, layer: Layer) -> None:
        match layer.kind:
            case Kind.CONVOLUTION if not is_whole_picture(layer):
                self._convolution(layer)
            case Kind.LINEAR if len(shape_of(layer.inputs[0])) == 3:
                self._tokens(layer)
            case Kind.NORM if layer.main.op_type == "LayerNormalization":
                self._layer_norm(layer)
            case Kind.NORM if layer.main.op_type == "InstanceNormalization":
                self._instance_norm(layer)
            case Kind.ELEMENTWISE | Kind.CONCAT:
                width = self._runs_in(layer)
                self._run(layer, self._cheapest(layer, width), width=width)
            case Kind.REDUCE if layer.main.op_type == "ArgMax":
                self._run(layer, Layout.ROWS)
            case Kind.REDUCE if _is_spatial(layer):
                self._run(layer, Layout.CHANNELS)
            case Kind.OTHER if layer.main.op_type == "GatherElements":
                # The indices lie beside the tensor while it runs.
                indices = bytes_of(shape_of(layer.outputs[0]), Layout.CHANNELS)
                self._run(layer, Layout.CHANNELS, indices)
            case Kind.ACTIVATION | Kind.REDUCE | Kind.OTHER:
                present = self._present(layer.inputs[0]) if layer.inputs else Layout.CHANNELS
                self._run(layer, present, width=self._runs_in(layer))
            case Kind.GROUPED:
                self._run(layer, Layout.CHANNELS, _depthwise_scratch(layer))
            case Kind.RESIZE:
                at = len(self.steps)
                self._run(layer, Layout.CHANNELS, _resize_scratch(layer))
                self.resizes[layer.outputs[0]] = self.steps[at]
            case _:
                self._run(layer, Layout.CHANNELS)

    def _width(self, value: ir.Value) -> int:
        """Bytes of a number of the stored tensor."""
        return 2 if value in self.wide else 1

    def _runs_in(self, layer: Layer) -> int:
        """Bytes of the numbers that a layer works on: 2 where anything that it reads or makes has 16 bits.

        A concatenation works in the width of its result; convolutions, pools, resizes, reductions, norms and
        softmax read 8 bits (`passes.imx500.rules.quantizers`).
        """
        if layer.kind is Kind.CONCAT:
            return max(self._width(value) for value in layer.outputs)
        if layer.kind is Kind.REDUCE or layer.main.op_type == "Softmax":
            return 1
        if layer.kind is Kind.OTHER:
            return max((self._width(value) for value in layer.inputs), default=1)
        return max(self._width(value) for value in (*layer.inputs, *layer.outputs))

    def _run(self, layer: Layer, layout: Layout, scratch: int = 0, width: int = 1) -> None:
        reads = [self._in(self._cast(value, width), layout, width) for value in layer.inputs]
        self._write(layer, reads, layout, scratch, None if has_weights(layer) else width)

    def _write(
        self, layer: Layer, reads: list[Buffer], layout: Layout, scratch: int = 0, width: int | None = None
    ) -> None:
        """The layer's step, and a copy in the stored width where it works in another.

        Args:
            width: bytes of the numbers it works on; None for what writes any width, as convolutions do.
        """
        writes = []
        for output in layer.outputs:
            made = self._width(output) if width is None else width
            size = bytes_of(shape_of(output), layout, made)
            writes.append(Buffer(output, output.name or layer.name, size, layout))
        self.steps.append(Step(layer.name, reads, writes, scratch))
        for output, buffer in zip(layer.outputs, writes, strict=True):
            if width is not None and width != self._width(output):
                size = bytes_of(shape_of(output), layout, self._width(output))
                stored = Buffer(output, f"{buffer.name} in {8 * self._width(output)} bits", size, layout)
                self.steps.append(Step(stored.name, [buffer], [stored]))
                buffer = stored
            self.copies.setdefault(output, {})[layout] = buffer

    def _copies(self, value: ir.Value, width: int) -> dict[Layout, Buffer]:
        """The copies of a tensor in a width."""
        place = self.copies if width == self._width(value) else self.casts
        return place.setdefault(value, {})

    def _cast(self, value: ir.Value, width: int) -> ir.Value:
        """See to it that the tensor exists in a width: the copy is made right behind the tensor itself."""
        stored = next(iter(self.copies.get(value, {}).values()), None)
        if width == self._width(value) or stored is None or self._copies(value, width):
            return value
        size = bytes_of(shape_of(value), stored.layout, width)
        buffer = Buffer(value, f"{stored.name} in {8 * width} bits", size, stored.layout)
        made = next(at for at, step in enumerate(self.steps) if any(b is stored for b in step.writes))
        self.steps.insert(made + 1, Step(buffer.name, [stored], [buffer]))
        self._copies(value, width)[stored.layout] = buffer
        return value

    def _present(self, value: ir.Value) -> Layout:
        return next(iter(self.copies.get(value, {Layout.CHANNELS: None})))

    def _in(self, value: ir.Value, layout: Layout, width: int = 1) -> Buffer:
        """The tensor in a layout and a width; a copy is made where it lies in another layout.

        A vector is the same in all layouts. Each reader has a copy of its own: no insight file has a copy
        that is read twice.
        """
        copies = self._copies(value, width)
        if layout in copies:
            return copies[layout]
        source = next(iter(copies.values()), None)
        size = bytes_of(shape_of(value), layout, width)
        if source is not None and len(shape_of(value)) != 3:
            return source
        buffer = Buffer(value, value.name or "", size, layout)
        if source is None:
            copies[layout] = buffer
            self.steps.append(Step(buffer.name, [], [buffer]))
            return buffer
        steps = []
        for turned in _turned(source, buffer):
            steps.append(Step(f"{buffer.name} turned", [source], [turned]))
            source = turned
        steps.append(Step(f"{buffer.name} to {layout}", [source], [buffer]))
        steps[-1].movable = tuple(steps)
        self.steps.extend(steps)
        return buffer

    def _cheapest(self, layer: Layer, width: int) -> Layout:
        """The smallest of channels, rows and wide, and of columns where the first picture lies so.

        Columns (rows for a concatenation) come first where they are no larger, and columns where all pictures
        lie so. An elementwise layer whose pictures lie by channels stays there unless much is saved.
        """
        pictures = [value for value in layer.inputs if len(shape_of(value)) == 3]
        present = [self._present(value) for value in pictures]
        if set(present) == {Layout.COLUMNS}:
            return Layout.COLUMNS
        shapes = [shape_of(value) for value in (*layer.inputs, *layer.outputs)]
        choices = [Layout.CHANNELS, Layout.ROWS, Layout.WIDE]
        if present[:1] == [Layout.COLUMNS]:
            choices.insert(0, Layout.ROWS if layer.kind is Kind.CONCAT else Layout.COLUMNS)
        chosen = _smallest(shapes, choices, width)
        if layer.kind is Kind.CONCAT or Layout.COLUMNS in present:
            return chosen
        sizes = [
            sum(bytes_of(shape, layout, width) for shape in shapes) for layout in (chosen, Layout.CHANNELS)
        ]
        return chosen if sizes[0] < WORTH_COPYING * sizes[1] else Layout.CHANNELS

    def _tokens(self, layer: Layer) -> None:
        """A linear layer on the last axis of (H, W, C) runs as a 1x1 convolution of its pixels."""
        few = (1, *shape_of(layer.outputs[0]))[-1] <= FEW
        reads = [self._in(value, Layout.COLUMNS) for value in layer.inputs]
        self._write(layer, reads, Layout.ROWS if few else Layout.COLUMNS, COLUMN_SCRATCH if few else 0)

    def _layer_norm(self, layer: Layer) -> None:
        """Layer norm reads tokens side by side: a copy with the number of tokens rounded up."""
        shape = shape_of(layer.inputs[0])
        source = self._in(layer.inputs[0], Layout.COLUMNS)
        inner = (shape or (1,))[-1]
        side = Buffer(
            layer.inputs[0],
            f"{source.name} side by side",
            round_up(_product(shape) // inner) * inner,
            Layout.COLUMNS,
        )
        self.steps.append(Step(side.name, [source], [side]))
        self._write(layer, [side], Layout.COLUMNS, COLUMN_SCRATCH)

    def _instance_norm(self, layer: Layer) -> None:
        """Reads a picture by channels and leaves it with its columns rounded up."""
        if len(shape_of(layer.inputs[0])) == 3:
            reads = [self._in(layer.inputs[0], Layout.CHANNELS)]
            self._write(layer, reads, Layout.WIDE, 2 * COLUMN_SCRATCH)
        else:
            self._run(layer, Layout.COLUMNS)

    def _convolution(self, layer: Layer) -> None:
        shape, found = shape_of(layer.inputs[0]), window(layer.main)
        out = shape_of(layer.outputs[0])
        if found is None or len(shape) != 3 or len(out) != 3:
            self._run(layer, Layout.CHANNELS)
            return
        channels = shape[0]
        split = is_polyphase(channels, channels_of(layer.outputs[0]), found.kernel, found.strides)
        plain = max(found.dilations) == 1 and (split or max(found.strides) == 1)
        few = out[0] <= FEW and plain and max(found.kernel) <= COLUMN_KERNEL
        copies = self.copies.get(layer.inputs[0], {})
        by_columns = (Layout.COLUMNS in copies or Layout.CHANNELS not in copies) and channels <= LANES
        if not split and found.before != found.after:
            source = self._padded(layer.inputs[0], shape, found)
        elif split:
            source = self._phases(layer, shape, found, by_columns)
        elif max(found.kernel) == 1 and max(found.strides) > 1:
            source = self._sampled(layer.inputs[0], shape, found)
        elif (
            by_columns
            and plain
            and _is_framed(found)
            and (channels <= FEW or _framed_bytes(shape, found) < bytes_of(shape, Layout.CHANNELS))
        ):
            source = self._framed(layer.inputs[0], shape, found)
        else:
            source = self._in(layer.inputs[0], Layout.CHANNELS)
        layout = Layout.COLUMNS if few else Layout.CHANNELS
        at = len(self.steps)
        reads = [self._in(value, Layout.CHANNELS) for value in layer.inputs[1:]]
        self._before_resize(layer.inputs[0], at)
        self._write(layer, [source, *reads], layout, COLUMN_SCRATCH if few else 0)

    def _before_resize(self, value: ir.Value, at: int) -> None:
        """Move the copies that a fused addition needs (from step `at` on) before the resize of `value`."""
        started = self.resizes.get(value)
        copies = self.steps[at:]
        if started is None or not copies:
            return
        target = next(index for index in range(at - 1, -1, -1) if self.steps[index] is started)
        made = {id(buffer) for step in self.steps[target:at] for buffer in step.writes}
        if any(id(buffer) in made for step in copies for buffer in step.reads):
            return
        self.steps[target:] = [*copies, *self.steps[target:at]]

    def _framed(self, value: ir.Value, shape: Shape, found: Window) -> Buffer:
        """The tensor by columns inside its frame of padding, made by four copies."""
        source = self._in(value, Layout.COLUMNS)
        channels, rows, columns = shape
        tall, wide = rows + found.before[0] + found.after[0], columns + found.before[1] + found.after[1]
        if (tall, wide) == (rows, columns):
            return source
        sizes = (
            channels * tall * round_up(columns),
            channels * round_up(tall) * columns,
            channels * round_up(tall) * wide,
            channels * tall * round_up(wide),
        )
        for size in sizes:
            buffer = Buffer(value, f"{value.name} framed", size, Layout.COLUMNS)
            self.steps.append(Step(buffer.name, [source], [buffer]))
            source = buffer
        return source

    def _padded(self, value: ir.Value, shape: Shape, found: Window) -> Buffer:
        """Uneven padding is a layer of its own: rows are added, then columns."""
        source = self._in(value, self._present(value))
        channels, rows, columns = shape
        tall, wide = rows + found.before[0] + found.after[0], columns + found.before[1] + found.after[1]
        for padded in ((channels, tall, columns), (channels, tall, wide)):
            size = bytes_of(padded, source.layout)
            buffer = Buffer(value, f"{value.name} padded", size, source.layout)
            self.steps.append(Step(buffer.name, [source], [buffer]))
            source = buffer
        return source

    def _sampled(self, value: ir.Value, shape: Shape, found: Window) -> Buffer:
        """The pixels that a strided 1x1 convolution reads: columns are left out, then rows."""
        source = self._in(value, Layout.CHANNELS)
        channels, rows, columns = shape
        height, width = ceil_div(rows, found.strides[0]), ceil_div(columns, found.strides[1])
        cuts = []
        for size in ((channels, rows, width), (channels, height, width)):
            cut = Buffer(value, f"{value.name} sampled", bytes_of(size, Layout.CHANNELS), Layout.CHANNELS)
            cuts.append(Step(cut.name, [source], [cut]))
            source = cut
        cuts[-1].movable = tuple(cuts)
        self.steps.extend(cuts)
        return source

    def _phases(self, layer: Layer, shape: Shape, found: Window, by_columns: bool) -> Buffer:
        """The padded tensor cut into one picture per phase of the stride, joined along the channels.

        Rows are padded, then columns; columns are cut, then rows. What is worked on along an axis cannot have
        that axis rounded up, so a tensor that lies by columns changes its layout in between.
        """
        value, out = layer.inputs[0], shape_of(layer.outputs[0])
        source = self._in(value, Layout.COLUMNS if by_columns else Layout.CHANNELS)
        channels, rows, columns = shape
        (sh, sw), (kh, kw) = found.strides, found.kernel
        height, width = out[1] + ceil_div(kh, sh) - 1, out[2] + ceil_div(kw, sw) - 1
        tall = max(rows + found.before[0] + found.after[0], height * sh)
        wide = max(columns + found.before[1] + found.after[1], width * sw)
        along = across = Layout.COLUMNS if by_columns else Layout.CHANNELS
        reorders = by_columns and (tall, wide) != (rows, columns) and sw > 1
        if reorders:
            across = Layout.ROWS
        cut = _smallest([(channels, tall, width)], (Layout.CHANNELS, along)) if reorders else along
        small, whole = (channels, height, width), (channels * sh * sw, height, width)
        join = cut
        if reorders or not by_columns:
            sizes = [small] * (sh * sw) + [whole]
            join = _smallest(sizes, (Layout.CHANNELS, Layout.ROWS, Layout.WIDE))

        start = len(self.steps)

        def step(sources: list[Buffer], what: str, size: Shape, layout: Layout) -> Buffer:
            buffer = Buffer(value, f"{value.name} {what}", bytes_of(size, layout), layout)
            self.steps.append(Step(buffer.name, sources, [buffer]))
            return buffer

        if tall > rows:
            source = step([source], "padded", (channels, tall, columns), along)
        if reorders:
            source = step([source], "padded", (channels, tall, columns), across)
        if wide > columns:
            source = step([source], "padded", (channels, tall, wide), across)
        pieces = []
        for _ in range(sh * sw):
            piece = source
            if sw > 1:
                piece = step([piece], "rows of a phase", (channels, tall, width), across)
                if reorders:
                    piece = step([piece], "rows of a phase", (channels, tall, width), cut)
            piece = step([piece], "phase", small, cut)
            if join is not cut:
                piece = step([piece], "phase", small, join)
            pieces.append(piece)
        wanted = Layout.COLUMNS if by_columns and whole[0] <= FEW else Layout.CHANNELS
        joined = step(pieces, "phases", whole, join if reorders or not by_columns else wanted)
        if joined.layout is not wanted:
            joined = step([joined], "phases", whole, wanted)
        self.steps[-1].movable = tuple(self.steps[start:])
        return joined

    def deliver(self, value: ir.Value) -> None:
        """An output leaves packed, by way of its first axis rounded up (rows if it has one channel)."""
        shape, width = shape_of(value), self._width(behind(value))
        source = next(iter(self.copies.get(behind(value), {}).values()), None)
        if source is None or len(shape) < 2:
            return
        rounded = round_up(shape[0] * width) * _product(shape[1:])
        if len(shape) == 2:
            first, sizes = Layout.CHANNELS, (rounded, shape[0] * round_up(shape[1] * width))
        else:
            first = Layout.ROWS if len(shape) == 3 and shape[0] == 1 else Layout.CHANNELS
            by_axis = rounded if len(shape) > 3 else bytes_of(shape, first, width)
            sizes = (by_axis, _product(shape) * width)
        for layout, size in zip((first, Layout.PACKED), sizes, strict=True):
            buffer = Buffer(value, f"{value.name} {layout}", size, layout)
            self.steps.append(Step(buffer.name, [source], [buffer]))
            source = buffer
        self.steps.append(Step(f"{value.name} delivered", [source], []))


def _turned(source: Buffer, target: Buffer) -> tuple[Buffer, ...]:
    """The two copies more that a large picture takes between channels and rows, each like one of the two.

    Seen in both directions at 34,560 pixels and more, not at 31,552 and fewer (whatever the bytes, up to
    2,334,720), and not with at most 32 channels (50,176 pixels).
    """
    shape = () if source.tensor is None else shape_of(source.tensor)
    layouts = {source.layout, target.layout}
    if len(shape) != 3 or Layout.CHANNELS not in layouts or not layouts & {Layout.ROWS, Layout.WIDE}:
        return ()
    if shape[0] <= LANES or shape[1] * shape[2] <= TURNED_PIXELS:
        return ()
    return tuple(
        Buffer(target.tensor, f"{target.name} turned", like.bytes, like.layout) for like in (source, target)
    )


TURNED_PIXELS = 32_768
"""Pixels up to which one copy suffices: any number between those of `_turned` would do."""


def _smallest(shapes: Iterable[Shape], layouts: Iterable[Layout], width: int = 1) -> Layout:
    """The layout in which the tensors take least, the first of equals."""
    sizes = list(shapes)
    return min(layouts, key=lambda layout: sum(bytes_of(shape, layout, width) for shape in sizes))


def _is_spatial(layer: Layer) -> bool:
    """The reduction leaves the channels of a picture as they are."""
    read, made = shape_of(layer.inputs[0]), shape_of(layer.outputs[0])
    return len(read) == 3 and made[:1] == read[:1]


def _is_framed(found: Window) -> bool:
    """Square kernels up to 7 read by columns (11 and more, and 7x1 and 3x5, were seen to read channels)."""
    return found.kernel[0] == found.kernel[1] <= FRAMED_KERNEL


FRAMED_KERNEL = 7


def _framed_bytes(shape: Shape, found: Window) -> int:
    channels, rows, columns = shape
    tall, wide = rows + found.before[0] + found.after[0], columns + found.before[1] + found.after[1]
    return channels * tall * round_up(wide)


def _resize_scratch(layer: Layer) -> int:
    """A copy of the picture with a frame of one pixel."""
    shape = shape_of(layer.inputs[0])
    if len(shape) != 3:
        return 0
    channels, rows, columns = shape
    return bytes_of((channels, rows + 2, columns + 2), Layout.CHANNELS)


def _depthwise_scratch(layer: Layer) -> int:
    """8 * even(kh) * even(kw) * c32(C) + c32(C), as measured on the student's depthwise layers."""
    found, channels = window(layer.main), channels_of(layer.outputs[0])
    if found is None:
        return 0
    return (8 * even(found.kernel[0]) * even(found.kernel[1]) + 1) * round_up(channels)
