"""Seeded synthetic chest films with one known lesion, written as DICOM DX.

Made of smooth shapes, not of anybody's picture: a body outline, two dark lungs, ribs, clavicles,
a spine, a heart on the patient's left (the right of the screen), hilar shadows, quantum noise and
a varied exposure. Films of the positive class carry one bright round lesion in a lung, away from
the middle; its box is known, so an overlay can be judged. A share of the lesions is faint, so that
a good model has films to be unsure about. Nothing here resembles a disease closely enough to train
a model for patients.

The files follow the Digital X-Ray Image IOD (PS3.3 A.26). The same seed gives the same bytes.
"""

from __future__ import annotations

import csv
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom import Dataset
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import UID, DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian

SHAPE = (448, 384)
SPACING_MM = 0.8
FAINT, PLAIN = (0.10, 0.20), (0.35, 0.60)
"""Lesion contrast, as a share of the film's range: hard films, easy films."""


@dataclass(frozen=True)
class Phantom:
    """One synthetic film.

    Args:
        pixels: uint16 ``(rows, columns)``, 0-4095, brighter is denser (MONOCHROME2).
        label: ``normal`` or ``pneumonia``.
        lesion_box: ``(row0, column0, row1, column1)`` around the lesion, half-open; None without one.
        contrast: Height of the lesion as a share of the film's range; 0 without one.
    """

    pixels: np.ndarray
    label: str
    lesion_box: tuple[int, int, int, int] | None
    contrast: float


def phantom(seed: int, *, lesion: bool, shape: tuple[int, int] = SHAPE, contrast: float | None = None,
            anatomy: int | None = None) -> Phantom:
    """A film drawn from a seed.

    Args:
        seed: Decides pose, exposure, noise and the lesion.
        lesion: Whether the film shows the lesion.
        shape: ``(rows, columns)``, each at least 64.
        contrast: Lesion height in (0, 1]; by default drawn from `PLAIN`.
        anatomy: Seed of the body itself, so that films of one person look alike; ``seed`` by default.

    Raises:
        ValueError: For a shape below 64 or a contrast outside (0, 1].
    """
    if min(shape) < 64:
        raise ValueError(f"shape: need at least 64 rows and columns, got {shape}.")
    if contrast is not None and not 0 < contrast <= 1:
        raise ValueError(f"contrast: need a number in (0, 1], got {contrast}.")
    body = np.random.default_rng([1, seed if anatomy is None else anatomy])
    film = np.random.default_rng([2, seed])
    # Film coordinates in film heights: y down from 0 to 1, x from the middle, + is the patient's left.
    y, x = np.mgrid[0:shape[0], 0:shape[1]].astype(np.float64)
    y = (y + 0.5) / shape[0]
    x = (x + 0.5 - shape[1] / 2) / shape[0]
    x = x + film.uniform(-0.015, 0.015) + film.uniform(-0.03, 0.03) * (y - 0.5)
    y = y + film.uniform(-0.02, 0.02)

    width = body.uniform(0.94, 1.06)
    density, lungs, centres = _thorax(y, x / width, body)
    texture = _smooth_noise(shape, film, cells=18) * 0.03 * lungs + _smooth_noise(shape, film, cells=4) * 0.02
    density = density + texture

    box, height = None, 0.0
    if lesion:
        height = contrast if contrast is not None else float(film.uniform(*PLAIN))
        density, box = _add_lesion(density, (y, x / width), centres, height, film)

    exposure = film.uniform(0.75, 1.25)
    signal = 0.06 + 0.86 * np.clip(density, 0, 1.1) ** exposure
    signal = signal * film.uniform(0.85, 1.0) + film.normal(0, 0.012, shape)
    pixels = np.clip(np.rint(signal * 4095), 0, 4095).astype(np.uint16)
    return Phantom(pixels, "pneumonia" if lesion else "normal", box, height)


