import copy
import dataclasses
import math
import pickle
from dataclasses import InitVar, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pytest
from pydantic import AfterValidator, Field

from pumer.utils.config import config, described, from_dict, load, to_dict
from pumer.utils.errors import InputError


@config
class Part:
    root: Path
    limit: int | None = None


@config
class TrainConfig:
    kind: ClassVar[str] = "train"

    epochs: int = 10
    lr: float = 1e-4
    fast: bool = False
    mode: Literal["square", "aspect"] = "square"
    betas: tuple[float, float] = (0.9, 0.98)
    layers: tuple[int, ...] = ()
    reduction: dict[str, Any] | str = "none"
    part: Part = field(default_factory=lambda: Part(root=Path("data")))
    parts: tuple[Part, ...] = ()
    name: str | None = None


@config
class Sugar:
    layers: InitVar[tuple[int, ...]] = ()
    steps: tuple[int, ...] = ()

    def __post_init__(self, layers):
        object.__setattr__(self, "steps", self.steps or layers)


def test_builds_nested_dataclasses_and_tuples():
    content = {
        "lr": 1,
        "layers": [2, 5],
        "betas": [0, 0.5],
        "part": {"root": "x", "limit": 3},
        "parts": [{"root": "y"}],
        "reduction": {"method": "pumer", "layers": [1]},
    }
    config = from_dict(TrainConfig, content)
    assert config == TrainConfig(
        lr=1.0,
        layers=(2, 5),
        betas=(0.0, 0.5),
        part=Part(root=Path("x"), limit=3),
        parts=(Part(root=Path("y")),),
        reduction={"method": "pumer", "layers": [1]},
    )
    assert isinstance(config.lr, float)


def test_to_dict_and_back():
    config = TrainConfig(layers=(1, 2), part=Part(root=Path("x")), parts=(Part(root=Path("y"), limit=1),))
    plain = to_dict(config)
    assert plain["parts"] == [{"root": "y", "limit": 1}]
    assert from_dict(TrainConfig, plain) == config


def test_init_vars_are_keys():
    assert from_dict(Sugar, {"layers": [2, 5]}).steps == (2, 5)
    assert dataclasses.fields(Sugar)[0].name == "steps"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epochz": 3}, "key 'epochz' is unknown in train config; did you mean 'epochs'?"),
        ({"kind": "x"}, "key 'kind' is unknown in train config"),
        ({"part": {"rot": "x"}}, "key 'part.rot' is unknown in train config; did you mean 'part.root'?"),
        ({"merge_ratio": 0.2}, "key 'merge_ratio' is unknown in train config; did you mean 'reduction.merge_ratio'?"),
        ({"limit": 3}, "key 'limit' is unknown in train config; did you mean 'part.limit'?"),
        ({"part": {"zzz": "x"}}, "key 'part.zzz' is unknown in train config; allowed: root, limit"),
        ({"parts": [{}]}, "key 'parts[0].root' is missing in train config; give parts[0].root=..."),
        ({"parts": [{"root": 3}]}, "key 'parts[0].root' in train config must be a path, not 3"),
        ({"epochs": "ten"}, "key 'epochs' in train config must be an integer, not 'ten'"),
        ({"epochs": 1.5}, "key 'epochs' in train config must be an integer, not 1.5"),
        ({"epochs": True}, "key 'epochs' in train config must be an integer, not True"),
        ({"epochs": None}, "key 'epochs' in train config must be an integer, not null"),
        ({"lr": "1e-4x"}, "key 'lr' in train config must be a finite number, not '1e-4x'"),
        ({"fast": 1}, "key 'fast' in train config must be true or false, not 1"),
        ({"mode": "crop"}, "key 'mode' in train config must be 'square' or 'aspect', not 'crop'"),
        ({"betas": [0.1]}, "key 'betas' in train config must be a list of 2 values, not [0.1]"),
        ({"layers": 3}, "key 'layers' in train config must be a list, as in layers=[3], not 3"),
        ({"layers": ["a"]}, "key 'layers[0]' in train config must be an integer, not 'a'"),
        ({"part": 3}, "key 'part' in train config must be a mapping, not 3"),
        ({"reduction": 3}, "key 'reduction' in train config must be a mapping or text, not 3"),
        ({"part": {"root": "x", "limit": "y"}}, "key 'part.limit' in train config must be an integer, not 'y'"),
    ],
)
def test_wrong_keys_and_values_are_named(content, message):
    with pytest.raises(InputError) as caught:
        from_dict(TrainConfig, content)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_where_names_the_content():
    with pytest.raises(InputError, match=r"unknown in reduction\.json"):
        from_dict(TrainConfig, {"x": 1}, where="reduction.json")


