"""Text is generated between steps: scored on the first validation rows, without a trace in the training, and
the best is kept."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import made_pairs
import numpy as np
import pytest
import torch
from made_pairs import CONTEXT, make_config, rows_of

import hftk
from hftk.config import EvalConfig, GenerationSettings, InputError, override
from hftk.evaluation import evaluate
from hftk.generation.generate import Generated
from hftk.task import Splits
from hftk.training.trainer import ExactTrainer

ROWS = 6
TRAIN = {"max_steps": 12, "eval_steps": 3, "optimizer": "adamw", "learning_rate": 5e-3}
NAMES = {
    hftk.TranslationConfig: ("bleu", "chrf++", "ter"),
    hftk.SummarizationConfig: ("rouge1", "rouge2", "rougeL", "rougeLsum"),
}

pytestmark = pytest.mark.usefixtures("tiny_runs")


def splits() -> Splits:
    return Splits(train=rows_of(96), validation=rows_of(15, seed=1))


def config_of(
    folder: Any, kind: Any = hftk.TranslationConfig, architecture: str = "marian", **changes: Any
) -> Any:
    config = make_config(folder, architecture, kind=kind, train=TRAIN, eval={"generate_rows": ROWS})
    return override(config, changes)


def judged(trained: Any) -> list[dict[str, Any]]:
    return [point for point in trained.history if "eval_loss" in point]


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("architecture", ["t5", "marian"])
def test_the_curves_are_those_of_judging_the_first_rows_by_themselves(
    kind: Any, architecture: str, tmp_path: Path
) -> None:
    config = config_of(tmp_path, kind, architecture)
    trained, _ = made_pairs.fit(config, splits())
    points = judged(trained)
    assert [point["step"] for point in points] == [3, 6, 9, 12]
    task = made_pairs.task_of(config)
    rows = splits().validation
    assert rows is not None
    seen = hftk.evaluate(
        task,
        trained.model,
        trained.tokenizer,
        ("validation", rows.select(range(ROWS))),
        EvalConfig(resamples=0),
    )
    assert seen is not None
    scores = {score.name: score.value for score in seen.scores if score.name != "loss"}
    assert set(scores) == set(NAMES[kind]) == set(task.score_names)
    assert {name: points[-1][f"eval_{name}"] for name in scores} == pytest.approx(scores, abs=1e-9)
    whole = hftk.evaluate(
        task, trained.model, trained.tokenizer, ("validation", rows), EvalConfig(resamples=0)
    )
    assert whole is not None and points[-1]["eval_loss"] == pytest.approx(
        task.eval_loss(whole.outputs), rel=1e-6
    ), "of all rows"


@pytest.mark.parametrize("asked", [{}, {"num_beams": 3}, {"do_sample": True, "temperature": 2.0}])
def test_generation_leaves_no_trace_in_the_training(asked: dict[str, Any], tmp_path: Path) -> None:
    """Dropout draws from the global random state, which generation must not touch; nor may it leave the model
    in another mode."""
    weights = []
    for rows in (0, ROWS):
        config = config_of(
            tmp_path / str(rows), model={"dropout": 0.3}, eval={"generate_rows": rows}, generation=asked
        )
        trained, _ = made_pairs.fit(config, splits())
        weights.append({name: value.clone() for name, value in trained.model.state_dict().items()})
        assert all(("eval_bleu" in point) == bool(rows) for point in judged(trained))
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_scores_that_draw_leave_no_trace_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some libraries draw from Python's random state as they are imported, which may be at the first
    evaluation."""
    scores, drawn = evaluate.generation_scores, []

    def drawing(*args: Any, **kwargs: Any) -> Any:
        drawn.append((random.random(), np.random.random(), torch.rand(1)))
        return scores(*args, **kwargs)

    states = []
    for folder in ("plain", "drawing"):
        trained, _ = made_pairs.fit(config_of(tmp_path / folder, model={"dropout": 0.3}), splits())
        saved = torch.load(*(tmp_path / folder).rglob("rng_state*.pth"), weights_only=False)  # written here
        states.append(
            (
                saved["python"],
                str(saved["numpy"]),
                saved["cpu"].tolist(),
                [w.tolist() for w in trained.model.parameters()],
            )
        )
        monkeypatch.setattr("hftk.training.trainer.generation_scores", drawing)
    assert len(drawn) == 4 and states[0] == states[1]


def test_between_steps_the_likeliest_tokens_are_taken_whatever_is_asked_for_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[GenerationSettings] = []

    def spy(
        model: Any, tokenizer: Any, prompts: list[str], settings: GenerationSettings, **_: Any
    ) -> list[Any]:
        seen.append(settings)
        return [
            Generated(index=i, text="abc", tokens=3, finished=True, truncated=False)
            for i in range(len(prompts))
        ]

    config = config_of(
        "unused",
        generation={"num_beams": 4, "length_penalty": 2.0, "max_new_tokens": 9, "no_repeat_ngram_size": 3},
    )
    task, model, tokenizer = made_pairs.load(config, splits())
    monkeypatch.setattr(evaluate, "generate", spy)
    rows = rows_of(5)
    features = task.encode(rows, tokenizer, max_length=CONTEXT, training=False)
    outputs = evaluate.run_model(task, model, tokenizer, features, batch_size=2)
    for count, n in ((3, 3), (5, 5), (100, 5)):
        scores = evaluate.generation_scores(
            task, model, tokenizer, rows, features, outputs, count=count, max_length=CONTEXT
        )
        assert {score.n for score in scores} == {n}
    assert seen == [GenerationSettings(max_new_tokens=9, no_repeat_ngram_size=3)] * 3


