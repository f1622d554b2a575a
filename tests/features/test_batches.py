"""Every row in exactly one step, the same steps for every split of the work, and no step without its rows."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np
import pytest

from hftk import console
from hftk.config import InputError
from hftk.features.batches import (
    BatchSize,
    EpochPlan,
    StreamPlan,
    fill_batches,
    plan_epoch,
    sort_rows,
    split_step,
)
from hftk.features.loader import StepLoader
from hftk.features.packing import pack
from hftk.task import Features


@pytest.fixture(autouse=True)
def _no_earlier_choices() -> Iterator[None]:
    console.clear_notes()
    yield
    console.clear_notes()


def some_lengths(rows: int, seed: int = 0, most: int = 100) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, most + 1, rows)


def features(lengths: np.ndarray, first: int = 0) -> Features:
    """Rows that carry their own number, to follow them through the plan."""
    numbers = np.arange(first, first + len(lengths))
    return Features(columns={"number": numbers.tolist()}, rows=numbers, lengths=np.asarray(lengths))


def plain(steps: list[np.ndarray]) -> list[list[int]]:
    return [step.tolist() for step in steps]


def padding(batches: list[np.ndarray], lengths: np.ndarray) -> float:
    """Share of the places in the batches that hold no token."""
    places = sum(len(b) * int(lengths[b].max(0).sum()) for b in batches if len(b))
    return 1 - sum(int(lengths[b].sum()) for b in batches) / places


# --- Steps


@pytest.mark.parametrize("group", [True, False])
@pytest.mark.parametrize(
    "size",
    [BatchSize(rows=1), BatchSize(rows=7), BatchSize(rows=500), BatchSize(tokens=300), BatchSize(tokens=1)],
)
def test_every_row_is_in_exactly_one_step(size: BatchSize, group: bool) -> None:
    lengths = some_lengths(403)
    steps = plan_epoch(lengths, size, seed=1, epoch=0, group_by_length=group)
    assert sorted(np.concatenate(steps).tolist()) == list(range(403))
    assert all(len(step) for step in steps)


@pytest.mark.parametrize("group", [True, False])
def test_a_step_has_the_rows_that_were_asked_for_but_for_one(group: bool) -> None:
    sizes = sorted(
        len(s)
        for s in plan_epoch(some_lengths(403), BatchSize(rows=10), seed=1, epoch=0, group_by_length=group)
    )
    assert sizes == [3] + 40 * [10]


@pytest.mark.parametrize("group", [True, False])
def test_a_step_is_filled_with_tokens_up_to_the_limit_and_a_longer_row_stands_alone(group: bool) -> None:
    lengths = np.append(some_lengths(2000), 999)
    steps = plan_epoch(lengths, BatchSize(tokens=500), seed=3, epoch=0, group_by_length=group)
    tokens = [int(lengths[s].sum()) for s in steps]
    assert [len(s) for s, t in zip(steps, tokens, strict=True) if t > 500] == [1]
    assert np.mean(tokens) > 400


def test_seed_and_epoch_change_the_plan_and_nothing_else_does() -> None:
    lengths, size = some_lengths(100), BatchSize(rows=8)
    plans = {
        (seed, epoch): plain(plan_epoch(lengths, size, seed=seed, epoch=epoch))
        for seed, epoch in product((0, 1), (0, 1))
    }
    assert len({str(p) for p in plans.values()}) == 4
    np.random.seed(5)
    assert plain(plan_epoch(lengths, size, seed=1, epoch=1)) == plans[1, 1]


def test_groups_of_like_length_save_most_of_the_padding() -> None:
    lengths = np.random.default_rng(0).lognormal(3, 0.7, 5000).astype(int) + 1
    found = {}
    for group in (True, False):
        steps = plan_epoch(lengths, BatchSize(rows=32), seed=0, epoch=0, group_by_length=group)
        micro = [m for s in steps for m in split_step(s, lengths, processes=1, max_rows=32)[0]]
        found[group] = padding(micro, lengths)
    assert found[False] > 0.5 and found[True] < 0.1, found


def test_grouped_steps_come_in_random_order_and_mix_rows_from_everywhere() -> None:
    lengths = some_lengths(6400)
    steps = plan_epoch(lengths, BatchSize(rows=20), seed=0, epoch=0)
    means = np.array([lengths[s].mean() for s in steps])
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.15  # long and short steps alternate
    other = plan_epoch(lengths, BatchSize(rows=20), seed=0, epoch=1)
    together = {frozenset(s.tolist()) for s in steps} & {frozenset(s.tolist()) for s in other}
    assert not together  # no two epochs share a step
    spread = np.mean([np.ptp(s) for s in steps])
    assert spread > 0.8 * 6400  # rows of a step are not neighbours in the file


def test_rows_of_one_length_are_only_shuffled() -> None:
    same = np.full(50, 9)
    grouped = plan_epoch(same, BatchSize(rows=8), seed=2, epoch=0)
    assert plain(grouped) == plain(
        plan_epoch(same, BatchSize(rows=8), seed=2, epoch=0, group_by_length=False)
    )


SPLITS = list(product((1, 2, 3, 8), (1, 4, 16), (None, 120)))
# --- Two sides


def two_sides(rows: int, ratio: float, spread: float, seed: int = 0) -> np.ndarray:
    """(rows, 2) tokens of sources and of targets that are about ``ratio`` times as long."""
    rng = np.random.default_rng(seed)
    source = rng.lognormal(2.7, 0.4, rows)
    return np.maximum(
        1, np.stack([source, ratio * source * rng.lognormal(0, spread, rows)], axis=1).astype(int)
    )


@pytest.mark.parametrize(("ratio", "spread", "most"), [(1.0, 0.2, 0.05), (0.1, 0.6, 0.08), (10.0, 0.3, 0.08)])
def test_source_and_target_both_have_little_padding(ratio: float, spread: float, most: float) -> None:
    """Alike in length, or one far longer than the other: better than by the sum of both."""
    sides = two_sides(20_000, ratio, spread)
    shares = [
        padding(
            [
                m
                for s in plan_epoch(by, BatchSize(rows=128), seed=0, epoch=0)
                for m in split_step(s, by, processes=1, max_rows=32)[0]
            ],
            sides,
        )
        for by in (sides, sides.sum(1))
    ]
    assert shares[0] < most and shares[0] < 0.75 * shares[1]


def test_a_plan_over_two_sides_has_every_row_once_and_follows_from_the_seed() -> None:
    sides = two_sides(1003, 1.0, 0.3)
    for size in (BatchSize(rows=8), BatchSize(tokens=700)):
        steps = plan_epoch(sides, size, seed=1, epoch=2)
        assert sorted(np.concatenate(steps).tolist()) == list(range(1003))
        assert plain(plan_epoch(sides, size, seed=1, epoch=2)) == plain(steps)
        assert plain(plan_epoch(sides, size, seed=2, epoch=2)) != plain(steps)


def test_micro_batches_of_two_sides_count_the_padding_of_both() -> None:
    sides = two_sides(61, 1.0, 0.5)
    for processes, max_rows, max_tokens in SPLITS:
        parts = split_step(
            np.arange(61), sides, processes=processes, max_rows=max_rows, max_tokens=max_tokens
        )
        batches = [b for part in parts for b in part]
        assert len({len(part) for part in parts}) == 1 and sorted(np.concatenate(batches).tolist()) == list(
            range(61)
        )
        for b in batches:
            assert len(b) <= max_rows
            assert max_tokens is None or len(b) <= 1 or len(b) * sides[b].max(0).sum() <= max_tokens
    crossed = np.array([[9, 1], [1, 9]])  # 10 tokens each, 36 places together
    assert [len(b) for b in split_step(np.arange(2), crossed, processes=1, max_rows=2, max_tokens=35)[0]] == [
        1,
        1,
    ]
    assert [len(b) for b in split_step(np.arange(2), crossed, processes=1, max_rows=2, max_tokens=36)[0]] == [
        2
    ]


def test_batches_are_as_full_as_the_budget_allows() -> None:
    sides = np.array([[5, 5], [5, 5], [4, 6], [4, 6], [1, 1]])
    assert plain(fill_batches(np.arange(5), sides, 3, 22)) == [[0, 1], [2, 3], [4]]
    assert plain(fill_batches(np.arange(5), sides, 3, 1)) == [[0], [1], [2], [3], [4]]
    assert plain(fill_batches(np.arange(5), sides.sum(1), 3, 30)) == [[0, 1, 2], [3, 4]]


def test_sorting_two_sides_of_nothing_and_of_one_length() -> None:
    assert sort_rows(np.arange(0), np.zeros((0, 2), int), 4).tolist() == []
    assert sorted(sort_rows(np.arange(9), np.full((9, 2), 3), 4).tolist()) == list(range(9))


# --- Micro-batches


@pytest.mark.parametrize("rows", [1, 2, 5, 16, 61])
def test_a_step_is_dealt_out_whole_in_equal_numbers_of_micro_batches_within_the_limits(rows: int) -> None:
    lengths = some_lengths(200)
    step = np.random.default_rng(rows).permutation(200)[:rows]
    for processes, max_rows, max_tokens in SPLITS:
        parts = split_step(step, lengths, processes=processes, max_rows=max_rows, max_tokens=max_tokens)
        assert len(parts) == processes and len({len(p) for p in parts}) == 1 and len(parts[0]) >= 1
        batches = [b for part in parts for b in part]
        assert sorted(np.concatenate(batches).tolist()) == sorted(step.tolist())
        for b in batches:
            assert len(b) <= max_rows
            assert max_tokens is None or len(b) <= 1 or len(b) * lengths[b].max() <= max_tokens


def test_there_are_no_more_micro_batches_than_needed() -> None:
    lengths = np.full(64, 10)
    for processes, max_rows in ((1, 16), (4, 4), (2, 32)):
        parts = split_step(np.arange(64), lengths, processes=processes, max_rows=max_rows)
        assert len(parts[0]) == 64 // (processes * max_rows)
    tokens = split_step(np.arange(64), lengths, processes=1, max_rows=64, max_tokens=160)
    assert [len(b) for b in tokens[0]] == [16, 16, 16, 16]


def test_processes_get_like_work() -> None:
    lengths = some_lengths(256)
    parts = split_step(np.arange(256), lengths, processes=4, max_rows=8)
    tokens = [sum(int(lengths[b].sum()) for b in part) for part in parts]
    assert max(tokens) / min(tokens) < 1.2


def loader(
    plan: EpochPlan | StreamPlan,
    process: int = 0,
    processes: int = 1,
    max_rows: int = 4,
    max_tokens: int | None = None,
) -> StepLoader:
    return StepLoader(
        plan,
        lambda rows: {"numbers": [r["number"] for r in rows]},
        process=process,
        processes=processes,
        max_rows=max_rows,
        max_tokens=max_tokens,
    )


def rows_of_steps(
    plan: EpochPlan | StreamPlan, processes: int, max_rows: int, max_tokens: int | None = None
) -> list[list[int]]:
    """Row numbers of each step over all processes, fillers left out."""
    loaders = [list(loader(plan, p, processes, max_rows, max_tokens)) for p in range(processes)]
    steps = []
    for parts in zip(*loaders, strict=True):
        assert len({len(p) for p in parts}) == 1
        steps.append(
            sorted(n for part in parts for batch in part if not batch.get("filler") for n in batch["numbers"])
        )
    return steps


def test_steps_are_the_same_rows_on_any_number_of_processes_and_with_any_micro_batch() -> None:
    plan = EpochPlan(features(some_lengths(90)), BatchSize(rows=16), seed=4, epochs=2, max_steps=None)
    expected = rows_of_steps(plan, 1, 16)
    assert [len(s) for s in expected].count(16) == 10 and sum(map(len, expected)) == 180
    for processes, max_rows, max_tokens in ((1, 4, None), (2, 8, None), (3, 5, 200), (32, 1, None)):
        assert rows_of_steps(plan, processes, max_rows, max_tokens) == expected


def test_where_rows_are_fewer_than_processes_the_others_get_a_filler_that_repeats_a_row() -> None:
    plan = EpochPlan(features(np.array([3, 5])), BatchSize(rows=2), seed=0, epochs=1, max_steps=None)
    batches = [next(iter(loader(plan, p, 4)))[0] for p in range(4)]
    assert [b.get("filler", False) for b in batches] == [False, False, True, True]
    assert sorted(n for b in batches[:2] for n in b["numbers"]) == [0, 1]
    assert all(len(b["numbers"]) == 1 for b in batches[2:])


def test_the_loader_counts_the_tokens_of_all_processes_and_starts_where_it_is_told() -> None:
    lengths = some_lengths(40)
    plan = EpochPlan(features(lengths), BatchSize(rows=10), seed=0, epochs=2, max_steps=None)
    whole = loader(plan, 1, 2)
    everything = list(whole)
    assert whole.tokens == 2 * lengths.sum() and whole.epoch == 2.0 and len(whole) == 8
    later = loader(plan, 1, 2)
    later.start = 5
    assert list(later) == everything[5:]


# --- The plan of a run


@pytest.mark.parametrize(
    ("epochs", "steps"), [(1, 10), (2, 20), (0.5, 5), (1.3, 13), (2.95, 30), (0.001, 1)]
)  # 95 rows in steps of 10: 10 steps an epoch
def test_total_steps_follow_from_epochs_and_fractions_of_them(epochs: float, steps: int) -> None:
    plan = EpochPlan(features(some_lengths(95)), BatchSize(rows=10), seed=0, epochs=epochs, max_steps=None)
    assert plan.steps_per_epoch == 10 and plan.total_steps == steps == len(list(plan.steps()))


def test_max_steps_cut_an_epoch_or_go_on_into_the_next() -> None:
    for max_steps in (3, 25):
        plan = EpochPlan(
            features(some_lengths(95)), BatchSize(rows=10), seed=0, epochs=None, max_steps=max_steps
        )
        assert plan.total_steps == max_steps == len(list(plan.steps()))
    assert [s.epoch for s in plan.steps()][9::10] == [1.0, 2.0]


def test_total_steps_of_sizes_in_tokens_are_counted_epoch_by_epoch() -> None:
    data = features(some_lengths(300))
    plan = EpochPlan(data, BatchSize(tokens=700), seed=0, epochs=3, max_steps=None)
    seen = np.concatenate([s.indices for s in plan.steps()])
    assert np.bincount(seen, minlength=300).tolist() == [3] * 300


@pytest.mark.parametrize("size", [BatchSize(rows=7), BatchSize(tokens=150)])
def test_steps_from_anywhere_are_the_rest_of_all_steps(size: BatchSize) -> None:
    plan = EpochPlan(features(some_lengths(50)), size, seed=0, epochs=2.5, max_steps=None)
    everything = [(s.indices.tolist(), s.epoch) for s in plan.steps()]
    for start in (
        0,
        1,
        plan.steps_per_epoch,
        plan.steps_per_epoch + 3,
        plan.total_steps,
        plan.total_steps + 9,
    ):
        assert [(s.indices.tolist(), s.epoch) for s in plan.steps(start)] == everything[start:]


def test_no_rows_are_an_error_and_not_an_endless_run() -> None:
    with pytest.raises(InputError, match="expected rows to train on, found none"):
        EpochPlan(features(np.array([], int)), BatchSize(rows=2), seed=0, epochs=None, max_steps=5)


def test_a_global_batch_larger_than_the_data_is_said() -> None:
    plan = EpochPlan(features(some_lengths(6)), BatchSize(rows=8), seed=0, epochs=3, max_steps=None)
    assert plan.total_steps == 3
    assert console.noted() == [
        "train.global_batch_size 8 is more than the training split: each step is one pass over 6 rows"
    ]


# --- Streams


class Stream:
    """Chunks of rows with running numbers; counts how often each was read."""

    def __init__(self, sizes: list[int], empty_from: int | None = None) -> None:
        self.sizes, self.empty_from, self.reads = sizes, empty_from, 0

    def __call__(self, epoch: int) -> Iterator[Features]:
        if self.empty_from is not None and epoch >= self.empty_from:
            return
        first = 0
        for number, size in enumerate(self.sizes):
            self.reads += 1
            yield features(some_lengths(size, seed=number), first)
            first += size


def stream_plan(stream: Stream, max_steps: int, size: BatchSize | None = None) -> StreamPlan:
    return StreamPlan(stream, size or BatchSize(rows=4), seed=0, max_steps=max_steps)


def numbers(steps: Iterator) -> list[list[int]]:
    return [[s.features[int(i)]["number"] for i in s.indices] for s in steps]


def test_a_stream_gives_each_row_once_a_pass_and_the_same_steps_every_time() -> None:
    plan = stream_plan(Stream([40, 40, 17]), 25)
    steps = numbers(plan.steps())
    assert sorted(n for s in steps for n in s) == list(range(97))
    assert steps == numbers(plan.steps()) and len(steps) == 25


@pytest.mark.parametrize("start", [1, 9, 10, 24, 31, 60])
def test_a_stream_goes_on_at_any_step(start: int) -> None:
    plan = stream_plan(Stream([40, 40, 17]), 60)  # 25 steps a pass
    assert numbers(plan.steps(start)) == numbers(plan.steps())[start:]


def test_small_chunks_do_not_make_small_steps() -> None:
    steps = numbers(stream_plan(Stream([3] * 100), 25, BatchSize(rows=12)).steps())
    assert [len(s) for s in steps] == [12] * 25 and sorted(n for s in steps for n in s) == list(range(300))
    tokens = list(stream_plan(Stream([3] * 300), 20, BatchSize(tokens=600)).steps())
    assert np.mean([s.features.lengths[s.indices].sum() for s in tokens]) > 450


def test_a_stream_is_read_no_further_than_needed() -> None:
    stream = Stream([40] * 50)
    list(stream_plan(stream, 10).steps())
    assert stream.reads == 1


def test_a_stream_that_ends_early_is_read_again_and_the_user_is_told() -> None:
    steps = numbers(stream_plan(Stream([20]), 12).steps())
    assert (
        sorted(n for s in steps[:5] for n in s)
        == sorted(n for s in steps[5:10] for n in s)
        == list(range(20))
    )
    assert steps[:5] != steps[5:10]
    assert console.noted() == ["the stream holds 5 steps: it is read again, for train.max_steps 12"]


@pytest.mark.parametrize("stream", [Stream([]), Stream([0, 0]), Stream([20], empty_from=1)])
def test_a_stream_without_rows_ends_in_an_error_and_not_in_a_loop(stream: Stream) -> None:
    with pytest.raises(InputError, match=r"found none in pass [12] over the stream"):
        list(stream_plan(stream, 12).steps())


# --- Packing


def best_fit(lengths: list[int], capacity: int) -> list[list[int]]:
    """The rule, word by word: longest first, each into the fullest block that still has room."""
    blocks: list[list[int]] = []
    for piece in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        rooms = {b: capacity - sum(lengths[i] for i in block) for b, block in enumerate(blocks)}
        fits = {b: room for b, room in rooms.items() if room >= lengths[piece]}
        if fits:
            blocks[min(fits, key=lambda b: fits[b])].append(piece)
        else:
            blocks.append([piece])
    return blocks


def fillings(blocks: list[list[int]], lengths: list[int]) -> list[int]:
    """Tokens in each block: what the rule settles, whichever of several blocks with the same room it
    takes."""
    return sorted(sum(lengths[i] for i in block) for block in blocks)


def test_packing_by_hand() -> None:
    assert pack(np.array([6, 5, 4, 3, 2]), 10) == [[0, 2], [1, 3, 4]]
    assert pack(np.array([2, 7, 5, 3]), 10) == [[1, 3], [2, 0]]
    assert pack(np.array([10, 10]), 10) == [[0], [1]]
    assert pack(np.array([], int), 10) == []


def test_packing_equals_best_fit_and_loses_no_piece() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        capacity = int(rng.integers(1, 24))
        lengths = rng.integers(1, capacity + 1, rng.integers(1, 25)).tolist()
        blocks = pack(np.array(lengths), capacity)
        assert sorted(i for b in blocks for i in b) == list(range(len(lengths)))
        assert all(sum(lengths[i] for i in b) <= capacity for b in blocks)
        assert fillings(blocks, lengths) == fillings(best_fit(lengths, capacity), lengths)


def test_packing_leaves_hardly_any_room() -> None:
    lengths = some_lengths(3000, most=512)
    blocks = pack(lengths, 512)
    alone = np.count_nonzero(lengths > 256)  # no two of these share a block
    assert len(blocks) <= 1.01 * max(alone, lengths.sum() / 512)


def test_a_piece_longer_than_a_block_is_refused() -> None:
    with pytest.raises(ValueError, match="at most 8 tokens, found one of 9"):
        pack(np.array([3, 9]), 8)
