"""`Image`: one grey picture with its header and its place in the patient.

Axis order is always ``(rows, columns)``. Physical coordinates are millimetres in the DICOM
patient system (LPS, PS3.3 C.7.6.2.1.1). An image without orientation (a projection film, a PNG)
lies in the plane ITK gives it: columns along +x, rows along +y, origin 0, so that a map written
by DCAF falls on the image as 3D Slicer and ITK load it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from pydicom import Dataset


class ImageError(Exception):
    """A file that cannot become an `Image`.

    Args:
        code: Short, stable word for the cause (``not_dicom``, ``too_large``, ``colour``, ...).
        message: One sentence, ``<thing>: need X, got Y. <what to do>``; holds nothing from the
            header that could name a patient.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Notice:
    """Something a reader of the result should know, as a stable code and a plain sentence."""

    code: str
    message: str


@dataclass(frozen=True)
class Geometry:
    """Where a pixel grid lies in the patient.

    The centre of pixel ``(row, column)`` is at
    ``origin_mm + row * spacing_mm[0] * down + column * spacing_mm[1] * right``.

    Args:
        shape: ``(rows, columns)``.
        spacing_mm: Distance between rows, between columns; both positive.
        origin_mm: Centre of pixel (0, 0), LPS.
        right: Unit vector in which the column index grows (Image Orientation, first triplet).
        down: Unit vector in which the row index grows (Image Orientation, second triplet).
        spacing_known: False when the file states no spacing and 1 mm stands in.

    Raises:
        ValueError: For a non-positive shape or spacing, or axes that are not orthonormal.
    """

    shape: tuple[int, int]
    spacing_mm: tuple[float, float] = (1.0, 1.0)
    origin_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    right: tuple[float, float, float] = (1.0, 0.0, 0.0)
    down: tuple[float, float, float] = (0.0, 1.0, 0.0)
    spacing_known: bool = True

    def __post_init__(self) -> None:
        if min(self.shape) < 1:
            raise ValueError(f"shape: need at least 1 row and 1 column, got {self.shape}.")
        if not all(np.isfinite(s) and s > 0 for s in self.spacing_mm):
            raise ValueError(f"spacing_mm: need two positive numbers, got {self.spacing_mm}.")
        axes = np.array([self.right, self.down])
        if not np.allclose(axes @ axes.T, np.eye(2), atol=1e-3):
            raise ValueError(f"right, down: need orthonormal axes, got {self.right}, {self.down}.")

    @property
    def affine_lps(self) -> np.ndarray:
        """4x4 matrix from ``(column, row, 0, 1)`` to LPS millimetres; third axis is the normal."""
        right, down = np.array(self.right), np.array(self.down)
        matrix = np.eye(4)
        matrix[:3, 0] = right * self.spacing_mm[1]
        matrix[:3, 1] = down * self.spacing_mm[0]
        matrix[:3, 2] = np.cross(right, down)
        matrix[:3, 3] = self.origin_mm
        return matrix

    def point_mm(self, row: float, column: float) -> np.ndarray:
        """LPS position, shape ``(3,)``, of a (fractional) pixel index."""
        return (self.affine_lps @ np.array([column, row, 0.0, 1.0]))[:3]

    def regrid(self, shape: tuple[int, int], edge: tuple[float, float],
               cell: tuple[float, float]) -> Geometry:
        """Geometry of another grid in the same plane.

        Args:
            shape: ``(rows, columns)`` of the new grid.
            edge: Outer corner of its first cell, in *edge* coordinates of this grid: 0 is the
                outer edge of the first pixel, ``rows`` the outer edge of the last.
            cell: Height and width of a new cell, in pixels of this grid.
        """
        centre = self.point_mm(edge[0] + cell[0] / 2 - 0.5, edge[1] + cell[1] / 2 - 0.5)
        return replace(self, shape=shape, origin_mm=(float(centre[0]), float(centre[1]), float(centre[2])),
                       spacing_mm=(self.spacing_mm[0] * cell[0], self.spacing_mm[1] * cell[1]))


