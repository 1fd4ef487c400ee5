"""A search space is read as it is meant, or refused with its key."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reperfuse.errors import InputError
from reperfuse.training.space import Choices, Range, grid, labelled, meant, read_space

values = st.none() | st.booleans() | st.integers(-9, 9) | st.text("abc", max_size=3) | st.lists(st.integers(0, 9))


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ({"low": 1}, "write"),
        ({"low": 1, "high": 2, "steps": 1}, "write"),
        ({"low": 2, "high": 1}, "exchange them"),
        ({"low": 0, "high": 1, "log": True}, "above 0"),
        ({"low": 1, "high": 9, "step": 0}, "step"),
        ({"low": 1.0, "high": 9.0, "step": 1.0, "log": True}, "step"),
        ({"low": "a", "high": 1}, "'a' is not a number"),
        ({"low": 0.1, "high": float("inf")}, "inf is not a number"),
        ({"low": 0.1, "high": 1.0, "log": "yes"}, "log must be true or false"),
        ({"choices": []}, "choices must be a list"),
        ({"choices": "adam"}, "choices must be a list"),
        (3, "write"),
    ],
)
def test_a_bad_space_names_its_key(spec, sentence):
    with pytest.raises(InputError, match=rf"^tune\.space\.rate: .*{sentence}"):
        read_space({"loss": {"choices": ["mse"]}, "rate": spec})


def test_an_empty_space_and_a_range_without_a_grid_are_refused():
    with pytest.raises(InputError, match="empty"):
        read_space({})
    with pytest.raises(InputError, match=r"tune.space.x: the grid sampler takes choices only"):
        read_space({"x": {"low": 1, "high": 2}}, choices_only=True)


def test_the_grid_has_every_combination_once():
    space = read_space({"a": {"choices": [1, 2, 3]}, "b": {"choices": [[4, 8], None]}})
    points = [meant(point, space) for point in grid(space)]
    assert points == [{"a": a, "b": b} for a in (1, 2, 3) for b in ([4, 8], None)]


@given(st.lists(values, min_size=1))
def test_every_choice_is_held_and_comes_back_from_its_label(choices):
    space = read_space({"x": {"choices": choices}})
    for value in choices:
        assert meant(labelled({"x": value}, space), space) == {"x": value}


def test_numbers_as_yaml_reads_them_are_numbers():
    space = read_space({"rate": {"low": "1e-4", "high": "1E+0", "log": True}, "decay": {"choices": ["1e-5", 0]}})
    assert space["rate"] == Range(1e-4, 1.0, log=True) and not space["rate"].whole
    assert space["decay"] == Choices({1e-5: 1e-5, 0: 0})
    assert labelled({"rate": "1e-3", "decay": "1e-5"}, space) == {"rate": 1e-3, "decay": 1e-5}


@pytest.mark.parametrize(
    ("dimension", "inside", "outside"),
    [
        (Range(1, 9), [1, 9, 4], [0, 10, 4.5, True, "4", None]),
        (Range(4, 16, step=4), [4, 8, 16], [6, 20]),
        (Range(0.0, 1.0), [0, 0.0, 1.0, 0.3], [-0.1, 1.1, False]),
        (Range(0.1, 0.5, step=0.1), [0.1, 0.3, 0.1 + 2 * 0.1], [0.25]),
        (Choices({"mse": "mse", "[4, 8]": [4, 8]}), ["mse", "[4, 8]"], ["huber"]),
    ],
)
def test_a_dimension_holds_its_own_values_and_no_others(dimension, inside, outside):
    assert [value for value in inside + outside if dimension.holds(value)] == inside


@pytest.mark.parametrize("point", [{"a": 9, "b": 1}, {"a": 1}, {"b": 1}, {"a": "x", "b": 1}])
def test_a_starting_point_outside_the_space_is_refused(point):
    space = read_space({"a": {"low": 1, "high": 3}, "b": {"choices": [1]}})
    with pytest.raises(InputError, match=r"tune.space.[ab] does not hold the starting value"):
        labelled(point, space)
