"""Names, bounds and defaults of params.yaml."""

from pathlib import Path
from typing import get_args

import pytest

from reperfuse.cohort.lesion_names import MODALITIES
from reperfuse.errors import InputError
from reperfuse.params import Modality, Params, Section, Train, load_params
from reperfuse.stages.learning import with_overrides


def sections(model: type[Section], seen: set[type[Section]] | None = None) -> set[type[Section]]:
    seen = set() if seen is None else seen
    if model not in seen:
        seen.add(model)
        for field in model.model_fields.values():
            if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
                sections(field.annotation, seen)
    return seen


def described(section: type[Section], name: str) -> bool:
    return any(
        parent.model_fields[name].description
        for parent in section.__mro__
        if isinstance(parent, type) and issubclass(parent, Section) and name in parent.model_fields
    )


@pytest.mark.parametrize("section", sorted(sections(Params), key=lambda section: section.__name__))
def test_every_parameter_says_what_it_is(section: type[Section]) -> None:
    for name, field in section.model_fields.items():
        is_section = isinstance(field.annotation, type) and issubclass(field.annotation, Section)
        assert is_section or described(section, name), f"{section.__name__}.{name}"


def test_the_modalities_are_those_that_the_door_knows() -> None:
    assert get_args(Modality) == tuple(MODALITIES)


def test_parameters_do_not_change_under_way() -> None:
    with pytest.raises(ValueError):
        Params().lesion.train.epochs = 3  # type: ignore[misc]


def test_an_unknown_key_deep_down_is_named_in_full(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("perfusion: {resolution: {tr: [1, 2]}}")
    with pytest.raises(InputError, match=r"perfusion\.resolution\.tr is not a parameter; did you mean tr_s\?"):
        load_params(path)


def test_an_override_reaches_into_the_networks_arguments() -> None:
    train: Train = Params().lesion.train
    changed = with_overrides(train, {"network_kwargs.normalisation": "group", "learning_rate": 0.5})
    assert changed.network_kwargs == train.network_kwargs | {"normalisation": "group"}
    assert changed.learning_rate == 0.5 and train.learning_rate != 0.5


def test_an_override_that_is_no_field_is_named() -> None:
    with pytest.raises(InputError, match="momentum"):
        with_overrides(Params().lesion.train, {"momentum": 0.9})


def test_a_search_reaches_into_the_sampling_but_not_beyond_its_bounds():
    train = Params().lesion.train
    changed = with_overrides(train, {"sampling.kind": "rejection", "sampling.lesion_share": 0.2})
    assert (changed.sampling.kind, changed.sampling.lesion_share) == ("rejection", 0.2)
    assert changed.sampling.tries == train.sampling.tries
    for name, value in (("sampling.lesion_share", 2.0), ("sampling.momentum", 1), ("loss.kind", "bce")):
        with pytest.raises(InputError, match=name.replace(".", r"\.")):
            with_overrides(train, {name: value})


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("tmax_thresholds_s: [4, 8]", "6 and 10 s"),
        ("tmax_thresholds_s: [6, 10, .nan]", "finite"),
        ("minimum_island_ml: .inf", "finite"),
    ],
)
def test_maps_need_the_thresholds_that_rules_rest_on_and_finite_numbers(line: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(f"perfusion: {{maps: {{{line}}}}}")
    with pytest.raises(InputError, match=words):
        load_params(tmp_path / "params.yaml")


def test_a_folder_of_that_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").mkdir()
    with pytest.raises(InputError, match="is a folder"):
        load_params(tmp_path / "params.yaml")
