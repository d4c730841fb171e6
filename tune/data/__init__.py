"""Data sets as one typed record, whatever their format; result files; checks of the pictures."""

from primelens.tune.data.checks import ImageCheck, check_images
from primelens.tune.data.coco import (
    read_answers,
    read_captions,
    write_answers,
    write_captions,
    write_labels,
)
from primelens.tune.data.example import Example, ImageBytes, Question
from primelens.tune.data.readers import FORMATS, DataSource, detect_format, read_examples

__all__ = [
    "FORMATS",
    "DataSource",
    "Example",
    "ImageBytes",
    "ImageCheck",
    "Question",
    "check_images",
    "detect_format",
    "read_answers",
    "read_captions",
    "read_examples",
    "write_answers",
    "write_captions",
    "write_labels",
]
