"""Representative data: the pictures that calibration sees, those that decide, and those only reported on.

Quantization thresholds are fitted to what the network's layers put out on these pictures, so they should look
like what the sensor will see. They are declared by a string:

    builtin     seeded crops of the photographs that scikit-image and scikit-learn ship in their wheels
    coco:DIR    crops around the instances of a COCO folder, cut as the prompts the network was trained on
    FOLDER      seeded crops of the png, jpg, jpeg, bmp and webp pictures in a folder and its sub-folders

Every source is split in three, apart by picture: `calibration` (thresholds are fitted to it and networks are
trained on it), `deciding` (candidates are compared on it) and `held out` (only reported on).

`sources` finds the picture files, `content` tells pictures apart by their pixels, `parts` splits them,
`object_sizes` chooses instances evenly over their sizes, `crops` and `coco` cut, `drawing` puts a set
together and `card` writes down what it holds.
"""

from calib.representative.card import card, overlap
from calib.representative.coco import protocol_for
from calib.representative.content import content_hashes
from calib.representative.drawing import load_representative, require_source
from calib.representative.parts import CALIBRATION, DECIDING, HELD_OUT_PART
from calib.representative.representative_set import (
    HELD_OUT,
    PICTURES,
    RepresentativeSet,
    Source,
    delivered,
)
from calib.representative.sources import BUILTIN, COCO_PREFIX

__all__ = [
    "BUILTIN",
    "CALIBRATION",
    "COCO_PREFIX",
    "DECIDING",
    "HELD_OUT",
    "HELD_OUT_PART",
    "PICTURES",
    "RepresentativeSet",
    "Source",
    "card",
    "content_hashes",
    "delivered",
    "load_representative",
    "overlap",
    "protocol_for",
    "require_source",
]
