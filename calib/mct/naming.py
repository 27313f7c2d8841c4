"""Names for the functions of MCT's torch model, so that its exporter can tell where a node comes from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def name_functions(quantized: Any) -> None:
    """Make a module of every torch function in MCT's model, so that the exporter writes its name.

    The ONNX exporter names a node after the modules around it; a function's nodes would come out as `/Add_3`.
    """
    from torch import nn

    class Named(nn.Module):
        def __init__(self, function: Callable[..., Any]) -> None:
            super().__init__()
            self.function = function

        def forward(self, *arguments: Any, **keywords: Any) -> Any:
            return self.function(*arguments, **keywords)

    for node in quantized.node_sort:
        operation = getattr(quantized, node.name)
        if not isinstance(operation, nn.Module):
            delattr(quantized, node.name)
            quantized.add_module(node.name, Named(operation))
