"""Reading ahead: order, errors where they belong, threads that really work side by side and are gone afterwards."""

import threading

import pytest

from mri_ds.data.ahead import read_ahead


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
