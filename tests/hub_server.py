"""A Hub on loopback: the calls by which ``huggingface_hub`` makes, fills and reads a model repository and
reads a data set, and faults on request.

It keeps the files, asks for a token, knows large files by their hash, and checks a card's metadata as the Hub
does in the points that cards get wrong. Calls and forms are those that huggingface_hub 2.4 uses without xet.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import math
import re
import socket
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

USER, TOKEN = "somebody", "hf_loopbackToken0123456789abcdef"
HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?", re.ASCII)
LICENSES = ("apache-2.0", "mit", "cc-by-4.0", "cc-by-sa-4.0", "openrail", "other", "unknown")
PIPELINES = (
    "text-generation",
    "text-classification",
    "summarization",
    "translation",
    "token-classification",
    "fill-mask",
    "question-answering",
)
RELATIONS = ("adapter", "finetune", "merge", "quantized")
LARGE = (".safetensors", ".bin", ".spm", ".model")


def git_hash(content: bytes) -> str:
    """The hash by which git knows a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Repo:
    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    """Of the branch main."""
    commits: list[str] = field(default_factory=list)
    """Summaries, of all branches."""
    others: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """Other branches to their files."""
    history: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """Hash of every commit to the files that it left."""

    def branch(self, revision: str) -> dict[str, bytes] | None:
        """The files of a branch, given its name or the hash of what it holds now, or of a commit."""
        branches = {"main": self.files, **self.others}
        named = branches.get(revision, self.history.get(revision))
        return (
            named
            if named is not None
            else next((f for f in branches.values() if self.sha(f) == revision), None)
        )

    def sha(self, files: dict[str, bytes]) -> str:
        """Of what a branch holds: clients keep files by it."""
        state = [(path, git_hash(content)) for path, content in sorted(files.items())]
        return hashlib.sha1(repr((state, self.commits)).encode()).hexdigest()


@dataclass
class Fault:
    """What happens to calls that fit: an answer with ``status``, or with status 0 a connection cut in the
    middle."""

    call: str
    status: int
    times: int
    headers: dict[str, str]
    body: str


class Hub:
    """The server and what it keeps; ``with Hub() as hub:`` runs it."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        """``owner/name`` of a model, ``datasets/owner/name`` of a data set, to what it holds."""
        self.blobs: dict[str, bytes] = {}
        self.calls: list[str] = []
        """Method and path of every call, in their order."""
        self.faults: list[Fault] = []
        self.lock = threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": self}))
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> Hub:
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def fail(self, call: str, status: int, *, times: int = 10**6, body: str = "", **headers: str) -> None:
        """Let the next ``times`` calls whose "METHOD /path" fits the pattern fail; status 0 cuts the
        connection."""
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        self.faults.append(Fault(call, status, times, headers, body))

    def count(self, call: str) -> int:
        """Number of calls that fit the pattern."""
        return sum(bool(re.search(call, made)) for made in self.calls)

    def fault(self, call: str) -> Fault | None:
        with self.lock:
            self.calls.append(call)
            for fault in self.faults:
                if fault.times > 0 and re.search(fault.call, call):
                    fault.times -= 1
                    return fault
        return None


def card_errors(content: str) -> list[str]:
    """What the Hub does not take in a card's metadata."""
    block = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
    if block is None:
        return []
    try:
        data = yaml.safe_load(block[1])
    except yaml.YAMLError as error:
        return [f"the metadata is no YAML: {error}"]
    errors = []
    for name in ("base_model", "datasets"):
        values = data.get(name) or []
        for value in [values] if isinstance(values, str) else values:
            if not HUB_ID.fullmatch(value):
                errors.append(f'"{name}" with value "{value}" is not valid. Use an id from the Hub')
    allowed = {
        "license": LICENSES,
        "pipeline_tag": PIPELINES,
        "base_model_relation": RELATIONS,
        "library_name": ("transformers", "peft"),
    }
    for name, values in allowed.items():
        if name in data and data[name] not in values:
            errors.append(f'"{name}" must be one of {values}')
    if "base_model_relation" in data and "base_model" not in data:
        errors.append('"base_model_relation" needs a "base_model"')
    languages = data.get("language") or []
    for code in [languages] if isinstance(languages, str) else languages:
        if not re.fullmatch(r"[a-z]{2,3}|code|multilingual", str(code)):
            errors.append(f'"language" with value "{code}" is not valid. It must be an ISO 639 code')
    for name in ("tags", "metrics"):
        if not all(isinstance(value, str) and value for value in data.get(name) or []):
            errors.append(f'"{name}" must be a list of texts')
    if "co2_eq_emissions" in data and not is_finite(data["co2_eq_emissions"].get("emissions")):
        errors.append('"co2_eq_emissions.emissions" must be a number (grams)')
    for model in data.get("model-index") or []:
        if not isinstance(model.get("name"), str) or not model["name"]:
            errors.append('"model-index[0].name" is required')
        if not model.get("results"):
            errors.append('"model-index[0].results" does not contain any value')
        for at, result in enumerate(model.get("results") or []):
            errors += result_errors(result, f'"model-index[0].results[{at}]')
    return errors


