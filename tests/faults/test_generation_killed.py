"""Generation killed in the middle and started again writes the file of a run that was not killed."""

import json
import os
import random
import signal

import killing
import pytest
from interposer import read_trace

WRITER = str(killing.HERE / "writer.py")


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def undisturbed(server, command, folder, processes=1):
    """What the command leaves when nobody kills it, and the numbers of the operations at which something can
    be lost."""
    trace = folder.with_name(f"{folder.name}.trace")
    killing.finish(server, command, folder, processes=processes, trace=trace)
    operations = list(read_trace(trace))
    return content(folder), [
        (n, torn)
        for n, done in enumerate(operations, 1)
        for torn in (False, True)
        if not torn or done.kind == "write"
    ]


def killed_at(server, command, folder, points, processes=1):
    """Kill the main process at these of its operations, one start after the other, then let it finish; what
    it leaves."""
    for number, torn in points:
        run = killing.start(server, command, folder, processes=processes, kill_at=number, torn=torn)
        run.wait()
        assert run.main.code == -signal.SIGKILL, run.printed()[-4000:]
    killing.finish(server, command, folder, processes=processes)
    return content(folder)


def judge(kind, folder):
    return [WRITER, "judge", kind, str(folder)]


@pytest.mark.parametrize(
    ("kind", "processes"),
    [
        ("t5", 1),
        ("marian", 2),
        *(
            pytest.param(*some, marks=pytest.mark.slow)
            for some in (("marian", 1), ("t5", 2), ("bart", 1), ("bart", 2))
        ),
    ],
)
def test_a_judged_model_that_was_killed_while_it_wrote_leaves_the_same_predictions(
    server, tmp_path, kind, processes
):
    whole, points = undisturbed(server, judge(kind, tmp_path / "whole"), tmp_path / "whole", processes)
    lines = [json.loads(line) for line in whole["predictions.jsonl"].splitlines()]
    assert whole.keys() == {"predictions.jsonl"} and [line["index"] for line in lines] == list(range(24))
    assert len({line["prediction"] for line in lines}) > 4, "else every row is the same"
    middle, late = (
        random.Random(f"{kind}{processes}").choice(half)
        for half in (points[2 : len(points) // 2], points[-4:])
    )
    for number, some in enumerate([[middle], [late]]):
        place = tmp_path / str(number)
        assert killed_at(server, judge(kind, place), place, some, processes) == whole, some


def test_killed_again_and_again_generation_still_comes_to_its_end(server, tmp_path):
    """Each start writes one batch more than the one before and dies in the middle of the next."""
    whole, _ = undisturbed(server, judge("marian", tmp_path / "whole"), tmp_path / "whole")
    # The first start makes the file, writes its head and a batch; a later one has only to cut it where the
    # line is torn.
    points = [(4, True), (3, True), (3, True)]
    assert killed_at(server, judge("marian", tmp_path / "again"), tmp_path / "again", points) == whole


def test_a_peer_that_is_killed_alone_ends_the_other_and_the_next_start_goes_on(server, tmp_path):
    whole, _ = undisturbed(server, judge("marian", tmp_path / "whole"), tmp_path / "whole")
    place = tmp_path / "peer"
    run = killing.start(server, judge("marian", place), place, processes=2)
    peer = run.processes[1]
    run.wait(lambda: peer.shared["operations"] >= 3)
    os.kill(peer.shared["pid"], signal.SIGKILL)
    run.wait()
    assert run.main.code != 0 and (place / ".generated.jsonl1").read_bytes().count(b"\n") >= 1
    killing.finish(server, judge("marian", place), place, processes=2)
    assert content(place) == whole


def predict(model, folder):
    """The command, and the prompts that it reads."""
    prompts = folder.parent / "prompts.txt"
    prompts.write_text(
        "".join(f"{word} {n}\n" for n in range(5) for word in ("Hund", "自行车", "бежит", "12")),
        encoding="utf-8",
    )
    return [
        "hftk",
        "predict",
        str(model),
        "--file",
        str(prompts),
        "--output",
        str(folder / "predictions.jsonl"),
        "--batch_size",
        "4",
        "--max_new_tokens",
        "8",
        "--num_beams",
        "2",
    ]


@pytest.fixture(scope="module")
def language_model(server, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpt2")
    killing.finish(server, [WRITER, "save", "gpt2", str(folder)], folder)
    return folder


@pytest.mark.parametrize("most", [2, pytest.param(1000, marks=pytest.mark.slow)])
def test_hftk_predict_killed_at_any_operation_goes_on_by_the_same_command(
    server, language_model, tmp_path, most
):
    whole, points = undisturbed(server, predict(language_model, tmp_path / "whole"), tmp_path / "whole")
    assert (
        whole.keys() == {"predictions.jsonl"}
        and whole["predictions.jsonl"].count(b"\n") == 20
        and len(points) > 15
    )
    for number, point in enumerate(random.Random(2).sample(points, min(most, len(points)))):
        place = tmp_path / str(number)
        assert killed_at(server, predict(language_model, place), place, [point]) == whole, point
