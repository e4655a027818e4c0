import threading

import pytest

from pipeline.cancel import CancelToken
from schemas.errors import JobCancelled


def test_a_fresh_token_lets_work_go_on():
    token = CancelToken()
    token.check()
    assert not token.cancelled
    assert token.reason is None


def test_a_cancel_stops_every_later_check_with_its_reason():
    token = CancelToken()
    token.cancel("shutdown")
    for _ in range(2):
        with pytest.raises(JobCancelled) as caught:
            token.check()
        assert caught.value.reason == "shutdown"


def test_the_first_of_many_reasons_stays():
    token = CancelToken()
    barrier = threading.Barrier(8)

    def cancel(number: int) -> None:
        barrier.wait()
        token.cancel(str(number))

    threads = [threading.Thread(target=cancel, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    first = token.reason
    token.cancel("late")
    assert token.reason == first


def test_no_except_exception_can_eat_a_cancel():
    assert not issubclass(JobCancelled, Exception)
