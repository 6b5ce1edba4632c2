"""What the MONAI Label app rejects before MONAI Label sees it: in process, with an app behind that answers all."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest

from tools.label.lib.guard import Guard
from tools.label.lib.values import is_name, problems

OWN = "127.0.0.1:8000"
TOKEN = "abcdefgh-12"


def ask(
    method: str, address: str, *, token: str = "", body: int = 0, **headers: str
) -> tuple[int, str, dict[str, str]]:
    """Status, text and headers of the answer of a guarded app that says `passed`, or reads a body to its end."""
    sent: list[Any] = []
    parts: Iterator[int] = iter([2**19] * (body // 2**19))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while body and (await receive())["more_body"]:
            pass
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"passed"})

    async def receive() -> Any:
        size = next(parts, None)
        return {"type": "http.request", "body": bytes(size or 0), "more_body": size is not None}

    async def send(message: Any) -> None:
        sent.append(message)

    path, _, query = address.partition("?")
    given = {"host": OWN, **{name.replace("_", "-"): value for name, value in headers.items()}}
    scope = {"type": "http", "method": method, "path": path, "query_string": query.encode()}
    scope["headers"] = [(name.encode(), value.encode()) for name, value in given.items()]
    guard = Guard(app, origins=["http://viewer:3000"], hosts=["scanner"], token=token)
    asyncio.run(guard(scope, receive, send))
    start, content = sent
    answered = {name.decode(): value.decode() for name, value in start["headers"]}
    return start["status"], content["body"].decode(), answered


PASSED: dict[str, dict[str, Any]] = {
    "a program": {"method": "POST", "address": "/train/a"},
    "its own page": {
        "method": "POST",
        "address": "/train/a",
        "origin": f"http://{OWN}",
        "sec_fetch_site": "same-origin",
    },
    "a page that was named": {"method": "PUT", "address": "/datastore/label", "origin": "http://viewer:3000"},
    "a name that was given": {"method": "GET", "address": "/info/", "host": "scanner:8000"},
    "the name of a page": {"method": "GET", "address": "/info/", "host": "viewer"},
    "an address": {"method": "GET", "address": "/info/", "host": "[::1]:8000"},
    "a link to the viewer": {
        "method": "GET",
        "address": "/ohif/viewer",
        "sec_fetch_site": "cross-site",
        "sec_fetch_mode": "navigate",
    },
    "an upload": {"method": "PUT", "address": "/datastore/label", "content_type": "multipart/form-data", "body": 2**22},
}
INVALID: dict[str, tuple[int, str, dict[str, Any]]] = {
    "another site": (403, "may not use", {"method": "POST", "address": "/train/a", "origin": "http://evil.example"}),
    "no site": (403, "may not use", {"method": "PUT", "address": "/datastore/label", "origin": "null"}),
    "its port": (403, "may not use", {"method": "DELETE", "address": "/train/", "origin": "http://127.0.0.1:3000"}),
    "a question of a browser": (403, "may not", {"method": "OPTIONS", "address": "/train/a", "origin": "http://evil"}),
    "an image of another site": (
        403,
        "other sites",
        {"method": "GET", "address": "/info/", "sec_fetch_site": "cross-site"},
    ),
    "a link to data": (
        *(403, "other sites"),
        {"method": "GET", "address": "/info/", "sec_fetch_site": "same-site", "sec_fetch_mode": "navigate"},
    ),
    "rebinding": (
        403,
        "not known as 'evil.example'",
        {"method": "GET", "address": "/info/", "host": "evil.example:8000"},
    ),
    "no host": (403, "not known as ''", {"method": "GET", "address": "/info/", "host": ""}),
    "up": (400, "leaves its place", {"method": "GET", "address": "/session/.."}),
    "back": (400, "leaves its place", {"method": "GET", "address": "/ohif/..\\x"}),
    "encoded twice": (400, "leaves its place", {"method": "GET", "address": "/model/%2e%2e"}),
    "NUL": (400, "leaves its place", {"method": "GET", "address": "/model/a\0"}),
    "weights": (403, "weights are not changed", {"method": "PUT", "address": "/model/a"}),
    "scans": (403, "scans are not deleted", {"method": "DELETE", "address": "/datastore/image"}),
    "all scans": (403, "not sent as a whole", {"method": "GET", "address": "/datastore/dataset"}),
    "a program": (403, "no programs", {"method": "GET", "address": "/logs/gpu"}),
    "the store": (403, "only read", {"method": "POST", "address": "/proxy/dicom/stow/studies"}),
    "reload": (403, "start the server again", {"method": "POST", "address": "/reload"}),
    "a large number": (413, "more than", {"method": "POST", "address": "/train/a", "content_length": "9" * 12}),
    "no number": (413, "more than", {"method": "POST", "address": "/train/a", "content_length": "-1"}),
    "a large body": (413, "more than 1,048,576 bytes", {"method": "POST", "address": "/train/a", "body": 2**22}),
}


@pytest.mark.parametrize("name", PASSED)
def test_passes(name: str) -> None:
    assert ask(**PASSED[name])[:2] == (200, "passed")


@pytest.mark.parametrize("name", INVALID)
def test_is_refused(name: str) -> None:
    status, reason, request = INVALID[name]
    found, text, _ = ask(**request)
    assert found == status
    assert reason in json.loads(text)["detail"]


def test_token() -> None:
    """In a header, in a cookie, or once in an address, which leaves the cookie; a browser's question needs none."""
    for wrong in ("", "Bearer", "Bearer x", f"Bearer {TOKEN}x", TOKEN, f"Basic {TOKEN}"):
        assert ask("GET", "/info/", token=TOKEN, authorization=wrong)[0] == 401
    for wrong in ("label_token=x", "a=b; label_token=", "=;", TOKEN):
        assert ask("GET", "/info/", token=TOKEN, cookie=wrong)[0] == 401
    assert ask("GET", "/info/?token=x", token=TOKEN)[0] == 401
    assert ask("GET", "/info/", token=TOKEN, authorization=f"bearer {TOKEN}")[0] == 200
    assert ask("GET", "/info/", token=TOKEN, cookie=f"a=b; label_token={TOKEN}")[0] == 200
    assert ask("OPTIONS", "/train/a", token=TOKEN, origin="http://viewer:3000")[0] == 200
    status, _, headers = ask("GET", f"/ohif/?token={TOKEN}", token=TOKEN)
    assert status == 200
    assert headers["set-cookie"] == f"label_token={TOKEN}; Path=/; HttpOnly; SameSite=Strict"