def result_errors(result: dict[str, Any], where: str) -> list[str]:
    """What the Hub does not take in one result:
    https://github.com/huggingface/hub-docs/blob/main/modelcard.md."""
    task, dataset = (result.get(part) or {} for part in ("task", "dataset"))
    errors = [] if task.get("type") in PIPELINES else [f'{where}.task.type" must be one of {PIPELINES}']
    if not HUB_ID.fullmatch(str(dataset.get("type") or "")):
        errors.append(f'{where}.dataset.type" is required, and has the form of an id')
    if not isinstance(dataset.get("name"), str) or not dataset["name"].strip():
        errors.append(f'{where}.dataset.name" is required')
    for key in ("config", "split", "revision"):
        if key in dataset and not isinstance(dataset[key], str):
            errors.append(f'{where}.dataset.{key}" must be a text')
    if not result.get("metrics"):
        errors.append(f'{where}.metrics" is required')
    for metric in result.get("metrics") or []:
        if not isinstance(metric.get("type"), str) or not isinstance(metric.get("name", ""), str):
            errors.append(f'{where}.metrics" needs a type')
        if not isinstance(metric.get("value"), str) and not is_finite(metric.get("value")):
            errors.append(f'{where}.metrics" needs a value, a finite number or a text')
    return errors


def is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


