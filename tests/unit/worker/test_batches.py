from __future__ import annotations

from celeriac.worker.batches import LARGEST, BatchSize


def test_it_begins_with_one_and_doubles_while_batches_are_full():
    size = BatchSize()
    seen = []
    for _ in range(8):
        seen.append(size.limit())
        size.came(size.limit())
        size.ran(size.limit(), 0.00001)
    assert seen == [1, 2, 4, 8, 16, 32, 64, 64]


def test_an_underfull_batch_brings_it_down():
    size = BatchSize()
    for _ in range(8):
        size.came(size.limit())
    size.came(3)
    assert size.limit() == 3


def test_long_tasks_come_one_by_one():
    size = BatchSize()
    for _ in range(8):
        size.came(size.limit())
    size.ran(1, 0.2)
    assert size.limit() == 1


def test_it_is_some_fifty_milliseconds_of_work():
    size = BatchSize()
    for _ in range(50):
        size.came(size.limit())
        size.ran(10, 10 * 0.005)
    assert size.limit() == 10


def test_it_never_exceeds_the_largest():
    size = BatchSize()
    for _ in range(50):
        size.came(size.limit())
        size.ran(1, 1e-9)
    assert size.limit() == LARGEST


def test_after_a_pause_it_begins_with_one_again():
    size = BatchSize()
    for _ in range(8):
        size.came(size.limit())
    size.idle()
    assert size.limit() == 1
