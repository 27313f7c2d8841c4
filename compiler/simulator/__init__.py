"""The integer simulator: what a quantized graph computes, bit for bit, as docs/numerics.md specifies."""
