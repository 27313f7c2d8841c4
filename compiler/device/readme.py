"""README.md of device-check/: the commands from packerOut.zip to a verdict about the chip."""

from __future__ import annotations

import textwrap

PACKAGING = """\
sudo apt update && sudo apt full-upgrade -y
sudo apt install -y imx500-all imx500-tools python3-picamera2 python3-openexr
sudo reboot  # firmware, driver and picamera2 belong together; afterwards come back to this folder
imx500-package -i packerOut.zip -o {network}-rpk  # writes {network}-rpk/network.rpk
"""
"""Shell: packerOut.zip becomes the file that the camera loads. It runs on the Raspberry Pi only."""

UNPACKED = """\
packerOut.zip is not in this package: it was compiled with --no-convert or --memory-report-only. Compile it
again without.

"""

_CHECK = """# device-check: does the chip compute what the simulator computes?

{count} inputs, the integers {network} must give for them, and a script for the Raspberry Pi AI Camera that
injects the inputs, compares every integer and prints the first difference and the chip's own times.

No camera was at hand when this was written: the comparison is tested against recordings, the calls to
picamera2 against a stand-in for it, the camera itself not at all.

## Run it

{unpacked}Copy this package to the Raspberry Pi, and there, in the package's folder:

```sh
{packaging}
cd device-check
python3 -m on_the_pi.check ../{network}-rpk/network.rpk --record found.npz
```

The first start loads the network onto the chip, which takes a minute or more. Exit code 0: every integer is
the one that a set of numerics gives, which is named. 1: it is not, or the check could not run, and the
message says why.

## What the answer means

{numerics}

`found.npz` holds the inputs and what the chip put out. At the desk, with this package:

```sh
python3 -m on_the_pi.check --replay found.npz     # the same comparison, without a camera
cd ..
picosam2 diff . {nearest} device-check/found.npz --map first.png
```

`diff` shows which channels of the outputs differ and draws where; a recording holds no layers between. Give
it the numerics that the check calls nearest, by the name that its `expected-NAME.npz` carries.

Where the chip's outputs are no integers of this network, so that nothing can be compared, `found.npz` holds
them as the camera gave them; `--replay` reads that too, `picosam2 diff` does not.

Please report the result with `found.npz`: no chip has confirmed the numerics yet.

## Files

- `check.json`: input, outputs (shape, order, step, sign), mask, prompt protocol
- `{inputs}`: the inputs as the network reads them: {how}
{expected}
- `on_the_pi/`: Python with numpy and picamera2 only (the demo writes pictures with PIL, which picamera2
  itself depends on). `outputs.py` is a typed reader for your own programs

```python
from pathlib import Path

from on_the_pi.outputs import read_facts

facts = read_facts(Path("."))
integers = facts.read(tuple(imx500.get_outputs(metadata)))  # {{name: int64 array in the graph's order}}
```
{demo}"""

_NUMERICS = """\
| equal to | then the chip |
|---|---|
| `dialect` | computes what the quantized ONNX file means, exactly |
| `imx500: ROUNDING, saturating` or `... not saturating` | takes the 8-bit multipliers, shifts and whole \
biases of the compiled file, rounds what a shift drops as named (`nearest_even`, `half_up`, `floor`), and \
saturates a convolution before a fused addition, or not. The compiled file cannot tell; this check does |
| none | differs in something else: the first difference is printed |"""

_MISSING = """
The chip's own numerics are not among the expected ones, because the compiled numbers of a layer are not \
known ({missing}). A chip that differs from `dialect` by a step here and there may well be right."""

_DEMO = """
## Point at something

```sh
python3 -m on_the_pi.demo ../{network}-rpk/network.rpk {prompt}
```

It sets the sensor's region of interest so that the network sees what the prompt protocol shows
({protocol}), and writes pictures with the mask drawn in. Points and boxes are pixels of the written picture,
640x480 as the pictures that the shipped networks learnt from. At its edge the window is moved inside: the
sensor has no pixels there to pad with. The demo ends with a message where the driver did not take the region
(picamera2 only prints that); what the sensor makes of a region it took cannot be read back.
"""

_NO_CHECK = """# device-check

There is no check for this network: {reason}

A check needs a network with one RGB or BGR picture as input (picamera2 injects nothing else), operators that
the simulator executes, and a C compiler on the machine that compiles (`picosam2 doctor` looks for one).
"""


def check_readme(
    *,
    network: str,
    count: int,
    how: str,
    inputs: str,
    expected: list[tuple[str, str]],
    missing: str | None,
    protocol: str | None,
    demo: bool,
    packed: bool,
) -> str:
    """README.md of a folder with a check.

    Args:
        how: where the inputs come from.
        expected: file and numerics of each set of integers.
        missing: why the chip's own numerics are not there.
        demo: the network has a mask to draw.
        packed: packerOut.zip is in the package.
    """
    listed = "\n".join(f"- `{file}`: the integers of {names}" for file, names in expected)
    names = [file.removeprefix("expected-").removesuffix(".npz") for file, _ in expected]
    nearest = next((name for name in names if name.startswith("imx500")), names[0])
    numerics = _NUMERICS + ("" if missing is None else "\n" + _MISSING.format(missing=missing))
    shown = ""
    if demo:
        prompt = "--box 250,180,400,330" if protocol == "roi-pad10" else "--point 320,240"
        shown = _DEMO.format(
            network=network,
            prompt=prompt,
            protocol=protocol or "not known for this model: a point's by default",
        )
    return _CHECK.format(
        network=network,
        unpacked="" if packed else UNPACKED,
        count=count,
        packaging=PACKAGING.format(network=network).strip(),
        numerics=numerics,
        nearest=nearest,
        inputs=inputs,
        how=how,
        expected=listed,
        demo=shown,
    )


def no_check_readme(reason: str) -> str:
    """README.md of a folder without a check."""
    return _NO_CHECK.format(reason=textwrap.shorten(reason, 400))
