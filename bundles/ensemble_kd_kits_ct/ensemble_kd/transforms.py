"""From the values of label files to classes."""

from __future__ import annotations

from collections.abc import Sequence

from monai.config import KeysCollection
from monai.transforms import MapLabelValued

__all__ = ["GroupLabelsd"]


class GroupLabelsd(MapLabelValued):
    """Replaces label values by the class they belong to: 0 for those of the first group, 1 for the second, and so on.

    Args:
        keys: label maps.
        label_groups: for each class the values that label maps have for it.
    """

    def __init__(self, keys: KeysCollection, *, label_groups: Sequence[Sequence[int]]) -> None:
        values = [value for group in label_groups for value in group]
        classes = [index for index, group in enumerate(label_groups) for _ in group]
        super().__init__(keys, values, classes)
