"""Our own routes, all below ``/dcaf``: session, worklist, history, agreement, suspects, leases, training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, HTTPException, Query, Response
from pydantic import BaseModel, ConfigDict, Field

from dcaf_monai.server import compat  # noqa: F401  (before monailabel)

# isort: split
from monailabel.interfaces.utils.app import app_instance

from dcaf_monai.dicom import read_display, read_image
from dcaf_monai.heat import kinds_of
from dcaf_monai.overlay import KINDS, display_nrrd, grey_png
from dcaf_monai.progress import MARGIN, draw_progress, judge_progress
from dcaf_monai.rounds import rounds
from dcaf_monai.server import suspects as suspected
from dcaf_monai.server.access import Reader, current_reader
from dcaf_monai.server.listing import ORDERS, STATUSES
from dcaf_monai.server.store import Store
from dcaf_monai.server.tasks import DEFAULT_OVERLAY
from dcaf_monai.server.worklist import CaseTaken, check_reader
from dcaf_monai.tasks import NOT_A_CLASS, class_title

router = APIRouter(prefix="/dcaf", tags=["DCAF"])

Who = Annotated[Reader, Depends(current_reader)]
ImageId = Annotated[str, Query(min_length=1, max_length=1024)]


class Case(BaseModel):
    """A case and, on a server without tokens, the reader it is for."""

    model_config = ConfigDict(extra="forbid")
    image: str = Field(min_length=1, max_length=1024)
    reader: str | None = None
    reason: str = ""


def name_of(who: Reader, stated: str | None) -> str:
    """The reader a request speaks for: the token's; without tokens, the one it states.

    Raises:
        HTTPException: 403 when a token's reader speaks for another.
    """
    if not who.name:
        return stated or "reader"
    if stated and stated != who.name:
        raise HTTPException(403, "reader: need the token's own reader, got another. Leave it out.")
    return who.name


@router.get("/health")
def health() -> dict[str, str]:
    """That the server answers."""
    return {"status": "ok"}


@router.get("/session")
def session(who: Who, reader: str | None = None) -> dict[str, Any]:
    """All that a client asks when it connects: who reads, which question, which model, what can be chosen.

    ``reader`` is the token's; without tokens the one named, or null. ``model`` is null until there is one.
    ``maps`` are the kinds the model can draw; those among ``unfaithful`` failed the randomisation test.
    """
    app = app_instance()
    name = name_of(who, reader) if who.name or reader else None
    model = app.model.predictor().model if app.model.exists else None
    return {
        "reader": _asked(lambda: check_reader(name)) if name else None, "role": who.role,
        "tokens": bool(who.name),
        "task": {"name": app.task.name, "title": app.task.title, "besides": list(NOT_A_CLASS), "classes": [
            {"name": label, "title": class_title(app.task, label)} for label in app.task.classes]},
        "model": model and {"name": model.name, "version": model.version, "sha256": model.sha256,
                            "task": model.task.name},
        "maps": sorted(kinds_of(model.network.config) if model else KINDS,
                       key=lambda kind: kind != DEFAULT_OVERLAY),
        "unfaithful": list(model.unfaithful) if model else [],
        "orders": list(ORDERS), "statuses": list(STATUSES), "total": app.store.status()["total"],
        "training": app.training.progress()}


@router.get("/worklist")
def worklist(who: Who, order: str = "entropy", status: str = "all", descending: bool | None = None,
             label: str | None = None, reader: str | None = None, offset: int = 0,
             limit: int = 50) -> dict[str, Any]:
    """A page of the worklist, the most uncertain first unless asked otherwise; see `Listing.worklist`."""
    name = who.name or reader
    if who.name and reader and reader != who.name and who.role != "admin":
        raise HTTPException(403, "reader: need the token's own reader, got another. Leave it out.")
    page = _asked(lambda: _store().worklist(order, status, descending=descending, label=label,
                                            reader=reader or name, offset=offset, limit=limit))
    return {"total": page.total, "offset": page.offset, "items": page.items}


@router.get("/history")
def history(image: ImageId) -> list[dict[str, Any]]:
    """Every annotation of an image, oldest first."""
    return [annotation.model_dump(mode="json") for annotation in _store().history(image)]


@router.get("/agreement")
def agreement() -> dict[str, Any]:
    """How well the readers agree: Cohen's kappa of each pair, Fleiss' kappa of all."""
    return _store().agreement()


@router.get("/disagreements")
def disagreements() -> list[dict[str, Any]]:
    """Images whose readers differ and nobody has settled."""
    return _store().disagreements()


@router.get("/suspects")
def suspects(who: Who, reader: str | None = None, offset: int = 0, limit: int = 50) -> dict[str, Any]:
    """Current labels that the present model disagrees with most; see `server.suspects.suspects`.

    With tokens a reader sees his own labels, an administrator everybody's or those of the one named.
    """
    model = app_instance().model
    if not model.exists:
        raise HTTPException(404, "model: need a trained model, got none yet. Train one first.")
    whose = reader if who.role == "admin" else name_of(who, reader)
    version = model.predictor().model.version
    return _asked(lambda: suspected.suspects(_store().database, version, reader=whose, offset=offset,
                                             limit=limit))


@router.get("/progress", response_model=None)
def progress(margin: Annotated[float, Query(gt=0, le=10)] = MARGIN,
             format: Literal["json", "png"] = "json") -> dict[str, Any] | Response:
    """What the labels have brought so far and whether more are likely to help; see `judge_progress`.

    ``agreement`` names the route that tells how far the readers agree: no curve falls below their noise.
    """
    app = app_instance()
    found = judge_progress(rounds(app.model.path) if app.model.path else [], margin=margin)
    if format == "png":
        return Response(draw_progress(found), media_type="image/png")
    document = found.document()
    if not app.conf.get("data"):
        document["notices"].append({
            "code": "queue_chose_validation",
            "message": "This server was started without --data: its validation split was drawn from the "
                       "first labels, which the queue may have chosen. Read the curve as one of hard cases."})
    return {**document, "agreement": "/dcaf/agreement"}


@router.post("/lease")
def lease(case: Case, who: Who) -> dict[str, Any]:
    """Gives this very case to the reader; 409 while another holds it."""
    try:
        held = _store().lease(case.image, name_of(who, case.reader))
    except CaseTaken as error:
        raise HTTPException(409, str(error)) from error
    except ValueError as error:
        raise HTTPException(422, str(error)) from error
    return {"image": held.uid, "reader": held.reader, "expires": held.expires.isoformat()}


@router.delete("/lease")
def release(image: ImageId, who: Who, reader: str | None = None) -> dict[str, bool]:
    """Gives a case back unread; ``released`` is false when the reader did not hold it."""
    return {"released": _asked(lambda: _store().release(image, name_of(who, reader)))}


@router.post("/skip")
def skip(case: Case, who: Who) -> dict[str, str]:
    """Takes a case out of the reader's queue for good."""
    _asked(lambda: _store().skip(case.image, name_of(who, case.reader), case.reason))
    return {"skipped": case.image}


