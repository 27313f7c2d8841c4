"""From the float graph to the quantized graph that is shipped.

`ways` makes candidates (post-training quantization, searched thresholds, GPTQ, training),
`widths` chooses the bits of each layer's weights, `yardstick` says how far a candidate is from the float
network, `judge` what it loses on pictures kept aside, and `search` tries ways until the loss is small enough.
"""
