"""Quantization-aware training of the quantized graph itself.

The graph that post-training quantization made becomes a torch module with Brevitas quantizers where the graph
has its quantizer nodes (`network`), is trained to give the float network's outputs (`train`), and its weights
and thresholds go back into the same nodes (`export`). No labels are needed.
"""

import contextlib
import io

with contextlib.redirect_stderr(io.StringIO()):
    # Brevitas imports it, and it prints a line where there is CUDA's compiler and no GPU.
    import torch.utils.cpp_extension  # noqa: F401
