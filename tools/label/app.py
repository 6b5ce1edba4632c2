"""The app that MONAI Label serves: its own bundle app, for bundles in its folder alone, with the bundles' own checks.

A copy of this file is the `main.py` of an app folder; it runs in the server's environment, without `tools`.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from fastapi import FastAPI, HTTPException, Request
from fastapi.middleware import Middleware
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse
from lib.guard import Guard  # type: ignore[import-not-found]  # beside the copy of this file
from lib.uploads import (  # type: ignore[import-not-found]
    check_label,
    check_new_name,
    check_scan,
    check_size,
    check_weights,
    copy_whole,
    label_values,
    remove_others,
)
from lib.values import problems  # type: ignore[import-not-found]
from monai.bundle import ConfigParser
from monailabel.datastore import local  # type: ignore[import-not-found]
from monailabel.endpoints.user.auth import DEFAULT_USER, get_current_user  # type: ignore[import-not-found]
from monailabel.interfaces.app import MONAILabelApp  # type: ignore[import-not-found]
from monailabel.interfaces.exception import MONAILabelException  # type: ignore[import-not-found]
from starlette.datastructures import UploadFile

logger = logging.getLogger(__name__)

Task = dict[str, Any]


def load_torchvision(load: Callable[[], object]) -> torch.library.Library | None:
    """Imports torchvision, of which MONAI Label needs drawing functions alone, beside a torch of another build.

    The package index has torchvision for CUDA only. Beside a CPU build of torch its operators do not load, and its
    declarations of their shapes fail; with names for these operators they pass.

    Args:
        load: what imports it.

    Returns:
        The names, which last as long as this object; none where nothing was wrong.
    """
    try:
        load()
    except RuntimeError as error:
        if torch.version.cuda is not None or "torchvision::" not in str(error):
            raise
        names = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
        for operator in ("nms", "qnms"):
            declared = f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            names.define(declared)  # type: ignore[no-untyped-call]
        load()
        return names
    return None


def with_weights(models: Path) -> list[str]:
    """Names of the bundles in a folder that have weights."""
    return sorted(path.parents[1].name for path in models.glob("*/models/model.pt"))


def causes(error: BaseException) -> Iterator[BaseException]:
    """An error and those that it came from, back to the first."""
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__ or found.__context__


def http_error(error: Exception) -> HTTPException:
    """The answer that tells the user what was wrong: status 400 where the scan or the request was, 500 otherwise."""
    if isinstance(error, HTTPException):
        return error
    if isinstance(error, MONAILabelException):
        return HTTPException(status_code=400, detail=error.msg)
    for cause in causes(error):
        if type(cause).__name__ == "InputError":
            return HTTPException(status_code=400, detail=str(cause))
    return HTTPException(status_code=500, detail=f"{type(error).__name__}: {error}")


async def checked(request: Request) -> Any:
    """The user of a request to MONAI Label, once what it says was looked at; each of its routes asks for one.

    Raises:
        HTTPException: 400, names that lead elsewhere, or options and values that are not known.
    """
    form: Mapping[str, Any] = {}
    body = None
    if request.headers.get("content-type", "").startswith(("multipart/", "application/x-www-form-urlencoded")):
        form = await request.form()
    elif request.method in ("POST", "PUT") and (sent := await request.body()):
        try:
            body = json.loads(sent)
        except (ValueError, RecursionError) as error:
            raise HTTPException(400, f"the request is not JSON: {error}") from error
    files = {name: value.filename for name, value in form.items() if isinstance(value, UploadFile)}
    values = {name: value for name, value in form.items() if isinstance(value, str)}
    names = {**request.query_params, **request.path_params}
    for problem in problems(request.url.path, names=names, form=values, files=files, body=body):
        raise HTTPException(400, problem)
    return DEFAULT_USER


def protect(application: FastAPI, *, origins: Sequence[str], hosts: Sequence[str], token: str) -> None:
    """Puts the guard before a server, the look at values before its routes, and answers with reasons behind them.

    MONAI Label lets the pages of every site in; its own setting, MONAI_LABEL_CORS_ORIGINS, ends it at the start.
    """
    for middleware in application.user_middleware:
        kind: object = middleware.cls  # its type is that of a factory
        if kind is CORSMiddleware:
            middleware.kwargs["allow_origins"] = [*origins]
    application.user_middleware.insert(0, Middleware(Guard, origins=origins, hosts=hosts, token=token))
    application.dependency_overrides[get_current_user] = checked

    async def explain(_: Request, error: Exception) -> JSONResponse:
        found = http_error(error)
        return JSONResponse({"detail": found.detail}, found.status_code)

    application.add_exception_handler(Exception, explain)
    application.add_exception_handler(MONAILabelException, explain)
    application.middleware_stack = None  # made at the next request


OPERATORS = load_torchvision(lambda: importlib.import_module("torchvision"))


def _bundle_app() -> Any:
    """The module of MONAI Label's bundle app, from where the package puts its sample apps."""
    path = Path(sys.prefix) / "monailabel/sample-apps/monaibundle/main.py"
    spec = importlib.util.spec_from_file_location("monaibundle_app", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise FileNotFoundError(f"{path}: MONAI Label's bundle app is not installed")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class SegmentationBundles(_bundle_app().MyApp, MONAILabelApp):  # type: ignore[misc]  # found by the name of a base
    """MONAI Label's bundle app, which serves every bundle with weights in its folder and never asks the network.

    Beyond it: weights must fit their network, scans pass the bundle's own checks, labels lie on their scan's grid and
    have values of a served bundle, errors reach the client with their text, and a scan that cannot be segmented does
    not end a batch.
    """

    def __init__(self, *, app_dir: str, studies: str, conf: Mapping[str, str]) -> None:
        self.folder = Path(app_dir, "model")
        names = with_weights(self.folder)
        chosen = [name.strip() for name in (conf or {}).get("models", ",".join(names)).split(",") if name.strip()]
        if missing := sorted(set(chosen) - set(names)):
            raise ValueError(f"{self.folder / missing[0] / 'models/model.pt'}: there are no such weights")
        if not chosen:
            raise ValueError(f"{self.folder}: holds no bundle with models/model.pt")
        local = {"zoo_source": "local", "sam2": "false", **(conf or {}), "models": ",".join(chosen)}
        super().__init__(app_dir=app_dir, studies=studies, conf=local)

    def on_init_complete(self) -> None:
        """Called once by the server, before it answers."""
        super().on_init_complete()
        origins, hosts = (self.conf.get(name, "").split(",") for name in ("origins", "hosts"))
        server = sys.modules["monailabel.app"].app
        protect(server, origins=origins, hosts=hosts, token=os.environ.get("LABEL_TOKEN", ""))

    def init_datastore(self) -> Any:
        """The store of scans and labels; a label that does not fit its scan never takes the place of one that does."""
        store = super().init_datastore()
        save, add = store.save_label, store.add_image
        local.shutil = SimpleNamespace(copy=copy_whole)  # all that the store takes from there

        def save_label(image_id: str, label_filename: str, label_tag: str, *args: Any, **kwargs: Any) -> Any:
            try:
                values = [allowed for model in self._infers for allowed in self._label_values(model)]
                check_label(label_filename, self._stored(image_id, store), values=values)
                saved = save(image_id, label_filename, label_tag, *args, **kwargs)
                remove_others(Path(store._datastore.label_path(label_tag)), image_id, kept=label_filename)
                return saved
            except Exception as error:
                raise self._answer(error, f"label of {image_id}") from error

        def add_image(image_id: str, image_filename: str, image_info: Mapping[str, Any]) -> Any:
            check_new_name(image_id, store.list_images())
            check_size(image_filename, what="scan")
            return add(image_id, image_filename, image_info)

        store.save_label, store.add_image = save_label, add_image
        return store

    def init_infers(self) -> dict[str, Any]:
        """Inference tasks by bundle; weights of another network are an error, not noise in the masks."""
        return _strict(super().init_infers())

    def init_trainers(self) -> dict[str, Any]:
        """Training tasks by bundle."""
        return _strict(super().init_trainers())

    def infer(self, request: Task, datastore: Any = None) -> Any:
        """Segments one scan.

        Raises:
            HTTPException: 404 for an unknown bundle or scan, otherwise see `http_error`.
        """
        model, image = str(request.get("model")), request.get("image")
        try:
            if model not in self._infers:
                raise HTTPException(status_code=404, detail=f"there is no model {model}; there are: {[*self._infers]}")
            if isinstance(image, str):
                if not Path(image).is_absolute() and Path(image).exists():  # MONAI Label would take it for the scan
                    raise HTTPException(400, f"{image} is a file of the server, too: start it in another folder")
                if Path(image).is_absolute() and Path(image).is_file():
                    check_size(image, what="scan")
                task = self._infers[model]
                check_weights(self.folder / model, task.network, name=request.get("model_filename"))
                check_scan(self.folder / model, self._path(image, datastore or self.datastore()))
            return super().infer(request, datastore)
        except Exception as error:
            raise self._answer(error, f"{model}, {image}") from error

    def batch_infer(self, request: Task, datastore: Any = None) -> Any:
        """Segments many scans, one after the other; the result of one that cannot be segmented is `{"error": ...}`."""

        def infer(single: Task, store: Any) -> Any:
            try:
                return self.infer(single, store)
            except HTTPException as error:
                return {"error": error.detail}

        gpus = torch.cuda.device_count()  # without any, MONAI Label would divide the scans among none
        request = {**request, "multi_gpu": bool(request.get("multi_gpu", True) and gpus), "max_workers": 1}
        return self._batch_infer(request, datastore or self.datastore(), infer)

    def train(self, request: Task) -> Any:
        """Trains a bundle on the final labels.

        Viewers send all options that the server offers back to it, an empty `run_id` among them, for which MONAI would
        evaluate the whole config and not its `run`.

        Raises:
            HTTPException: see `http_error`.
        """
        try:
            return super().train({name: value for name, value in request.items() if name != "run_id" or value})
        except Exception as error:
            raise self._answer(error, f"{request.get('model')}, training") from error

    def _path(self, image: str, datastore: Any) -> str:
        return image if image and Path(image).exists() else self._stored(image, datastore)

    def _label_values(self, model: str) -> list[set[int]]:
        files = [self.folder / model / f"configs/train.{ending}" for ending in ("json", "yaml")]
        config = ConfigParser.load_config_file(next((file for file in files if file.is_file()), {}))
        return [*label_values(config)] or [{0, *self._infers[model].labels.values()}]

    def _stored(self, image: str, datastore: Any) -> str:
        path = str(datastore.get_image_uri(image) or "")
        if not path:
            raise HTTPException(status_code=404, detail=f"there is no image {image} in {self.studies}")
        return path

    def _answer(self, error: Exception, what: str) -> HTTPException:
        answer = http_error(error)
        logger.error("%s: %s", what, answer.detail, exc_info=error if answer.status_code >= 500 else None)
        return answer

    def _download_dcmqi_tools(self) -> None:
        """Leaves the network alone; the package dcmqi has the tool."""
        if not shutil.which("itkimage2segimage"):
            logger.warning("itkimage2segimage is not installed: masks cannot be saved as DICOM SEG")


def _strict(tasks: dict[str, Any]) -> dict[str, Any]:
    for task in tasks.values():
        task.load_strict = True
    return tasks
