"""The store's tables, on SQLite (WAL) or PostgreSQL, and the one place that opens them.

Every writer takes its turn in a short transaction: SQLite by ``BEGIN IMMEDIATE`` (a read that later
writes would fail at once instead of waiting), PostgreSQL by row locks. A commit is on disk before it
is acknowledged, so a killed process loses nothing it was told is stored.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import (
    DDL,
    JSON,
    BigInteger,
    Boolean,
    Column,
    Connection,
    Double,
    Engine,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    create_engine,
    event,
    false,
    select,
    text,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DataError, SQLAlchemyError

from dcaf_monai.server import migrate

SCHEMA = 4
"""Version of the tables below; an earlier one is brought up to it, one made by a later DCAF refused."""

SCORES = ("label", "score", "entropy", "normalized_entropy", "mutual_information", "margin")
"""What a prediction says in one word or number each: columns of ``predictions`` and, of the one an image is
ranked by, of ``images``. ``score`` is the probability of ``label``, the most probable class."""

_schema = MetaData()
_number = BigInteger().with_variant(Integer, "sqlite")      # SQLite counts up only in INTEGER keys

meta = Table(
    "meta", _schema, Column("name", Text, primary_key=True), Column("value", Text, nullable=False))

files = Table(
    "files", _schema,
    Column("path", Text, primary_key=True),                 # relative to the studies folder, posix
    Column("size", BigInteger, nullable=False),
    Column("mtime_ns", BigInteger, nullable=False),
    Column("problem", Text))                                # an ImageError code, "duplicate", "gone"

images = Table(
    "images", _schema,
    Column("uid", Text, primary_key=True),
    Column("path", Text, nullable=False),
    Column("frame", Integer),                               # 1-based; null for a single frame
    Column("state", Text, nullable=False),                  # present, missing, withdrawn
    Column("added", Double, nullable=False),                # seconds since 1970, UTC
    Column("info", JSON, nullable=False),
    Column("shuffle", Double, nullable=False),              # 0..1 from the uid: a fixed random order
    Column("readings", Integer, nullable=False, server_default="0"),     # annotations so far
    Column("disputed", Boolean, nullable=False, server_default=false()),     # see readings.disagreeing
    Column("ranked_by", Text),                              # model version of the scores below
    Column("label", Text), Column("score", Double), Column("entropy", Double),
    Column("normalized_entropy", Double), Column("mutual_information", Double), Column("margin", Double),
    Index("images_path", "path"),
    Index("images_by_state", "state", "ranked_by", "readings"),
    Index("images_by_dispute", "state", "disputed"),
    # One for each order of the worklist, with what its filters ask for: a deep page is found in it alone.
    Index("images_by_uid", "state", "uid", "label", "disputed"),
    Index("images_by_shuffle", "state", "shuffle", "label", "disputed", "uid"),
    Index("images_by_label", "state", "label", "shuffle", "disputed", "uid"),
    *(Index(f"images_by_{name}", "state", name, "shuffle", "label", "disputed", "uid")
      for name in ("score", "entropy", "mutual_information", "margin")))

predictions = Table(
    "predictions", _schema,
    Column("uid", ForeignKey(images.c.uid), primary_key=True),
    Column("model_version", Text, primary_key=True),
    Column("model_sha256", Text, nullable=False),
    Column("created", Double, nullable=False),
    Column("label", Text, nullable=False), Column("score", Double), Column("entropy", Double),
    Column("normalized_entropy", Double), Column("mutual_information", Double), Column("margin", Double),
    Column("document", JSON, nullable=False),
    Index("predictions_by_version", "model_version", "uid", "label", "normalized_entropy"))

evidence = Table(                                           # what batch strategies compare
    "evidence", _schema,
    Column("model_version", Text, primary_key=True),
    Column("uid", ForeignKey(images.c.uid), primary_key=True),
    Column("pooled", LargeBinary, nullable=False),          # float16, little-endian
    Column("sampled", LargeBinary, nullable=False),         # float16, little-endian: (samples, classes)
    Column("samples", Integer, nullable=False))

ranks = Table(                                              # orders worked out for the pool, see ranks.py
    "ranks", _schema,
    Column("strategy", Text, primary_key=True), Column("place", Integer, primary_key=True),     # from 0
    Column("uid", ForeignKey(images.c.uid), nullable=False),
    Column("model_version", Text, nullable=False),
    Column("random", Boolean, nullable=False),              # by the random share, not by the strategy
    Index("ranks_by_image", "uid", "strategy", "random"))

monitored = Table(                                          # handed out by the random share
    "monitored", _schema,
    Column("uid", ForeignKey(images.c.uid), primary_key=True),
    Column("model_version", Text, nullable=False), Column("created", Double, nullable=False))

failures = Table(
    "failures", _schema,
    Column("uid", ForeignKey(images.c.uid), primary_key=True),
    Column("model_version", Text, primary_key=True),
    Column("created", Double, nullable=False),
    Column("code", Text, nullable=False), Column("message", Text, nullable=False))

annotation_rows = Table(
    "annotations", _schema,
    Column("number", _number, primary_key=True, autoincrement=True),
    Column("key", Text, nullable=False, unique=True),
    Column("uid", ForeignKey(images.c.uid), nullable=False),
    Column("reader", Text, nullable=False),
    Column("label", Text, nullable=False),
    Column("role", Text, nullable=False),
    Column("blind", Boolean, nullable=False),
    Column("created", Double, nullable=False),
    Column("document", JSON, nullable=False),               # the whole Annotation
    Index("annotations_by_image", "uid", "number"),
    Index("annotations_by_reader", "reader", "uid"),
    sqlite_autoincrement=True)

leases = Table(
    "leases", _schema,
    Column("uid", ForeignKey(images.c.uid), primary_key=True),
    Column("reader", Text, nullable=False), Column("expires", Double, nullable=False))

skips = Table(
    "skips", _schema,
    Column("uid", ForeignKey(images.c.uid), primary_key=True),
    Column("reader", Text, primary_key=True),
    Column("reason", Text, nullable=False), Column("created", Double, nullable=False))

contents = Table(                                           # of files that are named by their path alone
    "contents", _schema,
    Column("uid", ForeignKey(images.c.uid), primary_key=True),
    Column("sha256", Text, nullable=False))                 # when the first answer about the image came

label_notes = Table(                                        # MONAI Label's "label info"
    "label_notes", _schema,
    Column("uid", ForeignKey(images.c.uid), primary_key=True),
    Column("tag", Text, primary_key=True), Column("info", JSON, nullable=False))

_REFUSAL = "annotations are append-only"
for _event in ("UPDATE", "DELETE"):
    event.listen(annotation_rows, "after_create", DDL(
        f"CREATE TRIGGER annotations_no_{_event.lower()} BEFORE {_event} ON annotations "
        f"BEGIN SELECT RAISE(ABORT, '{_REFUSAL}'); END").execute_if(dialect="sqlite"))
for _statement in (
        "CREATE OR REPLACE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN RAISE EXCEPTION '{_REFUSAL}'; END $$",
        "CREATE TRIGGER annotations_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON annotations "
        "FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()"):
    event.listen(annotation_rows, "after_create", DDL(_statement).execute_if(dialect="postgresql"))


class StoreError(Exception):
    """The database or the studies folder failed; nothing of the step was stored."""


class UnknownImage(LookupError):
    """The store has no such image."""

    def __init__(self, uid: str) -> None:
        super().__init__(f"image: need one of this store's images, got {uid[:80]!r}. "
                         "Refresh the store if the file is new.")


class Database:
    """An open database whose tables stand.

    Args:
        where: A file for SQLite, or a URL: ``sqlite:///...``, ``postgresql+psycopg://...``.

    Raises:
        ValueError: For a URL of another kind.
        StoreError: When it cannot be opened, or a later DCAF made it.
    """

    def __init__(self, where: Path | str) -> None:
        self.engine = _engine(where)
        self._insert: Any = sqlite.insert if self.is_sqlite else postgresql.insert
        self._stand_up()

    @property
    def is_sqlite(self) -> bool:
        return self.engine.dialect.name == "sqlite"

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that sees one state of the store.

        Raises:
            ValueError: For a value that no database can hold.
            StoreError: When the database fails.
        """
        with self._transaction(write=False) as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that is stored whole when the block ends, or not at all.

        Raises:
            ValueError: For a value that no database can hold.
            StoreError: When the database fails.
        """
        with self._transaction(write=True) as connection:
            yield connection

    def insert(self, table: Table) -> Any:
        """``INSERT`` with the dialect's ``on_conflict_do_...``."""
        return self._insert(table)

    def close(self) -> None:
        """Gives all connections back; the next use opens new ones."""
        self.engine.dispose()

    @contextmanager
    def _transaction(self, write: bool) -> Iterator[Connection]:
        try:
            with self.engine.connect().execution_options(writes=write) as connection, connection.begin():
                yield connection
        except DataError as error:      # NUL in a text, a number out of range: the caller's mistake
            raise ValueError("value: need text and numbers a database can hold, got others.") from error
        except SQLAlchemyError as error:
            # The driver's own text can hold values of a row: it stays in the chained error only.
            cause = type(getattr(error, "orig", None) or error).__name__
            raise StoreError(f"database: need an answer, got {cause}. Check that it is reachable, not "
                             "full, and that this account may write.") from error

    def _stand_up(self) -> None:
        with self.write() as connection:
            if not self.is_sqlite:      # two processes starting at once: one creates, the other waits
                connection.execute(text("SELECT pg_advisory_xact_lock(hashtext('dcaf schema'))"))
            meta.create(connection, checkfirst=True)
            connection.execute(self.insert(meta).values(name="schema", value=str(SCHEMA))
                               .on_conflict_do_nothing())
            schema = select(meta.c.value).where(meta.c.name == "schema")
            found = connection.execute(schema).scalar_one()
            if found == "1":
                migrate.to_2(connection)
                for table in (images, predictions):
                    for index in table.indexes:
                        index.create(connection, checkfirst=True)
                found = "2"
            if found in ("2", "3"):     # schemas 3 and 4 have new tables only, which are made below
                found = str(SCHEMA)
                connection.execute(update(meta).where(meta.c.name == "schema").values(value=found))
            if found != str(SCHEMA):
                raise StoreError(f"database: need schema {SCHEMA}, got {found}. Use the DCAF that made it.")
            _schema.create_all(connection)


