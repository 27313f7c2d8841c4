"""The crops of a data set in memory: every picture is decoded once, every crop is kept as bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from passes.errors import InputError
from student.crops import Mask, Pixels, Protocol, crop, crop_mask, shown
from student.instances import InstanceSet, PictureRecord, first_names, read_picture

Integers = NDArray[np.int64]
Progress = Callable[[int, int], None]
"""Called with what is done and what there is to do."""


@dataclass(frozen=True)
class CropSet:
    """N crops of side S with their masks, in order of annotation id.

    Attributes:
        pictures: uint8 [N, S, S, 3], RGB.
        masks: bool [N, S, S], the object the prompt points at.
        picture_ids, annotation_ids, category_ids: int64 [N].
        areas: float64 [N], pixels of the whole object in the picture, as annotated.
        competing: int64 [N], other instances of the picture with a pixel in the part that is shown.
        shown: int64 [N, 4], top, left, height and width of that part in pixels (`crops.shown`).
        sizes: int64 [N, 2], height and width of the picture.
        crowds: annotations of the data set left out because `iscrowd` is set.
        empty: annotations of the data set left out because their mask has no pixel.
    """

    pictures: Pixels
    masks: Mask
    picture_ids: Integers
    annotation_ids: Integers
    category_ids: Integers
    areas: NDArray[np.float64]
    competing: Integers
    shown: Integers
    sizes: Integers
    crowds: int
    empty: int

    def __len__(self) -> int:
        return len(self.masks)

    def select(self, chosen: NDArray[np.bool_]) -> CropSet:
        """The crops where `chosen`, bool [N], is true; `crowds` and `empty` stay those of the data set."""
        if chosen.all():
            return self
        return replace(
            self,
            **{
                field.name: getattr(self, field.name)[chosen]
                for field in fields(self)
                if field.name not in ("crowds", "empty")
            },
        )


def load_crops(
    instances: InstanceSet,
    protocol: Protocol,
    on_progress: Progress = lambda done, total: None,
    on_picture: Callable[[PictureRecord, Pixels], None] = lambda record, pixels: None,
) -> CropSet:
    """The crops of every instance.

    Args:
        on_progress: called after each picture with the numbers of pictures.
        on_picture: called with each picture that has instances, decoded: RGB, uint8 [H, W, 3].

    Raises:
        InputError: no instance, or pictures broken in their data (all of them counted, the first named).
    """
    count, size = len(instances), protocol.size
    _require_instances(instances)
    records = [record for record in instances.pictures if record.instances]
    ids = np.array([one.annotation_id for record in records for one in record.instances], np.int64)
    place = np.empty(count, np.int64)
    place[np.argsort(ids, kind="stable")] = np.arange(count)
    crops = CropSet(
        pictures=np.empty((count, size, size, 3), np.uint8),
        masks=np.empty((count, size, size), np.bool_),
        picture_ids=np.empty(count, np.int64),
        annotation_ids=np.empty(count, np.int64),
        category_ids=np.empty(count, np.int64),
        areas=np.empty(count),
        competing=np.empty(count, np.int64),
        shown=np.empty((count, 4), np.int64),
        sizes=np.empty((count, 2), np.int64),
        crowds=instances.crowds,
        empty=instances.empty,
    )
    broken: list[str] = []
    start = 0
    for done, record in enumerate(records, 1):
        where = place[start : start + len(record.instances)]
        start += len(record.instances)
        pixels = read_picture(record)
        if pixels is None:
            broken.append(record.path.name)
        elif not broken:
            _fill(crops, where, protocol, record, pixels)
            on_picture(record, pixels)
        on_progress(done, len(records))
    if broken:
        raise InputError(
            f"data {instances.name}",
            f"{len(broken)} pictures are broken: {first_names(broken)}",
            "every picture decodes to its end",
            "download these pictures again, or take their records and annotations out",
        )
    return crops


def load_masks(
    instances: InstanceSet,
    protocol: Protocol,
    limit: int,
    seed: int = 0,
    on_progress: Progress = lambda done, total: None,
) -> Mask:
    """The masks of instances in their crops, bool [N, S, S], of at most `limit` instances drawn at random.

    No picture is decoded.

    Raises:
        InputError: no instance.
    """
    _require_instances(instances)
    objects = [one for record in instances.pictures for one in record.instances]
    drawn = np.random.default_rng(seed).permutation(len(objects))[:limit]
    masks = np.empty((len(drawn), protocol.size, protocol.size), np.bool_)
    for done, index in enumerate(np.sort(drawn).tolist()):
        masks[done] = crop_mask(protocol, objects[index].mask(), objects[index].box)
        on_progress(done + 1, len(drawn))
    return masks


def _require_instances(instances: InstanceSet) -> None:
    if not len(instances):
        raise InputError(
            f"data {instances.name}",
            f"no usable instance ({instances.crowds} crowds and {instances.empty} empty masks left out)",
            "at least one",
            "give an annotation file with instance masks",
        )


def _fill(crops: CropSet, where: Integers, protocol: Protocol, record: PictureRecord, pixels: Pixels) -> None:
    """Writes the crops of one picture to the places `where`, one per instance."""
    for index, instance in zip(where, record.instances, strict=True):
        mask = instance.mask()
        crops.pictures[index], crops.masks[index] = crop(protocol, pixels, mask, instance.box)
        crops.shown[index] = shown(protocol, mask, instance.box)
        crops.annotation_ids[index] = instance.annotation_id
        crops.category_ids[index] = instance.category_id
        crops.areas[index] = instance.area
    crops.picture_ids[where] = record.id
    crops.sizes[where] = record.height, record.width
    crops.competing[where] = _competing(record, crops.shown[where])


def _competing(record: PictureRecord, rectangles: Integers) -> Integers:
    """For each instance how many others have a pixel in its rectangle [n, 4]."""
    from pycocotools import mask as codes

    top, left = np.maximum(rectangles[:, 0], 0), np.maximum(rectangles[:, 1], 0)
    bottom = np.minimum(rectangles[:, 0] + rectangles[:, 2], record.height)
    right = np.minimum(rectangles[:, 1] + rectangles[:, 3], record.width)
    boxes = np.stack([left, top, right - left, bottom - top], axis=1).astype(np.float64)
    seen = codes.iou(
        [instance.rle for instance in record.instances],
        codes.frPyObjects(boxes, record.height, record.width),
        [0] * len(boxes),
    )
    others: Integers = ((np.asarray(seen) > 0) & ~np.eye(len(boxes), dtype=np.bool_)).sum(axis=0)
    return others
