"""raspberry-pi.md of a package: the commands that take packerOut.zip to the camera."""

from __future__ import annotations

from compiler.converter.bridge import network_name
from compiler.device.readme import PACKAGING, UNPACKED
from compiler.result import CompileResult

_TEXT = """# {network} on a Raspberry Pi AI Camera

The last step, from packerOut.zip to the file the camera loads, runs on the Raspberry Pi only.

```sh
{packaging}
```

{missing}`device-check/` says whether the chip computes what the simulator computes, has a typed reader of the
outputs and draws masks: see its README.

## What the network takes

{channels}x{height}x{width}, {order}; the camera delivers {delivered} as the integers the compiled network was
made for. The normalisation is inside the network: do not set one in picamera2.

```python
from picamera2.devices import IMX500

camera = IMX500("{network}-rpk/network.rpk")
camera.set_inference_roi_abs((left, top, width, height))  # the crop around the prompt, in sensor pixels
# then, per frame of a Picamera2(camera.camera_num):
# outputs = camera.get_outputs(metadata)
```

## What it gives

{outputs}
"""


def instructions(result: CompileResult, *, packed: bool) -> str:
    """The text for this package; where packerOut.zip is not in it (`packed`) it says so and how to get it."""
    contract = result.contract
    assert contract is not None  # a package has one
    outputs = "\n".join(
        f"- `{o.name}`: {'x'.join(str(d) for d in o.shape)} {o.dtype}"
        + ("" if o.grid is None else f", real value = integer x {o.grid.step:g}")
        for o in result.outputs
    )
    network = network_name(result.network)
    return _TEXT.format(
        network=network,
        packaging=PACKAGING.format(network=network).strip(),
        missing="" if packed else UNPACKED,
        channels=contract.channels,
        height=contract.height,
        width=contract.width,
        order=contract.colour_order,
        delivered="p - 128 for pixel p (signed)" if contract.signed else "the pixel p",
        outputs=outputs,
    )
