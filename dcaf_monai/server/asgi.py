"""The served application: ``uvicorn dcaf_monai.server.asgi:app``, or MONAI Label's ``--uvicorn_app``.

MONAI Label's own FastAPI application is not mounted: its handlers block the event loop, answer
mistakes with a bare 500 and include routes that reload code or unpack archives. The routes below are
the whole list of what answers; anything else is 404.
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from dcaf_monai.server import compat  # noqa: F401  (before monailabel)

# isort: split
from monailabel.config import settings
from monailabel.interfaces.utils.app import app_instance

from dcaf_monai.image import ImageError
from dcaf_monai.model import ModelError
from dcaf_monai.server import jobs, review, routes
from dcaf_monai.server.access import Guard, access_rules, redact_logs
from dcaf_monai.server.database import StoreError, UnknownImage

logger = logging.getLogger(__name__)

STATUS = {UnknownImage: 404, ImageError: 422, ModelError: 503, StoreError: 503}
"""What an error that leaves a route means to the caller."""


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Opens the application before the first request, ends its jobs after the last."""
    redact_logs()
    os.environ["DCAF_SERVER_PID"] = str(os.getpid())  # jobs end when this process does
    app = app_instance()
    app.server_mode(True)
    app.on_init_complete()
    yield
    app.close()


def build(conf: Mapping[str, str]) -> ASGIApp:
    """The application behind its guard.

    Args:
        conf: See `access_rules`.

    Raises:
        ValueError: As `access_rules`.
    """
    api = FastAPI(title="DCAF", version=version("dcaf-monai"), docs_url=None, redoc_url=None,
                  lifespan=lifespan)
    for router in (routes.router, jobs.router, review.router):
        api.include_router(router)
    for error in STATUS:
        api.add_exception_handler(error, _world_error)
    api.add_exception_handler(RequestValidationError, _bad_parameter)
    api.add_exception_handler(Exception, _our_error)
    rules = access_rules(conf)
    guarded: ASGIApp = Guard(api, rules)
    if rules.origins:  # outside the guard: a browser asks for permission without a token
        guarded = CORSMiddleware(guarded, allow_origins=sorted(rules.origins), allow_credentials=False,
                                 allow_methods=["GET", "POST", "PUT", "DELETE"],
                                 allow_headers=["Authorization", "Content-Type"])
    return guarded


async def _world_error(_: Request, error: Exception) -> JSONResponse:
    kind = next(kind for kind in STATUS if isinstance(error, kind))
    code = {"code": error.code} if isinstance(error, ImageError) else {}
    return JSONResponse({"detail": str(error), **code}, STATUS[kind])


async def _bad_parameter(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]  # its input is not repeated: it may hold anything
    place = ".".join(str(part) for part in first["loc"][1:])[:80]
    return JSONResponse({"detail": f"{place or 'request'}: {first['msg']}."}, 422)


async def _our_error(_: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": "server: it failed at this request. Its log says why."}, 500)


app = build(settings.MONAI_LABEL_APP_CONF)