def test_what_the_client_of_3d_slicer_asks() -> None:
    assert json.loads(ask("GET", "/auth/", token=TOKEN)[1])["enabled"]
    assert ask("POST", "/auth/token", token=TOKEN)[0] == 401
    assert ask("GET", "/auth/token/valid", token=TOKEN)[0] == 401
    assert ask("GET", "/auth/token/valid", token=TOKEN, authorization=f"Bearer {TOKEN}")[0] == 200
    assert ask("GET", "/auth/")[:2] == (200, "passed")


@pytest.mark.parametrize("name", ["P1", "P1_t1ce.v2", "Müller 3", "1.2.826.0.1", "a(1)", "a@b"])
def test_names(name: str) -> None:
    assert is_name(name)


@pytest.mark.parametrize(
    "name",
    *[
        [
            "",
            ".",
            "..",
            "../a",
            "a/../b",
            "/a",
            "a/b",
            "a\\b",
            "C:a",
            "a\0",
            "a\n",
            "con",
            "NUL.nii",
            "a.",
            "a ",
            " a",
            ".a",
        ]
    ],
)
def test_what_is_no_name(name: str) -> None:
    assert not is_name(name)


def found(path: str, **given: Any) -> str:
    return "; ".join(problems(path, **{"names": {}, "form": {}, "files": {}, **given}))


OFFERED = {
    "device": ["cpu"],
    "pretrained": True,
    "max_epochs": 50,
    "val_split": 0.2,
    "multi_gpu": True,
    "gpus": "all",
    "tracking": ["mlflow", "None"],
    "tracking_uri": "",
    "tracking_experiment_name": "",
    "run_id": "",
    "model_filename": ["model.pt", "model_previous.pt"],
    "client_id": None,
}


