"""Sony's Model Compression Toolkit (MCT): a float graph goes in, one of the vendor's dialect comes out.

`run.quantize` is the way there and back; which of MCT's methods runs on it is its caller's choice (calib.ptq,
calib.gptq).
"""
