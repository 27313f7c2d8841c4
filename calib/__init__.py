"""The calibration room: representative data, the graph as a torch module, and post-training quantization."""
