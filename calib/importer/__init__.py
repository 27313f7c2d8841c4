"""The importer: a float ONNX graph becomes a torch.fx module of plain nn modules, node by node.

MCT quantizes torch modules only, and its own tracer runs over what it gets, so the module holds nothing but
nn modules and torch functions with constant sizes. One file per family of operators; `registry.OPERATORS`
lists what is known.
"""

from calib.importer.build import Imported, to_torch
from calib.importer.registry import OPERATORS

__all__ = ["OPERATORS", "Imported", "to_torch"]
