"""Films in the application's own DICOM database, and what their headers say about showing them.

Slicer's reader (ITK's of DICOM) and the server differ in two things. It turns the values of a MONOCHROME1
film itself but leaves the window as stated, so such a film comes from the server, which turns both. Of a
projection it takes the spacing at the detector; the server takes the patient's (PS3.3 10.7) where it is
stated, and its maps lie accordingly.
"""

from __future__ import annotations

import slicer

PHOTOMETRIC, CENTRE, WIDTH = "0028,0004", "0028,1050", "0028,1051"
SPACINGS = "0028,0030", "0018,1164", "0018,2010"  # pixel, imager, nominal scanned: the server's order


def local_files(uid: str) -> list[str]:
    """Files of an image that can be shown without the server; empty when there is none."""
    database = getattr(slicer, "dicomDatabase", None)
    if database is None or not database.isOpen or ":" in uid:
        return []
    file = database.fileForInstance(uid)
    return [file] if file and database.fileValue(file, PHOTOMETRIC).strip() != "MONOCHROME1" else []


def stated_window(file: str) -> tuple[float, float] | None:
    """Centre and width, the first of several; None when the header gives none."""
    centre, width = _numbers(file, CENTRE), _numbers(file, WIDTH)
    return (centre[0], width[0]) if centre and width else None


def stated_spacing_mm(file: str) -> tuple[float, float] | None:
    """Between rows, between columns; None when the header gives none."""
    stated = (_numbers(file, tag) for tag in SPACINGS)
    return next((spacing for spacing in stated if len(spacing) == 2 and min(spacing) > 0), None)


def _numbers(file: str, tag: str) -> tuple[float, ...]:
    """The values of a decimal string; none where what stands there is no number."""
    try:
        return tuple(float(number) for number in slicer.dicomDatabase.fileValue(file, tag).split("\\"))
    except ValueError:
        return ()
