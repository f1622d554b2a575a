"""Pushing through the real client to a Hub on loopback: what arrives, what is refused, and what becomes of a
push that fails."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hub_server import TOKEN, USER, Hub, Repo
from huggingface_hub import ModelCard

REPO = f"{USER}/rivers"
SENT = {
    "README.md",
    "config.json",
    "config.yaml",
    "generation_config.json",
    "model.safetensors.index.json",
    "record.json",
    "report.html",
    "tokenizer.json",
    "tokenizer_config.json",
}


def weights(files: Any) -> set[str]:
    return {name for name in files if name.endswith(".safetensors")}


def finish(client: Any, result: SimpleNamespace) -> SimpleNamespace:
    """Type the command that a failed push printed."""
    found = re.search(r"hftk push [^\n]*", result.err)
    assert found, result.err
    return client(*shlex.split(found[0])[1:])


def same_weights(hub: Hub, folder: Path) -> bool:
    files = hub.repos[REPO].files
    return all(files.get(path.name) == path.read_bytes() for path in folder.glob("*.safetensors"))


def test_a_pushed_model_is_loaded_back_and_the_card_s_own_code_runs(
    hub: Hub, client: Any, finished: Path
) -> None:
    result = client("push", finished, "--repo", REPO)
    assert (result.code, result.out) == (0, f"{hub.url}/{REPO}\n"), result.err
    repo = hub.repos[REPO]
    assert (
        repo.private
        and len(repo.commits) == 1
        and set(repo.files) - weights(repo.files) == SENT
        and len(weights(repo.files)) > 1
    )
    assert same_weights(hub, finished)
    loaded = client(
        code=f"""