def _engine(where: Path | str) -> Engine:
    if isinstance(where, Path):
        where = f"sqlite:///{where.as_posix()}"
    try:
        url = make_url(where)
    except ArgumentError as error:
        raise ValueError("database: need a URL such as postgresql+psycopg://user@host/name.") from error
    if url.drivername in ("postgresql", "postgres"):
        url = url.set(drivername="postgresql+psycopg")
    if url.drivername not in ("sqlite", "sqlite+pysqlite", "postgresql+psycopg"):
        raise ValueError(f"database: need sqlite or postgresql+psycopg, got {url.drivername}.")
    options: dict[str, Any] = {"hide_parameters": True, "pool_size": 8, "max_overflow": 56}
    if url.drivername == "postgresql+psycopg":
        return create_engine(url, pool_pre_ping=True, connect_args={"connect_timeout": 10}, **options)
    if not url.database or url.database == ":memory:":
        raise ValueError("database: need a file for SQLite, got none: processes share the store.")
    engine = create_engine(url, connect_args={"timeout": 60}, **options)
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _: Any) -> None:
    connection.isolation_level = None                       # transactions are ours, see _begin_sqlite
    connection.execute("PRAGMA busy_timeout = 60000")
    mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    if mode != "wal":
        raise StoreError(f"database: need SQLite's WAL mode, got {mode}. Use a local disk or PostgreSQL.")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get("writes")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
