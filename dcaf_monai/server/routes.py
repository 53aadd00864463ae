"""MONAI Label's own routes, answered by us: same paths, same shapes, no blocked event loop.

Every handler is a plain function, so each request runs in a thread and none waits for another; `infer`,
which takes long, has threads of its own, so that a crowd of predictions keeps nobody else waiting.
Images are named by ids of the store, never by a path; what a client may say is checked here, and a
client's mistake is one sentence with 4xx.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Annotated, Any, Literal

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Body, Depends, File, Form, HTTPException, Query, Response, UploadFile
from fastapi.responses import FileResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from requests_toolbelt import MultipartEncoder
from starlette.background import BackgroundTask

from dcaf_monai.server import compat  # noqa: F401  (before monailabel)

# isort: split
from monailabel.interfaces.utils.app import app_instance

from dcaf_monai.overlay import KINDS
from dcaf_monai.server.access import Reader, admin
from dcaf_monai.server.annotation import parse_annotation
from dcaf_monai.server.review import ImageId, Who, name_of
from dcaf_monai.server.store import TAGS
from dcaf_monai.server.tasks import DEFAULT_OVERLAY, EXTENSIONS, NAME, scratch

router = APIRouter()
MAX_ANNOTATION = 64 * 1024
"""Largest annotation document, bytes."""
_inferring = CapacityLimiter(8)
SUFFIXES = (".dcm", ".dicom", ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".nii", ".nii.gz")


class InferParameters(BaseModel):
    """The ``params`` of `POST /infer/dcaf`; what stock clients always send is taken and not used."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)
    overlay: Literal[KINDS] | None = None  # type: ignore[valid-type]
    explain: str | None = Field(default=None, alias="class", max_length=64)
    result_extension: Literal[EXTENSIONS] = ".nrrd"  # type: ignore[valid-type]
    frame: int | None = Field(default=None, ge=1)
    client_id: Any = None
    result_dtype: Any = None
    result_compress: Any = None
    save_label: Any = None
    label_tag: Any = None
    multi_gpu: Any = None
    gpus: Any = None
    logging: Any = None


@router.get("/")
def name() -> dict[str, str]:
    """What answers here."""
    app = app_instance()
    return {"name": app.name, "description": app.description, "routes": "/openapi.json"}


@router.get("/info/")
def info() -> dict[str, Any]:
    """Models, trainers, strategies, scoring methods and the datastore's counts."""
    return app_instance().info()


@router.post("/infer/{model}")
async def infer(model: str, image: str = "", output: Literal["json", "image", "all"] = "json",
                params: Annotated[str, Form()] = "{}",
                file: Annotated[UploadFile | None, File()] = None) -> Response:
    """Predicts an image of the store, or the one uploaded as ``file``, which is not kept.

    ``output=all`` answers ``multipart/form-data`` with the parts ``params`` (JSON) and ``image`` (the
    heat map: NRRD, or by ``result_extension`` a blended PNG); ``image`` answers the map alone.
    """
    return await to_thread.run_sync(_infer, model, image, output, params, file, limiter=_inferring)


def _infer(model: str, image: str, output: str, params: str, file: UploadFile | None) -> Response:
    app = app_instance()
    if model != NAME:
        raise HTTPException(404, f"model: need `{NAME}`, got another name.")
    if not app.model.exists:
        raise HTTPException(404, "model: need a trained model, got none yet. Train one first.")
    if bool(image) == bool(file):
        raise HTTPException(422, "image: need either an id of the store or an uploaded file.")
    wish = _infer_parameters(params)
    kind = (wish.overlay or DEFAULT_OVERLAY) if output != "json" else None
    with scratch() as folder:
        request: dict[str, Any] = {"overlay": kind, "class": wish.explain, "frame": wish.frame,
                                   "result_extension": wish.result_extension, "folder": folder}
        if file:
            request["file"] = _received(file, folder)
        else:
            request["image"] = image
        try:
            result = app.infer(request)
        except ValueError as error:
            raise HTTPException(422, str(error)) from error
        return _answer(result, output)


@router.post("/activelearning/{strategy}")
def next_case(strategy: str, who: Who,
              params: Annotated[dict[str, Any] | None, Body()] = None) -> dict[str, Any]:
    """Leases the next case to the reader and gives it with its stored prediction.

    An empty queue is a ``message`` and no ``id``, which stock clients take for what it is.
    """
    app, params = app_instance(), params or {}
    if strategy not in app.strategies:
        raise HTTPException(404, f"strategy: need one of {', '.join(app.strategies)}, got another.")
    wish = {key: value for key, value in params.items() if key in ("image", "lease_s", "model_version")}
    stated = params.get("reader")
    # a stock client sends a client_id of its own choice: a name only where there are no tokens
    name = name_of(who, stated if who.name else stated or params.get("client_id"))
    try:
        case = app.strategies[strategy]({**wish, "reader": name}, app.store)
    except ValueError as error:
        raise HTTPException(422, str(error)) from error
    return case or {"message": "Queue: every image is read, skipped or with another reader. "
                               "Nothing is left for you."}


@router.get("/datastore/")
def datastore(output: Literal["stats", "all", "train"] = "stats") -> Any:
    """Counts; or every image with its labels, in MONAI Label's shape (key ``objects``)."""
    store = app_instance().store
    if output == "all":
        return store.json()
    if output == "train":  # MONAI Label gives paths of the server here; a client gets ids
        return [{"image": uid, "label": label} for uid, label in store.current_labels().items()]
    return store.status()


