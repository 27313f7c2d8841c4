"""The numbers in the compiled file: what the vendor's converter puts into packerOut.zip for a network.

`constants` computes them from the quantized ONNX alone, `compiled` reads them back out of packerOut.zip, so
that each can be held against the other. The evidence is in docs/numerics.md, "The numbers in the compiled
file"; `python -m benchmarks.chip_numbers` repeats it.
"""

from compiler.chip.additions import AdditionShifts, add_fused, addition_shifts, fused_convolution
from compiler.chip.compiled import CompiledLayer, CompiledNumbers, read_compiled, static_data
from compiler.chip.constants import ChipConstants, Undecoded, chip_layer_constants
from compiler.chip.layer import ROUNDINGS, ChipLayer, requantize
from compiler.chip.tables import activation_table, average_pool_record, reciprocal_table

__all__ = [
    "ROUNDINGS",
    "AdditionShifts",
    "ChipConstants",
    "ChipLayer",
    "CompiledLayer",
    "CompiledNumbers",
    "Undecoded",
    "activation_table",
    "add_fused",
    "addition_shifts",
    "average_pool_record",
    "chip_layer_constants",
    "fused_convolution",
    "read_compiled",
    "reciprocal_table",
    "requantize",
    "static_data",
]
