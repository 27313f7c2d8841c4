"""The graph room: what an ONNX graph says, the passes over it, and the target that judges it. No torch."""
