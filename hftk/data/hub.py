"""Data sets of the Hugging Face Hub, by id; never with code from the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hftk.config import InputError, Problem


def load_hub(
    path: str, subset: str | None, *, streaming: bool, missing: Problem
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split to Dataset (IterableDataset if streaming), and facts: id, subset, commit.

    Args:
        missing: what to say about ``path`` as a local path, which it might have been meant for.

    Raises:
        InputError: not on the Hub, not reachable and not in the cache, no or a wrong subset, or not readable.
    """
    import datasets

    commit, reason = _commit(path)
    cached = (Path(datasets.config.HF_DATASETS_CACHE) / path.replace("/", "___")).is_dir()
    if commit is None and not cached:
        raise InputError(_neither(missing, f"and it cannot be had from the Hub: {reason}"))
    try:
        loaded = datasets.load_dataset(path, name=subset, streaming=streaming)
    except (
        Exception
    ) as error:  # whatever the library meets: a wrong subset, a damaged file, a lost connection
        raise InputError(_unloadable(path, subset, error, missing)) from error
    return dict(loaded), {"hub": path, "subset": subset, "commit": commit}


def _commit(path: str) -> tuple[str | None, str]:
    """Newest commit of the data set, or None and why not. One request: load_dataset alone retries for 20
    seconds."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    try:
        return str(HfApi().dataset_info(path, timeout=10).sha), ""
    except OfflineModeIsEnabled:
        return None, "HF_HUB_OFFLINE=1 forbids the network"
    except RepositoryNotFoundError:
        return None, "there is no data set of this name (or it is private: hf auth login)"
    except (HfHubHTTPError, HFValidationError) as error:
        return None, str(error).splitlines()[0]
    except Exception as error:  # the exceptions of whichever HTTP library huggingface_hub uses
        return None, f"no connection ({error})"


def _unloadable(path: str, subset: str | None, error: Exception, missing: Problem) -> Problem:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if isinstance(error, ValueError) and ("config" in reason.lower() or "BuilderConfig" in reason):
        found = f"found {subset}" if subset else "found none"
        return Problem(
            setting="data.subset",
            message=f"{path}: expected one of its subsets, {found}",
            fix=str(error).strip().replace("\n", " ")[:500],
        )
    if isinstance(error, (ConnectionError, FileNotFoundError)):
        return _neither(missing, f"and it cannot be had from the Hub: {reason}")
    return Problem(
        setting="data.path",
        message=f"the Hub data set {path} cannot be loaded: {reason}",
        fix="try another --data.subset, or download its files and name them",
    )


def _neither(missing: Problem, hub: str) -> Problem:
    fix = (
        "for local data correct the path; for a Hub data set connect to the network and unset HF_HUB_OFFLINE"
    )
    return Problem(
        setting="data.path",
        message=f"{missing.message}; {hub}",
        fix=f"{fix}. {missing.fix}" if missing.fix else fix,
    )