class Handler(BaseHTTPRequestHandler):
    """One call after the other, as ``METHOD /path``; the body is read whole unless the connection is cut."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def answer(self) -> None:
        self.path = unquote(urlsplit(self.path).path)
        call = f"{self.command} {self.path}"
        fault = self.hub.fault(call)
        length = int(self.headers.get("Content-Length") or 0)
        if fault is not None and fault.status == 0:
            self.rfile.read(length // 2)
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        body = self.read_body(length)
        if fault is not None:
            self.send(fault.status, fault.body.encode(), **fault.headers)
            return
        for pattern, action in ROUTES:
            if found := re.fullmatch(pattern, call):
                with self.hub.lock:
                    action(self, body, *found.groups())
                return
        self.error(404, "no such call", "EntryNotFound")

    def read_body(self, length: int) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(length)
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def send(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {
            "Content-Type": "application/octet-stream",
            **headers,
            "Content-Length": str(len(body)),
        }.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def json(self, values: Any, status: int = 200, **headers: str) -> None:
        self.send(status, json.dumps(values).encode(), Content_Type="application/json", **headers)

    def error(self, status: int, message: str, code: str = "") -> None:
        self.json(
            {"error": message}, status, X_Error_Message=message, **({"X_Error_Code": code} if code else {})
        )

    def known(self) -> bool:
        """Whether the call bears the right token; else it is answered."""
        if self.headers.get("Authorization") == f"Bearer {TOKEN}":
            return True
        self.error(401, "Invalid credentials in Authorization header")
        return False

    def branch(
        self, name: str, revision: str, *, write: bool = False, kind: str = "models"
    ) -> tuple[Repo, dict[str, bytes]] | None:
        """The repository and the files of one of its branches; else the call is answered."""
        if (repo := self.repo(name if kind == "models" else f"{kind}/{name}", write=write)) is None:
            return None
        if (files := repo.branch(revision)) is None:
            self.error(404, f"Invalid rev id: {revision}", "RevisionNotFound")
            return None
        return repo, files

    def repo(self, name: str, *, write: bool = False) -> Repo | None:
        """The repository, if this caller may see (or change) it; else the call is answered."""
        repo = self.hub.repos.get(name)
        if repo is None or (
            (write or repo.private) and self.headers.get("Authorization") != f"Bearer {TOKEN}"
        ):
            self.error(401 if repo else 404, "Repository not found", "RepoNotFound")
            return None
        if write and not name.startswith(f"{USER}/"):
            self.error(403, "you don't have write access")
            return None
        return repo

    # --- the calls

    def whoami(self, body: bytes) -> None:
        if self.known():
            self.json({"type": "user", "name": USER, "orgs": [], "auth": {}})

    def create(self, body: bytes) -> None:
        if not self.known():
            return
        asked = json.loads(body)
        owner = asked.get("organization") or USER
        name = f"{owner}/{asked['name']}"
        if owner != USER:
            self.error(403, f"You don't have the rights to create a model under the namespace {owner}")
        elif name in self.hub.repos:
            self.json({"error": "You already created this model repo", "url": f"{self.hub.url}/{name}"}, 409)
        else:
            self.hub.repos[name] = Repo(
                private=asked.get("visibility") == "private" or bool(asked.get("private"))
            )
            self.json({"url": f"{self.hub.url}/{name}", "name": name, "id": name})

    def validate(self, body: bytes) -> None:
        errors = card_errors(json.loads(body)["content"])
        self.json({"errors": [{"message": e} for e in errors], "warnings": []}, 400 if errors else 200)

    def preupload(self, body: bytes, name: str, revision: str) -> None:
        if (kept := self.branch(name, revision, write=True)) is None:
            return
        files = []
        for asked in json.loads(body)["files"]:
            path, there = asked["path"], kept[1].get(asked["path"])
            large = path.endswith(LARGE) or asked["size"] > 10_000_000
            oid = None if there is None else hashlib.sha256(there).hexdigest() if large else git_hash(there)
            files.append(
                {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": oid}
            )
        self.json({"files": files})

    def batch(self, body: bytes, name: str) -> None:
        if self.repo(name, write=True) is None:
            return
        objects = []
        for asked in json.loads(body)["objects"]:
            entry = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in self.hub.blobs:
                actions = {"upload": f"/blobs/{asked['oid']}", "verify": f"/{name}/verify"}
                entry["actions"] = {
                    kind: {"href": self.hub.url + path, "header": {}} for kind, path in actions.items()
                }
            objects.append(entry)
        self.json({"objects": objects, "transfer": "basic"})

    def put(self, body: bytes, oid: str) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            self.error(400, "the content does not match its hash")
            return
        self.hub.blobs[oid] = body
        self.send(200, b"")

    def verify(self, body: bytes, name: str) -> None:
        asked = json.loads(body)
        there = self.hub.blobs.get(asked["oid"])
        if there is None or len(there) != asked["size"]:
            self.error(404, "no such object")
        else:
            self.json({})

    def make_branch(self, body: bytes, name: str, branch: str) -> None:
        if (repo := self.repo(name, write=True)) is None:
            return
        if repo.branch(branch) is not None:
            self.error(409, "Reference already exists")
            return
        repo.others[branch] = dict(repo.files)
        self.json({})

    def commit(self, body: bytes, name: str, revision: str) -> None:
        if (kept := self.branch(name, revision, write=True)) is None:
            return
        repo, files = kept
        for line in body.decode().splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
            elif item["key"] == "deletedFile":
                del files[value["path"]]
            else:
                repo.commits.append(value["summary"])
        sha = repo.sha(files)
        repo.history[sha] = dict(files)
        self.json({"success": True, "commitOid": sha, "commitUrl": f"{self.hub.url}/{name}/commit/{sha}"})

    def info(self, body: bytes, kind: str, name: str, revision: str | None) -> None:
        if (kept := self.branch(name, revision or "main", kind=kind)) is not None:
            repo, files = kept
            siblings = [{"rfilename": path} for path in sorted(files)]
            facts = {"_id": "0", "id": name, "modelId": name, "sha": repo.sha(files), "private": repo.private}
            self.json({**facts, "tags": [], "downloads": 0, "likes": 0, "siblings": siblings})

    def tree(self, body: bytes, kind: str, name: str, revision: str, folder: str | None) -> None:
        if (kept := self.branch(name, revision, kind=kind)) is not None:
            paths = sorted(path for path in kept[1] if path.startswith(f"{folder}/" if folder else ""))
            self.json([self.entry(path, kept[1][path]) for path in paths])

    def paths_info(self, body: bytes, kind: str, name: str, revision: str) -> None:
        if (kept := self.branch(name, revision, kind=kind)) is not None:
            asked = (
                parse_qs(body.decode()).get("paths", []) if body[:1] != b"{" else json.loads(body)["paths"]
            )
            self.json([self.entry(path, kept[1][path]) for path in asked if path in kept[1]])

    @staticmethod
    def entry(path: str, content: bytes) -> dict[str, Any]:
        return {"type": "file", "oid": git_hash(content), "size": len(content), "path": path}

    def resolve(self, body: bytes, kind: str | None, name: str, revision: str, path: str) -> None:
        if (kept := self.branch(name, revision, kind=(kind or "models").rstrip("/"))) is None:
            return
        repo, files = kept
        if path not in files:
            self.error(404, "Entry not found", "EntryNotFound")
            return
        content = files[path]
        self.send(
            200, content, ETag=f'"{hashlib.sha256(content).hexdigest()}"', X_Repo_Commit=repo.sha(files)
        )


ROUTES = [
    (r"GET /api/whoami-v2", Handler.whoami),
    (r"POST /api/repos/create", Handler.create),
    (r"POST /api/validate-yaml", Handler.validate),
    (r"POST /api/models/(.+?)/preupload/([\w-]+)", Handler.preupload),
    (r"POST /(.+?)\.git/info/lfs/objects/batch", Handler.batch),
    (r"PUT /blobs/(\w+)", Handler.put),
    (r"POST /(.+?)/verify", Handler.verify),
    (r"POST /api/models/(.+?)/branch/([\w-]+)", Handler.make_branch),
    (r"POST /api/models/(.+?)/commit/([\w-]+)", Handler.commit),
    (r"GET /api/(models|datasets)/([^/]+/[^/]+)(?:/revision/([\w-]+))?", Handler.info),
    (r"GET /api/(models|datasets)/([^/]+/[^/]+)/tree/([\w-]+)(?:/(.+))?", Handler.tree),
    (r"POST /api/(models|datasets)/([^/]+/[^/]+)/paths-info/([\w-]+)", Handler.paths_info),
    (r"(?:GET|HEAD) /(datasets/)?([^/]+/[^/]+)/resolve/([\w-]+)/(.+)", Handler.resolve),
]
