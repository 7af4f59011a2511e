import pytest

from pumer.utils.errors import some


@pytest.mark.parametrize(("count", "text"), [(0, ""), (2, "0, 1"), (3, "0, 1, 2"), (5, "0, 1, 2 and 2 more")])
def test_the_first_of_many_are_named_and_the_others_counted(count, text):
    assert some([str(number) for number in range(count)], most=3) == text
