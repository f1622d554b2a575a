"""What leaves the machine: the allow-list, and no path, token or row that must not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made_up_runs import gpt2_run

from hftk.config import InputError, PublishConfig, RunConfig
from hftk.hub import Plan, finishing_command, plan_push, publish
from hftk.hub.folder import is_absolute, public, without_folders
from hftk.reports.record import load_record

SETTINGS = PublishConfig(repo="somebody/rivers")


def plan(folder: Path, **settings: Any) -> Plan:
    return plan_push(load_record(folder), folder, replace(SETTINGS, **settings))


def content(plan: Plan, name: str) -> bytes:
    found = next(file.content for file in plan.files if file.name == name)
    return found if isinstance(found, bytes) else found.read_bytes()


@pytest.mark.parametrize(
    ("text", "public_text"),
    [
        ("/home/me/texts.csv", "texts.csv"),
        ("/home/me/my texts/a b.csv", "a b.csv"),
        ("~/models/bert", "bert"),
        (r"C:\Users\me\texts.csv", "texts.csv"),
        ("C:/Users/me/texts.csv", "texts.csv"),
        ("/data", "data"),
        ("file:///home/me/x.csv", "x.csv"),
        (
            "python /opt/me/run.py --data.path=/srv/me/a.csv --model.name ~/m/bert",
            "python run.py --data.path=a.csv --model.name bert",
        ),
        ("split: 5% because /home/me/a.txt is one source", "split: 5% because a.txt is one source"),
        ("2 of 3 (/mnt/x/y.jsonl, line 3)", "2 of 3 (y.jsonl, line 3)"),
        ("https://huggingface.co/me/model", "https://huggingface.co/me/model"),
        ("1/3 of the steps, nats/token, and/or, a / b", "1/3 of the steps, nats/token, and/or, a / b"),
        ("openai-community/gpt2", "openai-community/gpt2"),
        ("out/gpt2_clm", "out/gpt2_clm"),
        ("../shared/data/x.csv", "../shared/data/x.csv"),
        ("</s>", "</s>"),
    ],
)
def test_of_an_absolute_path_the_last_part_alone_is_public(text: str, public_text: str) -> None:
    assert without_folders(text, in_text=True) == public_text
    assert without_folders({"a": [text]}, in_text=True) == {"a": [public_text]}


def test_the_files_of_a_tokenizer_keep_their_slashes() -> None:
    values = {
        "pattern": "/ ?\\d+/x",
        "token": "/n/",
        "name_or_path": "/home/me/bert",
        "vocab_file": "C:\\me\\vocab.txt",
        "added": {"x": "/a/b"},
    }
    assert without_folders(values) == {**values, "name_or_path": "bert", "vocab_file": "vocab.txt"}
    assert not is_absolute("a/b") and not is_absolute("https://a.b/c") and is_absolute("/a b/c")


def test_only_listed_files_are_sent(run: Path) -> None:
    for name in (
        "model_card.docx",
        "secrets.env",
        ".env",
        "optimizer.pt",
        "scaler.bin",
        "train.csv",
        "x.safetensors.tmp",
        "events.out.tfevents.1",
    ):
        (run / name).write_text("x")
    made = plan(run)
    names = {file.name for file in made.files}
    assert (
        names >= {"README.md", "record.json", "report.html", "config.yaml", "tokenizer.json"}
        and len(names) == 11
    )
    assert {
        "checkpoints/",
        "predictions.jsonl",
        "status.json",
        ".env",
        "training_args.bin",
        "train.csv",
    } <= set(made.left_out)
    assert names.isdisjoint(made.left_out)


def test_no_link_and_no_weights_but_the_runs_own_are_sent(run: Path, tmp_path: Path) -> None:
    (tmp_path / "passwd").write_text("x:0:0:root")
    (run / "vocab.txt").symlink_to(tmp_path / "passwd")
    (run / "README.md").symlink_to(tmp_path / "passwd")
    for name in ("optimizer.safetensors", "private.safetensors", "model-copy.safetensors", "mine.spm"):
        (run / name).write_bytes(b"mine")
    made = plan(run)
    sent = {file.name for file in made.files}
    stray = {
        "vocab.txt",
        "optimizer.safetensors",
        "private.safetensors",
        "model-copy.safetensors",
        "mine.spm",
    }
    assert sent.isdisjoint(stray) and stray <= set(made.left_out)
    assert b"x:0:0:root" not in b"".join(content(made, name) for name in sent)
    weights = next(run.glob("model-00001-of-*.safetensors"))
    weights.rename(tmp_path / "weights")
    weights.symlink_to(tmp_path / "weights")
    with pytest.raises(InputError, match=f"missing: {weights.name}"):
        plan(run)


@pytest.mark.parametrize(
    "part", ("../passwd", "/etc/passwd", "a/model-00001-of-00002.safetensors", "notes.txt", 3)
)
def test_an_index_of_weights_names_parts_in_its_folder_alone(run: Path, part: Any) -> None:
    (run / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": part}}))
    with pytest.raises(InputError, match=r"index\.json"):
        plan(run)


def test_no_json_file_is_sent_with_a_token(run: Path) -> None:
    secret = "glpat-" + "aB3-x_" * 4
    for name in ("tokenizer_config.json", "config.json", "generation_config.json"):
        given = {
            "token": "plain",
            "use_auth_token": True,
            "eos_token": "<end>",
            "note": {"x": [secret], "api_key": "plain"},
        }
        (run / name).write_text(json.dumps({**json.loads((run / name).read_text()), **given}))
    made = plan(run)
    for name in ("tokenizer_config.json", "config.json", "generation_config.json"):
        sent = json.loads(content(made, name))
        assert sent["eos_token"] == "<end>" and sent["note"] == {"x": ["<redacted>"]}
        assert "token" not in sent and "use_auth_token" not in sent


def test_paths_and_tokens_of_the_record_are_left_at_home(run: Path) -> None:
    secret = "hf_" + "a" * 30
    record = replace(
        load_record(run),
        command=f"python {run}/x.py --hub_token {secret} --output /srv/me/out",
        config={
            "data": {"path": "/srv/me/data/texts.csv"},
            "output": "/srv/me/out",
            "train": {"extra": {"hub_token": secret}},
        },
        data={"sources": [{"path": "/srv/me/data/texts.csv"}]},
        model={"origin": "/srv/me/bert"},
        choices=["columns of /srv/me/data/texts.csv"],
        extra={"later": {"cache": "/srv/me/cache"}},
        analysis=[
            {
                "title": "Conflicts",
                "kind": "table",
                "columns": [{"key": "place", "title": "where"}],
                "rows": [{"place": "train: row 7 of /srv/me/data/texts.csv"}],
            }
        ],
    )
    (run / "config.json").write_text(
        json.dumps({**json.loads((run / "config.json").read_text()), "_name_or_path": "/srv/me/bert"})
    )
    (run / "tokenizer_config.json").write_text(
        json.dumps({"name_or_path": "/srv/me/bert", "model_max_length": 64})
    )
    made = plan_push(record, run, SETTINGS)
    everything = b"".join(content(made, file.name) for file in made.files)
    assert (
        b"/srv" not in everything
        and secret.encode() not in everything
        and str(run).encode() not in everything
    )
    assert b"texts.csv" in content(made, "README.md") and b"texts.csv" in content(made, "config.yaml")


def test_without_samples_no_row_of_the_data_leaves(run: Path) -> None:
    row = "a row that must not leak"
    record = replace(
        gpt2_run(5),
        samples=[{"prompt": row, "prediction": row}],
        data={"conflicts": {"train": {"rows": 1, "examples": [row]}}, "rows": {"train": 4}},
        analysis=[
            {"title": "Mistakes", "kind": "examples", "samples": [{"text": row}]},
            {"title": "Duplicates", "kind": "table", "columns": ["text"], "rows": [[row]]},
            {
                "title": "Confusion",
                "kind": "matrix",
                "labels": ["a", "b"],
                "counts": [[1, 2], [3, 4]],
                "examples": [row],
            },
        ],
    )
    shown = public(record, samples=False)
    assert (
        row not in json.dumps(shown.to_dict())
        and [s["title"] for s in shown.analysis] == ["Confusion"]
        and shown.data["rows"] == {"train": 4}
    )
    assert row in json.dumps(public(record, samples=True).to_dict())
    made = plan_push(replace(record, analysis=[]), run, replace(SETTINGS, samples=False))
    assert row.encode() not in b"".join(content(made, file.name) for file in made.files)


def test_a_card_that_a_person_wrote_is_taken_and_the_empty_form_of_peft_is_not(run: Path) -> None:
    (run / "README.md").write_text("# Mine\n", encoding="utf-8")
    assert content(plan(run), "README.md") == b"# Mine\n"
    for text in ("", "\n", "# Model Card for Model ID\n[More Information Needed]\n"):
        (run / "README.md").write_text(text, encoding="utf-8")
        assert b"## Scores" in content(plan(run), "README.md")


def test_missing_parts_of_the_weights_are_named(run: Path) -> None:
    shards = sorted(run.glob("*.safetensors"))
    shards[0].unlink()
    with pytest.raises(InputError, match=shards[0].name):
        plan(run)
    for path in (*shards[1:], run / "model.safetensors.index.json"):
        path.unlink()
    with pytest.raises(InputError, match="expected weights"):
        plan(run)
    (run / "config.json").unlink()
    with pytest.raises(InputError, match=r"expected config\.json or adapter_config\.json"):
        plan(run)


def adapter(folder: Path, base: str) -> Path:
    for path in [*folder.glob("*.safetensors*"), folder / "config.json"]:
        path.unlink()
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    (folder / "adapter_config.json").write_text(
        json.dumps(
            {
                "peft_type": "LORA",
                "base_model_name_or_path": base,
                "revision": "main",
                "target_modules": ["c_attn"],
            }
        )
    )
    return folder


def test_an_adapter_needs_a_base_that_others_can_load(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models/base").mkdir(parents=True)
    for base in ("/srv/me/base", "models/base", "./base", "~/base", ""):
        adapter(run, base) if not (run / "adapter_config.json").exists() else (
            run / "adapter_config.json"
        ).write_text(json.dumps({"base_model_name_or_path": base}))
        with pytest.raises(InputError, match=r"publish\.base_model"):
            plan(run)
    made = json.loads(content(plan(run, base_model="openai-community/gpt2"), "adapter_config.json"))
    assert made["base_model_name_or_path"] == "openai-community/gpt2" and made["revision"] is None


def test_the_card_of_an_adapter_loads_it_by_peft(run: Path) -> None:
    made = plan(adapter(run, "openai-community/gpt2"))
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {file.name for file in made.files}
    assert (
        "AutoPeftModelForCausalLM.from_pretrained('somebody/rivers')" in made.card
        and "library_name: peft" in made.card
        and "- lora" in made.card
    )


def test_the_finishing_command_is_one_to_paste() -> None:
    folder = Path.cwd() / "out/my run"
    settings = PublishConfig(repo="a/b", private=False, language="en,de", dry_run=True, samples=False)
    assert (
        finishing_command(folder, settings)
        == "hftk push 'out/my run' --repo a/b --private false --language en,de --samples false"
    )


def test_a_recipe_publishes_nothing_unless_a_repository_is_named(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = RunConfig(output=str(run))
    assert publish(load_record(run), config) is None and capsys.readouterr().out == ""
    assert publish(load_record(run), replace(config, publish=PublishConfig(repo="a/b", dry_run=True))) is None
    shown = capsys.readouterr().out
    assert "a dry run" in shown.lower() and "model.safetensors.index.json" in shown and "## Limits" in shown
    with pytest.raises(InputError, match="HF_HUB_OFFLINE"):
        publish(load_record(run), replace(config, publish=PublishConfig(repo="a/b")))


@pytest.mark.parametrize(
    "name", ["https://huggingface.co/a/b", "a/b/c", "a b", "-a/b", "a/b.git", "a--b", "ä/b", "", "x" * 97]
)
def test_a_name_that_the_hub_does_not_take_is_refused_at_once(name: str) -> None:
    assert [p.setting for p in PublishConfig(repo=name).problems()] == ["publish.repo"]
    assert not list(PublishConfig(repo="my-name/My_model-1.0").problems())


def test_the_hub_s_own_rule_for_names_is_met() -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    for name in (
        "a",
        "a/b",
        "my-name/My_model-1.0",
        "a.b/c_d",
        "a/b.git",
        "a--b",
        "a..b",
        "-a",
        "a-",
        "a/b/c",
        "a b",
        "x" * 96,
        "x" * 97,
        "_a",
    ):
        try:
            validate_repo_id(name)
            taken = True
        except HFValidationError:
            taken = False
        assert taken == (not list(PublishConfig(repo=name).problems())), name
