"""`Store`: MONAI Label's datastore over a database, for class labels by several readers.

Images come from a studies folder and are named by SOP Instance UID (``uid:frame`` for a frame) or,
for other files, by relative path. Upstream's ideas map so: tag ``final`` is the readers'
annotations (append-only), tag ``original`` the model's prediction. One database serves one studies
folder; server and task processes each open it with a `Store` of their own.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from monailabel.interfaces.datastore import Datastore  # this module alone needs no `compat`
from sqlalchemy import and_, func, select, update

from dcaf_monai.image import file_sha256
from dcaf_monai.server.annotation import parse_annotation, plain_json
from dcaf_monai.server.database import (
    Database,
    StoreError,
    UnknownImage,
    images,
    label_notes,
    meta,
    predictions,
)
from dcaf_monai.server.exchange import Exchange
from dcaf_monai.server.folder import DICOM, OTHER
from dcaf_monai.server.listing import Listing
from dcaf_monai.server.pool import Pool
from dcaf_monai.server.ranks import Ranks
from dcaf_monai.server.readings import require_image
from dcaf_monai.server.scores import Scores
from dcaf_monai.server.worklist import Worklist
from dcaf_monai.tasks import Task

__all__ = ["Store", "StoreError", "UnknownImage"]

TAGS = ("final", "original")
INFO_LIMIT = 65536


class Store(Pool, Scores, Ranks, Worklist, Listing, Exchange, Datastore):
    """All that DCAF keeps: images, annotations, predictions, leases.

    Args:
        studies: Folder with the images, searched with its sub-folders by `refresh`.
        task: Whose classes annotations must name; None takes any lower-case word.
        database: SQLite file or URL, or ``postgresql+psycopg://...``; None for
            ``<studies>/.dcaf/dcaf.sqlite3``.

    Raises:
        ValueError: For a studies folder that does not exist, or an unfit database address.
        StoreError: When the database cannot be opened.
    """

    def __init__(self, studies: Path | str, task: Task | None = None,
                 database: str | Path | None = None) -> None:
        self.studies = Path(studies).resolve()
        self.task = task
        if not self.studies.is_dir():
            raise ValueError(f"studies: need a folder, got {self.studies.name!r}. Create it first.")
        self.folder = self.studies / ".dcaf"
        if database is None or "://" not in str(database):
            where = Path(database) if database else self.folder / "dcaf.sqlite3"
            try:
                where.parent.mkdir(mode=0o700, exist_ok=True, parents=True)
            except OSError as error:
                raise StoreError(f"store: need a writable folder for the database, got {error.strerror}. "
                                 "Name another place with --database.") from error
            self.database = Database(where)
        else:
            self.database = Database(str(database))

    def close(self) -> None:
        """Closes the database connections."""
        self.database.close()

    # -- MONAI Label's interface: about the store ---------------------------------------------------

    def name(self) -> str:
        return self._meta("name", "DCAF")

    def set_name(self, name: str) -> None:
        self._set_meta("name", name)

    def description(self) -> str:
        return self._meta("description", self.task.title if self.task else "")

    def set_description(self, description: str) -> None:
        self._set_meta("description", description)

    def status(self) -> dict[str, Any]:
        """``{total, completed, label_tags: {tag: images}}``; completed: read by anybody."""
        with self.database.read() as connection:            # one walk over one index: /info/ asks often
            total, read, scored = connection.execute(select(
                func.count(), func.count().filter(images.c.readings > 0), func.count(images.c.ranked_by))
                .where(images.c.state == "present")).one()
        tags = {tag: n for tag, n in (("final", read), ("original", scored)) if n}
        return {"total": total, "completed": read, "label_tags": tags}

    def json(self) -> dict[str, Any]:
        """Upstream's index: ``objects: {uid: {image: {ext, info}, labels: {tag: {ext, info}}}}``.

        A final label's info is the resolved ``label`` (absent in disagreement) and the number of
        ``readings``; an original label's is the model's answer.
        """
        query = (select(images.c.uid, images.c.path, images.c.info, images.c.added, images.c.readings,
                        predictions.c.label, predictions.c.model_version, predictions.c.entropy)
                 .outerjoin(predictions, and_(predictions.c.uid == images.c.uid,
                                              predictions.c.model_version == images.c.ranked_by))
                 .where(images.c.state == "present").order_by(images.c.uid))
        resolved = self._resolved()
        objects: dict[str, Any] = {}
        with self.database.read() as connection:
            for row in connection.execute(query):
                labels = {}
                if row.readings:
                    answer = {"label": resolved[row.uid]} if row.uid in resolved else {}
                    labels["final"] = {"ext": ".json", "info": {"readings": row.readings, **answer}}
                if row.label is not None:
                    labels["original"] = {"ext": ".json", "info": {
                        "label": row.label, "model_version": row.model_version,
                        "predictive_entropy": row.entropy}}
                objects[row.uid] = {"image": {"ext": _ending(row.path),
                                              "info": {"ts": int(row.added), **row.info}}, "labels": labels}
        return {"name": self.name(), "description": self.description(), "images_dir": "",
                "labels_dir": "labels", "objects": objects}

    def datalist(self) -> list[dict[str, Any]]:
        """``[{image: path, label: class, uid, frame}]`` of `current_labels`: what may be trained on."""
        labels = self.current_labels()
        with self.database.read() as connection:
            rows = connection.execute(select(images.c.uid, images.c.path, images.c.frame).where(
                images.c.state == "present").order_by(images.c.uid)).all()
        return [{"image": str(self.studies / path), "label": labels[uid], "uid": uid, "frame": frame}
                for uid, path, frame in rows if uid in labels]

    def get_dataset_archive(self, limit_cases: int | None) -> str:
        """A ZIP of the labelled images, ``labels.json`` and ``metadata.json``; the caller deletes it.

        ``labels.json`` has ``{uid: {label, image, frame}}``: file in the archive, frame or null.

        Raises:
            StoreError: When nothing is labelled, or a file cannot be read.
        """
        cases = self.datalist()[:limit_cases or None]
        if not cases:
            raise StoreError("archive: need at least one labelled image, got none. Annotate first.")
        paths = [Path(case["image"]).relative_to(self.studies).as_posix() for case in cases]
        labels = {case["uid"]: {"label": case["label"], "image": f"image/{path}", "frame": case["frame"]}
                  for case, path in zip(cases, paths, strict=True)}
        try:
            with tempfile.NamedTemporaryFile(suffix=".zip", delete=False) as file, \
                    zipfile.ZipFile(file, "w") as archive:
                for path in dict.fromkeys(paths):
                    archive.write(self.studies / path, arcname=f"image/{path}")
                archive.writestr("labels.json", json.dumps(labels, indent=1))
                archive.writestr("metadata.json", json.dumps(self.json()))
        except OSError as error:
            raise StoreError(f"archive: need every image to be readable, got {error.strerror}. "
                             "Refresh the store.") from error
        return file.name

    # -- images -------------------------------------------------------------------------------------

    def list_images(self) -> list[str]:
        """All present images' uids, sorted."""
        return self._uids()

    def get_labeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """Present images with a label at a tag (``final`` unless named), of these classes if named."""
        return sorted(self._labelled(label_tag, labels))

    def get_unlabeled_images(self, label_tag: str | None = None,
                             labels: list[str] | None = None) -> list[str]:
        """Present images that `get_labeled_images` would not give."""
        return sorted(set(self._uids()) - self._labelled(label_tag, labels))

    def get_image(self, image_id: str, params: Any = None) -> bytes:
        """The image file's bytes."""
        return Path(self.get_image_uri(image_id)).read_bytes()

    def get_image_uri(self, image_id: str) -> str:
        """The image file's absolute path (see `Pool.location`)."""
        return str(self.location(image_id)[0])

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        """What is known of an image: ``ts``, its own info, and the scores it is ranked by; no path."""
        with self.database.read() as connection:
            row = require_image(connection, image_id)
        scores = {} if row.ranked_by is None else {
            "model_version": row.ranked_by, "predictive_entropy": row.entropy,
            "mutual_information": row.mutual_information, "margin": row.margin}
        return {"ts": int(row.added), **row.info, **scores}

    def update_image_info(self, image_id: str, info: dict[str, Any]) -> None:
        """Merges a small JSON object into the image's info.

        Raises:
            ValueError: When it is no plain JSON object or grows beyond 64 Ki characters.
        """
        with self.database.write() as connection:
            row = require_image(connection, image_id)
            current = connection.execute(select(images.c.info).where(images.c.uid == row.uid)
                                         .with_for_update()).scalar_one()
            connection.execute(update(images).where(images.c.uid == row.uid)
                               .values(info=_merged(current, info)))

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Copies a file into ``uploads`` of the studies folder and gives its uid.

        The uid is the file's own (DICOM) or follows from its content; `image_id` is not used, so a
        caller cannot choose where a file goes.

        Raises:
            ValueError: When the file is no image the store takes, or an image it has already.
        """
        source = Path(image_filename)
        ending = _ending(source.name)
        if ending not in DICOM + OTHER:
            raise ValueError(f"image: need one of {', '.join(DICOM + OTHER)}, got {ending or 'no ending'}.")
        target = self.studies / "uploads" / f"{file_sha256(source)[:32]}{ending}"
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(source, target)
        uid = self.add_file(target.relative_to(self.studies).as_posix())
        if image_info:
            self.update_image_info(uid, image_info)
        return uid

    def remove_image(self, image_id: str) -> None:
        """Withdraws an image: no longer listed or served. Its file and its annotations stay."""
        with self.database.write() as connection:
            require_image(connection, image_id)
            connection.execute(update(images).where(images.c.uid == image_id).values(state="withdrawn"))

    # -- labels -------------------------------------------------------------------------------------

    def save_label(self, image_id: str, label_filename: str, label_tag: str,
                   label_info: dict[str, Any]) -> str:
        """Stores an Annotation (tag ``final``) or a prediction (tag ``original``) from a JSON file.

        Returns:
            The image's uid: upstream's id of a label.

        Raises:
            ValueError: For another tag, or a file that is not that JSON.
            UnknownImage: For an unknown image.
        """
        _check_tag(label_tag)
        file = Path(label_filename)
        if (size := file.stat().st_size) > INFO_LIMIT * 4:
            raise ValueError(f"label: need at most {INFO_LIMIT * 4} bytes of JSON, got {size}.")
        if label_tag == "final":
            self.annotate(image_id, parse_annotation(file.read_bytes()))
        else:
            try:
                document = json.loads(file.read_bytes())
            except (ValueError, RecursionError) as error:
                raise ValueError("prediction: need JSON, got something else.") from error
            self.save_prediction(image_id, document)
        if label_info:
            self.update_label_info(image_id, label_tag, label_info)
        return image_id

    def remove_label(self, label_id: str, label_tag: str) -> None:
        """Refuses: labels are kept for good.

        Raises:
            ValueError: Always; a reader corrects an annotation with a new one.
        """
        raise ValueError("label: need to keep it, got a request to remove it. Submit a new annotation.")

    def get_labels_by_image_id(self, image_id: str) -> dict[str, str]:
        """``{tag: uid}`` of the tags at which the image has a label."""
        with self.database.read() as connection:
            row = require_image(connection, image_id)
        labels = {"final": row.readings > 0, "original": row.ranked_by is not None}
        return {tag: image_id for tag, stands in labels.items() if stands}

    def get_label_by_image_id(self, image_id: str, tag: str) -> str:
        """The uid when the image has a label at this tag, else an empty string (as upstream)."""
        return self.get_labels_by_image_id(image_id).get(tag, "")

    def get_label(self, label_id: str, label_tag: str, params: Any = None) -> dict[str, Any]:
        """The label as JSON: ``{image, annotations: [...]}`` (final) or the prediction (original).

        Raises:
            ValueError: When the image has no label at that tag.
        """
        _check_tag(label_tag)
        if label_tag == "final":
            said = [annotation.model_dump(mode="json") for annotation in self.history(label_id)]
            found: dict[str, Any] = {"image": label_id, "annotations": said} if said else {}
        else:
            found = self.prediction(label_id)
        if not found:
            raise ValueError(f"label: need an image with a {label_tag} label, got one without.")
        return found

    def get_label_uri(self, label_id: str, label_tag: str) -> str:
        """Path of a JSON file with `get_label`, written now; empty when there is no such label."""
        _check_tag(label_tag)
        if not self.get_label_by_image_id(label_id, label_tag):
            return ""
        name = hashlib.sha256(label_id.encode()).hexdigest()[:32]
        target = self.folder / "labels" / label_tag / f"{name}.json"
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.NamedTemporaryFile("w", dir=target.parent, delete=False, encoding="utf-8") as file:
            json.dump(self.get_label(label_id, label_tag), file, indent=1)
        os.replace(file.name, target)
        return str(target)

    def get_label_info(self, label_id: str, label_tag: str) -> dict[str, Any]:
        """The info kept beside a label; empty when there is none."""
        _check_tag(label_tag)
        with self.database.read() as connection:
            require_image(connection, label_id)
            return connection.execute(select(label_notes.c.info).where(
                label_notes.c.uid == label_id, label_notes.c.tag == label_tag)).scalar_one_or_none() or {}

    def update_label_info(self, label_id: str, label_tag: str, info: dict[str, Any]) -> None:
        """Merges a small JSON object into the info kept beside a label."""
        _check_tag(label_tag)
        with self.database.write() as connection:
            require_image(connection, label_id)
            where = and_(label_notes.c.uid == label_id, label_notes.c.tag == label_tag)
            connection.execute(self.database.insert(label_notes).values(uid=label_id, tag=label_tag, info={})
                               .on_conflict_do_nothing())
            current = connection.execute(select(label_notes.c.info).where(where)
                                         .with_for_update()).scalar_one()
            connection.execute(update(label_notes).where(where).values(info=_merged(current, info)))

    # -- inside -------------------------------------------------------------------------------------

    def _uids(self, *conditions: Any) -> list[str]:
        with self.database.read() as connection:
            return list(connection.execute(select(images.c.uid).where(
                images.c.state == "present", *conditions).order_by(images.c.uid)).scalars())

    def _labelled(self, tag: str | None, labels: list[str] | None) -> set[str]:
        _check_tag(tag or "final")
        if tag != "original":
            return {uid for uid, label in self._resolved().items() if label in labels} if labels else \
                set(self._uids(images.c.readings > 0))
        answer = (select(predictions.c.label).where(predictions.c.uid == images.c.uid,
                                                    predictions.c.model_version == images.c.ranked_by)
                  .correlate(images).scalar_subquery())
        return set(self._uids(answer.in_(labels) if labels else images.c.ranked_by.is_not(None)))

    def _meta(self, name: str, otherwise: str) -> str:
        with self.database.read() as connection:
            return connection.execute(select(meta.c.value).where(meta.c.name == name)).scalar() or otherwise

    def _set_meta(self, name: str, value: str) -> None:
        with self.database.write() as connection:
            insert = self.database.insert(meta).values(name=name, value=value)
            connection.execute(insert.on_conflict_do_update(index_elements=["name"], set_={"value": value}))


def _check_tag(tag: str) -> None:
    if tag not in TAGS:
        raise ValueError(f"tag: need {' or '.join(TAGS)}, got {str(tag)[:40]!r}.")


def _ending(path: str) -> str:
    """``.nii.gz``, or the last ending in lower case; empty for none."""
    return ".nii.gz" if path.lower().endswith(".nii.gz") else os.path.splitext(path)[1].lower()


def _merged(current: dict[str, Any], info: Any) -> dict[str, Any]:
    if not isinstance(info, dict):
        raise ValueError(f"info: need a JSON object, got {type(info).__name__}.")
    return plain_json({**current, **info}, limit=INFO_LIMIT)
