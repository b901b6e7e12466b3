"""PathVQA (He et al., 2020): questions on pathology figures of textbooks, as parquet (flaviagiammarino/path-vqa).

data/{train,validation,test}-*.parquet with image, question, answer. An early revision held 5,198 / 1,664 / 1,716 questions: a
count other than `published` says so. About half is answered by yes or no, which counts as closed.
"""

from __future__ import annotations

from medvista_ray.tasks.datasets.base import Part, counts
from medvista_ray.tasks.datasets.parquet_rows import FILES, ImageQuestionAnswer
from medvista_ray.types import Split


class PathVqa(ImageQuestionAnswer):
    """The official split, which is by figure."""

    name = "path_vqa"
    title = "PathVQA"
    home = "https://huggingface.co/datasets/flaviagiammarino/path-vqa"
    licence = "MIT (the pictures belong to their publishers)"
    credit = "He, Zhang, Mou, Xing, Xie, 2020"
    parts = (
        Part(FILES[Split.TRAIN], "train"),
        Part(FILES[Split.VALIDATION], "validation", marks=True),
        Part(FILES[Split.TEST], "test", marks=True),
    )
    published = counts(train=19654, validation=6259, test=6719)
    modality = "pathology"
