"""Small folders in the exact published layout and schema of each public set, for tests. Pictures are plain shades."""

from __future__ import annotations

import base64
import csv
import io
import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from medvista_ray.config import BenchConfig
from medvista_ray.tasks.datasets.base import Dataset
from medvista_ray.tasks.source import load_source

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
"""The cell of the `datasets` library's Image feature."""
MICROVQA_SCHEMA = pa.schema(
    {
        "key_question": pa.int64(),
        "key_image": pa.int64(),
        "images_list": pa.list_(IMAGE),
        "question": pa.string(),
        "choices": pa.list_(pa.string()),
        "correct_index": pa.int64(),
        "correct_answer": pa.string(),
        "question_1": pa.string(),
        "choices_1": pa.list_(pa.string()),
        "correct_index_1": pa.int64(),
        "task": pa.int64(),
        "task_str": pa.string(),
        "context_image_generation": pa.string(),
        "image_caption": pa.string(),
    }
)
MMMU_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("id", "question", "options", "explanation")),
        *((f"image_{i}", IMAGE) for i in range(1, 8)),
        *((name, pa.string()) for name in ("img_type", "answer", "topic_difficulty", "question_type", "subfield")),
    ]
)


def shade(value: int, kind: str = "PNG", size: tuple[int, int] = (40, 30), mode: str = "L") -> bytes:
    """An encoded picture of one grey value; `size` is width, height."""
    out = io.BytesIO()
    Image.new("L", size, value).convert(mode).save(out, kind)
    return out.getvalue()


def put(path: Path, data: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)