def write_films(folder: Path | str, count: int, *, seed: int = 0, films_per_patient: int = 4,
                faint: float = 0.3, shapes: tuple[tuple[int, int], ...] = (SHAPE, (416, 384), (384, 416)),
                ) -> list[Path]:
    """Writes films into class folders, with ``labels.csv`` and ``lesions.json`` beside them.

    Each patient gives several films, both with and without a lesion; of five patients three are for
    training, one for validation, one for testing. Every fifth film is stored as MONOCHROME1.

    Args:
        folder: Made when missing; files of the same name are replaced.
        count: Number of films, half of them with a lesion.
        seed: The same seed writes the same bytes.
        films_per_patient: At least 2, so that every patient shows both classes.
        faint: Share of the lesions that are hard to see.
        shapes: ``(rows, columns)`` a film may have.

    Returns:
        Paths of the films, in the order of ``labels.csv`` (columns file, task, label, split, group).

    Raises:
        ValueError: For fewer than one film, or fewer than two a patient.
    """
    if count < 1 or films_per_patient < 2:
        raise ValueError("films: need count of at least 1 and films_per_patient of at least 2, "
                         f"got {count} and {films_per_patient}.")
    folder = Path(folder)
    rows, boxes, paths = [], {}, []
    for index in range(count):
        patient = index // films_per_patient
        choice = np.random.default_rng([3, seed, index])
        lesion = index % 2 == 1
        is_faint = choice.random() < faint
        shape = shapes[int(choice.integers(len(shapes)))]
        film = phantom(seed * 1_000_003 + index, lesion=lesion, shape=shape,
                       contrast=float(choice.uniform(*(FAINT if is_faint else PLAIN))) if lesion else None,
                       anatomy=seed * 1_000_003 + patient)
        path = folder / film.label / f"film_{seed}_{index:04d}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        film_to_dicom(film, name=f"{seed}.{index}", patient=f"{seed}.{patient}",
                      inverted=index % 5 == 4).save_as(path, enforce_file_format=True)
        name = path.relative_to(folder).as_posix()
        split = ("train", "train", "train", "val", "test")[patient % 5]
        rows.append((name, "pneumonia", film.label, split, f"synthetic-{seed}-{patient:04d}"))
        if film.lesion_box:
            boxes[name] = film.lesion_box
        paths.append(path)
    with open(folder / "labels.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([("file", "task", "label", "split", "group"), *rows])
    (folder / "lesions.json").write_text(json.dumps(boxes, indent=1) + "\n", encoding="utf-8")
    return paths


def film_to_dicom(film: Phantom, *, name: str, patient: str, inverted: bool = False) -> FileDataset:
    """The film as a DX image for presentation, explicit little endian, 12 bits in 16.

    Args:
        name, patient: Words from which UIDs and identifiers are derived: same words, same bytes.
        inverted: Store as MONOCHROME1 (larger values darker).
    """
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = _uid(f"image {name}")
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = _uid("DCAF phantom")
    dicom = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    dicom.SOPClassUID, dicom.SOPInstanceUID = DigitalXRayImageStorageForPresentation, _uid(f"image {name}")
    _patient_and_study(dicom, patient, name)
    _acquisition(dicom)

    stored = 4095 - film.pixels if inverted else film.pixels
    dicom.SamplesPerPixel, dicom.PhotometricInterpretation = 1, "MONOCHROME1" if inverted else "MONOCHROME2"
    dicom.Rows, dicom.Columns = film.pixels.shape
    dicom.BitsAllocated, dicom.BitsStored, dicom.HighBit, dicom.PixelRepresentation = 16, 12, 11, 0
    dicom.PixelIntensityRelationship, dicom.PixelIntensityRelationshipSign = "LOG", -1 if inverted else 1
    dicom.RescaleIntercept, dicom.RescaleSlope, dicom.RescaleType = "0", "1", "US"
    dicom.PresentationLUTShape = "INVERSE" if inverted else "IDENTITY"
    dicom.WindowCenter, dicom.WindowWidth = "2048", "4096"
    dicom.LossyImageCompression = "00"
    dicom.PixelData = stored.astype("<u2").tobytes()
    return dicom


def _patient_and_study(dicom: Dataset, patient: str, name: str) -> None:
    dicom.PatientName, dicom.PatientID = f"Synthetic^{patient}", f"SYNTHETIC-{patient}"
    dicom.PatientBirthDate, dicom.PatientSex = "", "O"
    dicom.StudyInstanceUID, dicom.SeriesInstanceUID = _uid(f"study {patient}"), _uid(f"series {name}")
    dicom.StudyDate = dicom.SeriesDate = dicom.ContentDate = dicom.AcquisitionDate = "20200101"
    dicom.StudyTime = dicom.SeriesTime = dicom.ContentTime = dicom.AcquisitionTime = "120000"
    dicom.StudyID, dicom.SeriesNumber, dicom.InstanceNumber = "1", "1", "1"
    dicom.AccessionNumber, dicom.ReferringPhysicianName = "", ""
    dicom.StudyDescription = "Synthetic chest phantom"
    dicom.SeriesDescription = "SYNTHETIC - research software, not a medical device"
    dicom.ImageComments = "Synthetic image for testing research software; not a medical device; no patient."
    dicom.Manufacturer, dicom.ManufacturerModelName = "DCAF", "Synthetic chest phantom"
    dicom.SoftwareVersions, dicom.DeviceSerialNumber = "1", "0"
    dicom.InstitutionName = ""


def _acquisition(dicom: Dataset) -> None:
    dicom.Modality, dicom.PresentationIntentType = "DX", "FOR PRESENTATION"
    dicom.ImageType = ["DERIVED", "PRIMARY"]
    dicom.DerivationDescription = "Computed drawing, not an exposure"
    dicom.AcquisitionNumber = "1"
    dicom.BodyPartExamined, dicom.ViewPosition, dicom.ImageLaterality = "CHEST", "PA", "U"
    dicom.PatientOrientation = ["L", "F"]
    dicom.AnatomicRegionSequence = [_code("51185008", "Chest")]
    dicom.ViewCodeSequence = [_code("399348003", "postero-anterior")]
    dicom.ViewCodeSequence[0].ViewModifierCodeSequence = []
    dicom.AcquisitionContextSequence = []
    dicom.DetectorType, dicom.PositionerType = "DIRECT", ""
    dicom.PixelSpacing = dicom.ImagerPixelSpacing = [str(SPACING_MM)] * 2
    dicom.PixelSpacingCalibrationType, dicom.PixelSpacingCalibrationDescription = "GEOMETRY", "Synthetic"
    dicom.BurnedInAnnotation = "NO"


def _code(value: str, meaning: str) -> Dataset:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, "SCT", meaning
    return code


def _uid(words: str) -> UID:
    """A UID under 2.25 (PS3.5 B.2) that depends on the words alone."""
    return UID(f"2.25.{int.from_bytes(hashlib.sha256(words.encode()).digest()[:16], 'big')}")


def _soft(distance: np.ndarray, softness: float) -> np.ndarray:
    """1 where ``distance`` is well below 0, 0 where it is well above."""
    return 1 / (1 + np.exp(np.clip(distance / softness, -40, 40)))


def _ellipse(y: np.ndarray, x: np.ndarray, centre: tuple[float, float], radii: tuple[float, float],
             tilt: float = 0.0) -> np.ndarray:
    """Signed distance-like value of a tilted ellipse: negative inside."""
    dy, dx = y - centre[0], x - centre[1]
    dy, dx = dy * np.cos(tilt) - dx * np.sin(tilt), dy * np.sin(tilt) + dx * np.cos(tilt)
    return np.hypot(dy / radii[0], dx / radii[1]) - 1


def _thorax(y: np.ndarray, x: np.ndarray, body: np.random.Generator,
            ) -> tuple[np.ndarray, np.ndarray, list[tuple[float, float, float, float]]]:
    """Density of the body, the lungs' mask, and ``(y, x, height, width)`` of each lung's inner part."""
    lung_y, lung_x = body.uniform(0.42, 0.46), body.uniform(0.165, 0.185)
    lung_h, lung_w = body.uniform(0.29, 0.33), body.uniform(0.115, 0.130)
    heart = (body.uniform(0.58, 0.62), body.uniform(0.05, 0.075))
    heart_w = body.uniform(0.10, 0.13)
    ribs, slope = body.uniform(0.060, 0.068), body.uniform(0.9, 1.3)

    torso = _soft(np.abs(x) - (0.36 + 0.05 * np.tanh((y - 0.25) * 6)), 0.012)
    shoulders = _soft(0.06 + 0.9 * np.clip(np.abs(x) - 0.10, 0, None) ** 1.6 - y, 0.02)
    density = 0.70 * torso * shoulders + 0.45 * _soft(np.abs(x) - 0.08, 0.01) * (1 - shoulders)

    lungs = np.zeros_like(y)
    for side in (-1, 1):
        lungs += _soft(_ellipse(y, x, (lung_y, side * lung_x), (lung_h, lung_w), side * 0.10), 0.04)
    dome = 0.70 + 0.02 * (x > 0) - 0.25 * (np.abs(x) - lung_x) ** 2 * 8
    lungs *= _soft(y - dome + 0.02, 0.008) * torso * shoulders
    density -= 0.46 * lungs

    # Ribs fall away from the spine; each is a band of the angle-corrected height.
    phase = (y - slope * (np.abs(x) - 0.02) ** 2 * 2.2 - 0.16) / ribs
    density += 0.07 * lungs * np.exp(-(((phase - np.rint(phase)) / 0.20) ** 2)) * (np.abs(x) > 0.04)
    clavicle = np.abs(y - 0.17 + 0.25 * (np.abs(x) - 0.12)) - 0.013
    density += 0.10 * _soft(clavicle, 0.004) * _soft(np.abs(np.abs(x) - 0.14) - 0.11, 0.01)

    vertebrae = 0.5 + 0.5 * np.cos(2 * np.pi * y / 0.075)
    density += (0.10 + 0.03 * vertebrae) * _soft(np.abs(x) - 0.042, 0.008)
    heart_shadow = _soft(_ellipse(y, x, heart, (0.12, heart_w), 0.5), 0.05)
    density += np.clip(0.80 - density, 0, None) * 0.85 * heart_shadow
    for side in (-1, 1):
        density += 0.10 * np.exp(-(((y - 0.43) / 0.05) ** 2 + ((x - side * 0.075) / 0.025) ** 2))
    inner = [(lung_y + 0.01, side * (lung_x + 0.01), lung_h * 0.62, lung_w * 0.42) for side in (-1, 1)]
    return density, lungs, inner


def _add_lesion(density: np.ndarray, place: tuple[np.ndarray, np.ndarray],
                centres: list[tuple[float, float, float, float]], height: float,
                film: np.random.Generator) -> tuple[np.ndarray, tuple[int, int, int, int]]:
    """Adds one soft disc inside a lung, clear of the heart's shadow; gives its box in pixels."""
    y, x = place
    side = int(film.integers(2))
    lung_y, lung_x, lung_h, lung_w = centres[side]
    low = 0.1 if side == 1 else 0.75  # the heart covers the lower part of the lung at the screen's right
    centre = (lung_y + film.uniform(-0.8, low) * lung_h, lung_x + film.uniform(-0.8, 0.8) * lung_w)
    radius = film.uniform(0.035, 0.055)
    distance = np.hypot(y - centre[0], x - centre[1]) / radius - 1
    rows, columns = np.nonzero(distance < 0)
    box = (int(rows.min()), int(columns.min()), int(rows.max()) + 1, int(columns.max()) + 1)
    return density + height * _soft(distance, 0.10), box


def _smooth_noise(shape: tuple[int, int], film: np.random.Generator, *, cells: int) -> np.ndarray:
    """Smooth random field of unit order: a coarse random grid, interpolated with a cosine ease."""
    grid = film.normal(0, 1, (cells + 1, cells + 1))

    def along(count: int) -> tuple[np.ndarray, np.ndarray]:
        position = np.linspace(0, cells, count, endpoint=False)
        start = position.astype(int)
        return start, (1 - np.cos(np.pi * (position - start))) / 2

    (r, fr), (c, fc) = along(shape[0]), along(shape[1])
    fr, fc = fr[:, None], fc[None, :]
    top = grid[np.ix_(r, c)] * (1 - fc) + grid[np.ix_(r, c + 1)] * fc
    bottom = grid[np.ix_(r + 1, c)] * (1 - fc) + grid[np.ix_(r + 1, c + 1)] * fc
    return top * (1 - fr) + bottom * fr