def test_what_viewers_send_passes() -> None:
    """The options that MONAI Label offers, as 3D Slicer and the web viewer send them back."""
    assert found("/train/a", body=OFFERED) == ""
    assert found("/train/", body={"a": OFFERED, "b": OFFERED}) == ""
    slicer = {
        "device": "NVIDIA H200",
        "model_filename": "model.pt",
        "result_extension": ".nrrd",
        "client_id": "user-xyz",
    }
    viewer = {
        "result_extension": ".nrrd",
        "result_dtype": "uint8",
        "result_compress": False,
        "restore_label_idx": False,
    }
    for params in (slicer, viewer, {}, {"label_info": [{"name": "kidney", "color": [1, 2, 3]}]}):
        assert found("/infer/a", names={"image": "P1", "model": "a"}, form={"params": json.dumps(params)}) == ""
    assert found("/datastore/label", names={"image": "P1", "tag": ""}, files={"label": "P1.seg.nrrd"}) == ""
    assert found("/batch/infer/a", body={"images": ["P1", "P2"], "multi_gpu": True, "label_tag": "original"}) == ""
    assert found("/activelearning/random", body={"client_id": "x"}) == ""
    assert found("/session/", files={"files": "tmp1.nii.gz"}) == ""


ILL: dict[str, list[Any]] = {
    "device": ["$import os", "@network", "%train", {"_target_": "os.system"}, 3, ["$1"]],
    "model_filename": ["../model.pt", "/tmp/x.pt", "$x.pt", "model.pkl", [], {}],
    "run_id": ["$1", "initialize", ["run"], {"a": 1}],
    "max_epochs": ["$1", "50", 0, -1, 1.5, True, None, [1], float("inf")],
    "val_split": [float("nan"), 1, "0.2", True],
    "tracking_uri": ["http://elsewhere", "$1", "/tmp"],
    "tracking": ["$1"],
    "tracking_experiment_name": ["$1"],
    "gpus": ["0;rm"],
    "pretrained": ["$True"],
    **{name: ["/tmp"] for name in ("bundle_root", "bundle_path", "train#trainer#max_epochs", "_target_", "image")},
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in ILL.items() for value in values])
def test_options_that_no_config_may_see(name: str, value: Any) -> None:
    text = found("/train/a", body={name: value})
    assert name in text
    assert text == found("/train/", body={"a": {name: value}})


REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "image of elsewhere": ("image '../x' is no name", {"path": "/infer/a", "names": {"image": "../x"}}),
    "tag of elsewhere": ("tag '..", {"path": "/datastore/label", "names": {"image": "P1", "tag": "../../label_app"}}),
    "session of elsewhere": ("session_id", {"path": "/infer/a", "names": {"session_id": "../x"}}),
    "archive": ("archives", {"path": "/session/", "names": {"uncompress": "true"}}),
    "file of another kind": ("must be a plain name", {"path": "/datastore/label", "files": {"label": "a.py"}}),
    "file of elsewhere": ("must be a plain name", {"path": "/datastore/image", "files": {"file": "a/..nii"}}),
    "image in options": ("no option 'image'", {"path": "/infer/a", "form": {"params": '{"image": "/etc/passwd"}'}}),
    "damaged options": ("params is not JSON", {"path": "/infer/a", "form": {"params": "{"}}),
    "deep options": ("params is not JSON", {"path": "/infer/a", "form": {"params": "[" * 10**5}}),
    "a list of options": ("must be an object", {"path": "/infer/a", "form": {"params": "[]"}}),
    "a list as a body": ("must be an object", {"path": "/train/a", "body": [1]}),
    "what the store notes": (
        "must not have strategy",
        {"path": "/datastore/image/info", "form": {"info": '{"strategy": 1}'}},
    ),
    "a label to infer": ("take no label", {"path": "/infer/a", "files": {"label": "a.nii.gz"}}),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_requests_that_are_refused(name: str) -> None:
    reason, request = REQUESTS[name]
    assert reason in found(**request)