def put_zip(path: Path, members: Mapping[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def put_csv(path: Path, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])


def put_parquet(path: Path, schema: pa.Schema, rows: Sequence[Mapping[str, Any]], group: int = 2) -> None:
    """Two rows a group, so that a row is not found by luck."""
    path.parent.mkdir(parents=True, exist_ok=True)
    full = [{name: row.get(name) for name in schema.names} for row in rows]
    pq.write_table(pa.Table.from_pylist(full, schema=schema), path, row_group_size=group)


def cell(value: int) -> dict[str, Any]:
    return {"bytes": shade(value), "path": None}


def vqa_rad(root: Path) -> None:
    """OSF: two MedPix cases, one of them in both splits."""
    fields = ("qid", "phrase_type", "image_name", "image_case_url", "question", "question_type", "answer", "answer_type")
    rows = [
        ("1", "freeform", "synpic1.jpg", "https://medpix/case1", "is there a mass?", "PRES", "Yes", "CLOSED "),
        ("2", "para", "synpic2.jpg", "https://medpix/case2", "what plane is this?", "PLANE", "Axial", "OPEN"),
        ("3", "freeform", "synpic3.jpg", "https://medpix/case3", "how wide is it?", "SIZE", 5, "OPEN"),
        ("4", "test_freeform", "synpic4.jpg", "https://medpix/case1", "is this a CT or an MRI?", "MODALITY", "CT", "CLOSED"),
        ("5", "test_para", "synpic5.jpg", "https://medpix/case5", "which organs are shown?", "ORGAN", "liver, spleen", "OPEN"),
    ]
    records = [{**dict(zip(fields, row, strict=True)), "image_organ": "HEAD", "evaluation": "evaluated"} for row in rows]
    put(root / "VQA_RAD Dataset Public.json", json.dumps(records))
    for number in range(1, 6):
        put(root / "VQA_RAD Image Folder" / f"synpic{number}.jpg", shade(40 * number, "JPEG"))


def _image_question_answer(root: Path, splits: Mapping[str, Sequence[tuple[int, str, str]]]) -> None:
    schema = pa.schema({"image": IMAGE, "question": pa.string(), "answer": pa.string()})
    for split, rows in splits.items():
        records = [{"image": cell(value), "question": question, "answer": answer} for value, question, answer in rows]
        put_parquet(root / "data" / f"{split}-00000-of-00001-e5bc3d208bb4deeb.parquet", schema, records)


def vqa_rad_parquet(root: Path) -> None:
    """The picture with shade 10 is in both splits."""
    train = [(10, "is it normal?", "yes"), (20, "which side?", "left"), (30, "is it normal?", "no")]
    _image_question_answer(root, {"train": train, "test": [(10, "what is it?", "a mass"), (40, "is it normal?", "no")]})


def path_vqa(root: Path) -> None:
    train = [(1, "what is present?", "gastrointestinal"), (2, "is it benign?", "yes")]
    rest = {"validation": [(3, "where is it?", "liver")], "test": [(4, "what is shown?", "tumor cells"), (5, "is it?", "no")]}
    _image_question_answer(root, {"train": train, **rest})


def _slake_record(qid: int, img: int, question: str, answer: str, **more: Any) -> dict[str, Any]:
    record = {"img_id": img, "img_name": f"xmlab{img}/source.jpg", "question": question, "answer": answer, "q_lang": "en"}
    rest = {"location": "Lung", "modality": "CT", "answer_type": "OPEN", "base_type": "vqa", "content_type": "Organ"}
    return {**record, **rest, "triple": ["vhead", "_", "_"], "qid": qid, **more}


def slake(root: Path, zipped: bool = False) -> None:
    """Three pictures, one a split; masks of both lungs and the heart on each; a knowledge graph of three triples."""
    records = {
        "train": [
            _slake_record(1, 1, "Is the left lung healthy?", "Yes", answer_type="CLOSED", content_type="Abnormality"),
            _slake_record(2, 1, "Which organs are in the picture?", "Lung, Heart"),
            _slake_record(3, 1, "图中有哪些器官?", "肺、心脏", q_lang="zh"),
        ],
        "validation": [_slake_record(4, 2, "Where is the heart?", "Center", content_type="Position")],
        "test": [
            _slake_record(5, 3, "What modality is it?", "CT", content_type="Modality"),
            _slake_record(
                6, 3, "What treats pneumonia?", "medical therapy, supportive therapy",
                base_type="kg", content_type="KG", triple=["Pneumonia", "treatment", "_"],
            ),
        ],
    }  # fmt: skip
    for split, rows in records.items():
        put(root / f"{split}.json", json.dumps(rows, ensure_ascii=False))
    members: dict[str, bytes] = {}
    boxes = [{"Left Lung": [10.0, 5.0, 10.0, 15.0]}, {"Right Lung": [25.0, 5.0, 10.0, 15.0]}, {"Heart": [0.0, 0.0, 40.0, 3.0]}]
    for img in (1, 2, 3):
        members[f"imgs/xmlab{img}/source.jpg"] = shade(60 * img, "JPEG")
        members[f"imgs/xmlab{img}/detection.json"] = json.dumps(boxes).encode()
        members[f"imgs/xmlab{img}/mask.png"] = _mask()
        members[f"imgs/xmlab{img}/question.json"] = b"[]"
    if zipped:
        put_zip(root / "imgs.zip", members)
    else:
        for name, data in members.items():
            put(root / name, data)
    put(root / "mask.txt", "70:Liver\n180:Heart\n215:Left Lung\n225:Right Lung\n")
    disease = "disease#attribute#value\nPneumonia#treatment#medical therapy, supportive therapy\nPneumonia#location#Lung\n"
    organ = "organ#attribute#value\nLung#function#breathe\n"
    put_zip(root / "KG.zip", {"KG/en_disease.csv": disease.encode(), "KG/en_organ.csv": organ.encode()})


def _mask() -> bytes:
    values = np.zeros((30, 40), np.uint8)
    values[5:20, 10:20], values[5:20, 25:35], values[0:3, :] = 215, 225, 180
    out = io.BytesIO()
    Image.fromarray(values).save(out, "PNG")
    return out.getvalue()


_CHOICES = ("Choice A", "Choice B", "Choice C", "Choice D")


def pmc_vqa_v1(root: Path) -> None:
    """Article PMC1 is in both splits."""
    columns = ("Figure_path", "Question", "Answer", *_CHOICES, "Answer_label")
    texts = (" A:Diffuse uptake ", " B:Focal uptake ", " C:No uptake ", " D:Cannot tell ")
    row = ("What is the uptake?", "Focal uptake", *texts, "B")
    put_csv(root / "train.csv", columns, [("PMC1_F1.jpg", *row), ("PMC2_F1.jpg", *row)])
    put_csv(root / "test_clean.csv", columns, [("PMC1_F2.jpg", *row), ("PMC4_F1.jpg", *row)])
    names = ("PMC1_F1.jpg", "PMC2_F1.jpg", "PMC1_F2.jpg", "PMC4_F1.jpg")
    put_zip(root / "images.zip", {f"images/{name}": shade(50 * i + 10, "JPEG") for i, name in enumerate(names)})


def pmc_vqa_v2(root: Path) -> None:
    columns = ("index", "Figure_path", "Caption", "Question", *_CHOICES, "Answer", "split")
    texts = (" A: MRI", " B: CT", " C: X-ray", " D: PET")
    for number, split in enumerate(("train", "test")):
        name = f"PMC9{number}_Fig1_2.jpg"
        row = (str(number), name, "SECRET caption, a CT scan", "Which modality?", *texts, "B", split)
        put_csv(root / f"{split}_2.csv", columns, [row])
        put(root / "figures" / name, shade(90 + number, "JPEG"))


def omnimedvqa(root: Path) -> None:
    """Forty pictures with two questions each; one record spells modality_type as the published file does."""
    rows = []
    for number in range(80):
        name = f"Images/ACRIMA/Im{number // 2}.png"
        record = {"dataset": "ACRIMA", "question_id": f"ACRIMA_{number:04}", "question_type": "Disease Diagnosis"}
        options = {"option_A": "Glaucoma.", "option_B": "Normal", "option_C": "Cataract"}
        gold = {"gt_answer": "normal", "image_path": name, "question": "What is seen?"}
        rows.append({**record, **gold, **options, "modality" if number == 3 else "modality_type": "Fundus Photography"})
        put(root / name, shade(number // 2))
    put(root / "QA_information" / "Open-access" / "ACRIMA.json", json.dumps(rows))


def medxpertqa_mm(root: Path) -> None:
    options = {"A": "Lupus", "B": "Gout", "C": "Sepsis", "D": "Scurvy", "E": "Anemia"}
    text = "What is it?\nAnswer Choices: " + " ".join(f"({key}) {value}" for key, value in options.items())
    more = {"medical_task": "Diagnosis", "body_system": "Skin", "question_type": "Reasoning"}
    for split, number, names in (("dev", 1, ["MM-1-a.jpeg"]), ("test", 2, ["MM-2-a.jpeg", "MM-2-b.jpeg"])):
        record = {"id": f"MM-{number}", "question": text, "options": options, "label": "D", "images": names, **more}
        put(root / "MM" / f"{split}.jsonl", json.dumps(record) + "\n")
    names = ("MM-1-a.jpeg", "MM-2-a.jpeg", "MM-2-b.jpeg")
    put_zip(root / "images.zip", {f"images/{name}": shade(70 + i, "JPEG") for i, name in enumerate(names)})


def mmmu_med(root: Path) -> None:
    def record(number: int, split: str, **more: Any) -> dict[str, Any]:
        base = {"id": f"{split}_Clinical_Medicine_{number}", "explanation": "SECRET", "subfield": "Radiology"}
        return {**base, "question_type": "multiple-choice", "image_1": cell(10 * number), **more}

    validation = [
        record(1, "validation", question="<image 1> Which?", options="['<image 2>', 'None']", answer="A", image_2=cell(99)),
        record(2, "validation", question="How many? <image 1>", options="[]", answer="8.40", question_type="open"),
        record(3, "validation", question="Name it", options="[]", answer="['femur', 'thigh bone']", question_type="open"),
    ]
    hidden = [record(4, "test", question="<image 1>?", options="['a', 'b']", answer="?")]
    put_parquet(root / "Clinical_Medicine" / "validation-00000-of-00001.parquet", MMMU_SCHEMA, validation)
    put_parquet(root / "Clinical_Medicine" / "test-00000-of-00001.parquet", MMMU_SCHEMA, hidden)


def microvqa(root: Path) -> None:
    rows = [
        {
            "key_question": number,
            "key_image": number // 2,
            "images_list": [cell(number), cell(number + 100)],
            "question": f"Which pathway explains image {number}?",
            "choices": ["Actin", "Tubulin", "Lamin"],
            "correct_index": number % 3,
            "question_1": "SECRET older wording",
            "task_str": "hypothesis_gen",
            "image_caption": "SECRET caption",
        }
        for number in range(5)
    ]
    put_parquet(root / "data" / "train-00000-of-00005.parquet", MICROVQA_SCHEMA, rows[:3])
    put_parquet(root / "data" / "train-00001-of-00005.parquet", MICROVQA_SCHEMA, rows[3:])


def gmai_mmbench(root: Path) -> None:
    """A quoted field with a tab, a line break and quotes; a picture cell that points to another record."""
    columns = ("index", "image", "question", *"ABCDE", "answer", "category", "clinical vqa task", "department")
    columns = (*columns, "perceptual granularity")
    big = base64.b64encode(shade(77, "PNG") + b"\0" * 200_000).decode()  # wider than the csv module's field limit
    other = base64.b64encode(shade(78)).decode()
    tail = ("Polyp", "Disease Diagnosis", "Gastroenterology", "image")
    rows = [
        ("0", big, "What is it?", "Polyp", "Ulcer", "", "", "", "A", *tail),
        ("7", other, '"Which\tone,\nsay ""x""?"', "Yes it is", "No", "Unclear", "Other", "None", "E", *tail),
        ("9", "7", "And here?", "Polyp", "Ulcer", "Cyst", "", "", "C", *tail),
    ]
    put(root / "GMAI_mm_bench_VAL.tsv", "\n".join("\t".join(row) for row in (columns, *rows)) + "\n")


WRITERS: dict[str, Callable[[Path], None]] = {
    "vqa_rad": vqa_rad,
    "vqa_rad_parquet": vqa_rad_parquet,
    "slake": slake,
    "slake_zh": slake,
    "path_vqa": path_vqa,
    "pmc_vqa_v1": pmc_vqa_v1,
    "pmc_vqa_v2": pmc_vqa_v2,
    "omnimedvqa": omnimedvqa,
    "medxpertqa_mm": medxpertqa_mm,
    "mmmu_med": mmmu_med,
    "microvqa": microvqa,
    "gmai_mmbench": gmai_mmbench,
}
"""By the name of the source that reads it."""


def opened(name: str, root: Path, **settings: Any) -> Dataset:
    """The set, written into `root` if that is empty, and loaded as a run would load it."""
    root.mkdir(exist_ok=True)
    if not any(root.iterdir()):
        WRITERS[name](root)
    config = BenchConfig.model_validate({"source": name, "path": root, **settings})
    source = load_source(config)
    assert isinstance(source, Dataset)
    return source
