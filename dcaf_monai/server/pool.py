"""The pool of images: the studies folder as the database knows it."""

from __future__ import annotations

import hashlib
import logging
import time
from pathlib import Path
from typing import Any

from sqlalchemy import ColumnElement, Connection, delete, func, select, update

from dcaf_monai.image import ImageError, file_sha256
from dcaf_monai.server.database import (
    SCORES,
    Database,
    StoreError,
    UnknownImage,
    contents,
    evidence,
    failures,
    files,
    images,
    predictions,
)
from dcaf_monai.server.folder import FoundFile, Refresh, found_files, images_in
from dcaf_monai.server.readings import require_image

logger = logging.getLogger(__name__)

GONE = "gone"
"""Problem of a file that was there once."""

BATCH = 200
"""Files per transaction: a first look at a large folder never locks readers out for long."""


class Pool:
    """The part of the store that knows the files."""

    database: Database
    studies: Path

    def refresh(self) -> Refresh:       # type: ignore[override]  # upstream's gives None: the report is ours
        """Makes the database know the studies folder as it is now.

        Only new and changed files are opened. A bad file is remembered, counted and passed over. An
        image whose file is gone stays with its annotations and returns when the file or a copy does.
        A file of another size or time may hold another picture: its images lose their predictions. Where
        readers have answered about a picture that only its path names, and other bytes lie there now, these
        are an image of their own, ``PATH#DIGEST``, and the answered one is missing until its bytes return.

        Raises:
            StoreError: When the folder or the database cannot be read.
        """
        try:
            found = {file.path: file for file in found_files(self.studies)}
        except OSError as error:
            raise StoreError(f"studies: need a readable folder, got {error.strerror}.") from error
        with self.database.read() as connection:
            known = {path: (size, mtime_ns) for path, size, mtime_ns in connection.execute(
                select(files.c.path, files.c.size, files.c.mtime_ns).where(
                    files.c.problem.is_distinct_from(GONE)))}
        missing = self._forget(sorted(set(known) - set(found)))
        news = [file for path, file in sorted(found.items()) if known.get(path) != (file.size, file.mtime_ns)]
        added, changed, lost = self._learn_all(news)
        if missing or lost:     # what was a second copy may be the only one now
            copies = self._paths(files.c.problem == "duplicate")
            changed += self._learn_all([found[path] for path in copies if path in found])[1]
        with self.database.read() as connection:
            total = connection.execute(select(func.count()).select_from(images).where(
                images.c.state == "present")).scalar_one()
        problems = self.problems()
        duplicates = problems.pop("duplicate", 0)
        report = Refresh(added, changed, missing, sum(problems.values()), duplicates, total)
        logger.info("studies: %s", report)
        return report

    def location(self, uid: str) -> tuple[Path, int | None]:
        """Where an image is: absolute path inside the studies folder, and 1-based frame if it has many.

        Raises:
            UnknownImage: For an unknown image, or one whose file is gone, withdrawn, or leads
                outside the folder.
        """
        with self.database.read() as connection:
            row = require_image(connection, uid, present=True)
        path = (self.studies / row.path).resolve()
        if not path.is_relative_to(self.studies) or not path.is_file():
            raise UnknownImage(uid)
        return path, row.frame

    def problems(self) -> dict[str, int]:
        """How many files could not be taken, by cause (an ImageError code, or ``duplicate``)."""
        with self.database.read() as connection:
            return dict(connection.execute(select(files.c.problem, func.count()).where(
                files.c.problem.is_not(None), files.c.problem != GONE)
                .group_by(files.c.problem)).all())      # type: ignore[arg-type]

    def add_file(self, path: str) -> str:
        """Takes in one file that lies in the studies folder; gives the uid of its first image.

        Raises:
            ValueError: When it holds no image the store can take; the file stays where it is.
        """
        status = (self.studies / path).stat()
        file = FoundFile(path, status.st_size, status.st_mtime_ns)
        held, problem = self._look(file)
        with self.database.write() as connection:
            self._learn(connection, file, held, problem)
            uid = connection.execute(select(images.c.uid).where(images.c.path == path).order_by(
                images.c.frame).limit(1)).scalar()
            problem = connection.execute(select(files.c.problem).where(files.c.path == path)).scalar()
        if uid is None or problem:
            raise ValueError(f"image: need a new, readable image, got one that is {problem}.")
        return uid

    def _paths(self, condition: ColumnElement[bool]) -> list[str]:
        with self.database.read() as connection:
            return list(connection.execute(select(files.c.path).where(condition)
                                           .order_by(files.c.path)).scalars())

    def _learn_all(self, several: list[FoundFile]) -> tuple[int, int, int]:
        """Opens files and stores what they hold; how many images are new, changed, lost."""
        counts = [0, 0, 0]
        for start in range(0, len(several), BATCH):
            batch = several[start:start + BATCH]
            with self.database.read() as connection:
                answered = dict(connection.execute(select(contents.c.uid, contents.c.sha256).where(
                    contents.c.uid.in_([file.path for file in batch]))).all())  # type: ignore[arg-type]
            looked = [(file, *self._look(file, answered.get(file.path))) for file in batch]
            looked.sort(key=lambda entry: [uid for uid, _ in entry[1]])     # no deadlock, see scores.py
            with self.database.write() as connection:
                for file, held, problem in looked:
                    for place, count in enumerate(self._learn(connection, file, held, problem)):
                        counts[place] += count
        return counts[0], counts[1], counts[2]

    def _look(self, file: FoundFile,
              answered: str | None = None) -> tuple[list[tuple[str, int | None]], str | None]:
        """The images in a file, or why there are none.

        Args:
            answered: SHA-256 of what lay at this path when readers answered about it; kept of files only
                that are named by their path.
        """
        try:
            if answered is not None:
                content = file_sha256(self.studies / file.path)
                if content != answered:
                    return [(f"{file.path}#{content[:12]}", None)], None
            return images_in(self.studies, file.path), None
        except ImageError as error:
            return [], error.code
        except OSError:
            return [], "unreadable"

    def _learn(self, connection: Connection, file: FoundFile, held: list[tuple[str, int | None]],
               problem: str | None) -> tuple[int, int, int]:
        """Stores one file and its images; gives how many are new, how many changed, how many lost."""
        added = changed = 0
        here = set(connection.execute(select(images.c.uid).where(
            images.c.path == file.path, images.c.state == "present")).scalars())
        for uid, frame in held:
            row = connection.execute(select(images.c.path, images.c.state).where(
                images.c.uid == uid).with_for_update()).one_or_none()
            if row is None:
                new = connection.execute(self.database.insert(images).values(
                    uid=uid, path=file.path, frame=frame, state="present", added=time.time(), info={},
                    shuffle=shuffle_place(uid)).on_conflict_do_nothing().returning(images.c.uid)).scalar()
                added += new is not None
            elif row.path == file.path or row.state == "missing":
                changed += 1
                state = "withdrawn" if row.state == "withdrawn" else "present"
                connection.execute(update(images).where(images.c.uid == uid).values(
                    path=file.path, frame=frame, state=state))
                before = connection.execute(select(files.c.size, files.c.mtime_ns).where(
                    files.c.path == row.path)).one_or_none()
                if before is None or tuple(before) != (file.size, file.mtime_ns):   # not just moved or back
                    self._drop_scores(connection, uid)
            else:
                problem = "duplicate"
        lost = connection.execute(update(images).where(
            images.c.uid.in_(here - {uid for uid, _ in held})).values(state="missing")).rowcount
        insert = self.database.insert(files).values(path=file.path, size=file.size, mtime_ns=file.mtime_ns,
                                                    problem=problem)
        connection.execute(insert.on_conflict_do_update(index_elements=["path"], set_={
            name: insert.excluded[name] for name in ("size", "mtime_ns", "problem")}))
        return added, changed, lost

    def _drop_scores(self, connection: Connection, uid: str) -> None:
        """Forgets what models said of a file's earlier content."""
        for table in (predictions, evidence, failures):
            connection.execute(delete(table).where(table.c.uid == uid))
        nothing: dict[str, Any] = dict.fromkeys(("ranked_by", *SCORES))
        connection.execute(update(images).where(images.c.uid == uid).values(**nothing))

    def _forget(self, gone: list[str]) -> int:
        """Marks files that are not there and their images; size and time stay, to know them by."""
        missing = 0
        for start in range(0, len(gone), BATCH):
            batch = gone[start:start + BATCH]
            with self.database.write() as connection:
                missing += connection.execute(update(images).where(
                    images.c.path.in_(batch), images.c.state == "present").values(state="missing")).rowcount
                connection.execute(update(files).where(files.c.path.in_(batch)).values(problem=GONE))
        return missing


def shuffle_place(uid: str) -> float:
    """A number in [0, 1) that follows from the uid alone: the same random order everywhere."""
    return int.from_bytes(hashlib.sha256(uid.encode()).digest()[:6], "big") / 2**48
