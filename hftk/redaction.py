"""Redaction of secrets: the one place that knows what a token, a key or a password looks like.

Whatever is printed, saved or sent goes through :func:`redact_text` or :func:`redact`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

REDACTED = "<redacted>"
SECRET_NAME = re.compile(
    r"(?<![a-z])(token|key|secret|password|passwd|credentials?|auth)(?![a-z])|apikey|authtoken|accesskey"
)
TOKEN = re.compile(
    r"(?<![A-Za-z0-9])(?:"
    r"hf_(?:[A-Za-z0-9]{16,}|(?=[a-z]*[A-Z0-9])[A-Za-z0-9]{8,})|api_org_[A-Za-z0-9]{16,}"  # Hugging Face
    r"|(?:sk|pk)-[\w-]{16,}"  # OpenAI and others
    r"|gh[pousr]_\w{16,}|github_pat_\w{16,}"  # GitHub
    r"|gl[a-z]{2,6}-[\w.-]{16,}"  # GitLab
    r"|(?:AKIA|ASIA)[A-Z0-9]{16}(?![A-Z0-9])"  # AWS
    r"|wandb_v\d_\w{16,}"
    r")"
)
HEXADECIMAL = re.compile(r"(?<![A-Za-z0-9])[0-9a-f]{40}(?![A-Za-z0-9])")
"""A key of wandb, or the name of a commit."""
COMMIT = re.compile(r"(?:revision|commit|sha1?|snapshots|blobs|resolve|tree)\W{0,4}$", re.IGNORECASE)
"""What stands before the name of a commit."""
COMMIT_KEY = re.compile(r"revision|commit|sha|hash|fingerprint|signature", re.IGNORECASE)
PASSWORD_IN_URL = re.compile(r"(?<=://)[^/\s\"'<>]+(?=@)")
NAMED = re.compile(
    r"""(?P<name>[\w.-]*(?:token|secret|password|passwd|api[_-]?key|access[_-]?key|credential)(?![a-rt-z])[\w-]*["']?\s*[=:]\s*["']?)
    (?P<value>[\w/+.~=-]{16,})""",
    re.IGNORECASE | re.VERBOSE,
)
"""A secret behind its name, such as ``aws_secret_access_key=...`` or ``?access_token=...``."""
BEARER = re.compile(r"(?<=Bearer )[\w.~+/=-]{16,}|(?<=Basic )[\w+/=]{16,}")


def redact(value: Any, key: str = "", *, by_name: bool = True) -> Any:
    """A copy of plain ``value`` without secrets: texts by :func:`redact_text`, with ``by_name`` also entries
    named like one."""
    if isinstance(value, Mapping):
        return {name: _redact_entry(str(name), entry, key, by_name) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [redact(item, key, by_name=by_name) for item in value]
    return redact_text(value, is_commit=bool(COMMIT_KEY.search(key))) if isinstance(value, str) else value


def redact_text(text: str, *, is_commit: bool = False) -> str:
    """``text`` without tokens, keys and passwords; ``is_commit`` leaves 40 hexadecimal digits as they are."""
    text = BEARER.sub(REDACTED, TOKEN.sub(REDACTED, PASSWORD_IN_URL.sub(REDACTED, text)))
    text = NAMED.sub(_redact_named, text)
    return text if is_commit else HEXADECIMAL.sub(_redact_hexadecimal, text)


def is_secret_name(name: str) -> bool:
    """Whether a setting or variable of this name holds a secret, such as ``hub_token`` or ``apiKey``."""
    return bool(SECRET_NAME.search(re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()))


def _redact_entry(name: str, entry: Any, above: str, by_name: bool) -> Any:
    is_secret = by_name and isinstance(entry, str) and entry and is_secret_name(name)
    return REDACTED if is_secret else redact(entry, f"{above}.{name}", by_name=by_name)


def _redact_named(match: re.Match[str]) -> str:
    value = match["value"]
    is_secret = any(c.isdigit() for c in value) and any(c.isalpha() for c in value)
    return match["name"] + REDACTED if is_secret else match[0]


def _redact_hexadecimal(match: re.Match[str]) -> str:
    return match[0] if COMMIT.search(match.string[: match.start()][-20:]) else REDACTED
