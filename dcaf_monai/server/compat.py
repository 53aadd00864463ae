"""What MONAI Label 0.8.5 needs from its surroundings. Import this before anything of monailabel.

Three cures, each for one cause, all idempotent:

* pydicom-seg 0.4.1 imports ``pydicom._storage_sopclass_uids``, which pydicom 3 merged into
  ``pydicom.uid``; without the alias ``import monailabel.app`` fails.
* ``monailabel.transform.writer`` imports ``itk`` (1.5 GB) for one function, ``write_itk``, that DCAF
  never calls. When itk is not installed an empty module stands in. MONAI then believes that ITK is
  there: name the reader whenever ``LoadImage`` is used.
* Settings whose upstream default is unfit for DCAF; a value already in the environment wins.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import pydicom.uid

DEFAULTS = {
    # Upstream starts one scoring process per "next case" click, in an unbounded queue.
    "MONAI_LABEL_AUTO_UPDATE_SCORING": "false",
    # Upstream tracks training with mlflow's file store, which current mlflow refuses.
    "MONAI_LABEL_TRACKING_ENABLED": "false",
    # A file watcher that rewrites upstream's index; our store has a database and `refresh`.
    "MONAI_LABEL_DATASTORE_AUTO_RELOAD": "false",
}


def prepare() -> None:
    """Makes ``import monailabel.app`` work; safe to call again."""
    sys.modules.setdefault("pydicom._storage_sopclass_uids", pydicom.uid)
    if "itk" not in sys.modules and importlib.util.find_spec("itk") is None:
        stand_in = ModuleType("itk", "Empty stand-in: itk is not installed and DCAF does not use it.")
        stand_in.__spec__ = ModuleSpec("itk", None)     # find_spec("itk") must not stumble over it
        sys.modules["itk"] = stand_in
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)


prepare()
