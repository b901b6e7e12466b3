"""Public data sets in their published on-disk formats, each a task source with a pinned split and one grader.

Invariant: nothing is downloaded and no file is changed; whatever stands in a set beside the question and its pictures
(captions, explanations, labels) never reaches the policy. Adding a set: one file with a `Dataset`, one line here.
"""

from __future__ import annotations

_HERE = "medvista_ray.tasks.datasets"

DATASETS: dict[str, str] = {
    "vqa_rad": f"{_HERE}.vqa_rad:VqaRad",
    "vqa_rad_parquet": f"{_HERE}.vqa_rad:VqaRadParquet",
    "slake": f"{_HERE}.slake:Slake",
    "slake_zh": f"{_HERE}.slake:SlakeChinese",
    "path_vqa": f"{_HERE}.path_vqa:PathVqa",
    "pmc_vqa_v1": f"{_HERE}.pmc_vqa:PmcVqaV1",
    "pmc_vqa_v2": f"{_HERE}.pmc_vqa:PmcVqaV2",
    "omnimedvqa": f"{_HERE}.omnimedvqa:OmniMedVqa",
    "medxpertqa_mm": f"{_HERE}.medxpertqa:MedXpertQaMm",
    "mmmu_med": f"{_HERE}.mmmu_med:MmmuMed",
    "microvqa": f"{_HERE}.microvqa:MicroVqa",
    "gmai_mmbench": f"{_HERE}.gmai_mmbench:GmaiMmBench",
}
"""Name of a set, as `bench.source` takes it -> import path of its `Dataset`."""
