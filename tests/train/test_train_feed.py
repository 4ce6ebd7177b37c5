import numpy as np
import pytest
from train_models import embedder, texts

from lightformers.errors import DataError, UserError
from lightformers.train import Feed
from lightformers.train.schedules import factor


def feed(n=100, **options):
    return Feed.of(embedder(), [{"text": t} for t in texts(n)], **{"max_tokens": 64, **options})


def test_an_epoch_holds_every_example_once_within_the_token_budget():
    source = feed(max_examples=7)
    for number in range(2):
        batches = source.epoch(number)
        assert sorted(np.concatenate(batches)) == list(range(100))
        assert all(len(b) * source.lengths[b].max() <= 64 and len(b) <= 7 for b in batches)


def test_an_example_longer_than_the_budget_gets_a_batch_of_its_own():
    source = feed(max_tokens=3)
    assert all(len(b) == 1 for b in source.epoch(0) if source.lengths[b].max() > 3)
    assert sorted(np.concatenate(source.epoch(0))) == list(range(100))


def test_batches_are_of_similar_length():
    source = feed(400, max_tokens=128)
    batches = source.epoch(0)
    real, padded = source.lengths.sum(), sum(len(b) * source.lengths[b].max() for b in batches)
    assert real / padded > 0.9
    arrival = [np.arange(i, min(i + 12, 400)) for i in range(0, 400, 12)]
    assert real / sum(len(b) * source.lengths[b].max() for b in arrival) < 0.75


def test_order_depends_on_seed_and_epoch_alone():
    first, again, other = feed(seed=1), feed(seed=1), feed(seed=2)
    count = len(first.epoch(0))
    sequence = [first.indices(p).tolist() for p in range(count + 3)]
    jumped = [again.indices(p).tolist() for p in reversed(range(count + 3))]
    assert sequence == jumped[::-1]
    assert sequence[:3] != [other.indices(p).tolist() for p in range(3)]
    assert sequence[:3] != sequence[count:]


def test_a_batch_says_which_examples_it_holds():
    source = feed()
    batch = source.batch(5)
    assert batch.targets["index"].tolist() == source.indices(5).tolist()
    assert batch.inputs["attention_mask"].sum(1).tolist() == source.lengths[source.indices(5)].tolist()


def test_no_examples_is_said():
    with pytest.raises(DataError, match="no training examples"):
        Feed([], lambda items, seed: None, np.array([]))


@pytest.mark.parametrize("schedule", ["linear", "cosine", "stable"])
def test_schedules_rise_and_end_at_zero(schedule):
    assert 0 < factor(0.0, 0.1, schedule) < 0.05
    assert factor(0.1, 0.1, schedule) == pytest.approx(1.0)
    assert factor(1.0, 0.1, schedule) == pytest.approx(0.0, abs=1e-9)
    values = [factor(f / 100, 0.1, schedule) for f in range(10, 101)]
    assert values == sorted(values, reverse=True)


def test_constant_schedule_stays_and_unknown_is_refused():
    assert factor(1.0, 0.0, "constant") == 1.0
    with pytest.raises(UserError, match="schedule"):
        factor(0.5, 0.1, "exponential")  # type: ignore[arg-type]