def plausible(geometry: Geometry) -> Geometry:
    """The geometry a file states, when a picture can have it: arithmetic on 1e308 mm ends nowhere.

    Raises:
        ImageError: ``geometry``.
    """
    spacing = geometry.spacing_mm
    if not all(1e-5 <= mm <= 1e3 for mm in spacing) or max(map(abs, geometry.origin_mm)) > 1e6:
        raise ImageError("geometry", "Pixel spacing: need 0.00001 to 1000 mm, less than a kilometre away, "
                         f"got {spacing[0]:.3g} x {spacing[1]:.3g} mm. Correct the header.")
    short, long = sorted(side * mm for side, mm in zip(geometry.shape, spacing, strict=True))
    if long > 100 * short:
        raise ImageError("geometry", "Image: need sides of at most 1 to 100, got a strip. It is no film.")
    return geometry


@dataclass(frozen=True)
class Placement:
    """How the square model input covers the source image.

    Source edge coordinate = ``edge + input edge coordinate * scale``, per axis; the input may
    reach beyond the source (letter-box) or leave parts out (crop).

    Args:
        input_size: Side of the square model input, pixels.
        edge: ``(row, column)`` source edge coordinate of the input's outer corner.
        scale: Source pixels per input pixel, ``(rows, columns)``.
    """

    input_size: int
    edge: tuple[float, float]
    scale: tuple[float, float]

    def grid(self, shape: tuple[int, int], source: Geometry) -> Geometry:
        """Geometry of a ``shape`` map that covers the whole model input evenly."""
        cell = (self.input_size / shape[0] * self.scale[0], self.input_size / shape[1] * self.scale[1])
        return source.regrid(shape, self.edge, cell)


@dataclass(frozen=True)
class Image:
    """One grey image, ready to show: larger values are brighter.

    Args:
        uid: SOP Instance UID, ``uid:frame`` for a frame (1-based), or the relative path of a file
            that is not DICOM: the image's name in the whole system.
        pixels: float32 ``(rows, columns)``, after modality LUT, VOI and inversion. May be smaller
            than ``geometry.shape`` when the file was decoded at reduced resolution; it always
            covers the same extent.
        geometry: Place of the *stored* grid.
        header: Technical DICOM attributes without pixel data; empty for other files.
        notices: What the reader of a result should know about this image.
        sha256: Digest of the file's bytes, hex.
    """

    uid: str
    pixels: np.ndarray
    geometry: Geometry
    header: Dataset = field(default_factory=Dataset, repr=False)
    notices: tuple[Notice, ...] = ()
    sha256: str = ""

    def __post_init__(self) -> None:
        if self.pixels.ndim != 2 or self.pixels.dtype != np.float32:
            raise ValueError(f"pixels: need float32 (rows, columns), got {self.pixels.dtype} "
                             f"{self.pixels.shape}.")

    @property
    def modality(self) -> str:
        """DICOM modality (CR, DX, OPT, ...), or an empty string."""
        return str(self.header.get("Modality", "") or "")

    @property
    def patient_orientation(self) -> str:
        """Patient Orientation (PS3.3 C.7.6.1.1.1) as written, such as ``L\\F``; empty when not stated."""
        return patient_orientation(self.header)


@dataclass(frozen=True)
class Display:
    """One grey image for a viewer that sets its own window; larger values are brighter.

    Args:
        values: uint8, int16, uint16 or float32 ``(rows, columns)``, the whole stored grid: after the
            modality LUT and inversion, without VOI.
        geometry: Place of the grid.
        window: ``(centre, width)`` to begin with, in units of ``values``.
        window_source: ``dicom`` when the file states the window, else ``percentiles``.
        patient_orientation: As of `Image`.
    """

    values: np.ndarray
    geometry: Geometry
    window: tuple[float, float]
    window_source: str
    patient_orientation: str = ""

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or self.values.dtype.name not in ("uint8", "int16", "uint16", "float32"):
            raise ValueError("values: need uint8, int16, uint16 or float32 (rows, columns), got "
                             f"{self.values.dtype} {self.values.shape}.")
        if not (np.isfinite(self.window).all() and self.window[1] > 0):
            raise ValueError(f"window: need a finite centre and a width above 0, got {self.window}.")


def patient_orientation(header: Dataset) -> str:
    """Patient Orientation as written in a header; see `Image.patient_orientation`."""
    value = header.get("PatientOrientation", "") or ""
    return value if isinstance(value, str) else "\\".join(str(part) for part in value)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, hex; read in parts.

    Raises:
        OSError: When it cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def patient_digest(header: Dataset) -> str:
    """Digest of the Patient ID, empty without one: the same patient, the same word, no name."""
    patient = str(header.get("PatientID", "") or "").strip()
    if not patient:
        return ""
    return hashlib.blake2b(patient.encode(), digest_size=8, person=b"dcaf-patient").hexdigest()
