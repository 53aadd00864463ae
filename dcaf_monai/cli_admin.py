"""``dcaf serve``, ``import``, ``models`` and ``token``: what an administrator does."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Column, Table

from dcaf_monai.terminal import console, fail, server_parts, with_folder

models_app = typer.Typer(no_args_is_help=True, help="List, publish and roll back trained models.")
token_app = typer.Typer(no_args_is_help=True, help="Readers' access tokens for `dcaf serve`.")


ModelFile = Annotated[Path, typer.Argument(metavar="MODEL", help="The published .safetensors file.")]


@models_app.command("list")
def models_list(model: ModelFile) -> None:
    """Every version kept beside a published model, newest first."""
    from dcaf_monai.publish import history

    # a version must be whole to be copied, however narrow the window: it begins with its time
    entries = history(model)
    if not entries and not model.exists():
        raise ValueError(f"{model}: need a published model, got nothing there.")
    table = Table(Column("version", no_wrap=True), "published", "validation NLL", "mode")
    for entry in entries:
        table.add_row(entry.version, "yes" if entry.published else "", f"{entry.validation_nll:.4f}",
                      entry.mode)
    console.print(table)


@models_app.command("publish")
def models_publish(model: ModelFile, version: Annotated[str, typer.Argument(metavar="VERSION")]) -> None:
    """Put a kept version in place, whatever its score."""
    from dcaf_monai.publish import publish_version

    publish_version(model, version)
    console.print(f"{model} is now version {version}.", markup=False, soft_wrap=True)


@models_app.command("rollback")
def models_rollback(model: ModelFile) -> None:
    """Put the version published before the current one back in place."""
    from dcaf_monai.publish import rollback

    version = rollback(model)
    console.print(f"{model} is back at version {version}.", markup=False, soft_wrap=True)


@token_app.command("add")
def token_add(
    token_file: Annotated[Path, typer.Argument(help="Made with mode 0600 if it is not there.",
                                               callback=with_folder)],
    reader: Annotated[str, typer.Argument(help="The reader's name, as it stands on annotations.")],
    admin: Annotated[bool, typer.Option("--admin", help="May also train.")] = False,
) -> None:
    """Give a reader a token; it is shown once and kept only as a hash."""
    with server_parts():
        from dcaf_monai.server.access import new_token

    token = new_token(token_file, reader, "admin" if admin else "reader")
    console.print(token, markup=False, highlight=False, soft_wrap=True)


@token_app.command("remove")
def token_remove(
    token_file: Annotated[Path, typer.Argument(help="From `dcaf token add`.")],
    reader: Annotated[str, typer.Argument(help="The reader's name.")],
) -> None:
    """Take a reader's access away; a running server notices at the next request."""
    with server_parts():
        from dcaf_monai.server.access import remove_token

    remove_token(token_file, reader)
    console.print(f"{reader} has no token any more.", markup=False, soft_wrap=True)


def import_annotations(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="JSON or CSV as `GET /dcaf/export` gives it, "
                                                              "or a CSV with uid,label,reader.")],
    studies: Annotated[Path, typer.Option(help="Folder of images.")],
    task: Annotated[str, typer.Option(help="covid19, tuberculosis, pneumonia, oct, or a .toml file.")],
    database: Annotated[str | None, typer.Option(help="As for serve.")] = None,
) -> None:
    """Add readers' annotations to the store, all of them or none; known ones are not repeated."""
    from dcaf_monai.tasks import task_named

    with server_parts():
        from dcaf_monai.server.store import Store, StoreError

    question = task_named(task)
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file.name}: need JSON or CSV in UTF-8, got something else.") from error
    try:
        with closing(Store(studies, question, database=database or os.environ.get("DCAF_DATABASE"))) as store:
            store.refresh()
            done = store.import_json(text) if file.suffix.lower() == ".json" else store.import_csv(text)
    except StoreError as error:
        fail(str(error), 1)
    console.print(f"{done.added} annotations added, {done.known} known already, {done.unknown_images} of "
                  "images that are not here.", markup=False, soft_wrap=True)


def serve(
    studies: Annotated[Path, typer.Option(help="Folder of images, searched below.")],
    model: Annotated[Path | None, typer.Option(help="Trained model; without one, images, worklist "
                                                    "and labels still work.")] = None,
    task: Annotated[str | None, typer.Option(help="Needed without a model: the question asked.")] = None,
    data: Annotated[Path | None, typer.Option(help="The data the model was trained on: retraining "
                                                   "adds readers' labels to its training split and "
                                                   "keeps its validation split.")] = None,
    cutoffs: Annotated[Path | None, typer.Option(help="A site's own cut-offs for this model "
                                                      "version.")] = None,
    host: Annotated[str, typer.Option()] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    database: Annotated[str | None, typer.Option(help="SQLAlchemy URL; default SQLite beside the "
                                                      "studies.")] = None,
    token_file: Annotated[Path | None, typer.Option(help="Readers' tokens, from `dcaf token add`.")] = None,
    certfile: Annotated[Path | None, typer.Option(help="TLS certificate.")] = None,
    keyfile: Annotated[Path | None, typer.Option(help="TLS key.")] = None,
    behind_proxy: Annotated[bool, typer.Option(help="A proxy in front of us does TLS.")] = False,
    cors: Annotated[list[str] | None, typer.Option(help="Web origin allowed to call; repeatable.")] = None,
    random_share: Annotated[float, typer.Option(min=0, max=1, help="Share of the cases handed out that is "
                                                                   "drawn at random.")] = 0.0,
) -> None:
    """Serve images, predictions, the worklist and readers' labels (MONAI Label API)."""
    with server_parts():
        from dcaf_monai.server.database import StoreError
        from dcaf_monai.server.serve import serve as run
    try:
        run(studies=studies, model=model, task=task, data=data, host=host, port=port, database=database,
            token_file=token_file, certfile=certfile, keyfile=keyfile, behind_proxy=behind_proxy,
            cutoffs=cutoffs, cors=tuple(cors or ()), random_share=random_share)
    except StoreError as error:
        fail(str(error), 1)
