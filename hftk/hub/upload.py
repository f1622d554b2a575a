"""Sending files to the Hub in one commit, and what to say where that fails.

``huggingface_hub`` does the work; it takes the token from ``HF_TOKEN`` or ``hf auth login`` and the server
from ``HF_ENDPOINT``. Whatever arrived before an interruption is not sent again: the Hub knows large files by
their hash.
"""

from __future__ import annotations

import fnmatch
import time
from collections.abc import Callable, Iterator, Sequence
from json import JSONDecodeError
from typing import TYPE_CHECKING, Any, TypeVar

from hftk.config import InputError, Problem, PublishConfig, ServiceError
from hftk.hub.folder import File
from hftk.launch.environment import private
from hftk.models.adapter_files import ADAPTER

if TYPE_CHECKING:
    from huggingface_hub import HfApi, ModelInfo

T = TypeVar("T")
WAITS = (2.0, 5.0, 15.0)
"""Seconds before each new attempt, on top of the client's own."""
LONGEST_WAIT = 300.0
"""Most seconds that a server may ask for (Retry-After)."""
PASSING = (408, 409, 412, 423, 425, 429, 500, 502, 503, 504)
"""Answers that another attempt may not meet: busy, too many requests, or another commit at the same
moment."""
STALE = ("*.safetensors", "*.safetensors.index.json", ADAPTER)
"""Files of an earlier push that would be loaded beside, or instead of, the new weights: they go where this
push has none."""
LOGIN = "log in with `hf auth login`, or set HF_TOKEN to a token with write access (https://huggingface.co/settings/tokens)"


def send(files: Sequence[File], settings: PublishConfig, finish: str, tell: Callable[[str], None]) -> str:
    """Make the repository if it is not there, and put ``files`` into it in one commit; return its URL.

    Args:
        finish: the command that finishes a push that failed.
        tell: takes lines for the user.

    Raises: InputError: no or a wrong token, no right to write, a name or metadata that the Hub does not take,
        or a public
            repository where a private one was asked for.
        ServiceError: the Hub or the network failed, also after several attempts. What arrived stays there.
    """
    from huggingface_hub import HfApi

    assert settings.repo is not None
    api, name = HfApi(library_name="hftk"), settings.repo
    try:
        repo, there = _repository(api, settings, tell)
        names = {file.name for file in files}
        stale = [
            name
            for name in there
            if any(fnmatch.fnmatchcase(name, pattern) for pattern in STALE) and name not in names
        ]
        if stale:
            tell(f"removed from {repo}, an earlier push left them: {', '.join(stale)}")
        _commit(api, repo, files, stale, "main", "Upload model with hftk", tell)
    except InputError:
        raise
    except KeyboardInterrupt:
        tell(f"the push was stopped; to finish it: {finish}")
        raise
    except Exception as error:  # whatever the client, its HTTP library or hf_xet meets
        raise explain(error, name, finish) from error
    return f"{api.endpoint}/{repo}"


def send_to_branch(files: Sequence[File], settings: PublishConfig, branch: str, message: str) -> None:
    """Let a branch hold ``files`` and nothing else, in one commit and without a word; repository and branch
    are made if need be.

    Raises whatever the client raises after several attempts (:func:`explain` says what it means), and
    InputError for a public repository where a private one was asked for.
    """
    from huggingface_hub import HfApi

    api = HfApi(library_name="hftk")
    repo, _ = _repository(api, settings, quiet)
    _persist(lambda: api.create_branch(repo, branch=branch, exist_ok=True), quiet)
    there = _names(_persist(lambda: api.model_info(repo, revision=branch), quiet))
    names = {file.name for file in files}
    _commit(
        api,
        repo,
        files,
        [name for name in there if name not in names and name != ".gitattributes"],
        branch,
        message,
        quiet,
    )


def quiet(line: str) -> None:
    """Takes lines and says nothing: of work beside the training the end alone is told."""


def _repository(api: HfApi, settings: PublishConfig, tell: Callable[[str], None]) -> tuple[str, list[str]]:
    """Id of the repository, made if need be, and the names of its files on the main branch."""
    assert settings.repo is not None
    name = settings.repo
    repo = _persist(lambda: api.create_repo(name, private=settings.private, exist_ok=True), tell).repo_id
    info = _persist(lambda: api.model_info(repo), tell)
    if settings.private and info.private is False:
        message = f"{repo} is public, and a private push was asked for: nothing was sent"
        fix = "add --publish.private false, or name another --publish.repo"
        raise InputError(Problem(setting="publish.private", message=message, fix=fix))
    if not settings.private and info.private:
        tell(f"{repo} exists and stays private; its settings on the Hub make it public")
    return repo, _names(info)


