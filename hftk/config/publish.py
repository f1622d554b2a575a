"""Settings of publishing on the Hub: the block ``publish``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from hftk.config.problems import Problem


@dataclass(frozen=True, kw_only=True)
class PublishConfig:
    """Where the trained model is published on the Hub, and what its model card says."""

    repo: str | None = None
    """Hub repository that the model is pushed to at the end of the run, such as my-name/my-model. Default:
    none, nothing is sent."""
    private: bool = True
    """Make the repository private; false: everybody can see the model, its settings and its report."""
    dry_run: bool = False
    """Show what would be pushed, file by file and with the model card, and send nothing."""
    checkpoints: Literal["none", "weights", "whole"] = "none"
    """Push each checkpoint while training goes on, to the branch checkpoints of publish.repo: weights (with
    config and tokenizer: they load with revision="checkpoints"), or whole (with the optimizer: the run can be
    continued elsewhere)."""
    license: str | None = None
    """License of the model as the Hub names it, such as apache-2.0, mit or cc-by-4.0. Default: the card names
    none."""
    language: str | None = None
    """Languages of the model as ISO 639 codes, such as en or en,de. Default: those that the task's settings
    name."""
    base_model: str | None = None
    """Hub id of the model that was fine-tuned, for the card and for an adapter's base. Default: --model.name
    if it came from the Hub."""
    samples: bool = True
    """Show rows of the data in the card, the report and record.json; false: leave every example out, for data
    that must not leak."""

    def problems(self) -> Iterator[Problem]:
        for name in ("repo", "base_model"):
            value = getattr(self, name)
            if value is not None and not _is_hub_id(value):
                found = HUB_URL.sub("", value.strip()).strip("/")
                yield Problem(
                    setting=f"publish.{name}",
                    message=(
                        "expected a Hub id such as my-name/my-model (letters, digits, - _ and .), found"
                        f" {value}"
                    ),
                    fix=f"did you mean --publish.{name} {found}?" if _is_hub_id(found) else "",
                )
        for code in (self.language or "").split(",") if self.language is not None else ():
            if not re.fullmatch(r"[a-z]{2,3}|code|multilingual", code.strip()):
                message = f"expected ISO 639 codes such as en or en,de, found {self.language}"
                yield Problem(setting="publish.language", message=message)
                break
        if self.license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", self.license):
            message = (
                f"expected a license as the Hub names it, such as apache-2.0 or mit, found {self.license}"
            )
            yield Problem(
                setting="publish.license",
                message=message,
                fix="https://huggingface.co/docs/hub/repositories-licenses",
            )
        if self.checkpoints != "none" and self.repo is None:
            yield Problem(
                setting="publish.checkpoints",
                message="there is no repository to push checkpoints to",
                fix="add --publish.repo NAME/MODEL",
            )
        if self.dry_run and self.repo is None:
            yield Problem(
                setting="publish.dry_run",
                message="shows a push, but there is no repository to push to",
                fix="add --publish.repo NAME/MODEL",
            )


HUB_URL = re.compile(r"^https?://[^/]+/(models/)?")


def _is_hub_id(text: str) -> bool:
    """Whether the Hub takes ``text`` as the id of a repository (as ``huggingface_hub.utils.validate_repo_id``
    decides it)."""
    parts = text.split("/")
    good = all(re.fullmatch(r"\w|\w[\w.-]*\w", part, re.ASCII) for part in parts)
    return (
        good
        and len(parts) <= 2
        and len(text) <= 96
        and "--" not in text
        and ".." not in text
        and not text.endswith(".git")
    )