def test_load_merges_file_and_settings(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "lr: 1e-3\nmode: square\nname: ${mode}-run\nreduction: {method: pumer, layers: [2, 5]}\npart: {root: a}\n"
    )
    settings = ["epochs=3", "epochs=4", "part.limit=7", "mode=aspect", "reduction.layers=[8]"]
    assert load(TrainConfig, recipe, settings) == TrainConfig(
        epochs=4,
        lr=1e-3,
        mode="aspect",
        name="aspect-run",
        part=Part(root=Path("a"), limit=7),
        reduction={"method": "pumer", "layers": [8]},
    )
    assert load(TrainConfig, recipe, ["reduction=none", "part.limit=null"]).reduction == "none"
    assert load(TrainConfig, None, ["reduction=tome", "reduction.layers=[2]"]).reduction == {
        "method": "tome",
        "layers": [2],
    }
    assert load(TrainConfig, None, ["lr=3e-5"]).lr == 3e-5
    assert load(TrainConfig, None, []) == TrainConfig()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("epochs", "setting 'epochs' is not of the form key=value"),
        ("=3", "setting '=3' is not of the form key=value"),
        ("layers=[1", "setting 'layers=[1' cannot be read"),
        ("name=${nothing}", "'nothing' not found"),
        ("epochz=1", "did you mean 'epochs'"),
    ],
)
def test_bad_settings_are_named(setting, message):
    with pytest.raises(InputError) as caught:
        load(TrainConfig, None, [setting])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: [1\nb: 2\n", "is not readable YAML"),
        ("- 1\n- 2\n", "must hold 'key: value' lines"),
        ("just text\n", "key 'just text' is unknown"),
        ("", "is empty"),
        ("\x00\x01", "is not readable YAML"),
        ("3", "must hold 'key: value' lines"),
        ("\tlr: 1", "is not readable YAML"),
    ],
)
def test_broken_recipes_are_named(tmp_path, content, message):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(content)
    with pytest.raises(InputError) as caught:
        load(TrainConfig, recipe, [])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_recipe_is_named(tmp_path):
    with pytest.raises(InputError, match=r"recipe .*nope\.yaml does not exist"):
        load(TrainConfig, tmp_path / "nope.yaml", [])


def test_empty_recipe_gives_the_defaults(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("# nothing\n")
    assert load(TrainConfig, recipe, []) == TrainConfig()


@pytest.mark.parametrize("text", ["model: " + "[" * 5000 + "]" * 5000, "seed: 1" + "0" * 5000], ids=["deep", "long"])
def test_what_python_refuses_to_parse_is_refused_in_one_line(tmp_path, text):
    (tmp_path / "recipe.yaml").write_text(text)
    for path, settings in ((tmp_path / "recipe.yaml", ()), (None, (text.replace(": ", "=", 1),))):
        with pytest.raises(InputError) as caught:
            load(TrainConfig, path, settings)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 400


@config
class Rates:
    """Rates.

    Attributes:
        lr: learning rate.
        factor: of the head.
    """

    lr: float = 1e-4
    factor: float = 10.0


@config
class Job:
    """A job.

    Attributes:
        rates: its rates.
        slow: others.
    """

    rates: Rates = field(default_factory=lambda: Rates(lr=1e-5, factor=1.0))
    slow: Rates | None = None


def test_a_part_that_is_changed_keeps_the_rest_of_its_own_defaults():
    assert load(Job, None, ["rates.lr=3e-5", "slow.lr=1"]) == Job(
        rates=Rates(lr=3e-5, factor=1.0), slow=Rates(lr=1.0, factor=10.0)
    )
    assert "[default: 1.0e-05]" in described(Job)["rates.lr"]
    assert "[default: 1.0]" in described(Job)["rates.factor"]


@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf", "1" + "0" * 400])
def test_numbers_are_finite(value):
    with pytest.raises(InputError, match=r"'rates\.lr' .* must be a finite number"):
        load(Job, None, [f"rates.lr={value}"])


@config
class Bounded:
    seed: Annotated[int, Field(ge=0, lt=10)] = 0
    share: Annotated[float, Field(gt=0)] = 0.5
    sizes: tuple[Annotated[int, Field(ge=1)], ...] = ()
    task: Annotated[str, AfterValidator(lambda task: known(task))] = "vqav2"
    part: Part | None = None


@config
class Outer(Bounded):
    inner: Bounded = field(default_factory=Bounded)

    def __post_init__(self):
        if self.seed == self.inner.seed == 5:
            raise InputError("seed and inner.seed are both 5")


def known(task):
    if task != "vqav2":
        raise InputError(f"{task!r} is unknown")
    return task


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"seed": -1}, r"key 'seed' in outer config must be an integer in \[0, 10\), not -1"),
        ({"seed": 10}, r"\[0, 10\), not 10"),
        ({"share": 0}, r"'share' .* a finite number in \(0, inf\), not 0"),
        ({"share": math.nan}, "a finite number .*, not nan"),
        ({"share": True}, "'share' .*, not True"),
        ({"sizes": [1, 0]}, r"'sizes\[1\]' .* integer in \[1, inf\), not 0"),
        ({"sizes": {1, 2}}, "'sizes' .* must be a list, not"),
        ({"task": "vqa"}, "^task: 'vqa' is unknown$"),
        ({"inner": {"task": "vqa"}}, "^inner.task: 'vqa' is unknown$"),
        ({"inner": {"seed": 99}}, r"'inner\.seed' .* \[0, 10\), not 99"),
        ({"seed": 5, "inner": Bounded(seed=5)}, "^seed and inner.seed are both 5$"),
        ({"part": {}}, "'part.root' is missing"),
        ({"inner": {"sede": 1}}, "'inner.sede' .* did you mean 'inner.seed'"),
    ],
)
def test_construction_refuses_as_parsing_does(values, message):
    for build in (lambda: Outer(**values), lambda: from_dict(Outer, values)):
        with pytest.raises(InputError, match=message) as caught:
            build()
        assert "\n" not in str(caught.value)


def test_a_config_is_an_immutable_value():
    one = Outer(sizes=[1, 2], share=1, part={"root": "x"}, inner={"seed": 3})
    assert one == Outer(sizes=(1, 2), share=1.0, part=Part(root=Path("x")), inner=Bounded(seed=3))
    assert isinstance(one.share, float) and isinstance(one.part.root, Path)
    assert pickle.loads(pickle.dumps(one)) == copy.deepcopy(one) == one and len({one, copy.deepcopy(one)}) == 1
    assert dataclasses.replace(one, seed=4).inner.seed == 3
    with pytest.raises(InputError, match="'seed'"):
        dataclasses.replace(one, seed=-4)
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.seed = 2
    with pytest.raises(TypeError):
        Outer(3)