def _names(info: ModelInfo) -> list[str]:
    return [file.rfilename for file in info.siblings or []]


def _commit(
    api: HfApi,
    repo: str,
    files: Sequence[File],
    stale: Sequence[str],
    branch: str,
    message: str,
    tell: Callable[[str], None],
) -> None:
    """One commit that puts ``files`` in and takes ``stale`` out."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    operations: list[Any] = [CommitOperationDelete(path_in_repo=path) for path in stale]
    operations += [CommitOperationAdd(path_in_repo=f.name, path_or_fileobj=f.content) for f in files]
    _persist(lambda: api.create_commit(repo, operations, commit_message=message, revision=branch), tell)


def full_name(repo: str, finish: str, tell: Callable[[str], None]) -> str:
    """``owner/name`` of a repository; one without an owner is the user's own. Raises as :func:`send`."""
    from huggingface_hub import HfApi

    if "/" in repo:
        return repo
    try:
        return f"{_persist(lambda: HfApi(library_name='hftk').whoami(), tell)['name']}/{repo}"
    except Exception as error:
        raise explain(error, repo, finish) from error


def explain(error: Exception, repo: str, finish: str) -> Exception:
    """The InputError or ServiceError to raise for what the client raised."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    status, says = _status(error), _says(error)
    wrong = {
        400: f"the Hub does not take this push: {says}",
        401: f"the Hub does not know this token, or none was sent: {says}",
        403: f"the token may not write to {repo}: {says}",
        404: f"the Hub finds no {repo}, or hides it from this token: {says}",
    }
    if any(isinstance(e, OfflineModeIsEnabled) for e in _chain(error)):
        return _input("HF_HUB_OFFLINE=1 forbids the network", f"unset it, then: {finish}")
    if isinstance(error, ValueError) and "metadata" in says.lower():
        return _input(
            f"the Hub does not take the card's metadata: {says}",
            f"correct --publish.license or --publish.language, then: {finish}",
        )
    if status in wrong:
        fix = f"{LOGIN}; then: {finish}" if status in (401, 403, 404) else f"then: {finish}"
        return _input(wrong[status], fix)
    meant = {
        409: "another commit or push to it at the same moment",
        412: "another commit or push to it at the same moment",
        429: "too many requests: wait some minutes",
        507: "no space left for this account",
    }
    why = (
        f"the Hub answered {status}" + (f" ({meant[status]})" if status in meant else "")
        if status
        else "the connection failed"
    )
    return ServiceError(
        f"the push to {repo} did not finish: {why}: {says}\n    nothing is lost; to finish it: {finish}"
    )


def _persist(action: Callable[[], T], tell: Callable[[str], None]) -> T:
    """What ``action`` returns; it is tried again after a failure that may pass."""
    for wait in WAITS:
        try:
            return action()
        except Exception as error:
            if not _may_pass(error):
                raise
            asked = _retry_after(error)
            if asked is not None and asked > LONGEST_WAIT:
                raise
            tell(f"{_says(error)}; next attempt in {max(wait, asked or 0):g} s")
            time.sleep(max(wait, asked or 0))
    return action()


def _may_pass(error: Exception) -> bool:
    from huggingface_hub.errors import OfflineModeIsEnabled

    status = _status(error)
    if status is not None:
        return status in PASSING
    chain = list(_chain(error))
    if any(isinstance(e, OfflineModeIsEnabled) for e in chain):
        return False
    return any(isinstance(e, (ConnectionError, JSONDecodeError)) or _of_the_network(e) for e in chain)


def _of_the_network(error: BaseException) -> bool:
    """Whether an exception is one of the HTTP library for a connection that was refused, cut or silent."""
    return any(kind.__name__ == "TransportError" for kind in type(error).__mro__)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and those behind it: the client wraps what a thread met."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _status(error: BaseException) -> int | None:
    """The HTTP status behind an exception, or None."""
    found = (getattr(getattr(e, "response", None), "status_code", None) for e in _chain(error))
    return next((int(status) for status in found if status), None)


def _retry_after(error: BaseException) -> float | None:
    """Seconds that the server asked to wait, or None."""
    for link in _chain(error):
        told = getattr(getattr(link, "response", None), "headers", {}).get("Retry-After")
        if told and told.strip().isdigit():
            return float(told)
    return None


def _says(error: BaseException) -> str:
    """The reason in one line, without tokens: what the server said where it said something."""
    said = (getattr(e, "server_message", None) for e in _chain(error))
    text = next((s for s in said if s), "") or next(
        (str(e) for e in reversed(list(_chain(error))) if str(e).strip()), ""
    )
    return private(" ".join(text.split())[:300] or type(error).__name__)


def _input(message: str, fix: str) -> InputError:
    return InputError(Problem(setting="publish.repo", message=message, fix=fix))