@router.get("/prediction")
def prediction(image: ImageId) -> dict[str, Any]:
    """The stored prediction of an image; 404 when it has none yet."""
    document = _store().prediction(image)
    if not document:
        raise HTTPException(404, "prediction: need a scored image, got one without. POST /infer/dcaf first.")
    return document


@router.get("/image")
def picture(image: ImageId, format: Literal["png", "nrrd"] = "png",
            max_side: Annotated[int, Query(ge=16, le=8192)] = 1024) -> Response:
    """The image: an 8-bit grey PNG, its longer side ``max_side`` pixels at most, or all of it as NRRD.

    The NRRD holds every value before any window, and the window to begin with as ``dcaf_window``.
    """
    path, frame = _store().location(image)
    if format == "nrrd":
        return Response(display_nrrd(read_display(path, uid=image, frame=frame)),
                        media_type="application/octet-stream")
    read = read_image(path, uid=image, frame=frame, max_side=max_side)
    return Response(grey_png(read, max_side=max_side), media_type="image/png")


@router.get("/export")
def export(format: Literal["json", "csv"] = "json") -> Response:
    """Every annotation, as plain JSON or CSV."""
    text = _store().export_json() if format == "json" else _store().export_csv()
    kind = "application/json" if format == "json" else "text/csv"
    return Response(text, media_type=kind,
                    headers={"content-disposition": f'attachment; filename="annotations.{format}"'})


@router.get("/training")
def training() -> dict[str, Any]:
    """How far training is: ``state``, ``message``, ``curve``, verdict; see `Training.progress`."""
    return app_instance().training.progress()


@router.get("/changes")
def changes(since: Annotated[str, Query(min_length=1, max_length=128)],
            limit: Annotated[int, Query(ge=1, le=500)] = 50) -> dict[str, Any]:
    """What the present model says otherwise than the version ``since``; see `Scores.changes`."""
    model = app_instance().model
    if not model.exists:
        raise HTTPException(404, "model: need a trained model, got none yet. Train one first.")
    return _asked(lambda: _store().changes(since, model.predictor().model.version, limit=limit))


def _store() -> Store:
    return app_instance().store


def _asked(question: Callable[[], Any]) -> Any:
    """The answer; a parameter that the store refuses is the caller's mistake, 422."""
    try:
        return question()
    except ValueError as error:
        raise HTTPException(422, str(error)) from error