import torch
from transformers import AutoModelForCausalLM
there, here = (AutoModelForCausalLM.from_pretrained(name) for name in ({REPO!r}, {str(finished)!r}))
ids = torch.arange(10)[None]
assert torch.equal(there(ids).logits, here(ids).logits)
"""
    )
    assert loaded.code == 0, loaded.err
    card = repo.files["README.md"].decode()
    example = re.search(r"```python\n(.*?)\n```", card, re.DOTALL)
    assert example
    shown = client(code=example[1])
    assert shown.code == 0 and shown.out.strip(), shown.err
    loaded = client(
        code=(
            "from huggingface_hub import ModelCard;"
            f" print(ModelCard.load({REPO!r}).data.eval_results[0].metric_name)"
        )
    )
    assert loaded.out.strip() == ModelCard(card).data.eval_results[0].metric_name


def test_a_private_model_is_not_read_without_the_token(hub: Hub, client: Any, finished: Path) -> None:
    assert client("push", finished, "--repo", REPO).code == 0
    code = f"from huggingface_hub import model_info; model_info({REPO!r})"
    assert client(code=code, token=None).code == 1 and client(code=code).code == 0


def test_a_second_push_of_the_same_sends_nothing_and_makes_no_commit(
    hub: Hub, client: Any, finished: Path
) -> None:
    assert client("push", finished, "--repo", REPO).code == 0
    puts, commits = hub.count("PUT /blobs"), len(hub.repos[REPO].commits)
    assert client("push", finished, "--repo", REPO).code == 0
    assert (hub.count("PUT /blobs"), len(hub.repos[REPO].commits)) == (puts, commits)


def test_public_only_when_asked_and_an_open_repository_is_not_filled_by_accident(
    hub: Hub, client: Any, finished: Path
) -> None:
    opened = client("push", finished, "--repo", REPO, "--private", "false")
    assert opened.code == 0 and not hub.repos[REPO].private and "everybody will see" in opened.err
    hub.repos[REPO] = Repo(private=False)
    result = client("push", finished, "--repo", REPO)
    assert (
        result.code == 2
        and "is public" in result.err
        and "--private false" in result.err
        and not hub.repos[REPO].files
    )
    hub.repos[REPO] = Repo(private=True)
    result = client("push", finished, "--repo", REPO, "--private=false")
    assert result.code == 0 and "stays private" in result.err and hub.repos[REPO].private


def test_a_dry_run_shows_every_byte_and_asks_nothing_of_the_network(
    hub: Hub, client: Any, finished: Path
) -> None:
    dry = client("push", finished, "--repo", REPO, "--dry_run", token=None)
    assert dry.code == 0 and not hub.calls and not list(finished.glob("README*"))
    assert client("push", finished, "--repo", REPO).code == 0
    files = hub.repos[REPO].files
    listed = {
        name: int(size.replace(",", ""))
        for name, size in re.findall(r"^  (\S+) +([\d,]+) bytes$", dry.err, re.MULTILINE)
    }
    assert (
        listed == {name: len(content) for name, content in files.items()}
        and dry.out == files["README.md"].decode()
    )
    assert re.search(r"^not sent: .*checkpoints/.*predictions\.jsonl.*status\.json", dry.err, re.MULTILINE)


def test_no_token_tells_how_to_log_in_before_anything_is_asked(hub: Hub, client: Any, finished: Path) -> None:
    result = client("push", finished, "--repo", REPO, token=None)
    assert result.code == 2 and "hf auth login" in result.err and "HF_TOKEN" in result.err and not hub.calls


def test_a_wrong_token_tells_how_to_log_in_and_is_not_shown(hub: Hub, client: Any, finished: Path) -> None:
    wrong = "hf_" + "z" * 30
    result = client("push", finished, "--repo", REPO, token=wrong)
    assert result.code == 2 and "hf auth login" in result.err and "Traceback" not in result.err
    assert wrong not in result.out + result.err
    assert finish(client, result).code == 0 and same_weights(hub, finished)


def test_a_name_of_somebody_else_is_refused_in_words(hub: Hub, client: Any, finished: Path) -> None:
    result = client("push", finished, "--repo", "google/rivers")
    assert (
        result.code == 2 and "may not write to google/rivers" in result.err and "Traceback" not in result.err
    )


@pytest.mark.parametrize(
    "call",
    [
        "POST /api/repos/create",
        "preupload",
        "batch",
        "PUT",
        "verify",
        "commit",
        "validate-yaml",
        "GET /api/models",
    ],
)
@pytest.mark.parametrize("status", [429, 500, 0])
def test_a_failure_that_passes_is_met_with_another_attempt(
    hub: Hub, client: Any, finished: Path, call: str, status: int
) -> None:
    hub.fail(call, status, times=1)
    result = client("push", finished, "--repo", REPO)
    assert result.code == 0, result.err
    assert same_weights(hub, finished) and result.slept, "it waited before the next attempt"


@pytest.mark.parametrize("call", ["POST /api/repos/create", "preupload", "batch", "PUT", "commit"])
@pytest.mark.parametrize("status", [401, 403])
def test_a_token_that_ends_in_the_middle_is_told_with_the_command_that_finishes(
    hub: Hub, client: Any, finished: Path, call: str, status: int
) -> None:
    hub.fail(call, status)
    result = client("push", finished, "--repo", REPO)
    assert result.code == 2 and "hf auth login" in result.err and "Traceback" not in result.err, result.err
    assert not hub.repos.get(REPO, Repo(private=True)).files
    hub.faults.clear()
    assert finish(client, result).code == 0 and same_weights(hub, finished)


@pytest.mark.parametrize("call", ["commit", "preupload", "POST /api/repos/create", "PUT", "batch"])
@pytest.mark.parametrize(
    ("status", "says"),
    [(409, "same moment"), (429, "too many requests"), (500, "500"), (503, "503"), (0, "connection")],
)
def test_a_failure_that_stays_keeps_everything_and_the_printed_command_finishes_it(
    hub: Hub, client: Any, finished: Path, call: str, status: int, says: str
) -> None:
    if (call, status) == ("POST /api/repos/create", 409):
        pytest.skip("that it exists is no failure")
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    hub.fail(call, status)
    result = client("push", finished, "--repo", REPO, "--license", "mit")
    assert (
        result.code == 1
        and says in result.err
        and "nothing is lost" in result.err
        and "Traceback" not in result.err
    )
    assert not hub.repos.get(REPO, Repo(private=True)).files, "a repository never holds half a push"
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before
    hub.faults.clear()
    assert finish(client, result).code == 0 and same_weights(hub, finished)
    assert b"license: mit" in hub.repos[REPO].files["README.md"]


def test_what_arrived_before_a_cut_is_not_sent_again(hub: Hub, client: Any, finished: Path) -> None:
    shards = sorted(finished.glob("*.safetensors"))
    import hashlib

    lost = hashlib.sha256(shards[-1].read_bytes()).hexdigest()
    hub.fail(f"PUT /blobs/{lost}", 0)
    result = client("push", finished, "--repo", REPO)
    assert result.code == 1 and len(hub.blobs) == len(shards) - 1
    hub.faults.clear()
    kept = {oid: hub.count(f"PUT /blobs/{oid}") for oid in hub.blobs}
    assert finish(client, result).code == 0 and same_weights(hub, finished)
    assert {oid: hub.count(f"PUT /blobs/{oid}") for oid in kept} == kept


def test_the_server_says_how_long_to_wait(hub: Hub, client: Any, finished: Path) -> None:
    hub.fail("commit", 429, times=1, Retry_After="77")
    result = client("push", finished, "--repo", REPO)
    assert result.code == 0 and 77 in result.slept
    hub.fail("commit", 429, Retry_After="86400")
    hub.repos.clear()
    result = client("push", finished, "--repo", REPO)
    assert result.code == 1 and max(result.slept, default=0) < 86400 and "too many requests" in result.err


def test_metadata_that_the_hub_refuses_is_said_before_the_weights_are_sent(
    hub: Hub, client: Any, finished: Path
) -> None:
    result = client("push", finished, "--repo", REPO, "--license", "my-own")
    assert result.code == 2 and '"license" must be one of' in result.err and not hub.blobs


def test_weights_of_an_earlier_push_do_not_stay_beside_the_new_ones(hub: Hub, client: Any, run: Path) -> None:
    hub.repos[REPO] = Repo(
        private=True,
        files={"adapter_config.json": b"{}", "model-00001-of-00009.safetensors": b"", "notes.md": b"mine"},
    )
    result = client("push", run, "--repo", REPO)
    assert result.code == 0 and "model-00001-of-00009.safetensors" in result.err
    files = hub.repos[REPO].files
    assert (
        weights(files) == weights(p.name for p in run.iterdir())
        and "adapter_config.json" not in files
        and files["notes.md"] == b"mine"
    )


def test_a_repository_without_an_owner_is_the_user_s_own(hub: Hub, client: Any, finished: Path) -> None:
    result = client("push", finished, "--repo", "rivers")
    assert result.code == 0 and set(hub.repos) == {REPO} and result.out.strip().endswith(REPO), result.err
    assert REPO in hub.repos[REPO].files["README.md"].decode(), "the code in the card names it whole"


def test_nothing_that_was_sent_holds_a_token_or_a_path_of_this_machine(
    hub: Hub, client: Any, run: Path
) -> None:
    assert client("push", run, "--repo", REPO).code == 0
    everything = b"\n".join(hub.repos[REPO].files.values())
    for secret in (TOKEN, str(run), str(run.parent), str(Path.home()) + "/", str(Path.cwd())):
        assert secret.encode() not in everything
