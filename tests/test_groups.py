"""Exceptions out of groups."""

import pytest

from persona.groups import ungrouped


@pytest.mark.parametrize("raised", [KeyError("x"), ExceptionGroup("one", [KeyError("x")])])
def test_an_exception_alone_comes_out_as_itself(raised: Exception) -> None:
    with pytest.raises(KeyError) as caught, ungrouped():
        raise raised
    assert caught.value.__context__ is None


def test_a_group_of_the_bodys_own_stays_one() -> None:
    with pytest.RaisesGroup(KeyError), ungrouped():
        raise ExceptionGroup("a nursery's", [ExceptionGroup("mine", [KeyError("x")])])


def test_two_stay_together() -> None:
    with pytest.RaisesGroup(KeyError, ValueError), ungrouped():
        raise ExceptionGroup("two", [KeyError(), ValueError()])


def test_nothing_is_nothing() -> None:
    with ungrouped():
        pass