@router.get("/datastore/image")
@router.head("/datastore/image", include_in_schema=False)
def image_file(image: ImageId) -> FileResponse:
    """The image's file as it is stored."""
    path, _ = app_instance().store.location(image)
    return _download(path)


@router.get("/datastore/image/info")
def image_info(image: ImageId) -> dict[str, Any]:
    """What the store knows of an image."""
    return app_instance().store.get_image_info(image)


@router.put("/datastore/label")
def save_label(image: ImageId, who: Who, tag: str = "final", params: Annotated[str, Form()] = "{}",
               label: Annotated[UploadFile | None, File()] = None) -> dict[str, Any]:
    """Stores a reader's annotation, for good: JSON as the ``label`` file or in ``params``.

    On a server with tokens the reader is the token's; another name in the document is refused.
    """
    if tag != "final":
        raise HTTPException(422, "tag: need `final`, a reader's annotation, got another.")
    text = label.file.read(MAX_ANNOTATION + 1) if label else params.encode()
    if len(text) > MAX_ANNOTATION:
        raise HTTPException(413, f"annotation: need at most {MAX_ANNOTATION} bytes, got more.")
    document = _annotation_object(text)
    stated = document.get("reader")
    if not stated and not who.name:
        stated = _object(params).get("client_id")
    try:
        document["reader"] = name_of(who, stated)
        stored = app_instance().store.annotate(image, parse_annotation(document))
    except ValueError as error:
        raise HTTPException(422, str(error)) from error
    return {"image": image, "label": image, "annotation": stored.model_dump(mode="json")}


@router.get("/datastore/label")
@router.head("/datastore/label", include_in_schema=False)
def label_file(tag: str, label: str = "", image: str = "") -> Response:
    """An image's label as JSON: all its annotations (``final``) or the model's answer (``original``)."""
    return Response(json.dumps(_label(label or image, tag)), media_type="application/json",
                    headers={"content-disposition": 'attachment; filename="label.json"'})


@router.get("/datastore/label/info")
def label_info(tag: str, label: str = "", image: str = "") -> dict[str, Any]:
    """What is kept beside a label."""
    _label(label or image, tag)
    return app_instance().store.get_label_info(label or image, tag)


@router.get("/datastore/dataset")
def dataset(limit_cases: Annotated[int | None, Query(ge=1)] = None,
            _: Annotated[Reader, Depends(admin)] = None) -> FileResponse:  # type: ignore[assignment]
    """Images and labels as one ZIP archive."""
    archive = Path(app_instance().store.get_dataset_archive(limit_cases))
    return FileResponse(archive, filename="dataset.zip",
                        background=BackgroundTask(archive.unlink, missing_ok=True))


@router.get("/model/info/{model}", dependencies=[Depends(admin)])
def model_info(model: str) -> dict[str, Any]:
    """Checksum and time of the published model file."""
    found = app_instance().model_info(model)
    if not found:
        raise HTTPException(404, "model: need a trained one, got none by this name.")
    return found


@router.get("/model/{model}", dependencies=[Depends(admin)])
def model_file(model: str) -> FileResponse:
    """The published model file."""
    path = app_instance().model_file(model)
    if not path:
        raise HTTPException(404, "model: need a trained one, got none by this name.")
    return FileResponse(path, filename=f"{NAME}.safetensors")


def _infer_parameters(text: str) -> InferParameters:
    try:
        return InferParameters.model_validate(_object(text))
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])[:80]
        raise HTTPException(422, f"{place or 'params'}: {first['msg']}.") from error


def _object(text: str | bytes) -> dict[str, Any]:
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError) as error:
        raise HTTPException(422, "params: need a JSON object, got something else.") from error
    if not isinstance(value, dict):
        raise HTTPException(422, "params: need a JSON object, got something else.")
    return value


def _annotation_object(text: bytes) -> dict[str, Any]:
    try:
        return _object(text)
    except HTTPException as error:
        raise HTTPException(422, "annotation: need a JSON object such as {\"label\": ..., \"reader\": ..., "
                                 "\"comment\": ...}, got something else.") from error


def _received(file: UploadFile, folder: Path) -> Path:
    """The upload in the request's own folder, under our name; only its known suffix is kept."""
    suffix = next((known for known in sorted(SUFFIXES, key=len, reverse=True)
                   if (file.filename or "").lower().endswith(known)), ".dcm")
    path = folder / f"upload{suffix}"
    with path.open("wb") as target:
        shutil.copyfileobj(file.file, target)
    return path


def _answer(result: dict[str, Any], output: str) -> Response:
    document = json.dumps(result["params"])
    if output == "json":
        return Response(document, media_type="application/json")
    heat = Path(result["file"])
    kind = "image/png" if heat.suffix == ".png" else "application/octet-stream"
    if output == "image":
        return Response(heat.read_bytes(), media_type=kind,
                        headers={"content-disposition": f'attachment; filename="{heat.name}"'})
    form = MultipartEncoder({"params": (None, document, "application/json"),
                             "image": (heat.name, heat.read_bytes(), kind)})
    return Response(form.to_string(), media_type=form.content_type)


def _label(uid: str, tag: str) -> dict[str, Any]:
    store = app_instance().store
    if tag not in TAGS:
        raise HTTPException(422, f"tag: need {' or '.join(TAGS)}, got another.")
    if not store.get_label_by_image_id(uid, tag):
        raise HTTPException(404, f"label: need an image with a {tag} label, got one without.")
    return store.get_label(uid, tag)


def _download(path: Path) -> FileResponse:
    if not path.is_file():
        raise HTTPException(404, "image: its file is gone from the studies folder.")
    return FileResponse(path, filename=f"image{path.suffix}")