def test_the_weights_of_the_best_score_are_restored(tmp_path: Path) -> None:
    metric = "chrf++"
    config = config_of(
        tmp_path, train={"metric_for_best_model": metric, "restore_best": True, "keep_checkpoints": 1}
    )
    trained, _ = made_pairs.fit(config, splits())
    points = judged(trained)
    value = max(point[f"eval_{metric}"] for point in points)
    assert len({point[f"eval_{metric}"] for point in points}) > 1
    task, rows = made_pairs.task_of(config), splits().validation
    assert rows is not None
    seen = hftk.evaluate(
        task,
        trained.model,
        trained.tokenizer,
        ("validation", rows.select(range(ROWS))),
        EvalConfig(resamples=0),
    )
    assert seen is not None
    assert next(s.value for s in seen.scores if s.name == metric) == pytest.approx(value)


def test_of_equal_scores_the_one_with_the_lower_loss_is_the_best() -> None:
    class Told(ExactTrainer):
        def __init__(self, history: list[dict[str, Any]]) -> None:
            self.history, self.metric, self.higher_is_better = history, "eval_bleu", True
            self.task = hftk.Translation(hftk.TranslationConfig())

    points = [
        {"step": step, "eval_bleu": bleu, "eval_loss": loss}
        for step, bleu, loss in ((1, 0.0, 3.0), (2, 0.0, 2.0), (3, 0.0, 2.0))
    ]
    assert Told(points).best_step() == 2
    points.append({"step": 4, "eval_bleu": 0.1, "eval_loss": 9.0})
    told = Told(points)
    assert told.best_step() == 4
    told.higher_is_better = False
    assert told.best_step() == 2


def test_early_stopping_goes_by_a_score_of_the_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = iter([1.0, 5.0, 4.0, 3.0, 9.0])
    made = hftk.Translation.text_scores

    def text_scores(self: Any, *args: Any, **kwargs: Any) -> Any:
        value = next(values)
        return [
            hftk.task.Score(name=s.name, value=value, higher_is_better=True, n=1)
            for s in made(self, *args, **kwargs)[:1]
        ]

    monkeypatch.setattr(hftk.Translation, "text_scores", text_scores)
    config = config_of(
        tmp_path, train={"metric_for_best_model": "bleu", "early_stopping": 2, "max_steps": 30}
    )
    trained, _ = made_pairs.fit(config, splits())
    assert trained.stopped_early and [point["eval_bleu"] for point in judged(trained)] == [1.0, 5.0, 4.0, 3.0]
    assert any("weights of step 6 restored" in choice for choice in trained.choices)


def test_a_continued_run_judges_the_same_rows(tmp_path: Path) -> None:
    """A best score of 6 rows and one of 7 cannot be compared."""
    config = config_of(tmp_path, train={"metric_for_best_model": "bleu", "save_steps": 6})
    made_pairs.fit(config, splits())
    again = override(config, {"resume": "auto", "eval": {"generate_rows": ROWS + 1}})
    with pytest.raises(InputError, match=r"--eval.generate_rows was 6, now 7"):
        made_pairs.fit(again, splits())


def test_a_score_of_the_text_needs_text() -> None:
    config = config_of("unused", train={"metric_for_best_model": "bleu"}, eval={"generate_rows": 0})
    with pytest.raises(InputError, match=r"bleu needs generated text.*\n.*--eval.generate_rows 100"):
        hftk.check(config, made_pairs.task_of(config))
    config = config_of("unused", train={"metric_for_best_model": "rougeL"})
    with pytest.raises(
        InputError, match=r"expected loss or a score of translation, found rougeL\n.*bleu, chrf\+\+, ter"
    ):
        hftk.check(config, made_pairs.task_of(config))
    hftk.check(
        config_of("unused", train={"metric_for_best_model": "bleu"}),
        hftk.Translation(hftk.TranslationConfig()),
    )


def test_targets_longer_than_the_positions_of_the_decoder_are_refused_before_data_are_read() -> None:
    config = config_of("unused", max_target_length=CONTEXT + 1)
    with pytest.raises(InputError) as error:
        hftk.check(config, made_pairs.task_of(config))
    (problem,) = error.value.problems
    assert problem.setting == "max_target_length" and f"at most {CONTEXT}" in problem.message
    assert (
        f"--max_target_length {CONTEXT}" in problem.fix
        and f"--model.config.max_position_embeddings {CONTEXT + 1}" in problem.fix
    )
    hftk.check(override(config, {"max_target_length": CONTEXT}), made_pairs.task_of(config))
    endless = config_of("unused", architecture="t5", max_target_length=100_000)
    hftk.check(endless, made_pairs.task_of(endless))
