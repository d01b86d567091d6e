"""Reading ahead: order, errors where they belong, threads that really work side by side and are gone afterwards."""

import threading
from functools import partial

import pytest

from mri_ds.data.ahead import read_ahead, read_together


@pytest.mark.parametrize("num_threads", [0, 1, 3])
def test_results_come_in_the_order_of_the_items(num_threads):
    late = threading.Event()

    def square(i: int) -> int:
        if num_threads > 1 and i == 0:  # the first ends after the second
            assert late.wait(30)
        if i == 1:
            late.set()
        return i * i

    assert list(read_ahead(square, range(20), num_threads)) == [i * i for i in range(20)]


def test_an_error_is_raised_where_its_result_would_stand():
    results = read_ahead(lambda i: 1 // (3 - i), range(10), 2)
    assert [next(results) for _ in range(3)] == [0, 0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_it_reads_a_little_ahead_and_no_more():
    begun = []
    results = read_ahead(begun.append, range(100), 2)
    next(results)
    assert len(begun) <= 3
    results.close()
    assert len(begun) <= 4 and not [t for t in threading.enumerate() if t.name.startswith("read-ahead")]


def squares(n: int):
    """Item n: n pieces, 1 .. n squared each; their sum."""
    done: list[int] = []
    return lambda: sum(done), [partial(lambda i: done.append(i * i), i) for i in range(1, n + 1)]


@pytest.mark.parametrize("num_threads", [0, 1, 3])
def test_each_result_is_that_of_all_its_pieces(num_threads):
    assert list(read_together(squares, range(30), num_threads)) == [n * (n + 1) * (2 * n + 1) // 6 for n in range(30)]


def test_threads_work_on_one_item_together_and_then_on_the_next():
    """Three pieces wait for one another; then one for the next item's two, as no thread may idle while there is work."""
    meet = [threading.Barrier(3), threading.Barrier(3)]
    pieces = [[partial(meet[0].wait, 30)] * 3 + [partial(meet[1].wait, 30)], [partial(meet[1].wait, 30)] * 2]
    results = read_together(lambda i: (lambda: i, pieces[i]), range(2), 3)
    assert list(results) == [0, 1]


@pytest.mark.parametrize("num_threads", [0, 2])
def test_an_error_of_an_item_or_a_piece_is_raised_where_its_result_would_stand(num_threads):
    def begin(i: int, broken_at: int):
        if i == broken_at:
            raise KeyError(i)
        return lambda: i, [lambda: None, lambda: 1 // (3 - i)]

    results = read_together(partial(begin, broken_at=9), range(10), num_threads)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ZeroDivisionError):
        next(results)
    results = read_together(partial(begin, broken_at=1), range(10), num_threads)
    assert next(results) == 0
    with pytest.raises(KeyError):
        next(results)
    assert not [t for t in threading.enumerate() if t.name.startswith("read-ahead")]


def test_at_most_two_items_are_begun_beside_the_one_in_use():
    begun = []

    def begin(i: int):
        begun.append(i)
        return lambda: i, [lambda: None]

    results = read_together(begin, range(100), 2)
    for i in range(5):
        assert next(results) == i and len(begun) <= i + 2
    results.close()
    assert len(begun) <= 7 and not [t for t in threading.enumerate() if t.name.startswith("read-ahead")]
