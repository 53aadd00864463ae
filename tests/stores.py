"""What tests put into a store: predictions, annotations, DICOM files. The fixtures are in `postgres.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from dcaf_monai.server.annotation import Annotation
from dcaf_monai.tasks import TASKS

TASK = TASKS["covid19"]
WRITER = Path(__file__).with_name("store_writer.py")


def prediction(version: str = "v1", *, entropy: float = 0.5, information: float = 0.1,
               probabilities: tuple[float, ...] = (0.7, 0.2, 0.1)) -> dict[str, Any]:
    ranked = sorted(zip(probabilities, TASK.classes, strict=True), reverse=True)
    return {"prediction": [{"idx": TASK.classes.index(label), "label": label, "score": score}
                           for score, label in ranked],
            "uncertainty": {"predictive_entropy": entropy, "mutual_information": information},
            "model": {"name": "m", "version": version, "sha256": "00ff", "task": TASK.name}}


def read(label: str = "covid", reader: str = "ana", **more: Any) -> Annotation:
    return Annotation(label=label, reader=reader, **more)


def write_dicom(path: Path, sop_uid: str, *, frames: int = 1) -> None:
    file_meta = FileMetaDataset()
    file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    file_meta.MediaStorageSOPInstanceUID = sop_uid
    file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    film = FileDataset(str(path), {}, file_meta=file_meta, preamble=b"\0" * 128)
    film.SOPClassUID, film.SOPInstanceUID = SecondaryCaptureImageStorage, sop_uid
    film.PatientName = "Doe^Jane"
    film.Rows, film.Columns, film.BitsAllocated, film.BitsStored, film.HighBit = 5, 7, 8, 8, 7
    film.PixelRepresentation, film.SamplesPerPixel, film.PhotometricInterpretation = 0, 1, "MONOCHROME2"
    if frames > 1:
        film.NumberOfFrames = frames
    film.PixelData = bytes(5 * 7 * frames + (5 * 7 * frames) % 2)
    film.save_as(path, enforce_file_format=True)
