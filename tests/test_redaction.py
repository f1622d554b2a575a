"""No secret is left in what a run prints, saves or sends, whatever the token's shape and wherever it is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from hftk.config import InputError, RunConfig
from hftk.config.parse import dump_config, parse
from hftk.launch import run
from hftk.redaction import REDACTED, redact, redact_text

SECRETS = {
    "Hugging Face": "hf_" + "AbCdE" * 7,
    "OpenAI": "sk-" + "a1B2" * 8,
    "OpenAI project": "sk-proj-" + "a1-B_2" * 8,
    "wandb": "0123456789abcdef0123456789abcdef01234567",
    "GitLab": "glpat-" + "aB3-x_" * 4,
    "AWS id": "AKIA" + "ABCD1234" * 2,
    "GitHub": "ghp_" + "aB3d" * 9,
    "GitHub, fine-grained": "github_pat_" + "aB3_" * 12,
}
AWS_KEY = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
SHAPES = [
    *(f"x_{secret}" for secret in SECRETS.values()),
    *(f"data/{secret}/rows.jsonl" for secret in SECRETS.values()),
    *(f"https://user:{secret}@host/x" for secret in SECRETS.values()),
    "https://user:p@ss1234@host/x",
    f"s3://b/x?aws_secret_access_key={AWS_KEY}",
    f"https://host/x?access_token={SECRETS['wandb']}&y=1",
]
PLAIN = [
    "--model.revision 0123456789abcdef0123456789abcdef01234567",
    "--model.tokenizer=my-tokenizer-of-2026-texts",
    "hub/snapshots/0123456789abcdef0123456789abcdef01234567",
    "hf_summarization",
    "out/task-sk-learn",
    "4096 tokens: 12",
    "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.5.1",
    "https://huggingface.co/a/b",
]


def secrets_in(text: str) -> list[str]:
    return [s for s in (*SECRETS.values(), AWS_KEY, "p@ss1234", "ss1234") if s in text]


@pytest.mark.parametrize("text", SHAPES)
def test_every_shape_is_found_wherever_it_is(text: str) -> None:
    assert REDACTED in redact_text(text) and not secrets_in(redact_text(text))


@pytest.mark.parametrize("text", PLAIN)
def test_what_is_no_secret_is_kept(text: str) -> None:
    assert redact_text(text) == text


def test_the_name_of_an_entry_tells_a_secret_or_a_commit() -> None:
    commit = SECRETS["wandb"]
    found = redact({"hub_token": "short", "apiKey": "x", "commit": commit, "max_tokens": 5, "path": commit})
    assert redact({"fingerprint": {"train": commit}}) == {"fingerprint": {"train": commit}}
    assert found == {
        "hub_token": REDACTED,
        "apiKey": REDACTED,
        "commit": commit,
        "max_tokens": 5,
        "path": REDACTED,
    }


def settings(secret: str, output: Path) -> list[str]:
    return [
        f"--data.path=https://user:{secret}@host/{secret}.csv",
        f"--model.name=models/{secret}",
        f"--train.extra.run_name=run_{secret}",
        f"--output={output}",
    ]


def fail(config: Any) -> None:
    if "AbCdE" in config.data.path:
        raise InputError(f"expected rows in {config.data.path}")
    raise ValueError(f"no model at {config.model.name}, no data at {config.data.path}")


@pytest.mark.parametrize("secret", SECRETS.values(), ids=SECRETS)
def test_a_failed_run_leaves_and_prints_no_secret(
    tmp_path: Path, alone: Any, capfd: pytest.CaptureFixture[str], secret: str
) -> None:
    with pytest.raises(SystemExit):
        run(fail, RunConfig(), settings(secret, tmp_path / "out"))
    printed = "".join(capfd.readouterr())
    assert "host" in printed and not secrets_in(printed)
    saved = {path.name: path.read_text() for path in (tmp_path / "out").iterdir()}
    assert {"config.yaml", "status.json"} <= saved.keys()
    assert not {name: secrets_in(text) for name, text in saved.items() if secrets_in(text)}


def test_settings_that_lost_a_secret_say_so_when_they_are_given_back(tmp_path: Path) -> None:
    path = f"https://host/x?access_token={SECRETS['OpenAI']}"
    config = parse(RunConfig(), [f"--data.path={path}"])
    (tmp_path / "config.yaml").write_text(dump_config(config))
    with pytest.raises(InputError, match=r"saved without the secret.*\n.*--data\.path VALUE"):
        parse(RunConfig(), ["--config", str(tmp_path / "config.yaml")])
    assert parse(RunConfig(), ["--config", str(tmp_path / "config.yaml"), f"--data.path={path}"]) == config


def test_a_command_prints_no_secret(capsys: pytest.CaptureFixture[str]) -> None:
    from hftk.cli import main

    for secret in SECRETS.values():
        assert main(["report", f"/no/https://user:{secret}@host"]) == 2
        assert main(["predict", f"/no/{secret}/x", "--prompt", "a"]) == 2
    printed = "".join(capsys.readouterr())
    assert re.search(REDACTED, printed) and not secrets_in(printed)


def test_a_record_keeps_the_columns_and_keys_of_its_tables(tmp_path: Path) -> None:
    from hftk.reports.record import RunRecord, load_record, save_record

    table = {
        "kind": "table",
        "columns": [{"key": "token"}],
        "rows": [{"token": "river", "place": SECRETS["OpenAI"]}],
    }
    save_record(RunRecord(hftk="1", task="ner", analysis=[table]), tmp_path)
    found = load_record(tmp_path).analysis[0]
    assert found == {**table, "rows": [{"token": "river", "place": REDACTED}]}
